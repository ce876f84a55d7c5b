"""
What a command line says of asking: where the relay is, the token that is shown, and whether its answers are
to be had as JSON.

The three options stand before a command and behind it, as one likes; behind it they win.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
from attrs import define

from ..config.check import printable
from ..config.grammar import parse_admin, split_admin
from .api import PATIENCE, Answer, Api, Document, Query
from .exits import NotAuthorised

SOCKET = "/run/fwdrelay/admin.sock"
"""Asked where nothing else is said, and there is one."""
ADDRESS = "127.0.0.1:9678"
"""Asked where there is none."""
ADMIN_VARIABLE = "FWDRELAY_ADMIN"
TOKEN_VARIABLE = "FWDRELAY_TOKEN_FILE"

F = TypeVar("F", bound=Callable[..., Any])


@define
class Asking:
    """
    @ivar admin: as `parse_admin` has it; empty: nothing was said.
    @ivar token_file: empty: nothing was said.
    @ivar as_json: whether the relay's answers themselves are wanted.
    """

    admin: str = ""
    token_file: str = ""
    as_json: bool = False

    def api(self, patience: float = PATIENCE) -> Api:
        """
        @raise click.UsageError: what stands in the environment, or in the file of the token, is no good.
        """
        admin = self.admin or _from_environment() or _default()
        file = self.token_file or os.environ.get(TOKEN_VARIABLE, "")
        needed = file and not admin.startswith("unix:")
        return Api(admin, _read_token(file) if needed else None, patience)

    def ask(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: Document | None = None,
        patience: float = 0.0,
    ) -> Document:
        """
        Ask the relay; where JSON is wanted, its answer is written, a refusal, too.

        @return: what it answers.
        @raise Failure: it refuses, or see `Api.ask`.
        """
        return self.written(self.api().ask(method, path, query, body, patience))

    def written(self, answer: Answer) -> Document:
        """
        Write an answer where JSON is wanted.

        @raise Failure: it is a refusal.
        """
        if self.as_json:
            write_json(answer.document)
        failure = answer.failure()
        if failure is not None:
            raise failure
        return answer.document


def write_json(document: object) -> None:
    """
    Write a line with it. What could do something to a terminal is escaped in JSON's own way.
    """
    click.echo(
        "".join(
            char if char.isprintable() else json.dumps(char)[1:-1]
            for char in json.dumps(document, ensure_ascii=False)
        )
    )


def say(text: str) -> None:
    """Write a line for people; it may hold what came from anywhere."""
    click.echo(printable(text))


def tell(text: str) -> None:
    """Write a line on stderr: what went wrong, or how it goes."""
    click.echo(f"fwdrelayctl: {printable(text)}", err=True)


class _Place(click.ParamType[str]):
    """Where a relay is asked."""

    name = "place"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """
        @return: as `parse_admin` has it.
        """
        try:
            return _parse_place(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _parse_place(text: str) -> str:
    try:
        place = parse_admin(text)
    except ValueError:
        place = "off"
    if place == "off" or (not place.startswith("unix:") and not split_admin(place)[1]):
        raise ValueError(
            f"{text!r} is not where a relay can be asked: write ADDR:PORT, [IPV6]:PORT or unix:PATH; "
            "ADDR is an IP address or localhost, with no http:// before it"
        )
    return place


def _from_environment() -> str:
    text = os.environ.get(ADMIN_VARIABLE, "")
    try:
        return text and _parse_place(text)
    except ValueError as error:
        raise click.UsageError(f"{ADMIN_VARIABLE}: {error}") from None


def _default() -> str:
    return f"unix:{SOCKET}" if os.path.exists(SOCKET) else ADDRESS


def _read_token(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            token = opened.readline(4096).strip()
    except PermissionError:
        raise NotAuthorised(f"you may not read the token in {file}: permission denied") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise click.UsageError(f"the token can't be read: {file}: {why.lower()}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise click.UsageError(
            f"the first line of {file} is no token: it is made of ASCII letters, digits and signs"
        )
    return token


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    asking = ctx.ensure_object(Asking)
    if value and param.name is not None:
        setattr(asking, param.name, value)


_OPTIONS = (
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Write the relay's own answer, a JSON object on a line.",
    ),
    click.option(
        "--token-file",
        metavar="FILE",
        type=click.Path(),
        expose_value=False,
        callback=_remember,
        help=f"Its first line is shown to a relay that asks for it, by TCP.  [env: {TOKEN_VARIABLE}]",
    ),
    click.option(
        "--admin",
        metavar="ADDR:PORT|unix:PATH",
        type=_Place(),
        expose_value=False,
        callback=_remember,
        help=f"Where the relay is asked, as its own --admin.  [env: {ADMIN_VARIABLE}; default: unix:{SOCKET} if it is "
        f"there, else {ADDRESS}]",
    ),
)


def asks(command: F) -> F:
    """Give a command the options that are told of here."""
    for option in _OPTIONS:
        command = option(command)
    return command

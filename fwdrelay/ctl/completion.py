"""
Completion of command lines in shells: the scripts, and the names that only the relay knows.

click does most of it. For bash it has a script that cannot complete words with colons in them, as targets
have; so here is another.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from .api import Document
from .asking import Asking
from .exits import Failure

PROGRAM = "fwdrelayctl"
SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_FWDRELAYCTL_COMPLETE"
"""By which the shells' scripts ask for completions; the name is click's."""
PATIENCE = 0.5
"""Seconds that somebody who has pressed TAB waits for the relay."""

_PLAIN = re.compile(r"[\w./:@%+,=\[\]-]+")
_BASH = """\
# Completion for %(prog_name)s, by bash 4.4 or later.
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE=$COMP_LINE COMP_POINT=$COMP_POINT COMP_WORDBREAKS=$COMP_WORDBREAKS \
%(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(ShellComplete):
    """Completion that is told the line itself, and what bash takes for the ends of words."""

    name = "bash"
    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """
        @return: the words before the cursor, and what is there of the one at it.
        """
        said = os.environ
        line = said.get("COMP_LINE", said.get("COMP_WORDS", ""))
        with contextlib.suppress(KeyError, ValueError):
            # Bash counts bytes.
            line = os.fsdecode(os.fsencode(line)[: int(said["COMP_POINT"])])
        words = split_arg_string(line)
        if "COMP_LINE" not in said and said.get("COMP_CWORD", "").isdecimal():
            # As click's own script for bash asks: words, which bash has split at colons, too, and which of them the
            # cursor is at.
            number = int(said["COMP_CWORD"])
            return words[1:number], words[number] if number < len(words) else ""
        if not line or line[-1].isspace():
            words.append("")
        return words[1:-1], words[-1]

    def complete(self) -> str:
        """
        @return: a line for each completion. Bash puts it in the place of what comes behind the last break.
        """
        arguments, incomplete = self.get_completion_args()
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        word = incomplete
        if word.startswith("--") and "=" in word:  # click's completions are of what comes behind
            word = word.partition("=")[2]
        kept = max((word.rfind(mark) for mark in ":=@" if mark in breaks), default=-1) + 1
        lines = []
        for item in self.get_completions(arguments, incomplete):
            value = str(item.value)
            if item.type == "plain" and value.startswith(word):
                value = value[kept:]
            lines.append(self.format_completion(CompletionItem(value, item.type)))
        return "\n".join(lines)

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """
        @return: as the script reads it.
        """
        return f"{item.type},{item.value}"


def script(command: click.Command, shell: str) -> str:
    """
    @param shell: one of `SHELLS`.
    @return: what that shell is to read.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(command, {}, PROGRAM, VARIABLE).source()


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


Names = Callable[[Document], Iterable[tuple[str, str]]]
"""Makes names, each with what is told beside it, of what the API answers."""


def _asked(path: str, names: Names, otherwise: Names | None = None) -> Complete:
    """
    @param otherwise: other names, for where none of the first begins as it should.
    @return: what completes with them; where there is no relay, with none.
    """

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        there = ctx.params.get(param.name or "") or ()
        try:
            answer = ctx.ensure_object(Asking).api(PATIENCE).ask("GET", path)
            if answer.failure():
                return []
            for kind in (names, otherwise):
                found = [
                    CompletionItem(name, help=told or None)
                    for name, told in dict(kind(answer.document) if kind else ()).items()
                    if name.startswith(incomplete) and _fits(name, told) and name not in there
                ]
                if found:
                    return found
        except (Failure, click.ClickException, KeyError, TypeError, AttributeError):
            pass  # nobody who has pressed TAB wants to read of it
        return []

    return complete


def _fits(name: str, told: str) -> bool:
    """Whether a name means itself in every shell, and what is told beside it can stand in a line."""
    return bool(_PLAIN.fullmatch(name)) and told.isprintable()


def _targets(document: Document) -> Iterator[tuple[str, str]]:
    for pool in document["pools"]:
        for target in pool["targets"]:
            yield f"{pool['name']}/{target['name']}", ""


def _labels(document: Document) -> Iterator[tuple[str, str]]:
    for pool in document["pools"]:
        for target in pool["targets"]:
            yield target["name"], ""


def _listeners(document: Document) -> Iterator[tuple[str, str]]:
    for listener in document["listeners"]:
        yield listener["name"], ""


def _sessions(document: Document) -> Iterator[tuple[str, str]]:
    for session in document["sessions"]:
        yield session["session"], f"{session['client']} to {session['target'] or 'no target yet'}"


complete_target = _asked("/v1/pools", _targets, _labels)
"""`POOL/TARGET`, or the label alone."""
complete_label = _asked("/v1/pools", _labels)
"""A target's label alone."""
complete_listener = _asked("/v1/status", _listeners)
complete_session = _asked("/v1/sessions", _sessions)

"""
What a request is answered with, as values; and what stands in the head of every answer. Nobody here knows how
they are sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

import attrs
from attrs import field, frozen

from ..observe.snapshot import SessionsShown

JSON = "application/json"
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""Content-Security-Policy of what is no page."""
HEADERS: Mapping[str, str] = {
    "Server": "fwdrelay",
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""In the head of every answer, unless it says otherwise itself."""
BATCH = 250
"""Sessions that are made text at a time: a few milliseconds, in which no other is relayed."""


@frozen
class Answer:
    """
    @ivar body: all of it; or in pieces, which are taken as fast as they can be sent.
    @ivar content_type: empty where there is no body.
    @ivar headers: besides `HEADERS`, or in their place.
    """

    status: int
    body: bytes | Iterator[bytes]
    content_type: str = JSON
    headers: Mapping[str, str] = field(factory=dict)


class Refused(Exception):
    """
    A request that can't be answered as its sender wanted.

    @param sentence: why; it is the answer's `error`.
    @param headers: see `Answer`.
    @param errors: where several things are wrong, each of them.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[str] = (),
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}
        self.errors = errors

    @property
    def answer(self) -> Answer:
        """What its sender is told."""
        fields: dict[str, object] = {"error": str(self)}
        if self.errors:
            fields["errors"] = self.errors
        return Answer(self.status, encode(fields), headers=self.headers)


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(attribute.name for attribute in attrs.fields(kind))


def fields_of(value: Any) -> dict[str, Any]:
    """
    @param value: of an attrs class.
    @return: its attributes by name; what is in them stays as it is.
    """
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _names(kind)}


def json_text(value: object) -> str:
    """
    @param value: what JSON knows, and values of attrs classes, which are objects there.
    """
    return json.dumps(value, separators=(",", ":"), default=fields_of, allow_nan=False)


def encode(value: object) -> bytes:
    """
    @return: `json_text`, as a line.
    """
    return json_text(value).encode() + b"\n"


def shown(value: object, status: int = HTTPStatus.OK) -> Answer:
    """
    @return: the value, as JSON.
    """
    return Answer(status, encode(value))


def sessions_shown(sessions: SessionsShown) -> Answer:
    """
    @return: it as JSON, in pieces where there are many.
    """
    if len(sessions.sessions) <= BATCH:
        return shown(sessions)
    return Answer(HTTPStatus.OK, _in_pieces(sessions))


def _in_pieces(shown: SessionsShown) -> Iterator[bytes]:
    yield b'{"sessions":['
    for start in range(0, len(shown.sessions), BATCH):
        text = json_text(shown.sessions[start : start + BATCH])[1:-1].encode()
        yield b"," + text if start else text
    yield b'],"count":%d}\n' % shown.count


def head(answer: Answer) -> Iterator[tuple[str, str]]:
    """
    @return: names and values of its headers, the length's left out.
    """
    yield from {**HEADERS, **answer.headers}.items()
    if answer.content_type:
        yield "Content-Type", answer.content_type

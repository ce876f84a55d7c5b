"""
What the API answers, as the values that it was made of: those of `fwdrelay.observe.snapshot`.

A relay of a later version may say more than is known here, which is passed over; one that says less, or
something else, is told of as such.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar, get_origin

import cattrs
from attrs import frozen

from ..observe.snapshot import (
    PoolShown,
    SessionShown,
    SessionsShown,
    Status,
    TargetShown,
    WorkerShown,
)
from .api import Document, Event
from .exits import Strange

__all__ = [
    "Checked",
    "Draining",
    "PoolShown",
    "PoolsShown",
    "Reloaded",
    "Sample",
    "SessionShown",
    "SessionsShown",
    "Status",
    "Step",
    "TargetShown",
    "WorkerShown",
    "object_of",
    "sample_of",
    "value_of",
]

T = TypeVar("T")

_converter = cattrs.Converter(detailed_validation=False)


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


# What nobody looks into; and words, of which a later relay may have more.
_converter.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
_converter.register_structure_hook_func(_is_literal, lambda value, _: str(value))


@frozen
class PoolsShown:
    """What `GET /v1/pools` answers."""

    pools: tuple[PoolShown, ...]


@frozen
class Checked:
    """What `POST /v1/check` answers."""

    okay: bool
    changed: str
    errors: tuple[str, ...]


@frozen
class Reloaded:
    """What `POST /v1/reload` answers."""

    changed: str


@frozen
class Draining:
    """What `POST /v1/drain` answers."""

    state: str


@frozen
class Step:
    """One event of `GET /v1/trace`: `fwdrelay.observe.trace.TraceStep` with its time as text."""

    time: str
    session: str
    listener: str
    client: str
    at_ms: float
    step: str
    detail: str


@frozen
class Sample:
    """A relay at one moment: one `status` event."""

    status: Status
    pools: tuple[PoolShown, ...]


def value_of(document: object, kind: type[T]) -> T:
    """
    @param document: JSON.
    @raise Strange: it does not say what is to be there.
    """
    try:
        return _converter.structure(document, kind)
    except (cattrs.BaseValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Strange(
            f"the relay does not answer as this fwdrelayctl understands it; are their versions the same? ({what})"
        ) from None


def object_of(event: Event) -> Document:
    """
    @return: the JSON object that an event has for data.
    @raise Strange: it has something else.
    """
    try:
        document: Any = json.loads(event.data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Strange(f"the relay tells of a {event.name} that is no JSON object")
    return document


def sample_of(document: Document) -> Sample:
    """
    @param document: of a `status` event.
    """
    return Sample(value_of(document, Status), value_of(document, PoolsShown).pools)

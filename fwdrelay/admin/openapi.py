"""
The API's description for programs: OpenAPI 3.1, made of the calls (`api`) and of the very classes that they
answer with, so that it can't be another than theirs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

from .. import __version__
from ..observe.events import SessionEnded
from ..observe.feed import SessionOpened
from ..observe.snapshot import PoolShown, Status
from ..observe.trace import TraceStep
from .api import Parameter, Route, Wrong
from .guard import OPEN

_SIMPLE: Mapping[object, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
}
_MOMENT = {"type": "string", "format": "date-time"}
_NOT_TOLD = ("totals", "queued")
"""What an ended session has for HAProxy's format of the access log only."""


@frozen(kw_only=True)
class DroppedEvent:
    """@ivar events: that were not told, because what was told before them had not been read."""

    events: int


class Schemas:
    """
    JSON schemas of Python types.

    @ivar named: those of classes, by their names.
    """

    def __init__(self) -> None:
        self.named: dict[str, dict[str, Any]] = {}

    def of(self, kind: Any) -> dict[str, Any]:
        """
        @param kind: a type as attributes are annotated with.
        """
        if kind in _SIMPLE:
            return {"type": _SIMPLE[kind]}
        if attrs.has(kind):
            return self.of_class(kind)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            return {"type": "string", "enum": list(arguments)}
        if origin is tuple:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin in (Union, UnionType):
            made = [self.of(each) for each in arguments]
            if all(each.keys() == {"type"} for each in made):
                return {"type": [each["type"] for each in made]}
            return {"anyOf": made}
        if kind is object:
            return {}
        raise TypeError(f"there is no schema for {kind!r}")

    def of_class(
        self,
        kind: type[Any],
        name: str = "",
        instead: Mapping[str, object] | None = None,
        optional: Iterable[str] = (),
    ) -> dict[str, Any]:
        """
        @param name: empty: the class's.
        @param instead: schemas of attributes that are told otherwise than they are; None as one: that is not
            told.
        @param optional: attributes that are not always told.
        @return: a reference to its schema.
        """
        name = name or kind.__name__
        reference = {"$ref": f"#/components/schemas/{name}"}
        if name in self.named:
            return reference
        schema: dict[str, Any] = {"type": "object"}
        self.named[name] = schema
        first, told = _told(kind)
        if first:
            schema["description"] = first
        hints = get_type_hints(kind)
        properties = {each.name: self.of(hints[each.name]) for each in attrs.fields(kind)}
        for attribute, replaced in (instead or {}).items():
            properties.pop(attribute, None)
            if replaced is not None:
                properties[attribute] = dict(replaced)  # type: ignore[call-overload]
        for attribute, text in told.items():
            if attribute in properties:
                # Beside a reference it would be of no account to older tools.
                properties[attribute] = {**properties[attribute], "description": text}
        schema["required"] = sorted(properties.keys() - set(optional))
        schema["properties"] = properties
        return reference


def _told(kind: type[Any]) -> tuple[str, dict[str, str]]:
    """What a class's docstring says: before its fields, and of each attribute."""
    text = inspect.getdoc(kind) or ""
    first, *fields = re.split(r"^@ivar (\w+): ", text, flags=re.MULTILINE)
    return _line(first), {
        name: _line(said) for name, said in zip(fields[::2], fields[1::2], strict=True)
    }


def _line(text: str) -> str:
    return " ".join(text.split())


def describe(routes: Iterable[Route], *, token: bool = False) -> dict[str, Any]:
    """
    @param token: whether one has to be shown.
    @return: the OpenAPI document.
    """
    schemas = Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas, token)
    _events(schemas)
    components: dict[str, Any] = {"schemas": schemas.named}
    if token:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "basic": {
                "type": "http",
                "scheme": "basic",
                "description": "With the token as the password.",
            },
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fwdrelay",
            "summary": "What a relay does, live, and how it is steered.",
            "version": __version__,
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }


def _events(schemas: Schemas) -> None:
    schemas.of_class(
        Status,
        "StatusEvent",
        {
            "pools": {"type": "array", "items": schemas.of(PoolShown)},
            "events_skipped": {
                "type": "integer",
                "description": "Session events that were too many to be told, since the start.",
            },
        },
    )
    for kind, word in ((SessionOpened, "opened"), (SessionEnded, "ended")):
        schemas.of_class(
            kind,
            f"Session{word.capitalize()}Event",
            {
                "event": {"type": "string", "const": word},
                "time": _MOMENT,
                **(dict.fromkeys(_NOT_TOLD) if kind is SessionEnded else {}),
            },
            ("queue_ms", "sni", "alpn", "tls", "identity", "error"),
        )
    schemas.of_class(TraceStep, instead={"time": _MOMENT})
    schemas.of_class(DroppedEvent)


def _operation(route: Route, schemas: Schemas, token: bool) -> dict[str, Any]:
    token = token and route.path not in OPEN
    wrong = {"application/json": {"schema": schemas.of(Wrong)}}
    answers: dict[str, Any] = {}
    for status, told in route.answers.items():
        answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if isinstance(told, str):
            if told:
                answer["content"] = {told: {"schema": _plain(told)}}
        else:
            answer["content"] = {"application/json": {"schema": schemas.of(told)}}
        answers[str(status)] = answer
    for status in _errors(route, token):
        answers.setdefault(
            str(status), {"description": HTTPStatus(status).phrase, "content": wrong}
        )
    operation: dict[str, Any] = {
        "operationId": _identifier(route),
        "summary": route.text.partition("; ")[0].partition(": ")[0].rstrip("."),
        "description": route.text,
        "responses": answers,
    }
    parameters = [
        *(_parameter(name, "path", each) for name, each in route.names.items()),
        *(_parameter(name, "query", each) for name, each in (route.query or {}).items()),
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema: dict[str, Any] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {**each.schema, "description": each.text} for name, each in route.body.items()
            },
        }
        if route.needs_body:
            schema["minProperties"] = 1
        operation["requestBody"] = {
            "required": route.needs_body,
            "content": {"application/json": {"schema": schema}},
        }
    if token:
        operation["security"] = [{"bearer": []}, {"basic": []}]
    return operation


def _errors(route: Route, token: bool) -> list[int]:
    """What can be wrong with any request."""
    found = [400, 403, 405, 408, 413, 431, 500]
    if token:
        found.append(401)
    if route.body is not None:
        found.append(415)
    return sorted(found)


def _plain(content_type: str) -> dict[str, str]:
    return {"type": "object"} if content_type == "application/json" else {"type": "string"}


def _parameter(name: str, where: str, parameter: Parameter) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": parameter.text,
        "schema": dict(parameter.schema),
    }


def _identifier(route: Route) -> str:
    words = re.findall(r"[a-z0-9]+", re.sub(r"\{.*?\}|^/v1", "", route.path)) or ["dashboard"]
    return "_".join([route.method.lower(), *words])

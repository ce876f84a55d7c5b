"""
What a request says besides whom it is for: its query and its body. Text in, values out; what is wrong with them
is told by name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from ..config.check import did_you_mean
from .answer import JSON, Refused

LARGEST_BODY = 65536
_MOST = 50
"""Parameters that are looked at; there are never so many."""


def read_query(raw: str, known: Collection[str]) -> dict[str, str]:
    """
    @param raw: what stands behind the question mark.
    @raise Refused: for what is not `known`, or there twice.
    """
    values: dict[str, str] = {}
    for part in raw.split("&", _MOST):
        if not part:
            continue
        name, _, value = (_decoded(each.replace("+", " ")) for each in part.partition("="))
        if name not in known:
            raise bad(name, _unknown("parameter", name, known))
        if name in values:
            raise bad(name, "it is there twice: say it once")
        values[name] = value
    return values


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise bad(text, "it is not UTF-8") from None


_OF_THEIR_OWN_ACCORD: tuple[list[str], ...] = ([], ["application/x-www-form-urlencoded"])
"""What curl and Python's urllib say of any body that they are not told the type of."""


def read_body(
    raw: bytes, content_type: Sequence[str], known: Collection[str], *, by_form: bool = True
) -> Mapping[str, Any]:
    """
    @param raw: it may be empty, which is an empty object.
    @param content_type: the header's values.
    @param by_form: whether a form of another web page could send such a request, so that the type has to be one that no
        form has. Otherwise programs that say nothing of it, or what they always say, are understood, too.
    @raise Refused: it is no JSON object, or has a key that is not `known`.
    """
    if not raw:
        return {}
    kinds = [value.partition(";")[0].strip().lower() for value in content_type]
    if kinds != [JSON] and (by_form or kinds not in _OF_THEIR_OWN_ACCORD):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body is {', '.join(kinds) or 'of no type'}: send {JSON}",
        )
    try:
        body = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except RecursionError:
        raise bad("body", "it is too deep") from None
    except ValueError as error:  # those of decoding, too
        raise bad("body", f"it is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise bad("body", f"{_named(body)} is not an object: write {{…}}")
    for key in body:
        if key not in known:
            raise bad(key, _unknown("key", key, known))
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise bad(twice, "it is there twice: say it once")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def chosen(body: Mapping[str, Any], key: str, choices: Sequence[str]) -> Any:
    """
    @return: one of the choices; None: it isn't said.
    """
    value = body.get(key)
    if key not in body or value in choices:
        return value
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    raise bad(key, f"{_named(value)} is not one of {', '.join(choices)}{hint}")


def whole_number(body: Mapping[str, Any], key: str, lowest: int, highest: int) -> int | None:
    """
    @return: from `lowest` to `highest`; None: it isn't said.
    """
    if key not in body:
        return None
    value = body[key]
    # 1.0 is 1 in JSON, and JSON Schema has it so; true is not.
    is_whole = (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    )
    if not is_whole or not lowest <= value <= highest:
        raise bad(key, f"{_named(value)} is not a whole number from {lowest} to {highest}")
    return int(value)


def flag(body: Mapping[str, Any], key: str) -> bool:
    """
    @return: false where it isn't said.
    """
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise bad(key, f"{_named(value)} is not true or false")
    return value


def bad(where: str, problem: str) -> Refused:
    """
    @param where: the parameter, or the path in the body.
    """
    return Refused(HTTPStatus.BAD_REQUEST, f"{where[:100]}: {problem}")


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    if not known:
        return f"unknown {what}: there is none here"
    return f"unknown {what}" + (did_you_mean(name, known) or f": there is {', '.join(known)}")


def _named(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # it was read some calls nearer to the bottom of the stack
        return "what is there"
    return text if len(text) <= 100 else f"{text[:100]}…"

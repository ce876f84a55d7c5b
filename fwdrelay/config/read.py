"""
The configuration file: TOML, read into the frozen classes of `fwdrelay.config.model`, with all that is
wrong in it told at once.

tomllib makes tables of the text, cattrs makes values of the tables, by the types that the classes
state; where a type says too little, `HOOKS` says the rest. What cattrs finds wrong comes with the way
to it, which becomes a path as an operator would write it. What was found wrong is then left out, and
what is left is looked at as a whole (`fwdrelay.config.check`), so that a typing error does not hide that
a pool's name is wrong further down.
"""

from __future__ import annotations

import copy
import json
import os
import select
import stat
import tomllib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import eq
from typing import Any, Literal, cast, get_args, get_origin

import attrs
from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from ..errors import ConfigError, ConfigErrors
from .check import (
    Check,
    Finding,
    Place,
    did_you_mean,
    findings,
    place_text,
    printable,
    without_tls_at,
)
from .grammar import (
    LONGEST_KEEPALIVE,
    LONGEST_USER_TIMEOUT,
    MOST_WORKERS,
    SHORTEST_CHECK,
    parse_address,
    parse_admin,
    parse_balance,
    parse_discover,
    parse_duration,
    parse_endpoint,
    parse_escapes,
    parse_file,
    parse_log,
    parse_name,
    parse_nameserver,
    parse_network,
    parse_plugin,
    parse_rate,
    parse_regex,
    parse_request_host,
    parse_request_path,
    parse_target_or_srv,
)
from .model import (
    LOGS,
    Admit,
    Config,
    Count,
    DiscoverConfig,
    HealthConfig,
    IdentityPattern,
    ListenerConfig,
    ListenerTLSConfig,
    Network,
    PoolConfig,
    ProxyProtocolConfig,
    Rate,
    RelayConfig,
    RouteConfig,
    Seconds,
    SNIConfig,
    TargetConfig,
    Timeouts,
    UpstreamTLSConfig,
)
from .names import parse_alpn, parse_identity, parse_server_name, parse_upstream_name

Hook = Callable[[Any, Any], Any]

KEYS: Mapping[str, str] = {"listeners": "listener", "pools": "pool", "routes": "route"}
"""What the file calls attributes that have another name there."""
PATIENCE = 5.0
"""Seconds that a pipe is waited for."""
_NO_KEYS = ((Config, "demo"), (PoolConfig, "name"))
"""Attributes that come from elsewhere: the command line, the head of a table."""
_TABLES = (
    Config,
    RelayConfig,
    ListenerConfig,
    Timeouts,
    Admit,
    ListenerTLSConfig,
    SNIConfig,
    ProxyProtocolConfig,
    RouteConfig,
    PoolConfig,
    HealthConfig,
    UpstreamTLSConfig,
)


def read_config(
    path: str,
    overrides: Mapping[str, object] | None = None,
    called: str | None = None,
    more: Check | None = None,
) -> Config:
    """
    @param path: of the file.
    @param overrides: attributes of `RelayConfig`, which win over what the file says.
    @param called: what errors call the file; its path, unless given.
    @param more: what else may be wrong, as far as the configuration could be read.
    @return: what the file asks for. Relative paths in it are relative to its folder.
    @raise ConfigErrors: with all that is wrong.
    """
    called = path if called is None else called
    folder = os.path.dirname(os.path.abspath(path))
    return make_config(_tables(path, called), called, folder, overrides, more)


def make_config(
    tables: Mapping[str, Any],
    called: str,
    folder: str,
    overrides: Mapping[str, object] | None = None,
    more: Check | None = None,
) -> Config:
    """
    As `read_config`, from what TOML says.

    @param folder: what relative paths are relative to.
    @raise ConfigErrors: with all that is wrong, in the order in which it stands there.
    """
    whole = {"listener": [], "pool": {}, **tables}
    wrong: list[Finding] = []
    try:
        config = _converter.structure(whole, Config)
    except BaseValidationError as group:
        wrong.extend(_told(group, ()))
        config = _converter.structure(_without(whole, [each.place for each in wrong]), Config)
    values: dict[str, Any] = dict(overrides or {})
    config = attrs.evolve(config, relay=attrs.evolve(config.relay, **values))
    given = {("relay", attribute) for attribute in values}
    unread = [place for each in wrong for place in each.because if place not in given]
    of_the_file = list(wrong)
    wrong.extend(found for found in findings(config) if found.holds_without(unread))
    wrong.sort(key=lambda found: _position(tables, found.place))
    errors = [
        # What the command line says is not to be looked for in the file.
        ConfigError(_option(each.place), each.problem)
        if each.place in given and each not in of_the_file
        else ConfigError(f"{called}: {place_text(each.place)}", each.problem)
        for each in wrong
    ]
    config = _placed(config, folder, values)
    if more is not None:
        spoilt = [*unread, *(found.place for found in wrong)]
        errors.extend(
            ConfigError(f"{called}: {each.where}", each.problem)
            for each in more(without_tls_at(config, spoilt))
        )
    if errors:
        raise ConfigErrors(errors)
    return config


def table_keys(table: type) -> dict[str, attrs.Attribute[Any]]:
    """@return: the keys that a table of the file may have, with the attribute that each becomes."""
    return {
        KEYS.get(each.name, each.name): each
        for each in attrs.fields(table)
        if (table, each.name) not in _NO_KEYS
    }


# ---------------------------------------------------------------------------------- the file


def _tables(path: str, called: str) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=_open) as file:
            content = file.read().removeprefix(BOM_UTF8)  # with which some editors begin
    except OSError as failed:
        why = failed.strerror or str(failed)
        raise ConfigErrors([ConfigError(called, f"it cannot be read: {why}")]) from None
    try:
        text = content.decode()
    except UnicodeDecodeError as failed:
        line, column = _line_and_column(content[: failed.start].decode(), failed.start)
        why = f"it is not UTF-8: byte 0x{content[failed.start]:02x} at line {line}, column {column}"
        raise ConfigErrors([ConfigError(called, why)]) from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        why = "brackets in brackets, too deep"
    except ValueError as failed:  # a TOMLDecodeError; or a number with thousands of digits
        line, column = _line_and_column(text, len(text))
        why = str(failed).replace("at end of document", f"at line {line}, column {column}")
    raise ConfigErrors([ConfigError(called, f"it is not TOML: {why}")])


def _open(path: str, flags: int) -> int:
    """As `os.open`. A pipe that nobody writes into would hold up a relay for good, when it reloads."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    if pipe and not select.select([descriptor], [], [], PATIENCE)[0]:
        os.close(descriptor)
        raise OSError(f"it is a pipe, and nobody has written into it for {PATIENCE:g}s")
    os.set_blocking(descriptor, True)
    return descriptor


def _line_and_column(text: str, end: int) -> tuple[int, int]:
    before = text[:end]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _placed(config: Config, folder: str, overrides: Mapping[str, object]) -> Config:
    """A configuration without relative paths."""
    log = config.relay.access_log
    if log not in LOGS:
        log = os.path.join(folder, log)
    token_file = _file_placed(config.relay.admin_token_file, folder)
    relay: dict[str, Any] = {"access_log": log, "admin_token_file": token_file, **overrides}
    return attrs.evolve(
        config,
        relay=attrs.evolve(config.relay, **relay),
        listeners=tuple(
            attrs.evolve(listener, tls=listener.tls and _listener_tls_placed(listener.tls, folder))
            for listener in config.listeners
        ),
        pools=tuple(
            attrs.evolve(
                pool,
                discover=tuple(_discover_placed(each, folder) for each in pool.discover),
                tls=pool.tls and _upstream_tls_placed(pool.tls, folder),
            )
            for pool in config.pools
        ),
    )


def _listener_tls_placed(tls: ListenerTLSConfig, folder: str) -> ListenerTLSConfig:
    return attrs.evolve(
        tls,
        certificate=tuple(_file_placed(each, folder) for each in tls.certificate),
        key=tuple(_file_placed(each, folder) for each in tls.key),
        client_ca=_file_placed(tls.client_ca, folder),
        sni=tuple(
            attrs.evolve(
                other,
                certificate=tuple(_file_placed(each, folder) for each in other.certificate),
                key=tuple(_file_placed(each, folder) for each in other.key),
            )
            for other in tls.sni
        ),
    )


def _upstream_tls_placed(tls: UpstreamTLSConfig, folder: str) -> UpstreamTLSConfig:
    return attrs.evolve(
        tls,
        ca=_file_placed(tls.ca, folder),
        certificate=_file_placed(tls.certificate, folder),
        key=_file_placed(tls.key, folder),
    )


def _file_placed(path: str, folder: str) -> str:
    """@param path: empty: none."""
    return path and os.path.join(folder, path)


def _discover_placed(discover: DiscoverConfig, folder: str) -> DiscoverConfig:
    if discover.scheme != "file":
        return discover
    return attrs.evolve(discover, argument=os.path.join(folder, discover.argument))


# ------------------------------------------------------------------------- what was found wrong


def _told(wrong: BaseException, place: Place) -> Iterator[Finding]:
    """The leaves of what cattrs raised. What is not an operator's mistake is raised again."""
    if isinstance(wrong, BaseValidationError):
        for each in wrong.exceptions:
            yield from _told(each, (*place, *_steps(each)))
    elif isinstance(wrong, ForbiddenExtraKeysError):
        known = table_keys(wrong.cl)
        for key in wrong.extra_fields:
            hint = did_you_mean(key, known) or "."
            problem = f"there is no such key{hint} Known here: {', '.join(known)}"
            # Where it was meant for a key that is known, that one was not read either.
            meant = [known_key for known_key in known if f" {known_key}?" in hint]
            yield Finding(
                (*place, key), problem, ((*place, key), *((*place, each) for each in meant))
            )
    elif isinstance(wrong, KeyError):
        yield Finding(place, f"it is missing; write {_EXAMPLES.get(place[-1], 'one')}")
    elif isinstance(wrong, ValueError):
        yield Finding(place, printable(str(wrong)))
    else:
        raise wrong


_EXAMPLES: Mapping[str | int, str] = {
    "name": 'name = "web", for example',
    "listen": 'listen = ["tcp:5678"], for example',
    "pool": 'pool = "web", for example',
    "certificate": 'certificate = "web.pem", for example',
    "names": 'names = ["*.example.com"], for example',
}


def _steps(wrong: BaseException) -> Place:
    for note in getattr(wrong, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return (KEYS.get(note.name, note.name),)
        if isinstance(note, IterableValidationNote):
            return (note.index,)
    return ()


def _option(place: Place) -> str:
    """The option that has a place in `[relay]`."""
    return f"--{str(place[-1]).replace('_', '-')}"


def _without(tables: Mapping[str, Any], places: list[Place]) -> dict[str, Any]:
    """
    A copy of the tables in which nothing at these places is wrong any more: it is left out, and what
    must be there has a stand-in. What stands behind keeps its index, if it is a table.
    """
    left = dict(tables)
    for place in sorted(places, reverse=True):  # lists from their ends
        around: Any = left
        for step in place[:-1]:
            # Only what is on the way: what stands beside it may be deeper than can be copied.
            around[step] = copy.copy(around[step])
            around = around[step]
        last = place[-1]
        if isinstance(last, str):
            around.pop(last, None)
        elif place[-2] in ("listener", "route") or place[-3:-1] == ("tls", "sni"):
            around[last] = {}
        else:
            del around[last]
    left.setdefault("pool", {})
    left["listener"] = [
        {
            "name": f"unread-{index}",
            "listen": [],
            **listener,
            "route": [{"pool": "unread", **route} for route in listener.get("route", ())],
            **({"tls": _certain(listener["tls"])} if "tls" in listener else {}),
        }
        for index, listener in enumerate(left.get("listener", ()))
    ]
    return left


def _certain(tls: Mapping[str, Any]) -> dict[str, Any]:
    """The table `tls` of a listener, with stand-ins for what must be there."""
    certificate = {"certificate": "unread"}
    others = [{"names": ["unread"], **certificate, **other} for other in tls.get("sni", ())]
    return {**certificate, **tls, "sni": others}


def _position(tables: Any, place: Place) -> tuple[int, ...]:
    """Where a place is in the file, for sorting; what is not there is at the end of what is around it."""
    position: list[int] = []
    for step in place:
        if isinstance(step, int):
            position.append(step)
            tables = tables[step]
        else:
            keys = list(tables)
            position.append(keys.index(step) if step in tables else len(keys))
            tables = tables.get(step, {})
    return tuple(position)


# ----------------------------------------------------------------------- from tables to values


def shown(value: object) -> str:
    """@return: a value as an error shows it, as it may stand in a file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and abs(value) > 10**100:  # Python may refuse to write it
        return "a huge number"
    return repr(value) if isinstance(value, str) else str(value)


def _text(
    parse: Callable[[str], object] = str, what: str = "a string", *, or_empty: bool = False
) -> Hook:
    """
    A string, and what it is parsed to.

    @param what: is told to who has written something else than a string.
    @param or_empty: an empty one is as good as none, and not parsed.
    """

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not {what}")
        return value if or_empty and not value else parse(value)

    return structure


def _duration(longest: float | None = None, *, shortest: float = 0.0) -> Hook:
    """
    @param longest: seconds.
    @param shortest: seconds; what has one can't be off.
    """

    def parse(text: str) -> float:
        seconds = parse_duration(text) if longest is None else parse_duration(text, longest)
        if seconds < shortest:
            raise ValueError(f"{text!r} is too short: {shortest * 1000:g}ms is the least")
        return seconds

    return _text(parse, 'a duration: write a string such as "500ms", "30s", "5m", "1h" or "0"')


def _whole(lowest: int, highest: int = 10**12 - 1) -> Hook:
    """A whole number within bounds."""
    bounds = f"from {lowest} up" if highest == 10**12 - 1 else f"from {lowest} to {highest}"

    def structure(value: Any, _: Any) -> int:
        # To Python, a boolean is a number, too.
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise ValueError(f"{shown(value)} is not a whole number {bounds}")
        return value

    return structure


def _list(element: Hook, element_type: Any = None) -> Hook:
    """A list, each element of which is read by `element`."""

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if isinstance(value, dict):
            raise ValueError("a table is not a list: write its head in double brackets, [[...]]")
        if isinstance(value, str):
            quoted = json.dumps(value, ensure_ascii=False)
            raise ValueError(f"{shown(value)} is not a list: write [{quoted}]")
        if not isinstance(value, list):
            raise ValueError(f"{shown(value)} is not a list")
        return _each(enumerate(value), lambda _, each: element(each, element_type))

    return structure


def _each(
    items: Iterable[tuple[int | str, Any]], read: Callable[[Any, Any], Any]
) -> tuple[Any, ...]:
    """Read each item with its index or key; what is wrong with any of them is raised together."""
    values: list[Any] = []
    wrong: list[Exception] = []
    for index, item in items:
        try:
            values.append(read(index, item))
        except Exception as error:
            error.add_note(cast(str, IterableValidationNote(f"at {index}", index, None)))
            wrong.append(error)
    if wrong:
        raise IterableValidationError("in a list", wrong, tuple)
    return tuple(values)


def _choice(type_: Any) -> Hook:
    """One of a `Literal`'s strings."""
    choices = get_args(type_)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{shown(value)} is not one of {', '.join(choices)}")
        return value

    return structure


def _flag(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return value


def _list_or_one(parse: Callable[[str], object]) -> Hook:
    """A list of strings, or one of them; an empty one is as good as none."""

    def structure(value: Any, type_: Any) -> Any:
        if isinstance(value, str):
            return (parse(value),) if value else ()
        return _list(_text(parse))(value, type_)

    return structure


def _version(value: Any, type_: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(f'{value} is a number: write "{value}", in quotes')
    return _choice(type_)(value, type_)


def _escaped(text: str) -> str:
    parse_escapes(text)
    return text


HOOKS: Mapping[type, Mapping[str, Hook]] = {
    RelayConfig: {
        "workers": _whole(0, MOST_WORKERS),
        "admin": _text(parse_admin),
        "admin_token_file": _text(parse_file, or_empty=True),
        "access_log": _text(parse_log),
        "access_log_interval": _duration(),
        "keepalive": _duration(LONGEST_KEEPALIVE),
        "user_timeout": _duration(LONGEST_USER_TIMEOUT),
        "nameservers": _list(_text(parse_nameserver)),
    },
    ListenerConfig: {
        "name": _text(parse_name),
        "listen": _list(_text(parse_endpoint)),
        "pool": _text(parse_name, or_empty=True),
        "backlog": _whole(1, 2**31 - 1),
    },
    Admit: {"plugins": _list(_text(parse_plugin))},
    ListenerTLSConfig: {
        "certificate": _list_or_one(parse_file),
        "key": _list_or_one(parse_file),
        "client_ca": _text(parse_file, or_empty=True),
        "alpn": _list(_text(parse_alpn)),
        "minimum_version": _version,
    },
    SNIConfig: {
        "names": _list(_text(parse_server_name)),
        "certificate": _list_or_one(parse_file),
        "key": _list_or_one(parse_file),
    },
    RouteConfig: {
        "sni": _list(_text(parse_server_name)),
        "alpn": _list(_text(parse_alpn)),
        "pool": _text(parse_name),
    },
    PoolConfig: {
        "discover": _list_or_one(parse_discover),
        "balance": _text(parse_balance),
        "max_queued": _whole(1),
        "bind": _text(parse_address, or_empty=True),
    },
    HealthConfig: {
        "interval": _duration(shortest=SHORTEST_CHECK),
        "timeout": _duration(shortest=SHORTEST_CHECK),
        "rise": _whole(1),
        "fall": _whole(1),
        "path": _text(parse_request_path),
        "host": _text(parse_request_host, or_empty=True),
        "send": _text(_escaped),
        "expect": _text(parse_regex),
    },
    UpstreamTLSConfig: {
        "name": _text(parse_upstream_name, or_empty=True),
        "ca": _text(parse_file, or_empty=True),
        "certificate": _text(parse_file, or_empty=True),
        "key": _text(parse_file, or_empty=True),
        "alpn": _list(_text(parse_alpn)),
    },
}
"""How attributes are read of which the type does not say enough."""


def _table(table: type, converter: Converter) -> Hook:
    """A table of the file."""
    hooks = HOOKS.get(table, {})
    overrides: dict[str, Any] = {
        each.name: override(
            rename=KEYS.get(each.name),
            struct_hook=hooks.get(each.name),
            omit=(table, each.name) == (Config, "demo"),
        )
        for each in attrs.fields(table)
    }
    read: Hook = make_dict_structure_fn(table, converter, **overrides)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{shown(value)} is not a table")
        return read(value, table)

    return structure


def _pools(value: Any, _: Any) -> tuple[PoolConfig, ...]:
    """The tables by their names."""
    if not isinstance(value, dict):
        raise ValueError("it is not a table of pools: write the head of each as [pool.NAME]")
    return _each(value.items(), _pool)


def _pool(name: str, table: Any) -> PoolConfig:
    wrong: list[Exception] = []
    try:
        parse_name(name)
    except ValueError as error:
        wrong.append(error)
    if isinstance(table, dict):
        if "name" in table:  # which is the table's head
            wrong.append(ForbiddenExtraKeysError(None, PoolConfig, {"name"}))
        table = {**table, "name": name}
    try:
        pool: PoolConfig = _converter.structure(table, PoolConfig)
    except ClassValidationError as group:
        raise ClassValidationError(group.message, [*wrong, *group.exceptions], PoolConfig) from None
    except ValueError as error:
        raise ClassValidationError("no pool", [*wrong, error], PoolConfig) from None
    if wrong:
        raise ClassValidationError("no pool", wrong, PoolConfig)
    # `srv:` may be written where targets are.
    mixed: tuple[TargetConfig | DiscoverConfig, ...] = pool.targets
    return attrs.evolve(
        pool,
        targets=tuple(each for each in mixed if isinstance(each, TargetConfig)),
        discover=(
            *(each for each in mixed if isinstance(each, DiscoverConfig)),
            *pool.discover,
        ),
    )


def _is_tuple(type_: Any) -> bool:
    return get_origin(type_) is tuple


def _tuple(type_: Any, converter: Converter) -> Hook:
    return _list(converter.structure, get_args(type_)[0])


def _is_choice(type_: Any) -> bool:
    return get_origin(type_) is Literal


def _make_converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook_factory(lambda type_: type_ in _TABLES, _table)
    converter.register_structure_hook_factory(_is_tuple, _tuple)
    converter.register_structure_hook_factory(_is_choice, _choice)
    for type_, hook in (
        (tuple[PoolConfig, ...], _pools),
        (TargetConfig, _text(parse_target_or_srv)),
        (Network, _text(parse_network)),
        (IdentityPattern, _text(parse_identity)),
        (Rate, _text(parse_rate, 'a rate: write a string such as "100/s", "10/m", "5/h" or "0"')),
        (Seconds, _duration()),
        (Count, _whole(0)),
    ):
        converter.register_structure_hook_func(partial(eq, type_), hook)
    # Of these cattrs has hooks of its own, which would make of any value what they can.
    converter.register_structure_hook(str, _text())
    converter.register_structure_hook(bool, _flag)
    return converter


_converter = _make_converter()

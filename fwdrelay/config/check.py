"""
What no single value of a configuration can tell: whether its parts fit each other.

Pure; for files and command lines alike. Whether a value is right by itself is told where it is read
(`fwdrelay.config.read`), whether a plugin exists by whoever loads them.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

from attrs import field, frozen

from ..errors import ConfigError
from .grammar import Endpoint
from .model import Config, ListenerConfig, PoolConfig, TargetConfig

Place: TypeAlias = tuple[str | int, ...]
"""Where something stands in a configuration file: `("listener", 0, "timeouts", "idle")`."""

_COUNTLESS = ("dns", "srv")
"""Discoveries that find no limits of sessions."""


def place_text(place: Place) -> str:
    """A place as errors name it: `listener[0].timeouts.idle`, `pool.web.targets[1]`."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", step)
            key = step if bare else printable(json.dumps(step, ensure_ascii=False))
            text += f".{key}" if text else key
    return text


def printable(text: str) -> str:
    """@return: the text, with TOML's escapes for what could do something to a terminal, or break a line."""
    return "".join(
        char
        if char.isprintable()
        else f"\\u{ord(char):04x}"
        if ord(char) < 0x10000
        else f"\\U{ord(char):08x}"
        for char in text
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """@return: a question, with a blank before it; empty where nothing known is like `word`."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


@frozen
class Finding:
    """
    One thing that is wrong.

    @ivar place: where it is told.
    @ivar because: all places that it was concluded from; where one of them could not be read, it may
        not be so.
    """

    place: Place
    problem: str
    because: tuple[Place, ...] = field()

    @because.default
    def _(self) -> tuple[Place, ...]:
        return (self.place,)

    def holds_without(self, unread: Collection[Place]) -> bool:
        """Whether it is so whatever stands at the places `unread`."""
        return not any(_meet(ours, theirs) for ours in self.because for theirs in unread)


def _meet(one: Place, other: Place) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def problems(config: Config) -> list[ConfigError]:
    """
    @return: all that is wrong with how the parts of a configuration fit.
    """
    return [ConfigError(place_text(found.place), found.problem) for found in findings(config)]


def findings(config: Config) -> Iterator[Finding]:
    """What is wrong, each with the places that it was concluded from."""
    if not config.listeners:
        yield Finding(("listener",), "there is none: say where to listen, in a [[listener]]")
    yield from _listeners(config)
    for index, listener in enumerate(config.listeners):
        yield from _listener(("listener", index), listener, [pool.name for pool in config.pools])
    for pool in config.pools:
        yield from _pool(pool, config.demo)
    if not config.demo:
        yield from _circles(config)


def _listeners(config: Config) -> Iterator[Finding]:
    names: dict[str, int] = {}
    taken: list[tuple[Endpoint, str, Place]] = []
    for index, listener in enumerate(config.listeners):
        name, listen = ("listener", index, "name"), ("listener", index, "listen")
        first = names.setdefault(listener.name, index)
        if first != index:
            yield Finding(
                name,
                f"listener[{first}] is called {listener.name!r}, too: give each a name of its own",
                (name, ("listener", first, "name")),
            )
        for description in listener.listen:
            endpoint = Endpoint.of(description)
            for other, its_description, its_place in taken:
                if _overlap(endpoint, other):
                    where = "here" if its_place == listen else f"at {place_text(its_place)}"
                    yield Finding(
                        listen,
                        f"{description!r} cannot be bound beside {its_description!r} {where}",
                        (),
                    )
                    break
            taken.append((endpoint, description, listen))


def _listener(place: Place, listener: ListenerConfig, pools: Sequence[str]) -> Iterator[Finding]:
    if not listener.listen:
        yield Finding(
            (*place, "listen"), 'it is empty: name an endpoint, as in listen = ["tcp:5678"]'
        )
    if not listener.pool and not listener.routes:
        yield Finding(
            place,
            "its sessions would go nowhere: give it a pool, or a [[listener.route]]",
            ((*place, "pool"), (*place, "route")),
        )
    if listener.pool:
        yield from _pool_named((*place, "pool"), listener.pool, pools)
    for index, route in enumerate(listener.routes):
        here = (*place, "route", index)
        if not route.client:
            yield Finding(
                here,
                "it has no condition, so it would take everybody: give it client = [...], or make its pool "
                "the listener's own",
            )
        yield from _pool_named((*here, "pool"), route.pool, pools)


def _pool_named(place: Place, name: str, pools: Sequence[str]) -> Iterator[Finding]:
    if name not in pools:
        known = f"; there is {', '.join(pools)}" if pools else ", nor any other"
        problem = f"there is no pool {name!r}{did_you_mean(name, pools) or known}"
        yield Finding(place, problem, (place, ("pool", name)))


def _pool(pool: PoolConfig, demo: bool) -> Iterator[Finding]:
    place: Place = ("pool", pool.name)
    targets, discover = (*place, "targets"), (*place, "discover")
    if not pool.targets and not pool.discover and not demo:
        yield Finding(
            place,
            'it has no targets: name one, as in targets = ["localhost:80"], or where to discover them',
            (targets, discover),
        )
    labels = Counter(target.label for target in pool.targets)
    for label, count in labels.items():
        if count > 1:
            yield Finding(targets, f"{label!r} is there twice: give one a ,name=LABEL", ())
    for target in pool.targets:
        if pool.bind and _other_family(target.host, pool.bind):
            yield Finding(
                targets,
                f"{target.address!r} can't be dialed from {pool.bind}, which `bind` says",
                (targets, (*place, "bind")),
            )
    found = [str(each) for each in pool.discover]
    for text in dict.fromkeys(found):
        if found.count(text) > 1:
            yield Finding(place, f"{text!r} is there twice", ())
    limited = (
        pool.max_sessions
        or any(target.max_sessions for target in pool.targets)
        or any(each.max_sessions or each.scheme not in _COUNTLESS for each in pool.discover)
    )
    if pool.queue and not limited:
        yield Finding(
            (*place, "queue"),
            "nobody would ever wait: give the pool max_sessions, or its targets ,max-sessions=N",
            ((*place, "queue"), (*place, "max_sessions"), targets, discover),
        )
    health = pool.health
    for key, needs, default in (
        ("send", "tcp", ""),
        ("expect", "tcp", ""),
        ("path", "http", "/"),
        ("host", "http", ""),
    ):
        given = getattr(health, key)
        if given != default and health.check != needs:
            here = (*place, "health", key)
            yield Finding(
                here,
                f'{given!r} goes with check = "{needs}" only, and check is "{health.check}"',
                (here, (*place, "health", "check")),
            )


def _other_family(host: str, bind: str) -> bool:
    """Whether a host is an address, and not of the family of `bind`."""
    try:
        return ipaddress.ip_address(host).version != ipaddress.ip_address(bind).version
    except ValueError:
        return False


# ----------------------------------------------------------------------------------- circles


def _circles(config: Config) -> Iterator[Finding]:
    """
    Targets by which a session would come back to the listener that it came from, again and again.

    Names are not looked up, and which addresses this machine has is not known here: what is found are
    the addresses that listeners are bound to, `localhost` and loopback addresses, and Unix paths.
    """
    pools = {pool.name: pool for pool in config.pools}
    bound = [
        (listener.name, Endpoint.of(description))
        for listener in config.listeners
        for description in listener.listen
    ]
    leads_to: dict[str, set[str]] = {}
    edges: list[tuple[str, PoolConfig, TargetConfig, str]] = []
    for listener in config.listeners:
        names = dict.fromkeys([listener.pool, *(route.pool for route in listener.routes)])
        for pool in (pools[name] for name in names if name in pools):
            for target in pool.targets:
                for reached in dict.fromkeys(name for name, at in bound if _reaches(target, at)):
                    edges.append((listener.name, pool, target, reached))
                    leads_to.setdefault(listener.name, set()).add(reached)
    told: set[tuple[str, str]] = set()
    for start, pool, target, reached in edges:
        if start in _reachable(reached, leads_to) and (pool.name, target.label) not in told:
            told.add((pool.name, target.label))
            yield Finding(
                ("pool", pool.name, "targets"),
                f"{target.address!r} is listener {reached!r} of this relay, whose sessions come here again: "
                "they would go round in a circle",
                (),
            )


def _reachable(start: str, leads_to: dict[str, set[str]]) -> set[str]:
    """All that can be come to from `start`, itself included."""
    seen = {start}
    ahead = [start]
    while ahead:
        for each in leads_to.get(ahead.pop(), ()):
            if each not in seen:
                seen.add(each)
                ahead.append(each)
    return seen


def _reaches(target: TargetConfig, endpoint: Endpoint) -> bool:
    """Whether who connects to the target comes to the endpoint."""
    if target.path or endpoint.kind not in ("tcp", "tcp6"):
        return endpoint.kind == "unix" and target.path == endpoint.name
    if target.port != endpoint.port:
        return False
    if target.host.rstrip(".").lower() == endpoint.host.rstrip(".").lower():
        return True
    listening = _addresses(endpoint.host)
    return any(
        each == address or (each.is_loopback and _takes(address, each))
        for each in map(_connected, _addresses(target.host))
        for address in listening
    )


def _overlap(one: Endpoint, other: Endpoint) -> bool:
    """Whether two endpoints can't be bound side by side."""
    if not {one.kind, other.kind} <= {"tcp", "tcp6"}:
        return one == other
    if one.port != other.port or not one.port:
        return False
    return one.host == other.host or any(
        a == b or _takes(a, b) or _takes(b, a)
        for a in _addresses(one.host)
        for b in _addresses(other.host)
    )


_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def _takes(bound: _Address, address: _Address) -> bool:
    """Whether a socket on a wildcard takes what comes to an address; that of IPv6 takes IPv4, too."""
    return bound.is_unspecified and (bound.version == 6 or address.version == 4)


def _connected(address: _Address) -> _Address:
    """To connect to a wildcard is to connect to oneself."""
    if address.is_unspecified:
        return ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
    return address


def _addresses(host: str) -> list[_Address]:
    """The addresses that a host is known to have without looking it up."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return [mapped or address]

"""
What no single value of a configuration can tell: whether its parts fit each other.

Pure; for files and command lines alike. Whether a value is right by itself is told where it is read
(`fwdrelay.config.read`), whether a plugin exists by whoever loads them, whether a certificate is good by
whoever reads its file.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeAlias

from attrs import evolve, field, frozen

from ..errors import ConfigError
from .grammar import Endpoint, is_loopback
from .model import (
    Config,
    ListenerConfig,
    ListenerTLSConfig,
    PoolConfig,
    RelayConfig,
    RouteConfig,
    TargetConfig,
    UpstreamTLSConfig,
)

Place: TypeAlias = tuple[str | int, ...]
"""Where something stands in a configuration file: `("listener", 0, "timeouts", "idle")`."""

Check: TypeAlias = Callable[[Config], Iterable[ConfigError]]
"""What finds more that is wrong with a configuration."""

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


def problems(config: Config, more: Check | None = None) -> list[ConfigError]:
    """
    @param more: what else may be wrong.
    @return: all that is wrong with how the parts of a configuration fit, and then what else.
    """
    found = list(findings(config))
    errors = [ConfigError(place_text(each.place), each.problem) for each in found]
    if more is not None:
        errors.extend(more(without_tls_at(config, (each.place for each in found))))
    return errors


def without_tls_at(config: Config, places: Iterable[Place]) -> Config:
    """
    @param places: where something is wrong.
    @return: a configuration without the `tls` that has one of these places: its files are not worth a look, as
        they would be found wanting for what was not written.
    """
    tables = {place[:3] for place in places}
    return evolve(
        config,
        listeners=tuple(
            evolve(listener, tls=None) if ("listener", index, "tls") in tables else listener
            for index, listener in enumerate(config.listeners)
        ),
        pools=tuple(
            evolve(pool, tls=None) if ("pool", pool.name, "tls") in tables else pool
            for pool in config.pools
        ),
    )


def findings(config: Config) -> Iterator[Finding]:
    """What is wrong, each with the places that it was concluded from."""
    if not config.listeners:
        yield Finding(("listener",), "there is none: say where to listen, in a [[listener]]")
    yield from _relay(config.relay)
    yield from _listeners(config)
    for index, listener in enumerate(config.listeners):
        yield from _listener(("listener", index), listener, [pool.name for pool in config.pools])
    for pool in config.pools:
        yield from _pool(pool, config.demo)
    if not config.demo:
        yield from _circles(config)


def _relay(relay: RelayConfig) -> Iterator[Finding]:
    if relay.survive_crashes:
        yield from _survival(relay)
    admin, token_file = ("relay", "admin"), ("relay", "admin_token_file")
    if not is_loopback(relay.admin) and not relay.admin_token_file:
        yield Finding(
            admin,
            f"{relay.admin} can be reached from other machines: say admin_token_file, too, or take 127.0.0.1",
            (admin, token_file),
        )
    if relay.admin_token_file and relay.admin == "off":
        yield Finding(token_file, "it goes with admin, which is off", (admin, token_file))


def _survival(relay: RelayConfig) -> Iterator[Finding]:
    place, workers, pump = (("relay", key) for key in ("survive_crashes", "workers", "pump"))
    if not relay.workers:
        yield Finding(
            place,
            "it needs workers, and there are none: have one of them at least",
            (place, workers),
        )
    if relay.pump == "buffered":
        yield Finding(
            place,
            "it needs a pump that leaves all bytes to the kernel, and pump is buffered: take splice, or auto",
            (place, pump),
        )


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
    proxied = listener.proxy_protocol
    if proxied.trusted and proxied.accept == "off":
        here = (*place, "proxy_protocol")
        yield Finding(
            (*here, "trusted"),
            'no header is read that could be believed: give it accept = "required", or "optional"',
            ((*here, "trusted"), (*here, "accept")),
        )
    if listener.tls is not None:
        yield from _listener_tls((*place, "tls"), listener.tls)
    for index, route in enumerate(listener.routes):
        here = (*place, "route", index)
        if not (route.sni or route.alpn or route.client):
            yield Finding(
                here,
                "it has no condition, so it would take everybody: give it sni, alpn or client = [...], or "
                "make its pool the listener's own",
            )
        yield from _route_alpn(place, index, route, listener.tls)
        yield from _pool_named((*here, "pool"), route.pool, pools)


def _route_alpn(
    place: Place, index: int, route: RouteConfig, tls: ListenerTLSConfig | None
) -> Iterator[Finding]:
    """@param tls: that of the listener, which decides what can be agreed on."""
    if tls is None or not route.alpn or set(route.alpn) & set(tls.alpn):
        return
    here, agreed = (*place, "route", index, "alpn"), (*place, "tls", "alpn")
    which = f"only {', '.join(tls.alpn)}" if tls.alpn else "nothing"
    yield Finding(
        here,
        f"nobody would ever come here: {which} can be agreed on with clients; see {place_text(agreed)}",
        (here, agreed),
    )


def _listener_tls(place: Place, tls: ListenerTLSConfig) -> Iterator[Finding]:
    yield from _certificates(place, tls.certificate, tls.key)
    if tls.allow_identities and not tls.client_ca:
        here = (*place, "allow_identities")
        yield Finding(
            here,
            "without client_ca, clients are not asked who they are: say whose word is taken for it",
            (here, (*place, "client_ca")),
        )
    seen: dict[str, Place] = {}
    for index, other in enumerate(tls.sni):
        names = (*place, "sni", index, "names")
        if not other.names:
            yield Finding(names, 'it is empty: write ["*.example.com"], for example')
        for name in other.names:
            before = seen.setdefault(name, names)
            if before != names:
                yield Finding(
                    names,
                    f"{name!r} has its certificate at {place_text(before)} already: leave one out",
                    (names, before),
                )
        for name, count in Counter(other.names).items():
            if count > 1:
                yield Finding(names, f"{name!r} is there twice", ())
        yield from _certificates((*place, "sni", index), other.certificate, other.key)


def _certificates(
    place: Place, certificate: Sequence[str], key: Sequence[str]
) -> Iterator[Finding]:
    if not certificate:
        yield Finding((*place, "certificate"), 'it is empty: write "web.pem", for example')
    elif key and len(key) != len(certificate):
        here = (*place, "key")
        yield Finding(
            here,
            f"their number is {len(key)}, that of certificates {len(certificate)}: give each certificate "
            "its key, in the same order; or none, where each stands in its certificate's file",
            (here, (*place, "certificate")),
        )


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
    if pool.tls is not None:
        yield from _upstream_tls(place, pool.tls, pool.targets)
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


def _upstream_tls(
    place: Place, tls: UpstreamTLSConfig, targets: Sequence[TargetConfig]
) -> Iterator[Finding]:
    """@param place: of the pool."""
    key, certificate = (*place, "tls", "key"), (*place, "tls", "certificate")
    if tls.key and not tls.certificate:
        yield Finding(key, "it goes with a certificate: say which", (key, certificate))
    nameless = next((target.address for target in targets if target.path), "")
    if nameless and tls.verify and not tls.name:
        name = (*place, "tls", "name")
        yield Finding(
            name,
            f"{nameless!r} is no name that a certificate could be for: say which name to expect there",
            (name, (*place, "tls", "verify"), (*place, "targets")),
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

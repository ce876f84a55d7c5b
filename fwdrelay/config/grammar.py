"""
The small languages of options: durations, rates, targets, networks, endpoints and so on.

Text in, value out. Each function raises `ValueError` with a message that says what was found and
what would be accepted; whoever calls knows where the text stood.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import warnings

from attrs import frozen

from .model import BALANCES, DiscoverConfig, Network, Rate, TargetConfig

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_RATE = re.compile(r"([0-9]{1,9})/(s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_HOST = re.compile(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*\.?")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_PLUGIN = re.compile(r"([A-Za-z0-9_-]+)(?::(.*))?", re.DOTALL)
_SERVICE = re.compile(r"_[A-Za-z0-9-]{1,62}\._[A-Za-z0-9-]{1,62}\.(.+)", re.DOTALL)
_CONTROL = re.compile(r"[\0-\x1f\x7f]")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|([rnt\\])|)")
_ESCAPED = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
TARGET_GRAMMAR = "HOST:PORT, [IPV6]:PORT or unix:PATH, then optional ,key=value parts"
_TARGET_KEYS = "weight=N, max-sessions=N, name=LABEL and the flag backup"
_DISCOVER_KEYS = "max-sessions=N and the flag backup"
_ENDPOINTS = ("tcp", "tcp6", "unix", "systemd")
_ENDPOINT_GRAMMAR = {
    "tcp": "PORT, then optional :interface=ADDRESS (with \\: for each colon in it) and :backlog=N",
    "unix": "PATH, then optional :mode=660 and :backlog=N",
}
_ENDPOINT_GRAMMAR["tcp6"] = _ENDPOINT_GRAMMAR["tcp"]
OWN_DISCOVERIES = ("dns", "srv", "file")
"""The schemes of `discover` that need no plugin."""
SHORTEST_CHECK = 0.01
"""Seconds: what comes more often than that is no check but a load."""
MOST_WORKERS = 64
LONGEST_KEEPALIVE = 32767.0
LONGEST_USER_TIMEOUT = 2147483.0
"""What tcp(7) takes: seconds in 15 bits, milliseconds in 31."""


def parse_duration(text: str, longest: float = 10 * 365 * 86400) -> float:
    """
    @param longest: seconds.
    @return: seconds.
    """
    if text.strip() == "0":
        return 0.0
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write 500ms, 30s, 5m, 1h, or 0 for off")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > longest:
        raise ValueError(f"{text!r} is too long: {longest:.10g}s is the most")
    return seconds


def parse_count(text: str) -> int:
    """
    @return: a whole number from 0 up.
    """
    if not re.fullmatch(r"[0-9]{1,12}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def parse_workers(text: str) -> int:
    """
    @return: a number of processes that relay; 0: none but the one that there is anyhow.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or int(text) > MOST_WORKERS:
        raise ValueError(f"{text!r} is not a whole number from 0 to {MOST_WORKERS}")
    return int(text)


def parse_rate(text: str) -> Rate:
    """
    @return: so many in a second, a minute or an hour: `100/s`, `10/m`, `5/h`; `0` is off.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None and text.strip() != "0":
        raise ValueError(f"{text!r} is not a rate: write 100/s, 10/m, 5/h, or 0 for off")
    if match is None or not int(match[1]):
        return Rate()
    return Rate(int(match[1]), _SECONDS[match[2]])


def parse_port(text: str, lowest: int = 1) -> int:
    """
    @return: a TCP port.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not lowest <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port: write a number from {lowest} to 65535")
    return int(text)


def parse_network(text: str) -> Network:
    """
    @return: the network of a CIDR, or of one address alone.
    """
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a network: write 10.0.0.0/8, 2001:db8::/32 or one address"
        ) from None


def parse_target(text: str) -> TargetConfig:
    """
    @return: the target that a specification describes: `localhost:80`, `[::1]:80,weight=2`,
        `unix:/run/app.sock,backup`.
    """
    address, *options = text.split(",")
    host, port, path = _parse_target_address(address.strip(), text)
    values: dict[str, int | str | bool] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if key in values:
            raise ValueError(f"{text!r} says {key} twice")
        try:
            if key == "backup" and not equals:
                values[key] = True
            elif key == "weight" and equals:
                values[key] = _parse_weight(value)
            elif key == "max-sessions" and equals:
                values[key] = parse_count(value)
            elif key == "name" and value:
                values[key] = _parse_label(value)
            else:
                raise ValueError(f"it takes {_TARGET_KEYS}")
        except ValueError as error:
            raise ValueError(f"{option.strip()!r} in {text!r}: {error}") from None
    return TargetConfig(
        host=host,
        port=port,
        path=path,
        **{key.replace("-", "_"): value for key, value in values.items()},  # type: ignore[arg-type]
    )


def _parse_weight(text: str) -> int:
    try:
        weight = parse_count(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number from 1 up") from None
    if not weight:
        raise ValueError("weight=0 would give it no session: leave the target out")
    return weight


def _parse_label(text: str) -> str:
    # It stands between blanks in a line of the log.
    if not text.isprintable() or re.search(r"\s", text):
        raise ValueError("a name has neither blanks nor control characters")
    return text


def parse_target_or_srv(text: str) -> TargetConfig | DiscoverConfig:
    """
    @return: what `parse_target` returns; or, for `srv:…`, where targets are to be found.
    """
    return parse_discover(text) if text.strip().startswith("srv:") else parse_target(text)


def _parse_target_address(address: str, text: str) -> tuple[str, int, str]:
    """
    @return: host, port and Unix path; the path is empty for TCP, host and port are for Unix.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path or len(os.fsencode(path)) > 107:
            raise ValueError(f"{text!r}: a Unix path has 1 to 107 bytes")
        if _CONTROL.search(path):
            raise ValueError(f"{text!r}: a Unix path has no control characters")
        return "", 0, path
    if address.startswith("srv:"):
        raise ValueError(f"{text!r} is no single target: SRV records are for a pool to discover")
    scheme, _, rest = address.partition(":")
    if scheme in OWN_DISCOVERIES and not rest.isdecimal():
        raise ValueError(
            f"{text!r} is no single target: it goes into `discover` of a pool, in a configuration file"
        )
    host, colon, port_text = address.rpartition(":")
    if not colon or not host or address.endswith("]") or "/" in address:
        raise ValueError(f"{text!r} is not a target: write {TARGET_GRAMMAR}")
    try:
        port = parse_port(port_text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if host.startswith("[") and host.endswith("]"):
        try:
            return _canonical(host[1:-1]), port, ""
        except ValueError:
            raise ValueError(f"{text!r}: {host} is not an IPv6 address") from None
    # Not at the top, nor are endpoints: fwdrelayctl reads addresses, too, and should not wait for Twisted.
    from twisted.internet.abstract import isIPv6Address

    if isIPv6Address(host):
        raise ValueError(f"{text!r} is ambiguous: write an IPv6 address as [{host}]:{port_text}")
    if ":" in host:
        raise ValueError(f"{text!r} is not a target: write {TARGET_GRAMMAR}")
    _check_host(host, text)
    return host, port, ""


def _canonical(address: str) -> str:
    """
    @return: an IPv6 address in the one way to write it (RFC 5952), as relays that hash labels have to
        agree on them, whatever their Python makes of it.
    """
    parsed = ipaddress.IPv6Address(address)
    zone = f"%{parsed.scope_id}" if parsed.scope_id else ""
    return socket.inet_ntop(socket.AF_INET6, parsed.packed) + zone


def _check_host(host: str, text: str) -> None:
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"{text!r}: {host} is not an IPv4 address") from None
    elif len(host) > 253 or not _HOST.fullmatch(host) or not _has_ascii_form(host):
        raise ValueError(f"{text!r}: {host!r} is not a host name")


def _has_ascii_form(host: str) -> bool:
    """Whether the system can look it up; its resolver would tell nobody that it can't."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def parse_discover(text: str) -> DiscoverConfig:
    """
    @return: where targets are found: `dns:HOST:PORT`, `srv:_service._proto.domain`, `file:PATH`, or what a
        plugin is to be told, `NAME:ARGUMENT`; each may end in `,backup` and `,max-sessions=N`.
    """
    head, *options = text.split(",")
    values: dict[str, int | bool] = {}
    # From the end, as the argument of a plugin may have commas of its own.
    while options:
        key, equals, value = (part.strip() for part in options[-1].partition("="))
        if key in values:
            raise ValueError(f"{text!r} says {key} twice")
        if key == "backup" and not equals:
            values[key] = True
        elif key == "max-sessions" and equals:
            try:
                values[key] = parse_count(value)
            except ValueError as error:
                raise ValueError(f"{options[-1].strip()!r} in {text!r}: {error}") from None
        else:
            break
        options.pop()
    scheme, _, argument = ",".join([head, *options]).strip().partition(":")
    if not argument or not _PLUGIN.fullmatch(scheme):
        raise ValueError(
            f"{text!r} is not a discovery: write dns:HOST:PORT, srv:_service._proto.domain, file:PATH or "
            "a plugin's NAME:ARGUMENT"
        )
    if scheme in OWN_DISCOVERIES and options:
        raise ValueError(f"{options[-1].strip()!r} in {text!r}: it takes {_DISCOVER_KEYS}")
    if scheme == "dns":
        _check_dns(argument, text)
    elif scheme == "srv":
        _check_srv(argument, text)
    elif scheme == "file" and "\0" in argument:
        raise ValueError(f"{text!r}: a path has no NUL")
    return DiscoverConfig(
        scheme=scheme,
        argument=argument,
        backup="backup" in values,
        max_sessions=values.get("max-sessions", 0),
    )


def _check_dns(argument: str, text: str) -> None:
    host, _, port = argument.rpartition(":")
    if not host:
        raise ValueError(f"{text!r}: write dns:HOST:PORT")
    try:
        parse_port(port)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if re.fullmatch(r"[0-9.]+|.*:.*", host):
        raise ValueError(f"{text!r}: {host} is no name to look up; an address is one of `targets`")
    _check_host(host, text)


def _check_srv(argument: str, text: str) -> None:
    match = _SERVICE.fullmatch(argument)
    if match is None:
        raise ValueError(
            f"{text!r}: write srv:_service._proto.domain, for example srv:_http._tcp.example.com"
        )
    _check_host(match[1], text)


def parse_nameserver(text: str) -> str:
    """
    @param text: `ADDR:PORT`, `[IPV6]:PORT`, or an address alone, for port 53.
    @return: `ADDR:PORT` or `[IPV6]:PORT`.
    """
    given = text.strip()
    try:
        host, port = str(ipaddress.ip_address(given.strip("[]"))), 53
    except ValueError:
        address, _, port_text = given.rpartition(":")
        try:
            port = parse_port(port_text)
            if address.startswith("[") and address.endswith("]"):
                host = str(ipaddress.IPv6Address(address[1:-1]))
            else:
                host = str(ipaddress.IPv4Address(address))
        except ValueError:
            raise ValueError(
                f"{text!r} is not a name server: write ADDR:PORT, [IPV6]:PORT, or ADDR alone for port 53"
            ) from None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_balance(text: str) -> str:
    """
    @return: one of `BALANCES`, or a plugin's `NAME` or `NAME:ARGUMENT`, whether there is such a plugin or not.
    """
    match = _PLUGIN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not one of {', '.join(BALANCES)}, nor a plugin's NAME or NAME:ARGUMENT"
        )
    if match[1] in BALANCES and match[2] is not None:
        raise ValueError(f"{text!r}: {match[1]} takes nothing behind it")
    return text


def parse_plugin(text: str) -> str:
    """
    @return: a plugin's `NAME` or `NAME:ARGUMENT`, whether there is such a plugin or not.
    """
    if not _PLUGIN.fullmatch(text):
        raise ValueError(f"{text!r} is not a plugin: write NAME or NAME:ARGUMENT")
    return text


def parse_name(text: str) -> str:
    """
    @return: the name of a listener or a pool.
    """
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name: it is made of letters, digits, '.', '_' and '-'")
    return text


def parse_address(text: str) -> str:
    """
    @return: an IP address.
    """
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def parse_request_path(text: str) -> str:
    """
    @return: what an HTTP request may ask for.
    """
    if not re.fullmatch(r"/[!-~]*", text):
        raise ValueError(
            f"{text!r} is not a path: it begins with /, and has neither blanks nor what is not ASCII"
        )
    return text


def parse_request_host(text: str) -> str:
    """
    @return: what an HTTP request may have in `Host:`; RFC 9110, section 7.2.
    """
    if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?", text, re.ASCII):
        raise ValueError(
            f"{text!r} is not a host: write a name or an address, and :PORT if need be"
        )
    return text


def parse_regex(text: str) -> str:
    """
    @return: a regular expression for bytes, as Python's `re` takes it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what may get another meaning one day
            re.compile(text.encode())
    except (re.error, OverflowError, RecursionError) as wrong:
        raise ValueError(f"{text!r} is not a regular expression: {wrong}") from None
    return text


def parse_escapes(text: str) -> bytes:
    r"""
    @return: the bytes that a text with the escapes `\r`, `\n`, `\t`, `\\` and `\xHH` stands for; what is not
        ASCII is UTF-8.
    """
    parts: list[bytes] = []
    end = 0
    for match in _ESCAPE.finditer(text):
        parts.append(text[end : match.start()].encode())
        end = match.end()
        if match[1]:
            parts.append(bytes.fromhex(match[1]))
        elif match[2]:
            parts.append(_ESCAPED[match[2]])
        else:
            found = text[match.start() : match.start() + 2]
            raise ValueError(
                f"{text!r}: {found} is not an escape; there are \\r, \\n, \\t, \\xHH, and \\\\ for a backslash"
            )
    return b"".join([*parts, text[end:].encode()])


def parse_log(text: str) -> str:
    """
    @return: where an access log goes.
    """
    if not text or "\0" in text:
        raise ValueError(
            f"{text!r} is not where a log can go: write off, stdout, journald or the path of a file"
        )
    return text


def parse_admin(text: str) -> str:
    """
    @param text: `off`, `unix:PATH`, `ADDR:PORT`, `[IPV6]:PORT` or `localhost:PORT`, which is 127.0.0.1.
    @return: the same, `unix:` with an absolute path.
    """
    given = text.strip()
    if given == "off":
        return given
    wrong = (
        f"{text!r} is not where it can be served: write ADDR:PORT, [IPV6]:PORT, unix:PATH or off"
    )
    if given.startswith("unix:"):
        path = given.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(wrong)
        return f"unix:{os.path.abspath(path)}"
    address, _, port_text = given.rpartition(":")
    if address == "localhost":
        address = "127.0.0.1"
    try:
        port = parse_port(port_text, lowest=0)
        bracketed = address.startswith("[") and address.endswith("]")
        host = ipaddress.ip_address(address[1:-1] if bracketed else address)
        if bracketed != (host.version == 6):
            raise ValueError
    except ValueError:
        raise ValueError(wrong) from None
    return f"[{host}]:{port}" if bracketed else f"{host}:{port}"


def split_admin(admin: str) -> tuple[str, int]:
    """
    @param admin: `ADDR:PORT` or `[IPV6]:PORT`, of `parse_admin`.
    @return: address and port.
    """
    host, _, port = admin.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(admin: str) -> bool:
    """
    @param admin: of `parse_admin`.
    @return: whether only this machine can reach it.
    """
    return not _is_tcp(admin) or ipaddress.ip_address(split_admin(admin)[0]).is_loopback


def _is_tcp(admin: str) -> bool:
    return admin != "off" and not admin.startswith("unix:")


def parse_file(text: str) -> str:
    """
    @return: the path of a file, whether there is one or not.
    """
    if not text:
        raise ValueError("it is empty: write the path of a file")
    if "\0" in text:
        raise ValueError(f"{text!r}: a path has no NUL")
    return text


def parse_endpoint(text: str) -> str:
    """
    @return: the description of a Twisted server endpoint, of one of the kinds that a relay can listen on.
    """
    kind = text.partition(":")[0]
    if kind not in _ENDPOINTS or kind == text:
        kinds = ", ".join(f"{name}:" for name in _ENDPOINTS)
        raise ValueError(f"{text!r} is not an endpoint: it begins with one of {kinds}")
    if kind == "systemd":  # what that takes depends on the environment
        return text
    from twisted.internet.endpoints import (
        serverFromString,
    )  # who asks for less need not wait for it

    try:
        serverFromString(None, text)
    except (TypeError, ValueError, RuntimeError):  # the last for a backslash at the end
        raise ValueError(
            f"{text!r} is not a {kind}: endpoint: write {kind}:{_ENDPOINT_GRAMMAR[kind]}"
        ) from None
    endpoint = Endpoint.of(text)
    if kind == "unix" and not endpoint.name:
        raise ValueError(f"{text!r} names no path")
    if len(os.fsencode(endpoint.name)) > 107 or _CONTROL.search(endpoint.name):
        raise ValueError(f"{text!r}: a Unix path has 1 to 107 bytes and no control characters")
    if not 0 <= endpoint.port <= 65535:
        raise ValueError(f"{text!r}: {endpoint.port} is not a port: write a number from 0 to 65535")
    return text


@frozen
class Endpoint:
    """
    What a description that `parse_endpoint` has accepted says: where it listens.

    @ivar kind: `tcp`, `tcp6`, `unix` or `systemd`.
    @ivar port: for the TCP ones.
    @ivar host: for the TCP ones: the address of the interface; a wildcard where it names none.
    @ivar name: the path of `unix`; what stands behind `systemd:`.
    """

    kind: str
    port: int = 0
    host: str = ""
    name: str = ""

    @classmethod
    def of(cls, description: str) -> Endpoint:
        """Take a description apart."""
        kind, _, rest = description.partition(":")
        if kind == "systemd":
            return cls(kind, name=rest)
        # Colons separate, except behind a backslash, which takes the meaning from any one character.
        parts = re.findall(r"(?:^|:)((?:\\.|[^:\\])*)", rest, re.DOTALL)
        positional: list[str] = []
        named: dict[str, str] = {}
        for part in parts:
            key, equals, value = re.match(r"((?:\\.|[^=\\])*)(=?)(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
            if equals:
                named[_plain(key)] = _plain(value)
            else:
                positional.append(_plain(key))
        if kind == "unix":
            return cls(kind, name=named["address"] if "address" in named else positional[0])
        port = named.get("port") or positional[0]
        place = ("port", "interface") if kind == "tcp" else ("port", "backlog", "interface")
        given = {**dict(zip(place, positional, strict=False)), **named}.get("interface")
        # To Twisted, an empty one is every IPv4 address, whatever the kind.
        if given is None and kind == "tcp6":
            given = "::"
        return cls(kind, port=int(port), host=given or "0.0.0.0")


def _plain(escaped: str) -> str:
    return re.sub(r"\\(.)", r"\1", escaped, flags=re.DOTALL)

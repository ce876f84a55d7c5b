"""
The small languages of options: durations, counts, targets, networks.

Text in, value out. Each function raises `ValueError` with a message that says what was found and
what would be accepted; whoever calls knows where the text stood.
"""

from __future__ import annotations

import ipaddress
import os
import re

from .model import Network, TargetConfig

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_HOST = re.compile(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*\.?")
TARGET_GRAMMAR = "HOST:PORT, [IPV6]:PORT or unix:PATH, then optional ,key=value parts"
_TARGET_KEYS = "weight=N, max-sessions=N, name=LABEL and the flag backup"


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
        raise ValueError(f"{text!r} is too long: {longest:g}s is the most")
    return seconds


def parse_count(text: str) -> int:
    """
    @return: a whole number from 0 up.
    """
    if not re.fullmatch(r"[0-9]{1,12}", text.strip()):
        raise ValueError(f"{text!r} is not a whole number from 0 up")
    return int(text)


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
            elif key in ("weight", "max-sessions") and equals:
                values[key] = parse_count(value)
            elif key == "name" and value:
                values[key] = value
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


def _parse_target_address(address: str, text: str) -> tuple[str, int, str]:
    """
    @return: host, port and Unix path; the path is empty for TCP, host and port are for Unix.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path or len(os.fsencode(path)) > 107:
            raise ValueError(f"{text!r}: a Unix path has 1 to 107 bytes")
        return "", 0, path
    if address.startswith("srv:"):
        raise ValueError(f"{text!r}: SRV discovery is not in this version; name HOST:PORT")
    host, colon, port_text = address.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text!r} is not a target: write {TARGET_GRAMMAR}")
    try:
        port = parse_port(port_text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"{text!r}: {host} is not an IPv6 address") from None
        return host[1:-1], port, ""
    if ":" in host:
        raise ValueError(f"{text!r} is ambiguous: write an IPv6 address as [{host}]:{port_text}")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"{text!r}: {host} is not an IPv4 address") from None
    elif len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError(f"{text!r}: {host!r} is not a host name")
    return host, port, ""

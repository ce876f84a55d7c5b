"""
The names that TLS knows: of servers, of protocols, of who a certificate is for.

As `fwdrelay.config.grammar`: text in, value out, and `ValueError` with a sentence for the rest. Whether a
certificate has such a name is not looked at here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import cast

from .check import did_you_mean
from .model import IdentityKind, IdentityPattern

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_STARRED_LABEL = r"(?!-)[a-z0-9_*-]{1,63}(?<!-)"
_STARRED = re.compile(rf"{_STARRED_LABEL}(\.{_STARRED_LABEL})*")
_LONGEST_NAME = 253
_PORT = re.compile(r"(.*):[0-9]+")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_IDENTITY_KNOWN = "cn:NAME, ou:NAME, dns:PATTERN, uri:PATTERN, ip:ADDRESS"


def parse_server_name(text: str) -> str:
    """
    @return: a server name as a ClientHello has it (RFC 6066, section 3): lower case, A-labels, no dot behind
        it. `*.` in front stands for one label.
    """
    name = text.strip()
    star, rest = ("*.", name[2:]) if name.startswith("*.") else ("", name)
    if "*" in rest:
        raise ValueError(
            f"{text!r} is not a server name: a * stands for one whole label, the first one, as in *.example.com"
        )
    if _is_address(rest):
        raise ValueError(
            f"{text!r} is an address, which no client sends as a server name: write a name"
        )
    return star + _plain_name(rest, text)


def parse_upstream_name(text: str) -> str:
    """
    @return: a name that a target's certificate is to be for, as `parse_server_name` returns it, but without
        a `*`; or an IP address.
    """
    name = text.strip()
    if "*" in name:
        raise ValueError(
            f"{text!r} is not a name to verify: a * stands in certificates only; write what it is to cover"
        )
    if _is_address(name):
        return _parse_certificate_address(_bare(name))
    return _plain_name(name, text)


def parse_alpn(text: str) -> str:
    """
    @return: the name of a protocol (RFC 7301, section 3.1), such as `h2`.
    """
    if not re.fullmatch(r"[!-~]{1,255}", text):
        raise ValueError(
            f"{text!r} is not a protocol's name: write h2 or http/1.1, for example; 1 to 255 bytes of ASCII, "
            "no blanks"
        )
    return text


def parse_identity(text: str) -> IdentityPattern:
    """
    @return: whom a certificate may be for: `cn:web-1`, `dns:*.example.com`, `uri:spiffe://example.org/*`.
    """
    kind, colon, value = text.strip().partition(":")
    if not colon:
        raise ValueError(f"{text!r} is not an identity: write one of {_IDENTITY_KNOWN}")
    parse = _PARSE_IDENTITY.get(kind)
    if parse is None:
        hint = did_you_mean(kind.lower(), _PARSE_IDENTITY) or "."
        raise ValueError(
            f"{text!r}: {kind!r} is no kind of identity{hint} Known are {_IDENTITY_KNOWN}"
        )
    try:
        return IdentityPattern(cast(IdentityKind, kind), parse(value))
    except ValueError as wrong:
        raise ValueError(f"{text!r}: {wrong}") from None


def _parse_subject(name: str) -> str:
    """Of a certificate's subject; it is compared as it is."""
    if not name.strip() or not name.isprintable():
        raise ValueError("there is no name behind the colon")
    if "*" in name:
        raise ValueError(
            "a * stands for itself in a subject's name; patterns are for dns: and uri:"
        )
    return name


def _parse_dns_pattern(name: str) -> str:
    if _is_address(name):
        raise ValueError(f"{name!r} is an address: write ip:{name}")
    return _plain_name(name, name, _STARRED)


def _parse_uri_pattern(uri: str) -> str:
    if not _URI.fullmatch(uri):
        raise ValueError(
            f"{uri!r} is not a URI: write all of it, scheme and all, as in uri:spiffe://example.org/web"
        )
    return uri


def _parse_certificate_address(text: str) -> str:
    """An IP address as it can stand in a certificate."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        network = "; networks are for admit.allow and routes" if "/" in text else ""
        raise ValueError(f"{text!r} is not an IP address{network}") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text!r}: certificates know no zones: leave out %{address.scope_id}")
    return str(address)


_PARSE_IDENTITY: Mapping[str, Callable[[str], str]] = {
    "cn": _parse_subject,
    "ou": _parse_subject,
    "dns": _parse_dns_pattern,
    "uri": _parse_uri_pattern,
    "ip": _parse_certificate_address,
}


def _bare(address: str) -> str:
    """An address without the brackets that one of IPv6 may have."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(_bare(text))
    except ValueError:
        # What ends in a number is an IPv4 address, or a mistake (WHATWG URL, section 3.5).
        return bool(re.fullmatch(r"[0-9.]*\.[0-9]+", text))
    return True


def _plain_name(name: str, text: str, grammar: re.Pattern[str] = _NAME) -> str:
    """@param text: as it was written, for errors."""
    problem = f"{text!r} is not a server name"
    port = _PORT.fullmatch(name)
    if port is not None:
        raise ValueError(f"{problem}: it has no port; write {port[1]}")
    if "/" in name:
        raise ValueError(f"{problem}: write the host alone, as in www.example.com")
    if not name.isascii():
        name = _ascii_name(name, problem)
    name = name.lower().removesuffix(".")
    if len(name) > _LONGEST_NAME or not grammar.fullmatch(name):
        raise ValueError(f"{problem}: write a host's name, such as www.example.com")
    return name


def _ascii_name(name: str, problem: str) -> str:
    """A name in which each label that is not ASCII has become its A-label (RFC 5890, UTS #46)."""
    import idna  # with its tables, which few configurations need

    try:
        labels = idna.uts46_remap(name, std3_rules=False).split(".")
        return ".".join(
            label if label.isascii() else idna.alabel(label).decode() for label in labels
        )
    except idna.IDNAError as wrong:
        raise ValueError(f"{problem}: {wrong}") from None

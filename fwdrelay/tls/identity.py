"""
Whom a client's certificate is for, and whether that is one of those who may enter.

A `*` stands for one or more characters. In `dns` it ends at a dot; in `uri` at a slash, and within the
authority (what stands between `://` and the next slash) at a dot, too. So `spiffe://example.org/*` is for
`spiffe://example.org/web` and not for `spiffe://example.org/ns/web`: each segment has to be written. Names
of the subject (`cn`, `ou`) are compared as they are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.x509.oid import NameOID

from ..config import IdentityPattern
from ..config.model import IdentityKind
from .peer import alternative_names, printable

MOST = 100
"""Names of a certificate that are looked at."""
LONGEST = 2048
"""Characters of one."""
_FIRST: Sequence[IdentityKind] = ("uri", "dns", "cn")
"""What a client is called by where everybody may enter: the first that its certificate has."""


def values(certificate: x509.Certificate, kind: IdentityKind) -> Iterator[str]:
    """
    @return: its names of one kind.
    @raise ValueError: they are not as they should be.
    """
    if kind == "cn" or kind == "ou":
        oid = NameOID.COMMON_NAME if kind == "cn" else NameOID.ORGANIZATIONAL_UNIT_NAME
        for attribute in certificate.subject.get_attributes_for_oid(oid):
            if isinstance(attribute.value, str):
                yield attribute.value
        return
    others = alternative_names(certificate)
    if others is None:
        return
    if kind == "dns":
        yield from others.get_values_for_type(x509.DNSName)
    elif kind == "uri":
        yield from others.get_values_for_type(x509.UniformResourceIdentifier)
    else:
        yield from map(str, others.get_values_for_type(x509.IPAddress))


def find(certificate: x509.Certificate, allowed: Sequence[IdentityPattern]) -> str | None:
    """
    @param allowed: those who may enter; empty: everybody.
    @return: what the client is called: the first of its names that is allowed, as `dns:a.example`; empty: it
        has no name, and needs none; None: it is not allowed.
    @raise ValueError: the certificate's names are not as they should be.
    """
    if not allowed:
        for kind in _FIRST:
            for value in values(certificate, kind):
                return printable(f"{kind}:{value}")
        return ""
    for pattern in allowed:
        for number, value in enumerate(values(certificate, pattern.kind)):
            if number < MOST and len(value) <= LONGEST and matches(pattern, value):
                return printable(f"{pattern.kind}:{value}")
    return None


def matches(pattern: IdentityPattern, value: str) -> bool:
    """
    @param value: of a certificate.
    """
    wanted = pattern.value
    if pattern.kind == "dns":
        # A wildcard in a certificate is not the name of any one client.
        return "*" not in value and _segments_match(
            wanted.lower().split("."), value.lower().removesuffix(".").split(".")
        )
    if pattern.kind == "uri":
        return _segments_match(_uri_segments(wanted), _uri_segments(value))
    if pattern.kind == "ip":
        try:
            return ipaddress.ip_address(wanted) == ipaddress.ip_address(value)
        except ValueError:  # a network, which is no client's address
            return False
    return wanted == value


def _uri_segments(uri: str) -> list[str]:
    """The scheme, the labels of the authority, and the segments of the path, told apart by what begins them."""
    head, slashes, rest = uri.partition("://")
    if not slashes:
        return uri.split("/")
    authority, *path = rest.split("/")
    labels = (f".{label}" for label in authority.split("."))
    return [head + slashes, *labels, *(f"/{segment}" for segment in path)]


def _segments_match(patterns: Sequence[str], segments: Sequence[str]) -> bool:
    return len(patterns) == len(segments) and all(map(_matches, patterns, segments))


def _matches(pattern: str, text: str) -> bool:
    """
    Whether a text is as a pattern with any number of `*` has it. No regular expression: those may take
    long over what a stranger's certificate says.
    """
    first, *others = pattern.split("*")
    if not others:
        return pattern == text
    if not text.startswith(first):
        return False
    here = len(first)
    *middle, last = others
    for piece in middle:
        here = text.find(piece, here + 1)  # what the star stands for has one character, at least
        if here < 0:
            return False
        here += len(piece)
    return text.endswith(last) and len(text) - len(last) > here

"""
HAProxy's PROXY protocol: a header that tells a server on whose behalf a connection was opened.

The sending half of both versions. Sections are those of HAProxy's `doc/proxy-protocol.txt`.
"""

from __future__ import annotations

import os
import struct
from ipaddress import IPv4Address as IPv4
from ipaddress import IPv6Address as IPv6
from ipaddress import ip_address
from typing import Literal, TypeAlias

from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

Version: TypeAlias = Literal["v1", "v2"]
Address: TypeAlias = IPv4Address | IPv6Address | UNIXAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LONGEST_V1 = 107
"""Bytes of a version 1 header, its end included; section 2.1."""

_LOCAL, _PROXY = 0x20, 0x21  # version 2 in the high half, the command in the low one
_UNSPEC, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_UNIX_LENGTH = 108


@frozen
class ProxyHeader:
    """
    What a header says.

    @ivar source: where the connection comes from, and `destination` where it was meant to go. None:
        nothing is told of that, and the receiver takes the addresses of the connection it sees.
    @ivar local: the sender has opened the connection for itself, and relays nobody's.
    """

    source: Address | None = None
    destination: Address | None = None
    local: bool = False

    def encode(self, version: Version) -> bytes:
        """
        @return: the header as it goes first on a connection, to be written at once.
        """
        return self._encode_v1() if version == "v1" else self._encode_v2()

    def _encode_v1(self) -> bytes:
        """Section 2.1. Unix sockets have no name in it, so they are "UNKNOWN"."""
        pair = self._internet_pair()
        if pair is None:
            return b"PROXY UNKNOWN\r\n"
        source, destination, *ports = pair
        family = "TCP4" if isinstance(source, IPv4) else "TCP6"
        words = ("PROXY", family, _text(source), _text(destination), *map(str, ports))
        return " ".join(words).encode("ascii") + b"\r\n"

    def _encode_v2(self) -> bytes:
        """Section 2.2. With LOCAL no address should be told, so its length is 0."""
        if self.local:
            return _frame(_LOCAL, _UNSPEC, b"")
        pair = self._internet_pair()
        if pair is not None:
            source, destination, *ports = pair
            kind = _TCP4 if isinstance(source, IPv4) else _TCP6
            told = source.packed + destination.packed + struct.pack("!HH", *ports)
            return _frame(_PROXY, kind, told)
        if isinstance(self.source, UNIXAddress) and isinstance(self.destination, UNIXAddress):
            told = _unix_name(self.source) + _unix_name(self.destination)
            return _frame(_PROXY, _UNIX_STREAM, told)
        return _frame(_PROXY, _UNSPEC, b"")

    def _internet_pair(self) -> tuple[IPv4 | IPv6, IPv4 | IPv6, int, int] | None:
        """
        @return: both addresses in one family, as both versions want it, and both ports; None where
            one of them is not an IP address. IPv4 is told as such, though a socket on `::` writes it
            `::ffff:192.0.2.1`; beside an IPv6 address it can only be told that way (RFC 4291, section
            2.5.5.2), which is what HAProxy does, too.
        """
        if not isinstance(self.source, (IPv4Address, IPv6Address)) or not isinstance(
            self.destination, (IPv4Address, IPv6Address)
        ):
            return None
        source, destination = _parse(self.source.host), _parse(self.destination.host)
        if source.version != destination.version:
            source, destination = _as_ipv6(source), _as_ipv6(destination)
        return source, destination, self.source.port, self.destination.port


def header(version: Version, source: Address, destination: Address) -> bytes:
    """
    @param source: where the client connects from: its transport's `getPeer`.
    @param destination: where it connected to: its transport's `getHost`.
    @return: what goes first on the connection that is opened for that client.
    """
    return ProxyHeader(source, destination).encode(version)


def local_header(
    version: Version, source: Address | None = None, destination: Address | None = None
) -> bytes:
    """
    What goes first on a connection of our own, such as a health check's.

    @param source: our end of that connection, and `destination` the server's. Version 1 knows no
        LOCAL; section 2.1 recommends to tell these there, as some receivers reject "UNKNOWN", which is
        what it comes to without them.
    """
    return ProxyHeader(source, destination, local=True).encode(version)


def _frame(command: int, kind: int, told: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(told)) + told


def _parse(host: str) -> IPv4 | IPv6:
    """
    @param host: an address as Twisted writes it; an IPv6 zone (`%eth0`) means nothing to others.
    """
    address = ip_address(host.partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6) else address


def _as_ipv6(address: IPv4 | IPv6) -> IPv6:
    return address if isinstance(address, IPv6) else IPv6(b"\0" * 10 + b"\xff\xff" + address.packed)


def _text(address: IPv4 | IPv6) -> str:
    """
    @return: its canonical form. Section 2.1 wants IPv6 as groups of hexadecimal digits; newer Pythons
        write the last two groups of a mapped address as an IPv4 address.
    """
    if isinstance(address, IPv6) and address.ipv4_mapped is not None:
        high, low = struct.unpack("!HH", address.packed[-4:])
        return f"::ffff:{high:x}:{low:x}"
    return str(address)


def _unix_name(address: UNIXAddress) -> bytes:
    """
    @return: as it stands in a `sockaddr_un`; a socket without a name has none there either.
    """
    return os.fsencode(address.name or b"").ljust(_UNIX_LENGTH, b"\0")[:_UNIX_LENGTH]

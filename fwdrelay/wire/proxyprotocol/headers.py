"""
The header as a value, and how it is sent, in both versions.
"""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct
from typing import Literal, TypeAlias

from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from .tlvs import SSL, TLV, Kind, SSLKind, checksum_at, encode, fitting, seal, text, value_of

Version: TypeAlias = Literal["v1", "v2"]
Address: TypeAlias = IPv4Address | IPv6Address | UNIXAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LONGEST_SENT = 4096
"""Bytes of a header that is sent: receivers want it in one piece, and many have little room for it."""

LOCAL, PROXY = 0x20, 0x21  # version 2 in the high half, the command in the low one
UNSPEC, TCP4, TCP6, UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
HEAD_LENGTH = 16
UNIX_LENGTH = 108

_head = Struct("!12sBBH").pack
_ports = Struct("!HH").pack
_MAPPED = b"\0" * 10 + b"\xff\xff"


@frozen
class ProxyHeader:
    """
    What a header says.

    @ivar source: where the connection comes from, and `destination` where it was meant to go. None:
        nothing is told of that, and the receiver takes the addresses of the connection it sees.
    @ivar local: the sender has opened the connection for itself, and relays nobody's.
    @ivar tlvs: what it says besides, in its order; version 1 has none of it.
    """

    source: Address | None = None
    destination: Address | None = None
    local: bool = False
    tlvs: tuple[TLV, ...] = ()

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on in TLS, a character a byte."""
        value = value_of(self.tlvs, Kind.ALPN)
        return None if value is None else value.decode("latin-1")

    @property
    def authority(self) -> str | None:
        """The name of the host that the client asked for, as it wrote it; nobody has checked it."""
        return text(value_of(self.tlvs, Kind.AUTHORITY))

    @property
    def unique_id(self) -> bytes | None:
        """What the sender calls this connection."""
        return value_of(self.tlvs, Kind.UNIQUE_ID)

    @property
    def netns(self) -> str | None:
        """The name of the network namespace that the addresses are of."""
        return text(value_of(self.tlvs, Kind.NETNS))

    @property
    def ssl(self) -> SSL | None:
        """
        How the client speaks TLS. Of a header that was read it is well-formed.

        @raise BadHeader: of another it is not.
        """
        value = value_of(self.tlvs, Kind.SSL)
        return None if value is None else SSL.decode(value)

    def encode(self, version: Version) -> bytes:
        """
        @return: the header as it goes first on a connection, to be written at once. Where all TLVs would
            make it longer than `LONGEST_SENT`, those are left out that don't fit in after the ones before
            them; the addresses and the checksum, which is made anew, always do.
        """
        return self._encode_v1() if version == "v1" else self._encode_v2()

    def _encode_v1(self) -> bytes:
        """Section 2.1. Unix sockets have no name in it, so they are "UNKNOWN"."""
        pair = self._internet_pair()
        if pair is None:
            return b"PROXY UNKNOWN\r\n"
        source, destination, *ports = pair
        words = (
            "PROXY TCP4" if len(source) == 4 else "PROXY TCP6",
            _text(source),
            _text(destination),
            *map(str, ports),
        )
        return " ".join(words).encode("ascii") + b"\r\n"

    def _encode_v2(self) -> bytes:
        """Section 2.2. With LOCAL no address should be told, so its length is 0."""
        if self.local:
            return _head(SIGNATURE, LOCAL, UNSPEC, 0)
        pair = self._internet_pair()
        if pair is not None:
            source, destination, *ports = pair
            kind = TCP4 if len(source) == 4 else TCP6
            told = source + destination + _ports(*ports)
        elif isinstance(self.source, UNIXAddress) and isinstance(self.destination, UNIXAddress):
            kind = UNIX_STREAM
            told = _unix_name(self.source) + _unix_name(self.destination)
        else:
            kind, told = UNSPEC, b""
        if not self.tlvs:
            return _head(SIGNATURE, PROXY, kind, len(told)) + told
        sent = fitting(self.tlvs, LONGEST_SENT - HEAD_LENGTH - len(told))
        place = checksum_at(sent, HEAD_LENGTH + len(told))
        told += b"".join(map(encode, sent))
        whole = _head(SIGNATURE, PROXY, kind, len(told)) + told
        return whole if place is None else seal(whole, place)

    def _internet_pair(self) -> tuple[bytes, bytes, int, int] | None:
        """
        @return: both addresses in one family, packed, as both versions want it, and both ports; None where
            one of them is not an IP address. IPv4 is told as such, though a socket on `::` writes it
            `::ffff:192.0.2.1`; beside an IPv6 address it can only be told that way (RFC 4291, section
            2.5.5.2), which is what HAProxy does, too.
        """
        if not isinstance(self.source, (IPv4Address, IPv6Address)) or not isinstance(
            self.destination, (IPv4Address, IPv6Address)
        ):
            return None
        source, destination = _pack(self.source.host), _pack(self.destination.host)
        if len(source) != len(destination):
            source, destination = _as_ipv6(source), _as_ipv6(destination)
        return source, destination, self.source.port, self.destination.port


@frozen
class TLSFacts:
    """
    What is told of a client's TLS that ends here.

    @ivar version: as OpenSSL writes it: `TLSv1.3`; so is `cipher`: `TLS_AES_128_GCM_SHA256`.
    @ivar server_name: what the client asked for.
    @ivar alpn: what was agreed on, a character a byte.
    @ivar cn: the common name in the client's certificate.
    @ivar has_certificate: whether the client has one, which was verified; those whose is not are not
        relayed.
    @ivar resumed: whether it has shown it in an earlier connection of this TLS session.
    """

    version: str
    cipher: str
    server_name: str | None = None
    alpn: str | None = None
    cn: str | None = None
    has_certificate: bool = False
    resumed: bool = False

    def tlvs(self) -> tuple[TLV, ...]:
        """@return: for each of ALPN, AUTHORITY and SSL what there is to tell."""
        client, verify = SSL.CONNECTION_HAS_TLS, 1
        if self.has_certificate:
            client |= SSL.SESSION_HAS_CERTIFICATE
            client |= 0 if self.resumed else SSL.CONNECTION_HAS_CERTIFICATE
            verify = 0
        within = [_told(SSLKind.VERSION, self.version), _told(SSLKind.CIPHER, self.cipher)]
        if self.cn is not None:
            within.append(_told(SSLKind.CN, self.cn))
        found = [TLV(Kind.SSL, SSL(client, verify, tuple(within)).encode())]
        if self.alpn is not None:
            found.append(TLV(Kind.ALPN, self.alpn.encode("latin-1", "replace")))
        if self.server_name is not None:
            found.append(_told(Kind.AUTHORITY, self.server_name))
        return tuple(found)


def header(
    version: Version,
    source: Address,
    destination: Address,
    *,
    accepted: ProxyHeader | None = None,
    tls: TLSFacts | None = None,
) -> bytes:
    """
    @param source: where the client connects from: its transport's `getPeer`.
    @param destination: where it connected to: its transport's `getHost`.
    @param accepted: the header that this connection began with, of somebody who is believed. Its addresses
        are sent on instead, and so is what else it says, but for padding. Where it tells no addresses, or
        is LOCAL, the connection's own are sent, as HAProxy does: they are what the receiver of such a header
        has to take (section 2.2), and behind one that says LOCAL there is nobody else.
    @param tls: what is told of the client's TLS, where it ends here. Of ALPN, AUTHORITY and SSL only
        those are added that `accepted` does not tell: it speaks of the client, and TLS that ended before
        here was nearer to that one.
    @return: what goes first on the connection that is opened for that client. Version 1 tells addresses only.
    """
    if accepted is None and tls is None:
        return ProxyHeader(source, destination).encode(version)
    tlvs: tuple[TLV, ...] = ()
    if accepted is not None and not accepted.local:
        if accepted.source is not None and accepted.destination is not None:
            source, destination = accepted.source, accepted.destination
        tlvs = accepted.tlvs
    if tls is not None:
        known = {each.kind for each in tlvs}
        tlvs += tuple(each for each in tls.tlvs() if each.kind not in known)
    return ProxyHeader(source, destination, tlvs=tlvs).encode(version)


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


def _told(kind: int, words: str) -> TLV:
    return TLV(kind, words.encode("utf-8", "replace"))


def _pack(host: str) -> bytes:
    """
    @param host: an address as Twisted writes it; an IPv6 zone (`%eth0`) means nothing to others.
    @return: 4 bytes, or 16.
    """
    if ":" not in host:
        return inet_pton(AF_INET, host)
    packed = inet_pton(AF_INET6, host.partition("%")[0])
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _as_ipv6(packed: bytes) -> bytes:
    return packed if len(packed) == 16 else _MAPPED + packed


def _text(packed: bytes) -> str:
    """
    @return: its canonical form. Section 2.1 wants IPv6 as groups of hexadecimal digits; `inet_ntop` writes the
        last two groups of some as an IPv4 address.
    """
    if len(packed) == 4:
        return inet_ntop(AF_INET, packed)
    words = inet_ntop(AF_INET6, packed)
    if "." not in words:
        return words
    groups, _, _ = words.rpartition(":")
    return f"{groups}:{packed[12] << 8 | packed[13]:x}:{packed[14] << 8 | packed[15]:x}"


def _unix_name(address: UNIXAddress) -> bytes:
    """
    @return: as it stands in a `sockaddr_un`; a socket without a name has none there either.
    """
    return os.fsencode(address.name or b"").ljust(UNIX_LENGTH, b"\0")[:UNIX_LENGTH]

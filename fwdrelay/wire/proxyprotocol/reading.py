"""
The header as it comes: both versions, a byte at a time or glued to what follows.
"""

from __future__ import annotations

import re
from contextlib import suppress
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from .headers import (
    HEAD_LENGTH,
    LOCAL,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UNIX_LENGTH,
    UNIX_STREAM,
    Address,
    ProxyHeader,
)
from .tlvs import TLV, BadHeader, Kind, check, split

LONGEST = 16384
"""Bytes of a header that is accepted. The field for its length could say four times as many."""
LONGEST_V1 = 107
"""Bytes of a version 1 header, its end included; section 2.1."""

_V1 = b"PROXY "
_V1_FAMILIES = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r\n")
_PORT = "(0|[1-9][0-9]{0,4})"
_v1_line = re.compile(
    rf"PROXY TCP(?:4 ([0-9.]+) ([0-9.]+)|6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+)) {_PORT} {_PORT}"
).fullmatch

_IPV4_LENGTH, _IPV6_LENGTH = 12, 36
_LENGTHS = {TCP4: _IPV4_LENGTH, TCP6: _IPV6_LENGTH, UNIX_STREAM: 2 * UNIX_LENGTH}
_LENGTHS |= {kind + 1: length for kind, length in _LENGTHS.items()}  # datagrams
"""How long the addresses are that are told, by family and protocol."""
_UNSPECIFIED = frozenset({0x00, 0x01, 0x02, 0x10, 0x20, 0x30})
"""Where one of the two is unspecified, nobody knows."""

_ZEROS = TLV(0, b"")
_head = Struct("!BBH").unpack_from
_two_ports = Struct("!HH").unpack_from


def looks_like(data: bytes) -> bool:
    """
    @return: whether these first bytes may be the beginning of a header, of either version.
    """
    return _V1.startswith(data[: len(_V1)]) or SIGNATURE.startswith(data[: len(SIGNATURE)])


def read(data: bytes) -> tuple[ProxyHeader, int] | None:
    """
    @param data: what a connection began with; what follows the header does not matter.
    @return: the header and its length. None: so far so good, more is needed. What is wrong is told as
        soon as it can be seen.
    @raise BadHeader: it is none, or one with something wrong in it. The connection should be aborted.
    """
    if SIGNATURE.startswith(data[: len(SIGNATURE)]):
        return _read_v2(data)
    if _V1.startswith(data[: len(_V1)]):
        return _read_v1(data)
    raise BadHeader(
        f"the connection begins with {data[: len(SIGNATURE)].hex(' ')}, which is no PROXY header"
    )


def _read_v1(data: bytes) -> tuple[ProxyHeader, int] | None:
    """
    Section 2.1. Of IPv6 it wants groups of hexadecimal digits; HAProxy writes `::ffff:192.0.2.1`, so that
    is accepted, too.
    """
    if not any(each.startswith(data[: len(each)]) for each in _V1_FAMILIES):
        raise _bad_line(data, "PROXY should be followed by TCP4, TCP6 or UNKNOWN")
    end = data.find(b"\r\n", 0, LONGEST_V1)
    line = data[:LONGEST_V1] if end < 0 else data[:end]
    # The last byte so far may be one half of the end.
    if b"\n" in line or b"\r" in (line[:-1] if end < 0 else line):
        raise _bad_line(line, "CR and LF should stand together, at its end")
    if end < 0:
        if len(line) == LONGEST_V1:
            raise _bad_line(line, f"it should end with CR LF within {LONGEST_V1} bytes")
        return None
    if line.startswith(b"PROXY UNKNOWN"):
        return ProxyHeader(), end + 2
    found = _v1_line(line.decode("latin-1"))
    if found is None:
        raise _bad_line(
            line, "there should be two addresses of its family and two ports, one blank before each"
        )
    source_port, destination_port = int(found[5]), int(found[6])
    if max(source_port, destination_port) > 65535:
        raise _bad_line(line, "65535 is the highest port")
    try:
        if found[1]:
            source, destination = inet_pton(AF_INET, found[1]), inet_pton(AF_INET, found[2])
        else:
            source, destination = inet_pton(AF_INET6, found[3]), inet_pton(AF_INET6, found[4])
    except OSError:
        raise _bad_line(line, "one of its addresses is none of its family") from None
    return _internet_header(source, source_port, destination, destination_port), end + 2


def _bad_line(line: bytes, why: str) -> BadHeader:
    shown = line[:LONGEST_V1].decode("latin-1")
    return BadHeader(f"the PROXY header {shown!r} is not as it should be: {why}")


def _read_v2(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Section 2.2."""
    size = len(data)
    if size > 12 and data[12] not in (LOCAL, PROXY):
        raise BadHeader(
            f"the PROXY header is of version {data[12] >> 4} with command {data[12] & 15}: after its "
            "signature it should be version 2, with command 0 (LOCAL) or 1 (PROXY)"
        )
    if (
        size > 13
        and data[12] == PROXY
        and data[13] not in _LENGTHS
        and data[13] not in _UNSPECIFIED
    ):
        raise BadHeader(
            f"the PROXY header is for address family {data[13] >> 4} and protocol {data[13] & 15}, and there "
            "are families 0 to 3 and protocols 0 to 2"
        )
    if size < HEAD_LENGTH:
        return None
    command, kind, length = _head(data, 12)
    end = HEAD_LENGTH + length
    if end > LONGEST:
        raise BadHeader(f"the PROXY header has {end} bytes, and {LONGEST} is the most")
    if command == PROXY and length < _LENGTHS.get(kind, 0):
        raise BadHeader(
            f"the PROXY header has {length} bytes behind its head, and its addresses alone would have "
            f"{_LENGTHS[kind]}"
        )
    if size < end:
        return None
    if command == LOCAL:
        # All of it is discarded, whatever it is.
        return ProxyHeader(local=True), end
    return _read_proxied(data[:end], kind), end


def _read_proxied(data: bytes, kind: int) -> ProxyHeader:
    """
    @param data: all of a header of version 2 whose command is PROXY.
    @param kind: its family and protocol. We relay no datagrams, so these are taken like what is not
        specified: "a receiver (…) automatically falls back to the UNSPEC mode".
    """
    at = HEAD_LENGTH + _LENGTHS.get(kind, 0)
    tlvs: tuple[TLV, ...] = ()
    if kind not in _UNSPECIFIED:
        tlvs = split(data, at)
    elif any(data[at:]):
        # It may be addresses in some form, which are to be ignored.
        with suppress(BadHeader):
            tlvs = split(data, at)
    if tlvs:
        check(tlvs, data, at)
        # Zeros are padding, too, whoever writes them: no kind is 0.
        tlvs = tuple(each for each in tlvs if each.kind != Kind.NOOP and each != _ZEROS)
    at = HEAD_LENGTH
    if kind == TCP4:
        source, destination = data[at : at + 4], data[at + 4 : at + 8]
        ports = _two_ports(data, at + 8)
        return _internet_header(source, ports[0], destination, ports[1], tlvs)
    if kind == TCP6:
        source, destination = data[at : at + 16], data[at + 16 : at + 32]
        ports = _two_ports(data, at + 32)
        return _internet_header(source, ports[0], destination, ports[1], tlvs)
    if kind == UNIX_STREAM:
        return ProxyHeader(
            _unix_address(data[at : at + UNIX_LENGTH]),
            _unix_address(data[at + UNIX_LENGTH : at + 2 * UNIX_LENGTH]),
            tlvs=tlvs,
        )
    return ProxyHeader(tlvs=tlvs)


def _internet_header(
    source: bytes,
    source_port: int,
    destination: bytes,
    destination_port: int,
    tlvs: tuple[TLV, ...] = (),
) -> ProxyHeader:
    """@param source: packed, as `destination`: 4 bytes or 16."""
    return ProxyHeader(
        _internet_address(source, source_port),
        _internet_address(destination, destination_port),
        tlvs=tlvs,
    )


def _internet_address(packed: bytes, port: int) -> Address:
    """@return: as Twisted writes what a socket's peer is."""
    if len(packed) == 4:
        return IPv4Address("TCP", inet_ntop(AF_INET, packed), port)
    return IPv6Address("TCP", inet_ntop(AF_INET6, packed), port)


def _unix_address(told: bytes) -> UNIXAddress:
    """
    @param told: as in a `sockaddr_un`. An abstract name begins with NUL; nobody says where it ends, so NULs
        at its end are taken for none of it.
    """
    name = told.rstrip(b"\0") if told[:1] == b"\0" else told.partition(b"\0")[0]
    return UNIXAddress(name or None)

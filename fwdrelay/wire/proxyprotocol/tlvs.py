"""
What a header of version 2 says besides addresses: types, lengths and values, and a checksum.

Those that are known here can be asked for by name; all others are kept as they are, to be sent on.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from struct import Struct

from attrs import frozen

MOST_TLVS = 256
"""A header has a handful; of the thousands that would fit in, each would cost more than its bytes."""
LONGEST_UNIQUE_ID = 128
"""Bytes, section 2.2.5."""

_head = Struct("!BH")
_ssl = Struct("!BI")
_checksum = Struct("!I")


class BadHeader(ValueError):
    """A PROXY header is not as it should be; the message is a sentence that says why."""


class Kind(IntEnum):
    """Registered types, section 2.2."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    NETNS = 0x30


class SSLKind(IntEnum):
    """Types within `Kind.SSL`, section 2.2.6."""

    VERSION = 0x21
    CN = 0x22
    CIPHER = 0x23
    SIG_ALG = 0x24
    KEY_ALG = 0x25
    GROUP = 0x26
    SIG_SCHEME = 0x27
    CLIENT_CERT = 0x28


@frozen
class TLV:
    """
    One thing that is said.

    @ivar kind: 0 to 255, mostly a `Kind` or an `SSLKind`.
    @ivar value: up to 65535 bytes.
    """

    kind: int
    value: bytes


@frozen
class SSL:
    """
    How the client speaks TLS with the first of the proxies. Text is as `text` returns it; None: not told.

    @ivar client: what there is, as a sum: 1 for TLS, 2 for a client certificate in this connection, 4 for
        one in this session (which may have been resumed).
    @ivar verify: 0: the certificate was verified, if there is one.
    """

    client: int
    verify: int
    tlvs: tuple[TLV, ...] = ()

    CONNECTION_HAS_TLS = 1
    CONNECTION_HAS_CERTIFICATE = 2
    SESSION_HAS_CERTIFICATE = 4

    @classmethod
    def decode(cls, value: bytes) -> SSL:
        """
        @param value: of a TLV of `Kind.SSL`.
        @raise BadHeader: it is something else.
        """
        if len(value) < _ssl.size:
            raise BadHeader(
                f"what the PROXY header says of TLS has {len(value)} bytes, and should have {_ssl.size} at least"
            )
        client, verify = _ssl.unpack_from(value)
        return cls(client, verify, split(value, _ssl.size))

    def encode(self) -> bytes:
        """@return: the value of a TLV of `Kind.SSL`."""
        return _ssl.pack(self.client, self.verify) + b"".join(map(encode, self.tlvs))

    @property
    def verified(self) -> bool:
        """Whether there is a client certificate, and it was verified. Without one `verify` says nothing."""
        has = self.CONNECTION_HAS_CERTIFICATE | self.SESSION_HAS_CERTIFICATE
        return bool(self.client & has) and self.verify == 0

    @property
    def version(self) -> str | None:
        """Such as `TLSv1.3`."""
        return self._text(SSLKind.VERSION)

    @property
    def cn(self) -> str | None:
        """The common name in the client's certificate."""
        return self._text(SSLKind.CN)

    @property
    def cipher(self) -> str | None:
        """Such as `ECDHE-RSA-AES128-GCM-SHA256`."""
        return self._text(SSLKind.CIPHER)

    @property
    def sig_alg(self) -> str | None:
        """What the proxy's certificate is signed with, such as `RSA-SHA256`."""
        return self._text(SSLKind.SIG_ALG)

    @property
    def key_alg(self) -> str | None:
        """The kind of the key in the proxy's certificate, such as `RSA2048`."""
        return self._text(SSLKind.KEY_ALG)

    @property
    def group(self) -> str | None:
        """What keys were agreed on with, such as `secp256r1`."""
        return self._text(SSLKind.GROUP)

    @property
    def sig_scheme(self) -> str | None:
        """What the proxy signed the handshake with, such as `rsa_pss_rsae_sha256`."""
        return self._text(SSLKind.SIG_SCHEME)

    @property
    def client_cert(self) -> bytes | None:
        """The client's certificate, in DER; not looked at here."""
        return value_of(self.tlvs, SSLKind.CLIENT_CERT)

    def _text(self, kind: SSLKind) -> str | None:
        return text(value_of(self.tlvs, kind))


def value_of(tlvs: Iterable[TLV], kind: int) -> bytes | None:
    """@return: the value of the first of this type; None: there is none."""
    return next((each.value for each in tlvs if each.kind == kind), None)


def text(value: bytes | None) -> str | None:
    """@return: UTF-8 as text, to log and to compare; bytes that are none stand there in hexadecimal."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def encode(tlv: TLV) -> bytes:
    """
    @return: as it stands in a header.
    """
    return _head.pack(tlv.kind, len(tlv.value)) + tlv.value


def split(data: bytes, at: int = 0) -> tuple[TLV, ...]:
    """
    @param at: where the first begins; the last has to end where `data` does.
    @raise BadHeader: it does not, or there are more than `MOST_TLVS`.
    """
    found: list[TLV] = []
    end = len(data)
    while at < end:
        if at + _head.size > end:
            raise BadHeader(
                f"the PROXY header ends within the type and length of a TLV: {data[at:].hex(' ')}"
            )
        kind, length = _head.unpack_from(data, at)
        at += _head.size
        value = data[at : at + length]
        if len(value) < length:
            raise BadHeader(
                f"TLV 0x{kind:02x} of the PROXY header should have {length} bytes, and {len(value)} are left"
            )
        if len(found) == MOST_TLVS:
            raise BadHeader(f"the PROXY header has more than {MOST_TLVS} TLVs")
        found.append(TLV(kind, value))
        at += length
    return tuple(found)


def check(tlvs: Iterable[TLV], header: bytes, at: int) -> None:
    """
    @param header: all of a header.
    @param at: where the first of `tlvs`, which are in it, begins.
    @raise BadHeader: a value is of a wrong size or form, or the checksum is wrong.
    """
    checksums = 0
    for tlv in tlvs:
        size = len(tlv.value)
        if tlv.kind == Kind.CRC32C:
            checksums += 1
            if size != _checksum.size:
                raise BadHeader(f"the checksum of the PROXY header has {size} bytes instead of 4")
        elif tlv.kind == Kind.UNIQUE_ID and size > LONGEST_UNIQUE_ID:
            raise BadHeader(
                f"the unique id in the PROXY header has {size} bytes, and {LONGEST_UNIQUE_ID} is the most"
            )
        elif tlv.kind == Kind.SSL:
            SSL.decode(tlv.value)
    if checksums > 1:
        raise BadHeader("the PROXY header has two checksums, and each would cover the other")
    place = checksum_at(tlvs, at)
    if place is not None:
        (told,) = _checksum.unpack_from(header, place)
        found = crc32c(_with_checksum(header, place, 0))
        if found != told:
            raise BadHeader(
                f"the PROXY header was damaged: its checksum is {found:08x}, and it says {told:08x}"
            )


def checksum_at(tlvs: Iterable[TLV], at: int) -> int | None:
    """
    @param at: where the first of these begins in a header.
    @return: where the value of the first checksum among them does; None: there is none.
    """
    for tlv in tlvs:
        at += _head.size
        if tlv.kind == Kind.CRC32C:
            return at
        at += len(tlv.value)
    return None


def fitting(tlvs: tuple[TLV, ...], room: int) -> tuple[TLV, ...]:
    """
    @param room: bytes that there are for them.
    @return: these, but each that would be too much after those before it is left out. A checksum always
        fits; there is only one, and its value is 0 until `seal`.
    """
    checksum = TLV(Kind.CRC32C, bytes(_checksum.size))
    if any(each.kind == Kind.CRC32C for each in tlvs):
        room -= _head.size + _checksum.size
    found: list[TLV] = []
    for tlv in tlvs:
        if tlv.kind == Kind.CRC32C:
            if checksum not in found:
                found.append(checksum)
            continue
        size = _head.size + len(tlv.value)
        if size <= room:
            room -= size
            found.append(tlv)
    return tuple(found)


def seal(header: bytes, at: int) -> bytes:
    """
    @param at: where the value of its checksum stands.
    @return: the header with the right one.
    """
    return _with_checksum(header, at, crc32c(_with_checksum(header, at, 0)))


def crc32c(data: bytes) -> int:
    """
    @return: the checksum of RFC 4960, appendix B.
    """
    table = _TABLE
    value = 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _with_checksum(header: bytes, at: int, value: int) -> bytes:
    return header[:at] + _checksum.pack(value) + header[at + _checksum.size :]


def _remainder(byte: int) -> int:
    """Of one byte, divided by Castagnoli's polynomial, bits reversed."""
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_remainder, range(256)))

"""
The first message of a TLS connection, read for what routes and certificates are chosen by.

It comes in the clear, before anybody has agreed on anything. Reading it is all that happens here:
nothing is answered, the bytes are left as they are, and what only the two ends of TLS need (keys, tickets,
cipher suites) is skipped. Rules are those of RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2) and RFC 6066
(server names); most hellos that OpenSSL would refuse for their form are refused here, too.
"""

from __future__ import annotations

import re
import struct

from attrs import frozen

LONGEST = 16384
"""Bytes that are looked at, the records' headers among them. Hellos with post-quantum keys have 2000."""

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_LONGEST_RECORD = 16384
_OLDEST, _NEWEST = 0x0300, 0x0304  # versions that records are labelled with
_SHORTEST = 41
"""Bytes of a message that has one cipher suite, one compression, and nothing that can be left out."""
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS, _ECH = 0, 16, 43, 0xFE0D

_record = struct.Struct("!BHH").unpack_from
_extension = struct.Struct("!HH").unpack_from
_two_bytes = struct.Struct("!H").unpack_from

_VERSIONS = {
    0x0300: "SSLv3",
    0x0301: "TLSv1",
    0x0302: "TLSv1.1",
    0x0303: "TLSv1.2",
    0x0304: "TLSv1.3",
}
_LABEL = rb"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_is_name = re.compile(rb"%b(?:\.%b)*" % (_LABEL, _LABEL)).fullmatch
# What ends in a number is an IPv4 address, or a mistake.
_is_address = re.compile(rb"[0-9.]*\.[0-9]+").fullmatch
_LONGEST_NAME = 253
_OTHERS = (
    (re.compile(rb"[A-Z]{3,16} (?:/|\*|\S+ HTTP/)"), "HTTP"),
    (re.compile(rb"SSH-"), "SSH"),
    (re.compile(rb"PROXY |\r\n\r\n\0\r\nQUIT\n"), "a PROXY header"),
    (
        re.compile(rb"[\x80-\xff].\x01[\0\x03]", re.DOTALL),
        "a hello of SSL 2, which nobody should speak",
    ),
)
"""What else connections begin with, for a better sentence."""


class NotClientHello(ValueError):
    """What a connection began with is no ClientHello; the message is a sentence that says why."""


class HelloTooLong(NotClientHello):
    """It would be longer than `LONGEST`."""


@frozen
class ClientHello:
    """
    What a client wants, as it says itself: nothing of it is proven.

    @ivar server_name: the host's name as `host_name` returns it; None: none is told, or none that could be
        one.
    @ivar alpn: the protocols it offers, the dearest first (RFC 7301), a character a byte.
    @ivar versions: those of TLS it offers, in its order, as OpenSSL writes them: `TLSv1.3`; one that has no
        name here as `0x7f1c`. Before TLS 1.3 only the newest one is told.
    @ivar encrypted: it carries another hello, encrypted (ECH), or pretends to; `server_name` is then the
        outer one, the name of who can decrypt it.
    """

    server_name: str | None
    alpn: tuple[str, ...]
    versions: tuple[str, ...]
    encrypted: bool


def parse(data: bytes) -> ClientHello | None:
    """
    @param data: what a connection began with. What follows the hello does not matter, nor does what is
        beyond `LONGEST`.
    @return: None: so far so good, more is needed. It says so while it can; all that is wrong in the form of
        records is seen with the byte that is wrong, what is wrong in the message with its last byte.
    @raise NotClientHello: it is none, or it is one that would be longer than `LONGEST`.
    """
    return HelloReader().parse(data)


class HelloReader:
    """
    Reads the hello of one connection while it comes in. It remembers how far it got: of many small records
    (one byte in each is allowed) none is looked at twice before the message is whole.
    """

    __slots__ = ("_at", "_have", "_want")

    def __init__(self) -> None:
        self._at = 0  # where the first record begins that was not whole yet
        self._have = 0  # bytes of the message in the records before it
        self._want = 0  # bytes of the whole message; 0: not known yet

    def parse(self, data: bytes) -> ClientHello | None:
        """
        As the function of this name.

        @param data: all that has come so far; it begins with what it began with the last time.
        """
        at, have, want = self._at, self._have, self._want
        size = min(len(data), LONGEST)
        while size - at >= 5:
            kind, version, length = _record(data, at)
            if kind != _HANDSHAKE or not _OLDEST <= version <= _NEWEST:
                raise _no_record(data, at)
            if not 0 < length <= _LONGEST_RECORD:
                raise NotClientHello(
                    f"the TLS record at byte {at} says that it holds {length} bytes: 1 to {_LONGEST_RECORD} can be"
                )
            here = size - at - 5
            if here > length:
                here = length
            if not want and have + here:
                want = _length(_message(data, min(have + here, 4)))
            if want and have + here >= want:
                # Nearly always it is in one record.
                return _read(data[9 : 5 + want] if not at else _message(data, want)[4:])
            if here < length:
                break
            have += length
            at += 5 + length
        else:
            if at < size and not _may_be_record(data[at:size]):
                raise _no_record(data, at)
        if at + 5 + want - have > LONGEST:
            raise HelloTooLong(
                f"the ClientHello has {want} bytes, which with their records are more than the {LONGEST} "
                "that are looked at"
            )
        self._at, self._have, self._want = at, have, want
        return None


def host_name(told: bytes) -> str | None:
    """
    @param told: a server name as a client sends it (RFC 6066, section 3).
    @return: it in lower case, without a dot at its end. None: no host can be called so. Addresses are not
        allowed there; U-labels, NULs, blanks and labels of more than 63 bytes neither. A client that sends
        one is treated as one that sends none: nothing is found under such a name, and it is not shown
        anywhere.
    """
    name = told.lower()
    if name.endswith(b"."):
        name = name[:-1]
    if len(name) > _LONGEST_NAME or not _is_name(name) or _is_address(name):
        return None
    return name.decode("ascii")


def _may_be_record(beginning: bytes) -> bool:
    """@param beginning: 1 to 4 bytes."""
    return (
        beginning[0] == _HANDSHAKE
        and beginning[1:2] in b"\x03"
        and beginning[2:3] in b"\x00\x01\x02\x03\x04"
    )


def _no_record(data: bytes, at: int) -> NotClientHello:
    found = data[at : at + 5]
    if at == 0:
        for beginning, what in _OTHERS:
            if beginning.match(data):
                return NotClientHello(
                    f"the connection does not begin with TLS: it looks like {what}"
                )
        return NotClientHello(
            f"the connection does not begin with TLS: its first bytes are {found.hex(' ')}, and those of a "
            "handshake are 16 03"
        )
    return NotClientHello(
        f"at byte {at}, within the ClientHello, a TLS record of a handshake should begin with 16 03, not "
        f"with {found.hex(' ')}"
    )


def _message(data: bytes, size: int) -> bytes:
    """@return: the first `size` bytes of what the records hold; that many are there."""
    if size <= (data[3] << 8 | data[4]):
        return data[5 : 5 + size]
    pieces, at = [], 0
    while size > 0:
        length = min(data[at + 3] << 8 | data[at + 4], size)
        at += 5
        pieces.append(data[at : at + length])
        at += length
        size -= length
    return b"".join(pieces)


def _length(head: bytes) -> int:
    """
    @param head: the first bytes of a handshake message, 1 to 4.
    @return: how many the whole has, this head included; 0: they don't say yet.
    """
    if head[0] != _CLIENT_HELLO:
        raise NotClientHello(
            f"TLS begins with handshake message {head[0]}, not with a ClientHello ({_CLIENT_HELLO})"
        )
    if len(head) < 4:
        return 0
    length = int.from_bytes(head[1:], "big")
    if length < _SHORTEST:
        raise NotClientHello(
            f"the ClientHello has {length} bytes, and the shortest that can be has {_SHORTEST}"
        )
    return 4 + length


def _read(body: bytes) -> ClientHello:
    """@param body: a whole ClientHello without the head of handshake messages; `_SHORTEST` or more bytes."""
    end = len(body)
    if body[0] < 3:
        raise NotClientHello(
            f"the ClientHello is of SSL {body[0]}.{body[1]}, and TLS begins with SSL 3.0"
        )
    if body[34] > 32:
        raise NotClientHello(
            f"the session id of the ClientHello has {body[34]} bytes, and 32 is the most"
        )
    at = 35 + body[34]
    if at + 2 > end:
        raise _too_short("cipher suites")
    (length,) = _two_bytes(body, at)
    at += 2 + length
    if at >= end:
        raise _too_short("cipher suites")
    if length == 0 or length % 2:
        raise NotClientHello(
            f"the cipher suites of the ClientHello have {length} bytes: two each, and one suite at least"
        )
    if body[at] == 0:
        raise NotClientHello("the ClientHello offers no compression, not even none")
    at += 1 + body[at]
    if at > end:
        raise _too_short("compressions")
    places: dict[int, int] = {}
    # Before TLS 1.2 a hello could end here, and one without extensions still may (RFC 5246, 7.4.1.2).
    if at < end:
        if at + 2 > end:
            raise _too_short("extensions")
        (length,) = _two_bytes(body, at)
        at += 2
        if at + length != end:
            raise NotClientHello(
                f"the extensions of the ClientHello should have {length} bytes, and {end - at} are there"
            )
        _find_extensions(body, at, places)
    # Newer than 1.2 nobody is without that extension, whatever is said here (RFC 8446, 4.2.1).
    versions: tuple[str, ...] = (_VERSIONS[min(_two_bytes(body)[0], 0x303)],)
    if _SUPPORTED_VERSIONS in places:
        versions = _read_versions(_value(body, places[_SUPPORTED_VERSIONS]))
    return ClientHello(
        _read_server_name(_value(body, places[_SERVER_NAME])) if _SERVER_NAME in places else None,
        _read_alpn(_value(body, places[_ALPN])) if _ALPN in places else (),
        versions,
        _ECH in places and _is_outer(_value(body, places[_ECH])),
    )


def _find_extensions(body: bytes, at: int, places: dict[int, int]) -> None:
    """
    @param at: where the first one begins; the last one should end where `body` does.
    @param places: gets where the extension of each number begins.
    """
    end, count = len(body), 0
    try:
        while at < end:
            kind, length = _extension(body, at)
            places[kind] = at
            at += 4 + length
            count += 1
    except struct.error:
        raise _too_short("last extension") from None
    if at > end:
        raise _too_short("last extension")
    if count > len(places):
        raise NotClientHello("the ClientHello has an extension twice")


def _value(body: bytes, at: int) -> bytes:
    """@param at: where an extension begins."""
    (length,) = _two_bytes(body, at + 2)
    return body[at + 4 : at + 4 + length]


def _too_short(what: str) -> NotClientHello:
    return NotClientHello(f"the ClientHello ends within its {what}")


def _read_server_name(value: bytes) -> str | None:
    """
    RFC 6066, section 3: a list of names, of which no two may be of one type, and there is only one type. So
    it has one name; as OpenSSL, we know no way past names of another type.
    """
    # All lengths are told by the innermost.
    length = len(value) - 5
    if length < 1 or value[:5] != (length + 3).to_bytes(2, "big") + b"\0" + length.to_bytes(
        2, "big"
    ):
        raise NotClientHello(
            f"the server name extension of the ClientHello is not one host name: {value[:16].hex(' ')}"
        )
    return host_name(value[5:])


def _read_alpn(value: bytes) -> tuple[str, ...]:
    """RFC 7301, section 3.1: a list of names, each with its length in a byte before it."""
    end = len(value)
    if end < 4 or _two_bytes(value)[0] != end - 2:
        raise NotClientHello("the ALPN extension of the ClientHello is not a list of protocols")
    names, at = [], 2
    while at < end:
        length = value[at]
        name = value[at + 1 : at + 1 + length]
        if not 0 < length == len(name):
            raise NotClientHello(
                f"a protocol in the ALPN extension of the ClientHello should have {length} bytes, and has {len(name)}"
            )
        if length != 2 or not _is_grease(_two_bytes(name)[0]):
            names.append(name.decode("latin-1"))
        at += 1 + length
    return tuple(names)


def _read_versions(value: bytes) -> tuple[str, ...]:
    """RFC 8446, section 4.2.1: versions of two bytes each, and the length of all in a byte before them."""
    end = len(value)
    if end < 3 or end % 2 == 0 or value[0] != end - 1:
        raise NotClientHello(
            "the supported versions extension of the ClientHello is not a list of versions"
        )
    numbers = struct.unpack(f"!{end // 2}H", value[1:])
    return tuple(
        _VERSIONS.get(number) or f"0x{number:04x}" for number in numbers if not _is_grease(number)
    )


def _is_outer(value: bytes) -> bool:
    """
    RFC 9849, section 5. The inner hello is marked, too; in "split mode" a backend gets it decrypted, and its
    server name is the real one.
    """
    if value == b"\x01":
        return False
    if value[:1] != b"\0":
        raise NotClientHello(
            f"the ECH extension of the ClientHello is neither an outer nor an inner one: {value[:8].hex(' ')}"
        )
    return True


def _is_grease(number: int) -> bool:
    """RFC 8701: values that mean nothing, 0x0a0a to 0xfafa, so that nobody stumbles over new ones."""
    return number & 0x0F0F == 0x0A0A and number >> 8 == number & 0xFF

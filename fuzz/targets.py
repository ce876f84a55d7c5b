"""
The parsers, each with what it is fed and what has to hold for every input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from random import Random
from typing import TypeAlias, get_args

from attrs import define, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from fwdrelay.wire import clienthello, proxyprotocol
from fwdrelay.wire.clienthello import ClientHello, HelloReader, NotClientHello, host_name
from fwdrelay.wire.proxyprotocol import BadHeader, ProxyHeader, Version

from .corpus import corpus
from .mutations import mutate

REFUSED, MORE = "refused", "more needed"
"""What a parser may answer besides what it has read."""

Answer: TypeAlias = ClientHello | tuple[ProxyHeader, int] | str


@frozen
class Target:
    """
    @ivar check: gets an input, and a source of chance for what else it wants to try with that; returns what
        the parser answered, as a word. Raises AssertionError, or lets through what should not come.
    @ivar seeds: what inputs are made of.
    """

    name: str
    check: Callable[[bytes, Random], str]
    seeds: Sequence[bytes] = field(repr=False)

    def make(self, random: Random) -> bytes:
        """@return: an input."""
        if random.random() < 0.01:
            return random.randbytes(random.randrange(200))
        return mutate(random.choice(self.seeds), self.seeds, random)


def check_hello(data: bytes, random: Random) -> str:
    """`clienthello`: one answer, however the bytes come; and what it tells is fit to be used."""
    answer = _answer_to_hello(clienthello.parse, data)
    if answer is MORE:
        assert len(data) < clienthello.LONGEST, "it waits for more than it looks at"
    if isinstance(answer, ClientHello):
        name = answer.server_name
        assert name is None or host_name(name.encode("ascii")) == name, "no host is called so"
        assert all(1 <= len(each) <= 255 for each in answer.alpn)
    check_prefixes(lambda some: _answer_to_hello(clienthello.parse, some), data, answer, random)
    reader = HelloReader()
    check_pieces(lambda some: _answer_to_hello(reader.parse, some), data, answer, random)
    if isinstance(answer, ClientHello):
        check_records(data, answer, random)
    return _word(answer)


def check_header(data: bytes, random: Random) -> str:
    """`proxyprotocol`: as with hellos; and what was read can be sent, and says the same then."""
    answer = _answer_to_header(data)
    if answer is MORE:
        assert len(data) < proxyprotocol.LONGEST, "it waits for more than it accepts"
    if answer is not REFUSED:
        assert proxyprotocol.looks_like(data), "it does not look like what it is"
    check_prefixes(_answer_to_header, data, answer, random)
    if isinstance(answer, tuple):
        header, length = answer
        assert 0 < length <= len(data), "it is longer than what there is"
        check_sent(header)
    return _word(answer)


def check_name(data: bytes, random: Random) -> str:
    """`clienthello.host_name`."""
    name = host_name(data)
    if name is None:
        return REFUSED
    assert host_name(name.encode("ascii")) == name
    assert host_name(name.upper().encode("ascii") + b".") == name
    assert name == name.lower() and len(name) <= 253
    assert all(1 <= len(label) <= 63 for label in name.split("."))
    return "read"


def check_against_openssl(data: bytes, random: Random) -> str:
    """Where both we and OpenSSL can read a hello, both found the same names in it."""
    theirs = asked_of_openssl(data)
    ours = _answer_to_hello(clienthello.parse, data)
    if not isinstance(ours, ClientHello):
        return "only OpenSSL" if theirs.is_hello else "neither"
    if not theirs.is_hello:
        return "only we"
    assert ours.server_name == host_name(theirs.server_name or b""), (
        f"OpenSSL found the name {theirs.server_name!r}"
    )
    if theirs.alpn is not None:
        found = [each.decode("latin-1") for each in theirs.alpn]
        # We leave out what means nothing (GREASE).
        assert [each for each in found if each in ours.alpn] == list(ours.alpn), (
            f"OpenSSL found the protocols {theirs.alpn!r}"
        )
    return "both" if theirs.alpn is None else "both, with protocols"


def check_prefixes(
    ask: Callable[[bytes], Answer], data: bytes, answer: Answer, random: Random
) -> None:
    """A part is answered as the whole is, or wants more; and what comes behind does not matter."""
    for _ in range(3):
        part = data[: random.randrange(len(data) + 1)]
        assert ask(part) in (MORE, answer), f"with {len(part)} bytes it answers {ask(part)!r}"
    if answer is not MORE:
        assert ask(data + random.randbytes(9)) == answer, "what comes behind matters"


def check_pieces(
    ask: Callable[[bytes], Answer], data: bytes, answer: Answer, random: Random
) -> None:
    """What remembers how far it got answers the same in the end."""
    found: Answer = MORE
    for cut in sorted(random.randrange(len(data) + 1) for _ in range(4)):
        if found is MORE:
            found = ask(data[:cut])
    if found is MORE:
        found = ask(data)
    assert found == answer, f"in pieces it is {found!r}"


def check_records(data: bytes, answer: ClientHello, random: Random) -> None:
    """How a hello is cut into records does not matter, where there is room for their headers."""
    message, at = b"", 0
    while at < len(data):
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big"):
            break
    message = message[: 4 + int.from_bytes(message[1:4], "big")]
    longest = random.choice((1, 2, 3, 30, 500, 16384))
    again = b""
    while message:
        piece = message[: random.randint(1, longest)]
        again += b"\x16\x03" + random.choice((b"\0", b"\1", b"\3", b"\4"))
        again += len(piece).to_bytes(2, "big") + piece
        message = message[len(piece) :]
    if len(again) <= clienthello.LONGEST:
        assert clienthello.parse(again) == answer, "in other records it is another"
        assert clienthello.parse(again[:-1]) is None


def check_sent(header: ProxyHeader) -> None:
    """What has been read can be sent on and read again, and what comes of that stays so."""
    _ = header.alpn, header.authority, header.unique_id, header.netns
    if header.ssl is not None:
        assert proxyprotocol.SSL.decode(header.ssl.encode()) == header.ssl
        _ = header.ssl.cn, header.ssl.verified
    for version in get_args(Version):
        sent = header.encode(version)
        assert len(sent) <= proxyprotocol.LONGEST_SENT
        again = _answer_to_header(sent)
        assert isinstance(again, tuple), f"it can't be read when it is sent on: {again!r}"
        assert again[1] == len(sent)
        assert again[0].encode(version) == sent, "sent on twice it is another"
        assert again[0].local is (header.local and version == "v2")


@define
class Asked:
    """
    What a server with OpenSSL takes a hello for.

    @ivar is_hello: whether it has read one.
    @ivar alpn: None: none was offered, or OpenSSL did not come as far as to ask which.
    """

    is_hello: bool = False
    server_name: bytes | None = None
    alpn: list[bytes] | None = None


def asked_of_openssl(data: bytes) -> Asked:
    """@return: what OpenSSL reads in it; the handshake goes no further."""
    connection = SSL.Connection(_openssl(), None)
    found = Asked()
    connection.set_app_data(found)
    connection.set_accept_state()
    with suppress(SSL.Error):
        connection.bio_write(data)
        connection.do_handshake()
    return found


@cache
def _openssl() -> SSL.Context:
    """A server that tells what it is asked, and agrees to nothing."""

    def name(connection: SSL.Connection) -> None:
        found: Asked = connection.get_app_data()
        found.is_hello, found.server_name = True, connection.get_servername()

    def protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
        found: Asked = connection.get_app_data()
        found.alpn = offered
        return b""

    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fuzz")])
    certificate = (
        x509.CertificateBuilder(nobody, nobody, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(certificate)
    context.use_privatekey(key)
    context.set_tlsext_servername_callback(name)
    context.set_alpn_select_callback(protocol)
    return context


def _answer_to_hello(parse: Callable[[bytes], ClientHello | None], data: bytes) -> Answer:
    try:
        return parse(data) or MORE
    except NotClientHello as wrong:
        return _refused(wrong)


def _answer_to_header(data: bytes) -> Answer:
    try:
        return proxyprotocol.read(data) or MORE
    except BadHeader as wrong:
        return _refused(wrong)


def _refused(wrong: ValueError) -> str:
    # The sentence may tell more of longer input.
    assert len(str(wrong)) > 20 and str(wrong).isprintable(), f"that is no sentence: {wrong}"
    return REFUSED


def _word(answer: Answer) -> str:
    return answer if isinstance(answer, str) else "read"


def targets() -> Sequence[Target]:
    """All there are."""
    hellos = list(corpus("hellos").values())
    headers = list(corpus("headers").values())
    names = [
        b"www.example.com",
        b"Example.COM.",
        b"xn--bcher-kva.example",
        b"192.0.2.1",
        b"a_b.c-d",
    ]
    return (
        Target("hello", check_hello, hellos),
        Target("header", check_header, headers),
        Target("name", check_name, names),
        Target("openssl", check_against_openssl, hellos),
    )

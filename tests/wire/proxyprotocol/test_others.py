"""Another implementation, the package `proxy-protocol` of PyPI, reads what we send, and sends what we read."""

from __future__ import annotations

import ipaddress
from socket import SOCK_STREAM

from proxyprotocol.result import (
    ProxyResult,
    ProxyResultIPv4,
    ProxyResultIPv6,
    ProxyResultLocal,
    ProxyResultUnix,
    ProxyResultUnknown,
)
from proxyprotocol.tlv import ProxyProtocolSSLTLV, ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2
from twisted.internet.address import UNIXAddress

from fwdrelay.wire.proxyprotocol import (
    SSL,
    TLV,
    Kind,
    ProxyHeader,
    SSLKind,
    TLSFacts,
    header,
    local_header,
    read,
)
from tests.case import SynchronousTestCase
from tests.wire.proxyprotocol.values import CLIENT, CLIENT_6, HERE, HERE_6

V1, V2 = ProxyProtocolV1(), ProxyProtocolV2()
NOTHING = ProxyProtocolTLV()


def theirs_4(tlv: ProxyProtocolTLV = NOTHING) -> ProxyResultIPv4:
    """`CLIENT` and `HERE`, as they say it."""
    source, destination = ipaddress.IPv4Address(CLIENT.host), ipaddress.IPv4Address(HERE.host)
    return ProxyResultIPv4(
        (source, CLIENT.port), (destination, HERE.port), protocol=SOCK_STREAM, tlv=tlv
    )


def theirs_6() -> ProxyResultIPv6:
    source, destination = ipaddress.IPv6Address(CLIENT_6.host), ipaddress.IPv6Address(HERE_6.host)
    return ProxyResultIPv6(
        (source, CLIENT_6.port), (destination, HERE_6.port), protocol=SOCK_STREAM
    )


class TheySendTests(SynchronousTestCase):
    def read_whole(self, data: bytes) -> ProxyHeader:
        """And nothing before its last byte."""
        found = read(data + b"data")
        assert found is not None
        self.assertEqual(found[1], len(data))
        for size in range(len(data)):
            self.assertIsNone(read(data[:size]))
        return found[0]

    def test_addresses(self) -> None:
        results: list[tuple[ProxyResult, ProxyHeader]] = [
            (theirs_4(), ProxyHeader(CLIENT, HERE)),
            (theirs_6(), ProxyHeader(CLIENT_6, HERE_6)),
        ]
        for theirs, ours in results:
            self.assertEqual(self.read_whole(V1.pack(theirs)), ours)
            found = self.read_whole(V2.pack(theirs))
            self.assertEqual((found.source, found.destination), (ours.source, ours.destination))
            # They always add a checksum, which was right.
            self.assertEqual([each.kind for each in found.tlvs], [Kind.CRC32C])

    def test_unknown_and_local(self) -> None:
        self.assertEqual(self.read_whole(V1.pack(ProxyResultUnknown())), ProxyHeader())
        found = self.read_whole(V2.pack(ProxyResultUnknown()))
        self.assertEqual((found.source, found.local), (None, False))
        self.assertEqual(self.read_whole(V2.pack(ProxyResultLocal())), ProxyHeader(local=True))

    def test_unix(self) -> None:
        found = self.read_whole(V2.pack(ProxyResultUnix("/a", "/b", protocol=SOCK_STREAM)))
        self.assertEqual(
            (found.source, found.destination), (UNIXAddress(b"/a"), UNIXAddress(b"/b"))
        )

    def test_all_else(self) -> None:
        ssl = ProxyProtocolSSLTLV(
            has_ssl=True,
            has_cert_conn=True,
            has_cert_sess=True,
            verified=True,
            version="TLSv1.3",
            cn="client",
            cipher="x",
            sig_alg="s",
            key_alg="k",
        )
        found = self.read_whole(
            V2.pack(
                theirs_4(
                    ProxyProtocolTLV(
                        init={0xE1: b"own"},
                        alpn=b"h2",
                        authority="a.example",
                        unique_id=b"id",
                        netns="blue",
                        ssl=ssl,
                    )
                )
            )
        )
        self.assertEqual((found.alpn, found.authority), ("h2", "a.example"))
        self.assertEqual((found.unique_id, found.netns), (b"id", "blue"))
        self.assertIn(TLV(0xE1, b"own"), found.tlvs)
        assert found.ssl is not None
        self.assertTrue(found.ssl.verified)
        self.assertEqual(
            (
                found.ssl.version,
                found.ssl.cn,
                found.ssl.cipher,
                found.ssl.sig_alg,
                found.ssl.key_alg,
            ),
            ("TLSv1.3", "client", "x", "s", "k"),
        )


class TheyReadTests(SynchronousTestCase):
    def assert_same(self, theirs: ProxyResult, expected: ProxyResult) -> None:
        self.assertEqual(
            (theirs.type, theirs.proxied, theirs.source, theirs.dest),
            (expected.type, expected.proxied, expected.source, expected.dest),
        )

    def test_addresses(self) -> None:
        self.assert_same(V1.unpack(header("v1", CLIENT, HERE)), theirs_4())
        self.assert_same(V1.unpack(header("v1", CLIENT_6, HERE_6)), theirs_6())
        self.assert_same(V2.unpack(header("v2", CLIENT, HERE)), theirs_4())
        self.assert_same(V2.unpack(header("v2", CLIENT_6, HERE_6)), theirs_6())

    def test_unknown_local_and_unix(self) -> None:
        self.assert_same(V1.unpack(local_header("v1")), ProxyResultUnknown())
        self.assert_same(V2.unpack(ProxyHeader().encode("v2")), ProxyResultUnknown())
        self.assert_same(V2.unpack(local_header("v2")), ProxyResultLocal())
        unix = header("v2", UNIXAddress(b"/a"), UNIXAddress(b"/b"))
        self.assert_same(V2.unpack(unix), ProxyResultUnix("/a", "/b"))

    def test_all_else(self) -> None:
        ssl = SSL(7, 0, tuple(TLV(kind, kind.name.encode()) for kind in list(SSLKind)[:5]))
        # They compute the checksum of TLVs in the order of their types.
        tlvs = (
            TLV(Kind.ALPN, b"h2"),
            TLV(Kind.AUTHORITY, b"a.example"),
            TLV(Kind.CRC32C, b""),
            TLV(Kind.UNIQUE_ID, b"id"),
            TLV(Kind.SSL, ssl.encode()),
            TLV(Kind.NETNS, b"blue"),
            TLV(0xE1, b"own"),
        )
        found = V2.unpack(ProxyHeader(CLIENT, HERE, tlvs=tlvs).encode("v2")).tlv
        self.assertNotIn(found.crc32c, (0, None))
        self.assertEqual((found.alpn, found.authority), (b"h2", "a.example"))
        self.assertEqual((found.unique_id, found.netns, found[0xE1]), (b"id", "blue", b"own"))
        self.assertEqual((int(found.ssl.client), found.ssl.verify), (7, 0))
        self.assertEqual(
            (
                found.ssl.version,
                found.ssl.cn,
                found.ssl.cipher,
                found.ssl.sig_alg,
                found.ssl.key_alg,
            ),
            ("VERSION", "CN", "CIPHER", "SIG_ALG", "KEY_ALG"),
        )

    def test_tls_that_ends_here(self) -> None:
        facts = TLSFacts("TLSv1.3", "x", "a.example", "h2", "client", has_certificate=True)
        found = V2.unpack(header("v2", CLIENT, HERE, tls=facts)).tlv
        self.assertEqual((found.alpn, found.authority), (b"h2", "a.example"))
        self.assertEqual((found.ssl.verify, found.ssl.cn), (0, "client"))

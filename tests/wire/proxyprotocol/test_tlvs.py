"""`fwdrelay.wire.proxyprotocol.tlvs`, and how headers carry them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fwdrelay.wire.proxyprotocol import (
    LONGEST_SENT,
    MOST_TLVS,
    SSL,
    TLV,
    BadHeader,
    Kind,
    ProxyHeader,
    SSLKind,
    TLSFacts,
    crc32c,
    header,
    read,
)
from tests.case import SynchronousTestCase
from tests.wire.proxyprotocol.values import CLIENT, CLIENT_6, HERE, HERE_6, any_ssl, any_tlvs, ipv4

FEW = settings(max_examples=60, deadline=None)
CHECKSUM = TLV(Kind.CRC32C, bytes(4))
FACTS = TLSFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256")


def sent(*tlvs: TLV) -> bytes:
    return ProxyHeader(CLIENT, HERE, tlvs=tlvs).encode("v2")


def raw(block: bytes) -> bytes:
    """A header for `CLIENT` with this behind its addresses."""
    plain = sent()
    return plain[:14] + (12 + len(block)).to_bytes(2, "big") + plain[16:] + block


def got(data: bytes) -> ProxyHeader:
    """What is read from a whole header."""
    found = read(data)
    assert found is not None and found[1] == len(data)
    return found[0]


class ChecksumTests(SynchronousTestCase):
    def test_known_values(self) -> None:
        # RFC 3720, appendix B.4.
        for data, expected in (
            (b"", 0),
            (bytes(32), 0x8A9136AA),
            (b"\xff" * 32, 0x62A8AB43),
            (bytes(range(32)), 0x46DD794E),
            (bytes(reversed(range(32))), 0x113FDB5C),
            (b"123456789", 0xE3069283),
        ):
            self.assertEqual(crc32c(data), expected)

    def test_it_is_made_anew(self) -> None:
        accepted = got(sent(TLV(1, b"h2"), CHECKSUM, TLV(2, b"a.example")))
        again = header("v2", CLIENT_6, HERE_6, accepted=accepted)
        self.assertEqual([each.kind for each in got(again).tlvs], [1, 3, 2])
        changed = header(
            "v2", CLIENT, HERE, accepted=ProxyHeader(CLIENT_6, HERE_6, tlvs=accepted.tlvs)
        )
        self.assertNotEqual(got(changed).tlvs[1], accepted.tlvs[1])

    def test_a_wrong_one(self) -> None:
        data = sent(CHECKSUM, TLV(2, b"a.example"))
        for at in (17, len(data) - 1, 12 + 16 + 3):
            damaged = data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]
            with self.assertRaises(BadHeader) as caught:
                read(damaged)
            self.assertIn("damaged", str(caught.exception))

    def test_one_that_is_no_checksum(self) -> None:
        for value in (b"", b"abc", b"abcde"):
            with self.assertRaises(BadHeader) as caught:
                read(raw(b"\3\0" + bytes((len(value),)) + value))
            self.assertIn(f"has {len(value)} bytes instead of 4", str(caught.exception))

    def test_two(self) -> None:
        with self.assertRaises(BadHeader) as caught:
            read(raw(b"\3\0\4abcd\3\0\4abcd"))
        self.assertIn("two checksums", str(caught.exception))
        self.assertEqual(sent(CHECKSUM, TLV(2, b"a"), CHECKSUM), sent(CHECKSUM, TLV(2, b"a")))


class FormTests(SynchronousTestCase):
    def bad(self, block: bytes, *words: str) -> None:
        with self.assertRaises(BadHeader) as caught:
            read(raw(block))
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_cut_short(self) -> None:
        self.bad(b"\1", "within the type and length", "01")
        self.bad(b"\1\0", "within the type and length", "01 00")
        self.bad(b"\1\0\1", "TLV 0x01", "should have 1 bytes, and 0 are left")
        self.bad(b"\2\0\1a\xea\1\0abc", "TLV 0xea", "should have 256 bytes, and 3 are left")

    def test_the_unique_id(self) -> None:
        self.assertEqual(got(sent(TLV(5, b"x" * 128))).unique_id, b"x" * 128)
        self.bad(b"\5\0\x81" + b"x" * 129, "unique id", "129 bytes", "128 is the most")

    def test_tls(self) -> None:
        for size in range(5):
            self.bad(b"\x20\0" + bytes((size,)) + bytes(size), f"has {size} bytes", "5 at least")
        self.bad(b"\x20\0\6" + bytes(6), "within the type and length")
        self.bad(b"\x20\0\x09" + bytes(5) + b"\x21\0\2a", "TLV 0x21", "should have 2 bytes, and 1")

    def test_padding_is_dropped(self) -> None:
        found = got(raw(b"\4\0\0\2\0\1a\4\0\3abc"))
        self.assertEqual(found.tlvs, (TLV(2, b"a"),))

    def test_too_many(self) -> None:
        self.assertEqual(len(got(raw(b"\xe0\0\0" * MOST_TLVS)).tlvs), MOST_TLVS)
        self.bad(b"\xe0\0\0" * (MOST_TLVS + 1), f"more than {MOST_TLVS}")
        inside = bytes(5) + b"\x21\0\0" * (MOST_TLVS + 1)
        self.bad(b"\x20" + len(inside).to_bytes(2, "big") + inside, f"more than {MOST_TLVS}")

    def test_the_same_one_twice(self) -> None:
        found = got(raw(b"\2\0\1a\2\0\1b"))
        self.assertEqual(found.authority, "a")
        self.assertEqual(found.tlvs, (TLV(2, b"a"), TLV(2, b"b")))

    @FEW
    @given(any_tlvs())
    def test_any(self, tlvs: tuple[TLV, ...]) -> None:
        self.assertEqual(got(sent(*tlvs)).tlvs, tlvs)
        again = got(sent(*tlvs, CHECKSUM))
        self.assertEqual(again.tlvs[:-1], tlvs)


class ValueTests(SynchronousTestCase):
    def test_nothing_is_told(self) -> None:
        found = ProxyHeader()
        self.assertEqual(
            (found.alpn, found.authority, found.unique_id, found.netns, found.ssl), (None,) * 5
        )

    def test_text_that_is_none(self) -> None:
        found = got(sent(TLV(2, b"\xc3\xa9\xff\n"), TLV(1, b"\xff\0"), TLV(0x30, b"\x80")))
        self.assertEqual(found.authority, "é\\xff\n")
        self.assertEqual((found.alpn, found.netns), ("\xff\0", "\\x80"))

    def test_all_about_tls(self) -> None:
        names = list(SSLKind)
        within = tuple(TLV(kind, kind.name.encode()) for kind in names)
        found = got(sent(TLV(Kind.SSL, SSL(3, 0, within).encode()))).ssl
        assert found is not None
        self.assertEqual(
            (found.version, found.cn, found.cipher, found.sig_alg, found.key_alg, found.group),
            ("VERSION", "CN", "CIPHER", "SIG_ALG", "KEY_ALG", "GROUP"),
        )
        self.assertEqual((found.sig_scheme, found.client_cert), ("SIG_SCHEME", b"CLIENT_CERT"))
        self.assertEqual(found.tlvs, within)

    def test_a_certificate_counts_when_there_is_one_and_it_was_verified(self) -> None:
        for client, verify, verified in (
            (1, 0, False),  # so say some about clients that have none
            (3, 0, True),
            (5, 0, True),
            (7, 0, True),
            (7, 1, False),
            (1, 1, False),
            (0, 0, False),
        ):
            self.assertEqual(SSL(client, verify).verified, verified)

    def test_what_nobody_has_checked(self) -> None:
        with self.assertRaises(BadHeader):
            _ = ProxyHeader(tlvs=(TLV(Kind.SSL, b""),)).ssl

    @FEW
    @given(any_ssl())
    def test_any_tls(self, ssl: SSL) -> None:
        self.assertEqual(SSL.decode(ssl.encode()), ssl)


class RoomTests(SynchronousTestCase):
    """What is sent has a bound."""

    def test_what_fits_is_sent(self) -> None:
        room = LONGEST_SENT - len(sent()) - 3
        whole = sent(TLV(0xE0, bytes(room)))
        self.assertEqual(len(whole), LONGEST_SENT)
        self.assertEqual(sent(TLV(0xE0, bytes(room + 1))), sent())

    def test_what_does_not_fit_is_left_out_and_what_follows_is_not(self) -> None:
        small = TLV(2, b"a.example")
        self.assertEqual(sent(TLV(0xE0, bytes(5000)), small), sent(small))
        self.assertEqual(sent(TLV(0xE0, bytes(70_000)), small), sent(small))

    def test_there_is_always_room_for_the_checksum(self) -> None:
        room = LONGEST_SENT - len(sent()) - 3
        self.assertEqual(sent(TLV(0xE0, bytes(room)), CHECKSUM), sent(CHECKSUM))
        whole = sent(TLV(0xE0, bytes(room - 7)), CHECKSUM, TLV(2, b""))
        self.assertEqual(len(whole), LONGEST_SENT)
        self.assertEqual([each.kind for each in got(whole).tlvs], [0xE0, 3])

    @FEW
    @given(st.lists(st.integers(0, 3000), max_size=12), st.booleans())
    def test_never_more(self, sizes: list[int], checked: bool) -> None:
        tlvs = [TLV(0xE0 + number, bytes(size)) for number, size in enumerate(sizes)]
        data = sent(*tlvs, *([CHECKSUM] if checked else []))
        self.assertLessEqual(len(data), LONGEST_SENT)
        kinds = [each.kind for each in got(data).tlvs]
        self.assertEqual(Kind.CRC32C in kinds, checked)
        self.assertEqual(kinds, sorted(kinds, key=lambda kind: (kind == Kind.CRC32C, kind)))


class OnwardTests(SynchronousTestCase):
    """What is sent for a client that came with a header, over TLS, or both."""

    def test_what_was_accepted_is_sent_on(self) -> None:
        accepted = ProxyHeader(
            ipv4("203.0.113.1", 1), ipv4("203.0.113.2", 2), tlvs=(TLV(2, b"a"), TLV(0xE3, b"b"))
        )
        data = header("v2", CLIENT, HERE, accepted=accepted)
        self.assertEqual(got(data), accepted)
        self.assertEqual(
            header("v1", CLIENT, HERE, accepted=accepted),
            b"PROXY TCP4 203.0.113.1 203.0.113.2 1 2\r\n",
        )

    def test_local_is_the_connection_we_see(self) -> None:
        for accepted in (ProxyHeader(local=True), ProxyHeader(CLIENT_6, HERE_6, local=True)):
            for version in ("v1", "v2"):
                self.assertEqual(
                    header(version, CLIENT, HERE, accepted=accepted), header(version, CLIENT, HERE)
                )

    def test_where_no_addresses_are_told_those_that_we_see_are(self) -> None:
        accepted = ProxyHeader(tlvs=(TLV(2, b"a"),))
        self.assertEqual(
            got(header("v2", CLIENT, HERE, accepted=accepted)),
            ProxyHeader(CLIENT, HERE, tlvs=accepted.tlvs),
        )

    def test_tls_that_ends_here(self) -> None:
        facts = TLSFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", "www.example.com", "h2")
        found = got(header("v2", CLIENT, HERE, tls=facts))
        self.assertEqual((found.source, found.destination), (CLIENT, HERE))
        self.assertEqual((found.alpn, found.authority), ("h2", "www.example.com"))
        ssl = found.ssl
        assert ssl is not None
        self.assertEqual((ssl.version, ssl.cipher), ("TLSv1.3", "TLS_AES_128_GCM_SHA256"))
        self.assertEqual((ssl.client, ssl.verify, ssl.verified, ssl.cn), (1, 1, False, None))
        self.assertEqual(header("v1", CLIENT, HERE, tls=facts), header("v1", CLIENT, HERE))

    def test_a_client_certificate(self) -> None:
        for resumed, client in ((False, 7), (True, 5)):
            facts = TLSFacts("TLSv1.2", "x", cn="Zoé", has_certificate=True, resumed=resumed)
            ssl = got(header("v2", CLIENT, HERE, tls=facts)).ssl
            assert ssl is not None
            self.assertEqual((ssl.client, ssl.verify, ssl.verified), (client, 0, True))
            self.assertEqual(ssl.cn, "Zoé")

    def test_nothing_more_is_told_than_there_is(self) -> None:
        found = got(header("v2", CLIENT, HERE, tls=FACTS))
        self.assertEqual([each.kind for each in found.tlvs], [Kind.SSL])

    def test_what_was_accepted_goes_before_what_ends_here(self) -> None:
        theirs = SSL(7, 0, (TLV(SSLKind.CN, b"client"),))
        accepted = ProxyHeader(
            CLIENT_6, HERE_6, tlvs=(TLV(Kind.SSL, theirs.encode()), TLV(Kind.ALPN, b"h2"))
        )
        facts = TLSFacts("TLSv1.3", "x", "here.example", "http/1.1", "proxy", has_certificate=True)
        found = got(header("v2", CLIENT, HERE, accepted=accepted, tls=facts))
        self.assertEqual((found.source, found.ssl), (CLIENT_6, theirs))
        self.assertEqual((found.alpn, found.authority), ("h2", "here.example"))
        self.assertEqual(len(found.tlvs), 3)

    def test_what_cannot_be_written_stops_nobody(self) -> None:
        facts = TLSFacts("TLSv1.3", "x", "\ud800", "\u20ac", "\udcff")
        found = got(header("v2", CLIENT, HERE, tls=facts))
        self.assertEqual((found.authority, found.alpn), ("?", "?"))

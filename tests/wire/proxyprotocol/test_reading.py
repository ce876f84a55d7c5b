"""`fwdrelay.wire.proxyprotocol.reading`: headers as they come, whole, in pieces, and broken."""

from __future__ import annotations

import ipaddress
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import UNIXAddress

from fuzz.corpus import corpus
from fuzz.targets import check_header
from fwdrelay.wire.proxyprotocol import (
    LONGEST,
    LONGEST_V1,
    SIGNATURE,
    TLV,
    BadHeader,
    Kind,
    ProxyHeader,
    looks_like,
    read,
)
from tests.case import SynchronousTestCase
from tests.wire.proxyprotocol.values import any_header, ipv4, ipv6

FEW = settings(max_examples=60, deadline=None)
CHANCE = st.randoms(use_true_random=False)
LOCALHOST, LOCALHOST_6 = "127.0.0.1", "::1"
TCP4_BLOCK = bytes.fromhex("c0000201 c0000202 dc04 01bb")
TCP4 = ProxyHeader(ipv4("192.0.2.1", 56324), ipv4("192.0.2.2", 443))


def v2(rest: bytes, *, command: int = 0x21, kind: int = 0x11, length: int | None = None) -> bytes:
    """A header of version 2 with this behind its head."""
    size = len(rest) if length is None else length
    return SIGNATURE + bytes((command, kind)) + size.to_bytes(2, "big") + rest


class Reading(SynchronousTestCase):
    """What the tests of both versions ask."""

    def assert_read(self, data: bytes, expected: ProxyHeader) -> None:
        """Whole, with something behind it, and not before the last byte."""
        for more in (b"", b"\0", b"\r\n", data, bytes(20_000)):
            self.assertEqual(read(data + more), (expected, len(data)))
        for size in range(len(data)):
            self.assertIsNone(read(data[:size]), data[:size])
            self.assertTrue(looks_like(data[:size]))

    def assert_bad(self, data: bytes, *words: str) -> None:
        """Refused, in these words; nothing that might follow changes that."""
        for more in (b"", b"\r\n", b" 1 2\r\n", bytes(20_000)):
            with self.assertRaises(BadHeader) as caught:
                read(data + more)
            for word in words if not more else ():
                self.assertIn(word, str(caught.exception))

    def assert_bad_from(self, data: bytes, size: int, *words: str) -> None:
        """Refused as soon as so many bytes are there."""
        self.assertIsNone(read(data[: size - 1]), data[: size - 1])
        self.assert_bad(data[:size], *words)


class CapturedTests(Reading):
    """What HAProxy sent, and what else there is in the files."""

    def test_version_1(self) -> None:
        headers = corpus("headers")
        self.assert_read(
            headers["haproxy-v1"], ProxyHeader(ipv4(LOCALHOST, 37562), ipv4(LOCALHOST, 39359))
        )
        self.assert_read(
            headers["haproxy-v1-ipv6"],
            ProxyHeader(ipv6(LOCALHOST_6, 57594), ipv6(LOCALHOST_6, 41177)),
        )
        self.assertEqual(len(headers["longest-v1"]), LONGEST_V1)
        self.assert_read(headers["longest-v1"], ProxyHeader())

    def test_version_2(self) -> None:
        self.assert_read(
            corpus("headers")["haproxy-v2"],
            ProxyHeader(ipv4(LOCALHOST, 39350), ipv4(LOCALHOST, 32819)),
        )

    def test_a_unique_id_and_a_checksum(self) -> None:
        data = corpus("headers")["haproxy-v2-ipv6-crc"]
        found = read(data)
        assert found is not None
        self.assert_read(data, found[0])
        self.assertEqual(found[0].source, ipv6(LOCALHOST_6, 48184))
        assert found[0].unique_id is not None
        self.assertEqual(found[0].unique_id[:8], b"00000000")

    def test_all_about_tls(self) -> None:
        found = read(corpus("headers")["haproxy-v2-tls"])
        assert found is not None
        header = found[0]
        self.assertEqual((header.alpn, header.authority), ("http/1.1", "www.example.com"))
        ssl = header.ssl
        assert ssl is not None
        self.assertEqual((ssl.client, ssl.verify, ssl.verified), (7, 0, True))
        self.assertEqual(
            (ssl.version, ssl.cn, ssl.cipher), ("TLSv1.3", "client one", "TLS_AES_256_GCM_SHA384")
        )
        self.assertEqual((ssl.key_alg, ssl.sig_alg), ("EC256", "ecdsa-with-SHA256"))
        self.assertEqual((ssl.group, ssl.sig_scheme, ssl.client_cert), (None, None, None))

    def test_a_damaged_one_is_found_by_its_checksum(self) -> None:
        data = corpus("headers")["haproxy-v2-tls"]
        for at in (17, 25, 40, 60, len(data) - 1):
            self.assert_bad(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :], "damaged")

    def test_others(self) -> None:
        found = read(corpus("headers")["unix-v2"])
        assert found is not None
        self.assertEqual(found[0].source, UNIXAddress(b"/run/app.sock"))
        self.assertEqual(found[0].netns, "blue")
        self.assertEqual(found[0].tlvs[1], TLV(0xEA, b"\x01vpce-08d2bf15fac5001c9"))
        self.assert_read(corpus("headers")["local-v2"], ProxyHeader(local=True))
        self.assert_read(corpus("headers")["datagram-v2"], ProxyHeader())
        self.assert_read(
            corpus("headers")["unspecified-v2"],
            ProxyHeader(tlvs=(TLV(Kind.AUTHORITY, b"www.example.com"),)),
        )


class Version1Tests(Reading):
    def test_ipv4(self) -> None:
        # The example of section 2.1.
        self.assert_read(
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            ProxyHeader(ipv4("192.168.0.1", 56324), ipv4("192.168.0.11", 443)),
        )
        self.assert_read(
            b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n",
            ProxyHeader(ipv4("255.255.255.255", 65535), ipv4("0.0.0.0", 0)),
        )

    def test_ipv6_however_it_is_written(self) -> None:
        self.assert_read(
            b"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 ::FFFF:192.0.2.1 1 2\r\n",
            ProxyHeader(ipv6("2001:db8::1", 1), ipv6("::ffff:192.0.2.1", 2)),
        )
        longest = b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        self.assert_read(
            b"PROXY TCP6 %b %b 65535 65535\r\n" % (longest, longest),
            ProxyHeader(ipv6(longest.decode(), 65535), ipv6(longest.decode(), 65535)),
        )

    def test_unknown(self) -> None:
        for rest in (b"", b" ", b" whatever", b" \0\xff", b" 1 2 3 4 5 6 7", b" TCP4 1.1.1.1"):
            self.assert_read(b"PROXY UNKNOWN%b\r\n" % rest, ProxyHeader())

    def test_glued_to_data(self) -> None:
        self.assertEqual(read(b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n"), (ProxyHeader(), 15))

    def test_the_beginning(self) -> None:
        for size, data in (
            (1, b"proxy TCP4 "),
            (3, b"PRI * HTTP/2.0"),
            (6, b"PROXYTCP4"),
            (6, b"PROXY\r\n"),
            (7, b"PROXY  TCP4 "),
            (7, b"PROXY tcp4 "),
            (10, b"PROXY TCP5 "),
            (11, b"PROXY TCP4\t"),
            (11, b"PROXY TCP44"),
            (8, b"PROXY UDP4 "),
            (14, b"PROXY UNKNOWNS\r\n"),
            (14, b"PROXY UNKNOWN\n"),
            (15, b"PROXY UNKNOWN\r\r\n"),
        ):
            self.assert_bad_from(data, size)

    def test_what_is_no_header(self) -> None:
        self.assert_bad(b"GET / HTTP/1.1\r\n", "47 45 54", "no PROXY header")
        self.assert_bad(b"\x16\3\1", "16 03 01")
        self.assert_bad(b"PROXY TCP5 1", "TCP4, TCP6 or UNKNOWN")

    def test_its_end(self) -> None:
        line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2"
        self.assert_bad_from(line + b"\n", len(line) + 1, "CR and LF")
        self.assert_bad_from(line + b"\r\r\n", len(line) + 2, "CR and LF")
        self.assert_bad_from(line + b"\rx\r\n", len(line) + 2, "CR and LF")
        self.assert_bad_from(b"PROXY UNKNOWN a\nb\r\n", 16, "CR and LF")
        self.assert_bad_from(b"PROXY UNKNOWN a\rb\r\n", 17, "CR and LF")

    def test_its_length(self) -> None:
        longest = b"PROXY UNKNOWN " + b"x" * (LONGEST_V1 - 16) + b"\r\n"
        self.assertEqual(len(longest), LONGEST_V1)
        self.assert_read(longest, ProxyHeader())
        longer = b"PROXY UNKNOWN x" + longest[14:]
        self.assert_bad_from(longer, LONGEST_V1, "within 107 bytes")
        self.assert_bad(longer, "within 107 bytes")
        self.assert_bad_from(b"PROXY TCP4 " + b"1" * 200, LONGEST_V1, "within 107 bytes")

    def test_what_is_between_its_words(self) -> None:
        for line in (
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 ",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3",
            b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2",
            b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2",
            b"PROXY TCP4 192.0.2.1\t192.0.2.2 1 2",
            b"PROXY TCP4 192.0.2.1\xa0192.0.2.2 1 2",
            b"PROXY TCP4 ",
            b"PROXY TCP6 ",
        ):
            self.assert_bad(line + b"\r\n", "one blank before each", repr(line.decode("latin-1")))

    def test_ports(self) -> None:
        for port in ("-1", "+1", "01", "00", "1_0", "0x1", "", "100000", "1.0", "\u0661", "1\0"):
            line = f"PROXY TCP4 192.0.2.1 192.0.2.2 1 {port}\r\n".encode()
            self.assert_bad(line)
            self.assert_bad(line.replace(b" 1 ", b" %b " % port.encode()))
        for ports in (b"65536 1", b"1 65536", b"99999 99999"):
            self.assert_bad(b"PROXY TCP4 192.0.2.1 192.0.2.2 %b\r\n" % ports, "highest port")

    def test_addresses(self) -> None:
        for family, hosts in (
            (
                "4",
                (
                    "1.2.3",
                    "1.2.3.4.5",
                    "1.2.3.256",
                    "01.2.3.4",
                    "1.2.3.04",
                    "1..3.4",
                    "1",
                    ".",
                    "::",
                ),
            ),
            ("4", ("::1", "0x1.2.3.4", "1.2.3.4%lo", "localhost", "1.2.3.-4", "1.2.3.4/8")),
            (
                "6",
                ("1.2.3.4", "1::2::3", ":::", "12345::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", ":"),
            ),
            (
                "6",
                ("fe80::1%lo", "g::", "[::1]", "::1.2.3", "::ffff:01.2.3.4", "1.2.3.4::", "::1/8"),
            ),
        ):
            good = "192.0.2.1" if family == "4" else "2001:db8::1"
            for host in hosts:
                for pair in (f"{host} {good}", f"{good} {host}"):
                    self.assert_bad(f"PROXY TCP{family} {pair} 1 2\r\n".encode())

    @FEW
    @given(st.text("0123456789.", min_size=1, max_size=16) | st.ip_addresses(v=4).map(str))
    def test_ipv4_is_what_python_takes_for_it(self, host: str) -> None:
        self.agrees("4", host, "192.0.2.1", ipaddress.IPv4Address)

    @FEW
    @given(st.text("0123afAF:.", min_size=1, max_size=40) | st.ip_addresses(v=6).map(str))
    def test_ipv6_is_what_python_takes_for_it(self, host: str) -> None:
        self.agrees("6", host, "2001:db8::1", ipaddress.IPv6Address)

    def agrees(
        self,
        family: str,
        host: str,
        other: str,
        parse: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address],
    ) -> None:
        data = f"PROXY TCP{family} {host} {other} 1 2\r\n".encode()
        try:
            expected = parse(host)
        except ValueError:
            self.assertRaises(BadHeader, read, data)
        else:
            found = read(data)
            assert found is not None
            source = found[0].source
            assert source is not None and not isinstance(source, UNIXAddress)
            self.assertEqual(parse(source.host), expected)


class Version2Tests(Reading):
    def test_tcp(self) -> None:
        self.assert_read(v2(TCP4_BLOCK), TCP4)
        hosts = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("::ffff:192.0.2.1")
        self.assert_read(
            v2(b"".join(host.packed for host in hosts) + b"\0\1\xff\xff", kind=0x21),
            ProxyHeader(ipv6("2001:db8::1", 1), ipv6("::ffff:192.0.2.1", 65535)),
        )

    def test_unix(self) -> None:
        for told, name in (
            (b"/run/app.sock", b"/run/app.sock"),
            (b"/run/app.sock\0rest of what was there", b"/run/app.sock"),
            (b"\0abstract", b"\0abstract"),
            (b"\0ab\0stract", b"\0ab\0stract"),
            (b"x" * 108, b"x" * 108),
            (b"\0" + b"x" * 107, b"\0" + b"x" * 107),
            (b"", None),
        ):
            found = read(v2(told.ljust(108, b"\0") * 2, kind=0x31))
            assert found is not None
            for address in (found[0].source, found[0].destination):
                assert isinstance(address, UNIXAddress)
                self.assertEqual(address.name, name)

    def test_local_skips_all_of_it(self) -> None:
        for rest in (b"", b"\0", TCP4_BLOCK, b"\3\0\4abcd", bytes(1000)):
            for kind in (0x00, 0x11, 0x21, 0x31, 0xFF):
                data = v2(rest, command=0x20, kind=kind)
                self.assertEqual(read(data + b"data"), (ProxyHeader(local=True), len(data)))

    def test_datagrams_are_told_no_addresses_of_but_all_else(self) -> None:
        more = b"\2\0\1a"
        self.assert_read(v2(TCP4_BLOCK, kind=0x12), ProxyHeader())
        self.assert_read(v2(TCP4_BLOCK + more, kind=0x12), ProxyHeader(tlvs=(TLV(2, b"a"),)))
        self.assert_read(v2(bytes(36) + more, kind=0x22), ProxyHeader(tlvs=(TLV(2, b"a"),)))
        self.assert_read(v2(bytes(216), kind=0x32), ProxyHeader())

    def test_unspecified(self) -> None:
        for kind in (0x00, 0x01, 0x02, 0x10, 0x20, 0x30):
            self.assert_read(v2(b"", kind=kind), ProxyHeader())
            self.assert_read(v2(b"\2\0\1a", kind=kind), ProxyHeader(tlvs=(TLV(2, b"a"),)))
            # Addresses of some form, and room for some.
            self.assert_read(v2(TCP4_BLOCK, kind=kind), ProxyHeader())
            self.assert_read(v2(bytes(36), kind=kind), ProxyHeader())

    def test_version_and_command(self) -> None:
        for byte in set(range(256)) - {0x20, 0x21}:
            data = SIGNATURE + bytes((byte,))
            self.assert_bad_from(
                data, 13, f"version {byte >> 4} with command {byte & 15}", "version 2"
            )

    def test_family_and_protocol(self) -> None:
        known = {0x00, 0x01, 0x02, 0x10, 0x11, 0x12, 0x20, 0x21, 0x22, 0x30, 0x31, 0x32}
        for byte in set(range(256)) - known:
            data = SIGNATURE + bytes((0x21, byte))
            self.assert_bad_from(data, 14, f"family {byte >> 4} and protocol {byte & 15}")

    def test_the_signature(self) -> None:
        for at in range(len(SIGNATURE)):
            data = SIGNATURE[:at] + bytes((SIGNATURE[at] ^ 0x80,))
            self.assert_bad_from(data, at + 1, "no PROXY header")

    def test_too_short_for_its_addresses(self) -> None:
        for kind, length in (
            (0x11, 12),
            (0x12, 12),
            (0x21, 36),
            (0x22, 36),
            (0x31, 216),
            (0x32, 216),
        ):
            data = v2(bytes(length - 1), kind=kind)
            self.assert_bad_from(data, 16, f"{length - 1} bytes", f"would have {length}")

    def test_the_longest(self) -> None:
        room = LONGEST - 16 - 12 - 3
        data = v2(TCP4_BLOCK + b"\xe0" + room.to_bytes(2, "big") + bytes(room))
        self.assertEqual(len(data), LONGEST)
        self.assertIsNone(read(data[:-1]))
        self.assertEqual(
            read(data),
            (ProxyHeader(TCP4.source, TCP4.destination, tlvs=(TLV(0xE0, bytes(room)),)), LONGEST),
        )
        for command in (0x20, 0x21):
            data = v2(b"", command=command, length=LONGEST - 15)
            self.assert_bad_from(data, 16, f"{LONGEST + 1} bytes", f"{LONGEST} is the most")


class LooksTests(SynchronousTestCase):
    def test_what_may_be_a_header(self) -> None:
        for data in (
            b"",
            b"P",
            b"PROXY",
            b"PROXY ",
            b"PROXY nonsense",
            b"\r",
            b"\r\n\r\n",
            SIGNATURE,
        ):
            self.assertTrue(looks_like(data), data)

    def test_what_is_none(self) -> None:
        for data in (
            b"p",
            b"PROXy",
            b"PROXY\r\n",
            b"POST /",
            b"\n",
            b"\r\n\r\nGET",
            b"\x16",
            b"\r\r",
        ):
            self.assertFalse(looks_like(data), data)


class AnyBytesTests(SynchronousTestCase):
    @FEW
    @given(st.binary(max_size=300), CHANCE)
    def test_any_bytes(self, data: bytes, chance: random.Random) -> None:
        check_header(data, chance)

    @FEW
    @given(st.text("PROXY TCP46UNKW0123.:af \r\n", max_size=120), CHANCE)
    def test_any_line(self, line: str, chance: random.Random) -> None:
        check_header(f"PROXY {line}\r\n".encode(), chance)

    @FEW
    @given(
        st.sampled_from((0x20, 0x21)),
        st.sampled_from((0x00, 0x11, 0x12, 0x21, 0x31)),
        st.binary(max_size=300),
        CHANCE,
    )
    def test_any_block(self, command: int, kind: int, block: bytes, chance: random.Random) -> None:
        check_header(v2(block, command=command, kind=kind), chance)

    @FEW
    @given(any_header(), CHANCE)
    def test_what_is_sent_is_read(self, header: ProxyHeader, chance: random.Random) -> None:
        sent = header.encode("v2")
        self.assertEqual(read(sent + b"data"), (header, len(sent)))
        check_header(sent, chance)
        line = header.encode("v1")
        expected = ProxyHeader(header.source, header.destination)
        if line == b"PROXY UNKNOWN\r\n":
            expected = ProxyHeader()
        self.assertEqual(read(line + b"data"), (expected, len(line)))


class PaddingTests(SynchronousTestCase):
    def test_zeros_behind_the_addresses_are_none_of_what_is_told(self) -> None:
        """Or a header would not be the same once it was sent on: of UDP no addresses are."""
        for kind, addresses in ((0x11, 12), (0x12, 12), (0x21, 36)):
            block = bytes(addresses + 36)
            data = SIGNATURE + bytes([0x21, kind]) + len(block).to_bytes(2, "big") + block
            answer = read(data)
            assert answer is not None
            self.assertEqual((answer[0].tlvs, answer[1]), ((), len(data)))
            sent = answer[0].encode("v2")
            again = read(sent)
            assert again is not None
            self.assertEqual(again[0].encode("v2"), sent)

"""What `fwdrelay.wire.proxyprotocol.headers` sends, held against the text of the specification."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct

from hypothesis import given
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from fwdrelay.wire.proxyprotocol import (
    LONGEST_V1,
    SIGNATURE,
    ProxyHeader,
    header,
    local_header,
)
from tests.case import SynchronousTestCase
from tests.wire.proxyprotocol.values import any_address, ipv4, ipv6

# As many as section 2.1 counts for each family.
LONGEST_TCP4, LONGEST_TCP6 = 56, 104


def plain(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """What an address is, however it is written."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


class Version1Tests(SynchronousTestCase):
    def test_ipv4(self) -> None:
        # The example of section 2.1.
        self.assertEqual(
            header("v1", ipv4("192.168.0.1", 56324), ipv4("192.168.0.11", 443)),
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        )

    def test_ipv6(self) -> None:
        self.assertEqual(
            header("v1", ipv6("2001:0db8:0::1", 1), ipv6("::1", 65535)),
            b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
        )

    def test_ipv4_on_a_socket_for_both_is_ipv4(self) -> None:
        self.assertEqual(
            header("v1", ipv6("::ffff:192.0.2.1", 1), ipv6("::ffff:192.0.2.2", 2)),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        )

    def test_mixed_families_are_told_in_ipv6_with_hexadecimal_groups(self) -> None:
        self.assertEqual(
            header("v1", ipv4("192.0.2.1", 1), ipv6("2001:db8::2", 2)),
            b"PROXY TCP6 ::ffff:c000:201 2001:db8::2 1 2\r\n",
        )

    def test_zones_mean_nothing_to_others(self) -> None:
        self.assertEqual(
            header("v1", ipv6("fe80::1%lo", 1), ipv6("fe80::2%eth0", 2)),
            b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n",
        )

    def test_unix(self) -> None:
        unix = UNIXAddress(b"/run/app.sock")
        for source, destination in ((unix, unix), (unix, ipv4("192.0.2.1", 1))):
            self.assertEqual(header("v1", source, destination), b"PROXY UNKNOWN\r\n")

    def test_of_our_own(self) -> None:
        self.assertEqual(local_header("v1"), b"PROXY UNKNOWN\r\n")
        self.assertEqual(
            local_header("v1", ipv4("192.0.2.1", 1), ipv4("192.0.2.2", 2)),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        )

    @given(any_address(), any_address())
    def test_always_as_section_2_1_wants_it(
        self, source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address
    ) -> None:
        told = header("v1", source, destination)
        found = re.fullmatch(rb"PROXY (TCP[46]) ([0-9a-f.:]+) ([0-9a-f.:]+) (\d+) (\d+)\r\n", told)
        assert found is not None, told
        family = socket.AF_INET if found[1] == b"TCP4" else socket.AF_INET6
        self.assertLessEqual(len(told), LONGEST_TCP4 if found[1] == b"TCP4" else LONGEST_TCP6)
        self.assertLess(len(told), LONGEST_V1)
        for text, port, address in (
            (found[2].decode(), found[4], source),
            (found[3].decode(), found[5], destination),
        ):
            socket.inet_pton(family, text)  # which is as strict as receivers are
            self.assertEqual("." in text, family == socket.AF_INET)
            self.assertEqual(plain(text), plain(address.host))
            self.assertEqual(port, b"%d" % address.port)


class Version2Tests(SynchronousTestCase):
    def test_ipv4(self) -> None:
        self.assertEqual(
            header("v2", ipv4("192.168.0.1", 56324), ipv4("192.168.0.11", 443)),
            bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c c0a80001 c0a8000b dc04 01bb"),
        )

    def test_ipv6(self) -> None:
        self.assertEqual(
            header("v2", ipv6("2001:db8::1", 1), ipv6("::1", 2)),
            bytes.fromhex(
                "0d0a0d0a000d0a515549540a 21 21 0024"
                "20010db8000000000000000000000001 00000000000000000000000000000001 0001 0002"
            ),
        )

    def test_ipv4_on_a_socket_for_both_is_ipv4(self) -> None:
        self.assertEqual(
            header("v2", ipv6("::ffff:192.0.2.1", 1), ipv6("::ffff:192.0.2.2", 2)),
            header("v2", ipv4("192.0.2.1", 1), ipv4("192.0.2.2", 2)),
        )

    def test_mixed_families_are_told_in_ipv6(self) -> None:
        told = header("v2", ipv6("2001:db8::2", 2), ipv4("192.0.2.1", 1))
        self.assertEqual(told[13:16], bytes.fromhex("21 0024"))
        self.assertEqual(told[32:48], bytes.fromhex("00000000000000000000ffffc0000201"))

    def test_unix(self) -> None:
        told = header("v2", UNIXAddress(None), UNIXAddress(b"/run/app.sock"))
        self.assertEqual(told[:16], SIGNATURE + bytes.fromhex("21 31 00d8"))
        self.assertEqual(told[16:124], bytes(108))
        self.assertEqual(told[124:], b"/run/app.sock".ljust(108, b"\0"))

    def test_abstract_unix(self) -> None:
        told = header("v2", UNIXAddress(b"\0relay"), UNIXAddress(b"\0" + b"x" * 107))
        self.assertEqual(told[16:], b"\0relay".ljust(108, b"\0") + b"\0" + b"x" * 107)

    def test_unix_and_internet_together_are_unknown(self) -> None:
        told = header("v2", UNIXAddress(None), ipv4("192.0.2.1", 1))
        self.assertEqual(told, SIGNATURE + bytes.fromhex("21 00 0000"))

    def test_of_our_own_tells_no_address(self) -> None:
        local = SIGNATURE + bytes.fromhex("20 00 0000")
        self.assertEqual(local_header("v2"), local)
        self.assertEqual(local_header("v2", ipv4("192.0.2.1", 1), ipv4("192.0.2.2", 2)), local)

    @given(any_address(), any_address())
    def test_always_as_section_2_2_wants_it(
        self, source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address
    ) -> None:
        told = header("v2", source, destination)
        signature, command, kind, length = struct.unpack_from("!12sBBH", told)
        self.assertEqual((signature, command), (SIGNATURE, 0x21))
        self.assertEqual(length, len(told) - 16)
        size = {0x11: 4, 0x21: 16}[kind]
        ends = told[16 : 16 + size], told[16 + size : 16 + 2 * size]
        ports = struct.unpack("!HH", told[16 + 2 * size :])
        for packed, port, address in zip(ends, ports, (source, destination), strict=True):
            found = ipaddress.ip_address(packed)
            self.assertEqual(plain(str(found)), plain(address.host))
            self.assertEqual(port, address.port)


class ValueTests(SynchronousTestCase):
    def test_one_value_in_both_versions(self) -> None:
        source, destination = ipv4("192.0.2.1", 1), ipv4("192.0.2.2", 2)
        told = ProxyHeader(source, destination)
        self.assertEqual(told.encode("v1"), header("v1", source, destination))
        self.assertEqual(told.encode("v2"), header("v2", source, destination))
        self.assertEqual(told, ProxyHeader(ipv4("192.0.2.1", 1), ipv4("192.0.2.2", 2)))

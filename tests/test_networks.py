"""`fwdrelay.networks`: who is in which, held against `ipaddress`."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.config.grammar import parse_network
from fwdrelay.networks import Networks, pack
from tests.case import SynchronousTestCase

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(texts: str) -> Networks:
    """
    @param texts: CIDRs, with spaces between.
    """
    return Networks(parse_network(text) for text in texts.split())


def around(network: Network) -> list[Address]:
    """The addresses where it begins and ends, and those next to it."""
    last = (1 << network.max_prefixlen) - 1
    first, end = int(network.network_address), int(network.broadcast_address)
    kind = type(network.network_address)
    return [kind(n) for n in (first - 1, first, end, end + 1) if 0 <= n <= last]


# Few different bits, so that networks overlap, touch and hold each other.
BITS = st.sampled_from([0, 1, 2, 3, 255, 1 << 31, 3 << 30, 1 << 96, 1 << 127, 0x20010DB8 << 96])


@st.composite
def _networks(draw: st.DrawFn) -> Network:
    bits = draw(BITS) ^ draw(BITS)
    if draw(st.booleans()):
        return ipaddress.IPv4Network((bits % (1 << 32), draw(st.integers(0, 32))), strict=False)
    return ipaddress.IPv6Network((bits, draw(st.integers(0, 128))), strict=False)


class NetworksTests(SynchronousTestCase):
    @given(st.lists(_networks(), max_size=12))
    def test_they_hold_what_ipaddress_says(self, some: Sequence[Network]) -> None:
        held = Networks(some)
        mapped = ipaddress.IPv6Network("::ffff:0:0/96")
        for address in {address for network in some for address in around(network)}:
            if address in mapped:
                continue  # is an IPv4 address, see below
            expected = any(address in network for network in some)
            self.assertEqual(str(address) in held, expected, (address, some))

    def test_of_none_nobody_is_in(self) -> None:
        for address in ("0.0.0.0", "255.255.255.255", "::", "ff02::1"):
            self.assertNotIn(address, Networks(()))

    def test_whether_there_are_any(self) -> None:
        self.assertFalse(Networks(()))
        for text in ("0.0.0.0/0", "10.0.0.1", "::/0", "::1"):
            self.assertTrue(networks(text))

    def test_one_family_says_nothing_of_the_other(self) -> None:
        self.assertNotIn("::1", networks("0.0.0.0/0"))
        self.assertNotIn("192.0.2.1", networks("::/0"))

    def test_a_mapped_address_is_an_ipv4_address(self) -> None:
        for address in ("::ffff:10.1.2.3", "::ffff:a01:203", "0:0:0:0:0:FFFF:10.1.2.3"):
            self.assertIn(address, networks("10.0.0.0/8"))
            self.assertNotIn(address, networks("::/0 11.0.0.0/8"))

    def test_a_mapped_network_is_an_ipv4_network(self) -> None:
        for held in (networks("::ffff:10.0.0.0/104"), networks("::ffff:10.1.2.3")):
            self.assertIn("10.1.2.3", held)
            self.assertIn("::ffff:10.1.2.3", held)
            self.assertNotIn("11.1.2.3", held)
        self.assertIn("1.2.3.4", networks("::ffff:0:0/96"))

    def test_zones_are_of_no_account(self) -> None:
        self.assertIn("fe80::1%eth0", networks("fe80::/10"))

    def test_what_is_no_address(self) -> None:
        for text in ("", "localhost", "10.0.0.1/8", "1.2.3", ":", "::g", "%eth0", "10.0.0.1%eth0"):
            for empty in ("", "::/0 0.0.0.0/0"):
                wrong = self.assertRaises(ValueError, networks(empty).__contains__, text)
                self.assertIn(repr(text), str(wrong))


class PackTests(SynchronousTestCase):
    @given(st.ip_addresses())
    def test_as_ipaddress_does(self, address: Address) -> None:
        mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped
        self.assertEqual(pack(str(address)), (mapped or address).packed)

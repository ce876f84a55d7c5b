"""`fwdrelay.address`: addresses as logs write them."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from fwdrelay.address import address_text, client_host, plain_host
from tests.case import SynchronousTestCase


class AddressTests(SynchronousTestCase):
    def test_text(self) -> None:
        for address, text in (
            (IPv4Address("TCP", "192.0.2.1", 80), "192.0.2.1:80"),
            (IPv6Address("TCP", "2001:db8::1", 80), "[2001:db8::1]:80"),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 80), "192.0.2.1:80"),
            (UNIXAddress("/run/a.sock"), "unix:/run/a.sock"),
            (UNIXAddress(b"/run/\xff"), "unix:/run/\udcff"),
            (UNIXAddress(b"\0name"), "unix:@name"),
            (UNIXAddress(None), "unix:"),
            (UNIXAddress(b""), "unix:"),
        ):
            self.assertEqual(address_text(address), text)

    def test_clients_by_ipv4_to_a_dual_socket_have_their_ipv4_address(self) -> None:
        self.assertEqual(plain_host("::ffff:192.0.2.1"), "192.0.2.1")
        self.assertEqual(plain_host("::ffff:1"), "::ffff:1")
        self.assertEqual(plain_host("::1"), "::1")

    def test_hosts_of_clients(self) -> None:
        self.assertEqual(client_host(IPv6Address("TCP", "::ffff:192.0.2.1", 80)), "192.0.2.1")
        self.assertIsNone(client_host(UNIXAddress(None)))

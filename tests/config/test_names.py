"""`fwdrelay.config.names`: what is understood, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.config import IdentityPattern
from fwdrelay.config.names import (
    parse_alpn,
    parse_identity,
    parse_server_name,
    parse_upstream_name,
)
from tests.case import SynchronousTestCase


class NamesTestCase(SynchronousTestCase):
    def assert_refused(self, parse: Callable[[str], object], text: str, *words: str) -> None:
        """`parse` refuses `text`, with a sentence that quotes it and has these words."""
        error = self.assertRaises(ValueError, parse, text)
        for word in (repr(text), *words):
            self.assertIn(word, str(error))


class ServerNameTests(NamesTestCase):
    def test_names(self) -> None:
        for text, name in {
            "www.example.com": "www.example.com",
            " WWW.Example.COM. ": "www.example.com",
            "*.example.com": "*.example.com",
            "*.com": "*.com",
            "localhost": "localhost",
            "_dmarc.a--b.example": "_dmarc.a--b.example",
            "4.example": "4.example",
            "xn--bcher-kva.example": "xn--bcher-kva.example",
            "bücher.example": "xn--bcher-kva.example",
            "*.BÜCHER.example.": "*.xn--bcher-kva.example",
            "_x.bücher。example": "_x.xn--bcher-kva.example",
            "faß.example": "xn--fa-hia.example",
            f"{'a' * 63}.example": f"{'a' * 63}.example",
        }.items():
            self.assertEqual(parse_server_name(text), name, text)

    def test_a_star_is_one_whole_label_in_front(self) -> None:
        for text in ("*", "www.*.com", "w*.example.com", "*.*.example.com", "*w.example.com"):
            self.assert_refused(parse_server_name, text, "the first one, as in *.example.com")

    def test_addresses(self) -> None:
        for text in ("192.0.2.1", "::1", "[::1]", "*.192.0.2.1", "192.0.2"):
            self.assert_refused(parse_server_name, text, "is an address", "write a name")

    def test_what_is_more_than_a_name(self) -> None:
        self.assert_refused(parse_server_name, "a.example:443", "it has no port; write a.example")
        self.assert_refused(parse_server_name, "https://a.example", "write the host alone")

    def test_what_is_none(self) -> None:
        for text in (
            *("", ".", "*.", "a..b", ".a", "a b", "-a.example", "a-.example", "a\0", "a,b"),
            *("a.b..", f"{'a' * 64}.example", "a." * 127 + "b", "。"),
        ):
            self.assert_refused(parse_server_name, text, "is not a server name")

    def test_what_has_no_ascii_form(self) -> None:
        for text in ("\u0378.example", "bü" * 32 + ".example", "ü-.example"):
            self.assert_refused(parse_server_name, text, "is not a server name: ")

    @given(st.text(max_size=12))
    def test_any_text_is_a_name_or_refused(self, text: str) -> None:
        try:
            name = parse_server_name(text)
        except ValueError:
            return
        self.assertTrue(name.isascii())
        self.assertEqual(parse_server_name(name), name)


class UpstreamNameTests(NamesTestCase):
    def test_names_and_addresses(self) -> None:
        for text, name in {
            "DB.Example.com.": "db.example.com",
            "bücher.example": "xn--bcher-kva.example",
            "192.0.2.1": "192.0.2.1",
            "2001:DB8:0::1": "2001:db8::1",
            "[::1]": "::1",
        }.items():
            self.assertEqual(parse_upstream_name(text), name, text)

    def test_what_is_none(self) -> None:
        for text, words in (
            ("*.example.com", "write what it is to cover"),
            ("db.example.com:5432", "it has no port; write db.example.com"),
            ("192.0.2", "is not an IP address"),
            ("a b", "is not a server name"),
        ):
            self.assert_refused(parse_upstream_name, text, words)

    def test_zones(self) -> None:
        error = self.assertRaises(ValueError, parse_upstream_name, "[fe80::1%eth0]")
        self.assertIn("leave out %eth0", str(error))


class ProtocolTests(NamesTestCase):
    def test_names(self) -> None:
        for text in ("h2", "http/1.1", "acme-tls/1", "a" * 255, "!~"):
            self.assertEqual(parse_alpn(text), text)

    def test_what_is_none(self) -> None:
        for text in ("", "a b", " h2", "h2\n", "é", "a" * 256):
            self.assert_refused(parse_alpn, text, "write h2 or http/1.1", "1 to 255 bytes")


class IdentityTests(NamesTestCase):
    def test_kinds(self) -> None:
        for text, pattern in {
            "cn:web-1": ("cn", "web-1"),
            "cn:Jane Doe": ("cn", "Jane Doe"),
            "cn:a:b": ("cn", "a:b"),
            "ou:Sales": ("ou", "Sales"),
            "dns:*.Example.com.": ("dns", "*.example.com"),
            "dns:web-*.example.com": ("dns", "web-*.example.com"),
            "dns:*.bücher.example": ("dns", "*.xn--bcher-kva.example"),
            "uri:spiffe://example.org/web/*": ("uri", "spiffe://example.org/web/*"),
            "uri:urn:A": ("uri", "urn:A"),
            "ip:192.0.2.1": ("ip", "192.0.2.1"),
            "ip:2001:DB8:0::1": ("ip", "2001:db8::1"),
        }.items():
            found = parse_identity(text)
            self.assertEqual((found.kind, found.value), pattern, text)

    def test_they_are_written_as_they_are_read(self) -> None:
        for text in ("cn:web-1", "dns:*.example.com", "ip:2001:db8::1"):
            self.assertEqual(str(parse_identity(text)), text)
        self.assertEqual(parse_identity(" ou:a "), IdentityPattern("ou", "a"))

    def test_kinds_that_are_none(self) -> None:
        for text, words in (
            ("web-1", "is not an identity: write one of cn:NAME, ou:NAME"),
            ("", "is not an identity"),
            ("dsn:a", "'dsn' is no kind of identity; did you mean dns? Known are cn:NAME"),
            ("CN:a", "did you mean cn?"),
            ("san:a", "'san' is no kind of identity"),
            ("spiffe://example.org/a", "'spiffe' is no kind of identity. Known are"),
        ):
            self.assert_refused(parse_identity, text, words)

    def test_values_that_are_none(self) -> None:
        for text, words in (
            ("cn:", "there is no name behind the colon"),
            ("ou: \t", "there is no name behind the colon"),
            ("cn:*", "a * stands for itself"),
            ("dns:", "is not a server name"),
            ("dns:a b", "is not a server name"),
            ("dns:192.0.2.1", "write ip:192.0.2.1"),
            ("dns:bü*.example", "is not a server name"),
            ("uri:", "is not a URI"),
            ("uri:example.org/a", "scheme and all"),
            ("uri:spiffe://example.org/a b", "is not a URI"),
            ("ip:10.0.0.0/8", "networks are for admit.allow and routes"),
            ("ip:localhost", "'localhost' is not an IP address"),
            ("ip:fe80::1%eth0", "leave out %eth0"),
        ):
            self.assert_refused(parse_identity, text, words)

    @given(st.sampled_from(["cn", "ou", "dns", "uri", "ip"]), st.text(max_size=12))
    def test_any_text_is_an_identity_or_refused(self, kind: str, text: str) -> None:
        try:
            pattern = parse_identity(f"{kind}:{text}")
        except ValueError as wrong:
            self.assertIn(f"{kind}:", str(wrong))
        else:
            self.assertEqual(parse_identity(str(pattern)), pattern)

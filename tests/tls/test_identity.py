"""`fwdrelay.tls.identity`: patterns, and the names of certificates."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.config import IdentityPattern
from fwdrelay.config.model import IdentityKind
from fwdrelay.tls.identity import find, matches
from tests.case import SynchronousTestCase
from tests.pki import Authority


def pattern(text: str) -> IdentityPattern:
    kind, _, value = text.partition(":")
    return IdentityPattern(cast(IdentityKind, kind), value)


class MatchesTests(SynchronousTestCase):
    def check(self, text: str, *, yes: tuple[str, ...], no: tuple[str, ...]) -> None:
        for value in yes:
            self.assertTrue(matches(pattern(text), value), (text, value))
        for value in no:
            self.assertFalse(matches(pattern(text), value), (text, value))

    def test_subjects_are_compared_as_they_are(self) -> None:
        for kind in ("cn", "ou"):
            self.check(f"{kind}:Web 1", yes=("Web 1",), no=("web 1", "Web 1 ", "Web"))
            self.check(f"{kind}:w*", yes=("w*",), no=("web",))

    def test_names(self) -> None:
        self.check(
            "dns:a.example",
            yes=("a.example", "A.EXAMPLE", "a.example."),
            no=("b.example", "xa.example"),
        )
        self.check(
            "dns:*.example",
            yes=("a.example", "B.example"),
            no=("example", ".example", "a.b.example", "*.example"),
        )
        self.check(
            "dns:web-*.*.example",
            yes=("web-1.eu.example",),
            no=("web-.eu.example", "web-1.example"),
        )

    def test_uris(self) -> None:
        self.check(
            "uri:spiffe://example.org/ns/*/sa/web",
            yes=("spiffe://example.org/ns/prod/sa/web", "spiffe://example.org/ns/a.b/sa/web"),
            no=(
                "spiffe://example.org/ns//sa/web",
                "spiffe://example.org/ns/a/b/sa/web",
                "spiffe://example.com/ns/prod/sa/web",
                "spiffe://example.org/ns/prod/sa/web/x",
                "SPIFFE://example.org/ns/prod/sa/web",
            ),
        )
        self.check(
            "uri:spiffe://example.org/*",
            yes=("spiffe://example.org/web",),
            no=("spiffe://example.org/", "spiffe://example.org", "spiffe://example.org/a/b"),
        )
        self.check(
            "uri:spiffe://*.example.org/web",
            yes=("spiffe://eu.example.org/web",),
            no=("spiffe://evil/.example.org/web", "spiffe://a.b.example.org/web"),
        )
        self.check("uri:spiffe://a.*", yes=("spiffe://a.b",), no=("spiffe://a/b", "spiffe://a.b/c"))
        self.check(
            "uri:urn:x:*", yes=("urn:x:1", "urn:x:1.2"), no=("urn:x:", "urn:x:1/2", "urn:y:1")
        )

    def test_addresses(self) -> None:
        self.check("ip:192.0.2.1", yes=("192.0.2.1",), no=("192.0.2.10", "192.0.2.0/24"))
        self.check("ip:2001:db8::1", yes=("2001:DB8:0::1",), no=("2001:db8::2",))

    @given(st.text("a*", max_size=6), st.text("a", max_size=8))
    def test_stars_stand_for_one_character_at_least(self, wanted: str, value: str) -> None:
        """Of one letter only, so how many there are says all."""
        letters = wanted.count("a")
        stars = len(wanted) - letters
        fits = len(value) >= letters + stars if stars else len(value) == letters
        self.assertEqual(matches(pattern(f"uri:{wanted}"), value), fits)

    @given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
    def test_as_a_regular_expression(self, wanted: str, value: str) -> None:
        import re

        expression = ".+".join(map(re.escape, wanted.split("*")))
        fits = re.fullmatch(expression, value) is not None
        self.assertEqual(matches(pattern(f"uri:{wanted}"), value), fits)


class FindTests(SynchronousTestCase):
    who = (
        Authority()
        .vouch(
            "alice",
            ou=["ops", "dev"],
            dns=["a.example", "b.example"],
            uri=["spiffe://x/y"],
            ip=["192.0.2.1"],
        )
        .certificate
    )

    def find(self, *allowed: str) -> str | None:
        return find(self.who, [pattern(each) for each in allowed])

    def test_each_kind_is_found(self) -> None:
        for text in (
            "cn:alice",
            "ou:dev",
            "dns:b.example",
            "uri:spiffe://x/y",
            "ip:192.0.2.1",
        ):
            self.assertEqual(self.find("cn:bob", text), text)

    def test_no_kind_is_taken_for_another(self) -> None:
        for text in ("ou:alice", "cn:a.example", "dns:alice", "uri:a.example", "dns:192.0.2.1"):
            self.assertIsNone(self.find(text), text)

    def test_what_matched_is_told(self) -> None:
        self.assertEqual(self.find("dns:*.example"), "dns:a.example")
        self.assertEqual(self.find(), "uri:spiffe://x/y")

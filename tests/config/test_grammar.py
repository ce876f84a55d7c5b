"""`fwdrelay.config.grammar`: what is understood, and what is said of the rest."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.config import TargetConfig
from fwdrelay.config.grammar import (
    parse_count,
    parse_duration,
    parse_network,
    parse_port,
    parse_target,
)
from tests.case import SynchronousTestCase


class GrammarTestCase(SynchronousTestCase):
    def assert_refused(self, parse: Callable[[str], object], text: str, *words: str) -> None:
        """`parse` refuses `text`, with a sentence that quotes it and has these words."""
        error = self.assertRaises(ValueError, parse, text)
        for word in (repr(text), *words):
            self.assertIn(word, str(error))


class DurationTests(GrammarTestCase):
    def test_units(self) -> None:
        for text, seconds in {
            "500ms": 0.5,
            "30s": 30.0,
            "5m": 300.0,
            "1h": 3600.0,
            "1.5s": 1.5,
            "0s": 0.0,
            " 2s ": 2.0,
        }.items():
            self.assertEqual(parse_duration(text), seconds, text)

    def test_zero_alone_is_off(self) -> None:
        self.assertEqual(parse_duration("0"), 0.0)

    def test_all_else_is_refused_with_examples(self) -> None:
        for text in (
            "",
            "5",
            "s",
            "-1s",
            "1d",
            "1 s",
            "1e3s",
            "1.s",
            ".5s",
            "1s1s",
            "inf",
            "nan",
            "1S",
        ):
            self.assert_refused(parse_duration, text, "500ms, 30s, 5m, 1h, or 0 for off")

    @given(st.text(max_size=8))
    def test_any_text_is_a_duration_or_refused(self, text: str) -> None:
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            self.assertIn("is not a duration", str(error))
        else:
            self.assertGreaterEqual(seconds, 0.0)


class NumberTests(GrammarTestCase):
    def test_counts(self) -> None:
        self.assertEqual([parse_count(text) for text in ("0", "7", " 12 ")], [0, 7, 12])

    def test_what_is_no_count(self) -> None:
        for text in ("", "-1", "1.5", "1_000", "0x10", "many", "²", "٣", "9" * 13):
            self.assert_refused(parse_count, text, "whole number from 0 up")

    def test_ports(self) -> None:
        self.assertEqual([parse_port(text) for text in ("1", "65535")], [1, 65535])
        self.assertEqual(parse_port("0", lowest=0), 0)

    def test_what_is_no_port(self) -> None:
        for text in ("", "0", "65536", "-1", "http", "80.0", "٨٠"):
            self.assert_refused(parse_port, text, "a number from 1 to 65535")


class NetworkTests(GrammarTestCase):
    def test_networks_and_single_addresses(self) -> None:
        for text, network in {
            "10.0.0.0/8": "10.0.0.0/8",
            "10.1.2.3/8": "10.0.0.0/8",
            "192.0.2.1": "192.0.2.1/32",
            "2001:db8::/32": "2001:db8::/32",
            "::1": "::1/128",
            " 10.0.0.0/8 ": "10.0.0.0/8",
        }.items():
            self.assertEqual(parse_network(text), ipaddress.ip_network(network), text)

    def test_what_is_no_network(self) -> None:
        for text in ("", "localhost", "10.0.0.0/33", "10.0.0", "::/129", "10.0.0.0/8/8"):
            self.assert_refused(parse_network, text, "10.0.0.0/8, 2001:db8::/32 or one address")


class TargetTests(GrammarTestCase):
    def test_addresses(self) -> None:
        for text, target in {
            "localhost:80": TargetConfig(host="localhost", port=80),
            "10.0.0.9:80": TargetConfig(host="10.0.0.9", port=80),
            "a-b.c_d.example.:80": TargetConfig(host="a-b.c_d.example.", port=80),
            "[::1]:80": TargetConfig(host="::1", port=80),
            "unix:/run/app.sock": TargetConfig(path="/run/app.sock"),
            "unix:@name": TargetConfig(path="@name"),
        }.items():
            self.assertEqual(parse_target(text), target, text)

    def test_options(self) -> None:
        self.assertEqual(
            parse_target("h:1,weight=5,backup,max-sessions=9,name=b one"),
            TargetConfig(host="h", port=1, weight=5, backup=True, max_sessions=9, name="b one"),
        )
        self.assertEqual(parse_target("h:1 , weight = 2 , backup").weight, 2)
        self.assertEqual(parse_target("unix:/a,weight=0").weight, 0)

    def test_what_is_no_address(self) -> None:
        for text, words in {
            "": "is not a target",
            "localhost": "is not a target",
            ":80": "is not a target",
            "localhost:": "is not a port",
            "localhost:http": "is not a port",
            "localhost:0": "is not a port",
            "localhost:65536": "is not a port",
            "::1:80": "[::1]:80",
            "[::g]:80": "not an IPv6 address",
            "[]:80": "not an IPv6 address",
            "1.2.3:80": "not an IPv4 address",
            "1.2.3.456:80": "not an IPv4 address",
            "-a.example:80": "not a host name",
            "a..example:80": "not a host name",
            "a b:80": "not a host name",
            "http://example:80": "",
            "unix:": "1 to 107 bytes",
            "unix:/" + "a" * 107: "1 to 107 bytes",
            "srv:_http._tcp.example": "SRV",
        }.items():
            self.assert_refused(parse_target, text, words)

    def test_options_that_are_none(self) -> None:
        for text, words in {
            "h:1,": "it takes weight=N",
            "h:1,wieght=2": "it takes weight=N",
            "h:1,weight": "it takes weight=N",
            "h:1,backup=yes": "it takes weight=N",
            "h:1,name=": "it takes weight=N",
            "h:1,weight=-1": "whole number",
            "h:1,max-sessions=lots": "whole number",
            "h:1,max_sessions=1": "it takes weight=N",
            "h:1,weight=1,weight=2": "says weight twice",
            "h:1,backup,backup": "says backup twice",
        }.items():
            self.assert_refused(parse_target, text, words)

    @given(st.text("a.:[]-0%,=@/ \0é", max_size=12))
    def test_any_text_is_a_target_or_refused(self, text: str) -> None:
        try:
            target = parse_target(text)
        except ValueError as error:
            self.assertIn(repr(text), str(error))
        else:
            self.assertTrue(target.path or (target.host and 1 <= target.port <= 65535))

    @given(
        st.one_of(
            st.ip_addresses(v=4).map(str),
            st.ip_addresses(v=6).map(str),
            st.from_regex(r"[a-z]([a-z0-9]{0,8}[a-z0-9])?(\.[a-z]{1,8}){0,3}", fullmatch=True),
        ),
        st.integers(1, 65535),
    )
    def test_an_address_is_written_as_it_is_read(self, host: str, port: int) -> None:
        target = TargetConfig(host=host, port=port)
        self.assertEqual(parse_target(target.address), target)
        self.assertEqual(target.label, target.address)

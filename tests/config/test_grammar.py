"""`fwdrelay.config.grammar`: what is understood, and what is said of the rest."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.config import BALANCES, DiscoverConfig, Rate, TargetConfig
from fwdrelay.config.grammar import (
    Endpoint,
    is_loopback,
    parse_address,
    parse_admin,
    parse_balance,
    parse_count,
    parse_discover,
    parse_duration,
    parse_endpoint,
    parse_escapes,
    parse_file,
    parse_log,
    parse_name,
    parse_nameserver,
    parse_network,
    parse_plugin,
    parse_port,
    parse_rate,
    parse_regex,
    parse_request_host,
    parse_request_path,
    parse_target,
    parse_target_or_srv,
    parse_workers,
    split_admin,
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

    def test_what_is_too_long(self) -> None:
        self.assertEqual(parse_duration("32767s", 32767), 32767.0)
        self.assert_refused(
            lambda text: parse_duration(text, 2147483), "2147484s", "2147483s is the most"
        )
        self.assert_refused(parse_duration, "1000000h", "315360000s is the most")

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

    def test_workers(self) -> None:
        self.assertEqual([parse_workers(text) for text in ("0", " 2 ", "64")], [0, 2, 64])
        for text in ("", "-1", "65", "2.0", "all", "9" * 10):
            self.assert_refused(parse_workers, text, "whole number from 0 to 64")

    def test_ports(self) -> None:
        self.assertEqual([parse_port(text) for text in ("1", "65535")], [1, 65535])
        self.assertEqual(parse_port("0", lowest=0), 0)

    def test_what_is_no_port(self) -> None:
        for text in ("", "0", "65536", "-1", "http", "80.0", "٨٠"):
            self.assert_refused(parse_port, text, "a number from 1 to 65535")


class RateTests(GrammarTestCase):
    def test_units(self) -> None:
        for text, rate in {
            "100/s": Rate(100, 1.0),
            "10/m": Rate(10, 60.0),
            " 5/h ": Rate(5, 3600.0),
            "999999999/s": Rate(999999999, 1.0),
        }.items():
            self.assertEqual(parse_rate(text), rate, text)

    def test_zero_is_off(self) -> None:
        for text in ("0", " 0 ", "0/s", "000/h"):
            self.assertEqual(parse_rate(text), Rate(), text)
            self.assertFalse(parse_rate(text))

    def test_what_is_none(self) -> None:
        for text in (
            *("", "100", "/s", "100/", "-1/s", "1.5/s", "100 / s", "100/S", "100/d", "100/ms"),
            *("100/2s", "many", "٣/s", "9" * 10 + "/s", "00"),
        ):
            self.assert_refused(parse_rate, text, "write 100/s, 10/m, 5/h, or 0 for off")

    @given(st.text(max_size=8))
    def test_any_text_is_a_rate_or_refused(self, text: str) -> None:
        try:
            rate = parse_rate(text)
        except ValueError as error:
            self.assertIn("is not a rate", str(error))
        else:
            self.assertGreaterEqual(rate.count, 0)


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
            "[2001:DB8:0:0::1]:80": TargetConfig(host="2001:db8::1", port=80),
            "[::ffff:c000:201]:80": TargetConfig(host="::ffff:192.0.2.1", port=80),
            "[FE80::1%eth0]:80": TargetConfig(host="fe80::1%eth0", port=80),
            "bücher.example:80": TargetConfig(host="bücher.example", port=80),
            "unix:/run/app.sock": TargetConfig(path="/run/app.sock"),
            "unix:@name": TargetConfig(path="@name"),
        }.items():
            self.assertEqual(parse_target(text), target, text)

    def test_options(self) -> None:
        self.assertEqual(
            parse_target("h:1,weight=5,backup,max-sessions=9,name=b1"),
            TargetConfig(host="h", port=1, weight=5, backup=True, max_sessions=9, name="b1"),
        )
        self.assertEqual(parse_target("h:1 , weight = 2 , backup").weight, 2)
        self.assertEqual(parse_target("unix:/a,weight=1").weight, 1)

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
            "ü" * 60 + ":80": "not a host name",  # longer than 63 as DNS has it
            "http://example:80": "write HOST:PORT",
            "::1": "write HOST:PORT",
            "[::1]": "write HOST:PORT",
            "a:b:80": "write HOST:PORT",
            "unix:": "1 to 107 bytes",
            "unix:/" + "a" * 107: "1 to 107 bytes",
            "srv:_http._tcp.example": "no single target",
            "unix:/a\nb": "no control characters",
            "unix:/a\0b": "no control characters",
            "dns:app.example:80": "`discover` of a pool",
            "file:targets.json": "`discover` of a pool",
        }.items():
            self.assert_refused(parse_target, text, words)
        self.assertEqual(parse_target("dns:53").host, "dns")

    def test_options_that_are_none(self) -> None:
        for text, words in {
            "h:1,": "it takes weight=N",
            "h:1,wieght=2": "it takes weight=N",
            "h:1,weight": "it takes weight=N",
            "h:1,backup=yes": "it takes weight=N",
            "h:1,name=": "it takes weight=N",
            "h:1,weight=-1": "whole number",
            "h:1,weight=0": "weight=0 would give it no session: leave the target out",
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
            st.ip_addresses(v=6).map(lambda ip: socket.inet_ntop(socket.AF_INET6, ip.packed)),
            st.from_regex(r"[a-z]([a-z0-9]{0,8}[a-z0-9])?(\.[a-z]{1,8}){0,3}", fullmatch=True),
        ),
        st.integers(1, 65535),
    )
    def test_an_address_is_written_as_it_is_read(self, host: str, port: int) -> None:
        target = TargetConfig(host=host, port=port)
        self.assertEqual(parse_target(target.address), target)
        self.assertEqual(target.label, target.address)


class DiscoverTests(GrammarTestCase):
    def test_own_kinds(self) -> None:
        for text, scheme, argument in (
            ("dns:app.example.com:80", "dns", "app.example.com:80"),
            ("srv:_http._tcp.example.com", "srv", "_http._tcp.example.com"),
            ("file:targets.txt", "file", "targets.txt"),
            ("file:/etc/fwdrelay/a:b", "file", "/etc/fwdrelay/a:b"),
        ):
            found = parse_discover(text)
            self.assertEqual(found, DiscoverConfig(scheme=scheme, argument=argument))
            self.assertEqual(str(found), text)

    def test_options(self) -> None:
        self.assertEqual(
            parse_discover("dns:a:80,backup,max-sessions=5"),
            DiscoverConfig(scheme="dns", argument="a:80", backup=True, max_sessions=5),
        )
        self.assertEqual(parse_discover("dns:a:80 , max-sessions = 5 , backup").max_sessions, 5)

    def test_a_plugin_gets_its_argument_with_all_commas(self) -> None:
        self.assertEqual(
            parse_discover("etcd:/a,b=c,backup"),
            DiscoverConfig(scheme="etcd", argument="/a,b=c", backup=True),
        )

    def test_what_is_none(self) -> None:
        for text, words in {
            "": "dns:HOST:PORT, srv:_service._proto.domain, file:PATH",
            "dns": "is not a discovery",
            "dns:": "is not a discovery",
            ":x": "is not a discovery",
            "a b:x": "is not a discovery",
            "dns:app": "write dns:HOST:PORT",
            "dns:app:http": "is not a port",
            "dns:10.0.0.1:80": "is no name to look up",
            "dns:[::1]:80": "is no name to look up",
            "dns:a b:80": "not a host name",
            "dns:a:80,weight=2": "max-sessions=N and the flag backup",
            "dns:a:80,backup,backup": "says backup twice",
            "dns:a:80,max-sessions=x": "whole number",
            "srv:http": "srv:_http._tcp.example.com",
            "srv:_http.example.com": "srv:_http._tcp.example.com",
            "srv:_http._tcp.": "srv:_http._tcp.example.com",
            "srv:_http._tcp.a b": "not a host name",
            "srv:_http._tcp.a:80": "not a host name",
            "file:a\0b": "NUL",
            "file:a,weight=2": "max-sessions=N and the flag backup",
        }.items():
            self.assert_refused(parse_discover, text, words)

    def test_srv_among_targets(self) -> None:
        self.assertEqual(
            parse_target_or_srv("srv:_a._tcp.b,backup"), parse_discover("srv:_a._tcp.b,backup")
        )
        self.assertEqual(parse_target_or_srv("dns:80"), parse_target("dns:80"))

    @given(st.text("dns:rvfile_.tcp,backup=-maxsion0 /", max_size=20))
    def test_any_text_is_a_discovery_or_refused(self, text: str) -> None:
        try:
            found = parse_discover(text)
        except ValueError as error:
            self.assertIn(repr(text), str(error))
        else:
            self.assertTrue(found.scheme and found.argument)


class NamesTests(GrammarTestCase):
    def test_nameservers(self) -> None:
        for text, server in {
            "192.0.2.1": "192.0.2.1:53",
            "192.0.2.1:5353": "192.0.2.1:5353",
            "2001:db8::1": "[2001:db8::1]:53",
            "[2001:db8::1]": "[2001:db8::1]:53",
            "[2001:DB8::1]:5353": "[2001:db8::1]:5353",
        }.items():
            self.assertEqual(parse_nameserver(text), server, text)
        for text in (
            "",
            "dns.example.com",
            "192.0.2.1:",
            "192.0.2.1:0",
            "[192.0.2.1]:53",
            "::1]:5",
        ):
            self.assert_refused(parse_nameserver, text, "ADDR:PORT, [IPV6]:PORT")

    def test_balances(self) -> None:
        for text in (*BALANCES, "fairest", "fairest:of=them all"):
            self.assertEqual(parse_balance(text), text)
        for text in ("", "round robin", ":x"):
            self.assert_refused(parse_balance, text, *BALANCES, "NAME:ARGUMENT")
        self.assert_refused(parse_balance, "first:2", "first takes nothing")

    def test_plugins(self) -> None:
        for text in ("geo", "geo:DE,FR"):
            self.assertEqual(parse_plugin(text), text)
        for text in ("", ":x", "a b"):
            self.assert_refused(parse_plugin, text, "NAME or NAME:ARGUMENT")

    def test_names(self) -> None:
        self.assertEqual(parse_name("web-1.Example_a"), "web-1.Example_a")
        for text in ("", "a b", "é", "a/b", "a\n"):
            self.assert_refused(parse_name, text, "letters, digits")

    def test_addresses(self) -> None:
        self.assertEqual([parse_address("192.0.2.1"), parse_address("::1")], ["192.0.2.1", "::1"])
        for text in ("", "localhost", "192.0.2.0/24", "[::1]"):
            self.assert_refused(parse_address, text, "is not an IP address")

    def test_logs(self) -> None:
        self.assertEqual([parse_log(text) for text in ("off", "/a")], ["off", "/a"])
        for text in ("", "a\0b"):
            self.assert_refused(parse_log, text, "off, stdout, journald or the path of a file")

    def test_admin(self) -> None:
        for text, meant in (
            ("off", "off"),
            ("127.0.0.1:9678", "127.0.0.1:9678"),
            ("localhost:0", "127.0.0.1:0"),
            ("[::1]:9678", "[::1]:9678"),
            (" 0.0.0.0:1 ", "0.0.0.0:1"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:a.sock", f"unix:{Path.cwd()}/a.sock"),
        ):
            self.assertEqual(parse_admin(text), meant)
        for text in (
            *("", "on", "9678", ":9678", "127.0.0.1", "::1:9678", "[127.0.0.1]:1", "host:1"),
            *("127.0.0.1:65536", "unix:", "unix:a\0b", "[::1:1"),
        ):
            self.assert_refused(parse_admin, text, "write ADDR:PORT, [IPV6]:PORT, unix:PATH or off")

    def test_admin_of_this_machine_alone(self) -> None:
        for text in ("off", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "unix:/a"):
            self.assertTrue(is_loopback(parse_admin(text)), text)
        for text in ("0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1"):
            self.assertFalse(is_loopback(parse_admin(text)), text)
        self.assertEqual(split_admin("[::1]:9678"), ("::1", 9678))

    def test_files(self) -> None:
        for text in ("web.pem", "/etc/fwdrelay/tls/web.pem", "a b"):
            self.assertEqual(parse_file(text), text)
        self.assert_refused(parse_file, "a\0b", "has no NUL")
        error = self.assertRaises(ValueError, parse_file, "")
        self.assertEqual(str(error), "it is empty: write the path of a file")


class HealthTests(GrammarTestCase):
    def test_request_paths(self) -> None:
        for text in ("/", "/health?a=b%20c"):
            self.assertEqual(parse_request_path(text), text)
        for text in ("", "health", "/a b", "/a\r\nHost: b", "/é"):
            self.assert_refused(parse_request_path, text, "begins with /")

    def test_hosts_of_requests(self) -> None:
        for text in ("a", "www.example.com", "10.0.0.7:8080", "[::1]", "[2001:db8::7]:80", "_x"):
            self.assertEqual(parse_request_host(text), text)
        for text in ("", "a b", "a\r\nX: y", "http://a", "a/b", "a:", "a:x", "::1", "ü"):
            self.assert_refused(parse_request_host, text, "is not a host")

    def test_regular_expressions(self) -> None:
        for text in ("", r"^\+PONG\r\n", "é", "[[a]"):
            self.assertEqual(parse_regex(text), text)
        for text in ("(", "a{2,1}", "a{99999999999999999999}", "*"):
            self.assert_refused(parse_regex, text, "is not a regular expression: ")

    def test_escapes(self) -> None:
        for text, octets in {
            "": b"",
            "PING": b"PING",
            r"PING\r\n": b"PING\r\n",
            r"\t\x00\xfF\\x41": b"\t\x00\xff\\x41",
            "é": b"\xc3\xa9",
        }.items():
            self.assertEqual(parse_escapes(text), octets, text)
        for text in ("\\", "a\\q", "\\x1", "\\xgg", "\\0"):
            self.assert_refused(parse_escapes, text, "is not an escape")

    @given(st.binary(max_size=20))
    def test_any_bytes_can_be_written(self, octets: bytes) -> None:
        self.assertEqual(parse_escapes("".join(f"\\x{octet:02x}" for octet in octets)), octets)


class EndpointTests(GrammarTestCase):
    def test_what_they_say(self) -> None:
        for text, endpoint in {
            "tcp:80": Endpoint("tcp", port=80, host="0.0.0.0"),
            "tcp:80:interface=127.0.0.1": Endpoint("tcp", port=80, host="127.0.0.1"),
            "tcp:80:127.0.0.1": Endpoint("tcp", port=80, host="127.0.0.1"),
            r"tcp:interface=\:\:1:port=80:backlog=5": Endpoint("tcp", port=80, host="::1"),
            "tcp6:80:interface=": Endpoint("tcp6", port=80, host="0.0.0.0"),
            "tcp6:80": Endpoint("tcp6", port=80, host="::"),
            r"tcp6:80:50:\:\:1": Endpoint("tcp6", port=80, host="::1"),
            "unix:/run/a:mode=660": Endpoint("unix", name="/run/a"),
            r"unix:/run/a\:b\=c\\d": Endpoint("unix", name=r"/run/a:b=c\d"),
            "unix:address=@a": Endpoint("unix", name="@a"),
            "systemd:domain=INET:index=0": Endpoint("systemd", name="domain=INET:index=0"),
        }.items():
            self.assertEqual(parse_endpoint(text), text)
            self.assertEqual(Endpoint.of(text), endpoint, text)

    def test_what_is_none(self) -> None:
        for text, words in {
            "": "tcp:, tcp6:, unix:, systemd:",
            "tcp": "tcp:, tcp6:, unix:, systemd:",
            "ssl:443": "tcp:, tcp6:, unix:, systemd:",
            "tcp:": "is not a tcp: endpoint",
            "tcp:http": "is not a tcp: endpoint",
            "tcp:80:colour=red": "is not a tcp: endpoint",
            "tcp:80\\": "is not a tcp: endpoint",
            "tcp6:x": "is not a tcp6: endpoint",
            "tcp6:80:interface=::1": "with \\: for each colon",
            "tcp:65536": "a number from 0 to 65535",
            "tcp:-1": "a number from 0 to 65535",
            "unix:": "names no path",
            "unix:address=": "names no path",
            "unix:/" + "a" * 107: "1 to 107 bytes",
            "unix:/a\0": "no control characters",
            "unix:/a:mode=rw": "is not a unix: endpoint: write unix:PATH",
        }.items():
            self.assert_refused(parse_endpoint, text, words)

    @given(
        st.sampled_from(["tcp:", "tcp6:", "unix:"]),
        st.lists(
            st.sampled_from(
                [
                    *(":", "=", "\\", "port=", "interface=", "address=", "backlog=", "mode=600"),
                    *("80", "/a", "@", "::1", r"\:\:1", "127.0.0.1", "\n", ""),
                ]
            ),
            max_size=6,
        ),
    )
    def test_any_text_is_one_that_says_where_or_refused(self, kind: str, rest: list[str]) -> None:
        text = kind + "".join(rest)
        try:
            parse_endpoint(text)
        except ValueError as error:
            self.assertIn(repr(text), str(error))
        else:
            self.assertLessEqual(Endpoint.of(text).port, 65535)

"""`fwdrelay.tap`: from a command line to a `Config`, and what is said of one that is wrong."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.application.service import IService, IServiceMaker
from twisted.plugin import getPlugins

from fwdrelay import parts
from fwdrelay.config import (
    ACCESS_LOG_FORMATS,
    BALANCES,
    PUMPS,
    Admit,
    Config,
    DiscoverConfig,
    IdentityPattern,
    ListenerConfig,
    ListenerTLSConfig,
    PoolConfig,
    ProxyProtocolConfig,
    RelayConfig,
    TargetConfig,
    Timeouts,
    UpstreamTLSConfig,
)
from fwdrelay.config.grammar import parse_network
from fwdrelay.errors import ConfigError, ConfigErrors
from fwdrelay.tap import EX_CONFIG, EX_USAGE, Options
from tests.case import SynchronousTestCase

LEAST = ("--port", "5678", "--target", "localhost:80")


def config_of(*arguments: str) -> Config:
    """What is asked for by a command line."""
    options = Options()
    options.parseOptions(arguments)
    return options.config


class TapTestCase(SynchronousTestCase):
    def listener(self, *arguments: str) -> ListenerConfig:
        """The one listener that is asked for by the least one can say, and these."""
        (listener,) = config_of(*LEAST, *arguments).listeners
        return listener

    def pool(self, *arguments: str) -> PoolConfig:
        """The one pool."""
        (pool,) = config_of(*arguments).pools
        return pool

    def refused(self, *arguments: str, status: int = EX_USAGE) -> str:
        """The one line that a command line is refused with."""
        stderr = io.StringIO()
        with mock.patch.object(sys, "__stderr__", stderr), redirect_stdout(io.StringIO()):
            stopped = self.assertRaises(SystemExit, config_of, *arguments)
        self.assertEqual(stopped.code, status)
        told = stderr.getvalue()
        self.assertRegex(told, r"\Afwdrelay: [^\n]+ \(see twistd fwdrelay --help\)\n\Z")
        return told


class OptionsTests(TapTestCase):
    def test_the_least_one_can_say(self) -> None:
        config = config_of(*LEAST)
        (listener,) = config.listeners
        self.assertRegex(listener.listen[0], r"^tcp:5678:interface=(\\:\\:|0\.0\.0\.0)$")
        self.assertEqual(
            config,
            Config(
                listeners=(
                    ListenerConfig(
                        name=listener.name,
                        listen=listener.listen,
                        pool=listener.pool,
                        timeouts=Timeouts(connect=5.0, idle=3600.0, half_close=60.0, lifetime=0.0),
                        admit=Admit(),
                    ),
                ),
                pools=(
                    PoolConfig(
                        name=listener.pool,
                        targets=(TargetConfig(host="localhost", port=80),),
                        balance="round-robin",
                    ),
                ),
                demo=False,
                relay=RelayConfig(
                    pump="auto",
                    keepalive=60.0,
                    user_timeout=0.0,
                    access_log="stdout",
                    access_log_format="json",
                    drain_timeout=30.0,
                    nameservers=(),
                ),
            ),
        )

    def test_the_short_ones(self) -> None:
        self.assertEqual(config_of("-p", "5678", "-t", "localhost:80"), config_of(*LEAST))

    def test_where_to_listen(self) -> None:
        for arguments, listen in (
            (("-p", "0", "--interface", "127.0.0.1"), ("tcp:0:interface=127.0.0.1",)),
            (("-p", "1", "--interface", "::1"), (r"tcp:1:interface=\:\:1",)),
            (("-p", "1", "--interface", "[::1]"), (r"tcp:1:interface=\:\:1",)),
            (("-p", "1", "--interface", "\\"), (r"tcp:1:interface=\\",)),
            (("--listen", "tcp:1", "--listen", "unix:/run/s"), ("tcp:1", "unix:/run/s")),
            (
                ("-p", "1", "--interface", "127.0.0.1", "--listen", "tcp6:2"),
                ("tcp:1:interface=127.0.0.1", "tcp6:2"),
            ),
            (("--listen", "systemd:domain=INET6:name=a"), ("systemd:domain=INET6:name=a",)),
        ):
            (listener,) = config_of("-t", "h:1", *arguments).listeners
            self.assertEqual(listener.listen, listen)

    def test_targets(self) -> None:
        self.assertEqual(
            self.pool("-p", "1", "-t", "a:1,weight=2", "--target", "unix:/b,backup").targets,
            (TargetConfig(host="a", port=1, weight=2), TargetConfig(path="/b", backup=True)),
        )

    def test_one_address_may_be_two_targets_by_different_names(self) -> None:
        targets = self.pool("-p", "1", "-t", "a:1", "-t", "a:1,name=again").targets
        self.assertEqual([target.label for target in targets], ["a:1", "again"])

    def test_demo(self) -> None:
        config = config_of("-p", "1", "--demo")
        self.assertTrue(config.demo)
        self.assertEqual(config.pools[0].targets, ())

    def test_time_outs(self) -> None:
        given = {
            "--connect-timeout": "500ms",
            "--idle-timeout": "5m",
            "--half-close-timeout": "30s",
            "--lifetime": "1h",
        }
        self.assertEqual(
            self.listener(*[word for pair in given.items() for word in pair]).timeouts,
            Timeouts(connect=0.5, idle=300, half_close=30, lifetime=3600),
        )
        self.assertEqual(config_of(*LEAST, "--drain-timeout", "0").relay.drain_timeout, 0)

    def test_who_may_enter(self) -> None:
        listener = self.listener(
            *("--allow", "10.0.0.0/8", "--allow", "::1", "--deny", "10.1.0.0/16"),
            *("--max-sessions", "100", "--max-sessions-per-client", "5"),
        )
        self.assertEqual(listener.max_sessions, 100)
        self.assertEqual(
            listener.admit,
            Admit(
                allow=(parse_network("10.0.0.0/8"), parse_network("::1")),
                deny=(parse_network("10.1.0.0/16"),),
                sessions_per_client=5,
            ),
        )

    def test_proxy_protocol(self) -> None:
        self.assertEqual(
            self.listener("--accept-proxy", "optional").proxy_protocol,
            ProxyProtocolConfig(accept="optional"),
        )
        self.assertEqual(self.pool(*LEAST, "--send-proxy", "v2").send_proxy, "v2")

    def test_choices(self) -> None:
        for option, field, choices in (
            ("--pump", "pump", PUMPS),
            ("--access-log-format", "access_log_format", ACCESS_LOG_FORMATS),
        ):
            for choice in choices:
                self.assertEqual(getattr(config_of(*LEAST, option, choice).relay, field), choice)
        for choice in BALANCES:
            self.assertEqual(self.pool(*LEAST, "--balance", choice).balance, choice)

    def test_the_rest(self) -> None:
        relay = config_of(
            *LEAST,
            *("--keepalive", "0", "--user-timeout", "10s", "--access-log", "/var/log/a"),
            *("--nameserver", "192.0.2.1", "--nameserver", "[::1]:5353"),
            *("--workers", "2", "--survive-crashes"),
        ).relay
        self.assertEqual(
            relay,
            RelayConfig(
                workers=2,
                survive_crashes=True,
                keepalive=0,
                user_timeout=10,
                access_log="/var/log/a",
                nameservers=("192.0.2.1:53", "[::1]:5353"),
            ),
        )
        self.assertEqual(config_of(*LEAST, "--access-log", "off").relay.access_log, "off")

    def test_targets_by_srv_records(self) -> None:
        pool = self.pool("-p", "1", "-t", "srv:_http._tcp.example.com,backup", "-t", "a:1")
        self.assertEqual(
            pool.discover,
            (DiscoverConfig(scheme="srv", argument="_http._tcp.example.com", backup=True),),
        )
        self.assertEqual(pool.targets, (TargetConfig(host="a", port=1),))

    def test_it_is_read_again(self) -> None:
        options = Options()
        options.parseOptions(LEAST)
        self.assertEqual(options.read(), options.config)
        self.assertFalse(options.reads_file)

    def test_check_says_that_nothing_is_wrong(self) -> None:
        stdout = io.StringIO()
        with redirect_stdout(stdout):
            stopped = self.assertRaises(SystemExit, config_of, *LEAST, "--check")
        self.assertEqual(stopped.code, 0)
        self.assertIn("nothing is wrong", stdout.getvalue())


class TLSTests(TapTestCase):
    """TLS by options. Whether the files are there is for others to find out, and not looked at here."""

    def setUp(self) -> None:
        self.problems: list[ConfigError] = []
        self.patch(parts, "problems", lambda config, reactor: self.problems)

    def test_it_is_off(self) -> None:
        self.assertIsNone(self.listener().tls)
        self.assertIsNone(self.pool(*LEAST).tls)

    def test_terminated(self) -> None:
        self.assertEqual(
            self.listener("--tls-cert", "/etc/web.pem").tls,
            ListenerTLSConfig(certificate=("/etc/web.pem",)),
        )
        self.assertEqual(
            self.listener(
                *("--tls-cert", "/ec.pem", "--tls-key", "/ec.key", "--tls-cert", "/rsa.pem"),
                *("--tls-key", "/rsa.key", "--tls-client-ca", "/ca.pem"),
                *("--tls-allow", "dns:*.Example.com", "--tls-allow", "cn:web"),
            ).tls,
            ListenerTLSConfig(
                certificate=("/ec.pem", "/rsa.pem"),
                key=("/ec.key", "/rsa.key"),
                client_ca="/ca.pem",
                allow_identities=(
                    IdentityPattern("dns", "*.example.com"),
                    IdentityPattern("cn", "web"),
                ),
            ),
        )

    def test_originated(self) -> None:
        self.assertEqual(self.pool(*LEAST, "--upstream-tls").tls, UpstreamTLSConfig())
        self.assertEqual(
            self.pool(
                *LEAST,
                *("--upstream-tls", "--upstream-name", "Db.Example.com", "--upstream-ca", "/ca"),
                *("--upstream-cert", "/us.pem", "--upstream-key", "/us.key"),
            ).tls,
            UpstreamTLSConfig(
                name="db.example.com", ca="/ca", certificate="/us.pem", key="/us.key"
            ),
        )

    def test_files_are_relative_to_where_it_was_started(self) -> None:
        options = Options()
        options.parseOptions(
            (
                *(*LEAST, "--upstream-tls"),
                *("--tls-cert=a", "--tls-key=b", "--tls-client-ca=c"),
                *("--upstream-ca=d", "--upstream-cert=e", "--upstream-key=../f"),
            )
        )
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir("/")
        config = options.read()
        tls, upstream = config.listeners[0].tls, config.pools[0].tls
        assert tls is not None and upstream is not None
        self.assertEqual(
            (*tls.certificate, *tls.key, tls.client_ca),
            tuple(str(before / each) for each in "abc"),
        )
        self.assertEqual(
            (upstream.ca, upstream.certificate, upstream.key),
            (str(before / "d"), str(before / "e"), str(before.parent / "f")),
        )

    def test_values_that_are_none(self) -> None:
        terminated = (*LEAST, "--tls-cert=a", "--tls-client-ca=c")
        originated = (*LEAST, "--upstream-tls", "--upstream-cert=a")
        for least, option, value, words in (
            (terminated, "--tls-cert", "", "it is empty: write the path of a file"),
            (terminated, "--tls-key", "", "it is empty"),
            ((*terminated, "--tls-cert=b"), "--tls-key", "b", "its key, in the same order"),
            (terminated, "--tls-client-ca", "", "it is empty"),
            (terminated, "--tls-allow", "web", "write one of cn:NAME, "),
            (terminated, "--tls-allow", "dsn:web", "did you mean dns?"),
            (originated, "--upstream-ca", "", "it is empty"),
            (originated, "--upstream-cert", "", "it is empty"),
            (originated, "--upstream-key", "", "it is empty"),
            (originated, "--upstream-name", "a:443", "has no port"),
        ):
            told = self.refused(*least, f"{option}={value}")
            self.assertIn(f"fwdrelay: {option}: ", told)
            self.assertIn(words, told)

    def test_what_is_missing(self) -> None:
        for arguments, option, words in (
            (("--tls-key", "a"), "--tls-key", "it goes with --tls-cert"),
            (("--tls-client-ca", "a"), "--tls-client-ca", "it goes with --tls-cert"),
            (("--tls-cert=a", "--tls-allow=cn:a"), "--tls-allow", "it goes with --tls-client-ca"),
            (("--upstream-ca", "a"), "--upstream-ca", "it goes with --upstream-tls"),
            (("--upstream-ca", ""), "--upstream-ca", "it goes with --upstream-tls"),
            (("--upstream-name", "a"), "--upstream-name", "it goes with --upstream-tls"),
            (("--upstream-cert", "a"), "--upstream-cert", "it goes with --upstream-tls"),
            (
                ("--upstream-tls", "--upstream-key", "a"),
                "--upstream-key",
                "it goes with --upstream-cert",
            ),
            (
                ("--upstream-tls", "--target", "unix:/run/app"),
                "--upstream-name",
                "'unix:/run/app' is no name",
            ),
        ):
            told = self.refused(*LEAST, *arguments)
            self.assertIn(f"fwdrelay: {option}: ", told)
            self.assertIn(words, told)

    def test_the_demonstration_page_has_neither_tls_nor_headers(self) -> None:
        for option in ("--upstream-tls", "--send-proxy=v1"):
            told = self.refused("-p", "1", "--demo", option)
            self.assertIn(f"fwdrelay: {option.partition('=')[0]}: not beside --demo", told)

    def test_what_is_wrong_with_files_is_told_of_their_options(self) -> None:
        for place, option in (
            ("listener[0].tls.certificate", "--tls-cert"),
            ("listener[0].tls.certificate[1]", "--tls-cert"),
            ("listener[0].tls.key", "--tls-key"),
            ("listener[0].tls.key[0]", "--tls-key"),
            ("listener[0].tls.client_ca", "--tls-client-ca"),
            ("listener[0].tls", "--tls-cert"),
            ("pool.main.tls", "--upstream-tls"),
            ("pool.main.tls.ca", "--upstream-ca"),
            ("pool.main.tls.certificate", "--upstream-cert"),
            ("pool.main.tls.key", "--upstream-key"),
        ):
            self.problems = [ConfigError(place, "it cannot be read")]
            told = self.refused(*LEAST)
            self.assertTrue(told.startswith(f"fwdrelay: {option}: it cannot be read "), told)


class RefusedTests(TapTestCase):
    def test_values_that_are_none(self) -> None:
        for option, value, words in (
            ("--port", "http", "is not a port: write a number from 0 to 65535"),
            ("--port", "65536", "is not a port"),
            ("--target", "localhost", "HOST:PORT, [IPV6]:PORT or unix:PATH"),
            ("--target", "localhost:80", "is there twice"),
            ("--target", "localhost:5678", "round in a circle"),
            ("--target", "h:1,weight=0", "leave the target out"),
            ("--target", "srv:http", "srv:_service._proto.domain"),
            ("--listen", "tcp:5678", "cannot be bound beside 'tcp:5678:interface="),
            ("--nameserver", "dns.example.com", "[IPV6]:PORT, or ADDR alone for port 53"),
            ("--listen", "5678", "tcp:, tcp6:, unix:, systemd:"),
            ("--listen", "ssl:5678", "tcp:, tcp6:, unix:, systemd:"),
            ("--listen", "tcp:http:x=1", "is not a tcp: endpoint"),
            ("--balance", "random two", ", ".join(BALANCES)),
            ("--balance", "fair", "fair"),
            ("--connect-timeout", "5", "500ms, 30s, 5m, 1h, or 0 for off"),
            ("--idle-timeout", "long", "is not a duration"),
            ("--half-close-timeout", "-1s", "is not a duration"),
            ("--lifetime", "1d", "is not a duration"),
            ("--drain-timeout", "x", "is not a duration"),
            ("--keepalive", "x", "is not a duration"),
            ("--keepalive", "10h", "32767s is the most"),
            ("--user-timeout", "x", "is not a duration"),
            ("--user-timeout", "600h", "2147483s is the most"),
            ("--access-log", "", "off, stdout, journald or the path of a file"),
            ("--max-sessions", "-1", "whole number from 0 up"),
            ("--max-sessions-per-client", "x", "whole number from 0 up"),
            ("--allow", "localhost", "10.0.0.0/8, 2001:db8::/32 or one address"),
            ("--deny", "10.0.0.0/33", "is not a network"),
            ("--access-log-format", "xml", ", ".join(ACCESS_LOG_FORMATS)),
            ("--pump", "bicycle", ", ".join(PUMPS)),
            ("--workers", "65", "whole number from 0 to 64"),
            ("--accept-proxy", "v2", "off, optional, required"),
            ("--send-proxy", "v3", "off, v1, v2"),
        ):
            told = self.refused(*LEAST, f"{option}={value}")
            self.assertIn(f"fwdrelay: {option}: ", told)
            self.assertIn(words, told)

    def test_what_is_missing(self) -> None:
        for arguments, option, words in (
            ((), "--", "give"),
            (("-t", "h:1"), "--port", "give --port or --listen"),
            (("-p", "1"), "--target", "or --demo"),
            (("-p", "1", "-t", "h:1", "--demo"), "--target", "not both"),
            (("--listen", "tcp:1", "-t", "h:1", "--interface", "::1"), "--interface", "--port"),
        ):
            told = self.refused(*arguments)
            self.assertIn(option, told)
            self.assertIn(words, told)

    def test_crashes_that_nothing_could_survive(self) -> None:
        for arguments, words in (
            (("--survive-crashes",), "it needs workers"),
            (("--survive-crashes", "--workers", "1", "--pump", "buffered"), "it needs a pump"),
        ):
            told = self.refused(*LEAST, *arguments)
            self.assertIn(f"fwdrelay: --survive-crashes: {words}", told)

    def test_unknown_options_are_told_what_was_meant(self) -> None:
        for wrong, meant in (
            ("--targets", "--target"),
            ("--idle-timout", "--idle-timeout"),
            ("--max-session-per-client", "--max-sessions-per-client"),
        ):
            told = self.refused(*LEAST, wrong, "1")
            self.assertIn(f"unknown option {wrong}; did you mean {meant}?", told)

    def test_unknown_options_that_are_like_none(self) -> None:
        told = self.refused(*LEAST, "--xyzzy")
        self.assertIn("unknown option --xyzzy ", told)
        self.assertNotIn("did you mean", told)

    def test_an_option_without_its_value(self) -> None:
        self.assertIn("port", self.refused("--port"))

    def test_arguments_that_are_no_options(self) -> None:
        self.assertIn("unexpected argument 'localhost:80'", self.refused("-p", "1", "localhost:80"))

    def test_whatever_is_told_is_one_line(self) -> None:
        self.assertIn(r"--wr\u000aong", self.refused(*LEAST, "--wr\nong"))

    def test_check_has_a_status_of_its_own(self) -> None:
        self.refused(*LEAST, "--check", "--pump", "bicycle", status=EX_CONFIG)


FILE = """
[relay]
pump = "splice"
drain_timeout = "10s"

[[listener]]
name = "web"
listen = ["tcp:5678"]
pool = "web"

[pool.web]
targets = ["localhost:80"]
"""


class FileTests(TapTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "relay.toml"
        self.path.write_text(FILE, encoding="utf-8")

    def options(self, *arguments: str) -> Options:
        """What reads the file."""
        options = Options()
        options.parseOptions(["--config", str(self.path), *arguments])
        return options

    def lines(self, *arguments: str, status: int = EX_CONFIG) -> list[str]:
        """What is said of a file that is wrong."""
        stderr = io.StringIO()
        with mock.patch.object(sys, "__stderr__", stderr):
            stopped = self.assertRaises(SystemExit, self.options, *arguments)
        self.assertEqual(stopped.code, status)
        return stderr.getvalue().splitlines()

    def test_it_says_everything(self) -> None:
        options = self.options()
        self.assertTrue(options.reads_file)
        self.assertEqual(
            options.config,
            Config(
                listeners=(ListenerConfig(name="web", listen=("tcp:5678",), pool="web"),),
                pools=(PoolConfig(name="web", targets=(TargetConfig(host="localhost", port=80),)),),
                relay=RelayConfig(pump="splice", drain_timeout=10.0),
            ),
        )

    def test_options_win_over_it(self) -> None:
        self.assertEqual(
            self.options(
                *("--access-log", "off", "--access-log-format", "tcplog", "--keepalive", "5s"),
                *("--user-timeout", "7s", "--nameserver", "192.0.2.1", "--pump", "auto"),
                *("--workers", "3", "--survive-crashes"),
            ).config.relay,
            RelayConfig(
                workers=3,
                survive_crashes=True,
                pump="auto",  # the default, but given
                access_log="off",
                access_log_format="tcplog",
                drain_timeout=10.0,
                keepalive=5.0,
                user_timeout=7.0,
                nameservers=("192.0.2.1:53",),
            ),
        )
        self.assertEqual(self.options("--drain-timeout=1s").config.relay.drain_timeout, 1.0)
        self.assertEqual(self.options("--drain=1s").config.relay.drain_timeout, 1.0)

    def test_options_that_belong_into_it(self) -> None:
        for arguments, place in (
            (("-p", "80"), "listen of a [[listener]]"),
            (("--interface", "::1"), "listen of a [[listener]]"),
            (("--listen", "tcp:80"), "listen of a [[listener]]"),
            (("--tar", "h:80"), "targets of a [pool.NAME]"),
            (("-t", "h:80"), "targets of a [pool.NAME]"),
            (("--balance", "round-robin"), "balance of a [pool.NAME]"),
            (("--connect-timeout", "5s"), "timeouts.connect of a [[listener]]"),
            (("--idle-timeout", "5s"), "timeouts.idle of a [[listener]]"),
            (("--half-close-timeout", "5s"), "timeouts.half_close of a [[listener]]"),
            (("--lifetime", "5s"), "timeouts.lifetime of a [[listener]]"),
            (("--max-sessions", "0"), "max_sessions of a [[listener]]"),
            (("--max-sessions-per-client", "1"), "admit.sessions_per_client of a [[listener]]"),
            (("--allow", "::1"), "admit.allow of a [[listener]]"),
            (("--deny", "::1"), "admit.deny of a [[listener]]"),
            (("--tls-cert", "a"), "tls.certificate of a [[listener]]"),
            (("--tls-key", "a"), "tls.key of a [[listener]]"),
            (("--tls-client-ca", "a"), "tls.client_ca of a [[listener]]"),
            (("--tls-allow", "cn:a"), "tls.allow_identities of a [[listener]]"),
            (("--accept-proxy", "off"), "proxy_protocol.accept of a [[listener]]"),
            (("--upstream-tls",), "a table [pool.NAME.tls]"),
            (("--upstream-ca", "a"), "tls.ca of a [pool.NAME]"),
            (("--upstream-name", "a"), "tls.name of a [pool.NAME]"),
            (("--upstream-cert", "a"), "tls.certificate of a [pool.NAME]"),
            (("--upstream-key", "a"), "tls.key of a [pool.NAME]"),
            (("--send-proxy", "v1"), "send_proxy of a [pool.NAME]"),
            (("--demo",), "the targets stand in the file"),
        ):
            told = self.refused("--config", str(self.path), *arguments)
            self.assertIn(": not beside --config: ", told)
            self.assertIn(place, told)

    def test_every_option_wins_or_belongs_into_it(self) -> None:
        """A new option is given its part when there is a file."""
        for name in self.options().longOpt:
            option, _, value = name.partition("=")
            if option in ("help", "version", "check", "config"):
                continue
            words = [f"--{option}"] + ["1"] * (value == "" and name.endswith("="))
            stderr = io.StringIO()
            with mock.patch.object(sys, "__stderr__", stderr):
                try:
                    config = self.options(*words).config
                except SystemExit:
                    key = f"relay.{option.replace('-', '_')}"
                    self.assertRegex(stderr.getvalue(), f"(--{option}|{key}): ")
                else:
                    self.assertNotEqual(config.relay, self.options().config.relay, option)

    def test_wrong_options_beside_it(self) -> None:
        self.assertIn("bicycle", self.refused("--config", str(self.path), "--pump", "bicycle"))
        self.assertIn("--config: it is empty", self.refused("--config", ""))
        (line,) = self.lines("--survive-crashes")
        self.assertTrue(line.startswith("fwdrelay: --survive-crashes: it needs workers"), line)

    def test_all_that_is_wrong_with_it(self) -> None:
        self.path.write_text(
            FILE.replace("splice", "bicycle").replace('"10s"', "10").replace("tcp:", "tpc:"),
            encoding="utf-8",
        )
        for arguments in ((), ("--check",)):
            lines = self.lines(*arguments)
            self.assertEqual(len(lines), 3, lines)
            for line, place in zip(
                lines, ("relay.pump", "relay.drain_timeout", "listener[0].listen[0]"), strict=True
            ):
                self.assertTrue(line.startswith(f"fwdrelay: {self.path}: {place}: "), line)

    def test_a_plugin_that_is_not_there_is_told_with_the_rest(self) -> None:
        self.path.write_text(
            FILE.replace("splice", "bicycle") + 'balance = "fairest"\n', encoding="utf-8"
        )
        first, second = self.lines()
        self.assertIn("relay.pump: ", first)
        self.assertTrue(second.startswith(f"fwdrelay: {self.path}: pool.web.balance: "), second)
        self.assertIn("fairest", second)

    def test_one_that_cannot_be_read(self) -> None:
        self.path.unlink()
        (line,) = self.lines("--check")
        self.assertEqual(
            line, f"fwdrelay: {self.path}: it cannot be read: No such file or directory"
        )

    def test_nothing_is_wrong(self) -> None:
        stdout = io.StringIO()
        with redirect_stdout(stdout):
            stopped = self.assertRaises(SystemExit, self.options, "--check")
        self.assertEqual(stopped.code, 0)
        self.assertEqual(stdout.getvalue(), f"fwdrelay: nothing is wrong with {self.path}.\n")

    def test_it_is_read_again_from_where_it_was(self) -> None:
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.path.parent)
        options = Options()
        options.parseOptions(["--config", self.path.name, "--pump", "buffered"])
        os.chdir(before)
        self.path.write_text(FILE.replace("5678", "8765"), encoding="utf-8")
        config = options.read()
        self.assertEqual(config.listeners[0].listen, ("tcp:8765",))
        self.assertEqual(config.relay.pump, "buffered")
        self.assertEqual(options.config.listeners[0].listen, ("tcp:5678",))
        self.path.write_text("[relay", encoding="utf-8")
        wrong = self.assertRaises(ConfigErrors, options.read)
        self.assertIn("relay.toml: it is not TOML", str(wrong))


class PluginTests(SynchronousTestCase):
    def test_twistd_finds_it(self) -> None:
        found = [each for each in getPlugins(IServiceMaker) if each.tapname == "fwdrelay"]
        self.assertEqual(len(found), 1)
        maker: Any = found[0]
        self.assertIs(maker.options, Options)
        options = maker.options()
        options.parseOptions(["--listen", "tcp:0:interface=127.0.0.1", "--target", "127.0.0.1:1"])
        service = maker.makeService(options)
        self.assertTrue(IService.providedBy(service))

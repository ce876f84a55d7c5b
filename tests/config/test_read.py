"""`fwdrelay.config.read`: what files mean, and what is said of those that are wrong."""

from __future__ import annotations

import datetime
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.config import (
    Admit,
    Config,
    DiscoverConfig,
    HealthConfig,
    IdentityPattern,
    ListenerConfig,
    ListenerTLSConfig,
    PoolConfig,
    ProxyProtocolConfig,
    Rate,
    RelayConfig,
    RouteConfig,
    SNIConfig,
    TargetConfig,
    Timeouts,
    UpstreamTLSConfig,
)
from fwdrelay.config import read as reading_of_files
from fwdrelay.config.grammar import parse_network
from fwdrelay.config.read import make_config, read_config, table_keys
from fwdrelay.errors import ConfigError, ConfigErrors
from tests.case import SynchronousTestCase

LEAST = """
[[listener]]
name = "web"
listen = ["tcp:5678"]
pool = "web"

[pool.web]
targets = ["localhost:80"]
"""
EVERYTHING = r"""
[relay]
workers = 4
survive_crashes = true
pump = "splice"
access_log = "log/access.log"
access_log_format = "tcplog"
access_log_interval = "5m"
admin = "[::]:9678"
admin_token_file = "admin.token"
drain_timeout = "1m"
keepalive = "0"
user_timeout = "10s"
nameservers = ["192.0.2.53", "[2001:db8::53]:5353"]

[[listener]]
name = "web"
listen = ["tcp:5678", "unix:/run/fwdrelay/web:mode=660"]
pool = "web"
max_sessions = 10
backlog = 100

[listener.timeouts]
connect = "1s"
idle = "2m"
half_close = "500ms"
lifetime = "1h"
handshake = "3s"
peek = "4s"

[listener.admit]
allow = ["10.0.0.0/8", "::1"]
deny = ["10.1.0.0/16"]
sessions_per_client = 5
rate = "100/s"
rate_per_client = "10/m"
plugins = ["geo:DE", "quiet"]

[listener.tls]
certificate = ["ec.pem", "/etc/rsa.pem"]
key = ["ec.key", "/etc/rsa.key"]
client_ca = "ca.pem"
require_client_certificate = false
allow_identities = ["cn:web", "uri:spiffe://example.org/*"]
alpn = ["h2", "http/1.1"]
minimum_version = "1.3"

[[listener.tls.sni]]
names = ["A.example.", "*.bücher.example"]
certificate = "other.pem"
key = "other.key"

[[listener.tls.sni]]
names = ["b.example"]
certificate = ["both.pem"]

[listener.proxy_protocol]
accept = "required"
trusted = ["10.0.0.0/8", "::1"]

[[listener.route]]
sni = ["db.example", "*.DB.example"]
alpn = ["h2", "postgresql"]
client = ["10.2.0.0/16"]
pool = "db"

[[listener]]
name = "db"
listen = ["tcp6:5432"]

[[listener.route]]
client = ["10.0.0.0/8"]
pool = "db"

[pool.web]
targets = ["a:1", "srv:_b._tcp.example,backup", "c:1,weight=2"]
discover = ["file:targets.txt", "dns:d:80,max-sessions=3", "file:/etc/t", "etcd:/web"]
balance = "fairest:of=all"
retries = 0
max_sessions = 100
queue = "5s"
max_queued = 7
on_target_down = "close"
send_proxy = "v2"
bind = "192.0.2.1"

[pool.web.health]
check = "tcp"
interval = "5s"
timeout = "2s"
rise = 3
fall = 4
send = 'PING\r\n'
expect = '^\+PONG'
passive_failures = 5
slow_start = "30s"
when_all_down = "refuse"

[pool.db]
discover = "srv:_db._tcp.example"
balance = "first"
health = { check = "http", path = "/health", host = "www.example.com" }

[pool.db.tls]
name = "DB.example"
ca = "tls/ca.pem"
certificate = "tls/us.pem"
key = "/etc/us.key"
alpn = ["postgresql"]
verify = false
"""


TLS = """
[[listener]]
name = "web"
listen = ["tcp:443"]
pool = "web"
[listener.tls]
certificate = "web.pem"
"""
WEB = """
[pool.web]
targets = ["localhost:80"]
"""


def read(text: str, **arguments: Any) -> Config:
    """What a text means that stands in /etc/relay/relay.toml."""
    return make_config(tomllib.loads(text), "relay.toml", "/etc/relay", **arguments)


def keys_of(tables: Any, way: str = "") -> Iterator[str]:
    """Where in a file there is something: `listener.tls.key`, `pool.*.health`."""
    for each in tables if isinstance(tables, list) else [tables]:
        for key, value in each.items() if isinstance(each, dict) else ():
            here = f"{way}.{'*' if way == 'pool' else key}".lstrip(".")
            yield here
            yield from keys_of(value, here)


class ReadTestCase(SynchronousTestCase):
    def wrong(self, text: str, **arguments: Any) -> dict[str, str]:
        """What is wrong with a text, by its place; at each, one thing."""
        errors = self.assertRaises(ConfigErrors, read, text, **arguments).errors
        told: dict[str, str] = {}
        for error in errors:
            file, _, place = error.where.partition(": ")
            self.assertEqual(file, "relay.toml")
            self.assertNotIn(place, told)
            told[place] = error.problem
        return told

    def assert_wrong(self, text: str, place: str, *words: str) -> None:
        """There is one thing wrong."""
        told = self.wrong(text)
        self.assertEqual(list(told), [place], told)
        for word in words:
            self.assertIn(word, told[place])


class MeaningTests(ReadTestCase):
    def test_the_least(self) -> None:
        self.assertEqual(
            read(LEAST),
            Config(
                listeners=(ListenerConfig(name="web", listen=("tcp:5678",), pool="web"),),
                pools=(PoolConfig(name="web", targets=(TargetConfig(host="localhost", port=80),)),),
            ),
        )

    def test_everything(self) -> None:
        self.assertEqual(
            read(EVERYTHING),
            Config(
                relay=RelayConfig(
                    workers=4,
                    survive_crashes=True,
                    pump="splice",
                    access_log="/etc/relay/log/access.log",
                    access_log_format="tcplog",
                    access_log_interval=300.0,
                    admin="[::]:9678",
                    admin_token_file="/etc/relay/admin.token",
                    drain_timeout=60.0,
                    keepalive=0.0,
                    user_timeout=10.0,
                    nameservers=("192.0.2.53:53", "[2001:db8::53]:5353"),
                ),
                listeners=(
                    ListenerConfig(
                        name="web",
                        listen=("tcp:5678", "unix:/run/fwdrelay/web:mode=660"),
                        pool="web",
                        max_sessions=10,
                        backlog=100,
                        timeouts=Timeouts(
                            connect=1.0,
                            idle=120.0,
                            half_close=0.5,
                            lifetime=3600.0,
                            handshake=3.0,
                            peek=4.0,
                        ),
                        admit=Admit(
                            allow=(parse_network("10.0.0.0/8"), parse_network("::1")),
                            deny=(parse_network("10.1.0.0/16"),),
                            sessions_per_client=5,
                            rate=Rate(100, 1.0),
                            rate_per_client=Rate(10, 60.0),
                            plugins=("geo:DE", "quiet"),
                        ),
                        tls=ListenerTLSConfig(
                            certificate=("/etc/relay/ec.pem", "/etc/rsa.pem"),
                            key=("/etc/relay/ec.key", "/etc/rsa.key"),
                            client_ca="/etc/relay/ca.pem",
                            require_client_certificate=False,
                            allow_identities=(
                                IdentityPattern("cn", "web"),
                                IdentityPattern("uri", "spiffe://example.org/*"),
                            ),
                            alpn=("h2", "http/1.1"),
                            minimum_version="1.3",
                            sni=(
                                SNIConfig(
                                    names=("a.example", "*.xn--bcher-kva.example"),
                                    certificate=("/etc/relay/other.pem",),
                                    key=("/etc/relay/other.key",),
                                ),
                                SNIConfig(
                                    names=("b.example",), certificate=("/etc/relay/both.pem",)
                                ),
                            ),
                        ),
                        proxy_protocol=ProxyProtocolConfig(
                            accept="required",
                            trusted=(parse_network("10.0.0.0/8"), parse_network("::1")),
                        ),
                        routes=(
                            RouteConfig(
                                sni=("db.example", "*.db.example"),
                                alpn=("h2", "postgresql"),
                                client=(parse_network("10.2.0.0/16"),),
                                pool="db",
                            ),
                        ),
                    ),
                    ListenerConfig(
                        name="db",
                        listen=("tcp6:5432",),
                        routes=(RouteConfig(client=(parse_network("10.0.0.0/8"),), pool="db"),),
                    ),
                ),
                pools=(
                    PoolConfig(
                        name="web",
                        targets=(
                            TargetConfig(host="a", port=1),
                            TargetConfig(host="c", port=1, weight=2),
                        ),
                        discover=(
                            DiscoverConfig(scheme="srv", argument="_b._tcp.example", backup=True),
                            DiscoverConfig(scheme="file", argument="/etc/relay/targets.txt"),
                            DiscoverConfig(scheme="dns", argument="d:80", max_sessions=3),
                            DiscoverConfig(scheme="file", argument="/etc/t"),
                            DiscoverConfig(scheme="etcd", argument="/web"),
                        ),
                        balance="fairest:of=all",
                        retries=0,
                        max_sessions=100,
                        queue=5.0,
                        max_queued=7,
                        on_target_down="close",
                        send_proxy="v2",
                        bind="192.0.2.1",
                        health=HealthConfig(
                            check="tcp",
                            interval=5.0,
                            timeout=2.0,
                            rise=3,
                            fall=4,
                            send=r"PING\r\n",
                            expect=r"^\+PONG",
                            passive_failures=5,
                            slow_start=30.0,
                            when_all_down="refuse",
                        ),
                    ),
                    PoolConfig(
                        name="db",
                        discover=(DiscoverConfig(scheme="srv", argument="_db._tcp.example"),),
                        balance="first",
                        health=HealthConfig(check="http", path="/health", host="www.example.com"),
                        tls=UpstreamTLSConfig(
                            name="db.example",
                            ca="/etc/relay/tls/ca.pem",
                            certificate="/etc/relay/tls/us.pem",
                            key="/etc/us.key",
                            alpn=("postgresql",),
                            verify=False,
                        ),
                    ),
                ),
            ),
        )

    def test_everything_has_every_key(self) -> None:
        """So that a key that is new is read in one test at least."""
        used = set(keys_of(tomllib.loads(EVERYTHING)))
        for way, table in (
            ("relay", RelayConfig),
            ("listener", ListenerConfig),
            ("listener.timeouts", Timeouts),
            ("listener.admit", Admit),
            ("listener.tls", ListenerTLSConfig),
            ("listener.tls.sni", SNIConfig),
            ("listener.proxy_protocol", ProxyProtocolConfig),
            ("listener.route", RouteConfig),
            ("pool.*", PoolConfig),
            ("pool.*.health", HealthConfig),
            ("pool.*.tls", UpstreamTLSConfig),
        ):
            self.assertEqual({f"{way}.{key}" for key in table_keys(table)} - used, set(), way)

    def test_empty_is_as_good_as_none(self) -> None:
        text = LEAST + 'discover = ""\nbind = ""\nhealth = { send = "", expect = "" }'
        self.assertEqual(read(text), read(LEAST))
        text = LEAST + 'tls = { name = "", ca = "", certificate = "", key = "", alpn = [] }'
        self.assertEqual(read(text), read(LEAST + "[pool.web.tls]"))
        self.assertEqual(
            read(TLS + 'key = ""\nclient_ca = ""\nallow_identities = []' + WEB),
            read(TLS + "key = []" + WEB),
        )
        routed = """
            [[listener]]
            name = "a"
            listen = ["tcp:1"]
            pool = ""
            route = [{ client = ["::1"], pool = "web" }]
        """
        self.assertEqual(read(routed + LEAST).listeners[0].pool, "")

    def test_a_table_that_is_empty_is_there(self) -> None:
        self.assertIsNone(read(LEAST).pools[0].tls)
        self.assertEqual(read(LEAST + "[pool.web.tls]").pools[0].tls, UpstreamTLSConfig())

    def test_certificates_and_keys_need_no_lists(self) -> None:
        (listener,) = read(TLS.replace('"web.pem"', '["web.pem"]') + 'key = ["k"]' + WEB).listeners
        self.assertEqual(read(TLS + 'key = "k"' + WEB).listeners, (listener,))

    def test_logs_that_are_no_files(self) -> None:
        for log in ("off", "stdout", "/var/log/a"):
            config = read(f'relay = {{ access_log = "{log}" }}' + LEAST)
            self.assertEqual(config.relay.access_log, log)

    def test_overrides(self) -> None:
        config = read(EVERYTHING, overrides={"access_log": "here", "keepalive": 1.0})
        self.assertEqual(
            config.relay,
            attrs.evolve(read(EVERYTHING).relay, access_log="here", keepalive=1.0),
        )

    def test_overrides_are_looked_at_with_the_rest(self) -> None:
        token = "[relay]\nadmin_token_file = 'token'"
        config = read(token + LEAST, overrides={"admin": "0.0.0.0:9678"})
        self.assertEqual(config.relay.admin_token_file, "/etc/relay/token")
        survivor = "[relay]\nsurvive_crashes = true\nworkers = 2\npump = 'buffered'"
        for text, overrides, where in (
            ("", {"admin": "0.0.0.0:9678"}, "--admin"),
            ("", {"survive_crashes": True}, "--survive-crashes"),
            (survivor, {"pump": "splice", "workers": 0}, "relay.toml: relay.survive_crashes"),
            (survivor, {}, "relay.toml: relay.survive_crashes"),
        ):
            wrong = self.assertRaises(ConfigErrors, read, text + LEAST, overrides=overrides)
            self.assertEqual([each.where for each in wrong.errors], [where])
        self.assertEqual(read(survivor + LEAST, overrides={"pump": "auto"}).relay.pump, "auto")

    def test_overrides_of_what_could_not_be_read(self) -> None:
        text = "[relay]\nworkers = -1\nsurvive_crashes = true" + LEAST
        told = self.wrong(text, overrides={"workers": 1})
        self.assertEqual(list(told), ["relay.workers"])


class WrongTests(ReadTestCase):
    def test_unknown_keys(self) -> None:
        for text, place, words in (
            ("[relai]\n" + LEAST, "relai", "did you mean relay? Known here: listener, pool, relay"),
            ("[relay]\npunp = 1" + LEAST, "relay.punp", "did you mean pump? Known here: workers, "),
            ("[relay]\nzzz = 1" + LEAST, "relay.zzz", "no such key. Known here: workers, "),
            ("demo = true" + LEAST, "demo", "Known here: listener, pool, relay"),
            (LEAST + 'name = "web"', "pool.web.name", "Known here: targets, discover"),
            (LEAST + "[pool.web.health]\nchek = 1", "pool.web.health.chek", "check"),
        ):
            self.assert_wrong(text, place, words)
        self.assert_wrong(
            LEAST.replace("[pool.web]", "timeouts = { idel = '1s' }\n[pool.web]"),
            "listener[0].timeouts.idel",
            "did you mean idle? Known here: connect, idle, half_close, lifetime",
        )

    def test_missing_keys(self) -> None:
        for line, place, words in (
            ('name = "web"\n', "listener[0].name", 'name = "web"'),
            ('listen = ["tcp:5678"]\n', "listener[0].listen", 'listen = ["tcp:5678"]'),
        ):
            self.assert_wrong(LEAST.replace(line, ""), place, "it is missing", words)
        self.assert_wrong(
            LEAST.replace("[pool.web]", '[[listener.route]]\nclient = ["::1"]\n[pool.web]'),
            "listener[0].route[0].pool",
            "it is missing",
        )
        self.assert_wrong(
            TLS.replace('certificate = "web.pem"\n', 'key = ["a", "b"]') + WEB,
            "listener[0].tls.certificate",
            'it is missing; write certificate = "web.pem"',
        )
        told = self.wrong(TLS + "[[listener.tls.sni]]\nkey = ['a', 'b']" + WEB)
        self.assertEqual(
            told,
            {
                "listener[0].tls.sni[0].names": (
                    'it is missing; write names = ["*.example.com"], for example'
                ),
                "listener[0].tls.sni[0].certificate": (
                    'it is missing; write certificate = "web.pem", for example'
                ),
            },
        )

    def test_nothing_at_all(self) -> None:
        self.assert_wrong("", "listener", "[[listener]]")

    def test_values_that_are_none(self) -> None:
        listener = LEAST.index("[pool.web]")
        duration = 'is not a duration: write a string such as "500ms"'
        for table, line, words in (
            ("relay", "keepalive = true", f"true {duration}"),
            ("relay", "keepalive = 30", f"30 {duration}"),
            ("relay", "keepalive = 1.5", f"1.5 {duration}"),
            ("relay", "keepalive = 07:32:00", f"07:32:00 {duration}"),
            ("relay", "keepalive = ['1s']", f"a list {duration}"),
            ("relay", "keepalive = {}", f"a table {duration}"),
            ("relay", "keepalive = '1d'", "'1d' is not a duration"),
            ("relay", "keepalive = '32768s'", "32767s is the most"),
            ("relay", "user_timeout = '2147484s'", "2147483s is the most"),
            ("relay", "pump = 'bicycle'", "'bicycle' is not one of auto, splice, buffered"),
            ("relay", "pump = 1", "1 is not one of auto, splice, buffered"),
            ("relay", "access_log = ''", "off, stdout, journald or the path of a file"),
            ("relay", "access_log = false", "false is not a string"),
            ("relay", "nameservers = '::1'", "'::1' is not a list: write [\"::1\"]"),
            ("relay", "workers = 65", "65 is not a whole number from 0 to 64"),
            ("relay", "survive_crashes = 1", "1 is neither true nor false"),
            ("listener", "max_sessions = true", "true is not a whole number from 0 up"),
            ("listener", f"max_sessions = 0x{'f' * 5000}", "a huge number is not a whole number"),
            ("listener", "max_sessions = '5'", "'5' is not a whole number"),
            ("listener", "max_sessions = 5.0", "5.0 is not a whole number"),
            ("listener", "max_sessions = -1", "-1 is not a whole number"),
            ("listener", "backlog = 0", "0 is not a whole number from 1 to 2147483647"),
            ("listener", "timeouts = '5s'", "'5s' is not a table"),
            ("listener", "route = {}", "[[...]]"),
            ("pool.web", "balance = 'a b'", "round-robin, least-sessions, random-two"),
            ("pool.web", "balance = 1", "1 is not a string"),
            ("pool.web", "retries = -1", "from 0 up"),
            ("pool.web", "max_queued = 0", "0 is not a whole number from 1 up"),
            ("pool.web", "on_target_down = 'cut'", "keep, close"),
            ("pool.web", "send_proxy = 'v3'", "off, v1, v2"),
            ("pool.web", "bind = 'localhost'", "is not an IP address"),
            ("pool.web", "discover = 5", "5 is not a list"),
            ("pool.web", "discover = 'dns:a'", "dns:HOST:PORT"),
            ("pool.web.health", "check = 'udp'", "off, tcp, tls, http"),
            ("pool.web.health", "interval = '0'", "'0' is too short"),
            ("pool.web.health", "timeout = '0s'", "'0s' is too short"),
            ("pool.web.health", "rise = 0", "from 1 up"),
            ("pool.web.health", "fall = 0", "from 1 up"),
            ("pool.web.health", "path = 'health'", "begins with /"),
            ("pool.web.health", "send = '\\q'", r"\q is not an escape"),
            ("pool.web.health", "expect = '('", "is not a regular expression"),
            ("pool.web.health", "when_all_down = 'x'", "try, refuse"),
        ):
            if table == "listener":
                text = f"{LEAST[:listener]}{line}\n{LEAST[listener:]}"
                table = "listener[0]"
            else:
                text = f"{LEAST}[{table}]\n{line}" if table != "pool.web" else LEAST + line
            key = line.partition(" ")[0]
            self.assert_wrong(text, f"{table}.{key}", words)

    def test_values_of_tls_that_are_none(self) -> None:
        for line, words in (
            ("client_ca = 1", "1 is not a string"),
            ("key = 1", "1 is not a list"),
            ("key = 'a\\u0000b'".replace("'", '"'), "has no NUL"),
            ("require_client_certificate = 1", "1 is neither true nor false"),
            ("require_client_certificate = 'no'", "'no' is neither true nor false"),
            ("minimum_version = 1.2", '1.2 is a number: write "1.2", in quotes'),
            ("minimum_version = '1.1'", "'1.1' is not one of 1.2, 1.3"),
            ("minimum_version = 2", "2 is not one of 1.2, 1.3"),
            ("alpn = 'h2'", "'h2' is not a list: write [\"h2\"]"),
            ("allow_identities = 'cn:a'", "'cn:a' is not a list"),
            ("certificate_ = 1", "did you mean certificate?"),
        ):
            self.assert_wrong(TLS + line + WEB, f"listener[0].tls.{line.partition(' ')[0]}", words)
        for line, words in (
            ("alpn = ['h2', '']", "is not a protocol's name"),
            ("allow_identities = ['ou:a', 'dsn:a']", "did you mean dns?"),
            ("key = ['a', '']", "it is empty: write the path of a file"),
            ("allow_identities = ['cn:a', 1]", "1 is not a string"),
            ("sni = [{ names = ['a'], certificate = 'a' }, 1]", "1 is not a table"),
        ):
            self.assert_wrong(
                TLS + line + WEB, f"listener[0].tls.{line.partition(' ')[0]}[1]", words
            )
        for certificate in ('""', "[]"):
            self.assert_wrong(
                TLS.replace('"web.pem"', certificate) + WEB,
                "listener[0].tls.certificate",
                'it is empty: write "web.pem", for example',
            )
        sni = "[[listener.tls.sni]]\ncertificate = 'b.pem'\n"
        for names, place, words in (
            ("[]", "", 'it is empty: write ["*.example.com"], for example'),
            ("'b'", "", "'b' is not a list"),
            ("['a', 'b:443']", "[1]", "it has no port; write b"),
            ("['a', '192.0.2.1']", "[1]", "is an address"),
        ):
            text = f"{TLS}{sni}names = {names}{WEB}"
            self.assert_wrong(text, f"listener[0].tls.sni[0].names{place}", words)

    def test_rates_and_headers_that_are_none(self) -> None:
        listener = LEAST.index("[pool.web]")
        for line, place, words in (
            (
                "admit = { rate = 100 }",
                "admit.rate",
                '100 is not a rate: write a string such as "100',
            ),
            ("admit = { rate_per_client = '5' }", "admit.rate_per_client", "write 100/s"),
            (
                "proxy_protocol = { accept = true }",
                "proxy_protocol.accept",
                "off, optional, required",
            ),
            (
                "proxy_protocol = { accept = 'v2' }",
                "proxy_protocol.accept",
                "off, optional, required",
            ),
            ("proxy_protocol = 'required'", "proxy_protocol", "is not a table"),
            ("timeouts = { peek = 5 }", "timeouts.peek", "5 is not a duration"),
            (
                "route = [{ pool = 'web', sni = ['a', '*'] }]",
                "route[0].sni[1]",
                "a * stands for one whole label",
            ),
            ("route = [{ pool = 'web', sni = 'a' }]", "route[0].sni", "'a' is not a list"),
            ("route = [{ pool = 'web', alpn = [''] }]", "route[0].alpn[0]", "1 to 255 bytes"),
        ):
            text = f"{LEAST[:listener]}{line}\n{LEAST[listener:]}"
            self.assert_wrong(text, f"listener[0].{place}", words)

    def test_values_of_upstream_tls_that_are_none(self) -> None:
        for line, words in (
            ("name = '*.example.com'", "write what it is to cover"),
            ("verify = 'false'", "'false' is neither true nor false"),
            ("ca = ['a']", "a list is not a string"),
            ("certificate = 1", "1 is not a string"),
            ("chain = 'a'", "Known here: name, ca, certificate, key, alpn, verify"),
        ):
            key = line.partition(" ")[0]
            self.assert_wrong(f"{LEAST}[pool.web.tls]\n{line}", f"pool.web.tls.{key}", words)
        self.assert_wrong(LEAST + "tls = true", "pool.web.tls", "true is not a table")

    def test_elements_that_are_none(self) -> None:
        for old, new, place, words in (
            ('"tcp:5678"', '"tcp:5678", "ssl:1"', "listener[0].listen[1]", "tcp:, tcp6:"),
            ('"tcp:5678"', '"tcp:70000"', "listener[0].listen[0]", "from 0 to 65535"),
            ('"localhost:80"', '"a:1", "b"', "pool.web.targets[1]", "HOST:PORT"),
            ('"localhost:80"', '"a:1", 80', "pool.web.targets[1]", "80 is not a string"),
            ('"localhost:80"', '"a:1,weight=0"', "pool.web.targets[0]", "leave the target out"),
            ('"localhost:80"', '"srv:b"', "pool.web.targets[0]", "srv:_service._proto.domain"),
        ):
            self.assert_wrong(LEAST.replace(old, new), place, words)

    def test_tables_that_are_none(self) -> None:
        least = LEAST[: LEAST.index("[pool.web]")]
        for text, place, words in (
            (LEAST.replace("[[listener]]", "[listener]"), "listener", "[[...]]"),
            ("listener = 1\n" + LEAST[len(least) :], "listener", "1 is not a list"),
            ("listener = [1]\n" + LEAST[len(least) :], "listener[0]", "1 is not a table"),
            ("pool = 1\n" + least, "pool", "[pool.NAME]"),
            (least + "[pool]\nweb = 1", "pool.web", "1 is not a table"),
            ("relay = 1\n" + LEAST, "relay", "1 is not a table"),
        ):
            self.assert_wrong(text, place, words)

    def test_names_that_are_none(self) -> None:
        told = self.wrong(LEAST.replace('"web"', '"w b"').replace("pool.web", 'pool."w b"'))
        self.assertEqual(list(told), ["listener[0].name", "listener[0].pool", 'pool."w b"'])
        self.assertEqual(
            list(self.wrong(LEAST + '[pool."a b"]\nname = 1\nretries = true\n')),
            ['pool."a b"', 'pool."a b".name', 'pool."a b".retries'],
        )


class AllAtOnceTests(ReadTestCase):
    def test_in_the_order_of_the_file(self) -> None:
        self.assertEqual(
            list(
                self.wrong("""
                    [pool.b]
                    targets = ["x", "localhost:80", "localhost:80", "y"]
                    colour = 1
                    [[listener]]
                    pool = "c"
                    listen = ["tcp:1", "tcp:1", "tcp:http"]
                    [[listener.route]]
                    pool = "b"
                    [relay]
                    zzz = 1
                    pump = 1
                    [pool.a]
                """)
            ),
            [
                "pool.b.targets",
                "pool.b.targets[0]",
                "pool.b.targets[3]",
                "pool.b.colour",
                "pool.a",
                "listener[0].pool",
                "listener[0].listen",
                "listener[0].listen[2]",
                "listener[0].route[0]",
                "listener[0].name",
                "relay.zzz",
                "relay.pump",
            ],
        )

    def test_what_would_not_be_so_is_not_told(self) -> None:
        """One mistake is one error: what only follows from it is not known to be wrong."""
        for mistake, place in (
            (LEAST.replace("targets", "target"), "pool.web.target"),
            (LEAST.replace("pool.web", "pools.web"), "pools"),
            (LEAST.replace('pool = "web"', 'pol = "web"'), "listener[0].pol"),
            (LEAST.replace('listen = ["', 'listen = ["x'), "listener[0].listen[0]"),
            (LEAST + "queue = '1s'\nmax_sessions = 'x'", "pool.web.max_sessions"),
            (LEAST + "queue = '1s'\nmax_session = 1", "pool.web.max_session"),
            (
                LEAST.replace('80"', '80,max-sessions=x"') + "queue = '1s'",
                "pool.web.targets[0]",
            ),
            (LEAST + "health = { send = 'x', check = 'tpc' }", "pool.web.health.check"),
            (
                TLS.replace('"web.pem"', "1") + "key = ['a', 'b']" + WEB,
                "listener[0].tls.certificate",
            ),
            (
                TLS + "key = ['a', 1]" + WEB,
                "listener[0].tls.key[1]",
            ),
            (
                TLS + "client_cas = 'a'\nallow_identities = ['cn:a']" + WEB,
                "listener[0].tls.client_cas",
            ),
            (
                TLS + "alpn = 1\n[[listener.route]]\nalpn = ['h2']\npool = 'web'" + WEB,
                "listener[0].tls.alpn",
            ),
            (
                TLS + "[[listener.route]]\nsni = 1\npool = 'web'" + WEB,
                "listener[0].route[0].sni",
            ),
            (
                LEAST.replace("localhost:80", "unix:/a") + "tls = { verify = 0 }",
                "pool.web.tls.verify",
            ),
            (LEAST + "tls = { key = 'a', certificate = 1 }", "pool.web.tls.certificate"),
        ):
            self.assertEqual(list(self.wrong(mistake)), [place])

    def test_what_stands_behind_a_table_that_is_wrong_keeps_its_number(self) -> None:
        table = '{ names = ["a.example"], certificate = "a.pem" }'
        told = self.wrong(f"{TLS}sni = [1, {table}, {table}]{WEB}")
        self.assertEqual(
            told,
            {
                "listener[0].tls.sni[0]": "1 is not a table",
                "listener[0].tls.sni[2].names": (
                    "'a.example' has its certificate at listener[0].tls.sni[1].names already: "
                    "leave one out"
                ),
            },
        )

    def test_what_else_is_wrong(self) -> None:
        seen: list[Config] = []

        def more(config: Config) -> list[ConfigError]:
            seen.append(config)
            return [ConfigError("pool.web.balance", "no such plugin")]

        self.assertEqual(list(self.wrong(LEAST, more=more)), ["pool.web.balance"])
        self.assertEqual(seen.pop(), read(LEAST))
        told = self.wrong("[relay]\npump = 1" + LEAST, more=more)
        self.assertEqual(list(told), ["relay.pump", "pool.web.balance"])
        self.assertEqual(seen.pop(), read(LEAST))

    def test_files_of_tls_that_is_wrong_are_not_looked_at(self) -> None:
        """They would be found wanting for what was not written."""
        seen: list[Config] = []

        def more(config: Config) -> list[ConfigError]:
            seen.append(config)
            return []

        good = TLS + WEB + "tls = { ca = 'ca.pem' }"
        read(good, more=more)
        self.assertEqual(seen.pop(), read(good))
        for wrong in (
            good.replace('"web.pem"', "1"),
            good.replace('"web.pem"', '"web.pem"\nkey = ["a", "b"]'),
            good.replace('"web.pem"', '"web.pem"\n[[listener.tls.sni]]\nnames = ["a"]'),
        ):
            self.wrong(wrong, more=more)
            config = seen.pop()
            self.assertIsNone(config.listeners[0].tls)
            self.assertEqual(config.pools, read(good).pools)
        for wrong in (
            good.replace("'ca.pem'", "1"),
            good.replace("ca =", "key = 'a', ca ="),
            good.replace("ca =", "cas ="),
        ):
            self.wrong(wrong, more=more)
            config = seen.pop()
            self.assertIsNone(config.pools[0].tls)
            self.assertEqual(config.listeners, read(good).listeners)


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "relay.toml"

    def refused(self, content: bytes, place: str = "") -> str:
        """What is said of a file."""
        self.path.write_bytes(content)
        wrong = self.assertRaises(ConfigErrors, read_config, str(self.path))
        error: ConfigError
        (error,) = wrong.errors
        self.assertEqual(error.where, f"{self.path}: {place}" if place else str(self.path))
        return error.problem

    def test_paths_are_relative_to_it(self) -> None:
        self.path.write_text(
            f'[relay]\naccess_log = "a"\n{LEAST}discover = "file:t"', encoding="utf-8"
        )
        config = read_config(os.path.relpath(self.path))
        folder = self.path.parent
        self.assertEqual(config.relay.access_log, str(folder / "a"))
        self.assertEqual(config.pools[0].discover[0].argument, str(folder / "t"))

    def test_what_errors_call_it(self) -> None:
        self.path.write_text("relay = 1", encoding="utf-8")
        wrong = self.assertRaises(ConfigErrors, read_config, str(self.path), called="it")
        self.assertEqual([each.where for each in wrong.errors], ["it: relay", "it: listener"])

    def test_one_that_cannot_be_read(self) -> None:
        for path, why in (
            (self.path, "No such file or directory"),
            (self.path.parent, "Is a directory"),
        ):
            wrong = self.assertRaises(ConfigErrors, read_config, str(path))
            self.assertEqual(str(wrong), f"{path}: it cannot be read: {why}")

    def test_a_pipe(self) -> None:
        reading, writing = os.pipe()
        with open(reading, "rb"), open(writing, "wb") as pipe:
            pipe.write(LEAST.encode())
            pipe.close()
            self.assertEqual(len(read_config(f"/dev/fd/{reading}").pools), 1)

    def test_a_pipe_that_nobody_writes_into(self) -> None:
        self.patch(reading_of_files, "PATIENCE", 0.0)
        os.mkfifo(self.path)
        wrong = self.assertRaises(ConfigErrors, read_config, str(self.path))
        self.assertIn("nobody has written into it", str(wrong))

    def test_a_mark_at_its_beginning(self) -> None:
        self.path.write_text(LEAST, encoding="utf-8-sig")
        self.assertEqual(len(read_config(str(self.path)).pools), 1)

    def test_what_is_no_text(self) -> None:
        self.assertEqual(
            self.refused("# é\n# é".encode() + b"\xff"),
            "it is not UTF-8: byte 0xff at line 2, column 4",
        )

    def test_tables_that_are_deeper_than_python_goes(self) -> None:
        told = self.refused(f"{LEAST}{'.'.join(['a'] * 3000)} = 1".encode(), "pool.web.a")
        self.assertIn("there is no such key", told)

    def test_what_is_no_toml(self) -> None:
        for content, words in (
            (b"a = 1\nb =\n", "line 2, column 4"),
            (b"a = 1\nb = [1,\n  ", "line 3, column 3"),
            (b"a = 1\na = 2", "line 2, column 6"),
            (b"[listener]\n[[listener]]", "line 2"),
            (b"a = " + b"[" * 100_000, "brackets"),
            (b"a = " + b"9" * 10_000, "digits"),
        ):
            told = self.refused(content)
            self.assertTrue(told.startswith("it is not TOML: "), told)
            self.assertIn(words, told)


# ------------------------------------------------------------------------------------ whatever is read

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            *("5s", "0", "web", "db", "tcp:1", "unix:/a", "localhost:1", "srv:_a._tcp.b", "off"),
            *("dns:a:1", "file:a", "first", "tcp", "http", "close", "::1", "10.0.0.0/8", "/", "("),
            *("a.pem", "a.example", "*.example", "h2", "cn:a", "1.2", "5/s", "required"),
        ]
    ),
    st.just(datetime.time(7, 32)),
    st.just(datetime.date(1979, 5, 27)),
    st.just(datetime.datetime(1979, 5, 27, tzinfo=datetime.UTC)),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def tables_of(table: type, **good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Tables with such values, up to three keys of which may have any other; or no tables at all."""
    keys = list(table_keys(table))
    spoilt = st.dictionaries(st.sampled_from(keys) | st.text(max_size=6), JUNK, max_size=3)
    right = st.fixed_dictionaries(good)
    wrong = st.builds(lambda right, spoilt: {**right, **spoilt}, right, spoilt)
    return st.integers(0, 19).flatmap(lambda chance: [JUNK, wrong, wrong, right][min(chance, 3)])


NAMES = st.sampled_from(["web", "web", "web", "db", "a b"])
FILES_OF_TLS = st.sampled_from(["a.pem", ["a.pem"], ["a.pem", "b.pem"]])
SERVER_NAMES = st.lists(st.sampled_from(["a.example", "*.example"]), min_size=1, unique=True)
LISTENERS = tables_of(
    ListenerConfig,
    name=NAMES,
    listen=st.lists(st.sampled_from(["tcp:1", "tcp:0", "unix:/a"]), min_size=1, max_size=2),
    pool=NAMES,
    timeouts=tables_of(Timeouts),
    admit=tables_of(Admit),
    tls=tables_of(
        ListenerTLSConfig,
        certificate=FILES_OF_TLS,
        sni=st.lists(
            tables_of(SNIConfig, names=SERVER_NAMES, certificate=FILES_OF_TLS), max_size=1
        ),
    ),
    proxy_protocol=tables_of(ProxyProtocolConfig),
    route=st.lists(tables_of(RouteConfig, pool=NAMES, sni=SERVER_NAMES), max_size=1),
)
POOLS = tables_of(
    PoolConfig,
    targets=st.lists(
        st.sampled_from(["a:1", "localhost:1", "srv:_a._tcp.b"]), min_size=1, max_size=2
    ),
    health=tables_of(HealthConfig),
    tls=tables_of(UpstreamTLSConfig),
)
FILES = tables_of(
    Config,
    relay=tables_of(RelayConfig),
    listener=st.lists(LISTENERS, min_size=1, max_size=2),
    pool=st.dictionaries(NAMES, POOLS, min_size=1, max_size=2),
).filter(lambda tables: isinstance(tables, dict))


class WhateverIsReadTests(SynchronousTestCase):
    @given(FILES)
    def test_it_is_a_configuration_or_all_is_told(self, tables: dict[str, Any]) -> None:
        try:
            config = make_config(tables, "relay.toml", "/etc")
        except ConfigErrors as wrong:
            self.assertGreater(len(wrong.errors), 0)
            for error in wrong.errors:
                self.assertNotEqual(error.problem, "")
                self.assertTrue(str(error).isprintable(), error)
                file, _, place = error.where.partition(": ")
                self.assertEqual(file, "relay.toml")
                self.assert_leads_somewhere(place, tables)
        else:
            self.assertIsInstance(config, Config)
            self.assertEqual(make_config(tables, "relay.toml", "/etc"), config)

    def assert_leads_somewhere(self, place: str, tables: Any) -> None:
        """A place is there; or is a key that might be."""
        steps = re.findall(r'\[(\d+)\]|"((?:\\.|[^"\\])*)"|([^.\[\]"]+)', place)
        self.assertNotEqual(steps, [])
        for number, (index, quoted, bare) in enumerate(steps, 1):
            if index:
                self.assertIsInstance(tables, list, place)
                tables = tables[int(index)]
                continue
            key = bare or tomllib.loads(f'key = "{quoted}"')["key"]
            if isinstance(tables, dict) and key in tables:
                tables = tables[key]
            else:
                self.assertEqual(number, len(steps), place)
                might_be = ("name", "listen", "pool", "listener", "names", "certificate")
                self.assertIn(key, might_be, place)

"""`fwdrelay.upstream.discovery` as a whole: discoveries that are followed, against a real DNS server."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, Deferred
from zope.interface.verify import verifyObject

from fwdrelay.config import TargetConfig
from fwdrelay.errors import DiscoveryFailed
from fwdrelay.interfaces import Found, IDiscovery
from fwdrelay.upstream.discovery import Following, make_discovery
from fwdrelay.upstream.discovery.follow import MOST_TARGETS
from tests.case import SynchronousTestCase, TestCase
from tests.scenarios.dns_server import DnsServer, dns_server
from tests.upstream.discovery.parts import Findings, Log, OwnTime, discover, labels, no_chance

reactor: Any = installed_reactor


class MakeDiscoveryTests(SynchronousTestCase):
    def make(self, text: str, *nameservers: str) -> IDiscovery:
        return make_discovery(discover(text), None, nameservers)  # None: nothing may begin

    def test_each_kind(self) -> None:
        for text in ("dns:web.test:80", "srv:_http._tcp.test", "file:/nowhere/targets.json"):
            verifyObject(IDiscovery, self.make(text))

    def test_what_is_wrong_is_said(self) -> None:
        for text, *words in (
            ("dns:web.test", "dns:web.test"),
            ("dns:web.test:0", "port"),
            ("dns:-:80", "'-'"),
            ("srv:http.test", "_service._proto.domain"),
            ("srv:_http._tcp.-", "'-'"),
            ("file:/nowhere/targets", "neither .json nor .toml"),
            ("nosuch:x", "nosuch"),
        ):
            with self.assertRaises(ValueError) as raised:
                self.make(text)
            for word in words:
                self.assertIn(word, str(raised.exception))

    def test_a_nameserver_that_is_none(self) -> None:
        with self.assertRaisesRegex(ValueError, "'localhost' is not a name server"):
            self.make("dns:web.test:80", "localhost")


class RealServerTestCase(TestCase):
    """
    Answers come from a real server; time passes when the test says so.

    @ivar time: for times to live and retries.
    """

    timeout = 30

    def setUp(self) -> None:
        self.time = OwnTime()
        self.log = Log(self)
        self.findings = Findings()

    def discovery(self, text: str, server: DnsServer) -> IDiscovery:
        return make_discovery(discover(text), self.time, [server.address])

    async def find(self, text: str, server: DnsServer) -> Found:
        found: Found = await self.discovery(text, server).discover()
        return found

    async def failed(self, text: str, server: DnsServer) -> str:
        with self.assertRaises(DiscoveryFailed) as raised:
            await self.find(text, server)
        return str(raised.exception)

    def follow(self, text: str, server: DnsServer) -> Following:
        following = Following(
            self.discovery(text, server),
            discover(text),
            self.time,
            self.findings,
            "web",
            chance=no_chance,
        )
        following.start()
        self.addCleanup(following.stop)
        return following


class DnsTests(RealServerTestCase):
    async def test_each_address_is_a_target(self) -> None:
        with dns_server("web 9 A 192.0.2.2\nweb 9 A 192.0.2.1\nweb 8 AAAA 2001:db8::1") as server:
            found = await self.find("dns:web.test:80", server)
        self.assertEqual(
            labels(found.targets), ["192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80"]
        )
        self.assertEqual(found.ttl, 8)

    async def test_sixty_addresses(self) -> None:
        records = "\n".join(f"web 1 A 192.0.2.{number}" for number in range(60))
        with dns_server(records) as server:
            found = await self.find("dns:web.test:80", server)
        self.assertEqual(len(found.targets), 60)

    async def test_failures(self) -> None:
        with dns_server("text 1 TXT nothing") as server:
            self.assertIn("does not exist", await self.failed("dns:no.test:80", server))
            self.assertIn("SERVFAIL", await self.failed("dns:a.broken.test:80", server))
            self.assertIn("has no address", await self.failed("dns:text.test:80", server))

    async def test_records_come_and_go(self) -> None:
        with dns_server("web 1 A 192.0.2.1") as server:
            following = self.follow("dns:web.test:80", server)
            self.assertEqual(labels(await self.findings.next()), ["192.0.2.1:80"])
            server.serve("web 1 A 192.0.2.1\nweb 1 A 192.0.2.2")
            self.time.advance(1)
            self.assertEqual(labels(await self.findings.next()), ["192.0.2.1:80", "192.0.2.2:80"])
            server.serve("web 1 A 192.0.2.2")
            self.time.advance(1)
            self.assertEqual(labels(await self.findings.next()), ["192.0.2.2:80"])
            following.stop()
        self.assertEqual(
            self.log.lines[-1], "Pool web: dns:web.test:80 has 1 target; gone: 192.0.2.1:80."
        )

    async def test_the_name_goes_and_is_back(self) -> None:
        with dns_server("web 1 A 192.0.2.1") as server:
            following = self.follow("dns:web.test:80", server)
            await self.findings.next()
            server.serve("")
            self.time.advance(1)
            await self.log.wait_for("web.test does not exist")
            self.assertEqual(labels(following.known or ()), ["192.0.2.1:80"])
            server.serve("web 1 A 192.0.2.9")
            self.time.advance(1)
            await self.log.wait_for("works again")
            self.assertEqual(labels(await self.findings.next()), ["192.0.2.9:80"])
            following.stop()

    async def test_the_server_dies_and_is_back(self) -> None:
        with dns_server("web 1 A 192.0.2.1") as server:
            following = self.follow("dns:web.test:80", server)
            await self.findings.next()
            server.stop()
            self.time.advance(1)
            line = await self.log.wait_for("Connection refused")
            self.assertIn("going on with 1 target known from it", line)
            server.start()
            server.serve("web 1 A 192.0.2.2")
            self.time.advance(1)
            self.assertEqual(labels(await self.findings.next()), ["192.0.2.2:80"])
            following.stop()

    async def test_the_server_is_not_there_yet(self) -> None:
        with dns_server("web 1 A 192.0.2.1") as server:
            server.stop()
            following = self.follow("dns:web.test:80", server)
            await self.log.wait_for("no target is known from it yet")
            self.assertIsNone(following.known)
            server.start()
            self.time.advance(1)
            await self.findings.next()
            following.stop()

    async def test_stop_while_it_is_asked(self) -> None:
        with dns_server("web 1 A 192.0.2.1") as server:
            following = self.follow("dns:web.test:80", server)
            following.stop()
            self.assertEqual(self.time.getDelayedCalls(), [])
        self.assertEqual(self.findings.all, [])

    async def test_by_the_reactors_own_time(self) -> None:
        with dns_server("web 1 A 192.0.2.1") as server:
            discovery = make_discovery(discover("dns:web.test:80"), reactor, [server.address])
            following = Following(
                discovery, discover("dns:web.test:80"), reactor, self.findings, "web"
            )
            following.start()
            await self.findings.next()
            server.serve("web 1 A 192.0.2.2")
            self.assertEqual(labels(await self.findings.next()), ["192.0.2.2:80"])
            following.stop()


class SrvTests(RealServerTestCase):
    async def test_each_record_is_a_target(self) -> None:
        records = """
            _http._tcp 9 SRV 10 3 8080 a.test.
            _http._tcp 9 SRV 10 1 8081 b.test.
            _http._tcp 9 SRV 20 0 80 a.test.
            a 7 A 192.0.2.1
            a 8 AAAA 2001:db8::1
            b 9 A 192.0.2.2
        """
        with dns_server(records) as server:
            found = await self.find("srv:_http._tcp.test", server)
        both = ("192.0.2.1", "2001:db8::1")
        self.assertEqual(
            found.targets,
            (
                TargetConfig(host="a.test", port=8080, priority=10, weight=3, addresses=both),
                TargetConfig(
                    host="b.test", port=8081, priority=10, weight=1, addresses=("192.0.2.2",)
                ),
                TargetConfig(host="a.test", port=80, priority=20, weight=1, addresses=both),
            ),
        )
        self.assertEqual(found.ttl, 7)

    async def test_a_weight_of_0_among_others(self) -> None:
        records = "_http._tcp 9 SRV 0 0 1 a.test.\n_http._tcp 9 SRV 0 2 2 a.test.\na 9 A 192.0.2.1"
        with dns_server(records) as server:
            found = await self.find("srv:_http._tcp.test", server)
        self.assertEqual([target.weight for target in found.targets], [100, 1])

    async def test_that_there_is_no_such_service_is_no_failure(self) -> None:
        with dns_server("_http._tcp 30 SRV 0 0 0 .") as server:
            found = await self.find("srv:_http._tcp.test", server)
        self.assertEqual(found, Found((), 30))

    async def test_failures(self) -> None:
        with dns_server("_a._tcp 1 TXT no\n_b._tcp 1 SRV 0 0 80 no.test.") as server:
            self.assertIn("no SRV records", await self.failed("srv:_a._tcp.test", server))
            self.assertIn("no.test does not exist", await self.failed("srv:_b._tcp.test", server))
            self.assertIn("does not exist", await self.failed("srv:_c._tcp.test", server))
            self.assertIn("SERVFAIL", await self.failed("srv:_d._tcp.broken.test", server))

    async def test_a_host_that_does_not_resolve_is_left_out_and_told_once(self) -> None:
        records = "_http._tcp 1 SRV 0 1 80 a.test.\n_http._tcp 1 SRV 0 1 80 b.test.\n"
        with dns_server(f"{records}a 1 A 192.0.2.1") as server:
            discovery = self.discovery("srv:_http._tcp.test", server)
            for _ in range(3):
                found = await discovery.discover()
                self.assertEqual(labels(found.targets), ["a.test:80"])
                self.time.advance(1)
            self.assertEqual(len(self.log.lines), 1)
            self.assertIn("b.test does not exist", self.log.lines[0])
            self.assertIn("b.test is left out", self.log.lines[0])
            server.serve(f"{records}a 1 A 192.0.2.1\nb 1 A 192.0.2.2")
            found = await discovery.discover()
            self.assertEqual(labels(found.targets), ["a.test:80", "b.test:80"])
            self.assertEqual(
                self.log.lines[1:], ["srv:_http._tcp.test: b.test is no longer left out."]
            )

    async def test_changes_are_followed(self) -> None:
        host = "a 1 A 192.0.2.1\n"
        with dns_server(host + "_http._tcp 1 SRV 0 1 80 a.test.") as server:
            following = self.follow("srv:_http._tcp.test", server)
            (before,) = await self.findings.next()
            server.serve(host + "_http._tcp 1 SRV 0 5 80 a.test.")
            self.time.advance(1)
            (after,) = await self.findings.next()
            self.assertEqual((before.weight, after.weight), (1, 5))
            self.assertEqual(before.label, after.label)
            server.serve("a 1 A 192.0.2.2\n_http._tcp 1 SRV 0 5 80 a.test.")
            self.time.advance(1)
            (after,) = await self.findings.next()
            self.assertEqual(after.addresses, ("192.0.2.2",))
            server.serve("_http._tcp 1 SRV 0 0 0 .")
            self.time.advance(1)
            self.assertEqual(await self.findings.next(), ())
            following.stop()

    async def test_more_than_anybody_has(self) -> None:
        records = "\n".join(f"_x._tcp 1 SRV 0 1 {port} a.test." for port in range(1, 1501))
        with dns_server(f"{records}\na 1 A 192.0.2.1") as server:
            following = self.follow("srv:_x._tcp.test", server)
            found = await self.findings.next()
            self.assertEqual([target.port for target in found], list(range(1, MOST_TARGETS + 1)))
            following.stop()
        self.assertEqual(
            self.log.lines[0],
            "srv:_x._tcp.test has 1500 targets; only the first 1000 are taken.",
        )

    async def test_a_look_up_can_be_cancelled(self) -> None:
        with dns_server("_x._tcp 1 SRV 0 1 80 a.test.\na 1 A 192.0.2.1") as server:
            discovery = self.discovery("srv:_x._tcp.test", server)
            looking_up: Deferred[Any] = Deferred.fromCoroutine(discovery.discover())  # type: ignore[arg-type]
            looking_up.cancel()
            self.failureResultOf(looking_up, CancelledError)
            self.assertEqual(self.time.getDelayedCalls(), [])

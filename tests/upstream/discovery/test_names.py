"""`fwdrelay.upstream.discovery.names`, with answers and a clock that tests own."""

from __future__ import annotations

import tempfile
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.names import dns

from fwdrelay.errors import DiscoveryFailed
from fwdrelay.upstream.discovery.names import (
    HOSTS_TTL,
    LONGEST_LOOK_UP,
    Addresses,
    Names,
    in_time,
    together,
)
from fwdrelay.upstream.discovery.nameservers import Answer, NoSuchName
from tests.case import SynchronousTestCase
from tests.upstream.discovery.parts import Log

RECORDS: Any = {dns.A: dns.Record_A, dns.AAAA: dns.Record_AAAA}


class ScriptedServers:
    """
    Stands for `Nameservers`.

    @ivar answers: by name and type, what the next question gets: an answer, or what is raised.
    @ivar asked: all questions.
    """

    def __init__(self) -> None:
        self.system = False
        self.answers: dict[tuple[str, int], Answer | Exception] = {}
        self.asked: list[tuple[str, int]] = []

    async def ask(self, name: str, kind: int) -> Answer:
        self.asked.append((name, kind))
        answer = self.answers.get((name, kind), Answer((), 0.0))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def set(self, name: str, kind: int, *addresses: str, ttl: float = 10) -> None:
        """Answer with these from now on."""
        self.answers[name, kind] = Answer(tuple(map(RECORDS[kind], addresses)), ttl)

    def fail(self, name: str, kind: int, error: Exception) -> None:
        """Fail from now on."""
        self.answers[name, kind] = error


class NamesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.servers = ScriptedServers()
        self.log = Log(self)
        servers: Any = self.servers
        self.names = Names(self.clock, servers)

    def addresses(self, host: str = "web.test") -> Addresses:
        return self.successResultOf(Deferred.fromCoroutine(self.names.addresses(host)))

    def failed(self, host: str = "web.test") -> str:
        asked = Deferred.fromCoroutine(self.names.addresses(host))
        return str(self.failureResultOf(asked, DiscoveryFailed).value)

    def test_both_families_in_order_of_their_numbers(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.10", "192.0.2.9", ttl=9)
        self.servers.set("web.test", dns.AAAA, "2001:db8::1", ttl=8)
        self.assertEqual(self.addresses(), Addresses(("192.0.2.9", "192.0.2.10", "2001:db8::1"), 8))

    def test_one_family(self) -> None:
        self.servers.set("web.test", dns.AAAA, "2001:db8::1", ttl=8)
        self.assertEqual(self.addresses(), Addresses(("2001:db8::1",), 8))
        self.assertEqual(self.log.lines, [])

    def test_none(self) -> None:
        self.assertEqual(self.failed(), "web.test has no address: neither A nor AAAA records")

    def test_no_such_name(self) -> None:
        for kind in (dns.A, dns.AAAA):
            self.servers.fail("web.test", kind, NoSuchName("web.test does not exist"))
        self.assertEqual(self.failed(), "web.test does not exist")

    def test_what_is_still_good_is_not_asked_for_again(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.1", ttl=10)
        self.servers.set("web.test", dns.AAAA, "2001:db8::1", ttl=4)
        self.addresses()
        self.clock.advance(4)
        self.servers.asked.clear()
        self.assertEqual(self.addresses().ttl, 4)
        self.assertEqual(self.servers.asked, [("web.test", dns.AAAA)])
        self.clock.advance(3)
        self.assertEqual(self.addresses().ttl, 1)

    def test_a_family_that_fails_keeps_what_was_known_of_it(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.1", ttl=10)
        self.servers.set("web.test", dns.AAAA, "2001:db8::1", ttl=10)
        whole = self.addresses()
        self.servers.fail("web.test", dns.AAAA, DiscoveryFailed("AAAA did not answer"))
        for _ in range(3):
            self.clock.advance(10)
            self.assertEqual(self.addresses(), whole)
        said = "AAAA did not answer; going on with what else is known of web.test."
        self.assertEqual(self.log.lines, [said])
        self.servers.set("web.test", dns.AAAA)
        self.assertEqual(self.addresses().addresses, ("192.0.2.1",))
        self.assertEqual(self.log.lines[1:], ["All addresses of web.test can be looked up again."])

    def test_a_family_that_never_worked_is_gone_without(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.1")
        self.servers.fail("web.test", dns.AAAA, DiscoveryFailed("AAAA did not answer"))
        self.assertEqual(self.addresses().addresses, ("192.0.2.1",))
        self.assertEqual(len(self.log.lines), 1)

    def test_a_family_that_is_said_not_to_exist_is_gone(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.1")
        self.servers.set("web.test", dns.AAAA, "2001:db8::1")
        self.addresses()
        self.clock.advance(10)
        self.servers.fail("web.test", dns.AAAA, NoSuchName("web.test does not exist"))
        self.assertEqual(self.addresses().addresses, ("192.0.2.1",))
        self.assertEqual(self.log.lines, [])

    def test_both_fail(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.1")
        self.addresses()
        self.clock.advance(10)
        for kind in (dns.A, dns.AAAA):
            self.servers.fail("web.test", kind, DiscoveryFailed(f"{dns.QUERY_TYPES[kind]} failed"))
        self.assertEqual(self.failed(), "A failed")

    def test_no_records_and_a_failure_are_a_failure(self) -> None:
        self.servers.fail("web.test", dns.AAAA, DiscoveryFailed("AAAA did not answer"))
        self.assertEqual(self.failed(), "AAAA did not answer")

    def test_what_is_forgotten_is_asked_for_again(self) -> None:
        for host in ("web.test", "other.test"):
            self.servers.set(host, dns.A, "192.0.2.1", ttl=100)
            self.servers.set(host, dns.AAAA, "2001:db8::1", ttl=100)
            self.addresses(host)
        self.names.forget(["other.test"])
        self.servers.asked.clear()
        self.addresses("web.test")
        self.addresses("other.test")
        self.assertEqual({name for name, _ in self.servers.asked}, {"web.test"})

    def test_the_hosts_file_comes_first_where_the_system_is_asked(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.1")
        servers: Any = self.servers
        with tempfile.NamedTemporaryFile("w") as hosts:
            hosts.write("# hosts\n192.0.2.7 Web.test web\n::7 web.test\nbroken web.test\n")
            hosts.flush()
            self.servers.system = True
            self.names = Names(self.clock, servers, hosts.name)
            for name in ("web.test", "WEB.test", "web.test."):
                self.assertEqual(self.addresses(name), Addresses(("192.0.2.7", "::7"), HOSTS_TTL))
            self.assertEqual(self.servers.asked, [])
            hosts.write("192.0.2.8 web.test\n")
            hosts.flush()
            self.assertEqual(self.addresses().addresses, ("192.0.2.7", "192.0.2.8", "::7"))
            self.servers.system = False
            self.names = Names(self.clock, servers, hosts.name)
            self.assertEqual(self.addresses().addresses, ("192.0.2.1",))

    def test_a_hosts_file_that_is_not_there(self) -> None:
        self.servers.set("web.test", dns.A, "192.0.2.1")
        self.servers.system = True
        servers: Any = self.servers
        self.names = Names(self.clock, servers, "/nowhere/hosts")
        self.assertEqual(self.addresses().addresses, ("192.0.2.1",))


class WaitingTests(SynchronousTestCase):
    def test_together(self) -> None:
        async def two() -> int:
            return 2

        async def three() -> int:
            return 3

        both = Deferred.fromCoroutine(together([two(), three()]))
        self.assertEqual(self.successResultOf(both), [2, 3])

    def test_who_cancels_cancels_all(self) -> None:
        waiting: list[Deferred[None]] = [Deferred(), Deferred()]

        async def wait(number: int) -> None:
            await waiting[number]

        both = Deferred.fromCoroutine(together([wait(0), wait(1)]))
        both.cancel()
        self.failureResultOf(both, CancelledError)
        self.assertTrue(all(each.called for each in waiting))

    def test_in_time(self) -> None:
        clock = Clock()
        answer: Deferred[int] = Deferred()

        async def look_up() -> int:
            return await answer

        asked = Deferred.fromCoroutine(in_time(look_up(), clock))
        clock.advance(LONGEST_LOOK_UP - 1)
        answer.callback(5)
        self.assertEqual(self.successResultOf(asked), 5)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_not_in_time(self) -> None:
        clock = Clock()
        answer: Deferred[int] = Deferred()

        async def look_up() -> int:
            return await answer

        asked = Deferred.fromCoroutine(in_time(look_up(), clock))
        clock.advance(LONGEST_LOOK_UP)
        self.assertIn("longer than 30s", str(self.failureResultOf(asked, DiscoveryFailed).value))
        self.assertTrue(answer.called)

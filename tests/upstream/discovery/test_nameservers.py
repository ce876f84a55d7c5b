"""`fwdrelay.upstream.discovery.nameservers`: against a real server, and against ones that misbehave."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue, gatherResults
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.names import dns
from twisted.python.failure import Failure

from fwdrelay.errors import DiscoveryFailed
from fwdrelay.upstream.discovery.nameservers import (
    AT_ONCE,
    PATIENCE,
    Answer,
    Nameservers,
    NoSuchName,
    Server,
    _Question,
    read_resolv_conf,
)
from tests.case import SynchronousTestCase, TestCase
from tests.scenarios.dns_server import dns_server
from tests.upstream.discovery.parts import OwnTime

reactor: Any = installed_reactor
NOBODY = "127.0.0.1:1"
"""A name server's address that nobody answers at: asking there is refused."""


def texts(answer: Answer) -> list[str]:
    """The IPv4 addresses of an answer, in order."""
    return sorted(record.dottedQuad() for record in answer.records)


class Scripted(DatagramProtocol):
    """
    A name server by UDP that does what the test says.

    @ivar asked: each datagram that came, and where from.
    """

    noisy = False

    def __init__(self) -> None:
        self.asked: DeferredQueue[tuple[dns.Message, Any]] = DeferredQueue()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        message = dns.Message()
        message.fromStr(datagram)
        self.asked.put((message, addr))

    def send(self, data: bytes, address: Any) -> None:
        """Send this to who asked."""
        assert self.transport is not None
        self.transport.write(data, address)


def answer_to(asked: dns.Message, *addresses: str, **values: Any) -> dns.Message:
    """The message that answers with these IPv4 addresses."""
    message = dns.Message(id=asked.id, answer=1, maxSize=0, **values)
    message.queries = asked.queries
    name = asked.queries[0].name.name
    message.answers = [
        dns.RRHeader(name, dns.A, dns.IN, 5, dns.Record_A(address)) for address in addresses
    ]
    return message


class RealServerTests(TestCase):
    timeout = 60

    async def test_records_and_their_time_to_live(self) -> None:
        with dns_server("web 7 A 192.0.2.1\nweb 7 A 192.0.2.2") as server:
            answer = await Nameservers(reactor, [server.address]).ask("web.test", dns.A)
            self.assertEqual(texts(answer), ["192.0.2.1", "192.0.2.2"])
            self.assertEqual(answer.ttl, 7)

    async def test_names_are_as_they_are_written(self) -> None:
        with dns_server("web 7 A 192.0.2.1") as server:
            servers = Nameservers(reactor, [server.address])
            for name in ("web.test", "WEB.Test", "web.test."):
                self.assertEqual(texts(await servers.ask(name, dns.A)), ["192.0.2.1"])

    async def test_by_ipv6(self) -> None:
        with dns_server("web 7 A 192.0.2.1\n" + _many(60)) as server:
            servers = Nameservers(reactor, [server.address6])
            self.assertEqual(texts(await servers.ask("web.test", dns.A)), ["192.0.2.1"])
            self.assertEqual(len((await servers.ask("many.test", dns.A)).records), 60)

    async def test_no_such_record(self) -> None:
        with dns_server("web 7 A 192.0.2.1") as server:
            answer = await Nameservers(reactor, [server.address]).ask("web.test", dns.AAAA)
            self.assertEqual(answer, Answer((), 0.0))

    async def test_no_such_name(self) -> None:
        with dns_server() as server:
            said = await _failed(Nameservers(reactor, [server.address]), "no.test")
            self.assertIsInstance(said, NoSuchName)
            self.assertEqual(str(said), f"no.test does not exist, says {server.address}")

    async def test_servfail(self) -> None:
        with dns_server() as server:
            said = await _failed(Nameservers(reactor, [server.address]), "a.broken.test")
            self.assertNotIsInstance(said, NoSuchName)
            self.assertEqual(
                str(said), f"can't look up A of a.broken.test: {server.address} answers SERVFAIL"
            )

    async def test_aliases(self) -> None:
        records = "one 9 CNAME two\ntwo 3 CNAME three\nthree 5 A 192.0.2.3"
        with dns_server(records) as server:
            answer = await Nameservers(reactor, [server.address]).ask("one.test", dns.A)
            self.assertEqual(texts(answer), ["192.0.2.3"])
            self.assertEqual(answer.ttl, 3)

    async def test_aliases_without_end(self) -> None:
        with dns_server("one 9 CNAME two\ntwo 9 CNAME one") as server:
            said = await _failed(Nameservers(reactor, [server.address]), "one.test")
            self.assertIn("one.test", str(said))

    async def test_answers_that_are_too_long_for_a_datagram(self) -> None:
        with dns_server(_many(2000)) as server:
            answer = await Nameservers(reactor, [server.address]).ask("many.test", dns.A)
            self.assertEqual(len(answer.records), 2000)

    async def test_one_that_is_not_there_is_passed_over(self) -> None:
        with dns_server("web 7 A 192.0.2.1") as server:
            servers = Nameservers(reactor, [NOBODY, server.address])
            self.assertEqual(texts(await servers.ask("web.test", dns.A)), ["192.0.2.1"])

    async def test_one_that_cannot_be_reached_is_passed_over(self) -> None:
        nowhere = "255.255.255.255:53"  # a broadcast, which is not permitted
        with dns_server("web 7 A 192.0.2.1") as server:
            servers = Nameservers(reactor, [nowhere, server.address])
            self.assertEqual(texts(await servers.ask("web.test", dns.A)), ["192.0.2.1"])
        said = await _failed(Nameservers(reactor, [nowhere]), "web.test")
        self.assertIn("255.255.255.255:53 can't be asked by UDP (Permission denied)", str(said))

    async def test_dead_and_back(self) -> None:
        with dns_server("web 7 A 192.0.2.1") as server:
            servers = Nameservers(reactor, [server.address])
            server.stop()
            said = await _failed(servers, "web.test")
            self.assertIn(f"{server.address} can't be asked by UDP (Connection refused)", str(said))
            server.start()
            self.assertEqual(texts(await servers.ask("web.test", dns.A)), ["192.0.2.1"])

    async def test_many_questions_at_once(self) -> None:
        records = "\n".join(f"h{number} 1 A 192.0.2.{number}" for number in range(100))
        with dns_server(records) as server:
            servers = Nameservers(reactor, [server.address])
            asked = [
                Deferred.fromCoroutine(servers.ask(f"h{number}.test", dns.A))
                for number in range(100)
            ]
            for number, each in enumerate(asked):
                self.assertEqual(texts(await each), [f"192.0.2.{number}"])

    async def test_resolv_conf_is_followed(self) -> None:
        with (
            dns_server("web 7 A 192.0.2.1") as server,
            tempfile.NamedTemporaryFile("w", suffix=".conf") as file,
        ):
            servers = Nameservers(reactor, [], file.name)
            self.assertTrue(servers.system)
            file.write("# none of these\nnameserver\nnameserver here\nnameserver 127.0.0.9 # one\n")
            file.flush()
            self.assertEqual(servers.servers, (Server("127.0.0.9", 53),))
            file.write("search test\nnameserver ::1\n")
            file.flush()
            self.assertEqual(servers.servers, (Server("127.0.0.9", 53), Server("::1", 53)))
            given = Nameservers(reactor, [server.address], file.name)
            self.assertEqual([str(each) for each in given.servers], [server.address])


class MisbehavingServerTests(TestCase):
    """Servers of our own, and time that passes when we say so."""

    timeout = 60

    def setUp(self) -> None:
        self.time = OwnTime()
        self.server, self.address = self.serve()
        self.servers = Nameservers(self.time, [self.address])

    def serve(self) -> tuple[Scripted, str]:
        server = Scripted()
        port = reactor.listenUDP(0, server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return server, f"127.0.0.1:{port.getHost().port}"

    def ask(self, *servers: str) -> Deferred[Answer]:
        names = Nameservers(self.time, servers) if servers else self.servers
        return Deferred.fromCoroutine(names.ask("web.test", dns.A))

    async def test_nothing_is_left_of_a_question(self) -> None:
        asking = self.ask()
        asked, address = await self.server.asked.get()
        self.server.send(answer_to(asked, "192.0.2.1").toStr(), address)
        self.assertEqual(texts(await asking), ["192.0.2.1"])
        self.assertEqual(self.time.getDelayedCalls(), [])

    async def test_the_log_hears_nothing_of_a_question(self) -> None:
        logged: list[Any] = []
        observer: Any = logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        asking = self.ask()
        asked, address = await self.server.asked.get()
        self.server.send(answer_to(asked, "192.0.2.1").toStr(), address)
        await asking
        with self.assertRaises(DiscoveryFailed):
            await self.ask(NOBODY)
        await deferLater(reactor, 0)
        self.assertEqual(list(map(formatEvent, logged)), [])

    async def test_nothing_is_left_of_one_that_was_cancelled(self) -> None:
        asking = self.ask()
        await self.server.asked.get()
        asking.cancel()
        self.failureResultOf(asking, CancelledError)
        self.assertEqual(self.time.getDelayedCalls(), [])

    async def test_nothing_is_left_of_those_that_waited_for_their_turn(self) -> None:
        asking = [self.ask() for _ in range(2 * AT_ONCE)]
        for each in asking:
            each.cancel()
            self.failureResultOf(each, CancelledError)
        self.assertEqual(self.time.getDelayedCalls(), [])

    async def test_what_is_lost_is_sent_again_with_more_patience(self) -> None:
        asking = self.ask()
        for patience in PATIENCE:
            await self.server.asked.get()
            (call,) = self.time.getDelayedCalls()
            self.assertEqual(call.getTime() - self.time.seconds(), patience)
            self.time.advance(patience)
        said = str(self.failureResultOf(asking, DiscoveryFailed).value)
        self.assertEqual(said, f"can't look up A of web.test: {self.address} did not answer by UDP")
        self.assertEqual(self.time.getDelayedCalls(), [])

    async def test_another_server_is_asked_meanwhile(self) -> None:
        other, address = self.serve()
        asking = self.ask(self.address, address)
        await self.server.asked.get()
        self.time.advance(PATIENCE[0])
        asked, back = await other.asked.get()
        other.send(answer_to(asked, "192.0.2.1").toStr(), back)
        self.assertEqual(texts(await asking), ["192.0.2.1"])

    async def test_one_that_says_it_cannot_is_not_asked_again(self) -> None:
        other, address = self.serve()
        asking = self.ask(self.address, address)
        asked, back = await self.server.asked.get()
        self.server.send(answer_to(asked, rCode=dns.EREFUSED).toStr(), back)
        for patience in PATIENCE:
            await other.asked.get()
            self.time.advance(patience)
        said = str(self.failureResultOf(asking, DiscoveryFailed).value)
        self.assertIn(f"{self.address} answers REFUSED; {address} did not answer by UDP", said)

    async def test_what_answers_another_question_is_passed_over(self) -> None:
        asking = self.ask()
        asked, back = await self.server.asked.get()
        right = answer_to(asked, "192.0.2.1")
        other_id = answer_to(asked, "192.0.2.66")
        other_id.id ^= 1
        other_name = answer_to(asked, "192.0.2.66")
        other_name.queries = [dns.Query("other.test", dns.A)]
        other_kind = answer_to(asked, "192.0.2.66")
        other_kind.queries = [dns.Query("web.test", dns.AAAA)]
        question = answer_to(asked, "192.0.2.66")
        question.answer = 0
        for wrong in (other_id, other_name, other_kind, question):
            self.server.send(wrong.toStr(), back)
        for damaged in (b"", b"\0" * 11, right.toStr()[:-3], struct.pack("!H", asked.id)):
            self.server.send(damaged, back)
        self.server.send(right.toStr(), back)
        self.assertEqual(texts(await asking), ["192.0.2.1"])

    async def test_what_somebody_else_sends_is_not_taken(self) -> None:
        other, _ = self.serve()
        asking = self.ask()
        asked, back = await self.server.asked.get()
        other.send(answer_to(asked, "192.0.2.66").toStr(), back)
        self.server.send(answer_to(asked, "192.0.2.1").toStr(), back)
        self.assertEqual(texts(await asking), ["192.0.2.1"])

    async def test_two_answers_are_one(self) -> None:
        asking = self.ask()
        asked, back = await self.server.asked.get()
        for _ in range(3):
            self.server.send(answer_to(asked, "192.0.2.1").toStr(), back)
        self.assertEqual(texts(await asking), ["192.0.2.1"])

    async def test_records_of_other_names_and_kinds_are_not_taken(self) -> None:
        asking = self.ask()
        asked, back = await self.server.asked.get()
        message = answer_to(asked, "192.0.2.1")
        message.answers += [
            dns.RRHeader("other.test", dns.A, dns.IN, 5, dns.Record_A("192.0.2.66")),
            dns.RRHeader("web.test", dns.AAAA, dns.IN, 5, dns.Record_AAAA("2001:db8::66")),
        ]
        self.server.send(message.toStr(), back)
        self.assertEqual(texts(await asking), ["192.0.2.1"])

    async def test_an_alias_that_leads_elsewhere_is_asked_for(self) -> None:
        asking = self.ask()
        asked, back = await self.server.asked.get()
        message = answer_to(asked)
        message.answers = [
            dns.RRHeader("web.test", dns.CNAME, dns.IN, 5, dns.Record_CNAME("far.test"))
        ]
        self.server.send(message.toStr(), back)
        asked, back = await self.server.asked.get()
        self.assertEqual(asked.queries, [dns.Query("far.test", dns.A)])
        self.server.send(answer_to(asked, "192.0.2.1").toStr(), back)
        self.assertEqual(texts(await asking), ["192.0.2.1"])

    async def test_aliases_lead_on_and_on(self) -> None:
        asking = self.ask()
        count = 0
        while not asking.called:
            asked, back = await self.server.asked.get()
            count += 1
            message = answer_to(asked)
            here = asked.queries[0].name.name
            message.answers = [
                dns.RRHeader(here, dns.CNAME, dns.IN, 5, dns.Record_CNAME(b"x" + here))
            ]
            self.server.send(message.toStr(), back)
            if count == 17:
                break
        with self.assertRaisesRegex(DiscoveryFailed, "alias"):
            await asking

    async def test_a_time_to_live_that_is_none(self) -> None:
        asking = self.ask()
        asked, back = await self.server.asked.get()
        message = answer_to(asked, "192.0.2.1")
        message.answers[0].ttl = 2**31
        self.server.send(message.toStr(), back)
        self.assertEqual((await asking).ttl, 0)

    async def test_a_name_that_dns_cannot_hold(self) -> None:
        with self.assertRaisesRegex(DiscoveryFailed, "not a name that DNS can hold"):
            await self.servers.ask("ü" * 70 + ".test", dns.A)


class StreamTests(TestCase):
    """What becomes of answers that were cut, where TCP does not work out."""

    timeout = 60

    def setUp(self) -> None:
        self.time = OwnTime()
        self.connected: DeferredQueue[Protocol] = DeferredQueue()
        connected, gone = self.connected, list[Deferred[None]]()

        class Silent(Protocol):
            def connectionMade(self) -> None:
                self.gone: Deferred[None] = Deferred()
                gone.append(self.gone)

            def dataReceived(self, data: bytes) -> None:
                connected.put(self)

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                self.gone.callback(None)

        port = self.port = reactor.listenTCP(0, Factory.forProtocol(Silent), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.server = Scripted()
        udp = reactor.listenUDP(port.getHost().port, self.server, interface="127.0.0.1")
        self.addCleanup(udp.stopListening)
        self.addCleanup(lambda: gatherResults(gone))  # whoever came by TCP has left
        self.address = f"127.0.0.1:{port.getHost().port}"
        servers = Nameservers(self.time, [self.address])
        self.asking = Deferred.fromCoroutine(servers.ask("web.test", dns.A))

    async def cut(self) -> Any:
        """Answer with a part; wait for who comes by TCP."""
        asked, back = await self.server.asked.get()
        self.server.send(answer_to(asked, "192.0.2.66", trunc=1).toStr(), back)
        protocol = await self.connected.get()
        return asked, protocol.transport

    async def test_what_was_cut_is_not_taken(self) -> None:
        asked, transport = await self.cut()
        _say(transport, answer_to(asked, "192.0.2.1", "192.0.2.2"))
        self.assertEqual(texts(await self.asking), ["192.0.2.1", "192.0.2.2"])

    async def test_what_is_cut_by_tcp_too_is_not_taken(self) -> None:
        asked, transport = await self.cut()
        _say(transport, answer_to(asked, "192.0.2.66", trunc=1))
        with self.assertRaisesRegex(DiscoveryFailed, f"{self.address} cuts its answer off"):
            await self.asking

    async def test_nothing_is_left_of_one_that_was_cancelled(self) -> None:
        await self.cut()
        self.asking.cancel()
        self.failureResultOf(self.asking, CancelledError)
        self.assertEqual(self.time.getDelayedCalls(), [])

    async def test_a_connection_that_is_lost(self) -> None:
        _, transport = await self.cut()
        transport.loseConnection()
        with self.assertRaisesRegex(DiscoveryFailed, f"{self.address} can't be asked by TCP"):
            await self.asking

    async def test_a_connection_that_is_refused(self) -> None:
        await self.port.stopListening()
        asked, back = await self.server.asked.get()
        self.server.send(answer_to(asked, "192.0.2.66", trunc=1).toStr(), back)
        with self.assertRaisesRegex(DiscoveryFailed, r"by TCP \(Connection refused\)"):
            await self.asking

    async def test_a_connection_that_is_silent(self) -> None:
        for patience in PATIENCE:
            await self.cut()
            self.time.advance(patience)
        said = str(self.failureResultOf(self.asking, DiscoveryFailed).value)
        self.assertIn("did not answer by TCP", said)
        self.assertEqual(self.time.getDelayedCalls(), [])


class PlainTests(SynchronousTestCase):
    def test_servers(self) -> None:
        for text, host, port in (
            ("127.0.0.1:5353", "127.0.0.1", 5353),
            ("[::1]:5353", "::1", 5353),
            ("127.0.0.1", "127.0.0.1", 53),
        ):
            self.assertEqual(Server.of(text), Server(host, port))
        self.assertEqual(str(Server("::1", 53)), "[::1]:53")

    def test_what_is_no_server(self) -> None:
        for text in ("", "localhost:53", "127.0.0.1:0", "::1:53x"):
            with self.assertRaises(ValueError):
                Nameservers(None, [text])

    def test_no_resolv_conf(self) -> None:
        for path in (Path("/nowhere/resolv.conf"), Path("/")):
            self.assertEqual(read_resolv_conf(str(path)), (Server("127.0.0.1", 53),))

    @given(st.binary(max_size=300))
    def test_no_bytes_do_harm(self, data: bytes) -> None:
        question = _Question(dns.Query("web.test", dns.A))
        self.assertIsNone(question.answered_by(question.data[:2] + data))

    def test_long_names_are_not_read_again_and_again(self) -> None:
        """It would hold up the relay for a quarter of a minute."""
        question = _Question(dns.Query("web.test", dns.A))
        asked = dns.Message()
        asked.fromStr(question.data)
        answer = bytearray(answer_to(asked, "192.0.2.1").toStr())
        del answer[len(question.data) :]
        record = struct.pack("!HHIH4s", dns.A, dns.IN, 1, 4, b"")
        name = len(answer)
        answer += b"\1x" * 4000 + b"\0" + record
        for _ in range(3500):
            answer += struct.pack("!H", 0xC000 | name) + record
        answer[6:8] = struct.pack("!H", 3501)
        with mock.patch.object(
            dns.Message, "lookupRecordType", wraps=dns.Message().lookupRecordType
        ) as read:
            self.assertIsNone(question.answered_by(bytes(answer)))
        self.assertLess(read.call_count, 100)

    @given(st.data())
    def test_damage_to_an_answer_does_no_harm(self, data: Any) -> None:
        question = _Question(dns.Query("web.test", dns.A))
        asked = dns.Message()
        asked.fromStr(question.data)
        whole = answer_to(asked, *(f"192.0.2.{number}" for number in range(10))).toStr()
        end = data.draw(st.integers(0, len(whole) - 1))
        self.assertIsNone(question.answered_by(whole[:end]))
        damaged = bytearray(whole)
        for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)):
            damaged[position] = data.draw(st.integers(0, 255))
        question.answered_by(bytes(damaged))


def _many(count: int) -> str:
    return "\n".join(f"many 1 A 198.51.{number // 256}.{number % 256}" for number in range(count))


def _say(transport: Any, message: dns.Message) -> None:
    data = message.toStr()
    transport.write(struct.pack("!H", len(data)) + data)


async def _failed(servers: Nameservers, name: str) -> DiscoveryFailed:
    try:
        await servers.ask(name, dns.A)
    except DiscoveryFailed as failed:
        return failed
    raise AssertionError("it did not fail")

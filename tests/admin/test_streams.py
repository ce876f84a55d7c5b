"""Who listens, and what they are told."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from fwdrelay.admin import channel, streams
from fwdrelay.admin.answer import HEADERS
from tests.admin.relays import (
    ENDED,
    OPENED,
    POOL,
    STATUS,
    STEP,
    Connection,
    Served,
    request,
)
from tests.case import SynchronousTestCase

_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")


def unchunked(data: bytes) -> bytes:
    """What was sent in chunks; the last one may be missing, which says that there is more to come."""
    text = b""
    while data:
        found = _CHUNK.match(data)
        assert found, data
        size = int(found[1], 16)
        text += data[found.end() : found.end() + size]
        data = data[found.end() + size + 2 :]
    return text


class Listener(Connection):
    """One who listens; what they are told is taken apart."""

    def __init__(self, served: Served, path: str = "/v1/events") -> None:
        super().__init__(served.site)
        served.connections.append(self)
        self.send(request("GET", path))
        self.head, _, self.first = self.received().partition(b"\r\n\r\n")

    def blocks(self) -> list[str]:
        """What it was told since it looked last."""
        first, self.first = self.first, b""
        text = unchunked(first + self.received()).decode()
        assert not text or text.endswith("\n\n")
        return text.split("\n\n")[:-1]

    def events(self) -> list[tuple[str, Any]]:
        """Names and data of the events; all else is left out."""
        found = []
        for block in self.blocks():
            if block.startswith("event: "):
                name, data = block.removeprefix("event: ").split("\ndata: ")
                found.append((name, json.loads(data)))
        return found

    def names(self) -> list[str]:
        """Those of the events."""
        return [name for name, _ in self.events()]


class StreamsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.served = Served()
        self.relay, self.clock = self.served.relay, self.served.clock
        self.addCleanup(self.leaves_nothing)
        self.addCleanup(self.served.stop)

    def leaves_nothing(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.relay.told, [])
        self.assertEqual(self.relay.followed, [])

    def listen(self, path: str = "/v1/events") -> Listener:
        return Listener(self.served, path)

    def tell(self, event: Any, times: int = 1) -> None:
        for _ in range(times):
            for tell in list(self.relay.told):
                tell(event)


class EventsTests(StreamsTestCase):
    def test_it_begins_at_once(self) -> None:
        listener = self.listen()
        head = listener.head.decode()
        self.assertTrue(head.startswith("HTTP/1.1 200 OK\r\n"))
        self.assertIn("Content-Type: text/event-stream", head)
        for name, value in HEADERS.items():
            self.assertIn(f"{name}: {value}", head)
        retry, status = listener.blocks()
        self.assertEqual(retry, "retry: 1000")
        self.assertTrue(status.startswith("event: status\ndata: {"))

    def test_the_status_each_second(self) -> None:
        listener = self.listen()
        ((name, data),) = listener.events()
        self.assertEqual(name, "status")
        whole = {**attrs.asdict(STATUS), "pools": [attrs.asdict(POOL)], "events_skipped": 7}
        self.assertEqual(data, json.loads(json.dumps(whole)))
        for _ in range(3):
            self.clock.advance(1)
            self.assertEqual(listener.names(), ["status"])

    def test_one_look_is_enough_for_all(self) -> None:
        listeners = [self.listen() for _ in range(10)]
        for listener in listeners:
            self.assertEqual(listener.names(), ["status"])
        self.clock.advance(1)
        for listener in listeners:
            self.assertEqual(listener.names(), ["status"])
        self.assertEqual(self.relay.asked, ["status"] * 2)

    def test_nobody_looks_while_nobody_listens(self) -> None:
        first, second = self.listen(), self.listen()
        first.wire.go()
        self.clock.advance(1)
        self.assertEqual(len(self.relay.asked), 2)
        self.assertEqual(len(self.relay.told), 1)
        second.wire.go()
        self.leaves_nothing()
        self.clock.advance(10)
        self.assertEqual(len(self.relay.asked), 2)
        self.assertEqual(self.listen().names(), ["status"])
        self.assertEqual(len(self.relay.asked), 3)

    def test_the_look_takes_its_time(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.relay.slow = lambda: waiting
        first = self.listen()
        self.clock.pump([1] * 5)
        second = self.listen()
        self.assertEqual((first.names(), second.names()), ([], []))
        self.assertEqual(self.relay.asked, ["status"])
        waiting.callback(None)
        self.assertEqual((first.names(), second.names()), (["status"], ["status"]))

    def test_everybody_leaves_during_it(self) -> None:
        cancelled: list[object] = []
        self.relay.slow = lambda: Deferred(cancelled.append)
        self.listen().wire.go()
        self.assertEqual(len(cancelled), 1)
        self.leaves_nothing()

    def test_it_fails_for_a_while(self) -> None:
        self.relay.failing = ZeroDivisionError()
        listener = self.listen()
        self.clock.pump([1] * 5)
        self.assertEqual(listener.names(), [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.relay.failing = None
        self.clock.advance(1)
        self.assertEqual(listener.names(), ["status"])
        self.relay.failing = ZeroDivisionError()
        self.clock.advance(1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_sessions_begin_and_end(self) -> None:
        listeners = [self.listen(), self.listen()]
        self.tell(OPENED)
        self.tell(attrs.evolve(ENDED, sni="a.example", queue_ms=2.0))
        for listener in listeners:
            _, opened, ended = listener.events()
            self.assertEqual(
                opened,
                (
                    "session",
                    {
                        "event": "opened",
                        "time": "1970-01-01T00:00:00.000Z",
                        "session": "a-2",
                        "listener": "web",
                        "client": "192.0.2.1:2",
                        "local": "192.0.2.2:2",
                    },
                ),
            )
            self.assertEqual(ended[0], "session")
            self.assertEqual(ended[1]["event"], "ended")
            self.assertEqual(ended[1]["sni"], "a.example")
            self.assertEqual(ended[1]["queue_ms"], 2.0)
            self.assertNotIn("totals", ended[1])


class TraceTests(StreamsTestCase):
    def test_steps(self) -> None:
        listener = self.listen("/v1/trace?client=10.0.0.0/8")
        ((clients, tell),) = self.relay.followed
        assert clients is not None
        self.assertIn("10.1.2.3", clients)
        self.assertNotIn("11.1.2.3", clients)
        tell(STEP)
        self.assertEqual(listener.first.split(b"\r\n")[1], b": following\n\n")
        ((name, data),) = listener.events()
        self.assertEqual(name, "trace")
        self.assertEqual(data, {**attrs.asdict(STEP), "time": "1970-01-01T00:00:00.000Z"})

    def test_everybodys(self) -> None:
        for path in ("/v1/trace", "/v1/trace?client="):
            listener = self.listen(path)
            ((clients, _),) = self.relay.followed
            self.assertIsNone(clients)
            listener.wire.go()
            self.assertEqual(self.relay.followed, [])

    def test_one_address_is_a_network_too(self) -> None:
        self.listen("/v1/trace?client=%3A%3A1")
        ((clients, _),) = self.relay.followed
        assert clients is not None
        self.assertIn(str(ipaddress.ip_address("::1")), clients)

    def test_whose_is_wrong(self) -> None:
        response = self.served.ask("GET", "/v1/trace?client=me")
        self.assertEqual(response.status, 400)
        self.assertIn("client: 'me' is not a network", response.json["error"])

    def test_nobody_looks_for_it(self) -> None:
        self.listen("/v1/trace")
        self.clock.advance(10)
        self.assertEqual(self.relay.asked, [])


class HeartbeatTests(StreamsTestCase):
    def test_silence_is_broken(self) -> None:
        listener = self.listen("/v1/trace")
        ((_, tell),) = self.relay.followed
        self.assertEqual(listener.blocks(), [": following"])
        self.clock.advance(streams.HEARTBEAT - 1)
        self.assertEqual(listener.blocks(), [])
        tell(STEP)
        listener.received()
        self.clock.advance(streams.HEARTBEAT - 1)
        self.assertEqual(listener.blocks(), [])
        for _ in range(3):
            self.clock.advance(streams.HEARTBEAT)
            self.assertEqual(listener.blocks(), [":"])

    def test_not_for_who_does_not_read(self) -> None:
        listener = self.listen("/v1/trace")
        listener.received()
        listener.channel.pauseProducing()
        self.clock.advance(streams.HEARTBEAT)
        self.assertEqual(listener.received(), b"")


class UnreadTests(StreamsTestCase):
    def test_what_was_missed_is_counted_and_the_newest_status_told(self) -> None:
        listener, other = self.listen(), self.listen()
        listener.blocks()
        listener.channel.pauseProducing()
        self.tell(OPENED, 5)
        self.clock.pump([1] * 3)
        self.tell(OPENED, 5)
        self.assertEqual(listener.received(), b"")
        self.assertEqual(len(other.events()), 14)
        listener.channel.resumeProducing()
        dropped, (newest, _) = listener.events()
        self.assertEqual(dropped, ("dropped", {"events": 10}))
        self.assertEqual(newest, "status")
        self.tell(OPENED)
        self.assertEqual(listener.names(), ["session"])
        listener.channel.pauseProducing()
        listener.channel.resumeProducing()
        self.assertEqual(listener.names(), [])

    def test_steps_are_missed_as_well(self) -> None:
        listener = self.listen("/v1/trace")
        listener.received()
        ((_, tell),) = self.relay.followed
        listener.wire.stuck = True
        for _ in range(4):
            tell(STEP)
        listener.wire.unstick()
        self.assertEqual(listener.names(), ["trace", "dropped"])

    def test_who_never_reads_is_cut(self) -> None:
        listener = self.listen()
        listener.wire.stuck = True
        self.clock.advance(1)
        for _ in range(int(channel.UNREAD) - 1):
            self.clock.advance(1)
            self.tell(OPENED)
            self.assertFalse(listener.wire.lost)
        self.clock.advance(1)
        self.assertTrue(listener.wire.lost)
        self.assertLess(len(listener.received()), 10_000)
        self.leaves_nothing()


class ManyTests(StreamsTestCase):
    def test_so_many_and_no_more(self) -> None:
        listeners = [
            self.listen("/v1/events" if number % 2 else "/v1/trace")
            for number in range(streams.MOST)
        ]
        for path in ("/v1/events", "/v1/trace"):
            response = self.served.ask("GET", path)
            self.assertEqual(response.status, 503)
            self.assertIn(f"{streams.MOST} listen already", response.json["error"])
            self.assertIn("retry-after", response.headers)
        listeners[0].wire.go()
        self.assertIn(b"200 OK", self.listen().head)
        self.assertIn(b"503", self.listen().head)

    def test_they_are_not_sent_away_for_others(self) -> None:
        listener = self.listen()
        for _ in range(1000):
            self.served.connect()
        self.assertTrue(listener.open)


class EndTests(StreamsTestCase):
    def test_who_ends_their_side_has_left(self) -> None:
        listener = self.listen()
        listener.channel.readConnectionLost()
        listener.wire.go()
        self.leaves_nothing()

    def test_the_relay_stops(self) -> None:
        listeners = [self.listen(), self.listen("/v1/trace")]
        gone = self.served.site.stop()
        self.served.streams.stop()
        for listener in listeners:
            self.assertTrue(listener.received().endswith(b"0\r\n\r\n"))
            self.assertTrue(listener.wire.disconnecting)
            listener.wire.go()
        self.successResultOf(gone)
        self.leaves_nothing()

"""`fwdrelay.relay` embedded in a program of one's own: here, the test's."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import tempfile
import weakref
from pathlib import Path
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from fwdrelay.config import Config, ListenerConfig, PoolConfig, PumpName, RelayConfig, TargetConfig
from fwdrelay.errors import CannotListen, CannotOpenLog
from fwdrelay.relay import Relay
from tests.case import TestCase

reactor: Any = the_reactor


@implementer(IHalfCloseableProtocol)
class End(Protocol):
    """
    One end of a connection.

    @ivar begun: fires with the first bytes, which `data` is without.
    @ivar ended: fires with all that was received when the peer has sent its last.
    @ivar closed: fires when the connection is closed.
    """

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.begun: Deferred[bytes] = Deferred()
        self.ended: Deferred[bytes] = Deferred()
        self.closed: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        if self.begun.called:
            self.data += data
        else:
            self.begun.callback(data)

    def readConnectionLost(self) -> None:
        self.ended.callback(self.data)

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(None)


class Upstream(Factory):
    """Gives who connects to the test, in order."""

    noisy = False

    def __init__(self) -> None:
        self.next: Deferred[End] = Deferred()

    def buildProtocol(self, address: object) -> End:
        end = End()
        accepted, self.next = self.next, Deferred()
        # Its transport is there in the next turn.
        reactor.callLater(0, accepted.callback, end)
        return end


def port_of(relay: Relay) -> int:
    """Where it listens."""
    ((bound,),) = relay._addresses.bound.values()
    host: Any = bound.getHost()
    port: int = host.port
    return port


class RelayTestCase(TestCase):
    """
    @ivar ends: what must be closed when a test has ended, and its relay.
    """

    pump: PumpName = "buffered"

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="relay-")
        self.addCleanup(folder.cleanup)
        self.log = Path(folder.name, "access.log")
        self.upstream = Upstream()
        port = reactor.listenTCP(0, self.upstream, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.ends: list[End] = []
        self.addCleanup(lambda: gatherResults([end.closed for end in self.ends]))
        self.target = TargetConfig(host="127.0.0.1", port=port.getHost().port)

    def make(self, *listen: str, **fields: Any) -> Relay:
        """A relay to the upstream that isn't started."""
        fields = {"access_log": str(self.log), "pump": self.pump, **fields}
        config = Config(
            listeners=(ListenerConfig(name="l", listen=listen, pool="p"),),
            pools=(PoolConfig(name="p", targets=(self.target,)),),
            relay=RelayConfig(**fields),
        )
        return Relay(config, reactor)

    def start(self, **fields: Any) -> Relay:
        """A relay that listens on a free port."""
        relay = self.make("tcp:0:interface=127.0.0.1", **fields)
        relay.privilegedStartService()
        relay.startService()
        return relay

    async def session(self, relay: Relay) -> tuple[End, End]:
        """Both ends of a new one."""
        accepted = self.upstream.next
        port = port_of(relay)
        client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), End())
        server = await accepted
        self.ends += client, server
        for one, other in ((client, server), (server, client)):
            one.transport.write(b"!")
            await other.begun
        return client, server

    def logged(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


class RelayTests(RelayTestCase):
    async def test_it_relays_and_leaves_nothing_when_stopped(self) -> None:
        relay = self.start()
        client, server = await self.session(relay)
        self.assertEqual(relay.active, 1)
        client.transport.write(b"question")
        client.transport.loseWriteConnection()
        self.assertEqual(await server.ended, b"question")
        server.transport.write(b"answer")
        server.transport.loseConnection()
        self.assertEqual(await client.ended, b"answer")
        client.transport.loseConnection()
        await client.closed
        await server.closed
        await relay.stopService()
        (entry,) = self.logged()
        self.assertEqual((entry["reason"], entry["listener"]), ("done", "l"))
        self.assertEqual((entry["bytes_up"], entry["bytes_down"]), (9, 7))

    async def test_stopping_waits_for_sessions_and_takes_no_new_ones(self) -> None:
        relay = self.start(drain_timeout=0)
        client, server = await self.session(relay)
        port = port_of(relay)
        stopping = relay.stopService()
        self.assertTrue(relay.draining)
        client.transport.write(b"still relayed")
        client.transport.loseWriteConnection()
        self.assertEqual(await server.ended, b"still relayed")
        with socket.socket() as late:
            self.assertRaises(ConnectionRefusedError, late.connect, ("127.0.0.1", port))
        self.assertNoResult(stopping)
        server.transport.loseConnection()
        await client.ended
        client.transport.loseConnection()
        await stopping
        await client.closed
        await server.closed
        self.assertEqual([entry["reason"] for entry in self.logged()], ["done"])

    async def test_what_does_not_end_within_the_drain_time_out_is_cut(self) -> None:
        relay = self.start(drain_timeout=0.05)
        client, server = await self.session(relay)
        await relay.stopService()
        await client.closed
        await server.closed
        self.assertEqual(
            [(e["reason"], e["code"]) for e in self.logged()], [("drain-timeout", "KD")]
        )

    async def test_cut_while_it_drains(self) -> None:
        relay = self.start(drain_timeout=0)
        client, server = await self.session(relay)
        stopping = relay.stopService()
        relay.cut_all()
        await stopping
        await client.closed
        await server.closed
        self.assertEqual([entry["code"] for entry in self.logged()], ["KD"])

    async def test_stopped_with_nothing_going_on(self) -> None:
        await self.start().stopService()
        self.assertEqual(self.logged(), [])

    async def test_signals_stay_the_programs(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = [signal.getsignal(number) for number in numbers]
        relay = self.start()
        self.assertEqual([signal.getsignal(number) for number in numbers], before)
        await relay.stopService()

    async def test_the_log_begins_anew(self) -> None:
        relay = self.start()
        os.rename(self.log, f"{self.log}.1")
        relay.reopen_logs()
        client, server = await self.session(relay)
        client.transport.loseConnection()
        server.transport.loseConnection()
        await client.closed
        await server.closed
        await relay.stopService()
        self.assertEqual(len(self.logged()), 1)

    async def test_an_address_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            description = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            relay = self.make(description)
            error = self.assertRaises(CannotListen, relay.privilegedStartService)
        self.assertEqual(str(error), f"cannot listen on {description}: Address already in use")
        relay.startService()
        await relay.stopService()

    async def test_a_log_that_cannot_be_opened(self) -> None:
        relay = self.make("tcp:0:interface=127.0.0.1", access_log=f"{self.log}/not/there")
        self.assertRaises(CannotOpenLog, relay.privilegedStartService)
        relay.startService()
        await relay.stopService()


class SplicedRelayTests(RelayTests):
    pump: PumpName = "splice"


class GarbageTests(RelayTestCase):
    pump: PumpName = "auto"

    async def test_a_session_leaves_nothing_for_the_collector_of_cycles(self) -> None:
        relay = self.start()
        gc.disable()
        self.addCleanup(gc.enable)
        for end in ("loseConnection", "abortConnection"):
            client, server = await self.session(relay)
            parts = self.parts(relay)
            getattr(client.transport, end)()
            await server.closed if end == "abortConnection" else await server.ended
            server.transport.loseConnection()
            await client.closed
            await server.closed
            while relay.active:
                await deferLater(reactor, 0)
            await deferLater(reactor, 0)
            self.assertEqual([part() for part in parts], [None] * len(parts), end)
        await relay.stopService()

    def parts(self, relay: Relay) -> list[weakref.ref[Any]]:
        """What the only session of `relay` consists of."""
        (session,) = relay.listeners["l"].sessions
        assert session.upstream is not None
        sides = (session.client, session.upstream)
        return [weakref.ref(p) for p in (session, *sides, *(side.transport for side in sides))]

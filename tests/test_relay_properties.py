"""
Whatever happens in whatever order, `fwdrelay.relay` counts right and leaves nothing: a whole relay on a
clock that only the test moves, between ports, connections and discoveries that only note.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from typing import Any, TypeVar, cast
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from fwdrelay.config import Config, ListenerConfig, PoolConfig, RelayConfig
from fwdrelay.config.model import (
    Admit,
    DiscoverConfig,
    HealthConfig,
    RouteConfig,
    TargetConfig,
    Timeouts,
)
from fwdrelay.errors import DiscoveryFailed, FwdrelayError
from fwdrelay.frontend import Totals
from fwdrelay.interfaces import Found
from fwdrelay.networks import Networks
from fwdrelay.observe.snapshot import TARGET_STATES, Counters, Status
from fwdrelay.observe.trace import STEPS as TRACE_STEPS
from fwdrelay.observe.trace import TraceStep
from fwdrelay.relay import Relay
from fwdrelay.session import Session, Side, State
from fwdrelay.steering import Steering
from fwdrelay.upstream import Pool, Target
from tests.case import SynchronousTestCase
from tests.session.test_session import Transport

T = TypeVar("T")
STEPS = 60
CLIENTS = Networks([ip_network("192.0.2.10/32")])


class Peer(Transport):
    """A transport that closes in the clock's next turn, and has addresses."""

    gone = False

    def __init__(self, clock: Clock, protocol: Side, host: str = "192.0.2.9") -> None:
        self.host = host
        super().__init__(clock, protocol)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.host, 4321)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 80)

    def loseConnection(self) -> None:
        super().loseConnection()
        self.clock.callLater(0, self.goes)

    def abortConnection(self) -> None:
        super().abortConnection()
        self.clock.callLater(0, self.goes)

    def goes(self) -> None:
        if not self.gone:
            self.gone = True
            super().goes()


@implementer(IListeningPort)
class Port:
    """
    A bound address.

    @ivar waiting: clients in the kernel's queue.
    """

    def __init__(self, pump: Pump, number: int, factory: Any) -> None:
        self.pump = pump
        self.number = number
        self.factory = factory
        self.waiting: list[str] = []
        self.closed = False
        self.socket = mock.Mock()
        factory.doStart()

    def startListening(self) -> None:
        """It does from the start."""

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", self.number)

    def accept(self) -> None:
        while self.waiting:
            protocol = self.factory.buildProtocol(None)
            self.pump.clients.append(Peer(self.pump.clock, protocol, self.waiting.pop()))

    def stopListening(self) -> Deferred[None]:
        assert not self.closed
        self.accept()
        self.closed = True
        done: Deferred[None] = Deferred()
        self.pump.clock.callLater(0, self._lost, done)
        return done

    def _lost(self, done: Deferred[None]) -> None:
        del self.pump.ports[self.number]
        self.factory.doStop()
        done.callback(None)


class Dial:
    """A connection that is being opened."""

    def __init__(self, pump: Pump, factory: Any) -> None:
        self.pump = pump
        self.factory = factory
        self.peer: Peer | None = None
        self.time_out: Any = None

    def succeed(self) -> None:
        self._over()
        self.peer = Peer(self.pump.clock, self.factory.buildProtocol(None))

    def fail(self, why: Exception) -> None:
        self._over()
        self.factory.clientConnectionFailed(self, Failure(why))

    def disconnect(self) -> None:
        if self.peer is not None:
            self.peer.goes()
        elif self in self.pump.dials:
            self.fail(error.UserError())

    def _over(self) -> None:
        self.pump.dials.remove(self)
        if self.time_out.active():
            self.time_out.cancel()


class Pump:
    """
    @ivar busy: port numbers that can't be bound.
    @ivar broken: the next dials fail at once.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.callLater = clock.callLater
        self.seconds = clock.seconds
        self.ports: dict[int, Port] = {}
        self.busy: set[int] = set()
        self.broken = 0
        self.clients: list[Peer] = []
        self.dials: list[Dial] = []
        self.stopped = False

    def listenTCP(self, number: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        if number in self.busy or number in self.ports:
            raise error.CannotListenError(interface, number, OSError(98, "Address already in use"))
        port = self.ports[number] = Port(self, number, factory)
        return port

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float, bindAddress: Any
    ) -> Dial:
        if self.broken:
            self.broken -= 1
            raise OSError(24, "Too many open files")
        dial = Dial(self, factory)
        self.dials.append(dial)
        dial.time_out = self.clock.callLater(timeout, dial.fail, error.TimeoutError())
        return dial

    def stop(self) -> None:
        self.stopped = True


class Discovery:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: Deferred[Found] | None = None
        self.cancelled = False

    def discover(self) -> Deferred[Found]:
        assert self.asked is None or self.asked.called
        self.asked = Deferred()
        return self.asked


class Reactor(Clock):
    """A clock that is always running."""

    def callWhenRunning(self, call: Callable[..., object], *args: object) -> None:
        call(*args)

    def connectTCP(self, host: str, port: int, factory: Any, timeout: Any, bindAddress: Any) -> Any:
        """What health checks do: nobody answers."""
        connector = mock.Mock()
        connector.stopConnecting = lambda: factory.clientConnectionFailed(
            connector, Failure(error.UserError())
        )
        self.callLater(0, self._refuse, factory, connector)
        return connector

    def _refuse(self, factory: Any, connector: Any) -> None:
        factory.clientConnectionFailed(connector, Failure(error.ConnectionRefusedError(111)))


class Election:
    """Somebody else's, which is wrong now and then."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def targets_changed(self, targets: Any) -> None:
        if self.chance.random() < 0.3:
            raise ZeroDivisionError("targets_changed")

    def elect(self, candidates: Any, client: str | None) -> Any:
        if self.chance.random() < 0.1:
            raise ZeroDivisionError("elect")
        return self.chance.choice(candidates)


def ready(coroutine: Coroutine[Any, Any, T]) -> T:
    """
    @return: what it returns without waiting for anything.
    """
    done: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(done.append)
    [result] = done
    if isinstance(result, Failure):
        result.raiseException()
    return cast("T", result)


class World:
    """
    A relay, and what may happen to it.

    @ivar told: how often the end of a session was told, by its number.
    """

    def __init__(self, test: SynchronousTestCase, chance: random.Random) -> None:
        self.test = test
        self.chance = chance
        self.reactor = Reactor()
        self.reactor.advance(1000)
        self.pump = Pump(self.reactor)
        self.discoveries: list[Discovery] = []
        self.pools: dict[int, Pool] = {}
        self.listeners: dict[int, Any] = {}
        self.told: Counter[str] = Counter()
        self.logs: list[Any] = []
        self.relay = Relay(self.some_config(), self.reactor)
        self.relay._open_access_log = self.open_log  # type: ignore[method-assign]
        self.steering = Steering(self.relay, self.reactor)
        self.watching: list[Callable[[], None]] = []
        self.traces_over: set[str] = set()
        self.highest: list[int] = []
        self.bytes_of: dict[int, tuple[Totals, int, int]] = {}

    def open_log(self, config: RelayConfig) -> Any:
        log = mock.Mock(dropped=0)
        log.session_ended = lambda event: self.told.update(
            [event.session] if event.reason != "progress" else []
        )
        self.logs.append(log)
        return log

    def make_discovery(self, *args: object) -> Discovery:
        discovery = Discovery()
        self.discoveries.append(discovery)
        return discovery

    def make_election(self, balance: str, clock: Any = None) -> Any:
        from fwdrelay.upstream.elect import make_election

        return Election(self.chance) if balance == "mine" else make_election(balance, clock)

    # Configurations.

    def maybe(self, likely: float, value: Any, otherwise: Any) -> Any:
        return value if self.chance.random() < likely else otherwise

    def some_targets(self, most: int = 3) -> tuple[TargetConfig, ...]:
        ports = self.chance.sample(range(1, 6), self.chance.randint(0, most))
        return tuple(
            TargetConfig(
                host="198.51.100.1",
                port=port,
                weight=self.chance.choice((1, 1, 3)),
                backup=self.maybe(0.2, True, False),
                max_sessions=self.chance.choice((0, 1, 2)),
                priority=self.chance.choice((0, 0, 1)),
            )
            for port in ports
        )

    def some_pool(self, name: str) -> PoolConfig:
        choice = self.chance.choice
        return PoolConfig(
            name=name,
            targets=self.some_targets(),
            discover=tuple(
                DiscoverConfig(scheme="test", argument=argument, max_sessions=choice((0, 2)))
                for argument in "ab"
                if self.chance.random() < 0.3
            ),
            balance=choice(("round-robin", "least-sessions", "random-two", "first", "mine")),
            retries=choice((0, 1, 3)),
            max_sessions=choice((0, 0, 2, 4)),
            queue=choice((0.0, 0.0, 2.0, 20.0)),
            max_queued=choice((1, 3, 100)),
            on_target_down=choice(("keep", "close")),
            health=HealthConfig(
                check=choice(("off", "off", "tcp")),
                fall=2,
                passive_failures=choice((0, 0, 1)),
                slow_start=choice((0.0, 10.0)),
                when_all_down=choice(("try", "refuse")),
            ),
        )

    def some_listener(self, name: str, listen: tuple[str, ...], pools: list[str]) -> ListenerConfig:
        choice = self.chance.choice
        return ListenerConfig(
            name=name,
            listen=listen,
            pool=choice(pools),
            max_sessions=choice((0, 0, 3)),
            timeouts=Timeouts(
                connect=choice((0.0, 3.0)),
                idle=choice((0.0, 5.0)),
                lifetime=choice((0.0, 0.0, 8.0)),
            ),
            admit=Admit(sessions_per_client=choice((0, 0, 2))),
            routes=self.maybe(
                0.3,
                (RouteConfig(client=(ip_network("192.0.2.10/32"),), pool=choice(pools)),),
                (),
            ),
        )

    def some_config(self) -> Config:
        pools = self.chance.sample(("p", "q", "r"), self.chance.randint(1, 3))
        names = self.chance.sample(("k", "l", "m"), self.chance.randint(1, 3))
        ports = self.chance.sample(range(81, 86), len(names) + 1)
        listens: list[tuple[str, ...]] = [(f"tcp:{port}",) for port in ports[1:]]
        listens[0] += (f"tcp:{ports[0]}",)
        return Config(
            listeners=tuple(
                self.some_listener(name, listen, pools)
                for name, listen in zip(names, listens, strict=True)
            ),
            pools=tuple(self.some_pool(name) for name in pools),
            relay=RelayConfig(
                drain_timeout=self.chance.choice((0.0, 4.0)),
                access_log=self.chance.choice(("stdout", "/other")),
                access_log_interval=self.chance.choice((0.0, 2.0)),
                nameservers=self.chance.choice(((), ("192.0.2.53:53",))),
            ),
        )

    # What happens.

    def comes(self) -> None:
        ports = [port for port in self.pump.ports.values() if not port.closed]
        if ports:
            port = self.chance.choice(ports)
            port.waiting.append(self.chance.choice(("192.0.2.10", "192.0.2.11")))
            if self.chance.random() < 0.8:
                port.accept()

    def dial_ends(self) -> None:
        if self.pump.dials:
            dial = self.chance.choice(self.pump.dials)
            if self.chance.random() < 0.7:
                dial.succeed()
            else:
                dial.fail(error.ConnectionRefusedError(111, "Connection refused"))

    def dials_break(self) -> None:
        self.pump.broken = self.chance.randint(1, 3)

    def open_sessions(self) -> list[Session]:
        return self.relay._sessions()

    def side_acts(self) -> None:
        sides = [
            side
            for session in self.open_sessions()
            for side in (session.client, session.upstream)
            if side is not None and not side.ended and side.reset is None and not side.gone
        ]
        if sides:
            transport = self.chance.choice(sides).transport
            act = self.chance.choice(("ends", "resets", "goes"))
            if act == "ends" and transport.protocol.session.upstream is None:
                return  # it is paused: nobody would know
            getattr(transport, act)()

    def side_sends(self) -> None:
        relaying = [session for session in self.open_sessions() if session.upstream is not None]
        if relaying:
            session = self.chance.choice(relaying)
            side = self.chance.choice((session.client, session.upstream))
            assert side is not None
            if not side.ended and side.reset is None and not side.gone:
                side.transport.sends(bytes(self.chance.randint(1, 1000)))

    def found(self) -> None:
        asked = [each.asked for each in self.discoveries if each.asked and not each.asked.called]
        if asked:
            if self.chance.random() < 0.8:
                self.chance.choice(asked).callback(Found(self.some_targets(4), 5.0))
            else:
                self.chance.choice(asked).errback(DiscoveryFailed("nobody knows"))

    def target_changes(self) -> None:
        pools = [pool for pool in self.relay.pools.values() if pool.targets]
        if pools:
            pool = self.chance.choice(pools)
            target = self.chance.choice(pool.targets)
            pool._target_changed(target, not target.up, "so it is")

    def changes(self) -> None:
        if self.relay.draining:
            return
        config = self.some_config()
        before = self.relay.config, self.world_as_it_is()
        self.pump.busy = self.maybe(0.2, {self.chance.randint(81, 85)}, set())
        try:
            self.relay.change(config)
        except FwdrelayError:
            self.test.assertEqual((self.relay.config, self.world_as_it_is()), before)
        else:
            self.test.assertIs(self.relay.config, config)

    def world_as_it_is(self) -> object:
        return (
            dict(self.relay.listeners),
            [(pool, pool.config, pool.targets) for pool in self.relay.pools.values()],
            [each.config for each in self.relay.listeners.values()],
            dict(self.relay._addresses.bound),
            self.relay._access_log,
        )

    def turn(self) -> None:
        self.reactor.advance(0)

    def time_passes(self) -> None:
        until = self.reactor.seconds() + self.chance.choice((0.1, 1.0, 3.0))
        while (calls := self.reactor.getDelayedCalls()) and calls[0].getTime() <= until:
            self.reactor.advance(max(calls[0].getTime() - self.reactor.seconds(), 0))
        self.reactor.advance(until - self.reactor.seconds())

    # What operators do.

    def is_steered(self) -> None:
        pools = [pool for pool in self.relay.pools.values() if pool.targets]
        if pools:
            pool = self.chance.choice(pools)
            label = self.chance.choice(pool.targets).label
            state = self.chance.choice((None, "ready", *TARGET_STATES))
            weight = self.chance.choice((None, 1, 7))
            shown = ready(self.steering.steer_target(pool.name, label, state, weight))
            self.test.assertIn(state, (None, shown.state))
            self.test.assertIn(weight, (None, shown.weight))

    def is_killed(self) -> None:
        sessions = self.open_sessions()
        if sessions:
            session = self.chance.choice(sessions)
            ready(self.steering.end_session(session.name))
            self.test.assertIs(session.state, State.CLOSED)

    def is_watched(self) -> None:
        """By one at a time, of sessions as they come and go, and of what is decided about them."""
        for leave in self.watching:
            leave()
        self.watching.clear()
        if self.chance.random() < 0.7:
            self.watching += [
                self.steering.subscribe(lambda event: self.stumbles()),
                self.steering.trace(self.chance.choice((None, CLIENTS)), self.traced),
            ]

    def stumbles(self) -> None:
        """Whoever looks on fails now and then, which is nothing to a session."""
        if self.chance.random() < 0.03:
            raise ZeroDivisionError("a bystander")

    def traced(self, step: TraceStep) -> None:
        """No session is told of after its end."""
        self.test.assertIn(step.step, TRACE_STEPS)
        self.test.assertNotIn(step.session, self.traces_over)
        if step.step == "ended":
            self.traces_over.add(step.session)
        self.stumbles()

    # What must be so.

    def check(self) -> None:
        test, relay = self.test, self.relay
        for listener in relay.all_listeners():
            self.listeners[id(listener)] = listener
        self.pools.update((id(pool), pool) for pool in relay.pools.values())
        sessions = self.open_sessions()
        for peer in self.pump.clients:
            test.assertEqual(peer.protocol.session in sessions, not peer.closed and not peer.gone)
        dialing: Counter[Pool] = Counter()
        on: Counter[Target] = Counter()
        queued: Counter[Pool] = Counter()
        for session in sessions:
            pool = session.pool
            assert pool is not None
            test.assertIsNot(session.state, State.CLOSED)
            self.pools[id(pool)] = pool
            queued[pool] += session.state is State.QUEUED
            dialing[pool] += session.state is State.DIALING
            if session.target is not None:
                on[session.target] += 1
        for pool in self.pools.values():
            mine = [session for session in sessions if session.pool is pool]
            test.assertEqual(pool.sessions, len(mine) - queued[pool])
            test.assertEqual(pool.waiting, queued[pool])
            test.assertTrue(all(target.sessions >= on[target] for target in pool.targets))
            if not dialing[pool]:
                test.assertTrue(all(target.sessions == on[target] for target in pool.targets))
            test.assertLessEqual(set(pool._starting), set(pool.targets))
            if pool not in relay.pools.values():
                test.assertFalse(pool.waiting)
                test.assertIsNone(pool._health)
        factories = Counter(port.factory for port in self.pump.ports.values())
        for listener in self.listeners.values():
            test.assertEqual(listener.numPorts, factories[listener], listener.name)
            test.assertEqual(listener._admission.active, len(listener.sessions))
            test.assertTrue(listener.sessions or listener not in relay._leaving)
        if relay.running:
            wanted = {
                description: listener
                for listener in relay.listeners.values()
                for description in listener.config.listen
            }
            listening = {
                f"tcp:{port.number}": port.factory
                for port in self.pump.ports.values()
                if not port.closed
            }
            test.assertEqual(listening, wanted)
            asking = [each for each in self.discoveries if each.asked and not each.asked.called]
            test.assertLessEqual(
                len(asking), sum(len(pool.config.discover) for pool in relay.pools.values())
            )
            unclosed = [log for log in self.logs if not log.close.called]
            test.assertEqual(unclosed, [relay._access_log])
        test.assertEqual(set(self.told.values()) - {1}, set())
        self.check_numbers()

    def check_numbers(self) -> None:
        """What is scraped fits together, and never goes down."""
        counters: Counters = ready(self.steering.counters())
        status: Status = ready(self.steering.status())
        self.test.assertEqual(status.totals.sessions, len(self.open_sessions()))
        by_name: Counter[str] = Counter()
        for shown in status.listeners:
            by_name[shown.name] += shown.sessions
        let_in = {shown.name: shown.sessions_total for shown in status.listeners}
        for each in counters.listeners:
            ended, refused = sum(each.ended.values()), sum(each.rejected.values())
            self.test.assertEqual(each.active, by_name[each.listener])
            self.test.assertLessEqual(each.active + ended - refused, let_in[each.listener])
            # Whoever is let in here goes to a pool.
            self.test.assertEqual(each.active + each.seconds.count, let_in[each.listener])
        of_all = status.totals
        highest = [of_all.sessions_total, of_all.rejected_total, of_all.bytes_up, of_all.bytes_down]
        self.test.assertTrue(
            all(now >= before for now, before in zip(highest, self.highest, strict=False))
        )
        self.highest = highest
        before, self.bytes_of = self.bytes_of, {}
        for each in counters.listeners:
            totals = self.relay._totals[each.listener]
            _, up, down = before.get(id(totals), (totals, 0, 0))
            self.test.assertGreaterEqual(each.bytes_up, up)
            self.test.assertGreaterEqual(each.bytes_down, down)
            self.bytes_of[id(totals)] = totals, each.bytes_up, each.bytes_down
        for pool in ready(self.steering.pools()):
            shares = sum(target.share for target in pool.targets)
            self.test.assertTrue(shares == 0 or abs(shares - 1) < 0.01, shares)
            for target in pool.targets:
                self.test.assertTrue(target.state == "ready" or target.share == 0)

    def nobody_waits_beside_a_free_place(self) -> None:
        """True once a turn was had."""
        for pool in self.relay.pools.values():
            for waiter in pool._waiting:
                target = pool.elect(waiter.client_host, waiter.tried)
                self.test.assertIsNone(target)

    def end(self) -> None:
        stopped: list[object] = []
        maybeDeferred(self.relay.stopService).addBoth(stopped.append)
        self.check()
        for _ in range(30):
            self.time_passes()
        if not stopped:
            self.relay.cut_all()
            self.turn()
            self.time_passes()
        self.test.assertEqual(stopped, [None])
        self.check()
        self.test.assertEqual(self.open_sessions(), [])
        self.test.assertEqual(self.relay._leaving, {})
        self.test.assertEqual(self.pump.ports, {})
        self.test.assertEqual(self.pump.dials, [])
        for pool in self.pools.values():
            self.test.assertEqual(pool.sessions, 0)
            self.test.assertFalse(any(target.sessions for target in pool.targets))
        for listener in self.listeners.values():
            self.test.assertEqual(listener._admission._of_client, {})
        self.test.assertTrue(all(log.close.call_count == 1 for log in self.logs))
        self.test.assertEqual(self.reactor.getDelayedCalls(), [])


class RelayPropertiesTests(SynchronousTestCase):
    def run_world(self, seed: int) -> None:
        chance = random.Random(seed)
        world = World(self, chance)
        with (
            mock.patch("fwdrelay.relay.make_pump", lambda *args: world.pump),
            mock.patch("fwdrelay.upstream.parts.make_discovery", world.make_discovery),
            mock.patch("fwdrelay.upstream.parts.make_election", world.make_election),
        ):
            world.relay.privilegedStartService()
            world.relay.startService()
            for _ in range(STEPS):
                step = chance.choices(
                    (
                        world.comes,
                        world.dial_ends,
                        world.side_acts,
                        world.side_sends,
                        world.turn,
                        world.time_passes,
                        world.changes,
                        world.found,
                        world.target_changes,
                        world.dials_break,
                        world.is_steered,
                        world.is_killed,
                        world.is_watched,
                    ),
                    (6, 5, 2, 2, 4, 2, 2, 3, 2, 0.5, 1.5, 0.5, 1),
                )[0]
                step()
                world.check()
                if step == world.turn and not chance.randrange(4):
                    world.turn()
                    world.nobody_waits_beside_a_free_place()
            world.end()
        self.flushLoggedErrors(ZeroDivisionError)

    @settings(max_examples=80, derandomize=True, deadline=None)
    @given(st.integers(0, 2**32))
    def test_all_is_counted_and_nothing_left(self, seed: int) -> None:
        self.run_world(seed)

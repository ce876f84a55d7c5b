"""`fwdrelay.upstream.health.Health`, with a clock and connections that tests own."""

from __future__ import annotations

import errno
import os
from typing import Any

from attrs import evolve
from twisted.internet import error, reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from fwdrelay.config import HealthConfig, TargetConfig, UpstreamTLSConfig
from fwdrelay.config.model import Check, SendProxy
from fwdrelay.tls import UpstreamTLS
from fwdrelay.upstream.health import Health
from fwdrelay.upstream.health.watch import FIRST_WITHIN, JITTER
from fwdrelay.upstream.resolve import Resolver
from fwdrelay.upstream.target import Target
from fwdrelay.wire.clienthello import parse
from fwdrelay.wire.proxyprotocol import local_header
from tests.case import SynchronousTestCase, TestCase
from tests.upstream.health.servers import Server, nobody_listens

CONFIG = HealthConfig(check="tcp", interval=10.0, timeout=4.0, rise=2, fall=3)


class Connection:
    """A connection of a check: its connector, and then its transport."""

    def __init__(self, world: World, port: int, factory: Any, bind: Any) -> None:
        self.world = world
        self.port = port
        self.factory = factory
        self.bind = bind
        self.protocol: Any = None
        self.written = b""
        self.open = True
        self.fin = False

    def answer(self) -> None:
        """It is connected."""
        self.protocol = self.factory.buildProtocol(None)
        self.protocol.makeConnection(self)

    def fail(self, number: int = errno.ECONNREFUSED) -> None:
        """It is not."""
        self.open = False
        failed = error.getConnectError((number, os.strerror(number)))
        self.factory.clientConnectionFailed(self, Failure(failed))

    def ended(self) -> None:
        """The peer ends, too."""
        IHalfCloseableProtocol(self.protocol).readConnectionLost()

    def stopConnecting(self) -> None:
        self.open = False
        self.factory.clientConnectionFailed(self, Failure(error.UserError()))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing."""

    def getHost(self) -> None:
        """Of no use for LOCAL headers, as `getPeer`."""

    def getPeer(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    def loseWriteConnection(self) -> None:
        self.fin = True

    def loseConnection(self) -> None:
        self.connectionLost(Failure(error.ConnectionDone()))

    def connectionLost(self, reason: Failure) -> None:
        self.open = False
        self.protocol.connectionLost(reason)


class World(Clock):
    """
    A clock that is as strict as reactors are, and what is connected to.

    @ivar connections: all there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[Connection] = []

    def callLater(self, delay: float, callable: Any, *args: object, **kw: object) -> Any:  # noqa: A002
        assert delay >= 0, f"{delay} is in the past"
        return super().callLater(delay, callable, *args, **kw)

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: None, bindAddress: Any
    ) -> Connection:
        connection = Connection(self, port, factory, bindAddress)
        self.connections.append(connection)
        return connection


class HealthCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.addCleanup(self.nothing_is_left)  # after every health was stopped
        self.changes: list[tuple[str, bool, str]] = []
        self.random = 0.5
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def health(self, config: HealthConfig = CONFIG, **more: Any) -> Health:
        """It is stopped at the end of the test."""
        options = {"bind": "", "send_proxy": "off", "changed": self.changed, **more}
        health = Health(
            self.world, Resolver(self.world), config, random=lambda: self.random, **options
        )
        self.addCleanup(health.stop)
        return health

    def nothing_is_left(self) -> None:
        self.assertEqual(self.world.getDelayedCalls(), [])
        self.assertEqual([each for each in self.world.connections if each.open], [])

    def changed(self, target: Target, up: bool, cause: str) -> None:
        target.up = up
        self.changes.append((target.label, up, cause))

    def target(self, port: int = 80, up: bool = True) -> Target:
        return Target(TargetConfig(host="192.0.2.1", port=port), up=up)

    def said(self, level: LogLevel) -> list[str]:
        """What was logged at this level, by its format."""
        return [
            event["log_format"]
            for event in self.logged
            if event["log_namespace"].startswith("fwdrelay") and event["log_level"] == level
        ]

    def pending(self) -> Connection:
        """The only connection that is open."""
        (connection,) = (each for each in self.world.connections if each.open)
        return connection

    def idle(self) -> bool:
        """Whether no check is under way."""
        return not any(each.open for each in self.world.connections)

    def next_check(self) -> Connection:
        """Let the time for it come."""
        self.assertTrue(self.idle())
        (call,) = self.world.getDelayedCalls()
        self.world.advance(call.getTime() - self.world.seconds())
        return self.pending()

    def passes(self) -> None:
        """Pass the next check, to its end."""
        connection = self.next_check()
        connection.answer()
        connection.ended()

    def fails(self) -> None:
        """Fail the next check."""
        self.next_check().fail()


class ChecksTests(HealthCase):
    def test_nothing_changes_while_checks_pass(self) -> None:
        self.health().watch(self.target())
        for _ in range(5):
            self.passes()
        self.assertEqual(self.changes, [])

    def test_down_and_up(self) -> None:
        self.health().watch(self.target())
        self.passes()
        self.fails()
        self.fails()
        self.assertEqual(self.changes, [])
        self.fails()
        down = ("192.0.2.1:80", False, "connection refused (3 checks in a row)")
        self.assertEqual(self.changes, [down])
        self.passes()
        self.assertEqual(self.changes, [down])
        self.passes()
        self.assertEqual(self.changes, [down, ("192.0.2.1:80", True, "2 checks in a row passed")])
        self.assertEqual(self.logged, [])  # a check is no news, and twistd writes down all levels

    def test_the_first_check_decides_alone(self) -> None:
        self.health().watch(self.target())
        self.fails()
        self.assertEqual(
            self.changes, [("192.0.2.1:80", False, "connection refused (the first check)")]
        )

    def test_a_target_that_is_down_has_to_rise(self) -> None:
        self.health().watch(self.target(up=False))
        self.passes()
        self.fails()
        self.assertEqual(self.changes, [])
        self.passes()
        self.passes()
        self.assertEqual(self.changes, [("192.0.2.1:80", True, "2 checks in a row passed")])

    def test_no_answer_within_the_time_out(self) -> None:
        self.health().watch(self.target())
        connection = self.next_check()
        self.world.advance(3.9)
        self.assertTrue(connection.open)
        self.world.advance(0.1)
        self.assertFalse(connection.open)
        self.assertEqual(
            self.changes, [("192.0.2.1:80", False, "no connection within 4s (the first check)")]
        )

    def test_the_verdict_does_not_wait_for_the_end(self) -> None:
        self.health().watch(self.target(up=False))
        self.passes()
        connection = self.next_check()
        connection.answer()
        self.assertEqual(len(self.changes), 1)
        self.assertTrue(connection.open)
        self.assertTrue(connection.fin)

    def test_a_server_that_does_not_end_is_left_when_time_is_up(self) -> None:
        self.health().watch(self.target())
        connection = self.next_check()
        connection.answer()
        self.world.advance(4.0)
        self.assertFalse(connection.open)
        self.next_check()
        self.assertEqual(self.changes, [])

    def test_each_target_by_itself(self) -> None:
        health = self.health()
        health.watch(self.target(1))
        health.watch(self.target(2))
        self.world.advance(FIRST_WITHIN)
        first, second = self.world.connections
        second.fail()
        first.answer()
        first.ended()
        self.assertEqual([change[0] for change in self.changes], ["192.0.2.1:2"])

    def test_a_target_may_get_another_configuration(self) -> None:
        target = self.target()
        self.health().watch(target)
        self.passes()
        target.config = evolve(target.config, port=81)
        self.assertEqual(self.next_check().port, 81)

    def test_source_address_and_proxy_header(self) -> None:
        proxy: SendProxy = "v2"
        self.health(bind="192.0.2.7", send_proxy=proxy).watch(self.target())
        connection = self.next_check()
        connection.answer()
        self.assertEqual(connection.bind, ("192.0.2.7", 0))
        self.assertEqual(connection.written[12:], bytes.fromhex("20000000"))

    def test_send_and_expect(self) -> None:
        config = evolve(CONFIG, send=r"PING\r\n", expect=r"^\+PONG\r\n")
        self.health(config).watch(self.target())
        connection = self.next_check()
        connection.answer()
        self.assertEqual(connection.written, b"PING\r\n")
        self.assertFalse(connection.fin)
        connection.protocol.dataReceived(b"+PONG\r\n")
        self.assertTrue(connection.fin)

    def test_kinds(self) -> None:
        kinds: list[tuple[Check, bytes]] = [
            ("http", b"GET /up HTTP/1.1\r\n"),
            ("tls", b"\x16\x03"),
        ]
        for check, beginning in kinds:
            self.health(evolve(CONFIG, check=check, path="/up")).watch(self.target())
            self.world.advance(FIRST_WITHIN)
            connection = self.pending()
            connection.answer()
            self.assertTrue(connection.written.startswith(beginning), check)
            connection.ended()


class TLSTests(HealthCase):
    """A pool whose sessions speak TLS; what a check says first tells whether it does."""

    def setUp(self) -> None:
        super().setUp()
        self.tls = UpstreamTLS(UpstreamTLSConfig(name="a.example", verify=False), "tls")

    def first_words(self, health: Health) -> bytes:
        health.watch(self.target(up=False))
        before = len(self.world.connections)
        self.world.advance(FIRST_WITHIN)
        (connection,) = self.world.connections[before:]
        connection.answer()
        health.stop()
        return connection.written

    def says(self, tls: UpstreamTLS | None, **config: Any) -> bytes:
        return self.first_words(self.health(evolve(CONFIG, **config), tls=tls))

    def test_what_says_something_says_it_within_tls(self) -> None:
        for config in ({"send": "PING"}, {"expect": "PONG"}, {"check": "http"}, {"check": "tls"}):
            said = self.says(self.tls, **config)
            hello = parse(said)
            assert hello is not None
            self.assertEqual(hello.server_name, "a.example")

    def test_what_says_nothing_still_says_nothing(self) -> None:
        self.assertEqual(self.says(self.tls), b"")
        self.assertEqual(self.says(self.tls, check="off", passive_failures=1), b"")

    def test_the_header_comes_first(self) -> None:
        header = local_header("v2")
        health = self.health(evolve(CONFIG, check="tls"), tls=self.tls, send_proxy="v2")
        said = self.first_words(health)
        self.assertEqual(said[: len(header)], header)
        self.assertIsNotNone(parse(said[len(header) :]))

    def test_without_tls_all_is_said_in_the_clear(self) -> None:
        self.assertEqual(self.says(None, send="PING"), b"PING")
        self.assertTrue(self.says(None, check="http").startswith(b"GET / HTTP/1.1\r\n"))

    def test_renewed_files_are_used_from_the_next_check_on(self) -> None:
        health = self.health(evolve(CONFIG, check="tls"), tls=self.tls)
        health.renew_tls(UpstreamTLS(UpstreamTLSConfig(name="b.example", verify=False), "tls"))
        hello = parse(self.first_words(health))
        assert hello is not None
        self.assertEqual(hello.server_name, "b.example")


class TimesTests(HealthCase):
    def test_the_first_checks_are_spread(self) -> None:
        health = self.health()
        for number in range(4):
            self.random = number / 4
            health.watch(self.target(number + 1))
        times = sorted(call.getTime() for call in self.world.getDelayedCalls())
        self.assertEqual(times, [0.0, 0.25 * FIRST_WITHIN, 0.5 * FIRST_WITHIN, 0.75 * FIRST_WITHIN])

    def test_the_first_check_does_not_wait_longer_than_any_other(self) -> None:
        self.random = 0.999
        self.health(evolve(CONFIG, interval=0.1)).watch(self.target())
        (call,) = self.world.getDelayedCalls()
        self.assertLess(call.getTime(), 0.1)

    def test_the_interval_begins_at_the_end_and_varies(self) -> None:
        self.health().watch(self.target())
        for random, part in ((0.0, 1 - JITTER), (0.5, 1.0), (1.0, 1 + JITTER)):
            connection = self.next_check()
            connection.answer()
            self.world.advance(2.0)
            self.random = random
            connection.ended()
            (call,) = self.world.getDelayedCalls()
            self.assertAlmostEqual(call.getTime() - self.world.seconds(), 10.0 * part)


class DialsTests(HealthCase):
    def setUp(self) -> None:
        super().setUp()
        self.config = HealthConfig(check="off", interval=10.0, rise=2, passive_failures=2)

    def dials_fail(self, health: Health, target: Target, count: int = 2) -> None:
        for _ in range(count):
            health.dial_failed(target, "refused", "Connection refused")

    def test_nothing_is_checked_while_it_is_up(self) -> None:
        health, target = self.health(self.config), self.target()
        health.watch(target)
        self.dials_fail(health, target, 1)
        health.dialed(target)
        self.dials_fail(health, target, 1)
        self.assertEqual(self.world.getDelayedCalls(), [])
        self.assertEqual(self.changes, [])

    def test_marked_down_and_connected_to_until_it_is_up(self) -> None:
        health, target = self.health(self.config), self.target()
        health.watch(target)
        self.dials_fail(health, target)
        down = ("192.0.2.1:80", False, "connection refused (2 dials in a row)")
        self.assertEqual(self.changes, [down])
        self.fails()
        self.passes()
        self.fails()
        self.passes()
        self.passes()
        self.assertEqual(self.changes, [down, ("192.0.2.1:80", True, "2 checks in a row passed")])
        self.assertTrue(self.idle())
        self.assertEqual(self.world.getDelayedCalls(), [])
        self.dials_fail(health, target)
        self.assertEqual(len(self.changes), 3)
        self.fails()

    def test_down_again_while_the_last_check_ends(self) -> None:
        health, target = self.health(self.config), self.target()
        health.watch(target)
        self.dials_fail(health, target)
        self.passes()
        connection = self.next_check()
        connection.answer()
        self.dials_fail(health, target)
        self.assertEqual([up for _, up, _ in self.changes], [False, True, False])
        connection.ended()
        self.passes()
        self.passes()
        self.assertEqual([up for _, up, _ in self.changes], [False, True, False, True])

    def test_one_that_is_down_from_the_start_is_connected_to(self) -> None:
        self.health(self.config).watch(self.target(up=False))
        self.passes()
        self.passes()
        self.assertEqual([up for _, up, _ in self.changes], [True])

    def test_checks_that_there_are_bring_it_up(self) -> None:
        health, target = self.health(evolve(CONFIG, passive_failures=2)), self.target()
        health.watch(target)
        self.passes()
        self.dials_fail(health, target)
        self.passes()
        self.passes()
        self.assertEqual([up for _, up, _ in self.changes], [False, True])

    def test_what_is_our_own_fault_does_not_count(self) -> None:
        health, target = self.health(self.config), self.target()
        health.watch(target)
        for cause in ("no-resources", "no-target"):
            for _ in range(5):
                health.dial_failed(target, cause, "Too many open files")
        self.assertEqual(self.changes, [])

    def test_of_a_target_that_is_not_watched(self) -> None:
        health, target = self.health(self.config), self.target()
        self.dials_fail(health, target)
        health.dialed(target)
        self.assertEqual(self.changes, [])


class OwnFaultTests(HealthCase):
    def test_said_once_and_not_counted(self) -> None:
        self.health().watch(self.target())
        for _ in range(5):
            self.next_check().fail(errno.EMFILE)
        self.assertEqual(self.changes, [])
        self.assertEqual(len(self.said(LogLevel.warn)), 1)
        self.passes()
        self.next_check().fail(errno.EMFILE)
        self.assertEqual(len(self.said(LogLevel.warn)), 2)

    def test_a_single_failure_is_not_told(self) -> None:
        self.health().watch(self.target())
        self.passes()
        self.fails()
        told = [level for level in LogLevel.iterconstants() if level != LogLevel.debug]
        self.assertEqual([line for level in told for line in self.said(level)], [])


class MistakesTests(HealthCase):
    """Of our own, which must not end the checking."""

    def test_in_what_is_told(self) -> None:
        def changed(target: Target, up: bool, cause: str) -> None:
            self.changes.append((target.label, up, cause))
            raise RuntimeError("not this time")

        self.health(changed=changed).watch(self.target())
        self.fails()
        self.passes()
        self.passes()
        self.assertEqual([up for _, up, _ in self.changes], [False, True])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_in_a_conversation(self) -> None:
        self.health(evolve(CONFIG, expect="PONG")).watch(self.target())
        for _ in range(2):
            connection = self.next_check()
            connection.answer()
            connection.protocol.dataReceived(None)
            connection.ended()
            self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertEqual(self.changes, [])

    def test_in_connecting(self) -> None:
        self.health().watch(self.target())
        connect, self.world.connectTCP = self.world.connectTCP, None  # type: ignore[assignment,method-assign]
        self.world.advance(FIRST_WITHIN)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.world.connectTCP = connect  # type: ignore[method-assign]
        self.passes()


class GivenUpTests(HealthCase):
    """What `unwatch` and `stop` leave: nothing, which the end of each test sees to as well."""

    def test_before_the_first_check(self) -> None:
        health, target = self.health(), self.target()
        health.watch(target)
        health.unwatch(target)
        self.nothing_is_left()

    def test_while_it_connects(self) -> None:
        health, target = self.health(), self.target()
        health.watch(target)
        self.next_check()
        health.unwatch(target)
        self.nothing_is_left()
        self.assertEqual(self.changes, [])

    def test_while_it_waits_for_an_answer(self) -> None:
        health = self.health(evolve(CONFIG, expect="PONG"))
        health.watch(self.target())
        self.next_check().answer()
        health.stop()
        self.nothing_is_left()
        self.assertEqual(self.changes, [])

    def test_while_it_ends(self) -> None:
        health, target = self.health(), self.target()
        health.watch(target)
        self.next_check().answer()
        health.stop()
        self.nothing_is_left()

    def test_while_it_is_told(self) -> None:
        def changed(target: Target, up: bool, cause: str) -> None:
            self.changed(target, up, cause)
            health.unwatch(target)

        health = self.health(changed=changed)
        health.watch(self.target(1))
        self.next_check().fail()
        self.nothing_is_left()
        health.watch(self.target(2, up=False))
        self.passes()
        self.next_check().answer()
        self.nothing_is_left()
        self.assertEqual([up for _, up, _ in self.changes], [False, True])

    def test_others_go_on(self) -> None:
        health, target = self.health(), self.target(1)
        health.watch(target)
        health.watch(self.target(2))
        health.unwatch(target)
        self.assertEqual(self.next_check().port, 2)

    def test_watched_again(self) -> None:
        health, target = self.health(), self.target()
        health.watch(target)
        health.watch(target)
        health.unwatch(target)
        health.unwatch(target)
        health.watch(target)
        self.fails()
        self.assertEqual(len(self.changes), 1)


class RealTests(TestCase):
    """On real sockets, and the reactor's own clock."""

    async def test_a_server_that_goes_and_comes_back(self) -> None:
        changes: list[tuple[bool, str]] = []
        news: list[Deferred[None]] = []

        def changed(target: Target, up: bool, cause: str) -> None:
            target.up = up
            changes.append((up, cause))
            news.pop().callback(None)

        def next_news() -> Deferred[None]:
            news.append(Deferred())
            return news[0]

        target = Target(nobody_listens())
        config = HealthConfig(check="tcp", interval=0.02, timeout=0.5, rise=2, fall=2)
        health = Health(
            reactor, Resolver(reactor), config, bind="", send_proxy="off", changed=changed
        )
        self.addCleanup(health.stop)
        health.watch(target)
        await next_news()
        with Server(port=target.config.port):
            await next_news()
        await next_news()
        self.assertEqual(
            changes,
            [
                (False, "connection refused (the first check)"),
                (True, "2 checks in a row passed"),
                (False, changes[2][1]),
            ],
        )
        self.assertRegex(
            changes[2][1], r"^connection (refused|reset by peer) \(2 checks in a row\)$"
        )

    async def test_a_stop_leaves_nothing(self) -> None:
        with Server() as server:
            config = HealthConfig(check="tcp", interval=0.01, expect="never")
            health = Health(
                reactor,
                Resolver(reactor),
                config,
                bind="",
                send_proxy="off",
                changed=lambda target, up, cause: None,
            )
            health.watch(Target(server.target))

            def talk(connection: Any) -> bytes:
                reactor.callFromThread(health.stop)  # type: ignore[attr-defined]
                heard: bytes = connection.recv(1)
                return heard

            self.assertEqual(await server.serving(talk), b"")

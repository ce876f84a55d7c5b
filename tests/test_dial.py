"""`fwdrelay.dial` with a clock, names and a pump that tests own."""

from __future__ import annotations

import errno
import os
from typing import Any, cast
from unittest import mock

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fwdrelay.dial import ATTEMPT_DELAY, CAUSES, AllFailed, Dialed, Dialer
from fwdrelay.tls import PeerRefused
from fwdrelay.upstream import Resolver
from fwdrelay.upstream.resolve import FAILURE_BELIEVED
from tests.case import SynchronousTestCase
from tests.upstream.pools import make_pool
from tests.upstream.test_resolve import Names


class StrictClock(Clock):
    """As strict as reactors are."""

    nameResolver: Any

    def callLater(
        self,
        delay: float,
        callable: Any,  # noqa: A002 (that is how Twisted calls it)
        *args: object,
        **kw: object,
    ) -> Any:
        assert delay >= 0, f"{delay} is in the past"
        return super().callLater(delay, callable, *args, **kw)


class Attempt:
    """
    A connection attempt, and the connector that its factory gets.

    @ivar state: `connecting`, `connected`, `failed` or `disconnected`.
    """

    def __init__(self, pump: Pump, address: str, factory: Any, timeout: float) -> None:
        self.address = address
        self.factory = factory
        self.timeout = timeout
        self.state = "connecting"
        self.timer = pump.reactor.callLater(timeout, self.fail, error.TimeoutError())

    def connect(self) -> Protocol:
        """It is answered."""
        self.timer.cancel()
        self.state = "connected"
        protocol: Protocol = self.factory.buildProtocol(None)
        protocol.makeConnection(cast("Any", self))
        return protocol

    def fail(self, reason: BaseException) -> None:
        """It is refused, for example."""
        if self.timer.active():
            self.timer.cancel()
        self.state = "failed"
        self.factory.clientConnectionFailed(self, Failure(reason))

    def disconnect(self) -> None:
        if self.state == "connecting":
            self.fail(error.UserError())
        self.state = "disconnected"


class Pump:
    """
    @ivar attempts: all there were.
    @ivar refuses: fail each at once; what a pump does when the system says so at once.
    @ivar raises: fail to even begin.
    """

    def __init__(self, reactor: Clock) -> None:
        self.reactor = reactor
        self.callLater = reactor.callLater
        self.attempts: list[Attempt] = []
        self.binds: list[object] = []
        self.refuses: BaseException | None = None
        self.raises: BaseException | None = None

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float, bindAddress: object
    ) -> Attempt:
        self.binds.append(bindAddress)
        return self._connect(f"{host}:{port}", factory, timeout)

    def connectUNIX(self, address: str, factory: Any, timeout: float, checkPID: object) -> Attempt:
        return self._connect(address, factory, timeout)

    def _connect(self, address: str, factory: Any, timeout: float) -> Attempt:
        if self.raises is not None:
            raise self.raises
        attempt = Attempt(self, address, factory, timeout)
        self.attempts.append(attempt)
        if self.refuses is not None:
            attempt.fail(self.refuses)
        return attempt


def refused(number: int = errno.ECONNREFUSED) -> error.ConnectError:
    """What Twisted makes of an errno."""
    failed: error.ConnectError = error.getConnectError((number, "as the system says"))
    return failed


class DialTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor: Any = StrictClock()
        self.names = Names()
        self.reactor.nameResolver = self.names
        self.pump = Pump(self.reactor)
        self.dialer = Dialer(self.reactor, cast("Any", self.pump), Resolver(self.reactor))

    def dial(self, *targets: str, timeout: float = 6.0, retries: int = 2, **fields: Any) -> None:
        """Begin a dial to a pool of these targets."""
        self.pool = make_pool(*targets, reactor=self.reactor, retries=retries, **fields)
        target = self.pool.elect()
        assert target is not None
        self.dialing: Deferred[Dialed[Protocol]] = self.dialer.dial(
            self.pool, target, timeout, Protocol
        )

    @property
    def last(self) -> Attempt:
        return self.pump.attempts[-1]

    def addresses(self) -> list[str]:
        """Where it tried to connect to."""
        return [attempt.address for attempt in self.pump.attempts]

    def turn(self) -> None:
        """One turn of the reactor."""
        self.reactor.advance(0)

    def assert_connected(self, attempt: Attempt, retries: int = 0) -> None:
        """The dial came to this connection; the others are given up, and no timer is left."""
        protocol = attempt.connect()
        self.turn()
        dialed = self.successResultOf(self.dialing)
        self.assertIs(dialed.protocol, protocol)
        self.assertEqual(len(dialed.failed), retries)
        self.assertEqual([t.sessions for t in self.pool.targets if t is dialed.target], [1])
        self.assertEqual(sum(target.sessions for target in self.pool.targets), 1)
        self.assertEqual([a for a in self.pump.attempts if a.state == "connecting"], [])
        self.assertEqual([a for a in self.pump.attempts if a.state == "connected"], [attempt])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def assert_failed(self, cause: str) -> AllFailed:
        """The dial failed for this, and left nothing."""
        failed = self.failureResultOf(self.dialing, AllFailed).value
        assert isinstance(failed, AllFailed)
        self.assertEqual(failed.cause, cause)
        self.assertIn(cause, CAUSES)
        self.assert_nothing_left()
        return failed

    def assert_nothing_left(self) -> None:
        self.assertEqual([target.sessions for target in self.pool.targets if target.sessions], [])
        self.assertEqual({a.state for a in self.pump.attempts} & {"connecting", "connected"}, set())
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class TargetTests(DialTestCase):
    def test_a_literal_address(self) -> None:
        self.dial("127.0.0.1:80")
        self.assertEqual(self.addresses(), ["127.0.0.1:80"])
        self.assert_connected(self.last)

    def test_whoever_follows_hears_of_the_handshake_with_each(self) -> None:
        told: list[tuple[str, str]] = []
        pool = make_pool("127.0.0.1:1", "127.0.0.1:2", reactor=self.reactor, retries=1)
        pool.tls = mock.Mock(connect=mock.Mock(side_effect=PeerRefused("it is another")))
        target = pool.elect()
        assert target is not None
        trace: Any = mock.Mock(tell=lambda *step: told.append(step))
        dialing = self.dialer.dial(pool, target, 6.0, Protocol, trace=trace)
        for _ in range(2):
            attempt: Any = self.last
            attempt.getHandle = attempt.abortConnection = lambda: None
            attempt.connect()
            self.turn()
        self.failureResultOf(dialing, AllFailed)
        each = ["dialing", "dialing", "dial-failed"]
        self.assertEqual([step for step, _ in told], [*each, "elected", *each])
        details = [detail for step, detail in told if step == "dialing"]
        self.assertEqual(details[0], "127.0.0.1:1")
        self.assertEqual(details[1], "TLS handshake with 127.0.0.1:1")
        self.assertEqual(details[3], "TLS handshake with 127.0.0.1:2")

    def test_unix_paths_and_abstract_names(self) -> None:
        for text, path in (("unix:/run/s", "/run/s"), ("unix:@s", "\0s")):
            self.pump.attempts.clear()
            self.dial(text)
            self.assertEqual(self.addresses(), [path])
            self.assert_connected(self.last)

    def test_the_next_target_when_one_fails(self) -> None:
        self.dial("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
        self.last.fail(refused())
        self.turn()
        self.last.fail(refused())
        self.turn()
        self.assertEqual(self.addresses(), [f"127.0.0.1:{port}" for port in (1, 2, 3)])
        self.assert_connected(self.last, retries=2)

    def test_as_many_targets_as_there_are_retries(self) -> None:
        self.dial("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", retries=1)
        for _ in range(2):
            self.last.fail(refused())
            self.turn()
        failed = self.assert_failed("refused")
        self.assertEqual(failed.tried, self.pool.targets[:2])

    def test_none_is_tried_twice(self) -> None:
        self.dial("127.0.0.1:1", retries=5)
        self.last.fail(refused())
        self.turn()
        self.assertEqual(self.assert_failed("refused").tried, self.pool.targets)

    def test_those_that_an_earlier_dial_tried_are_not_tried_again(self) -> None:
        self.pool = make_pool("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", reactor=self.reactor)
        first, second, third = self.pool.targets
        self.assertIs(self.pool.elect(None, [first, second]), third)
        tried = [first]
        self.dialing = self.dialer.dial(self.pool, third, 6.0, Protocol, tried=tried)
        self.assertEqual(tried, [first, third])
        self.last.fail(refused())
        self.turn()
        self.assertEqual(tried, [first, third, second])
        self.assertEqual(self.addresses(), ["127.0.0.1:3", "127.0.0.1:2"])
        self.assert_connected(self.last, retries=2)

    def test_the_pool_hears_of_dials_and_how_long_they_took(self) -> None:
        self.dial("127.0.0.1:1", "127.0.0.1:2")
        told: list[tuple[object, ...]] = []
        self.patch(self.pool, "dialed", lambda *what: told.append(what))
        self.patch(self.pool, "dial_failed", lambda *what: told.append(what))
        self.reactor.advance(0.25)
        self.last.fail(refused())
        self.turn()
        self.reactor.advance(0.5)  # of the second, the first one's time is no part
        self.last.connect()
        self.turn()
        first, second = self.pool.targets
        self.assertEqual(told, [(first, "refused", os.strerror(errno.ECONNREFUSED)), (second, 0.5)])

    def test_one_that_answers_at_once_is_timed_too(self) -> None:
        self.dial("127.0.0.1:1")
        self.reactor.advance(0.125)
        self.last.connect()
        self.turn()
        dials = self.pool.targets[0].dials
        self.assertEqual((dials.average, dials.seconds.counts().count), (0.125, 1))

    def test_it_dials_from_the_address_that_the_pool_is_bound_to(self) -> None:
        self.dial("127.0.0.1:1", bind="127.0.0.9")
        self.assertEqual(self.pump.binds, [("127.0.0.9", 0)])
        self.assert_connected(self.last)

    def test_addresses_of_another_family_than_the_bound_one_are_left_out(self) -> None:
        self.dial("name:80", "[::1]:2", bind="127.0.0.9", retries=1)
        self.names.answer("::1", "192.0.2.1")
        self.assertEqual(self.addresses(), ["192.0.2.1:80"])
        self.last.fail(refused())
        self.turn()
        self.assertIn("from 127.0.0.9", self.assert_failed("unreachable").detail)

    def test_each_gets_a_share_of_the_time(self) -> None:
        self.dial("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", timeout=6)
        self.assertEqual(self.last.timeout, 2)
        self.reactor.advance(2)
        self.turn()
        self.assertEqual(self.last.timeout, 2)
        self.last.fail(refused())
        self.turn()
        self.assertEqual(self.last.timeout, 4)
        self.reactor.advance(4)
        self.turn()
        self.assert_failed("timeout")
        self.assertEqual(self.reactor.seconds(), 6)

    def test_a_machine_that_stood_still_past_the_time_out(self) -> None:
        for second in ("127.0.0.1:2", "unix:/run/s", "name:2"):
            self.setUp()
            self.dial("127.0.0.1:1", second, timeout=6)
            self.reactor.rightNow += 60
            self.last.fail(refused())
            self.reactor.pump([0, 0.01, 0.01])
            self.assert_failed("timeout")

    def test_without_a_time_out_it_waits_for_the_system(self) -> None:
        self.dial("127.0.0.1:1", "127.0.0.1:2", timeout=0)
        self.reactor.advance(1000)
        self.assertEqual(len(self.pump.attempts), 1)
        self.assert_connected(self.last)

    def test_what_fails_at_once(self) -> None:
        self.pump.refuses = refused(errno.ENETUNREACH)
        self.dial("127.0.0.1:1", "127.0.0.1:2")
        self.reactor.pump([0, 0])
        self.assert_failed("unreachable")
        self.assertEqual(len(self.pump.attempts), 2)

    def test_what_fails_to_even_begin(self) -> None:
        self.pump.raises = OSError(errno.EMFILE, "Too many open files")
        self.dial("127.0.0.1:1", "unix:/run/s")
        self.assert_failed("no-resources")

    def test_causes(self) -> None:
        for reason, cause in (
            (refused(errno.ECONNREFUSED), "refused"),
            (refused(errno.ENOENT), "refused"),
            (refused(errno.EHOSTUNREACH), "unreachable"),
            (refused(errno.ETIMEDOUT), "timeout"),
            (refused(errno.EADDRNOTAVAIL), "no-resources"),
            (refused(errno.EACCES), "other"),
            (error.TimeoutError(), "timeout"),
            (error.ConnectError(string="something else"), "other"),
            (OSError(errno.ENOBUFS, "No buffer space"), "no-resources"),
        ):
            self.dial("127.0.0.1:1")
            self.last.fail(reason)
            self.turn()
            self.assertTrue(self.assert_failed(cause).detail)

    def test_a_unix_socket_whose_queue_is_full_is_tried_again(self) -> None:
        self.dial("unix:/run/s", timeout=5)
        for _ in range(3):
            self.last.fail(refused(errno.EAGAIN))
            self.turn()
            self.reactor.advance(0.2)
        self.assertGreater(len(self.pump.attempts), 1)
        self.assert_connected(self.last)

    def test_a_unix_socket_whose_queue_stays_full(self) -> None:
        self.pump.refuses = refused(errno.EAGAIN)
        self.dial("unix:/run/s", timeout=5)
        self.reactor.pump([0.05] * 110)
        self.assert_failed("timeout")


class NameTests(DialTestCase):
    def test_a_name_with_one_address(self) -> None:
        self.dial("name:80")
        self.names.answer("192.0.2.1")
        self.assertEqual(self.addresses(), ["192.0.2.1:80"])
        self.assert_connected(self.last)

    def test_a_name_that_does_not_resolve_is_like_one_that_refuses(self) -> None:
        self.dial("name:80", "127.0.0.1:80")
        self.names.answer()
        self.assert_connected(self.last, retries=1)

    def test_a_resolver_that_does_not_answer_has_the_targets_share_only(self) -> None:
        self.dial("name:80", "127.0.0.1:80", timeout=6)
        self.reactor.advance(3)
        self.assertEqual(self.last.timeout, 3)
        self.assert_connected(self.last, retries=1)

    def test_looking_up_takes_from_the_targets_share(self) -> None:
        self.dial("name:80", timeout=6)
        self.reactor.advance(4)
        self.names.answer("192.0.2.1")
        self.assertEqual(self.last.timeout, 2)
        self.assert_connected(self.last)

    def test_a_name_none_of_whose_addresses_answers_is_looked_up_anew(self) -> None:
        self.dial("name:80")
        self.names.answer("192.0.2.1")
        self.last.fail(refused())
        self.turn()
        self.assert_failed("refused")
        self.dial("name:80")
        self.assertEqual(len(self.names.asked), 1, "a target that is down floods the resolver")
        self.last.fail(refused())
        self.turn()
        self.assert_failed("refused")
        self.reactor.advance(FAILURE_BELIEVED)
        self.dial("name:80")
        self.assertEqual(len(self.names.asked), 2)
        self.names.answer("192.0.2.2")
        self.assert_connected(self.last)


class RaceTests(DialTestCase):
    """RFC 8305, section 5."""

    def setUp(self) -> None:
        super().setUp()
        self.dial("name:80", timeout=6)

    def test_a_second_begins_when_the_first_is_slow(self) -> None:
        self.names.answer("::1", "::2", "192.0.2.1")
        self.assertEqual(self.addresses(), ["::1:80"])
        self.reactor.advance(ATTEMPT_DELAY)
        self.assertEqual(self.addresses(), ["::1:80", "192.0.2.1:80"])
        self.reactor.advance(ATTEMPT_DELAY)
        self.assertEqual(self.addresses(), ["::1:80", "192.0.2.1:80", "::2:80"])

    def test_whoever_answers_first_wins(self) -> None:
        for winner in range(3):
            self.setUp()
            self.names.answer("::1", "::2", "192.0.2.1")
            self.reactor.pump([ATTEMPT_DELAY] * 2)
            self.assert_connected(self.pump.attempts[winner])

    def test_of_two_that_answer_at_once_one_is_closed(self) -> None:
        self.names.answer("::1", "192.0.2.1")
        self.reactor.advance(ATTEMPT_DELAY)
        self.pump.attempts[1].connect()
        protocol = self.pump.attempts[0].connect()
        self.turn()
        dialed = self.successResultOf(self.dialing)
        self.assertEqual(dialed.protocol is protocol, self.pump.attempts[0].state == "connected")
        states = sorted(attempt.state for attempt in self.pump.attempts)
        self.assertEqual(states, ["connected", "disconnected"])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_the_next_begins_at_once_when_one_fails(self) -> None:
        self.names.answer("::1", "192.0.2.1")
        self.last.fail(refused())
        self.turn()
        self.assertEqual(len(self.pump.attempts), 2)
        self.assert_connected(self.last)

    def test_the_delay_begins_anew_with_each_attempt(self) -> None:
        self.names.answer("::1", "::2", "192.0.2.1")
        self.reactor.advance(ATTEMPT_DELAY - 0.05)
        self.last.fail(refused())
        self.turn()
        self.assertEqual(len(self.pump.attempts), 2)
        self.reactor.advance(0.1)
        self.assertEqual(len(self.pump.attempts), 2)
        self.reactor.advance(ATTEMPT_DELAY)
        self.assertEqual(len(self.pump.attempts), 3)

    def test_an_early_one_that_fails_late_is_no_reason_to_fail(self) -> None:
        self.names.answer("::1", "192.0.2.1")
        self.reactor.advance(ATTEMPT_DELAY)
        self.pump.attempts[0].fail(refused())
        self.turn()
        self.assertNoResult(self.dialing)
        self.assert_connected(self.last)

    def test_all_fail(self) -> None:
        self.names.answer("::1", "192.0.2.1")
        for reason in (refused(errno.ENETUNREACH), refused()):
            self.last.fail(reason)
            self.turn()
        self.assert_failed("refused")

    def test_all_fail_at_once(self) -> None:
        self.pump.raises = OSError(errno.ENETUNREACH, "Network is unreachable")
        self.names.answer("::1", "192.0.2.1", "::2")
        self.assert_failed("unreachable")

    def test_none_answers(self) -> None:
        self.names.answer("::1", "192.0.2.1", "192.0.2.2")
        self.reactor.pump([0.1] * 61)
        self.assertEqual(len(self.pump.attempts), 3)
        self.assert_failed("timeout")


class CancelTests(DialTestCase):
    """A dial that is given up leaves nothing, whatever it was at."""

    def cancel(self) -> None:
        self.dialing.cancel()
        self.failureResultOf(self.dialing, CancelledError)
        self.turn()
        self.assert_nothing_left()

    def test_while_the_name_is_looked_up(self) -> None:
        self.dial("name:80")
        self.cancel()
        self.names.answer("192.0.2.1")
        self.assertEqual(self.pump.attempts, [])

    def test_while_connecting(self) -> None:
        for target in ("127.0.0.1:80", "unix:/run/s"):
            self.dial(target)
            self.cancel()

    def test_while_racing(self) -> None:
        for waited in (0.0, ATTEMPT_DELAY, 3 * ATTEMPT_DELAY):
            self.dial("name:80")
            if self.names.asked[-1][1] is not None and not self.pump.attempts:
                self.names.answer("::1", "192.0.2.1")
            self.reactor.advance(waited)
            self.cancel()

    def test_between_two_attempts(self) -> None:
        self.dial("127.0.0.1:80", "127.0.0.1:81")
        self.last.fail(refused())
        self.cancel()
        self.assertEqual(len(self.pump.attempts), 1)

    def test_in_the_turn_in_which_it_is_answered(self) -> None:
        self.dial("127.0.0.1:80")
        self.last.connect()
        self.cancel()
        self.assertEqual(self.last.state, "disconnected")

    def test_while_a_full_queue_is_waited_for(self) -> None:
        self.dial("unix:/run/s")
        self.last.fail(refused(errno.EAGAIN))
        self.turn()
        self.cancel()

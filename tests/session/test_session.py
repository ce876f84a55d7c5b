"""`fwdrelay.session.session` on a clock that only tests move, between transports that only note."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast
from unittest import mock

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from fwdrelay.config import Timeouts
from fwdrelay.deadlines import Deadlines
from fwdrelay.dial import AllFailed, Dialed, Dialer
from fwdrelay.errors import DialFailed
from fwdrelay.observe.trace import Trace, Tracer, TraceStep
from fwdrelay.session import Policy, Reason, Session, Side, State, UpstreamSide
from fwdrelay.upstream import Pool, Target
from tests.case import SynchronousTestCase
from tests.upstream.pools import change, make_pool


class Transport:
    """
    What a pump's transport looks like from a session. Tests say what its peer does.

    @ivar told: the verbs it was told, in order.
    @ivar waiting: bytes that its peer doesn't acknowledge.
    @ivar blocked: it can't write, so an end is told of later.
    """

    def __init__(self, clock: Clock, protocol: Side) -> None:
        self.clock = clock
        self.protocol = protocol
        self.told: list[str] = []
        self.written = b""
        self.received = 0
        self.heard = 0.0
        self.waiting = 0
        self.blocked = False
        self.producer: Any = None
        self.secured: Any = None
        protocol.makeConnection(cast("Any", self))

    def write(self, data: bytes) -> None:
        self.written += data

    def unsent_here(self) -> int:
        return self.waiting if self.blocked else 0

    def unsent(self) -> int:
        return self.waiting

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def loseWriteConnection(self) -> None:
        assert self.producer is None, "it would hold the end back"
        self.told.append("end")
        if not self.blocked:
            self.protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        assert self.producer is None, "it would hold the end back"
        self.told.append("close")

    def abortConnection(self) -> None:
        self.told.append("abort")

    def linger(self) -> None:
        self.told.append("linger")

    # What the peer does.

    def sends(self, data: bytes) -> None:
        self.received += len(data)
        self.heard = self.clock.seconds()
        self.protocol.dataReceived(data)

    def ends(self) -> None:
        self.protocol.readConnectionLost()

    def resets(self) -> None:
        self.waiting = 0
        self.protocol.connectionReset(ConnectionResetError(104, "Connection reset by peer"))

    def goes(self) -> None:
        self.producer = None
        self.protocol.connectionLost(Failure(ConnectionLost()))

    @property
    def closed(self) -> bool:
        """It was told to close, or to reset."""
        return not {"close", "abort", "linger"}.isdisjoint(self.told)


class StubDialer:
    """
    Dials as tests say.

    @ivar answer: fires to let the newest dial succeed; fails it with an `AllFailed`.
    @ivar cancelled: how often the dial was given up.
    @ivar dials: how many there were.
    """

    def __init__(self) -> None:
        self.answer: Deferred[UpstreamSide] = Deferred(self._cancelled)
        self.cancelled = 0
        self.dials = 0

    def _cancelled(self, answer: Deferred[UpstreamSide]) -> None:
        self.cancelled += 1

    def dial(
        self,
        pool: Pool,
        target: Target,
        timeout: float,
        build: Callable[[], UpstreamSide],
        client: str | None,
        tried: list[Target],
        trace: Trace | None,
    ) -> Deferred[Dialed[UpstreamSide]]:
        self.dials += 1
        tried.append(target)
        if self.dials > 1:
            self.answer = Deferred(self._cancelled)
        return Deferred.fromCoroutine(self._dial(pool, target, tried))

    async def _dial(self, pool: Pool, target: Target, tried: list[Target]) -> Dialed[UpstreamSide]:
        try:
            return Dialed(await self.answer, target, tried[:-1])
        except DialFailed as failed:
            pool.release(target)
            raise AllFailed(failed, tried) from None
        except BaseException:
            pool.release(target)
            raise


class SessionTestCase(SynchronousTestCase):
    """
    With one session, whose client has just been admitted or not.

    @ivar ended: the sessions of which the end was told.
    """

    def setUp(self) -> None:
        self.make()

    def make(self, pool: Mapping[str, Any] = MappingProxyType({}), /, **timeouts: float) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.ended: list[Session] = []
        self.pool = make_pool("h:1,max-sessions=1", reactor=self.clock, **pool)
        self.dialer = StubDialer()
        self.deadlines = Deadlines(self.clock)
        policy = Policy(
            Timeouts(**timeouts),
            cast("Dialer", self.dialer),
            self.deadlines,
            self.clock,
            self.ended.append,
        )
        self.client = Transport(self.clock, Side())
        self.session = Session(policy, 1, self.client.protocol, self.clock.seconds(), self.pool)

    def relay(self) -> None:
        """Go on to where bytes are relayed."""
        self.session.begin()
        self.upstream = Transport(self.clock, UpstreamSide())
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))

    def relaying(self, **timeouts: float) -> None:
        self.make(**timeouts)
        self.relay()

    def advance(self, seconds: float) -> None:
        """Let time pass, and all that was to happen meanwhile happen when it was to."""
        end = self.clock.seconds() + seconds
        while (calls := self.clock.getDelayedCalls()) and calls[0].getTime() <= end:
            self.clock.advance(max(calls[0].getTime() - self.clock.seconds(), 0.0))
        self.clock.advance(end - self.clock.seconds())

    def assert_ended(self, reason: Reason, code: str) -> None:
        """The session has ended, once, for this; and nothing of it is left."""
        self.assertEqual(self.ended, [self.session])
        self.assertIs(self.session.state, State.CLOSED)
        self.assertEqual((self.session.reason, self.session.code), (reason, code))
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        self.assertIsNone(self.session.bucket)
        self.assertEqual([target.sessions for target in self.pool.targets], [0])
        sides = [self.session.client, self.session.upstream]
        for side in sides:
            if side is not None:
                self.assertIsNone(side.session)
                self.assertTrue(side.gone or side.transport.closed)
        # The deadlines' own timer may still ring once, for nobody.
        self.advance(10_000)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.ended), 1)

    def assert_relaying(self) -> None:
        self.assertEqual(self.ended, [])


class QueueTests(SessionTestCase):
    """A session that finds no place, in a pool with a queue."""

    def queue(self, seconds: float = 5.0, **timeouts: float) -> None:
        """Begin, while another session has the only place."""
        self.make({"queue": seconds}, **timeouts)
        elected = self.pool.elect()
        assert elected is not None
        self.other = elected
        self.session.begin()

    def test_it_gets_the_next_place(self) -> None:
        self.queue()
        self.assertIs(self.session.state, State.QUEUED)
        self.assertEqual((self.pool.waiting, self.dialer.dials), (1, 0))
        self.advance(3)
        self.pool.release(self.other)
        self.advance(0)
        self.assertIs(self.session.state, State.DIALING)
        self.assertEqual((self.pool.waiting, self.dialer.dials, self.session.waited), (0, 1, 3))
        self.upstream = Transport(self.clock, UpstreamSide())
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
        self.advance(10)
        self.assert_relaying()
        self.session.cut(Reason.STOPPED)
        self.assert_ended(Reason.STOPPED, "KD")

    def test_its_patience_ends(self) -> None:
        self.queue(5)
        self.advance(4.9)
        self.assertEqual(self.ended, [])
        self.advance(1)
        self.assertEqual((self.pool.waiting, self.dialer.dials), (0, 0))
        self.pool.release(self.other)
        self.assert_ended(Reason.QUEUE_TIMEOUT, "sQ")

    def test_the_lifetime_counts_meanwhile(self) -> None:
        self.queue(50, lifetime=2)
        self.advance(3)
        self.pool.release(self.other)
        self.assert_ended(Reason.LIFETIME, "PQ")

    def test_too_many_wait(self) -> None:
        self.make({"queue": 5.0, "max_queued": 1})
        elected = self.pool.elect()
        assert elected is not None
        first = self.session
        again = Session(
            first.policy, 2, Transport(self.clock, Side()).protocol, self.clock.seconds(), self.pool
        )
        again.begin()
        first.begin()
        self.assertEqual((first.reason, first.code), (Reason.QUEUE_FULL, "PQ"))
        again.cut(Reason.STOPPED)
        self.pool.release(elected)
        self.assertEqual(self.ended, [first, again])
        self.assertEqual((again.code, self.pool.waiting), ("KQ", 0))

    def test_the_client_leaves(self) -> None:
        self.queue()
        self.client.resets()
        self.pool.release(self.other)
        self.advance(0)
        self.assertEqual((self.pool.waiting, self.dialer.dials), (0, 0))
        self.assert_ended(Reason.CLIENT_LEFT, "CQ")

    def test_nobody_passes_those_who_wait(self) -> None:
        self.queue()
        self.pool.release(self.other)
        first = self.session
        late = Session(
            first.policy, 2, Transport(self.clock, Side()).protocol, self.clock.seconds(), self.pool
        )
        late.begin()
        self.advance(0)
        self.assertIs(first.state, State.DIALING)
        self.assertIs(late.state, State.QUEUED)
        late.cut(Reason.STOPPED)
        first.cut(Reason.STOPPED)
        self.assertEqual(self.ended, [late, first])

    def test_it_ends_when_there_is_nothing_to_wait_for_any_more(self) -> None:
        self.queue()
        self.advance(2)
        change(self.pool, "h:1,max-sessions=1")
        self.advance(0)
        self.assertEqual(self.session.waited, 2)
        self.assertIn("as many sessions as it may", str(self.session.error))
        self.pool.release(self.other)
        self.assert_ended(Reason.NO_TARGET, "SQ")

    def test_who_comes_just_before_those_who_wait_are_served_is_served_after_them(self) -> None:
        self.queue()
        change(self.pool, "h:1,max-sessions=2")
        late = Session(
            self.session.policy, 2, Transport(self.clock, Side()).protocol, 0.0, self.pool
        )
        late.begin()
        self.pool.release(self.other)
        self.advance(0)
        self.assertEqual([self.session.state, late.state], [State.DIALING] * 2)
        for session in (self.session, late):
            session.cut(Reason.STOPPED)
        self.assertEqual(self.pool.sessions, 0)

    def test_its_patience_is_taken_away_while_it_waits(self) -> None:
        self.queue(5, connect=0)
        self.advance(0)
        self.pool.config = evolve(self.pool.config, queue=0.0)
        self.advance(60)
        self.assertEqual(self.ended, [])
        self.session.cut(Reason.STOPPED)
        self.pool.release(self.other)
        self.assert_ended(Reason.STOPPED, "KQ")

    def test_when_its_dial_failed_and_all_others_are_only_full_it_waits(self) -> None:
        self.make({"queue": 5.0})
        change(self.pool, "h:1,max-sessions=1", "i:1,max-sessions=1", queue=5.0)
        (other,) = [self.pool.elect(None, [self.pool.targets[0]])]
        assert other is not None
        self.session.begin()
        self.dialer.answer.errback(DialFailed("refused", "so it was"))
        self.assertIs(self.session.state, State.QUEUED)
        self.advance(1)
        self.assertEqual(self.dialer.dials, 1, "the one that failed has a place, and is no use")
        self.pool.release(other)
        self.advance(0)
        self.assertEqual((self.dialer.dials, other.sessions), (2, 1))
        self.upstream = Transport(self.clock, UpstreamSide())
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
        self.assertEqual((self.session.target, self.session.retries), (other, 1))
        self.session.cut(Reason.STOPPED)

    def test_without_a_queue_it_does_not_wait(self) -> None:
        self.queue(0)
        self.pool.release(self.other)
        self.assert_ended(Reason.NO_TARGET, "SC")


class OpeningTests(SessionTestCase):
    """A session whose client has to say something before it is known where it goes."""

    def open(self, **timeouts: float) -> None:
        """
        Wait for that.
        """
        self.make(**timeouts)
        self.session.pool = None
        self.opening = mock.Mock(["begin", "give_up"])
        self.session.open(self.opening)
        self.opening.begin.assert_called_once_with()
        self.assertIs(self.session.state, State.OPENING)
        self.assertEqual(self.dialer.dials, 0)

    def test_when_it_is_known_where_to_it_is_dialed(self) -> None:
        self.open()
        self.advance(100_000)
        self.session.opened(self.pool)
        self.opening.give_up.assert_not_called()
        self.assertIs(self.session.state, State.DIALING)
        self.assertEqual((self.session.pool, self.dialer.dials), (self.pool, 1))
        self.session.cut(Reason.STOPPED)
        self.assert_ended(Reason.STOPPED, "KC")

    def test_it_may_be_known_at_once(self) -> None:
        self.make()
        opening = mock.Mock(["begin"])
        opening.begin.side_effect = lambda: self.session.opened(self.pool)
        self.session.open(opening)
        self.assertIs(self.session.state, State.DIALING)
        self.session.cut(Reason.STOPPED)
        self.assert_ended(Reason.STOPPED, "KC")

    def test_where_it_goes_nowhere_it_is_refused(self) -> None:
        self.open()
        self.session.opened(None)
        self.assertEqual(self.client.told, ["abort"])
        self.assert_ended(Reason.NO_ROUTE, "PR")

    def test_who_is_not_let_on_is_reset(self) -> None:
        for reason, late, code in (
            (Reason.PROXY_HEADER, False, "PR"),
            (Reason.PROXY_TIMEOUT, True, "cR"),
            (Reason.TLS_TIMEOUT, True, "cR"),
            (Reason.CLIENT_LEFT, False, "CR"),
            (Reason.DENIED, False, "PR"),
        ):
            self.open()
            self.session.not_opened(reason, "so it was", late=late)
            self.assertEqual((self.session.error, self.client.told), ("so it was", ["abort"]))
            self.assert_ended(reason, code)

    def test_who_was_told_why_may_read_that(self) -> None:
        self.open()
        self.session.not_opened(Reason.IDENTITY, "so it was", answered=True)
        self.assertEqual(self.client.told, ["linger"])
        self.assert_ended(Reason.IDENTITY, "PR")

    def test_whatever_ends_it_ends_the_waiting_too(self) -> None:
        for end, reason, code in (
            (self.client_resets, Reason.CLIENT_LEFT, "CR"),
            (self.client_goes, Reason.CLIENT_LEFT, "CR"),
            (self.stop, Reason.STOPPED, "KR"),
        ):
            self.open()
            end()
            self.opening.give_up.assert_called_once_with()
            self.assertEqual(self.dialer.dials, 0)
            self.assert_ended(reason, code)

    def client_resets(self) -> None:
        self.client.resets()

    def client_goes(self) -> None:
        self.client.goes()

    def stop(self) -> None:
        self.session.cut(Reason.STOPPED)

    def test_the_lifetime_counts_meanwhile(self) -> None:
        self.open(lifetime=60)
        self.advance(59)
        self.assertEqual(self.ended, [])
        self.advance(5)
        self.opening.give_up.assert_called_once_with()
        self.assert_ended(Reason.LIFETIME, "PR")


class FollowedTests(SessionTestCase):
    """With somebody who follows it."""

    def make(self, pool: Mapping[str, Any] = MappingProxyType({}), /, **timeouts: float) -> None:
        super().make(pool, **timeouts)
        self.told: list[TraceStep] = []
        tracer = Tracer(self.clock)
        self.leave = tracer.watch(None, self.told.append)
        self.session.trace = tracer.trace("s", "web", "c", "l", None, self.clock.seconds())

    def steps(self) -> list[str]:
        return [step.step for step in self.told]

    def test_first_bytes_are_looked_for_until_there_were_some_of_both(self) -> None:
        self.make(idle=0.0)
        self.relay()
        self.advance(10)
        self.client.sends(b"one")
        self.advance(2)
        self.assertEqual(self.steps()[-2:], ["connected", "first-byte-up"])
        self.assertEqual(self.told[-1].at_ms, 10000.0)
        self.upstream.sends(b"two")
        self.advance(2)
        self.assertEqual(self.steps()[-1], "first-byte-down")
        self.session.cut(Reason.KILLED)
        self.assertEqual(self.steps()[-1], "ended")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_looks_for_them_once_nobody_follows(self) -> None:
        self.make(idle=0.0)
        self.relay()
        self.leave()
        self.advance(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.session.cut(Reason.KILLED)

    def test_one_that_ends_meanwhile_is_looked_at_no_more(self) -> None:
        self.make(idle=0.0)
        self.relay()
        self.session.cut(Reason.KILLED)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.steps()[-2:], ["connected", "ended"])

    def test_one_that_may_not_even_wait_is_not_told_to_do_so(self) -> None:
        self.make({"queue": 9.0, "max_queued": 0})
        self.pool.elect()
        self.session.begin()
        self.assertEqual(
            (self.session.reason, self.steps()), (Reason.QUEUE_FULL, ["accepted", "ended"])
        )


class BeginningTests(SessionTestCase):
    def test_a_refused_client_is_reset_and_nobody_dialed(self) -> None:
        self.session.refuse(Reason.DENIED)
        self.assertEqual(self.client.told, ["abort"])
        self.assert_ended(Reason.DENIED, "PR")

    def test_once_dialed_the_transports_produce_for_each_other(self) -> None:
        self.relay()
        self.assertIs(self.client.producer, self.upstream)
        self.assertIs(self.upstream.producer, self.client)
        self.assertEqual(self.client.told, ["resume"])
        self.assertEqual(self.upstream.told, ["pause", "resume"])
        self.client.sends(b"question")
        self.upstream.sends(b"answer")
        self.assertEqual((self.upstream.written, self.client.written), (b"question", b"answer"))
        self.assertEqual(self.pool.targets[0].sessions, 1)
        self.session.cut(Reason.DRAIN_TIMEOUT)

    def test_a_dial_that_fails_ends_it(self) -> None:
        for cause, reason, code in (
            ("refused", Reason.DIAL_FAILED, "SC"),
            ("unreachable", Reason.DIAL_FAILED, "SC"),
            ("resolve", Reason.DIAL_FAILED, "SC"),
            ("other", Reason.DIAL_FAILED, "SC"),
            ("timeout", Reason.DIAL_TIMEOUT, "sC"),
            ("no-resources", Reason.NO_RESOURCES, "RC"),
        ):
            self.make()
            self.session.begin()
            self.dialer.answer.errback(DialFailed(cause, "so it was"))
            self.assertEqual((self.session.error, self.session.retries), ("so it was", 0))
            self.assertIs(self.session.target, self.pool.targets[0])
            self.assertEqual(self.client.told, ["abort"])
            self.assert_ended(reason, code)

    def test_without_a_target_it_ends_at_once(self) -> None:
        elected = self.pool.elect()
        assert elected is not None
        self.session.begin()
        self.assertIsNone(self.session.target)
        self.pool.release(elected)
        self.assert_ended(Reason.NO_TARGET, "SC")

    def test_a_client_that_was_reset_with_tls_may_have_said_all_before(self) -> None:
        """What waits to be read is still relayed; without any, the client has left."""
        for unread, left in ((0, True), (7, False)):
            self.make()
            self.session.begin()
            self.client.secured = mock.Mock()
            self.client.unread_here = lambda unread=unread: unread  # type: ignore[attr-defined]
            self.client.resets()
            self.assertEqual(self.session.state is State.CLOSED, left)
            if left:
                self.assert_ended(Reason.CLIENT_LEFT, "CC")
        self.session.cut(Reason.STOPPED)
        self.assert_ended(Reason.STOPPED, "KC")

    def test_a_dial_that_fails_as_it_never_should_ends_it_too(self) -> None:
        self.session.begin()
        self.dialer.answer.errback(ZeroDivisionError("a defect"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assert_ended(Reason.INTERNAL_ERROR, "IC")

    def test_a_client_that_leaves_cancels_the_dial(self) -> None:
        self.session.begin()
        self.client.resets()
        self.assertEqual(self.dialer.cancelled, 1)
        self.assert_ended(Reason.CLIENT_LEFT, "CC")

    def test_a_client_that_is_gone_without_a_word_cancels_the_dial(self) -> None:
        self.session.begin()
        self.client.goes()
        self.assertEqual(self.dialer.cancelled, 1)
        self.assert_ended(Reason.CLIENT_LEFT, "CC")

    def test_a_client_and_an_upstream_that_both_reset_before_they_met(self) -> None:
        self.session.begin()
        self.client.secured = mock.Mock()
        self.client.unread_here = lambda: 7  # type: ignore[attr-defined]
        self.client.resets()
        self.upstream = Transport(self.clock, UpstreamSide())
        self.upstream.resets()
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
        self.assert_ended(Reason.CLIENT_RESET, "CD")
        gc.collect()  # a Deferred tells of what nobody took care of when it is gone
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_an_upstream_that_reset_before_it_was_taken(self) -> None:
        self.session.begin()
        self.upstream = Transport(self.clock, UpstreamSide())
        self.upstream.resets()
        self.upstream.goes()
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
        self.assert_ended(Reason.UPSTREAM_RESET, "SD")

    def test_an_upstream_that_was_gone_before_it_was_taken(self) -> None:
        self.session.begin()
        self.upstream = Transport(self.clock, UpstreamSide())
        self.upstream.goes()
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
        self.assert_ended(Reason.UPSTREAM_RESET, "SD")


class EndTests(SessionTestCase):
    def setUp(self) -> None:
        self.relaying()

    def test_done_when_both_have_ended(self) -> None:
        for first, second in (("client", "upstream"), ("upstream", "client")):
            self.relaying()
            getattr(self, first).ends()
            self.assertEqual(getattr(self, second).told[-1], "end")
            self.assert_relaying()
            getattr(self, second).ends()
            self.assertEqual(getattr(self, first).told[-1], "close")  # which says its end too
            self.assert_ended(Reason.DONE, "--")

    def test_bytes_follow_an_end_of_the_other_direction(self) -> None:
        self.client.ends()
        self.upstream.sends(b"the answer")
        self.assertEqual(self.client.written, b"the answer")
        self.upstream.ends()
        self.assert_ended(Reason.DONE, "--")

    def test_not_done_before_both_ends_are_delivered(self) -> None:
        self.client.blocked = self.upstream.blocked = True
        self.client.ends()
        self.upstream.ends()
        self.assert_relaying()
        self.upstream.protocol.writeConnectionLost()
        self.assert_relaying()
        self.client.protocol.writeConnectionLost()
        self.assert_ended(Reason.DONE, "--")

    def test_cut_in_each_state_resets_both_sides(self) -> None:
        def dialing() -> None:
            self.make()
            self.session.begin()

        def half_closed() -> None:
            self.relaying()
            self.client.ends()

        def settling() -> None:
            self.relaying()
            self.upstream.waiting = 10
            self.client.resets()
            self.client.goes()

        for begin, code in ((dialing, "KC"), (self.relaying, "KD"), (half_closed, "KD")):
            begin()
            self.session.cut(Reason.DRAIN_TIMEOUT)
            self.assertIn("abort", self.client.told)
            if self.session.upstream is not None:
                self.assertIn("abort", self.upstream.told)
            self.assert_ended(Reason.DRAIN_TIMEOUT, code)
        settling()
        self.session.cut(Reason.DRAIN_TIMEOUT)
        self.assert_ended(Reason.CLIENT_RESET, "CD")

    def test_cut_again_does_nothing(self) -> None:
        self.session.cut(Reason.DRAIN_TIMEOUT)
        self.session.cut(Reason.LIFETIME)
        self.assertEqual(self.client.told.count("abort"), 1)
        self.assert_ended(Reason.DRAIN_TIMEOUT, "KD")


class ResetTests(SessionTestCase):
    def setUp(self) -> None:
        self.relaying()

    def test_the_other_is_reset_once_it_has_everything(self) -> None:
        for first, second, reason, code in (
            ("client", "upstream", Reason.CLIENT_RESET, "CD"),
            ("upstream", "client", Reason.UPSTREAM_RESET, "SD"),
        ):
            self.relaying()
            one, other = getattr(self, first), getattr(self, second)
            other.waiting = 10
            one.resets()
            one.sends(b"what it had sent before")
            self.assertEqual(other.written, b"what it had sent before")
            self.advance(10)
            self.assertFalse(other.closed)
            one.goes()
            self.advance(10)
            self.assertFalse(other.closed)
            self.assert_relaying()
            other.waiting = 0
            self.advance(1)
            self.assertEqual(other.told[-1], "abort")
            self.assertEqual(self.session.error, "Connection reset by peer")
            self.assert_ended(reason, code)

    def test_what_the_other_still_sends_is_read_and_not_counted(self) -> None:
        self.upstream.sends(b"counted")
        self.upstream.waiting = 10
        self.client.resets()
        self.upstream.sends(b"in vain")
        self.assertEqual(self.upstream.told[-1], "resume")
        self.assertEqual((self.client.written, self.upstream.protocol.received), (b"counted", 7))
        self.client.goes()
        self.upstream.waiting = 0
        self.advance(1)
        self.assert_ended(Reason.CLIENT_RESET, "CD")

    def test_one_that_acknowledges_nothing_is_not_waited_for_for_ever(self) -> None:
        self.relaying(half_close=60)
        self.upstream.waiting = 10
        self.client.resets()
        self.client.goes()
        self.advance(150)
        self.assert_ended(Reason.CLIENT_RESET, "CD")

    def test_without_time_outs_it_is_waited_for_at_leisure(self) -> None:
        self.relaying(half_close=0, idle=0)
        self.upstream.waiting = 10
        self.client.resets()
        self.client.goes()
        begun = self.clock.seconds()
        looks = 0
        while self.clock.seconds() < begun + 100:
            (call,) = self.clock.getDelayedCalls()
            self.clock.advance(call.getTime() - self.clock.seconds())
            looks += 1
        self.assertLess(looks, 250)
        self.upstream.waiting = 0
        self.advance(1)
        self.assert_ended(Reason.CLIENT_RESET, "CD")

    def test_both_reset(self) -> None:
        self.client.resets()
        self.upstream.resets()
        self.assert_ended(Reason.CLIENT_RESET, "CD")

    def test_the_other_goes_while_it_is_waited_for(self) -> None:
        self.upstream.waiting = 10
        self.client.resets()
        self.client.goes()
        self.upstream.resets()
        self.assert_ended(Reason.CLIENT_RESET, "CD")

    def test_the_other_ends_while_it_is_waited_for(self) -> None:
        self.upstream.waiting = 10
        self.client.resets()
        self.client.goes()
        self.upstream.ends()
        self.assert_relaying()
        self.upstream.waiting = 0
        self.advance(1)
        self.assert_ended(Reason.CLIENT_RESET, "CD")

    def test_a_reset_after_the_upstreams_whole_answer_costs_the_client_nothing(self) -> None:
        self.client.blocked = True
        self.upstream.sends(b"the answer")
        self.upstream.ends()
        self.upstream.resets()
        self.upstream.goes()
        self.assertFalse(self.client.closed)
        self.client.protocol.writeConnectionLost()
        self.assertFalse(self.client.closed)
        self.client.ends()
        self.assertEqual(self.client.told[-1], "close")
        self.assert_ended(Reason.UPSTREAM_RESET, "SD")

    def test_a_client_that_keeps_the_answer_and_never_ends_is_cut(self) -> None:
        self.relaying(half_close=60)
        self.upstream.ends()
        self.upstream.resets()
        self.upstream.goes()
        self.advance(59)
        self.assert_relaying()
        self.advance(4)
        self.assert_ended(Reason.UPSTREAM_RESET, "SD")


class TimeTests(SessionTestCase):
    def test_idle_is_counted_from_the_last_byte_of_either(self) -> None:
        self.relaying(idle=100)
        for transport in (self.client, self.upstream, self.client):
            self.advance(90)
            transport.sends(b"x")
        self.advance(99)
        self.assert_relaying()
        self.advance(5)
        self.assert_ended(Reason.UPSTREAM_IDLE, "sD")

    def test_idle_is_counted_from_when_the_upstream_was_there(self) -> None:
        self.make(idle=100)
        self.session.begin()
        self.advance(500)
        self.upstream = Transport(self.clock, UpstreamSide())
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
        self.advance(99)
        self.assert_relaying()
        self.advance(5)
        self.assertEqual(len(self.ended), 1)

    def test_who_was_silent(self) -> None:
        for speak, silent, code in (
            (lambda: self.client.sends(b"?"), Reason.UPSTREAM_IDLE, "sD"),
            (lambda: self.upstream.sends(b"!"), Reason.CLIENT_IDLE, "cD"),
        ):
            self.relaying(idle=100)
            self.advance(1)
            speak()
            self.advance(110)
            self.assert_ended(silent, code)

    def test_who_takes_no_bytes_is_who_was_silent(self) -> None:
        for slow, reason in (
            ("client", Reason.CLIENT_IDLE),
            ("upstream", Reason.UPSTREAM_IDLE),
        ):
            self.relaying(idle=100)
            getattr(self, slow).waiting = 10
            self.advance(210)
            self.assertEqual([session.reason for session in self.ended], [reason])

    def test_a_peer_that_takes_bytes_however_slowly_is_not_idle(self) -> None:
        self.relaying(idle=100)
        self.client.waiting = 100_000
        for _ in range(20):
            self.advance(103)
            self.client.waiting -= 1
        self.assert_relaying()
        self.advance(210)
        self.assert_ended(Reason.CLIENT_IDLE, "cD")

    def test_idle_off_waits_for_ever(self) -> None:
        self.relaying(idle=0)
        self.advance(1e7)
        self.assert_relaying()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.session.cut(Reason.DRAIN_TIMEOUT)

    def test_half_closed_has_a_time_out_of_its_own(self) -> None:
        self.relaying(idle=1000, half_close=60)
        self.advance(500)
        self.client.ends()
        self.advance(59)
        self.assert_relaying()
        self.advance(4)
        self.assert_ended(Reason.UPSTREAM_HALF_CLOSED, "sD")

    def test_bytes_in_the_open_direction_refresh_it(self) -> None:
        self.relaying(half_close=60)
        self.client.ends()
        for _ in range(50):
            self.advance(55)
            self.upstream.sends(b"x")
        self.upstream.ends()
        self.assert_ended(Reason.DONE, "--")

    def test_it_is_counted_from_the_end_not_from_the_last_byte(self) -> None:
        self.relaying(half_close=60)
        self.advance(500)
        self.upstream.ends()
        self.advance(59)
        self.assert_relaying()
        self.client.ends()
        self.assert_ended(Reason.DONE, "--")

    def test_half_closed_by_the_upstream_the_client_is_who_was_silent(self) -> None:
        self.relaying(half_close=60)
        self.upstream.ends()
        self.advance(63)
        self.assert_ended(Reason.CLIENT_HALF_CLOSED, "cD")

    def test_a_shorter_idle_time_out_holds_for_half_closed_ones_too(self) -> None:
        self.relaying(idle=10, half_close=60)
        self.client.ends()
        self.advance(11)
        self.assert_ended(Reason.UPSTREAM_HALF_CLOSED, "sD")

    def test_half_close_off_leaves_idle(self) -> None:
        self.relaying(idle=100, half_close=0)
        self.client.ends()
        self.advance(99)
        self.assert_relaying()
        self.advance(5)
        self.assertEqual(len(self.ended), 1)

    def test_lifetime_is_never_refreshed(self) -> None:
        self.relaying(lifetime=100)
        for _ in range(99):
            self.advance(1)
            self.client.sends(b"x")
        self.assert_relaying()
        self.advance(5)
        self.assert_ended(Reason.LIFETIME, "PD")

    def test_lifetime_holds_while_half_closed(self) -> None:
        self.relaying(lifetime=100, half_close=1000)
        self.client.ends()
        self.advance(104)
        self.assert_ended(Reason.LIFETIME, "PD")

    def test_lifetime_holds_while_dialing(self) -> None:
        self.make(lifetime=100)
        self.session.begin()
        self.advance(104)
        self.assertEqual(self.dialer.cancelled, 1)
        self.assert_ended(Reason.LIFETIME, "PC")

    def test_lifetime_counts_from_the_accept(self) -> None:
        self.make(lifetime=100)
        self.session.begin()
        self.advance(90)
        self.upstream = Transport(self.clock, UpstreamSide())
        self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
        self.advance(14)
        self.assert_ended(Reason.LIFETIME, "PD")


class AnythingTests(SessionTestCase):
    """Whatever transports may tell, in any order that they may tell it in."""

    def test_each_session_ends_once_and_leaves_nothing(self) -> None:
        events = st.tuples(
            st.sampled_from(("client", "upstream")),
            st.sampled_from(
                ("sends", "ends", "delivers", "resets", "goes", "blocks", "waits", "acks")
            ),
        )

        @given(st.lists(st.one_of(events, st.tuples(st.just("dial"), st.just(""))), max_size=20))
        def check(script: list[tuple[str, str]]) -> None:
            self.make(lifetime=5000)
            self.session.begin()
            self.upstream = Transport(self.clock, UpstreamSide())
            for name, what in script:
                self.act(name, what)
                self.advance(0.01)
            self.advance(6000)
            self.assertEqual(self.ended, [self.session])
            self.assertIs(self.session.state, State.CLOSED)
            self.assert_nothing_left()

        check()

    def act(self, name: str, what: str) -> None:
        """Let it happen, if it can."""
        dialed = self.dialer.answer.called
        if name == "dial":
            if not dialed:
                self.dialer.answer.callback(cast("UpstreamSide", self.upstream.protocol))
            return
        transport: Transport = getattr(self, name)
        side = transport.protocol
        resumed = dialed and self.session.upstream is not None
        if side.gone or transport.closed:
            return
        if what == "sends" and resumed and not side.ended:
            transport.sends(b"x")
        elif what == "ends" and resumed and not side.ended and side.reset is None:
            transport.ends()
        elif what == "delivers" and "end" in transport.told and not side.delivered:
            side.writeConnectionLost()
        elif what == "resets" and side.reset is None and (dialed or name == "client"):
            transport.resets()
        elif what == "goes" and (dialed or name == "client"):
            transport.goes()
        elif what == "blocks":
            transport.blocked = True
        elif what == "waits" and side.reset is None:
            transport.waiting += 10
        elif what == "acks":
            transport.waiting = 0

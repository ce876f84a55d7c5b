"""`fwdrelay.pump.loop` on real sockets, within reactors that it joins in either way."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.runtime import platform

from fwdrelay.pump import loop as loop_module
from fwdrelay.pump.loop import EDGE, READ, Loop, is_supported
from tests.case import SynchronousTestCase, TestCase
from tests.pump.reactors import ReactorTestCase

if not platform.isLinux():
    __test__ = False

global_reactor: Any = installed


class Sock:
    """
    A socket that counts.

    @ivar closed: how often it was closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        self.sock.close()


class Reader:
    """
    One end of a socket pair in a loop.

    @ivar told: the bytes that were there each time it was told of some.
    @ivar then: what it does after reading.
    @ivar next: what it does when it may go on.
    @ivar events: what it was told.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.peer, sock = socket.socketpair()
        sock.setblocking(False)
        self.sock = Sock(sock)
        self.fd = sock.fileno()
        self.told: list[bytes] = []
        self.events: list[int] = []
        self.went_on = self.failures = 0
        self.then: Callable[[], object] = lambda: None
        self.next: Callable[[], object] = lambda: None
        self.on_failure: Callable[[], object] = lambda: None
        loop.add(self.fd, self, READ | EDGE)

    def ready(self, events: int) -> None:
        self.events.append(events)
        try:
            self.told.append(self.sock.sock.recv(1000))
        except BlockingIOError:
            self.told.append(b"")
        self.then()

    def go_on(self) -> None:
        self.went_on += 1
        self.next()

    def failed(self) -> None:
        self.failures += 1
        self.on_failure()

    def close(self) -> None:
        """Leave the loop, if it hasn't yet."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.loop.close(fd, self.sock)


def fail() -> None:
    raise ZeroDivisionError("a defect")


class LoopTestCase(ReactorTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.readers: list[Reader] = []
        self.addCleanup(self.close)

    def reader(self) -> Reader:
        reader = Reader(self.loop)
        self.readers.append(reader)
        return reader

    def close(self) -> None:
        for reader in self.readers:
            reader.close()
            reader.peer.close()
        self.turn_while_busy()
        self.assertEqual([reader.sock.closed for reader in self.readers], [1] * len(self.readers))

    def say(self, *readers: Reader) -> None:
        """Let each have something to read, so that one batch has all of them."""
        for reader in readers:
            reader.peer.send(b"x")


class EventsTests(LoopTestCase):
    def test_each_is_told_of_its_own(self) -> None:
        readers = [self.reader() for _ in range(5)]
        self.say(readers[1], readers[3])
        self.turn(lambda: readers[1].told and readers[3].told)
        self.turn_while_busy()
        self.assertEqual([len(each.told) for each in readers], [0, 1, 0, 1, 0])

    def test_more_than_one_batch_holds(self) -> None:
        readers = [self.reader() for _ in range(700)]
        self.say(*readers)
        self.turn(lambda: all(each.told for each in readers))

    def test_an_edge_is_told_once(self) -> None:
        reader = self.reader()
        reader.peer.send(b"y" * 2000)
        self.turn(lambda: reader.told)
        self.turn_while_busy()
        self.assertEqual(reader.told, [b"y" * 1000])

    def test_a_change_tells_again_what_is_there(self) -> None:
        reader = self.reader()
        reader.peer.send(b"y" * 2000)
        self.turn(lambda: reader.told)
        self.loop.change(reader.fd, READ | select.EPOLLOUT | EDGE)
        self.turn(lambda: len(reader.told) == 2)
        self.assertTrue(reader.events[-1] & select.EPOLLOUT)

    def test_one_that_is_replaced_is_told_nothing(self) -> None:
        first, second = self.reader(), self.reader()
        self.loop.replace(first.fd, second)
        self.say(first)
        self.turn(lambda: second.told)
        self.assertEqual(first.told, [])

    def test_one_that_is_removed_is_told_nothing_and_stays_open(self) -> None:
        reader = self.reader()
        self.reader()
        self.say(reader)
        self.loop.remove(reader.fd)
        self.turn_while_busy()
        self.assertEqual((reader.told, reader.sock.closed), ([], 0))
        self.loop.add(reader.fd, reader, READ | EDGE)
        self.turn(lambda: reader.told)

    def test_an_end_and_urgent_data_are_news(self) -> None:
        reader = self.reader()
        reader.peer.shutdown(socket.SHUT_WR)
        self.turn(lambda: reader.events)
        self.assertTrue(reader.events[0] & select.EPOLLRDHUP)

    def test_the_time_is_that_of_the_batch(self) -> None:
        reader = self.reader()
        times: list[float] = []
        with mock.patch.object(self.reactor, "seconds", lambda: 1234.5):
            reader.then = lambda: times.append(self.loop.now)
            self.say(reader)
            self.turn(lambda: times)
        self.assertEqual(times, [1234.5])


class FailuresTests(LoopTestCase):
    def test_one_that_fails_does_not_drop_the_rest_of_a_batch(self) -> None:
        readers = [self.reader() for _ in range(20)]
        for reader in readers[::2]:
            reader.then = fail
        self.say(*readers)
        self.turn(lambda: all(each.told for each in readers))
        self.assertEqual([each.failures for each in readers], [1, 0] * 10)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 10)

    def test_nor_does_one_whose_end_fails_too(self) -> None:
        readers = [self.reader() for _ in range(20)]
        for reader in readers:
            reader.then = reader.on_failure = fail
        self.say(*readers)
        self.turn(lambda: all(each.failures for each in readers))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 40)

    def test_nor_one_that_fails_when_it_goes_on(self) -> None:
        readers = [self.reader() for _ in range(20)]
        for reader in readers:
            reader.next = fail
            self.loop.later(reader)
        self.turn(lambda: all(each.failures for each in readers))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 20)

    def test_nor_does_a_call_that_fails(self) -> None:
        called: list[int] = []
        reader = self.reader()
        for number in range(5):
            self.loop.call_later(fail, ())
            self.loop.call_later(called.append, (number,))
        self.say(reader)
        self.turn(lambda: reader.told and called)
        self.assertEqual(called, [0, 1, 2, 3, 4])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 5)

    def test_after_a_failure_it_is_served_as_before(self) -> None:
        reader = self.reader()
        reader.then = fail
        self.say(reader)
        self.turn(lambda: reader.failures)
        reader.then = lambda: None
        self.say(reader)
        self.turn(lambda: len(reader.told) == 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ClosingTests(LoopTestCase):
    def test_one_that_ends_all_the_others_of_its_batch(self) -> None:
        readers = [self.reader() for _ in range(10)]

        def end_all() -> None:
            for reader in readers:
                reader.close()

        for reader in readers:
            reader.then = end_all
        self.say(*readers)
        self.turn(lambda: any(each.told for each in readers))
        self.turn_while_busy()
        self.assertEqual(sum(len(each.told) for each in readers), 1)
        self.assertEqual({each.sock.closed for each in readers}, {1})

    def test_in_a_batch_no_number_is_used_again(self) -> None:
        """Or its successor would be told what was said to the closed one."""
        first, second = self.reader(), self.reader()
        new: list[Reader] = []

        def end_the_other_and_open() -> None:
            if not new:
                for reader in (first, second):
                    numbers.append(reader.fd)
                    reader.close()
                new.extend(self.reader() for _ in range(10))
                self.assertEqual([first.sock.closed, second.sock.closed], [0, 0])

        numbers: list[int] = []
        first.then = second.then = end_the_other_and_open
        self.say(first, second)
        self.turn(lambda: new)
        self.turn_while_busy()
        self.assertEqual(len(first.told) + len(second.told), 1)
        self.assertFalse({each.fd for each in new} & set(numbers))
        self.assertEqual([each.told for each in new], [[]] * 10)

    def test_after_the_batch_they_are(self) -> None:
        reader, stays = self.reader(), self.reader()
        number = reader.fd
        reader.then = reader.close
        self.say(reader)
        self.turn(lambda: reader.sock.closed)
        reader.peer.close()
        successors = [self.reader() for _ in range(3)]
        self.assertIn(number, [each.fd for each in successors])
        self.say(stays, *successors)
        self.turn(lambda: stays.told and all(each.told for each in successors))
        self.assertEqual([each.told for each in successors], [[b"x"]] * 3)

    def test_out_of_a_batch_it_is_closed_at_once(self) -> None:
        reader, _ = self.reader(), self.reader()
        self.say(reader)
        reader.close()
        self.assertEqual(reader.sock.closed, 1)
        self.turn_while_busy()
        self.assertEqual(reader.told, [])

    def test_what_waits_to_go_on_may_close_and_be_closed(self) -> None:
        first, second = self.reader(), self.reader()
        for reader in (first, second):
            self.loop.later(reader)
        first.next = second.close
        self.turn(lambda: first.went_on and second.sock.closed)


class LaterTests(LoopTestCase):
    def test_calls_come_in_order_after_all_events_of_the_batch(self) -> None:
        readers = [self.reader() for _ in range(10)]
        seen: list[Any] = []

        def told() -> None:
            seen.append("event")
            self.loop.call_later(seen.append, ("call",))

        for reader in readers:
            reader.then = told
        self.say(*readers)
        self.turn(lambda: len(seen) == 20)
        self.assertEqual(seen, ["event"] * 10 + ["call"] * 10)

    def test_a_call_asked_for_outside_a_batch(self) -> None:
        self.reader()
        called: list[int] = []
        self.loop.call_later(called.append, (1,))
        self.assertEqual(called, [])
        self.turn(lambda: called)

    def test_a_call_asked_for_by_a_call(self) -> None:
        self.reader()
        called: list[int] = []
        self.loop.call_later(self.loop.call_later, (called.append, (1,)))
        self.turn(lambda: called)

    def test_a_call_asked_for_by_a_timer_of_the_reactor(self) -> None:
        self.reader()
        called: list[int] = []
        self.reactor.callLater(0, self.loop.call_later, called.append, (1,))
        self.turn(lambda: called)

    def test_a_call_where_nothing_else_is_in_the_loop(self) -> None:
        called: list[int] = []
        self.loop.call_later(called.append, (1,))
        self.has_joined()
        self.turn(lambda: called)
        self.has_left()

    def test_cancelled_it_is_not_called(self) -> None:
        self.reader()
        called: list[int] = []
        later = [self.loop.call_later(called.append, (number,)) for number in range(3)]
        later[1].cancel()
        self.assertEqual([each.active() for each in later], [True, False, True])
        self.turn(lambda: len(called) == 2)
        self.assertEqual(called, [0, 2])
        self.assertEqual([each.active() for each in later], [False] * 3)

    def test_a_call_may_cancel_another_of_the_same_batch_and_itself(self) -> None:
        self.reader()
        called: list[int] = []

        def cancel() -> None:
            first.cancel()
            second.cancel()

        first = self.loop.call_later(cancel, ())
        second = self.loop.call_later(called.append, (2,))
        self.loop.call_later(called.append, (3,))
        self.turn(lambda: called)
        self.assertEqual(called, [3])

    def test_who_goes_on_and_on_leaves_the_others_their_turn(self) -> None:
        greedy, other = self.reader(), self.reader()
        greedy.next = lambda: self.loop.later(greedy)
        self.loop.later(greedy)
        timers: list[int] = []
        self.reactor.callLater(0, timers.append, 1)
        self.turn(lambda: greedy.went_on > 3)
        for count in range(1, 10):
            self.say(other)
            before = greedy.went_on
            self.turn(lambda count=count: len(other.told) == count)  # type: ignore[misc]
            self.assertLess(greedy.went_on - before, 20)
        self.assertTrue(timers)
        greedy.next = lambda: None

    def test_going_on_comes_after_the_events_of_the_batch(self) -> None:
        seen: list[str] = []
        readers = [self.reader() for _ in range(4)]

        def told(reader: Reader) -> None:
            seen.append("event")
            self.loop.later(reader)

        for reader in readers:
            reader.then = partial(told, reader)
            reader.next = lambda: seen.append("on")
        self.say(*readers)
        self.turn(lambda: len(seen) == 8)
        self.assertEqual(seen, ["event"] * 4 + ["on"] * 4)


class JoiningTests(LoopTestCase):
    def test_it_joins_with_the_first_and_leaves_with_the_last(self) -> None:
        self.has_left()
        first = self.reader()
        self.has_joined()
        second = self.reader()
        first.close()
        self.has_joined()
        second.close()
        self.has_left()
        third = self.reader()
        self.say(third)
        self.turn(lambda: third.told)

    def test_it_leaves_within_its_own_batch(self) -> None:
        reader = self.reader()
        reader.then = reader.close
        self.say(reader)
        self.turn(lambda: reader.sock.closed)
        self.has_left()

    def test_it_leaves_in_its_batch_and_is_asked_again(self) -> None:
        reader = self.reader()
        new: list[Reader] = []

        def close_and_open() -> None:
            reader.close()
            new.append(self.reader())

        reader.then = close_and_open
        self.say(reader)
        self.turn(lambda: new)
        self.has_joined()
        self.say(*new)
        self.turn(lambda: new[0].told)

    def test_it_leaves_when_a_timer_of_the_reactor_says_so(self) -> None:
        reader = self.reader()
        self.reactor.callLater(0, reader.close)
        self.turn(lambda: reader.sock.closed)
        self.has_left()

    def test_it_leaves_when_removed(self) -> None:
        reader = self.reader()
        self.loop.remove(reader.fd)
        self.has_left()
        self.loop.add(reader.fd, reader, READ | EDGE)

    def test_timers_and_readers_of_the_reactor_go_on(self) -> None:
        self.reader()
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        seen: list[Any] = []

        class Theirs:
            def fileno(self) -> int:
                return ours.fileno()

            def logPrefix(self) -> str:
                return "theirs"

            def doRead(self) -> None:
                seen.append(ours.recv(10))

        them = Theirs()
        self.reactor.addReader(them)
        theirs.send(b"a")
        self.turn(lambda: seen == [b"a"])
        self.reactor.callLater(0.001, seen.append, "timer")
        self.turn(lambda: "timer" in seen)
        self.reactor.removeReader(them)

    def test_one_of_the_reactors_may_end_the_last_of_ours(self) -> None:
        reader = self.reader()
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)

        class Theirs:
            def fileno(self) -> int:
                return ours.fileno()

            def logPrefix(self) -> str:
                return "theirs"

            def doRead(inner) -> None:
                self.reactor.removeReader(inner)
                reader.close()

        self.reactor.addReader(Theirs())
        theirs.send(b"a")
        self.say(reader)
        self.turn(lambda: reader.sock.closed)
        self.has_left()

    def test_a_thread_wakes_it(self) -> None:
        self.reader()
        woken: list[int] = []
        call = threading.Timer(0.05, self.reactor.callFromThread, (woken.append, 1))
        call.start()
        self.reactor.iterate(20)
        self.turn(lambda: woken)
        call.join()

    def test_two_loops_in_one_reactor(self) -> None:
        reader = self.reader()
        second = Loop(self.reactor)
        other = Reader(second)
        self.say(reader, other)
        self.turn(lambda: reader.told and other.told)
        reader.close()
        self.say(other)
        self.turn(lambda: len(other.told) == 2)
        other.close()
        other.peer.close()
        self.assertEqual(second.fileno(), -1)

    def test_another_who_polls_for_the_reactor_is_left_in_peace(self) -> None:
        polled: list[Any] = []
        stock = self.reactor.doIteration

        def do_iteration(timeout: float | None) -> None:
            polled.append(timeout)
            stock(timeout)

        self.reactor.doIteration = do_iteration
        reader = self.reader()
        self.say(reader)
        self.turn(lambda: reader.told)
        reader.close()
        self.assertIs(self.reactor.doIteration, do_iteration)
        self.assertTrue(polled)
        del self.reactor.doIteration


class JoiningThePollReactorTests(JoiningTests):
    kind = "Poll"


class InstalledReactorTests(TestCase):
    """In the reactor that runs the tests."""

    def setUp(self) -> None:
        self.loop = Loop(global_reactor)
        self.iteration = global_reactor.doIteration
        self.reader = Reader(self.loop)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.left()))

    async def left(self) -> None:
        self.reader.close()
        self.reader.peer.close()
        await deferLater(global_reactor, 0)  # for it may have been a batch that called this
        self.assertEqual(global_reactor.doIteration, self.iteration)
        self.assertEqual(self.reader.sock.closed, 1)

    def told(self) -> Deferred[None]:
        """
        @return: fires when something is there to read.
        """
        told: Deferred[None] = Deferred()
        self.reader.then = lambda: told.callback(None)
        return told

    async def test_events_timers_and_threads(self) -> None:
        for _ in range(3):
            self.reader.peer.send(b"x")
            await self.told()
            timer: Deferred[None] = Deferred()
            global_reactor.callLater(0.001, timer.callback, None)
            await timer
            self.assertEqual(await deferToThread(lambda: 5), 5)
            call: Deferred[None] = Deferred()
            self.loop.call_later(call.callback, (None,))
            await call
        self.assertEqual(self.reader.told, [b"x"] * 3)

    async def test_it_leaves_and_joins_again(self) -> None:
        await self.left()
        self.reader = Reader(self.loop)
        self.reader.peer.send(b"x")
        await self.told()


class SupportTests(SynchronousTestCase):
    def test_linux_has_all_it_needs(self) -> None:
        self.assertTrue(is_supported())

    def test_a_system_without_splice_or_epoll(self) -> None:
        with mock.patch.object(loop_module, "os", mock.Mock(spec=[])):
            self.assertFalse(is_supported())
        with mock.patch.object(loop_module, "select", mock.Mock(spec=["poll"])):
            self.assertFalse(is_supported())
        self.assertTrue(hasattr(os, "splice"))

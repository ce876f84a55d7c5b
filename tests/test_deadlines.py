"""`fwdrelay.deadlines`, on a clock that only tests move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet.task import Clock

from fwdrelay.deadlines import FINEST, Deadlines
from tests.case import SynchronousTestCase


class Entry:
    """
    @ivar looked: when it was asked whether it is overdue.
    """

    def __init__(self, answer: Callable[[float], float | None] = lambda now: None) -> None:
        self.bucket: set[Any] | None = None
        self.looked: list[float] = []
        self.answer = answer

    def overdue(self, now: float) -> float | None:
        self.looked.append(now)
        return self.answer(now)


def late(asked_at: float, due: float) -> float:
    """How late an entry may be looked at: a 32nd of what it asked for, or 50 ms."""
    return max((due - asked_at) / 32, FINEST)


class DeadlinesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)

    def advance_to(self, time: float) -> None:
        self.clock.advance(time - self.clock.seconds())

    def test_never_early_and_hardly_late(self) -> None:
        @given(st.floats(0, 1e7), st.floats(0, 1e6))
        def check(start: float, wait: float) -> None:
            clock = Clock()
            clock.advance(start)
            deadlines, entry = Deadlines(clock), Entry()
            due = start + wait
            deadlines.set(entry, due)
            while not entry.looked:
                (call,) = clock.getDelayedCalls()
                clock.advance(max(call.getTime() - clock.seconds(), 0.0))
            self.assertGreaterEqual(entry.looked[0], due)
            self.assertLessEqual(entry.looked[0], due + late(start, due) + 1e-6)
            self.assertEqual(clock.getDelayedCalls(), [])

        check()

    def test_one_timer_serves_all(self) -> None:
        entries = [Entry() for _ in range(100)]
        for number, entry in enumerate(entries):
            self.deadlines.set(entry, 100 + number)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.pump([1.0] * 210)
        self.assertEqual([len(entry.looked) for entry in entries], [1] * 100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_earlier_one_comes_first(self) -> None:
        late, early = Entry(), Entry()
        self.deadlines.set(late, 100)
        self.deadlines.set(early, 1)
        self.advance_to(2)
        self.assertEqual((len(early.looked), late.looked), (1, []))

    def test_moved_later_it_is_not_looked_at_before(self) -> None:
        entry = Entry()
        self.deadlines.set(entry, 10)
        self.deadlines.set(entry, 100)
        self.advance_to(99)
        self.assertEqual(entry.looked, [])
        self.advance_to(104)
        self.assertEqual(len(entry.looked), 1)

    def test_moved_earlier_it_is_looked_at_once(self) -> None:
        entry = Entry()
        self.deadlines.set(entry, 100)
        self.deadlines.set(entry, 10)
        self.advance_to(11)
        self.advance_to(200)
        self.assertEqual(len(entry.looked), 1)

    def test_looked_at_again_when_it_says(self) -> None:
        entry = Entry(lambda now: now + 10 if now < 25 else None)
        self.deadlines.set(entry, 10)
        self.clock.pump([0.5] * 100)
        self.assertEqual(len(entry.looked), 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_discarded_it_is_never_looked_at(self) -> None:
        entry = Entry()
        self.deadlines.set(entry, 10)
        self.deadlines.discard(entry)
        self.deadlines.discard(entry)
        self.assertIsNone(entry.bucket)
        self.advance_to(100)
        self.assertEqual(entry.looked, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_discards_its_neighbours_spares_them(self) -> None:
        entries: list[Entry] = []

        def discard_all(now: float) -> None:
            for entry in entries:
                self.deadlines.discard(entry)

        entries += [Entry(discard_all) for _ in range(10)]
        for entry in entries:
            self.deadlines.set(entry, 10)
        self.advance_to(11)
        self.assertEqual(sum(len(entry.looked) for entry in entries), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_that_fails_does_not_hold_up_the_others(self) -> None:
        def fail(now: float) -> None:
            raise RuntimeError("of one entry alone")

        entries = [Entry(fail if number == 5 else lambda now: None) for number in range(10)]
        for entry in entries:
            self.deadlines.set(entry, 10)
        later = Entry()
        self.deadlines.set(later, 20)
        self.clock.pump([11.0, 11.0])
        self.assertEqual([len(entry.looked) for entry in [*entries, later]], [1] * 11)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_stopped_it_forgets_everything(self) -> None:
        entry = Entry()
        self.deadlines.set(entry, 10)
        self.deadlines.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.deadlines.discard(entry)

    def test_any_order_of_sets_moves_and_discards(self) -> None:
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
        )


class Machine(RuleBasedStateMachine):
    """Compares `Deadlines` with a plain dictionary of due times."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.entries = [Entry() for _ in range(6)]
        # When it was asked for, and what for.
        self.wanted: dict[Entry, tuple[float, float]] = {}

    @rule(which=st.integers(0, 5), wait=st.floats(0.001, 4000))
    def set(self, which: int, wait: float) -> None:
        entry, now = self.entries[which], self.clock.seconds()
        self.deadlines.set(entry, now + wait)
        self.wanted[entry] = now, now + wait

    @rule(which=st.integers(0, 5))
    def discard(self, which: int) -> None:
        self.deadlines.discard(self.entries[which])
        self.wanted.pop(self.entries[which], None)

    @rule(by=st.floats(0.001, 3000))
    def advance(self, by: float) -> None:
        end = self.clock.seconds() + by
        calls = self.clock.getDelayedCalls()
        while calls and calls[0].getTime() <= end:
            self.clock.advance(max(calls[0].getTime() - self.clock.seconds(), 0.0))
            self.compare()
            calls = self.clock.getDelayedCalls()
        self.clock.advance(end - self.clock.seconds())

    @invariant()
    def compare(self) -> None:
        now = self.clock.seconds()
        for entry in self.entries:
            asked_at, due = self.wanted.get(entry, (0.0, 0.0))
            if entry.looked:
                assert entry.looked == [now]
                assert due
                assert due <= now
                entry.looked.clear()
                del self.wanted[entry]
            elif due:
                assert now <= due + late(asked_at, due) + 1e-6
        assert len(self.clock.getDelayedCalls()) <= 1

    def teardown(self) -> None:
        self.advance(10_000)
        assert not self.wanted
        assert not self.clock.getDelayedCalls()

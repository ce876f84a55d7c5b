"""`fwdrelay.pump.pipes`: pipes are lent, come back, and are given up when nobody needs them."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any
from unittest import mock

from twisted.internet.task import Clock

from fwdrelay.pump.pipes import SIZES, Pipe, Pipes
from tests.case import SynchronousTestCase, open_descriptors

KEPT = 64


class PipesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pipes = Pipes(self.clock)
        self.before = self.open()
        self.addCleanup(self.nothing_is_left)

    def open(self) -> int:
        return sum(target.startswith("pipe:") for target in open_descriptors().values())

    def opened(self) -> int:
        """How many pipes are open that were not before."""
        return (self.open() - self.before) // 2

    def nothing_is_left(self) -> None:
        self.pipes.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.open(), self.before)

    def borrow(self) -> Pipe:
        pipe = self.pipes.borrow()
        assert pipe is not None
        return pipe

    def fill(self, pipe: Pipe, data: bytes) -> None:
        pipe.held += os.write(pipe.write_end, data)

    def test_one_that_came_back_is_lent_again(self) -> None:
        first = self.borrow()
        self.pipes.give_back(first)
        self.assertIs(self.borrow(), first)
        self.assertIsNot(second := self.borrow(), first)
        for pipe in (first, second):
            self.pipes.give_back(pipe)

    def test_none_is_lent_twice_at_once(self) -> None:
        lent = [self.borrow() for _ in range(10)]
        for pipe in lent:
            self.pipes.give_back(pipe)
        again = [self.borrow() for _ in range(10)]
        self.assertEqual({id(pipe) for pipe in lent}, {id(pipe) for pipe in again})
        for pipe in again:
            self.pipes.give_back(pipe)

    def test_it_is_empty_and_never_waits(self) -> None:
        pipe = self.borrow()
        self.assertRaises(BlockingIOError, os.read, pipe.read_end, 1)
        self.assertFalse(os.get_inheritable(pipe.read_end) or os.get_inheritable(pipe.write_end))
        self.pipes.give_back(pipe)

    def test_one_that_holds_something_is_closed(self) -> None:
        pipe = self.borrow()
        self.fill(pipe, b"what a flow left behind")
        self.pipes.give_back(pipe)
        self.assertEqual(self.opened(), 0)
        other = self.borrow()
        self.assertRaises(BlockingIOError, os.read, other.read_end, 1)
        self.pipes.give_back(other)

    def test_only_so_many_are_kept(self) -> None:
        for pipe in [self.borrow() for _ in range(KEPT + 20)]:
            self.pipes.give_back(pipe)
        self.assertEqual(self.opened(), KEPT)

    def test_those_that_nobody_needs_are_closed_soon_and_no_timer_stays(self) -> None:
        for pipe in [self.borrow() for _ in range(10)]:
            self.pipes.give_back(pipe)
        self.clock.pump([0.5] * 4)
        self.assertEqual(self.opened(), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_as_many_as_are_needed_stay(self) -> None:
        for pipe in [self.borrow() for _ in range(10)]:
            self.pipes.give_back(pipe)
        for _ in range(20):
            for pipe in [self.borrow() for _ in range(3)]:
                self.pipes.give_back(pipe)
            self.clock.advance(0.25)
        self.assertEqual(self.opened(), 3)

    def test_one_on_loan_is_nobody_elses_to_close(self) -> None:
        lent, other = self.borrow(), self.borrow()
        self.pipes.give_back(other)
        self.clock.pump([0.5] * 4)
        self.pipes.close()
        self.assertEqual(self.opened(), 1)
        self.fill(lent, b"x")
        self.assertEqual(os.read(lent.read_end, 5), b"x")
        lent.held = 0
        self.pipes.give_back(lent)

    def test_there_is_none_where_descriptors_have_run_out(self) -> None:
        for number in (errno.EMFILE, errno.ENFILE):
            failed = OSError(number, os.strerror(number))
            with mock.patch.object(os, "pipe2", side_effect=failed):
                self.assertIsNone(self.pipes.borrow())
        self.pipes.give_back(self.borrow())

    def test_as_large_as_the_users_budget_allows(self) -> None:
        asked = []
        resize = fcntl.fcntl

        def only_small(fd: int, what: int, size: int) -> int:
            asked.append(size)
            if size > SIZES[-1]:
                raise PermissionError(errno.EPERM, "spent")
            return resize(fd, what, size)

        with mock.patch.object(fcntl, "fcntl", only_small):
            self.pipes.give_back(self.borrow())
        self.assertEqual(tuple(asked), SIZES)

    def test_one_that_stays_too_small_is_not_used(self) -> None:
        refused = mock.Mock(side_effect=PermissionError(errno.EPERM, "spent"))
        with mock.patch.object(fcntl, "fcntl", refused):
            self.assertIsNone(self.pipes.borrow())
        self.assertEqual(self.opened(), 0)
        self.pipes.give_back(self.borrow())  # as soon as there is budget again

    def test_closed_once(self) -> None:
        closed: list[Any] = []
        pipe = self.borrow()
        numbers = [pipe.read_end, pipe.write_end]
        self.pipes.give_back(pipe)
        close = os.close

        def counted(fd: int) -> None:
            closed.append(fd)
            close(fd)

        with mock.patch.object(os, "close", counted):
            self.clock.pump([0.5] * 4)
            self.pipes.close()
            self.pipes.close()
        self.assertEqual(closed, numbers)

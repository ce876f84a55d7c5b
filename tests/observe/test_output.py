"""`fwdrelay.observe.output` on real pipes and terminals."""

from __future__ import annotations

import gc
import math
import os
import select
import threading
import time
import tty
from typing import Any
from unittest import mock

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from fwdrelay.observe import output as module
from fwdrelay.observe.losses import BOUND, LONGEST_RETRY
from fwdrelay.observe.output import (
    PatientOutput,
    Unsaid,
    of_the_process,
    open_standard_output,
    settle,
    unsaid,
)
from fwdrelay.observe.sink import Sink
from tests.case import SynchronousTestCase

LINES = [f"{number:999}\n" for number in range(500)]
"""More than a pipe or a terminal holds."""


class OutputTestCase(SynchronousTestCase):
    """
    @ivar reader: of what standard output is.
    @ivar writer: standard output.
    """

    reader: int
    writer: int

    def setUp(self) -> None:
        self.open()
        self.addCleanup(lambda: os.close(self.reader))
        self.addCleanup(os.close, self.writer)
        os.set_blocking(self.reader, False)
        # Another test may have waited for its reader in vain just before.
        for name, value in (("STDOUT", self.writer), ("_waited_in_vain_at", -math.inf)):
            patch = mock.patch.object(module, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.clock = Clock()
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.output = PatientOutput(of_the_process(self.clock), self.clock.callLater)
        self.addCleanup(self.output.close)

    def open(self) -> None:
        self.reader, self.writer = os.pipe()

    def told(self) -> list[str]:
        """What was logged."""
        return [formatEvent(e) for e in self.logged if e["log_namespace"].startswith("fwdrelay")]

    def read(self) -> list[str]:
        """The lines that are there to be read now."""
        data = b""
        try:
            while chunk := os.read(self.reader, 1 << 16):
                data += chunk
        except BlockingIOError:
            pass
        return data.decode().splitlines(keepends=True)

    def read_on(self) -> list[str]:
        """The same, until nothing more comes."""
        read: list[str] = []
        while (lines := self.read()) or self.clock.getDelayedCalls():
            if lines and read and not read[-1].endswith("\n"):
                lines[0] = read.pop() + lines[0]
            read += lines
            self.clock.advance(LONGEST_RETRY)
        return read


class PipeTests(OutputTestCase):
    def test_what_is_taken_is_written_at_once(self) -> None:
        self.output.write("ready\n")
        self.assertEqual(self.read(), ["ready\n"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_not_taken_at_once_waits_in_order(self) -> None:
        for line in LINES:
            self.output.write(line)
        self.assertEqual(self.read_on(), LINES)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.told(), [])

    def test_what_waits_too_long_is_dropped_whole_and_told_there(self) -> None:
        observer: Any = self.write_event
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        many = (BOUND + (1 << 20)) // 1000
        for number in range(many):
            self.output.write(f"{number:999}\n")
        self.assertEqual(self.told(), [])
        *lines, last = self.read_on()
        dropped = many - len(lines)
        self.assertGreater(dropped, 100)
        self.assertEqual([int(line) for line in lines], list(range(len(lines))))
        self.assertEqual(
            last,
            f"The log of the process was not taken fast enough, or not at all: {dropped} lines"
            " were dropped.\n",
        )

    def write_event(self, event: Any) -> None:
        """As twistd's log does."""
        self.output.write(formatEvent(event) + "\n")

    def test_a_reader_that_has_gone_keeps_nothing_waiting(self) -> None:
        for line in LINES:
            self.output.write(line)
        os.close(self.reader)
        self.clock.advance(LONGEST_RETRY)
        self.output.write("in vain\n")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.reader = os.open(f"/proc/self/fd/{self.writer}", os.O_RDONLY | os.O_NONBLOCK)
        held = self.read()
        self.assertEqual(held, LINES[: len(held)])
        self.output.write("again\n")
        self.assertEqual(self.read(), ["again\n"])
        (dropped,) = self.told()
        self.assertIn(f" {501 - len(held)} lines were dropped", dropped)

    def test_what_the_process_says_goes_before_what_else_waits_there(self) -> None:
        sink = Sink(self.clock, None)
        self.addCleanup(sink.close)
        for number in range(900):
            sink.write(f"{number:999}")
        self.clock.advance(0)
        self.output.write("it matters\n")
        self.clock.advance(LONGEST_RETRY)
        first = self.read()
        self.clock.advance(LONGEST_RETRY)
        second = self.read()
        self.assertNotIn("it matters\n", first)
        self.assertEqual(second[0], "it matters\n")
        rest = self.read_on()
        self.assertEqual([int(line) for line in (*first, *second[1:], *rest)], [*range(900)])

    def test_a_sink_that_closes_lets_it_go_first_too(self) -> None:
        sink = Sink(self.clock, None)
        for line in LINES:
            self.output.write(line)
        sink.write("the last")
        sink.close(patience=0)
        self.assertEqual(sink.dropped, 1)
        self.assertEqual(self.read_on(), LINES)

    def test_it_is_waited_for_at_the_end(self) -> None:
        for line in LINES:
            self.output.write(line)
        read: list[str] = []

        def drain() -> None:
            with open(self.reader, closefd=False) as reader:
                read.extend(reader.readline() for _ in LINES)

        os.set_blocking(self.reader, True)
        thread = threading.Thread(target=drain)
        thread.start()
        settle(patience=60)
        thread.join()
        self.assertEqual(read, LINES)

    def test_one_that_is_slow_until_the_end_gets_no_more(self) -> None:
        for line in LINES:
            self.output.write(line)
        settle(patience=0)
        lines = self.read()
        self.assertEqual(lines, LINES[: len(lines)])
        self.assertEqual(lines + self.read_on(), LINES)

    def test_who_has_waited_already_does_not_wait_again(self) -> None:
        sink = Sink(self.clock, None)
        for line in LINES:
            self.output.write(line)
        sink.write("the last")
        sink.close(patience=0.01)
        with mock.patch.object(self.output, "_write_until") as write:
            now = time.monotonic()
            with mock.patch.object(time, "monotonic", lambda: now):
                settle(patience=60)
        write.assert_called_once_with(now)

    def test_a_sink_with_nothing_to_write_waits_for_nothing(self) -> None:
        for line in LINES:
            self.output.write(line)
        with mock.patch.object(PatientOutput, "is_up_to_date") as asked:
            Sink(self.clock, None).close(patience=60)
        asked.assert_not_called()

    def test_what_was_dropped_is_told_at_the_end(self) -> None:
        told: Any = self.write_event
        globalLogPublisher.addObserver(told)
        self.addCleanup(globalLogPublisher.removeObserver, told)
        self.fill_up()
        self.output.write("too much\n")
        while len(self.output.unsaid.waiting) > 1 << 15:
            self.read()
            settle(patience=0)
        self.assertEqual(self.told(), [])
        self.read()
        settle(patience=0)
        self.assertIn(" 1 line was dropped.", self.read()[-1])

    def fill_up(self) -> None:
        """Write until not one line more may wait."""
        while len(self.output.unsaid.waiting) < BOUND:
            self.output.write(LINES[0])

    def test_another_goes_on_where_it_had_to_stop(self) -> None:
        self.fill_up()
        self.output.write("too much\n")
        left = unsaid()
        self.assertEqual((left.begun, left.dropped), (False, 1))
        lines = self.read()
        self.output.close()
        self.assertEqual(unsaid(), Unsaid())
        self.output = PatientOutput(of_the_process(self.clock), self.clock.callLater)
        self.addCleanup(self.output.close)
        self.output.go_on_with(left)
        lines += self.read_on()
        self.assertGreater(len(lines), BOUND // 1000)
        self.assertEqual(set(lines), {LINES[0]})
        (dropped,) = self.told()
        self.assertIn(" 1 line was dropped.", dropped)

    def test_a_signal_that_comes_between(self) -> None:
        write = os.write
        handler = iter(["two\n"])

        def interrupted(descriptor: int, data: bytes) -> int:
            for line in handler:
                self.output.write(line)
            return write(descriptor, data)

        with mock.patch.object(os, "write", interrupted):
            self.output.write("one\n")
        self.assertEqual(self.read(), ["one\n", "two\n"])

    def test_another_process_may_take_the_room(self) -> None:
        write = os.write
        tries = iter((BlockingIOError, None, None))

        def once_taken(descriptor: int, data: bytes) -> int:
            if taken := next(tries):
                raise taken
            return write(descriptor, data)

        with mock.patch.object(os, "write", once_taken):
            self.output.write("one\n")
            self.assertEqual(self.read(), [])
            self.clock.advance(LONGEST_RETRY)
        self.assertEqual(self.read(), ["one\n"])

    def test_threads(self) -> None:
        def tell(name: int) -> None:
            for number in range(100):
                self.output.write(f"{name} {number:990}\n")

        threads = [threading.Thread(target=tell, args=(name,)) for name in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        found = [(int(a), int(b)) for a, b in map(str.split, self.read_on())]
        for name in range(4):
            self.assertEqual([b for a, b in found if a == name], list(range(100)))
        self.assertEqual(len(found), 400)

    def test_one_that_was_closed_takes_nothing_and_leaves_nothing(self) -> None:
        for line in LINES:
            self.output.write(line)
        self.output.close()
        self.output.close()
        self.output.write("late\n")
        self.clock.advance(LONGEST_RETRY)
        self.assertTrue(PatientOutput.is_up_to_date())
        lines = self.read_on()
        self.assertEqual(lines, LINES[: len(lines)])
        os.fstat(self.writer)
        self.assertTrue(os.get_blocking(self.writer))

    def test_one_that_nobody_has_any_more_is_as_if_it_were_closed(self) -> None:
        other = PatientOutput(of_the_process(self.clock), lambda seconds, call: None)
        for line in LINES:
            other.write(line)
        self.assertFalse(PatientOutput.is_up_to_date())
        del other
        gc.collect()
        self.assertTrue(PatientOutput.is_up_to_date())


class TerminalTests(OutputTestCase):
    """Standard output is a terminal which nobody reads."""

    def open(self) -> None:
        self.reader, self.writer = os.openpty()
        tty.setraw(self.writer)

    def test_it_does_not_wait(self) -> None:
        for line in LINES:
            self.output.write(line)  # would block, if it could
        self.assertEqual(self.read_on(), LINES)
        self.assertTrue(os.get_blocking(self.writer))

    def test_neither_log_comes_between_the_parts_of_a_line(self) -> None:
        sink = Sink(self.clock, None)
        said: list[str] = []
        told: list[str] = []
        for number in range(50):
            # More than is written at once.
            told.append(f"a{number:6000}\n")
            sink.write(told[-1].rstrip("\n"))
        self.clock.advance(0)
        lines = ""
        ready = select.poll()
        ready.register(self.writer, select.POLLOUT)
        while self.clock.getDelayedCalls():
            # The screen is slow: it takes a part of a line at a time. Who writes first has that.
            while not ready.poll(0):
                lines += os.read(self.reader, 100).decode()
            said.append(f"p{len(said):50}\n")
            self.output.write(said[-1])
            self.clock.advance(LONGEST_RETRY)
        lines += "".join(self.read())
        sink.close()
        found = lines.splitlines(keepends=True)
        whole = {*told, *said}
        self.assertEqual([line[:60] for line in found if line not in whole], [])
        self.assertTrue([line for line in found if line.startswith("a")] == told)
        self.assertTrue([line for line in found if line.startswith("p")] == said)


class FileTests(OutputTestCase):
    """Standard output is a file on a disk."""

    def open(self) -> None:
        self.reader, self.writer = os.pipe()
        os.close(self.writer)
        self.writer = os.open("/dev/full", os.O_WRONLY)

    def test_a_full_disk_keeps_nothing_waiting(self) -> None:
        self.assertEqual(open_standard_output(), self.writer)
        self.output.write("in vain\n")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(PatientOutput.is_up_to_date())
        self.assertEqual(self.told(), [])

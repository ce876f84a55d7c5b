"""`fwdrelay.observe.sink` on real files and pipes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from fwdrelay.errors import CannotOpenLog
from fwdrelay.observe import sink as module
from fwdrelay.observe.sink import Sink
from tests.case import SynchronousTestCase

LINE = "x" * 999 + "\n"


class SinkTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="sink-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "access.log")
        self.clock = Clock()
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def told(self) -> list[str]:
        """What was logged."""
        return [formatEvent(e) for e in self.logged if e["log_namespace"].startswith("fwdrelay")]

    def flush(self) -> None:
        """Let the turns pass in which is written what was to be written."""
        for _ in range(3):
            self.clock.advance(1)


class FileTests(SinkTestCase):
    def test_lines_are_written_in_order_once_a_turn(self) -> None:
        sink = Sink(self.clock, str(self.path))
        for number in range(100):
            sink.write(f"{number}\n")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.path.read_text(), "")
        self.clock.advance(0)
        self.assertEqual(self.path.read_text().split(), [str(n) for n in range(100)])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        sink.close()

    def test_what_is_there_already_is_kept(self) -> None:
        self.path.write_text("before\n")
        sink = Sink(self.clock, str(self.path))
        sink.write("after\n")
        sink.close()
        self.assertEqual(self.path.read_text(), "before\nafter\n")

    def test_closing_writes_what_waits_and_leaves_no_timer(self) -> None:
        sink = Sink(self.clock, str(self.path))
        for _ in range(100):
            sink.write(LINE)
        sink.close()
        self.assertEqual(self.path.read_text(), LINE * 100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reopening_begins_a_new_file(self) -> None:
        sink = Sink(self.clock, str(self.path))
        sink.write("old\n")
        moved = self.path.with_suffix(".1")
        self.path.rename(moved)
        sink.reopen()
        sink.write("new\n")
        sink.close()
        self.assertEqual((moved.read_text(), self.path.read_text()), ("old\n", "new\n"))

    def test_reopening_what_cannot_be_opened_keeps_the_old(self) -> None:
        sink = Sink(self.clock, str(self.path))
        moved = self.path.with_suffix(".1")
        self.path.rename(moved)
        self.path.mkdir()
        sink.reopen()
        sink.write("still here\n")
        sink.close()
        self.assertEqual(moved.read_text(), "still here\n")
        (told,) = self.told()
        self.assertIn("going on with the old one", told)

    def test_a_file_that_cannot_be_opened(self) -> None:
        wanted = self.path / "not" / "there"
        error = self.assertRaises(CannotOpenLog, Sink, self.clock, str(wanted))
        self.assertEqual(
            str(error), f"cannot write the access log {wanted}: No such file or directory"
        )

    def test_text_that_is_no_text(self) -> None:
        sink = Sink(self.clock, str(self.path))
        sink.write("/run/\udcff é\n")
        sink.close()
        self.assertEqual(self.path.read_bytes(), b"/run/\\udcff \xc3\xa9\n")

    def test_a_full_disk_is_said_once_and_ends_when_there_is_room(self) -> None:
        if not Path("/dev/full").exists():
            raise SkipTest("there is no /dev/full")
        self.path.symlink_to("/dev/full")
        sink = Sink(self.clock, str(self.path))
        for _ in range(3):
            sink.write(LINE)
            self.flush()
        (told,) = self.told()
        self.assertIn("No space left on device", told)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.path.unlink()
        sink.reopen()
        sink.write("there is room\n")
        self.flush()
        sink.close()
        self.assertEqual(self.path.read_text(), "there is room\n")
        self.assertEqual(len(self.told()), 1)


class PipeTests(SinkTestCase):
    """Standard output, as whoever runs the relay may read it or not."""

    def setUp(self) -> None:
        super().setUp()
        self.reader, self.writer = os.pipe()
        self.addCleanup(os.close, self.reader)
        patch = mock.patch.object(module, "_STDOUT", self.writer)
        patch.start()
        self.addCleanup(patch.stop)
        self.sink = Sink(self.clock, None)

    def read(self) -> bytes:
        """All that is in the pipe."""
        os.set_blocking(self.reader, False)
        data = b""
        try:
            while chunk := os.read(self.reader, 1 << 20):
                data += chunk
        except BlockingIOError:
            pass
        return data

    def test_a_reader_that_is_slow_gets_all_later_and_nobody_waits(self) -> None:
        self.addCleanup(os.close, self.writer)
        for number in range(500):
            self.sink.write(f"{number:999}\n")
        self.flush()  # would block, if it could
        data = self.read()
        self.assertLess(len(data), 500_000)
        for _ in range(100):
            self.flush()
            data += self.read()
        self.assertEqual(data.split(), [b"%d" % number for number in range(500)])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.told(), [])
        self.sink.close()

    def test_of_one_that_does_not_read_lines_are_dropped_and_counted(self) -> None:
        self.addCleanup(os.close, self.writer)
        for number in range(3000):
            self.sink.write(f"{number:999}\n")
        self.assertEqual(self.told(), [])
        data = b""
        for _ in range(200):
            self.flush()
            data += self.read()
        lines = data.splitlines()
        self.assertEqual([int(line) for line in lines], list(range(len(lines))))
        (told,) = self.told()
        self.assertIn(f"{3000 - len(lines)} lines were dropped", told)
        self.assertLess(len(data), (1 << 20) + 1000 + 1)
        self.sink.close()

    def test_a_reader_that_has_gone_is_said_once(self) -> None:
        self.addCleanup(os.close, self.writer)
        gone, writer = os.pipe()
        os.close(gone)
        self.addCleanup(os.close, writer)
        self.sink._fd = writer
        for _ in range(3):
            self.sink.write(LINE)
            self.flush()
        (told,) = self.told()
        self.assertIn("Broken pipe", told)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.sink.close()

    def test_a_reader_that_went_while_the_pipe_was_full_is_said_too(self) -> None:
        self.addCleanup(os.close, self.writer)
        gone, writer = os.pipe()
        self.addCleanup(os.close, writer)
        self.sink._fd = writer
        for _ in range(500):
            self.sink.write(LINE)
        self.flush()
        os.close(gone)
        self.flush()
        (told,) = self.told()
        self.assertIn("Broken pipe", told)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.sink.close()

    def test_closing_leaves_standard_output_open(self) -> None:
        self.sink.write("last\n")
        self.sink.close()
        os.write(self.writer, b"twistd's own\n")
        os.close(self.writer)
        self.assertEqual(self.read(), b"last\ntwistd's own\n")

    def test_closing_does_not_wait_for_a_reader(self) -> None:
        self.addCleanup(os.close, self.writer)
        for _ in range(500):
            self.sink.write(LINE)
        self.sink.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(set(self.read()), set(LINE.encode()))

    def test_reopening_does_nothing(self) -> None:
        self.addCleanup(os.close, self.writer)
        self.sink.reopen()
        self.sink.write("goes on\n")
        self.sink.close()
        self.assertEqual(self.read(), b"goes on\n")

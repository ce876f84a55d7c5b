"""`fwdrelay.observe.sink` on real files and pipes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from fwdrelay.errors import CannotOpenLog
from fwdrelay.observe import output as module
from fwdrelay.observe.losses import BOUND, FIRST_RETRY
from fwdrelay.observe.sink import Sink
from tests.case import SynchronousTestCase
from tests.scenarios.relay_process import wait_until

LINE = "x" * 999
ROOT = Path(__file__).resolve().parents[2]


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
            sink.write(f"{number}")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.path.read_text(), "")
        self.clock.advance(0)
        self.assertEqual(self.path.read_text().split(), [str(n) for n in range(100)])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        sink.close()

    def test_what_is_there_already_is_kept(self) -> None:
        self.path.write_text("before\n")
        sink = Sink(self.clock, str(self.path))
        sink.write("after")
        sink.close()
        self.assertEqual(self.path.read_text(), "before\nafter\n")

    def test_closing_writes_what_waits_and_leaves_no_timer(self) -> None:
        sink = Sink(self.clock, str(self.path))
        for _ in range(100):
            sink.write(LINE)
        sink.close()
        self.assertEqual(self.path.read_text(), (LINE + "\n") * 100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reopening_begins_a_new_file(self) -> None:
        sink = Sink(self.clock, str(self.path))
        sink.write("old")
        self.clock.advance(0)
        moved = self.path.with_suffix(".1")
        self.path.rename(moved)
        sink.write("later")
        sink.reopen()
        sink.write("new")
        sink.close()
        self.assertEqual((moved.read_text(), self.path.read_text()), ("old\n", "later\nnew\n"))

    def test_reopening_what_cannot_be_opened_keeps_the_old(self) -> None:
        sink = Sink(self.clock, str(self.path))
        moved = self.path.with_suffix(".1")
        self.path.rename(moved)
        self.path.mkdir()
        sink.reopen()
        sink.write("still here")
        sink.close()
        self.assertEqual(moved.read_text(), "still here\n")
        (told,) = self.told()
        self.assertIn("going on with the old one", told)

    def test_each_time_that_it_is_asked_for_in_vain_is_told_and_that_it_went_well(self) -> None:
        sink = Sink(self.clock, str(self.path))
        moved = self.path.with_suffix(".1")
        self.path.rename(moved)
        self.path.mkdir()
        sink.reopen()
        sink.reopen()
        self.path.rmdir()
        sink.reopen()
        sink.reopen()
        sink.close()
        failed, twice, again = self.told()
        self.assertEqual(failed, twice)
        self.assertEqual(again, f"The access log is written to {self.path} again.")

    def test_a_file_that_cannot_be_opened(self) -> None:
        wanted = self.path / "not" / "there"
        error = self.assertRaises(CannotOpenLog, Sink, self.clock, str(wanted))
        self.assertEqual(
            str(error), f"cannot write the access log {wanted}: No such file or directory"
        )

    def test_text_that_is_no_text(self) -> None:
        sink = Sink(self.clock, str(self.path))
        sink.write("/run/\udcff é")
        sink.close()
        self.assertEqual(self.path.read_bytes(), b"/run/\\udcff \xc3\xa9\n")

    def test_a_full_disk_is_said_once_and_ends_when_there_is_room(self) -> None:
        if not Path("/dev/full").exists():
            raise SkipTest("there is no /dev/full")
        self.path.symlink_to("/dev/full")
        sink = Sink(self.clock, str(self.path))
        for _ in range(3):
            sink.write(LINE)
            self.clock.advance(0.1)
        (told,) = self.told()
        self.assertIn(f"Can't write the access log to {self.path}: No space left on device.", told)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(sink.dropped, 3)
        self.path.unlink()
        sink.reopen()
        sink.write("there is room")
        self.flush()
        sink.close()
        self.assertEqual(self.path.read_text(), "there is room\n")
        _, told = self.told()
        self.assertIn("3 lines were dropped", told)
        self.assertEqual(sink.dropped, 3)

    def test_a_line_that_a_full_disk_has_cut_is_completed_when_there_is_room(self) -> None:
        sink = Sink(self.clock, str(self.path))
        with full_after(sink, len(f"first\n{LINE}\n") - 1):
            for line in ("first", LINE, "dropped", "dropped"):
                sink.write(line)
            self.clock.advance(0)
            sink.write("dropped")
            self.flush()
        sink.write("last")
        self.flush()
        sink.close()
        self.assertEqual(self.path.read_text(), f"first\n{LINE}\nlast\n")
        self.assertEqual(sink.dropped, 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_line_that_was_begun_is_never_ended_in_another_file(self) -> None:
        moved = self.path.with_suffix(".1")
        for room in (0, 1000):
            self.path.unlink(missing_ok=True)
            sink = Sink(self.clock, str(self.path))
            with full_after(sink, 3):
                sink.write("begun")
                self.clock.advance(0)
                self.path.rename(moved)
                if not room:
                    sink.reopen()
            if room:
                sink.reopen()
            sink.write("whole")
            sink.close()
            self.assertEqual(self.path.read_text(), "whole\n")
            self.assertEqual(moved.read_text(), "begun\n" if room else "beg")
            self.assertEqual(sink.dropped, 0 if room else 1)

    def test_what_is_left_when_it_closes_is_dropped_and_counted(self) -> None:
        sink = Sink(self.clock, str(self.path))
        with full_after(sink, 3):
            for line in ("begun", "never"):
                sink.write(line)
            sink.close()
        self.assertEqual(sink.dropped, 2)
        self.assertIn("2 lines were dropped", self.told()[-1])

    def test_more_than_may_wait_within_one_turn_is_no_loss(self) -> None:
        sink = Sink(self.clock, str(self.path))
        for number in range(5000):
            sink.write(f"{number:999}")
        sink.close()
        self.assertEqual([int(line) for line in self.path.read_text().split()], list(range(5000)))
        self.assertEqual(sink.dropped, 0)

    def test_it_is_told_now_and_then_how_much_is_lost_and_at_the_end(self) -> None:
        sink = Sink(self.clock, str(self.path))
        for _ in range(3):  # the second one follows too closely
            with full_after(sink, 0):
                sink.write(LINE)
                self.clock.advance(0)
            sink.write("taken")
            self.clock.advance(4)
        sink.close()
        lost = [told.rpartition(": ")[2] for told in self.told() if "dropped." in told]
        self.assertEqual(lost, ["1 line was dropped.", "2 lines were dropped."])
        self.assertEqual(sink.dropped, 3)


class RotationTests(SinkTestCase):
    """A file that is moved away while it is written to, and nobody says so."""

    def setUp(self) -> None:
        super().setUp()
        self.moved = self.path.with_suffix(".1")
        self.sink = Sink(self.clock, str(self.path))
        self.addCleanup(lambda: self.sink.close())

    def write(self, line: str, wait: float = 0.0) -> None:
        """Write a line after a while, and let the turn pass."""
        self.clock.advance(wait)
        self.sink.write(line)
        self.clock.advance(0)

    def test_a_renamed_file_is_begun_anew(self) -> None:
        self.write("one")
        self.path.rename(self.moved)
        self.write("two", 1)
        self.assertEqual((self.moved.read_text(), self.path.read_text()), ("one\n", "two\n"))
        self.assertEqual(self.told(), [])

    def test_a_removed_file_is_begun_anew(self) -> None:
        self.write("one")
        self.path.unlink()
        self.write("two", 1)
        self.assertEqual(self.path.read_text(), "two\n")

    def test_a_file_that_somebody_has_put_in_its_place_is_appended_to(self) -> None:
        self.write("one")
        self.path.rename(self.moved)
        self.path.write_text("made by logrotate\n")
        self.write("two", 1)
        self.assertEqual(self.path.read_text(), "made by logrotate\ntwo\n")

    def test_it_is_looked_at_once_a_second(self) -> None:
        self.write("one", 1)
        self.path.rename(self.moved)
        for _ in range(3):
            self.write("two", 0.3)
        self.write("three", 0.3)
        self.assertEqual(self.moved.read_text().split(), ["one", *["two"] * 3])
        self.assertEqual(self.path.read_text(), "three\n")

    def test_where_nothing_is_written_nothing_is_made(self) -> None:
        self.path.rename(self.moved)
        self.flush()
        self.assertFalse(self.path.exists())

    def test_a_copied_and_truncated_file_goes_on(self) -> None:
        self.write("one")
        os.truncate(self.path, 0)
        self.write("two", 1)
        self.assertEqual(self.path.read_text(), "two\n")

    def test_a_folder_that_has_gone_is_told_once_and_the_old_file_goes_on(self) -> None:
        folder = self.path.parent
        moved = folder.with_suffix(".moved")
        self.write("one")
        folder.rename(moved)
        for _ in range(3):
            self.write("two", 1)
        (told,) = self.told()
        self.assertIn("No such file or directory; going on with the old one", told)
        moved.rename(folder)
        self.write("three", 1)
        again = f"The access log is written to {self.path} again."
        self.assertEqual(self.told(), [told, again])
        self.assertEqual(self.path.read_text().split(), ["one", *["two"] * 3, "three"])
        folder.rename(moved)
        os.mkdir(folder)
        self.write("four", 1)
        self.assertEqual(self.path.read_text(), "four\n")
        self.path.unlink()
        self.write("five", 1)
        self.assertEqual(self.path.read_text(), "five\n")
        self.assertEqual(len(self.told()), 2)
        for each in moved.iterdir():
            each.unlink()
        moved.rmdir()

    def test_what_closing_writes_goes_into_the_new_one(self) -> None:
        self.write("one")
        self.path.rename(self.moved)
        self.clock.advance(1)
        self.sink.write("two")
        self.sink.close()
        self.sink = Sink(self.clock, str(self.path))
        self.assertEqual(self.path.read_text(), "two\n")

    def test_no_line_is_lost_or_doubled_however_often_it_is_moved(self) -> None:
        for number in range(300):
            if number % 7 == 0:
                self.path.rename(self.path.with_suffix(f".{number}"))
            if number % 49 == 0:
                self.path.touch()
            if number % 70 == 0:
                self.sink.reopen()
            self.write(str(number), 1)
        found = [line for each in self.path.parent.iterdir() for line in each.read_text().split()]
        self.assertEqual(sorted(found, key=int), [str(number) for number in range(300)])


@contextmanager
def full_after(sink: Sink, room: int) -> Iterator[None]:
    """The disk that the sink's file is on has `room` bytes left, for a `with` block."""
    taken = 0
    write = os.write

    def written(descriptor: int, data: bytes) -> int:
        nonlocal taken
        if descriptor != sink._fd:
            return write(descriptor, data)
        if taken == room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(descriptor, data[: room - taken])
        taken += count
        return count

    with mock.patch.object(os, "write", written):
        yield


class PipeTests(SinkTestCase):
    """Standard output, as whoever runs the relay may read it or not."""

    def setUp(self) -> None:
        super().setUp()
        self.reader, self.writer = os.pipe()
        self.addCleanup(os.close, self.reader)
        patch = mock.patch.object(module, "STDOUT", self.writer)
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
            self.sink.write(f"{number:999}")
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

    def test_a_reader_that_is_quick_does_not_wait_for_the_next_of_many(self) -> None:
        self.addCleanup(os.close, self.writer)
        data = b""
        for _ in range(50):
            for _ in range(130):  # twice what the pipe takes
                self.sink.write(LINE)
            for _ in range(4):
                self.clock.advance(FIRST_RETRY)
                data += self.read()
        self.assertEqual(data.count(b"\n"), 50 * 130)
        self.assertEqual(self.sink.dropped, 0)
        self.sink.close()

    def test_of_one_that_does_not_read_lines_are_dropped_and_counted(self) -> None:
        self.addCleanup(os.close, self.writer)
        for number in range(3000):
            self.sink.write(f"{number:999}")
        self.assertEqual(self.told(), [])
        data = b""
        for _ in range(200):
            self.flush()
            data += self.read()
        lines = data.splitlines()
        self.assertEqual([int(line) for line in lines], list(range(len(lines))))
        (told,) = self.told()
        self.assertIn(f"{3000 - len(lines)} lines were dropped", told)
        held_by_pipe = 1 << 16
        self.assertLess(len(data), BOUND + held_by_pipe + 1000 + 1)
        self.assertEqual(self.sink.dropped, 3000 - len(lines))
        self.sink.close()

    def test_a_reader_that_has_gone_is_said_once(self) -> None:
        self.addCleanup(os.close, self.writer)
        gone, writer = os.pipe()
        os.close(gone)
        self.sink._leave()
        self.sink._use(writer)
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
        self.sink._leave()
        self.sink._use(writer)
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
        self.sink.write("last")
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
        self.assertEqual(set(self.read()), set(f"{LINE}\n".encode()))

    def test_reopening_does_nothing(self) -> None:
        self.addCleanup(os.close, self.writer)
        self.sink.reopen()
        self.sink.write("goes on")
        self.sink.close()
        self.assertEqual(self.read(), b"goes on\n")


HAMMER = """
import sys
from twisted.internet.task import Clock
from fwdrelay.observe.sink import Sink

name, path, count, longest = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), int(sys.argv[4])
clock = Clock()
sink = Sink(clock, path)
print("ready", file=sys.stderr, flush=True)
sys.stdin.readline()
for number in range(count):
    sink.write(f"{name} {number} " + name * (longest if number % 3 == 0 else number % 300) + " end")
    if number % 10 == 9:
        while clock.getDelayedCalls():
            clock.advance(1)
sink.close(patience=60.0)
sys.exit(min(sink.dropped, 100))
"""
"""Writes lines of which every third is `longest`, as fast as they are taken; exits with how many were dropped."""


TRY = """
import os
from twisted.internet.task import Clock
from fwdrelay.observe.sink import Sink

clock = Clock()
sink = Sink(clock, None)
sink.write("other")
clock.advance(0)
os.write(2, b"tried")
os.close(2)
sink.close(patience=60.0)
"""


class SeveralProcessesTests(SinkTestCase):
    """Two processes that write to the same place, and each line is whole."""

    COUNT = 300
    LONGEST = 3 * select.PIPE_BUF

    def hammers(self, stdout: Any, path: str = "", longest: int = LONGEST) -> list[Any]:
        """Two of them at work."""
        processes: list[Any] = [
            subprocess.Popen(
                [sys.executable, "-c", HAMMER, name, path, str(self.COUNT), str(longest)],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=ROOT,
            )
            for name in "ab"
        ]
        for process in processes:
            self.addCleanup(process.wait)
            self.addCleanup(process.stdin.close)
            self.addCleanup(process.stderr.close)
            self.assertEqual(process.stderr.readline(), b"ready\n")
        for process in processes:  # at the same time
            process.stdin.write(b"go\n")
            process.stdin.flush()
        return processes

    def read_slowly(self, reader: int) -> str:
        """All that comes, in pieces that are smaller than a line; whoever writes has to wait now and then."""
        data = bytearray()
        while chunk := os.read(reader, 3000):
            data += chunk
        return data.decode()

    def assert_whole(self, text: str, longest: int = LONGEST) -> None:
        """All lines of both are there, in their order, and none is cut."""
        for name in "ab":
            wanted = [
                f"{name} {number} " + name * (longest if number % 3 == 0 else number % 300) + " end"
                for number in range(self.COUNT)
            ]
            found = [line for line in text.splitlines() if line.startswith(name)]
            self.assertEqual([len(line) for line in found], [len(line) for line in wanted])
            self.assertEqual(found, wanted)
        self.assertEqual(text.count("\n"), 2 * self.COUNT)

    def test_one_pipe(self) -> None:
        for longest in (200, self.LONGEST):
            reader, writer = os.pipe()
            with os.fdopen(reader):
                processes = self.hammers(writer, longest=longest)
                os.close(writer)
                text = self.read_slowly(reader)
            self.assert_whole(text, longest)
            self.assertEqual([process.wait() for process in processes], [0, 0])

    def test_one_pipe_with_a_name(self) -> None:
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(reader):
            processes = self.hammers(subprocess.DEVNULL, str(self.path))
            select.select([reader], [], [])
            # Who comes second finds a reader, also where who comes first has gone.
            held = os.open(self.path, os.O_WRONLY)
            os.set_blocking(reader, True)
            texts: list[str] = []
            reading = threading.Thread(target=lambda: texts.append(self.read_slowly(reader)))
            reading.start()
            self.assertEqual([process.wait() for process in processes], [0, 0])
            os.close(held)
            reading.join()
        self.assert_whole(texts[0])

    def test_one_socket(self) -> None:
        for family in (socket.AF_UNIX, socket.AF_INET):
            with socket_pair(family) as (ours, theirs):
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
                processes = self.hammers(theirs)
                theirs.close()
                text = self.read_slowly(ours.fileno())
            self.assert_whole(text)
            self.assertEqual([process.wait() for process in processes], [0, 0])

    def test_one_file_that_each_appends_to(self) -> None:
        processes = self.hammers(subprocess.DEVNULL, str(self.path))
        self.assertEqual([process.wait() for process in processes], [0, 0])
        self.assert_whole(self.path.read_text())

    def test_one_file_as_standard_output(self) -> None:
        with self.path.open("w") as file:  # which nobody appends to
            processes = self.hammers(file)
            self.assertEqual([process.wait() for process in processes], [0, 0])
        self.assert_whole(self.path.read_text())

    def test_who_dies_in_the_middle_of_a_line_holds_nobody_up(self) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader), os.fdopen(writer, "wb"):
            (one, other) = self.hammers(writer, longest=1 << 17)
            select.select([reader], [], [])
            os.read(reader, 1)
            one.kill()
            one.wait()
            data = bytearray()
            while b"b 299 " not in data[-10000:]:
                data += os.read(reader, 1 << 16)
            self.assertEqual(other.wait(), 0)

    def test_others_wait_until_a_line_is_complete(self) -> None:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        with mock.patch.object(module, "STDOUT", writer):
            sink = Sink(self.clock, None)
        sink.write("x" * (1 << 17))  # more than the pipe takes
        self.clock.advance(0)
        data = bytearray(os.read(reader, 1 << 15))  # so there is room
        with subprocess.Popen(
            [sys.executable, "-c", TRY], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
        ) as other:
            assert other.stderr is not None
            self.assertEqual(other.stderr.read(), b"tried")
            while b"\n" not in data:
                data += os.read(reader, 1 << 16)
                self.flush()
            self.assertEqual(data.partition(b"\n")[0], b"x" * (1 << 17))
            self.assertEqual(other.wait(), 0)
        sink.close()
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            data += os.read(reader, 1 << 16)
        self.assertEqual(data.count(b"\n"), 2)

    def test_at_the_end_who_cannot_have_its_turn_counts_what_is_lost(self) -> None:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        holder = subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "import fcntl, sys; fcntl.lockf(1, fcntl.LOCK_EX); sys.stdin.read()",
            ],
            stdin=subprocess.PIPE,
            stdout=writer,
        )
        with holder, mock.patch.object(module, "STDOUT", writer):
            wait_until(lambda: is_locked(writer))
            sink = Sink(self.clock, None)
            sink.write("one")
            self.clock.advance(0)
            sink.close(patience=0.0)
        self.assertEqual(sink.dropped, 1)


def is_locked(descriptor: int) -> bool:
    """Whether another process holds a record lock."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.lockf(descriptor, fcntl.LOCK_UN)
    return False


@contextmanager
def socket_pair(family: socket.AddressFamily) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected stream sockets, closed at the end of a `with` block."""
    if family == socket.AF_UNIX:
        one, other = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            one = socket.create_connection(server.getsockname())
            other, _ = server.accept()
    with one, other:
        yield one, other


class NamedPipeTests(SinkTestCase):
    """A pipe with a name, in the place of a file."""

    def setUp(self) -> None:
        super().setUp()
        os.mkfifo(self.path)

    def reader(self) -> int:
        """Somebody who reads it."""
        return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def test_one_that_nobody_reads_is_an_error_at_the_start(self) -> None:
        error = self.assertRaises(CannotOpenLog, Sink, self.clock, str(self.path))
        self.assertEqual(
            str(error), f"cannot write the access log {self.path}: nobody reads that pipe"
        )

    def test_a_reader_that_comes_back_gets_the_next_lines(self) -> None:
        reader = self.reader()
        sink = Sink(self.clock, str(self.path))
        sink.write("one")
        self.flush()
        self.assertEqual(os.read(reader, 100), b"one\n")
        os.close(reader)
        sink.write("two")
        self.flush()
        reader = self.reader()
        sink.write("three")
        self.flush()
        self.assertEqual(os.read(reader, 100), b"three\n")
        os.close(reader)
        sink.close()
        self.assertEqual(sink.dropped, 1)
        broken, lost = self.told()
        self.assertIn("Broken pipe", broken)
        self.assertIn("1 line was dropped", lost)

    def test_reopening_one_that_nobody_reads_keeps_it(self) -> None:
        reader = self.reader()
        sink = Sink(self.clock, str(self.path))
        os.close(reader)
        sink.reopen()
        reader = self.reader()
        sink.write("still here")
        sink.close()
        self.assertEqual(os.read(reader, 100), b"still here\n")
        os.close(reader)
        self.assertIn("nobody reads that pipe; going on", self.told()[0])


class TerminalTests(SinkTestCase):
    """Standard output that is a terminal which nobody reads."""

    def setUp(self) -> None:
        super().setUp()
        self.screen, self.terminal = os.openpty()
        self.addCleanup(os.close, self.screen)
        self.addCleanup(os.close, self.terminal)
        tty.setraw(self.terminal)
        patch = mock.patch.object(module, "STDOUT", self.terminal)
        patch.start()
        self.addCleanup(patch.stop)

    def read(self) -> bytes:
        """All that is on the screen."""
        os.set_blocking(self.screen, False)
        data = b""
        try:
            while chunk := os.read(self.screen, 1 << 16):
                data += chunk
        except BlockingIOError:
            pass
        return data

    def test_the_access_log_does_not_wait(self) -> None:
        sink = Sink(self.clock, None)
        for number in range(500):
            sink.write(f"{number:999}")
        self.flush()  # would block, if it could
        data = b""
        for _ in range(100):
            data += self.read()
            self.flush()
        self.assertEqual([int(line) for line in data.split()], list(range(500)))
        sink.close()
        self.assertTrue(os.get_blocking(self.terminal))

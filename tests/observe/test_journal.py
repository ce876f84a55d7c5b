"""`fwdrelay.observe.journal`, before a socket that is read as journald reads it."""

from __future__ import annotations

import atexit
import errno
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python import log as old_log
from zope.interface.verify import verifyObject

from fwdrelay.errors import CannotOpenLog
from fwdrelay.observe import journal as module
from fwdrelay.observe import output
from fwdrelay.observe.access_log import AccessLog, fields, json_line, tcplog_line
from fwdrelay.observe.journal import (
    NOT_SERVED,
    Journal,
    JournalSink,
    Operations,
    as_error,
    entry,
    operations,
    reads_journal,
)
from fwdrelay.observe.losses import BOUND, FIRST_RETRY, Losses
from fwdrelay.session import Reason
from tests.case import SynchronousTestCase
from tests.observe.test_access_log import EVENT, LASTS, NOT_DIALED


def parsed(data: bytes) -> dict[str, bytes]:
    """The fields of an entry, as the description of the protocol has it."""
    found: dict[str, bytes] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, end, data = (
                rest[8 : 8 + length],
                rest[8 + length : 9 + length],
                rest[9 + length :],
            )
            assert len(value) == length
            assert end == b"\n", end
        else:
            data = rest
        assert name.decode("ascii") not in found
        found[name.decode("ascii")] = value
    return found


class Journald:
    """Its socket; what comes is read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def entries(self) -> list[dict[str, bytes]]:
        """What has come since."""
        found: list[dict[str, bytes]] = []
        while True:
            try:
                data, (*descriptors,), _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
            except BlockingIOError:
                return found
            for descriptor in descriptors:
                with open(descriptor, "rb") as file:
                    file.seek(0)
                    data = file.read()
            found.append(parsed(data))

    def messages(self) -> list[str]:
        """What has come since, the messages alone."""
        return [each["MESSAGE"].decode() for each in self.entries()]

    def close(self) -> None:
        """Stop, and take the socket along."""
        self._socket.close()
        self.path.unlink()


class JournalTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="journal-")
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "socket")
        self.journald = Journald(self.path)
        self.addCleanup(lambda: self.journald.close())
        self.clock = Clock()
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def told(self) -> list[str]:
        """What was logged."""
        return [formatEvent(e) for e in self.logged if e["log_namespace"].startswith("fwdrelay")]

    def drain(self) -> list[str]:
        """All messages that come while time passes."""
        found = self.journald.messages()
        while self.clock.getDelayedCalls():
            self.clock.advance(1)
            found += self.journald.messages()
        return found


class EntryTests(SynchronousTestCase):
    def test_as_it_is_described(self) -> None:
        self.assertEqual(
            entry([("MESSAGE", "one"), ("A_B", 2), ("TWO", "one\ntwo")]),
            b"MESSAGE=one\nA_B=2\nTWO\n\x07\0\0\0\0\0\0\0one\ntwo\n",
        )

    @given(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True), st.text()))
    def test_whatever_it_says_it_is_read_again(self, told: dict[str, str]) -> None:
        wanted = {name: text.encode("utf-8", "backslashreplace") for name, text in told.items()}
        self.assertEqual(parsed(entry(told.items())), wanted)


class SinkTests(JournalTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.sink = JournalSink(self.clock, str(self.path))
        self.addCleanup(lambda: self.sink.close(0.0))

    def write(self, *numbers: int) -> None:
        """Lines of about 1 KB."""
        for number in numbers:
            self.sink.write(f"{number:400}", attrs.evolve(EVENT, error="x" * 400))

    def test_a_line_is_an_entry_with_its_fields(self) -> None:
        log = AccessLog("json", self.sink)
        event = attrs.evolve(EVENT, queue_ms=1.5, sni="a.example", error="two\nlines é \udcff")
        log.session_ended(event)
        (found,) = self.journald.entries()
        self.assertEqual(found["MESSAGE"].decode(), json_line(event))
        self.assertEqual(
            {key: found[key] for key in ("SYSLOG_IDENTIFIER", "PRIORITY", "FWDRELAY_LOG")},
            {"SYSLOG_IDENTIFIER": b"fwdrelay", "PRIORITY": b"6", "FWDRELAY_LOG": b"access"},
        )
        self.assertEqual(found["FWDRELAY_ERROR"], b"two\nlines \xc3\xa9 \\udcff")
        self.assertEqual(found["FWDRELAY_BYTES_DOWN"], b"2000")
        told = {
            key.removeprefix("FWDRELAY_").lower() for key in found if key.startswith("FWDRELAY_")
        }
        self.assertEqual(told - {"log"}, set(fields(event)))

    def test_what_there_is_not_is_no_field(self) -> None:
        self.sink.write("line", NOT_DIALED)
        (found,) = self.journald.entries()
        self.assertNotIn("FWDRELAY_TARGET", found)
        self.assertNotIn("FWDRELAY_DIAL_MS", found)

    def test_the_fields_are_there_in_every_format(self) -> None:
        AccessLog("tcplog", self.sink).session_ended(EVENT)
        (found,) = self.journald.entries()
        self.assertEqual(found["MESSAGE"].decode(), tcplog_line(EVENT))
        self.assertEqual(found["FWDRELAY_SESSION"], b"1-2-3")

    def test_a_client_that_was_not_served_is_worth_a_notice(self) -> None:
        priorities = {}
        for reason in (*(each.word for each in Reason), LASTS.reason):
            self.sink.write("line", attrs.evolve(EVENT, reason=reason))
            (found,) = self.journald.entries()
            priorities[reason] = found["PRIORITY"]
        self.assertEqual(set(priorities.values()), {b"5", b"6"})
        self.assertEqual({each for each, found in priorities.items() if found == b"5"}, NOT_SERVED)

    def test_while_journald_does_not_read_lines_wait_and_nobody_else_does(self) -> None:
        self.write(*range(800))
        self.assertEqual([int(each) for each in self.drain()], list(range(800)))
        self.assertEqual(self.sink.dropped, 0)
        self.assertEqual(self.told(), [])

    def test_a_journald_that_is_quick_does_not_wait_for_the_next_of_many(self) -> None:
        taken = 0
        while not self.clock.getDelayedCalls():
            self.write(0)
            taken += 1
        found = len(self.journald.entries())
        self.write(*[0] * (taken * 10))
        for _ in range(15):
            self.clock.advance(FIRST_RETRY)
            found += len(self.journald.entries())
        self.assertEqual(found, taken * 11)

    def test_what_is_too_much_is_dropped_and_counted(self) -> None:
        self.write(*range(5000))
        self.assertEqual(self.told(), [])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        found = [int(each) for each in self.drain()]
        self.assertEqual(found, list(range(len(found))))
        self.assertEqual(self.sink.dropped, 5000 - len(found))
        (told,) = self.told()
        self.assertEqual(
            told,
            "The access log was not taken fast enough, or not at all:"
            f" {self.sink.dropped} lines were dropped.",
        )
        self.write(5000)
        self.assertEqual([int(each) for each in self.drain()], [5000])

    def test_a_restart_of_journald_loses_nothing(self) -> None:
        self.write(1)
        self.assertEqual(len(self.journald.entries()), 1)
        self.journald.close()
        self.write(2)
        for _ in range(3):
            self.clock.advance(1)
        self.write(3)
        self.journald = Journald(self.path)
        self.assertEqual([int(each) for each in self.drain()], [2, 3])
        (told,) = self.told()
        self.assertIn("Can't reach the journal: No such file or directory.", told)
        self.assertEqual(self.sink.dropped, 0)

    def test_each_absence_is_told_once(self) -> None:
        for count in (1, 2):
            self.journald.close()
            self.write(1)
            for _ in range(5):
                self.clock.advance(1)
            self.journald = Journald(self.path)
            self.drain()
            self.assertEqual(len(self.told()), count)

    def test_closing_sends_what_waits_if_it_is_taken(self) -> None:
        self.write(*range(800))
        found: list[str] = []
        closed = threading.Event()

        def read() -> None:
            while not closed.is_set():
                found.extend(self.journald.messages())

        reading = threading.Thread(target=read)
        reading.start()
        try:
            self.sink.close(30)
        finally:
            closed.set()
            reading.join()
        found += self.journald.messages()
        self.assertEqual([int(each) for each in found], list(range(800)))
        self.assertEqual(self.sink.dropped, 0)

    def test_closing_counts_what_is_not_taken(self) -> None:
        self.write(*range(800))
        self.sink.close(0.0)
        left = 800 - len(self.journald.entries())
        self.assertGreater(left, 0)
        self.assertEqual(self.sink.dropped, left)
        self.assertIn(f"{left} lines were dropped", self.told()[0])
        self.clock.advance(100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closing_does_not_wait_for_memory_for_ever(self) -> None:
        self.write(*range(800))
        lacking = OSError(errno.ENOBUFS, "no")
        with mock.patch.object(Journal, "_send_first", side_effect=lacking):
            self.journald.entries()
            self.sink.close(0.01)
        self.assertGreater(self.sink.dropped, 0)

    def test_closing_when_journald_has_gone(self) -> None:
        self.journald.close()
        self.write(1)
        self.sink.close(30)
        self.assertEqual(self.sink.dropped, 1)
        self.journald = Journald(self.path)

    def test_reopening_does_nothing(self) -> None:
        self.sink.reopen()
        self.write(1)
        self.assertEqual(len(self.journald.entries()), 1)

    def test_where_there_is_no_journald(self) -> None:
        absent = self.path.with_suffix(".not")
        error = self.assertRaises(CannotOpenLog, JournalSink, self.clock, str(absent))
        self.assertEqual(
            str(error),
            f"cannot write the access log to the journal: {absent}: No such file or directory;"
            " where no journald runs, let it go to stdout or a file",
        )


class JournalTests(JournalTestCase):
    """What the log's entries do not come to."""

    def setUp(self) -> None:
        super().setUp()
        self.losses = Losses("It", self.clock, Logger())
        with mock.patch.object(
            module, "_SEND_BUFFER", 50_000
        ):  # machines differ in what they allow
            self.journal = Journal(self.losses, self.clock.callLater, str(self.path))
        self.addCleanup(self.journal.close)

    def test_what_no_datagram_holds_goes_as_a_file(self) -> None:
        for number in range(3):
            self.journal.send(entry([("MESSAGE", f"{number}" * 1_000_000)]))
        self.assertEqual([len(each) for each in self.drain()], [1_000_000] * 3)
        self.assertEqual(self.losses.total, 0)

    def test_one_that_cannot_be_sent_at_all_does_not_hold_up_the_others(self) -> None:
        refused = OSError(errno.EPERM, "no")
        with mock.patch.object(os, "memfd_create", side_effect=refused):
            self.journal.send(entry([("MESSAGE", "x" * 1_000_000)]))
        self.journal.send(entry([("MESSAGE", "next")]))
        self.assertEqual(self.drain(), ["next"])
        self.assertEqual(self.losses.total, 1)

    def test_what_is_told_while_one_is_sent_comes_after_it(self) -> None:
        """An object that dies meanwhile may have something to say."""
        made = entry([("MESSAGE", "first")])
        real = self.journal._send_as_file

        def telling(large: bytes) -> None:
            self.journal.send(made)
            real(large)

        with mock.patch.object(self.journal, "_send_as_file", telling):
            self.journal.send(entry([("MESSAGE", "x" * 1_000_000)]))
        self.assertEqual([len(each) for each in self.drain()], [1_000_000, 5])

    def test_a_bound(self) -> None:
        self.journald.close()
        for _ in range(20):
            self.journal.send(entry([("MESSAGE", "x" * 100_000)]))
        self.journald = Journald(self.path)
        kept = len(self.drain())
        self.assertEqual(kept, BOUND // 100_000 + 1)
        self.assertEqual(self.losses.total, 20 - kept)


class OperationsTests(JournalTestCase):
    log = Logger()

    def setUp(self) -> None:
        super().setUp()
        losses = Losses("The log of the process", self.clock, self.log)
        self.journal = Journal(losses, self.clock.callLater, str(self.path))
        self.addCleanup(self.journal.close)
        self.operations = Operations(self.journal)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """All that is logged goes to the journal, for a `with` block."""
        globalLogPublisher.addObserver(self.operations)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(self.operations)

    def test_a_message_with_its_level_and_fields(self) -> None:
        verifyObject(ILogObserver, self.operations)
        with self.observing():
            self.log.warn("Target {target} of pool {pool}: {x}", target="a", pool="main", x=[1])
        (found,) = self.journald.entries()
        self.assertEqual(
            found,
            {
                "MESSAGE": b"Target a of pool main: [1]",
                "PRIORITY": b"4",
                "SYSLOG_IDENTIFIER": b"fwdrelay",
                "SYSLOG_FACILITY": b"3",
                "FWDRELAY_LOG": b"operations",
                "FWDRELAY_NAMESPACE": b"tests.observe.test_journal.OperationsTests",
                "FWDRELAY_TARGET": b"a",
                "FWDRELAY_POOL": b"main",
            },
        )

    def test_every_level(self) -> None:
        with self.observing():
            for level in LogLevel.iterconstants():
                self.log.emit(level, "{word}", word=level.name)
        found = {each["MESSAGE"].decode(): each["PRIORITY"] for each in self.journald.entries()}
        self.assertEqual(
            found,
            {"debug": b"7", "info": b"6", "warn": b"4", "error": b"3", "critical": b"2"},
        )

    def test_a_failure_comes_with_its_traceback_and_where_it_was(self) -> None:
        with self.observing():
            try:
                raise ValueError("broken")
            except ValueError:
                self.log.failure("It went wrong")
        (found,) = self.journald.entries()
        message = found["MESSAGE"].decode()
        self.assertTrue(message.startswith("It went wrong\nTraceback"), message)
        self.assertTrue(message.endswith("ValueError: broken"), message)
        self.assertEqual(found["PRIORITY"], b"2")
        self.assertEqual(found["CODE_FILE"].decode(), __file__)
        self.assertEqual(found["CODE_FUNC"].decode(), self.id().rpartition(".")[2])
        self.assertTrue(found["CODE_LINE"].isdigit())
        self.flushLoggedErrors(ValueError)

    def test_what_twisted_itself_says_in_its_old_way(self) -> None:
        with self.observing():
            old_log.msg("Starting", "something")
            old_log.msg("")
        (found,) = self.journald.entries()
        self.assertEqual((found["MESSAGE"], found["PRIORITY"]), (b"Starting something", b"6"))

    def test_names_that_the_journal_would_not_take_are_left_out(self) -> None:
        with self.observing():
            self.log.info("it", **{"é": "1", "log": "2", "namespace": "3", "with-dash": "4"})
        (found,) = self.journald.entries()
        self.assertEqual(found["FWDRELAY_LOG"], b"operations")
        self.assertEqual(len([name for name in found if name.startswith("FWDRELAY_")]), 2)

    def test_that_it_cannot_be_reached_is_told_there_later(self) -> None:
        self.journald.close()
        with self.observing():
            self.log.info("while it was away")
            self.clock.advance(1)
            self.journald = Journald(self.path)
            first, second = self.drain()
        self.assertEqual(first, "while it was away")
        self.assertIn("Can't reach the journal: No such file", second)

    def test_what_was_dropped_is_told_there_later(self) -> None:
        with self.observing():
            for _ in range(3000):
                self.log.info("{x}", x="x" * 1000)
            *_, last = self.drain()
        self.assertIn("The log of the process was not taken fast enough", last)

    def test_threads(self) -> None:
        def tell(name: int) -> None:
            for number in range(100):
                self.log.info("{name} {number}", name=name, number=number)

        threads = [threading.Thread(target=tell, args=(name,)) for name in range(4)]
        with self.observing():
            for each in threads:
                each.start()
            for each in threads:
                each.join()
        found = self.drain()
        self.assertEqual(len(found), 400)
        for name in range(4):
            mine = [each for each in found if each.startswith(f"{name} ")]
            self.assertEqual(mine, [f"{name} {number}" for number in range(100)])


class LoggerOfTwistdTests(JournalTestCase):
    """`--logger fwdrelay.observe.journal.operations`."""

    def setUp(self) -> None:
        super().setUp()
        self.at_exit: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        patch = mock.patch.object(
            atexit, "register", lambda call, *given: self.at_exit.append((call, given))
        )
        patch.start()
        self.addCleanup(patch.stop)
        self.reader, self.output = os.pipe()
        self.addCleanup(os.close, self.reader)
        self.addCleanup(os.close, self.output)

    def said(self, observer: ILogObserver) -> str:
        """What goes to standard output when the same is logged."""
        logger = Logger("of.a.test", observer=observer)
        logger.info("ready")
        logger.warn("two\nlines")
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 1 << 16).decode()
        except BlockingIOError:
            return ""

    def test_to_the_journal(self) -> None:
        observer = operations(str(self.path))
        ((close, patience),) = self.at_exit
        self.addCleanup(close, *patience)
        self.assertEqual(self.said(observer), "")
        self.assertEqual(self.journald.messages(), ["ready", "two\nlines"])

    def test_what_waits_at_the_end_is_sent_then(self) -> None:
        observer = operations(str(self.path))
        ((close, patience),) = self.at_exit
        self.journald.close()
        # What is to be sent later is a call of a reactor that does not run here.
        with mock.patch.object(sys.modules["twisted.internet.reactor"], "callFromThread"):
            self.said(observer)
        self.journald = Journald(self.path)
        close(*patience)
        self.assertEqual([each[:5] for each in self.journald.messages()], ["ready", "two\nl"])

    def test_what_waits_is_sent_before_the_process_becomes_another(self) -> None:
        observer = operations(str(self.path))
        ((close, patience),) = self.at_exit
        self.addCleanup(close, *patience)
        self.journald.close()
        with mock.patch.object(sys.modules["twisted.internet.reactor"], "callFromThread"):
            self.said(observer)
        self.journald = Journald(self.path)
        output.settle()
        self.assertEqual([each[:5] for each in self.journald.messages()], ["ready", "two\nl"])

    def test_without_a_journal_it_is_text_as_twistd_writes_it(self) -> None:
        said = self.without_journal("1:2")
        self.assertRegex(
            said,
            r"\A\d{4}-\d\d-\d\dT\S+ \[of\.a\.test#info\] ready\n\S+ \[\S+#warn\] two\n\tlines\n\Z",
        )

    def test_where_only_its_output_goes_to_the_journal_each_line_has_its_level(self) -> None:
        found = os.fstat(self.output)
        said = self.without_journal(f"{found.st_dev}:{found.st_ino}")
        self.assertEqual(said, "<6>[of.a.test#info] ready\n<4>[of.a.test#warn] two\n<4>lines\n")

    def without_journal(self, stream: str) -> str:
        """@param stream: `$JOURNAL_STREAM`."""
        with (
            mock.patch.object(output, "STDOUT", self.output),
            mock.patch.object(module, "_STDOUT", self.output),
            mock.patch.dict(os.environ, {"JOURNAL_STREAM": stream}),
        ):
            return self.said(operations(str(self.path.with_suffix(".not"))))

    def test_the_last_line_of_a_process_is_marked_where_the_journal_reads_it(self) -> None:
        with mock.patch.object(module, "_STDERR", self.output):
            self.assertEqual(as_error("no"), "no")
            found = os.fstat(self.output)
            stream = f"{found.st_dev}:{found.st_ino}"
            with mock.patch.dict(os.environ, {"JOURNAL_STREAM": stream}):
                self.assertEqual(as_error("no"), "<3>no")
        self.assertFalse(reads_journal(-1, {"JOURNAL_STREAM": "1:2"}))

"""`fwdrelay.process.sdnotify` against real datagram sockets, as systemd would hold them."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from twisted.logger import LogEvent, capturedLogs

from fwdrelay.process.sdnotify import Notifier
from tests.case import SynchronousTestCase, open_descriptors


class NotifierTests(SynchronousTestCase):
    """Every test has a socket that stands for systemd's, in a directory of its own."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="sdnotify-")
        self.addCleanup(directory.cleanup)
        self.path = str(Path(directory.name) / "notify")
        self.systemd = self.listen(self.path)
        self.logged = self.enterContext(capturedLogs())

    def listen(self, address: str) -> socket.socket:
        """A socket as systemd has it. Reads do not wait: what was sent has arrived."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(listening.close)
        listening.bind(address)
        return listening

    def notifier(self, **environ: str) -> Notifier:
        """A notifier that talks to `self.systemd`, closed when the test ends."""
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": self.path, **environ})
        self.addCleanup(notifier.close)
        return notifier

    def heard(self) -> list[str]:
        """The assignments of the next datagram."""
        return self.systemd.recv(4096).decode().split("\n")

    def assert_nothing_heard(self) -> None:
        """No datagram is waiting."""
        self.assertRaises(BlockingIOError, self.systemd.recv, 4096)

    def complaints(self) -> list[LogEvent]:
        """What the notifier logged."""
        return [
            event for event in self.logged if event["log_namespace"].startswith("fwdrelay.process")
        ]

    def test_ready_carries_the_status(self) -> None:
        self.notifier().ready("listening on *:5678")
        self.assertEqual(self.heard(), ["READY=1", "STATUS=listening on *:5678"])

    def test_stopping_carries_the_status(self) -> None:
        self.notifier().stopping("draining, 3 sessions")
        self.assertEqual(self.heard(), ["STOPPING=1", "STATUS=draining, 3 sessions"])

    def test_status_alone(self) -> None:
        self.notifier().status("3 sessions")
        self.assertEqual(self.heard(), ["STATUS=3 sessions"])

    def test_watchdog(self) -> None:
        self.notifier().watchdog()
        self.assertEqual(self.heard(), ["WATCHDOG=1"])

    def test_each_word_is_a_datagram_of_its_own(self) -> None:
        notifier = self.notifier()
        notifier.ready("up")
        notifier.watchdog()
        self.assertEqual(self.heard(), ["READY=1", "STATUS=up"])
        self.assertEqual(self.heard(), ["WATCHDOG=1"])
        self.assert_nothing_heard()

    def test_a_line_break_in_a_status_does_not_become_another_assignment(self) -> None:
        self.notifier().status("one\nMAINPID=1\r\ntwo")
        self.assertEqual(self.heard(), ["STATUS=one MAINPID=1 two"])

    def test_a_status_that_is_not_unicode_is_still_sent(self) -> None:
        self.notifier().status("file \udcff")
        self.assertEqual(self.heard(), ["STATUS=file ?"])

    def test_an_abstract_name(self) -> None:
        name = f"fwdrelay-test-{os.getpid()}-{id(self)}"
        self.systemd = self.listen("\0" + name)
        notifier = self.notifier(NOTIFY_SOCKET="@" + name)
        notifier.watchdog()
        self.assertEqual(self.heard(), ["WATCHDOG=1"])

    def test_without_a_service_manager_every_word_is_a_no_op(self) -> None:
        for environ in (
            {},
            {"NOTIFY_SOCKET": ""},
            {"NOTIFY_SOCKET": "@"},
            {"NOTIFY_SOCKET": "vsock:2:1234"},
            {"WATCHDOG_USEC": "2000000"},
        ):
            notifier = Notifier.from_environment(environ)
            descriptors = open_descriptors()
            notifier.ready("up")
            notifier.status("again")
            notifier.status("fine")
            notifier.watchdog()
            notifier.stopping("down")
            self.assertIsNone(notifier.watchdog_interval)
            self.assertEqual(open_descriptors(), descriptors)
            notifier.close()
        self.assert_nothing_heard()
        self.assertEqual(self.complaints(), [])

    def test_the_watchdog_interval_is_half_of_what_is_allowed(self) -> None:
        self.assertEqual(self.notifier(WATCHDOG_USEC="3000000").watchdog_interval, 1.5)

    def test_a_watchdog_for_this_process_is_honoured(self) -> None:
        notifier = self.notifier(WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
        self.assertEqual(notifier.watchdog_interval, 1.5)

    def test_a_watchdog_for_another_process_is_not_ours(self) -> None:
        for pid in (str(os.getppid()), "", "me"):
            self.assertIsNone(
                self.notifier(WATCHDOG_USEC="3000000", WATCHDOG_PID=pid).watchdog_interval
            )

    def test_a_malformed_watchdog_time_is_none(self) -> None:
        for microseconds in ("", "0", "-5", "soon", "1.5", "²"):
            self.assertIsNone(self.notifier(WATCHDOG_USEC=microseconds).watchdog_interval)
        self.assertIsNone(self.notifier().watchdog_interval)

    def test_reading_the_environment_changes_nothing_in_it(self) -> None:
        environ = {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
        Notifier.from_environment(environ)
        self.assertEqual(len(environ), 3)

    def test_a_socket_that_is_gone_is_logged_once_and_does_not_raise(self) -> None:
        notifier = self.notifier()
        Path(self.path).unlink()
        notifier.ready("up")
        notifier.watchdog()
        (complaint,) = self.complaints()
        self.assertEqual(complaint["log_level"].name, "warn")
        self.assertEqual(complaint["address"], self.path)
        self.assertEqual(complaint["word"], "READY=1")

    def test_a_socket_that_is_full_is_logged_once_and_does_not_block(self) -> None:
        notifier = self.notifier()
        # The kernel queues net.unix.max_dgram_qlen datagrams, within the sender's buffer.
        while not self.complaints():
            notifier.status("x" * 8192)
        notifier.status("still full")
        self.assertEqual(len(self.complaints()), 1)

    def test_a_second_outage_is_logged_again(self) -> None:
        notifier = self.notifier()
        for _ in range(2):
            Path(self.path).unlink()
            notifier.watchdog()
            self.systemd = self.listen(self.path)
            notifier.watchdog()
            self.assertEqual(self.heard(), ["WATCHDOG=1"])
        self.assertEqual(len(self.complaints()), 2)

    def test_an_abstract_name_is_logged_as_it_was_given(self) -> None:
        self.notifier(NOTIFY_SOCKET=f"@fwdrelay-nobody-{os.getpid()}").watchdog()
        (complaint,) = self.complaints()
        self.assertEqual(complaint["address"], f"@fwdrelay-nobody-{os.getpid()}")

    def test_a_path_that_no_socket_address_can_hold_is_logged(self) -> None:
        self.notifier(NOTIFY_SOCKET="/" + "x" * 200).watchdog()
        self.assertEqual(len(self.complaints()), 1)

    def test_close_leaves_no_descriptor_and_may_be_repeated(self) -> None:
        before = open_descriptors()
        notifier = self.notifier()
        notifier.watchdog()
        self.assertNotEqual(open_descriptors(), before)
        notifier.close()
        notifier.close()
        self.assertEqual(open_descriptors(), before)

    def test_a_word_after_close_is_still_said(self) -> None:
        notifier = self.notifier()
        notifier.watchdog()
        notifier.close()
        notifier.stopping("bye")
        self.assertEqual(self.heard(), ["WATCHDOG=1"])
        self.assertEqual(self.heard(), ["STOPPING=1", "STATUS=bye"])

"""Ports and descriptors: real ones."""

from __future__ import annotations

import os
import select
import socket
import stat
import tempfile
from errno import EMFILE
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from fwdrelay.admin.port import RESERVE, AdminTCPPort, AdminUNIXPort, Reserve, listen, where
from fwdrelay.errors import CannotListen
from tests.case import SynchronousTestCase, TestCase, open_descriptors


class Rooms(Factory[Any]):
    """Counts how often room was wanted."""

    protocol = Protocol
    wanted = 0
    noisy = False

    def make_room(self) -> bool:
        self.wanted += 1
        return False


class ReserveTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.reserve = Reserve(self.clock)
        self.addCleanup(self.reserve.release)
        self.short = 0

        self.left = 3
        self.real = os.open

    def few(self, *arguments: Any) -> int:
        """os.open, while descriptors are left."""
        if not self.left:
            self.short += 1
            raise OSError(EMFILE, "Too many open files")
        self.left -= 1
        return self.real(*arguments)

    def test_so_many_are_held_and_given_up_one_by_one(self) -> None:
        before = len(open_descriptors())
        self.reserve.hold()
        self.reserve.hold()
        self.assertEqual(len(open_descriptors()) - before, RESERVE)
        for left in range(RESERVE - 1, -1, -1):
            self.assertTrue(self.reserve.give_up())
            self.assertEqual(len(self.reserve), left)
        self.assertFalse(self.reserve.give_up())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_not_to_be_had_is_asked_for_again(self) -> None:
        self.patch(os, "open", self.few)
        self.reserve.hold()
        self.reserve.hold()
        self.assertEqual(len(self.reserve), 3)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(1)
        self.assertEqual(self.short, 3)
        self.left = 100
        self.clock.advance(1)
        self.assertEqual(len(self.reserve), RESERVE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_is_left_of_it(self) -> None:
        self.patch(os, "open", self.few)
        self.reserve.hold()
        self.reserve.release()
        self.assertEqual((len(self.reserve), self.clock.getDelayedCalls()), (0, []))

    def test_whoever_accepts_gets_one(self) -> None:
        self.reserve.hold()
        tries: list[int] = []

        def accept() -> str:
            tries.append(len(self.reserve))
            if len(tries) == 1:
                raise OSError(EMFILE, "Too many open files")
            return "accepted"

        self.assertEqual(self.reserve.make(accept), "accepted")
        self.assertEqual(tries, [RESERVE, RESERVE - 1])


class Listening:
    """A listening socket that has run out of descriptors, as accept(2) tells it: before it looks who waits."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)

    def fileno(self) -> int:
        return self.socket.fileno()

    def accept(self) -> Any:
        raise OSError(EMFILE, "Too many open files")


class AcceptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.rooms = Rooms()
        self.port = AdminTCPPort(0, self.rooms, reactor=self)
        self.reserve = self.port.spare = Reserve(self.clock)
        self.listening = Listening()
        self.addCleanup(self.listening.socket.close)
        self.addCleanup(self.reserve.release)
        port: Any = self.port
        port.socket, port.fileno = self.listening, self.listening.fileno
        self.paused: list[float] = []
        self.patch(AdminTCPPort, "stopReading", lambda port: None)
        self.patch(AdminTCPPort, "log", self)

    def callLater(self, seconds: float, act: Any) -> None:
        self.paused.append(seconds)

    def error(self, sentence: str, **fields: Any) -> None:
        """It is logged that nobody can be accepted."""
        self.flushed = sentence

    def test_nobody_waits(self) -> None:
        self.reserve.hold()
        self.port.doRead()
        self.assertEqual((self.rooms.wanted, self.paused), (0, []))
        self.assertEqual(len(self.reserve), RESERVE)

    def test_somebody_waits_and_nothing_is_left(self) -> None:
        host = IPv4Address("TCP", "127.0.0.1", 1)
        self.patch(AdminTCPPort, "getHost", lambda port: host)
        with socket.create_connection(self.listening.socket.getsockname()):
            # A client knows that it is connected a little earlier than who listens.
            self.assertTrue(select.select([self.listening], [], [], 10.0)[0])
            self.port.doRead()
        self.assertEqual((self.rooms.wanted, len(self.paused)), (1, 1))
        self.assertIn("Can't accept", self.flushed)


class ListenTests(TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "admin.sock")
        self.reserve = Reserve(reactor)

    def listen(self, admin: str) -> AdminTCPPort | AdminUNIXPort:
        port = listen(admin, Rooms(), self.reserve, reactor)
        self.addCleanup(self.reserve.release)
        self.addCleanup(port.stopListening)
        return port

    def assert_cannot(self, admin: str, *words: str) -> None:
        error = self.assertRaises(CannotListen, listen, admin, Rooms(), self.reserve, reactor)
        for word in (f"cannot listen on {admin} (admin): ", *words):
            self.assertIn(word, str(error))
        self.assertEqual(len(self.reserve), 0)

    def test_by_tcp(self) -> None:
        port = self.listen("127.0.0.1:0")
        number = port.getHost().port
        self.assertEqual(where(port), f"http://127.0.0.1:{number}/")
        self.assertEqual(len(self.reserve), RESERVE)
        with socket.create_connection(("127.0.0.1", number)):
            pass

    def test_by_ipv6(self) -> None:
        port = self.listen("[::1]:0")
        self.assertEqual(where(port), f"http://[::1]:{port.getHost().port}/")

    def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.assert_cannot(f"127.0.0.1:{taken.getsockname()[1]}", "Address already in use")

    def test_an_address_that_is_another_machines(self) -> None:
        self.assert_cannot("192.0.2.1:0", "Cannot assign requested address")

    async def test_by_a_unix_socket(self) -> None:
        port = listen(f"unix:{self.path}", Rooms(), self.reserve, reactor)
        self.assertEqual(where(port), f"unix:{self.path}")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o660)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))
        await port.stopListening()
        self.reserve.release()
        self.assertFalse(self.path.exists())

    def test_what_a_dead_relay_left_is_taken_over(self) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.path))
        self.listen(f"unix:{self.path}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))

    def test_what_a_living_one_has_is_not(self) -> None:
        with socket.socket(socket.AF_UNIX) as alive:
            alive.bind(str(self.path))
            alive.listen(0)
            with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
                for client in (first, second):  # its queue is full
                    client.setblocking(False)
                    client.connect_ex(str(self.path))
                self.assert_cannot(f"unix:{self.path}", "already in use")
        self.assertTrue(self.path.exists())

    def test_a_file_that_is_no_socket_is_left_alone(self) -> None:
        self.path.write_text("precious")
        self.assert_cannot(f"unix:{self.path}", "no socket")
        self.assertEqual(self.path.read_text(), "precious")

    def test_no_such_folder(self) -> None:
        self.assert_cannot(f"unix:{self.path}/admin.sock", "No such file")

    def test_a_path_that_is_too_long(self) -> None:
        self.assert_cannot(f"unix:{self.path.with_name('a' * 120)}", "too long")

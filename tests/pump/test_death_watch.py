"""`fwdrelay.pump.death_watch` on real sockets, and on a reactor that is only asked to read."""

from __future__ import annotations

import errno
import select
import socket
import struct
from typing import Any, cast
from unittest import SkipTest

from fwdrelay.pump.death_watch import DeathWatch
from tests.case import SynchronousTestCase

PATIENCE = 10_000
"""Milliseconds, for what comes at once."""


class Watched:
    """
    One end of a TCP connection.

    @ivar died: of what, each time it was told.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.create_connection(listening.getsockname())
            self.sock, _ = listening.accept()
        self.died: list[int | None] = []
        self.spoke: list[bool] = []

    def fileno(self) -> int:
        return self.sock.fileno()

    def getHandle(self) -> socket.socket:
        return self.sock

    def connection_died(self, error: OSError) -> None:
        self.died.append(error.errno)

    def peer_spoke(self, at_end: bool) -> None:
        self.spoke.append(at_end)

    def reset(self) -> None:
        """The peer resets, and its reset comes."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        poll = select.poll()
        poll.register(self.sock, 0)
        assert poll.poll(PATIENCE)

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


class Fails(Watched):
    def connection_died(self, error: OSError) -> None:
        super().connection_died(error)
        raise ZeroDivisionError("a defect")


class Reactor:
    """What is read from."""

    def __init__(self) -> None:
        self.readers: set[Any] = set()
        self.addReader = self.readers.add
        self.removeReader = self.readers.remove

    def turn(self) -> None:
        """Read once from what has something to read."""
        for reader in list(self.readers):
            if select.select([reader], [], [], 0)[0]:
                reader.doRead()


class DeathWatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        if not hasattr(select, "epoll"):
            raise SkipTest("there is no epoll here")
        self.reactor = Reactor()
        self.watch = DeathWatch(cast("Any", self.reactor))

    def watched(self, kind: type[Watched] = Watched) -> Watched:
        """A connection that is watched, and that the test's end closes."""
        watched = kind()
        self.watch.add(watched)

        def close() -> None:
            if watched.fileno() >= 0:
                self.watch.discard(watched)
            watched.close()

        self.addCleanup(close)
        return watched

    def test_a_reset_is_told_once_though_nobody_reads(self) -> None:
        watched = self.watched()
        watched.reset()
        self.reactor.turn()
        self.reactor.turn()
        self.assertEqual(watched.died, [errno.ECONNRESET])

    def test_bytes_and_an_end_are_no_death(self) -> None:
        watched = self.watched()
        watched.peer.sendall(b"x")
        self.reactor.turn()
        watched.peer.shutdown(socket.SHUT_WR)
        watched.sock.shutdown(socket.SHUT_WR)
        self.reactor.turn()
        self.assertEqual(watched.died, [])

    def test_each_is_told_of_its_own(self) -> None:
        connections = [self.watched() for _ in range(5)]
        connections[1].reset()
        connections[3].reset()
        self.reactor.turn()
        self.assertEqual([len(each.died) for each in connections], [0, 1, 0, 1, 0])

    def test_one_that_fails_does_not_keep_the_news_from_others(self) -> None:
        connections = [self.watched(Fails) for _ in range(5)]
        for each in connections:
            each.reset()
        self.reactor.turn()
        self.assertEqual([len(each.died) for each in connections], [1] * 5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 5)

    def test_one_that_ends_all_while_it_is_told(self) -> None:
        connections: list[Watched] = []

        class Last(Watched):
            def connection_died(watched, error: OSError) -> None:
                super().connection_died(error)
                for each in connections:
                    self.watch.discard(each)

        connections += [self.watched(Last) for _ in range(5)]
        for each in connections:
            each.reset()
        self.reactor.turn()
        self.assertEqual(sum(len(each.died) for each in connections), 1)

    def test_discarded_it_is_not_told(self) -> None:
        watched, _ = self.watched(), self.watched()
        self.watch.discard(watched)
        self.watch.discard(watched)
        watched.reset()
        self.reactor.turn()
        self.assertEqual(watched.died, [])

    def test_with_the_last_goes_the_descriptor(self) -> None:
        first, second = self.watched(), self.watched()
        self.assertEqual(self.reactor.readers, {self.watch})
        for each in (first, second):
            self.watch.discard(each)
        self.assertEqual((self.reactor.readers, self.watch.fileno()), (set(), -1))
        third = self.watched()
        third.reset()
        self.reactor.turn()
        self.assertEqual(third.died, [errno.ECONNRESET])

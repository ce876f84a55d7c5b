"""Parts for tests of what passes between processes: a reactor that turns when it is told, and sessions to pass."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import socket
from collections.abc import Iterator
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from zope.interface import implementer

from fwdrelay.session.portable import PortableSession


@implementer(IReactorFDSet)
class Turns(Clock):
    """A reactor with a time of its own, for real sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[Any, None] = {}
        self.writers: dict[Any, None] = {}

    def addReader(self, reader: Any) -> None:
        self.readers[reader] = None

    def addWriter(self, writer: Any) -> None:
        self.writers[writer] = None

    def removeReader(self, reader: Any) -> None:
        self.readers.pop(reader, None)

    def removeWriter(self, writer: Any) -> None:
        self.writers.pop(writer, None)

    def removeAll(self) -> list[Any]:
        """Of no use here."""
        raise NotImplementedError

    def getReaders(self) -> list[Any]:
        """As the interface has it."""
        return list(self.readers)

    def getWriters(self) -> list[Any]:
        """As the interface has it."""
        return list(self.writers)

    def turn(self) -> bool:
        """
        One turn.

        @return: whether there was anything to do.
        """
        due = any(call.getTime() <= self.seconds() for call in self.getDelayedCalls())
        self.advance(0)
        poll = select.poll()
        wanted: dict[int, int] = {}
        for each in self.readers:
            wanted[each.fileno()] = wanted.get(each.fileno(), 0) | select.POLLIN
        for each in self.writers:
            wanted[each.fileno()] = wanted.get(each.fileno(), 0) | select.POLLOUT
        for number, events in wanted.items():
            poll.register(number, events)
        ready = dict(poll.poll(0))
        for each in list(self.readers):
            if each in self.readers and ready.get(each.fileno(), 0) & ~select.POLLOUT:
                each.doRead()
        for each in list(self.writers):
            if each in self.writers and ready.get(each.fileno(), 0) & select.POLLOUT:
                each.doWrite()
        return bool(ready) or due

    def settle(self) -> None:
        """Turn until there is nothing to do at this time."""
        for _ in range(10_000):
            if not self.turn():
                return
        raise AssertionError("it never comes to rest")


class Outside:
    """
    A session's peers, and what tells whether somebody still has the session.

    @ivar descriptors: of the session; they belong to whoever takes them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.client, client = socket.socketpair()
        self.upstream, upstream = socket.socketpair()
        for each in (self.client, self.upstream, client, upstream):
            each.setblocking(False)
        self.descriptors = (client.detach(), upstream.detach(), open_pipe(), open_pipe())

    @property
    def text(self) -> str:
        return PortableSession(session=self.name, listener="main", client="192.0.2.1:1").text()

    def is_held(self) -> bool:
        """Whether anybody still has both of its sockets; all or nothing."""
        found = set()
        for sock in (self.client, self.upstream):
            try:
                found.add(sock.recv(100, socket.MSG_PEEK) != b"")
            except BlockingIOError:
                found.add(True)
            except ConnectionResetError:
                found.add(False)
        assert len(found) == 1, "half of it is held"
        return found.pop()

    def is_of(self, descriptors: tuple[int, ...]) -> bool:
        """Whether these are this session's sockets, and pipes."""
        client, upstream, up, down = descriptors
        for number, peer, word in (
            (client, self.client, b"client"),
            (upstream, self.upstream, b"up"),
        ):
            os.write(number, word)
            if peer.recv(100) != word:
                return False
        for number in (up, down):
            os.write(number, b"pipe")
            if os.read(number, 100) != b"pipe":
                return False
        return True

    def close(self) -> None:
        """Close the peers."""
        self.client.close()
        self.upstream.close()


def open_pipe() -> int:
    """A pipe as one descriptor."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{reading}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Meanwhile, this process can open so many descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in itertools.count() if not _is_open(number))
    *_, last = itertools.islice(free, count + 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

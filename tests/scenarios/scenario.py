"""
What the scenarios about rules of relaying share: a test case that runs once over every pump, and byte
streams that tell by themselves whether something is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tests.case import SynchronousTestCase
from tests.scenarios.relay_process import PATIENCE, RelayProcess, Upstream, relaying, wait_until

PUMPS = ("splice", "buffered")
"""The values of --pump that every session scenario runs over."""

MB = 1 << 20
_BLOCK = random.Random(20).randbytes(MB - 8)
_LOOKS = 10
"""
How often in a row a socket is looked at before it is said to be stuck: a machine that stands still for a moment,
and with it who should make room, takes one look away, and not all.
"""


class Scenario(SynchronousTestCase):
    """
    Its tests run over the first of `PUMPS`; for each further one there is a subclass, named after it,
    in the same module. Not so with `every_pump=False`, for what has nothing to do with pumps.
    """

    pump: ClassVar[str] = PUMPS[0]

    def __init_subclass__(cls, *, every_pump: bool = True, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "pump" in cls.__dict__ or not every_pump:
            return
        for pump in PUMPS[1:]:
            name = f"{cls.__name__}{pump.capitalize()}"
            inner = {"pump": pump, "__module__": cls.__module__, "__doc__": cls.__doc__}
            setattr(sys.modules[cls.__module__], name, type(name, (cls,), inner))

    @contextmanager
    def relaying(self, *options: str, **more: Any) -> Iterator[RelayProcess]:
        """
        A relay over this pump for a `with` block, at whose end no session may be left in it: sockets
        that the block opened are to be closed by then.
        """
        with relaying("--pump", self.pump, *options, **more) as relay:
            yield relay
            if relay.process.poll() is None:
                relay.wait_for_descriptors(relay.at_rest)

    @contextmanager
    def session(self, relay: RelayProcess, upstream: Upstream) -> Iterator[Pair]:
        """
        @return: (for a `with` block) both ends of a new session: the client's and the upstream's.
        """
        with relay.connect() as client, upstream.accept() as server:
            yield client, server

    def folder(self) -> str:
        """A new folder with a short path (Unix socket addresses are short)."""
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        return folder.name

    def path(self, name: str) -> Path:
        """A path in a folder of its own."""
        return Path(self.folder(), name)

    def has_ended(self, relay: RelayProcess, reason: str, code: str, **fields: Any) -> None:
        """Assert that the relay's only session so far has ended, and what is told of it."""
        (entry,) = relay.ended()
        fields = {"reason": reason, "code": code, **fields}
        self.assertEqual({name: entry.get(name) for name in fields}, fields)


Pair = tuple[socket.socket, socket.socket]


def chunks(size: int, seed: int = 0) -> Iterator[bytes]:
    """
    `size` bytes in which nothing can be missing, doubled or moved unnoticed; other bytes for each seed.
    """
    number = seed << 32
    while size > 0:
        chunk = (struct.pack(">Q", number) + _BLOCK)[:size]
        yield chunk
        number += 1
        size -= len(chunk)


def digest_of(size: int, seed: int = 0) -> tuple[int, str]:
    """What `receive` returns for all of `chunks`."""
    digest = hashlib.blake2b()
    for chunk in chunks(size, seed):
        digest.update(chunk)
    return size, digest.hexdigest()


def send(sock: socket.socket, size: int, seed: int = 0) -> None:
    """Send `chunks`."""
    for chunk in chunks(size, seed):
        sock.sendall(chunk)


def send_and_end(sock: socket.socket, size: int, seed: int = 0) -> None:
    """Send `chunks`, then say that this was all."""
    send(sock, size, seed)
    sock.shutdown(socket.SHUT_WR)


def receive(
    sock: socket.socket, then: Callable[[int], object] = lambda count: None
) -> tuple[int, str]:
    """
    Read up to the peer's end.

    @param then: called with the number of bytes received so far, after each read.
    @return: how many bytes, and their digest.
    """
    count = 0
    digest = hashlib.blake2b()
    while data := sock.recv(1 << 18):
        digest.update(data)
        count += len(data)
        then(count)
    return count, digest.hexdigest()


def fill(sock: socket.socket, most: int, seed: int = 0, patience: float = 1.0) -> bytes:
    """
    Send `chunks` until nothing more is taken for `patience` seconds, see `_LOOKS`.

    @return: what was taken.
    """
    taken = bytearray()
    former = sock.gettimeout()
    sock.settimeout(patience / _LOOKS)
    in_vain = 0
    try:
        for chunk in chunks(most, seed):
            view = memoryview(chunk)
            while view and in_vain < _LOOKS:
                try:
                    sent = sock.send(view)
                except TimeoutError:
                    in_vain += 1
                    continue
                in_vain = 0
                taken += view[:sent]
                view = view[sent:]
            if view:
                break
    finally:
        sock.settimeout(former)
    return bytes(taken)


def unacknowledged(sock: socket.socket) -> int:
    """How many of the bytes sent the peer's kernel has not taken; see SIOCOUTQ in tcp(7)."""
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return count


def wait_until_taken(sock: socket.socket) -> None:
    """Wait until the peer's kernel has everything that was sent."""
    wait_until(lambda: not unacknowledged(sock), lambda: f"{unacknowledged(sock)} bytes not taken")


def is_root() -> bool:
    """Whether namespaces and such can be had."""
    return os.geteuid() == 0


class Unanswering(Upstream):
    """
    An upstream that silently drops who connects: its queue is full. `answer` makes room in it.
    """

    def __init__(self, path: str = "", *, port: int = 0) -> None:
        super().__init__(path, port=port)
        self.socket.listen(0)
        self._fillers = []
        address = self.socket.getsockname()
        while not self._is_full():
            filler = socket.socket(self.socket.family)
            filler.settimeout(PATIENCE)
            self._fillers.append(filler)
            try:
                filler.connect(address)
            except BlockingIOError:  # as Unix sockets tell it
                break
            wait_until(self._has_them)

    def _queue(self) -> tuple[int, int]:
        """
        @return: how many wait to be accepted, and how many may: `tcpi_unacked` and `tcpi_sacked`, of a TCP socket
            that listens.
        """
        waiting: int
        most: int
        waiting, most = struct.unpack_from(
            "II", self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24
        )
        return waiting, most

    def _is_full(self) -> bool:
        """A queue takes one more than it should."""
        if self.socket.family == socket.AF_UNIX:
            return False
        waiting, most = self._queue()
        return waiting > most

    def _has_them(self) -> bool:
        """The last to connect may be told of it before he is in the queue."""
        return self.socket.family == socket.AF_UNIX or self._queue()[0] == len(self._fillers)

    def answer(self) -> None:
        """Take those who filled the queue out of it; the next to knock are let in."""
        while self._fillers:
            self._fillers.pop().close()
        self.socket.listen(1024)

    def accept_real(self) -> socket.socket:
        """
        @return: the next connection that is not one of the fillers'.
        """
        while True:
            accepted = self.accept()
            if accepted.recv(1, socket.MSG_PEEK):
                return accepted
            accepted.close()

    def __exit__(self, *exception: object) -> None:
        while self._fillers:
            self._fillers.pop().close()
        super().__exit__(*exception)


def wait_until_blocked(sender: socket.socket) -> None:
    """
    Wait until what another thread sends by `sender` gets stuck: nothing more is taken for half a second.
    """
    deadline = time.monotonic() + PATIENCE
    in_vain = 0
    while in_vain < _LOOKS:
        if not select.select([], [sender], [], 0.5 / _LOOKS)[1]:
            in_vain += 1
            continue
        in_vain = 0
        if time.monotonic() > deadline:
            raise AssertionError("it never gets stuck: all of it has gone into buffers, perhaps")
        time.sleep(0.02)

"""
The pipes that splice(2) goes through, kept between uses.

A pipe is on loan to one flow at a time and comes back empty, or is closed; those that lie unused for
a moment are closed too. They are a budgeted resource: for ordinary users F_SETPIPE_SZ fails past
fs.pipe-user-pages-soft (pipe(7)), and descriptors run out. Whoever gets none goes on without.

A flow that has to outlive its process has a pipe of its own instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import termios
from collections.abc import Callable
from typing import Any, ClassVar

from .tcp_info import queued

# Bytes asked for, the most first; with less than the last, the shared buffer serves better.
SIZES = (1 << 20, 1 << 18, 1 << 16)
_KEPT = 64
_UNUSED_FOR = 0.5


class Pipe:
    """
    @ivar held: bytes in it.
    @cvar own: it belongs to one flow, and is not for others.
    @ivar kept: that flow goes through it and nowhere else.
    """

    own: ClassVar[bool] = False
    kept = False

    __slots__ = ("held", "read_end", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0

    def close(self) -> None:
        """Give its descriptors, and what it holds, up."""
        os.close(self.read_end)
        os.close(self.write_end)


class OwnPipe(Pipe):
    """
    The pipe of one flow, as one descriptor for both ends: so it is one thing to be passed to another process.

    @param fd: open for reading and writing.
    @ivar large: it may have more room than it should keep.
    @ivar in_the_way: called when the flow can't be moved by splice(2) any more.
    """

    own = True

    __slots__ = ("in_the_way", "kept", "large")

    def __init__(self, fd: int, held: int) -> None:
        self.read_end = self.write_end = fd
        self.held = held
        self.large = False
        self.kept = False
        self.in_the_way: Callable[[], object] = _nothing

    @classmethod
    def new(cls) -> OwnPipe:
        """
        An empty one, with as much room as pipes have by themselves: the user's budget for all is soon spent.

        @raise OSError: the system has none to give.
        """
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return cls(_open_both_ends(ends[0]), 0)
        finally:
            for each in ends:
                os.close(each)

    @classmethod
    def of(cls, pipe: Pipe) -> OwnPipe:
        """
        @param pipe: is over; what it holds is in the new one.
        @raise OSError: it stays as it is.
        """
        own = cls(_open_both_ends(pipe.read_end), pipe.held)
        pipe.close()
        own.large = True
        own.shrink()
        return own

    @classmethod
    def adopt(cls, fd: int) -> OwnPipe:
        """
        @param fd: of an own pipe of another process.
        """
        own = cls(fd, queued(fd, termios.FIONREAD))
        own.large = True
        own.shrink()
        return own

    def take(self, data: bytearray) -> None:
        """Move bytes into it, as many as go; those that don't are left in `data`."""
        for _ in range(2):
            with contextlib.suppress(OSError):
                count = os.write(self.write_end, data)
                self.held += count
                del data[:count]
            if not data:
                return
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, SIZES[0])
                self.large = True

    def shrink(self) -> None:
        """Give up the room that it should not keep, as soon as it is not needed."""
        if self.large:
            with contextlib.suppress(OSError):
                if fcntl.fcntl(self.write_end, fcntl.F_GETPIPE_SZ) > SIZES[-1]:
                    fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, SIZES[-1])
                self.large = False

    def close(self) -> None:
        """Give its descriptor up."""
        os.close(self.read_end)


def _open_both_ends(end: int) -> int:
    return os.open(f"/proc/self/fd/{end}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _nothing() -> None:
    """Nobody wants to know."""


class Pipes:
    """
    A pool of them.

    @param clock: tells when those that lie unused are closed.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._free: list[Pipe] = []
        self._unused = 0  # how few were free at any time since the last look
        self._trimming: Any = None

    def borrow(self) -> Pipe | None:
        """
        @return: an empty pipe, or None when the system has none to give.
        """
        if self._free:
            pipe = self._free.pop()
            self._unused = min(self._unused, len(self._free))
            return pipe
        try:
            pipe = Pipe()
        except OSError:
            return None
        for size in SIZES:
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe.write_end, fcntl.F_SETPIPE_SZ, size)
                return pipe
        # Past the user's budget a new pipe has one or two pages, and stays so.
        pipe.close()
        return None

    def give_back(self, pipe: Pipe) -> None:
        """Whatever it still holds is lost."""
        if pipe.own or pipe.held or len(self._free) >= _KEPT:
            pipe.close()
        else:
            self._free.append(pipe)
            if self._trimming is None:
                self._look_again()

    def _look_again(self) -> None:
        self._unused = len(self._free)
        self._trimming = self._clock.callLater(_UNUSED_FOR, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        for pipe in self._free[: self._unused]:
            pipe.close()
        del self._free[: self._unused]
        if self._free:
            self._look_again()

    def close(self) -> None:
        """Close those that nobody uses."""
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None
        while self._free:
            self._free.pop().close()

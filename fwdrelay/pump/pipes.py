"""
The pipes that splice(2) goes through, kept between uses.

A pipe is on loan to one flow at a time and comes back empty, or is closed; those that lie unused for
a moment are closed too. They are a budgeted resource: for ordinary users F_SETPIPE_SZ fails past
fs.pipe-user-pages-soft (pipe(7)), and descriptors run out. Whoever gets none goes on without.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Any

# Bytes asked for, the most first; with less than the last, the shared buffer serves better.
SIZES = (1 << 20, 1 << 18, 1 << 16)
_KEPT = 64
_UNUSED_FOR = 0.5


class Pipe:
    """
    @ivar held: bytes in it.
    """

    __slots__ = ("held", "read_end", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0

    def close(self) -> None:
        """Give its descriptors, and what it holds, up."""
        os.close(self.read_end)
        os.close(self.write_end)


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
        if pipe.held or len(self._free) >= _KEPT:
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

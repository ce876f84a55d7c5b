"""
Standard output without ever waiting for whoever reads it: opened so that a write can't, and, as a stream, for what
the process itself has to say.
"""

from __future__ import annotations

import io
import math
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol
from weakref import WeakSet

from twisted.logger import Logger

from .losses import BOUND, FIRST_RETRY, LAST_WAIT, LONGEST_RETRY, RETRY_WHAT_FAILED, Losses

STDOUT = 1
AT_ONCE = select.PIPE_BUF
"""Bytes. pipe(7): a pipe that polls as writable takes this much without blocking."""


class _Settles(Protocol):
    def settle(self, patience: float) -> None:
        """Have what waits taken, as far as it is within so many seconds."""

    @property
    def unsaid(self) -> Unsaid:
        """What waits still, and what was dropped and not told of."""


class Unsaid(NamedTuple):
    """
    What a process leaves to the one that it becomes.

    @ivar waiting: bytes, as characters of Latin-1.
    @ivar begun: whether they begin with the rest of a line.
    @ivar dropped: lines that were, of which nobody was told.
    """

    waiting: str = ""
    begun: bool = False
    dropped: int = 0


_OPEN: WeakSet[_Settles] = WeakSet()
_AMID_A_LINE: WeakSet[object] = WeakSet()
"""Others of this process that have written a part of a line to standard output."""
_waited_in_vain_at = -math.inf


def settle_at_the_end(output: _Settles) -> None:
    """`settle` it with the others."""
    _OPEN.add(output)


def settle(patience: float = LAST_WAIT) -> None:
    """
    The process is about to end, or to become another: have what it has said itself taken first.

    @param patience: seconds for each slow reader, for which nothing else is done. One of standard output that
        had them just before gets none.
    """
    for output in tuple(_OPEN):
        output.settle(patience)


def unsaid() -> Unsaid:
    """What is left after `settle`."""
    left = [output.unsaid for output in tuple(_OPEN)]
    first = next((each for each in left if each.waiting), Unsaid())
    return first._replace(dropped=sum(each.dropped for each in left))


def waited_in_vain() -> None:
    """The reader of standard output has been given its last wait."""
    global _waited_in_vain_at
    _waited_in_vain_at = time.monotonic()


def is_amid_a_line(whose: object, amid: bool) -> None:
    """
    What the process itself has to say is not to come between the parts of a line.

    @param whose: who writes to standard output besides.
    @param amid: whether that has written a part of one.
    """
    (_AMID_A_LINE.add if amid else _AMID_A_LINE.discard)(whose)


def open_standard_output() -> int:
    """
    A terminal is opened anew: it polls as writable with room for a single byte, and a write of more than that
    would wait for whoever has stopped it. So is a pipe: another process may have filled it since it was polled. For
    a descriptor that others have, too, O_NONBLOCK would be theirs as well.

    @return: a descriptor of its own, or 1 itself.
    """
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if os.isatty(STDOUT):
            return os.open(os.ttyname(STDOUT), flags)
        if stat.S_ISFIFO(os.fstat(STDOUT).st_mode):
            return os.open(f"/proc/self/fd/{STDOUT}", flags)
    except OSError:
        pass  # somebody else's; or nobody reads that pipe
    return STDOUT


def close_standard_output(descriptor: int) -> None:
    """@param descriptor: of `open_standard_output`."""
    if descriptor != STDOUT:
        os.close(descriptor)


def of_the_process(clock: Any) -> Losses:
    """
    @param clock: `twisted.internet.interfaces.IReactorTime`.
    @return: what is dropped of what the process itself has to say.
    """
    return Losses("The log of the process", clock, Logger(namespace=__name__))


def later_from_any_thread(reactor: Any) -> Callable[[float, Callable[[], None]], object]:
    """
    @return: calls something after so many seconds, whichever thread asks.
    """

    def later(seconds: float, call: Callable[[], None]) -> None:
        reactor.callFromThread(reactor.callLater, seconds, call)

    return later


class PatientOutput(io.TextIOBase):
    """
    A stream to standard output. What is not taken at once waits, up to a bound; past it, it is dropped and
    counted, for a write that waits would stop the relay. Any thread may write.

    @param losses: count what is dropped.
    @param later: calls something after so many seconds, whichever thread asks.
    """

    _all: ClassVar[WeakSet[PatientOutput]] = WeakSet()

    def __init__(
        self, losses: Losses, later: Callable[[float, Callable[[], None]], object]
    ) -> None:
        self._losses = losses
        self._later = later
        self._fd = open_standard_output()
        self._ready = select.poll()
        self._ready.register(self._fd, select.POLLOUT)
        self._lock = threading.RLock()
        self._waiting = bytearray()
        self._begun = False
        """Whether the first of what waits is the rest of a line."""
        self._retrying = False
        self._pause = FIRST_RETRY
        self._writing = False
        self._all.add(self)
        settle_at_the_end(self)

    @classmethod
    def of(cls, reactor: Any) -> PatientOutput:
        """
        @return: one for what the process itself has to say.
        """
        return cls(of_the_process(reactor), later_from_any_thread(reactor))

    @classmethod
    def is_up_to_date(cls) -> bool:
        """
        Whether nothing of the kind waits any more. Who has much to write there asks before, or little of
        what is said besides would get through.
        """
        return all(output._catch_up() for output in tuple(cls._all))

    @property
    def unsaid(self) -> Unsaid:
        with self._lock:
            return Unsaid(self._waiting.decode("latin-1"), self._begun, self._losses.untold)

    def go_on_with(self, unsaid: Unsaid) -> None:
        """Nothing was written yet: begin with what another has left."""
        with self._lock:
            self._waiting += unsaid.waiting.encode("latin-1")
            self._begun = unsaid.begun
            self._losses.add(unsaid.dropped)
            self._try()

    def close(self) -> None:
        """Leave standard output as it was; what still waits is gone."""
        if not self.closed:
            super().close()
            with self._lock:
                self._waiting.clear()
                self._all.discard(self)
                _OPEN.discard(self)
                close_standard_output(self._fd)

    def write(self, text: str) -> int:
        """Write `text`, soon."""
        with self._lock:
            if self.closed or len(self._waiting) >= BOUND:
                self._losses.add(text.count("\n"))
            else:
                self._waiting += text.encode("utf-8", "backslashreplace")
                self._try()
        return len(text)

    def settle(self, patience: float) -> None:
        """
        Have what waits taken, as far as it is within so many seconds, for which nothing else is done.
        """
        now = time.monotonic()
        if now - _waited_in_vain_at < LAST_WAIT:
            patience = 0.0
        with self._lock:
            if self._write_until(now + patience) and not self._waiting:
                self._losses.tell(at_last=True)
                self._write_until(now + patience)

    def _catch_up(self) -> bool:
        with self._lock:
            self._write_until(0.0)
            return not self._waiting

    def _try_again(self) -> None:
        with self._lock:
            self._retrying = False
            if not self.closed:
                self._try()

    def _try(self) -> None:
        if self._retrying:
            return
        works = self._write_until(0.0)
        if self._waiting:
            self._retrying = True
            self._later(self._pause if works else RETRY_WHAT_FAILED, self._try_again)
            self._pause = min(self._pause * 2, LONGEST_RETRY)
        elif works:
            self._losses.tell()

    def _write_until(self, deadline: float) -> bool:
        """
        @param deadline: by `time.monotonic`, for what is not taken at once.
        @return: whether writing works, however slowly.
        """
        if self._writing:
            return True  # a signal's handler came between; what it says is written after that
        self._writing = True
        try:
            while self._waiting and not _AMID_A_LINE and self._is_ready_by(deadline):
                # Whole lines, for other processes may write here, too.
                end = self._waiting.rfind(b"\n", 0, AT_ONCE) + 1
                try:
                    written = os.write(self._fd, self._waiting[: end or AT_ONCE])
                except BlockingIOError:
                    # Another process has taken the room.
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(FIRST_RETRY)
                    continue
                if written:
                    self._begun = self._waiting[written - 1] != ord("\n")
                    self._pause = FIRST_RETRY
                del self._waiting[:written]
        except OSError:
            # What takes bytes again is to have whole lines.
            kept = self._waiting.find(b"\n") + 1 if self._begun else 0
            self._losses.add(self._waiting.count(b"\n", kept))
            del self._waiting[kept:]
            self._begun = kept > 0
            return False
        finally:
            self._writing = False
        return True

    def _is_ready_by(self, deadline: float) -> bool:
        # POLLERR too, which is all that a full pipe without a reader says: writing tells why.
        return bool(self._ready.poll(max(deadline - time.monotonic(), 0) * 1000))

"""
Where log lines go, without ever waiting: a file, or the process's standard output.

Lines are gathered and written once per turn of the reactor. A reader that is slow makes lines wait, up
to a bound; past it they are dropped and counted, for a relay must not stop because nobody reads its
log.
"""

from __future__ import annotations

import io
import os
import select
import time
from typing import Any

from twisted.logger import Logger

from ..errors import CannotOpenLog

# pipe(7): a pipe that polls as writable takes this much without blocking.
_AT_ONCE = select.PIPE_BUF
_BOUND = 1 << 20
_RETRY = 0.05
_STDOUT = 1
# Seconds that a reader has to take what is left at the end, when nothing can be held up any more. Those
# whose sessions a stop cut are among it.
LAST_WAIT = 1.0


class Sink:
    """
    @param reactor: gives the turns.
    @param path: a file that is appended to; None for standard output.
    @raise CannotOpenLog: when the file can't be opened.
    """

    log = Logger()

    def __init__(self, reactor: Any, path: str | None) -> None:
        self._reactor = reactor
        self._path = path
        self._fd = self._open()
        self._waiting = bytearray()
        self._dropped = 0
        self._flushing: Any = None
        self._broken = False

    def _open(self) -> int:
        if self._path is None:
            return _STDOUT
        try:
            # Of a pipe that nobody reads, O_NONBLOCK makes an error instead of a wait.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(self._path, flags, 0o640)
        except OSError as failed:
            raise CannotOpenLog(
                f"cannot write the access log {self._path}: {failed.strerror}"
            ) from None

    def write(self, line: str) -> None:
        """Write `line`, which brings its own end, soon."""
        if len(self._waiting) >= _BOUND:
            self._dropped += 1
            return
        self._waiting += line.encode("utf-8", "backslashreplace")
        if self._flushing is None:
            self._flushing = self._reactor.callLater(0, self._flush)

    def reopen(self) -> None:
        """
        Open the file anew by its name. Where that fails the old one is kept.
        """
        if self._path is None:
            return
        self._write_what_is_taken()
        try:
            opened = self._open()
        except CannotOpenLog as failed:
            self.log.error("{failed}; going on with the old one", failed=failed)
            return
        os.close(self._fd)
        self._fd = opened

    def close(self, patience: float = LAST_WAIT) -> None:
        """
        Write what is left, as far as it is taken, and be done.

        @param patience: seconds for a slow reader, for which nothing else is done.
        """
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._write_what_is_taken(patience)
        self._dropped += self._waiting.count(b"\n")
        self._tell_dropped()
        if self._path is not None:
            os.close(self._fd)

    def _flush(self) -> None:
        self._flushing = None
        self._write_what_is_taken()
        if self._waiting:
            self._flushing = self._reactor.callLater(_RETRY, self._flush)
        else:
            self._tell_dropped()

    def _tell_dropped(self) -> None:
        if self._dropped:
            self.log.warn(
                "The access log was not read fast enough: {dropped} lines were dropped.",
                dropped=self._dropped,
            )
            self._dropped = 0

    def _write_what_is_taken(self, patience: float = 0.0) -> None:
        deadline = time.monotonic() + patience
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT)
        try:
            # POLLERR too, which is all that a full pipe without a reader says: writing tells why.
            while self._waiting and ready.poll(max(deadline - time.monotonic(), 0) * 1000):
                # Whole lines, for what else the process has to say may come between.
                end = self._waiting.rfind(b"\n", 0, _AT_ONCE) + 1
                written = os.write(self._fd, self._waiting[: end or _AT_ONCE])
                del self._waiting[:written]
            self._broken = False
        except BlockingIOError:
            pass
        except OSError as failed:
            if not self._broken:
                self.log.error(
                    "Can't write the access log: {reason}. Its lines are dropped until that changes.",
                    reason=failed.strerror,
                )
            self._broken = True
            self._waiting.clear()


class PatientOutput(io.TextIOBase):
    """
    Standard output for what the process itself has to say, which is little: what nobody takes is
    dropped, for a write that waits would stop the relay.
    """

    def __init__(self) -> None:
        self._ready = select.poll()
        self._ready.register(_STDOUT, select.POLLOUT)

    def write(self, text: str) -> int:
        """Write as much of `text` as is taken at once."""
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data and any(event & select.POLLOUT for _, event in self._ready.poll(0)):
                data = data[os.write(_STDOUT, data[:_AT_ONCE]) :]
        except OSError:
            pass  # nowhere is left to tell of it
        return len(text)

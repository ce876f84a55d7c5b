"""
Where log lines go, without ever waiting: what any place has to be able to do, and two of the places, a
file and the process's standard output. The third is `fwdrelay.observe.journal`.

Lines are gathered and written once per turn of the reactor. A reader that is slow makes lines wait, up
to a bound; past it they are dropped and counted, for a relay must not stop because nobody reads its
log.

Several processes may write to the same place, and each line stays whole. A file that all append to sees to
that by itself (write(2)); so does a pipe with what it takes at once (pipe(7)), but not with longer lines, and
a socket may take a part. So there a process that is in the middle of a line holds a record lock (fcntl(2)), which
the kernel takes back when it dies, and the others wait with theirs.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time
from typing import Any, Protocol

from twisted.logger import Logger

from ..errors import CannotOpenLog
from .events import SessionEnded
from .losses import BOUND, FIRST_RETRY, LAST_WAIT, LONGEST_RETRY, RETRY_WHAT_FAILED, Losses
from .output import (
    AT_ONCE,
    PatientOutput,
    close_standard_output,
    is_amid_a_line,
    open_standard_output,
    waited_in_vain,
)

# A file takes all there is; a bound, lest a turn takes long.
_AT_ONCE_OF_A_FILE = 1 << 18
_LOOK_EVERY = 1.0


class ISink(Protocol):
    """Where an access log's lines go."""

    @property
    def dropped(self) -> int:
        """Lines that nobody took, since the start."""

    def write(self, line: str, event: SessionEnded) -> None:
        """
        Write a line, soon.

        @param line: without its end.
        @param event: what it tells of.
        """

    def reopen(self) -> None:
        """Begin anew where what was written to was moved away."""

    def close(self, patience: float = LAST_WAIT) -> None:
        """
        Write what is left, as far as it is taken, and be done.

        @param patience: seconds for a slow reader, for which nothing else is done.
        """


class Sink:
    """
    A file, or standard output.

    A file that was renamed or removed is begun anew, without being told to: that is looked at when something
    is written, at most once a second.

    @param reactor: gives the turns.
    @param path: a file that is appended to; None for standard output.
    @raise CannotOpenLog: when the file can't be opened.
    """

    log = Logger()

    def __init__(self, reactor: Any, path: str | None) -> None:
        self._reactor = reactor
        self._path = path
        self._losses = Losses("The access log", reactor, self.log)
        self._waiting = bytearray()
        self._flushing: Any = None
        self._pause = FIRST_RETRY
        self._stuck = False
        """Whether more is not taken before the next try."""
        self._begun = False
        """Whether the first of what waits is the rest of a line."""
        self._locked = False
        """Whether no other process writes to the same place."""
        self._broken = False
        self._cannot_begin = ""
        self._use(open_standard_output() if path is None else self._open(path))

    @property
    def dropped(self) -> int:
        return self._losses.total

    def _use(self, descriptor: int) -> None:
        self._fd = descriptor
        found = os.fstat(descriptor)
        self._file = found.st_dev, found.st_ino
        self._in_parts = not stat.S_ISREG(found.st_mode)
        self._at_once = AT_ONCE if self._in_parts else _AT_ONCE_OF_A_FILE
        self._locked = False
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLOUT)
        self._looked = self._reactor.seconds()

    def _open(self, path: str) -> int:
        try:
            # Of a pipe that nobody reads, O_NONBLOCK makes an error instead of a wait.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(path, flags | os.O_NOCTTY, 0o640)
        except OSError as failed:
            why = "nobody reads that pipe" if _is_pipe(path) else failed.strerror
            raise CannotOpenLog(f"cannot write the access log {path}: {why}") from None

    def write(self, line: str, event: SessionEnded | None = None) -> None:
        """
        Write `line`, soon.

        @param line: without its end.
        @param event: of no account.
        """
        if len(self._waiting) >= BOUND and (self._stuck or not self._make_room()):
            self._losses.add()
            return
        self._waiting += line.encode("utf-8", "backslashreplace")
        self._waiting += b"\n"
        if self._flushing is None:
            self._flushing = self._reactor.callLater(0, self._flush)

    def reopen(self) -> None:
        """
        Open the file anew by its name. Where that fails the old one is kept.
        """
        if self._path is not None:
            self._begin_anew(self._path, tell_again=True)

    def close(self, patience: float = LAST_WAIT) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._look()
        self._write_what_is_taken(patience)
        if self._path is None:
            is_amid_a_line(self, False)
            if self._waiting and patience:
                waited_in_vain()
        self._losses.add(self._waiting.count(b"\n"))
        self._waiting.clear()
        self._losses.tell(at_last=True)
        self._begun = False
        self._unlock()
        self._leave()

    def _leave(self) -> None:
        if self._path is None:
            close_standard_output(self._fd)
        else:
            os.close(self._fd)

    def _flush(self) -> None:
        self._flushing = None
        self._look()
        self._write_what_is_taken()
        if self._waiting:
            wait = RETRY_WHAT_FAILED if self._broken else self._pause
            self._flushing = self._reactor.callLater(wait, self._flush)
            self._pause = min(self._pause * 2, LONGEST_RETRY)
        elif not self._broken:
            self._losses.tell()

    def _make_room(self) -> bool:
        """Very many lines came within one turn, which is no reason to drop any."""
        self._look()
        self._write_what_is_taken()
        return len(self._waiting) < BOUND

    def _look(self) -> None:
        """Whether the file is still what its name stands for."""
        now = self._reactor.seconds()
        if self._path is None or now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        try:
            found = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._begin_anew(self._path)
        except OSError:
            pass  # it can't be told, so it can't be opened either
        else:
            if (found.st_dev, found.st_ino) != self._file:
                self._begin_anew(self._path)
            else:
                self._is_where_it_should_be(self._path)

    def _begin_anew(self, path: str, *, tell_again: bool = False) -> None:
        """
        What waits goes into the new file, for the old one may be compressed by now; but for the rest of a
        line that was begun there.

        @param tell_again: that it fails, also where that was told already.
        """
        try:
            opened = self._open(path)
        except CannotOpenLog as failed:
            if tell_again or str(failed) != self._cannot_begin:
                self._cannot_begin = str(failed)
                self.log.error("{failed}; going on with the old one.", failed=failed)
            return
        self._is_where_it_should_be(path)
        if self._begun:
            rest = self._waiting[: self._waiting.find(b"\n") + 1]
            del self._waiting[: len(rest)]
            self._finish(rest)
        self._leave()
        self._broken = self._stuck = False
        self._use(opened)

    def _is_where_it_should_be(self, path: str) -> None:
        """Tell so, where something else was told before."""
        if self._cannot_begin:
            self._cannot_begin = ""
            self.log.info("The access log is written to {path} again.", path=path)

    def _finish(self, rest: bytearray) -> None:
        """Write the rest of a line to a file that is about to be left."""
        self._begun = False
        try:
            complete = os.write(self._fd, rest) == len(rest)
        except OSError:
            complete = False
        if not complete:
            self._losses.add()

    def _comes_next(self) -> bool:
        """Whether what the process itself has to say there, which is little and matters more, has been taken."""
        return self._path is not None or self._begun or PatientOutput.is_up_to_date()

    def _lock(self) -> bool:
        """
        Be the only process that writes, until `_unlock`.

        @return: whether none is in the middle of a line.
        """
        if self._in_parts and not self._locked:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                return True  # nothing of the kind can be had there
            self._locked = True
        return True

    def _unlock(self) -> None:
        """Let others write, unless what they write would cut a line in two."""
        if self._locked and not self._begun:
            self._locked = False
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _write_what_is_taken(self, patience: float = 0.0) -> None:
        deadline = time.monotonic() + patience
        while not self._lock():
            if time.monotonic() >= deadline:
                self._stuck = True
                return
            time.sleep(FIRST_RETRY)
        self._write_until(deadline)
        self._unlock()

    def _write_until(self, deadline: float) -> None:
        """@param deadline: by `time.monotonic`, for what is not taken at once."""
        try:
            while self._waiting:
                if not self._comes_next():
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(FIRST_RETRY)
                    continue
                # POLLERR too, which is all that a full pipe without a reader says: writing tells why.
                if not self._ready.poll(max(deadline - time.monotonic(), 0) * 1000):
                    break
                # Whole lines, for what else the process has to say may come between.
                find = self._waiting.find if self._begun else self._waiting.rfind
                end = find(b"\n", 0, self._at_once) + 1
                written = os.write(self._fd, self._waiting[: end or self._at_once])
                if written:
                    self._begun = self._waiting[written - 1] != ord("\n")
                del self._waiting[:written]
                self._broken = False
                self._pause = FIRST_RETRY
        except BlockingIOError:
            pass
        except OSError as failed:
            if not self._broken:
                self.log.error(
                    "Can't write the access log to {path}: {reason}. Its lines are dropped until that changes.",
                    path=self._path or "standard output",
                    reason=failed.strerror,
                )
            self._broken = True
            # A file that takes bytes again is to have whole lines.
            kept = self._waiting.find(b"\n") + 1 if self._begun else 0
            self._losses.add(self._waiting.count(b"\n", kept))
            del self._waiting[kept:]
        self._stuck = bool(self._waiting)
        if self._path is None:
            is_amid_a_line(self, self._begun and not self._broken)


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False

"""
systemd's journal: the access log, and what the process itself has to say, each with its fields.

Here lives journald's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/), a datagram for each entry,
which is sent without ever waiting. What journald does not take yet waits, up to a bound. `JournalSink` is
for the access log; `operations`, for `twistd --logger`, is for all else.
"""

from __future__ import annotations

import array
import atexit
import errno
import fcntl
import os
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    textFileLogObserver,
)
from zope.interface import implementer

from ..errors import CannotOpenLog
from .access_log import fields
from .events import SessionEnded
from .losses import BOUND, FIRST_RETRY, LAST_WAIT, LONGEST_RETRY, RETRY_WHAT_FAILED, Losses
from .output import (
    PatientOutput,
    Unsaid,
    later_from_any_thread,
    of_the_process,
    settle_at_the_end,
)

SOCKET = "/run/systemd/journal/socket"

NOT_SERVED = frozenset(
    {
        *("dial-failed", "dial-timeout", "no-target", "no-resources", "internal-error"),
        *("queue-timeout", "queue-full", "target-down", "drain-timeout"),
        *("upstream-reset", "upstream-truncated"),
    }
)
"""
Reasons that a client has to complain of, as neither its own doing nor a rule of the operator's ended its session:
their lines are notices. None is more than that, or many of them would bury what the process itself has to say.
"""

# syslog(3)
_CRITICAL, _ERROR, _WARNING, _NOTICE, _INFO, _DEBUG = range(2, 8)
_DAEMON = 3
_PRIORITIES = {
    LogLevel.debug: _DEBUG,
    LogLevel.info: _INFO,
    LogLevel.warn: _WARNING,
    LogLevel.error: _ERROR,
    LogLevel.critical: _CRITICAL,
}
_STDOUT, _STDERR = 1, 2
_SEND_BUFFER = 8 << 20
_SLOW = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTDIR})
# journald takes no others.
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_OF_EVERY_ENTRY = (("SYSLOG_IDENTIFIER", "fwdrelay"), ("SYSLOG_FACILITY", _DAEMON))


def entry(pairs: Iterable[tuple[str, object]]) -> bytes:
    """
    @param pairs: names of fields, and what `str` makes their values.
    @return: an entry as journald reads it.
    """
    parts = []
    for name, value in pairs:
        data = str(value).encode("utf-8", "backslashreplace")
        if b"\n" in data:
            length = len(data).to_bytes(8, "little")
            parts.append(b"%s\n%s%s\n" % (name.encode(), length, data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)


class Journal:
    """
    The way to journald. Entries go out at once; where it is slow, or restarts, they wait for it. It may be
    called by any thread.

    @param losses: counts what is dropped.
    @param later: calls something in the reactor's thread, after so many seconds.
    @param path: of journald's socket.
    @raise OSError: nobody listens there.
    """

    log = Logger()

    def __init__(
        self,
        losses: Losses,
        later: Callable[[float, Callable[[], None]], object],
        path: str = SOCKET,
    ) -> None:
        self._losses = losses
        self._later = later
        self._path = path
        self._lock = threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._retrying = False
        self._sending = False
        self._pause = FIRST_RETRY
        self._gone = False
        self._closed = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(path)
        # Not connected: journald's socket may be another one after it was restarted.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def send(self, made: bytes) -> None:
        """
        Send it, or let it wait; where too much waits, it is dropped.

        @param made: of `entry`.
        """
        with self._lock:
            if self._closed or self._size >= BOUND:
                self._losses.add()
                return
            self._waiting.append(made)
            self._size += len(made)
            if not self._retrying and not self._sending:
                self._send_what_waits()

    def close(self, patience: float = 0.0) -> None:
        """
        Send what waits, as far as it is taken, and be done.

        @param patience: seconds for a journald that is slow, for which nothing else is done.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._send_until(time.monotonic() + patience)
            self._losses.add(len(self._waiting))
            self._waiting.clear()
            self._socket.close()
            self._losses.tell(at_last=True)

    def settle(self, patience: float) -> None:
        """
        Have what waits taken, as far as it is within so many seconds, for which nothing else is done.
        """
        with self._lock:
            if not self._closed:
                self._send_until(time.monotonic() + patience)

    @property
    def unsaid(self) -> Unsaid:
        with self._lock:
            return Unsaid(dropped=len(self._waiting) + self._losses.untold)

    def _send_until(self, deadline: float) -> None:
        with suppress(OSError):
            self._socket.connect(self._path)  # only then can it be waited for
            ready = select.poll()
            ready.register(self._socket, select.POLLOUT)
            while self._waiting and ready.poll(max(deadline - time.monotonic(), 0) * 1000):
                failed = self._failure_of_sending()
                if failed is not None and (
                    failed.errno not in _SLOW or time.monotonic() >= deadline
                ):
                    break

    def _send_what_waits(self) -> None:
        failed = self._failure_of_sending()
        if failed is None:
            self._losses.tell()
            return
        self._retrying = True
        slow = failed.errno in _SLOW
        self._later(self._pause if slow else RETRY_WHAT_FAILED, self._try_again)
        self._pause = min(self._pause * 2, LONGEST_RETRY)
        if not slow and not self._gone:
            self._gone = True
            self.log.error(
                "Can't reach the journal: {reason}. What it would be told waits, up to 1 MiB of it.",
                reason=failed.strerror,
            )

    def _failure_of_sending(self) -> OSError | None:
        self._sending = True  # whatever is told meanwhile waits behind what is being sent
        try:
            while self._waiting:
                self._send_first()
                self._pause = FIRST_RETRY
                self._gone = False
        except OSError as failed:
            return failed
        finally:
            self._sending = False
        return None

    def _try_again(self) -> None:
        with self._lock:
            self._retrying = False
            if not self._closed:
                self._send_what_waits()

    def _send_first(self) -> None:
        """
        Send the one that has waited longest.

        @raise OSError: it still waits.
        """
        made = self._waiting[0]
        try:
            self._socket.sendto(made, self._path)
        except OSError as refused:
            if refused.errno != errno.EMSGSIZE:
                raise
            self._send_as_file(made)
        self._waiting.popleft()
        self._size -= len(made)

    def _send_as_file(self, made: bytes) -> None:
        """What no datagram can hold goes as a sealed file in memory."""
        try:
            descriptor = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                left = memoryview(made)
                while left:
                    left = left[os.write(descriptor, left) :]
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
                rights = array.array("i", [descriptor])
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                self._socket.sendmsg([], ancillary, 0, self._path)
            finally:
                os.close(descriptor)
        except OSError as failed:
            if failed.errno in _SLOW | _GONE:
                raise
            self._losses.add()  # others must not wait for one that is never taken


_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class JournalSink:
    """
    The journal as a place for an access log: its line is the message of an entry, and each of its fields is
    one, as `FWDRELAY_BYTES_UP`.

    @param reactor: gives the turns.
    @param path: of journald's socket.
    @raise CannotOpenLog: there is no journald.
    """

    log = Logger()

    def __init__(self, reactor: Any, path: str = SOCKET) -> None:
        self._losses = Losses("The access log", reactor, self.log)
        try:
            self._journal = Journal(self._losses, reactor.callLater, path)
        except OSError as failed:
            raise CannotOpenLog(
                f"cannot write the access log to the journal: {path}: {failed.strerror}; where no journald"
                " runs, let it go to stdout or a file"
            ) from None

    @property
    def dropped(self) -> int:
        return self._losses.total

    def write(self, line: str, event: SessionEnded) -> None:
        priority = _NOTICE if event.reason in NOT_SERVED else _INFO
        told = fields(event).items()
        self._journal.send(
            entry(
                (
                    ("MESSAGE", line),
                    ("PRIORITY", priority),
                    *_OF_EVERY_ENTRY,
                    ("FWDRELAY_LOG", "access"),
                    *(
                        (f"FWDRELAY_{name.upper()}", value)
                        for name, value in told
                        if value is not None
                    ),
                )
            )
        )

    def reopen(self) -> None:
        """There is nothing to be moved away."""

    def close(self, patience: float = LAST_WAIT) -> None:
        self._journal.close(patience)


@implementer(ILogObserver)
class Operations:
    """
    What the process itself has to say, as entries of the journal.

    @param journal: where they go.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __call__(self, event: LogEvent) -> None:
        """Send `event`, unless it says nothing."""
        text = _text(event)
        if text:
            self._journal.send(entry(_pairs(event, text)))


def _text(event: LogEvent) -> str:
    """What it says, with the traceback if it has one."""
    return eventAsText(event, includeTimestamp=False, includeSystem=False).rstrip("\n")


def _pairs(event: LogEvent, text: str) -> Iterator[tuple[str, object]]:
    yield "MESSAGE", text
    yield "PRIORITY", _priority(event)
    yield from _OF_EVERY_ENTRY
    yield "FWDRELAY_LOG", "operations"
    yield "FWDRELAY_NAMESPACE", event.get("log_namespace", "-")
    frames = getattr(event.get("log_failure"), "frames", None)
    if frames:
        function, file, line, *_ = frames[-1]
        yield from (("CODE_FUNC", function), ("CODE_FILE", file), ("CODE_LINE", line))
    for key, value in event.items():
        name = f"FWDRELAY_{key.upper()}"
        if (
            isinstance(value, str | int | float)
            and not key.startswith("log_")
            and key not in _OF_LOGGING
            and _NAME.fullmatch(name)
        ):
            yield name, value


_OF_LOGGING = frozenset({"log", "namespace", "time", "system", "format", "isError", "why"})
"""Keys of events that are no fields of what is told: ours, and those of `twisted.python.log`."""


def _priority(event: LogEvent) -> int:
    return _PRIORITIES.get(event.get("log_level", LogLevel.info), _INFO)


def operations(path: str = SOCKET) -> ILogObserver:
    """
    What the process has to say goes to the journal: `twistd --logger fwdrelay.observe.journal.operations`. Where
    there is none, it goes to standard output, as twistd would write it there.

    @param path: of journald's socket.
    """
    # twistd chooses one before it begins its log.
    from twisted.internet import reactor as chosen

    reactor: Any = chosen

    losses, later = of_the_process(reactor), later_from_any_thread(reactor)
    try:
        journal = Journal(losses, later, path)
    except OSError:
        output: Any = PatientOutput(losses, later)
        if reads_journal(_STDOUT):
            return FileLogObserver(output, _with_prefixes)
        return textFileLogObserver(output)
    atexit.register(journal.close, LAST_WAIT)
    settle_at_the_end(journal)
    return Operations(journal)


def _with_prefixes(event: LogEvent) -> str:
    """As sd-daemon(3) has it."""
    text = eventAsText(event, includeTimestamp=False).rstrip("\n")
    return "".join(f"<{_priority(event)}>{line}\n" for line in text.splitlines())


def reads_journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written there goes to journald; see `$JOURNAL_STREAM` in systemd.exec(5)."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def as_error(line: str) -> str:
    """
    @param line: that ends the process, for standard error.
    @return: the same, marked as an error where journald reads it.
    """
    return f"<{_ERROR}>{line}" if reads_journal(_STDERR) else line

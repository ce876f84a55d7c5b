"""
What the relay tells systemd: one datagram per word, as sd_notify(3) has it.

Here live the wire format and the socket. When to say what is the relay's business. Nothing here
waits, and nothing here raises: a relay that cannot reach its service manager still relays.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import attrs
from twisted.logger import Logger


@attrs.define(eq=False)
class Notifier:
    """
    One process's line to the service manager that started it; silent when there is none.

    The socket is opened with the first word and closed by `close`; child processes never inherit it.
    """

    _address: str | None = None
    """Where systemd listens, as `socket.sendto` wants it (abstract names begin with a NUL).
    None: nobody does."""

    watchdog_interval: float | None = None
    """How often to call `watchdog`, in seconds: half of what systemd allows, as
    sd_watchdog_enabled(3) advises. None: nobody waits for it."""

    _socket: socket.socket | None = attrs.field(default=None, init=False)
    _complained: bool = attrs.field(default=False, init=False)
    _log = Logger()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """
        Read `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, and leave them (see `forget`).

        What is missing, malformed or meant for another process counts as absent.
        """
        address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        if address is None:
            return cls()
        return cls(address, _watchdog_interval(environ))

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is finished: the sockets listen."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """A reload has begun; `ready` says that it is over, however it went."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """The process has begun to end: it drains."""
        self._send("STOPPING=1", _status(status))

    def status(self, text: str) -> None:
        """One line for people: `systemctl status` shows it."""
        self._send(_status(text))

    def watchdog(self) -> None:
        """
        Still alive.

        Said at least every `watchdog_interval`, by what would fall silent if the process hung.
        """
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Give the descriptor back. A later word opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        message = "\n".join(assignments).encode("utf-8", "replace")
        try:
            if self._socket is None:
                self._socket = socket.socket(
                    socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                )
            self._socket.sendto(message, self._address)
        except OSError as error:
            # Once per outage: what is said every few seconds would fill the log meanwhile.
            if not self._complained:
                self._log.warn(
                    "cannot tell systemd {word!r}: {address}: {reason}",
                    word=assignments[0],
                    address=self._address.replace("\0", "@", 1),
                    reason=error.strerror or str(error),
                )
            self._complained = True
        else:
            self._complained = False


def _socket_address(value: str) -> str | None:
    """An absolute path or `@name`; other families, such as `vsock:`, are for virtual machines."""
    if value.startswith("@") and len(value) > 1:
        return "\0" + value[1:]
    return value if value.startswith("/") else None


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    allowed = _positive(environ.get("WATCHDOG_USEC", ""))
    if allowed is None:
        return None
    # systemd names the process it waits for; a child that inherited the environment is not it.
    if "WATCHDOG_PID" in environ and _positive(environ["WATCHDOG_PID"]) != os.getpid():
        return None
    return allowed / 1e6 / 2


def _positive(text: str) -> int | None:
    """A positive decimal number, or None."""
    return (int(text) or None) if text.isascii() and text.isdigit() else None


def _status(text: str) -> str:
    # A line break would begin another assignment.
    return "STATUS=" + " ".join(text.splitlines())

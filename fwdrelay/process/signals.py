"""
What signals ask of a relay: SIGTERM and SIGINT drain and stop it, a second one stops it at once, SIGHUP
opens the access log's file anew and reads the configuration again, SIGUSR1 only opens that file anew.

A service of its own, so that whoever embeds a `Relay` in a larger application keeps the signals. Where the
process is stopped in another way that is no death, it is stopped here as well.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger


class Steered(Protocol):
    """What the signals act on: a `fwdrelay.relay.Relay`, or the supervisor of several."""

    def cut_all(self) -> None:
        """End every session now."""

    def reload(self) -> object:
        """Open the access log anew, and read the configuration again."""

    def reopen_logs(self) -> None:
        """Open the access log anew."""

    def upgrade(self) -> object:
        """Go on with the code and the configuration that there are now."""


class Signals(Service):
    """
    Handles the process's signals from when the reactor runs.

    Twisted's own handler fails on a second SIGTERM, and makes a stop that was asked for look like a death
    by signal; with this one the process exits with 0.
    """

    name = "signals"
    log = Logger()

    def __init__(self, reactor: Any, relay: Steered) -> None:
        self._reactor = reactor
        self._relay = relay
        self._stopping = False
        self._rotates: Any = None
        """What else SIGUSR1 is for."""
        self._acts: dict[int, Callable[[str], None]] = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self._reload,
            signal.SIGUSR1: self._reopen,
            signal.SIGUSR2: self._upgrade,
        }

    def startService(self) -> None:
        """Install the handlers once the reactor has installed its own."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def drain(self, now: bool = False) -> None:
        """
        Stop as at the first SIGTERM, for the admin API asks for it. Once that has begun, it does nothing.

        @param now: cut what is open, too, as at a second one.
        """
        if self._stopping:
            if now:
                self.log.info("The admin API asks for it: stopping at once.")
                self._relay.cut_all()
            return
        self._stopping = True
        self.log.info("The admin API asks for it: stopping.")
        if now:
            # Those who were promised a connection are accepted first: the service's own trigger is older.
            self._reactor.addSystemEventTrigger("before", "shutdown", self._relay.cut_all)
        self._stop_reactor()

    def _install(self) -> None:
        # With --logfile, twistd has one that begins a new file of its own log.
        before = signal.getsignal(signal.SIGUSR1)
        self._rotates = before if callable(before) else None
        for number in self._acts:
            signal.signal(number, self._received)
        # Who was renewed in place had them wait.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._acts, signal.SIGCHLD})

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1 and self._rotates is not None:
            self._rotates(number, frame)
        self._reactor.callFromThread(self._acts[number], signal.Signals(number).name)

    def _stop(self, name: str) -> None:
        if self._stopping:
            self.log.info("{name} again: stopping at once.", name=name)
            self._relay.cut_all()
        else:
            self._stopping = True
            self.log.info("{name}: stopping.", name=name)
            self._stop_reactor()

    def _stop_reactor(self) -> None:
        # Something else in the process may have stopped it already.
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _reload(self, name: str) -> None:
        self.log.info("{name}: opening the access log anew, reading the configuration.", name=name)
        self._relay.reload()

    def _reopen(self, name: str) -> None:
        self.log.info("{name}: opening the access log anew.", name=name)
        self._relay.reopen_logs()

    def _upgrade(self, name: str) -> None:
        self.log.info("{name}: upgrading in place.", name=name)
        self._relay.upgrade()

"""
What signals ask of a relay: SIGTERM and SIGINT drain and stop it, a second one stops it at once, SIGHUP
opens the access log's file anew and reads the configuration again.

A service of its own, so that whoever embeds a `Relay` in a larger application keeps the signals.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.logger import Logger


class Steered(Protocol):
    """What the signals act on: a `fwdrelay.relay.Relay`."""

    def cut_all(self) -> None:
        """End every session now."""

    def reload(self) -> object:
        """Open the access log anew, and read the configuration again."""


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

    def startService(self) -> None:
        """Install the handlers once the reactor has installed its own."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def _install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        act = self._reload if number == signal.SIGHUP else self._stop
        self._reactor.callFromThread(act, signal.Signals(number).name)

    def _stop(self, name: str) -> None:
        if self._stopping:
            self.log.info("{name} again: stopping at once.", name=name)
            self._relay.cut_all()
        else:
            self._stopping = True
            self.log.info("{name}: stopping.", name=name)
            self._reactor.stop()

    def _reload(self, name: str) -> None:
        self.log.info("{name}: opening the access log anew, reading the configuration.", name=name)
        self._relay.reload()

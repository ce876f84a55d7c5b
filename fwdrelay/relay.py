"""
The relay: built from a `Config`, started, stopped in order.

This is where the parts meet; each knows only those below it. Twisted's `MultiService` stops all its
children at once and without a deadline, so the order of a stop is written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from ._version import __version__
from .config import Config, PoolConfig, TargetConfig
from .deadlines import Deadlines
from .demo import Demo
from .dial import Dialer
from .errors import FwdrelayError
from .frontend import Listener
from .interfaces import IPump
from .observe.access_log import AccessLog
from .observe.sink import Sink
from .process.sdnotify import Notifier
from .pump import make_pump
from .session import Reason, Session
from .upstream import Pool, Resolver

STATUS_EVERY = 5.0


class Relay(Service):
    """
    One relay process: its listeners, its pools, its access log.

    @param reactor: Twisted's reactor.
    @param notifier: the line to systemd, if there is one.
    @param give_up: called with a sentence when the relay can't start; it must not return. Without it,
        `privilegedStartService` raises the `FwdrelayError`.
    @ivar listeners: by name.
    """

    name = "fwdrelay"
    log = Logger()

    def __init__(
        self,
        config: Config,
        reactor: Any,
        notifier: Notifier | None = None,
        give_up: Callable[[str], None] | None = None,
    ) -> None:
        notifier = Notifier() if notifier is None else notifier
        self.config = config
        self._reactor = reactor
        self._notifier = notifier
        self._give_up = give_up
        self._deadlines = Deadlines(reactor)
        self._pump: IPump | None = None
        self._access_log: AccessLog | None = None
        self._demo: Demo | None = None
        self._ended_count = 0
        self._drained: Deferred[None] | None = None
        self._status = LoopingCall(self._tell_status)
        self._watchdog = LoopingCall(notifier.watchdog)
        self._status.clock = self._watchdog.clock = reactor
        self._told = ""
        self.listeners: dict[str, Listener] = {}

    @property
    def active(self) -> int:
        """How many sessions are open."""
        return sum(listener.active for listener in self.listeners.values())

    @property
    def draining(self) -> bool:
        """Whether a stop has begun."""
        return not self.running

    def privilegedStartService(self) -> None:
        """Open everything that may need privileges: the access log, the listeners."""
        try:
            self._open_access_log()
            self._build()
            for listener in self.listeners.values():
                listener.listen()
        except FwdrelayError as failed:
            if self._give_up is None:
                raise
            self._give_up(str(failed))

    def startService(self) -> None:
        """The sockets listen: say so, once the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._running)

    def stopService(self) -> Deferred[None]:
        """
        Stop accepting, let sessions end within the drain time-out, cut what is left, then stop the rest.

        @return: fires when nothing is left.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def cut_all(self, reason: Reason = Reason.STOPPED) -> None:
        """End every session now."""
        self.log.info("Cutting {active} sessions.", active=self.active)
        for listener in self.listeners.values():
            for session in list(listener.sessions):
                session.cut(reason)

    def reopen_logs(self) -> None:
        """The access log was moved away: begin a new file."""
        if self._access_log is not None:
            self._access_log.reopen()

    def _open_access_log(self) -> None:
        where = self.config.access_log
        if where != "off":
            sink = Sink(self._reactor, None if where == "stdout" else where)
            self._access_log = AccessLog(self.config.access_log_format, sink)

    def _build(self) -> None:
        pump = self._pump = make_pump(self.config.pump, self._reactor, self.config.keepalive)
        dialer = Dialer(self._reactor, pump, Resolver(self._reactor))
        pools = {config.name: Pool(self._with_demo(config)) for config in self.config.pools}
        for config in self.config.listeners:
            self.listeners[config.name] = Listener(
                config,
                clock=self._reactor,
                pump=pump,
                pool=pools[config.pool],
                dialer=dialer,
                deadlines=self._deadlines,
                tell=None if self._access_log is None else self._access_log.session_ended,
                left=self._session_left,
                all_active=lambda: self.active,
            )

    def _with_demo(self, pool: PoolConfig) -> PoolConfig:
        if not self.config.demo:
            return pool
        self._demo = Demo(self._reactor, self._sessions)
        port = self._demo.listen()
        return PoolConfig(
            name=pool.name, targets=(TargetConfig(host="127.0.0.1", port=port, name="demo"),)
        )

    def _sessions(self) -> list[Session]:
        return [s for listener in self.listeners.values() for s in listener.sessions]

    def _running(self) -> None:
        self.log.info("fwdrelay {version} is ready.", version=__version__)
        self._told = self._status_text()
        self._notifier.ready(self._told)
        self._status.start(STATUS_EVERY, now=False)
        if self._notifier.watchdog_interval is not None:
            self._watchdog.start(self._notifier.watchdog_interval)

    def _status_text(self) -> str:
        doing = "draining" if self.draining else "relaying"
        return f"{doing}, {self.active} sessions open, {self._ended_count} ended"

    def _tell_status(self) -> None:
        text = self._status_text()
        if text != self._told:
            self._told = text
            self._notifier.status(text)

    def _session_left(self) -> None:
        self._ended_count += 1
        if self._drained is not None and not self.active:
            drained, self._drained = self._drained, None
            drained.callback(None)

    async def _stop(self) -> None:
        self._notifier.stopping(self._status_text())
        for listener in self.listeners.values():
            await listener.stop_listening()
        await self._drain()
        # Cut connections are closed in the reactor's next turn.
        await deferLater(self._reactor, 0)
        for listener in self.listeners.values():
            listener.refusals.stop()
        for loop in (self._status, self._watchdog):
            if loop.running:
                loop.stop()
        self._deadlines.stop()
        if self._pump is not None:
            self._pump.stop()
        if self._demo is not None:
            await self._demo.stop()
        if self._access_log is not None:
            self._access_log.close()
        self._notifier.close()

    async def _drain(self) -> None:
        if not self.active:
            return
        limit = self.config.drain_timeout
        self.log.info(
            "Draining: {active} sessions are open, {limit}.",
            active=self.active,
            limit=f"cut in {limit:g} s" if limit else "for as long as they take",
        )
        self._drained = Deferred()
        deadline = (
            self._reactor.callLater(limit, self.cut_all, Reason.DRAIN_TIMEOUT) if limit else None
        )
        await self._drained
        if deadline is not None and deadline.active():
            deadline.cancel()

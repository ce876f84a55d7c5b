"""
A worker process as its supervisor has it: how it is started, talked to, and how its end is known.

When to start one, and what to tell it, is for `fwdrelay.workers.supervisor` to say.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TypeAlias

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger, eventFromJSON, globalLogPublisher
from zope.interface import implementer

from ..observe.snapshot import Counters
from .renewal import is_whole
from .talk import Farewell, Hello, Logged, Talk, Told

TALK, KEEPER = 3, 4
"""The descriptors by which a worker talks with its supervisor, and with the keeper."""
MODULE = "fwdrelay.workers.worker"
State: TypeAlias = Literal["starting", "waiting", "beginning", "running", "draining", "ended"]
"""`waiting`: its process is ready, and not told to relay yet."""


def spawn() -> tuple[int, socket.socket, socket.socket]:
    """
    Start a process that will be a worker.

    @return: its pid, and our ends of the talk and of the way to the keeper.
    @raise OSError: it can't be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    kept, keeps = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, keeps:
        try:
            # Out of the way of the numbers that they get there.
            talk = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 10)
            try:
                keep = fcntl.fcntl(keeps, fcntl.F_DUPFD_CLOEXEC, 10)
                try:
                    pid = os.posix_spawn(
                        sys.executable,
                        # -P: the folder it happens to be in is no place for modules.
                        [sys.executable, *_warnings(), "-P", "-m", MODULE, str(os.getpid())],
                        os.environ,
                        file_actions=[
                            (os.POSIX_SPAWN_DUP2, talk, TALK),
                            (os.POSIX_SPAWN_DUP2, keep, KEEPER),
                        ],
                        setsigmask=(),
                        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
                    )
                finally:
                    os.close(keep)
            finally:
                os.close(talk)
        except BaseException:
            ours.close()
            kept.close()
            raise
    return pid, ours, kept


def _warnings() -> list[str]:
    """What this interpreter was told of warnings, its children are told, too."""
    return [f"-W{option}" for option in sys.warnoptions]


@implementer(IReadDescriptor)
class Child:
    """
    @param pid: a child of this process.
    @param talk: our end of the talk with it.
    @param ended: called once, with this, when the process has ended and was reaped.
    @param said: called, with this, when it has said hello.
    @param told: called with the number and the event of what is listened to.
    @ivar version: of the fwdrelay that it is; empty: it has not said yet.
    @ivar worker: its number; 0: none yet.
    @ivar generation: of how many upgrades it has come.
    @ivar started: when, by the clock.
    @ivar counters: what it has counted, as it was last known; None: nothing is.
    @ivar missed: how many pings it owes an answer to.
    @ivar drained: whether it was told to, before it ended.
    @ivar status: what waitpid(2) says of its end.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        pid: int,
        talk: socket.socket,
        *,
        ended: Callable[[Child], object],
        said: Callable[[Child], object] = lambda child: None,
        told: Callable[[int, Any], object] = lambda number, event: None,
    ) -> None:
        self.reactor = reactor
        self.pid = pid
        self.state: State = "starting"
        self.drained = False
        self.version = ""
        self.worker = 0
        self.generation = 0
        self.started: float = reactor.seconds()
        self.sessions = self.skipped = self.missed = 0
        self.counters: Counters | None = None
        self.status: int | None = None
        self._ended = ended
        self.said = said
        self.told = told
        self._watched = os.pidfd_open(pid)
        self.talk = self._join(talk)
        reactor.addReader(self)

    def _join(self, sock: socket.socket) -> Talk:
        talk = _SupervisorsTalk(self)
        join(self.reactor, sock, talk)
        return talk

    @property
    def alive(self) -> bool:
        """Whether it has not been reaped."""
        return self.status is None

    def kill(self) -> None:
        """End it at once; `ended` is called when that is done."""
        if self.alive:  # until it is reaped, the pid is nobody else's
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """Talk no more, whereupon it drains and ends."""
        if self.talk.transport is not None:
            self.talk.transport.loseConnection()

    def talk_lost(self) -> None:
        """It has ended, or is about to."""

    # As a reader of the reactor: a pidfd is readable when its process has ended (pidfd_open(2)).

    def fileno(self) -> int:
        return self._watched

    def doRead(self) -> None:
        """It has ended."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else in this process has reaped it
            pid, status = self.pid, 0
        if not pid:
            return
        self.status = status
        self.drained = self.state == "draining"
        self.state = "ended"
        self.stop_watching()
        self.hang_up()
        self._ended(self)

    def stop_watching(self) -> None:
        """Nobody waits for its end any more."""
        if self._watched >= 0:
            self.reactor.removeReader(self)
            os.close(self._watched)
            self._watched = -1

    def connectionLost(self, reason: Any) -> None:
        """The reactor disconnects everything."""

    def logPrefix(self) -> str:
        return type(self).__name__

    @property
    def end(self) -> str:
        """How it ended, in words."""
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        if code < 0:
            with suppress(ValueError):  # those for real-time programs have no names of their own
                return f"was killed by {signal.Signals(-code).name}"
            return f"was killed by signal {-code}"
        return f"has ended with status {code}"


class _SupervisorsTalk(Talk):
    """What a worker says of itself."""

    def __init__(self, child: Child) -> None:
        super().__init__(child.talk_lost)
        self._child = child

    @Hello.responder
    def hello(self, version: str) -> dict[str, Any]:
        self._child.version = version
        if self._child.state == "starting":
            self._child.state = "waiting"
            self._child.said(self._child)
        return {}

    @Logged.responder
    def logged(self, event: str) -> dict[str, Any]:
        child = self._child
        told = eventFromJSON(event)
        where = f"worker {child.worker}" if child.worker else f"process {child.pid}"
        level = getattr(told.get("log_level"), "name", "info")
        namespace = told.get("log_namespace", "-").replace("log_legacy", "-")
        told["log_system"] = f"{namespace}#{level}, {where}"
        told["worker"] = child.worker
        globalLogPublisher(told)
        return {}

    @Told.responder
    def tell_of(self, number: int, event: Any) -> dict[str, Any]:
        self._child.told(number, event)
        return {}

    @Farewell.responder
    def farewell(self, counters: Counters) -> dict[str, Any]:
        if is_whole(counters):  # it may be of another version
            self._child.counters = counters
        return {}


def join(reactor: Any, sock: socket.socket, talk: Talk) -> None:
    """
    Talk by that socket.

    @param sock: connected; it is closed, for the talk has one of its own.
    """
    factory = ServerFactory.forProtocol(lambda: talk)
    factory.noisy = False
    with sock:
        sock.setblocking(False)
        reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, factory)


__all__ = ["KEEPER", "TALK", "Child", "State", "join", "spawn"]

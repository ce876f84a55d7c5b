"""
A worker: a process that relays, and does what its supervisor says.

It is started with two sockets, says hello, and waits; told to begin, it is a `fwdrelay.relay.Relay` on sockets that the
supervisor has bound. Signals are not for it: they go to all processes of a terminal or a service, and the supervisor
passes on what they ask for. When the supervisor is gone, it drains and ends.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsJSON,
    globalLogBeginner,
    textFileLogObserver,
)
from zope.interface import implementer

from .._version import __version__
from ..config import Config
from ..errors import ConfigErrors, FwdrelayError
from ..frontend import Inherited, Key
from ..ledger import Ledger
from ..observe.output import PatientOutput, settle
from ..relay import Membership, Relay
from ..steering import Steering
from .child import KEEPER, TALK, join
from .keeping import Keeping, raise_limit
from .talk import (
    Ask,
    Begin,
    Change,
    Drain,
    Farewell,
    HandOver,
    Hello,
    Listen,
    Logged,
    Ping,
    Renew,
    Reopen,
    Reread,
    Talk,
    Told,
    Try,
    Unlisten,
)

AGAIN = 0.2
"""Seconds until it is looked again which sessions can be handed over now."""
_LAST_WORDS = 5.0
"""Seconds that the supervisor has to take what it is told last."""

Sockets = Sequence[tuple[Key, bool, int]]
"""
What a worker is told of the sockets that it gets: for each address whether it is fwdrelay's own (not systemd's), and
how many there are.
"""


def inherited(sockets: Sockets, descriptors: Sequence[int]) -> dict[Key, Inherited]:
    """
    @param descriptors: all of them, one address after the other.
    """
    left = iter(descriptors)
    return {
        key: Inherited(owned, tuple(socket.socket(fileno=next(left)) for _ in range(count)))
        for key, owned, count in sockets
    }


@define(eq=False)
class Worker:
    """
    @ivar relay: None until it is told to begin.
    @ivar ending: it was told to drain.
    @ivar next: by which it goes on to talk when the supervisor has been renewed; negative: it has not been.
    """

    reactor: Any
    talk: Talk = field(init=False)
    relay: Relay | None = None
    keeping: Keeping | None = None
    next: int = -1
    _steering: Steering | None = None
    _listening: dict[int, Callable[[], None]] = field(factory=dict)
    _handing_over: LoopingCall | None = None
    ending: bool = False
    log = Logger()

    def start(self) -> None:
        """Talk."""
        self._talk_by(TALK)

    def _talk_by(self, descriptor: int) -> None:
        self.talk = _WorkersTalk(self)
        join(self.reactor, socket.socket(fileno=descriptor), self.talk)
        self.talk.tell(Hello, version=__version__)

    def begin(
        self, number: int, config: Config, sockets: dict[Key, Inherited], ledger: int
    ) -> None:
        """
        Relay.

        @raise FwdrelayError: it can't be.
        """
        survive = config.relay.survive_crashes
        if survive:
            raise_limit()
        self.keeping = Keeping(
            self.reactor, socket.socket(fileno=KEEPER), self._adopt, survive, self._keeper_lost
        )
        membership = Membership(number, sockets, Ledger.open(ledger), self.keeping)
        os.close(ledger)
        self.relay = relay = Relay(config, self.reactor, membership=membership)
        self._steering = Steering(relay, self.reactor, number)
        relay.privilegedStartService()
        relay.startService()
        self.reactor.callWhenRunning(_spare_the_collector)

    def _adopt(self, *arguments: Any) -> Any:
        assert self.relay is not None
        return self.relay.adopt(*arguments)

    def _keeper_lost(self) -> None:
        """The supervisor is gone, or about to be renewed: the talk tells."""

    def relays(self) -> Relay:
        """
        @return: the relay that it is.
        @raise FwdrelayError: it is none yet.
        """
        if self.relay is None:
            raise FwdrelayError("this worker was not told to begin")
        return self.relay

    async def ask(self, method: str, arguments: Sequence[Any]) -> Any:
        """
        @return: what that method of the steering answers.
        """
        assert self._steering is not None
        return await getattr(self._steering, method)(*arguments)

    # What is listened to.

    def listen(self, number: int, what: str, arguments: Sequence[Any]) -> None:
        """Tell of sessions, or of steps of some, under that number."""
        steering = self._steering
        assert steering is not None

        def tell(event: object) -> None:
            self.talk.tell(Told, number=number, event=event)

        if what == "events":
            self._listening[number] = steering.subscribe(tell)
        else:
            self._listening[number] = steering.trace(arguments[0], tell)

    def unlisten(self, number: int) -> None:
        """Nobody wants to know that any more."""
        stop = self._listening.pop(number, None)
        if stop is not None:
            stop()

    # The end.

    def hand_over(self) -> None:
        """Others listen on the same sockets now: let them have the sessions, too, as far as that goes."""
        if self.ending:
            return
        relay = self.relays()
        relay.leave()
        self._handing_over = LoopingCall(self._hand_over)
        self._handing_over.clock = self.reactor
        self._handing_over.start(AGAIN).addErrback(
            lambda failure: self.log.failure("Sessions could not be handed over", failure)
        )
        self.drain()

    def _hand_over(self) -> Deferred[int]:
        """Those that only begin can't move yet, and can in a moment."""
        relay = self.relays()
        assert self.keeping is not None
        sessions = [each for listener in relay.all_listeners() for each in listener.sessions]
        return self.keeping.hand_over([each for each in sessions if each.may_move])

    def drain(self, now: bool = False) -> None:
        """Let sessions end; `now`: cut them. Then the process ends."""
        relay = self.relay
        if relay is None:
            self._end()
            return
        if not self.ending:
            self.ending = True
            stopped = relay.stopService()
            stopped.addErrback(
                lambda failure: self.log.failure("A worker could not stop in order", failure)
            )
            stopped.addBoth(lambda result: Deferred.fromCoroutine(self._say_farewell()))
        if now:
            relay.cut_all()

    async def _say_farewell(self) -> None:
        if self._handing_over is not None and self._handing_over.running:
            self._handing_over.stop()
        if self._steering is not None:
            self.talk.tell(Farewell, counters=await self._steering.counters())
        self._end()

    def _end(self) -> None:
        self.ending = True
        if self.keeping is not None:
            self.keeping.stop()
        if self.talk.transport is not None:
            # It is closed when all was written; `talk_lost` ends the process then.
            self.talk.transport.loseConnection()
            self.reactor.callLater(_LAST_WORDS, self._stop_reactor)
        else:
            self._stop_reactor()

    def _stop_reactor(self) -> None:
        with suppress(ReactorNotRunning):
            self.reactor.stop()

    def talk_lost(self) -> None:
        """The supervisor is gone; or there is a renewed one, or an end."""
        for stop in self._listening.values():
            stop()
        self._listening.clear()
        if self.next >= 0:
            descriptor, self.next = self.next, -1
            self._talk_by(descriptor)
        elif self.ending and (self.relay is None or not self.relay.active):
            self._stop_reactor()
        else:
            self.log.warn("The supervisor is gone: draining.")
            self.drain()

    def renew(self, descriptor: int) -> None:
        """When this talk ends, another one goes on there."""
        if self.next >= 0:  # that renewal came to nothing
            os.close(self.next)
        self.next = descriptor


class _WorkersTalk(Talk):
    """What a supervisor asks."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker.talk_lost)
        self._worker = worker

    @Begin.responder
    def begin(
        self, worker: int, config: Config, sockets: Sockets, descriptors: list[int]
    ) -> dict[str, Any]:
        *of_sockets, ledger = descriptors
        self._worker.begin(worker, config, inherited(sockets, of_sockets), ledger)
        return {}

    @Try.responder
    def try_(self, config: Config) -> dict[str, Any]:
        try:
            self._worker.relays().try_change(config)
        except ConfigErrors as wrong:
            return {"wrong": tuple(map(str, wrong.errors))}
        return {"wrong": ()}

    @Change.responder
    def change(self, config: Config, sockets: Sockets, descriptors: list[int]) -> dict[str, Any]:
        relay = self._worker.relays()
        relay.inherit(inherited(sockets, descriptors))
        return {"changed": relay.change(config)}

    @Reread.responder
    def reread(self) -> Deferred[dict[str, Any]]:
        return self._worker.relays().reload().addCallback(lambda outcome: {"outcome": outcome})

    @Ask.responder
    def ask_(self, method: str, arguments: Sequence[Any]) -> Deferred[dict[str, Any]]:
        asked = Deferred.fromCoroutine(self._worker.ask(method, arguments))
        return asked.addCallback(lambda answer: {"answer": answer})

    @Listen.responder
    def listen(self, number: int, what: str, arguments: Sequence[Any]) -> dict[str, Any]:
        self._worker.listen(number, what, arguments)
        return {}

    @Unlisten.responder
    def unlisten(self, number: int) -> dict[str, Any]:
        self._worker.unlisten(number)
        return {}

    @Ping.responder
    def ping(self) -> dict[str, Any]:
        relay, keeping = self._worker.relay, self._worker.keeping
        return {
            "sessions": 0 if relay is None else relay.active,
            "kept": 0 if keeping is None else keeping.kept_count,
            "skipped": 0 if relay is None else relay.audience.feed.skipped,
        }

    @HandOver.responder
    def hand_over(self) -> dict[str, Any]:
        self._worker.hand_over()
        return {}

    @Drain.responder
    def drain(self, now: bool) -> dict[str, Any]:
        self._worker.drain(now)
        return {}

    @Reopen.responder
    def reopen(self) -> dict[str, Any]:
        self._worker.relays().reopen_logs()
        return {}

    @Renew.responder
    def renew(self, way: list[int]) -> dict[str, Any]:
        self._worker.renew(way[0])
        return {}


@implementer(ILogObserver)
class _ToSupervisor:
    """Has the supervisor write what this process has to say; while there is none, it goes to standard output."""

    def __init__(self, worker: Worker, reactor: Any) -> None:
        self._worker = worker
        self._alone = textFileLogObserver(PatientOutput.of(reactor))  # type: ignore[arg-type]

    def __call__(self, event: LogEvent) -> None:
        talk = self._worker.talk
        if talk.over or talk.transport is None:
            if not self._worker.ending or event["log_level"] >= LogLevel.warn:
                self._alone(event)
        else:
            talk.tell(Logged, event=eventAsJSON(event))


def _spare_the_collector() -> None:
    """See `fwdrelay.tap`."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def main() -> None:
    """Be one, until it is over."""
    from twisted.internet import reactor

    for number in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, number), signal.SIG_IGN)
    sys.stdout.flush()
    atexit.register(settle)
    worker = Worker(reactor)
    worker.start()
    globalLogBeginner.beginLoggingTo(
        [_ToSupervisor(worker, reactor)], discardBuffer=True, redirectStandardIO=False
    )
    reactor.run(installSignalHandlers=False)  # type: ignore[call-arg]


if __name__ == "__main__":
    main()

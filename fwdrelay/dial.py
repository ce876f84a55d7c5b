"""
Opening the upstream connection: a target elected, its addresses raced, the next target when it fails.

A dial ends within the connect time-out, whatever it tries: each target gets an equal share of what is
left, so one that answers nothing leaves time for the next. Every attempt is a `ClientCreator`
connection through the pump.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen
from twisted.internet import error
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import ClientCreator, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from .config import TargetConfig
from .errors import DialFailed
from .interfaces import IPump
from .upstream import Pool, Resolver, Target

# RFC 8305, section 8: the recommended delay between attempts at the addresses of one name.
ATTEMPT_DELAY = 0.25
# Between attempts at a Unix socket whose queue is full.
QUEUE_FULL_DELAY = 0.02
# Of an attempt that the system alone may end, which it does sooner.
_NO_LIMIT = 3600.0
# Of an attempt for which no time is left: a machine may stand still for longer than a time-out.
_SHORTEST = 0.001
CAUSES = ("refused", "unreachable", "timeout", "resolve", "no-resources", "no-target", "other")
_CAUSE_OF_ERRNO = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "refused",
    errno.ENOENT: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.ETIMEDOUT: "timeout",
    errno.EMFILE: "no-resources",
    errno.ENFILE: "no-resources",
    errno.ENOBUFS: "no-resources",
    errno.ENOMEM: "no-resources",
    errno.EADDRNOTAVAIL: "no-resources",
    errno.EAGAIN: "no-resources",
}
P = TypeVar("P", bound=Protocol)


@frozen
class Dialed(Generic[P]):
    """
    What a dial came to.

    @ivar protocol: connected to `target`, on which one session is counted now.
    @ivar retries: how many other targets were tried before.
    """

    protocol: P
    target: Target
    retries: int


class AllFailed(DialFailed):
    """
    No target could be connected to; cause and detail are the last one's.

    @ivar target: the last one tried, or None where none may take one more session.
    @ivar retries: how many targets were tried after the first.
    """

    def __init__(self, last: DialFailed, target: Target | None, retries: int) -> None:
        super().__init__(last.cause, last.detail)
        self.target = target
        self.retries = retries


@define(eq=False)
class _Dial(Generic[P]):
    """
    What one dial has tried.

    @ivar deadline: when its time is up, if there is a `timeout`.
    @ivar failed: how the last target failed.
    """

    pool: Pool
    build: Callable[[], P]
    timeout: float
    deadline: float
    tried: list[Target] = field(factory=list)
    failed: DialFailed | None = None

    def share(self, clock: Any) -> float | None:
        """
        @return: seconds for the target tried last: of what is left, an equal part for each that may
            still be tried; None where there is no limit.
        """
        if not self.timeout:
            return None
        targets = min(self.pool.retries + 1, len(self.pool.targets))
        left = max(targets - len(self.tried) + 1, 1)
        to_go: float = self.deadline - clock.seconds()
        return max(to_go / left, _SHORTEST)

    def next_target(self) -> Target | None:
        """
        @return: another target, with a session counted on it; None where enough were tried.
        """
        return self.pool.elect(self.tried) if len(self.tried) <= self.pool.retries else None

    def all_failed(self) -> AllFailed:
        """The error that tells of it."""
        failed = self.failed or DialFailed(
            "no-target", "every target is at its limit of sessions, or has a weight of 0"
        )
        tried = self.tried
        return AllFailed(failed, tried[-1] if tried else None, max(len(tried) - 1, 0))


class Dialer:
    """
    Opens upstream connections through one pump.

    @param reactor: the clock of the time-outs.
    """

    def __init__(self, reactor: Any, pump: IPump, resolver: Resolver) -> None:
        self._reactor = reactor
        self._pump = pump
        self._resolver = resolver

    def dial(self, pool: Pool, timeout: float, build: Callable[[], P]) -> Deferred[Dialed[P]]:
        """
        Connect to a target of `pool`.

        @param timeout: seconds over everything; 0: the system's time-out for each attempt.
        @param build: makes the protocol for an attempt.
        @return: fails with `AllFailed` when no target was connected to, or time ran out; may be
            cancelled.
        """
        dial = _Dial(pool, build, timeout, self._reactor.seconds() + timeout)
        target = pool.elect()
        if target is None or not target.literal:
            return Deferred.fromCoroutine(self._try_targets(dial, target))
        # Nearly every dial is this: one address, which answers. A coroutine, with all that can happen
        # in it, would cost a tenth of the session's set-up.
        dial.tried.append(target)
        share = dial.share(self._reactor) or _NO_LIMIT
        outcome: Deferred[Any]
        try:
            outcome = ClientCreator(self._pump, build).connectTCP(
                target.config.host, target.config.port, timeout=share
            )
        except OSError:
            outcome = fail()
        return outcome.addCallbacks(Dialed, self._first_failed, (target, 0), {}, (dial, target))

    def _first_failed(
        self, failure: Failure, dial: _Dial[P], target: Target
    ) -> Failure | Deferred[Dialed[P]]:
        dial.pool.release(target)
        failed = failure.value
        if not isinstance(failed, (OSError, error.ConnectError)):
            return failure  # cancelled
        dial.failed = DialFailed(*_cause(failed))
        return Deferred.fromCoroutine(self._try_targets(dial, dial.next_target()))

    async def _try_targets(self, dial: _Dial[P], target: Target | None) -> Dialed[P]:
        """
        @param target: the first to try, elected already.
        @raise AllFailed: when it and those elected after it have failed.
        """
        while target is not None:
            dial.tried.append(target)
            try:
                share = dial.share(self._reactor)
                protocol = await self._dial_target(target.config, share, dial.build)
            except DialFailed as failed:
                dial.pool.release(target)
                dial.failed = failed
            except BaseException:
                dial.pool.release(target)
                raise
            else:
                return Dialed(protocol, target, len(dial.tried) - 1)
            target = dial.next_target()
        raise dial.all_failed()

    async def _dial_target(
        self, target: TargetConfig, share: float | None, build: Callable[[], P]
    ) -> P:
        """
        @param share: seconds, None for no limit of ours.
        @raise DialFailed: with the cause.
        """
        started = self._reactor.seconds()
        try:
            if target.path:
                # "@name" is how an abstract Unix address is written; the kernel wants a NUL there.
                path = "\0" + target.path[1:] if target.path[0] == "@" else target.path
                return await self._connect_unix(path, share, build)
            resolving = self._resolver.resolve(target.host)
            if share is not None and not resolving.called:
                resolving.addTimeout(share, self._reactor)
            addresses = await resolving
            if share is not None:
                share = max(share - (self._reactor.seconds() - started), _SHORTEST)
            return await self._race(target, addresses, share, build)
        except (OSError, error.ConnectError, DeferredTimeout) as failed:
            cause, detail = _cause(failed)
            if cause != "no-resources":
                self._resolver.doubt(target.host)
            raise DialFailed(cause, detail) from None

    async def _connect_unix(self, path: str, share: float | None, build: Callable[[], P]) -> P:
        """
        Connect to a Unix socket. One whose queue is full says EAGAIN and has nothing to wait for
        (unix(7)), so it is tried again and again.
        """
        creator = ClientCreator(self._pump, build)
        started = self._reactor.seconds()
        while True:
            try:
                return await maybeDeferred(creator.connectUNIX, path, timeout=share or _NO_LIMIT)
            except error.ConnectError as failed:
                if failed.osError != errno.EAGAIN:
                    raise
            await deferLater(self._reactor, QUEUE_FULL_DELAY)
            if share is not None and self._reactor.seconds() >= started + share:
                raise error.TimeoutError()

    def _race(
        self,
        target: TargetConfig,
        addresses: Sequence[str],
        share: float | None,
        build: Callable[[], P],
    ) -> Deferred[P]:
        def attempt(address: str) -> Deferred[P]:
            creator = ClientCreator(self._pump, build)
            return maybeDeferred(
                creator.connectTCP, address, target.port, timeout=share or _NO_LIMIT
            )

        if len(addresses) == 1:
            return attempt(addresses[0])
        race = _Race(self._reactor, list(addresses), attempt)
        race.start(share)
        return race.outcome


@define(eq=False)
class _Race(Generic[P]):
    """
    Attempts at the addresses of one target, a new one each `ATTEMPT_DELAY` or as soon as one fails;
    the first to connect wins, and the others are cancelled (RFC 8305, section 5).
    """

    reactor: Any
    addresses: list[str]
    attempt: Callable[[str], Deferred[P]]
    running: list[Deferred[P]] = field(factory=list)
    next_start: Any = None
    time_out: Any = None
    outcome: Deferred[P] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.outcome = Deferred(lambda _: self._stop())

    def start(self, share: float | None) -> None:
        """
        @param share: seconds for the whole race.
        """
        if share is not None:
            self.time_out = self.reactor.callLater(share, self._timed_out)
        self._start_next()

    def _start_next(self) -> None:
        self.next_start = None
        running = self.attempt(self.addresses.pop(0))
        self.running.append(running)
        if self.addresses:
            self.next_start = self.reactor.callLater(ATTEMPT_DELAY, self._start_next)
        running.addCallbacks(self._won, self._lost, (running,), {}, (running,))

    def _won(self, protocol: P, running: Deferred[P]) -> None:
        self.running.remove(running)
        self._stop()
        self.outcome.callback(protocol)

    def _lost(self, reason: Failure, running: Deferred[P]) -> None:
        if running not in self.running:
            return  # cancelled by _stop
        self.running.remove(running)
        if self.addresses:
            if self.next_start is not None:
                self.next_start.cancel()
            self._start_next()
        elif not self.running:
            self._stop()
            self.outcome.errback(reason)

    def _timed_out(self) -> None:
        self.time_out = None
        self._stop()
        self.outcome.errback(Failure(error.TimeoutError()))

    def _stop(self) -> None:
        for call in (self.next_start, self.time_out):
            if call is not None and call.active():
                call.cancel()
        self.addresses.clear()
        running, self.running = self.running, []
        for attempt in running:
            attempt.cancel()


def _cause(failed: Exception) -> tuple[str, str]:
    """
    @return: one of `CAUSES`, and what the system said.
    """
    if isinstance(failed, (error.TimeoutError, DeferredTimeout)):
        return "timeout", "no answer within the connect time-out"
    number = failed.errno if isinstance(failed, OSError) else getattr(failed, "osError", None)
    if not number:
        return "other", str(failed)
    return _CAUSE_OF_ERRNO.get(number, "other"), os.strerror(number)

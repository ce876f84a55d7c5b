"""
Opening the upstream connection: a target's addresses raced, the next target elected when it fails.

A dial ends within the connect time-out, whatever it tries: each target gets an equal share of what is
left, so one that answers nothing leaves time for the next. Every attempt is a `ClientCreator`
connection through the pump; where the pool speaks TLS, hands are shaken on it, and a target that can't
prove who it is has failed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import ClientCreator, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from .address import authority
from .config import TargetConfig
from .errors import DialFailed
from .handshake import shake_hands
from .interfaces import IPump
from .observe.trace import Trace
from .tls import PeerRefused, UpstreamTLS, explain
from .upstream import Pool, Resolver, Target
from .words import some

# RFC 8305, section 8: the recommended delay between attempts at the addresses of one name.
ATTEMPT_DELAY = 0.25
# Between attempts at a Unix socket whose queue is full.
QUEUE_FULL_DELAY = 0.02
# Of an attempt that the system alone may end, which it does sooner.
_NO_LIMIT = 3600.0
# Of a handshake where the connect time-out is off: nothing else would end it.
_PATIENCE = 60.0
# Of an attempt for which no time is left: a machine may stand still for longer than a time-out.
_SHORTEST = 0.001
CAUSES = (
    "refused",
    "unreachable",
    "timeout",
    "resolve",
    "no-resources",
    "no-target",
    "tls",
    "other",
)
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
    @ivar failed: the targets that were tried before.
    """

    protocol: P
    target: Target
    failed: Sequence[Target]


class AllFailed(DialFailed):
    """
    No target could be connected to; cause and detail are the last one's.

    @ivar tried: the targets that were, in order, the last one included.
    """

    def __init__(self, last: DialFailed, tried: Sequence[Target]) -> None:
        super().__init__(last.cause, last.detail)
        self.tried = tuple(tried)


@define(eq=False)
class _Dial(Generic[P]):
    """
    What one dial has tried.

    @ivar deadline: when its time is up, if there is a `timeout`.
    @ivar client: the client's IP address, for elections that want it.
    @ivar began: when it began with the target tried last.
    @ivar trace: follows it; None: nobody does.
    """

    pool: Pool
    build: Callable[[], P]
    timeout: float
    deadline: float
    client: str | None
    tried: list[Target]
    began: float
    trace: Trace | None

    @property
    def bind(self) -> str:
        """The address that is dialed from; empty: any."""
        return self.pool.config.bind

    def tell(self, step: str, detail: str) -> None:
        """Tell whoever follows it."""
        if self.trace is not None:
            self.trace.tell(step, detail)

    def share(self, clock: Any) -> float | None:
        """
        @return: seconds for the target tried last: of what is left, an equal part for each that may
            still be tried; None where there is no limit.
        """
        if not self.timeout:
            return None
        targets = min(self.pool.config.retries + 1, len(self.pool.targets))
        left = max(targets - len(self.tried) + 1, 1)
        to_go: float = self.deadline - clock.seconds()
        return max(to_go / left, _SHORTEST)

    def next_target(self) -> Target | None:
        """
        @return: another target, with a session counted on it; None where enough were tried, or none is
            left.
        """
        if len(self.tried) > self.pool.config.retries:
            return None
        return self.pool.elect(self.client, self.tried)


class Dialer:
    """
    Opens upstream connections through one pump.

    @param reactor: the clock of the time-outs.
    """

    def __init__(self, reactor: Any, pump: IPump, resolver: Resolver) -> None:
        self._reactor = reactor
        self._pump = pump
        self._resolver = resolver

    def dial(
        self,
        pool: Pool,
        target: Target,
        timeout: float,
        build: Callable[[], P],
        client: str | None = None,
        tried: list[Target] | None = None,
        trace: Trace | None = None,
    ) -> Deferred[Dialed[P]]:
        """
        Connect to `target`, or to another one of `pool`.

        @param target: elected for this session, which is counted on it; from here on, that is this dial's
            to see to, until it has succeeded.
        @param timeout: seconds over everything; 0: the system's time-out for each attempt.
        @param build: makes the protocol for an attempt.
        @param client: the client's IP address, for elections that want it.
        @param tried: targets that were tried before, by an earlier dial for the same session. Those that this one
            tries are added, so the last is the one that it is at.
        @param trace: is told of what is tried.
        @return: fails with `AllFailed` when no target was connected to, or time ran out; may be
            cancelled.
        """
        began = self._reactor.seconds()
        tried = [] if tried is None else tried
        tried.append(target)
        dial = _Dial(pool, build, timeout, began + timeout, client, tried, began, trace)
        config = target.config
        if not target.literal or pool.config.bind:
            return Deferred.fromCoroutine(self._try_targets(dial))
        # Nearly every dial is this: one address, which answers. A coroutine, with all that can happen
        # in it, would cost a tenth of the session's set-up.
        share = dial.share(self._reactor) or _NO_LIMIT
        if trace is not None:
            trace.tell("dialing", config.address)
        outcome: Deferred[Any]
        try:
            outcome = ClientCreator(self._pump, build).connectTCP(
                config.host, config.port, timeout=share
            )
        except OSError:
            outcome = fail()
        if pool.tls is not None:
            until = self._reactor.seconds() + share if timeout else None
            outcome.addCallback(self._secure, config, pool.tls, until, trace)
        return outcome.addCallbacks(self._succeeded, self._first_failed, (dial,), {}, (dial,))

    def _succeeded(self, protocol: P, dial: _Dial[P]) -> Dialed[P]:
        target = dial.tried[-1]
        dial.pool.dialed(target, self._reactor.seconds() - dial.began)
        return Dialed(protocol, target, dial.tried[:-1])

    def _first_failed(self, failure: Failure, dial: _Dial[P]) -> Failure | Deferred[Dialed[P]]:
        failed = failure.value
        if isinstance(failed, (OSError, error.ConnectError)):
            failed = DialFailed(*_cause(failed))
        if not isinstance(failed, DialFailed):
            dial.pool.release(dial.tried[-1])
            return failure  # cancelled
        return Deferred.fromCoroutine(self._try_targets(dial, failed))

    async def _try_targets(self, dial: _Dial[P], failed: DialFailed | None = None) -> Dialed[P]:
        """
        Try the target tried last, unless it has `failed`, and then those elected after it.

        @raise AllFailed: when they all have failed.
        """
        pool = dial.pool
        while True:
            target = dial.tried[-1]
            if failed is None:
                try:
                    protocol = await self._open(target.config, dial)
                except DialFailed as why:
                    failed = why
                except BaseException:
                    pool.release(target)
                    raise
                else:
                    return self._succeeded(protocol, dial)
            pool.release(target)
            pool.dial_failed(target, failed.cause, failed.detail)
            dial.tell("dial-failed", f"{target.label}: {failed.detail} ({failed.cause})")
            following = dial.next_target()
            if following is None:
                raise AllFailed(failed, dial.tried)
            if dial.trace is not None:
                dial.tell("elected", f"{following.label}: {pool.why(following, dial.tried)}")
            dial.tried.append(following)
            dial.began = self._reactor.seconds()
            failed = None

    async def _open(self, target: TargetConfig, dial: _Dial[P]) -> P:
        """
        @return: connected to `target`, which is who it should be.
        @raise DialFailed: with the cause.
        """
        share = dial.share(self._reactor)
        until = None if share is None else self._reactor.seconds() + share
        protocol = await self._dial_target(target, share, dial)
        if dial.pool.tls is not None:
            return await self._secure(protocol, target, dial.pool.tls, until, dial.trace)
        return protocol

    def _secure(
        self,
        protocol: P,
        target: TargetConfig,
        tls: UpstreamTLS,
        until: float | None,
        trace: Trace | None,
    ) -> Deferred[P]:
        """
        Shake hands with `target`, and look whether it is who it should be.

        @param until: when its time is up; None: the connect time-out sets none.
        @return: fails with `DialFailed`: there is no connection any more.
        """
        stream: Any = protocol.transport
        connection = None
        if trace is not None:
            trace.tell("dialing", f"TLS handshake with {target.label}")
        try:
            connection = tls.connect(stream.getHandle(), target)
            handshake = shake_hands(self._pump, protocol, connection)
        except Exception:
            return fail(_not_secured(Failure(), protocol, connection))
        left = _PATIENCE if until is None else max(until - self._reactor.seconds(), _SHORTEST)
        handshake.addTimeout(left, self._reactor)
        judged = handshake.addCallback(lambda _: tls.judge(connection, target))
        return judged.addCallbacks(
            lambda _: protocol, _not_secured, errbackArgs=(protocol, connection)
        )

    async def _dial_target(self, target: TargetConfig, share: float | None, dial: _Dial[P]) -> P:
        """
        @param share: seconds, None for no limit of ours.
        @raise DialFailed: with the cause.
        """
        started = self._reactor.seconds()
        try:
            if target.path:
                # "@name" is how an abstract Unix address is written; the kernel wants a NUL there.
                path = "\0" + target.path[1:] if target.path[0] == "@" else target.path
                dial.tell("dialing", target.address)
                return await self._connect_unix(path, share, dial.build)
            addresses = target.addresses
            if not addresses:
                resolving = self._resolver.resolve(target.host)
                if share is not None and not resolving.called:
                    resolving.addTimeout(share, self._reactor)
                addresses = await resolving
                if [*addresses] != [target.host]:
                    dial.tell("resolved", f"{target.host} is {some(addresses)}")
            if share is not None:
                share = max(share - (self._reactor.seconds() - started), _SHORTEST)
            return await self._race(target, _reachable(addresses, dial.bind), share, dial)
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
        dial: _Dial[P],
    ) -> Deferred[P]:
        def attempt(address: str) -> Deferred[P]:
            creator = ClientCreator(self._pump, dial.build)
            dial.tell("dialing", authority(address, target.port))
            attempt = maybeDeferred(
                creator.connectTCP,
                address,
                target.port,
                timeout=share or _NO_LIMIT,
                bindAddress=(dial.bind, 0) if dial.bind else None,
            )
            return attempt if dial.trace is None else attempt.addErrback(told, address)

        def told(failure: Failure, address: str) -> Failure:
            if len(addresses) > 1 and isinstance(failure.value, (OSError, error.ConnectError)):
                detail = _cause(failure.value)[1]
                dial.tell("dial-failed", f"{authority(address, target.port)}: {detail}")
            return failure

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


def _reachable(addresses: Sequence[str], bind: str) -> Sequence[str]:
    """
    @param bind: the address that is dialed from; empty: any.
    @return: those of its family.
    @raise DialFailed: where there are none.
    """
    if not bind:
        return addresses
    reachable = [address for address in addresses if (":" in address) == (":" in bind)]
    if not reachable:
        raise DialFailed("unreachable", f"no address of it can be dialed from {bind}")
    return reachable


def _not_secured(failure: Failure, protocol: Protocol, connection: Any) -> Failure:
    """@return: why, as `DialFailed`, or that it was cancelled."""
    stream: Any = protocol.transport
    stream.abortConnection()
    failed = failure.value
    if isinstance(failed, DeferredTimeout):
        return Failure(DialFailed("timeout", "no TLS handshake within the connect time-out"))
    if isinstance(failed, PeerRefused):
        return Failure(DialFailed("tls", str(failed)))
    if isinstance(failed, SSL.Error):
        return Failure(DialFailed("tls", explain(failed, connection)))
    if isinstance(failed, OSError):
        return Failure(DialFailed("tls", f"TLS handshake: {_cause(failed)[1]}"))
    return failure


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

"""
One check of one target: its addresses tried in turn, a `Probe` carried on a connection, and the end of it.

A check's connection ends as a polite client's does: FIN, then what still comes is read and dropped
until the server has ended, too. Closed with unread input, the kernel would send RST, and the server
log an error each time (a banner, a TLS 1.3 session ticket and a page are such input).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from attrs import define, field, frozen
from twisted.internet import error
from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IConnector, IHalfCloseableProtocol
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from ...config import TargetConfig
from ...config.model import SendProxy
from ...errors import DialFailed, FwdrelayError
from ...wire.proxyprotocol import local_header
from ..resolve import Resolver
from .probe import CheckFailed, Probe

MOST_DROPPED = 1 << 20
"""Bytes that are read and dropped after a check was passed or failed, before the connection is closed."""
# Between attempts at a Unix socket whose queue is full.
QUEUE_FULL_DELAY = 0.02
# For what no time is left: a machine may stand still for longer than a time-out.
SHORTEST = 0.001
_OUR_OWN = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.EADDRNOTAVAIL,
    errno.EAGAIN,
)
"""What the system says when it is this machine that has run out of something."""
Connect: TypeAlias = Callable[[ClientFactory], IConnector]


class NotConnected(CheckFailed):
    """No connection could be opened."""


class QueueFull(NotConnected):
    """
    A Unix socket's queue is full: there is nothing to wait for (unix(7)), so it is asked again and again.
    """


class CannotCheck(FwdrelayError):
    """This machine could not make a check, which says nothing of the target."""


def clause(text: str) -> str:
    """
    @return: what the system said, as a part of a sentence: `connection refused`.
    """
    text = text.rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


class _Factory(ClientFactory):
    """Carries one conversation."""

    noisy = False

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def buildProtocol(self, addr: Any) -> Conversation:
        return self._conversation

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        assert reason.value is not None
        self._conversation.not_connected(reason.value)


@implementer(IHalfCloseableProtocol)
class Conversation(Protocol):
    """
    One connection, from its opening to its end.

    @ivar outcome: fires when the probe has passed; fails with `CheckFailed` or `CannotCheck`. To cancel
        it gives the connection up.
    @ivar closed: fires when nothing of the connection is left.
    """

    def __init__(self, probe: Probe, send_proxy: SendProxy) -> None:
        self.outcome: Deferred[None] = Deferred(lambda _: self.give_up())
        self.closed: Deferred[None] = Deferred()
        self._probe = probe
        self._send_proxy = send_proxy
        self._connector: IConnector | None = None
        self._judged = False
        self._over = False
        self._dropped = 0

    @property
    def awaited(self) -> str:
        """What it is waiting for, while there is no outcome."""
        return self._probe.awaited if self.connected else "connection"

    def open(self, connect: Connect) -> None:
        """Begin; what comes of it is told by `outcome`."""
        try:
            self._connector = connect(_Factory(self))
        except OSError as failed:  # so it is told of Unix sockets
            self.not_connected(failed)
        except Exception as failed:
            self._has_closed()
            self._judge(failed)

    def give_up(self) -> None:
        """
        Close at once; nothing is left of the connection then. Nobody is told: `outcome` does not fire
        by this.

        The transport is closed as a reactor does it when it stops. Twisted's `loseConnection` would
        wait until the peer takes what is written, which it may never do.
        """
        self._judged = True
        if self._over:
            return
        if self.connected:
            self.transport.connectionLost(connectionDone)  # type: ignore[union-attr]
        elif self._connector is not None:
            self._connector.stopConnecting()

    def not_connected(self, failed: BaseException) -> None:
        """The connection could not be opened."""
        self._has_closed()
        self._judge(_why(failed))

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        try:
            if self._send_proxy != "off":
                # Before TLS, too. `getHost` is our end here, where the connection comes from.
                ends = transport.getHost(), transport.getPeer()
                transport.write(local_header(self._send_proxy, *ends))
            transport.write(self._probe.begin())
        except Exception as failed:
            self._judge(failed)
        else:
            self._go_on()

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        if self._judged:
            self._dropped += len(data)
            if self._dropped > MOST_DROPPED:
                self.give_up()
            return
        try:
            transport.write(self._probe.received(data))
        except Exception as failed:
            self._judge(failed)
        else:
            self._go_on()

    def readConnectionLost(self) -> None:
        transport: Any = self.transport
        if not self._judged:
            try:
                self._probe.ended()
            except Exception as failed:
                self._judge(failed)
        # There is nothing left to be read, so this is FIN.
        transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our end was sent."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._has_closed()
        # A connection that the peer ends comes by `readConnectionLost`.
        self._judge(CheckFailed("connection reset by peer"))

    def _go_on(self) -> None:
        if self._probe.passed:
            self._judge(None)

    def _judge(self, failed: BaseException | None) -> None:
        """The check was passed, or has failed. Ends the connection, then says so; only the first counts."""
        if self._judged:
            return
        self._judged = True
        if not self._over:
            self._end()
        if failed is None:
            self.outcome.callback(None)
        else:
            self.outcome.errback(Failure(failed))

    def _has_closed(self) -> None:
        self._over = True
        self.closed.callback(None)

    def _end(self) -> None:
        transport: Any = self.transport
        transport.write(self._probe.end())
        # A server that was asked to end its answer by an end takes ours for a client that left.
        if not self._probe.peer_ends:
            transport.loseWriteConnection()


@frozen
class How:
    """
    How targets are checked.

    @ivar ask: makes the probe for one connection.
    @ivar timeout: seconds for all of a check.
    @ivar bind: source address; empty: the system's choice.
    @ivar send_proxy: which version of the PROXY protocol the server expects.
    """

    ask: Callable[[TargetConfig], Probe]
    timeout: float
    bind: str = ""
    send_proxy: SendProxy = "off"


@define(eq=False)
class Check:
    """
    One check. `verdict` comes first, then `end`; whoever cancels one of them has to `give_up`, too.

    @ivar reactor: opens the connections, and is the clock of the time-out.
    """

    reactor: Any
    resolver: Resolver
    target: TargetConfig
    how: How
    _conversations: list[Conversation] = field(init=False, factory=list)
    _deadline: float = field(init=False, default=0.0)

    async def verdict(self) -> None:
        """
        Try the target's addresses one after the other, each for an equal share of the time that is
        left, until one is healthy.

        @raise CheckFailed: none is; how.
        @raise CannotCheck: this machine could not try any of them.
        """
        self._deadline = self.reactor.seconds() + self.how.timeout
        ways = await self._ways()
        failures: list[FwdrelayError] = []
        for number, connect in enumerate(ways):
            try:
                await self._try(connect, self._left() / (len(ways) - number))
            except (CheckFailed, CannotCheck) as failed:
                failures.append(failed)
            else:
                return
        failed_checks = [each for each in failures if isinstance(each, CheckFailed)]
        if not failed_checks:
            raise failures[-1]
        if self.target.host and all(isinstance(each, NotConnected) for each in failed_checks):
            self.resolver.doubt(self.target.host)
        raise CheckFailed("; ".join(dict.fromkeys(map(str, failed_checks))))

    async def end(self) -> None:
        """
        Wait until all connections are closed. Those that are not when the check's time is up are closed
        then.
        """
        time_out = self.reactor.callLater(self._left(), self.give_up)
        try:
            for conversation in self._conversations:
                await conversation.closed
        finally:
            if time_out.active():
                time_out.cancel()

    def give_up(self) -> None:
        """Close all connections at once."""
        for conversation in self._conversations:
            conversation.give_up()

    def _left(self) -> float:
        left: float = self._deadline - self.reactor.seconds()
        return max(left, SHORTEST)

    async def _ways(self) -> Sequence[Connect]:
        """
        @return: for each address how to connect to it, one at least.
        """
        target = self.target
        if target.path:
            # "@name" is how an abstract Unix address is written; the kernel wants a NUL there.
            path = "\0" + target.path[1:] if target.path[0] == "@" else target.path
            return [lambda factory: self.reactor.connectUNIX(path, factory, timeout=None)]
        addresses = target.addresses or await self._resolve(target.host)
        bind = (self.how.bind, 0) if self.how.bind else None
        if bind is not None:
            family = isIPv6Address(bind[0])
            addresses = tuple(each for each in addresses if isIPv6Address(each) == family)
            if not addresses:
                name = "IPv6" if family else "IPv4"
                raise CheckFailed(f"no {name} address to be reached from {bind[0]}")

        def way(address: str) -> Connect:
            return lambda factory: self.reactor.connectTCP(
                address, target.port, factory, timeout=None, bindAddress=bind
            )

        return [way(address) for address in addresses]

    async def _resolve(self, host: str) -> tuple[str, ...]:
        resolving = self.resolver.resolve(host)
        if not resolving.called:
            resolving.addTimeout(self._left(), self.reactor)
        try:
            return await resolving
        except DialFailed as failed:
            raise CheckFailed(failed.detail) from None
        except DeferredTimeout:
            raise CheckFailed(f"{host} did not resolve within {self.how.timeout:g}s") from None

    async def _try(self, connect: Connect, share: float) -> None:
        """
        @param share: seconds.
        @raise CheckFailed: this address is not healthy.
        @raise CannotCheck: it could not be tried.
        """
        started = self.reactor.seconds()
        while True:
            left = max(started + share - self.reactor.seconds(), SHORTEST)
            conversation = Conversation(self.how.ask(self.target), self.how.send_proxy)
            self._conversations.append(conversation)
            conversation.open(connect)
            try:
                await conversation.outcome.addTimeout(left, self.reactor)
            except DeferredTimeout:
                failed = NotConnected if conversation.awaited == "connection" else CheckFailed
                # A little of it went by before; nobody wants to read of 0.999s.
                within = f"{share:.2g}" if share < 1 else f"{share:.3g}"
                raise failed(f"no {conversation.awaited} within {within}s") from None
            except QueueFull:
                if left <= QUEUE_FULL_DELAY:
                    raise
            else:
                return
            self._conversations.remove(conversation)
            await deferLater(self.reactor, QUEUE_FULL_DELAY)


def _why(failed: BaseException) -> FwdrelayError:
    """
    @param failed: how a connection could not be opened.
    """
    number = failed.errno if isinstance(failed, OSError) else getattr(failed, "osError", None)
    if not number:
        # Twisted takes EAGAIN for a connection under way, and epoll then tells of a hang-up.
        return QueueFull("its queue is full")
    # An IPv6 zone that this machine has not is told by the resolver, with a number of its own.
    text = clause(os.strerror(number) if number > 0 else str(failed.args[-1]))
    # What a socket could not be made or bound for is never the target's fault.
    if isinstance(failed, (OSError, error.ConnectBindError)) or number in _OUR_OWN:
        return CannotCheck(text)
    return NotConnected(text)

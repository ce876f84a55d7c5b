"""
Shaking hands: a side's transport becomes one that speaks TLS, before its session begins.

While it does, a protocol of its own stands in for the side, which hears of its transport again when
hands were shaken. Who is at the other end, and whether that is fine, is for whoever asked to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from .interfaces import IHandshakeProtocol, IPump


@implementer(IHandshakeProtocol, IHalfCloseableProtocol)
class Handshake(Protocol):
    """
    Stands in for `side`, which gets its transport back, changed, in each case before somebody is told.

    @param shaken: called when hands were shaken.
    @param failed: called with an `OpenSSL.SSL.Error`, for what OpenSSL says, or with what broke the
        connection. The transport is then still to be closed.
    """

    def __init__(
        self, side: Any, shaken: Callable[[], object], failed: Callable[[BaseException], object]
    ) -> None:
        self._side = side
        self._shaken = shaken
        self._failed = failed
        self._over = False

    def begin(self, pump: IPump, connection: Any) -> None:
        """
        @param pump: that has made the side's transport, which is paused; so is the one that it gets.
        @param connection: made for that transport's socket (`fwdrelay.tls`).
        """
        stream: Any = pump.start_tls(self._side.transport, connection)
        stream.protocol = self
        self._side.transport = stream

    def give_up(self) -> None:
        """Nobody wants to know any more; the transport is still to be closed."""
        self._step_aside()

    def _step_aside(self) -> bool:
        """@return: whether that is news."""
        if self._over:
            return False
        self._over = True
        self._side.transport.protocol = self._side
        return True

    def handshakeCompleted(self) -> None:
        if self._step_aside():
            self._shaken()

    def handshakeFailed(self, error: Exception) -> None:
        if self._step_aside():
            self._failed(error)

    def connectionReset(self, error: BaseException) -> None:
        """Nothing can come of it any more."""
        if self._step_aside():
            self._side.connectionReset(error)
            self._failed(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Closed by somebody else."""
        if self._step_aside():
            self._side.connectionLost(reason)
            self._failed(reason.value or ConnectionError("closed"))

    def readConnectionLost(self) -> None:
        """OpenSSL will say so."""

    def writeConnectionLost(self) -> None:
        """Nothing ends here."""


def shake_hands(pump: IPump, side: Protocol, connection: Any) -> Deferred[None]:
    """
    As a Deferred.

    @return: fires when hands were shaken; fails as `Handshake.failed` is called, or when it is cancelled.
    """

    def failed(error: BaseException) -> None:
        if not done.called:
            done.errback(Failure(error))

    handshake = Handshake(side, lambda: done.callback(None), failed)
    done: Deferred[None] = Deferred(lambda _: handshake.give_up())
    handshake.begin(pump, connection)
    return done

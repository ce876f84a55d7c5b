"""
Shaking hands: a side's transport becomes one that speaks TLS, before its session begins.

While it does, a protocol of its own stands in for the side, which hears of its transport again when
hands were shaken. Who is at the other end, and whether that is fine, is for whoever asked to judge.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from .interfaces import IHandshakeProtocol, IPump


def shake_hands(pump: IPump, side: Protocol, connection: Any) -> Deferred[None]:
    """
    Begin TLS on the transport of `side`, which is paused; it gets another one for it, paused too.

    @param pump: that has made the transport.
    @param connection: made for the transport's socket (`fwdrelay.tls`).
    @return: fires when hands were shaken; fails with `OpenSSL.SSL.Error`, for what OpenSSL says, or with
        what broke the connection. The transport is then still to be closed, as when it is cancelled.
    """
    handshake = _Handshake(side)
    plain: Any = side.transport
    stream: Any = pump.start_tls(plain, connection)
    stream.protocol = handshake
    side.transport = stream
    return handshake.done


@implementer(IHandshakeProtocol, IHalfCloseableProtocol)
class _Handshake(Protocol):
    """Stands in for `side`."""

    def __init__(self, side: Protocol) -> None:
        self._side = side
        self.done: Deferred[None] = Deferred(self._cancelled)

    def _step_aside(self) -> None:
        stream: Any = self._side.transport
        stream.protocol = self._side

    def _cancelled(self, done: Deferred[None]) -> None:
        self._step_aside()

    def handshakeCompleted(self) -> None:
        self._step_aside()
        self.done.callback(None)

    def handshakeFailed(self, error: Exception) -> None:
        self._step_aside()
        self.done.errback(error)

    def connectionReset(self, error: BaseException) -> None:
        """Nothing can come of it any more."""
        self._step_aside()
        side: Any = self._side
        side.connectionReset(error)
        if not self.done.called:
            self.done.errback(Failure(error))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Closed by somebody else, who has no more to ask."""
        self._side.connectionLost(reason)
        if not self.done.called:
            self.done.errback(reason)

    def readConnectionLost(self) -> None:
        """OpenSSL will say so."""

    def writeConnectionLost(self) -> None:
        """Nothing ends here."""

"""
The two ends of a session, as Twisted protocols.

A side only passes on what its transport says: bytes to the other side's transport, everything else to
the session. While the pump has fused two transports, the bytes don't come by here at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import ISideProtocol

if TYPE_CHECKING:
    from .session import Session


@implementer(ISideProtocol, IHalfCloseableProtocol)
class Side(Protocol):
    """
    One end of a session.

    @ivar transport: an `fwdrelay.interfaces.IStream`.
    @ivar received: bytes that this side has sent and that were passed on.
    @ivar heard: when it last sent something (the clock's seconds).
    @ivar ended: it has sent its last byte, and said so (FIN).
    @ivar delivered: the other side's end was passed on to it, after all its bytes.
    @ivar reset: what broke its connection, if something did.
    @ivar gone: its transport is closed.
    """

    transport: Any
    session: Session | None = None
    seconds: Callable[[], float]
    sink: Any
    received = 0
    heard = 0.0
    ended = False
    delivered = False
    reset: BaseException | None = None
    gone = False

    def relay_to(self, other: Side, seconds: Callable[[], float]) -> None:
        """From now on `other` gets the bytes of this side; `seconds` tells when it was heard."""
        self.sink = other.transport
        self.seconds = seconds
        self.heard = seconds()

    def discard_bytes(self) -> None:
        """
        What this side still sends has nowhere to go. It is read all the same, or closing would reset
        a peer that still has its answer to read.
        """
        self.dataReceived = _drop  # type: ignore[method-assign]
        self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        self.heard = self.seconds()
        self.sink.write(data)

    def readConnectionLost(self) -> None:
        self.ended = True
        if self.session is not None:
            self.session.side_ended(self)

    def writeConnectionLost(self) -> None:
        self.delivered = True
        if self.session is not None:
            self.session.end_delivered()

    def connectionReset(self, error: BaseException) -> None:
        self.reset = error
        if self.session is not None:
            self.session.side_reset(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone = True
        if self.session is not None:
            self.session.side_gone(self)


class UpstreamSide(Side):
    """The side that was dialed. It pauses itself until its session takes it."""

    def connectionMade(self) -> None:
        self.transport.pauseProducing()


def _drop(data: bytes) -> None:
    """Nobody is left to get this."""

"""
The two ends of a session, as Twisted protocols.

A side only passes on what its transport says: bytes to the other side's transport, everything else to
the session. While the pump has fused two transports, the bytes don't come by here at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import ISideProtocol
from ..wire.proxyprotocol import Version, header
from .portable import PortableSession

if TYPE_CHECKING:
    from .session import Session


@implementer(ISideProtocol, IHalfCloseableProtocol)
class Side(Protocol):
    """
    One end of a session.

    @ivar transport: an `fwdrelay.interfaces.IStream`.
    @ivar host: the peer's IP address, where somebody may ask for it; None for a Unix peer.
    @ivar sink: the other side's transport, once there is one.
    @ivar ended: it has sent its last byte, and said so (FIN).
    @ivar delivered: the other side's end was passed on to it, after all its bytes.
    @ivar reset: what broke its connection, if something did.
    @ivar gone: its transport is closed.
    """

    transport: Any
    session: Session | None = None
    host: str | None = None
    sink: Any
    ended = False
    delivered = False
    reset: BaseException | None = None
    gone = False
    _passed_on: tuple[int, float] | None = None

    @property
    def received(self) -> int:
        """How many bytes this side has sent that were passed on."""
        received: int = self.transport.received
        return received if self._passed_on is None else self._passed_on[0]

    @property
    def heard(self) -> float:
        """When the last of those came (the clock's seconds); 0: nothing yet."""
        heard: float = self.transport.heard
        return heard if self._passed_on is None else self._passed_on[1]

    def proxy_header(self, version: Version) -> bytes:
        """
        @return: what tells a target on whose behalf it is connected to.
        """
        return header(version, self.transport.getPeer(), self.transport.getHost())

    def introduce(self, portable: PortableSession) -> PortableSession:
        """
        @return: the same, with what this side knows of the client; for the client's side.
        """
        return evolve(portable, host=self.host)

    @property
    def discards(self) -> bool:
        """Whether nobody gets what it sends."""
        return self._passed_on is not None

    def discard_bytes(self) -> None:
        """
        What this side still sends has nowhere to go. It is read all the same, or closing would reset
        a peer that still has its answer to read.
        """
        self._passed_on = self.received, self.heard
        self.dataReceived = _drop  # type: ignore[method-assign]
        self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
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
    """
    The side that was dialed. It pauses itself until its session takes it.

    @param preface: what goes first, before TLS too: a PROXY header.
    """

    def __init__(self, preface: bytes = b"") -> None:
        self._preface = preface

    def connectionMade(self) -> None:
        self.transport.pauseProducing()
        if self._preface:
            self.transport.write(self._preface)


def _drop(data: bytes) -> None:
    """Nobody is left to get this."""

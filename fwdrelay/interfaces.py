"""
What the parts of the relay ask of each other across a seam.

The seam of the byte path is Twisted's own vocabulary: registering one transport as the other's
producer is what relays. A pump is what makes transports that take those words at their best; see
`fwdrelay.pump`.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IReactorTCP,
    IReactorUNIX,
    ITCPTransport,
)
from zope.interface import Attribute


class IStream(ITCPTransport, IPushProducer, IConsumer):
    """
    One side's transport: Twisted's verbs for a TCP or Unix stream, and what a relay must know
    besides.

    Two promises go beyond `ITCPTransport`. What a peer sent before it reset the connection is still
    delivered: `connectionReset` is told at once, `connectionLost` only when everything was read.
    And `stopProducing` does not close: how a session ends is the session's to decide.
    """

    received = Attribute("How many bytes were read from the peer.")
    heard = Attribute("When the last of them was read, by the clock; 0: nothing yet.")

    def unsent_here() -> int:
        """How many bytes written to this transport wait in this process."""

    def unsent() -> int:
        """
        How many bytes written to this transport its peer has not acknowledged yet: those in this
        process and those in the kernel. A transport that is closed or reset has none.
        """


class ISideProtocol(IProtocol):
    """
    What a pump's transports need of the protocol they carry: `IProtocol` and
    `twisted.internet.interfaces.IHalfCloseableProtocol`, and word of a reset.
    """

    def connectionReset(error: BaseException) -> None:
        """
        The peer reset the connection (or it timed out): nothing can be written to it any more. What
        it had sent before is still delivered by `dataReceived`, and `connectionLost` follows when
        that is done.
        """


class IPump(IReactorTCP, IReactorUNIX):
    """
    Moves the bytes of flows, by making the transports they flow through.

    A pump looks like the part of a reactor that connects and listens, so L{ClientCreator
    <twisted.internet.protocol.ClientCreator>} and server endpoints take it for one. All its stream
    transports provide `IStream`.
    """

    def adoptStreamPort(
        fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> IListeningPort:
        """As `twisted.internet.interfaces.IReactorSocket.adoptStreamPort`."""

    def stop() -> None:
        """Give back what is kept for use, once no transport is left."""

    def callLater(delay: float, call: Callable[..., object], *args: object) -> IDelayedCall:
        """As `twisted.internet.interfaces.IReactorTime.callLater`."""

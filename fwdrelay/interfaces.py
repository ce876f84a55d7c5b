"""
What the parts of the relay ask of each other across a seam, and what a plugin may implement.

Plugins are `IElectionPlugin`, `IDiscoveryPlugin` and `IAdmissionPlugin`: objects in a module of the
package `fwdrelay.plugins` that the configuration names. What they make is `IElection`, `IDiscovery`
and `IAdmission`; fwdrelay's own kinds implement those, too. `docs/plugins.md` has an example for each.

The seam of the byte path is Twisted's own vocabulary: registering one transport as the other's
producer is what relays. A pump is what makes transports that take those words at their best; see
`fwdrelay.pump`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from attrs import field, frozen
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHandshakeListener,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IReactorTCP,
    IReactorUNIX,
    ITCPTransport,
)
from zope.interface import Attribute, Interface

from .config.model import TargetConfig


class IStream(ITCPTransport, IPushProducer, IConsumer):
    """
    One side's transport: Twisted's verbs for a TCP or Unix stream, and what a relay must know
    besides.

    Two promises go beyond `ITCPTransport`. What a peer sent before it reset the connection is still
    delivered: `connectionReset` is told at once, `connectionLost` only when everything was read.
    And `stopProducing` does not close: how a session ends is the session's to decide.
    """

    secured = Attribute("The `OpenSSL.SSL.Connection` that its bytes go through; None: they don't.")
    lenient = Attribute(
        "Whether the peer may end without a close_notify once it was told of our end, if it says nothing"
        " after that. False, unless set; of no account without TLS."
    )
    received = Attribute(
        "How many bytes were read from the peer: those that TLS protects, where it does."
    )
    heard = Attribute("When the last of them was read, by the clock; 0: nothing yet.")

    def start_peeking(limit: int, seen: Callable[[bytes, bool], object]) -> None:
        """
        Show what the peer has sent, and leave it unread: to the protocol it is as if this transport were
        paused. For transports without TLS.

        @param limit: bytes that are looked at, at most.
        @param seen: called with all that is there, as often as there is more, and perhaps before this
            returns; the second argument says that nothing will come after that.
        """

    def stop_peeking() -> None:
        """Show nothing more. The transport is paused now."""

    def take(count: int) -> None:
        """Read the first bytes of those that were shown, for nobody; they do not count as received."""

    def linger() -> None:
        """
        Close, in a way that lets the peer read what it was sent last though it still sends: FIN, then for a
        moment what comes is dropped.
        """

    def unread_here() -> int:
        """How many bytes the peer has sent that nobody has read yet; with TLS, as they came."""

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


class IHandshakeProtocol(ISideProtocol, IHandshakeListener):
    """What the transport that `IPump.start_tls` makes needs of its protocol until it has shaken hands."""

    def handshakeFailed(error: Exception) -> None:
        """
        OpenSSL says no; an alert was sent, where there is one to send. The transport does nothing more but
        `linger` or `abortConnection`.

        @param error: an `OpenSSL.SSL.Error`.
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

    def start_tls(stream: IStream, connection: SSL.Connection) -> IStream:
        """
        Begin to shake hands on a transport of this pump.

        @param stream: paused, with nothing that waits to be written. It is over; its protocol, an
            `IHandshakeProtocol`, is the new one's.
        @param connection: made for its socket.
        @return: the transport in its place. It is paused.
        """

    def stop() -> None:
        """Give back what is kept for use, once no transport is left."""

    def callLater(delay: float, call: Callable[..., object], *args: object) -> IDelayedCall:
        """As `twisted.internet.interfaces.IReactorTime.callLater`."""


class ITarget(Interface):
    """A target as an election sees it."""

    label = Attribute("What log and metrics call it; no other target of its pool is called so.")
    weight = Attribute("Its share as the configuration or an operator has it, from 1 up.")
    share = Attribute("Its share now: `weight`, or a part of it while it starts slowly; above 0.")
    sessions = Attribute("How many sessions are on it or being dialed to it.")
    tier = Attribute(
        "Its backup and priority; candidates are of one tier, the lowest that has one left."
    )


class IElection(Interface):
    """How a target is elected for a session; one for each pool. Nothing here may wait."""

    def targets_changed(targets: Sequence[ITarget]) -> None:
        """
        The pool's targets are these now, in the order of the configuration, whether they are up or not.
        Called before the first `elect`, and when targets come, go or get another weight or tier; those
        that stay are the same objects.
        """

    def elect(candidates: Sequence[ITarget], client: str | None) -> ITarget:
        """
        @param candidates: those that may get the session, one at least, in the order of `targets_changed`:
            they are up, below their limits, and were not tried before for this session.
        @param client: the client's IP address; None for one that came by a Unix socket.
        @return: one of `candidates`.
        """


class IElectionPlugin(Interface):
    """Makes elections for pools whose `balance` names it."""

    name = Attribute("What the configuration calls it: letters, digits, `-`, `_`.")

    def make_election(argument: str) -> IElection:
        """
        @param argument: what stands behind the name and a colon; empty: nothing.
        @raise ValueError: with a sentence, for an argument that is wrong. Called when the configuration
            is read, and by `--check`.
        """


def _as_tuple(targets: Iterable[TargetConfig]) -> tuple[TargetConfig, ...]:
    return tuple(targets)


@frozen
class Found:
    """
    What a discovery found.

    @ivar targets: all there are, each time.
    @ivar ttl: seconds that this is good for; then it is asked again.
    """

    targets: tuple[TargetConfig, ...] = field(converter=_as_tuple)
    ttl: float


class IDiscovery(Interface):
    """Finds targets for a pool, again and again."""

    def discover() -> Awaitable[Found]:
        """
        Find them. May take as long as it wants, also to wait for news; is cancelled when nobody wants to
        know any more.

        @raise Exception: what was known before is kept, its text is logged once, and it is tried again
            later and later. `fwdrelay.errors.DiscoveryFailed` is for what can be expected.
        """


class IDiscoveryPlugin(Interface):
    """Makes discoveries for pools whose `discover` names it: `NAME:ARGUMENT`."""

    name = Attribute("What the configuration calls it: letters, digits, `-`, `_`.")

    def make_discovery(argument: str, reactor: object, nameservers: Sequence[str]) -> IDiscovery:
        """
        @param nameservers: those of the configuration, as `ADDR:PORT`; empty: the system's.
        @raise ValueError: with a sentence, for an argument that is wrong. Called when the configuration
            is read, and by `--check`; it must not begin anything.
        """


class IAdmission(Interface):
    """Decides who may open a session; one for each listener. Nothing here may wait."""

    def admit(client: str | None) -> str | None:
        """
        @param client: its IP address; None for one that came by a Unix socket.
        @return: None to let it in; else why not, for the log.
        """


class IAdmissionPlugin(Interface):
    """Makes admissions for listeners whose `admit.plugins` name it."""

    name = Attribute("What the configuration calls it: letters, digits, `-`, `_`.")

    def make_admission(argument: str, listener: str) -> IAdmission:
        """
        @param listener: its name.
        @raise ValueError: with a sentence, for an argument that is wrong. Called when the configuration
            is read, and by `--check`.
        """

"""
Accepting: Twisted's ports, made to survive a machine that has run out of something.

Twisted answers EMFILE by accepting and closing whoever waits, with a log line for each. Here the
port stops accepting for a moment instead (5 ms, doubling up to 1 s), so those who wait keep their
place in the kernel's queue, and says so once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any

from twisted.internet import main, tcp, unix
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..address import address_text
from ..config import KeepAlive
from .linger import stop_lingering
from .options import Options, make_options, set_options
from .spare import Spare

FIRST_PAUSE = 0.005
LONGEST_PAUSE = 1.0
_BATCH = 64
# As many as any kernel's queue takes; a bound, lest a flood keeps a relay from stopping.
_LONGEST_QUEUE = 1 << 16
_DONE = Failure(main.CONNECTION_DONE)
# accept(2): errors of the connection that was to be accepted; the next may be sound.
_OF_ONE_CONNECTION = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EINTR,
    }
)
_OF_THE_MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _PatientPort(tcp.Port):
    """
    How a port accepts; mixed in before one of Twisted's.

    @ivar spare: held while anybody is accepted.
    @ivar options: of the sockets it accepts; they have them from the listening socket, except those that
        were in the queue of an inherited one before it had them.
    """

    log = Logger()
    options: Options = ()
    _inherits_options = True
    spare: Spare
    pump: Any
    _pause = FIRST_PAUSE
    _short = False
    _waiting: IDelayedCall | None = None
    reactor: Any

    def doRead(self) -> None:
        """Accept a batch of connections; what goes wrong with one never reaches the next."""
        self._accept_up_to(_BATCH)

    def _accept_up_to(self, count: int) -> None:
        for _ in range(count):
            try:
                self.spare.hold()
                self._accept()
            except BlockingIOError:
                self._inherits_options = True
                # All who waited are in; only then is it over, or each of them would be told of.
                if self._short:
                    self._short = False
                    self.log.info(
                        "Accepting again on {address}.", address=address_text(self.getHost())
                    )
                return
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                if error.errno == errno.EINVAL and not self._listens():
                    self.stopReading()  # who shares the socket has shut it down, and is about to tell
                    return
                if error.errno in _OF_THE_MACHINE:
                    self._accept_later(error)
                    return
                raise
            self._pause = FIRST_PAUSE

    def _listens(self) -> bool:
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def _accept(self) -> None:
        """
        Accept one connection and make its transport.

        @raise OSError: of accept(2); BlockingIOError where nobody waits.
        """
        accepted, address = self._next()
        if not self._inherits_options:
            set_options(accepted, self.options)
        assert self.factory is not None
        transport = None
        try:
            protocol = self.factory.buildProtocol(address)
            assert protocol is not None
            transport = self._make_transport(accepted, protocol, address)
            protocol.makeConnection(transport)
        except Exception:
            # Whoever called would take it for accept(2)'s, or close this port for it.
            self.log.failure("A connection from {address} could not be taken", address=address)
            if transport is None:
                accepted.close()
            else:
                transport.abortConnection()

    def _next(self) -> tuple[Any, Any]:
        """
        @return: the next connection's socket and its peer's address.
        @raise OSError: of accept(2).
        """
        return self.socket.accept()

    def _make_transport(self, accepted: Any, protocol: Any, address: Any) -> Any:
        self.sessionno += 1
        return self.transport(accepted, protocol, address, self, self.sessionno, self.reactor)

    def _accept_later(self, error: OSError) -> None:
        if not self._short:
            self._short = True
            self.log.error(
                "Can't accept on {address}: {reason}. Waiting, and trying again at least once a"
                " second. Raise the limit (ulimit -n, LimitNOFILE=) or lower --max-sessions.",
                address=address_text(self.getHost()),
                reason=error.strerror,
            )
        self.stopReading()
        self._waiting = self.reactor.callLater(self._pause, self._accept_again)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _accept_again(self) -> None:
        self._waiting = None
        try:
            self.startReading()
        except OSError as error:  # it takes a descriptor, too
            self._accept_later(error)

    def loseConnection(self, connDone: Failure = _DONE) -> Any:
        """
        Stop listening. Who waits in the kernel's queue has been promised a connection: they are
        accepted first, or they would be reset.
        """
        if self._waiting is None and self.connected and not self.disconnecting:
            self._accept_up_to(_LONGEST_QUEUE)
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        closing = super().loseConnection(connDone)
        if self._shouldShutdown and self.disconnecting:
            # It is closed in the next turn. Whoever came until then would be let in, and reset by that.
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RD)
        return closing

    stopListening = loseConnection

    def close_for_all(self) -> None:
        """
        Its socket was inherited from our own supervisor, and is nobody else's: at the end it is shut down,
        as one that was bound here, so that nobody is let in who would be reset then.
        """
        self._shouldShutdown = True

    def leave(self) -> Any:
        """
        Stop listening at once, for others go on with the same socket: who waits in its queue is theirs.

        @return: as `stopListening`.
        """
        self._shouldShutdown = False
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        return super().loseConnection(_DONE)


class TCPPort(_PatientPort):
    """A listening TCP socket. One bound to `::` takes IPv4 too, whatever `net.ipv6.bindv6only` is."""

    def createInternetSocket(self) -> socket.socket:
        made: socket.socket = super().createInternetSocket()
        set_options(made, self.options)
        if self.interface == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return made

    def startListening(self) -> None:
        if self._preexistingSocket is not None:
            set_options(self._preexistingSocket, self.options)
            self._inherits_options = False
        super().startListening()


class UNIXPort(_PatientPort, unix.Port):
    """
    A listening Unix socket. One that was inherited stays in the file system: it is its owner's.

    @param address: its path; `@` in front: one of Linux's abstract names, which need no lock file.
    """

    def __init__(
        self,
        address: str | bytes,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        reactor: Any = None,
        wantPID: bool = False,
    ) -> None:
        path = os.fsencode(address)
        if path[:1] == b"@":
            super().__init__(b"\0" + path[1:], factory, backlog, mode, reactor)
        else:
            super().__init__(path, factory, backlog, mode, reactor, wantPID)

    def startListening(self) -> None:
        inherited = self._preexistingSocket
        self._inherited = inherited is not None
        if inherited is None:
            super().startListening()
            return
        # As Twisted's, which would give its file another mode; that is its owner's to say, as is how many may wait.
        # Its owner's socket stays open for who comes next; Twisted sees to that for TCP only.
        self._preexistingSocket = None
        self._shouldShutdown = False
        self.factory.doStart()  # type: ignore[union-attr]
        self.connected = True
        self.socket = inherited
        self.fileno = inherited.fileno  # type: ignore[method-assign]
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        if self._inherited:
            tcp.Port.connectionLost(self, reason)
            return
        try:
            super().connectionLost(reason)
        except OSError as failed:
            # The socket's or the lock's file: gone, or in a folder that belongs to somebody else since
            # privileges were shed. Twisted would leave it at that, with the port half closed.
            if failed.errno != errno.ENOENT:
                self.log.warn(
                    "Can't remove {path}: {why}.", path=failed.filename, why=failed.strerror
                )
            if self.lockFile is not None:
                with contextlib.suppress(OSError):
                    self.lockFile.unlock()
            tcp.Port.connectionLost(self, reason)


class ListeningPump:
    """
    How a pump listens; its base class.

    @ivar reactor: Twisted's reactor.
    @ivar options: of all its TCP sockets.
    @ivar spare: held while its ports accept.
    @cvar tcp_port: the class of its TCP ports.
    @cvar unix_port: the class of its Unix ports.
    """

    tcp_port: type[TCPPort]
    unix_port: type[UNIXPort]

    def __init__(self, reactor: Any, keepalive: KeepAlive) -> None:
        self.reactor = reactor
        self.options = make_options(keepalive)
        self.spare = Spare()

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        return self._listening(self.tcp_port(port, factory, backlog, interface, self.reactor))

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> IListeningPort:
        path = os.fsencode(address)
        return self._listening(self.unix_port(path, factory, backlog, mode, self.reactor, wantPID))

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> IListeningPort:
        port: TCPPort | UNIXPort
        if addressFamily == socket.AF_UNIX:
            port = self.unix_port._fromListeningDescriptor(self.reactor, fileDescriptor, factory)
        else:
            port = self.tcp_port._fromListeningDescriptor(
                self.reactor, fileDescriptor, addressFamily, factory
            )
        return self._listening(port)

    def _listening(self, port: TCPPort | UNIXPort) -> IListeningPort:
        port.pump = self
        port.options = self.options
        port.spare = self.spare
        port.startListening()
        self.spare.hold()
        return port

    def stop(self) -> None:
        """Give back what is kept for use: nobody is accepted any more."""
        self.spare.give_up()
        stop_lingering(self.reactor)

"""
The buffered pump: Twisted's own transports, which pause and resume each other.

What a flow holds in this process is bounded by Twisted's buffers: one transport takes at most 64 KiB
beyond what its socket takes, and then pauses its producer, which may add the one chunk it is reading.

The mixin here mends what stock transports lose (each is a scenario in `tests/scenarios`):

 - a failed write closes at once and drops what the peer had sent before (rule 14);
 - after a failed write has used up the socket's error, recv(2) tells a false, clean end;
 - a hang-up that was polled before the transport was resumed is taken for a clean end, unread bytes or not;
 - losing a consumer closes its producer with a FIN, as if all were well;
 - the cause of a loss (errno) is dropped;
 - a paused transport does not see its peer's reset (Twisted #11168).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import error, main, tcp, unix
from twisted.internet.interfaces import IConnector, IDelayedCall
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from ..config import KeepAlive
from ..interfaces import IPump, IStream
from .death_watch import DeathWatch, NoDeathWatch
from .linger import linger
from .options import leave_port_open, set_options
from .port import ListeningPump, TCPPort, UNIXPort
from .secure import make_secure, refuse_tls

_INT = struct.Struct("i")
# Where no epoll tells that there is more to peek at.
_LOOK_EVERY = 0.02


def _ask(sock: socket.socket, request: int) -> int:
    """ioctl(2) with an int for an answer: FIONREAD or TIOCOUTQ, see tcp(7)."""
    answer: int = _INT.unpack(fcntl.ioctl(sock.fileno(), request, b"\0\0\0\0"))[0]
    return answer


class _Stream(tcp.Connection):
    """What a relay needs beyond Twisted's stream transports; mixed in before one of them."""

    deaths: DeathWatch | NoDeathWatch
    protocol: Any
    reactor: Any

    socket: Any
    secured: Any = None
    received = 0
    heard = 0.0
    _shaking_hands = False
    _refused = False
    _soon: IDelayedCall | None = None
    _peeking: tuple[int, Callable[[bytes, bool], object]] | None = None
    _polling: IDelayedCall | None = None
    _paused = False
    _at_end = False
    _read_ended = False
    _reset: BaseException | None = None

    def pauseProducing(self) -> None:
        self._paused = True
        self.stopReading()

    def resumeProducing(self) -> None:
        self._paused = False
        if self.connected and not self.disconnecting and not self._read_ended:
            self.startReading()
            if self.secured is not None and self.socket.at_end:
                self._read_end_later()

    def stopProducing(self) -> None:
        """The consumer is gone. What becomes of this side is the session's to decide."""

    def unread_here(self) -> int:
        return _ask(self.socket, termios.FIONREAD) if self.connected else 0

    def unsent_here(self) -> int:
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def unsent(self) -> int:
        if not self.connected or self._reset is not None:
            return 0
        ours = self.unsent_here()
        if self.socket.family == socket.AF_UNIX:  # what left is in the peer's own queue
            return ours
        return ours + _ask(self.socket, termios.TIOCOUTQ)

    # What IStream adds.

    def start_peeking(self, limit: int, seen: Callable[[bytes, bool], object]) -> None:
        # A reactor would tell of bytes that are left unread again and again.
        self.pauseProducing()
        self._peeking = limit, seen
        if not self.deaths.watch_reads(self, True):
            self._polling = self.reactor.callLater(_LOOK_EVERY, self._look)
        self._peek(False)

    def _look(self) -> None:
        self._polling = self.reactor.callLater(_LOOK_EVERY, self._look)
        self._peek(False)

    def stop_peeking(self) -> None:
        self._peeking = None
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        else:
            self.deaths.watch_reads(self, False)

    def peer_spoke(self, at_end: bool) -> None:
        """The death watch has news, though not of a death."""
        self._peek(at_end)

    def _peek(self, at_end: bool) -> None:
        if self._peeking is None or not self.connected:
            return
        limit, seen = self._peeking
        try:
            data = self.socket.recv(limit, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as failed:
            self.connection_died(failed)
            return
        seen(data, at_end or not data)

    def take(self, count: int) -> None:
        try:
            while count > 0:
                count -= len(self.socket.recv(count)) or count
        except OSError as failed:
            self.reactor.callLater(0, self.connection_died, failed)

    def linger(self) -> None:
        if not self.connected:
            return
        self._stop_watching()
        self.stopReading()
        self.stopWriting()
        if self.secured is not None and not self._refused:
            with contextlib.suppress(OSError):
                self.socket.notify()
        raw = self.socket if self.secured is None else self.socket.release()
        self._closeSocket = _leave_open  # type: ignore[method-assign]
        self._aborting = True
        super().connectionLost(Failure(main.CONNECTION_DONE))
        self.secured = None
        # Not before: the reactor knows readers by their descriptors, and this one's was just taken out.
        linger(self.reactor, raw)

    @property
    def lenient(self) -> bool:
        """See `IStream`."""
        return self.secured is not None and bool(self.socket.lenient)

    @lenient.setter
    def lenient(self, lenient: bool) -> None:
        if self.secured is not None:
            self.socket.lenient = lenient

    def start_tls(self, connection: Any) -> None:
        """See `IPump`."""
        if self.connected and self.unsent_here():  # what Twisted would write in a moment
            self.doWrite()
        refuse_tls(self, bool(self.connected) and not self._aborting)
        self.socket = make_secure(self.socket, connection)
        self.secured = connection
        self._shaking_hands = True
        self._soon = self.reactor.callLater(0, self._begin)

    def _begin(self) -> None:
        self._soon = None
        self._step()

    def _step(self) -> None:
        """One step of the handshake; what OpenSSL waits for is not told, so either wakes it."""
        if not self._shaking_hands or not self.connected or self._aborting:
            return
        try:
            complete = self.socket.handshake()
        except SSL.Error as failed:
            self._stop_shaking_hands()
            self._refused = True
            self.protocol.handshakeFailed(failed)
            return
        if complete:
            self._stop_shaking_hands()
            self.protocol.handshakeCompleted()
            return
        self.startReading()
        if self.secured.want_write():
            self.startWriting()
        else:
            self.stopWriting()

    def _stop_shaking_hands(self) -> None:
        self._shaking_hands = False
        self.pauseProducing()
        self.stopWriting()

    def _read_end_later(self) -> None:
        """OpenSSL has read the end already, so nothing will tell that there is something to read."""
        if self._soon is None:
            self._soon = self.reactor.callLater(0, self._read_end)

    def _read_end(self) -> None:
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        self._soon = None
        if self._paused or not self.connected or self._read_ended:
            return
        why = self.doRead()
        if why is main.CONNECTION_DONE:
            self.stopReading()
            self.readConnectionLost(Failure(why))
        elif why is not None:
            self.connectionLost(Failure(why))

    def doWrite(self) -> Any:
        if self._shaking_hands:
            self._step()
            return None
        return super().doWrite()

    def _closeWriteConnection(self) -> None:
        if self.secured is not None:
            try:
                self.socket.notify()
            except BlockingIOError:
                self._writeDisconnected = False
                self.startWriting()
                return
            except OSError:
                pass  # the peer is gone; reading will tell
        super()._closeWriteConnection()

    def _postLoseConnection(self) -> Any:
        if self.secured is not None:
            with contextlib.suppress(OSError):
                self.socket.notify()
        return super()._postLoseConnection()

    def doRead(self) -> Any:
        if self._shaking_hands:
            self._step()
            return None
        try:
            data = self.socket.recv(self.bufferSize)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as failed:
            return failed
        if data:
            self.received += len(data)
            self.heard = self.reactor.seconds()
            self.protocol.dataReceived(data)
            if self.secured is not None and self.socket.at_end:
                self._read_end_later()
            return None
        self._at_end = True
        if self.secured is not None and self._reset is not None:
            # The peer has said so itself: that stands, whatever broke the connection afterwards.
            self._read_ended = True
            self.protocol.readConnectionLost()
            if self._was_aborted():
                return None
        return self._reset or main.CONNECTION_DONE

    def writeSomeData(self, data: bytes) -> Any:
        if not data:  # only an end to pass on; send(2) would fail where a Unix peer has closed
            return 0
        try:
            return self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as failed:
            return failed

    def readConnectionLost(self, reason: Failure) -> None:
        if not self._at_end:
            # The reactor took a hang-up for the end: it reads now, but didn't when it asked for
            # events, so what there is to read wasn't among them.
            if not self._paused:
                self.startReading()
            return
        self._read_ended = True
        super().readConnectionLost(reason)

    def connection_died(self, error: OSError) -> None:
        """The death watch has news; see `connectionLost`."""
        if self.secured is not None and not self._shaking_hands:
            # Whoever closes after its close_notify resets for ours: its end came first all the same.
            self.socket.reset = error
            self._read_end()
        if self.connected:
            self.connectionLost(Failure(error))

    def connectionLost(self, reason: Failure) -> None:
        """
        The connection is over; but when its peer reset it, what the peer had sent before is still
        in the kernel. It is read first, at the pace of whoever takes it.
        """
        if self._only_hung_up(reason):
            self.doWrite()
            return
        if self.connected and not self._aborting and not reason.check(error.ConnectionDone):
            self._shaking_hands = False
            if self._reset is None:
                self._reset = reason.value
                if self.secured is not None:
                    # What reading came to before is the cause, not what a write came to after it.
                    self._reset = self.socket.failed or reason.value
                    self.socket.reset = self._reset
                self._drop_unwritten()
                self.protocol.connectionReset(self._reset)
                if self._was_aborted():
                    return
            if not self._read_ended:
                unreadable = self.secured is not None and self.socket.failed is not None
                if not unreadable and _ask(self.socket, termios.FIONREAD):
                    if not self._paused:
                        self.startReading()
                    return
                if self.secured is None and getattr(self._reset, "errno", None) == errno.EPIPE:
                    # Linux's word for a reset that came after the peer's end (tcp_reset()).
                    self._read_ended = True
                    self.protocol.readConnectionLost()
                    if self._was_aborted():
                        return
        if hasattr(self, "socket"):
            self._stop_watching()
        super().connectionLost(reason)
        self.secured = None  # it has much memory of OpenSSL's

    def _only_hung_up(self, reason: Failure) -> bool:
        """
        Whether a Unix peer has closed while nothing but the other side's end was left to give it.
        epoll(7) says EPOLLHUP then, which Twisted takes for a loss if it is about to write only.
        """
        return bool(
            reason.check(error.ConnectionLost)
            and self.connected
            and not self._aborting
            and self._writeDisconnecting
            and not self._writeDisconnected
            and self.socket.family == socket.AF_UNIX
            and not self.unsent()
            and not self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        )

    def _stop_watching(self) -> None:
        self.stop_peeking()
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self.deaths.discard(self)

    def _was_aborted(self) -> bool:
        return self._aborting

    def _drop_unwritten(self) -> None:
        self.dataBuffer = b""
        self.offset = 0
        self._tempDataBuffer.clear()
        self._tempDataLen = 0
        self._writeDisconnected = True
        self.stopWriting()


def _leave_open(orderly: bool) -> None:
    """The socket is somebody else's now."""


class _Accepted(_Stream):
    server: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.deaths = self.server.pump.deaths
        self.deaths.add(self)


class _Dialed(_Stream, tcp.BaseClient):
    connector: Any

    def createInternetSocket(self) -> socket.socket:
        made: socket.socket = self.connector.pump.spare.make(super().createInternetSocket)
        return made

    def _connectDone(self) -> None:
        pump = self.connector.pump
        set_options(self.socket, pump.options)
        self.deaths = pump.deaths
        self.deaths.add(self)
        super()._connectDone()


@implementer(IStream)
class AcceptedTCP(_Accepted, tcp.Server):
    """A TCP connection that a client opened."""


@implementer(IStream)
class AcceptedUNIX(_Accepted, unix.Server):
    """A Unix connection that a client opened."""


@implementer(IStream)
class DialedTCP(_Dialed, tcp.Client):
    """A TCP connection to a target."""

    def createInternetSocket(self) -> socket.socket:
        made: socket.socket = super().createInternetSocket()
        if self.connector.bindAddress is not None:
            leave_port_open(made)
        return made


@implementer(IStream)
class DialedUNIX(_Dialed, unix.Client):
    """A Unix connection to a target."""

    def doConnect(self) -> None:
        """
        A Unix socket connects at once or not at all. EAGAIN says that the target's queue is full
        (unix(7)); Twisted takes it for EINPROGRESS, and would try again without a pause.
        """
        if not hasattr(self, "connector"):  # given up since this was asked for
            return
        number = self.socket.connect_ex(self.realAddress)
        if number:
            self.failIfNotConnected(error.getConnectError((number, os.strerror(number))))
        else:
            self._connectDone()


class _TCPPort(TCPPort):
    transport: Any = AcceptedTCP
    pump: BufferedPump


class _UNIXPort(UNIXPort):
    transport: Any = AcceptedUNIX
    pump: BufferedPump


class _TCPConnector(tcp.Connector):
    pump: BufferedPump

    def _makeTransport(self) -> DialedTCP:
        return DialedTCP(self.host, self.port, self.bindAddress, self, self.reactor)


class _UNIXConnector(unix.Connector):
    pump: BufferedPump

    def _makeTransport(self) -> Any:
        return DialedUNIX(self.address, self, self.reactor, self.checkPID)


@implementer(IPump)
class BufferedPump(ListeningPump):
    """Makes Twisted's own ports and connections, with what a relay needs mixed in."""

    tcp_port = _TCPPort
    unix_port = _UNIXPort

    def __init__(self, reactor: Any, keepalive: KeepAlive) -> None:
        super().__init__(reactor, keepalive)
        self.deaths: DeathWatch | NoDeathWatch
        self.deaths = DeathWatch(reactor) if hasattr(select, "epoll") else NoDeathWatch()
        self.callLater = reactor.callLater

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: ClientFactory[Any],
        timeout: float = 30,
        bindAddress: tuple[str, int] | None = None,
    ) -> IConnector:
        connector = _TCPConnector(host, port, factory, timeout, bindAddress, self.reactor)
        connector.pump = self
        connector.connect()
        return connector

    def start_tls(self, stream: Any, connection: Any) -> Any:
        stream.start_tls(connection)
        return stream

    def connectUNIX(
        self, address: str, factory: ClientFactory[Any], timeout: float = 30, checkPID: bool = False
    ) -> IConnector:
        connector = _UNIXConnector(address, factory, timeout, self.reactor, checkPID)
        connector.pump = self
        connector.connect()
        return connector

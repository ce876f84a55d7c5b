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

import errno
import fcntl
import os
import select
import socket
import struct
import termios
from typing import Any

from twisted.internet import error, main, tcp, unix
from twisted.internet.interfaces import IConnector
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from ..config import KeepAlive
from ..interfaces import IPump, IStream
from .death_watch import DeathWatch, NoDeathWatch
from .options import leave_port_open, set_options
from .port import ListeningPump, TCPPort, UNIXPort

_INT = struct.Struct("i")


def _ask(sock: socket.socket, request: int) -> int:
    """ioctl(2) with an int for an answer: FIONREAD or TIOCOUTQ, see tcp(7)."""
    answer: int = _INT.unpack(fcntl.ioctl(sock.fileno(), request, b"\0\0\0\0"))[0]
    return answer


class _Stream(tcp.Connection):
    """What a relay needs beyond Twisted's stream transports; mixed in before one of them."""

    deaths: DeathWatch | NoDeathWatch
    protocol: Any
    reactor: Any

    received = 0
    heard = 0.0
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

    def stopProducing(self) -> None:
        """The consumer is gone. What becomes of this side is the session's to decide."""

    def unsent_here(self) -> int:
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    def unsent(self) -> int:
        if not self.connected or self._reset is not None:
            return 0
        ours = self.unsent_here()
        if self.socket.family == socket.AF_UNIX:  # what left is in the peer's own queue
            return ours
        return ours + _ask(self.socket, termios.TIOCOUTQ)

    def doRead(self) -> Any:
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
            return None
        self._at_end = True
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
            if self._reset is None:
                self._reset = reason.value
                self._drop_unwritten()
                self.protocol.connectionReset(reason.value)
                if self._was_aborted():
                    return
            if not self._read_ended:
                if _ask(self.socket, termios.FIONREAD):
                    if not self._paused:
                        self.startReading()
                    return
                if getattr(self._reset, "errno", None) == errno.EPIPE:
                    # Linux's word for a reset that came after the peer's end (tcp_reset()).
                    self._read_ended = True
                    self.protocol.readConnectionLost()
                    if self._was_aborted():
                        return
        if hasattr(self, "socket"):
            self.deaths.discard(self)
        super().connectionLost(reason)

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

    def _was_aborted(self) -> bool:
        return self._aborting

    def _drop_unwritten(self) -> None:
        self.dataBuffer = b""
        self.offset = 0
        self._tempDataBuffer.clear()
        self._tempDataLen = 0
        self._writeDisconnected = True
        self.stopWriting()


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

    def connectUNIX(
        self, address: str, factory: ClientFactory[Any], timeout: float = 30, checkPID: bool = False
    ) -> IConnector:
        connector = _UNIXConnector(address, factory, timeout, self.reactor, checkPID)
        connector.pump = self
        connector.connect()
        return connector

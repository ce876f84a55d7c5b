"""
The spliced pump: the kernel moves the bytes (Linux).

Its transports (`fwdrelay.pump.stream`) live in an epoll set of their own (`fwdrelay.pump.loop`). Here
are the ports that accept them and the connectors that dial them, as lean as a session's set-up wants
them: no timer for a dial, no log line for a factory, an address made only when it is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import address, error
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IDelayedCall,
)
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from ..config import KeepAlive
from ..deadlines import Deadlines
from ..interfaces import IPump
from .loop import EDGE, READ, Later, Loop
from .options import leave_port_open, set_options
from .pipes import OwnPipe, Pipes
from .port import ListeningPump, TCPPort, UNIXPort, _PatientPort
from .secure import refuse_tls
from .stream import Stream
from .tcp_info import FlowOrigin, TCPLook, look
from .tls_stream import Handshakes, TLSStream

_STREAM = int(socket.SOCK_STREAM) | int(socket.SOCK_NONBLOCK)


class _LoopPort(_PatientPort):
    """A port in the loop's table, whose connections are streams."""

    pump: SplicedPump
    _listening_fd = -1
    _kind: tuple[int, int, int]

    def startReading(self) -> None:
        if self._listening_fd < 0:
            fd = self.socket.fileno()
            self.pump.loop.add(fd, self, select.EPOLLIN)
            self._listening_fd = fd
            # As plain numbers: Python makes enumeration members of them each time they are asked for.
            self._kind = int(self.socket.family), int(self.socket.type), self.socket.proto

    def stopReading(self) -> None:
        if self._listening_fd >= 0:
            fd, self._listening_fd = self._listening_fd, -1
            self.pump.loop.remove(fd)

    def ready(self, events: int) -> None:
        """Somebody waits to be accepted."""
        self.doRead()

    def go_on(self) -> None:
        """Never asked for."""

    def failed(self) -> None:
        """Accepting failed in a way nobody foresaw, and would again at once: pause."""
        self._accept_later(OSError(0, "an error that was logged above"))

    def _next(self) -> tuple[Any, Any]:
        # socket.accept() would make two Python objects and ask the system two things more.
        fd, peer = self.socket._accept()  # type: ignore[union-attr]
        os.set_blocking(fd, False)
        return socket.SocketType(*self._kind, fd), peer

    def _make_transport(self, accepted: Any, protocol: Any, address: Any) -> Stream:
        pump = self.pump
        fd = accepted.fileno()
        stream = Stream(pump.loop, pump.pipes, accepted, fd, protocol, address)
        pump.loop.add(fd, stream, READ | EDGE)
        return stream


class _LoopTCPPort(_LoopPort, TCPPort):
    """A listening TCP socket."""


class _LoopUNIXPort(_LoopPort, UNIXPort):
    """A listening Unix socket."""


@implementer(IConnector)
class Connecting:
    """
    One attempt to connect.

    @ivar transport: the stream, once connected.
    """

    __slots__ = (
        "_address",
        "_bind",
        "_factory",
        "_failing",
        "_fd",
        "_pump",
        "_socket",
        "bucket",
        "transport",
    )

    def __init__(
        self, pump: SplicedPump, factory: ClientFactory[Any], to: Any, bind: Any, timeout: float
    ) -> None:
        self._pump = pump
        self._factory = factory
        self._address = to
        self._bind = bind
        self._fd = -1
        self._socket: socket.SocketType | None = None
        self._failing: Later | None = None
        self.bucket: set[Any] | None = None
        self.transport: Stream | None = None
        self.connect()
        if self._fd >= 0 and timeout:
            pump.deadlines.set(self, pump.reactor.seconds() + timeout)

    def connect(self) -> None:
        """Begin."""
        to = self._address
        family = (
            socket.AF_UNIX
            if not isinstance(to, tuple)
            else socket.AF_INET6
            if ":" in to[0]
            else socket.AF_INET
        )
        loop = self._pump.loop
        sock = None
        try:
            sock = self._pump.spare.make(lambda: socket.SocketType(family, _STREAM))
            set_options(sock, self._pump.options)
            if self._bind is not None:
                leave_port_open(sock)
                sock.bind(self._bind)
            number = sock.connect_ex(to)
        except OSError as failed:
            number = failed.errno or errno.EINVAL
        if number not in (0, errno.EINPROGRESS):
            if sock is not None:
                sock.close()
            self._failing = loop.call_later(self._fail, (_connect_error(number),))
            return
        assert sock is not None
        self._socket = sock
        self._fd = sock.fileno()
        # A Unix socket connects at once, and is then writable: the first event says so.
        loop.add(self._fd, self, READ | select.EPOLLOUT | EDGE)

    def ready(self, events: int) -> None:
        """Connected, or not."""
        assert self._socket is not None
        if events & (select.EPOLLERR | select.EPOLLHUP):
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self._give_up(_connect_error(number))
                return
        if not events & select.EPOLLOUT:
            return
        pump = self._pump
        pump.deadlines.discard(self)
        protocol = self._factory.buildProtocol(self._address)
        fd, self._fd = self._fd, -1
        stream = Stream(pump.loop, pump.pipes, self._socket, fd, protocol, self._address)
        stream.watched = True
        pump.loop.replace(fd, stream)
        self.transport = stream
        self._socket = None
        assert protocol is not None
        protocol.makeConnection(stream)
        if events & ~select.EPOLLOUT and stream.fd >= 0:
            stream.ready(events & ~select.EPOLLOUT)

    def go_on(self) -> None:
        """Never asked for."""

    def failed(self) -> None:
        """An exception while connecting, not of the peer's making."""
        if self._fd >= 0:
            self._give_up(error.ConnectError(string="internal error"))
        elif self.transport is not None:
            self.transport.abortConnection()

    def overdue(self, now: float) -> None:
        """The attempt's time is up."""
        self._give_up(error.TimeoutError())

    def _give_up(self, reason: Exception) -> None:
        self.stopConnecting()
        self._fail(reason)

    def _fail(self, reason: Exception) -> None:
        self._factory.clientConnectionFailed(self, Failure(reason))

    def stopConnecting(self) -> None:
        """Close the attempt's socket; nobody is told."""
        self._pump.deadlines.discard(self)
        if self._failing is not None:
            self._failing.cancel()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._pump.loop.close(fd, self._socket)
            self._socket = None

    def disconnect(self) -> None:
        """Give up, or close what was connected."""
        if self.transport is not None:
            self.transport.loseConnection()
        else:
            self.stopConnecting()

    def getDestination(self) -> IAddress:
        """Where to."""
        to = self._address
        if not isinstance(to, tuple):
            return address.UNIXAddress(to)
        kind = address.IPv6Address if ":" in to[0] else address.IPv4Address
        return kind("TCP", *to[:2])


def _connect_error(number: int) -> Exception:
    failed: Exception = error.getConnectError((number, os.strerror(number)))
    return failed


class Adoption:
    """
    Two streams whose flows another process has kept until now.

    @param descriptors: of both sockets, and of the pipes of the flows up and down; they are its own.
    @param up: the origin of the flow from the first socket to the second; None: nothing is known.
    @param down: of the one back.
    @raise OSError: they are not what they should be, and are closed.
    @ivar client: the stream of the first socket.
    @ivar upstream: of the second.
    @ivar passed_up: how many bytes the flow up has carried so far; None: nobody knows.
    @ivar passed_down: the same of the flow down.
    """

    def __init__(
        self,
        pump: SplicedPump,
        descriptors: tuple[int, int, int, int],
        up: FlowOrigin | None,
        down: FlowOrigin | None,
    ) -> None:
        self._loop = pump.loop
        self._pipes: list[OwnPipe] = []
        left = list(descriptors)
        sockets: list[socket.SocketType] = []
        try:
            for _ in range(2):
                sockets.append(_plain_socket(left[0]))
                del left[0]
            for _ in range(2):
                self._pipes.append(OwnPipe.adopt(left[0]))
                del left[0]
            peers = [_peer(each) for each in sockets]
        except BaseException:
            for sock in sockets:
                sock.close()
            for pipe in self._pipes:
                pipe.close()
            for fd in left:
                os.close(fd)
            raise
        self.client, self.upstream = (
            Stream(pump.loop, pump.pipes, sock, sock.fileno(), None, peer)
            for sock, peer in zip(sockets, peers, strict=True)
        )
        looks = [look(each) for each in sockets]
        self.passed_up, client_ended = _so_far(up, looks[0], looks[1], self._pipes[0].held)
        self.passed_down, upstream_ended = _so_far(down, looks[1], looks[0], self._pipes[1].held)
        self._over = [
            (stream, ended)
            for stream, ended, seen in zip(
                (self.client, self.upstream), (client_ended, upstream_ended), looks, strict=True
            )
            if seen is not None and seen.closed
        ]

    def begin(
        self,
        client: Any,
        upstream: Any,
        received: tuple[int, int],
        in_the_way: Callable[[], object],
    ) -> None:
        """
        Connect both to their protocols and with each other; their flows go on soon, after what is at hand.

        @param received: how many bytes were read from each.
        @param in_the_way: see `Stream.keep`.
        """
        pairs = (self.client, self.upstream), (self.upstream, self.client)
        for (stream, other), protocol in zip(pairs, (client, upstream), strict=True):
            stream.protocol = protocol
            stream.registerProducer(other, True)
        up, down = self._pipes
        self.client.adopt(down, received[0], in_the_way)
        self.upstream.adopt(up, received[1], in_the_way)
        client.makeConnection(self.client)
        upstream.makeConnection(self.upstream)
        self._loop.later(self)

    def go_on(self) -> None:
        """What has happened is told before the loop tells what it sees of it."""
        streams = self.client, self.upstream
        for stream in streams:
            stream.serve()
        for stream, ended in self._over:
            stream.tell_end(ended)
        for stream in streams:
            stream.drive()

    def ready(self, events: int) -> None:
        """Never: it has no descriptor."""

    def failed(self) -> None:
        """An exception, not of a peer's making."""
        self.client.abortConnection()
        self.upstream.abortConnection()


def _so_far(
    origin: FlowOrigin | None, source: TCPLook | None, sink: TCPLook | None, held: int
) -> tuple[int | None, bool | None]:
    """
    @return: how many bytes a flow has carried, and whether its source has ended, as far as can be known.
    """
    if origin is None or source is None or sink is None:
        return None, None
    return origin.passed(source, sink, held), origin.fin_came(source, sink, held)


def _plain_socket(fd: int) -> socket.SocketType:
    """
    @raise OSError: it is no connection; `fd` stays as it is.
    """
    found = socket.socket(fileno=fd)
    kind = int(found.family), int(found.type), found.proto
    found.detach()
    if kind[1] != socket.SOCK_STREAM:
        raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
    os.set_blocking(fd, False)
    return socket.SocketType(*kind, fd)


def _peer(sock: socket.SocketType) -> Any:
    """As getpeername(2) has it; of one whose connection is over, nowhere."""
    with contextlib.suppress(OSError):
        return sock.getpeername()
    return "" if sock.family == socket.AF_UNIX else ("", 0)


@implementer(IPump)
class SplicedPump(ListeningPump):
    """
    @ivar loop: serves all its sockets.
    @ivar deadlines: of the dials under way.
    """

    tcp_port = _LoopTCPPort
    unix_port = _LoopUNIXPort

    def __init__(self, reactor: Any, keepalive: KeepAlive) -> None:
        super().__init__(reactor, keepalive)
        self.loop = Loop(reactor)
        self.pipes = Pipes(reactor)
        self.deadlines = Deadlines(reactor)
        self._handshakes = Handshakes(self.loop)

    def callLater(self, delay: float, call: Any, *arguments: Any) -> IDelayedCall:
        if delay:
            later: IDelayedCall = self.reactor.callLater(delay, call, *arguments)
            return later
        return self.loop.call_later(call, arguments)  # type: ignore[return-value]

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: ClientFactory[Any],
        timeout: float = 30,
        bindAddress: tuple[str, int] | None = None,
    ) -> IConnector:
        return Connecting(self, factory, (host, port), bindAddress, timeout)

    def connectUNIX(
        self, address: str, factory: ClientFactory[Any], timeout: float = 30, checkPID: bool = False
    ) -> IConnector:
        return Connecting(self, factory, address, None, timeout)

    def start_tls(self, stream: Any, connection: Any) -> TLSStream:
        refuse_tls(stream, stream.fd >= 0)
        return TLSStream(self.loop, self.pipes, self._handshakes, stream, connection)

    def adopt(
        self,
        descriptors: tuple[int, int, int, int],
        up: FlowOrigin | None,
        down: FlowOrigin | None,
    ) -> Adoption:
        """
        @return: two streams of sockets that another process has relayed between; see `Adoption`.
        """
        return Adoption(self, descriptors, up, down)

    def stop(self) -> None:
        """Give back what is kept for use: no stream is left."""
        self.deadlines.stop()
        self.pipes.close()
        super().stop()

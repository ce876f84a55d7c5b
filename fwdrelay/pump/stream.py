"""
The spliced pump's transport: a connected socket in the loop's table.

It is an ordinary Twisted transport, with one thing more. When two of them are registered with each
other as producer and consumer they are *fused*: bytes go from socket to socket and no protocol sees
them, a small read through one buffer that all streams share, a large one by splice(2) through a pipe.
Pausing, resuming and unregistering keep their meaning; unregistered, a stream's bytes go to its
protocol again.

What waits to be written belongs to the stream it is written to: a remainder in memory, or what a pipe
holds. While there is any, the stream is *blocked* and its producer isn't read, so what a flow holds is
bounded by one pipe or one buffer.

A flow may be *kept*: then its bytes go through a pipe of its own, and never through this process's memory.
So at any instant each of them is in a socket or in that pipe, and whoever holds these can go on with it,
here or elsewhere, whatever becomes of this process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import termios
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from twisted.internet import main
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import IStream
from .linger import linger
from .loop import EDGE, READ, Loop
from .pipes import OwnPipe, Pipe, Pipes
from .tcp_info import queued

_SIZE = 1 << 16
_BUFFER = bytearray(_SIZE)
_VIEW = memoryview(_BUFFER)
# How often, or by how many bytes, one flow is moved on before the others have their turn.
_ROUNDS = 16
_SPLICED_AT_ONCE = 1 << 20
_TURN = 1 << 20
# A flow whose splices bring less than this is better off with reads.
_CALM = 1 << 14
_FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_RESET = struct.pack("ii", 1, 0)
_NO_LINGER = struct.pack("ii", 0, 0)
# <linux/sockios.h>; see sockatmark(3), which Python has not.
_SIOCATMARK = 0x8905
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_STOPS_READS = _GONE | select.EPOLLPRI
_DONE = Failure(main.CONNECTION_DONE)
_ABORTED = Failure(ConnectionAborted())


@implementer(IStream)
class Stream:
    """
    A connected, non-blocking socket that is (or is about to be) in the loop's table.

    @ivar received: bytes read from the peer.
    @ivar heard: when the last of them was read.
    @ivar sink: the stream this one is fused to: its bytes go there.
    @ivar producer: who feeds this stream.
    @ivar unread: there may be something to read; edge-triggered, so this is what is known of it.
    @ivar hung: a short read proves nothing: the peer has ended or reset, and the end is still to be
        read; or there is something else that reads stop at (urgent data, descriptors on a Unix socket).
    @ivar at_end: the peer has ended or reset, and nothing comes after what is in the kernel now.
    @ivar urgent: there was urgent data, which splice(2) stops at as if nothing came after it.
    @ivar reset: what broke the connection.
    @ivar pending: bytes that wait to be written, after those in `pipe`.
    @ivar pipe: the pipe on loan to the flow into this stream, or that flow's own.
    @ivar shared: another process may hold the socket, too: closing it here says nothing to the peer.
    @ivar blocked: the socket takes no more; `pending` or `pipe` hold something.
    @ivar watched: writability is watched for, too.
    @cvar takes_splices: whether bytes can get to the peer without passing through this process.
    """

    takes_splices: ClassVar[bool] = True
    lenient = False

    __slots__ = (
        "__weakref__",
        "_bulk",
        "_disconnecting",
        "_finished",
        "_finishing",
        "_loop",
        "_peeking",
        "_peer",
        "_pipes",
        "_producer_paused",
        "_queued",
        "_streaming",
        "at_end",
        "blocked",
        "ended",
        "fd",
        "heard",
        "hung",
        "paused",
        "pending",
        "pipe",
        "producer",
        "protocol",
        "received",
        "reset",
        "shared",
        "sink",
        "socket",
        "unread",
        "urgent",
        "watched",
    )

    def __init__(
        self, loop: Loop, pipes: Pipes, sock: socket.SocketType, fd: int, protocol: Any, peer: Any
    ) -> None:
        self._loop = loop
        self._pipes = pipes
        self.socket = sock
        self.fd = fd
        self.protocol = protocol
        self._peer = peer
        self.received = 0
        self.heard = 0.0
        self.sink: Stream | None = None
        self.producer: Any = None
        self.reset: BaseException | None = None
        self.pending: bytearray | None = None
        self.pipe: Pipe | None = None
        self.unread = self.ended = self.paused = self.urgent = self.at_end = False
        self._peeking: tuple[int, Callable[[bytes, bool], object]] | None = None
        self.hung = sock.family == socket.AF_UNIX
        self.blocked = self.watched = self.shared = False
        self._bulk = self._queued = False
        self._streaming = self._producer_paused = False
        self._finishing = self._finished = self._disconnecting = False

    # What the loop says.

    def ready(self, events: int) -> None:
        """epoll has news: of bytes to read, of room to write, of the end."""
        if events & _STOPS_READS:
            self.hung = True
            if events & select.EPOLLPRI:
                self.urgent = True
            if events & _GONE:
                self.at_end = True
            if events & select.EPOLLERR:
                self._ask_error()
                if self.fd < 0:
                    return
        if self.blocked and events & select.EPOLLOUT:
            self._flush()
        if events & _READABLE and not self.ended:
            self.unread = True
            if not self.paused and self.fd >= 0:
                self.pull()

    def go_on(self) -> None:
        """The other flows have had their turn."""
        self._queued = False
        if self._producer_paused and not self.blocked and self.reset is None:
            self._producer_paused = False
            self.producer.resumeProducing()
        if self.unread and not self.paused and self.fd >= 0:
            self.pull()

    def failed(self) -> None:
        """An exception, not of the peer's making: nothing is certain any more."""
        self.abortConnection()

    def _go_on_later(self) -> None:
        if not self._queued:
            self._queued = True
            self._loop.later(self)

    # Reading.

    def pull(self) -> None:
        """Move what there is to read on, as far as it is taken and for as long as is fair."""
        sink = self.sink
        if sink is None:
            self._deliver()
            return
        if sink.blocked:
            return
        if self._bulk:
            self._splice(sink)
            return
        receive = self.socket.recv_into
        for _ in range(_ROUNDS):
            try:
                count = receive(_BUFFER)
            except BlockingIOError:
                self.unread = False
                return
            except OSError as error:
                self._lost(error)
                return
            if not count:
                self._end()
                return
            self.received += count
            self.heard = self._loop.now
            try:
                sent = sink.socket.send(_VIEW[:count])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                sink.broken(error)
                self._go_on_later()
                return
            if sent < count:
                sink.pending = bytearray(_VIEW[sent:count])
                sink._block()
                return
            if count == _SIZE:
                if not sink.takes_splices:
                    continue
                self._bulk = True
                self._splice(sink)
                return
            if not self.hung:
                self.unread = False
                return
        self._go_on_later()

    def _splice(self, sink: Stream) -> None:
        """`pull` for a flow that fills buffers: socket to pipe to socket, in the kernel."""
        pipe = sink.pipe
        if pipe is None:
            pipe = sink.pipe = self._pipes.borrow()
            if pipe is None:  # then with the buffer, one fill a turn
                self._read_on()
                return
        elif pipe.kept:
            self._splice_only(sink, pipe)
            return
        moved = 0
        for _ in range(_ROUNDS):
            try:
                count = os.splice(self.fd, pipe.write_end, _SPLICED_AT_ONCE, flags=_FLAGS)
            except BlockingIOError:
                # A short splice does not prove that the socket is empty; this does.
                sink._give_pipe_back()
                if self.urgent:
                    self._read_on()
                    return
                self.unread = False
                self._bulk = moved >= _CALM
                return
            except OSError as error:
                sink._give_pipe_back()
                self._lost(error)
                return
            if not count:  # the end, or urgent data before the end
                sink._give_pipe_back()
                self._read_on()
                return
            moved += count
            self.received += count
            self.heard = self._loop.now
            pipe.held = count
            if not sink._drain_pipe():
                if sink.reset is not None:
                    self._go_on_later()
                return
            if moved >= _TURN:
                break
        self._go_on_later()

    def _splice_only(self, sink: Stream, pipe: Pipe) -> None:
        """`pull` for a kept flow, whose pipe is empty: as `_splice`, but never in another way."""
        moved = 0
        for _ in range(_ROUNDS):
            try:
                count = os.splice(self.fd, pipe.write_end, _SPLICED_AT_ONCE, flags=_FLAGS)
            except BlockingIOError:
                if self.urgent:  # it may be what is in the way
                    self._give_up_keeping(pipe)
                    return
                self.unread = False
                return
            except OSError as error:
                self._lost(error)
                return
            if not count:
                self._find_end(pipe)
                return
            moved += count
            self.received += count
            self.heard = self._loop.now
            pipe.held = count
            if not sink._drain_pipe():
                if sink.reset is not None:
                    self._go_on_later()
                return
            if moved >= _TURN:
                break
        self._go_on_later()

    def _find_end(self, pipe: Pipe) -> None:
        """A splice brought nothing: it is the end, or there is something that splices stop at."""
        try:
            at_end = not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            at_end = False
        except OSError as error:
            self._lost(error)
            return
        if at_end:
            self._end()
        else:
            self._give_up_keeping(pipe)

    def _give_up_keeping(self, pipe: Pipe) -> None:
        assert isinstance(pipe, OwnPipe)
        pipe.in_the_way()
        self._read_on()

    def _read_on(self) -> None:
        """Splicing doesn't do just now; reading will."""
        self._bulk = False
        self._go_on_later()

    def _deliver(self) -> None:
        """`pull` for a stream that isn't fused: to its protocol."""
        if self._peeking is not None:
            self._peek()
            return
        for _ in range(_ROUNDS):
            try:
                data = self.socket.recv(_SIZE)
            except BlockingIOError:
                self.unread = False
                return
            except OSError as error:
                self._lost(error)
                return
            if not data:
                self._end()
                return
            self.received += len(data)
            self.heard = self._loop.now
            self.protocol.dataReceived(data)
            if self.fd < 0:
                return
            if len(data) < _SIZE and not self.hung:
                self.unread = False
                return
            if self.paused or self.sink is not None:
                break
        self._go_on_later()

    def _peek(self) -> None:
        """Show what is there; the next edge tells of more."""
        assert self._peeking is not None
        limit, seen = self._peeking
        self.unread = False
        try:
            data = self.socket.recv(limit, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        seen(data, self.at_end or not data)

    def _end(self) -> None:
        """There is nothing more to read."""
        self.unread = False
        if self.reset is None:
            self.ended = True
            self.protocol.readConnectionLost()
            return
        # The error was told before, to a write.
        if getattr(self.reset, "errno", None) == errno.EPIPE:
            # Linux's word for a reset that came after the peer's end (tcp_reset()).
            self.ended = True
            self.protocol.readConnectionLost()
            if self.fd < 0:
                return
        self._lost(self.reset)

    # The end by force.

    def _ask_error(self) -> None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.broken(OSError(number, os.strerror(number)))

    def broken(self, error: BaseException) -> None:
        """
        The connection is broken, which was learnt otherwise than by reading: what the peer sent before
        is still to be read.
        """
        self._break(error)
        if self.fd < 0:
            return
        if self.ended:
            self._lost(error)
            return
        self.hung = self.unread = True
        if not self.paused:
            self._go_on_later()

    def _break(self, error: BaseException) -> None:
        self._drop_outgoing()  # each time: a producer that stays registered may have brought more
        if self.reset is None:
            self.reset = error
            self.protocol.connectionReset(error)

    def _lost(self, error: BaseException) -> None:
        """The connection is broken, and everything was read."""
        self._break(error)
        if self.fd >= 0:
            self._close(Failure(error))

    def _close(self, reason: Failure) -> None:
        fd, self.fd = self.fd, -1
        if self.shared:
            if reason is _DONE:
                self._say_end()
            self._loop.close_shared(fd, self.socket)
        else:
            self._loop.close(fd, self.socket)
        self._closed(reason)

    def _say_end(self) -> None:
        """What close(2) would say, if this socket were nobody else's."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        with contextlib.suppress(OSError):  # the peer is gone
            self.socket.shutdown(socket.SHUT_RDWR)

    def _closed(self, reason: Failure) -> None:
        self._peeking = None
        if isinstance(self.pipe, OwnPipe):
            self.pipe.kept = False
        self._drop_outgoing()
        producer = self.producer
        self.unregisterProducer()
        if producer is not None and not isinstance(producer, Stream):
            producer.stopProducing()
        if self.sink is not None:
            self.sink.unregisterProducer()
        protocol, self.protocol = self.protocol, None
        protocol.connectionLost(reason)

    def _drop_outgoing(self) -> None:
        self.pending = None
        self.blocked = False
        self._give_pipe_back()

    # Writing.

    def _block(self) -> None:
        self.blocked = True
        if not self.watched:
            self.watched = True
            self._loop.change(self.fd, READ | select.EPOLLOUT | EDGE)

    def _drain_pipe(self) -> bool:
        """
        @return: whether the pipe is empty now; if not, this stream is blocked or broken.
        """
        pipe = self.pipe
        assert pipe is not None
        while pipe.held:
            try:
                pipe.held -= os.splice(pipe.read_end, self.fd, pipe.held, flags=_FLAGS)
            except BlockingIOError:
                self._block()
                return False
            except OSError as error:
                self.broken(error)
                return False
        return True

    def _give_pipe_back(self) -> None:
        pipe = self.pipe
        if pipe is None:
            return
        if pipe.kept:
            assert isinstance(pipe, OwnPipe)
            pipe.shrink()
            return
        self.pipe = None
        self._pipes.give_back(pipe)

    def _flush(self) -> None:
        """The socket takes bytes again: first those in the pipe, then the pending ones."""
        if self.pipe is not None:
            if self.pipe.held and not self._drain_pipe():
                return
            if self.pipe.kept:
                self._give_pipe_back()
        if self.pending is not None:
            try:
                sent = self.socket.send(self.pending)
            except BlockingIOError:
                return
            except OSError as error:
                self.broken(error)
                return
            if sent < len(self.pending):
                del self.pending[:sent]
                return
            self.pending = None
        self.blocked = False
        producer = self.producer
        if isinstance(producer, Stream) and not self._disconnecting:
            if producer.unread and not producer.paused:
                producer.pull()
            if not (self.blocked or (producer._bulk and producer._queued)):
                self._give_pipe_back()
        elif self._producer_paused or self._pulls():
            self._producer_paused = False
            producer.resumeProducing()
        else:
            self._emptied()

    def _emptied(self) -> None:
        """All is written and nobody writes any more: do what waited for it."""
        self._give_pipe_back()
        if self._disconnecting:
            self._close(_DONE)
        elif self._finishing and not self._finished:
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        with contextlib.suppress(OSError):  # the peer is gone; reading will tell
            self.socket.shutdown(socket.SHUT_WR)
        self.protocol.writeConnectionLost()

    # ITransport, ITCPTransport.

    def write(self, data: bytes) -> None:
        if self.fd < 0 or self.reset is not None or self._finishing or not data:
            return
        if self.blocked:
            if self.pending is None:
                self.pending = bytearray()
            self.pending += data
        else:
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._loop.call_later(self._broken_later, (error,))
                return
            if sent == len(data):
                if self.producer is not None and self._pulls():
                    self._producer_paused = True
                    self._go_on_later()
                return
            self.pending = bytearray(memoryview(data)[sent:])
            self._block()
        producer = self.producer
        if producer is not None and self._streaming and len(self.pending) > _SIZE:
            self._producer_paused = True
            producer.pauseProducing()

    def _pulls(self) -> bool:
        """Whether the producer is one that writes when it is asked to, until it unregisters itself."""
        producer = self.producer
        return not (producer is None or self._streaming or isinstance(producer, Stream))

    def _broken_later(self, error: OSError) -> None:
        if self.fd >= 0:
            self.broken(error)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        """End this direction once everything is written."""
        self._finishing = True
        if self.fd >= 0 and self.reset is None and not self.blocked and not self._finished:
            self._finish()

    def loseConnection(self) -> None:
        """Close once everything is written, that of a producer which is asked for more included."""
        self._disconnecting = True
        if self.fd >= 0 and not self.blocked and not self._pulls():
            self._close(_DONE)

    def abortConnection(self) -> None:
        """Close now, with RST."""
        if self.fd < 0:
            return
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(_ABORTED)

    def linger(self) -> None:
        """See `IStream`."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        self._loop.remove(fd)
        linger(self._loop.reactor, self._raw_socket())
        self._closed(_DONE)

    def _raw_socket(self) -> socket.SocketType:
        return self.socket

    def start_peeking(self, limit: int, seen: Callable[[bytes, bool], object]) -> None:
        """See `IStream`."""
        self._peeking = limit, seen
        self.paused = False
        if self.fd >= 0:
            self._peek()

    def stop_peeking(self) -> None:
        """See `IStream`."""
        self._peeking = None
        self.paused = self.unread = True

    def take(self, count: int) -> None:
        """See `IStream`."""
        try:
            while count > 0:
                count -= len(self.socket.recv(count)) or count
        except OSError as error:
            self._loop.call_later(self._broken_later, (error,))

    def unread_here(self) -> int:
        """See `IStream`."""
        if self.fd < 0:
            return 0
        return queued(self.fd, termios.FIONREAD)

    def unsent_here(self) -> int:
        return len(self.pending or b"") + (self.pipe.held if self.pipe is not None else 0)

    def unsent(self) -> int:
        if self.fd < 0 or self.reset is not None:
            return 0
        ours = self.unsent_here()
        if self.socket.family == socket.AF_UNIX:  # what left is in the peer's own queue
            return ours
        return ours + queued(self.fd, termios.TIOCOUTQ)

    def getHost(self) -> Any:
        return _address(self.socket.family, self.socket.getsockname())

    def getPeer(self) -> Any:
        return _address(self.socket.family, self._peer)

    def getHandle(self) -> socket.SocketType:
        """The socket, of the C type that Python's own wraps."""
        return self.socket

    def getTcpNoDelay(self) -> bool:
        return bool(self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    # What IStream adds.

    @property
    def secured(self) -> Any:
        """See `IStream`."""
        return None

    # What is kept.

    @property
    def may_be_kept(self) -> bool:
        """Whether it is one whose flows might be, as far as this stream goes."""
        return (
            type(self) is Stream
            and self.fd >= 0
            and self.reset is None
            and self._peeking is None
            and not self._disconnecting
            and (self.producer is None or isinstance(self.producer, Stream))
        )

    def keep(self, in_the_way: Callable[[], object]) -> OwnPipe | None:
        """
        Keep the flow into this stream from now on; what it holds is in its own pipe then.

        @param in_the_way: called when that turns out to be impossible any longer, before the flow goes on;
            `unkeep` is to be called then.
        @return: that pipe; None: it can't be just now, and is as it was.
        """
        source = self.producer
        if source is not None and source.urgent:
            if source.unread or source._at_mark():
                return None
            source.urgent = False  # read until there was nothing more
        try:
            pipe = self._own_pipe()
        except OSError:
            return None
        if self.pending is not None:
            pipe.take(self.pending)
            if self.pending:
                return None
            self.pending = None
        pipe.kept = True
        pipe.in_the_way = in_the_way
        self.shared = True
        if source is not None:
            source._bulk = True
        return pipe

    def _at_mark(self) -> bool:
        """Whether urgent data is what comes next; it is passed over when something comes after it."""
        return bool(queued(self.fd, _SIOCATMARK))

    def _own_pipe(self) -> OwnPipe:
        """
        @raise OSError: nothing has changed.
        """
        pipe = self.pipe
        if isinstance(pipe, OwnPipe):
            return pipe
        if pipe is not None and pipe.held:
            own = OwnPipe.of(pipe)
        else:
            own = OwnPipe.new()
            self._give_pipe_back()
        self.pipe = own
        return own

    def unkeep(self) -> None:
        """Move the flow into this stream in the ordinary way again."""
        pipe = self.pipe
        if isinstance(pipe, OwnPipe):
            pipe.kept = False
            if not self.blocked:
                self._give_pipe_back()

    def detach(self) -> None:
        """
        Forget the connection, of which nobody is told anything: another process holds its socket and goes on
        with it. Its protocol hears nothing any more.
        """
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        self._loop.close_shared(fd, self.socket)
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            pipe.close()
        self.sink = self.producer = self.protocol = self.pending = None
        self.blocked = False

    def adopt(self, pipe: OwnPipe, received: int, in_the_way: Callable[[], object]) -> None:
        """
        Be one whose flows another process has kept until now. Its producer is registered, if it is to have one,
        and it is not in the loop's table yet; see `drive`.

        @param pipe: of the flow into this stream.
        @param received: bytes read from the peer so far.
        """
        pipe.kept = True
        pipe.in_the_way = in_the_way
        self.pipe = pipe
        self.received = received
        self.blocked = pipe.held > 0
        self.shared = self.unread = True
        self.producer._bulk = True

    def serve(self) -> None:
        """Have the loop serve it, in a new table: for whoever has been adopted."""
        if self.fd >= 0:
            self.watched = True
            self._loop.add(self.fd, self, READ | select.EPOLLOUT | EDGE)

    def tell_end(self, ended: bool | None) -> None:
        """
        The connection is over. Why, the socket tells once, and perhaps it was told to somebody else.

        @param ended: whether the peer has said its end; None: nobody knows.
        """
        if self.fd < 0:
            return
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not number and ended is False:
            number = errno.ECONNRESET
        if number:
            self.broken(OSError(number, os.strerror(number)))

    def drive(self) -> None:
        """Move on what there is, without waiting to be told of it."""
        if self.fd >= 0 and self.blocked:
            self._flush()
        if self.fd >= 0 and self.unread and not (self.paused or self.ended):
            self.pull()

    # IPushProducer.

    def pauseProducing(self) -> None:
        self.paused = True
        if self.sink is not None and not self.sink.blocked:
            self.sink._give_pipe_back()

    def resumeProducing(self) -> None:
        self.paused = False
        if self.unread and self.fd >= 0:
            self._go_on_later()

    def stopProducing(self) -> None:
        """The consumer is gone. What becomes of this side is the session's to decide."""

    # IConsumer.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError(f"{self.producer!r} is registered already")
        if self.fd < 0:
            producer.stopProducing()
            return
        self.producer = producer
        if streaming and isinstance(producer, Stream):
            producer.sink = self
            if producer.unread and not producer.paused:
                producer._go_on_later()
        else:
            self._streaming = streaming
            if not streaming:
                producer.resumeProducing()

    def unregisterProducer(self) -> None:
        producer, self.producer = self.producer, None
        self._streaming = self._producer_paused = False
        if isinstance(producer, Stream):
            producer.sink = None
            producer._bulk = False
            if producer.unread and not producer.paused and producer.fd >= 0:
                producer._go_on_later()
        if (
            not self.blocked
            and self.fd >= 0
            and (self._disconnecting or self._finishing or self.pipe)
        ):
            self._emptied()


_READABLE = select.EPOLLIN | _GONE


def _address(family: int, name: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """
    @param name: as getpeername(2) gives it.
    """
    if family == socket.AF_UNIX:
        return UNIXAddress(name or None)
    if family == socket.AF_INET6:
        return IPv6Address("TCP", *name[:2])
    return IPv4Address("TCP", *name[:2])

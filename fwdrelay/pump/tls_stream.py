"""
The spliced pump's transport for TLS: a stream whose bytes go through OpenSSL on their way.

It stays what it was, a socket in the loop's table with the verbs of `fwdrelay.pump.stream`, and is fused
with plain streams and with its like: what one wake brings is decrypted into one buffer that all share,
several records at a time, and sent on at once.
"""

from __future__ import annotations

import contextlib
import select
from collections import deque
from typing import Any, ClassVar

from OpenSSL import SSL
from twisted.python.failure import Failure

from .loop import EDGE, READ, Loop
from .pipes import Pipes
from .secure import BLOCKED, LONGEST, READS, RECORD, VIEW, SecureSocket, make_secure
from .stream import _READABLE, _ROUNDS, Stream

KEPT = 1 << 24
"""Decrypted bytes that all slow sinks together may leave here before less is read at once."""


class Handshakes:
    """
    Who waits for a step of a handshake. Each costs a signature or the like, as long as hundreds of
    messages: one is done a turn, after whoever is being relayed has had theirs.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[TLSStream] = deque()
        self._current: TLSStream | None = None

    def add(self, stream: TLSStream) -> None:
        """It gets a step soon; once in the queue it has to leave it before it can be added again."""
        self._waiting.append(stream)
        if len(self._waiting) == 1:
            self._loop.later(self)

    def go_on(self) -> None:
        """One step."""
        self._current = self._waiting.popleft()
        if self._waiting:
            self._loop.later(self)
        self._current.step()
        self._current = None

    def failed(self) -> None:
        """An exception, not of the peer's making."""
        if self._current is not None:
            self._current.abortConnection()
            self._current = None

    def ready(self, events: int) -> None:
        """Never: it has no descriptor."""


class TLSStream(Stream):
    """
    @param stream: connected, with nothing that waits to be written; it is over.
    @param connection: made for its socket.
    @ivar shaking_hands: the handshake is under way.
    """

    takes_splices: ClassVar[bool] = False
    kept: ClassVar[int] = 0

    __slots__ = ("_asked", "_handshakes", "_keeps", "_refused", "shaking_hands")

    socket: SecureSocket  # type: ignore[assignment]

    def __init__(
        self, loop: Loop, pipes: Pipes, handshakes: Handshakes, stream: Stream, connection: Any
    ) -> None:
        secure: Any = make_secure(stream.socket, connection)
        super().__init__(loop, pipes, secure, stream.fd, stream.protocol, stream._peer)
        self._handshakes = handshakes
        self._keeps = 0
        self._asked = False
        self._refused = False
        self.shaking_hands = True
        self.paused = True
        self.watched = True
        stream.fd = -1
        stream.protocol = None
        loop.replace(self.fd, self)
        loop.change(self.fd, READ | select.EPOLLOUT | EDGE)
        self._ask()

    @property
    def secured(self) -> Any:
        return self.socket.connection

    @property
    def lenient(self) -> bool:
        return self.socket.lenient

    @lenient.setter
    def lenient(self, lenient: bool) -> None:
        self.socket.lenient = lenient

    # The handshake.

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._handshakes.add(self)

    def step(self) -> None:
        """One step of the handshake."""
        self._asked = False
        if self.fd < 0 or not self.shaking_hands:
            return
        try:
            complete = self.socket.handshake()
        except SSL.Error as failed:
            self.shaking_hands = False
            self._refused = True
            self.protocol.handshakeFailed(failed)
            return
        if complete:
            self.shaking_hands = False
            self.unread = True  # OpenSSL may have more than the handshake
            self.protocol.handshakeCompleted()

    # What the loop says.

    def ready(self, events: int) -> None:
        if self._refused:
            return
        if events & select.EPOLLERR:
            # Whoever closes after its close_notify resets for ours: its end came first all the same.
            if not (self.paused or self.shaking_hands or self.ended):
                self.pull()
            if self.fd >= 0:
                self._ask_error()
            if self.fd < 0:
                return
        if self.shaking_hands:
            self._ask()
            return
        if self.blocked and events & select.EPOLLOUT:
            self._flush()
        if (events & _READABLE or self.unread) and not self.ended:
            self.unread = True
            if not self.paused and self.fd >= 0:
                self.pull()

    # Reading.

    def pull(self) -> None:
        """Move on what there is to read; OpenSSL is asked until it has nothing, as no edge tells of that."""
        sink = self.sink
        if sink is None:
            self._deliver()
            return
        if sink.blocked:
            return
        if self._keeps:
            TLSStream.kept -= self._keeps
            self._keeps = 0
        limit = LONGEST if TLSStream.kept < KEPT else RECORD
        receive = self.socket.receive
        filled = 0
        failed: OSError | None = None
        count = BLOCKED
        try:
            for _ in range(READS):
                count = receive(filled, limit - filled)
                if count <= 0:
                    break
                filled += count
                if limit - filled < RECORD:
                    break
        except OSError as error:
            failed = error
        if filled:
            self.received += filled
            self.heard = self._loop.now
            self._pass_on(sink, filled)
            if self.fd < 0:
                return
        if failed is not None:
            self.unread = False
            self._lost(failed)
        elif count == BLOCKED:
            self.unread = bool(self._keeps)
        elif not count:
            self._end()
        else:
            self._go_on_later()

    def _pass_on(self, sink: Stream, count: int) -> None:
        try:
            sent = sink.socket.send(VIEW[:count])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            sink.broken(error)
            return
        if sent < count:
            sink.pending = bytearray(VIEW[sent:count])
            sink._block()
            self._keeps = count - sent
            TLSStream.kept += self._keeps
            self.unread = True  # so that this is pulled when the sink is done with them

    def _deliver(self) -> None:
        for _ in range(_ROUNDS):
            try:
                count = self.socket.receive(0, LONGEST >> 2)
            except OSError as error:
                self.unread = False
                self._lost(error)
                return
            if count == BLOCKED:
                self.unread = False
                return
            if not count:
                self._end()
                return
            self.received += count
            self.heard = self._loop.now
            self.protocol.dataReceived(bytes(VIEW[:count]))
            if self.fd < 0:
                return
            if self.paused or self.sink is not None:
                break
        self._go_on_later()

    # The end.

    def _end(self) -> None:
        """The peer has said so itself: that stands, whatever broke the connection afterwards."""
        self.unread = False
        self.ended = True
        self.protocol.readConnectionLost()
        if self.reset is not None and self.fd >= 0:
            self._lost(self.reset)

    def _break(self, error: BaseException) -> None:
        if self.socket.reset is None and isinstance(error, OSError):
            self.socket.reset = error
        super()._break(error)

    def _finish(self) -> None:
        """close_notify, then FIN: a peer that looks for only one of them understands, too."""
        try:
            self.socket.notify()
        except BlockingIOError:
            self._block()
            return
        except OSError:
            pass  # the peer is gone; reading will tell
        super()._finish()

    def _emptied(self) -> None:
        if self._disconnecting and not self._finished:
            with contextlib.suppress(OSError):
                self.socket.notify()
        super()._emptied()

    def loseConnection(self) -> None:
        said = self._finished or self.shaking_hands or self._refused
        if self.fd >= 0 and not (said or self.blocked or self._pulls()):
            with contextlib.suppress(OSError):
                self.socket.notify()
        super().loseConnection()

    def _closed(self, reason: Failure) -> None:
        TLSStream.kept -= self._keeps
        self._keeps = 0
        super()._closed(reason)

    def _raw_socket(self) -> Any:
        if not (self.shaking_hands or self._refused):
            with contextlib.suppress(OSError):
                self.socket.notify()
        return self.socket.release()

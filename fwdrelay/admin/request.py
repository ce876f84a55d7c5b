"""
One request, from its head to its answer: who may ask, what is asked, and how the answer is sent.

What the answers are is in `api`; who may ask is in `guard`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.server import Request
from zope.interface import implementer

from ..address import address_text
from .answer import Answer, Refused, head
from .guard import Asked, WrongToken
from .parameters import LARGEST_BODY

if TYPE_CHECKING:
    from .channel import Channel

_PEER = struct.Struct("3i")
_READING = frozenset({"GET", "HEAD"})


class AdminRequest(Request):
    """
    @ivar asked: its head.
    @ivar endless: whether its answer goes on until somebody leaves.
    @ivar gone: whether nobody is there any more to be answered.
    """

    log = Logger()
    defaultContentType = None
    channel: Channel
    content: BytesIO
    asked: Asked
    endless = False
    gone = False

    @property
    def who(self) -> str:
        """Who asks, for the log: an address; by a Unix socket, a user and a process (SO_PEERCRED in unix(7))."""
        transport = self.channel.transport
        peer = transport.getPeer()
        if not isinstance(peer, UNIXAddress):
            return address_text(peer)
        said = transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, uid, _ = _PEER.unpack(said)
        return f"uid {uid} (pid {pid})"

    def gotLength(self, length: int | None) -> None:
        """
        Its head has come.

        @param length: of its body, which comes now; None: that isn't said.
        """
        self.content = BytesIO()
        if length is not None and length > LARGEST_BODY:
            self.channel.too_large()

    def handleContentChunk(self, data: bytes) -> None:
        if self.content.tell() + len(data) > LARGEST_BODY:
            self.channel.too_large()
        else:
            self.content.write(data)

    def parseCookies(self) -> None:
        """Nobody wants any."""

    def process(self) -> None:
        """All of it has come: answer it."""
        self.asked = Asked(
            self.method.decode("latin-1"),
            self.uri.decode("latin-1"),
            self.clientproto.decode("latin-1"),
            self.requestHeaders,
        )
        answering = Deferred.fromCoroutine(self._answer())
        if not answering.called:
            self.notifyFinish().addErrback(self._left, answering)
        answering.addErrback(self._never)

    def _left(self, reason: Failure, answering: Deferred[None]) -> None:
        # What changes something is not left half done.
        if self.asked.method in _READING:
            answering.cancel()

    async def _answer(self) -> None:
        site = self.channel.site
        try:
            try:
                site.guard.check(self.asked)
            except WrongToken:
                site.wrong_token(self)
                raise
            answer = await site.api.answer(self)
        except Refused as refused:
            answer = refused.answer
        except CancelledError:
            return
        except Exception:
            self.log.failure(
                "{method} {path} could not be answered",
                method=self.asked.method,
                path=self.asked.path,
            )
            answer = Refused(
                HTTPStatus.INTERNAL_SERVER_ERROR, "something went wrong here: the log has it"
            ).answer
        if answer is not None and not self.gone:
            self.send(answer)

    def _never(self, failure: Failure) -> None:
        self.log.failure("An answer could not be sent", failure)
        if not self.gone:
            self.channel.abort()

    def write_head(self, answer: Answer) -> None:
        """Set status and headers; they are sent with the first byte."""
        status = HTTPStatus(answer.status)
        self.setResponseCode(status.value, status.phrase.encode())
        self.setHeader("Date", datetimeToString())
        for name, value in head(answer):
            self.setHeader(name, value)

    def send(self, answer: Answer) -> None:
        """All of it, or as it is taken."""
        self.write_head(answer)
        if isinstance(answer.body, bytes):
            if answer.status != HTTPStatus.NO_CONTENT:
                self.setHeader("Content-Length", str(len(answer.body)))
            self.write(answer.body)
            self.finish()
        elif self.asked.method == "HEAD":
            self.finish()
        else:
            _Pieces(self, answer.body, self.channel.site.reactor).go_on()

    def connectionLost(self, reason: Any) -> None:
        self.gone = True
        super().connectionLost(reason)


@implementer(IPushProducer)
class _Pieces:
    """Sends an answer piece by piece, one a turn, and none while the last one has not been taken."""

    def __init__(self, request: AdminRequest, pieces: Iterator[bytes], reactor: Any) -> None:
        self._request = request
        self._pieces = pieces
        self._reactor = reactor
        self._paused = False
        self._next: IDelayedCall | None = None
        request.notifyFinish().addErrback(lambda _: self.stopProducing())
        request.registerProducer(self, True)

    def go_on(self) -> None:
        """Send the next piece."""
        self._next = None
        try:
            piece = next(self._pieces, None)
        except Exception:
            # Its head is sent: all that is left to say is that this is not all of it.
            self._request.log.failure("An answer could not be sent whole")
            self._request.channel.abort()
            return
        if piece is None:
            self._request.unregisterProducer()
            self._request.finish()
            return
        self._request.write(piece)
        self._schedule()

    def _schedule(self) -> None:
        if not self._paused and self._next is None:
            self._next = self._reactor.callLater(0, self.go_on)

    def pauseProducing(self) -> None:
        self._paused = True
        self.stopProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._schedule()

    def stopProducing(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

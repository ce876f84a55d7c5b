"""
One HTTP connection: Twisted's, with limits.

What it may cost is bounded: so long for a request to come, so large a head and a body, so long for an answer
to be taken, so long between requests. What is refused before it is a request is answered here, as JSON like
everything else; whoever is still sending then is not reset before they could read it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from zope.interface import implementer

from .answer import Refused, head
from .parameters import LARGEST_BODY

if TYPE_CHECKING:
    from .site import AdminSite

REQUEST_WITHIN = 10.0
"""Seconds that a request may take to come, its body included."""
IDLE = 15.0
"""Seconds that a connection is kept for the next request."""
UNREAD = 30.0
"""Seconds in which something of what waits to be read has to be."""
CLOSING = 10.0
"""Seconds in which the last answer has to be read."""
LINGER = 2.0
"""Seconds that whoever still sends has for reading that it is refused."""
_DROPPED = 1 << 18
"""Bytes that are taken of it meanwhile."""


@implementer(IHalfCloseableProtocol)
class Channel(HTTPChannel):
    """
    @ivar since: when it began to be as it is: connected, in the midst of a request, between two.
    @ivar busy: whether a request is being answered.
    @ivar begun: whether a part of a request has come.
    @ivar leaving: whether it is about to be closed.
    """

    site: AdminSite
    transport: Any
    _networkProducer: Any
    timeOut = None  # Twisted's own, which each byte would put off
    since = 0.0
    busy = begun = leaving = False
    _refused = _unread = False
    _dropped = 0
    _timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        self._watch()
        self.site.joined(self)

    def _watch(self) -> None:
        """It is something else that has to happen within some time now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.since = self.site.reactor.seconds()
        if self._refused:
            self._later(LINGER, self.abort)
        elif self.leaving:
            self._later(CLOSING, self.abort)
        elif self._unread:
            self._later(UNREAD, self.abort)
        elif self.begun:
            self._later(REQUEST_WITHIN, self._too_slow)
        elif not self.busy:
            self._later(IDLE, self.loseConnection)

    def _later(self, seconds: float, act: Any) -> None:
        def now() -> None:
            self._timer = None
            act()

        self._timer = self.site.reactor.callLater(seconds, now)

    def _too_slow(self) -> None:
        self.refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the request did not come within {REQUEST_WITHIN:g} seconds",
        )

    # ------------------------------------------------------------------------ what comes

    def dataReceived(self, data: bytes) -> None:
        if self._refused:
            self._drop(len(data))
            return
        if not self.busy and not self.begun:
            self.begun = True
            self._watch()
        super().dataReceived(data)

    def headerReceived(self, line: bytes) -> bool:
        try:
            received: bool = super().headerReceived(line)
        except ValueError:  # int() reads no Content-Length of thousands of digits
            self.too_large()
            return False
        return received

    def lineReceived(self, line: bytes) -> None:
        if not self._refused:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        if not self._refused:
            super().rawDataReceived(data)

    def allContentReceived(self) -> None:
        if self._refused:
            return
        self.begun, self.busy = False, True
        self._watch()
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        self.busy = False
        super().requestDone(request)  # and on to the next, which may be there already
        if not self.busy and not self.leaving:
            self._watch()

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"a line has {self.MAX_LENGTH} bytes at most",
        )

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(
            HTTPStatus.BAD_REQUEST,
            f"this is not HTTP/1.1 (RFC 9112), or its head has more than {self.totalHeadersSize} bytes",
        )

    def _send100Continue(self) -> None:
        if not self._refused:
            super()._send100Continue()

    def too_large(self) -> None:
        """Refuse a body."""
        self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has {LARGEST_BODY} bytes at most")

    def refuse(self, status: HTTPStatus, sentence: str) -> None:
        """Answer what is no request, or none yet, and close; what else comes is dropped."""
        if self._refused or self.leaving:
            return
        self._refused = True
        self.persistent = False
        self.clearLineBuffer()
        answer = Refused(status, sentence).answer
        assert isinstance(answer.body, bytes)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            *(f"{name}: {value}" for name, value in head(answer)),
            f"Content-Length: {len(answer.body)}",
            "Connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + answer.body)
        self._networkProducer.unregisterProducer()
        self.transport.loseWriteConnection()
        self._watch()

    def _drop(self, count: int) -> None:
        self._dropped += count
        if self._dropped > _DROPPED:
            self.transport.stopReading()

    # ------------------------------------------------------------------------ what goes

    def pauseProducing(self) -> None:
        if not self._unread:  # it is called for each write
            self._unread = True
            self._watch()
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._unread = False
        self._watch()
        super().resumeProducing()

    # ------------------------------------------------------------------------ the end

    def readConnectionLost(self) -> None:
        """
        It asks no more, and may be gone; or it waits for its answer, as `nc -N` does.
        """
        if self.busy and not self.requests[0].endless:
            self.persistent = False
        else:
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """All was sent that will be."""

    def loseConnection(self) -> None:
        """Close it, as soon as what it was answered has been taken."""
        if self.leaving:
            return
        self.leaving = True
        super().loseConnection()
        self._watch()

    def abort(self) -> None:
        """Close it now."""
        self.leaving = True
        self.transport.abortConnection()

    def stop(self) -> None:
        """Answer no other request."""
        if self.busy:
            self.persistent = False
        else:
            self.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.site.left(self)
        super().connectionLost(reason)

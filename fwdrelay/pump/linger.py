"""
The last moment of a connection that ends while its peer still sends: FIN, then what comes is read and
dropped until the peer has ended, too.

Closed with unread input, the kernel would send RST, and the peer's kernel drop what it had not read yet:
an alert that says why, for example (RFC 9293, section 3.6.1; nginx calls it a lingering close). It is a
courtesy, so it is short, and few get it at a time.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

PATIENCE = 1.0
"""Seconds."""
MOST = 256
"""How many at a time; whoever comes then is closed at once."""
MOST_BYTES = 1 << 18
"""That are dropped for one peer."""
_lingering: set[Lingering] = set()


@implementer(IReadDescriptor)
class Lingering:
    """A socket that is about to be closed."""

    def __init__(self, reactor: Any, sock: Any) -> None:
        self._reactor = reactor
        self._socket = sock
        self._left = MOST_BYTES
        reactor.addReader(self)
        _lingering.add(self)
        self._timer = reactor.callLater(PATIENCE, self._close)

    def fileno(self) -> int:
        fd: int = self._socket.fileno()
        return fd

    def logPrefix(self) -> str:
        return type(self).__name__

    def doRead(self) -> None:
        """Drop what came."""
        try:
            count = len(self._socket.recv(1 << 16))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._left -= count
        if not count or self._left <= 0:
            self._timer.cancel()
            self._close()

    def _close(self) -> None:
        _lingering.discard(self)
        self._reactor.removeReader(self)
        self._socket.close()

    def connectionLost(self, reason: Any) -> None:
        """The reactor disconnects everything."""
        if self._timer.active():
            self._timer.cancel()
        self._close()


def linger(reactor: Any, sock: Any) -> None:
    """
    Close a socket soon, which is nobody else's any more.

    @param sock: connected, non-blocking; a reset one is closed at once.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        if len(_lingering) < MOST:
            Lingering(reactor, sock)
            return
    sock.close()


def stop_lingering(reactor: Any) -> None:
    """Close those of that reactor now."""
    for each in [each for each in _lingering if each._reactor is reactor]:
        each.connectionLost(None)

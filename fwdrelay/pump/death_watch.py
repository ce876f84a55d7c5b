"""
Knowing that a paused transport's peer is gone.

A reactor watches a transport for what it may do with it; one that is paused and has nothing to write
is not watched at all, so a reset peer is noticed only when the transport is resumed (Twisted #11168).
A relay pauses for long: while it dials, and while the other side is slow. This watch has an epoll set
of its own in which each transport stays from birth to close, asking for nothing but news of errors.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

_READS = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLRDHUP", 0)


class Watched(Protocol):
    """A transport that can be told that its connection died."""

    def fileno(self) -> int:
        """As of a socket."""

    def getHandle(self) -> socket.socket:
        """The socket."""

    def connection_died(self, error: OSError) -> None:
        """The kernel gave the connection up (reset, keepalive, user time-out)."""

    def peer_spoke(self, at_end: bool) -> None:
        """There is something to read, or an end; only where that is asked for."""


@implementer(IReadDescriptor)
class DeathWatch:
    """An epoll set (joined to the reactor) for the errors of all transports of one pump."""

    log = Logger()

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        self._watched: dict[int, Watched] = {}
        self._epoll: select.epoll | None = None

    def add(self, transport: Watched) -> None:
        """
        Watch `transport` until `discard` is called, which must be before its socket closes. Where the
        system has run out of descriptors or watches, it goes unwatched.
        """
        fd = transport.fileno()
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._reactor.addReader(self)
            # Errors and hang-ups are always reported; edge-triggered, so each is reported once.
            self._epoll.register(fd, select.EPOLLET)
        except OSError:
            return
        self._watched[fd] = transport

    def discard(self, transport: Watched) -> None:
        """Stop watching; does nothing for one that isn't watched. The last one takes the set with it."""
        fd = transport.fileno()
        if self._watched.pop(fd, None) is None:
            return
        assert self._epoll is not None
        if self._watched:
            self._epoll.unregister(fd)
        else:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    def watch_reads(self, transport: Watched, wanted: bool) -> bool:
        """
        Tell, from now on or no more, when there is something to read, once for each time that more came.

        @return: whether it can be told.
        """
        fd = transport.fileno()
        if self._watched.get(fd) is not transport:
            return False
        assert self._epoll is not None
        self._epoll.modify(fd, select.EPOLLET | (_READS if wanted else 0))
        return True

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """Tell those whose connections died. A hang-up without an error is an end, not a death."""
        assert self._epoll is not None
        for fd, event in self._epoll.poll(0, 64):
            transport = self._watched.get(fd)
            if transport is None:
                continue
            if event & select.EPOLLERR:
                number = transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    self._tell(transport.connection_died, OSError(number, os.strerror(number)))
                    continue
            if event & _READS:
                self._tell(transport.peer_spoke, bool(event & select.EPOLLRDHUP))

    def _tell(self, told: Callable[[Any], None], news: object) -> None:
        try:
            told(news)
        except Exception:
            # Or the rest of the batch would never be heard of again.
            self.log.failure("News of a transport could not be dealt with")

    def connectionLost(self, reason: Any) -> None:
        """The reactor is disconnecting everything."""

    def logPrefix(self) -> str:
        return type(self).__name__


class NoDeathWatch:
    """Where there is no epoll: a paused transport learns of its peer's death when it is resumed."""

    def add(self, transport: Watched) -> None:
        """Nothing."""

    def discard(self, transport: Watched) -> None:
        """Nothing."""

    def watch_reads(self, transport: Watched, wanted: bool) -> bool:
        """
        @return: that it can't be told.
        """
        return False

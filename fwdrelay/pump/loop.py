"""
One edge-triggered epoll set for all sockets of the spliced pump, joined to Twisted's reactor.

A reactor dispatches each event through a logging context and asks epoll for every pause and resume;
here a socket is registered once, for good, and a batch of events is served by plain calls. Two ways
to join:

 - *inverted*, where the reactor is Twisted's epoll reactor: its epoll set becomes a member of ours,
   and its `doIteration` is ours, so a wake costs one system call;
 - *nested*, anywhere else: our set is one of the reactor's readers, through public API alone.

Nothing here knows what a stream is: it serves whatever is in its table.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI
EDGE = select.EPOLLET
# A batch is bounded so that timers and the reactor's own descriptors get their turn.
_BATCH = 512
# After a batch it pays to look again at once: what was answered is often answered in turn.
_LOOKS = 3


class Served(Protocol):
    """What can be in the table of a loop."""

    def ready(self, events: int) -> None:
        """epoll has news of its descriptor."""

    def go_on(self) -> None:
        """Asked for by `Loop.later`."""

    def failed(self) -> None:
        """One of the above raised an exception, which was logged."""


class Later:
    """A call that waits for the end of the batch; as much of `IDelayedCall` as its users need."""

    __slots__ = ("arguments", "call")

    def __init__(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.call: Callable[..., object] | None = call
        self.arguments = arguments

    def cancel(self) -> None:
        """Don't."""
        self.call = None

    def active(self) -> bool:
        """Whether it is still to be called."""
        return self.call is not None


@implementer(IReadDescriptor)
class Loop:
    """
    @param reactor: Twisted's reactor.
    @ivar now: the reactor's time at the beginning of this batch.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.now: float = reactor.seconds()
        self._table: dict[int, Served] = {}
        self._epoll: select.epoll | None = None
        self._reactor_poll: Callable[[float], None] | None = None
        self._reactor_fd = -1
        self._again: deque[Served] = deque()
        self._calls: deque[Later] = deque()
        self._closing: list[Any] = []
        self._serving = False

    # The table.

    def add(self, fd: int, served: Served, events: int) -> None:
        """Serve `served` for `events` of `fd`, until `close`."""
        if self._epoll is None:
            self._join()
        assert self._epoll is not None
        self._epoll.register(fd, events)
        self._table[fd] = served

    def change(self, fd: int, events: int) -> None:
        """From now on serve other events of `fd`; those that are there already are told again."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def replace(self, fd: int, served: Served) -> None:
        """From now on `served` is served for what `fd` is registered for."""
        self._table[fd] = served

    def remove(self, fd: int) -> None:
        """Serve `fd` no more; it stays open."""
        del self._table[fd]
        assert self._epoll is not None
        self._epoll.unregister(fd)
        self._leave_if_idle()

    def close(self, fd: int, sock: Any) -> None:
        """
        Serve `fd` no more, and close its socket: at the end of the batch, so that no event of the batch
        can be taken for one of a successor with the same number.
        """
        del self._table[fd]
        self._close(sock)

    def close_shared(self, fd: int, sock: Any) -> None:
        """
        As `close`, of a socket that another process may hold, too. epoll watches what is open, not
        descriptors (epoll(7)): left to close(2), it would tell of it as long as that process lives, under a
        number that is somebody else's by then.

        @param fd: may be one that is not served yet.
        """
        if self._table.pop(fd, None) is not None:
            assert self._epoll is not None
            self._epoll.unregister(fd)
        self._close(sock)

    def _close(self, sock: Any) -> None:
        if self._serving:
            self._closing.append(sock)
        else:
            sock.close()
        self._leave_if_idle()

    # What is not to be done right now.

    def later(self, served: Served) -> None:
        """Call its `go_on` in this or the next batch, after all events at hand."""
        self._again.append(served)
        self._wake()

    def call_later(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> Later:
        """As the reactor's `callLater(0)`, but without its timer: at the end of the batch."""
        later = Later(call, arguments)
        self._calls.append(later)
        self._wake()
        return later

    def _wake(self) -> None:
        if self._epoll is None:
            self._join()
        if not self._serving and self._reactor_poll is None:
            self.reactor.callLater(0, self.doRead)

    # Joining the reactor.

    def _join(self) -> None:
        self._epoll = select.epoll()
        reactor = self.reactor
        try:
            self._reactor_fd = reactor._poller.fileno()
            self._reactor_poll = reactor.doPoll
            if reactor.doIteration.__func__ is not reactor.doPoll.__func__:
                raise AttributeError("somebody else polls for this reactor")
        except AttributeError:
            self._reactor_poll = None
            reactor.addReader(self)
        else:
            self._epoll.register(self._reactor_fd, select.EPOLLIN)
            reactor.doIteration = self.poll

    def _leave_if_idle(self) -> None:
        if self._table or self._serving or self._again or self._calls or self._epoll is None:
            return
        if self._reactor_poll is None:
            self.reactor.removeReader(self)
        else:
            self._reactor_poll = None
            del self.reactor.doIteration
        self._epoll.close()
        self._epoll = None

    # Serving.

    def poll(self, timeout: float | None) -> None:
        """
        Wait for events and serve them; the reactor's `doIteration`.

        @param timeout: seconds; None: for ever.
        """
        epoll = self._epoll
        assert epoll is not None
        for _ in range(_LOOKS):
            if self._again or self._calls:
                timeout = 0
            try:
                events = epoll.poll(-1 if timeout is None else timeout, _BATCH)
            except InterruptedError:
                return
            if not events and not self._again and not self._calls:
                return
            self._serve(events)
            if self._epoll is not epoll or len(events) < 2:
                return
            timeout = 0

    def _serve(self, events: list[tuple[int, int]]) -> None:
        self._serving = True
        self.now = self.reactor.seconds()
        reactors = False
        waiting = len(
            self._again
        )  # who asks in this batch has had its turn, and waits for the next
        table = self._table
        for fd, event in events:
            served = table.get(fd)
            if served is None:
                reactors = reactors or fd == self._reactor_fd
                continue
            try:
                served.ready(event)
            except Exception:
                self._failed(served)
        calls = self._calls
        while calls:
            later = calls.popleft()
            call, later.call = later.call, None
            if call is not None:
                try:
                    call(*later.arguments)
                except Exception:
                    self.log.failure("A call at the end of a batch failed")
        again = self._again
        for _ in range(waiting):
            served = again.popleft()
            try:
                served.go_on()
            except Exception:
                self._failed(served)
        self._serving = False
        closing, self._closing = self._closing, []
        for sock in closing:
            sock.close()
        closing.clear()  # a traceback somewhere may keep this frame
        if reactors and self._reactor_poll is not None:
            self._reactor_poll(0)
        self._leave_if_idle()

    def _failed(self, served: Served) -> None:
        """One connection's defect is that connection's end, and nobody else's."""
        self.log.failure("Serving {served} failed", served=served)
        try:
            served.failed()
        except Exception:
            self.log.failure("Ending {served} failed", served=served)

    # As a reader of the reactor (nested).

    def fileno(self) -> int:
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        if self._epoll is not None:
            self.poll(0)
            if (self._again or self._calls) and self._epoll is not None:
                self.reactor.callLater(0, self.doRead)

    def connectionLost(self, reason: Any) -> None:
        """The reactor disconnects everything."""

    def logPrefix(self) -> str:
        return type(self).__name__


def is_supported() -> bool:
    """Whether this system has what the spliced pump needs: epoll and splice, that is Linux."""
    return hasattr(select, "epoll") and hasattr(os, "splice")

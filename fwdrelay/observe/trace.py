"""
Following single connections: what was decided about them, step by step, for whoever watches.

Nobody watches most of the time: then a new session costs one look at a flag, and no session carries
anything. What a step says is a sentence; the names of the steps are `STEPS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from attrs import define, frozen

from ..networks import Networks

STEPS = (
    "accepted",
    "header",
    "admitted",
    "refused",
    "hello",
    "tls",
    "routed",
    "queued",
    "elected",
    "resolved",
    "dialing",
    "dial-failed",
    "connected",
    "first-byte-up",
    "first-byte-down",
    "client-ended",
    "upstream-ended",
    "client-reset",
    "upstream-reset",
    "ended",
)
"""What can be told of a session, in about the order in which it happens."""

MOST_FOLLOWED = 200
"""Sessions that one watcher follows at a time; others that match are only counted."""


@frozen(kw_only=True)
class TraceStep:
    """
    One thing that was decided about a session, or happened to it.

    @ivar time: seconds since the epoch.
    @ivar session: its name, as of the access log.
    @ivar client: `ADDR:PORT`.
    @ivar at_ms: milliseconds since its client was accepted.
    @ivar step: one of `STEPS`.
    @ivar detail: a sentence without its full stop.
    """

    time: float
    session: str
    listener: str
    client: str
    at_ms: float
    step: str
    detail: str


@define(eq=False)
class Watcher:
    """
    Somebody who follows sessions; see `Tracer.watch`.

    @ivar networks: of the clients whose sessions it follows; None: everybody's.
    @ivar tell: gets each step.
    @ivar following: sessions that have not ended yet.
    @ivar unfollowed: sessions that would have been followed, but for `MOST_FOLLOWED`.
    """

    networks: Networks | None
    tell: Callable[[TraceStep], object]
    following: int = 0
    unfollowed: int = 0

    def wants(self, host: str | None) -> bool:
        """@param host: a client's IP address; None for one that came by a Unix socket."""
        return self.networks is None or (host is not None and host in self.networks)


class Trace:
    """
    One session that is followed.

    @ivar told_up: whether its first byte from the client was told.
    @ivar told_down: the same of the target.
    @ivar looking: the session's next look for them.
    """

    __slots__ = (
        "_client",
        "_clock",
        "_listener",
        "_session",
        "_started",
        "_watchers",
        "looking",
        "told_down",
        "told_up",
    )

    def __init__(
        self,
        clock: Any,
        watchers: list[Watcher],
        session: str,
        listener: str,
        client: str,
        started: float,
    ) -> None:
        self._clock = clock
        self._watchers = watchers
        self._session = session
        self._listener = listener
        self._client = client
        self._started = started
        self.told_up = self.told_down = False
        self.looking: Any = None
        for watcher in watchers:
            watcher.following += 1

    def tell(self, step: str, detail: str, at: float | None = None) -> None:
        """
        @param step: one of `STEPS`.
        @param at: when that was, by the clock; None: now.
        """
        at = self._clock.seconds() if at is None else at
        told = TraceStep(
            time=time.time(),
            session=self._session,
            listener=self._listener,
            client=self._client,
            at_ms=round((at - self._started) * 1000, 3),
            step=step,
            detail=detail,
        )
        for watcher in self._watchers:
            watcher.tell(told)

    def identified(self, client: str) -> None:
        """@param client: who it is, as a header has told."""
        self._client = client

    def end(self, detail: str) -> None:
        """The session has ended: the last step."""
        self.tell("ended", detail)
        for watcher in self._watchers:
            watcher.following -= 1


class Tracer:
    """
    Who watches, and whom.

    @param clock: `twisted.internet.interfaces.IReactorTime`.
    @ivar watchers: whoever makes sessions looks here first, and makes no trace where there are none.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.watchers: list[Watcher] = []

    def watch(
        self, clients: Networks | None, tell: Callable[[TraceStep], object]
    ) -> Callable[[], None]:
        """
        Follow sessions that begin from now on.

        @param clients: None: everybody.
        @param tell: gets each step; it must not wait, nor raise.
        @return: to be called to follow nobody any more; a second time it does nothing.
        """
        watcher = Watcher(clients, tell)
        self.watchers.append(watcher)

        def stop() -> None:
            watcher.tell = _drop  # of what is still followed
            if watcher in self.watchers:
                self.watchers.remove(watcher)

        return stop

    def trace(
        self, session: str, listener: str, client: str, host: str | None, started: float
    ) -> Trace | None:
        """
        @param host: the client's IP address; None for one that came by a Unix socket.
        @param started: when it was accepted, by the clock.
        @return: None: nobody follows it.
        """
        wanting = [watcher for watcher in self.watchers if watcher.wants(host)]
        following = [watcher for watcher in wanting if watcher.following < MOST_FOLLOWED]
        for watcher in wanting:
            watcher.unfollowed += watcher.following >= MOST_FOLLOWED
        if not following:
            return None
        return Trace(self._clock, following, session, listener, client, started)


def _drop(step: TraceStep) -> None:
    """Nobody is left to get this."""

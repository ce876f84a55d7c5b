"""
Following single connections: what was decided about them, step by step, for whoever watches.

Nobody watches most of the time: then a new session costs one look at a flag, and no session carries
anything. What a step says is a sentence; the names of the steps are `STEPS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from attrs import define, frozen
from twisted.logger import Logger

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
"""Sessions that one watcher follows at a time; others that match are not followed."""


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
    """

    log: ClassVar[Logger] = Logger()

    networks: Networks | None
    tell: Callable[[TraceStep], object]
    following: int = 0

    @property
    def has_room(self) -> bool:
        """Whether it can follow one more."""
        return self.following < MOST_FOLLOWED

    @property
    def hears(self) -> bool:
        """Whether it is still told anything."""
        return self.tell is not _drop

    def wants(self, host: str | None) -> bool:
        """@param host: a client's IP address; None for one that came by a Unix socket."""
        return self.networks is None or (host is not None and host in self.networks)

    def hear(self, step: TraceStep) -> None:
        """Tell it of `step`. No session fails because of who looks on."""
        try:
            self.tell(step)
        except Exception:
            self.tell = _drop
            self.log.failure("Who follows sessions could not be told of them, and is told no more")


class Trace:
    """
    One session that is followed.

    @ivar told_up: whether its first byte from the client was told.
    @ivar told_down: the same of the target.
    @ivar looking: the session's next look for them.
    """

    __slots__ = (
        "_accepted",
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
        local: str,
        started: float,
    ) -> None:
        self._clock = clock
        self._watchers: list[Watcher] = []
        self._session = session
        self._listener = listener
        self._client = client
        self._accepted = f"at {local}"
        self._started = started
        self.told_up = self.told_down = False
        self.looking: Any = None
        self._follow(watchers)

    @property
    def heard(self) -> bool:
        """Whether anybody still wants to know."""
        return any(watcher.hears for watcher in self._watchers)

    def _follow(self, watchers: list[Watcher]) -> None:
        """They do so from now on, and hear of its beginning first."""
        if watchers:
            accepted = self._step("accepted", self._accepted, self._started)
            for watcher in watchers:
                watcher.following += 1
                watcher.hear(accepted)
            self._watchers += watchers

    def tell(self, step: str, detail: str, at: float | None = None) -> None:
        """
        @param step: one of `STEPS`.
        @param at: when that was, by the clock; None: now.
        """
        told = self._step(step, detail, at)
        for watcher in self._watchers:
            watcher.hear(told)

    def _step(self, step: str, detail: str, at: float | None) -> TraceStep:
        now = self._clock.seconds()
        at = now if at is None else at
        return TraceStep(
            time=time.time() - (now - at),
            session=self._session,
            listener=self._listener,
            client=self._client,
            at_ms=round((at - self._started) * 1000, 3),
            step=step,
            detail=detail,
        )

    def is_followed_by(self, watcher: Watcher) -> bool:
        """Whether `watcher` does so already."""
        return watcher in self._watchers

    def identified(self, client: str, watchers: list[Watcher]) -> None:
        """
        @param client: who it is, as a header has told.
        @param watchers: who has waited for that one, and follows it from now on.
        """
        self._client = client
        self._follow(watchers)

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

    def would_follow(self, host: str | None) -> bool:
        """
        @param host: the client's IP address; None for one that came by a Unix socket.
        @return: whether `trace` would answer one.
        """
        return any(watcher.has_room and watcher.wants(host) for watcher in self.watchers)

    def trace(
        self,
        session: str,
        listener: str,
        client: str,
        local: str,
        host: str | None,
        started: float,
    ) -> Trace | None:
        """
        Whoever wants to follow this one does so from now on, and is told that it was accepted.

        @param local: the address that the client connected to.
        @param host: the client's IP address; None for one that came by a Unix socket.
        @param started: when it was accepted, by the clock.
        @return: None: nobody follows it.
        """
        following = [each for each in self.watchers if each.has_room and each.wants(host)]
        if not following:
            return None
        return Trace(self._clock, following, session, listener, client, local, started)

    def identified(self, trace: Trace, client: str, host: str | None) -> None:
        """
        A header has told who the client of one is that is followed: whoever wants to follow that one does so, too.

        @param host: its IP address.
        """
        following = [
            each
            for each in self.watchers
            if each.has_room and each.wants(host) and not trace.is_followed_by(each)
        ]
        trace.identified(client, following)


def _drop(step: TraceStep) -> None:
    """Nobody is left to get this."""

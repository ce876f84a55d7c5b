"""Whom a relay's sessions are told to: the access log, whoever has subscribed, whoever follows some of them."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

from .events import SessionEnded
from .feed import Feed, SessionOpened
from .trace import Tracer


@define(eq=False)
class Audience:
    """
    What the listeners of a relay share.

    @ivar feed: for whoever looks on.
    @ivar tracer: for whoever follows some.
    @ivar log: writes each session that has ended, and each word of those that last; None: nobody does.
    @ivar log_interval: seconds between two such words of one session; 0: it is told of when it has ended.
    """

    feed: Feed
    tracer: Tracer
    log: Callable[[SessionEnded], object] | None = None
    log_interval: float = 0.0

    def opened(self, make: Callable[[], SessionOpened]) -> None:
        """
        A client was let in.

        @param make: is only called where somebody wants to know.
        """
        if self.feed.wanted and self.feed.has_room():
            self.feed.tell(make())

    def ended(self, make: Callable[[], SessionEnded]) -> None:
        """
        A session has ended.

        @param make: is only called where somebody wants to know.
        """
        to_feed = self.feed.wanted and self.feed.has_room()
        if self.log is None and not to_feed:
            return
        event = make()
        if self.log is not None:
            self.log(event)
        if to_feed:
            self.feed.tell(event)

    def lasts(self, make: Callable[[], SessionEnded]) -> None:
        """It is time for another word of a session that has not ended."""
        if self.log is not None:
            self.log(make())

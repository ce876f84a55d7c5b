"""
Sessions as they begin and end, told live to whoever subscribes: the API's event stream.

A relay may open thousands of sessions a second, which nobody could read: of those within a second the first
`MOST` events are told, and the others counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from attrs import frozen
from twisted.logger import Logger

from .events import SessionEnded

MOST = 100
"""Events that are told within one second."""


@frozen(kw_only=True)
class SessionOpened:
    """
    A client that was let in; the names are those of the access log.

    @ivar time: seconds since the epoch.
    """

    time: float
    session: str
    listener: str
    client: str
    local: str


SessionEvent: TypeAlias = SessionOpened | SessionEnded


class Feed:
    """
    @param clock: `twisted.internet.interfaces.IReactorTime`.
    @ivar wanted: whether anybody has subscribed.
    @ivar skipped: events that were not told, since the start.
    """

    log = Logger()

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._subscribers: dict[object, Callable[[SessionEvent], object]] = {}
        self._second = -1
        self._told = 0
        self.wanted = False  # no property: it is asked for each session, twice
        self.skipped = 0

    def subscribe(self, tell: Callable[[SessionEvent], object]) -> Callable[[], None]:
        """
        @param tell: gets each event that is told; it must not wait, nor raise.
        @return: to be called once nobody wants to know any more; a second time it does nothing.
        """
        key = object()
        self._subscribers[key] = tell
        self.wanted = True
        return partial(self._leave, key)

    def _leave(self, key: object) -> None:
        self._subscribers.pop(key, None)
        self.wanted = bool(self._subscribers)

    def has_room(self) -> bool:
        """
        Ask before an event is made, which costs something.

        @return: whether one more is told within this second; one that is not is counted.
        """
        second = int(self._clock.seconds())
        if second != self._second:
            self._second, self._told = second, 0
        if self._told >= MOST:
            self.skipped += 1
            return False
        self._told += 1
        return True

    def tell(self, event: SessionEvent) -> None:
        """Tell everybody of `event`. No session fails because of who looks on."""
        for key, tell in list(self._subscribers.items()):
            try:
                tell(event)
            except Exception:
                self.log.failure("A subscriber could not be told of a session, and is told no more")
                self._leave(key)

"""
Sessions as they begin and end, told live to whoever subscribes: the API's event stream.

A relay may open thousands of sessions a second, which nobody could read: of those within a second the first
`MOST` events are told, and the others counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from attrs import frozen

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
    @param changed: called when the first has subscribed, and when the last has left.
    @ivar skipped: events that were not told, since the start.
    """

    def __init__(self, clock: Any, changed: Callable[[], object] = lambda: None) -> None:
        self._clock = clock
        self._changed = changed
        self._subscribers: dict[object, Callable[[SessionEvent], object]] = {}
        self._second = -1
        self._told = 0
        self.skipped = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody has subscribed."""
        return bool(self._subscribers)

    def subscribe(self, tell: Callable[[SessionEvent], object]) -> Callable[[], None]:
        """
        @param tell: gets each event that is told; it must not wait, nor raise.
        @return: to be called once nobody wants to know any more; a second time it does nothing.
        """
        key = object()
        self._subscribers[key] = tell
        if len(self._subscribers) == 1:
            self._changed()

        def leave() -> None:
            if self._subscribers.pop(key, None) is not None and not self._subscribers:
                self._changed()

        return leave

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
        """Tell everybody of `event`."""
        for tell in list(self._subscribers.values()):
            tell(event)

"""
Coarse deadlines for very many entries: none costs a timer of its own, and moving one costs a
dictionary entry.

An entry sits in the bucket of its due time; buckets are as wide as a part of the time still to go, so
an entry may be looked at late by 1/32 of what it asked for (at least 32 ms), never early. One timer
waits for the earliest bucket; with nothing due, nothing ticks.
"""

from __future__ import annotations

import heapq
from typing import Any, Protocol

from twisted.logger import Logger

FINEST = 2.0**-5
# Of the buckets, by how many bits the seconds still to go have.
_WIDTHS = tuple(max(2.0 ** (bits - 6), FINEST) for bits in range(64))


class Entry(Protocol):
    """What can have a deadline; `bucket` belongs to `Deadlines`."""

    bucket: set[Any] | None

    def overdue(self, now: float) -> float | None:
        """The deadline is here. Answer when to look again, or None for never."""


class Deadlines:
    """
    @param clock: `twisted.internet.interfaces.IReactorTime`.
    """

    log = Logger()

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._buckets: dict[float, set[Entry]] = {}
        self._due: list[float] = []
        self._timer: Any = None

    def set(self, entry: Entry, due: float) -> None:
        """Look at `entry` when the clock reaches `due` (seconds); moves it if it was set before."""
        self.discard(entry)
        wait = int(max(due - self._clock.seconds(), 0.0))
        width = _WIDTHS[min(wait.bit_length(), 63)]
        due = -(-due // width) * width  # rounded up; exact, for widths are powers of two
        bucket = self._buckets.get(due)
        if bucket is None:
            bucket = self._buckets[due] = set()
            heapq.heappush(self._due, due)
            if self._due[0] == due:
                self._wait()
        bucket.add(entry)
        entry.bucket = bucket

    def discard(self, entry: Entry) -> None:
        """`entry` has no deadline any more."""
        if entry.bucket is not None:
            entry.bucket.discard(entry)
            entry.bucket = None

    def stop(self) -> None:
        """Forget everything."""
        self._buckets.clear()
        self._due.clear()
        self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            delay = max(self._due[0] - self._clock.seconds(), 0)
            self._timer = self._clock.callLater(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._due and self._due[0] <= now:
            bucket = self._buckets.pop(heapq.heappop(self._due))
            while bucket:  # whose end may be others' too, which discards them from this very set
                entry = bucket.pop()
                entry.bucket = None
                try:
                    again = entry.overdue(now)
                except Exception:  # one entry's failure must not stop all deadlines
                    self.log.failure("A deadline could not be dealt with")
                    continue
                if again is not None:
                    self.set(entry, again)
        # Empty buckets (their sessions ended) would only wake us for nothing.
        while self._due and not self._buckets[self._due[0]]:
            del self._buckets[heapq.heappop(self._due)]
        self._wait()

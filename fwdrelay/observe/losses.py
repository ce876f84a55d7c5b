"""
Logs that never wait: how much of one may wait for its reader instead, how long it does, and how it is told
what was dropped.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from ..words import counted

BOUND = 1 << 20
"""Bytes that may wait for a reader that is slow."""
LAST_WAIT = 1.0
"""Seconds that a reader has to take what is left at the end, when nothing can be held up any more. Those
whose sessions a stop cut are among it."""
FIRST_RETRY = 0.001
"""
Seconds until what was not taken is tried again; twice that after each time in vain. A reader that is only busy takes
the next few lines soon, and many would be too many if it were asked seldom.
"""
LONGEST_RETRY = 0.05
RETRY_WHAT_FAILED = 1.0
"""The same after an error that does not pass by waiting."""
_TELL_EVERY = 10.0


class Losses:
    """
    What was dropped: counted for good, told of in sums.

    @param whose: the log whose lines they are.
    @param clock: `twisted.internet.interfaces.IReactorTime`.
    @param log: where it is told of.
    @ivar total: since the start.
    """

    def __init__(self, whose: str, clock: Any, log: Logger) -> None:
        self._whose = whose
        self._clock = clock
        self._log = log
        self._untold = 0
        self._told_at = -_TELL_EVERY
        self.total = 0

    def add(self, count: int = 1) -> None:
        """So many more."""
        self.total += count
        self._untold += count

    @property
    def untold(self) -> int:
        """Those of which nobody was told."""
        return self._untold

    def tell(self, *, at_last: bool = False) -> None:
        """
        What is written to takes it again: tell what it has missed, if there is anything, though not all the
        time.

        @param at_last: nothing will be written any more, and maybe nothing was taken.
        """
        now = self._clock.seconds()
        if self._untold and (at_last or now - self._told_at >= _TELL_EVERY):
            # First: to tell of it may bring one back here.
            untold, self._untold, self._told_at = self._untold, 0, now
            self._log.warn(
                "{whose} was not taken fast enough, or not at all: {lines} dropped.",
                whose=self._whose,
                lines=f"{counted(untold, 'line')} {'was' if untold == 1 else 'were'}",
                dropped=untold,
            )

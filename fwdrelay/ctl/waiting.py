"""Waiting until something has come to its end: a drain, or the sessions of a target."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from attrs import frozen

from .exits import Failure, NoRelay

T = TypeVar("T")

PAUSE = 0.25
"""Seconds between two looks."""


class TimeIsUp(Failure):
    """It took longer than one would wait."""


@frozen
class Wait:
    """
    How one waits.

    @ivar most: seconds; 0: as long as it takes.
    """

    most: float = 0.0
    sleep: Callable[[float], object] = time.sleep
    now: Callable[[], float] = time.monotonic

    def until(self, over: Callable[[], str]) -> None:
        """
        @param over: asked again and again; it says what is still awaited, or nothing once that has come. A relay
            that is too busy to answer is asked again.
        @raise TimeIsUp: it took too long; with what was awaited.
        """
        start = self.now()
        awaited = "the relay"
        while True:
            try:
                awaited = over()
            except NoRelay as lost:
                if not lost.slow:
                    raise
            if not awaited:
                return
            if self.most and self.now() - start >= self.most:
                raise TimeIsUp(f"gave up after {self.most:g} seconds, with {awaited} left")
            self.sleep(PAUSE)

"""
What is told of refused clients: all are counted, few are named.

A flood of clients that may not enter must not become a flood of log lines. In each second the first
refusal for each reason goes to the access log like a session; of the rest only the number is told.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.logger import Logger

from ..session import Reason
from ..words import counted

SUMMED_OVER = 1.0


class Refusals:
    """
    Those of one listener.

    @ivar total: refused clients since the start, by reason.
    """

    log = Logger()

    def __init__(self, listener: str, clock: Any) -> None:
        self._listener = listener
        self._clock = clock
        self._untold: Counter[Reason] = Counter()
        self._seen: set[Reason] = set()
        self._timer: Any = None
        self.total: Counter[Reason] = Counter()

    def add(self, reason: Reason) -> bool:
        """
        Count one.

        @return: whether it is one to name.
        """
        self.total[reason] += 1
        if self._timer is None:
            self._timer = self._clock.callLater(SUMMED_OVER, self._tell)
        if reason not in self._seen:
            self._seen.add(reason)
            return True
        self._untold[reason] += 1
        return False

    def stop(self) -> None:
        """Tell what is untold; there will be no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell()

    def _tell(self) -> None:
        self._timer = None
        self._seen.clear()
        if self._untold:
            self.log.warn(
                "Listener {listener} refused {count} within a second: {reasons}.",
                listener=self._listener,
                count=counted(self._untold.total(), "more client"),
                reasons=", ".join(f"{n} {reason.word}" for reason, n in self._untold.items()),
            )
            self._untold.clear()

"""
What is told of refused clients: all are counted, few are named.

A flood of clients that may not enter must not become a flood of log lines. In each second the first
refusals for each reason go to the access log like sessions; of the rest only the number is told. The first
is one where it is the reason that matters, and ten where it is the client: whose certificate is not
accepted, who sends what is no header.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.logger import Logger

from ..session import Reason
from ..words import counted

SUMMED_OVER = 1.0
NAMED = 1
"""For each reason, within that time."""
NAMED_WITH_DETAILS = 10
"""For those where one says little of the next."""

_WITH_DETAILS = (
    Reason.PROXY_HEADER,
    Reason.PROXY_TIMEOUT,
    Reason.TLS_FAILED,
    Reason.TLS_TIMEOUT,
    Reason.IDENTITY,
    Reason.CLIENT_LEFT,
)
_TO_NAME = dict.fromkeys(Reason, NAMED) | dict.fromkeys(_WITH_DETAILS, NAMED_WITH_DETAILS)


class Refusals:
    """
    Those of one listener.

    @ivar total: where refused clients are counted, by reason.
    """

    log = Logger()

    def __init__(self, listener: str, clock: Any, total: Counter[Reason]) -> None:
        self._listener = listener
        self._clock = clock
        self._untold: Counter[Reason] = Counter()
        self._to_name = _TO_NAME.copy()
        self._timer: Any = None
        self.total = total

    def add(self, reason: Reason) -> bool:
        """
        Count one.

        @return: whether it is one to name.
        """
        self.total[reason] += 1
        if self._timer is None:
            self._timer = self._clock.callLater(SUMMED_OVER, self._tell)
        left = self._to_name[reason]
        if left:
            self._to_name[reason] = left - 1
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
        self._to_name.update(_TO_NAME)
        if self._untold:
            self.log.warn(
                "Listener {listener} refused {count} within a second: {reasons}.",
                listener=self._listener,
                count=counted(self._untold.total(), "more client"),
                reasons=", ".join(f"{n} {reason.word}" for reason, n in self._untold.items()),
            )
            self._untold.clear()

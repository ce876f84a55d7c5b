"""`random-two`: the better of two targets drawn at random."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from zope.interface import implementer

from ...interfaces import IElection, ITarget


@implementer(IElection)
class RandomTwo:
    """
    Draws two targets by their shares. The first is elected, unless it is as full as the second would
    be with one session more; see `LeastSessions` for that.

    Many relays that share targets, and know only of their own sessions, don't all choose the same one.
    See M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (1996).

    @param random: what is drawn with.
    """

    def __init__(self, random: Random | None = None) -> None:
        self._random = Random() if random is None else random

    def targets_changed(self, targets: Sequence[ITarget]) -> None:
        """Nothing to do."""

    def elect(self, candidates: Sequence[ITarget], client: str | None) -> ITarget:
        """See `IElection`."""
        # Shares laid end to end; a target is drawn by a point that falls on its share.
        ends = list(accumulate([target.share for target in candidates]))
        last = len(ends) - 1
        draw = self._random.random
        index = bisect(ends, draw() * ends[-1], 0, last)
        first = candidates[index]
        # The second: by a point on what is left without the first's share.
        point = draw() * (ends[-1] - first.share)
        if point >= ends[index] - first.share:
            point += first.share
        second = candidates[bisect(ends, point, 0, last)]
        if (second.sessions + 1) / second.share <= first.sessions / first.share:
            return second
        return first

"""
How often something took how long: numbers per range, as Prometheus counts them, and never more memory for
more of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf
from operator import add

from attrs import frozen

DIALS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds that opening an upstream connection takes."""
SESSIONS = (
    0.01,
    0.05,
    0.1,
    0.5,
    1.0,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
    21600.0,
    86400.0,
)
"""Seconds that sessions last."""


@frozen
class HistogramCounts:
    """
    What a histogram has counted.

    @ivar bounds: upper ones, in ascending order, each within its range.
    @ivar counts: so many in each range; the last, which has no bound, is that of all above.
    @ivar total: the sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def plus(self, other: HistogramCounts) -> HistogramCounts:
        """
        @param other: may have other bounds, as another version counts; then its values are taken to be as large as
            they can be.
        @return: what both have counted, by the bounds of this one.
        """
        total = self.total + other.total
        if other.bounds == self.bounds:
            return HistogramCounts(self.bounds, tuple(map(add, self.counts, other.counts)), total)
        counts = list(self.counts)
        for bound, count in zip((*other.bounds, inf), other.counts, strict=True):
            counts[bisect_left(self.bounds, bound)] += count
        return HistogramCounts(self.bounds, tuple(counts), total)


class Histogram:
    """
    @param bounds: upper bounds of the ranges, in ascending order.
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count `value`; one below 0, which comes of a clock that was set back, as 0."""
        if value < 0.0:
            value = 0.0
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def counts(self) -> HistogramCounts:
        """
        @return: what was counted until now.
        """
        return HistogramCounts(self._bounds, tuple(self._counts), self._total)

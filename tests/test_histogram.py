"""What a histogram counts, and where."""

from __future__ import annotations

from functools import reduce
from operator import add

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.histogram import DIALS, SESSIONS, Histogram, HistogramCounts
from tests.case import SynchronousTestCase


class HistogramTests(SynchronousTestCase):
    def test_nothing_was_counted(self) -> None:
        counts = Histogram((1.0, 2.0)).counts()
        self.assertEqual(counts, HistogramCounts((1.0, 2.0), (0, 0, 0), 0.0))
        self.assertEqual(counts.count, 0)

    def test_each_goes_into_its_range(self) -> None:
        histogram = Histogram((1.0, 2.0))
        for value in (0.0, 0.5, 1.5, 5.0, 7.0, 9.0):
            histogram.add(value)
        counts = histogram.counts()
        self.assertEqual(counts.counts, (2, 1, 3))
        self.assertEqual(counts.total, 23.0)
        self.assertEqual(counts.count, 6)

    def test_a_clock_that_was_set_back_takes_nothing_away(self) -> None:
        histogram = Histogram((1.0, 2.0))
        histogram.add(-3.0)
        self.assertEqual((histogram.counts().counts, histogram.counts().total), ((1, 0, 0), 0.0))

    def test_a_bound_is_within_its_range(self) -> None:
        histogram = Histogram((1.0, 2.0))
        histogram.add(1.0)
        histogram.add(2.0)
        self.assertEqual(histogram.counts().counts, (1, 1, 0))

    def test_what_was_counted_stays_as_it_was(self) -> None:
        histogram = Histogram((1.0,))
        histogram.add(0.5)
        before = histogram.counts()
        histogram.add(0.5)
        self.assertEqual(before, HistogramCounts((1.0,), (1, 0), 0.5))
        self.assertEqual(histogram.counts(), HistogramCounts((1.0,), (2, 0), 1.0))

    def test_without_bounds_all_is_one_range(self) -> None:
        histogram = Histogram(())
        histogram.add(3.0)
        self.assertEqual(histogram.counts(), HistogramCounts((), (1,), 3.0))

    def test_two_together(self) -> None:
        one, other = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
        for value in (0.5, 1.5, 9.0):
            one.add(value)
        for value in (0.5, 3.0):
            other.add(value)
        both = one.counts().plus(other.counts())
        self.assertEqual(both, HistogramCounts((1.0, 2.0), (2, 1, 2), 14.5))

    def test_what_was_counted_by_other_bounds(self) -> None:
        one, other = Histogram((1.0, 2.0)), Histogram((0.5, 1.5, 2.0, 4.0))
        for value in (0.1, 1.2, 1.8, 3.0, 5.0):
            other.add(value)
        both = one.counts().plus(other.counts())
        self.assertEqual(both.bounds, (1.0, 2.0))
        self.assertEqual(both.counts, (1, 2, 2))

    @given(st.lists(st.floats(0, 1e6)), st.sampled_from([DIALS, SESSIONS]))
    def test_as_many_are_at_most_a_bound_as_there_are(
        self, values: list[float], bounds: tuple[float, ...]
    ) -> None:
        histogram = Histogram(bounds)
        for value in values:
            histogram.add(value)
        counts = histogram.counts()
        for index, bound in enumerate(bounds):
            at_most = sum(value <= bound for value in values)
            self.assertEqual(sum(counts.counts[: index + 1]), at_most)
        self.assertEqual(counts.count, len(values))
        self.assertEqual(counts.total, reduce(add, values, 0.0))


class BoundsTests(SynchronousTestCase):
    def test_they_ascend(self) -> None:
        for bounds in (DIALS, SESSIONS):
            self.assertEqual(list(bounds), sorted(set(bounds)))
            self.assertGreater(bounds[0], 0)

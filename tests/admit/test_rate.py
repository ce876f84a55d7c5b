"""`fwdrelay.admit.rate`: no more than the rate, no less either, and memory that is bounded."""

from __future__ import annotations

from fractions import Fraction

from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.admit.rate import _SHARDS, Bucket, Buckets
from fwdrelay.config import Rate
from tests.case import SynchronousTestCase

START = 1_790_000_000.125
"""Of a clock that tells the time of day: its fractions are coarse."""

RATES = st.builds(Rate, st.integers(1, 3) | st.integers(1, 20), st.sampled_from([0.5, 1.0, 60.0]))
# Times and what they are compared with are exact: eighths of a second.
STEPS = st.lists(st.integers(0, 100) | st.just(0) | st.just(1), max_size=80)


@define
class Naive:
    """A token bucket as one would tell of it."""

    rate: Rate
    tokens: Fraction
    then: Fraction

    def take(self, now: Fraction) -> bool:
        filled = (now - self.then) * self.rate.count / Fraction(self.rate.seconds)
        self.tokens = min(self.tokens + filled, Fraction(self.rate.count))
        self.then = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


def naive(rate: Rate) -> Naive:
    """A full one."""
    return Naive(rate, Fraction(rate.count), Fraction(START))


def name(number: int) -> bytes:
    """
    @return: some client's.
    """
    return number.to_bytes(4, "big")


class BucketTests(SynchronousTestCase):
    @given(RATES, STEPS)
    def test_it_gives_what_a_bucket_gives(self, rate: Rate, steps: list[int]) -> None:
        bucket, model, now = Bucket(rate, START), naive(rate), START
        for step in steps:
            now += step / 8
            self.assertEqual(bucket.take(now), model.take(Fraction(now)))

    def test_it_is_full_at_first_and_fills_evenly(self) -> None:
        bucket = Bucket(Rate(3, 60.0), START)
        given = [bucket.take(START + second) for second in (0, 0, 0, 0, 19, 20, 20, 39, 60, 60, 60)]
        self.assertEqual(given, [True] * 3 + [False, False, True, False, False, True, True, False])

    def test_a_fast_one_gives_all_it_has_and_no_more(self) -> None:
        for rate in (Rate(100_000, 1.0), Rate(99_991, 7.0)):
            bucket, later = Bucket(rate, START), START + 365 * 86400
            for now in (START, later):
                self.assertEqual(sum(bucket.take(now) for _ in range(rate.count)), rate.count)
                self.assertFalse(bucket.take(now))

    def test_a_clock_that_is_set_back_neither_gives_nor_takes(self) -> None:
        bucket = Bucket(Rate(2, 1.0), START)
        self.assertEqual([bucket.take(START) for _ in range(3)], [True, True, False])
        back = START - 1e6
        self.assertFalse(bucket.take(back))
        self.assertFalse(bucket.take(back + 0.25))
        self.assertTrue(bucket.take(back + 0.75))
        self.assertFalse(bucket.take(back + 0.75))

    def test_a_clock_that_is_set_forward_fills_it_once(self) -> None:
        bucket = Bucket(Rate(2, 1.0), START)
        forward = START + 1e9
        self.assertEqual([bucket.take(forward) for _ in range(3)], [True, True, False])
        self.assertEqual(
            [bucket.take(START), bucket.take(START + 0.75)], [False, True], "and back again"
        )


class BucketsTests(SynchronousTestCase):
    @given(
        RATES, st.lists(st.tuples(st.integers(0, 100) | st.just(0), st.integers(0, 2)), max_size=80)
    )
    def test_each_client_has_a_bucket_of_its_own(
        self, rate: Rate, steps: list[tuple[int, int]]
    ) -> None:
        buckets, now = Buckets(rate, START), START
        models = [naive(rate) for _ in range(3)]
        for step, client in steps:
            now += step / 8
            self.assertEqual(buckets.take(name(client), now), models[client].take(Fraction(now)))
        self.assertEqual(len(buckets), len({client for _, client in steps}))

    def test_no_bucket_holds_more_than_it_may(self) -> None:
        buckets, later = Buckets(Rate(2, 1.0), START), START + 1e6
        self.assertTrue(buckets.take(b"a", START))
        self.assertEqual([buckets.take(b"a", later) for _ in range(3)], [True, True, False])

    def test_a_clock_that_is_set_back_locks_nobody_out(self) -> None:
        buckets = Buckets(Rate(1, 1.0), START)
        self.assertTrue(buckets.take(b"a", START))
        back = START - 1e6
        self.assertFalse(buckets.take(b"a", back))
        self.assertTrue(buckets.take(b"b", back))
        self.assertTrue(buckets.take(b"a", back + 1))

    def test_who_has_a_full_one_is_forgotten(self) -> None:
        buckets, clients = Buckets(Rate(10, 1.0), START), 30 * _SHARDS
        for number in range(clients):
            buckets.take(name(number), START + number)
        self.assertLess(len(buckets), clients * 0.6)
        # And who has not is not, however many come by.
        for _ in range(10):
            self.assertTrue(buckets.take(b"fast", START + clients))
        for number in range(clients):
            buckets.take(name(number), START + clients)
        self.assertFalse(buckets.take(b"fast", START + clients))

    def test_there_are_never_more_than_the_most(self) -> None:
        most = 20 * _SHARDS
        buckets = Buckets(Rate(1, 3600.0), START, most)
        self.assertTrue(all(buckets.take(name(number), START) for number in range(3 * most)))
        self.assertLessEqual(len(buckets), most)
        self.assertGreater(len(buckets), most / 4)

    def test_where_there_are_too_many_those_who_owe_most_are_remembered(self) -> None:
        most = 20 * _SHARDS
        buckets = Buckets(Rate(3, 3600.0), START, most)
        greedy = [f"greedy {number}".encode() for number in range(50)]
        for client in greedy * 3:
            self.assertTrue(buckets.take(client, START))
        for number in range(3 * most):
            self.assertTrue(buckets.take(name(number), START))
        self.assertEqual([client for client in greedy if buckets.take(client, START)], [])

    def test_few_may_be_kept(self) -> None:
        for most in (0, 1, _SHARDS):
            buckets = Buckets(Rate(1, 3600.0), START, most)
            for number in range(10 * _SHARDS):
                self.assertTrue(buckets.take(name(number), START))
            self.assertLessEqual(len(buckets), 2 * _SHARDS)

"""`fwdrelay.upstream.elect.maglev`: shares, and who has to move."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import islice, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from fwdrelay.upstream.elect.maglev import SIZE, Slots, fill, walk
from tests.case import SynchronousTestCase

# Each takes a table or more to try.
FEW = settings(max_examples=15, deadline=None)
WEIGHTS = st.dictionaries(
    st.text(min_size=1, max_size=12), st.integers(1, 100), min_size=1, max_size=20
)


def table(weights: Mapping[str, int]) -> list[str]:
    """The name that has each slot."""
    members = sorted(weights.items())
    return [members[index][0] for index in filled(members)]


def filled(members: list[tuple[str, int]]) -> Slots:
    """A table, filled to its end."""
    filling = fill(members)
    while True:
        try:
            next(filling)
        except StopIteration as done:
            slots: Slots = done.value
            return slots


def moved(before: list[str], after: list[str], gone: str) -> float:
    """Which part of the slots of all others than `gone` has changed hands."""
    others = [(old, new) for old, new in zip(before, after, strict=True) if old != gone]
    return sum(old != new for old, new in others) / len(others)


def fifty(weight: int) -> dict[str, int]:
    """50 targets, with weights from 1 up to `weight`."""
    return {f"10.0.{index}.1:80": 1 + index % weight for index in range(50)}


class SharesTests(SynchronousTestCase):
    def test_each_has_its_share_to_a_few_slots(self) -> None:
        """All have their first turn at once, so each has up to one slot too many, at the others' cost."""

        @FEW
        @given(WEIGHTS)
        def check(weights: dict[str, int]) -> None:
            counts = Counter(table(weights))
            parts = {name: weight / sum(weights.values()) for name, weight in weights.items()}
            for name, part in parts.items():
                too_many = counts[name] - SIZE * part
                self.assertTrue(-len(weights) * part - 1e-6 <= too_many <= 1 + 1e-6, too_many)

        check()

    def test_each_has_a_slot_however_light(self) -> None:
        counts = Counter(table({"heavy": 1_000_000_000, "light": 1, "feather": 1}))
        self.assertEqual(counts, {"heavy": SIZE - 2, "light": 1, "feather": 1})

    def test_one_alone_has_all(self) -> None:
        self.assertEqual(Counter(table({"a": 7})), {"a": SIZE})

    def test_weights_that_are_multiples_make_the_same_table(self) -> None:
        self.assertEqual(table({"a": 1, "b": 2, "c": 4}), table({"a": 3, "b": 6, "c": 12}))
        self.assertEqual(table({"a": 1, "b": 1}), table({"a": 9, "b": 9}))

    def test_neighbours_are_not_alike(self) -> None:
        """Who has a slot says nothing of who has the next: else one range of hashes would be one target's."""
        slots = table(fifty(1))
        same = sum(slot == after for slot, after in pairwise(slots))
        self.assertLess(abs(same / SIZE - 1 / 50), 0.005)


class MovesTests(SynchronousTestCase):
    def test_at_most_one_in_a_hundred_others_moves_when_one_of_fifty_goes_or_comes(self) -> None:
        for weight in (1, 10):
            weights = fifty(weight)
            before = table(weights)
            for gone in list(weights)[::7]:
                after = table({name: w for name, w in weights.items() if name != gone})
                part = moved(before, after, gone)
                self.assertLess(part, 0.01, gone)
                # The same read backwards is that one comes.
                self.assertEqual(len(set(after)), 49)

    def test_nor_of_fewer(self) -> None:
        """Not of any names: of a thousand sets of a few names, one or two are so alike that 3 % move."""
        for count in (2, 3, 5, 8, 12):
            for weight in (1, 7):
                weights = dict(list(fifty(weight).items())[:count])
                for gone in list(weights)[:2]:
                    after = table({name: w for name, w in weights.items() if name != gone})
                    self.assertLess(moved(table(weights), after, gone), 0.01)

    def test_a_changed_weight_moves_what_it_must_and_little_more(self) -> None:
        weights = fifty(1)
        before, after = table(weights), table({**weights, "10.0.3.1:80": 2})
        changed = sum(old != new for old, new in zip(before, after, strict=True)) / SIZE
        must = 2 / 51 - 1 / 50
        self.assertTrue(must <= changed < must + 0.01, changed)


class AgreementTests(SynchronousTestCase):
    def test_a_table_is_what_it_has_always_been(self) -> None:
        """Relays agree on it, of whatever version: a change here moves everybody's clients."""
        for weights, expected in (
            (fifty(1), "e8064118aae9e98a"),
            (fifty(10), "d09d29c779b57e25"),
        ):
            slots = filled(sorted(weights.items()))
            if sys.byteorder == "big":
                slots.byteswap()
            digest = hashlib.blake2b(slots.tobytes(), digest_size=8).hexdigest()
            self.assertEqual((slots.itemsize, digest), (4, expected))

    def test_a_name_need_not_be_unicode(self) -> None:
        names = [os.fsdecode(b"unix:/run/\xff"), os.fsdecode(b"unix:/run/\xfe"), "\ud800"]
        self.assertEqual(set(filled([(name, 1) for name in names])), {0, 1, 2})


class StepsTests(SynchronousTestCase):
    def test_a_table_is_filled_in_small_steps(self) -> None:
        steps = sum(1 for _ in fill(sorted(fifty(1).items())))
        self.assertGreater(steps, 1000)

    def test_a_walk_leads_through_all_slots(self) -> None:
        for number in (0, 1, SIZE, SIZE * (SIZE - 1), 2**64 - 1):
            slot, step = walk(number)
            walked = {(slot + step * index) % SIZE for index in range(SIZE)}
            self.assertEqual(len(walked), SIZE)

    def test_two_tables_can_be_filled_in_turn(self) -> None:
        one, other = fill([("a", 1), ("b", 2)]), fill([("a", 1), ("b", 2)])
        for _ in islice(one, 100):
            next(other)
        self.assertEqual(len(list(one)), len(list(other)))

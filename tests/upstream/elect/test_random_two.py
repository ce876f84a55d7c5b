"""`fwdrelay.upstream.elect.random_two`: who is drawn, and who of the two wins."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.upstream.elect.random_two import RandomTwo
from tests.case import SynchronousTestCase
from tests.upstream.elect.targets import begun, elected, held, targets


class RandomTwoTests(SynchronousTestCase):
    def test_an_idle_relay_spreads_by_share(self) -> None:
        abc = targets(6, 3, 2)
        abc[2].share = 1.0
        counts = Counter(elected(begun(RandomTwo(Random(1)), abc), abc, 10_000))
        for label, part in zip("abc", (0.6, 0.3, 0.1), strict=True):
            self.assertLess(abs(counts[label] / 10_000 - part), 0.02)

    def test_of_two_the_one_with_fewer_sessions_wins(self) -> None:
        ab = targets(1, 1)
        ab[0].sessions = 1
        self.assertEqual(elected(begun(RandomTwo(Random(1)), ab), ab, 50), "b" * 50)

    def test_fewer_for_its_share(self) -> None:
        ab = targets(1, 10)
        ab[0].sessions, ab[1].sessions = 1, 9
        self.assertEqual(elected(begun(RandomTwo(Random(1)), ab), ab, 50), "b" * 50)

    def test_the_fullest_is_never_elected(self) -> None:
        @given(
            st.lists(st.integers(1, 9), min_size=2, max_size=8),
            st.integers(0, 7),
            st.randoms(use_true_random=False),
        )
        def check(weights: list[int], index: int, random: Random) -> None:
            members = targets(*weights)
            full = members[index % len(members)]
            full.sessions = 10 * full.weight
            winner = begun(RandomTwo(random), members).elect(members, None)
            self.assertIn(winner, members)
            self.assertIsNot(winner, full)

        check()

    def test_any_two_may_be_drawn(self) -> None:
        """Each pair has one that is fuller, so who wins tells that both were drawn."""
        members = targets(1, 1, 1, 1)
        for count, member in enumerate(members):
            member.sessions = count
        labels = set(elected(begun(RandomTwo(Random(1)), members), members, 500))
        self.assertEqual(labels, set("abc"))

    def test_sessions_that_stay_are_spread_evenly(self) -> None:
        members = targets(1, 1, 2, 4)
        held(begun(RandomTwo(Random(1)), members), members, 800)
        for member in members:
            self.assertLess(abs(member.sessions / member.weight - 100), 6)

    def test_each_has_a_generator_of_its_own(self) -> None:
        members = targets(*[1] * 10)
        one, other = (elected(begun(RandomTwo(), members), members, 100) for _ in range(2))
        self.assertNotEqual(one, other)

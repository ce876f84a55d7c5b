"""`fwdrelay.upstream.elect.round_robin`: smooth turns, also when candidates come and go."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.upstream import Target
from fwdrelay.upstream.elect.round_robin import RoundRobin
from tests.case import SynchronousTestCase
from tests.upstream.elect.targets import begun, elected, target, targets

WEIGHTS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


class TurnsTests(SynchronousTestCase):
    def test_all_take_turns_in_their_order(self) -> None:
        abc = targets(1, 1, 1)
        self.assertEqual(elected(begun(RoundRobin(), abc), abc, 7), "abcabca")

    def test_weighted_turns_are_smooth(self) -> None:
        abc = targets(5, 1, 1)
        self.assertEqual(elected(begun(RoundRobin(), abc), abc, 14), "aabacaa" * 2)

    def test_a_round_gives_each_its_weight(self) -> None:
        @given(WEIGHTS, st.integers(1, 3))
        def check(weights: list[int], rounds: int) -> None:
            members = targets(*weights)
            counts = Counter(elected(begun(RoundRobin(), members), members, rounds * sum(weights)))
            self.assertEqual(
                counts, {each.label: rounds * each.weight for each in members if each.weight}
            )

        check()

    def test_nobody_is_a_turn_ahead_or_waits_long_whatever_the_shares(self) -> None:
        """
        How far each may be from its share of all elections so far. Ahead: the richest pays one turn, and
        has something. Behind: as water in cups of which the fullest is emptied by one each time what
        is poured is one, 1/2 + 1/3 + … + 1/n is the most.
        """

        @given(st.lists(st.lists(st.integers(1, 40), min_size=5, max_size=5), max_size=60))
        def check(shares_each_time: list[list[int]]) -> None:
            members = targets(1, 1, 1, 1, 1)
            election = begun(RoundRobin(), members)
            due = dict.fromkeys(members, Fraction(0))
            for shares in shares_each_time:
                for member, share in zip(members, shares, strict=True):
                    member.share = share / 4
                    due[member] += Fraction(share, sum(shares))
                winner = election.elect(members, None)
                due[winner] -= 1  # type: ignore[index]
                self.assertGreater(min(due.values()), -1)
                self.assertLess(float(max(due.values())), 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1e-6)

        check()

    def test_a_target_that_starts_slowly_gets_what_its_share_is(self) -> None:
        ab = targets(1, 1)
        ab[1].share = 0.1
        counts = Counter(elected(begun(RoundRobin(), ab), ab, 220))
        self.assertEqual(counts, {"a": 200, "b": 20})


class ComingAndGoingTests(SynchronousTestCase):
    def test_light_ones_take_turns_at_once_when_the_heavy_one_goes_down(self) -> None:
        abc = targets(1000, 1, 1)
        election = begun(RoundRobin(), abc)
        elected(election, abc, 500)
        self.assertIn(elected(election, abc[1:], 6), ("bcbcbc", "cbcbcb"))

    def test_who_was_away_has_gathered_nothing(self) -> None:
        abc = targets(1, 1, 1)
        election = begun(RoundRobin(), abc)
        elected(election, abc, 4)
        elected(election, abc[1:], 1001)
        after = Counter(elected(election, abc, 300))
        self.assertLessEqual({*after.values()}, {99, 100, 101})

    def test_one_that_fails_every_dial_is_tried_in_its_turn_and_no_more(self) -> None:
        abc = targets(2, 1, 1)
        election = begun(RoundRobin(), abc)
        counts = Counter[str]()
        for _ in range(400):
            label = elected(election, abc, 1)
            counts[label] += 1
            if label == "a":
                counts[elected(election, abc[1:], 1)] += 1
        self.assertEqual(counts, {"a": 200, "b": 200, "c": 200})

    def test_nobody_starves_after_any_history(self) -> None:
        @given(
            st.integers(2, 5).flatmap(
                lambda count: st.tuples(
                    st.just(count),
                    st.lists(st.sets(st.integers(0, count - 1), min_size=1), max_size=80),
                )
            )
        )
        def check(history: tuple[int, list[set[int]]]) -> None:
            count, times = history
            members = targets(*[1] * count)
            election = begun(RoundRobin(), members)
            for present in times:
                election.elect([members[index] for index in sorted(present)], None)
            after = elected(election, members, count * (count + 1))
            self.assertEqual(set(after), {member.label for member in members})

        check()

    def test_who_is_new_neither_waits_nor_catches_up(self) -> None:
        abc = targets(1, 1, 1)
        election = begun(RoundRobin(), abc)
        elected(election, abc, 1000)
        more = [*abc, target("d")]
        election.targets_changed(more)
        self.assertEqual(Counter(elected(election, more, 8)), dict.fromkeys("abcd", 2))

    def test_those_who_stay_keep_their_turns(self) -> None:
        abc = targets(1, 1, 1)
        election = begun(RoundRobin(), abc)
        self.assertEqual(elected(election, abc, 1), "a")
        election.targets_changed(abc)
        self.assertEqual(elected(election, abc, 5), "bcabc")

    def test_turns_stay_fair_while_targets_are_replaced_again_and_again(self) -> None:
        members = targets(1, 1, 1, 1)
        election = begun(RoundRobin(), members)
        counts = Counter[Target]()
        for number in range(300):
            members = [*members[1:], target(f"new {number}")]
            election.targets_changed(members)
            for _ in range(9):
                winner = election.elect(members, None)
                counts[winner] += 1  # type: ignore[index]
        whole_lives = [counts[member] for member in counts if member not in members][4:]
        # Each is there for four times nine elections among four.
        self.assertLessEqual({*whole_lives}, {8, 9, 10})

    def test_a_changed_weight_counts_at_once(self) -> None:
        ab = targets(1000, 1)
        election = begun(RoundRobin(), ab)
        elected(election, ab, 500)
        ab[0].share = 1
        self.assertIn(elected(election, ab, 6), ("ababab", "bababa"))

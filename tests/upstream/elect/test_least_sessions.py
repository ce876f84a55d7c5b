"""`fwdrelay.upstream.elect.least_sessions`: by how full targets are."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.interfaces import ITarget
from fwdrelay.upstream.elect.least_sessions import LeastSessions
from tests.case import SynchronousTestCase
from tests.upstream.elect.targets import begun, elected, held, targets

WEIGHTS = st.lists(st.integers(1, 30), min_size=2, max_size=6)


class LeastSessionsTests(SynchronousTestCase):
    def test_among_equals_the_fewest_sessions_win(self) -> None:
        @given(st.lists(st.integers(0, 20), min_size=1, max_size=8))
        def check(counts: list[int]) -> None:
            members = targets(*[1] * len(counts))
            for member, count in zip(members, counts, strict=True):
                member.sessions = count
            winner = begun(LeastSessions(), members).elect(members, None)
            self.assertEqual(winner.sessions, min(counts))

        check()

    def test_equals_that_are_equally_full_take_turns(self) -> None:
        abc = targets(1, 1, 1)
        self.assertEqual(elected(begun(LeastSessions(), abc), abc, 6), "abcabc")

    def test_an_idle_relay_spreads_by_weight(self) -> None:
        @given(WEIGHTS)
        def check(weights: list[int]) -> None:
            members = targets(*weights)
            counts = Counter(elected(begun(LeastSessions(), members), members, sum(weights)))
            self.assertEqual(counts, {each.label: each.weight for each in members})

        check()

    def test_sessions_that_stay_are_spread_by_weight(self) -> None:
        @given(WEIGHTS, st.integers(1, 3))
        def check(weights: list[int], times: int) -> None:
            members = targets(*weights)
            held(begun(LeastSessions(), members), members, times * sum(weights))
            self.assertEqual(
                [member.sessions for member in members], [times * weight for weight in weights]
            )

        check()

    def test_so_are_few_at_a_time(self) -> None:
        ab = targets(10, 1)
        election = begun(LeastSessions(), ab)
        counts = Counter[str]()
        open_ones = deque[ITarget]()
        for _ in range(1100):
            winner = election.elect(ab, None)
            winner.sessions += 1
            counts[winner.label] += 1
            open_ones.append(winner)
            if len(open_ones) == 3:
                open_ones.popleft().sessions -= 1
        # Exactly 100 would be b's; who compares only what there is elects it 550 times, or never.
        self.assertTrue(80 <= counts["b"] <= 110, counts)

    def test_one_whose_sessions_do_not_end_is_passed_over(self) -> None:
        abc = targets(1, 1, 1)
        abc[1].sessions = 5
        self.assertEqual(elected(begun(LeastSessions(), abc), abc, 4), "acac")
        self.assertEqual(Counter(held(begun(LeastSessions(), abc), abc, 10)), {"a": 5, "c": 5})

    def test_a_target_that_starts_slowly_gets_what_its_share_is(self) -> None:
        ab = targets(1, 1)
        ab[1].share = 0.1
        held(begun(LeastSessions(), ab), ab, 220)
        self.assertEqual([each.sessions for each in ab], [200, 20])

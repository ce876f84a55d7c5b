"""`fwdrelay.upstream.pool`: who is elected."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.config import PoolConfig
from fwdrelay.config.grammar import parse_target
from fwdrelay.config.model import Balance
from fwdrelay.upstream import Pool, Target
from tests.case import SynchronousTestCase


def pool(*targets: str, balance: Balance = "round-robin") -> Pool:
    """A pool of targets `a:1`, `b:1,weight=2` and so on."""
    return Pool(
        PoolConfig(name="p", targets=tuple(parse_target(text) for text in targets), balance=balance)
    )


def elected(pool: Pool, count: int) -> str:
    """The hosts of the next so many elected targets; each session ends before the next."""
    hosts = []
    for _ in range(count):
        target = pool.elect()
        assert target is not None
        pool.release(target)
        hosts.append(target.config.host)
    return "".join(hosts)


class RoundRobinTests(SynchronousTestCase):
    def test_all_take_turns_in_their_order(self) -> None:
        self.assertEqual(elected(pool("a:1", "b:1", "c:1"), 7), "abcabca")

    def test_weighted_turns_are_smooth(self) -> None:
        self.assertEqual(elected(pool("a:1,weight=5", "b:1", "c:1"), 14), "aabacaa" * 2)

    def test_one_alone_is_always_elected(self) -> None:
        self.assertEqual(elected(pool("a:1,weight=7"), 3), "aaa")

    def test_a_weight_of_zero_takes_none(self) -> None:
        self.assertEqual(elected(pool("a:1,weight=0", "b:1"), 3), "bbb")
        self.assertIsNone(pool("a:1,weight=0").elect())

    def test_shares_are_those_of_the_weights(self) -> None:
        @given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 3))
        def check(weights: list[int], rounds: int) -> None:
            hosts = "abcdef"[: len(weights)]
            texts = [
                f"{host}:1,weight={weight}" for host, weight in zip(hosts, weights, strict=True)
            ]
            counts = Counter(elected(pool(*texts), rounds * sum(weights)))
            self.assertEqual([counts[host] for host in hosts], [rounds * w for w in weights])

        check()


class FirstTests(SynchronousTestCase):
    def test_the_first_that_may_take_one_more(self) -> None:
        of = pool("a:1,max-sessions=1", "b:1,max-sessions=2", "c:1", balance="first")
        targets = [of.elect() for _ in range(5)]
        self.assertEqual("".join(t.config.host for t in targets if t), "abbcc")
        of.release(of.targets[0])
        self.assertIs(of.elect(), of.targets[0])


class LimitTests(SynchronousTestCase):
    def test_backups_come_only_when_no_other_is_left(self) -> None:
        of = pool("a:1,max-sessions=1", "s:1,backup", "b:1,max-sessions=1", "t:1,backup")
        targets = [of.elect() for _ in range(4)]
        self.assertEqual("".join(t.config.host for t in targets if t), "abst")

    def test_one_that_was_tried_is_not_elected_again(self) -> None:
        of = pool("a:1", "b:1", "s:1,backup")
        tried: list[Target] = []
        while target := of.elect(tried):
            tried.append(target)
        self.assertEqual("".join(t.config.host for t in tried), "abs")

    def test_none_is_left_when_all_are_full(self) -> None:
        of = pool("a:1,max-sessions=1", "b:1,max-sessions=1")
        first, second = of.elect(), of.elect()
        assert first is not None
        self.assertIsNone(of.elect())
        of.release(first)
        self.assertIs(of.elect(), first)
        self.assertIsNot(first, second)

    def test_sessions_are_counted_on_who_was_elected(self) -> None:
        of = pool("a:1", "b:1")
        for _ in range(3):
            of.elect()
        self.assertEqual([target.sessions for target in of.targets], [2, 1])

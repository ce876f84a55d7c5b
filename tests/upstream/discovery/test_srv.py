"""`fwdrelay.upstream.discovery.srv`: what SRV records say, without a server."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.names import dns

from fwdrelay.upstream.discovery.srv import SMALL, Service, in_order, weighed
from tests.case import SynchronousTestCase


def record(target: str, port: int = 80, priority: int = 0, weight: int = 0) -> Any:
    """The payload of a record."""
    return dns.Record_SRV(priority, weight, port, target)


def services(*weights: int, priority: int = 0) -> list[Service]:
    """One with each of these weights."""
    return [Service(f"h{n}", 80, priority, weight) for n, weight in enumerate(weights)]


def weights_of(found: list[Service]) -> list[int]:
    """In their order."""
    return [each.weight for each in found]


class InOrderTests(SynchronousTestCase):
    def test_the_most_wanted_first(self) -> None:
        found = in_order(
            [
                record("c.test", priority=20, weight=9),
                record("b.test", priority=10, weight=1),
                record("a.test", priority=10, weight=1),
                record("d.test", priority=10, weight=5),
            ]
        )
        self.assertEqual([each.host for each in found], ["d.test", "a.test", "b.test", "c.test"])

    def test_the_same_host_and_port_once(self) -> None:
        found = in_order(
            [
                record("a.test", 80, priority=20, weight=7),
                record("A.test", 80, priority=10, weight=1),
                record("a.test", 81),
                record("a.test", 80, priority=10, weight=3),
            ]
        )
        self.assertEqual(found, [Service("a.test", 81, 0, 0), Service("a.test", 80, 10, 3)])

    def test_the_root_is_no_host(self) -> None:
        self.assertEqual(in_order([record("", 0)]), [])
        self.assertEqual(len(in_order([record("", 0), record("a.test")])), 1)

    def test_port_0_is_none(self) -> None:
        self.assertEqual(in_order([record("a.test", 0)]), [])


class WeighedTests(SynchronousTestCase):
    def test_weights_stay_where_none_is_0(self) -> None:
        self.assertEqual(weights_of(weighed(services(1, 2, 65535))), [1, 2, 65535])

    def test_all_0_are_equal(self) -> None:
        self.assertEqual(weights_of(weighed(services(0, 0, 0))), [1, 1, 1])

    def test_0_among_others_is_very_small(self) -> None:
        self.assertEqual(weights_of(weighed(services(1, 3, 0))), [100, 300, 1])
        self.assertEqual(weights_of(weighed(services(500, 0, 1000))), [500, 1, 1000])

    def test_priorities_are_weighed_by_themselves(self) -> None:
        both = [*services(1, 0), *services(1, 2, priority=1)]
        self.assertEqual(weights_of(weighed(both)), [100, 1, 1, 2])

    @given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 2)), max_size=20))
    def test_what_always_holds(self, pairs: list[tuple[int, int]]) -> None:
        given_services = [
            Service(f"h{n}", 80, priority, weight) for n, (weight, priority) in enumerate(pairs)
        ]
        found = weighed(given_services)
        self.assertTrue(all(each.weight >= 1 for each in found))
        pairs_of = list(zip(given_services, found, strict=True))
        for before, after in pairs_of:
            for other, its in pairs_of:
                if before.priority != other.priority or not before.weight:
                    continue
                if other.weight:  # shares of those that have one stay as they were
                    self.assertEqual(after.weight * other.weight, its.weight * before.weight)
                else:
                    self.assertGreaterEqual(after.weight, SMALL * its.weight)

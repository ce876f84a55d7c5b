"""`fwdrelay.upstream.pool`: which targets there are, who may be elected, who waits."""

from __future__ import annotations

from typing import Any
from unittest import mock

from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer

from fwdrelay.config import DiscoverConfig, HealthConfig
from fwdrelay.interfaces import Found, IElection
from fwdrelay.ledger import Ledger
from fwdrelay.upstream import Pool, Target, make_parts
from tests.case import SynchronousTestCase
from tests.upstream.pools import by_host, change, elected, hosts, make_pool

CLIENTS = tuple(f"192.0.2.{number}" for number in range(60))


class ElectTests(SynchronousTestCase):
    def test_the_configured_election_elects(self) -> None:
        self.assertEqual(elected(make_pool("a:1,weight=5", "b:1", "c:1"), 7), "aabacaa")
        self.assertEqual(elected(make_pool("a:1", "b:1", balance="first"), 3), "aaa")

    def test_one_alone_is_always_elected(self) -> None:
        self.assertEqual(elected(make_pool("a:1,weight=7"), 3), "aaa")

    def test_sessions_are_counted_on_who_was_elected(self) -> None:
        of = make_pool("a:1", "b:1")
        for _ in range(3):
            of.elect()
        self.assertEqual([target.sessions for target in of.targets], [2, 1])
        self.assertEqual(of.sessions, 3)

    def test_the_first_that_may_take_one_more(self) -> None:
        of = make_pool("a:1,max-sessions=1", "b:1,max-sessions=2", "c:1", balance="first")
        self.assertEqual(hosts(of.elect() for _ in range(5)), "abbcc")
        of.release(of.targets[0])
        self.assertIs(of.elect(), of.targets[0])

    def test_backups_come_only_when_no_other_is_left(self) -> None:
        of = make_pool("a:1,max-sessions=1", "s:1,backup", "b:1,max-sessions=1", "t:1,backup")
        self.assertEqual(hosts(of.elect() for _ in range(4)), "abst")

    def test_the_lowest_priority_that_has_one_left_comes_first(self) -> None:
        of = make_pool("a:1,max-sessions=1", "b:1,max-sessions=1", "s:1,backup")
        first, second, backup = of.config.targets
        targets = (evolve(first, priority=20), evolve(second, priority=10), backup)
        change(of, targets=targets)
        self.assertEqual(hosts(of.elect() for _ in range(3)), "bas")

    def test_one_that_was_tried_is_not_elected_again(self) -> None:
        of = make_pool("a:1", "b:1", "s:1,backup")
        tried: list[Target] = []
        while target := of.elect(None, tried):
            tried.append(target)
        self.assertEqual(hosts(tried), "abs")

    def test_none_is_left_when_all_are_full(self) -> None:
        of = make_pool("a:1,max-sessions=1", "b:1,max-sessions=1")
        first, second = of.elect(), of.elect()
        assert first is not None
        self.assertIsNone(of.elect())
        self.assertIn("as many sessions as it may", of.why_none())
        of.release(first)
        self.assertIs(of.elect(), first)
        self.assertIsNot(first, second)

    def test_the_pool_has_a_limit_of_its_own(self) -> None:
        of = make_pool("a:1", "b:1", max_sessions=2)
        self.assertEqual(hosts(of.elect() for _ in range(3)), "ab-")
        self.assertEqual(of.why_none(), "the pool has as many sessions as it may")
        of.release(of.targets[0])
        self.assertEqual(hosts(of.elect() for _ in range(2)), "a-")


@implementer(IElection)
@define
class Elects:
    """An election that does what it is told to; an exception is raised."""

    what: Any
    targets: list[Any] = field(factory=list)

    def targets_changed(self, targets: Any) -> None:
        self.targets.append(list(targets))

    def elect(self, candidates: Any, client: str | None) -> Any:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


class OthersElectionTests(SynchronousTestCase):
    def test_one_that_fails_costs_no_session(self) -> None:
        for what in (
            ZeroDivisionError("a defect"),
            None,
            Target(make_pool("z:1").config.targets[0]),
        ):
            of = make_pool("a:1", "b:1")
            of._election = Elects(what)
            self.assertEqual(elected(of, 3), "aaa")
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, TypeError)), 1)

    def test_one_that_fails_when_it_is_told_holds_up_no_change(self) -> None:
        class Deaf(Elects):
            def targets_changed(self, targets: Any) -> None:
                raise ZeroDivisionError("a defect")

        of = make_pool("a:1", "b:1")
        gone, stays = of.targets
        of._election = Deaf(None)
        change(of, "b:1", "c:1")
        self.assertEqual(hosts(of.targets), "bc")
        self.assertIs(of.targets[0], stays)
        self.assertTrue(gone.removed)
        self.assertEqual(elected(of, 2), "bb")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_what_takes_an_election_long_is_done_in_turns_of_its_own(self) -> None:
        reactor = Clock()
        of = make_pool("a:1", "b:1", reactor=reactor, balance="source-hash")
        change(of, "a:1", "b:1", "c:1", balance="source-hash")
        self.assertEqual(len(reactor.getDelayedCalls()), 1)
        while reactor.getDelayedCalls():
            reactor.advance(0)
        clients = [f"10.0.0.{n}" for n in range(100)]
        self.assertEqual(set(hosts(of.elect(client) for client in clients)), set("abc"))

    def test_it_hears_of_changes_and_of_nothing_else(self) -> None:
        of = make_pool("a:1", "b:1")
        of._election = election = Elects(None)
        change(of, "a:1", "b:1", retries=5)
        self.assertEqual(election.targets, [])
        change(of, "a:1", "b:1,weight=2")
        change(of, "c:1", "b:1,weight=2")
        change(of, "c:1", "b:1,weight=2,backup")
        self.assertEqual([hosts(targets) for targets in election.targets], ["ab", "cb", "cb"])


class HealthTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Clock()
        self.reactor.advance(1000)
        self.lost: list[Target] = []

    def make(self, *targets: str, **fields: Any) -> Pool:
        return make_pool(*targets, reactor=self.reactor, lost=self.lost.append, **fields)

    def tell(self, pool: Pool, host: str, up: bool) -> None:
        """What the pool's health says."""
        pool._target_changed(by_host(pool, host), up, "so it is")

    def test_one_that_is_down_gets_nothing_new(self) -> None:
        of = self.make("a:1", "b:1", "s:1,backup")
        self.tell(of, "a", False)
        self.assertEqual(elected(of, 2), "bb")
        self.tell(of, "b", False)
        self.assertEqual(elected(of, 2), "ss")
        self.tell(of, "a", True)
        self.assertEqual(elected(of, 2), "aa")

    def test_where_all_are_down_all_are_tried(self) -> None:
        of = self.make("a:1", "b:1", "s:1,backup")
        for host in "abs":
            self.tell(of, host, False)
        self.assertEqual(elected(of, 2), "ab")

    def test_where_all_are_down_nobody_is_tried_if_that_is_wanted(self) -> None:
        of = self.make("a:1", "b:1", health=HealthConfig(when_all_down="refuse"), queue=9)
        for host in "ab":
            self.tell(of, host, False)
        self.assertIsNone(of.elect())
        self.assertFalse(of.may_wait())
        self.assertEqual(of.why_none(), "every target is down")

    def test_sessions_on_one_that_goes_down_are_kept_or_closed(self) -> None:
        self.tell(self.make("a:1", "b:1"), "a", False)
        self.assertEqual(self.lost, [])
        of = self.make("a:1", "b:1", on_target_down="close")
        self.tell(of, "a", False)
        self.assertEqual(self.lost, [by_host(of, "a")])

    def test_one_that_comes_up_starts_slowly(self) -> None:
        of = self.make("a:1", "b:1", health=HealthConfig(slow_start=100))
        self.tell(of, "a", False)
        self.tell(of, "a", True)
        self.assertEqual(elected(of, 22).count("a"), 2)
        self.reactor.advance(50)
        self.assertEqual(elected(of, 30).count("a"), 10)
        self.reactor.advance(60)
        self.assertEqual(elected(of, 30).count("a"), 15)
        self.assertEqual(of._starting, [])

    def test_what_is_meant_for_one_that_starts_slowly(self) -> None:
        for balance, share in (("round-robin", 1 / 11), ("source-hash", 1 / 2)):
            of = self.make("a:1", "b:1", balance=balance, health=HealthConfig(slow_start=100))
            self.tell(of, "a", False)
            self.tell(of, "a", True)
            self.assertAlmostEqual(of.shares()[by_host(of, "a")], share)

    def test_that_nobody_is_left_is_told_where_others_are_taken_out(self) -> None:
        of = self.make("a:1", "b:1", "c:1", health=HealthConfig(when_all_down="refuse"))
        of.steer(by_host(of, "a"), "drain", None)
        with capturedLogs() as logged:
            self.tell(of, "b", False)
            self.tell(of, "c", False)
        levels = [event["log_level"].name for event in logged]
        self.assertEqual(levels, ["warn", "warn", "error"])

    def test_one_that_is_added_starts_slowly(self) -> None:
        of = self.make("a:1,weight=10", health=HealthConfig(slow_start=100))
        self.assertEqual(by_host(of, "a").share, 10)
        change(of, "a:1,weight=10", "b:1,weight=10", health=of.config.health)
        self.assertEqual(by_host(of, "b").share, 1)
        change(of, "a:1,weight=10", "b:1,weight=20", health=of.config.health)
        self.assertEqual(by_host(of, "b").share, 2)
        change(of, "a:1,weight=10", "b:1,weight=20")
        of.elect()
        self.assertEqual((by_host(of, "b").share, of._starting), (20, []))

    def test_one_that_is_down_is_up_when_nobody_checks_it_any_more(self) -> None:
        health = HealthConfig(passive_failures=1, interval=3600)
        of = self.make("a:1", "b:1", health=health)
        of.dial_failed(by_host(of, "a"), "refused", "Connection refused")
        self.assertEqual(elected(of, 2), "bb")
        change(of, "a:1", "b:1")
        self.assertEqual(set(elected(of, 2)), {"a", "b"})
        of.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_what_was_found_out_stays_known_when_the_checks_change(self) -> None:
        self.reactor.connectTCP = lambda *arguments, **more: None  # type: ignore[attr-defined]
        of = self.make("127.0.0.1:1", health=HealthConfig(check="tcp", fall=2))
        self.addCleanup(of.stop)
        (target,) = of.targets
        (first,) = [of._health]
        assert first is not None
        first._watched[target].vitals.passed()
        change(of, "127.0.0.1:1", "127.0.0.1:2", health=HealthConfig(check="tcp", fall=3))
        second = of._health
        assert second is not None
        self.assertIsNot(second, first)
        self.assertEqual(second.seen(), {target})
        slow = HealthConfig(check="tcp", fall=3, slow_start=9, when_all_down="refuse")
        change(of, "127.0.0.1:1", "127.0.0.1:2", health=slow)
        self.assertIs(of._health, second)


class ChangeTests(SynchronousTestCase):
    def test_those_that_stay_are_the_same(self) -> None:
        of = make_pool("a:1", "b:1", "c:1")
        a, b, c = of.targets
        of.elect()
        change(of, "d:1", "c:1,weight=3", "a:1")
        self.assertIs(of.targets[1], c)
        self.assertIs(of.targets[2], a)
        self.assertEqual((a.sessions, c.weight, c.share), (1, 3, 3))
        self.assertEqual([target.removed for target in (a, b, c)], [False, True, False])

    def test_one_of_another_address_is_another_even_under_the_same_name(self) -> None:
        of = make_pool("a:1,name=x")
        (before,) = of.targets
        change(of, "b:1,name=x")
        self.assertTrue(before.removed)
        self.assertEqual(of.targets[0].config.host, "b")

    def test_sessions_of_the_removed_are_kept_or_closed(self) -> None:
        lost: list[Target] = []
        of = make_pool("a:1", "b:1", lost=lost.append)
        change(of, "b:1", on_target_down="close")
        self.assertEqual(hosts(lost), "a")
        change(of, "c:1", on_target_down="keep")
        self.assertEqual(hosts(lost), "a")

    def test_a_session_on_a_removed_target_still_counts_until_it_ends(self) -> None:
        of = make_pool("a:1", max_sessions=1)
        target = of.elect()
        assert target is not None
        change(of, "b:1", max_sessions=1)
        self.assertIsNone(of.elect())
        of.release(target)
        self.assertEqual(hosts([of.elect()]), "b")

    def test_what_was_discovered_stays_while_it_is_asked_anew(self) -> None:
        reactor = Clock()
        (target,) = make_pool("a:1").config.targets
        asked: list[Deferred[Found]] = []

        def discover() -> Deferred[Found]:
            asked.append(Deferred())
            return asked[-1]

        def to(of: Pool, nameservers_changed: bool, max_sessions: int) -> None:
            config = DiscoverConfig(scheme="test", argument="x", max_sessions=max_sessions)
            of_pool = evolve(of.config, discover=(config,))
            of.change(of_pool, make_parts(of_pool, reactor, ()), nameservers_changed)

        made = mock.Mock(discover=discover)
        lost: list[Target] = []
        with mock.patch("fwdrelay.upstream.parts.make_discovery", lambda *args: made):
            of = make_pool(reactor=reactor, lost=lost.append, on_target_down="close")
            to(of, False, 0)
            self.assertFalse(of.known)
            asked[0].callback(Found([target], 60.0))
            (found,) = of.targets
            to(of, True, 0)
            to(of, False, 7)
            to(of, False, 7)
        self.assertEqual(len(asked), 3)
        self.assertEqual((of.targets, of.known, lost), ((found,), True, []))
        asked[2].callback(Found([target], 60.0))
        self.assertEqual((of.targets, found.config.max_sessions, lost), ((found,), 7, []))
        of.stop()
        self.assertEqual(reactor.getDelayedCalls(), [])

    def test_a_pool_that_is_removed_has_no_targets(self) -> None:
        lost: list[Target] = []
        of = make_pool("a:1", "b:1", lost=lost.append, on_target_down="close")
        of.remove()
        self.assertEqual((of.targets, hosts(lost)), ((), "ab"))
        self.assertIsNone(of.elect())
        self.assertEqual(of.why_none(), "the pool was removed")


@define(eq=False)
class Waiting:
    """A session that waits."""

    tried: tuple[Target, ...] = ()
    client_host: str | None = None
    target: Target | None = None
    sent_away: bool = False

    def place_found(self, target: Target) -> None:
        self.target = target

    def no_place(self) -> None:
        self.sent_away = True


class QueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Clock()

    def make(self, *targets: str, **fields: Any) -> Pool:
        return make_pool(*targets, reactor=self.reactor, **{"queue": 5.0, **fields})

    def wait(self, pool: Pool, *tried: Target) -> Waiting:
        waiter = Waiting(tried)
        self.assertTrue(pool.may_wait(tried))
        self.assertTrue(pool.wait(waiter))
        return waiter

    def test_places_go_to_those_who_wait_in_order(self) -> None:
        of = self.make("a:1,max-sessions=1", "b:1,max-sessions=1")
        one, other = of.elect(), of.elect()
        assert one is not None
        assert other is not None
        waiters = [self.wait(of) for _ in range(3)]
        self.reactor.advance(0)
        self.assertEqual([waiter.target for waiter in waiters], [None] * 3)
        of.release(other)
        of.release(one)
        self.reactor.advance(0)
        self.assertEqual([waiter.target is None for waiter in waiters], [False, False, True])
        self.assertEqual(of.waiting, 1)

    def test_one_that_leaves_is_passed_over(self) -> None:
        of = self.make("a:1", max_sessions=1)
        target = of.elect()
        assert target is not None
        first, second = self.wait(of), self.wait(of)
        of.release(target)
        of.leave(first)
        self.reactor.advance(0)
        self.assertEqual(hosts([first.target, second.target]), "-a")

    def test_one_that_can_do_nothing_with_a_place_does_not_hold_up_the_next(self) -> None:
        of = self.make("a:1,max-sessions=1", "b:1,max-sessions=1")
        a, b = of.elect(), of.elect()
        assert a is not None
        assert b is not None
        first, second = self.wait(of, a), self.wait(of)
        of.release(a)
        self.reactor.advance(0)
        self.assertEqual(hosts([first.target, second.target]), "-a")
        of.release(b)
        self.reactor.advance(0)
        self.assertEqual(hosts([first.target]), "b")

    def test_the_queue_is_bounded(self) -> None:
        of = self.make("a:1", max_sessions=1, max_queued=2)
        of.elect()
        self.assertEqual([of.wait(Waiting()) for _ in range(3)], [True, True, False])

    def test_more_places_by_a_reload_are_given_at_once(self) -> None:
        of = self.make("a:1", max_sessions=1)
        of.elect()
        waiter = self.wait(of)
        change(of, "a:1", max_sessions=2, queue=5.0)
        self.reactor.advance(0)
        self.assertEqual(hosts([waiter.target]), "a")

    def test_without_a_queue_nobody_waits_any_more(self) -> None:
        of = self.make("a:1", max_sessions=1)
        of.elect()
        waiters = [self.wait(of), self.wait(of)]
        change(of, "a:1", max_sessions=2)
        self.reactor.advance(0)
        self.assertEqual(hosts(waiter.target for waiter in waiters), "a-")
        self.assertEqual([waiter.sent_away for waiter in waiters], [False, True])
        self.assertEqual(of.waiting, 0)

    def test_nobody_waits_in_a_pool_that_is_removed(self) -> None:
        of = self.make("a:1", max_sessions=1)
        of.elect()
        waiter = self.wait(of)
        of.remove()
        self.assertTrue(waiter.sent_away)
        self.assertEqual(of.waiting, 0)

    def test_until_a_discovery_has_answered_and_no_longer(self) -> None:
        asked: Deferred[Found] = Deferred()
        made = mock.Mock(**{"discover.return_value": asked})
        with mock.patch("fwdrelay.upstream.parts.make_discovery", lambda *args: made):
            discover = DiscoverConfig(scheme="test", argument="x")
            of = self.make(discover=(discover,), queue=0.0)
        waiters = [self.wait(of), self.wait(of)]
        (target,) = make_pool("a:1,max-sessions=1").config.targets
        asked.callback(Found([target], 60.0))
        self.reactor.advance(0)
        self.assertEqual(hosts(waiter.target for waiter in waiters), "a-")
        self.assertEqual([waiter.sent_away for waiter in waiters], [False, True])
        of.stop()

    def test_nobody_waits_for_what_will_not_come(self) -> None:
        of = self.make("a:1")
        a = of.elect()
        assert a is not None
        self.assertFalse(of.may_wait([a]))
        self.assertFalse(make_pool("a:1", max_sessions=1).may_wait())

    def test_no_limit_is_exceeded_and_nobody_waits_beside_a_free_place(self) -> None:
        moves = st.lists(
            st.tuples(st.sampled_from(["come", "end", "leave", "turn"]), st.integers(0, 99)),
            max_size=80,
        )
        limits = st.lists(st.integers(0, 3), min_size=1, max_size=4)

        @given(limits, st.integers(0, 5), moves)
        def check(of_targets: list[int], of_pool: int, moves: list[tuple[str, int]]) -> None:
            self.setUp()
            texts = [f"h{n}:1,max-sessions={limit}" for n, limit in enumerate(of_targets)]
            pool = self.make(*texts, max_sessions=of_pool)
            open_: list[Target] = []
            waiting: list[Waiting] = []
            for move, number in moves:
                if move == "come":
                    target = None if pool.waiting else pool.elect()
                    if target is not None:
                        open_.append(target)
                    else:
                        waiting.append(self.wait(pool))
                elif move == "end" and open_:
                    pool.release(open_.pop(number % len(open_)))
                elif move == "leave" and waiting:
                    pool.leave(waiting.pop(number % len(waiting)))
                elif move == "turn":
                    self.reactor.advance(0)
                open_ += [waiter.target for waiter in waiting if waiter.target is not None]
                waiting = [waiter for waiter in waiting if waiter.target is None]
                self.assertEqual(pool.sessions, len(open_))
                self.assertTrue(not of_pool or len(open_) <= of_pool)
                for target, limit in zip(pool.targets, of_targets, strict=True):
                    self.assertEqual(target.sessions, open_.count(target))
                    self.assertTrue(not limit or target.sessions <= limit)
            self.reactor.advance(0)
            if pool.waiting:
                self.assertIsNone(pool.elect())

        check()


class SteeringTests(SynchronousTestCase):
    """What an operator wants of targets, while the relay runs."""

    def label(self, pool: Pool, host: str) -> Target:
        return next(target for target in pool.targets if target.config.host == host)

    def test_one_that_drains_keeps_its_sessions_and_gets_no_more(self) -> None:
        lost: list[Target] = []
        pool = make_pool("a:1", "b:1", lost=lost.append, on_target_down="close")
        a = pool.elect()
        assert a is not None
        pool.steer(a, "drain", None)
        self.assertEqual(elected(pool, 3), "bbb")
        self.assertEqual((a.sessions, lost), (1, []))
        pool.steer(a, "ready", None)
        self.assertEqual(sorted(elected(pool, 2)), ["a", "b"])

    def test_that_none_is_left_is_told(self) -> None:
        pool = make_pool("a:1", "b:1")
        a, b = pool.targets
        with capturedLogs() as logged:
            pool.steer(a, "drain", None)
            self.assertEqual(logged, [])
            pool.steer(b, "drain", None)
            pool.steer(b, "down", None)
        self.assertEqual(
            [formatEvent(event) for event in logged],
            ["Pool p has no target left that is up: new sessions are refused."],
        )

    def test_one_that_is_set_down_is_treated_as_one_that_is(self) -> None:
        lost: list[Target] = []
        pool = make_pool("a:1", "b:1", lost=lost.append, on_target_down="close")
        a = self.label(pool, "a")
        pool.steer(a, "down", None)
        pool.steer(a, "down", None)
        self.assertEqual((elected(pool, 2), lost), ("bb", [a]))
        kept: list[Target] = []
        pool = make_pool("a:1", "b:1", lost=kept.append)
        pool.steer(self.label(pool, "a"), "down", None)
        self.assertEqual(kept, [])

    def test_where_all_are_taken_out_nobody_is_tried(self) -> None:
        pool = make_pool("a:1", "b:1", health=HealthConfig(when_all_down="try"))
        for target in pool.targets:
            pool.steer(target, "drain", None)
        self.assertIsNone(pool.elect())
        self.assertEqual(pool.why_none(), "every target was taken out by an operator")

    def test_where_the_others_are_down_they_are_tried_but_not_the_one_that_drains(self) -> None:
        pool = make_pool("a:1", "b:1", health=HealthConfig(when_all_down="try"))
        pool.steer(self.label(pool, "a"), "drain", None)
        pool._target_changed(self.label(pool, "b"), False, "cut off")
        self.assertEqual(elected(pool, 2), "bb")

    def test_why_none_is_left_tells_of_both(self) -> None:
        pool = make_pool("a:1", "b:1", health=HealthConfig(when_all_down="refuse"))
        pool.steer(self.label(pool, "a"), "drain", None)
        pool._target_changed(self.label(pool, "b"), False, "cut off")
        self.assertEqual(pool.why_none(), "every target is down or taken out by an operator")

    def test_a_weight_counts_from_the_next_election_on(self) -> None:
        pool = make_pool("a:1", "b:1")
        pool.steer(self.label(pool, "a"), None, 3)
        self.assertEqual(sorted(elected(pool, 4)), ["a", "a", "a", "b"])
        self.assertEqual([round(share, 2) for share in pool.shares().values()], [0.75, 0.25])

    def test_the_election_hears_of_a_weight(self) -> None:
        clock = Clock()
        pool = make_pool("a:1", "b:1", reactor=clock, balance="source-hash")
        before = {client: pool._choose(pool.targets, client) for client in CLIENTS}
        pool.steer(self.label(pool, "a"), None, 50)
        while clock.getDelayedCalls():  # its table is made anew, piece by piece
            clock.advance(1)
        after = {client: pool._choose(pool.targets, client) for client in CLIENTS}
        on_a = [
            sum(each is pool.targets[0] for each in those.values()) for those in (before, after)
        ]
        self.assertLess(on_a[0], 40)
        self.assertGreater(on_a[1], 50)

    def test_a_reload_keeps_what_an_operator_wants(self) -> None:
        pool = make_pool("a:1", "b:1")
        a = self.label(pool, "a")
        pool.steer(a, "drain", 5)
        change(pool, "a:1", "b:1", "c:1")
        self.assertEqual((a.state, a.weight), ("drain", 5))
        self.assertNotIn("a", elected(pool, 4))

    def test_a_reload_that_says_another_weight_wins(self) -> None:
        pool = make_pool("a:1", "b:1")
        a = self.label(pool, "a")
        pool.steer(a, None, 5)
        change(pool, "a:1,weight=2", "b:1")
        self.assertEqual((a.weight, a.share), (2, 2))

    def test_the_configured_weight_is_not_one_of_the_operators_own(self) -> None:
        pool = make_pool("a:1,weight=4", "b:1")
        a = self.label(pool, "a")
        pool.steer(a, None, 2)
        pool.steer(a, None, 4)
        self.assertIsNone(a.own_weight)

    def test_one_that_starts_slowly_goes_on_doing_so_with_another_weight(self) -> None:
        clock = Clock()
        clock.advance(100)
        pool = make_pool("a:1", reactor=clock, health=HealthConfig(slow_start=10.0))
        change(pool, "a:1", "b:1", health=HealthConfig(slow_start=10.0))
        b = self.label(pool, "b")
        clock.advance(5)
        pool.steer(b, None, 10)
        self.assertEqual(b.share, 5.0)
        clock.advance(5)
        self.assertEqual(pool.shares()[b], 10 / 11)

    def test_whoever_waits_gets_a_place_on_one_that_is_restored(self) -> None:
        clock = Clock()
        pool = make_pool("a:1", reactor=clock, queue=5.0, health=HealthConfig())
        a = self.label(pool, "a")
        pool.steer(a, "drain", None)
        self.assertFalse(pool.may_wait())  # nobody waits for an operator
        pool.steer(a, "ready", None)
        self.assertIs(pool.elect(), a)


class WhyTests(SynchronousTestCase):
    """Why one was elected, in words."""

    def test_the_only_one(self) -> None:
        pool = make_pool("a:1")
        a = pool.elect()
        assert a is not None
        self.assertEqual(pool.why(a), "the only one")

    def test_among_others(self) -> None:
        pool = make_pool("a:1", "b:1", balance="least-sessions")
        pool.targets[0].sessions = 2
        b = pool.elect()
        assert b is not None
        self.assertEqual(pool.why(b), "by least-sessions among 2: b:1 has 0, a:1 has 2")

    def test_who_was_passed_over(self) -> None:
        pool = make_pool("a:1", "b:1", "c:1,max-sessions=1", "d:1", "e:1", "f:1,backup")
        a, b, c, d, e, _ = pool.targets
        pool.steer(a, "drain", None)
        pool._target_changed(b, False, "cut off")
        c.sessions = 1
        self.assertIs(pool.elect(None, (d,)), e)
        self.assertEqual(
            pool.why(e, (d,)),
            "the only one left; a:1 is set to drain, b:1 is down, c:1 is full, d:1 was tried,"
            " f:1 is of another tier",
        )


class DialsTests(SynchronousTestCase):
    def test_what_dials_come_to_is_counted_on_their_target(self) -> None:
        pool = make_pool("a:1")
        [a] = pool.targets
        self.assertIsNone(a.dials.average)
        pool.dialed(a, 0.1)
        pool.dialed(a, 0.9)
        pool.dial_failed(a, "refused", "Connection refused")
        pool.dial_failed(a, "refused", "Connection refused")
        self.assertEqual(a.dials.failures, {"refused": 2})
        counts = a.dials.seconds.counts()
        self.assertEqual((counts.count, counts.total), (2, 1.0))
        self.assertEqual(a.dials.average, 0.2)


class SharedTests(SynchronousTestCase):
    """Several processes, each with a pool of the same name, which count in one ledger."""

    def setUp(self) -> None:
        self.reactor = Clock()
        self.reactor.advance(1000)
        self.ledger = Ledger.create(self.reactor.seconds)
        self.addCleanup(self.ledger.close)

    def make(self, *targets: str, **fields: Any) -> Pool:
        """
        @return: as another process has it.
        """
        ledger = Ledger.open(self.ledger.fileno(), self.reactor.seconds)
        self.addCleanup(ledger.close)
        return make_pool(*targets, reactor=self.reactor, ledger=ledger, **fields)

    def two(self, *targets: str, **fields: Any) -> tuple[Pool, Pool]:
        return self.make(*targets, **fields), self.make(*targets, **fields)

    def elect(self, pool: Pool) -> Target:
        target = pool.elect()
        assert target is not None
        return target

    def wait(self, pool: Pool, *tried: Target) -> Waiting:
        waiter = Waiting(tried)
        self.assertTrue(pool.wait(waiter))
        self.reactor.advance(0)
        return waiter

    def serve(self, seconds: float) -> None:
        """Let so much time pass, in steps in which everybody may look for a place."""
        for _ in range(round(seconds * 100)):
            self.reactor.advance(0.01)
            self.reactor.advance(0)

    def test_no_more_than_the_limit_are_on_a_pool(self) -> None:
        one, other = self.two("a:1", "b:1", max_sessions=3)
        targets = [each.elect() for each in (one, other, other, one, other)]
        self.assertEqual(hosts(targets), "aab--")
        self.assertEqual((one.sessions, other.sessions), (1, 2))
        self.assertEqual(one.why_none(), "the pool has as many sessions as it may")
        other.release(by_host(other, "b"))
        self.assertIsNotNone(one.elect())
        self.assertIsNone(other.elect())

    def test_no_more_than_the_limit_are_on_a_target(self) -> None:
        targets = ("a:1,max-sessions=2", "b:1,max-sessions=1", "s:1,backup")
        one, other = self.two(*targets, balance="first")
        self.assertEqual(hosts(each.elect() for each in (one, other, one, other)), "aabs")
        self.assertIn("a:1 is full", one.why(by_host(one, "s")))
        one.release(by_host(one, "a"))
        self.assertEqual(hosts([other.elect(), other.elect()]), "as")

    def test_a_place_in_the_pool_is_not_kept_for_a_target_that_is_not_there(self) -> None:
        one, other = self.two("a:1,max-sessions=1", max_sessions=2)
        self.elect(one)
        self.assertEqual(hosts(other.elect() for _ in range(5)), "-----")
        change(one, "a:1", max_sessions=2)
        self.assertEqual(hosts([one.elect(), one.elect()]), "a-")

    def test_a_limit_that_comes_later_knows_who_is_there(self) -> None:
        one, other = self.two("a:1", "b:1", balance="first")
        for each in (one, one, other):
            self.elect(each)
        change(other, "a:1,max-sessions=4", "b:1", balance="first", max_sessions=5)
        self.assertEqual(hosts(other.elect() for _ in range(3)), "ab-")
        one.release(by_host(one, "a"))
        self.assertEqual(hosts(other.elect() for _ in range(2)), "a-")

    def test_pools_and_targets_are_told_apart(self) -> None:
        one = self.make("a:1,max-sessions=1", "b:1,max-sessions=1", name="one")
        other = self.make("a:1,max-sessions=1", name="other")
        self.assertEqual(hosts([one.elect(), one.elect(), other.elect()]), "aba")

    def test_who_moves_is_counted_all_the_while(self) -> None:
        one, other = self.two("a:1,max-sessions=1", max_sessions=1)
        target = self.elect(one)
        other.adopt(by_host(other, "a"))
        one.release(target)
        self.assertEqual((one.sessions, other.sessions), (0, 1))
        self.assertIsNone(one.elect())
        other.release(by_host(other, "a"))
        self.assertIsNotNone(one.elect())

    def test_without_a_ledger_who_is_adopted_is_counted_too(self) -> None:
        of = make_pool("a:1,max-sessions=1")
        of.adopt(by_host(of, "a"))
        self.assertEqual((of.sessions, of.targets[0].sessions, of.elect()), (1, 1, None))

    def test_a_place_that_another_has_given_back_is_found(self) -> None:
        one, other = self.two("a:1,max-sessions=1", queue=5.0)
        target = self.elect(one)
        waiter = self.wait(other)
        self.serve(1.0)
        self.assertIsNone(waiter.target)
        one.release(target)
        self.serve(0.1)
        self.assertIs(waiter.target, by_host(other, "a"))
        self.assertEqual(self.reactor.getDelayedCalls(), [], "nobody waits")

    def test_places_given_back_here_are_given_at_once(self) -> None:
        one = self.make("a:1", max_sessions=1, queue=5.0)
        target = self.elect(one)
        waiter = self.wait(one)
        one.release(target)
        self.reactor.advance(0)
        self.assertIs(waiter.target, target)

    def test_who_stops_looks_for_no_place(self) -> None:
        one, other = self.two("a:1", max_sessions=1, queue=5.0)
        self.elect(one)
        self.wait(other)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        other.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_who_has_waited_longer_elsewhere_goes_first(self) -> None:
        one, other = self.two("a:1", max_sessions=1, queue=5.0)
        target = self.elect(one)
        early = self.wait(other)
        self.serve(0.3)
        late = self.wait(one)
        one.release(target)
        self.serve(0.1)
        self.assertEqual(hosts([early.target, late.target]), "a-")
        other.release(by_host(other, "a"))
        self.serve(0.1)
        self.assertEqual(hosts([late.target]), "a")

    def test_who_comes_passes_nobody_who_waits_elsewhere(self) -> None:
        one, other = self.two("a:1", max_sessions=1, queue=5.0)
        target = self.elect(one)
        early = self.wait(other)
        self.serve(0.3)
        one.release(target)
        self.assertIsNone(one.elect())
        self.serve(0.1)
        self.assertEqual(hosts([early.target]), "a")

    def test_a_place_that_is_not_wanted_elsewhere_is_given_here(self) -> None:
        one, other = self.two("a:1", "b:1", max_sessions=2, queue=5.0)
        target = self.elect(one)
        self.elect(one)
        for each in other.targets:
            other.steer(each, "drain", None)
        early = self.wait(other)
        self.serve(0.3)
        late = self.wait(one)
        one.release(target)
        self.serve(0.1)
        self.assertEqual(hosts([early.target, late.target]), "--")
        self.serve(0.1)
        self.assertEqual(hosts([early.target, late.target]), "-a")
        one.release(target)
        self.assertIsNotNone(one.elect(), "it was let first once")

    def test_one_that_wants_not_every_place_does_not_go_first(self) -> None:
        one, other = self.two("a:1", "b:1", max_sessions=2, queue=5.0)
        target = self.elect(one)
        self.elect(one)
        self.wait(other, *other.targets)
        self.serve(0.3)
        one.release(target)
        self.assertIs(one.elect(), target)

    def test_neither_process_starves_the_other(self) -> None:
        pools = self.two("a:1", max_sessions=1, queue=5.0)
        served = [0, 0]
        waiting: list[list[Waiting]] = [[], []]
        open_: list[tuple[Pool, Target]] = []
        for _ in range(300):
            for pool, released in open_:
                pool.release(released)
            open_.clear()
            for number, pool in enumerate(pools):
                while len(waiting[number]) < 20:
                    waiting[number].append(self.wait(pool))
            self.serve(0.02)
            for number, pool in enumerate(pools):
                for each in [each for each in waiting[number] if each.target is not None]:
                    waiting[number].remove(each)
                    served[number] += 1
                    assert each.target is not None
                    open_.append((pool, each.target))
            self.assertLessEqual(len(open_), 1)
        self.assertGreater(min(served), sum(served) * 0.3)
        self.assertGreater(sum(served), 200)

    def test_no_limit_is_exceeded(self) -> None:
        moves = st.lists(
            st.tuples(
                st.sampled_from(["come", "end", "leave", "turn", "look"]),
                st.integers(0, 1),
                st.integers(0, 99),
            ),
            max_size=80,
        )

        @settings(deadline=None)
        @given(st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(1, 5), moves)
        def check(of_targets: list[int], of_pool: int, moves: list[tuple[str, int, int]]) -> None:
            self.reactor = Clock()
            self.reactor.advance(1000)
            ledgers = [Ledger.create(self.reactor.seconds)]
            ledgers.append(Ledger.open(ledgers[0].fileno(), self.reactor.seconds))
            texts = [f"h{n}:1,max-sessions={limit}" for n, limit in enumerate(of_targets)]
            fields: dict[str, Any] = {"max_sessions": of_pool, "queue": 5.0}
            pools = [
                make_pool(*texts, reactor=self.reactor, ledger=ledger, **fields)
                for ledger in ledgers
            ]
            open_: list[tuple[Pool, Target]] = []
            waiting: list[tuple[Pool, Waiting]] = []
            for move, which, number in moves:
                pool = pools[which]
                if move == "come":
                    target = None if pool.waiting else pool.elect()
                    if target is not None:
                        open_.append((pool, target))
                    else:
                        waiting.append((pool, Waiting()))
                        pool.wait(waiting[-1][1])
                elif move == "end" and open_:
                    mine, target = open_.pop(number % len(open_))
                    mine.release(target)
                elif move == "leave" and waiting:
                    mine, waiter = waiting.pop(number % len(waiting))
                    mine.leave(waiter)
                elif move == "turn":
                    self.reactor.advance(0)
                elif move == "look":
                    self.serve(0.3)
                for mine, waiter in [each for each in waiting if each[1].target is not None]:
                    waiting.remove((mine, waiter))
                    assert waiter.target is not None
                    open_.append((mine, waiter.target))
                self.assertLessEqual(len(open_), of_pool)
                for n, limit in enumerate(of_targets):
                    there = sum(target.config.host == f"h{n}" for _, target in open_)
                    self.assertLessEqual(there, limit or there)
            self.serve(1.0)
            taken = [target for _, target in open_]
            taken += [waiter.target for _, waiter in waiting if waiter.target is not None]
            free = len(taken) < of_pool and any(
                not limit or sum(target.config.host == f"h{n}" for target in taken) < limit
                for n, limit in enumerate(of_targets)
            )
            if free:
                self.assertEqual(sum(pool.waiting for pool in pools), 0)
            for pool in pools:
                pool.stop()
            for ledger in ledgers:
                ledger.close()

        check()

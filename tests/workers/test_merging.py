"""`fwdrelay.workers.merging`: what several workers say of themselves, as one."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.histogram import DIALS, SESSIONS, Histogram, HistogramCounts
from fwdrelay.observe.snapshot import (
    NO_TOTALS,
    Counters,
    ListenerCounters,
    SessionsShown,
    TargetCounters,
    Totals,
)
from fwdrelay.workers.merging import (
    at_least,
    counted_only,
    merge_counters,
    merge_listeners,
    merge_pools,
    merge_sessions,
    merge_targets,
    nothing_counted,
    with_departed,
)
from tests.admin.relays import POOL, SESSION, STATUS, TARGET
from tests.case import SynchronousTestCase


def histogram(*values: float, bounds: tuple[float, ...] = SESSIONS) -> HistogramCounts:
    """With these values counted."""
    counted = Histogram(bounds)
    for value in values:
        counted.add(value)
    return counted.counts()


def listener(name: str = "web", **fields: Any) -> ListenerCounters:
    """One that has counted these."""
    given: dict[str, Any] = {
        "active": 0,
        "ended": {},
        "bytes_up": 0,
        "bytes_down": 0,
        "seconds": histogram(),
        "rejected": {},
    }
    return ListenerCounters(listener=name, **{**given, **fields})


def target(name: str = "a", **fields: Any) -> TargetCounters:
    """One that has counted these."""
    given: dict[str, Any] = {
        "pool": "web",
        "up": True,
        "sessions": 0,
        "dials": histogram(bounds=DIALS),
        "dial_failures": {},
    }
    return TargetCounters(target=name, **{**given, **fields})


def counters(*of: ListenerCounters | TargetCounters, **fields: Any) -> Counters:
    """Of one worker."""
    return evolve(
        nothing_counted(),
        listeners=tuple(each for each in of if isinstance(each, ListenerCounters)),
        targets=tuple(each for each in of if isinstance(each, TargetCounters)),
        **fields,
    )


number = st.integers(0, 1 << 40)
seconds = st.lists(st.sampled_from((0.001, 0.02, 3.0, 90.0, 1e6)), max_size=4)
words = st.dictionaries(st.sampled_from(("rate", "denied")), number)


@st.composite
def some_counters(draw: st.DrawFn) -> Counters:
    """What a worker may have counted."""
    listeners = [
        listener(
            name,
            active=draw(number),
            ended=draw(st.dictionaries(st.tuples(st.just("web"), st.just("done")), number)),
            bytes_up=draw(number),
            bytes_down=draw(number),
            seconds=histogram(*draw(seconds)),
            rejected=draw(words),
            let_in=draw(number),
        )
        for name in draw(st.sets(st.sampled_from(("web", "db"))))
    ]
    targets = [
        target(
            name,
            up=draw(st.booleans()),
            sessions=draw(number),
            dials=histogram(*draw(seconds), bounds=DIALS),
            dial_failures=draw(words),
        )
        for name in draw(st.sets(st.sampled_from("ab")))
    ]
    totals = Totals(
        sessions=draw(number),
        sessions_total=draw(number),
        rejected_total=draw(number),
        bytes_up=draw(number),
        bytes_down=draw(number),
    )
    return counters(*listeners, *targets, access_log_dropped=draw(number), totals=totals)


def flat(of: Counters) -> dict[Any, float]:
    """All that only grows."""
    found: dict[Any, float] = {
        "dropped": of.access_log_dropped,
        "let in": of.totals.sessions_total,
        "rejected": of.totals.rejected_total,
        "up": of.totals.bytes_up,
        "down": of.totals.bytes_down,
    }
    for each in of.listeners:
        key = each.listener
        found[key, "up"], found[key, "down"] = each.bytes_up, each.bytes_down
        found[key, "let in"] = each.let_in
        found |= {(key, "ended", *why): count for why, count in each.ended.items()}
        found |= {(key, "rejected", why): count for why, count in each.rejected.items()}
        found |= {(key, "seconds", n): count for n, count in enumerate(each.seconds.counts)}
    for of_target in of.targets:
        key = of_target.target
        found |= {(key, "failed", why): count for why, count in of_target.dial_failures.items()}
        found |= {(key, "dials", n): count for n, count in enumerate(of_target.dials.counts)}
    return found


class CountersTests(SynchronousTestCase):
    def test_sums(self) -> None:
        merged = merge_counters(
            [
                counters(
                    listener(
                        active=1,
                        ended={("web", "done"): 2},
                        bytes_up=3,
                        bytes_down=4,
                        seconds=histogram(0.02, 1e6),
                        rejected={"rate": 5},
                        let_in=6,
                    ),
                    target(
                        sessions=1, dials=histogram(0.1, bounds=DIALS), dial_failures={"tls": 1}
                    ),
                    queues={"web": 1},
                    certificate_expiries={"a.pem": 9.0, "b.pem": 1.0},
                    reloads={"success": 2},
                    access_log_dropped=7,
                    totals=Totals(
                        sessions=1, sessions_total=2, rejected_total=3, bytes_up=4, bytes_down=5
                    ),
                ),
                counters(
                    listener(
                        active=10,
                        ended={("web", "done"): 20, ("", "rate"): 1},
                        bytes_up=30,
                        bytes_down=40,
                        seconds=histogram(0.02),
                        rejected={"denied": 50},
                        let_in=60,
                    ),
                    listener("db", active=1),
                    target(up=False, sessions=2, dial_failures={"tls": 1, "timeout": 2}),
                    target("b", sessions=3),
                    queues={"web": 2, "db": 1},
                    certificate_expiries={"a.pem": 8.0},
                    reloads={"success": 2, "failure": 1},
                    access_log_dropped=70,
                    last_reload_failed=True,
                    totals=Totals(
                        sessions=10,
                        sessions_total=20,
                        rejected_total=30,
                        bytes_up=40,
                        bytes_down=50,
                    ),
                ),
            ]
        )
        expected = counters(
            listener(
                active=11,
                ended={("web", "done"): 22, ("", "rate"): 1},
                bytes_up=33,
                bytes_down=44,
                seconds=histogram(0.02, 0.02, 1e6),
                rejected={"rate": 5, "denied": 50},
                let_in=66,
            ),
            listener("db", active=1),
            target(
                up=False,
                sessions=3,
                dials=histogram(0.1, bounds=DIALS),
                dial_failures={"tls": 2, "timeout": 2},
            ),
            target("b", sessions=3),
            queues={"web": 3, "db": 1},
            certificate_expiries={"a.pem": 8.0, "b.pem": 1.0},
            reloads={"success": 2, "failure": 1},
            access_log_dropped=77,
            last_reload_failed=True,
            totals=Totals(
                sessions=11, sessions_total=22, rejected_total=33, bytes_up=44, bytes_down=55
            ),
        )
        self.assertEqual(merged, expected)

    def test_of_nobody(self) -> None:
        self.assertEqual(merge_counters([]), nothing_counted())

    def test_it_drains_where_all_do(self) -> None:
        drains, runs = counters(draining=True), counters()
        for both, expected in (((drains, runs), False), ((drains, drains), True)):
            self.assertEqual(merge_counters(both).draining, expected)

    @given(some_counters(), some_counters(), some_counters())
    def test_the_order_in_which_workers_go_does_not_matter(
        self, one: Counters, two: Counters, three: Counters
    ) -> None:
        at_once = merge_counters([one, two, three])
        in_turn = merge_counters([merge_counters([one, two]), three])
        self.assertEqual(flat(at_once), flat(in_turn))
        self.assertEqual(flat(at_once), flat(merge_counters([three, one, two])))


class DepartedTests(SynchronousTestCase):
    @given(some_counters())
    def test_who_is_gone_has_counted_and_is_nothing(self, last: Counters) -> None:
        left = counted_only(last)
        self.assertEqual(flat(left), flat(last))
        self.assertEqual({each.active for each in left.listeners} - {0}, set())
        self.assertEqual({(each.sessions, each.up) for each in left.targets} - {(0, True)}, set())
        self.assertEqual(left.totals.sessions, 0)
        self.assertEqual(counted_only(left), left)

    def test_they_wait_and_expire_no_more(self) -> None:
        last = counters(
            queues={"web": 1}, certificate_expiries={"a.pem": 1.0}, last_reload_failed=True
        )
        left = counted_only(last)
        self.assertEqual(
            (left.queues, left.certificate_expiries, left.last_reload_failed), ({}, {}, False)
        )

    def test_only_what_the_living_know_is_told(self) -> None:
        living = counters(listener(active=1, bytes_up=1), target(up=False, sessions=1))
        departed = counters(
            listener(active=5, bytes_up=10),
            listener("removed", bytes_up=10),
            target(sessions=5, dial_failures={"tls": 1}),
            target("removed", dial_failures={"tls": 1}),
            queues={"web": 3},
            totals=evolve(NO_TOTALS, bytes_up=20),
        )
        self.assertEqual(
            with_departed(living, departed),
            counters(
                listener(active=1, bytes_up=11),
                target(up=False, sessions=1, dial_failures={"tls": 1}),
                totals=evolve(NO_TOTALS, bytes_up=20),
            ),
        )


class AtLeastTests(SynchronousTestCase):
    @given(some_counters(), some_counters())
    def test_nothing_goes_back(self, now: Counters, before: Counters) -> None:
        held = flat(at_least(now, before))
        fresh, former = flat(now), flat(before)
        names = {each.listener for each in now.listeners} | {each.target for each in now.targets}
        for key, value in held.items():
            known = isinstance(key, str) or key[0] in names
            expected = max(fresh.get(key, 0), former.get(key, 0) if known else 0)
            self.assertEqual(value, expected, key)
        self.assertLessEqual(fresh.keys(), held.keys())

    @given(some_counters(), some_counters())
    def test_what_is_open_is_what_is_open(self, now: Counters, before: Counters) -> None:
        held = at_least(now, before)
        self.assertEqual(
            [each.active for each in held.listeners], [each.active for each in now.listeners]
        )
        self.assertEqual(
            [(each.sessions, each.up) for each in held.targets],
            [(each.sessions, each.up) for each in now.targets],
        )
        self.assertEqual(held.totals.sessions, now.totals.sessions)

    def test_another_version_has_other_ranges(self) -> None:
        now, before = (
            counters(listener(seconds=histogram(1.0))),
            counters(listener(seconds=histogram(1.0, 1.0, bounds=(2.0,)))),
        )
        self.assertEqual(at_least(now, before), now)


class ListenersTests(SynchronousTestCase):
    def test_one_for_each_name(self) -> None:
        (web,) = STATUS.listeners
        gone = evolve(web, state="draining", addresses=(), pool="old", sessions=99)
        deaf = evolve(web, addresses=())
        db = evolve(web, name="db", state="draining")
        statuses = [evolve(STATUS, listeners=each) for each in ((gone,), (deaf, db), (web, db))]
        counted = counters(
            listener(
                active=3, let_in=7, rejected={"rate": 2, "denied": 1}, bytes_up=8, bytes_down=9
            ),
            listener("db"),
        )
        self.assertEqual(
            merge_listeners(statuses, counted),
            (
                evolve(
                    web,
                    sessions=3,
                    sessions_total=7,
                    rejected_total=3,
                    bytes_up=8,
                    bytes_down=9,
                ),
                evolve(
                    db, sessions=0, sessions_total=0, rejected_total=0, bytes_up=0, bytes_down=0
                ),
            ),
        )

    def test_one_that_was_removed_meanwhile(self) -> None:
        self.assertEqual(merge_listeners([STATUS], counters()), ())


class SessionsTests(SynchronousTestCase):
    def shown(self, *seconds: int, count: int = 0) -> SessionsShown:
        sessions = tuple(
            evolve(SESSION, session=f"s-{each}", started=f"2026-01-02T03:04:{each:02}.000Z")
            for each in seconds
        )
        return SessionsShown(sessions=sessions, count=count or len(sessions))

    def test_the_oldest_of_all_come_first(self) -> None:
        answers = [self.shown(3, 7), self.shown(), self.shown(1, 5, 9)]
        for limit, expected in ((0, (1, 3, 5, 7, 9)), (2, (1, 3)), (9, (1, 3, 5, 7, 9))):
            shown = merge_sessions(answers, limit)
            self.assertEqual(shown.sessions, self.shown(*expected).sessions)
            self.assertEqual(shown.count, 5)

    def test_more_than_were_told(self) -> None:
        answers = [self.shown(1, 2, count=10), self.shown(3, 4, count=30)]
        self.assertEqual(merge_sessions(answers, 2), self.shown(1, 2, count=40))

    def test_one_that_has_moved_is_there_once(self) -> None:
        shown = merge_sessions([self.shown(1, 2), self.shown(2, 3)], 0)
        self.assertEqual(shown, self.shown(1, 2, 3))


class PoolsTests(SynchronousTestCase):
    def test_sums(self) -> None:
        one = evolve(
            TARGET, share=0.5, sessions=1, dials_total=3, dial_failures_total=1, dial_ms=1.0
        )
        two = evolve(
            TARGET, share=0.1, sessions=2, dials_total=1, dial_failures_total=2, dial_ms=5.0
        )
        found_late = evolve(TARGET, name="late", share=0.4)
        db = evolve(POOL, name="db")
        merged = merge_pools(
            [
                (evolve(POOL, sessions=1, waiting=2, targets=(one,)),),
                (evolve(POOL, sessions=3, waiting=4, targets=(two, found_late)), db),
            ]
        )
        self.assertEqual(
            merged,
            (
                evolve(
                    POOL,
                    sessions=4,
                    waiting=6,
                    targets=(
                        evolve(
                            TARGET,
                            share=0.3,
                            sessions=3,
                            dials_total=4,
                            dial_failures_total=3,
                            dial_ms=2.0,
                        ),
                        evolve(found_late, share=0.2),
                    ),
                ),
                db,
            ),
        )

    def test_down_where_one_thinks_so(self) -> None:
        up = evolve(TARGET, cause="fine", since="2026-01-02T03:04:05.678Z")
        down = evolve(TARGET, up=False, cause="refused", since="2026-01-02T03:05:00.000Z")
        also = evolve(down, cause="timeout")
        for same, expected in (
            ((up, up), up),
            ((up, down, also), down),
            ((also, up, down), also),
        ):
            merged = merge_targets(same)
            self.assertEqual(
                (merged.up, merged.cause, merged.since),
                (expected.up, expected.cause, expected.since),
            )

    def test_what_may_come_is_told_by_who_sees_it(self) -> None:
        failing = evolve(TARGET, turning="1 of 3 checks failed: refused")
        passing = evolve(TARGET, up=False, turning="1 of 2 checks passed")
        self.assertEqual(merge_targets([TARGET, failing]).turning, failing.turning)
        self.assertEqual(merge_targets([failing, passing]).turning, passing.turning)
        self.assertEqual(merge_targets([failing, evolve(TARGET, up=False)]).turning, "")

    def test_nobody_has_dialed(self) -> None:
        self.assertIsNone(merge_targets([TARGET, evolve(TARGET, dials_total=0)]).dial_ms)

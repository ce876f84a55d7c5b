"""`fwdrelay.upstream.discovery.follow`, with discoveries and a clock that tests own."""

from __future__ import annotations

from typing import Any, cast

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from fwdrelay.config import DiscoverConfig, TargetConfig
from fwdrelay.errors import DiscoveryFailed
from fwdrelay.interfaces import Found
from fwdrelay.upstream.discovery.follow import (
    JITTER,
    LAST_RETRY,
    LONGEST,
    MOST_REASONS,
    MOST_TARGETS,
    SHORTEST,
    Following,
    checked,
)
from tests.case import SynchronousTestCase
from tests.upstream.discovery.parts import Findings, Log, labels, no_chance

A = TargetConfig(host="192.0.2.1", port=80)
B = TargetConfig(host="192.0.2.2", port=80)
CONFIG = DiscoverConfig(scheme="dns", argument="web.test:80")


class Scripted:
    """
    A discovery that answers when the test says so.

    @ivar asked: a Deferred for each question.
    """

    def __init__(self) -> None:
        self.asked: list[Deferred[Any]] = []
        self.cancelled = 0

    def discover(self) -> Deferred[Any]:
        self.asked.append(Deferred(self._cancel))
        return self.asked[-1]

    def _cancel(self, asked: Deferred[Any]) -> None:
        self.cancelled += 1

    def answer(self, *targets: TargetConfig, ttl: float = 10.0) -> None:
        """Answer the last question."""
        self.asked[-1].callback(Found(targets, ttl))

    def fail(self, error: Exception) -> None:
        """Fail the last question."""
        self.asked[-1].errback(error)


class FollowingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.discovery: Any = Scripted()
        self.findings = Findings()
        self.log = Log(self)

    def follow(self, config: DiscoverConfig = CONFIG, **keywords: Any) -> Following:
        keywords.setdefault("chance", no_chance)
        following = Following(self.discovery, config, self.clock, self.findings, "web", **keywords)
        following.start()
        self.addCleanup(following.stop)
        return following

    def wait(self) -> float:
        """How long it is until the next question."""
        (call,) = self.clock.getDelayedCalls()
        return call.getTime() - self.clock.seconds()

    def test_nothing_begins_before_the_start(self) -> None:
        following = Following(self.discovery, CONFIG, self.clock, self.findings, "web")
        self.assertEqual(self.discovery.asked, [])
        self.assertIsNone(following.known)

    def test_the_first_answer_is_told(self) -> None:
        following = self.follow()
        self.assertIsNone(following.known)
        self.discovery.answer(A, B)
        self.assertEqual(self.findings.all, [(A, B)])
        self.assertEqual(following.known, (A, B))
        self.assertEqual(following.failing, "")
        self.assertEqual(
            self.log.lines,
            ["Pool web: dns:web.test:80 has 2 targets; new: 192.0.2.1:80, 192.0.2.2:80."],
        )

    def test_that_there_is_nothing_is_told_too(self) -> None:
        following = self.follow()
        self.discovery.answer()
        self.assertEqual(self.findings.all, [()])
        self.assertEqual(following.known, ())

    def test_it_asks_again_when_the_time_to_live_is_over(self) -> None:
        self.follow()
        self.discovery.answer(A, ttl=10)
        self.clock.advance(9.9)
        self.assertEqual(len(self.discovery.asked), 1)
        self.clock.advance(0.1)
        self.assertEqual(len(self.discovery.asked), 2)

    def test_bounds_of_the_time_to_live(self) -> None:
        self.follow()
        for ttl, wait in ((0, SHORTEST), (-1, SHORTEST), (7, 7), (10**9, LONGEST)):
            self.discovery.answer(A, ttl=ttl)
            self.assertEqual(self.wait(), wait)
            self.clock.advance(wait)

    def test_jitter_makes_it_later(self) -> None:
        self.follow(chance=lambda: 0.5)
        self.discovery.answer(A, ttl=10)
        self.assertAlmostEqual(self.wait(), 10 * (1 + JITTER / 2))

    def test_the_same_is_not_told_again(self) -> None:
        self.follow()
        several = evolve(A, host="h", addresses=("192.0.2.7", "192.0.2.8"))
        turned = evolve(several, addresses=("192.0.2.8", "192.0.2.7"))
        self.discovery.answer(several, B)
        self.clock.advance(10)
        self.discovery.answer(B, turned)
        self.assertEqual(len(self.findings.all), 1)

    def test_any_difference_is_told(self) -> None:
        self.follow()
        self.discovery.answer(A)
        for other in (
            (evolve(A, weight=2),),
            (evolve(A, weight=2), B),
            (B,),
            (evolve(B, addresses=("192.0.2.9",)),),
            (),
        ):
            self.clock.advance(10)
            self.discovery.answer(*other)
            self.assertEqual(self.findings.all[-1], other)
        self.assertEqual(
            self.log.lines[2:5],
            [
                "Pool web: dns:web.test:80 has 2 targets; new: 192.0.2.2:80.",
                "Pool web: dns:web.test:80 has 1 target; gone: 192.0.2.1:80.",
                "Pool web: dns:web.test:80 has 1 target; changed: 192.0.2.2:80.",
            ],
        )

    def test_what_the_configuration_says_of_what_is_found(self) -> None:
        self.follow(evolve(CONFIG, backup=True, max_sessions=5))
        self.discovery.answer(A, evolve(B, max_sessions=9))
        self.assertEqual(
            self.findings.all,
            [(evolve(A, backup=True, max_sessions=5), evolve(B, backup=True, max_sessions=9))],
        )

    def test_a_backup_that_was_found_stays_one(self) -> None:
        self.follow()
        self.discovery.answer(evolve(A, backup=True))
        self.assertTrue(self.findings.all[0][0].backup)

    def test_a_failure_keeps_what_was_known(self) -> None:
        following = self.follow()
        self.discovery.answer(A)
        self.clock.advance(10)
        self.discovery.fail(DiscoveryFailed("no answer"))
        self.assertEqual(following.known, (A,))
        self.assertEqual(following.failing, "no answer")
        self.assertEqual(self.findings.all, [(A,)])
        self.assertEqual(
            self.log.lines[1:],
            ["Pool web: dns:web.test:80: no answer; going on with 1 target known from it."],
        )

    def test_a_failure_is_told_once_and_its_end_too(self) -> None:
        following = self.follow()
        for _ in range(3):
            self.discovery.fail(DiscoveryFailed("no answer"))
            self.clock.advance(LAST_RETRY)
        self.assertEqual(
            self.log.lines,
            ["Pool web: dns:web.test:80: no answer; no target is known from it yet."],
        )
        self.discovery.answer(A)
        self.assertEqual(following.failing, "")
        self.assertEqual(
            self.log.lines[1:],
            [
                "Pool web: dns:web.test:80 works again: 1 target.",
                "Pool web: dns:web.test:80 has 1 target; new: 192.0.2.1:80.",
            ],
        )
        self.clock.advance(10)
        self.discovery.fail(DiscoveryFailed("no answer"))
        self.assertIn("no answer", self.log.lines[-1])

    def test_another_reason_is_told_but_not_endlessly(self) -> None:
        self.follow()
        for number in range(MOST_REASONS + 5):
            self.discovery.fail(DiscoveryFailed(f"reason {number}"))
            self.clock.advance(LAST_RETRY)
        self.assertEqual(len(self.log.lines), MOST_REASONS)

    def test_it_is_tried_later_and_later(self) -> None:
        self.follow()
        waits = []
        for _ in range(9):
            self.discovery.fail(DiscoveryFailed("no answer"))
            waits.append(self.wait())
            self.clock.advance(waits[-1])
        self.assertEqual(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60])
        self.discovery.answer(A)
        self.clock.advance(10)
        self.discovery.fail(DiscoveryFailed("no answer"))
        self.assertEqual(self.wait(), 1)

    def test_jitter_makes_retries_earlier(self) -> None:
        self.follow(chance=lambda: 1.0)
        self.discovery.fail(DiscoveryFailed("no answer"))
        self.assertAlmostEqual(self.wait(), 1 - 2 * JITTER)

    def test_anything_raised_is_survived(self) -> None:
        following = self.follow()
        for error in (ZeroDivisionError("division by zero"), RuntimeError(), DiscoveryFailed("")):
            self.discovery.fail(error)
            self.assertIn(type(error).__name__, following.failing)
            self.clock.advance(LAST_RETRY)
        self.discovery.answer(A)
        self.assertEqual(following.known, (A,))

    def test_where_a_plugin_failed_is_told(self) -> None:
        class Broken:
            async def discover(self) -> Found:
                raise KeyError("services")

        self.discovery = Broken()
        following = self.follow()
        self.assertIn("KeyError: 'services'", following.failing)
        self.assertIn(__file__, following.failing)

    def test_a_discovery_that_is_none_is_survived(self) -> None:
        class NotAwaitable:
            def discover(self) -> int:
                return 5

        class Raises:
            def discover(self) -> int:
                raise ValueError("no")

        for discovery, said in ((NotAwaitable(), "TypeError"), (Raises(), "ValueError: no")):
            self.discovery = discovery
            following = self.follow()
            self.assertIn(said, following.failing)
            following.stop()

    def test_what_would_end_a_process_does_not_end_the_questions(self) -> None:
        following = self.follow()
        leaving: Any = SystemExit("bye")
        self.discovery.fail(leaving)
        self.assertIn("SystemExit: bye", following.failing)
        self.clock.advance(LAST_RETRY)
        self.discovery.answer(A)
        self.assertEqual(following.known, (A,))

    def test_an_answer_that_is_there_at_once_is_told_within_start(self) -> None:
        class AtOnce:
            async def discover(self) -> Found:
                return Found([A], 5)

        self.discovery = AtOnce()
        following = self.follow()
        self.assertEqual(self.findings.all, [(A,)])
        self.assertEqual(following.known, (A,))
        self.assertEqual(self.wait(), 5)

    def test_what_is_known_is_so_when_it_is_told(self) -> None:
        seen: list[object] = []
        following = Following(
            self.discovery, CONFIG, self.clock, lambda _: seen.append(following.known), "web"
        )
        following.start()
        self.discovery.answer(A)
        following.stop()
        self.assertEqual(seen, [(A,)])

    def test_who_is_told_may_fail(self) -> None:
        following = Following(self.discovery, CONFIG, self.clock, lambda _: 1 / 0, "web")  # type: ignore[arg-type]
        following.start()
        self.discovery.answer(A)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        following.stop()

    def test_stop_while_waiting(self) -> None:
        following = self.follow()
        self.discovery.answer(A)
        following.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_asking(self) -> None:
        following = self.follow()
        following.stop()
        self.assertEqual(self.discovery.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.log.lines, [])

    def test_stop_when_told(self) -> None:
        following = Following(self.discovery, CONFIG, self.clock, lambda _: following.stop(), "web")
        following.start()
        self.discovery.answer(A)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_answer_after_the_stop_is_nobodys(self) -> None:
        class Stubborn:
            """Does not let itself be cancelled."""

            def __init__(self) -> None:
                self.answer: Deferred[None] = Deferred()

            async def discover(self) -> Found:
                while True:
                    try:
                        await self.answer
                    except Exception:
                        self.answer = Deferred()
                    else:
                        return Found([A], 5)

        stubborn = Stubborn()
        self.discovery = stubborn
        following = self.follow()
        following.stop()
        stubborn.answer.callback(None)
        self.assertEqual(self.findings.all, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_twice_and_before_the_start(self) -> None:
        following = Following(self.discovery, CONFIG, self.clock, self.findings, "web")
        following.stop()
        following.start()
        following.stop()
        following.stop()
        self.assertEqual(self.discovery.cancelled, 1)

    def test_more_than_anybody_has(self) -> None:
        following = self.follow()
        many = [TargetConfig(host="192.0.2.1", port=port) for port in range(1, 3001)]
        for _ in range(2):
            self.discovery.answer(*many)
            self.clock.advance(10)
        self.assertEqual(following.known, tuple(many[:MOST_TARGETS]))
        cut = [line for line in self.log.lines if "has 3000 targets" in line]
        self.assertEqual(len(cut), 1)
        self.assertIn("only the first 1000 are taken", cut[0])
        self.assertTrue(all(len(line) < 300 for line in self.log.lines))

    def test_what_cannot_be_used_is_a_failure(self) -> None:
        following = self.follow()
        self.discovery.answer(A)
        self.clock.advance(10)
        self.discovery.answer(A, A)
        self.assertEqual(following.known, (A,))
        self.assertIn("192.0.2.1:80 twice", following.failing)


class CheckedTests(SynchronousTestCase):
    def assert_refused(self, found: object, *words: str) -> None:
        with self.assertRaises(DiscoveryFailed) as raised:
            checked(found)
        for word in words:
            self.assertIn(word, str(raised.exception))

    def test_what_is_right(self) -> None:
        unix = TargetConfig(path="/run/app.sock", name="app")
        six = TargetConfig(host="h", port=1, addresses=("::1", "127.0.0.1"), priority=3)
        found = Found([A, unix, six], 1)
        self.assertIs(checked(found), found)
        self.assertEqual(labels(found.targets), ["192.0.2.1:80", "app", "h:1"])

    def test_no_found(self) -> None:
        self.assert_refused(None, "None", "not a Found")
        self.assert_refused([A], "not a Found")

    def test_ttl(self) -> None:
        for ttl in (float("nan"), float("inf"), "5", None, True):
            self.assert_refused(Found([A], ttl), "ttl")  # type: ignore[arg-type]

    def test_targets(self) -> None:
        right: Any = A
        for target, *words in (
            ("192.0.2.1:80", "192.0.2.1:80", "not a TargetConfig"),
            (evolve(right, weight=0), "192.0.2.1:80", "weight of 0", "from 1 up"),
            (evolve(right, weight=1.5), "weight of 1.5"),
            (evolve(right, weight=True), "weight of True"),
            (evolve(right, port=0), "port of 0", "from 1 to 65535"),
            (evolve(right, port=65536), "port of 65536"),
            (evolve(right, max_sessions=-1), "max_sessions of -1", "from 0 up"),
            (evolve(right, priority=-1), "priority of -1"),
            (evolve(right, name=5), "name of 5"),
            (evolve(right, name="x", host=None), "host of None"),
            (evolve(right, name="a b"), "'a b'", "blanks or control characters"),
            (evolve(right, host="a\nb"), r"'a\nb'", "or control characters"),
            (evolve(right, host="", path="/a\x1b"), "or control characters"),
            (evolve(right, backup=["no"]), "backup of ['no']", "True or False"),
            (evolve(right, path="/run/x"), "one of a host and a path"),
            (evolve(right, host=""), "one of a host and a path"),
            (evolve(right, addresses=("no",)), "'no'", "not an IP address"),
            ("x" * 1000, "..."),
        ):
            self.assert_refused(Found([B, cast("Any", target)], 1), *words)

    def test_labels_are_unique(self) -> None:
        self.assert_refused(Found([A, evolve(B, name="192.0.2.1:80")], 1), "192.0.2.1:80 twice")

    @given(st.from_type(TargetConfig), st.floats() | st.integers() | st.none())
    def test_nothing_but_a_sentence_is_raised(self, target: TargetConfig, ttl: Any) -> None:
        try:
            checked(Found([target], ttl))
        except DiscoveryFailed as failed:
            self.assertNotEqual(str(failed), "")

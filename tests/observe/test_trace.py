"""`fwdrelay.observe.trace`: who follows which session."""

from __future__ import annotations

from ipaddress import ip_network
from unittest import mock

from twisted.internet.task import Clock

from fwdrelay.networks import Networks
from fwdrelay.observe.trace import MOST_FOLLOWED, Trace, Tracer, TraceStep
from tests.case import SynchronousTestCase

OURS = Networks([ip_network("192.0.2.0/24")])


class TracerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(100)
        self.tracer = Tracer(self.clock)
        self.told: list[TraceStep] = []

    def trace(self, host: str | None = "192.0.2.1") -> Trace | None:
        return self.tracer.trace("s-1", "web", f"{host}:7", "192.0.2.254:80", host, 99.5)

    def steps(self) -> list[str]:
        return [step.step for step in self.told]

    def test_nobody_follows_at_first(self) -> None:
        self.assertEqual(self.tracer.watchers, [])
        self.assertIsNone(self.trace())

    def test_a_step_is_told_with_all_that_it_takes_to_understand_it(self) -> None:
        self.tracer.watch(OURS, self.told.append)
        trace = self.trace()
        assert trace is not None
        self.clock.advance(0.25)
        trace.tell("elected", "a:1: the only one")
        accepted, step = self.told
        self.assertEqual((accepted.step, accepted.detail), ("accepted", "at 192.0.2.254:80"))
        self.assertEqual(accepted.at_ms, 0.0)
        self.assertEqual(
            (step.session, step.listener, step.client, step.at_ms, step.step, step.detail),
            ("s-1", "web", "192.0.2.1:7", 750.0, "elected", "a:1: the only one"),
        )

    def test_what_was_before_is_told_with_its_time(self) -> None:
        self.tracer.watch(None, self.told.append)
        trace = self.trace()
        assert trace is not None
        with mock.patch("time.time", lambda: 5000.0):
            trace.tell("first-byte-up", "1", 99.75)
        self.assertEqual((self.told[-1].at_ms, self.told[-1].time), (250.0, 4999.75))

    def test_clients_of_other_networks_are_not_followed(self) -> None:
        self.tracer.watch(OURS, self.told.append)
        self.assertIsNone(self.trace("198.51.100.1"))
        self.assertIsNone(self.trace(None))

    def test_who_follows_everybody_follows_those_without_an_address_too(self) -> None:
        self.tracer.watch(None, self.told.append)
        self.assertIsNotNone(self.trace(None))

    def test_each_hears_of_its_own(self) -> None:
        others: list[TraceStep] = []
        self.tracer.watch(OURS, self.told.append)
        self.tracer.watch(Networks([ip_network("198.51.100.0/24")]), others.append)
        self.assertIsNotNone(self.trace())
        self.assertEqual((len(self.told), len(others)), (1, 0))

    def test_whoever_has_stopped_hears_no_more(self) -> None:
        stop = self.tracer.watch(None, self.told.append)
        trace = self.trace()
        assert trace is not None
        self.assertTrue(trace.heard)
        stop()
        stop()
        self.assertFalse(trace.heard)
        trace.tell("header", "")
        trace.end("done")
        self.assertEqual(self.steps(), ["accepted"])
        self.assertIsNone(self.trace())

    def test_whoever_fails_hears_no_more_and_the_others_go_on(self) -> None:
        def fails(step: TraceStep) -> None:
            raise ZeroDivisionError(step.step)

        self.tracer.watch(None, fails)
        self.tracer.watch(None, self.told.append)
        trace = self.trace()
        assert trace is not None
        trace.end("done")
        self.assertEqual(self.steps(), ["accepted", "ended"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_watcher_follows_so_many_at_a_time(self) -> None:
        self.tracer.watch(None, self.told.append)
        [watcher] = self.tracer.watchers
        traces = [self.trace() for _ in range(MOST_FOLLOWED)]
        self.assertFalse(self.tracer.would_follow("192.0.2.1"))
        self.assertIsNone(self.trace())
        self.assertEqual(watcher.following, MOST_FOLLOWED)
        first = traces[0]
        assert first is not None
        first.end("done")
        self.assertIsNotNone(self.trace())

    def test_who_it_is_may_be_known_later(self) -> None:
        self.tracer.watch(None, self.told.append)
        trace = self.trace()
        assert trace is not None
        self.tracer.identified(trace, "203.0.113.9:1", "203.0.113.9")
        trace.tell("header", "")
        self.assertEqual([step.client for step in self.told], ["192.0.2.1:7", "203.0.113.9:1"])

    def test_who_waits_for_that_one_follows_it_too_from_its_beginning(self) -> None:
        others: list[TraceStep] = []
        self.tracer.watch(None, self.told.append)
        self.tracer.watch(Networks([ip_network("203.0.113.0/24")]), others.append)
        waiting = self.tracer.watchers[1]
        trace = self.trace()
        assert trace is not None
        self.assertEqual(others, [])
        for _ in range(2):  # whoever follows it already does so once
            self.tracer.identified(trace, "203.0.113.9:1", "203.0.113.9")
        self.assertEqual(waiting.following, 1)
        trace.end("done")
        self.assertEqual([step.step for step in others], ["accepted", "ended"])
        self.assertEqual((others[0].client, others[0].at_ms), ("203.0.113.9:1", 0.0))
        self.assertEqual(waiting.following, 0)

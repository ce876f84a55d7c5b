"""`fwdrelay.frontend.refusals`: all are counted, few are named."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from fwdrelay.frontend.refusals import NAMED_WITH_DETAILS, SUMMED_OVER, Refusals
from fwdrelay.session import Reason
from tests.case import SynchronousTestCase


class RefusalsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.refusals = Refusals("web", self.clock, Counter())
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def told(self) -> list[str]:
        """What was logged."""
        return [formatEvent(e) for e in self.logged if e["log_namespace"].startswith("fwdrelay")]

    def test_the_first_of_each_reason_is_named(self) -> None:
        named = [
            self.refusals.add(reason)
            for reason in (Reason.DENIED, Reason.DENIED, Reason.MAX_SESSIONS, Reason.DENIED)
        ]
        self.assertEqual(named, [True, False, True, False])
        self.refusals.stop()

    def test_of_those_that_differ_in_details_more_are_named(self) -> None:
        for reason in (
            Reason.PROXY_HEADER,
            Reason.PROXY_TIMEOUT,
            Reason.TLS_FAILED,
            Reason.TLS_TIMEOUT,
            Reason.IDENTITY,
        ):
            for _ in range(2):
                named = [self.refusals.add(reason) for _ in range(100)]
                self.assertEqual(
                    named, [True] * NAMED_WITH_DETAILS + [False] * (100 - NAMED_WITH_DETAILS)
                )
                self.clock.advance(SUMMED_OVER)
        for told in self.told():
            self.assertIn(f"{100 - NAMED_WITH_DETAILS} more", told)
        self.assertEqual(len(self.told()), 10)

    def test_each_reason_has_its_own_share(self) -> None:
        for _ in range(100):
            self.refusals.add(Reason.TLS_FAILED)
        for reason in Reason:
            self.assertEqual(self.refusals.add(reason), reason is not Reason.TLS_FAILED)
        self.refusals.stop()

    def test_the_rest_is_summed_up_once_a_second(self) -> None:
        for reason in [Reason.DENIED] * 1000 + [Reason.MAX_SESSIONS] * 3:
            self.refusals.add(reason)
        self.assertEqual(self.told(), [])
        self.clock.advance(SUMMED_OVER)
        (told,) = self.told()
        for words in ("web", "1001 more", "999 denied", "2 max-sessions"):
            self.assertIn(words, told)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_each_second_has_a_first(self) -> None:
        for _ in range(3):
            self.assertTrue(self.refusals.add(Reason.DENIED))
            self.clock.advance(SUMMED_OVER)
        self.assertEqual(self.told(), [])

    def test_all_are_counted(self) -> None:
        for _ in range(5):
            self.refusals.add(Reason.DENIED)
        self.clock.advance(SUMMED_OVER)
        self.refusals.add(Reason.DENIED)
        self.refusals.add(Reason.MAX_SESSIONS)
        self.assertEqual(self.refusals.total, {Reason.DENIED: 6, Reason.MAX_SESSIONS: 1})
        self.refusals.stop()

    def test_stopping_tells_what_is_untold_and_leaves_no_timer(self) -> None:
        self.refusals.stop()
        self.refusals.add(Reason.DENIED)
        self.refusals.add(Reason.DENIED)
        self.refusals.stop()
        self.assertEqual(len(self.told()), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.refusals.stop()

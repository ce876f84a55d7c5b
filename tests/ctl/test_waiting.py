"""Waiting, in a time of one's own."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.internet.task import Clock

from fwdrelay.ctl.exits import NoRelay
from fwdrelay.ctl.waiting import PAUSE, TimeIsUp, Wait
from tests.case import SynchronousTestCase


class WaitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def wait(self, most: float, told: list[str | NoRelay]) -> None:
        answers: Iterator[str | NoRelay] = iter(told)

        def over() -> str:
            answer = next(answers)
            if isinstance(answer, NoRelay):
                raise answer
            return answer

        Wait(most, self.clock.advance, self.clock.seconds).until(over)

    def test_until_nothing_is_awaited(self) -> None:
        self.wait(0, ["2 sessions", "1 session", ""])
        self.assertEqual(self.clock.seconds(), 2 * PAUSE)

    def test_not_for_longer_than_one_would(self) -> None:
        with self.assertRaises(TimeIsUp) as raised:
            self.wait(1, ["2 sessions"] * 5)
        self.assertEqual(str(raised.exception), "gave up after 1 seconds, with 2 sessions left")
        self.assertEqual(self.clock.seconds(), 1)

    def test_a_relay_that_is_slow_is_asked_again(self) -> None:
        self.wait(0, ["2 sessions", NoRelay("slow", slow=True), ""])
        with self.assertRaises(TimeIsUp) as raised:
            self.wait(1, [NoRelay("slow", slow=True)] * 5)
        self.assertIn("with the relay left", str(raised.exception))

    def test_one_that_is_gone_is_not(self) -> None:
        with self.assertRaises(NoRelay):
            self.wait(0, ["2 sessions", NoRelay("gone")])

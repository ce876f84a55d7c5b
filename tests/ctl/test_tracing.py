"""Steps of sessions: as lines, and which of them are told."""

from __future__ import annotations

from attrs import evolve

from fwdrelay.ctl.answers import Step
from fwdrelay.ctl.tracing import Followed, line_of
from tests.case import SynchronousTestCase

STEP = Step(
    time="2026-02-03T04:05:06.789Z",
    session="s-1",
    listener="web",
    client="192.0.2.1:1234",
    at_ms=1.25,
    step="accepted",
    detail="at 127.0.0.1:5678",
)


class LinesTests(SynchronousTestCase):
    def test_a_line(self) -> None:
        self.assertEqual(
            line_of(STEP).plain,
            "04:05:06.789Z  s-1  192.0.2.1:1234      +1.2ms  accepted         at 127.0.0.1:5678",
        )
        self.assertFalse(line_of(evolve(STEP, detail="")).plain.endswith(" "))

    def test_what_a_client_says_is_escaped(self) -> None:
        line = line_of(evolve(STEP, detail="asks for \x1b[2J[red]\n"))
        self.assertTrue(line.plain.endswith("asks for \\u001b[2J[red]\\u000a"))


class FollowedTests(SynchronousTestCase):
    def test_everything(self) -> None:
        followed = Followed()
        for session in ("a", "b", "a"):
            self.assertTrue(followed.wants(evolve(STEP, session=session, step="ended")))
        self.assertFalse(followed.enough)

    def test_so_many_sessions_from_their_first_step_to_their_last(self) -> None:
        followed = Followed(2)
        told = [
            followed.wants(evolve(STEP, session=session, step=step))
            for session, step in (
                ("a", "accepted"),
                ("b", "accepted"),
                ("c", "accepted"),
                ("a", "ended"),
                ("c", "ended"),
                ("b", "routed"),
            )
        ]
        self.assertEqual(told, [True, True, False, True, False, True])
        self.assertFalse(followed.enough)
        self.assertTrue(followed.wants(evolve(STEP, session="b", step="ended")))
        self.assertTrue(followed.enough)

"""What the API answers, as values."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from fwdrelay.ctl.answers import (
    PoolsShown,
    Sample,
    SessionShown,
    SessionsShown,
    Status,
    Step,
    object_of,
    sample_of,
    value_of,
)
from fwdrelay.ctl.api import Event
from fwdrelay.ctl.exits import Strange
from tests.case import SynchronousTestCase
from tests.ctl.fake_relay import POOL, SESSION, STATUS, WORKER, document


class ValuesTests(SynchronousTestCase):
    def test_there_and_back(self) -> None:
        self.assertEqual(value_of(document(STATUS), Status), STATUS)
        self.assertEqual(value_of({"pools": [document(POOL)]}, PoolsShown), PoolsShown((POOL,)))
        shown = SessionsShown(sessions=(SESSION, evolve(SESSION, sni="x", idle_ms=None)), count=5)
        self.assertEqual(value_of(document(shown), SessionsShown), shown)

    def test_a_relay_that_says_more(self) -> None:
        worker = {**document(WORKER), "temperature": 5}
        told = {**document(STATUS), "state": "hibernating", "workers": [worker], "new": [1]}
        status = value_of(told, Status)
        self.assertEqual(str(status.state), "hibernating")
        self.assertEqual(evolve(status, state="running"), evolve(STATUS, workers=(WORKER,)))

    def test_a_relay_that_knew_less(self) -> None:
        status, session = document(STATUS), document(SESSION)
        del status["unwell"], session["worker"], session["kept"]
        self.assertEqual(value_of(status, Status), STATUS)
        self.assertEqual(value_of(session, SessionShown), SESSION)

    def test_a_relay_that_says_otherwise(self) -> None:
        good = document(STATUS)
        wrongs: tuple[Any, ...] = (
            *({}, [], None, 5, {**good, "uptime": None}, {**good, "pid": "x"}),
            *({**good, "listeners": 5}, {**good, "listeners": [1]}, {**good, "totals": []}),
        )
        for wrong in wrongs:
            with self.assertRaises(Strange) as raised:
                value_of(wrong, Status)
            self.assertIn("are their versions the same?", str(raised.exception))

    def test_events(self) -> None:
        told = {**document(STATUS), "pools": [document(POOL)], "events_skipped": 0}
        self.assertEqual(sample_of(told), Sample(STATUS, (POOL,)))
        step = {"time": "t", "session": "s", "listener": "l", "client": "c", "at_ms": 1}
        self.assertEqual(
            value_of({**step, "step": "ended", "detail": "d"}, Step),
            Step("t", "s", "l", "c", 1.0, "ended", "d"),
        )

    def test_events_that_are_none(self) -> None:
        self.assertEqual(object_of(Event("status", '{"a": 1}')), {"a": 1})
        for data in ("", "{", "[]", "[" * 100_000):
            with self.assertRaises(Strange) as raised:
                object_of(Event("status", data))
            self.assertIn("tells of a status that is no JSON object", str(raised.exception))

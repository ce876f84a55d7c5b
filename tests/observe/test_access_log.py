"""`fwdrelay.observe.access_log`: the lines that operators' tools read."""

from __future__ import annotations

import json

import attrs

from fwdrelay.config import ACCESS_LOG_FORMATS
from fwdrelay.observe.access_log import (
    FORMATS,
    PROGRESS,
    AccessLog,
    fields,
    json_line,
    tcplog_line,
)
from fwdrelay.observe.events import SessionEnded
from fwdrelay.observe.feed import SessionOpened
from tests.case import SynchronousTestCase

EVENT = SessionEnded(
    time=1700000000.123,
    session="1-2-3",
    listener="web",
    client="192.0.2.1:40000",
    local="192.0.2.2:5678",
    pool="main",
    target="127.0.0.1:80",
    reason="done",
    code="--",
    bytes_up=10,
    bytes_down=2000,
    dial_ms=1.25,
    duration_ms=2500.7,
    retries=0,
    sessions=3,
    totals=(7, 5, 4),
)
NOT_DIALED = attrs.evolve(
    EVENT, target=None, dial_ms=None, reason="no-target", code="SC", error="every target is full"
)

LASTS = attrs.evolve(EVENT, reason=PROGRESS)


class FieldsTests(SynchronousTestCase):
    def test_of_a_session_that_has_ended_they_are_those_of_the_line(self) -> None:
        full = attrs.evolve(EVENT, queue_ms=1.0, sni="a", alpn="h2", tls="TLSv1.3", error="why")
        for event in (EVENT, NOT_DIALED, LASTS, full):
            self.assertEqual(
                list(fields(event).items()), list(json.loads(json_line(event)).items())
            )

    def test_of_a_session_that_begins_they_are_the_first_of_those(self) -> None:
        opened = SessionOpened(
            time=EVENT.time,
            session=EVENT.session,
            listener=EVENT.listener,
            client=EVENT.client,
            local=EVENT.local,
        )
        self.assertEqual(list(fields(opened).items()), list(fields(EVENT).items())[:5])


class JsonTests(SynchronousTestCase):
    def test_the_fields(self) -> None:
        self.assertEqual(
            json.loads(json_line(EVENT)),
            {
                "time": "2023-11-14T22:13:20.123Z",
                "session": "1-2-3",
                "listener": "web",
                "client": "192.0.2.1:40000",
                "local": "192.0.2.2:5678",
                "pool": "main",
                "target": "127.0.0.1:80",
                "reason": "done",
                "code": "--",
                "bytes_up": 10,
                "bytes_down": 2000,
                "dial_ms": 1.25,
                "duration_ms": 2500.7,
                "retries": 0,
                "sessions": 3,
            },
        )

    def test_without_an_upstream_connection(self) -> None:
        fields = json.loads(json_line(NOT_DIALED))
        self.assertIsNone(fields["target"])
        self.assertIsNone(fields["dial_ms"])
        self.assertEqual(fields["error"], "every target is full")

    def test_the_time_in_the_queue(self) -> None:
        fields = json.loads(json_line(attrs.evolve(EVENT, queue_ms=400.2)))
        self.assertEqual(fields["queue_ms"], 400.2)

    def test_one_line_whatever_it_says(self) -> None:
        for error in ("two\nlines", 'a "quote"', "\udcff", "\u2028", "é"):
            line = json_line(attrs.evolve(EVENT, error=error))
            self.assertTrue(line.isascii())
            self.assertTrue(line.isprintable())
            self.assertEqual(json.loads(line)["error"], error)

    def test_whole_seconds_have_milliseconds_too(self) -> None:
        line = json_line(attrs.evolve(EVENT, time=1700000000.0))
        self.assertEqual(json.loads(line)["time"], "2023-11-14T22:13:20.000Z")


class TcplogTests(SynchronousTestCase):
    """HAProxy's configuration manual, "TCP log format"."""

    def test_the_line(self) -> None:
        self.assertEqual(
            tcplog_line(EVENT),
            "192.0.2.1:40000 [14/Nov/2023:22:13:17.622] web main/127.0.0.1:80"
            " 0/1/2501 2000 -- 7/3/5/4/0 0/0",
        )

    def test_without_an_upstream_connection(self) -> None:
        self.assertEqual(
            tcplog_line(NOT_DIALED),
            "192.0.2.1:40000 [14/Nov/2023:22:13:17.622] web main/<NOSRV>"
            " -1/-1/2501 2000 SC 7/3/5/4/0 0/0",
        )

    def test_another_target_than_the_first_is_marked(self) -> None:
        line = tcplog_line(attrs.evolve(EVENT, retries=2))
        self.assertIn(" 7/3/5/4/+2 ", line)

    def test_of_a_session_that_lasts_time_and_bytes_are_as_of_logasap(self) -> None:
        self.assertEqual(
            tcplog_line(LASTS),
            "192.0.2.1:40000 [14/Nov/2023:22:13:17.622] web main/127.0.0.1:80"
            " 0/1/+2501 +2000 -- 7/3/5/4/0 0/0",
        )

    def test_the_time_in_the_queue_is_not_the_time_of_the_dial(self) -> None:
        line = tcplog_line(attrs.evolve(EVENT, queue_ms=400.2, dial_ms=401.4, queued=6))
        self.assertIn(" main/127.0.0.1:80 400/1/2501 ", line)
        self.assertTrue(line.endswith(" 0/6"))

    def test_what_only_waited(self) -> None:
        line = tcplog_line(attrs.evolve(NOT_DIALED, queue_ms=400.2, code="sQ"))
        self.assertIn(" main/<NOSRV> 400/-1/2501 ", line)

    def test_without_a_pool(self) -> None:
        line = tcplog_line(attrs.evolve(NOT_DIALED, pool=None, code="PR"))
        self.assertIn(" web web/<NOSRV> ", line)


class AccessLogTests(SynchronousTestCase):
    def test_every_format_of_the_configuration_is_there(self) -> None:
        self.assertEqual(tuple(FORMATS), ACCESS_LOG_FORMATS)

    def test_one_line_for_each_event(self) -> None:
        for name, line in FORMATS.items():
            lines = Lines()
            log = AccessLog(name, lines)
            log.session_ended(EVENT)
            log.session_ended(LASTS)
            self.assertEqual(lines.written, [(line(EVENT), EVENT), (line(LASTS), LASTS)])

    def test_what_else_is_asked_of_it_is_the_sink_s(self) -> None:
        lines = Lines()
        log = AccessLog("json", lines)
        log.reopen()
        log.close(0.5)
        self.assertEqual(lines.told, ["reopen", "close 0.5"])
        self.assertEqual(log.dropped, 7)


class Lines:
    """A sink that keeps what it gets."""

    dropped = 7

    def __init__(self) -> None:
        self.written: list[tuple[str, SessionEnded]] = []
        self.told: list[str] = []

    def write(self, line: str, event: SessionEnded) -> None:
        self.written.append((line, event))

    def reopen(self) -> None:
        self.told.append("reopen")

    def close(self, patience: float = 0.0) -> None:
        self.told.append(f"close {patience}")

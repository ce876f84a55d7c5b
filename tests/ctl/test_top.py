"""The live table: rates, sorting, what is drawn, keys, and a relay that is lost."""

from __future__ import annotations

import io
import json
import select
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from attrs import evolve
from rich.console import Console

from fwdrelay.ctl import top
from fwdrelay.ctl.answers import Sample, SessionsShown
from fwdrelay.ctl.api import Api
from fwdrelay.ctl.exits import Failure, NoRelay, Refused
from fwdrelay.ctl.top import Follower, Frame, Look, Row, Screen, drawn, frame_of, sort_rows
from fwdrelay.observe.snapshot import SessionShown
from tests.case import SynchronousTestCase
from tests.ctl.fake_relay import (
    POOL,
    SESSION,
    STATUS,
    TARGET,
    CtlTestCase,
    Reply,
    refusal,
    status_event,
    stream,
)


def session(name: str, up: int = 0, down: int = 0, **more: Any) -> SessionShown:
    return evolve(SESSION, session=name, bytes_up=up, bytes_down=down, **more)


def look(
    uptime: float, *sessions: SessionShown, total: int = 0, pid: int = 1, count: int = 0
) -> Look:
    """With totals that are those of the sessions."""
    totals = evolve(
        STATUS.totals,
        sessions=len(sessions),
        sessions_total=total,
        bytes_up=sum(each.bytes_up for each in sessions),
        bytes_down=sum(each.bytes_down for each in sessions),
    )
    status = evolve(STATUS, uptime=uptime, pid=pid, totals=totals)
    shown = SessionsShown(sessions=sessions, count=count or len(sessions))
    return Look(Sample(status, (POOL,)), shown)


def text(frame: Frame, sort: str = "rate", **more: Any) -> str:
    """As it is drawn."""
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(*drawn(frame, sort, **more), sep="\n")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class FrameTests(SynchronousTestCase):
    def test_nothing_is_known_at_first(self) -> None:
        now = look(10, session("a", 5, 6))
        self.assertEqual(
            frame_of(None, now),
            Frame(now, None, None, None, (Row(now.sessions.sessions[0], None, None),)),
        )

    def test_rates_lie_between_two_looks(self) -> None:
        old = session("old", 100, 1000, duration_ms=99_000.0)
        before = look(10, old, total=3)
        now = look(12, evolve(old, bytes_up=300, bytes_down=1000), total=8)
        frame = frame_of(before, now)
        self.assertEqual((frame.up, frame.down, frame.opened), (100, 0, 2.5))
        self.assertEqual([(row.up, row.down) for row in frame.rows], [(100, 0)])

    def test_sessions_that_were_not_there_before(self) -> None:
        new = session("new", 100, 50, duration_ms=500.0)
        unseen = session("unseen", 100, 50, duration_ms=60_000.0)  # it was above the limit
        frame = frame_of(look(10), look(11, new, unseen))
        self.assertEqual([(row.up, row.down) for row in frame.rows], [(100, 50), (None, None)])

    def test_another_relay_in_its_place(self) -> None:
        for after in (look(11, session("a"), pid=2), look(3, session("a")), look(10, session("a"))):
            self.assertIs(frame_of(look(10), after).up, None)

    def test_sorting(self) -> None:
        rows = (
            Row(session("old", 9, 9, duration_ms=9e3, idle_ms=None), 1, None),
            Row(session("idle", 1, 1, duration_ms=5e3, idle_ms=4e3), None, None),
            Row(session("busy", 1, 90, duration_ms=1e3, idle_ms=1.0), 5, 5),
        )
        for sort, order in (
            ("rate", ["busy", "old", "idle"]),
            ("bytes", ["busy", "old", "idle"]),
            ("age", ["old", "idle", "busy"]),
            ("idle", ["idle", "busy", "old"]),
        ):
            self.assertEqual([row.session.session for row in sort_rows(rows, sort)], order)


class DrawnTests(SynchronousTestCase):
    def test_all_of_it(self) -> None:
        before = look(10, session("a", 0, 0, duration_ms=5e3), total=1)
        now = look(12, session("a", 2048, 4096, duration_ms=7e3, sni="x.example"), total=2)
        lines = [" ".join(line.split()) for line in text(frame_of(before, now)).splitlines()]
        self.assertEqual(
            lines,
            [
                "fwdrelay 1.2.3, running, up for 12.0s; 2 refused",
                "up 1.00 KiB/s down 2.00 KiB/s sessions 1 new 0.50/s total 2, 2.00 KiB up, 4.00 KiB down",
                "sessions by rate",
                "",
                "POOL TARGET STATE SESSIONS SHARE DIAL CAUSE",
                "web a:80 up 1 100% 0.5ms -",
                "",
                "SESSION CLIENT TARGET STATE AGE UP/S DOWN/S UP DOWN SNI",
                "a 192.0.2.1:1234 a:80 relaying 7.0s 1.00 KiB/s 2.00 KiB/s 2.00 KiB 4.00 KiB x.example",
            ],
        )

    def test_it_fits_the_room(self) -> None:
        targets = tuple(evolve(TARGET, name=f"t{number}") for number in range(50))
        many = look(10, *(session(str(number)) for number in range(100)), count=5000)
        many = evolve(many, sample=evolve(many.sample, pools=(evolve(POOL, targets=targets),)))
        for room in (12, 24, 60):
            told = text(frame_of(None, many), room=room, notice="lost", keys=True)
            self.assertEqual(len(told.splitlines()), room)
            self.assertIn(f"{50 - room // 3 + 1} more", told)
            self.assertIn("of the oldest 100 of 5000   s: sort by another   q: quit", told)
            self.assertIn("\nlost\n", told)
        self.assertIn("lost", text(frame_of(None, many), room=3, notice="lost"))


class ScreenTests(SynchronousTestCase):
    def test_keys(self) -> None:
        screen = Screen()
        sorts = []
        for keys in (b"s", b"S", b"x", b"\x1b[A", b"s"):
            self.assertTrue(screen.press(keys))
            sorts.append(screen.sort)
        self.assertEqual(sorts, ["bytes", "age", "age", "age", "idle"])
        self.assertTrue(screen.press(b"s"))
        self.assertEqual(screen.sort, "rate")
        for keys in (b"q", b"Q", b"\x04", b""):
            self.assertFalse(screen.press(keys))

    def seen(self, screen: Screen) -> str:
        out = io.StringIO()
        Console(file=out, width=200, color_system=None).print(*screen.draw(0, keys=False))
        return out.getvalue()

    def test_a_relay_that_is_lost_and_comes_back(self) -> None:
        screen = Screen()
        self.assertIn("Waiting for the relay", self.seen(screen))
        screen.take(look(10))
        screen.take(NoRelay("the connection ended"))
        self.assertIn("trying again: the connection ended", self.seen(screen))
        screen.take(look(11))
        self.assertNotIn("trying again", self.seen(screen))
        self.assertEqual(screen.looks, 2)

    def test_what_trying_again_does_not_help(self) -> None:
        with self.assertRaises(NoRelay):
            Screen().take(NoRelay("none"))
        screen = Screen()
        screen.take(look(10))
        with self.assertRaises(Refused):
            screen.take(Refused("no"))


class FollowerTests(CtlTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(top, "RETRY", 0.01)
        self.patch(top, "_JOIN", 60.0)

    def follow(self, interval: float = 1.0) -> Follower:
        follower = Follower(Api(self.relay.admin), interval)
        follower.start()
        self.addCleanup(follower.stop)
        return follower

    def told(self, follower: Follower, count: int) -> list[Look | Failure]:
        """The first that it tells."""
        found: list[Look | Failure] = []
        while len(found) < count:
            select.select([follower.readable], [], [])
            found += follower.taken()
        return found

    def test_it_looks_and_looks_and_connects_again(self) -> None:
        first, second = status_event(), status_event(evolve(STATUS, uptime=101.0))
        self.relay.replies["GET /v1/events"] = lambda asked: stream(first, second)
        told = self.told(self.follow(), 5)
        kinds = [type(each) for each in told[:5]]
        self.assertEqual(kinds, [Look, Look, NoRelay, Look, Look])
        assert isinstance(told[0], Look)
        self.assertEqual(told[0].sample, Sample(STATUS, (POOL,)))
        self.assertEqual(told[0].sessions.sessions, (SESSION,))
        self.assertIn("GET /v1/sessions?limit=1000", self.relay.lines())

    def test_not_more_often_than_one_wants(self) -> None:
        events = [status_event(evolve(STATUS, uptime=float(at))) for at in (1, 2, 3, 3.9, 5, 6)]
        self.relay.replies["GET /v1/events"] = lambda asked: stream(*events)
        told = self.told(self.follow(interval=3), 3)
        self.assertEqual(
            [look.sample.status.uptime for look in told[:2] if isinstance(look, Look)], [1.0, 3.9]
        )

    def test_a_refusal_is_the_end(self) -> None:
        self.relay.replies["GET /v1/events"] = refusal(401, "show the token")
        follower = self.follow()
        (told,) = self.told(follower, 1)
        self.assertIsInstance(told, Failure)
        follower.join()

    def test_what_should_not_have_happened_is_told(self) -> None:
        def broken(*arguments: object) -> None:
            raise ZeroDivisionError("a bug")

        self.patch(Api, "follow", broken)
        (told,) = self.told(self.follow(), 1)
        self.assertIs(type(told), Failure)
        self.assertIn("ZeroDivisionError", str(told))

    def test_it_ends_while_it_waits(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def pieces() -> Iterator[str]:
            yield status_event()
            go_on.wait()

        self.relay.replies["GET /v1/events"] = Reply(200, pieces(), "text/event-stream")
        follower = self.follow()
        self.told(follower, 1)
        follower.stop()
        self.assertFalse(follower.is_alive())


class CommandTests(CtlTestCase):
    def events(self, *uptimes: float) -> None:
        events = [status_event(evolve(STATUS, uptime=uptime)) for uptime in uptimes]
        self.relay.replies["GET /v1/events"] = stream(*events)

    def test_one_frame_of_two_samples_where_it_is_no_terminal(self) -> None:
        self.events(1, 2, 3)
        out = self.ctl("top").out
        self.assertEqual(out.count("sessions by rate"), 1)
        self.assertIn("up 0 B/s  down 0 B/s  sessions 1  new 0/s", out)
        self.assertIn("s-1", out)
        self.assertNotIn("\x1b", out)

    def test_so_many_frames(self) -> None:
        self.events(1, 2, 3, 4)
        out = self.ctl("top", "--count", "2").out
        self.assertEqual(out.count("sessions by rate"), 2)

    def test_json(self) -> None:
        self.events(1, 2, 3)
        lines = self.ctl("top", "--json", "--count", "2").out.splitlines()
        self.assertEqual([json.loads(line)["uptime"] for line in lines], [1.0, 2.0])
        self.assertEqual(json.loads(lines[0])["pools"][0]["name"], "web")
        self.assertEqual(self.relay.lines(), ["GET /v1/events"])

    def test_a_relay_that_is_lost(self) -> None:
        self.events(1, 2)
        ran = self.ctl("top", "--count", "2", status=3)
        self.assertEqual(ran.out.count("sessions by rate"), 1)
        self.assertEqual(ran.err, f"fwdrelayctl: the connection to {self.relay.admin} ended\n")

    def test_ctrl_c_is_no_failure(self) -> None:
        for arguments in (("top",), ("top", "--json")):
            with mock.patch("fwdrelay.ctl.api.Api.follow", side_effect=KeyboardInterrupt) as asked:
                self.ctl(*arguments)
            asked.assert_called()

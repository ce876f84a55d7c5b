"""Tables: what stands in them, and that it can do nothing to a terminal."""

from __future__ import annotations

import contextlib
import io
import os

from attrs import evolve

from fwdrelay.ctl import drawing
from fwdrelay.observe.snapshot import Reloads
from tests.ctl.fake_relay import LISTENER, POOL, SESSION, STATUS, TARGET, CtlTestCase

EVIL = "\x1b[2Jevil\x07\u202e [red]x[/red] :smile:"
ESCAPED = "\\u001b[2Jevil\\u0007\\u202e [red]x[/red] :smile:"


class _Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


class DrawingTests(CtlTestCase):
    def drawn(self, *parts: drawing.Drawable, terminal: bool = False) -> str:
        """What is written."""
        out = io.TextIOWrapper(_Terminal() if terminal else io.BytesIO(), "utf-8", newline="")
        with contextlib.redirect_stdout(out):
            drawing.show(*parts)
        out.flush()
        return out.buffer.getvalue().decode()

    def lines(self, *parts: drawing.Drawable) -> list[str]:
        """What is written, with single blanks."""
        return [" ".join(line.split()) for line in self.drawn(*parts).splitlines()]

    def test_status(self) -> None:
        self.assertEqual(
            self.lines(drawing.status_head(STATUS)),
            [
                "fwdrelay 1.2.3, running, up for 1m40s, since 2026-02-03 04:05:06Z, pid 4711",
                "1 session open, 7 since the start, 2 refused",
                "1.50 KiB up, 3.00 MiB down",
            ],
        )

    def test_what_a_status_has_at_times(self) -> None:
        reloads = Reloads(success=2, failure=1, last="2026-02-03T04:05:06Z", last_result="failure")
        lines = self.lines(
            drawing.status_head(evolve(STATUS, reloads=reloads, access_log_dropped=5))
        )
        self.assertEqual(
            lines[3:],
            [
                "3 reloads, the last at 2026-02-03 04:05:06Z failed",
                "5 lines of the access log dropped; the relay's log says why",
            ],
        )

    def test_listeners(self) -> None:
        gone = evolve(LISTENER, addresses=(), state="draining", pool=None, tls=True, max_sessions=5)
        self.assertEqual(
            self.lines(drawing.listeners_table(evolve(STATUS, listeners=(LISTENER, gone)))),
            [
                "LISTENER STATE ADDRESSES POOL TLS SESSIONS TOTAL REFUSED UP DOWN",
                "web listening 127.0.0.1:5678 web no 1 7 2 1.50 KiB 3.00 MiB",
                "web draining - - yes 1/5 7 2 1.50 KiB 3.00 MiB",
            ],
        )

    def test_pools(self) -> None:
        pools = (
            POOL,
            evolve(
                POOL,
                name="db",
                max_sessions=9,
                targets=(
                    evolve(
                        TARGET,
                        name="first",
                        up=False,
                        cause="checked: connection refused, 3 times",
                        since="2026-02-03T04:05:06.789Z",
                        share=0.0,
                        dial_ms=None,
                    ),
                    evolve(
                        TARGET, state="drain", backup=True, weight=5, max_sessions=7, share=1 / 3
                    ),
                    evolve(TARGET, state="down", up=False),
                ),
            ),
            evolve(POOL, name="none", targets=()),
        )
        self.assertEqual(
            self.lines(drawing.pools_table(pools)),
            [
                "POOL TARGET ADDRESS STATE SESSIONS SHARE WEIGHT DIAL SINCE CAUSE",
                "web a:80 a:80 up 1 100% 1 0.5ms - -",
                "db first a:80 down 1 0% 1 - 2026-02-03 04:05:06Z checked: connection refused, 3 times",
                "db a:80 a:80 drain (set) 1/7 33.3% 5 backup 0.5ms - -",
                "db a:80 a:80 down (set), down 1 100% 1 0.5ms - -",
                "none -",
            ],
        )
        self.assertNotIn("ADDRESS", self.drawn(drawing.pools_table([POOL])))
        self.assertEqual(
            self.lines(drawing.pools_in_short(pools)),
            [
                "POOL TARGETS SESSIONS WAITING BALANCE CHECK",
                "web 1 of 1 up 1 0 round-robin off",
                "db 0 of 3 up 1/9 0 round-robin off",
                "none 0 of 0 up 1 0 round-robin off",
            ],
        )

    def test_sessions(self) -> None:
        queued = evolve(SESSION, target=None, state="queued", idle_ms=None, sni="a.example")
        self.assertEqual(
            self.lines(drawing.sessions_table([SESSION, queued])),
            [
                "SESSION LISTENER CLIENT POOL TARGET STATE AGE IDLE UP DOWN SNI",
                "s-1 web 192.0.2.1:1234 web a:80 relaying 1m01s 12ms 100 B 2.00 KiB -",
                "s-1 web 192.0.2.1:1234 web - queued 1m01s - 100 B 2.00 KiB a.example",
            ],
        )

    def test_sessions_of_workers(self) -> None:
        kept = evolve(SESSION, worker=1, kept=True)
        lines = list(drawing.sessions_table([kept, evolve(SESSION, worker=12)]).lines())
        self.assertEqual(
            [line.split()[:3] for line in lines],
            [["SESSION", "WORKER", "LISTENER"], ["s-1", "1+", "web"], ["s-1", "12", "web"]],
        )

    def test_nothing_is_cut_and_nothing_trails_where_it_is_no_terminal(self) -> None:
        long = evolve(SESSION, sni="x" * 250)
        out = self.drawn(drawing.sessions_table([long, SESSION]))
        self.assertIn("x" * 250, out)
        for line in out.splitlines():
            self.assertEqual(line, line.rstrip())

    def test_a_narrow_terminal_goes_without_columns_instead_of_cutting_names(self) -> None:
        os.environ["TERM"] = "xterm-256color"
        os.environ["NO_COLOR"] = "1"
        one = evolve(
            SESSION,
            session="6b040416-707d-45c",
            client="198.51.100.200:54321",
            target="198.51.100.100:15678",
            sni="a.long.name.example",
        )
        other = evolve(one, session="6b040416-707d-45d")
        for width, heads in (
            (180, "SESSION LISTENER CLIENT POOL TARGET STATE AGE IDLE UP DOWN SNI"),
            (120, "SESSION CLIENT POOL TARGET STATE AGE IDLE UP DOWN"),
            (80, "SESSION CLIENT TARGET UP DOWN"),
            (40, "SESSION CLIENT"),
        ):
            os.environ["COLUMNS"] = str(width)
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                out = self.drawn(drawing.sessions_table([one, other]), terminal=True)
            lines = [line.split() for line in out.splitlines()]
            self.assertEqual(lines[0], heads.split())
            for line, shown in zip(lines[1:], (one, other), strict=True):
                self.assertEqual(line[0], shown.session)
                self.assertIn(one.client, line)
                self.assertNotIn("…", " ".join(line))
            self.assertLessEqual(max(map(len, out.splitlines())), width)
            self.assertEqual("there is no room for LISTENER" in err.getvalue(), width < 180)
        os.environ["COLUMNS"] = "20"
        with contextlib.redirect_stderr(io.StringIO()):
            out = self.drawn(drawing.sessions_table([one]), terminal=True)
        self.assertEqual([len(line.rstrip()) <= 20 for line in out.splitlines()], [True, True])
        self.assertIn("6b04", out)

    def test_a_long_name_leaves_room_for_the_others(self) -> None:
        os.environ.update(TERM="xterm-256color", COLUMNS="80", NO_COLOR="1")
        target = evolve(TARGET, name="unix:/run/" + "x" * 200, up=False, cause="one two " * 12)
        with contextlib.redirect_stderr(io.StringIO()):
            out = self.drawn(drawing.pools_table([evolve(POOL, targets=(target,))]), terminal=True)
        head, first, *more = out.splitlines()
        self.assertEqual(head.split(), ["POOL", "TARGET", "STATE", "SESSIONS", "SHARE", "CAUSE"])
        self.assertIn("web   unix:/run/", first)
        self.assertIn("down", first)
        self.assertEqual(" ".join([first, *more]).count("one"), 12)
        self.assertLessEqual(max(map(len, out.splitlines())), 80)

    def test_what_comes_from_anywhere_is_escaped_and_no_markup(self) -> None:
        for terminal in (False, True):
            os.environ.update(TERM="xterm-256color", COLUMNS="300")
            target = evolve(TARGET, name=EVIL, address=EVIL, cause=EVIL)
            out = self.drawn(
                drawing.sessions_table([evolve(SESSION, sni=EVIL, target=EVIL, client=EVIL)]),
                drawing.pools_table([evolve(POOL, name=EVIL, targets=(target,))]),
                terminal=terminal,
            )
            self.assertEqual(out.count(ESCAPED), 6)
            self.assertNotIn("\x1b[2J", out)
            self.assertNotIn("\u202e", out)

    def test_colours_at_a_terminal_only(self) -> None:
        table = drawing.pools_table([POOL])
        self.assertNotIn("\x1b", self.drawn(table))
        os.environ["TERM"] = "xterm-256color"
        self.assertIn("\x1b[32mup", self.drawn(table, terminal=True))
        os.environ["NO_COLOR"] = "1"
        self.assertNotIn("\x1b", self.drawn(table, terminal=True))
        del os.environ["NO_COLOR"]
        os.environ["TERM"] = "dumb"
        self.assertNotIn("\x1b", self.drawn(table, terminal=True))

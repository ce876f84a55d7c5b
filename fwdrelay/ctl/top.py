"""
`fwdrelayctl top`: what goes through a relay, live.

The relay tells its state each second in a stream of events; the sessions are asked for as often. A rate is
what lies between two such samples, by the relay's own clock. At a terminal a thread waits for the relay,
while the main one waits for keys.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import NoReturn

from attrs import define, frozen
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from . import drawing
from .answers import (
    PoolShown,
    Sample,
    SessionShown,
    SessionsShown,
    object_of,
    sample_of,
    value_of,
)
from .api import Api, Event, Events
from .exits import Failure, NoRelay
from .figures import duration, milliseconds, per_second, percent, rate, size

LOOKED_AT = 1000
"""Sessions that are asked for; a relay may have many more."""
SORTS = ("rate", "bytes", "age", "idle")
"""What sessions can be sorted by: most first."""
RETRY = 1.0
"""Seconds until a relay that was lost is asked again."""
# That events come a bit early or late must not make a frame wait for the next one.
_SLACK = 0.5
_JOIN = 2.0


@frozen
class Look:
    """
    A relay and its sessions at one moment.

    @ivar sessions: the oldest `LOOKED_AT`.
    """

    sample: Sample
    sessions: SessionsShown


@frozen
class Row:
    """
    A session; what comes and goes in it is in bytes a second.

    @ivar up: None: not known yet.
    """

    session: SessionShown
    up: float | None
    down: float | None


@frozen
class Frame:
    """
    What is drawn; the rates are None until there were two samples.

    @ivar opened: sessions a second that were let in.
    """

    look: Look
    up: float | None
    down: float | None
    opened: float | None
    rows: tuple[Row, ...]


def frame_of(before: Look | None, now: Look) -> Frame:
    """
    @param before: an earlier look; None: there was none.
    """
    status = now.sample.status
    passed = 0.0 if before is None else status.uptime - before.sample.status.uptime
    if before is None or passed <= 0 or before.sample.status.pid != status.pid:
        rows = tuple(Row(session, None, None) for session in now.sessions.sessions)
        return Frame(now, None, None, None, rows)
    earlier = before.sample.status.totals
    known = {session.session: session for session in before.sessions.sessions}
    return Frame(
        now,
        max(0.0, (status.totals.bytes_up - earlier.bytes_up) / passed),
        max(0.0, (status.totals.bytes_down - earlier.bytes_down) / passed),
        max(0.0, (status.totals.sessions_total - earlier.sessions_total) / passed),
        tuple(_row(session, known, passed) for session in now.sessions.sessions),
    )


def _row(session: SessionShown, known: Mapping[str, SessionShown], passed: float) -> Row:
    former = known.get(session.session)
    if former is not None:
        up = (session.bytes_up - former.bytes_up) / passed
        down = (session.bytes_down - former.bytes_down) / passed
        return Row(session, max(0.0, up), max(0.0, down))
    if session.duration_ms <= (passed + _SLACK) * 1000:  # it is new
        return Row(session, session.bytes_up / passed, session.bytes_down / passed)
    return Row(session, None, None)


def sort_rows(rows: tuple[Row, ...], sort: str) -> list[Row]:
    """
    @param sort: one of `SORTS`.
    """
    keys = {
        "rate": lambda row: (row.up or 0) + (row.down or 0),
        "bytes": lambda row: row.session.bytes_up + row.session.bytes_down,
        "age": lambda row: row.session.duration_ms,
        "idle": lambda row: row.session.idle_ms or 0,
    }
    return sorted(rows, key=keys[sort], reverse=True)


def samples(events: Events, interval: float) -> Iterator[tuple[Event, Sample]]:
    """
    @param interval: seconds between two, at least.
    @return: without an end.
    @raise Failure: the connection was lost.
    """
    due = -1.0
    for event in events:
        if event.name == "status":
            sample = sample_of(object_of(event))
            uptime = sample.status.uptime
            if uptime >= due - _SLACK or uptime < due - interval - _SLACK:  # or it is another relay
                due = uptime + interval
                yield event, sample


def look(api: Api, sample: Sample) -> Look:
    """Ask for the sessions, too."""
    answer = api.ask("GET", "/v1/sessions", {"limit": LOOKED_AT})
    failure = answer.failure()
    if failure is not None:
        raise failure
    return Look(sample, value_of(answer.document, SessionsShown))


# ---------------------------------------------------------------------------------------- drawing


def drawn(
    frame: Frame, sort: str, room: int = 0, notice: str = "", keys: bool = False
) -> list[drawing.Drawable]:
    """
    @param room: lines that there are; 0: any number.
    @param notice: what is wrong at the moment.
    @param keys: whether somebody can press them.
    """
    sample = frame.look.sample
    pools = _pools(sample.pools, max(3, room // 3) if room else 0)
    head = _head(frame, sort, notice, keys)
    rows = sort_rows(frame.rows, sort)
    if room:
        # With two blank lines, and two heads.
        taken = head.plain.count("\n") + 1 + len(pools) + 4
        rows = rows[: max(0, room - taken)]
    return [head, "", pools, "", _sessions(rows)]


def _head(frame: Frame, sort: str, notice: str, keys: bool) -> Text:
    status = frame.look.sample.status
    totals, count = status.totals, frame.look.sessions.count
    text = Text("fwdrelay ", no_wrap=True, overflow="ellipsis")
    text.append_text(drawing.plain(status.version)).append(", ")
    text.append_text(drawing.plain(status.state, drawing.STATES.get(status.state, "")))
    text.append(f", up for {duration(status.uptime)}; {totals.rejected_total} refused\n")
    text.append("up ").append(rate(frame.up), "bold cyan")
    text.append("  down ").append(rate(frame.down), "bold magenta")
    text.append("  sessions ").append(str(totals.sessions), "bold")
    text.append("  new ").append(per_second(frame.opened), "bold")
    text.append(f"  total {totals.sessions_total}, {size(totals.bytes_up)} up,")
    text.append(f" {size(totals.bytes_down)} down\n")
    text.append(f"sessions by {sort}")
    if count > len(frame.rows):
        text.append(f", of the oldest {len(frame.rows)} of {count}")
    if keys:
        text.append("   s: sort by another   q: quit", "dim")
    if notice:
        text.append("\n").append_text(drawing.plain(notice, "bold red"))
    return text


def _pools(pools: tuple[PoolShown, ...], most: int) -> drawing.Rows:
    """@param most: rows; 0: any number."""
    table = drawing.Rows(
        *("pool", "target", "state", ">sessions", ">share", ">dial", "cause"),
        omit=("dial", "share", "pool", "cause"),
    )
    rows = [(pool, target) for pool in pools for target in pool.targets]
    cut = most and len(rows) > most
    for pool, target in rows[: most - 1] if cut else rows:
        table.add(
            drawing.plain(pool.name),
            drawing.plain(target.name),
            drawing.state_of(target),
            str(target.sessions),
            percent(target.share),
            milliseconds(target.dial_ms),
            drawing.why(target),
        )
    if cut:
        table.add("…", f"{len(rows) - most + 1} more")
    return table


def _sessions(rows: list[Row]) -> drawing.Rows:
    table = drawing.Rows(
        *("session", "client", "target", "state", ">age"),
        *(">up/s", ">down/s", ">up", ">down", "sni"),
        omit=("sni", "state", "up", "down", "age", "session", "target"),
    )
    for row in rows:
        each = row.session
        table.add(
            drawing.plain(each.session),
            drawing.plain(each.client),
            drawing.plain(each.target),
            drawing.plain(each.state, drawing.STATES.get(each.state, "")),
            milliseconds(each.duration_ms),
            rate(row.up),
            rate(row.down),
            size(each.bytes_up),
            size(each.bytes_down),
            drawing.plain(each.sni),
        )
    return table


# ---------------------------------------------------------------------------- without a terminal


def print_frames(api: Api, interval: float, count: int) -> None:
    """
    Draw so many frames below each other; for the first, too, two samples are awaited.

    @raise Failure: the relay was lost.
    """
    with api.follow("/v1/events") as events:
        before: Look | None = None
        for _, sample in samples(events, interval):
            now = look(api, sample)
            if before is not None:
                drawing.show(*drawn(frame_of(before, now), SORTS[0]))
                count -= 1
                if not count:
                    return
                drawing.show("")
            before = now


# ----------------------------------------------------------------------------------- at a terminal


class Follower(threading.Thread):
    """
    Looks at a relay again and again, in a thread, and connects again when it is lost.

    @ivar told: each `Look`, and the `Failure` of each connection.
    @ivar readable: a descriptor that can be read from when there is something in `told`.
    """

    def __init__(self, api: Api, interval: float) -> None:
        super().__init__(name="fwdrelayctl top", daemon=True)
        self._api = api
        self._interval = interval
        self._stopping = threading.Event()
        self._events: Events | None = None
        self.told: queue.SimpleQueue[Look | Failure] = queue.SimpleQueue()
        self.readable, self._writable = os.pipe()

    def run(self) -> None:
        """The thread."""
        while not self._stopping.is_set():
            try:
                self._follow()
            except Failure as failure:
                self._tell(failure)
                if not isinstance(failure, NoRelay):
                    return
                self._stopping.wait(RETRY)
            except Exception as error:  # or the screen would stand still without a word
                self._tell(Failure(f"this should not have happened: {error!r}"))
                return

    def _follow(self) -> None:
        with self._api.follow("/v1/events") as events:
            self._events = events
            if self._stopping.is_set():
                return
            for _, sample in samples(events, self._interval):
                self._tell(look(self._api, sample))

    def _tell(self, told: Look | Failure) -> None:
        if not self._stopping.is_set():
            self.told.put(told)
            os.write(self._writable, b".")

    def taken(self) -> list[Look | Failure]:
        """What was told since the last time; for who found `readable` to be so."""
        os.read(self.readable, 4096)
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.told.get_nowait())
        return found

    def stop(self) -> None:
        """End it, and wait a moment for that; a second time it does nothing."""
        self._stopping.set()
        if self._events is not None:
            self._events.stop()
        self.join(_JOIN)
        if not self.is_alive() and self.readable >= 0:
            os.close(self.readable)
            os.close(self._writable)
            self.readable = -1


@define
class Screen:
    """
    What is seen, and what keys do.

    @ivar sort: one of `SORTS`.
    @ivar notice: what is wrong at the moment.
    @ivar drawn: how many looks there were.
    """

    sort: str = SORTS[0]
    notice: str = ""
    looks: int = 0
    _look: Look | None = None
    _frame: Frame | None = None

    def take(self, told: Look | Failure) -> None:
        """
        Another look, or that there is none.

        @raise Failure: one that trying again does not help.
        """
        if isinstance(told, Look):
            self._frame = frame_of(self._look, told)
            self._look, self.notice = told, ""
            self.looks += 1
        elif self._frame is None or not isinstance(told, NoRelay):
            raise told
        else:
            self.notice = f"trying again: {told}"

    def press(self, keys: bytes) -> bool:
        """
        @param keys: as a terminal sends them; empty: it is gone.
        @return: whether to go on.
        """
        if not keys or keys[:1] in (b"q", b"Q", b"\x03", b"\x04"):
            return False
        if keys[:1] in (b"s", b"S"):
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        return True

    def draw(self, room: int, *, keys: bool) -> list[drawing.Drawable]:
        """
        @param room: lines that there are; 0: any number.
        @param keys: whether somebody can press them.
        """
        if self._frame is None:
            return [Text("Waiting for the relay …")]
        return drawn(self._frame, self.sort, room, self.notice, keys)


def live(api: Api, interval: float, count: int) -> None:
    """
    Draw in place until somebody has seen enough.

    @param count: frames; 0: any number. The last one stays on the screen.
    @raise Failure: there is no relay, or it refuses.
    """
    follower = Follower(api, interval)
    follower.start()
    screen, console = Screen(), drawing.console()
    try:
        with _ending_by_signals(), _keys() as keys:
            _run(screen, console, follower, keys, count)
    finally:
        follower.stop()
    if count and screen.looks >= count:
        drawing.show(*screen.draw(0, keys=False))


def _run(screen: Screen, console: Console, follower: Follower, keys: list[int], count: int) -> None:
    def view() -> Group:
        return Group(*screen.draw(console.size.height, keys=bool(keys)))

    with Live(view(), console=console, screen=True, auto_refresh=False) as drawing_area:
        while True:
            readable, _, _ = select.select([follower.readable, *keys], [], [])
            if follower.readable in readable:
                for told in follower.taken():
                    screen.take(told)
                if count and screen.looks >= count:
                    return
            if set(keys) & set(readable) and not screen.press(_read(keys[0])):
                return
            drawing_area.update(view(), refresh=True)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 64)
    except OSError:  # it has hung up
        return b""


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """A terminal that tells of each key at once, if stdin is one."""
    if not sys.stdin or not sys.stdin.isatty():
        yield []
        return
    terminal = sys.stdin.fileno()
    former = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield [terminal]
    finally:
        with contextlib.suppress(termios.error):  # it has hung up
            termios.tcsetattr(terminal, termios.TCSADRAIN, former)


@contextlib.contextmanager
def _ending_by_signals() -> Iterator[None]:
    """Signals that would end the program end it in order, so that the terminal is as it was."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in former.items():
            signal.signal(number, action)

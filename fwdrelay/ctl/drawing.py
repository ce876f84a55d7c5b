"""
A relay in tables, as `rich` draws them: coloured at a terminal, plain and as wide as need be elsewhere.

Names of targets, servers and identities come from anywhere: each goes through `plain`, so none of it is
markup, and none of it reaches a terminal raw.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from ..config.check import printable
from ..words import counted
from .answers import PoolShown, SessionShown, Status, TargetShown, WorkerShown
from .asking import tell
from .figures import duration, milliseconds, moment, percent, size

STATES = {
    "running": "green",
    "listening": "green",
    "up": "green",
    "relaying": "green",
    "starting": "yellow",
    "draining": "yellow",
    "drain": "yellow",
    "queued": "yellow",
    "down": "red",
    "ended": "red",
}
"""The colours of states."""

_GAP = 2
_NAME = len("255.255.255.255:65535")
"""Names that are no longer are not cut to make room for what is less important."""
_PART_OF_A_NAME = 8


def at_terminal() -> bool:
    """Whether stdout is one that can do more than lines."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def console() -> Console:
    """What draws on stdout."""
    terminal = at_terminal()
    return Console(
        file=sys.stdout,
        force_terminal=terminal,
        # By NO_COLOR, rich would draw without colours, but in bold.
        color_system="auto" if terminal and not os.environ.get("NO_COLOR") else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def show(*drawn: Drawable) -> None:
    """Draw on stdout."""
    if at_terminal():
        screen = console()
        screen.print(*drawn, sep="\n")
        _tell_what_is_left_out(screen.width, drawn)
        return
    for each in drawn:
        for line in each.lines() if isinstance(each, Rows) else str(each).split("\n"):
            sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()


def _tell_what_is_left_out(room: int, drawn: Iterable[Drawable]) -> None:
    tables = [each for each in drawn if isinstance(each, Rows)]
    heads = dict.fromkeys(head for table in tables for head in table.left_out(room))
    if heads:
        tell(f"there is no room for {', '.join(heads)}; with `| cat` behind it, all is shown")


def plain(text: str | None, style: str = "") -> Text:
    """
    @param text: from anywhere; None: there is none.
    """
    return Text("-" if text is None else printable(text), style)


class Rows:
    """
    A table. At a terminal it is rich's, which fits into the width; elsewhere it is as wide as need be, and made
    here, as rich takes a while for thousands of rows.

    @param columns: their heads; those that begin with `>` have numbers, and those with `~` sentences, which may
        be broken.
    @param omit: heads of columns that a narrow terminal goes without, the first one first. Names are cut only when
        all of these are gone, for half a name is of no use to anybody.
    """

    def __init__(self, *columns: str, omit: Sequence[str] = ()) -> None:
        self._columns = columns
        self._heads = [column.lstrip(">~").upper() for column in columns]
        self._omit = [self._heads.index(head.upper()) for head in omit]
        self._rows: list[tuple[Text | str, ...]] = []

    def __len__(self) -> int:
        """How many there are, without the heads."""
        return len(self._rows)

    def add(self, *cells: Text | str) -> None:
        """One more row; cells that are missing are empty."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        widths = self._fitted(options.max_width)
        for index, width in widths.items():
            column = self._columns[index]
            table.add_column(
                Text(self._heads[index]),
                justify="right" if column.startswith(">") else "left",
                width=width,
                no_wrap=not column.startswith("~"),
                overflow="fold" if column.startswith("~") else "ellipsis",
            )
        for row in self._rows:
            table.add_row(*(row[index] for index in widths if index < len(row)))
        yield table

    def lines(self) -> Iterator[str]:
        """It, as plain text."""
        widths = self._widths()
        for row in ([str(cell) for cell in row] for row in (self._heads, *self._rows)):
            padded = []
            for column, width, cell in zip(self._columns, widths, row, strict=False):
                blanks = " " * (width - cell_len(cell))
                padded.append(blanks + cell if column.startswith(">") else cell + blanks)
            yield (" " * _GAP).join(padded)

    def left_out(self, room: int) -> list[str]:
        """
        @param room: cells of a line.
        @return: the heads of the columns for which there is none.
        """
        shown = self._fitted(room)
        return [head for index, head in enumerate(self._heads) if index not in shown]

    def _widths(self) -> list[int]:
        """What each column needs."""
        widths = [cell_len(head) for head in self._heads]
        for row in self._rows:
            for index, cell in enumerate(row):
                widths[index] = max(widths[index], cell_len(str(cell)))
        return widths

    def _fitted(self, room: int) -> dict[int, int]:
        """
        @param room: cells of a line.
        @return: the columns that are shown, by their place, and how wide each is.
        """
        widths = dict(enumerate(self._widths()))
        names = [index for index, column in enumerate(self._columns) if not column.startswith(">")]
        enough = {
            index: min(width, _NAME) if index in names else width for index, width in widths.items()
        }
        for index in self._omit:
            if _across(enough) <= room:
                break
            del widths[index], enough[index]
        for which, least in ((names, _NAME), (names, _PART_OF_A_NAME), (list(widths), 1)):
            shown = [index for index in which if index in widths]
            while _across(widths) > room:
                widest = max(shown, key=widths.__getitem__)
                if widths[widest] <= least:
                    break
                widths[widest] -= 1
        return widths


def _across(widths: Mapping[int, int]) -> int:
    """How wide columns are, with what is between them."""
    return sum(widths.values()) + _GAP * (len(widths) - 1)


Drawable: TypeAlias = str | Text | Rows
"""What can be shown."""


def status_head(status: Status) -> Text:
    """The relay itself, in a few lines."""
    totals, reloads = status.totals, status.reloads
    text = Text("fwdrelay ")
    text.append_text(plain(status.version)).append(", ")
    text.append_text(plain(status.state, STATES.get(status.state, "")))
    text.append(f", up for {duration(status.uptime)}, since ")
    text.append_text(plain(moment(status.started))).append(f", pid {status.pid}\n")
    text.append(
        f"{counted(totals.sessions, 'session')} open, {totals.sessions_total} since the start, "
    )
    text.append(f"{totals.rejected_total} refused\n")
    text.append(f"{size(totals.bytes_up)} up, {size(totals.bytes_down)} down")
    if reloads.last is not None:
        style = "" if reloads.last_result == "success" else "red"
        went = "went well" if reloads.last_result == "success" else "failed"
        text.append(f"\n{counted(reloads.success + reloads.failure, 'reload')}, the last at ")
        text.append_text(plain(moment(reloads.last))).append(" ").append(went, style)
    if status.access_log_dropped:
        lines = counted(status.access_log_dropped, "line")
        text.append(f"\n{lines} of the access log dropped; the relay's log says why", "red")
    if status.unwell:
        text.append("\n").append_text(plain(f"unwell: {status.unwell}", "red"))
    return text


def workers_table(workers: Iterable[WorkerShown]) -> Rows:
    """A row for each worker."""
    drawn = Rows(
        *(">worker", ">pid", "state", ">sessions", ">kept", ">restarts", "since"),
        omit=("since", "pid"),
    )
    for each in workers:
        drawn.add(
            str(each.worker),
            "-" if each.pid is None else str(each.pid),
            plain(each.state, STATES.get(each.state, "")),
            str(each.sessions),
            str(each.kept),
            Text(str(each.restarts), "red" if each.restarts else ""),
            plain(None if each.started is None else moment(each.started)),
        )
    return drawn


def listeners_table(status: Status) -> Rows:
    """A row for each listener."""
    drawn = Rows(
        *("listener", "state", "addresses", "pool", "tls"),
        *(">sessions", ">total", ">refused", ">up", ">down"),
        omit=("tls", "pool", "up", "down", "total", "addresses"),
    )
    for each in status.listeners:
        most = f"/{each.max_sessions}" if each.max_sessions else ""
        drawn.add(
            plain(each.name),
            plain(each.state, STATES.get(each.state, "")),
            plain(", ".join(each.addresses) or "-"),
            plain(each.pool),
            "yes" if each.tls else "no",
            f"{each.sessions}{most}",
            str(each.sessions_total),
            str(each.rejected_total),
            size(each.bytes_up),
            size(each.bytes_down),
        )
    return drawn


def pools_in_short(pools: Iterable[PoolShown]) -> Rows:
    """A row for each pool."""
    drawn = Rows(
        *("pool", "targets", ">sessions", ">waiting", "balance", "check"),
        omit=("check", "balance", "waiting"),
    )
    for pool in pools:
        good = sum(target.up and target.state == "ready" for target in pool.targets)
        all_of_them = len(pool.targets)
        style = "green" if good == all_of_them else "yellow" if good else "red"
        most = f"/{pool.max_sessions}" if pool.max_sessions else ""
        drawn.add(
            plain(pool.name),
            Text(f"{good} of {all_of_them} up", style),
            f"{pool.sessions}{most}",
            str(pool.waiting),
            plain(pool.balance),
            plain(pool.check),
        )
    return drawn


def state_of(target: TargetShown) -> Text:
    """What a target is, for all that operators want and checks find."""
    if target.state == "ready":
        word = "up" if target.up else "down"
        return Text(word, "yellow" if target.up and target.turning else STATES[word])
    text = plain(f"{target.state} (set)", STATES.get(target.state, ""))
    if not target.up:
        text.append(", down", STATES["down"])
    return text


def why(target: TargetShown) -> Text:
    """Why it is up or down, and what speaks for the other, which is news."""
    return plain("; ".join(filter(None, (target.turning, target.cause))) or None)


def pools_table(pools: Sequence[PoolShown]) -> Rows:
    """A row for each target."""
    addresses = any(each.name != each.address for pool in pools for each in pool.targets)
    drawn = Rows(
        *("pool", "target", *(["address"] if addresses else []), "state", ">sessions"),
        *(">share", ">weight", ">dial", "since", "~cause"),
        omit=(*(["address"] if addresses else []), "since", "dial", "weight", "share", "pool"),
    )
    for pool in pools:
        for each in pool.targets:
            most = f"/{each.max_sessions}" if each.max_sessions else ""
            drawn.add(
                plain(pool.name),
                plain(each.name),
                *([plain(each.address)] if addresses else []),
                state_of(each),
                f"{each.sessions}{most}",
                percent(each.share),
                f"{each.weight} backup" if each.backup else str(each.weight),
                milliseconds(each.dial_ms),
                plain(None if each.since is None else moment(each.since)),
                why(each),
            )
        if not pool.targets:
            drawn.add(plain(pool.name), "-")
    return drawn


def sessions_table(sessions: Sequence[SessionShown]) -> Rows:
    """A row for each session; that outlives its worker is said by a `+` behind that one's number."""
    workers = any(each.worker is not None for each in sessions)
    column = [">worker"] if workers else []
    drawn = Rows(
        *("session", *column, "listener", "client", "pool", "target", "state"),
        *(">age", ">idle", ">up", ">down", "sni"),
        omit=(
            *("listener", "sni", "pool", "idle", "state", "age", "up", "down", "target"),
            *(["worker"] if workers else []),
        ),
    )
    for each in sessions:
        worker = "-" if each.worker is None else f"{each.worker}{'+' if each.kept else ''}"
        drawn.add(
            plain(each.session),
            *([worker] if workers else []),
            plain(each.listener),
            plain(each.client),
            plain(each.pool),
            plain(each.target),
            plain(each.state, STATES.get(each.state, "")),
            milliseconds(each.duration_ms),
            milliseconds(each.idle_ms),
            size(each.bytes_up),
            size(each.bytes_down),
            plain(each.sni),
        )
    return drawn

"""
A relay in tables, as `rich` draws them: coloured at a terminal, plain and as wide as need be elsewhere.

Names of targets, servers and identities come from anywhere: each goes through `plain`, so none of it is
markup, and none of it reaches a terminal raw.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config.check import printable
from ..words import counted
from .answers import PoolShown, SessionShown, Status, TargetShown
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
}
"""The colours of states."""


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
        console().print(*drawn, sep="\n")
        return
    for each in drawn:
        for line in each.lines() if isinstance(each, Rows) else str(each).split("\n"):
            sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()


def plain(text: str | None, style: str = "") -> Text:
    """
    @param text: from anywhere; None: there is none.
    """
    return Text("-" if text is None else printable(text), style)


class Rows:
    """
    A table. At a terminal it is rich's, which fits it to the width; elsewhere it is as wide as need be, and made
    here, as rich takes a while for thousands of rows.

    @param columns: their heads; those that begin with `>` have numbers, and those with `~` sentences, which may
        be broken.
    """

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._rows: list[tuple[Text | str, ...]] = []

    def __len__(self) -> int:
        """How many there are, without the heads."""
        return len(self._rows)

    def add(self, *cells: Text | str) -> None:
        """One more row; cells that are missing are empty."""
        self._rows.append(cells)

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column, head in zip(self._columns, self._heads, strict=True):
            table.add_column(
                Text(head),
                justify="right" if column.startswith(">") else "left",
                no_wrap=not column.startswith("~"),
                overflow="fold" if column.startswith("~") else "ellipsis",
            )
        for row in self._rows:
            table.add_row(*row)
        return table

    def lines(self) -> Iterator[str]:
        """It, as plain text."""
        rows = [self._heads, *([str(cell) for cell in row] for row in self._rows)]
        widths = [0] * len(self._columns)
        for row in rows:
            for index, cell in enumerate(row):
                widths[index] = max(widths[index], cell_len(cell))
        for row in rows:
            padded = []
            for column, width, cell in zip(self._columns, widths, row, strict=False):
                blanks = " " * (width - cell_len(cell))
                padded.append(blanks + cell if column.startswith(">") else cell + blanks)
            yield "  ".join(padded)

    @property
    def _heads(self) -> list[str]:
        return [column.lstrip(">~").upper() for column in self._columns]


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
        text.append(f"\n{lines} of the access log dropped, as nobody took them in time", "red")
    return text


def listeners_table(status: Status) -> Rows:
    """A row for each listener."""
    drawn = Rows(
        *("listener", "state", "addresses", "pool", "tls"),
        *(">sessions", ">total", ">refused", ">up", ">down"),
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
    drawn = Rows("pool", "targets", ">sessions", ">waiting", "balance", "check")
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
        return Text(word, STATES[word])
    text = plain(f"{target.state} (set)", STATES.get(target.state, ""))
    if not target.up:
        text.append(", down", STATES["down"])
    return text


def pools_table(pools: Sequence[PoolShown]) -> Rows:
    """A row for each target."""
    addresses = any(each.name != each.address for pool in pools for each in pool.targets)
    drawn = Rows(
        *("pool", "target", *(["address"] if addresses else []), "state", ">sessions"),
        *(">share", ">weight", ">dial", "since", "~cause"),
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
                plain(each.cause or None),
            )
        if not pool.targets:
            drawn.add(plain(pool.name), "-")
    return drawn


def sessions_table(sessions: Iterable[SessionShown]) -> Rows:
    """A row for each session."""
    drawn = Rows(
        *("session", "listener", "client", "pool", "target", "state"),
        *(">age", ">idle", ">up", ">down", "sni"),
    )
    for each in sessions:
        drawn.add(
            plain(each.session),
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

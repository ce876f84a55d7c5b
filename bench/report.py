"""What came out, in words and figures: medians, ratios to the best peer, and whether goals are met."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import attrs

from . import lines, relays
from .lines import GOALS, LINES, TLS, Figure, Goal, Line

OURS = "fwdrelay-splice"
"""Of our pumps, the one that the goals are about."""

Run = dict[str, Any]
"""A whole run, as the JSON file has it."""


def values(run: Run, line: Line, figure: Figure, relay: str) -> list[float]:
    """One relay's figures, of all rounds that had one."""
    return [
        figure.of(sample["values"])
        for sample in run["samples"]
        if (sample["line"], sample["relay"]) == (line.name, relay) and "values" in sample
    ]


def median(run: Run, line: Line, figure: Figure, relay: str) -> float | None:
    """Over the rounds; None where there is nothing."""
    found = values(run, line, figure, relay)
    return statistics.median(found) if found else None


def peers(run: Run) -> list[str]:
    """The relays that took part and are not ours."""
    return [name for name in run["relays"] if not relays.BY_NAME[name].ours]


def best_peer(run: Run, line: Line, figure: Figure) -> tuple[str, float] | None:
    """The best of them in one figure, by its median."""
    found = [(name, m) for name in peers(run) if (m := median(run, line, figure, name)) is not None]
    if not found:
        return None
    return (max if figure.more_is_better else min)(found, key=lambda each: each[1])


def readable(value: float | None) -> str:
    """A number with three digits that mean something."""
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def taking_part(run: Run, line: Line) -> list[str]:
    """The relays that do what a line measures, of those with its kind of TLS at all."""
    every = attrs.evolve(line, resumed=False)
    return [name for name in run["relays"] if relays.BY_NAME[name].takes_part(every)]


def rows(run: Run, tls: TLS) -> Iterator[list[str]]:
    """A table: a heading, a row for each line (its title alone), a row for each of its figures."""
    shown = [line for line in LINES if line.name in run["lines"] and not line.scale]
    shown = [line for line in shown if line.tls == tls]
    names = taking_part(run, shown[0]) if shown else []
    yield ["", *(relays.BY_NAME[name].title for name in names), "ours/best peer"]
    for line in shown:
        yield [f"{line.titled(run['amount']['idle'])} ({line.name})"]
        for figure in line.figures:
            cells = [readable(median(run, line, figure, name)) for name in names]
            best, ours = best_peer(run, line, figure), median(run, line, figure, OURS)
            ratio = "" if figure == lines.BUSY or not best or ours is None else ours / best[1]
            yield [f"  {figure.title}", *cells, f"{ratio:.2f}" if ratio else ""]


def scale_rows(run: Run) -> Iterator[list[str]]:
    """The same for our own workers, with what the second one brings."""
    shown = [line for line in LINES if line.name in run["lines"] and line.scale]
    names = taking_part(run, shown[0]) if shown else []
    yield ["", *(relays.BY_NAME[name].title for name in names), "2/1 workers"]
    for line in shown:
        yield [f"{line.title} ({line.name})"]
        for figure in line.figures:
            cells = [readable(median(run, line, figure, name)) for name in names]
            one, two = (median(run, line, figure, f"fwdrelay-workers-{count}") for count in (1, 2))
            yield [f"  {figure.title}", *cells, f"{two / one:.2f}" if one and two else ""]


def table(run: Run, tls: TLS = TLS.NONE) -> str:
    """A table of relays beside each other. Empty: there are no lines with that TLS."""
    return in_columns(rows(run, tls))


def scale_table(run: Run) -> str:
    """Our own workers beside each other. Empty: they were not measured."""
    body = in_columns(scale_rows(run))
    return f"shared-nothing scale\n{body}" if body else ""


def in_columns(lines_: Iterator[list[str]]) -> str:
    """Rows in columns; headings of two words take two lines. Empty: there are none."""
    heading, *body = lines_
    if not body:
        return ""
    split = [each.split(" ", 1) if " " in each else ["", each] for each in heading]
    grid = [[each[0] for each in split], [each[1] for each in split], *body]
    full = [row for row in grid if len(row) > 1]
    widths = [max(len(row[column]) for row in full) for column in range(len(heading))]
    widths[0] = max(widths[0], 20)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in grid
    )


@attrs.frozen
class Outcome:
    """
    What became of a goal.

    @ivar met: None where something to compare is missing.
    """

    goal: Goal
    words: str
    met: bool | None


def outcome(run: Run, goal: Goal) -> Outcome:
    """Compare one goal with what was measured."""
    line = lines.BY_NAME[goal.line]
    figure = line.figure(goal.figure)
    ours = median(run, line, figure, OURS)
    against: float | None
    if goal.against == "best":
        best = best_peer(run, line, figure)
        name, against = (relays.BY_NAME[best[0]].title, best[1]) if best else ("best peer", None)
    elif goal.against.startswith("="):
        name, against = goal.against[1:], median(run, lines.BY_NAME[goal.against[1:]], figure, OURS)
    elif goal.against:
        name = relays.BY_NAME[goal.against].title
        against = median(run, line, figure, goal.against)
    else:
        name, against = "", 1.0
    sign = "≥" if figure.more_is_better else "≤"
    wanted = f"{sign} {goal.factor:g}" + (f" of {name}" if name else "")
    what = f"{line.name:13}  {figure.title:14}  {readable(ours):>6}  {wanted:28}"
    if ours is None or against is None:
        return Outcome(goal, what, None)
    ratio = ours / against
    met = ratio >= goal.factor if figure.more_is_better else ratio <= goal.factor
    return Outcome(goal, f"{what}  {readable(ratio):>6}", met)


def goals(run: Run) -> str:
    """Each goal on a line, and whether it is met."""
    said = {True: "met", False: "NOT MET", None: "not measured"}
    found = [outcome(run, goal) for goal in GOALS if goal.line in run["lines"]]
    return "\n".join(
        [
            f"goals ({relays.BY_NAME[OURS].title})",
            *(f"  {each.words}  {said[each.met]}" for each in found),
        ]
    )


def failures(run: Run) -> Iterator[str]:
    """What was left out, and why."""
    if run.get("interrupted"):
        yield "interrupted: not all rounds are complete"
    for name, why in run["skipped"].items():
        yield f"{name} is left out: {why}"
    for sample in run["samples"]:
        if "error" in sample:
            where = f"round {sample['round']}, {sample['line']}, {sample['relay']}"
            yield f"{where}: {sample['error']}"
        if "note" in sample:
            yield f"{sample['line']}, {sample['relay']}: {sample['note']}"


def heading(run: Run) -> str:
    """Where and with what."""
    machine, options, amount = run["machine"], run["options"], run["amount"]
    busy = machine["busy_before"]
    placed: dict[str, list[str]] = {}
    for name, line in run["lines"].items():
        cores = "on any core"
        if line["relay"]:
            relay, load = (",".join(map(str, line[each])) for each in ("relay", "load"))
            cores = f"relay on core {relay}, load on {load}"
        placed.setdefault(cores, []).append(name)
    return "\n".join(
        [
            f"{run['when']}: {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}",
            f"medians of {options['rounds']} rounds, {amount['seconds']:g} s a sample",
            f"the machine was busy with other work for {busy:.0%} when it began",
            *(f"  {cores}: {', '.join(names)}" for cores, names in placed.items()),
            *(f"  {name:18}  {each['version']}" for name, each in run["relays"].items()),
        ]
    )


def text(run: Run) -> str:
    """All of it, for the terminal."""
    parts = [
        heading(run),
        *(table(run, tls) for tls in TLS),
        scale_table(run),
        goals(run),
        "\n".join(dict.fromkeys(failures(run))),
    ]
    return "\n\n".join(part for part in parts if part)

"""The picture: a panel of bars for each figure, ours in colour. Needs matplotlib."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from . import relays
from .lines import LINES
from .report import Run, readable, taking_part, values

OURS, PEERS, INK = "#c2410c", "#b6bcc6", "#1f2933"
BESIDE = 4.0
"""Bars end at that many times the panel's median, so that one slow relay does not flatten the rest."""


def draw(run: Run, path: Path) -> None:
    """Write the picture of a run; what kind is told by the name's end (PNG, SVG)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        (line, figure)
        for line in LINES
        if line.name in run["lines"]
        for figure in line.figures
        if figure.plotted
    ]
    columns = min(3, len(panels))
    most = len(run["relays"])
    lines_ = math.ceil(len(panels) / columns)
    size = (5.2 * columns, (0.9 + 0.27 * most) * lines_ + 0.6)
    figure_, axes = plt.subplots(
        lines_, columns, figsize=size, squeeze=False, layout="constrained", facecolor="white"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (line, figure) in zip(axes.flat, panels, strict=False):
        names = taking_part(run, line)
        found = {name: values(run, line, figure, name) for name in names}
        medians = {name: statistics.median(each) for name, each in found.items() if each}
        sense = "more is better" if figure.more_is_better else "less is better"
        axis.set_title(
            f"{line.titled(run['amount']['idle'])}\n{figure.title} · {sense}",
            fontsize=9,
            loc="left",
            color=INK,
        )
        limit = min(
            max(medians.values(), default=1.0),
            BESIDE * statistics.median(medians.values() or [1.0]),
        )
        for at, name in enumerate(names):
            if name not in medians:
                axis.text(0, at, " not measured", va="center", fontsize=7.5, color="#6b7280")
                continue
            middle, colour = medians[name], OURS if relays.BY_NAME[name].ours else PEERS
            axis.barh(at, min(middle, limit), color=colour, height=0.72)
            if middle <= limit and len(found[name]) > 1:
                spread = [[middle - min(found[name])], [max(found[name]) - middle]]
                axis.errorbar(middle, at, xerr=spread, color=INK, linewidth=0.8, capsize=1.5)
            label = readable(middle) + (" →" if middle > limit else "")
            end = min(limit, max(found[name]) if middle <= limit else limit)
            axis.text(end + limit * 0.02, at, label, va="center", fontsize=8, color=INK)
        axis.set_yticks(range(len(names)), [relays.BY_NAME[name].title for name in names])
        axis.tick_params(labelsize=8, length=0, colors=INK)
        for tick, name in zip(axis.get_yticklabels(), names, strict=True):
            if relays.BY_NAME[name].ours:
                tick.set_fontweight("bold")
        axis.set_xlim(0, limit * 1.2 or 1)
        axis.set_xticks([])
        axis.invert_yaxis()
        for side in ("top", "right", "bottom"):
            axis.spines[side].set_visible(False)
    machine, rounds = run["machine"], run["options"]["rounds"]
    figure_.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel'].split()[-1]}; "
        f"medians and range of {rounds} interleaved rounds, one relay thread; {run['when'][:10]}",
        fontsize=8,
        color="#6b7280",
    )
    figure_.savefig(path, dpi=110)
    plt.close(figure_)

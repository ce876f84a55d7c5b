"""Targets to elect, and rows of elections."""

from __future__ import annotations

from collections.abc import Sequence

from fwdrelay.config import TargetConfig
from fwdrelay.interfaces import IElection, ITarget
from fwdrelay.upstream import Target


def target(label: str, weight: int = 1, *, backup: bool = False, priority: int = 0) -> Target:
    """A target that nobody dials."""
    return Target(
        TargetConfig(
            host="192.0.2.1",
            port=80,
            name=label,
            weight=weight,
            backup=backup,
            priority=priority,
        )
    )


def targets(*weights: int) -> list[Target]:
    """Targets a, b, c and so on, with these weights."""
    return [target(chr(ord("a") + index), weight) for index, weight in enumerate(weights)]


def begun(election: IElection, members: Sequence[Target]) -> IElection:
    """The election, with a pool of these."""
    election.targets_changed(members)
    return election


def elected(
    election: IElection, candidates: Sequence[ITarget], count: int, client: str | None = None
) -> str:
    """The labels of the next so many who are elected; each session ends before the next."""
    return "".join(election.elect(candidates, client).label for _ in range(count))


def held(election: IElection, candidates: Sequence[Target], count: int) -> str:
    """As `elected`, but the sessions stay."""
    labels = []
    for _ in range(count):
        winner = election.elect(candidates, None)
        winner.sessions += 1
        labels.append(winner.label)
    return "".join(labels)

"""
How a target is elected for a session: a kind for each value of `balance`, and those of plugins.

An election sees targets and knows neither pool nor health; who may be elected at all is decided by
`fwdrelay.upstream.pool`.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from ...interfaces import IElection, IElectionPlugin
from ...plugins import make_by_plugin
from .first import First
from .least_sessions import LeastSessions
from .random_two import RandomTwo
from .round_robin import RoundRobin
from .source_hash import SourceHash

__all__ = ["make_election"]

_KINDS: dict[str, Callable[[IReactorTime | None], IElection]] = {
    "round-robin": lambda clock: RoundRobin(),
    "least-sessions": lambda clock: LeastSessions(),
    "random-two": lambda clock: RandomTwo(),
    "source-hash": SourceHash,
    "first": lambda clock: First(),
}


def make_election(balance: str, clock: IReactorTime | None = None) -> IElection:
    """
    @param balance: as configured: one of `fwdrelay.config.BALANCES`, or a plugin's `NAME` or
        `NAME:ARGUMENT`.
    @param clock: lets an election do what takes long in slices; without one it is done at once.
    @raise ValueError: with a sentence, if there is no such election or its argument is wrong.
    """
    name, colon, argument = balance.partition(":")
    kind = _KINDS.get(name)
    if kind is None:
        return make_by_plugin(
            IElectionPlugin,
            name,
            IElection,
            lambda plugin: plugin.make_election(argument),
            built_in=tuple(_KINDS),
        )
    if colon:
        raise ValueError(f"{balance!r}: the election {name} takes no argument; write {name!r}")
    return kind(clock)

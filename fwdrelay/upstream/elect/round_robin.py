"""`round-robin`: targets take turns, smoothly and by their shares."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from ...interfaces import IElection, ITarget


@implementer(IElection)
class RoundRobin:
    """
    Smooth weighted round robin, as nginx does it: with each election every candidate earns its
    share, the richest is elected and pays what all earned. So 5:1:1 comes out as a-a-b-a-c-a-a.

    Unlike nginx's, credit keeps its worth in turns when the candidates or their shares change. Else
    a credit of 500 that is half a turn among 1000:1:1 would be 250 turns in a row among the 1:1 that
    are left when the first goes down. A target that is no candidate neither earns nor pays, so it
    comes back with what it had: never a whole turn too many.
    """

    def __init__(self) -> None:
        self._credits: dict[ITarget, float] = {}
        # What all earned at the last election: what a turn was worth.
        self._turn = 1.0

    def targets_changed(self, targets: Sequence[ITarget]) -> None:
        """Who comes is as rich as those who stay are on average."""
        stay = [target for target in targets if target in self._credits]
        average = sum(self._credits[target] for target in stay) / max(len(stay), 1)
        self._credits = {target: self._credits.get(target, average) - average for target in targets}

    def elect(self, candidates: Sequence[ITarget], client: str | None) -> ITarget:
        """See `IElection`."""
        shares = [target.share for target in candidates]
        turn = sum(shares)
        if turn != self._turn:
            self._revalue(turn)
        purse = self._credits
        elected = candidates[0]
        most = float("-inf")
        for target, share in zip(candidates, shares, strict=True):
            purse[target] = credit = purse[target] + share
            if credit > most:
                most = credit
                elected = target
        purse[elected] = most - turn
        return elected

    def _revalue(self, turn: float) -> None:
        change = turn / self._turn
        self._turn = turn
        self._credits = {target: credit * change for target, credit in self._credits.items()}

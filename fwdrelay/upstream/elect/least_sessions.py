"""`least-sessions`: the target with the fewest sessions for its share."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from ...interfaces import IElection, ITarget
from .round_robin import RoundRobin


@implementer(IElection)
class LeastSessions:
    """
    Passes over each target that is as full as another would be with one session more; a target is
    as full as it has sessions for its share. Those left take turns.

    Among equal targets that is who has the fewest sessions. It matters among unequal ones: to compare
    what they have (nginx) elects a light one as soon as the heavy ones have one session each, and to
    compare what they would have (HAProxy) never does while there are few. Here 10:1 share about ten to one,
    whether the relay is idle or busy.
    """

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def targets_changed(self, targets: Sequence[ITarget]) -> None:
        """See `IElection`."""
        self._turns.targets_changed(targets)

    def elect(self, candidates: Sequence[ITarget], client: str | None) -> ITarget:
        """See `IElection`."""
        full = min([(target.sessions + 1) / target.share for target in candidates])
        left = [target for target in candidates if target.sessions / target.share < full]
        return left[0] if len(left) == 1 else self._turns.elect(left, client)

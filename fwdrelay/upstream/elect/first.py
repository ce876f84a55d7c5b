"""`first`: the first target that may take the session."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from ...interfaces import IElection, ITarget


@implementer(IElection)
class First:
    """Elects in the order of the configuration; who comes later waits until the earlier are full."""

    def targets_changed(self, targets: Sequence[ITarget]) -> None:
        """Nothing to do."""

    def elect(self, candidates: Sequence[ITarget], client: str | None) -> ITarget:
        """See `IElection`."""
        return candidates[0]

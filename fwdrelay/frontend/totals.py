"""What has become of a listener's clients since the start, in numbers; whoever wants to know reads them."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from ..histogram import SESSIONS, Histogram
from ..session import Reason, Session


@define(eq=False)
class Totals:
    """
    @ivar let_in: sessions that were let in, those that are open among them.
    @ivar ended: those that have ended, by pool (empty: it did not get as far) and reason; refused clients are not
        among them.
    @ivar refused: clients that were not let in, or did not get as far as a pool, by reason.
    @ivar bytes_up: that clients sent in sessions that have ended, wherever they were relayed before.
    @ivar bytes_down: the same of targets.
    @ivar seconds: how long sessions lasted that are in `ended`.
    """

    let_in: int = 0
    ended: Counter[tuple[str, Reason]] = field(factory=Counter)
    refused: Counter[Reason] = field(factory=Counter)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Histogram = field(factory=lambda: Histogram(SESSIONS))

    def count(self, session: Session, seconds: float) -> None:
        """
        One that was let in has ended.

        @param seconds: since its client was accepted.
        """
        pool = session.pool
        assert session.reason is not None
        self.ended["" if pool is None else pool.name, session.reason] += 1
        self.bytes_up += session.client.received
        if session.upstream is not None:
            self.bytes_down += session.upstream.received
        self.seconds.add(seconds)

    def add(self, others: Totals) -> None:
        """Those of a listener that is no more, as far as anybody asks for them: its name is nobody's any more."""
        self.let_in += others.let_in
        self.refused.update(others.refused)
        self.bytes_up += others.bytes_up
        self.bytes_down += others.bytes_down

    def forget_pools(self, but: set[str]) -> None:
        """Their names are not those of pools any more; numbers by pool must not become ever more."""
        for key in [key for key in self.ended if key[0] and key[0] not in but]:
            del self.ended[key]

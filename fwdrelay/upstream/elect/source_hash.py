"""`source-hash`: a client's address says which target, the same on every relay."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from ...interfaces import IElection, ITarget
from .maglev import SIZE, Members, Slots, digest, fill, walk
from .round_robin import RoundRobin

# Seconds of work on a new table before others have their turn.
_SLICE = 0.002


@frozen
class _Table:
    """
    @ivar targets: of one tier, sorted by label.
    @ivar made_of: their labels and weights when it was filled.
    @ivar slots: of each slot, the index of its target.
    """

    targets: tuple[ITarget, ...]
    made_of: Members
    slots: Slots


@implementer(IElection)
class SourceHash:
    """
    Elects who has the client's slot in a Maglev table of all targets, whether they are up or not. If
    that is no candidate, the client walks on through the table, on its own way: the clients of a
    target that is down spread over all others, and nobody else moves.

    Each tier (targets, backups, and the priorities among them) has a table of its own. So a backup
    has no slot where the others are, and its coming and going moves none of their clients.

    The table is made of labels and weights alone, in no order but its own, so relays that know
    nothing of each other agree.

    A client without an address (by a Unix socket) gets the target whose turn it is: to all such
    clients, one target would be none to share.

    @param clock: new tables are filled in slices of 2 ms, and the old ones used meanwhile. Without
        it they are filled at once, as the very first are.
    """

    def __init__(self, clock: IReactorTime | None = None) -> None:
        self._clock = clock
        self._turns = RoundRobin()
        self._tables: dict[object, _Table] = {}
        self._filling: Iterator[None] = iter(())
        self._next_slice: IDelayedCall | None = None

    def targets_changed(self, targets: Sequence[ITarget]) -> None:
        """See `IElection`."""
        self._turns.targets_changed(targets)
        self._stop_slices()
        self._filling = self._fill(targets)
        if self._clock is None or not self._tables:
            self._finish()
        else:
            self._next_slice = self._clock.callLater(0, self._fill_slice)

    def elect(self, candidates: Sequence[ITarget], client: str | None) -> ITarget:
        """See `IElection`."""
        if client is None:
            return self._turns.elect(candidates, client)
        # The zone of a link-local address is what this machine calls an interface, and no other.
        number = digest(client.partition("%")[0], b"fwdrelay client")
        table = self._tables.get(candidates[0].tier)
        if table is not None:
            elected = table.targets[table.slots[number % SIZE]]
            if elected in candidates:
                return elected
            if not set(candidates).isdisjoint(table.targets):
                return _walk(table, candidates, number)
        if self._next_slice is None:
            return self._turns.elect(candidates, client)
        # All candidates are new: the table they are in is needed now.
        self._stop_slices()
        self._finish()
        return self.elect(candidates, client)

    def _fill(self, targets: Sequence[ITarget]) -> Iterator[None]:
        """Fill the tables of these targets, then use them."""
        tiers: dict[object, list[ITarget]] = {}
        for target in sorted(targets, key=lambda target: target.label):
            tiers.setdefault(target.tier, []).append(target)
        tables = {}
        for tier, members in tiers.items():
            made_of = tuple((target.label, target.weight) for target in members)
            known = self._tables.get(tier)
            if known is not None and known.made_of == made_of:
                slots = known.slots
            else:
                slots = yield from fill(made_of)
            tables[tier] = _Table(tuple(members), made_of, slots)
        self._tables = tables

    def _finish(self) -> None:
        for _ in self._filling:
            pass

    def _fill_slice(self) -> None:
        assert self._clock is not None
        self._next_slice = None
        until = time.perf_counter() + _SLICE
        for _ in self._filling:
            if time.perf_counter() > until:
                self._next_slice = self._clock.callLater(0, self._fill_slice)
                break

    def _stop_slices(self) -> None:
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None


def _walk(table: _Table, candidates: Sequence[ITarget], number: int) -> ITarget:
    left = set(candidates)
    slot, step = walk(number)
    for _ in range(SIZE):
        target = table.targets[table.slots[slot]]
        if target in left:
            return target
        slot = (slot + step) % SIZE
    return candidates[0]  # there are more targets than slots

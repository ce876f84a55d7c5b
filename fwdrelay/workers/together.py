"""
All workers as their API sees them: one relay, looked at and steered.

How workers are asked is their supervisor's affair (`Supervised`); how what they say becomes one answer is
`merging`'s.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from attrs import evolve

from .._version import __version__
from ..errors import NotPossible
from ..networks import Networks
from ..observe.feed import Feed, SessionEvent
from ..observe.snapshot import (
    Counters,
    Outcome,
    PoolShown,
    RelayState,
    Reloads,
    SessionShown,
    SessionsShown,
    SessionsWanted,
    Status,
    TargetShown,
    WorkerShown,
    moment,
)
from ..observe.trace import TraceStep
from ..upstream import TargetState
from .merging import (
    at_least,
    counted_only,
    merge_counters,
    merge_listeners,
    merge_pools,
    merge_sessions,
    merge_targets,
    nothing_counted,
    with_departed,
)


class Supervised(Protocol):
    """What is needed of a supervisor."""

    @property
    def state(self) -> RelayState:
        """Of the whole."""

    @property
    def started(self) -> float:
        """When it was, in seconds since the epoch."""

    @property
    def reloads(self) -> Counter[str]:
        """How many there were, by result."""

    @property
    def last_reload(self) -> tuple[float, str] | None:
        """When the last one was, in seconds since the epoch, and its result; None: never."""

    @property
    def restarts(self) -> int:
        """How often a worker was replaced because it had died."""

    @property
    def refused(self) -> int:
        """Sessions that should have been kept, for which there were no descriptors."""

    @property
    def unwell(self) -> str:
        """Why the whole is not as it should be, in a sentence; empty: it is."""

    @property
    def departed(self) -> Counters:
        """What workers that are gone have counted; see `merging.counted_only`."""

    def workers(self) -> tuple[WorkerShown, ...]:
        """All there are, and those that are to be."""

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        """
        Ask the `fwdrelay.steering.Steering` of each worker that lives and has its configuration.

        @param method: a coroutine method of it.
        @return: their answers, in the order of workers; one that dies meanwhile is left out.
        @raise ValueError: one of them did; so with `NotThere` and `NotPossible`.
        """

    async def ask_first(self, method: str, *arguments: Any) -> Any:
        """
        Ask one after the other.

        @return: the first answer.
        @raise NotThere: all of them did.
        """

    def reload(self) -> Awaitable[Outcome]:
        """Read the configuration anew, for all."""

    def check(self) -> Awaitable[Outcome]:
        """Whether a reload would do."""

    def drain(self, *, now: bool = False) -> None:
        """Let sessions end, and stop; `now`: cut what is left of them."""

    def listen(
        self, what: str, arguments: tuple[Any, ...], tell: Callable[[Any], object]
    ) -> Callable[[], None]:
        """
        Hear what each worker tells, those that come later, too.

        @param what: `events` or `trace`: what `Steering.subscribe` or `Steering.trace` tell.
        @param arguments: of that, those before `tell`.
        @return: to be called to hear no more.
        """

    @property
    def events_skipped(self) -> int:
        """Session events that were too many for workers to tell, since the start."""


class Together:
    """
    The `fwdrelay.admin.Administered` of all workers.

    @param clock: `twisted.internet.interfaces.IReactorTime`.
    @ivar steered: what operators want targets to be, by pool and label: their state and weight, None as what was
        not said. Who starts a worker in the place of another one tells it.
    @ivar told: the counters that were told last, which none of the next go below.
    """

    def __init__(self, supervised: Supervised, clock: Any) -> None:
        self._supervised = supervised
        self._clock = clock
        self._began = clock.seconds() - (time.time() - supervised.started)
        self.told: Counters = nothing_counted()
        self._feed = Feed(clock)
        self._deaf: Callable[[], None] | None = None
        self.steered: dict[tuple[str, str], tuple[TargetState | None, int | None]] = {}

    @property
    def state(self) -> RelayState:
        """`starting`, `running` or `draining`."""
        return self._supervised.state

    @property
    def unwell(self) -> str:
        """Why it is not as it should be, in a sentence; empty: it is."""
        return self._supervised.unwell

    # What it is and does.

    async def status(self) -> Status:
        """See `fwdrelay.admin.Administered`, as for all that follow."""
        supervised = self._supervised
        statuses: list[Status] = await supervised.ask("status")
        counters = await self.counters()
        last = supervised.last_reload
        return Status(
            version=__version__,
            pid=os.getpid(),
            state=supervised.state,
            started=moment(supervised.started),
            uptime=round(self._clock.seconds() - self._began, 3),
            workers=counters.workers,
            listeners=merge_listeners(statuses, counters),
            totals=counters.totals,
            reloads=Reloads(
                success=supervised.reloads["success"],
                failure=supervised.reloads["failure"],
                last=None if last is None else moment(last[0]),
                last_result=None if last is None else last[1],  # type: ignore[arg-type]
            ),
            access_log_dropped=counters.access_log_dropped,
            unwell=supervised.unwell,
        )

    async def counters(self) -> Counters:
        supervised = self._supervised
        # From before the question: who answers it, and is gone then, is not among them yet.
        departed = supervised.departed
        living: list[Counters] = await supervised.ask("counters")
        now = counted_only(self.told)  # as long as nobody can be asked, nothing is counted
        if living:
            now = with_departed(merge_counters(living), departed)
        now = at_least(now, self.told)
        last = supervised.last_reload
        self.told = evolve(
            now,
            reloads=dict(supervised.reloads),
            last_reload_failed=last is not None and last[1] == "failure",
            draining=supervised.state == "draining",
            workers=supervised.workers(),
            worker_restarts=supervised.restarts,
            registrations_refused=supervised.refused,
        )
        return self.told

    # Sessions.

    async def sessions(self, wanted: SessionsWanted) -> SessionsShown:
        return merge_sessions(await self._supervised.ask("sessions", wanted), wanted.limit)

    async def end_session(self, session: str) -> SessionShown:
        ended: SessionShown = await self._supervised.ask_first("end_session", session)
        return ended

    # Pools.

    async def pools(self) -> tuple[PoolShown, ...]:
        return merge_pools(await self._supervised.ask("pools"))

    async def steer_target(
        self, pool: str, target: str, state: TargetState | None, weight: int | None
    ) -> TargetShown:
        asked = pool, target, state, weight
        found = [each for each in await self._supervised.ask("steer_if_there", *asked) if each]
        if not found:  # why not is said in a worker's words
            found = [await self._supervised.ask_first("steer_target", *asked)]
        former_state, former_weight = self.steered.get((pool, target), (None, None))
        self.steered[pool, target] = (state or former_state, weight or former_weight)
        return merge_targets(found)

    # The whole.

    async def reload(self) -> Outcome:
        if self.state == "draining":
            raise NotPossible("the relay is stopping: the configuration is not read again")
        return await self._supervised.reload()

    async def check(self) -> Outcome:
        return await self._supervised.check()

    def drain(self, *, now: bool = False) -> None:
        self._supervised.drain(now=now)

    # Who looks on.

    @property
    def events_skipped(self) -> int:
        return self._supervised.events_skipped + self._feed.skipped

    def subscribe(self, tell: Callable[[SessionEvent], object]) -> Callable[[], None]:
        leave_feed = self._feed.subscribe(tell)
        if self._deaf is None:
            self._deaf = self._supervised.listen("events", (), self._hear)

        def leave() -> None:
            leave_feed()
            if self._deaf is not None and not self._feed.wanted:
                deaf, self._deaf = self._deaf, None
                deaf()

        return leave

    def _hear(self, event: SessionEvent) -> None:
        """Of all workers together, no more is told than of a single process."""
        if self._feed.has_room():
            self._feed.tell(event)

    def trace(
        self, clients: Networks | None, tell: Callable[[TraceStep], object]
    ) -> Callable[[], None]:
        return self._supervised.listen("trace", (clients,), tell)

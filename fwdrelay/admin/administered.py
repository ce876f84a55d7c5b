"""
What the API needs of what it shows and steers: a `fwdrelay.steering.Steering`, or what speaks for several.

All that has to be asked for is a coroutine, for the answer may have to come from another process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..networks import Networks
from ..observe.feed import SessionEvent
from ..observe.snapshot import (
    Counters,
    Outcome,
    PoolShown,
    SessionShown,
    SessionsShown,
    SessionsWanted,
    Status,
    TargetShown,
)
from ..observe.trace import TraceStep
from ..upstream import TargetState

__all__ = ["Administered", "Outcome"]


class Administered(Protocol):
    """A relay as the API sees it. See `fwdrelay.observe.snapshot` for what the values mean."""

    @property
    def state(self) -> str:
        """`starting`, `running` or `draining`."""

    @property
    def unwell(self) -> str:
        """Why it is not as it should be, in a sentence; empty: it is."""

    async def status(self) -> Status:
        """What it is and what it does."""

    async def sessions(self, wanted: SessionsWanted) -> SessionsShown:
        """
        Its open sessions.

        @raise ValueError: with a sentence, for a `client` that is no address and no network.
        """

    async def end_session(self, session: str) -> SessionShown:
        """
        Cut one.

        @return: as it was before.
        @raise NotThere: there is none of that name.
        """

    async def pools(self) -> tuple[PoolShown, ...]:
        """Its pools and their targets."""

    async def steer_target(
        self, pool: str, target: str, state: TargetState | None, weight: int | None
    ) -> TargetShown:
        """
        Want a target to be so from now on; None: as it is.

        @param weight: from 1 to 1,000,000.
        @return: as it is then.
        @raise NotThere: there is no such pool, or no such target in it.
        """

    async def reload(self) -> Outcome:
        """
        As SIGHUP.

        @raise NotPossible: it is stopping.
        """

    async def check(self) -> Outcome:
        """Whether a reload would do; nothing is changed."""

    def drain(self, *, now: bool = False) -> None:
        """
        As SIGTERM: let sessions end, and stop; a second time it does nothing.

        @param now: cut what is left of them, as a second SIGTERM does.
        @raise NotPossible: it does not run yet.
        """

    async def counters(self) -> Counters:
        """What is scraped."""

    @property
    def events_skipped(self) -> int:
        """Session events that were too many to be told, since the start."""

    def subscribe(self, tell: Callable[[SessionEvent], object]) -> Callable[[], None]:
        """
        Be told of sessions as they begin and end; see `fwdrelay.observe.feed.Feed.subscribe`.

        @return: to be called to hear no more.
        """

    def trace(
        self, clients: Networks | None, tell: Callable[[TraceStep], object]
    ) -> Callable[[], None]:
        """
        Follow new sessions of some clients; see `fwdrelay.observe.trace`.

        @param clients: None: everybody.
        @return: to be called to hear no more.
        """

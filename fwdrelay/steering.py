"""
A running relay as its API sees it: looked at, as values of `fwdrelay.observe.snapshot`, and steered.

All of it is made when somebody asks; a relay that nobody asks pays nothing for it. How the API is served
is `fwdrelay.admin`'s.
"""

from __future__ import annotations

import heapq
import ipaddress
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.task import deferLater

from ._version import __version__
from .config import Config
from .config.grammar import parse_network
from .errors import NotPossible, NotThere
from .frontend import ClientProtocol, Listener
from .frontend import Totals as ListenerTotals
from .networks import Networks
from .observe.audience import Audience
from .observe.feed import SessionEvent
from .observe.snapshot import (
    Counters,
    ListenerCounters,
    ListenerShown,
    Outcome,
    PoolShown,
    RelayState,
    Reloads,
    SessionShown,
    SessionsShown,
    SessionsWanted,
    Status,
    TargetCounters,
    TargetShown,
    Totals,
    moment,
)
from .observe.trace import TraceStep
from .session import Reason, Session, State
from .upstream import Pool, Target, TargetState

BATCH = 250
"""Sessions that are shown within one turn of the reactor."""


class Steered(Protocol):
    """What is needed of a `fwdrelay.relay.Relay`, whose words these are."""

    config: Config
    state: RelayState
    started: float
    listeners: dict[str, Listener]
    pools: dict[str, Pool]
    audience: Audience

    @property
    def reloads(self) -> Counter[str]:
        """How many there were, by result."""

    @property
    def last_reload(self) -> tuple[float, str] | None:
        """When the last one was, in seconds since the epoch, and its result; None: never."""

    @property
    def access_log_dropped(self) -> int:
        """Lines that nobody took in time."""

    @property
    def certificate_expiries(self) -> Mapping[str, float]:
        """When the certificates in a file expire, in seconds since the epoch, by its path."""

    def all_listeners(self) -> list[Listener]:
        """Those there are, and those removed whose sessions have not ended yet."""

    def all_totals(self) -> list[ListenerTotals]:
        """What these have counted, and those that were there before them."""

    def addresses_of(self, listener: Listener) -> tuple[str, ...]:
        """Where it can be connected to now."""

    def reload(self) -> Any:
        """Answers a Deferred that fires with an `Outcome`."""

    def check(self) -> Outcome:
        """Whether a reload would do."""

    def drain(self, *, now: bool = False) -> None:
        """Let sessions end, and stop; `now`: cut what is left of them."""


class Steering:
    """
    The `fwdrelay.admin.Administered` of one relay process.

    @param clock: of the relay; `twisted.internet.interfaces.IReactorTime`.
    @param worker: the number of this process among those that relay; None: it is the only one.
    """

    unwell = ""
    """It is one process: while it answers, it is well."""

    def __init__(self, relay: Steered, clock: Any, worker: int | None = None) -> None:
        self._relay = relay
        self._clock = clock
        self._worker = worker
        self._began = self._epoch(relay.started)

    @property
    def state(self) -> RelayState:
        """`starting`, `running` or `draining`."""
        return self._relay.state

    def _epoch(self, when: float) -> float:
        """
        @param when: by the relay's clock.
        @return: in seconds since the epoch.
        """
        since: float = self._clock.seconds() - when
        return time.time() - since

    # What it is and does.

    async def status(self) -> Status:
        """See `fwdrelay.admin.Administered`, as for all that follow."""
        relay = self._relay
        moving = {listener: _moving(listener) for listener in relay.all_listeners()}
        listeners = tuple(self._listener(each, *bytes_) for each, bytes_ in moving.items())
        last = relay.last_reload
        return Status(
            version=__version__,
            pid=os.getpid(),
            state=relay.state,
            started=moment(self._began),
            uptime=round(self._clock.seconds() - relay.started, 3),
            workers=(),
            listeners=listeners,
            totals=self._totals(moving),
            reloads=Reloads(
                success=relay.reloads["success"],
                failure=relay.reloads["failure"],
                last=None if last is None else moment(last[0]),
                last_result=None if last is None else last[1],  # type: ignore[arg-type]
            ),
            access_log_dropped=relay.access_log_dropped,
        )

    def _totals(self, moving: Mapping[Listener, tuple[int, int]]) -> Totals:
        """
        @param moving: bytes of open sessions, of all listeners.
        """
        totals = self._relay.all_totals()
        return Totals(
            sessions=sum(listener.active for listener in moving),
            sessions_total=sum(each.let_in for each in totals),
            rejected_total=sum(each.refused.total() for each in totals),
            bytes_up=sum(each.bytes_up for each in totals) + sum(up for up, _ in moving.values()),
            bytes_down=sum(each.bytes_down for each in totals)
            + sum(down for _, down in moving.values()),
        )

    def _listener(self, listener: Listener, up: int, down: int) -> ListenerShown:
        """
        @param up: bytes of open sessions.
        """
        config, totals = listener.config, listener.totals
        configured = self._relay.listeners.get(listener.name) is listener
        return ListenerShown(
            name=listener.name,
            addresses=self._relay.addresses_of(listener) if configured else (),
            state="listening" if configured and self.state != "draining" else "draining",
            pool=config.pool or None,
            tls=listener.tls is not None,
            sessions=listener.active,
            max_sessions=config.max_sessions,
            sessions_total=totals.let_in,
            rejected_total=totals.refused.total(),
            bytes_up=totals.bytes_up + up,
            bytes_down=totals.bytes_down + down,
        )

    # Sessions.

    async def sessions(self, wanted: SessionsWanted) -> SessionsShown:
        takes = _by_client(wanted.client)
        found = [
            ((session.started, session.number), listener, session)
            for listener in self._relay.all_listeners()
            if not wanted.listener or listener.name == wanted.listener
            for session in listener.sessions
            if (not wanted.target or _label(session) == wanted.target) and takes(session)
        ]
        oldest = heapq.nsmallest(wanted.limit or len(found), found, key=lambda each: each[0])
        shown: list[SessionShown] = []
        for start in range(0, len(oldest), BATCH):
            if start:  # very many are shown bit by bit: meanwhile they want to be relayed
                await deferLater(self._clock, 0)
            shown += [
                self._session(listener, session)
                for _, listener, session in oldest[start : start + BATCH]
                if session.state is not State.CLOSED
            ]
        return SessionsShown(sessions=tuple(shown), count=len(found))

    def _session(self, listener: Listener, session: Session) -> SessionShown:
        client, upstream = _client(session), session.upstream
        now = self._clock.seconds()
        heard = max(client.heard, 0.0 if upstream is None else upstream.heard)
        dialed = session.connected
        return SessionShown(
            session=session.name,
            listener=listener.name,
            client=client.address,
            local=client.local,
            pool=session.pool_name,
            target=_label(session),
            state=session.state.name.lower().replace("_", "-"),
            started=moment(self._epoch(session.started)),
            duration_ms=_ms(now - session.started),
            idle_ms=_ms(max(now - heard, 0.0)) if heard else None,
            dial_ms=None if dialed is None else _ms(dialed - session.started),
            bytes_up=client.received,
            bytes_down=0 if upstream is None else upstream.received,
            retries=session.retries,
            sni=client.server_name,
            alpn=client.alpn_told,
            tls=None if client.peer is None else client.peer.version,
            identity=None if client.peer is None else client.peer.identity,
            worker=self._worker,
            kept=session.kept,
        )

    async def end_session(self, session: str) -> SessionShown:
        number = session.rpartition("-")[2]
        for listener in self._relay.all_listeners():
            for each in listener.sessions:
                # Of most, it takes less to tell by the number; those from other processes have names of theirs.
                may_be = f"{each.number:x}" == number or each.before is not None
                if may_be and each.name == session:
                    shown = self._session(listener, each)
                    each.cut(Reason.KILLED)
                    return shown
        raise NotThere(f"there is no open session {session!r}")

    # Pools.

    async def pools(self) -> tuple[PoolShown, ...]:
        return tuple(self._pool(pool) for pool in self._relay.pools.values())

    def _pool(self, pool: Pool) -> PoolShown:
        shares = pool.shares()
        return PoolShown(
            name=pool.name,
            balance=pool.config.balance,
            check=pool.config.health.check,
            sessions=pool.sessions,
            max_sessions=pool.config.max_sessions,
            waiting=pool.waiting,
            targets=tuple(self._target(pool, each, shares.get(each, 0.0)) for each in pool.targets),
        )

    def _target(self, pool: Pool, target: Target, share: float) -> TargetShown:
        config, dials = target.config, target.dials
        return TargetShown(
            name=target.label,
            address=config.address,
            state=target.state,
            up=target.up,
            cause=target.cause,
            turning=pool.turning(target),
            since=moment(self._epoch(target.since)) if target.since else None,
            weight=target.weight,
            share=round(share, 4),
            backup=config.backup,
            priority=config.priority,
            sessions=target.sessions,
            max_sessions=config.max_sessions,
            dials_total=dials.seconds.counts().count,
            dial_failures_total=sum(dials.failures.values()),
            dial_ms=None if dials.average is None else _ms(dials.average),
        )

    async def steer_target(
        self, pool: str, target: str, state: TargetState | None, weight: int | None
    ) -> TargetShown:
        found = self._relay.pools.get(pool)
        if found is None:
            raise NotThere(f"there is no pool {pool!r}")
        for each in found.targets:
            if each.label == target:
                found.steer(each, state, weight)
                return self._target(found, each, found.shares().get(each, 0.0))
        raise NotThere(f"pool {pool!r} has no target {target!r}")

    async def steer_if_there(
        self, pool: str, target: str, state: TargetState | None, weight: int | None
    ) -> TargetShown | None:
        """
        As `steer_target`, for one of several workers, of which not all have found the same targets.

        @return: None: there is none.
        """
        try:
            return await self.steer_target(pool, target, state, weight)
        except NotThere:
            return None

    # The whole.

    async def reload(self) -> Outcome:
        if self.state == "draining":
            raise NotPossible("the relay is stopping: the configuration is not read again")
        outcome: Outcome = await self._relay.reload()
        return outcome

    async def check(self) -> Outcome:
        return self._relay.check()

    def drain(self, *, now: bool = False) -> None:
        self._relay.drain(now=now)

    # Who looks on.

    @property
    def events_skipped(self) -> int:
        return self._relay.audience.feed.skipped

    def subscribe(self, tell: Callable[[SessionEvent], object]) -> Callable[[], None]:
        return self._relay.audience.feed.subscribe(tell)

    def trace(
        self, clients: Networks | None, tell: Callable[[TraceStep], object]
    ) -> Callable[[], None]:
        return self._relay.audience.tracer.watch(clients, tell)

    async def counters(self) -> Counters:
        relay = self._relay
        moving = {listener: _moving(listener) for listener in relay.all_listeners()}
        by_name: dict[str, dict[Listener, tuple[int, int]]] = {}
        for listener, bytes_ in moving.items():
            by_name.setdefault(listener.name, {})[listener] = bytes_
        return Counters(
            version=__version__,
            listeners=tuple(_listener_counters(name, each) for name, each in by_name.items()),
            targets=tuple(
                TargetCounters(
                    pool=pool.name,
                    target=target.label,
                    up=target.up and target.state != "down",
                    sessions=target.sessions,
                    dials=target.dials.seconds.counts(),
                    dial_failures=dict(target.dials.failures),
                )
                for pool in relay.pools.values()
                for target in pool.targets
            ),
            queues={pool.name: pool.waiting for pool in relay.pools.values()},
            certificate_expiries=dict(relay.certificate_expiries),
            reloads=dict(relay.reloads),
            access_log_dropped=relay.access_log_dropped,
            draining=relay.state == "draining",
            last_reload_failed=relay.last_reload is not None and relay.last_reload[1] == "failure",
            totals=self._totals(moving),
        )


def _listener_counters(
    name: str, listeners: Mapping[Listener, tuple[int, int]]
) -> ListenerCounters:
    """
    @param listeners: of that name, which share their totals, with the bytes of their open sessions.
    """
    totals = next(iter(listeners)).totals
    moving = listeners.values()
    kept = [_moving(listener, kept_only=True) for listener in listeners]
    ended = {(pool, reason.word): count for (pool, reason), count in totals.ended.items()}
    rejected = {reason.word: count for reason, count in totals.refused.items()}
    for reason, count in rejected.items():
        ended["", reason] = ended.get(("", reason), 0) + count
    return ListenerCounters(
        listener=name,
        active=sum(listener.active for listener in listeners),
        ended=ended,
        bytes_up=totals.bytes_up + sum(up for up, _ in moving),
        bytes_down=totals.bytes_down + sum(down for _, down in moving),
        seconds=totals.seconds.counts(),
        rejected=rejected,
        let_in=totals.let_in,
        kept_up=sum(up for up, _ in kept),
        kept_down=sum(down for _, down in kept),
    )


def _moving(listener: Listener, kept_only: bool = False) -> tuple[int, int]:
    """
    @param kept_only: of those sessions only that outlive this process.
    @return: how many bytes have gone up and down in sessions that are open.
    """
    up = down = 0
    for session in listener.sessions:
        if session.state is State.CLOSED or (kept_only and not session.kept):
            continue  # it is being told of, and is among the totals
        up += session.client.received
        if session.upstream is not None:
            down += session.upstream.received
    return up, down


def _client(session: Session) -> ClientProtocol:
    assert isinstance(session.client, ClientProtocol)
    return session.client


def _label(session: Session) -> str | None:
    if session.target is not None:
        return session.target.label
    if session.state is State.DIALING and session.tried:
        return session.tried[-1].label
    return None if session.before is None else session.before.target or None


def _by_client(client: str) -> Callable[[Session], bool]:
    """
    @return: whether a session is of that client; see `SessionsWanted`.
    @raise ValueError: it is no client.
    """
    if not client:
        return lambda session: True
    try:
        networks = Networks([parse_network(client)])
    except ValueError:
        host, colon, port = client.rpartition(":")
        try:
            ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
            if not (colon and port.isdecimal()):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{client!r} is not a client: write an address, a network as 10.0.0.0/8, or ADDR:PORT"
            ) from None
        return lambda session: _client(session).address == client

    def within(session: Session) -> bool:
        host = session.client.host
        return host is not None and host in networks

    return within


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)

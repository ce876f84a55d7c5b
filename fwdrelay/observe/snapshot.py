"""
A relay at one moment, as values: what the API answers, what the dashboard draws, what is scraped.

Nothing here knows where the values come from (`fwdrelay.administered` takes them from a running relay) or
who gets them. Attributes are named as the API's keys are; a moment is RFC 3339 text in UTC, a `_ms` is in
milliseconds, everything else that takes time is in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TypeAlias, get_args

from attrs import frozen

from ..histogram import HistogramCounts
from ..upstream import TargetState

RelayState: TypeAlias = Literal["starting", "running", "draining"]
TARGET_STATES: tuple[TargetState, ...] = get_args(TargetState)


def moment(seconds: float) -> str:
    """
    @param seconds: since the epoch.
    @return: RFC 3339, UTC, to the millisecond.
    """
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


@frozen(kw_only=True)
class ListenerShown:
    """
    @ivar addresses: that it listens on now, as `ADDR:PORT` or `unix:PATH`.
    @ivar state: `draining` once it is no longer configured, or the relay stops.
    @ivar pool: where what no route takes goes; None: nowhere.
    @ivar tls: whether TLS is terminated there.
    @ivar sessions: that are open.
    @ivar max_sessions: that may be; 0: any number.
    @ivar sessions_total: that were let in since the start, those that are open among them.
    @ivar rejected_total: clients that were not let in, or did not get as far as a pool.
    @ivar bytes_up: from clients to targets, those of open sessions among them.
    """

    name: str
    addresses: tuple[str, ...]
    state: Literal["listening", "draining"]
    pool: str | None
    tls: bool
    sessions: int
    max_sessions: int
    sessions_total: int
    rejected_total: int
    bytes_up: int
    bytes_down: int


@frozen(kw_only=True)
class Totals:
    """Of all listeners, those that were there since the start among them; see `ListenerShown`."""

    sessions: int
    sessions_total: int
    rejected_total: int
    bytes_up: int
    bytes_down: int


NO_TOTALS = Totals(sessions=0, sessions_total=0, rejected_total=0, bytes_up=0, bytes_down=0)


@frozen(kw_only=True)
class Reloads:
    """
    @ivar success: how many there were.
    @ivar last: when the last one was, None: never.
    @ivar last_result: how it went.
    """

    success: int
    failure: int
    last: str | None
    last_result: Literal["success", "failure"] | None


WorkerState: TypeAlias = Literal["starting", "running", "draining", "ended"]
WORKER_STATES: tuple[WorkerState, ...] = get_args(WorkerState)


@frozen(kw_only=True)
class WorkerShown:
    """
    A process that relays for the one that supervises it.

    @ivar worker: its number, from 1; the one that replaces it has the same.
    @ivar pid: None while there is none: it is started soon.
    @ivar state: `draining` when it relays what is open and accepts nobody; `ended` when it is to be replaced.
    @ivar started: when its process was; None: see `pid`.
    @ivar restarts: how often it was replaced because it had died, since the start.
    @ivar sessions: that are open in it.
    @ivar kept: those of them that outlive it.
    """

    worker: int
    pid: int | None
    state: WorkerState
    started: str | None
    restarts: int
    sessions: int
    kept: int


@frozen(kw_only=True)
class Status:
    """
    @ivar uptime: seconds.
    @ivar workers: processes that relay for this one; empty: it does so itself.
    @ivar access_log_dropped: lines that nobody took in time.
    @ivar unwell: why it is not as it should be, in a sentence; empty: it is.
    """

    version: str
    pid: int
    state: RelayState
    started: str
    uptime: float
    workers: tuple[WorkerShown, ...]
    listeners: tuple[ListenerShown, ...]
    totals: Totals
    reloads: Reloads
    access_log_dropped: int
    unwell: str = ""


@frozen(kw_only=True)
class SessionShown:
    """
    An open session; its keys are the access log's, where that has them.

    @ivar target: while it is dialing, the one that is tried now; None: there is none yet.
    @ivar state: `opening`, `queued`, `dialing`, `relaying` or `half-closed`.
    @ivar started: when its client was accepted.
    @ivar idle_ms: since the last byte from either side; None: there was none yet.
    @ivar worker: the number of the process that relays it; None: there are no workers.
    @ivar kept: whether it outlives that process.
    """

    session: str
    listener: str
    client: str
    local: str
    pool: str | None
    target: str | None
    state: str
    started: str
    duration_ms: float
    idle_ms: float | None
    dial_ms: float | None
    bytes_up: int
    bytes_down: int
    retries: int
    sni: str | None
    alpn: str | None
    tls: str | None
    identity: str | None
    worker: int | None = None
    kept: bool = False


@frozen(kw_only=True)
class SessionsShown:
    """
    @ivar sessions: the oldest first.
    @ivar count: how many there are that were asked for; more than `sessions` where there was a limit.
    """

    sessions: tuple[SessionShown, ...]
    count: int


@frozen(kw_only=True)
class SessionsWanted:
    """
    Which sessions are asked for: those of which all holds that is given.

    @ivar target: its label.
    @ivar client: an IP address, a network as `10.0.0.0/8`, or `ADDR:PORT`; empty: all.
    @ivar limit: so many at most; 0: all.
    """

    listener: str = ""
    target: str = ""
    client: str = ""
    limit: int = 0


@frozen(kw_only=True)
class TargetShown:
    """
    @ivar name: its label.
    @ivar state: what an operator wants it to be: `drain` gets no new sessions, `down` counts as one that
        health checks found to be down.
    @ivar up: whether health checks think that it can take sessions; true where there are none.
    @ivar cause: why it is up or down; empty: nothing was found out yet.
    @ivar turning: what speaks for its being the other way soon, as `1 of 3 checks failed: …`; empty: nothing does.
    @ivar since: when it last came or went up or down; None: it has been up from the start.
    @ivar share: the part of its pool's new sessions that is meant for it now: from 0 to 1.
    @ivar max_sessions: 0: any number.
    @ivar dials_total: connections that were opened to it for sessions.
    @ivar dial_ms: how long that took of late (a moving average); None: there was none.
    """

    name: str
    address: str
    state: TargetState
    up: bool
    cause: str
    turning: str
    since: str | None
    weight: int
    share: float
    backup: bool
    priority: int
    sessions: int
    max_sessions: int
    dials_total: int
    dial_failures_total: int
    dial_ms: float | None


@frozen(kw_only=True)
class PoolShown:
    """
    @ivar balance: how targets are elected.
    @ivar check: how targets are checked: `off`, `tcp`, `tls`, `http`.
    @ivar sessions: on all its targets, those removed included.
    @ivar waiting: sessions that wait for a place.
    """

    name: str
    balance: str
    check: str
    sessions: int
    max_sessions: int
    waiting: int
    targets: tuple[TargetShown, ...]


@frozen(kw_only=True)
class ListenerCounters:
    """
    @ivar active: sessions that are open.
    @ivar let_in: sessions that were let in, those that are open among them.
    @ivar ended: sessions that have ended, by pool (empty: it never got to one) and reason; refused clients
        are among them.
    @ivar seconds: how long sessions lasted that were let in.
    @ivar rejected: refused clients, by reason.
    @ivar kept_up: those of `bytes_up` that are of open sessions which outlive their worker: whoever goes on with
        them counts these, too.
    @ivar kept_down: the same of `bytes_down`.
    """

    listener: str
    active: int
    ended: Mapping[tuple[str, str], int]
    bytes_up: int
    bytes_down: int
    seconds: HistogramCounts
    rejected: Mapping[str, int]
    let_in: int = 0
    kept_up: int = 0
    kept_down: int = 0


@frozen(kw_only=True)
class TargetCounters:
    """
    @ivar up: false where health checks or an operator say that it is down; one that drains is up.
    @ivar dials: seconds that it took to connect.
    @ivar dial_failures: by cause.
    """

    pool: str
    target: str
    up: bool
    sessions: int
    dials: HistogramCounts
    dial_failures: Mapping[str, int]


@frozen(kw_only=True)
class Counters:
    """
    What is scraped. Another thread reads it: its mappings, too, are values that nobody changes any more.

    @ivar queues: sessions that wait for a place, by pool.
    @ivar certificate_expiries: seconds since the epoch, by file.
    @ivar reloads: by result, `success` and `failure`.
    @ivar last_reload_failed: whether the last one did.
    @ivar totals: of all listeners, those that were there since the start among them.
    @ivar workers: processes that relay for this one.
    @ivar worker_restarts: how often one was replaced because it had died.
    @ivar registrations_refused: sessions that should have been kept, for which there were no descriptors.
    """

    version: str
    listeners: tuple[ListenerCounters, ...]
    targets: tuple[TargetCounters, ...]
    queues: Mapping[str, int]
    certificate_expiries: Mapping[str, float]
    reloads: Mapping[str, int]
    access_log_dropped: int
    draining: bool
    last_reload_failed: bool = False
    totals: Totals = NO_TOTALS
    workers: tuple[WorkerShown, ...] = ()
    worker_restarts: int = 0
    registrations_refused: int = 0


@frozen
class Outcome:
    """
    What a reload, or a look at the configuration, came to.

    @ivar okay: whether the relay is, or would be, as its configuration says.
    @ivar changed: what was changed, in words; empty where nothing could be.
    @ivar errors: what is wrong, a sentence each.
    """

    okay: bool
    changed: str = ""
    errors: tuple[str, ...] = ()

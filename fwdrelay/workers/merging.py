"""
What several workers say of themselves, as one: values of `fwdrelay.observe.snapshot` in, one such value out.

All of it is pure. Who is asked, and when, is `together`'s affair.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from attrs import evolve

from .._version import __version__
from ..histogram import HistogramCounts
from ..observe.snapshot import (
    Counters,
    ListenerCounters,
    ListenerShown,
    PoolShown,
    SessionsShown,
    Status,
    TargetCounters,
    TargetShown,
    Totals,
)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def nothing_counted(version: str = __version__) -> Counters:
    """
    @return: what there is before anybody has counted.
    """
    return Counters(
        version=version,
        listeners=(),
        targets=(),
        queues={},
        certificate_expiries={},
        reloads={},
        access_log_dropped=0,
        draining=False,
    )


def _by(key: Callable[[T], K], lists: Iterable[Iterable[T]]) -> dict[K, list[T]]:
    """
    @param lists: of each worker.
    @return: what belongs together, in the order in which it is met.
    """
    found: dict[K, list[T]] = {}
    for each in lists:
        for value in each:
            found.setdefault(key(value), []).append(value)
    return found


def _sum(mappings: Iterable[Mapping[K, int]]) -> dict[K, int]:
    total: Counter[K] = Counter()
    for each in mappings:
        total.update(each)
    return dict(total)


# ------------------------------------------------------------------------------------- counters


def merge_counters(all_of_them: Sequence[Counters]) -> Counters:
    """
    @param all_of_them: of each worker; what those have counted that are gone, as `counted_only` gives it, may be
        among them.
    @return: their sums. A target is up where all think so, a certificate expires when the first says so, and the
        whole drains where all do.
    """
    counters = all_of_them or [nothing_counted()]
    return Counters(
        version=__version__,
        listeners=tuple(
            map(_listener_counters, _by(_listener_name, (c.listeners for c in counters)).values())
        ),
        targets=tuple(
            map(_target_counters, _by(_target_key, (c.targets for c in counters)).values())
        ),
        queues=_sum(c.queues for c in counters),
        certificate_expiries={
            file: min(expiries)
            for file, expiries in _values(c.certificate_expiries for c in counters).items()
        },
        # They were all told of the same ones.
        reloads=_join(max, *(c.reloads for c in counters)),
        access_log_dropped=sum(c.access_log_dropped for c in counters),
        draining=all(c.draining for c in counters),
        last_reload_failed=any(c.last_reload_failed for c in counters),
        totals=_totals(operator.add, *(c.totals for c in counters)),
        workers=tuple(worker for c in counters for worker in c.workers),
        worker_restarts=sum(c.worker_restarts for c in counters),
        registrations_refused=sum(c.registrations_refused for c in counters),
    )


def _listener_name(each: ListenerCounters) -> str:
    return each.listener


def _target_key(each: TargetCounters) -> tuple[str, str]:
    return each.pool, each.target


def _values(mappings: Iterable[Mapping[K, float]]) -> dict[K, list[float]]:
    found: dict[K, list[float]] = {}
    for each in mappings:
        for key, value in each.items():
            found.setdefault(key, []).append(value)
    return found


def _listener_counters(same: Sequence[ListenerCounters]) -> ListenerCounters:
    return ListenerCounters(
        listener=same[0].listener,
        active=sum(each.active for each in same),
        ended=_sum(each.ended for each in same),
        bytes_up=sum(each.bytes_up for each in same),
        bytes_down=sum(each.bytes_down for each in same),
        seconds=_histograms(each.seconds for each in same),
        rejected=_sum(each.rejected for each in same),
        let_in=sum(each.let_in for each in same),
        kept_up=sum(each.kept_up for each in same),
        kept_down=sum(each.kept_down for each in same),
    )


def _target_counters(same: Sequence[TargetCounters]) -> TargetCounters:
    return TargetCounters(
        pool=same[0].pool,
        target=same[0].target,
        up=all(each.up for each in same),
        sessions=sum(each.sessions for each in same),
        dials=_histograms(each.dials for each in same),
        dial_failures=_sum(each.dial_failures for each in same),
    )


def _histograms(counts: Iterable[HistogramCounts]) -> HistogramCounts:
    first, *others = counts
    for each in others:
        first = first.plus(each)
    return first


def _totals(join: Callable[[int, int], int], *all_of_them: Totals) -> Totals:
    first, *others = all_of_them
    for each in others:
        first = Totals(
            sessions=join(first.sessions, each.sessions),
            sessions_total=join(first.sessions_total, each.sessions_total),
            rejected_total=join(first.rejected_total, each.rejected_total),
            bytes_up=join(first.bytes_up, each.bytes_up),
            bytes_down=join(first.bytes_down, each.bytes_down),
        )
    return first


def counted_only(counters: Counters) -> Counters:
    """
    What is left of a worker that is gone: what it has counted, and nothing of what it was. Sessions that outlive it
    have their bytes with them.

    @param counters: the last that was heard of it.
    @return: they, with nothing open, nobody waiting, and no opinion on targets.
    """
    totals = evolve(
        counters.totals,
        sessions=0,
        bytes_up=counters.totals.bytes_up - sum(each.kept_up for each in counters.listeners),
        bytes_down=counters.totals.bytes_down - sum(each.kept_down for each in counters.listeners),
    )
    return evolve(
        counters,
        listeners=tuple(map(_listener_counted_only, counters.listeners)),
        targets=tuple(evolve(each, up=True, sessions=0) for each in counters.targets),
        queues={},
        certificate_expiries={},
        draining=True,  # where all that are left drain, it does not speak against it
        last_reload_failed=False,
        totals=totals,
        workers=(),
    )


def _listener_counted_only(each: ListenerCounters) -> ListenerCounters:
    return evolve(
        each,
        active=0,
        bytes_up=each.bytes_up - each.kept_up,
        bytes_down=each.bytes_down - each.kept_down,
        kept_up=0,
        kept_down=0,
    )


def with_departed(living: Counters, departed: Counters) -> Counters:
    """
    @param living: of all workers there are, merged.
    @param departed: of those that are gone.
    @return: both, of the listeners and targets that the living know: what a reload or a discovery has removed is
        told no more, as by a single process.
    """
    listeners = {each.listener for each in living.listeners}
    targets = {_target_key(each) for each in living.targets}
    gone = counted_only(departed)
    gone = evolve(
        gone,
        listeners=tuple(each for each in gone.listeners if each.listener in listeners),
        targets=tuple(each for each in gone.targets if _target_key(each) in targets),
    )
    return merge_counters([living, gone])


def at_least(now: Counters, before: Counters) -> Counters:
    """
    A worker that dies takes with it what it had counted since it was asked last. Whoever scrapes would take a
    counter that goes back for one that has begun anew, and count all of it twice.

    @param before: what was told last.
    @return: `now`, with counters that are no less than they were.
    """
    listeners = {each.listener: each for each in before.listeners}
    targets = {_target_key(each): each for each in before.targets}
    return evolve(
        now,
        listeners=tuple(
            _listener_at_least(each, listeners[each.listener])
            if each.listener in listeners
            else each
            for each in now.listeners
        ),
        targets=tuple(
            _target_at_least(each, targets[_target_key(each)])
            if _target_key(each) in targets
            else each
            for each in now.targets
        ),
        access_log_dropped=max(now.access_log_dropped, before.access_log_dropped),
        totals=evolve(
            _totals(max, now.totals, before.totals),
            sessions=now.totals.sessions,
        ),
    )


def _listener_at_least(now: ListenerCounters, before: ListenerCounters) -> ListenerCounters:
    return evolve(
        now,
        ended=_join(max, now.ended, before.ended),
        bytes_up=max(now.bytes_up, before.bytes_up),
        bytes_down=max(now.bytes_down, before.bytes_down),
        seconds=_histogram_at_least(now.seconds, before.seconds),
        rejected=_join(max, now.rejected, before.rejected),
        let_in=max(now.let_in, before.let_in),
    )


def _target_at_least(now: TargetCounters, before: TargetCounters) -> TargetCounters:
    return evolve(
        now,
        dials=_histogram_at_least(now.dials, before.dials),
        dial_failures=_join(max, now.dial_failures, before.dial_failures),
    )


def _histogram_at_least(now: HistogramCounts, before: HistogramCounts) -> HistogramCounts:
    if now.bounds != before.bounds:  # they were counted by another version
        return now
    return HistogramCounts(
        now.bounds, tuple(map(max, now.counts, before.counts)), max(now.total, before.total)
    )


def _join(join: Callable[[int, int], int], *mappings: Mapping[K, int]) -> dict[K, int]:
    found: dict[K, int] = {}
    for each in mappings:
        for key, value in each.items():
            found[key] = join(found[key], value) if key in found else value
    return found


# ------------------------------------------------------------------------------ what is shown


def merge_listeners(statuses: Sequence[Status], counters: Counters) -> tuple[ListenerShown, ...]:
    """
    @param statuses: of each worker.
    @param counters: of all together; each number is taken from there, where listeners that share a name are one.
    @return: a listener for each name. It listens if it does so anywhere; what it is like is said by the first
        worker that listens.
    """
    counted = {each.listener: each for each in counters.listeners}
    return tuple(
        _listener(same, counted[name])
        for name, same in _by(lambda each: each.name, (s.listeners for s in statuses)).items()
        if name in counted
    )


def _listener(same: Sequence[ListenerShown], counted: ListenerCounters) -> ListenerShown:
    listening = [each for each in same if each.state == "listening"]
    first = (listening or same)[0]
    return evolve(
        first,
        addresses=next((each.addresses for each in same if each.addresses), ()),
        sessions=counted.active,
        sessions_total=counted.let_in,
        rejected_total=sum(counted.rejected.values()),
        bytes_up=counted.bytes_up,
        bytes_down=counted.bytes_down,
    )


def merge_sessions(all_of_them: Sequence[SessionsShown], limit: int) -> SessionsShown:
    """
    @param all_of_them: of each worker, chosen by the same words, and the oldest so many.
    @param limit: so many at most; 0: all.
    @return: the oldest of all. One that has moved meanwhile may have been told of twice.
    """
    sessions = {each.session: each for shown in all_of_them for each in shown.sessions}
    twice = sum(len(shown.sessions) for shown in all_of_them) - len(sessions)
    oldest = sorted(sessions.values(), key=lambda each: each.started)
    return SessionsShown(
        sessions=tuple(oldest[: limit or None]),
        count=sum(shown.count for shown in all_of_them) - twice,
    )


def merge_pools(all_of_them: Sequence[tuple[PoolShown, ...]]) -> tuple[PoolShown, ...]:
    """
    @param all_of_them: of each worker.
    @return: a pool for each name, with a target for each label: what there is of sessions and dials is summed up.
    """
    return tuple(map(_pool, _by(lambda each: each.name, all_of_them).values()))


def _pool(same: Sequence[PoolShown]) -> PoolShown:
    targets = _by(lambda each: each.name, (pool.targets for pool in same))
    return evolve(
        same[0],
        sessions=sum(each.sessions for each in same),
        waiting=sum(each.waiting for each in same),
        targets=tuple(merge_targets(each, len(same)) for each in targets.values()),
    )


def merge_targets(same: Sequence[TargetShown], workers: int = 0) -> TargetShown:
    """
    @param same: one target, as each worker that has it sees it.
    @param workers: that have its pool; those that have not found the target yet give it nothing. 0: those that
        have it.
    @return: it is up where all think so; else it is told why, and since when, by the first that thinks otherwise.
    """
    judge = next((each for each in same if not each.up), same[0])
    dialed = [(each.dial_ms, each.dials_total) for each in same if each.dial_ms is not None]
    dials = sum(count for _, count in dialed)
    return evolve(
        same[0],
        up=judge.up,
        cause=judge.cause,
        turning=next((each.turning for each in same if each.turning and each.up == judge.up), ""),
        since=judge.since,
        share=round(sum(each.share for each in same) / (workers or len(same)), 4),
        sessions=sum(each.sessions for each in same),
        dials_total=sum(each.dials_total for each in same),
        dial_failures_total=sum(each.dial_failures_total for each in same),
        dial_ms=round(sum(ms * count for ms, count in dialed) / dials, 3) if dials else None,
    )

"""
The access log: one line for each ended session, as JSON or as HAProxy's `option tcplog` writes it; and, where
that is wanted, lines for those that last.

Here lives what is written. Where it goes is a sink's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeAlias

from .events import SessionEnded
from .feed import SessionEvent, SessionOpened
from .losses import LAST_WAIT
from .sink import ISink
from .snapshot import moment

PROGRESS = "progress"
"""The `reason` of a session that has not ended: it is told of while it lasts."""

Fields: TypeAlias = dict[str, str | int | float | None]


def fields(event: SessionEvent) -> Fields:
    """
    @return: what is told of a session, by its public names; times in ms with fractions, `time` is RFC 3339
        in UTC.
    """
    found: Fields = {
        "time": moment(event.time),
        "session": event.session,
        "listener": event.listener,
        "client": event.client,
        "local": event.local,
    }
    if isinstance(event, SessionOpened):
        return found
    found.update(
        pool=event.pool,
        target=event.target,
        reason=event.reason,
        code=event.code,
        bytes_up=event.bytes_up,
        bytes_down=event.bytes_down,
        dial_ms=event.dial_ms,
        duration_ms=event.duration_ms,
        retries=event.retries,
        sessions=event.sessions,
    )
    if event.queue_ms is not None:
        found["queue_ms"] = event.queue_ms
    for name in ("sni", "alpn", "tls", "identity", "error"):
        value = getattr(event, name)
        if value is not None:
            found[name] = value
    return found


def json_line(event: SessionEnded) -> str:
    """One JSON object, of `fields`."""
    return json.dumps(fields(event), separators=(",", ":"))


def tcplog_line(event: SessionEnded) -> str:
    """
    HAProxy's `option tcplog` (its configuration manual, "TCP log format"), without the syslog
    prefix: `%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq`. Targets have no
    queues, so `%sq` is 0; the time is that of the accept. Of a session that lasts, time and bytes have a
    `+` in front, as with HAProxy's `option logasap`.
    """
    accepted = datetime.fromtimestamp(event.time - event.duration_ms / 1000, UTC)
    stamp = f"{accepted:%d/%b/%Y:%H:%M:%S}.{accepted.microsecond // 1000:03d}"
    waited = event.queue_ms or 0.0
    connect = -1 if event.dial_ms is None else max(round(event.dial_ms - waited), 0)
    wait = -1 if event.target is None and not waited else round(waited)
    active, of_pool, of_target = event.totals
    redispatched = "+" if event.retries else ""
    more = "+" if event.reason == PROGRESS else ""
    return (
        f"{event.client} [{stamp}] {event.listener} {event.pool or event.listener}/{event.target or '<NOSRV>'}"
        f" {wait}/{connect}/{more}{round(event.duration_ms)} {more}{event.bytes_down} {event.code}"
        f" {active}/{event.sessions}/{of_pool}/{of_target}/{redispatched}{event.retries} 0/{event.queued}"
    )


FORMATS: dict[str, Callable[[SessionEnded], str]] = {"json": json_line, "tcplog": tcplog_line}


class AccessLog:
    """
    Writes sessions as lines.

    @param format_name: a key of `FORMATS`.
    """

    def __init__(self, format_name: str, sink: ISink) -> None:
        self._format = FORMATS[format_name]
        self._sink = sink

    @property
    def dropped(self) -> int:
        """Lines that nobody took, since it was opened."""
        return self._sink.dropped

    def session_ended(self, event: SessionEnded) -> None:
        """
        Write `event`, soon.

        @param event: for a session that lasts, as if it ended now: with `PROGRESS` for a reason, and the code `--`.
        """
        self._sink.write(self._format(event), event)

    def reopen(self) -> None:
        """Begin a new file where the old one was moved away."""
        self._sink.reopen()

    def close(self, patience: float = LAST_WAIT) -> None:
        """
        Write what is left, as far as it is taken, and be done; `dropped` can still be asked for.

        @param patience: seconds for a slow reader, for which nothing else is done.
        """
        self._sink.close(patience)

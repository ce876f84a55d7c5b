"""
The access log: one line for each ended session, as JSON or as HAProxy's `option tcplog` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

from .events import SessionEnded
from .sink import LAST_WAIT, Sink


def json_line(event: SessionEnded) -> str:
    """One JSON object; times in ms with fractions, `time` is RFC 3339 in UTC."""
    fields: dict[str, str | int | float | None] = {
        "time": datetime.fromtimestamp(event.time, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z"),
        "session": event.session,
        "listener": event.listener,
        "client": event.client,
        "local": event.local,
        "pool": event.pool,
        "target": event.target,
        "reason": event.reason,
        "code": event.code,
        "bytes_up": event.bytes_up,
        "bytes_down": event.bytes_down,
        "dial_ms": event.dial_ms,
        "duration_ms": event.duration_ms,
        "retries": event.retries,
        "sessions": event.sessions,
    }
    if event.queue_ms is not None:
        fields["queue_ms"] = event.queue_ms
    for name in ("sni", "alpn", "tls", "identity", "error"):
        value = getattr(event, name)
        if value is not None:
            fields[name] = value
    return json.dumps(fields, separators=(",", ":"))


def tcplog_line(event: SessionEnded) -> str:
    """
    HAProxy's `option tcplog` (its configuration manual, "TCP log format"), without the syslog
    prefix: `%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq`. Targets have no
    queues, so `%sq` is 0; the time is that of the accept.
    """
    accepted = datetime.fromtimestamp(event.time - event.duration_ms / 1000, UTC)
    stamp = f"{accepted:%d/%b/%Y:%H:%M:%S}.{accepted.microsecond // 1000:03d}"
    waited = event.queue_ms or 0.0
    connect = -1 if event.dial_ms is None else max(round(event.dial_ms - waited), 0)
    wait = -1 if event.target is None and not waited else round(waited)
    active, of_pool, of_target = event.totals
    redispatched = "+" if event.retries else ""
    return (
        f"{event.client} [{stamp}] {event.listener} {event.pool or event.listener}/{event.target or '<NOSRV>'}"
        f" {wait}/{connect}/{round(event.duration_ms)} {event.bytes_down} {event.code}"
        f" {active}/{event.sessions}/{of_pool}/{of_target}/{redispatched}{event.retries} 0/{event.queued}"
    )


FORMATS: dict[str, Callable[[SessionEnded], str]] = {"json": json_line, "tcplog": tcplog_line}


class AccessLog:
    """
    Writes each ended session as a line.

    @param format_name: a key of `FORMATS`.
    """

    def __init__(self, format_name: str, sink: Sink) -> None:
        self._format = FORMATS[format_name]
        self._sink = sink

    def session_ended(self, event: SessionEnded) -> None:
        """Write `event`, soon."""
        self._sink.write(self._format(event) + "\n")

    def reopen(self) -> None:
        """Begin a new file where the old one was moved away."""
        self._sink.reopen()

    def close(self, patience: float = LAST_WAIT) -> None:
        """
        Write what is left, as far as it is taken, and be done.

        @param patience: seconds for a slow reader, for which nothing else is done.
        """
        self._sink.close(patience)

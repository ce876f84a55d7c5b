"""What is told of a session, as values; nobody here knows who listens."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class SessionEnded:
    """
    A session as it is told of when it has ended; the names are those of the access log.

    @ivar time: seconds since the epoch, of the end.
    @ivar session: unique among all relay processes of a machine.
    @ivar client: `ADDR:PORT` of the real client.
    @ivar local: the address the client connected to.
    @ivar dial_ms: from accept to the upstream connection; None where none was opened.
    @ivar pool: None for one that had no way to go.
    @ivar queue_ms: how long it waited for a place; None: not at all.
    @ivar queued: how many others wait in the pool; for `tcplog`.
    @ivar sni: the server name in the client's ClientHello, where that was looked at.
    @ivar alpn: the protocol agreed on where TLS is terminated; else those offered, with commas.
    @ivar tls: the version of TLS that the client speaks with the relay: `TLSv1.3`.
    @ivar identity: who its certificate is for: `dns:NAME` and its like.
    @ivar sessions: how many the listener has left, this one counted.
    @ivar totals: active sessions of process, pool and target, this one counted; for `tcplog`.
    """

    time: float
    session: str
    listener: str
    client: str
    local: str
    pool: str | None
    target: str | None
    reason: str
    code: str
    bytes_up: int
    bytes_down: int
    dial_ms: float | None
    duration_ms: float
    retries: int
    sessions: int
    totals: tuple[int, int, int] = (0, 0, 0)
    queue_ms: float | None = None
    queued: int = 0
    sni: str | None = None
    alpn: str | None = None
    tls: str | None = None
    identity: str | None = None
    error: str | None = None

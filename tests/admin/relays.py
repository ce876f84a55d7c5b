"""
What the tests of the API share: a relay that is made up, and an admin site around it without a socket, whose
time stands still until a test moves it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from typing import Any, cast

import attrs
from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from fwdrelay.admin import Administered, Outcome
from fwdrelay.admin.answer import Answer
from fwdrelay.admin.api import Api
from fwdrelay.admin.channel import Channel
from fwdrelay.admin.guard import Guard
from fwdrelay.admin.openapi import describe
from fwdrelay.admin.port import Reserve
from fwdrelay.admin.site import AdminSite
from fwdrelay.admin.streams import Streams
from fwdrelay.errors import NotPossible, NotThere
from fwdrelay.networks import Networks
from fwdrelay.observe.events import SessionEnded
from fwdrelay.observe.feed import SessionEvent, SessionOpened
from fwdrelay.observe.snapshot import (
    Counters,
    ListenerShown,
    PoolShown,
    Reloads,
    SessionShown,
    SessionsShown,
    SessionsWanted,
    Status,
    TargetShown,
    Totals,
    WorkerShown,
)
from fwdrelay.observe.trace import TraceStep

WORKER = WorkerShown(
    worker=1,
    pid=2,
    state="running",
    started="2026-01-02T03:04:05.678Z",
    restarts=0,
    sessions=1,
    kept=1,
)
STATUS = Status(
    version="1.2",
    pid=1,
    state="running",
    started="2026-01-02T03:04:05.678Z",
    uptime=1.5,
    workers=(WORKER, attrs.evolve(WORKER, worker=2, pid=None, state="ended", started=None)),
    listeners=(
        ListenerShown(
            name="web",
            addresses=("127.0.0.1:5678",),
            state="listening",
            pool=None,
            tls=False,
            sessions=1,
            max_sessions=0,
            sessions_total=2,
            rejected_total=3,
            bytes_up=4,
            bytes_down=5,
        ),
    ),
    totals=Totals(sessions=1, sessions_total=2, rejected_total=3, bytes_up=4, bytes_down=5),
    reloads=Reloads(success=1, failure=0, last="2026-01-02T03:04:05.678Z", last_result="success"),
    access_log_dropped=0,
)
SESSION = SessionShown(
    session="a-1",
    listener="web",
    client="192.0.2.1:1",
    local="192.0.2.2:2",
    pool="web",
    target="one",
    state="relaying",
    started="2026-01-02T03:04:05.678Z",
    duration_ms=1.5,
    idle_ms=None,
    dial_ms=0.5,
    bytes_up=1,
    bytes_down=2,
    retries=0,
    sni=None,
    alpn=None,
    tls=None,
    identity=None,
)
TARGET = TargetShown(
    name="unix:/run/one.sock",
    address="unix:/run/one.sock",
    state="ready",
    up=True,
    cause="",
    turning="",
    since=None,
    weight=1,
    share=1.0,
    backup=False,
    priority=0,
    sessions=1,
    max_sessions=0,
    dials_total=1,
    dial_failures_total=0,
    dial_ms=None,
)
POOL = PoolShown(
    name="web",
    balance="round-robin",
    check="off",
    sessions=1,
    max_sessions=0,
    waiting=0,
    targets=(TARGET,),
)
OPENED = SessionOpened(
    time=0.0, session="a-2", listener="web", client="192.0.2.1:2", local="192.0.2.2:2"
)
ENDED = SessionEnded(
    time=1.0,
    session="a-2",
    listener="web",
    client="192.0.2.1:2",
    local="192.0.2.2:2",
    pool="web",
    target="one",
    reason="done",
    code="--",
    bytes_up=1,
    bytes_down=2,
    dial_ms=0.5,
    duration_ms=1.0,
    retries=0,
    sessions=1,
)
STEP = TraceStep(
    time=0.0,
    session="a-2",
    listener="web",
    client="192.0.2.1:2",
    at_ms=0.25,
    step="accepted",
    detail="by web",
)


@define
class FakeRelay:
    """
    An `Administered`.

    @ivar asked: what it was asked to do, in order.
    @ivar told: who has subscribed to its sessions.
    @ivar followed: who follows new sessions, and whose.
    @ivar also_there: names of sessions and targets that can be steered, too.
    @ivar slow: what its status, its sessions and the end of one wait for.
    @ivar failing: what asking for its status raises.
    @ivar unwell: why it is not as it should be.
    """

    state: str = "running"
    asked: list[Any] = field(factory=list)
    told: list[Callable[[SessionEvent], object]] = field(factory=list)
    followed: list[tuple[Networks | None, Callable[[TraceStep], object]]] = field(factory=list)
    also_there: tuple[str, ...] = ()
    slow: Callable[[], Deferred[Any]] = field(default=lambda: succeed(None))
    failing: Exception | None = None
    outcome: Outcome = field(factory=lambda: Outcome(True, changed="nothing"))
    open: list[SessionShown] = field(factory=lambda: [SESSION])
    events_skipped: int = 7
    unwell: str = ""

    async def status(self) -> Status:
        self.asked.append("status")
        await self.slow()
        if self.failing is not None:
            raise self.failing
        return STATUS

    async def sessions(self, wanted: SessionsWanted) -> SessionsShown:
        self.asked.append(wanted)
        await self.slow()
        if wanted.client == "nobody":
            raise ValueError("'nobody' is not a network")
        return SessionsShown(sessions=tuple(self.open), count=len(self.open))

    async def end_session(self, session: str) -> SessionShown:
        await self.slow()
        self.asked.append(("end", session))
        if session not in (SESSION.session, *self.also_there):
            raise NotThere(f"there is no open session {session!r}")
        return SESSION

    async def pools(self) -> tuple[PoolShown, ...]:
        return (POOL,)

    async def steer_target(
        self, pool: str, target: str, state: Any, weight: int | None
    ) -> TargetShown:
        self.asked.append(("steer", pool, target, state, weight))
        if (pool, target) != (POOL.name, TARGET.name) and target not in self.also_there:
            raise NotThere(f"pool {pool!r} has no target {target!r}")
        return attrs.evolve(TARGET, state=state or "ready", weight=weight or 1)

    async def reload(self) -> Outcome:
        self.asked.append("reload")
        if self.state == "draining":
            raise NotPossible("the relay is stopping")
        return self.outcome

    async def check(self) -> Outcome:
        return self.outcome

    def drain(self, *, now: bool = False) -> None:
        if self.state == "starting":
            raise NotPossible("the relay is still starting")
        self.asked.append("cut" if now else "drain")
        self.state = "draining"

    async def counters(self) -> Counters:
        raise NotImplementedError

    def subscribe(self, tell: Callable[[SessionEvent], object]) -> Callable[[], None]:
        self.told.append(tell)
        return lambda: self.told.remove(tell)

    def trace(
        self, clients: Networks | None, tell: Callable[[TraceStep], object]
    ) -> Callable[[], None]:
        watcher = (clients, tell)
        self.followed.append(watcher)
        return lambda: self.followed.remove(watcher)


_: type[Administered] = FakeRelay


class Handle:
    """What is asked of a socket."""

    def setsockopt(self, *option: int) -> None:
        """Its buffers don't matter here."""


class Wire(StringTransport):
    """
    A transport, and the peer's end of it.

    @ivar half_closed: whether we have said that this was all.
    @ivar taking: whether more is read from the peer.
    """

    protocol: Any
    half_closed = False
    taking = True
    stuck = False
    lost = False

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.stuck and self.producer is not None:
            self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def unregisterProducer(self) -> None:
        self.producer = None  # there need not be one, as with real ones

    def getHandle(self) -> Handle:
        return Handle()

    def stopReading(self) -> None:
        self.taking = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.go(ConnectionLost())

    def go(self, why: Exception | None = None) -> None:
        """The peer is gone."""
        if not self.lost:
            self.lost = self.disconnecting = True
            self.protocol.connectionLost(Failure(why or ConnectionDone()))

    def unstick(self) -> None:
        """The peer reads again, and has read all there was."""
        self.stuck = False
        if self.producer is not None:
            self.producer.resumeProducing()


class Fed(io.BytesIO):
    """What `HTTPResponse` reads from; it is looked at again after that was done with it."""

    def makefile(self, mode: str) -> io.BytesIO:
        return self

    def close(self) -> None:
        """Not yet."""


@define
class Response:
    """One answer."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.raw)


class Connection:
    """
    A client of a site.

    @ivar wire: its transport.
    """

    def __init__(self, site: AdminSite) -> None:
        self.channel = cast("Channel", site.buildProtocol(None))
        self.wire = Wire()
        self.wire.protocol = self.channel
        self.channel.makeConnection(self.wire)

    def send(self, data: bytes) -> None:
        """As its bytes come in."""
        if self.wire.taking and not self.wire.lost:
            self.channel.dataReceived(data)

    def received(self) -> bytes:
        """All that it was sent since it looked last."""
        data: bytes = self.wire.value()
        self.wire.clear()
        return data

    def responses(self, *methods: str) -> Iterator[Response]:
        """The answers among `received`; all bytes have to be a part of one."""
        fed = Fed(self.received())
        for method in methods or ("GET",):
            answer = HTTPResponse(cast("Any", fed), method=method)
            answer.begin()
            raw = answer.read()
            yield Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, raw)
        rest = fed.read()
        assert not rest, rest

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        version: str = "HTTP/1.1",
        **headers: str | None,
    ) -> Response:
        """
        @param headers: names with `_` for `-`; None: not even the usual one.
        """
        self.send(request(method, target, body, version=version, **headers))
        (response,) = self.responses(method)
        return response

    @property
    def open(self) -> bool:
        """Whether it may go on."""
        return not self.wire.disconnecting and not self.wire.half_closed


def request(
    method: str, target: str, body: bytes = b"", *, version: str = "HTTP/1.1", **headers: str | None
) -> bytes:
    """The bytes of one."""
    given: dict[str, str | None] = {"Host": "localhost:9678"}
    if body:
        given |= {"Content-Length": str(len(body)), "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"{method} {target} {version}", *lines, "", ""]).encode("latin-1") + body


class Metrics(Resource):
    """`/metrics`."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        request.setHeader("Content-Type", "text/plain")
        return b"fwdrelay 1\n"


class Served:
    """A made-up relay, and the site that shows it."""

    def __init__(self, guard: Guard | None = None) -> None:
        self.clock = Clock()
        self.relay = FakeRelay()
        self.streams = Streams(self.relay, self.clock)
        self.guard = guard or Guard(checks_host=True)
        page = Answer(200, b"<!doctype html>\n", "text/html; charset=utf-8")
        self.api = Api(self.relay, self.streams, page, Metrics(), describe)
        self.reserve = Reserve(self.clock)
        self.site = AdminSite(self.guard, self.api, self.reserve, self.clock)
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        """A new client."""
        connection = Connection(self.site)
        self.connections.append(connection)
        return connection

    def ask(self, method: str, target: str, body: bytes = b"", **more: Any) -> Response:
        """Of a new client."""
        return self.connect().ask(method, target, body, **more)

    def stop(self) -> None:
        """All are gone."""
        self.site.stopping = True  # so that nothing is put by any more
        for connection in self.connections:
            connection.wire.go()
        self.reserve.release()

"""
The calls: what each takes and answers. How they are described for programs (`openapi`) stands beside what they
do, so that neither is changed without the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from types import UnionType
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

from attrs import field, frozen
from twisted.internet.defer import DeferredLock
from twisted.logger import Logger
from twisted.web.resource import IResource

from ..config.check import did_you_mean, printable
from ..config.grammar import parse_count, parse_network
from ..errors import NotPossible, NotThere
from ..networks import Networks
from ..observe.snapshot import (
    TARGET_STATES,
    PoolShown,
    SessionShown,
    SessionsShown,
    SessionsWanted,
    Status,
    TargetShown,
)
from .administered import Administered
from .answer import BATCH, Answer, Refused, sessions_shown, shown
from .parameters import bad, chosen, flag, read_body, read_query, whole_number
from .request import AdminRequest
from .streams import Streams

HEAVIEST = 1_000_000
"""The most that a target can weigh."""
SHOWN = 1000
"""Sessions that are shown, unless it is said how many."""
WAITING = 50_000
"""Sessions in long lists that wait to be read; each takes a kilobyte or so."""
_MOST_SHOWN = 10**12 - 1
_LONGEST_NAME = 200


@frozen(kw_only=True)
class Health:
    """What a load balancer or a supervisor wants to know."""

    status: Literal["ok"]


@frozen(kw_only=True)
class Readiness:
    """@ivar status: `ready` where new clients are welcome."""

    status: Literal["ready", "starting", "draining"]


@frozen(kw_only=True)
class Unwell:
    """
    New clients are not safe here.

    @ivar why: in a sentence.
    """

    status: Literal["unwell"]
    why: str


@frozen(kw_only=True)
class Pools:
    """All of them."""

    pools: tuple[PoolShown, ...]


@frozen(kw_only=True)
class Reloaded:
    """@ivar changed: in words."""

    changed: str


@frozen(kw_only=True)
class Checked:
    """
    @ivar okay: whether a reload would do.
    @ivar changed: what it would change, in words.
    @ivar errors: what is wrong, a sentence each.
    """

    okay: bool
    changed: str
    errors: tuple[str, ...]


@frozen(kw_only=True)
class Drained:
    """The relay lets its sessions end, and stops."""

    state: Literal["draining"]


@frozen(kw_only=True)
class Wrong:
    """@ivar error: why, in a sentence."""

    error: str


@frozen(kw_only=True)
class AllWrong:
    """
    @ivar error: why, in a sentence.
    @ivar errors: each thing that is wrong.
    """

    error: str
    errors: tuple[str, ...]


@frozen
class Call:
    """
    A request to one of the calls.

    @ivar who: who makes it, for the log; when that is written, they may be gone.
    @ivar names: what stands in the path in the places of `{…}`.
    """

    request: AdminRequest
    who: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]


Schema: TypeAlias = Mapping[str, object]
Told: TypeAlias = type[Any] | UnionType | str
"""What an answer is: the class of its JSON, or one of several, or its content type where that is another."""


@frozen
class Parameter:
    """
    @ivar schema: its JSON schema.
    @ivar text: what it is for.
    """

    schema: Schema
    text: str


_TEXT: Schema = {"type": "string"}


@frozen(kw_only=True)
class Route:
    """
    One call.

    @ivar path: with `{…}` for a segment that is a name.
    @ivar text: what it does, in a sentence.
    @ivar call: does it; None is returned by what answers by itself.
    @ivar answers: what each status has for a body, `Wrong` ones that any call can have left out.
    @ivar names: what stands in the path.
    @ivar query: by name; None: whatever there is, nobody here looks at it.
    @ivar body: its keys; None: it is not looked at.
    @ivar needs_body: whether it is an error to send none.
    """

    method: str
    path: str
    text: str
    call: Callable[[Call], Awaitable[Answer | None]]
    answers: Mapping[int, Told]
    names: Mapping[str, Parameter] = field(factory=dict)
    query: Mapping[str, Parameter] | None = field(factory=dict)
    body: Mapping[str, Parameter] | None = None
    needs_body: bool = False

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """
        @param segments: of a path, decoded.
        @return: its names; None: it is another call's.
        """
        pattern = self.path[1:].split("/")
        if len(pattern) != len(segments):
            return None
        names = {}
        for part, segment in zip(pattern, segments, strict=True):
            if part.startswith("{") and segment:
                names[part[1:-1]] = segment
            elif part != segment:
                return None
        return names


class Api:
    """
    All calls.

    @param page: `/`.
    @param metrics: `/metrics`.
    @ivar routes: the calls.
    """

    log = Logger()

    def __init__(
        self,
        relay: Administered,
        streams: Streams,
        page: Answer,
        metrics: IResource,
        describe: Callable[[tuple[Route, ...]], object],
    ) -> None:
        self._relay = relay
        self._streams = streams
        self._page = page
        self._metrics = metrics
        self._one_list_at_a_time = DeferredLock()
        self._waiting = 0
        self.routes = self._routes()
        self._description = shown(describe(self.routes))

    async def answer(self, request: AdminRequest) -> Answer | None:
        """
        @return: None: it is answered already, or bit by bit.
        @raise Refused: it can't be.
        """
        asked = request.asked
        route, names = self._find(asked.method, asked.path)
        raw_query = asked.target.partition("?")[2]
        query = {} if route.query is None else read_query(raw_query, route.query)
        body: Mapping[str, Any] = {}
        if route.body is not None:
            kinds = [each.decode("latin-1") for each in _content_type(request)]
            raw = request.content.getvalue()
            body = read_body(raw, kinds, route.body, by_form=asked.method == "POST")
        return await route.call(Call(request, request.who, names, query, body))

    def _find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        segments: list[str] = []
        if path.startswith("/"):
            with suppress(UnicodeDecodeError):
                segments = [unquote_to_bytes(part).decode() for part in path[1:].split("/")]
        allowed: list[str] = []
        for route in self.routes:
            names = route.match(segments)
            if names is None:
                continue
            if route.method == ("GET" if method == "HEAD" else method):
                return route, names
            allowed += ["GET", "HEAD"] if route.method == "GET" else [route.method]
        if allowed:
            raise Refused(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{method} can't be done there: there is {', '.join(allowed)}",
                {"Allow": ", ".join(allowed)},
            )
        known = [route.path for route in self.routes]
        raise Refused(
            HTTPStatus.NOT_FOUND,
            f"there is nothing at {printable(path[:200]) or 'no path'}"
            + (did_you_mean(path, known) or "; /v1/openapi.json tells what there is"),
        )

    def _tell(self, call: Call, what: str) -> None:
        """Of who changes something: at 3 in the morning somebody will want to know."""
        self.log.info("By {who}, over the admin API: {what}.", who=call.who, what=what)

    # ------------------------------------------------------------------------ looking

    async def _dashboard(self, call: Call) -> Answer:
        return self._page

    async def _favicon(self, call: Call) -> Answer:
        return Answer(HTTPStatus.NO_CONTENT, b"", "")

    async def _scraped(self, call: Call) -> None:
        call.request.write_head(Answer(HTTPStatus.OK, b"", ""))
        call.request.render(self._metrics)

    async def _health(self, call: Call) -> Answer:
        return shown(Health(status="ok"))

    async def _readiness(self, call: Call) -> Answer:
        state, why = self._relay.state, self._relay.unwell
        if why and state != "draining":
            return shown(Unwell(status="unwell", why=why), HTTPStatus.SERVICE_UNAVAILABLE)
        if state == "running":
            return shown(Readiness(status="ready"))
        return shown({"status": state}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def _status(self, call: Call) -> Answer:
        return shown(await self._relay.status())

    async def _sessions(self, call: Call) -> Answer:
        query = call.query
        try:
            limit = parse_count(query.get("limit", str(SHOWN)))
        except ValueError as error:
            raise bad("limit", str(error)) from None
        wanted = SessionsWanted(
            listener=query.get("listener", ""),
            target=query.get("target", ""),
            client=query.get("client", ""),
            limit=limit,
        )
        async with self._one_list_at_a_time:
            if self._waiting >= WAITING and not 0 < limit <= BATCH:
                raise Refused(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"lists of {self._waiting} sessions wait to be read already: ask again, or for {BATCH}",
                    {"Retry-After": "1"},
                )
            try:
                found = await self._relay.sessions(wanted)
            except ValueError as error:
                raise bad("client", str(error)) from None
            answer = sessions_shown(found)
            if not isinstance(answer.body, bytes):
                self._wait_for(call.request, len(found.sessions))
        return answer

    def _wait_for(self, request: AdminRequest, count: int) -> None:
        """So many sessions are kept until this request has been answered, or whoever asked is gone."""

        def done(reason: object) -> None:
            self._waiting -= count

        self._waiting += count
        request.notifyFinish().addBoth(done)

    async def _pools(self, call: Call) -> Answer:
        return shown(Pools(pools=await self._relay.pools()))

    async def _describe(self, call: Call) -> Answer:
        return self._description

    async def _events(self, call: Call) -> Answer | None:
        self._streams.check_room()
        if call.request.asked.method == "HEAD":
            return Answer(HTTPStatus.OK, iter(()), "text/event-stream")
        self._streams.follow_events(call.request)
        return None

    async def _trace(self, call: Call) -> Answer | None:
        clients = None
        if text := call.query.get("client"):
            try:
                clients = Networks([parse_network(text)])
            except ValueError as error:
                raise bad("client", str(error)) from None
        self._streams.check_room()
        if call.request.asked.method == "HEAD":
            return Answer(HTTPStatus.OK, iter(()), "text/event-stream")
        self._tell(call, f"follow sessions of {_named(text) if text else 'everybody'}")
        self._streams.follow_sessions(call.request, clients)
        return None

    # ------------------------------------------------------------------------ changing

    async def _end_session(self, call: Call) -> Answer:
        session = call.names["session"]
        try:
            ended = await self._relay.end_session(session)
        except NotThere as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from None
        self._tell(call, f"end session {_named(session)}")
        return shown(ended)

    async def _steer_target(self, call: Call) -> Answer:
        pool, target = call.names["pool"], call.names["target"]
        state = chosen(call.body, "state", TARGET_STATES)
        weight = whole_number(call.body, "weight", 1, HEAVIEST)
        if state is None and weight is None:
            raise bad("body", "nothing is asked for: say state, weight, or both")
        try:
            steered = await self._relay.steer_target(pool, target, state, weight)
        except NotThere as error:
            raise Refused(HTTPStatus.NOT_FOUND, str(error)) from None
        changes = [f"state {state}"] * (state is not None) + [f"weight {weight}"] * bool(weight)
        self._tell(
            call,
            f"target {_named(target)} of pool {_named(pool)} gets {' and '.join(changes)}",
        )
        return shown(steered)

    async def _reload(self, call: Call) -> Answer:
        self._tell(call, "reload")
        try:
            outcome = await self._relay.reload()
        except NotPossible as error:
            raise Refused(HTTPStatus.CONFLICT, str(error)) from None
        if not outcome.okay:
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"nothing was changed: {'; '.join(outcome.errors) or 'the log has it'}",
                errors=outcome.errors or ("the log has it",),
            )
        return shown(Reloaded(changed=outcome.changed))

    async def _check(self, call: Call) -> Answer:
        outcome = await self._relay.check()
        return shown(Checked(okay=outcome.okay, changed=outcome.changed, errors=outcome.errors))

    async def _drain(self, call: Call) -> Answer:
        now = flag(call.body, "now")
        self._tell(call, "drain and stop, cutting all sessions" if now else "drain and stop")
        try:
            self._relay.drain(now=now)
        except NotPossible as error:
            raise Refused(HTTPStatus.CONFLICT, str(error)) from None
        return shown(Drained(state="draining"), HTTPStatus.ACCEPTED)

    # ------------------------------------------------------------------------ which is which

    def _routes(self) -> tuple[Route, ...]:
        get = partial(Route, method="GET")
        post = partial(Route, method="POST")
        stream = "text/event-stream"
        return (
            get(
                path="/",
                text="The dashboard, a page for browsers.",
                call=self._dashboard,
                answers={200: "text/html"},
            ),
            get(
                path="/favicon.ico",
                text="There is none; browsers ask for it.",
                call=self._favicon,
                answers={204: ""},
            ),
            get(
                path="/metrics",
                text="What Prometheus scrapes; `name[]` asks for some metrics only.",
                call=self._scraped,
                query=None,
                answers={200: "text/plain"},
            ),
            get(
                path="/healthz",
                text="Whether the process lives; no token is needed.",
                call=self._health,
                answers={200: Health},
            ),
            get(
                path="/readyz",
                text="Whether new clients are welcome; no token is needed.",
                call=self._readiness,
                answers={200: Readiness, 503: Readiness | Unwell},
            ),
            get(
                path="/v1/status",
                text="The relay as a whole, and its listeners.",
                call=self._status,
                answers={200: Status},
            ),
            get(
                path="/v1/sessions",
                text="Open sessions, the oldest first: those for which all holds that is asked for.",
                call=self._sessions,
                query={
                    "listener": Parameter(_TEXT, "A listener's name."),
                    "target": Parameter(_TEXT, "A target's label."),
                    "client": Parameter(
                        {"type": "string", "format": "client"},
                        "An IP address, a network as `10.0.0.0/8`, or `ADDR:PORT`.",
                    ),
                    "limit": Parameter(
                        {
                            "type": "integer",
                            "minimum": 0,
                            "maximum": _MOST_SHOWN,
                            "default": SHOWN,
                        },
                        "So many at most; 0: all.",
                    ),
                },
                answers={200: SessionsShown, 503: Wrong},
            ),
            Route(
                method="DELETE",
                path="/v1/sessions/{session}",
                text="End a session now; it is told as it was.",
                call=self._end_session,
                names={"session": Parameter(_TEXT, "Its name, as of the access log.")},
                answers={200: SessionShown, 404: Wrong},
            ),
            get(
                path="/v1/pools",
                text="All pools and their targets.",
                call=self._pools,
                answers={200: Pools},
            ),
            Route(
                method="PATCH",
                path="/v1/pools/{pool}/targets/{target}",
                text="Want a target to be so from now on, until a restart.",
                call=self._steer_target,
                names={
                    "pool": Parameter(_TEXT, "A pool's name."),
                    "target": Parameter(_TEXT, "A target's label; `%2F` for a slash in it."),
                },
                body={
                    "state": Parameter(
                        {"type": "string", "enum": list(TARGET_STATES)},
                        "`drain`: no new sessions; `down`: as if found down; `ready`: neither.",
                    ),
                    "weight": Parameter(
                        {"type": "integer", "minimum": 1, "maximum": HEAVIEST},
                        "Its part of the pool's sessions, beside the others' weights.",
                    ),
                },
                needs_body=True,
                answers={200: TargetShown, 404: Wrong},
            ),
            post(
                path="/v1/reload",
                text="Read the configuration anew, as SIGHUP does; where it is wrong, nothing changes.",
                call=self._reload,
                body={},
                answers={200: Reloaded, 409: Wrong, 422: AllWrong},
            ),
            post(
                path="/v1/check",
                text="Whether a reload would do; nothing changes.",
                call=self._check,
                body={},
                answers={200: Checked},
            ),
            post(
                path="/v1/drain",
                text="Accept nobody, let sessions end, and stop, as SIGTERM does.",
                call=self._drain,
                body={
                    "now": Parameter(
                        {"type": "boolean"}, "Cut all sessions, as a second SIGTERM does."
                    )
                },
                answers={202: Drained, 409: Wrong},
            ),
            get(
                path="/v1/events",
                text=(
                    "The relay, live: a `status` event each second, whose data is a StatusEvent, and a `session` event "
                    "(SessionOpenedEvent, SessionEndedEvent) as each session begins and ends, 100 a second at most. "
                    "`dropped` (DroppedEvent) tells one that didn't read what was missed."
                ),
                call=self._events,
                answers={200: stream, 503: Wrong},
            ),
            get(
                path="/v1/trace",
                text=(
                    "What is decided about new sessions, step by step: `trace` events, whose data is a TraceStep; "
                    "`dropped` as of /v1/events. The comment `following` comes first: sessions are followed from "
                    "there on."
                ),
                call=self._trace,
                query={
                    "client": Parameter(
                        {"type": "string", "format": "network"},
                        "Whose sessions: an IP address, or a network as `10.0.0.0/8`; else everybody's.",
                    )
                },
                answers={200: stream, 503: Wrong},
            ),
            get(
                path="/v1/openapi.json",
                text="This description.",
                call=self._describe,
                answers={200: "application/json"},
            ),
        )


def _named(text: str) -> str:
    """@return: what somebody asked for, for the log: a line that does nothing to a terminal."""
    return printable(text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…")


def _content_type(request: AdminRequest) -> list[bytes]:
    return list(request.requestHeaders.getRawHeaders(b"Content-Type", []))

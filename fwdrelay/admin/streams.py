"""
Server-sent events (the HTML standard, section 9.2): those who listen, and what they are told.

All who listen to `/v1/events` share one look at the relay each second, and nobody looks while nobody listens.
Who doesn't read is told nothing meanwhile, but how much it was when it reads again; their connection
(`channel`) is cut if that takes too long.
"""

from __future__ import annotations

import contextlib
import json
import socket
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from ..networks import Networks
from ..observe.access_log import fields
from ..observe.feed import SessionEvent, SessionOpened
from ..observe.snapshot import moment
from ..observe.trace import TraceStep
from .administered import Administered
from .answer import Answer, Refused, fields_of, json_text
from .request import AdminRequest

MOST = 64
"""Who listen at a time."""
HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, for proxies that cut what is silent."""
RETRY = b"retry: 1000\n\n"
"""Milliseconds after which a browser connects again."""
FOLLOWING = b": following\n\n"
_BEAT = b":\n\n"
_STATUS_EVERY = 1.0
_SEND_BUFFER = 1 << 16
"""Bytes that the kernel keeps for one that doesn't read; by itself it would take megabytes."""
_HEADERS = {"X-Accel-Buffering": "no"}  # nginx would wait for more


def event(name: str, data: str) -> bytes:
    """
    @param data: JSON, which is one line.
    """
    return f"event: {name}\ndata: {data}\n\n".encode()


def session_event(told: SessionEvent) -> bytes:
    """
    @return: the event with the fields of the access log.
    """
    word = "opened" if isinstance(told, SessionOpened) else "ended"
    return event("session", json_text({"event": word, **fields(told)}))


def trace_event(step: TraceStep) -> bytes:
    """@param step: what was decided."""
    return event("trace", json_text({**fields_of(step), "time": moment(step.time)}))


@implementer(IPushProducer)
class Stream:
    """
    One who listens.

    @param hello: what it is told first.
    @ivar left: fires when it is gone.
    """

    def __init__(self, request: AdminRequest, reactor: Any, hello: bytes) -> None:
        self._request = request
        self._paused = False
        self._dropped = 0
        self._newest = b""
        self.left: Deferred[None] = Deferred()
        request.notifyFinish().addBoth(self._gone)
        request.endless = True
        handle = request.channel.transport.getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        request.write_head(Answer(HTTPStatus.OK, b"", "text/event-stream", _HEADERS))
        self._beat: IDelayedCall | None = reactor.callLater(HEARTBEAT, self._still_here)
        self._reactor = reactor
        request.registerProducer(self, True)
        request.write(hello)

    def tell(self, told: bytes) -> None:
        """An event; who doesn't read misses it."""
        if self._paused:
            self._dropped += 1
        else:
            self._write(told)

    def tell_newest(self, told: bytes) -> None:
        """What makes the last of its kind worthless; who doesn't read gets the newest when they do."""
        if self._paused:
            self._newest = told
        else:
            self._write(told)

    def _write(self, told: bytes) -> None:
        if self._beat is not None:
            self._beat.reset(HEARTBEAT)
            self._request.write(told)

    def _still_here(self) -> None:
        self._beat = self._reactor.callLater(HEARTBEAT, self._still_here)
        if not self._paused:
            self._request.write(_BEAT)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        dropped, self._dropped = self._dropped, 0
        newest, self._newest = self._newest, b""
        if dropped:
            self._write(event("dropped", json.dumps({"events": dropped})))
        if newest:
            self._write(newest)

    def stopProducing(self) -> None:
        """Its connection is closed; that is heard of by `left`."""

    def close(self) -> None:
        """Tell it that this was all."""
        self._request.unregisterProducer()
        self._request.finish()

    def _gone(self, reason: object) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        self.left.callback(None)


class Streams:
    """All who listen to one relay."""

    log = Logger()

    def __init__(self, relay: Administered, reactor: Any) -> None:
        self._relay = relay
        self._reactor = reactor
        self._all: set[Stream] = set()
        self._events: set[Stream] = set()
        self._status: LoopingCall | None = None
        self._looking: Deferred[None] | None = None
        self._unsubscribe: Any = None
        self._latest = b""
        self._failing = False

    def check_room(self) -> None:
        """
        @raise Refused: too many listen.
        """
        if len(self._all) >= MOST:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MOST} listen already: that is the most",
                {"Retry-After": "5"},
            )

    def follow_events(self, request: AdminRequest) -> None:
        """Tell it of the relay each second, and of sessions as they begin and end."""
        stream = self._stream(request, RETRY)
        self._events.add(stream)
        stream.left.addCallback(lambda _: self._no_more_events(stream))
        if self._latest:
            stream.tell_newest(self._latest)
        if self._status is None:
            self._unsubscribe = self._relay.subscribe(self._tell_session)
            self._status = LoopingCall(self._look)
            self._status.clock = self._reactor
            self._status.start(_STATUS_EVERY)

    def follow_sessions(self, request: AdminRequest, clients: Networks | None) -> None:
        """Tell it what is decided about new sessions of these clients; None: everybody's."""
        stream = self._stream(request, FOLLOWING)
        leave = self._relay.trace(clients, lambda step: stream.tell(trace_event(step)))
        stream.left.addCallback(lambda _: leave())

    def stop(self) -> None:
        """Tell everybody that this was all."""
        for stream in list(self._all):
            stream.close()

    def _stream(self, request: AdminRequest, hello: bytes) -> Stream:
        stream = Stream(request, self._reactor, hello)
        self._all.add(stream)
        stream.left.addCallback(lambda _: self._all.discard(stream))
        return stream

    def _no_more_events(self, stream: Stream) -> None:
        self._events.discard(stream)
        if self._events or self._status is None:
            return
        status, self._status = self._status, None
        status.stop()
        if self._looking is not None:
            self._looking.cancel()
        self._unsubscribe()
        self._latest = b""

    def _tell_session(self, told: SessionEvent) -> None:
        text = session_event(told)
        for stream in list(self._events):
            stream.tell(text)

    def _look(self) -> Deferred[None]:
        self._looking = looking = Deferred.fromCoroutine(self._tell_status())
        return looking

    async def _tell_status(self) -> None:
        try:
            with contextlib.suppress(CancelledError):
                self._latest = await self._snapshot()
                for stream in list(self._events):
                    stream.tell_newest(self._latest)
            self._failing = False
        except Exception:
            if not self._failing:
                self.log.failure("The relay's status could not be told")
            self._failing = True
        finally:
            self._looking = None

    async def _snapshot(self) -> bytes:
        status, pools = await self._relay.status(), await self._relay.pools()
        whole = {
            **fields_of(status),
            "pools": pools,
            "events_skipped": self._relay.events_skipped,
        }
        return event("status", json_text(whole))

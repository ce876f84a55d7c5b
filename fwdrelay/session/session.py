"""
One relayed connection, from accept to its one end.

The story, read from the top: `Session.open` waits until the client has said where it goes, if it has to;
`Session.begin` elects a target, or waits for one; `Session._dial` opens the
connection to it; `Session._dialed` wires the two transports;
the sides report ends and resets; `Session._close` is the one way out. Bytes don't pass through here.

A session whose flows are *kept* (see `fwdrelay.pump.stream`) is all in its descriptors, and what a
`PortableSession` says. It may leave this process by `Session.detach`, and come into another one by `Session.adopt`.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..config import Timeouts
from ..deadlines import Deadlines
from ..dial import AllFailed, Dialed, Dialer
from ..observe.trace import Trace
from ..pump.secure import Truncated
from ..pump.spliced import Adoption
from ..pump.stream import Stream
from ..pump.tcp_info import FlowOrigin, look
from ..upstream import Pool, Target
from ..words import counted
from .lifecycle import Input, Reason, State, after, code
from .portable import PortableSession
from .side import Side, UpstreamSide

_REASON_OF_CAUSE = {
    "timeout": Reason.DIAL_TIMEOUT,
    "no-resources": Reason.NO_RESOURCES,
}
# What makes a session's name unique among the relay processes of a machine.
_RUN = f"{int(time.time()):x}-{os.getpid():x}"
_BEFORE_RELAYING = (State.OPENING, State.QUEUED, State.DIALING)
_WHILE_RELAYING = (State.RELAYING, State.HALF_CLOSED)
# How often to look whether a peer has acknowledged everything: the first and the longest wait.
_FIRST_LOOK = 0.005
_LONGEST_LOOK = 0.5
# How often to look whether the first bytes of a session that is followed have come: as the two above.
_FIRST_BYTES_LOOK = 0.01
_LONGEST_FIRST_BYTES_LOOK = 1.0
# SO_LINGER, socket(7): what the last close of a socket says by itself.
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_END_AT_CLOSE = struct.pack("ii", 0, 0)
# As plain numbers: where there are workers, each session asks for it twice.
_SOCKET, _LINGER = int(socket.SOL_SOCKET), int(socket.SO_LINGER)


class IKeeping(Protocol):
    """Sees to it that sessions outlive this process; see `Session.keep`."""

    def relaying(self, session: Session) -> None:
        """`session` has just begun to relay; or it goes on in the ordinary way, after `ended`."""

    def ended(self, session: Session) -> None:
        """
        A session that was kept isn't any more: it is over, and all was said to its peers that is to be said. Or it is
        still open but can't be kept for the time being, and by the end of this turn nobody may take it over.
        """


def _nobody(session: Session) -> None:
    """Wants to know."""


@frozen(eq=False)
class Policy:
    """
    What all sessions of one listener share.

    @ivar idle: how long both sides may be silent, in seconds.
    @ivar half_closed: the same once one side has ended.
    @ivar lifetime: how long a session may last.
    @ivar clock: `twisted.internet.interfaces.IReactorTime`.
    @ivar ended: told of each session that has ended, once.
    @ivar moved: told of each that another process goes on with, instead.
    @ivar keeping: told of sessions that may outlive this process; None: none does. If there is one, a session that is
        lost with this process is reset, so that it can't be taken for a complete one.
    """

    timeouts: Timeouts
    dialer: Dialer
    deadlines: Deadlines
    clock: Any
    ended: Callable[[Session], None]
    moved: Callable[[Session], None] = _nobody
    keeping: IKeeping | None = None
    idle: float = field(init=False)
    half_closed: float = field(init=False)
    lifetime: float = field(init=False)

    @idle.default
    def _idle(self) -> float:
        return self.timeouts.idle or math.inf

    @half_closed.default
    def _half_closed(self) -> float:
        return min(self.idle, self.timeouts.half_close or math.inf)

    @lifetime.default
    def _lifetime(self) -> float:
        return self.timeouts.lifetime or math.inf


class IOpening(Protocol):
    """What a client is asked for before it is known where it goes; it tells its session what came of it."""

    def begin(self) -> None:
        """Ask. `Session.opened` or `Session.not_opened` may be called before this returns."""

    def give_up(self) -> None:
        """The session is over; nothing may be told any more."""


@define(eq=False)
class Session:
    """
    @ivar number: counts the sessions of this process.
    @ivar pool: where it goes; None for one that may go nowhere.
    @ivar state: where it is, by the table of `fwdrelay.session.lifecycle`.
    @ivar started: when the client was accepted, by the policy's clock.
    @ivar tried: the targets that it could not be connected to; while it is dialing, and the one that is tried now.
    @ivar waited: seconds spent in the pool's queue.
    @ivar connected: when the upstream connection was there, or None.
    @ivar reason: why it ended; set as soon as that is decided.
    @ivar error: what the system said about it.
    @ivar code: HAProxy's two letters, once it has ended.
    @ivar trace: follows it; None, as for nearly all: nobody does.
    @ivar before: what another process said of it, from which it came; None, as for nearly all: from none.
    """

    log: ClassVar[Logger] = Logger()

    policy: Policy
    number: int
    client: Side
    started: float
    pool: Pool | None
    state: State = State.ACCEPTED
    upstream: Side | None = None
    target: Target | None = None
    tried: Sequence[Target] = ()
    waited: float = 0.0
    connected: float | None = None
    reason: Reason | None = None
    error: str | None = None
    code: str = ""
    trace: Trace | None = None
    bucket: set[Any] | None = None
    before: PortableSession | None = None
    _origins: tuple[FlowOrigin | None, FlowOrigin | None] | None = None
    _opening: IOpening | None = None
    _lingers: bool = False
    _dialing: Deferred[Any] | None = None
    _settling: Any = None
    _unsent: int = 0
    _changed: float = 0.0

    def begin(self) -> None:
        """The client is admitted; it is paused. Dial."""
        self.client.session = self
        self.state = after(self.state, Input.ADMITTED)
        policy = self.policy
        if policy.lifetime < math.inf:
            policy.deadlines.set(self, self.started + policy.lifetime)
        self._elect()

    @property
    def name(self) -> str:
        """What log and API call it, wherever it goes."""
        return f"{_RUN}-{self.number:x}" if self.before is None else self.before.session

    @property
    def pool_name(self) -> str | None:
        """Of the pool that it goes to, which there may be no more; None: it did not get as far."""
        if self.pool is not None:
            return self.pool.name
        return None if self.before is None else self.before.pool or None

    @property
    def carried(self) -> tuple[int, int]:
        """How many bytes had gone up and down before it came into this process."""
        return (0, 0) if self.before is None else (self.before.bytes_up, self.before.bytes_down)

    def tell(self, step: str, detail: str) -> None:
        """Tell whoever follows it."""
        if self.trace is not None:
            self.trace.tell(step, detail)

    @property
    def client_host(self) -> str | None:
        """The client's IP address, where the pool elects by it."""
        pool = self.pool
        return self.client.host if pool is not None and pool.by_client else None

    @property
    def retries(self) -> int:
        """How many targets were tried after the first."""
        if self.before is not None:
            return self.before.retries
        return max(len(self.tried) - (self.upstream is None), 0)

    def _elect(self) -> None:
        """Go to a target, or wait for one that has a place."""
        pool = self.pool
        assert pool is not None
        # Nobody passes those who wait.
        target = None if pool.waiting else pool.elect(self.client_host, self.tried)
        if target is not None:
            self._dial(target)
        elif pool.waiting or pool.may_wait(self.tried):
            self._queue(pool)
        else:
            self.error = pool.why_none()
            self._close(Input.DIAL_FAILED, Reason.NO_TARGET)

    def _queue(self, pool: Pool) -> None:
        self.state = after(self.state, Input.QUEUED)
        others = pool.waiting
        if not pool.wait(self):
            self._close(Input.REFUSED, Reason.QUEUE_FULL)
            return
        if self.trace is not None:
            self.trace.tell("queued", f"behind {counted(others, 'other')}: {pool.why_none()}")
        self._changed = self.policy.clock.seconds()
        self._wait()

    def place_found(self, target: Target) -> None:
        """Told by the pool: `target` was elected for this session, which waits no more."""
        self.state = after(self.state, Input.PLACE_FOUND)
        self.waited += self.policy.clock.seconds() - self._changed
        self._wait()
        self._dial(target)

    def no_place(self) -> None:
        """Told by the pool: there is nothing to wait for any more."""
        assert self.pool is not None
        self.error = self.pool.why_none()
        self._close(Input.DIAL_FAILED, Reason.NO_TARGET)

    def _dial(self, target: Target) -> None:
        policy, pool = self.policy, self.pool
        assert pool is not None
        if self.trace is not None:
            self.trace.tell("elected", f"{target.label}: {pool.why(target, self.tried)}")
        build: Callable[[], UpstreamSide] = UpstreamSide
        version = pool.config.send_proxy
        if version != "off":
            build = partial(UpstreamSide, self.client.proxy_header(version))
        self.tried = tried = [*self.tried]
        dialing = policy.dialer.dial(
            pool,
            target,
            policy.timeouts.connect,
            build,
            self.client_host,
            tried,
            self.trace,
        )
        self._dialing = dialing
        dialing.addCallbacks(self._dialed, self._dial_failed)

    def open(self, opening: IOpening) -> None:
        """The client is asked for what tells where it goes; it is paused."""
        self.client.session = self
        self.state = after(self.state, Input.ASKED)
        self._opening = opening
        self._wait()
        opening.begin()

    def opened(self, pool: Pool | None) -> None:
        """
        It is known where the client goes.

        @param pool: None: nowhere.
        """
        self._opening = None
        self.pool = pool
        if pool is None:
            self.refuse(Reason.NO_ROUTE)
        else:
            self.begin()

    def not_opened(
        self, reason: Reason, detail: str | None, *, late: bool = False, answered: bool = False
    ) -> None:
        """
        The client did not say, or not in time, what it has to say, or may not enter.

        @param detail: what went wrong, for the log.
        @param late: it was for lack of time.
        @param answered: it was told so, and should be able to read that.
        """
        self.error = detail
        self.tell("refused", detail or reason.word)
        self._lingers = answered
        self._close(Input.TIMED_OUT if late else Input.REFUSED, reason)

    def refuse(self, reason: Reason, why: str | None = None) -> None:
        """The client may not enter; `why` is for the log."""
        self.error = why
        self.tell("refused", why or reason.word)
        self._close(Input.REFUSED, reason)

    def cut(self, reason: Reason) -> None:
        """End it now, whatever is under way; both sides are reset. Once it has ended, does nothing."""
        if self.state is not State.CLOSED:
            self._close(Input.CUT, reason)

    def _dialed(self, dialed: Dialed[UpstreamSide]) -> None:
        self._dialing = None
        self.target, self.tried = dialed.target, dialed.failed
        self.connected = self._changed = self.policy.clock.seconds()
        self.state = after(self.state, Input.DIALED)
        client, upstream = self.client, dialed.protocol
        self.upstream = upstream
        upstream.session = self
        client.sink, upstream.sink = upstream.transport, client.transport
        client.transport.registerProducer(upstream.transport, True)
        upstream.transport.registerProducer(client.transport, True)
        client.transport.resumeProducing()
        upstream.transport.resumeProducing()
        self._wait()
        if self.trace is not None:
            self.trace.tell("connected", f"{dialed.target.label}; relaying")
            self._look_for_first_bytes(self.trace, _FIRST_BYTES_LOOK)
        if client.reset is not None:  # see _has_more_to_say
            self.side_reset(client)
        # Before this session could be told of it; and the client's reset may have ended it.
        if upstream.reset is not None and self.state is not State.CLOSED:
            self.side_reset(upstream)
        if upstream.gone:
            self.side_gone(upstream)
        keeping = self.policy.keeping
        if keeping is not None and self.state is not State.CLOSED:
            self._say_at_close(_RESET_AT_CLOSE)
            keeping.relaying(self)

    def _say_at_close(self, what: bytes) -> None:
        for side in (self.client, self.upstream):
            if side is not None and not side.gone:
                with contextlib.suppress(OSError):
                    side.transport.getHandle().setsockopt(_SOCKET, _LINGER, what)

    # What outlives this process.

    @property
    def may_move(self) -> bool:
        """
        Whether it is a session that can be kept, as far as is known: of plain sockets that the kernel moves all bytes
        between, both ways, and nothing has gone wrong.
        """
        if self.state not in _WHILE_RELAYING:
            return False
        client, upstream = self.client, self.upstream
        assert upstream is not None
        if client.reset or upstream.reset or client.discards or upstream.discards:
            return False
        up, down = client.transport, upstream.transport
        return (
            isinstance(up, Stream)
            and isinstance(down, Stream)
            and up.may_be_kept
            and down.may_be_kept
            and (client.ended or up.sink is down)
            and (upstream.ended or down.sink is up)
        )

    @property
    def kept(self) -> bool:
        """Whether its flows are kept, as far as they still flow."""
        return self._origins is not None

    def keep(self) -> tuple[int, int, int, int] | None:
        """
        Keep its flows from now on.

        @return: the descriptors of the client's socket, the target's, and the pipes of the flows up and down, which
            stay the session's. None: it can't be just now, and goes on as it did.
        """
        if not self.may_move:
            return None
        assert self.upstream is not None
        client, upstream = self.client.transport, self.upstream.transport
        was_kept = self.kept
        up = upstream.keep(self._in_the_way)
        down = None if up is None else client.keep(self._in_the_way)
        if self._origins is None and up is not None and down is not None:
            self._origins = self._find_origins(client, upstream, up.held, down.held)
        if up is None or down is None or self._origins is None:
            if was_kept:
                self._in_the_way()
            else:
                self.unkeep()
            return None
        return client.fd, upstream.fd, up.read_end, down.read_end

    def _find_origins(
        self, client: Stream, upstream: Stream, held_up: int, held_down: int
    ) -> tuple[FlowOrigin | None, FlowOrigin | None] | None:
        """
        @return: None where a connection is over, which its stream will hear of.
        """
        at_client, at_upstream = look(client.socket), look(upstream.socket)
        if (at_client and at_client.closed) or (at_upstream and at_upstream.closed):
            return None
        return (
            FlowOrigin.of(at_client, at_upstream, held_up, client.received),
            FlowOrigin.of(at_upstream, at_client, held_down, upstream.received),
        )

    def unkeep(self) -> None:
        """Go on in the ordinary way; whoever held its descriptors must have let go, or will without looking."""
        self._origins = None
        for side in (self.client, self.upstream):
            if side is not None and not side.gone and isinstance(side.transport, Stream):
                side.transport.unkeep()

    def _in_the_way(self) -> None:
        """Told by a stream: something has come that a kept flow can't pass on."""
        self.unkeep()
        keeping = self.policy.keeping
        if keeping is None or self.upstream is None:
            return
        # Nothing may be lost with this process while somebody thinks that nothing would be.
        self.client.transport.pauseProducing()
        self.upstream.transport.pauseProducing()
        keeping.ended(self)
        self.policy.clock.callLater(0, self._let_turn_pass)

    def _let_turn_pass(self) -> None:
        self.policy.clock.callLater(0, self._go_on_unkept)

    def _go_on_unkept(self) -> None:
        upstream, keeping = self.upstream, self.policy.keeping
        if self.state is State.CLOSED or upstream is None or keeping is None:
            return
        self.client.transport.resumeProducing()
        upstream.transport.resumeProducing()
        keeping.relaying(self)

    def portable(self) -> PortableSession:
        """What its descriptors don't say; for one that is kept."""
        upstream, target = self.upstream, self.target
        assert self._origins is not None
        assert upstream is not None
        assert target is not None
        epoch = time.time() - self.policy.clock.seconds()
        up, down = self._origins
        portable = PortableSession(
            session=self.name,
            listener="",
            client="",
            pool=self.pool_name or "",
            target=target.label,
            address=target.config.address,
            started=epoch + self.started,
            connected=epoch + (self.started if self.connected is None else self.connected),
            waited=self.waited,
            retries=self.retries,
            bytes_up=self.client.received,
            bytes_down=upstream.received,
            up_read=None if up is None else up.read,
            up_written=None if up is None else up.written,
            down_read=None if down is None else down.read,
            down_written=None if down is None else down.written,
        )
        return self.client.introduce(portable)

    def detach(self) -> None:
        """
        Forget it: another process goes on with it, or will. It must be kept, and nobody is told anything. Whoever gets
        its descriptors may move bytes only after this.
        """
        self.state = after(self.state, Input.MOVED)
        self._origins = None
        if self.trace is not None:
            self._end_trace(self.trace, "moved to another process")
        try:
            self.policy.moved(self)
        finally:
            self._stop_waiting()
            for side in (self.client, self.upstream):
                assert side is not None
                side.session = None
                if not side.gone:
                    side.transport.detach()
            if self.pool is not None and self.target is not None:
                self.pool.release(self.target)

    def adopt(self, adoption: Adoption, portable: PortableSession, upstream: Side) -> None:
        """
        Be the session that another process has detached, or left behind; its `pool` and `target` are known, and this
        is counted there. It is kept.

        @param adoption: of its descriptors.
        @param upstream: the side that is to have the target.
        """
        policy = self.policy
        now = policy.clock.seconds()
        epoch = time.time() - now
        passed_up, passed_down = adoption.passed_up, adoption.passed_down
        self.before = evolve(
            portable,
            bytes_up=portable.bytes_up if passed_up is None else passed_up,
            bytes_down=portable.bytes_down if passed_down is None else passed_down,
        )
        self.started = portable.started - epoch
        self.connected = portable.connected - epoch
        self.waited = portable.waited
        self._changed = now
        self._origins = portable.origins
        self.state = State.RELAYING
        client = self.client
        self.upstream = upstream
        client.session = upstream.session = self
        client.sink, upstream.sink = adoption.upstream, adoption.client
        adoption.begin(client, upstream, self.carried, self._in_the_way)
        if policy.keeping is not None:
            self._say_at_close(_RESET_AT_CLOSE)
        self._wait()

    # On its way.

    def _look_for_first_bytes(self, trace: Trace, wait: float) -> None:
        """The byte path tells nobody of bytes."""
        trace.looking = None
        self._tell_first_bytes(trace)
        if trace.heard and not (trace.told_up and trace.told_down):
            longer = min(wait * 2, _LONGEST_FIRST_BYTES_LOOK)
            trace.looking = self.policy.clock.callLater(
                wait, self._look_for_first_bytes, trace, longer
            )

    def _tell_first_bytes(self, trace: Trace) -> None:
        client, upstream = self.client, self.upstream
        if not trace.told_up and upstream is not None and client.received:
            trace.told_up = True
            trace.tell("first-byte-up", f"{counted(client.received, 'byte')} so far", client.heard)
        if not trace.told_down and upstream is not None and upstream.received:
            trace.told_down = True
            trace.tell(
                "first-byte-down", f"{counted(upstream.received, 'byte')} so far", upstream.heard
            )

    def _dial_failed(self, failure: Failure) -> None:
        self._dialing = None
        if self.state is State.CLOSED:
            return  # cancelled, because the session is over
        failed = failure.value
        if not isinstance(failed, AllFailed):
            self.log.failure("A dial went wrong in a way it never should", failure)
            self.error = repr(failed)
            self._close(Input.CUT, Reason.INTERNAL_ERROR)
            return
        self.tried = failed.tried
        pool = self.pool
        assert pool is not None
        if len(self.tried) <= pool.config.retries and pool.may_wait(self.tried):
            self._queue(pool)  # those that are left are only full
            return
        self.error = failed.detail
        self._close(Input.DIAL_FAILED, _REASON_OF_CAUSE.get(failed.cause, Reason.DIAL_FAILED))

    def side_ended(self, side: Side) -> None:
        """`side` has sent its last byte. The other is told when it has been given everything."""
        if self.trace is not None:
            self._tell_first_bytes(self.trace)
            who = "client" if side is self.client else "upstream"
            self.trace.tell(f"{who}-ended", f"after {counted(side.received, 'byte')}")
        self.state = after(self.state, Input.SIDE_ENDED)
        self._changed = self.policy.clock.seconds()
        other = self._other(side)
        if other.reset is None:
            # A producer that stays registered while it is paused holds the end back for ever.
            other.transport.unregisterProducer()
            to = other.transport
            if to.secured is not None:
                # Many answer a close_notify by closing. Who was to answer something else has to say its end.
                to.lenient = other is self.client or other.received > 0
            if other.ended and side.delivered and not to.unsent_here() and to.secured is None:
                # Both have ended and nothing waits: closing says the rest.
                other.delivered = True
            else:
                to.loseWriteConnection()
        self.end_delivered()
        if self.state is not State.CLOSED:
            self._wait()

    def end_delivered(self) -> None:
        """A side was told of the other's end, after all its bytes. Were both, nothing is left to do."""
        client, upstream = self.client, self.upstream
        assert upstream is not None
        if (
            self.state is State.HALF_CLOSED
            and (client.gone or (client.ended and client.delivered))
            and (upstream.gone or (upstream.ended and upstream.delivered))
            and (client.ended or upstream.ended)
        ):
            self._close(Input.DELIVERED, Reason.DONE, orderly=True)

    def side_reset(self, side: Side) -> None:
        """
        `side`'s connection broke. What it sent before is still passed on (rule 14), then the other
        side is reset too, unless `side` had ended cleanly before: then the reset is how some close,
        and must not cost the other side anything (rule 3).
        """
        from_client = side is self.client
        if self.error is None:
            self.error = getattr(side.reset, "strerror", None) or str(side.reset)
        if self.trace is not None:
            self._tell_first_bytes(self.trace)
            who = "client" if from_client else "upstream"
            self.trace.tell(
                f"{who}-reset", getattr(side.reset, "strerror", None) or str(side.reset)
            )
        if self.state in _BEFORE_RELAYING:
            if not self._has_more_to_say(side):
                self._close(Input.SIDE_RESET, Reason.CLIENT_LEFT)
            return
        self.state = after(self.state, Input.SIDE_RESET)
        if self.reason is None:
            if isinstance(side.reset, Truncated):
                self.reason = Reason.CLIENT_TRUNCATED if from_client else Reason.UPSTREAM_TRUNCATED
            else:
                self.reason = Reason.CLIENT_RESET if from_client else Reason.UPSTREAM_RESET
        self._changed = self.policy.clock.seconds()
        other = self._other(side)
        if other.reset is not None:
            self._close(Input.DELIVERED, self.reason)
            return
        side.transport.unregisterProducer()
        # Not paused: one that blocks on its writes would never read what there is for it.
        other.discard_bytes()
        self._wait()

    def _has_more_to_say(self, client: Side) -> bool:
        """
        Whether a client that was reset may have said all before, and its end. With TLS it may: whoever closes
        without having read what TLS says after the handshake (tickets) resets by that. What it sent waits to
        be read, and tells.
        """
        return (
            self.state is not State.OPENING
            and client.transport.secured is not None
            and client.transport.unread_here() > 0
        )

    def side_gone(self, side: Side) -> None:
        """`side`'s transport is closed, and not by this session; all that it sent was read."""
        if side.reset is None:
            side.reset = ConnectionError("closed unexpectedly")
            self.side_reset(side)
        if self.state is State.CLOSED:
            return
        if self.state in _BEFORE_RELAYING:
            self._close(Input.SIDE_RESET, Reason.CLIENT_LEFT)
            return
        other = self._other(side)
        if side.ended and other is self.client:
            # It has a whole answer to read: its end is awaited, for the half-close time-out.
            self.end_delivered()
            return
        other.transport.unregisterProducer()
        self._settle(other, _FIRST_LOOK)

    def _settle(self, side: Side, wait: float) -> None:
        """Reset `side` once its peer has acknowledged everything: a reset drops what is under way."""
        self._settling = None
        if side.transport.unsent() == 0:
            assert self.reason is not None
            self._close(Input.DELIVERED, self.reason)
            return
        longer = min(wait * 2, _LONGEST_LOOK)
        self._settling = self.policy.clock.callLater(wait, self._settle, side, longer)

    def _other(self, side: Side) -> Side:
        other = self.upstream if side is self.client else self.client
        assert other is not None
        return other

    def _due(self, since: float) -> float:
        """
        @return: when to look again, if nothing is heard after `since`.
        """
        policy, state = self.policy, self.state
        if state is State.HALF_CLOSED:
            patience = policy.half_closed
        elif state is State.RELAYING:
            patience = policy.idle
        elif state is State.QUEUED:
            assert self.pool is not None
            # Without a queue, it is awaited that the pool's targets are found out.
            patience = self.pool.config.queue or policy.timeouts.connect or math.inf
        else:
            patience = math.inf
        return min(since + patience, self.started + policy.lifetime)

    def _wait(self) -> None:
        due = self._due(self.policy.clock.seconds())
        if due < math.inf:
            self.policy.deadlines.set(self, due)
        else:
            self.policy.deadlines.discard(self)

    def overdue(self, now: float) -> float | None:
        """Asked by the deadlines: is time up? A peer that takes bytes, however slowly, isn't idle."""
        end = self.started + self.policy.lifetime
        if now >= end:
            self._close(Input.TIMED_OUT, Reason.LIFETIME)
            return None
        if self.upstream is None:
            due = self._due(self._changed)
            if self.state is State.QUEUED and now >= due:
                assert self.pool is not None
                self.error = self.pool.why_none()
                self._close(Input.TIMED_OUT, Reason.QUEUE_TIMEOUT)
                return None
            return due if due < math.inf else None
        due = self._due(max(self.client.heard, self.upstream.heard, self._changed))
        if now < due:
            return due
        unsent = self.client.transport.unsent() + self.upstream.transport.unsent()
        if unsent and unsent != self._unsent:
            self._unsent = unsent
            return self._due(now)
        self._close(Input.TIMED_OUT, self._who_was_silent(self.upstream))
        return None

    def _who_was_silent(self, upstream: Side) -> Reason:
        """Who kept the session waiting: who takes no bytes, or else who was to speak next."""
        if self.client.transport.unsent():
            client_silent = True
        elif upstream.transport.unsent():
            client_silent = False
        elif self.client.ended or upstream.ended:
            client_silent = not self.client.ended
        else:
            client_silent = upstream.heard >= self.client.heard
        if self.state is State.HALF_CLOSED:
            return Reason.CLIENT_HALF_CLOSED if client_silent else Reason.UPSTREAM_HALF_CLOSED
        return Reason.CLIENT_IDLE if client_silent else Reason.UPSTREAM_IDLE

    def _close(
        self,
        happened: Input,
        reason: Reason,
        orderly: bool = False,
    ) -> None:
        """The one way out."""
        ended_in, self.state = self.state, after(self.state, happened)
        if ended_in is State.QUEUED and reason is not Reason.QUEUE_FULL:
            self.waited += self.policy.clock.seconds() - self._changed
        if self.reason is None:
            self.reason = reason
        self.code = code(self.reason, ended_in)
        elected = self.target
        if elected is None and self.tried:
            self.target = self.tried[-1]
        if self.trace is not None:
            self._end_trace(self.trace, f"{self.reason.word} ({self.code})")
        try:
            self.policy.ended(self)  # while the sockets can still be asked for their addresses
        finally:
            self._let_go(orderly, ended_in)
            if elected is not None and self.pool is not None:
                self.pool.release(elected)
            if self._origins is not None:
                self._origins = None
                if self.policy.keeping is not None:
                    self.policy.keeping.ended(self)

    def _end_trace(self, trace: Trace, how: str) -> None:
        self._tell_first_bytes(trace)
        if trace.looking is not None:
            trace.looking.cancel()
            trace.looking = None
        down = 0 if self.upstream is None else self.upstream.received
        up = counted(self.client.received, "byte")
        told = f"{how}; {up} up, {down} down"
        trace.end(told if self.error is None else f"{told}; {self.error}")

    def _remember(self) -> None:
        """What TLS agreed on with the target makes the next handshake cheaper."""
        pool, upstream = self.pool, self.upstream
        if pool is None or pool.tls is None or upstream is None or upstream.gone:
            return
        secured = upstream.transport.secured
        if secured is not None:
            assert self.target is not None
            pool.tls.remember(secured, self.target.config)

    def _stop_waiting(self) -> None:
        self.policy.deadlines.discard(self)
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    def _let_go(self, orderly: bool, ended_in: State) -> None:
        if ended_in is State.QUEUED:
            assert self.pool is not None
            self.pool.leave(self)
        self._stop_waiting()
        if self._opening is not None:
            self._opening.give_up()
            self._opening = None
        if self._dialing is not None:
            self._dialing.cancel()
        self._remember()
        if orderly and self.policy.keeping is not None:
            self._say_at_close(_END_AT_CLOSE)
        for side in (self.client, self.upstream):
            if side is None:
                continue
            side.session = None
            if side.gone:
                continue
            if self._lingers:
                side.transport.linger()
            elif orderly:  # both have ended, so neither feeds the other any more
                side.transport.loseConnection()
            else:
                side.transport.unregisterProducer()
                side.transport.abortConnection()

"""
Sessions that go from one process to another, on real sockets: two listeners stand for the processes, each with a pump
and a pool of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from attrs import evolve
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed

from fwdrelay.config import Admit, KeepAlive, ListenerConfig, Timeouts
from fwdrelay.deadlines import Deadlines
from fwdrelay.dial import Dialed
from fwdrelay.frontend.listener import ClientProtocol, Listener
from fwdrelay.frontend.totals import Totals
from fwdrelay.observe.audience import Audience
from fwdrelay.observe.events import SessionEnded
from fwdrelay.observe.feed import Feed
from fwdrelay.observe.trace import Tracer, TraceStep
from fwdrelay.pump import stream as stream_module
from fwdrelay.pump.buffered import BufferedPump
from fwdrelay.pump.loop import EDGE, READ
from fwdrelay.pump.spliced import SplicedPump
from fwdrelay.pump.stream import Stream
from fwdrelay.session import PortableSession, Reason, Session, State
from fwdrelay.steering import Steering, _moving
from tests.pump.reactors import ReactorTestCase
from tests.upstream.pools import make_pool

KB = 1 << 10
MB = 1 << 20
BYTES = random.Random(7).randbytes(12 * MB)
_RESET = struct.pack("ii", 1, 0)


class Keeping:
    """
    Notes what it is told.

    @ivar held: descriptors of sessions that it has duplicated, which it closes when they end.
    """

    def __init__(self) -> None:
        self.told: list[tuple[str, Session]] = []
        self.held: dict[str, list[int]] = {}

    def relaying(self, session: Session) -> None:
        self.told.append(("relaying", session))

    def ended(self, session: Session) -> None:
        self.told.append(("ended", session))
        self.release(session.name)

    def hold(self, session: Session) -> None:
        """As another process would, which gets its descriptors."""
        descriptors = session.keep()
        assert descriptors is not None
        self.release(session.name)
        self.held[session.name] = [os.dup(each) for each in descriptors]

    def give(self, session: Session) -> tuple[int, int, int, int]:
        """@return: once more; they stay held."""
        client, upstream, up, down = (os.dup(each) for each in self.held[session.name])
        return client, upstream, up, down

    def release(self, name: str) -> None:
        for each in self.held.pop(name, ()):
            os.close(each)


class Process:
    """What relays in one process."""

    def __init__(self, reactor: Any, keeping: Keeping | None, **config: Any) -> None:
        self.reactor = reactor
        self.pump = SplicedPump(reactor, KeepAlive())
        self.pool = make_pool("h:1", reactor=reactor, name="web", balance="first")
        self.ended: list[SessionEnded] = []
        self.left = 0
        self.deadlines = Deadlines(reactor)
        self.audience = Audience(Feed(reactor), Tracer(reactor), self.ended.append)
        self.dialed: list[socket.socket] = []
        self.listener = Listener(
            ListenerConfig(**{"name": "front", "listen": (), "pool": "web", **config}),
            {"web": self.pool},
            clock=reactor,
            pump=self.pump,
            dialer=cast("Any", self),
            deadlines=self.deadlines,
            audience=self.audience,
            totals=Totals(),
            left=self._left,
            all_active=lambda: self.listener.active,
            keeping=keeping,
        )

    def _left(self) -> None:
        self.left += 1

    def dial(self, pool: Any, target: Any, timeout: float, build: Any, *rest: Any) -> Deferred[Any]:
        sock = self.dialed.pop()
        protocol = build()
        protocol.makeConnection(self._stream(sock, protocol))
        return succeed(Dialed(protocol, target, ()))

    def _stream(self, sock: socket.socket, protocol: Any) -> Stream:
        sock.setblocking(False)
        kind = int(sock.family), int(sock.type), sock.proto
        peer = sock.getpeername()
        plain = socket.SocketType(*kind, sock.detach())
        fd = plain.fileno()
        stream = Stream(self.pump.loop, self.pump.pipes, plain, fd, protocol, peer)
        self.pump.loop.add(fd, stream, READ | EDGE)
        return stream

    def come(self, client: socket.socket, upstream: socket.socket) -> Session:
        """@return: of a client that has connected; its target has, too."""
        self.dialed.append(upstream)
        protocol: Any = self.listener.buildProtocol(IPv4Address("TCP", "", 0))
        before = set(self.listener.sessions)
        protocol.makeConnection(self._stream(client, protocol))
        (session,) = self.listener.sessions - before
        return session

    def adopt(self, session: PortableSession, descriptors: tuple[int, int, int, int]) -> Session:
        return self.listener.adopt(session, descriptors, self.pool)

    def stop(self) -> None:
        for session in list(self.listener.sessions):
            session.cut(Reason.STOPPED)
        self.pool.stop()
        self.deadlines.stop()

    @property
    def counts(self) -> tuple[int, int, int]:
        """Of all that a session is counted by: listener, admission, target and pool."""
        assert self.pool.sessions == self.pool.targets[0].sessions
        return self.listener.active, self.listener._admission.active, self.pool.sessions


class Talker:
    """
    One peer, which never blocks.

    @ivar says: what it has still to say, `heard`: what it was told.
    @ivar ends: whether it ends when it has said all.
    @ivar deaf: it reads nothing.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.says = memoryview(b"")
        self.said = 0
        self.heard = bytearray()
        self.ends = self.deaf = self.ended = False
        self.failed: OSError | None = None

    def say(self, data: bytes, *, ends: bool = False) -> None:
        self.says = memoryview(data)
        self.ends = ends

    def go_on(self) -> None:
        """Say and hear what goes."""
        with contextlib.suppress(BlockingIOError):
            while self.says:
                count = self.sock.send(self.says[: 256 * KB])
                self.said += count
                self.says = self.says[count:]
        if self.ends and not self.says:
            self.ends = False
            self.sock.shutdown(socket.SHUT_WR)
        try:
            while not (self.deaf or self.ended or self.failed):
                data = self.sock.recv(256 * KB)
                self.heard += data
                self.ended = not data
        except BlockingIOError:
            pass
        except OSError as failed:
            self.failed = failed

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()


class MovingTestCase(ReactorTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.keeping = Keeping()
        self.talkers: list[Talker] = []
        self.processes: list[Process] = []
        self.first, self.second = self.process(), self.process()
        self.addCleanup(self.close)

    def process(self, keeping: bool = True, **config: Any) -> Process:
        process = Process(self.reactor, self.keeping if keeping else None, **config)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.stop()
        for talker in self.talkers:
            talker.sock.close()
        for name in list(self.keeping.held):
            self.keeping.release(name)
        self.turn_while_busy()
        for process in self.processes:
            self.assertEqual(process.counts, (0, 0, 0))
            process.pump.stop()

    def pair(self, family: int) -> tuple[socket.socket, Talker]:
        if family == socket.AF_UNIX:
            ours, peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                peer = socket.create_connection(listening.getsockname())
                ours, _ = listening.accept()
        talker = Talker(peer)
        self.talkers.append(talker)
        return ours, talker

    def come(
        self, family: int = socket.AF_INET, to: Process | None = None
    ) -> tuple[Session, Talker, Talker]:
        """@return: a session of the first process, its client and its target."""
        (client, talker), (upstream, target) = self.pair(family), self.pair(family)
        return (to or self.first).come(client, upstream), talker, target

    def go_on(self, until: Callable[[], object]) -> None:
        """Let all talk until something has come true."""

        def done() -> object:
            for talker in self.talkers:
                if talker.sock.fileno() >= 0:
                    talker.go_on()
            return until()

        self.turn(done)

    def go_on_while_busy(self) -> None:
        """Until nothing moves any more."""
        idle = 0
        before: list[tuple[int, int]] = []

        def still() -> bool:
            nonlocal idle, before
            now = [(talker.said, len(talker.heard)) for talker in self.talkers]
            idle = idle + 1 if now == before else 0
            before = now
            return idle > 10

        self.go_on(still)

    def move(self, session: Session, to: Process | None = None) -> Session:
        """From the first process to the second, as it is planned: with the newest numbers."""
        self.keeping.hold(session)
        portable = PortableSession.parse(session.portable().text())
        session.detach()
        adopted = (to or self.second).adopt(portable, self.keeping.give(session))
        self.assertIs(adopted.state, State.RELAYING)
        return adopted

    def crash(self, session: Session, portable: PortableSession) -> Session:
        """
        The first process is gone, without a word; it is held.

        @param portable: of when it was registered.
        """
        session.detach()  # says nothing to anybody, as a process that dies
        return self.second.adopt(portable, self.keeping.give(session))

    def assert_done(self, session: Session, client: Talker, target: Talker) -> None:
        self.go_on(lambda: session.state is State.CLOSED)
        self.assertEqual((session.reason, session.code), (Reason.DONE, "--"))
        self.go_on(lambda: client.ended and target.ended)


class MovingTests(MovingTestCase):
    """What was under way arrives, whatever was under way."""

    def talk(
        self, family: int, up: bytes, down: bytes, ready: Callable[[Talker, Talker], bool]
    ) -> None:
        """
        Move a session when it is `ready`, then let it end.

        @param up: what the client says, `down`: what the target does.
        """
        session, client, target = self.come(family)
        client.say(up, ends=True)
        target.say(down, ends=True)
        self.go_on(lambda: ready(client, target))
        adopted = self.move(session)
        with mock.patch.object(stream_module, "_BUFFER", bytearray()):
            self.assert_done(adopted, client, target)
        self.assertTrue(target.heard == up, "the flow up is not what it was")
        self.assertTrue(client.heard == down, "the flow down is not what it was")
        (ended,) = self.second.ended
        self.assertEqual((ended.bytes_up, ended.bytes_down), (len(up), len(down)))
        self.assertEqual(self.first.ended, [])
        totals = [process.listener.totals for process in self.processes[:2]]
        self.assertEqual(sum(each.bytes_up for each in totals), len(up))
        self.assertEqual(sum(each.bytes_down for each in totals), len(down))
        self.second.ended.clear()
        for each in totals:
            each.bytes_up = each.bytes_down = 0

    def each_family(self, up: bytes, down: bytes, ready: Callable[[Talker, Talker], bool]) -> None:
        for family in (socket.AF_INET, socket.AF_UNIX):
            self.talk(family, up, down, ready)

    def test_before_anything_was_said(self) -> None:
        self.each_family(b"", b"", lambda client, target: True)

    def test_bulk_both_ways(self) -> None:
        for share in (10, 3, 2):
            self.each_family(
                BYTES,
                BYTES[MB:],
                lambda client, target, share=share: len(target.heard) >= len(BYTES) // share,  # type: ignore[misc]
            )

    def test_half_closed_either_way(self) -> None:
        for family in (socket.AF_INET, socket.AF_UNIX):
            for who in (0, 1):
                session, *talkers = self.come(family)
                first, other = talkers[who], talkers[1 - who]
                first.say(b"first", ends=True)
                self.go_on(lambda other=other: other.ended)  # type: ignore[misc]
                self.assertIs(session.state, State.HALF_CLOSED)
                adopted = self.move(session)
                other.say(BYTES, ends=True)
                self.assert_done(adopted, first, other)
                self.assertEqual(other.heard, b"first")
                self.assertTrue(first.heard == BYTES)

    def test_half_closed_in_the_middle_of_the_answer(self) -> None:
        self.each_family(
            b"request", BYTES, lambda client, target: target.ended and len(client.heard) > MB
        )

    def test_to_a_reader_that_reads_nothing(self) -> None:
        for small in (True, False):
            session, client, target = self.come()
            target.deaf = True
            assert session.upstream is not None
            sink = session.upstream.transport
            if small:
                # So that a buffer full of it is left in memory.
                sink.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                target.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.say(BYTES[: 50 * KB])
                self.go_on(lambda sink=sink: sink.pending is not None)  # type: ignore[misc]
            else:
                client.say(BYTES)
                self.go_on(lambda sink=sink: sink.pipe and sink.pipe.held > 64 * KB)  # type: ignore[misc]
                self.go_on_while_busy()
            adopted = self.move(session)
            self.go_on_while_busy()
            self.assertEqual(target.heard, b"")
            everything = BYTES[: 60 * KB] if small else BYTES
            client.say(everything[client.said :], ends=True)
            target.deaf = False
            target.say(b"", ends=True)
            self.assert_done(adopted, client, target)
            self.assertTrue(target.heard == everything)

    def test_again_and_again(self) -> None:
        session, client, target = self.come()
        name = session.name
        # Much more than the kernel holds, or the session would be over before it was moved so often.
        target.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MB)
        bulk = BYTES * 4
        client.say(bulk, ends=True)
        target.say(BYTES[5:], ends=True)
        here, there = self.first, self.second
        moves = 0
        while True:
            moves += 1
            aim = moves * len(bulk) // 12
            self.go_on(lambda aim=aim: len(target.heard) >= aim or target.ended)  # type: ignore[misc]
            if target.ended or not session.may_move:
                break
            session = self.move(session, there)
            self.assertEqual(session.name, name)
            here, there = there, here
        self.assertGreater(moves, 8)
        self.go_on(lambda: client.ended and target.ended)
        self.assertTrue(target.heard == bulk)
        self.assertTrue(client.heard == BYTES[5:])


class CrashTests(MovingTestCase):
    """The process that had them is gone, without a word."""

    def registered(self, family: int = socket.AF_INET) -> Any:
        session, client, target = self.come(family)
        client.say(b"hello")
        self.go_on(lambda: target.heard == b"hello")
        self.keeping.hold(session)
        return session, client, target, session.portable()

    def test_bytes_are_counted_from_what_the_kernel_tells(self) -> None:
        session, client, target, portable = self.registered()
        self.assertEqual((portable.bytes_up, portable.bytes_down), (5, 0))
        client.say(BYTES)
        target.say(BYTES[: 3 * MB])
        self.go_on(lambda: len(target.heard) > 4 * MB)
        adopted = self.crash(session, portable)
        up, down = adopted.carried
        self.assertEqual((adopted.client.received, up > 4 * MB), (up, True))
        self.assertEqual((adopted.before or portable).bytes_down, down)
        client.say(BYTES[client.said - 5 :], ends=True)
        target.say(target.says.tobytes(), ends=True)
        self.assert_done(adopted, client, target)
        self.assertTrue(target.heard == b"hello" + BYTES)
        self.assertTrue(client.heard == BYTES[: 3 * MB])
        (ended,) = self.second.ended
        self.assertEqual((ended.bytes_up, ended.bytes_down), (len(BYTES) + 5, 3 * MB))
        totals = self.second.listener.totals
        self.assertEqual((totals.bytes_up, totals.bytes_down), (len(BYTES) + 5, 3 * MB))

    def test_an_end_that_was_passed_on(self) -> None:
        session, client, target, portable = self.registered()
        client.say(b"", ends=True)
        self.go_on(lambda: target.ended)
        adopted = self.crash(session, portable)
        target.say(b"answer", ends=True)
        self.assert_done(adopted, client, target)
        self.assertEqual(client.heard, b"answer")

    def test_both_ends_came_after_it(self) -> None:
        for family in (socket.AF_INET, socket.AF_UNIX):
            session, client, target, portable = self.registered(family)
            session.detach()
            client.say(b"", ends=True)
            target.say(b"last", ends=True)
            self.go_on_while_busy()
            adopted = self.second.adopt(portable, self.keeping.give(session))
            self.assert_done(adopted, client, target)
            self.assertEqual(client.heard, b"last")

    def test_one_that_had_ended_is_closed_quietly(self) -> None:
        session, client, target, portable = self.registered()
        held = self.keeping.held.pop(session.name)
        client.say(b"", ends=True)
        target.say(b"last", ends=True)
        self.assert_done(session, client, target)
        self.keeping.held[session.name] = held
        adopted = self.second.adopt(portable, self.keeping.give(session))
        self.go_on(lambda: adopted.state is State.CLOSED)
        self.assertEqual(adopted.reason, Reason.DONE)

    def reset(self, who: int, *, data: bytes = b"") -> tuple[Session, Talker]:
        """
        A peer resets, of which the process that is gone was told.

        @param who: 0: the client.
        @param data: what it says before, which comes when nobody relays.
        @return: the session, and who is left.
        """
        session, *talkers, portable = self.registered()
        session.detach()
        with socket.socket(fileno=os.dup(self.keeping.held[session.name][who])) as sock:
            talkers[who].say(data)
            talkers[who].go_on()
            talkers[who].reset()
            self.turn(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        adopted = self.second.adopt(portable, self.keeping.give(session))
        return adopted, talkers[1 - who]

    def test_a_reset_is_not_taken_for_an_end(self) -> None:
        for who, reason in ((0, Reason.CLIENT_RESET), (1, Reason.UPSTREAM_RESET)):
            adopted, other = self.reset(who)
            heard = bytes(other.heard)
            self.go_on(lambda adopted=adopted: adopted.state is State.CLOSED)  # type: ignore[misc]
            self.assertEqual(adopted.reason, reason)
            self.go_on(lambda other=other: other.failed or other.ended)  # type: ignore[misc]
            self.assertEqual((other.ended, bytes(other.heard)), (False, heard))
            self.assertIsInstance(other.failed, ConnectionResetError)

    def test_what_was_sent_before_a_reset_arrives(self) -> None:
        adopted, target = self.reset(0, data=BYTES[: 20 * KB])
        self.go_on(lambda: target.failed or target.ended)
        self.assertEqual(bytes(target.heard), b"hello" + BYTES[: 20 * KB])
        self.assertIsInstance(target.failed, ConnectionResetError)
        self.assertEqual(adopted.carried[0], 5)

    def test_a_reset_that_is_still_being_passed_on(self) -> None:
        session, client, target, portable = self.registered()
        target.deaf = True
        client.say(BYTES)
        self.go_on_while_busy()
        client.reset()
        self.go_on(lambda: session.client.reset)
        before = session.client.received
        self.assertIs(session.state, State.HALF_CLOSED)
        adopted = self.crash(session, portable)
        self.assertEqual(adopted.carried[0], before)
        target.deaf = False
        self.go_on(lambda: target.failed or target.ended)
        self.assertIsInstance(target.failed, ConnectionResetError)
        self.assertTrue((b"hello" + BYTES).startswith(target.heard))
        self.assertGreaterEqual(len(target.heard), before)
        self.assertEqual(adopted.reason, Reason.CLIENT_RESET)

    def test_a_session_that_nobody_held_is_reset(self) -> None:
        session, client, target = self.come()
        client.say(b"hello")
        self.go_on(lambda: target.heard)
        session.detach()  # closes its sockets, as a process that dies
        self.go_on(lambda: client.failed and target.failed)
        self.assertEqual((client.ended, target.ended), (False, False))


class EndTests(MovingTestCase):
    """What is said to peers at the end, while somebody else holds the same sockets."""

    def test_an_end_is_said_before_anybody_lets_go(self) -> None:
        for family in (socket.AF_INET, socket.AF_UNIX):
            session, client, target = self.come(family)
            self.keeping.hold(session)
            held = self.keeping.held.pop(session.name)
            client.say(b"question", ends=True)
            target.say(b"answer", ends=True)
            self.assert_done(session, client, target)
            self.assertEqual((client.heard, target.heard), (b"answer", b"question"))
            self.assertEqual(self.keeping.told[-1], ("ended", session))
            for each in held:
                os.close(each)

    def test_a_cut_resets(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        self.turn_while_busy()
        session.cut(Reason.KILLED)
        self.go_on(lambda: client.failed and target.failed)
        self.assertEqual((client.ended, target.ended), (False, False))
        self.assertEqual(self.keeping.told, [("relaying", session), ("ended", session)])

    def test_without_anybody_who_holds_it_an_end_is_one_too(self) -> None:
        session, client, target = self.come()
        client.say(b"question", ends=True)
        target.say(b"answer", ends=True)
        self.assert_done(session, client, target)
        self.go_on_while_busy()
        self.assertEqual((client.failed, target.failed), (None, None))
        self.assertEqual(self.keeping.told, [("relaying", session)])

    def test_with_a_reset_it_is_kept_to_its_end(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        client.say(b"x")
        self.go_on(lambda: target.heard)
        target.reset()
        self.go_on(lambda: session.state is State.CLOSED)
        self.assertEqual(session.reason, Reason.UPSTREAM_RESET)
        self.assertEqual(self.keeping.told[-1], ("ended", session))
        self.go_on(lambda: client.failed)

    def test_a_peer_that_is_slow_to_read_gets_all_before_it_is_over(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        client.deaf = True
        target.say(BYTES[: 8 * MB], ends=True)
        client.say(b"", ends=True)
        self.go_on_while_busy()
        self.assertIs(session.state, State.HALF_CLOSED)
        client.deaf = False
        target.go_on()
        self.assert_done(session, client, target)
        self.assertTrue(client.heard == BYTES[: 8 * MB])

    def test_with_nobody_who_keeps_sockets_are_as_ever(self) -> None:
        process = self.process(keeping=False)
        session, client, target = self.come(to=process)
        handle = session.client.transport.getHandle()
        self.assertEqual(
            handle.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8), struct.pack("ii", 0, 0)
        )
        adopted = self.move(session, self.process(keeping=False))
        client.say(b"question", ends=True)
        target.say(b"answer", ends=True)
        self.assert_done(adopted, client, target)
        self.keeping.release(session.name)


class UnkeepTests(MovingTestCase):
    def test_urgent_data_is_passed_and_nobody_may_take_it_over_meanwhile(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        client.say(b"before")
        self.go_on(lambda: target.heard)
        client.sock.send(b"!", socket.MSG_OOB)
        client.say(b"after")
        self.go_on(lambda: ("ended", session) in self.keeping.told)
        self.assertFalse(session.kept)
        self.assertEqual(target.heard, b"before")
        self.go_on(lambda: target.heard == b"beforeafter")
        self.assertEqual([word for word, _ in self.keeping.told], ["relaying", "ended", "relaying"])
        adopted = self.move(session)
        client.say(b"", ends=True)
        target.say(b"", ends=True)
        self.assert_done(adopted, client, target)

    def test_one_that_ends_meanwhile(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        client.sock.send(b"!", socket.MSG_OOB)
        client.say(b"after")
        self.go_on(lambda: ("ended", session) in self.keeping.told)
        session.cut(Reason.KILLED)
        self.go_on(lambda: client.failed and target.failed)
        self.assertEqual([word for word, _ in self.keeping.told], ["relaying", "ended"])

    def test_refused_it_goes_on(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        client.say(BYTES)
        self.go_on(lambda: len(target.heard) > MB)
        session.unkeep()
        self.keeping.release(session.name)
        self.assertFalse(session.kept)
        client.say(client.says.tobytes(), ends=True)
        target.say(b"", ends=True)
        self.assert_done(session, client, target)
        self.assertTrue(target.heard == BYTES)

    def test_all_or_nothing(self) -> None:
        session, client, target = self.come()
        client.say(b"hello")
        self.go_on(lambda: target.heard)
        assert session.upstream is not None
        keeps = Stream.keep
        with mock.patch.object(
            Stream,
            "keep",
            autospec=True,
            side_effect=lambda stream, told: (
                None if stream is session.client.transport else keeps(stream, told)
            ),
        ):
            self.assertIsNone(session.keep())
        self.assertFalse(session.kept)
        self.assertIsNone(session.upstream.transport.pipe)
        self.assertEqual(session.keep(), session.keep())
        self.assertEqual(len(set(cast("Any", session.keep()))), 4)
        with mock.patch.object(Stream, "keep", return_value=None):
            self.assertIsNone(session.keep())
        self.assertEqual(self.keeping.told[-1], ("ended", session))

    def test_who_may_not(self) -> None:
        session, client, _ = self.come()
        self.assertTrue(session.may_move)
        other: Any = self.second.listener.buildProtocol(IPv4Address("TCP", "", 0))
        waiting = Session(session.policy, 1, other, 0.0, None)
        self.assertFalse(waiting.may_move)
        self.assertIsNone(waiting.keep())
        client.reset()
        self.go_on(lambda: session.client.reset)
        self.assertFalse(session.may_move)
        self.assertIsNone(session.keep())

    def test_one_that_is_over_unseen_may_not(self) -> None:
        session, client, target = self.come()
        self.turn_while_busy()
        client.reset()
        assert session.upstream is not None
        with socket.socket(fileno=os.dup(session.client.transport.fd)) as sock:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    sock.getpeername()
                    continue
                break
        self.assertIsNone(session.keep())
        self.assertFalse(session.kept)
        self.go_on(lambda: target.failed)


class AdoptingTests(MovingTestCase):
    """What a listener, its pool and whoever looks on know of a session that came from elsewhere."""

    def test_it_is_counted_where_it_is_and_not_let_in_again(self) -> None:
        session, client, target = self.come()
        client.say(b"hello")
        self.go_on(lambda: target.heard)
        self.assertEqual((self.first.counts, self.second.counts), ((1, 1, 1), (0, 0, 0)))
        adopted = self.move(session)
        self.assertEqual((self.first.counts, self.second.counts), ((0, 0, 0), (1, 1, 1)))
        self.assertEqual((self.first.left, self.second.left), (1, 0))
        self.assertEqual(
            (self.first.listener.totals.let_in, self.second.listener.totals.let_in), (1, 0)
        )
        self.assertEqual(self.first.listener.totals.bytes_up, 0)
        self.assertEqual(_moving(self.second.listener), (5, 0))
        client.say(b"more")
        self.go_on(lambda: target.heard == b"hellomore")
        self.assertEqual(_moving(self.second.listener), (9, 0))
        self.assertEqual(_moving(self.second.listener, kept_only=True), (9, 0))
        self.assertEqual(adopted.client.received, 9)
        self.assertEqual(self.first.listener.totals.ended, Counter())
        adopted.cut(Reason.KILLED)
        self.assertEqual(self.second.listener.totals.bytes_up, 9)
        self.assertEqual((self.second.left, self.second.counts), (1, (0, 0, 0)))

    def test_it_is_what_it_was(self) -> None:
        session, client, target = self.come()
        session.waited, session.tried = 1.5, (self.first.pool.targets[0],) * 2
        client.say(b"hello")
        self.go_on(lambda: target.heard)
        source = session.client
        assert isinstance(source, ClientProtocol)
        address, local = source.address, source.local
        adopted = self.move(session)
        adopted_client = adopted.client
        assert isinstance(adopted_client, ClientProtocol)
        self.assertEqual(
            (adopted_client.address, adopted_client.local, adopted_client.host),
            (address, local, "127.0.0.1"),
        )
        self.assertEqual(adopted.name, session.name)
        self.assertNotEqual(adopted.number, session.number)
        self.assertAlmostEqual(adopted.started, session.started, places=0)
        self.assertAlmostEqual(adopted.connected or 0, session.connected or 1, places=0)
        self.assertEqual((adopted.waited, adopted.retries), (1.5, 2))
        self.assertIs(adopted.target, self.second.pool.targets[0])
        adopted.cut(Reason.KILLED)
        (ended,) = self.second.ended
        self.assertEqual(
            (ended.session, ended.client, ended.local, ended.pool, ended.target, ended.retries),
            (session.name, address, local, "web", "h:1", 2),
        )
        self.assertEqual((ended.bytes_up, ended.queue_ms), (5, 1500.0))

    def test_a_clock_with_another_origin(self) -> None:
        session, _, _ = self.come()
        seconds = self.reactor.seconds
        self.keeping.hold(session)
        portable = session.portable()
        session.detach()
        self.addCleanup(setattr, self.reactor, "seconds", seconds)
        self.reactor.seconds = lambda: seconds() - 1e6
        adopted = self.second.adopt(portable, self.keeping.give(session))
        self.assertAlmostEqual(adopted.started, session.started - 1e6, places=0)
        adopted.cut(Reason.KILLED)
        self.assertLess(self.second.ended[0].duration_ms, 20_000)

    def test_a_hello_is_told_still(self) -> None:
        session, _, _ = self.come()
        self.keeping.hold(session)
        portable = evolve(session.portable(), sni="a.example", alpn="h2", host=None)
        session.detach()
        adopted = self.second.adopt(portable, self.keeping.give(session))
        adopted.cut(Reason.KILLED)
        (ended,) = self.second.ended
        self.assertEqual((ended.sni, ended.alpn), ("a.example", "h2"))
        self.assertIsNone(adopted.client.host)

    def test_a_client_is_counted_whatever_the_limits(self) -> None:
        admit = Admit(sessions_per_client=1)
        here = self.process(admit=admit, max_sessions=1)
        there = self.process(admit=admit, max_sessions=1)
        sessions = [self.come(to=here)[0], self.come(to=there)[0]]
        adopted = self.move(sessions[0], there)
        self.assertEqual(there.counts, (2, 2, 2))
        self.assertEqual(here.listener._admission._of_client, {})
        self.assertEqual(list(there.listener._admission._of_client.values()), [2])
        adopted.cut(Reason.KILLED)
        self.assertEqual(list(there.listener._admission._of_client.values()), [1])

    def test_to_a_target_that_is_one_no_more(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        portable = evolve(session.portable(), target="db", address="10.9.8.7:5432")
        session.detach()
        adopted = self.second.adopt(portable, self.keeping.give(session))
        assert adopted.target is not None
        self.assertEqual((adopted.target.label, adopted.target.removed), ("db", True))
        self.assertEqual(adopted.target.config.address, "10.9.8.7:5432")
        self.assertEqual((adopted.target.sessions, self.second.pool.sessions), (1, 1))
        client.say(b"", ends=True)
        target.say(b"", ends=True)
        self.assert_done(adopted, client, target)
        self.assertEqual((adopted.target.sessions, self.second.pool.sessions), (0, 0))

    def test_of_a_pool_that_is_no_more(self) -> None:
        session, client, target = self.come()
        self.keeping.hold(session)
        portable = session.portable()
        session.detach()
        adopted = self.second.listener.adopt(portable, self.keeping.give(session), None)
        client.say(b"question", ends=True)
        target.say(b"answer", ends=True)
        self.assert_done(adopted, client, target)
        (ended,) = self.second.ended
        self.assertEqual((ended.pool, ended.target), ("web", "h:1"))

    def test_its_time_outs_go_on(self) -> None:
        process = self.process(timeouts=Timeouts(lifetime=3600.0))
        session, _, _ = self.come()
        session.started -= 4000
        adopted = self.move(session, process)
        adopted.overdue(self.reactor.seconds())
        self.assertEqual(adopted.reason, Reason.LIFETIME)

    def test_its_progress_is_told_from_here_only(self) -> None:
        for process in self.processes:
            process.audience.log_interval = 600
        session, _, _ = self.come()
        source = session.client
        assert isinstance(source, ClientProtocol)
        self.assertIsNotNone(source.progress)
        adopted = self.move(session)
        self.assertIsNone(source.progress)
        assert isinstance(adopted.client, ClientProtocol)
        assert adopted.client.progress is not None
        adopted.client.progress.overdue(self.reactor.seconds())
        self.assertEqual([each.reason for each in self.second.ended], ["progress"])
        self.second.ended.clear()

    def test_who_follows_it_is_told_that_it_went(self) -> None:
        steps: list[TraceStep] = []
        self.first.audience.tracer.watch(None, steps.append)
        session, _, _ = self.come()
        self.move(session)
        self.assertEqual(steps[-1].step, "ended")
        self.assertIn("moved to another process", steps[-1].detail)

    def test_one_that_ends_is_told_of_only_when_it_is_known(self) -> None:
        session, client, target = self.come()
        client.say(b"", ends=True)
        target.say(b"", ends=True)
        self.keeping.hold(session)
        portable = session.portable()
        session.detach()
        self.go_on_while_busy()
        self.keeping.told.clear()
        adopted = self.second.adopt(portable, self.keeping.give(session))
        self.assertEqual((adopted.state, self.keeping.told), (State.RELAYING, []))
        self.assert_done(adopted, client, target)
        self.assertEqual(self.keeping.told, [("ended", adopted)])

    def test_an_operator_finds_it_by_its_name(self) -> None:
        session, _, _ = self.come()
        adopted = self.move(session)
        relay = SimpleNamespace(started=0.0, all_listeners=lambda: [self.second.listener])
        steering = Steering(cast("Any", relay), self.reactor)
        shown = self.successResultOf(Deferred.fromCoroutine(steering.end_session(session.name)))
        self.assertEqual((shown.session, adopted.reason), (session.name, Reason.KILLED))

    def test_with_a_pump_that_can_not_it_is_refused(self) -> None:
        listener = self.second.listener
        listener.pump = BufferedPump(self.reactor, KeepAlive())
        self.addCleanup(setattr, listener, "pump", self.second.pump)
        session, _, _ = self.come()
        self.keeping.hold(session)
        portable = session.portable()
        failed = self.assertRaises(OSError, self.second.adopt, portable, self.keeping.give(session))
        self.assertEqual(failed.errno, errno.EOPNOTSUPP)

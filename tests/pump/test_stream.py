"""
`fwdrelay.pump.stream` on real sockets: an ordinary transport, and what becomes of the bytes when two of
them are fused.
"""

from __future__ import annotations

import errno
import fcntl
import random
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fwdrelay.interfaces import ISideProtocol, IStream
from fwdrelay.pump.loop import EDGE, READ
from fwdrelay.pump.pipes import Pipes
from fwdrelay.pump.stream import Stream
from tests.pump.reactors import PATIENCE, ReactorTestCase

KB = 1 << 10
MB = 1 << 20
FILL = 1 << 16
"""What one read by buffer takes at most."""
BYTES = random.Random(3).randbytes(12 * MB + 12_345)
_RESET = struct.pack("ii", 1, 0)


class Counted(socket.SocketType):
    """
    @cvar closings: how often each was closed, by identity.
    """

    closings: ClassVar[dict[int, int]] = {}

    def close(self) -> None:
        self.closings[id(self)] = self.closings.get(id(self), 0) + 1
        super().close()


@implementer(ISideProtocol, IHalfCloseableProtocol)
class Recorder(Protocol):
    """
    What is told of a stream.

    @ivar told: everything but bytes, in order.
    @ivar then: is given the bytes, too.
    """

    transport: Any

    def __init__(self) -> None:
        self.data = bytearray()
        self.told: list[str] = []
        self.reset: BaseException | None = None
        self.reason: BaseException | None = None
        self.then: Callable[[bytes], object] = lambda data: None
        self.at_end: Callable[[], object] = lambda: None

    def dataReceived(self, data: bytes) -> None:
        assert "end" not in self.told and "lost" not in self.told, self.told
        self.data += data
        self.then(data)

    def readConnectionLost(self) -> None:
        self.told.append("end")
        self.at_end()

    def writeConnectionLost(self) -> None:
        self.told.append("delivered")

    def connectionReset(self, error: BaseException) -> None:
        self.told.append("reset")
        self.reset = error

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.told.append("lost")
        self.reason = reason.value


def under_way(descriptor: int) -> int:
    """How many bytes of a socket its peer's kernel doesn't have yet."""
    left: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
    return left


class End:
    """
    A stream, and the peer it talks to.

    @ivar peer: never blocks.
    @ivar heard: what `take` has read of the peer's.
    @ivar ended: whether the peer has read the end.
    """

    def __init__(self, stream: Stream, peer: socket.socket) -> None:
        self.stream = stream
        self.peer = peer
        self.protocol: Recorder = stream.protocol
        self.heard = bytearray()
        self.ended = False

    def say(self, data: bytes) -> int:
        """
        @return: how many of these bytes the kernel took from the peer.
        """
        sent = 0
        while sent < len(data):
            try:
                sent += self.peer.send(data[sent : sent + MB])
            except BlockingIOError:
                break
        return sent

    def take(self, most: int = MB) -> None:
        """Let the peer read once."""
        try:
            data = self.peer.recv(most)
        except BlockingIOError:
            return
        self.heard += data
        self.ended |= not data

    def arrived(self) -> bool:
        """Whether all that the peer has said is on the stream's side of the kernel."""
        return not under_way(self.peer.fileno())

    @property
    def numbers(self) -> tuple[int, int]:
        """Descriptors of both ends of the connection."""
        return self.stream.fd, self.peer.fileno()

    def reset(self) -> None:
        """Let the peer reset."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.peer.close()


class PushProducer:
    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class PullProducer:
    """
    Writes some of `data` each time it is asked; unregisters itself at its end.

    @ivar asked: how often.
    """

    def __init__(self, stream: Stream, data: bytes, size: int, writes: int = 1) -> None:
        self.stream, self.data, self.size, self.writes = stream, data, size, writes
        self.asked = self.written = 0
        self.stopped = False

    def resumeProducing(self) -> None:
        self.asked += 1
        for _ in range(self.writes):
            self.stream.write(self.data[self.written : self.written + self.size])
            self.written += self.size
        if self.written >= len(self.data):
            self.stream.unregisterProducer()

    def stopProducing(self) -> None:
        self.stopped = True


class StreamTestCase(ReactorTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.pipes = Pipes(self.reactor)
        self.ends: list[End] = []
        self.sockets: list[Counted] = []
        self.addCleanup(self.close)

    def end(self, family: int = socket.AF_INET, small: bool = False) -> End:
        """
        @param small: with kernel buffers that hold little.
        """
        if family == socket.AF_UNIX:
            sock, peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                if small:
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer = socket.socket()
                if small:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                peer.connect(listening.getsockname())
                sock, _ = listening.accept()
        if small:
            for each in (sock, peer):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setblocking(False)
        peer.setblocking(False)
        kind = int(sock.family), int(sock.type), sock.proto
        plain = Counted(*kind, sock.detach())
        self.sockets.append(plain)
        fd = plain.fileno()
        protocol = Recorder()
        stream = Stream(self.loop, self.pipes, plain, fd, protocol, ("127.0.0.1", 1))
        self.loop.add(fd, stream, READ | EDGE)
        protocol.makeConnection(stream)
        end = End(stream, peer)
        self.ends.append(end)
        return end

    def fused(self, **how: Any) -> tuple[End, End]:
        """Two whose streams are each other's producers, and whose ends are passed on."""
        a, b = self.end(**how), self.end(**how)
        self.fuse(a, b)
        return a, b

    def fuse(self, a: End, b: End) -> None:
        for one, other in ((a, b), (b, a)):
            one.protocol.then = other.stream.write
            one.protocol.at_end = lambda other=other: (  # type: ignore[misc]
                other.stream.unregisterProducer(),
                other.stream.loseWriteConnection(),
            )
            other.stream.registerProducer(one.stream, True)

    def close(self) -> None:
        for end in self.ends:
            end.stream.abortConnection()
            end.peer.close()
            self.assertEqual(end.protocol.told.count("lost"), 1)
            self.assertIsNone(end.stream.pipe)
        self.turn_while_busy()
        self.pipes.close()
        # Once each, and there is nothing left to be closed by the interpreter.
        closings = [Counted.closings.pop(id(each), 0) for each in self.sockets]
        self.assertEqual(closings, [1] * len(self.sockets))

    def take(self, end: End, count: int) -> bytes:
        """What the peer hears, up to `count` bytes in all."""

        def all_there() -> bool:
            end.take()
            return len(end.heard) >= count or end.ended

        self.turn(all_there)
        return bytes(end.heard)

    def take_to_the_end(self, end: End) -> bytes:
        """All that the peer hears."""

        def ended() -> bool:
            end.take()
            return end.ended

        self.turn(ended)
        return bytes(end.heard)

    def stuff(self, end: End, data: bytes) -> int:
        """
        Let the peer say as much of `data` as it can until nothing moves any more.

        @return: how many bytes that was.
        """
        sent = quiet = 0
        before: object = None
        while quiet < 10:
            sent += end.say(data[sent:])
            self.reactor.iterate(0)
            # The kernel moves bytes as well, between any two sockets, and not at once when it has much to do.
            kernels = [
                under_way(fd) for each in self.ends if each.stream.fd >= 0 for fd in each.numbers
            ]
            now = sent, end.stream.received, kernels
            quiet = quiet + 1 if now == before else 0
            before = now
            time.sleep(0.001)
        return sent

    def both(self, test: Callable[[int], None]) -> None:
        """Run it for TCP and Unix sockets."""
        for family in (socket.AF_INET, socket.AF_UNIX):
            test(family)

    def play(self, family: int, small: bool, script: list[tuple[str, int]]) -> None:
        """Do all that is in `script` to two that are fused, then end both, and see what came of it."""
        a, b = self.fused(family=family, small=small)
        borrow = self.pipes.borrow
        said = {a: bytearray(), b: bytearray()}

        def say(end: End, size: int) -> None:
            start = len(said[end]) % MB
            data = BYTES[start : start + size]
            said[end] += data[: end.say(data)]

        def register() -> None:
            if b.stream.producer is None:
                b.stream.registerProducer(a.stream, True)

        def starve() -> None:
            self.pipes.borrow = lambda: None  # type: ignore[method-assign]

        def keep() -> None:
            for end in (a, b):
                if end.stream.may_be_kept:
                    end.stream.keep(end.stream.unkeep)

        def unkeep() -> None:
            for end in (a, b):
                end.stream.unkeep()

        def feed() -> None:
            self.pipes.borrow = borrow  # type: ignore[method-assign]

        actions: dict[str, Callable[[int], object]] = {
            "say": lambda size: say(a, size),
            "take": b.take,
            "answer": lambda size: say(b, size),
            "hear": a.take,
            "turn": lambda _: self.reactor.iterate(0),
            "pause": lambda _: a.stream.pauseProducing(),
            "resume": lambda _: a.stream.resumeProducing(),
            "register": lambda _: register(),
            "unregister": lambda _: b.stream.unregisterProducer(),
            "starve": lambda _: starve(),
            "feed": lambda _: feed(),
            "keep": lambda _: keep(),
            "unkeep": lambda _: unkeep(),
        }
        for name, size in script:
            actions[name](size)
        feed()
        a.stream.resumeProducing()
        unkeep()
        for end in (a, b):
            end.peer.shutdown(socket.SHUT_WR)

        def ended() -> bool:
            a.take()
            b.take()
            return a.ended and b.ended

        self.turn(ended)
        self.assertTrue(said[a] == b.heard, f"{len(said[a])} bytes sent, {len(b.heard)} heard")
        self.assertTrue(said[b] == a.heard, f"{len(said[b])} bytes sent, {len(a.heard)} heard")
        self.assertEqual(a.protocol.told.count("end") + b.protocol.told.count("end"), 2)
        self.assertEqual((a.stream.pipe, b.stream.pipe), (None, None))
        for end in (a, b):
            end.stream.loseConnection()
            end.peer.close()
        self.assertEqual(a.protocol.told[-1] + b.protocol.told[-1], "lostlost")


class ReadingTests(StreamTestCase):
    def test_it_is_what_it_says(self) -> None:
        verifyObject(IStream, self.end().stream)

    def test_bytes_and_then_the_end_reach_the_protocol(self) -> None:
        def check(family: int) -> None:
            end = self.end(family)
            sent = 0
            while sent < 3 * MB:
                sent += end.say(BYTES[sent : 3 * MB])
                self.turn_while_busy()
            end.peer.shutdown(socket.SHUT_WR)
            self.turn(lambda: "end" in end.protocol.told)
            self.assertEqual(bytes(end.protocol.data), BYTES[: 3 * MB])
            self.assertEqual(end.stream.received, 3 * MB)
            self.turn_while_busy()
            self.assertEqual(end.protocol.told, ["end"])

        self.both(check)

    def test_paused_it_tells_nothing_and_resumed_everything(self) -> None:
        end = self.end()
        end.stream.pauseProducing()
        end.say(b"all of it")
        end.peer.shutdown(socket.SHUT_WR)
        self.turn_while_busy()
        self.assertEqual((bytes(end.protocol.data), end.protocol.told), (b"", []))
        end.stream.resumeProducing()
        self.turn(lambda: end.protocol.told)
        self.assertEqual(bytes(end.protocol.data), b"all of it")

    def test_paused_by_what_it_tells(self) -> None:
        end = self.end()
        end.protocol.then = lambda data: end.stream.pauseProducing()
        sent = end.say(BYTES[: 5 * FILL])
        end.peer.shutdown(socket.SHUT_WR)
        self.turn(lambda: end.protocol.data)
        self.turn_while_busy()
        self.assertLessEqual(len(end.protocol.data), FILL)

        def resumed() -> bool:
            end.stream.resumeProducing()
            return bool(end.protocol.told)

        self.turn(resumed)
        self.assertEqual(bytes(end.protocol.data), BYTES[:sent])

    def test_closed_by_what_it_tells(self) -> None:
        for name in ("loseConnection", "abortConnection"):
            end = self.end()
            end.protocol.then = lambda data, end=end, name=name: getattr(  # type: ignore[misc]
                end.stream, name
            )()
            end.say(BYTES[: 5 * FILL])
            self.turn(lambda end=end: end.protocol.told)  # type: ignore[misc]
            self.turn_while_busy()
            self.assertEqual(end.protocol.told, ["lost"])

    def test_urgent_data_holds_nothing_up(self) -> None:
        """A read stops at it, and so tells less than there is; edges tell nothing again."""
        end = self.end()
        end.say(b"before")
        end.peer.send(b"!", socket.MSG_OOB)
        end.say(b"after")
        self.turn(lambda: end.protocol.data.endswith(b"after"))
        self.assertEqual(bytes(end.protocol.data), b"beforeafter")

    def test_descriptors_passed_along_hold_nothing_up(self) -> None:
        """A read stops at them, too."""
        end = self.end(socket.AF_UNIX)
        for words in (b"before", b"between"):
            socket.send_fds(end.peer, [words], [end.peer.fileno()])
        end.say(b"after")
        self.turn(lambda: end.protocol.data.endswith(b"after"))
        self.assertEqual(bytes(end.protocol.data), b"beforebetweenafter")

    def test_a_reset_is_told_at_once_and_lost_after_all_was_read(self) -> None:
        end = self.end()
        end.stream.pauseProducing()
        sent = end.say(BYTES[:50_000])
        self.turn(end.arrived)
        end.reset()
        self.turn(lambda: end.protocol.told)
        self.assertEqual((end.protocol.told, len(end.protocol.data)), (["reset"], 0))
        assert isinstance(end.protocol.reset, OSError)
        self.assertEqual(end.protocol.reset.errno, errno.ECONNRESET)
        end.stream.write(b"into the void")
        end.stream.resumeProducing()
        self.turn(lambda: "lost" in end.protocol.told)
        self.assertEqual(end.protocol.told, ["reset", "lost"])
        self.assertEqual(bytes(end.protocol.data), BYTES[:sent])
        self.assertIs(end.protocol.reason, end.protocol.reset)

    def test_a_defect_of_its_protocol_ends_it_and_nobody_else(self) -> None:
        def fail(data: bytes) -> None:
            raise ZeroDivisionError("a defect")

        sound, broken, further = self.end(), self.end(), self.end()
        broken.protocol.then = fail
        for end in (sound, broken, further):
            end.say(b"x")
        self.turn(lambda: broken.protocol.told and sound.protocol.data and further.protocol.data)
        self.assertEqual(broken.protocol.told, ["lost"])
        self.assertEqual(sound.protocol.told + further.protocol.told, [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class WritingTests(StreamTestCase):
    def test_more_than_the_socket_takes_arrives_in_order(self) -> None:
        def check(family: int) -> None:
            end = self.end(family)
            size = 300_000
            for start in range(0, len(BYTES), size):
                end.stream.write(BYTES[start : start + size])
            self.assertGreater(end.stream.unsent_here(), 0)
            self.assertGreaterEqual(end.stream.unsent(), end.stream.unsent_here())
            self.assertEqual(self.take(end, len(BYTES)), BYTES)
            self.turn(lambda: not end.stream.unsent_here())

        self.both(check)

    def test_a_sequence_is_written_as_one(self) -> None:
        end = self.end()
        end.stream.writeSequence([b"one ", b"", b"and ", b"two"])
        end.stream.writeSequence([])
        self.assertEqual(self.take(end, 11), b"one and two")

    def test_closing_waits_for_everything_written(self) -> None:
        end = self.end()
        end.stream.write(BYTES)
        end.stream.loseConnection()
        self.turn_while_busy()
        self.assertEqual(end.protocol.told, [])
        self.assertEqual(self.take_to_the_end(end), BYTES)
        self.assertEqual(end.protocol.told, ["lost"])
        self.assertIsInstance(end.protocol.reason, error.ConnectionDone)

    def test_half_closing_waits_too_and_then_it_still_reads(self) -> None:
        def check(family: int) -> None:
            end = self.end(family)
            end.stream.write(BYTES)
            end.stream.loseWriteConnection()
            end.stream.write(b"too late")
            self.turn_while_busy()
            self.assertEqual(end.protocol.told, [])
            self.assertEqual(self.take_to_the_end(end), BYTES)
            self.turn(lambda: end.protocol.told)
            self.assertEqual(end.protocol.told, ["delivered"])
            end.stream.loseWriteConnection()
            end.say(b"an answer")
            self.turn(lambda: end.protocol.data == b"an answer")
            end.stream.loseConnection()
            self.assertEqual(end.protocol.told, ["delivered", "lost"])

        self.both(check)

    def test_an_abort_resets(self) -> None:
        end = self.end()
        end.stream.write(BYTES)
        end.stream.abortConnection()
        self.assertEqual(end.protocol.told, ["lost"])
        self.assertIsInstance(end.protocol.reason, error.ConnectionAborted)
        self.turn_while_busy()
        end.peer.settimeout(PATIENCE)
        with self.assertRaises(ConnectionResetError):
            for _ in range(1000):
                end.peer.recv(MB)

    def test_whatever_is_asked_of_a_closed_one_does_nothing(self) -> None:
        end = self.end()
        stream, producer = end.stream, PushProducer()
        stream.loseConnection()
        stream.write(b"x")
        stream.writeSequence([b"x"])
        stream.pauseProducing()
        stream.resumeProducing()
        stream.loseWriteConnection()
        stream.loseConnection()
        stream.abortConnection()
        stream.registerProducer(producer, True)
        stream.unregisterProducer()
        self.assertEqual((stream.unsent(), producer.told), (0, ["stop"]))
        self.turn_while_busy()
        self.assertEqual(end.protocol.told, ["lost"])

    def test_a_write_that_fails_is_told_and_what_came_before_is_read(self) -> None:
        end = self.end()
        end.stream.pauseProducing()
        end.say(b"before")
        self.turn(end.arrived)
        end.reset()
        while not end.protocol.told:
            for _ in range(3):
                end.stream.write(b"x")
            self.reactor.iterate(0.01)
        end.stream.resumeProducing()
        self.turn(lambda: "lost" in end.protocol.told)
        self.assertEqual(end.protocol.told, ["reset", "lost"])
        self.assertEqual(bytes(end.protocol.data), b"before")

    def test_addresses_and_options_are_those_of_the_socket(self) -> None:
        end = self.end()
        stream = end.stream
        self.assertEqual(stream.getHost().port, end.peer.getpeername()[1])
        self.assertEqual(stream.getPeer().host, "127.0.0.1")
        for wanted in (True, False):
            stream.setTcpNoDelay(wanted)
            stream.setTcpKeepAlive(wanted)
            self.assertEqual((stream.getTcpNoDelay(), stream.getTcpKeepAlive()), (wanted, wanted))
        self.assertIs(stream.getHandle(), self.sockets[0])


class ProducerTests(StreamTestCase):
    def test_one_that_pushes_too_much_is_paused_until_it_is_written(self) -> None:
        end, producer = self.end(), PushProducer()
        end.stream.registerProducer(producer, True)
        written = 0
        while not producer.told:
            end.stream.write(BYTES[written : written + 100_000])
            written += 100_000
        self.assertLessEqual(end.stream.unsent_here(), FILL + 100_000)
        self.assertEqual(self.take(end, written), BYTES[:written])
        self.turn(lambda: producer.told == ["pause", "resume"])
        end.stream.unregisterProducer()

    def test_one_that_pulls_is_asked_until_it_has_no_more(self) -> None:
        for size, writes in ((1000, 1), (100_000, 1), (100, 7)):
            end = self.end()
            data = BYTES[: 100 * size]
            producer = PullProducer(end.stream, data, size, writes)
            end.stream.registerProducer(producer, False)
            self.assertEqual(self.take(end, len(data)), data)
            self.assertLess(producer.asked, 2 + len(data) / size)

    def test_closing_waits_for_one_that_pulls(self) -> None:
        end = self.end()
        producer = PullProducer(end.stream, BYTES, 100_000)
        end.stream.registerProducer(producer, False)
        end.stream.loseConnection()
        self.assertEqual(self.take_to_the_end(end), BYTES)
        self.assertEqual((end.protocol.told, producer.stopped), (["lost"], False))

    def test_closing_does_not_wait_for_one_that_pushes_and_may(self) -> None:
        end, producer = self.end(), PushProducer()
        end.stream.registerProducer(producer, True)
        while not end.stream.unsent_here():
            end.stream.write(bytes(FILL // 4))
        self.assertEqual(producer.told, [])
        end.stream.loseConnection()
        self.take_to_the_end(end)
        self.assertEqual((end.protocol.told, producer.told), (["lost"], ["stop"]))

    def test_one_that_pulls_leaves_others_their_turn(self) -> None:
        # What is said to a Unix socket is there when it was said: it is the reactor that is waited for.
        greedy, other = self.end(), self.end(socket.AF_UNIX)
        producer = PullProducer(greedy.stream, BYTES, 10)
        greedy.stream.registerProducer(producer, False)
        for count in range(1, 20):
            other.say(b"x")
            before = producer.asked
            self.turn(lambda count=count: len(other.protocol.data) == count)  # type: ignore[misc]
            self.assertLess(producer.asked - before, 100)

    def test_there_is_one_at_a_time(self) -> None:
        end, producer = self.end(), PushProducer()
        end.stream.registerProducer(producer, True)
        self.assertRaises(RuntimeError, end.stream.registerProducer, PushProducer(), True)
        end.stream.unregisterProducer()
        end.stream.registerProducer(producer, True)
        end.stream.abortConnection()
        self.assertEqual(producer.told, ["stop"])


class FusedTests(StreamTestCase):
    def test_messages_and_bulk_pass_both_ways_and_no_protocol_sees_them(self) -> None:
        def check(family: int) -> None:
            a, b = self.fused(family=family)
            for number in range(20):
                for one, other in ((a, b), (b, a)):
                    one.say(b"%03d" % number)
                    self.take(other, 3 * number + 3)
            numbers = b"".join(b"%03d" % number for number in range(20))
            sent = {a: 0, b: 0}

            def done() -> bool:
                for one in (a, b):
                    sent[one] += one.say(BYTES[sent[one] : sent[one] + MB])
                    one.take()
                return all(len(one.heard) == len(BYTES) + 60 for one in (a, b))

            self.turn(done)
            self.assertEqual([bytes(one.heard) == numbers + BYTES for one in (a, b)], [True] * 2)
            self.assertEqual([one.stream.received for one in (a, b)], [len(BYTES) + 60] * 2)
            self.assertEqual(len(a.protocol.data) + len(b.protocol.data), 0)
            self.turn_while_busy()
            self.assertEqual([one.stream.pipe for one in (a, b)], [None, None])

        self.both(check)

    def test_an_end_follows_the_last_byte(self) -> None:
        def check(family: int) -> None:
            for size in (1, FILL, FILL + 1, 3 * MB):
                a, b = self.fused(family=family)
                sent = 0

                def all_said(a: End = a, b: End = b, size: int = size) -> bool:
                    nonlocal sent
                    sent += a.say(BYTES[sent:size])
                    b.take(100_000)
                    return sent == size

                self.turn(all_said)
                a.peer.shutdown(socket.SHUT_WR)
                self.assertEqual(self.take_to_the_end(b), BYTES[:size])
                b.say(b"an answer")
                b.peer.shutdown(socket.SHUT_WR)
                self.assertEqual(self.take_to_the_end(a), b"an answer")

        self.both(check)

    def test_what_was_there_before_goes_first(self) -> None:
        """The client's first bytes, and what a protocol wrote in front of them."""
        a, b = self.end(), self.end()
        a.stream.pauseProducing()
        said = a.say(BYTES[:FILL])
        self.turn_while_busy()
        header = b"HEADER" * 1_000_000
        b.stream.write(header)
        self.assertTrue(b.stream.blocked)
        self.fuse(a, b)
        a.stream.resumeProducing()
        self.assertEqual(self.take(b, len(header) + said), header + BYTES[:said])
        self.assertEqual(bytes(a.protocol.data), b"")

    def test_what_is_written_between_goes_between(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        held = b.stream.pipe
        assert held is not None
        self.assertGreater(held.held, 0)
        b.stream.write(b"between")
        moved = a.stream.received
        a.peer.shutdown(socket.SHUT_WR)
        self.assertEqual(self.take_to_the_end(b), BYTES[:moved] + b"between" + BYTES[moved:sent])

    def test_a_reader_that_stops_stops_the_other_side(self) -> None:
        a, b = self.fused(small=True)
        sent = self.stuff(a, BYTES)
        self.assertLess(sent, 4 * MB)
        received = a.stream.received
        self.turn_while_busy()
        self.assertEqual(a.stream.received, received)
        self.assertLessEqual(b.stream.unsent_here(), MB)
        a.peer.shutdown(socket.SHUT_WR)
        self.assertEqual(self.take_to_the_end(b), BYTES[:sent])

    def test_without_pipes_all_of_it_goes_by_the_buffer(self) -> None:
        with mock.patch.object(self.pipes, "borrow", lambda: None):
            a, b = self.fused()
            sent = self.stuff(a, BYTES)
            self.assertIsNone(b.stream.pipe)
            self.assertLessEqual(b.stream.unsent_here(), FILL)
            a.peer.shutdown(socket.SHUT_WR)
            self.assertEqual(self.take_to_the_end(b), BYTES[:sent])

    def test_pipes_that_come_and_go(self) -> None:
        dice = random.Random(4)
        borrow = self.pipes.borrow
        with mock.patch.object(
            self.pipes, "borrow", lambda: borrow() if dice.random() < 0.5 else None
        ):
            a, b = self.fused()
            sent = 0

            def done() -> bool:
                nonlocal sent
                sent += a.say(BYTES[sent : sent + 200_000])
                b.take(150_000)
                return len(b.heard) == len(BYTES)

            self.turn(done)
            self.assertEqual(bytes(b.heard), BYTES)

    def test_urgent_data_in_bulk_loses_nothing_of_the_rest(self) -> None:
        """splice(2) takes it for the end, if the end comes after it."""
        for after in (10, 3 * FILL):
            for ends in (True, False):
                a, b = self.fused()
                a.stream.pauseProducing()
                sent = a.say(BYTES[: 5 * FILL])
                a.peer.send(b"!", socket.MSG_OOB)
                sent += a.say(BYTES[sent : sent + after])
                if ends:
                    a.peer.shutdown(socket.SHUT_WR)
                self.turn_while_busy()
                a.stream.resumeProducing()
                self.assertEqual(self.take(b, sent), BYTES[:sent])

    def test_a_pause_gives_the_pipe_back(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        self.assertIsNotNone(b.stream.pipe)
        a.stream.pauseProducing()
        self.take(b, a.stream.received)
        self.turn_while_busy()
        self.assertEqual((b.stream.pipe, b.stream.blocked), (None, False))
        a.stream.resumeProducing()
        self.take(b, sent)

    def test_a_stream_that_is_its_own_producer_echoes(self) -> None:
        end = self.end()
        end.stream.registerProducer(end.stream, True)
        sent = 0

        def done() -> bool:
            nonlocal sent
            sent += end.say(BYTES[sent : sent + MB])
            end.take()
            return len(end.heard) == len(BYTES)

        self.turn(done)
        self.assertEqual(bytes(end.heard), BYTES)


class PartingTests(StreamTestCase):
    """Two that were fused, and part."""

    def test_in_mid_flow_the_protocol_gets_what_is_not_on_its_way(self) -> None:
        a, b = self.fused()
        a.protocol.then = lambda data: None
        sent = self.stuff(a, BYTES)
        on_its_way = a.stream.received
        self.assertGreater(b.stream.unsent_here(), 0)
        b.stream.unregisterProducer()
        sent += self.stuff(a, BYTES[sent : sent + MB])
        self.turn(lambda: a.stream.received == sent)
        self.assertEqual(self.take(b, on_its_way), BYTES[:on_its_way])
        self.turn_while_busy()
        self.assertEqual(len(b.heard), on_its_way)
        self.assertEqual(bytes(a.protocol.data), BYTES[on_its_way:sent])
        self.assertIsNone(b.stream.pipe)

    def test_paused_it_keeps_them_for_who_comes_next(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        a.stream.pauseProducing()
        b.stream.unregisterProducer()
        self.take(b, a.stream.received)
        self.turn_while_busy()
        self.assertEqual((len(b.heard), a.protocol.data), (a.stream.received, b""))
        b.stream.registerProducer(a.stream, True)
        self.turn_while_busy()
        self.assertEqual(len(b.heard), a.stream.received)
        a.stream.resumeProducing()
        self.assertEqual(self.take(b, sent), BYTES[:sent])

    def test_registered_again_with_the_pipe_full_it_goes_on_and_gives_the_pipe_back(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        self.assertIsNotNone(b.stream.pipe)
        b.stream.unregisterProducer()
        b.stream.registerProducer(a.stream, True)
        self.assertEqual(self.take(b, sent), BYTES[:sent])
        self.turn_while_busy()
        self.assertEqual((b.stream.pipe, a.protocol.data), (None, b""))

    def test_to_another(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        first = a.stream.received
        c = self.end()
        b.stream.unregisterProducer()
        a.stream.unregisterProducer()
        c.stream.registerProducer(a.stream, True)
        self.assertEqual(self.take(c, sent - first), BYTES[first:sent])
        self.assertEqual(self.take(b, first), BYTES[:first])

    def test_a_sink_that_is_closed_leaves_the_rest_to_the_protocol(self) -> None:
        for how in ("abortConnection", "loseConnection"):
            a, b = self.fused()
            a.protocol.then = lambda data: None
            sent = self.stuff(a, BYTES)
            gone = a.stream.received
            getattr(b.stream, how)()
            if how == "loseConnection":
                self.assertEqual(self.take_to_the_end(b), BYTES[:gone])
            self.turn(lambda a=a, sent=sent: a.stream.received == sent)  # type: ignore[misc]
            self.turn_while_busy()
            self.assertEqual(bytes(a.protocol.data), BYTES[gone:sent])

    def test_a_sink_that_is_reset_while_its_pipe_is_full(self) -> None:
        a, b = self.fused()
        self.stuff(a, BYTES)
        self.assertIsNotNone(b.stream.pipe)
        b.reset()
        self.turn(lambda: "lost" in b.protocol.told)
        self.assertEqual((b.protocol.told, b.stream.pipe), (["reset", "lost"], None))
        self.assertEqual(a.protocol.told, [])
        self.turn(lambda: a.say(b"x"))
        self.turn(lambda: a.protocol.data.endswith(b"x"))

    def test_a_source_that_is_reset_while_its_pipe_is_full(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        a.reset()
        self.turn(lambda: a.protocol.told)
        self.assertEqual(a.protocol.told, ["reset"])

        def lost() -> bool:
            b.take()
            return "lost" in a.protocol.told

        self.turn(lost)
        # What was still with the peer's kernel is gone with it.
        self.assertLessEqual(a.stream.received, sent)
        self.assertEqual(self.take(b, a.stream.received), BYTES[: a.stream.received])
        self.assertEqual(b.protocol.told, [])

    def test_both_reset_at_once(self) -> None:
        a, b = self.fused()
        self.stuff(a, BYTES)
        self.stuff(b, BYTES)
        a.reset()
        b.reset()
        self.turn(lambda: "lost" in a.protocol.told and "lost" in b.protocol.told)
        self.assertEqual(a.protocol.told, ["reset", "lost"])
        self.assertEqual(b.protocol.told, ["reset", "lost"])


def scripts(*more: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    """
    @param more: steps, besides those that all streams know.
    """
    size = st.one_of(st.integers(1, 300), st.integers(FILL - 2, FILL + 2), st.integers(1, 2 * MB))
    step = st.one_of(
        st.tuples(st.sampled_from(("say", "say", "take", "answer", "hear")), size),
        st.tuples(st.sampled_from(("turn", "turn", "pause", "resume")), st.just(0)),
        st.tuples(st.sampled_from(("register", "unregister", "starve", "feed", *more)), st.just(0)),
    )
    return st.lists(step, max_size=40)


class ScriptTests(StreamTestCase):
    def test_whatever_is_done_between_every_byte_arrives_in_order(self) -> None:
        @settings(
            max_examples=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(
            family=st.sampled_from((socket.AF_INET, socket.AF_UNIX)),
            small=st.booleans(),
            script=scripts(),
        )
        @example(
            family=socket.AF_INET,
            small=False,
            script=[("say", 2 * MB)] * 5
            + [("turn", 0)] * 3
            + [("unregister", 0), ("say", 1), ("turn", 0), ("register", 0), ("turn", 0)],
        )
        def check(family: int, small: bool, script: list[tuple[str, int]]) -> None:
            self.play(family, small, script)

        check()

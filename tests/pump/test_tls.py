"""
TLS by the transports of both pumps, on real sockets: what is said, what is ended, what is cut, and what
that becomes on the other side of a fusion.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
from typing import Any, ClassVar
from unittest import mock

from OpenSSL import SSL
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory
from zope.interface import implementer
from zope.interface.verify import verifyObject

from fwdrelay.config import KeepAlive
from fwdrelay.interfaces import IHandshakeProtocol, IStream
from fwdrelay.pump import buffered, make_pump, tls_stream
from fwdrelay.pump import linger as lingering
from fwdrelay.pump.secure import Garbled, PublicSecureSocket, Truncated
from tests.pump.reactors import ReactorTestCase
from tests.pump.test_stream import Recorder
from tests.pump.tls_peer import TLSPeer, accept

KB = 1 << 10
MB = 1 << 20
BYTES = random.Random(5).randbytes(3 * MB + 4321)


@implementer(IHandshakeProtocol, IHalfCloseableProtocol)
class Shaking(Recorder):
    """A recorder that hears of handshakes, too."""

    failed: Exception | None = None

    def connectionMade(self) -> None:
        self.transport.pauseProducing()

    def handshakeCompleted(self) -> None:
        self.told.append("shaken")

    def handshakeFailed(self, error: Exception) -> None:
        self.told.append("failed")
        self.failed = error


class TLSCase(ReactorTestCase):
    """
    Its tests run over the spliced pump, over the buffered one, and over the spliced one without direct calls
    of C functions.
    """

    kind = "EPoll"
    pump_name: ClassVar[str] = "splice"
    public: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "pump_name" in cls.__dict__ or cls.__name__ == "TLSCase":
            return
        kinds: dict[str, dict[str, Any]] = {
            "Buffered": {"pump_name": "buffered"},
            "Public": {"pump_name": "splice", "public": True},
        }
        for name, inner in kinds.items():
            made = f"{cls.__name__}{name}"
            attributes = {**inner, "__module__": cls.__module__, "__doc__": cls.__doc__}
            setattr(sys.modules[cls.__module__], made, type(made, (cls,), attributes))

    def setUp(self) -> None:
        super().setUp()
        if self.public:
            for module in (tls_stream, buffered):
                patch = mock.patch.object(module, "make_secure", PublicSecureSocket)
                patch.start()
                self.addCleanup(patch.stop)
        pump: Any = self.pump_name
        self.pump: Any = make_pump(pump, self.reactor, KeepAlive())
        self.accepted: list[Shaking] = []
        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = self.build
        self.port: Any = self.pump.listenTCP(0, factory, 50, "127.0.0.1")
        self.addCleanup(self.close)

    def build(self, address: object) -> Shaking:
        self.accepted.append(Shaking())
        return self.accepted[-1]

    def close(self) -> None:
        for protocol in self.accepted:
            if "lost" not in protocol.told:
                protocol.transport.unregisterProducer()
                protocol.transport.abortConnection()
        closing = self.port.stopListening()
        self.turn(lambda: closing is None or closing.called)
        self.turn_while_busy()
        self.pump.stop()

    def connect(self) -> tuple[socket.socket, Shaking]:
        """@return: a client's socket, and the other end of it, paused."""
        count = len(self.accepted)
        sock = socket.create_connection(self.port.socket.getsockname()[:2])
        self.addCleanup(sock.close)
        self.turn(lambda: len(self.accepted) > count)
        return sock, self.accepted[-1]

    def start(self, protocol: Shaking) -> None:
        """Begin the handshake at our end."""
        connection = accept(protocol.transport.getHandle())
        stream = self.pump.start_tls(protocol.transport, connection)
        stream.protocol = protocol
        protocol.transport = stream

    def shaken(self, peer: TLSPeer, ours: Shaking) -> None:
        """Wait until both are."""
        self.turn(lambda: peer.shake() and "shaken" in ours.told)

    def secure(self, version: str = "TLSv1.3") -> tuple[TLSPeer, Shaking]:
        """@return: a client and our end of it, that have shaken hands; ours is paused."""
        sock, protocol = self.connect()
        peer = TLSPeer(sock, version)
        self.start(protocol)
        self.shaken(peer, protocol)
        return peer, protocol

    def hears(self, peer: Any, data: bytes) -> None:
        """Wait until it has heard that, and no more."""
        self.turn(lambda: peer.hear() or len(peer.heard) >= len(data))
        self.assertEqual(bytes(peer.heard), data)

    def hears_the_end(self, peer: Any) -> None:
        """Wait until it has."""
        self.turn(lambda: peer.hear() or peer.ended)

    def is_truncated(self, ours: Shaking) -> None:
        """Wait until it is told so."""
        self.turn(lambda: "reset" in ours.told)
        self.assertIsInstance(ours.reset, Truncated)

    def fuse(self, one: Shaking, other: Shaking) -> None:
        """Relay between two, as a session does."""

        def ends(source: Shaking, sink: Shaking) -> None:
            def end() -> None:
                sink.transport.unregisterProducer()
                sink.transport.loseWriteConnection()

            source.then = sink.transport.write
            source.at_end = end

        ends(one, other)
        ends(other, one)
        one.transport.registerProducer(other.transport, True)
        other.transport.registerProducer(one.transport, True)
        one.transport.resumeProducing()
        other.transport.resumeProducing()


class TransportTests(TLSCase):
    def test_it_is_a_stream(self) -> None:
        _, ours = self.secure()
        verifyObject(IStream, ours.transport)
        verifyObject(IHandshakeProtocol, ours)
        self.assertIsInstance(ours.transport.secured, SSL.Connection)
        self.assertEqual(ours.transport.getHost().port, self.port.getHost().port)

    def test_bytes_both_ways(self) -> None:
        for version in ("TLSv1.2", "TLSv1.3"):
            peer, ours = self.secure(version)
            ours.transport.resumeProducing()
            peer.say(b"up")
            self.turn(lambda: ours.data == b"up")  # noqa: B023
            self.assertEqual(ours.transport.received, 2)
            self.assertGreater(ours.transport.heard, 0)
            ours.transport.write(b"down")
            self.turn(lambda: peer.hear() or peer.heard == b"down")  # noqa: B023

    def test_bytes_that_came_with_the_handshakes_last_message(self) -> None:
        sock, ours = self.connect()
        peer = TLSPeer(sock)
        self.start(ours)
        with mock.patch.object(peer, "flush", lambda: True):
            while not peer.shaken:
                peer.shake()
                if not peer.shaken:
                    TLSPeer.flush(peer)
                self.reactor.iterate(0.002)
            peer.tls.write(b"early")
            peer.tls.write(b"bird")
        peer.flush()
        self.turn(lambda: "shaken" in ours.told)
        ours.transport.resumeProducing()
        self.turn(lambda: ours.data == b"earlybird")

    def test_a_paused_one_gets_nothing(self) -> None:
        peer, ours = self.secure()
        peer.say(b"later")
        self.turn_while_busy()
        self.assertEqual(ours.data, b"")
        ours.transport.resumeProducing()
        self.turn(lambda: ours.data == b"later")

    def test_records_of_every_size(self) -> None:
        peer, ours = self.secure()
        ours.transport.resumeProducing()
        sizes = [1, 2, 16 * KB - 1, 16 * KB, 16 * KB + 1, 64 * KB, 100_000, 3, 0, 300_000, 1]
        said = b""
        for size in sizes:
            said += BYTES[:size]
            peer.say(BYTES[:size])
        self.turn(lambda: peer.flush() and len(ours.data) == len(said))
        self.assertEqual(bytes(ours.data), said)

    def test_what_is_written_while_nobody_reads(self) -> None:
        peer, ours = self.secure()
        for _ in range(8):
            for start in range(0, len(BYTES), 100_000):
                ours.transport.write(BYTES[start : start + 100_000])
        self.assertGreater(ours.transport.unsent_here(), 0)
        ours.transport.loseWriteConnection()
        self.turn(lambda: peer.hear() or peer.ended)
        self.assertEqual(bytes(peer.heard), BYTES * 8)
        self.assertIn("delivered", ours.told)

    def test_close_notify_is_an_end_and_no_more(self) -> None:
        peer, ours = self.secure()
        ours.transport.resumeProducing()
        peer.say(b"all")
        peer.end()
        self.turn(lambda: "end" in ours.told)
        self.assertEqual(ours.data, b"all")
        ours.transport.write(b"answer")
        ours.transport.loseWriteConnection()
        self.turn(lambda: peer.hear() or peer.ended)
        self.assertEqual(peer.heard, b"answer")
        self.assertNotIn("reset", ours.told)

    def test_an_end_without_close_notify_is_told_apart(self) -> None:
        for version in ("TLSv1.2", "TLSv1.3"):
            peer, ours = self.secure(version)
            ours.transport.resumeProducing()
            peer.say(b"not all")
            peer.fin()
            self.turn(lambda: "lost" in ours.told)  # noqa: B023
            self.assertEqual(ours.data, b"not all")
            self.assertEqual(ours.told, ["shaken", "reset", "lost"])
            self.assertIsInstance(ours.reset, Truncated)

    def test_an_end_without_close_notify_may_answer_ours(self) -> None:
        for lenient, says, told in (
            (True, b"", "end"),
            (True, b"more", "reset"),
            (False, b"", "reset"),
        ):
            peer, ours = self.secure()
            self.assertFalse(ours.transport.lenient)
            ours.transport.lenient = lenient
            ours.transport.resumeProducing()
            ours.transport.loseWriteConnection()
            self.hears_the_end(peer)
            if says:
                peer.say(says)
            peer.fin()
            self.turn(lambda: {"end", "reset"} & {*ours.told})  # noqa: B023
            self.assertIn(told, ours.told)
            self.assertEqual(bytes(ours.data), says)

    def test_a_reset_never_answers_our_end(self) -> None:
        for paused in (False, True):
            peer, ours = self.secure()
            ours.transport.lenient = True
            if not paused:
                ours.transport.resumeProducing()
            ours.transport.loseWriteConnection()
            self.hears_the_end(peer)
            peer.reset()
            self.turn(lambda: "reset" in ours.told)  # noqa: B023
            ours.transport.resumeProducing()
            self.turn(lambda: "lost" in ours.told)  # noqa: B023
            self.assertNotIn("end", ours.told)

    def test_an_end_that_was_said_stands_whatever_comes_after_it(self) -> None:
        """A client that says all and closes, and does not read what TLS says: its kernel resets."""
        for paused in (False, True):
            peer, ours = self.secure()
            if not paused:
                ours.transport.resumeProducing()
            peer.say(b"all")
            peer.end()
            peer.sock.close()
            if paused:
                self.turn(lambda: "reset" in ours.told)  # noqa: B023
                self.assertGreater(ours.transport.unread_here(), 0)
                ours.transport.resumeProducing()
            self.turn(lambda: "end" in ours.told)  # noqa: B023
            self.assertEqual(bytes(ours.data), b"all")

    def test_given_up_before_its_first_step(self) -> None:
        _, ours = self.connect()
        self.start(ours)
        ours.transport.abortConnection()
        ours.transport.protocol = Recorder()  # who hears of no handshakes
        self.turn_while_busy()
        ours.told.append("lost")

    def test_tls_is_not_begun_where_it_can_not_be(self) -> None:
        _, ours = self.connect()
        ours.transport.write(bytes(16 * MB))
        with self.assertRaises(ConnectionError):
            self.pump.start_tls(ours.transport, None)
        ours.transport.abortConnection()
        self.turn(lambda: "lost" in ours.told)
        with self.assertRaises(ConnectionError):
            self.pump.start_tls(ours.transport, None)

    def test_our_end_is_close_notify_and_fin(self) -> None:
        peer, ours = self.secure()
        ours.transport.write(b"bye")
        ours.transport.loseWriteConnection()
        self.turn(lambda: peer.hear() or (peer.ended and peer.cut))
        self.assertEqual(peer.heard, b"bye")
        self.assertIsNone(peer.failed)

    def test_closing_says_so_too(self) -> None:
        peer, ours = self.secure()
        ours.transport.write(b"bye")
        ours.transport.loseConnection()
        self.turn(lambda: peer.hear() or (peer.ended and peer.cut))
        self.assertEqual(peer.heard, b"bye")
        self.turn(lambda: "lost" in ours.told)

    def test_what_is_closed_can_be_closed_again(self) -> None:
        _, ours = self.secure()
        ours.transport.abortConnection()
        self.turn(lambda: "lost" in ours.told)
        ours.transport.loseConnection()
        ours.transport.linger()
        self.turn_while_busy()

    def test_a_reset(self) -> None:
        peer, ours = self.secure()
        ours.transport.resumeProducing()
        peer.say(b"some")
        self.turn(lambda: ours.data == b"some")
        peer.reset()
        self.turn(lambda: "lost" in ours.told)
        self.assertEqual(ours.told, ["shaken", "reset", "lost"])
        self.assertEqual(getattr(ours.reset, "errno", None), 104)

    def test_a_reset_of_a_paused_one_is_told(self) -> None:
        peer, ours = self.secure()
        peer.reset()
        self.turn(lambda: "reset" in ours.told)

    def test_aborting_resets(self) -> None:
        peer, ours = self.secure()
        ours.transport.abortConnection()
        self.turn(lambda: peer.hear() or peer.cut)
        self.assertIsInstance(peer.failed, ConnectionResetError)

    def test_garbage_breaks_the_connection_alone(self) -> None:
        peer, ours = self.secure()
        other_peer, other = self.secure()
        for each in (ours, other):
            each.transport.resumeProducing()
        peer.say(b"fine")
        peer.unsent = b"\x17\x03\x03\x00\x20" + bytes(32) + BYTES[:5000]
        peer.flush()
        self.turn(lambda: "lost" in ours.told)
        self.assertEqual(ours.data, b"fine")
        self.assertIsInstance(ours.reset, Garbled)
        self.assertIn("TLS: ", str(ours.reset))
        other_peer.say(b"unmoved")
        self.turn(lambda: other.data == b"unmoved")


class HandshakeTests(TLSCase):
    def test_what_was_written_before_goes_before(self) -> None:
        sock, ours = self.connect()
        ours.transport.write(b"PROXY UNKNOWN\r\n")
        peer = TLSPeer(sock)
        self.start(ours)
        said = b""
        while len(said) < 15:
            self.reactor.iterate(0.002)
            with contextlib.suppress(BlockingIOError):
                said += sock.recv(15 - len(said))
        self.assertEqual(said, b"PROXY UNKNOWN\r\n")
        self.turn(lambda: peer.shake() and "shaken" in ours.told)

    def test_not_tls(self) -> None:
        sock, ours = self.connect()
        sock.setblocking(False)
        self.start(ours)
        sock.send(b"\x16\x03\x01\x00\x05hello" + bytes(70_000))
        self.turn(lambda: "failed" in ours.told)
        self.assertIsInstance(ours.failed, SSL.Error)
        with mock.patch.object(
            lingering, "PATIENCE", 600
        ):  # it is the peer's end that is to end it
            ours.transport.linger()
        self.assertIn("lost", ours.told)
        got = [b""]

        def heard_all() -> bool:
            try:
                data = sock.recv(100)
            except BlockingIOError:
                return False
            got[0] += data
            return not data

        self.turn(heard_all)
        self.assertEqual(got[0][:1], b"\x15")  # an alert, and no reset
        sock.close()
        self.turn(lambda: not lingering._lingering)

    def test_the_client_leaves(self) -> None:
        sock, ours = self.connect()
        peer = TLSPeer(sock)
        self.start(ours)
        peer.shake()
        peer.fin()
        self.turn(lambda: "failed" in ours.told)
        ours.transport.abortConnection()
        self.turn(lambda: "lost" in ours.told)

    def test_the_client_resets(self) -> None:
        sock, ours = self.connect()
        peer = TLSPeer(sock)
        self.start(ours)
        self.turn_while_busy()
        peer.reset()
        self.turn(lambda: {"failed", "reset", "lost"} & {*ours.told})

    def test_a_byte_at_a_time(self) -> None:
        sock, ours = self.connect()
        peer = TLSPeer(sock)
        self.start(ours)
        with mock.patch.object(peer, "flush", lambda: True):
            while not (peer.shaken and "shaken" in ours.told):
                peer.shake()
                for byte in peer.outgoing.read():
                    sock.send(bytes([byte]))
                    self.reactor.iterate(0)
                self.reactor.iterate(0.001)

    def test_many_at_once(self) -> None:
        pairs = []
        for _ in range(20):
            sock, ours = self.connect()
            pairs.append((TLSPeer(sock), ours))
            self.start(ours)
        for peer, ours in pairs:
            self.shaken(peer, ours)

    def test_one_step_a_turn(self) -> None:
        """However many wait, whoever is relayed has had a turn between two steps."""
        loop, steps = mock.Mock(), []
        handshakes = tls_stream.Handshakes(loop)
        for number in range(3):
            stream: Any = mock.Mock()
            stream.step.side_effect = lambda number=number: steps.append(number)
            handshakes.add(stream)
        for done in ([0], [0, 1], [0, 1, 2]):
            self.assertEqual(loop.later.call_args_list, [mock.call(handshakes)])
            loop.later.reset_mock()
            handshakes.go_on()
            self.assertEqual(steps, done)
        self.assertEqual(loop.later.call_args_list, [])

    def test_a_step_that_fails_ends_its_connection_alone(self) -> None:
        handshakes = tls_stream.Handshakes(mock.Mock())
        broken, sound = mock.Mock(), mock.Mock()
        broken.step.side_effect = ZeroDivisionError
        handshakes.add(broken)
        handshakes.add(sound)
        with self.assertRaises(ZeroDivisionError):
            handshakes.go_on()
        handshakes.failed()
        broken.abortConnection.assert_called_once_with()
        handshakes.go_on()
        sound.step.assert_called_once_with()
        handshakes.failed()
        sound.abortConnection.assert_not_called()

    def test_given_up(self) -> None:
        _, ours = self.connect()
        self.start(ours)
        ours.transport.abortConnection()
        self.turn(lambda: "lost" in ours.told)
        self.turn_while_busy()


class FusedTests(TLSCase):
    def plain(self) -> tuple[Any, Shaking]:
        """@return: a client without TLS."""
        sock, ours = self.connect()
        sock.setblocking(False)
        return PlainPeer(sock), ours

    def pairs(self) -> Any:
        """@return: two clients, to be relayed between: every kind with every kind, but plain with plain."""
        for first, second in (
            (self.secure, self.plain),
            (self.plain, self.secure),
            (self.secure, self.secure),
        ):
            (one, ours), (other, its) = first(), second()
            self.fuse(ours, its)
            yield one, ours, other, its

    def test_bulk_and_end_each_way(self) -> None:
        for one, ours, other, _ in self.pairs():
            offset = [0]

            def goes_on(one: Any = one, other: Any = other, offset: Any = offset) -> bool:
                if one.flush() and offset[0] < len(BYTES):
                    one.say(BYTES[offset[0] : offset[0] + 200_000])
                    offset[0] += 200_000
                    if offset[0] >= len(BYTES):
                        one.end()
                other.hear(100_000)
                return bool(other.ended)

            self.turn(goes_on)
            self.assertEqual(bytes(other.heard), BYTES)
            self.assertIn("end", ours.told)
            other.say(b"the answer")
            other.end()
            self.hears_the_end(one)
            self.assertEqual(one.heard, b"the answer")
            self.assertEqual(ours.transport.received, len(BYTES))

    def test_a_reader_that_stalls_holds_its_writer(self) -> None:
        for one, _, other, its in self.pairs():
            sent = 0
            for _ in range(400):
                if one.flush() and sent < 64 * MB:
                    one.say(BYTES[: 256 * KB])
                    sent += 256 * KB
                self.reactor.iterate(0)
            self.assertLess(sent, 64 * MB)
            self.assertLessEqual(its.transport.unsent_here(), MB)
            total = sent

            def all_came(one: Any = one, other: Any = other, total: int = total) -> bool:
                one.flush()
                other.hear()
                return len(other.heard) >= total

            self.turn(all_came)
            self.assertEqual(bytes(other.heard), BYTES[: 256 * KB] * (total // (256 * KB)))

    def test_tiny_records_take_turns_with_others(self) -> None:
        one, ours = self.secure()
        other, its = self.plain()
        self.fuse(ours, its)
        secure = type(ours.transport.socket)
        receive, most = secure.receive, 0
        reads = 0

        def counted(*arguments: Any) -> int:
            nonlocal reads
            reads += 1
            count: int = receive(*arguments)
            return count

        with mock.patch.object(one, "flush", lambda: True):
            for number in range(1000):
                one.say(b"%d" % (number % 10))
        one.flush()
        turns = 0
        with mock.patch.object(secure, "receive", counted):
            while len(other.heard) < 1000:
                before = reads
                ours.transport.doRead() if self.pump_name == "buffered" else ours.transport.pull()
                most = max(most, reads - before)
                self.turn_while_busy()
                other.hear()
                turns += 1
        self.assertEqual(bytes(other.heard), b"0123456789" * 100)
        self.assertLessEqual(most, 64)

    def test_messages_back_and_forth(self) -> None:
        for one, _, other, _ in self.pairs():
            for number in range(20):
                word = b"%d" % number * number
                one.say(word + b".")
                self.hears(other, word + b".")
                other.heard.clear()
                other.say(word + b"!")
                self.hears(one, word + b"!")
                one.heard.clear()

    def test_a_cut_after_bytes_that_wait(self) -> None:
        """What was sent before a truncation is still passed on."""
        for first in (self.plain, self.secure):
            other, its = first()
            one, ours = self.secure()
            self.fuse(ours, its)
            sent = 0
            while sent < 2 * MB:
                if one.flush():
                    one.say(BYTES[: 64 * KB])
                    sent += 64 * KB
                other.hear()
                self.reactor.iterate(0)
            while not one.flush():
                other.hear()
                self.reactor.iterate(0)
            one.fin()
            self.hears(other, BYTES[: 64 * KB] * (sent // (64 * KB)))
            self.is_truncated(ours)

    def test_what_slow_sinks_keep_is_counted_and_given_back(self) -> None:
        if self.pump_name != "splice":
            return
        for one, _, other, _ in self.pairs():
            for _ in range(200):
                if one.flush():
                    one.say(BYTES[: 256 * KB])
                self.reactor.iterate(0)
            one.flush()
            one.unsent = b""
            other.reset()
            one.reset()
            self.turn(lambda: tls_stream.TLSStream.kept == 0)


class PlainPeer:
    """What `TLSPeer` is, without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent = b""
        self.heard = bytearray()
        self.ended = False
        self.failed: OSError | None = None

    def flush(self) -> bool:
        while self.unsent:
            try:
                sent = self.sock.send(self.unsent)
            except OSError:
                return False
            self.unsent = self.unsent[sent:]
        return True

    def say(self, data: bytes) -> None:
        self.unsent += data
        self.flush()

    def end(self) -> None:
        while not self.flush():
            pass
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def hear(self, most: int = MB) -> bool:
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return False
        except OSError as failed:
            self.failed = failed
            return False
        self.heard += data
        self.ended |= not data
        return False

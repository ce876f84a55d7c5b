"""
Kept flows of `fwdrelay.pump.stream` on real sockets: at any instant every byte is in a socket or in the flow's own
pipe, and ends are said though somebody else holds the same sockets.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import signal
import socket
import struct
import time
import traceback
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.epollreactor import EPollReactor

from fwdrelay.config import KeepAlive
from fwdrelay.pump import stream as stream_module
from fwdrelay.pump.pipes import SIZES, OwnPipe, Pipe
from fwdrelay.pump.spliced import Adoption, SplicedPump
from fwdrelay.pump.stream import Stream
from fwdrelay.pump.tcp_info import FlowOrigin, look
from tests.case import SynchronousTestCase, open_descriptors
from tests.pump.reactors import ReactorTestCase
from tests.pump.test_stream import (
    BYTES,
    FILL,
    KB,
    MB,
    End,
    Recorder,
    StreamTestCase,
    scripts,
)

_RESET = struct.pack("ii", 1, 0)


def capacity(pipe: OwnPipe) -> int:
    return fcntl.fcntl(pipe.read_end, fcntl.F_GETPIPE_SZ)


class OwnPipeTests(SynchronousTestCase):
    def pipe(self, pipe: OwnPipe | None = None) -> OwnPipe:
        made = OwnPipe.new() if pipe is None else pipe
        self.addCleanup(made.close)
        return made

    def test_it_is_one_descriptor_with_the_room_that_pipes_have(self) -> None:
        before = len(open_descriptors())
        pipe = self.pipe()
        self.assertEqual(len(open_descriptors()), before + 1)
        self.assertEqual(capacity(pipe), 64 * KB)
        self.assertRaises(BlockingIOError, os.read, pipe.read_end, 1)
        self.assertFalse(os.get_inheritable(pipe.read_end))

    def test_what_is_taken_comes_out_in_order(self) -> None:
        pipe = self.pipe()
        data = bytearray(BYTES[: 100 * KB])
        pipe.take(data)
        self.assertEqual((pipe.held, len(data)), (100 * KB, 0))
        pipe.shrink()
        self.assertGreater(capacity(pipe), 64 * KB)  # it can't yet
        self.assertEqual(os.read(pipe.read_end, MB), BYTES[: 100 * KB])
        pipe.shrink()
        self.assertEqual(capacity(pipe), 64 * KB)

    def test_what_does_not_fit_is_left(self) -> None:
        pipe = self.pipe()
        data = bytearray(BYTES[: 3 * MB])
        pipe.take(data)
        self.assertEqual(bytes(data), BYTES[pipe.held : 3 * MB])
        self.assertGreater(len(data), 0)

    def test_another_pipe_becomes_one_with_all_it_holds(self) -> None:
        other = Pipe()
        fcntl.fcntl(other.write_end, fcntl.F_SETPIPE_SZ, MB)
        other.held = os.write(other.write_end, BYTES[:MB])
        before = len(open_descriptors())
        pipe = self.pipe(OwnPipe.of(other))
        self.assertEqual(len(open_descriptors()), before - 1)
        self.assertEqual((pipe.held, os.read(pipe.read_end, 2 * MB)), (MB, BYTES[:MB]))
        pipe.shrink()
        self.assertEqual(capacity(pipe), SIZES[-1])

    def test_adopted_it_is_asked_what_it_holds(self) -> None:
        pipe = self.pipe()
        pipe.take(bytearray(b"some"))
        self.assertEqual(self.pipe(OwnPipe.adopt(os.dup(pipe.read_end))).held, 4)


class KeptTestCase(StreamTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.in_the_way = 0

    def keep(self, *ends: End) -> None:
        """Keep the flows into these."""
        for end in ends:
            pipe = end.stream.keep(lambda end=end: self.stands(end))  # type: ignore[misc]
            assert pipe is not None

    def stands(self, end: End) -> None:
        self.in_the_way += 1
        end.stream.unkeep()

    def without_memory(self) -> Any:
        """As long as it lasts, no byte may be seen by this process."""
        return mock.patch.object(stream_module, "_BUFFER", bytearray())


class KeptTests(KeptTestCase):
    def test_messages_and_bulk_pass_both_ways_and_not_through_this_process(self) -> None:
        def check(family: int) -> None:
            a, b = self.fused(family=family)
            self.keep(a, b)
            with self.without_memory():
                sent = 0
                for size in (1, 2, 1000, FILL, FILL + 1, 2):
                    a.say(BYTES[sent : sent + size])
                    sent += size
                    self.assertEqual(self.take(b, sent), BYTES[:sent])
                b.heard.clear()
                sent = 0

                def done() -> bool:
                    nonlocal sent
                    sent += a.say(BYTES[sent : 4 * MB])
                    b.take()
                    return len(b.heard) == 4 * MB

                self.turn(done)
                self.assertEqual(bytes(b.heard), BYTES[: 4 * MB])
                b.say(b"back")
                self.assertEqual(self.take(a, 4), b"back")
            self.assertEqual((a.protocol.data, b.protocol.data), (b"", b""))
            self.assertEqual(b.stream.received, 4)
            self.assertEqual(self.in_the_way, 0)

        self.both(check)

    def test_a_flow_of_crumbs_does_not_stall(self) -> None:
        # Segments of a pipe fill before its bytes do: a short splice proves nothing.
        a, b = self.fused()
        self.keep(a, b)
        a.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        a.stream.pauseProducing()
        for index in range(100):
            a.say(BYTES[index : index + 1])
        self.turn(a.arrived)
        a.stream.resumeProducing()
        self.assertEqual(self.take(b, 100), BYTES[:100])

    def test_a_remainder_in_memory_goes_to_the_pipe(self) -> None:
        a, b = self.fused(small=True)
        sent = 0
        while b.stream.pending is None:
            sent += a.say(BYTES[sent : sent + 3000])
            self.reactor.iterate(0)
        self.keep(a, b)
        self.assertIsNone(b.stream.pending)
        self.assertGreater(b.stream.unsent_here(), 0)
        with self.without_memory():
            self.assertEqual(self.take(b, sent), BYTES[:sent])

    def test_a_full_pipe_becomes_its_own_and_is_made_small_when_it_can_be(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        assert b.stream.pipe is not None
        self.assertGreater(b.stream.pipe.held, 64 * KB)
        self.keep(a, b)
        pipe = b.stream.pipe
        assert isinstance(pipe, OwnPipe)
        # Small at once, where the kernel has put it all into the few segments of a small one: each may hold 32 KiB.
        self.assertEqual(capacity(pipe) > 64 * KB, pipe.large)
        self.assertEqual(self.take(b, sent), BYTES[:sent])
        self.turn_while_busy()
        self.assertFalse(pipe.large)
        self.assertIs(b.stream.pipe, pipe)
        self.assertEqual(capacity(pipe), 64 * KB)

    def test_with_a_pipe_and_a_remainder_both_go_in_order(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        on_its_way = a.stream.received
        b.stream.write(b"between")
        self.keep(a, b)
        heard = self.take(b, sent + 7)
        self.assertTrue(
            heard == BYTES[:on_its_way] + b"between" + BYTES[on_its_way:sent], "out of order"
        )

    def test_what_does_not_fit_can_not_be_kept_and_is_not_lost(self) -> None:
        a, b = self.fused()
        sent = self.stuff(a, BYTES)
        on_its_way = a.stream.received
        b.stream.write(BYTES[: 4 * MB])
        self.assertIsNone(b.stream.keep(self.fail))
        b.stream.unkeep()
        heard = self.take(b, sent + 4 * MB)
        expected = BYTES[:on_its_way] + BYTES[: 4 * MB] + BYTES[on_its_way:sent]
        self.assertTrue(heard == expected, "out of order")
        self.turn_while_busy()
        self.assertIsNone(b.stream.pipe)

    def test_without_descriptors_it_goes_on_as_it_did(self) -> None:
        a, b = self.fused()
        for empty in (True, False):
            sent = 0 if empty else self.stuff(a, BYTES)
            with (
                mock.patch("os.open", side_effect=OSError(errno.EMFILE, "")),
                mock.patch("os.pipe2", side_effect=OSError(errno.EMFILE, "")),
            ):
                self.assertIsNone(b.stream.keep(self.fail))
            self.assertEqual(self.take(b, sent), BYTES[:sent])

    def test_it_moves_in_the_ordinary_way_again(self) -> None:
        for small in (True, False):
            a, b = self.fused(small=small)
            self.keep(a, b)
            sent = self.stuff(a, BYTES)
            for end in (a, b):
                end.stream.unkeep()
            self.assertIsNone(a.stream.pipe)
            self.assertEqual(self.take(b, sent), BYTES[:sent])
            self.turn_while_busy()
            self.assertIsNone(b.stream.pipe)
            a.say(b"more")
            self.assertEqual(self.take(b, sent + 4)[sent:], b"more")

    def test_ends_and_pauses(self) -> None:
        a, b = self.fused()
        self.keep(a, b)
        a.stream.pauseProducing()
        a.say(BYTES[:1000])
        a.peer.shutdown(socket.SHUT_WR)
        self.turn_while_busy()
        self.assertEqual((a.stream.received, a.protocol.told), (0, []))
        a.stream.resumeProducing()
        self.assertEqual(self.take_to_the_end(b), BYTES[:1000])
        b.say(b"answer")
        self.assertEqual(self.take(a, 6), b"answer")

    def test_urgent_data_ends_it_and_holds_nothing_up(self) -> None:
        a, b = self.fused()
        self.keep(a, b)
        a.say(b"before")
        self.take(b, 6)
        a.peer.send(b"!", socket.MSG_OOB)
        a.say(b"after")
        self.assertEqual(self.take(b, 11), b"beforeafter")
        self.assertEqual(self.in_the_way, 1)
        self.turn_while_busy()
        # It can be kept again once all that was read.
        self.keep(b)
        a.say(b"more")
        self.assertEqual(self.take(b, 15), b"beforeaftermore")
        self.assertEqual(self.in_the_way, 1)

    def test_it_waits_for_urgent_data_to_be_over(self) -> None:
        a, b = self.fused()
        a.stream.pauseProducing()
        a.peer.send(b"!", socket.MSG_OOB)
        self.turn(lambda: a.stream.urgent)
        self.assertIsNone(b.stream.keep(self.fail))

    def test_descriptors_passed_along_hold_nothing_up(self) -> None:
        a, b = self.fused(family=socket.AF_UNIX)
        self.keep(a, b)
        a.say(b"before")
        socket.send_fds(a.peer, [b"with"], [a.peer.fileno()])
        a.say(b"after")
        self.assertEqual(self.take(b, 15), b"beforewithafter")

    def test_a_reset_of_the_source_is_told_after_what_it_sent(self) -> None:
        a, b = self.fused()
        self.keep(a, b)
        a.stream.pauseProducing()
        sent = a.say(BYTES[: 100 * KB])
        self.turn(a.arrived)
        a.reset()
        self.turn(lambda: a.protocol.told)
        self.assertEqual(a.protocol.told, ["reset"])
        a.stream.resumeProducing()
        self.assertEqual(self.take(b, sent), BYTES[:sent])
        self.turn(lambda: "lost" in a.protocol.told)

    def test_a_reset_of_the_sink_leaves_the_rest_to_the_protocol(self) -> None:
        a, b = self.fused()
        self.keep(a, b)

        def reset(error: BaseException) -> None:
            b.stream.unregisterProducer()

        b.protocol.connectionReset = reset  # type: ignore[method-assign]
        sent = self.stuff(a, BYTES)
        gone = a.stream.received
        b.reset()
        self.turn(lambda: len(a.protocol.data) + gone == sent)
        self.assertEqual(bytes(a.protocol.data), BYTES[gone:sent])

    def test_whether_it_may_be(self) -> None:
        a, b = self.fused()
        self.assertTrue(a.stream.may_be_kept)
        self.assertTrue(self.end().stream.may_be_kept)
        b.stream.start_peeking(10, lambda data, at_end: None)
        self.assertFalse(b.stream.may_be_kept)
        a.reset()
        self.turn(lambda: a.stream.reset)
        self.assertFalse(a.stream.may_be_kept)

    def test_whatever_is_done_between_every_byte_arrives_in_order(self) -> None:
        @settings(
            max_examples=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(
            family=st.sampled_from((socket.AF_INET, socket.AF_UNIX)),
            small=st.booleans(),
            script=scripts("keep", "keep", "unkeep"),
        )
        def check(family: int, small: bool, script: list[tuple[str, int]]) -> None:
            self.play(family, small, script)

        check()


class SharedTests(KeptTestCase):
    """Somebody else holds the same sockets."""

    def shared(self) -> tuple[End, End, list[socket.socket]]:
        a, b = self.fused()
        self.keep(a, b)
        held = [socket.socket(fileno=os.dup(each.stream.fd)) for each in (a, b)]
        for each in held:
            self.addCleanup(each.close)
        return a, b, held

    def test_closing_says_the_end(self) -> None:
        a, _, held = self.shared()
        held[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        a.stream.write(b"last")
        a.stream.loseConnection()
        self.assertEqual(self.take_to_the_end(a), b"last")
        held[0].close()  # which says nothing any more
        self.assertEqual(a.peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_half_closing_says_it_too(self) -> None:
        a, b, _ = self.shared()
        a.peer.shutdown(socket.SHUT_WR)
        self.assertEqual(self.take_to_the_end(b), b"")

    def test_an_abort_resets_when_the_last_one_closes(self) -> None:
        a, _, held = self.shared()
        a.stream.abortConnection()
        self.turn_while_busy()
        self.assertRaises(BlockingIOError, a.peer.recv, 1)
        held[0].close()
        a.peer.setblocking(True)
        self.assertRaises(ConnectionResetError, a.peer.recv, 1)

    def test_a_closed_one_is_heard_of_no_more(self) -> None:
        # Its number may be a successor's, while what it was open on has news.
        for how in ("loseConnection", "abortConnection", "detach"):
            a, b, held = self.shared()
            number = a.stream.fd
            getattr(a.stream, how)()
            self.turn_while_busy()
            a.say(b"for whoever holds it")
            epoll = self.loop._epoll
            assert epoll is not None
            self.assertGreaterEqual(b.stream.fd, 0)
            self.assertEqual([fd for fd, _ in epoll.poll(0) if fd == number], [])
            if how == "detach":
                a.protocol.told.append("lost")  # as a session would know
                held[0].setblocking(True)
                self.assertEqual(held[0].recv(100), b"for whoever holds it")

    def test_detached_nothing_is_said_or_told(self) -> None:
        a, b, held = self.shared()
        told = list(a.protocol.told)
        for end in (a, b):
            end.stream.detach()
            end.stream.detach()
        self.turn_while_busy()
        for end in (a, b):
            self.assertRaises(BlockingIOError, end.peer.recv, 1)
            self.assertEqual(end.protocol.told, told)
            end.protocol.told.append("lost")
        held[1].send(b"goes on")
        self.assertEqual(self.take(b, 7), b"goes on")


class AdoptionTestCase(ReactorTestCase):
    """
    With a pump that adopts what tests make of sockets and pipes.

    @ivar client: the client's protocol, `upstream`: the target's.
    """

    def setUp(self) -> None:
        super().setUp()
        self.pump = SplicedPump(self.reactor, KeepAlive())
        self.loop = self.pump.loop
        self.client, self.upstream = Recorder(), Recorder()
        self.in_the_way = 0
        self.peers: list[socket.socket] = []
        self.adoption: Adoption | None = None
        self.addCleanup(self.pump.stop)
        self.addCleanup(self.close)

    def close(self) -> None:
        if self.adoption is not None:
            self.adoption.failed()
        for peer in self.peers:
            peer.close()
        self.turn_while_busy()

    def pair(self, family: int = socket.AF_INET) -> socket.socket:
        """A socket as a relay has it; its peer is added to `peers`."""
        if family == socket.AF_UNIX:
            ours, peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                peer = socket.create_connection(listening.getsockname())
                ours, _ = listening.accept()
        ours.setblocking(False)
        self.peers.append(peer)
        return ours

    def left_behind(
        self, family: int = socket.AF_INET, up: bytes = b"", down: bytes = b""
    ) -> tuple[socket.socket, socket.socket, OwnPipe, OwnPipe]:
        """What a process has left: sockets, and pipes that hold something."""
        client, upstream = self.pair(family), self.pair(family)
        pipes = OwnPipe.new(), OwnPipe.new()
        for pipe, data in zip(pipes, (up, down), strict=True):
            pipe.take(bytearray(data))
        return client, upstream, *pipes

    def adopt(
        self,
        left: tuple[socket.socket, socket.socket, OwnPipe, OwnPipe],
        origins: tuple[FlowOrigin | None, FlowOrigin | None] = (None, None),
    ) -> Adoption:
        client, upstream, up, down = left
        self.adoption = self.pump.adopt(
            (client.detach(), upstream.detach(), up.read_end, down.read_end), *origins
        )
        for protocol, other in ((self.client, self.upstream), (self.upstream, self.client)):
            protocol.at_end = lambda other=other: (  # type: ignore[misc]
                other.transport.unregisterProducer(),
                other.transport.loseWriteConnection(),
            )
        self.adoption.begin(self.client, self.upstream, (10, 20), self.stands)
        return self.adoption

    def stands(self) -> None:
        self.in_the_way += 1

    def origins(
        self, left: tuple[socket.socket, socket.socket, OwnPipe, OwnPipe]
    ) -> tuple[FlowOrigin | None, FlowOrigin | None]:
        client, upstream = look(left[0]), look(left[1])
        return (
            FlowOrigin.of(client, upstream, left[2].held, left[2].held),
            FlowOrigin.of(upstream, client, left[3].held, left[3].held),
        )

    def heard(self, peer: int, count: int) -> bytes:
        """What a peer hears, `count` bytes or until the end."""
        sock, heard = self.peers[peer], bytearray()
        sock.setblocking(False)

        def enough() -> bool:
            try:
                data = sock.recv(count - len(heard))
            except BlockingIOError:
                return False
            heard.extend(data)
            return not data or len(heard) == count

        self.turn(enough)
        return bytes(heard)


class AdoptionTests(AdoptionTestCase):
    def test_what_the_pipes_hold_comes_first(self) -> None:
        for family in (socket.AF_INET, socket.AF_UNIX):
            self.peers.clear()
            left = self.left_behind(family, b"up ", b"down ")
            self.peers[0].sendall(b"to the target")
            self.peers[1].sendall(b"to the client")
            adoption = self.adopt(left)
            self.assertEqual((adoption.passed_up, adoption.passed_down), (None, None))
            self.assertEqual(self.heard(1, 16), b"up to the target")
            self.assertEqual(self.heard(0, 18), b"down to the client")
            self.assertEqual((adoption.client.received, adoption.upstream.received), (23, 33))
            self.close()
            self.client, self.upstream = Recorder(), Recorder()

    def test_ends_are_said_again(self) -> None:
        left = self.left_behind(up=b"last")
        self.peers[0].shutdown(socket.SHUT_WR)
        left[1].setblocking(True)
        self.adopt(left)
        self.assertEqual(self.heard(1, 100), b"last")
        self.assertEqual(self.client.told, ["end"])
        self.peers[1].shutdown(socket.SHUT_WR)
        self.assertEqual(self.heard(0, 100), b"")

    def test_an_end_that_was_passed_on_before_is_one_still(self) -> None:
        left = self.left_behind()
        self.peers[0].shutdown(socket.SHUT_WR)
        left[1].shutdown(socket.SHUT_WR)
        self.adopt(left, self.origins(left))
        self.turn(lambda: self.client.told)
        self.peers[1].sendall(b"answer")
        self.assertEqual(self.heard(0, 6), b"answer")
        self.assertEqual((self.client.told, self.upstream.told), (["end"], ["delivered"]))

    def reset(self, left: Any, *, told: bool) -> None:
        """Let the client reset; `told`: to who is no more."""
        self.peers[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.peers[0].close()
        poll = select.poll()
        poll.register(left[0], 0)
        self.assertTrue(poll.poll(10_000))  # it comes
        if told:
            self.assertNotEqual(left[0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_a_reset_that_nobody_was_told_of(self) -> None:
        for told in (False, True):
            left = self.left_behind(up=b"sent before")
            origins = self.origins(left)
            self.reset(left, told=told)
            adoption = self.adopt(left, origins)
            self.turn(lambda: self.client.told)
            self.assertEqual(self.client.told[0], "reset")
            assert isinstance(self.client.reset, OSError)
            self.assertEqual(self.client.reset.errno, errno.ECONNRESET)
            self.assertEqual(self.heard(1, 11), b"sent before")
            self.turn(lambda: "lost" in self.client.told)
            self.assertNotIn("end", self.client.told)
            self.assertEqual(adoption.passed_up, 11)
            self.close()
            self.peers.clear()
            self.client, self.upstream = Recorder(), Recorder()

    def test_a_reset_that_came_after_an_end(self) -> None:
        for told in (False, True):
            left = self.left_behind()
            origins = self.origins(left)
            self.peers[0].shutdown(socket.SHUT_WR)
            self.reset(left, told=told)
            self.adopt(left, origins)
            self.turn(lambda: "end" in self.client.told)
            self.assertEqual(self.heard(1, 1), b"")
            self.close()
            self.peers.clear()
            self.client, self.upstream = Recorder(), Recorder()

    def test_what_is_told_of_an_address_that_is_gone(self) -> None:
        left = self.left_behind()
        self.reset(left, told=True)
        self.assertRaises(OSError, left[0].getpeername)
        self.assertEqual(self.adopt(left).client.getPeer().port, 0)

    def test_one_that_is_closed_before_it_begins(self) -> None:
        adoption = self.adopt(self.left_behind(up=b"x"))
        adoption.client.detach()
        adoption.upstream.abortConnection()
        self.turn_while_busy()
        self.assertEqual(self.upstream.told, ["lost"])

    def test_wrong_descriptors_are_closed(self) -> None:
        before = len(open_descriptors())
        ends = os.pipe()
        client = self.pair()
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
        for descriptors in (
            (client.detach(), ends[0], ends[1], os.dup(0)),
            (self.pair().detach(), datagrams.detach(), *os.pipe()),
        ):
            self.assertRaises(OSError, self.pump.adopt, descriptors, None, None)
        for peer in self.peers:
            peer.close()
        self.assertEqual(len(open_descriptors()), before)

    def test_a_defect_ends_both(self) -> None:
        adoption = self.adopt(self.left_behind())
        with mock.patch.object(Stream, "drive", side_effect=ZeroDivisionError):
            self.turn(lambda: self.client.told)
        self.assertEqual((self.client.told, self.upstream.told), (["lost"], ["lost"]))
        self.assertEqual(adoption.client.fd, -1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class KilledTests(SynchronousTestCase):
    """Processes that are killed while they relay, wherever they are."""

    KILLS = 40
    PATIENCE = 60.0

    def relay(self, descriptors: tuple[int, int, int, int]) -> int:
        """@return: a process that goes on with what the last one has left."""
        child = os.fork()
        if child:
            return child
        try:
            reactor = EPollReactor()
            pump = SplicedPump(reactor, KeepAlive())
            client, upstream = Recorder(), Recorder()
            for protocol, other in ((client, upstream), (upstream, client)):
                protocol.at_end = lambda other=other: (  # type: ignore[misc]
                    other.transport.unregisterProducer(),
                    other.transport.loseWriteConnection(),
                )
            adoption = pump.adopt(descriptors, None, None)
            adoption.begin(client, upstream, (0, 0), lambda: None)
            while True:
                reactor.iterate(0.1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def test_not_a_byte_is_lost(self) -> None:
        pairs = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as listening:
                peer = socket.create_connection(listening.getsockname())
                ours, _ = listening.accept()
            ours.setblocking(False)
            peer.setblocking(False)
            pairs.append((ours, peer))
            self.addCleanup(peer.close)
            self.addCleanup(ours.close)
        pipes = OwnPipe.new(), OwnPipe.new()
        for pipe in pipes:
            self.addCleanup(pipe.close)
        descriptors = (
            pairs[0][0].fileno(),
            pairs[1][0].fileno(),
            pipes[0].read_end,
            pipes[1].read_end,
        )
        peers = [peer for _, peer in pairs]
        left = {peer: memoryview(BYTES) for peer in peers}
        heard = {peer: bytearray() for peer in peers}
        poll = select.poll()
        for peer in peers:
            poll.register(peer, select.POLLIN | select.POLLOUT)
        by_number = {peer.fileno(): peer for peer in peers}
        chance = random.Random(5)
        open_ends = set(peers)
        deadline = time.monotonic() + self.PATIENCE
        kills = 0
        child = self.relay(descriptors)
        try:
            while open_ends:
                self.assertLess(time.monotonic(), deadline, "it never ended")
                for number, events in poll.poll(1000):
                    peer = by_number[number]
                    if events & select.POLLIN:
                        data = peer.recv(chance.choice((100, 4 * KB, 64 * KB)))
                        heard[peer] += data
                        if not data:
                            open_ends.discard(peer)
                            poll.modify(peer, select.POLLOUT if left[peer] else 0)
                    if events & select.POLLOUT and left[peer]:
                        sent = peer.send(left[peer][: chance.choice((10, 5 * KB, 200 * KB))])
                        left[peer] = left[peer][sent:]
                        if not left[peer]:
                            peer.shutdown(socket.SHUT_WR)
                            poll.modify(peer, select.POLLIN if peer in open_ends else 0)
                progress = sum(map(len, heard.values()))
                if kills < self.KILLS and progress > kills * 2 * len(BYTES) // self.KILLS:
                    kills += 1
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    child = self.relay(descriptors)
        finally:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        self.assertEqual((os.WTERMSIG(status), kills), (signal.SIGKILL, self.KILLS))
        for peer in peers:
            self.assertTrue(heard[peer] == BYTES, f"{len(heard[peer])} bytes")

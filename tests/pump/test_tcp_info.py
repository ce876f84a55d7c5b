"""`fwdrelay.pump.tcp_info` on real connections: numbers that whoever comes later can count on."""

from __future__ import annotations

import os
import select
import socket
import struct
import termios

from fwdrelay.pump.tcp_info import FlowOrigin, TCPLook, look, queued
from tests.case import SynchronousTestCase

_RESET = struct.pack("ii", 1, 0)


class TCPInfoTestCase(SynchronousTestCase):
    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A socket as a relay has it, and its peer."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            peer = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        self.addCleanup(peer.close)
        self.addCleanup(ours.close)
        return ours, peer

    def wait(self, sock: socket.socket, events: int) -> None:
        """Until the kernel tells so of it."""
        poll = select.poll()
        poll.register(sock, events)
        self.assertTrue(poll.poll(10_000))

    def seen(self, sock: socket.socket) -> TCPLook:
        seen = look(sock)
        assert seen is not None
        return seen


class LookTests(TCPInfoTestCase):
    def test_what_is_read_and_written_counts_wherever_it_is(self) -> None:
        ours, peer = self.pair()
        first = self.seen(ours)
        peer.sendall(b"x" * 1000)
        self.wait(ours, select.POLLIN)
        self.assertEqual(queued(ours.fileno(), termios.FIONREAD), 1000)
        self.assertEqual(self.seen(ours).read, first.read)
        ours.recv(400)
        self.assertEqual(self.seen(ours).read, first.read + 400)
        ours.send(b"y" * 300)
        self.assertEqual(self.seen(ours).written, first.written + 300)
        peer.recv(300)
        self.assertEqual(self.seen(ours).written, first.written + 300)

    def test_an_end_counts_as_one_byte_read_or_not(self) -> None:
        ours, peer = self.pair()
        first = self.seen(ours)
        self.assertEqual((first.fin_came, first.fin_sent, first.closed), (False, False, False))
        peer.sendall(b"end")
        peer.shutdown(socket.SHUT_WR)
        self.wait(ours, select.POLLRDHUP)
        self.assertEqual((self.seen(ours).fin_came, self.seen(ours).read), (True, first.read + 1))
        self.assertEqual(ours.recv(10), b"end")
        self.assertEqual(self.seen(ours).read, first.read + 4)
        self.assertEqual(ours.recv(10), b"")
        self.assertEqual(self.seen(ours).read, first.read + 4)
        ours.shutdown(socket.SHUT_WR)
        self.assertEqual(self.seen(ours).written, first.written + 1)
        self.wait(ours, select.POLLHUP)
        self.assertEqual(self.seen(ours).written, first.written + 1)

    def test_of_one_that_is_over_only_the_numbers_are_left(self) -> None:
        ours, peer = self.pair()
        first = self.seen(ours)
        ours.send(b"lost" * 100)
        peer.sendall(b"left")
        self.wait(ours, select.POLLIN)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        peer.close()
        self.wait(ours, select.POLLHUP)
        self.assertEqual(
            self.seen(ours), TCPLook(first.read, first.written + 400, True, None, None)
        )

    def test_a_unix_socket_tells_nothing(self) -> None:
        for sock in socket.socketpair():
            self.assertIsNone(look(sock))
            sock.close()


class FlowOriginTests(TCPInfoTestCase):
    def test_bytes_are_counted_on_by_whoever_comes_later(self) -> None:
        (source, client), (sink, upstream) = self.pair(), self.pair()
        sink.send(b"a header goes first")
        client.sendall(b"x" * 1000)
        self.wait(source, select.POLLIN)
        sink.send(source.recv(700))
        origin = FlowOrigin.of(self.seen(source), self.seen(sink), 0, 700)
        assert origin is not None
        self.assertEqual(origin.passed(self.seen(source), self.seen(sink), 0), 700)
        source.recv(300)  # which are in a pipe
        self.assertEqual(origin.passed(self.seen(source), self.seen(sink), 300), 1000)
        client.shutdown(socket.SHUT_WR)
        self.wait(source, select.POLLRDHUP)
        self.assertEqual(origin.passed(self.seen(source), self.seen(sink), 300), 1000)
        self.assertTrue(origin.fin_came(self.seen(source), self.seen(sink), 300))
        sink.send(b"x" * 300)
        sink.shutdown(socket.SHUT_WR)
        self.assertEqual(origin.passed(self.seen(source), self.seen(sink), 0), 1000)
        self.assertTrue(origin.fin_came(self.seen(source), self.seen(sink), 0))
        # Whoever begins to count only now comes to the same.
        self.assertEqual(FlowOrigin.of(self.seen(source), self.seen(sink), 0, 1000), origin)
        upstream.close()

    def closed(self, end_first: bool) -> bool:
        """
        @return: whether an end is found to have come, on a socket that somebody has asked why it is closed.
        """
        (source, client), (sink, _) = self.pair(), self.pair()
        origin = FlowOrigin.of(self.seen(source), self.seen(sink), 0, 0)
        assert origin is not None
        client.sendall(b"some")
        self.wait(source, select.POLLIN)
        sink.send(source.recv(10))
        source.send(b"never read")
        if end_first:
            client.shutdown(socket.SHUT_WR)
            self.wait(source, select.POLLRDHUP)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        client.close()
        self.wait(source, select.POLLHUP)
        self.assertNotEqual(source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        self.assertEqual(source.recv(10), b"")
        self.assertEqual(origin.passed(self.seen(source), self.seen(sink), 0), 4)
        return origin.fin_came(self.seen(source), self.seen(sink), 0)

    def test_a_reset_that_reads_as_an_end_is_none(self) -> None:
        self.assertFalse(self.closed(end_first=False))

    def test_an_end_that_came_before_a_reset_is_one(self) -> None:
        self.assertTrue(self.closed(end_first=True))

    def test_nothing_is_known_of_what_is_over_or_does_not_count(self) -> None:
        seen = self.seen(self.pair()[0])
        over = TCPLook(1, 1, True, None, None)
        for source, sink in ((None, seen), (seen, None), (over, seen), (seen, over)):
            self.assertIsNone(FlowOrigin.of(source, sink, 0, 0))

    def test_an_end_that_was_passed_on_has_come(self) -> None:
        over = TCPLook(10, 10, True, None, None)
        self.assertTrue(FlowOrigin(0, 0).fin_came(over, TCPLook(0, 10, False, False, True), 0))
        self.assertTrue(FlowOrigin(0, 0).fin_came(over, over, 0))

    def test_a_pipe_can_be_asked_too(self) -> None:
        ends = os.pipe()
        os.write(ends[1], b"12345")
        self.assertEqual(queued(ends[0], termios.FIONREAD), 5)
        for each in ends:
            os.close(each)

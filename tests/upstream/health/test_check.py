"""`fwdrelay.upstream.health.check`, against servers on this machine that behave and that do not."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, LoopingCall
from twisted.internet.tcp import BaseClient

from fwdrelay.config import TargetConfig
from fwdrelay.upstream.health.check import MOST_DROPPED, CannotCheck, Check, How
from fwdrelay.upstream.health.probe import (
    CheckFailed,
    Expecting,
    Handshake,
    HttpRequest,
    Probe,
    tls_context,
)
from fwdrelay.upstream.resolve import Addresses, Resolver
from fwdrelay.wire.proxyprotocol import local_header
from tests.case import TestCase
from tests.upstream.health.servers import PATIENCE, Server, nobody_listens, server_context

SHORT = 0.3
"""Seconds: the time-out of checks that are to run into it."""


def read_all(sock: socket.socket) -> bytes:
    """All bytes up to the peer's end; a reset is an error."""
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def plain() -> How:
    return How(lambda target: Probe(), PATIENCE)


def expecting(send: bytes, expect: bytes | None) -> How:
    pattern = None if expect is None else re.compile(expect)
    return How(lambda target: Expecting(send, pattern), PATIENCE)


def tls() -> How:
    context = tls_context()
    return How(lambda target: Handshake(context, target.host), PATIENCE)


def http() -> How:
    return How(lambda target: HttpRequest(target, "/"), PATIENCE)


class SteadyReactor:
    """
    The reactor, with a time of its own: as the common one, but a small step in a turn at most. Whatever has come
    while the machine stood still is seen before time is up.
    """

    STEP = 0.01

    def __init__(self) -> None:
        self.clock = Clock()
        self.seconds = self.clock.seconds
        self.callLater = self.clock.callLater
        self._steps = LoopingCall(self.clock.advance, self.STEP)
        self._steps.start(self.STEP)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def stop(self) -> None:
        """Let time stand still."""
        self._steps.stop()


class CheckCase(TestCase):
    def setUp(self) -> None:
        self.resolver = Resolver(reactor)
        self.reactor = SteadyReactor()
        self.addCleanup(self.reactor.stop)

    def check(self, target: TargetConfig, how: How) -> Check:
        return Check(self.reactor, self.resolver, target, how)

    async def told(self, check: Check) -> str:
        """
        Make a check, up to its end.

        @return: how it failed; empty: it was passed.
        """
        try:
            await check.verdict()
        except CheckFailed as failed:
            return str(failed)
        else:
            return ""
        finally:
            await check.end()

    async def outcome(self, target: TargetConfig, how: How) -> str:
        """The same for a target."""
        return await self.told(self.check(target, how))

    async def both(self, target: TargetConfig, how: How, serving: Deferred[Any]) -> Any:
        """Check a target that is `serving`: what is told of it, and what it has seen."""
        told = await self.outcome(target, how)
        return told, await serving


class EndsTests(CheckCase):
    """How connections end: always with FIN, never with RST while it can be helped."""

    async def test_connected_and_ended(self) -> None:
        with Server() as server:
            self.assertEqual(
                await self.both(server.target, plain(), server.serving(read_all)), ("", b"")
            )

    async def test_over_ipv6(self) -> None:
        with Server(host="::1") as server:
            self.assertEqual(
                await self.both(server.target, plain(), server.serving(read_all)), ("", b"")
            )

    async def test_servers_that_talk_first(self) -> None:
        def talk(connection: socket.socket) -> bytes:
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 100)
            heard = read_all(connection)
            # Sent to a socket that was closed, this would be answered with RST.
            connection.sendall(b"more" * 1000)
            connection.shutdown(socket.SHUT_WR)
            self.assertEqual(connection.recv(1), b"")
            self.assertEqual(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
            return heard

        with Server() as server:
            self.assertEqual(
                await self.both(server.target, plain(), server.serving(talk)), ("", b"")
            )

    async def test_unix_sockets(self) -> None:
        with tempfile.TemporaryDirectory(prefix="fwdrelay-") as folder:
            for path in (f"{folder}/server", f"@fwdrelay-test-{os.getpid()}"):
                with Server(path) as server:
                    serving = server.serving(read_all)
                    self.assertEqual(await self.both(server.target, plain(), serving), ("", b""))

    async def test_a_server_that_never_ends_is_left_with_fin_when_time_is_up(self) -> None:
        def talk(connection: socket.socket) -> bytes:
            heard = read_all(connection)
            select.select([], [], [], SHORT * 2)
            return heard

        with Server() as server:
            how = attrs.evolve(plain(), timeout=SHORT)
            self.assertEqual(await self.both(server.target, how, server.serving(talk)), ("", b""))

    async def test_a_flood_is_read_for_so_long_and_no_longer(self) -> None:
        def talk(connection: socket.socket) -> int:
            sent = 0
            try:
                while True:
                    sent += connection.send(b"x" * 65536)
            except OSError as error:
                self.assertIn(error.errno, (errno.ECONNRESET, errno.EPIPE))
            return sent

        with Server() as server:
            told, sent = await self.both(server.target, plain(), server.serving(talk))
            self.assertEqual(told, "")
            self.assertGreaterEqual(sent, MOST_DROPPED)
            # What is in the kernel's buffers on both sides, besides.
            self.assertLess(sent, MOST_DROPPED + (64 << 20))


class NotConnectedTests(CheckCase):
    async def test_refused(self) -> None:
        self.assertEqual(await self.outcome(nobody_listens(), plain()), "connection refused")

    async def test_no_such_unix_socket(self) -> None:
        told = await self.outcome(TargetConfig(path="/nowhere/socket"), plain())
        self.assertEqual(told, "no such file or directory")

    async def test_a_full_queue_is_asked_again(self) -> None:
        with Server(f"@fwdrelay-test-{os.getpid()}") as server:
            server.socket.listen(0)
            with socket.socket(socket.AF_UNIX) as filler:
                filler.connect(server.socket.getsockname())
                how = attrs.evolve(plain(), timeout=SHORT)
                told = await self.outcome(server.target, how)
                self.assertEqual(told, "its queue is full")
                verdict = Deferred.fromCoroutine(self.outcome(server.target, plain()))
                await server.serving(lambda first: None)
                heard = await server.serving(read_all)
                self.assertEqual((await verdict, heard), ("", b""))

    async def test_a_queue_that_drops(self) -> None:
        with Server() as server:
            server.socket.listen(0)
            with socket.socket() as filler:
                filler.connect(server.socket.getsockname())
                how = attrs.evolve(plain(), timeout=SHORT)
                told = await self.outcome(server.target, how)
        self.assertEqual(told, "no connection within 0.3s")

    async def test_names_are_resolved(self) -> None:
        with Server() as server:
            target = attrs.evolve(server.target, host="localhost")
            serving = server.serving(read_all)
            self.assertEqual(await self.both(target, plain(), serving), ("", b""))

    async def test_a_name_that_does_not_resolve(self) -> None:
        target = TargetConfig(host="no-such-name.invalid", port=80)
        told = await self.outcome(target, plain())
        self.assertEqual(told, "no-such-name.invalid does not resolve")

    async def test_a_name_that_nobody_answers_for(self) -> None:
        class Silent(Resolver):
            """One whose name servers are gone."""

            def resolve(self, host: str) -> Deferred[Addresses]:
                return Deferred()

        self.resolver = Silent(reactor)
        how = attrs.evolve(plain(), timeout=SHORT)
        told = await self.outcome(TargetConfig(host="app.example.com", port=80), how)
        self.assertEqual(told, "app.example.com did not resolve within 0.3s")

    async def test_known_addresses_are_not_looked_up(self) -> None:
        with Server() as server:
            target = attrs.evolve(
                server.target, host="no-such-name.invalid", addresses=("127.0.0.1",)
            )
            serving = server.serving(read_all)
            self.assertEqual(await self.both(target, plain(), serving), ("", b""))

    async def test_one_healthy_address_is_enough(self) -> None:
        with Server() as server:
            target = attrs.evolve(
                server.target, host="app", addresses=("127.0.0.2", "::1", "127.0.0.1")
            )
            serving = server.serving(read_all)
            self.assertEqual(await self.both(target, plain(), serving), ("", b""))

    async def test_what_none_of_several_addresses_is(self) -> None:
        target = attrs.evolve(nobody_listens(), host="app", addresses=("127.0.0.2", "127.0.0.1"))
        self.assertEqual(await self.outcome(target, plain()), "connection refused")

    async def test_an_address_that_drops_leaves_time_for_the_next(self) -> None:
        with Server() as healthy, Server(host="127.0.0.2", port=healthy.target.port) as full:
            full.socket.listen(0)
            with socket.socket() as filler:
                filler.connect(full.socket.getsockname())
                target = attrs.evolve(
                    healthy.target, host="app", addresses=("127.0.0.2", "127.0.0.1")
                )
                how = attrs.evolve(plain(), timeout=2 * SHORT)
                serving = healthy.serving(read_all)
                self.assertEqual(await self.both(target, how, serving), ("", b""))

    async def test_from_a_source_address(self) -> None:
        with Server() as server:
            how = attrs.evolve(plain(), bind="127.0.0.3")
            serving = server.serving(lambda connection: connection.getpeername()[0])
            self.assertEqual(await self.both(server.target, how, serving), ("", "127.0.0.3"))

    async def test_no_address_that_the_source_address_could_reach(self) -> None:
        target = TargetConfig(host="::1", port=80)
        told = await self.outcome(target, attrs.evolve(plain(), bind="127.0.0.1"))
        self.assertEqual(told, "no IPv4 address to be reached from 127.0.0.1")


class OwnFaultTests(CheckCase):
    async def test_out_of_descriptors(self) -> None:
        def create(client: Any) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(BaseClient, "createInternetSocket", create)
        for target in (TargetConfig(host="127.0.0.1", port=1), TargetConfig(path="/nowhere")):
            with self.assertRaisesRegex(CannotCheck, "^too many open files$"):
                await self.outcome(target, plain())

    async def test_a_source_address_that_is_not_here(self) -> None:
        how = attrs.evolve(plain(), bind="192.0.2.1")
        with self.assertRaisesRegex(CannotCheck, "^cannot assign requested address$"):
            await self.outcome(TargetConfig(host="127.0.0.1", port=1), how)
        # Twisted leaves the socket that it could not bind to the interpreter.
        self.flushWarnings()

    async def test_a_zone_that_is_not_here(self) -> None:
        with self.assertRaisesRegex(CannotCheck, "^name or service not known$"):
            await self.outcome(TargetConfig(host="fe80::1%nowhere", port=1), plain())
        # As above.
        self.flushWarnings()

    async def test_an_address_that_could_be_tried_decides(self) -> None:
        class Poor:
            """A reactor that has no socket for one address."""

            def __getattr__(self, name: str) -> Any:
                return getattr(reactor, name)

            def connectTCP(self, host: str, *arguments: Any, **keywords: Any) -> Any:
                if host == "127.0.0.2":
                    raise OSError(errno.EMFILE, "Too many open files")
                return reactor.connectTCP(host, *arguments, **keywords)

        target = attrs.evolve(nobody_listens(), host="app", addresses=("127.0.0.2", "127.0.0.1"))
        check = Check(Poor(), self.resolver, target, plain())
        self.assertEqual(await self.told(check), "connection refused")


class ExpectingTests(CheckCase):
    async def test_answered_as_expected(self) -> None:
        def talk(connection: socket.socket) -> bytes:
            asked = connection.recv(100)
            connection.sendall(b"+PO")
            connection.sendall(b"NG\r\n")
            return asked + read_all(connection)

        with Server() as server:
            how = expecting(b"PING\r\n", rb"^\+PONG\r\n")
            serving = server.serving(talk)
            self.assertEqual(await self.both(server.target, how, serving), ("", b"PING\r\n"))

    async def test_sent_before_the_end(self) -> None:
        with Server() as server:
            how = expecting(b"QUIT\r\n", None)
            serving = server.serving(read_all)
            self.assertEqual(await self.both(server.target, how, serving), ("", b"QUIT\r\n"))

    async def test_no_answer(self) -> None:
        with Server() as server:
            how = attrs.evolve(expecting(b"PING\r\n", b"PONG"), timeout=SHORT)
            told, heard = await self.both(server.target, how, server.serving(read_all))
        self.assertEqual(told, "no matching answer within 0.3s")
        self.assertEqual(heard, b"PING\r\n")  # and FIN, not RST

    async def test_another_answer_and_the_end(self) -> None:
        def talk(connection: socket.socket) -> bytes:
            connection.sendall(b"-NOAUTH\r\n")
            connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

        with Server() as server:
            how = expecting(b"PING\r\n", b"PONG")
            self.assertEqual(
                await self.both(server.target, how, server.serving(talk)),
                ("the answer '-NOAUTH\\r\\n' does not match", b"PING\r\n"),
            )

    async def test_reset(self) -> None:
        with Server() as server:
            how = expecting(b"", b"PONG")
            told, _ = await self.both(server.target, how, server.serving(reset))
            self.assertEqual(told, "connection reset by peer")

    async def test_a_flood_without_it(self) -> None:
        def talk(connection: socket.socket) -> None:
            try:
                while True:
                    connection.sendall(b"x" * 65536)
            except OSError:
                pass

        with Server() as server:
            told, _ = await self.both(server.target, expecting(b"", b"PONG"), server.serving(talk))
            self.assertEqual(told, "nothing in the first 64 KiB of the answer matches")

    async def test_a_server_that_reads_nothing(self) -> None:
        over = socket.socketpair()

        def talk(connection: socket.socket) -> None:
            over[1].recv(1)

        with Server() as server, over[0], over[1]:
            how = attrs.evolve(expecting(b"x" * (32 << 20), b"PONG"), timeout=SHORT)
            serving = server.serving(talk)
            told = await self.outcome(server.target, how)
            self.assertEqual(told, "no matching answer within 0.3s")
            over[0].send(b"!")
            await serving


class TlsTests(CheckCase):
    def answering(self, version: int) -> Any:
        """What serves one handshake, and returns how TLS ended."""

        def talk(connection: socket.socket) -> Any:
            context = server_context()
            context.set_max_proto_version(version)
            tls = SSL.Connection(context, connection)
            tls.set_accept_state()
            connection.setblocking(True)
            tls.do_handshake()
            name = tls.get_servername()
            try:
                tls.recv(1)
            except SSL.ZeroReturnError:
                # close_notify; and this is read after it:
                return name, connection.recv(1)
            return name, "no close_notify"

        return talk

    async def test_completed_and_ended_by_close_notify_and_fin(self) -> None:
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            with Server() as server:
                target = attrs.evolve(server.target, host="app", addresses=("127.0.0.1",))
                serving = server.serving(self.answering(version))
                self.assertEqual(await self.both(target, tls(), serving), ("", (b"app", b"")))

    async def test_a_server_that_does_not_speak_tls(self) -> None:
        def talk(connection: socket.socket) -> bytes:
            connection.sendall(b"220 ready\r\n")
            return read_all(connection)

        with Server() as server:
            told, heard = await self.both(server.target, tls(), server.serving(talk))
        self.assertRegex(told, "^the TLS handshake failed: ")
        self.assertNotEqual(heard, b"")

    async def test_no_answer(self) -> None:
        with Server() as server:
            how = attrs.evolve(tls(), timeout=SHORT)
            told, _ = await self.both(server.target, how, server.serving(read_all))
            self.assertEqual(told, "no complete TLS handshake within 0.3s")

    async def test_ended_and_reset(self) -> None:
        for talk, told in (
            (lambda connection: connection.shutdown(socket.SHUT_WR), "ended the connection during"),
            (reset, "connection reset by peer"),
        ):
            with Server() as server:
                said, _ = await self.both(server.target, tls(), server.serving(talk))
                self.assertIn(told, said)


class HttpTests(CheckCase):
    def answering(self, *parts: bytes) -> Any:
        """What serves one answer, and returns all it was asked; the client must not end before it."""

        def talk(connection: socket.socket) -> bytes:
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                asked += connection.recv(1 << 16)
            for part in parts:
                connection.sendall(part)
                self.assertEqual(select.select([connection], [], [], 0.05)[0], [])
            connection.shutdown(socket.SHUT_WR)
            return asked + read_all(connection)

        return talk

    async def test_healthy(self) -> None:
        with Server() as server:
            serving = server.serving(
                self.answering(b"HTTP/1.", b"1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello")
            )
            told, asked = await self.both(server.target, http(), serving)
        self.assertEqual(told, "")
        self.assertTrue(asked.startswith(b"GET / HTTP/1.1\r\n"))

    async def test_not_healthy(self) -> None:
        with Server() as server:
            serving = server.serving(self.answering(b"HTTP/1.1 503 No\r\n", b"\r\nsorry"))
            told, _ = await self.both(server.target, http(), serving)
        self.assertEqual(told, "HTTP status 503")

    async def test_garbage(self) -> None:
        def talk(connection: socket.socket) -> bytes:
            connection.sendall(b"\xff\0{garbage}\r\n" * 1000)
            return read_all(connection)

        with Server() as server:
            told, _ = await self.both(server.target, http(), server.serving(talk))
        self.assertRegex(told, r"^answered '\\xff\\x00{garbage}.*…', which is not HTTP$")

    async def test_no_answer(self) -> None:
        with Server() as server:
            how = attrs.evolve(http(), timeout=SHORT)
            told, _ = await self.both(server.target, how, server.serving(read_all))
            self.assertEqual(told, "no HTTP status within 0.3s")


class ProxyTests(CheckCase):
    async def test_version_2_says_local_first(self) -> None:
        with Server() as server:
            how = attrs.evolve(expecting(b"PING", None), send_proxy="v2")
            self.assertEqual(
                await self.both(server.target, how, server.serving(read_all)),
                ("", local_header("v2") + b"PING"),
            )

    async def test_version_1_tells_the_ends_of_this_connection(self) -> None:
        def talk(connection: socket.socket) -> tuple[bytes, bytes]:
            (source, port), (destination, to) = connection.getpeername(), connection.getsockname()
            line = f"PROXY TCP4 {source} {destination} {port} {to}\r\n".encode()
            return line, read_all(connection)

        with Server() as server:
            how = attrs.evolve(plain(), send_proxy="v1")
            told, (line, heard) = await self.both(server.target, how, server.serving(talk))
            self.assertEqual((told, heard), ("", line))

    async def test_version_1_knows_no_unix_sockets(self) -> None:
        with Server(f"@fwdrelay-test-{os.getpid()}") as server:
            how = attrs.evolve(plain(), send_proxy="v1")
            self.assertEqual(
                await self.both(server.target, how, server.serving(read_all)),
                ("", b"PROXY UNKNOWN\r\n"),
            )

    async def test_before_tls(self) -> None:
        with Server() as server:
            how = attrs.evolve(tls(), send_proxy="v2", timeout=SHORT)
            _, heard = await self.both(server.target, how, server.serving(read_all))
            header = local_header("v2")
            self.assertEqual(heard[: len(header) + 2], header + b"\x16\x03")


class GivenUpTests(CheckCase):
    async def test_while_it_connects(self) -> None:
        with Server() as server:
            server.socket.listen(0)
            with socket.socket() as filler:
                filler.connect(server.socket.getsockname())
                check = self.check(server.target, plain())
                await self.given_up(check)

    async def test_while_it_waits_for_an_answer(self) -> None:
        with Server() as server:
            check = self.check(server.target, expecting(b"PING", b"PONG"))
            heard = Deferred[None]()

            def talk(connection: socket.socket) -> bytes:
                said = connection.recv(100)
                reactor.callFromThread(heard.callback, None)  # type: ignore[attr-defined]
                return said + read_all(connection)

            serving = server.serving(talk)
            verdict = Deferred.fromCoroutine(check.verdict())
            await heard
            verdict.cancel()
            check.give_up()
            await self.assertFailure(verdict, CancelledError)
            self.assertEqual(await serving, b"PING")

    async def test_after_the_verdict(self) -> None:
        with Server() as server:
            check = self.check(server.target, plain())
            # Nobody accepts, so nobody ends either.
            await check.verdict()
            end = Deferred.fromCoroutine(check.end())
            self.assertNoResult(end)
            check.give_up()
            await end
            with server.socket.accept()[0] as accepted:
                accepted.settimeout(PATIENCE)
                self.assertEqual(accepted.recv(1), b"")

    async def given_up(self, check: Check) -> None:
        """Nothing may be left of it, not even for a turn of the reactor."""
        with counting_sockets() as left:
            verdict = Deferred.fromCoroutine(check.verdict())
            self.assertEqual(left(), 1)
            verdict.cancel()
            check.give_up()
            self.assertEqual(left(), 0)
        await self.assertFailure(verdict, CancelledError)


@contextmanager
def counting_sockets() -> Iterator[Any]:
    """The block gets what tells how many sockets were opened in it and are open still."""

    def count() -> int:
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return sum(os.path.islink(link) and "socket:" in os.readlink(link) for link in links)

    before = count()
    yield lambda: count() - before

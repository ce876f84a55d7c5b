"""Clients that don't come to the end of their handshake: cut in time, told of in a line, and no trouble to others."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.relay_process import (
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
)
from tests.scenarios.scenario import Scenario
from tests.scenarios.tls_ends import (
    VERSIONS,
    TLSScenario,
    TLSSocket,
    client_context,
    listener,
    relays_own,
    where,
)


def client_hello(version: str = "TLSv1.3") -> bytes:
    """What a client says first."""
    outgoing = ssl.MemoryBIO()
    tls = client_context(version).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without an answer")


class Stopping(Scenario):
    def test_a_relay_that_stops_waits_for_sessions_and_cuts_who_is_left(self) -> None:
        place = Path(self.folder())
        relays_own().write(place, "relay")
        for signals, limit, reason in ((1, "300ms", "drain-timeout"), (2, "1h", "stopped")):
            with Upstream() as upstream, ExitStack() as opened:
                text = listener("web", "up", tls=True) + (
                    f'[pool.up]\ntargets = ["{upstream.target}"]\n'
                    f'[relay]\ndrain_timeout = "{limit}"\n'
                )
                relay = opened.enter_context(
                    ConfiguredRelay(place / "relay.toml", text, "--pump", self.pump)
                )
                silent = opened.enter_context(relay.connect_to("web"))
                amid = opened.enter_context(relay.connect_to("web"))
                amid.sendall(client_hello())
                amid.recv(1)
                context = client_context(trusted=False)
                client: Any = opened.enter_context(TLSSocket(relay.connect_to("web"), context))
                server = opened.enter_context(upstream.accept())
                client.sendall(b"hello")
                self.assertEqual(read_exactly(server, 5), b"hello")
                relay.signal(signal.SIGTERM)
                if signals == 2:
                    relay.wait_for_line("Draining 3 sessions")
                    relay.signal(signal.SIGTERM)
                for each in (silent, amid, client, server):
                    read_until_reset(each)
                told = {(entry["reason"], entry["code"]) for entry in relay.ended(3)}
                self.assertEqual(told, {(reason, "KR"), (reason, "KD")})


class Deadlines(TLSScenario):
    upstream: ClassVar[Upstream]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        cls.upstream = opened.enter_context(Upstream())
        return (
            f'[pool.up]\ntargets = ["{cls.upstream.target}"]\n'
            + listener("hasty", "up", tls=True, timeouts='handshake = "300ms"')
            + listener("patient", "up", tls=True)
        )

    def is_cut(self, said: bytes, error: str) -> None:
        """Assert that who says this, and no more, is; and that others enter meanwhile."""
        with ExitStack() as opened:
            with self.relay.standing_still():
                sock = opened.enter_context(self.relay.connect_to("hasty"))
                client = where(sock)
                sock.sendall(said)
            self.enters("patient")
            # An answer may come before it, if what was said deserves one.
            read_until_reset(sock)
        self.has_ended_so(
            client, "tls-timeout", "cR", error=error, bytes_up=0, bytes_down=0, target=None
        )

    def enters(self, name: str) -> None:
        """Assert that a client that does as it should is relayed."""
        sock = self.relay.connect_to(name)
        with (
            TLSSocket(sock, client_context(), name="localhost") as client,
            self.upstream.accept() as server,
        ):
            client.sendall(b"hello")
            self.assertEqual(read_exactly(server, 5), b"hello")

    def test_a_client_that_says_nothing_is_cut(self) -> None:
        self.is_cut(b"", "no ClientHello in time")

    def test_a_client_that_stops_within_its_hello_is_cut(self) -> None:
        hello = client_hello()
        for length in (1, 5, 6, len(hello) - 1):
            self.is_cut(hello[:length], "the ClientHello was not complete in time")

    def test_a_client_that_stops_after_its_hello_is_cut(self) -> None:
        for version in VERSIONS:
            error = "the TLS handshake was not complete in time"
            self.is_cut(client_hello(version), error)

    def test_a_client_that_trickles_its_hello_is_cut_all_the_same(self) -> None:
        """The deadline counts from the beginning; a byte now and then doesn't move it."""
        hello = client_hello()
        with ExitStack() as opened:
            with self.relay.standing_still():
                sock = opened.enter_context(self.relay.connect_to("hasty"))
                client = where(sock)
                sock.sendall(hello[:1])
            sock.settimeout(0.02)
            cut = False
            for number in range(1, len(hello)):
                try:
                    sock.sendall(hello[number : number + 1])
                    sock.recv(1)
                except TimeoutError:
                    continue
                except ConnectionError:
                    cut = True
                    break
            self.assertTrue(cut)
        error = "the ClientHello was not complete in time"
        self.has_ended_so(client, "tls-timeout", "cR", error=error)

    def test_a_hello_in_many_pieces_is_understood(self) -> None:
        for version in VERSIONS:
            with self.relay.connect_to("patient") as sock:
                context = client_context(version)
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        for each in outgoing.read():
                            sock.sendall(bytes([each]))
                        incoming.write(sock.recv(1 << 16))
                sock.sendall(outgoing.read())
                self.upstream.accept().close()
                self.assertEqual(tls.version(), version)

    def test_a_client_that_leaves_without_a_word_has_left(self) -> None:
        for leave in (socket.socket.close, reset):
            sock = self.relay.connect_to("patient")
            client = where(sock)
            leave(sock)
            self.has_ended_so(client, "client-left", "CR", bytes_up=0)
        self.enters("patient")

    def test_a_client_that_leaves_within_the_handshake_is_reported(self) -> None:
        hello = client_hello()
        for said, error in (
            (hello[:50], "the ClientHello breaks off"),
            (hello, "the client closed the connection in the middle of the TLS handshake"),
        ):
            with self.relay.connect_to("patient") as sock:
                client = where(sock)
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    read_all(sock)
            self.has_ended_so(client, "tls-failed", "PR", error=error)
        for said in (hello[:50], hello):
            sock = self.relay.connect_to("patient")
            client = where(sock)
            sock.sendall(said)
            reset(sock)
            self.assertEqual(self.entry(client)["code"][1], "R")
        self.enters("patient")

    def test_what_is_not_tls_is_told_so(self) -> None:
        for said, error in (
            (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "the client speaks HTTP without TLS"),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "what the client sent is not TLS"),
            (bytes(2000), ""),
            (b"\x16\x03\x01\xff\xff" + bytes(20_000), ""),
            (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(64), ""),
        ):
            with self.relay.connect_to("patient") as sock:
                client = where(sock)
                sock.sendall(said)
                self.assertLess(len(read_all(sock)), 100)  # an alert, then a clean end
            self.has_ended_so(client, "tls-failed", "PR", error=error, bytes_up=0)
        self.enters("patient")

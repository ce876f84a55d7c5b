"""`fwdrelay.upstream.health.probe`: conversations without a connection."""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from fwdrelay.config import TargetConfig, UpstreamTLSConfig
from fwdrelay.tls import UpstreamTLS
from fwdrelay.upstream.health.probe import (
    LONGEST_ANSWER,
    LONGEST_HANDSHAKE,
    LONGEST_HEADER,
    CheckFailed,
    Expecting,
    Handshake,
    HttpRequest,
    Probe,
    Secured,
    tls_context,
)
from tests.case import SynchronousTestCase
from tests.pki import Authority, Identity
from tests.upstream.health.servers import server_context


@functools.cache
def root() -> Authority:
    return Authority()


@functools.cache
def app() -> Identity:
    return root().vouch("app", dns=["app.example.com"])


def converse(probe: Probe, answers: Iterable[bytes], ended: bool = True) -> str:
    """
    @return: how the check failed; empty: it passed.
    """
    try:
        probe.begin()
        for answer in answers:
            if probe.passed:
                return ""
            probe.received(answer)
        if probe.passed:
            return ""
        if ended:
            probe.ended()
    except CheckFailed as failed:
        return str(failed)
    return "undecided"


def in_pieces(data: bytes, size: int = 1) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


class ExpectingTests(SynchronousTestCase):
    def test_nothing_is_expected(self) -> None:
        probe = Expecting(b"QUIT\r\n", None)
        self.assertEqual(probe.begin(), b"QUIT\r\n")
        self.assertTrue(probe.passed)

    def test_found_wherever_it_stands(self) -> None:
        answers = [b"* noise\r\n+PO", b"NG\r\n"]
        self.assertEqual(
            converse(Expecting(b"", re.compile(rb"^\+PONG", re.MULTILINE)), answers), ""
        )

    def test_what_ends_without_it_does_not_match(self) -> None:
        self.assertEqual(
            converse(Expecting(b"", re.compile(rb"PONG")), [b"-NOAUTH\r\n"]),
            "the answer '-NOAUTH\\r\\n' does not match",
        )

    def test_what_ends_without_a_word(self) -> None:
        self.assertEqual(
            converse(Expecting(b"", re.compile(rb"PONG")), []),
            "ended the connection without an answer",
        )

    def test_searched_in_so_much_and_no_more(self) -> None:
        noise = b"." * (LONGEST_ANSWER - 4)
        self.assertEqual(converse(Expecting(b"", re.compile(b"PONG")), [noise, b"PONG"]), "")
        told = converse(Expecting(b"", re.compile(b"PONG")), [noise, b".PONG"])
        self.assertEqual(told, "nothing in the first 64 KiB of the answer matches")

    def test_long_answers_are_not_logged_whole(self) -> None:
        told = converse(Expecting(b"", re.compile(rb"PONG")), [b"\x1b[2J" * 100])
        self.assertLess(len(told), 200)
        self.assertTrue(told.isprintable())


class HttpTests(SynchronousTestCase):
    target = TargetConfig(host="app.example.com", port=8080)

    def check(self, *answers: bytes) -> str:
        return converse(HttpRequest(self.target, "/"), answers)

    def request(self, target: TargetConfig, path: str = "/") -> bytes:
        return HttpRequest(target, path).begin()

    def test_the_request(self) -> None:
        lines = self.request(self.target, "/health?deep=1").decode("ascii").split("\r\n")
        self.assertEqual(lines[0], "GET /health?deep=1 HTTP/1.1")
        self.assertEqual(lines[-2:], ["", ""])
        fields = dict(line.split(": ", 1) for line in lines[1:-2])
        self.assertEqual(fields["Host"], "app.example.com:8080")
        self.assertEqual(fields["Connection"], "close")
        self.assertRegex(fields["User-Agent"], r"^fwdrelay/\d")

    def test_hosts(self) -> None:
        for target, host in (
            (TargetConfig(host="app", port=80), b"app"),
            (TargetConfig(host="::1", port=8080), b"[::1]:8080"),
            (TargetConfig(host="bücher.example", port=80), b"xn--bcher-kva.example"),
            (TargetConfig(path="/run/app.sock"), b"localhost"),
        ):
            self.assertIn(b"\r\nHost: " + host + b"\r\n", self.request(target))

    def test_another_host_is_asked_where_that_is_wanted(self) -> None:
        request = HttpRequest(TargetConfig(path="/run/s"), "/", "www.example.com:81").begin()
        self.assertIn(b"\r\nHost: www.example.com:81\r\n", request)
        self.assertEqual(request.count(b"Host: "), 1)

    def test_a_path_can_become_nothing_but_a_path(self) -> None:
        request = self.request(self.target, "/a b\r\nX: y\r\n\r\nü")
        self.assertTrue(
            request.startswith(b"GET /a%20b%0D%0AX:%20y%0D%0A%0D%0A%C3%BC HTTP/1.1\r\n")
        )
        self.assertEqual(request.count(b"\r\n\r\n"), 1)

    def test_healthy(self) -> None:
        for line in (
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.0 204 No Content\r\n",
            b"HTTP/2 302\n",
            b"HTTP/1.1 399 \r\n",
        ):
            self.assertEqual(self.check(line), "", line)
            self.assertEqual(self.check(*in_pieces(line)), "", line)

    def test_not_healthy(self) -> None:
        for status in (400, 404, 500, 503, 999):
            line = b"HTTP/1.1 %d \r\n" % status
            self.assertEqual(self.check(line), f"HTTP status {status}")
            self.assertEqual(self.check(*in_pieces(line)), f"HTTP status {status}")

    def test_the_server_is_let_finish_its_answer(self) -> None:
        for line in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 503 \r\n"):
            probe = HttpRequest(self.target, "/")
            converse(probe, [line])
            self.assertTrue(probe.peer_ends)

    def test_interim_answers_do_not_count(self) -> None:
        interim = (
            b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        )
        for last, told in ((b"200 OK", ""), (b"500 Oops", "HTTP status 500")):
            answer = interim + b"HTTP/1.1 " + last + b"\r\n"
            self.assertEqual(self.check(answer), told)
            self.assertEqual(self.check(*in_pieces(answer)), told)

    def test_interim_answers_without_end(self) -> None:
        answers = [b"HTTP/1.1 100 Continue\r\n\r\n"] * LONGEST_HEADER
        self.assertEqual(self.check(*answers), "no HTTP status in the first 64 KiB")
        endless = [b"HTTP/1.1 100 Continue\r\nX: ", *[b"x" * 1000] * LONGEST_HEADER]
        self.assertEqual(self.check(*endless), "no HTTP status in the first 64 KiB")

    def test_what_is_not_http_is_told_at_once(self) -> None:
        for answer in (b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 20x\r\n", b"HTTP/1.1200 OK", b"\0"):
            told = converse(HttpRequest(self.target, "/"), in_pieces(answer), ended=False)
            self.assertRegex(told, "^answered '.*', which is not HTTP$")

    def test_what_ends_too_early(self) -> None:
        for answer in (b"", b"HTTP/1.1 20"):
            self.assertEqual(self.check(answer), "ended the connection without an HTTP status")

    @given(st.lists(st.binary(max_size=200)))
    def test_garbage_has_a_cause(self, answers: list[bytes]) -> None:
        self.assertNotEqual(self.check(*answers), "undecided")

    @given(st.integers(200, 999), st.binary(max_size=50), st.integers(1, 60))
    def test_the_pieces_make_no_difference(self, status: int, rest: bytes, size: int) -> None:
        answer = b"HTTP/1.1 %d OK\r\n" % status + rest
        self.assertEqual(self.check(*in_pieces(answer, size)), self.check(answer))


class HandshakeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.context = tls_context()

    def talk(self, probe: Probe, server: SSL.Connection) -> bytes:
        """
        Let both sides of a handshake talk until there is nothing more to say.

        @return: what the client says last.
        """
        says = probe.begin()
        for _ in range(5):
            if probe.passed:
                break
            server.bio_write(says)
            with contextlib.suppress(SSL.Error):  # it wants more, or to tell of an alert
                server.do_handshake()
            says = probe.received(server.bio_read(1 << 16))
        return says + probe.end()

    def server(
        self, version: int = SSL.TLS1_3_VERSION, verify: int = SSL.VERIFY_NONE
    ) -> SSL.Connection:
        context = server_context()
        context.set_verify(verify)
        context.set_max_proto_version(version)
        connection = SSL.Connection(context, None)
        connection.set_accept_state()
        return connection

    def test_completed_and_ended_by_close_notify(self) -> None:
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            server = self.server(version)
            probe = Handshake(self.context, "app.example.com")
            server.bio_write(self.talk(probe, server))
            self.assertTrue(probe.passed)
            server.do_handshake()
            # An end without close_notify would be another error than this.
            self.assertRaises(SSL.ZeroReturnError, server.recv, 1)
            self.assertEqual(server.get_servername(), b"app.example.com")

    def test_server_names(self) -> None:
        for host, name in (
            ("127.0.0.1", None),
            ("::1", None),
            ("", None),
            ("app.example.com.", b"app.example.com"),
            ("bücher.example", b"xn--bcher-kva.example"),
        ):
            server = self.server()
            probe = Handshake(self.context, host)
            self.talk(probe, server)
            self.assertTrue(probe.passed)
            self.assertEqual(server.get_servername(), name)

    def test_servers_that_want_a_certificate(self) -> None:
        wanted = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        probe = Handshake(self.context, "app")
        self.talk(probe, self.server(SSL.TLS1_3_VERSION, wanted))
        self.assertTrue(probe.passed)
        with self.assertRaisesRegex(CheckFailed, "^the TLS handshake failed: .*alert"):
            self.talk(Handshake(self.context, "app"), self.server(SSL.TLS1_2_VERSION, wanted))

    def test_what_is_not_tls(self) -> None:
        for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"):
            told = converse(Handshake(self.context, "app"), [answer])
            self.assertRegex(told, "^the TLS handshake failed: [a-z ]+$")

    def test_what_ends_too_early(self) -> None:
        told = converse(Handshake(self.context, "app"), [])
        self.assertEqual(told, "ended the connection during the TLS handshake")

    def test_a_handshake_is_bounded(self) -> None:
        # The beginning of a message that never ends, and not one byte more than is taken.
        told = converse(Handshake(self.context, "app"), [b"\x16" * (LONGEST_HANDSHAKE + 1)])
        self.assertEqual(told, "the TLS handshake is longer than 256 KiB")

    def test_names_that_are_none(self) -> None:
        # Discovery may have found their addresses all the same.
        for host in ("a" * 64, "a..b", "ü" * 64):
            self.assertTrue(Handshake(self.context, host).begin())
            self.assertIn(b"\r\nHost: ", HttpRequest(TargetConfig(host=host, port=1), "/").begin())

    @given(st.lists(st.binary(min_size=1, max_size=200)))
    def test_garbage_has_a_cause(self, answers: list[bytes]) -> None:
        probe = Handshake(self.context, "app")
        self.assertNotIn(converse(probe, answers), ("", "undecided"))
        probe.end()


class SecuredTests(SynchronousTestCase):
    """What is said within TLS, by a target that is who it should be and by others."""

    target = TargetConfig(host="app.example.com", port=443)

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-probe-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def probe(self, inner: Probe, **settings: Any) -> Secured:
        settings = {"ca": root().write(self.folder), **settings}
        return Secured(UpstreamTLS(UpstreamTLSConfig(**settings), "tls"), self.target, inner)

    def server(self, who: Identity, version: int) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(version)
        chain, key = who.write(self.folder, "server")
        context.use_certificate_chain_file(chain)
        context.use_privatekey_file(key)
        connection = SSL.Connection(context, None)
        connection.set_accept_state()
        return connection

    def talk(
        self, probe: Probe, server: SSL.Connection, answer: bytes = b"", size: int = 1 << 16
    ) -> tuple[str, bytes]:
        """
        Let both sides talk; the server gives an answer, in pieces, once it was asked.

        @return: how the check failed (empty: it passed), and what the server was asked.
        """
        asked, answered, told = b"", False, ""
        says = probe.begin()
        try:
            for _ in range(20):
                if says:
                    server.bio_write(says)
                says = b""
                with contextlib.suppress(SSL.Error):
                    server.do_handshake()
                    if answer and not answered:
                        server.sendall(answer)
                        answered = True
                    asked += server.recv(1 << 16)
                try:
                    pieces = in_pieces(server.bio_read(1 << 20), size)
                except SSL.WantReadError:
                    break
                for piece in pieces:
                    if not probe.passed:
                        says += probe.received(piece)
            if not probe.passed:
                probe.ended()
        except CheckFailed as failed:
            told = str(failed)
        says += probe.end()
        if says:
            server.bio_write(says)
        with contextlib.suppress(SSL.Error):
            asked += server.recv(1 << 16)
        return told, asked

    def test_a_handshake_is_enough_for_some(self) -> None:
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            server = self.server(app(), version)
            self.assertEqual(self.talk(self.probe(Probe()), server), ("", b""))
            # By close_notify; without it, that would be another error.
            self.assertRaises(SSL.ZeroReturnError, server.recv, 1)
            self.assertEqual(server.get_servername(), b"app.example.com")

    def test_what_is_asked_and_answered(self) -> None:
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            for size in (1, 1 << 16):
                for answer, told in (
                    (b"+PONG\r\n", ""),
                    (b"-ERR\r\n", "the answer '-ERR\\r\\n' does not match"),
                ):
                    probe = self.probe(Expecting(b"PING\r\n", re.compile(b"PONG")))
                    server = self.server(app(), version)
                    self.assertEqual(self.talk(probe, server, answer, size), (told, b"PING\r\n"))

    def test_web_servers_end_first(self) -> None:
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            for answer, told in (
                (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
                (b"HTTP/1.1 503 No\r\n\r\n", "HTTP status 503"),
            ):
                probe = self.probe(HttpRequest(self.target, "/up", port=443))
                server = self.server(app(), version)
                said, asked = self.talk(probe, server, answer)
                self.assertEqual(said, told)
                self.assertIn(b"GET /up HTTP/1.1\r\nHost: app.example.com\r\n", asked)
                self.assertTrue(probe.peer_ends)
                self.assertRaises(SSL.WantReadError, server.recv, 1)

    def test_who_is_somebody_else_is_told_nothing(self) -> None:
        others = Authority("others")
        for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
            for who, why in (
                (root().vouch(dns=["b.example"]), "is for b.example, not for app.example.com$"),
                (others.vouch("app", dns=["app.example.com"]), "issued by somebody unknown"),
                (root().vouch("old", dns=["app.example.com"], ends=timedelta()), "expired on"),
            ):
                probe = self.probe(Expecting(b"PING\r\n", re.compile(b"PONG")))
                told, asked = self.talk(probe, self.server(who, version), b"PONG")
                self.assertRegex(told, why)
                self.assertEqual(asked, b"")
                probe = self.probe(Expecting(b"PING\r\n", re.compile(b"PONG")), verify=False)
                self.assertEqual(self.talk(probe, self.server(who, version), b"PONG")[0], "")

    def test_an_end_is_told_as_what_it_is(self) -> None:
        probe = self.probe(Expecting(b"", re.compile(b"PONG")))
        probe.begin()
        with self.assertRaisesRegex(CheckFailed, "^ended the connection during the TLS handshake$"):
            probe.ended()
        self.assertEqual(probe.awaited, "complete TLS handshake")
        told, _ = self.talk(
            self.probe(Expecting(b"", re.compile(b"PONG"))), self.server(app(), SSL.TLS1_3_VERSION)
        )
        self.assertEqual(told, "ended the connection without an answer")

    def test_close_notify_is_an_end(self) -> None:
        probe = self.probe(Expecting(b"", re.compile(b"PONG")))
        server = self.server(app(), SSL.TLS1_3_VERSION)
        server.bio_write(probe.begin())
        self.assertRaises(SSL.WantReadError, server.do_handshake)
        server.bio_write(probe.received(server.bio_read(1 << 16)))
        server.do_handshake()
        self.assertEqual(probe.awaited, "matching answer")
        server.shutdown()
        with self.assertRaisesRegex(CheckFailed, "^ended the connection without an answer$"):
            probe.received(server.bio_read(1 << 16))

    def test_a_handshake_is_bounded(self) -> None:
        told = converse(self.probe(Probe()), [b"\x16" * (LONGEST_HANDSHAKE + 1)])
        self.assertEqual(told, "the TLS handshake is longer than 256 KiB")

    @given(st.lists(st.binary(min_size=1, max_size=200)))
    def test_garbage_has_a_cause(self, answers: list[bytes]) -> None:
        probe = self.probe(Probe())
        self.assertNotIn(converse(probe, answers), ("", "undecided"))
        probe.end()

"""TLS to targets: who can't prove to be the one that was meant is not talked to, and a line says why."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, ClassVar

from tests.pki import Identity
from tests.scenarios.relay_process import (
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
)
from tests.scenarios.tls_ends import (
    VERSIONS,
    TLSScenario,
    authority,
    listener,
    serve,
    server_context,
    targets_own,
    where,
)

OTHER = authority().vouch("other", dns=["other.example"])
EXPIRED = authority().vouch(
    dns=["target.example"], starts=timedelta(days=-9), ends=timedelta(days=-1)
)
STRANGER = authority("another root").vouch(dns=["target.example"])
OURSELVES = authority().vouch("the relay")
TLS = 'ca = "ca.pem"'
POOLS = {
    "named": f'{TLS}, name = "target.example"',
    "by-address": TLS,
    "by-name": TLS,
    "unverified": "verify = false",
    "no-certificate": f'{TLS}, name = "target.example"',
    "certificate": f'{TLS}, name = "target.example", certificate = "own.pem", key = "own.key"',
    "alpn": f'{TLS}, name = "target.example", alpn = ["imap", "http/1.1"]',
}


class Targets(TLSScenario):
    """
    For each of `POOLS` a listener of its name, to one target; and those with a second one, which is as it
    should be.
    """

    upstream: ClassVar[Upstream]
    second: ClassVar[Upstream]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        cls.upstream = opened.enter_context(Upstream())
        cls.second = opened.enter_context(Upstream())
        OURSELVES.write(cls.folder_, "own")
        text = listener("two", "two") + listener("two-hasty", "two", timeouts='connect = "3s"')
        text += listener("hasty", "named", timeouts='connect = "300ms"')
        text += (
            f'[pool.two]\ntargets = ["{cls.upstream.target}", "{cls.second.target}"]\n'
            f'balance = "first"\ntls = {{ {POOLS["named"]} }}\n'
        )
        for name, tls in POOLS.items():
            target = cls.upstream.target
            if name == "by-name":
                target = target.replace("127.0.0.1", "localhost")
            text += listener(name, name, timeouts='connect = "1m"')
            text += f'[pool.{name}]\ntargets = ["{target}"]\ntls = {{ {tls} }}\n'
        return text

    def is_relayed(
        self, name: str, context: ssl.SSLContext, *, sni: str | None = None, **expected: Any
    ) -> Any:
        """
        Assert that a client of that listener is, to the target.

        @param sni: the name that the target is asked for.
        @return: the target's side, closed.
        """
        names: list[str | None] = []
        with self.relay.connect_to(name) as client:
            told = where(client)
            client.sendall(b"hello")
            with serve(self.upstream, context, names) as server:
                self.assertEqual(read_exactly(server, 5), b"hello")
                server.sendall(b"welcome")
                server.shutdown()
                self.assertEqual(read_all(client), b"welcome")
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(server), b"")
                self.has_ended_so(told, "done", "--", **expected)
        self.assertEqual(names, [sni])
        return server

    def is_refused(
        self,
        be_target: Callable[[], object],
        error: str,
        *,
        alone: str = "named",
        first: str = "two",
        reason: str = "dial-failed",
    ) -> None:
        """
        Assert that a client of that listener is reset, as its target is not talked to; and that another
        target is tried, where there is one.

        @param be_target: what the target does.
        @param alone: the listener that leads to it alone, and `first`: to it first.
        """
        code = "sC" if reason == "dial-timeout" else "SC"
        with ThreadPoolExecutor() as threads, self.relay.connect_to(alone) as client:
            told = where(client)
            client.sendall(b"for the right one alone")
            behaving = threads.submit(be_target)
            self.assertEqual(read_until_reset(client), b"")
            behaving.result()
            self.has_ended_so(
                told, reason, code, error=error, target=self.upstream.target, retries=0
            )
        with ThreadPoolExecutor() as threads, self.relay.connect_to(first) as client:
            told = where(client)
            client.sendall(b"for the right one alone")
            client.shutdown(socket.SHUT_WR)
            behaving = threads.submit(be_target)
            with serve(self.second, server_context(targets_own())) as server:
                self.assertEqual(read_all(server), b"for the right one alone")
                server.sendall(b"thanks")
                server.shutdown()
                self.assertEqual(read_all(client), b"thanks")
            behaving.result()
            self.has_ended_so(told, "done", "--", target=self.second.target, retries=1, error="")

    def showing(self, who: Identity, version: str = "TLSv1.3") -> Callable[[], str]:
        """
        @return: be a target with this certificate; returns the alert that it hears.
        """

        def be_target() -> str:
            try:
                with serve(self.upstream, server_context(who, version)) as server:
                    heard = read_until_reset(server)
                    self.assertEqual(heard, b"")
            except ssl.SSLError as failed:
                return failed.reason
            except ConnectionError:
                pass
            return ""

        return be_target

    def test_a_target_is_verified_by_the_name_that_is_configured(self) -> None:
        for version in VERSIONS:
            context = server_context(targets_own(), version)
            self.is_relayed("named", context, sni="target.example")

    def test_a_target_is_verified_by_the_name_that_it_is_dialed_by(self) -> None:
        self.is_relayed("by-name", server_context(targets_own()), sni="localhost")

    def test_a_target_is_verified_by_the_address_that_it_is_dialed_by(self) -> None:
        self.is_relayed("by-address", server_context(targets_own()), sni=None)

    def test_a_target_of_another_name_is_refused(self) -> None:
        for version in VERSIONS:
            why = "the target's certificate is for other.example, not for target.example"
            self.is_refused(self.showing(OTHER, version), why)

    def test_a_target_of_another_address_is_refused(self) -> None:
        with self.relay.connect_to("by-address") as client, ThreadPoolExecutor() as threads:
            told = where(client)
            threads.submit(self.showing(OTHER))
            self.assertEqual(read_until_reset(client), b"")
            why = "certificate is for other.example, not for 127.0.0.1"
            self.has_ended_so(told, "dial-failed", "SC", error=why)

    def test_a_target_whose_certificate_has_expired_is_refused(self) -> None:
        for version in VERSIONS:
            be_target = self.showing(EXPIRED, version)
            self.is_refused(be_target, "the target's certificate (target.example) expired on ")

    def test_a_target_of_an_unknown_authority_is_refused(self) -> None:
        for version in VERSIONS:
            be_target = self.showing(STRANGER, version)
            why = "was issued by somebody unknown (CN=another root)"
            self.is_refused(be_target, why)

    def test_a_refused_target_is_told_by_an_alert(self) -> None:
        for who, alert in (
            (EXPIRED, "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
            (STRANGER, "TLSV1_ALERT_UNKNOWN_CA"),
        ):
            with ThreadPoolExecutor() as threads, self.relay.connect_to("named") as client:
                heard = threads.submit(self.showing(who))
                read_until_reset(client)
                self.assertEqual(heard.result(), alert)

    def test_a_target_that_speaks_no_tls_is_refused(self) -> None:
        def be_target() -> None:
            with self.upstream.accept() as server:
                server.sendall(b"220 mail.example ESMTP ready\r\n")
                with contextlib.suppress(ConnectionError):
                    read_all(server)

        self.is_refused(be_target, "what the target sent is not TLS")

    def test_a_target_that_answers_http_is_refused(self) -> None:
        def be_target() -> None:
            with self.upstream.accept() as server:
                server.recv(10_000)
                server.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    read_all(server)

        self.is_refused(be_target, "what the target sent is not TLS")

    def test_a_target_that_ends_in_the_handshake_is_refused(self) -> None:
        def be_target() -> None:
            with self.upstream.accept() as server:
                server.recv(10_000)

        why = "the target closed the connection in the middle of the TLS handshake"
        self.is_refused(be_target, why)

    def test_a_target_that_resets_in_the_handshake_is_refused(self) -> None:
        def be_target() -> None:
            server = self.upstream.accept()
            read_exactly(server, 100)
            reset(server)

        self.is_refused(be_target, "reset")

    def test_a_target_that_never_answers_the_handshake_is_given_up_in_time(self) -> None:
        def be_target() -> None:
            with self.upstream.accept() as server, contextlib.suppress(ConnectionError):
                read_all(server)

        why = "no TLS handshake within the connect time-out"
        self.is_refused(be_target, why, alone="hasty", first="two-hasty", reason="dial-timeout")

    def test_where_nothing_is_verified_everybody_is_talked_to(self) -> None:
        for who in (OTHER, EXPIRED, STRANGER):
            self.is_relayed("unverified", server_context(who))

    def test_a_target_that_was_right_and_is_another_now_is_refused(self) -> None:
        """Also by who could resume a session of when it was right."""
        for version in VERSIONS:
            context = server_context(targets_own(), version)
            self.is_relayed("named", context, sni="target.example")
            server = self.is_relayed("named", context, sni="target.example")
            self.assertTrue(server.tls.session_reused)
            why = "the target's certificate is for other.example, not for target.example"
            self.is_refused(self.showing(OTHER, version), why)
            self.is_relayed("named", context, sni="target.example")

    # What we show.

    def test_a_target_that_demands_a_certificate_is_shown_ours(self) -> None:
        for version in VERSIONS:
            context = server_context(targets_own(), version, demanding=True)
            server = self.is_relayed("certificate", context, sni="target.example")
            self.assertIn(((("commonName", "the relay"),),), server.tls.getpeercert().values())

    def test_a_target_that_demands_a_certificate_which_there_is_none_of_is_reported(self) -> None:
        for version in VERSIONS:
            context = server_context(targets_own(), version, demanding=True)
            with ThreadPoolExecutor() as threads, self.relay.connect_to("named") as client:
                told = where(client)
                serving = threads.submit(serve, self.upstream, context)
                self.assertEqual(read_until_reset(client), b"")
                self.assertIsInstance(serving.exception(), ssl.SSLError)
                entry = self.entry(told)
                self.assertIn(entry["code"], ("SC", "SD"))
                self.assertRegex(entry["error"], "certificate|handshake failure")

    def test_protocols_are_offered_to_the_target(self) -> None:
        context = server_context(targets_own(), alpn=("http/1.1",))
        server = self.is_relayed("alpn", context, sni="target.example")
        self.assertEqual(server.tls.selected_alpn_protocol(), "http/1.1")

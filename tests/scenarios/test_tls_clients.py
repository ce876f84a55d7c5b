"""Who may enter by certificate: all others are told so by an alert, and one line says why."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, ClassVar

from tests.pki import Authority, Identity
from tests.scenarios.relay_process import Upstream, read_all, read_exactly
from tests.scenarios.tls_ends import (
    VERSIONS,
    TLSScenario,
    TLSSocket,
    alert_of,
    authority,
    client_context,
    listener,
    where,
)

ALLOWED = {
    "cn:alice": authority().vouch("alice"),
    "ou:operators": authority().vouch("bob", ou=["operators", "others"]),
    "dns:carol.example": authority().vouch(dns=["carol.example"]),
    "dns:dave.team.example": authority().vouch(dns=["x.example", "dave.team.example"]),
    "uri:spiffe://example.org/web/1": authority().vouch(uri=["spiffe://example.org/web/1"]),
    "ip:192.0.2.7": authority().vouch("erin", ip=["192.0.2.7"]),
}
PATTERNS = (
    *("cn:alice", "ou:operators", "dns:carol.example", "dns:*.team.example"),
    *("uri:spiffe://example.org/web/*", "ip:192.0.2.7"),
)
MALLORY = authority().vouch("mallory", dns=["mallory.example"])
"""Vouched for, and on no list."""
STRANGER = authority("another root").vouch("alice")
EXPIRED = authority().vouch("alice", starts=timedelta(days=-9), ends=timedelta(days=-1))
TOO_EARLY = authority().vouch("alice", starts=timedelta(days=1))
BELOW = Authority("below", authority()).vouch("frank")


class Identities(TLSScenario, every_pump=False):
    upstream: ClassVar[Upstream]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        cls.upstream = opened.enter_context(Upstream())
        asking = 'client_ca = "ca.pem"'
        return (
            f'[pool.up]\ntargets = ["{cls.upstream.target}"]\n'
            + listener("required", "up", tls=True, settings=asking)
            + listener(
                "listed",
                "up",
                tls=True,
                settings=f"{asking}\nallow_identities = {list(PATTERNS)}",
            )
            + listener(
                "optional",
                "up",
                tls=True,
                settings=f"{asking}\nrequire_client_certificate = false",
            )
            + listener("open", "up", tls=True)
        )

    def enters(
        self, name: str, who: Identity | None, version: str = "TLSv1.3", **expected: Any
    ) -> None:
        """Assert that the client is relayed, and what its line says."""
        with self.dial(name, client_context(version, who=who)) as client:
            client.sendall(b"hello")
            with self.upstream.accept() as server:
                self.assertEqual(read_exactly(server, 5), b"hello")
                server.sendall(b"welcome")
                server.shutdown(1)
                self.assertEqual(read_all(client), b"welcome")
                client.shutdown()
                self.assertEqual(read_all(server), b"")
            self.has_ended_so(where(client), "done", "--", listener=name, tls=version, **expected)

    def is_refused(
        self,
        name: str,
        who: Identity | None,
        version: str,
        alert: str,
        *,
        error: str,
        reason: str = "tls-failed",
    ) -> None:
        """Assert what the client is told, and what its line says."""
        sock = self.relay.connect_to(name)
        client = where(sock)
        context = client_context(version, who=who)
        with (
            self.assertRaises(ssl.SSLError) as told,
            TLSSocket(sock, context, name="localhost") as tls,
        ):
            # To a client of TLS 1.3, the handshake is complete before the server has seen the certificate.
            tls.sendall(b"anybody there?")
            tls.recv(1)
        self.assertEqual(alert_of(told.exception), alert)
        self.has_ended_so(
            client,
            reason,
            "PR",
            error=error,
            listener=name,
            bytes_up=0,
            bytes_down=0,
            target=None,
            identity=None,
        )

    def is_told_off(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        session: ssl.SSLSession | None = None,
    ) -> str:
        """
        @return: the alert that the client hears.
        """
        try:
            with TLSSocket(sock, context, name="localhost", session=session) as tls:
                # To a client of TLS 1.3 the handshake is complete before its certificate was looked at.
                tls.sendall(b"anybody there?")
                tls.recv(1)
        except ssl.SSLError as failed:
            return alert_of(failed)
        raise AssertionError("it was let in")

    def test_a_client_that_is_vouched_for_enters_and_is_named(self) -> None:
        for version in VERSIONS:
            self.enters("required", ALLOWED["cn:alice"], version, identity="cn:alice")
            self.enters("required", MALLORY, version, identity="dns:mallory.example")

    def test_a_client_may_be_vouched_for_by_an_authority_below(self) -> None:
        for version in VERSIONS:
            self.enters("required", BELOW, version, identity="cn:frank")

    def test_each_kind_of_pattern_lets_in_whom_it_is_for(self) -> None:
        for identity, who in ALLOWED.items():
            self.enters("listed", who, identity=identity)

    def test_a_client_without_certificate_is_told_so(self) -> None:
        why = {"error": "the client sent no certificate"}
        for name in ("required", "listed"):
            self.is_refused(name, None, "TLSv1.3", "certificate required", **why)
            self.is_refused(name, None, "TLSv1.2", "handshake failure", **why)

    def test_a_client_of_another_authority_is_told_so(self) -> None:
        for version in VERSIONS:
            why = "(CN=alice) was issued by somebody unknown (CN=another root)"
            self.is_refused("listed", STRANGER, version, "unknown ca", error=why)

    def test_a_client_whose_certificate_has_expired_is_told_so(self) -> None:
        for version in VERSIONS:
            why = "the client's certificate (CN=alice) expired on "
            self.is_refused("listed", EXPIRED, version, "certificate expired", error=why)

    def test_a_client_whose_certificate_is_not_valid_yet_is_told_so(self) -> None:
        for version in VERSIONS:
            why = "the client's certificate (CN=alice) is not valid before "
            self.is_refused("listed", TOO_EARLY, version, "bad certificate", error=why)

    def test_a_client_that_is_not_listed_is_told_so(self) -> None:
        for version in VERSIONS:
            why = "(dns:mallory.example) is not among allow_identities"
            self.is_refused(
                "listed", MALLORY, version, "bad certificate", error=why, reason="identity"
            )

    def test_what_a_refused_client_goes_on_sending_does_not_cost_it_the_alert(self) -> None:
        sock = self.relay.connect_to("listed")
        with TLSSocket(sock, client_context(who=MALLORY), name="localhost") as client:
            self.entry(where(client))
            client.sendall(bytes(20_000))  # one that was reset could not
            with self.assertRaises(ssl.SSLError) as told:
                client.recv(1)
            self.assertEqual(alert_of(told.exception), "bad certificate")

    def test_where_certificates_are_optional_who_shows_one_is_looked_at(self) -> None:
        self.enters("optional", None, identity=None)
        self.enters("optional", MALLORY, identity="dns:mallory.example")
        why = "issued by somebody unknown"
        self.is_refused("optional", STRANGER, "TLSv1.3", "unknown ca", error=why)

    def test_a_session_of_an_open_listener_opens_no_other(self) -> None:
        """Nor does one that somebody else's certificate began."""
        for version in VERSIONS:
            context = client_context(version)
            with self.dial("open", context) as client, self.upstream.accept() as server:
                server.sendall(b"welcome")
                read_exactly(client, 7)
                session = client.tls.session
            self.assertIsNotNone(session)
            sock = self.relay.connect_to("required")
            self.is_told_off(sock, context, session)

    def test_a_client_that_resumes_is_named_as_before(self) -> None:
        for version in VERSIONS:
            context = client_context(version, who=ALLOWED["ou:operators"])
            session = None
            for resumed in (False, True):
                with (
                    self.dial("listed", context, session=session) as client,
                    self.upstream.accept() as server,
                ):
                    server.sendall(b"welcome")
                    self.assertEqual(read_exactly(client, 7), b"welcome")
                    self.assertEqual(client.tls.session_reused, resumed)
                    session = client.tls.session
                    client.shutdown()
                    server.shutdown(1)
                    self.has_ended_so(where(client), "done", "--", identity="ou:operators")

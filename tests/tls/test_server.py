"""`fwdrelay.tls.server`: what clients are shown, and which of them may enter."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, cast

import attrs
from cryptography import x509
from OpenSSL import SSL

from fwdrelay.config import IdentityPattern, ListenerTLSConfig, SNIConfig
from fwdrelay.config.model import IdentityKind
from fwdrelay.tls import ServerTLS, bindings, explain, peer
from fwdrelay.wire.clienthello import ClientHello
from tests.pki import Authority, Identity
from tests.tls.talk import (
    VERSIONS,
    WHERE,
    Client,
    End,
    Outcome,
    TLSCase,
    pair,
    peeked,
    reason,
    talk,
    visit,
)


@functools.cache
def root() -> Authority:
    return Authority()


@functools.cache
def middle() -> Authority:
    return Authority("test intermediate", above=root())


@functools.cache
def web() -> Identity:
    return middle().vouch("web", dns=["web.example"])


@functools.cache
def web_rsa() -> Identity:
    return root().vouch("web rsa", dns=["web.example"], kind="rsa")


@functools.cache
def other(name: str) -> Identity:
    return root().vouch(name, dns=[name])


@functools.cache
def alice() -> Identity:
    return root().vouch("alice", dns=["alice.example"], uri=["spiffe://example.org/alice"])


@functools.cache
def strangers() -> Authority:
    return Authority("strangers")


def allow(kind: str, value: str) -> IdentityPattern:
    return IdentityPattern(cast(IdentityKind, kind), value)


def names_of(outcome: Outcome) -> list[str]:
    """The common names in the chain that was shown."""
    oid = x509.NameOID.COMMON_NAME
    return [str(each.subject.get_attributes_for_oid(oid)[0].value) for each in outcome.shown]


class ServerCase(TLSCase):
    def server(self, *who: Identity, before: ServerTLS | None = None, **settings: Any) -> ServerTLS:
        return ServerTLS(self.listener(*(who or (web(),)), **settings), WHERE, before)

    def sni(self, *names: str, who: Identity | None = None) -> SNIConfig:
        chain, key = self.write(who or other(names[0]))
        return SNIConfig(names=names, certificate=(chain,), key=(key,))

    @property
    def client_ca(self) -> str:
        return root().write(self.folder, "client-ca")

    def shown(self, server: ServerTLS, name: str | None, version: int = VERSIONS[1]) -> str:
        """The name of the certificate that is shown for a server name."""
        outcome = visit(server, Client(version), name)
        self.assertEqual((outcome.why, outcome.heard), ("", b"welcome"))
        return names_of(outcome)[0]


class CertificateTests(ServerCase):
    def test_the_whole_chain_is_shown(self) -> None:
        for version in VERSIONS:
            outcome = visit(self.server(), Client(version))
            self.assertEqual(names_of(outcome), ["web", "test intermediate"])
            assert outcome.peer is not None
            self.assertEqual(outcome.peer.version, {771: "TLSv1.2", 772: "TLSv1.3"}[version])
            self.assertEqual((outcome.peer.identity, outcome.peer.alpn), (None, None))

    def test_key_and_certificate_in_one_file(self) -> None:
        chain, key = self.write(web())
        with open(chain, "ab") as file, open(key, "rb") as add:
            file.write(add.read())
        server = ServerTLS(ListenerTLSConfig(certificate=(chain,)), WHERE)
        self.assertEqual(self.shown(server, None), "web")

    def test_of_two_kinds_of_keys_the_one_that_the_client_can_verify_is_shown(self) -> None:
        server = self.server(web(), web_rsa())
        for version, ciphers, chain in (
            (SSL.TLS1_2_VERSION, b"ECDHE-RSA-AES128-GCM-SHA256", ["web rsa"]),
            (SSL.TLS1_2_VERSION, b"ECDHE-ECDSA-AES128-GCM-SHA256", ["web", "test intermediate"]),
            (SSL.TLS1_3_VERSION, b"DEFAULT", ["web", "test intermediate"]),
        ):
            client = Client(version, change=lambda context: context.set_cipher_list(ciphers))  # noqa: B023
            self.assertEqual(names_of(visit(server, client)), chain)

    def test_nobody_can_choose_a_weak_cipher_or_an_old_version(self) -> None:
        server = self.server(web(), web_rsa())
        for ciphers in (
            b"AES128-GCM-SHA256",
            b"ECDHE-RSA-AES128-SHA256",
            b"DHE-RSA-AES128-GCM-SHA256",
        ):
            client = Client(
                SSL.TLS1_2_VERSION,
                change=lambda context: context.set_cipher_list(ciphers),  # noqa: B023
            )
            outcome = visit(server, client)
            self.assertIn("handshake failure", outcome.alert)
            self.assertEqual(
                outcome.why,
                "no cipher in common with the client, or none for the kinds of our certificates' keys",
            )
        old = "no version of TLS in common: the client's are too old"
        for version in (SSL.TLS1_VERSION, SSL.TLS1_1_VERSION):
            client = Client(
                version, change=lambda context: context.set_cipher_list(b"ALL:@SECLEVEL=0")
            )
            outcome = visit(server, client)
            self.assertIn("protocol version", outcome.alert)
            self.assertEqual(outcome.why, old)
        outcome = visit(self.server(minimum_version="1.3"), Client(SSL.TLS1_2_VERSION))
        self.assertIn("protocol version", outcome.alert)
        self.assertEqual(outcome.why, old)
        self.assertIsNotNone(visit(self.server(minimum_version="1.3"), Client()).peer)

    def test_the_server_chooses_the_cipher(self) -> None:
        def wants(ciphers: bytes, suites: bytes) -> Callable[[SSL.Context], None]:
            def change(context: SSL.Context) -> None:
                context.set_cipher_list(ciphers)
                context.set_tls13_ciphersuites(suites)

            return change

        aes = wants(
            b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256",
            b"TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256",
        )
        without_hardware = wants(
            b"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256",
            b"TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256",
        )
        for version in VERSIONS:
            for change, cipher in ((aes, "AES.*128"), (without_hardware, "CHACHA20")):
                peer = visit(self.server(), Client(version, change=change)).peer
                assert peer is not None
                self.assertRegex(peer.cipher, cipher)

    def test_no_renegotiation(self) -> None:
        client = Client(SSL.TLS1_2_VERSION)
        with pair() as (outer, inner):
            theirs = End(client.connection(outer, None))
            theirs.step()
            ours = End(self.server().accept(inner, peeked(inner)))
            talk(ours, theirs)
            theirs.connection.renegotiate()
            theirs.done = False
            talk(theirs, ours)
            self.assertEqual(reason(theirs.failed), "no renegotiation")
            self.assertEqual(ours.connection.total_renegotiations(), 0)


class NameTests(ServerCase):
    def test_the_most_fitting_name_decides(self) -> None:
        server = self.server(
            sni=(
                self.sni("*.example.com"),
                self.sni("a.example.com", "b.example.com"),
                self.sni("*.a.example.com"),
            )
        )
        for version in VERSIONS:
            for name, shown in (
                (None, "web"),
                ("elsewhere.example", "web"),
                ("example.com", "web"),
                ("a.example.com", "a.example.com"),
                ("A.Example.COM", "a.example.com"),
                ("b.example.com", "a.example.com"),
                ("c.example.com", "*.example.com"),
                ("d.c.example.com", "web"),
                ("x.a.example.com", "*.a.example.com"),
                ("localhost", "web"),
                ("*.example.com", "web"),
            ):
                self.assertEqual(self.shown(server, name, version), shown, name)

    def test_a_name_is_acknowledged_and_told(self) -> None:
        server = self.server(sni=(self.sni("a.example"),))
        for version in VERSIONS:
            client = Client(version)
            for _ in range(2):
                peer = visit(server, client, "A.example").peer
                assert peer is not None
                self.assertEqual(peer.server_name, "a.example")

    def test_without_the_hello_only_the_default_certificate_is_given_away(self) -> None:
        server = self.server(sni=(self.sni("a.example"),))
        for version in VERSIONS:
            for name in (None, "b.example"):
                outcome = visit(server, Client(version), name, hello=lambda sock: None)
                assert outcome.peer is not None
                self.assertEqual(outcome.peer.server_name, name)
            outcome = visit(server, Client(version), "a.example", hello=lambda sock: None)
            self.assertEqual(
                outcome.why,
                "the client's hello asks for no name, its handshake is for 'a.example'",
            )

    def test_a_hello_that_was_read_otherwise_is_refused(self) -> None:
        server = self.server(sni=(self.sni("a.example", "b.example"),))
        for version in VERSIONS:
            for read, said in (
                ("a.example", "c.example"),
                ("a.example", "b.example"),
                ("c.example", None),
            ):
                hello = ClientHello(read, (), (), False)
                outcome = visit(server, Client(version), said, hello=lambda sock: hello)  # noqa: B023
                self.assertIn("the client's hello asks for", outcome.why)
                self.assertIsNone(outcome.peer)


class ProtocolTests(ServerCase):
    def test_the_servers_dearest_wins(self) -> None:
        server = self.server(alpn=("h2", "http/1.1"))
        for version in VERSIONS:
            for offered, chosen in (
                (("http/1.1", "h2"), "h2"),
                (("x", "http/1.1"), "http/1.1"),
                ((), None),
            ):
                outcome = visit(server, Client(version, alpn=offered))
                assert outcome.peer is not None
                self.assertEqual(outcome.peer.alpn, chosen)
                self.assertEqual(outcome.alpn, (chosen or "").encode())

    def test_none_in_common_is_refused_with_the_alert_for_it(self) -> None:
        server = self.server(alpn=("h2",), sni=(self.sni("a.example"),))
        for version in VERSIONS:
            for name in (None, "a.example"):
                outcome = visit(server, Client(version, alpn=["imap", "x\x1by"]), name)
                self.assertEqual(outcome.alert, "tlsv1 alert no application protocol")
                self.assertEqual(
                    outcome.why,
                    "the client speaks imap, x\N{REPLACEMENT CHARACTER}y, and no protocol of `alpn`",
                )
                self.assertIsNotNone(visit(server, Client(version), name).peer)

    def test_where_nothing_is_asked_for_nothing_is_agreed_on(self) -> None:
        for version in VERSIONS:
            outcome = visit(self.server(), Client(version, alpn=["h2"]))
            assert outcome.peer is not None
            self.assertIsNone(outcome.peer.alpn)


class ClientCertificateTests(ServerCase):
    def guarded(self, **settings: Any) -> ServerTLS:
        return self.server(client_ca=self.client_ca, **settings)

    def test_verified_clients_enter_by_name(self) -> None:
        for version in VERSIONS:
            for who, identity in (
                (alice(), "uri:spiffe://example.org/alice"),
                (root().vouch("bob", dns=["b.example"]), "dns:b.example"),
                (root().vouch("carol"), "cn:carol"),
                (root().vouch(ou=["x"]), None),
                (middle().vouch("dora"), "cn:dora"),
            ):
                peer = visit(self.guarded(), Client(version, who)).peer
                assert peer is not None
                self.assertEqual(peer.identity, identity)

    def test_those_asked_for_are_told_whose_certificates_are_wanted(self) -> None:
        with pair() as (outer, inner):
            theirs = End(Client(who=alice()).connection(outer, None))
            theirs.step()
            ours = End(self.guarded().accept(inner, None))
            talk(ours, theirs)
            wanted = theirs.connection.get_client_ca_list(as_cryptography=True)
            self.assertEqual([each.rfc4514_string() for each in wanted], ["CN=test root"])

    def refused(self, server: ServerTLS, who: Identity | None, alert: str, why: str) -> None:
        for version in VERSIONS:
            for name in (None, "a.example"):
                outcome = visit(server, Client(version, who), name)
                self.assertIsNone(outcome.peer)
                self.assertRegex(outcome.alert, f"alert ({alert})$")
                self.assertRegex(outcome.why, why)
                self.assertEqual(outcome.unlisted, "allow_identities" in why)
                self.assertEqual(outcome.heard, b"")

    def test_the_others_get_an_alert_and_the_log_says_why(self) -> None:
        day = timedelta(days=1)
        server = self.guarded(
            sni=(self.sni("a.example"),), allow_identities=(allow("dns", "*.example"),)
        )
        self.refused(
            server,
            None,
            "handshake failure|certificate required",
            "^the client sent no certificate$",
        )
        self.refused(
            server,
            root().vouch("old", dns=["x.example"], starts=-9 * day, ends=-2 * day),
            "certificate expired",
            r"^the client's certificate \(CN=old\) expired on \d{4}-\d\d-\d\d \d\d:\d\d UTC$",
        )
        self.refused(
            server,
            root().vouch("young", dns=["x.example"], starts=day, ends=2 * day),
            "bad certificate",
            r"^the client's certificate \(CN=young\) is not valid before \d{4}-",
        )
        self.refused(
            server,
            strangers().vouch("mallory", dns=["x.example"]),
            "unknown ca",
            r"^the client's certificate \(CN=mallory\) was issued by somebody unknown \(CN=strangers\)$",
        )
        self.refused(
            server,
            strangers().identity,
            "unknown ca",
            r"^the client's certificate \(CN=strangers\) is vouched for by itself alone$",
        )
        self.refused(
            server,
            root().vouch("eve", dns=["a.b.example"]),
            "bad certificate",
            r"^the client's certificate \(dns:a.b.example\) is not among allow_identities$",
        )

    def test_what_a_stranger_says_can_do_the_log_no_harm(self) -> None:
        who = strangers().vouch("\x1b[2J\nfake line" + "x" * 40)
        outcome = visit(self.guarded(), Client(who=who))
        self.assertTrue(outcome.why.isprintable())
        who = root().vouch(dns=["x" * 60 + "." + "y" * 60, "z"], uri=["spiffe://" + "u" * 4000])
        peer = visit(self.guarded(), Client(who=who)).peer
        assert peer is not None and peer.identity is not None
        self.assertEqual(len(peer.identity), 200)

    def test_authorities_need_not_be_roots(self) -> None:
        path = middle().write(self.folder, "middle")
        server = self.server(client_ca=path)
        self.assertIsNotNone(visit(server, Client(who=middle().vouch("dora"))).peer)
        self.assertIsNone(visit(server, Client(who=alice())).peer)

    def test_who_has_none_enters_where_none_is_required(self) -> None:
        server = self.guarded(
            require_client_certificate=False, allow_identities=(allow("cn", "alice"),)
        )
        for version in VERSIONS:
            for who, identity in ((None, None), (alice(), "cn:alice")):
                client = Client(version, who)
                for resumed in (False, True):
                    outcome = visit(server, client)
                    assert outcome.peer is not None
                    self.assertEqual((outcome.peer.identity, outcome.resumed), (identity, resumed))
                    shown = outcome.peer.has_certificate, outcome.peer.cn
                    self.assertEqual(shown, (who is not None, "alice" if who else None))
            self.assertIsNone(visit(server, Client(version, root().vouch("bob"))).peer)

    def test_without_the_bindings_the_unlisted_are_refused_all_the_same(self) -> None:
        self.patch(bindings, "FOUND", frozenset())
        server = self.guarded(allow_identities=(allow("cn", "bob"),))
        for version in VERSIONS:
            outcome = visit(server, Client(version, alice()))
            self.assertEqual(outcome.alert, "tlsv1 alert internal error")
            self.assertIn("is not among allow_identities", outcome.why)
            client = Client(version, root().vouch("bob"))
            self.assertIsNotNone(visit(server, client).peer)
            self.assertIsNotNone(visit(server, client).peer)


class InTwoYears(datetime):
    """For what looks at dates itself, as OpenSSL does not when a session is resumed."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(days=730)


class ResumptionTests(ServerCase):
    def resumes(self, server: ServerTLS, client: Client, name: str | None = None) -> bool:
        outcome = visit(server, client, name)
        self.assertEqual((outcome.why, outcome.heard), ("", b"welcome"))
        return outcome.resumed

    def test_sessions_are_resumed(self) -> None:
        for settings in ({}, {"client_ca": self.client_ca}):
            server = self.server(sni=(self.sni("a.example"),), **cast(Any, settings))
            for version in VERSIONS:
                for name in (None, "a.example"):
                    client = Client(version, alice())
                    found = [self.resumes(server, client, name) for _ in range(3)]
                    self.assertEqual(found, [False, True, True])

    def test_resumed_clients_are_known_by_name(self) -> None:
        server = self.server(client_ca=self.client_ca, allow_identities=(allow("cn", "alice"),))
        for version in VERSIONS:
            client = Client(version, alice())
            visit(server, client)
            found = visit(server, client).peer
            assert found is not None
            self.assertEqual((found.resumed, found.identity), (True, "cn:alice"))

    def test_no_session_of_one_name_is_good_for_another(self) -> None:
        """Each pair of names and openness, the client with or without a certificate: no way in by a ticket."""
        names = ("web.example", "a.example", "x.wild.example")
        sni = (self.sni("a.example"), self.sni("*.wild.example"))
        config = self.listener(web(), sni=sni)
        guarded = attrs.evolve(config, client_ca=self.client_ca)
        picky = attrs.evolve(guarded, allow_identities=(allow("cn", "bob"),))
        # The same contexts as far as can be: each follows the one before.
        servers: list[ServerTLS] = []
        for each in (config, guarded, picky):
            servers.append(ServerTLS(each, WHERE, servers[-1] if servers else None))
        for version in VERSIONS:
            for who, welcome in ((None, (0,)), (alice(), (0, 1)), (root().vouch("bob"), (0, 1, 2))):
                for first in range(3):
                    for name in names:
                        self.visit_everywhere(version, who, welcome, servers, first, name, names)

    def visit_everywhere(
        self,
        version: int,
        who: Identity | None,
        welcome: tuple[int, ...],
        servers: list[ServerTLS],
        first: int,
        name: str,
        names: tuple[str, ...],
    ) -> None:
        client = Client(version, who)
        visit(servers[first], client, name)
        session = client.session
        for then, server in enumerate(servers):
            for another in names:
                client.session = session
                outcome = visit(server, client, another)
                told = (version, who and who.certificate.subject, first, name, then, another)
                self.assertEqual(outcome.peer is not None, then in welcome, told)
                self.assertEqual(outcome.heard == b"welcome", then in welcome, told)
                if outcome.resumed:
                    self.assertEqual((first, name), (then, another), told)
                if (first, name) == (then, another) and then in welcome:
                    self.assertTrue(outcome.resumed, told)

    def test_names_of_one_certificate_may_resume_each_other(self) -> None:
        server = self.server(sni=(self.sni("*.example.com"),))
        for version in VERSIONS:
            client = Client(version)
            visit(server, client, "a.example.com")
            outcome = visit(server, client, "b.example.com")
            assert outcome.peer is not None
            self.assertEqual((outcome.resumed, outcome.peer.server_name), (True, "b.example.com"))

    def test_a_renewed_certificate_keeps_sessions(self) -> None:
        for version in VERSIONS:
            for name in (None, "a.example"):
                config = self.listener(
                    web(), sni=(self.sni("a.example"),), client_ca=self.client_ca
                )
                server = ServerTLS(config, WHERE)
                client = Client(version, alice())
                self.assertFalse(self.resumes(server, client, name))
                renewed = root().vouch("renewed", dns=["web.example"])
                config = attrs.evolve(
                    config,
                    certificate=self.listener(renewed).certificate,
                    key=(self.write(renewed)[1],),
                    sni=(self.sni("a.example", who=renewed),),
                    alpn=("h2",),
                )
                server = ServerTLS(config, WHERE, server)
                self.assertTrue(self.resumes(server, client, name))
                fresh = visit(server, Client(version, alice()), name)
                self.assertEqual(names_of(fresh), ["renewed"])
                # And once more, as bases are handed on.
                server = ServerTLS(config, WHERE, server)
                self.assertTrue(self.resumes(server, client, name))

    def test_after_another_policy_all_shake_hands_anew(self) -> None:
        config = self.listener(web(), client_ca=self.client_ca)
        bundle = os.path.join(self.folder, "bundle.pem")
        with open(bundle, "wb") as file:
            file.write(root().pem + strangers().pem)
        for version in VERSIONS:
            for changes in (
                {"client_ca": bundle},
                {"require_client_certificate": False},
                {"allow_identities": (allow("cn", "alice"),)},
                {"minimum_version": "1.3"} if version == SSL.TLS1_3_VERSION else {"client_ca": ""},
            ):
                server = ServerTLS(config, WHERE)
                client = Client(version, alice())
                self.assertFalse(self.resumes(server, client))
                changed = ServerTLS(attrs.evolve(config, **cast(Any, changes)), WHERE, server)
                self.assertFalse(self.resumes(changed, client), changes)
                self.assertTrue(self.resumes(changed, client), changes)

    def test_sessions_of_who_is_no_longer_trusted_are_worthless(self) -> None:
        for version in VERSIONS:
            server = self.server(client_ca=self.client_ca)
            client = Client(version, alice())
            self.assertFalse(self.resumes(server, client))
            strict = ServerTLS(
                attrs.evolve(server.config, client_ca=strangers().write(self.folder, "others")),
                WHERE,
                server,
            )
            outcome = visit(strict, client)
            self.assertIn("issued by somebody unknown", outcome.why)

    def test_a_certificate_that_has_expired_since_is_not_resumed(self) -> None:
        server = self.server(client_ca=self.client_ca)
        for version in VERSIONS:
            client = Client(version, alice())
            visit(server, client)
            patched = self.patch(peer, "datetime", InTwoYears)
            outcome = visit(server, client)
            patched.restore()
            self.assertRegex(outcome.why, r"^the client's certificate \(CN=alice\) expired on ")
            self.assertIsNone(outcome.peer)
            self.assertTrue(self.resumes(server, client))

    def test_a_listener_of_its_own_knows_no_other_ones_sessions(self) -> None:
        for version in VERSIONS:
            client = Client(version)
            visit(self.server(), client)
            self.assertFalse(self.resumes(self.server(), client))

    def test_sessions_go_from_process_to_process(self) -> None:
        config = self.listener(web(), client_ca=self.client_ca)
        parent = ServerTLS(config, WHERE)
        for version in VERSIONS:
            client = Client(version, alice())
            self.assertFalse(self.resumes(parent, client))
            # A child that has reloaded since, under another policy and back.
            self.assertEqual(self.in_child(parent, client, config), "True")
            # And what a child began, the parent goes on with.
            self.assertEqual(self.in_child(parent, Client(version, alice()), config), "False")

    def in_child(self, parent: ServerTLS, client: Client, config: ListenerTLSConfig) -> str:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            told = "failed"
            try:
                reloaded = ServerTLS(config, WHERE, parent)
                told = str(visit(reloaded, client).resumed)
            finally:
                os.write(writing, told.encode())
                os._exit(0)
        os.close(writing)
        with open(reading) as file:
            told = file.read()
        os.waitpid(child, 0)
        return told

    def test_a_changed_policy_is_the_same_in_all_processes(self) -> None:
        config = self.listener(web(), client_ca=self.client_ca)
        changed = attrs.evolve(config, allow_identities=(allow("cn", "alice"),))
        parent = ServerTLS(config, WHERE)
        for version in VERSIONS:
            client = Client(version, alice())
            self.resumes(ServerTLS(changed, WHERE, parent), client)
            self.assertEqual(self.in_child(parent, client, changed), "True")


class NotTLSTests(ServerCase):
    def told(self, said: bytes, close: bool = False, server: ServerTLS | None = None) -> str:
        with pair() as (outer, inner):
            outer.sendall(said)
            if close:
                outer.shutdown(socket.SHUT_WR)
            ours = (server or self.server()).accept(inner, peeked(inner))
            end = End(ours)
            talk(end)
            assert end.failed is not None
            return explain(end.failed, ours)

    def test_other_protocols_are_named(self) -> None:
        for said, told in (
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "the client speaks HTTP without TLS"),
            (
                b"CONNECT x:443 HTTP/1.1\r\n\r\n",
                "the client speaks HTTP without TLS, as to a proxy",
            ),
            (b"SSH-2.0-OpenSSH_9.2\r\n" * 9, "what the client sent is not TLS"),
            (bytes(100), "what the client sent is not TLS"),
        ):
            self.assertEqual(self.told(said), told)

    def test_ends_are_told_apart(self) -> None:
        left = "the client closed the connection in the middle of the TLS handshake"
        self.assertEqual(self.told(b"", close=True), left)
        self.assertEqual(self.told(b"\x16\x03\x01\x02\x00", close=True), left)

    def test_clients_that_do_not_trust_us(self) -> None:
        def change(context: SSL.Context) -> None:
            context.set_verify(SSL.VERIFY_PEER, lambda *arguments: bool(arguments[4]))

        outcome = visit(self.server(), Client(SSL.TLS1_2_VERSION, change=change))
        self.assertEqual(outcome.why, "the client rejected our certificate: unknown ca")

"""`fwdrelay.tls.upstream`: which targets are talked to, and which are not."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from OpenSSL import SSL
from service_identity.pyopenssl import verify_hostname

from fwdrelay.config import TargetConfig, UpstreamTLSConfig
from fwdrelay.tls import UpstreamTLS, explain, peer, upstream
from fwdrelay.tls.upstream import Lately
from tests.case import SynchronousTestCase
from tests.pki import Authority, Identity
from tests.tls.talk import VERSIONS, End, TLSCase, meet, pair, talk

WHERE = "pool.web.tls"
DAY = timedelta(days=1)


@functools.cache
def root() -> Authority:
    return Authority()


@functools.cache
def someone() -> Identity:
    return root().vouch("someone", dns=["a.example", "*.wild.example"], ip=["127.0.0.1", "::1"])


def at(host: str) -> TargetConfig:
    return TargetConfig(host=host, port=443)


class InTwoYears(datetime):
    """For what looks at dates itself."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + timedelta(days=730)


class UpstreamCase(TLSCase):
    def upstream(self, before: UpstreamTLS | None = None, **settings: Any) -> UpstreamTLS:
        ca = root().write(self.folder)
        return UpstreamTLS(UpstreamTLSConfig(**{"ca": ca, **settings}), WHERE, before)

    def target(
        self,
        who: Identity,
        version: int = SSL.TLS1_3_VERSION,
        clients: Authority | None = None,
        alpn: Sequence[bytes] = (),
    ) -> SSL.Context:
        """
        A target's side, with session tickets.

        @param clients: who vouches for its clients, which need certificates.
        """
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.set_session_id(b"target")
        chain, key = self.write(who)
        context.use_certificate_chain_file(chain)
        context.use_privatekey_file(key)
        if clients is not None:
            context.load_verify_locations(clients.write(self.folder, "clients"))
            wanted = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            context.set_verify(wanted, lambda *arguments: bool(arguments[4]))
        if alpn:
            context.set_alpn_select_callback(
                lambda connection, offered: next(each for each in alpn if each in offered)
            )
        return context


class VerifyTests(UpstreamCase):
    def test_names_and_addresses(self) -> None:
        tls = self.upstream()
        for version in VERSIONS:
            context = self.target(someone(), version)
            for host, fits in (
                ("a.example", True),
                ("A.Example.", True),
                ("x.wild.example", True),
                ("127.0.0.1", True),
                ("::1", True),
                ("0:0:0:0:0:0:0:1", True),
                ("b.example", False),
                ("wild.example", False),
                ("x.y.wild.example", False),
                ("someone", False),
                ("127.0.0.2", False),
                ("::2", False),
            ):
                for _ in range(2):
                    outcome = meet(tls, at(host), context)
                    self.assertEqual(outcome.peer is not None, fits, host)
                    if not fits:
                        self.assertEqual(
                            outcome.why,
                            "the target's certificate is for a.example, *.wild.example, 127.0.0.1 and 1 more,"
                            f" not for {host}",
                        )

    def test_a_name_of_its_own_is_verified_instead_of_the_host(self) -> None:
        for name, identity, sni in (
            ("a.example", "dns:a.example", b"a.example"),
            ("127.0.0.1", "ip:127.0.0.1", None),
        ):
            for target in (at("elsewhere.example"), TargetConfig(path="/run/socket")):
                outcome = meet(self.upstream(name=name), target, self.target(someone()))
                assert outcome.peer is not None
                self.assertEqual(outcome.peer.identity, identity)
                self.assertEqual(outcome.servername, sni)
        self.assertIsNone(
            meet(self.upstream(name="b.example"), at("a.example"), self.target(someone())).peer
        )

    def test_server_names(self) -> None:
        for host, name in (
            ("A.example.", b"a.example"),
            ("bücher.example", b"xn--bcher-kva.example"),
            ("127.0.0.1", None),
            ("fe80::1%lo", None),
        ):
            outcome = meet(self.upstream(verify=False), at(host), self.target(someone()))
            self.assertEqual(outcome.servername, name)
            self.assertIsNotNone(outcome.peer)

    def test_a_unix_socket_without_a_name_proves_nothing(self) -> None:
        outcome = meet(self.upstream(), TargetConfig(path="/run/socket"), self.target(someone()))
        self.assertIn("has no name to verify", outcome.why)

    def test_chains_that_are_not_good_are_refused_with_an_alert(self) -> None:
        strangers = Authority("strangers")
        for who, alert, why in (
            (
                strangers.vouch("mallory", dns=["a.example"]),
                "unknown ca",
                r"\(CN=mallory\) was issued by somebody unknown \(CN=strangers\)$",
            ),
            (
                root().vouch("old", dns=["a.example"], starts=-9 * DAY, ends=-DAY),
                "certificate expired",
                r"\(CN=old\) expired on \d{4}-",
            ),
            (
                root().vouch("young", dns=["a.example"], starts=DAY, ends=9 * DAY),
                "bad certificate",
                r"\(CN=young\) is not valid before \d{4}-",
            ),
            (strangers.identity, "unknown ca", r"\(CN=strangers\) is vouched for by itself alone$"),
        ):
            for version in VERSIONS:
                outcome = meet(self.upstream(), at("a.example"), self.target(who, version))
                self.assertIsNone(outcome.peer)
                self.assertRegex(outcome.why, f"^the target's certificate {why}")
                self.assertRegex(outcome.alert, f"alert {alert}$")

    def test_who_is_nobody_by_its_alternative_names_is_refused(self) -> None:
        outcome = meet(self.upstream(), at("a.example"), self.target(root().vouch("a.example")))
        self.assertEqual(
            outcome.why,
            "the target's certificate is for nobody by subjectAltName, so not for a.example",
        )

    def test_the_systems_authorities(self) -> None:
        with mock.patch.dict(os.environ, SSL_CERT_FILE=root().write(self.folder, "system")):
            tls = self.upstream(ca="")
        self.assertIsNotNone(meet(tls, at("a.example"), self.target(someone())).peer)
        with mock.patch.dict(os.environ, SSL_CERT_FILE="/nowhere/ca.pem"):
            tls = self.upstream(ca="")
        outcome = meet(tls, at("a.example"), self.target(someone()))
        self.assertIn("was issued by somebody unknown", outcome.why)

    def test_whoever_is_not_verified_may_be_anybody(self) -> None:
        for who in (Authority("strangers").vouch(dns=["x"]), root().vouch(ends=timedelta())):
            for version in VERSIONS:
                outcome = meet(
                    self.upstream(verify=False), at("b.example"), self.target(who, version)
                )
                assert outcome.peer is not None
                self.assertIsNone(outcome.peer.identity)

    def test_names_are_verified_once_for_a_certificate(self) -> None:
        calls: list[str] = []

        def verify(connection: SSL.Connection, name: str) -> None:
            calls.append(name)
            verify_hostname(connection, name)

        self.patch(upstream, "verify_hostname", verify)
        tls = self.upstream()
        context = self.target(someone())
        for host in ("a.example", "a.example", "b.example", "b.example", "x.wild.example"):
            meet(tls, at(host), context, remember=False)
        # What did not fit is looked at again.
        self.assertEqual(calls, ["a.example", "b.example", "b.example", "x.wild.example"])


class OurselvesTests(UpstreamCase):
    def test_targets_that_ask_are_shown_a_certificate(self) -> None:
        middle = Authority("middle", above=root())
        chain, key = self.write(middle.vouch("relay"))
        for version in VERSIONS:
            context = self.target(someone(), version, clients=root())
            shown = meet(self.upstream(certificate=chain, key=key), at("a.example"), context)
            self.assertEqual((shown.alert, shown.heard), ("", b"welcome"))
            self.assertIsNotNone(shown.peer)

    def test_a_target_that_wants_one_in_vain(self) -> None:
        for version, told in (
            (SSL.TLS1_2_VERSION, "the target refused the TLS handshake: handshake failure"),
            (SSL.TLS1_3_VERSION, "the target wants a certificate of us"),
        ):
            outcome = meet(
                self.upstream(), at("a.example"), self.target(someone(), version, clients=root())
            )
            self.assertEqual(outcome.why, told)

    def test_a_target_that_rejects_ours(self) -> None:
        chain, key = self.write(Authority("strangers").vouch("relay"))
        for version in VERSIONS:
            context = self.target(someone(), version, clients=root())
            outcome = meet(self.upstream(certificate=chain, key=key), at("a.example"), context)
            self.assertEqual(outcome.why, "the target rejected our certificate: unknown ca")

    def test_protocols(self) -> None:
        for version in VERSIONS:
            context = self.target(someone(), version, alpn=[b"http/1.1", b"h2"])
            outcome = meet(self.upstream(alpn=("h2", "http/1.1")), at("a.example"), context)
            assert outcome.peer is not None
            self.assertEqual(outcome.peer.alpn, "http/1.1")
            self.assertEqual(outcome.peer.server_name, "a.example")

    def test_a_target_that_speaks_no_tls(self) -> None:
        for said, told in (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what the target sent is not TLS"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "what the target sent is not TLS"),
            (b"", "the target closed the connection in the middle of the TLS handshake"),
        ):
            with pair() as (outer, inner):
                inner.sendall(said)
                inner.shutdown(1)
                end = End(self.upstream().connect(outer, at("a.example")))
                talk(end)
                assert end.failed is not None
                self.assertEqual(explain(end.failed, end.connection), told)

    def test_old_targets_are_not_spoken_to(self) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(SSL.TLS1_1_VERSION)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        chain, key = self.write(someone())
        context.use_certificate_chain_file(chain)
        context.use_privatekey_file(key)
        outcome = meet(self.upstream(), at("a.example"), context)
        self.assertEqual(outcome.why, "the target speaks none of our versions of TLS")


class ResumptionTests(UpstreamCase):
    def test_sessions_are_resumed_target_by_target(self) -> None:
        for version in VERSIONS:
            context = self.target(someone(), version)
            tls = self.upstream()
            for host, resumed in (
                ("a.example", False),
                ("a.example", True),
                ("x.wild.example", False),
                ("a.example", True),
                ("x.wild.example", True),
            ):
                outcome = meet(tls, at(host), context)
                assert outcome.peer is not None
                self.assertEqual(outcome.peer.resumed, resumed, host)
                self.assertEqual(outcome.peer.identity, f"dns:{host}")

    def test_resumed_targets_are_judged_as_well(self) -> None:
        for version in VERSIONS:
            context = self.target(someone(), version)
            trusting = self.upstream(verify=False)
            for host in ("a.example", "b.example"):
                meet(trusting, at(host), context)
            strict = self.upstream()
            # As if the names had been others when the sessions began.
            strict._context, strict._sessions = trusting._context, trusting._sessions
            self.assertIsNotNone(meet(strict, at("a.example"), context).peer)
            outcome = meet(strict, at("b.example"), context)
            self.assertIn("not for b.example", outcome.why)
            patched = self.patch(peer, "datetime", InTwoYears)
            outcome = meet(strict, at("a.example"), context)
            patched.restore()
            self.assertRegex(outcome.why, "^the target's certificate expired on ")

    def test_sessions_of_refused_targets_are_not_kept(self) -> None:
        for version in VERSIONS:
            tls = self.upstream()
            meet(tls, at("b.example"), self.target(someone(), version))
            self.assertEqual(len(tls._sessions), 0)
            meet(tls, at("a.example"), self.target(someone(), version))
            self.assertEqual(len(tls._sessions), 1)

    def test_another_target_behind_the_same_address_is_found_out(self) -> None:
        for version in VERSIONS:
            tls = self.upstream()
            meet(tls, at("a.example"), self.target(someone(), version))
            impostor = self.target(Authority("strangers").vouch(dns=["a.example"]), version)
            outcome = meet(tls, at("a.example"), impostor)
            self.assertIn("was issued by somebody unknown", outcome.why)

    def test_a_reload_that_changes_nothing_keeps_sessions(self) -> None:
        context = self.target(someone())
        first = self.upstream()
        meet(first, at("a.example"), context)
        again = self.upstream(first)
        outcome = meet(again, at("a.example"), context)
        assert outcome.peer is not None
        self.assertTrue(outcome.peer.resumed)

    def test_one_that_changes_something_does_not(self) -> None:
        context = self.target(someone())
        first = self.upstream()
        meet(first, at("a.example"), context)
        others = {"ca": Authority("others").write(self.folder, "others")}
        outcome = meet(self.upstream(first, **others), at("a.example"), context)
        self.assertIn("was issued by somebody unknown", outcome.why)
        # The same path, other authorities in it.
        with open(first.config.ca, "ab") as file:
            file.write(Authority("one more").pem)
        changed = UpstreamTLS(first.config, WHERE, first)
        outcome = meet(changed, at("a.example"), context)
        assert outcome.peer is not None
        self.assertFalse(outcome.peer.resumed)


class LatelyTests(SynchronousTestCase):
    def test_the_longest_unused_makes_room(self) -> None:
        lately: Lately[str, int] = Lately(2)
        lately.put("a", 1)
        lately.put("b", 2)
        self.assertEqual(lately.get("a"), 1)
        lately.put("c", 3)
        self.assertEqual([lately.get(key) for key in "abc"], [1, None, 3])
        lately.put("c", 4)
        self.assertEqual((len(lately), lately.get("c")), (2, 4))

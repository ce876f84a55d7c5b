"""Which certificate is shown to whom; that others can be put in their place while sessions run; when they expire."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from tests.pki import Authority, Identity
from tests.scenarios.configured import UNCHANGED, ConfiguredRelay
from tests.scenarios.programs import free_port
from tests.scenarios.relay_process import (
    PATIENCE,
    TROUBLE,
    TWISTD,
    Upstream,
    read_all,
    read_exactly,
)
from tests.scenarios.scenario import MB, Scenario, chunks, send
from tests.scenarios.tls_ends import (
    VERSIONS,
    TLSScenario,
    TLSSocket,
    alert_of,
    authority,
    client_context,
    listener,
    relays_own,
    serve,
    server_context,
    targets_own,
    where,
)

EX_CONFIG = 78
ASKING = '\nclient_ca = "ca.pem"\n'


def der(who: Identity) -> bytes:
    """As a client sees the certificate."""
    return ssl.PEM_cert_to_DER_cert(who.chain.decode().partition("-----END")[0] + PEM_END)


PEM_END = "-----END CERTIFICATE-----\n"
BELOW = Authority("below", authority())
RSA = BELOW.vouch("localhost", dns=["localhost"], ip=["127.0.0.1"], kind="rsa")
EXACT = BELOW.vouch(dns=["db.example.com"])
WILDCARD = authority().vouch(dns=["*.example.com"])


class Names(TLSScenario, every_pump=False):
    upstream: ClassVar[Upstream]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        cls.upstream = opened.enter_context(Upstream())
        for name, who in (("rsa", RSA), ("exact", EXACT), ("wildcard", WILDCARD)):
            who.write(cls.folder_, name)
        both = 'certificate = ["relay.pem", "rsa.pem"]\nkey = ["relay.key", "rsa.key"]\nalpn = ["b", "a"]'
        return (
            f'[pool.up]\ntargets = ["{cls.upstream.target}"]\n'
            + listener("web", "up", tls=True, own=both)
            + """
[[listener.tls.sni]]
names = ["db.example.com"]
certificate = "exact.pem"
key = "exact.key"
[[listener.tls.sni]]
names = ["*.example.com", "example.org"]
certificate = "wildcard.pem"
key = "wildcard.key"
"""
            + listener("new", "up", tls=True, settings='minimum_version = "1.3"')
        )

    def shown(self, name: str | None, context: ssl.SSLContext | None = None) -> bytes:
        """
        @return: the certificate that a client sees who asks for that name.
        """
        context = context or client_context(trusted=False)
        with self.dial("web", context, name) as client, self.upstream.accept():
            return bytes(client.peer)

    def test_who_asks_for_a_name_is_shown_the_certificate_for_it(self) -> None:
        for name in ("db.example.com", "DB.Example.Com"):
            self.assertEqual(self.shown(name), der(EXACT))
        for name in ("www.example.com", "WWW.example.com", "example.org"):
            self.assertEqual(self.shown(name), der(WILDCARD))

    def test_who_asks_for_another_name_or_none_is_shown_the_first_certificate(self) -> None:
        for name in ("localhost", "nobody.example.net", "a.b.example.com", "example.com", None):
            self.assertEqual(self.shown(name), der(relays_own()))

    def test_the_chain_is_sent_along(self) -> None:
        context = client_context()
        with self.dial("web", context, "db.example.com") as client, self.upstream.accept():
            self.assertEqual(client.peer, der(EXACT))  # who trusts the root alone is content

    def test_who_takes_rsa_alone_is_shown_that_certificate(self) -> None:
        for version, ciphers in (("TLSv1.2", "aRSA"), ("TLSv1.2", "aECDSA")):
            context = client_context(version)
            context.set_ciphers(ciphers)
            expected = RSA if ciphers == "aRSA" else relays_own()
            self.assertEqual(self.shown("localhost", context), der(expected))

    def test_who_takes_signatures_by_rsa_alone_is_shown_that_certificate(self) -> None:
        # Python's ssl can't restrict signatures.
        for version in ("-tls1_2", "-tls1_3"):
            for signatures, expected in (
                ("rsa_pss_rsae_sha256:RSA+SHA256", RSA),
                ("ECDSA+SHA256", relays_own()),
            ):
                said = self.openssl(
                    version, "-servername", "localhost", "-sigalgs", signatures, "-showcerts"
                )
                self.assertIn(expected.chain.decode().partition("\n-----END")[0], said)

    def test_the_listeners_own_wish_among_protocols_counts(self) -> None:
        for offered, chosen in ((("a", "b"), "b"), (("a",), "a"), ((), None)):
            context = client_context(alpn=offered)
            with self.dial("web", context) as client, self.upstream.accept():
                self.assertEqual(client.tls.selected_alpn_protocol(), chosen)

    def test_who_speaks_none_of_the_protocols_is_told_so(self) -> None:
        sock = self.relay.connect_to("web")
        client = where(sock)
        with self.assertRaises(ssl.SSLError) as told:
            TLSSocket(sock, client_context(alpn=("c",)), name="localhost")
        self.assertEqual(alert_of(told.exception), "no application protocol")
        why = "the client speaks c, and no protocol of `alpn`"
        self.has_ended_so(client, "tls-failed", "PR", error=why)

    def test_who_is_too_old_is_told_so(self) -> None:
        with self.assertRaises(ssl.SSLError) as told:
            self.dial("new", client_context("TLSv1.2"))
        self.assertEqual(alert_of(told.exception), "protocol version")

    def openssl(self, *options: str) -> str:
        """
        @return: what `openssl s_client` says of the listener.
        """
        address = "{}:{}".format(*self.relay.listener("web"))
        done = subprocess.run(
            ["openssl", "s_client", "-connect", address, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.upstream.accept().close()
        return done.stdout


class Renewal(Scenario, every_pump=False):
    """The files of a listener, and of a pool, change while sessions run."""

    def setUp(self) -> None:
        self.place = Path(self.folder())
        authority().write(self.place)
        self.old, self.new = relays_own(), authority().vouch("new", dns=["localhost"])
        self.old.write(self.place, "relay")

    @contextmanager
    def renewing(self) -> Iterator[tuple[ConfiguredRelay, Upstream]]:
        with Upstream() as upstream:
            text = f'[pool.up]\ntargets = ["{upstream.target}"]\n' + listener("web", "up", tls=True)
            with ConfiguredRelay(self.place / "relay.toml", text, "--pump", self.pump) as relay:
                yield relay, upstream
                relay.wait_for_descriptors(relay.at_rest)

    def dial(
        self,
        relay: ConfiguredRelay,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Any:
        sock = relay.connect_to("web")
        return TLSSocket(sock, context or client_context(), name="localhost", session=session)

    def put(self, who: Identity) -> None:
        """Put another certificate in the old one's place, as its renewal does."""
        self.place.joinpath("next").mkdir(exist_ok=True)
        who.write(self.place / "next", "relay")
        for name in ("relay.key", "relay.pem"):
            os.replace(self.place / "next" / name, self.place / name)

    def sees(self, relay: ConfiguredRelay, upstream: Upstream, who: Identity) -> None:
        """Assert that clients who come now do."""
        with self.dial(relay) as client, upstream.accept():
            self.assertEqual(client.peer, der(who))

    def renew(self, relay: ConfiguredRelay, how: str, who: Identity) -> None:
        start = len(relay.lines)
        self.put(who)
        if how == "signal":
            relay.reload()
        else:
            relay.wait_for_line("were read anew: listener web", start=start)

    def test_renewed_certificates_are_shown_while_an_old_session_goes_on(self) -> None:
        with (
            self.renewing() as (relay, upstream),
            ThreadPoolExecutor() as threads,
            self.dial(relay) as old,
            upstream.accept() as server,
        ):
            self.assertEqual(old.peer, der(self.old))
            for number, (who, how) in enumerate(((self.new, "file"), (self.old, "signal"))):
                up = threads.submit(send, old, 3 * MB, number)
                down = threads.submit(send, server, 3 * MB, number)
                self.renew(relay, how, who)
                self.sees(relay, upstream, who)
                for hearer in (old, server):
                    heard = read_exactly(hearer, 3 * MB)
                    self.assertTrue(heard == b"".join(chunks(3 * MB, number)))
                up.result()
                down.result()

    def test_a_ticket_from_before_is_taken_after_it(self) -> None:
        with self.renewing() as (relay, upstream):
            for version in VERSIONS:
                self.put(self.old)
                relay.reload()
                context = client_context(version)
                with self.dial(relay, context) as client, upstream.accept() as server:
                    server.sendall(b"welcome")
                    read_exactly(client, 7)
                    session = client.tls.session
                    self.assertFalse(client.tls.session_reused)
                self.renew(relay, "signal", self.new)
                with self.dial(relay, context, session) as client, upstream.accept():
                    self.assertTrue(client.tls.session_reused)
                self.sees(relay, upstream, self.new)

    def test_who_is_on_the_list_no_more_does_not_enter_by_a_ticket_either(self) -> None:
        with self.renewing() as (relay, upstream):
            text = relay.file.read_text()
            for version in VERSIONS:
                relay.reload(text + ASKING + 'allow_identities = ["cn:alice"]')
                context = client_context(version, who=authority().vouch("alice"))
                with self.dial(relay, context) as client, upstream.accept() as server:
                    server.sendall(b"welcome")
                    read_exactly(client, 7)
                    session = client.tls.session
                relay.reload(text + ASKING + 'allow_identities = ["cn:bob"]')
                with self.assertRaises(ssl.SSLError) as told:
                    refused = self.dial(relay, context, session)
                    with refused:
                        refused.recv(1)
                self.assertEqual(alert_of(told.exception), "bad certificate")

    def test_a_handshake_that_is_under_way_is_completed_as_it_began(self) -> None:
        with self.renewing() as (relay, upstream):
            text = relay.file.read_text()
            for version in VERSIONS:
                with relay.connect_to("web") as sock:
                    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                    tls = client_context(version).wrap_bio(
                        incoming, outgoing, server_hostname="localhost"
                    )
                    with self.assertRaises(ssl.SSLWantReadError):
                        tls.do_handshake()
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(1 << 16))
                    relay.reload(text.partition("[listener.tls]")[0])
                    relay.reload(text + ASKING)
                    while True:
                        try:
                            tls.do_handshake()
                            break
                        except ssl.SSLWantReadError:
                            sock.sendall(outgoing.read())
                            incoming.write(sock.recv(1 << 16))
                    tls.write(b"hello")
                    sock.sendall(outgoing.read())
                    with upstream.accept() as server:
                        self.assertEqual(read_exactly(server, 5), b"hello")
                relay.reload(text)

    def test_openssl_resumes_over_a_reload(self) -> None:
        with self.renewing() as (relay, upstream):
            kept = str(self.place / "session")
            for version in ("-tls1_2", "-tls1_3"):
                words = ("openssl", "s_client", version, "-servername", "localhost", "-ign_eof")
                address = "{}:{}".format(*relay.listener("web"))
                for option, expected in (
                    ("-sess_out", "New, TLSv1"),
                    ("-sess_in", "Reused, TLSv1"),
                ):
                    with ThreadPoolExecutor() as threads:
                        ending = threads.submit(self.say_welcome, upstream)
                        done = subprocess.run(
                            [*words, "-connect", address, option, kept],
                            stdin=subprocess.DEVNULL,
                            capture_output=True,
                            text=True,
                            timeout=PATIENCE,
                            check=False,
                        )
                        ending.result()
                    self.assertIn(expected, done.stdout)
                    self.assertIn("welcome", done.stdout)
                    relay.reload()

    def say_welcome(self, upstream: Upstream) -> None:
        with upstream.accept() as server:
            server.sendall(b"welcome")
            server.shutdown(socket.SHUT_WR)
            read_all(server)

    def test_files_that_do_not_fit_change_nothing_and_are_told_of(self) -> None:
        with self.renewing() as (relay, upstream):
            mismatched = Identity(self.new.certificate, self.old.private_key)
            start = len(relay.lines)
            self.put(mismatched)
            relay.wait_for_line(
                "The certificates of listener web stay as they were",
                "the key doesn't match the certificate",
                start=start,
            )
            self.sees(relay, upstream, self.old)
            lines = "\n".join(relay.reload(outcome=UNCHANGED))
            self.assertIn("the key doesn't match the certificate", lines)
            self.sees(relay, upstream, self.old)
            self.renew(relay, "signal", self.new)
            self.sees(relay, upstream, self.new)

    def test_files_that_are_gone_or_damaged_change_nothing(self) -> None:
        with self.renewing() as (relay, upstream):
            for damage in (
                "",
                "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n",
            ):
                (self.place / "relay.pem").write_text(damage)
                lines = "\n".join(relay.reload(outcome=UNCHANGED))
                self.assertIn("listener[0].tls.certificate", lines)
                self.sees(relay, upstream, self.old)
            start = len(relay.lines)
            (self.place / "relay.pem").unlink()
            relay.wait_for_line(
                "The certificates of listener web stay as they were", "no such file", start=start
            )
            self.sees(relay, upstream, self.old)


class RenewedTargets(Scenario, every_pump=False):
    def test_another_authority_for_targets_counts_from_now_on(self) -> None:
        place = Path(self.folder())
        authority("another root").write(place)
        with Upstream() as upstream:
            text = listener("in", "up") + (
                f'[pool.up]\ntargets = ["{upstream.target}"]\ntls = {{ ca = "ca.pem" }}\n'
            )
            with ConfiguredRelay(place / "relay.toml", text) as relay:
                with relay.connect_to("in"), self.assertRaises(ssl.SSLError):
                    serve(upstream, server_context(targets_own()))
                authority().write(place)
                relay.reload()
                with (
                    relay.connect_to("in") as client,
                    serve(upstream, server_context(targets_own())) as server,
                ):
                    client.sendall(b"hello")
                    self.assertEqual(read_exactly(server, 5), b"hello")

    def test_a_session_of_before_a_renewal_harms_none_after_it(self) -> None:
        """What it leaves behind to be resumed was agreed on with those who were trusted then."""
        place = Path(self.folder())
        authority().write(place)
        with Upstream() as upstream:
            text = listener("in", "up") + (
                f'[pool.up]\ntargets = ["{upstream.target}"]\ntls = {{ ca = "ca.pem" }}\n'
            )
            with ConfiguredRelay(place / "relay.toml", text) as relay:
                with (
                    relay.connect_to("in") as client,
                    serve(upstream, server_context(targets_own())) as server,
                ):
                    client.sendall(b"old")
                    self.assertEqual(read_exactly(server, 3), b"old")
                    server.sendall(b"answer")
                    self.assertEqual(read_exactly(client, 6), b"answer")
                    with (place / "ca.pem").open("ab") as ca:
                        ca.write(authority("another root").pem)
                    relay.reload()
                    client.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(server), b"")
                    server.shutdown()
                    self.assertEqual(read_all(client), b"")
                    (entry,) = relay.ended(1)
                    self.assertEqual(entry["reason"], "done")
                for _ in range(3):
                    with (
                        relay.connect_to("in") as client,
                        serve(upstream, server_context(targets_own())) as server,
                    ):
                        client.sendall(b"new")
                        self.assertEqual(read_exactly(server, 3), b"new")


class StartUp(Scenario, every_pump=False):
    def setUp(self) -> None:
        self.place = Path(self.folder())
        authority().write(self.place)
        relays_own().write(self.place, "relay")

    def write(self, settings: str = "", *, pool: str = "") -> Path:
        path = self.place / "relay.toml"
        path.write_text(
            listener("web", "up", tls=True, settings=settings)
            + f'[pool.up]\ntargets = ["127.0.0.1:{free_port()}"]\n{pool}\n'
        )
        return path

    def run_to_its_end(self, *words: str) -> tuple[int, str]:
        """
        @return: exit status, and all that was printed.
        """
        done = subprocess.run(
            [sys.executable, *TWISTD[-2:], "-n", "--pidfile=", "fwdrelay", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertIsNone(TROUBLE.search(done.stdout + done.stderr), done.stdout + done.stderr)
        return done.returncode, done.stdout + done.stderr

    def fails(self, config: Path, *saying: str, check: bool = False, lines: int = 1) -> None:
        """With so many lines, which say this."""
        status, printed = self.run_to_its_end(
            "--config", str(config), *(("--check",) if check else ())
        )
        self.assertEqual((status, printed.count("\n")), (EX_CONFIG, lines), printed)
        for words in saying:
            self.assertIn(words, printed)

    def test_a_certificate_that_cannot_be_read_is_a_clear_line(self) -> None:
        (self.place / "relay.pem").unlink()
        said = "listener[0].tls.certificate", "relay.pem", "no such file"
        self.fails(self.write(), *said)

    def test_a_key_of_another_certificate_is_a_clear_line(self) -> None:
        authority().vouch("x").write(self.place, "x")
        shutil.copy(self.place / "x.key", self.place / "relay.key")
        self.fails(self.write(), "listener[0].tls.key", "doesn't match", check=True)

    def test_all_that_is_wrong_with_files_is_told_at_once(self) -> None:
        config = self.write('client_ca = "nobody.pem"', pool='tls = { ca = "relay.key" }')
        said = "listener[0].tls.client_ca", "nobody.pem", "pool.up.tls.ca", "relay.key"
        self.fails(config, *said, lines=2)

    def test_a_certificate_on_the_command_line_that_cannot_be_read_is_a_clear_line(self) -> None:
        status, printed = self.run_to_its_end(
            *("--port", "0", "--target", "localhost:80", "--tls-cert", "/nobody.pem")
        )
        self.assertIn(status, (64, 69, 78))
        self.assertIn("/nobody.pem", printed)

    def test_certificates_that_expire_soon_or_have_are_warned_of(self) -> None:
        ends = {"soon": 10.5, "over": -1.0, "later": 20.0}
        for name, days in ends.items():
            start = timedelta(days=-30)
            who = authority().vouch(dns=[name], starts=start, ends=timedelta(days=days))
            who.write(self.place, name)
        text = "".join(
            listener(name, "up", tls=True, own=f'certificate = "{name}.pem"\nkey = "{name}.key"')
            for name in ends
        )
        text += '[pool.up]\ntargets = ["127.0.0.1:9"]\n'
        with ConfiguredRelay(self.place / "relay.toml", text) as relay:
            relay.wait_for_line("soon.pem expires in 10 days, on ", "#warn")
            relay.wait_for_line("over.pem has expired, on ", "#error")
            self.assertNotIn("later.pem", "\n".join(relay.lines))

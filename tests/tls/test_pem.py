"""`fwdrelay.tls.pem`: what is wrong with files, each in its place."""

from __future__ import annotations

import datetime
import functools
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import skipIf

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from fwdrelay.config import ListenerTLSConfig, SNIConfig, UpstreamTLSConfig
from fwdrelay.tls import ServerTLS, UpstreamTLS
from fwdrelay.tls.pem import LARGEST, Loading, as_path
from tests.pki import Authority, Identity
from tests.tls.talk import WHERE, Client, TLSCase, visit


@functools.cache
def root() -> Authority:
    return Authority()


@functools.cache
def web() -> Identity:
    return root().vouch("web", dns=["web.example"])


@functools.cache
def small() -> tuple[bytes, bytes]:
    """A certificate and a key that are too short for anybody."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "small")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return certificate.public_bytes(pem), key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, plain
    )


def encrypted(form: serialization.PrivateFormat) -> bytes:
    return web().private_key.private_bytes(
        serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret")
    )


class FileCase(TLSCase):
    def setUp(self) -> None:
        super().setUp()
        self.chain, self.key = web().write(self.folder, "web")

    def file(self, data: bytes) -> str:
        self._written += 1
        path = Path(self.folder, f"made{self._written}.pem")
        path.write_bytes(data)
        return str(path)

    def server(self, **settings: Any) -> ServerTLS:
        settings = {"certificate": (self.chain,), "key": (self.key,), **settings}
        return ServerTLS(ListenerTLSConfig(**settings), WHERE)

    def told(self, **settings: Any) -> tuple[str, str]:
        """The only thing that is wrong: the key, and the problem without paths."""
        ((where, problem),) = self.problems(lambda: self.server(**settings)).items()
        self.assertTrue(where.startswith(f"{WHERE}."), where)
        self.assertTrue(problem.isprintable())
        for path in (
            *settings.get("certificate", ()),
            *settings.get("key", ()),
            self.chain,
            self.key,
        ):
            problem = problem.replace(repr(path), "FILE")
        return where.removeprefix(f"{WHERE}."), problem


class CertificateFileTests(FileCase):
    def check(self, data: bytes, problem: str) -> None:
        where, told = self.told(certificate=(self.file(data),))
        self.assertEqual(where, "certificate")
        self.assertRegex(told, problem)

    def test_what_can_not_be_read(self) -> None:
        for path, problem in (
            (self.folder + "/none.pem", "FILE can't be read: no such file or directory"),
            (self.folder, "FILE can't be read: is a directory"),
            ("/dev/null", "FILE is not a regular file"),
        ):
            self.assertEqual(self.told(certificate=(path,)), ("certificate", problem))
        os.mkfifo(self.folder + "/fifo")
        self.assertIn("not a regular file", self.told(certificate=(self.folder + "/fifo",))[1])

    @skipIf(not os.geteuid(), "root may read everything")
    def test_what_may_not_be_read(self) -> None:
        os.chmod(self.key, 0)
        self.assertEqual(self.told(), ("key", "FILE can't be read: permission denied"))

    def test_what_is_no_certificate(self) -> None:
        der = web().certificate.public_bytes(serialization.Encoding.DER)
        for data, problem in (
            (b"", "^FILE has no certificate: it is empty$"),
            (b" \n", "it is empty$"),
            (b"hello", "has no certificate: it has to be PEM"),
            (os.urandom(100).replace(b"\x30", b""), "has no certificate"),
            (der, r"it looks like DER: convert it to PEM \(`openssl x509 -inform der`\)$"),
            (web().key, "has no certificate: it has a private key alone$"),
            (
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
                "the first .* damaged",
            ),
            (web().chain + web().chain.replace(b"M", b"N"), "the second certificate is damaged: "),
            (b"x" * (LARGEST + 1), "larger than 1 MiB, which is the most that is read$"),
        ):
            self.check(data, problem)

    def test_what_openssl_refuses(self) -> None:
        chain, key = small()
        where, problem = self.told(certificate=(self.file(chain),), key=(self.file(key),))
        self.assertEqual(where, "certificate")
        self.assertIn("its key is too short for OpenSSL: RSA takes 2048 bits, at least", problem)

    def test_the_order_of_a_chain(self) -> None:
        middle = Authority("middle", above=root())
        who = middle.vouch("leaf")
        pem = serialization.Encoding.PEM
        upside_down = b"".join(
            each.public_bytes(pem) for each in (middle.identity.certificate, who.certificate)
        )
        where, problem = self.told(certificate=(self.file(upside_down),), key=(self.file(who.key),))
        self.assertEqual(where, "key")
        self.assertIn(
            "is that of the second certificate: write the server's own one first", problem
        )

    def test_an_expired_certificate_is_shown_all_the_same(self) -> None:
        old = root().vouch("old", ends=timedelta(hours=-1))
        tls = ServerTLS(self.listener(old), WHERE)
        self.assertEqual(len(visit(tls, Client()).shown), 1)
        self.assertEqual(tls.files[0].expires, old.certificate.not_valid_after_utc.timestamp())

    def test_text_around_the_blocks_does_not_matter(self) -> None:
        data = b"Bag Attributes\n  subject=x\n" + web().chain + b"trailing\n" + web().key
        tls = self.server(certificate=(self.file(data),), key=())
        self.assertEqual(len(visit(tls, Client()).shown), 1)


class KeyFileTests(FileCase):
    def check(self, data: bytes, problem: str) -> None:
        where, told = self.told(key=(self.file(data),))
        self.assertEqual(where, "key")
        self.assertRegex(told, problem)

    def test_what_is_no_key(self) -> None:
        for data, problem in (
            (b"", "^FILE has no private key: it is empty$"),
            (web().chain, "has no private key: it has certificates alone$"),
            (web().key.replace(b"M", b"A"), "the private key is damaged"),
            (root().identity.key, "the key doesn't match the certificate$"),
            (small()[1], "the key doesn't match the certificate$"),
        ):
            self.check(data, problem)

    def test_encrypted_keys_ask_nobody(self) -> None:
        for form in (
            serialization.PrivateFormat.PKCS8,
            serialization.PrivateFormat.TraditionalOpenSSL,
        ):
            self.check(
                encrypted(form), "^FILE: the private key is encrypted, and nobody is here to be"
            )
        both = self.file(web().chain + encrypted(serialization.PrivateFormat.PKCS8))
        where, told = self.told(certificate=(both,), key=())
        self.assertEqual(where, "certificate")
        self.assertIn("is encrypted", told)

    def test_a_certificate_without_its_key(self) -> None:
        where, told = self.told(key=())
        self.assertEqual(where, "certificate")
        self.assertEqual(
            told, "FILE has no private key: name the key's file, too, or write both into one file"
        )

    def test_keys_of_all_forms_are_taken(self) -> None:
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        traditional = serialization.PrivateFormat.TraditionalOpenSSL
        key = web().private_key.private_bytes(pem, traditional, plain)
        parameters = (
            b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        )
        self.server(key=(self.file(parameters + key),))
        who = root().vouch("rsa", kind="rsa")
        chain, _ = who.write(self.folder, "rsa")
        key = who.private_key.private_bytes(pem, traditional, plain)
        self.server(certificate=(chain,), key=(self.file(key),))

    def test_other_kinds_of_keys(self) -> None:
        key = ed25519.Ed25519PrivateKey.generate()
        who = root().vouch("ed", key=key)  # type: ignore[arg-type]
        chain, path = who.write(self.folder, "ed")
        tls = self.server(certificate=(self.chain, chain), key=(self.key, path))
        self.assertIsNotNone(visit(tls, Client()).peer)


class SeveralTests(FileCase):
    def test_two_of_one_kind(self) -> None:
        chain, key = self.write(root().vouch("other"))
        where, told = self.told(certificate=(self.chain, chain), key=(self.key, key))
        self.assertEqual(where, "certificate")
        self.assertEqual(
            told,
            "FILE and FILE both have keys of the kind ECDSA: no client would be shown the second; others by"
            " name belong into [[listener.tls.sni]]",
        )

    def test_as_many_keys_as_certificates(self) -> None:
        where, told = self.told(key=(self.key, self.key))
        self.assertEqual(where, "key")
        self.assertIn("2 for 1 in `certificate`", told)

    def test_all_that_is_wrong_is_told_at_once(self) -> None:
        lost = "/nowhere/x.pem"
        config = ListenerTLSConfig(
            certificate=(lost,),
            key=(self.file(b"empty"),),
            client_ca=self.file(web().key),
            sni=(
                SNIConfig(names=("a",), certificate=(self.chain,), key=(self.key,)),
                SNIConfig(names=("b",), certificate=(self.file(b""),), key=(lost,)),
            ),
        )
        found = self.problems(lambda: ServerTLS(config, WHERE))
        self.assertEqual(
            list(found),
            [
                f"{WHERE}.certificate",
                f"{WHERE}.key",
                f"{WHERE}.sni[1].certificate",
                f"{WHERE}.sni[1].key",
                f"{WHERE}.client_ca",
            ],
        )

    def test_what_is_wrong_for_a_pool(self) -> None:
        config = UpstreamTLSConfig(
            ca=self.file(b"-"),
            certificate=self.file(web().chain),
            key=self.file(root().identity.key),
        )
        found = self.problems(lambda: UpstreamTLS(config, "pool.web.tls"))
        self.assertEqual(list(found), ["pool.web.tls.key", "pool.web.tls.ca"])
        chain, key = small()
        config = UpstreamTLSConfig(certificate=self.file(chain), key=self.file(key))
        found = self.problems(lambda: UpstreamTLS(config, "pool.web.tls"))
        self.assertEqual(list(found), ["pool.web.tls.certificate"])

    def test_a_bad_file_leaves_what_was_made_before_as_it_was(self) -> None:
        tls = self.server(
            sni=(SNIConfig(names=("a",), certificate=(self.chain,), key=(self.key,)),)
        )
        client = Client()
        visit(tls, client)
        bad = attrs.evolve(tls.config, key=(self.file(b""),))
        self.problems(lambda: ServerTLS(bad, WHERE, tls))
        self.assertTrue(visit(tls, client).resumed)

    def test_which_files_there_are_is_told_once_each(self) -> None:
        ca = root().write(self.folder)
        tls = self.server(
            client_ca=ca, sni=(SNIConfig(names=("a",), certificate=(self.chain,), key=(self.key,)),)
        )
        self.assertEqual([each.path for each in tls.files], [self.chain, self.key, ca])
        self.assertEqual([each.expires is None for each in tls.files], [False, True, False])


class ExpiryTests(FileCase):
    def test_of_a_chain_the_earliest_end_counts(self) -> None:
        soon = root().vouch("soon", ends=timedelta(days=2))
        late = root().vouch("late", ends=timedelta(days=9))
        loading = Loading()
        loading.chain(self.file(late.chain + soon.chain + late.key), "", "c", "k")
        (file,) = loading.files.values()
        self.assertEqual(file.expires, soon.certificate.not_valid_after_utc.timestamp())

    def test_of_authorities_the_dead_do_not_count_while_there_are_others(self) -> None:
        ends = {
            days: root().vouch(str(days), ends=timedelta(days=days), starts=timedelta(days=-20))
            for days in (-9, -2, 3, 7)
        }
        for there, counts in (((-9, 7, 3), 3), ((-9, -2), -2)):
            loading = Loading()
            loading.authorities(self.file(b"".join(ends[each].chain for each in there)), "ca")
            (file,) = loading.files.values()
            self.assertEqual(file.expires, ends[counts].certificate.not_valid_after_utc.timestamp())


class AsPathTests(TLSCase):
    def test_the_bytes_are_there_as_long_as_they_are_wanted(self) -> None:
        with as_path(b"data") as path:
            self.assertEqual(Path(path).read_bytes(), b"data")

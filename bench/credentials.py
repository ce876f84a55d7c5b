"""What TLS needs here: an authority, a certificate that it signed, its key, and OpenSSL's settings for the load."""

from __future__ import annotations

import datetime
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

NAME = "relay.test"
"""Whom the certificate names (RFC 6761, section 6.2: nobody else has that name)."""

# The load decides what all relays get to use, and each of them otherwise keeps its defaults. X25519 is
# what all would choose; relays with a newer OpenSSL would else do a post-quantum exchange beside it.
SETTINGS = """\
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519
"""


@attrs.frozen
class Credentials:
    """
    Paths of files.

    @ivar authority: the certificate of who vouches.
    @ivar both: the certificate and the key in one file, as HAProxy and hitch want it.
    @ivar settings: for OPENSSL_CONF.
    """

    authority: Path
    certificate: Path
    key: Path
    both: Path
    settings: Path

    @property
    def environ(self) -> dict[str, str]:
        """What the load needs in its environment."""
        return {"OPENSSL_CONF": str(self.settings)}


def make(folder: Path, kind: str) -> Credentials:
    """
    Write them to a folder.

    @param kind: of the certificate's key: `ecdsa` (P-256) or `rsa` (2048 bits).
    """
    found = Credentials(
        folder / "ca.pem",
        folder / "relay.pem",
        folder / "relay.key",
        folder / "both.pem",
        folder / "openssl.cnf",
    )
    root = ec.generate_private_key(ec.SECP256R1())
    key = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ec.generate_private_key(ec.SECP256R1())
    )
    root_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("bench", NAME)
    )
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def certificate(
        subject: x509.Name, public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, ca: bool
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False
            )
        return builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    own = certificate(name, key.public_key(), False)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    found.authority.write_bytes(certificate(root_name, root.public_key(), True))
    found.certificate.write_bytes(own)
    found.key.write_bytes(private)
    found.both.write_bytes(own + private)
    found.settings.write_text(SETTINGS)
    return found

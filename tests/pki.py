"""
Certificates for tests: authorities of our own, and who they vouch for.

Keys are ECDSA P-256 unless asked otherwise, as they are quick to make.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_key(kind: str = "ecdsa") -> PrivateKey:
    """@param kind: `ecdsa` or `rsa`."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


@frozen
class Identity:
    """
    A certificate, the chain behind it (without the root), and its key.

    @ivar chain: PEM, the own certificate first.
    @ivar key: PEM, not encrypted.
    """

    certificate: x509.Certificate
    private_key: PrivateKey
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> bytes:
        pem = serialization.Encoding.PEM
        return b"".join(each.public_bytes(pem) for each in (self.certificate, *self.issuers))

    @property
    def key(self) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def write(self, folder: str | Path, name: str) -> tuple[str, str]:
        """
        Write `NAME.pem` (the chain) and `NAME.key`.

        @return: their paths.
        """
        chain, key = Path(folder, f"{name}.pem"), Path(folder, f"{name}.key")
        chain.write_bytes(self.chain)
        key.write_bytes(self.key)
        return str(chain), str(key)


class Authority:
    """
    A certificate authority.

    @param above: who vouches for this one; None: it is a root.
    @ivar identity: its certificate (with those above it but the root) and its key.
    """

    def __init__(self, name: str = "test root", above: Authority | None = None) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        key = make_key()
        builder = (
            _builder(self.name, self.name if above is None else above.name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
        )
        signing = key if above is None else above.identity.private_key
        issuers = (
            ()
            if above is None or above.is_root
            else (above.identity.certificate, *above.identity.issuers)
        )
        self.is_root: bool = above is None
        self.identity: Identity = Identity(builder.sign(signing, hashes.SHA256()), key, issuers)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.identity.certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, folder: str | Path, name: str = "ca") -> str:
        """
        Write its certificate as `NAME.pem`.

        @return: the path.
        """
        path = Path(folder, f"{name}.pem")
        path.write_bytes(self.pem)
        return str(path)

    def vouch(
        self,
        cn: str = "",
        *,
        dns: Sequence[str] = (),
        ip: Sequence[str] = (),
        uri: Sequence[str] = (),
        ou: Sequence[str] = (),
        kind: str = "ecdsa",
        starts: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=365),
        key: PrivateKey | None = None,
    ) -> Identity:
        """
        @param kind: of the key: `ecdsa` or `rsa`.
        @param starts: from now on, when it begins to be valid; `ends`: when that ends.
        @return: somebody with these names, good as server and as client.
        """
        key = key or make_key(kind)
        names = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, each) for each in ou]
        if cn:
            names.append(x509.NameAttribute(NameOID.COMMON_NAME, cn))
        builder = (
            _builder(x509.Name(names), self.name, key, starts, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
        )
        others: list[x509.GeneralName] = [
            *(x509.DNSName(each) for each in dns),
            *(x509.IPAddress(ipaddress.ip_address(each)) for each in ip),
            *(x509.UniformResourceIdentifier(each) for each in uri),
        ]
        if others:
            builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=False)
        signed = builder.sign(self.identity.private_key, hashes.SHA256())
        issuers = () if self.is_root else (self.identity.certificate, *self.identity.issuers)
        return Identity(signed, key, issuers)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey,
    starts: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(days=365),
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not signs,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )

"""Servers to be checked: plain sockets in threads, which see how a connection ends as the kernel tells it."""

from __future__ import annotations

import datetime
import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from fwdrelay.config import TargetConfig

PATIENCE = 30.0
Talk = Callable[[socket.socket], Any]


@functools.cache
def certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """
    @return: a certificate that nobody else has signed, and its key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    return builder.sign(key, hashes.SHA256()), key


def server_context() -> SSL.Context:
    """What a TLS server needs."""
    signed, key = certificate()
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(signed)
    context.use_privatekey(key)
    return context


class Server:
    """
    A listening socket. `serving` takes the next connection.

    @ivar target: how to reach it.
    """

    def __init__(self, path: str = "", host: str = "127.0.0.1", port: int = 0) -> None:
        if path:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind("\0" + path[1:] if path[0] == "@" else path)
            self.target = TargetConfig(path=path)
        else:
            self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind((host, port))
            self.target = TargetConfig(host=host, port=self.socket.getsockname()[1])
        self.socket.settimeout(PATIENCE)
        self.socket.listen()

    def serving(self, talk: Talk) -> Deferred[Any]:
        """
        @param talk: is called, in a thread, with the next connection, which is closed when it returns.
        @return: fires with what it returned.
        """

        def serve() -> Any:
            connection, _ = self.socket.accept()
            with connection:
                connection.settimeout(PATIENCE)
                return talk(connection)

        return deferToThread(serve)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()


def nobody_listens() -> TargetConfig:
    """A target on which nobody does."""
    with Server() as server:
        return server.target


def write_certificate(place: Path) -> tuple[str, str]:
    """
    @return: paths of a certificate and of its key.
    """
    signed, key = certificate()
    paths = place / "certificate.pem", place / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(paths[0]), str(paths[1])

"""
The side of TLS that targets see: whom we take them for, and what we show them.

A target has to prove that it is who it is dialed as. OpenSSL looks at the chain while shaking hands,
service-identity at the name afterwards (RFC 9525). A session that is resumed shows no chain any more, so
its certificate's name and dates are looked at again, each time.
"""

from __future__ import annotations

import ipaddress
from socket import socket
from typing import TYPE_CHECKING, Generic, TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.logger import Logger

from ..config import TargetConfig, UpstreamTLSConfig
from . import bindings
from .peer import Handshake, Peer, PeerRefused, names, one_of, printable, untimely, unverified
from .pem import Authorities, Chain, File, Loading
from .settings import client_context, trust_as_listed

if TYPE_CHECKING:
    from cryptography import x509

log = Logger()

MOST_SESSIONS = 1024
"""Of as many targets sessions are kept, each of a few kB; the longest unused goes first."""
MOST_NAMES = 4096
"""Pairs of certificate and name that are known to fit."""

K = TypeVar("K")
V = TypeVar("V")


class Lately(Generic[K, V]):
    """Values by key, so many and no more: the one that was not used for the longest time makes room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        """@return: None: there is none."""
        value = self._kept.pop(key, None)
        if value is not None:
            self._kept[key] = value
        return value

    def put(self, key: K, value: V) -> None:
        """Keep it."""
        self._kept.pop(key, None)
        self._kept[key] = value
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]


class UpstreamTLS:
    """
    TLS as one pool speaks it to its targets.

    @param where: of `config` in the configuration, for errors.
    @param before: the one that this one follows. If nothing has changed, in the files either, its sessions
        can still be resumed.
    @raise ConfigErrors: for each file that can't be read or is not what it should be.
    @ivar files: those that it was made of.
    """

    def __init__(
        self, config: UpstreamTLSConfig, where: str, before: UpstreamTLS | None = None
    ) -> None:
        loading = Loading()
        chain = None
        if config.certificate:
            chain = loading.chain(
                config.certificate, config.key, f"{where}.certificate", f"{where}.key"
            )
        authorities = None
        if config.ca:
            authorities = loading.authorities(config.ca, f"{where}.ca")
        loading.done()
        self.config = config
        self.files: tuple[File, ...] = tuple(loading.files.values())
        self._content = tuple((file.path, file.digest) for file in self.files)
        self._context: SSL.Context
        self._sessions: Lately[tuple[str, str], SSL.Session]
        self._verified: Lately[tuple[bytes, str], bool]
        if before is not None and (before.config, before._content) == (config, self._content):
            self._context = before._context
            self._sessions = before._sessions
            self._verified = before._verified
        else:
            self._context = _context(loading, config, chain, authorities, where)
            self._sessions = Lately(MOST_SESSIONS)
            self._verified = Lately(MOST_NAMES)

    def connect(self, sock: socket | None, target: TargetConfig) -> SSL.Connection:
        """
        @param sock: connected to the target and non-blocking. None: the bytes go through memory (`bio_read`,
            `bio_write`).
        @return: a connection whose handshake is to be done.
        """
        name = self._name(target)
        connection = SSL.Connection(self._context, sock)
        connection.set_app_data(Handshake("target", name))
        if name and not _is_address(name):
            connection.set_tlsext_host_name(name.encode("ascii"))
        session = self._sessions.get((name, target.address))
        if session is not None:
            connection.set_session(session)
        connection.set_connect_state()
        return connection

    def judge(self, connection: SSL.Connection, target: TargetConfig) -> Peer:
        """
        @param connection: of `connect`; its handshake is complete.
        @raise PeerRefused: it is not the target that it should be.
        """
        handshake: Handshake = connection.get_app_data()
        name = self._name(target)
        resumed = bindings.is_resumed(connection)
        if self.config.verify:
            self._prove(connection, name)
            kind = "ip" if _is_address(name) else "dns"
            handshake.identity = printable(f"{kind}:{name}")
        handshake.judged = True
        alpn = connection.get_alpn_proto_negotiated()
        return Peer(
            version=connection.get_protocol_version_name(),
            server_name=None if not name or _is_address(name) else name,
            alpn=alpn.decode("ascii", "replace") if alpn else None,
            identity=handshake.identity,
            cipher=connection.get_cipher_name() or "",
            resumed=resumed,
        )

    def remember(self, connection: SSL.Connection, target: TargetConfig) -> None:
        """
        The connection is about to be closed: keep its session, to be resumed by one of the next. Tickets of
        TLS 1.3 come with what the target says first, so before that there is nothing of use.
        """
        handshake = connection.get_app_data()
        if not isinstance(handshake, Handshake) or not handshake.judged:
            return
        if connection.get_context() is not self._context:
            return  # of one before this, which may have trusted others
        # OpenSSL takes a session for broken, else, when the connection is freed.
        connection.set_shutdown(connection.get_shutdown() | SSL.SENT_SHUTDOWN)
        session = connection.get_session()
        if session is not None:
            self._sessions.put((self._name(target), target.address), session)

    def _name(self, target: TargetConfig) -> str:
        """@return: whom a target has to be; empty: nobody in particular."""
        return self.config.name or _plain(target.host)

    def _prove(self, connection: SSL.Connection, name: str) -> None:
        """
        @raise PeerRefused: the target's certificate is not for `name`, or not now.
        """
        certificate = connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            raise PeerRefused("the target showed no certificate")
        problem = untimely(certificate, "the target's certificate")
        if problem:
            raise PeerRefused(problem)
        if not name:
            raise PeerRefused("a Unix socket has no name to verify: set `name` in the pool's tls")
        known = certificate.fingerprint(SHA256()), name
        if self._verified.get(known):
            return
        verify = verify_ip_address if _is_address(name) else verify_hostname
        try:
            verify(connection, name)
        except (VerificationError, CertificateError, ValueError):
            raise PeerRefused(_misnamed(certificate, name)) from None
        self._verified.put(known, True)


def _context(
    loading: Loading,
    config: UpstreamTLSConfig,
    chain: Chain | None,
    authorities: Authorities | None,
    where: str,
) -> SSL.Context:
    """
    @raise ConfigErrors: OpenSSL doesn't take what the files say.
    """
    context = client_context()
    try:
        if authorities is not None:
            trust_as_listed(context)
            authorities.trust_in(context)
        elif config.verify:
            context.set_default_verify_paths()
    except ValueError as problem:
        loading.wrong(f"{where}.ca", f"{config.ca!r}: {problem}")
    try:
        if chain is not None:
            chain.use_in(context)
    except ValueError as problem:
        loading.wrong(f"{where}.certificate", f"{config.certificate!r}: {problem}")
    loading.done()
    if config.verify:
        context.set_verify(SSL.VERIFY_PEER, _verify)
    else:
        context.set_verify(SSL.VERIFY_NONE)
    if config.alpn:
        context.set_alpn_protos([each.encode("ascii") for each in config.alpn])
    return context


def _verify(
    connection: SSL.Connection, certificate: X509, code: int, depth: int, okay: int
) -> bool:
    """
    OpenSSL has looked at a certificate of a target's chain.

    @param code: what is wrong, if it is not `okay`.
    @return: whether to go on.
    """
    if okay:
        return True
    handshake: Handshake = connection.get_app_data()
    try:
        found = certificate.to_cryptography()
        handshake.refusal = unverified("target", found, code, depth)
    except Exception:
        # Damaged beyond words; pyOpenSSL would raise this from the next connection that fails.
        handshake.refusal = (
            f"the target's certificate can't be verified: {bindings.error_text(code)}"
        )
    return False


def _misnamed(certificate: x509.Certificate, name: str) -> str:
    found = names(certificate)
    if not found:
        return f"the target's certificate is for nobody by subjectAltName, so not for {printable(name)}"
    return f"the target's certificate is for {one_of(found)}, not for {printable(name)}"


def _plain(host: str) -> str:
    """
    @return: a host as certificates have it: without a zone, or as A-labels without a dot at the end.
    """
    if ":" in host:
        return host.partition("%")[0]
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            # Such a name does not resolve either; discovery may have found its addresses all the same.
            host = host.encode("ascii", "replace").decode("ascii")
    return host.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

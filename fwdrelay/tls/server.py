"""
The side of TLS that clients see: which certificate is shown for which name, and who may enter.

Each set of names (an *entry*) has two contexts. The *base* makes the connection, and is what tickets
belong to: it is kept for as long as the entry is, over reloads and in processes that were forked after it
was made. The *certificate context* is put in its place at once and brings certificates, protocols and
authorities; a reload makes a new one.

What OpenSSL takes from which (`SSL_new`, then `SSL_set_SSL_CTX`): the versions, options, whether a
certificate is asked for and who looks at it, and the ticket keys are the base's; all else is the
certificate context's. That includes the session id context, as long as the connection has the base's: a
session is resumed only where that is the same, so the policy about clients is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from socket import socket
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.logger import Logger

from ..config import IdentityPattern, ListenerTLSConfig
from ..config.model import TLSVersion
from ..wire.clienthello import ClientHello, host_name
from . import bindings
from .identity import find, values
from .peer import (
    Handshake,
    Peer,
    PeerRefused,
    one_of,
    printable,
    subject,
    untimely,
    unverified,
)
from .pem import Authorities, Chain, File, Loading
from .settings import server_context, trust_as_listed

if TYPE_CHECKING:
    from cryptography import x509

log = Logger()

Names: TypeAlias = tuple[str, ...]
BaseKey: TypeAlias = tuple[Names, int, TLSVersion]
"""What a base is for: sorted names (none: all that are nobody else's), verify mode, versions."""


class NoProtocolInCommon(SSL.Error):
    """What the client offers by ALPN is nothing that may be agreed on; RFC 7301, section 3.2."""


@frozen
class Policy:
    """
    What is asked of clients, and agreed on with them.

    @ivar authorities: who vouches for clients; None: clients aren't asked.
    @ivar required: whether a client must have a certificate.
    @ivar allowed: those who may enter; empty: all that are vouched for.
    @ivar alpn: protocols, the dearest first.
    """

    authorities: Authorities | None
    required: bool
    allowed: tuple[IdentityPattern, ...]
    alpn: tuple[bytes, ...]
    minimum_version: TLSVersion

    @property
    def mode(self) -> int:
        """As OpenSSL calls it."""
        if self.authorities is None:
            return SSL.VERIFY_NONE
        return SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if self.required else 0)

    def session_id_context(self, names: Names) -> bytes:
        """
        @return: 32 bytes, others where a session must not be resumed: for another entry, or after another
            policy.
        """
        digest = b"" if self.authorities is None else self.authorities.digest
        said = names, self.mode, digest, tuple(map(str, self.allowed))
        return sha256(repr(said).encode()).digest()


@frozen(eq=False)
class Entry:
    """
    Certificates, and the names that they are shown for.

    @ivar names: none: all that are nobody else's.
    """

    names: Names
    base: SSL.Context
    context: SSL.Context
    policy: Policy


class ServerTLS:
    """
    TLS as one listener terminates it.

    @param where: of `config` in the configuration, for errors.
    @param before: the one that this one follows, whose sessions can be resumed as far as they may.
    @raise ConfigErrors: for each file that can't be read or is not what it should be.
    @ivar files: those that it was made of.
    """

    def __init__(
        self, config: ListenerTLSConfig, where: str, before: ServerTLS | None = None
    ) -> None:
        loading = Loading()
        chains = [_chains(loading, config.certificate, config.key, where)]
        for index, other in enumerate(config.sni):
            there = f"{where}.sni[{index}]"
            chains.append(_chains(loading, other.certificate, other.key, there))
        authorities = None
        if config.client_ca:
            authorities = loading.authorities(config.client_ca, f"{where}.client_ca")
        loading.done()
        policy = Policy(
            authorities,
            config.require_client_certificate,
            config.allow_identities,
            tuple(each.encode("ascii") for each in config.alpn),
            config.minimum_version,
        )
        self.config = config
        self.files: tuple[File, ...] = tuple(loading.files.values())
        self._bases: dict[BaseKey, SSL.Context] = {}
        self._entries: dict[str, Entry] = {}
        kept = {} if before is None else before._bases
        all_names = ((), *(tuple(sorted(other.names)) for other in config.sni))
        made: list[Entry | None] = []
        for number, (names, mine) in enumerate(zip(all_names, chains, strict=True)):
            there = f"{where}.sni[{number - 1}]" if number else where
            context = _certificate_context(loading, policy, names, mine, where, there)
            made.append(None if context is None else self._entry(names, context, policy, kept))
        loading.done()
        entries = [entry for entry in made if entry is not None]
        self._default = entries[0]
        for other, entry in zip(config.sni, entries[1:], strict=True):
            self._entries.update((name, entry) for name in other.names)

    def _entry(
        self, names: Names, context: SSL.Context, policy: Policy, kept: dict[BaseKey, SSL.Context]
    ) -> Entry:
        key = (names, policy.mode, policy.minimum_version)
        base = self._bases[key] = kept.get(key) or _base_context(policy, names)
        entry = Entry(names, base, context, policy)
        context.set_app_data(entry)
        return entry

    def accept(self, sock: socket | None, hello: ClientHello | None) -> SSL.Connection:
        """
        @param sock: connected and non-blocking; nothing of the handshake was read from it. None: the bytes go
            through memory (`bio_read`, `bio_write`).
        @param hello: what the client says there; None: it is not known, or no hello.
        @return: a connection whose handshake is to be done.
        """
        name = None if hello is None else hello.server_name
        entry = self._entry_for(name)
        connection = SSL.Connection(entry.base, sock)
        connection.set_context(entry.context)
        connection.set_app_data(Handshake("client", name))
        connection.set_accept_state()
        return connection

    def judge(self, connection: SSL.Connection) -> Peer:
        """
        @param connection: of `accept`, of this object or the one before it; its handshake is complete.
        @raise PeerRefused: this client may not enter.
        """
        handshake: Handshake = connection.get_app_data()
        entry: Entry = connection.get_context().get_app_data()
        resumed = bindings.is_resumed(connection)
        said = connection.get_servername()
        name = None if said is None else host_name(said)
        expected = handshake.server_name
        # A session of TLS 1.2 says the name that it began with, and that of another hello need only be for the
        # same certificate. So need a name that was not read before.
        loosely = resumed or expected is None
        if name != expected and not (
            loosely and self._entry_for(name) is self._entry_for(expected)
        ):
            raise PeerRefused(
                f"the client's hello asks for {_quoted(expected)}, its handshake is for {_quoted(name)}"
            )
        if not resumed:
            handshake.server_name = name
        if entry.policy.authorities is not None and not handshake.verified:
            certificate = connection.get_peer_certificate(as_cryptography=True)
            if certificate is not None:
                _look_at(certificate, entry.policy, handshake)
            elif entry.policy.required:
                handshake.refusal = "the client sent no certificate"
            if handshake.refusal:
                raise PeerRefused(handshake.refusal)
        handshake.judged = True
        alpn = connection.get_alpn_proto_negotiated()
        return Peer(
            version=connection.get_protocol_version_name(),
            server_name=handshake.server_name,
            alpn=alpn.decode("ascii", "replace") if alpn else None,
            identity=handshake.identity or None,
            cipher=connection.get_cipher_name() or "",
            cn=handshake.cn,
            has_certificate=handshake.verified,
            resumed=resumed,
        )

    def _entry_for(self, name: str | None) -> Entry:
        """
        @param name: as `host_name` returns it.
        """
        if not name or not self._entries:
            return self._default
        found = self._entries.get(name)
        if found is None:
            found = self._entries.get("*." + name.partition(".")[2])
        return found or self._default


def _quoted(name: str | None) -> str:
    return "no name" if name is None else f"'{printable(name)}'"


def _chains(
    loading: Loading, certificates: Sequence[str], keys: Sequence[str], where: str
) -> list[Chain]:
    certificate_where, key_where = f"{where}.certificate", f"{where}.key"
    if keys and len(keys) != len(certificates):
        loading.wrong(
            key_where,
            f"{len(keys)} for {len(certificates)} in `certificate`: write one for each, in the same order",
        )
        return []
    found: list[Chain] = []
    for index, certificate in enumerate(certificates):
        key = keys[index] if keys else ""
        chain = loading.chain(certificate, key, certificate_where, key_where)
        if chain is None:
            continue
        same = next((each for each in found if each.kind == chain.kind), None)
        if same is not None:
            loading.wrong(
                certificate_where,
                f"{same.path!r} and {chain.path!r} both have keys of the kind {chain.kind}: no client would be"
                " shown the second; others by name belong into [[listener.tls.sni]]",
            )
            continue
        found.append(chain)
    return found


def _base_context(policy: Policy, names: Names) -> SSL.Context:
    context = server_context(policy.minimum_version)
    context.set_session_id(policy.session_id_context(names))
    if policy.mode != SSL.VERIFY_NONE:
        bindings.set_verify(context, policy.mode, _verify)
    return context


def _certificate_context(
    loading: Loading,
    policy: Policy,
    names: Names,
    chains: Sequence[Chain],
    where: str,
    there: str,
) -> SSL.Context | None:
    """
    @param where: of the listener's table, `there` of the entry's.
    @return: None: something is wrong, and was noted.
    """
    context = server_context(policy.minimum_version)
    context.set_session_id(policy.session_id_context(names))
    # OpenSSL acknowledges names (RFC 6066, section 3) where somebody looks at them.
    context.set_tlsext_servername_callback(_name_taken)
    if policy.alpn:
        context.set_alpn_select_callback(_choose_protocol)
    okay = True
    for chain in chains:
        try:
            chain.use_in(context)
        except ValueError as problem:
            loading.wrong(f"{there}.certificate", f"{chain.path!r}: {problem}")
            okay = False
    if policy.authorities is not None:
        trust_as_listed(context)
        try:
            policy.authorities.trust_in(context)
        except ValueError as problem:
            if there == where:  # the same for all names
                loading.wrong(f"{where}.client_ca", str(problem))
            okay = False
        for authority in policy.authorities.certificates:
            context.add_client_ca(authority)
    return context if okay else None


def _name_taken(connection: SSL.Connection) -> None:
    """The client asked for a name; the certificate for it was chosen before."""


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    entry: Entry = connection.get_context().get_app_data()
    for protocol in entry.policy.alpn:
        if protocol in offered:
            return protocol
    handshake: Handshake = connection.get_app_data()
    texts = [printable(each.decode("ascii", "backslashreplace"), 40) for each in offered]
    handshake.refusal = f"the client speaks {one_of(texts)}, and no protocol of `alpn`"
    raise NoProtocolInCommon(handshake.refusal)


def _verify(
    connection: SSL.Connection, certificate: X509, code: int, depth: int, okay: int
) -> bool:
    """
    OpenSSL has looked at a certificate of a client's chain, from the top down.

    @param code: what is wrong, if it is not `okay`.
    @return: whether to go on.
    """
    if okay and depth:
        return True
    handshake: Handshake = connection.get_app_data()
    entry: Entry = connection.get_context().get_app_data()
    try:
        found = certificate.to_cryptography()
        if okay:
            _look_at(found, entry.policy, handshake)
        else:
            handshake.refusal = unverified("client", found, code, depth)
    except ValueError as problem:
        handshake.refusal = f"the client's certificate is damaged: {printable(str(problem))}"
    except Exception:
        # pyOpenSSL would raise it again from the next connection that fails.
        log.failure("A client's certificate could not be judged")
        handshake.refusal = "the client's certificate could not be judged"
    return not handshake.refusal


def _look_at(certificate: x509.Certificate, policy: Policy, handshake: Handshake) -> None:
    """Whether who has this certificate may enter: sets `refusal`, or what the client is called."""
    whose = "the client's certificate"
    if untimely(certificate, whose):
        handshake.refusal = untimely(certificate, f"{whose} ({subject(certificate)})")
        return
    try:
        handshake.identity = find(certificate, policy.allowed)
        handshake.cn = next(values(certificate, "cn"), None)
    except ValueError as problem:
        handshake.refusal = f"the names of {whose} are damaged: {printable(str(problem))}"
        return
    handshake.verified = handshake.identity is not None
    if not handshake.verified:
        handshake.unlisted = True
        handshake.refusal = f"{whose} ({_named(certificate)}) is not among allow_identities"


def _named(certificate: x509.Certificate) -> str:
    """@return: as whom the client was not let in."""
    name = find(certificate, ())
    return name or subject(certificate)

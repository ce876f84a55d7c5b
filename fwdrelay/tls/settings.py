"""What holds for every TLS connection of this relay, whichever side it is on."""

from __future__ import annotations

from collections.abc import Mapping

from OpenSSL import SSL
from OpenSSL.crypto import X509StoreFlags

from ..config.model import TLSVersion

CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    b"ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
"""Of TLS 1.2, for clients: ephemeral keys and authenticated encryption alone (RFC 9325, section 4.2)."""
SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""Of TLS 1.3."""
TICKET_LIFETIME = 7200
"""Seconds for which a session can be resumed."""
_PRIORITIZE_CHACHA = 1 << 21
"""SSL_OP_PRIORITIZE_CHACHA of OpenSSL's ssl.h: clients that want it most have no AES in their processor."""
_NO_AUTO_CHAIN = 1 << 3
"""SSL_MODE_NO_AUTO_CHAIN: a chain is what its file says, not what the authorities for clients add to it."""
_VERSIONS: Mapping[TLSVersion, int] = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


def server_context(minimum_version: TLSVersion) -> SSL.Context:
    """@return: a context for clients, without certificates."""
    context = _context(SSL.TLS_SERVER_METHOD, minimum_version)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE | _PRIORITIZE_CHACHA)
    context.set_cipher_list(CIPHERS)
    # Tickets alone: the client keeps what is to be known, and any process with the same keys reads it.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_timeout(TICKET_LIFETIME)
    return context


def client_context() -> SSL.Context:
    """
    @return: a context for targets. Its ciphers for TLS 1.2 are OpenSSL's: not every server of one's own is
        as new as it should be.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, "1.2")
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _context(method: int, minimum_version: TLSVersion) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(_VERSIONS[minimum_version])
    context.set_tls13_ciphersuites(SUITES)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    # An idle connection keeps no buffers: 22 kB instead of 54.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS | _NO_AUTO_CHAIN)
    return context


def trust_as_listed(context: SSL.Context) -> None:
    """Whoever stands in the file is trusted, also where somebody else has vouched for them."""
    store = context.get_cert_store()
    assert store is not None
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)

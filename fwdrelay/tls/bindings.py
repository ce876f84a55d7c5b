"""
What OpenSSL can and pyOpenSSL has no method for, called through the bindings that it stands on.

Those are nobody's promise. So each of these says what is lost where they are not as expected, and
nothing that a peer is kept out by depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from OpenSSL import SSL
from OpenSSL.crypto import X509

try:
    from OpenSSL._util import ffi, lib
except ImportError:  # then what stands on them isn't used
    ffi = lib = None

Verify: TypeAlias = Callable[[SSL.Connection, X509, int, int, int], bool]
"""Connection, certificate, error, depth, and whether OpenSSL is content: is it let pass?"""

REJECTED = 28
"""X509_V_ERR_CERT_REJECTED, which a peer is told of as `bad certificate`."""
_UNSPECIFIED = (0, 1)
"""X509_V_OK, X509_V_ERR_UNSPECIFIED: nothing is wrong but that the callback says no."""

_WANTED = {
    "SSL_session_reused": "int(*)(SSL *)",
    "SSL_CTX_set_verify": "void(*)(SSL_CTX *, int, int(*)(int, X509_STORE_CTX *))",
    "X509_STORE_CTX_get_error": "int(*)(X509_STORE_CTX *)",
    "X509_STORE_CTX_set_error": "void(*)(X509_STORE_CTX *, int)",
    "X509_verify_cert_error_string": "char *(*)(long)",
}


def _found() -> frozenset[str]:
    """@return: those of `_WANTED` that are there, and want what they are given."""
    found = set()
    for name, kind in _WANTED.items():
        try:
            if ffi.typeof(getattr(lib, name)).cname.replace("const ", "") == kind:
                found.add(name)
        except (AttributeError, TypeError):
            continue
    return frozenset(found)


FOUND = _found()


def is_resumed(connection: SSL.Connection) -> bool:
    """
    @return: whether the handshake, which is complete, has resumed an earlier session. False where that can't
        be told.
    """
    if "SSL_session_reused" not in FOUND:
        return False
    return bool(lib.SSL_session_reused(connection._ssl))


def error_text(code: int) -> str:
    """
    @param code: of X.509 verification.
    @return: what it means, in OpenSSL's words.
    """
    if "X509_verify_cert_error_string" in FOUND:
        return str(ffi.string(lib.X509_verify_cert_error_string(code)).decode("ascii", "replace"))
    names = vars(SSL.X509VerificationCodes).items()
    name = next((name for name, number in names if number == code), f"error {code}")
    return name.removeprefix("ERR_").replace("_", " ").lower()


def set_verify(context: SSL.Context, mode: int, callback: Verify) -> None:
    """
    As the context's own method; but a peer whose certificate only the callback doesn't like is told `bad
    certificate`. Without the bindings it is told `internal error`, as by pyOpenSSL itself.
    """
    context.set_verify(mode, callback)
    if not {*_WANTED} - {"SSL_session_reused"} <= FOUND:
        return
    try:
        helper: Any = context._verify_helper
        original = helper.callback
        pointer = context._context
    except AttributeError:
        return

    def with_a_reason(okay: int, store: Any) -> int:
        result: int = original(okay, store)
        if not result and lib.X509_STORE_CTX_get_error(store) in _UNSPECIFIED:
            lib.X509_STORE_CTX_set_error(store, REJECTED)
        return result

    # Kept where pyOpenSSL keeps its own, so that connections keep it alive as well.
    callback_for_c = ffi.callback("int (*)(int, X509_STORE_CTX *)", with_a_reason)
    context._verify_callback = callback_for_c
    lib.SSL_CTX_set_verify(pointer, mode, callback_for_c)

"""Why a handshake failed, in an operator's words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from OpenSSL import SSL

from .peer import Handshake, PeerRefused, printable

_ALERT = re.compile(r"\balert (.+)")
_OF_OUR_CERTIFICATE = frozenset(
    {
        "bad certificate",
        "unsupported certificate",
        "certificate revoked",
        "certificate expired",
        "certificate unknown",
        "unknown ca",
    }
)
"""Alerts that say what is wrong with the certificate that we have shown; RFC 8446, section 6.2."""
_ALERTS: Mapping[str, str] = {
    "certificate required": "the {party} wants a certificate of us",
    "protocol version": "the {party} speaks none of our versions of TLS",
    "no application protocol": "the {party} speaks none of the protocols in `alpn`",
    "unrecognized name": "the {party} knows nobody of the name that it was asked for",
    "user canceled": "the {party} gave the handshake up",
}
_NOT_TLS = "what the {party} sent is not TLS"
_REASONS: Mapping[str, str] = {
    "http request": "the {party} speaks HTTP without TLS",
    "https proxy request": "the {party} speaks HTTP without TLS, as to a proxy",
    "wrong version number": _NOT_TLS,
    "bad record type": _NOT_TLS,
    "invalid record type": _NOT_TLS,
    "packet length too long": _NOT_TLS,
    "record too small": _NOT_TLS,
    "unexpected message": "the {party} sent what has no place in a handshake",
    "unsupported protocol": "no version of TLS in common: the {party}'s are too old",
    "version too low": "no version of TLS in common: the {party}'s are too old",
    "unknown protocol": "no version of TLS in common",
    "no shared cipher": "no cipher in common with the {party}, or none for the kinds of our certificates' keys",
    "no suitable key share": "no key exchange in common with the {party}",
    "no suitable groups": "no key exchange in common with the {party}",
    "no shared group": "no key exchange in common with the {party}",
    "no suitable signature algorithm": "the {party} takes no signature that our certificates' keys can make",
    "no shared signature algorithms": "the {party} takes no signature that our certificates' keys can make",
    "peer did not return a certificate": "the {party} sent no certificate",
    "certificate verify failed": "the {party}'s certificate can't be verified",
    "bad signature": "the {party} has not the key of the certificate that it showed",
    "no renegotiation": "the {party} wants to renegotiate, which is not done here",
}


def explain(error: BaseException, connection: SSL.Connection) -> str:
    """
    @param error: what a handshake, or a later call, has raised; not `WantReadError` or `WantWriteError`.
    @param connection: that of `ServerTLS.accept` or `UpstreamTLS.connect` on which it did.
    @return: what went wrong, as a clause for the log.
    """
    handshake = connection.get_app_data()
    party = "peer"
    refusal = ""
    over = False
    if isinstance(handshake, Handshake):
        party, refusal, over = handshake.party, handshake.refusal, handshake.judged
    if isinstance(error, PeerRefused):
        return str(error)
    if refusal:
        return refusal
    when = "without close_notify" if over else "in the middle of the TLS handshake"
    if isinstance(error, SSL.ZeroReturnError):
        return f"the {party} ended TLS" + ("" if over else f" {when}")
    if isinstance(error, SSL.SysCallError):
        number = error.args[0] if error.args else -1
        return _system(number, party, when)
    if isinstance(error, OSError):
        return _system(error.errno or -1, party, when)
    if isinstance(error, SSL.Error):
        return _reason(_reasons(error), party)
    return "it failed in an unforeseen way"


def _system(number: int, party: str, when: str) -> str:
    """@param number: an errno; below 0: the end of what can be read."""
    if number < 0:
        return f"the {party} closed the connection {when}"
    text = os.strerror(number)
    return f"{text[:1].lower()}{text[1:]}" + (f" {when}" if when[0] == "i" else "")


def _reasons(error: SSL.Error) -> list[str]:
    queue = error.args[0] if error.args else ()
    if not isinstance(queue, list):
        return []
    return [entry[-1] for entry in queue if entry and isinstance(entry[-1], str) and entry[-1]]


def _reason(reasons: list[str], party: str) -> str:
    for reason in reasons:
        alert = _ALERT.search(reason)
        if alert is not None:
            return _alert(alert[1], party)
        if reason in _REASONS:
            return _REASONS[reason].format(party=party)
    said = f": {printable(reasons[0])}" if reasons else ""
    return f"the TLS handshake with the {party} failed{said}"


def _alert(alert: str, party: str) -> str:
    if alert in _OF_OUR_CERTIFICATE:
        return f"the {party} rejected our certificate: {alert}"
    if alert in _ALERTS:
        return _ALERTS[alert].format(party=party)
    return f"the {party} refused the TLS handshake: {alert}"

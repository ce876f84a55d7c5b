"""Who is at the other end of a TLS connection, and what is wrong with the certificate that says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from attrs import define, frozen
from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL.SSL import X509VerificationCodes as Codes

from ..errors import FwdrelayError
from .bindings import error_text

Party: TypeAlias = Literal["client", "target"]

LONGEST_TEXT = 200
"""Characters of what a certificate says that are repeated anywhere."""
_NAMED = 3
_UNKNOWN_ISSUER = (
    Codes.ERR_UNABLE_TO_GET_ISSUER_CERT,
    Codes.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    Codes.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
    Codes.ERR_SELF_SIGNED_CERT_IN_CHAIN,
)


class PeerRefused(FwdrelayError):
    """
    The handshake went well, and the peer is not to be talked to all the same. The text is a clause for
    the log.
    """


@frozen
class Peer:
    """
    Whom one talks to.

    @ivar version: `TLSv1.3` or `TLSv1.2`.
    @ivar server_name: that the client asked for (SNI), in lower case.
    @ivar alpn: the protocol that was agreed on.
    @ivar identity: who it has proved to be: `uri:spiffe://example.org/web`, `dns:a.example`, `cn:web`. It is
        no longer than `LONGEST_TEXT` and printable.
    @ivar cipher: in OpenSSL's words.
    @ivar cn: the common name in its certificate.
    @ivar has_certificate: whether it has shown one, now or when the session began that was resumed.
    @ivar resumed: whether an earlier session was resumed.
    """

    version: str
    server_name: str | None
    alpn: str | None
    identity: str | None
    cipher: str = ""
    cn: str | None = None
    has_certificate: bool = False
    resumed: bool = False


@define
class Handshake:
    """
    What is known of one connection besides what OpenSSL knows; it is the connection's `app_data`.

    @ivar party: who is at the other end.
    @ivar server_name: of the hello that chose the certificate, or that is sent.
    @ivar verified: the client's certificate was looked at since this handshake began, and is good.
    @ivar identity: that it was found to be for.
    @ivar cn: the common name in it.
    @ivar refusal: a clause that says why the peer was refused.
    @ivar unlisted: it was, for being nobody who is listed.
    @ivar judged: the handshake is complete, and the peer was accepted.
    """

    party: Party
    server_name: str | None = None
    verified: bool = False
    identity: str | None = None
    cn: str | None = None
    refusal: str = ""
    unlisted: bool = False
    judged: bool = False


def printable(text: str, longest: int = LONGEST_TEXT) -> str:
    """
    @return: what a peer said, as it can stand in a log.
    """
    cut = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in cut)


def day(moment: datetime) -> str:
    """
    @return: `2026-03-01 12:00 UTC`.
    """
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def subject(certificate: x509.Certificate) -> str:
    """
    @return: whom a certificate is for, in brief: `CN=web`, or its first other name.
    """
    return _name(certificate.subject) or next(iter(names(certificate)), "") or "nameless"


def _name(name: x509.Name) -> str:
    for oid, label in (
        (NameOID.COMMON_NAME, "CN"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "OU"),
        (NameOID.ORGANIZATION_NAME, "O"),
    ):
        found = name.get_attributes_for_oid(oid)
        if found:
            return printable(f"{label}={_text(found[0].value)}")
    return ""


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    """
    @raise ValueError: they are not as they should be.
    """
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def names(certificate: x509.Certificate) -> list[str]:
    """
    @return: the names and addresses of servers that it is for.
    """
    try:
        others = alternative_names(certificate)
    except ValueError:
        return []
    if others is None:
        return []
    found = [*others.get_values_for_type(x509.DNSName)]
    found += map(str, others.get_values_for_type(x509.IPAddress))
    return [printable(each) for each in found]


def one_of(texts: Sequence[str]) -> str:
    """
    @return: `a, b and 3 more`.
    """
    named = ", ".join(texts[:_NAMED])
    more = len(texts) - _NAMED
    return f"{named} and {more} more" if more > 0 else named


def untimely(certificate: x509.Certificate, whose: str, now: datetime | None = None) -> str:
    """
    @param whose: what it is called.
    @return: a clause that says why it is of no use now; empty: it is of use.
    """
    now = now or datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        return f"{whose} expired on {day(certificate.not_valid_after_utc)}"
    if certificate.not_valid_before_utc > now:
        return f"{whose} is not valid before {day(certificate.not_valid_before_utc)}"
    return ""


def unverified(party: Party, certificate: x509.Certificate, code: int, depth: int) -> str:
    """
    @param certificate: in the chain, that OpenSSL doesn't like.
    @param code: what is wrong with it.
    @param depth: 0: it is the peer's own.
    @return: a clause for the log.
    """
    own = f"the {party}'s certificate"
    whose = f"{own} ({subject(certificate)})"
    if depth:
        whose = f"the certificate of an issuer ({subject(certificate)}) of {own}"
    if code in (Codes.ERR_CERT_HAS_EXPIRED, Codes.ERR_CERT_NOT_YET_VALID):
        # The clock may have moved on since.
        return untimely(certificate, whose) or f"{whose} is not valid at this time"
    if code == Codes.ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
        return f"{whose} is vouched for by itself alone"
    if code in _UNKNOWN_ISSUER:
        issuer = _name(certificate.issuer) or "nameless"
        return f"{whose} was issued by somebody unknown ({issuer})"
    if code == Codes.ERR_INVALID_PURPOSE:
        role = "clients" if party == "client" else "servers"
        return f"{whose} is not meant for {role} (extended key usage)"
    return f"{whose} can't be verified: {error_text(code)}"

"""`fwdrelay.tls.explain`: clauses for the log. What real handshakes come to is in the other tests here."""

from __future__ import annotations

import errno

from OpenSSL import SSL

from fwdrelay.tls import PeerRefused, explain
from fwdrelay.tls.peer import Handshake
from tests.case import SynchronousTestCase


def error(*reasons: str) -> SSL.Error:
    return SSL.Error([("SSL routines", "", reason) for reason in reasons])


class ExplainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD))
        self.handshake = Handshake("client")
        self.connection.set_app_data(self.handshake)

    def check(self, failed: BaseException, told: str) -> None:
        self.assertEqual(explain(failed, self.connection), told)

    def test_what_is_wrong_is_said_in_words(self) -> None:
        for reasons, told in (
            (("wrong version number",), "what the client sent is not TLS"),
            (("packet length too long", "record layer failure"), "what the client sent is not TLS"),
            (("record layer failure", "http request"), "the client speaks HTTP without TLS"),
            (("unsupported protocol",), "no version of TLS in common: the client's are too old"),
            (("no suitable key share",), "no key exchange in common with the client"),
            (("something new",), "the TLS handshake with the client failed: something new"),
            (("",), "the TLS handshake with the client failed"),
            ((), "the TLS handshake with the client failed"),
        ):
            self.check(error(*reasons), told)

    def test_alerts_of_all_versions_of_openssl(self) -> None:
        for prefix in ("tlsv1", "tlsv13", "ssl/tls", "sslv3", "tls"):
            self.check(
                error(f"{prefix} alert certificate expired"),
                "the client rejected our certificate: certificate expired",
            )
            self.check(
                error(f"{prefix} alert decode error"),
                "the client refused the TLS handshake: decode error",
            )

    def test_ends(self) -> None:
        middle = "in the middle of the TLS handshake"
        self.check(
            SSL.SysCallError(-1, "Unexpected EOF"), f"the client closed the connection {middle}"
        )
        self.check(SSL.SysCallError(errno.ECONNRESET, "x"), f"connection reset by peer {middle}")
        self.check(
            ConnectionResetError(errno.ECONNRESET, "x"), f"connection reset by peer {middle}"
        )
        self.check(SSL.ZeroReturnError(), f"the client ended TLS {middle}")
        self.handshake.judged = True
        self.check(
            SSL.SysCallError(-1, "x"), "the client closed the connection without close_notify"
        )
        self.check(SSL.SysCallError(errno.EPIPE, "x"), "broken pipe")
        self.check(SSL.ZeroReturnError(), "the client ended TLS")

    def test_what_a_callback_found_says_it_better(self) -> None:
        self.handshake.refusal = "the client's certificate has a stain"
        self.check(error("certificate verify failed"), "the client's certificate has a stain")

    def test_refusals_and_the_unforeseen(self) -> None:
        self.check(PeerRefused("the client is nobody"), "the client is nobody")
        self.check(ValueError("x"), "it failed in an unforeseen way")
        self.check(SSL.Error("text"), "the TLS handshake with the client failed")

    def test_connections_of_others(self) -> None:
        self.connection.set_app_data(None)
        self.check(error("http request"), "the peer speaks HTTP without TLS")

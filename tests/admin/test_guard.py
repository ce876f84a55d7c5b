"""Who may ask: heads of requests, and what is thought of them."""

from __future__ import annotations

import base64

from twisted.web.http_headers import Headers

from fwdrelay.admin.answer import Refused
from fwdrelay.admin.guard import Asked, Guard
from fwdrelay.admin.token import Token
from tests.case import SynchronousTestCase

TOKEN = "s3cret"


def asked(
    target: str = "/v1/status", method: str = "GET", version: str = "HTTP/1.1", **headers: str
) -> Asked:
    """A request's head; `Host` is there unless it is said otherwise, `_` in names are `-`."""
    found = Headers()
    for name, value in {"Host": "localhost", **headers}.items():
        for each in value.split("|") if value else []:
            found.addRawHeader(name.replace("_", "-"), each)
    return Asked(method, target, version, found)


class GuardTestCase(SynchronousTestCase):
    tcp = Guard(checks_host=True)
    unix = Guard(checks_host=False)
    with_token = Guard(checks_host=True, token=Token.of(TOKEN))

    def refused(self, guard: Guard, head: Asked) -> Refused:
        refused: Refused = self.assertRaises(Refused, guard.check, head)
        return refused

    def assert_refused(self, guard: Guard, head: Asked, status: int, *words: str) -> None:
        refused = self.refused(guard, head)
        self.assertEqual(refused.status, status, str(refused))
        for word in words:
            self.assertIn(word, str(refused))


class HostTests(GuardTestCase):
    def test_a_name_that_anybody_could_have_is_refused(self) -> None:
        for host in (
            "evil.example",
            "localhost.evil.example",
            "relay:9678",
            "127.0.0.1.nip.io",
            "1.2.3",
        ):
            self.assert_refused(self.tcp, asked(Host=host), 403, "Host", "localhost")

    def test_localhost_and_addresses_are_fine_with_any_port(self) -> None:
        for host in (
            "localhost",
            "LOCALHOST:9678",
            "localhost.",
            "relay.localhost:1",
            "127.0.0.1:9678",
            "10.1.2.3",
            "[::1]",
            "[2001:db8::1]:80",
        ):
            self.tcp.check(asked(Host=host))

    def test_with_a_token_or_by_a_unix_socket_any_name_is_fine(self) -> None:
        self.with_token.check(asked(Host="relay.example", Authorization=f"Bearer {TOKEN}"))
        self.unix.check(asked(Host="relay.example"))

    def test_it_is_there_once_and_makes_sense(self) -> None:
        for guard in (self.tcp, self.unix, self.with_token):
            self.assert_refused(guard, asked(Host=""), 400, "Host", "0 times")
            self.assert_refused(guard, asked(Host="localhost|localhost"), 400, "2 times")
            for host in ("local host", "[::1", "localhost:port", "a/b", "user@localhost", "::1"):
                self.assert_refused(guard, asked(Host=host), 400, "is no host")

    def test_only_http_1_0_may_leave_it_out(self) -> None:
        self.tcp.check(asked(version="HTTP/1.0", Host=""))
        self.assert_refused(self.tcp, asked(version="HTTP/1.0", Host="evil.example"), 403)

    def test_that_of_an_absolute_target_counts(self) -> None:
        self.assert_refused(self.tcp, asked("http://evil.example/v1/status"), 403, "evil.example")
        self.tcp.check(asked("http://localhost:9678/v1/status", Host="evil.example"))
        self.assert_refused(self.tcp, asked("http:///v1/status"), 403)

    def test_paths(self) -> None:
        for target, path in (
            ("/v1/status?a=/b", "/v1/status"),
            ("http://localhost/v1/status?a=b", "/v1/status"),
            ("http://localhost", "/"),
            ("HTTPS://localhost/x", "/x"),
            ("*", ""),
            ("localhost:80", ""),
        ):
            self.assertEqual(asked(target).path, path, target)


class OriginTests(GuardTestCase):
    def test_another_page_may_not_ask(self) -> None:
        for guard in (self.tcp, self.unix):
            for origin in (
                "http://evil.example",
                "http://localhost:81",
                "https://localhost:80",
                "null",
                "localhost",
                "file://localhost",
                "http://localhost/",
            ):
                self.assert_refused(guard, asked(Origin=origin), 403, "Origin", origin)
        head = asked(Origin="http://evil.example", Authorization=f"Bearer {TOKEN}")
        self.assert_refused(self.with_token, head, 403, "Origin")

    def test_ours_may(self) -> None:
        for host, origin in (
            ("localhost", "http://localhost"),
            ("localhost:80", "http://LOCALHOST"),
            ("localhost", "http://localhost:80"),
            ("localhost:443", "https://localhost"),
            ("127.0.0.1:9678", "http://127.0.0.1:9678"),
            ("[::1]:9678", "http://[::1]:9678"),
            ("localhost:8443", "https://localhost:8443"),
        ):
            self.tcp.check(asked(Host=host, Origin=origin))

    def test_none_goes_with_no_host(self) -> None:
        head = asked(version="HTTP/1.0", Host="", Origin="http://localhost")
        self.assert_refused(self.tcp, head, 403, "Origin")

    def test_another_site_may_not_ask(self) -> None:
        for guard in (self.tcp, self.unix):
            for site in ("cross-site", "same-site", "what comes after that"):
                self.assert_refused(guard, asked(Sec_Fetch_Site=site), 403, "Sec-Fetch-Site")
            for site in ("same-origin", "none"):
                guard.check(asked(Sec_Fetch_Site=site))

    def test_a_link_leads_to_the_dashboard_and_nowhere_else(self) -> None:
        visit = {
            "Sec_Fetch_Site": "cross-site",
            "Sec_Fetch_Mode": "navigate",
            "Sec_Fetch_Dest": "document",
        }
        self.tcp.check(asked("/", **visit))
        self.assert_refused(self.tcp, asked("/v1/status", **visit), 403)
        self.assert_refused(self.tcp, asked("/", "POST", **visit), 403)
        self.assert_refused(self.tcp, asked("/", **{**visit, "Sec_Fetch_Dest": "iframe"}), 403)
        self.assert_refused(self.tcp, asked("/", **{**visit, "Sec_Fetch_Mode": "no-cors"}), 403)


class TokenTests(GuardTestCase):
    def test_it_has_to_be_shown(self) -> None:
        refused = self.refused(self.with_token, asked())
        self.assertEqual(refused.status, 401)
        self.assertIn("Bearer", str(refused))
        self.assertIn("Basic", refused.headers["WWW-Authenticate"])

    def test_another_is_refused(self) -> None:
        basic = base64.b64encode(b"admin:wrong").decode()
        for shown in (
            "Bearer wrong",
            "Bearer",
            f"Bearer {TOKEN}x",
            TOKEN,
            f"Basic {TOKEN}",
            f"Basic {basic}",
            f"Digest {TOKEN}",
            f"Bearer {TOKEN}|Bearer {TOKEN}",
        ):
            refused = self.refused(self.with_token, asked(Authorization=shown))
            self.assertEqual(refused.status, 401, shown)
            self.assertIn("WWW-Authenticate", refused.headers)

    def test_the_right_one_is_not(self) -> None:
        basic = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
        for shown in (f"Bearer {TOKEN}", f"bearer  {TOKEN} ", f"Basic {basic}"):
            self.with_token.check(asked(Authorization=shown))

    def test_health_is_told_without(self) -> None:
        for path in ("/healthz", "/readyz", "/healthz?x"):
            self.with_token.check(asked(path))
        self.assert_refused(self.with_token, asked("/metrics"), 401)

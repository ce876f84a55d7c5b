"""Other people's clients and servers talk through TLS that is terminated, originated, both, and passed on."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from tests.scenarios.programs import PATIENCE, find, folder, run, skip_unless_installed
from tests.scenarios.tls_ends import (
    TLSScenario,
    authority,
    listener,
    relays_own,
    targets_own,
)
from tests.scenarios.tls_programs import dump_page, nginx

H2_AND_1 = 'alpn = ["h2", "http/1.1"]'
_PAGE = """<!doctype html>
<pre id="shown"></pre>
<script>
const shown = document.getElementById("shown");
shown.append("page over " + performance.getEntriesByType("navigation")[0].nextHopProtocol + ";\\n");
for (const url of URLS) {
    const request = new XMLHttpRequest();
    request.open("GET", url, false);  // the page is not loaded before it is answered
    try {
        request.send();
        shown.append(request.responseText);
    } catch (failed) {
        shown.append(url + ": " + failed + ";\\n");
    }
}
</script>
"""
_ROUTES = """
[[listener.route]]
alpn = ["h2"]
pool = "{h2}"
"""


def said(
    http: str,
    *,
    tls: str = "",
    sni: str = "",
    alpn: str = "",
    reused: str = "",
    client: str = "",
) -> str:
    """What nginx says to who has reached it so."""
    return f"http={http} tls={tls} sni={sni} alpn={alpn} reused={reused} client={client};\n"


class Programs(TLSScenario):
    """
    Before an nginx: `tls-to-plain`, `tls-to-tls` and `plain-to-tls`, where the protocol that a client has
    agreed on chooses the pool; `mutual`, and `passed-on`, which doesn't open what it relays.
    """

    place: ClassVar[Path]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        if find("nginx") is None:
            return listener("none", "none") + '[pool.none]\ntargets = ["localhost:9"]\n'
        cls.place = opened.enter_context(folder())
        ports = opened.enter_context(nginx(cls.place, targets_own(), authority()))
        authority().vouch("the relay").write(cls.folder_, "own")
        tls = 'ca = "ca.pem", name = "target.example"'
        own = 'certificate = "own.pem", key = "own.key"'
        pools = {
            "plain": (ports.plain, ""),
            "plain-h2": (ports.plain_h2, ""),
            "tls": (ports.tls, f'tls = {{ {tls}, alpn = ["http/1.1"] }}'),
            "tls-h2": (ports.tls, f'tls = {{ {tls}, alpn = ["h2"] }}'),
            "mutual": (ports.mutual, f"tls = {{ {tls}, {own} }}"),
            "untouched": (ports.tls, ""),
        }
        return (
            listener("tls-to-plain", "plain", tls=True, settings=H2_AND_1)
            + _ROUTES.format(h2="plain-h2")
            + listener("tls-to-tls", "tls", tls=True, settings=H2_AND_1)
            + _ROUTES.format(h2="tls-h2")
            + listener("plain-to-tls", "tls")
            + listener("plain-to-tls-h2", "tls-h2")
            + listener("mutual", "mutual")
            + listener("passed-on", "plain")
            + '[[listener.route]]\nsni = ["localhost"]\npool = "untouched"\n'
            + "".join(
                f'[pool.{name}]\ntargets = ["127.0.0.1:{port}"]\n{tls}\n'
                for name, (port, tls) in pools.items()
            )
        )

    def setUp(self) -> None:
        skip_unless_installed("nginx")
        super().setUp()

    def url(self, name: str, path: str = "") -> str:
        scheme = "http" if name.startswith(("plain", "mutual")) else "https"
        return f"{scheme}://localhost:{self.relay.listener(name)[1]}/{path}"

    def curl(self, name: str, *options: str) -> str:
        skip_unless_installed("curl")
        ca = str(self.folder_ / "ca.pem")
        return run("curl", "--silent", "--show-error", "--cacert", ca, *options, self.url(name))

    # curl.

    def test_curl_speaks_http_1_and_2_through_tls_to_plain(self) -> None:
        self.assertEqual(self.curl("tls-to-plain", "--http1.1"), said("HTTP/1.1"))
        self.assertEqual(self.curl("tls-to-plain", "--http2"), said("HTTP/2.0"))

    def test_curl_speaks_http_1_and_2_through_tls_to_tls(self) -> None:
        for option, http, alpn in (
            ("--http1.1", "HTTP/1.1", "http/1.1"),
            ("--http2", "HTTP/2.0", "h2"),
        ):
            for option12 in ((), ("--tls-max", "1.2")):
                answer = self.curl("tls-to-tls", option, *option12)
                self.assertRegex(
                    answer,
                    f"^http={http} tls=TLSv1.3 sni=target.example alpn={alpn} reused=[.r] client=;",
                )

    def test_curl_speaks_http_1_and_2_through_plain_to_tls(self) -> None:
        self.assertIn("http=HTTP/1.1 tls=TLSv1.3 sni=target.example", self.curl("plain-to-tls"))
        answer = self.curl("plain-to-tls-h2", "--http2-prior-knowledge")
        self.assertIn("http=HTTP/2.0 tls=TLSv1.3 sni=target.example alpn=h2", answer)

    def test_curl_agrees_with_nginx_on_what_is_passed_on(self) -> None:
        for option, http, alpn in (
            ("--http1.1", "HTTP/1.1", "http/1.1"),
            ("--http2", "HTTP/2.0", "h2"),
        ):
            expected = said(http, tls="TLSv1.3", sni="localhost", alpn=alpn, reused=".")
            self.assertEqual(self.curl("passed-on", option), expected)

    def test_nginx_is_shown_our_certificate_and_a_session_to_resume(self) -> None:
        answers = [self.curl("mutual") for _ in range(3)]
        for answer in answers:
            self.assertIn("client=CN=the relay;", answer)
        reused = [answer.partition("reused=")[2][:1] for answer in answers]
        self.assertEqual(reused, [".", "r", "r"])

    # openssl s_client.

    def test_openssl_is_answered_through_tls(self) -> None:
        skip_unless_installed("openssl")
        for name in ("tls-to-plain", "tls-to-tls"):
            for version in ("-tls1_2", "-tls1_3"):
                address = "{}:{}".format(*self.relay.listener(name))
                done = subprocess.run(
                    [
                        *("openssl", "s_client", "-quiet", "-verify_return_error", version),
                        *("-CAfile", str(self.folder_ / "ca.pem"), "-verify_hostname", "localhost"),
                        *("-connect", address, "-servername", "localhost"),
                    ],
                    input=b"GET / HTTP/1.0\r\n\r\n",
                    capture_output=True,
                    timeout=PATIENCE,
                    check=True,
                )
                self.assertIn(b"http=HTTP/1.0", done.stdout)

    # A browser.

    def test_a_browser_shows_pages_through_all_ways(self) -> None:
        """One page, which comes through TLS to plain; what it shows comes by the others."""
        skip_unless_installed("chromium")
        names = ("tls-to-plain", "tls-to-tls", "passed-on", "plain-to-tls")
        page = _PAGE.replace("URLS", json.dumps([self.url(name) for name in names]))
        (self.place / "page.html").write_text(page)
        shown = dump_page(self.url("tls-to-plain", "page"), relays_own(), targets_own())
        print(shown)
        self.assertIn("page over h2;", shown)
        self.assertIn(said("HTTP/2.0"), shown)
        self.assertIn("http=HTTP/2.0 tls=TLSv1.3 sni=target.example alpn=h2", shown)
        self.assertIn("http=HTTP/2.0 tls=TLSv1.3 sni=localhost alpn=h2", shown)
        self.assertIn("http=HTTP/1.1 tls=TLSv1.3 sni=target.example", shown)

"""What testssl.sh, which looks for all that was ever wrong with servers, finds on a listener."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from tests.scenarios.programs import find, folder, skip_unless_installed
from tests.scenarios.test_nginx import nginx
from tests.scenarios.tls_ends import TLSScenario, authority, listener

PATIENCE = 300.0
LOTS = {
    "what is spoken": ("--protocols", "--std", "--server-preference", "--fs"),
    "old attacks on code": (
        *("--heartbleed", "--ccs-injection", "--ticketbleed", "--robot", "--breach"),
        *("--renegotiation", "--crime", "--poodle", "--tls-fallback"),
    ),
    "old attacks on ciphers": (
        *("--sweet32", "--beast", "--lucky13", "--freak", "--logjam", "--drown", "--rc4"),
    ),
}
"""Its checks, in as many lots as run at a time: it waits for most of its time."""

CHECKED = {
    *("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3", "ALPN", "cipherlist_NULL"),
    *("cipherlist_aNULL", "cipherlist_EXPORT", "cipherlist_LOW", "cipherlist_3DES_IDEA"),
    *("cipherlist_AVERAGE", "cipherlist_STRONG", "cipher_order", "protocol_negotiated", "PFS"),
    *("heartbleed", "CCS", "ticketbleed", "ROBOT", "secure_renego", "secure_client_renego"),
    *("CRIME_TLS", "BREACH", "POODLE_SSL", "fallback_SCSV", "SWEET32", "FREAK", "DROWN"),
    *("LOGJAM", "BEAST", "LUCKY13", "RC4"),
}
"""What it calls them."""
NOT_OURS = {"engine_problem"}
"""What it says of the openssl that it asks with."""


class Findings(TLSScenario, every_pump=False):
    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        port = 9
        if find("nginx") is not None:
            # It asks for pages, too.
            port = opened.enter_context(nginx(opened.enter_context(folder())))
        rsa = authority().vouch("localhost", dns=["localhost"], kind="rsa")
        rsa.write(cls.folder_, "rsa")
        own = 'certificate = ["relay.pem", "rsa.pem"]\nkey = ["relay.key", "rsa.key"]'
        settings = 'alpn = ["h2", "http/1.1"]'
        return (
            listener("web", "web", tls=True, own=own, settings=settings)
            + f'[pool.web]\ntargets = ["127.0.0.1:{port}"]\n'
        )

    def findings(self, *checks: str) -> list[dict[str, Any]]:
        """
        @return: of these checks.
        """
        with folder() as place:
            report = place / "report.json"
            done = subprocess.run(
                [
                    *("testssl", "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none"),
                    *("--jsonfile", str(report), *checks),
                    f"localhost:{self.relay.listener('web')[1]}",
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,  # it ends with the number of what it did not like
            )
            print(done.stdout, done.stderr)
            found: list[dict[str, Any]] = json.loads(report.read_text())
        return found

    def test_nothing_is_worse_than_it_should_be(self) -> None:
        skip_unless_installed("testssl", "nginx", "hexdump")
        with ThreadPoolExecutor() as threads:
            lots = list(threads.map(lambda checks: self.findings(*checks), LOTS.values()))
        found = [each for lot in lots for each in lot if each["id"] not in NOT_OURS]
        told = {each["id"]: each["severity"] for each in found}
        self.assertLessEqual(CHECKED, set(told), "not all checks were made")
        worse = [each for each in found if each["severity"] not in ("OK", "INFO")]
        self.assertEqual(worse, [])
        # It has come as far as to see what there is.
        self.assertEqual(told["TLS1_2"], "OK")
        self.assertEqual(told["TLS1_3"], "OK")

"""A relay with a plugin of each kind, which somebody else has written and pip has installed."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.relay_process import PATIENCE, TWISTD, Upstream, read_until_reset
from tests.scenarios.scenario import Scenario
from tests.test_plugins import environment, installed_alone


class Answer(BaseHTTPRequestHandler):
    """One answer to every question: the server's."""

    server: CatalogServer

    def do_GET(self) -> None:
        text = json.dumps(self.server.targets).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Not told."""


class CatalogServer(ThreadingHTTPServer):
    """Somebody who knows where targets are."""

    daemon_threads = False
    targets: list[str]


@contextmanager
def catalog(*targets: str) -> Iterator[str]:
    """
    @return: (for a `with` block) the URL of these targets.
    """
    with CatalogServer(("127.0.0.1", 0), Answer) as server:
        server.targets = list(targets)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/web.json"
        finally:
            server.shutdown()
            thread.join()


def configuration(url: str, blocked: Path, balance: str = "canary:50") -> str:
    """One listener that has a plugin of each kind."""
    return f"""
        [[listener]]
        name = "web"
        listen = ["tcp:0:interface=127.0.0.1"]
        pool = "web"
        [listener.admit]
        plugins = ["blocklist:{blocked}"]
        [pool.web]
        discover = "catalog:{url}"
        balance = "{balance}"
    """


class Plugins(Scenario, every_pump=False):
    def setUp(self) -> None:
        super().setUp()
        self.file = self.path("fwdrelay.toml")
        self.blocked = self.path("blocked")
        self.environ = environment(installed_alone())

    def connect_from(self, host: str, relay: ConfiguredRelay) -> socket.socket:
        """
        @return: a connection whose client has that address.
        """
        address = relay.listener("web")
        assert isinstance(address, tuple)
        return socket.create_connection(address, timeout=PATIENCE, source_address=(host, 0))

    def test_all_three_do_their_part(self) -> None:
        self.blocked.write_text("127.0.0.2\n127.0.0.3\n")
        with (
            Upstream() as stable,
            Upstream() as new,
            catalog(stable.target, f"{new.target},name=canary-1") as url,
            ConfiguredRelay(
                self.file, configuration(url, self.blocked), environ=self.environ
            ) as relay,
        ):
            for upstream in (stable, new, stable, new):
                with relay.connect_to("web"), upstream.accept():
                    pass
            labels = [entry["target"] for entry in relay.ended(4)]
            self.assertEqual(sorted(labels), sorted([stable.target, "canary-1"] * 2))

            with (
                contextlib.suppress(ConnectionResetError),  # as early as that
                self.connect_from("127.0.0.2", relay) as client,
            ):
                self.assertEqual(read_until_reset(client), b"")
            entry = relay.ended(5)[-1]
            self.assertEqual((entry["reason"], entry["code"]), ("denied", "PR"))
            self.assertEqual(entry["error"], f"127.0.0.2 is in {self.blocked}")

            self.blocked.write_text("127.0.0.3\n")
            relay.reload()
            with self.connect_from("127.0.0.2", relay), stable.accept():
                pass
            relay.ended(6)

    def checked(self, text: str) -> subprocess.CompletedProcess[str]:
        """What `--check` says of that configuration."""
        self.file.write_text(text)
        return subprocess.run(
            [*TWISTD, "fwdrelay", "--config", str(self.file), "--check"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=self.environ,
        )

    def test_a_check_makes_them(self) -> None:
        self.blocked.write_text("")
        done = self.checked(configuration("http://127.0.0.1:9/", self.blocked))
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_check_says_what_is_wrong_with_each(self) -> None:
        missing = self.blocked.with_name("missing")
        done = self.checked(configuration("ftp://127.0.0.1/", missing, "canary:half"))
        self.assertEqual(done.returncode, 78)
        for words in (
            f"plugins[0]: blocklist:{missing} can't be read: No such file or directory",
            "discover: catalog:ftp://127.0.0.1/: write a URL",
            "pool.web.balance: canary:half: write a whole number of percent",
        ):
            self.assertIn(words, done.stderr)

    def test_a_check_says_what_there_is(self) -> None:
        self.blocked.write_text("")
        done = self.checked(configuration("http://127.0.0.1:9/", self.blocked, "canry:5"))
        self.assertEqual(done.returncode, 78)
        self.assertIn("there is no election 'canry' among canary, first, ", done.stderr)
        self.assertIn("did you mean canary?", done.stderr)

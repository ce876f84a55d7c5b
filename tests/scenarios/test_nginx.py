"""HTTP through the relay: a real nginx behind it, wrk and many downloads before it."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.case import SynchronousTestCase
from tests.scenarios.programs import folder, free_port, run, running, skip_unless_installed
from tests.scenarios.relay_process import PATIENCE, relaying
from tests.scenarios.scenario import Scenario

CONNECTIONS = 200
SECONDS = 2

_CONFIGURATION = """
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = / {{ default_type text/plain; return 200 "relayed\\n"; }}
        location /files/ {{ root .; }}
    }}
}}
"""

# What wrk saw, to the last error; in its own words a missing line is all that says "none".
_REPORT = """
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}',
        summary.requests, errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
"""


@contextmanager
def nginx(place: Path) -> Iterator[int]:
    """An nginx in that folder; the block gets its port."""
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    (place / "nginx.conf").write_text(_CONFIGURATION.format(port=port, user=user))
    (place / "files").mkdir()
    command = ("nginx", "-p", str(place), "-c", "nginx.conf", "-e", "stderr")
    with running(*command, ready="start worker process "):
        yield port


def wrk(place: Path, port: int, *options: str) -> int:
    """
    Ask for / over many connections for a few seconds; fails when any request did.

    @return: how many requests were answered.
    """
    (place / "report.lua").write_text(_REPORT)
    printed = run(
        "wrk",
        *("--threads", "2", "--connections", str(CONNECTIONS), "--duration", f"{SECONDS}s"),
        *("--timeout", f"{PATIENCE:.0f}s", "--script", str(place / "report.lua"), *options),
        f"http://127.0.0.1:{port}/",
    )
    seen: dict[str, int] = json.loads(printed.splitlines()[-1])
    requests = seen.pop("requests")
    if not requests or any(seen.values()):
        raise AssertionError(f"{requests} requests, and errors: {seen}; wrk printed:\n{printed}")
    return requests


def reasons(access_log: Path) -> Counter[str]:
    """Why the sessions of an access log ended, and how many of each."""
    return Counter(json.loads(line)["reason"] for line in access_log.read_text().splitlines())


def download(connection: http.client.HTTPConnection, name: str) -> str:
    """
    @return: the file's SHA-256.
    """
    connection.request("GET", f"/files/{name}")
    response = connection.getresponse()
    digest = hashlib.sha256()
    while chunk := response.read(1 << 18):
        digest.update(chunk)
    return digest.hexdigest()


class NginxTests(Scenario):
    def setUp(self) -> None:
        skip_unless_installed("nginx")

    def test_no_request_of_kept_connections_fails(self) -> None:
        skip_unless_installed("wrk")
        with folder() as place, nginx(place) as port:
            log = place / "sessions"
            with self.relaying("--target", f"127.0.0.1:{port}", "--access-log", str(log)) as relay:
                wrk(place, relay.port)
            ended = reasons(log)
            # wrk makes one more connection at first, to see whether it can.
            self.assertEqual(ended.total(), CONNECTIONS + 1)
            # Its time may be up before the last of them are relayed.
            self.assertLessEqual(set(ended), {"done", "client-reset", "client-left"})

    def test_no_request_fails_with_a_connection_for_each(self) -> None:
        skip_unless_installed("wrk")
        with folder() as place, nginx(place) as port:
            log = place / "sessions"
            with self.relaying("--target", f"127.0.0.1:{port}", "--access-log", str(log)) as relay:
                requests = wrk(place, relay.port, "--header", "Connection: close")
            ended = reasons(log)
            self.assertGreaterEqual(ended["done"], requests)
            # wrk leaves in the middle of things when its time is up.
            self.assertLessEqual(set(ended), {"done", "client-reset", "client-left"})
            self.assertLessEqual(ended.total(), requests + CONNECTIONS + 1)

    def test_large_files_downloaded_at_once_arrive_whole(self) -> None:
        with folder() as place, nginx(place) as port:
            sums = {}
            for number in range(3):
                content = random.Random(number).randbytes(16 << 20)
                (place / "files" / f"{number}").write_bytes(content)
                sums[f"{number}"] = hashlib.sha256(content).hexdigest()
            with self.relaying("--target", f"127.0.0.1:{port}") as relay:

                def download_all(first: int) -> dict[str, str]:
                    """All files over one connection, beginning with another one each time."""
                    connection = http.client.HTTPConnection("127.0.0.1", relay.port, PATIENCE)
                    names = [*list(sums)[first:], *list(sums)[:first]]
                    try:
                        return {name: download(connection, name) for name in names}
                    finally:
                        connection.close()

                with ThreadPoolExecutor(3) as threads:
                    for downloaded in threads.map(download_all, range(3)):
                        self.assertEqual(downloaded, sums)
                for entry in relay.ended(3):
                    self.assertEqual((entry["reason"], entry["code"]), ("done", "--"))
                    self.assertGreater(entry["bytes_down"], 3 * (16 << 20))


class FirstCommandTests(SynchronousTestCase):
    def test_what_anybody_types_first_relays_to_localhost(self) -> None:
        skip_unless_installed("nginx", "wrk")
        with folder() as place, nginx(place) as port:
            options = ("--port", "0", "--target", f"localhost:{port}")
            with relaying(*options, listen=False) as relay:
                wrk(place, relay.port)

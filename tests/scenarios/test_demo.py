"""The demonstration page, fetched through a relay as a new user fetches it."""

from __future__ import annotations

import re
import socket
import struct
import urllib.error
import urllib.request

from tests.scenarios.relay_process import PATIENCE, RelayProcess
from tests.scenarios.scenario import Scenario


def fetch(relay: RelayProcess, path: str) -> bytes:
    """GET through the relay."""
    url = f"http://127.0.0.1:{relay.port}{path}"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
        return body


class Demonstration(Scenario):
    def test_the_page_tells_of_the_connection_it_was_fetched_on(self) -> None:
        with self.relaying("--demo") as relay:
            page = fetch(relay, "/").decode()
            (entry,) = relay.ended()
            for told in (entry["client"], entry["local"], "This page was relayed", "demo"):
                self.assertIn(told, page)
            self.assertEqual(entry["target"], "demo")

    def test_it_has_as_many_bytes_as_are_asked_for(self) -> None:
        with self.relaying("--demo") as relay:
            for size in (0, 1, 3_000_000):
                self.assertEqual(fetch(relay, f"/bytes/{size}"), bytes(size))
            for path in ("/bytes/x", "/bytes/10000000000000", "/nothing"):
                with self.assertRaises(urllib.error.HTTPError) as caught:
                    fetch(relay, path)
                caught.exception.close()
                self.assertEqual(caught.exception.code, 404)

    def test_who_comes_past_the_relay_is_told_so(self) -> None:
        with self.relaying("--demo") as relay:
            from_relay = re.search(rb"demo \(127\.0\.0\.1:(\d+)\)", fetch(relay, "/"))
            assert from_relay is not None
            with self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(
                    f"http://127.0.0.1:{int(from_relay[1])}/", timeout=PATIENCE
                ).close()
            self.assertIn(b"came through the relay", caught.exception.read())
            caught.exception.close()

    def test_a_connection_that_broke_does_not_keep_the_page_from_others(self) -> None:
        with self.relaying("--demo") as relay:
            with relay.connect(receive_buffer=4096) as client:
                client.sendall(b"GET /bytes/1000000 HTTP/1.0\r\n\r\n")
                client.recv(1)
                self.assertIn(b"This page was relayed", fetch(relay, "/"))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.assertIn(b"This page was relayed", fetch(relay, "/"))

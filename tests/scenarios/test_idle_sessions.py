"""Very many sessions at once, in which nothing is said most of the time."""

from __future__ import annotations

import json
import resource
import socket
import sys
import unittest
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.scenarios.programs import folder, running
from tests.scenarios.relay_process import read_exactly
from tests.scenarios.scenario import Scenario

SESSIONS = 5_000
AT_ONCE = 250
SPARE = 200
"""Descriptors for everything else in a process."""
MOST_MEMORY = 32 * 1024
"""Bytes for each session in the relay: several times what it takes, and far less than a buffer."""

# The upstream's side, in a process of its own for the descriptors: it says every byte again.
_ECHO = """
import asyncio, resource

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=4096)
    print("echoes on", server.sockets[0].getsockname()[1], "now", flush=True)
    await server.serve_forever()

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
asyncio.run(main())
"""


def raise_limit() -> None:
    """Let this process have as many descriptors as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def echoes() -> Iterator[int]:
    """A server that says every byte again; the block gets its port."""
    with running(sys.executable, "-c", _ECHO, ready="now\n") as program:
        yield int(program.output.split()[2])


def say_and_hear(socks: list[socket.socket], byte: bytes) -> None:
    """Say a byte on each of them; it must come back on each."""
    for sock in socks:
        sock.sendall(byte)
    for sock in socks:
        if read_exactly(sock, 1) != byte:
            raise AssertionError("another byte came back")


class IdleSessionsTests(Scenario):
    def setUp(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 2 * SESSIONS + SPARE
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise unittest.SkipTest(f"{needed} descriptors are needed, the limit is {hard}")
        if soft != resource.RLIM_INFINITY and soft < SESSIONS + SPARE:
            resource.setrlimit(resource.RLIMIT_NOFILE, (SESSIONS + SPARE, hard))
            self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def test_thousands_of_idle_sessions_stay_alive_and_leave_nothing(self) -> None:
        with folder() as place, echoes() as port:
            log = place / "sessions"
            options = ("--target", f"127.0.0.1:{port}", "--access-log", str(log))
            with self.relaying(*options, preexec=raise_limit) as relay:
                with relay.connect() as first:  # what is made for the first session only is there
                    say_and_hear([first], b"0")
                    before = relay.memory()
                with ExitStack() as opened:
                    socks: list[socket.socket] = []
                    while len(socks) < SESSIONS:
                        new = [opened.enter_context(relay.connect()) for _ in range(AT_ONCE)]
                        say_and_hear(new, b"1")
                        socks += new
                    self.assertGreaterEqual(relay.descriptors(), relay.at_rest + 2 * SESSIONS)
                    each = (relay.memory() - before) / SESSIONS
                    print(f"{SESSIONS} idle sessions, {self.pump}: {each / 1024:.1f} KiB for each")
                    self.assertLess(each, MOST_MEMORY)
                    say_and_hear(socks, b"2")
                relay.wait_for_descriptors(relay.at_rest)
            entries = [json.loads(line) for line in log.read_text().splitlines()]
            self.assertEqual(len(entries), SESSIONS + 1)
            self.assertEqual({entry["reason"] for entry in entries}, {"done"})
            self.assertEqual({entry["bytes_up"] for entry in entries[1:]}, {2})
            self.assertEqual({entry["bytes_down"] for entry in entries[1:]}, {2})

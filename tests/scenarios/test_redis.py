"""Redis through the relay: deep pipelines, large values, publish and subscribe."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from tests.scenarios.programs import folder, free_port, run, running, skip_unless_installed
from tests.scenarios.relay_process import RelayProcess, read_exactly
from tests.scenarios.scenario import Scenario

REQUESTS = 100_000
VALUES = 2_000
MESSAGES = 5_000


@frozen
class Redis:
    """
    A running Redis.

    @ivar port: its TCP port on 127.0.0.1.
    @ivar socket: the path of its Unix socket.
    """

    port: int
    socket: Path


@contextmanager
def redis(place: Path) -> Iterator[Redis]:
    """A new Redis in that folder, which keeps nothing on disk."""
    server = Redis(free_port(), place / "redis")
    with running(
        *("redis-server", "--port", str(server.port), "--bind", "127.0.0.1"),
        *("--unixsocket", str(server.socket), "--dir", str(place), "--daemonize", "no"),
        *("--save", "", "--appendonly", "no"),
        ready="ready to accept connections",
    ):
        yield server


def command(*words: bytes) -> bytes:
    """
    @return: a command as Redis reads it (RESP: an array of bulk strings).
    """
    return b"*%d\r\n" % len(words) + b"".join(bulk(word) for word in words)


def bulk(value: bytes) -> bytes:
    """
    @return: a string as Redis writes it.
    """
    return b"$%d\r\n%s\r\n" % (len(value), value)


def values() -> list[bytes]:
    """Values of every size up to a megabyte, most of them small, with any bytes in them."""
    source = random.Random(6379)
    small = [source.randbytes(source.randrange(2_000)) for _ in range(VALUES)]
    return [*small, *(source.randbytes(1 << bits) for bits in range(12, 21))]


def converse(sock: socket.socket, said: Sequence[bytes], answer: bytes) -> None:
    """Say everything without waiting, while all answers are read: they must be `answer`."""
    with ThreadPoolExecutor(1) as thread:
        saying = thread.submit(sock.sendall, b"".join(said))
        heard = read_exactly(sock, len(answer))
        saying.result()
    if heard != answer:
        raise AssertionError("the answers are not those that were wanted")


class RedisTests(Scenario):
    def setUp(self) -> None:
        skip_unless_installed("redis-server")

    def assert_all_done(self, relay: RelayProcess, count: int) -> None:
        """The sessions that have ended are that many at least, and ended well."""
        for entry in relay.ended(count):
            self.assertEqual((entry["reason"], entry["code"]), ("done", "--"), entry)

    def pipeline(self, relay: RelayProcess) -> None:
        """Set all values in one go, then get all in one go."""
        pairs = [(b"key:%d" % number, value) for number, value in enumerate(values())]
        with relay.connect() as sock:
            sets = [command(b"SET", key, value) for key, value in pairs]
            converse(sock, sets, b"+OK\r\n" * len(pairs))
            gets = [command(b"GET", key) for key, _ in pairs]
            converse(sock, gets, b"".join(bulk(value) for _, value in pairs))
            converse(sock, [command(b"QUIT")], b"+OK\r\n")
            self.assertEqual(sock.recv(1), b"")
        self.assert_all_done(relay, 1)

    def test_pipelined_answers_are_whole_and_in_order_over_tcp(self) -> None:
        with (
            folder() as place,
            redis(place) as server,
            self.relaying("--target", f"127.0.0.1:{server.port}") as relay,
        ):
            self.pipeline(relay)

    def test_pipelined_answers_are_whole_and_in_order_over_the_unix_socket(self) -> None:
        with (
            folder() as place,
            redis(place) as server,
            self.relaying("--target", f"unix:{server.socket}") as relay,
        ):
            self.pipeline(relay)

    def test_redis_benchmark_has_every_pipelined_request_answered(self) -> None:
        skip_unless_installed("redis-benchmark")
        with (
            folder() as place,
            redis(place) as server,
            self.relaying("--target", f"127.0.0.1:{server.port}", "--access-log", "off") as relay,
        ):
            printed = run(
                *("redis-benchmark", "-h", "127.0.0.1", "-p", str(relay.port), "-t", "set,get"),
                *("-P", "64", "-c", "50", "-n", str(REQUESTS), "-r", "10000", "-d", "100"),
                *("-e", "--csv"),
            )
            self.assertIn('"SET"', printed)
            self.assertIn('"GET"', printed)
            self.assertNotIn("rror", printed)
            with relay.connect() as sock, sock.makefile("rb") as lines:
                sock.sendall(command(b"INFO", b"commandstats"))
                told = lines.read(int(lines.readline()[1:])).decode()
            calls = {
                line.split(":")[0]: dict(part.split("=") for part in line.split(":")[1].split(","))
                for line in told.splitlines()
                if line.startswith("cmdstat_")
            }
            for name in ("cmdstat_set", "cmdstat_get"):
                self.assertGreaterEqual(int(calls[name]["calls"]), REQUESTS)
                self.assertEqual(calls[name]["failed_calls"], "0")

    def test_a_subscriber_hears_everything_that_is_published_in_order(self) -> None:
        messages = [b"message %d" % number for number in range(MESSAGES)]
        with (
            folder() as place,
            redis(place) as server,
            self.relaying("--target", f"127.0.0.1:{server.port}") as relay,
        ):
            with relay.connect() as subscriber, relay.connect() as publisher:
                subscribed = b"*3\r\n" + bulk(b"subscribe") + bulk(b"news") + b":1\r\n"
                converse(subscriber, [command(b"SUBSCRIBE", b"news")], subscribed)
                published = [command(b"PUBLISH", b"news", message) for message in messages]
                converse(publisher, published, b":1\r\n" * MESSAGES)
                heard = b"".join(command(b"message", b"news", message) for message in messages)
                self.assertEqual(read_exactly(subscriber, len(heard)), heard)
            self.assert_all_done(relay, 2)

"""What goes in comes out, through TLS on either side or both, however slowly it is read."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, ClassVar

from tests.scenarios.programs import free_port, skip_unless_installed
from tests.scenarios.relay_process import read_all, read_exactly
from tests.scenarios.scenario import MB, chunks, send
from tests.scenarios.tls_ends import (
    VERSIONS,
    WAYS,
    EachWay,
    listener,
    targets_own,
)
from tests.scenarios.tls_programs import Conversation

SIZE = 11 * MB
READERS, FEWER = 100, 10
OFFERED = 64 * MB
ENOUGH = 40 * MB
"""What a relay may grow by for so many readers that don't read."""


def speak(sock: Any, dice: random.Random, size: int) -> str:
    """
    Send `size` bytes in chunks of random sizes, with pauses; then end.

    @return: their digest.
    """
    digest = hashlib.blake2b()
    source = dice.randbytes(MB)
    while size:
        most = dice.choice((1, 1000, 16_384, 16_385, 100_000, 800_000))
        start = dice.randrange(MB)
        data = source[start : start + min(size, dice.randint(1, most))]
        sock.sendall(data)
        digest.update(data)
        size -= len(data)
        if dice.random() < 0.05:
            time.sleep(dice.random() * 0.05)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def listen(sock: Any, dice: random.Random) -> str:
    """
    Read to the end, in chunks of random sizes, with pauses.

    @return: the digest of it.
    """
    digest = hashlib.blake2b()
    time.sleep(0.5)  # until nothing more is taken
    while data := sock.recv(dice.choice((100, 5000, 16_384, 100_000))):
        digest.update(data)
        if dice.random() < 0.01:
            time.sleep(dice.random() * 0.05)
    return digest.hexdigest()


class TLSStreams(EachWay):
    port: ClassVar[int]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        cls.port = free_port()
        targets_own().write(cls.folder_, "target")
        return (
            super().configure(opened)
            + listener("to-openssl", "openssl")
            + f"""
[pool.openssl]
targets = ["127.0.0.1:{cls.port}"]
tls = {{ ca = "ca.pem" }}
"""
        )

    def test_all_bytes_arrive_both_ways_at_once_with_stalls(self) -> None:
        seed = int(os.environ.get("FWDRELAY_TEST_SEED", random.randrange(1 << 32)))
        print(f"FWDRELAY_TEST_SEED={seed}")
        dice = random.Random(seed)
        with ExitStack() as opened, ThreadPoolExecutor(24) as threads:
            results = []
            told = {}
            for way in WAYS:
                for version in VERSIONS:
                    size = SIZE if version == "TLSv1.3" else MB + dice.randrange(MB)
                    talk = opened.enter_context(self.talk(way, version))
                    told[talk.where] = size
                    pair = talk.client, talk.server
                    for speaker, hearer in (pair, pair[::-1]):
                        own, other = random.Random(dice.random()), random.Random(dice.random())
                        said = threads.submit(speak, speaker, own, size)
                        results.append((way, said, threads.submit(listen, hearer, other)))
            for way, said, heard in results:
                with self.on_the_way(way):
                    self.assertEqual(said.result(), heard.result())
            for who, size in told.items():
                self.has_ended_so(who, "done", "--", bytes_up=size, bytes_down=size)

    def test_many_small_exchanges_keep_their_order(self) -> None:
        for way in WAYS:
            with self.on_the_way(way), self.talk(way) as talk:
                for number in range(300):
                    for speaker, hearer in (
                        (talk.client, talk.server),
                        (talk.server, talk.client),
                    ):
                        message = b"%07d" % number
                        speaker.sendall(message)
                        self.assertEqual(read_exactly(hearer, 7), message)

    def test_records_of_all_sizes_arrive_whole(self) -> None:
        sizes = [*range(1, 40), *range(16_370, 16_400), *range(32_760, 32_780), 65_536, 262_145]
        for way in WAYS:
            with (
                self.on_the_way(way),
                self.talk(way) as talk,
                ThreadPoolExecutor() as threads,
            ):
                data = b"".join(chunks(max(sizes)))
                heard = threads.submit(read_all, talk.server)
                for size in sizes:
                    talk.client.sendall(data[:size])
                talk.client.shutdown(socket.SHUT_WR)
                self.assertTrue(heard.result() == b"".join(data[:size] for size in sizes))

    # Slow readers.

    def test_readers_that_do_not_read_hold_the_writers_and_cost_little_memory(self) -> None:
        for way, to_client, readers in (
            ("tls-to-plain", True, READERS),
            ("plain-to-tls", True, FEWER),
            ("tls-to-tls", False, FEWER),
        ):
            before = self.relay.memory()
            with (
                self.on_the_way(way),
                ExitStack() as opened,
                ThreadPoolExecutor(readers) as threads,
            ):
                offers = []
                for _ in range(readers):
                    talk = opened.enter_context(self.talk(way))
                    pair = talk.server, talk.client
                    speaker, hearer = pair if to_client else pair[::-1]
                    hearer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
                    speaker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
                    offers.append(threads.submit(offer, speaker))
                for each in offers:
                    each.result()
                self.assertLess(self.relay.memory() - before, ENOUGH)

    # New keys.

    def test_a_client_may_renew_keys_while_it_talks(self) -> None:
        skip_unless_installed("openssl", "stdbuf")
        address = "{}:{}".format(*self.relay.listener("tls-to-plain"))
        words = ("-connect", address, "-tls1_3", "-CAfile", str(self.folder_ / "ca.pem"))
        with Conversation("s_client", *words) as client, self.plain.accept() as server:
            client.wait_for("Verify return code: 0 (ok)")
            for number, command in enumerate("kKKk"):
                message = f"message {number}\n"
                client.say(message)
                self.assertEqual(read_exactly(server, len(message)), message.encode())
                start = len(client.output)
                client.say(f"{command}\n")
                client.wait_for("KEYUPDATE", start)
                server.sendall(f"answer {number}\n".encode())
                client.wait_for(f"answer {number}\n")
            client.say("Q\n")
            self.assertEqual(read_all(server), b"")

    def test_an_upstream_may_renew_keys_while_it_talks(self) -> None:
        skip_unless_installed("openssl", "stdbuf")
        words = ("-cert", "target.pem", "-key", "target.key", "-tls1_3", "-naccept", "1")
        with (
            Conversation(
                "s_server", *words, "-accept", f"127.0.0.1:{self.port}", cwd=self.folder_
            ) as server,
        ):
            server.wait_for("ACCEPT")
            with self.dial("to-openssl", None) as client:
                for number, command in enumerate("kKKk"):
                    message = f"message {number}\n"
                    client.sendall(message.encode())
                    server.wait_for(message)
                    start = len(server.output)
                    server.say(f"{command}\n")
                    server.wait_for("SSL_do_handshake -> 1", start)
                    server.say(f"answer {number}\n")
                    answer = f"answer {number}\n".encode()
                    self.assertEqual(read_exactly(client, len(answer)), answer)


def offer(sock: Any) -> None:
    """Send until no more is taken for a while, which must be before all of it is sent."""
    sock.settimeout(0.7)
    try:
        send(sock, OFFERED)
    except TimeoutError:
        return
    raise AssertionError(f"{OFFERED} bytes were taken")

"""What goes in comes out: all of it, in order, both ways, on many connections at once."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from tests.scenarios.relay_process import Upstream, connect
from tests.scenarios.scenario import Scenario

CONNECTIONS = 24


def speak(sock: socket.socket, dice: random.Random, size: int) -> str:
    """
    Send `size` random bytes in chunks of random sizes, with pauses; then end.

    @return: their digest.
    """
    digest = hashlib.blake2b()
    while size:
        most = dice.choice((1, 10, 1000, 20_000, 300_000))
        data = dice.randbytes(min(size, dice.randint(1, most)))
        sock.sendall(data)
        digest.update(data)
        size -= len(data)
        if dice.random() < 0.05:
            time.sleep(dice.random() * 0.02)
    sock.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def listen(sock: socket.socket, dice: random.Random) -> str:
    """
    Read to the end, in chunks of random sizes, with pauses.

    @return: the digest of it.
    """
    digest = hashlib.blake2b()
    while data := sock.recv(dice.choice((1, 100, 5000, 100_000))):
        digest.update(data)
        if dice.random() < 0.05:
            time.sleep(dice.random() * 0.02)
    return digest.hexdigest()


class Exactness(Scenario):
    def many(self, *, unix: bool) -> None:
        seed = int(os.environ.get("FWDRELAY_TEST_SEED", random.randrange(1 << 32)))
        print(f"FWDRELAY_TEST_SEED={seed}")
        dice = random.Random(seed)
        folder = self.folder()
        path = f"{folder}/up" if unix else ""
        options = ("--listen", f"unix:{folder}/relay") if unix else ()
        with (
            Upstream(path) as upstream,
            self.relaying(*options, "--target", upstream.target, listen=not unix) as relay,
            ThreadPoolExecutor(4 * CONNECTIONS) as threads,
        ):
            results = []
            sizes = {"up": 0, "down": 0}
            sockets = []
            for _ in range(CONNECTIONS):
                buffer = dice.choice((0, 0, 2048, 30_000))
                client = connect(relay.addresses[0], receive_buffer=buffer)
                server = upstream.accept()
                sockets += [client, server]
                for name, speaker, listener in (("up", client, server), ("down", server, client)):
                    size = dice.choice((0, 1, 1000, 200_000, 2_000_000))
                    sizes[name] += size
                    own, other = random.Random(dice.random()), random.Random(dice.random())
                    said = threads.submit(speak, speaker, own, size)
                    heard = threads.submit(listen, listener, other)
                    results.append((said, heard))
            try:
                for said, heard in results:
                    self.assertEqual(said.result(), heard.result())
            finally:
                for sock in sockets:
                    sock.close()
            entries = relay.ended(CONNECTIONS)
            self.assertEqual(len(entries), CONNECTIONS)
            self.assertEqual({entry["code"] for entry in entries}, {"--"})
            self.assertEqual(sum(entry["bytes_up"] for entry in entries), sizes["up"])
            self.assertEqual(sum(entry["bytes_down"] for entry in entries), sizes["down"])

    def test_many_connections_at_once_over_tcp(self) -> None:
        self.many(unix=False)

    def test_many_connections_at_once_over_unix_sockets(self) -> None:
        self.many(unix=True)

    def test_many_small_exchanges_keep_their_order(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            for number in range(2000):
                for speaker, listener in ((client, server), (server, client)):
                    message = b"%07d" % number
                    speaker.sendall(message)
                    self.assertEqual(listener.recv(100), message)

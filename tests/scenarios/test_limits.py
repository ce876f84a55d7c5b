"""Limits of sessions are counted before anything is done, and given back exactly once."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.scenarios.programs import free_port
from tests.scenarios.relay_process import (
    RelayProcess,
    Upstream,
    read_exactly,
    reset,
)
from tests.scenarios.scenario import Scenario, Unanswering


def admitted(relay: RelayProcess) -> socket.socket | None:
    """A client of an upstream that echoes, or None if the relay turned it away."""
    try:
        client = relay.connect()
    except ConnectionResetError:
        return None
    try:
        client.sendall(b"?")
        if client.recv(1) == b"?":
            return client
    except ConnectionError:
        pass
    client.close()
    return None


class WildUpstream(Upstream):
    """Ends each connection in one of the ways there are, or echoes while it is `tame`."""

    def __init__(self) -> None:
        super().__init__()
        self.tame = False
        self._dice = random.Random(3)
        self._threads = ThreadPoolExecutor(64)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted = self.accept()
            except OSError:
                return
            how = "echo" if self.tame else self._dice.choice(["echo", "reset", "end", "answer"])
            self._threads.submit(self._serve, accepted, how)

    def _serve(self, sock: socket.socket, how: str) -> None:
        try:
            if how == "reset":
                reset(sock)
            elif how == "end":
                sock.shutdown(socket.SHUT_WR)
                sock.recv(100)
            elif how == "answer":
                sock.recv(100)
                sock.sendall(b"answer" * 1000)
            else:
                while data := sock.recv(100):
                    sock.sendall(data)
        except OSError:
            pass
        finally:
            sock.close()

    def __exit__(self, *exception: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        super().__exit__(*exception)
        self._accepting.join()
        self._threads.shutdown()


def wild_client(relay: RelayProcess, dice: random.Random) -> None:
    """One short session that ends in one of the ways there are."""
    try:
        client = relay.connect()
    except ConnectionResetError:
        return
    with client:
        try:
            how = dice.choice(["nothing", "reset", "end", "request", "request and reset"])
            if "request" in how:
                client.sendall(b"request")
            if how == "end":
                client.shutdown(socket.SHUT_WR)
            if how in ("end", "request"):
                client.recv(100)
            if "reset" in how:
                reset(client)
        except OSError:
            pass


class Limits(Scenario):
    def wild(self, option: str, limit: int) -> None:
        seed = int(os.environ.get("FWDRELAY_TEST_SEED", random.randrange(1 << 32)))
        print(f"FWDRELAY_TEST_SEED={seed}")
        dice = random.Random(seed)
        refusing = f"127.0.0.1:{free_port()}"
        count = 3000
        with (
            WildUpstream() as upstream,
            self.relaying(
                *(option, str(limit), "--access-log", "off"),
                *("--target", upstream.target, "--target", refusing),
            ) as relay,
            ThreadPoolExecutor(16) as threads,
        ):
            each = [random.Random(dice.random()) for _ in range(count)]
            for done in [threads.submit(wild_client, relay, one) for one in each]:
                done.result()
            relay.wait_for_descriptors(relay.at_rest)
            upstream.tame = True
            for _ in range(2):
                clients = [admitted(relay) for _ in range(limit + 3)]
                for client in clients:
                    if client is not None:
                        client.close()
                self.assertEqual([c is not None for c in clients], [True] * limit + [False] * 3)
                relay.wait_for_descriptors(relay.at_rest)

    def test_after_thousands_of_sessions_exactly_the_limit_is_free(self) -> None:
        self.wild("--max-sessions", 20)

    def test_after_thousands_of_sessions_each_client_s_limit_is_free(self) -> None:
        self.wild("--max-sessions-per-client", 20)

    def test_a_client_beyond_the_limit_is_reset_and_told(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--max-sessions", "1") as relay,
            self.session(relay, upstream) as (client, server),
        ):
            relay.turn_away()
            self.has_ended(relay, "max-sessions", "PR", bytes_up=0, target=None, dial_ms=None)
            client.sendall(b"first")
            self.assertEqual(read_exactly(server, 5), b"first")

    def test_the_limit_of_one_client_does_not_reach_another(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--max-sessions-per-client", "1") as relay,
            self.session(relay, upstream),
        ):
            relay.turn_away()
            self.has_ended(relay, "max-sessions-per-client", "PR")
            with socket.create_connection(
                ("127.0.0.1", relay.port), 30, source_address=("127.0.0.2", 0)
            ) as other:
                other.sendall(b"hello")
                with upstream.accept() as server:
                    self.assertEqual(read_exactly(server, 5), b"hello")

    def test_a_dial_counts(self) -> None:
        """A limit that counted only what is connected would let any number dial at once."""
        with (
            Unanswering() as upstream,
            self.relaying(
                *("--target", upstream.target, "--connect-timeout", "0", "--max-sessions", "2")
            ) as relay,
            relay.connect() as one,
            relay.connect() as other,
        ):
            for _ in range(5):
                relay.turn_away()
            reset(one)
            reset(other)
            relay.ended(3)


class Admission(Scenario, every_pump=False):
    def test_who_is_denied_is_reset_and_told(self) -> None:
        with self.relaying("--target", "127.0.0.1:9", "--deny", "127.0.0.0/8") as relay:
            relay.turn_away()
            self.has_ended(relay, "denied", "PR", bytes_up=0, target=None, retries=0)

    def test_who_is_not_allowed_is_reset_and_told(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--allow", "127.0.0.2") as relay,
        ):
            relay.turn_away()
            self.has_ended(relay, "denied", "PR")
            with socket.create_connection(
                ("127.0.0.1", relay.port), 30, source_address=("127.0.0.2", 0)
            ) as other:
                other.sendall(b"hello")
                with upstream.accept() as server:
                    self.assertEqual(read_exactly(server, 5), b"hello")

    def test_of_a_flood_of_refused_clients_few_are_named_and_the_rest_summed_up(self) -> None:
        count = 300
        with self.relaying("--target", "127.0.0.1:9", "--deny", "0.0.0.0/0") as relay:
            begun = time.monotonic()
            for _ in range(count):
                relay.turn_away()
            seconds = time.monotonic() - begun
            relay.stop()
            named = len(relay.ended())
            summed = [
                int(line.partition("refused ")[2].split()[0])
                for line in relay.lines
                if "within a second" in line  # "1 more client" among them
            ]
            self.assertEqual(named + sum(summed), count)
            # One is named and one sum told for each second that had any.
            self.assertLessEqual(named + len(summed), 2 * (seconds + 1))

    def test_a_client_with_an_ipv4_address_on_an_ipv6_listener_is_judged_by_that(self) -> None:
        options = ("--port", "0", "--target", "127.0.0.1:9", "--deny", "127.0.0.1/32")
        with self.relaying(*options, listen=False) as relay:
            relay.turn_away()
            self.has_ended(relay, "denied", "PR")

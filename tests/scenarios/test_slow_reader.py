"""A slow reader stops the other side, and costs the relay no memory."""

from __future__ import annotations

import hashlib
import random
import socket
from concurrent.futures import ThreadPoolExecutor

from tests.scenarios.relay_process import Upstream, connect, read_exactly, reset
from tests.scenarios.scenario import (
    MB,
    Scenario,
    digest_of,
    fill,
    receive,
    send_and_end,
    wait_until_blocked,
)

MUCH = 1024 * MB
READ = 256 * MB
ENOUGH = 24 * MB
"""What a relay may grow by, whatever flows through it."""


class SlowReader(Scenario):
    def slow(self, from_client: bool) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            relay.connect(receive_buffer=1 << 16) as client,
            upstream.accept() as server,
            ThreadPoolExecutor() as threads,
        ):
            speaker, listener = (client, server) if from_client else (server, client)
            speaker.sendall(b"!")
            read_exactly(listener, 1)
            before = most = relay.memory()
            sending = threads.submit(send_and_end, speaker, MUCH)
            # Nobody reads: the speaker must come to a stop, and with it what the relay holds.
            wait_until_blocked(speaker)
            self.assertFalse(sending.done())
            self.assertLess(relay.memory() - before, ENOUGH)

            digest = hashlib.blake2b()
            for number in range(READ // MB):
                digest.update(read_exactly(listener, MB))
                if number % 16 == 0:
                    most = max(most, relay.memory())
            self.assertEqual((READ, digest.hexdigest()), digest_of(READ))
            self.assertLess(max(most, relay.memory()) - before, ENOUGH)
            reset(listener)
            self.assertIsInstance(sending.exception(), ConnectionError)

    def test_an_upstream_that_reads_slowly_with_1_gb_before_it_costs_no_memory(self) -> None:
        self.slow(from_client=True)

    def test_a_client_that_reads_slowly_with_1_gb_before_it_costs_no_memory(self) -> None:
        self.slow(from_client=False)

    def test_both_sides_may_read_slowly_at_once(self) -> None:
        """Neither direction waits for the other, so two who first write and then read get on."""
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
            ThreadPoolExecutor() as threads,
        ):
            size = 150 * MB
            up = threads.submit(send_and_end, client, size, 1)
            down = threads.submit(send_and_end, server, size, 2)
            wait_until_blocked(client)
            wait_until_blocked(server)
            answers = threads.submit(receive, client)
            self.assertEqual(receive(server), digest_of(size, 1))
            self.assertEqual(answers.result(), digest_of(size, 2))
            up.result()
            down.result()
            self.has_ended(relay, "done", "--", bytes_up=size, bytes_down=size)

    def test_pauses_and_resumes_balance_over_many_stops(self) -> None:
        dice = random.Random(7)
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            relay.connect(receive_buffer=4096) as client,
            upstream.accept() as server,
            ThreadPoolExecutor() as threads,
        ):
            size = 60 * MB
            sending = threads.submit(send_and_end, server, size)

            def pause(count: int) -> None:
                if dice.random() < 0.01:
                    client.sendall(b".")  # and by the time it is there, all is stuck
                    self.assertEqual(server.recv(1), b".")

            self.assertEqual(receive(client, pause), digest_of(size))
            sending.result()

    def test_a_slow_reader_does_not_hold_up_another_session(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (_, slow_server),
        ):
            fill(slow_server, 300 * MB, patience=0.3)
            with self.session(relay, upstream) as (client, server):
                for number in range(200):
                    message = b"%d" % number
                    client.sendall(message)
                    self.assertEqual(read_exactly(server, len(message)), message)

    def test_a_slow_reader_on_a_unix_socket_costs_no_memory(self) -> None:
        listen = str(self.path("relay"))
        with (
            Upstream() as upstream,
            self.relaying(
                "--listen", f"unix:{listen}", "--target", upstream.target, listen=False
            ) as relay,
            connect(listen) as client,
            upstream.accept() as server,
            ThreadPoolExecutor() as threads,
        ):
            before = relay.memory()
            size = 200 * MB
            sending = threads.submit(send_and_end, server, size)
            wait_until_blocked(server)
            self.assertEqual(receive(client), digest_of(size))
            sending.result()
            self.assertLess(relay.memory() - before, ENOUGH)
            client.shutdown(socket.SHUT_WR)
            self.has_ended(relay, "done", "--", bytes_down=size)

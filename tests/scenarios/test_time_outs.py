"""Time-outs of sessions, for real: what must end does, and what lives on is not cut."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

from tests.scenarios.relay_process import (
    RelayProcess,
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
)
from tests.scenarios.scenario import MB, Pair, Scenario, Unanswering, chunks, fill, wait_until_taken

PAUSE = "3s"
"""
A time-out that who does something all the time does not run into, even on a machine that stands still for
a moment.
"""


def has_ended(relay: RelayProcess, count: int) -> bool:
    return sum(line.startswith("{") for line in relay.lines) >= count


def client_of(pair: Pair) -> str:
    host, port = pair[0].getsockname()
    return f"{host}:{port}"


class TimeOuts(Scenario):
    def test_an_idle_session_is_cut_and_a_busy_one_is_not(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--idle-timeout", PAUSE) as relay,
            self.session(relay, upstream) as busy,
            self.session(relay, upstream) as idle,
        ):
            idle[0].sendall(b"a request that nobody answers")
            exchanges = 0
            # The busy one was there before the other began to be idle.
            while not has_ended(relay, 1) or exchanges < 20:
                speaker, listener = busy[:: 1 if exchanges % 2 else -1]
                speaker.sendall(b"x")
                self.assertEqual(listener.recv(1), b"x")
                exchanges += 1
            read_until_reset(idle[0])
            self.assertEqual(read_until_reset(idle[1]), b"a request that nobody answers")
            (entry,) = relay.ended()
            self.assertEqual(entry["client"], client_of(idle))
            self.assertEqual((entry["reason"], entry["code"]), ("upstream-idle-timeout", "sD"))

    def test_a_session_whose_client_says_nothing_is_cut_and_the_client_named(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--idle-timeout", PAUSE) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            server.sendall(b"220 ready")
            self.assertEqual(read_until_reset(client), b"220 ready")
            self.has_ended(relay, "client-idle-timeout", "cD")

    def test_writes_that_are_blocked_are_idle(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--idle-timeout", PAUSE) as relay,
            self.session(relay, upstream) as (_client, server),
        ):
            fill(server, 300 * MB, patience=0.2)
            self.has_ended(relay, "client-idle-timeout", "cD")

    def test_a_peer_that_reads_slowly_is_not_idle(self) -> None:
        """Bytes that it takes count, though no byte has come from anybody for longer."""
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--idle-timeout", PAUSE) as relay,
            relay.connect(receive_buffer=1 << 14) as client,
            upstream.accept() as server,
        ):
            answer = b"".join(chunks(2 * MB))
            server.sendall(answer)
            wait_until_taken(server)
            idle: list[Pair] = []
            read = bytearray()
            # Two sessions that began to be idle one after the other are cut meanwhile.
            for number in range(2):
                pair = relay.connect(), upstream.accept()
                self.addCleanup(pair[0].close)
                self.addCleanup(pair[1].close)
                idle.append(pair)
                while not has_ended(relay, number + 1):
                    read += read_exactly(client, 500)
                    time.sleep(0.005)
            for entry in relay.ended(2):
                self.assertIn(entry["client"], [client_of(pair) for pair in idle])
            server.shutdown(socket.SHUT_WR)
            read += read_all(client)
            self.assertEqual(bytes(read), answer)

    def test_a_half_closed_session_is_cut_when_the_other_side_says_nothing(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--half-close-timeout", PAUSE) as relay,
            self.session(relay, upstream) as trickling,
            self.session(relay, upstream) as whole,
        ):
            trickling[0].shutdown(socket.SHUT_WR)
            self.assertEqual(trickling[1].recv(1), b"")
            with self.session(relay, upstream) as (client, server):
                client.shutdown(socket.SHUT_WR)
                read_all(server)
                while not has_ended(relay, 1):
                    # Bytes in the direction that is open keep it alive.
                    trickling[1].sendall(b"x")
                    self.assertEqual(trickling[0].recv(1), b"x")
                self.assertEqual(read_until_reset(client), b"")
                self.has_ended(relay, "upstream-half-close-timeout", "sD")
            with self.session(relay, upstream) as (client, server):
                server.shutdown(socket.SHUT_WR)
                read_all(client)
                while not has_ended(relay, 2):
                    trickling[1].sendall(b"x")
                    self.assertEqual(trickling[0].recv(1), b"x")
                self.assertEqual(read_until_reset(server), b"")
                entry = relay.ended(2)[-1]
                self.assertEqual(entry["reason"], "client-half-close-timeout")
            # Nor does it reach one that is open both ways, and silent.
            whole[0].sendall(b"still here")
            self.assertEqual(read_exactly(whole[1], 10), b"still here")

    def test_a_session_that_outlives_its_lifetime_is_cut_however_busy(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--lifetime", "500ms") as relay,
            self.session(relay, upstream) as (client, server),
        ):
            with self.assertRaises(ConnectionError):
                while True:
                    client.sendall(b"x")
                    if not server.recv(1):
                        break
            self.has_ended(relay, "lifetime", "PD")

    def test_a_lifetime_ends_a_dial_too(self) -> None:
        with (
            Unanswering() as upstream,
            self.relaying(
                *("--target", upstream.target, "--connect-timeout", "0", "--lifetime", "300ms")
            ) as relay,
            relay.connect() as client,
        ):
            self.assertEqual(read_until_reset(client), b"")
            self.has_ended(relay, "lifetime", "PC")

    def test_what_a_reset_side_left_behind_is_delivered_for_the_half_close_time_out_only(
        self,
    ) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--half-close-timeout", "300ms") as relay,
            self.session(relay, upstream) as (client, server),
        ):
            fill(client, 300 * MB, patience=0.3)
            reset(client)
            self.has_ended(relay, "client-reset", "CD")
            relay.wait_for_descriptors(relay.at_rest)
            with self.assertRaises(ConnectionResetError):
                while server.recv(1 << 20):
                    pass

    def test_many_sessions_of_all_ages_are_cut_when_idle(self) -> None:
        count = 200
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--idle-timeout", "300ms") as relay,
        ):

            def one(_: int) -> None:
                with relay.connect() as client:
                    read_until_reset(client)

            with ThreadPoolExecutor(50) as threads:
                done = threads.map(one, range(count))
                for _ in range(count):
                    self.addCleanup(upstream.accept().close)
                list(done)
            reasons = {entry["reason"] for entry in relay.ended(count)}
            self.assertLessEqual(reasons, {"client-idle-timeout", "upstream-idle-timeout"})

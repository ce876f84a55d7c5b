"""A relay that is told to stop: what is under way completes, what is left at the deadline is cut."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor

from tests.scenarios.relay_process import (
    RelayProcess,
    Upstream,
    connect,
    read_all,
    read_exactly,
    read_until_reset,
    wait_until,
)
from tests.scenarios.scenario import MB, Scenario, Unanswering, digest_of, receive, send_and_end


def begin_to_stop(relay: RelayProcess) -> None:
    relay.signal(signal.SIGTERM)
    relay.wait_for(lambda line: "Draining" in line)


class Drain(Scenario):
    def test_bytes_in_flight_complete_and_nobody_new_is_let_in(self) -> None:
        size = 50 * MB
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
            ThreadPoolExecutor() as threads,
        ):
            client.sendall(b"the request")
            read_exactly(server, 11)
            sending = threads.submit(send_and_end, server, size)
            read_exactly(client, 8)
            begin_to_stop(relay)
            with self.assertRaises(ConnectionRefusedError):
                relay.connect()
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(receive(client)[0], digest_of(size)[0] - 8)
            sending.result()
            self.has_ended(relay, "done", "--", bytes_down=size)
            relay.stop()

    def test_what_is_left_at_the_deadline_is_cut_and_told(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--drain-timeout", "300ms") as relay,
            self.session(relay, upstream) as one,
            self.session(relay, upstream) as other,
        ):
            other[0].shutdown(socket.SHUT_WR)
            read_all(other[1])
            begin_to_stop(relay)
            for sock in (*one, other[0]):
                self.assertEqual(read_until_reset(sock), b"")
            entries = relay.ended(2)
            self.assertEqual({(e["reason"], e["code"]) for e in entries}, {("drain-timeout", "KD")})
            relay.stop()

    def test_a_dial_is_cut_at_the_deadline_too(self) -> None:
        with (
            Unanswering() as upstream,
            self.relaying(
                *("--target", upstream.target, "--connect-timeout", "0"),
                *("--drain-timeout", "200ms"),
            ) as relay,
            relay.connect() as client,
        ):
            wait_until(lambda: relay.descriptors() > relay.at_rest)
            begin_to_stop(relay)
            self.assertEqual(read_until_reset(client), b"")
            self.has_ended(relay, "drain-timeout", "KC")
            relay.stop()

    def test_a_second_signal_stops_at_once(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with (
                Upstream() as upstream,
                self.relaying("--target", upstream.target, "--drain-timeout", "0") as relay,
                self.session(relay, upstream) as (client, server),
            ):
                client.sendall(b"hello")
                read_exactly(server, 5)
                begin_to_stop(relay)
                relay.signal(number)
                read_until_reset(client)
                self.has_ended(relay, "stopped", "KD")
                relay.process.wait(30)
                relay.stop()

    def test_without_sessions_it_stops_at_once(self) -> None:
        with self.relaying("--target", "127.0.0.1:9", "--drain-timeout", "0") as relay:
            relay.signal(signal.SIGINT)
            relay.process.wait(30)

    def test_who_waits_to_be_accepted_is_served(self) -> None:
        """They have been promised a connection by the kernel; there may be many of them."""
        count = 300
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            relay.signal(signal.SIGSTOP)
            clients = [relay.connect() for _ in range(count)]
            for client in clients:
                self.addCleanup(client.close)
                client.sendall(b"the request")
                client.shutdown(socket.SHUT_WR)
            relay.signal(signal.SIGTERM)
            relay.signal(signal.SIGCONT)
            for _ in range(count):
                with upstream.accept() as server:
                    self.assertEqual(read_all(server), b"the request")
                    server.sendall(b"the answer")
            for client in clients:
                self.assertEqual(read_all(client), b"the answer")
            self.assertEqual({e["code"] for e in relay.ended(count)}, {"--"})
            relay.process.wait(30)

    def test_a_unix_listener_is_gone_after_the_stop(self) -> None:
        listen = self.path("relay")
        with (
            Upstream() as upstream,
            self.relaying(
                "--listen", f"unix:{listen}", "--target", upstream.target, listen=False
            ) as relay,
            connect(str(listen)),
            upstream.accept(),
        ):
            begin_to_stop(relay)
            wait_until(lambda: not listen.exists())
        self.assertEqual(list(listen.parent.iterdir()), [])

"""An end (FIN) of one side ends that direction only, after its last byte."""

from __future__ import annotations

import select
import socket
from concurrent.futures import ThreadPoolExecutor

from tests.scenarios.relay_process import Upstream, connect, read_all, read_exactly
from tests.scenarios.scenario import MB, Scenario, digest_of, receive, send_and_end

ANSWER = 100 * MB


class HalfClose(Scenario):
    def test_a_client_that_has_ended_gets_an_answer_of_100_mb(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
            ThreadPoolExecutor() as threads,
        ):
            client.sendall(b"the request")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"the request")
            answering = threads.submit(send_and_end, server, ANSWER)
            self.assertEqual(receive(client), digest_of(ANSWER))
            answering.result()
            self.has_ended(relay, "done", "--", bytes_up=11, bytes_down=ANSWER)

    def test_an_upstream_that_has_ended_still_gets_100_mb(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
            ThreadPoolExecutor() as threads,
        ):
            server.sendall(b"go on")
            server.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(client), b"go on")
            telling = threads.submit(send_and_end, client, ANSWER)
            self.assertEqual(receive(server), digest_of(ANSWER))
            telling.result()
            self.has_ended(relay, "done", "--", bytes_up=ANSWER, bytes_down=5)

    def test_an_end_is_passed_on_after_all_bytes_before_it(self) -> None:
        size = 20 * MB
        for from_client in (True, False):
            with (
                Upstream() as upstream,
                self.relaying("--target", upstream.target) as relay,
                self.session(relay, upstream) as pair,
                ThreadPoolExecutor() as threads,
            ):
                speaker, listener = pair if from_client else pair[::-1]
                speaking = threads.submit(send_and_end, speaker, size)
                self.assertEqual(receive(listener), digest_of(size))
                speaking.result()

    def test_who_has_ended_is_not_told_of_an_end_that_was_not(self) -> None:
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            for from_client in (True, False):
                with self.session(relay, upstream) as pair:
                    ended, other = pair if from_client else pair[::-1]
                    ended.shutdown(socket.SHUT_WR)
                    self.assertEqual(other.recv(1), b"")
                    for number in range(100):
                        message = b"%d" % number
                        other.sendall(message)
                        self.assertEqual(read_exactly(ended, len(message)), message)
                    self.assertEqual(select.select([ended], [], [], 0), ([], [], []))

    def test_both_sides_may_end_at_the_same_time(self) -> None:
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            for _ in range(50):
                with self.session(relay, upstream) as (client, server):
                    client.sendall(b"ping")
                    server.sendall(b"pong!")
                    client.shutdown(socket.SHUT_WR)
                    server.shutdown(socket.SHUT_WR)
                    self.assertEqual((read_all(server), read_all(client)), (b"ping", b"pong!"))
            told = {
                (e["reason"], e["code"], e["bytes_up"], e["bytes_down"]) for e in relay.ended(50)
            }
            self.assertEqual(told, {("done", "--", 4, 5)})

    def test_a_session_without_a_byte_ends_cleanly(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"")
            server.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(client), b"")
            self.has_ended(relay, "done", "--", bytes_up=0, bytes_down=0)

    def test_an_end_is_passed_on_between_unix_sockets_too(self) -> None:
        size = 5 * MB
        path, listen = str(self.path("up")), str(self.path("relay"))
        with (
            Upstream(path) as upstream,
            self.relaying(
                "--listen", f"unix:{listen}", "--target", upstream.target, listen=False
            ) as relay,
            connect(listen) as client,
            upstream.accept() as server,
            ThreadPoolExecutor() as threads,
        ):
            client.sendall(b"the request")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"the request")
            answering = threads.submit(send_and_end, server, size)
            self.assertEqual(receive(client), digest_of(size))
            answering.result()
            self.has_ended(relay, "done", "--", bytes_up=11, bytes_down=size, client="unix:")

"""A reset of one side reaches the other as a reset, after all that was sent before it."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor

from tests.scenarios.relay_process import (
    Upstream,
    connect,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
    wait_until,
)
from tests.scenarios.scenario import (
    MB,
    Scenario,
    chunks,
    fill,
    send,
    unacknowledged,
    wait_until_taken,
)


def greet(speaker: socket.socket, listener: socket.socket) -> None:
    """Make sure that the relay has done with dialing: a client that resets before is another rule."""
    speaker.sendall(b"hello")
    read_exactly(listener, 5)


def echo(sock: socket.socket) -> bytes:
    """
    Send back whatever comes, until reset.

    @return: what came.
    """
    heard = bytearray()
    try:
        while data := sock.recv(1 << 16):
            heard += data
            sock.sendall(data)
    except ConnectionResetError:
        # What had come before the write that failed is there to be read.
        return bytes(heard) + read_until_reset_or_end(sock)[0]
    raise AssertionError("ended cleanly, and should have been reset")


def read_until_reset_or_end(sock: socket.socket) -> tuple[bytes, bool]:
    """
    For a socket to whose writer the reset may have been told already; its reader hears of an end then.

    @return: all bytes, and whether it was a reset.
    """
    heard = bytearray()
    try:
        while data := sock.recv(1 << 18):
            heard += data
    except ConnectionResetError:
        return bytes(heard), True
    return bytes(heard), False


def more_taken_than(count: int, speaker: socket.socket, sent: bytes) -> int:
    """
    Wait until the relay's kernel has more than that of what was sent.

    @return: how much it has.
    """
    wait_until(lambda: len(sent) - unacknowledged(speaker) > count)
    return len(sent) - unacknowledged(speaker)


class Reset(Scenario):
    def test_a_reset_by_the_client_reaches_the_upstream_after_the_bytes_before_it(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            greet(server, client)
            client.sendall(b"before")
            wait_until_taken(client)
            reset(client)
            self.assertEqual(read_until_reset(server), b"before")
            self.has_ended(
                relay, "client-reset", "CD", bytes_up=6, error="Connection reset by peer"
            )

    def test_a_reset_by_the_upstream_reaches_the_client_after_the_bytes_before_it(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            greet(client, server)
            server.sendall(b"before")
            wait_until_taken(server)
            reset(server)
            self.assertEqual(read_until_reset(client), b"before")
            self.has_ended(
                relay, "upstream-reset", "SD", bytes_down=6, error="Connection reset by peer"
            )

    def test_what_a_slow_reader_has_not_taken_before_the_reset_is_delivered(self) -> None:
        """
        What the kernel had taken of it, that is: a reset drops what is still in its sender's own.
        """
        for from_client in (True, False):
            with (
                Upstream() as upstream,
                self.relaying("--target", upstream.target) as relay,
                self.session(relay, upstream) as pair,
            ):
                speaker, listener = pair if from_client else pair[::-1]
                sent = fill(speaker, 300 * MB)
                taken = more_taken_than(MB, speaker, sent)
                reset(speaker)
                received = read_until_reset(listener)
                self.assertTrue(sent.startswith(received))
                self.assertGreaterEqual(len(received), taken)
                who, code = ("client", "CD") if from_client else ("upstream", "SD")
                self.has_ended(relay, f"{who}-reset", code)

    def test_a_reset_after_a_clean_end_costs_the_other_side_nothing(self) -> None:
        """An upstream that answers, ends and closes with bytes unread sends such a reset."""
        answer = b"".join(chunks(2 * MB))
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"a request that is never read")
            server.sendall(answer)
            server.shutdown(socket.SHUT_WR)
            wait_until_taken(server)
            reset(server)
            client.sendall(b"more of it, after the reset")
            self.assertEqual(read_all(client), answer)
            client.shutdown(socket.SHUT_WR)
            (entry,) = relay.ended()
            self.assertEqual(entry["bytes_down"], len(answer))

    def test_a_client_that_resets_after_its_clean_end_is_heard_in_full(self) -> None:
        """However slowly: the upstream gets all its bytes and a clean end."""
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            greet(server, client)
            # More than the upstream takes at once, so that the end is still before the relay.
            request = fill(client, 300 * MB)
            first = read_exactly(server, MB)
            reading = []
            while unacknowledged(client):
                reading.append(server.recv(MB))  # there may be less than that left
            client.shutdown(socket.SHUT_WR)
            wait_until_taken(client)
            reset(client)
            self.assertEqual(b"".join((first, *reading, read_all(server))), request)
            self.has_ended(relay, "client-reset", "CD", bytes_up=len(request))

    def test_both_sides_may_reset_at_the_same_time(self) -> None:
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            count = 20
            for number in range(count):
                with self.session(relay, upstream) as (client, server):
                    client.sendall(b"ping")
                    read_exactly(server, 4)
                    relay.signal(signal.SIGSTOP)  # it sees both in the same turn
                    if number % 2:
                        client.sendall(b"unread")
                    reset(client)
                    reset(server)
                    relay.signal(signal.SIGCONT)
            entries = relay.ended(count)
            self.assertEqual(len(entries), count)
            self.assertLessEqual({e["reason"] for e in entries}, {"client-reset", "upstream-reset"})

    def test_an_answer_that_comes_before_the_reset_of_a_request_half_read_is_delivered(
        self,
    ) -> None:
        """Such is the answer to a request that is too large: it is sent, and the rest not read."""
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
            ThreadPoolExecutor() as threads,
        ):
            sending = threads.submit(send, client, 100 * MB)
            read_exactly(server, 1000)
            server.sendall(b"too large")
            wait_until_taken(server)
            server.close()  # with much unread: this resets
            # Whichever of the two hears of the reset first, it is told once.
            told, was_reset = read_until_reset_or_end(client)
            self.assertEqual(told, b"too large")
            error = sending.exception()
            self.assertIsInstance(error, ConnectionError)
            self.assertTrue(was_reset or isinstance(error, ConnectionResetError))
            self.has_ended(relay, "upstream-reset", "SD", bytes_down=9)

    def test_an_echo_of_what_a_reset_client_had_sent_does_not_hold_up_the_end(self) -> None:
        """Who blocks on an answer that nobody takes any more would never read the rest."""
        for echo_by_client in (False, True):
            with (
                Upstream() as upstream,
                self.relaying("--target", upstream.target, "--half-close-timeout", "0") as relay,
                self.session(relay, upstream) as pair,
                ThreadPoolExecutor() as threads,
            ):
                speaker, echoing = pair[::-1] if echo_by_client else pair
                echoed = threads.submit(echo, echoing)
                sent = fill(speaker, 300 * MB)
                taken = len(sent) - unacknowledged(speaker)
                reset(speaker)
                heard = echoed.result()
                self.assertTrue(sent.startswith(heard))
                self.assertGreaterEqual(len(heard), taken)
                relay.ended()

    def test_a_client_that_closes_amid_an_answer_ends_the_session(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            fill(server, 300 * MB)
            client.recv(1000)
            client.close()
            with self.assertRaises(ConnectionError):
                send(server, 1000 * MB)
            self.has_ended(relay, "client-reset", "CD")

    def test_a_peer_that_closes_an_idle_session_in_full_ends_it(self) -> None:
        """A close says FIN; that nobody reads any more shows when something is sent."""
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.close()
            self.assertEqual(server.recv(1), b"")
            with self.assertRaises(ConnectionError):
                send(server, 1000 * MB)
            self.has_ended(relay, "client-reset", "CD")

    def test_a_unix_upstream_that_closes_with_bytes_unread_is_reported_as_a_reset(self) -> None:
        path = str(self.path("up"))
        with (
            Upstream(path) as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"a request")
            server.recv(1)
            server.sendall(b"answer")
            server.close()
            self.assertEqual(read_until_reset(client), b"answer")
            self.has_ended(relay, "upstream-reset", "SD", bytes_down=6)

    def test_a_unix_client_that_leaves_amid_an_answer_ends_the_session(self) -> None:
        listen = str(self.path("relay"))
        with (
            Upstream() as upstream,
            self.relaying(
                "--listen", f"unix:{listen}", "--target", upstream.target, listen=False
            ) as relay,
            connect(listen) as client,
            upstream.accept() as server,
        ):
            client.sendall(b"the request")
            self.assertEqual(read_exactly(server, 11), b"the request")
            fill(server, 300 * MB)
            client.close()
            with self.assertRaises(ConnectionError):
                send(server, 1000 * MB)
            (entry,) = relay.ended()
            self.assertEqual(entry["code"], "CD")

    def test_a_reset_of_one_session_does_not_reach_another(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (steady, steady_server),
        ):
            for number in range(50):
                with self.session(relay, upstream) as pair:
                    greet(*pair)
                    reset(pair[number % 2])
                    read_until_reset(pair[1 - number % 2])
                steady.sendall(b"still here")
                self.assertEqual(read_exactly(steady_server, 10), b"still here")
            relay.ended(50)

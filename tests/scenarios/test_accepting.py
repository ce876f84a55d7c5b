"""Accepting goes on whatever the machine has run out of, and whatever clients send."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import resource
import select
import socket

from tests.scenarios.relay_process import (
    RelayProcess,
    Upstream,
    read_all,
    read_exactly,
    reset,
    wait_until,
)
from tests.scenarios.scenario import Scenario


def limit_descriptors(relay: RelayProcess, limit: int) -> None:
    """Let `relay` have so many descriptors."""
    resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (limit, 4096))


def lowest_free(relay: RelayProcess) -> int:
    """The number that the next descriptor of `relay` would get."""
    used = {int(name) for name in os.listdir(f"/proc/{relay.pid}/fd")}
    return next(number for number in itertools.count() if number not in used)


class Exhaustion(Scenario):
    def test_without_descriptors_the_others_wait_and_those_there_are_go_on(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
            contextlib.ExitStack() as waiting,
        ):
            client.sendall(b"hello")
            self.assertEqual(read_exactly(server, 5), b"hello")
            limit_descriptors(relay, lowest_free(relay))
            others = [waiting.enter_context(relay.connect()) for _ in range(5)]
            for other in others:
                other.sendall(b"waited")
                other.shutdown(socket.SHUT_WR)
            relay.wait_for(lambda line: "Can't accept" in line)
            for _ in range(100):
                client.sendall(b"ping")
                self.assertEqual(read_exactly(server, 4), b"ping")
                server.sendall(b"pong")
                self.assertEqual(read_exactly(client, 4), b"pong")
            limit_descriptors(relay, 1000)
            for _ in others:
                with upstream.accept() as its_server:
                    self.assertEqual(read_all(its_server), b"waited")
            relay.wait_for(lambda line: "Accepting again" in line)
            said = [line for line in relay.lines if "Can't accept" in line]
            self.assertEqual(len(said), 1, said)

    def test_who_leaves_makes_room_for_who_waits(self) -> None:
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            limit_descriptors(relay, relay.at_rest + 3)
            with contextlib.ExitStack() as clients:
                for _ in range(8):
                    client = clients.enter_context(relay.connect())
                    client.sendall(b"hello")
                    client.shutdown(socket.SHUT_WR)
                # Not all come through: who was let in by the last descriptor can't be dialed for.
                while sum(line.startswith("{") for line in relay.lines) < 8:
                    with contextlib.suppress(TimeoutError):
                        upstream.socket.settimeout(0.1)
                        with upstream.accept() as server:
                            self.assertEqual(read_all(server), b"hello")
            codes = {entry["code"] for entry in relay.ended(8)}
            self.assertIn("--", codes)
            self.assertLessEqual(codes, {"--", "RC"})

    def test_short_of_any_one_descriptor_it_turns_away_or_lets_wait(self) -> None:
        """Whatever of a session it is that there is no descriptor for."""
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            for free in range(5):
                ended = len(relay.ended(2 * free))
                start = len(relay.lines)
                limit_descriptors(relay, relay.at_rest + free)
                with relay.connect() as client:
                    client.sendall(b"hello")
                    wait_until(functools.partial(self.has_decided, relay, upstream, start))
                limit_descriptors(relay, 1000)
                wait_until(functools.partial(self.takes_until, relay, upstream, ended + 1))
                with self.session(relay, upstream) as (client, server):
                    client.sendall(b"hello")
                    self.assertEqual(read_exactly(server, 5), b"hello")
                relay.wait_for_descriptors(relay.at_rest)

    def has_decided(self, relay: RelayProcess, upstream: Upstream, start: int) -> bool:
        told = "\n".join(relay.lines[start:])
        dialed = bool(select.select([upstream.socket], [], [], 0)[0])
        return dialed or "Can't accept" in told or "no-resources" in told

    def takes_until(self, relay: RelayProcess, upstream: Upstream, count: int) -> bool:
        """Who waited at the door may be dialed for much later; once so many have ended, nobody does any more."""
        if select.select([upstream.socket], [], [], 0)[0]:
            upstream.accept().close()
        return sum(line.startswith("{") for line in relay.lines) >= count

    def test_a_stop_while_descriptors_are_short_is_a_clean_one(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--drain-timeout", "100ms") as relay,
        ):
            limit_descriptors(relay, relay.at_rest + 3)
            clients = [relay.connect() for _ in range(4)]
            for client in clients:
                self.addCleanup(client.close)
            relay.wait_for(lambda line: "Can't accept" in line)
            relay.stop()


class AnyBytes(Scenario):
    def test_nothing_that_a_peer_sends_or_does_disturbs_the_relay(self) -> None:
        """Any bytes are relayed as they are; in whatever way it ends, it is one line in the log."""
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        count = 150
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            for _ in range(count):
                with self.session(relay, upstream) as (client, server):
                    for speaker in dice.sample((client, server), 2):
                        sent = dice.randbytes(dice.choice((0, 1, 10, 1000, 20000)))
                        speaker.sendall(sent)
                        if dice.random() < 0.2:
                            speaker.sendall(b"GET / HTTP/1.1\r\nHost:")
                    for sock in dice.sample((client, server), 2):
                        how = dice.randrange(3)
                        if how == 0:
                            reset(sock)
                        elif how == 1:
                            sock.close()
                        else:
                            with contextlib.suppress(OSError):
                                sock.shutdown(socket.SHUT_WR)
            self.assertEqual(len(relay.ended(count)), count)

    def test_clients_that_come_and_go_at_once_are_no_trouble(self) -> None:
        count = 200
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            for number in range(count):
                client = relay.connect()
                if number % 2:
                    reset(client)
                else:
                    client.close()
            # How many of them are dialed for at all nobody knows.
            while sum(line.startswith("{") for line in relay.lines) < count:
                if select.select([upstream.socket], [], [], 0.1)[0]:
                    upstream.accept().close()
            self.assertEqual(len(relay.ended(count)), count)

    def test_urgent_data_is_no_trouble(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"before")
            client.send(b"!", socket.MSG_OOB)
            client.sendall(b"after")
            client.shutdown(socket.SHUT_WR)
            self.assertIn(read_all(server), (b"beforeafter", b"before!after"))

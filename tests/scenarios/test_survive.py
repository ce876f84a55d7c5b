"""Sessions that outlive the process that relays them."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.scenarios.mixed_load import ROOT, MixedLoad
from tests.scenarios.relay_process import (
    RelayProcess,
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
    wait_until,
)
from tests.scenarios.scenario import MB, Scenario, digest_of, fill, receive, send, send_and_end
from tests.scenarios.workers import relaying_with
from tests.soak import SECONDS

SURVIVE = "--survive-crashes"
AT_STAKE = 10
"""So many sessions at least are at stake each time that a worker is killed under load."""
_NEVER_OLD = """
import sys
sys.path.insert(0, {root!r})
import fwdrelay.workers.keeping
fwdrelay.workers.keeping.AGE = 3600.0
"""


class SurviveTests(Scenario, every_pump=False):
    def both(self, pair: tuple[socket.socket, socket.socket], message: bytes = b"still") -> None:
        """Assert that a message gets through each way."""
        for one, other in (pair, pair[::-1]):
            one.sendall(message)
            self.assertEqual(read_exactly(other, len(message)), message)

    def test_a_session_of_a_dead_worker_goes_on(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, SURVIVE, "--target", upstream.target) as (relay, workers),
            self.session(relay, upstream) as pair,
        ):
            self.both(pair)
            workers.wait_for_kept(1)
            (before,) = workers.sessions()
            for _ in range(3):
                workers.kill(workers.pids()[0])
                self.both(pair)
            (after,) = workers.sessions()
            for key in ("session", "client", "local", "started", "target", "pool"):
                self.assertEqual(after[key], before[key])
            self.assertEqual((after["bytes_up"], after["bytes_down"]), (20, 20))
            pair[0].close()
            self.assertEqual(read_all(pair[1]), b"")
            pair[1].close()
            (ended,) = relay.ended()
            self.assertEqual((ended["reason"], ended["bytes_up"]), ("done", 20))
            totals = workers.admin.get("/v1/status")["totals"]
            self.assertEqual((totals["sessions_total"], totals["bytes_up"]), (1, 20))

    def test_half_closed_either_way(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, SURVIVE, "--target", upstream.target) as (relay, workers),
            self.session(relay, upstream) as (asking, answering),
            self.session(relay, upstream) as (listening, telling),
        ):
            asking.sendall(b"question")
            asking.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(answering), b"question")
            telling.sendall(b"all")
            telling.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(listening), b"all")
            workers.wait_for_kept(2)
            for pid in workers.pids():
                workers.kill(pid)
            answering.sendall(b"answer")
            answering.close()
            self.assertEqual(read_all(asking), b"answer")
            listening.sendall(b"thanks")
            listening.close()
            self.assertEqual(read_all(telling), b"thanks")

    def test_what_a_slow_reader_has_not_taken_yet_is_not_lost(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, SURVIVE, "--target", upstream.target) as (relay, workers),
            relay.connect(receive_buffer=1 << 14) as client,
            upstream.accept() as server,
        ):
            sent = bytearray(fill(server, 32 * MB))
            workers.wait_for_kept(1)
            for _ in range(2):
                workers.kill(workers.pids()[0])
                sent += fill(server, MB, seed=len(sent))
            server.shutdown(socket.SHUT_WR)
            self.assertTrue(read_all(client) == sent)

    def test_what_happens_while_nobody_relays(self) -> None:
        """Bytes, ends and resets, and then a worker."""
        with (
            Upstream() as upstream,
            relaying_with(1, SURVIVE, "--target", upstream.target) as (relay, workers),
            ExitStack() as opened,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(6)]
            for pair in pairs:
                self.both(pair)
            workers.wait_for_kept(6)
            (pid,) = workers.pids()
            os.kill(pid, signal.SIGSTOP)
            (bytes_, end, client_resets, server_resets, both_end, late) = pairs
            bytes_[0].sendall(b"up")
            bytes_[1].sendall(b"down")
            end[0].sendall(b"last")
            end[0].shutdown(socket.SHUT_WR)
            reset(client_resets[0])
            reset(server_resets[1])
            both_end[0].shutdown(socket.SHUT_WR)
            both_end[1].shutdown(socket.SHUT_WR)
            workers.kill(pid)
            self.assertEqual(read_exactly(bytes_[1], 2), b"up")
            self.assertEqual(read_exactly(bytes_[0], 4), b"down")
            self.assertEqual(read_all(end[1]), b"last")
            end[1].sendall(b"answer")
            end[1].close()
            self.assertEqual(read_all(end[0]), b"answer")
            read_until_reset(client_resets[1])
            read_until_reset(server_resets[0])
            self.assertEqual(read_all(both_end[0]), b"")
            self.assertEqual(read_all(both_end[1]), b"")
            self.both(late)
            reasons = [each["reason"] for each in relay.ended(4)]
            self.assertEqual(sorted(reasons), ["client-reset", "done", "done", "upstream-reset"])

    def test_a_young_session_is_reset_and_not_ended(self) -> None:
        code = self.path("sitecustomize.py")
        code.write_text(_NEVER_OLD.format(root=str(ROOT)))
        environ = {"PYTHONPATH": str(code.parent)}
        with (
            Upstream() as upstream,
            relaying_with(1, SURVIVE, "--target", upstream.target, environ=environ) as (
                relay,
                workers,
            ),
        ):
            (pid,) = workers.pids()
            with self.session(relay, upstream) as (client, server):
                server.sendall(b"a part of it")
                self.assertEqual(read_exactly(client, 12), b"a part of it")
                os.kill(pid, signal.SIGKILL)
                self.assertEqual(read_until_reset(client), b"")
                self.assertEqual(read_until_reset(server), b"")

    def test_unix_sockets(self) -> None:
        listen = f"unix:{self.path('relay')}"
        with (
            Upstream(str(self.path("upstream"))) as upstream,
            relaying_with(
                2, SURVIVE, "--listen", listen, "--target", upstream.target, listen=False
            ) as (relay, workers),
            self.session(relay, upstream) as pair,
        ):
            self.both(pair)
            workers.wait_for_kept(1)
            for pid in workers.pids():
                workers.kill(pid)
            self.both(pair)
            pair[0].close()
            self.assertEqual(read_all(pair[1]), b"")

    def test_one_that_stands_still_is_killed_and_its_sessions_go_on(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, SURVIVE, "--target", upstream.target) as (relay, workers),
            ExitStack() as opened,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(8)]
            workers.wait_for_kept(8)
            pid = workers.pids()[0]
            start = len(relay.lines)
            os.kill(pid, signal.SIGSTOP)
            relay.wait_for(lambda line: f"({pid}) does not answer: killing it" in line, start)
            relay.wait_for(lambda line: "Worker 1 (" in line and "relays" in line, start)
            for pair in pairs:
                self.both(pair)

    def test_where_descriptors_run_out_sessions_are_relayed_all_the_same(self) -> None:
        def few() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))

        with (
            Upstream() as upstream,
            relaying_with(2, SURVIVE, "--target", upstream.target, preexec=few) as (relay, workers),
            ExitStack() as opened,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(100)]
            relay.wait_for(lambda line: "Out of descriptors" in line)
            for pair in pairs:
                self.both(pair)
            metrics = workers.admin.ask("GET", "/metrics").body.decode()
            (refused,) = (
                float(line.split()[1])
                for line in metrics.splitlines()
                if line.startswith("fwdrelay_registrations_refused_total ")
            )
            self.assertGreater(refused, 0)
            kept = sum(each["kept"] for each in workers.sessions())
            self.assertGreater(kept, 0)
            self.assertLess(kept, 100)
            self.assertEqual(sum("Out of descriptors" in line for line in relay.lines), 1)

    def test_five_hundred_transfers(self) -> None:
        """Each worker is killed, then the relay is upgraded: every hash is right, and nobody has reconnected."""
        count, size = 500, MB
        with (
            Upstream() as upstream,
            relaying_with(2, SURVIVE, "--target", upstream.target) as (relay, workers),
            ExitStack() as opened,
            ThreadPoolExecutor(16) as threads,
            # Others, lest those who hear wait for those who say.
            ThreadPoolExecutor(16) as hearing,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(count)]
            # Each has a part of its bytes, and waits with the rest.
            for number, (client, server) in enumerate(pairs):
                client.sendall(b"%3d" % number)
                self.assertEqual(read_exactly(server, 3), b"%3d" % number)
            workers.wait_for_kept(count)
            half = [
                threads.submit(send_and_end if number % 2 else send, pair[0], size, number)
                for number, pair in enumerate(pairs)
            ]
            for pid in workers.pids():
                workers.kill(pid)
            self.assertIn("upgraded", workers.upgrade())
            received = [hearing.submit(receive, server) for _, server in pairs]
            for number, (client, _) in enumerate(pairs):
                if not number % 2:
                    half[number].result()
                    client.shutdown(socket.SHUT_WR)
            for number, each in enumerate(received):
                self.assertEqual(each.result(), digest_of(size, number), number)
            for client, server in pairs:
                server.sendall(b"answer")
                server.close()
                self.assertEqual(read_all(client), b"answer")
            self.assertEqual({each["reason"] for each in relay.ended(count)}, {"done"})


class ProofTests(Scenario, every_pump=False):
    """Under a load of all kinds that checks each byte and each end."""

    def at_rest(self, relay: RelayProcess) -> tuple[int, int]:
        """How many descriptors and pipes all processes have."""
        return sum(relay.family_descriptors().values()), len(relay.family_pipes())

    def killing(self, workers: int, kills: int, seed: int) -> None:
        chance = random.Random(seed)
        with (
            MixedLoad(sessions=40, seconds=SECONDS, seed=seed) as load,
            relaying_with(workers, SURVIVE, "--target", load.target) as (relay, found),
        ):
            wait_until(lambda: len(relay.workers()) == workers + 1)
            descriptors, pipes = self.at_rest(relay)
            memory = relay.family_memory()
            load.start(relay.addresses[0])
            load.wait_until_open(30)
            killed: list[tuple[float, float, set[str]]] = []
            for _ in range(kills):
                load.wait_until_ended(chance.randrange(10))
                found.wait_for_kept(AT_STAKE)
                kept = {each["client"] for each in found.sessions() if each["kept"]}
                before = time.monotonic()
                found.kill(chance.choice(found.pids()))
                killed.append((before, found.killed[-1], kept))
            load.stop()
            # Who was not kept yet when a worker was killed need not survive it.
            failures = [
                str(failure)
                for failure in load.failures
                if not any(
                    failure.begun <= after and failure.at >= before and failure.client not in kept
                    for before, after, kept in killed
                )
            ]
            self.assertEqual(failures, [])
            self.assertGreater(load.counts.total(), kills)
            wait_until(
                lambda: (
                    len(relay.workers()) == workers + 1
                    and self.at_rest(relay)[0] <= descriptors + 16
                    and self.at_rest(relay)[1] <= pipes + 8
                ),
                lambda: f"{self.at_rest(relay)}, and at first {descriptors, pipes}",
            )
            self.assertLess(relay.family_memory() - memory, 64 * MB)

    def test_workers_are_killed_at_any_moment(self) -> None:
        self.killing(2, 15, 1)

    def test_the_only_worker_is_killed_at_any_moment(self) -> None:
        self.killing(1, 8, 2)

    def test_upgrades(self) -> None:
        with (
            MixedLoad(sessions=40, seconds=SECONDS, seed=3) as load,
            relaying_with(2, "--target", load.target) as (relay, workers),
        ):
            wait_until(lambda: len(relay.workers()) == 2)
            descriptors, pipes = self.at_rest(relay)
            load.start(relay.addresses[0])
            load.wait_until_open(30)
            for _ in range(3):
                self.assertIn("upgraded", workers.upgrade())
                load.wait_until_all_moved()
            load.stop()
            # No session notices, however young it is.
            self.assertEqual(list(map(str, load.failures)), [])
            wait_until(
                lambda: (
                    len(relay.workers()) == 2
                    and self.at_rest(relay)[0] <= descriptors + 16
                    and self.at_rest(relay)[1] <= pipes + 8
                ),
                lambda: f"{self.at_rest(relay)}, and at first {descriptors, pipes}",
            )

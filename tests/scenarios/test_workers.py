"""Several processes that relay as one."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tests.scenarios.admin import Admin
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.relay_process import (
    Upstream,
    connect,
    connect_and_be_reset,
    read_all,
    read_exactly,
    read_until_reset,
    wait_until,
)
from tests.scenarios.scenario import MB, Scenario, digest_of, receive, send_and_end
from tests.scenarios.workers import Workers, relaying_with


def is_there(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class WorkersTests(Scenario, every_pump=False):
    def test_sessions_are_spread_over_them(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
            ExitStack() as opened,
        ):
            clients = [opened.enter_context(relay.connect()) for _ in range(40)]
            servers = [opened.enter_context(upstream.accept()) for _ in clients]
            for number, client in enumerate(clients):
                client.sendall(b"%2d" % number)
            numbers = {read_exactly(server, 2) for server in servers}
            self.assertEqual(numbers, {b"%2d" % number for number in range(40)})
            by_worker = {each["worker"] for each in workers.sessions()}
            self.assertEqual(by_worker, {1, 2})
            status = workers.admin.get("/v1/status")
            self.assertEqual(status["totals"]["sessions"], 40)
            self.assertEqual(status["pid"], relay.pid)
            self.assertEqual([row["state"] for row in status["workers"]], ["running", "running"])
            # One is ended wherever it is.
            session = workers.sessions()[7]["session"]
            self.assertEqual(workers.admin.ask("DELETE", f"/v1/sessions/{session}").status, 200)
            wait_until(lambda: len(workers.sessions()) == 39)
            self.assertEqual(workers.admin.ask("DELETE", f"/v1/sessions/{session}").status, 404)
        self.assertEqual(len(relay.ended(40)), 40)

    def test_bytes_arrive_whole_in_both_directions(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, _),
            ExitStack() as opened,
            ThreadPoolExecutor(16) as threads,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(4)]
            for number, (client, server) in enumerate(pairs):
                threads.submit(send_and_end, client, 8 * MB, number)
                threads.submit(send_and_end, server, 4 * MB, 10 + number)
            received = [
                (threads.submit(receive, server), threads.submit(receive, client))
                for client, server in pairs
            ]
            for number, (up, down) in enumerate(received):
                self.assertEqual(up.result(), digest_of(8 * MB, number))
                self.assertEqual(down.result(), digest_of(4 * MB, 10 + number))

    def test_a_dead_worker_is_replaced_and_who_waits_is_served(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
        ):
            before = workers.pids()
            # Nobody accepts, and the sockets have a queue.
            for pid in before:
                os.kill(pid, signal.SIGSTOP)
            clients = [connect(relay.addresses[0]) for _ in range(20)]
            for client in clients:
                client.sendall(b"?")
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            for _ in clients:
                with upstream.accept() as server:
                    self.assertEqual(read_exactly(server, 1), b"?")
                    server.sendall(b"!")
            for client in clients:
                with client:
                    self.assertEqual(read_all(client), b"!")
            wait_until(lambda: len(workers.pids()) == 2)
            self.assertFalse(set(before) & set(workers.pids()))
            self.assertEqual([row["restarts"] for row in workers.rows()], [1, 1])
            metrics = workers.admin.ask("GET", "/metrics").body.decode()
            self.assertIn("fwdrelay_worker_restarts_total 2.0", metrics)

    def test_a_session_of_a_dead_worker_that_was_not_kept_is_reset(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            workers.kill(workers.pids()[0])
            self.assertEqual(read_until_reset(client), b"")
            self.assertEqual(read_until_reset(server), b"")

    def test_stopping_drains_all_of_them(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
            ExitStack() as opened,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(10)]
            relay.signal(signal.SIGTERM)
            wait_until(lambda: workers.admin.ask("GET", "/readyz").status == 503)
            for client, server in pairs:
                client.sendall(b"bye")
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(server), b"bye")
                server.close()
                self.assertEqual(read_all(client), b"")
            self.assertEqual({each["reason"] for each in relay.ended(10)}, {"done"})
            relay.stop()

    def test_one_that_drains_lacks_no_worker(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            relay.signal(signal.SIGTERM)
            wait_until(lambda: len(workers.rows()) == 1)
            self.assertEqual(workers.rows()[0]["state"], "draining")
            self.assertEqual(workers.admin.get("/v1/status")["unwell"], "")
            metrics = workers.admin.ask("GET", "/metrics").body.decode()
            self.assertIn('fwdrelay_workers{state="draining"} 1.0', metrics)
            self.assertIn('fwdrelay_workers{state="ended"} 0.0', metrics)

    def test_a_second_signal_cuts_what_is_open(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, _),
            self.session(relay, upstream) as (client, server),
        ):
            relay.signal(signal.SIGTERM)
            relay.wait_for(lambda line: "Draining 1 session" in line)
            relay.signal(signal.SIGTERM)
            read_until_reset(client)
            read_until_reset(server)
            self.assertEqual(relay.ended()[0]["reason"], "stopped")

    def test_workers_end_when_their_supervisor_is_killed(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            pids = workers.pids()
            address = relay.addresses[0]
            relay.process.kill()
            relay.process.wait()
            # Nobody new is let in, and who is in goes on.
            wait_until(lambda: not is_listened_to(address))
            client.sendall(b"still")
            self.assertEqual(read_exactly(server, 5), b"still")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"")
            server.close()
            self.assertEqual(read_all(client), b"")
            wait_until(lambda: not any(map(is_there, pids)))
            relay.kill()

    def test_signals_to_a_worker_do_nothing(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            (pid,) = workers.pids()
            for number in ("TERM", "INT", "HUP", "USR1", "USR2"):
                os.kill(pid, signal.Signals[f"SIG{number}"])
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            self.assertEqual(workers.pids(), [pid])

    def test_the_others_are_spoken_for_while_one_stands_still(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
        ):
            still = workers.pids()[0]
            os.kill(still, signal.SIGSTOP)
            try:
                self.assertIn(b"sessions_active", workers.admin.ask("GET", "/metrics").body)
                # It was not waited for until it was given up.
                self.assertFalse(any("does not answer" in line for line in relay.lines))
            finally:
                os.kill(still, signal.SIGCONT)

    def test_an_address_that_somebody_has_is_an_error(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target) as (relay, _),
            self.assertRaisesRegex(AssertionError, "cannot listen on .*Address already in use"),
        ):
            port = str(relay.port)
            with relaying_with(2, "--port", port, "--target", upstream.target, listen=False):
                pass

    def test_whatever_signal_kills_it(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target) as (relay, workers),
        ):
            for number, said in ((signal.SIGABRT, "SIGABRT"), (signal.SIGRTMIN + 1, "signal ")):
                os.kill(workers.pids()[0], number)
                relay.wait_for(lambda line, said=said: f"it was killed by {said}" in line)  # type: ignore[misc]
                wait_until(lambda: len(workers.pids()) == 1)

    def test_the_demonstration(self) -> None:
        with relaying_with(2, "--demo") as (relay, _):
            self.assertTrue(any("for pool main: demo" in line for line in relay.lines))
            for _ in range(6):
                with relay.connect() as client:
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    self.assertIn(b"200 OK", read_exactly(client, 20))

    def test_limits_hold_over_all_of_them(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target, "--max-sessions-per-client", "10") as (
                relay,
                workers,
            ),
            ExitStack() as opened,
        ):
            for _ in range(10):
                opened.enter_context(relay.connect())
                opened.enter_context(upstream.accept())
            for _ in range(6):
                relay.turn_away()
            workers.kill(workers.pids()[0])
            # Those of the dead one have their places back.
            left = len(workers.sessions())
            for _ in range(10 - left):
                opened.enter_context(relay.connect())
                opened.enter_context(upstream.accept())
            relay.turn_away()


def is_listened_to(address: tuple[str, int] | str) -> bool:
    """Whether somebody listens there; to try it would be to be let in."""
    port = f":{address[1]:04X} 00000000:0000 0A"
    with open("/proc/net/tcp") as sockets:
        return any(port in line for line in sockets)


_CONFIG = """
[relay]
workers = 2
admin = "127.0.0.1:0"

[[listener]]
name = "one"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "there"

[pool.there]
targets = ["{target}"]
"""
_ANOTHER = """
[[listener]]
name = "two"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "there"
max_sessions = 3
"""


class ReloadTests(Scenario, every_pump=False):
    def test_all_of_them_follow(self) -> None:
        with (
            Upstream() as upstream,
            ConfiguredRelay(
                self.path("relay.toml"), _CONFIG.format(target=upstream.target)
            ) as relay,
        ):
            text = _CONFIG.format(target=upstream.target) + _ANOTHER
            relay.reload(text)
            with ExitStack() as opened:
                for _ in range(3):
                    opened.enter_context(relay.connect_to("two"))
                    opened.enter_context(upstream.accept())
                for _ in range(4):
                    connect_and_be_reset(relay.listener("two"))
            names = {each["name"] for each in Admin.of(relay).get("/v1/status")["listeners"]}
            self.assertEqual(names, {"one", "two"})
            # Who comes later knows of it, too.
            workers = Workers(relay)
            for pid in workers.pids():
                workers.kill(pid)
            with relay.connect_to("two") as another, upstream.accept() as its_server:
                another.sendall(b"x")
                self.assertEqual(read_exactly(its_server, 1), b"x")
            address = relay.listener("two")
            relay.reload(_CONFIG.format(target=upstream.target))
            wait_until(lambda: not is_listened_to(address))

    def test_a_wrong_file_changes_nothing(self) -> None:
        with (
            Upstream() as upstream,
            ConfiguredRelay(
                self.path("relay.toml"), _CONFIG.format(target=upstream.target)
            ) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            for wrong, said in (
                ('balance = "no-such"', "no-such"),
                ("retries = true", "retries"),
                (
                    '[[listener]]\nname = "x"\nlisten = ["tcp:80:interface=192.0.2.1"]\npool = "there"\n',
                    "192.0.2.1",
                ),
            ):
                told = relay.reload(
                    _CONFIG.format(target=upstream.target) + wrong, "Nothing was changed"
                )
                self.assertTrue(any(said in line for line in told), told)
            more = _CONFIG.format(target=upstream.target).replace("workers = 2", "workers = 3")
            told = relay.reload(more, "Nothing was changed")
            self.assertTrue(any("3 takes an upgrade in place" in line for line in told), told)
            nowhere = self.path("no-such-folder") / "access.log"
            more = _CONFIG.format(target=upstream.target).replace(
                "[relay]", f'[relay]\naccess_log = "{nowhere}"'
            )
            told = relay.reload(more, "Nothing was changed")
            self.assertTrue(any("cannot write the access log" in line for line in told), told)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")

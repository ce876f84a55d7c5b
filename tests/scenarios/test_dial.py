"""Opening the upstream connection: what a client sees when it fails, takes long, or isn't needed any more."""

from __future__ import annotations

import os
import socket
import unittest

from tests.scenarios.admin import Admin
from tests.scenarios.programs import free_port
from tests.scenarios.relay_process import (
    RelayProcess,
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
    wait_until,
)
from tests.scenarios.scenario import MB, Scenario, Unanswering, chunks, is_root

UNROUTABLE = "255.255.255.255:9"
"""The kernel has no route for a TCP connection to the broadcast address, on any machine."""


def wait_until_dialing(relay: RelayProcess) -> None:
    """Wait until it holds a client's socket, its upstream's, and the set that watches them."""
    wait_until(lambda: relay.descriptors() >= relay.at_rest + 2)


def refusing() -> str:
    return f"127.0.0.1:{free_port()}"


class DialFailures(Scenario):
    def test_a_refused_dial_resets_the_client_and_says_why(self) -> None:
        target = refusing()
        with self.relaying("--target", target) as relay:
            relay.turn_away()
            self.has_ended(
                relay,
                "dial-failed",
                "SC",
                error="Connection refused",
                target=target,
                retries=0,
                dial_ms=None,
                bytes_up=0,
            )

    def test_an_unroutable_target_is_reported_as_such(self) -> None:
        with self.relaying("--target", UNROUTABLE) as relay:
            relay.turn_away()
            self.has_ended(relay, "dial-failed", "SC", error="Network is unreachable")

    def test_an_upstream_that_silently_drops_times_the_dial_out(self) -> None:
        with (
            Unanswering() as upstream,
            self.relaying("--target", upstream.target, "--connect-timeout", "300ms") as relay,
            relay.connect() as client,
        ):
            client.sendall(b"hello?")
            self.assertEqual(read_until_reset(client), b"")
            self.has_ended(relay, "dial-timeout", "sC", target=upstream.target, bytes_up=0)

    def test_a_name_that_does_not_resolve_is_reported_as_such(self) -> None:
        with self.relaying("--target", "nobody.invalid:80") as relay:
            relay.turn_away()
            self.has_ended(
                relay, "dial-failed", "SC", error="nobody.invalid does not resolve", retries=0
            )

    def test_a_unix_target_that_is_not_there_is_reported_as_such(self) -> None:
        path = self.path("nobody")
        with self.relaying("--target", f"unix:{path}") as relay:
            relay.turn_away()
            self.has_ended(relay, "dial-failed", "SC", error="No such file or directory")

    def test_a_target_at_its_limit_of_sessions_takes_no_more(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", f"{upstream.target},max-sessions=1") as relay,
            self.session(relay, upstream) as (client, server),
        ):
            relay.turn_away()
            self.has_ended(relay, "no-target", "SC", target=None)
            client.sendall(b"first")
            self.assertEqual(read_exactly(server, 5), b"first")
            client.shutdown(socket.SHUT_WR)
            server.shutdown(socket.SHUT_WR)
            relay.ended(2)
            with self.session(relay, upstream) as (third, its_server):
                third.sendall(b"third")
                self.assertEqual(read_exactly(its_server, 5), b"third")

    def test_an_upstream_that_resets_at_once_is_no_trouble(self) -> None:
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            for _ in range(50):
                with relay.connect() as client:
                    reset(upstream.accept())
                    read_until_reset(client)
            self.assertEqual(len(relay.ended(50)), 50)


class NextTarget(Scenario, every_pump=False):
    def test_the_next_target_is_tried_when_one_refuses(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying(
                "--balance", "first", "--target", refusing(), "--target", upstream.target
            ) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"hello")
            server.shutdown(socket.SHUT_WR)
            self.has_ended(relay, "done", "--", target=upstream.target, retries=1)

    def test_the_next_target_is_tried_within_the_connect_time_out_when_one_drops(self) -> None:
        with (
            Unanswering() as silent,
            Upstream() as upstream,
            self.relaying(
                # Of which the second target is left half: more than a slow machine stands still.
                *("--balance", "first", "--connect-timeout", "6s"),
                *("--target", silent.target, "--target", upstream.target),
            ) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"hello")
            server.shutdown(socket.SHUT_WR)
            self.has_ended(relay, "done", "--", target=upstream.target, retries=1)

    def test_no_target_is_tried_twice_for_one_client(self) -> None:
        first, second = refusing(), refusing()
        options = ("--balance", "first", "--target", first, "--target", second)
        with self.relaying(*options) as relay:
            relay.turn_away()
            self.has_ended(relay, "dial-failed", "SC", target=second, retries=1)

    def test_all_targets_that_drop_share_the_connect_time_out(self) -> None:
        with (
            Unanswering() as one,
            Unanswering() as other,
            self.relaying(
                *("--connect-timeout", "600ms", "--target", one.target, "--target", other.target)
            ) as relay,
            relay.connect() as client,
        ):
            self.assertEqual(read_until_reset(client), b"")
            self.has_ended(relay, "dial-timeout", "sC", retries=1)

    def test_a_backup_is_used_only_when_the_others_fail(self) -> None:
        with Upstream() as backup, Upstream() as main:
            options = ("--target", f"{backup.target},backup", "--target", main.target)
            with self.relaying(*options) as relay:
                for number in range(3):
                    with self.session(relay, main):
                        pass
                    relay.ended(number + 1)
                main.socket.close()
                with self.session(relay, backup):
                    pass
                entry = relay.ended(4)[-1]
                self.assertEqual((entry["target"], entry["retries"]), (backup.target, 1))

    def test_targets_take_turns(self) -> None:
        with Upstream() as one, Upstream() as other:
            options = ("--target", one.target, "--target", other.target)
            with self.relaying(*options) as relay:
                for _ in range(5):
                    with self.session(relay, one), self.session(relay, other):
                        pass
                targets = [entry["target"] for entry in relay.ended(10)]
                self.assertEqual(targets.count(one.target), 5)


class ClientsDuringADial(Scenario):
    def test_a_client_that_leaves_cancels_the_dial(self) -> None:
        with (
            Unanswering() as upstream,
            self.relaying("--target", upstream.target, "--connect-timeout", "0") as relay,
        ):
            with relay.connect() as client:
                client.sendall(b"hello?")
                wait_until_dialing(relay)
                reset(client)
            fields = {"bytes_up": 0, "dial_ms": None, "target": upstream.target}
            self.has_ended(relay, "client-left", "CC", **fields)
            relay.wait_for_descriptors(relay.at_rest)

    def test_the_target_that_is_tried_is_told_while_it_is_and_when_that_is_cut_short(self) -> None:
        with (
            Unanswering() as upstream,
            self.relaying(
                *("--target", refusing(), "--target", upstream.target, "--balance", "first"),
                *("--connect-timeout", "0", "--admin", "127.0.0.1:0"),
            ) as relay,
            relay.connect() as client,
        ):
            admin = Admin.of(relay)
            asked = f"/v1/sessions?target={upstream.target}"
            wait_until(lambda: admin.get(asked)["count"] == 1)
            (session,) = admin.get(asked)["sessions"]
            self.assertEqual((session["state"], session["retries"]), ("dialing", 1))
            self.assertEqual(session["target"], upstream.target)
            admin.ask("DELETE", f"/v1/sessions/{session['session']}")
            read_until_reset(client)
            self.has_ended(relay, "killed", "KC", target=upstream.target, retries=1, dial_ms=None)

    def test_a_client_that_half_closes_gets_its_answer(self) -> None:
        with (
            Unanswering() as upstream,
            self.relaying("--target", upstream.target, "--connect-timeout", "0") as relay,
            relay.connect() as client,
        ):
            client.sendall(b"the request")
            client.shutdown(socket.SHUT_WR)
            wait_until_dialing(relay)
            upstream.answer()
            with upstream.accept_real() as server:
                self.assertEqual(read_all(server), b"the request")
                server.sendall(b"the answer")
                server.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(client), b"the answer")
            self.has_ended(relay, "done", "--", bytes_up=11, bytes_down=10)

    def test_what_a_client_sends_meanwhile_arrives_in_full(self) -> None:
        request = b"".join(chunks(MB))
        with (
            Unanswering() as upstream,
            self.relaying("--target", upstream.target, "--connect-timeout", "0") as relay,
            relay.connect() as client,
        ):
            client.sendall(request[:1000])
            wait_until_dialing(relay)
            upstream.answer()
            client.sendall(request[1000:])
            client.shutdown(socket.SHUT_WR)
            with upstream.accept_real() as server:
                self.assertEqual(read_all(server), request)

    def test_one_client_s_dial_does_not_hold_up_another_s(self) -> None:
        with (
            Unanswering() as silent,
            Upstream() as upstream,
            self.relaying(
                *("--target", silent.target, "--target", upstream.target),
                *("--connect-timeout", "0"),
            ) as relay,
            relay.connect() as waiting,
        ):
            wait_until_dialing(relay)
            with self.session(relay, upstream) as (client, server):
                client.sendall(b"hello")
                self.assertEqual(read_exactly(server, 5), b"hello")
                client.shutdown(socket.SHUT_WR)
                server.shutdown(socket.SHUT_WR)
                relay.ended()
            reset(waiting)
            self.assertEqual({e["code"] for e in relay.ended(2)}, {"--", "CC"})


class UnixTargets(Scenario):
    def test_an_abstract_name_is_a_target(self) -> None:
        name = f"fwdrelay-test-{free_port()}"
        with (
            Upstream(f"\0{name}") as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"hello")
            server.close()
            self.has_ended(relay, "done", "--", target=f"unix:@{name}")

    def test_a_unix_target_whose_queue_is_full_is_waited_for(self) -> None:
        """connect(2) says EAGAIN, and nothing tells when there is room again (unix(7))."""
        with (
            Unanswering(str(self.path("up"))) as upstream,
            self.relaying("--target", upstream.target, "--connect-timeout", "0") as relay,
            relay.connect() as client,
        ):
            client.sendall(b"the request")
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: relay.descriptors() > relay.at_rest)
            upstream.answer()
            with upstream.accept_real() as server:
                self.assertEqual(read_all(server), b"the request")
            self.assertEqual(read_all(client), b"")

    def test_a_unix_target_whose_queue_stays_full_times_the_dial_out(self) -> None:
        with (
            Unanswering(str(self.path("up"))) as upstream,
            self.relaying("--target", upstream.target, "--connect-timeout", "1s") as relay,
            relay.connect() as client,
        ):
            before = cpu_seconds(relay)
            self.assertEqual(read_until_reset(client), b"")
            # Trying without a pause would have used all of the second.
            self.assertLess(cpu_seconds(relay) - before, 0.5)
            self.has_ended(relay, "dial-timeout", "sC")


def cpu_seconds(relay: RelayProcess) -> float:
    """The processor time that it has used."""
    with open(f"/proc/{relay.pid}/stat") as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@unittest.skipUnless(is_root(), "needs root, for a mount namespace with an /etc/hosts of its own")
class Names(Scenario, every_pump=False):
    def test_the_addresses_of_a_name_are_raced(self) -> None:
        """One that drops silently costs a moment, not the connect time-out."""
        hosts = self.path("hosts")
        hosts.write_text("127.0.0.1 upstream.test\n127.0.0.2 upstream.test\n")
        port = free_port()
        with Unanswering(port=port), Upstream(host="127.0.0.2", port=port) as upstream:
            own_hosts = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts; exec "$@"')
            with (
                self.relaying(
                    *("--target", f"upstream.test:{port}", "--connect-timeout", "0"),
                    within=(*own_hosts, str(hosts)),
                ) as relay,
                self.session(relay, upstream) as (client, server),
            ):
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(server), b"hello")
                server.shutdown(socket.SHUT_WR)
                self.has_ended(relay, "done", "--", retries=0)

"""Several pools behind one relay: where sessions go, who waits, and what becomes of targets that fail."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.programs import free_port
from tests.scenarios.relay_process import (
    PATIENCE,
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
    wait_until,
)
from tests.scenarios.scenario import MB, Scenario, digest_of, receive, send_and_end

LISTEN = 'listen = ["tcp:0:interface=127.0.0.1"]'


def one_pool(*targets: str, more: str = "") -> str:
    """One listener, one pool; `more` goes into the pool."""
    return (
        f'[[listener]]\nname = "main"\n{LISTEN}\npool = "main"\n'
        f"[pool.main]\ntargets = {list(targets)}\n{more}\n"
    )


def accept_any(upstreams: Sequence[Upstream]) -> tuple[str, socket.socket]:
    """
    @return: which target somebody connected to, and the connection.
    """
    by_socket = {upstream.socket: upstream for upstream in upstreams}
    ready, _, _ = select.select(list(by_socket), [], [], PATIENCE)
    return by_socket[ready[0]].target, by_socket[ready[0]].accept()


class PoolScenario(Scenario, every_pump=False):
    @contextmanager
    def configured(self, text: str) -> Iterator[ConfiguredRelay]:
        """A relay of that configuration, over this pump; no session may be left in it at the end."""
        with ConfiguredRelay(self.path("fwdrelay.toml"), text, "--pump", self.pump) as relay:
            yield relay
            if relay.process.poll() is None:
                relay.wait_for_descriptors(relay.at_rest)

    def is_relayed(self, relay: ConfiguredRelay, upstream: Upstream) -> None:
        """A session to that upstream works from end to end."""
        with relay.connect() as client, upstream.accept() as server:
            client.sendall(b"question")
            self.assertEqual(read_exactly(server, 8), b"question")
            server.sendall(b"answer")
            self.assertEqual(read_exactly(client, 6), b"answer")


class Routes(PoolScenario, every_pump=False):
    def test_the_first_route_that_takes_the_client_decides(self) -> None:
        text = f"""
            [[listener]]
            name = "main"
            {LISTEN}
            pool = "others"
            [[listener.route]]
            client = ["127.0.0.2", "127.0.0.16/28"]
            pool = "first"
            [[listener.route]]
            client = ["127.0.0.0/27"]
            pool = "second"
            [pool.first]
            targets = ["%s"]
            [pool.second]
            targets = ["%s"]
            [pool.others]
            targets = ["%s"]
        """
        with Upstream() as first, Upstream() as second, Upstream() as others:
            targets = (first.target, second.target, others.target)
            with self.configured(text % targets) as relay:
                for host, upstream in (
                    ("127.0.0.2", first),
                    ("127.0.0.3", second),
                    ("127.0.0.17", first),
                    ("127.0.0.99", others),
                ):
                    with relay.connect(source=host), upstream.accept():
                        pass
                pools = {entry["client"].split(":")[0]: entry["pool"] for entry in relay.ended(4)}
                self.assertEqual(
                    pools,
                    {
                        "127.0.0.2": "first",
                        "127.0.0.3": "second",
                        "127.0.0.17": "first",
                        "127.0.0.99": "others",
                    },
                )

    def test_whom_no_route_takes_is_refused_where_there_is_no_pool(self) -> None:
        text = f"""
            [[listener]]
            name = "main"
            {LISTEN}
            [[listener.route]]
            client = ["127.0.0.2"]
            pool = "some"
            [pool.some]
            targets = ["%s"]
        """
        with Upstream() as upstream, self.configured(text % upstream.target) as relay:
            relay.turn_away()
            self.has_ended(relay, "no-route", "PR", pool=None, target=None)
            with relay.connect(source="127.0.0.2"), upstream.accept():
                pass


class Queue(PoolScenario):
    def test_a_session_waits_for_a_place_and_gets_it(self) -> None:
        more = 'max_sessions = 1\nqueue = "30s"'
        with (
            Upstream() as upstream,
            self.configured(one_pool(upstream.target, more=more)) as relay,
            relay.connect() as first,
            upstream.accept() as first_server,
            relay.connect() as second,
        ):
            wait_until(lambda: relay.descriptors() > relay.at_rest + 2)  # it waits
            second.sendall(b"question")
            second.shutdown(socket.SHUT_WR)
            first.close()
            first_server.close()
            with upstream.accept() as server:
                self.assertEqual(read_all(server), b"question")
                server.sendall(b"answer")
            self.assertEqual(read_all(second), b"answer")
            entry = relay.ended(2)[1]
            self.assertEqual((entry["reason"], entry["target"]), ("done", upstream.target))
            self.assertGreater(entry["queue_ms"], 0)
            self.assertNotIn("queue_ms", relay.ended(2)[0])

    def test_who_waits_too_long_is_reset(self) -> None:
        more = 'max_sessions = 1\nqueue = "100ms"'
        with (
            Upstream() as upstream,
            self.configured(one_pool(upstream.target, more=more)) as relay,
            relay.connect(),
            upstream.accept(),
        ):
            relay.turn_away()
            self.has_ended(relay, "queue-timeout", "sQ", target=None)

    def test_who_leaves_while_waiting_leaves_nothing(self) -> None:
        more = 'queue = "30s"'
        with (
            Upstream() as upstream,
            self.configured(one_pool(f"{upstream.target},max-sessions=1", more=more)) as relay,
            relay.connect(),
            upstream.accept(),
        ):
            reset(relay.connect())
            self.has_ended(relay, "client-left", "CQ")

    def test_no_more_wait_than_may(self) -> None:
        more = 'max_sessions = 1\nqueue = "30s"\nmax_queued = 1'
        with (
            Upstream() as upstream,
            self.configured(one_pool(upstream.target, more=more)) as relay,
            relay.connect(),
            upstream.accept(),
        ):
            waiting = relay.connect()
            relay.turn_away()
            self.has_ended(relay, "queue-full", "PQ")
            reset(waiting)

    def test_many_at_once_get_one_place_after_the_other(self) -> None:
        count = 40
        most = 3
        more = f'max_sessions = {most}\nqueue = "30s"'
        with (
            Upstream() as upstream,
            self.configured(one_pool(upstream.target, more=more)) as relay,
        ):
            served = threading.Thread(target=self.serve, args=(upstream, count, most))
            served.start()
            clients = [relay.connect() for _ in range(count)]
            for client in clients:
                client.sendall(b"?")
            for client in clients:
                with client:
                    self.assertEqual(read_exactly(client, 1), b"!")
                    client.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(client), b"")
            served.join()
            self.assertEqual({entry["reason"] for entry in relay.ended(count)}, {"done"})

    def serve(self, upstream: Upstream, count: int, most: int) -> None:
        """Answer each session, with never more than `most` of them open."""
        open_ = 0
        lock = threading.Lock()

        def answer(server: socket.socket) -> None:
            nonlocal open_
            with server:
                server.sendall(read_exactly(server, 1).replace(b"?", b"!"))
                self.assertEqual(read_all(server), b"")
                with lock:
                    open_ -= 1

        answering = []
        for _ in range(count):
            server = upstream.accept()
            with lock:
                open_ += 1
                self.assertLessEqual(open_, most)
            answering.append(threading.Thread(target=answer, args=(server,)))
            answering[-1].start()
        for each in answering:
            each.join()


class Health(PoolScenario, every_pump=False):
    # No check is late: it is answered, or refused, by the kernel.
    CHECKED = (
        '[pool.main.health]\ncheck = "tcp"\ninterval = "50ms"\ntimeout = "1h"\nrise = 1\nfall = 1\n'
    )

    def test_a_target_that_goes_down_and_comes_back(self) -> None:
        port = free_port()
        target = f"127.0.0.1:{port}"
        with (
            Upstream() as other,
            self.configured(one_pool(target, f"{other.target},backup", more=self.CHECKED)) as relay,
        ):
            relay.wait_for_line(f"Target {target} of pool main is down: ", "Targets up: 1 of 2")
            self.is_relayed_past_checks(relay, other)
            with Answering(port):
                relay.wait_for_line(f"Target {target} of pool main is up: ")
                with relay.connect() as client:
                    client.sendall(b"x")
                    self.assertEqual(read_exactly(client, 1), b"x")
            relay.wait_for(
                lambda line: f"Target {target} of pool main is down: " in line,
                next(n for n, line in enumerate(relay.lines) if "is up: " in line),
            )
            self.is_relayed_past_checks(relay, other)
            retries = {entry["target"]: entry["retries"] for entry in relay.ended(3)}
            self.assertEqual(retries, {target: 0, other.target: 0})

    def is_relayed_past_checks(self, relay: ConfiguredRelay, upstream: Upstream) -> None:
        """As `is_relayed`, where checks connect to the upstream too."""
        with relay.connect() as client:
            client.sendall(b"question")
            while True:
                with upstream.accept() as server:
                    if not server.recv(1):
                        continue
                    server.sendall(b"answer")
                    self.assertEqual(read_exactly(client, 6), b"answer")
                    return

    def test_sessions_on_a_target_that_goes_down_are_closed_if_that_is_wanted(self) -> None:
        with Upstream() as upstream:
            more = f'on_target_down = "close"\n{self.CHECKED}'
            with (
                self.configured(one_pool(upstream.target, more=more)) as relay,
                relay.connect() as client,
            ):
                client.sendall(b"x")
                server = upstream.accept()
                while not server.recv(1):
                    server.close()
                    server = upstream.accept()
                with server:
                    upstream.socket.close()
                    read_until_reset(client)
                    read_until_reset(server)
                self.has_ended(relay, "target-down", "DD", target=upstream.target)

    def test_failed_dials_mark_a_target_down(self) -> None:
        port = free_port()
        target = f"127.0.0.1:{port}"
        more = '[pool.main.health]\npassive_failures = 2\ninterval = "50ms"\nrise = 1'
        with (
            Upstream() as other,
            self.configured(one_pool(target, other.target, more=more)) as relay,
        ):
            while not any("is down" in line for line in relay.lines):
                self.is_relayed(relay, other)
            relay.wait_for_line(f"Target {target} of pool main is down: ")
            with Answering(port):
                relay.wait_for_line(f"Target {target} of pool main is up: ")

    def test_where_all_are_down_clients_are_refused_or_not(self) -> None:
        target = f"127.0.0.1:{free_port()}"
        for policy, reason in (("refuse", "no-target"), ("try", "dial-failed")):
            more = f'{self.CHECKED}when_all_down = "{policy}"'
            with self.configured(one_pool(target, more=more)) as relay:
                relay.wait_for_line("is down", "Targets up: 0 of 1")
                relay.turn_away()
                self.has_ended(relay, reason, "SC")


class Answering:
    """A server that sends back what it gets, until the end of a `with` block."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._serve)
        self._answering: list[threading.Thread] = []

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.socket.close()
        for each in self._answering:
            each.join()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self.socket.accept()
            except OSError:
                return
            self._answering.append(threading.Thread(target=self._answer, args=(accepted,)))
            self._answering[-1].start()

    def _answer(self, accepted: socket.socket) -> None:
        with accepted:
            while data := accepted.recv(65536):
                accepted.sendall(data)


class Dials(PoolScenario):
    def test_they_come_from_the_address_that_the_pool_is_bound_to(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(one_pool(upstream.target, more='bind = "127.0.0.5"')) as relay,
            relay.connect(),
            upstream.accept() as server,
        ):
            self.assertEqual(server.getpeername()[0], "127.0.0.5")

    def test_a_proxy_header_goes_first(self) -> None:
        for version in ("v1", "v2"):
            with (
                Upstream() as upstream,
                self.configured(
                    one_pool(upstream.target, more=f'send_proxy = "{version}"')
                ) as relay,
                relay.connect() as client,
                upstream.accept() as server,
            ):
                expected = self.header(version, client)
                self.assertEqual(read_exactly(server, len(expected)), expected)
                sending = threading.Thread(target=send_and_end, args=(client, 4 * MB))
                sending.start()
                self.assertEqual(receive(server), digest_of(4 * MB))
                sending.join()
                server.close()
                self.assertEqual(read_all(client), b"")
                self.has_ended(relay, "done", "--", bytes_up=4 * MB, bytes_down=0)

    def header(self, version: str, client: socket.socket) -> bytes:
        """By the specification, byte for byte."""
        host, port = client.getsockname()
        to_host, to_port = client.getpeername()
        ports: bytes = struct.pack(">HH", port, to_port)
        if version == "v1":
            return f"PROXY TCP4 {host} {to_host} {port} {to_port}\r\n".encode()
        return (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c"
            + socket.inet_aton(host)
            + socket.inet_aton(to_host)
            + ports
        )

    def test_relays_that_share_nothing_send_a_client_to_the_same_target(self) -> None:
        with Upstream() as one, Upstream() as two, Upstream() as three:
            upstreams = (one, two, three)
            targets = [upstream.target for upstream in upstreams]
            more = 'balance = "source-hash"'
            with (
                self.configured(one_pool(*targets, more=more)) as relay,
                self.configured(one_pool(*reversed(targets), more=more)) as other,
            ):
                elected: list[list[str]] = []
                for each in (relay, other):
                    elected.append([])
                    # So many that no target is left out by chance: ports are other ones each time.
                    for host in range(2, 102):
                        with each.connect(source=f"127.0.0.{host}"):
                            target, server = accept_any(upstreams)
                            server.close()
                            elected[-1].append(target)
                self.assertEqual(elected[0], elected[1])
                self.assertEqual(set(elected[0]), set(targets))

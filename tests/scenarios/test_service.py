"""
A whole service: three listeners, four pools of every kind, under load, while its targets are killed and come
back and its configuration changes. No request fails that had a healthy target.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import json
import random
import select
import socket
import struct
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tests.case import SynchronousTestCase
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.dns_server import DnsServer, dns_server
from tests.scenarios.programs import folder, free_port
from tests.scenarios.relay_process import PATIENCE, connect

ROUNDS = 5
CLIENTS = 4
POOLS = ("static", "dns", "srv", "file")

CONFIGURATION = """
[relay]
nameservers = ["{nameserver}"]

[[listener]]
name = "static"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "static"
# Clients of 127.0.0.2 go to the pool that is found in a file.
[[listener.route]]
client = ["127.0.0.2"]
pool = "file"

[[listener]]
name = "dns"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "dns"

[[listener]]
name = "srv"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "srv"
timeouts = {{ connect = "{connect}s" }}

[pool.static]
targets = [{static}]
balance = "{balance}"
{health}

[pool.dns]
discover = "dns:web.test:{dns_port}"
{health}

[pool.srv]
discover = "srv:_web._tcp.test"
balance = "least-sessions"
{health}

[pool.file]
discover = "file:targets.json"
balance = "source-hash"
max_sessions = 3
queue = "30s"
{health}
"""
HEALTH = (
    '[pool.{pool}.health]\ncheck = "http"\npath = "/"\ninterval = "100ms"\nrise = 1\nfall = 1\n'
)


# A filter (see socket(7)) that lets no packet in: SYNs are dropped.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_INSTRUCTION = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_NOBODY = struct.pack("HL", 1, ctypes.addressof(_INSTRUCTION))


class Server(http.server.ThreadingHTTPServer):
    """A web server that is killed and comes back on its port; it answers with its address."""

    daemon_threads = False
    request_queue_size = 1024

    def __init__(self, host: str, port: int) -> None:
        self.answers = f"{host}:{port}"
        super().__init__((host, port), Answer)
        self._serving = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._serving.start()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept. What began while the queue was closed has inherited the filter, and would hear nothing."""
        accepted, address = super().get_request()
        with contextlib.suppress(FileNotFoundError):
            accepted.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        return accepted, address

    def kill(self) -> None:
        """
        Answer who is connected, and nobody any more. Who waited in the queue of a socket that is closed would be
        reset, having had a target that was healthy: so the queue is closed first, and emptied.
        """
        self.shutdown()
        self._serving.join()
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _NOBODY)
        while select.select([self.socket], [], [], 0)[0]:
            self.handle_request()
        self.server_close()


class Answer(http.server.BaseHTTPRequestHandler):
    server: Any
    timeout = PATIENCE

    def do_GET(self) -> None:
        answer = self.server.answers.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


class Service(SynchronousTestCase):
    """
    Each pool has two servers, of which one at a time is killed.

    @ivar servers: of each pool; None: killed.
    """

    def setUp(self) -> None:
        dns_port = free_port()
        # Names have addresses, not ports: the servers of `dns` share one.
        self.addresses = {
            pool: [("127.0.0.1", free_port()), ("127.0.0.1", free_port())] for pool in POOLS
        }
        self.addresses["dns"] = [("127.0.0.1", dns_port), ("127.0.0.3", dns_port)]
        self.servers: dict[tuple[str, int], Server] = {}
        for addresses in self.addresses.values():
            for address in addresses:
                self.servers[address] = Server(*address)
        self.addCleanup(self.kill_all)
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self.over = threading.Event()

    def kill_all(self) -> None:
        for server in self.servers.values():
            server.kill()

    def configuration(self, turn: int, dns: DnsServer) -> str:
        """Another one for each turn, and never without the healthy targets."""
        static = [f'"{host}:{port}"' for host, port in self.addresses["static"]]
        return CONFIGURATION.format(
            nameserver=dns.address,
            dns_port=self.addresses["dns"][0][1],
            static=", ".join(reversed(static) if turn % 2 else static),
            balance=("round-robin", "random-two", "first")[turn % 3],
            connect=5 + turn,
            health="",
        ) + "".join(HEALTH.format(pool=pool) for pool in POOLS)

    def records(self, order: int) -> str:
        """What the name server says: both servers of `dns` and `srv`, in an order that changes."""
        lines = [f"web 1 A {host}" for host, _ in self.addresses["dns"]]
        lines += [
            f"_web._tcp 1 SRV 0 {5 * (index + order % 2)} {port} host{index}\nhost{index} 1 A {host}"
            for index, (host, port) in enumerate(self.addresses["srv"])
        ]
        return "\n".join(lines)

    def write_targets(self, place: Path, order: int) -> None:
        """The file that is watched, put in the place of the old one."""
        specs = [f"{host}:{port}" for host, port in self.addresses["file"]]
        new = place / "targets.new"
        new.write_text(json.dumps(specs[:: -1 if order % 2 else 1]))
        new.replace(place / "targets.json")

    def ask(self, pool: str, address: tuple[str, int], source: str) -> None:
        """Be a client that asks, again and again, each time by a new connection."""
        while not self.over.is_set():
            try:
                with connect(address, source=source) as sock:
                    sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    answer = b""
                    while data := sock.recv(4096):
                        answer += data
            except OSError as error:
                self.failed.append(f"{pool}: {error}")
                continue
            server = answer.rpartition(b"\r\n\r\n")[2].decode()
            if server in {f"{host}:{port}" for host, port in self.addresses[pool]}:
                self.answered[server] += 1
            else:
                self.failed.append(f"{pool}: answered {answer!r}")

    def test_no_request_fails_that_had_a_healthy_target(self) -> None:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(folder())
            dns = stack.enter_context(dns_server(self.records(0)))
            self.write_targets(place, 0)
            text = self.configuration(0, dns)
            relay = stack.enter_context(ConfiguredRelay(place / "fwdrelay.toml", text))
            for pool in ("dns", "srv", "file"):
                relay.wait_for_line(f"Pool {pool}: ", "has 2 targets")
            clients = [
                threading.Thread(target=self.ask, args=(pool, relay.listener(listener), source))
                for pool, listener, source in (
                    ("static", "static", "127.0.0.1"),
                    ("dns", "dns", "127.0.0.1"),
                    ("srv", "srv", "127.0.0.1"),
                    ("file", "static", "127.0.0.2"),
                )
                for _ in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            for client in clients:
                stack.callback(client.join)
            stack.callback(self.over.set)
            for turn in range(1, ROUNDS + 1):
                self.one_round(turn, relay, dns, place)
            self.over.set()
            for client in clients:
                client.join()
            self.assertEqual(self.failed, [])
            for addresses in self.addresses.values():
                for host, port in addresses:
                    self.assertGreater(self.answered[f"{host}:{port}"], 0)
            relay.wait_for_descriptors(relay.at_rest + 8)

    def one_round(self, turn: int, relay: ConfiguredRelay, dns: DnsServer, place: Path) -> None:
        """Kill one server of each pool, change everything, and let the servers come back."""
        chance = random.Random(turn)
        killed = {pool: chance.choice(addresses) for pool, addresses in self.addresses.items()}
        start = len(relay.lines)
        for address in killed.values():
            self.servers.pop(address).kill()
        dns.serve(self.records(turn))
        self.write_targets(place, turn)
        relay.reload(self.configuration(turn, dns))
        for pool, address in killed.items():
            relay.wait_for_line(f"of pool {pool} is down: ", start=start)
            self.servers[address] = Server(*address)
        for pool in killed:
            relay.wait_for_line(f"of pool {pool} is up: ", "Targets up: 2 of 2", start=start)

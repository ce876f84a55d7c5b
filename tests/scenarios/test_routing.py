"""
Routes by what a ClientHello says: where sessions go, and that nobody's bytes are touched on the way there.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.pki import Authority
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.fronts import (
    NEVER,
    SOON,
    FrontScenario,
    SecureClient,
    Send,
    at_once,
    in_bytes,
    in_records,
    listener,
    make_hello,
    make_hello_of_tls_1_2,
    pools,
    with_extension,
)
from tests.scenarios.programs import folder, free_port, run, running, skip_unless_installed
from tests.scenarios.relay_process import (
    Upstream,
    connect,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
    wait_until,
)
from tests.scenarios.scenario import MB

SERVER_NAME, PADDING, ECH, GREASE = 0, 21, 0xFE0D, 0x0A0A
SSL_REQUEST = struct.pack("!II", 8, 80877103)
"""PostgreSQL's clients send it and wait for an answer before they begin TLS."""
BULK = os.urandom(3 * MB)


def route(pool: str, **conditions: list[str]) -> str:
    """
    @param conditions: `sni`, `alpn`, `client`.
    """
    lines = "\n".join(f"{key} = {value}" for key, value in conditions.items())
    return f'[[listener.route]]\n{lines}\npool = "{pool}"\n'


def front(*routes: str, peek: str = NEVER, pool: str = "web", more: str = "") -> str:
    """A listener with these routes."""
    return listener(
        "front", f'timeouts = {{ peek = "{peek}" }}\n{more}\n{"".join(routes)}', pool=pool
    )


class RoutingScenario(FrontScenario, every_pump=False):
    @contextmanager
    def routed(
        self, text: str, *names: str
    ) -> Iterator[tuple[ConfiguredRelay, dict[str, Upstream]]]:
        """
        @param names: of the pools.
        @return: (for a `with` block) a relay with that listener, and an upstream in each of the pools.
        """
        with ExitStack() as ends:
            upstreams = {name: ends.enter_context(Upstream()) for name in names}
            relay = ends.enter_context(self.configured(text, pools(upstreams)))
            yield relay, upstreams

    def assert_passed_on(
        self, client: socket.socket, upstream: Upstream, data: bytes, send: Send = at_once
    ) -> None:
        """The client sends that, and it goes there as it is; the client ends, and gets an answer."""
        sending = threading.Thread(target=send, args=(client, data))
        sending.start()
        with upstream.accept() as server:
            self.assertTrue(read_exactly(server, len(data)) == data, "something was touched")
            sending.join()
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"")
            server.sendall(b"answer")
        self.assertEqual(read_all(client), b"answer")


class Hellos(RoutingScenario):
    def test_a_hello_is_understood_however_it_comes(self) -> None:
        hello = make_hello("a.example", ["h2"])
        self.assertGreater(len(hello), 1460)  # it has keys for after the quantum computer
        outer = b"\0\0\x01\0\x01\x07\0\x20" + bytes(32) + b"\0\x90" + bytes(144)
        hellos = (
            (hello, at_once),
            (hello, in_bytes),
            (in_records(hello[5:], 1), in_bytes),
            (in_records(hello[5:], 100), at_once),
            (make_hello_of_tls_1_2("a.example"), in_bytes),
            (with_extension(with_extension(hello, GREASE, b""), 0xFAFA, b"\0"), at_once),
            (with_extension(hello, ECH, outer), at_once),
            (with_extension(hello, PADDING, bytes(14000)), in_bytes),
            (hello + b"\x17\x03\x03\x00\x10" + bytes(16), at_once),
            (hello + BULK, at_once),
        )
        with self.routed(front(route("a", sni=["a.example"])), "a", "web") as (relay, to):
            for count, (data, way) in enumerate(hellos, 1):
                with relay.connect_to("front") as client:
                    self.assert_passed_on(client, to["a"], data, way)
                self.assert_ended(relay, count, "done", "--", sni="a.example", bytes_up=len(data))
            self.assert_nobody_came(to["web"])

    def test_what_is_no_hello_goes_the_default_way_at_once(self) -> None:
        hello = make_hello("a.example")
        others = (
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            b"SSH-2.0-client\r\n",
            SSL_REQUEST,
            b"\x15\x03\x01\0\x02\x02\x28",
            b"\x80\x2e\x01\x03\x01" + bytes(43),  # SSL 2
            with_extension(hello, SERVER_NAME, b"\0\x0c\0\0\x09b.example"),  # a second one
            hello[:5] + b"\x02" + hello[6:],
            with_extension(hello, GREASE, bytes(17000)) + BULK,  # more than is looked at
            b"\x16" + BULK,
        )
        with self.routed(front(route("a", sni=["a.example"])), "a", "web") as (relay, to):
            for count, data in enumerate(others, 1):
                with relay.connect_to("front") as client:
                    self.assert_passed_on(client, to["web"], data)
                self.assert_ended(relay, count, "done", "--", sni=None, bytes_up=len(data))
            self.assert_nobody_came(to["a"])

    def test_a_hello_that_breaks_off_goes_the_default_way(self) -> None:
        hello = make_hello("a.example")
        with self.routed(front(route("a", sni=["a.example"])), "a", "web") as (relay, to):
            for count, data in enumerate((b"", hello[:1], hello[:700], hello[:-1]), 1):
                with relay.connect_to("front") as client:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    with to["web"].accept() as server:
                        self.assertEqual(read_all(server), data)
                        server.sendall(b"answer")
                    self.assertEqual(read_all(client), b"answer")
                self.assert_ended(relay, count, "done", "--", sni=None, bytes_up=len(data))
            self.assert_nobody_came(to["a"])

    def test_who_says_nothing_or_not_enough_hears_the_default_server(self) -> None:
        """With the bytes that there are, and those that come later."""
        hello = make_hello("a.example")
        text = front(route("a", sni=["a.example"]), peek=SOON)
        with self.routed(text, "a", "web") as (relay, to):
            for count, data in enumerate((b"", hello[:3], hello[:-1]), 1):
                with relay.connect_to("front") as client:
                    client.sendall(data)
                    with to["web"].accept() as server:
                        server.sendall(b"220 hello")
                        self.assertEqual(read_exactly(client, 9), b"220 hello")
                        client.sendall(hello[len(data) :])
                        client.shutdown(socket.SHUT_WR)
                        self.assertEqual(read_all(server), hello)
                self.assert_ended(relay, count, "done", "--", sni=None, bytes_up=len(hello))
            self.assert_nobody_came(to["a"])

    def test_who_leaves_in_the_middle_of_a_hello_is_no_session(self) -> None:
        text = front(route("a", sni=["a.example"]))
        with self.routed(text, "a", "web") as (relay, to):
            for count, data in enumerate((b"", make_hello("a.example")[:99]), 1):
                relay.wait_for_descriptors(relay.at_rest)
                with relay.connect_to("front") as client:
                    client.sendall(data)
                    wait_until(lambda: relay.descriptors() > relay.at_rest)  # accepted
                    reset(client)
                self.assert_ended(relay, count, "client-left", "CR", bytes_up=0, pool=None)
            self.assert_nobody_came(*to.values())

    def test_a_header_stands_before_the_hello_and_is_not_passed_on(self) -> None:
        hello = make_hello("a.example")
        text = front(
            route("a", sni=["a.example"], client=["192.0.2.0/24"]),
            more='proxy_protocol = { accept = "required" }',
        )
        cases = (
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 443\r\n", at_once, "a"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 443\r\n", in_bytes, "a"),
            (b"PROXY TCP4 198.51.100.1 192.0.2.2 1111 443\r\n", at_once, "web"),
        )
        with self.routed(text, "a", "web") as (relay, to):
            for count, (header, way, pool) in enumerate(cases, 1):
                with relay.connect_to("front") as client:
                    way(client, header + hello)
                    self.assert_passed_on(client, to[pool], hello, lambda sock, data: None)
                told = self.assert_ended(relay, count, "done", "--", sni="a.example", pool=pool)
                self.assertEqual(told["client"], header.split()[2].decode() + ":1111")


class Routes(RoutingScenario, every_pump=False):
    def test_the_first_route_whose_conditions_all_hold_decides(self) -> None:
        text = front(
            route("first", sni=["exact.example", "*.wild.example"]),
            route("both", sni=["both.example"], alpn=["h2", "h3"]),
            route("acme", alpn=["acme-tls/1"]),
            route("near", sni=["near.example"], client=["127.0.0.2"]),
            route("any", sni=["*.example", "exact.example"]),
        )
        cases: tuple[tuple[str | None, tuple[str, ...], str, str], ...] = (
            ("exact.example", (), "127.0.0.1", "first"),
            ("EXACT.Example", ("h2",), "127.0.0.1", "first"),
            ("a.wild.example", (), "127.0.0.1", "first"),
            ("wild.example", (), "127.0.0.1", "any"),
            ("a.b.wild.example", (), "127.0.0.1", "web"),
            ("both.example", ("http/1.1", "h2"), "127.0.0.1", "both"),
            ("both.example", ("http/1.1",), "127.0.0.1", "any"),
            ("other.test", ("acme-tls/1",), "127.0.0.1", "acme"),
            (None, ("acme-tls/1",), "127.0.0.1", "acme"),
            ("near.example", (), "127.0.0.2", "near"),
            ("near.example", (), "127.0.0.1", "any"),
            ("example", (), "127.0.0.1", "web"),
            (None, ("h2",), "127.0.0.2", "web"),
        )
        with self.routed(text, "first", "both", "acme", "near", "any", "web") as (relay, to):
            for count, (name, alpn, source, pool) in enumerate(cases, 1):
                hello = make_hello(name, alpn)
                with connect(relay.listener("front"), source=source) as client:
                    self.assert_passed_on(client, to[pool], hello)
                self.assert_ended(
                    relay,
                    count,
                    "done",
                    "--",
                    pool=pool,
                    sni=None if name is None else name.lower(),
                    alpn=",".join(alpn) or None,
                    tls=None,
                )

    def test_what_no_route_takes_is_refused_where_there_is_no_default(self) -> None:
        only = route("a", sni=["a.example"])
        hasty = listener("hasty", f'timeouts = {{ peek = "{SOON}" }}\n{only}', pool="")
        with self.routed(front(only, pool="") + hasty, "a") as (relay, to):
            with relay.connect_to("front") as client:
                self.assert_passed_on(client, to["a"], make_hello("a.example"))
            self.assert_ended(relay, 1, "done", "--", pool="a")
            for name, data, sni in (
                ("front", make_hello("b.example"), "b.example"),
                ("front", make_hello(), None),
                ("front", b"x", None),
                ("hasty", b"", None),
            ):
                told = self.refused(relay, name, data)
                self.assertEqual(
                    [told[key] for key in ("reason", "code", "pool")], ["no-route", "PR", None]
                )
                self.assertEqual(told.get("sni"), sni)
            self.assert_nobody_came(to["a"])

    def refused(self, relay: ConfiguredRelay, name: str, data: bytes) -> dict[str, Any]:
        """
        Be refused until that is told of: of this reason one is named in a second.

        @return: what is told.
        """
        clients: set[str] = set()
        told: list[dict[str, Any]] = []

        def is_told() -> bool:
            with relay.connect_to(name) as client:
                clients.add("{}:{}".format(*client.getsockname()))
                client.sendall(data)
                self.assertEqual(read_until_reset(client), b"")
            ended = [json.loads(line) for line in relay.lines if line.startswith("{")]
            told.extend(entry for entry in ended if entry["client"] in clients)
            return bool(told)

        wait_until(is_told)
        return told[0]

    def test_a_reload_changes_routes_for_those_who_come(self) -> None:
        before = front(route("a", sni=["a.example"]), route("b", sni=["*.example"]))
        after = front(route("b", sni=["a.example"]), route("a", alpn=["h2"]))
        with self.routed(before, "a", "b", "web") as (relay, to):
            with relay.connect_to("front") as old:
                hello = make_hello("a.example", ["h2"])
                old.sendall(hello)
                with to["a"].accept() as server:
                    relay.reload(after + pools(to))
                    for name, alpn, pool in (
                        ("a.example", ["h2"], "b"),
                        ("b.example", ["h2"], "a"),
                        ("b.example", [], "web"),
                    ):
                        with relay.connect_to("front") as client:
                            self.assert_passed_on(client, to[pool], make_hello(name, alpn))
                    self.assertEqual(read_exactly(server, len(hello)), hello)
                    self.answer(old, server)
            # Where no route asks for one, no hello is waited for.
            relay.reload(front() + pools(to))
            with relay.connect_to("front") as client, to["web"].accept() as server:
                self.answer(client, server)

    def test_where_tls_is_terminated_the_name_and_what_was_agreed_on_decide(self) -> None:
        place = self.folder()
        authority = Authority()
        certificate, key = authority.vouch(dns=["a.example", "b.example"]).write(place, "web")
        trust = authority.write(place)
        text = front(
            route("a", sni=["a.example"]),
            route("two", alpn=["h2"]),
            more=f'tls = {{ certificate = "{certificate}", key = "{key}", alpn = ["h2", "http/1.1"] }}',
        )
        cases: tuple[tuple[str, list[str], str | None, str], ...] = (
            ("a.example", ["h2"], "h2", "a"),
            ("b.example", ["http/1.1", "h2"], "h2", "two"),
            ("b.example", ["http/1.1"], "http/1.1", "web"),
            ("b.example", [], None, "web"),
        )
        with self.routed(text, "a", "two", "web") as (relay, to):
            for count, (name, offered, agreed, pool) in enumerate(cases, 1):
                context = ssl.create_default_context(cafile=trust)
                if offered:
                    context.set_alpn_protocols(offered)
                with relay.connect_to("front") as client:
                    secure = SecureClient(client, context, name)
                    self.assertEqual(secure.tls.selected_alpn_protocol(), agreed)
                    with to[pool].accept() as server:
                        secure.write(b"question")
                        self.assertEqual(read_exactly(server, 8), b"question")
                        server.sendall(b"answer")
                        self.assertEqual(secure.read(6), b"answer")
                    reset(client)
                told = relay.ended(count)[-1]
                self.assertEqual(
                    (told["sni"], told.get("alpn"), told["tls"], told["pool"]),
                    (name, agreed, "TLSv1.3", pool),
                )


_NGINX = """
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events {{ }}
http {{
    access_log off;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    default_type text/plain;
    {servers}
}}
"""
_SERVER = """
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {name}.pem;
        ssl_certificate_key {name}.key;
        return 200 "{name} asked for $ssl_server_name";
    }}
"""


@contextmanager
def nginx(place: Path, authority: Authority, *names: str) -> Iterator[dict[str, int]]:
    """An nginx with a TLS server for each of these names, with its own certificate; the block gets their ports."""
    ports = {name: free_port() for name in names}
    for name in names:
        authority.vouch(name, dns=[name]).write(place, name)
    servers = "".join(_SERVER.format(name=name, port=port) for name, port in ports.items())
    user = "user root;" if os.geteuid() == 0 else ""
    (place / "nginx.conf").write_text(_NGINX.format(user=user, servers=servers))
    command = ("nginx", "-p", str(place), "-c", "nginx.conf", "-e", "stderr")
    with running(*command, ready="start worker process "):
        yield ports


class Programs(FrontScenario, every_pump=False):
    def test_each_client_sees_the_certificate_of_whom_it_asked_for(self) -> None:
        """The relay has no key, and opens nothing."""
        skip_unless_installed("nginx", "curl", "openssl")
        authority = Authority()
        with folder() as place, nginx(place, authority, "a.example", "b.example") as ports:
            trust = authority.write(place)
            text = front(route("a", sni=["a.example"]), route("b", sni=["b.example"]), pool="")
            with self.configured(
                text, pools({"a": ports["a.example"], "b": ports["b.example"]})
            ) as relay:
                port = relay.port
                for count, name in enumerate(ports, 1):
                    printed = run(
                        *("curl", "--silent", "--show-error", "--fail", "--cacert", trust),
                        *("--resolve", f"{name}:{port}:127.0.0.1", f"https://{name}:{port}/"),
                    )
                    self.assertEqual(printed, f"{name} asked for {name}")
                    self.assertEqual(relay.ended(count)[-1]["alpn"], "h2,http/1.1")
                for count, name in enumerate(ports, 3):
                    printed = run(
                        *("openssl", "s_client", "-connect", f"127.0.0.1:{port}"),
                        *("-servername", name, "-verify_hostname", name),
                        *("-CAfile", trust, "-verify_return_error"),
                    )
                    self.assertIn("Verification: OK", printed)
                    self.assertIn(f"CN = {name}", printed)
                    self.assertEqual(relay.ended(count)[-1]["sni"], name)

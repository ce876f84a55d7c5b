"""The headers of the PROXY protocol that fwdrelay sends, as real servers understand them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from fwdrelay.wire.proxyprotocol import Version, header, local_header
from tests.case import SynchronousTestCase
from tests.scenarios.programs import folder, free_port, running, skip_unless_installed
from tests.scenarios.relay_process import PATIENCE, read_all, wait_until

_HAPROXY = """
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 60s
frontend headers
    bind 127.0.0.1:{port} accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port]"
"""

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
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        default_type text/plain;
        return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
    }}
}}
"""


@contextmanager
def haproxy(place: Path) -> Iterator[int]:
    """An HAProxy that answers each request with the addresses of its header; the block gets its port."""
    port = free_port()
    (place / "haproxy.cfg").write_text(_HAPROXY.format(port=port))
    command = ("haproxy", "-db", "-f", str(place / "haproxy.cfg"))
    # It prints nothing when it is ready.
    with running(*command, ready="", end=signal.SIGUSR1):
        wait_until(lambda: is_listening(port))
        yield port


def is_listening(port: int) -> bool:
    """Whether connections to that port are accepted."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def nginx(place: Path) -> Iterator[int]:
    """An nginx that does the same."""
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    (place / "nginx.conf").write_text(_NGINX.format(port=port, user=user))
    command = ("nginx", "-p", str(place), "-c", "nginx.conf", "-e", "stderr")
    with running(*command, ready="start worker process "):
        yield port


class Exchange:
    """
    One connection to a server, and what it answers to a request behind a header.

    @ivar ends: the connection's own addresses, as the server sees them.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.ends = [
            IPv4Address("TCP", *end)
            for end in (self.socket.getsockname(), self.socket.getpeername())
        ]

    def answer(self, first: bytes) -> str:
        """
        @param first: what is sent before the request.
        @return: the answer's body.
        """
        with self.socket:
            self.socket.sendall(first + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            head, _, body = read_all(self.socket).decode("ascii").partition("\r\n\r\n")
        if " 200 " not in head:
            raise AssertionError(f"answered {head!r}")
        return body


class ReceiversTests(SynchronousTestCase):
    versions: ClassVar[tuple[Version, ...]] = ("v1", "v2")
    ipv4 = IPv4Address("TCP", "192.0.2.1", 40000), IPv4Address("TCP", "198.51.100.2", 443)
    ipv6 = IPv6Address("TCP", "2001:db8::1", 40000), IPv6Address("TCP", "2001:db8::2", 443)
    mapped = (
        IPv6Address("TCP", "::ffff:192.0.2.1", 40000),
        IPv6Address("TCP", "::ffff:198.51.100.2", 443),
    )

    def believed(self, port: int) -> None:
        """The server at `port` takes the addresses of headers for those of the connection."""
        for version in self.versions:
            for ends, told in (
                (self.ipv4, "192.0.2.1 40000 198.51.100.2 443"),
                (self.ipv6, "2001:db8::1 40000 2001:db8::2 443"),
                (self.mapped, "192.0.2.1 40000 198.51.100.2 443"),
            ):
                self.assertEqual(Exchange(port).answer(header(version, *ends)), told, version)
            mixed = Exchange(port).answer(header(version, self.ipv4[0], self.ipv6[1]))
            client, *rest = mixed.split()
            self.assertEqual(
                socket.inet_pton(socket.AF_INET6, client),
                socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1"),
            )
            self.assertEqual(rest, ["40000", "2001:db8::2", "443"])

    def test_haproxy_believes_addresses(self) -> None:
        skip_unless_installed("haproxy")
        with folder() as place, haproxy(place) as port:
            self.believed(port)

    def test_nginx_believes_addresses(self) -> None:
        skip_unless_installed("nginx")
        with folder() as place, nginx(place) as port:
            self.believed(port)

    def test_haproxy_takes_the_connection_s_own_where_none_are_told(self) -> None:
        skip_unless_installed("haproxy")
        unix = UNIXAddress(None)
        with folder() as place, haproxy(place) as port:
            # Not so of version 2 with Unix addresses, see below.
            for first in (local_header("v1"), local_header("v2"), header("v1", unix, unix)):
                exchange = Exchange(port)
                own = " ".join(f"{end.host} {end.port}" for end in exchange.ends)
                self.assertEqual(exchange.answer(first), own, first)

    def test_connections_of_our_own_are_let_in(self) -> None:
        skip_unless_installed("haproxy", "nginx")
        for server in (haproxy, nginx):
            with folder() as place, server(place) as port:
                for version in self.versions:
                    Exchange(port).answer(local_header(version))
                    exchange = Exchange(port)
                    exchange.answer(local_header(version, *exchange.ends))

    def test_nginx_lets_unix_clients_in(self) -> None:
        """
        HAProxy 2.6 rejects in version 2 whatever is neither TCP over IPv4 nor over IPv6, though section
        2.2 wants it taken for unspecified.
        """
        skip_unless_installed("nginx")
        here, there = UNIXAddress(None), UNIXAddress(b"/run/relay.sock")
        with folder() as place, nginx(place) as port:
            for version in self.versions:
                for source in (here, self.ipv4[0]):
                    Exchange(port).answer(header(version, source, there))

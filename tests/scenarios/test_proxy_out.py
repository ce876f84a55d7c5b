"""
The headers of the PROXY protocol that fwdrelay sends: what they say of those that it was sent, and how real
servers understand them, behind the relay as before it.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from fwdrelay.wire.proxyprotocol import (
    TLV,
    Kind,
    ProxyHeader,
    Version,
    header,
    local_header,
    read,
)
from tests.case import SynchronousTestCase
from tests.pki import Authority
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.fronts import FrontScenario, SecureClient, listener, pools
from tests.scenarios.programs import (
    Program,
    folder,
    free_port,
    run,
    running,
    skip_unless_installed,
)
from tests.scenarios.relay_process import (
    PATIENCE,
    Upstream,
    connect,
    read_all,
    read_exactly,
    wait_until,
)

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
    with running_haproxy(place, _HAPROXY.format(port=port), port):
        yield port


@contextmanager
def running_haproxy(place: Path, text: str, port: int) -> Iterator[Program]:
    """
    An HAProxy of that configuration.

    @param port: of the first of its frontends.
    """
    (place / "haproxy.cfg").write_text(text)
    command = ("haproxy", "-db", "-f", str(place / "haproxy.cfg"))
    # It prints nothing when it is ready.
    with running(*command, ready="", end=signal.SIGUSR1) as program:
        wait_until(lambda: is_listening(port))
        yield program


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


IPV4 = ReceiversTests.ipv4
TLVS = (
    TLV(Kind.ALPN, b"h2"),
    TLV(Kind.AUTHORITY, b"told.example"),
    TLV(Kind.CRC32C, bytes(4)),
    TLV(Kind.UNIQUE_ID, b"\0one of many\xff"),
    TLV(0xE3, b"a word of our own"),
)


def read_header(server: socket.socket) -> ProxyHeader:
    """What a connection begins with, up to what follows."""
    seen = b""
    while (found := read(seen)) is None:
        seen += read_exactly(server, 1)
    return found[0]


class Headers(FrontScenario, every_pump=False):
    """What the target is told."""

    @contextmanager
    def told(self, front: str, more: str = "") -> Iterator[tuple[ConfiguredRelay, Upstream]]:
        """
        @param front: lines of the listeners, of which there is one for each version of headers.
        @param more: lines of their pools; `NAME` is the pool's.
        @return: (for a `with` block) a relay that sends such headers, and where it sends them.
        """
        with Upstream() as upstream:
            text = "".join(
                listener(version, front, pool=version)
                + pools({version: upstream}, f'send_proxy = "{version}"\n{more}').replace(
                    "NAME", version
                )
                for version in ReceiversTests.versions
            )
            with self.configured(text) as relay:
                yield relay, upstream

    def header_for(
        self, relay: ConfiguredRelay, upstream: Upstream, version: str, first: bytes
    ) -> ProxyHeader:
        """
        A client's that sends `first`, behind which something is relayed; the connection's own addresses are
        left out.
        """
        with relay.connect_to(version) as client:
            own = [IPv4Address("TCP", *end) for end in (client.getsockname(), client.getpeername())]
            client.sendall(first + b"question")
            with upstream.accept() as server:
                sent = read_header(server)
                self.assertEqual(read_exactly(server, 8), b"question")
                self.answer(client, server)
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(server), b"")
        return ProxyHeader(tlvs=sent.tlvs) if [sent.source, sent.destination] == own else sent

    OPTIONAL: ClassVar = '[listener.proxy_protocol]\naccept = "optional"'
    FIRST: ClassVar[tuple[tuple[bytes, ProxyHeader], ...]] = (
        (header("v1", *IPV4), ProxyHeader(*IPV4)),
        (ProxyHeader(*IPV4, tlvs=TLVS).encode("v2"), ProxyHeader(*IPV4, tlvs=TLVS)),
        (header("v2", *ReceiversTests.ipv6), ProxyHeader(*ReceiversTests.ipv6)),
        (local_header("v2"), ProxyHeader()),
        (b"PROXY UNKNOWN\r\n", ProxyHeader()),
        (b"", ProxyHeader()),
    )
    """What a client begins with, and what is to be told; where that says no addresses, the connection's."""

    def test_what_was_accepted_is_carried_on(self) -> None:
        with self.told(self.OPTIONAL) as (relay, upstream):
            for first, expected in self.FIRST:
                sent = self.header_for(relay, upstream, "v2", first)
                self.assertEqual(
                    (sent.source, sent.destination), (expected.source, expected.destination)
                )
                self.assertFalse(sent.local)
                # The checksum, made anew, is right, or it would not have been read.
                self.assertEqual(
                    [each for each in sent.tlvs if each.kind != Kind.CRC32C],
                    [each for each in expected.tlvs if each.kind != Kind.CRC32C],
                )
                self.assertEqual(len(sent.tlvs), len(expected.tlvs))
                # In version 1 there are only addresses.
                sent = self.header_for(relay, upstream, "v1", first)
                self.assertEqual(sent, ProxyHeader(expected.source, expected.destination))

    def test_what_is_known_of_a_client_s_tls_is_told(self) -> None:
        place = self.folder()
        authority = Authority()
        certificate, key = authority.vouch(dns=["web.example"]).write(place, "web")
        trust = authority.write(place)
        context = ssl.create_default_context(cafile=trust)
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.load_cert_chain(*authority.vouch("bob").write(place, "bob"))
        front = f"""
            [listener.proxy_protocol]
            accept = "optional"
            [listener.tls]
            certificate = "{certificate}"
            key = "{key}"
            client_ca = "{trust}"
            alpn = ["http/1.1"]
        """
        with self.told(front) as (relay, upstream):
            for first, authority_told in (
                (b"", "web.example"),
                (header("v2", *IPV4), "web.example"),
                (ProxyHeader(*IPV4, tlvs=(TLVS[1],)).encode("v2"), "told.example"),
            ):
                with relay.connect_to("v2") as client:
                    secure = SecureClient(client, context, "web.example", first)
                    with upstream.accept() as server:
                        sent = read_header(server)
                        secure.write(b"question")
                        self.assertEqual(read_exactly(server, 8), b"question")
                    self.assertEqual((sent.alpn, sent.authority), ("http/1.1", authority_told))
                    self.assertEqual(sent.source == IPV4[0], bool(first))
                    told = sent.ssl
                    assert told is not None
                    self.assertEqual((told.client, told.verify, told.cn), (7, 0, "bob"))
                    cipher = secure.tls.cipher()
                    assert cipher is not None
                    self.assertEqual((told.version, told.cipher), ("TLSv1.3", cipher[0]))

    def test_a_header_goes_before_tls(self) -> None:
        place = self.folder()
        authority = Authority()
        trust = authority.write(place)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.vouch(dns=["db.example"]).write(place, "db"))
        more = f'[pool.NAME.tls]\nca = "{trust}"\nname = "db.example"'
        with self.told(self.OPTIONAL, more) as (relay, upstream):
            for version in ReceiversTests.versions:
                with relay.connect_to(version) as client:
                    client.sendall(header("v1", *IPV4) + b"question")
                    with upstream.accept() as raw:
                        self.assertEqual(read_header(raw), ProxyHeader(*IPV4))
                        with context.wrap_socket(raw, server_side=True) as server:
                            self.assertEqual(server.recv(8), b"question")
                            server.sendall(b"answer")
                            self.assertEqual(read_exactly(client, 6), b"answer")


_NGINX_BOTH_WAYS = """
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
{load}
events {{ }}
stream {{
    server {{
        listen 127.0.0.1:{sender};
        proxy_protocol on;
        proxy_pass 127.0.0.1:{to};
    }}
    server {{
        listen 127.0.0.1:{receiver} proxy_protocol;
        return "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
    }}
}}
"""
_HAPROXY_SENDERS = """
defaults
    timeout client 60s
    timeout server 60s
    timeout connect 60s
    mode tcp
listen plain
    bind 127.0.0.1:{plain}
    server relay 127.0.0.1:{to} send-proxy-v2
listen older
    bind 127.0.0.1:{older}
    server relay 127.0.0.1:{to} send-proxy
listen secure
    bind 127.0.0.1:{secure} ssl crt {place}/both.pem ca-file {place}/ca.pem verify required alpn http/1.1
    server relay 127.0.0.1:{to} send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,crc32c,authority
"""
_HAPROXY_LOGGING = """
global
    log stdout format raw local0
defaults
    mode tcp
    timeout client 60s
    timeout server 60s
    timeout connect 60s
frontend headers
    bind 127.0.0.1:{port} accept-proxy
    log global
    log-format "seen %ci:%cp."
    default_backend echo
backend echo
    server target {target}
"""
CLIENT = "127.0.0.7"
"""Where a client connects from, that can be told from the relay and from other proxies."""


class Neighbours(FrontScenario, every_pump=False):
    """Other people's programs before the relay and behind it: each sees the true client."""

    def ask(self, port: int, first: bytes = b"") -> tuple[str, str]:
        """
        @return: the answer, and what it should be told of: the client's address and port.
        """
        with connect(("127.0.0.1", port), source=CLIENT) as client:
            own = "{} {}".format(*client.getsockname())
            client.sendall(first + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return read_all(client).decode("ascii").rpartition("\r\n")[2], own

    @contextmanager
    def between(self, *ports: int, accept: str = "required") -> Iterator[ConfiguredRelay]:
        """
        @param ports: of the targets: for each and each version there is a listener, such as `8080-v1`.
        """
        front = f'[listener.proxy_protocol]\naccept = "{accept}"'
        text = "".join(
            listener(name, front, pool=name) + pools({name: port}, f'send_proxy = "{version}"')
            for port in ports
            for version in ReceiversTests.versions
            for name in [f"{port}-{version}"]
        )
        with self.configured(text) as relay:
            yield relay

    def port(self, relay: ConfiguredRelay, target: int, version: str = "v2") -> int:
        """Of the listener that sends those headers there."""
        address = relay.listener(f"{target}-{version}")
        assert isinstance(address, tuple)
        return address[1]

    def test_servers_behind_the_relay_see_the_client(self) -> None:
        skip_unless_installed("haproxy", "nginx")
        with (
            folder() as place,
            haproxy(place) as one,
            nginx(place) as other,
            self.between(one, other, accept="optional") as relay,
        ):
            for target in (one, other):
                for version in ReceiversTests.versions:
                    port = self.port(relay, target, version)
                    answer, own = self.ask(port)
                    self.assertEqual(answer, f"{own} 127.0.0.1 {port}")
                    answer, _ = self.ask(port, header("v1", *ReceiversTests.ipv6))
                    self.assertEqual(answer, "2001:db8::1 40000 2001:db8::2 443")

    def test_haproxy_logs_the_client(self) -> None:
        skip_unless_installed("haproxy")
        port = free_port()
        with folder() as place, Upstream() as upstream:
            text = _HAPROXY_LOGGING.format(port=port, target=upstream.target)
            with (
                running_haproxy(place, text, port) as program,
                self.between(port, accept="off") as relay,
                connect(("127.0.0.1", self.port(relay, port)), source=CLIENT) as client,
            ):
                client.sendall(b"question")
                with upstream.accept() as server:
                    self.assertEqual(read_exactly(server, 8), b"question")
                    self.answer(client, server)
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(client), b"")
                program.wait_for("seen {}:{}.".format(*client.getsockname()))

    def test_nginx_sees_the_client_of_an_haproxy_before_the_relay(self) -> None:
        skip_unless_installed("haproxy", "nginx")
        with folder() as place, nginx(place) as behind, self.between(behind) as relay:
            ports = {name: free_port() for name in ("plain", "older", "secure")}
            authority = Authority()
            authority.write(place)
            web = authority.vouch(dns=["web.example"])
            (place / "both.pem").write_bytes(web.chain + web.key)
            text = _HAPROXY_SENDERS.format(**ports, to=self.port(relay, behind), place=place)
            # At that one, somebody who only looks whether it listens is nobody's client.
            with running_haproxy(place, text, ports["secure"]):
                for count, name in enumerate(("plain", "older"), 1):
                    answer, own = self.ask(ports[name])
                    self.assertEqual(answer, f"{own} 127.0.0.1 {ports[name]}")
                    self.assertEqual(relay.ended(count)[-1]["client"], own.replace(" ", ":"))

    def test_what_haproxy_tells_of_a_client_s_certificate_is_carried_on(self) -> None:
        skip_unless_installed("haproxy")
        with folder() as place, Upstream() as upstream:
            behind = upstream.socket.getsockname()[1]
            ports = {name: free_port() for name in ("plain", "older", "secure")}
            authority = Authority()
            context = ssl.create_default_context(cafile=authority.write(place))
            context.load_cert_chain(*authority.vouch("bob").write(place, "bob"))
            web = authority.vouch(dns=["web.example"])
            (place / "both.pem").write_bytes(web.chain + web.key)
            with (
                self.between(behind) as relay,
                running_haproxy(
                    place,
                    _HAPROXY_SENDERS.format(**ports, to=self.port(relay, behind), place=place),
                    ports["secure"],
                ),
                connect(("127.0.0.1", ports["secure"]), source=CLIENT) as client,
            ):
                own = client.getsockname()
                secure = SecureClient(client, context, "web.example")
                secure.write(b"question")
                with upstream.accept() as server:
                    sent = read_header(server)
                    self.assertEqual(read_exactly(server, 8), b"question")
                    server.sendall(b"answer")
                    self.assertEqual(secure.read(6), b"answer")
                self.assertEqual(sent.source, IPv4Address("TCP", *own))
                self.assertEqual(sent.authority, "web.example")
                assert sent.ssl is not None
                self.assertTrue(sent.ssl.verified)
                self.assertEqual((sent.ssl.version, sent.ssl.cn), ("TLSv1.3", "bob"))

    def test_nginx_sees_the_client_of_an_nginx_before_the_relay(self) -> None:
        skip_unless_installed("nginx")
        module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
        if not module.exists():
            self.skipTest("nginx has no stream module here")
        sender, receiver = free_port(), free_port()
        with folder() as place, self.between(receiver) as relay:
            user = "user root;" if os.geteuid() == 0 else ""
            (place / "nginx.conf").write_text(
                _NGINX_BOTH_WAYS.format(
                    user=user,
                    load=f"load_module {module};",
                    sender=sender,
                    receiver=receiver,
                    to=self.port(relay, receiver),
                )
            )
            command = ("nginx", "-p", str(place), "-c", "nginx.conf", "-e", "stderr")
            with running(*command, ready="start worker process "):
                with connect(("127.0.0.1", sender), source=CLIENT) as client:
                    own = "{} {}".format(*client.getsockname())
                    self.assertEqual(read_all(client).decode("ascii"), f"{own} 127.0.0.1 {sender}")
                self.assertEqual(relay.ended()[0]["client"], own.replace(" ", ":"))

    def test_curl_says_who_it_is(self) -> None:
        skip_unless_installed("nginx", "curl")
        with folder() as place, nginx(place) as behind, self.between(behind) as relay:
            listening = self.port(relay, behind)
            printed = run(
                *("curl", "--silent", "--show-error", "--fail", "--haproxy-protocol"),
                *("--interface", CLIENT, f"http://127.0.0.1:{listening}/"),
            )
            client, port, server, server_port = printed.split()
            self.assertEqual((client, server, server_port), (CLIENT, "127.0.0.1", str(listening)))
            self.assertEqual(relay.ended()[0]["client"], f"{CLIENT}:{port}")

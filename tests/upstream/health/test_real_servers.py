"""Health checks against real servers: who is healthy, and that none of them finds fault with a check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from fwdrelay.config import TargetConfig, UpstreamTLSConfig
from fwdrelay.tls import UpstreamTLS
from fwdrelay.upstream.health.check import How
from fwdrelay.upstream.health.probe import HttpRequest, Secured
from tests.pki import Authority
from tests.scenarios.programs import (
    Program,
    folder,
    free_port,
    running,
    skip_unless_installed,
)
from tests.scenarios.test_proxy_out import haproxy
from tests.upstream.health.servers import PATIENCE, write_certificate
from tests.upstream.health.test_check import CheckCase, expecting, plain, tls

_NGINX = """
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr info;
events {{ }}
http {{
    log_format ends "$status $request $bytes_sent $request_completion";
    access_log {place}/access ends;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    server {{
        listen 127.0.0.1:{port}{options};
        listen unix:{place}/socket;
        {tls}
        location = /up {{ return 204; }}
        location = /moved {{ return 302 /up; }}
        location = /down {{ return 503; }}
        location / {{ root .; }}
    }}
}}
"""


@contextmanager
def nginx(place: Path, options: str = "", tls: str = "") -> Iterator[tuple[int, Program]]:
    """An nginx in that folder; the block gets its port and itself."""
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    text = _NGINX.format(place=place, port=port, user=user, options=options, tls=tls)
    (place / "nginx.conf").write_text(text)
    (place / "large").write_bytes(b"x" * (256 << 10))
    command = ("nginx", "-p", str(place), "-c", "nginx.conf", "-e", "stderr")
    with running(*command, ready="start worker process ") as program:
        yield port, program


def http(path: str) -> How:
    return How(lambda target: HttpRequest(target, path), PATIENCE)


def https(path: str, config: UpstreamTLSConfig) -> How:
    tls = UpstreamTLS(config, "tls")
    return How(lambda target: Secured(tls, target, HttpRequest(target, path)), PATIENCE)


class NginxTests(CheckCase):
    def setUp(self) -> None:
        skip_unless_installed("nginx")
        super().setUp()

    def finds_no_fault(self, program: Program) -> None:
        """
        Nothing was reset, and no answer cut. "closed connection" would be a client that left while it
        was answered; of one that ends after that nginx says so, too.
        """
        self.assertNotRegex(program.output, r"(?i)reset|broken|prematurely|\[(error|alert|crit)\]")

    async def test_statuses(self) -> None:
        with folder() as place:
            with nginx(place) as (port, program):
                for target in (
                    TargetConfig(host="127.0.0.1", port=port),
                    TargetConfig(path=str(place / "socket")),
                ):
                    for path, told in (
                        ("/up", ""),
                        ("/moved", ""),
                        ("/large", ""),
                        ("/down", "HTTP status 503"),
                    ):
                        self.assertEqual(await self.outcome(target, http(path)), told)
            self.finds_no_fault(program)
            # An answer that the client did not wait for would be a 499, or without "OK".
            logged = (place / "access").read_text().splitlines()
            self.assertEqual(len(logged), 8)
            for line in logged:
                self.assertRegex(line, r"^(204|302|200|503) GET /\w+ HTTP/1.1 \d+ OK$")

    async def test_tls(self) -> None:
        with folder() as place:
            certificate, key = write_certificate(place)
            for versions in ("TLSv1.2", "TLSv1.3"):
                names = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
                with nginx(place, " ssl", f"{names} ssl_protocols {versions};") as (port, program):
                    target = TargetConfig(host="127.0.0.1", port=port)
                    self.assertEqual(await self.outcome(target, tls()), "")
                self.finds_no_fault(program)
                (place / "socket").unlink(missing_ok=True)

    async def test_pages_over_tls_that_is_verified(self) -> None:
        with folder() as place:
            root = Authority()
            certificate, key = root.vouch(dns=["app.example"]).write(place, "app")
            ca = root.write(place)
            for versions in ("TLSv1.2", "TLSv1.3"):
                names = f"ssl_certificate {certificate}; ssl_certificate_key {key};"
                options = " ssl proxy_protocol"
                with nginx(place, options, f"{names} ssl_protocols {versions};") as (port, program):
                    target = TargetConfig(host="127.0.0.1", port=port)
                    for name, path, told in (
                        ("app.example", "/up", ""),
                        ("app.example", "/large", ""),
                        ("app.example", "/down", "HTTP status 503"),
                        (
                            "other.example",
                            "/up",
                            "the target's certificate is for app.example, not for other.example",
                        ),
                    ):
                        how = attrs.evolve(
                            https(path, UpstreamTLSConfig(ca=ca, name=name)), send_proxy="v2"
                        )
                        self.assertEqual(await self.outcome(target, how), told)
                self.finds_no_fault(program)
                logged = (place / "access").read_text().splitlines()
                (place / "access").unlink()
                (place / "socket").unlink(missing_ok=True)
                self.assertEqual(len(logged), 3)
                for line in logged:
                    self.assertRegex(line, r"^(204|200|503) GET /\w+ HTTP/1.1 \d+ OK$")

    async def test_not_tls(self) -> None:
        with folder() as place, nginx(place) as (port, _):
            told = await self.outcome(TargetConfig(host="127.0.0.1", port=port), tls())
            self.assertRegex(told, "^the TLS handshake failed: ")

    async def test_proxy_header(self) -> None:
        with folder() as place, nginx(place, " proxy_protocol") as (port, program):
            target = TargetConfig(host="127.0.0.1", port=port)
            how = http("/up")
            self.assertEqual(
                await self.outcome(target, attrs.evolve(how, send_proxy="v1")),
                "",
                program.output,
            )
            self.assertEqual(await self.outcome(target, attrs.evolve(how, send_proxy="v2")), "")
            self.assertNotEqual(await self.outcome(target, how), "")


class OpensslTests(CheckCase):
    async def test_a_handshake_ends_in_order(self) -> None:
        skip_unless_installed("openssl")
        with folder() as place:
            certificate, key = write_certificate(place)
            for version in ("-tls1_2", "-tls1_3"):
                port = free_port()
                server = Program(
                    *("openssl", "s_server", "-accept", f"127.0.0.1:{port}", version, "-rev"),
                    *("-cert", certificate, "-key", key, "-naccept", "1"),
                    ready="ACCEPT",
                )
                target = TargetConfig(host="127.0.0.1", port=port)
                self.assertEqual(await self.outcome(target, tls()), "")
                server.finish()
                self.assertIn("CONNECTION ESTABLISHED", server.output)
                self.assertIn("CONNECTION CLOSED", server.output)
                self.assertNotRegex(server.output, "(?i)error|failure")


class RedisTests(CheckCase):
    async def test_ping_and_pong(self) -> None:
        skip_unless_installed("redis-server")
        with folder() as place:
            port = free_port()
            with running(
                *("redis-server", "--port", str(port), "--bind", "127.0.0.1"),
                *("--unixsocket", str(place / "redis"), "--dir", str(place), "--daemonize", "no"),
                *("--save", "", "--appendonly", "no", "--loglevel", "verbose"),
                ready="ready to accept connections",
            ) as server:
                # Nobody waits for the end of this one, as of the others: it is not the last that the server deals with.
                target = TargetConfig(host="127.0.0.1", port=port)
                how = attrs.evolve(expecting(b"PING\r\n", b"PANG"), timeout=0.3)
                self.assertEqual(await self.outcome(target, how), "no matching answer within 0.3s")
                for target in (
                    TargetConfig(host="127.0.0.1", port=port),
                    TargetConfig(path=str(place / "redis")),
                ):
                    how = expecting(b"PING\r\n", rb"^\+PONG\r\n")
                    self.assertEqual(await self.outcome(target, how), "")
                    self.assertEqual(await self.outcome(target, plain()), "")
            # It says so of those that do not end by FIN ("Reading from client: Connection reset").
            self.assertEqual(server.output.count("Client closed connection"), 5)
            self.assertNotIn("Reading from client", server.output)


class HaproxyTests(CheckCase):
    async def test_proxy_header(self) -> None:
        skip_unless_installed("haproxy")
        with folder() as place, haproxy(place) as port:
            target = TargetConfig(host="127.0.0.1", port=port)
            how = http("/")
            self.assertEqual(await self.outcome(target, attrs.evolve(how, send_proxy="v1")), "")
            self.assertEqual(await self.outcome(target, attrs.evolve(how, send_proxy="v2")), "")
            self.assertNotEqual(await self.outcome(target, how), "")

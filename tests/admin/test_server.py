"""The server as a relay has it, over real sockets."""

from __future__ import annotations

import http.client
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from fwdrelay.admin import AdminServer
from fwdrelay.config import RelayConfig
from fwdrelay.errors import CannotListen, ConfigErrors
from tests.admin.relays import FakeRelay
from tests.case import TestCase


class ServerTestCase(TestCase):
    def setUp(self) -> None:
        self.relay = FakeRelay()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.told: list[str] = []
        self.patch(AdminServer, "log", self)

    def info(self, text: str, **fields: Any) -> None:
        self.told.append(text.format(**fields))

    warn = error = info

    def serve(self, admin: str = "127.0.0.1:0", token_file: str = "") -> AdminServer:
        config = RelayConfig(admin=admin, admin_token_file=token_file)
        server = AdminServer(config, self.relay, reactor)
        server.listen()
        self.addCleanup(server.stop)
        return server

    def token(self, text: str) -> str:
        file = self.folder / "token"
        file.write_text(text)
        file.chmod(0o600)
        return str(file)

    async def ask(self, server: AdminServer, path: str, token: str = "") -> int:
        """Its status."""

        def asked() -> int:
            connection = http.client.HTTPConnection(*where(server), timeout=30)
            try:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                answer.read()
                return answer.status
            finally:
                connection.close()

        return await deferToThread(asked)


def where(server: AdminServer) -> tuple[str, int]:
    """Host and port."""
    host, _, port = server.address.removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)


class ListenTests(ServerTestCase):
    async def test_it_says_where(self) -> None:
        server = self.serve()
        self.assertRegex(server.address, r"^http://127\.0\.0\.1:[1-9]\d*/$")
        self.assertEqual(self.told, [f"Metrics, API and dashboard: {server.address}"])
        for path in ("/", "/healthz", "/v1/status", "/v1/pools"):
            self.assertEqual(await self.ask(server, path), 200)

    async def test_somebody_else_does(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            admin = f"127.0.0.1:{taken.getsockname()[1]}"
            server = AdminServer(RelayConfig(admin=admin), self.relay, reactor)
            self.assertRaises(CannotListen, server.listen)
        await server.stop()


class TokenTests(ServerTestCase):
    async def test_it_is_wanted(self) -> None:
        server = self.serve(token_file=self.token("s3cret\n"))
        self.assertEqual(await self.ask(server, "/v1/status"), 401)
        self.assertEqual(await self.ask(server, "/v1/status", "s3cret"), 200)

    async def test_it_is_read_again(self) -> None:
        server = self.serve(token_file=self.token("first"))
        self.token("second")
        self.assertEqual(await self.ask(server, "/v1/status", "second"), 401)
        server.renew_token()
        self.assertEqual(await self.ask(server, "/v1/status", "second"), 200)
        self.assertEqual(await self.ask(server, "/v1/status", "first"), 401)

    async def test_who_listens_by_the_old_one_has_to_show_the_new_one(self) -> None:
        server = self.serve(token_file=self.token("first"))

        def listen() -> socket.socket:
            client = socket.create_connection(where(server), 30)
            shown = "Host: localhost\r\nAuthorization: Bearer first"
            client.sendall(f"GET /v1/trace HTTP/1.1\r\n{shown}\r\n\r\n".encode())
            while b"following" not in client.recv(1 << 16):
                pass
            return client

        with await deferToThread(listen) as client:
            server.renew_token()
            self.assertEqual(len(self.relay.followed), 1)
            self.token("second")
            server.renew_token()
            self.assertEqual(self.relay.followed, [])
            self.assertEqual(await deferToThread(client.recv, 1 << 16), b"0\r\n\r\n")

    async def test_the_old_one_stays_where_the_new_one_is_of_no_use(self) -> None:
        server = self.serve(token_file=self.token("first"))
        os.unlink(self.token(""))
        server.renew_token()
        self.assertIn("stays as it was: relay.admin_token_file: cannot read", self.told[-1])
        self.assertEqual(await self.ask(server, "/v1/status", "first"), 200)
        self.assertEqual(await self.ask(server, "/v1/status"), 401)

    def test_there_is_none(self) -> None:
        config = RelayConfig(admin="127.0.0.1:0", admin_token_file=str(self.folder / "none"))
        server = AdminServer(config, self.relay, reactor)
        errors = self.assertRaises(ConfigErrors, server.listen)
        self.assertIn("relay.admin_token_file: cannot read", str(errors))

    def test_everybody_can_read_it(self) -> None:
        file = self.token("s3cret")
        os.chmod(file, 0o644)
        self.serve(token_file=file)
        self.assertIn("Everybody on this machine can read the token", self.told[0])


class StopTests(ServerTestCase):
    async def test_idle_and_listening_ones_are_told(self) -> None:
        server = self.serve()

        def connect() -> tuple[socket.socket, socket.socket]:
            idle, listening = (socket.create_connection(where(server), 30) for _ in range(2))
            listening.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = b""
            while b"event: status" not in got:
                got += listening.recv(1 << 16)
            return idle, listening

        idle, listening = await deferToThread(connect)
        with idle, listening:
            await server.stop()
            self.assertEqual(idle.recv(1), b"")
            rest = b""
            while got := listening.recv(1 << 16):
                rest += got
            self.assertTrue(rest.endswith(b"0\r\n\r\n"))
        self.assertEqual(self.relay.told, [])
        self.assertEqual(server.address, "127.0.0.1:0")

    async def test_who_never_leaves_is_cut(self) -> None:
        server = self.serve()
        waiting: Deferred[None] = Deferred()
        self.relay.slow = lambda: waiting

        def connect() -> socket.socket:
            return socket.create_connection(where(server), 30)

        with await deferToThread(connect) as client:
            client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await self.until(lambda: bool(self.relay.asked))
            await server.stop()
            with self.assertRaises(ConnectionResetError):
                client.recv(1)

    async def test_twice(self) -> None:
        server = self.serve()
        await server.stop()
        await server.stop()

    async def until(self, true: Any) -> None:
        while not true():
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.01, waiting.callback, None)
            await waiting


class UnixTests(ServerTestCase):
    async def test_who_asks_is_known(self) -> None:
        told: list[str] = []
        path = self.folder / "admin.sock"
        server = self.serve(admin=f"unix:{path}", token_file=self.token("s3cret"))
        self.assertEqual(server.address, f"unix:{path}")

        class Log:
            def info(self, sentence: str, **fields: Any) -> None:
                told.append(sentence.format(**fields))

        self.patch(server._site.api, "log", Log())

        def asked() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(path))
                # Any Host will do, and no token is wanted: the file's mode says who may ask.
                client.sendall(
                    b"POST /v1/reload HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"
                )
                got = b""
                while more := client.recv(1 << 16):
                    got += more
                return got

        self.assertIn(b"200 OK", await deferToThread(asked))
        self.assertEqual(
            told, [f"By uid {os.getuid()} (pid {os.getpid()}), over the admin API: reload."]
        )

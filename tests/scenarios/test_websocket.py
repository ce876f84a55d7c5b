"""WebSockets through the relay (RFC 6455): the upgrade, messages both ways, pings, closing."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.scenarios.relay_process import PATIENCE
from tests.scenarios.scenario import Scenario

MESSAGES = 500
LARGEST = 1 << 24


class WebSocketTests(Scenario):
    """
    @ivar closed: code and reason with which the client has closed, as the server was told.
    """

    pump = "auto"

    def setUp(self) -> None:
        self.closed: tuple[int, str] | None = None

    def converse(self, talk: Callable[[ClientConnection], Awaitable[None]]) -> None:
        """
        Run a server that says everything again, a relay to it, and a client; the session must end well.

        @param talk: is given the client.
        """
        with (
            socket.create_server(("127.0.0.1", 0)) as listening,
            self.relaying("--target", f"127.0.0.1:{listening.getsockname()[1]}") as relay,
        ):
            asyncio.run(asyncio.wait_for(self._converse(listening, relay.port, talk), PATIENCE))
            self.has_ended(relay, "done", "--")

    async def _converse(
        self,
        listening: socket.socket,
        port: int,
        talk: Callable[[ClientConnection], Awaitable[None]],
    ) -> None:
        async with (
            serve(self._echo, sock=listening, max_size=LARGEST, ping_interval=None),
            connect(
                f"ws://127.0.0.1:{port}/", max_size=LARGEST, ping_interval=None, proxy=None
            ) as client,
        ):
            await talk(client)

    async def _echo(self, connection: ServerConnection) -> None:
        try:
            while (message := await connection.recv()) != "close":
                await connection.send(message)
            await connection.close(4001, "as you wish")
        except ConnectionClosed as closed:
            if closed.rcvd is not None:
                self.closed = (closed.rcvd.code, closed.rcvd.reason)

    def test_text_and_binary_messages_of_all_sizes_come_back_in_order(self) -> None:
        source = random.Random(6455)

        async def talk(client: ClientConnection) -> None:
            for number in range(MESSAGES):
                sent: str | bytes = f"message {number} ✓" * source.randrange(100)
                if number % 2:
                    sent = source.randbytes(source.randrange(5_000))
                await client.send(sent)
                self.assertEqual(await client.recv(), sent)
            large = source.randbytes(LARGEST // 2)
            await client.send(large)
            self.assertEqual(await client.recv(), large)

        self.converse(talk)

    def test_a_message_in_fragments_comes_back_whole(self) -> None:
        parts = [f"part {number}," for number in range(1_000)]

        async def talk(client: ClientConnection) -> None:
            await client.send(parts)
            self.assertEqual(await client.recv(), "".join(parts))

        self.converse(talk)

    def test_a_ping_is_answered(self) -> None:
        async def talk(client: ClientConnection) -> None:
            await (await client.ping(b"are you there"))

        self.converse(talk)

    def test_the_client_s_closing_code_arrives(self) -> None:
        async def talk(client: ClientConnection) -> None:
            await client.close(4000, "had enough")

        self.converse(talk)
        self.assertEqual(self.closed, (4000, "had enough"))

    def test_the_server_s_closing_code_arrives(self) -> None:
        async def talk(client: ClientConnection) -> None:
            await client.send("close")
            await client.wait_closed()
            self.assertEqual((client.close_code, client.close_reason), (4001, "as you wish"))

        self.converse(talk)

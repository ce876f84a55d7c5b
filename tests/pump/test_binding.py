"""Dials from an address of one's own, over each pump."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.protocol import ClientCreator, Protocol

from fwdrelay.config import KeepAlive
from fwdrelay.pump.buffered import BufferedPump
from fwdrelay.pump.options import _IP_BIND_ADDRESS_NO_PORT
from fwdrelay.pump.spliced import SplicedPump
from tests.case import TestCase

reactor: Any = the_reactor


class BindingTests(TestCase):
    async def check(self, pump: Any, host: str, bind: str) -> None:
        """What is dialed comes from that address, whose port the kernel chooses when it connects."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listening:
            listening.settimeout(10)
            port = listening.getsockname()[1]
            creator = ClientCreator(pump, Protocol)
            protocol = await creator.connectTCP(host, port, bindAddress=(bind, 0))
            accepted, peer = listening.accept()
            with accepted:
                self.assertEqual(peer[0], bind)
                dialed = protocol.transport.socket
                self.assertEqual(dialed.getsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT), 1)
                protocol.transport.abortConnection()
        pump.stop()

    async def test_spliced(self) -> None:
        await self.check(SplicedPump(reactor, KeepAlive()), "127.0.0.1", "127.0.0.9")

    async def test_spliced_ipv6(self) -> None:
        await self.check(SplicedPump(reactor, KeepAlive()), "::1", "::1")

    async def test_buffered(self) -> None:
        await self.check(BufferedPump(reactor, KeepAlive()), "127.0.0.1", "127.0.0.9")

    async def test_buffered_ipv6(self) -> None:
        await self.check(BufferedPump(reactor, KeepAlive()), "::1", "::1")

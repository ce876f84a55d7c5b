"""`fwdrelay.frontend.addresses`: sockets that a supervisor has bound, over each pump."""

from __future__ import annotations

import os
import select
import socket
import stat
import tempfile
from typing import Any, cast

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from fwdrelay.config import KeepAlive, ListenerConfig
from fwdrelay.errors import CannotListen
from fwdrelay.frontend import Addresses, Inherited, Key, Listener
from fwdrelay.pump.buffered import BufferedPump
from fwdrelay.pump.spliced import SplicedPump
from tests.case import TestCase

reactor: Any = the_reactor
PATIENCE = 10.0
WEB: Key = ("", "tcp:80:interface=127.0.0.1")
CONFIG = ListenerConfig(name="web", listen=(WEB[1],), pool="web")


class Clients(Factory):
    """
    Stands for a listener; it lets everybody in, and resets them in the next turn.

    @ivar met: how many.
    """

    noisy = False
    config = CONFIG

    def __init__(self) -> None:
        self.met = 0
        self.waiting: tuple[int, Deferred[None]] | None = None

    def buildProtocol(self, address: object) -> Protocol:
        self.met += 1
        reactor.callLater(0, self.told)
        return Client()

    def told(self) -> None:
        if self.waiting is not None and self.met >= self.waiting[0]:
            (_, waiting), self.waiting = self.waiting, None
            waiting.callback(None)

    def have_met(self, count: int) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self.waiting = count, waiting
        self.told()
        return waiting.addTimeout(PATIENCE, reactor)


class Client(Protocol):
    def connectionMade(self) -> None:
        transport: Any = self.transport
        reactor.callLater(0, transport.abortConnection)

    def readConnectionLost(self) -> None:
        """It is reset soon."""


class Inheriting:
    """Both pumps."""

    pump: Any

    def make_pump(self) -> Any:
        raise NotImplementedError

    def setUp(self) -> None:
        self.pump = self.make_pump()
        self.clients: Any = Clients()
        self.supervisors: list[socket.socket] = []
        self.addresses = Addresses(self.pump, {})
        cast(TestCase, self).addCleanup(lambda: Deferred.fromCoroutine(self.clean_up()))

    async def clean_up(self) -> None:
        self.addresses.leave()
        await self.addresses.closed()
        await deferLater(reactor, 0)
        await deferLater(reactor, 0)
        self.pump.stop()
        for sock in self.supervisors:
            sock.close()

    def listening(self, path: str = "") -> socket.socket:
        """As the supervisor has it."""
        if path:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(path)
            sock.listen()
        else:
            sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        self.supervisors.append(sock)
        return sock

    def handed(self, *sockets: socket.socket, owned: bool = True) -> Inherited:
        """As it comes from the supervisor."""
        return Inherited(owned, tuple(each.dup() for each in sockets))

    def bind(self, inherited: Inherited) -> None:
        case = cast(TestCase, self)
        self.addresses.inherit(WEB, inherited)
        case.assertEqual(self.addresses.bind(cast(Listener, self.clients), CONFIG), [WEB])

    def connect(self, sock: socket.socket) -> None:
        """Be a client of it who waits to be accepted, and has hung up already."""
        with socket.socket(sock.family) as client:
            client.settimeout(PATIENCE)
            client.connect(sock.getsockname())
        # A client knows that it is connected a little earlier than who listens.
        cast(TestCase, self).assertTrue(select.select([sock], [], [], PATIENCE)[0])

    def accept(self, sock: socket.socket) -> None:
        """Accept who has connected."""
        cast(TestCase, self).assertTrue(select.select([sock], [], [], PATIENCE)[0])
        sock.accept()[0].close()

    async def test_who_connects_is_accepted(self) -> None:
        case = cast(TestCase, self)
        sock = self.listening()
        self.connect(sock)
        self.bind(self.handed(sock))
        self.connect(sock)
        await self.clients.have_met(2)
        texts = self.addresses.texts(cast(Listener, self.clients))
        case.assertEqual(texts, (f"127.0.0.1:{sock.getsockname()[1]}",))

    async def test_of_all_sockets_of_an_address(self) -> None:
        first, second = self.listening(), self.listening()
        self.bind(self.handed(first, second))
        for sock in (first, second, second):
            self.connect(sock)
        await self.clients.have_met(3)

    async def test_closed_they_let_everybody_in_who_waits_and_nobody_after(self) -> None:
        case = cast(TestCase, self)
        first, second = self.listening(), self.listening()
        self.bind(self.handed(first, second))
        self.connect(first)
        self.connect(second)
        self.addresses.close([WEB])
        case.assertEqual(self.clients.met, 2)
        for sock in (first, second):  # which the supervisor has still
            case.assertRaises(ConnectionRefusedError, self.connect, sock)
        await self.addresses.closed()

    async def test_one_that_is_not_ours_stays_open(self) -> None:
        case = cast(TestCase, self)
        sock = self.listening()
        self.bind(self.handed(sock, owned=False))
        self.connect(sock)
        self.addresses.close([WEB])
        case.assertEqual(self.clients.met, 1)
        await self.addresses.closed()
        self.connect(sock)
        self.accept(sock)

    async def test_left_they_are_somebody_elses(self) -> None:
        case = cast(TestCase, self)
        sock = self.listening()
        self.bind(self.handed(sock))
        self.connect(sock)
        self.addresses.leave()
        case.assertEqual(self.addresses.bound, {})
        await self.addresses.closed()
        self.connect(sock)
        self.accept(sock)
        self.accept(sock)
        case.assertEqual(self.clients.met, 0)

    async def test_left_while_it_waits_for_descriptors(self) -> None:
        sock = self.listening()
        self.bind(self.handed(sock))
        ((port,),) = self.addresses.bound.values()
        cast(Any, port)._accept_later(OSError(24, "Too many open files"))
        self.addresses.leave()
        await self.addresses.closed()
        self.connect(sock)
        self.accept(sock)

    async def test_unbound_they_are_as_they_were(self) -> None:
        sock = self.listening()
        self.bind(self.handed(sock))
        self.addresses.unbind([WEB])
        await self.addresses.closed()
        self.connect(sock)
        self.accept(sock)
        self.bind(self.handed(sock))

    async def test_what_was_not_handed_over_can_not_be_listened_on(self) -> None:
        case = cast(TestCase, self)
        for handed in (None, Inherited(True, ())):
            if handed is not None:
                self.addresses.inherit(WEB, handed)
            wrong = case.assertRaises(CannotListen, self.addresses.bind, self.clients, CONFIG)
            case.assertEqual(
                str(wrong),
                f"cannot listen on {WEB[1]}: the supervisor has handed over no socket for it",
            )

    async def test_what_is_broken_leaves_the_rest_as_it_was(self) -> None:
        case = cast(TestCase, self)
        sock = self.listening()
        handed = self.handed(sock, sock)
        handed.sockets[1].close()
        self.addresses.inherit(WEB, handed)
        case.assertRaises(CannotListen, self.addresses.bind, self.clients, CONFIG)
        await self.addresses.closed()
        self.connect(sock)
        self.accept(sock)

    async def test_what_comes_a_second_time_takes_the_place_of_the_first(self) -> None:
        case = cast(TestCase, self)
        first, second = self.listening(), self.listening()
        handed = self.handed(first)
        self.addresses.inherit(WEB, handed)
        self.bind(self.handed(second))
        case.assertEqual(handed.sockets[0].fileno(), -1)
        self.connect(second)
        await self.clients.have_met(1)

    async def test_the_file_of_a_unix_socket_stays_as_it_is(self) -> None:
        case = cast(TestCase, self)
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        case.addCleanup(folder.cleanup)
        path = f"{folder.name}/socket"
        sock = self.listening(path)
        os.chmod(path, 0o600)
        self.bind(self.handed(sock))
        self.connect(sock)
        await self.clients.have_met(1)
        self.addresses.close([WEB])
        await self.addresses.closed()
        case.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        case.assertRaises(ConnectionRefusedError, self.connect, sock)


class SplicedTests(Inheriting, TestCase):
    def make_pump(self) -> Any:
        return SplicedPump(reactor, KeepAlive())


class BufferedTests(Inheriting, TestCase):
    def make_pump(self) -> Any:
        return BufferedPump(reactor, KeepAlive())

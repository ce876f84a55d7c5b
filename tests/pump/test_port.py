"""`fwdrelay.pump.port`: accepting, with a socket and a reactor that tests own."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any
from unittest import mock

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from fwdrelay.pump.port import FIRST_PAUSE, LONGEST_PAUSE, TCPPort
from fwdrelay.pump.spare import Spare
from fwdrelay.pump.spliced import _LoopTCPPort
from tests.case import SynchronousTestCase


class Reactor(Clock):
    """A clock, and what is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.discard(reader)

    removeWriter = removeReader


class Queue:
    """
    Stands for a listening socket.

    @ivar answers: what each accept comes to, in order; then nobody waits.
    """

    def __init__(self) -> None:
        self.answers: list[int | str] = []
        self.closed = False

    def accept(self) -> tuple[Any, tuple[str, int]]:
        answer = self.answers.pop(0) if self.answers else errno.EAGAIN
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return Accepted(), (answer, 1234)

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 5678

    def fileno(self) -> int:
        return -1

    def shutdown(self, how: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Accepted:
    """
    Stands for an accepted socket.

    @cvar closed: how many were closed.
    """

    closed = 0

    def fileno(self) -> int:
        return 5

    def close(self) -> None:
        Accepted.closed += 1


class Transport:
    """
    @cvar aborted: whose connections were reset.
    """

    aborted: list[str] = []

    def __init__(self, accepted: Any, protocol: Any, address: Any, *rest: object) -> None:
        self.address = address
        if address[0] == "breaks":
            raise ZeroDivisionError("a defect")

    def abortConnection(self) -> None:
        self.aborted.append(self.address[0])


class Client(Protocol):
    """
    @cvar met: who was accepted, by address.
    """

    met: list[str] = []

    def connectionMade(self) -> None:
        assert self.transport is not None
        address = self.transport.address[0]  # type: ignore[attr-defined]
        if address == "fails":
            raise OSError(errno.EMFILE, "a defect that looks like the machine's")
        self.met.append(address)


class PortTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        factory = Factory.forProtocol(Client)
        self.port = TCPPort(0, factory, reactor=self.reactor)
        self.queue = Queue()
        self.port.socket = self.queue
        self.port.transport = Transport  # type: ignore[assignment]
        self.port.connected = True
        self.port.fileno = lambda: 7  # type: ignore[method-assign]
        self.port.startReading()
        self.port.spare = Spare()
        self.addCleanup(self.port.spare.give_up)
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        Client.met = []
        Transport.aborted = []
        Accepted.closed = 0

    def told(self) -> list[str]:
        """What was logged, and how loudly."""
        return [
            f"{e['log_level'].name}: {formatEvent(e)}"
            for e in self.logged
            if e["log_namespace"].startswith("fwdrelay")
        ]

    @property
    def accepts(self) -> bool:
        """Whether it asks the reactor for connections."""
        return self.port in self.reactor.readers


class AcceptTests(PortTestCase):
    def test_whoever_waits_is_accepted_at_once(self) -> None:
        self.queue.answers = ["a", "b", "c"]
        self.port.doRead()
        self.assertEqual(Client.met, ["a", "b", "c"])

    def test_a_flood_is_taken_in_batches(self) -> None:
        self.queue.answers = ["a"] * 1000
        self.port.doRead()
        self.assertLess(len(Client.met), 1000)
        while self.queue.answers:
            self.port.doRead()
        self.assertEqual(len(Client.met), 1000)

    def test_a_connection_that_died_in_the_queue_costs_nobody_else(self) -> None:
        died = [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EINTR]
        self.queue.answers = ["a", *died, "b"]
        self.port.doRead()
        self.assertEqual(Client.met, ["a", "b"])
        self.assertEqual(self.told(), [])
        self.assertTrue(self.accepts)

    def test_a_protocol_that_fails_costs_nobody_else(self) -> None:
        self.queue.answers = ["a", "fails", "breaks", "b"]
        self.port.doRead()
        self.assertEqual(Client.met, ["a", "b"])
        self.assertEqual((Transport.aborted, Accepted.closed), (["fails"], 1))
        self.assertTrue(self.accepts)
        self.assertEqual(len(self.flushLoggedErrors(OSError, ZeroDivisionError)), 2)

    def test_a_socket_that_is_broken_is_the_reactors_to_close(self) -> None:
        self.queue.answers = [errno.EBADF]
        self.assertRaises(OSError, self.port.doRead)


class ShortageTests(PortTestCase):
    def test_it_pauses_longer_and_longer_up_to_a_second(self) -> None:
        pauses = []
        for _ in range(12):
            self.queue.answers = [errno.EMFILE]
            self.port.doRead()
            self.assertFalse(self.accepts)
            (call,) = self.reactor.getDelayedCalls()
            pauses.append(call.getTime() - self.reactor.seconds())
            self.reactor.advance(pauses[-1])
            self.assertTrue(self.accepts)
        for pause, factor in zip(pauses, range(12), strict=True):
            self.assertAlmostEqual(pause, min(FIRST_PAUSE * 2**factor, LONGEST_PAUSE))
        self.assertEqual(pauses[-1], LONGEST_PAUSE)

    def test_it_is_said_once_and_so_is_its_end(self) -> None:
        for shortage in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self.queue.answers = [shortage]
            self.port.doRead()
            self.reactor.advance(LONGEST_PAUSE)
        (told,) = self.told()
        self.assertTrue(told.startswith("error: "))
        for words in ("Too many open files", "5678", "ulimit -n", "--max-sessions"):
            self.assertIn(words, told)
        self.queue.answers = ["a", "b"]
        self.port.doRead()
        self.assertEqual(Client.met, ["a", "b"])
        self.assertEqual([line.partition(":")[0] for line in self.told()], ["error", "info"])

    def test_one_that_gets_in_makes_the_pause_short_again(self) -> None:
        for _ in range(2):
            self.queue.answers = [errno.EMFILE]
            self.port.doRead()
            self.reactor.advance(1)
        self.queue.answers = ["a", errno.EMFILE]
        self.port.doRead()
        (call,) = self.reactor.getDelayedCalls()
        self.assertAlmostEqual(call.getTime() - self.reactor.seconds(), FIRST_PAUSE)
        self.assertEqual(len(self.told()), 1)

    def test_it_is_over_when_nobody_waits_any_more_and_said_anew_the_next_time(self) -> None:
        for answers in ([errno.EMFILE], ["a"], [errno.EMFILE]):
            self.queue.answers = [*answers]
            self.port.doRead()
            self.reactor.advance(1)
        self.assertEqual(
            [line.partition(":")[0] for line in self.told()], ["error", "info", "error"]
        )

    def test_stopped_meanwhile_it_leaves_no_timer(self) -> None:
        self.queue.answers = [errno.EMFILE]
        self.port.doRead()
        self.port.stopListening()
        self.reactor.advance(0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.reactor.readers, set())


class StopTests(PortTestCase):
    def test_who_waits_in_the_queue_is_accepted_first(self) -> None:
        self.queue.answers = ["a"] * 1000
        stopping = self.port.stopListening()
        self.assertEqual(len(Client.met), 1000)
        self.reactor.advance(0)
        self.successResultOf(stopping)
        self.assertTrue(self.queue.closed)

    def test_a_shortage_then_is_not_waited_for(self) -> None:
        self.queue.answers = ["a", errno.EMFILE, "b"]
        stopping = self.port.stopListening()
        self.assertEqual(Client.met, ["a"])
        self.reactor.advance(0)
        self.successResultOf(stopping)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class DualTests(SynchronousTestCase):
    def test_all_addresses_of_ipv6_are_those_of_ipv4_too(self) -> None:
        port = TCPPort(0, Factory(), interface="::", reactor=Reactor())
        with port.createInternetSocket() as made:
            self.assertEqual(made.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), 0)


class LoopPortTests(SynchronousTestCase):
    def test_what_nobody_foresaw_pauses_it_instead_of_failing_again_at_once(self) -> None:
        clock = Clock()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = _LoopTCPPort(0, Factory(), reactor=clock)
            port.socket = listening
            port.pump = mock.Mock()
            port.startReading()
            port.failed()
            port.pump.loop.remove.assert_called_once_with(listening.fileno())
            clock.advance(FIRST_PAUSE)
            self.assertEqual(port.pump.loop.add.call_count, 2)

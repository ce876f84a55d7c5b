"""The spliced pump's dials: `fwdrelay.pump.spliced.Connecting`, as `ClientCreator` uses it."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import ClientCreator, Protocol
from twisted.python.failure import Failure

from fwdrelay.config import KeepAlive
from fwdrelay.pump.spliced import SplicedPump
from tests.pump.reactors import ReactorTestCase


class Fails(Protocol):
    """A protocol with a defect."""

    def connectionMade(self) -> None:
        raise ZeroDivisionError("a defect")


class ConnectingTests(ReactorTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.pump = SplicedPump(self.reactor, KeepAlive())
        self.pump.loop = self.loop
        self.addCleanup(self.pump.stop)

    def connect(self, path: str, protocol: type[Protocol] = Protocol) -> tuple[Any, list[Any]]:
        """
        @return: the Deferred, and what it has fired with.
        """
        connecting: Deferred[Any] = ClientCreator(self.pump, protocol).connectUNIX(path)
        outcome: list[Any] = []
        connecting.addBoth(outcome.append)
        return connecting, outcome

    def reason(self, outcome: list[Any]) -> type[BaseException]:
        """Why it failed, once it has."""
        self.turn(lambda: outcome)
        self.assertIsInstance(outcome[0], Failure)
        kind: type[BaseException] = outcome[0].type
        return kind

    def test_one_that_fails_at_once_is_told_of_later(self) -> None:
        _, outcome = self.connect("/there is no such path")
        self.assertEqual(outcome, [])
        self.assertTrue(issubclass(self.reason(outcome), error.ConnectError))

    def test_one_that_failed_at_once_may_be_cancelled_before_that_is_told(self) -> None:
        connecting, outcome = self.connect("/there is no such path")
        connecting.cancel()
        self.assertIs(self.reason(outcome), CancelledError)
        self.turn_while_busy()
        self.assertEqual(len(outcome), 1)

    def test_cancelled_while_it_connects(self) -> None:
        path = f"fwdrelay {os.getpid()} {id(self)}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"\0{path}")
            listening.listen()
            connecting, outcome = self.connect(f"\0{path}")
            connecting.cancel()
            self.assertIs(self.reason(outcome), CancelledError)
            self.turn_while_busy()
            accepted, _ = listening.accept()
            with accepted:
                self.assertEqual(accepted.recv(1), b"")

    def test_a_protocol_that_fails_is_no_connection_left_behind(self) -> None:
        path = f"fwdrelay {os.getpid()} {id(self)}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"\0{path}")
            listening.listen()
            self.connect(f"\0{path}", Fails)
            accepted, _ = listening.accept()
            with accepted:
                self.turn(lambda: self.flushLoggedErrors(ZeroDivisionError))
                self.turn_while_busy()
                accepted.settimeout(10)
                self.assertEqual(accepted.recv(1), b"")

"""`fwdrelay.process.signals`: what each signal asks of the relay."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from fwdrelay.process.signals import Signals
from tests.case import SynchronousTestCase

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Reactor:
    """Notes its stops, and makes the calls of threads when told to."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.calls: list[Callable[[], object]] = []

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        self.calls.append(lambda: call(*arguments))

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def stop(self) -> None:
        self.told.append("stop")


class Relay:
    """Notes what it is told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def cut_all(self) -> None:
        self.told.append("cut")

    def reload(self) -> None:
        self.told.append("reload")


class SignalsTests(SynchronousTestCase):
    def setUp(self) -> None:
        for number in NUMBERS:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.reactor = Reactor()
        self.before = [signal.getsignal(number) for number in NUMBERS]
        Signals(self.reactor, Relay(self.reactor.told)).startService()

    def send(self, *numbers: int) -> list[str]:
        """
        Send them to this process.

        @return: what the relay and its reactor were told by the end of the next turn.
        """
        for number in numbers:
            os.kill(os.getpid(), number)
        self.assertEqual(self.reactor.told, [])
        self.reactor.turn()
        return self.reactor.told

    def test_handlers_are_installed_only_when_the_reactor_runs(self) -> None:
        self.assertEqual([signal.getsignal(number) for number in NUMBERS], self.before)
        self.reactor.turn()
        self.assertNotIn(signal.getsignal(signal.SIGTERM), self.before)

    def test_one_stops(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.setUp()
            self.reactor.turn()
            self.assertEqual(self.send(number), ["stop"])

    def test_a_second_one_cuts(self) -> None:
        self.reactor.turn()
        self.assertEqual(self.send(signal.SIGTERM, signal.SIGINT), ["stop", "cut"])

    def test_a_third_one_cuts_what_came_since(self) -> None:
        self.reactor.turn()
        self.assertEqual(
            self.send(*[signal.SIGINT] * 3)[1:], ["cut"] * (len(self.reactor.told) - 1)
        )

    def test_hup_reloads_and_stops_nothing(self) -> None:
        self.reactor.turn()
        self.assertEqual(self.send(signal.SIGHUP), ["reload"])
        self.reactor.told.clear()
        self.assertEqual(self.send(signal.SIGTERM), ["stop"])

"""`fwdrelay.process.signals`: what each signal asks of the relay."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from fwdrelay.process.signals import Signals
from tests.case import SynchronousTestCase

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Reactor:
    """
    Notes its stops, and makes the calls of threads when told to.

    @ivar stopped_before: something else has stopped it.
    """

    def __init__(self) -> None:
        self.stopped_before = False
        self.told: list[str] = []
        self.calls: list[Callable[[], object]] = []
        self.triggers: list[Callable[[], object]] = []

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        self.calls.append(lambda: call(*arguments))

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def stop(self) -> None:
        if self.stopped_before:
            raise ReactorNotRunning
        self.told.append("stop")

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[[], object]) -> None:
        assert (phase, event) == ("before", "shutdown")
        self.triggers.append(call)

    def shut_down(self) -> None:
        for call in self.triggers:
            call()


class Relay:
    """Notes what it is told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def cut_all(self) -> None:
        self.told.append("cut")

    def reload(self) -> None:
        self.told.append("reload")

    def reopen_logs(self) -> None:
        self.told.append("reopen")

    def upgrade(self) -> None:
        self.told.append("upgrade")


class SignalsTests(SynchronousTestCase):
    def setUp(self) -> None:
        for number in NUMBERS:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.reactor = Reactor()
        self.before = [signal.getsignal(number) for number in NUMBERS]
        self.signals = Signals(self.reactor, Relay(self.reactor.told))
        self.signals.startService()

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

    def test_where_something_else_has_stopped_it_a_second_one_cuts_all_the_same(self) -> None:
        self.reactor.stopped_before = True
        self.signals.drain()
        self.signals.drain(now=True)
        self.assertEqual(self.reactor.told, ["cut"])
        self.reactor.turn()
        self.reactor.told.clear()
        self.assertEqual(self.send(signal.SIGTERM), ["cut"])

    def test_hup_reloads_and_stops_nothing(self) -> None:
        self.reactor.turn()
        self.assertEqual(self.send(signal.SIGHUP), ["reload"])
        self.reactor.told.clear()
        self.assertEqual(self.send(signal.SIGTERM), ["stop"])

    def test_usr1_opens_the_log_anew_and_nothing_else(self) -> None:
        self.reactor.turn()
        self.assertEqual(self.send(signal.SIGUSR1), ["reopen"])

    def test_usr2_upgrades_and_stops_nothing(self) -> None:
        self.reactor.turn()
        self.assertEqual(self.send(signal.SIGUSR2), ["upgrade"])
        self.reactor.told.clear()
        self.assertEqual(self.send(signal.SIGTERM), ["stop"])

    def test_those_that_a_renewal_has_kept_waiting_arrive(self) -> None:
        self.addCleanup(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGHUP})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        signal.signal(signal.SIGHUP, signal.default_int_handler)
        signal.raise_signal(signal.SIGHUP)  # for this thread: another would not have it wait
        self.reactor.turn()
        self.reactor.turn()
        self.assertEqual(self.reactor.told, ["reload"])

    def test_usr1_goes_on_rotating_twistd_s_own_log(self) -> None:
        rotated: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: rotated.append(number))
        self.reactor.turn()
        self.assertEqual(self.send(signal.SIGUSR1), ["reopen"])
        self.assertEqual(rotated, [signal.SIGUSR1])
        self.reactor.told.clear()
        self.assertEqual(self.send(signal.SIGHUP), ["reload"])
        self.assertEqual(len(rotated), 1)

    def test_a_drain_stops_once(self) -> None:
        self.reactor.turn()
        self.signals.drain()
        self.signals.drain()
        self.assertEqual(self.reactor.told, ["stop"])
        self.assertEqual(self.reactor.triggers, [])

    def test_a_signal_after_a_drain_is_the_second_one(self) -> None:
        self.reactor.turn()
        self.signals.drain()
        self.reactor.told.clear()
        self.assertEqual(self.send(signal.SIGTERM), ["cut"])

    def test_a_drain_after_a_signal_does_nothing(self) -> None:
        self.reactor.turn()
        self.send(signal.SIGTERM)
        self.signals.drain()
        self.assertEqual(self.reactor.told, ["stop"])

    def test_a_drain_now_cuts_once_nobody_is_accepted_any_more(self) -> None:
        self.reactor.turn()
        self.signals.drain(now=True)
        self.assertEqual(self.reactor.told, ["stop"])
        self.reactor.shut_down()
        self.assertEqual(self.reactor.told, ["stop", "cut"])

    def test_a_drain_now_cuts_what_is_left_of_an_earlier_one(self) -> None:
        self.reactor.turn()
        self.signals.drain()
        for cuts in (1, 2):
            self.signals.drain(now=True)
            self.assertEqual(self.reactor.told, ["stop", *["cut"] * cuts])
        self.assertEqual(self.reactor.triggers, [])

    def test_who_asked_is_told(self) -> None:
        with capture() as told:
            self.reactor.turn()
            self.signals.drain()
            self.signals.drain()
            self.signals.drain(now=True)
            self.send_again(signal.SIGUSR1, signal.SIGTERM)
        self.assertEqual(
            told,
            [
                "The admin API asks for it: stopping.",
                "The admin API asks for it: stopping at once.",
                "SIGUSR1: opening the access log anew.",
                "SIGTERM again: stopping at once.",
            ],
        )

    def send_again(self, *numbers: int) -> None:
        """Send them, whatever was told before."""
        self.reactor.told.clear()
        self.send(*numbers)


@contextmanager
def capture() -> Iterator[list[str]]:
    """What is logged within a `with` block."""
    told: list[str] = []

    def observer(event: LogEvent) -> None:
        if event["log_namespace"].startswith("fwdrelay"):
            told.append(formatEvent(event))

    observing: Any = observer
    globalLogPublisher.addObserver(observing)
    try:
        yield told
    finally:
        globalLogPublisher.removeObserver(observing)

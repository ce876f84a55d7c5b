"""The test cases themselves: what leaks must fail, what does not must pass."""

from __future__ import annotations

import gc
import os
import socket
import threading
import unittest as pyunit
from typing import TYPE_CHECKING, Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial import reporter, unittest

from tests import case

if TYPE_CHECKING:
    from collections.abc import Callable

reactor: Any = installed


class Cycle:
    """Something that only the garbage collector gets rid of."""

    def __init__(self, held: object) -> None:
        self.held = held
        self.itself = self


class Breaks:
    """Fails where nobody looks."""

    def __del__(self) -> None:
        raise ValueError("broken on the way out")


class Samples:
    """
    Tests that are run by the tests below, never by a runner (which is why they stand in here).

    What they leave goes to the two lists, so that the tests below can clean up.
    """

    descriptors: list[int] = []
    finish: list[Callable[[], object]] = []

    class Synchronous(case.SynchronousTestCase):
        def sample_clean(self) -> None:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
            thread = threading.Thread(target=lambda: None)
            thread.start()

        def sample_descriptor(self) -> None:
            Samples.descriptors.append(os.open("/dev/null", os.O_RDONLY))

        def sample_same_number(self) -> None:
            # The number was open before the test; what it is open on is new.
            os.close(Samples.descriptors[0])
            Samples.descriptors[0] = os.open("/dev/zero", os.O_RDONLY)

        def sample_socket(self) -> None:
            sock = socket.create_server(("127.0.0.1", 0))
            Samples.descriptors.append(sock.detach())

        def sample_forgotten_socket(self) -> None:
            socket.socket()

        def sample_forgotten_cycle(self) -> None:
            Cycle(socket.socket())

        def sample_thread(self) -> None:
            release = threading.Event()
            thread = threading.Thread(target=release.wait, name="stays")
            thread.start()
            Samples.finish += [release.set, thread.join]

        def sample_thread_fails(self) -> None:
            thread = threading.Thread(target=lambda: 1 // 0, name="fails")
            thread.start()
            thread.join()

        def sample_unraisable(self) -> None:
            Breaks()

        def sample_unraisable_cycle(self) -> None:
            Cycle(Breaks())

        def sample_fails_and_leaks(self) -> None:
            Samples.descriptors.append(os.open("/dev/null", os.O_RDONLY))
            self.fail("on purpose")

        def sample_skips(self) -> None:
            raise unittest.SkipTest("on purpose")

    class Waiting(case.TestCase):
        async def sample_clean(self) -> None:
            pause: Deferred[None] = Deferred()
            reactor.callLater(0, pause.callback, None)
            await pause
            await deferToThread(os.getpid)
            port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
            await port.stopListening()

        async def sample_socket(self) -> None:
            Samples.descriptors.append(socket.socket().detach())

        async def sample_port(self) -> None:
            # Trial itself complains of this one.
            port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
            Samples.finish.append(port.socket.close)

        async def sample_forgotten_cycle(self) -> None:
            Cycle(socket.socket())


class RunsSamples(unittest.SynchronousTestCase):
    """Runs one sample under each kind of result, and looks at what was reported."""

    def setUp(self) -> None:
        gc.collect()
        self.patch(case, "GRACE", 0.05)
        self.patch(Samples, "descriptors", [])
        self.patch(Samples, "finish", [])
        self.addCleanup(self.clean_up)

    def clean_up(self) -> None:
        for descriptor in Samples.descriptors:
            os.close(descriptor)
        for finish in Samples.finish:
            finish()

    def outcome(self, sample: unittest.SynchronousTestCase) -> tuple[int, list[str]]:
        """How many successes, and the errors as text; the same from trial and from unittest."""
        of_trial = reporter.TestResult()
        sample.run(of_trial)
        errors: list[Any] = [error for _, error in of_trial.errors + of_trial.failures]
        told = [error.getErrorMessage() for error in errors]
        self.assertEqual(of_trial.testsRun, 1)
        return of_trial.successes, told


class SynchronousTests(RunsSamples):
    def assert_left(self, name: str, *words: str) -> None:
        successes, told = self.outcome(Samples.Synchronous(name))
        self.assertEqual((successes, len(told)), (0, 1), told)
        for word in words:
            self.assertIn(word, told[0])

    def test_clean(self) -> None:
        self.assertEqual(self.outcome(Samples.Synchronous("sample_clean")), (1, []))

    def test_descriptor(self) -> None:
        self.assert_left("sample_descriptor", "/dev/null is open still")

    def test_descriptor_of_the_same_number(self) -> None:
        Samples.descriptors.append(os.open("/dev/null", os.O_RDONLY))
        self.assert_left("sample_same_number", "/dev/zero is open still")

    def test_socket_is_described(self) -> None:
        self.assert_left("sample_socket", "AF_INET SOCK_STREAM at ('127.0.0.1', ", "open still")

    def test_forgotten_socket(self) -> None:
        self.assert_left("sample_forgotten_socket", "unclosed <socket")

    def test_forgotten_in_a_cycle(self) -> None:
        self.assert_left("sample_forgotten_cycle", "ResourceWarning", "unclosed <socket")

    def test_thread(self) -> None:
        self.assert_left("sample_thread", "thread 'stays' still runs")

    def test_exception_in_a_thread(self) -> None:
        self.assert_left("sample_thread_fails", "unhandled in thread 'fails'", "ZeroDivisionError")

    def test_exception_in_a_destructor(self) -> None:
        self.assert_left("sample_unraisable", "broken on the way out")

    def test_exception_in_a_destructor_in_a_cycle(self) -> None:
        self.assert_left("sample_unraisable_cycle", "broken on the way out")

    def test_a_failure_is_told_alone(self) -> None:
        successes, told = self.outcome(Samples.Synchronous("sample_fails_and_leaks"))
        self.assertEqual((successes, told), (0, ["on purpose"]))

    def test_a_skip_stays_a_skip(self) -> None:
        of_trial = reporter.TestResult()
        Samples.Synchronous("sample_skips").run(of_trial)
        self.assertEqual((of_trial.successes, len(of_trial.skips), of_trial.errors), (0, 1, []))

    def test_under_unittests_own_result(self) -> None:
        result = pyunit.TestResult()
        Samples.Synchronous("sample_descriptor").run(result)
        Samples.Synchronous("sample_clean").run(result)
        self.assertEqual((result.testsRun, len(result.errors)), (2, 1))
        self.assertIn("/dev/null is open still", result.errors[0][1])


class WaitingTests(RunsSamples):
    """The samples that wait run in a reactor of their own time: these tests must not wait."""

    def test_clean(self) -> None:
        self.assertEqual(self.outcome(Samples.Waiting("sample_clean")), (1, []))

    def test_socket(self) -> None:
        successes, told = self.outcome(Samples.Waiting("sample_socket"))
        self.assertEqual((successes, len(told)), (0, 1), told)
        self.assertIn("is open still", told[0])

    def test_forgotten_in_a_cycle(self) -> None:
        successes, told = self.outcome(Samples.Waiting("sample_forgotten_cycle"))
        self.assertEqual((successes, len(told)), (0, 1), told)
        self.assertIn("unclosed <socket", told[0])

    def test_port(self) -> None:
        successes, told = self.outcome(Samples.Waiting("sample_port"))
        self.assertEqual((successes, len(told)), (0, 1), told)
        self.assertIn("Reactor was unclean", told[0])

"""
The test cases that all tests build on: trial's own, which also fail what leaves something behind.

`SynchronousTestCase` and `TestCase` have trial's names and manners. A test that would pass fails
with `LeftBehind` all the same when, after its cleanups,

- a file descriptor is open that was not open before it (the reactor's own are known by asking it);
- a thread runs that did not run before it (the reactor's pool excepted);
- something died unseen: a `ResourceWarning`, an exception in a destructor or in a thread.

They work alike under `python -m twisted.trial tests` and `python -m pytest`. No example of Hypothesis
has to come to an end within a time.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import socket
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from twisted.python.failure import Failure
from twisted.trial import unittest
from twisted.trial.itrial import IReporter
from twisted.trial.reporter import TestResultDecorator
from twisted.trial.unittest import PyUnitResultAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

GRACE = 5.0
"""Seconds that a thread that is ending has to end, before it counts as left behind."""
EVERY = 50
"""Tests, until the collector looks through everything again."""

_NUMBERS = itertools.count(1)

# A machine may stall at any example, and for longer than Hypothesis thinks right.
settings.register_profile(
    "fwdrelay", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fwdrelay")


class LeftBehind(AssertionError):
    """A test left descriptors, threads or unseen exceptions behind."""


def open_descriptors() -> dict[int, str]:
    """Each open file descriptor with what it is open on, as the kernel names it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        # The folder's own descriptor is listed too, and is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def reactors_descriptors() -> set[int]:
    """
    The file descriptors that the installed reactor keeps for itself, whenever it opened them: its
    epoll set, both ends of its wakers, and the one that `tcp.Port` holds in reserve against EMFILE.
    """
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    wakers = getattr(reactor, "_internalReaders", ())
    poller = getattr(reactor, "_poller", None)
    tcp: Any = sys.modules.get("twisted.internet.tcp")
    reserve = getattr(getattr(tcp, "_reservedFD", None), "_fileDescriptor", None)
    held = (each for each in (*wakers, poller, reserve) if hasattr(each, "fileno"))
    return {each.fileno() for each in held} | {waker.o for waker in wakers if hasattr(waker, "o")}


def reactors_threads() -> set[threading.Thread]:
    """The threads of the installed reactor's pool."""
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    pool = getattr(reactor, "threadpool", None)
    return set() if pool is None else set(pool.threads)


def describe(descriptor: int, target: str) -> str:
    """What a descriptor is, in words that help to find who opened it."""
    words = f"descriptor {descriptor}: {target}"
    if target.startswith("socket:"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
            words += f", {sock.family.name} {sock.type.name} at {sock.getsockname()!r}"
            with contextlib.suppress(OSError):
                words += f", peer {sock.getpeername()!r}"
    return words


class Watch(TestResultDecorator):
    """
    Stands between one test and the result it reports to: success is passed on only at the test's
    end, and only when nothing was left behind.
    """

    def __init__(self, result: Any, unseen: list[str]) -> None:
        super().__init__(result)
        self.unseen = unseen
        self.descriptors = open_descriptors()
        self.threads = set(threading.enumerate())
        self.success = False
        # The collector need not look, at the end of each test, through all that was there before.
        gc.freeze()

    def addSuccess(self, test: unittest.SynchronousTestCase) -> None:
        self.success = True

    def addError(self, test: unittest.SynchronousTestCase, error: Any) -> None:
        # What comes after a success (a warning that was raised again) takes it back.
        self.success = False
        self._originalReporter.addError(test, error)

    def stopTest(self, test: unittest.SynchronousTestCase) -> None:
        if self.success:
            found = list(self.left_behind())
            if found:
                self._originalReporter.addError(test, Failure(LeftBehind("; ".join(found))))
            else:
                self._originalReporter.addSuccess(test)
        gc.unfreeze()
        self._originalReporter.stopTest(test)

    def left_behind(self) -> Iterator[str]:
        """What the test left behind, one description each."""
        new = set(threading.enumerate()) - self.threads - reactors_threads()
        deadline = time.monotonic() + GRACE
        for thread in new:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                yield f"thread {thread.name!r} still runs"
        # Seen before the collector closes what nobody refers to any more...
        before = self.open_still()
        gc.collect()
        # ... which is then told by its ResourceWarning, here.
        yield from self.unseen
        after = self.open_still()
        for descriptor, target in sorted(after.items()):
            yield describe(descriptor, target) + " is open still"
        if not self.unseen:
            for descriptor, target in sorted(before.items() - after.items()):
                yield f"descriptor {descriptor}: {target} was closed by the garbage collector"

    def open_still(self) -> dict[int, str]:
        """The descriptors that are open now and were not when the test began."""
        own = reactors_descriptors()
        return {
            descriptor: target
            for descriptor, target in open_descriptors().items()
            if self.descriptors.get(descriptor) != target and descriptor not in own
        }


@contextlib.contextmanager
def watching_for_the_unseen() -> Iterator[list[str]]:
    """Collect what the interpreter could only have printed: in destructors and in threads."""
    unseen: list[str] = []

    def unraisable(event: sys.UnraisableHookArgs) -> None:
        said = event.exc_value or event.exc_type
        unseen.append(f"{event.err_msg or 'ignored'}: {said!r} in {event.object!r}")

    def in_thread(event: threading.ExceptHookArgs) -> None:
        name = event.thread.name if event.thread is not None else "?"
        unseen.append(f"unhandled in thread {name!r}: {event.exc_value!r}")

    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            yield unseen
    finally:
        sys.unraisablehook, threading.excepthook = hooks


class LeavesNothingBehind(unittest.SynchronousTestCase):
    """The mixin: runs any of trial's test cases under a `Watch`."""

    def run(self, result: Any = None) -> None:
        """Run the test, and report to `result`, which is trial's, pytest's or unittest's."""
        reporter: Any = IReporter(result, None)
        if reporter is None:
            reporter = PyUnitResultAdapter(result)
        if next(_NUMBERS) % EVERY == 0:
            gc.collect()
        with watching_for_the_unseen() as unseen:
            super().run(Watch(reporter, unseen))


class SynchronousTestCase(LeavesNothingBehind):
    """For tests that need no reactor."""


class TestCase(LeavesNothingBehind, unittest.TestCase):
    """For tests that wait: `async def test_…`, or a Deferred returned."""

"""
What tests of the pump's loop share: reactors of their own, which they turn by hand, one of each kind
that a loop can join.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor

from fwdrelay.pump.loop import Loop
from tests.case import SynchronousTestCase

PATIENCE = 20.0
REACTORS: dict[str, Any] = {"EPoll": EPollReactor, "Select": SelectReactor, "Poll": PollReactor}
"""The first is joined inverted; the others lack what that needs, each in its way."""
_EACH = ("EPoll", "Select")


class ReactorTestCase(SynchronousTestCase):
    """
    Its tests run with a loop in Twisted's epoll reactor; a subclass in the same module, named so, runs
    them with one in the select reactor. Whoever names a `kind` gets that alone.

    @ivar reactor: nobody runs it; see `turn`.
    @ivar loop: must be idle at the end, and have left the reactor.
    """

    kind: ClassVar[str] = _EACH[0]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "kind" in cls.__dict__:
            return
        for kind in _EACH[1:]:
            name = f"{cls.__name__}{kind}"
            inner = {"kind": kind, "__module__": cls.__module__, "__doc__": cls.__doc__}
            setattr(sys.modules[cls.__module__], name, type(name, (cls,), inner))

    @property
    def inverted(self) -> bool:
        """Whether the loop takes the reactor's place."""
        return self.kind == "EPoll"

    def setUp(self) -> None:
        self.reactor = self.new_reactor()
        self.loop = Loop(self.reactor)
        self.addCleanup(self.has_left)

    def new_reactor(self) -> Any:
        """A reactor that the test's end closes."""
        reactor = REACTORS[self.kind]()

        def close() -> None:
            for reader in list(reactor._internalReaders):
                reactor.removeReader(reader)
                reader.connectionLost(None)
            if self.inverted:
                reactor._poller.close()

        self.addCleanup(close)
        return reactor

    def has_left(self) -> None:
        """Assert that the reactor is as it was."""
        self.turn_while_busy()
        self.assertEqual(self.loop.fileno(), -1)
        self.assertNotIn("doIteration", vars(self.reactor))
        self.assertNotIn(self.loop, self.reactor.getReaders())
        self.assertEqual([c for c in self.reactor.getDelayedCalls() if c.active()], [])

    def has_joined(self) -> None:
        """Assert that the reactor serves the loop."""
        self.assertGreaterEqual(self.loop.fileno(), 0)
        self.assertEqual("doIteration" in vars(self.reactor), self.inverted)
        self.assertEqual(self.loop in self.reactor.getReaders(), not self.inverted)

    def turn(self, until: Callable[[], object]) -> None:
        """Let the reactor run until something has come true; fails when it doesn't."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            if time.monotonic() > deadline:
                raise AssertionError("it never came true")
            self.reactor.iterate(0.002)

    def turn_while_busy(self) -> None:
        """Let the reactor run until whatever can happen by itself has happened."""
        for _ in range(8):
            # The kernel may have passed on a packet to a thread of its own: this one lets it have its turn.
            self.reactor.iterate(0.001)

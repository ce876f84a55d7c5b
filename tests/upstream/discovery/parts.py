"""What the tests of discoveries share: a reactor whose time they own, and logs and findings to wait for."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.task import Clock, deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from fwdrelay.config import DiscoverConfig, TargetConfig

reactor: Any = installed_reactor


def turn() -> Deferred[None]:
    """Wait until whoever has just told us something has done what it does after that, too."""
    return deferLater(reactor, 0)


class OwnTime(Clock):
    """A clock that tests own, with the sockets of the real reactor."""

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class Log:
    """
    What was logged by fwdrelay, as an operator reads it.

    @ivar lines: the texts of all events so far.
    """

    def __init__(self, test: SynchronousTestCase) -> None:
        self.lines: list[str] = []
        self._queue: DeferredQueue[str] = DeferredQueue()
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        test.addCleanup(globalLogPublisher.removeObserver, observer)

    def _observe(self, event: Any) -> None:
        if str(event.get("log_namespace", "")).startswith("fwdrelay."):
            line = formatEvent(event)
            self.lines.append(line)
            self._queue.put(line)

    async def wait_for(self, text: str) -> str:
        """Wait for a line with this text in it, which was not waited for before."""
        while text not in (line := await self._queue.get()):
            pass
        await turn()
        return line


class Findings:
    """
    Hears what a `Following` finds.

    @ivar all: each list of targets, in the order they were told.
    """

    def __init__(self) -> None:
        self.all: list[tuple[TargetConfig, ...]] = []
        self._queue: DeferredQueue[tuple[TargetConfig, ...]] = DeferredQueue()

    def __call__(self, targets: tuple[TargetConfig, ...]) -> None:
        self.all.append(targets)
        self._queue.put(targets)

    async def next(self) -> tuple[TargetConfig, ...]:
        """Wait for the next that was not waited for before."""
        targets = await self._queue.get()
        await turn()
        return targets


def discover(text: str) -> DiscoverConfig:
    """A configuration, from what an operator writes."""
    scheme, _, argument = text.partition(":")
    return DiscoverConfig(scheme=scheme, argument=argument)


def labels(targets: tuple[TargetConfig, ...]) -> list[str]:
    """What log and metrics call them."""
    return [target.label for target in targets]


def no_chance() -> float:
    """For `Following`: no jitter."""
    return 0.0

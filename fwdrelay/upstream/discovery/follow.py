"""
Following a discovery: it is asked again and again, and whoever follows it hears what changed.

What is found, and how, is the discoveries' own matter. What becomes of targets that come and go is the
pool's.
"""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from attrs import evolve
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...config import DiscoverConfig, TargetConfig
from ...errors import DiscoveryFailed
from ...interfaces import Found, IDiscovery

SHORTEST = 1.0
LONGEST = 300.0
"""Seconds between an answer and the next question, whatever the answer's time to live."""
JITTER = 0.1
"""What part of the time to live it may take longer, so that relays do not all ask at once."""
FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds between a failure and the next question: twice as long each time."""
MOST_REASONS = 8
"""Different reasons that are told while it fails; each begins the waiting anew."""
MOST_TARGETS = 1000
"""More than so many of one discovery are not taken."""
_TOLD = 8  # labels in one line of the log


class Following:
    """
    Asks one discovery until it is stopped.

    @param clock: `twisted.internet.interfaces.IReactorTime`.
    @param found: called with all targets when they are others than before; the first time whatever they
        are. A discovery that need not wait is answered within `start`.
    @param pool: its name, for the log.
    @param chance: returns numbers from 0 up to 1.
    @ivar known: what was found last; None: nothing was found yet, not even that there is nothing.
    @ivar failing: why the last question failed; empty: it did not.
    """

    log = Logger()

    def __init__(
        self,
        discovery: IDiscovery,
        config: DiscoverConfig,
        clock: Any,
        found: Callable[[tuple[TargetConfig, ...]], None],
        pool: str,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.known: tuple[TargetConfig, ...] | None = None
        self.failing = ""
        self._discovery = discovery
        self._config = config
        self._clock = clock
        self._tell = found
        self._pool = pool
        self._chance = chance
        self._running = False
        self._asking: Deferred[None] | None = None
        self._timer: Any = None
        self._retry = FIRST_RETRY
        self._said: set[str] = set()
        self._cut = False

    def start(self) -> None:
        """Ask, and go on asking."""
        self._running = True
        self._ask()

    def stop(self) -> None:
        """Ask no more. `found` is not called any more, whatever is on its way."""
        self._running = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def _ask(self) -> None:
        self._timer = None
        self._asking = Deferred.fromCoroutine(self._discover())
        self._asking.addErrback(self._broke)

    async def _discover(self) -> None:
        try:
            # Whatever it is that a plugin returns, what is wrong with it is found out here.
            discovered = cast("Awaitable[object]", self._discovery.discover())
            found = checked(await discovered)
        except Exception as error:
            if self._running:
                self._failed(error)
        else:
            if self._running:
                self._found(found)

    def _broke(self, failure: Failure) -> None:
        # No Exception, such as SystemExit, or a mistake of ours: it must not be the last question.
        if self._running:
            self._failed(cast("BaseException", failure.value))

    def _ask_again(self, delay: float) -> None:
        self._asking = None
        if self._running:  # still, after `found` was called
            self._timer = self._clock.callLater(delay, self._ask)

    def _found(self, found: Found) -> None:
        self._retry = FIRST_RETRY
        self._said.clear()
        before, self.known = self.known, self._ours(found.targets)
        was_failing, self.failing = self.failing, ""
        if was_failing:
            self.log.info(
                "Pool {pool}: {discover} works again: {targets}.",
                pool=self._pool,
                discover=self._config,
                targets=_count(self.known),
            )
        if before is None or _as_set(before) != _as_set(self.known):
            self._say_changes(before or ())
            try:
                self._tell(self.known)
            except Exception:
                self.log.failure(
                    "Pool {pool} could not take what {discover} found",
                    pool=self._pool,
                    discover=self._config,
                )
        bounded = min(max(found.ttl, SHORTEST), LONGEST)
        self._ask_again(bounded * (1 + JITTER * self._chance()))

    def _ours(self, targets: tuple[TargetConfig, ...]) -> tuple[TargetConfig, ...]:
        """As the configuration wants what is found there."""
        too_many = len(targets) > MOST_TARGETS
        if too_many and not self._cut:
            self.log.warn(
                "Pool {pool}: {discover} has {count} targets; only the first {most} are taken.",
                pool=self._pool,
                discover=self._config,
                count=len(targets),
                most=MOST_TARGETS,
            )
        self._cut = too_many
        return tuple(
            evolve(
                target,
                backup=target.backup or self._config.backup,
                max_sessions=target.max_sessions or self._config.max_sessions,
            )
            for target in targets[:MOST_TARGETS]
        )

    def _say_changes(self, before: tuple[TargetConfig, ...]) -> None:
        assert self.known is not None
        labels = {target.label for target in self.known}
        labels_before = {target.label for target in before}
        new, gone = labels - labels_before, labels_before - labels
        others = {target.label for target in _as_set(self.known) - _as_set(before)}
        self.log.info(
            "Pool {pool}: {discover} has {targets}{changes}.",
            pool=self._pool,
            discover=self._config,
            targets=_count(self.known),
            changes="".join(
                f"; {word}: {_some(which)}"
                for word, which in (("new", new), ("changed", others - new), ("gone", gone))
                if which
            ),
        )

    def _failed(self, error: BaseException) -> None:
        self.failing = _sentence(error)
        if self.failing not in self._said and len(self._said) < MOST_REASONS:
            self._said.add(self.failing)
            self._retry = FIRST_RETRY
            self.log.warn(
                "Pool {pool}: {discover}: {failing}; {consequence}.",
                pool=self._pool,
                discover=self._config,
                failing=self.failing,
                consequence="no target is known from it yet"
                if self.known is None
                else f"going on with {_count(self.known)} known from it",
            )
        retry = self._retry
        self._retry = min(2 * retry, LAST_RETRY)
        # Earlier rather than later: the bounds are what an operator was promised.
        self._ask_again(retry * (1 - 2 * JITTER * self._chance()))


def checked(found: object) -> Found:
    """
    @param found: what a discovery has returned.
    @raise DiscoveryFailed: it can't be used.
    """
    if not isinstance(found, Found):
        raise DiscoveryFailed(f"it returned {_short(found)}, which is not a Found")
    if not _is_number(found.ttl) or not math.isfinite(found.ttl):
        raise DiscoveryFailed(f"a ttl of {_short(found.ttl)} is not a number of seconds")
    labels: set[str] = set()
    for target in found.targets:
        _check(target)
        if target.label in labels:
            raise DiscoveryFailed(f"it has {target.label} twice: give one of them another name")
        labels.add(target.label)
    return found


def _check(target: object) -> None:
    if not isinstance(target, TargetConfig):
        raise DiscoveryFailed(f"{_short(target)} is not a TargetConfig")
    numbers = {
        "weight": (target.weight, 1, None),
        "max_sessions": (target.max_sessions, 0, None),
        "priority": (target.priority, 0, None),
        "port": (target.port, 0 if target.path else 1, 65535),
    }
    for key, (value, least, most) in numbers.items():
        if not _is_whole(value) or value < least or (most is not None and value > most):
            raise DiscoveryFailed(
                f"{_short(target.label)} has a {key} of {_short(value)}: it is a whole number from {least} "
                + ("up" if most is None else f"to {most}")
            )
    texts = {"host": target.host, "path": target.path, "name": target.name}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise DiscoveryFailed(f"a target has a {key} of {_short(text)}, which is not a text")
        # They stand between blanks in a line of the log.
        if not text.isprintable() or (" " in text and key != "path"):
            raise DiscoveryFailed(
                f"a target has a {key} of {_short(text)}, which has blanks or control characters"
            )
    if not isinstance(target.backup, bool):
        raise DiscoveryFailed(
            f"{_short(target.label)} has a backup of {_short(target.backup)}: it is True or False"
        )
    if bool(target.host) == bool(target.path):
        raise DiscoveryFailed(f"{_short(target.label)} has not one of a host and a path")
    for address in target.addresses:
        if not (isIPAddress(address) or isIPv6Address(address)):
            raise DiscoveryFailed(f"{_short(address)}, of {target.label}, is not an IP address")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as_set(targets: Iterable[TargetConfig]) -> frozenset[TargetConfig]:
    """Targets that say the same in another order are the same, and so are their addresses."""
    return frozenset(
        evolve(target, addresses=tuple(sorted(target.addresses))) for target in targets
    )


def _count(targets: tuple[TargetConfig, ...]) -> str:
    return "1 target" if len(targets) == 1 else f"{len(targets)} targets"


def _some(labels: Iterable[str]) -> str:
    ordered = sorted(labels)
    more = len(ordered) - _TOLD
    return ", ".join(ordered[:_TOLD]) + (f" and {more} more" if more > 0 else "")


def _sentence(error: BaseException) -> str:
    """What happened; of what nobody foresaw also where, or a plugin's author would look for long."""
    if isinstance(error, DiscoveryFailed) and str(error):
        return str(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return said
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})"

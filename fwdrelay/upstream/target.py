"""One target at run time: what was asked for, how it is, and how many sessions are on it."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from attrs import define, field
from twisted.internet.abstract import isIPAddress, isIPv6Address
from zope.interface import implementer

from ..config import TargetConfig
from ..histogram import DIALS, Histogram
from ..interfaces import ITarget

TargetState: TypeAlias = Literal["ready", "drain", "down"]
"""What an operator can want a target to be."""
# Of a new dial, what goes into the moving average.
_NEWEST = 0.125


@define(eq=False)
class Dials:
    """
    What opening connections to one target for sessions has come to, since it is a target.

    @ivar seconds: how long it took, where it was done.
    @ivar failures: how many failed, by cause; see `fwdrelay.dial.CAUSES`.
    @ivar average: seconds that it takes of late; None: it was never done.
    """

    seconds: Histogram = field(factory=lambda: Histogram(DIALS))
    failures: dict[str, int] = field(factory=dict)
    average: float | None = None

    def done(self, seconds: float) -> None:
        """One more was opened."""
        if seconds < 0.0:  # the clock was set back
            seconds = 0.0
        self.seconds.add(seconds)
        average = self.average
        self.average = seconds if average is None else average + (seconds - average) * _NEWEST

    def failed(self, cause: str) -> None:
        """One more failed."""
        self.failures[cause] = self.failures.get(cause, 0) + 1


@implementer(ITarget)
@define(eq=False)
class Target:
    """
    @ivar config: what was asked for, or found; see `change`.
    @ivar label: what log and metrics call it.
    @ivar literal: its host is an IP address, which needs no looking up.
    @ivar limit: so many sessions may be on it; infinite: any number.
    @ivar share: its share of an election now; see `fwdrelay.interfaces.ITarget`.
    @ivar sessions: sessions of this process that are on this target or being dialed to it.
    @ivar up: whether it is thought to be able to take sessions.
    @ivar cause: why it is up or down; empty: nothing was found out yet.
    @ivar since: when it came or went up or down, by the clock; 0: it has been up from the start.
    @ivar removed: it is no longer one of its pool's; sessions may still be on it.
    @ivar state: what an operator wants it to be: `ready`; `drain`: it gets no more sessions; `down`: as one
        that was found to be down.
    @ivar own_weight: the weight that an operator has given it while it runs; None: the configured one counts.
    @ivar dials: what came of connecting to it.
    @ivar key: what a ledger counts its sessions by; 0: there is none.
    """

    config: TargetConfig
    label: str = field(init=False)
    literal: bool = field(init=False)
    limit: float = field(init=False)
    share: float = field(init=False)
    sessions: int = 0
    up: bool = True
    cause: str = ""
    since: float = 0.0
    removed: bool = False
    state: TargetState = "ready"
    own_weight: int | None = None
    dials: Dials = field(factory=Dials)
    key: int = 0

    def __attrs_post_init__(self) -> None:
        self.change(self.config)

    def change(self, config: TargetConfig) -> None:
        """
        @param config: with the same label and address, but perhaps another weight or limit.
        """
        if config.weight != self.config.weight:
            self.own_weight = None  # what the file says now was said later
        self.config = config
        self.label = config.label
        self.literal = isIPAddress(config.host) or isIPv6Address(config.host)
        self.limit = config.max_sessions or math.inf
        self.share = self.weight

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it the same target after a reload."""
        return self.label, self.config.address

    @property
    def weight(self) -> int:
        """Its share, as configured, or as an operator has said since."""
        return self.config.weight if self.own_weight is None else self.own_weight

    @property
    def electable(self) -> bool:
        """Whether it may be elected at all, as far as health checks and operators go."""
        return self.up and self.state == "ready"

    @property
    def tier(self) -> tuple[bool, int]:
        """Backup or not, and its priority: elected from is the lowest that has a target left."""
        return self.config.backup, self.config.priority

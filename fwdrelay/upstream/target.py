"""One target at run time: what was asked for, how it is, and how many sessions are on it."""

from __future__ import annotations

import math

from attrs import define, field
from twisted.internet.abstract import isIPAddress, isIPv6Address
from zope.interface import implementer

from ..config import TargetConfig
from ..interfaces import ITarget


@implementer(ITarget)
@define(eq=False)
class Target:
    """
    @ivar config: what was asked for, or found; see `change`.
    @ivar label: what log and metrics call it.
    @ivar literal: its host is an IP address, which needs no looking up.
    @ivar limit: so many sessions may be on it; infinite: any number.
    @ivar share: its share of an election now; see `fwdrelay.interfaces.ITarget`.
    @ivar sessions: sessions that are on this target or being dialed to it.
    @ivar up: whether it is thought to be able to take sessions.
    @ivar cause: why it is up or down; empty: nothing was found out yet.
    @ivar since: when it came or went up or down, by the clock; 0: it has been up from the start.
    @ivar removed: it is no longer one of its pool's; sessions may still be on it.
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

    def __attrs_post_init__(self) -> None:
        self.change(self.config)

    def change(self, config: TargetConfig) -> None:
        """
        @param config: with the same label and address, but perhaps another weight or limit.
        """
        self.config = config
        self.label = config.label
        self.literal = isIPAddress(config.host) or isIPv6Address(config.host)
        self.limit = config.max_sessions or math.inf
        self.share = config.weight

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it the same target after a reload."""
        return self.label, self.config.address

    @property
    def weight(self) -> int:
        """Its configured share."""
        return self.config.weight

    @property
    def tier(self) -> tuple[bool, int]:
        """Backup or not, and its priority: elected from is the lowest that has a target left."""
        return self.config.backup, self.config.priority

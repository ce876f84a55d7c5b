"""One target at run time: what was asked for, and how many sessions are on it."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.abstract import isIPAddress, isIPv6Address

from ..config import TargetConfig


@define(eq=False)
class Target:
    """
    @ivar literal: its host is an IP address, which needs no looking up.
    @ivar sessions: sessions that are on this target or being dialed to it.
    @ivar credit: its standing in the pool's weighted round; see `fwdrelay.upstream.pool`.
    """

    config: TargetConfig
    literal: bool = field(init=False)
    sessions: int = 0
    credit: int = 0

    def __attrs_post_init__(self) -> None:
        host = self.config.host
        self.literal = isIPAddress(host) or isIPv6Address(host)

    @property
    def label(self) -> str:
        """What log and metrics call it."""
        return self.config.label

    @property
    def electable(self) -> bool:
        """Whether it may take one more session. A weight of 0 takes none."""
        limit = self.config.max_sessions
        return self.config.weight > 0 and (not limit or self.sessions < limit)

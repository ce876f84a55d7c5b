"""
A set of targets, and who of them is elected for the next session.

Election by `round-robin` is smooth and weighted, as nginx does it: each target earns its weight, the
richest is elected and pays what all earned, so 5:1:1 comes out as a-a-b-a-c-a-a. `first` elects the
first that may take one more. Backups are elected only where no other target is left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..config import PoolConfig
from .target import Target


class Pool:
    """
    @ivar name: as configured.
    @ivar targets: all targets, in the order of the configuration.
    @ivar retries: how many further targets a dial may try.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.name = config.name
        self.retries = config.retries
        self.targets = tuple(Target(target) for target in config.targets)
        self._elect = _first if config.balance == "first" else _round_robin

    def elect(self, tried: Collection[Target] = ()) -> Target | None:
        """
        Choose a target and count a session on it; whoever gets it owes a `release`.

        @param tried: targets that this session's dial has failed with, which are not chosen again.
        @return: None where no target is left that may take one more session.
        """
        left = [target for target in self.targets if target.electable and target not in tried]
        candidates = [target for target in left if not target.config.backup] or left
        if not candidates:
            return None
        elected = candidates[0] if len(candidates) == 1 else self._elect(candidates)
        elected.sessions += 1
        return elected

    def release(self, target: Target) -> None:
        """The session that `target` was elected for is over, or went elsewhere."""
        target.sessions -= 1


def _first(candidates: Sequence[Target]) -> Target:
    return candidates[0]


def _round_robin(candidates: Sequence[Target]) -> Target:
    earned = 0
    for target in candidates:
        target.credit += target.config.weight
        earned += target.config.weight
    elected = max(candidates, key=lambda target: target.credit)
    elected.credit -= earned
    return elected

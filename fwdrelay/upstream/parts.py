"""
What a pool's configuration names and somebody else may have written: its election and its discoveries.

They are made before anything is changed, so that a name that doesn't exist changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attrs import frozen

from ..config import PoolConfig
from ..config.check import place_text
from ..errors import ConfigError, ConfigErrors
from ..interfaces import IDiscovery, IElection
from .discovery import make_discovery
from .elect import make_election

T = TypeVar("T")


@frozen
class PoolParts:
    """
    @ivar discoveries: one for each of the configuration's `discover`.
    """

    election: IElection
    discoveries: tuple[IDiscovery, ...]


def make_parts(config: PoolConfig, reactor: Any, nameservers: Sequence[str]) -> PoolParts:
    """
    @return: parts in which nothing has begun.
    @raise ConfigErrors: for what can't be made.
    """
    errors: list[ConfigError] = []

    def made(key: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ValueError as wrong:
            errors.append(ConfigError(place_text(("pool", config.name, key)), str(wrong)))
            return None

    election = made("balance", lambda: make_election(config.balance, reactor))
    discoveries = [
        made("discover", lambda each=each: make_discovery(each, reactor, nameservers))  # type: ignore[misc]
        for each in config.discover
    ]
    if errors:
        raise ConfigErrors(errors)
    assert election is not None
    return PoolParts(election, tuple(each for each in discoveries if each is not None))

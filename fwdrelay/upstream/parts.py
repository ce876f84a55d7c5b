"""
What a pool's configuration names and may not be there: its election and its discoveries, which somebody
else may have written, and the files of its TLS.

They are made before anything is changed, so that what doesn't exist changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attrs import frozen

from ..config import PoolConfig
from ..config.check import place_text
from ..errors import ConfigError, ConfigErrors
from ..interfaces import IDiscovery, IElection
from ..tls import UpstreamTLS
from .discovery import make_discovery
from .elect import make_election

T = TypeVar("T")


@frozen
class PoolParts:
    """
    @ivar discoveries: one for each of the configuration's `discover`.
    @ivar tls: how TLS is spoken to its targets; None: it is not.
    """

    election: IElection
    discoveries: tuple[IDiscovery, ...]
    tls: UpstreamTLS | None = None


def make_parts(
    config: PoolConfig,
    reactor: Any,
    nameservers: Sequence[str],
    tls_before: UpstreamTLS | None = None,
) -> PoolParts:
    """
    @param tls_before: how TLS was spoken to its targets until now.
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
    tls = None
    if config.tls is not None:
        try:
            tls = UpstreamTLS(config.tls, place_text(("pool", config.name, "tls")), tls_before)
        except ConfigErrors as wrong:
            errors += wrong.errors
    if errors:
        raise ConfigErrors(errors)
    assert election is not None
    return PoolParts(election, tuple(each for each in discoveries if each is not None), tls)

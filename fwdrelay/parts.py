"""
What a configuration names and somebody else may have written: elections, discoveries, admissions.

They are made before anything is changed, so that a name that doesn't exist changes nothing; and by
`--check`, so that it is told before.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from .admit import make_admissions
from .config import Config
from .errors import ConfigError, ConfigErrors
from .interfaces import IAdmission
from .upstream import PoolParts
from .upstream import make_parts as make_pool_parts


@frozen
class Parts:
    """
    @ivar pools: by the pool's name.
    @ivar admissions: by the listener's name.
    """

    pools: dict[str, PoolParts]
    admissions: dict[str, tuple[IAdmission, ...]]


def make_parts(config: Config, reactor: Any) -> Parts:
    """
    @return: parts in which nothing has begun.
    @raise ConfigErrors: for all that can't be made.
    """
    parts = Parts({}, {})
    errors: list[ConfigError] = []
    for index, listener in enumerate(config.listeners):
        try:
            parts.admissions[listener.name] = make_admissions(listener, f"listener[{index}]")
        except ConfigErrors as wrong:
            errors += wrong.errors
    for pool in config.pools:
        try:
            parts.pools[pool.name] = make_pool_parts(pool, reactor, config.relay.nameservers)
        except ConfigErrors as wrong:
            errors += wrong.errors
    if errors:
        raise ConfigErrors(errors)
    return parts


def problems(config: Config, reactor: Any) -> list[ConfigError]:
    """
    @return: one for each part that can't be made.
    """
    try:
        make_parts(config, reactor)
    except ConfigErrors as wrong:
        return list(wrong.errors)
    return []

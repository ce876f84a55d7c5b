"""
What a configuration names and lies elsewhere: elections, discoveries, admissions that somebody else has
written, certificates, and the token of the API.

They are made before anything is changed, so that a name or a file that doesn't exist changes nothing; and by
`--check`, so that it is told before.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrs import frozen

from .admit import make_admissions
from .config import Config, RelayConfig
from .errors import ConfigError, ConfigErrors
from .interfaces import IAdmission
from .tls import ServerTLS, UpstreamTLS
from .upstream import PoolParts
from .upstream import make_parts as make_pool_parts


@frozen
class Parts:
    """
    @ivar pools: by the pool's name.
    @ivar admissions: by the listener's name.
    @ivar tls: how those listeners terminate TLS that do, by name.
    """

    pools: dict[str, PoolParts]
    admissions: dict[str, tuple[IAdmission, ...]]
    tls: dict[str, ServerTLS]


def make_parts(
    config: Config,
    reactor: Any,
    terminated: Mapping[str, ServerTLS | None] = MappingProxyType({}),
    originated: Mapping[str, UpstreamTLS | None] = MappingProxyType({}),
) -> Parts:
    """
    @param terminated: how listeners have terminated TLS until now, by name.
    @param originated: how pools have spoken it, by name.
    @return: parts in which nothing has begun.
    @raise ConfigErrors: for all that can't be made.
    """
    parts = Parts({}, {}, {})
    errors: list[ConfigError] = []
    for index, listener in enumerate(config.listeners):
        try:
            parts.admissions[listener.name] = make_admissions(listener, f"listener[{index}]")
        except ConfigErrors as wrong:
            errors += wrong.errors
        if listener.tls is not None:
            try:
                parts.tls[listener.name] = ServerTLS(
                    listener.tls, f"listener[{index}].tls", terminated.get(listener.name)
                )
            except ConfigErrors as wrong:
                errors += wrong.errors
    for pool in config.pools:
        try:
            parts.pools[pool.name] = make_pool_parts(
                pool, reactor, config.relay.nameservers, originated.get(pool.name)
            )
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
        return [*_token_problems(config.relay), *wrong.errors]
    return _token_problems(config.relay)


def _token_problems(config: RelayConfig) -> list[ConfigError]:
    if not config.admin_token_file:
        return []
    from .admin import token_problems  # with a whole web server, which not every relay needs

    return token_problems(config)

"""Pools for tests, of a few words."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.task import Clock

from fwdrelay.config import PoolConfig
from fwdrelay.config.grammar import parse_target
from fwdrelay.ledger import Ledger
from fwdrelay.upstream import Pool, Resolver, Target, make_parts


def pool_config(*targets: str, **fields: Any) -> PoolConfig:
    """
    @param targets: `a:1`, `b:1,weight=2` and so on.
    @param fields: of `PoolConfig`.
    """
    return PoolConfig(
        **{"name": "p", "targets": tuple(parse_target(text) for text in targets), **fields}
    )


def make_pool(
    *targets: str,
    reactor: Any = None,
    lost: Any = lambda target: None,
    ledger: Ledger | None = None,
    **fields: Any,
) -> Pool:
    """
    A pool that has begun; its clock stands still unless `reactor` is one that moves.

    @param ledger: where it counts, if that is not for it alone to do.
    """
    reactor = Clock() if reactor is None else reactor
    config = pool_config(*targets, **fields)
    pool = Pool(config, make_parts(config, reactor, ()), reactor, Resolver(reactor), lost, ledger)
    pool.start()
    return pool


def change(pool: Pool, *targets: str, **fields: Any) -> None:
    """Reconfigure it: its targets, and what else is said."""
    config = evolve(pool_config(*targets, **fields), name=pool.name)
    pool.change(config, make_parts(config, pool._reactor, ()), False)


def elected(pool: Pool, count: int) -> str:
    """The hosts of the next so many elected targets; each session ends before the next."""
    hosts = []
    for _ in range(count):
        target = pool.elect()
        assert target is not None
        pool.release(target)
        hosts.append(target.config.host)
    return "".join(hosts)


def hosts(targets: Any) -> str:
    """Of these targets, one after the other; `-` for None."""
    return "".join("-" if target is None else target.config.host for target in targets)


def by_host(pool: Pool, host: str) -> Target:
    """The target there."""
    (target,) = [target for target in pool.targets if target.config.host == host]
    return target

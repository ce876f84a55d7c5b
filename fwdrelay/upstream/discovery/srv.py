"""`srv:_service._proto.domain`: each SRV record (RFC 2782) is a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen
from twisted.logger import Logger
from zope.interface import implementer

from ...config import TargetConfig
from ...errors import DiscoveryFailed
from ...interfaces import Found, IDiscovery
from .follow import MOST_TARGETS
from .names import Addresses, Names, in_time, together

SMALL = 100
"""How many times the share of a record with weight 0 any other of its priority has, at least."""


@frozen
class Service:
    """What one SRV record says."""

    host: str
    port: int
    priority: int
    weight: int


@implementer(IDiscovery)
class ServiceDiscovery:
    """
    @param name: `_service._proto.domain`.
    """

    log = Logger()

    def __init__(self, name: str, reactor: Any, names: Names) -> None:
        self._name = name
        self._reactor = reactor
        self._names = names
        self._left_out: frozenset[str] = frozenset()
        self._cut = False

    async def discover(self) -> Found:
        """
        All SRV records there are, and the addresses of their hosts. Those whose host has none are left
        out, unless that is so for all of them.
        """
        return await in_time(self._discover(), self._reactor)

    async def _discover(self) -> Found:
        answer = await self._names.services(self._name)
        if not answer.records:
            raise DiscoveryFailed(f"{self._name} has no SRV records")
        services = self._bounded(in_order(answer.records))
        if not services:  # "." alone: there is decidedly no such service
            return Found((), answer.ttl)
        hosts = dict.fromkeys(service.host for service in services)
        self._names.forget(hosts)
        outcomes = await together([self._addresses(host) for host in hosts])
        failed = {
            host: outcome
            for host, outcome in zip(hosts, outcomes, strict=True)
            if isinstance(outcome, DiscoveryFailed)
        }
        if len(failed) == len(hosts):
            first = next(iter(failed.values()))
            raise DiscoveryFailed(f"none of the hosts of {self._name} can be looked up: {first}")
        self._say(failed)
        found = {
            host: outcome
            for host, outcome in zip(hosts, outcomes, strict=True)
            if isinstance(outcome, Addresses)
        }
        targets = [
            TargetConfig(
                host=service.host,
                port=service.port,
                priority=service.priority,
                weight=service.weight,
                addresses=found[service.host].addresses,
            )
            for service in weighed(services)
            if service.host in found
        ]
        return Found(targets, min(answer.ttl, *(each.ttl for each in found.values())))

    def _bounded(self, services: list[Service]) -> list[Service]:
        """Before their hosts are looked up, each by two questions."""
        too_many = len(services) > MOST_TARGETS
        if too_many and not self._cut:
            self.log.warn(
                "srv:{name} has {count} targets; only the first {most} are taken.",
                name=self._name,
                count=len(services),
                most=MOST_TARGETS,
            )
        self._cut = too_many
        return services[:MOST_TARGETS]

    async def _addresses(self, host: str) -> Addresses | DiscoveryFailed:
        try:
            return await self._names.addresses(host)
        except DiscoveryFailed as failed:
            return failed

    def _say(self, failed: Mapping[str, DiscoveryFailed]) -> None:
        for host in sorted(failed.keys() - self._left_out):
            self.log.warn(
                "srv:{name}: {failed}; {host} is left out.",
                name=self._name,
                failed=failed[host],
                host=host,
            )
        for host in sorted(self._left_out - failed.keys()):
            self.log.info("srv:{name}: {host} is no longer left out.", name=self._name, host=host)
        self._left_out = frozenset(failed)


def in_order(records: Iterable[Any]) -> list[Service]:
    """
    @param records: payloads of SRV records.
    @return: what they say, each host and port once, the most wanted first. The root as the host means that
        there is no such service.
    """
    services = [
        Service(
            record.target.name.decode("ascii", "backslashreplace").lower(),
            record.port,
            record.priority,
            record.weight,
        )
        for record in records
    ]
    services.sort(key=lambda each: (each.priority, -each.weight, each.host, each.port))
    once: dict[tuple[str, int], Service] = {}
    for service in services:
        if service.host and service.port:
            once.setdefault((service.host, service.port), service)
    return list(once.values())


def weighed(services: Sequence[Service]) -> list[Service]:
    """
    RFC 2782: where others of its priority have a weight, one with 0 has a very small chance. Targets
    have weights from 1 up, so there the others' grow.
    """
    smallest: dict[int, int] = {}
    with_zero = {each.priority for each in services if not each.weight}
    for each in services:
        if each.weight and each.priority in with_zero:
            smallest[each.priority] = min(each.weight, smallest.get(each.priority, each.weight))
    return [
        evolve(
            each,
            weight=max(each.weight * -(-SMALL // smallest.get(each.priority, SMALL)), 1),
        )
        for each in services
    ]

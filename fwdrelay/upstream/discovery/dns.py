"""`dns:HOST:PORT`: each address of a host is a target."""

from __future__ import annotations

from typing import Any

from zope.interface import implementer

from ...config import TargetConfig
from ...interfaces import Found, IDiscovery
from .names import Names, in_time


@implementer(IDiscovery)
class AddressDiscovery:
    """
    @param argument: `HOST:PORT`.
    """

    def __init__(self, argument: str, reactor: Any, names: Names) -> None:
        self._host, _, port = argument.rpartition(":")
        self._port = int(port)
        self._reactor = reactor
        self._names = names

    async def discover(self) -> Found:
        """All A and AAAA records there are."""
        found = await in_time(self._names.addresses(self._host), self._reactor)
        targets = (TargetConfig(host=address, port=self._port) for address in found.addresses)
        return Found(targets, found.ttl)

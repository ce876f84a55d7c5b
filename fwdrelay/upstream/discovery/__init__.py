"""
Where targets are found while running: `dns:HOST:PORT`, `srv:_service._proto.domain`, `file:PATH`, or by a
plugin.

A discovery only answers what there is now. Asking again in time, and keeping what is known while it
fails, is a `Following`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...config import DiscoverConfig
from ...config.grammar import OWN_DISCOVERIES, parse_discover
from ...interfaces import IDiscovery, IDiscoveryPlugin
from ...plugins import make_by_plugin
from .dns import AddressDiscovery
from .file import FileDiscovery
from .follow import Following
from .names import Names
from .nameservers import Nameservers
from .srv import ServiceDiscovery

__all__ = ["Following", "make_discovery"]


def make_discovery(
    config: DiscoverConfig, reactor: Any, nameservers: Sequence[str] = ()
) -> IDiscovery:
    """
    @param nameservers: `ADDR:PORT` each; empty: those of the system.
    @return: what has not begun yet.
    @raise ValueError: with a sentence: there is no such discovery, or it takes no such argument.
    """
    scheme, argument = config.scheme, config.argument
    if scheme == "file":
        return FileDiscovery(argument, reactor)
    if scheme not in ("dns", "srv"):
        discovery: IDiscovery = make_by_plugin(
            IDiscoveryPlugin,
            scheme,
            IDiscovery,
            lambda plugin: plugin.make_discovery(argument, reactor, nameservers),
            built_in=OWN_DISCOVERIES,
        )
        return discovery
    parse_discover(str(config))
    names = Names(reactor, Nameservers(reactor, nameservers))
    if scheme == "dns":
        return AddressDiscovery(argument, reactor, names)
    return ServiceDiscovery(argument, reactor, names)

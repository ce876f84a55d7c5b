"""Addresses as logs write them: `ADDR:PORT`, `[IPV6]:PORT`, `unix:PATH`."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.address import UNIXAddress

_MAPPED = "::ffff:"


def plain_host(host: str) -> str:
    """A client that came by IPv4 to a socket on `::` has its IPv4 address again."""
    if host.startswith(_MAPPED) and "." in host:
        return host.removeprefix(_MAPPED)
    return host


def client_host(address: Any) -> str | None:
    """
    @param address: of a transport's `getPeer`.
    @return: the IP address; None for a Unix peer.
    """
    return None if isinstance(address, UNIXAddress) else plain_host(address.host)


def address_text(address: Any) -> str:
    """
    @param address: a Twisted address.
    """
    if isinstance(address, UNIXAddress):
        name = address.name
        if not name:
            return "unix:"
        text = os.fsdecode(name)
        return f"unix:@{text[1:]}" if text[0] == "\0" else f"unix:{text}"
    return authority(plain_host(address.host), address.port)


def authority(host: str, port: int) -> str:
    """@return: `ADDR:PORT` or `[IPV6]:PORT`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

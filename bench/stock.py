"""
Twisted's own port forwarding, with TLS to the upstream: what `twistd portforward` would be if it could.

    python bench/stock.py PORT HOST UPSTREAM_HOST UPSTREAM_PORT AUTHORITY NAME
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor, ssl
from twisted.protocols import portforward


class ToTLS:
    """What `portforward` takes for the reactor, to connect with."""

    def __init__(self, authority: str, name: str) -> None:
        trusted = ssl.Certificate.loadPEM(Path(authority).read_bytes())
        self._expected = ssl.optionsForClientTLS(name, trustRoot=trusted)

    def connectTCP(self, host: str, port: int, factory: Any) -> None:
        """Connect, and shake hands."""
        reactor.connectSSL(host, port, factory, self._expected)  # type: ignore[attr-defined]


def main(port: str, host: str, to_host: str, to_port: str, authority: str, name: str) -> None:
    """Relay until stopped."""
    factory: Any = portforward.ProxyFactory(to_host, int(to_port))
    factory.protocol = type(
        "ProxyServer", (portforward.ProxyServer,), {"reactor": ToTLS(authority, name)}
    )
    factory.noisy = False
    reactor.listenTCP(int(port), factory, backlog=4096, interface=host)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])

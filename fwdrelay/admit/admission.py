"""
Admission to one listener: networks, and limits that are counted exactly once.

What `Admission.enter` let in, `Admission.leave` lets out; nothing is kept of a client that has no
session, so memory is bounded by the sessions there are.
"""

from __future__ import annotations

import ipaddress

from ..config import Admit
from ..session.lifecycle import Reason


class Admission:
    """
    @ivar active: how many sessions are in.
    @ivar by_client: whether it matters who the client is.
    """

    def __init__(self, config: Admit) -> None:
        self._config = config
        self._of_client: dict[str, int] = {}
        self.active = 0
        self.by_client = bool(config.allow or config.deny or config.sessions_per_client)

    def enter(self, client: str | None) -> Reason | None:
        """
        @param client: its address; None for a client that came by a Unix socket, about whom networks
            say nothing.
        @return: None for one who may enter, and is counted now; else why not.
        """
        config = self._config
        if client is not None and (config.allow or config.deny) and not self._allowed(client):
            return Reason.DENIED
        if config.max_sessions and self.active >= config.max_sessions:
            return Reason.MAX_SESSIONS
        if config.sessions_per_client and client is not None:
            of_client = self._of_client.get(client, 0)
            if of_client >= config.sessions_per_client:
                return Reason.MAX_SESSIONS_PER_CLIENT
            self._of_client[client] = of_client + 1
        self.active += 1
        return None

    def leave(self, client: str | None) -> None:
        """A session of `client`, that was let in, has ended."""
        self.active -= 1
        if client is not None and client in self._of_client:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    def _allowed(self, client: str) -> bool:
        address = ipaddress.ip_address(client)
        if any(address in network for network in self._config.deny):
            return False
        allow = self._config.allow
        return not allow or any(address in network for network in allow)

"""
Admission to one listener: networks, plugins, and limits that are counted exactly once.

What `Admission.enter` let in, `Admission.leave` lets out; nothing is kept of a client that has no
session, so memory is bounded by the sessions there are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from attrs import frozen
from twisted.logger import Logger

from ..config import ListenerConfig
from ..interfaces import IAdmission
from ..session.lifecycle import Reason


@frozen
class Refused:
    """Why somebody may not enter; `why` is what a plugin says about it."""

    reason: Reason
    why: str | None = None


_DENIED = Refused(Reason.DENIED)
_FULL = Refused(Reason.MAX_SESSIONS)
_FULL_FOR_CLIENT = Refused(Reason.MAX_SESSIONS_PER_CLIENT)


class Admission:
    """
    @param others: what `config.admit.plugins` name.
    @ivar active: how many sessions are in.
    @ivar by_client: whether it matters who the client is.
    @ivar counts_clients: whether those who enter are counted by their addresses.
    """

    log = Logger()

    def __init__(self, config: ListenerConfig, others: Sequence[IAdmission] = ()) -> None:
        self._of_client: dict[str, int] = {}
        self.active = 0
        self.change(config, others)

    def change(self, config: ListenerConfig, others: Sequence[IAdmission]) -> None:
        """Judge by `config` from now on. Who is in stays in, and is counted."""
        admit = config.admit
        self._max_sessions = config.max_sessions
        self._admit = admit
        self._listener = config.name
        self._others = tuple(zip(admit.plugins, others, strict=True))
        self._failing = False
        self.counts_clients = bool(admit.sessions_per_client)
        self.by_client = bool(admit.allow or admit.deny or self.counts_clients or others)

    def enter(self, client: str | None) -> Refused | None:
        """
        @param client: its address; None for a client that came by a Unix socket, about whom networks
            say nothing.
        @return: None for one who may enter, and is counted now; else why not.
        """
        admit = self._admit
        if client is not None and (admit.allow or admit.deny) and not self._allowed(client):
            return _DENIED
        if self._max_sessions and self.active >= self._max_sessions:
            return _FULL
        limit = admit.sessions_per_client
        if limit and client is not None and self._of_client.get(client, 0) >= limit:
            return _FULL_FOR_CLIENT
        if self._others:
            refused = self._ask_others(client)
            if refused is not None:
                return refused
        if limit and client is not None:
            self._of_client[client] = self._of_client.get(client, 0) + 1
        self.active += 1
        return None

    def leave(self, client: str | None) -> None:
        """
        A session that was let in has ended.

        @param client: its address, if it was counted by that when it entered.
        """
        self.active -= 1
        if client is not None:
            left = self._of_client.get(client, 0) - 1
            if left > 0:
                self._of_client[client] = left
            else:
                self._of_client.pop(client, None)

    def _allowed(self, client: str) -> bool:
        address = ipaddress.ip_address(client)
        if any(address in network for network in self._admit.deny):
            return False
        allow = self._admit.allow
        return not allow or any(address in network for network in allow)

    def _ask_others(self, client: str | None) -> Refused | None:
        """Ask the plugins. One that fails lets nobody in: it may be there to keep somebody out."""
        for name, other in self._others:
            try:
                why = other.admit(client)
                if why is not None and not isinstance(why, str):
                    raise TypeError(f"it answered {why!r}, which is neither None nor a sentence")
            except Exception as failed:
                if not self._failing:
                    self.log.failure(
                        "The admission {name} of listener {listener} failed ({failed}); while it does,"
                        " it lets nobody in, and this is told once.",
                        name=name,
                        listener=self._listener,
                        failed=str(failed) or type(failed).__name__,
                    )
                self._failing = True
                return Refused(Reason.DENIED, "an admission failed")
            if why is not None:
                return Refused(Reason.DENIED, why)
        return None

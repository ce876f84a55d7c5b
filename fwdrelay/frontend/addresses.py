"""
The bound addresses, whoever's they are.

An address outlives the listener that asked for it: a reload may give it to another one, and it is never
closed for that. Descriptions are those of Twisted's server endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..address import address_text
from ..config import ListenerConfig
from ..errors import CannotListen
from ..interfaces import IPump
from .listener import Listener

Key: TypeAlias = tuple[str, str]
"""
What makes an address the same after a reload: its description; before it, for a free port that the system
chooses, the name of the listener, for there is one for each.
"""
_FREE_PORT = re.compile(r"tcp6?:(port=)?0(:|$)")


def keys(config: ListenerConfig) -> list[Key]:
    """
    @return: of the listener's addresses, in order.
    """
    return [
        (config.name if _FREE_PORT.match(description) else "", description)
        for description in config.listen
    ]


class Addresses:
    """
    All that one pump listens on.

    @ivar bound: the ports.
    """

    log = Logger()

    def __init__(self, pump: IPump) -> None:
        self._pump = pump
        self.bound: dict[Key, IListeningPort] = {}
        self._closing = 0
        self._waiting: list[Deferred[None]] = []

    def bind(self, listener: Listener, config: ListenerConfig) -> list[Key]:
        """
        Bind those of `config`'s addresses that are not bound yet, for clients of `listener`.

        @param config: the listener's own, or the one that it is going to have.
        @return: which those were.
        @raise CannotListen: for the first that can't be; of this call's, none is bound then.
        """
        new: list[Key] = []
        try:
            for key in keys(config):
                if key not in self.bound:
                    self.bound[key] = self._bind(key[1], config.backlog, listener)
                    new.append(key)
        except CannotListen:
            self.close(new)
            raise
        return new

    def serve(self, listener: Listener) -> None:
        """Who connects to the listener's addresses is its client from now on."""
        for key in keys(listener.config):
            port: Any = self.bound[key]
            before = port.factory
            if before is not listener:
                listener.doStart()
                port.factory = listener
                before.doStop()
            _set_backlog(port, key[1], listener.config.backlog)

    def tell(self, listener: Listener, which: list[Key]) -> None:
        """Log that the listener listens there."""
        for key in which:
            self.log.info(
                "Listener {listener} listens on {address} for {where_to}",
                listener=listener.name,
                address=address_text(self.bound[key].getHost()),
                where_to=listener.where_to,
            )

    def texts(self, listener: Listener) -> tuple[str, ...]:
        """
        @return: where it can be connected to now, as logs write it.
        """
        ports = [self.bound[key] for key in keys(listener.config) if key in self.bound]
        return tuple(address_text(port.getHost()) for port in ports)

    def close(self, which: Iterable[Key]) -> None:
        """
        Accept who was promised a connection there, then nobody any more: that much is done at once. They
        can be bound again when `closed` says so.
        """
        for port in [self.bound.pop(key) for key in which]:
            self._closing += 1
            closing = maybeDeferred(port.stopListening)
            closing.addErrback(self._not_closed, port)
            closing.addCallback(self._closed)

    async def closed(self) -> None:
        """Wait until all that were told to close have closed."""
        while self._closing:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting

    def _not_closed(self, failure: Failure, port: IListeningPort) -> None:
        # The others, and the sessions, are still to be seen to.
        self.log.failure("Could not stop listening on {port}", failure, port=port)

    def _closed(self, result: object) -> None:
        self._closing -= 1
        if not self._closing:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def _bind(self, description: str, backlog: int, listener: Listener) -> IListeningPort:
        try:
            bound: list[IListeningPort | Failure] = []
            serverFromString(self._pump, description).listen(listener).addBoth(bound.append)
            outcome = bound[0]
            if isinstance(outcome, Failure):
                outcome.raiseException()
            assert IListeningPort.providedBy(outcome)
            _set_backlog(outcome, description, backlog)
        except error.CannotListenError as failed:
            system = failed.socketError
            why = getattr(system, "strerror", None) or str(system)
            raise CannotListen(f"cannot listen on {description}: {why}") from None
        except LookupError:
            raise CannotListen(
                f"cannot listen on {description}: systemd has handed over no such socket; is"
                " fwdrelay.socket started?"
            ) from None
        except (OSError, OverflowError, ValueError, TypeError) as failed:
            why = getattr(failed, "strerror", None) or str(failed) or type(failed).__name__
            raise CannotListen(f"cannot listen on {description}: {why}") from None
        return outcome


def _set_backlog(port: Any, description: str, backlog: int) -> None:
    if "backlog=" not in description:
        port.socket.listen(backlog)

"""
The bound addresses, whoever's they are.

An address outlives the listener that asked for it: a reload may give it to another one, and it is never
closed for that. Descriptions are those of Twisted's server endpoints.

Sockets may also be inherited: from a supervisor, which has bound them for this process.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from attrs import frozen
from twisted.internet import error
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
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


@frozen(eq=False)
class Inherited:
    """
    What a supervisor has bound for an address.

    @ivar owned: whether nobody but fwdrelay has it, so that it is shut down at the end; systemd's is not.
    @ivar sockets: that this process listens on; more than one where it has those of others, too. They are closed as
        soon as they have been duplicated.
    """

    owned: bool
    sockets: tuple[socket.socket, ...]

    def close(self) -> None:
        """Nobody is going to listen on them here."""
        for each in self.sockets:
            each.close()


@contextmanager
def plainly(description: str) -> Iterator[None]:
    """
    @raise CannotListen: with a sentence, for what may go wrong in the `with` block.
    """
    try:
        yield
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


def bind(reactor: Any, description: str, factory: IProtocolFactory) -> IListeningPort:
    """
    @param reactor: or what looks like one: something that listens.
    @param description: of a Twisted server endpoint.
    @return: its port.
    @raise CannotListen: it can't be bound.
    """
    with plainly(description):
        bound: list[IListeningPort | Failure] = []
        serverFromString(reactor, description).listen(factory).addBoth(bound.append)
        outcome = bound[0]
        if isinstance(outcome, Failure):
            outcome.raiseException()
        assert IListeningPort.providedBy(outcome)
    return outcome


def says_backlog(description: str) -> bool:
    """Whether a description says itself how many may wait to be accepted."""
    return "backlog=" in description


class Addresses:
    """
    All that one pump listens on.

    @param inherited: sockets in the place of those that it would bind; None: it binds them itself.
    @ivar bound: the ports of each address; one, where they are not inherited.
    """

    log = Logger()

    def __init__(self, pump: IPump, inherited: Mapping[Key, Inherited] | None = None) -> None:
        self._pump = pump
        self._inherited = None if inherited is None else dict(inherited)
        self.bound: dict[Key, tuple[IListeningPort, ...]] = {}
        self._closing = 0
        self._waiting: list[Deferred[None]] = []

    def inherit(self, key: Key, inherited: Inherited) -> None:
        """Have these sockets, for when that address is to be bound."""
        assert self._inherited is not None
        before = self._inherited.get(key)
        if before is not None:  # what they were for came to nothing
            before.close()
        self._inherited[key] = inherited

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
                    self.bound[key] = self._bind(key, listener)
                    new.append(key)
                    with plainly(key[1]):
                        for port in self.bound[key]:
                            _set_backlog(port, key[1], config.backlog)
        except CannotListen:
            self.unbind(new)
            raise
        return new

    def serve(self, listener: Listener) -> None:
        """Who connects to the listener's addresses is its client from now on."""
        for key in keys(listener.config):
            for each in self.bound[key]:
                port: Any = each
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
                address=self._text(key),
                where_to=listener.where_to,
            )

    def texts(self, listener: Listener) -> tuple[str, ...]:
        """
        @return: where it can be connected to now, as logs write it.
        """
        return tuple(self._text(key) for key in keys(listener.config) if key in self.bound)

    def _text(self, key: Key) -> str:
        return address_text(self.bound[key][0].getHost())

    def close(self, which: Iterable[Key]) -> None:
        """
        Accept who was promised a connection there, then nobody any more: that much is done at once. They
        can be bound again when `closed` says so.
        """
        for port in self._taken_out(which):
            self._close(port, port.stopListening)

    def unbind(self, which: Iterable[Key]) -> None:
        """As if they had never been bound: sockets that were inherited stay as they are."""
        if self._inherited is None:
            self.close(which)
        else:
            self._leave(self._taken_out(which))

    def leave(self) -> None:
        """
        Accept nobody any more, with all sockets that were inherited: others go on with them. Who waits there is
        left to those, and nothing is shut down.
        """
        self._leave(self._taken_out(list(self.bound)))
        inherited, self._inherited = self._inherited, {}
        for each in (inherited or {}).values():
            each.close()

    def _leave(self, ports: Iterable[Any]) -> None:
        for port in ports:
            self._close(port, port.leave)

    def _taken_out(self, which: Iterable[Key]) -> list[IListeningPort]:
        return [port for key in list(which) for port in self.bound.pop(key)]

    def _close(self, port: IListeningPort, how: Callable[[], Any]) -> None:
        self._closing += 1
        closing = maybeDeferred(how)
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

    def _bind(self, key: Key, listener: Listener) -> tuple[IListeningPort, ...]:
        if self._inherited is None:
            return (bind(self._pump, key[1], listener),)
        inherited = self._inherited.pop(key, None)
        if inherited is None or not inherited.sockets:
            raise CannotListen(
                f"cannot listen on {key[1]}: the supervisor has handed over no socket for it"
            )
        ports: list[IListeningPort] = []
        try:
            with plainly(key[1]):
                for each in inherited.sockets:
                    port: Any = self._pump.adoptStreamPort(each.fileno(), each.family, listener)
                    if inherited.owned:
                        port.close_for_all()
                    ports.append(port)
        except CannotListen:
            self._leave(ports)
            raise
        finally:
            inherited.close()
        return tuple(ports)


def _set_backlog(port: Any, description: str, backlog: int) -> None:
    if not says_backlog(description):
        port.socket.listen(backlog)

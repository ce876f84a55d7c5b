"""
The listening sockets of a supervisor: bound here, listened on by its workers.

Each TCP address has a socket for each worker (`SO_REUSEPORT`), so that the kernel deals connections out, and who
waits for a worker that has died is there for its successor. A Unix socket, and what systemd has handed over, is
shared by all. Who accepts from them is `fwdrelay.frontend.addresses`, in each worker.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Self

from attrs import define
from twisted.internet import main
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from twisted.python.lockfile import FilesystemLock
from zope.interface import implementer

from ..address import address_text
from ..config import Config
from ..errors import CannotListen
from ..frontend import Key, keys
from ..frontend.addresses import bind, plainly, says_backlog
from ..pump.port import TCPPort, UNIXPort

_DONE = Failure(main.CONNECTION_DONE)


class Workers(Factory):
    """Nobody is accepted here; this is what Twisted's log calls those who do."""

    noisy = False


class _FileOfUNIX(UNIXPort):
    """A Unix socket that nobody accepts from here: what is left of a port is its file, and the file's lock."""

    made: socket.socket | None = None

    def createInternetSocket(self) -> socket.socket:
        self.made = super().createInternetSocket()
        return self.made

    def startReading(self) -> None:
        """Workers do."""

    def stopReading(self) -> None:
        """There is nothing to stop."""

    def take_up(self, sock: socket.socket, locked: bool) -> None:
        """
        As `startListening`, with a socket that this process has bound before it was renewed.

        @param locked: whether it has a lock file, too.
        """
        self._inherited = False
        self.factory.doStart()  # type: ignore[union-attr]
        self.connected = True
        self.socket = sock
        self.fileno = sock.fileno  # type: ignore[method-assign]
        if locked:
            self.lockFile = FilesystemLock(self._bindPath + b".lock")
            self.lockFile.locked = True

    def give_up(self) -> None:
        """It could not be bound: leave nothing behind."""
        if self.made is not None:
            self.made.close()
        if self.lockFile is not None and self.lockFile.locked:
            self.lockFile.unlock()


@implementer(IListeningPort)
@define(eq=False)
class Bound:
    """
    The sockets of one address.

    @ivar owned: whether they are closed for good when they are no longer wanted. What systemd has handed over is
        not: it can't be had again.
    @ivar sockets: of TCP, worker by worker; otherwise one.
    @ivar backlog: of TCP: how many may wait for each.
    @ivar file: of a Unix socket that was bound here.
    """

    owned: bool
    sockets: list[socket.socket]
    backlog: int = 0
    file: _FileOfUNIX | None = None

    @property
    def shared(self) -> bool:
        """Whether all workers listen on the same socket."""
        return self.file is not None or not self.owned

    def startListening(self) -> None:
        """They do from the start."""

    def getHost(self) -> IPv4Address | IPv6Address | UNIXAddress:
        """
        @return: where they can be connected to.
        """
        first = self.sockets[0]
        name = first.getsockname()
        if first.family == socket.AF_UNIX:
            return UNIXAddress(os.fsencode(name))
        kind = IPv6Address if first.family == socket.AF_INET6 else IPv4Address
        return kind("TCP", *name)

    def stopListening(self) -> None:
        """Close them, and remove what is left of them in the file system."""
        if self.file is not None:
            self.file.connectionLost(_DONE)
            return
        for each in self.sockets:
            if self.owned:
                # A worker that is about to end may have it for a moment still, and would let nobody in.
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RD)
            each.close()

    def grow(self, count: int) -> None:
        """
        Have sockets for so many workers.

        @raise OSError: one can't be bound.
        """
        while not self.shared and len(self.sockets) < count:
            at = self.sockets[0].getsockname()
            self.sockets.append(_listening(at, self.backlog))


class _Binder:
    """
    As much of a reactor as server endpoints need to listen; it binds and accepts nobody.

    @param backlog: where a description says none.
    @param count: sockets of a TCP address.
    """

    def __init__(self, reactor: Any, description: str, backlog: int, count: int) -> None:
        self._reactor = reactor
        self._backlog = None if says_backlog(description) else backlog
        self._count = count

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> Bound:
        with TCPPort(port, factory, backlog, interface).createInternetSocket() as probe:
            # Another program's would be shared silently, were it bound with SO_REUSEPORT as well.
            at = _resolved(probe.family, interface, port)
            if port:
                probe.bind(at)
        waiting = backlog if self._backlog is None else self._backlog
        bound = Bound(True, [_listening(at, waiting)], waiting)
        try:
            bound.grow(self._count)
        except BaseException:
            bound.stopListening()
            raise
        return bound

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> Bound:
        waiting = backlog if self._backlog is None else self._backlog
        file = _FileOfUNIX(address, factory, waiting, mode, self._reactor, wantPID)
        try:
            file.startListening()
        except BaseException:
            file.give_up()
            raise
        return Bound(True, [file.socket], waiting, file)

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> Bound:
        # As the pumps' ports take it: the endpoint closes the descriptor that it gives.
        inherited = socket.fromfd(fileDescriptor, addressFamily, socket.SOCK_STREAM)
        inherited.setblocking(False)
        if self._backlog is not None:
            inherited.listen(self._backlog)
        return Bound(False, [inherited])


class Sockets:
    """
    All that the workers of one supervisor listen on.

    @ivar bound: by address.
    @ivar workers: how many share them.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.bound: dict[Key, Bound] = {}
        self.workers = 1
        self._kept: dict[str, Bound] = {}
        """What systemd has handed over and is not wanted just now, by description."""

    def bind(self, config: Config, workers: int) -> list[Key]:
        """
        Bind all addresses of `config` that are not bound yet.

        @param workers: for so many; see `grow` for those that are bound already.
        @return: which those were.
        @raise CannotListen: for the first that can't be; of this call's, none is bound then.
        """
        self.workers = workers
        new: list[Key] = []
        try:
            for listener in config.listeners:
                for key in keys(listener):
                    if key not in self.bound:
                        self.bound[key] = self._bind(key[1], listener.backlog)
                        new.append(key)
        except CannotListen:
            self.close(new)
            raise
        return new

    def _bind(self, description: str, backlog: int) -> Bound:
        kept = self._kept.pop(description, None)
        if kept is not None:
            return kept
        binder = _Binder(self._reactor, description, backlog, self.workers)
        bound: Any = bind(binder, description, Workers())
        assert isinstance(bound, Bound)
        return bound

    def grow(self, workers: int) -> None:
        """
        Have a socket for each of so many workers, at each TCP address.

        @raise CannotListen: for the first that can't be bound. Those that are there do meanwhile: some workers
            share one.
        """
        self.workers = workers
        failed: CannotListen | None = None
        for (_, description), bound in self.bound.items():
            try:
                with plainly(description):
                    bound.grow(workers)
            except CannotListen as each:
                failed = failed or each
        if failed is not None:
            raise failed

    def of(self, worker: int) -> list[tuple[Key, bool, list[socket.socket]]]:
        """
        @param worker: its number, from 1.
        @return: the addresses, whether their sockets are ours to shut down at the end, and those that it is to
            listen on: together, all workers have all of them, so that nobody waits in vain.
        """
        return [(key, bound.owned, self._share(bound, worker)) for key, bound in self.bound.items()]

    def _share(self, bound: Bound, worker: int) -> list[socket.socket]:
        if bound.shared:
            return bound.sockets[:]
        mine = bound.sockets[worker - 1 :: self.workers]
        return mine or [bound.sockets[(worker - 1) % len(bound.sockets)]]

    def address(self, key: Key) -> str:
        """
        @return: where it can be connected to, as logs write it.
        """
        return address_text(self.bound[key].getHost())

    def close(self, which: Iterable[Key]) -> None:
        """Close what is bound there, once workers have accepted who waited."""
        for key in list(which):
            bound = self.bound.pop(key)
            if bound.owned:
                bound.stopListening()
            else:
                self._kept[key[1]] = bound

    def close_all(self) -> None:
        """Close all there are, for the process ends."""
        self.close(self.bound)
        for bound in self._kept.values():
            bound.stopListening()
        self._kept.clear()

    # Renewal of the supervisor in place: the descriptors stay, what is known of them is handed on.

    def descriptors(self) -> list[int]:
        """
        @return: those of all sockets.
        """
        everything = [*self.bound.values(), *self._kept.values()]
        return [each.fileno() for bound in everything for each in bound.sockets]

    def state(self) -> dict[str, Any]:
        """
        @return: what `restored` needs besides the descriptors; JSON can write it.
        """
        return {
            "workers": self.workers,
            "bound": [[*key, _noted(bound)] for key, bound in self.bound.items()],
            "kept": [[description, _noted(bound)] for description, bound in self._kept.items()],
        }

    @classmethod
    def restored(cls, reactor: Any, state: dict[str, Any]) -> Self:
        """
        @param state: of those whose descriptors this process has.
        """
        self = cls(reactor)
        self.workers = state["workers"]
        for name, description, noted in state["bound"]:
            self.bound[name, description] = _restored(reactor, noted)
        for description, noted in state["kept"]:
            self._kept[description] = _restored(reactor, noted)
        return self


def _resolved(family: int, interface: str, port: int) -> Any:
    """What bind(2) takes; an IPv6 address may name its interface."""
    if family != socket.AF_INET6:
        return interface, port
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return socket.getaddrinfo(interface, port, type=socket.SOCK_STREAM, flags=numeric)[0][4]


def _listening(at: Any, backlog: int) -> socket.socket:
    """
    @return: a socket of several that listen there.
    @raise OSError: it can't be bound.
    """
    made: socket.socket = TCPPort(0, Workers(), interface=at[0]).createInternetSocket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(at)
        made.listen(backlog)
    except BaseException:
        made.close()
        raise
    return made


def _noted(bound: Bound) -> dict[str, Any]:
    return {
        "owned": bound.owned,
        "descriptors": [each.fileno() for each in bound.sockets],
        "backlog": bound.backlog,
        "file": bound.file is not None,
        "locked": bound.file is not None and bound.file.lockFile is not None,
    }


def _restored(reactor: Any, noted: dict[str, Any]) -> Bound:
    sockets = [socket.socket(fileno=descriptor) for descriptor in noted["descriptors"]]
    for each in sockets:
        each.set_inheritable(False)
        each.setblocking(False)
    bound = Bound(noted["owned"], sockets, noted["backlog"])
    if noted["file"]:
        bound.file = _FileOfUNIX(sockets[0].getsockname(), Workers(), reactor=reactor)
        bound.file.take_up(sockets[0], noted["locked"])
    return bound

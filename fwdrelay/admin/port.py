"""
Where the API listens: ports that get somebody in when sessions have taken all descriptors there are.

Just then somebody has to look what is going on, and to end something.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from errno import EAGAIN, EMFILE
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IDelayedCall

from ..address import address_text
from ..config.grammar import split_admin
from ..errors import CannotListen
from ..pump.port import TCPPort, UNIXPort
from ..pump.spare import Spare

RESERVE = 8
"""Descriptors that are put by."""
UNIX_MODE = 0o660
_BACKLOG = 1024
_TAKE_AGAIN = 1.0


class Reserve(Spare):
    """
    Descriptors put by for those who ask here: each gets one of them when there is no other.

    @param reactor: with time; whatever is not to be had is asked for again each second.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self._reactor = reactor
        self._held: list[int] = []
        self._later: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._held)

    def hold(self) -> None:
        """Have them, as many as can be had."""
        try:
            while len(self._held) < RESERVE:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            if self._later is None:
                self._later = self._reactor.callLater(_TAKE_AGAIN, self._hold_again)

    def _hold_again(self) -> None:
        self._later = None
        self.hold()

    def give_up(self) -> bool:
        """
        @return: whether there was one, which is free now.
        """
        if not self._held:
            return False
        os.close(self._held.pop())
        return True

    def release(self) -> None:
        """Give back all of them: nobody is to come any more."""
        while self.give_up():
            pass
        if self._later is not None:
            self._later.cancel()
            self._later = None


class _ReservedPort(TCPPort):
    """How an admin port accepts; mixed in before one of the pump's."""

    factory: Any

    def _next(self) -> tuple[Any, Any]:
        accept: Callable[[], tuple[Any, Any]] = self.socket.accept
        try:
            return self.spare.make(accept)
        except OSError as failed:
            # accept(2) wants a descriptor before it looks whether anybody waits.
            if failed.errno == EMFILE and not self._somebody_waits():
                raise BlockingIOError(EAGAIN, os.strerror(EAGAIN)) from None
            raise
        finally:
            self.spare.hold()

    def _somebody_waits(self) -> bool:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _accept_later(self, failed: OSError) -> None:
        self.factory.make_room()
        super()._accept_later(failed)


class AdminTCPPort(_ReservedPort):
    """A listening TCP socket."""


class AdminUNIXPort(_ReservedPort, UNIXPort):
    """A listening Unix socket."""

    _made: socket.socket

    def createInternetSocket(self) -> socket.socket:
        self._made = super().createInternetSocket()
        return self._made

    def startListening(self) -> None:
        try:
            super().startListening()
        except error.CannotListenError:
            self._made.close()  # Twisted does so for TCP only
            raise

    def own(self) -> None:
        """Its socket was a former program's: its file is removed at the end, as if it had been bound here."""
        self._inherited = False
        self._shouldShutdown = True

    def leave(self) -> Any:
        """As a TCP port's. Its file stays."""
        self._inherited = True
        return super().leave()


def listen(
    admin: str,
    factory: Any,
    reserve: Reserve,
    reactor: Any,
    inherited: socket.socket | None = None,
) -> AdminTCPPort | AdminUNIXPort:
    """
    @param inherited: listens there already; it is closed, for the port has one of its own.
    @param admin: `unix:PATH`, `ADDR:PORT` or `[IPV6]:PORT`.
    @param factory: with a `make_room`, which closes a connection that is not needed, if there is one.
    @raise CannotListen: somebody else does already, or it can't be.
    """
    port: AdminTCPPort | AdminUNIXPort
    try:
        if inherited is not None:
            port = _adopt(inherited, factory, reactor)
        elif admin.startswith("unix:"):
            path = admin.removeprefix("unix:")
            _take_over(path)
            port = AdminUNIXPort(os.fsencode(path), factory, _BACKLOG, UNIX_MODE, reactor)
        else:
            host, number = split_admin(admin)
            port = AdminTCPPort(number, factory, _BACKLOG, host, reactor)
        port.spare = reserve
        port.startListening()
        if inherited is not None and isinstance(port, AdminUNIXPort):
            port.own()
    except error.CannotListenError as failed:
        why = getattr(failed.socketError, "strerror", None) or str(failed.socketError)
        raise CannotListen(f"cannot listen on {admin} (admin): {why}") from None
    except OSError as failed:
        raise CannotListen(
            f"cannot listen on {admin} (admin): {failed.strerror or failed}"
        ) from None
    reserve.hold()
    return port


def _adopt(inherited: socket.socket, factory: Any, reactor: Any) -> AdminTCPPort | AdminUNIXPort:
    with inherited:
        descriptor, family = inherited.fileno(), inherited.family
        if family != socket.AF_UNIX:
            tcp: AdminTCPPort = AdminTCPPort._fromListeningDescriptor(
                reactor, descriptor, family, factory
            )
            tcp.close_for_all()
            return tcp
        unix: AdminUNIXPort = AdminUNIXPort._fromListeningDescriptor(reactor, descriptor, factory)
    return unix


def _take_over(path: str) -> None:
    """
    Remove the socket that a relay has left which died.

    @raise CannotListen: it is something else, or somebody's who lives.
    @raise OSError: it can't be removed.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise CannotListen(
            f"cannot listen on unix:{path} (admin): there is a file that is no socket; remove it, or take another path"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full
    raise CannotListen(
        f"cannot listen on unix:{path} (admin): Address already in use; another relay answers there"
    )


def where(port: AdminTCPPort | AdminUNIXPort) -> str:
    """
    @return: what to open there: `http://127.0.0.1:9678/`, `unix:PATH`.
    """
    text = address_text(port.getHost())
    return text if text.startswith("unix:") else f"http://{text}/"

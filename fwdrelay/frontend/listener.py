"""
A listener: bound addresses, and what is done with whoever connects there.

`ClientProtocol.connectionMade` is where a connection's story begins.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..address import address_text, client_host
from ..admit import Admission
from ..config import ListenerConfig
from ..deadlines import Deadlines
from ..dial import Dialer
from ..errors import CannotListen
from ..interfaces import IPump
from ..observe.events import SessionEnded
from ..session import Policy, Reason, Session, Side
from ..upstream import Pool
from .refusals import Refusals


class ClientProtocol(Side):
    """The client's side of a session. Its addresses are worked out when they are asked for."""

    factory: Listener
    _local: str | None = None

    def connectionMade(self) -> None:
        """Pause; let the client in or not; open a session, which dials and relays."""
        self.transport.pauseProducing()
        self.factory.open_session(self)

    @property
    def host(self) -> str | None:
        """The client's IP address; None for one that came by a Unix socket."""
        return client_host(self.transport.getPeer())

    @property
    def address(self) -> str:
        """The client's address, as logs write it."""
        return address_text(self.transport.getPeer())

    @property
    def local(self) -> str:
        """The address that the client connected to, as logs write it."""
        return self._local or address_text(self.transport.getHost())

    def connectionReset(self, error: BaseException) -> None:
        self._local = self.local  # the socket may be closed when somebody asks
        super().connectionReset(error)


class Listener(ServerFactory):
    """
    @param tell: gets each ended session that is to be told of; None where nobody listens.
    @param left: called when a session that was let in has ended.
    @ivar sessions: those that are open.
    @ivar refusals: what became of those who may not enter.
    """

    protocol = ClientProtocol  # type: ignore[assignment]
    noisy = False
    log = Logger()

    def __init__(
        self,
        config: ListenerConfig,
        *,
        clock: Any,
        pump: IPump,
        pool: Pool,
        dialer: Dialer,
        deadlines: Deadlines,
        tell: Callable[[SessionEnded], None] | None,
        left: Callable[[], None],
        all_active: Callable[[], int],
    ) -> None:
        self.config = config
        self.name = config.name
        self.pool = pool
        self.sessions: set[Session] = set()
        self.refusals = Refusals(config.name, clock)
        self._clock = clock
        self._pump = pump
        self._tell = tell
        self._left = left
        self._all_active = all_active
        self._ports: list[IListeningPort] = []
        self._policy = Policy(config.timeouts, pool, dialer, deadlines, clock, self._session_ended)
        self._admission = Admission(config.admit)

    @property
    def active(self) -> int:
        """How many sessions are open."""
        return len(self.sessions)

    def listen(self) -> None:
        """
        Bind every address of the configuration.

        @raise CannotListen: for the first that can't be; those before it stay bound.
        """
        for description in self.config.listen:
            port = self._bind(description)
            self._ports.append(port)
            self.log.info(
                "Listener {listener} listens on {address} for pool {pool}: {targets}",
                listener=self.name,
                address=address_text(port.getHost()),
                pool=self.pool.name,
                targets=", ".join(target.label for target in self.pool.targets),
            )

    def _bind(self, description: str) -> IListeningPort:
        try:
            bound: list[IListeningPort | Failure] = []
            serverFromString(self._pump, description).listen(self).addBoth(bound.append)
            outcome = bound[0]
            if isinstance(outcome, Failure):
                outcome.raiseException()
            assert IListeningPort.providedBy(outcome)
            if "backlog=" not in description:
                outcome.socket.listen(self.config.backlog)  # type: ignore[attr-defined]
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

    async def stop_listening(self) -> None:
        """Accept who was promised a connection, then nobody any more."""
        ports, self._ports = self._ports, []
        for port in ports:
            try:
                await maybeDeferred(port.stopListening)
            except Exception:  # the others, and the sessions, are still to be seen to
                self.log.failure("Could not stop listening on {port}", port=port)

    def open_session(self, client: ClientProtocol) -> None:
        """
        `client` has connected, and is paused: refuse it, or dial for it.
        """
        session = Session(self._policy, next(_numbers), client, self._clock.seconds())
        host = client.host if self._admission.by_client else None
        refusal = self._admission.enter(host)
        self.sessions.add(session)
        if refusal is None:
            session.begin()
        else:
            session.refuse(refusal)

    def _session_ended(self, session: Session) -> None:
        assert session.reason is not None
        refused = session.reason in _REFUSALS
        named = not refused or self.refusals.add(session.reason)
        try:
            if named and self._tell is not None:
                self._tell(self._event(session))
        finally:
            self.sessions.discard(session)
            if not refused:
                assert isinstance(session.client, ClientProtocol)
                self._admission.leave(session.client.host if self._admission.by_client else None)
                self._left()

    def _event(self, session: Session) -> SessionEnded:
        client, upstream, target = session.client, session.upstream, session.target
        assert isinstance(client, ClientProtocol)
        assert session.reason is not None
        dialed = session.connected
        return SessionEnded(
            time=time.time(),
            session=f"{_RUN}-{session.number:x}",
            listener=self.name,
            client=client.address,
            local=client.local,
            pool=self.pool.name,
            target=None if target is None else target.label,
            reason=session.reason.word,
            code=session.code,
            bytes_up=client.received,
            bytes_down=0 if upstream is None else upstream.received,
            dial_ms=None if dialed is None else _ms(dialed - session.started),
            duration_ms=_ms(self._clock.seconds() - session.started),
            retries=session.retries,
            sessions=self.active,
            totals=(
                self._all_active(),
                sum(each.sessions for each in self.pool.targets),
                0 if target is None else target.sessions,
            ),
            error=session.error,
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


_REFUSALS = frozenset({Reason.DENIED, Reason.MAX_SESSIONS, Reason.MAX_SESSIONS_PER_CLIENT})
# What makes a session's name unique among the relay processes of a machine.
_RUN = f"{int(time.time()):x}-{os.getpid():x}"
_numbers = itertools.count(1)

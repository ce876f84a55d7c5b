"""
A listener: what is done with whoever connects to its addresses.

`ClientProtocol.connectionMade` is where a connection's story begins. The bound addresses themselves are
in `fwdrelay.frontend.addresses`.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.protocol import ServerFactory

from ..address import address_text, client_host
from ..admit import Admission
from ..config import ListenerConfig
from ..deadlines import Deadlines
from ..dial import Dialer
from ..interfaces import IAdmission
from ..observe.events import SessionEnded
from ..session import Policy, Reason, Session, Side
from ..upstream import Pool
from ..words import some
from .refusals import Refusals


class ClientProtocol(Side):
    """
    The client's side of a session. Its addresses are worked out when they are asked for.

    @ivar counted: the address that admission has counted it by, if it has.
    """

    factory: Listener
    counted: str | None = None
    _local: str | None = None

    def connectionMade(self) -> None:
        """Pause; let the client in or not; open a session, which dials and relays."""
        self.transport.pauseProducing()
        self.factory.open_session(self)

    @property
    def host(self) -> str | None:  # type: ignore[override]
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
    @param pools: all there are, by name.
    @param admissions: what the configuration's `admit.plugins` name.
    @param tell: gets each ended session that is to be told of; None where nobody listens.
    @param left: called when a session that was let in has ended.
    @ivar sessions: those that are open.
    @ivar refusals: what became of those who may not enter.
    """

    protocol = ClientProtocol  # type: ignore[assignment]
    noisy = False

    def __init__(
        self,
        config: ListenerConfig,
        pools: Mapping[str, Pool],
        admissions: Sequence[IAdmission] = (),
        *,
        clock: Any,
        dialer: Dialer,
        deadlines: Deadlines,
        tell: Callable[[SessionEnded], None] | None,
        left: Callable[[], None],
        all_active: Callable[[], int],
    ) -> None:
        self.name = config.name
        self.sessions: set[Session] = set()
        self.refusals = Refusals(config.name, clock)
        self.tell = tell
        self._clock = clock
        self._dialer = dialer
        self._deadlines = deadlines
        self._left = left
        self._all_active = all_active
        self._admission = Admission(config, admissions)
        self.change(config, pools, admissions)

    def change(
        self, config: ListenerConfig, pools: Mapping[str, Pool], admissions: Sequence[IAdmission]
    ) -> None:
        """Treat those who come from now on as `config` has it. Who is in keeps what there is."""
        self.config = config
        self.pool = pools[config.pool] if config.pool else None
        self._routes = tuple((route.client, pools[route.pool]) for route in config.routes)
        self._admission.change(config, admissions)
        self._policy = Policy(
            config.timeouts, self._dialer, self._deadlines, self._clock, self._session_ended
        )

    @property
    def active(self) -> int:
        """How many sessions are open."""
        return len(self.sessions)

    @property
    def where_to(self) -> str:
        """Where its sessions go, in words."""
        pools = [self.pool, *(pool for _, pool in self._routes)]
        named = dict.fromkeys(pool for pool in pools if pool is not None)
        return "; ".join(
            f"pool {pool.name}: {some([target.label for target in pool.targets]) or 'no targets yet'}"
            for pool in named
        )

    def open_session(self, client: ClientProtocol) -> None:
        """
        `client` has connected, and is paused: refuse it, or find a way for it.
        """
        pool, admission = self.pool, self._admission
        host = client.host if self._routes or admission.by_client else None
        if self._routes:
            pool = self._route(host)
        session = Session(self._policy, next(_numbers), client, self._clock.seconds(), pool)
        self.sessions.add(session)
        refused = admission.enter(host)
        if refused is not None:
            session.refuse(refused.reason, refused.why)
            return
        if admission.counts_clients:
            client.counted = host
        if pool is None:
            admission.leave(client.counted)
            session.refuse(Reason.NO_ROUTE)
            return
        session.begin()

    def _route(self, host: str | None) -> Pool | None:
        """
        @return: the pool of the first route that takes the client; of none: the listener's.
        """
        if host is not None:
            address = ipaddress.ip_address(host)
            for networks, pool in self._routes:
                if any(address in network for network in networks):
                    return pool
        return self.pool

    def _session_ended(self, session: Session) -> None:
        assert session.reason is not None
        refused = session.reason in _REFUSALS
        named = not refused or self.refusals.add(session.reason)
        try:
            if named and self.tell is not None:
                self.tell(self._event(session))
        finally:
            self.sessions.discard(session)
            if not refused:
                assert isinstance(session.client, ClientProtocol)
                self._admission.leave(session.client.counted)
                self._left()

    def _event(self, session: Session) -> SessionEnded:
        client, upstream = session.client, session.upstream
        pool, target = session.pool, session.target
        assert isinstance(client, ClientProtocol)
        assert session.reason is not None
        dialed = session.connected
        return SessionEnded(
            time=time.time(),
            session=f"{_RUN}-{session.number:x}",
            listener=self.name,
            client=client.address,
            local=client.local,
            pool=None if pool is None else pool.name,
            target=None if target is None else target.label,
            reason=session.reason.word,
            code=session.code,
            bytes_up=client.received,
            bytes_down=0 if upstream is None else upstream.received,
            dial_ms=None if dialed is None else _ms(dialed - session.started),
            duration_ms=_ms(self._clock.seconds() - session.started),
            retries=session.retries,
            queue_ms=_ms(session.waited) if session.waited else None,
            sessions=self.active,
            totals=(
                self._all_active(),
                0 if pool is None else pool.sessions,
                0 if target is None else target.sessions,
            ),
            queued=0 if pool is None else pool.waiting,
            error=session.error,
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


_REFUSALS = frozenset(
    {Reason.DENIED, Reason.NO_ROUTE, Reason.MAX_SESSIONS, Reason.MAX_SESSIONS_PER_CLIENT}
)
# What makes a session's name unique among the relay processes of a machine.
_RUN = f"{int(time.time()):x}-{os.getpid():x}"
_numbers = itertools.count(1)

"""
A listener: what is done with whoever connects to its addresses.

`ClientProtocol.connectionMade` is where a connection's story begins. The bound addresses themselves are
in `fwdrelay.frontend.addresses`.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import evolve, frozen
from twisted.internet.protocol import ServerFactory

from ..address import address_text, client_host
from ..admit import Admission, Refused
from ..config import ListenerConfig, RouteConfig
from ..deadlines import Deadlines
from ..dial import Dialer
from ..interfaces import IAdmission, IPump
from ..ledger import Ledger
from ..networks import Networks
from ..observe.audience import Audience
from ..observe.events import SessionEnded
from ..observe.feed import SessionOpened
from ..pump.spliced import SplicedPump
from ..session import IKeeping, Policy, PortableSession, Reason, Session, Side
from ..tls import Peer, ServerTLS
from ..upstream import Pool, former_target
from ..wire.clienthello import ClientHello
from ..wire.proxyprotocol import ProxyHeader, TLSFacts, Version, header
from ..words import counted, some
from .opening import Opening
from .progress import Progress
from .refusals import Refusals
from .totals import Totals


class ClientProtocol(Side):
    """
    The client's side of a session. Its addresses are worked out when they are asked for.

    @ivar admitted: whether it has a place, which it leaves when its session ends.
    @ivar counted: the address that admission has counted it by, if it has.
    @ivar presented: the PROXY header it came with.
    @ivar hello: its ClientHello, where that was looked at.
    @ivar peer: who it is, where TLS is terminated.
    @ivar named: whether the log is to tell of it, where it was refused at once.
    @ivar progress: sees to it that its session is told of while it lasts.
    """

    factory: Listener
    admitted = False
    counted: str | None = None
    presented: ProxyHeader | None = None
    hello: ClientHello | None = None
    peer: Peer | None = None
    named = True
    progress: Progress | None = None
    _local: str | None = None

    def connectionMade(self) -> None:
        """Pause; let the client in or not; open a session, which dials and relays."""
        self.transport.pauseProducing()
        self.factory.open_session(self)

    @property
    def host(self) -> str | None:  # type: ignore[override]
        """The client's IP address; None for one that came by a Unix socket."""
        return client_host(self._source)

    @property
    def address(self) -> str:
        """The client's address, as logs write it."""
        return address_text(self._source)

    @property
    def _source(self) -> Any:
        """Where the client is: what a header says of that, or else who has connected."""
        presented = self.presented
        if presented is None or presented.source is None or presented.local:
            return self.transport.getPeer()
        return presented.source

    @property
    def server_name(self) -> str | None:
        """That it asks for, as far as is known."""
        return None if self.hello is None else self.hello.server_name

    @property
    def alpn(self) -> tuple[str, ...]:
        """What it speaks: agreed on where TLS is terminated, else what it offers."""
        if self.peer is not None:
            return () if self.peer.alpn is None else (self.peer.alpn,)
        return () if self.hello is None else self.hello.alpn

    @property
    def alpn_told(self) -> str | None:
        """The same as log and API tell it."""
        return _brief(",".join(self.alpn)) or None

    def proxy_header(self, version: Version) -> bytes:
        transport, peer = self.transport, self.peer
        facts = None
        if peer is not None:
            facts = TLSFacts(
                version=peer.version,
                cipher=peer.cipher,
                server_name=peer.server_name,
                alpn=peer.alpn,
                cn=peer.cn,
                has_certificate=peer.has_certificate,
                resumed=peer.resumed,
            )
        return header(
            version,
            transport.getPeer(),
            transport.getHost(),
            accepted=self.presented,
            tls=facts,
        )

    @property
    def local(self) -> str:
        """The address that the client connected to, as logs write it."""
        return self._local or address_text(self.transport.getHost())

    def connectionReset(self, error: BaseException) -> None:
        self._local = self.local  # the socket may be closed when somebody asks
        super().connectionReset(error)

    def introduce(self, portable: PortableSession) -> PortableSession:
        return evolve(
            portable,
            listener=self.factory.name,
            client=self.address,
            host=self.host,
            local=self.local,
            counted=self.counted,
            sni=self.server_name,
            alpn=self.alpn_told,
        )


class AdoptedClient(ClientProtocol):
    """
    A client that another process has let in, which has told who it is.

    @param told: by that process.
    """

    admitted = True

    def __init__(self, told: PortableSession) -> None:
        self._told = told
        self._local = told.local
        self.counted = told.counted

    def connectionMade(self) -> None:
        """Its session is there already."""

    @property
    def host(self) -> str | None:  # type: ignore[override]
        return self._told.host

    @property
    def address(self) -> str:
        return self._told.client

    @property
    def local(self) -> str:
        return self._told.local

    @property
    def server_name(self) -> str | None:
        return self._told.sni

    @property
    def alpn_told(self) -> str | None:
        return self._told.alpn


class Listener(ServerFactory):
    """
    @param pools: all there are, by name.
    @param admissions: what the configuration's `admit.plugins` name.
    @param audience: whom its sessions are told to.
    @param totals: where they are counted.
    @param left: called when a session that was let in has ended.
    @param pump: that its clients' transports come from.
    @param ledger: where limits are counted that hold over several processes; None: there is only this one.
    @param keeping: sees to it that its sessions outlive this process; None: they don't.
    @ivar sessions: those that are open.
    @ivar refusals: what became of those who may not enter.
    @ivar tls: how TLS is terminated; None: it is not.
    @ivar totals: what has become of its clients.
    @ivar routes_by_hello: whether some of its routes want to know a ClientHello.
    """

    protocol = ClientProtocol  # type: ignore[assignment]
    noisy = False

    def __init__(
        self,
        config: ListenerConfig,
        pools: Mapping[str, Pool],
        admissions: Sequence[IAdmission] = (),
        tls: ServerTLS | None = None,
        *,
        clock: Any,
        pump: IPump,
        dialer: Dialer,
        deadlines: Deadlines,
        audience: Audience,
        totals: Totals,
        left: Callable[[], None],
        all_active: Callable[[], int],
        ledger: Ledger | None = None,
        keeping: IKeeping | None = None,
    ) -> None:
        self.name = config.name
        self.sessions: set[Session] = set()
        self.totals = totals
        self.refusals = Refusals(config.name, clock, totals.refused)
        self._audience = audience
        self.clock = clock
        self.pump = pump
        self.deadlines = deadlines
        self._dialer = dialer
        self._left = left
        self._all_active = all_active
        self._keeping = keeping
        self._admission = Admission(config, admissions, clock.seconds, ledger)
        self.change(config, pools, admissions, tls)

    def change(
        self,
        config: ListenerConfig,
        pools: Mapping[str, Pool],
        admissions: Sequence[IAdmission],
        tls: ServerTLS | None,
    ) -> None:
        """Treat those who come from now on as `config` has it. Who is in keeps what there is."""
        self.config = config
        self.pool = pools[config.pool] if config.pool else None
        self.tls = tls
        self._routes = tuple(_Route.of(route, pools) for route in config.routes)
        self.routes_by_hello = any(route.sni or route.alpn for route in config.routes)
        accepts = config.proxy_protocol.accept
        self._trusted = Networks(config.proxy_protocol.trusted)
        self._accepts_headers = accepts != "off"
        self._opens_at_once = not (self._accepts_headers or self.routes_by_hello or tls is not None)
        self._by_client = any(route.config.client for route in self._routes)
        self._admission.change(config, admissions)
        self.totals.forget_pools(but=set(pools))
        self._policy = Policy(
            config.timeouts,
            self._dialer,
            self.deadlines,
            self.clock,
            self._session_ended,
            self._session_moved,
            self._keeping,
        )

    @property
    def active(self) -> int:
        """How many sessions are open."""
        return len(self.sessions)

    @property
    def where_to(self) -> str:
        """Where its sessions go, in words."""
        pools = [self.pool, *(route.pool for route in self._routes)]
        named = dict.fromkeys(pool for pool in pools if pool is not None)
        return "; ".join(
            f"pool {pool.name}: {some([target.label for target in pool.targets]) or 'no targets yet'}"
            for pool in named
        )

    def open_session(self, client: ClientProtocol) -> None:
        """
        `client` has connected, and is paused: refuse it, or find a way for it.
        """
        let_in = self._let_in_unknown if self._accepts_headers else self._let_in
        refused = let_in(client)
        if refused is not None:
            # In a flood this is all that is done for each.
            client.named = self.refusals.add(refused.reason)
            if client.named or self._would_be_followed(client):
                self._session_of(client).refuse(refused.reason, refused.why)
            else:
                client.transport.abortConnection()
            return
        client.admitted = True
        self.totals.let_in += 1
        session = self._session_of(client)
        if self._audience.feed.wanted:
            self._audience.opened(partial(self._opened, session, client))
        if self._audience.log_interval:
            self._tell_progress_of(session, client)
        if session.trace is not None and not self.wants_header(client):
            session.trace.tell("admitted", self.fullness)
        if not self._opens_at_once:
            session.open(Opening(self, session, client))
            return
        session.pool = self.route(session, client) if self._routes else self.pool
        if session.pool is None:
            session.refuse(Reason.NO_ROUTE)
        else:
            session.begin()

    def _session_of(self, client: ClientProtocol) -> Session:
        session = Session(self._policy, next(_numbers), client, self.clock.seconds(), None)
        self.sessions.add(session)
        if self._audience.tracer.watchers:
            self.follow(session, client)
        return session

    def adopt(
        self,
        portable: PortableSession,
        descriptors: tuple[int, int, int, int],
        pool: Pool | None,
    ) -> Session:
        """
        Go on with a session that another process relayed; its bytes move in the next turn at the latest.

        @param descriptors: of the client's socket, the target's, and the pipes of the flows up and down; they are
            the session's, also if this raises an exception.
        @param pool: of that name; None: there is none any more.
        @return: the session. It is kept.
        @raise OSError: the descriptors are not what they should be.
        """
        if not isinstance(self.pump, SplicedPump):
            for each in descriptors:
                os.close(each)
            raise OSError(errno.EOPNOTSUPP, "only the splice pump can go on with a session")
        adoption = self.pump.adopt(descriptors, *portable.origins)
        client = AdoptedClient(portable)
        client.factory = self
        session = Session(self._policy, next(_numbers), client, self.clock.seconds(), pool)
        if pool is None:
            session.target = former_target(portable.target, portable.address)
        else:
            session.target = pool.place(portable.target, portable.address)
        self._admission.adopt(client.counted)
        self.sessions.add(session)
        session.adopt(adoption, portable, Side())
        if self._audience.log_interval:
            self._tell_progress_of(session, client)
        return session

    # Who looks on.

    def _would_be_followed(self, client: ClientProtocol) -> bool:
        tracer = self._audience.tracer
        return bool(tracer.watchers) and tracer.would_follow(client.host)

    def follow(self, session: Session, client: ClientProtocol) -> None:
        """Have `session` followed by whoever wants to, as far as it is known who its client is."""
        tracer = self._audience.tracer
        if session.trace is not None:
            tracer.identified(session.trace, client.address, client.host)
        elif tracer.watchers:
            session.trace = tracer.trace(
                session.name,
                self.name,
                client.address,
                client.local,
                client.host,
                session.started,
            )

    @property
    def fullness(self) -> str:
        """How many sessions there are, in words."""
        most = self.config.max_sessions
        if most:
            return f"{self._admission.taken} of {most} sessions"
        return f"{counted(self.active, 'session')} now"

    def _opened(self, session: Session, client: ClientProtocol) -> SessionOpened:
        return SessionOpened(
            time=time.time(),
            session=session.name,
            listener=self.name,
            client=client.address,
            local=client.local,
        )

    def _tell_progress_of(self, session: Session, client: ClientProtocol) -> None:
        interval = self._audience.log_interval
        client.progress = Progress(session, self._lasts)
        # Nearly always once: it has just begun. Else as if it had been so from then on.
        times = max(self.clock.seconds() - session.started, 0.0) // interval + 1
        self.deadlines.set(client.progress, session.started + times * interval)

    def log_interval_changed(self) -> None:
        """Sessions that last are told of as often as is wanted now, those that are open among them."""
        for session in self.sessions:
            client = session.client
            assert isinstance(client, ClientProtocol)
            if client.progress is not None:
                self.deadlines.discard(client.progress)
                client.progress = None
            if self._audience.log_interval:
                self._tell_progress_of(session, client)

    def _lasts(self, session: Session) -> float:
        self._audience.lasts(partial(self._event, session, "progress", "--"))
        return self._audience.log_interval

    # Who may enter, and where to.

    def _let_in(self, client: ClientProtocol) -> Refused | None:
        return self._decide(client, self._admission.enter)

    def _decide(
        self, client: ClientProtocol, decide: Callable[[str | None], Refused | None]
    ) -> Refused | None:
        admission = self._admission
        host = client.host if admission.by_client else None
        refused = decide(host)
        if refused is None and admission.counts_clients:
            client.counted = host
        return refused

    def _let_in_unknown(self, client: ClientProtocol) -> Refused | None:
        """A header will tell who it is: it gets a place for the time being."""
        if self.wants_header(client):
            return self._admission.take_place()
        if self.config.proxy_protocol.accept == "required":
            return Refused(Reason.PROXY_HEADER, "it is not among proxy_protocol.trusted")
        return self._let_in(client)

    def wants_header(self, client: ClientProtocol) -> bool:
        """
        Whether a PROXY header of whoever has connected is read. Who may use a Unix socket is for the file
        system to say.
        """
        if not self._accepts_headers:
            return False
        if not self.config.proxy_protocol.trusted:
            return True
        host = client_host(client.transport.getPeer())
        return host is None or host in self._trusted

    def identify(self, client: ClientProtocol) -> Refused | None:
        """Its header has told who it is: may it enter?"""
        return self._decide(client, self._admission.identify)

    def route(self, session: Session, client: ClientProtocol) -> Pool | None:
        """
        @return: the pool of the first route that takes the client; of none: the listener's.
        """
        host = client.host if self._by_client else None
        for number, route in enumerate(self._routes):
            if route.takes(host, client):
                session.tell("routed", f"to pool {route.pool.name}, by route[{number}]")
                return route.pool
        if self._routes:
            to = "nowhere" if self.pool is None else f"to pool {self.pool.name}"
            session.tell("routed", f"{to}, as no route takes it")
        return self.pool

    def _session_ended(self, session: Session) -> None:
        client, reason = session.client, session.reason
        assert isinstance(client, ClientProtocol)
        assert reason is not None
        if not client.admitted:
            pass  # who was refused at once was counted before
        elif reason in REFUSALS or (reason is Reason.CLIENT_LEFT and session.pool is None):
            client.named = self.refusals.add(reason)
        else:
            self.totals.count(session, self.clock.seconds() - session.started)
        try:
            if client.named:
                self._audience.ended(partial(self._event, session, reason.word, session.code))
        finally:
            self._forget(session, client)

    def _session_moved(self, session: Session) -> None:
        """
        It goes on elsewhere, and its bytes are counted there, all of them; nobody is told of an end, and whoever
        follows its progress is told from there.
        """
        client = session.client
        assert isinstance(client, ClientProtocol)
        self._forget(session, client)

    def _forget(self, session: Session, client: ClientProtocol) -> None:
        self.sessions.discard(session)
        if client.progress is not None:
            self.deadlines.discard(client.progress)
            client.progress = None
        if client.admitted:
            self._admission.leave(client.counted)
            self._left()

    def _event(self, session: Session, reason: str, code: str) -> SessionEnded:
        client, upstream = session.client, session.upstream
        pool, target = session.pool, session.target
        assert isinstance(client, ClientProtocol)
        dialed = session.connected
        return SessionEnded(
            time=time.time(),
            session=session.name,
            listener=self.name,
            client=client.address,
            local=client.local,
            pool=session.pool_name,
            target=None if target is None else target.label,
            reason=reason,
            code=code,
            bytes_up=client.received,
            bytes_down=0 if upstream is None else upstream.received,
            dial_ms=None if dialed is None else _ms(dialed - session.started),
            duration_ms=_ms(self.clock.seconds() - session.started),
            retries=session.retries,
            queue_ms=_ms(session.waited) if session.waited else None,
            sessions=self.active,
            totals=(
                self._all_active(),
                0 if pool is None else pool.sessions,
                0 if target is None else target.sessions,
            ),
            queued=0 if pool is None else pool.waiting,
            sni=client.server_name,
            alpn=client.alpn_told,
            tls=None if client.peer is None else client.peer.version,
            identity=None if client.peer is None else client.peer.identity,
            error=session.error,
        )


@frozen
class _Route:
    """A route, made ready to be asked."""

    config: RouteConfig
    clients: Networks
    pool: Pool

    @classmethod
    def of(cls, config: RouteConfig, pools: Mapping[str, Pool]) -> _Route:
        return cls(config, Networks(config.client), pools[config.pool])

    def takes(self, host: str | None, client: ClientProtocol) -> bool:
        """
        @param host: the client's IP address.
        """
        config = self.config
        if config.client and (host is None or host not in self.clients):
            return False
        if config.sni and not _is_named(client.server_name, config.sni):
            return False
        return not config.alpn or any(name in config.alpn for name in client.alpn)


def _is_named(name: str | None, patterns: Sequence[str]) -> bool:
    """
    @param patterns: `*.` in front stands for one label.
    """
    return name is not None and (name in patterns or f"*.{name.partition('.')[2]}" in patterns)


def _brief(text: str) -> str:
    """@return: what a client says as it stands in the log: it may say very much."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


LONGEST_TEXT = 200
"""Characters that are told of what a client offers."""
REFUSALS = frozenset(
    {
        Reason.DENIED,
        Reason.NO_ROUTE,
        Reason.MAX_SESSIONS,
        Reason.MAX_SESSIONS_PER_CLIENT,
        Reason.RATE,
        Reason.RATE_PER_CLIENT,
        Reason.PROXY_HEADER,
        Reason.PROXY_TIMEOUT,
        Reason.TLS_FAILED,
        Reason.TLS_TIMEOUT,
        Reason.IDENTITY,
    }
)
"""Reasons of which not every one is told."""
_numbers = itertools.count(1)

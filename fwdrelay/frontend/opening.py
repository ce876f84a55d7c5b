"""
Between accept and dial, where a listener wants to know more of a client first: the PROXY header, the name
in its ClientHello, the TLS handshake.

All that is read before TLS is peeked at: it stays in the kernel until it is known what it is, so what is
passed on is passed on untouched, and a client that says nothing costs a socket and little else. Each
stage has a deadline, counted from its beginning, whatever trickles in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred

from ..handshake import shake_hands
from ..session import NotOpened, Reason, Session
from ..tls import PeerRefused, ServerTLS, explain
from ..upstream import Pool
from ..wire import clienthello, proxyprotocol
from ..wire.clienthello import ClientHello, HelloReader, HelloTooLong, NotClientHello
from ..wire.proxyprotocol import SIGNATURE, BadHeader, ProxyHeader

if TYPE_CHECKING:
    from .listener import ClientProtocol, Listener

T = TypeVar("T")
_NOTHING = "it has left without a word"


class _NoMore(Exception):
    """
    The client has ended, or the deadline is here, before it was known what it wants.

    @param begins: what its first bytes are.
    """

    def __init__(self, begins: bytes) -> None:
        super().__init__()
        self.begins = begins


class _Late(_NoMore):
    """The deadline is here."""


class Opening:
    """
    What one client says before its session can begin.

    @ivar bucket: belongs to the deadlines.
    """

    __slots__ = ("_client", "_late", "_listener", "_session", "_waiting", "bucket")

    def __init__(self, listener: Listener, session: Session, client: ClientProtocol) -> None:
        self._listener = listener
        self._session = session
        self._client = client
        self._waiting: Deferred[Any] | None = None
        self._late = False
        self.bucket: set[Any] | None = None

    async def story(self) -> Pool | None:
        """
        @return: where the client goes; None: nowhere.
        @raise NotOpened: it is not let on.
        """
        listener, client = self._listener, self._client
        try:
            if listener.wants_header(client):
                await self._read_header(listener.config.proxy_protocol.accept == "required")
                self._identify()
            tls = listener.tls
            if tls is None:
                if listener.routes_by_hello:
                    client.hello = await self._peek_hello()
            else:
                await self._terminate(tls)
        finally:
            listener.deadlines.discard(self)
        return listener.route(client)

    # The PROXY header.

    async def _read_header(self, required: bool) -> None:
        timeouts = self._listener.config.timeouts
        self._wait_at_most(timeouts.handshake if required else timeouts.peek)

        def read(seen: bytes) -> tuple[ProxyHeader, int] | None:
            if not required and not proxyprotocol.looks_like(seen):
                return _NO_HEADER
            return proxyprotocol.read(seen)

        try:
            header, length = await self._look(proxyprotocol.LONGEST, read)
        except BadHeader as wrong:
            raise NotOpened(Reason.PROXY_HEADER, str(wrong)) from None
        except _NoMore as why:
            self._no_header(required, why)
            return
        if length:
            self._client.transport.take(length)
            self._client.presented = header

    def _no_header(self, required: bool, why: _NoMore) -> None:
        """What it means that none has come, or not all of one."""
        late = isinstance(why, _Late)
        begun = why.begins.startswith((SIGNATURE, b"PROXY "))
        if not required and not begun:
            return  # a client that waits for the server to speak, or something else than a header
        if late:
            said = (
                "the PROXY header was not complete in time" if begun else "no PROXY header in time"
            )
            raise NotOpened(Reason.PROXY_TIMEOUT, said, late=True)
        if why.begins:
            raise NotOpened(Reason.PROXY_HEADER, "the PROXY header breaks off")
        raise NotOpened(Reason.CLIENT_LEFT, _NOTHING)

    def _identify(self) -> None:
        """It is known now who the client is: may it enter?"""
        refused = self._listener.identify(self._client)
        if refused is not None:
            raise NotOpened(refused.reason, refused.why)

    # TLS.

    async def _peek_hello(self) -> ClientHello | None:
        """
        @return: what a client says that is passed on; None: nothing that can be understood.
        """
        self._wait_at_most(self._listener.config.timeouts.peek)
        try:
            return await self._look(clienthello.LONGEST, HelloReader().parse)
        except (NotClientHello, _NoMore):
            return None

    async def _terminate(self, tls: ServerTLS) -> None:
        listener, client = self._listener, self._client
        self._wait_at_most(listener.config.timeouts.handshake)
        try:
            hello = client.hello = await self._look(clienthello.LONGEST, HelloReader().parse)
        except _NoMore as why:
            self._no_hello(why)
        except HelloTooLong as wrong:
            raise NotOpened(Reason.TLS_FAILED, str(wrong)) from None
        except NotClientHello:
            hello = None  # OpenSSL knows what to say to that
        connection = tls.accept(client.transport.getHandle(), hello)
        try:
            await self._until_late(shake_hands(listener.pump, client, connection))
            client.peer = tls.judge(connection)
        except _Late:
            raise NotOpened(
                Reason.TLS_TIMEOUT, "the TLS handshake was not complete in time", late=True
            ) from None
        except (PeerRefused, SSL.Error) as refused:
            unlisted = connection.get_app_data().unlisted
            said = (
                str(refused) if isinstance(refused, PeerRefused) else explain(refused, connection)
            )
            raise NotOpened(
                Reason.IDENTITY if unlisted else Reason.TLS_FAILED, said, answered=True
            ) from None

    def _no_hello(self, why: _NoMore) -> NoReturn:
        seen = bool(why.begins)
        if isinstance(why, _Late):
            said = "the ClientHello was not complete in time" if seen else "no ClientHello in time"
            raise NotOpened(Reason.TLS_TIMEOUT, said, late=True)
        if seen:
            raise NotOpened(Reason.TLS_FAILED, "the ClientHello breaks off")
        raise NotOpened(Reason.CLIENT_LEFT, _NOTHING)

    # Waiting.

    def _wait_at_most(self, seconds: float) -> None:
        """The stage that begins now may last as long; 0: for ever."""
        listener = self._listener
        if seconds:
            listener.deadlines.set(self, listener.clock.seconds() + seconds)
        else:
            listener.deadlines.discard(self)

    def overdue(self, now: float) -> None:
        """The stage's time is up."""
        if self._waiting is not None:
            self._late = True
            self._waiting.cancel()

    async def _until_late(self, waiting: Deferred[T]) -> T:
        """
        @raise _Late: instead of an answer.
        """
        self._waiting = waiting
        try:
            return await waiting
        except CancelledError:
            if self._late:
                raise _Late(b"") from None
            raise
        finally:
            self._waiting = None

    async def _look(self, limit: int, read: Callable[[bytes], T | None]) -> T:
        """
        Look at what the client has sent until there is enough of it.

        @param read: makes something of it; None: more is needed.
        @raise _NoMore: there is not going to be.
        """
        answer: Deferred[T] = Deferred()
        begins = b""  # not all that was seen: it stays in the kernel, and may be much

        def see(seen: bytes, ended: bool) -> None:
            nonlocal begins
            if answer.called:
                return
            begins = seen[: len(SIGNATURE)]
            try:
                found = read(seen)
            except Exception as wrong:
                answer.errback(wrong)
                return
            if found is not None:
                answer.callback(found)
            elif ended or len(seen) >= limit:
                answer.errback(_NoMore(begins))

        client = self._client
        transport = client.transport
        transport.start_peeking(limit, see)
        try:
            if client.reset is not None:
                # It was found out just now, and the session may not have begun to listen for that.
                error = client.reset
                raise NotOpened(Reason.CLIENT_LEFT, getattr(error, "strerror", None) or str(error))
            return await self._until_late(answer)
        except _Late:
            raise _Late(begins) from None
        finally:
            transport.stop_peeking()


_NO_HEADER = ProxyHeader(), 0

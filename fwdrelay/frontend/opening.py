"""
Between accept and dial, where a listener wants to know more of a client first: the PROXY header, the name
in its ClientHello, the TLS handshake.

The story, read from the top: `Opening.begin` asks for the header, if there is to be one; `_ask_for_hello`
peeks at the hello, `_shake_hands` answers it where TLS ends here, and `_go_on` says where the client goes.

All that is read before TLS is peeked at: it stays in the kernel until it is known what it is, so what is
passed on is passed on untouched, and a client that says nothing costs a socket and little else. Each
stage has a deadline, counted from its beginning, whatever trickles in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL
from twisted.logger import Logger

from ..handshake import Handshake
from ..session import Reason, Session
from ..tls import PeerRefused, ServerTLS, explain
from ..wire import clienthello, proxyprotocol
from ..wire.clienthello import ClientHello, HelloReader, HelloTooLong, NotClientHello
from ..wire.proxyprotocol import SIGNATURE, BadHeader
from ..words import some

if TYPE_CHECKING:
    from .listener import ClientProtocol, Listener

_NOTHING = "it has left without a word"


class Opening:
    """
    What one client says before its session can begin.

    @ivar bucket: belongs to the deadlines.
    """

    log = Logger()

    __slots__ = (
        "_begins",
        "_client",
        "_connection",
        "_handshake",
        "_limit",
        "_listener",
        "_look_at",
        "_nothing_more",
        "_reader",
        "_required",
        "_session",
        "bucket",
    )

    def __init__(self, listener: Listener, session: Session, client: ClientProtocol) -> None:
        self._listener = listener
        self._session = session
        self._client = client
        self._begins = b""
        self._limit = 0
        self._look_at: Callable[[bytes], bool] | None = None
        self._nothing_more: Callable[[bool], None] | None = None
        self._required = False
        self._reader: HelloReader | None = None
        self._handshake: Handshake | None = None
        self._connection: Any = None
        self.bucket: set[Any] | None = None

    def begin(self) -> None:
        """Ask for what is to come first."""
        listener = self._listener
        if listener.wants_header(self._client):
            self._required = listener.config.proxy_protocol.accept == "required"
            timeouts = listener.config.timeouts
            self._wait_at_most(timeouts.handshake if self._required else timeouts.peek)
            self._look(proxyprotocol.LONGEST, self._read_header, self._no_header)
        else:
            self._ask_for_hello()

    def give_up(self) -> None:
        """The session is over: nobody wants to know any more."""
        if self._look_at is not None:
            self._stop_looking()
        self._over()
        if self._handshake is not None:
            self._handshake.give_up()
            self._handshake = None

    # The PROXY header.

    def _read_header(self, seen: bytes) -> bool:
        """@return: whether it was seen, or it was seen that there is none."""
        if not self._required and not proxyprotocol.looks_like(seen):
            self._session.tell("header", "no PROXY header")
            self._stop_looking()
            self._identify()
            return True
        try:
            found = proxyprotocol.read(seen)
        except BadHeader as wrong:
            self._refuse(Reason.PROXY_HEADER, str(wrong))
            return True
        if found is None:
            return False
        client = self._client
        client.presented, length = found
        self._listener.follow(self._session, client)
        self._session.tell("header", f"a PROXY header: the client is {client.address}")
        self._stop_looking()
        client.transport.take(length)
        self._identify()
        return True

    def _no_header(self, late: bool) -> None:
        """What it means that none has come, or not all of one."""
        begun = self._begins.startswith((SIGNATURE, b"PROXY "))
        if not self._required and not begun:
            # A client that waits for the server to speak, or says something else than a header.
            self._session.tell("header", "no PROXY header")
            self._stop_looking()
            self._identify()
        elif late:
            said = (
                "the PROXY header was not complete in time" if begun else "no PROXY header in time"
            )
            self._refuse(Reason.PROXY_TIMEOUT, said, late=True)
        elif self._begins:
            self._refuse(Reason.PROXY_HEADER, "the PROXY header breaks off")
        else:
            self._refuse(Reason.CLIENT_LEFT, _NOTHING)

    def _identify(self) -> None:
        """It is known now who the client is: may it enter?"""
        refused = self._listener.identify(self._client)
        if refused is not None:
            self._refuse(refused.reason, refused.why)
        else:
            self._session.tell("admitted", self._listener.fullness)
            self._ask_for_hello()

    # The ClientHello.

    def _ask_for_hello(self) -> None:
        listener = self._listener
        timeouts = listener.config.timeouts
        if listener.tls is not None:
            self._wait_at_most(timeouts.handshake)
        elif listener.routes_by_hello:
            self._wait_at_most(timeouts.peek)
        else:
            self._go_on()
            return
        self._begins = b""
        self._reader = HelloReader()
        self._look(clienthello.LONGEST, self._read_hello, self._no_hello)

    def _read_hello(self, seen: bytes) -> bool:
        """@return: whether it was seen, or it was seen that there is none."""
        assert self._reader is not None
        hello: ClientHello | None = None
        try:
            hello = self._reader.parse(seen)
            if hello is None:
                return False
        except HelloTooLong as wrong:
            if self._listener.tls is not None:
                self._refuse(Reason.TLS_FAILED, str(wrong))
                return True
        except NotClientHello:
            pass  # where TLS ends here, OpenSSL knows what to say to that
        self._hello_seen(hello)
        return True

    def _no_hello(self, late: bool) -> None:
        """What it means that none has come, or not all of one."""
        begun = bool(self._begins)
        if self._listener.tls is None:
            self._hello_seen(None)
        elif late:
            said = "the ClientHello was not complete in time" if begun else "no ClientHello in time"
            self._refuse(Reason.TLS_TIMEOUT, said, late=True)
        elif begun:
            self._refuse(Reason.TLS_FAILED, "the ClientHello breaks off")
        else:
            self._refuse(Reason.CLIENT_LEFT, _NOTHING)

    def _hello_seen(self, hello: ClientHello | None) -> None:
        """@param hello: None: there is none that can be understood."""
        self._stop_looking()
        self._reader = None
        self._client.hello = hello
        if self._session.trace is not None:
            self._session.trace.tell("hello", _told(hello))
        tls = self._listener.tls
        if tls is None:
            self._go_on()
        else:
            self._shake_hands(tls, hello)

    # The handshake.

    def _shake_hands(self, tls: ServerTLS, hello: ClientHello | None) -> None:
        client = self._client
        self._nothing_more = self._late_to_shake_hands
        self._connection = tls.accept(client.transport.getHandle(), hello)

        def shaken() -> None:
            self._handshake = None
            try:
                client.peer = tls.judge(self._connection)
            except PeerRefused as refused:
                self._not_shaken(refused)
            else:
                peer = client.peer
                who = f"; it is {peer.identity}" if peer.identity else ""
                self._session.tell("tls", f"{peer.version}, {peer.cipher}{who}")
                self._go_on()

        self._handshake = Handshake(client, shaken, self._not_shaken)
        self._handshake.begin(self._listener.pump, self._connection)

    def _not_shaken(self, failed: BaseException) -> None:
        """
        @param failed: what OpenSSL says, or who was refused; what broke the connection ends the session by itself.
        """
        self._handshake = None
        connection = self._connection
        if isinstance(failed, (PeerRefused, SSL.Error)):
            said = str(failed) if isinstance(failed, PeerRefused) else explain(failed, connection)
            unlisted = connection.get_app_data().unlisted
            self._refuse(Reason.IDENTITY if unlisted else Reason.TLS_FAILED, said, answered=True)

    def _late_to_shake_hands(self, late: bool) -> None:
        self._refuse(Reason.TLS_TIMEOUT, "the TLS handshake was not complete in time", late=True)

    # The end.

    def _go_on(self) -> None:
        """All was said."""
        self._over()
        self._session.opened(self._listener.route(self._session, self._client))

    def _over(self) -> None:
        self._nothing_more = None  # which refers to this object, and would keep it
        self._listener.deadlines.discard(self)

    def _refuse(
        self, reason: Reason, detail: str | None, *, late: bool = False, answered: bool = False
    ) -> None:
        self._session.not_opened(reason, detail, late=late, answered=answered)

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
        if self._nothing_more is not None:
            self._nothing_more(True)

    def _look(
        self, limit: int, look_at: Callable[[bytes], bool], nothing_more: Callable[[bool], None]
    ) -> None:
        """
        Look at what the client has sent until there is enough of it.

        @param look_at: makes something of it; False: more is needed.
        @param nothing_more: is told that there won't be; True: for lack of time.
        """
        self._limit, self._look_at, self._nothing_more = limit, look_at, nothing_more
        self._client.transport.start_peeking(limit, self._see)

    def _see(self, seen: bytes, ended: bool) -> None:
        if self._look_at is None:
            return
        try:
            # Not all is kept of what was seen: it stays in the kernel, and may be much.
            self._begins = seen[: len(SIGNATURE)]
            if self._look_at(seen):
                return
            if (ended or len(seen) >= self._limit) and self._nothing_more is not None:
                self._nothing_more(False)
        except Exception:
            self.log.failure("What a client began with could not be dealt with")
            self._session.cut(Reason.INTERNAL_ERROR)

    def _stop_looking(self) -> None:
        self._look_at = self._nothing_more = None
        self._client.transport.stop_peeking()


def _told(hello: ClientHello | None) -> str:
    """@return: what matters of it, in words."""
    if hello is None:
        return "no ClientHello that can be understood"
    name = f"asks for {hello.server_name}" if hello.server_name else "asks for no name"
    return f"{name}; offers {some(hello.alpn)}" if hello.alpn else name

"""
What is said in a check, and what is made of the answer: bytes in, bytes out, no I/O.

Each kind of check is a `Probe`, one object for each connection. Who opens and ends the connection
is `fwdrelay.upstream.health.check`.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from OpenSSL import SSL
from twisted.internet.abstract import isIPAddress, isIPv6Address

from ... import __version__
from ...config import TargetConfig
from ...errors import FwdrelayError
from ...tls import PeerRefused, UpstreamTLS, explain

LONGEST_ANSWER = 64 << 10
"""Bytes in which `expect` is searched for."""
LONGEST_HEADER = 64 << 10
"""Bytes of what comes before an HTTP status that counts: interim answers, and the start of its line."""
LONGEST_HANDSHAKE = 256 << 10
"""Bytes of a TLS handshake. OpenSSL takes up to 100 KiB of certificates."""

_BIO_READ = 1 << 16
_QUOTED = 40
_STATUS = re.compile(rb"HTTP/\d{1,3}(?:\.\d{1,3})? ([1-9]\d\d)[ \r\n]")
# What may become a status line, as far as it has come.
_STATUS_SO_FAR = re.compile(
    rb"(?:H|HT|HTT|HTTP|HTTP/\d{0,3}|HTTP/\d{1,3}\.\d{0,3}|HTTP/\d{1,3}(?:\.\d{1,3})? (?:[1-9]\d{0,2})?)?"
)
_HEADER_END = re.compile(rb"\r?\n\r?\n")
# Of a path; all else is written %HH, so what is asked for can't become more than one line.
_PATH_SAFE = "/?[]@!$&'()*+,;=:%~"


class CheckFailed(FwdrelayError):
    """A target was checked and is not healthy. The text is a clause for the log."""


class Probe:
    """
    One connection's talk. This one says nothing: to be connected to is enough.

    @ivar passed: the target is healthy; nothing more needs to be heard.
    @ivar peer_ends: the peer was asked to end the connection after what it sends, so it goes first.
    @ivar awaited: what is missing while `passed` is false, for the log.
    """

    passed: bool = True
    peer_ends: bool = False
    awaited: str = "answer"

    def begin(self) -> bytes:
        """
        The connection is open.

        @return: what to send.
        """
        return b""

    def received(self, data: bytes) -> bytes:
        """
        The peer sent something; not asked any more once the check was passed or failed.

        @return: what to send.
        @raise CheckFailed: that was not what a healthy target sends.
        """
        return b""

    def ended(self) -> None:
        """
        The peer has ended, and the check is not passed yet.

        @raise CheckFailed: always.
        """
        raise CheckFailed("ended the connection without an answer")

    def end(self) -> bytes:
        """
        @return: what to send last.
        """
        return b""


class Expecting(Probe):
    """
    Sends something, if there is something to send, and wants to hear something, if there is something
    to be heard.
    """

    awaited = "matching answer"

    def __init__(self, send: bytes, expect: re.Pattern[bytes] | None) -> None:
        self.passed = expect is None
        self._send = send
        self._expect = expect
        self._heard = bytearray()

    def begin(self) -> bytes:
        return self._send

    def received(self, data: bytes) -> bytes:
        assert self._expect is not None
        self._heard += data[: LONGEST_ANSWER - len(self._heard)]
        if self._expect.search(self._heard):
            self.passed = True
        elif len(self._heard) >= LONGEST_ANSWER:
            raise CheckFailed(
                f"nothing in the first {LONGEST_ANSWER >> 10} KiB of the answer matches"
            )
        return b""

    def ended(self) -> None:
        if not self._heard:
            super().ended()
        raise CheckFailed(f"the answer {_quoted(self._heard)} does not match")


def tls_context() -> SSL.Context:
    """
    @return: for `Handshake`. Certificates are not verified: the question is whether TLS is spoken there.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    return context


class Handshake(Probe):
    """Wants a TLS handshake to complete, and ends it by close_notify."""

    awaited = "complete TLS handshake"

    def __init__(self, context: SSL.Context, host: str) -> None:
        """
        @param host: the target's; it is sent as the server's name (SNI) if it is one.
        """
        self.passed = False
        self._heard = 0
        self._tls = SSL.Connection(context, None)
        self._tls.set_connect_state()
        name = _server_name(host)
        if name:
            self._tls.set_tlsext_host_name(name)

    def begin(self) -> bytes:
        return self._go_on()

    def received(self, data: bytes) -> bytes:
        self._heard += len(data)
        if self._heard > LONGEST_HANDSHAKE:
            raise _handshake_too_long()
        self._tls.bio_write(data)
        return self._go_on()

    def ended(self) -> None:
        raise CheckFailed("ended the connection during the TLS handshake")

    def end(self) -> bytes:
        # What is left to send: the last of the handshake, and either close_notify or the alert that
        # tells what OpenSSL did not like.
        if self.passed:
            self._tls.shutdown()
        return self._pending()

    def _go_on(self) -> bytes:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return self._pending()
        except SSL.Error as error:
            raise CheckFailed(f"the TLS handshake failed: {_reason(error)}") from None
        self.passed = True
        return b""

    def _pending(self) -> bytes:
        return _pending(self._tls)


class Secured(Probe):
    """
    Another probe's talk within TLS as the pool's sessions speak it: the target has to prove who it is, if
    it has to prove it to them.

    @param tls: the pool's.
    @param inner: what is said once the target has proved it.
    """

    def __init__(self, tls: UpstreamTLS, target: TargetConfig, inner: Probe) -> None:
        self.passed = False
        self.awaited = Handshake.awaited
        self._tls = tls
        self._target = target
        self._inner = inner
        self._heard = 0
        self._judged = False
        self._connection = tls.connect(None, target)

    def begin(self) -> bytes:
        self._shake_hands()
        return _pending(self._connection)

    def received(self, data: bytes) -> bytes:
        self._connection.bio_write(data)
        if not self._judged:
            self._heard += len(data)
            if self._heard > LONGEST_HANDSHAKE:
                raise _handshake_too_long()
            self._shake_hands()
        if self._judged and not self.passed:
            self._read()
        return _pending(self._connection)

    def ended(self) -> None:
        if not self._judged:
            raise CheckFailed("ended the connection during the TLS handshake")
        self._inner.ended()

    def end(self) -> bytes:
        connection = self._connection
        if self._judged:
            _write(connection, self._inner.end())
            if not self.peer_ends:
                connection.shutdown()
        return _pending(connection)

    def _shake_hands(self) -> None:
        connection = self._connection
        try:
            connection.do_handshake()
            self._tls.judge(connection, self._target)
        except SSL.WantReadError:
            return
        except (SSL.Error, PeerRefused) as failed:
            raise CheckFailed(explain(failed, connection)) from None
        self._judged = True
        _write(connection, self._inner.begin())
        self._take_over()

    def _read(self) -> None:
        """Pass on what the target says, until that is enough."""
        connection, inner = self._connection, self._inner
        try:
            while not inner.passed:
                try:
                    data = connection.recv(_BIO_READ)
                finally:
                    self._take_over()
                _write(connection, inner.received(data))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            inner.ended()
        except SSL.Error as failed:
            raise CheckFailed(explain(failed, connection)) from None
        finally:
            self._take_over()

    def _take_over(self) -> None:
        """Be as far as the other probe is."""
        inner = self._inner
        self.passed, self.peer_ends, self.awaited = inner.passed, inner.peer_ends, inner.awaited


class HttpRequest(Probe):
    """
    Asks for a page, and wants a status of 2xx or 3xx.

    @param host: what it asks at; empty: the target's own name or address.
    @param port: that needs no mention: 80, or 443 within TLS.
    """

    awaited = "HTTP status"

    def __init__(self, target: TargetConfig, path: str, host: str = "", port: int = 80) -> None:
        self.passed = False
        self._request = (
            f"GET {quote(path, safe=_PATH_SAFE)} HTTP/1.1\r\n"
            f"Host: {host or _authority(target, port)}\r\n"
            f"User-Agent: fwdrelay/{__version__}\r\n"
            "Accept: */*\r\n"
            "Connection: close\r\n\r\n"
        ).encode("ascii")
        self._heard = 0
        self._buffer = bytearray()
        self._searched = 0

    def begin(self) -> bytes:
        return self._request

    def received(self, data: bytes) -> bytes:
        self._heard += len(data)
        self._buffer += data
        while (found := _STATUS.match(self._buffer)) is not None and found[1].startswith(b"1"):
            # An interim answer (RFC 9110, section 15.2); the one that counts is still to come.
            end = _HEADER_END.search(self._buffer, self._searched)
            if end is None:
                # Not from the start again: it may come byte by byte, and an end has 4 at the most.
                self._searched = max(len(self._buffer) - 3, 0)
                break
            del self._buffer[: end.end()]
            self._searched = 0
        if found is None:
            if not _STATUS_SO_FAR.fullmatch(self._buffer):
                raise CheckFailed(f"answered {_quoted(self._buffer)}, which is not HTTP")
        elif found[1][:1] in b"23":
            self.passed = self.peer_ends = True
        elif not found[1].startswith(b"1"):
            self.peer_ends = True
            raise CheckFailed(f"HTTP status {found[1].decode('ascii')}")
        if not self.passed and self._heard > LONGEST_HEADER:
            raise CheckFailed(f"no HTTP status in the first {LONGEST_HEADER >> 10} KiB")
        return b""

    def ended(self) -> None:
        raise CheckFailed("ended the connection without an HTTP status")


def _handshake_too_long() -> CheckFailed:
    return CheckFailed(f"the TLS handshake is longer than {LONGEST_HANDSHAKE >> 10} KiB")


def _pending(connection: SSL.Connection) -> bytes:
    """
    @return: what is to be sent.
    """
    chunks = []
    while True:
        try:
            chunks.append(connection.bio_read(_BIO_READ))
        except SSL.WantReadError:
            return b"".join(chunks)


def _write(connection: SSL.Connection, data: bytes) -> None:
    if data:
        connection.sendall(data)


def _authority(target: TargetConfig, port: int) -> str:
    """
    @param port: that is left out.
    @return: what stands in `Host:`; RFC 9112, section 3.2. A Unix socket has no name there.
    """
    if target.path:
        return "localhost"
    host = f"[{target.host}]" if ":" in target.host else _ascii_name(target.host)
    return host if target.port == port else f"{host}:{target.port}"


def _ascii_name(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        # Such a name does not resolve either; discovery may have found its addresses all the same.
        return quote(host, safe="")


def _server_name(host: str) -> bytes:
    """
    @return: as RFC 6066, section 3 wants it: no address, no dot at the end; empty: none.
    """
    if not host or isIPAddress(host) or isIPv6Address(host):
        return b""
    return _ascii_name(host).rstrip(".").encode("ascii")


def _reason(error: SSL.Error) -> str:
    """
    @return: what OpenSSL says first, in its words.
    """
    queue = error.args[0] if error.args else ()
    if queue and isinstance(queue, list):
        return str(queue[0][-1])
    return "the connection ended"


def _quoted(data: bytes | bytearray) -> str:
    """
    @return: the beginning of what a peer said, safe to be logged.
    """
    more = "…" if len(data) > _QUOTED else ""
    return f"'{repr(bytes(data[:_QUOTED]))[2:-1]}{more}'"

"""
A TLS connection with the manners of a non-blocking socket, so that a pump's transports need not know
what they read and write through.

It is OpenSSL's `SSL` object straight on the socket's descriptor: no bytes are copied through buffers of
Python's between the two. Errors are those of sockets: what waits is `BlockingIOError`, a connection
that broke is `OSError`, and an end that nobody announced (no close_notify, RFC 8446, section 6.1) is
`Truncated`. Who may be talked to, and with which certificates, is `fwdrelay.tls`'s to say.

Reading and writing call the C functions that pyOpenSSL wraps, as its own methods copy each byte once
more and take twice as long. Where its bindings are not as expected, its methods are called instead.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from OpenSSL import SSL

try:
    from OpenSSL._util import ffi, lib
except ImportError:  # then what stands on them isn't used
    ffi = lib = None

RECORD = 1 << 14
"""Bytes in a record, at most; RFC 8446, section 5.1."""
LONGEST = 1 << 18
"""Bytes that are read at once, at most."""
READS = 64
"""Of records at once, at most: they may have a byte each."""
BUFFER = bytearray(LONGEST)
VIEW = memoryview(BUFFER)
"""What `SecureSocket.receive` reads into; all connections share it."""
_POINTER: Any = ffi.from_buffer(BUFFER) if ffi else None
_WAITS = (2, 3)
"""SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE."""
_RESETS = (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT)
_ENDED = 6
"""SSL_ERROR_ZERO_RETURN."""
BLOCKED = -1
"""From `SecureSocket.receive`: there is nothing just now."""


_BOTH_ENDED = SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN


class Truncated(ConnectionError):
    """The peer's end came without a close_notify: what it sent may not be all it meant to send."""

    def __init__(self) -> None:
        super().__init__("TLS ended without close_notify: what came may not be all")


class Garbled(ConnectionError):
    """What the peer sent is not what its side of TLS would send, or it sent an alert."""


class SecureSocket:
    """
    @param raw: the connected, non-blocking socket, from now on this object's.
    @param connection: made for that socket; it has not shaken hands yet.
    @ivar family: of the socket.
    @ivar failed: why nothing can be read any more, if that is so.
    @ivar lenient: see `IStream`.
    @ivar reset: what broke the connection, where that was learnt otherwise than by reading.
    @ivar at_end: `recv` has come to the end, or to where the connection broke.
    """

    __slots__ = (
        "_answers",
        "_notified",
        "_raw",
        "_ssl",
        "at_end",
        "connection",
        "failed",
        "family",
        "lenient",
        "reset",
    )

    def __init__(self, raw: Any, connection: SSL.Connection) -> None:
        self._raw = raw
        self.connection: Any = connection
        self.family = raw.family
        self.failed: OSError | None = None
        self.reset: OSError | None = None
        self.at_end = self.lenient = False
        self._notified = self._answers = False
        self._ssl: Any = getattr(connection, "_ssl", None)

    # The handshake.

    def handshake(self) -> bool:
        """
        One step of it.

        @return: whether it is complete; if not, there is something to wait for.
        @raise SSL.Error: it has failed.
        """
        try:
            self.connection.do_handshake()
        except (SSL.WantReadError, SSL.WantWriteError):
            return False
        return True

    # Bytes.

    def receive(self, start: int, most: int) -> int:
        """
        Read what is there into `VIEW`.

        @param start: where in `VIEW`.
        @param most: bytes, `RECORD` at least, or some of a record may be kept back unannounced.
        @return: how many bytes; 0: the peer has ended; `BLOCKED`: nothing is there.
        @raise OSError: the connection is broken, for good.
        """
        if self.failed is not None:
            raise self.failed.with_traceback(None)
        count: int = lib.SSL_read(self._ssl, _POINTER + start, most)
        if count > 0:
            if self._notified:
                self._answers = False
            return count
        return self._nothing_read(count)

    def _nothing_read(self, count: int) -> int:
        kind = lib.SSL_get_error(self._ssl, count)
        if kind in _WAITS:
            return BLOCKED
        if kind == _ENDED:
            return 0
        return self._broken(self._why(count))

    def _broken(self, failed: OSError) -> int:
        if isinstance(failed, Truncated):
            # Learning of a reset has used up the socket's error, so that reading tells an end.
            if self.reset is not None:
                failed = self.reset
            elif self.lenient and self._answers:
                # It was told of our end, and has closed without another word: that is how many answer a
                # close_notify instead of sending theirs.
                return 0
        self.failed = failed
        raise failed

    def recv(self, most: int) -> bytes:
        """
        As of a socket, though it takes whole records: what it returns is all that there was, or as much as
        leaves no room for another record. If the end came with it, `at_end` says so, as nothing else may:
        it is told by the next call.

        @param most: bytes, from `RECORD` to `LONGEST`.
        """
        filled = reads = 0
        while most - filled >= RECORD and reads < READS:
            reads += 1
            try:
                count = self.receive(filled, most - filled)
            except OSError:
                self.at_end = True
                if not filled:
                    raise
                break
            if count <= 0:
                self.at_end = count != BLOCKED
                if not filled and not self.at_end:
                    raise BlockingIOError
                break
            filled += count
        return bytes(VIEW[:filled])

    def send(self, data: Any) -> int:
        """
        As of a socket. After one that took less than all, the rest is to be sent next, nothing else: a part
        of it may be encrypted already.
        """
        size = len(data)
        sent = 0
        with ffi.from_buffer(data) as start:
            while sent < size:
                count = lib.SSL_write(self._ssl, start + sent, size - sent)
                if count <= 0:
                    if lib.SSL_get_error(self._ssl, count) not in _WAITS:
                        why = self._why(count)
                        raise self.failed or why
                    if not sent:
                        raise BlockingIOError
                    break
                sent += count
        return sent

    def _why(self, count: int) -> OSError:
        number = ffi.errno
        try:
            self.connection._raise_ssl_error(self._ssl, count)
        except SSL.Error as failed:
            # Of a write, OpenSSL may not say why.
            if failed.args in ((), ([],)) and number in _RESETS:
                return OSError(number, os.strerror(number))
            return _as_os_error(failed)
        finally:
            lib.ERR_clear_error()  # or the next connection's error would be taken for this one's
        return Garbled("TLS: protocol error")

    # The end.

    def notify(self) -> None:
        """
        Send close_notify: nothing more will be written.

        @raise BlockingIOError: it is to be tried again when the socket is writable.
        @raise OSError: it can't be sent any more.
        """
        if self._notified:
            return
        try:
            self.connection.shutdown()
        except (SSL.WantWriteError, SSL.WantReadError):
            raise BlockingIOError from None
        except SSL.Error:
            raise OSError("no close_notify can be sent any more") from None
        self._notified = True
        self._answers = True

    def shutdown(self, how: int) -> None:
        """As of a socket; without close_notify."""
        self._raw.shutdown(how)

    def close(self) -> None:
        """As of a socket."""
        # OpenSSL would forget a session that was not ended properly, and it could not be resumed.
        self.connection.set_shutdown(_BOTH_ENDED)
        self._raw.close()
        self._free()

    def release(self) -> Any:
        """
        @return: the socket, which is the caller's from now on.
        """
        self._free()
        return self._raw

    def _free(self) -> None:
        """What OpenSSL keeps is much, and somebody may hold on to this object for longer than it is of use."""
        self.connection = self._ssl = None

    # What else is asked of sockets.

    def fileno(self) -> int:
        """As of a socket."""
        number: int = self._raw.fileno()
        return number

    def getsockopt(self, level: int, option: int) -> int:
        """As of a socket."""
        value: int = self._raw.getsockopt(level, option)
        return value

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As of a socket."""
        self._raw.setsockopt(level, option, value)

    def getsockname(self) -> Any:
        """As of a socket."""
        return self._raw.getsockname()

    def getpeername(self) -> Any:
        """As of a socket."""
        return self._raw.getpeername()


class PublicSecureSocket(SecureSocket):
    """The same by pyOpenSSL's own methods alone."""

    __slots__ = ()

    def receive(self, start: int, most: int) -> int:
        if self.failed is not None:
            raise self.failed.with_traceback(None)
        try:
            count: int = self.connection.recv_into(VIEW[start : start + most])
            self._answers = False
            return count
        except (SSL.WantReadError, SSL.WantWriteError):
            return BLOCKED
        except SSL.ZeroReturnError:
            return 0
        except SSL.Error as failed:
            return self._broken(_as_os_error(failed))

    def send(self, data: Any) -> int:
        view = memoryview(data)
        sent = 0
        try:
            while sent < len(view):
                with view[sent:] as rest:
                    sent += self.connection.send(rest)
        except (SSL.WantReadError, SSL.WantWriteError):
            if not sent:
                raise BlockingIOError from None
        except SSL.Error as failed:
            raise (self.failed or _as_os_error(failed)) from None
        finally:
            view.release()
        return sent


def refuse_tls(stream: Any, is_open: bool) -> None:
    """@raise ConnectionError: no TLS can be begun on that transport any more, or not yet."""
    if not is_open:
        raise ConnectionError("the connection is lost")
    if stream.unsent_here():
        raise ConnectionError("what goes before TLS was not taken at once")


def _as_os_error(failed: SSL.Error) -> OSError:
    if isinstance(failed, SSL.SysCallError):
        number, text = failed.args
        if number == -1:
            return Truncated()
        return OSError(number, os.strerror(number) if number > 0 else text)
    errors = failed.args[0] if failed.args else ()
    reasons = [reason for _, _, reason in errors if reason]
    return Garbled(f"TLS: {reasons[-1] if reasons else 'protocol error'}")


def _bindings_are_as_expected() -> bool:
    """Whether what `SecureSocket` calls is there, and wants what it gives."""
    wanted = {
        "SSL_read": "int(*)(SSL *, void *, int)",
        "SSL_write": "int(*)(SSL *, void *, int)",
        "SSL_get_error": "int(*)(SSL *, int)",
        "ERR_clear_error": "void(*)()",
    }
    try:
        return all(
            ffi.typeof(getattr(lib, name)).cname == kind for name, kind in wanted.items()
        ) and {"_ssl", "_raise_ssl_error"} <= {*dir(SSL.Connection), *_own_attributes()}
    except (AttributeError, TypeError):
        return False


def _own_attributes() -> list[str]:
    """@return: those of a connection."""
    return list(vars(SSL.Connection(SSL.Context(SSL.TLS_METHOD))))


make_secure: type[SecureSocket] = (
    SecureSocket if _bindings_are_as_expected() else PublicSecureSocket
)

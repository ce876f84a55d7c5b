"""A peer that speaks TLS by Python's own `ssl`, and whose every byte on the wire a test may meddle with."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import tempfile
from functools import cache
from typing import Any

from OpenSSL import SSL

from tests.pki import Authority

MB = 1 << 20
_RESET = struct.pack("ii", 1, 0)


@cache
def certificate() -> tuple[bytes, bytes]:
    """@return: chain and key, in PEM, for `a.example`."""
    identity = Authority().vouch("a", dns=["a.example"])
    return identity.chain, identity.key


def server_context() -> SSL.Context:
    """@return: a context that shows `certificate`."""
    context = SSL.Context(SSL.TLS_METHOD)
    with tempfile.NamedTemporaryFile() as chain, tempfile.NamedTemporaryFile() as key:
        for file, pem in zip((chain, key), certificate(), strict=True):
            file.write(pem)
            file.flush()
        context.use_certificate_chain_file(chain.name)
        context.use_privatekey_file(key.name)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    return context


def accept(sock: Any) -> SSL.Connection:
    """@return: the server's end of a handshake on that socket."""
    connection = SSL.Connection(server_context(), sock)
    connection.set_accept_state()
    return connection


class TLSPeer:
    """
    @param sock: connected; the peer's.
    @ivar heard: what it was sent, in clear.
    @ivar ended: it was sent close_notify.
    @ivar cut: the connection has ended, whether or not that was said.
    @ivar failed: what it doesn't like.
    """

    def __init__(self, sock: socket.socket, version: str = "TLSv1.3") -> None:
        self.sock = sock
        sock.setblocking(False)
        # Or the last word might still wait for an acknowledgement when a reset drops it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        wanted = ssl.TLSVersion.TLSv1_3 if version == "TLSv1.3" else ssl.TLSVersion.TLSv1_2
        context.minimum_version = context.maximum_version = wanted
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="a.example")
        self.unsent = b""
        self.heard = bytearray()
        self.shaken = self.ended = self.cut = False
        self.failed: Exception | None = None

    def shake(self) -> bool:
        """Go on with the handshake. @return: whether it is complete."""
        if not self.shaken:
            self.receive()
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.shaken = True
            self.flush()
        return self.shaken

    def flush(self) -> bool:
        """@return: whether the kernel has taken all."""
        self.unsent += self.outgoing.read()
        while self.unsent:
            try:
                sent = self.sock.send(self.unsent)
            except OSError:
                return False
            self.unsent = self.unsent[sent:]
        return True

    def receive(self, most: int = MB) -> None:
        """Take from the kernel what is there."""
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return
        except OSError as failed:
            self.failed = failed
            self.cut = True
            return
        if data:
            self.incoming.write(data)
        else:
            self.cut = True

    def say(self, data: bytes) -> None:
        """Encrypt; `flush` sends it."""
        self.tls.write(data)
        self.flush()

    def hear(self, most: int = MB) -> bool:
        """Take and decrypt what is there. @return: False, so that it can stand before an `or`."""
        self.receive(most)
        while True:
            try:
                data = self.tls.read(MB)
            except ssl.SSLWantReadError:
                return False
            except ssl.SSLZeroReturnError:
                self.ended = True
                return False
            except ssl.SSLError as failed:
                self.failed = failed
                return False
            if not data:
                self.ended = True
                return False
            self.heard += data

    def end(self) -> None:
        """close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLError):
            self.tls.unwrap()
        self.flush()

    def fin(self) -> None:
        """FIN alone."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

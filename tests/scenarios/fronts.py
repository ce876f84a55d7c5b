"""
What the scenarios share that are about what comes before a session: relays of a configuration over each
pump, clients that are refused, and ClientHellos of every kind.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

from OpenSSL import SSL

from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.relay_process import (
    PATIENCE,
    Upstream,
    connect,
    read_exactly,
    read_until_reset,
)
from tests.scenarios.scenario import Scenario

ANY_PORT = "tcp:0:interface=127.0.0.1"
NEVER = "1h"
"""For a time-out whose end no scenario sees."""
SOON = "100ms"

Send: TypeAlias = Callable[[socket.socket, bytes], object]


def at_once(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)


def in_bytes(sock: socket.socket, data: bytes) -> None:
    """A segment for each byte."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(data)):
        sock.sendall(data[at : at + 1])


def listener(name: str, lines: str = "", *, pool: str = "web", listen: str = ANY_PORT) -> str:
    """
    @param lines: what else it has, tables last.
    @param pool: empty: it has none.
    """
    return f"""
[[listener]]
name = "{name}"
listen = ["{listen}"]
{f'pool = "{pool}"' if pool else ""}
{lines}
"""


def pools(upstreams: Mapping[str, Upstream | int], lines: str = "") -> str:
    """
    @param upstreams: by the names of their pools; a number is a port.
    @param lines: what each pool has besides.
    """
    targets = {
        name: f"127.0.0.1:{each}" if isinstance(each, int) else each.target
        for name, each in upstreams.items()
    }
    return "".join(
        f'\n[pool.{name}]\ntargets = ["{target}"]\n{lines}\n' for name, target in targets.items()
    )


class FrontScenario(Scenario, every_pump=False):
    @contextmanager
    def configured(self, *texts: str, relay: str = "") -> Iterator[ConfiguredRelay]:
        """
        A relay over this pump, in which at the end no session may be left.

        @param texts: of its configuration.
        @param relay: lines of `[relay]`.
        """
        text = f"[relay]\n{relay}\n{''.join(texts)}"
        with ConfiguredRelay(self.path("fwdrelay.toml"), text, "--pump", self.pump) as running:
            yield running
            if running.process.poll() is None:
                running.wait_for_descriptors(running.at_rest)

    def assert_ended(
        self, relay: ConfiguredRelay, count: int, reason: str, code: str, **fields: Any
    ) -> dict[str, Any]:
        """
        As `has_ended`, of the last of `count` sessions.

        @return: all that is told of it.
        """
        entry = relay.ended(count)[count - 1]
        fields = {"reason": reason, "code": code, **fields}
        self.assertEqual({name: entry.get(name) for name in fields}, fields)
        return entry

    def refuse(
        self, relay: ConfiguredRelay, name: str, data: bytes = b"", *, source: str = ""
    ) -> None:
        """
        Be a client of that listener that says this, and is reset without having been told anything; if at once,
        it may hear of it while it still connects.
        """
        try:
            client = connect(relay.listener(name), source=source)
        except ConnectionResetError:
            return
        with client:
            with suppress(ConnectionError):  # it may be reset in the middle of it
                client.sendall(data)
            self.assertEqual(read_until_reset(client), b"")

    def answer(self, client: socket.socket, server: socket.socket) -> None:
        """The server sends something, and the client gets it."""
        server.sendall(b"answer")
        self.assertEqual(read_exactly(client, 6), b"answer")

    def assert_nobody_came(self, *upstreams: Upstream) -> None:
        for upstream in upstreams:
            upstream.socket.settimeout(0)
            self.assertRaises(BlockingIOError, upstream.socket.accept)
            upstream.socket.settimeout(PATIENCE)


class SecureClient:
    """
    TLS whose first flight goes in the way, and behind what, a test says.

    @param first: what goes before it.
    @param send: sends both.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        name: str | None = None,
        first: bytes = b"",
        send: Send = at_once,
    ) -> None:
        self._socket = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        with suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        send(sock, first + self._out.read())
        self._until_done(self.tls.do_handshake)

    def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._send()
                self._in.write(self._socket.recv(1 << 16))
            else:
                self._send()
                return result

    def _send(self) -> None:
        if data := self._out.read():
            self._socket.sendall(data)

    def write(self, data: bytes) -> None:
        self._until_done(partial(self.tls.write, data))

    def read(self, count: int) -> bytes:
        """So many bytes."""
        data = b""
        while len(data) < count:
            data += self._until_done(partial(self.tls.read, count - len(data)))
        return data


def make_hello(name: str | None = None, alpn: Sequence[str] = ()) -> bytes:
    """
    @return: the record with which OpenSSL would ask for that, with keys for after the quantum computer.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if alpn:
        context.set_alpn_protos([each.encode() for each in alpn])
    connection = SSL.Connection(context, None)
    if name is not None:
        connection.set_tlsext_host_name(name.encode())
    connection.set_connect_state()
    with suppress(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(1 << 16)


def make_hello_of_tls_1_2(name: str) -> bytes:
    """@return: the shorter one that there was before TLS 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def with_extension(hello: bytes, kind: int, value: bytes) -> bytes:
    """
    @param hello: one record.
    @return: one with that extension besides, at its end.
    """
    added = struct.pack("!HH", kind, len(value)) + value
    body = bytearray(hello[9:])
    at = 35 + body[34]  # behind the session id
    at += 2 + int.from_bytes(body[at : at + 2], "big")
    at += 1 + body[at]
    length = int.from_bytes(body[at : at + 2], "big") + len(added)
    body[at : at + 2] = length.to_bytes(2, "big")
    message = b"\x01" + (len(body) + len(added)).to_bytes(3, "big") + body + added
    return in_records(message, 16384)


def in_records(message: bytes, size: int) -> bytes:
    """
    @param message: of a handshake.
    @param size: of the records that it is sent in.
    """
    pieces = (message[at : at + size] for at in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(each)) + each for each in pieces)

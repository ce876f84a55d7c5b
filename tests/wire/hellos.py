"""Hellos for tests: made of parts, cut into records, and caught from programs that connect to us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence

from OpenSSL import SSL

from fwdrelay.wire.clienthello import parse
from tests.scenarios.programs import PATIENCE

RANDOM = bytes(range(32))


def extension(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "big") + with_length(value, 2)


def with_length(value: bytes, size: int) -> bytes:
    """@param size: bytes of the length before it."""
    return len(value).to_bytes(size, "big") + value


def server_name(name: bytes) -> bytes:
    return extension(0, with_length(b"\0" + with_length(name, 2), 2))


def alpn(*names: bytes) -> bytes:
    return extension(16, with_length(b"".join(with_length(name, 1) for name in names), 2))


def versions(*numbers: int) -> bytes:
    listed = b"".join(number.to_bytes(2, "big") for number in numbers)
    return extension(43, with_length(listed, 1))


def message(
    extensions: bytes | None = b"",
    *,
    version: bytes = b"\3\3",
    session: bytes = b"",
    suites: bytes = b"\x13\x01",
    compressions: bytes = b"\0",
) -> bytes:
    """A ClientHello as a handshake message. Without extensions (None) it has not even their length."""
    body = version + RANDOM + with_length(session, 1) + with_length(suites, 2)
    body += with_length(compressions, 1)
    if extensions is not None:
        body += with_length(extensions, 2)
    return b"\1" + with_length(body, 3)


def records(data: bytes, sizes: Iterable[int] = (), version: int = 1) -> bytes:
    """
    @param sizes: bytes in each record; what is left goes into the last one.
    """
    found = b""
    for size in (*sizes, len(data)):
        if data:
            found += bytes((22, 3, version)) + with_length(data[:size], 2)
        data = data[size:]
    return found


def payload(data: bytes) -> bytes:
    """@return: what there is in records."""
    found, at = b"", 0
    while at < len(data):
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        found += data[at + 5 : at + 5 + size]
        at += 5 + size
    return found


def from_openssl(
    prepare: Callable[[SSL.Context], object] = lambda context: None, name: bytes | None = None
) -> bytes:
    """
    @param prepare: sets what it likes on the client's context.
    @return: the hello of the OpenSSL that we have.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    prepare(context)
    connection = SSL.Connection(context, None)
    if name is not None:
        connection.set_tlsext_host_name(name)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        return connection.bio_read(65536)
    raise AssertionError("it should wait for an answer")


def caught(command: Sequence[str]) -> bytes:
    """
    @param command: of a program that speaks TLS to 127.0.0.1, at the port that stands for PORT in it.
    @return: what it sends, once there is a whole hello. The program is ended then, and all it has started.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        port = str(listening.getsockname()[1])
        program = subprocess.Popen(
            [word.replace("PORT", port) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            client, _ = listening.accept()
            with client:
                client.settimeout(PATIENCE)
                data = b""
                while parse(data) is None:
                    more = client.recv(65536)
                    assert more, f"it ended within its hello: {data.hex()}"
                    data += more
        finally:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    return data

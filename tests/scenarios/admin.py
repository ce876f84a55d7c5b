"""The admin API of a relay that a scenario has started: asked, and listened to."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeAlias

from attrs import frozen

from tests.scenarios.relay_process import RelayProcess, connect

Address: TypeAlias = tuple[str, int] | str
_SAID = re.compile(r"Metrics, API and dashboard: (?:http://(\S+):(\d+)/|unix:(\S+))")


@frozen
class Answer:
    """
    @ivar headers: names in lower case.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body)


class Admin:
    """
    Who asks.

    @ivar address: where; `(host, port)`, or the path of a Unix socket.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    @classmethod
    def of(cls, relay: RelayProcess) -> Self:
        """Where that relay says that it answers."""
        found = _SAID.search(relay.wait_for(lambda line: bool(_SAID.search(line))))
        assert found is not None
        return cls(found[3] or (found[1].strip("[]"), int(found[2])))

    def connect(self, **options: Any) -> socket.socket:
        """A connection, on which nothing was said yet; see `relay_process.connect`."""
        return connect(self.address, **options)

    def ask(self, method: str, path: str, body: object = None, **headers: str | None) -> Answer:
        """
        @param body: JSON of it is sent; None: nothing.
        @param headers: names with `_` for `-`; None: not even the usual one.
        """
        with self.connect() as sock:
            data = b"" if body is None else json.dumps(body).encode()
            sock.sendall(head(method, path, data, Connection="close", **headers) + data)
            return read_answer(sock, method)

    def get(self, path: str) -> Any:
        """What is answered with 200, as JSON."""
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.json

    @contextmanager
    def listening(self, path: str = "/v1/events", **options: Any) -> Iterator[Events]:
        """Listen, for a `with` block."""
        with self.connect(**options) as sock:
            sock.sendall(head("GET", path))
            yield Events(sock)


def head(method: str, path: str, body: bytes = b"", **headers: str | None) -> bytes:
    """The first bytes of a request."""
    given: dict[str, str | None] = {"Host": "localhost"}
    if body:
        given |= {"Content-Length": str(len(body)), "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


def read_answer(sock: socket.socket, method: str = "GET") -> Answer:
    """The next one."""
    answer = http.client.HTTPResponse(sock, method=method)
    try:
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())
    finally:
        answer.close()


class Events:
    """
    What one who listens is told.

    @ivar head: of the answer.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._raw = b""
        self._text = b""
        self.ended = False
        self.head = self._until(b"\r\n\r\n").decode()

    def _more(self) -> None:
        got = self.socket.recv(1 << 16)
        if not got:
            raise EOFError("the connection was closed in the midst of it")
        self._raw += got

    def _until(self, end: bytes) -> bytes:
        while end not in self._raw:
            self._more()
        found, _, self._raw = self._raw.partition(end)
        return found

    def block(self) -> str:
        """
        @return: the next one: an event, or a comment.
        @raise StopIteration: that was all, and the relay has said so.
        """
        while b"\n\n" not in self._text:
            size = int(self._until(b"\r\n"), 16)
            while len(self._raw) < size + 2:
                self._more()
            self._text += self._raw[:size]
            self._raw = self._raw[size + 2 :]
            if not size:
                self.ended = True
                raise StopIteration
        block, _, self._text = self._text.partition(b"\n\n")
        return block.decode()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Names and data of events, up to the end; comments are left out."""
        while True:
            try:
                block = self.block()
            except StopIteration:
                return
            if block.startswith("event: "):
                name, data = block.removeprefix("event: ").split("\ndata: ")
                yield name, json.loads(data)

    def next(self, wanted: str) -> Any:
        """
        @return: the data of the next event of that name.
        """
        for name, data in self:
            if name == wanted:
                return data
        raise AssertionError(f"no {wanted} event came any more")

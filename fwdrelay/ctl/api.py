"""
Asking the admin API: one request on a connection of its own, over TCP or a Unix socket.

Here lives what HTTP and JSON are; what an answer means is known in `answers` and by the commands.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import quote, urlencode

from attrs import frozen

from ..config.grammar import split_admin
from .exits import (
    Failure,
    NoRelay,
    NoSuchThing,
    NotAuthorised,
    Refused,
    Strange,
    WrongConfiguration,
)

Document: TypeAlias = dict[str, Any]
"""A JSON object."""
Query: TypeAlias = Mapping[str, str | int | None]
"""What goes behind the `?`; None is left out."""

PATIENCE = 10.0
"""Seconds without a byte, after which nobody answers."""
QUIET = 60.0
"""The same for streams that may have nothing to tell; a relay sends an empty line now and then."""
LONG_PATIENCE = 60.0
"""The same for what has to read files and dial name servers."""
# An event with the state of thousands of targets has megabytes.
_LONGEST_LINE = 64 << 20


def segment(name: str) -> str:
    """
    @return: a name as one segment of a path.
    """
    return quote(name, safe="")


@frozen
class Answer:
    """
    What the relay has said.

    @ivar status: of HTTP.
    @ivar shown: whether a token was shown when it was asked.
    """

    status: int
    document: Document
    shown: bool = False

    def failure(self) -> Failure | None:
        """
        @return: why it is no success; None: it is one.
        """
        if 200 <= self.status < 300:
            return None
        sentence = str(self.document["error"])
        if self.status == 401:
            if not self.shown:  # what the relay says of that is meant for whoever writes HTTP
                sentence = "the relay wants a token: show a token with --token-file FILE"
            return NotAuthorised(sentence)
        if self.status == 403:
            return NotAuthorised(sentence)
        if self.status == 404:
            return NoSuchThing(sentence)
        if self.status == 422:
            return WrongConfiguration(*(map(str, self.document.get("errors") or [sentence])))
        return Refused(sentence)


@frozen
class Event:
    """
    One of a stream of server-sent events.

    @ivar name: `message` where it has none; `:` where it is only a comment.
    """

    name: str
    data: str


class Api:
    """
    @param admin: where it is asked, as `parse_admin` has it: `unix:PATH`, `ADDR:PORT` or `[IPV6]:PORT`.
    @param token: that is shown; None: none. A Unix socket asks for none.
    @param patience: seconds to wait for each byte.
    """

    def __init__(self, admin: str, token: str | None = None, patience: float = PATIENCE) -> None:
        self.admin = admin
        self._token = None if admin.startswith("unix:") else token
        self._patience = patience

    def ask(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: Document | None = None,
        patience: float = 0.0,
    ) -> Answer:
        """
        @param path: with its segments quoted; see `segment`.
        @param patience: other than the usual one.
        @return: what is answered, a refusal among it.
        @raise Failure: nobody answers, or nobody who speaks as a relay does.
        """
        with contextlib.closing(self._connect(patience or self._patience)) as connection:
            response = self._send(connection, method, path, query, body)
            with response, self._reading(connection):
                content = response.read()
            return self._answer(f"{method} {path}", response, content)

    def follow(self, path: str, query: Query | None = None, *, quiet: bool = False) -> Events:
        """
        @param quiet: there may be nothing to tell for any time.
        @return: a stream of events, which is open; for a `with` block.
        @raise Failure: it is refused, or see `ask`.
        """
        with contextlib.ExitStack() as until_it_is_good:
            connection = self._connect(self._patience)
            until_it_is_good.callback(connection.close)
            sock = connection.sock
            response = self._send(connection, "GET", path, query, None)
            until_it_is_good.enter_context(response)
            kind = response.headers.get_content_type()
            if response.status != 200 or kind != "text/event-stream":
                with self._reading(connection):
                    content = response.read()
                failure = self._answer(f"GET {path}", response, content).failure()
                raise failure or self._strange(f"GET {path}", response)
            if quiet:
                sock.settimeout(QUIET)
            return Events(self.admin, sock, response, until_it_is_good.pop_all().close)

    def _connect(self, patience: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self.admin.startswith("unix:"):
            connection = _UnixConnection(self.admin.removeprefix("unix:"), patience)
        else:
            connection = http.client.HTTPConnection(*split_admin(self.admin), timeout=patience)
        try:
            connection.connect()
        except PermissionError as error:
            connection.close()
            raise NotAuthorised(f"you may not ask at {self.admin}: {_words(error)}") from None
        except OSError as error:
            connection.close()
            why = f"{_words(error)}; is it running with --admin?"
            slow = isinstance(error, TimeoutError)
            raise NoRelay(f"no relay answers at {self.admin}: {why}", slow=slow) from None
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        query: Query | None,
        body: Document | None,
    ) -> http.client.HTTPResponse:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        headers = {"Accept": "application/json, text/event-stream", "Connection": "close"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        with self._reading(connection):
            connection.request(
                method,
                f"{path}?{urlencode(given)}" if given else path,
                None if body is None else json.dumps(body).encode(),
                headers,
            )
            return connection.getresponse()

    @contextlib.contextmanager
    def _reading(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """What goes wrong while one reads an answer, as failures."""
        try:
            yield
        except TimeoutError:
            raise NoRelay(
                f"no relay answers at {self.admin}: nothing came for {connection.timeout:g} seconds",
                slow=True,
            ) from None
        except http.client.IncompleteRead:
            raise NoRelay(f"the answer from {self.admin} broke off") from None
        except OSError as error:  # also http.client.RemoteDisconnected
            raise NoRelay(
                f"no relay answers at {self.admin}: the connection ended ({_words(error)})"
            ) from None
        except http.client.HTTPException:
            raise Strange(f"what answers at {self.admin} is no relay: it speaks no HTTP") from None

    def _answer(self, asked: str, response: http.client.HTTPResponse, content: bytes) -> Answer:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        fine = 200 <= response.status < 300
        if not isinstance(document, dict) or not (fine or isinstance(document.get("error"), str)):
            raise self._strange(asked, response)
        return Answer(response.status, document, self._token is not None)

    def _strange(self, asked: str, response: http.client.HTTPResponse) -> Strange:
        return Strange(
            f"what answers at {self.admin} is no relay, or one of another version: its answer to {asked} was "
            f"{response.status} {response.reason}, {response.headers.get_content_type()}"
        )


class Events:
    """
    A stream of server-sent events: to be iterated over once, in a `with` block.

    It ends with `NoRelay`, as a relay never ends one while it runs.

    @param close: is called behind the `with` block.
    """

    def __init__(
        self,
        admin: str,
        sock: socket.socket,
        response: http.client.HTTPResponse,
        close: Callable[[], object],
    ) -> None:
        self._admin = admin
        self._socket = sock
        self._response = response
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[Event]:
        yield from parse_events(self._lines())
        raise NoRelay(f"the connection to {self._admin} ended")

    def stop(self) -> None:
        """Let whoever reads come to the end; for other threads."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = self._response.readline(_LONGEST_LINE)
            except TimeoutError:
                raise NoRelay(f"{self._admin} tells nothing any more", slow=True) from None
            except (OSError, http.client.HTTPException, ValueError):
                return
            if not line:
                return
            yield line.decode("utf-8", "replace")


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """
    @param lines: with their ends.
    @return: the events in them; one that is not ended is none. See the HTML standard, section 9.2.6.
    """
    name, data = "", [""][:0]
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            if data:
                yield Event(name or "message", "\n".join(data))
            name, data = "", []
            continue
        field, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if not field:
            yield Event(":", value)
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)


class _UnixConnection(http.client.HTTPConnection):
    """@param path: of the socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect; there are no proxies and tunnels on the way."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


def _words(error: OSError) -> str:
    """What the system says, as a part of a sentence."""
    if isinstance(error, TimeoutError):
        return "it does not accept connections"
    if error.errno:
        return os.strerror(error.errno).removesuffix(" or directory").lower()
    return str(error).lower()

"""
What is no relay, but answers as one: an HTTP server over TCP or a Unix socket, which says what a test has told
it to, and remembers what it was asked.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from unittest import mock

import attrs
from attrs import field, frozen

from fwdrelay.ctl.commands import run
from fwdrelay.observe.snapshot import (
    ListenerShown,
    PoolShown,
    Reloads,
    SessionShown,
    Status,
    TargetShown,
    Totals,
    WorkerShown,
)
from tests.case import SynchronousTestCase

LISTENER = ListenerShown(
    name="web",
    addresses=("127.0.0.1:5678",),
    state="listening",
    pool="web",
    tls=False,
    sessions=1,
    max_sessions=0,
    sessions_total=7,
    rejected_total=2,
    bytes_up=1536,
    bytes_down=3 << 20,
)
STATUS = Status(
    version="1.2.3",
    pid=4711,
    state="running",
    started="2026-02-03T04:05:06.789Z",
    uptime=100.0,
    workers=(),
    listeners=(LISTENER,),
    totals=Totals(
        sessions=1, sessions_total=7, rejected_total=2, bytes_up=1536, bytes_down=3 << 20
    ),
    reloads=Reloads(success=0, failure=0, last=None, last_result=None),
    access_log_dropped=0,
)
WORKER = WorkerShown(
    worker=1,
    pid=4712,
    state="running",
    started="2026-02-03T04:05:07.000Z",
    restarts=0,
    sessions=1,
    kept=1,
)
SESSION = SessionShown(
    session="s-1",
    listener="web",
    client="192.0.2.1:1234",
    local="127.0.0.1:5678",
    pool="web",
    target="a:80",
    state="relaying",
    started="2026-02-03T04:05:06.789Z",
    duration_ms=61_000.0,
    idle_ms=12.0,
    dial_ms=0.5,
    bytes_up=100,
    bytes_down=2048,
    retries=0,
    sni=None,
    alpn=None,
    tls=None,
    identity=None,
)
TARGET = TargetShown(
    name="a:80",
    address="a:80",
    state="ready",
    up=True,
    cause="",
    turning="",
    since=None,
    weight=1,
    share=1.0,
    backup=False,
    priority=0,
    sessions=1,
    max_sessions=0,
    dials_total=7,
    dial_failures_total=0,
    dial_ms=0.5,
)
POOL = PoolShown(
    name="web",
    balance="round-robin",
    check="off",
    sessions=1,
    max_sessions=0,
    waiting=0,
    targets=(TARGET,),
)


def document(value: Any) -> dict[str, Any]:
    """A value as it is after a way through JSON."""
    return cast("dict[str, Any]", json.loads(json.dumps(attrs.asdict(value))))


def status_event(status: Status = STATUS, *pools: PoolShown) -> str:
    """One event of the stream."""
    told = {
        **document(status),
        "pools": [document(pool) for pool in pools or (POOL,)],
        "events_skipped": 0,
    }
    return f"event: status\ndata: {json.dumps(told)}\n\n"


@frozen
class Reply:
    """
    @ivar body: text, an object that is sent as JSON, or pieces of a stream.
    """

    status: int = 200
    body: Any = field(factory=dict)
    kind: str = "application/json"
    headers: Mapping[str, str] = field(factory=dict)


def stream(*pieces: str) -> Reply:
    """A stream of events that ends behind the last."""
    return Reply(200, iter(pieces), "text/event-stream")


def refusal(status: int, sentence: str, **more: Any) -> Reply:
    """As the API refuses."""
    return Reply(status, {"error": sentence, **more})


@frozen
class Asked:
    """
    One request.

    @ivar body: JSON; None: there was none.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length)
        asked = Asked(
            self.command,
            self.path,
            dict(self.headers.items()),
            json.loads(body) if body else None,
        )
        reply = self.server.relay.reply_to(asked)
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if isinstance(reply.body, Iterator):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in reply.body:
                data = piece.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
            return
        text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body) + "\n"
        data = text.encode("utf-8", "surrogatepass")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def address_string(self) -> str:
        return "nobody"

    def log_message(self, *arguments: object) -> None:
        """Nothing is told."""


class _TCP(socketserver.ThreadingTCPServer):
    daemon_threads = False
    allow_reuse_address = True

    def handle_error(self, *arguments: object) -> None:
        """Whoever asked has left: that is their affair."""


class _Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = False

    def handle_error(self, *arguments: object) -> None:
        """As above."""


class FakeRelay:
    """
    @param path: of a Unix socket; empty: it is asked by TCP.
    @ivar replies: what it answers, by method and path (without the query): replies, of which the last one stays,
        or what makes one; None: it hangs up.
    @ivar asked: in order.
    @ivar admin: where it is.
    """

    def __init__(self, path: str = "") -> None:
        self.replies: dict[str, Any] = {
            "GET /v1/status": Reply(200, document(STATUS)),
            "GET /v1/pools": Reply(200, {"pools": [document(POOL)]}),
            "GET /v1/sessions": Reply(200, {"sessions": [document(SESSION)], "count": 1}),
        }
        self.asked: list[Asked] = []
        self._lock = threading.Lock()
        server: Any = _Unix(path, _Handler) if path else _TCP(("127.0.0.1", 0), _Handler)
        server.relay = self
        self._server = server
        self.admin = f"unix:{path}" if path else f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def reply_to(self, asked: Asked) -> Reply | None:
        """What is answered."""
        with self._lock:
            self.asked.append(asked)
            found = self.replies.get(f"{asked.method} {asked.path.partition('?')[0]}")
            if isinstance(found, list):
                found = found.pop(0) if len(found) > 1 else found[0]
            if callable(found):
                found = found(asked)
        if found is None and f"{asked.method} {asked.path}" not in self.replies:
            return refusal(404, f"there is nothing at {asked.path}")
        return cast("Reply | None", found)

    def lines(self) -> list[str]:
        """What was asked for: methods and paths."""
        return [asked.line for asked in self.asked]

    def close(self) -> None:
        """End it, and all who are connected."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@frozen
class Ran:
    """What came of a command line."""

    status: int
    out: str
    err: str


class CtlTestCase(SynchronousTestCase):
    """
    @ivar relay: a fake one by TCP, which the environment names.
    """

    def setUp(self) -> None:
        self.relay = FakeRelay()
        self.addCleanup(self.relay.close)
        environment = mock.patch.dict(os.environ)
        environment.start()
        self.addCleanup(environment.stop)
        for name in ("FWDRELAY_TOKEN_FILE", "NO_COLOR", "COLUMNS", "TERM"):
            os.environ.pop(name, None)
        os.environ["FWDRELAY_ADMIN"] = self.relay.admin

    def folder(self) -> Path:
        """A new one, with a short path."""
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        return Path(folder.name)

    def ctl(self, *arguments: str, status: int = 0, stdin: Any = None) -> Ran:
        """
        Run a command line; it must end with that status.
        """
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _stdin(stdin or io.StringIO()),
        ):
            ended = run(arguments)
        ran = Ran(ended, _written(out), _written(err))
        self.assertEqual(ran.status, status, ran)
        self.assertNotIn("Traceback", ran.err)
        return ran

    def refused(self, *arguments: str, status: int) -> str:
        """
        Run what fails, with nothing on stdout.

        @return: what it says, without the program's name.
        """
        ran = self.ctl(*arguments, status=status)
        self.assertEqual(ran.out, "")
        self.assertTrue(ran.err.startswith("fwdrelayctl: "), ran.err)
        return ran.err.removeprefix("fwdrelayctl: ").removesuffix("\n")


@contextlib.contextmanager
def _stdin(stdin: Any) -> Iterator[None]:
    former, sys.stdin = sys.stdin, stdin
    try:
        yield
    finally:
        sys.stdin = former


def _written(text: io.TextIOWrapper) -> str:
    text.flush()
    return cast("io.BytesIO", text.buffer).getvalue().decode()

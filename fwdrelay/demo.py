"""
The demonstration upstream: a page, over real TCP, that shows what the relay did with the very
connection it was fetched on. It listens on loopback, on a port that the system chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IPullProducer
from twisted.web.http import Request
from twisted.web.resource import NoResource, Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from .frontend.listener import ClientProtocol
from .session import Session

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fwdrelay: this page was relayed</title>
<style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }}
body {{ max-width: 42rem; margin: 2rem auto; padding: 0 1rem }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem }}
dd {{ margin: 0; font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
pre {{ overflow-x: auto; padding: .6rem; border: 1px solid; border-radius: .3rem }}
</style>
<h1>This page was relayed</h1>
<p>Your connection reached fwdrelay, which opened a second one to this page and joined the two.
<dl>
{facts}
</dl>
<h2>Try next</h2>
<pre>curl -so /dev/null -w '%{{speed_download}} B/s\\n' http://{local}/bytes/1000000000
printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -N {nc}     # half-close: the answer still comes
make run TARGET=localhost:80                # relay to something of yours</pre>
<p>Each connection that ends is one line in the relay's access log, on its standard output.
</html>
"""
_LARGEST = 10**12
_CHUNK = bytes(65536)


class Demo:
    """
    @param sessions: gives the sessions that are open.
    """

    def __init__(self, reactor: Any, sessions: Callable[[], Iterable[Session]]) -> None:
        self._reactor = reactor
        root = Resource()
        root.putChild(b"", _Page(sessions))
        root.putChild(b"bytes", _Bytes())
        self._site = Site(root)
        self._site.noisy = False
        self._site.log = _nothing  # type: ignore[method-assign]
        self._port: IListeningPort | None = None

    def listen(self) -> None:
        """Begin to."""
        self._port = self._reactor.listenTCP(0, self._site, interface="127.0.0.1")

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        assert self._port is not None
        return _port(self._port.getHost())

    def stop(self) -> Deferred[Any]:
        """Stop listening."""
        assert self._port is not None
        return maybeDeferred(self._port.stopListening)


def _nothing(request: Request) -> None:
    """Instead of Twisted's web log: the relay's access log tells of these connections."""


def _port(address: Any) -> int:
    port: int = address.port
    return port


class _Page(Resource):
    isLeaf = True

    def __init__(self, sessions: Callable[[], Iterable[Session]]) -> None:
        super().__init__()
        self._sessions = sessions

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"content-type", b"text/html; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        assert request.transport is not None
        peer = request.transport.getPeer()
        for session in self._sessions():
            upstream = session.upstream
            if upstream is None or upstream.gone:
                continue
            if upstream.transport.getHost() == peer:
                return _render(session).encode()
        request.setResponseCode(404)
        return b"<!doctype html><p>This page is for connections that came through the relay.\n"


def _render(session: Session) -> str:
    client, upstream = session.client, session.upstream
    assert isinstance(client, ClientProtocol)
    assert upstream is not None
    assert session.pool is not None
    assert session.target is not None
    assert session.connected is not None
    host = upstream.transport.getHost()
    facts = {
        "you": client.address,
        "connected to the relay at": client.local,
        "whose listener": client.factory.name,
        "of the pool": session.pool.name,
        "elected the target": f"{session.target.label} ({session.target.config.address})",
        "dialed in": f"{(session.connected - session.started) * 1000:.2f} ms",
        "from": f"{host.host}:{host.port}",
        "bytes up so far": str(client.received),
        "bytes down so far": str(upstream.received),
        "the session is": session.state.name.lower().replace("_", "-"),
        "sessions open": str(client.factory.active),
    }
    host_name, _, port = client.local.rpartition(":")
    return _PAGE.format(
        facts="\n".join(f"<dt>{escape(k)}<dd>{escape(v)}" for k, v in facts.items()),
        local=escape(client.local),
        nc=escape(f"{host_name.strip('[]')} {port}"),
    )


class _Bytes(Resource):
    """`/bytes/N`: that many bytes, as fast as they are taken."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        if path.isdigit() and len(path) <= 13 and int(path) <= _LARGEST:
            return _ManyBytes(int(path))
        return NoResource(f"Ask for /bytes/N, with N a number up to {_LARGEST}.")


@implementer(IPullProducer)
class _ManyBytes(Resource):
    isLeaf = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size
        self._request: Request | None = None

    def render_GET(self, request: Request) -> int | bytes:
        request.setHeader(b"content-type", b"application/octet-stream")
        request.setHeader(b"content-length", b"%d" % self._left)
        if not self._left:
            return b""
        self._request = request
        request.registerProducer(self, False)
        return NOT_DONE_YET

    def resumeProducing(self) -> None:
        assert self._request is not None
        chunk = _CHUNK[: self._left]
        self._left -= len(chunk)
        self._request.write(chunk)
        if not self._left:
            self._request.unregisterProducer()
            self._request.finish()

    def stopProducing(self) -> None:
        self._left = 0

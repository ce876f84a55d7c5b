"""Both ends of a TLS connection over a pair of sockets, moved on in turns, so that nothing has to be waited for."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field
from cryptography import x509
from OpenSSL import SSL

from fwdrelay.config import ListenerTLSConfig, TargetConfig
from fwdrelay.errors import ConfigErrors
from fwdrelay.tls import Peer, PeerRefused, ServerTLS, UpstreamTLS, explain
from fwdrelay.wire.clienthello import ClientHello, NotClientHello, parse
from tests.case import SynchronousTestCase
from tests.pki import Identity

VERSIONS = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION)
TURNS = 20
WHERE = "listener[0].tls"


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection, non-blocking."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


@define
class End:
    """
    One side.

    @ivar failed: how its handshake did, or what it heard first.
    @ivar heard: what it was sent.
    """

    connection: SSL.Connection
    done: bool = False
    failed: SSL.Error | None = None
    heard: bytes = b""

    def step(self) -> None:
        """Go as far as it can."""
        if self.failed is not None:
            return
        try:
            if not self.done:
                self.connection.do_handshake()
                self.done = True
            while True:
                self.heard += self.connection.recv(1 << 14)
        except (SSL.WantReadError, SSL.WantWriteError):
            pass
        except SSL.Error as failed:
            self.failed = failed


def talk(*ends: End) -> None:
    """Let them talk until neither has anything to say."""
    for _ in range(TURNS):
        for end in ends:
            end.step()


def peeked(sock: socket.socket) -> ClientHello | None:
    """What a client has said, left where it is."""
    try:
        return parse(sock.recv(1 << 14, socket.MSG_PEEK))
    except (NotClientHello, BlockingIOError):
        return None


class Client:
    """
    Somebody who comes to a `ServerTLS`.

    @param who: its certificate.
    @ivar session: that of the last connection, which the next one is to resume.
    """

    def __init__(
        self,
        version: int = SSL.TLS1_3_VERSION,
        who: Identity | None = None,
        alpn: Sequence[str] = (),
        change: Callable[[SSL.Context], object] = lambda context: None,
    ) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")
        if who is not None:
            with tempfile.TemporaryDirectory() as folder:
                chain, key = who.write(folder, "client")
                context.use_certificate_chain_file(chain)
                context.use_privatekey_file(key)
        if alpn:
            context.set_alpn_protos([each.encode() for each in alpn])
        change(context)
        self._context = context
        self.session: SSL.Session | None = None

    def connection(self, sock: socket.socket, name: str | None) -> SSL.Connection:
        """A connection that begins."""
        connection = SSL.Connection(self._context, sock)
        if name is not None:
            connection.set_tlsext_host_name(name.encode())
        if self.session is not None:
            connection.set_session(self.session)
        connection.set_connect_state()
        return connection


@define
class Outcome:
    """
    What came of a client's connection.

    @ivar peer: whom the server took it for; None: it was refused.
    @ivar why: why it was.
    @ivar alert: how the client failed, in OpenSSL's words; empty: it didn't.
    @ivar shown: the certificates that the client was shown.
    @ivar heard: by the client, of what the server says to those that it accepts.
    @ivar servername: that it asked for.
    @ivar unlisted: whether it was refused for being nobody who is listed.
    """

    peer: Peer | None = None
    why: str = ""
    alert: str = ""
    shown: list[x509.Certificate] = field(factory=list)
    alpn: bytes = b""
    heard: bytes = b""
    servername: bytes | None = None
    unlisted: bool = False

    @property
    def resumed(self) -> bool:
        return self.peer is not None and self.peer.resumed


def visit(
    server: ServerTLS,
    client: Client,
    name: str | None = None,
    *,
    judge: ServerTLS | None = None,
    hello: Callable[[socket.socket], ClientHello | None] = peeked,
) -> Outcome:
    """
    A client comes, is told `welcome`, and leaves with a session.

    @param judge: by whom it is judged, if not by whom it was accepted.
    @param hello: what the server takes for the hello.
    """
    with pair() as (outer, inner):
        theirs = End(client.connection(outer, name))
        theirs.step()
        ours = End(server.accept(inner, hello(inner)))
        talk(ours, theirs)
        outcome = Outcome()
        if ours.done:
            try:
                outcome.peer = (judge or server).judge(ours.connection)
                ours.connection.sendall(b"welcome")
            except PeerRefused as refused:
                outcome.why = explain(refused, ours.connection)
        else:
            assert ours.failed is not None
            outcome.why = explain(ours.failed, ours.connection)
        talk(theirs)
        outcome.heard = theirs.heard
        outcome.alert = reason(theirs.failed)
        if theirs.done:
            chain = theirs.connection.get_peer_cert_chain(as_cryptography=True)
            outcome.shown = chain or []
            outcome.alpn = theirs.connection.get_alpn_proto_negotiated()
            theirs.connection.set_shutdown(SSL.SENT_SHUTDOWN)
            client.session = theirs.connection.get_session()
        outcome.servername = ours.connection.get_servername()
        outcome.unlisted = ours.connection.get_app_data().unlisted
        return outcome


def reason(failed: SSL.Error | None) -> str:
    """What OpenSSL says first."""
    if failed is None:
        return ""
    if failed.args and isinstance(failed.args[0], list):
        return str(failed.args[0][0][-1])
    return repr(failed)


def meet(
    upstream: UpstreamTLS, target: TargetConfig, context: SSL.Context, *, remember: bool = True
) -> Outcome:
    """
    Dial a target whose side is `context`; it says `welcome`.

    @return: whom the target was taken for; `alert` and `servername` are what the target got.
    """
    with pair() as (outer, inner):
        ours = End(upstream.connect(outer, target))
        server = SSL.Connection(context, inner)
        server.set_accept_state()
        theirs = End(server)
        talk(ours, theirs)
        outcome = Outcome(servername=server.get_servername())
        if ours.done and ours.failed is None:
            try:
                outcome.peer = upstream.judge(ours.connection, target)
            except PeerRefused as refused:
                outcome.why = explain(refused, ours.connection)
        else:
            assert ours.failed is not None
            outcome.why = explain(ours.failed, ours.connection)
        if theirs.done and theirs.failed is None:
            server.sendall(b"welcome")
            talk(ours)
            outcome.heard = ours.heard
        outcome.alert = reason(theirs.failed)
        if remember:
            upstream.remember(ours.connection, target)
        return outcome


class TLSCase(SynchronousTestCase):
    """A folder for files, and what is common to all."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-tls-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self._written = 0

    def write(self, who: Identity) -> tuple[str, str]:
        """Paths of a chain and its key."""
        self._written += 1
        return who.write(self.folder, f"file{self._written}")

    def listener(self, *who: Identity, **settings: Any) -> ListenerTLSConfig:
        """What shows these certificates."""
        paths = [self.write(each) for each in who]
        chains, keys = zip(*paths, strict=True)
        return ListenerTLSConfig(certificate=chains, key=keys, **settings)

    def problems(self, make: Callable[[], object]) -> dict[str, str]:
        """What is wrong, by its place."""
        with self.assertRaises(ConfigErrors) as caught:
            make()
        errors = caught.exception.errors
        found = {each.where: each.problem for each in errors}
        self.assertEqual(len(found), len(errors), errors)
        return found

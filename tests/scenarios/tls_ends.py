"""
Both ends of a relayed TLS connection, for scenarios: sockets that speak TLS by Python's own `ssl`, and
the relay that stands between them for all tests of a class.

Other people's programs that speak TLS are in `tests.scenarios.tls_programs`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from attrs import frozen

from tests.pki import Authority, Identity
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.relay_process import Upstream
from tests.scenarios.scenario import Scenario

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
_RECORD = 1 << 14
_OWN = 'certificate = "relay.pem"\nkey = "relay.key"'


@functools.cache
def authority(name: str = "test root") -> Authority:
    """One for each name; who is trusted is `test root`."""
    return Authority(name)


@functools.cache
def relays_own() -> Identity:
    """What the relay shows its clients, as a rule."""
    return authority().vouch("localhost", dns=["localhost"], ip=["127.0.0.1"])


@functools.cache
def targets_own() -> Identity:
    """What targets show the relay, as a rule."""
    return authority().vouch("target", dns=["target.example", "localhost"], ip=["127.0.0.1"])


def client_context(
    version: str = "TLSv1.3",
    *,
    who: Identity | None = None,
    alpn: tuple[str, ...] = (),
    trusted: bool = True,
) -> ssl.SSLContext:
    """
    @param who: the client's certificate.
    @param trusted: whether the server has to be somebody for whom `authority` vouches.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.check_hostname = trusted
    context.verify_mode = ssl.CERT_REQUIRED if trusted else ssl.CERT_NONE
    context.load_verify_locations(cadata=authority().pem.decode())
    _load(context, who)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def server_context(
    who: Identity,
    version: str = "TLSv1.3",
    *,
    alpn: tuple[str, ...] = (),
    demanding: bool = False,
) -> ssl.SSLContext:
    """
    @param demanding: whether clients have to have a certificate of `authority`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    _load(context, who)
    if alpn:
        context.set_alpn_protocols(alpn)
    if demanding:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority().pem.decode())
    return context


def _load(context: ssl.SSLContext, who: Identity | None) -> None:
    if who is not None:
        with tempfile.TemporaryDirectory(prefix="fwdrelay-") as folder:
            context.load_cert_chain(*who.write(folder, "own"))


class TLSSocket:
    """
    A blocking socket that speaks TLS. One thread may send while another receives, which those of `ssl`
    don't allow; and an end can be said that is heard as one by the peer, while bytes go on coming.

    @param sock: connected; this object's from now on, also if this fails.
    @raise ssl.SSLError: of the handshake.
    @ivar where: of a client; see `where`.
    @ivar peer: DER of the certificate that the peer showed; empty: none.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        serving: bool = False,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.sock = sock
        self.where = "" if serving else where(sock)
        # What is sent is sent: a close_notify is not to wait for the bytes before it to be acknowledged.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, serving, None if serving else name, session
        )
        # OpenSSL's objects are not for two threads at once, and records go out in the order in which
        # they were made.
        self._one_at_a_time, self._sending = threading.Lock(), threading.Lock()
        self._early = bytearray()
        try:
            self._shake_hands()
        except BaseException:
            with contextlib.suppress(OSError):
                self.sock.sendall(self._outgoing.read())  # the alert
            sock.close()
            raise
        self.peer = self.tls.getpeercert(binary_form=True) or b""

    def _shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._outgoing.read())
                self._wait_for_more()
            else:
                self.sock.sendall(self._outgoing.read())
                return

    def _wait_for_more(self) -> None:
        data = self.sock.recv(1 << 18)
        with self._one_at_a_time:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def recv(self, most: int) -> bytes:
        """
        As of a socket: empty at the peer's close_notify.

        @raise ssl.SSLEOFError: the peer ended without one.
        """
        while True:
            with self._one_at_a_time:
                if self._early:
                    data = bytes(self._early[:most])
                    del self._early[:most]
                    return data
                try:
                    return self.tls.read(most)
                except ssl.SSLZeroReturnError:
                    return b""
                except ssl.SSLWantReadError:
                    pass
            if self._sending.acquire(blocking=False):  # or whoever sends does this, too
                try:
                    self._flush()
                finally:
                    self._sending.release()
            self._wait_for_more()

    def sendall(self, data: bytes) -> None:
        """As of a socket."""
        with self._sending, memoryview(data) as view:
            for start in range(0, len(view), 64 * _RECORD):
                with self._one_at_a_time:
                    self.tls.write(view[start : start + 64 * _RECORD])
                self._flush()

    def shutdown(self, how: int = socket.SHUT_WR) -> None:
        """close_notify, and nothing more."""
        with self._sending:
            with self._one_at_a_time:
                # What has come is read first: `unwrap` would look for the peer's end in it.
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                    while data := self.tls.read(_RECORD):
                        self._early += data
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.tls.unwrap()
            self._flush()

    def _flush(self) -> None:
        with self._one_at_a_time:
            data = self._outgoing.read()
        if data:
            self.sock.sendall(data)

    def cut(self) -> None:
        """An end (FIN) without close_notify."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """As of a socket; without close_notify."""
        self.sock.close()

    def fileno(self) -> int:
        """As of a socket."""
        return self.sock.fileno()

    def settimeout(self, seconds: float) -> None:
        """As of a socket."""
        self.sock.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As of a socket."""
        self.sock.setsockopt(level, option, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def serve(
    upstream: Upstream, context: ssl.SSLContext, names: list[str | None] | None = None
) -> Any:
    """
    Accept one connection and shake hands.

    @param names: gets the name that the client asked for.
    @return: a `TLSSocket`.
    """
    if names is not None:
        context.sni_callback = lambda tls, name, context: names.append(name)
    return TLSSocket(upstream.accept(), context, serving=True)


@frozen
class Talk:
    """
    A relayed session.

    @ivar client: its end, and `server`: the target's; each a socket or a `TLSSocket`.
    @ivar where: the client; see `where`.
    """

    client: Any
    server: Any
    where: str


def where(sock: Any) -> str:
    """
    What a client's line in the access log has, and no other's: both its addresses. The kernel may give the
    same port to clients of two listeners.

    @param sock: of a client; connected still, unless it is a `TLSSocket`.
    """
    if isinstance(sock, TLSSocket):
        return sock.where
    client, local = ("{}:{}".format(*each) for each in (sock.getsockname(), sock.getpeername()))
    return f'"client":"{client}","local":"{local}"'


class TLSScenario(Scenario, every_pump=False):
    """
    One relay for all tests of a class, which is started before the first and must not have stumbled when
    it is stopped after the last.

    trial knows nothing of a class's last test: there, the relay is stopped before the first of the next
    such class.

    @ivar folder_: for files of the class.
    @ivar relay: it.
    """

    folder_: ClassVar[Path]
    relay: ClassVar[ConfiguredRelay]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        """
        @param opened: closes what is needed until the last test is done.
        @return: the relay's configuration, which is written into `folder_`.
        """
        raise NotImplementedError

    @classmethod
    def tearDownClass(cls) -> None:
        _stage.clear()
        super().tearDownClass()

    def run(self, result: Any = None) -> None:
        """As of all test cases. What is opened for the class is none of what a test leaves behind."""
        self._trouble: BaseException | None = None
        try:
            _stage.set(type(self))
        except BaseException as trouble:
            self._trouble = trouble
        super().run(result)

    def setUp(self) -> None:
        if self._trouble is not None:
            raise self._trouble
        self._begun = len(self.relay.lines)
        self.addCleanup(self._is_at_rest)

    def _is_at_rest(self) -> None:
        if self.relay.process.poll() is None:
            self.relay.wait_for_descriptors(self.relay.at_rest)

    def dial(
        self,
        listener: str,
        context: ssl.SSLContext | None,
        name: str | None = "localhost",
        **more: Any,
    ) -> Any:
        """
        @param context: None: without TLS.
        @return: a client of that listener, whose handshake is complete.
        """
        sock = self.relay.connect_to(listener)
        return sock if context is None else TLSSocket(sock, context, name=name, **more)

    def entry(self, client: str) -> dict[str, Any]:
        """
        @param client: what `where` said of it.
        @return: what is told of its session, once it has ended; that is told but once.
        """
        self.relay.wait_for_line(client, start=self._begun)
        (line,) = [each for each in self.relay.lines[self._begun :] if client in each]
        entry: dict[str, Any] = json.loads(line)
        return entry

    def has_ended_so(self, client: str, reason: str, code: str, **fields: Any) -> None:
        """Assert what is told of that client's session; a field in `error` is looked for in it."""
        entry = self.entry(client)
        error = fields.pop("error", "")
        fields = {"reason": reason, "code": code, **fields}
        self.assertEqual({name: entry.get(name) for name in fields}, fields, entry)
        self.assertIn(error, entry.get("error", ""))


class _Stage:
    """What is open for the tests of one class."""

    def __init__(self) -> None:
        self._for: type[TLSScenario] | None = None
        self._open = ExitStack()
        atexit.register(self.clear)

    def set(self, case: type[TLSScenario]) -> None:
        """Open what tests of this class want, unless it is."""
        if case is self._for:
            return
        self.clear()
        with ExitStack() as opened:
            path = opened.enter_context(tempfile.TemporaryDirectory(prefix="fwdrelay-"))
            case.folder_ = Path(path)
            authority().write(path)
            relays_own().write(path, "relay")
            text = case.configure(opened)
            case.relay = opened.enter_context(
                ConfiguredRelay(case.folder_ / "relay.toml", text, "--pump", case.pump)
            )
            self._open = opened.pop_all()
        self._for = case

    def clear(self) -> None:
        """Close it."""
        self._for = None
        self._open.close()


_stage = _Stage()

WAYS = ("tls-to-plain", "plain-to-tls", "tls-to-tls")


class EachWay(TLSScenario, every_pump=False):
    """
    With the listeners `WAYS`, each of which leads to a target of ours, and more of them with other
    time-outs: `WAY-VARIANT`.

    @ivar variants: TOML of the time-outs, by name.
    """

    variants: ClassVar[dict[str, str]] = {}
    plain: ClassVar[Upstream]
    secure: ClassVar[Upstream]

    @classmethod
    def configure(cls, opened: ExitStack) -> str:
        cls.plain = opened.enter_context(Upstream())
        cls.secure = opened.enter_context(Upstream())
        text = f"""
[pool.plain]
targets = ["{cls.plain.target}"]
[pool.tls]
targets = ["{cls.secure.target}"]
tls = {{ ca = "ca.pem", name = "target.example" }}
"""
        for variant, timeouts in {"": "", **cls.variants}.items():
            for way in WAYS:
                source, _, sink = way.partition("-to-")
                text += listener(_named(way, variant), sink, tls=source == "tls", timeouts=timeouts)
        return text

    @contextmanager
    def talk(self, way: str, version: str = "TLSv1.3", variant: str = "") -> Iterator[Talk]:
        """
        @param way: one of `WAYS`.
        """
        source, _, sink = way.partition("-to-")
        with ExitStack() as opened:
            context = client_context(version) if source == "tls" else None
            client = opened.enter_context(self.dial(_named(way, variant), context))
            if sink == "tls":
                # Made anew for each: a session must not be resumed just here and there.
                server: Any = serve(self.secure, server_context(targets_own(), version))
            else:
                server = self.plain.accept()
            opened.enter_context(server)
            yield Talk(client, server, where(client))

    @contextmanager
    def on_the_way(self, way: str) -> Iterator[None]:
        """What fails in a `with` block fails on that way."""
        try:
            yield
        except BaseException as failed:
            failed.add_note(f"on the way {way}")
            raise


def _named(way: str, variant: str) -> str:
    return f"{way}-{variant}" if variant else way


def listener(
    name: str,
    pool: str,
    *,
    tls: bool = False,
    timeouts: str = "",
    settings: str = "",
    own: str = _OWN,
) -> str:
    """
    @param timeouts: what stands in its `timeouts`.
    @param own: TOML of what it shows, and `settings`: more of its TLS.
    @return: TOML of a listener; the last of its tables is that of its TLS, if it has any.
    """
    text = f"""
[[listener]]
name = "{name}"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "{pool}"
timeouts = {{ {timeouts} }}
"""
    if tls:
        text += f"[listener.tls]\n{own}\n{settings}\n"
    return text


def alert_of(failed: BaseException) -> str:
    """
    @return: the alert that a client heard, in OpenSSL's words; fails when it was something else.
    """
    found = re.search(r"\balert (.+?) \(", str(failed))
    assert isinstance(failed, ssl.SSLError) and found, repr(failed)
    return found[1]

"""
The loads over TLS: clients of a relay that terminates it, and servers behind one that originates it.

One thread and one epoll set, as in `plain`. What waits is a generator, which yields whenever its socket
has nothing to read. TLS 1.3 with AES-128-GCM and nothing else: the cipher suite and the group are told
by the file that OPENSSL_CONF names, as Python's own `ssl` cannot, and are looked at here.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Generator, Iterator

from .plain import MESSAGE
from .window import (
    Address,
    LoadError,
    Sources,
    Window,
    events,
    keep,
    listen,
    now,
    percentiles,
)

VERSION, CIPHER = "TLSv1.3", "TLS_AES_128_GCM_SHA256"
RECORD = 1 << 14
"""The most that a record carries, in bytes (RFC 8446, section 5.1)."""
TURN = 16
"""Records of one connection before another has its turn."""
# The first is that a connection can be written to, which begins its life. What yields has read all there
# was: no edge is missed.
EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
STALLED_BUFFER = 1 << 16
"""What the kernel receives for a client that reads nothing, in bytes; else it would be megabytes."""

Life = Generator[None, None, None]
"""A connection's; yields when there is nothing to read."""


def handshake(sock: ssl.SSLSocket) -> Life:
    """Of either side."""
    while True:
        try:
            sock.do_handshake()
            break
        except ssl.SSLWantReadError:
            yield
    cipher = sock.cipher()
    if sock.version() != VERSION or not cipher or cipher[0] != CIPHER:
        raise LoadError(
            f"{sock.version()} with {cipher} was agreed on, not {VERSION} with {CIPHER}"
        )


def run_all(lives: dict[int, Life], epoll: select.epoll) -> Iterator[int]:
    """
    Begin each connection, and go on with it whenever there is something to read, until all are through.

    @param lives: by descriptor, which are in `epoll` for `EDGES`; may grow meanwhile.
    @return: the descriptors of those that are through, in turn.
    """
    while lives:
        for fd, _ in events(epoll):
            try:
                next(lives[fd])
            except StopIteration:
                del lives[fd]
                yield fd


# Clients


class Secure(Sources):
    """
    Opens TLS connections.

    @param authority: the certificate that vouches for the relay (a path).
    @param name: the relay's.
    @ivar session: is resumed by all that are opened from now on; None: full handshakes.
    """

    def __init__(self, prefix: str, authority: str, name: str) -> None:
        super().__init__(prefix)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_verify_locations(authority)
        self._name = name
        self.session: ssl.SSLSession | None = None

    def begin(self, to: Address) -> ssl.SSLSocket:
        """A connected, non-blocking socket whose handshake is to come."""
        sock = self.connect(to)
        sock.setblocking(False)
        return self._context.wrap_socket(
            sock,
            server_hostname=self._name,
            do_handshake_on_connect=False,
            session=self.session,
        )

    def opened(self, to: Address, count: int) -> dict[int, ssl.SSLSocket]:
        """Connections that are ready, by descriptor."""
        epoll = select.epoll()
        socks = [self.begin(to) for _ in range(count)]
        lives = {sock.fileno(): handshake(sock) for sock in socks}
        for fd in lives:
            epoll.register(fd, EDGES)
        for fd in run_all(lives, epoll):
            epoll.unregister(fd)
        return {sock.fileno(): sock for sock in socks}


def received(sock: ssl.SSLSocket, nowhere: bytearray) -> int:
    """
    Read a turn's records; what they carried is gone.

    @return: how many bytes. Raises `EOFError` at the end.
    """
    total = 0
    try:
        for _ in range(TURN):
            got = sock.recv_into(nowhere, RECORD)
            if not got:
                raise EOFError
            total += got
    except ssl.SSLWantReadError:
        pass
    return total


def sent(sock: ssl.SSLSocket, data: memoryview) -> int:
    """Send a turn's records. @return: how many bytes."""
    total = 0
    try:
        for _ in range(TURN):
            total += sock.send(data)
    except ssl.SSLWantWriteError:
        pass
    return total


def bulk(
    turn: Callable[[ssl.SSLSocket], int],
    mask: int,
    to: Address,
    sources: Secure,
    connections: int,
    warmup: float,
    seconds: float,
    pid: int,
) -> dict[str, int]:
    """
    Move as much as can be.

    @param turn: takes a turn on a connection and returns how many bytes it moved.
    @param mask: the event after which there is one.
    """
    epoll = select.epoll()
    socks = sources.opened(to, connections)
    for fd in socks:
        epoll.register(fd, mask)

    def run(until: int) -> int:
        total = 0
        while now() < until:
            for fd, _ in events(epoll):
                total += turn(socks[fd])
        return total

    run(now() + int(warmup * 1e9))
    window = Window(pid)
    total = run(now() + int(seconds * 1e9))
    return {"bytes": total, **window.end()}


def down(
    to: Address, sources: Secure, connections: int, warmup: float, seconds: float, pid: int
) -> dict[str, int]:
    """Receive as much as comes."""
    nowhere = bytearray(RECORD)

    def turn(sock: ssl.SSLSocket) -> int:
        try:
            return received(sock, nowhere)
        except EOFError:
            raise LoadError("a bulk connection ended") from None

    return bulk(turn, select.EPOLLIN, to, sources, connections, warmup, seconds, pid)


def up(
    to: Address, sources: Secure, connections: int, warmup: float, seconds: float, pid: int
) -> dict[str, int]:
    """Send as much as is taken. (What buffers hold is as much at either end of the window.)"""
    data = memoryview(bytes(RECORD))
    return bulk(
        lambda sock: sent(sock, data),
        select.EPOLLOUT,
        to,
        sources,
        connections,
        warmup,
        seconds,
        pid,
    )


def echo(
    to: Address, sources: Secure, connections: int, warmup: float, seconds: float, pid: int
) -> dict[str, int]:
    """Send a message on each connection, and the next when it has come back."""
    epoll = select.epoll()
    socks = sources.opened(to, connections)
    missing = dict.fromkeys(socks, 0)
    sent_at: dict[int, int] = {}
    size = len(MESSAGE)
    calls = {fd: (sock.recv, sock.send) for fd, sock in socks.items()}
    want_read = ssl.SSLWantReadError
    for fd in socks:
        epoll.register(fd, select.EPOLLIN)

    def run(until: int) -> list[int]:
        times = []
        time_ = now()
        while time_ < until:
            for fd, _ in events(epoll):
                read, write = calls[fd]
                try:
                    data = read(size)
                except want_read:
                    continue  # a ticket
                time_ = now()
                if len(data) != size:
                    # In pieces: seldom, and so the common case stays short.
                    missing[fd] = (missing[fd] or size) - len(data)
                    if not data or missing[fd] < 0:
                        raise LoadError("an echo came back wrong" if data else "an echo ended")
                    if missing[fd]:
                        continue
                times.append(time_ - sent_at[fd])
                sent_at[fd] = time_
                write(MESSAGE)
        return times

    for fd, (_, write) in calls.items():
        sent_at[fd] = now()
        write(MESSAGE)
    run(now() + int(warmup * 1e9))
    window = Window(pid)
    times = run(now() + int(seconds * 1e9))
    result = window.end()
    return {"echoes": len(times), **result, **percentiles(times)}


def goodbye(sock: ssl.SSLSocket) -> Life:
    """Close, once the relay has: closing before its own goodbye comes would be a reset."""
    with contextlib.suppress(OSError):  # its goodbye is not there yet, or it went without
        sock.unwrap()
    sock.shutdown(socket.SHUT_WR)  # from here on the socket is a plain one
    while True:
        try:
            if not sock.recv(4096):
                break
        except BlockingIOError:
            yield
        except ConnectionError:
            break
    sock.close()


class Sessions:
    """
    Sessions that are opened, `concurrency` at a time, each of which carries a byte there and back.

    @ivar held: the sockets, where they are kept.
    @ivar resumed: how many of those that carried their byte were resumed.
    """

    def __init__(self, to: Address, sources: Secure, concurrency: int) -> None:
        self._to, self._sources, self._concurrency = to, sources, concurrency
        self._epoll = select.epoll()
        self._lives: dict[int, Life] = {}
        self._times: list[int] = []
        self._session: ssl.SSLSession | None = None
        self.held: list[socket.socket] = []
        self.resumed = 0

    def _first_byte(self, sock: ssl.SSLSocket, start: int) -> Life:
        yield from handshake(sock)
        sock.send(b".")
        data: bytes | None = None
        while data is None:
            try:
                data = sock.recv(2)
            except ssl.SSLWantReadError:
                yield
        if data != b".":
            raise LoadError("a session ended before its byte came back")
        self.resumed += bool(sock.session_reused)
        self._times.append(now() - start)

    def _kept(self, sock: ssl.SSLSocket, start: int) -> Life:
        yield from self._first_byte(sock, start)
        self._epoll.unregister(sock.fileno())
        self.held.append(sock)

    def _closed(self, sock: ssl.SSLSocket, start: int) -> Life:
        yield from self._first_byte(sock, start)
        yield from goodbye(sock)

    def _remembered(self, sock: ssl.SSLSocket, start: int) -> Life:
        yield from self._first_byte(sock, start)
        self._session = sock.session
        yield from goodbye(sock)

    def _run(self, count: int, life: Callable[[ssl.SSLSocket, int], Life]) -> Iterator[int]:
        opened = 0

        def start() -> None:
            nonlocal opened
            time_ = now()
            sock = self._sources.begin(self._to)
            fd = sock.fileno()
            self._lives[fd] = life(sock, time_)
            self._epoll.register(fd, EDGES)
            opened += 1

        while opened < min(self._concurrency, count):
            start()
        for _ in run_all(self._lives, self._epoll):
            if opened < count:
                start()
            # Whichever it was that is through: as many times are there as there were bytes.
            yield self._times.pop()

    def closing(self, count: int) -> Iterator[int]:
        """
        Open and close so many.

        @return: how long each took up to its byte's return, in nanoseconds.
        """
        return self._run(count, self._closed)

    def keeping(self, count: int) -> Iterator[int]:
        """Open so many, and keep them in `held`."""
        return self._run(count, self._kept)

    def one(self) -> ssl.SSLSession | None:
        """Open and close one. @return: what resumes it."""
        for _ in self._run(1, self._remembered):
            pass
        return self._session


def setup(
    to: Address,
    sources: Secure,
    concurrency: int,
    warmup: int,
    count: int,
    pid: int,
    resume: bool,
) -> dict[str, int]:
    """
    Open, pass one byte each way, close; with as many open at either end of the window.

    @param resume: all of them, the session of one that came before; raises when one is not resumed.
    """
    sessions = Sessions(to, sources, concurrency)
    if resume:
        sources.session = sessions.one()
    running = sessions.closing(warmup + count + concurrency)
    for _ in range(warmup):
        next(running)
    window = Window(pid)
    times = [next(running) for _ in range(count)]
    result = window.end()
    for _ in running:
        pass
    total = warmup + count + concurrency
    if sessions.resumed != (total if resume else 0):
        raise LoadError(f"{sessions.resumed} of {total} sessions were resumed")
    return {"sessions": count, **result, **percentiles(times)}


def hold(to: Address, sources: Secure, count: int) -> None:
    """Open sessions, each of which carries a byte there and back, and keep them."""
    sessions = Sessions(to, sources, 32)
    for _ in sessions.keeping(count):
        pass
    keep(sessions.held)


def stalled(to: Address, sources: Secure, count: int) -> None:
    """Open sessions, read the first of what comes in each, and no more."""
    sources.receive_buffer = STALLED_BUFFER
    socks = sources.opened(to, count)
    epoll = select.epoll()
    for fd in socks:
        epoll.register(fd, select.EPOLLIN)
    waiting = dict(socks)
    while waiting:
        for fd, _ in events(epoll):
            try:
                if not waiting[fd].recv(1):
                    raise LoadError("a session ended before its first byte came")
            except ssl.SSLWantReadError:
                continue  # a ticket
            del waiting[fd]
            epoll.unregister(fd)
    keep(list(socks.values()), select.EPOLLRDHUP)


# Servers


class Server:
    """
    What listens behind a relay that originates TLS.

    @param certificate: a path, as is `key`.
    """

    def __init__(self, at: Address, certificate: str, key: str) -> None:
        self._at = at
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(certificate, key)

    def run(self, serve: Callable[[ssl.SSLSocket], Life], mask: int = select.EPOLLIN) -> None:
        """
        Serve until standard input ends.

        @param serve: a connection after its handshake; is gone on with at each event.
        @param mask: which events these are.
        """
        listener, epoll = listen(self._at)
        listening = listener.fileno()
        lives: dict[int, Life] = {}

        def life(sock: ssl.SSLSocket) -> Life:
            with sock:
                try:
                    yield from handshake(sock)
                    epoll.modify(sock.fileno(), mask)
                    yield from serve(sock)
                    sock.unwrap()
                except (OSError, EOFError):  # whoever leaves early is asked no questions
                    pass

        while True:
            for fd, _ in epoll.poll():
                if fd == listening:
                    accepted, _ = listener.accept()
                    accepted.setblocking(False)
                    try:
                        sock = self._context.wrap_socket(
                            accepted, server_side=True, do_handshake_on_connect=False
                        )
                    except OSError:  # it has been reset already
                        continue
                    epoll.register(sock.fileno(), select.EPOLLIN)
                    lives[sock.fileno()] = life(sock)
                elif fd == 0:
                    return
                else:
                    next(lives[fd], None)


def serve_echo(sock: ssl.SSLSocket) -> Life:
    """Send back what comes, and close what ends."""
    while True:
        try:
            data = sock.recv(4096)
        except ssl.SSLWantReadError:
            yield
            continue
        if not data:
            return
        sock.send(data)


def serve_source(sock: ssl.SSLSocket) -> Life:
    """Send as much as is taken."""
    data = memoryview(bytes(RECORD))
    while True:
        sent(sock, data)
        yield


def serve_sink(sock: ssl.SSLSocket) -> Life:
    """Take whatever comes."""
    nowhere = bytearray(RECORD)
    while True:
        received(sock, nowhere)
        yield

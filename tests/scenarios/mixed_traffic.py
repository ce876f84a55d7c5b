"""
The process behind `tests.scenarios.mixed_load`: clients and the upstream of a relay, of many kinds at once.

It is told what to do by a JSON object a line on its standard input, and tells what came of it by such lines on
its standard output. Both ends of a session are here, but what one of them knows of the other came through the
relay; only lengths that a stop decides are looked up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import attrs
from attrs import define, field, frozen

MAGIC = b"mixd"
HEADER = struct.Struct(">4sQQ")
BLOCK = 1 << 16
"""Bytes of a stream between two of its numbers."""
READ = 1 << 17
PATIENCE = 30.0
"""Seconds without any progress where there should be some."""
WELCOME = 90.0
"""Seconds until a relay has let a client through that it has accepted, or will when a worker is there again."""
TOLD_EVERY = 0.05
_TAIL = random.Random(7).randbytes(BLOCK - 16)


class Wrong(Exception):
    """What a session should not have met."""


class Stream:
    """
    Bytes in which nothing can be missing, doubled or moved unnoticed; other ones for each name.
    """

    def __init__(self, *name: int) -> None:
        self._name = name
        self._number = -1
        self._block = b""

    def at(self, position: int, size: int) -> bytes:
        """
        @return: up to `size` bytes from there on.
        """
        number, start = divmod(position, BLOCK)
        if number != self._number:
            self._number = number
            self._block = struct.pack(">QQ", hash(self._name) & (2**64 - 1), number) + _TAIL
        return self._block[start : start + size]

    def difference(self, position: int, data: bytes) -> int | None:
        """
        @return: where the first byte of `data` is that is not this stream's from `position` on; None: nowhere.
        """
        start = 0
        while start < len(data):
            wanted = self.at(position + start, len(data) - start)
            found = data[start : start + len(wanted)]
            if found != wanted:
                return next(
                    position + start + index
                    for index, (one, other) in enumerate(zip(found, wanted, strict=True))
                    if one != other
                )
            start += len(wanted)
        return None


@frozen
class Pace:
    """
    How something is sent or read.

    @ivar piece: bytes at a time; 0: as many as there are.
    @ivar pause: seconds between two pieces.
    """

    piece: int = 0
    pause: float = 0.0


AT_ONCE = Pace()
SLOWLY = Pace(2 << 10, 0.02)
SELDOM = Pace(64, 1.0)
STEADILY = Pace(32 << 10, 0.01)
ENDLESS = 1 << 40
PIECES = 20
"""In how many pieces something is sent that takes its time."""
RECEIVE_BUFFER = 4096
"""SO_RCVBUF of who reads slowly: so there is soon no room for more, anywhere on the way."""


@frozen(kw_only=True)
class Kind:
    """
    What a session of this kind does. The upstream's way is down.

    @ivar up: how much of `largest` the client sends at most, in bytes per 1,024; `down`: the upstream.
    @ivar up_waits: whether the client begins only when the upstream has ended; `down_waits`: the other way round.
    @ivar up_lasts: whether the client ends only after the upstream has; `down_lasts`: the other way round.
    @ivar reader: who reads as `reads` says, with little room for what comes.
    @ivar resets: who resets the connection in the midst of it.
    """

    up: int = 0
    down: int = 0
    up_waits: bool = False
    down_waits: bool = False
    up_lasts: bool = False
    down_lasts: bool = False
    sends: Pace = AT_ONCE
    reads: Pace = AT_ONCE
    reader: str = ""
    echo: bool = False
    resets: str = ""

    def __attrs_post_init__(self) -> None:
        assert not (self.up_waits and self.down_waits)


KINDS = {
    "bulk-up": Kind(up=1024, down_lasts=True),
    "bulk-down": Kind(down=1024, up_lasts=True),
    "bulk-both": Kind(up=1024, down=1024),
    "messages": Kind(up=4, echo=True),
    "answer": Kind(up=1, down=512, down_waits=True),
    "upload": Kind(up=512, down=1, up_waits=True),
    "slow-reader": Kind(down=128, up_lasts=True, reads=SLOWLY, reader="client"),
    "slow-server": Kind(up=128, down_lasts=True, reads=SLOWLY, reader="server"),
    "idle": Kind(up=0, down=0, sends=SELDOM),
    "client-resets": Kind(up=1024, down=1024, sends=STEADILY, resets="client"),
    "server-resets": Kind(up=1024, down=1024, sends=STEADILY, resets="server"),
}


@define
class End:
    """
    One end of a session.

    @ivar name: `client` or `server`.
    @ivar total: how many bytes it has sent in all; None: it has not ended.
    @ivar heard_end: whether the other end's end has come; `heard`: whether anything has, since it was last asked.
    @ivar task: what moves it.
    """

    name: str
    sent: int = 0
    received: int = 0
    total: int | None = None
    heard_end: asyncio.Event = field(factory=asyncio.Event)
    heard: asyncio.Event = field(factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@define
class Session:
    """
    One that is under way.

    @ivar up: how much the client will send; None: until it is told to stop.
    @ivar begun: when the client began to connect, by `time.monotonic`; `opened`: when the upstream had answered.
    @ivar reset: whether the end that was to has reset it.
    """

    number: int
    name: str
    kind: Kind
    seed: int
    up: int | None
    down: int | None
    sends: Pace
    reads: Pace
    seconds: float
    begun: float
    opened: float | None = None
    address: str = ""
    reset: bool = False
    wrong: str = ""
    at: float = 0.0
    client: End = field(factory=lambda: End("client"))
    server: End = field(factory=lambda: End("server"))

    @property
    def moved(self) -> int:
        """A number that grows while something moves."""
        return self.client.received + self.server.received

    def stream(self, end: End) -> Stream:
        """What that end sends."""
        sends = "echo" if self.kind.echo else end.name
        return Stream(self.seed, self.number, ("client", "server", "echo").index(sends))


class Traffic:
    """
    Many sessions at a time, through one address, to an upstream of its own.

    @param told: the JSON object that says how much of what.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._kinds: list[str] = told["kinds"]
        self._slots: int = told["sessions"]
        self._seed: int = told["seed"]
        self._lasting: bool = told["lasting"]
        self._largest: int = told["largest"]
        self._rate: int = told["rate"]
        self._seconds: float = told["seconds"]
        self._address: Any = None
        self._sessions: dict[int, Session] = {}
        self._next = 0
        self._stopping = asyncio.Event()
        self._counts: Counter[str] = Counter()
        self._failed = 0
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listening.setblocking(False)

    @property
    def target(self) -> str:
        """Its upstream, for `--target`."""
        host, port = self._listening.getsockname()[:2]
        return f"{host}:{port}"

    # ------------------------------------------------------------------------- what it is told

    async def run(self) -> None:
        """Do what standard input says, until it ends or the work is done."""
        say(target=self.target)
        lines = asyncio.StreamReader()
        await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer
        )
        self._spawn(self._accept())
        self._spawn(self._tell())
        slots: set[asyncio.Task[None]] = set()
        while line := await lines.readline():
            told = json.loads(line)
            match told["do"]:
                case "start":
                    address = told["address"]
                    self._address = address if isinstance(address, str) else tuple(address)
                    slots = {self._spawn(self._slot(index)) for index in range(self._slots)}
                case "mark":
                    self._spawn(self._watch(told["mark"]))
                case "stop":
                    self._stopping.set()
                    if slots:
                        await asyncio.wait(slots, timeout=told["patience"])
                    for session in self._sessions.values():
                        self._fail(session, "it did not end")
                    if slots:
                        await asyncio.wait(slots)
                    self._tell_now()
                    say(done=True)
                    break
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            raise failed  # an error of this program: asyncio prints it

    async def _tell(self) -> None:
        while True:
            self._tell_now()
            await asyncio.sleep(TOLD_EVERY)

    def _tell_now(self) -> None:
        opened = sum(each.opened is not None for each in self._sessions.values())
        moved = self._bytes + sum(each.moved for each in self._sessions.values())
        say(open=opened, counts=dict(self._counts), failed=self._failed, bytes=moved)

    async def _watch(self, mark: int) -> None:
        """Tell when each session that is open now, and has something to move, has moved some of it or ended."""
        before = {
            number: each.moved
            for number, each in self._sessions.items()
            if each.opened is not None and each.name != "idle"
        }
        while before:
            await asyncio.sleep(0.02)
            before = {
                number: moved
                for number, moved in before.items()
                if number in self._sessions and self._sessions[number].moved == moved
            }
        say(marked=mark)

    # -------------------------------------------------------------------------------- sessions

    async def _slot(self, index: int) -> None:
        """One session after the other."""
        chance = random.Random(self._seed * 100_003 + index)
        kinds: list[str] = []
        # Not all at once, and not all kinds in step.
        await self._nap(chance.random() * 0.2)
        while not self._stopping.is_set():
            if not kinds:
                kinds = self._kinds.copy()
                chance.shuffle(kinds)
            session = self._make(kinds.pop(), chance)
            self._sessions[session.number] = session
            session.client.task = self._spawn(self._client(session, chance))
            await asyncio.wait([session.client.task])
            if session.server.task is not None:
                # It hears of the end a moment later, or was given up with the client.
                await asyncio.wait([session.server.task], timeout=PATIENCE)
                if not session.server.task.done():
                    self._fail(session, "server: was not told of the end")
                    await asyncio.wait([session.server.task])
            del self._sessions[session.number]
            self._bytes += session.moved
            if session.wrong:
                self._tell_failure(session)
                await self._nap(0.05)
            else:
                self._counts[session.name] += 1

    def _make(self, name: str, chance: random.Random) -> Session:
        kind = KINDS[name]
        self._next += 1

        def size(share: int) -> int:
            return max(1, chance.randrange(1 + share * self._largest // 1024)) if share else 0

        up: int | None = size(kind.up)
        down: int | None = size(kind.down)
        # It takes so long by itself, besides what the relay takes.
        seconds = chance.random() * 2 * self._seconds
        sends, reads = kind.sends, kind.reads
        if kind.resets:
            up = down = ENDLESS
        elif name == "idle":
            sends = attrs.evolve(sends, pause=seconds / 3)
            up = down = None if self._lasting else 3 * sends.piece
        elif self._lasting:
            # What another end waits for has to end.
            up = up if kind.down_waits or not kind.up else None
            down = down if kind.up_waits or not kind.down else None
            if self._rate:
                sends = Pace(16 << 10, (16 << 10) / self._rate)
        elif reads.piece:
            length = max(up or 1, down or 1)
            piece = min(reads.piece, length // PIECES + 1)
            reads = Pace(piece, seconds * piece / length)
        elif not kind.echo:
            sends = Pace(max(up or 1, down or 1) // PIECES + 1, seconds / PIECES)
        return Session(
            number=self._next,
            name=name,
            kind=kind,
            seed=self._seed,
            up=up,
            down=down,
            sends=sends,
            reads=reads,
            seconds=seconds,
            begun=time.monotonic(),
        )

    async def _nap(self, seconds: float) -> None:
        """Pause, though not once it is told to stop."""
        await asyncio.sleep(0)
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    async def _client(self, session: Session, chance: random.Random) -> None:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            if session.kind.reader == "client":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            try:
                await patiently(self._loop.sock_connect(sock, self._address), "to connect")
                session.address = address_of(sock)
                hello = HEADER.pack(MAGIC, session.number, session.seed)
                await patiently(self._loop.sock_sendall(sock, hello), "to be taken")
                if await self._exactly(sock, HEADER.size, WELCOME) != hello:
                    raise Wrong("another session's answer")
                session.opened = time.monotonic()
                await self._talk(session, session.client, sock, chance)
            except (Wrong, OSError) as wrong:
                self._fail(session, f"client: {told(wrong)}")
                reset(sock)
            except asyncio.CancelledError:  # the upstream has failed
                reset(sock)
                raise

    async def _accept(self) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(self._listening)
            sock.setblocking(False)
            self._spawn(self._server(sock))

    async def _server(self, sock: socket.socket) -> None:
        with sock:
            try:
                hello = await self._exactly(sock, HEADER.size)
                magic, number, _ = HEADER.unpack(hello)
            except (Wrong, OSError):
                return  # a client's that failed, or was given up
            session = self._sessions.get(number) if magic == MAGIC else None
            if session is None or session.wrong:
                return
            session.server.task = asyncio.current_task()
            try:
                if session.kind.reader == "server":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                await patiently(self._loop.sock_sendall(sock, hello), "to be taken")
                await self._talk(session, session.server, sock, random.Random(number))
            except (Wrong, OSError) as wrong:
                self._fail(session, f"server: {told(wrong)}")
                reset(sock)
            except asyncio.CancelledError:  # the client has failed
                reset(sock)
                raise

    async def _talk(
        self, session: Session, end: End, sock: socket.socket, chance: random.Random
    ) -> None:
        """What an end does once the connection is open."""
        if session.kind.echo and end is session.server:
            await self._echo(session, end, sock)
            return
        both = (
            self._loop.create_task(self._send(session, end, sock, chance)),
            self._loop.create_task(self._receive(session, end, sock)),
        )
        try:
            if session.kind.resets == end.name:
                await asyncio.wait(
                    both,
                    timeout=session.seconds,
                    return_when=asyncio.FIRST_EXCEPTION,
                )
            elif session.kind.resets:
                await self._until_reset(session, both)
                return
            else:
                await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            for task in both:
                if task.done():
                    task.result()
        finally:
            # Nobody may wait for a socket that is closed.
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        if session.kind.resets == end.name:
            session.reset = True
            reset(sock)

    async def _until_reset(
        self, session: Session, both: tuple[asyncio.Task[None], asyncio.Task[None]]
    ) -> None:
        """The other end resets, and this one has to hear of it as of that."""
        done, _ = await asyncio.wait(
            both, timeout=session.seconds + PATIENCE, return_when=asyncio.FIRST_EXCEPTION
        )
        wrong = [failed for task in done if (failed := task.exception()) is not None]
        if session.reset and any(isinstance(each, ConnectionError) for each in wrong):
            return
        if wrong:
            raise wrong[0]
        if len(done) == len(both):
            raise Wrong("ended cleanly, and should have been reset")
        raise Wrong("was not told that the other end had reset")

    async def _send(
        self, session: Session, end: End, sock: socket.socket, chance: random.Random
    ) -> None:
        """Send all that this end has to, and end."""
        client = end is session.client
        kind, length = session.kind, session.up if client else session.down
        if kind.up_waits if client else kind.down_waits:
            await end.heard_end.wait()
        stream = session.stream(end)
        most = session.sends.piece or BLOCK
        if kind.echo:
            most = 1000
        while end.sent < length if length is not None else not self._stopping.is_set():
            size = chance.randint(1, most) if kind.echo else most
            if length is not None:
                size = min(size, length - end.sent)
            piece = stream.at(end.sent, size)
            await patiently(self._loop.sock_sendall(sock, piece), "to be taken")
            end.sent += len(piece)
            if kind.echo:
                await self._heard(end)
                await self._nap(chance.choice((0.0, 0.0, 0.01, 0.4)) * session.seconds)
            elif session.sends.pause:
                await self._nap(session.sends.pause)
            else:
                await asyncio.sleep(0)
        if kind.up_lasts if client else kind.down_lasts:
            await end.heard_end.wait()
        end.total = end.sent
        sock.shutdown(socket.SHUT_WR)

    async def _heard(self, end: End) -> None:
        """Wait until as much has come back as was sent."""
        while end.received < end.sent:
            end.heard.clear()
            await patiently(end.heard.wait(), "for an echo")

    async def _receive(self, session: Session, end: End, sock: socket.socket) -> None:
        """Read up to the other end's end, and see that it is all and the right bytes."""
        other = session.server if end is session.client else session.client
        kind = session.kind
        pace = session.reads if kind.reader == end.name else AT_ONCE
        stream = session.stream(other)
        while data := await self._loop.sock_recv(sock, pace.piece or READ):
            if (where := stream.difference(end.received, data)) is not None:
                raise Wrong(f"another byte than was sent, at {where}")
            end.received += len(data)
            end.heard.set()
            await (self._nap(pace.pause) if pace.pause else asyncio.sleep(0))
        total = end.sent if kind.echo else other.total
        if total is None:
            raise Wrong(f"an end after {end.received} bytes that nobody has said")
        if end.received != total:
            raise Wrong(f"an end after {end.received} of {total} bytes")
        end.heard_end.set()

    async def _echo(self, session: Session, end: End, sock: socket.socket) -> None:
        """Send back what comes, and see that it is right."""
        stream = session.stream(end)
        while data := await self._loop.sock_recv(sock, READ):
            if (where := stream.difference(end.received, data)) is not None:
                raise Wrong(f"another byte than was sent, at {where}")
            end.received += len(data)
            await patiently(self._loop.sock_sendall(sock, data), "to be taken")
            end.sent += len(data)
        if session.client.total != end.received:
            raise Wrong(f"an end after {end.received} of {session.client.total} bytes")
        end.total = end.sent
        sock.shutdown(socket.SHUT_WR)

    async def _exactly(self, sock: socket.socket, count: int, patience: float = PATIENCE) -> bytes:
        data = b""
        while len(data) < count:
            receiving = self._loop.sock_recv(sock, count - len(data))
            some = await patiently(receiving, "for an answer", patience)
            if not some:
                raise Wrong(f"an end after {len(data)} bytes of the greeting")
            data += some
        return data

    # ------------------------------------------------------------------------------ what failed

    def _fail(self, session: Session, why: str) -> None:
        """What one end met the other would only echo, so that is the end of both."""
        if session.wrong:
            return
        session.wrong, session.at = why, time.monotonic()
        for end in (session.client, session.server):
            if end.task is not None and end.task is not asyncio.current_task():
                end.task.cancel()

    def _tell_failure(self, session: Session) -> None:
        self._failed += 1
        say(
            failure={
                "kind": session.name,
                "error": session.wrong,
                "client": session.address,
                "begun": session.begun,
                "opened": session.opened,
                "at": session.at,
                "up": session.server.received,
                "down": session.client.received,
                "sent_up": session.client.sent,
                "sent_down": session.server.sent,
                "number": session.number,
                "ends": [
                    f"{end.name} {what}"
                    for end in (session.client, session.server)
                    for what, so in (
                        ("has ended", end.total is not None),
                        ("has heard the other's end", end.heard_end.is_set()),
                    )
                    if so
                ],
            }
        )


async def patiently(
    waiting: Coroutine[Any, Any, Any], what: str, patience: float = PATIENCE
) -> Any:
    """What is awaited, if that comes in time."""
    try:
        async with asyncio.timeout(patience):
            return await waiting
    except TimeoutError:
        raise Wrong(f"waited {patience:g}s {what}") from None


def told(wrong: Exception) -> str:
    """In words."""
    if isinstance(wrong, OSError) and wrong.strerror:
        return wrong.strerror
    return str(wrong) or type(wrong).__name__


def address_of(sock: socket.socket) -> str:
    """Where a client is, as the relay writes it."""
    name = sock.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unix:"


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    with contextlib.suppress(OSError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def say(**values: Any) -> None:
    """Tell the test."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Be told how much of what, and go on as told."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    await Traffic(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    asyncio.run(main())

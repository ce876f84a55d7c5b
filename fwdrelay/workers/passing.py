"""
The channel between a worker and the keeper: messages that arrive whole, with the descriptors of the sessions that they
are about, or not at all.

What the messages mean is in `keeper` and `keeping`. Here live their form on the wire and the socket, of type
SOCK_SEQPACKET (unix(7)), which passes descriptors by SCM_RIGHTS; and how many descriptors a process may have.
"""

from __future__ import annotations

import array
import errno
import json
import os
import resource
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, get_args

import attrs
from attrs import define, frozen
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from zope.interface import implementer

Says = Literal[
    "register",
    "release",
    "hand-over",
    "let-go",
    "adopted",
    "refused",
    "failed",
    "give",
    "taken",
    "yours",
]
"""
What a message may say. By a worker:

- `register`: hold these sessions, which are mine. Nothing is answered, unless they are `refused`.
- `release`: these have ended.
- `hand-over`: hold these; answered by `taken` or `refused`. They are the worker's still.
- `let-go`: these, which were taken, are mine no more: give them to another.
- `adopted`: these, which were given, are relayed here; `refused`: they are not, for lack of descriptors; `failed`:
  they are not, for another reason.

By the keeper:

- `give`: these are yours from now on.
- `refused`: these are not held, for lack of descriptors.
- `taken`: these are held, and may be let go.
- `yours`: these are held no more; nobody else has their descriptors.
"""

DESCRIPTORS = 4
"""Of a session: client's socket, upstream's socket, pipe up, pipe down."""
MOST_SESSIONS = 60
"""In a message: SCM_RIGHTS passes at most 253 descriptors."""
MOST_NAMES = 1000
"""In a message without descriptors."""

_SAYS: tuple[Any, ...] = get_args(Says)
_WITH_DESCRIPTORS = frozenset({"register", "hand-over", "give"})
# A message has to fit into the socket's buffer as a whole, and takes turns with others in it.
_LARGEST = 96 << 10
_BUFFER = 256 << 10
_ROOM = bytearray(256 << 10)
_SPACE = socket.CMSG_SPACE(253 * array.array("i").itemsize)
_AT_ONCE = 16  # messages read in a turn
_LATER = 0.02
# ETOOMANYREFS: more descriptors of this user are under way than one process may have open.
_PASSING = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})


@frozen(kw_only=True)
class Message:
    """
    @ivar names: of the sessions that it is about.
    @ivar texts: a `PortableSession` as text for each of them, where their descriptors go along.
    @ivar descriptors: `DESCRIPTORS` for each of them, in that order.
    @ivar serial: of a message that may be answered by `taken` or `refused`: the answer has the same. 0: of others.
    @ivar lacking: some of the descriptors could not be received, so that all were closed.
    """

    says: Says
    names: tuple[str, ...]
    texts: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()
    serial: int = 0
    lacking: bool = False

    def first(self, count: int) -> Message:
        """The same about the first `count` of its sessions."""
        return attrs.evolve(
            self,
            names=self.names[:count],
            texts=self.texts[:count],
            descriptors=self.descriptors[: count * DESCRIPTORS],
        )

    def sessions(self) -> Iterable[tuple[str, str, tuple[int, ...]]]:
        """Name, text and descriptors of each, of a message that has them."""
        for index, (name, text) in enumerate(zip(self.names, self.texts, strict=True)):
            at = index * DESCRIPTORS
            yield name, text, self.descriptors[at : at + DESCRIPTORS]

    def encode(self) -> bytes:
        """As it is sent, beside the descriptors."""
        values: dict[str, object] = {"says": self.says, "names": self.names}
        if self.texts:
            values["texts"] = self.texts
        if self.serial:
            values["serial"] = self.serial
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, descriptors: tuple[int, ...]) -> Message:
        """
        What another version of fwdrelay has to say beside it is left out.

        @raise ValueError: it is none.
        """
        values = json.loads(bytes(data))
        if not isinstance(values, dict):
            raise ValueError("not an object")
        says: Any = values.get("says")
        if says not in _SAYS:
            raise ValueError(f"unknown: {says!r}")
        names, texts = _words(values.get("names")), _words(values.get("texts", []))
        if len(texts) != (len(names) if says in _WITH_DESCRIPTORS else 0):
            raise ValueError(f"{len(texts)} texts for {len(names)} sessions")
        serial = values.get("serial", 0)
        if not isinstance(serial, int):
            raise ValueError(f"not a number: {serial!r}"[:80])
        return cls(says=says, names=names, texts=texts, descriptors=descriptors, serial=serial)


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"not a list of texts: {value!r}"[:80])
    return tuple(value)


class Outbox(Protocol):
    """What somebody has to say, put into words when it can be sent: until then, it may change."""

    def write(self, most: int) -> Message | None:
        """
        What is to be said next, about at most `most` sessions; None: nothing any more. It may be asked for
        several times before it is sent. The descriptors stay the writer's.
        """

    def sent(self, message: Message) -> None:
        """The kernel has taken `message`, which may be about fewer sessions than what was written."""


@define(eq=False)
class Words:
    """An `Outbox` of names."""

    says: Says
    names: deque[str]
    serial: int = 0

    def write(self, most: int) -> Message | None:
        """See `Outbox`."""
        if not self.names:
            return None
        # Not `most`: that counts descriptors, and here are none.
        names = [self.names[index] for index in range(min(len(self.names), MOST_NAMES))]
        return Message(says=self.says, names=tuple(names), serial=self.serial)

    def sent(self, message: Message) -> None:
        """See `Outbox`."""
        for _ in message.names:
            self.names.popleft()


@implementer(IReadWriteDescriptor)
class Channel:
    """
    One end of a channel, joined to a reactor. What does not fit into the socket waits, in its order.

    An end that the other side has closed is still to be `close`d here; that way `read_all` finds all that it had said.

    @param sock: belongs to the channel from now on.
    @param received: told of each message. It owns the descriptors.
    @param lost: told once, if the other side has closed its end, or nothing can be sent any more.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        received: Callable[[Message], object],
        lost: Callable[[], object],
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._received = received
        self._lost = lost
        self._outboxes: deque[Outbox] = deque()
        self._sending = False
        self._timer: Any = None
        self._paused = False
        self._mute = False  # nothing can be sent any more
        self._ended = False  # nothing comes any more
        self.is_lost = False
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return type(self).__name__

    def connectionLost(self, reason: Any) -> None:
        """The reactor is disconnecting everything."""

    def say(self, says: Says, names: Iterable[str], serial: int = 0) -> None:
        """Send names, as soon as it is their turn."""
        names = deque(names)
        if not names or self._mute:
            return
        last = self._outboxes[-1] if self._outboxes else None
        if isinstance(last, Words) and (last.says, last.serial) == (says, serial):
            last.names.extend(names)
        else:
            self.send(Words(says, names, serial))

    def send(self, outbox: Outbox) -> None:
        """Send all that `outbox` has to say, as soon as it is its turn. One that waits already stays where it is."""
        if self._mute or outbox in self._outboxes:
            return
        self._outboxes.append(outbox)
        if len(self._outboxes) == 1:
            self._send()

    def unsaid(self) -> list[tuple[Says, list[str], int]]:
        """What waits to be sent and is but names: what is to be `say`d again elsewhere."""
        words = [each for each in self._outboxes if isinstance(each, Words)]
        return [(each.says, list(each.names), each.serial) for each in words]

    def pause(self) -> None:
        """Neither read nor send; what comes waits in the kernel."""
        self._paused = True
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._stop_timer()

    def resume(self) -> None:
        """Go on after a pause."""
        if self._paused:
            self._paused = False
            if not self._ended:
                self._reactor.addReader(self)
            self._send()

    def close(self) -> None:
        """Whatever waits is forgotten. Nothing is told of it."""
        self.pause()
        self._outboxes.clear()
        self._mute = self._ended = self.is_lost = True
        self._sock.close()

    def read_all(self) -> None:
        """Deal with everything that is there. To be called when the other side can't go on for ever: it is dead."""
        while self._read():
            pass

    def doRead(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._read() or self._paused:
                break

    def doWrite(self) -> None:
        self._reactor.removeWriter(self)
        self._send()

    def _read(self) -> bool:
        """
        @return: whether there may be more.
        """
        if self._ended:
            return False
        try:
            size, ancillary, flags, _ = self._sock.recvmsg_into(
                [_ROOM], _SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except (InterruptedError, ConnectionResetError):
            # The other side was closed with messages that it had not read. This is said first, and once; what it had
            # sent before is still there.
            return True
        except OSError as error:
            if error.errno in _PASSING:
                return False
            self._end()
            return False
        descriptors = _descriptors(ancillary)
        if not size:
            close_all(descriptors)
            self._end()
            return False
        try:
            self._deal_with(memoryview(_ROOM)[:size], descriptors, flags)
        except Exception:
            # Or the reactor would drop the channel.
            self.log.failure("A message about sessions could not be dealt with")
        return True

    def _deal_with(self, data: memoryview, descriptors: tuple[int, ...], flags: int) -> None:
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError("longer than any message")
            message = Message.decode(data, descriptors)
        except ValueError:
            close_all(descriptors)
            raise
        if flags & socket.MSG_CTRUNC or len(descriptors) != len(message.texts) * DESCRIPTORS:
            # Of what has not enough of them (EMFILE), some may have come.
            close_all(descriptors)
            message = attrs.evolve(message, descriptors=(), lacking=True)
        self._received(message)

    def _send(self) -> None:
        if self._sending or self._paused or self._timer is not None:
            return
        self._sending = True
        try:
            while self._outboxes and self._send_next(self._outboxes[0]):
                pass
        finally:
            self._sending = False

    def _send_next(self, outbox: Outbox) -> bool:
        """
        @return: whether to go on.
        """
        try:
            message = outbox.write(MOST_SESSIONS)
        except Exception:
            self.log.failure("What there is to say about sessions could not be put into words")
            message = None
        if message is None:
            if self._outboxes:  # else the channel was closed meanwhile
                self._outboxes.popleft()
            return True
        data = message.encode()
        while len(data) > _LARGEST and len(message.names) > 1:
            message = message.first(len(message.names) // 2)
            data = message.encode()
        rights = array.array("i", message.descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        try:
            self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._reactor.addWriter(self)
            return False
        except InterruptedError:
            return True
        except OSError as error:
            if error.errno in _PASSING:
                self._timer = self._reactor.callLater(_LATER, self._try_again)
                return False
            self._be_mute()
            return False
        outbox.sent(message)
        return True

    def _try_again(self) -> None:
        self._timer = None
        self._send()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._ended = True
        self._reactor.removeReader(self)
        self._be_mute()

    def _be_mute(self) -> None:
        self._mute = True
        self._outboxes.clear()
        self._reactor.removeWriter(self)
        self._stop_timer()
        if not self.is_lost:
            self.is_lost = True
            self._lost()


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return tuple(found)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for each in descriptors:
        os.close(each)


def descriptor_limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30

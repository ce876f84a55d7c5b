"""
Questions to name servers: one name and one type of record in, its records and their time to live out.

The messages are `twisted.names`', the asking is not: its client keeps timers and sockets of its own
that nobody can cancel, and takes a damaged answer for a short one. Here each question has a socket and
a message number of its own, and both are gone when it is answered or cancelled. What the addresses of
a host are, and for how long, is `fwdrelay.upstream.discovery.names`'.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet import defer, error
from twisted.internet.abstract import FileDescriptor, isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.interfaces import ITCPTransport
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver

from ...config.grammar import parse_nameserver
from ...errors import DiscoveryFailed

RESOLV_CONF = "/etc/resolv.conf"
PATIENCE = (1.0, 2.0, 4.0)
"""Seconds that each server has to answer, the first time it is asked, the second, the third."""
AT_ONCE = 16
"""Questions that may be on their way at a time: each has a socket."""
MOST_ALIASES = 16
"""CNAME records between a name and its records."""
MOST_POINTERS = 10000
"""Of name compression in one answer; twisted.names' 1,000 are too few for an answer of 64 KiB."""
MOST_READS = 8
"""For each byte of an answer; twisted.names reads once or twice for a byte of an honest one."""
_CODES = {dns.EFORMAT: "FORMERR", dns.ESERVER: "SERVFAIL", dns.ENOTIMP: "NOTIMP"}
_CODES[dns.EREFUSED] = "REFUSED"
_UNREACHABLE = (
    OSError,
    error.ConnectError,
    error.ConnectionDone,
    error.ConnectionLost,
)


class NoSuchName(DiscoveryFailed):
    """A name server knows that there is no such name (NXDOMAIN)."""


@frozen
class Answer:
    """
    @ivar records: the payloads of all records of the type that was asked for; none: the name has none.
    @ivar ttl: seconds that they are good for, the aliases on the way to them too.
    """

    records: tuple[Any, ...]
    ttl: float


@frozen
class Server:
    """One name server, an address and a port."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Server:
        """
        @param text: `ADDR:PORT`, `[IPV6]:PORT`, or `ADDR` for port 53.
        @raise ValueError: it is none of these.
        """
        host, _, port = parse_nameserver(text).rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_resolv_conf(path: str) -> tuple[Server, ...]:
    """
    @return: the name servers of a resolv.conf(5); where it is missing or names none, that of this
        machine, as everywhere.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    words = [line.split() for line in text.splitlines()]
    hosts = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    found = [Server(host, 53) for host in hosts if isIPAddress(host) or isIPv6Address(host)]
    return tuple(found) or (Server("127.0.0.1", 53),)


class Nameservers:
    """
    Who is asked. Nothing of it lives between questions: with no servers given, resolv.conf is read for
    each of them.

    @param servers: `ADDR:PORT` each; none: those of the system.
    @raise ValueError: one of them is no such thing.
    @ivar system: whether it is the system's servers that are asked.
    """

    def __init__(
        self, reactor: Any, servers: Sequence[str] = (), resolv_conf: str = RESOLV_CONF
    ) -> None:
        self._reactor = reactor
        self._given = tuple(Server.of(text) for text in servers)
        self._resolv_conf = resolv_conf
        self._places = DeferredSemaphore(AT_ONCE)
        self.system = not servers

    @property
    def servers(self) -> tuple[Server, ...]:
        """Those that are asked now, the first one first."""
        return self._given or read_resolv_conf(self._resolv_conf)

    async def ask(self, name: str, kind: int) -> Answer:
        """
        @param name: absolute: no search list is gone through.
        @param kind: of `twisted.names.dns`: `A`, `AAAA`, `SRV`.
        @raise NoSuchName: there is no such name.
        @raise DiscoveryFailed: no server could tell.
        """
        owner = _encoded(name)
        ttls: list[float] = []
        while len(ttls) <= MOST_ALIASES:
            followed = len(ttls)
            answers = await self._ask_servers(dns.Query(owner, kind, dns.IN))
            aliases = {_owner(each): each for each in answers if each.type == dns.CNAME}
            while (alias := aliases.pop(owner, None)) is not None:
                ttls.append(_ttl(alias))
                owner = alias.payload.name.name.lower()
            found = [each for each in answers if each.type == kind and _owner(each) == owner]
            if found or followed == len(ttls):
                ttls += map(_ttl, found)
                return Answer(tuple(each.payload for each in found), min(ttls, default=0.0))
            # The alias leads out of what this server knows: ask for where it leads to.
        raise DiscoveryFailed(f"{name} is an alias of an alias, and so on, with no end")

    async def _ask_servers(self, query: Any) -> list[Any]:
        """Ask one server after the other, then again those that did not answer, with more patience."""
        await self._places.acquire()
        try:
            said: dict[Server, str] = {}
            silent = list(self.servers)
            for patience in PATIENCE:
                for server in tuple(silent):
                    question = _Question(query)
                    try:
                        message = await self._ask_one(server, question, patience)
                    except defer.TimeoutError:
                        said[server] = f"did not answer by {question.way}"
                        continue
                    except _UNREACHABLE as failed:
                        said[server] = f"can't be asked by {question.way} ({_reason(failed)})"
                    else:
                        if message.rCode == dns.ENAME:
                            raise NoSuchName(f"{query.name} does not exist, says {server}")
                        if message.rCode == dns.OK and not message.trunc:
                            return list(message.answers)
                        code = _CODES.get(message.rCode, message.rCode)
                        said[server] = f"answers {code}" if message.rCode else "cuts its answer off"
                    silent.remove(server)
        finally:
            self._places.release()
        kind = dns.QUERY_TYPES.get(query.type, query.type)
        reasons = "; ".join(f"{server} {why}" for server, why in said.items())
        raise DiscoveryFailed(f"can't look up {kind} of {query.name}: {reasons}")

    def _ask_one(self, server: Server, question: _Question, patience: float) -> Deferred[Any]:
        asked = Deferred.fromCoroutine(self._by_either(server, question))
        return asked.addTimeout(patience, self._reactor)

    async def _by_either(self, server: Server, question: _Question) -> Any:
        message = await self._by_datagram(server, question)
        if message.trunc:  # it is too long for a datagram
            question.way = "TCP"
            message = await self._by_stream(server, question)
        return message

    async def _by_datagram(self, server: Server, question: _Question) -> Any:
        datagram = _Datagram(self._reactor, server, question)
        try:
            return await datagram.answer
        finally:
            datagram.close()

    async def _by_stream(self, server: Server, question: _Question) -> Any:
        protocol = _Stream(question)
        kind = TCP6ClientEndpoint if ":" in server.host else TCP4ClientEndpoint
        await connectProtocol(kind(self._reactor, server.host, server.port), protocol)
        try:
            return await protocol.answer
        finally:
            ITCPTransport(protocol.transport).abortConnection()


class _Question:
    """
    One message that asks, and what counts as an answer to it.

    @ivar data: the message.
    @ivar way: how it is asked at last, `UDP` or `TCP`.
    """

    def __init__(self, query: Any) -> None:
        message = dns.Message(id=secrets.randbits(16), recDes=1)
        message.queries = [query]
        self._id, self._query = message.id, query
        self.data = message.toStr()
        self.way = "UDP"

    def answered_by(self, data: bytes) -> Any:
        """
        @return: the message that `data` holds; None where it is none, is damaged, or does not answer this.
        """
        message = dns.Message()
        message.maxCompressionPointers = MOST_POINTERS
        try:
            message.decode(_Bounded(data))
            (records,) = struct.unpack_from("!H", data, 6)
        except Exception:  # many kinds: the parser was not made for what somebody sends on purpose
            return None
        if not message.answer or message.id != self._id or message.queries != [self._query]:
            return None
        if len(message.answers) != records and not message.trunc:
            return None  # cut off: what is missing must not be taken for gone
        return message


class _Bounded(BytesIO):
    """
    A message that is read to its end once. Names point back to others, which are read again then; if
    these are long, and there are many, it would take minutes.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MOST_READS * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it points back to long names again and again")
        return super().read(size)


class _Datagram(FileDescriptor):
    """
    One question by UDP, which is sent at once.

    A socket and no more: for each of Twisted's UDP ports there would be two lines in the log.

    @ivar answer: fires with the message; fails with `OSError`.
    @raise OSError: there is no socket to be had.
    """

    def __init__(self, reactor: Any, server: Server, question: _Question) -> None:
        super().__init__(reactor)
        self.answer: Deferred[Any] = Deferred()
        self._question = question
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            # Connected, so that the kernel takes no answer from anybody else, and tells a refusal.
            self._socket.connect((server.host, server.port))
            self._socket.send(question.data)
        except OSError as failed:
            self.answer.errback(failed)
        else:
            self.startReading()

    def fileno(self) -> int:
        """@return: -1 when it is closed."""
        return self._socket.fileno()

    def doRead(self) -> None:
        """Something came, or the kernel knows that nothing will."""
        try:
            data = self._socket.recv(65535)
        except BlockingIOError:
            return
        except OSError as failed:
            self._fail(failed)
            return
        message = self._question.answered_by(data)
        if message is not None and not self.answer.called:
            self.answer.callback(message)

    def connectionLost(self, reason: Any) -> None:
        """Under epoll, a refusal is no event to read, so the reactor takes the socket away at once."""
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._fail(OSError(number, os.strerror(number)))

    def close(self) -> None:
        """Nothing is left of it then."""
        self.stopReading()
        self._socket.close()

    def _fail(self, why: OSError) -> None:
        self.stopReading()
        if not self.answer.called:
            self.answer.errback(why)


class _Stream(Int16StringReceiver):
    def __init__(self, question: _Question) -> None:
        self._question = question
        self.answer: Deferred[Any] = Deferred()

    def connectionMade(self) -> None:
        self.sendString(self._question.data)

    def stringReceived(self, string: bytes) -> None:
        message = self._question.answered_by(string)
        if message is not None and not self.answer.called:
            self.answer.callback(message)

    def connectionLost(self, reason: Any = None) -> None:
        if not self.answer.called:
            self.answer.errback(reason)


def _encoded(name: str) -> bytes:
    try:
        return name.rstrip(".").lower().encode("ascii" if name.isascii() else "idna")
    except UnicodeError as wrong:
        raise DiscoveryFailed(f"{name} is not a name that DNS can hold: {wrong}") from None


def _owner(record: Any) -> bytes:
    owner: bytes = record.name.name.lower()
    return owner


def _ttl(record: Any) -> float:
    # RFC 2181, section 8: one with the highest bit set is taken for 0.
    return float(record.ttl) if 0 <= record.ttl < 2**31 else 0.0


def _reason(failed: Exception) -> str:
    if isinstance(failed, error.ConnectionRefusedError):
        return "Connection refused"
    number = getattr(failed, "errno", None) or getattr(failed, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(failed)

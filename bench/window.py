"""
What all loads are made of: where connections come from, and the window in which things count.

Used in the load's processes. The standard library only, to start fast.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from . import cost

CHUNK = 1 << 18
SILENCE = 10.0
"""Seconds without any event after which a relay is taken to be stuck."""
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python has it from 3.12 on

now = time.perf_counter_ns

Address = tuple[str, int]


class LoadError(Exception):
    """The relay did what a relay must not do."""


class Sources:
    """
    Opens connections from many addresses of 127.0.0.0/8, so that those in TIME_WAIT never use up the
    ports between two addresses.

    @param prefix: the first three numbers of the addresses, as `127.1.2`; empty: the system's choice.
    @ivar receive_buffer: of the kernel's, in bytes; 0: as large as it likes.
    """

    def __init__(self, prefix: str) -> None:
        self._addresses = [(f"{prefix}.{last}", 0) for last in range(1, 251)] if prefix else []
        self._next = 0
        self.receive_buffer = 0

    def connect(self, to: Address) -> socket.socket:
        """A connected, blocking socket. (On loopback, the handshake ends within the call.)"""
        sock = socket.socket()
        try:
            if self._addresses:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind(self._addresses[self._next])
                self._next = (self._next + 1) % len(self._addresses)
            if self.receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
            sock.connect(to)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock


class Window:
    """
    The time in which a client counts, with the relay's CPU time in it and its own.

    @param pid: the relay's process; 0: not known.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu = cost.cpu(pid) if pid else 0
        self._own = time.process_time_ns()
        self._start = now()

    def end(self) -> dict[str, int]:
        """`ns` that went by, `cpu_ns` of the relay, and `load_ns` of this client's CPU time."""
        ns = now() - self._start
        own = time.process_time_ns() - self._own
        used = cost.cpu(self._pid) - self._cpu if self._pid else 0
        return {"ns": ns, "cpu_ns": used, "load_ns": own}


def events(epoll: select.epoll) -> list[tuple[int, int]]:
    """What happened; raises when nothing does."""
    found = epoll.poll(SILENCE)
    if not found:
        raise LoadError(f"stuck: no event for {SILENCE:.0f} s")
    return found


def percentiles(times: list[int]) -> dict[str, int]:
    """Of latencies in nanoseconds."""
    times.sort()
    last = len(times) - 1
    return {
        **{f"p{p}_ns": times[last * p // 100] for p in (10, 50, 90, 99)},
        "p999_ns": times[last * 999 // 1000],
        "max_ns": times[last],
    }


def keep(socks: list[socket.socket], mask: int = select.EPOLLIN) -> None:
    """
    Say how many are held, and hold them until standard input ends. Raises when one of them does.

    @param mask: which events are the end of one that is held.
    """
    epoll = select.epoll()
    for sock in socks:
        epoll.register(sock.fileno(), mask)
    print(json.dumps({"held": len(socks)}), flush=True)
    epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    if (ended := epoll.poll()[0][0]) != sys.stdin.fileno():
        raise LoadError(f"a session that was held has ended (descriptor {ended})")


def listen(at: Address) -> tuple[socket.socket, select.epoll]:
    """A listening socket whose port is printed, in an epoll set with the standard input."""
    listener = socket.create_server(at, backlog=4096)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.register(0, select.EPOLLIN)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    return listener, epoll

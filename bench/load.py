"""
The load: backends and clients, each a process of its own that ends when its standard input does.

    python -m bench.load echo-server 127.0.0.1:7000
    python -m bench.load echo 127.0.0.1:5678 --connections 32 --seconds 3 --pid 1234

A server prints the port it listens on. A client prints one JSON object when it is through; given the
relay's process (`--pid`), it also reads the CPU time of that at both ends of the very window in which it
counts. What is wrong is said on standard error, with exit status 1.

One thread, one epoll set, and as few steps in Python per system call as there can be, because the
load shares the machine with what is measured. The standard library only, to start fast.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator

from bench import cost

MESSAGE = b"." * 64
CHUNK = 1 << 18
SILENCE = 10.0
"""Seconds without any event after which a relay is taken to be stuck."""
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python has it from 3.12 on

now = time.perf_counter_ns


class LoadError(Exception):
    """The relay did what a relay must not do."""


Address = tuple[str, int]


class Sources:
    """
    Opens connections from many addresses of 127.0.0.0/8, so that those in TIME_WAIT never use up the
    ports between two addresses.

    @param prefix: the first three numbers of the addresses, as `127.1.2`; empty: the system's choice.
    """

    def __init__(self, prefix: str) -> None:
        self._addresses = [(f"{prefix}.{last}", 0) for last in range(1, 251)] if prefix else []
        self._next = 0

    def connect(self, to: Address) -> socket.socket:
        """A connected, blocking socket. (On loopback, the handshake ends within the call.)"""
        sock = socket.socket()
        try:
            if self._addresses:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind(self._addresses[self._next])
                self._next = (self._next + 1) % len(self._addresses)
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


# Clients


def bulk(
    to: Address, sources: Sources, connections: int, warmup: float, seconds: float, pid: int
) -> dict[str, int]:
    """Receive as much as comes, and let the kernel discard it uncopied (tcp(7), MSG_TRUNC)."""
    epoll = select.epoll()
    socks = [sources.connect(to) for _ in range(connections)]
    receive = {sock.fileno(): sock.recv_into for sock in socks}
    for fd in receive:
        epoll.register(fd, select.EPOLLIN)
    nowhere = bytearray(CHUNK)

    def run(until: int) -> int:
        total = 0
        while now() < until:
            for fd, _ in events(epoll):
                got = receive[fd](nowhere, CHUNK, socket.MSG_TRUNC)
                if not got:
                    raise LoadError("a bulk connection ended")
                total += got
        return total

    run(now() + int(warmup * 1e9))
    window = Window(pid)
    total = run(now() + int(seconds * 1e9))
    return {"bytes": total, **window.end()}


def echo(
    to: Address, sources: Sources, connections: int, warmup: float, seconds: float, pid: int
) -> dict[str, int]:
    """Send a message on each connection, and the next when it has come back."""
    epoll = select.epoll()
    socks = [sources.connect(to) for _ in range(connections)]
    missing = {sock.fileno(): 0 for sock in socks}
    sent: dict[int, int] = {}
    size = len(MESSAGE)
    read, write = os.read, os.write
    for fd in missing:
        epoll.register(fd, select.EPOLLIN)

    def run(until: int) -> list[int]:
        times = []
        time_ = now()
        while time_ < until:
            for fd, _ in events(epoll):
                data = read(fd, size)
                time_ = now()
                if len(data) != size:
                    # In pieces: seldom, and so the common case stays short.
                    missing[fd] = (missing[fd] or size) - len(data)
                    if not data or missing[fd] < 0:
                        raise LoadError("an echo came back wrong" if data else "an echo ended")
                    if missing[fd]:
                        continue
                times.append(time_ - sent[fd])
                sent[fd] = time_
                write(fd, MESSAGE)
        return times

    for fd in missing:
        sent[fd] = now()
        write(fd, MESSAGE)
    run(now() + int(warmup * 1e9))
    window = Window(pid)
    times = run(now() + int(seconds * 1e9))
    result = window.end()
    return {"echoes": len(times), **result, **percentiles(times)}


def sessions(
    to: Address, sources: Sources, concurrency: int, count: int, close: bool
) -> Iterator[int]:
    """
    Open sessions, `concurrency` at a time, and pass one byte each way through each.

    @return: how long each took up to its byte's return, in nanoseconds. With `close`, it is closed by
        then, and else held until this iterator is.
    """
    epoll = select.epoll()
    open_: dict[int, tuple[socket.socket, int]] = {}
    held = []
    opened = 0

    def start() -> None:
        nonlocal opened
        time_ = now()
        sock = sources.connect(to)
        fd = sock.fileno()
        open_[fd] = sock, time_
        os.write(fd, b".")
        epoll.register(fd, select.EPOLLIN)
        opened += 1

    while opened < min(concurrency, count):
        start()
    while open_:
        for fd, _ in events(epoll):
            sock, time_ = open_.pop(fd)
            if os.read(fd, 2) != b".":
                raise LoadError("a session ended before its byte came back")
            took = now() - time_
            if close:
                sock.close()
            else:
                epoll.unregister(fd)
                held.append(sock)
            if opened < count:
                start()
            yield took


def setup(
    to: Address, sources: Sources, concurrency: int, warmup: int, count: int, pid: int
) -> dict[str, int]:
    """Open, pass one byte each way, close; with as many open at either end of the window."""
    running = sessions(to, sources, concurrency, warmup + count + concurrency, True)
    for _ in range(warmup):
        next(running)
    window = Window(pid)
    times = [next(running) for _ in range(count)]
    result = window.end()
    for _ in running:
        pass
    return {"sessions": count, **result, **percentiles(times)}


def hold(to: Address, sources: Sources, count: int) -> None:
    """Open sessions, say so, and keep them until standard input ends."""
    running = sessions(to, sources, 32, count + 1, False)
    for _ in range(count):
        next(running)
    print(json.dumps({"held": count}), flush=True)
    sys.stdin.buffer.read()


# Servers


def listen(at: Address) -> tuple[socket.socket, select.epoll]:
    """A listening socket whose port is printed, in an epoll set with the standard input."""
    listener = socket.create_server(at, backlog=4096)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.register(0, select.EPOLLIN)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    return listener, epoll


def echo_server(at: Address) -> None:
    """Send back what comes, and close what ends."""
    listener, epoll = listen(at)
    listening = listener.fileno()
    read, write, poll, accept = os.read, os.write, epoll.poll, listener._accept  # type: ignore[attr-defined]
    while True:
        for fd, _ in poll():
            if fd == listening:
                accepted, _ = accept()
                epoll.register(accepted, select.EPOLLIN)
            elif fd == 0:
                return
            else:
                try:
                    if data := read(fd, 4096):
                        write(fd, data)
                    else:
                        os.close(fd)
                except ConnectionError:
                    os.close(fd)


def source_server(at: Address) -> None:
    """Send each client as much as it takes."""
    listener, epoll = listen(at)
    listening = listener.fileno()
    clients: dict[int, socket.socket] = {}
    data = memoryview(bytes(CHUNK))
    while True:
        for fd, _ in epoll.poll():
            if fd == listening:
                client, _ = listener.accept()
                client.setblocking(False)
                clients[client.fileno()] = client
                epoll.register(client.fileno(), select.EPOLLOUT)
            elif fd == 0:
                return
            else:
                try:
                    clients[fd].send(data)
                except BlockingIOError:
                    pass
                except ConnectionError:
                    clients.pop(fd).close()


def address(text: str) -> Address:
    """HOST:PORT"""
    host, _, port = text.rpartition(":")
    return host, int(port)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = ("bulk", "echo", "setup", "hold", "echo-server", "source-server")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("address", type=address, help="of the relay, or to listen on: HOST:PORT")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for bulk and echo")
    parser.add_argument("--warmup", type=float, default=0.3, help="seconds before it counts")
    parser.add_argument("--sessions", type=int, default=10000, help="for setup and hold")
    parser.add_argument("--warmup-sessions", type=int, default=1000)
    parser.add_argument("--sources", default="", help="prefix of source addresses, as 127.1.2")
    parser.add_argument("--pid", type=int, default=0, help="the relay's process")
    parser.add_argument("--cpus", default="", help="to run on, as 0,1")
    return parser.parse_args()


def main() -> None:
    """Do as the command line says."""
    given = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if given.cpus:
        os.sched_setaffinity(0, map(int, given.cpus.split(",")))
    to, sources, pid = given.address, Sources(given.sources), given.pid
    connections = given.connections
    match given.kind:
        case "bulk":
            print(json.dumps(bulk(to, sources, connections, given.warmup, given.seconds, pid)))
        case "echo":
            print(json.dumps(echo(to, sources, connections, given.warmup, given.seconds, pid)))
        case "setup":
            warmup, count = given.warmup_sessions, given.sessions
            print(json.dumps(setup(to, sources, connections, warmup, count, pid)))
        case "hold":
            hold(to, sources, given.sessions)
        case "echo-server":
            echo_server(to)
        case "source-server":
            source_server(to)


if __name__ == "__main__":
    try:
        main()
    except (LoadError, OSError) as wrong:
        sys.exit(f"{sys.argv[1]}: {wrong}")
    except KeyboardInterrupt:
        sys.exit(130)

"""
The loads without TLS: clients, and the servers behind a relay.

One thread, one epoll set, and as few steps in Python per system call as there can be, because the
load shares the machine with what is measured.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

from .window import (
    CHUNK,
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

MESSAGE = b"." * 64

# Clients


def down(
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


def up(
    to: Address, sources: Sources, connections: int, warmup: float, seconds: float, pid: int
) -> dict[str, int]:
    """Send as much as is taken. (What buffers hold is as much at either end of the window.)"""
    epoll = select.epoll()
    socks = {sock.fileno(): sock for sock in (sources.connect(to) for _ in range(connections))}
    for fd, sock in socks.items():
        sock.setblocking(False)
        epoll.register(fd, select.EPOLLOUT)
    data = memoryview(bytes(CHUNK))

    def run(until: int) -> int:
        total = 0
        while now() < until:
            for fd, _ in events(epoll):
                total += socks[fd].send(data)
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
    to: Address,
    sources: Sources,
    concurrency: int,
    count: int,
    held: list[socket.socket] | None = None,
) -> Iterator[int]:
    """
    Open sessions, `concurrency` at a time, and pass one byte each way through each.

    @param held: takes the sockets; None: each is closed when its byte has come back.
    @return: how long each took up to its byte's return, in nanoseconds.
    """
    epoll = select.epoll()
    open_: dict[int, tuple[socket.socket, int]] = {}
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
            if held is None:
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
    running = sessions(to, sources, concurrency, warmup + count + concurrency)
    for _ in range(warmup):
        next(running)
    window = Window(pid)
    times = [next(running) for _ in range(count)]
    result = window.end()
    for _ in running:
        pass
    return {"sessions": count, **result, **percentiles(times)}


def hold(to: Address, sources: Sources, count: int) -> None:
    """Open sessions, each of which carries a byte there and back, and keep them."""
    held: list[socket.socket] = []
    for _ in sessions(to, sources, 32, count, held):
        pass
    keep(held)


def silent(to: Address, sources: Sources, count: int) -> None:
    """Connect, never say anything, and stay."""
    keep([sources.connect(to) for _ in range(count)])


# Servers


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


def sink_server(at: Address) -> None:
    """Let the kernel discard what comes, uncopied."""
    listener, epoll = listen(at)
    listening = listener.fileno()
    clients: dict[int, socket.socket] = {}
    nowhere = bytearray(CHUNK)
    while True:
        for fd, _ in epoll.poll():
            if fd == listening:
                client, _ = listener.accept()
                clients[client.fileno()] = client
                epoll.register(client.fileno(), select.EPOLLIN)
            elif fd == 0:
                return
            else:
                try:
                    got = clients[fd].recv_into(nowhere, CHUNK, socket.MSG_TRUNC)
                except ConnectionError:
                    got = 0
                if not got:
                    clients.pop(fd).close()

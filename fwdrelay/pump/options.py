"""Socket options of both sides: what a relay wants of TCP, see tcp(7)."""

from __future__ import annotations

import contextlib
import socket
from typing import TypeAlias

from ..config import KeepAlive

# How many unanswered probes mean that a peer is gone; they share the time one idle span takes.
_PROBES = 4
# ip(7); Python's socket module has no name for it.
_IP_BIND_ADDRESS_NO_PORT = 24
Options: TypeAlias = tuple[tuple[int, int, int], ...]


def make_options(keepalive: KeepAlive) -> Options:
    """
    @return: the options of a TCP socket, as arguments for setsockopt(2). On a listening socket they are
        inherited by those accepted from it.
    """
    tcp = {"TCP_NODELAY": 1}
    if keepalive.idle:
        idle = max(1, round(keepalive.idle))
        tcp["TCP_KEEPIDLE"] = idle
        tcp["TCP_KEEPINTVL"] = max(1, idle // _PROBES)
        tcp["TCP_KEEPCNT"] = _PROBES
    if keepalive.user_timeout:
        tcp["TCP_USER_TIMEOUT"] = round(keepalive.user_timeout * 1000)
    options = [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in tcp.items()
        if hasattr(socket, name)
    ]
    if keepalive.idle:
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    return tuple(options)


def set_options(sock: socket.SocketType, options: Options) -> None:
    """Set them on `sock`; a Unix socket has none of them."""
    if sock.family != socket.AF_UNIX:
        for level, name, value in options:
            sock.setsockopt(level, name, value)


def leave_port_open(sock: socket.SocketType) -> None:
    """
    Have bind(2) with port 0 take an address only; connect(2) chooses the port. Then one address is good
    for some 28,000 connections to each target, instead of to all of them together.
    """
    with contextlib.suppress(OSError):  # for an old kernel the few ports will do
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)

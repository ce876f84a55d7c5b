"""Socket options of both sides: what a relay wants of TCP, see tcp(7)."""

from __future__ import annotations

import socket

from ..config import KeepAlive

# How many unanswered probes mean that a peer is gone; they share the time one idle span takes.
_PROBES = 4


def set_options(sock: socket.SocketType, keepalive: KeepAlive) -> None:
    """
    Set them on `sock`; on a listening socket they are inherited by those accepted from it.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive.idle:
        idle = max(1, round(keepalive.idle))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", idle),
            ("TCP_KEEPINTVL", max(1, idle // _PROBES)),
            ("TCP_KEEPCNT", _PROBES),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if keepalive.user_timeout and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = round(keepalive.user_timeout * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

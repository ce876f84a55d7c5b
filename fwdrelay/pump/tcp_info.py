"""
What the kernel tells of a TCP connection, whoever has used its socket before: how far it has got, and how its
two directions stand. See tcp(7), TCP_INFO, SIOCINQ and SIOCOUTQ.

In these numbers an end (FIN) counts as one byte. Unix sockets have none of them.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

from attrs import frozen

_INT = struct.Struct("i")
# struct tcp_info of <linux/tcp.h>: tcpi_state comes first, tcpi_bytes_acked and tcpi_bytes_received are here.
_BYTES = struct.Struct("=B119xQQ")
# enum of <net/tcp_states.h>.
_CLOSE = 7
_FIN_CAME = frozenset({6, 8, 9, 11})  # TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING
_FIN_SENT = frozenset({4, 5, 6, 9, 11})  # FIN_WAIT1, FIN_WAIT2 and the above but CLOSE_WAIT
# A look is of no use when something came or left meanwhile.
_LOOKS = 64


@frozen
class TCPLook:
    """
    A connection at one instant.

    @ivar read: what was read from the socket since it was opened, and the end if it has come, read or not.
    @ivar written: what was written to it, and the end if that was said.
    @ivar closed: it is over, both ways: by two ends or by a reset.
    @ivar fin_came: whether the peer has ended; None: that can't be seen any more.
    @ivar fin_sent: whether it was told of an end; None as above.
    """

    read: int
    written: int
    closed: bool = False
    fin_came: bool | None = False
    fin_sent: bool | None = False


def look(sock: socket.SocketType) -> TCPLook | None:
    """
    @return: None where the kernel tells nothing, as of a Unix socket.
    """
    if sock.family == socket.AF_UNIX:
        return None
    try:
        before = _ask(sock)
        for _ in range(_LOOKS):
            unread = queued(sock.fileno(), termios.FIONREAD)
            unacknowledged = queued(sock.fileno(), termios.TIOCOUTQ)
            now = _ask(sock)
            if now == before:
                state, acknowledged, received = now
                closed = state == _CLOSE
                return TCPLook(
                    received - unread,
                    acknowledged + unacknowledged,
                    closed,
                    None if closed else state in _FIN_CAME,
                    None if closed else state in _FIN_SENT,
                )
            before = now
    except (OSError, struct.error):  # another protocol, or a kernel before Linux 4.1
        pass
    return None


def queued(fd: int, request: int) -> int:
    """
    @param request: FIONREAD or TIOCOUTQ, or another ioctl(2) that answers a number; the first may be asked of a
        pipe, too.
    @return: how many bytes wait there.
    """
    answer: int = _INT.unpack(fcntl.ioctl(fd, request, b"\0\0\0\0"))[0]
    return answer


def _ask(sock: socket.SocketType) -> tuple[int, int, int]:
    state, acknowledged, received = _BYTES.unpack(
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES.size)
    )
    return state, acknowledged, received


@frozen
class FlowOrigin:
    """
    Where one flow's count begins in the kernel's numbers of the two sockets that it goes between: what is
    constant while it lasts.

    @ivar read: of the socket it comes from.
    @ivar written: of the socket it goes to; what its pipe holds is counted as written.
    """

    read: int
    written: int

    @classmethod
    def of(
        cls, source: TCPLook | None, sink: TCPLook | None, held: int, passed: int
    ) -> FlowOrigin | None:
        """
        @param held: bytes in its pipe.
        @param passed: bytes that it has carried, those in the pipe included.
        @return: None where the kernel doesn't tell enough.
        """
        if source is None or sink is None or source.fin_came is None or sink.fin_sent is None:
            return None
        return cls(
            source.read - source.fin_came - passed, sink.written - sink.fin_sent + held - passed
        )

    def passed(self, source: TCPLook, sink: TCPLook, held: int) -> int:
        """
        @return: how many bytes it has carried by now.
        """
        return source.read - self.read - self.fin_came(source, sink, held)

    def fin_came(self, source: TCPLook, sink: TCPLook, held: int) -> bool:
        """
        Whether the source has ended. A socket whose reset was told to somebody else reads as if it had (tcp_reset()
        of the kernel leaves nothing but an error, which is told once); but an end that came is one byte that
        was not passed on, unless it was said to the sink.
        """
        if source.fin_came is not None:
            return source.fin_came
        if sink.fin_sent is not False:  # said; or both are closed, and it matters to nobody
            return True
        return source.read - self.read - (sink.written + held - self.written) == 1

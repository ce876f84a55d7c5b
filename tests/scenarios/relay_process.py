"""
A relay as operators run it: `twistd -n fwdrelay` in a process of its own, and plain sockets around it.

A scenario starts a `RelayProcess`, talks through it, and stops it; stopping fails the scenario when
the process printed a traceback, had to be killed, or ended with the wrong status.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

PATIENCE = 30.0
WORKER = "fwdrelay.workers.worker"
"""The module that a worker process runs."""
TWISTD = (
    sys.executable,
    "-W",
    "error::ResourceWarning",
    "-c",
    "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()",
)
_LISTENS = re.compile(r"listens on (\S+) for pool")
# Twisted keeps a descriptor in reserve against EMFILE and never closes it.
_TWISTED_S_RESERVE = re.compile(
    r"Exception ignored in: <_io.FileIO name='/dev/null'.*\nResourceWarning: unclosed file .*'/dev/null'.*"
)
TROUBLE = re.compile(
    r"Traceback|Unhandled|ResourceWarning|never awaited|IllegalTransition|#critical"
)


class RelayProcess:
    """
    `twistd -n fwdrelay OPTIONS`, listening on a free port of 127.0.0.1 unless the options say otherwise.

    @param within: a command that becomes the relay, such as `unshare -m …`.
    @ivar addresses: what it listens on, in order: `(host, port)`, or a path for Unix.
    @ivar lines: all it has printed so far.
    @ivar at_rest: how many descriptors it has open while no session is.
    """

    def __init__(
        self,
        *options: str,
        listen: bool = True,
        environ: dict[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
        pass_fds: tuple[int, ...] = (),
        within: tuple[str, ...] = (),
    ) -> None:
        if listen:
            options = ("--port", "0", "--interface", "127.0.0.1", *options)
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._unheld = threading.Event()
        self._unheld.set()
        self.process = subprocess.Popen(
            [*within, *TWISTD, "-n", "--pidfile=", "fwdrelay", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})},
            preexec_fn=preexec,
            pass_fds=pass_fds,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._stopped = self._told_to_stop = False
        try:
            self.wait_for(lambda line: "is ready" in line)
        except BaseException:
            self.kill()
            raise
        self.addresses = [_address(m[1]) for line in self.lines if (m := _LISTENS.search(line))]
        self.at_rest = self.descriptors()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self._unheld.wait()
                with self._grown:
                    self.lines.append(line.rstrip("\n"))
                    self._grown.notify_all()
        with self._grown:
            self.lines.append("(its output ended)")
            self._grown.notify_all()

    @contextmanager
    def output_unread(self) -> Iterator[None]:
        """Read none of its output for the time of a `with` block."""
        self._unheld.clear()
        try:
            yield
        finally:
            self._unheld.set()

    @property
    def port(self) -> int:
        """The first TCP port."""
        return next(a[1] for a in self.addresses if isinstance(a, tuple))

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, wanted: Callable[[str], bool], start: int = 0) -> str:
        """
        @return: the first line from `start` on that is `wanted`; fails when the process ends or nothing
            comes for `PATIENCE` seconds.
        """
        deadline = time.monotonic() + PATIENCE
        with self._grown:
            while True:
                for line in self.lines[start:]:
                    if wanted(line):
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or (self.lines and self.lines[-1] == "(its output ended)"):
                    raise AssertionError(
                        "not printed; the relay's last lines:\n" + "\n".join(self.lines[-40:])
                    )
                self._grown.wait(left)

    def ended(self, count: int = 1) -> list[dict[str, Any]]:
        """
        @return: the access log's entries (JSON) as soon as there are `count` or more.
        """
        entries: list[dict[str, Any]] = []
        looked_at = 0
        deadline = time.monotonic() + PATIENCE
        while len(entries) < count:
            with self._grown:
                while len(self.lines) == looked_at:
                    if not self._grown.wait(deadline - time.monotonic()):
                        raise AssertionError(f"{len(entries)} of {count} sessions ended")
                new, looked_at = self.lines[looked_at:], len(self.lines)
            entries += [json.loads(line) for line in new if line.startswith("{")]
            if new[-1] == "(its output ended)" and len(entries) < count:
                raise AssertionError(f"{len(entries)} of {count} sessions ended")
        return entries

    def connect(self, **options: Any) -> socket.socket:
        """
        @return: a connection to its first address, with `PATIENCE` for a time-out; see `connect`.
        """
        return connect(self.addresses[0], **options)

    def turn_away(self) -> None:
        """Be a client that is reset without having been told anything."""
        told = connect_and_be_reset(self.addresses[0])
        if told:
            raise AssertionError(f"a client that should have been turned away was told {told!r}")

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def wait_for_descriptors(self, most: int) -> None:
        """Wait until it has at most that many open."""
        wait_until(
            lambda: self.descriptors() <= most,
            lambda: f"{self.descriptors()} descriptors, wanted {most}",
        )

    def memory(self) -> int:
        """Its resident memory, in bytes."""
        with open(f"/proc/{self.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def children(self) -> list[int]:
        """The processes that it has started and that have not been waited for, in the order of their start."""
        return _children(self.pid)

    def workers(self) -> list[int]:
        """Those of them that relay, or are ready to."""
        return [each for each in self.children() if WORKER in _command(each)]

    def family(self) -> list[int]:
        """It and all that it has started."""
        return [self.pid, *self.children()]

    def family_descriptors(self) -> dict[int, int]:
        """How many descriptors each of the family has open."""
        return {each: len(found) for each in self.family() if (found := _open_files(each))}

    def family_pipes(self) -> set[str]:
        """The pipes that any of the family has open."""
        return {
            name for each in self.family() for name in _open_files(each) if name.startswith("pipe:")
        }

    def family_memory(self) -> int:
        """
        What all of the family take together, in bytes; what several share counts once (`Pss` of proc(5)).
        """
        return sum(map(_proportional_memory, self.family()))

    def wait_for_family_descriptors(self, most: int) -> None:
        """Wait until all of the family have at most that many open together."""
        wait_until(
            lambda: sum(self.family_descriptors().values()) <= most,
            lambda: f"{self.family_descriptors()} descriptors, wanted {most}",
        )

    def signal(self, number: signal.Signals) -> None:
        """Send it; after one that stops, `stop` only waits for the end."""
        self._told_to_stop |= number in (signal.SIGTERM, signal.SIGINT)
        self.process.send_signal(number)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """
        Stop it for the time of a `with` block. Who connects meanwhile is accepted afterwards, and all he has said
        by then is there at once, however slow the test is: for time-outs that are short.
        """
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self, status: int = 0) -> None:
        """SIGTERM, wait, and fail on anything that should not have been."""
        if self._stopped:
            return
        self._stopped = True
        self._unheld.set()
        if not self._told_to_stop and self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                "did not stop; its last lines:\n" + "\n".join(self.lines[-40:])
            ) from None
        self._reader.join()
        output = _TWISTED_S_RESERVE.sub("", "\n".join(self.lines))
        if self.process.returncode != status or TROUBLE.search(output):
            raise AssertionError(f"ended with {self.process.returncode}; it printed:\n{output}")

    def kill(self) -> None:
        """SIGKILL, for cleaning up. Processes that it leaves behind may have its output open still."""
        self._stopped = True
        self._unheld.set()
        self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    # One file for each thread; a process may end while it is looked at.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{pid}/task/{thread}/children") as children,
            ):
                found += map(int, children.read().split())
    return sorted(found)


def _command(pid: int) -> list[str]:
    """What it was started as; nothing, if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline") as command:
            return command.read().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _open_files(pid: int) -> list[str]:
    """What its descriptors are; nothing, if it has ended."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def _proportional_memory(pid: int) -> int:
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/smaps_rollup") as rollup,
    ):
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _address(text: str) -> tuple[str, int] | str:
    if text.startswith("unix:"):
        return text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    return ("127.0.0.1" if host in ("0.0.0.0", "::") else host), int(port)


@contextmanager
def relaying(*options: str, **more: Any) -> Iterator[RelayProcess]:
    """A relay for a `with` block; it is stopped, and its output checked, at the end."""
    relay = RelayProcess(*options, **more)
    try:
        yield relay
    except BaseException:
        relay.kill()
        print("\n".join(relay.lines))
        raise
    relay.stop()


def connect(
    address: tuple[str, int] | str, *, receive_buffer: int = 0, source: str = ""
) -> socket.socket:
    """
    @param source: the client's address; empty: the system's choice.
    @param receive_buffer: bytes of SO_RCVBUF, for a reader that takes little; 0: the system's.
    """
    family = (
        socket.AF_UNIX
        if isinstance(address, str)
        else socket.AF_INET6
        if ":" in address[0]
        else socket.AF_INET
    )
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        if source:
            sock.bind((source, 0))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_and_be_reset(address: tuple[str, int] | str) -> bytes:
    """
    For a client that is turned away; if at once, it may hear of it while it still connects.

    @return: what it was told before the reset. A clean end is an error.
    """
    try:
        sock = connect(address)
    except ConnectionResetError:
        return b""
    with sock:
        return read_until_reset(sock)


class Upstream:
    """A listening socket that a scenario accepts from itself; `target` is its specification for --target."""

    def __init__(self, path: str = "", *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.bind(path or (host, port))
        self.socket.listen(1024)
        if path:
            self.target = f"unix:{path}" if path[0] != "\0" else f"unix:@{path[1:]}"
        else:
            self.target = f"{host}:{self.socket.getsockname()[1]}"

    def accept(self) -> socket.socket:
        """
        @return: the next connection, with `PATIENCE` for a time-out.
        """
        accepted, _ = self.socket.accept()
        accepted.settimeout(PATIENCE)
        return accepted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()


def read_all(sock: socket.socket) -> bytes:
    """All bytes up to the peer's end; a reset is an error (`ConnectionResetError`)."""
    chunks = []
    while chunk := sock.recv(1 << 18):
        chunks.append(chunk)
    return b"".join(chunks)


def read_until_reset(sock: socket.socket) -> bytes:
    """All bytes up to the peer's reset; a clean end is an error."""
    chunks = []
    try:
        while chunk := sock.recv(1 << 18):
            chunks.append(chunk)
    except ConnectionResetError:
        return b"".join(chunks)
    raise AssertionError("ended cleanly, and should have been reset")


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """That many bytes."""
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise AssertionError(f"ended after {len(data)} of {count} bytes")
        data += chunk
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_until(
    true: Callable[[], bool], explain: Callable[[], str] = lambda: "it never came true"
) -> None:
    """Poll for what can't be awaited, such as another process's state."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(explain())
        time.sleep(0.01)

"""
Real programs around the relay: found on this machine, run in folders and on ports of their own, ended.

Nothing here touches what the machine itself runs: a server gets its whole configuration, its folder
and its port from the scenario that starts it, and no environment of the caller's. What a program
printed is shown when the scenario around it fails.
"""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0
"""Seconds after which a program that was to start, to finish or to end has failed to."""

_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_ENVIRONMENT = {"PATH": ":".join(_FOLDERS), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@functools.cache
def find(name: str) -> str | None:
    """
    Where a program is, or None. PostgreSQL's are taken from the newest version's own folder, where
    Debian keeps the servers; what it has on the path is a wrapper that looks for the machine's clusters.
    """
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    newest = sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)
    return shutil.which(name, path=":".join([*map(str, newest[:1]), *_FOLDERS]))


def skip_unless_installed(*names: str) -> None:
    """Skip the test that asks, where one of these programs is missing."""
    missing = [name for name in names if find(name) is None]
    if missing:
        raise unittest.SkipTest(f"not installed here: {', '.join(missing)}")


def free_port() -> int:
    """
    A port on 127.0.0.1 that nobody listens on. It is below those that the kernel gives to outgoing
    connections, so none of those takes it before the program that it is meant for does.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(min(10240, ephemeral - 1024), ephemeral)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for a `with` block; its path is short enough for Unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="fwdrelay-") as path:
        yield Path(path)


class Program:
    """
    A server that runs until it is stopped, or until this process ends, however it does.

    @ivar output: all it has printed so far.
    """

    def __init__(self, *command: str, ready: str, end: signal.Signals = signal.SIGTERM) -> None:
        """
        Start it, and wait until it says that it is ready.

        @param command: the first word is a program's name; see `find`.
        @param ready: what it prints then, at least.
        @param end: the signal that stops it.
        """
        self.output = ""
        self._end = end
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            [*_tied_to_us(), *_found(command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_ENVIRONMENT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for(ready)
        except BaseException:
            self._kill()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self._add(line)
        self._add("(its output ended)")

    def _add(self, text: str) -> None:
        with self._grown:
            self.output += text
            self._grown.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed that; fails when it ends before, or nothing comes for long."""
        deadline = time.monotonic() + PATIENCE
        with self._grown:
            while text not in self.output:
                left = deadline - time.monotonic()
                if left <= 0 or self.output.endswith("(its output ended)"):
                    raise AssertionError(f"never printed {text!r}, but:\n{self.output}")
                self._grown.wait(left)

    def finish(self) -> None:
        """Wait until it ends by itself, which must be with status 0."""
        self._wait()
        if self.process.returncode != 0:
            raise AssertionError(
                f"ended with {self.process.returncode}; it printed:\n{self.output}"
            )

    def stop(self) -> None:
        """End it, and fail when it has ended before, as it was not asked to."""
        if self.process.poll() is not None:
            self.finish()
        else:
            self.process.send_signal(self._end)
            self._wait()

    def _wait(self) -> None:
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"did not end; it printed:\n{self.output}") from None
        self._reader.join()

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@contextmanager
def running(*command: str, ready: str, end: signal.Signals = signal.SIGTERM) -> Iterator[Program]:
    """A `Program` for a `with` block; what it printed is shown when the block fails."""
    program = Program(*command, ready=ready, end=end)
    try:
        yield program
    except BaseException:
        program.stop()
        print(f"{command[0]} printed:\n{program.output}")
        raise
    program.stop()


def run(*command: str, stdin: Path | None = None, stdout: Path | None = None) -> str:
    """
    Run a program to its end, which must be with status 0.

    @param stdin: a file that it reads; without one there is nothing to read.
    @param stdout: a file that it writes to.
    @return: what it printed, unless that went to `stdout`.
    """
    with contextlib.ExitStack() as files:
        done = subprocess.run(
            [*_tied_to_us(), *_found(command)],
            stdin=files.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL,
            stdout=files.enter_context(stdout.open("wb")) if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
            timeout=PATIENCE,
            check=False,
        )
    printed = "" if stdout else done.stdout.decode(errors="replace")
    if done.returncode != 0:
        complaint = done.stderr.decode(errors="replace")
        raise AssertionError(f"{command} ended with {done.returncode}:\n{printed}{complaint}")
    return printed


def _found(command: tuple[str, ...]) -> list[str]:
    path = find(command[0])
    assert path is not None, "ask skip_unless_installed first"
    return [path, *command[1:]]


def _tied_to_us() -> list[str]:
    """What runs a program so that the kernel ends it should this process die before it."""
    setpriv = find("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []

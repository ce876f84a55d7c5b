"""
One sample: a relay is started, put under one line's load, and ended, and so is all that was started
for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs

from . import cost
from .lines import Line
from .relays import Place, Relay

PATIENCE = 15.0
ENOUGH = 65536
PLACEMENTS = ("apart", "together", "off")
PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).resolve().parent.parent
_libc = ctypes.CDLL(None)
# Each sample has addresses that no other had, nor any of a benchmark that ran a minute ago: what is in
# TIME_WAIT from one distorts no other.
_networks = itertools.count(random.randrange(1 << 20))


class Failed(Exception):
    """A sample came to nothing, and why."""


@attrs.frozen
class Cores:
    """Which cores the relay runs on and which the load; empty: wherever the kernel puts them."""

    relay: list[int] = attrs.field(factory=list)
    load: list[int] = attrs.field(factory=list)

    @classmethod
    def placed(cls, how: str) -> Cores:
        """
        @param how: `apart`: the last core for the relay and the others for the load; `together`: the
            last core for all; `off`.
        """
        *others, last = sorted(os.sched_getaffinity(0))
        if how == "together":
            return cls([last], [last])
        return cls([last], others) if how == "apart" and others else cls()


@attrs.frozen
class Amount:
    """
    How much of everything.

    @ivar sessions: set up and closed in a sample.
    @ivar idle: sessions held open.
    """

    seconds: float
    warmup: float
    sessions: int
    idle: int


def descriptors() -> int:
    """How many descriptors a process may have open (its hard limit)."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def raise_limit() -> None:
    """Let processes have as many descriptors as any relay needs here, where we are allowed to."""
    wanted = max(descriptors(), ENOUGH)
    with contextlib.suppress(ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))


def idle_sessions(relay: Relay, wanted: int) -> tuple[int, str]:
    """How many idle sessions a relay is to hold, and why not as many as wanted."""
    possible = (descriptors() - 200) // relay.each
    if relay.idle and relay.idle < min(wanted, possible):
        return relay.idle, f"{relay.idle} sessions, it has a process for each"
    if possible < wanted:
        return possible, f"{possible} sessions, of {relay.each} descriptors out of {descriptors()}"
    return wanted, ""


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends the process and its group, by its id, with the block."""
    try:
        yield process
    finally:
        for each, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, PATIENCE)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, each)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _scratch(stack: contextlib.ExitStack) -> IO[bytes]:
    """A file for what a process prints."""
    return stack.enter_context(tempfile.TemporaryFile())


class Load:
    """A process of `bench.load`."""

    def __init__(self, stack: contextlib.ExitStack, cores: Cores, *arguments: object) -> None:
        self.kind = str(arguments[0])
        self._errors = _scratch(stack)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-S", "-m", "bench.load", *map(str, arguments)),
                *("--cpus", ",".join(map(str, cores.load))),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            cwd=ROOT,
        )
        stack.enter_context(ended(self._process))

    def says(self, patience: float) -> dict[str, int]:
        """The JSON object that it prints next."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise Failed(said[-1] if said else f"{self.kind} said nothing for {patience:.0f} s")
        found: dict[str, int] = json.loads(line)
        return found


class Running:
    """A relay that runs, ended with `stack`."""

    def __init__(
        self, stack: contextlib.ExitStack, relay: Relay, cores: Cores, place: Place
    ) -> None:
        self._output = _scratch(stack)
        self.place = place

        def before_exec() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            hard = place.descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            if cores.relay:
                os.sched_setaffinity(0, cores.relay)

        self.process = subprocess.Popen(
            relay.command(place),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **relay.environ()},
            cwd=place.folder,
            preexec_fn=before_exec,
        )
        stack.enter_context(ended(self.process))
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection((place.host, place.port), 5).close()
                return
            self.check()
            if time.monotonic() > deadline:
                raise Failed(f"does not listen: {self.said() or 'and says nothing'}")
            time.sleep(0.02)

    def said(self) -> str:
        """What it has printed, the last of it."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()[-2000:]

    def check(self) -> None:
        """Raises when it has ended, or has printed a traceback."""
        if (status := self.process.poll()) is not None:
            raise Failed(f"ended with status {status}: {self.said()}")
        if "Traceback" in (said := self.said()):
            raise Failed(f"has an error: {said}")


def unused_port(host: str) -> int:
    """A port at `host` that nobody listens on."""
    with socket.create_server((host, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Sample:
    """
    One relay under one line's load, with the processes of both; a context manager, which ends them.

    @ivar running: the relay.
    """

    def __init__(self, relay: Relay, line: Line, amount: Amount, cores: Cores) -> None:
        self._relay, self._line, self._amount, self._cores = relay, line, amount, cores
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Sample:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        first, second = divmod(next(_networks) % (1 << 14), 256)
        self._sources = f"127.{first + 64}.{second}"
        host, to_host = f"127.{first + 128}.{second}.1", f"127.{first + 128}.{second}.2"
        server = "source-server" if self._line.kind == "bulk" else "echo-server"
        # Entered first and ended last: the load's end is what lets a relay end at once.
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)  # a relay may change its user
        relays = self._stack.enter_context(contextlib.ExitStack())
        backend = Load(self._stack, self._cores, server, f"{to_host}:0")
        to_port = backend.says(PATIENCE)["port"]
        place = Place(host, unused_port(host), to_host, to_port, descriptors(), folder)
        self.running = Running(relays, self._relay, self._cores, place)

    def _load(self, kind: str, *arguments: object) -> Load:
        place = self.running.place
        common = ("--sources", self._sources, "--pid", self.running.process.pid)
        to = f"{place.host}:{place.port}"
        return Load(self._stack, self._cores, kind, to, *common, *arguments)

    def hold(self) -> int:
        """
        Open the idle sessions.

        @return: how many there are.
        """
        count, _ = idle_sessions(self._relay, self._amount.idle)
        self._load("hold", "--sessions", count).says(PATIENCE + count / 100)
        return count

    def take(self) -> dict[str, int]:
        """What was measured. Raises `Failed` where a relay did."""
        try:
            found = self._memory() if self._line.kind == "hold" else self._under_load()
        except Failed as failed:
            self.running.check()  # knows better why
            raise failed from None
        self.running.check()
        return found

    def _memory(self) -> dict[str, int]:
        pid = self.running.process.pid
        # What the very first sessions cost is not a session's.
        warmup = ("--warmup-sessions", 0, "--sessions", 64, "--connections", 8)
        self._load("setup", *warmup).says(PATIENCE)
        time.sleep(0.3)
        before = cost.memory(pid)
        count = self.hold()
        time.sleep(0.5)
        return {"before": before, "after": cost.memory(pid), "sessions": count}

    def _under_load(self) -> dict[str, int]:
        found: dict[str, int] = {}
        if self._line.idle:
            found["idle"] = self.hold()
        found.update(self.start_load().says(PATIENCE + self._amount.seconds + 30))
        return found

    def start_load(self) -> Load:
        """The line's client, which says what it measured when it is through."""
        amount = self._amount
        return self._load(
            self._line.kind,
            *("--connections", self._line.connections),
            *("--seconds", amount.seconds, "--warmup", amount.warmup),
            *("--sessions", amount.sessions, "--warmup-sessions", max(64, amount.sessions // 10)),
        )


def take(relay: Relay, line: Line, amount: Amount, cores: Cores) -> dict[str, Any]:
    """One sample of a line: what was measured, or an `error` that says why nothing was."""
    try:
        with Sample(relay, line, amount, cores) as sample:
            return {"values": sample.take()}
    except Failed as failed:
        return {"error": str(failed)}

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import attrs

from . import cost, credentials
from .lines import TLS, Line
from .relays import Place, Relay

PATIENCE = 15.0
SETTLING = 6.0
ENOUGH = 65536
PLACEMENTS = ("apart", "together", "off")
SERVERS = {"down": "source-server", "stalled": "source-server", "up": "sink-server"}
"""Behind the relay, by the client's kind; else one that echoes."""
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
        return relay.idle, f"{relay.idle} sessions, it has a process or a thread for each"
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

    def __init__(
        self,
        stack: contextlib.ExitStack,
        cores: Cores,
        environ: Mapping[str, str],
        *arguments: object,
    ) -> None:
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
            env={**os.environ, **environ},
            cwd=ROOT,
        )
        stack.enter_context(ended(self._process))

    def says(self, patience: float) -> dict[str, int]:
        """The JSON object that it prints next."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise Failed(self._wrong() or f"{self.kind} said nothing for {patience:.0f} s")
        found: dict[str, int] = json.loads(line)
        return found

    def check(self) -> None:
        """Raises when it has ended."""
        if self._process.poll() is not None:
            raise Failed(self._wrong() or f"{self.kind} ended with {self._process.returncode}")

    def _wrong(self) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return said[-1] if said else ""


class Running:
    """A relay that runs, ended with `stack`."""

    def __init__(
        self, stack: contextlib.ExitStack, relay: Relay, cores: Cores, place: Place
    ) -> None:
        self._output = _scratch(stack)
        self._cores = cores
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
            if relay.ready in self._printed():
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection((place.host, place.port), 5).close()
                    return
            self.check()
            if time.monotonic() > deadline:
                raise Failed(f"does not listen: {self.said() or 'and says nothing'}")
            time.sleep(0.02)

    def pin(self) -> None:
        """Put its processes where they belong: hitch's choose a core for themselves when they start."""
        for each in cost.tree(self.process.pid) if self._cores.relay else []:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(each, self._cores.relay)

    def said(self) -> str:
        """What it has printed, the last of it."""
        return self._printed().strip()[-2000:]

    def _printed(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

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


def settled(pid: int) -> int:
    """A relay's memory in bytes, once it hardly changes any more, or after some seconds."""
    deadline = time.monotonic() + SETTLING
    now = cost.memory(pid)
    while True:
        time.sleep(0.4)
        before, now = now, cost.memory(pid)
        if abs(now - before) <= before / 200 or time.monotonic() > deadline:
            return now


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
        # Entered first and ended last: the load's end is what lets a relay end at once.
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)  # a relay may change its user
        relays = self._stack.enter_context(contextlib.ExitStack())
        line = self._line
        self._made = None if line.tls == TLS.NONE else credentials.make(folder, line.key)
        server = SERVERS.get(line.kind, "echo-server")
        own: list[object] = []
        if self._made and line.tls == TLS.ORIGINATED:
            own = ["--certificate", self._made.certificate, "--key", self._made.key]
        environ = self._made.environ if self._made else {}
        self._backend = Load(self._stack, self._cores, environ, server, f"{to_host}:0", *own)
        place = Place(
            host,
            unused_port(host),
            to_host,
            self._backend.says(PATIENCE)["port"],
            descriptors(),
            folder,
            terminate=self._made if line.tls == TLS.TERMINATED else None,
            originate=self._made if line.tls == TLS.ORIGINATED else None,
        )
        self.running = Running(relays, self._relay, self._cores, place)

    def _load(self, stack: contextlib.ExitStack, kind: str, *arguments: object) -> Load:
        place = self.running.place
        common = ["--sources", self._sources, "--pid", self.running.process.pid]
        environ: Mapping[str, str] = {}
        if shown := place.terminate:
            common += ["--authority", shown.authority, "--name", credentials.NAME]
            environ = shown.environ
        to = f"{place.host}:{place.port}"
        self.running.pin()
        return Load(stack, self._cores, environ, kind, to, *common, *arguments)

    def hold(self) -> tuple[Load, int]:
        """
        Open the sessions that are held.

        @return: who holds them, and how many there are.
        """
        count, _ = idle_sessions(self._relay, self._line.count(self._amount.idle))
        kind = self._line.kind if self._line.weighed else "hold"
        load = self._load(self._stack, kind, "--sessions", count)
        load.says(PATIENCE + count / 100)
        return load, count

    def take(self) -> dict[str, int]:
        """What was measured. Raises `Failed` where a relay did."""
        try:
            found = self._memory() if self._line.weighed else self._under_load()
        except Failed as failed:
            self._backend.check()  # these two know better why
            self.running.check()
            raise failed from None
        self._backend.check()
        self.running.check()
        return found

    def _memory(self) -> dict[str, int]:
        pid = self.running.process.pid
        # What the very first sessions cost is not a session's.
        with contextlib.ExitStack() as stack:
            if self._line.kind == "stalled":
                self._load(stack, "stalled", "--sessions", 2).says(PATIENCE)
            else:
                warmup = ("--warmup-sessions", 0, "--sessions", 64, "--connections", 8)
                self._load(stack, "setup", *warmup).says(PATIENCE)
        before, open_before = settled(pid), cost.descriptors(pid)
        load, count = self.hold()
        # Of a silent client, the kernel need not tell for a while (TCP_DEFER_ACCEPT, which hitch asks for).
        deadline = time.monotonic() + SETTLING
        while (grown := cost.descriptors(pid) - open_before) < count:
            if time.monotonic() > deadline:
                raise Failed(f"has {grown} more descriptors for {count} sessions")
            time.sleep(0.1)
        after = settled(pid)
        load.check()
        return {"before": before, "after": after, "sessions": count}

    def _under_load(self) -> dict[str, int]:
        patience = PATIENCE + self._amount.seconds + 30
        if not self._line.idle:
            return self.start_load().says(patience)
        beside, count = self.hold()
        found = {"idle": count, **self.start_load().says(patience)}
        beside.check()
        return found

    def start_load(self) -> Load:
        """The line's client, which says what it measured when it is through."""
        amount, line = self._amount, self._line
        sessions = line.count(amount.sessions)
        return self._load(
            self._stack,
            line.kind,
            *("--connections", line.connections),
            *("--seconds", amount.seconds, "--warmup", amount.warmup),
            *("--sessions", sessions, "--warmup-sessions", max(64, sessions // 10)),
            *(["--resume"] if line.resumed else []),
        )


def take(relay: Relay, line: Line, amount: Amount, cores: Cores) -> dict[str, Any]:
    """One sample of a line: what was measured, or an `error` that says why nothing was."""
    try:
        with Sample(relay, line, amount, cores) as sample:
            return {"values": sample.take()}
    except Failed as failed:
        return {"error": str(failed)}

"""A relay with workers, as scenarios see its processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.scenarios.admin import Admin
from tests.scenarios.relay_process import RelayProcess, relaying, wait_until


class Workers:
    """
    Those of one relay, by what its API says of them.

    @ivar relay: the supervisor's process.
    @ivar admin: its API.
    @ivar killed: when workers were killed, by `time.monotonic`.
    """

    def __init__(self, relay: RelayProcess) -> None:
        self.relay = relay
        self.admin = Admin.of(relay)
        self.killed: list[float] = []

    def rows(self) -> list[dict[str, Any]]:
        """What the API says."""
        rows: list[dict[str, Any]] = self.admin.get("/v1/status")["workers"]
        return rows

    def pids(self) -> list[int]:
        """Of those that relay, by their numbers."""
        return [row["pid"] for row in self.rows() if row["state"] == "running"]

    def sessions(self) -> list[dict[str, Any]]:
        """All there are."""
        sessions: list[dict[str, Any]] = self.admin.get("/v1/sessions?limit=0")["sessions"]
        return sessions

    def wait_for_kept(self, count: int) -> None:
        """Wait until so many sessions outlive their worker."""
        wait_until(
            lambda: sum(each["kept"] for each in self.sessions()) >= count,
            lambda: f"{self.sessions()}",
        )

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """End a worker, and wait until another one relays in its place."""
        start = len(self.relay.lines)
        worker = next(row["worker"] for row in self.rows() if row["pid"] == pid)
        os.kill(pid, number)
        self.killed.append(time.monotonic())
        self.relay.wait_for(
            lambda line: f"Worker {worker} (" in line and line.endswith("relays."), start
        )

    def upgrade(self) -> str:
        """
        SIGUSR2, and wait for what comes of it.

        @return: the line that tells of it.
        """
        start = len(self.relay.lines)
        self.relay.signal(signal.SIGUSR2)
        return self.relay.wait_for(
            lambda line: "upgraded in place" in line or "Not upgraded" in line, start
        )


@contextmanager
def relaying_with(count: int, *options: str, **more: Any) -> Iterator[tuple[RelayProcess, Workers]]:
    """A relay with so many workers, for a `with` block."""
    admin = ("--admin", "127.0.0.1:0")
    with relaying("--workers", str(count), *admin, *options, **more) as relay:
        yield relay, Workers(relay)

"""
A load that misses nothing: sessions of many kinds through a relay, each of which checks every byte and how
it ends.

The sessions are in a process of their own (`tests.scenarios.mixed_traffic`), which neither waits for a test nor
makes it wait:

    with MixedLoad(sessions=60) as load, relaying("--target", load.target) as relay:
        load.start(relay.addresses[0])
        load.wait_until_open(60)
        ...
        load.wait_until_all_moved()
        load.stop()
        self.assertEqual(load.failures, [])
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from attrs import frozen

from tests.scenarios.mixed_traffic import KINDS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
WHOLE = tuple(name for name, kind in KINDS.items() if not kind.resets)
"""The kinds that end as both their ends want."""
RESET = tuple(name for name, kind in KINDS.items() if kind.resets)
"""Those that one end resets, which the other has to hear of."""


@frozen(kw_only=True)
class Failure:
    """
    A session that met what it should not have.

    Times are `time.monotonic`'s, which all processes share.

    @ivar error: which end met it, and what it was.
    @ivar client: the address that the relay knows the client by.
    @ivar begun: when the client began to connect; `opened`: when the upstream had answered, None if it never did;
        `at`: when it failed.
    @ivar ends: which ends had ended, and which had heard of it.
    @ivar up: bytes that the upstream had; `down`: that the client had; what was sent is at least as much.
    """

    kind: str
    error: str
    client: str
    begun: float
    opened: float | None
    at: float
    up: int
    down: int
    sent_up: int
    sent_down: int
    number: int
    ends: Sequence[str] = ()

    @property
    def age(self) -> float:
        """How long it had been open when it failed, in seconds."""
        return 0.0 if self.opened is None else self.at - self.opened

    def was_young(self, moments: Iterable[float], age: float) -> bool:
        """
        @param moments: when something was done to the relay that young sessions need not survive.
        @return: whether it had begun at one of them, and had not been open for `age` seconds yet.
        """
        opened = self.at if self.opened is None else self.opened
        return any(self.begun <= each < opened + age for each in moments)

    def __str__(self) -> str:
        opened = "never opened" if self.opened is None else f"opened at {self.opened:.3f}"
        return (
            f"{self.kind} #{self.number} of {self.client}, {opened}, failed at {self.at:.3f} (age {self.age:.3f}s): "
            f"{self.error}; up {self.up} of {self.sent_up}, down {self.down} of {self.sent_down} bytes; "
            f"{', '.join(self.ends) or 'no end was said'}"
        )


class MixedLoad:
    """
    Sessions of many kinds, so many at a time, through one address of a relay; a context manager.

    @param sessions: how many at a time.
    @param kinds: which, of `KINDS`; each as often as any other.
    @param lasting: whether each goes on until `stop`; else they follow each other.
    @param largest: bytes that one way of a session carries at most, unless it is lasting.
    @param rate: bytes a second of each way of a session that is lasting; 0: as fast as they can.
    @param seconds: how long a session takes, about, unless it is lasting: up to twice as long.
    @ivar target: the upstream, for `--target`.
    @ivar failures: what went wrong so far.
    @ivar counts: how many sessions have ended as they should, by kind.
    @ivar open: how many are open; `moved`: bytes that have arrived, both ways of all sessions.
    """

    def __init__(
        self,
        *,
        sessions: int = 40,
        kinds: Sequence[str] = (*WHOLE, *RESET),
        lasting: bool = False,
        largest: int = 2 << 20,
        rate: int = 0,
        seconds: float = 0.5,
        seed: int = 1,
    ) -> None:
        self.failures: list[Failure] = []
        self.counts: Counter[str] = Counter()
        self.open = 0
        self.moved = 0
        self.target = ""
        self._marks = 0
        self._marked = 0
        self._done = False
        self._ended = False
        self._news = threading.Condition()
        told = {
            "sessions": sessions,
            "kinds": list(kinds),
            "lasting": lasting,
            "largest": largest,
            "rate": rate,
            "seconds": seconds,
            "seed": seed,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scenarios.mixed_traffic", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait(lambda: self.target != "", "an upstream")
        except BaseException:
            self.close()
            raise

    def start(self, address: tuple[str, int] | str) -> None:
        """
        Begin.

        @param address: where the relay listens, whose target is `target`.
        """
        self._tell(do="start", address=address)

    def wait_until_open(self, count: int) -> None:
        """Wait until so many are open at a time."""
        self._wait(lambda: self.open >= count, f"{count} open sessions")

    def wait_until_ended(self, count: int) -> None:
        """Wait until so many more have ended as they should."""
        before = self.counts.total()
        self._wait(lambda: self.counts.total() >= before + count, f"{count} sessions that end")

    def wait_until_failed(self) -> None:
        """Wait until there is a failure."""
        self._wait(lambda: bool(self.failures), "a failure")

    def wait_until_all_moved(self, patience: float = PATIENCE) -> None:
        """Wait until each that is open now, but for idle ones, has had some more bytes or has ended."""
        self._marks += 1
        mark = self._marks
        self._tell(do="mark", mark=mark)
        self._wait(lambda: self._marked >= mark, "sessions that go on", patience)

    def stop(self, patience: float = PATIENCE) -> None:
        """
        Let all sessions come to their end; what has not after `patience` seconds is a failure.
        """
        self._tell(do="stop", patience=patience)
        self._wait(lambda: self._done, "the end of all sessions", patience + PATIENCE)
        self._process.wait(PATIENCE)

    def old_failures(self, moments: Iterable[float], age: float) -> list[Failure]:
        """
        @return: the failures of sessions that were not younger than `age` seconds at any of these moments.
        """
        moments = list(moments)
        return [each for each in self.failures if not each.was_young(moments, age)]

    def close(self) -> None:
        """End its process, whatever it does."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _tell(self, **values: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()

    def _wait(self, true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        with self._news:
            while not true():
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(
                        f"waited for {what}; {self.open} are open, {dict(self.counts)} have ended, "
                        f"{len(self.failures)} failed"
                        + "".join(f"\n{f}" for f in self.failures[:20])
                    )
                self._news.wait(left)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                with self._news:
                    self._take(json.loads(line))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _take(self, told: dict[str, Any]) -> None:
        if "target" in told:
            self.target = told["target"]
        elif "failure" in told:
            self.failures.append(Failure(**told["failure"]))
        elif "marked" in told:
            self._marked = max(self._marked, told["marked"])
        elif "done" in told:
            self._done = True
        else:
            self.open, self.moved = told["open"], told["bytes"]
            self.counts = Counter(told["counts"])

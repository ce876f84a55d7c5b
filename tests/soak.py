"""
Kill workers, again and again, under a load that misses nothing: `python -m tests.soak --kills 300`.

A relay with workers whose sessions survive crashes is started, and many sessions of all kinds go through it. Meanwhile
its workers are killed at random moments, some are stopped, and now and then the relay is upgraded in place. No session
that was older than a moment may notice: each checks all its bytes, and how it ends. What is open in all processes at
the end must be what was open at the start.

Prints what was done and what came of it; exits with 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from attrs import define, field

from fwdrelay.workers.crew import FIRST_PAUSE, PING_EVERY, SOUND_AFTER
from tests.scenarios.mixed_load import Failure, MixedLoad
from tests.scenarios.relay_process import RelayProcess, relaying, wait_until

YOUNG = 1.5
"""
Seconds that a session is given until it is kept. It takes half of one, and a quarter until it is looked for; the rest
is for a machine that is busy.
"""
SECONDS = 5.0
"""How long sessions take, about: most of them are old enough to be kept, and all kinds of ends come at any time."""
SPARE_DESCRIPTORS = 16
"""By how many all processes together may differ from one time at rest to another: pipes that wait to be used."""
UPGRADED = "upgraded in place"
NOT_UPGRADED = "Not upgraded"
IN_A_ROW = "times in a row"


@define
class Soak:
    """
    A relay with workers, and what is done to it under load.

    @ivar moments: when something was done that young sessions need not survive, by `time.monotonic`.
    @ivar done: how often what was done.
    @ivar looked_at: how many of the relay's lines were looked at by `rest`.
    """

    relay: RelayProcess
    load: MixedLoad
    workers: int
    chance: random.Random
    moments: list[float] = field(factory=list)
    done: Counter[str] = field(factory=Counter)
    looked_at: int = 0

    def someone(self) -> int:
        """A worker that relays; now and then, any."""
        return self.chance.choice(self.relaying() if self.chance.random() < 0.95 else self.all())

    def relaying(self) -> list[int]:
        """The workers that have said that they relay."""
        told = " ".join(line for line in self.relay.lines if "relays." in line)
        everybody = self.all()
        return [each for each in everybody if f"({each})" in told] or everybody

    def all(self) -> list[int]:
        """All there are, a spare one and those that are not ready yet, too."""
        wait_until(lambda: len(self.relay.workers()) > 1, lambda: f"{self.relay.children()} left")
        return self.relay.workers()

    def kill(self) -> None:
        """SIGKILL."""
        victim = self.someone()
        self.moments.append(time.monotonic())
        send(victim, signal.SIGKILL)
        self.done["killed"] += 1
        self.wait_until_gone(victim)

    def kill_two(self) -> None:
        """Two at once: who might have taken sessions over dies with who had them."""
        victims = self.chance.sample(self.all(), 2)
        self.moments.append(time.monotonic())
        for victim in victims:
            send(victim, signal.SIGKILL)
        self.done["killed"] += 2
        for victim in victims:
            self.wait_until_gone(victim)

    def stop(self) -> None:
        """SIGSTOP; the supervisor has to find out, and to kill it, unless it goes on before."""
        victim = self.someone()
        self.moments.append(time.monotonic())
        send(victim, signal.SIGSTOP)
        if self.chance.random() < 0.8:
            time.sleep(self.chance.random() * 2)
            send(victim, signal.SIGCONT)
            self.done["stopped for a moment"] += 1
            return
        self.done["stopped for good"] += 1
        self.wait_until_gone(victim)
        self.moments.append(time.monotonic())

    def upgrade(self) -> None:
        """SIGUSR2."""
        start = len(self.relay.lines)
        self.relay.signal(signal.SIGUSR2)
        line = self.relay.wait_for(lambda line: UPGRADED in line or NOT_UPGRADED in line, start)
        if UPGRADED in line:
            self.done["upgraded"] += 1
        else:
            self.done["upgrade refused"] += 1

    def wait_until_gone(self, pid: int) -> None:
        """Wait until a process is no child any more."""
        wait_until(lambda: pid not in self.relay.children(), lambda: f"{pid} is still there")

    def wait_until_whole(self) -> None:
        """Wait until there are as many workers as there should be."""
        wait_until(
            lambda: len(self.relay.workers()) >= self.workers,
            lambda: f"{self.relay.workers()} are the workers",
        )

    def act(self) -> None:
        """One of these."""
        what = self.chance.choices(
            (self.kill, self.kill_two, self.stop, self.upgrade), (80, 6, 4, 10)
        )[0]
        what()
        if self.chance.random() < 0.7:  # else the next blow falls while it gets up
            self.wait_until_whole()
            self.load.wait_until_all_moved()
        time.sleep(self.chance.random() * 3)
        self.rest()

    def rest(self) -> None:
        """
        Where a worker has died again and again, let it become sound: else the next ones are started later and later,
        and whoever waits at its socket gives up.
        """
        lines = self.relay.lines[self.looked_at :]
        self.looked_at += len(lines)
        if any(IN_A_ROW in line for line in lines):
            self.wait_until_whole()
            time.sleep(4 * FIRST_PAUSE + SOUND_AFTER + 2 * PING_EVERY)

    def failures(self) -> list[Failure]:
        """Sessions that should have survived, and have not."""
        return self.load.old_failures(self.moments, YOUNG)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def at_rest(relay: RelayProcess, workers: int) -> tuple[int, int, int]:
    """
    @return: descriptors, pipes and memory of all its processes, when they have settled.
    """
    for _ in range(2):  # a spare one that has died is replaced half a minute later
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(relay.workers()) == workers + 1)
    before: dict[int, int] = {}

    def settled() -> bool:
        nonlocal before
        now = relay.family_descriptors()
        same, before = now == before, now
        time.sleep(0.5)
        return same

    wait_until(settled)
    return sum(before.values()), len(relay.family_pipes()), relay.family_memory()


def soak(kills: int, sessions: int, workers: int, seed: int, options: list[str]) -> list[str]:
    """
    @return: what is wrong, a sentence each.
    """
    chance = random.Random(seed)
    started = time.monotonic()
    wrong: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="fwdrelay-soak-") as folder,
        MixedLoad(sessions=sessions, seconds=SECONDS, seed=seed) as load,
        relaying(
            *("--target", load.target, "--workers", str(workers), "--survive-crashes"),
            *("--access-log", f"{folder}/access.log", *options),
        ) as relay,
    ):
        access_log = Path(folder, "access.log")
        before = at_rest(relay, workers)
        load.start(relay.addresses[0])
        load.wait_until_open(sessions // 2)
        run = Soak(relay, load, workers, chance)
        told = 0
        try:
            while run.done["killed"] < kills:
                run.act()
                if run.done["killed"] >= told + 10:
                    told = run.done["killed"]
                    failed = len(run.failures())
                    print(f"{summary(run)}; {failed} failed", file=sys.stderr, flush=True)
        except AssertionError as failed_to_come:
            wrong.append(str(failed_to_come))
        load.stop(patience=120.0)
        old = run.failures()
        lines = access_log.read_text().splitlines() if old else []
        for each in old:
            told_of = "; ".join(line for line in lines if f'"client":"{each.client}"' in line)
            wrong.append(f"should have survived: {each}; the access log: {told_of or 'nothing'}")
        after = before
        if not wrong:
            after = at_rest(relay, workers)
            for what, then, now, slack in zip(
                ("descriptors", "pipes", "bytes of memory"),
                before,
                after,
                (SPARE_DESCRIPTORS, SPARE_DESCRIPTORS, before[2]),
                strict=True,
            ):
                if now > then + slack:
                    wrong.append(f"{now} {what} are open at the end, and {then} were at the start")
        print(summary(run))
        print(f"{len(load.failures) - len(old)} were younger than {YOUNG:g} s and were reset")
        print(f"at rest before: {shown(before)}; after: {shown(after)}")
        if wrong:
            print("\n".join(relay.lines[-200:]))
    print(f"took {time.monotonic() - started:.0f} s, with --seed {seed}")
    return wrong


def summary(run: Soak) -> str:
    """What was done, and what went through."""
    done = ", ".join(f"{count} {what}" for what, count in run.done.items())
    return f"{done}; {run.load.counts.total()} sessions well ended, {run.load.moved / 1e9:.2f} GB"


def shown(figures: tuple[int, int, int]) -> str:
    """For people."""
    descriptors, pipes, memory = figures
    return f"{descriptors} descriptors, {pipes} pipes, {memory / 1e6:.0f} MB"


def main() -> int:
    """As the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="how many workers are killed [300]")
    parser.add_argument("--sessions", type=int, default=60, help="at a time [60]")
    parser.add_argument("--workers", type=int, default=2, help="[2]")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="[random]")
    parser.add_argument("options", nargs="*", help="further options of the relay, after --")
    given = parser.parse_args()
    wrong = soak(given.kills, given.sessions, given.workers, given.seed, given.options)
    for each in wrong:
        print(f"WRONG: {each}")
    print(f"{len(wrong)} things went wrong" if wrong else "nothing went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

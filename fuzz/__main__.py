"""
Feed the parsers damaged input, and stop at the first that does not hold: `python -m fuzz --help`.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from random import Random, SystemRandom

from .targets import Target, targets

AGAIN = 200
"""How often an input that is given is tried, as some of what is tried with it is chance."""
TURN = 0.2
"""Seconds that one target has before it is the next one's turn."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description="Feed the parsers damaged input. Exits with 1 and prints the input when something does not hold.",
    )
    names = [each.name for each in targets()]
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, metavar="S", help="for so long [60]")
    add("--inputs", type=int, metavar="N", help="at most so many for each target [no limit]")
    add("--seed", type=int, metavar="N", help="of chance; the same one makes the same inputs [new]")
    add("--target", action="append", choices=names, help="only this one; may be given again")
    add("--input", type=bytes.fromhex, metavar="HEX", help="only this one, as a failure printed it")
    return parser.parse_args(given)


class Run:
    """
    One target, fed.

    @ivar answers: how often each answer came.
    """

    def __init__(self, target: Target, seed: int, most: int | None) -> None:
        self.target = target
        self.answers: Counter[str] = Counter()
        self._random = Random(f"{target.name} {seed}")
        self._most = most

    @property
    def done(self) -> bool:
        """Whether it has had all its inputs."""
        return self._most is not None and self.answers.total() >= self._most

    def step(self) -> bool:
        """@return: whether what has to hold did, for one more input."""
        data = self.target.make(self._random)
        return self.feed(data)

    def feed(self, data: bytes) -> bool:
        """As `step`, with this input."""
        try:
            self.answers[self.target.check(data, self._random)] += 1
        except Exception:
            traceback.print_exc()
            print(
                f"{self.target.name} failed with the {len(data)} bytes {data.hex()}",
                file=sys.stderr,
            )
            print(f"again: python -m fuzz --target {self.target.name} --input HEX", file=sys.stderr)
            return False
        return True

    def __str__(self) -> str:
        told = ", ".join(f"{count} {answer}" for answer, count in sorted(self.answers.items()))
        return f"{self.target.name}: {self.answers.total()} inputs: {told}"


def main(given: Sequence[str] | None = None, chosen: Sequence[Target] | None = None) -> int:
    """
    @param chosen: the targets, where not those of this package.
    @return: the exit status.
    """
    options = arguments(given)
    seed = SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    runs = [
        Run(each, seed, options.inputs)
        for each in (targets() if chosen is None else chosen)
        if options.target is None or each.name in options.target
    ]
    if options.input is not None:
        return 0 if all(run.feed(options.input) for run in runs for _ in range(AGAIN)) else 1
    end = time.monotonic() + options.seconds
    while (now := time.monotonic()) < end and not all(run.done for run in runs):
        for run in runs:
            turn = min(now + TURN, end)
            while time.monotonic() < turn and not run.done:
                if not run.step():
                    print(f"seed {seed}", file=sys.stderr)
                    return 1
            now = time.monotonic()
    for run in runs:
        print(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())

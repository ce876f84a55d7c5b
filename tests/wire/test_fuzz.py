"""The longer run of damaged input (`python -m fuzz`), in one too short to find much: that it runs, and fails."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random

from fuzz.__main__ import main
from fuzz.corpus import corpus
from fuzz.mutations import mutate
from fuzz.targets import MORE, REFUSED, Target, check_pieces, check_prefixes, targets
from tests.case import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent.parent


def run(
    *arguments: str, check: Callable[[bytes, Random], str] | None = None
) -> tuple[int, str, str]:
    """The exit status, and what is printed. With a check of its own, that is the only target."""
    printed, complained = io.StringIO(), io.StringIO()
    chosen = None if check is None else [Target("own", check, [b"seed"])]
    with redirect_stdout(printed), redirect_stderr(complained):
        status = main(arguments, chosen)
    return status, printed.getvalue(), complained.getvalue()


class RunTests(SynchronousTestCase):
    def test_a_few_inputs_for_all(self) -> None:
        status, printed, complained = run("--inputs", "60", "--seed", "1")
        self.assertEqual((status, complained), (0, ""))
        lines = printed.splitlines()
        self.assertEqual(lines[0], "seed 1")
        self.assertEqual(
            [line.partition(" inputs")[0] for line in lines[1:]],
            [f"{target.name}: 60" for target in targets()],
        )

    def test_one_seed_makes_the_same_inputs(self) -> None:
        seen: list[list[bytes]] = []
        for seed in ("5", "5", "6"):
            seen.append([])

            def check(data: bytes, random: Random) -> str:
                seen[-1].append(data)
                return "read"

            run("--inputs", "30", "--seed", seed, check=check)
        self.assertEqual(seen[0], seen[1])
        self.assertNotEqual(seen[0], seen[2])

    def test_inputs_get_far(self) -> None:
        for target in targets():
            random = Random(1)
            answers = {target.check(target.make(random), random) for _ in range(120)}
            self.assertTrue(answers & {"read", "both", "both, with protocols"}, target.name)
            self.assertTrue(answers & {REFUSED, "neither"}, target.name)

    def test_a_failure(self) -> None:
        def check(data: bytes, random: Random) -> str:
            assert data == b"seed", "that is no seed"
            return "read"

        status, printed, complained = run("--seed", "3", check=check)
        self.assertEqual((status, printed), (1, "seed 3\n"))
        self.assertIn("that is no seed", complained)
        self.assertRegex(complained, r"own failed with the \d+ bytes ([0-9a-f]{2})*\n")
        self.assertIn("seed 3", complained)

    def test_one_input_again(self) -> None:
        seen = []

        def check(data: bytes, random: Random) -> str:
            seen.append(data)
            assert len(seen) < 5
            return "read"

        status, _, complained = run("--input", "00ff", check=check)
        self.assertEqual((status, set(seen)), (1, {b"\0\xff"}))
        self.assertIn("00ff", complained)
        self.assertEqual(run("--input", "00ff", "--target", "name")[0], 0)

    def test_it_ends_in_time(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "fuzz", "--seconds", "0.1"],
            cwd=ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"^seed \d+\nhello: \d+ inputs")


class ChecksTests(SynchronousTestCase):
    """What checks have in common finds what it should."""

    def test_a_part_that_is_answered_otherwise(self) -> None:
        def fickle(data: bytes) -> str:
            return "odd" if len(data) % 2 else "even"

        with self.assertRaises(AssertionError):
            check_prefixes(fickle, bytes(50), "even", Random(1))

    def test_pieces_that_are_answered_otherwise(self) -> None:
        def hasty(data: bytes) -> str:
            return "whole" if len(data) == 50 else "part"

        with self.assertRaises(AssertionError):
            check_pieces(hasty, bytes(50), "whole", Random(1))

    def test_what_comes_behind(self) -> None:
        def greedy(data: bytes) -> str:
            return "long" if len(data) > 50 else MORE if len(data) < 50 else "whole"

        with self.assertRaises(AssertionError):
            check_prefixes(greedy, bytes(50), "whole", Random(1))


class MutationTests(SynchronousTestCase):
    def test_anything_can_be_damaged(self) -> None:
        random = Random(2)
        for seed in (b"", b"x", bytes(100)):
            made = {mutate(seed, [b"", b"other"], random) for _ in range(500)}
            self.assertGreater(len(made), 100)
            self.assertIn(seed, made)

    def test_there_is_something_to_damage(self) -> None:
        for kind in ("hellos", "headers"):
            found = corpus(kind)
            self.assertGreater(len(found), 5)
            self.assertNotIn(b"", found.values())

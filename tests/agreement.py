"""
Makes sure that pytest and trial find the same tests: `python -m tests.agreement`.

Each has ways to overlook a test that the other finds (a function outside a class, a class behind a
fixture, a module that one of them cannot import). Prints what only one of them finds; exits with 1
if there is any such test.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from twisted.trial.runner import TestLoader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent


class Collected:
    """A pytest plugin that keeps what was collected."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep each item's name, dotted as trial dots it."""
        for item in items:
            path, *inner = item.nodeid.split("::")
            self.names.append(".".join([path.removesuffix(".py").replace("/", "."), *inner]))


def found_by_pytest() -> list[str]:
    """The names of the tests that pytest finds."""
    collected = Collected()
    arguments = [f"--rootdir={ROOT}", "--collect-only", "-qqq", "-p", "no:randomly"]
    status = pytest.main([*arguments, str(ROOT / "tests")], plugins=[collected])
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        raise SystemExit(f"pytest could not collect the tests: {status!r}")
    return collected.names


def found_by_trial() -> list[str]:
    """The names of the tests that trial finds; for a module it cannot import, the module's."""

    def flat(suite: Iterable[object]) -> Iterator[str]:
        for each in suite:
            if hasattr(each, "__iter__"):
                yield from flat(each)
            else:
                yield each.id()  # type: ignore[attr-defined]

    return list(flat([TestLoader().loadByName("tests", recurse=True)]))


def main() -> int:
    """Compare, tell, and return the exit status."""
    by_pytest, by_trial = Counter(found_by_pytest()), Counter(found_by_trial())
    for name in sorted((by_pytest - by_trial).elements()):
        print(f"found by pytest only: {name}")
    for name in sorted((by_trial - by_pytest).elements()):
        print(f"found by trial only: {name}")
    if by_pytest != by_trial:
        return 1
    print(f"pytest and trial find the same {by_pytest.total()} tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())

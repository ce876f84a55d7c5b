"""
The package's floors: imports run downwards only.

The table is the design. A new module gets a floor here before it gets an importer; a module that
needs one above it stands on the wrong floor, or holds two subjects.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from tests.case import SynchronousTestCase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGE = Path(__file__).resolve().parent.parent / "fwdrelay"

FLOORS: Mapping[int, str] = {
    6: "tap",
    5: "relay parts process demo steering reloading workers",
    4: "frontend admin ctl",
    3: "session dial handshake admit observe",
    2: "upstream",
    1: "pump wire tls",
    0: "config interfaces plugins errors address deadlines histogram ledger networks words",
}
"""What stands on which floor. A subpackage stands there with all that is in it."""

NEIGHBOURS: Mapping[str, str] = {
    "relay": "parts process demo steering reloading",
    "workers": "relay parts process steering reloading",
    "session": "dial observe",  # a session dials for its client, and tells whoever follows it
    "dial": "handshake observe",
    "tls": "wire",  # what a hello says decides which certificate is shown
    "admit": "session",  # for the reasons that sessions and refusals share
    "config": "errors",
    "plugins": "interfaces",
    "interfaces": "config errors",  # a plugin gets and gives such values
}
"""Who may use whom on the same floor, one way. Within a subpackage everybody may."""

EVERYBODYS = frozenset({"__init__", "_version"})
"""Of use on every floor; they import nothing of the package but each other."""

FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}


def modules(package: Path) -> dict[str, str]:
    """The source of each module of `package`, by its name within: `tap`, `pump.__init__`."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(package.rglob("*.py"))
    }


def imports(name: str, source: str, package: str) -> Iterator[tuple[int, str]]:
    """
    The line and the name within `package` of each of its modules that one module imports, wherever
    in it: at the top, in a function, for its types only.
    """
    folder = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                if head == package:
                    yield node.lineno, rest or "__init__"
        elif isinstance(node, ast.ImportFrom):
            target = node.module.split(".") if node.module else []
            if node.level:
                target = [*folder[: len(folder) - node.level + 1], *target]
            elif target[:1] == [package]:
                target = target[1:]
            else:
                continue
            # Of `from fwdrelay import pump`, pump is the module; deeper, what is imported from says
            # enough to know the floor.
            for imported in [".".join(target)] if target else [alias.name for alias in node.names]:
                yield node.lineno, imported


def complaints(sources: Mapping[str, str], package: str = "fwdrelay") -> Iterator[str]:
    """What is wrong with the imports of these modules, one sentence for each."""
    heads = {name.partition(".")[0] for name in sources}
    for name, source in sources.items():
        head = name.partition(".")[0]
        if head not in FLOOR_OF and head not in EVERYBODYS:
            yield f"{package}.{name} is on no floor: give {head!r} one in FLOORS ({__name__})"
            continue
        for line, imported in imports(name, source, package):
            target = imported.partition(".")[0]
            if target in EVERYBODYS or target not in heads | FLOOR_OF.keys():
                continue  # a name of the package itself, as `from fwdrelay import __version__`
            where = f"{package}.{name}, line {line}, imports {package}.{imported}"
            if head in EVERYBODYS:
                yield f"{where}: what everybody uses may use nobody"
            elif target not in FLOOR_OF:
                continue  # told above, of the module itself
            elif FLOOR_OF[target] > FLOOR_OF[head]:
                yield f"{where}: floor {FLOOR_OF[head]} reaches up to floor {FLOOR_OF[target]}"
            elif (
                FLOOR_OF[target] == FLOOR_OF[head]
                and target != head
                and target not in NEIGHBOURS.get(head, "").split()
            ):
                yield f"{where}: both stand on floor {FLOOR_OF[head]}, NEIGHBOURS has no such pair"


class FloorsTests(SynchronousTestCase):
    def test_imports_run_downwards(self) -> None:
        found = list(complaints(modules(PACKAGE)))
        self.assertEqual(found, [], "\n".join(["", *found]))

    def test_each_stands_on_one_floor(self) -> None:
        names = " ".join(FLOORS.values()).split()
        self.assertEqual(sorted(names), sorted(set(names)))

    def test_neighbours_are_on_one_floor(self) -> None:
        for name, others in NEIGHBOURS.items():
            for other in others.split():
                self.assertEqual(FLOOR_OF[name], FLOOR_OF[other], f"{name} and {other}")
                self.assertNotIn(name, NEIGHBOURS.get(other, "").split(), f"{name} and {other}")


class CheckerTests(SynchronousTestCase):
    """The checker, on modules that are made up."""

    def assert_complaint(self, name: str, source: str, *words: str) -> None:
        sources = {"__init__": "", "tap": "", "upstream.pool": "", "errors": "", name: source}
        found = list(complaints(sources))
        self.assertEqual(len(found), 1, found)
        for word in words:
            self.assertIn(word, found[0])

    def assert_fine(self, name: str, source: str) -> None:
        sources = {"__init__": "", "tap": "", "upstream.pool": "", "errors": "", name: source}
        self.assertEqual(list(complaints(sources)), [])

    def test_down(self) -> None:
        self.assert_fine("relay", "from fwdrelay.upstream.pool import Pool\nimport fwdrelay.errors")

    def test_not_ours(self) -> None:
        self.assert_fine("errors", "import os, twisted\nfrom fwdrelayed import tap\n")

    def test_version(self) -> None:
        self.assert_fine("config.read", "from fwdrelay import __version__")
        self.assert_fine("config.read", "from fwdrelay._version import __version__")
        self.assert_fine("__init__", "from fwdrelay._version import __version__")

    def test_up(self) -> None:
        up = ("fwdrelay.pump.splice, line 2, imports fwdrelay.tap", "floor 1", "floor 6")
        for line in (
            "import fwdrelay.tap",
            "from fwdrelay.tap import Options",
            "from fwdrelay import tap",
            "from .. import tap",
            "from ..tap import Options",
        ):
            self.assert_complaint("pump.splice", f"'''Pump.'''\n{line}\n", *up)

    def test_up_within_a_function(self) -> None:
        source = "def later():\n    from fwdrelay.upstream import pool\n"
        self.assert_complaint("wire.hello", source, "line 2", "floor 1 reaches up to floor 2")

    def test_up_for_types_only(self) -> None:
        source = "if TYPE_CHECKING:\n    from fwdrelay.tap import Options\n"
        self.assert_complaint("errors", source, "line 2", "floor 0 reaches up to floor 6")

    def test_from_a_packages_init(self) -> None:
        sources = {"pump.__init__": "from . import splice\nfrom .. import tap", "tap": ""}
        found = list(complaints(sources))
        self.assertEqual(len(found), 1, found)
        self.assertIn("fwdrelay.pump.__init__, line 2, imports fwdrelay.tap", found[0])

    def test_same_floor(self) -> None:
        self.assert_complaint("wire.hello", "import fwdrelay.pump", "both stand on floor 1")
        self.assert_fine("pump.loop", "from fwdrelay.pump.splice import Endpoint")
        self.assert_fine("relay", "from fwdrelay.demo import Demo")
        self.assert_complaint("demo", "from fwdrelay.relay import Relay", "both stand on floor 5")

    def test_everybodys(self) -> None:
        self.assert_complaint("_version", "import fwdrelay.errors", "may use nobody")

    def test_unlisted(self) -> None:
        self.assert_complaint(
            "helper.misc", "import fwdrelay.errors", "fwdrelay.helper.misc is on no floor", "FLOORS"
        )

    def test_modules_are_found(self) -> None:
        found = modules(PACKAGE)
        self.assertIn("__init__", found)
        self.assertNotIn("", found)

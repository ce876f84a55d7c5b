"""`docs/fwdrelayctl.md`, held against the program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from fwdrelay.ctl import exits
from fwdrelay.ctl.commands import INTERRUPTED, SORTS, cli
from fwdrelay.ctl.completion import PROGRAM
from tests.case import SynchronousTestCase

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fwdrelayctl.md").read_text(encoding="utf-8")


def leaves(command: click.Command, *names: str) -> Iterator[tuple[str, click.Command]]:
    """All commands that do something, by what is typed."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, *names, name)
    else:
        yield " ".join(names), command


class PageTests(SynchronousTestCase):
    def test_every_command_and_no_other(self) -> None:
        told = re.findall(r"^\| `([a-z ]+?)(?: [A-Z].*)?` \| [^|]+ \|$", PAGE, re.MULTILINE)
        self.assertEqual(set(told), {name for name, _ in leaves(cli)})

    def test_every_exit_status(self) -> None:
        told = [int(status) for status in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
        known = {value for name, value in vars(exits).items() if name.isupper()}
        self.assertEqual(told, sorted({*known, INTERRUPTED}))

    def test_every_option_of_a_command_and_no_other(self) -> None:
        known = {"--help", "--version"}
        for _, command in [("", cli), *leaves(cli)]:
            known |= {
                name
                for parameter in command.params
                for name in parameter.opts
                if name.startswith("--")
            }
        told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
        others = {
            "--port",
            "--target",
            "--config",
            "--check",
            "--drain-timeout",
        }  # of twistd fwdrelay
        self.assertEqual(told - known - others, set())
        self.assertEqual(known - told, set())
        self.assertIn(f"--sort {'|'.join(SORTS)}", PAGE)

    def test_commands_are_right(self) -> None:
        count = 0
        lines = re.findall(rf"^(?:\$ )?({PROGRAM} [^|\n]+)", PAGE, re.MULTILINE)
        for line in lines:
            arguments = shlex.split(line, comments=True)[1:]
            command: click.Command = cli
            with cli.make_context(PROGRAM, arguments) as ctx:
                while isinstance(command, click.Group):
                    name, found, rest = command.resolve_command(
                        ctx, [*ctx._protected_args, *ctx.args]
                    )
                    assert found is not None
                    command, ctx = found, found.make_context(name, rest, parent=ctx)
            count += 1
        self.assertGreater(count, 12)

"""Completion of command lines: what shells are told, and bash itself."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from pathlib import Path

from attrs import evolve

from fwdrelay.ctl import completion
from tests.ctl.fake_relay import POOL, SESSION, TARGET, CtlTestCase, Reply, document
from tests.scenarios.programs import find, free_port

# What bash has where nobody has changed it.
BREAKS = " \t\n\"'><=;|&(:"
PATIENCE = 60.0
"""Seconds, instead of those that somebody would wait who has pressed TAB."""
PROGRAM = f"""\
#!/bin/sh
exec "{sys.executable}" -c '
from fwdrelay.ctl import completion, main
completion.PATIENCE = {PATIENCE}
main()
' "$@"
"""


class CompletionTestCase(CtlTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(completion, "PATIENCE", PATIENCE)
        targets = [evolve(TARGET, name=name) for name in ("127.0.0.1:80", "unix:/run/x.sock", "b")]
        pools = [evolve(POOL, targets=tuple(targets)), evolve(POOL, name="db")]
        self.relay.replies["GET /v1/pools"] = Reply(200, {"pools": list(map(document, pools))})


class LinesTests(CompletionTestCase):
    def complete(self, line: str, breaks: str = BREAKS) -> list[str]:
        """What bash is told, at the end of the line."""
        os.environ.update(
            _FWDRELAYCTL_COMPLETE="bash_complete",
            COMP_LINE=line,
            COMP_POINT=str(len(os.fsencode(line))),
            COMP_WORDBREAKS=breaks,
        )
        ran = self.ctl()
        self.assertEqual(ran.err, "")
        return [told.removeprefix("plain,") for told in ran.out.splitlines() if told]

    def test_commands_and_options(self) -> None:
        self.assertEqual(self.complete("fwdrelayctl s"), ["sessions", "status"])
        self.assertEqual(self.complete("fwdrelayctl target d"), ["down", "drain"])
        self.assertIn("--sort", self.complete("fwdrelayctl sessions --"))
        self.assertEqual(
            self.complete("fwdrelayctl sessions --sort "),
            ["age", "bytes", "up", "down", "idle", "client", "target"],
        )
        self.assertEqual(self.complete("fwdrelayctl completion z"), ["zsh"])
        self.assertEqual(self.complete("fwdrelayctl check "), ["file,"])

    def test_targets(self) -> None:
        self.assertEqual(
            self.complete("fwdrelayctl target drain "),
            ["web/127.0.0.1:80", "web/unix:/run/x.sock", "web/b", "db/a:80"],
        )
        self.assertEqual(self.complete("fwdrelayctl target drain web/1"), ["web/127.0.0.1:80"])
        self.assertEqual(self.complete("fwdrelayctl target weight d"), ["db/a:80"])
        self.assertEqual(self.complete("fwdrelayctl target weight 12"), ["127.0.0.1:80"])
        self.assertEqual(self.complete("fwdrelayctl sessions --target u"), ["unix:/run/x.sock"])

    def test_colons_end_words_in_bash(self) -> None:
        for line in ("target drain web/unix:", "target drain web/unix:/ru"):
            self.assertEqual(self.complete(f"fwdrelayctl {line}"), ["/run/x.sock"])
            self.assertEqual(
                self.complete(f"fwdrelayctl {line}", " \t\n"), ["web/unix:/run/x.sock"]
            )
        for line in ("--target=un", "--target un"):
            self.assertEqual(self.complete(f"fwdrelayctl sessions {line}"), ["unix:/run/x.sock"])
        self.assertEqual(self.complete("fwdrelayctl sessions --target=unix:"), ["/run/x.sock"])

    def test_the_cursor_in_the_middle_of_the_line(self) -> None:
        os.environ.update(
            _FWDRELAYCTL_COMPLETE="bash_complete",
            COMP_LINE="fwdrelayctl stat --json",
            COMP_POINT=str(len("fwdrelayctl stat")),
        )
        self.assertEqual(self.ctl().out, "plain,status\n")

    def test_words_as_the_script_of_click_tells_them(self) -> None:
        os.environ.update(_FWDRELAYCTL_COMPLETE="bash_complete", COMP_CWORD="2")
        for words in ("fwdrelayctl target d", "fwdrelayctl target d web/b"):
            os.environ["COMP_WORDS"] = words
            self.assertEqual(self.ctl().out, "plain,down\nplain,drain\n")
        os.environ["COMP_WORDS"] = "fwdrelayctl target"
        self.assertIn("plain,weight\n", self.ctl().out)

    def test_a_shell_that_tells_nothing_is_told_the_commands(self) -> None:
        os.environ["_FWDRELAYCTL_COMPLETE"] = "bash_complete"
        self.assertIn("plain,status\n", self.ctl().out)

    def test_sessions_and_listeners(self) -> None:
        self.assertEqual(self.complete("fwdrelayctl kill "), ["s-1"])
        self.assertEqual(self.complete("fwdrelayctl kill s-1 "), [])
        self.assertEqual(self.complete("fwdrelayctl sessions --listener w"), ["web"])

    def test_the_relay_that_the_line_names_is_asked(self) -> None:
        os.environ["FWDRELAY_ADMIN"] = "unix:/nonexistent"
        for line in ("--admin {} target drain d", "target drain --admin {} d"):
            line = line.format(self.relay.admin)
            self.assertEqual(self.complete(f"fwdrelayctl {line}"), ["db/a:80"])

    def test_no_relay_is_nothing_to_speak_of(self) -> None:
        for admin in ("unix:/nonexistent", f"127.0.0.1:{free_port()}", "nonsense"):
            os.environ["FWDRELAY_ADMIN"] = admin
            self.assertEqual(self.complete("fwdrelayctl target drain "), [])
            self.assertEqual(self.complete("fwdrelayctl kill "), [])

    def test_nor_is_one_that_answers_otherwise(self) -> None:
        for reply in (
            Reply(200, {"pools": 5}),
            Reply(200, {}),
            Reply(200, "<html>", "text/html"),
            Reply(401, {"error": "no"}),
        ):
            self.relay.replies["GET /v1/pools"] = reply
            self.assertEqual(self.complete("fwdrelayctl target drain "), [])

    def test_names_that_mean_something_to_shells_are_left_out(self) -> None:
        names = ("$(reboot)", "a;b", "a b", "a\nb", "\x1b[2J", "`x`", "[::1]:80", "é.example:80")
        pool = evolve(POOL, targets=tuple(evolve(TARGET, name=name) for name in names))
        self.relay.replies["GET /v1/pools"] = Reply(200, {"pools": [document(pool)]})
        self.assertEqual(
            self.complete("fwdrelayctl target drain "), ["web/[::1]:80", "web/é.example:80"]
        )

    def test_what_zsh_and_fish_are_told_beside_a_name(self) -> None:
        for target, told in (
            ("a:80", "192.0.2.1:1234 to a:80"),
            (None, "192.0.2.1:1234 to no target yet"),
        ):
            session = document(evolve(SESSION, target=target))
            self.relay.replies["GET /v1/sessions"] = Reply(200, {"sessions": [session], "count": 1})
            os.environ.update(
                _FWDRELAYCTL_COMPLETE="zsh_complete", COMP_WORDS="fwdrelayctl kill ", COMP_CWORD="2"
            )
            self.assertEqual(self.ctl().out, f"plain\ns-1\n{told}\n")
            os.environ.update(_FWDRELAYCTL_COMPLETE="fish_complete", COMP_CWORD="")
            self.assertEqual(self.ctl().out, f"plain,s-1\t{told}\n")


class ShellsTests(CompletionTestCase):
    """The scripts, in the shells that are here."""

    def setUp(self) -> None:
        super().setUp()
        self.bin = self.folder()
        program = self.bin / "fwdrelayctl"
        program.write_text(PROGRAM)
        program.chmod(0o755)

    def script(self, shell: str) -> Path:
        """The file with its script."""
        if find(shell) is None:
            raise unittest.SkipTest(f"not installed here: {shell}")
        file = self.bin / f"script.{shell}"
        file.write_text(self.ctl("completion", shell).out)
        return file

    def run_in(self, shell: str, *arguments: str) -> str:
        """What that shell prints; nothing may be on its stderr."""
        done = subprocess.run(
            [find(shell) or shell, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.bin)},
            cwd=self.bin,
        )
        self.assertEqual(done.stderr, "")
        return done.stdout

    def test_bash(self) -> None:
        script = self.script("bash")
        for line, expected in (
            ("fwdrelayctl stat", ["status"]),
            ("fwdrelayctl target drain web/unix:", ["/run/x.sock"]),
            (
                "fwdrelayctl target ready web/",
                ["web/127.0.0.1:80", "web/unix:/run/x.sock", "web/b"],
            ),
            ("fwdrelayctl kill x", []),
        ):
            told = self.run_in(
                *("bash", "--norc", "-c"),
                f'source "{script}"; COMP_LINE=$1 COMP_POINT=${{#1}}; _fwdrelayctl_completion fwdrelayctl; '
                'printf "%s\\n" "${COMPREPLY[@]}"; complete -p fwdrelayctl',
                *("bash", line),
            ).splitlines()
            self.assertEqual([each for each in told[:-1] if each], expected)
            self.assertEqual(told[-1], "complete -o nosort -F _fwdrelayctl_completion fwdrelayctl")

    def test_fish(self) -> None:
        script = self.script("fish")
        told = self.run_in(
            "fish", "-N", "-c", f"source {script}; complete -C 'fwdrelayctl target drain web/unix:'"
        )
        self.assertEqual(told.splitlines(), ["web/unix:/run/x.sock"])

    def test_zsh(self) -> None:
        script = self.script("zsh")
        self.assertEqual(script.read_text().splitlines()[0], "#compdef fwdrelayctl")
        self.run_in("zsh", "-f", "-n", str(script))
        told = self.run_in(
            *("zsh", "-f", "-c"),
            f"autoload -U compinit; compinit -D; source {script}; print ${{_comps[fwdrelayctl]}}",
        )
        self.assertEqual(told, "_fwdrelayctl_completion\n")

    def test_other_shells(self) -> None:
        self.assertIn(
            "is not one of 'bash', 'zsh', 'fish'", self.ctl("completion", "tcsh", status=2).err
        )

"""
`fwdrelayctl` beside a running relay: all of its commands, over a Unix socket and by TCP with a token; at
terminals; in pipes; and where no relay is, or goes away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.case import SynchronousTestCase
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.programs import find
from tests.scenarios.relay_process import (
    PATIENCE,
    RelayProcess,
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    relaying,
    wait_until,
)
from tests.scenarios.scenario import Scenario, is_root

PROGRAM = (sys.executable, "-m", "fwdrelay.ctl")
CONFIGURATION = """
[relay]
admin = "{admin}"
{more}

[[listener]]
name = "web"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "web"

[pool.web]
targets = ["{target}", "127.0.0.1:1,backup,name=spare"]
"""


def environment(admin: str = "", token: str = "") -> dict[str, str]:
    """Of a program that is to ask there."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FWDRELAY_") and name not in ("NO_COLOR", "COLUMNS", "LINES")
    }
    given = {"FWDRELAY_ADMIN": admin, "FWDRELAY_TOKEN_FILE": token, "TERM": "xterm-256color"}
    return inherited | {name: value for name, value in given.items() if value}


def admin_of(relay: RelayProcess) -> str:
    """Where the relay is asked, as it has said."""
    line = relay.wait_for(lambda line: "Metrics, API and dashboard: " in line)
    return line.rpartition("dashboard: ")[2].removeprefix("http://").removesuffix("/")


class Ctl:
    """
    The program, as it is called for one relay.

    @param token: the file with it.
    """

    def __init__(self, admin: str, token: str = "") -> None:
        self.admin = admin
        self.environment = environment(admin, token)

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """
        @return: what it writes; in a script nothing else is on stdout, and where it goes wrong, one line at
            least is on stderr.
        """
        done = self.run(*arguments)
        if done.returncode != status or "Traceback" in done.stderr:
            raise AssertionError(f"{arguments} ended with {done}")
        if status:
            assert done.stderr.startswith(("fwdrelayctl: ", "fwdrelay: ")), done
        return done.stdout

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [*PROGRAM, *arguments],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "timeout": PATIENCE,
                "env": self.environment,
                **more,
            },
        )

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """What it writes with `--json`: one object on one line."""
        (line,) = self(*arguments, "--json", status=status).splitlines()
        told = json.loads(line)
        assert isinstance(told, dict)
        return told

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """For a `with` block: it runs, its outputs are pipes."""
        with subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def wait_for_line(process: subprocess.Popen[str], words: str) -> str:
    """
    @return: the next line on its stderr that has these words.
    """
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"it ended without {words!r}")


def wait_for_bytes(ctl: Ctl, count: int) -> None:
    """Wait until the relay says that so many went up."""
    wait_until(lambda: ctl.json("status")["totals"]["bytes_up"] == count)


class Terminal:
    """
    A program at a terminal of its own.

    @ivar seen: all that was written on it.
    """

    def __init__(self, ctl: Ctl, *arguments: str, lines: int = 30, columns: int = 160) -> None:
        self.seen = ""
        self.master, self._slave = pty.openpty()
        self.resize(lines, columns)
        self.modes = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=ctl.environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, lines: int, columns: int) -> None:
        """Have another size."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """As somebody at the keyboard."""
        os.write(self.master, keys.encode())

    def wait_for(self, *patterns: str) -> None:
        """Wait until all of them are written, in this order, after what was waited for before."""
        deadline = time.monotonic() + PATIENCE
        for pattern in patterns:
            while (found := re.search(pattern, self.seen, re.DOTALL)) is None:
                self._read(pattern, deadline)
            self.seen = self.seen[found.end() :]

    def _read(self, wanted: str, deadline: float) -> None:
        readable, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
        if not readable:
            raise AssertionError(f"{wanted!r} did not come; there was {self.seen!r}")
        self.seen += os.read(self.master, 1 << 16).decode("utf-8", "replace")

    def wait_until_it_waits(self) -> None:
        """A signal just before a program begins to read is seen by Python only after that."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("S"))

    def end(self, status: int = 0) -> str:
        """
        Wait until it has ended, with that status and the terminal as it was.

        @return: what it wrote and nobody waited for.
        """
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.02)[0]:
                self._read("its end", deadline)
            elif time.monotonic() > deadline:
                raise AssertionError(f"it did not end; there was {self.seen!r}")
        while select.select([self.master], [], [], 0)[0]:
            self._read("its end", deadline)
        assert self.process.returncode == status, (self.process.returncode, self.seen)
        assert termios.tcgetattr(self._slave) == self.modes
        return self.seen

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)


class CommandsTestCase(Scenario, every_pump=False):
    @contextlib.contextmanager
    def configured(
        self, upstream: Upstream, tcp: bool = False
    ) -> Iterator[tuple[ConfiguredRelay, Ctl]]:
        """A relay, and what speaks to it: by a Unix socket, or by TCP with a token."""
        folder = Path(self.folder())
        token = folder / "token"
        token.write_text("s3cret-t0ken\n")
        token.chmod(0o600)
        text = CONFIGURATION.format(
            admin="127.0.0.1:0" if tcp else f"unix:{folder}/admin.sock",
            more=f'admin_token_file = "{token}"' if tcp else "",
            target=upstream.target,
        )
        with ConfiguredRelay(folder / "relay.toml", text) as relay:
            yield relay, Ctl(admin_of(relay), str(token) if tcp else "")

    def both_ways(self, upstream: Upstream) -> Iterator[tuple[ConfiguredRelay, Ctl]]:
        """Relays that are asked in either way."""
        for tcp in (False, True):
            with self.configured(upstream, tcp) as both:
                yield both


class Commands(CommandsTestCase, every_pump=False):
    def test_looking(self) -> None:
        with Upstream() as upstream:
            for relay, ctl in self.both_ways(upstream):
                with relay.connect() as client, upstream.accept() as server:
                    client.sendall(b"hello")
                    read_exactly(server, 5)
                    wait_for_bytes(ctl, 5)
                    self.assertRegex(ctl("status"), r"running, up for (?s:.)*web +2 of 2 up +1")
                    pools = ctl("pools")
                    self.assertRegex(pools, rf"web +{upstream.target} +\S+ +up +1 +100% +1 +\d\S*s")
                    self.assertRegex(pools, r"web +spare +127.0.0.1:1 +up +0 +0% +1 backup")
                    address = "{}:{}".format(*client.getsockname())
                    self.assertRegex(ctl("sessions"), rf"web +{address} +web +{upstream.target} ")
                    (told,) = ctl.json("sessions", "--client", address)["sessions"]
                    self.assertEqual((told["client"], told["bytes_up"]), (address, 5))
                    for more in (
                        ("--client", "192.0.2.0/24"),
                        ("--listener", "other"),
                        ("--target", "spare"),
                    ):
                        self.assertEqual(ctl.json("sessions", *more)["sessions"], [])
                    self.assertIn("not", ctl.run("sessions", "--client", "x").stderr)
                    ctl("sessions", "--client", "x", status=1)
                    out = ctl("top")
                    self.assertIn(address, out)
                    self.assertIn("up 0 B/s  down 0 B/s  sessions 1", out)
                    statuses = ctl("top", "--json", "--count", "2").splitlines()
                    self.assertEqual(
                        [json.loads(each)["pid"] for each in statuses], [relay.pid] * 2
                    )

    def test_ending_sessions(self) -> None:
        with Upstream() as upstream:
            for relay, ctl in self.both_ways(upstream):
                with relay.connect() as client, upstream.accept() as server:
                    client.sendall(b"hello")
                    read_exactly(server, 5)
                    ((name,),) = ({s["session"]} for s in ctl.json("sessions")["sessions"])
                    out = ctl("kill", "nobody", name, status=4)
                    self.assertRegex(
                        out, rf"Session {name} was ended, of .* to web/{upstream.target}"
                    )
                    self.assertEqual(read_until_reset(client), b"")
                    self.assertEqual(read_until_reset(server), b"")
                (entry,) = relay.ended()
                self.assertEqual((entry["session"], entry["code"]), (name, "KD"))
                self.assertIn("error", ctl.json("kill", name, status=4))

    def test_steering_targets(self) -> None:
        with Upstream() as upstream:
            for relay, ctl in self.both_ways(upstream):
                name = f"web/{upstream.target}"
                self.assertEqual(
                    ctl("target", "drain", name), f"{name} is set to drain; it has no sessions.\n"
                )
                self.assertIn("drain (set)", ctl("pools"))
                relay.turn_away()  # only the spare one is left, which is not there
                ctl("target", "drain", "spare")
                relay.turn_away()
                self.assertIn("taken out", relay.ended(2)[1]["error"])
                ctl("target", "ready", upstream.target)
                with relay.connect(), upstream.accept():
                    self.assertEqual(ctl.json("target", "down", name)["state"], "down")
                self.assertEqual(ctl.json("target", "weight", name, "7")["weight"], 7)
                self.assertEqual(ctl.json("target", "ready", name)["weight"], 7)
                for words in (("drain", "db/x"), ("weight", "spar", "5")):
                    ctl("target", *words, status=4)

    def test_a_target_drains_until_it_has_no_sessions(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (relay, ctl):
            with relay.connect() as client, upstream.accept() as server:
                words = ("target", "drain", upstream.target, "--wait")
                with ctl.started(*words) as waiting:
                    wait_for_line(waiting, "has 1 session")
                    self.assertIs(waiting.poll(), None)
                    client.close()
                    self.assertEqual(read_all(server), b"")
                    server.close()
                    out, err = waiting.communicate(timeout=PATIENCE)
                self.assertEqual((waiting.returncode, err), (0, ""))
            self.assertIn("is set to drain; it has no sessions.", out)
            relay.turn_away()

    def test_the_configuration(self) -> None:
        with Upstream() as upstream:
            for relay, ctl in self.both_ways(upstream):
                self.assertIn("A reload would do", ctl("check"))
                good = relay.file.read_text()
                relay.write(good + 'balance = "bicycle-race"\n')
                for words in (("check",), ("reload",), ("check", str(relay.file))):
                    done = ctl.run(*words)
                    self.assertEqual((done.returncode, done.stdout), (78, ""))
                    self.assertIn("pool.web.balance: ", done.stderr)
                    told = ctl.json(*words, status=78)
                    self.assertIn("pool.web.balance: ", told["errors"][0])
                relay.write(good + "retries = 1\n")
                self.assertTrue(ctl.json("check")["okay"])
                self.assertIn("web", ctl("reload"))
                relay.wait_for_line("The configuration is in force")
                self.assertIn("nothing is wrong with", ctl("check", str(relay.file)))
                self.assertEqual(ctl.json("status")["reloads"]["failure"], 2)

    def test_following_a_session(self) -> None:
        with Upstream() as upstream:
            for relay, ctl in self.both_ways(upstream):
                words = ("trace", "--client", "127.0.0.0/8", "--count", "1")
                for more in ((), ("--json",)):
                    with ctl.started(*words, *more) as trace:
                        wait_for_line(trace, "following new sessions")
                        with relay.connect() as client, upstream.accept() as server:
                            client.sendall(b"hello")
                            read_exactly(server, 5)
                            server.close()
                            self.assertEqual(read_all(client), b"")
                        out, err = trace.communicate(timeout=PATIENCE)
                    self.assertEqual((trace.returncode, err), (0, ""))
                    if more:
                        steps = [json.loads(line)["step"] for line in out.splitlines()]
                    else:
                        steps = [line.split()[4] for line in out.splitlines()]
                        self.assertNotIn("\x1b", out)
                    self.assertEqual((steps[0], steps[-1]), ("accepted", "ended"))
                    self.assertLessEqual({"admitted", "elected", "connected"}, set(steps))

    def test_ctrl_c_ends_following(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            with ctl.started("trace") as trace:
                wait_for_line(trace, "following new sessions")
                trace.send_signal(signal.SIGINT)
                self.assertEqual(trace.communicate(timeout=PATIENCE), ("", ""))
            self.assertEqual(trace.returncode, 0)

    def test_who_follows_is_told_when_the_relay_is_gone(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (relay, ctl):
            with ctl.started("trace") as trace:
                wait_for_line(trace, "following new sessions")
                relay.signal(signal.SIGTERM)
                out, err = trace.communicate(timeout=PATIENCE)
            self.assertEqual((trace.returncode, out), (3, ""))
            self.assertEqual(err, f"fwdrelayctl: the connection to {ctl.admin} ended\n")


class Draining(CommandsTestCase, every_pump=False):
    def test_until_the_relay_is_gone(self) -> None:
        with Upstream() as upstream:
            for relay, ctl in self.both_ways(upstream):
                with relay.connect() as client, upstream.accept() as server:
                    with ctl.started("drain", "--wait") as waiting:
                        wait_for_line(waiting, "1 session left")
                        self.assertEqual(ctl.json("status")["state"], "draining")
                        self.assertIs(waiting.poll(), None)
                        client.close()
                        self.assertEqual(read_all(server), b"")
                        server.close()
                        out, _ = waiting.communicate(timeout=PATIENCE)
                    self.assertEqual((waiting.returncode, out), (0, "The relay has stopped.\n"))
                relay.process.wait(PATIENCE)
                ctl("status", status=3)

    def test_now(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (relay, ctl):
            with relay.connect() as client, upstream.accept() as server:
                self.assertEqual(ctl("drain"), "The relay drains, and stops then.\n")
                wait_until(lambda: ctl.json("status")["state"] == "draining")
                self.assertEqual(ctl.json("drain", "--now", "--wait"), {"state": "draining"})
                self.assertEqual(read_until_reset(client), b"")
                self.assertEqual(read_until_reset(server), b"")
            relay.process.wait(PATIENCE)

    def test_at_a_terminal_it_asks_once(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (relay, ctl):
            for answer in ("n\r", "\r", "\x03", "\x04"):
                with Terminal(ctl, "drain") as terminal:
                    terminal.wait_for("Are you sure\\?")
                    terminal.wait_until_it_waits()
                    terminal.press(answer)
                    self.assertIn("nothing was done", terminal.end(1))
            self.assertEqual(ctl.json("status")["state"], "running")
            with Terminal(ctl, "drain", "--wait") as terminal:
                terminal.wait_for("Are you sure\\?")
                terminal.press("y\r")
                self.assertIn("The relay has stopped.", terminal.end())
            relay.process.wait(PATIENCE)


class Top(CommandsTestCase, every_pump=False):
    def test_at_a_terminal(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(upstream) as (relay, ctl),
            relay.connect() as client,
            upstream.accept() as server,
            Terminal(ctl, "top") as terminal,
        ):
            terminal.wait_for(r"\x1b\[\?1049h", "sessions by rate", "spare", "relaying")
            client.sendall(b"x" * 10_000)
            read_exactly(server, 10_000)
            # All of it in one second, or over the more of them that a slow relay let pass.
            terminal.wait_for(r"up \x1b\S*[1-9][\d.]* (?:KiB|B)/s", "9.77 KiB")
            for sort in ("bytes", "age", "idle", "rate"):
                terminal.press("s")
                terminal.wait_for(f"sessions by {sort}")
            terminal.resize(8, 60)
            terminal.wait_for("sessions by")
            terminal.press("q")
            self.assertIn("\x1b[?1049l", terminal.end())

    def test_ways_to_end_it(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            for keys, number, status in (
                ("\x03", None, 0),
                ("\x04", None, 0),
                ("", signal.SIGINT, 0),
                ("", signal.SIGTERM, 143),
                ("", signal.SIGHUP, 129),
            ):
                with Terminal(ctl, "top") as terminal:
                    terminal.wait_for("sessions by rate")
                    if number is None:
                        terminal.press(keys)
                    else:
                        terminal.process.send_signal(number)
                    self.assertIn("\x1b[?1049l", terminal.end(status))

    def test_the_last_of_so_many_frames_stays(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(upstream) as (_, ctl),
            Terminal(ctl, "top", "--count", "2") as terminal,
        ):
            self.assertRegex(terminal.end(), r"(?s)\x1b\[\?1049l.*sessions by rate")

    def test_a_relay_that_goes_and_comes_back(self) -> None:
        path = self.path("admin.sock")
        options = ("--demo", "--admin", f"unix:{path}")
        with relaying(*options) as relay:
            terminal = Terminal(Ctl(f"unix:{path}"), "top")
            with terminal:
                terminal.wait_for("sessions by rate")
                relay.stop()
                terminal.wait_for("trying again")
                with relaying(*options):
                    terminal.wait_for("up for ", "sessions by rate")
                    terminal.press("q")
                    terminal.end()

    def test_no_relay_and_a_terminal_that_can_do_nothing(self) -> None:
        with Terminal(Ctl(f"unix:{self.path('none')}"), "top") as terminal:
            self.assertIn("no relay answers at", terminal.end(3))
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            ctl.environment["TERM"] = "dumb"
            with Terminal(ctl, "top") as terminal:
                told = terminal.end()
            self.assertIn("sessions by rate", told)
            self.assertNotIn("\x1b", told)


class Colours(CommandsTestCase, every_pump=False):
    def test_at_a_terminal_unless_one_wants_none(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            for word in ("status", "pools"):
                with Terminal(ctl, word) as terminal:
                    self.assertIn("\x1b[32m", terminal.end())
            ctl.environment["NO_COLOR"] = "1"
            for word in ("status", "pools", "sessions"):
                with Terminal(ctl, word) as terminal:
                    self.assertNotIn("\x1b", terminal.end())


class WhoMayAsk(CommandsTestCase, every_pump=False):
    def test_the_token(self) -> None:
        wrong = self.path("token")
        wrong.write_text("another")
        with Upstream() as upstream, self.configured(upstream, tcp=True) as (_, ctl):
            for file, words in (
                ("", "show a token with --token-file"),
                (str(wrong), "this is not the token"),
            ):
                other = Ctl(ctl.admin, file)
                for command in (
                    ("status",),
                    ("top",),
                    ("trace",),
                    ("kill", "1"),
                    ("reload",),
                    ("drain",),
                ):
                    done = other.run(*command)
                    self.assertEqual((done.returncode, done.stdout), (5, ""))
                    self.assertIn(words, done.stderr)
            right = ctl.environment["FWDRELAY_TOKEN_FILE"]
            Ctl(ctl.admin, str(wrong))("status", "--token-file", right)
            self.assertEqual(ctl.json("status")["state"], "running")

    def test_the_mode_of_the_socket(self) -> None:
        if not is_root() or find("setpriv") is None:
            raise unittest.SkipTest("it takes root, and setpriv to do without its powers")
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            os.chmod(ctl.admin.removeprefix("unix:"), 0)
            rights = ("--bounding-set", "-dac_override", "--inh-caps", "-dac_override")
            done = subprocess.run(
                ["setpriv", *rights, *PROGRAM, "status"],
                capture_output=True,
                text=True,
                env=ctl.environment,
                timeout=PATIENCE,
                check=False,
            )
        self.assertEqual((done.returncode, done.stdout), (5, ""))
        self.assertEqual(
            done.stderr, f"fwdrelayctl: you may not ask at {ctl.admin}: permission denied\n"
        )


class Pipes(CommandsTestCase, every_pump=False):
    def test_whoever_reads_has_had_enough(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            for words in (
                ("status",),
                ("pools", "--json"),
                ("top", "--json"),
                ("completion", "bash"),
            ):
                reading, writing = os.pipe()
                os.close(reading)
                try:
                    done = ctl.run(*words, stdout=writing)
                finally:
                    os.close(writing)
                self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_disk_that_is_full(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            for words in (("status",), ("pools", "--json")):
                with open("/dev/full", "w") as full:
                    done = ctl.run(*words, stdout=full)
                self.assertEqual(done.returncode, 1)
                self.assertEqual(
                    done.stderr, "fwdrelayctl: it cannot be written: no space left on device\n"
                )

    def test_no_streams_at_all(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (_, ctl):
            command = " ".join([*PROGRAM, "status"])
            done = subprocess.run(
                ["sh", "-c", f"{command} <&- >&- 2>&-"],
                env=ctl.environment,
                timeout=PATIENCE,
                check=False,
            )
        self.assertEqual(done.returncode, 0)

    def test_a_stdout_that_knows_ascii_only(self) -> None:
        with Upstream() as upstream, self.configured(upstream) as (relay, ctl):
            relay.reload(relay.file.read_text().replace("name=spare", "name=schön"))
            ctl.environment["PYTHONIOENCODING"] = "ascii"
            self.assertIn("sch\\xf6n", ctl("pools"))
            self.assertEqual(ctl.json("pools")["pools"][0]["targets"][1]["name"], "schön")


class Nobody(SynchronousTestCase):
    def test_no_relay_is_one_clear_line(self) -> None:
        done = Ctl("unix:/nonexistent/admin.sock").run("status")
        self.assertEqual((done.returncode, done.stdout), (3, ""))
        self.assertEqual(
            done.stderr,
            "fwdrelayctl: no relay answers at unix:/nonexistent/admin.sock: no such file; "
            "is it running with --admin?\n",
        )

    def test_another_program(self) -> None:
        with relaying("--demo") as relay:  # which answers HTTP, but not as a relay
            done = Ctl(f"127.0.0.1:{relay.port}").run("status")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn(f"what answers at 127.0.0.1:{relay.port} is no relay", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1)

    def test_what_is_not_drawn_with_is_not_imported(self) -> None:
        heavy = "{'rich', 'twisted', 'cattrs', 'asyncio'}"
        done = subprocess.run(
            [
                *(sys.executable, "-c"),
                f"import sys; import fwdrelay.ctl.commands; print({heavy} & set(sys.modules))",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(done.stdout, "set()\n")

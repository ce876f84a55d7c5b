"""What is wrong with a command line is one clear line and a status, not a traceback and not a process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

from tests.case import SynchronousTestCase
from tests.scenarios.relay_process import PATIENCE, TROUBLE, TWISTD, wait_until
from tests.scenarios.scenario import is_root

GOOD = ("--port", "0", "--target", "localhost:80")
EX_USAGE, EX_UNAVAILABLE, EX_CONFIG = 64, 69, 78

RIGHT = """
[[listener]]
name = "web"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "web"

[pool.web]
targets = ["localhost:80"]
"""
WRONG = """
[relay]
pump = "bicycle"

[[listener]]
name = "web"
listen = ["tcp:0:interface=127.0.0.1"]
timeouts = { idel = "5s" }
pool = "wbe"

[pool.web]
targets = ["localhost:80", "localhost"]
balance = "fairest"
"""


class StartUpErrors(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def run_to_its_end(
        self, *words: str, twistd: tuple[str, ...] = ("-n",)
    ) -> tuple[int, str, str]:
        """
        @return: exit status, and what it wrote to standard output and standard error.
        """
        done = subprocess.run(
            [
                sys.executable,
                *TWISTD[-2:],
                *twistd,
                f"--pidfile={self.folder / 'pid'}",
                "fwdrelay",
                *words,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=self.folder,
            check=False,
        )
        # A daemon tells its parent that it failed, and removes the file then.
        wait_until(lambda: not (self.folder / "pid").exists(), lambda: "the pid file is left")
        self.assertIsNone(TROUBLE.search(done.stdout + done.stderr), done.stdout + done.stderr)
        return done.returncode, done.stdout, done.stderr

    def fails(self, status: int, *words: str, saying: tuple[str, ...]) -> None:
        ended, _, errors = self.run_to_its_end(*words)
        self.assertEqual(len(errors.splitlines()), 1, errors)
        for part in saying:
            self.assertIn(part, errors)
        self.assertEqual(ended, status)

    def test_an_unknown_option_and_what_it_may_have_meant(self) -> None:
        saying = ("unknown option --idle-timout", "--idle-timeout")
        self.fails(EX_USAGE, *GOOD, "--idle-timout", "3s", saying=saying)

    def test_an_unknown_option_alone(self) -> None:
        self.fails(EX_USAGE, "--frobnicate", saying=("unknown option --frobnicate",))

    def test_an_option_without_its_value(self) -> None:
        self.fails(EX_USAGE, *GOOD, "--listen", saying=("listen", "requires argument"))

    def test_an_argument_that_is_none(self) -> None:
        self.fails(EX_USAGE, *GOOD, "localhost:81", saying=("unexpected argument 'localhost:81'",))

    def test_no_target(self) -> None:
        self.fails(EX_USAGE, "--port", "0", saying=("--target", "nothing to relay to", "HOST:PORT"))

    def test_both_a_target_and_the_demonstration(self) -> None:
        self.fails(EX_USAGE, *GOOD, "--demo", saying=("--target", "not both --demo and a target"))

    def test_nowhere_to_listen(self) -> None:
        self.fails(EX_USAGE, "--target", "localhost:80", saying=("nothing to listen on", "--port"))

    def test_values_that_make_no_sense(self) -> None:
        """One process for all: `--check` reads them just the same, and start-up costs the time."""
        wrong = [
            (("--target", "localhost"), "'localhost' is not a target"),
            (("--target", "localhost:0"), "'0' is not a port"),
            (("--target", "localhost:65536"), "'65536' is not a port"),
            (("--target", "::1:80"), "ambiguous"),
            (("--target", "[::1:80"), "is"),
            (("--target", "300.1.1.1:80"), "not an IPv4 address"),
            (("--target", "local host:80"), "not a host name"),
            (("--target", "unix:"), "1 to 107 bytes"),
            (("--target", "a:80,weight=x"), "'x' is not a whole number"),
            (("--target", "a:80,colour=red"), "it takes weight=N"),
            (("--target", "localhost:80"), "there twice"),
            (("--idle-timeout", "3"), "is not a duration"),
            (("--connect-timeout", "-1s"), "is not a duration"),
            (("--max-sessions", "many"), "is not a whole number"),
            (("--allow", "10.0.0.0/33"), "is not a network"),
            (("--deny", "somebody"), "is not a network"),
            (("--balance", "fair trade"), "'fair trade' is not one of"),
            (("--balance", "fair"), "fair"),
            (("--target", "a:80,weight=0"), "leave the target out"),
            (("--target", "srv:http"), "srv:_service._proto.domain"),
            (("--nameserver", "dns.example.com"), "is not a name server"),
            (("--pump", "hand"), "'hand' is not one of"),
            (("--access-log-format", "xml"), "'xml' is not one of"),
            (("--listen", "ssl:443"), "is not an endpoint"),
            (("--listen", "tcp:http"), "'tcp:http' is not a tcp: endpoint"),
            (("--listen", "tcp:0:backlog=x"), "is not a tcp: endpoint"),
            (("--port", "65536"), "'65536' is not a port"),
            (("--port", "http"), "'http' is not a port"),
        ]
        code = (
            "import sys, traceback; from fwdrelay.tap import Options\n"
            "for line in sys.stdin:\n"
            "    try: Options().parseOptions(line.rstrip('\\n').split('\\t'))\n"
            "    except SystemExit as exit: print(exit.code, file=sys.stderr)\n"
        )
        given = "\n".join("\t".join([*GOOD, *words]) for words, _ in wrong)
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=given,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        lines = done.stderr.splitlines()
        self.assertEqual(len(lines), 2 * len(wrong), done.stderr)
        for (words, saying), said, status in zip(wrong, lines[::2], lines[1::2], strict=True):
            self.assertIn(saying, said)
            self.assertTrue(said.startswith(f"fwdrelay: {words[0]}: "), said)
            self.assertEqual(status, str(EX_USAGE))

    def test_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            words = ("--port", port, "--interface", "127.0.0.1", "--target", "localhost:80")
            self.fails(EX_UNAVAILABLE, *words, saying=("cannot listen", "Address already in use"))

    def test_an_interface_that_is_not_this_machine_s(self) -> None:
        self.fails(
            EX_UNAVAILABLE, *GOOD, "--interface", "192.0.2.1", saying=("Cannot assign requested",)
        )

    def test_sockets_that_systemd_did_not_hand_over(self) -> None:
        endpoint = "systemd:domain=INET:index=0"
        saying = (f"cannot listen on {endpoint}", "no such socket")
        self.fails(EX_UNAVAILABLE, *GOOD, "--listen", endpoint, saying=saying)

    def test_a_unix_path_in_no_folder(self) -> None:
        path = self.folder / "nowhere" / "relay"
        self.fails(
            EX_UNAVAILABLE,
            *GOOD,
            "--listen",
            f"unix:{path}",
            saying=("cannot listen", "No such file"),
        )

    def test_a_standard_output_that_is_closed(self) -> None:
        command = [*TWISTD, "-n", "--pidfile=", "fwdrelay", *GOOD]
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *command],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
        self.assertEqual(done.returncode, EX_UNAVAILABLE)
        self.assertEqual(
            done.stderr,
            "fwdrelay: standard output is closed: direct it to a file, or to /dev/null\n",
        )

    def test_an_access_log_that_cannot_be_written(self) -> None:
        os.mkfifo(self.folder / "fifo")
        for path, why in (
            (self.folder, "Is a directory"),
            (self.folder / "nowhere" / "log", "No such file or directory"),
            (self.folder / "fifo", "nobody reads that pipe"),  # nobody reads it
        ):
            saying = ("cannot write the access log", str(path), why)
            self.fails(EX_UNAVAILABLE, *GOOD, "--access-log", str(path), saying=saying)

    @unittest.skipIf(is_root(), "root may write any file")
    def test_an_access_log_that_may_not_be_written(self) -> None:
        path = self.folder / "log"
        path.touch(mode=0o400)
        self.fails(EX_UNAVAILABLE, *GOOD, "--access-log", str(path), saying=("Permission denied",))

    def test_check_says_that_nothing_is_wrong(self) -> None:
        ended, said, errors = self.run_to_its_end(*GOOD, "--check")
        self.assertEqual((ended, errors), (0, ""))
        self.assertIn("nothing is wrong", said)

    def test_check_says_what_is_wrong(self) -> None:
        self.fails(EX_CONFIG, "--check", "--port", "0", saying=("nothing to relay to",))
        self.fails(EX_CONFIG, *GOOD, "--check", "--port", "70000", saying=("is not a port",))

    def write(self, text: str) -> str:
        """A configuration file; its path."""
        path = self.folder / "relay.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def test_a_file_that_is_wrong_is_told_all_at_once(self) -> None:
        path = self.write(WRONG)
        for more in ((), ("--check",)):
            ended, said, errors = self.run_to_its_end("--config", path, *more)
            self.assertEqual(ended, EX_CONFIG, errors)
            self.assertNotIn("listens on", said)
            self.assertEqual(
                [line.partition(f"{path}: ")[2].partition(": ")[0] for line in errors.splitlines()],
                [
                    "relay.pump",
                    "listener[0].timeouts.idel",
                    "listener[0].pool",
                    "pool.web.targets[1]",
                    "pool.web.balance",
                ],
                errors,
            )

    def test_a_file_that_is_not_there(self) -> None:
        path = str(self.folder / "none.toml")
        self.fails(EX_CONFIG, "--config", path, saying=(path, "No such file or directory"))

    def test_a_file_that_is_no_toml(self) -> None:
        self.fails(EX_CONFIG, "--config", self.write("[relay\n"), saying=("line 1, column 7",))

    def test_an_option_that_belongs_into_the_file(self) -> None:
        path = self.write(RIGHT)
        saying = ("--port: not beside --config", "listen of a [[listener]]")
        self.fails(EX_USAGE, "--config", path, "--port", "80", saying=saying)

    def test_check_says_that_nothing_is_wrong_with_a_file(self) -> None:
        path = self.write(RIGHT)
        ended, said, errors = self.run_to_its_end("--config", path, "--check")
        self.assertEqual((ended, errors), (0, ""))
        self.assertEqual(said, f"fwdrelay: nothing is wrong with {path}.\n")

    def test_a_port_of_a_file_that_is_taken(self) -> None:
        with self.taken_port() as port:
            path = self.write(RIGHT.replace("tcp:0", f"tcp:{port}"))
            self.fails(EX_UNAVAILABLE, "--config", path, saying=("Address already in use",))

    def test_a_daemon_tells_its_parent(self) -> None:
        with self.taken_port() as port:
            log = self.folder / "twistd.log"
            ended, _, errors = self.run_to_its_end(
                *("--port", port, "--interface", "127.0.0.1", "--target", "localhost:80"),
                twistd=(f"--logfile={log}",),
            )
        self.assertEqual(ended, 1)
        self.assertIn("Address already in use", errors)

    @contextlib.contextmanager
    def taken_port(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            yield str(taken.getsockname()[1])

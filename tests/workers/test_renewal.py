"""`fwdrelay.workers.renewal`: processes that become new ones, and what is tried before."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from attrs import evolve, frozen
from twisted.internet import process
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.scripts._twistd_unix import ServerOptions

from fwdrelay.config import Config, RelayConfig
from fwdrelay.ledger import Ledger
from fwdrelay.workers import renewal
from fwdrelay.workers.keeper import Keeper
from fwdrelay.workers.renewal import Command, sentence
from fwdrelay.workers.sockets import Sockets
from tests.case import LeavesNothingBehind, SynchronousTestCase, TestCase
from tests.scenarios.relay_process import PATIENCE, TWISTD

reactor: Any = the_reactor
ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent


def folder_for(test: LeavesNothingBehind) -> Path:
    """One that any user may enter, with a short name."""
    made = Path(tempfile.mkdtemp())
    test.addCleanup(shutil.rmtree, made)
    made.chmod(0o755)
    return made


# What is left behind.


class LeftBehind(SynchronousTestCase):
    def left(self, descriptor: int) -> dict[str, str]:
        return {"HOME": "/", renewal.RENEWAL: str(descriptor)}

    def test_it_is_there_once(self) -> None:
        environ = self.left(renewal.write({"number": 1, "text": "é" * 100_000}))
        self.assertEqual(
            renewal.read_from_environment(environ), {"number": 1, "text": "é" * 100_000}
        )
        self.assertEqual(environ, {"HOME": "/"})
        self.assertIsNone(renewal.read_from_environment(environ))

    def test_it_is_closed_on_exec(self) -> None:
        descriptor = renewal.write({})
        self.addCleanup(os.close, descriptor)
        self.assertFalse(os.get_inheritable(descriptor))

    def test_what_json_can_not_write_leaves_no_descriptor(self) -> None:
        self.assertRaises(TypeError, renewal.write, {"set": {1}})

    def wrong(self, environ: dict[str, str]) -> str:
        return str(self.assertRaises(ValueError, renewal.read_from_environment, environ))

    def test_another_format_is_refused(self) -> None:
        with mock.patch("fwdrelay.workers.renewal.FORMAT", 7):
            environ = self.left(renewal.write({}))
        self.assertEqual(
            self.wrong(environ),
            "what the former process has left has format 7, and this fwdrelay understands 1 only: it takes a"
            " restart",
        )

    def test_what_is_damaged_is_refused(self) -> None:
        for damaged in (b"", b"[]", b'{"format": "1"}', b'{"format": 1}', b"{", b"\xff"):
            descriptor = os.memfd_create("fwdrelay-renewal")
            os.write(descriptor, damaged)
            self.assertIn("what the former process has left", self.wrong(self.left(descriptor)))

    def test_a_variable_that_somebody_else_has_set_closes_nothing(self) -> None:
        for text in ("0", "", "x", "-1", "99999"):
            environ = {renewal.RENEWAL: text}
            self.assertIn(repr(text), self.wrong(environ))
            self.assertEqual(environ, {})

    def test_values_that_json_has_no_words_for(self) -> None:
        value = [Whole(1, {"a": Whole(2, ())})]
        self.assertEqual(renewal.unpacked(renewal.packed(value)), value)

    def test_values_of_another_version_are_none(self) -> None:
        with mock.patch.object(Whole, "__getstate__", lambda self: {"number": 1}):
            former = renewal.packed({"a": [Whole(1, 2)]})
        texts = [
            former,
            renewal.packed(Whole(1, 2)).replace("A", "B"),
            "",
            "?",
        ]
        for text in texts:
            self.assertIsNone(renewal.unpacked(text))


@frozen
class Whole:
    number: int
    more: object


# The command.


class Commands(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(sys, "executable", sys.executable)
        environ = {k: v for k, v in os.environ.items() if k != renewal.RENEWAL}
        patched = mock.patch.dict(os.environ, environ, clear=True)
        patched.start()
        self.addCleanup(patched.stop)

    def command(self, *words: str, before: tuple[str, ...] = ("twistd",)) -> Command:
        """Of a process that was started in that way."""
        self.patch(sys, "orig_argv", ["python", *before, *words])
        self.patch(sys, "argv", ["twistd", *words])
        twistd: Any = ServerOptions()
        twistd.parseOptions(words)
        return Command.of(twistd.subOptions)

    def again(self, *words: str, before: tuple[str, ...] = ("twistd",)) -> list[str]:
        """How it would be started anew."""
        command = self.command(*words, before=before)
        self.assertEqual(command.problem, "")
        first, *rest = command.arguments
        self.assertEqual(first, sys.executable)
        self.assertEqual(rest[: len(before)], list(before))
        return rest[len(before) :]

    OURS = ("fwdrelay", "--port", "5678", "--target", "[::1]:80")

    def test_in_the_foreground(self) -> None:
        self.assertEqual(self.again("-n", *self.OURS), ["--nodaemon", "--pidfile=", *self.OURS])

    def test_the_interpreters_options_stay(self) -> None:
        before = ("-W", "error", "-c", "import x; x.run()")
        self.again("-n", *self.OURS, before=before)
        self.again("-n", *self.OURS, before=("-X", "dev", "-m", "x"))

    def test_a_daemon_does_not_become_one_again(self) -> None:
        self.assertEqual(
            self.again(*self.OURS),
            ["--umask=077", "--logfile=twistd.log", "--nodaemon", "--pidfile=", *self.OURS],
        )
        self.assertEqual(
            self.again("--umask", "22", "-l", "x.log", *self.OURS),
            ["--umask=22", "-l", "x.log", "--nodaemon", "--pidfile=", *self.OURS],
        )
        for elsewhere in ("--syslog", "--logger=fwdrelay.observe.journal.operations"):
            self.assertEqual(
                self.again("--umask=22", elsewhere, *self.OURS),
                ["--umask=22", elsewhere, "--nodaemon", "--pidfile=", *self.OURS],
            )

    def test_what_is_done_once_is_not_done_again(self) -> None:
        self.assertEqual(
            self.again(
                "-nu", "nobody", "--gid", "0", "--euid", "--pidf", "x", "-d", "/", *self.OURS
            ),
            ["-d", "/", "--nodaemon", "--pidfile=", *self.OURS],
        )

    def test_again_and_again_it_is_the_same(self) -> None:
        for words in (self.OURS, ("-n", *self.OURS), ("-l", "x", "--syslog", *self.OURS)):
            once = self.again(*words)
            self.assertEqual(self.again(*once), once)

    def test_where_it_began(self) -> None:
        mask = os.umask(0o027)
        self.addCleanup(os.umask, mask)
        command = self.command("--pidfile", "x.pid", "-l", "x.log", *self.OURS)
        self.assertEqual(command.folder, os.getcwd())
        self.assertEqual(command.umask, 0o027)
        self.assertEqual(os.umask(0o027), 0o027)
        self.assertEqual(command.pid_file, os.path.join(os.getcwd(), "x.pid"))
        self.assertTrue(command.is_here)
        self.assertEqual(command.impossible, "")

    def test_the_pid_file_is_taken_back(self) -> None:
        path = str(folder_for(self) / "x.pid")
        before = renewal.write({}, path)
        self.addCleanup(os.close, before)
        os.environ[renewal.RENEWAL] = str(before)
        command = self.command("-n", "--pidfile=", *self.OURS)
        self.assertEqual(command.pid_file, os.path.abspath(path))
        twistd: dict[str, Any] = {"pidfile": ""}
        command.keep_pid_file(twistd)
        self.assertEqual(twistd["pidfile"], "")  # somebody has removed it
        Path(path).touch()
        command.keep_pid_file(twistd)
        self.assertEqual(twistd["pidfile"], os.path.abspath(path))
        other = {"pidfile": "other"}
        command.keep_pid_file(other)
        self.assertEqual(other["pidfile"], "other")

    def test_what_can_not_be_is_said(self) -> None:
        nobody = SimpleNamespace(parent=None)
        self.assertEqual(Command.of(nobody).impossible, "only what twistd has started can be")
        self.assertEqual(
            self.command("-n", "--chroot", "/x", *self.OURS).impossible,
            "it was started with --chroot, and there is nothing to start inside",
        )
        self.patch(sys, "executable", "")
        self.assertIn("interpreter", self.command("-n", *self.OURS).impossible)

    def test_a_program_of_ones_own_that_makes_up_twistds_options(self) -> None:
        self.patch(sys, "orig_argv", ["python", "program.py"])
        self.patch(sys, "argv", ["program.py"])
        twistd: Any = ServerOptions()
        twistd.parseOptions(["-n", *self.OURS])
        said = Command.of(twistd.subOptions).impossible
        self.assertEqual(said, "the command line that started it is not known")

    def test_what_has_become_impossible_since(self) -> None:
        missing = str(folder_for(self) / "missing")
        command = self.command("-l", f"{missing}/x.log", *self.OURS)
        self.assertIn("twistd's log", command.impossible)
        command = self.command("-n", *self.OURS)
        elsewhere = evolve(command, place=(0, 0), folder=missing)
        self.assertIn(missing, elsewhere.impossible)
        gone = evolve(command, arguments=(missing, "-n"))
        self.assertEqual(
            gone.impossible, f"the interpreter {missing} is gone, or can't be executed"
        )


# Processes that become new ones.

BEGINNING = """
    import json, os, select, signal, subprocess, sys, threading, time
    from fwdrelay.workers import renewal
    from fwdrelay.workers.renewal import Command

    def place():
        here = os.stat(".")
        return here.st_dev, here.st_ino

    def again(*arguments, folder=os.getcwd(), umask=0o022, pid_file=""):
        arguments = arguments or (sys.executable, __file__)
        return Command(tuple(arguments), folder, place(), umask, pid_file)

    def report(**what):
        print(json.dumps(what), flush=True)

    state = renewal.read_from_environment(os.environ)
"""


class Renewing(SynchronousTestCase):
    def becomes(self, script: str, **environ: str) -> dict[str, Any]:
        """
        Run a script that becomes a new one.

        @return: what it has reported.
        """
        folder = folder_for(self)
        path = folder / "script.py"
        path.write_text(textwrap.dedent(BEGINNING) + textwrap.dedent(script))
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def test_pid_children_and_descriptors_stay(self) -> None:
        found = self.becomes(
            """
            if state is None:
                reading, writing = os.pipe()
                other = os.pipe()
                child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                os.write(writing, b"told before")
                left = {"pid": os.getpid(), "pipe": [reading, writing], "other": other,
                        "child": child.pid, "stdin": child.stdin.fileno()}
                renewal.renew(left, [reading, writing, child.stdin.fileno()], again())
            renewal.keep_from_children([*state["pipe"], state["stdin"]])
            closed = []
            for each in state["other"]:
                try:
                    os.fstat(each)
                except OSError:
                    closed.append(each)
            os.close(state["stdin"])
            pid, status = os.waitpid(state["child"], 0)
            report(
                pid=os.getpid() == state["pid"],
                read=os.read(state["pipe"][0], 100).decode(),
                closed=closed == state["other"],
                child=(pid == state["child"], status),
                inheritable=any(map(os.get_inheritable, state["pipe"])),
                environ=[name for name in os.environ if name.startswith("FWDRELAY_RE")],
                descriptors=len(os.listdir("/proc/self/fd")) - 1,
            )
            """
        )
        self.assertEqual(
            found,
            {
                "pid": True,
                "read": "told before",
                "closed": True,
                "child": [True, 0],
                "inheritable": False,
                "environ": [],
                "descriptors": 5,  # the standard ones and the pipe
            },
        )

    def test_signals_wait_until_somebody_acts_on_them(self) -> None:
        found = self.becomes(
            """
            if state is None:
                renewal.hold()
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
                    os.kill(os.getpid(), number)
                renewal.renew({}, [], again())
            got = []
            for number in renewal.SIGNALS:
                signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
            renewal.unblock()
            report(got=sorted(got), blocked=[*signal.pthread_sigmask(signal.SIG_BLOCK, ())])
            """
        )
        self.assertEqual(found, {"got": ["SIGHUP", "SIGTERM", "SIGUSR2"], "blocked": []})

    def test_a_signal_that_another_thread_takes_in_the_last_moment_is_not_lost(self) -> None:
        found = self.becomes(
            """
            if state is None:
                signal.signal(signal.SIGTERM, lambda number, frame: None)
                threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
                execute = os.execv

                def execv(*arguments):
                    os.kill(os.getpid(), signal.SIGTERM)
                    late = renewal._read(int(os.environ[renewal.RENEWAL]))["late"]
                    select.select([late], [], [])  # the thread has it
                    execute(*arguments)

                os.execv = execv
                renewal.renew({}, [], again())
            got = []
            signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
            renewal.unblock()
            report(got=got)
            """
        )
        self.assertEqual(found, {"got": [signal.SIGTERM]})

    def test_where_it_began(self) -> None:
        found = self.becomes(
            """
            if state is None:
                began = os.getcwd()
                command = again(umask=0o031)
                os.chdir("/")
                os.umask(0o077)
                renewal.renew({"began": began}, [], command)
            report(folder=os.getcwd() == state["began"], umask=os.umask(0))
            """
        )
        self.assertEqual(found, {"folder": True, "umask": 0o031})

    def test_what_systemd_has_handed_over_is_not_new(self) -> None:
        found = self.becomes(
            """
            if state is None:
                os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
                renewal.renew({}, [], again())
            kept = {name: os.environ.get(name) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
            report(listen=[name for name in os.environ if name.startswith("LISTEN_")], **kept)
            """,
            NOTIFY_SOCKET="@nobody",
            WATCHDOG_USEC="1000000",
        )
        self.assertEqual(
            found, {"listen": [], "NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "1000000"}
        )

    def test_where_it_fails_all_is_as_it_was(self) -> None:
        found = self.becomes(
            """
            os.environ["LISTEN_FDNAMES"] = "web"
            reading, writing = os.pipe()
            os.set_inheritable(reading, True)
            wakeup, waker = os.pipe2(os.O_NONBLOCK)
            signal.set_wakeup_fd(waker)
            got = []
            signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
            command = again("/no/such/python", umask=0o031)
            os.mkdir("elsewhere")
            os.chdir("elsewhere")
            execute = os.execv

            def execv(*arguments):
                os.kill(os.getpid(), signal.SIGUSR1)
                execute(*arguments)

            os.execv = execv

            def everything():
                umask = os.umask(0o077)
                os.umask(umask)
                return [
                    dict(os.environ), os.getcwd(), umask, os.listdir("/proc/self/fd"),
                    [os.get_inheritable(each) for each in (reading, writing)],
                    [*signal.pthread_sigmask(signal.SIG_BLOCK, ())],
                ]

            before = everything()
            try:
                renewal.renew({"a": 1}, [reading, writing], command)
            except OSError as failed:
                report(
                    failed=failed.strerror, same=everything() == before, got=got,
                    wakeup=signal.set_wakeup_fd(-1) == waker,
                )
            """
        )
        self.assertEqual(
            found,
            {
                "failed": "No such file or directory",
                "same": True,
                "got": [signal.SIGUSR1],
                "wakeup": True,
            },
        )


PLUGIN = """
from twisted.application.service import ServiceMaker
renewing = ServiceMaker("Renewing", "renewing", "For a test.", "renewing")
"""
MODULE = """
import json, os, signal, socket, sys

from twisted.application.service import Service
from twisted.python import usage
from fwdrelay.workers import renewal


class Options(usage.Options):
    optParameters = [["reports", None, None, "where it reports to"]]
    optFlags = [["check", None, "try"]]


class Renewing(Service):
    def __init__(self, reactor, options, command, state):
        self.reactor, self.options, self.command = reactor, options, command
        self.generation = 0 if state is None else state["generation"] + 1
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.connect(options["reports"])

    def privilegedStartService(self):
        self.cwd = os.getcwd()

    def startService(self):
        self.reactor.callWhenRunning(self.running)

    def running(self):
        signal.signal(signal.SIGUSR2, lambda *received: self.reactor.callFromThread(self.renew))
        renewal.unblock()
        print("generation", self.generation)
        umask = os.umask(0o077)
        os.umask(umask)
        self.report(
            pid=os.getpid(), generation=self.generation, cwd=os.getcwd(), umask=umask, session=os.getsid(0),
            ids=[os.getuid(), os.geteuid(), os.getgid()], warnings=sys.warnoptions,
        )

    def report(self, **what):
        self.socket.send(json.dumps(what).encode())

    def renew(self):
        if self.command.impossible:
            self.report(impossible=self.command.impossible)
            return
        try:
            renewal.renew({"generation": self.generation}, [], self.command)
        except OSError as failed:
            self.report(failed=str(failed))


def makeService(options):
    from twisted.internet import reactor
    command = renewal.Command.of(options)
    command.keep_pid_file(options.parent)
    return Renewing(reactor, options, command, renewal.read_from_environment(os.environ))
"""


class TwistdTestCase(SynchronousTestCase):
    """A plugin of twistd that does nothing but be renewed."""

    def setUp(self) -> None:
        self.folder = folder_for(self)
        plugins = self.folder / "modules" / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "renewing_plugin.py").write_text(PLUGIN)
        (self.folder / "modules" / "renewing.py").write_text(MODULE)
        self.began = self.folder / "began"
        self.began.mkdir()
        self.reports = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.reports.close)
        self.reports.settimeout(PATIENCE)
        self.reports.bind(str(self.folder / "reports"))
        (self.folder / "reports").chmod(0o777)
        self.pid = 0

    def start(self, *twistd: str, by: tuple[str, ...] = TWISTD, umask: int = 0o022) -> None:
        """Have it run; it ends with the test."""
        output = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.addCleanup(os.close, output)
        self.process = subprocess.Popen(
            [*by, *twistd, "renewing", "--reports", str(self.folder / "reports")],
            cwd=self.began,
            env={**os.environ, "PYTHONPATH": f"{self.folder / 'modules'}:{ROOT}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            umask=umask,
        )
        self.addCleanup(self.end)

    def end(self) -> None:
        """However it is."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return (self.folder / "output").read_text()

    def report(self) -> dict[str, Any]:
        """The next."""
        try:
            found: dict[str, Any] = json.loads(self.reports.recv(1 << 16))
        except TimeoutError:
            self.fail(f"nothing was reported; it printed:\n{self.said()}")
        self.pid = found.get("pid", self.pid)
        return found

    def renewed(self, times: int = 2) -> list[dict[str, Any]]:
        """All reports of one that is renewed as often."""
        found = [self.report()]
        for _ in range(times):
            os.kill(self.pid, signal.SIGUSR2)
            found.append(self.report())
        self.assertEqual([each.get("generation") for each in found], list(range(times + 1)), found)
        return found

    def stop(self) -> None:
        """In order."""
        with pidfd(self.pid) as descriptor:
            os.kill(self.pid, signal.SIGTERM)
            ended, _, _ = select.select([descriptor], [], [], PATIENCE)
            self.assertTrue(ended, self.said())
        self.pid = 0  # which may be anybody's now

    def same(self, found: list[dict[str, Any]]) -> dict[str, Any]:
        """All but the generation."""
        for each in found:
            del each["generation"]
        self.assertEqual(found[1:], found[:-1])
        return found[0]


class Twistd(TwistdTestCase):
    """However it was started."""

    def test_in_the_foreground(self) -> None:
        self.start("-n", umask=0o027)
        found = self.same(self.renewed())
        self.assertEqual(found["pid"], self.process.pid)
        self.assertEqual((found["cwd"], found["umask"]), (str(self.began), 0o027))
        self.assertEqual(found["warnings"], ["error::ResourceWarning"])
        self.assertEqual((self.began / "twistd.pid").read_text(), str(self.pid))
        self.stop()
        self.assertFalse((self.began / "twistd.pid").exists())
        self.assertIn("generation 2", self.said())

    def test_the_script(self) -> None:
        self.start("-n", "--pidfile=", by=(str(BIN / "twistd"),))
        self.same(self.renewed())
        self.assertFalse((self.began / "twistd.pid").exists())
        self.stop()

    def test_a_module(self) -> None:
        (self.folder / "modules" / "starter.py").write_text(
            "from twisted.scripts.twistd import run\nrun()\n"
        )
        self.start("-n", by=(sys.executable, "-m", "starter"))
        self.same(self.renewed(1))
        self.stop()

    def test_a_daemon(self) -> None:
        (self.began / "run").mkdir()
        self.start("--rundir", "run", "--pidfile", "x.pid")
        found = self.same(self.renewed())
        self.assertEqual(self.process.wait(PATIENCE), 0)
        self.assertNotEqual(found["pid"], self.process.pid)
        self.assertEqual((found["cwd"], found["umask"]), (str(self.began / "run"), 0o077))
        self.assertEqual((self.began / "x.pid").read_text(), str(self.pid))
        log = (self.began / "twistd.log").read_text()
        for generation in range(3):
            self.assertIn(f"generation {generation}", log)
        self.stop()
        self.assertFalse((self.began / "x.pid").exists())

    def test_a_daemon_with_a_log_and_a_umask_of_its_own(self) -> None:
        self.start("--logfile", "x.log", "--umask", "026", "--pidfile=")
        found = self.same(self.renewed(1))
        self.assertEqual(found["umask"], 0o026)
        self.assertIn("generation 1", (self.began / "x.log").read_text())
        self.assertEqual(sorted(os.listdir(self.began)), ["x.log"])
        self.stop()


def reachable_by_all(folder: Path) -> tuple[str, ...]:
    """
    @param folder: where something can be put for it.
    @return: a command for twistd to be started by, so that whoever it becomes can execute this interpreter.
    """
    interpreter = Path(sys.executable).resolve()
    private = [each for each in interpreter.parents if not each.stat().st_mode & stat.S_IXOTH]
    if not private:
        return ()
    outer = private[-1]
    inner = outer / interpreter.relative_to(outer).parts[0]
    (folder / "kept").mkdir()
    script = (
        'set -e; mount --bind "$1" "$0"; mount -t tmpfs -o mode=755 none "$2"; mkdir "$1";'
        ' mount --bind "$0" "$1"; shift 2; exec "$@"'
    )
    return ("unshare", "-m", "sh", "-c", script, str(folder / "kept"), str(inner), str(outer))


class Privileges(TwistdTestCase):
    """Those that twistd has shed are not shed again."""

    if os.geteuid() != 0:
        skip = "it takes root to become somebody else"

    def setUp(self) -> None:
        super().setUp()
        self.nobody = pwd.getpwnam("nobody")
        self.within = (*reachable_by_all(self.folder), *TWISTD)
        self.uid = f"--uid={self.nobody.pw_uid}"

    def test_uid(self) -> None:
        nobody = self.nobody
        self.start("-n", self.uid, by=self.within)
        found = self.same(self.renewed())
        self.assertEqual(found["ids"], [nobody.pw_uid, nobody.pw_uid, nobody.pw_gid])
        # It is root's: nobody could not write it, and can't remove it, as without a renewal.
        self.assertEqual((self.began / "twistd.pid").read_text(), str(self.pid))
        self.assertNotIn("tried to drop privileges", self.said())
        self.stop()

    def test_euid(self) -> None:
        nobody = self.nobody
        self.start("-n", "--euid", self.uid, by=self.within)
        found = self.same(self.renewed(1))
        self.assertEqual(found["ids"][:2], [0, nobody.pw_uid])
        self.stop()

    def test_gid(self) -> None:
        self.start("-n", "--gid", str(self.nobody.pw_gid), by=self.within)
        self.assertEqual(self.same(self.renewed(1))["ids"], [0, 0, self.nobody.pw_gid])
        self.stop()

    def test_a_log_that_is_roots_is_said_before_anything_happens(self) -> None:
        self.start(self.uid, "--pidfile=", by=self.within)
        self.report()
        os.kill(self.pid, signal.SIGUSR2)
        said = self.report()["impossible"]
        self.assertEqual(
            said,
            "twistd's log, twistd.log, can't be opened for writing any more; its owner has to be who the process runs"
            " as",
        )
        shutil.chown(self.began / "twistd.log", self.nobody.pw_uid)
        os.kill(self.pid, signal.SIGUSR2)
        self.assertEqual(self.report()["generation"], 1)
        self.stop()

    def test_a_folder_that_is_roots_is_no_way_back(self) -> None:
        self.began.chmod(0o700)
        self.start("-n", self.uid, "--rundir", "/", by=self.within)
        self.report()
        os.kill(self.pid, signal.SIGUSR2)
        self.assertIn(str(self.began), self.report()["impossible"])
        self.stop()

    def test_a_folder_that_it_is_in_still_is_all_right(self) -> None:
        outer = self.began / "outer"
        self.began = outer / "began"
        self.began.mkdir(parents=True)
        outer.chmod(0o700)
        self.start("-n", self.uid, "--pidfile=", by=self.within)
        self.same(self.renewed())
        self.stop()


@contextlib.contextmanager
def pidfd(pid: int) -> Iterator[int]:
    """Readable when the process has ended (pidfd_open(2))."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# Rehearsals.


class Said(SynchronousTestCase):
    def test_our_own_sentences(self) -> None:
        said = (
            b"noise\n<3>fwdrelay: pool.a: wrong\nfwdrelay: pool.b: wrong, too\nException ignored\n"
        )
        self.assertEqual(sentence(said, b""), "pool.a: wrong; pool.b: wrong, too")

    def test_of_a_traceback_the_error(self) -> None:
        said = b'Traceback\n  File "x.py"\nImportError: no such name\n\n'
        self.assertEqual(sentence(said, b"Usage: ..."), "ImportError: no such name")

    def test_of_a_page_of_usage_the_last_line(self) -> None:
        self.assertEqual(
            sentence(b"", b"Usage: ...\n twistd: Unknown command\n"), "twistd: Unknown command"
        )

    def test_nothing(self) -> None:
        self.assertEqual(sentence(b"", b"\n"), "")


class Rehearsals(TestCase):
    """As `twistd fwdrelay --check` does it."""

    OPTIONS = ("fwdrelay", "--workers", "2", "--port", "0", "--target", "127.0.0.1:9")

    def setUp(self) -> None:
        self.ledger = Ledger.create()
        self.addCleanup(self.ledger.close)
        self.held: list[int] = []
        self.state: dict[str, Any] = {
            "called": "",
            "started": 0.0,
            "generation": 3,
            "ledger": self.ledger.fileno(),
            "admin": ["", -1],
            "sockets": Sockets(reactor).state(),
            "keeper": Keeper(reactor).state(),
            "reloads": {},
            "restarts": [0],
            "steered": [],
            "counted": renewal.packed(None),
            "departed": renewal.packed(None),
            "children": [],
        }

    async def test_what_would_be_left_behind_is_tried(self) -> None:
        del self.state["keeper"]
        self.assertIn("KeyError: 'keeper'", await self.rehearse(self.command()))

    def command(self, *options: str, folder: str = "") -> Command:
        arguments = (*TWISTD, "-n", "--pidfile=", *(options or self.OPTIONS))
        return Command(arguments, folder or os.getcwd(), None, 0o022)

    def rehearse(self, command: Command, **environ: str) -> Deferred[str]:
        with mock.patch.dict(os.environ, environ):
            return renewal.rehearse(
                reactor, command, self.state, [self.ledger.fileno(), *self.held], patience=PATIENCE
            )

    async def test_all_is_well(self) -> None:
        self.assertEqual(await self.rehearse(self.command()), "")

    async def test_of_more_descriptors_than_half_the_limit(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for _ in range(300):
            self.held.append(os.dup(self.ledger.fileno()))
            self.addCleanup(os.close, self.held[-1])
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(self.held) + 100, hard))
        self.assertEqual(await self.rehearse(self.command()), "")
        self.assertFalse(any(map(os.get_inheritable, self.held)))

    async def test_the_code_of_today_is_tried_and_not_that_of_this_process(self) -> None:
        for module, source, said in (
            (
                "workers/supervisor.py",
                "from os import nothing\n",
                "ImportError: cannot import name 'nothing'",
            ),
            (
                "workers/worker.py",
                "this is no Python\n",
                "/fwdrelay/workers/worker.py, line 1)",
            ),
            (
                "tap.py",
                "import nothing_such\n",
                "ModuleNotFoundError: No module named 'nothing_such'",
            ),
            ("workers/renewal.py", None, "has format 1, and this fwdrelay understands 2 only"),
        ):
            folder = folder_for(self)
            package = folder / "fwdrelay"
            shutil.copytree(
                ROOT / "fwdrelay", package, ignore=shutil.ignore_patterns("__pycache__")
            )
            path = package / module
            if source is None:
                source = path.read_text().replace("FORMAT = 1\n", "FORMAT = 2\n")
            path.write_text(source)
            wrong = await self.rehearse(self.command(folder=str(folder)))
            self.assertIn(said, wrong)
            self.assertNotIn("\n", wrong)

    async def test_what_is_wrong_with_the_configuration(self) -> None:
        folder = folder_for(self)
        (folder / "x.toml").write_text(
            '[relay]\nworkers = 2\npump = "hand"\n[pool.a]\ntargets = [""]\n'
        )
        wrong = await self.rehearse(
            self.command("fwdrelay", "--config", "x.toml", folder=str(folder))
        )
        self.assertIn("relay.pump", wrong)
        self.assertIn("pool.a", wrong)

    async def test_an_unknown_option(self) -> None:
        wrong = await self.rehearse(self.command(*self.OPTIONS, "--no-such"))
        self.assertIn("--no-such", wrong)

    async def test_workers_can_not_be_given_up(self) -> None:
        options = [word.replace("2", "0") if word == "2" else word for word in self.OPTIONS]
        wrong = await self.rehearse(self.command(*options))
        self.assertIn("takes a restart", wrong)

    async def test_an_interpreter_that_is_gone(self) -> None:
        command = evolve(self.command(), arguments=("/no/such/python", "x"))
        self.assertIn("No such file", await self.rehearse(command))

    async def test_a_folder_that_is_gone(self) -> None:
        wrong = await self.rehearse(self.command(folder="/no/such/folder"))
        self.assertIn("/no/such/folder", wrong)

    async def test_one_that_dies(self) -> None:
        script = "import os; os.kill(os.getpid(), 9)"
        command = evolve(self.command(), arguments=(sys.executable, "-c", script))
        self.assertEqual(await self.rehearse(command), "a rehearsal was killed by SIGKILL")

    async def test_one_that_says_nothing(self) -> None:
        command = evolve(self.command(), arguments=(sys.executable, "-c", "raise SystemExit(3)"))
        self.assertEqual(await self.rehearse(command), "a rehearsal ended with status 3")

    async def test_one_that_says_too_much(self) -> None:
        script = "import sys; sys.exit('x\\n' * 1_000_000 + 'fwdrelay: too much')"
        command = evolve(self.command(), arguments=(sys.executable, "-c", script))
        self.assertEqual(await self.rehearse(command), "too much")

    async def test_one_that_does_not_end(self) -> None:
        clock: Any = Clock()
        clock.spawnProcess = reactor.spawnProcess
        script = "import time; time.sleep(1000)"
        command = evolve(self.command(), arguments=(sys.executable, "-c", script))
        done = renewal.rehearse(clock, command, {}, patience=7.0)
        clock.advance(7.0)
        self.assertEqual(await done, "a rehearsal did not come to an end within 7 s")

    async def test_nobody_wants_to_know_any_more(self) -> None:
        script = "import time; time.sleep(1000)"
        command = evolve(self.command(), arguments=(sys.executable, "-c", script))
        done = self.rehearse(command)
        (pid,) = process.reapProcessHandlers
        done.cancel()
        await self.assertFailure(done, CancelledError)
        while pid in process.reapProcessHandlers:
            await deferLater(reactor, 0.01)


class NoRehearsal(SynchronousTestCase):
    def test_a_check_by_hand_tries_nothing_more(self) -> None:
        self.assertEqual(renewal.rehearsed({"HOME": "/"}, Config(listeners=(), pools=())), "")

    def test_what_is_not_there(self) -> None:
        environ = {renewal.REHEARSAL: "77777"}
        self.assertIn(
            "77777",
            renewal.rehearsed(
                environ, Config(listeners=(), pools=(), relay=RelayConfig(workers=1))
            ),
        )
        self.assertEqual(environ, {})

"""
How the supervisor is renewed in place: by execv(2), so that its PID, its children and its descriptors stay.

What it knows goes from one to the other as JSON in a memfd, whose number stands in the environment. What that is,
and when to renew, `fwdrelay.workers.supervisor` says.
"""

from __future__ import annotations

import base64
import getopt
import importlib
import json
import os
import pickle
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Self

import attrs
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

from ..config import Config
from ..observe.output import settle, unsaid

RENEWAL = "FWDRELAY_RENEWAL"
REHEARSAL = "FWDRELAY_REHEARSAL"
"""Environment variables with the number of a descriptor: of what was left behind, and of what is to be tried."""
FORMAT = 1
"""Of what is left behind. A newer fwdrelay may read older ones; what it can't read, it refuses in the rehearsal."""
PATIENCE = 30.0
"""Seconds that a rehearsal may take."""
SIGNALS = frozenset(
    (
        *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD),
    )
)
"""Those that wait while nobody is there to act on them."""
UNSAID = "unsaid"
"""Where in the state is what the process could not say any more: a `fwdrelay.observe.output.Unsaid`."""
_NAME = "fwdrelay-renewal"
_MOST = 1 << 16
"""Bytes of what a rehearsal says that are looked at, from the end."""
_OF_THE_FIRST = ("uid", "gid", "euid", "pidfile", "nodaemon")
"""Options of twistd that only the first process acts on: the others are what they made of it."""
_OF_SYSTEMD = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_SUPERVISOR = "fwdrelay.workers.supervisor"
_MODULES = (_SUPERVISOR, "fwdrelay.workers.worker")


# The command.


@frozen
class Command:
    """
    What makes this process anew.

    @ivar arguments: to be executed, the interpreter first.
    @ivar folder: where twistd was started, and what relative paths begin at.
    @ivar place: the same as device and inode; None: it is gone.
    @ivar umask: that twistd was started with.
    @ivar pid_file: empty: there is none.
    @ivar log_file: twistd's; empty: it writes none.
    @ivar problem: why it can't be done; empty: nothing is known.
    """

    arguments: tuple[str, ...]
    folder: str
    place: tuple[int, int] | None
    umask: int
    pid_file: str = ""
    log_file: str = ""
    problem: str = ""

    @classmethod
    def of(cls, options: Any) -> Self:
        """
        To be called before twistd goes elsewhere, which it does after it has made its service, and before what was
        left behind is taken.

        @param options: ours; their `parent` is twistd's, if that has started this.
        """
        twistd = options.parent
        try:
            folder = os.getcwd()
        except OSError:
            folder = ""
        umask = os.umask(0o077)
        os.umask(umask)
        here = _place()
        if twistd is None or "nodaemon" not in twistd:
            return cls((), folder, here, umask, problem="only what twistd has started can be")
        try:
            arguments = _again(twistd)
        except ValueError as wrong:
            return cls((), folder, here, umask, problem=str(wrong))
        pid_file = twistd["pidfile"] or _pid_file_before(os.environ)
        return cls(
            tuple(arguments),
            folder,
            here,
            umask,
            pid_file and os.path.join(folder, pid_file),
            _log_file(twistd),
        )

    @property
    def impossible(self) -> str:
        """A sentence, why this process can't be renewed just now; empty: nothing is known that would hinder it."""
        if self.problem:
            return self.problem
        if not _may(self.arguments[0], os.X_OK):
            return f"the interpreter {self.arguments[0]} is gone, or can't be executed"
        if not self.is_here and not _may(self.folder, os.X_OK):
            return (
                f"twistd was started in {self.folder or 'a folder that is gone'}, where this process can't go any"
                " more; start it in another"
            )
        if self.log_file and not _may_append(self._at(self.log_file)):
            return (
                f"twistd's log, {self.log_file}, can't be opened for writing any more; its owner has to be who the"
                " process runs as"
            )
        return ""

    @property
    def is_here(self) -> bool:
        """Whether the process is still in the folder where twistd was started."""
        return self.place is not None and _place() == self.place

    def _at(self, path: str) -> str:
        return path if self.is_here else os.path.join(self.folder, path)

    def keep_pid_file(self, twistd: MutableMapping[str, Any]) -> None:
        """
        Have the pid file again that twistd was not told of, as it would have taken its own pid there for somebody
        else's. To be called when it has looked, which is when it makes its service.
        """
        if not twistd.get("pidfile") and self.pid_file and _may(self.pid_file, os.W_OK):
            twistd["pidfile"] = self.pid_file


def _again(twistd: Any) -> list[str]:
    """
    @return: the command line of a process that is to be what this one has become.
    @raise ValueError: it can't be known, or done.
    """
    if not sys.executable:
        raise ValueError("the interpreter does not know where it is")
    launched = sys.argv[1:]
    head = sys.orig_argv[: len(sys.orig_argv) - len(launched)]
    try:
        options, rest = getopt.getopt(launched, twistd.shortOpt, twistd.longOpt)
    except getopt.GetoptError:
        options, rest = [], []
    if sys.orig_argv != head + launched or rest[:1] != [twistd.subCommand]:
        raise ValueError("the command line that started it is not known")
    if twistd["chroot"] is not None:
        raise ValueError("it was started with --chroot, and there is nothing to start inside")
    kept: list[str] = []
    for option, value in options:
        name = option.lstrip("-")
        known = name if name in twistd.synonyms else name.replace("-", "_")
        if twistd.synonyms[known] in _OF_THE_FIRST:
            continue
        if not option.startswith("--"):
            kept += [option, value] if f"{name}:" in twistd.shortOpt else [option]
        else:
            kept.append(f"{option}={value}" if f"{name}=" in twistd.longOpt else option)
    if not (twistd["nodaemon"] or twistd["debug"]):
        # What it has by being a daemon, it gets by options from now on.
        if twistd["umask"] is None:
            kept.append("--umask=077")
        if _log_file(twistd) and not twistd["logfile"]:
            kept.append(f"--logfile={_log_file(twistd)}")
    return [
        *(sys.executable, *head[1:], *kept),
        *("--nodaemon", "--pidfile=", *rest),
    ]


def _log_file(twistd: Any) -> str:
    """
    @return: where twistd writes its log; empty: elsewhere.
    """
    if twistd["logger"] is not None or twistd["syslog"] or twistd["logfile"] == "-":
        return ""
    if twistd["logfile"]:
        return str(twistd["logfile"])
    return "" if twistd["nodaemon"] or twistd["debug"] else "twistd.log"


def _place() -> tuple[int, int] | None:
    try:
        here = os.stat(".")
    except OSError:
        return None
    return here.st_dev, here.st_ino


def _may(path: str, mode: int) -> bool:
    # With --euid, twistd goes on as somebody else in effect only.
    return os.access(path, mode, effective_ids=True)


def _may_append(path: str) -> bool:
    if os.path.exists(path):
        return _may(path, os.R_OK | os.W_OK)
    return _may(os.path.dirname(path) or ".", os.W_OK | os.X_OK)


# What is left behind.


def write(state: Mapping[str, Any], pid_file: str = "", late: int = -1) -> int:
    """
    @param state: JSON can write it.
    @param late: the descriptor by which is known which signals came too late.
    @return: a descriptor to read it from, closed on exec.
    """
    envelope = {"format": FORMAT, "pid_file": pid_file, "late": late, "state": state}
    data = json.dumps(envelope).encode()
    descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_from_environment(environ: MutableMapping[str, str]) -> dict[str, Any] | None:
    """
    Take what was left behind for this process. It is there once.

    @return: None: this process is the first.
    @raise ValueError: it can't be understood.
    """
    text = environ.pop(RENEWAL, None)
    if text is None:
        return None
    descriptor = _descriptor(text)
    try:
        envelope = _read(descriptor)
    finally:
        os.close(descriptor)
    if envelope["late"] >= 0:
        _raise_late(envelope["late"])
    state: dict[str, Any] = envelope["state"]
    return state


def _raise_late(descriptor: int) -> None:
    """Signals that came when nobody could act on them any more come again; they wait to be let through."""
    with open(descriptor, "rb") as late:
        for number in set(late.read() or b""):
            if number in SIGNALS:
                signal.raise_signal(number)


def _pid_file_before(environ: Mapping[str, str]) -> str:
    try:
        return str(_read(_descriptor(environ[RENEWAL]))["pid_file"])
    except (KeyError, ValueError):
        return ""


def _descriptor(text: str) -> int:
    """
    @raise ValueError: it is none of ours.
    """
    with suppress(ValueError, OSError):
        descriptor = int(text)
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"/memfd:{_NAME}"):
            return descriptor
    raise ValueError(f"what a former process has left is not there: descriptor {text!r} is not it")


def _read(descriptor: int) -> dict[str, Any]:
    """
    @raise ValueError: it can't be understood.
    """
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    try:
        envelope = json.loads(data)
    except ValueError:
        envelope = None
    if not isinstance(envelope, dict) or not isinstance(envelope.get("format"), int):
        raise ValueError("what the former process has left can't be read")
    if envelope["format"] != FORMAT:
        raise ValueError(
            f"what the former process has left has format {envelope['format']}, and this fwdrelay understands"
            f" {FORMAT} only: it takes a restart"
        )
    if not isinstance(envelope.get("state"), dict) or not isinstance(envelope.get("late"), int):
        raise ValueError("what the former process has left lacks a part")
    return envelope


def packed(value: object) -> str:
    """
    @return: a value that JSON has no words for, as a string.
    """
    return base64.b64encode(pickle.dumps(value)).decode()


def unpacked(text: str) -> Any:
    """
    @return: of `packed`; None, where this version would have it in another form.
    """
    try:
        value = pickle.loads(base64.b64decode(text))
    except Exception:  # it may be anything that another version had
        return None
    return value if is_whole(value) else None


def is_whole(value: object) -> bool:
    """
    @return: whether all its classes have today's attributes: pickle looks for none.
    """
    if attrs.has(type(value)):
        missing = object()
        kind: Any = type(value)
        parts = [getattr(value, each.name, missing) for each in attrs.fields(kind)]
        return all(part is not missing and is_whole(part) for part in parts)
    if isinstance(value, Mapping):
        return all(is_whole(key) and is_whole(each) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_whole, value))
    return True


# The renewal.


def hold() -> None:
    """
    Have signals wait. What those ask for that came before is done when the reactor has had another turn, so that
    nothing of it is lost by a `renew` after that.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock() -> None:
    """Have signals wait no more: there is who acts on them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def keep_from_children(descriptors: Iterable[int]) -> None:
    """From now on they are closed in what this process executes."""
    for each in descriptors:
        os.set_inheritable(each, False)


def renew(state: Mapping[str, Any], descriptors: Iterable[int], command: Command) -> NoReturn:
    """
    Become a new one.

    @param descriptors: that it is to have, by the same numbers.
    @raise OSError: that can't be; all is as it was.
    """
    settle()
    with (
        _held() as late,
        _left_behind(write({**state, UNSAID: unsaid()}, command.pid_file, late)) as left,
        _inheritable([left, late, *descriptors]),
        _where_it_began(command),
        _environment({RENEWAL: str(left)}),
    ):
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()  # type: ignore[union-attr]
        os.execv(command.arguments[0], command.arguments)


@contextmanager
def _held() -> Iterator[int]:
    """
    Have signals wait. One that another thread takes nonetheless would be lost with this process.

    @return: a descriptor which tells of those.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    hold()
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        with suppress(BlockingIOError):
            late = os.read(reading, 1 << 12)
            if before >= 0:
                os.write(before, late)
        os.close(reading)
        os.close(writing)
        unblock()


@contextmanager
def _left_behind(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _inheritable(descriptors: list[int]) -> Iterator[None]:
    before = [(each, os.get_inheritable(each)) for each in descriptors]
    try:
        for each in descriptors:
            os.set_inheritable(each, True)
        yield
    finally:
        for each, inheritable in before:
            os.set_inheritable(each, inheritable)


@contextmanager
def _where_it_began(command: Command) -> Iterator[None]:
    """Relative paths, and what the umask is added to, are those of where twistd was started."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not command.is_here:
            os.chdir(command.folder)
        umask = os.umask(command.umask)
        try:
            yield
        finally:
            os.umask(umask)
            os.fchdir(here)
    finally:
        os.close(here)


@contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    """What systemd has handed over is handed on by us; it must not be taken for new."""
    before = {name: os.environ[name] for name in (*added, *_OF_SYSTEMD) if name in os.environ}
    for name in _OF_SYSTEMD:
        os.environ.pop(name, None)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
        os.environ.update(before)


# The rehearsal.


def rehearse(
    reactor: Any,
    command: Command,
    state: Mapping[str, Any],
    descriptors: Iterable[int] = (),
    patience: float = PATIENCE,
) -> Deferred[str]:
    """
    Try in another process whether the code and the configuration that there are now would do.

    @param reactor: `twisted.internet.interfaces.IReactorProcess` and `IReactorTime`.
    @param descriptors: those in `state`, which it has by the same numbers; it does nothing with them but close them.
    @return: fires with what is wrong, a sentence; empty: nothing is.
    """
    rehearsal = _Rehearsal(patience)
    left = -1
    passed = list(descriptors)
    number = max([2, *passed]) + 1
    try:
        left = write(state)
        # Of each that would be closed on exec, Twisted has the child make a copy first, by a number of its own: of many
        # there are no numbers left.
        with _inheritable(passed):
            reactor.spawnProcess(
                rehearsal,
                command.arguments[0],
                [*command.arguments, "--check"],
                env={**os.environ, REHEARSAL: str(number)},
                path=None if command.is_here else command.folder,
                childFDs={0: "w", 1: "r", 2: "r", **{each: each for each in passed}, number: left},
            )
    except OSError as failed:
        rehearsal.over(f"a rehearsal can't be started: {failed.strerror}")
    else:
        rehearsal.wait(reactor)
    finally:
        if left >= 0:
            os.close(left)
    return rehearsal.done


def rehearsed(environ: MutableMapping[str, str], config: Config) -> str:
    """
    What a rehearsal looks at besides the configuration: that all the code is there, and could go on from what would
    be left behind.

    @param config: what is asked for now.
    @return: what is wrong, a sentence; empty: nothing is, or this is no rehearsal.
    """
    text = environ.pop(REHEARSAL, None)
    if text is None:
        return ""
    if not config.relay.workers:
        return "there are workers now, and none in the configuration any more: that takes a restart"
    try:
        envelope = _read(_descriptor(text))
        for name in _MODULES:
            importlib.import_module(name)
        importlib.import_module(_SUPERVISOR).try_to_go_on(config, envelope["state"])
    except ValueError as wrong:
        return str(wrong)
    except SyntaxError as broken:  # which tells its file's name without the folder by itself
        return f"{type(broken).__name__}: {broken.msg} ({broken.filename}, line {broken.lineno})"
    except Exception as broken:
        return " ".join(f"{type(broken).__name__}: {broken}".split())
    return ""


class _Rehearsal(ProcessProtocol):
    """
    @ivar done: fires with what is wrong.
    """

    def __init__(self, patience: float) -> None:
        self.done: Deferred[str] = Deferred(lambda done: self._end())
        self._patience = patience
        self._said = {1: b"", 2: b""}
        self._late: Any = None
        self._too_late = False

    def wait(self, reactor: Any) -> None:
        """It has as long as that."""
        self._late = reactor.callLater(self._patience, self._end)

    def _end(self) -> None:
        self._too_late = True
        self._stop_waiting()
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")

    def _stop_waiting(self) -> None:
        late, self._late = self._late, None
        if late is not None and late.active():
            late.cancel()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._said[childFD] = (self._said[childFD] + data)[-_MOST:]

    def processEnded(self, reason: Any) -> None:
        self._stop_waiting()
        ended = reason.value
        if self._too_late:
            self.over(f"a rehearsal did not come to an end within {self._patience:g} s")
        elif ended.exitCode == 0:
            self.over("")
        else:
            how = (
                f"ended with status {ended.exitCode}"
                if ended.signal is None
                else f"was killed by {signal.Signals(ended.signal).name}"
            )
            self.over(sentence(self._said[2], self._said[1]) or f"a rehearsal {how}")

    def over(self, wrong: str) -> None:
        """It is over."""
        if not self.done.called:
            self.done.callback(wrong)


_OURS = re.compile(r"(?:<[0-7]>)?fwdrelay: (.*)")


def sentence(*said: bytes) -> str:
    """
    @param said: all that a process has said, by each of its ways; what matters more first.
    @return: the end of it in one line: our own sentences, or the last one, which of a traceback is the error.
    """
    texts = [text.decode("utf-8", "replace").splitlines() for text in said]
    ours = [match[1] for text in texts for line in text if (match := _OURS.match(line))]
    if ours:
        return "; ".join(ours)
    lines = [line.strip() for text in texts for line in reversed(text) if line.strip()]
    return lines[0] if lines else ""

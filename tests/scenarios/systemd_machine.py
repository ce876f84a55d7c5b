"""
A machine of one's own for the systemd scenarios: the real systemd as PID 1 of fresh namespaces.

Here lives how it is booted, entered and thrown away; what is tried in it is `test_systemd`'s. Its
file system is this computer's own seen through an overlay in memory, so whatever happens inside
(users created, units enabled, logs written, temporary files cleaned at boot) is gone with it. Its
network is its own, with a loopback interface alone.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SYSTEMD = Path("/lib/systemd/systemd")
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
CLONE_NEWNET = 0x40000000  # linux/sched.h

PATIENCE = 60.0
"""Seconds after which anything awaited here has failed, even on a busy computer."""

_numbers = itertools.count(1)

# $1: a cgroup. The cgroup namespace is rooted in the group that its first process is in.
_ENTER = """
echo $$ > "$1/cgroup.procs"
shift
exec "$@"
"""

# $1: a directory of ours, $2: a tree to copy over the root, the rest: units of this computer that the
# machine has too.
#
# systemd-tmpfiles cleans /tmp and /var/tmp at boot, so those and /run are the machine's own before
# systemd starts, although the overlay alone would already keep this computer's from harm.
_BOOT = """
scratch=$1 tree=$2
shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs "$scratch/memory"
cd "$scratch/memory"
mkdir upper work root
cp -a "$tree/." upper/
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for directory in run tmp var/tmp; do
    mount -t tmpfs -o mode=1777 tmpfs "$directory"
done
chmod 755 run
mkdir run/host
mount --bind "$scratch/host" run/host

mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

units=$PWD/usr/lib/systemd/system
mkdir run/units
for unit; do
    cp -P "$units/$unit" run/units/
done
mount -t tmpfs -o mode=755 tmpfs "$units"
mv run/units/* "$units/"
for directory in usr/lib/systemd/system-generators etc/systemd/system; do
    mount -t tmpfs -o mode=755 tmpfs "$directory"
done
if [ -d "$tree/etc/systemd/system" ]; then
    cp -R "$tree/etc/systemd/system/." etc/systemd/system/
fi
mkdir -p run/systemd/system run/systemd/journald.conf.d
cat > run/systemd/system/machine.target << END
[Unit]
Requires=basic.target systemd-journald.service
After=basic.target
END
cat > run/systemd/journald.conf.d/machine.conf << END
[Journal]
Storage=volatile
ReadKMsg=no
RateLimitBurst=0
END
tr -d - < proc/sys/kernel/random/uuid > run/machine-id
mount --bind run/machine-id etc/machine-id

mkdir run/outside
pivot_root . run/outside
cd /
umount -l /run/outside
rmdir /run/outside
exec env -i container=fwdrelay-test NOTIFY_SOCKET=/run/host/notify \
    PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd \
    --unit=machine.target --log-target=journal --show-status=no < /dev/null
"""

_UNITS = (
    "basic.target",
    "exit.target",
    "final.target",
    "local-fs-pre.target",
    "local-fs.target",
    "multi-user.target",
    "network-online.target",
    "network.target",
    "nss-lookup.target",
    "paths.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "swap.target",
    "sysinit.target",
    "systemd-exit.service",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "timers.target",
    "umount.target",
)


@functools.cache
def why_not() -> str | None:
    """What this computer lacks for such a machine, as a sentence; None: nothing."""
    if os.geteuid() != 0:
        return "booting systemd in namespaces needs root"
    if not SYSTEMD.exists():
        return f"booting systemd needs {SYSTEMD}"
    for program in (
        "mount",
        "nsenter",
        "pivot_root",
        "setpriv",
        "systemctl",
        "systemd-analyze",
        "unshare",
    ):
        if shutil.which(program) is None:
            return f"booting systemd in namespaces needs the program {program}"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "booting systemd in namespaces needs overlayfs in the kernel"
    if _cgroup2() is None:
        return "booting systemd in namespaces needs a cgroup2 hierarchy mounted read-write"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if tried.returncode != 0:
        return f"this environment does not permit namespaces: {tried.stderr.strip()}"
    return None


class Machine:
    """
    One booted systemd.

    `stop` ends it, with every process in it, and leaves nothing. It also ends with the process that
    booted it, however that dies.
    """

    def __init__(self, tree: Path) -> None:
        """
        Boot and wait until the boot is complete.

        :param tree: copied over the root of the file system: what is installed in the machine.
        """
        cgroups = _cgroup2()
        assert cgroups is not None, "ask why_not() first"
        self._scratch = Path(tempfile.mkdtemp(prefix="fwdrelay-machine-"))
        (self._scratch / "memory").mkdir()
        (self._scratch / "host").mkdir()
        self._cgroup = cgroups / f"fwdrelay-machine-{os.getpid()}-{next(_numbers)}"
        self._cgroup.mkdir()
        self._output = (self._scratch / "output").open("w+")
        self._outer: subprocess.Popen[bytes] | None = None
        self._inside: ThreadPoolExecutor | None = None
        try:
            self._boot(tree)
        except BaseException:
            self.stop()
            raise

    def _boot(self, tree: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(self._scratch / "host" / "notify"))
            self._outer = subprocess.Popen(
                [
                    *(
                        "setpriv",
                        "--pdeathsig",
                        "KILL",
                        "sh",
                        "-euc",
                        _ENTER,
                        "enter",
                        str(self._cgroup),
                    ),
                    *(
                        "unshare",
                        *NAMESPACES,
                        "--propagation",
                        "private",
                        "--fork",
                        "--kill-child=KILL",
                    ),
                    *("sh", "-euc", _BOOT, "boot", str(self._scratch), str(tree), *_UNITS),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
            )
            self._await_boot(notified, self._outer)
        (self.pid,) = _children(self._outer.pid)
        self._inside = ThreadPoolExecutor(
            max_workers=1, initializer=_enter_network, initargs=(self.pid,)
        )

    def _await_boot(self, notified: socket.socket, outer: subprocess.Popen[bytes]) -> None:
        """As any service does, systemd says READY=1 to whoever started it: its target is reached."""
        deadline = time.monotonic() + PATIENCE
        notified.settimeout(0.2)
        while True:
            try:
                if b"READY=1" in notified.recv(4096).split(b"\n"):
                    return
            except TimeoutError:
                pass
            if outer.poll() is not None or time.monotonic() > deadline:
                self._output.seek(0)
                raise AssertionError(
                    f"systemd did not boot: {self._output.read() or 'it said nothing'}"
                )

    def stop(self) -> None:
        """End the machine at once."""
        if self._inside is not None:
            self._inside.shutdown()
        if self._outer is not None:
            # With PID 1 the kernel ends every process of the namespace. unshare reaps it and ends.
            children = _children(self._outer.pid) if self._outer.poll() is None else []
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            if not children:
                self._outer.kill()
            self._outer.wait(PATIENCE)
        self._output.close()
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            until(functools.partial(_removed, directory), f"end of all processes in {directory}")
        shutil.rmtree(self._scratch)

    def path(self, name: str) -> Path:
        """A file of the machine, as this process can open it: Unix sockets, too."""
        return Path(f"/proc/{self.pid}/root") / name.lstrip("/")

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, whatever it exits with."""
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), *NAMESPACES, "--wd=/", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "SYSTEMD_PAGER": "cat",
            },
        )

    def do(self, *command: str, stdin: str = "") -> str:
        """Run a command that must succeed; what it printed."""
        done = self.run(*command, stdin=stdin)
        if done.returncode != 0:
            raise AssertionError(
                f"{command} exited with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}\n{self.journal()}"
            )
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.do("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def journal(self, unit: str | None = None) -> str:
        """What a unit (or everybody) logged so far, one message a line."""
        self.run("journalctl", "--sync")
        which = ("--unit", unit) if unit else ()
        return self.run("journalctl", "--no-pager", "--quiet", "--output=cat", *which).stdout

    def in_network(self, call: Callable[[], T]) -> T:
        """
        Call something in a thread that lives in the machine's network.

        A socket belongs for ever to the network it was made in, so it can then be used anywhere.
        """
        assert self._inside is not None
        return self._inside.submit(call).result(PATIENCE)

    def connect(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """Connect to the machine from within."""
        return self.in_network(lambda: socket.create_connection((host, port), timeout=PATIENCE))

    def listen(self, port: int = 0, host: str = "127.0.0.1") -> socket.socket:
        """Listen within the machine."""
        return self.in_network(lambda: socket.create_server((host, port)))

    def udp(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """A datagram socket bound within the machine."""

        def bound() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((host, port))
            return made

        return self.in_network(bound)


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Ask again and again for what tells nobody when it happens."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s in vain: {what}")
        time.sleep(0.02)


def _cgroup2() -> Path | None:
    """Where cgroup2 is mounted here, writable: alone or beside the older hierarchies."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        fields: Sequence[str] = mount.split()
        if kind.split()[0] == "cgroup2" and fields[3] == "/" and os.access(fields[4], os.W_OK):
            return Path(fields[4])
    return None


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _enter_network(pid: int) -> None:
    """Move this thread, alone, to the network of a process. (`os.setns` comes with Python 3.12.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def _removed(cgroup: str) -> bool:
    try:
        Path(cgroup).rmdir()
    except OSError:
        return False
    return True

"""
The service under a real systemd: installed by `make install`, started, stopped, crashed and hung.

Each test has a machine of its own (`systemd_machine`) and plays both ends itself: client and
upstream are sockets of this process in the machine's network.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.case import SynchronousTestCase
from tests.scenarios.systemd_machine import PATIENCE, Machine, until, why_not

CHECKOUT = Path(__file__).parents[2]
UNITS = ("fwdrelay.service", "fwdrelay@.service", "fwdrelay.socket")
PORT = 5678
MEGABYTE = bytes(1 << 20)
SYSTEM_PYTHON = "/usr/bin/python3"

# Run as a service with the sandbox of fwdrelay@.service: what the relay, its TLS and its workers ask
# of the kernel.
_PROBE = r"""
import array, fcntl, mmap, os, select, signal, socket, subprocess, sys
from OpenSSL import SSL, crypto

left, right = socket.socketpair()
pipe_out, pipe_in = os.pipe()
fcntl.fcntl(pipe_in, fcntl.F_SETPIPE_SZ, 1 << 17)
right.sendall(b"spliced")
assert os.splice(left.fileno(), pipe_in, 100, flags=0) == 7
assert os.splice(pipe_out, left.fileno(), 7) == 7
assert right.recv(100) == b"spliced"

socket.send_fds(left, [b"x"], [pipe_out])
assert socket.recv_fds(right, 1, 1)[1]
os.close(os.memfd_create("state"))
os.close(os.pidfd_open(os.getpid()))

polled = select.epoll()
polled.register(right, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
left.shutdown(socket.SHUT_WR)
assert polled.poll(10)[0][1] & select.EPOLLRDHUP

for family in (socket.AF_INET, socket.AF_INET6):
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.bind(("", 0))

subprocess.run([sys.executable, "-c", "import select"], check=True)

# Workers: their channels, what is held of their sessions, whose line it is in the access log.
with socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0]:
    pass
both_ends = os.open(f"/proc/self/fd/{pipe_in}", os.O_RDWR | os.O_NONBLOCK)
fcntl.lockf(both_ends, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.close(both_ends)
shared = os.memfd_create("shared")
os.ftruncate(shared, 4096)
mmap.mmap(shared, 4096).close()
os.close(shared)
child = os.posix_spawn(sys.executable, [sys.executable, "-c", "input()"], os.environ)
signal.pidfd_send_signal(os.pidfd_open(child), signal.SIGKILL)
os.waitpid(child, 0)

# A verify callback is code that cffi makes at run time.
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
import datetime
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "probe")])
now = datetime.datetime.now(datetime.timezone.utc)
certificate = (
    x509.CertificateBuilder()
    .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    .sign(key, hashes.SHA256())
)
asked = []
def verify(*arguments):
    asked.append(arguments)
    return True
server, client = SSL.Context(SSL.TLS_METHOD), SSL.Context(SSL.TLS_METHOD)
server.use_privatekey(crypto.PKey.from_cryptography_key(key))
server.use_certificate(crypto.X509.from_cryptography(certificate))
client.set_verify(SSL.VERIFY_PEER, verify)
one, other = SSL.Connection(server, None), SSL.Connection(client, None)
one.set_accept_state()
other.set_connect_state()
for _ in range(4):
    for source, sink in ((other, one), (one, other)):
        try:
            source.do_handshake()
        except SSL.WantReadError:
            pass
        try:
            sink.bio_write(source.bio_read(1 << 16))
        except SSL.WantReadError:
            pass
assert asked, "the verify callback was never called"
print("the sandbox lets everything pass")
"""


@functools.cache
def installed() -> Path:
    """
    What `make install DESTDIR=` makes of the checkout, once for all tests.

    Made from a copy, since building leaves its traces where it is done.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fwdrelay-installed-"))
    atexit.register(shutil.rmtree, scratch)
    ignored = shutil.ignore_patterns(
        # Of the last there is another one for a moment while a relay of another test writes it anew.
        *(".*", "build", "*.egg-info", "__pycache__", "_trial_temp*", "*dropin.cache*")
    )
    shutil.copytree(CHECKOUT, scratch / "checkout", ignore=ignored)
    make(scratch / "checkout", "install", f"DESTDIR={scratch / 'tree'}")
    return scratch / "tree"


def make(directory: Path, *arguments: str) -> None:
    """Run make, which must succeed, as from a fresh shell: not as a part of a make around us."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in {"HOME", "PATH", "TMPDIR"} or name.startswith("PIP_")
    }
    done = subprocess.run(
        ["make", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(
            f"make {arguments} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
        )


@functools.cache
def no_python() -> str | None:
    """Why nothing can be installed from here; None: it can."""
    try:
        tried = subprocess.run(
            [
                SYSTEM_PYTHON,
                "-c",
                "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))",
            ],
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        return f"make install needs {SYSTEM_PYTHON}"
    return (
        f"make install needs {SYSTEM_PYTHON} to be 3.11 or newer, with venv"
        if tried.returncode
        else None
    )


def skip_unless(lack: str | None) -> None:
    """Skip the test that asks, where something is lacking."""
    if lack is not None:
        raise unittest.SkipTest(lack)


def target(listening: socket.socket) -> str:
    """An upstream as `--target` takes it."""
    host, port = listening.getsockname()[:2]
    return f"{host}:{port}"


def dns_answer(question: bytes) -> bytes:
    """
    The answer to a DNS question (RFC 1035, section 4).

    Every name has the one address 127.0.0.1.
    """
    end = question.index(b"\0", 12) + 5
    is_a = question[end - 4 : end - 2] == b"\0\1"
    head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + bytes(4)
    return head + question[12:end] + (b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_a else b"")


def answer_names(server: socket.socket) -> None:
    """Be a name server until an empty datagram comes."""
    while True:
        question, asker = server.recvfrom(512)
        if not question:
            return
        server.sendto(dns_answer(question), asker)


def until_found(pattern: str, text: Callable[[], str]) -> None:
    """Wait until a text has a line with a pattern in it."""
    until(lambda: re.search(pattern, text(), re.MULTILINE), f"{pattern} in:\n{text()}")


def received(end: socket.socket) -> bytes:
    """All that comes until the other side is done."""
    chunks = []
    while chunk := end.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def cut_off(end: socket.socket) -> bool:
    """Wait until the other side has gone, however it went."""
    try:
        return received(end) == b""
    except ConnectionResetError:
        return True


class ServiceTests(SynchronousTestCase):
    """fwdrelay.service, fwdrelay@.service and fwdrelay.socket in a machine that was just booted."""

    def setUp(self) -> None:
        skip_unless(why_not() or no_python())
        self.machine = Machine(installed())
        self.addCleanup(self.machine.stop)
        self.machine.do("systemd-sysusers")
        self.upstream = self.listen()

    def listen(self) -> socket.socket:
        """An upstream in the machine."""
        return self.kept(self.machine.listen())

    def kept(self, made: socket.socket) -> socket.socket:
        """A socket that does not wait for ever, and that ends with the test."""
        made.settimeout(PATIENCE)
        self.addCleanup(made.close)
        return made

    def configure(self, *options: str, name: str = "fwdrelay") -> None:
        """Write the environment file of the service, or of an instance of it."""
        path = self.machine.path(f"/etc/fwdrelay/{name}.env")
        path.write_text(f"FWDRELAY_OPTIONS={' '.join(options)}\n")

    def relay_to_upstream(self, *options: str) -> None:
        """Start the service between port 5678 and `self.upstream`."""
        self.configure("--port", str(PORT), "--target", target(self.upstream), *options)
        self.machine.do("systemctl", "start", "fwdrelay")

    def drop_in(self, unit: str, text: str) -> None:
        """Change a unit as an operator would with `systemctl edit`."""
        path = self.machine.path(f"/etc/systemd/system/{unit}.d/test.conf")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.machine.do("systemctl", "daemon-reload")

    def connect(self, port: int = PORT, host: str = "127.0.0.1") -> socket.socket:
        """A client in the machine."""
        return self.kept(self.machine.connect(port, host))

    def accepted(self, upstream: socket.socket | None = None) -> socket.socket:
        """The next connection that the relay makes."""
        return self.kept((upstream or self.upstream).accept()[0])

    def session(self, port: int = PORT) -> tuple[socket.socket, socket.socket]:
        """A client and its upstream, that have spoken with each other."""
        client = self.connect(port)
        upstream = self.accepted()
        self.assert_relayed(client, upstream)
        return client, upstream

    def assert_relayed(self, client: socket.socket, upstream: socket.socket) -> None:
        """Something goes each way."""
        client.sendall(b"ping")
        self.assertEqual(upstream.recv(100), b"ping")
        upstream.sendall(b"pong")
        self.assertEqual(client.recv(100), b"pong")

    def assert_finishes(self, client: socket.socket, upstream: socket.socket) -> None:
        """What began before goes on to its proper end, both ways, with a lot still to come."""
        self.assert_relayed(client, upstream)
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(received(upstream), b"")
        upstream.sendall(MEGABYTE)
        upstream.close()
        self.assertEqual(received(client), MEGABYTE)

    def until_state(self, state: str, unit: str = "fwdrelay.service") -> None:
        """Wait for a unit's state: active, deactivating, inactive, failed."""
        until(
            lambda: self.machine.show(unit, "ActiveState") == state,
            f"{unit} {state}: {self.machine.journal()}",
        )

    def until_restarted(self, old: str) -> None:
        """Wait for another process than `old` to be up."""
        show = self.machine.show
        until(lambda: show("fwdrelay", "MainPID") not in ("0", old), "another process")
        self.until_state("active")

    def test_relays_as_it_was_installed(self) -> None:
        self.upstream = self.kept(self.machine.listen(80, "localhost"))
        self.machine.do("systemctl", "enable", "--now", "fwdrelay")
        self.session()

    def test_an_address_within_an_endpoint_description(self) -> None:
        listen = r"tcp6:5678:interface=\\\\:\\\\:1"
        self.configure("--listen", listen, "--target", target(self.upstream))
        self.machine.do("systemctl", "start", "fwdrelay")
        self.assert_relayed(self.connect(host="::1"), self.accepted())

    def test_is_active_only_once_it_listens(self) -> None:
        self.relay_to_upstream()
        self.session()
        self.assertEqual(self.machine.show("fwdrelay", "ActiveState"), "active")

    def test_is_never_active_where_it_cannot_listen(self) -> None:
        taken = self.listen()
        port = taken.getsockname()[1]
        self.drop_in("fwdrelay.service", "[Service]\nRestart=no\n")
        self.configure(
            "--port", str(port), "--interface", "127.0.0.1", "--target", target(self.upstream)
        )
        self.assertNotEqual(self.machine.run("systemctl", "start", "fwdrelay").returncode, 0)
        self.assertEqual(self.machine.show("fwdrelay", "ActiveState"), "failed")
        self.assertEqual(self.machine.show("fwdrelay", "ActiveEnterTimestampMonotonic"), "0")
        self.assertIn(str(port), self.machine.journal("fwdrelay"))

    def test_relays_and_logs_to_the_journal(self) -> None:
        self.relay_to_upstream()
        self.assert_finishes(*self.session())
        until_found(r'\{.*"code".*\}$', lambda: self.machine.journal("fwdrelay"))

    def test_status_shows_the_session_count(self) -> None:
        self.relay_to_upstream()
        sessions = [self.session() for _ in range(3)]
        until_found(
            r"Status: .*\b3\b", lambda: self.machine.run("systemctl", "status", "fwdrelay").stdout
        )
        for client, upstream in sessions:
            client.close()
            upstream.close()
        until_found(r"\b0\b|\bno\b", lambda: self.machine.show("fwdrelay", "StatusText"))

    def test_restart_lets_an_open_session_finish(self) -> None:
        self.relay_to_upstream()
        old = self.machine.show("fwdrelay", "MainPID")
        client, upstream = self.session()
        self.machine.do("systemctl", "restart", "--no-block", "fwdrelay")
        self.until_state("deactivating")
        self.assert_finishes(client, upstream)
        self.until_restarted(old)
        self.session()

    def test_stop_lets_an_open_session_finish(self) -> None:
        self.relay_to_upstream()
        client, upstream = self.session()
        self.machine.do("systemctl", "stop", "--no-block", "fwdrelay")
        self.until_state("deactivating")
        until(self.refuses, "refusal of new connections")
        self.assert_finishes(client, upstream)
        self.until_state("inactive")
        self.assertEqual(self.machine.show("fwdrelay", "Result"), "success")

    def test_stop_cuts_what_does_not_end_by_the_deadline(self) -> None:
        self.relay_to_upstream("--drain-timeout", "500ms")
        client, upstream = self.session()
        self.machine.do("systemctl", "stop", "fwdrelay")
        self.assertTrue(cut_off(client))
        self.assertTrue(cut_off(upstream))
        self.assertEqual(self.machine.show("fwdrelay", "ActiveState"), "inactive")
        self.assertEqual(self.machine.show("fwdrelay", "Result"), "success")

    def test_a_second_sigterm_stops_at_once(self) -> None:
        self.relay_to_upstream()
        client, upstream = self.session()
        self.machine.do("systemctl", "stop", "--no-block", "fwdrelay")
        self.until_state("deactivating")
        until(self.refuses, "refusal of new connections")
        self.machine.do("systemctl", "kill", "fwdrelay")
        self.assertTrue(cut_off(client))
        self.assertTrue(cut_off(upstream))
        self.until_state("inactive")
        self.assertEqual(self.machine.show("fwdrelay", "Result"), "success")

    def workers(self) -> dict[int, int]:
        """The workers' processes, and how many sessions of each would outlive it."""
        told = json.loads(self.machine.do("/usr/local/bin/fwdrelayctl", "workers", "--json"))
        return {each["pid"]: each["kept"] for each in told["workers"] if each["state"] == "running"}

    def test_workers_are_one_unit_with_the_supervisor_as_its_main_process(self) -> None:
        self.relay_to_upstream("--workers", "2")
        main = self.machine.show("fwdrelay", "MainPID")
        client, upstream = self.session()
        until_found(
            "workers.worker", lambda: self.machine.run("systemctl", "status", "fwdrelay").stdout
        )
        self.machine.do("systemctl", "kill", "--signal=HUP", "fwdrelay")  # all of them
        self.assertEqual(self.machine.show("fwdrelay", "MainPID"), main)
        self.machine.do("systemctl", "stop", "--no-block", "fwdrelay")
        self.until_state("deactivating")
        until(self.refuses, "refusal of new connections")
        self.assert_finishes(client, upstream)
        self.until_state("inactive")
        self.assertEqual(self.machine.show("fwdrelay", "Result"), "success")

    def test_a_session_outlives_its_worker(self) -> None:
        admin = ("--admin", "unix:/run/fwdrelay/admin.sock")
        self.relay_to_upstream("--workers", "2", "--survive-crashes", *admin)
        main = self.machine.show("fwdrelay", "MainPID")
        client, upstream = self.session()
        until(lambda: sum(self.workers().values()) == 1, "the session to be kept")
        (victim,) = [pid for pid, kept in self.workers().items() if kept]
        self.machine.do("kill", "-KILL", str(victim))
        self.assert_finishes(client, upstream)
        self.assertEqual(self.machine.show("fwdrelay", "MainPID"), main)
        self.assertEqual(self.machine.show("fwdrelay", "NRestarts"), "0")

    def test_a_reload_that_upgrades_keeps_sessions_and_the_main_process(self) -> None:
        """What docs/systemd.md tells the operator."""
        drop_ins = "/etc/systemd/system/fwdrelay.service.d"
        drop_in = "/usr/local/share/doc/fwdrelay/upgrade-on-reload.conf"
        self.machine.do("mkdir", "-p", drop_ins)
        self.machine.do("cp", drop_in, drop_ins)
        self.machine.do("systemctl", "daemon-reload")
        self.relay_to_upstream("--workers", "2", "--survive-crashes")
        main = self.machine.show("fwdrelay", "MainPID")
        client, upstream = self.session()
        self.machine.do("systemctl", "reload-or-restart", "fwdrelay")
        until_found("upgraded in place", lambda: self.machine.journal("fwdrelay"))
        self.until_state("active")
        self.assertEqual(self.machine.show("fwdrelay", "MainPID"), main)
        self.assertEqual(self.machine.show("fwdrelay", "NRestarts"), "0")
        self.assert_finishes(client, upstream)
        self.session()

    def test_workers_accept_from_the_socket_that_systemd_holds(self) -> None:
        self.configure(
            *("--listen", "systemd:domain=INET6:index=0", "--target", target(self.upstream)),
            *("--workers", "2"),
        )
        self.machine.do("systemctl", "enable", "--now", "fwdrelay.socket")
        for _ in range(4):
            self.session()

    def upgrade(self) -> None:
        """What docs/systemd.md tells the operator, until all is said of it."""
        before = len(self.machine.journal("fwdrelay"))

        def said() -> list[str]:
            return re.findall(
                "Not upgraded|upgraded in place", self.machine.journal("fwdrelay")[before:]
            )

        self.machine.do("systemctl", "kill", "--kill-whom=main", "--signal=USR2", "fwdrelay")
        until(said, "the upgrade")
        self.assertEqual(said(), ["upgraded in place"], self.machine.journal("fwdrelay"))

    def test_an_upgraded_service_is_the_same_unit_and_drains_when_stopped(self) -> None:
        self.drop_in("fwdrelay.service", "[Service]\nWatchdogSec=10s\n")
        self.relay_to_upstream("--workers", "2", "--survive-crashes")
        main = self.machine.show("fwdrelay", "MainPID")
        client, upstream = self.session()
        self.upgrade()
        self.until_fed_for(12)  # by the new program, too
        self.assert_relayed(client, upstream)
        self.assertEqual(self.machine.show("fwdrelay", "MainPID"), main)
        self.assertEqual(self.machine.show("fwdrelay", "ActiveState"), "active")
        self.assertEqual(self.machine.show("fwdrelay", "NRestarts"), "0")
        self.machine.do("systemctl", "stop", "--no-block", "fwdrelay")
        self.until_state("deactivating")
        until(self.refuses, "refusal of new connections")
        self.assert_finishes(client, upstream)
        self.until_state("inactive")
        self.assertEqual(self.machine.show("fwdrelay", "Result"), "success")

    def test_an_upgrade_keeps_the_socket_that_systemd_holds(self) -> None:
        self.configure(
            *("--listen", "systemd:domain=INET6:index=0", "--target", target(self.upstream)),
            *("--workers", "2", "--survive-crashes", "--admin", "unix:/run/fwdrelay/admin.sock"),
        )
        self.machine.do("systemctl", "enable", "--now", "fwdrelay.socket")
        client, upstream = self.session()
        for _ in range(2):
            self.upgrade()
            self.assert_relayed(client, upstream)
            self.assert_finishes(*self.session())
        until(lambda: sum(self.workers().values()) == 1, "the session to be kept")
        for pid in self.workers():
            self.machine.do("kill", "-KILL", str(pid))
        self.assert_finishes(*self.session())
        self.assert_finishes(client, upstream)

    def refuses(self) -> bool:
        """Whether nobody listens on the port."""
        try:
            self.machine.connect(PORT).close()
        except ConnectionRefusedError:
            return True
        return False

    def activate_by_socket(self) -> None:
        """What docs/systemd.md tells the operator."""
        self.configure(
            "--listen", "systemd:domain=INET6:index=0", "--target", target(self.upstream)
        )
        self.machine.do("systemctl", "enable", "--now", "fwdrelay.socket")

    def test_the_first_connection_to_the_socket_starts_the_service(self) -> None:
        self.activate_by_socket()
        self.assertEqual(self.machine.show("fwdrelay", "ActiveState"), "inactive")
        self.session()
        self.assertEqual(self.machine.show("fwdrelay", "ActiveState"), "active")
        self.assert_relayed(self.connect(host="::1"), self.accepted())

    def test_a_connection_made_to_the_socket_during_a_restart_is_served(self) -> None:
        self.activate_by_socket()
        client, upstream = self.session()
        old = self.machine.show("fwdrelay", "MainPID")
        self.machine.do("systemctl", "restart", "--no-block", "fwdrelay")
        # It has been told by then, but may not have heard: it lets nobody in once it says so.
        until_found("Draining 1 session", lambda: self.machine.journal("fwdrelay"))
        meanwhile = self.connect()
        self.assert_finishes(client, upstream)
        self.assert_relayed(meanwhile, self.accepted())
        self.until_restarted(old)

    def test_a_crash_is_restarted(self) -> None:
        self.relay_to_upstream()
        client, upstream = self.session()
        old = self.machine.show("fwdrelay", "MainPID")
        self.machine.do("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "fwdrelay")
        self.assertTrue(cut_off(client))
        self.assertTrue(cut_off(upstream))
        self.until_restarted(old)
        self.session()

    def test_a_hung_process_is_killed_by_the_watchdog_and_restarted(self) -> None:
        self.drop_in("fwdrelay.service", "[Service]\nWatchdogSec=6s\n")
        self.relay_to_upstream()
        old = self.machine.show("fwdrelay", "MainPID")
        self.machine.do("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "fwdrelay")
        self.until_restarted(old)
        self.session()
        journal = self.machine.journal("fwdrelay")
        self.assertIn("Watchdog timeout", journal)
        self.assertIn("Fatal Python error: Aborted", journal, "the journal shows where it hung")

    def until_fed_for(self, seconds: int) -> None:
        """Wait until the watchdog has heard from the service for so long from now on: longer than it waits."""

        def last() -> int:
            return int(self.machine.show("fwdrelay", "WatchdogTimestampMonotonic"))

        start = last()
        until(lambda: last() > start + seconds * 1_000_000, "words")

    def test_the_watchdog_leaves_a_healthy_process_alone(self) -> None:
        self.drop_in("fwdrelay.service", "[Service]\nWatchdogSec=10s\n")
        self.relay_to_upstream()
        self.until_fed_for(12)
        self.assertEqual(self.machine.show("fwdrelay", "NRestarts"), "0")

    def test_the_sandbox_allows_low_ports_names_unix_targets_and_log_files(self) -> None:
        sockets = self.machine.path("/run/upstream.sock")
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.bind(str(sockets))
            upstream.listen()
            upstream.settimeout(PATIENCE)
            sockets.chmod(0o666)
            log = "/var/log/fwdrelay/access.log"
            self.configure(
                "--port", "80", "--target", "unix:/run/upstream.sock", "--access-log", log
            )
            self.machine.do("systemctl", "start", "fwdrelay")
            client = self.connect(80)
            self.assert_finishes(client, self.accepted(upstream))
        written = self.machine.path(log)
        until(lambda: written.exists() and written.read_text().endswith("\n"), "an access-log line")
        self.assertIn("code", json.loads(written.read_text()))
        self.assertEqual(self.machine.do("stat", "--format=%U %a", log), "fwdrelay 640\n")

    def entries(self, *which: str) -> list[dict[str, Any]]:
        """What the journal has now, all fields of it."""
        self.machine.run("journalctl", "--sync")
        told = self.machine.run("journalctl", "--no-pager", "--quiet", "--output=json", *which)
        return [json.loads(line) for line in told.stdout.splitlines()]

    def ended(self, count: int, *which: str) -> list[dict[str, Any]]:
        """The access log in the journal, as soon as it has that many entries."""
        which = ("FWDRELAY_LOG=access", *which)
        until(lambda: len(self.entries(*which)) >= count, f"{count} entries")
        return self.entries(*which)

    def test_the_access_log_in_the_journal_is_found_by_its_fields(self) -> None:
        self.relay_to_upstream("--access-log", "journald")
        pid = self.machine.show("fwdrelay", "MainPID")
        self.assert_finishes(*self.session())
        (found,) = self.ended(1, "FWDRELAY_REASON=done", f"FWDRELAY_BYTES_DOWN={8 + len(MEGABYTE)}")
        self.assertEqual(found["_SYSTEMD_UNIT"], "fwdrelay.service")
        self.assertEqual((found["_PID"], found["PRIORITY"]), (pid, "6"))
        self.assertEqual(found["SYSLOG_IDENTIFIER"], "fwdrelay")
        line = json.loads(found["MESSAGE"])
        for name, value in line.items():
            self.assertEqual(found[f"FWDRELAY_{name.upper()}"], str(value))
        self.assertEqual(self.entries("FWDRELAY_REASON=client-reset"), [])
        self.upstream.close()
        # Perhaps while it still connects.
        with contextlib.suppress(ConnectionResetError):
            self.assertTrue(cut_off(self.connect()))
        (failed,) = self.ended(1, "--unit=fwdrelay", "--priority=notice")
        self.assertEqual(failed["FWDRELAY_REASON"], "dial-failed")

    def test_a_restart_of_the_journal_loses_no_line(self) -> None:
        self.relay_to_upstream("--access-log", "journald")
        client, upstream = self.session()
        for _ in range(2):
            for _ in range(5):
                self.assert_finishes(*self.session())
            self.machine.do("systemctl", "restart", "systemd-journald")
        self.assert_finishes(client, upstream)
        names = {each["FWDRELAY_SESSION"] for each in self.ended(11)}
        self.assertEqual(len(names), 11)

    def test_what_the_relay_has_to_say_has_levels_and_fields(self) -> None:
        self.configure("--config", "/etc/fwdrelay/fwdrelay.toml")
        self.write_configuration(80, self.upstream)
        self.machine.do("systemctl", "start", "fwdrelay")
        unit = ("--unit=fwdrelay", "FWDRELAY_LOG=operations")

        def said() -> list[dict[str, Any]]:
            return [each for each in self.entries(*unit) if each["MESSAGE"].endswith(" is ready.")]

        until(said, "that it is ready")
        ready = said()
        self.assertEqual(
            [(each["PRIORITY"], each["FWDRELAY_NAMESPACE"]) for each in ready],
            [("6", "fwdrelay.relay.Relay")],
        )
        (listens,) = self.entries("FWDRELAY_LISTENER=main", "FWDRELAY_LOG=operations")
        self.assertIn("listens on", listens["MESSAGE"])
        self.assertEqual(self.entries("--unit=fwdrelay", "--priority=warning"), [])
        self.write_configuration(80, self.upstream, 'queue = "5"')
        self.machine.do("systemctl", "reload", "fwdrelay")
        until(lambda: len(self.entries(*unit, "--priority=err")) == 2, "what is wrong")
        wrong, unchanged = self.entries("--unit=fwdrelay", "--priority=warning")
        self.assertIn("pool.main.queue: '5' is not a duration", wrong["MESSAGE"])
        self.assertIn("Nothing was changed", unchanged["MESSAGE"])

    def test_why_it_cannot_start_is_an_error_in_the_journal(self) -> None:
        self.configure("--port", str(PORT), "--no-such-option")
        self.assertNotEqual(self.machine.run("systemctl", "start", "fwdrelay").returncode, 0)
        found = [each["MESSAGE"] for each in self.entries("--unit=fwdrelay", "--priority=err")]
        self.assertTrue(any("no-such-option" in each for each in found), found)
        self.assertFalse(any("<3>" in each for each in found), found)

    def test_sigusr1_begins_a_new_log_file_and_reloads_nothing(self) -> None:
        log = self.machine.path("/var/log/fwdrelay/access.log")
        self.relay_to_upstream("--access-log", "/var/log/fwdrelay/access.log")
        log.rename(log.with_suffix(".1"))
        self.machine.do("systemctl", "kill", "--signal=USR1", "fwdrelay")
        until(log.exists, "a new log file")
        self.session()
        self.until_state("active")

    def test_reload_opens_a_log_file_anew(self) -> None:
        log = self.machine.path("/var/log/fwdrelay/access.log")
        self.relay_to_upstream("--access-log", "/var/log/fwdrelay/access.log")
        self.assert_finishes(*self.session())
        until(lambda: log.exists() and log.stat().st_size, "an access-log line")
        log.rename(log.with_suffix(".1"))
        self.machine.do("systemctl", "try-reload-or-restart", "fwdrelay*.service")
        until(log.exists, "a new log file")
        self.assert_finishes(*self.session())
        until(lambda: log.stat().st_size, "an access-log line in the new file")

    def test_reload_puts_a_changed_configuration_file_in_force(self) -> None:
        self.configure("--config", "/etc/fwdrelay/fwdrelay.toml")
        self.write_configuration(80, self.upstream)
        self.machine.do("systemctl", "start", "fwdrelay")
        old = self.session(80)
        pid = self.machine.show("fwdrelay", "MainPID")
        # A port below 1024 can still be bound: the unit keeps the capability for it.
        upstream, self.upstream = self.upstream, self.listen()
        self.write_configuration(81, self.upstream)
        self.machine.do("systemctl", "reload", "fwdrelay")
        until(lambda: "is in force" in self.machine.journal(), "the new configuration")
        self.assert_finishes(*self.session(81))
        self.assert_finishes(*old)
        self.write_configuration(82, upstream, 'queue = "5"')
        self.machine.do("systemctl", "reload", "fwdrelay")
        until(lambda: "Nothing was changed" in self.machine.journal(), "what is wrong")
        self.assertIn("pool.main.queue: '5' is not a duration", self.machine.journal())
        self.assert_finishes(*self.session(81))
        self.assertEqual(self.machine.show("fwdrelay", "MainPID"), pid)
        self.until_state("active")

    def write_configuration(self, port: int, upstream: socket.socket, more: str = "") -> None:
        """The service's file: one port, one target."""
        self.machine.path("/etc/fwdrelay/fwdrelay.toml").write_text(
            f'[[listener]]\nname = "main"\nlisten = ["tcp:{port}"]\npool = "main"\n'
            f'[pool.main]\ntargets = ["{target(upstream)}"]\n{more}\n'
        )

    def test_the_sandbox_allows_name_resolution(self) -> None:
        self.machine.path("/etc/resolv.conf").unlink(missing_ok=True)
        self.machine.path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
        server = self.kept(self.machine.udp(53))
        answering = threading.Thread(target=answer_names, args=(server,))
        answering.start()
        self.addCleanup(answering.join)
        self.addCleanup(server.sendto, b"", server.getsockname())
        self.configure(
            "--port", str(PORT), "--target", f"relayed.example:{self.upstream.getsockname()[1]}"
        )
        self.machine.do("systemctl", "start", "fwdrelay")
        self.session()

    def test_the_sandbox_allows_what_the_relay_asks_of_the_kernel(self) -> None:
        self.machine.path("/etc/fwdrelay/probe.py").write_text(_PROBE)
        self.drop_in(
            "fwdrelay@probe.service",
            "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\n"
            "ExecStart=/usr/local/lib/fwdrelay/bin/python /etc/fwdrelay/probe.py\n",
        )
        self.machine.do("systemctl", "start", "fwdrelay@probe")
        self.assertIn("the sandbox lets everything pass", self.machine.journal("fwdrelay@probe"))

    def test_two_instances_run_beside_each_other(self) -> None:
        others = self.listen()
        self.configure("--port", "1001", "--target", target(self.upstream), name="one")
        self.configure("--port", "1002", "--target", target(others), name="two")
        self.machine.do("systemctl", "enable", "--now", "fwdrelay@one", "fwdrelay@two")
        self.assert_finishes(*self.session(1001))
        client = self.connect(1002)
        upstream = self.accepted(others)
        self.machine.do("systemctl", "stop", "fwdrelay@one")
        self.assert_finishes(client, upstream)
        self.assertEqual(self.machine.show("fwdrelay@two", "ActiveState"), "active")

    def test_a_bad_option_fails_at_once_with_one_clear_line(self) -> None:
        self.configure("--port", str(PORT), "--no-such-option")
        self.assertNotEqual(self.machine.run("systemctl", "start", "fwdrelay").returncode, 0)
        self.assertEqual(self.machine.show("fwdrelay", "ExecMainStatus"), "64")
        self.assertEqual(self.machine.show("fwdrelay", "SubState"), "failed")
        self.assertEqual(self.machine.show("fwdrelay", "NRestarts"), "0")
        journal = self.machine.journal("fwdrelay")
        self.assertEqual(len(re.findall("no-such-option", journal)), 1, journal)
        self.assertNotIn("Traceback", journal)

    def test_the_units_are_valid_and_little_exposed(self) -> None:
        paths = [f"/etc/systemd/system/{unit}" for unit in UNITS]
        verified = self.machine.run("systemd-analyze", "verify", *paths)
        self.assertEqual((verified.returncode, verified.stdout, verified.stderr), (0, "", ""))
        for path in paths[:2]:
            self.machine.do(
                "systemd-analyze",
                "security",
                "--no-pager",
                "--offline=true",
                "--threshold=15",
                path,
            )


class InstallTests(SynchronousTestCase):
    """`make install` and `make uninstall`."""

    def test_everything_is_staged_and_nothing_names_the_stage(self) -> None:
        skip_unless(no_python())
        tree = installed()
        for name in (
            *(f"etc/systemd/system/{unit}" for unit in UNITS),
            "etc/sysusers.d/fwdrelay.conf",
        ):
            self.assertEqual(
                (tree / name).read_text(),
                (CHECKOUT / "etc" / name.removeprefix("etc/")).read_text(),
            )
        self.assertTrue((tree / "etc/fwdrelay/fwdrelay.env").exists())
        documents = tree / "usr/local/share/doc/fwdrelay"
        self.assertTrue((documents / "systemd.md").exists())
        self.assertEqual(
            (documents / "upgrade-on-reload.conf").read_text(),
            (CHECKOUT / "etc/systemd/upgrade-on-reload.conf").read_text(),
        )
        self.assertEqual(
            (documents / "fwdrelay.logrotate").read_text(),
            (CHECKOUT / "etc/logrotate.d/fwdrelay").read_text(),
        )
        self.assertEqual(
            {path.name for path in (documents / "examples").iterdir()},
            {path.name for path in (CHECKOUT / "etc/fwdrelay/examples").iterdir()},
        )
        twistd = tree / "usr/local/lib/fwdrelay/bin/twistd"
        self.assertEqual(twistd.read_text().splitlines()[0], "#!/usr/local/lib/fwdrelay/bin/python")
        ctl = tree / "usr/local/bin/fwdrelayctl"
        self.assertEqual(ctl.resolve(), (twistd.parent / "fwdrelayctl").resolve())
        for completion, words in (
            ("bash-completion/completions/fwdrelayctl", "complete -o nosort -F "),
            ("zsh/site-functions/_fwdrelayctl", "#compdef fwdrelayctl\n"),
            ("fish/vendor_completions.d/fwdrelayctl.fish", "--command fwdrelayctl "),
        ):
            self.assertIn(words, (tree / "usr/local/share" / completion).read_text())
        naming = subprocess.run(
            ["grep", "-rlF", str(tree), str(tree)], capture_output=True, text=True, check=False
        )
        self.assertEqual(naming.stdout, "")

    def test_other_places_are_named_in_what_is_installed(self) -> None:
        tree = self.stage(
            "PREFIX=/opt/relay", "SYSCONFDIR=/opt/relay/etc", "UNITDIR=/usr/lib/systemd/system"
        )
        unit = (tree / "usr/lib/systemd/system/fwdrelay@.service").read_text()
        self.assertIn("ExecStart=/opt/relay/lib/fwdrelay/bin/twistd ", unit)
        self.assertIn("EnvironmentFile=-/opt/relay/etc/fwdrelay/%i.env", unit)
        self.assertNotIn("/usr/local", unit)
        self.assertTrue((tree / "opt/relay/etc/fwdrelay/fwdrelay.env").exists())

    def test_an_operators_environment_file_stays(self) -> None:
        tree = self.stage()
        environment = tree / "etc/fwdrelay/fwdrelay.env"
        environment.write_text("FWDRELAY_OPTIONS=--demo\n")
        make(CHECKOUT, "install-files", f"DESTDIR={tree}")
        self.assertEqual(environment.read_text(), "FWDRELAY_OPTIONS=--demo\n")
        prefix = tree / "usr" / "local"
        for name in (
            "bin/fwdrelayctl",
            "share/bash-completion/completions/fwdrelayctl",
            "share/zsh/site-functions/_fwdrelayctl",
            "share/fish/vendor_completions.d/fwdrelayctl.fish",
        ):
            (prefix / name).parent.mkdir(parents=True, exist_ok=True)
            (prefix / name).symlink_to("nowhere")
        make(CHECKOUT, "uninstall", f"DESTDIR={tree}")
        left = [path for path in tree.rglob("*") if path.is_file() or path.is_symlink()]
        self.assertEqual(left, [environment])

    def stage(self, *variables: str) -> Path:
        """A staged tree without the virtual environment, which takes long."""
        directory = tempfile.TemporaryDirectory(prefix="fwdrelay-stage-")
        self.addCleanup(directory.cleanup)
        make(CHECKOUT, "install-files", f"DESTDIR={directory.name}", *variables)
        return Path(directory.name)

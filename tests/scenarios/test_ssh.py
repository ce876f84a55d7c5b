"""Protocols in which the server speaks first: a real sshd with ssh, scp and sftp; a mail dialogue."""

from __future__ import annotations

import hashlib
import os
import pwd
import random
import smtplib
import unittest
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from tests.scenarios.programs import folder, free_port, run, running, skip_unless_installed
from tests.scenarios.relay_process import PATIENCE, RelayProcess, Upstream
from tests.scenarios.scenario import Scenario

# Where sshd locks its helper up while it is root. Debian's service makes it each time it starts; it is
# empty, the same for everybody, and may stay.
EMPTY_FOLDER = Path("/run/sshd")

_CONFIGURATION = """
ListenAddress 127.0.0.1
Port {port}
HostKey {place}/host_key
AuthorizedKeysFile {place}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintLastLog no
Subsystem sftp internal-sftp
"""


def why_not() -> str | None:
    """What this account lacks for an sshd of its own, as a sentence; None: nothing."""
    try:
        shell = pwd.getpwuid(os.geteuid()).pw_shell
    except KeyError:
        return "sshd logs nobody in who has no entry in /etc/passwd"
    if shell.endswith(("nologin", "false")):
        return f"this account's shell, {shell}, runs no commands"
    if os.geteuid() != 0:
        return None
    for line in Path("/etc/shadow").read_text().splitlines():
        name, password, *_ = line.split(":")
        if name == "root" and password.startswith("!"):
            return "the account root is locked, so sshd lets nobody in as root"
    EMPTY_FOLDER.mkdir(mode=0o755, exist_ok=True)
    return None


@contextmanager
def sshd(place: Path) -> Iterator[int]:
    """An sshd with new keys in that folder; the block gets its port."""
    port = free_port()
    for name in ("host_key", "key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(place / name))
    configuration = place / "sshd_config"
    configuration.write_text(_CONFIGURATION.format(port=port, place=place))
    command = ("sshd", "-D", "-e", "-f", str(configuration))
    with running(*command, ready="Server listening"):
        yield port


@frozen
class Login:
    """
    How ssh, scp and sftp get through a relay.

    @ivar options: what all three of them need.
    @ivar destination: whom to log in as, and where.
    """

    options: tuple[str, ...]
    destination: str

    @classmethod
    def through(cls, relay: RelayProcess, place: Path) -> Login:
        """With the keys that `sshd` made: the host's is known, and nobody is asked anything."""
        known = place / "known_hosts"
        key = (place / "host_key.pub").read_text()
        known.write_text(f"[127.0.0.1]:{relay.port} {key}")
        settings = {
            "Port": relay.port,
            "IdentityFile": place / "key",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": known,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        options = ["-F", "none"]
        for name, value in settings.items():
            options += ["-o", f"{name}={value}"]
        return cls(tuple(options), f"{pwd.getpwuid(os.geteuid()).pw_name}@127.0.0.1")


class SSHTests(Scenario):
    pump = "auto"

    def setUp(self) -> None:
        skip_unless_installed("sshd", "ssh", "scp", "sftp", "ssh-keygen")
        lack = why_not()
        if lack is not None:
            raise unittest.SkipTest(lack)

    @contextmanager
    def relayed_sshd(self, sessions: int) -> Iterator[tuple[Path, RelayProcess]]:
        """
        An sshd behind a relay, for a `with` block in which that many sessions end well.

        @return: a folder with a large file "payload" and the keys, and the relay.
        """
        with (
            folder() as place,
            sshd(place) as port,
            self.relaying("--target", f"127.0.0.1:{port}") as relay,
        ):
            (place / "payload").write_bytes(random.Random(22).randbytes(8 << 20))
            yield place, relay
            entries = relay.ended(sessions)
            self.assertEqual([entry["reason"] for entry in entries], ["done"] * sessions)

    def assert_same(self, place: Path, *names: str) -> None:
        """These files have the payload's content."""
        wanted = hashlib.sha256((place / "payload").read_bytes()).hexdigest()
        sums = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in names}
        self.assertEqual(sums, dict.fromkeys(names, wanted))

    def test_the_server_s_banner_comes_though_the_client_says_nothing(self) -> None:
        with self.relayed_sshd(1) as (_, relay), relay.connect() as sock:
            self.assertTrue(sock.recv(1 << 10).startswith(b"SSH-2.0-OpenSSH"))

    def test_commands_run_with_their_input_output_and_status(self) -> None:
        with self.relayed_sshd(3) as (place, relay):
            login = Login.through(relay, place)
            ssh = ("ssh", *login.options, login.destination)
            digest = run(*ssh, "sha256sum", stdin=place / "payload").split()[0]
            self.assertEqual(digest, hashlib.sha256((place / "payload").read_bytes()).hexdigest())
            run(*ssh, f"cat {place}/payload", stdout=place / "copy")
            self.assert_same(place, "copy")
            with self.assertRaisesRegex(AssertionError, "ended with 7"):
                run(*ssh, "exit 7")

    def test_scp_copies_a_large_file_both_ways(self) -> None:
        with self.relayed_sshd(2) as (place, relay):
            login = Login.through(relay, place)
            scp = ("scp", "-q", *login.options)
            run(*scp, str(place / "payload"), f"{login.destination}:{place}/up")
            run(*scp, f"{login.destination}:{place}/payload", str(place / "down"))
            self.assert_same(place, "up", "down")

    def test_sftp_copies_a_large_file_both_ways(self) -> None:
        with self.relayed_sshd(1) as (place, relay):
            login = Login.through(relay, place)
            batch = place / "batch"
            batch.write_text(f"put {place}/payload {place}/up\nget {place}/payload {place}/down\n")
            run("sftp", "-q", "-b", str(batch), *login.options, login.destination)
            self.assert_same(place, "up", "down")


def take_mail(upstream: Upstream) -> bytes:
    """
    Be a mail server (RFC 5321) to one client, up to its QUIT.

    @return: the one message it sent.
    """
    message = bytearray()
    with upstream.accept() as sock, sock.makefile("rwb") as lines:

        def say(text: str) -> None:
            lines.write(text.encode() + b"\r\n")
            lines.flush()

        say("220 mail.example ready")
        while verb := lines.readline()[:4].upper():
            if verb == b"EHLO":
                say("250-mail.example\r\n250-8BITMIME\r\n250 SIZE 100000000")
            elif verb == b"DATA":
                say("354 go on")
                while (line := lines.readline()) != b".\r\n":
                    message += line.removeprefix(b".")
                say("250 taken")
            elif verb == b"QUIT":
                say("221 bye")
                break
            else:
                say("250 yes")
    return bytes(message)


class MailTests(Scenario):
    pump = "auto"

    def test_a_mail_dialogue_that_the_server_begins_and_ends(self) -> None:
        mail = b"Subject: relayed\r\n\r\n" + b".a line that begins with a dot\r\n" * 50_000
        with (
            Upstream() as upstream,
            ThreadPoolExecutor(1) as thread,
            self.relaying("--target", upstream.target) as relay,
        ):
            taking = thread.submit(take_mail, upstream)
            with smtplib.SMTP("127.0.0.1", relay.port, "client.example", PATIENCE) as client:
                refused = client.sendmail("a@client.example", ["b@mail.example"], mail)
            self.assertEqual(refused, {})
            self.assertEqual(taking.result(PATIENCE), mail)
            self.has_ended(relay, "done", "--")

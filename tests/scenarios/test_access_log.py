"""The access log: one line for each session that has ended, wherever it goes."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from unittest import SkipTest

from fwdrelay.observe.journal import SOCKET
from tests.case import SynchronousTestCase
from tests.scenarios.relay_process import (
    PATIENCE,
    TWISTD,
    RelayProcess,
    Upstream,
    read_all,
    read_exactly,
    relaying,
    reset,
    wait_until,
)
from tests.scenarios.scenario import Scenario

ROOT = Path(__file__).parents[2]

# HAProxy's configuration manual, "TCP log format", without the syslog prefix.
TCPLOG = re.compile(
    r"127\.0\.0\.1:\d+ \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d\.\d{3}\] main main/(?P<server>\S+)"
    r" (?P<waited>-?\d+)/(?P<dialed>-?\d+)/(?P<took>\d+) (?P<down>\d+) (?P<code>\S\S)"
    r" \d+/\d+/\d+/\d+/(?P<retries>\+?\d+) 0/0"
)


def one_session(relay: RelayProcess, upstream: Upstream) -> None:
    with relay.connect() as client, upstream.accept() as server:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        read_all(server)
        server.sendall(b"the answer")
        server.shutdown(socket.SHUT_WR)
        read_all(client)


class AccessLog(SynchronousTestCase):
    def log_file(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        return Path(folder.name, "log")

    def lines(self, path: Path, count: int) -> list[str]:
        """Those of the file, as soon as there are that many."""
        wait_until(lambda: path.exists() and path.read_text().count("\n") >= count)
        return path.read_text().splitlines()

    def test_an_entry_has_all_its_fields(self) -> None:
        with Upstream() as upstream, relaying("--target", f"{upstream.target},name=a") as relay:
            with relay.connect() as client, upstream.accept() as server:
                host, port = client.getsockname()
                client.sendall(b"request")
                client.shutdown(socket.SHUT_WR)
                read_all(server)
                server.shutdown(socket.SHUT_WR)
                read_all(client)
            (entry,) = relay.ended()
            self.assertRegex(entry.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            self.assertTrue(entry.pop("session"))
            self.assertGreater(entry.pop("duration_ms"), entry.pop("dial_ms"))
            self.assertEqual(
                entry,
                {
                    "listener": "main",
                    "client": f"{host}:{port}",
                    "local": f"127.0.0.1:{relay.port}",
                    "pool": "main",
                    "target": "a",
                    "reason": "done",
                    "code": "--",
                    "bytes_up": 7,
                    "bytes_down": 0,
                    "retries": 0,
                    "sessions": 1,
                },
            )

    def test_each_session_has_a_name_of_its_own_and_one_line(self) -> None:
        count = 100
        with Upstream() as upstream, relaying("--target", upstream.target) as relay:
            for number in range(count):
                with relay.connect() as client, upstream.accept() as server:
                    if number % 2:
                        reset(client)
                    server.close()
            entries = relay.ended(count)
            relay.stop()
            self.assertEqual(len(relay.ended(count)), count)
            self.assertEqual(len({entry["session"] for entry in entries}), count)

    def test_tcplog_is_haproxy_s_format(self) -> None:
        with (
            Upstream() as upstream,
            relaying("--access-log-format", "tcplog", "--target", upstream.target) as relay,
        ):
            one_session(relay, upstream)
            found = TCPLOG.fullmatch(relay.wait_for(lambda line: " main/" in line))
            assert found is not None, relay.lines
            self.assertEqual(found["server"], upstream.target)
            self.assertEqual((found["down"], found["code"], found["waited"]), ("10", "--", "0"))
        with relaying("--access-log-format", "tcplog", "--target", "unix:/nowhere/x") as relay:
            relay.turn_away()
            found = TCPLOG.fullmatch(relay.wait_for(lambda line: " main/" in line))
            assert found is not None, relay.lines
            self.assertEqual((found["server"], found["code"]), ("unix:/nowhere/x", "SC"))
            self.assertEqual(found["dialed"], "-1")

    def test_a_session_that_lasts_is_told_of_while_it_does(self) -> None:
        with (
            Upstream() as upstream,
            relaying("--access-log-interval", "100ms", "--target", upstream.target) as relay,
        ):
            with relay.connect() as client, upstream.accept() as server:
                client.sendall(b"request")
                read_exactly(server, 7)
                # The first may be of the time before anything was said.
                relay.wait_for(lambda line: '"bytes_up":7' in line)
                relay.ended(2)
                server.sendall(b"answer")
                server.shutdown(socket.SHUT_WR)
                read_all(client)
                client.shutdown(socket.SHUT_WR)
                relay.wait_for(lambda line: '"reason":"done"' in line)
            *lasts, end = relay.ended(3)
            self.assertEqual({each["session"] for each in lasts}, {end["session"]})
            self.assertEqual(
                {(each["reason"], each["code"]) for each in lasts}, {("progress", "--")}
            )
            told = [each["bytes_up"] for each in lasts]
            self.assertEqual(told, sorted(told))
            self.assertLessEqual(set(told), {0, 7})
            self.assertEqual((end["bytes_up"], end["bytes_down"]), (7, 6))
            times = [each["duration_ms"] for each in (*lasts, end)]
            self.assertEqual(times, sorted(times))

    def test_it_may_be_off(self) -> None:
        with (
            Upstream() as upstream,
            relaying("--access-log", "off", "--target", upstream.target) as relay,
        ):
            one_session(relay, upstream)
            relay.wait_for_descriptors(relay.at_rest)
            relay.stop()
            self.assertEqual([line for line in relay.lines if line.startswith("{")], [])

    def test_a_signal_begins_a_new_file_where_the_old_one_was_moved_away(self) -> None:
        for number in (signal.SIGUSR1, signal.SIGHUP):
            path = self.log_file()
            moved = path.with_suffix(".1")
            with (
                Upstream() as upstream,
                relaying("--access-log", str(path), "--target", upstream.target) as relay,
            ):
                one_session(relay, upstream)
                self.lines(path, 1)
                path.rename(moved)
                relay.signal(number)
                wait_until(path.exists)
                one_session(relay, upstream)
                (line,) = self.lines(path, 1)
                self.assertEqual(json.loads(line)["reason"], "done")
                self.assertEqual(len(self.lines(moved, 1)), 1)

    def test_sigusr1_rotates_twistd_s_own_log_as_well(self) -> None:
        path, own = self.log_file(), self.log_file()
        process = subprocess.Popen(
            [
                *(*TWISTD, "-n", "--pidfile=", "--logfile", str(own), "fwdrelay", "--demo"),
                *("--port", "0", "--interface", "127.0.0.1", "--access-log", str(path)),
            ]
        )
        try:
            wait_until(lambda: own.exists() and "is ready" in own.read_text())
            path.unlink()
            process.send_signal(signal.SIGUSR1)
            wait_until(path.exists)
            wait_until(own.with_name(own.name + ".1").exists)
            # Twisted moves it away first, and then opens another.
            wait_until(own.exists)
            wait_until(lambda: "SIGUSR1: opening the access log anew." in own.read_text())
        finally:
            process.terminate()
            self.assertEqual(process.wait(PATIENCE), 0)

    def test_no_line_is_lost_or_doubled_while_the_file_is_moved_away_under_load(self) -> None:
        """Nobody tells the relay of it."""
        path = self.log_file()
        count = 0
        with (
            Upstream() as upstream,
            relaying("--access-log", str(path), "--target", upstream.target) as relay,
        ):
            for number in range(3):
                wait_until(path.exists)
                path.rename(path.with_suffix(f".{number}"))
                deadline = time.monotonic() + PATIENCE
                while not path.exists():
                    one_session(relay, upstream)
                    count += 1
                    self.assertLess(time.monotonic(), deadline, "no new file was begun")
        files = list(path.parent.iterdir())
        self.assertEqual(len(files), 4)
        names = [
            json.loads(line)["session"] for each in files for line in each.read_text().splitlines()
        ]
        self.assertEqual(len(names), count)
        self.assertEqual(len(set(names)), count)

    def test_logrotate_needs_to_tell_nobody(self) -> None:
        logrotate = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
        if logrotate is None:
            raise SkipTest("rotating needs logrotate")
        folder = self.log_file().parent
        folder.chmod(0o750)
        path = folder / "access.log"
        installed = (ROOT / "etc" / "logrotate.d" / "fwdrelay").read_text()
        configuration = folder / "rotate"
        configuration.write_text(installed.replace("/var/log/fwdrelay/", f"{folder}/"))
        rotate = [logrotate, "--force", "--state", str(folder / "state"), str(configuration)]
        count = 0
        with (
            Upstream() as upstream,
            relaying("--access-log", str(path), "--target", upstream.target) as relay,
        ):
            for rotations in (1, 2, 3):
                one_session(relay, upstream)
                count += 1
                self.lines(path, 1)
                subprocess.run(rotate, check=True, timeout=PATIENCE)
                self.assertEqual(len(list(folder.glob("access.log.*"))), rotations)
                while not path.exists():
                    one_session(relay, upstream)
                    count += 1
        texts = [
            gzip.decompress(each.read_bytes()) if each.suffix == ".gz" else each.read_bytes()
            for each in folder.glob("access.log*")
        ]
        names = [json.loads(line)["session"] for text in texts for line in text.splitlines()]
        self.assertEqual(len(names), count)
        self.assertEqual(len(set(names)), count)

    def test_a_journal_that_is_not_there_is_one_clear_line(self) -> None:
        if Path(SOCKET).exists():
            raise SkipTest("there is a journal here")
        tried = subprocess.run(
            [
                *(*TWISTD, "-n", "--pidfile=", "fwdrelay", "--demo"),
                *("--port", "0", "--access-log", "journald"),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(tried.returncode, 69, tried.stderr)
        (told,) = [line for line in tried.stderr.splitlines() if line.startswith("fwdrelay:")]
        self.assertIn(f"cannot write the access log to the journal: {SOCKET}: ", told)
        self.assertNotIn("Traceback", tried.stderr)

    def test_sighup_keeps_the_old_file_where_no_new_one_can_be_opened(self) -> None:
        folder = self.log_file()
        folder.mkdir()
        path, moved = folder / "log", folder.with_suffix(".moved")
        with (
            Upstream() as upstream,
            relaying("--access-log", str(path), "--target", upstream.target) as relay,
        ):
            folder.rename(moved)
            relay.signal(signal.SIGHUP)
            relay.wait_for(lambda line: "going on with the old one" in line)
            one_session(relay, upstream)
            self.lines(moved / "log", 1)

    def test_a_stop_writes_what_is_left(self) -> None:
        path = self.log_file()
        with (
            Upstream() as upstream,
            relaying(
                *("--access-log", str(path), "--drain-timeout", "100ms"),
                *("--target", upstream.target),
            ) as relay,
            relay.connect() as client,
            upstream.accept() as server,
        ):
            client.sendall(b"x")
            read_exactly(server, 1)
            relay.stop()
        (line,) = path.read_text().splitlines()
        self.assertEqual(json.loads(line)["code"], "KD")

    def test_a_full_disk_is_told_once_and_nothing_stops(self) -> None:
        with (
            Upstream() as upstream,
            relaying("--access-log", "/dev/full", "--target", upstream.target) as relay,
        ):
            for _ in range(20):
                one_session(relay, upstream)
            told = "Can't write the access log to /dev/full: No space left on device"
            relay.wait_for(lambda line: told in line)
            relay.stop()
            self.assertEqual(sum(told in line for line in relay.lines), 1)


class Unread(Scenario, every_pump=False):
    def test_a_standard_output_that_nobody_reads_stops_nothing(self) -> None:
        count = 600  # more than the pipe of the output takes
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            with relay.output_unread():
                for _ in range(count):
                    one_session(relay, upstream)
            self.assertEqual(len(relay.ended(count)), count)

    def test_nor_does_what_the_relay_itself_has_to_say_and_it_is_not_lost(self) -> None:
        with Upstream() as upstream, self.relaying("--target", upstream.target) as relay:
            with relay.output_unread():
                for _ in range(600):
                    one_session(relay, upstream)
                for _ in range(100):
                    relay.signal(signal.SIGHUP)
                    one_session(relay, upstream)
            relay.ended(700)
            said = [line for line in relay.lines if "no configuration file to read" in line]
            self.assertEqual(len(said), 100)

    def test_a_pipe_that_nobody_reads_stops_nothing(self) -> None:
        path = str(self.path("pipe"))
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with (
                Upstream() as upstream,
                self.relaying("--access-log", path, "--target", upstream.target) as relay,
            ):
                for _ in range(600):
                    one_session(relay, upstream)
        finally:
            os.close(reader)

"""A relay that goes on as another one: SIGUSR2."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.programs import free_port
from tests.scenarios.relay_process import (
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    relaying,
    wait_until,
)
from tests.scenarios.scenario import MB, Scenario, digest_of, receive, send_and_end
from tests.scenarios.test_workers import is_there
from tests.scenarios.workers import Workers, relaying_with

_BREAKS = """
import os, signal, sys, time

FLAG = {flag!r}

def wait():
    parent = os.getppid()
    while os.path.exists(FLAG) and os.getppid() == parent:
        time.sleep(0.02)

def signal_supervisor():
    os.remove(FLAG)
    os.kill(os.getppid(), signal.SIGHUP)
    os.kill(os.getppid(), signal.SIGUSR2)

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and os.path.exists(FLAG):
            {deed}

sys.meta_path.insert(0, Broken())
"""


def comm(pid: int) -> str:
    """What that process is called."""
    with open(f"/proc/{pid}/comm") as name:
        return name.read()


def states_of_children(pid: int) -> list[str]:
    """One letter for each; see `/proc/pid/stat` in proc(5)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{each}/stat").read_text().rpartition(") ")[2][0] for each in children]


class UpgradeTests(Scenario, every_pump=False):
    def breaking(self, module: str, deed: str) -> tuple[Path, dict[str, str]]:
        """
        @param deed: what a process does instead of importing `module`, once the flag is there.
        @return: the flag, and the environment of such a relay.
        """
        folder = Path(self.folder())
        flag = folder / "now"
        code = _BREAKS.format(module=module, flag=str(flag), deed=deed)
        (folder / "sitecustomize.py").write_text(code)
        return flag, {"PYTHONPATH": str(folder)}

    def test_sessions_and_listeners_go_on(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
            ExitStack() as opened,
            ThreadPoolExecutor(40) as threads,
        ):
            pid, before = relay.pid, workers.pids()
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(20)]
            for number, (client, server) in enumerate(pairs[:8]):
                threads.submit(send_and_end, client, 60 * MB, number)
                threads.submit(send_and_end, server, 60 * MB, 50 + number)
            received = [
                (threads.submit(receive, server), threads.submit(receive, client))
                for client, server in pairs[:8]
            ]
            names = {each["session"] for each in workers.sessions()}
            self.assertIn("upgraded in place", workers.upgrade())
            for number, (up, down) in enumerate(received):
                self.assertEqual(up.result(), digest_of(60 * MB, number))
                self.assertEqual(down.result(), digest_of(60 * MB, 50 + number))
            for client, server in pairs[8:]:
                client.sendall(b"after")
                self.assertEqual(read_exactly(server, 5), b"after")
                server.sendall(b"wards")
                self.assertEqual(read_exactly(client, 5), b"wards")
            wait_until(lambda: not any(map(is_there, before)))
            self.assertEqual(workers.admin.get("/v1/status")["pid"], pid)
            self.assertFalse(set(workers.pids()) & set(before))
            left = {each["session"] for each in workers.sessions()}
            self.assertEqual(len(left), 12)
            self.assertLessEqual(left, names)
            with relay.connect() as client, upstream.accept() as server:
                client.sendall(b"new")
                self.assertEqual(read_exactly(server, 3), b"new")
            for client, server in pairs[8:]:
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(server), b"")
                server.close()
                self.assertEqual(read_all(client), b"")
            ended = relay.ended(21)
            self.assertEqual({each["reason"] for each in ended}, {"done"})
            self.assertEqual(sorted(each["bytes_up"] for each in ended)[-8:], [60 * MB] * 8)
            self.assertEqual(len({each["session"] for each in ended}), 21)
            totals = workers.admin.get("/v1/status")["totals"]
            self.assertEqual(totals["sessions_total"], 21)
            self.assertEqual(totals["bytes_up"], 8 * 60 * MB + 12 * 5 + 3)

    def test_its_name_stays(self) -> None:
        folder = Path(self.folder())
        (folder / "sitecustomize.py").write_text(
            "import os\n"
            "if 'FWDRELAY_RENEWAL' not in os.environ:\n"
            "    with open('/proc/self/comm', 'w') as comm:\n"
            "        comm.write('a-name')\n"
        )
        environ = {"PYTHONPATH": str(folder)}
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, environ=environ) as (relay, workers),
        ):
            self.assertEqual(comm(relay.pid), "a-name\n")
            self.assertIn("upgraded", workers.upgrade())
            self.assertEqual(comm(relay.pid), "a-name\n")

    def test_half_closed_sessions_go_on(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target) as (relay, workers),
            self.session(relay, upstream) as (asking, answering),
            self.session(relay, upstream) as (listening, telling),
        ):
            asking.sendall(b"question")
            asking.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(answering), b"question")
            telling.sendall(b"all")
            telling.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(listening), b"all")
            self.assertIn("upgraded", workers.upgrade())
            wait_until(lambda: len(workers.rows()) == 1)
            answering.sendall(b"answer")
            answering.close()
            self.assertEqual(read_all(asking), b"answer")
            listening.sendall(b"thanks")
            listening.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(telling), b"thanks")
            self.assertEqual({each["reason"] for each in relay.ended(2)}, {"done"})

    def test_a_session_that_only_begins_moves_a_moment_later(self) -> None:
        with Upstream() as upstream, contextlib.ExitStack() as stack:
            text = _CONFIG.format(workers=1, pool="there", target=upstream.target)
            # An upgrade may take longer than the header has in general.
            begins = (
                'proxy_protocol = { accept = "required" }\ntimeouts = { handshake = "0" }\npool ='
            )
            text = text.replace("pool =", begins, 1)
            relay = stack.enter_context(ConfiguredRelay(self.path("relay.toml"), text))
            client = stack.enter_context(relay.connect())
            workers = Workers(relay)
            (before,) = workers.pids()
            wait_until(lambda: len(workers.sessions()) == 1)
            self.assertIn("upgraded", workers.upgrade())
            client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n")
            with upstream.accept() as server:
                wait_until(lambda: not is_there(before))
                client.sendall(b"x")
                self.assertEqual(read_exactly(server, 1), b"x")
                (session,) = workers.sessions()
                self.assertEqual(session["client"], "192.0.2.1:1234")

    def test_a_session_that_cannot_move_drains_where_it_is(self) -> None:
        options = ("--pump", "buffered", "--drain-timeout", "0")
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, *options) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            (before,) = workers.pids()
            self.assertIn("upgraded", workers.upgrade())
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            states = {row["pid"]: row["state"] for row in workers.rows()}
            self.assertEqual(states.pop(before), "draining")
            self.assertEqual(list(states.values()), ["running"])
            self.assertEqual(workers.sessions()[0]["worker"], 1)
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(server), b"")
            server.close()
            self.assertEqual(read_all(client), b"")
            wait_until(lambda: not is_there(before))

    def test_what_cannot_move_is_cut_when_the_drain_time_is_over(self) -> None:
        options = ("--pump", "buffered", "--drain-timeout", "1s")
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, *options) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            (before,) = workers.pids()
            self.assertIn("upgraded", workers.upgrade())
            read_until_reset(client)
            read_until_reset(server)
            self.assertEqual(relay.ended()[0]["reason"], "drain-timeout")
            wait_until(lambda: not is_there(before))

    def test_nobody_is_refused_meanwhile(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target) as (relay, workers),
            ThreadPoolExecutor(2) as threads,
        ):
            done = False

            def serve() -> None:
                asked = b""
                while asked != b"last":
                    with upstream.accept() as server:
                        asked = read_exactly(server, 4)
                        server.sendall(asked)

            def ask() -> int:
                count = 0
                while not done:
                    with relay.connect() as client:
                        client.sendall(b"ping")
                        assert read_exactly(client, 4) == b"ping"
                    count += 1
                return count

            threads.submit(serve)
            asking = threads.submit(ask)
            try:
                for _ in range(2):
                    self.assertIn("upgraded", workers.upgrade())
            finally:
                done = True
            self.assertGreater(asking.result(), 10)
            with relay.connect() as client:
                client.sendall(b"last")
                self.assertEqual(read_exactly(client, 4), b"last")

    def test_two_at_once(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.workers.supervisor", '"--check" in sys.argv and wait()'
        )
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, environ=environ) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            flag.touch()  # the first is under way as long as it is there
            relay.signal(signal.SIGUSR2)
            relay.wait_for(lambda line: "SIGUSR2: upgrading" in line)
            self.assertIn("an upgrade is under way already", workers.upgrade())
            flag.unlink()
            relay.wait_for(lambda line: "upgraded in place" in line)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")

    def test_one_that_is_asked_for_while_a_worker_starts_waits_for_it(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.pump.spliced", 'sys.argv[0].endswith("worker.py") and wait()'
        )
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target, environ=environ) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            flag.touch()
            (pid,) = [each["pid"] for each in workers.rows() if not each["sessions"]]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: any(each["state"] == "starting" for each in workers.rows()))
            relay.signal(signal.SIGUSR2)
            relay.wait_for(lambda line: "The upgrade waits until workers have started." in line)
            flag.unlink()
            relay.wait_for(lambda line: "upgraded in place" in line)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")

    def test_what_is_asked_for_while_the_relay_starts_waits(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.pump.spliced", 'sys.argv[0].endswith("worker.py") and signal_supervisor()'
        )
        flag.touch()
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, environ=environ) as (relay, _),
        ):
            relay.wait_for(lambda line: "upgraded in place" in line)
            self.assertFalse(flag.exists())
            relay.wait_for(lambda line: "Reading the configuration waits until" in line)
            relay.wait_for(lambda line: "There is no configuration file to read again" in line)
            with self.session(relay, upstream) as (client, server):
                client.sendall(b"x")
                self.assertEqual(read_exactly(server, 1), b"x")

    def test_a_worker_that_dies_during_the_rehearsal_is_replaced_before(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.workers.supervisor", '"--check" in sys.argv and wait()'
        )
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, environ=environ) as (relay, workers),
        ):
            flag.touch()
            relay.signal(signal.SIGUSR2)
            relay.wait_for(lambda line: "SIGUSR2: upgrading" in line)
            workers.kill(workers.pids()[0])
            (replacement,) = workers.pids()
            flag.unlink()
            line = relay.wait_for(lambda line: "upgraded in place" in line)
            self.assertIn(f"handing over: worker 1 ({replacement}).", line)

    def test_stopping_after_one(self) -> None:
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target) as (relay, workers),
        ):
            self.assertIn("upgraded", workers.upgrade())
            relay.stop()

    def test_code_that_is_broken(self) -> None:
        broken = 'raise ImportError("no module named left")'
        flag, environ = self.breaking("fwdrelay.workers.supervisor", broken)
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, environ=environ) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            before = workers.pids()
            flag.touch()
            self.assertIn("no module named left", workers.upgrade())
            self.assertEqual(workers.pids(), before)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            flag.unlink()
            self.assertIn("upgraded", workers.upgrade())
            server.sendall(b"y")
            self.assertEqual(read_exactly(client, 1), b"y")

    def test_new_workers_that_do_not_start(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.pump.spliced", 'sys.argv[0].endswith("worker.py") and os._exit(3)'
        )
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target, environ=environ) as (relay, workers),
            self.session(relay, upstream) as (client, server),
        ):
            before = workers.pids()
            flag.touch()
            line = workers.upgrade()
            self.assertIn("has ended with status 3. The old workers go on.", line)
            wait_until(lambda: workers.pids() == before)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            with relay.connect() as another, upstream.accept() as its_server:
                another.sendall(b"y")
                self.assertEqual(read_exactly(its_server, 1), b"y")
            flag.unlink()
            self.assertIn("upgraded", workers.upgrade())
            server.sendall(b"z")
            self.assertEqual(read_exactly(client, 1), b"z")

    def test_new_workers_that_do_not_start_when_the_old_ones_are_gone(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.pump.spliced",
            'sys.argv[0].endswith("worker.py")'
            ' and (print("is about to", flush=True), wait(), os._exit(3))',
        )
        with (
            Upstream() as upstream,
            relaying_with(1, "--survive-crashes", "--target", upstream.target, environ=environ) as (
                relay,
                workers,
            ),
            self.session(relay, upstream) as (client, server),
        ):
            wait_until(lambda: workers.rows()[0]["kept"] == 1)
            (before,) = workers.pids()
            flag.touch()
            relay.signal(signal.SIGUSR2)
            relay.wait_for(lambda line: "Renewing the supervisor." in line)
            os.kill(before, signal.SIGKILL)
            wait_until(lambda: not is_there(before))
            relay.wait_for(lambda line: "is about to" in line)
            flag.unlink()
            relay.wait_for(lambda line: "Upgraded, but worker 1 of the new ones has ended" in line)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            wait_until(lambda: len(workers.pids()) == 1)
            self.assertIn("upgraded in place", workers.upgrade())
            server.sendall(b"y")
            self.assertEqual(read_exactly(client, 1), b"y")

    def test_one_that_dies_again_and_again_does_not_hinder_it(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.pump.spliced", 'sys.argv[0].endswith("worker.py") and os._exit(3)'
        )
        with (
            Upstream() as upstream,
            relaying_with(2, "--target", upstream.target, environ=environ) as (relay, workers),
        ):
            flag.touch()
            os.kill(workers.pids()[0], signal.SIGKILL)
            relay.wait_for(lambda line: "started again in 2 s" in line)
            flag.unlink()
            self.assertIn("upgraded in place", workers.upgrade())
            wait_until(lambda: len(workers.pids()) == 2)

    def test_several_that_do_so_do_not_hinder_it(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.pump.spliced", 'sys.argv[0].endswith("worker.py") and os._exit(3)'
        )
        with (
            Upstream() as upstream,
            relaying_with(3, "--target", upstream.target, environ=environ) as (relay, workers),
        ):
            flag.touch()
            before = workers.pids()
            for pid in before[:2]:
                os.kill(pid, signal.SIGKILL)
            wait_until(
                lambda: all(
                    f"Worker {n} has died 3 times" in "\n".join(relay.lines) for n in (1, 2)
                )
            )
            self.assertIn("The old workers go on", workers.upgrade())
            self.assertIn(before[2], workers.pids())
            flag.unlink()
            self.assertIn("upgraded in place", workers.upgrade())
            wait_until(lambda: len(workers.pids()) == 3)

    def test_a_stop_that_comes_with_the_end_of_the_rehearsal_is_not_lost(self) -> None:
        flag, environ = self.breaking(
            "fwdrelay.workers.supervisor",
            '"--check" in sys.argv and (open(FLAG + "-seen", "w").close(), wait())',
        )
        with (
            Upstream() as upstream,
            relaying_with(1, "--target", upstream.target, environ=environ) as (relay, _),
            self.session(relay, upstream) as (client, server),
        ):
            flag.touch()
            relay.signal(signal.SIGUSR2)
            wait_until(Path(f"{flag}-seen").exists)
            os.kill(relay.pid, signal.SIGSTOP)
            flag.unlink()
            wait_until(lambda: "Z" in states_of_children(relay.pid))
            relay.signal(signal.SIGTERM)
            os.kill(relay.pid, signal.SIGCONT)
            relay.wait_for(lambda line: "Not upgraded: the relay is stopping" in line)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")
            client.close()
            server.close()
            relay.stop()

    def test_without_workers_it_is_refused(self) -> None:
        with (
            Upstream() as upstream,
            relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            relay.signal(signal.SIGUSR2)
            relay.wait_for(lambda line: "Not upgraded: this relay has no workers" in line)
            client.sendall(b"x")
            self.assertEqual(read_exactly(server, 1), b"x")


_CONFIG = """
[relay]
workers = {workers}
admin = "127.0.0.1:0"

[[listener]]
name = "one"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "{pool}"

[pool.there]
targets = ["{target}"]
"""


class ConfigurationTests(Scenario, every_pump=False):
    def test_what_it_says_now_is_in_force_afterwards(self) -> None:
        with Upstream() as upstream:
            text = _CONFIG.format(workers=1, pool="there", target=upstream.target)
            more = _CONFIG.format(workers=3, pool="there", target=upstream.target)
            more += '[[listener]]\nname="two"\nlisten=["tcp:0:interface=127.0.0.1"]\npool="there"\n'
            with (
                ConfiguredRelay(self.path("relay.toml"), text) as relay,
                self.session(relay, upstream) as (client, server),
            ):
                workers = Workers(relay)
                relay.write(more)
                self.assertIn("upgraded", workers.upgrade())
                workers = Workers(relay)  # port 0 is another one now
                wait_until(lambda: len(workers.pids()) == 3)
                with relay.connect_to("two") as another, upstream.accept() as its_server:
                    another.sendall(b"x")
                    self.assertEqual(read_exactly(its_server, 1), b"x")
                relay.write(text)
                self.assertIn("upgraded", workers.upgrade())
                workers = Workers(relay)
                wait_until(lambda: len(workers.rows()) == 1)
                # None of those who connect waits for a worker that is no more.
                for _ in range(12):
                    with relay.connect() as another, upstream.accept() as its_server:
                        another.sendall(b"x")
                        self.assertEqual(read_exactly(its_server, 1), b"x")
                client.sendall(b"x")
                self.assertEqual(read_exactly(server, 1), b"x")

    def test_what_is_wrong_with_it_is_told_and_nothing_changes(self) -> None:
        with Upstream() as upstream:
            text = _CONFIG.format(workers=1, pool="there", target=upstream.target)
            with (
                ConfiguredRelay(self.path("relay.toml"), text) as relay,
                self.session(relay, upstream) as (client, server),
            ):
                workers = Workers(relay)
                before = workers.pids()
                for wrong, said in (
                    (text.replace('pool = "there"', 'pool = "where"'), "where"),
                    (text.replace("workers = 1", "workers = 0"), "workers"),
                    (text + "[[listener", "not TOML"),
                    (
                        text.replace("[relay]", '[relay]\naccess_log = "/no/such/log"'),
                        "/no/such/log",
                    ),
                ):
                    relay.write(wrong)
                    line = workers.upgrade()
                    self.assertIn("Not upgraded", line)
                    self.assertIn(said, line)
                    self.assertIn("All goes on as it was", line)
                self.assertEqual(workers.pids(), before)
                client.sendall(b"x")
                self.assertEqual(read_exactly(server, 1), b"x")

    def test_an_address_that_cannot_be_had(self) -> None:
        with Upstream() as upstream, Upstream() as somebody:
            text = _CONFIG.format(workers=1, pool="there", target=upstream.target)
            port = somebody.socket.getsockname()[1]
            with (
                ConfiguredRelay(self.path("relay.toml"), text) as relay,
                self.session(relay, upstream) as (client, server),
            ):
                workers = Workers(relay)
                before = workers.pids()
                relay.write(
                    text
                    + f'[[listener]]\nname="two"\nlisten=["tcp:{port}:interface=127.0.0.1"]\npool="there"\n'
                )
                self.assertIn("Address already in use", workers.upgrade())
                client.sendall(b"x")
                self.assertEqual(read_exactly(server, 1), b"x")
                self.assertTrue(all(map(is_there, before)))
                self.assertEqual(workers.pids(), before)
                with relay.connect_to("one") as another, upstream.accept() as its_server:
                    another.sendall(b"x")
                    self.assertEqual(read_exactly(its_server, 1), b"x")
                relay.write(text)
                start = len(relay.lines)
                os.kill(relay.pid, signal.SIGUSR2)
                relay.wait_for(lambda line: "upgraded in place" in line, start)
                server.sendall(b"y")
                self.assertEqual(read_exactly(client, 1), b"y")
                wait_until(lambda: len(workers.sessions()) == 1)

    def test_an_address_of_the_api_that_cannot_be_had(self) -> None:
        with Upstream() as upstream, Upstream() as somebody:
            text = _CONFIG.format(workers=1, pool="there", target=upstream.target)
            text = text.replace("127.0.0.1:0", f"127.0.0.1:{free_port()}")
            taken = re.sub('admin = ".*"', f'admin = "{somebody.target}"', text)
            with (
                ConfiguredRelay(self.path("relay.toml"), text) as relay,
                self.session(relay, upstream) as (client, server),
            ):
                workers = Workers(relay)
                before = workers.pids()
                relay.write(taken)
                self.assertIn("Address already in use", workers.upgrade())
                self.assertTrue(all(map(is_there, before)))
                relay.write(text)
                self.assertIn("upgraded in place", workers.upgrade())
                self.assertNotEqual(workers.pids(), before)
                client.sendall(b"x")
                self.assertEqual(read_exactly(server, 1), b"x")

    def test_sessions_of_a_target_that_is_no_more(self) -> None:
        with Upstream() as upstream, Upstream() as another:
            text = _CONFIG.format(workers=1, pool="there", target=upstream.target)
            text += 'on_target_down = "close"\n'
            with (
                ConfiguredRelay(self.path("relay.toml"), text) as relay,
                self.session(relay, upstream) as (client, server),
            ):
                workers = Workers(relay)
                self.assertIn("upgraded", workers.upgrade())
                client.sendall(b"x")
                self.assertEqual(read_exactly(server, 1), b"x")
                relay.write(text.replace(upstream.target, another.target))
                self.assertIn("upgraded", workers.upgrade())
                read_until_reset(client)
                read_until_reset(server)
                self.assertEqual(relay.ended()[0]["reason"], "target-down")

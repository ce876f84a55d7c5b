"""The spliced pump in a relay at work: its pipes, its fairness, its silence, and its descriptors."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from twisted.python.runtime import platform

from tests.case import SynchronousTestCase
from tests.scenarios.programs import find, folder
from tests.scenarios.relay_process import (
    PATIENCE,
    RelayProcess,
    Upstream,
    read_exactly,
    wait_until,
)
from tests.scenarios.scenario import (
    MB,
    Pair,
    Scenario,
    chunks,
    digest_of,
    fill,
    is_root,
    receive,
    send,
    send_and_end,
    wait_until_blocked,
)
from tests.scenarios.test_idle_sessions import echoes, raise_limit, say_and_hear

if not platform.isLinux():
    raise unittest.SkipTest("there is no splice here")

NOBODY = 64_999
"""A user that nothing else here runs as."""
STUCK = 150 * MB
"""More than kernels hold for two sockets each way: who sends it gets stuck until it is read."""
QUIET = 2.0
"""Seconds of watching a relay in which nothing happens."""
SPEND = """
import fcntl, os, sys
sizes = [1 << 20, 1 << 16]
held = []
while True:
    held.append(os.pipe())
    size = fcntl.fcntl(held[-1][1], fcntl.F_GETPIPE_SZ)
    while sizes:
        try:
            fcntl.fcntl(held[-1][1], fcntl.F_SETPIPE_SZ, sizes[0])
            break
        except PermissionError:
            del sizes[0]
    if not sizes and size < 1 << 16:
        break
print("all is spent", flush=True)
sys.stdin.read()
"""


def pipes(relay: RelayProcess) -> list[str]:
    """The paths, in /proc, of one descriptor for each pipe that it has open."""
    place = f"/proc/{relay.pid}/fd"
    found: dict[str, str] = {}
    for name in os.listdir(place):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            path = f"{place}/{name}"
            target = os.readlink(path)
            if target.startswith("pipe:"):
                found[target] = path
    return list(found.values())


def has_more_pipes(relay: RelayProcess, than: int) -> bool:
    """Whether it has more open than so many."""
    return len(pipes(relay)) > than


def as_nobody() -> tuple[str, ...]:
    """What runs a program as an ordinary user, who may only read whatever it is made of."""
    setpriv = find("setpriv")
    if setpriv is None:
        raise unittest.SkipTest("there is no setpriv here")
    user = f"{NOBODY}"
    reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    return (setpriv, "--reuid", user, "--regid", user, "--clear-groups", *reads, "--")


def limit_descriptors(relay: RelayProcess, most: int) -> None:
    """It can open no descriptor with a number from `most` on; those it has stay open."""
    hard = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (most, hard))


def need_descriptors(count: int) -> Callable[[], None]:
    """
    Have room for that many descriptors in this process.

    @return: gives the room back.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise unittest.SkipTest(f"{count} descriptors are needed, the limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class SpliceScenario(Scenario, every_pump=False):
    """Over the spliced pump alone. Its subclasses say `every_pump=False`, too."""

    def bulk(self, pairs: list[Pair], size: int) -> None:
        """Both ends of each pair say `size` bytes at once, then end; all of it must arrive."""
        with ThreadPoolExecutor(4 * len(pairs)) as threads:
            flows = [flow for a, b in pairs for flow in ((a, b), (b, a))]
            sending = [
                threads.submit(send_and_end, source, size, seed)
                for seed, (source, _) in enumerate(flows)
            ]
            receiving = [threads.submit(receive, sink) for _, sink in flows]
            for seed, each in enumerate(receiving):
                self.assertEqual(each.result(), digest_of(size, seed))
            for done in sending:
                done.result()

    def wait_for_pipes(self, relay: RelayProcess, count: int) -> None:
        wait_until(
            lambda: len(pipes(relay)) == count, lambda: f"{len(pipes(relay))} pipes, not {count}"
        )


class PipesTests(SpliceScenario, every_pump=False):
    def test_without_a_descriptor_for_a_pipe_nothing_is_lost(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            ExitStack() as opened,
        ):
            at_rest = len(pipes(relay))
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(3)]
            soft = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)[0]
            limit_descriptors(relay, 4)
            with ThreadPoolExecutor() as threads:
                sending = threads.submit(send, pairs[0][0], STUCK)
                wait_until_blocked(pairs[0][0])
                self.assertEqual(len(pipes(relay)), at_rest, "there should be none to be had")
                read_exactly(pairs[0][1], STUCK)
                sending.result()
            self.bulk(pairs, 40 * MB)
            self.assertEqual(len(pipes(relay)), at_rest)
            limit_descriptors(relay, soft)
            self.assertEqual(len(relay.ended(3)), 3)

    def test_descriptors_that_run_out_and_come_back_in_mid_flow(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            ExitStack() as opened,
            ThreadPoolExecutor() as threads,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(3)]
            soft = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)[0]
            over = threading.Event()

            def come_and_go() -> None:
                while not over.wait(0.01):
                    limit_descriptors(relay, 4)
                    over.wait(0.01)
                    limit_descriptors(relay, soft)

            coming = threads.submit(come_and_go)
            try:
                self.bulk(pairs, 60 * MB)
            finally:
                over.set()
            coming.result()

    def test_a_user_whose_pages_for_pipes_are_spent_loses_nothing(self) -> None:
        """Which is what fs.pipe-user-pages-soft is about, see pipe(7)."""
        user = as_nobody() if is_root() else ()
        spender = subprocess.Popen(
            [*user, sys.executable, "-c", SPEND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=raise_limit,
        )
        assert spender.stdin is not None and spender.stdout is not None
        try:
            if spender.stdout.readline() != b"all is spent\n":
                raise unittest.SkipTest("the pages could not be spent here")
            with (
                Upstream() as upstream,
                self.relaying("--target", upstream.target, within=user) as relay,
                ExitStack() as opened,
                ThreadPoolExecutor() as threads,
            ):
                at_rest = len(pipes(relay))
                pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(3)]
                sending = threads.submit(send, pairs[0][0], STUCK)
                wait_until_blocked(pairs[0][0])
                self.assertEqual(len(pipes(relay)), at_rest, "there should be none worth having")
                read_exactly(pairs[0][1], STUCK)
                sending.result()
                self.bulk(pairs, 20 * MB)
        finally:
            spender.communicate()

    def test_a_flow_that_is_bulk_now_and_messages_then_keeps_no_pipe(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
            ThreadPoolExecutor() as threads,
        ):
            base = relay.at_rest + 2
            at_rest = len(pipes(relay))
            for turn in range(3):
                for source, sink in ((client, server), (server, client)):
                    for number in range(50):
                        message = b"%d %d" % (turn, number)
                        source.sendall(message)
                        self.assertEqual(read_exactly(sink, len(message)), message)
                    sending = threads.submit(send, source, STUCK, turn)
                    # While it flows: what it gets stuck with may be the rest of a single read.
                    wait_until(
                        partial(has_more_pipes, relay, at_rest), lambda: "bulk without a pipe"
                    )
                    wait_until_blocked(source)
                    for chunk in chunks(STUCK, turn):
                        self.assertTrue(read_exactly(sink, MB) == chunk)
                    sending.result()
                if turn == 1:
                    relay.wait_for_descriptors(base)
            relay.wait_for_descriptors(base)
            client.sendall(b"still there")
            self.assertEqual(read_exactly(server, 11), b"still there")
            relay.wait_for_descriptors(base)


class ManyTests(SpliceScenario, every_pump=False):
    def test_a_bulk_transfer_starves_none_of_a_thousand_message_sessions(self) -> None:
        sessions, rounds = 1000, 6
        self.addCleanup(need_descriptors(2 * sessions + 200))
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, preexec=raise_limit) as relay,
            ExitStack() as opened,
            ThreadPoolExecutor() as threads,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(sessions)]
            source, sink = opened.enter_context(self.session(relay, upstream))
            over = threading.Event()
            received = 0

            def say() -> int:
                said = 0
                for chunk in chunks(1 << 40, 9):
                    if over.is_set():
                        break
                    source.sendall(chunk)
                    said += len(chunk)
                source.shutdown(socket.SHUT_WR)
                return said

            def count(so_far: int) -> None:
                nonlocal received
                received = so_far

            saying = threads.submit(say)
            hearing = threads.submit(receive, sink, count)
            try:
                for number in range(rounds):
                    before = received
                    wait_until(lambda before=before: received > before)  # type: ignore[misc]
                    message = b"%d" % number
                    for client, _ in pairs:
                        client.sendall(message)
                    for _, server in pairs:
                        server.sendall(read_exactly(server, len(message)))
                    for client, _ in pairs:
                        self.assertEqual(read_exactly(client, len(message)), message)
                self.assertFalse(saying.done() or hearing.done())
            finally:
                over.set()
            said = saying.result()
            self.assertEqual(hearing.result(), digest_of(said, 9))

    def test_two_hundred_slow_readers_cost_little_and_hold_nobody_up(self) -> None:
        """On Unix sockets, of which the kernel's own buffers hold little."""
        readers, each = 200, 3 * MB
        self.addCleanup(need_descriptors(2 * readers + 200))
        listen = f"unix:{self.path('relay')}"
        with (
            Upstream(str(self.path("upstream"))) as upstream,
            self.relaying("--listen", listen, "--target", upstream.target, listen=False) as relay,
            ExitStack() as opened,
        ):
            slow = [opened.enter_context(self.session(relay, upstream)) for _ in range(readers)]
            at_rest = len(pipes(relay))
            before = relay.memory()
            taken = offer({server: each for _, server in slow})
            self.assertLess(max(taken.values()), each)
            # At most one for each; on a busy machine, a flow may have got stuck with a buffer instead.
            in_flight = len(pipes(relay)) - at_rest
            self.assertLessEqual(in_flight, readers)
            self.assertGreater(in_flight, readers // 2)
            self.assertLess(relay.memory() - before, 24 * MB)

            with self.session(relay, upstream) as (client, server), ThreadPoolExecutor() as threads:
                for number in range(200):
                    message = b"%d" % number
                    client.sendall(message)
                    self.assertEqual(read_exactly(server, len(message)), message)
                sending = threads.submit(send_and_end, client, 100 * MB, 5)
                self.assertEqual(receive(server), digest_of(100 * MB, 5))
                sending.result()
            self.assertLess(relay.memory() - before, 24 * MB)

            wanted = b"".join(chunks(each))
            for client, server in slow:
                server.shutdown(socket.SHUT_WR)
                got = read_exactly(client, taken[server])
                self.assertTrue(got == wanted[: len(got)])
                self.assertEqual(client.recv(1), b"")
            # More pipes came back than are worth keeping.
            self.wait_for_pipes(relay, at_rest)


def offer(sizes: dict[socket.socket, int]) -> dict[socket.socket, int]:
    """
    Send up to so much of `chunks` by each socket, until none of them takes any more for a second.

    @return: how much each has taken.
    """
    data = b"".join(chunks(max(sizes.values())))
    taken = dict.fromkeys(sizes, 0)
    with selectors.DefaultSelector() as selector:
        for sock in sizes:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, sock)
        while ready := selector.select(1.0):
            for key, _ in ready:
                sock = key.data
                with contextlib.suppress(BlockingIOError):
                    taken[sock] += sock.send(data[taken[sock] : min(sizes[sock], taken[sock] + MB)])
                if taken[sock] == sizes[sock]:
                    selector.unregister(sock)
            if not selector.get_map():
                break
        for sock in sizes:
            sock.settimeout(PATIENCE)
    return taken


class StoppedTests(SpliceScenario, every_pump=False):
    def test_a_relay_that_is_stopped_and_continued_in_mid_flow_loses_nothing(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            ExitStack() as opened,
            ThreadPoolExecutor() as threads,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(3)]
            over = threading.Event()

            def stop_and_go() -> None:
                while not over.wait(0.02):
                    relay.signal(signal.SIGSTOP)
                    over.wait(0.02)
                    relay.signal(signal.SIGCONT)

            stopping = threads.submit(stop_and_go)
            try:
                self.bulk(pairs, 40 * MB)
            finally:
                over.set()
            stopping.result()
            reasons = {entry["reason"] for entry in relay.ended(3)}
            self.assertEqual(reasons, {"done"})

    def test_all_that_happened_while_it_was_stopped_is_made_up_for(self) -> None:
        """Messages, ends, resets and bulk, in one batch of events."""
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            ExitStack() as opened,
        ):
            pairs = [opened.enter_context(self.session(relay, upstream)) for _ in range(40)]
            say_and_hear_through(pairs)
            relay.signal(signal.SIGSTOP)
            for number, (client, server) in enumerate(pairs):
                client.sendall(b"last words %02d" % number)
                if number % 4 == 0:
                    client.shutdown(socket.SHUT_WR)
                elif number % 4 == 1:
                    fill(server, 2 * MB, patience=0.01)
                elif number % 4 == 2:
                    client.shutdown(socket.SHUT_WR)
                    server.shutdown(socket.SHUT_WR)
            relay.signal(signal.SIGCONT)
            for number, (client, server) in enumerate(pairs):
                self.assertEqual(read_exactly(server, 13), b"last words %02d" % number)
                if number % 2 == 0:
                    self.assertEqual(server.recv(1), b"")
                if number % 4 == 1:
                    server.shutdown(socket.SHUT_WR)
                    count, digest = receive(client)
                    self.assertEqual((count, digest), digest_of(count))
                if number % 4 == 2:
                    self.assertEqual(client.recv(1), b"")


def say_and_hear_through(pairs: list[Pair]) -> None:
    """A byte each way through each."""
    for client, server in pairs:
        client.sendall(b"?")
        read_exactly(server, 1)
        server.sendall(b"!")
        read_exactly(client, 1)


class Trace:
    """What strace has seen of a relay. @ivar lines: its output, once the block has ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []


@contextmanager
def tracing(relay: RelayProcess, *options: str) -> Iterator[Trace]:
    """Attach strace to a relay for a `with` block. Skips the test where that can't be."""
    strace = find("strace")
    if strace is None:
        raise unittest.SkipTest("there is no strace here")
    trace = Trace()
    with folder() as place:
        output = Path(place, "trace")
        process = subprocess.Popen(
            [strace, "-f", *options, "-o", str(output), "-p", str(relay.pid)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            if "attached" not in said:
                raise unittest.SkipTest(f"strace may not attach here: {said}")
            yield trace
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
        trace.lines = output.read_text().splitlines()


class SystemCallsTests(SpliceScenario, every_pump=False):
    def test_a_relay_with_thousands_of_idle_sessions_asks_nothing_of_the_system(self) -> None:
        sessions = 2000
        self.addCleanup(need_descriptors(sessions + 200))
        with (
            echoes() as port,
            self.relaying("--target", f"127.0.0.1:{port}", preexec=raise_limit) as relay,
            ExitStack() as opened,
        ):
            socks = [opened.enter_context(relay.connect()) for _ in range(sessions)]
            say_and_hear(socks, b"x")
            for sock in socks[:20]:  # of which some have had pipes
                sock.sendall(bytes(300_000))
                read_exactly(sock, 300_000)
            relay.wait_for_descriptors(relay.at_rest + 2 * sessions)
            began = time.monotonic()
            with tracing(relay, "-c") as trace:
                time.sleep(QUIET)
            seconds = time.monotonic() - began
            calls = {
                words[-1]: int(words[3])
                for words in map(str.split, trace.lines)
                if len(words) >= 5 and words[3].isdigit() and words[-1] != "total"
            }
            # It waits when strace comes, and once more after each tick: of status, of deadlines.
            waits = calls.pop("epoll_wait", 0) + calls.pop("epoll_pwait", 0)
            waits += calls.pop("restart_syscall", 0)
            self.assertEqual(calls, {}, trace.lines)
            self.assertLessEqual(waits, 2 + seconds, trace.lines)
            say_and_hear(socks, b"y")

    def test_each_descriptor_is_closed_once(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            tracing(relay, "-e", "trace=close,dup,dup2,dup3") as trace,
        ):
            for number in range(300):
                with self.session(relay, upstream) as (client, server):
                    client.sendall(b"hello")
                    self.assertEqual(read_exactly(server, 5), b"hello")
                    if number % 10 == 0:
                        taken = fill(server, 8 * MB, patience=0.05)
                        if number % 20 == 0:
                            self.assertTrue(read_exactly(client, len(taken)) == taken)
                    if number % 3 == 0:
                        client.shutdown(socket.SHUT_WR)
                        self.assertEqual(server.recv(1), b"")
                    elif number % 3 == 1:
                        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            relay.ended(300)
            relay.wait_for_descriptors(relay.at_rest)
        closed = [line for line in trace.lines if re.search(r"\bclose\(\d+\)", line)]
        self.assertGreaterEqual(len(closed), 600)
        self.assertEqual([line for line in trace.lines if "EBADF" in line], [])
        self.assertEqual([line for line in trace.lines if "dup" in line], [])


class OptionTests(SynchronousTestCase):
    def test_auto_splices_and_buffered_never_does(self) -> None:
        for pump, splices in (("auto", True), ("splice", True), ("buffered", False)):
            with (
                Upstream() as upstream,
                contextlib.closing(Started("--pump", pump, "--target", upstream.target)) as relay,
                relay.connect() as client,
                upstream.accept() as server,
                ThreadPoolExecutor() as threads,
            ):
                at_rest = len(pipes(relay))
                sending = threads.submit(send_and_end, client, STUCK)
                if splices:
                    wait_until(partial(has_more_pipes, relay, at_rest))
                else:
                    wait_until_blocked(client)
                    self.assertEqual(len(pipes(relay)), at_rest)
                self.assertEqual(receive(server), digest_of(STUCK))
                sending.result()

    def test_without_an_option_it_splices(self) -> None:
        with (
            Upstream() as upstream,
            contextlib.closing(Started("--target", upstream.target)) as relay,
            relay.connect() as client,
            upstream.accept() as server,
            ThreadPoolExecutor() as threads,
        ):
            at_rest = len(pipes(relay))
            sending = threads.submit(send_and_end, server, STUCK)
            wait_until(partial(has_more_pipes, relay, at_rest))
            self.assertEqual(receive(client), digest_of(STUCK))
            sending.result()


class Started(RelayProcess):
    def close(self) -> None:
        """Stop it."""
        self.stop()

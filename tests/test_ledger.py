"""`fwdrelay.ledger`: counts and rates of several processes, of which any may die at any moment."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from fwdrelay import ledger as module
from fwdrelay.ledger import Ledger
from tests.case import SynchronousTestCase, open_descriptors

# What a process does that the tests start. It says what it holds when its input ends.
BEGIN = """
import json, mmap, os, random, sys
from fwdrelay import ledger as module
module._PATIENCE = 60.0  # however many others the machine has to do with
ledger = module.Ledger.open(int(sys.argv[1]))
witness = mmap.mmap(int(sys.argv[2]), 4096)
os.set_blocking(0, False)
def go_on():
    try:
        return os.read(0, 1) != b""
    except BlockingIOError:
        return True
def say(what):
    print(what, flush=True)
"""
ALONE = (
    BEGIN
    + """
one, few = ledger.key("one"), ledger.key("few")
mine = os.getpid().to_bytes(4, "big")
taken = 0
say("ready")
os.set_blocking(0, True)
os.read(0, 1)  # until all are
while taken < 1000:
    if ledger.take(one, 1):
        witness[:4] = mine
        taken += 1
        os.sched_yield()
        if witness[:4] != mine:
            say("two hold what only one may")
        ledger.give_back(one)
    if ledger.take(few, 3):
        ledger.lock()
        if ledger.count(few) > 3:
            say("too many")
        ledger.unlock()
        os.sched_yield()
        ledger.give_back(few)
say(taken)
ledger.close()
"""
)
HOLDS = (
    BEGIN
    + """
limited = ledger.key("limited")
keys = ledger.keys("client")
random.seed(int(sys.argv[3]))
held = {}
tries = 0
say("ready")
while go_on() or tries < 2000:
    tries += 1
    client = keys(random.randrange(300).to_bytes(2, "big"))
    key = random.choice([limited, client])
    if random.random() < 0.5:
        if ledger.take(key, random.choice([0, 5]) if key is client else 20):
            held[key] = held.get(key, 0) + 1
    elif held.get(key):
        held[key] -= 1
        ledger.give_back(key)
    ledger.clients_tokens.take(client, 0.001, 1.0, ledger.seconds())
say(json.dumps({key: count for key, count in held.items() if count}))
sys.stdin.close()
os.kill(os.getpid(), 9)  # without giving anything back
"""
)
TAKES = (
    BEGIN
    + """
key = ledger.key("rate")
say(sum(ledger.listeners_tokens.take(key, 60.0, 99 * 60.0, 1000.0) for _ in range(100)))
"""
)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.ledger = self.closing(Ledger.create())

    def closing(self, ledger: Ledger) -> Ledger:
        """
        @return: it; it is closed when the test ends.
        """
        self.addCleanup(ledger.close)
        return ledger

    def open(self) -> Ledger:
        """
        @return: as another process would have it.
        """
        return self.closing(Ledger.open(self.ledger.fileno()))

    def die(self, ledger: Ledger) -> None:
        """What becomes of a process' ledger when it is killed: the kernel closes its descriptor."""
        with mock.patch.object(ledger, "_leave"):
            ledger.close()


class CountTests(Case):
    def test_no_more_than_the_limit_over_all(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("listener", "web")
        self.assertEqual(key, other.key("listener", "web"))
        took = [each.take(key, 3) for each in (one, other, one, other, one)]
        self.assertEqual(took, [True, True, True, False, False])
        self.assertEqual([each.count(key) for each in (one, other, self.ledger)], [3, 3, 3])
        self.assertEqual([one.own_count(key), other.own_count(key)], [2, 1])
        one.give_back(key)
        self.assertEqual([other.take(key, 3), one.take(key, 3)], [True, False])

    def test_without_a_limit_everything_is_counted_and_counts_later(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("listener", "web")
        self.assertTrue(all(one.take(key, 0) for _ in range(5)))
        other.add(key)
        self.assertFalse(other.take(key, 6))
        self.assertTrue(other.take(key, 7))

    def test_nobody_gives_back_what_it_does_not_hold(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("listener", "web")
        one.add(key)
        other.give_back(key)
        other.add(key)
        other.give_back(key)
        other.give_back(key)
        self.assertEqual(one.count(key), 1)

    def test_who_closes_gives_back_all(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("listener", "web")
        one.add(key)
        other.add(key)
        other.add(key)
        other.close()
        self.assertEqual((one.count(key), self.ledger.count(key)), (1, 1))
        other.give_back(key)
        self.assertEqual((other.count(key), other.posted(key), other.take(key, 9)), (0, [], False))
        self.assertEqual(self.ledger.recount(), 0)
        third = self.open()
        third.add(key)
        self.assertEqual(one.count(key), 2, "though the place was another's before")

    def test_what_the_dead_held_counts_until_it_is_said(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("listener", "web")
        for each in (one, other, other):
            each.add(key)
        self.die(other)
        self.assertEqual(one.count(key), 3)
        self.assertFalse(one.take(key, 3))
        self.assertEqual(self.ledger.recount(), 1)
        self.assertEqual(one.count(key), 1)
        self.assertTrue(one.take(key, 2))
        self.assertEqual(self.ledger.recount(), 0)
        self.assertEqual(one.count(key), 2)

    def test_one_that_comes_does_not_take_the_place_of_one_that_died(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("listener", "web")
        other.add(key)
        self.die(other)
        one.add(key)
        self.assertEqual(one.count(key), 2)

    def test_names_are_told_apart(self) -> None:
        names = [("pool", "a"), ("target", "a"), ("pool", "a", ""), ("pool", "", "a"), ("poola",)]
        keys = {self.ledger.key(*each) for each in names}
        clients = self.ledger.keys("client", "web")
        keys |= {clients(each) for each in (b"", b"a", b"\0")}
        self.assertEqual(len(keys), len(names) + 3)
        elsewhere = self.closing(Ledger.create())
        self.assertNotEqual(elsewhere.key("pool", "a"), self.ledger.key("pool", "a"))

    def test_any_name_has_a_key(self) -> None:
        self.assertTrue(self.ledger.key("target", "\udcff", "ö"))

    @given(
        st.lists(
            st.tuples(st.integers(0, 1), st.sampled_from(["take", "give"]), st.integers(0, 200)),
            max_size=400,
        )
    )
    def test_counts_agree_with_what_was_taken(self, moves: list[tuple[int, str, int]]) -> None:
        both = [Ledger.open(self.ledger.fileno()) for _ in range(2)]
        keys = both[0].keys("client")
        held: list[dict[int, int]] = [{}, {}]
        try:
            for who, move, number in moves:
                key = keys(number.to_bytes(2, "big"))
                mine = held[who]
                if move == "give":
                    both[who].give_back(key)
                    mine[key] = max(mine.get(key, 0) - 1, 0)
                else:
                    total = sum(each.get(key, 0) for each in held)
                    self.assertEqual(both[who].take(key, 2), total < 2)
                    mine[key] = mine.get(key, 0) + (total < 2)
            for key in {*held[0], *held[1]}:
                counts = [held[0].get(key, 0), held[1].get(key, 0)]
                self.assertEqual([each.own_count(key) for each in both], counts)
                self.assertEqual(both[0].count(key), sum(counts))
        finally:
            for each in both:
                each.close()

    def test_very_many_names_come_and_go_in_little_memory(self) -> None:
        one, other = self.open(), self.open()
        keys = one.keys("client")
        stays = keys(b"stays")
        one.add(stays)
        for number in range(20_000):
            key = keys(number.to_bytes(4, "big"))
            one.add(key)
            if number % 5000 != 7:
                one.give_back(key)
        self.assertEqual(other.count(stays), 1)
        self.assertEqual(
            [other.count(keys(number.to_bytes(4, "big"))) for number in (7, 8, 5007, 15_007)],
            [1, 0, 1, 1],
        )
        self.assertLess(os.fstat(self.ledger.fileno()).st_blocks * 512, 200_000)
        self.assertLess(len(one._places), 200)

    def test_many_that_stay(self) -> None:
        one, other = self.open(), self.open()
        keys = one.keys("client")
        names = [keys(number.to_bytes(4, "big")) for number in range(5000)]
        for key in names:
            one.add(key)
        self.assertEqual({other.count(key) for key in names}, {1})
        one.close()
        self.assertEqual({other.count(key) for key in names}, {0})
        self.assertLess(os.fstat(self.ledger.fileno()).st_blocks * 512, 50_000)

    def test_memory_is_bounded(self) -> None:
        with mock.patch.object(module, "MOST_KEYS", 128):
            one, other = self.open(), self.open()
            keys = one.keys("client")
            took = [one.take(keys(bytes([number])), 1) for number in range(200)]
            self.assertEqual((took.count(True), took[:50]), (96, [True] * 50))
            one.add(keys(b"more"))
            self.assertEqual(other.count(keys(b"more")), 0)
            for number in range(100):
                one.give_back(keys(bytes([number])))
            self.assertTrue(one.take(keys(b"more"), 1))
            self.assertEqual(other.count(keys(b"more")), 1)

    def test_what_is_posted_is_seen_by_the_others(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("queue", "web")
        one.post(key, 0)
        self.assertEqual((other.posted(key), one._own), ([], None))
        one.post(key, 17)
        self.assertEqual((other.posted(key), one.posted(key)), ([17], []))
        other.post(key, 4)
        self.assertEqual(sorted(self.ledger.posted(key)), [4, 17])
        one.post(key, 0)
        self.assertEqual(self.ledger.posted(key), [4])

    def test_more_processes_than_can_be_seen(self) -> None:
        with mock.patch.object(module, "MOST_PROCESSES", 2):
            three = [self.open() for _ in range(3)]
            key = three[0].key("listener", "web")
            with capturedLogs() as logs:
                for each in three:
                    each.add(key)
            (said,) = logs
            self.assertIn("More than 2 processes count sessions", str(formatEvent(said)))
            self.assertEqual([each.count(key) for each in three], [2, 2, 3])
            self.assertFalse(three[2].take(key, 3))
            three[0].close()
            self.assertEqual([each.count(key) for each in three], [0, 1, 2])


class TokensTests(Case):
    def test_one_bucket_for_all(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("rate", "web")
        took = [
            each.listeners_tokens.take(key, 10.0, 20.5, now)
            for each, now in (
                (one, 0),
                (other, 0),
                (one, 0),
                (other, 0),
                (one, 9),
                (other, 10),
                (one, 10),
            )
        ]
        self.assertEqual(took, [True] * 3 + [False, False, True, False])

    def test_an_old_debt_is_no_credit(self) -> None:
        tokens, key = self.ledger.clients_tokens, self.ledger.key("rate", "web")
        self.assertTrue(tokens.take(key, 1.0, 1.5, 0.0))
        took = [tokens.take(key, 1.0, 1.5, 1e6) for _ in range(3)]
        self.assertEqual(took, [True, True, False])

    def test_where_there_are_too_many_those_who_owe_most_are_remembered(self) -> None:
        tokens, keys = self.ledger.listeners_tokens, self.ledger.keys("rate")
        greedy = [keys(b"greedy" + bytes([number])) for number in range(20)]
        for key in greedy * 3:
            self.assertTrue(tokens.take(key, 3600.0, 2.5 * 3600, 0.0))
        for number in range(5000):
            self.assertTrue(tokens.take(keys(number.to_bytes(4, "big")), 3600.0, 2.5 * 3600, 0.0))
        self.assertEqual([key for key in greedy if tokens.take(key, 3600.0, 2.5 * 3600, 0.0)], [])

    def test_who_has_a_full_one_makes_room(self) -> None:
        tokens, keys = self.ledger.listeners_tokens, self.ledger.keys("rate")
        for number in range(5000):
            tokens.take(keys(number.to_bytes(4, "big")), 1.0, 0.5, number / 100)
        slow = keys(b"slow")
        self.assertTrue(tokens.take(slow, 30.0, 1.0, 50.0))
        for number in range(5000):
            tokens.take(keys(number.to_bytes(4, "little")), 1.0, 0.5, 50 + number / 1000)
        self.assertFalse(tokens.take(slow, 30.0, 1.0, 55.0))

    def test_clients_do_not_crowd_out_listeners(self) -> None:
        key, keys = self.ledger.key("rate", "web"), self.ledger.keys("rate", "web")
        self.assertTrue(self.ledger.listeners_tokens.take(key, 1.0, 0.5, 0.0))
        with mock.patch.object(self.ledger.clients_tokens, "_rows", 4):
            for number in range(1000):
                self.ledger.clients_tokens.take(keys(number.to_bytes(4, "big")), 99.0, 0.5, 0.0)
        self.assertFalse(self.ledger.listeners_tokens.take(key, 1.0, 0.5, 0.0))

    def test_rates_outlive_who_took(self) -> None:
        one, key = self.open(), self.ledger.key("rate", "web")
        self.assertTrue(one.clients_tokens.take(key, 1.0, 0.5, 0.0))
        self.die(one)
        self.ledger.recount()
        self.assertFalse(self.open().clients_tokens.take(key, 1.0, 0.5, 0.0))


class OpenTests(SynchronousTestCase):
    def test_its_clock(self) -> None:
        clock = Clock()
        first = Ledger.create(clock.seconds)
        self.addCleanup(first.close)
        clock.advance(5)
        self.assertEqual(first.seconds(), 5)

    def test_the_descriptor_stays_the_callers(self) -> None:
        first = Ledger.create()
        self.addCleanup(first.close)
        descriptor = os.dup(first.fileno())
        second = Ledger.open(descriptor)
        self.addCleanup(second.close)
        self.assertNotEqual(second.fileno(), descriptor)
        self.assertFalse(os.get_inheritable(second.fileno()))
        os.close(descriptor)
        second.add(second.key("a"))
        self.assertEqual(first.count(first.key("a")), 1)

    def test_it_outlives_who_made_it(self) -> None:
        first = Ledger.create()
        key = first.key("a")
        second = Ledger.open(first.fileno())
        second.add(key)
        first.close()
        first.close()
        third = Ledger.open(second.fileno())
        self.assertEqual((third.key("a"), third.count(key)), (key, 1))
        second.close()
        third.close()

    def test_what_is_none_is_refused(self) -> None:
        before = open_descriptors()
        for begins, size, word in (
            (b"", 0, "no ledger"),
            (b"something else " * 9, 0, "no ledger"),
            (b"fwdrelay" + (2).to_bytes(8, "little"), module._SIZE, "version 2"),
            (b"fwdrelay" + (1).to_bytes(8, "little"), 99, "version 1"),
        ):
            descriptor = os.memfd_create("another")
            os.ftruncate(descriptor, size)
            os.pwrite(descriptor, begins, 0)
            with self.assertRaisesRegex(ValueError, word):
                Ledger.open(descriptor)
            os.close(descriptor)
        self.assertRaises(OSError, Ledger.open, 999_999)
        self.assertEqual(open_descriptors(), before)

    def test_one_that_can_not_be_made_leaves_nothing(self) -> None:
        before = open_descriptors()
        with mock.patch("os.pwrite", side_effect=OSError(28, "full")):
            self.assertRaises(OSError, Ledger.create)
        self.assertEqual(open_descriptors(), before)


class LockTests(Case):
    def test_who_is_waited_for_in_vain_holds_nobody_up(self) -> None:
        one, other = self.open(), self.open()
        key = one.key("listener", "web")
        other.add(key)
        one.lock()
        with capturedLogs() as logs, mock.patch.object(module, "_PATIENCE", 0.001):
            self.assertEqual([other.take(key, 2), other.take(key, 2)], [True, False])
            other._impatient_until = 0.0
            self.assertTrue(other.take(key, 3))
        self.assertEqual(len(logs), 1)
        self.assertIn("keeps the limits of all workers", str(formatEvent(logs[0])))
        one.unlock()
        self.assertTrue(other.take(key, 4))
        self.assertEqual(one.count(key), 4)

    def test_the_kernel_gives_it_back_for_the_dead(self) -> None:
        one, other = self.open(), self.open()
        one.lock()
        self.die(one)
        with mock.patch.object(other, "_wait_for_lock", side_effect=AssertionError):
            self.assertTrue(other.take(other.key("a"), 1))


class ProcessesTests(Case):
    """With processes that know of each other by the ledger alone."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(module, "_PATIENCE", 60.0)
        self.witness = os.memfd_create("witness")
        os.ftruncate(self.witness, 4096)
        self.addCleanup(os.close, self.witness)

    def start(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        descriptors = (self.ledger.fileno(), self.witness)
        started = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, (*descriptors, *arguments))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=descriptors,
        )
        self.addCleanup(self.end, started)
        return started

    def end(self, started: subprocess.Popen[str]) -> None:
        started.kill()
        started.communicate()

    def start_ready(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        started = self.start(script, *arguments)
        assert started.stdout is not None
        self.assertEqual(started.stdout.readline(), "ready\n")
        return started

    def test_a_limit_is_never_exceeded(self) -> None:
        three = [self.start_ready(ALONE) for _ in range(3)]
        for each in three:
            assert each.stdin is not None
            each.stdin.close()
            each.stdin = None
        said = [each.communicate(timeout=60)[0] for each in three]
        self.assertEqual(said, ["1000\n"] * 3)
        for name in ("one", "few"):
            self.assertEqual(self.ledger.count(self.ledger.key(name)), 0)
        self.assertEqual(self.ledger.recount(), 0)

    def test_a_rate_is_never_exceeded(self) -> None:
        three = [self.start(TAKES) for _ in range(3)]
        given = [int(each.communicate(timeout=60)[0]) for each in three]
        self.assertEqual(sum(given), 100)

    def test_death_at_any_moment(self) -> None:
        rest = random.Random(7)
        running = [self.start_ready(HOLDS, seed) for seed in range(3)]
        for seed in range(3, 15):
            time.sleep(rest.uniform(0.0, 0.05))  # anywhere in what it does
            doomed = running.pop(0)
            doomed.kill()
            doomed.communicate()
            self.assertEqual(self.ledger.recount(), 1)
            running.append(self.start_ready(HOLDS, seed))
        expected: dict[int, int] = {}
        for each in running:
            for key, count in json.loads(each.communicate(timeout=60)[0]).items():
                expected[int(key)] = expected.get(int(key), 0) + count
        self.assertGreater(len(expected), 100)
        self.assertEqual({key: self.ledger.count(key) for key in expected}, expected)
        self.assertLessEqual(self.ledger.count(self.ledger.key("limited")), 20)
        self.assertEqual(self.ledger.recount(), 3)
        self.assertEqual({self.ledger.count(key) for key in expected}, {0})

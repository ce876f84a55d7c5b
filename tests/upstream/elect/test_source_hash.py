"""`fwdrelay.upstream.elect.source_hash`: which client goes where, and who moves."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from fwdrelay.interfaces import IElection, ITarget
from fwdrelay.upstream import Target
from fwdrelay.upstream.elect import source_hash
from fwdrelay.upstream.elect.source_hash import SourceHash
from tests.case import SynchronousTestCase
from tests.upstream.elect.targets import begun, elected, target, targets

ROOT = Path(__file__).resolve().parents[3]
CLIENTS = [f"10.{number >> 8}.{number & 255}.7" for number in range(3000)]
ELSEWHERE = """
from fwdrelay.upstream.elect.source_hash import SourceHash
from tests.upstream.elect.targets import begun, target
members = [target("c"), target("a", 3), target("b", 2)]
election = begun(SourceHash(), members)
print("".join(election.elect(members, f"10.0.0.{n}").label for n in range(200)))
"""


def where(
    election: IElection, candidates: Sequence[ITarget], clients: Sequence[str] = CLIENTS
) -> dict[str, str]:
    """The label of who is elected for each client."""
    return {client: election.elect(candidates, client).label for client in clients}


def fill_on(clock: Clock) -> None:
    """Let the slices run that are due, until there are none."""
    while clock.getDelayedCalls():
        clock.advance(0)


class HashTests(SynchronousTestCase):
    def test_a_client_gets_the_same_target_each_time(self) -> None:
        members = targets(1, 1, 1)
        election = begun(SourceHash(), members)
        self.assertEqual(where(election, members), where(election, members))

    def test_clients_are_spread_by_weight(self) -> None:
        members = targets(1, 2, 3)
        counts = Counter(where(begun(SourceHash(), members), members).values())
        for label, part in zip("abc", (1 / 6, 2 / 6, 3 / 6), strict=True):
            self.assertLess(abs(counts[label] / len(CLIENTS) - part), 0.03)

    def test_neither_slow_start_nor_sessions_move_anybody(self) -> None:
        members = targets(1, 1, 1)
        election = begun(SourceHash(), members)
        before = where(election, members)
        members[0].share = 0.1
        members[1].sessions = 1000
        self.assertEqual(where(election, members), before)

    def test_the_order_of_targets_does_not_matter(self) -> None:
        members = targets(*range(1, 9))
        before = where(begun(SourceHash(), members), members)
        for seed in range(2):
            random.Random(seed).shuffle(members)
            self.assertEqual(where(begun(SourceHash(), members), members), before)

    def test_what_a_machine_calls_its_interfaces_does_not_matter(self) -> None:
        members = targets(*[1] * 8)
        election = begun(SourceHash(), members)
        for number in range(8):
            client = f"fe80::{number:x}"
            zones = {election.elect(members, f"{client}{zone}") for zone in ("", "%eth0", "%2")}
            self.assertEqual(len(zones), 1)

    def test_another_process_elects_the_same(self) -> None:
        said = set()
        for seed in ("0", "1", "4711"):
            done = subprocess.run(
                [sys.executable, "-c", ELSEWHERE],
                env={**os.environ, "PYTHONHASHSEED": seed},
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            said.add(done.stdout.strip())
        members = [target("b", 2), target("c"), target("a", 3)]
        election = begun(SourceHash(), members)
        clients = [f"10.0.0.{number}" for number in range(200)]
        self.assertEqual(said, {"".join(where(election, members, clients).values())})

    def test_clients_go_where_they_have_always_gone(self) -> None:
        """Relays agree, of whatever version: a change here moves everybody's clients."""
        members = [target("a", 3), target("b", 2), target("c")]
        election = begun(SourceHash(), members)
        clients = [f"10.0.0.{number}" for number in range(40)]
        self.assertEqual(
            "".join(where(election, members, clients).values()),
            "bcaabababcbbbcacabaaabbcabaabaabaaaaacca",
        )
        self.assertEqual(
            "".join(where(election, members[1:], clients).values()),
            "bcbbbbbbbcbbbcbcbbbcbbbcbbbbbccbcbcbbccb",
        )

    def test_clients_without_an_address_take_turns(self) -> None:
        members = targets(5, 1, 1)
        election = begun(SourceHash(), members)
        self.assertEqual(elected(election, members, 7), "aabacaa")

    def test_whoever_may_be_elected_one_of_them_is(self) -> None:
        all_targets = [*targets(1, 2, 5, 30), target("s", backup=True), target("t", backup=True)]

        @settings(max_examples=25, deadline=None)
        @given(
            st.lists(st.sampled_from(all_targets), min_size=1, unique=True),
            st.data(),
            st.one_of(st.none(), st.ip_addresses().map(str)),
        )
        def check(members: list[Target], data: st.DataObject, client: str | None) -> None:
            election = begun(SourceHash(), members)
            tier = data.draw(st.sampled_from(members)).tier
            may_be = [each for each in members if each.tier == tier]
            candidates = data.draw(st.lists(st.sampled_from(may_be), min_size=1, unique=True))
            self.assertIn(election.elect(candidates, client), candidates)

        check()


class DownTests(SynchronousTestCase):
    def test_clients_of_one_that_is_down_spread_over_all_others_by_weight(self) -> None:
        members = targets(6, 1, 2, 3)
        election = begun(SourceHash(), members)
        before, after = where(election, members), where(election, members[1:])
        self.assertEqual(
            {client for client in CLIENTS if before[client] != after[client]},
            {client for client in CLIENTS if before[client] == "a"},
        )
        orphans = [after[client] for client in CLIENTS if before[client] == "a"]
        for label, part in zip("bcd", (1 / 6, 2 / 6, 3 / 6), strict=True):
            self.assertLess(abs(orphans.count(label) / len(orphans) - part), 0.05)

    def test_when_it_is_up_again_they_come_back(self) -> None:
        members = targets(1, 1, 1)
        election = begun(SourceHash(), members)
        before = where(election, members)
        where(election, members[1:])
        self.assertEqual(where(election, members), before)

    def test_who_moves_when_a_second_goes_down_is_only_its_clients(self) -> None:
        members = targets(1, 1, 1, 1)
        election = begun(SourceHash(), members)
        one_down, two_down = where(election, members[1:]), where(election, members[2:])
        for client in CLIENTS:
            if one_down[client] != "b":
                self.assertEqual(two_down[client], one_down[client])

    def test_a_client_has_an_order_of_all_targets(self) -> None:
        """As it goes when one dial after the other fails; and another client has another order."""
        members = targets(*[1] * 5)
        election = begun(SourceHash(), members)

        def order(client: str) -> str:
            left: list[ITarget] = list(members)
            labels = ""
            while left:
                winner = election.elect(left, client)
                left.remove(winner)
                labels += winner.label
            return labels

        orders = Counter(order(client) for client in CLIENTS)
        self.assertEqual({"".join(sorted(each)) for each in orders}, {"abcde"})
        self.assertEqual(len(orders), 5 * 4 * 3 * 2)


class TiersTests(SynchronousTestCase):
    def test_backups_move_nobody(self) -> None:
        members = targets(1, 1, 1)
        before = where(begun(SourceHash(), members), members)
        election = begun(SourceHash(), [*members, target("s", 7, backup=True)])
        self.assertEqual(where(election, members), before)

    def test_backups_are_hashed_too(self) -> None:
        backups = [target("s", backup=True), target("t", 3, backup=True)]
        election = begun(SourceHash(), [*targets(1, 1, 1), *backups])
        counts = Counter(where(election, backups).values())
        self.assertLess(abs(counts["t"] / len(CLIENTS) - 3 / 4), 0.03)

    def test_priorities_have_tables_of_their_own(self) -> None:
        first = targets(1, 2)
        second = [target("x", priority=1), target("y", priority=1)]
        election = begun(SourceHash(), [*second, *first])
        alone = begun(SourceHash(), first)
        self.assertEqual(where(election, first), where(alone, first))
        self.assertEqual(set(where(election, second).values()), set("xy"))


class ChangesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.members = targets(1, 1, 1)
        self.election = SourceHash(self.clock)
        self.election.targets_changed(self.members)

    def anew(self, members: Sequence[Target]) -> dict[str, str]:
        """Where everybody would go if this had always been the pool."""
        return where(begun(SourceHash(), members), members)

    def test_the_first_table_is_there_at_once(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(where(self.election, self.members), self.anew(self.members))

    def test_the_old_table_is_used_until_the_new_one_is_ready(self) -> None:
        self.patch(source_hash, "_SLICE", -1.0)  # so short that a slice is one step
        before = where(self.election, self.members)
        more = [*self.members, target("d")]
        self.election.targets_changed(more)
        slices = 0
        while self.clock.calls:
            if slices % 100 == 0:
                self.assertEqual(
                    where(self.election, more, CLIENTS[:300]), dict(list(before.items())[:300])
                )
            call = self.clock.calls.pop(0)  # Clock.advance would go on to the last slice
            call.func()
            slices += 1
        self.assertGreater(slices, 1000)
        self.assertEqual(where(self.election, more), self.anew(more))

    def test_one_that_is_gone_is_not_elected_meanwhile(self) -> None:
        less = self.members[1:]
        self.election.targets_changed(less)
        self.assertEqual(set(where(self.election, less).values()), {"b", "c"})
        fill_on(self.clock)
        self.assertEqual(where(self.election, less), self.anew(less))

    def test_a_second_change_while_the_first_is_being_made(self) -> None:
        self.patch(source_hash, "_SLICE", -1.0)
        self.election.targets_changed([*self.members, target("d")])
        self.clock.calls.pop(0).func()
        more = [*self.members, target("e")]
        self.election.targets_changed(more)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        fill_on(self.clock)
        self.assertEqual(where(self.election, more), self.anew(more))

    def test_when_all_candidates_are_new_their_table_is_there_at_once(self) -> None:
        new = [target("x"), target("y", 2)]
        self.election.targets_changed(new)
        self.assertEqual(where(self.election, new), self.anew(new))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_also_when_they_are_the_first_of_their_tier(self) -> None:
        backups = [target("x", backup=True), target("y", backup=True)]
        self.election.targets_changed([*self.members, *backups])
        self.assertEqual(where(self.election, backups), self.anew(backups))

    def test_and_when_there_were_none_before(self) -> None:
        election = begun(SourceHash(self.clock), [])
        election.targets_changed(self.members)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(where(election, self.members), self.anew(self.members))

    def test_a_weight_that_changes_in_place(self) -> None:
        heavier = self.members[0]
        heavier.change(target("a", 4).config)
        self.election.targets_changed(self.members)
        fill_on(self.clock)
        expected = self.anew([target("a", 4), *self.members[1:]])
        self.assertEqual(where(self.election, self.members), expected)

    def test_a_target_that_becomes_a_backup(self) -> None:
        self.members[0].change(target("a", backup=True).config)
        self.election.targets_changed(self.members)
        fill_on(self.clock)
        self.assertEqual(where(self.election, self.members[1:]), self.anew([*self.members[1:]]))

    def test_backups_of_a_tier_that_was_not_told_of_take_turns(self) -> None:
        for member in self.members[1:]:
            member.change(target(member.label, backup=True).config)
        self.assertEqual(elected(self.election, self.members[1:], 4, "10.0.0.1"), "bcbc")

    def test_a_target_of_the_same_name_at_another_address_takes_its_place(self) -> None:
        before = where(self.election, self.members)
        instead = [target("a"), *self.members[1:]]
        self.election.targets_changed(instead)
        self.clock.advance(0)  # the tables need not be filled anew
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(where(self.election, instead), before)
        self.assertIn(instead[0], {self.election.elect(instead, client) for client in CLIENTS})

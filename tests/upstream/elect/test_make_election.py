"""`fwdrelay.upstream.elect.make_election`: from a configuration's `balance` to an election."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyClass, verifyObject

from fwdrelay.config import BALANCES
from fwdrelay.interfaces import IElection, ITarget
from fwdrelay.upstream import Target
from fwdrelay.upstream.elect import make_election
from tests.case import SynchronousTestCase
from tests.upstream.elect.targets import begun, elected, target, targets


class MakeElectionTests(SynchronousTestCase):
    def test_all_kinds_are_there_and_are_elections(self) -> None:
        for balance in BALANCES:
            election = make_election(balance)
            verifyObject(IElection, election)
            verifyClass(IElection, type(election))

    def test_they_are_told_where_one_is_not_known(self) -> None:
        wrong = self.assertRaises(ValueError, make_election, "round-robbin")
        self.assertIn("there is no election 'round-robbin' among ", str(wrong))
        self.assertIn("did you mean round-robin?", str(wrong))
        for balance in BALANCES:
            self.assertIn(balance, str(wrong))

    def test_they_take_no_argument(self) -> None:
        for text in ("first:1", "source-hash:"):
            name = text.partition(":")[0]
            wrong = self.assertRaises(ValueError, make_election, text)
            self.assertEqual(
                str(wrong), f"{text!r}: the election {name} takes no argument; write {name!r}"
            )

    def test_first(self) -> None:
        abc = targets(1, 5, 1)
        election = begun(make_election("first"), abc)
        self.assertEqual(elected(election, abc, 3) + elected(election, abc[1:], 2), "aaabb")

    def test_a_target_is_what_elections_see(self) -> None:
        verifyObject(ITarget, target("a"))

    def test_whatever_happened_before_a_candidate_is_elected(self) -> None:
        """Members come and go, are up and down, full and idle, start slowly and are done with it."""

        @given(st.sampled_from([b for b in BALANCES if b != "source-hash"]), st.data())
        def check(balance: str, data: st.DataObject) -> None:
            election = make_election(balance)
            all_targets = targets(1, 2, 5, 30)
            members: list[Target] = []
            for _ in range(data.draw(st.integers(1, 20))):
                if not members or data.draw(st.booleans()):
                    members = data.draw(
                        st.lists(st.sampled_from(all_targets), min_size=1, unique=True)
                    )
                    election.targets_changed(members)
                candidates = data.draw(st.lists(st.sampled_from(members), min_size=1, unique=True))
                for each in candidates:
                    each.sessions = data.draw(st.integers(0, 3))
                    each.share = each.weight * data.draw(st.sampled_from([0.1, 0.55, 1]))
                self.assertIn(election.elect(candidates, "192.0.2.9"), candidates)

        check()

"""`fwdrelay.admit.admission`: who may enter, and that each is counted once."""

from __future__ import annotations

from typing import Any

from attrs import define, evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from zope.interface import implementer

from fwdrelay.admit import Admission, Refused
from fwdrelay.config import Admit, ListenerConfig, Rate
from fwdrelay.config.grammar import parse_network
from fwdrelay.interfaces import IAdmission
from fwdrelay.ledger import Ledger
from fwdrelay.session import Reason
from tests.case import SynchronousTestCase

A, B, C = "192.0.2.1", "192.0.2.2", "2001:db8::3"


def listener(max_sessions: int = 0, **admit: Any) -> ListenerConfig:
    """
    @param admit: fields of `Admit`.
    """
    return ListenerConfig(name="l", listen=(), max_sessions=max_sessions, admit=Admit(**admit))


def make(*others: Any, clock: Clock | None = None, **fields: Any) -> Admission:
    """
    @param others: what plugins have made.
    @param fields: as for `listener`.
    """
    plugins = tuple(f"plugin{number}" for number in range(len(others)))
    return Admission(listener(plugins=plugins, **fields), others, (clock or Clock()).seconds)


def reason(refused: Refused | None) -> Reason | None:
    """Why, without what a plugin says."""
    return None if refused is None else refused.reason


class NetworkTests(SynchronousTestCase):
    def admit(self, client: str | None, allow: str = "", deny: str = "") -> Reason | None:
        networks = [tuple(parse_network(text) for text in texts.split()) for texts in (allow, deny)]
        return reason(make(allow=networks[0], deny=networks[1]).enter(client))

    def test_everybody_may_enter_where_nobody_is_named(self) -> None:
        for client in ("192.0.2.1", "::1", None):
            self.assertIsNone(self.admit(client))

    def test_only_those_allowed_may_enter(self) -> None:
        self.assertIsNone(self.admit("10.1.2.3", allow="192.0.2.1 10.0.0.0/8"))
        self.assertIs(self.admit("11.1.2.3", allow="10.0.0.0/8"), Reason.DENIED)
        self.assertIs(self.admit("::1", allow="10.0.0.0/8"), Reason.DENIED)
        self.assertIsNone(self.admit("::1", allow="10.0.0.0/8 ::/64"))

    def test_those_denied_may_not(self) -> None:
        self.assertIs(self.admit("10.1.2.3", deny="10.0.0.0/8"), Reason.DENIED)
        self.assertIsNone(self.admit("11.1.2.3", deny="10.0.0.0/8"))

    def test_deny_wins_over_allow(self) -> None:
        self.assertIs(self.admit("10.1.2.3", allow="10.1.2.3", deny="10.0.0.0/8"), Reason.DENIED)

    def test_networks_say_nothing_of_clients_of_unix_sockets(self) -> None:
        self.assertIsNone(self.admit(None, allow="10.0.0.0/8", deny="0.0.0.0/0"))

    def test_an_address_with_a_zone(self) -> None:
        self.assertIsNone(self.admit("fe80::1%eth0", allow="fe80::/10"))
        self.assertIs(self.admit("fe80::1%eth0", deny="fe80::/10"), Reason.DENIED)


class LimitTests(SynchronousTestCase):
    def test_no_more_than_the_limit_are_in(self) -> None:
        admission = make(max_sessions=2)
        self.assertEqual(
            [reason(admission.enter(client)) for client in (A, B, C)],
            [None, None, Reason.MAX_SESSIONS],
        )
        admission.leave(None)
        self.assertIsNone(admission.enter(C))
        self.assertEqual(admission.active, 2)

    def test_no_more_than_the_limit_are_in_from_one_client(self) -> None:
        admission = make(sessions_per_client=1)
        self.assertIsNone(admission.enter(A))
        self.assertIs(reason(admission.enter(A)), Reason.MAX_SESSIONS_PER_CLIENT)
        self.assertIsNone(admission.enter(B))
        admission.leave(A)
        self.assertIsNone(admission.enter(A))

    def test_clients_of_unix_sockets_have_no_limit_for_each(self) -> None:
        admission = make(sessions_per_client=1)
        self.assertEqual([admission.enter(None) for _ in range(3)], [None] * 3)
        admission.leave(None)
        self.assertEqual(admission.active, 2)

    def test_the_refused_are_not_counted(self) -> None:
        admission = make(max_sessions=2, sessions_per_client=1, deny=(parse_network("192.0.2.9"),))
        admission.enter("192.0.2.1")
        for client in ("192.0.2.9", "192.0.2.1"):
            self.assertIsNotNone(admission.enter(client))
        self.assertEqual(admission.active, 1)
        self.assertIsNone(admission.enter("192.0.2.2"))
        self.assertIs(reason(admission.enter("192.0.2.3")), Reason.MAX_SESSIONS)
        admission.leave("192.0.2.1")
        self.assertIsNone(admission.enter("192.0.2.3"))

    @given(st.lists(st.tuples(st.booleans(), st.sampled_from([A, B, C, None])), max_size=60))
    def test_counts_agree_with_who_is_in(self, moves: list[tuple[bool, str | None]]) -> None:
        admission = make(max_sessions=4, sessions_per_client=2)
        inside: list[str | None] = []
        for enters, client in moves:
            if enters:
                full = len(inside) >= 4
                client_full = client is not None and inside.count(client) >= 2
                refusal = admission.enter(client)
                self.assertEqual(refusal is None, not full and not client_full)
                if refusal is None:
                    inside.append(client)
            elif client in inside:
                inside.remove(client)
                admission.leave(client)
            self.assertEqual(admission.active, len(inside))
        for client in inside:
            admission.leave(client)
        self.assertEqual((admission.active, admission._of_client), (0, {}))

    def test_a_network_of_64_bits_is_one_client(self) -> None:
        admission = make(sessions_per_client=1)
        self.assertIsNone(admission.enter("2001:db8:0:1::1"))
        self.assertIs(
            reason(admission.enter("2001:db8:0:1:ffff::2")), Reason.MAX_SESSIONS_PER_CLIENT
        )
        self.assertIsNone(admission.enter("2001:db8:0:2::1"))
        admission.leave("2001:db8:0:1::1")
        self.assertIsNone(admission.enter("2001:db8:0:1::3"))

    def test_a_mapped_address_is_the_client_of_the_ipv4_address(self) -> None:
        admission = make(sessions_per_client=1)
        self.assertIsNone(admission.enter("192.0.2.1"))
        self.assertIs(reason(admission.enter("::ffff:192.0.2.1")), Reason.MAX_SESSIONS_PER_CLIENT)
        self.assertIsNone(admission.enter("::ffff:192.0.2.2"))


class RateTests(SynchronousTestCase):
    """How a bucket fills is in `tests.admit.test_rate`."""

    def setUp(self) -> None:
        self.clock = Clock()

    def make(self, *others: Any, **fields: Any) -> Admission:
        """
        @return: as `make` does, by `self.clock`.
        """
        return make(*others, clock=self.clock, **fields)

    def enter(self, admission: Admission, *clients: str | None) -> list[Reason | None]:
        """Each after the other, and each leaves at once."""
        told = []
        for client in clients:
            refused = admission.enter(client)
            if refused is None:
                admission.leave(client if admission.counts_clients else None)
            told.append(reason(refused))
        return told

    def test_the_rate_of_all(self) -> None:
        admission = self.make(rate=Rate(2, 1.0))
        self.assertFalse(admission.by_client)
        self.assertEqual(self.enter(admission, A, None, B), [None, None, Reason.RATE])
        self.clock.advance(0.5)
        self.assertEqual(self.enter(admission, A, B), [None, Reason.RATE])

    def test_the_rate_of_each(self) -> None:
        admission = self.make(rate_per_client=Rate(1, 60.0))
        self.assertTrue(admission.by_client)
        slow = Reason.RATE_PER_CLIENT
        self.assertEqual(
            self.enter(admission, A, A, B, C, B, C), [None, slow, None, None, slow, slow]
        )
        self.clock.advance(60)
        self.assertEqual(self.enter(admission, C, A, A), [None, None, slow])

    def test_clients_of_unix_sockets_have_no_rate_for_each(self) -> None:
        self.assertEqual(
            self.enter(self.make(rate_per_client=Rate(1, 60.0)), None, None), [None] * 2
        )

    def test_a_network_of_64_bits_is_one_client(self) -> None:
        admission = self.make(rate_per_client=Rate(1, 60.0))
        self.assertEqual(
            self.enter(admission, "2001:db8:0:1::1", "2001:db8:0:1:a::1", "2001:db8:0:2::1"),
            [None, Reason.RATE_PER_CLIENT, None],
        )

    def test_who_is_too_fast_takes_nothing_from_the_others(self) -> None:
        admission = self.make(rate=Rate(3, 60.0), rate_per_client=Rate(1, 60.0))
        self.enter(admission, *[A] * 100)
        self.assertEqual(self.enter(admission, B, C, "192.0.2.9"), [None, None, Reason.RATE])

    def test_who_is_kept_out_otherwise_takes_none_of_a_rate(self) -> None:
        admission = self.make(
            rate=Rate(2, 60.0),
            rate_per_client=Rate(2, 60.0),
            sessions_per_client=1,
            max_sessions=2,
            deny=(parse_network("192.0.2.9"),),
        )
        self.assertIsNone(admission.enter(A))
        self.enter(admission, *["192.0.2.9", A] * 5)
        self.assertIsNone(admission.enter(B))
        self.enter(admission, C)
        admission.leave(A)
        self.assertEqual(self.enter(admission, A), [Reason.RATE])

    def test_who_is_refused_for_a_rate_leaves_nothing(self) -> None:
        admission = self.make(
            rate=Rate(2, 60.0), rate_per_client=Rate(1, 60.0), sessions_per_client=5, max_sessions=5
        )
        self.enter(admission, A, A, B, C)
        self.assertEqual((admission.active, admission._of_client), (0, {}))

    def test_whom_a_plugin_refuses_has_taken_of_the_rate(self) -> None:
        admission = self.make(Says("no"), rate=Rate(1, 60.0))
        self.assertEqual(self.enter(admission, A, A), [Reason.DENIED, Reason.RATE])

    def test_a_reload_that_leaves_a_rate_alone_remembers(self) -> None:
        rates = {"rate": Rate(2, 60.0), "rate_per_client": Rate(1, 60.0)}
        admission = self.make(**rates)
        self.enter(admission, A)
        admission.change(listener(max_sessions=3, **rates), ())
        self.assertEqual(
            self.enter(admission, A, B, C), [Reason.RATE_PER_CLIENT, None, Reason.RATE]
        )

    def test_a_reload_that_changes_a_rate_begins_anew(self) -> None:
        admission = self.make(rate=Rate(1, 60.0), rate_per_client=Rate(1, 60.0))
        self.enter(admission, A)
        admission.change(listener(rate=Rate(5, 60.0), rate_per_client=Rate(2, 60.0)), ())
        self.assertEqual(self.enter(admission, A, A, A), [None, None, Reason.RATE_PER_CLIENT])
        admission.change(listener(), ())
        self.assertEqual(self.enter(admission, *[A] * 9), [None] * 9)
        self.assertFalse(admission.by_client)


class TwoStepsTests(SynchronousTestCase):
    """For a client that is known only later."""

    def test_a_place_counts_before_the_client_is_known(self) -> None:
        admission = make(max_sessions=1, sessions_per_client=1)
        self.assertIsNone(admission.take_place())
        self.assertEqual(admission.active, 1)
        for refused in (admission.take_place(), admission.enter(A)):
            self.assertIs(reason(refused), Reason.MAX_SESSIONS)
        self.assertIsNone(admission.identify(A))
        self.assertEqual(admission.active, 1)
        admission.leave(A)
        self.assertEqual((admission.active, admission._of_client), (0, {}))

    def test_who_is_refused_once_known_keeps_the_place_until_it_is_given_back(self) -> None:
        admission = make(max_sessions=1, deny=(parse_network("192.0.2.1"),))
        admission.take_place()
        self.assertIs(reason(admission.identify(A)), Reason.DENIED)
        self.assertIs(reason(admission.take_place()), Reason.MAX_SESSIONS)
        admission.leave(None)
        self.assertIsNone(admission.take_place())

    def test_two_steps_come_to_the_same_as_one(self) -> None:
        fields: dict[str, Any] = {
            "allow": (parse_network("192.0.2.0/30"),),
            "deny": (parse_network("192.0.2.3"),),
            "sessions_per_client": 2,
            "rate": Rate(4, 3600.0),
            "rate_per_client": Rate(3, 3600.0),
            "max_sessions": 9,
        }
        at_once, in_steps = make(**fields), make(**fields)
        told = []
        for client in [A, B, A, A, "192.0.2.3", "192.0.2.4", None, B, "192.0.2.0", "192.0.2.0"]:
            refused = in_steps.take_place() or in_steps.identify(client)
            if refused is not None:
                in_steps.leave(None)
            self.assertEqual(refused, at_once.enter(client))
            told.append(reason(refused))
        self.assertEqual(at_once.active, in_steps.active)
        self.assertEqual(at_once._of_client, in_steps._of_client)
        self.assertEqual(
            set(told), {None, Reason.DENIED, Reason.RATE, Reason.MAX_SESSIONS_PER_CLIENT}
        )


class ChangeTests(SynchronousTestCase):
    def test_who_is_in_counts_by_the_new_limits(self) -> None:
        admission = make(max_sessions=5, sessions_per_client=2)
        for client in (A, A, B):
            admission.enter(client)
        admission.change(listener(max_sessions=5, sessions_per_client=1), ())
        self.assertIs(reason(admission.enter(A)), Reason.MAX_SESSIONS_PER_CLIENT)
        self.assertIs(reason(admission.enter(B)), Reason.MAX_SESSIONS_PER_CLIENT)
        admission.leave(A)
        self.assertIs(reason(admission.enter(A)), Reason.MAX_SESSIONS_PER_CLIENT)
        admission.change(listener(max_sessions=2), ())
        self.assertIs(reason(admission.enter(C)), Reason.MAX_SESSIONS)
        self.assertFalse(admission.by_client)

    def test_who_entered_uncounted_leaves_uncounted(self) -> None:
        admission = make()
        admission.enter(A)
        admission.change(listener(sessions_per_client=1), ())
        admission.enter(A)
        admission.leave(None)
        self.assertIs(reason(admission.enter(A)), Reason.MAX_SESSIONS_PER_CLIENT)
        admission.leave(A)
        self.assertEqual((admission.active, admission._of_client), (0, {}))


@implementer(IAdmission)
@define
class Says:
    """An admission that says what it is told to; an exception is raised."""

    what: Any

    def admit(self, client: str | None) -> Any:
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


class OthersTests(SynchronousTestCase):
    def test_all_must_let_a_client_in(self) -> None:
        self.assertIsNone(make(Says(None), Says(None)).enter(A))
        refused = make(Says(None), Says("not today")).enter(A)
        self.assertEqual(refused, Refused(Reason.DENIED, "not today"))

    def test_whom_they_refuse_is_not_counted(self) -> None:
        admission = make(Says("no"), sessions_per_client=1)
        admission.enter(A)
        self.assertEqual((admission.active, admission._of_client), (0, {}))

    def test_one_that_fails_lets_nobody_in_and_is_told_once(self) -> None:
        for what in (ZeroDivisionError("a defect"), False, 0):
            admission = make(Says(what))
            for _ in range(2):
                self.assertIs(reason(admission.enter(A)), Reason.DENIED)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, TypeError)), 1)
            self.assertEqual(admission.active, 0)


class SharedTests(SynchronousTestCase):
    """Several processes, each with an admission to the same listener, which count in one ledger."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ledger = Ledger.create(self.clock.seconds)
        self.addCleanup(self.ledger.close)

    def make(self, *others: Any, name: str = "l", **fields: Any) -> Admission:
        """
        @return: as another process has it.
        """
        ledger = Ledger.open(self.ledger.fileno(), self.clock.seconds)
        self.addCleanup(ledger.close)
        plugins = tuple(f"plugin{number}" for number in range(len(others)))
        config = evolve(listener(plugins=plugins, **fields), name=name)
        return Admission(config, others, Clock().seconds, ledger)

    def two(self, **fields: Any) -> tuple[Admission, Admission]:
        """
        @param fields: as for `listener`.
        """
        return self.make(**fields), self.make(**fields)

    def test_no_more_than_the_limit_are_in(self) -> None:
        one, other = self.two(max_sessions=3)
        told = [reason(each.enter(A)) for each in (one, other, other, one, other)]
        self.assertEqual(told, [None, None, None, Reason.MAX_SESSIONS, Reason.MAX_SESSIONS])
        self.assertEqual((one.active, other.active, one.taken, other.taken), (1, 2, 3, 3))
        other.leave(None)
        self.assertIsNone(one.take_place())
        self.assertIs(reason(other.take_place()), Reason.MAX_SESSIONS)

    def test_no_more_than_the_limit_are_in_from_one_client(self) -> None:
        one, other = self.two(sessions_per_client=2)
        told = [reason(each.enter(A)) for each in (one, other, one, other)]
        self.assertEqual(told, [None, None, *[Reason.MAX_SESSIONS_PER_CLIENT] * 2])
        self.assertIsNone(one.enter(B))
        other.leave(A)
        self.assertIsNone(one.enter(A))
        self.assertEqual((one.taken, one._of_client), (3, {}))

    def test_rates(self) -> None:
        one, other = self.two(rate=Rate(3, 60.0), rate_per_client=Rate(1, 60.0))
        slow = Reason.RATE_PER_CLIENT
        told = [reason(each.enter(A)) for each in (one, other, one)]
        self.assertEqual(told, [None, slow, slow])
        told = [
            reason(each.enter(client)) for each, client in ((other, B), (one, C), (other, "::1"))
        ]
        self.assertEqual(told, [None, None, Reason.RATE])
        self.clock.advance(60)
        self.assertEqual([reason(other.enter(A)), reason(one.enter(A))], [None, slow])

    def test_listeners_are_told_apart(self) -> None:
        limits: dict[str, Any] = {
            "max_sessions": 1,
            "sessions_per_client": 1,
            "rate": Rate(1, 60.0),
            "rate_per_client": Rate(1, 60.0),
        }
        for name in ("l", "m"):
            self.assertIsNone(self.make(name=name, **limits).enter(A))

    def test_who_is_refused_leaves_nothing(self) -> None:
        limits: dict[str, Any] = {"max_sessions": 2, "sessions_per_client": 2}
        no, other = self.make(Says("no"), **limits), self.make(**limits)
        fast = self.make(rate=Rate(1, 60.0), rate_per_client=Rate(1, 60.0), **limits)
        self.assertIsNone(fast.enter(A))
        fast.leave(A)
        for number in range(5):
            self.assertIs(reason(no.enter(A)), Reason.DENIED)
            self.assertIs(reason(fast.enter(A)), Reason.RATE_PER_CLIENT)
            self.assertIs(reason(fast.enter(f"192.0.2.{number + 10}")), Reason.RATE)
        self.assertEqual([reason(other.enter(A)) for _ in range(2)], [None, None])
        self.assertEqual((no.active, fast.active, other.taken), (0, 0, 2))

    def test_a_limit_that_comes_later_knows_who_is_in(self) -> None:
        one, other = self.two()
        for each in (one, one, other):
            each.enter(A)
        other.change(listener(max_sessions=4), ())
        self.assertEqual([reason(other.enter(A)) for _ in range(2)], [None, Reason.MAX_SESSIONS])
        one.leave(None)
        self.assertIsNone(other.enter(A))

    def test_who_entered_uncounted_leaves_uncounted(self) -> None:
        one, other = self.two()
        one.enter(A)
        for each in (one, other):
            each.change(listener(sessions_per_client=1), ())
        self.assertIsNone(other.enter(A))
        one.leave(None)
        self.assertIs(reason(one.enter(A)), Reason.MAX_SESSIONS_PER_CLIENT)
        other.leave(A)
        self.assertIsNone(one.enter(A))

    def test_a_rate_that_stays_remembers_and_another_begins_anew(self) -> None:
        one, other = self.two(rate=Rate(1, 60.0), rate_per_client=Rate(1, 60.0))
        one.enter(A)
        other.change(listener(rate=Rate(5, 60.0), rate_per_client=Rate(1, 60.0)), ())
        told = [reason(other.enter(client)) for client in (A, B)]
        self.assertEqual(told, [Reason.RATE_PER_CLIENT, None])
        self.assertIs(reason(one.enter(C)), Reason.RATE)

    def test_who_moves_from_one_to_the_other_is_counted_all_the_while(self) -> None:
        one, other = self.two(max_sessions=1, sessions_per_client=1)
        one.enter(A)
        other.adopt(A)
        self.assertEqual(other.taken, 2)
        one.leave(A)
        self.assertEqual((one.active, other.active, one.taken), (0, 1, 1))
        self.assertIs(reason(one.enter(B)), Reason.MAX_SESSIONS)
        other.leave(A)
        self.assertIsNone(one.enter(A))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["enter", "leave", "wait"]), st.sampled_from([A, B, C, None])
            ),
            max_size=60,
        )
    )
    def test_one_alone_decides_as_without_a_ledger(
        self, moves: list[tuple[str, str | None]]
    ) -> None:
        fields: dict[str, Any] = {
            "max_sessions": 4,
            "sessions_per_client": 2,
            "rate": Rate(9, 60.0),
            "rate_per_client": Rate(4, 30.0),
            "deny": (parse_network("192.0.2.2"),),
        }
        ledger = Ledger.create(self.clock.seconds)
        try:
            shared = Admission(listener(**fields), (), Clock().seconds, ledger)
            alone = make(clock=self.clock, **fields)
            inside: list[str | None] = []
            for move, client in moves:
                if move == "wait":
                    self.clock.advance(2.5)
                elif move == "enter":
                    refused = alone.enter(client)
                    self.assertEqual(shared.enter(client), refused)
                    if refused is None:
                        inside.append(client)
                elif client in inside:
                    inside.remove(client)
                    alone.leave(client)
                    shared.leave(client)
                self.assertEqual((shared.taken, shared.active), (alone.active, alone.taken))
        finally:
            ledger.close()


class AdoptTests(SynchronousTestCase):
    """Without a ledger."""

    def test_who_is_adopted_has_a_place_whatever_the_limits_are(self) -> None:
        admission = make(max_sessions=1, sessions_per_client=1)
        for client in (A, A, None):
            admission.adopt(client)
        self.assertEqual((admission.active, admission.taken), (3, 3))
        admission.leave(None)
        admission.leave(A)
        self.assertIs(reason(admission.enter(B)), Reason.MAX_SESSIONS)
        admission.change(listener(sessions_per_client=1), ())
        self.assertIs(reason(admission.enter(A)), Reason.MAX_SESSIONS_PER_CLIENT)
        admission.leave(A)
        self.assertEqual((admission.active, admission._of_client), (0, {}))

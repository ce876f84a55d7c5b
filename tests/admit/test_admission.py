"""`fwdrelay.admit.admission`: who may enter, and that each is counted once."""

from __future__ import annotations

from typing import Any

from attrs import define
from hypothesis import given
from hypothesis import strategies as st
from zope.interface import implementer

from fwdrelay.admit import Admission, Refused
from fwdrelay.config import Admit, ListenerConfig
from fwdrelay.config.grammar import parse_network
from fwdrelay.interfaces import IAdmission
from fwdrelay.session import Reason
from tests.case import SynchronousTestCase


def listener(max_sessions: int = 0, **admit: Any) -> ListenerConfig:
    """
    @param admit: fields of `Admit`.
    """
    return ListenerConfig(name="l", listen=(), max_sessions=max_sessions, admit=Admit(**admit))


def make(*others: Any, **fields: Any) -> Admission:
    """
    @param others: what plugins have made.
    @param fields: as for `listener`.
    """
    plugins = tuple(f"plugin{number}" for number in range(len(others)))
    return Admission(listener(plugins=plugins, **fields), others)


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
            [reason(admission.enter(client)) for client in ("a", "b", "c")],
            [None, None, Reason.MAX_SESSIONS],
        )
        admission.leave(None)
        self.assertIsNone(admission.enter("c"))
        self.assertEqual(admission.active, 2)

    def test_no_more_than_the_limit_are_in_from_one_client(self) -> None:
        admission = make(sessions_per_client=1)
        self.assertIsNone(admission.enter("a"))
        self.assertIs(reason(admission.enter("a")), Reason.MAX_SESSIONS_PER_CLIENT)
        self.assertIsNone(admission.enter("b"))
        admission.leave("a")
        self.assertIsNone(admission.enter("a"))

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

    @given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", "b", "c", None])), max_size=60))
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


class ChangeTests(SynchronousTestCase):
    def test_who_is_in_counts_by_the_new_limits(self) -> None:
        admission = make(max_sessions=5, sessions_per_client=2)
        for client in ("a", "a", "b"):
            admission.enter(client)
        admission.change(listener(max_sessions=5, sessions_per_client=1), ())
        self.assertIs(reason(admission.enter("a")), Reason.MAX_SESSIONS_PER_CLIENT)
        self.assertIs(reason(admission.enter("b")), Reason.MAX_SESSIONS_PER_CLIENT)
        admission.leave("a")
        self.assertIs(reason(admission.enter("a")), Reason.MAX_SESSIONS_PER_CLIENT)
        admission.change(listener(max_sessions=2), ())
        self.assertIs(reason(admission.enter("c")), Reason.MAX_SESSIONS)
        self.assertFalse(admission.by_client)

    def test_who_entered_uncounted_leaves_uncounted(self) -> None:
        admission = make()
        admission.enter("a")
        admission.change(listener(sessions_per_client=1), ())
        admission.enter("a")
        admission.leave(None)
        self.assertIs(reason(admission.enter("a")), Reason.MAX_SESSIONS_PER_CLIENT)
        admission.leave("a")
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
        self.assertIsNone(make(Says(None), Says(None)).enter("a"))
        refused = make(Says(None), Says("not today")).enter("a")
        self.assertEqual(refused, Refused(Reason.DENIED, "not today"))

    def test_whom_they_refuse_is_not_counted(self) -> None:
        admission = make(Says("no"), sessions_per_client=1)
        admission.enter("a")
        self.assertEqual((admission.active, admission._of_client), (0, {}))

    def test_one_that_fails_lets_nobody_in_and_is_told_once(self) -> None:
        for what in (ZeroDivisionError("a defect"), False, 0):
            admission = make(Says(what))
            for _ in range(2):
                self.assertIs(reason(admission.enter("a")), Reason.DENIED)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, TypeError)), 1)
            self.assertEqual(admission.active, 0)

"""`fwdrelay.session.lifecycle`: what the table of a session's life must have, whatever is added to it."""

from __future__ import annotations

from fwdrelay.session.lifecycle import TABLE, IllegalTransition, Input, Reason, State, after, code
from tests.case import SynchronousTestCase


class TableTests(SynchronousTestCase):
    def test_every_state_can_be_reached(self) -> None:
        reached = {State.ACCEPTED}
        for _ in State:
            reached |= {to for (state, _), to in TABLE.items() if state in reached}
        self.assertEqual(reached, set(State))

    def test_every_state_has_a_way_to_the_end(self) -> None:
        ways = {State.CLOSED}
        for _ in State:
            ways |= {state for (state, _), to in TABLE.items() if to in ways}
        self.assertEqual(ways, set(State))

    def test_closed_is_final(self) -> None:
        for happened in Input:
            self.assertRaises(IllegalTransition, after, State.CLOSED, happened)

    def test_every_input_means_something(self) -> None:
        self.assertEqual({happened for _, happened in TABLE}, set(Input))

    def test_whoever_waits_can_be_cut_and_timed_out(self) -> None:
        for state in set(State) - {State.ACCEPTED, State.CLOSED}:
            for happened in (Input.CUT, Input.TIMED_OUT):
                self.assertIs(after(state, happened), State.CLOSED)

    def test_nobody_is_dialed_for_before_it_is_known_where_to(self) -> None:
        self.assertEqual(
            {state for (state, _), to in TABLE.items() if to is State.DIALING},
            {State.ACCEPTED, State.OPENING, State.QUEUED},
        )
        self.assertEqual(
            {happened for state, happened in TABLE if state is State.OPENING},
            {Input.ADMITTED, Input.REFUSED, Input.SIDE_RESET, Input.TIMED_OUT, Input.CUT},
        )

    def test_an_end_is_delivered_before_a_session_is_done(self) -> None:
        self.assertEqual(
            {state for state, happened in TABLE if happened is Input.DELIVERED},
            {State.HALF_CLOSED},
        )

    def test_what_the_table_has_not_is_illegal(self) -> None:
        for state in State:
            for happened in Input:
                if (state, happened) not in TABLE:
                    error = self.assertRaises(IllegalTransition, after, state, happened)
                    self.assertIn(state.name, str(error))
                    self.assertIn(happened.name, str(error))


class CodeTests(SynchronousTestCase):
    """HAProxy's configuration manual, "Session state at disconnection"."""

    def test_the_words_of_the_manual(self) -> None:
        for reason, state, letters in (
            (Reason.DONE, State.HALF_CLOSED, "--"),
            (Reason.CLIENT_RESET, State.RELAYING, "CD"),
            (Reason.CLIENT_RESET, State.HALF_CLOSED, "CD"),
            (Reason.UPSTREAM_RESET, State.RELAYING, "SD"),
            (Reason.CLIENT_IDLE, State.RELAYING, "cD"),
            (Reason.UPSTREAM_IDLE, State.RELAYING, "sD"),
            (Reason.CLIENT_LEFT, State.DIALING, "CC"),
            (Reason.DIAL_FAILED, State.DIALING, "SC"),
            (Reason.DIAL_TIMEOUT, State.DIALING, "sC"),
            (Reason.NO_TARGET, State.DIALING, "SC"),
            (Reason.NO_RESOURCES, State.DIALING, "RC"),
            (Reason.DENIED, State.ACCEPTED, "PR"),
            (Reason.MAX_SESSIONS, State.ACCEPTED, "PR"),
            (Reason.PROXY_HEADER, State.OPENING, "PR"),
            (Reason.PROXY_TIMEOUT, State.OPENING, "cR"),
            (Reason.TLS_TIMEOUT, State.OPENING, "cR"),
            (Reason.CLIENT_LEFT, State.OPENING, "CR"),
            (Reason.LIFETIME, State.RELAYING, "PD"),
            (Reason.DRAIN_TIMEOUT, State.RELAYING, "KD"),
        ):
            self.assertEqual(code(reason, state), letters)

    def test_every_code_has_letters_of_the_manual(self) -> None:
        for reason in Reason:
            for state in set(State) - {State.CLOSED}:
                self.assertRegex(code(reason, state), r"^[CSPLRIDUKcs-][RQCHDLT-]$")

    def test_reasons_are_words_of_their_own(self) -> None:
        words = [reason.word for reason in Reason]
        self.assertEqual(sorted(words), sorted(set(words)))
        self.assertEqual(len(list(Reason)), len(Reason.__members__))
        for word in words:
            self.assertRegex(word, r"^[a-z]+(-[a-z]+)*$")

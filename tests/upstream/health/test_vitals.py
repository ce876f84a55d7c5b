"""`fwdrelay.upstream.health.vitals`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.upstream.health.vitals import Vitals
from tests.case import SynchronousTestCase


class ChecksTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.vitals = Vitals(rise=2, fall=3, passive_failures=0)

    def test_a_target_is_up_until_something_else_is_known(self) -> None:
        self.assertTrue(self.vitals.up)

    def test_the_first_check_decides_alone(self) -> None:
        self.assertEqual(self.vitals.failed("no answer"), "no answer (the first check)")
        self.assertFalse(self.vitals.up)

    def test_from_then_on_so_many_in_a_row_are_needed(self) -> None:
        self.assertIsNone(self.vitals.passed())
        self.assertIsNone(self.vitals.failed("no answer"))
        self.assertIsNone(self.vitals.failed("no answer"))
        self.assertIsNone(self.vitals.passed())
        self.assertIsNone(self.vitals.failed("no answer"))
        self.assertIsNone(self.vitals.failed("no answer"))
        self.assertTrue(self.vitals.up)
        self.assertEqual(self.vitals.failed("refused"), "refused (3 checks in a row)")
        self.assertFalse(self.vitals.up)

    def test_what_speaks_for_the_other_is_told(self) -> None:
        self.assertEqual(self.vitals.turning, "")
        told = []
        for step in "pffpfffffpp":
            if step == "p":
                self.vitals.passed()
            else:
                self.vitals.failed("no answer")
            told.append(self.vitals.turning)
        failing = [f"{count} of 3 checks failed: no answer" for count in (1, 2)]
        self.assertEqual(told, ["", *failing, "", *failing, "", "", "", "1 of 2 checks passed", ""])

    def test_up_again(self) -> None:
        self.vitals.failed("no answer")
        self.assertIsNone(self.vitals.passed())
        self.assertIsNone(self.vitals.failed("no answer"))
        self.assertIsNone(self.vitals.passed())
        self.assertFalse(self.vitals.up)
        self.assertEqual(self.vitals.passed(), "2 checks in a row passed")
        self.assertTrue(self.vitals.up)

    def test_a_target_that_came_up_is_not_a_new_one(self) -> None:
        self.vitals.failed("no answer")
        self.vitals.passed()
        self.vitals.passed()
        self.assertIsNone(self.vitals.failed("no answer"))
        self.assertTrue(self.vitals.up)

    def test_one_check_may_be_enough(self) -> None:
        vitals = Vitals(rise=1, fall=1, passive_failures=0)
        vitals.passed()
        self.assertEqual(vitals.failed("no answer"), "no answer (1 check)")
        self.assertEqual(vitals.passed(), "a check passed")

    def test_one_that_is_down_from_the_start_has_to_rise(self) -> None:
        vitals = Vitals(rise=2, fall=3, passive_failures=0, up=False)
        self.assertIsNone(vitals.passed())
        self.assertIsNotNone(vitals.passed())
        self.assertIsNone(vitals.failed("no answer"))


class DialsTests(SynchronousTestCase):
    def test_those_that_failed_are_told(self) -> None:
        vitals = Vitals(rise=2, fall=3, passive_failures=2)
        vitals.dial_failed("refused")
        self.assertEqual(vitals.turning, "1 of 2 dials failed: refused")
        vitals.dialed()
        self.assertEqual(vitals.turning, "")
        vitals = Vitals(rise=2, fall=3, passive_failures=0)
        vitals.dial_failed("refused")
        self.assertEqual(vitals.turning, "")

    def test_a_dial_that_failed_is_no_reason_why_a_check_did(self) -> None:
        vitals = Vitals(rise=2, fall=3, passive_failures=5)
        vitals.passed()
        vitals.failed("no answer")
        vitals.dial_failed("refused")
        self.assertEqual(vitals.turning, "1 of 3 checks failed: no answer")
        vitals.passed()
        self.assertEqual(vitals.turning, "1 of 5 dials failed: refused")

    def test_so_many_in_a_row(self) -> None:
        vitals = Vitals(rise=2, fall=3, passive_failures=2)
        self.assertIsNone(vitals.dial_failed("refused"))
        vitals.dialed()
        self.assertIsNone(vitals.dial_failed("refused"))
        self.assertEqual(vitals.dial_failed("refused"), "refused (2 dials in a row)")
        self.assertFalse(vitals.up)
        self.assertIsNone(vitals.dial_failed("refused"))
        self.assertIsNone(vitals.dial_failed("refused"))

    def test_off(self) -> None:
        vitals = Vitals(rise=2, fall=3, passive_failures=0)
        for _ in range(100):
            self.assertIsNone(vitals.dial_failed("refused"))
        self.assertTrue(vitals.up)

    def test_checks_bring_it_up(self) -> None:
        vitals = Vitals(rise=2, fall=3, passive_failures=1)
        vitals.dial_failed("refused")
        vitals.dialed()
        self.assertFalse(vitals.up)
        self.assertIsNone(vitals.passed())
        self.assertIsNotNone(vitals.passed())

    def test_checks_in_between_do_not_reset_dials(self) -> None:
        vitals = Vitals(rise=2, fall=3, passive_failures=2)
        vitals.dial_failed("refused")
        vitals.passed()
        self.assertIsNotNone(vitals.dial_failed("refused"))


class AnyRowTests(SynchronousTestCase):
    @given(
        st.lists(st.booleans(), max_size=40),
        st.integers(1, 4),
        st.integers(1, 4),
        st.booleans(),
    )
    def test_it_turns_exactly_where_the_last_so_many_agree(
        self, checks: list[bool], rise: int, fall: int, up: bool
    ) -> None:
        vitals = Vitals(rise=rise, fall=fall, passive_failures=0, up=up)
        expected = up
        for number, passed in enumerate(checks, 1):
            told = vitals.passed() if passed else vitals.failed("no answer")
            needed = rise if passed else 1 if up and number == 1 else fall
            row = checks[max(number - needed, 0) : number]
            before = expected
            if len(row) == needed and set(row) == {passed}:
                expected = passed
            self.assertEqual(vitals.up, expected)
            self.assertEqual(told is not None, expected != before)

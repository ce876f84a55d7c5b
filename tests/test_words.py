"""`fwdrelay.words`."""

from __future__ import annotations

from fwdrelay.words import counted, some
from tests.case import SynchronousTestCase


class WordsTests(SynchronousTestCase):
    def test_one_and_others(self) -> None:
        self.assertEqual(
            [counted(number, "session") for number in (0, 1, 2)],
            ["0 sessions", "1 session", "2 sessions"],
        )

    def test_a_long_list_is_cut(self) -> None:
        names = [str(number) for number in range(9)]
        self.assertEqual(some(names[:8]), "0, 1, 2, 3, 4, 5, 6, 7")
        self.assertEqual(some(names), "0, 1, 2, 3, 4, 5, 6, 7 and 1 more")
        self.assertEqual(some([]), "")

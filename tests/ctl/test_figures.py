"""`fwdrelay.ctl.figures`."""

from __future__ import annotations

from fwdrelay.ctl import figures
from tests.case import SynchronousTestCase


class FiguresTests(SynchronousTestCase):
    def test_sizes(self) -> None:
        for count, text in (
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 10, "10.0 KiB"),
            (999 << 10, "999 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (5 << 40, "5.00 TiB"),
            (5000 << 60, "5000 EiB"),
        ):
            self.assertEqual(figures.size(count), text)

    def test_rates(self) -> None:
        self.assertEqual(figures.rate(None), "-")
        self.assertEqual(figures.rate(0.0), "0 B/s")
        self.assertEqual(figures.rate(2048.0), "2.00 KiB/s")

    def test_durations(self) -> None:
        for seconds, text in (
            (None, "-"),
            (0.0, "0ms"),
            (0.0004, "0.4ms"),
            (0.0123, "12ms"),
            (0.9994, "999ms"),
            (0.9996, "1.0s"),
            (59.94, "59.9s"),
            (59.96, "1m00s"),
            (192, "3m12s"),
            (3599.9, "1h00m"),
            (7500, "2h05m"),
            (86400 * 3 + 4 * 3600, "3d04h"),
        ):
            self.assertEqual(figures.duration(seconds), text)
        self.assertEqual(figures.milliseconds(None), "-")
        self.assertEqual(figures.milliseconds(1500), "1.5s")

    def test_shares(self) -> None:
        self.assertEqual(
            [figures.percent(share) for share in (0.0, 1 / 3, 0.5, 1.0)],
            ["0%", "33.3%", "50%", "100%"],
        )

    def test_numbers_a_second(self) -> None:
        self.assertEqual(
            [figures.per_second(count) for count in (None, 0.0, 0.5, 12.34, 99.96, 1234.5)],
            ["-", "0/s", "0.50/s", "12.3/s", "100/s", "1234/s"],
        )

    def test_moments(self) -> None:
        self.assertEqual(figures.moment("2026-02-03T04:05:06.789Z"), "2026-02-03 04:05:06Z")

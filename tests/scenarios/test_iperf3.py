"""Plain throughput through the relay: iperf3, upwards, downwards and both at once."""

from __future__ import annotations

import json
from typing import Any

from tests.scenarios.programs import free_port, run, running, skip_unless_installed
from tests.scenarios.relay_process import RelayProcess
from tests.scenarios.scenario import Scenario

STREAMS = 4
SIZE = 128 << 20


def measure(relay: RelayProcess, *options: str) -> dict[str, Any]:
    """
    Let iperf3 send `SIZE` bytes in `STREAMS` streams.

    @return: its report's last part. iperf3 ends with an error when any stream failed.
    """
    to = ("--client", "127.0.0.1", "--port", str(relay.port))
    amount = ("--parallel", str(STREAMS), "--bytes", str(SIZE))
    report: dict[str, Any] = json.loads(run("iperf3", *to, *amount, "--json", *options))
    if "error" in report:
        raise AssertionError(report["error"])
    end: dict[str, Any] = report["end"]
    return end


class Iperf3Tests(Scenario):
    def setUp(self) -> None:
        skip_unless_installed("iperf3")

    def check(self, *options: str, up: str | None = None, down: str | None = None) -> None:
        """
        @param up: what the names of those sums in iperf3's report end with that tell of bytes from
            its client; None: it sends nothing.
        @param down: and to its client.
        """
        sums = [(e, d) for e, d in ((up, "bytes_up"), (down, "bytes_down")) if e is not None]
        port = free_port()
        server = ("iperf3", "--server", "--bind", "127.0.0.1", "--port", str(port))
        with (
            running(*server, "--one-off", "--forceflush", ready="Server listening") as serving,
            self.relaying("--target", f"127.0.0.1:{port}") as relay,
        ):
            end = measure(relay, *options)
            serving.finish()
            sessions = 1 + STREAMS * len(sums)
            ended = relay.ended(sessions)
        self.assertEqual(len(ended), sessions)
        # A sender stops in mid-stream, and whoever learns of that first may reset.
        reasons = {entry["reason"] for entry in ended}
        self.assertLessEqual(reasons, {"done", "client-reset", "upstream-reset"})
        # iperf3 sends in all, both ways and over all streams, what it was asked for.
        sent = sum(end[f"sum_sent{ending}"]["bytes"] for ending, _ in sums)
        self.assertGreaterEqual(sent, SIZE)
        for ending, direction in sums:
            received = end[f"sum_received{ending}"]["bytes"]
            self.assertGreater(received, 0)
            self.assertLessEqual(received, sum(entry[direction] for entry in ended))

    def test_upwards(self) -> None:
        self.check(up="")

    def test_downwards(self) -> None:
        self.check("--reverse", down="")

    def test_both_ways_at_once(self) -> None:
        if "--bidir" not in run("iperf3", "--help"):
            self.skipTest("this iperf3 is too old for --bidir")
        self.check("--bidir", up="", down="_bidir_reverse")

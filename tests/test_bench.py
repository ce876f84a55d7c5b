"""The benchmark, in a run too small to mean anything: that it measures, and tells what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import lines, relays, report
from bench.__main__ import medians
from tests.case import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    *("--rounds", "1", "--seconds", "0.05", "--warmup", "0"),
    *("--sessions", "200", "--idle", "20"),
)


def bench(*arguments: str, status: int = 0) -> str:
    """What `python -m bench` prints on its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def new_folder(test: SynchronousTestCase) -> Path:
    """A folder that is gone with the test."""
    folder = tempfile.TemporaryDirectory(prefix="fwdrelay-bench-")
    test.addCleanup(folder.cleanup)
    return Path(folder.name)


class SmallRunTests(SynchronousTestCase):
    def test_ours_in_every_line(self) -> None:
        folder = new_folder(self)
        written, drawn = folder / "bench.json", folder / "bench.png"
        printed = bench(*TINY, "--only", report.OURS, "--json", str(written), "--plot", str(drawn))
        run = json.loads(written.read_text())
        self.assertEqual(
            [(sample["line"], sample.get("error")) for sample in run["samples"]],
            [(line.name, None) for line in lines.LINES],
        )
        self.assertIn("Python", run["relays"][report.OURS]["version"])
        for line in lines.LINES:
            self.assertIn(f"({line.name})", printed)
            for figure in line.figures:
                value = run["medians"][line.name][figure.name][report.OURS]
                self.assertIsInstance(value, float, f"{line.name} {figure.name}")
        self.assertIn("fwdrelay", printed.split("goals")[0])
        self.assertEqual(drawn.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(bench("--read", str(written)), printed)

    def test_others_that_are_here(self) -> None:
        folder = new_folder(self)
        written = folder / "bench.json"
        others = [name for name in relays.BY_NAME if name != report.OURS]
        bench(*TINY, "--only", ",".join(others), "--lines", "setup", "--json", str(written))
        run = json.loads(written.read_text())
        self.assertEqual({*run["relays"], *run["skipped"]}, set(others))
        for sample in run["samples"]:
            self.assertNotIn("error", sample)
            self.assertGreater(sample["values"]["cpu_ns"], 0, sample)

    def test_unknown_names_are_told(self) -> None:
        self.assertIn("no 'echo2' among bulk1", bench("--lines", "echo2", status=2))


def made_up(**cpu: float) -> report.Run:
    """A run of two rounds of bulk1 and setup in which each relay took so many seconds of CPU."""
    samples: list[dict[str, Any]] = [
        {
            "round": number,
            "line": line,
            "relay": relay.replace("_", "-"),
            "values": {
                "ns": 10**9,
                "cpu_ns": seconds * 1e9 * wobble,
                "bytes": 10**9,
                "sessions": 1000,
                "p50_ns": 5000,
                "p99_ns": 9000,
            },
        }
        for number, wobble in ((1, 0.9), (2, 1.1))
        for line in ("bulk1", "setup")
        for relay, seconds in cpu.items()
    ]
    return {
        "when": "2026-01-01T00:00:00+00:00",
        "machine": {"cpu": "A CPU", "cores": 2, "kernel": "Linux 6", "busy_before": 0.0},
        "options": {"rounds": 2},
        "amount": {"seconds": 1.0, "idle": 5000},
        "lines": {
            "bulk1": {"title": "", "relay": [1], "load": [0]},
            "setup": {"title": "", "relay": [], "load": []},
        },
        "relays": {name.replace("_", "-"): {"version": "1"} for name in cpu},
        "skipped": {"go": "go is not installed"},
        "samples": samples,
    }


class ReportTests(SynchronousTestCase):
    """What is said of a run, for one that is made up."""

    def goal(self, run: report.Run, line: str, figure: str, against: str) -> bool | None:
        wanted = (line, figure, against)
        (goal,) = (g for g in lines.GOALS if (g.line, g.figure, g.against) == wanted)
        return report.outcome(run, goal).met

    def test_medians_and_the_best_peer(self) -> None:
        run = made_up(fwdrelay_splice=0.3, haproxy=0.7, nginx=0.5)
        self.assertAlmostEqual(medians(run)["bulk1"]["cpu_per_gb"]["haproxy"] or 0, 0.7)
        line = lines.BY_NAME["bulk1"]
        best = report.best_peer(run, line, line.figure("cpu_per_gb"))
        assert best is not None
        self.assertEqual(best[0], "nginx")
        row = next(row for row in report.table(run).splitlines() if "CPU s/GB" in row)
        self.assertEqual(row.split()[-4:], ["0.30", "0.70", "0.50", "0.60"])

    def test_ours_is_no_peer(self) -> None:
        run = made_up(fwdrelay_splice=0.3, fwdrelay_buffered=0.2, haproxy=0.7)
        self.assertEqual(report.peers(run), ["haproxy"])

    def test_goals(self) -> None:
        run = made_up(fwdrelay_splice=0.3, haproxy=0.7, nginx=0.5)
        self.assertIs(self.goal(run, "bulk1", "cpu_per_gb", "best"), True)
        self.assertIs(self.goal(run, "bulk1", "throughput", "best"), False)
        self.assertIs(self.goal(run, "setup", "cpu_per_session", "haproxy"), True)
        self.assertIs(self.goal(run, "setup", "cpu_per_session", "go"), None)
        self.assertIs(self.goal(run, "memory", "per_session", ""), None)

    def test_nothing_is_left_out_silently(self) -> None:
        run = made_up(fwdrelay_splice=0.3, haproxy=0.7)
        run["samples"].append(
            {"round": 2, "line": "bulk1", "relay": "haproxy", "error": "stuck: no event for 10 s"}
        )
        said = report.text(run)
        self.assertIn("round 2, bulk1, haproxy: stuck", said)
        self.assertIn("go is left out: go is not installed", said)

    def test_drawn_with_gaps(self) -> None:
        run = made_up(fwdrelay_splice=0.3, haproxy=0.7)
        run["relays"]["nginx"] = {"version": "1"}
        folder = new_folder(self)
        (folder / "bench.json").write_text(json.dumps(run))
        bench("--read", str(folder / "bench.json"), "--plot", str(folder / "bench.png"))
        self.assertEqual((folder / "bench.png").read_bytes()[:4], b"\x89PNG")

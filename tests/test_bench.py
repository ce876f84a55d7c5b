"""The benchmark, in a run too small to mean anything: that it measures, and tells what it measured."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs

from bench import credentials, lines, relays, report, sample
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
    def measured(self, run: dict[str, Any]) -> set[str]:
        """The lines of a run in which nothing went wrong, and every figure is there."""
        found = set()
        for each in run["samples"]:
            self.assertNotIn("error", each)
            name, relay = each["line"], each["relay"]
            for figure in lines.BY_NAME[name].figures:
                value = run["medians"][name][figure.name][relay]
                self.assertIsInstance(value, float, f"{name} {figure.name} {relay}")
            found.add(name)
        return found

    def test_ours(self) -> None:
        """In each line without TLS, and in those with it whose loads have most of a life."""
        folder = new_folder(self)
        written, drawn = folder / "bench.json", folder / "bench.png"
        wanted = [line.name for line in lines.LINES if line.tls == lines.TLS.NONE]
        wanted += ["tls-echo", "tls-resumed", "originate-up"]
        printed = bench(
            *(*TINY, "--only", report.OURS, "--lines", ",".join(wanted)),
            *("--json", str(written), "--plot", str(drawn)),
        )
        run = json.loads(written.read_text())
        self.assertEqual(self.measured(run), set(wanted))
        self.assertIn("Python", run["relays"][report.OURS]["version"])
        for name in wanted:
            self.assertIn(f"({name})", printed)
        self.assertIn("fwdrelay", printed.split("goals")[0])
        self.assertEqual(drawn.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(bench("--read", str(written)), printed)

    def test_others_that_are_here(self) -> None:
        folder = new_folder(self)
        written = folder / "bench.json"
        others = [name for name in relays.BY_NAME if name != report.OURS]
        wanted = "setup,scale-setup,tls-handshake,originate-setup"
        bench(*TINY, "--only", ",".join(others), "--lines", wanted, "--json", str(written))
        run = json.loads(written.read_text())
        self.assertEqual({*run["relays"], *run["skipped"]}, set(others))
        for each in run["samples"]:
            self.assertNotIn("error", each)
            self.assertGreater(each["values"]["cpu_ns"], 0, each)

    def test_tls_with_a_quick_starter(self) -> None:
        """Every load over TLS, with HAProxy, where it is."""
        folder = new_folder(self)
        written = folder / "bench.json"
        bench(*TINY, "--only", "haproxy", "--lines", "tls-*,originate-*", "--json", str(written))
        run = json.loads(written.read_text())
        if run["skipped"]:
            self.skipTest(run["skipped"]["haproxy"])
        secure = {line.name for line in lines.LINES if line.tls != lines.TLS.NONE}
        self.assertEqual(self.measured(run), secure)

    def test_unknown_names_are_told(self) -> None:
        self.assertIn("no 'echo2' among bulk1", bench("--lines", "echo2", status=2))


def wrong(relay: relays.Relay, line: str) -> str | None:
    """What is wrong with a small sample."""
    amount = sample.Amount(0.05, 0.0, 40, 20)
    error = sample.take(relay, lines.BY_NAME[line], amount, sample.Cores()).get("error")
    return None if error is None else str(error)


class InsistenceTests(SynchronousTestCase):
    """What comparable figures need is insisted on."""

    def test_every_session_is_resumed(self) -> None:
        stock = relays.BY_NAME["portforward"]
        self.assertFalse(stock.takes_part(lines.BY_NAME["tls-resumed"]))
        said = wrong(attrs.evolve(stock, resumes=True), "tls-resumed")
        self.assertIn("setup: 0 of 106 sessions were resumed", said or "")

    def test_one_cipher_suite(self) -> None:
        if shutil.which("haproxy") is None:
            self.skipTest("haproxy is not installed")
        self.assertIn(
            "handshake failure", wrong(OtherCipher("haproxy", "HAProxy"), "tls-echo") or ""
        )

    def test_upstreams_are_verified(self) -> None:
        """None of the relays that originate TLS takes one that nobody vouches for."""
        make = credentials.make

        def strange(folder: Path, kind: str) -> credentials.Credentials:
            found = make(folder, kind)
            (folder / "other").mkdir()
            other = make(folder / "other", kind)
            return attrs.evolve(found, authority=other.authority)

        self.patch(credentials, "make", strange)
        for relay in relays.RELAYS:
            if lines.TLS.ORIGINATED not in relay.tls:
                continue
            with contextlib.suppress(relays.Missing):
                relay.prepare(new_folder(self))
                said = wrong(relay, "originate-setup") or ""
                self.assertRegex(said, "^setup: .*(ended before its byte|reset)", relay.name)


@attrs.frozen
class OtherCipher(relays.HAProxy):
    def command(self, place: relays.Place) -> list[str]:
        command = super().command(place)
        config = place.folder / "haproxy.cfg"
        one = " ciphersuites TLS_AES_256_GCM_SHA384"
        config.write_text(re.sub("^    bind .*", rf"\g<0>{one}", config.read_text(), flags=re.M))
        return command


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

    def test_each_kind_of_line_has_its_table(self) -> None:
        run = made_up(fwdrelay_splice=0.3, haproxy=0.7, go=0.5)
        self.assertEqual(report.table(run, lines.TLS.TERMINATED), "")
        run["lines"]["tls-handshake"] = run["lines"]["setup"]
        run["samples"] += [
            {**each, "line": "tls-handshake"}
            for each in run["samples"]
            if each["line"] == "setup" and each["relay"] != "go"
        ]
        table = report.table(run, lines.TLS.TERMINATED)
        self.assertIn("(tls-handshake)", table)
        self.assertNotIn("(setup)", table)
        self.assertNotIn("Go", table)  # it has no TLS
        self.assertIs(self.goal(run, "tls-handshake", "cpu_per_session", "best"), True)

    def test_workers_have_a_table_of_their_own(self) -> None:
        run = made_up(fwdrelay_splice=0.3, haproxy=0.7, fwdrelay_workers_1=0.4)
        self.assertNotIn("worker", report.table(run))
        self.assertEqual(report.scale_table(run), "")
        run["lines"]["scale-setup"] = run["lines"]["setup"]
        run["samples"] += [
            {**each, "line": "scale-setup"} for each in run["samples"] if each["line"] == "setup"
        ]
        run["relays"]["fwdrelay-workers-2"] = {"version": "1"}
        run["samples"] += [
            {**each, "relay": "fwdrelay-workers-2", "values": {**each["values"], "ns": 5 * 10**8}}
            for each in run["samples"]
            if (each["line"], each["relay"]) == ("scale-setup", "fwdrelay-workers-1")
        ]
        row = next(row for row in report.scale_table(run).splitlines() if "sessions/s" in row)
        self.assertEqual(row.split()[-4:], ["1,000", "1,000", "2,000", "2.00"])
        self.assertIn("shared-nothing scale", report.text(run))

    def test_workers_take_part_in_lines_about_them_only(self) -> None:
        for relay in relays.RELAYS:
            about_them = relay.takes_part(lines.BY_NAME["scale-setup"])
            self.assertEqual(about_them, relay.scales, relay.name)
            if relay.workers:
                self.assertFalse(relay.takes_part(lines.BY_NAME["setup"]), relay.name)

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

"""`--profile LINE`: our spliced pump alone under one line's load, and a profiler attached to it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import attrs

from .lines import Line
from .relays import BY_NAME
from .report import OURS
from .sample import Amount, Cores, Sample

PROFILERS = ("py-spy", "perf", "strace")


def run(line: Line, amount: Amount, cores: Cores, profiler: str) -> None:
    """Attach the profiler for as long as the line's window is open, and print what it says."""
    if shutil.which(profiler) is None:
        raise SystemExit(f"--profile: {profiler} is not installed")
    relay = BY_NAME[OURS]
    # The line's window is to be open from before the profiler starts until after it ends.
    longer = attrs.evolve(amount, seconds=amount.seconds + 2, sessions=1 << 30)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Sample(relay, line, longer, cores) as sample,
    ):
        pid = str(sample.running.process.pid)
        if line.idle:
            sample.hold()
        if not line.weighed:
            sample.start_load()
        seconds = str(max(1, round(amount.seconds)))
        out = str(Path(folder, "profile"))
        match profiler:
            case "py-spy":
                record = [
                    "py-spy",
                    "record",
                    "--native",
                    "--function",
                    "--format",
                    "raw",
                    "-o",
                    out,
                ]
                subprocess.run([*record, "-d", seconds, "-p", pid], check=True)
                print(hottest(Path(out).read_text()))
            case "perf":
                subprocess.run(
                    ["perf", "record", "-q", "-g", "-o", out, "-p", pid, "--", "sleep", seconds],
                    check=True,
                )
                show = ["perf", "report", "--stdio", "--no-children", "-g", "none", "-i", out]
                subprocess.run(show, check=True)
            case "strace":
                tracing = subprocess.Popen(["strace", "-c", "-f", "-p", pid])
                try:
                    tracing.wait(float(seconds))
                except subprocess.TimeoutExpired:
                    tracing.send_signal(signal.SIGINT)
                finally:
                    tracing.wait(10)


def hottest(stacks: str) -> str:
    """Of py-spy's raw stacks, the functions in which most samples were, alone and with callees."""
    alone: dict[str, int] = {}
    within: dict[str, int] = {}
    for stack in stacks.splitlines():
        frames, _, count = stack.rpartition(" ")
        names = frames.split(";")
        alone[names[-1]] = alone.get(names[-1], 0) + int(count)
        for name in set(names):
            within[name] = within.get(name, 0) + int(count)
    total = sum(alone.values()) or 1
    ranked = sorted(within, key=lambda name: (-alone.get(name, 0), -within[name]))
    return "\n".join(
        [
            "  alone  within",
            *(
                f"{100 * alone.get(name, 0) / total:6.1f}% {100 * within[name] / total:6.1f}%  {name}"
                for name in ranked[:40]
            ),
        ]
    )

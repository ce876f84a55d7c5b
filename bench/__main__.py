"""
Measure relays against each other on this machine: `python -m bench --help`.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import attrs

from . import lines, relays, report
from .lines import LINES, Line
from .relays import RELAYS, Missing, Relay
from .report import Run
from .sample import PLACEMENTS, Amount, Cores, descriptors, idle_sessions, raise_limit, take

EPILOG = f"""\
lines:
{chr(10).join(f"  {line.name:17} {line.title.replace('# ', '')}" for line in LINES)}

relays:
  {" ".join(relay.name for relay in RELAYS)}

Everything stays on loopback addresses and ends with the benchmark. docs/performance.md says what the
figures mean.
"""

QUIET = 0.05
"""Of all cores' time, what others may take without a word about it."""


def names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """A parser of names, or shell patterns of such, with commas between them."""

    def parse(text: str) -> list[str]:
        found: list[str] = []
        for pattern in filter(None, text.split(",")):
            matching = fnmatch.filter(known, pattern)
            if not matching:
                raise argparse.ArgumentTypeError(f"no {pattern!r} among {', '.join(known)}")
            found += matching
        return found

    return parse


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """A parser of numbers."""

    def parse(text: str) -> float:
        number = kind(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"at least {least:g}")
        return number

    return parse


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure fwdrelay and other TCP relays under the same loads, in interleaved rounds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=at_least(1), metavar="N", help="medians are of so many [5; quick: 1]")
    add("--seconds", type=at_least(0.05, float), metavar="S", help="of a sample [2; quick: 0.5]")
    add("--warmup", type=at_least(0, float), metavar="S", help="before it [0.5; quick: 0.3]")
    add("--sessions", type=at_least(1), metavar="N", help="set up in a sample [8000; quick: 2000]")
    add("--idle", type=at_least(1), metavar="N", help="idle sessions [5000; quick: 1000]")
    add("--quick", action="store_true", help="a look at the order of magnitude, not a measurement")
    add(
        "--lines",
        type=names(lines.BY_NAME),
        metavar="NAME,…",
        help="only these; tls-* for all that begin so",
    )
    add("--only", type=names(relays.BY_NAME), metavar="NAME,…", help="only these relays")
    add(
        "--pin",
        choices=("auto", *PLACEMENTS),
        default="auto",
        help="the relay on a core of its own and the load on the others, all on one core, or wherever "
        "the kernel puts them; auto: together for echo1 and tls-echo, apart for the rest [auto]",
    )
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    add("--plot", type=Path, metavar="FILE", help="draw it (needs matplotlib)")
    add("--read", type=Path, metavar="FILE", help="measure nothing; show what --json wrote")
    add(
        "--profile",
        type=names(lines.BY_NAME),
        metavar="LINE",
        help="measure nothing; profile our spliced pump under that line",
    )
    add("--profiler", choices=("py-spy", "perf", "strace"), default="perf", help="[perf]")
    given = parser.parse_args()
    usual = {"rounds": 5, "seconds": 2.0, "warmup": 0.5, "sessions": 8000, "idle": 5000}
    quick = {"rounds": 1, "seconds": 0.5, "warmup": 0.3, "sessions": 2000, "idle": 1000}
    for name, value in (quick if given.quick else usual).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.profile and len(given.profile) > 1:
        parser.error("--profile takes one line")
    if given.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--plot needs matplotlib: pip install 'fwdrelay[bench]'")
    return given


def machine() -> dict[str, object]:
    """What it was measured on."""
    cpu = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(": ")[2]
            break
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_kb": int(memory),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": sys.version,
        "descriptors": descriptors(),
    }


def busy() -> float:
    """How much of all cores' time something else takes, just now."""

    def read() -> tuple[int, int]:
        fields = [
            int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        ]
        return sum(fields), fields[3] + fields[4]  # idle, iowait

    total, idle = read()
    time.sleep(1)
    total_then, idle_then = read()
    return 1 - (idle_then - idle) / max(1, total_then - total)


def say(text: str) -> None:
    """Progress; not part of the result."""
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{text}\x1b[K" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)


def placement(pin: str, line: Line) -> Cores:
    """Which cores a line's processes get."""
    return Cores.placed(line.pin if pin == "auto" else pin)


def prepare(wanted: list[str] | None, folder: Path, run: Run) -> list[Relay]:
    """Those of the wanted relays that are here."""
    found = []
    for relay in RELAYS:
        if wanted and relay.name not in wanted:
            continue
        try:
            version = relay.prepare(folder)
        except Missing as missing:
            run["skipped"][relay.name] = str(missing)
            say(f"{relay.name} is left out: {missing}\n")
        else:
            run["relays"][relay.name] = {"version": version}
            found.append(relay)
    return found


def measure(given: argparse.Namespace, amount: Amount) -> Run:
    """All rounds; in each, line by line, one sample of each relay in turn."""
    wanted = [line for line in LINES if not given.lines or line.name in given.lines]
    run: Run = {
        "format": 1,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "busy_before": busy()},
        "options": {"rounds": given.rounds, "quick": given.quick, "pin": given.pin},
        "amount": attrs.asdict(amount),
        "lines": {
            line.name: {"title": line.title, **attrs.asdict(placement(given.pin, line))}
            for line in wanted
        },
        "relays": {},
        "skipped": {},
        "samples": [],
    }
    if run["machine"]["busy_before"] > QUIET:
        say(f"the machine does other work ({run['machine']['busy_before']:.0%}): expect noise\n")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        present = prepare(given.only, Path(folder), run)
        count = given.rounds * sum(each.takes_part(line) for line in wanted for each in present)
        started = time.monotonic()
        try:
            for number in range(1, given.rounds + 1):
                for line in wanted:
                    for relay in filter(lambda each: each.takes_part(line), present):
                        done = len(run["samples"])
                        left = (time.monotonic() - started) / max(1, done) * (count - done)
                        about = f", {left / 60:.0f} min left" if done > len(present) else ""
                        say(f"round {number}, {line.name}, {relay.name} ({done}/{count}{about})")
                        sample = {"round": number, "line": line.name, "relay": relay.name}
                        if line.idle and (note := idle_sessions(relay, line.count(amount.idle))[1]):
                            sample["note"] = f"only {note}"
                        sample |= take(relay, line, amount, placement(given.pin, line))
                        run["samples"].append(sample)
        except KeyboardInterrupt:
            run["interrupted"] = True
    say("")
    return run


def medians(run: Run) -> dict[str, dict[str, dict[str, float | None]]]:
    """For the JSON file: by line, figure and relay."""
    return {
        line.name: {
            figure.name: {name: report.median(run, line, figure, name) for name in run["relays"]}
            for figure in line.figures
        }
        for line in LINES
        if line.name in run["lines"]
    }


def terminated(*_: object) -> NoReturn:
    """SIGTERM ends what was started, as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> int:
    """Do as the command line says; the exit status."""
    given = arguments()
    signal.signal(signal.SIGTERM, terminated)
    raise_limit()
    amount = Amount(given.seconds, given.warmup, given.sessions, given.idle)
    if given.profile:
        from . import profile

        line = lines.BY_NAME[given.profile[0]]
        profile.run(line, amount, placement(given.pin, line), given.profiler)
        return 0
    if given.read:
        run = json.loads(given.read.read_text())
    else:
        run = measure(given, amount)
        run["medians"] = medians(run)
    if given.json:
        given.json.write_text(json.dumps(run, indent=1) + "\n")
    print(report.text(run))
    if given.plot:
        from . import plot

        plot.draw(run, given.plot)
    if run.get("interrupted"):
        return 130
    return 1 if any("error" in sample for sample in run["samples"]) else 0


if __name__ == "__main__":
    sys.exit(main())

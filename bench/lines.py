"""What is measured: the lines of the benchmark, the figures of each, and what we want of them."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping

import attrs

Values = Mapping[str, float]
"""What one sample of a line measured, by name, in the units the load counts in."""


@attrs.frozen
class Figure:
    """
    One figure of a line.

    @ivar name: within its line, in `--json` and in `GOALS`.
    @ivar title: for people, with the unit.
    @ivar more_is_better: so that there is a best.
    @ivar plotted: whether it has a panel in the plot.
    """

    name: str
    title: str
    more_is_better: bool = False
    plotted: bool = True

    def of(self, values: Values) -> float:
        """The figure, of what one sample measured."""
        v = values
        match self.name:
            case "throughput":
                return v["bytes"] / v["ns"]
            case "cpu_per_gb":
                return v["cpu_ns"] / v["bytes"]
            case "p50" | "p99":
                return v[f"{self.name}_ns"] / 1e3
            case "cpu_per_echo":
                return v["cpu_ns"] / v["echoes"] / 1e3
            case "cpu_per_session":
                return v["cpu_ns"] / v["sessions"] / 1e3
            case "rate":
                return v["sessions"] / v["ns"] * 1e9
            case "busy":
                return 100 * v["cpu_ns"] / v["ns"]
            case "per_session":
                return (v["after"] - v["before"]) / v["sessions"] / 1024
        raise KeyError(self.name)


BUSY = Figure("busy", "relay's CPU, % of a core", plotted=False)


class TLS(enum.Enum):
    """What a relay does of it in a line."""

    NONE = "plain"
    TERMINATED = "TLS terminated"
    ORIGINATED = "TLS originated"


@attrs.frozen
class Line:
    """
    One line of the benchmark: a load, and what is counted under it.

    @ivar title: for people; `#` stands for how many sessions are held.
    @ivar kind: of `bench.load`'s clients; `hold`, `silent` and `stalled` measure memory.
    @ivar idle: whether as many idle sessions as asked for stand beside it.
    @ivar key: of the certificate: `ecdsa` or `rsa`.
    @ivar resumed: whether TLS sessions are.
    @ivar share: of the sessions that were asked for, to set up or to hold, how many this line takes.
    @ivar scale: whether it is about how our own workers scale; peers have no part in it.
    @ivar pin: the placement that suits it: `apart` gives the relay a core of its own. `together` is for
        a load of which only one process runs at a time: apart, its figures would be those of waking an
        idle core (in a virtual machine, several times what any relay takes), and alike for all relays.
    """

    name: str
    title: str
    kind: str
    connections: int
    figures: tuple[Figure, ...]
    idle: bool = False
    pin: str = "apart"
    tls: TLS = TLS.NONE
    key: str = "ecdsa"
    resumed: bool = False
    share: float = 1.0
    scale: bool = False

    def figure(self, name: str) -> Figure:
        """The figure of that name."""
        return next(figure for figure in self.figures if figure.name == name)

    @property
    def weighed(self) -> bool:
        """Whether memory is measured, of sessions that are held."""
        return self.figures is MEMORY

    def titled(self, asked: int) -> str:
        """The title, with how many sessions are held where so many were asked for."""
        return self.title.replace("#", f"{self.count(asked):,}")

    def count(self, asked: int) -> int:
        """How many sessions it takes where so many were asked for."""
        return max(1, round(asked * self.share))


BULK = (
    Figure("throughput", "GB/s", more_is_better=True),
    Figure("cpu_per_gb", "CPU s/GB"),
    BUSY,
)
ECHO = (
    Figure("p50", "p50 µs"),
    Figure("p99", "p99 µs", plotted=False),
    Figure("cpu_per_echo", "CPU µs/echo"),
    BUSY,
)
SETUP = (
    Figure("rate", "sessions/s", more_is_better=True),
    Figure("cpu_per_session", "CPU µs/session"),
    Figure("p50", "p50 µs", plotted=False),
    BUSY,
)
BRIEF = "connect, a byte each way, close"
MEMORY = (Figure("per_session", "kB/session"),)


SCALE_BULK = tuple(attrs.evolve(each, plotted=False) for each in BULK)
SCALE_ECHO = tuple(attrs.evolve(each, plotted=False) for each in ECHO)
SCALE_SETUP = tuple(attrs.evolve(each, plotted=False) for each in SETUP)


scaling = functools.partial(Line, scale=True, pin="off")
terminated = functools.partial(Line, tls=TLS.TERMINATED)
originated = functools.partial(Line, tls=TLS.ORIGINATED)

LINES = (
    Line("bulk1", "bulk, 1 connection", "down", 1, BULK),
    Line("bulk16", "bulk, 16 connections", "down", 16, BULK),
    Line("echo1", "64-byte echo, 1 connection", "echo", 1, ECHO, pin="together"),
    Line("echo32", "64-byte echo, 32 connections", "echo", 32, ECHO),
    Line("echo32idle", "64-byte echo, 32 beside # idle sessions", "echo", 32, ECHO, idle=True),
    Line("setup", BRIEF, "setup", 32, SETUP),
    Line("memory", "# idle sessions", "hold", 32, MEMORY, idle=True),
    scaling("scale-setup", BRIEF, "setup", 64, SCALE_SETUP),
    scaling("scale-bulk", "bulk, 16 connections", "down", 16, SCALE_BULK),
    scaling("scale-echo", "64-byte echo, 64 connections", "echo", 64, SCALE_ECHO),
    terminated("tls-down", "TLS, bulk to 1 client", "down", 1, BULK),
    terminated("tls-down16", "TLS, bulk to 16 clients", "down", 16, BULK),
    terminated("tls-up", "TLS, bulk from 1 client", "up", 1, BULK),
    terminated("tls-up16", "TLS, bulk from 16 clients", "up", 16, BULK),
    terminated("tls-echo", "TLS, 64-byte echo, 32 connections", "echo", 32, ECHO, pin="together"),
    terminated("tls-handshake", f"TLS, {BRIEF}", "setup", 32, SETUP, share=0.25),
    terminated(
        "tls-handshake-rsa", f"TLS with RSA, {BRIEF}", "setup", 32, SETUP, key="rsa", share=0.25
    ),
    terminated(
        "tls-resumed", f"TLS resumed, {BRIEF}", "setup", 32, SETUP, resumed=True, share=0.25
    ),
    terminated("tls-idle", "TLS, # idle sessions", "hold", 32, MEMORY, idle=True, share=0.1),
    terminated(
        "tls-silent", "TLS, # clients that say nothing", "silent", 1, MEMORY, idle=True, share=0.4
    ),
    terminated(
        "tls-stalled",
        "TLS, # clients that read nothing",
        "stalled",
        1,
        MEMORY,
        idle=True,
        share=0.04,
    ),
    originated("originate-down", "to TLS, bulk to 1 client", "down", 1, BULK),
    originated("originate-up", "to TLS, bulk from 1 client", "up", 1, BULK),
    originated("originate-setup", f"to TLS, {BRIEF}", "setup", 32, SETUP, share=0.25),
)
BY_NAME = {line.name: line for line in LINES}


@attrs.frozen
class Goal:
    """
    What we want of one figure.

    @ivar factor: our figure is to be at most that many times `against` (at least, where more is better).
    @ivar against: `best` (of all relays but ours), the name of one, the name of another of our lines
        preceded by `=`, or empty: then `factor` is the figure itself.
    """

    line: str
    figure: str
    factor: float
    against: str = "best"


GOALS = (
    Goal("bulk1", "cpu_per_gb", 0.65),
    Goal("bulk16", "cpu_per_gb", 0.65),
    Goal("bulk1", "throughput", 1.3),
    Goal("echo32", "cpu_per_echo", 1.3),
    Goal("echo1", "p50", 1.2),
    Goal("setup", "cpu_per_session", 1.5, "haproxy"),
    Goal("setup", "cpu_per_session", 1.0, "go"),
    Goal("memory", "per_session", 1.5, ""),
    Goal("echo32idle", "cpu_per_echo", 1.1, "=echo32"),
    Goal("tls-down", "cpu_per_gb", 0.95),
    Goal("tls-up", "cpu_per_gb", 0.95),
    Goal("tls-echo", "cpu_per_echo", 1.5),
    Goal("tls-handshake", "cpu_per_session", 1.25),
    Goal("tls-idle", "per_session", 1.3, "haproxy"),
)

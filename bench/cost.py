"""
What a relay's processes have used, as the kernel counts it: CPU time, resident memory and descriptors.

Used by the load generators too, which therefore need nothing but the standard library.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: utime and stime as the scheduler counts them


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for each in found:  # grows while it is read
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            if not Path("/proc/self/task", str(os.getpid()), "children").exists():
                raise RuntimeError(
                    "this kernel does not list children (CONFIG_PROC_CHILDREN)"
                ) from None
    return found


def cpu(pid: int) -> int:
    """
    CPU time of a process, its descendants and the children they have waited for, user and system,
    all threads, in nanoseconds (of children that are gone: in ticks of 10 ms, summed before rounding).
    """
    total = 0
    for each in tree(pid):
        try:
            # clock_getcpuclockid(3), which Python has for threads only.
            total += time.clock_gettime_ns((~each << 3) | CPUCLOCK_SCHED)
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has ended, and is its parent's now
        total += (int(fields[13]) + int(fields[14])) * TICK
    return total


def memory(pid: int) -> int:
    """
    Resident memory of a process and its descendants in bytes, what they share divided among the
    sharers (Pss). The kernel's own (socket buffers, pipes) is in nobody's.
    """
    total = 0
    for each in tree(pid):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def descriptors(pid: int) -> int:
    """How many descriptors a process and its descendants have open."""
    return sum(len(os.listdir(f"/proc/{each}/fd")) for each in tree(pid))

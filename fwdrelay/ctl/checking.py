"""`fwdrelayctl check FILE`: what `twistd fwdrelay --config FILE --check` of the same Python says."""

from __future__ import annotations

import subprocess
import sys

from attrs import frozen

from .exits import DONE, WRONG_CONFIGURATION

# -P: nothing is imported from the folder that one happens to be in.
_TWISTD = (
    sys.executable,
    "-P",
    "-c",
    "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()",
)
_PREFIX = "fwdrelay: "


@frozen
class Said:
    """
    @ivar status: what it exited with.
    @ivar good: what it wrote on stdout.
    @ivar bad: what it wrote on stderr.
    """

    status: int
    good: str
    bad: str

    @property
    def judged(self) -> bool:
        """Whether it came to look at the file at all."""
        return self.status in (DONE, WRONG_CONFIGURATION)

    @property
    def sentences(self) -> list[str]:
        """What is wrong, without the name of who says it."""
        return [line.removeprefix(_PREFIX) for line in self.bad.splitlines()]


def check_file(file: str) -> Said:
    """
    @param file: a path.
    """
    done = subprocess.run(
        [*_TWISTD, "fwdrelay", f"--config={file}", "--check"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)

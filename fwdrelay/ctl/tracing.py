"""`fwdrelayctl trace`: what is decided about new sessions, a line for each step."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from rich.text import Text

from .answers import Step
from .drawing import console, plain

_COLOURS = {
    "accepted": "bold",
    "admitted": "green",
    "refused": "red",
    "elected": "cyan",
    "dial-failed": "red",
    "connected": "green",
    "client-reset": "yellow",
    "upstream-reset": "yellow",
    "ended": "bold",
}
LAST = "ended"
"""The step after which there is none."""


@define
class Followed:
    """
    Which sessions are told of, and when it is enough.

    @ivar count: sessions; 0: any number.
    """

    count: int = 0
    _open: set[str] = field(factory=set)
    _seen: int = 0

    def wants(self, step: Step) -> bool:
        """
        Call it once for each step.

        @return: whether it is of a session that is told of.
        """
        if step.session in self._open:
            if step.step == LAST:
                self._open.discard(step.session)
            return True
        if self.count and self._seen >= self.count:
            return False
        self._seen += 1
        if step.step != LAST:
            self._open.add(step.session)
        return True

    @property
    def enough(self) -> bool:
        """Whether all that was to be told of has ended."""
        return bool(self.count) and self._seen >= self.count and not self._open


def line_of(step: Step) -> Text:
    """
    @return: as a line, with the colours that a terminal may show.
    """
    text = Text()
    text.append_text(plain(f"{step.time[11:23]}Z", "dim")).append("  ")
    text.append_text(plain(step.session, "bold")).append("  ")
    text.append_text(plain(step.client)).append("  ")
    text.append(f"{f'+{step.at_ms:.1f}ms':>10}", "dim").append("  ")
    text.append_text(plain(f"{step.step:<15}", _COLOURS.get(step.step, ""))).append("  ")
    text.append_text(plain(step.detail))
    text.rstrip()
    return text


def writer() -> Callable[[Step], None]:
    """
    @return: writes a step on stdout, at once.
    """
    screen = console()

    def write(step: Step) -> None:
        screen.print(line_of(step), soft_wrap=True)
        screen.file.flush()

    return write

"""
When a target is up: checks and dials counted, and what they come to.

No reactor, no connection: who checks, and when, is `fwdrelay.upstream.health.watch`.
"""

from __future__ import annotations

from attrs import define, field


@define(eq=False)
class Vitals:
    """
    What is known of one target.

    The first check of a target that is up decides alone: of one that has never been seen to answer
    nobody knows that it is up. From then on so many in a row are needed that one lost packet is not
    taken for a dead server, nor one answer for a healthy one.

    @ivar rise: checks in a row that bring it up.
    @ivar fall: checks in a row that bring it down.
    @ivar passive_failures: dials in a row that bring it down; 0: any number does not.
    @ivar up: as it counts now.
    @ivar seen: a check of it has been passed or failed, or it was marked down.
    """

    rise: int
    fall: int
    passive_failures: int
    up: bool = True
    seen: bool = False
    _passed: int = field(init=False, default=0)
    _failed: int = field(init=False, default=0)
    _dials_failed: int = field(init=False, default=0)
    _check_failed: str = field(init=False, default="")
    _dial_failed: str = field(init=False, default="")

    def __attrs_post_init__(self) -> None:
        self.seen = self.seen or not self.up

    @property
    def turning(self) -> str:
        """What speaks for its being the other way soon; empty: nothing does."""
        if not self.up:
            return f"{self._passed} of {self.rise} checks passed" if self._passed else ""
        if self._failed:
            return f"{self._failed} of {self.fall} checks failed: {self._check_failed}"
        if self._dials_failed and self.passive_failures:
            return (
                f"{self._dials_failed} of {self.passive_failures} dials failed: {self._dial_failed}"
            )
        return ""

    def passed(self) -> str | None:
        """
        A check was passed.

        @return: why the target has come up by that; None where it has not.
        """
        self.seen = True
        self._failed = 0
        if self.up:
            return None
        self._passed += 1
        if self._passed < self.rise:
            return None
        why = f"{self._passed} checks in a row passed" if self._passed > 1 else "a check passed"
        self._turn(up=True)
        return why

    def failed(self, cause: str) -> str | None:
        """
        A check was failed.

        @param cause: how.
        @return: why the target has gone down by that; None where it has not.
        """
        first, self.seen = not self.seen, True
        self._passed = 0
        if not self.up:
            return None
        self._failed += 1
        self._check_failed = cause
        if not first and self._failed < self.fall:
            return None
        count = "the first check" if first else _in_a_row(self._failed, "check")
        self._turn(up=False)
        return f"{cause} ({count})"

    def dialed(self) -> None:
        """A session's dial reached it."""
        self._dials_failed = 0

    def dial_failed(self, cause: str) -> str | None:
        """
        A session's dial failed.

        @param cause: how.
        @return: why the target has gone down by that; None where it has not.
        """
        if not self.up:
            return None
        self._dials_failed += 1
        self._dial_failed = cause
        if not self.passive_failures or self._dials_failed < self.passive_failures:
            return None
        count = _in_a_row(self._dials_failed, "dial")
        self._turn(up=False)
        return f"{cause} ({count})"

    def _turn(self, *, up: bool) -> None:
        self.up = up
        self.seen = True
        self._passed = self._failed = self._dials_failed = 0


def _in_a_row(count: int, what: str) -> str:
    return f"{count} {what}s in a row" if count > 1 else f"1 {what}"

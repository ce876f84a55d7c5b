"""
The files that TLS is made of, watched: when they change, and when the certificates in them expire.

What comes of a change is somebody else's: here it is only told of, once for each content. Files are looked
at by name, through all links, so that it makes no difference whether one is written in place, replaced, or
reached through a link that is set anew (as Kubernetes does).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ..words import counted
from .peer import day
from .pem import File, Stamp, stamp_of

EVERY = 2.0
"""Seconds between two looks at all files."""
AHEAD = 14 * 86400.0
"""Seconds before it expires, from which on a certificate is warned of."""
AGAIN = 86400.0
"""Seconds between two warnings of the same."""
_LOOKS_AT_EXPIRY = 600.0
"""Seconds between two looks at the calendar."""


class Files:
    """
    @param clock: `twisted.internet.interfaces.IReactorTime`.
    @param changed: is called with the paths of files that have changed, and have been the same since for one
        look, at least. It is not called again for what they are now, whatever it makes of them.
    @param now: seconds since the epoch.
    @ivar expiries: when the certificates of a file expire, in seconds since the epoch, by its path.
    """

    log = Logger()

    def __init__(
        self,
        clock: Any,
        changed: Callable[[frozenset[str]], object],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.expiries: Mapping[str, float] = {}
        self._changed = changed
        self._now = now
        self._known: dict[str, Stamp] = {}
        self._told: dict[str, Stamp] = {}
        self._unsettled: dict[str, Stamp] = {}
        self._warned: dict[tuple[str, float], float] = {}
        self._looking = LoopingCall(self._look)
        self._reading_the_calendar = LoopingCall(self._warn)
        self._looking.clock = self._reading_the_calendar.clock = clock

    def follow(self, files: Iterable[File]) -> None:
        """
        These are those that matter from now on; what they were read as is what they are compared with. Those
        that expire soon are warned of at once, unless they have been.
        """
        known: dict[str, Stamp] = {}
        expiries: dict[str, float] = {}
        for file in files:
            # Read twice, and as different ones: then one reader has to read it again.
            known[file.path] = file.stamp if known.get(file.path, file.stamp) == file.stamp else ()
            if file.expires is not None:
                expiries[file.path] = min(file.expires, expiries.get(file.path, file.expires))
        self._known = known
        # What was of no use to one reader, who keeps the old one, is not told again.
        self._told = {path: told for path, told in self._told.items() if path in known}
        self._unsettled = {path: was for path, was in self._unsettled.items() if path in known}
        self.expiries = expiries
        self._warned = {
            (path, end): when
            for (path, end), when in self._warned.items()
            if expiries.get(path) == end
        }
        if self._looking.running:
            self._warn()

    def start(self) -> None:
        """Begin to look."""
        self._looking.start(EVERY, now=False)
        self._reading_the_calendar.start(_LOOKS_AT_EXPIRY)

    def stop(self) -> None:
        """Look no more."""
        for loop in (self._looking, self._reading_the_calendar):
            if loop.running:
                loop.stop()

    def _look(self) -> None:
        before = self._unsettled
        self._unsettled = {
            path: stamp
            for path, known in self._known.items()
            if (stamp := stamp_of(path)) not in (known, self._told.get(path))
        }
        # Those that are written together belong together: all wait until none of them moves.
        if not self._unsettled or self._unsettled != before:
            return
        changed, self._unsettled = self._unsettled, {}
        self._told.update(changed)
        try:
            self._changed(frozenset(changed))
        except Exception:  # a mistake of ours, which must not be the last look
            self.log.failure("That files have changed could not be dealt with")

    def _warn(self) -> None:
        now = self._now()
        for path, end in self.expiries.items():
            left = end - now
            warned = self._warned.get((path, end))
            if left > AHEAD or (
                warned is not None and now - warned < AGAIN and (left > 0) == (end > warned)
            ):
                continue
            self._warned[path, end] = now
            moment = day(datetime.fromtimestamp(end, UTC))
            if left <= 0:
                self.log.error(
                    "The certificate in {file} has expired, on {moment}. Renew it.",
                    file=path,
                    moment=moment,
                )
            else:
                self.log.warn(
                    "The certificate in {file} expires in {left}, on {moment}.",
                    file=path,
                    left=_time_left(left),
                    moment=moment,
                )


def _time_left(seconds: float) -> str:
    days = int(seconds // 86400)
    return counted(days, "day") if days else counted(max(int(seconds // 3600), 1), "hour")

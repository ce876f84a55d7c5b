"""Sessions that last are told of while they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..session import Session


class Progress:
    """
    One session that will be told of again and again.

    @param tell: is called with it each time; answers after how many seconds it is to be again; 0: never.
    @ivar bucket: belongs to the deadlines.
    """

    __slots__ = ("_session", "_tell", "bucket")

    def __init__(self, session: Session, tell: Callable[[Session], float]) -> None:
        self._session = session
        self._tell = tell
        self.bucket: set[Any] | None = None

    def overdue(self, now: float) -> float | None:
        """It is time."""
        again = self._tell(self._session)
        return now + again if again else None

"""
A descriptor put by, for the last session that can be had.

Accepting takes one descriptor and dialing another. Where only one is left, a client would be accepted
and then be reset for want of the second, and so would all who wait behind it. With this, the dial gets
the spare one, and ports accept nobody until it can be had again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EMFILE
from typing import TypeVar

T = TypeVar("T")


class Spare:
    """The spare descriptor of one pump."""

    def __init__(self) -> None:
        self._fd = -1

    def hold(self) -> None:
        """
        Have it, before a client is accepted.

        @raise OSError: of open(2), when descriptors have run out.
        """
        if self._fd < 0:
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def give_up(self) -> bool:
        """
        @return: whether there was one, which is free now.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        return fd >= 0

    def make(self, make: Callable[[], T]) -> T:
        """
        @param make: takes a descriptor.
        @return: what it returns, at the cost of the spare one if need be.
        """
        try:
            return make()
        except OSError as error:
            if error.errno != EMFILE or not self.give_up():
                raise
            return make()

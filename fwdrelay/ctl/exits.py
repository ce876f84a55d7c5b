"""
How `fwdrelayctl` ends: a status for scripts, and what goes wrong as exceptions that know theirs.

Wrong usage is click's own affair, and its status is 2.
"""

from __future__ import annotations

from typing import ClassVar

DONE = 0
FAILED = 1
USAGE = 2
NO_RELAY = 3
NOT_THERE = 4
NOT_AUTHORISED = 5
WRONG_CONFIGURATION = 78  # EX_CONFIG of sysexits(3), as that of `twistd fwdrelay --check`


class Failure(Exception):
    """
    What ends a command, or one of the things that it was to do.

    @param sentences: that say what was wrong, one at least.
    @cvar status: what the program exits with.
    """

    status: ClassVar[int] = FAILED

    def __init__(self, *sentences: str) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


class Refused(Failure):
    """The relay does not do what it was asked for."""


class Strange(Failure):
    """What answers is no relay, or one that speaks otherwise."""


class NoRelay(Failure):
    """
    Nobody answers.

    @param slow: somebody is there, but did not answer in time.
    """

    status = NO_RELAY

    def __init__(self, *sentences: str, slow: bool = False) -> None:
        super().__init__(*sentences)
        self.slow = slow


class NoSuchThing(Failure):
    """There is no session, target or pool of that name."""

    status = NOT_THERE


class NotAuthorised(Failure):
    """Whoever asks may not: the token is wrong or missing, or the socket is not theirs."""

    status = NOT_AUTHORISED


class WrongConfiguration(Failure):
    """The configuration is wrong; a sentence for each error."""

    status = WRONG_CONFIGURATION

"""
What can go wrong, as an operator meets it.

Each message is a sentence that says what was wrong, where, and what would be right. Errors of one
connection (a reset, a refused dial) are not here: they end a session with a L{reason
<fwdrelay.session.lifecycle.Reason>} and never travel further.
"""

from __future__ import annotations

from collections.abc import Sequence


class FwdrelayError(Exception):
    """The base of all errors that fwdrelay raises on purpose."""


class ConfigError(FwdrelayError):
    """
    What was asked for can't be done as written.

    @param where: the option or the path in the file, `--target` for example.
    @param problem: what is wrong with the value found there, and what would be accepted.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class ConfigErrors(FwdrelayError):
    """
    All that is wrong with a configuration.

    @ivar errors: in the order in which they stand there, one at least.
    """

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


class DiscoveryFailed(FwdrelayError):
    """Targets could not be found out; the text says why."""


class CannotListen(FwdrelayError):
    """A listener's address can't be bound."""


class CannotOpenLog(FwdrelayError):
    """The access log's file can't be opened for appending."""


class NotThere(FwdrelayError):
    """What was asked for by name does not exist, or not any more."""


class NotPossible(FwdrelayError):
    """What was asked for can't be done now."""


class CannotSplice(FwdrelayError):
    """This system has not what the spliced pump needs."""


class DialFailed(FwdrelayError):
    """
    A target could not be connected to.

    @param cause: one word of `fwdrelay.dial.CAUSES`.
    @param detail: what the system said.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = detail

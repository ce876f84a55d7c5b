"""
A session's life, as a table: the states, what moves a session from one to the next, and the reasons
for which it ends. Everything that decides which transition is legal is in this file; no I/O is.

Each session reaches `State.CLOSED` exactly once, with exactly one `Reason`; one that moved to another process is
closed in this one, without any.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """
    Where a session is. The value, in upper case, is the second letter of HAProxy's termination code for a session
    that ends there.
    """

    ACCEPTED = "R"
    OPENING = "r"
    QUEUED = "Q"
    DIALING = "C"
    RELAYING = "D"
    HALF_CLOSED = "d"
    CLOSED = "-"

    __hash__ = object.__hash__  # Enum's own is Python code, and a session asks for it often


class Input(Enum):
    """What can happen to a session."""

    ASKED = "the client is to say more before it is known where it goes: header, hello, handshake"
    ADMITTED = "the client may enter"
    REFUSED = "the client may not enter"
    QUEUED = "every target it may go to is full"
    PLACE_FOUND = "a target has a place for it"
    DIALED = "an upstream connection is open"
    DIAL_FAILED = "no target could be connected to"
    SIDE_ENDED = "a side has sent its last byte, and said so"
    SIDE_RESET = "a side's connection broke"
    DELIVERED = "all that can be delivered is"
    TIMED_OUT = "too long without a byte, or too long at all"
    CUT = "the operator wants it gone, or a defect of ours leaves no other way"
    MOVED = "another process goes on with it"

    __hash__ = object.__hash__


TABLE: dict[tuple[State, Input], State] = {
    (State.ACCEPTED, Input.ADMITTED): State.DIALING,
    (State.ACCEPTED, Input.REFUSED): State.CLOSED,
    (State.ACCEPTED, Input.ASKED): State.OPENING,
    (State.OPENING, Input.ADMITTED): State.DIALING,
    (State.OPENING, Input.REFUSED): State.CLOSED,
    (State.OPENING, Input.SIDE_RESET): State.CLOSED,
    (State.OPENING, Input.TIMED_OUT): State.CLOSED,
    (State.OPENING, Input.CUT): State.CLOSED,
    (State.QUEUED, Input.PLACE_FOUND): State.DIALING,
    (State.QUEUED, Input.DIAL_FAILED): State.CLOSED,
    (State.QUEUED, Input.REFUSED): State.CLOSED,
    (State.QUEUED, Input.SIDE_RESET): State.CLOSED,
    (State.QUEUED, Input.TIMED_OUT): State.CLOSED,
    (State.QUEUED, Input.CUT): State.CLOSED,
    (State.DIALING, Input.QUEUED): State.QUEUED,
    (State.DIALING, Input.DIALED): State.RELAYING,
    (State.DIALING, Input.DIAL_FAILED): State.CLOSED,
    (State.DIALING, Input.SIDE_RESET): State.CLOSED,
    (State.DIALING, Input.TIMED_OUT): State.CLOSED,
    (State.DIALING, Input.CUT): State.CLOSED,
    (State.RELAYING, Input.SIDE_ENDED): State.HALF_CLOSED,
    (State.RELAYING, Input.SIDE_RESET): State.HALF_CLOSED,
    (State.RELAYING, Input.TIMED_OUT): State.CLOSED,
    (State.RELAYING, Input.CUT): State.CLOSED,
    (State.RELAYING, Input.MOVED): State.CLOSED,
    (State.HALF_CLOSED, Input.SIDE_ENDED): State.HALF_CLOSED,
    (State.HALF_CLOSED, Input.SIDE_RESET): State.HALF_CLOSED,
    (State.HALF_CLOSED, Input.DELIVERED): State.CLOSED,
    (State.HALF_CLOSED, Input.TIMED_OUT): State.CLOSED,
    (State.HALF_CLOSED, Input.CUT): State.CLOSED,
    (State.HALF_CLOSED, Input.MOVED): State.CLOSED,
}


class Reason(Enum):
    """
    Why a session ended: the word that log, metrics and API share, and the first letter of HAProxy's
    termination code (who or what ended it).
    """

    DONE = "done", "-"
    CLIENT_RESET = "client-reset", "C"
    CLIENT_LEFT = "client-left", "C"
    CLIENT_TRUNCATED = "client-truncated", "C"
    CLIENT_IDLE = "client-idle-timeout", "c"
    CLIENT_HALF_CLOSED = "client-half-close-timeout", "c"
    UPSTREAM_RESET = "upstream-reset", "S"
    UPSTREAM_TRUNCATED = "upstream-truncated", "S"
    UPSTREAM_IDLE = "upstream-idle-timeout", "s"
    UPSTREAM_HALF_CLOSED = "upstream-half-close-timeout", "s"
    DIAL_FAILED = "dial-failed", "S"
    DIAL_TIMEOUT = "dial-timeout", "s"
    NO_TARGET = "no-target", "S"
    NO_RESOURCES = "no-resources", "R"
    INTERNAL_ERROR = "internal-error", "I"
    QUEUE_TIMEOUT = "queue-timeout", "s"
    QUEUE_FULL = "queue-full", "P"
    TARGET_DOWN = "target-down", "D"
    LIFETIME = "lifetime", "P"
    DENIED = "denied", "P"
    RATE = "rate", "P"
    RATE_PER_CLIENT = "rate-per-client", "P"
    PROXY_HEADER = "proxy-header", "P"
    PROXY_TIMEOUT = "proxy-timeout", "c"
    TLS_FAILED = "tls-failed", "P"
    TLS_TIMEOUT = "tls-timeout", "c"
    IDENTITY = "identity", "P"
    NO_ROUTE = "no-route", "P"
    MAX_SESSIONS = "max-sessions", "P"
    MAX_SESSIONS_PER_CLIENT = "max-sessions-per-client", "P"
    DRAIN_TIMEOUT = "drain-timeout", "K"
    KILLED = "killed", "K"
    STOPPED = "stopped", "K"

    __hash__ = object.__hash__  # as of `State`: refusals are counted by it

    def __init__(self, word: str, letter: str) -> None:
        self.word = word
        self.letter = letter


class IllegalTransition(AssertionError):
    """A defect of fwdrelay's own: nothing that a peer does may lead here."""


def after(state: State, happened: Input) -> State:
    """
    @return: the state that `happened` leads to.
    @raise IllegalTransition: where the table has no such row.
    """
    try:
        return TABLE[state, happened]
    except KeyError:
        raise IllegalTransition(f"{happened.name} while {state.name}") from None


def code(reason: Reason, state: State) -> str:
    """
    HAProxy's two letters for a session that ended for `reason` while it was in `state`: who or
    what ended it, and what it was doing (HAProxy's configuration manual, "Session state at
    disconnection").
    """
    return "--" if reason is Reason.DONE else reason.letter + state.value.upper()

"""
A worker's side of what outlives it: which of its sessions the keeper is to hold, when these end, and those of others
that the worker is given. And how many descriptors a process may have, since that takes many of them.

How a session becomes one that can be held is its own business (`Session.keep`); how messages travel is in `passing`.
"""

from __future__ import annotations

import heapq
import resource
import socket
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol

from attrs import define, frozen
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from ..session.lifecycle import State
from ..session.portable import PortableSession
from .passing import MOST_NAMES, Channel, Message, Says, close_all, descriptor_limit

log = Logger()

AGE = 0.5
"""Seconds that a session lasts before it is registered: short ones cost nothing."""
REFUSED_FOR = 30.0
"""Seconds until a session that was refused is registered again."""

_EVERY = 0.25
_BATCH = 240  # sessions that are on their way to another worker at once
_MANY_LOOKS = 8
_LONGEST_PAUSE = 30.0
# Between the rounds in which sessions are tried that could not be handed over.
_ROUNDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


class Movable(Protocol):
    """What is asked of a session; see `fwdrelay.session.Session`."""

    state: State

    @property
    def name(self) -> str:
        """Its name, which it keeps wherever it goes."""

    @property
    def may_move(self) -> bool:
        """Whether it is of a kind that can be held, now."""

    @property
    def kept(self) -> bool:
        """Whether all of it is in descriptors."""

    def keep(self) -> tuple[int, int, int, int] | None:
        """From now on it is. None: it can't be, just now."""

    def unkeep(self) -> None:
        """From now on it need not be."""

    def portable(self) -> PortableSession:
        """What is not in them."""

    def detach(self) -> None:
        """Forget it in this process."""


def _is_over(session: Movable) -> bool:
    return session.state is State.CLOSED


@define(order=True)
class _Look:
    due: float
    order: int
    session: Movable
    pause: float
    looks: int


@frozen
class _Held:
    """
    A session that the keeper holds, or will.

    @ivar session: None: it is just being adopted.
    @ivar serial: of the message by which the keeper has got it; 0: it has given it. Answers to earlier ones are out
        of date.
    """

    session: Movable | None
    serial: int


class _Unsent:
    """
    Sessions that are to be sent to the keeper, by name.

    Until they are, they may end, or turn into something that can't be kept.
    """

    log = Logger()

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self.sessions: dict[str, Movable] = {}

    def _write(self, says: Says, most: int) -> Message | None:
        """Keep at most `most` of them, and forget those that can't be kept."""
        sessions = self.sessions
        written: dict[str, tuple[str, tuple[int, ...]]] = {}
        while sessions and not written:
            for name, session in list(islice(sessions.items(), most)):
                one = self._written(session)
                if one is not None:
                    written[name] = one
                elif sessions.pop(name, None) is not None:
                    self._not_now(session)
        if not written:
            return None
        return Message(
            says=says,
            names=tuple(written),
            texts=tuple(text for text, _ in written.values()),
            descriptors=tuple(each for _, numbers in written.values() for each in numbers),
            serial=self._keeping.next_serial(),
        )

    def _written(self, session: Movable) -> tuple[str, tuple[int, ...]] | None:
        keeping = self._keeping
        try:
            # What was said of it before has to be sent before.
            if keeping.is_being_released(session) or _is_over(session) or not session.may_move:
                return None
            descriptors = session.keep()
            # It may have found out that it is over.
            if descriptors is None or _is_over(session):
                keeping.look_whether_kept(session)
                return None
            return session.portable().text(), descriptors
        except Exception:
            # One session's failure must not cost others anything.
            self.log.failure("Session {session} could not be kept", session=session.name)
            return None

    def _not_now(self, session: Movable) -> None:
        """It can't be kept just now."""


class _Joining(_Unsent):
    """
    Those to be registered; an `Outbox`.

    @ivar pauses: until they are looked at again, if they can't be kept.
    """

    def __init__(self, keeping: Keeping) -> None:
        super().__init__(keeping)
        self.pauses: dict[str, float] = {}

    def add(self, session: Movable, pause: float) -> None:
        """Register `session`."""
        self.sessions[session.name] = session
        self.pauses[session.name] = pause

    def discard(self, name: str) -> None:
        """Don't, if that has not been said yet."""
        self.sessions.pop(name, None)
        self.pauses.pop(name, None)

    def write(self, most: int) -> Message | None:
        """See `Outbox`."""
        return self._write("register", most)

    def _not_now(self, session: Movable) -> None:
        pause = self.pauses.pop(session.name)
        if not _is_over(session):
            self._keeping.look_again(session, pause)

    def sent(self, message: Message) -> None:
        """See `Outbox`."""
        for name in message.names:
            self._keeping.held[name] = _Held(self.sessions.pop(name), message.serial)
            del self.pauses[name]


class _Leaving(_Unsent):
    """
    Those to be handed over; an `Outbox`.

    @ivar asked: the serials of those that were sent, and are not answered yet.
    @ivar left: that are not here any more.
    @ivar settled: fires when nothing is to be sent or answered any more.
    """

    def __init__(self, keeping: Keeping) -> None:
        super().__init__(keeping)
        self.asked: dict[str, int] = {}
        self.left: set[str] = set()
        self.settled: Deferred[None] | None = None

    def write(self, most: int) -> Message | None:
        """See `Outbox`."""
        message = self._write("hand-over", most)
        if message is None:
            self._keeping.settle_soon()
        return message

    def sent(self, message: Message) -> None:
        """See `Outbox`."""
        for name in message.names:
            self._keeping.held[name] = _Held(self.sessions.pop(name), message.serial)
            self.asked[name] = message.serial
            self._keeping.joining.discard(name)  # it is

    def cancel(self) -> None:
        """Send nothing more, and tell nobody."""
        self.sessions.clear()
        self.settled = None

    def settle(self) -> None:
        """Tell, if there is nothing any more to wait for."""
        if self.settled is not None and not self.sessions and not self.asked:
            settled, self.settled = self.settled, None
            settled.callback(None)


class _Releasing:
    """Names to be released; an `Outbox`."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def write(self, most: int) -> Message | None:
        """See `Outbox`."""
        if not self.names:
            return None
        return Message(says="release", names=tuple(islice(self.names, MOST_NAMES)))

    def sent(self, message: Message) -> None:
        """See `Outbox`."""
        for name in message.names:
            del self.names[name]


class Keeping:
    """
    What the sessions of a worker tell of themselves goes to the keeper from here; an `IKeeping`.

    @param sock: the worker's end of its channel, which is closed by `stop`.
    @param adopt: makes a session of what was given, and drives it. It owns the descriptors from then on, also if it
        raises an exception.
    @param survive: whether sessions are registered for as long as they last.
    @param lost: told once, if the keeper has gone.
    @ivar survive: see above; it may be changed, which counts for sessions that are looked at after that.
    @ivar held: the sessions that the keeper holds or will, by name.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        adopt: Callable[[PortableSession, tuple[int, int, int, int]], Movable],
        survive: bool,
        lost: Callable[[], object],
    ) -> None:
        self.survive = survive
        self.held: dict[str, _Held] = {}
        self._reactor = reactor
        self._adopt = adopt
        self._lost = lost
        self._young: deque[tuple[float, Movable]] = deque()
        self._looks: list[_Look] = []
        self._order = 0
        self._serial = 0
        self.joining = _Joining(self)
        self._leaving = _Leaving(self)
        self._one_at_a_time = DeferredLock()
        self._releasing = _Releasing()
        self._timer: Any = None
        self._turns_end: Any = None
        self._settling: Any = None
        self._round: tuple[Deferred[None], Any] | None = None
        self._channel = Channel(reactor, sock, self._received, self._channel_lost)

    @property
    def kept_count(self) -> int:
        """How many sessions of this worker outlive it."""
        return len(self.held)

    @property
    def is_lost(self) -> bool:
        """Whether the keeper has gone, so that nothing is held and nothing can be handed over."""
        return self._channel.is_lost

    def stop(self) -> None:
        """Close the channel. Sessions that are held stay so until the keeper knows better."""
        self._channel.send(self._releasing)
        self._channel.close()
        self._forget_everything()
        self.held.clear()

    # What sessions tell.

    def relaying(self, session: Movable) -> None:
        """`session` has begun to relay."""
        if self.survive and not self.is_lost:
            due = self._reactor.seconds() + AGE
            self._young.append((due, session))
            self._tick(due)

    def ended(self, session: Movable) -> None:
        """A session that was kept is over in every way, or is not kept any more."""
        name = session.name
        self.joining.discard(name)
        self._leaving.sessions.pop(name, None)
        self._leaving.asked.pop(name, None)
        self.settle_soon()
        if self.held.pop(name, None) is not None:
            self._releasing.names[name] = None
            if self._turns_end is None:  # those that end in one turn, at once
                self._turns_end = self._reactor.callLater(0, self._release)

    def look_whether_kept(self, session: Movable) -> None:
        """An attempt to keep it has failed, which is the end of what it was before."""
        if session.name in self.held and not session.kept:
            self.ended(session)
            self.relaying(session)

    def is_being_released(self, session: Movable) -> bool:
        """Whether the keeper is still to be told that it isn't kept."""
        return session.name in self._releasing.names

    def next_serial(self) -> int:
        """What was not used before."""
        self._serial += 1
        return self._serial

    def _release(self) -> None:
        self._turns_end = None
        self._channel.send(self._releasing)

    # Registration.

    def look_again(self, session: Movable, pause: float, looks: int = 0) -> None:
        """It can't be kept at the moment."""
        self._order += 1
        due = self._reactor.seconds() + pause
        heapq.heappush(self._looks, _Look(due, self._order, session, pause, looks))
        self._tick(due)

    def _tick(self, due: float) -> None:
        """One timer for all, which rings every `_EVERY` seconds at most. With nobody to look at, nothing ticks."""
        if self.is_lost:
            return
        now = self._reactor.seconds()
        due = max(due, now + _EVERY)
        if self._timer is not None:
            if self._timer.getTime() <= due:
                return
            self._timer.cancel()
        self._timer = self._reactor.callLater(due - now, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        while self._young and self._young[0][0] <= now:
            _, session = self._young.popleft()
            self._look_at(session, AGE, 0)
        while self._looks and self._looks[0].due <= now:
            look = heapq.heappop(self._looks)
            self._look_at(look.session, min(look.pause * 2, _LONGEST_PAUSE), look.looks)
        if self.joining.sessions:
            self._channel.send(self.joining)
        if self._young:
            self._tick(self._young[0][0])
        if self._looks:
            self._tick(self._looks[0].due)

    def _look_at(self, session: Movable, pause: float, looks: int) -> None:
        if _is_over(session) or session.name in self.held or not self.survive:
            return
        if session.may_move:
            self.joining.add(session, pause)
        elif looks < _MANY_LOOKS:  # then it is of another kind, and stays so
            self.look_again(session, pause, looks + 1)

    # What the keeper says.

    def _received(self, message: Message) -> None:
        match message.says:
            case "give":
                self._given(message)
            case "refused":
                self._refused(message)
            case "taken":
                self._taken(message)
            case "yours":
                self._not_held(message.names)
            case _:
                close_all(message.descriptors)

    def _given(self, message: Message) -> None:
        if message.lacking:
            self._channel.say("refused", message.names)
            return
        adopted, failed = [], []
        for name, text, descriptors in message.sessions():
            # Before: it may end while it is adopted.
            self.held[name] = _Held(None, 0)
            try:
                portable = PortableSession.parse(text)
            except ValueError:
                close_all(descriptors)
                self._not_adopted(name)
                failed.append(name)
                continue
            client, upstream, up, down = descriptors
            try:
                session = self._adopt(portable, (client, upstream, up, down))
            except Exception:
                self._not_adopted(name)
                failed.append(name)
                continue
            if name in self.held:
                self.held[name] = _Held(session, 0)
            adopted.append(name)
        self._channel.say("adopted", adopted)
        self._channel.say("failed", failed)

    def _not_adopted(self, name: str) -> None:
        self.held.pop(name, None)
        self.log.failure("Session {session} could not be taken over", session=name)

    def _answered(self, name: str, serial: int) -> Movable | None:
        """
        @return: None: it has ended, or other things were said of it since.
        """
        if self._leaving.asked.get(name) == serial:
            del self._leaving.asked[name]
            self.settle_soon()
        held = self.held.get(name)
        return held.session if held is not None and held.serial == serial else None

    def _refused(self, message: Message) -> None:
        for name in message.names:
            session = self._answered(name, message.serial)
            if session is not None:
                del self.held[name]
                session.unkeep()
                if self.survive:
                    self.look_again(session, REFUSED_FOR)

    def _not_held(self, names: Iterable[str]) -> None:
        """Sessions that were given are this worker's alone now."""
        for name in names:
            session = self._answered(name, 0)
            if session is not None:
                del self.held[name]
                session.unkeep()
                self.relaying(session)

    def _taken(self, message: Message) -> None:
        let_go = []
        for name in message.names:
            session = self._answered(name, message.serial)
            if session is not None and self._detached(session):
                del self.held[name]
                self.joining.discard(name)
                self._leaving.left.add(name)
                let_go.append(name)
        # Not before this process has done its last with them: they may be given to another at once.
        self._channel.say("let-go", let_go)

    def _detached(self, session: Movable) -> bool:
        try:
            session.detach()
        except Exception:
            self.log.failure("Session {session} could not be handed over", session=session.name)
            return False
        return True

    # Handing over.

    def hand_over(self, sessions: Iterable[Movable]) -> Deferred[int]:
        """
        Let another worker relay all of `sessions` that can move. For a few seconds, it is tried again with those that
        can't just now.

        @return: how many of them stay here, and are open.
        """
        handing = list(sessions)
        return self._one_at_a_time.run(lambda: Deferred.fromCoroutine(self._hand_over(handing)))

    async def _hand_over(self, sessions: list[Movable]) -> int:
        left = self._leaving.left = set()
        for pause in (*_ROUNDS, None):
            movable = [
                each
                for each in sessions
                if each.name not in left and not _is_over(each) and each.may_move
            ]
            for at in range(0, len(movable), _BATCH):
                if self.is_lost:
                    break
                await self._send_away(movable[at : at + _BATCH])
            sessions = [each for each in sessions if each.name not in left and not _is_over(each)]
            if pause is None or self.is_lost or not any(each.may_move for each in sessions):
                break
            await self._wait(pause)
        return len(sessions)

    def _send_away(self, sessions: list[Movable]) -> Deferred[None]:
        self._leaving.sessions = {each.name: each for each in sessions if not _is_over(each)}
        settled: Deferred[None] = Deferred(lambda _: self._leaving.cancel())
        self._leaving.settled = settled
        self._channel.send(self._leaving)
        self.settle_soon()
        return settled

    def settle_soon(self) -> None:
        """Not within what the channel does, as more is sent then."""
        if self._settling is None and self._leaving.settled is not None:
            self._settling = self._reactor.callLater(0, self._settle)

    def _settle(self) -> None:
        self._settling = None
        self._leaving.settle()

    def _wait(self, pause: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._round = waiting, self._reactor.callLater(pause, self._end_round)
        return waiting

    def _end_round(self) -> None:
        if self._round is not None:
            (waiting, timer), self._round = self._round, None
            if timer.active():
                timer.cancel()
            waiting.callback(None)

    # The end.

    def _channel_lost(self) -> None:
        # Those that are kept stay so: that is harmless, and whether the keeper's descriptors are closed can't be known.
        self._forget_everything()
        self.held.clear()
        self._lost()

    def _forget_everything(self) -> None:
        self._young.clear()
        self._looks.clear()
        self.joining.sessions.clear()
        self.joining.pauses.clear()
        self._leaving.sessions.clear()
        self._leaving.asked.clear()
        self._releasing.names.clear()
        for timer in (self._timer, self._turns_end, self._settling):
            if timer is not None:
                timer.cancel()
        self._timer = self._turns_end = self._settling = None
        self._leaving.settle()
        self._end_round()


def raise_limit() -> int:
    """
    Let this process have as many descriptors as the system lets it: a session that is held takes four in two processes.

    @return: how many that is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        log.info("The limit of open files is raised from {soft} to {hard}.", soft=soft, hard=hard)
    return descriptor_limit()

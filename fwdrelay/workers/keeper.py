"""
What the supervisor holds for its workers: the descriptors of their sessions, so that these outlive them.

The keeper never looks at what is relayed, nor says anything to its peers: it holds duplicates, knows whose the sessions
are, and gives those that nobody has to a worker. When it may give away what a worker had, it is told: the supervisor
knows who is dead. How messages travel is in `passing`, a worker's side in `keeping`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Self

from attrs import Factory, define
from twisted.logger import Logger

from ..words import counted
from .passing import Channel, Message, close_all, descriptor_limit

RESERVE = 256
"""Descriptors that the supervisor leaves for everything else."""
WELL_AFTER = 60.0
"""Seconds without a refusal until a lack of descriptors counts as over."""

# How long a worker that lacks descriptors, or a session that nobody could take, is left alone.
_FIRST_REST = 0.1
_LONGEST_REST = 5.0
_MOST_FAILURES = 5


@define(eq=False)
class _Kept:
    """
    A session that is held.

    @ivar owner: the worker that has it, by its process; None: nobody has.
    @ivar sender: who has handed it over, and may get it back.
    @ivar refused: who could not take it.
    @ivar failures: how often that was not for lack of descriptors.
    @ivar rests_until: when those who could not may be asked again; 0: that is to be decided.
    """

    name: str
    text: str
    descriptors: tuple[int, ...]
    owner: int | None = None
    sender: int | None = None
    refused: set[int] = Factory(set)
    failures: int = 0
    rests_until: float = 0.0


@define(eq=False)
class _Worker:
    """
    A worker, as the keeper knows it.

    @ivar names: of the sessions that it has, or will find in its channel.
    @ivar gifts: sessions that are to be given to it, and wait for their turn in its channel; an `Outbox`.
    """

    pid: int
    given: Callable[[_Worker, str], object]
    channel: Channel = None  # type: ignore[assignment]  # it is made with methods of the keeper, for this worker
    may_receive: bool = False
    names: set[str] = Factory(set)
    gifts: dict[str, _Kept] = Factory(dict)
    rest: float = 0.0
    rests_until: float = 0.0

    @property
    def load(self) -> int:
        return len(self.names) + len(self.gifts)

    def write(self, most: int) -> Message | None:
        """See `Outbox`."""
        some = [each for each, _ in zip(self.gifts.values(), range(most), strict=False)]
        if not some:
            return None
        return Message(
            says="give",
            names=tuple(each.name for each in some),
            texts=tuple(each.text for each in some),
            descriptors=tuple(number for each in some for number in each.descriptors),
        )

    def sent(self, message: Message) -> None:
        """See `Outbox`."""
        for name in message.names:
            self.given(self, name)


def _nothing(worker: int) -> None:
    """Whoever doesn't want to know."""


class Keeper:
    """
    @param reactor: it needs readers, writers and time.
    @param holds: whether sessions are held for as long as they last, or only on their way from one worker to another.
    @param lost: told of a worker that has closed its end: it has to be ended, and then `left`.
    @ivar refused_total: sessions that were not held for lack of descriptors, since the start.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        holds: bool = True,
        lost: Callable[[int], object] = _nothing,
        reserve: int = RESERVE,
    ) -> None:
        self.holds = holds
        self.refused_total = 0
        self._reactor = reactor
        self._lost = lost
        self._reserve = reserve
        self._workers: dict[int, _Worker] = {}
        self._kept: dict[str, _Kept] = {}
        self._orphans: dict[str, _Kept] = {}
        self._paused = False
        self._retry: Any = None
        self._lacking = False
        self._last_refusal = 0.0

    # What the supervisor asks and says.

    def join(self, worker: int, sock: socket.socket) -> None:
        """
        Listen to a worker.

        @param worker: its process ID.
        @param sock: the keeper's end of its channel, which the keeper closes.
        """
        new = _Worker(worker, self._given)
        new.channel = Channel(
            self._reactor, sock, partial(self._received, new), partial(self._channel_lost, new)
        )
        self._workers[worker] = new

    def may_receive(self, worker: int, may: bool) -> None:
        """Whether sessions may be given to `worker`. At first, none may."""
        known = self._workers.get(worker)
        if known is not None:
            known.may_receive = may
            if may:
                known.rest = known.rests_until = 0.0
            else:
                self._take_gifts_back(known)
            self._give()

    def left(self, worker: int) -> None:
        """
        `worker` is dead, and was waited for. What it had reported counts, what it had is given to others.
        """
        dead = self._workers.pop(worker, None)
        if dead is None:
            return
        dead.may_receive = False
        self._take_gifts_back(dead)
        dead.channel.read_all()
        dead.channel.close()
        for name in dead.names:
            self._orphan(self._kept[name])
        dead.names.clear()
        self._give()

    def kept_by(self, worker: int) -> int:
        """How many of the sessions that are held are relayed by `worker`."""
        known = self._workers.get(worker)
        return 0 if known is None else len(known.names)

    @property
    def holding(self) -> int:
        """How many sessions are held."""
        return len(self._kept)

    @property
    def orphans(self) -> int:
        """How many of them nobody relays at the moment."""
        return len(self._kept) - sum(len(each.names) for each in self._workers.values())

    def stop(self) -> None:
        """Close everything. The peers of sessions that are held still are reset."""
        self.pause()
        for worker in self._workers.values():
            worker.channel.close()
        self._workers.clear()
        for kept in self._kept.values():
            _abandon(kept.descriptors)
        self._kept.clear()
        self._orphans.clear()

    # What outlives the supervisor's program.

    def pause(self) -> None:
        """Read and say nothing more, until `resume`, or for good. What workers send waits in the kernel."""
        self._paused = True
        for worker in self._workers.values():
            worker.channel.pause()
        self._stop_timer()

    def resume(self) -> None:
        """Go on after a `pause`."""
        self._paused = False
        for worker in list(self._workers.values()):
            worker.channel.resume()
        self._give()

    def descriptors(self) -> list[int]:
        """All that have to stay open for `restored`."""
        channels = [each.channel.fileno() for each in self._workers.values()]
        return channels + [number for each in self._kept.values() for number in each.descriptors]

    def state(self) -> dict[str, Any]:
        """What `restored` makes the same of, as JSON has it. To be called when paused."""
        return {
            "refused_total": self.refused_total,
            "workers": [
                {
                    "pid": each.pid,
                    "channel": each.channel.fileno(),
                    "may_receive": each.may_receive,
                    "unsaid": each.channel.unsaid(),
                }
                for each in self._workers.values()
            ],
            # What waits to be given is an orphan still.
            "sessions": [
                {
                    "name": each.name,
                    "text": each.text,
                    "descriptors": each.descriptors,
                    "owner": each.owner,
                    "sender": each.sender,
                }
                for each in self._kept.values()
            ],
        }

    @classmethod
    def restored(
        cls,
        reactor: Any,
        state: Mapping[str, Any],
        *,
        holds: bool = True,
        lost: Callable[[int], object] = _nothing,
        reserve: int = RESERVE,
    ) -> Self:
        """
        A keeper that goes on where another had paused. It gives nothing away before `resume`.

        @param state: what that one's `state` was. The descriptors in it are open, and belong to the new one.
        """
        keeper = cls(reactor, holds=holds, lost=lost, reserve=reserve)
        keeper.refused_total = state.get("refused_total", 0)
        for worker in state["workers"]:
            os.set_inheritable(worker["channel"], False)
            keeper.join(worker["pid"], socket.socket(fileno=worker["channel"]))
            known = keeper._workers[worker["pid"]]
            known.may_receive = worker["may_receive"]
            known.channel.pause()
            for says, names, serial in worker["unsaid"]:
                known.channel.say(says, names, serial)
        for session in state["sessions"]:
            kept = _Kept(
                session["name"],
                session["text"],
                tuple(session["descriptors"]),
                session["owner"],
                session.get("sender"),
            )
            for number in kept.descriptors:
                os.set_inheritable(number, False)
            keeper._kept[kept.name] = kept
            owner = keeper._workers.get(kept.owner) if kept.owner is not None else None
            if owner is None:
                keeper._orphan(kept)
            else:
                owner.names.add(kept.name)
        keeper._paused = True
        return keeper

    # What workers say.

    def _received(self, worker: _Worker, message: Message) -> None:
        match message.says:
            case "register":
                self._register(worker, message)
            case "hand-over":
                self._register(worker, message)
                taken = [name for name in message.names if name in worker.names]
                worker.channel.say("taken", taken, message.serial)
            case "release":
                self._forget(worker, message.names)
            case "let-go":
                for kept in self._owned(worker, message.names):
                    worker.names.discard(kept.name)
                    self._orphan(kept)
                    kept.sender = worker.pid
                self._give()
            case "adopted":
                self._adopted(worker, message.names)
            case "refused" | "failed":
                self._not_adopted(worker, message)
            case _:
                close_all(message.descriptors)

    def _register(self, worker: _Worker, message: Message) -> None:
        """
        Hold the sessions. Those that can't be held are told as refused. One that was held for the same worker before
        is replaced, and stays as it is if that can't be done.
        """
        if message.lacking or self._is_full(message.descriptors):
            close_all(message.descriptors)
            # Others' are none of its business.
            refused = [name for name in message.names if name not in worker.names]
            if refused:
                self.refused_total += len(refused)
                self._tell_lack()
                worker.channel.say("refused", refused, message.serial)
            return
        self._tell_well()
        refused = []
        for name, text, descriptors in message.sessions():
            before = self._kept.get(name)
            if before is not None and before.owner != worker.pid:
                close_all(descriptors)
                refused.append(name)
                continue
            if before is not None:
                close_all(before.descriptors)
            self._kept[name] = _Kept(name, text, descriptors, worker.pid)
            worker.names.add(name)
        worker.channel.say("refused", refused, message.serial)

    def _adopted(self, worker: _Worker, names: Iterable[str]) -> None:
        worker.rest = worker.rests_until = 0.0
        adopted = list(self._owned(worker, names))
        for kept in adopted:
            kept.sender = None
            kept.refused.clear()
            kept.failures = 0
            kept.rests_until = 0.0
        if not self.holds:
            self._forget(worker, [kept.name for kept in adopted])
            worker.channel.say("yours", [kept.name for kept in adopted])

    def _not_adopted(self, worker: _Worker, message: Message) -> None:
        """They go to another, or to whom they came from, or wait."""
        for kept in self._owned(worker, message.names):
            worker.names.discard(kept.name)
            self._orphan(kept)
            kept.refused.add(worker.pid)
            if message.says == "failed":
                kept.failures += 1
        if message.says == "refused":
            if not worker.rest:
                self.log.warn(
                    "Worker {worker} has no descriptors left to take sessions of others over: they go elsewhere, or"
                    " wait. Raise the limit of open files.",
                    worker=worker.pid,
                )
            worker.rest = min(worker.rest * 2, _LONGEST_REST) if worker.rest else _FIRST_REST
            worker.rests_until = self._reactor.seconds() + worker.rest
            self._take_gifts_back(worker)
        self._give()

    def _owned(self, worker: _Worker, names: Iterable[str]) -> Iterable[_Kept]:
        """Those of `names` that are the worker's: what it says of others is out of date."""
        return [self._kept[name] for name in dict.fromkeys(names) if name in worker.names]

    def _forget(self, worker: _Worker, names: Iterable[str]) -> None:
        for kept in self._owned(worker, names):
            worker.names.discard(kept.name)
            del self._kept[kept.name]
            close_all(kept.descriptors)

    def _channel_lost(self, worker: _Worker) -> None:
        self._take_gifts_back(worker)
        self._give()
        if self._workers.get(worker.pid) is worker:  # else it has left
            self._lost(worker.pid)

    # Descriptors.

    def _is_full(self, descriptors: Collection[int]) -> bool:
        """
        Whether they are too many. The kernel gives the lowest number that is free (open(2)), so the highest of them
        tells how many there are.
        """
        limit = descriptor_limit()
        return bool(descriptors) and max(descriptors) >= limit - min(self._reserve, limit // 4)

    def _tell_lack(self) -> None:
        self._last_refusal = self._reactor.seconds()
        if not self._lacking:
            self._lacking = True
            self.log.warn(
                "Out of descriptors: {sessions} are held, and no more can be; those end if their worker does. Raise the"
                " limit of open files, which is {limit}.",
                sessions=counted(self.holding, "session"),
                limit=descriptor_limit(),
            )

    def _tell_well(self) -> None:
        if self._lacking and self._reactor.seconds() - self._last_refusal >= WELL_AFTER:
            self._lacking = False
            self.log.info("There are descriptors again: new sessions are held.")

    # Giving.

    def _orphan(self, kept: _Kept) -> None:
        kept.owner = None
        self._orphans[kept.name] = kept

    def _take_gifts_back(self, worker: _Worker) -> None:
        self._orphans.update(worker.gifts)
        worker.gifts.clear()

    def _given(self, worker: _Worker, name: str) -> None:
        worker.gifts.pop(name).owner = worker.pid
        worker.names.add(name)

    def _give(self) -> None:
        """Give the orphans to those that may have them: to whom has the fewest, first."""
        if self._paused or not self._orphans:
            return
        alive = {each.pid: each for each in self._workers.values() if not each.channel.is_lost}
        takers = {pid for pid, each in alive.items() if each.may_receive}
        now = self._reactor.seconds()
        ready = {pid for pid in takers if alive[pid].rests_until <= now}
        again: list[float] = [alive[pid].rests_until for pid in takers - ready]
        chosen: dict[int, _Worker] = {}
        for kept in list(self._orphans.values()):
            taker = self._taker(kept, alive, takers, ready)
            if taker is not None:
                taker.gifts[kept.name] = self._orphans.pop(kept.name)
                chosen[taker.pid] = taker
            elif kept.rests_until > now:
                again.append(kept.rests_until)
        self._stop_timer()
        if again and self._orphans:
            self._retry = self._reactor.callLater(max(min(again) - now, 0.0), self._try_again)
        # At last, as a channel may turn out to be lost, and this begin anew.
        for taker in chosen.values():
            taker.channel.send(taker)

    def _taker(
        self, kept: _Kept, alive: Mapping[int, _Worker], takers: set[int], ready: set[int]
    ) -> _Worker | None:
        """Who gets it; None: nobody yet."""
        if ready - kept.refused:
            return min((alive[pid] for pid in ready - kept.refused), key=lambda each: each.load)
        if takers - kept.refused:
            return None  # who rests at the moment may take it
        sender = kept.sender
        if sender is not None and sender in alive and sender not in kept.refused:
            return alive[sender]
        if not takers:
            return None
        if kept.failures >= _MOST_FAILURES:
            self._give_up(kept)
            return None
        # All were asked. What was wrong may be over soon.
        now = self._reactor.seconds()
        if not kept.rests_until:
            kept.rests_until = now + min(_FIRST_REST * 2**kept.failures, _LONGEST_REST)
        elif kept.rests_until <= now:
            kept.rests_until = 0.0
            kept.refused.clear()
            return min((alive[pid] for pid in ready), key=lambda each: each.load, default=None)
        return None

    def _give_up(self, kept: _Kept) -> None:
        self.log.error(
            "Session {session} is reset: no worker could take it over. What was wrong, they have told.",
            session=kept.name,
        )
        del self._kept[kept.name], self._orphans[kept.name]
        _abandon(kept.descriptors)

    def _try_again(self) -> None:
        self._retry = None
        self._give()

    def _stop_timer(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


def _abandon(descriptors: tuple[int, ...]) -> None:
    """Close them so that neither peer takes it for an end."""
    client, upstream, *pipes = descriptors
    for number in (client, upstream):
        with socket.socket(fileno=number) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    close_all(pipes)

"""
The worker processes of one supervisor: started, watched, replaced, asked.

A worker has a number, which its successor gets: its *slot*. One that dies is replaced at once, and later and later
where its successors die, too. Where sessions survive, a *spare* process waits to be the next. What workers are told to
relay, and what becomes of their sessions, is for `fwdrelay.workers.supervisor` to say.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from attrs import define
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from .._version import __version__
from ..errors import NotPossible, NotThere
from ..observe.snapshot import Counters, WorkerShown, moment
from ..words import counted
from .child import Child, spawn
from .merging import counted_only, merge_counters
from .renewal import is_whole
from .talk import Ask, Gone, Listen, Ping, Unlisten

READY_WITHIN = 60.0
"""Seconds that a process has from its start until it relays."""
PING_EVERY = 2.0
MISSED = 8
"""Pings in a row without an answer, after which a worker is dead to the world, and killed."""
COUNT_EVERY = 5
"""Pings from one look at what workers have counted to the next: what one had counted since is lost with it."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
"""
Seconds until a worker that has died is replaced; the first time it is done at once. Who was dealt to its socket
waits for as long.
"""
SPARE_AFTER = 5.0
"""Seconds until a spare process that has died is replaced."""
SOUND_AFTER = 10.0
"""Seconds that a worker has relayed, after which its death is not taken for one of a row."""
LOOP = 3
"""Deaths in a row that make a worker unwell."""
PATIENCE = 4.0
PATIENCE_WITH_MUTE = 0.5
"""Seconds that who asks all workers waits for each of them; and for one that owes answers already."""


class Ship(Protocol):
    """What a crew needs of its supervisor."""

    @property
    def wants_workers(self) -> bool:
        """Whether there are to be any."""

    def joined(self, child: Child, keeping: socket.socket) -> None:
        """There is a new process, with our end of its way to the keeper."""

    async def let_begin(self, child: Child) -> bool:
        """Tell it to relay. Answers whether it does; one that does not is ended by whoever answers."""

    def relays(self, child: Child) -> None:
        """It does."""

    def left(self, child: Child) -> None:
        """It has ended, and was reaped. What it had is anybody's."""

    def takes_over(self, slot: Slot, end: str) -> bool:
        """
        A worker has died, or can't be had; `end` says so in words. Answers whether somebody else sees to it that there
        is another one.
        """

    def hopeless(self, sentence: str) -> None:
        """No worker of that number can be had, from the start."""


@define(eq=False)
class Slot:
    """
    A worker, whichever process it is.

    @ivar number: from 1.
    @ivar child: the process that it is; None: there is none just now.
    @ivar deaths: in a row.
    @ivar restarts: how often it was replaced because it had died.
    @ivar starting: when the next process is started.
    """

    number: int
    child: Child | None = None
    deaths: int = 0
    restarts: int = 0
    starting: Any = None

    @property
    def relays(self) -> bool:
        """Whether its process does."""
        return self.child is not None and self.child.state == "running"

    def cancel(self) -> None:
        """Start none."""
        if self.starting is not None:
            self.starting.cancel()
            self.starting = None


class Crew:
    """
    @param count: how many workers there are to be.
    @param spares: whether a spare process is to wait.
    @param departed: what workers that were there before have counted.
    @ivar children: all processes there are, by pid.
    @ivar slots: the workers, by their numbers.
    @ivar spare: the process that waits.
    @ivar begun: whether all workers have once relayed at the same time.
    @ivar restarts: how often one was replaced because it had died.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, ship: Ship, count: int, *, spares: bool, departed: Counters
    ) -> None:
        self._reactor = reactor
        self._ship = ship
        self._spares = spares
        self._dismissed = False
        self._held_back = False
        self.children: dict[int, Child] = {}
        self.slots = [Slot(number + 1) for number in range(count)]
        self.spare: Child | None = None
        self.begun = False
        self.restarts = 0
        self.departed = departed
        self._numbers = iter(range(1, 1 << 62))
        self._listened: dict[int, tuple[str, tuple[Any, ...], Callable[[Any], object]]] = {}
        self._pinging = LoopingCall(self._ping)
        self._pinging.clock = reactor
        self._pings = 0
        self._was_unwell = ""
        self._all_gone: Deferred[None] | None = None

    # Who there is.

    @property
    def all_relay(self) -> bool:
        """Whether there is nobody missing."""
        return all(slot.relays for slot in self.slots)

    @property
    def settled(self) -> bool:
        """Whether nobody is missing, and nobody is about to come."""
        return self.all_relay and self.may_be_handed_on

    @property
    def may_be_handed_on(self) -> bool:
        """
        Whether another program could go on with them: some relay, and nobody is about to come. Some may be missing, as
        those do that die again and again, which new code may be the remedy for.
        """
        return any(slot.relays for slot in self.slots) and not self.is_filling

    @property
    def is_filling(self) -> bool:
        """Whether there is a process that does not relay yet, and is to."""
        return any(
            child.state not in ("running", "draining") and child is not self.spare
            for child in self.children.values()
        )

    @property
    def members(self) -> list[Child]:
        """Those that relay, or drain."""
        found = [c for c in self.children.values() if c.state in ("running", "draining")]
        return sorted(found, key=lambda child: (child.worker, child.started))

    @property
    def unwell(self) -> str:
        """A sentence, why not all is well; empty: it is. Of one that stops, workers are to leave."""
        if not self._ship.wants_workers:
            return ""
        looping = [slot for slot in self.slots if slot.deaths >= LOOP and not slot.relays]
        if looping:
            return "; ".join(
                f"worker {slot.number} has died {slot.deaths} times in a row" for slot in looping
            )
        if self.begun and not any(slot.relays for slot in self.slots):
            return "no worker relays just now"
        return ""

    @property
    def text(self) -> str:
        """What it does, in words."""
        sessions = sum(child.sessions for child in self.members)
        workers = counted(sum(slot.relays for slot in self.slots), "worker")
        text = f"with {workers}, {counted(sessions, 'session')} open"
        return f"{text}; {self.unwell}" if self.unwell else text

    def shown(self, kept_by: Callable[[int], int]) -> tuple[WorkerShown, ...]:
        """
        @param kept_by: how many sessions are kept for a pid.
        @return: the workers, then processes that were workers and drain. Of one that stops, those that are left.
        """
        current = {slot.child for slot in self.slots}
        leaving = [each for each in self.children.values() if each.worker and each not in current]
        slots = [slot for slot in self.slots if slot.child or self._ship.wants_workers]
        rows = [(slot.number, slot.child, slot.restarts) for slot in slots]
        rows += [(child.worker, child, 0) for child in leaving]
        return tuple(self._shown(*row, kept_by) for row in rows)

    def _shown(
        self, number: int, child: Child | None, restarts: int, kept_by: Callable[[int], int]
    ) -> WorkerShown:
        if child is None:
            return WorkerShown(
                worker=number, pid=None, state="ended", started=None, restarts=restarts,
                sessions=0, kept=0,
            )  # fmt: skip
        state = child.state
        return WorkerShown(
            worker=number,
            pid=child.pid,
            state=state if state in ("running", "draining", "ended") else "starting",
            started=moment(time.time() - (self._reactor.seconds() - child.started)),
            restarts=restarts,
            sessions=child.sessions,
            kept=kept_by(child.pid),
        )

    def slot_of(self, child: Child) -> Slot | None:
        """
        @return: that it is the process of.
        """
        return next((slot for slot in self.slots if slot.child is child), None)

    # Starting them.

    def start(self) -> None:
        """Have all of them."""
        self.watch()
        self.have_all()

    def hold_back(self) -> None:
        """Start none any more that dies again and again, until `have_all`."""
        self._held_back = True
        for slot in self.slots:
            if slot.deaths >= LOOP:
                slot.cancel()

    def have_all(self) -> None:
        """Have a process for each that has none, and is about to get none."""
        self._held_back = False
        for slot in self.slots:
            if slot.child is None and slot.starting is None:
                self.fill(slot)

    def watch(self) -> None:
        """See that those there are live."""
        self._pinging.start(PING_EVERY, now=False)

    def take_in(self, pid: int, talk: socket.socket) -> Child:
        """
        @param pid: a child of this process, of whichever program's before.
        """
        child = Child(
            self._reactor,
            pid,
            talk,
            ended=self._ended,
            said=self._waits,
            told=self._told,
        )
        self.children[pid] = child
        return child

    def _spawn(self) -> Child | None:
        try:
            pid, talk, keeping = spawn()
        except OSError as failed:
            self.log.error("A worker can't be started: {why}.", why=failed.strerror)
            return None
        child = self.take_in(pid, talk)
        self._ship.joined(child, keeping)
        self._reactor.callLater(READY_WITHIN, self._look_whether_late, child)
        return child

    def _look_whether_late(self, child: Child) -> None:
        if child.alive and child.state in ("starting", "beginning"):
            self.log.error(
                "Process {pid} is not ready after {seconds:g} s: killing it.",
                pid=child.pid,
                seconds=READY_WITHIN,
            )
            child.kill()

    def fill(self, slot: Slot) -> None:
        """Have a process for it."""
        slot.starting = None
        if not self._ship.wants_workers:
            return
        child, self.spare = self.spare, None
        if child is None:
            child = self._spawn()
        if child is None:
            if not self._ship.takes_over(slot, "can't be started"):
                self._fill_later(slot)
            return
        slot.child = child
        child.worker = slot.number
        if child.state == "waiting":
            self._begin(child)

    def _fill_later(self, slot: Slot) -> None:
        slot.deaths += 1
        if not self.begun and slot.deaths >= LOOP:
            self._ship.hopeless(f"worker {slot.number} can't be started: see above for why")
            return
        if self._held_back and slot.deaths >= LOOP:
            return
        pause = 0.0
        if slot.deaths > 1:
            pause = min(FIRST_PAUSE * 2.0 ** (slot.deaths - 2), LONGEST_PAUSE)
        if slot.deaths >= LOOP:
            self.log.error(
                "Worker {worker} has died {deaths} times in a row: it is started again in {pause:g} s.",
                worker=slot.number,
                deaths=slot.deaths,
                pause=pause,
            )
        slot.starting = self._reactor.callLater(pause, self.fill, slot)

    def _waits(self, child: Child) -> None:
        if child.worker:
            self._begin(child)

    def _begin(self, child: Child) -> None:
        child.state = "beginning"
        Deferred.fromCoroutine(self._let_begin(child)).addErrback(
            lambda failure: self.log.failure("A worker could not be told to begin", failure)
        )

    async def _let_begin(self, child: Child) -> None:
        if not await self._ship.let_begin(child):
            return
        child.state = "running"
        for number, (what, arguments, _) in self._listened.items():
            child.talk.tell(Listen, number=number, what=what, arguments=arguments)
        self._ship.relays(child)
        self.begun = self.begun or self.all_relay
        self.have_spare()

    def have_spare(self) -> None:
        """Where sessions survive, a process waits to go on with them at once."""
        wanted = self._spares and not self._dismissed and self._ship.wants_workers
        if wanted and self.spare is None and self.settled:
            self.spare = self._spawn()

    def want_spare(self) -> None:
        """Have one again."""
        self._dismissed = False
        self.have_spare()

    async def dismiss_spare(self) -> None:
        """Have none, and none that has not been reaped, until `want_spare`."""
        self._dismissed = True
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.kill()
            while spare.alive:
                await deferLater(self._reactor, 0.01)

    # Their end.

    def _ended(self, child: Child) -> None:
        self.children.pop(child.pid, None)
        self._ship.left(child)
        if child.counters is not None:
            self.departed = counted_only(merge_counters([self.departed, child.counters]))
        slot = self.slot_of(child)
        if child is self.spare:
            self.spare = None
            self._reactor.callLater(SPARE_AFTER, self.have_spare)
        elif slot is not None:
            slot.child = None
            if self._ship.wants_workers and not self._ship.takes_over(slot, child.end):
                self._replace(slot, child)
        else:
            self.have_spare()
        if child.drained and child.status:
            self.log.warn(
                "Worker {worker} ({pid}), which was leaving, {end}.",
                worker=child.worker,
                pid=child.pid,
                end=child.end,
            )
        if self._all_gone is not None and not self.children:
            gone, self._all_gone = self._all_gone, None
            gone.callback(None)

    def _replace(self, slot: Slot, child: Child) -> None:
        self.log.error(
            "Worker {worker} ({pid}) has died: it {end}; {next}.",
            worker=child.worker,
            pid=child.pid,
            end=child.end,
            next="the spare one goes on" if self.spare else "another one is started",
        )
        slot.restarts += 1
        self.restarts += 1
        if self._is_sound(child):
            slot.deaths = 0
        self._fill_later(slot)

    def _is_sound(self, child: Child) -> bool:
        age: float = self._reactor.seconds() - child.started
        return age >= SOUND_AFTER

    def all_gone(self) -> Deferred[None]:
        """
        @return: fires when there is no process any more.
        """
        gone: Deferred[None] = Deferred()
        if self.children:
            self._all_gone = gone
        else:
            gone.callback(None)
        return gone

    def stop(self) -> None:
        """Start and watch no more. Those there are go on."""
        for slot in self.slots:
            slot.cancel()

    def stop_pinging(self) -> None:
        """Nobody is left to be asked."""
        if self._pinging.running:
            self._pinging.stop()

    # Watching them.

    def _ping(self) -> None:
        self._pings += 1
        for child in self.members:
            child.missed += 1
            if child.missed > MISSED:
                self.log.error(
                    "Worker {worker} ({pid}) does not answer: killing it.",
                    worker=child.worker,
                    pid=child.pid,
                )
                child.kill()
            else:
                Deferred.fromCoroutine(self._ping_one(child)).addErrback(lambda failure: None)
        if self._pings % COUNT_EVERY == 0:
            Deferred.fromCoroutine(self.ask("counters")).addErrback(lambda failure: None)
        unwell = self.unwell
        if self._was_unwell and self.all_relay:
            workers = counted(len(self.slots), "worker")
            self.log.info("All is well again, with {workers}.", workers=workers)
            self._was_unwell = ""
        self._was_unwell = self._was_unwell or unwell
        for slot in self.slots:
            if slot.child is not None and slot.relays and self._is_sound(slot.child):
                slot.deaths = 0

    async def _ping_one(self, child: Child) -> None:
        answer = await child.talk.ask(Ping)
        child.missed = 0
        child.sessions, child.skipped = answer["sessions"], answer["skipped"]

    # Asking them.

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        """See `fwdrelay.workers.together.Supervised`, as for the two that follow."""
        members = self.members
        asked = [Deferred.fromCoroutine(self._ask(child, method, arguments)) for child in members]
        answers: list[Any] = await gatherResults(asked, consumeErrors=True).addErrback(_first)
        if method == "counters":
            for child, answer in zip(members, answers, strict=True):
                if answer is not None:
                    child.counters = answer
                    child.sessions = answer.totals.sessions
        return [answer for answer in answers if answer is not None]

    async def ask_first(self, method: str, *arguments: Any) -> Any:
        nothing: NotThere | None = None
        for child in self.members:
            try:
                answer = await self._ask(child, method, arguments)
            except NotThere as wrong:
                nothing = wrong
                continue
            if answer is not None:
                return answer
        raise nothing or NotPossible("no worker relays just now")

    async def _ask(self, child: Child, method: str, arguments: Iterable[Any]) -> Any:
        """
        @return: None: it can't answer, or does not for too long. It hears of it nonetheless, should it go on.
        """
        asked = Deferred.fromCoroutine(
            child.talk.ask(Ask, method=method, arguments=tuple(arguments))
        )
        asked.addTimeout(PATIENCE if child.missed <= 1 else PATIENCE_WITH_MUTE, self._reactor)
        try:
            answer = await asked
        except Gone:
            return None
        said = answer["answer"]
        if (method == "counters" or child.version != __version__) and not is_whole(said):
            return None  # an old one that drains says it in another form
        return said

    def listen(
        self, what: str, arguments: tuple[Any, ...], tell: Callable[[Any], object]
    ) -> Callable[[], None]:
        number = next(self._numbers)
        self._listened[number] = what, arguments, tell
        for child in self.members:
            child.talk.tell(Listen, number=number, what=what, arguments=arguments)

        def stop() -> None:
            if self._listened.pop(number, None) is not None:
                for child in self.members:
                    child.talk.tell(Unlisten, number=number)

        return stop

    def _told(self, number: int, event: Any) -> None:
        found = self._listened.get(number)
        if found is not None:
            found[2](event)


def _first(failure: Any) -> Any:
    """What went wrong with the first, as if it had been the only one."""
    failure.value.subFailure.raiseException()

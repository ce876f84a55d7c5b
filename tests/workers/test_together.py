"""`fwdrelay.workers.together`: all workers as their API sees them. Workers are made up here, and die."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from fwdrelay.admin import Administered
from fwdrelay.admin.metrics import families
from fwdrelay.errors import NotPossible, NotThere
from fwdrelay.networks import Networks
from fwdrelay.observe.feed import MOST, SessionEvent
from fwdrelay.observe.snapshot import (
    NO_TOTALS,
    Counters,
    Outcome,
    PoolShown,
    RelayState,
    SessionShown,
    SessionsShown,
    SessionsWanted,
    Status,
    TargetShown,
    Totals,
    WorkerShown,
)
from fwdrelay.observe.trace import TraceStep
from fwdrelay.workers.merging import counted_only, merge_counters, nothing_counted
from fwdrelay.workers.together import Supervised, Together
from tests.admin.relays import OPENED, POOL, SESSION, STATUS, STEP, TARGET
from tests.case import SynchronousTestCase
from tests.workers.test_merging import counters, histogram, listener, target


@define
class Worker:
    """
    What a worker's `Steering` is asked.

    @ivar bytes_up: that it has relayed.
    @ivar ended: sessions that have ended.
    @ivar open: sessions that are open, by name.
    @ivar targets: that it has found.
    @ivar slow: what its answers wait for.
    """

    number: int
    bytes_up: int = 0
    ended: int = 0
    open: list[SessionShown] = field(factory=list)
    targets: tuple[TargetShown, ...] = (TARGET,)
    steered: list[Any] = field(factory=list)
    slow: Deferred[None] | None = None

    async def status(self) -> Status:
        return STATUS

    async def counters(self) -> Counters:
        told = self.counted()
        if self.slow is not None:
            await self.slow
        return told

    def counted(self) -> Counters:
        """What `counters` answers."""
        open_, all_of_them = len(self.open), len(self.open) + self.ended
        return counters(
            listener(
                active=open_,
                ended={("web", "done"): self.ended},
                bytes_up=self.bytes_up,
                seconds=histogram(*[0.02] * self.ended),
                let_in=all_of_them,
            ),
            target(sessions=open_, dial_failures={"tls": self.ended}),
            queues={"web": 1},
            totals=Totals(
                sessions=open_,
                sessions_total=all_of_them,
                rejected_total=0,
                bytes_up=self.bytes_up,
                bytes_down=0,
            ),
        )

    async def sessions(self, wanted: SessionsWanted) -> SessionsShown:
        if wanted.client == "nobody":
            raise ValueError("'nobody' is not a client")
        found = self.open[: wanted.limit or None]
        return SessionsShown(sessions=tuple(found), count=len(self.open))

    async def end_session(self, session: str) -> SessionShown:
        for each in self.open:
            if each.session == session:
                self.open.remove(each)
                return each
        raise NotThere(f"there is no open session {session!r}")

    async def pools(self) -> tuple[PoolShown, ...]:
        return (evolve(POOL, targets=self.targets),)

    async def steer_target(
        self, pool: str, target: str, state: Any, weight: int | None
    ) -> TargetShown:
        for each in self.targets:
            if (pool, target) == (POOL.name, each.name):
                self.steered.append((target, state, weight))
                return evolve(each, state=state or each.state, weight=weight or each.weight)
        raise NotThere(f"pool {pool!r} has no target {target!r}")

    async def steer_if_there(self, *asked: Any) -> TargetShown | None:
        try:
            return await self.steer_target(*asked)
        except NotThere:
            return None


@define
class FakeSupervised:
    """
    A `Supervised`.

    @ivar living: its workers.
    @ivar last: what each has counted, when it was asked last.
    @ivar listening: who listens to what.
    """

    living: list[Worker] = field(factory=list)
    state: RelayState = "running"
    started: float = 1767323045.678
    reloads: Counter[str] = field(factory=Counter)
    last_reload: tuple[float, str] | None = None
    restarts: int = 0
    refused: int = 0
    unwell: str = ""
    departed: Counters = field(factory=nothing_counted)
    events_skipped: int = 3
    last: dict[int, Counters] = field(factory=dict)
    asked: list[Any] = field(factory=list)
    listening: list[tuple[str, tuple[Any, ...], Callable[[Any], object]]] = field(factory=list)

    def workers(self) -> tuple[WorkerShown, ...]:
        return tuple(
            WorkerShown(
                worker=each.number,
                pid=os.getpid(),
                state="running",
                started="2026-01-02T03:04:05.678Z",
                restarts=0,
                sessions=len(each.open),
                kept=sum(session.kept for session in each.open),
            )
            for each in self.living
        )

    async def ask(self, method: str, *arguments: Any) -> list[Any]:
        answers = []
        for worker in list(self.living):
            answer = await getattr(worker, method)(*arguments)
            if method == "counters" and worker in self.living:
                self.last[worker.number] = answer
            if answer is not None:
                answers.append(answer)
        return answers

    async def ask_first(self, method: str, *arguments: Any) -> Any:
        nothing = NotThere("there is nobody")
        for worker in self.living:
            try:
                return await getattr(worker, method)(*arguments)
            except NotThere as wrong:
                nothing = wrong
        raise nothing

    def reload(self) -> Awaitable[Outcome]:
        self.asked.append("reload")
        return succeed(Outcome(True, "nothing"))

    def check(self) -> Awaitable[Outcome]:
        self.asked.append("check")
        return succeed(Outcome(False, errors=("a",)))

    def drain(self, *, now: bool = False) -> None:
        self.asked.append("cut" if now else "drain")

    def listen(
        self, what: str, arguments: tuple[Any, ...], tell: Callable[[Any], object]
    ) -> Callable[[], None]:
        listening = what, arguments, tell
        self.listening.append(listening)
        return lambda: self.listening.remove(listening)

    def die(self, worker: Worker) -> None:
        """It is killed: of what it has counted, what it told last is known."""
        self.living.remove(worker)
        last = self.last.pop(worker.number, None)
        if last is not None:
            self.departed = merge_counters([self.departed, counted_only(last)])


_: type[Supervised] = FakeSupervised


def session(name: str, started: int, **fields: Any) -> SessionShown:
    """One that has begun in that second."""
    when = f"2026-01-02T03:04:{started:02}.000Z"
    return evolve(SESSION, session=name, started=when, **fields)


class TogetherTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.one, self.two = Worker(1), Worker(2)
        self.supervised = FakeSupervised([self.one, self.two])
        self.together = Together(self.supervised, self.clock)

    def of(self, asked: Awaitable[Any]) -> Any:
        """What comes of it."""
        return self.successResultOf(Deferred.fromCoroutine(asked))  # type: ignore[arg-type]

    def wrong(self, asked: Awaitable[Any], kind: type[Exception]) -> str:
        """The sentence with which it fails."""
        failed = self.failureResultOf(Deferred.fromCoroutine(asked), kind)  # type: ignore[arg-type]
        return str(failed.value)


class SeeingTests(TogetherTestCase):
    def test_it_is_what_the_api_asks(self) -> None:
        administered: Administered = self.together
        self.assertEqual((administered.state, administered.unwell), ("running", ""))
        self.supervised.unwell = "worker 2 has died"
        self.assertEqual(administered.unwell, "worker 2 has died")

    def test_status(self) -> None:
        self.one.bytes_up, self.one.ended, self.one.open = 10, 1, [session("s-1", 1)]
        self.two.bytes_up, self.two.ended = 5, 2
        self.supervised.departed = counters(
            listener(bytes_up=100, let_in=4, rejected={"rate": 1}),
            totals=evolve(NO_TOTALS, bytes_up=1000, sessions_total=9),
        )
        self.supervised.reloads.update({"success": 2, "failure": 1})
        self.supervised.last_reload = 1767323046.0, "failure"
        self.supervised.unwell = "worker 2 has died"
        self.clock.advance(5)
        status = self.of(self.together.status())
        (web,) = status.listeners
        (as_it_is,) = STATUS.listeners
        self.assertEqual(
            web,
            evolve(
                as_it_is,
                sessions=1,
                sessions_total=8,
                rejected_total=1,
                bytes_up=115,
                bytes_down=0,
            ),
        )
        self.assertEqual(
            status.totals,
            Totals(sessions=1, sessions_total=13, rejected_total=0, bytes_up=1015, bytes_down=0),
        )
        self.assertEqual(status.workers, self.supervised.workers())
        self.assertEqual(status.unwell, "worker 2 has died")
        self.assertEqual((status.pid, status.started), (os.getpid(), "2026-01-02T03:04:05.678Z"))
        self.assertEqual(
            (status.reloads.success, status.reloads.failure, status.reloads.last_result),
            (2, 1, "failure"),
        )
        self.assertEqual(status.reloads.last, "2026-01-02T03:04:06.000Z")
        self.clock.advance(1.5)
        self.assertEqual(round(self.of(self.together.status()).uptime - status.uptime, 3), 1.5)

    def test_what_the_supervisor_knows_is_counted_there(self) -> None:
        self.supervised.restarts, self.supervised.refused = 4, 5
        self.supervised.reloads["success"] = 6
        self.supervised.last_reload = 1.0, "failure"
        self.supervised.state = "draining"
        told = self.of(self.together.counters())
        self.assertEqual((told.worker_restarts, told.registrations_refused), (4, 5))
        self.assertEqual((told.reloads, told.last_reload_failed), ({"success": 6}, True))
        self.assertEqual((told.draining, told.queues), (True, {"web": 2}))
        self.assertEqual(told.workers, self.supervised.workers())
        self.supervised.last_reload = 2.0, "success"
        self.assertFalse(self.of(self.together.counters()).last_reload_failed)

    def test_sessions(self) -> None:
        self.one.open = [session("a", 3), session("b", 9)]
        self.two.open = [session("c", 1), session("d", 5)]
        shown = self.of(self.together.sessions(SessionsWanted(limit=3)))
        self.assertEqual([each.session for each in shown.sessions], ["c", "a", "d"])
        self.assertEqual(shown.count, 4)
        self.assertEqual(
            self.wrong(self.together.sessions(SessionsWanted(client="nobody")), ValueError),
            "'nobody' is not a client",
        )

    def test_pools(self) -> None:
        self.two.targets = (evolve(TARGET, up=False, cause="refused"),)
        ((found,),) = [pool.targets for pool in self.of(self.together.pools())]
        self.assertEqual((found.up, found.cause, found.sessions), (False, "refused", 2))

    def test_nobody_is_there(self) -> None:
        self.supervised.living = []
        status = self.of(self.together.status())
        self.assertEqual((status.listeners, status.totals.sessions), ((), 0))
        self.assertEqual(self.of(self.together.pools()), ())
        self.assertEqual(self.of(self.together.sessions(SessionsWanted())).count, 0)


class ActingTests(TogetherTestCase):
    def test_a_session_is_ended_wherever_it_is(self) -> None:
        self.two.open = [session("s-1", 1)]
        self.assertEqual(self.of(self.together.end_session("s-1")).session, "s-1")
        self.assertEqual(self.two.open, [])
        self.assertEqual(
            self.wrong(self.together.end_session("s-1"), NotThere),
            "there is no open session 's-1'",
        )

    def test_a_target_is_steered_everywhere(self) -> None:
        found = self.of(self.together.steer_target("web", TARGET.name, "drain", None))
        self.assertEqual((found.state, found.sessions), ("drain", 2))
        for each in (self.one, self.two):
            self.assertEqual(each.steered, [(TARGET.name, "drain", None)])

    def test_one_that_not_all_have_found(self) -> None:
        late = evolve(TARGET, name="late")
        self.two.targets = (TARGET, late)
        found = self.of(self.together.steer_target("web", "late", None, 5))
        self.assertEqual((found.name, found.weight), ("late", 5))
        self.assertEqual((self.one.steered, self.two.steered), ([], [("late", None, 5)]))

    def test_one_that_nobody_has(self) -> None:
        self.assertEqual(
            self.wrong(self.together.steer_target("web", "x", "drain", None), NotThere),
            "pool 'web' has no target 'x'",
        )
        self.assertEqual(self.together.steered, {})

    def test_what_is_wanted_of_targets_is_remembered_for_workers_to_come(self) -> None:
        for state, weight in (("drain", None), (None, 7), ("down", None)):
            self.of(self.together.steer_target("web", TARGET.name, state, weight))  # type: ignore[arg-type]
        self.assertEqual(self.together.steered, {("web", TARGET.name): ("down", 7)})

    def test_the_whole(self) -> None:
        self.assertEqual(self.of(self.together.reload()), Outcome(True, "nothing"))
        self.assertEqual(self.of(self.together.check()), Outcome(False, errors=("a",)))
        self.together.drain()
        self.together.drain(now=True)
        self.assertEqual(self.supervised.asked, ["reload", "check", "drain", "cut"])

    def test_one_that_stops_does_not_reload(self) -> None:
        self.supervised.state = "draining"
        self.assertIn("is stopping", self.wrong(self.together.reload(), NotPossible))
        self.assertEqual(self.supervised.asked, [])


class ListeningTests(TogetherTestCase):
    def tell(self, event: SessionEvent) -> None:
        """As a worker does."""
        for what, _, tell in list(self.supervised.listening):
            if what == "events":
                tell(event)

    def test_several_share_what_the_workers_tell(self) -> None:
        heard: list[list[Any]] = [[], []]
        leave = [self.together.subscribe(each.append) for each in heard]
        self.assertEqual([what for what, *_ in self.supervised.listening], ["events"])
        self.tell(OPENED)
        leave[0]()
        leave[0]()
        self.tell(OPENED)
        self.assertEqual([len(each) for each in heard], [1, 2])
        leave[1]()
        self.assertEqual(self.supervised.listening, [])
        self.together.subscribe(heard[0].append)()
        self.assertEqual(self.supervised.listening, [])

    def test_no_more_is_told_than_of_one_process(self) -> None:
        heard: list[Any] = []
        self.addCleanup(self.together.subscribe(heard.append))
        for _ in range(MOST + 5):
            self.tell(OPENED)
        self.assertEqual((len(heard), self.together.events_skipped), (MOST, 5 + 3))
        self.clock.advance(1)
        self.tell(OPENED)
        self.assertEqual(len(heard), MOST + 1)

    def test_traces(self) -> None:
        clients, heard = Networks([]), list[TraceStep]()
        leave = self.together.trace(clients, heard.append)
        ((what, arguments, tell),) = self.supervised.listening
        self.assertEqual((what, arguments), ("trace", (clients,)))
        tell(STEP)
        self.assertEqual(heard, [STEP])
        leave()
        self.assertEqual(self.supervised.listening, [])


def scraped(told: Counters) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All series that never go back, but for those of a worker's own process."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(told)
        if family.type in ("counter", "histogram")
        for sample in family.samples
        if "worker" not in sample.labels
    }


class DyingTests(TogetherTestCase):
    """Counters never go back while workers come and go."""

    def test_what_one_has_counted_stays(self) -> None:
        self.one.bytes_up, self.one.ended, self.one.open = 10, 1, [session("s-1", 1)]
        self.two.bytes_up = 5
        before = self.of(self.together.counters())
        self.supervised.die(self.one)
        after = self.of(self.together.counters())
        self.assertEqual(scraped(after), scraped(before))
        ((web,), (found,)) = after.listeners, after.targets
        self.assertEqual((web.active, found.sessions, after.queues), (0, 0, {"web": 1}))
        self.supervised.living.append(Worker(1, bytes_up=1))
        (web,) = self.of(self.together.counters()).listeners
        self.assertEqual(web.bytes_up, 16)

    def test_one_whose_counters_nobody_has_kept(self) -> None:
        self.one.bytes_up = 10
        self.two.bytes_up = 5
        self.of(self.together.counters())
        self.supervised.last.clear()
        self.supervised.die(self.one)
        for relayed, expected in ((5, 15), (12, 15), (16, 16)):
            self.two.bytes_up = relayed
            (web,) = self.of(self.together.counters()).listeners
            self.assertEqual(web.bytes_up, expected)

    def test_all_of_them(self) -> None:
        self.one.bytes_up, self.one.ended, self.one.open = 10, 1, [session("s-1", 1)]
        before = self.of(self.together.counters())
        for each in (self.one, self.two):
            self.supervised.die(each)
        meanwhile = self.of(self.together.counters())
        self.assertEqual(scraped(meanwhile), scraped(before))
        self.assertEqual((meanwhile.listeners[0].active, meanwhile.queues), (0, {}))
        self.supervised.living.append(Worker(1, bytes_up=1))
        (web,) = self.of(self.together.counters()).listeners
        self.assertEqual((web.bytes_up, web.let_in), (11, 2))

    def test_one_that_dies_behind_its_answer_is_not_counted_twice(self) -> None:
        self.one.bytes_up, self.two.bytes_up = 10, 5
        self.of(self.together.counters())
        self.two.slow = Deferred()
        asked = Deferred.fromCoroutine(self.together.counters())
        self.assertNoResult(asked)
        self.supervised.die(self.one)
        self.two.slow.callback(None)
        (web,) = self.successResultOf(asked).listeners
        self.assertEqual(web.bytes_up, 15)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("relay", "open", "end", "die", "start", "ask", "status")),
                st.integers(0, 3),
            ),
            max_size=40,
        )
    )
    def test_whatever_happens(self, story: list[tuple[str, int]]) -> None:
        one, supervised = Worker(1), FakeSupervised()
        supervised.living.append(one)
        together = Together(supervised, Clock())
        before: dict[Any, float] = {}
        for number, (what, which) in enumerate([*story, ("ask", 0)]):
            if what == "start":
                supervised.living.append(Worker(number + 2))
            elif what == "ask":
                now = scraped(self.of(together.counters()))
                for series, value in before.items():
                    self.assertGreaterEqual(now[series], value, series)
                before = now
            elif what == "status":
                totals = self.of(together.status()).totals
                self.assertGreaterEqual(totals.bytes_up, sum(w.bytes_up for w in supervised.living))
            elif supervised.living:
                worker = supervised.living[which % len(supervised.living)]
                if what == "relay":
                    worker.bytes_up += 1 + which
                elif what == "open":
                    worker.open.append(session(f"s-{number}", number))
                elif what == "end" and worker.open:
                    worker.open.pop()
                    worker.ended += 1
                elif what == "die":
                    supervised.die(worker)

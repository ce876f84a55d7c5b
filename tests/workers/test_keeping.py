"""`fwdrelay.workers.keeping`, talked to by a keeper that says what a test wants it to, and by a real one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from fwdrelay.session.lifecycle import State
from fwdrelay.session.portable import PortableSession
from fwdrelay.workers import keeper as keeper_module
from fwdrelay.workers.keeper import Keeper
from fwdrelay.workers.keeping import AGE, REFUSED_FOR, Keeping, Movable
from fwdrelay.workers.passing import Channel, Message, Says, close_all
from tests.case import SynchronousTestCase, open_descriptors
from tests.workers.turns import Outside, Turns, pair


class Moved:
    """
    A session in one of the processes.

    @ivar keepable: whether an attempt to keep it works.
    @ivar done: what was done with it.
    """

    def __init__(self, name: str, descriptors: tuple[int, int, int, int]) -> None:
        self.name = name
        self.state = State.RELAYING
        self.may_move = True
        self.kept = False
        self.keepable = True
        self.descriptors = descriptors
        self.done: list[str] = []
        self.when_kept: Callable[[], object] = lambda: None
        self.when_detached: Callable[[], object] = lambda: None

    def keep(self) -> tuple[int, int, int, int] | None:
        assert self.state is State.RELAYING
        self.when_kept()
        self.kept = self.keepable
        return self.descriptors if self.kept else None

    def unkeep(self) -> None:
        self.kept = False
        self.done.append("unkept")

    def portable(self) -> PortableSession:
        assert self.kept
        return PortableSession(session=self.name, listener="main", client="192.0.2.1:1")

    def detach(self) -> None:
        assert self.kept
        assert self.state is State.RELAYING
        self.when_detached()
        self.done.append("detached")
        self.close()

    def close(self) -> None:
        """It is over here."""
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.kept = False
            close_all(self.descriptors)


class KeepingTestCase(SynchronousTestCase):
    survive = True

    def setUp(self) -> None:
        self.turns = Turns()
        ours, theirs = pair()
        self.lost: list[str] = []
        self.adopted: list[Moved] = []
        self.heard: list[Message] = []
        self.serials: list[int] = []
        self.keeping = Keeping(
            self.turns, theirs, self.adopt, self.survive, lambda: self.lost.append("lost")
        )
        self.addCleanup(self.keeping.stop)
        self.keeper = Channel(self.turns, ours, self.received, lambda: None)
        self.addCleanup(self.keeper.close)

    def adopt(self, portable: PortableSession, descriptors: tuple[int, int, int, int]) -> Movable:
        session = Moved(portable.session, descriptors)
        session.kept = True
        self.addCleanup(session.close)
        self.adopted.append(session)
        return session

    def received(self, message: Message) -> None:
        self.heard.append(message)
        close_all(message.descriptors)

    def session(self, name: str) -> Moved:
        outside = Outside(name)
        self.addCleanup(outside.close)
        session = Moved(name, outside.descriptors)
        self.addCleanup(session.close)
        return session

    def sessions(self, count: int) -> list[Moved]:
        return [self.session(f"s-{number}") for number in range(count)]

    def hears(self) -> list[tuple[Says, tuple[str, ...]]]:
        """What the keeper has heard since this was asked the last time."""
        self.turns.settle()
        heard, self.heard = self.heard, []
        self.serials += [each.serial for each in heard if each.serial]
        return [(each.says, each.names) for each in heard]

    def say(self, says: Says, *names: str, serial: int | None = None) -> None:
        """Say something, in answer to what was heard last, unless it is to something else."""
        self.turns.settle()
        serials = [*self.serials, *(each.serial for each in self.heard if each.serial)]
        if serial is None and says in ("taken", "refused"):
            serial = serials[-1]
        self.keeper.say(says, names, serial or 0)
        self.turns.settle()

    def wait(self, seconds: float) -> None:
        """Time passes, in small steps."""
        self.turns.settle()
        self.turns.pump([0.05] * round(seconds / 0.05))
        self.turns.settle()

    def give(self, *names: str, text: str | None = None) -> list[Outside]:
        outsides = [Outside(name) for name in names]
        texts = tuple(each.text if text is None else text for each in outsides)
        message = Message(
            says="give",
            names=names,
            texts=texts,
            descriptors=tuple(number for each in outsides for number in each.descriptors),
        )
        to_write: list[Message | None] = [message]
        outbox = mock.Mock()
        outbox.write = lambda most: to_write[0]
        outbox.sent = lambda message: to_write.__setitem__(0, None)
        self.keeper.send(outbox)
        for each in outsides:
            self.addCleanup(each.close)
            close_all(each.descriptors)
        self.turns.settle()
        return outsides


class RegistrationTests(KeepingTestCase):
    def test_after_a_moment(self) -> None:
        one, two = self.sessions(2)
        self.keeping.relaying(one)
        self.wait(AGE / 2)
        self.keeping.relaying(two)
        self.assertEqual(self.hears(), [])
        self.wait(AGE * 2)
        self.assertEqual(self.hears(), [("register", ("s-0",)), ("register", ("s-1",))])
        self.assertTrue(one.kept)
        self.assertEqual(self.keeping.kept_count, 2)
        self.assertEqual(self.turns.getDelayedCalls(), [])

    def test_together(self) -> None:
        for each in self.sessions(70):
            self.keeping.relaying(each)
        self.wait(1)
        self.assertEqual([len(names) for _, names in self.hears()], [60, 10])

    def test_short_ones_never(self) -> None:
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        one.close()
        self.wait(5)
        self.assertEqual(self.hears(), [])
        self.assertEqual(self.keeping.kept_count, 0)

    def test_released(self) -> None:
        one, two, three = self.sessions(3)
        for each in (one, two, three):
            self.keeping.relaying(each)
        self.wait(1)
        self.hears()
        for each in (one, two):
            self.keeping.ended(each)
            each.close()
        self.assertEqual(self.hears(), [("release", ("s-0", "s-1"))])
        self.assertEqual(self.keeping.kept_count, 1)

    def test_released_after_it_was_registered(self) -> None:
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.turns.pump([0.25, 0.5])
        self.keeping.ended(one)
        one.close()
        self.assertEqual(self.hears(), [("register", ("s-0",)), ("release", ("s-0",))])

    def test_ended_before_it_could_be_sent(self) -> None:
        one, two = self.sessions(2)
        self.keeping.relaying(one)
        self.keeping.relaying(two)
        self.keeping._channel.pause()
        self.wait(1)
        self.keeping.ended(one)
        one.close()
        self.keeping._channel.resume()
        self.assertEqual(self.hears(), [("register", ("s-1",))])
        self.assertEqual(self.keeping.kept_count, 1)

    def test_what_never_moves_is_not_asked_for_ever(self) -> None:
        (one,) = self.sessions(1)
        one.may_move = False
        self.keeping.relaying(one)
        for _ in range(20):
            self.turns.advance(30)
        self.assertEqual(self.turns.getDelayedCalls(), [])
        self.assertEqual(self.hears(), [])

    def test_what_may_move_later(self) -> None:
        (one,) = self.sessions(1)
        one.may_move = False
        self.keeping.relaying(one)
        self.wait(3)
        one.may_move = True
        self.wait(5)
        self.assertEqual(self.hears(), [("register", ("s-0",))])

    def test_what_can_be_kept_later(self) -> None:
        (one,) = self.sessions(1)
        one.keepable = False
        self.keeping.relaying(one)
        for _ in range(100):
            self.turns.advance(30)
        self.assertEqual(self.hears(), [])
        one.keepable = True
        self.turns.advance(30)
        self.turns.advance(30)
        self.assertEqual(self.hears(), [("register", ("s-0",))])

    def test_a_new_one_does_not_wait_for_others_pauses(self) -> None:
        one, two = self.sessions(2)
        one.keepable = False
        self.keeping.relaying(one)
        for _ in range(10):
            self.turns.advance(30)
        self.keeping.relaying(two)
        self.wait(1)
        self.assertEqual(self.hears(), [("register", ("s-1",))])

    def test_one_that_fails_costs_others_nothing(self) -> None:
        def fail() -> None:
            raise LookupError

        one, two = self.sessions(2)
        one.when_kept = fail
        self.keeping.relaying(one)
        self.keeping.relaying(two)
        self.wait(0.7)
        self.assertEqual(self.hears(), [("register", ("s-1",))])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_refused(self) -> None:
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.wait(1)
        self.hears()
        self.say("refused", "s-0", "unknown")
        self.assertFalse(one.kept)
        self.assertEqual(self.keeping.kept_count, 0)
        self.turns.advance(REFUSED_FOR - 1)
        self.assertEqual(self.hears(), [])
        self.turns.advance(1)
        self.turns.advance(0.25)
        self.assertEqual(self.hears(), [("register", ("s-0",))])

    def test_refused_and_over(self) -> None:
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.wait(1)
        self.say("refused", "s-0")
        one.close()
        self.turns.advance(100)
        self.assertEqual(self.hears()[1:], [])

    def test_kept_no_more(self) -> None:
        """Something came that a kept session can't pass on; it is kept again later."""
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.wait(1)
        self.hears()
        self.keeping.ended(one)
        self.keeping.relaying(one)
        self.assertEqual(self.hears(), [("release", ("s-0",))])
        self.wait(1)
        self.assertEqual(self.hears(), [("register", ("s-0",))])

    def test_released_before_it_is_registered_again(self) -> None:
        """Though the channel was full for long."""
        one, two = self.sessions(2)
        self.keeping.relaying(one)
        self.wait(1)
        self.hears()
        self.keeping._channel.pause()
        self.keeping.relaying(two)
        self.wait(1)  # a registration waits in the channel
        self.keeping.ended(one)
        self.keeping.relaying(one)
        self.wait(1)  # ... and the same one takes this in
        self.keeping._channel.resume()
        self.wait(2)
        said = [(says, name) for says, names in self.hears() for name in names if name == "s-0"]
        self.assertEqual(said, [("release", "s-0"), ("register", "s-0")])

    def test_lost_in_an_attempt_to_keep_it_again(self) -> None:
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.wait(1)
        one.keepable = False
        self.keeping.hand_over([one])
        self.assertEqual(self.hears(), [("register", ("s-0",)), ("release", ("s-0",))])
        one.keepable = True
        one.may_move = False

    def test_survival_is_turned_off_and_on(self) -> None:
        one, two, three = self.sessions(3)
        self.keeping.relaying(one)
        self.keeping.survive = False
        self.keeping.relaying(two)
        self.wait(1)
        self.assertEqual(self.hears(), [])
        self.keeping.survive = True
        self.keeping.relaying(three)
        self.wait(1)
        self.assertEqual(self.hears(), [("register", ("s-2",))])

    def test_the_keeper_dies(self) -> None:
        one, two = self.sessions(2)
        self.keeping.relaying(one)
        self.wait(1)
        self.keeping.relaying(two)
        self.keeper.close()
        self.wait(1)
        self.assertEqual(self.lost, ["lost"])
        self.assertTrue(self.keeping.is_lost)
        self.assertTrue(one.kept)  # which is no harm
        self.keeping.ended(one)
        self.keeping.relaying(two)
        self.turns.settle()
        self.assertEqual(self.turns.getDelayedCalls(), [])
        self.assertEqual(self.successResultOf(self.keeping.hand_over([two])), 1)

    def test_stop_tells_of_those_that_have_ended(self) -> None:
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.wait(1)
        self.hears()
        self.keeping.ended(one)
        self.keeping.stop()
        self.assertEqual(self.hears(), [("release", ("s-0",))])
        self.assertEqual(self.turns.getDelayedCalls(), [])


class NotSurvivingTests(KeepingTestCase):
    survive = False

    def test_nothing_is_registered(self) -> None:
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.assertEqual(self.turns.getDelayedCalls(), [])

    def test_adopted_until_nobody_holds_it(self) -> None:
        self.give("a")
        (one,) = self.adopted
        self.assertEqual(self.hears(), [("adopted", ("a",))])
        self.assertTrue(one.kept)
        self.say("yours", "a")
        self.assertFalse(one.kept)
        self.assertEqual(self.keeping.kept_count, 0)
        self.wait(2)
        self.assertEqual(self.hears(), [])


class AdoptionTests(KeepingTestCase):
    def test_adopted(self) -> None:
        a, b = self.give("a", "b")
        self.assertEqual([each.name for each in self.adopted], ["a", "b"])
        self.assertTrue(a.is_of(self.adopted[0].descriptors))
        self.assertTrue(b.is_of(self.adopted[1].descriptors))
        self.assertEqual(self.hears(), [("adopted", ("a", "b"))])
        self.assertEqual(self.keeping.kept_count, 2)
        self.wait(5)
        self.assertEqual(self.hears(), [])

    def test_registered_again_where_it_is_not_held(self) -> None:
        self.give("a")
        self.say("yours", "a", "unknown")
        self.hears()
        self.wait(1)
        self.assertEqual(self.hears(), [("register", ("a",))])

    def test_ends_while_it_is_adopted(self) -> None:
        adopt = self.adopt

        def ends(portable: PortableSession, descriptors: Any) -> Movable:
            session = adopt(portable, descriptors)
            self.keeping.ended(session)
            self.adopted[0].close()
            return session

        self.keeping._adopt = ends
        (outside,) = self.give("a")
        self.assertEqual(self.hears(), [("adopted", ("a",)), ("release", ("a",))])
        self.assertEqual(self.keeping.kept_count, 0)
        self.assertFalse(outside.is_held())

    def test_one_that_fails_is_told_of(self) -> None:
        adopt = self.adopt

        def fails(portable: PortableSession, descriptors: Any) -> Movable:
            if portable.session == "b":
                close_all(descriptors)
                raise LookupError
            return adopt(portable, descriptors)

        self.keeping._adopt = fails
        self.give("a", "b", "c")
        self.assertEqual(self.hears(), [("adopted", ("a", "c")), ("failed", ("b",))])
        self.assertEqual(self.keeping.kept_count, 2)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_one_that_is_not_understood_is_told_of(self) -> None:
        (outside,) = self.give("a", text="[]")
        self.assertEqual(self.hears(), [("failed", ("a",))])
        self.assertFalse(outside.is_held())
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_without_descriptors(self) -> None:
        outside = Outside("a")
        self.addCleanup(outside.close)
        close_all(outside.descriptors)
        data = Message(says="give", names=("a",), texts=(outside.text,)).encode()
        os.write(self.keeper.fileno(), data)
        self.assertEqual(self.hears(), [("refused", ("a",))])
        self.assertEqual(self.adopted, [])

    def test_what_is_not_the_keepers_to_say(self) -> None:
        before = open_descriptors()
        self.say("release", "a")
        self.assertEqual(open_descriptors(), before)


class HandingOverTests(KeepingTestCase):
    survive = False

    def hand_over(self, *sessions: Moved) -> Deferred[int]:
        return self.keeping.hand_over(sessions)

    def test_detached_when_it_is_held(self) -> None:
        one, two = self.sessions(2)
        done = self.hand_over(one, two)
        self.assertEqual(self.hears(), [("hand-over", ("s-0", "s-1"))])
        self.assertNoResult(done)
        self.assertEqual(one.done, [])
        self.say("taken", "s-0", "s-1")
        self.assertEqual(self.hears(), [("let-go", ("s-0", "s-1"))])
        self.assertEqual((one.done, two.done), (["detached"], ["detached"]))
        self.assertEqual(self.successResultOf(done), 0)
        self.assertEqual(self.keeping.kept_count, 0)

    def test_many_in_windows(self) -> None:
        sessions = self.sessions(500)
        done = self.hand_over(*sessions)
        handed = 0
        results: list[int] = []
        done.addCallback(results.append)
        for _ in range(100):
            for says, names in self.hears():
                if says == "hand-over":
                    handed += len(names)
                    self.keeper.say("taken", names, self.serials.pop(0))
            self.assertLessEqual(sum(each.kept for each in sessions), 240)
        self.assertEqual(handed, 500)
        self.assertEqual(results, [0])

    def test_none(self) -> None:
        done = self.hand_over()
        self.assertEqual(self.successResultOf(done), 0)

    def test_what_can_not_move_stays(self) -> None:
        one, two = self.sessions(2)
        one.may_move = False
        done = self.hand_over(one, two)
        self.hears()
        self.say("taken", "s-1")
        self.assertEqual(self.successResultOf(done), 1)

    def test_what_can_not_just_now_is_tried_again(self) -> None:
        one, two = self.sessions(2)
        one.keepable = False
        done = self.hand_over(one, two)
        self.hears()
        self.say("taken", "s-1")
        self.wait(0.5)
        self.assertEqual(self.hears(), [("let-go", ("s-1",))])
        one.keepable = True
        self.wait(1)
        self.assertEqual(self.hears(), [("hand-over", ("s-0",))])
        self.say("taken", "s-0")
        self.assertEqual(self.successResultOf(done), 0)

    def test_but_not_for_ever(self) -> None:
        one, two = self.sessions(2)
        one.keepable = two.keepable = False
        done = self.hand_over(one, two)
        self.wait(1)
        two.close()
        self.wait(5)
        self.assertEqual(self.successResultOf(done), 1)
        self.assertEqual(self.turns.getDelayedCalls(), [])
        self.assertEqual(self.hears(), [])

    def test_refused(self) -> None:
        (one,) = self.sessions(1)
        done = self.hand_over(one)
        self.hears()
        self.say("refused", "s-0")
        self.assertEqual(one.done, ["unkept"])
        self.wait(0.2)
        self.assertEqual(self.hears(), [("hand-over", ("s-0",))])
        self.say("taken", "s-0")
        self.assertEqual(self.successResultOf(done), 0)

    def test_ended_before_it_is_sent(self) -> None:
        one, two = self.sessions(2)
        self.keeping._channel.pause()
        done = self.hand_over(one, two)
        self.keeping.ended(one)
        one.close()
        two.close()
        self.keeping._channel.resume()
        self.assertEqual(self.hears(), [])
        self.assertEqual(self.successResultOf(done), 0)

    def test_ended_before_it_is_taken(self) -> None:
        (one,) = self.sessions(1)
        done = self.hand_over(one)
        self.keeping.ended(one)
        one.close()
        self.say("taken", "s-0")
        self.assertEqual(self.hears(), [("hand-over", ("s-0",)), ("release", ("s-0",))])
        self.assertEqual(one.done, [])
        self.assertEqual(self.successResultOf(done), 0)

    def test_an_earlier_registration_is_refused(self) -> None:
        self.keeping.survive = True
        (one,) = self.sessions(1)
        self.keeping.relaying(one)
        self.wait(1)
        self.hears()
        (registration,) = self.serials
        done = self.hand_over(one)
        self.say("refused", "s-0", serial=registration)
        self.assertTrue(one.kept)
        self.say("taken", "s-0")
        self.assertEqual(one.done, ["detached"])
        self.assertEqual(self.successResultOf(done), 0)

    def test_taken_what_was_released_since(self) -> None:
        """And is registered again, which may be refused."""
        self.keeping.survive = True
        (one,) = self.sessions(1)
        done = self.hand_over(one)
        self.hears()
        (handed,) = self.serials
        self.keeping.ended(one)  # something came that it can't pass on
        one.may_move = False
        self.keeping.relaying(one)
        self.wait(0.1)
        self.assertEqual(self.successResultOf(done), 1)
        one.may_move = True
        self.wait(2)
        self.assertEqual(self.hears(), [("release", ("s-0",)), ("register", ("s-0",))])
        self.say("taken", "s-0", serial=handed)
        self.assertEqual(one.done, [])
        self.assertEqual(self.hears(), [])
        self.assertEqual(self.keeping.kept_count, 1)

    def test_handed_over_before_it_is_known_not_to_be_held(self) -> None:
        self.give("a")
        (one,) = self.adopted
        done = self.hand_over(one)
        self.say("yours", "a")  # of the adoption
        self.say("taken", "a")
        self.assertEqual(one.done, ["detached"])
        self.assertEqual(self.successResultOf(done), 0)

    def test_comes_back(self) -> None:
        (one,) = self.sessions(1)
        done = self.hand_over(one)
        self.say("taken", "s-0")
        self.assertEqual(self.successResultOf(done), 0)
        self.give("s-0")
        self.hears()
        self.say("yours", "s-0")
        done = self.hand_over(self.adopted[0])
        self.assertEqual(self.hears(), [("hand-over", ("s-0",))])
        self.say("taken", "s-0")
        self.assertEqual(self.successResultOf(done), 0)

    def test_one_that_can_not_be_detached_stays(self) -> None:
        def fail() -> None:
            raise LookupError

        (one,) = self.sessions(1)
        one.when_detached = fail
        done = self.hand_over(one)
        self.say("taken", "s-0")
        self.assertEqual([says for says, _ in self.hears()], ["hand-over"])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        one.may_move = False
        self.wait(0.1)
        self.assertEqual(self.successResultOf(done), 1)

    def test_the_keeper_dies(self) -> None:
        one, two = self.sessions(2)
        two.keepable = False
        done = self.hand_over(one, two)
        self.hears()
        self.keeper.close()
        self.turns.settle()
        self.assertEqual(self.successResultOf(done), 2)
        self.assertEqual(self.lost, ["lost"])

    def test_the_keeper_dies_between_two_rounds(self) -> None:
        (one,) = self.sessions(1)
        one.keepable = False
        done = self.hand_over(one)
        self.turns.settle()
        self.keeper.close()
        self.turns.settle()
        self.assertEqual(self.successResultOf(done), 1)
        self.assertEqual(self.turns.getDelayedCalls(), [])

    def test_one_after_the_other(self) -> None:
        one, two = self.sessions(2)
        first, second = self.hand_over(one), self.hand_over(two)
        self.assertEqual(self.hears(), [("hand-over", ("s-0",))])
        self.say("taken", "s-0")
        self.assertEqual(self.hears()[-1], ("hand-over", ("s-1",)))
        self.say("taken", "s-1")
        self.assertEqual([self.successResultOf(each) for each in (first, second)], [0, 0])

    def test_cancelled(self) -> None:
        one, two = self.sessions(2)
        self.keeping._channel.pause()
        done = self.hand_over(one)
        done.cancel()
        self.failureResultOf(done)
        self.keeping._channel.resume()
        self.assertEqual(self.hears(), [])
        done = self.hand_over(two)
        self.assertEqual(self.hears(), [("hand-over", ("s-1",))])
        self.say("taken", "s-1")
        self.assertEqual(self.successResultOf(done), 0)


class LimitTests(SynchronousTestCase):
    def test_raised(self) -> None:
        program = """if True:
            import resource
            from fwdrelay.workers.keeping import raise_limit
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
            print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            print(raise_limit())
        """
        root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        run = subprocess.run([sys.executable, "-c", program], cwd=root, stdout=-1, check=True)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.assertEqual({int(word) for word in run.stdout.split()}, {hard})


class WorldsWorker:
    """A worker with its sessions."""

    def __init__(self, world: World, pid: int) -> None:
        self.world = world
        self.pid = pid
        self.sessions: dict[str, Moved] = {}
        self.failing = 0
        ours, theirs = pair()
        self.keeping = Keeping(world.turns, theirs, self.adopt, world.holds, lambda: None)
        releasing, sent = self.keeping._releasing, self.keeping._releasing.sent

        def released(message: Message) -> None:
            world.reported |= world.ended & set(message.names)
            sent(message)

        releasing.sent = released  # type: ignore[method-assign]
        world.keeper.join(pid, ours)

    def began(self, name: str, descriptors: tuple[int, int, int, int]) -> Moved:
        """A session is relayed here. It is nowhere else."""
        if name in self.world.where:
            self.world.wrong.append(f"{name} is in two places")
        session = Moved(name, descriptors)
        session.when_detached = lambda: self.gone(name)
        self.world.where[name] = self
        self.sessions[name] = session
        return session

    def gone(self, name: str) -> None:
        del self.sessions[name], self.world.where[name]

    def adopt(self, portable: PortableSession, descriptors: tuple[int, int, int, int]) -> Movable:
        name = portable.session
        if self.failing:
            self.failing -= 1
            close_all(descriptors)
            raise LookupError
        if name in self.world.outside and not self.world.outside[name].is_of(descriptors):
            self.world.wrong.append(f"{name} has others' descriptors")
        session = self.began(name, descriptors)
        session.kept = True
        if name in self.world.ended:
            # Its worker has died before it could say so.
            if name in self.world.reported:
                self.world.wrong.append(f"{name} has ended, was released, and is given")
            self.end(name)
        return session

    def end(self, name: str) -> None:
        """A session ends in its time."""
        session = self.sessions[name]
        self.gone(name)
        kept = session.kept
        session.close()
        self.world.ended.add(name)
        if name in self.world.outside:
            self.world.outside.pop(name).close()
        if kept:
            self.keeping.ended(session)

    def die(self) -> None:
        """SIGKILL."""
        world = self.world
        world.workers.remove(self)
        held = set(self.keeping.held)
        mine = set(self.sessions)
        for name, session in list(self.sessions.items()):
            self.gone(name)
            session.close()
            if name not in held:  # nobody else has it: it dies, too
                world.may_be_lost.add(name)
        self.keeping._releasing.names.clear()  # what it has not said, it never says
        self.keeping.stop()
        world.keeper.left(self.pid)
        world.may_be_lost |= mine & world.keeper.refused


class Noting(Keeper):
    """
    A keeper that notes whom it refuses.

    @ivar refused: names.
    """

    refused: set[str]

    def _register(self, worker: Any, message: Message) -> None:
        super()._register(worker, message)
        for name in message.names:
            if name in worker.names:
                self.refused.discard(name)
            else:
                self.refused.add(name)


class World:
    """
    Workers and a keeper, to which things happen.

    @ivar where: which worker a session is in, of those that are in one.
    @ivar outside: the sessions that have not ended.
    @ivar may_be_lost: those that were unknown to the keeper when their worker died.
    @ivar ended: those that have ended; `reported`: of which that was sent to the keeper.
    @ivar wrong: what should never happen, and has.
    """

    def __init__(self, holds: bool) -> None:
        self.turns = Turns()
        self.holds = holds
        self.keeper = Noting(self.turns, holds=holds)
        self.keeper.refused = set()
        self.workers: list[WorldsWorker] = []
        self.where: dict[str, WorldsWorker] = {}
        self.outside: dict[str, Outside] = {}
        self.may_be_lost: set[str] = set()
        self.ended: set[str] = set()
        self.reported: set[str] = set()
        self.wrong: list[str] = []
        self.count = 0

    def start(self) -> WorldsWorker:
        self.count += 1
        worker = WorldsWorker(self, self.count)
        self.workers.append(worker)
        self.keeper.may_receive(worker.pid, True)
        return worker

    def open(self, worker: WorldsWorker) -> None:
        self.count += 1
        outside = Outside(f"s-{self.count}")
        self.outside[outside.name] = outside
        worker.keeping.relaying(worker.began(outside.name, outside.descriptors))

    def renew(self) -> None:
        """Exec."""
        old = self.keeper
        old.pause()
        state = json.loads(json.dumps(old.state()))
        for worker in old._workers.values():
            worker.channel._sock.detach()
        self.keeper = Noting.restored(self.turns, state, holds=self.holds)
        self.keeper.refused = old.refused
        self.keeper.resume()

    def look(self) -> None:
        """Nothing is lost but what nobody knew of."""
        assert not self.wrong, self.wrong
        for name, outside in list(self.outside.items()):
            held = outside.is_held()
            if not held:
                assert name in self.may_be_lost, f"{name} is lost"
                outside.close()
                del self.outside[name]

    def rest(self) -> None:
        """Let all that is under way come to its end."""
        if not self.workers:
            self.start()
        for worker in self.workers:
            worker.failing = 0
            self.keeper.may_receive(worker.pid, True)
        for _ in range(30):
            self.turns.settle()
            self.turns.advance(5)
        self.turns.settle()
        self.look()

    def close(self) -> None:
        for worker in self.workers:
            for session in worker.sessions.values():
                session.close()
            worker.keeping.stop()
        self.keeper.stop()
        for outside in self.outside.values():
            outside.close()


STEPS = (
    ("open", 6),
    ("end", 2),
    ("kill", 1),
    ("start", 1),
    ("hand over", 2),
    ("drain", 1),
    ("receive", 1),
    ("fail", 1),
    ("block", 1),
    ("lack", 1),
    ("stall", 1),
    ("go on", 2),
    ("unkeep", 1),
    ("renew", 1),
    ("turn", 6),
    ("wait", 4),
)
step = st.tuples(
    st.sampled_from([word for word, weight in STEPS for _ in range(weight)]),
    st.integers(0, 1 << 16),
)


class WhateverHappensTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
    @given(st.booleans(), st.lists(step, min_size=10, max_size=120))
    def test_nothing_is_lost_or_given_twice(
        self, holds: bool, steps: list[tuple[str, int]]
    ) -> None:
        before = open_descriptors()
        world = World(holds)
        try:
            with mock.patch.object(keeper_module, "_MOST_FAILURES", 1 << 30):
                self.go(world, steps)
                world.rest()
            self.at_rest(world)
        finally:
            world.close()
            self.flushLoggedErrors(LookupError)
        self.assertEqual(open_descriptors(), before)

    def go(self, world: World, steps: list[tuple[str, int]]) -> None:
        world.start()
        limit = 1 << 30
        for what, number in steps:
            workers = world.workers
            worker = workers[number % len(workers)] if workers else None
            with mock.patch.object(
                keeper_module, "descriptor_limit", mock.Mock(return_value=limit)
            ):
                match what:
                    case "start" if len(workers) < 4:
                        world.start()
                    case "renew":
                        world.renew()
                    case "turn":
                        world.turns.turn()
                    case "wait":
                        world.turns.advance((0.0, 0.1, 0.3, 1.0)[number % 4])
                    case "lack":
                        limit = 1 if limit > 1 else 1 << 30
                    case _ if worker is not None:
                        self.happen(world, worker, what, number)
                world.look()

    def happen(self, world: World, worker: WorldsWorker, what: str, number: int) -> None:
        keeping = worker.keeping
        sessions = sorted(worker.sessions)
        name = sessions[number % len(sessions)] if sessions else ""
        match what:
            case "open":
                world.open(worker)
            case "kill":
                worker.die()
            case "hand over":
                keeping.hand_over(worker.sessions.values()).addErrback(lambda failure: None)
            case "drain":
                world.keeper.may_receive(worker.pid, False)
            case "receive":
                world.keeper.may_receive(worker.pid, True)
            case "fail":
                worker.failing += number % 3
            case "stall":
                keeping._channel.pause()
            case "go on":
                keeping._channel.resume()
            case "end" if name:
                worker.end(name)
            case "block" if name:
                session = worker.sessions[name]
                session.keepable = not session.keepable
            case "unkeep" if name and worker.sessions[name].kept:
                # As if something came that a kept session can't pass on.
                worker.sessions[name].kept = False
                keeping.ended(worker.sessions[name])
                keeping.relaying(worker.sessions[name])

    def at_rest(self, world: World) -> None:
        """After all is said and done: each session is in one place, and known there as it is to the keeper."""
        for worker in world.workers:
            worker.keeping._channel.resume()
        world.rest()
        keeper = world.keeper
        self.assertEqual(set(world.where), set(world.outside))
        self.assertEqual(keeper.orphans, 0)
        for worker in world.workers:
            held = {name for name, each in worker.sessions.items() if each.kept}
            self.assertEqual(set(worker.keeping.held), held)
            self.assertEqual(keeper.kept_by(worker.pid), len(held))
            if not world.holds:
                self.assertEqual(held, set())
        self.assertEqual(keeper.holding, sum(len(each.keeping.held) for each in world.workers))

"""`fwdrelay.workers.keeper`, talked to by workers that say what a test wants them to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from zope.interface import implementer

from fwdrelay.workers import keeper as keeper_module
from fwdrelay.workers.keeper import WELL_AFTER, Keeper
from fwdrelay.workers.passing import Channel, Message, Says, close_all
from tests.case import SynchronousTestCase, open_descriptors
from tests.workers.turns import Outside, Turns, pair, room_for


class Sessions:
    """An outbox of what is sent once."""

    def __init__(self, message: Message) -> None:
        self.message: Message | None = message

    def write(self, most: int) -> Message | None:
        return self.message

    def sent(self, message: Message) -> None:
        self.message = None


class Peer:
    """
    A worker.

    @ivar heard: what it was told, and not asked for yet.
    @ivar given: the descriptors that it has got, by session.
    """

    def __init__(self, turns: Turns, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.turns = turns
        self.heard: list[tuple[Says, tuple[str, ...]]] = []
        self.given: dict[str, tuple[int, ...]] = {}
        self.texts: dict[str, str] = {}
        self.channel = Channel(turns, sock, self.received, lambda: None)

    def received(self, message: Message) -> None:
        self.heard.append((message.says, message.names))
        for name, text, descriptors in message.sessions() if message.texts else ():
            assert name not in self.given, f"{name} was given twice"
            self.given[name] = descriptors
            self.texts[name] = text

    def send(self, says: Says, *sessions: Outside) -> None:
        """Pass sessions on, of which this worker has the descriptors until it forgets them."""
        message = Message(
            says=says,
            names=tuple(each.name for each in sessions),
            texts=tuple(each.text for each in sessions),
            descriptors=tuple(number for each in sessions for number in each.descriptors),
        )
        self.channel.send(Sessions(message))
        self.turns.settle()

    def say(self, says: Says, *sessions: Outside) -> None:
        self.channel.say(says, [each.name for each in sessions])
        self.turns.settle()

    def hears(self) -> list[tuple[Says, tuple[str, ...]]]:
        """What it has heard since this was asked the last time."""
        heard, self.heard = self.heard, []
        return heard

    def forget(self, *sessions: Outside) -> None:
        """Close what it was given of them."""
        for each in sessions:
            close_all(self.given.pop(each.name))

    def die(self) -> None:
        self.channel.close()
        for each in self.given.values():
            close_all(each)
        self.given.clear()


class KeeperTestCase(SynchronousTestCase):
    holds = True

    def setUp(self) -> None:
        self.turns = Turns()
        self.lost: list[int] = []
        self.said: list[tuple[Any, str]] = []

        @implementer(ILogObserver)
        def observe(event: Any) -> None:
            if event.get("log_namespace", "").startswith("fwdrelay."):
                self.said.append((event["log_level"], event["log_format"]))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.keeper = Keeper(self.turns, lost=self.lost.append, holds=self.holds, reserve=16)
        self.addCleanup(lambda: self.keeper.stop())

    def worker(self, pid: int, may_receive: bool = True) -> Peer:
        ours, theirs = pair()
        self.keeper.join(pid, ours)
        self.keeper.may_receive(pid, may_receive)
        peer = Peer(self.turns, pid, theirs)
        self.addCleanup(peer.die)
        return peer

    def outside(self, name: str) -> Outside:
        outside = Outside(name)
        self.addCleanup(outside.close)
        return outside

    def registered(self, worker: Peer, *names: str) -> list[Outside]:
        """Sessions that the worker has registered, and has no descriptors of any more: as if it were dead."""
        sessions = [self.outside(name) for name in names]
        for each in sessions:
            worker.send("register", each)
            close_all(each.descriptors)
        return sessions

    def kill(self, worker: Peer) -> None:
        worker.die()
        self.keeper.left(worker.pid)
        self.turns.settle()

    def hold(self, *sessions: Outside) -> None:
        for each in sessions:
            self.assertTrue(each.is_held(), each.name)

    def dont_hold(self, *sessions: Outside) -> None:
        for each in sessions:
            self.assertFalse(each.is_held(), each.name)


class HoldingTests(KeeperTestCase):
    def test_registered_and_released(self) -> None:
        worker = self.worker(1)
        one, two = self.registered(worker, "one", "two")
        self.assertEqual((self.keeper.holding, self.keeper.kept_by(1)), (2, 2))
        self.assertEqual(self.keeper.orphans, 0)
        self.hold(one, two)
        self.assertEqual(worker.hears(), [])
        worker.say("release", one, one)
        self.assertEqual(self.keeper.holding, 1)
        self.dont_hold(one)
        self.hold(two)

    def test_registered_again(self) -> None:
        worker = self.worker(1)
        (one,) = self.registered(worker, "one")
        again = self.outside("one")
        worker.send("register", again)
        self.dont_hold(one)
        self.hold(again)
        self.assertEqual(self.keeper.holding, 1)
        close_all(again.descriptors)

    def test_only_its_own_are_a_workers_to_release(self) -> None:
        owner, other = self.worker(1), self.worker(2)
        (one,) = self.registered(owner, "one")
        for says in ("release", "let-go", "refused", "failed", "adopted"):
            other.say(says, one)
        self.hold(one)
        self.assertEqual(self.keeper.kept_by(1), 1)

    def test_only_its_own_are_a_workers_to_register(self) -> None:
        owner, other = self.worker(1), self.worker(2)
        (one,) = self.registered(owner, "one")
        (false,) = self.registered(other, "one")
        self.assertEqual(other.hears(), [("refused", ("one",))])
        self.hold(one)
        self.dont_hold(false)

    def test_a_lost_channel_is_told_once(self) -> None:
        worker = self.worker(1)
        worker.channel.close()
        self.turns.settle()
        self.assertEqual(self.lost, [1])
        self.kill(worker)
        self.assertEqual(self.lost, [1])

    def test_what_is_not_a_workers_to_say(self) -> None:
        worker = self.worker(1)
        one = self.outside("one")
        worker.send("give", one)
        close_all(one.descriptors)
        self.dont_hold(one)

    def test_unknown_workers(self) -> None:
        self.keeper.left(7)
        self.keeper.may_receive(7, True)
        self.assertEqual(self.keeper.kept_by(7), 0)

    def test_stop_resets(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        near = socket.create_connection(listening.getsockname())
        self.addCleanup(near.close)
        accepted, _ = listening.accept()
        one = self.outside("one")
        client, *rest = one.descriptors
        os.close(client)
        one.descriptors = (accepted.detach(), *rest)  # type: ignore[assignment]
        self.worker(1).send("register", one)
        close_all(one.descriptors)
        self.keeper.stop()
        self.assertRaises(ConnectionResetError, near.recv, 1)
        self.assertEqual(self.keeper.holding, 0)


class DeathTests(KeeperTestCase):
    def test_what_it_had_is_given_to_another(self) -> None:
        one, two = self.worker(1), self.worker(2)
        (session,) = self.registered(one, "a")
        self.kill(one)
        self.assertEqual(two.hears(), [("give", ("a",))])
        self.assertEqual(two.texts["a"], session.text)
        self.assertTrue(session.is_of(two.given["a"]))
        self.assertEqual((self.keeper.kept_by(2), self.keeper.orphans), (1, 0))

    def test_what_it_has_said_before_counts(self) -> None:
        one, two = self.worker(1), self.worker(2)
        ended, open_still = self.registered(one, "ended", "open")
        late = self.outside("late")
        self.keeper.pause()
        one.channel.say("release", [ended.name])
        one.send("register", late)
        close_all(late.descriptors)
        one.die()
        self.keeper.resume()
        self.keeper.left(1)
        self.turns.settle()
        self.assertEqual(sorted(two.given), ["late", "open"])
        self.dont_hold(ended)
        self.hold(open_still, late)

    def test_though_it_has_not_read_what_it_was_told(self) -> None:
        one, two = self.worker(1, may_receive=True), self.worker(2, may_receive=False)
        one.channel.pause()
        (given,) = self.registered(two, "given")
        self.kill(two)  # given to the first, which never reads
        self.assertEqual(self.keeper.kept_by(1), 1)
        other = self.outside("other")
        self.keeper.pause()
        one.channel.resume()
        one.channel.pause()
        sock = socket.socket(fileno=os.dup(one.channel.fileno()))
        with sock:
            data = Message(says="register", names=("other",), texts=(other.text,)).encode()
            socket.send_fds(sock, [data], list(other.descriptors))
        close_all(other.descriptors)
        self.keeper.resume()
        self.kill(one)
        self.assertEqual(self.keeper.orphans, 2)
        three = self.worker(3)
        self.turns.settle()
        self.assertEqual(sorted(three.given), ["given", "other"])
        self.hold(given, other)

    def test_waits_for_somebody(self) -> None:
        one = self.worker(1)
        draining = self.worker(2, may_receive=False)
        self.registered(one, "a", "b")
        self.kill(one)
        self.assertEqual(self.keeper.orphans, 2)
        self.assertEqual(draining.hears(), [])
        three = self.worker(3)
        self.turns.settle()
        self.assertEqual(sorted(three.given), ["a", "b"])
        self.assertEqual(self.keeper.orphans, 0)

    def test_evenly_to_who_has_the_fewest(self) -> None:
        one, two, three = (self.worker(pid) for pid in (1, 2, 3))
        self.registered(two, *(f"two-{n}" for n in range(10)))
        self.registered(one, *(f"one-{n}" for n in range(130)))
        self.kill(one)
        self.assertEqual((self.keeper.kept_by(2), self.keeper.kept_by(3)), (70, 70))
        self.assertEqual([len(names) for _, names in three.hears()], [60, 10])
        self.assertEqual(len(two.given), 60)

    def test_given_and_dead_before_it_was_read(self) -> None:
        one, two = self.worker(1), self.worker(2)
        sessions = self.registered(one, "a", "b")
        two.channel.pause()
        self.kill(one)
        self.assertEqual(self.keeper.kept_by(2), 2)
        three = self.worker(3)
        self.kill(two)
        self.assertEqual(sorted(three.given), ["a", "b"])
        self.hold(*sessions)

    def test_a_channel_that_is_full(self) -> None:
        one, two = self.worker(1), self.worker(2)
        count = 60 * 20
        held = self.outside("held")
        for at in range(0, count, 60):
            message = Message(
                says="register",
                names=tuple(str(n) for n in range(at, at + 60)),
                texts=(" " * 1500,) * 60,
                descriptors=held.descriptors * 60,
            )
            one.channel.send(Sessions(message))
            self.turns.settle()
        close_all(held.descriptors)
        self.assertEqual(self.keeper.holding, count)
        two.channel.pause()
        self.kill(one)
        waiting = count - self.keeper.kept_by(2)
        self.assertGreater(waiting, 0)
        self.assertEqual(self.keeper.orphans, waiting)
        # Nothing that waits is lost with who it waits for.
        self.kill(two)
        self.assertEqual(self.keeper.orphans, count)
        three = self.worker(3)
        self.turns.settle()
        self.assertEqual((len(three.given), self.keeper.orphans), (count, 0))
        three.die()
        self.keeper.stop()
        self.dont_hold(held)

    def test_a_process_that_was_killed(self) -> None:
        program = """if True:
            import os, signal, socket, sys
            from tests.workers.test_keeper import Peer, Outside, Turns
            peer = Peer(Turns(), 1, socket.socket(fileno=int(sys.argv[1])))
            one, two = Outside("one"), Outside("two")
            for each in one, two:
                os.write(each.descriptors[2], each.name.encode())
            peer.send("register", one, two)
            peer.say("release", two)
            os.kill(os.getpid(), signal.SIGKILL)
        """
        ours, theirs = pair()
        root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        with theirs:
            arguments = [sys.executable, "-c", program, str(theirs.fileno())]
            with subprocess.Popen(arguments, pass_fds=[theirs.fileno()], cwd=root) as process:
                self.keeper.join(process.pid, ours)
        self.keeper.left(process.pid)
        self.assertEqual((self.keeper.holding, self.keeper.orphans), (1, 1))
        peer = self.worker(2)
        self.turns.settle()
        self.assertEqual(os.read(peer.given["one"][2], 100), b"one")
        self.assertEqual(self.lost, [])


class HandOverTests(KeeperTestCase):
    holds = False

    def hand_over(self, worker: Peer, *names: str) -> list[Outside]:
        sessions = [self.outside(name) for name in names]
        worker.send("hand-over", *sessions)
        for each in sessions:
            close_all(each.descriptors)
        return sessions

    def test_given_when_it_was_let_go(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2)
        (session,) = self.hand_over(old, "a")
        self.assertEqual(old.hears(), [("taken", ("a",))])
        self.assertEqual(new.hears(), [])
        old.say("let-go", session)
        self.assertEqual(new.hears(), [("give", ("a",))])
        self.assertEqual((self.keeper.kept_by(1), self.keeper.kept_by(2)), (0, 1))
        new.say("adopted", session)
        self.assertEqual(new.hears(), [("yours", ("a",))])
        self.assertEqual(self.keeper.holding, 0)
        self.hold(session)  # by the new worker
        new.forget(session)
        self.dont_hold(session)

    def test_ended_meanwhile(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2)
        (session,) = self.hand_over(old, "a")
        old.say("release", session)
        self.assertEqual(self.keeper.holding, 0)
        old.say("let-go", session)
        self.assertEqual(new.hears(), [])
        self.dont_hold(session)

    def test_dead_before_it_has_let_go(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2)
        self.hand_over(old, "a")
        self.kill(old)
        self.assertEqual(new.hears(), [("give", ("a",))])

    def test_comes_back_where_nobody_is(self) -> None:
        old = self.worker(1, may_receive=False)
        (session,) = self.hand_over(old, "a")
        old.hears()
        old.say("let-go", session)
        self.assertEqual(old.hears(), [("give", ("a",))])
        old.say("adopted", session)
        self.assertEqual(old.hears(), [("yours", ("a",))])

    def test_comes_back_where_nobody_can(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2)
        for says in ("refused", "failed"):
            (session,) = self.hand_over(old, says)
            old.hears()
            old.say("let-go", session)
            new.forget(session)
            new.say(says, session)
            self.assertEqual(old.hears(), [("give", (says,))])
            self.assertEqual(self.keeper.kept_by(1), 1)
            old.say("adopted", session)
            self.turns.advance(60)

    def test_not_to_a_sender_that_is_dead(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2, may_receive=False)
        new.channel.pause()
        (session,) = self.hand_over(old, "a")
        old.die()
        self.keeper.left(1)
        old = self.worker(3, may_receive=False)
        self.turns.settle()
        self.assertEqual(self.keeper.orphans, 1)
        self.hold(session)

    def test_with_the_taker_dead(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2)
        new.channel.pause()
        (session,) = self.hand_over(old, "a")
        old.hears()
        old.say("let-go", session)
        self.assertEqual(self.keeper.kept_by(2), 1)
        self.kill(new)
        self.assertEqual(old.hears(), [("give", ("a",))])

    def test_no_more_for_one_that_may_not(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2)
        self.keeper.may_receive(2, False)
        (session,) = self.hand_over(old, "a")
        old.hears()
        old.say("let-go", session)
        self.assertEqual(new.hears(), [])
        self.assertEqual(old.hears(), [("give", ("a",))])


class NotTakenTests(KeeperTestCase):
    def test_another_is_tried(self) -> None:
        one, two, three = (self.worker(pid) for pid in (1, 2, 3))
        self.registered(three, "x")  # so that the second has the fewest
        (session,) = self.registered(one, "a")
        self.kill(one)
        self.assertEqual(two.hears(), [("give", ("a",))])
        two.forget(session)
        two.say("refused", session)
        self.assertEqual(three.hears(), [("give", ("a",))])
        self.assertEqual(self.said[0][0], LogLevel.warn)

    def test_again_later(self) -> None:
        one, two = self.worker(1), self.worker(2)
        (session,) = self.registered(one, "a")
        self.kill(one)
        for _ in range(10):
            self.assertEqual(two.hears(), [("give", ("a",))])
            two.forget(session)
            two.say("refused", session)
            self.assertEqual(two.hears(), [])
            self.assertEqual(self.keeper.orphans, 1)
            self.turns.advance(5)
            self.turns.advance(5)
            self.turns.settle()
        two.say("adopted", session)
        self.hold(session)
        self.assertEqual(self.keeper.kept_by(2), 1)
        # Said once for all of it.
        self.assertEqual([level for level, _ in self.said], [LogLevel.warn])

    def test_one_that_lacks_descriptors_is_left_alone(self) -> None:
        one, two = self.worker(1), self.worker(2)
        (session,) = self.registered(one, "a")
        self.kill(one)
        two.forget(session)
        two.say("refused", session)
        two.hears()
        three = self.worker(3, may_receive=False)
        self.registered(three, "b")
        self.kill(three)
        self.assertEqual(two.hears(), [])
        self.turns.advance(5)
        self.turns.settle()
        self.assertEqual(sorted(two.given), ["a", "b"])

    def test_a_new_worker_is_not_waited_for(self) -> None:
        one, two = self.worker(1), self.worker(2)
        (session,) = self.registered(one, "a")
        self.kill(one)
        two.forget(session)
        two.say("failed", session)
        three = self.worker(3)
        self.turns.settle()
        self.assertEqual(three.hears(), [("give", ("a",))])

    def test_given_up_at_last(self) -> None:
        one, two = self.worker(1), self.worker(2)
        (session,) = self.registered(one, "a")
        self.kill(one)
        for _ in range(5):
            two.forget(session)
            two.say("failed", session)
            self.turns.advance(5)
            self.turns.settle()
        self.assertEqual(self.keeper.holding, 0)
        self.dont_hold(session)
        self.assertEqual([level for level, _ in self.said], [LogLevel.error])


class LackTests(KeeperTestCase):
    def test_near_the_limit(self) -> None:
        worker = self.worker(1)
        (held,) = self.registered(worker, "held")
        new, again = self.outside("new"), self.outside("held")
        before = open_descriptors()
        with room_for(12):
            worker.send("register", new)
            self.assertEqual(worker.hears(), [("refused", ("new",))])
            # What is held already, is still.
            worker.send("hand-over", again)
            self.assertEqual(worker.hears(), [("taken", ("held",))])
        self.assertEqual(open_descriptors(), before)
        self.assertEqual(self.keeper.refused_total, 1)
        close_all(new.descriptors)
        close_all(again.descriptors)
        self.dont_hold(new)
        self.hold(held)

    def test_beyond_it(self) -> None:
        worker = self.worker(1)
        one, two = self.outside("one"), self.outside("two")
        before = open_descriptors()
        with room_for(5):
            worker.send("hand-over", one, two)
        self.assertEqual(worker.hears(), [("refused", ("one", "two"))])
        self.assertEqual(open_descriptors(), before)
        self.assertEqual((self.keeper.refused_total, self.keeper.holding), (2, 0))
        close_all(one.descriptors)
        close_all(two.descriptors)

    def test_said_once_and_again_after_it_was_well(self) -> None:
        worker = self.worker(1)
        sessions = [self.outside(str(number)) for number in range(6)]

        def register(limit: int) -> None:
            each = sessions.pop()
            with mock.patch.object(keeper_module, "descriptor_limit", lambda: limit):
                worker.send("register", each)
            close_all(each.descriptors)

        many = 1 << 20
        register(1)
        register(1)
        register(many)
        self.assertEqual([level for level, _ in self.said], [LogLevel.warn])
        self.turns.advance(WELL_AFTER)
        register(many)
        register(many)
        register(1)
        self.assertEqual(
            [level for level, _ in self.said], [LogLevel.warn, LogLevel.info, LogLevel.warn]
        )
        self.assertEqual((self.keeper.refused_total, self.keeper.holding), (3, 3))


class RestoredTests(KeeperTestCase):
    """The program changes, the descriptors stay."""

    def renew(self, between: Callable[[], object] = lambda: None) -> None:
        """Be another program with the same descriptors."""
        old = self.keeper
        old.pause()
        state = json.loads(json.dumps(old.state()))
        kept = set(old.descriptors())
        for number in kept:
            os.set_inheritable(number, True)
        between()
        for worker in old._workers.values():
            worker.channel._sock.detach()
        self.keeper = Keeper.restored(self.turns, state, lost=self.lost.append, holds=self.holds)
        self.assertEqual(set(self.keeper.descriptors()), kept)
        for number in kept:
            self.assertFalse(os.get_inheritable(number))
        self.keeper.resume()
        self.turns.settle()

    def test_goes_on(self) -> None:
        one, two = self.worker(1), self.worker(2)
        a, b = self.registered(one, "a", "b")
        self.keeper.refused_total = 7
        late = self.outside("late")

        def meanwhile() -> None:
            one.channel.say("release", ["a"])
            one.send("register", late)
            close_all(late.descriptors)

        self.renew(meanwhile)
        self.assertEqual((self.keeper.kept_by(1), self.keeper.orphans), (2, 0))
        self.assertEqual(self.keeper.refused_total, 7)
        self.dont_hold(a)
        self.hold(b, late)
        self.kill(one)
        self.assertEqual(sorted(two.given), ["b", "late"])
        self.assertEqual(two.texts["b"], b.text)
        self.assertTrue(b.is_of(two.given["b"]))

    def test_orphans_stay(self) -> None:
        one = self.worker(1)
        (session,) = self.registered(one, "a")
        self.kill(one)
        self.renew()
        self.assertEqual(self.keeper.orphans, 1)
        two = self.worker(2)
        self.turns.settle()
        self.assertTrue(session.is_of(two.given["a"]))

    def test_what_waits_in_a_channel(self) -> None:
        one, two = self.worker(1), self.worker(2)
        sessions = self.registered(one, *(str(number) for number in range(90)))
        two.channel.pause()
        two_channel = self.keeper._workers[2].channel
        two_channel.pause()  # as if it were full
        self.kill(one)
        two_channel.say("taken", ["x"])
        self.assertEqual((self.keeper.kept_by(2), self.keeper.orphans), (0, 90))
        self.renew()
        self.assertEqual((self.keeper.kept_by(2), self.keeper.orphans), (90, 0))
        two.channel.resume()
        self.turns.settle()
        self.assertEqual(len(two.given), 90)
        self.assertIn(("taken", ("x",)), two.hears())
        self.hold(*sessions)

    def test_given_is_not_given_again(self) -> None:
        one, two = self.worker(1), self.worker(2)
        self.registered(one, "a")
        two.channel.pause()
        self.kill(one)
        self.worker(3)
        self.renew()
        two.channel.resume()
        self.turns.settle()
        self.assertEqual(two.hears(), [("give", ("a",))])
        self.assertEqual(self.keeper.kept_by(2), 1)

    def test_comes_back_to_who_has_let_go(self) -> None:
        old, new = self.worker(1, may_receive=False), self.worker(2)
        session = self.outside("a")
        old.send("hand-over", session)
        close_all(session.descriptors)
        new.channel.pause()
        old.say("let-go", session)
        self.assertEqual(self.keeper.kept_by(2), 1)
        old.hears()
        self.renew()
        self.kill(new)
        self.assertEqual(old.hears(), [("give", ("a",))])

    def test_not_renewed_after_all(self) -> None:
        one, two = self.worker(1), self.worker(2)
        self.registered(one, "a")
        self.keeper.pause()
        self.keeper.state()
        one.die()
        self.turns.settle()
        self.keeper.resume()
        self.turns.settle()
        self.assertEqual(self.lost, [1])
        self.keeper.left(1)
        self.turns.settle()
        self.assertEqual(two.hears(), [("give", ("a",))])

"""`fwdrelay.workers.passing` on real sockets."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from typing import Any

from fwdrelay.workers.passing import (
    DESCRIPTORS,
    MOST_SESSIONS,
    Channel,
    Message,
    close_all,
)
from tests.case import SynchronousTestCase, open_descriptors
from tests.workers.turns import Outside, Turns, pair, room_for


class Outgoing:
    """An outbox of sessions."""

    def __init__(self, sessions: list[Outside], padding: int = 0) -> None:
        self.sessions = list(sessions)
        self.padding = " " * padding
        self.messages: list[Message] = []

    def write(self, most: int) -> Message | None:
        some = self.sessions[:most]
        if not some:
            return None
        return Message(
            says="register",
            names=tuple(each.name for each in some),
            texts=tuple(each.text + self.padding for each in some),
            descriptors=tuple(number for each in some for number in each.descriptors),
        )

    def sent(self, message: Message) -> None:
        self.messages.append(message)
        assert [each.name for each in self.sessions[: len(message.names)]] == list(message.names)
        del self.sessions[: len(message.names)]


class Refusing(socket.socket):
    """A socket that can't send now and then."""

    errors: list[int]

    def sendmsg(self, *args: Any) -> int:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().sendmsg(*args)


class PassingTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.turns = Turns()
        self.lost: list[str] = []
        self.heard: list[Message] = []
        ours, theirs = pair()
        self.sock = theirs
        self.near = self.channel(ours, "near")
        self.far = self.channel(theirs, "far")

    def channel(self, sock: socket.socket, name: str) -> Channel:
        channel = Channel(self.turns, sock, self.received, lambda: self.lost.append(name))
        self.addCleanup(channel.close)
        return channel

    def received(self, message: Message) -> None:
        self.heard.append(message)
        self.addCleanup(close_all, message.descriptors)

    def outside(self, name: str) -> Outside:
        outside = Outside(name)
        self.addCleanup(outside.close)
        self.addCleanup(close_all, outside.descriptors)
        return outside

    def outsides(self, count: int) -> list[Outside]:
        return [self.outside(f"s-{index}") for index in range(count)]

    def names(self) -> list[str]:
        return [name for message in self.heard for name in message.names]


class ChannelTests(PassingTestCase):
    def test_names(self) -> None:
        self.near.say("release", ["a", "b"])
        self.far.say("adopted", ["c"])
        self.turns.settle()
        self.assertEqual(
            sorted((each.says, each.names) for each in self.heard),
            [("adopted", ("c",)), ("release", ("a", "b"))],
        )

    def test_nothing_is_not_said(self) -> None:
        self.near.say("release", [])
        self.turns.settle()
        self.assertEqual(self.heard, [])

    def test_sessions_with_their_descriptors(self) -> None:
        sessions = self.outsides(3)
        self.near.send(Outgoing(sessions))
        self.turns.settle()
        (message,) = self.heard
        self.assertFalse(message.lacking)
        for session, (name, text, descriptors) in zip(sessions, message.sessions(), strict=True):
            self.assertEqual((name, text), (session.name, session.text))
            self.assertTrue(session.is_of(descriptors))
            for number in descriptors:
                self.assertTrue(fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)

    def test_many_sessions_are_several_messages(self) -> None:
        sessions = self.outsides(MOST_SESSIONS + 1)
        outgoing = Outgoing(sessions)
        self.near.send(outgoing)
        self.turns.settle()
        self.assertEqual([len(each.names) for each in self.heard], [MOST_SESSIONS, 1])
        self.assertEqual(
            [each.names for each in outgoing.messages], [each.names for each in self.heard]
        )
        last = sessions[-1]
        self.assertTrue(last.is_of(self.heard[-1].descriptors))

    def test_long_texts_are_several_messages(self) -> None:
        sessions = self.outsides(4)
        self.near.send(Outgoing(sessions, padding=40_000))
        self.turns.settle()
        self.assertEqual([len(each.names) for each in self.heard], [2, 2])
        self.assertTrue(sessions[2].is_of(self.heard[1].descriptors[:DESCRIPTORS]))

    def test_what_does_not_fit_waits_in_its_order(self) -> None:
        (session,) = self.outsides(1)
        self.far.pause()
        for number in range(2000):
            self.near.say("release" if number % 2 else "adopted", [f"{number:0500}"])
        self.near.send(Outgoing([session]))
        self.near.say("release", ["last"])
        self.assertIn(self.near, self.turns.writers)
        self.assertGreater(len(self.near.unsaid()), 0)
        self.turns.turn()
        self.far.resume()
        self.turns.settle()
        self.assertEqual(self.names(), [*(f"{n:0500}" for n in range(2000)), session.name, "last"])
        self.assertEqual(self.near.unsaid(), [])

    def test_names_of_one_kind_go_together(self) -> None:
        self.near.pause()
        self.near.say("release", ["a"])
        self.near.say("release", ["b"])
        self.near.say("adopted", ["c"])
        self.near.say("adopted", ["d"], 7)
        said = [("release", ["a", "b"], 0), ("adopted", ["c"], 0), ("adopted", ["d"], 7)]
        self.assertEqual(self.near.unsaid(), said)
        self.near.resume()
        self.turns.settle()
        self.assertEqual([(each.says, [*each.names], each.serial) for each in self.heard], said)

    def test_is_written_when_it_is_sent(self) -> None:
        sessions = self.outsides(2)
        outgoing = Outgoing(sessions)
        self.near.pause()
        self.near.send(outgoing)
        self.near.send(outgoing)  # waits already
        del outgoing.sessions[0]
        self.near.resume()
        self.turns.settle()
        self.assertEqual(self.names(), [sessions[1].name])

    def test_an_outbox_that_fails_stops_no_other(self) -> None:
        class Failing(Outgoing):
            def write(self, most: int) -> Message | None:
                raise LookupError

        self.near.pause()
        self.near.send(Failing([]))
        self.near.say("release", ["a"])
        self.near.resume()
        self.turns.settle()
        self.assertEqual(self.names(), ["a"])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_later_when_too_much_is_under_way(self) -> None:
        for number in (errno.ETOOMANYREFS, errno.ENOBUFS):
            ours, theirs = pair()
            refusing = Refusing(fileno=ours.detach())
            refusing.errors = [number]
            near = self.channel(refusing, "refusing")
            self.channel(theirs, "other")
            near.say("release", ["a"])
            near.say("adopted", ["b"])
            self.turns.settle()
            self.assertEqual(self.names(), [])
            self.turns.advance(0.1)
            self.turns.settle()
            self.assertEqual(self.names(), ["a", "b"])
            self.heard.clear()
        self.assertEqual(self.lost, [])

    def test_what_is_never_sent_is_a_loss(self) -> None:
        ours, theirs = pair()
        refusing = Refusing(fileno=ours.detach())
        refusing.errors = [errno.EMSGSIZE]
        near = self.channel(refusing, "refusing")
        self.channel(theirs, "other").say("release", ["still read"])
        near.say("release", ["a"])
        self.assertEqual(self.lost, ["refusing"])
        self.turns.settle()
        self.assertEqual(self.names(), ["still read"])

    def test_paused(self) -> None:
        self.far.pause()
        self.near.say("release", ["a"])
        self.far.say("adopted", ["b"])
        self.turns.settle()
        self.assertEqual(self.heard, [])
        self.far.resume()
        self.turns.settle()
        self.assertEqual(sorted(self.names()), ["a", "b"])

    def test_paused_in_the_midst(self) -> None:
        def received(message: Message) -> None:
            self.heard.append(message)
            far.pause()

        ours, theirs = pair()
        near = self.channel(ours, "")
        far = Channel(self.turns, theirs, received, lambda: None)
        self.addCleanup(far.close)
        near.say("release", ["a"])
        near.say("adopted", ["b"])
        self.turns.settle()
        self.assertEqual(self.names(), ["a"])

    def test_a_turn_is_bounded(self) -> None:
        self.far.pause()
        for number in range(100):
            self.near.say("release" if number % 2 else "adopted", [str(number)])
        self.far.resume()
        self.far.doRead()
        self.assertLess(len(self.heard), 100)
        self.turns.settle()
        self.assertEqual(len(self.heard), 100)

    def test_the_end(self) -> None:
        self.near.say("release", ["a"])
        self.near.close()
        self.turns.settle()
        self.assertEqual(self.names(), ["a"])
        self.assertEqual(self.lost, ["far"])
        self.assertTrue(self.far.is_lost)
        self.far.say("adopted", ["b"])
        self.far.send(Outgoing(self.outsides(1)))
        self.turns.settle()
        self.assertEqual(self.lost, ["far"])
        self.assertEqual(self.turns.readers, {})
        self.assertEqual(self.turns.writers, {})

    def test_the_end_is_noticed_by_what_is_said(self) -> None:
        self.near.say("release", ["a"])
        self.near.close()
        self.far.say("adopted", ["b"])
        self.assertEqual(self.lost, ["far"])
        self.turns.settle()
        self.assertEqual(self.names(), ["a"])

    def test_closed_while_something_is_dealt_with(self) -> None:
        ours, theirs = pair()
        near = self.channel(ours, "near")
        far = Channel(self.turns, theirs, lambda message: far.close(), lambda: None)
        near.say("release", ["a"])
        near.say("adopted", ["b"])
        self.turns.settle()
        self.assertEqual(self.lost, ["near"])


class ReadAllTests(PassingTestCase):
    def test_of_one_that_left_something_unread(self) -> None:
        # Linux says ECONNRESET first, once, and only then what was sent.
        for number in range(40):
            self.near.say("release" if number % 2 else "adopted", [str(number)])
        self.far.say("give", ["unread"])
        self.near.close()
        self.far.read_all()
        self.assertEqual(len(self.heard), 40)
        self.assertEqual(self.lost, ["far"])

    def test_while_paused(self) -> None:
        self.far.pause()
        self.near.say("release", ["a"])
        self.far.read_all()
        self.assertEqual(self.names(), ["a"])

    def test_of_a_process_that_was_killed(self) -> None:
        program = """if True:
            import os, signal, sys
            from tests.workers.test_passing import Outgoing, Outside, Turns, Channel
            import socket
            sock = socket.socket(fileno=int(sys.argv[1]))
            channel = Channel(Turns(), sock, print, print)
            channel.send(Outgoing([Outside("one"), Outside("two")]))
            channel.say("release", ["three"])
            os.kill(os.getpid(), signal.SIGKILL)
        """
        ours, theirs = pair()
        channel = self.channel(ours, "ours")
        with theirs:
            killed = subprocess.run(
                [sys.executable, "-c", program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
                check=False,
            )
        self.assertLess(killed.returncode, 0)
        channel.read_all()
        self.assertEqual([each.says for each in self.heard], ["register", "release"])
        self.assertEqual(self.heard[0].names, ("one", "two"))
        for number in self.heard[0].descriptors:
            os.fstat(number)
        self.assertEqual(self.lost, ["ours"])


class BadInputTests(PassingTestCase):
    def send(self, data: bytes, descriptors: list[int]) -> None:
        rights = array.array("i", descriptors)
        sock = socket.socket(fileno=os.dup(self.near.fileno()))
        with sock:
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def test_no_message(self) -> None:
        descriptor = self.outside("one").descriptors[0]
        before = open_descriptors()
        for data in (
            b"\xff",
            b"{",
            b"[]",
            b'{"names": []}',
            b'{"says": "register"}',
            b'{"says": "sing", "names": []}',
            b'{"says": ["x"], "names": []}',
            b'{"says": "release", "names": [1]}',
            b'{"says": "release", "names": ["a"], "serial": "1"}',
            b'{"says": "register", "names": ["a"]}',
            b'{"says": "register", "names": ["a"], "texts": "b"}',
            b'{"says": "release", "names": ["a"], "texts": ["b"]}',
        ):
            self.send(data, [descriptor, descriptor])
            self.turns.settle()
            self.assertEqual(self.heard, [], data)
            self.assertEqual(open_descriptors(), before)
            self.assertEqual(len(self.flushLoggedErrors(Exception)), 1, data)
        self.near.say("release", ["goes on"])
        self.turns.settle()
        self.assertEqual(self.names(), ["goes on"])

    def test_too_long(self) -> None:
        self.send(b" " * 300_000, [0])
        self.turns.settle()
        self.assertEqual(self.heard, [])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_what_is_unknown_is_left_out(self) -> None:
        said = {"says": "release", "names": ["a"], "why": "of another version"}
        self.send(json.dumps(said).encode(), [])
        self.turns.settle()
        self.assertEqual(self.heard, [Message(says="release", names=("a",))])

    def test_too_few_or_too_many_descriptors(self) -> None:
        descriptors = self.outside("one").descriptors
        data = Message(says="register", names=("one",), texts=("{}",)).encode()
        before = open_descriptors()
        for count in (0, 3, 5):
            self.send(data, [*descriptors, 0][:count])
            self.turns.settle()
            message = self.heard.pop()
            self.assertEqual((message.names, message.descriptors), (("one",), ()))
            self.assertTrue(message.lacking)
            self.assertEqual(open_descriptors(), before)

    def test_descriptors_without_sessions(self) -> None:
        before = open_descriptors()
        self.send(Message(says="release", names=("one",)).encode(), [0, 0])
        self.turns.settle()
        self.assertEqual(self.heard[0].names, ("one",))
        self.assertEqual(open_descriptors(), before)

    def test_no_descriptors_left(self) -> None:
        sessions = self.outsides(3)
        self.near.send(Outgoing(sessions))
        before = open_descriptors()
        with room_for(6):
            self.far.doRead()
        (message,) = self.heard
        self.assertTrue(message.lacking)
        self.assertEqual(message.names, tuple(each.name for each in sessions))
        self.assertEqual(open_descriptors(), before)

    def test_whoever_fails_to_deal_with_one_hears_the_next(self) -> None:
        def received(message: Message) -> None:
            self.heard.append(message)
            raise LookupError

        ours, theirs = pair()
        near = self.channel(ours, "")
        far = Channel(self.turns, theirs, received, lambda: None)
        self.addCleanup(far.close)
        near.say("release", ["a"])
        near.say("adopted", ["b"])
        self.turns.settle()
        self.assertEqual(self.names(), ["a", "b"])
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 2)

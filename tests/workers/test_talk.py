"""How supervisors and workers talk, over real sockets."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from fwdrelay.config import Config, ListenerConfig, PoolConfig, RelayConfig, TargetConfig
from fwdrelay.errors import ConfigError, NotThere
from fwdrelay.workers.child import join
from fwdrelay.workers.talk import Ask, Begin, Gone, Hello, Logged, Ping, Talk, Try
from tests.case import TestCase


class Answering(Talk):
    """Answers what it is told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.gone: Deferred[None] = Deferred()
        super().__init__(lambda: self.gone.callback(None))
        self.asked: list[Any] = []
        self.answer: Any = None

    def _answered(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @Ask.responder
    def ask_(self, method: str, arguments: Any) -> dict[str, Any]:
        self.asked.append((method, arguments))
        return {"answer": self._answered()}

    @Try.responder
    def try_(self, config: Config) -> dict[str, Any]:
        self.asked.append(config)
        return {"wrong": self._answered()}

    @Begin.responder
    def begin(self, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        return {}

    @Hello.responder
    def hello(self, version: str) -> dict[str, Any]:
        self.asked.append(version)
        return {}

    @Logged.responder
    def logged(self, event: Any) -> dict[str, Any]:
        self.asked.append(event)
        return {}


class TalkTests(TestCase):
    def setUp(self) -> None:
        self.one, self.other = Answering(), Answering()
        for sock, talk in zip(socket.socketpair(), (self.one, self.other), strict=True):
            join(reactor, sock, talk)

        self.addCleanup(self._hang_up)

    def _hang_up(self) -> Deferred[Any]:
        if self.one.transport is not None:
            self.one.transport.loseConnection()
        return gatherResults([self.one.gone, self.other.gone])

    async def test_values_are_of_any_size(self) -> None:
        self.other.answer = {"very much": "x" * 1_000_000, ("a", 1): [b"\0", None, 1.5]}
        sent = ("y" * 300_000, 7)
        answer = await self.one.ask(Ask, method="status", arguments=sent)
        self.assertEqual(answer, {"answer": self.other.answer})
        self.assertEqual(self.other.asked, [("status", sent)])

    async def test_a_configuration_arrives_as_it_is(self) -> None:
        config = Config(
            listeners=(ListenerConfig(name="web", listen=("tcp:0",), pool="web"),),
            pools=(PoolConfig(name="web", targets=(TargetConfig(host="localhost", port=80),)),),
            relay=RelayConfig(workers=2),
        )
        self.other.answer = ()
        await self.one.ask(Try, config=config)
        self.assertEqual(self.other.asked, [config])

    async def test_descriptors_arrive_in_order(self) -> None:
        pipes = [os.pipe() for _ in range(3)]
        ends = [end for pipe in pipes for end in pipe]
        for end in ends:
            self.addCleanup(os.close, end)
        sent = [read for read, _ in pipes]
        await self.one.ask(Begin, worker=2, config=None, sockets=(), descriptors=sent)
        (asked,) = self.other.asked
        received = asked["descriptors"]
        self.assertNotEqual(received, sent)
        self.assertFalse(any(map(os.get_inheritable, received)))
        for number, (descriptor, (_, write)) in enumerate(zip(received, pipes, strict=True)):
            os.write(write, b"%d" % number)
            self.assertEqual(os.read(descriptor, 9), b"%d" % number)
            os.close(descriptor)

    async def test_errors_arrive_as_what_they_are(self) -> None:
        for error, kind in (
            (NotThere("there is no pool 'x'"), NotThere),
            (ValueError("'y' is not a client"), ValueError),
        ):
            self.other.answer = error
            with self.assertRaises(kind) as raised:
                await self.one.ask(Ask, method="sessions", arguments=())
            self.assertEqual(str(raised.exception), str(error))
        self.other.answer = ConfigError("relay.pump", "it is odd")
        with self.assertRaisesRegex(Exception, "relay.pump: it is odd"):
            await self.one.ask(Ask, method="sessions", arguments=())

    async def test_a_defect_of_the_other_is_told_of_and_ends_nothing(self) -> None:
        self.other.answer = KeyError("a defect")
        with self.assertRaises(Gone):
            await self.one.ask(Ask, method="sessions", arguments=())
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.other.answer = 3
        self.assertEqual(await self.one.ask(Ask, method="a", arguments=()), {"answer": 3})

    async def test_what_cannot_be_answered_is_told_of(self) -> None:
        with self.assertRaises(Gone):  # nobody has said how
            await self.one.ask(Ping)

    async def test_whoever_has_gone_answers_nobody(self) -> None:
        asking = Deferred.fromCoroutine(self.one.ask(Ask, method="a", arguments=()))
        assert self.other.transport is not None
        self.other.transport.loseConnection()
        with self.assertRaises(Gone):
            await asking
        with self.assertRaises(Gone):
            await self.one.ask(Ask, method="b", arguments=())
        self.one.tell(Logged, event="nobody hears it")

    async def test_what_wants_no_answer_is_said_in_order(self) -> None:
        for number in range(5):
            self.one.tell(Logged, event=number)
        self.one.tell(Hello, version="1")
        self.other.answer = None
        await self.one.ask(Ask, method="now", arguments=())
        self.assertEqual(self.other.asked, [0, 1, 2, 3, 4, "1", ("now", ())])

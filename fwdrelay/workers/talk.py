"""
How a supervisor and its workers talk: AMP over a socket pair, with descriptors passed along.

Both ends are fwdrelay's own, started one by the other, so values are pickled; only what a worker knows of the
sessions it hands on has a format of its own (`fwdrelay.session.portable`), for it passes from one version to
the next and does not come this way.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from ..errors import FwdrelayError, NotPossible, NotThere

_PIECE = 0xFFFF
"""Bytes of one value in an AMP box."""


class Value(amp.Argument):
    """Whatever pickles, however large: as many values of a box as it takes. Its name has no dashes."""

    def toBox(self, name: bytes, strings: Any, objects: Any, proto: Any) -> None:
        data = pickle.dumps(objects[name.decode()])
        pieces = [data[start : start + _PIECE] for start in range(0, len(data), _PIECE)]
        strings[name] = b"%d" % len(pieces)
        for number, piece in enumerate(pieces):
            strings[b"%s.%d" % (name, number)] = piece

    def fromBox(self, name: bytes, strings: Any, objects: Any, proto: Any) -> None:
        count = int(strings[name])
        data = b"".join(strings[b"%s.%d" % (name, number)] for number in range(count))
        objects[name.decode()] = pickle.loads(data)


class Descriptors(amp.Argument):
    """A list of descriptors. AMP's own `ListOf` would send their numbers, which mean nothing elsewhere."""

    def toBox(self, name: bytes, strings: Any, objects: Any, proto: Any) -> None:
        descriptors = objects[name.decode()]
        strings[name] = b"%d" % len(descriptors)
        for number, descriptor in enumerate(descriptors):
            strings[b"%s.%d" % (name, number)] = _ONE.toStringProto(descriptor, proto)

    def fromBox(self, name: bytes, strings: Any, objects: Any, proto: Any) -> None:
        descriptors = []
        for number in range(int(strings[name])):
            descriptor = _ONE.fromStringProto(strings[b"%s.%d" % (name, number)], proto)
            os.set_inheritable(descriptor, False)
            descriptors.append(descriptor)
        objects[name.decode()] = descriptors


_ONE = amp.Descriptor()


class Gone(FwdrelayError):
    """Whoever was asked is not there any more."""


class _Command(amp.Command):
    """
    @cvar errors: those that arrive as what they are; all else is a defect, and arrives as `Gone`.
    """

    errors: ClassVar[dict[type[Exception], bytes]] = {
        NotThere: b"NOT_THERE",
        NotPossible: b"NOT_POSSIBLE",
        ValueError: b"VALUE",
        FwdrelayError: b"FWDRELAY",
    }


class Begin(_Command):
    """
    To a worker: relay.

    @cvar arguments: `worker`: its number; `config`: what is asked for; `sockets`: the addresses with how
        many of the `descriptors` each has, see `fwdrelay.workers.worker`; the last of these is the ledger's.
    """

    arguments: ClassVar[list[Any]] = [
        (b"worker", amp.Integer()),
        (b"config", Value()),
        (b"sockets", Value()),
        (b"descriptors", Descriptors()),
    ]


class Try(_Command):
    """To a worker: would it do to be as `config` says? `wrong`: what is wrong, a sentence each."""

    arguments: ClassVar[list[Any]] = [(b"config", Value())]
    response: ClassVar[list[Any]] = [(b"wrong", Value())]


class Change(_Command):
    """To a worker: be as `config` says from now on, with these sockets besides those it has."""

    arguments: ClassVar[list[Any]] = [
        (b"config", Value()),
        (b"sockets", Value()),
        (b"descriptors", Descriptors()),
    ]
    response: ClassVar[list[Any]] = [(b"changed", amp.Unicode())]


class Reread(_Command):
    """To a worker: there is no configuration file; read the files anew that the command line names."""

    response: ClassVar[list[Any]] = [(b"outcome", Value())]


class Ask(_Command):
    """To a worker: what does this method of its `fwdrelay.steering.Steering` answer?"""

    arguments: ClassVar[list[Any]] = [(b"method", amp.Unicode()), (b"arguments", Value())]
    response: ClassVar[list[Any]] = [(b"answer", Value())]


class Listen(_Command):
    """To a worker: tell (`Told`) of events or steps under this number, until `Unlisten`."""

    arguments: ClassVar[list[Any]] = [
        (b"number", amp.Integer()),
        (b"what", amp.Unicode()),
        (b"arguments", Value()),
    ]


class Unlisten(_Command):
    """To a worker: nobody wants to know any more."""

    arguments: ClassVar[list[Any]] = [(b"number", amp.Integer())]


class Ping(_Command):
    """To a worker: is its reactor alive? `sessions`, `kept`, `skipped`: numbers that are asked for often."""

    response: ClassVar[list[Any]] = [
        (b"sessions", amp.Integer()),
        (b"kept", amp.Integer()),
        (b"skipped", amp.Integer()),
    ]


class HandOver(_Command):
    """To a worker: accept nobody any more, hand all sessions over that can move, drain the others, and end."""


class Drain(_Command):
    """To a worker: drain and end; `now`: cut what is left. May be said more than once."""

    arguments: ClassVar[list[Any]] = [(b"now", amp.Boolean())]


class Reopen(_Command):
    """To a worker: open the access log anew."""


class Renew(_Command):
    """To a worker: when this talk ends, it goes on by that socket, with a renewed supervisor."""

    arguments: ClassVar[list[Any]] = [(b"way", Descriptors())]


class Hello(_Command):
    """To the supervisor: a worker is there, and can be told to begin."""

    requiresAnswer = False
    arguments: ClassVar[list[Any]] = [(b"version", amp.Unicode())]


class Logged(_Command):
    """To the supervisor: an event for its log, as `twisted.logger.eventAsJSON` writes it."""

    requiresAnswer = False
    arguments: ClassVar[list[Any]] = [(b"event", Value())]


class Told(_Command):
    """To the supervisor: something that it listens to."""

    requiresAnswer = False
    arguments: ClassVar[list[Any]] = [(b"number", amp.Integer()), (b"event", Value())]


class Farewell(_Command):
    """To the supervisor: a worker is about to end, and this is what it has counted."""

    requiresAnswer = False
    arguments: ClassVar[list[Any]] = [(b"counters", Value())]


class Talk(amp.AMP):
    """
    One end of the talk.

    @param lost: called once when it is over.
    """

    _log = Logger()

    def __init__(self, lost: Callable[[], object]) -> None:
        super().__init__()
        self._lost = lost
        self.over = False

    def makeConnection(self, transport: Any) -> None:
        """As AMP's, without its line in the log, which would come back here as another."""
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """As AMP's, without its line in the log."""
        self.over = True
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None
        self._lost()

    def locateResponder(self, name: bytes) -> Any:
        """As AMP's; but a defect of ours is told of in the log, and to who has asked, and ends nothing."""
        responder = super().locateResponder(name)
        if responder is None:
            return None

        def answer(box: Any) -> Deferred[Any]:
            return maybeDeferred(responder, box).addErrback(self._tell_of_defect)

        return answer

    def _tell_of_defect(self, failure: Failure) -> Failure:
        if failure.check(amp.RemoteAmpError):
            return failure
        self._log.failure("A command could not be answered", failure)
        said = f"{type(failure.value).__name__}: {failure.value}"
        return Failure(amp.RemoteAmpError(b"DEFECT", said, False))

    async def ask(self, command: type[_Command], **arguments: Any) -> dict[str, Any]:
        """
        @return: what was answered.
        @raise Gone: nobody does any more.
        @raise FwdrelayError: one of its kinds that came from the other end.
        @raise ValueError: likewise.
        """
        if self.over:
            raise Gone("the process has ended")
        try:
            answer: dict[str, Any] = await self.callRemote(command, **arguments)
        except (NotThere, NotPossible, ValueError, FwdrelayError):
            raise
        except Exception as failed:
            raise Gone(str(failed) or type(failed).__name__) from failed
        return answer

    def tell(self, command: type[_Command], **arguments: Any) -> None:
        """Say something that wants no answer, or none that matters; nobody may be there any more."""
        if not self.over:
            said: Deferred[Any] | None = self.callRemote(command, **arguments)
            if said is not None:
                said.addErrback(lambda failure: None)


__all__ = [
    *(
        "Ask",
        "Begin",
        "Change",
        "Drain",
        "Farewell",
        "Gone",
        "HandOver",
        "Hello",
        "Listen",
        "Logged",
    ),
    *("Ping", "Renew", "Reopen", "Reread", "Talk", "Told", "Try", "Unlisten", "Value"),
]

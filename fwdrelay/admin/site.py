"""Those who are connected, and what they share: how many may be, and who has to leave for the next one."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from .api import Api
from .channel import Channel
from .guard import Guard
from .port import Reserve
from .request import AdminRequest

MOST = 256
"""Connections at a time."""
_WARN_EVERY = 60.0


class AdminSite(Site):
    """
    @param reserve: is filled again by who leaves.
    @ivar guard: who may ask.
    @ivar api: what is answered.
    @ivar stopping: whether nobody may come any more.
    """

    _log = Logger()
    protocol: Any = Channel
    noisy = False

    def __init__(self, guard: Guard, api: Api, reserve: Reserve, reactor: Any) -> None:
        super().__init__(Resource(), AdminRequest, parsePOSTFormSubmission=False, reactor=reactor)
        self.timeOut = None
        self.guard = guard
        self.api = api
        self.stopping = False
        self._reserve = reserve
        self._connections: set[Channel] = set()
        self._empty: list[Deferred[None]] = []
        self._warned = -_WARN_EVERY

    # Site would look what time it is each second, for a log that is not written.

    def startFactory(self) -> None:
        """Nothing is to be done."""

    def stopFactory(self) -> None:
        """Nothing is to be done."""

    def log(self, request: Request) -> None:
        """Who changes something is told of in the relay's log; who looks is not."""

    def joined(self, channel: Channel) -> None:
        """Somebody has connected."""
        self._connections.add(channel)
        staying = sum(not each.leaving for each in self._connections)
        if self.stopping or (staying > MOST and not self.make_room(channel)):
            channel.abort()

    def make_room(self, newest: Channel | None = None) -> bool:
        """
        Close the connection that has had nothing to do for longest; else the one whose request is longest in
        coming.

        @param newest: for whom, if it is connected already.
        @return: whether there was one.
        """
        spare = [
            each
            for each in self._connections
            if not each.busy and not each.leaving and each is not newest
        ]
        if not spare:
            return False
        min(spare, key=lambda each: (each.begun, each.since)).loseConnection()
        return True

    def left(self, channel: Channel) -> None:
        """Its connection is closed, and its descriptor free."""
        self._connections.discard(channel)
        if not self.stopping:
            self._reserve.hold()
        elif not self._connections:
            empty, self._empty = self._empty, []
            for each in empty:
                each.callback(None)

    def stop(self) -> Deferred[None]:
        """
        Answer no other request.

        @return: fires when all have left.
        """
        self.stopping = True
        for channel in list(self._connections):
            channel.stop()
        gone: Deferred[None] = Deferred()
        if self._connections:
            self._empty.append(gone)
        else:
            gone.callback(None)
        return gone

    def abort(self) -> None:
        """Close what is left."""
        for channel in list(self._connections):
            channel.abort()

    def wrong_token(self, request: AdminRequest) -> None:
        """Somebody has shown another token: tell of it, once in a while."""
        now = self.reactor.seconds()
        if now - self._warned >= _WARN_EVERY:
            self._warned = now
            self._log.warn(
                "{who} has shown a wrong token; who else does so within a minute is not told of.",
                who=request.who,
            )

"""
The admin server as the relay knows it: it listens, it stops, it reads its token anew.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from ..config import RelayConfig
from ..errors import ConfigError, ConfigErrors
from .administered import Administered
from .api import Api
from .guard import Guard
from .metrics import MetricsPage
from .openapi import describe
from .page import read_page
from .port import AdminTCPPort, AdminUNIXPort, Reserve, listen, where
from .site import AdminSite
from .streams import Streams
from .token import Token, read_token

LAST_WAIT = 1.0
"""Seconds that answers have to be taken when the relay stops."""


class AdminServer:
    """
    Metrics, API and dashboard of one relay.

    @param config: whose `admin` is not `off`.
    @param relay: what is shown and steered.
    """

    log = Logger()

    def __init__(self, config: RelayConfig, relay: Administered, reactor: Any) -> None:
        self._config = config
        self._reactor = reactor
        self._reserve = Reserve(reactor)
        self._streams = Streams(relay, reactor)
        # By a Unix socket the file's mode says who may ask.
        self._guard = Guard(checks_host=not config.admin.startswith("unix:"))
        metrics = MetricsPage(relay, reactor)
        self._needs_token = bool(config.admin_token_file) and self._guard.checks_host
        description = partial(describe, token=self._needs_token)
        api = Api(relay, self._streams, read_page(), metrics, description)
        self._site = AdminSite(self._guard, api, self._reserve, reactor)
        self._port: AdminTCPPort | AdminUNIXPort | None = None

    def listen(self, inherited: socket.socket | None = None) -> None:
        """
        Begin to, and say where.

        @param inherited: what `hand_on` gave; it is closed.
        @raise CannotListen: it can't be done there.
        @raise ConfigErrors: there is to be a token, and there is none in the file.
        """
        try:
            self._guard.token = self._read_token()
        except ConfigError as error:
            raise ConfigErrors([error]) from None
        self._port = listen(self._config.admin, self._site, self._reserve, self._reactor, inherited)
        self.log.info("Metrics, API and dashboard: {where}", where=self.address)

    @property
    def address(self) -> str:
        """Where it listens: `http://127.0.0.1:9678/`, `unix:PATH`; as configured while it doesn't."""
        return self._config.admin if self._port is None else where(self._port)

    def renew_token(self) -> None:
        """
        Read the token's file again; while that is of no use, the old token stays. Who listens has shown the
        old one, and has to show the new one.
        """
        try:
            token = self._read_token()
        except ConfigError as error:
            self.log.error("The token of the admin API stays as it was: {error}", error=error)
            return
        if token != self._guard.token:
            self._guard.token = token
            self._streams.stop()

    def _read_token(self) -> Token | None:
        if not self._needs_token:
            return None
        path = self._config.admin_token_file
        return read_token(path, lambda sentence: self.log.warn("{sentence}", sentence=sentence))

    def stop(self) -> Deferred[None]:
        """
        Close everything: who listens to events is told that this was all, who waits for an answer has a
        moment to get it.

        @return: fires when it is done.
        """
        return Deferred.fromCoroutine(self._stop())

    async def hand_on(self) -> socket.socket:
        """
        Stop, but let the socket listen on: whoever asks meanwhile waits until somebody answers there again.

        @return: that socket.
        """
        port, self._port = self._port, None
        assert port is not None
        kept = socket.socket(fileno=os.dup(port.fileno()))
        await maybeDeferred(port.leave)
        await self._stop()
        return kept

    async def _stop(self) -> None:
        port, self._port = self._port, None
        gone = self._site.stop()
        self._streams.stop()
        if port is not None:
            await maybeDeferred(port.stopListening)
        patience = self._reactor.callLater(LAST_WAIT, self._site.abort)
        await gone
        if patience.active():
            patience.cancel()
        self._reserve.release()

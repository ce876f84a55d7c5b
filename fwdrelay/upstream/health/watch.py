"""
When targets are checked, and what is made of it.

What one check is stands in `fwdrelay.upstream.health.check`, what a row of them comes to in
`fwdrelay.upstream.health.vitals`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import random as _random
from typing import Any

from attrs import define, evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...config import HealthConfig, TargetConfig
from ...config.grammar import parse_escapes
from ...config.model import SendProxy
from ...tls import UpstreamTLS
from ..resolve import Resolver
from ..target import Target
from .check import CannotCheck, Check, How, clause
from .probe import CheckFailed, Expecting, Handshake, HttpRequest, Probe, Secured, tls_context
from .vitals import Vitals

JITTER = 0.1
"""The part of the interval by which a check comes sooner or later, so that checks do not fall together."""
FIRST_WITHIN = 1.0
"""Seconds over which the first checks of many targets are spread."""
OUR_OWN_FAULT = ("no-resources", "no-target")
"""Causes of failed dials that say nothing of the target; see `fwdrelay.dial.CAUSES`."""


@define(eq=False)
class _Watched:
    """
    One target.

    @ivar next: when it is checked next.
    @ivar check: what is under way, with `waiting` for its verdict or its end.
    @ivar given_up: nobody wants to know any more.
    """

    target: Target
    vitals: Vitals
    next: IDelayedCall | None = None
    check: Check | None = None
    waiting: Deferred[None] | None = None
    given_up: bool = False

    def give_up(self) -> None:
        """End what is under way."""
        self.given_up = True
        if self.next is not None and self.next.active():
            self.next.cancel()
        if self.check is not None:
            self.check.give_up()
        if self.waiting is not None:
            self.waiting.cancel()


class Health:
    """
    Finds out which targets of one pool are up.

    Each target is checked by itself, one check at a time. Where nothing is checked (`check = "off"`), a
    target that failed dials have marked down is connected to now and then, until it can be again.

    @param reactor: opens the connections of checks, and is the clock.
    @param bind: source address of checks; empty: the system's choice.
    @param send_proxy: the targets expect a PROXY header, of this version.
    @param tls: how the pool's sessions speak to the targets, and so do checks that say anything; None:
        in the clear.
    @param changed: is called with a target that has come up or gone down, whether it is up, and why.
    @param random: a number from 0 up to 1, another one each time.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        resolver: Resolver,
        config: HealthConfig,
        *,
        bind: str,
        send_proxy: SendProxy,
        changed: Callable[[Target, bool, str], None],
        tls: UpstreamTLS | None = None,
        random: Callable[[], float] = _random,
    ) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._config = config
        self._changed = changed
        self._random = random
        self._how = How(_asking(config, tls), config.timeout, bind, send_proxy)
        self._watched: dict[Target, _Watched] = {}
        self._cannot_check = ""

    def renew_tls(self, tls: UpstreamTLS) -> None:
        """Speak TLS so in the checks that begin from now on: its files have changed."""
        self._how = evolve(self._how, ask=_asking(self._config, tls))

    def seen(self) -> set[Target]:
        """
        @return: those of which it is known, and not only supposed, whether they are up.
        """
        return {target for target, watched in self._watched.items() if watched.vitals.seen}

    def turning(self, target: Target) -> str:
        """
        @return: what speaks for its going down, or coming up, soon; empty: nothing does.
        """
        watched = self._watched.get(target)
        return "" if watched is None else watched.vitals.turning

    def watch(self, target: Target, seen: bool = False) -> None:
        """
        It is one of the pool's now. One that is down stays so until it has passed as many checks as any
        other has to.

        @param seen: somebody has found out before that it is up, so one failed check doesn't decide.
        """
        if target in self._watched:
            return
        config = self._config
        vitals = Vitals(config.rise, config.fall, config.passive_failures, up=target.up, seen=seen)
        watched = self._watched[target] = _Watched(target, vitals)
        if self._wants_checks(watched):
            self._check_in(watched, self._random() * min(config.interval, FIRST_WITHIN))

    def unwatch(self, target: Target) -> None:
        """It is no longer one of the pool's. What is under way for it is given up, at once."""
        watched = self._watched.pop(target, None)
        if watched is not None:
            watched.give_up()

    def stop(self) -> None:
        """Watch none any more. No timer and no connection is left."""
        for target in tuple(self._watched):
            self.unwatch(target)

    def dialed(self, target: Target) -> None:
        """A session's dial reached it."""
        watched = self._watched.get(target)
        if watched is not None:
            watched.vitals.dialed()

    def dial_failed(self, target: Target, cause: str, detail: str) -> None:
        """
        A session's dial failed.

        @param cause: a word of `fwdrelay.dial.CAUSES`.
        @param detail: what the system said.
        """
        watched = self._watched.get(target)
        if watched is None or cause in OUR_OWN_FAULT:
            return
        why = watched.vitals.dial_failed(clause(detail))
        if why is None:
            return
        if self._config.check == "off" and watched.check is None:
            self._check_in(watched, self._interval())
        self._tell(target, False, why)

    def _wants_checks(self, watched: _Watched) -> bool:
        return self._config.check != "off" or not watched.vitals.up

    def _interval(self) -> float:
        return self._config.interval * (1 - JITTER + 2 * JITTER * self._random())

    def _check_in(self, watched: _Watched, delay: float) -> None:
        watched.next = self._reactor.callLater(delay, self._check, watched)

    def _check(self, watched: _Watched) -> None:
        watched.next = None
        check = Check(self._reactor, self._resolver, watched.target.config, self._how)
        watched.check = check
        watched.waiting = Deferred.fromCoroutine(check.verdict())
        watched.waiting.addCallbacks(self._passed, self._failed, (watched,), {}, (watched,))
        watched.waiting.addErrback(self._broken, watched)
        watched.waiting.addCallback(self._judged, watched, check)

    def _passed(self, _: None, watched: _Watched) -> None:
        self._cannot_check = ""
        why = watched.vitals.passed()
        if why is not None:
            self._tell(watched.target, True, why)

    def _failed(self, failure: Failure, watched: _Watched) -> None:
        if watched.given_up:
            return
        failure.trap(CheckFailed, CannotCheck)
        cause = str(failure.value)
        if failure.check(CannotCheck):
            if cause != self._cannot_check:
                self._cannot_check = cause
                self.log.warn(
                    "Can't check target {target}: {cause}. It stays as it is.",
                    target=watched.target.label,
                    cause=cause,
                )
            return
        self._cannot_check = ""
        why = watched.vitals.failed(cause)
        if why is not None:
            self._tell(watched.target, False, why)

    def _broken(self, failure: Failure, watched: _Watched) -> None:
        # A mistake of ours, which must not be the last check of this target.
        if not watched.given_up:
            self.log.failure("A check of {target} broke", failure, target=watched.target.label)

    def _judged(self, _: None, watched: _Watched, check: Check) -> None:
        """The verdict is told; now the connections end, and then it is time for the next check."""
        if watched.given_up:
            return
        watched.waiting = Deferred.fromCoroutine(check.end())
        watched.waiting.addErrback(self._broken, watched)
        watched.waiting.addCallback(self._over, watched)

    def _over(self, _: None, watched: _Watched) -> None:
        watched.check = watched.waiting = None
        if not watched.given_up and self._wants_checks(watched):
            self._check_in(watched, self._interval())

    def _tell(self, target: Target, up: bool, why: str) -> None:
        try:
            self._changed(target, up, why)
        except Exception:
            self.log.failure(
                "That {target} has changed could not be dealt with", target=target.label
            )


def _asking(config: HealthConfig, tls: UpstreamTLS | None) -> Callable[[TargetConfig], Probe]:
    """
    @return: what makes the probe for one connection.
    """
    if config.check == "tls" and tls is None:
        context = tls_context()
        return lambda target: Handshake(context, target.host)
    ask = _saying(config, 80 if tls is None else 443)
    if ask is None:
        return lambda target: Probe()
    if tls is None:
        return ask
    return lambda target: Secured(tls, target, ask(target))


def _saying(config: HealthConfig, port: int) -> Callable[[TargetConfig], Probe] | None:
    """
    @param port: that HTTP servers expect not to be mentioned.
    @return: what makes the probe of checks that say something, if it is only by TLS; None: it is enough to be
        connected to.
    """
    if config.check == "http":
        return lambda target: HttpRequest(target, config.path, config.host, port)
    if config.check == "tls":
        return lambda target: Probe()
    if config.check == "tcp" and (config.send or config.expect):
        send = parse_escapes(config.send)
        expect = re.compile(config.expect.encode()) if config.expect else None
        return lambda target: Expecting(send, expect)
    return None

"""
Names to addresses: cached between, looked up again when they may have changed.

The system's resolver tells no time to live, so an answer is believed for ten seconds; sessions that
want the same name meanwhile wait for one look-up. When a look-up fails, what was known before is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from attrs import define
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import DialFailed

BELIEVED = 10.0
FAILURE_BELIEVED = 1.0
Addresses: TypeAlias = tuple[str, ...]


def interleave(addresses: Sequence[str]) -> Addresses:
    """
    Order addresses as RFC 8305, section 4 wants them tried: the families take turns, beginning with
    the family that the system (RFC 6724) put first.
    """
    first = [a for a in addresses if (":" in a) == (":" in addresses[0])]
    second = [a for a in addresses if (":" in a) != (":" in addresses[0])]
    ordered: list[str] = []
    while first or second:
        ordered += first[:1] + second[:1]
        del first[:1], second[:1]
    return tuple(ordered)


@define(eq=False)
class _Name:
    """What is known of one name."""

    addresses: Addresses = ()
    since: float = 0.0
    until: float = 0.0
    waiting: list[Deferred[Addresses]] | None = None
    failing: bool = False


@implementer(IResolutionReceiver)
class _Receiver:
    """Collects the addresses of one look-up."""

    def __init__(self, done: Any) -> None:
        self._addresses: list[str] = []
        self._done = done

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """Nothing to do."""

    def addressResolved(self, address: Any) -> None:
        if address.host not in self._addresses:
            self._addresses.append(address.host)

    def resolutionComplete(self) -> None:
        self._done(self._addresses)


class Resolver:
    """
    @param reactor: its `nameResolver` looks names up; its clock tells how old an answer is.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._names: dict[str, _Name] = {}

    def resolve(self, host: str) -> Deferred[Addresses]:
        """
        @param host: a name or an address literal.
        @return: fires with its addresses in the order to try them, or fails with `DialFailed`. Each
            caller has a Deferred of its own and may cancel it.
        """
        if isIPAddress(host) or isIPv6Address(host):
            return succeed((host,))
        name = self._names.setdefault(host, _Name())
        if name.waiting is None and self._reactor.seconds() < name.until:
            return self._answer(host, name)

        def no_longer_waited_for(answer: Deferred[Addresses]) -> None:
            if name.waiting is not None and answer in name.waiting:
                name.waiting.remove(answer)

        answer: Deferred[Addresses] = Deferred(no_longer_waited_for)
        if name.waiting is not None:
            name.waiting.append(answer)
            return answer
        name.waiting = [answer]
        receiver = _Receiver(lambda addresses: self._looked_up(host, name, addresses))
        try:
            # Twisted's resolver never answers for a name that has no such form.
            host.encode("idna")
            self._reactor.nameResolver.resolveHostName(receiver, host)
        except Exception:  # idna refuses some names before any look-up
            self._looked_up(host, name, ())
        return answer

    def doubt(self, host: str) -> None:
        """
        No address of `host` could be connected to: what is known of it is believed no longer than a
        failure. Not looked up at once: a target that is down would cost a look-up for each dial.
        """
        name = self._names.get(host)
        if name is not None:
            name.until = min(name.until, name.since + FAILURE_BELIEVED)

    def _looked_up(self, host: str, name: _Name, addresses: Sequence[str]) -> None:
        failing = not addresses
        if failing and not name.failing:
            self.log.warn(
                "Can't resolve {host}; {consequence}.",
                host=host,
                consequence=f"going on with {', '.join(name.addresses)}"
                if name.addresses
                else "its targets can't be dialed",
            )
        elif name.failing and not failing:
            self.log.info("{host} resolves again: {addresses}", host=host, addresses=addresses)
        name.failing = failing
        if addresses:
            name.addresses = interleave(addresses)
        name.since = self._reactor.seconds()
        name.until = name.since + (FAILURE_BELIEVED if failing else BELIEVED)
        waiting, name.waiting = name.waiting, None
        for answer in waiting or ():
            if not answer.called:  # not given up because of what another one was just told
                self._answer(host, name).chainDeferred(answer)

    def _answer(self, host: str, name: _Name) -> Deferred[Addresses]:
        if name.addresses:
            return succeed(name.addresses)
        answer: Deferred[Addresses] = Deferred()
        answer.errback(Failure(DialFailed("resolve", f"{host} does not resolve")))
        return answer

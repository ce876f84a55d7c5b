"""
Names to addresses, with the time that these are good for: what `dns` and `srv` have in common.

Unlike `fwdrelay.upstream.resolve`, which asks the system for the addresses of one dial, this asks name
servers, which tell a time to live.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Coroutine, Iterable
from typing import Any, TypeAlias, TypeVar, cast

from attrs import frozen
from twisted.internet import defer
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger
from twisted.names import dns
from twisted.names.hosts import searchFileForAll
from twisted.python.filepath import FilePath

from ...errors import DiscoveryFailed
from .nameservers import Answer, Nameservers, NoSuchName

HOSTS = "/etc/hosts"
HOSTS_TTL = 10.0
"""Seconds that what a hosts file says is good for."""
LONGEST_LOOK_UP = 30.0
"""Seconds that all questions of one look-up may take together."""
_T = TypeVar("_T")
_IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@frozen
class Addresses:
    """
    @ivar addresses: IPv4 before IPv6, each in the order of their numbers: answers come in any order.
    @ivar ttl: seconds that they are good for.
    """

    addresses: tuple[str, ...]
    ttl: float


@frozen
class _Known:
    answer: Answer
    until: float


class Names:
    """
    Looks addresses up, and never asks again for what is still good.

    @param reactor: its clock tells what is still good.
    @param hosts: a hosts(5) file, which is asked before the name servers where those are the system's.
    """

    log = Logger()

    def __init__(self, reactor: Any, nameservers: Nameservers, hosts: str = HOSTS) -> None:
        self._reactor = reactor
        self._nameservers = nameservers
        self._hosts = hosts if nameservers.system else None
        self._hosts_stamp: tuple[int, ...] = ()
        self._in_hosts: dict[str, set[_IP]] = {}
        self._known: dict[tuple[str, int], _Known] = {}
        self._in_part: set[str] = set()

    async def services(self, name: str) -> Answer:
        """
        @return: the SRV records of `name`.
        @raise DiscoveryFailed: they can't be looked up.
        """
        return await self._nameservers.ask(name, dns.SRV)

    async def addresses(self, host: str) -> Addresses:
        """
        @return: all addresses of `host`, one at least.
        @raise DiscoveryFailed: it has none, or they can't be looked up. When only those of one family
            can't, those are taken that were known of it before.
        """
        named = self._named(host)
        if named:
            return Addresses(_in_order(named), HOSTS_TTL)
        kinds = (dns.A, dns.AAAA)
        outcomes = await together([self._ask(host, kind) for kind in kinds])
        answers = [each for each in outcomes if isinstance(each, Answer) and each.records]
        failures = [each for each in outcomes if isinstance(each, DiscoveryFailed)]
        if not answers:
            if failures:
                raise min(failures, key=lambda each: isinstance(each, NoSuchName))
            raise DiscoveryFailed(f"{host} has no address: neither A nor AAAA records")
        unknown = [each for each in failures if not isinstance(each, NoSuchName)]
        self._say(host, unknown)
        for kind, outcome in zip(kinds, outcomes, strict=True):
            if outcome in unknown and (host, kind) in self._known:
                answers.append(self._known[host, kind].answer)
        found = {
            ipaddress.ip_address(record.address) for each in answers for record in each.records
        }
        return Addresses(_in_order(found), min(each.ttl for each in answers))

    def forget(self, hosts: Iterable[str]) -> None:
        """Keep nothing in mind but what is known of these."""
        kept = set(hosts)
        self._known = {key: known for key, known in self._known.items() if key[0] in kept}
        self._in_hosts = {host: found for host, found in self._in_hosts.items() if host in kept}
        self._in_part &= kept

    def _named(self, host: str) -> set[_IP]:
        """What the hosts file says; it may be long, so nothing is looked for twice in the same one."""
        if self._hosts is None:
            return set()
        try:
            status = os.stat(self._hosts)
        except OSError:
            return set()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._hosts_stamp:
            self._hosts_stamp = stamp
            self._in_hosts.clear()
        if host not in self._in_hosts:
            name = host.rstrip(".").encode(errors="replace")
            found = searchFileForAll(FilePath(self._hosts), name)
            self._in_hosts[host] = {ipaddress.ip_address(each) for each in found}
        return self._in_hosts[host]

    async def _ask(self, host: str, kind: int) -> Answer | DiscoveryFailed:
        """A failure is returned, so that it is not the end of the questions that are asked beside it."""
        now = self._reactor.seconds()
        known = self._known.get((host, kind))
        if known is not None and now < known.until:
            return Answer(known.answer.records, known.until - now)
        try:
            answer = await self._nameservers.ask(host, kind)
        except NoSuchName as failed:
            self._known.pop((host, kind), None)
            return failed
        except DiscoveryFailed as failed:
            return failed
        self._known[host, kind] = _Known(answer, self._reactor.seconds() + answer.ttl)
        return answer

    def _say(self, host: str, unknown: list[DiscoveryFailed]) -> None:
        if unknown and host not in self._in_part:
            self._in_part.add(host)
            self.log.warn(
                "{failed}; going on with what else is known of {host}.",
                failed=unknown[0],
                host=host,
            )
        elif not unknown and host in self._in_part:
            self._in_part.discard(host)
            self.log.info("All addresses of {host} can be looked up again.", host=host)


async def together(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """
    Await all at once; who cancels this cancels all of them.

    @return: what they return, in their order.
    """
    asked = [Deferred.fromCoroutine(each) for each in coroutines]
    try:
        return list(await gatherResults(asked, consumeErrors=True))
    except FirstError as first:
        raise cast("Exception", first.subFailure.value) from None


async def in_time(look_up: Coroutine[Any, Any, _T], reactor: Any) -> _T:
    """
    @return: what `look_up` returns.
    @raise DiscoveryFailed: it took longer than any look-up should.
    """
    try:
        return await Deferred.fromCoroutine(look_up).addTimeout(LONGEST_LOOK_UP, reactor)
    except defer.TimeoutError:
        raise DiscoveryFailed(f"looking it up took longer than {LONGEST_LOOK_UP:g}s") from None


def _in_order(addresses: Iterable[_IP]) -> tuple[str, ...]:
    return tuple(map(str, sorted(addresses, key=lambda address: (address.version, int(address)))))

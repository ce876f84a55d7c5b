"""
Admission to one listener: networks, rates, plugins, and limits that are counted exactly once.

Where several processes serve the listener, limits and rates hold over all of them: what is counted is counted
in a `fwdrelay.ledger` then.

What `Admission` let in, `Admission.leave` lets out. Of a client that has no session nothing is kept but,
where there is a rate for each, its bucket while it fills, and of those no more than
`rate.MOST_BUCKETS`; so memory is bounded by the sessions there are, whoever knocks.

A client is counted by its IPv4 address, or by its IPv6 network of 64 bits: whoever has one address in
that has all of them (RFC 6177, RFC 7721), and would be a new client each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen
from twisted.logger import Logger

from ..config import ListenerConfig, Rate
from ..interfaces import IAdmission
from ..ledger import Ledger
from ..networks import Networks, pack
from ..session.lifecycle import Reason
from .rate import Bucket, Buckets, SharedBucket, SharedBuckets


@frozen
class Refused:
    """Why somebody may not enter; `why` is what a plugin says about it."""

    reason: Reason
    why: str | None = None


_DENIED = Refused(Reason.DENIED)
_FULL = Refused(Reason.MAX_SESSIONS)
_FULL_FOR_CLIENT = Refused(Reason.MAX_SESSIONS_PER_CLIENT)
_TOO_FAST = Refused(Reason.RATE)
_TOO_FAST_FOR_CLIENT = Refused(Reason.RATE_PER_CLIENT)
# Bytes of a packed address: all of IPv4, the network of IPv6.
_COUNTED_BY = 8


class Admission:
    """
    Where the client is known at once, `enter` decides it all. Where a PROXY header tells it, a client gets
    its place first (`take_place`), and the rest is decided when it is known (`identify`).

    @param others: what `config.admit.plugins` name.
    @param seconds: tells the time, by a clock that may be set back.
    @param ledger: where the processes that serve this listener count; None: there is only this one.
    @ivar active: how many places are taken in this process.
    @ivar by_client: whether it matters who the client is.
    @ivar counts_clients: whether those who enter are counted by their addresses.
    """

    log = Logger()

    def __init__(
        self,
        config: ListenerConfig,
        others: Sequence[IAdmission],
        seconds: Callable[[], float],
        ledger: Ledger | None = None,
    ) -> None:
        self._seconds = seconds if ledger is None else ledger.seconds
        self._ledger = ledger
        if ledger is not None:
            self._key = ledger.key("listener", config.name)
            self._key_of_client = ledger.keys("client", config.name)
        self._of_client: dict[bytes, int] = {}
        self._rate: Bucket | SharedBucket | None = None
        self._rate_per_client: Buckets | SharedBuckets | None = None
        self.active = 0
        self.change(config, others)

    def change(self, config: ListenerConfig, others: Sequence[IAdmission]) -> None:
        """
        Judge by `config` from now on. Who is in stays in, and is counted. A rate that stays what it was
        remembers who came; one that is another begins anew.
        """
        admit = config.admit
        self._max_sessions = config.max_sessions
        self._sessions_per_client = admit.sessions_per_client
        self._allow = Networks(admit.allow)
        self._deny = Networks(admit.deny)
        self._listener = config.name
        self._others = tuple(zip(admit.plugins, others, strict=True))
        self._failing = False
        if _rate_of(self._rate) != admit.rate:
            self._rate = self._bucket(admit.rate) if admit.rate else None
        if _rate_of(self._rate_per_client) != admit.rate_per_client:
            each = admit.rate_per_client
            self._rate_per_client = self._buckets(each) if each else None
        self.counts_clients = bool(admit.sessions_per_client)
        self._by_address = bool(
            admit.allow or admit.deny or self.counts_clients or admit.rate_per_client
        )
        self.by_client = bool(self._by_address or others)

    def _bucket(self, rate: Rate) -> Bucket | SharedBucket:
        if self._ledger is None:
            return Bucket(rate, self._seconds())
        return SharedBucket(rate, self._ledger, self._listener)

    def _buckets(self, rate: Rate) -> Buckets | SharedBuckets:
        if self._ledger is None:
            return Buckets(rate, self._seconds())
        return SharedBuckets(rate, self._ledger, self._listener)

    @property
    def taken(self) -> int:
        """How many places are taken in all processes."""
        return self.active if self._ledger is None else self._ledger.count(self._key)

    def enter(self, client: str | None) -> Refused | None:
        """
        @param client: its address; None for a client that came by a Unix socket, about whom networks
            and limits for each client say nothing.
        @return: None for one who may enter, and has a place now; else why not.
        """
        address = pack(client) if client is not None and self._by_address else None
        if address is not None and self._denied(address):
            return _DENIED
        refused = self.take_place()
        if refused is None:
            refused = self._judge(client, address)
            if refused is not None:
                self.leave(None)
        return refused

    def take_place(self) -> Refused | None:
        """
        The first half of `enter`, for a client that isn't known yet.

        @return: None for one who has a place now, until `leave`; else why not.
        """
        if self._max_sessions and self.active >= self._max_sessions:
            return _FULL
        if self._ledger is not None and not self._ledger.take(self._key, self._max_sessions):
            return _FULL
        self.active += 1
        return None

    def identify(self, client: str | None) -> Refused | None:
        """
        The second half of `enter`, for a client that has taken a place.

        @return: None for one who may enter; else why not, and its place is to be given back
            (`leave(None)`).
        """
        address = pack(client) if client is not None and self._by_address else None
        if address is not None and self._denied(address):
            return _DENIED
        return self._judge(client, address)

    def leave(self, client: str | None) -> None:
        """
        Give back a place that was taken.

        @param client: its address, if it was counted by that when it entered.
        """
        self.active -= 1
        if self._ledger is not None:
            self._ledger.give_back(self._key)
        if client is not None:
            self._uncount(pack(client)[:_COUNTED_BY])

    def adopt(self, client: str | None) -> None:
        """
        Take a place for somebody who has entered in another process, and is in, whatever the limits are; the
        counterpart of `leave`.

        @param client: its address, if it was counted by that when it entered.
        """
        self.active += 1
        if self._ledger is not None:
            self._ledger.add(self._key)
        if client is not None:
            self._count(pack(client)[:_COUNTED_BY], 0)

    def _denied(self, address: bytes) -> bool:
        return self._deny.holds(address) or (bool(self._allow) and not self._allow.holds(address))

    def _judge(self, client: str | None, address: bytes | None) -> Refused | None:
        """
        All that takes nothing comes first. The listener's rate comes after the client's: who is too
        fast by himself takes nothing from the others.
        """
        limit, key = self._sessions_per_client, None
        if address is not None:
            key = address[:_COUNTED_BY]
            if limit and not self._count(key, limit):
                return _FULL_FOR_CLIENT
        refused = self._judge_the_rest(client, key)
        if refused is not None and limit and key is not None:
            self._uncount(key)
        return refused

    def _judge_the_rest(self, client: str | None, key: bytes | None) -> Refused | None:
        each = self._rate_per_client
        if each is not None and key is not None and not each.take(key, self._seconds()):
            return _TOO_FAST_FOR_CLIENT
        if self._rate is not None and not self._rate.take(self._seconds()):
            return _TOO_FAST
        return self._ask_others(client) if self._others else None

    def _count(self, key: bytes, limit: int) -> bool:
        """
        Count one more session of a client.

        @param limit: 0: there is none.
        @return: False where it has as many already.
        """
        if self._ledger is not None:
            return self._ledger.take(self._key_of_client(key), limit)
        count = self._of_client.get(key, 0)
        if limit and count >= limit:
            return False
        self._of_client[key] = count + 1
        return True

    def _uncount(self, key: bytes) -> None:
        if self._ledger is not None:
            self._ledger.give_back(self._key_of_client(key))
            return
        left = self._of_client.get(key, 0) - 1
        if left > 0:
            self._of_client[key] = left
        else:
            self._of_client.pop(key, None)

    def _ask_others(self, client: str | None) -> Refused | None:
        """Ask the plugins. One that fails lets nobody in: it may be there to keep somebody out."""
        for name, other in self._others:
            try:
                why = other.admit(client)
                if why is not None and not isinstance(why, str):
                    raise TypeError(f"it answered {why!r}, which is neither None nor a sentence")
            except Exception as failed:
                if not self._failing:
                    self.log.failure(
                        "The admission {name} of listener {listener} failed ({failed}); while it does,"
                        " it lets nobody in, and this is told once.",
                        name=name,
                        listener=self._listener,
                        failed=str(failed) or type(failed).__name__,
                    )
                self._failing = True
                return Refused(Reason.DENIED, "an admission failed")
            if why is not None:
                return Refused(Reason.DENIED, why)
        return None


def _rate_of(kept: Bucket | Buckets | SharedBucket | SharedBuckets | None) -> Rate:
    return kept.rate if kept is not None else Rate()

"""
Rates of new sessions, as token buckets: one for all, and one for each of very many clients.

A bucket holds as many tokens as its `Rate` counts, is full at first and fills evenly; who enters takes
one. It is written as a single number, the *debt*: when, on a clock that ticks once for each token that
fills in, the bucket will be full again (the generic cell rate algorithm in its "virtual scheduling" form,
ITU-T I.371, annex A). A bucket whose time has come is like one that nobody ever took from, and need not be kept.

Nothing here asks for the time: it is told, in seconds of a clock that may be set back. What several processes share
is in a `fwdrelay.ledger`, and goes by its clock, which is not.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from operator import itemgetter

from ..config import Rate
from ..ledger import Ledger

MOST_BUCKETS = 1 << 20
"""How many clients' buckets are kept, and so what they may take: 16 bytes for each, and room to grow."""

_SHARDS = 1 << 10
_SHARD_SHIFT = 64 - 10
_FEWEST = 16
_OWING = itemgetter(1)
# Of a token: what is lost where numbers become too large for their fractions.
_SLACK = 2.0**-10


class _Ticks:
    """A clock that ticks once for each token, begins at 0, and never goes back."""

    __slots__ = ("_latest", "_origin", "_seconds_per_token")

    def __init__(self, rate: Rate, now: float) -> None:
        self._seconds_per_token = rate.seconds / rate.count
        self._origin = now
        self._latest = 0.0

    def at(self, now: float) -> float:
        """How many ticks there were."""
        ticks = (now - self._origin) / self._seconds_per_token
        if ticks < self._latest:
            # Set back. It goes on from here, or nobody would get a token before it has caught up.
            self._origin = now - self._latest * self._seconds_per_token
        else:
            self._latest = ticks
        return self._latest


class Bucket:
    """
    What a whole listener may take from.

    @param now: the time, in seconds.
    @ivar rate: how fast it fills, and how much it holds.
    """

    __slots__ = ("_full_at", "_room", "_ticks", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self._room = rate.count - 1 + _SLACK
        self._ticks = _Ticks(rate, now)
        self._full_at = 0.0

    def take(self, now: float) -> bool:
        """
        @return: whether there was a token; it is gone now.
        """
        tick = self._ticks.at(now)
        full_at = max(self._full_at, tick)
        if full_at - tick > self._room:
            return False
        self._full_at = full_at + 1
        return True


class Buckets:
    """
    One bucket for each client, in bounded memory: of those that would be too many, those are forgotten
    that are nearest to full, so their clients have a full one again.

    They are kept sorted in small arrays, found by a hash that nobody outside can foresee (Python's own,
    of bytes; see PYTHONHASHSEED), so that nobody can choose addresses that crowd one of them.

    @param now: the time, in seconds.
    @param most: how many are kept.
    @ivar rate: how fast each fills, and how much it holds.
    """

    __slots__ = ("_full_at", "_keys", "_most", "_room", "_sweep_at", "_ticks", "rate")

    def __init__(self, rate: Rate, now: float, most: int = MOST_BUCKETS) -> None:
        self.rate = rate
        self._most = max(2, most // _SHARDS)
        self._room = rate.count - 1 + _SLACK
        self._ticks = _Ticks(rate, now)
        # Of each shard: hashes in ascending order, when the bucket of each is full again, and how long it
        # may become before it is looked whether that has come.
        self._keys = [array("Q") for _ in range(_SHARDS)]
        self._full_at = [array("d") for _ in range(_SHARDS)]
        self._sweep_at = [min(_FEWEST, self._most)] * _SHARDS

    def __len__(self) -> int:
        """How many are kept."""
        return sum(map(len, self._keys))

    def take(self, client: bytes, now: float) -> bool:
        """
        @param client: what makes it another client than others.
        @return: whether there was a token; it is gone now.
        """
        tick = self._ticks.at(now)
        key = hash(client) & 0xFFFFFFFFFFFFFFFF
        shard = key >> _SHARD_SHIFT
        keys, full_at = self._keys[shard], self._full_at[shard]
        at = bisect_left(keys, key)
        if at < len(keys) and keys[at] == key:
            full = full_at[at]
            if full - tick > self._room:
                return False
            full_at[at] = max(full, tick) + 1
            return True
        if len(keys) >= self._sweep_at[shard]:
            self._sweep(shard, tick)
            keys, full_at = self._keys[shard], self._full_at[shard]
            at = bisect_left(keys, key)
        keys.insert(at, key)
        full_at.insert(at, tick + 1)
        return True

    def _sweep(self, shard: int, tick: float) -> None:
        """Forget who has a full bucket; and where that is not enough, the half nearest to it."""
        keys, full_at = self._keys[shard], self._full_at[shard]
        kept = [(key, full) for key, full in zip(keys, full_at, strict=True) if full > tick]
        if len(kept) > self._most * 3 // 4:
            kept.sort(key=_OWING)
            kept = sorted(kept[len(kept) // 2 :])
        self._keys[shard] = array("Q", [key for key, _ in kept])
        self._full_at[shard] = array("d", [full for _, full in kept])
        self._sweep_at[shard] = min(max(_FEWEST, 2 * len(kept)), self._most)


class SharedBucket:
    """
    As `Bucket`, for a listener that several processes serve. One of the same listener and rate is the same
    bucket, whoever made it.

    @ivar rate: how fast it fills, and how much it holds.
    """

    __slots__ = ("_interval", "_key", "_room", "_tokens", "rate")

    def __init__(self, rate: Rate, ledger: Ledger, listener: str) -> None:
        self.rate = rate
        self._interval, self._room = _spans(rate)
        self._tokens = ledger.listeners_tokens
        self._key = ledger.key("rate", listener, _text(rate))

    def take(self, now: float) -> bool:
        """
        @return: whether there was a token; it is gone now.
        """
        return self._tokens.take(self._key, self._interval, self._room, now)


class SharedBuckets:
    """
    As `Buckets`, for a listener that several processes serve; see `fwdrelay.ledger.Tokens` for who is forgotten
    where there are too many.

    @ivar rate: how fast each fills, and how much it holds.
    """

    __slots__ = ("_interval", "_key", "_room", "_tokens", "rate")

    def __init__(self, rate: Rate, ledger: Ledger, listener: str) -> None:
        self.rate = rate
        self._interval, self._room = _spans(rate)
        self._tokens = ledger.clients_tokens
        self._key = ledger.keys("rate", listener, _text(rate))

    def take(self, client: bytes, now: float) -> bool:
        """
        @param client: what makes it another client than others.
        @return: whether there was a token; it is gone now.
        """
        return self._tokens.take(self._key(client), self._interval, self._room, now)


def _spans(rate: Rate) -> tuple[float, float]:
    """
    @return: seconds until one more token is there, and how far from full a bucket may be that has one.
    """
    interval = rate.seconds / rate.count
    return interval, (rate.count - 1 + _SLACK) * interval


def _text(rate: Rate) -> str:
    """A rate that is another begins anew, as its buckets have other names."""
    return f"{rate.count}/{rate.seconds!r}"

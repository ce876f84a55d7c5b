"""
What holds over all workers together: how many sessions each name has, and what was taken of each rate, in
memory that all these processes share.

It knows neither listeners nor pools, only numbers that stand for names (`Ledger.key`); which limits there are,
and what to do when one is reached, is for `fwdrelay.admit` and `fwdrelay.upstream` to say.

Each process writes its counts into a region of its own, and reads those of the others. So nothing that a process
does by halves before it dies can make a count wrong; what it held counts until the supervisor says that it is gone
(`Ledger.recount`), and not a moment longer. Rates are one table that all write to; what is lost of
it by halves is one token.

A record lock makes one step of asking and taking. It belongs to an open file description, so the kernel gives it
back for whoever dies (fcntl(2), "Open file description locks"); and who gets it in no reasonable time goes on without
it: a few sessions more than there may be are less harm than all workers standing still because one does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from attrs import frozen
from twisted.logger import Logger

VERSION = 1
"""Of what is where in the memory. Another one has another layout."""
MOST_BUCKETS = 1 << 20
"""How many clients' buckets of tokens are kept, at 16 bytes each."""
MOST_KEYS = 1 << 20
"""How large a process' table of counts may become; more sessions than fill it take more descriptors than there are."""
MOST_PROCESSES = 256
"""How many may count at once: workers, and those before them that still drain."""

_MAGIC = int.from_bytes(b"fwdrelay", "little")
_WORD = 8
_PAGE = 4096
_MASK = 0xFFFFFFFF
_HALF_BITS = 32

# The header, in words, then what each region's state is.
_AT_MAGIC, _AT_VERSION, _AT_SECRET, _AT_CHANGE, _AT_REGIONS = 0, 1, 2, 4, 8
_HEADER = _PAGE
# Rows of buckets: so many keys, then when each is full again.
_PER_ROW = 16
_ROW = struct.Struct(f"{_PER_ROW}Q")
_DEBTS = struct.Struct(f"{_PER_ROW}d")
_ROW_SIZE = _ROW.size + _DEBTS.size
_LISTENERS_ROWS = 64
_CLIENTS_ROWS = MOST_BUCKETS // _PER_ROW
_SHARED = _HEADER + (_LISTENERS_ROWS + _CLIENTS_ROWS) * _ROW_SIZE
# A region: a page that says which half its table is in and how large it is, and two halves of keys and counts,
# each of which grows into the other.
_HALF = MOST_KEYS * 2 * _WORD
_REGION = _PAGE + 2 * _HALF
_SMALLEST = 64
_SIZE = _SHARED + MOST_PROCESSES * _REGION

_FREE, _USED = 0, 1

# Seconds. A process that is only not scheduled, or whose control group may not run, has gone on by then.
_PATIENCE = 0.2
_IMPATIENT_FOR = 1.0
_SILENT_FOR = 60.0
_YIELDS = 20
_PAUSE = 0.0002


def _flock(kind: int, start: int) -> bytes:
    """@return: a `struct flock` of one byte; the process ID has to be 0."""
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, start, 1, 0)


_LOCK, _UNLOCK = _flock(fcntl.F_WRLCK, 0), _flock(fcntl.F_UNLCK, 0)


class Tokens:
    """
    Very many buckets of tokens in bounded memory, as `fwdrelay.admit.rate` has them: each is written as when it will
    be full again. A key has its place in one row. Where that is taken, the bucket nearest to full is forgotten, so
    its client has a full one again; those that are full are nearest.
    """

    __slots__ = ("_begin", "_debts", "_ledger", "_memory", "_rows", "_words")

    def __init__(self, ledger: Ledger, memory: mmap.mmap, begin: int, rows: int) -> None:
        self._ledger = ledger
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        self._debts = memoryview(memory).cast("d")
        self._begin = begin
        self._rows = rows

    def take(self, key: int, interval: float, room: float, now: float) -> bool:
        """
        @param key: whose bucket it is; also what it holds should be a part of that.
        @param interval: seconds until one more token is in it.
        @param room: seconds that it may be from full, and still have one.
        @param now: of a clock that is the same in all processes and is never set back.
        @return: whether there was a token; it is gone now.
        """
        start = self._begin + (key >> 40) % self._rows * _ROW_SIZE
        debts = self._debts
        self._ledger.lock()
        try:
            keys = _ROW.unpack_from(self._memory, start)
            first = (start + _ROW.size) // _WORD
            if key in keys:
                at = first + keys.index(key)
                full_at = debts[at]
                if full_at < now:
                    full_at = now
                elif full_at - now > room:
                    return False
                debts[at] = full_at + interval
                return True
            owed = _DEBTS.unpack_from(self._memory, start + _ROW.size)
            at = owed.index(min(owed))
            debts[first + at] = now + interval
            self._words[start // _WORD + at] = key
            return True
        finally:
            self._ledger.unlock()

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._debts.release()


@frozen(eq=False)
class _Region:
    """Where one process counts, as another or itself sees it."""

    memory: mmap.mmap
    words: memoryview

    @classmethod
    def of(cls, descriptor: int, number: int) -> _Region:
        memory = mmap.mmap(descriptor, _REGION, offset=_SHARED + number * _REGION)
        return cls(memory, memoryview(memory).cast("Q"))

    @classmethod
    def private(cls) -> _Region:
        memory = mmap.mmap(-1, _REGION)
        return cls(memory, memoryview(memory).cast("Q"))

    def clear(self) -> None:
        """All of it is zeros, and takes no memory any more."""
        self.memory.madvise(mmap.MADV_REMOVE, 0, _REGION)

    def close(self) -> None:
        self.words.release()
        self.memory.close()


class Ledger:
    """
    One process' view of it. Made by the supervisor (`create`), opened by each worker, and by a supervisor that has
    re-executed itself (`open`).

    It is of use until `close`; after that nothing is counted, and nothing there is left.

    @param descriptor: of the memory; from now on it is the ledger's to close.
    @param seconds: a clock that is the same in all processes and is never set back.
    @ivar listeners_tokens: buckets of whole listeners, which clients can't crowd out.
    @ivar clients_tokens: buckets of clients.
    """

    log = Logger()

    def __init__(self, descriptor: int, seconds: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SHARED)
        self._words = memoryview(self._memory).cast("Q")
        start = _AT_SECRET * _WORD
        self._secret = self._memory[start : start + 2 * _WORD]
        self.listeners_tokens = Tokens(self, self._memory, _HEADER, _LISTENERS_ROWS)
        after = _HEADER + _LISTENERS_ROWS * _ROW_SIZE
        self.clients_tokens = Tokens(self, self._memory, after, _CLIENTS_ROWS)
        self._number: int | None = None
        self._own: _Region | None = None
        self._counts: memoryview = self._words
        self._places: dict[int, int] = {}
        self._size = 0
        self._change_seen = 0
        self._others: dict[int, _Region] = {}
        self._other_words: list[memoryview] = []
        self._impatient_until = 0.0
        self._silent_until = 0.0
        self._closed = False

    @classmethod
    def create(cls, seconds: Callable[[], float] = time.monotonic) -> Ledger:
        """
        @return: an empty one.
        """
        descriptor = os.memfd_create("fwdrelay-ledger", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, _SIZE)  # of which only that is there which was written to
            header = struct.pack("<QQ", _MAGIC, VERSION) + secrets.token_bytes(2 * _WORD)
            os.pwrite(descriptor, header, 0)
            return cls(descriptor, seconds)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def open(cls, descriptor: int, seconds: Callable[[], float] = time.monotonic) -> Ledger:
        """
        Open one that is there already.

        @param descriptor: another process' `Ledger.fileno()`, as it was passed on; it stays the caller's to close.
        @raise ValueError: it is none, or of a version that isn't known here.
        @raise OSError: it can't be opened.
        """
        # With a description of its own; locks belong to that.
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            begins = os.pread(own, 2 * _WORD, 0)
            magic, version = struct.unpack("<QQ", begins) if len(begins) == 2 * _WORD else (0, 0)
            if magic != _MAGIC:
                raise ValueError("this is no ledger of fwdrelay")
            if version != VERSION or os.fstat(own).st_size != _SIZE:
                raise ValueError(f"the ledger is of version {version}; version {VERSION} is known")
            return cls(own, seconds)
        except BaseException:
            os.close(own)
            raise

    def fileno(self) -> int:
        """What another process opens it by."""
        return self._descriptor

    def close(self) -> None:
        """Give back all that this process holds."""
        if self._closed:
            return
        self._closed = True
        self._places = {}
        if self._own is not None:
            if self._number is not None:
                self.lock()
                try:
                    self._leave(self._number, self._own)
                finally:
                    self.unlock()
            self._own.close()
            self._own = None
        for region in self._others.values():
            region.close()
        self._others, self._other_words = {}, []
        for tokens in (self.listeners_tokens, self.clients_tokens):
            tokens.close()
        self._words.release()
        self._memory.close()
        os.close(self._descriptor)
        self._descriptor = -1

    # Names.

    def key(self, kind: str, *names: str) -> int:
        """
        @param kind: what it is that has these names.
        @return: what stands for it here. Nobody who doesn't see this memory can foresee it.
        """
        return self.keys(kind, *names)(b"")

    def keys(self, kind: str, *names: str) -> Callable[[bytes], int]:
        """
        @return: makes keys of what these names have very many of, such as clients.
        """
        begun = blake2b(key=self._secret, digest_size=_WORD)
        for name in (kind, *names):
            text = name.encode("utf-8", "surrogateescape")
            begun.update(len(text).to_bytes(4, "little") + text)

        def key(last: bytes) -> int:
            each = begun.copy()
            each.update(last)
            return int.from_bytes(each.digest(), "little") or 1  # 0 is where there is none

        return key

    # Sessions.

    def take(self, key: int, limit: int) -> bool:
        """
        Count one more, unless as many as `limit` are counted in all processes; 0: there is no limit.

        @return: whether it is counted; it is owed a `give_back` then.
        """
        at = self._places.get(key) or self._place(key)
        if not at:
            return not limit  # which keeps memory bounded
        if not limit:
            self._counts[at] += 1
            return True
        self.lock()
        try:
            counts = self._counts
            if counts[at] + self._elsewhere(key) >= limit:
                return False
            counts[at] += 1
            return True
        finally:
            self.unlock()

    def add(self, key: int) -> None:
        """Count one more, whatever the limit is; it is owed a `give_back`."""
        self.take(key, 0)

    def give_back(self, key: int) -> None:
        """Count one less."""
        at = self._places.get(key)
        if at is not None and self._counts[at]:
            self._counts[at] -= 1

    def count(self, key: int) -> int:
        """
        @return: how many there are in all processes.
        """
        if self._closed:
            return 0
        return self.own_count(key) + self._elsewhere(key)

    def own_count(self, key: int) -> int:
        """
        @return: how many of them are this process' own.
        """
        at = self._places.get(key)
        return 0 if at is None else self._counts[at]

    def post(self, key: int, number: int) -> None:
        """
        Let the others see `number`, which is no count.

        @param number: from 0 up; 0: there is none any more.
        """
        at = self._places.get(key) or (number and self._place(key))
        if at:
            self._counts[at] = number

    def posted(self, key: int) -> list[int]:
        """
        @return: what other processes let see under this key.
        """
        return [] if self._closed else [number for number in self._of_others(key) if number]

    def recount(self) -> int:
        """
        Forget what those held that have died. It is the supervisor's to call, when a worker's sessions are nobody's
        or somebody else's, so that none is left out meanwhile.

        @return: how many had died.
        """
        died = 0
        for number in range(MOST_PROCESSES):
            if number == self._number or self._words[_AT_REGIONS + number] == _FREE:
                continue
            if not self._claim(number):
                continue  # it lives
            died += 1
            region = _Region.of(self._descriptor, number)
            try:
                self.lock()
                try:
                    self._leave(number, region)
                finally:
                    self.unlock()
            finally:
                region.close()
        return died

    # The lock.

    def lock(self) -> None:
        """
        Keep the other processes from taking anything until `unlock`; which is to come soon, from the same
        function.
        """
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _LOCK)
        except (BlockingIOError, PermissionError):
            self._wait_for_lock()

    def unlock(self) -> None:
        """Let the others go on."""
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _UNLOCK)

    def _wait_for_lock(self) -> None:
        """Somebody else has it; for some microseconds, nearly always."""
        now = time.monotonic()
        if now < self._impatient_until:
            return
        tries, until = 0, now + _PATIENCE
        while True:
            if tries < _YIELDS:
                os.sched_yield()
            else:
                time.sleep(_PAUSE)
            tries += 1
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _LOCK)
            except (BlockingIOError, PermissionError):
                now = time.monotonic()
                if now < until:
                    continue
                # One that was stopped, and will be ended; until then this process is not to stand still, too.
                self._impatient_until = now + _IMPATIENT_FOR
                if now >= self._silent_until:
                    self.log.warn(
                        "Another process keeps the limits of all workers to itself; until it goes on or ends,"
                        " there may be a few sessions more than they allow."
                    )
                self._silent_until = now + _SILENT_FOR
            return

    # Regions.

    def _claim(self, number: int) -> bool:
        """
        @return: whether the region is nobody's who lives; it is this process' now.
        """
        try:
            self._set_lock(fcntl.F_WRLCK, number)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _set_lock(self, kind: int, number: int) -> None:
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _flock(kind, 1 + number))

    def _leave(self, number: int, region: _Region) -> None:
        """The region, which is this process', is nobody's any more."""
        self._words[_AT_REGIONS + number] = _FREE
        self._tell_change()
        region.clear()
        self._set_lock(fcntl.F_UNLCK, number)

    def _tell_change(self) -> None:
        # By chance, not by counting on: two could do that at once where the lock is not to be had.
        self._words[_AT_CHANGE] = secrets.randbits(64)

    def _enter(self) -> None:
        """Get a region; where there is none left, one that nobody else sees."""
        number = next(filter(self._claim_free, range(MOST_PROCESSES)), None)
        if number is None:
            region = _Region.private()
            self.log.error(
                "More than {most} processes count sessions: those of this one are no part of the limits of the others.",
                most=MOST_PROCESSES,
            )
        else:
            region = _Region.of(self._descriptor, number)
            region.clear()
        region.words[0] = self._size = _SMALLEST
        self._number, self._own, self._counts = number, region, region.words
        if number is not None:
            self.lock()
            try:
                self._words[_AT_REGIONS + number] = _USED
                self._tell_change()
            finally:
                self.unlock()

    def _claim_free(self, number: int) -> bool:
        at = _AT_REGIONS + number
        if self._words[at] != _FREE or not self._claim(number):
            return False
        if self._words[at] == _FREE:
            return True
        # Somebody has come and died since; that is the supervisor's to say.
        self._set_lock(fcntl.F_UNLCK, number)
        return False

    def _place(self, key: int) -> int:
        """
        @return: where its count is, after it was given a place; 0: there is none.
        """
        if self._closed:
            return 0
        if self._own is None:
            self._enter()
        used = len(self._places) + 1
        if used > (self._size // 2 if self._size < MOST_KEYS else MOST_KEYS // 4 * 3):
            self._rebuild()
            if len(self._places) >= MOST_KEYS // 4 * 3:
                return 0
        at = _free_place(self._counts, self._table, key)
        self._places[key] = at + 1
        self._counts[at] = key
        return at + 1

    @property
    def _table(self) -> int:
        return self._counts[0]

    def _rebuild(self) -> None:
        """Write what still counts into the other half, in a table of the right size."""
        assert self._own is not None
        words = self._own.words
        live = [(key, words[at]) for key, at in self._places.items() if words[at]]
        size = _SMALLEST
        while size < min(4 * len(live), MOST_KEYS):
            size *= 2
        before = words[0] >> _HALF_BITS
        half = 1 - before
        table = half << _HALF_BITS | size
        places: dict[int, int] = {}
        for key, count in live:
            at = _free_place(words, table, key)
            words[at] = key
            words[at + 1] = count
            places[key] = at + 1
        self.lock()
        try:
            words[0] = table
        finally:
            self.unlock()
        self._size, self._places = size, places
        self._own.memory.madvise(mmap.MADV_REMOVE, _PAGE + before * _HALF, _HALF)

    def _elsewhere(self, key: int) -> int:
        """
        @return: how many there are in the other processes.
        """
        return sum(self._of_others(key))

    def _of_others(self, key: int) -> list[int]:
        if self._words[_AT_CHANGE] != self._change_seen:
            self._look_who_is_there()
        found_of: list[int] = []
        for words in self._other_words:
            table = words[0]
            mask = (table & _MASK) - 1
            begin = _begin_of(table)
            at = key & mask
            while found := words[begin + 2 * at]:
                if found == key:
                    found_of.append(words[begin + 2 * at + 1])
                    break
                at = (at + 1) & mask
        return found_of

    def _look_who_is_there(self) -> None:
        self._change_seen = self._words[_AT_CHANGE]
        used = {
            number
            for number, state in enumerate(self._words[_AT_REGIONS : _AT_REGIONS + MOST_PROCESSES])
            if state == _USED and number != self._number
        }
        self._other_words = []
        for number in self._others.keys() - used:
            self._others.pop(number).close()
        for number in used - self._others.keys():
            self._others[number] = _Region.of(self._descriptor, number)
        self._other_words = [region.words for region in self._others.values()]


def _begin_of(table: int) -> int:
    """
    @return: the word where a table begins.
    """
    return (_PAGE + (table >> _HALF_BITS) * _HALF) // _WORD


def _free_place(words: Any, table: int, key: int) -> int:
    """
    @return: the word for a key that the table doesn't have yet; its count is the next one.
    """
    mask = (table & _MASK) - 1
    begin = _begin_of(table)
    at = key & mask
    while words[begin + 2 * at]:
        at = (at + 1) & mask
    return begin + 2 * at

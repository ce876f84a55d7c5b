"""
Maglev's lookup table: D. Eisenbud et al., Maglev: A Fast and Reliable Software Network Load
Balancer (NSDI 2016), section 3.4.

Pure: names and weights in, a table out, the same on every machine. What is looked up there is
`fwdrelay.upstream.elect.source_hash`'s.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Generator, Iterator, Sequence
from hashlib import blake2b
from itertools import count, cycle
from typing import TypeAlias

SIZE = 65537
"""How many slots a table has: the prime that the paper calls small."""

# How many slots are filled in one step. The last few are searched for long: they are steps of their own.
_STEP = 64

Members: TypeAlias = Sequence[tuple[str, int]]
"""Names and weights, the weights from 1 up. Their order counts: sort them."""
Slots: TypeAlias = "array[int]"
"""For each slot, the index of the member who has it."""


def digest(text: str, person: bytes) -> int:
    """
    @param person: what it is used for, up to 16 bytes; another use gives other numbers.
    @return: 64 bits that depend on nothing else: not on the process, as those of `hash` do.
    """
    # A Unix path that is not UTF-8 comes with surrogates.
    data = text.encode(errors="surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8, person=person).digest(), "big")


def walk(number: int) -> tuple[int, int]:
    """
    @param number: 64 random bits.
    @return: a slot to begin with, and a step from 1 up that leads through all others, as `SIZE` is
        a prime: (slot + step) % `SIZE` and so on.
    """
    rest, slot = divmod(number, SIZE)
    return slot, rest % (SIZE - 1) + 1


def fill(members: Members) -> Generator[None, None, Slots]:
    """
    Fill a table, in many small steps: each member walks its own way through the slots and, when it
    is its turn, takes the next that is free. So who has a slot depends little on who else is there.

    @return: (from the generator) the table.
    """
    slots = array("I", [0]) * SIZE
    if len(members) == 1:
        return slots
    free = bytearray(b"\x01") * SIZE
    walks = [walk(digest(name, b"fwdrelay target")) for name, _ in members]
    at = [slot for slot, _ in walks]
    steps = [step for _, step in walks]
    left = SIZE
    for index in _turns([weight for _, weight in members]):
        slot = at[index]
        step = steps[index]
        while not free[slot]:
            slot = (slot + step) % SIZE
        at[index] = slot
        free[slot] = 0
        slots[slot] = index
        left -= 1
        if left < _STEP or not left % _STEP:
            if not left:
                break
            yield
    return slots


def _turns(weights: Sequence[int]) -> Iterator[int]:
    """
    Whose turn it is, without end. Each has its nth turn at the time n/weight, whoever else is there,
    so that others keep their order when one comes or goes; all have their first at 0.
    """
    if len(set(weights)) == 1:  # the same, quicker
        return cycle(range(len(weights)))
    turns = (_turns_of(index, weight) for index, weight in enumerate(weights))
    return (index for _, index in heapq.merge(*turns))


def _turns_of(index: int, weight: int) -> Iterator[tuple[float, int]]:
    return ((turn / weight, index) for turn in count())

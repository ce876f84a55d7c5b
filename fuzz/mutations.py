"""
How input is damaged: a few changes, each of a kind that parsers have stumbled over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

Mutation: TypeAlias = Callable[[bytes, Random], bytes]

_TELLING = b"\0\x01\x02\x03\x05\x10\x16\x7f\x80\xfe\xff\r\n .:09AZ"
"""Bytes that mean something to one parser or another."""


def mutate(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """
    @param others: of its corpus, of which pieces may be put into it.
    @return: `data` with some changes; sometimes none.
    """
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        if others and random.random() < 0.1:
            data = _splice(data, random.choice(others), random)
        else:
            data = random.choice(_MUTATIONS)(data, random)
    return data


def _place(data: bytes, random: Random) -> int:
    """Mostly near the beginning, where what decides stands."""
    return random.randrange(min(len(data), random.choice((16, 64, 256, len(data) or 1))) or 1)


def _flip(data: bytes, random: Random) -> bytes:
    at = _place(data, random)
    return (
        data[:at]
        + bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1])
        + data[at + 1 :]
    )


def _overwrite(data: bytes, random: Random) -> bytes:
    at = _place(data, random)
    return data[:at] + bytes((random.choice(_TELLING),)) + data[at + 1 :]


def _count(data: bytes, random: Random) -> bytes:
    """One up or down in one or two bytes, as lengths are off by one, or by some more."""
    at, size = _place(data, random), random.choice((1, 2))
    number = int.from_bytes(data[at : at + size], "big") + random.choice((-8, -2, -1, 1, 2, 8))
    return (
        data[:at]
        + (number % (65536 if size == 2 else 256)).to_bytes(size, "big")
        + data[at + size :]
    )


def _insert(data: bytes, random: Random) -> bytes:
    at = _place(data, random)
    return data[:at] + random.randbytes(random.choice((1, 1, 2, 3, 5, 40))) + data[at:]


def _remove(data: bytes, random: Random) -> bytes:
    at = _place(data, random)
    return data[:at] + data[at + random.choice((1, 1, 2, 4, 16)) :]


def _repeat(data: bytes, random: Random) -> bytes:
    at = _place(data, random)
    end = at + random.choice((1, 4, 7, 20, 100))
    return data[:end] + data[at:end] * random.choice((1, 1, 2, 50)) + data[end:]


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _append(data: bytes, random: Random) -> bytes:
    return data + random.randbytes(random.choice((1, 5, 300, 20_000)))


def _splice(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


_MUTATIONS: Sequence[Mutation] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _count,
    _count,
    _insert,
    _remove,
    _repeat,
    _cut,
    _append,
)

"""Numbers and lists as sentences of the log have them."""

from __future__ import annotations

from collections.abc import Collection

# Of a list: more of them are only counted.
_NAMED = 8


def counted(number: int, thing: str) -> str:
    """
    @return: `1 session`, `2 sessions`.
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def some(names: Collection[str]) -> str:
    """
    @return: the first of them; of the others, how many there are.
    """
    named = ", ".join(list(names)[:_NAMED])
    more = len(names) - _NAMED
    return f"{named} and {more} more" if more > 0 else named

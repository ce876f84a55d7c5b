"""Which target is meant by `POOL/TARGET`, or by its label alone; and what else there is in its pool."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.check import did_you_mean
from ..words import some
from .answers import PoolShown, TargetShown
from .api import segment
from .exits import USAGE, Failure, NoSuchThing


class Ambiguous(Failure):
    """More than one is called so."""

    status = USAGE


def full_name(pool: PoolShown, target: TargetShown) -> str:
    """
    @return: `POOL/TARGET`.
    """
    return f"{pool.name}/{target.name}"


def find_target(text: str, pools: Sequence[PoolShown]) -> tuple[PoolShown, TargetShown]:
    """
    A label may have slashes and colons, a pool's name has none: what is a full name is one, whatever
    labels there are.

    @raise NoSuchThing: there is no such target.
    @raise Ambiguous: several pools have one.
    """
    all_of_them = [(pool, target) for pool in pools for target in pool.targets]
    for pool, target in all_of_them:
        if full_name(pool, target) == text:
            return pool, target
    found = {pool.name: (pool, target) for pool, target in all_of_them if target.name == text}
    if len(found) > 1:
        names = some([full_name(pool, target) for pool, target in found.values()])
        raise Ambiguous(f"{text!r} is in several pools: say which, of {names}")
    for both in found.values():
        return both
    names_of_all = [full_name(pool, target) for pool, target in all_of_them]
    hint = did_you_mean(text, [*names_of_all, *(target.name for _, target in all_of_them)])
    known = f"; there is {some(names_of_all)}" if names_of_all else ", nor any other"
    raise NoSuchThing(f"there is no target {text!r}{hint or known}")


def target_path(pool: PoolShown, target: TargetShown) -> str:
    """
    @return: where the API has it.
    """
    return f"/v1/pools/{segment(pool.name)}/targets/{segment(target.name)}"


def what_may_surprise(pool: PoolShown, target: TargetShown) -> list[str]:
    """
    @param pool: as it was before.
    @param target: one of it, whose state was set.
    @return: what somebody may not have thought of, as sentences.
    """
    if target.state == "ready":
        return (
            [] if target.up else [f"{full_name(pool, target)} is down all the same: {target.cause}"]
        )
    others = [each for each in pool.targets if each.name != target.name]
    if any(each.up and each.state == "ready" for each in others):
        return []
    return [f"pool {pool.name} has no target left that is up"]

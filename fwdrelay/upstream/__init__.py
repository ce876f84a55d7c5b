"""
Where sessions go: targets, the pools they form, how one is elected, whether they are up, where more of
them are found, and the addresses behind their names.

Nothing here opens a session's connection; that is `fwdrelay.dial`.
"""

from .parts import PoolParts, make_parts
from .pool import Pool, Waiter, former_target
from .resolve import Resolver
from .target import Target, TargetState

__all__ = [
    "Pool",
    "PoolParts",
    "Resolver",
    "Target",
    "TargetState",
    "Waiter",
    "former_target",
    "make_parts",
]

"""
Where sessions go: targets, the pools they form, and the addresses behind their names.

Nothing here opens a connection; that is `fwdrelay.dial`.
"""

from .pool import Pool
from .resolve import Resolver
from .target import Target

__all__ = ["Pool", "Resolver", "Target"]

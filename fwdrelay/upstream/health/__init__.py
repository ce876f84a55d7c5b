"""
Which targets can take sessions: checks of our own, and what becomes of the sessions' dials.

`watch` tells when a target is checked, `check` carries one check out, `probe` knows what is said in
it, and `vitals` counts. What a pool makes of a target that is down is the pool's.
"""

from .watch import Health

__all__ = ["Health"]

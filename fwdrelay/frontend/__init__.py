"""Where clients come in: bound addresses, and the policy for who comes in there."""

from .listener import Listener

__all__ = ["Listener"]

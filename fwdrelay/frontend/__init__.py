"""Where clients come in: bound addresses, and the policy for who comes in there."""

from .addresses import Addresses, Key, keys
from .listener import Listener

__all__ = ["Addresses", "Key", "Listener", "keys"]

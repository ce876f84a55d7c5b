"""Where clients come in: bound addresses, and the policy for who comes in there."""

from .addresses import Addresses, Inherited, Key, keys
from .listener import ClientProtocol, Listener
from .totals import Totals

__all__ = ["Addresses", "ClientProtocol", "Inherited", "Key", "Listener", "Totals", "keys"]

"""
The byte path: transports that move the bytes of flows, and the ports that accept them.

Registering one side's transport as the other's producer is what relays; what it costs depends on the
transports, and those come from a pump:

 - `fwdrelay.pump.buffered`: Twisted's own transports, which pause and resume each other. It works
   wherever Twisted works, and with anything that wants to see bytes.
 - `fwdrelay.pump.spliced`: the kernel moves the bytes, through one small loop beside the reactor; Linux.

A pump knows nothing of sessions, targets or policies.
"""

from __future__ import annotations

from typing import Any

from ..config import KeepAlive, PumpName
from ..errors import CannotSplice
from ..interfaces import IPump
from .buffered import BufferedPump
from .loop import is_supported
from .spliced import SplicedPump


def make_pump(name: PumpName, reactor: Any, keepalive: KeepAlive) -> IPump:
    """
    @param name: `auto` takes the best pump that this system has.
    @param reactor: Twisted's reactor, which the pump's transports are driven by.
    """
    if name == "buffered" or (name == "auto" and not is_supported()):
        return BufferedPump(reactor, keepalive)
    if not is_supported():
        raise CannotSplice("--pump splice needs Linux's epoll and splice; use auto or buffered")
    return SplicedPump(reactor, keepalive)


__all__ = ["make_pump"]

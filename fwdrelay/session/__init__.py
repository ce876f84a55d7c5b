"""
One relayed connection: its life as a table (`fwdrelay.session.lifecycle`), its two sides
(`fwdrelay.session.side`), what moves it along (`fwdrelay.session.session`), and what of it goes to another
process with its descriptors (`fwdrelay.session.portable`).
"""

from .lifecycle import Reason, State
from .portable import PortableSession
from .session import IKeeping, IOpening, Policy, Session
from .side import Side, UpstreamSide

__all__ = [
    "IKeeping",
    "IOpening",
    "Policy",
    "PortableSession",
    "Reason",
    "Session",
    "Side",
    "State",
    "UpstreamSide",
]

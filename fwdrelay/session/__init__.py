"""
One relayed connection: its life as a table (`fwdrelay.session.lifecycle`), its two sides
(`fwdrelay.session.side`), and what moves it along (`fwdrelay.session.session`).
"""

from .lifecycle import Reason, State
from .session import IOpening, Policy, Session
from .side import Side, UpstreamSide

__all__ = ["IOpening", "Policy", "Reason", "Session", "Side", "State", "UpstreamSide"]

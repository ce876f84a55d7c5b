"""Who may open a session, and how many: decided before any work is done for a client."""

from .admission import Admission

__all__ = ["Admission"]

"""Who may open a session, and how many: decided before any work is done for a client."""

from .admission import Admission, Refused
from .plugins import make_admissions

__all__ = ["Admission", "Refused", "make_admissions"]

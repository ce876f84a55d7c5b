"""
Seeing and steering a relay over HTTP: metrics, an API, and a dashboard.

    server = AdminServer(config.relay, steering, reactor)
    server.listen()
    …
    await server.stop()

What is told comes from an `Administered`; nothing here knows where from. `server` is where to begin to read,
`api` has the calls; `guard` says who may ask, `channel` and `site` what it may cost; `streams` are events,
`metrics` what Prometheus scrapes.
"""

from .administered import Administered, Outcome
from .server import AdminServer
from .token import token_problems

__all__ = ["AdminServer", "Administered", "Outcome", "token_problems"]

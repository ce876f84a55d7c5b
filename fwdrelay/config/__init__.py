"""
What an operator asked for: frozen values (`model`), the small languages they are written in (`grammar`),
how a file becomes such values (`read`), and what is wrong with them as a whole (`check`).
"""

from .model import (
    ACCESS_LOG_FORMATS,
    BALANCES,
    PUMPS,
    Admit,
    Config,
    DiscoverConfig,
    HealthConfig,
    KeepAlive,
    ListenerConfig,
    Network,
    PoolConfig,
    PumpName,
    RelayConfig,
    RouteConfig,
    TargetConfig,
    Timeouts,
)

__all__ = [
    "ACCESS_LOG_FORMATS",
    "BALANCES",
    "PUMPS",
    "Admit",
    "Config",
    "DiscoverConfig",
    "HealthConfig",
    "KeepAlive",
    "ListenerConfig",
    "Network",
    "PoolConfig",
    "PumpName",
    "RelayConfig",
    "RouteConfig",
    "TargetConfig",
    "Timeouts",
]

"""
What an operator asked for: frozen values (`model`), the small languages they are written in (`grammar`, and
`names` for those of TLS), how a file becomes such values (`read`), and what is wrong with them as a whole
(`check`).
"""

from .model import (
    ACCEPT_PROXY,
    ACCESS_LOG_FORMATS,
    BALANCES,
    PUMPS,
    SEND_PROXY,
    Admit,
    Config,
    DiscoverConfig,
    HealthConfig,
    IdentityPattern,
    KeepAlive,
    ListenerConfig,
    ListenerTLSConfig,
    Network,
    PoolConfig,
    ProxyProtocolConfig,
    PumpName,
    Rate,
    RelayConfig,
    RouteConfig,
    SNIConfig,
    TargetConfig,
    Timeouts,
    UpstreamTLSConfig,
)

__all__ = [
    "ACCEPT_PROXY",
    "ACCESS_LOG_FORMATS",
    "BALANCES",
    "PUMPS",
    "SEND_PROXY",
    "Admit",
    "Config",
    "DiscoverConfig",
    "HealthConfig",
    "IdentityPattern",
    "KeepAlive",
    "ListenerConfig",
    "ListenerTLSConfig",
    "Network",
    "PoolConfig",
    "ProxyProtocolConfig",
    "PumpName",
    "Rate",
    "RelayConfig",
    "RouteConfig",
    "SNIConfig",
    "TargetConfig",
    "Timeouts",
    "UpstreamTLSConfig",
]

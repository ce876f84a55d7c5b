"""
What an operator asked for: frozen values (`fwdrelay.config.model`) and the small languages they are
written in (`fwdrelay.config.grammar`).
"""

from .model import (
    ACCESS_LOG_FORMATS,
    BALANCES,
    PUMPS,
    Admit,
    Config,
    KeepAlive,
    ListenerConfig,
    Network,
    PoolConfig,
    PumpName,
    TargetConfig,
    Timeouts,
)

__all__ = [
    "ACCESS_LOG_FORMATS",
    "BALANCES",
    "PUMPS",
    "Admit",
    "Config",
    "KeepAlive",
    "ListenerConfig",
    "Network",
    "PoolConfig",
    "PumpName",
    "TargetConfig",
    "Timeouts",
]

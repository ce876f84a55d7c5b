"""
What an operator asked for, as frozen values.

Nothing here acts: `fwdrelay.relay` builds the parts from a `Config`. Durations are seconds as
floats, 0 is off. Where the text came from (options, a file) is not known here.
"""

from __future__ import annotations

import ipaddress
from typing import Literal, TypeAlias

from attrs import field, frozen

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
BALANCES = ("round-robin", "first")
PUMPS = ("auto", "splice", "buffered")
ACCESS_LOG_FORMATS = ("json", "tcplog")
PumpName: TypeAlias = Literal["auto", "splice", "buffered"]
Balance: TypeAlias = Literal["round-robin", "first"]
AccessLogFormat: TypeAlias = Literal["json", "tcplog"]


@frozen(kw_only=True)
class TargetConfig:
    """
    One upstream address: `host` and `port`, or the `path` of a Unix socket (`@` in front: one of
    Linux's abstract names).
    """

    host: str = ""
    port: int = 0
    path: str = ""
    weight: int = 1
    backup: bool = False
    max_sessions: int = 0
    name: str = ""

    @property
    def address(self) -> str:
        """The address as an operator writes it."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def label(self) -> str:
        """What log and metrics call it."""
        return self.name or self.address


@frozen(kw_only=True)
class PoolConfig:
    """A set of targets, and how one of them is elected for a session."""

    name: str
    targets: tuple[TargetConfig, ...]
    balance: Balance = "round-robin"
    retries: int = 2


@frozen(kw_only=True)
class Timeouts:
    """How long a session may wait for what; seconds, 0 is off."""

    connect: float = 5.0
    idle: float = 3600.0
    half_close: float = 60.0
    lifetime: float = 0.0


@frozen(kw_only=True)
class KeepAlive:
    """
    When a peer that says nothing is taken for gone, on both sides of a session; see tcp(7).

    @ivar idle: seconds of silence before the first probe; 0: no probes.
    @ivar user_timeout: seconds that sent data may stay unacknowledged; 0: the system's choice.
    """

    idle: float = 60.0
    user_timeout: float = 0.0


@frozen(kw_only=True)
class Admit:
    """Who may open a session, and how many. `deny` wins over `allow`; an empty `allow`: everybody."""

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    max_sessions: int = 0
    sessions_per_client: int = 0


@frozen(kw_only=True)
class ListenerConfig:
    """Bound addresses (Twisted server endpoint descriptions) and the policy for who comes in there."""

    name: str
    listen: tuple[str, ...]
    pool: str
    backlog: int = 4096
    timeouts: Timeouts = field(factory=Timeouts)
    admit: Admit = field(factory=Admit)


@frozen(kw_only=True)
class Config:
    """All of what one relay is asked to do."""

    listeners: tuple[ListenerConfig, ...]
    pools: tuple[PoolConfig, ...]
    demo: bool = False
    pump: PumpName = "auto"
    keepalive: KeepAlive = field(factory=KeepAlive)
    access_log: str = "stdout"
    access_log_format: AccessLogFormat = "json"
    drain_timeout: float = 30.0

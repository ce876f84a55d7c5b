"""
What an operator asked for, as frozen values.

Nothing here acts: `fwdrelay.relay` builds the parts from a `Config`. The classes have the shape of the
configuration file, key by key; what text becomes which value is told in `fwdrelay.config.read`.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, TypeAlias

from attrs import field, frozen

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Seconds: TypeAlias = Annotated[float, "seconds"]
"""A duration; 0 is off."""
Count: TypeAlias = Annotated[int, "count"]
"""A whole number from 0 up; 0 is off where it limits something."""

BALANCES = ("round-robin", "least-sessions", "random-two", "source-hash", "first")
PUMPS = ("auto", "splice", "buffered")
ACCESS_LOG_FORMATS = ("json", "tcplog")
PumpName: TypeAlias = Literal["auto", "splice", "buffered"]
AccessLogFormat: TypeAlias = Literal["json", "tcplog"]
Check: TypeAlias = Literal["off", "tcp", "tls", "http"]
OnTargetDown: TypeAlias = Literal["keep", "close"]
WhenAllDown: TypeAlias = Literal["try", "refuse"]
SendProxy: TypeAlias = Literal["off", "v1", "v2"]


@frozen(kw_only=True)
class TargetConfig:
    """
    One upstream address: `host` and `port`, or the `path` of a Unix socket (`@` in front: one of
    Linux's abstract names).

    @ivar backup: elected only where no other target is left.
    @ivar priority: among backups and among the others, the lowest that has a target left is elected
        from (RFC 2782).
    @ivar addresses: those of `host`, where whoever discovered it knows them; empty: to be looked up.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    weight: int = 1
    backup: bool = False
    max_sessions: Count = 0
    name: str = ""
    priority: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """The address as an operator writes it."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def label(self) -> str:
        """What log and metrics call it. In a pool, no two have the same."""
        return self.name or self.address


@frozen(kw_only=True)
class DiscoverConfig:
    """
    Where targets are found while running: `srv:_http._tcp.example.com` and its like.

    @ivar scheme: what stands before the first colon: the name of a discovery.
    @ivar argument: what stands behind it; that of `file` is an absolute path.
    @ivar backup: what is found there are backups.
    @ivar max_sessions: of each target that is found, unless the finding says another number.
    """

    scheme: str
    argument: str
    backup: bool = False
    max_sessions: Count = 0

    def __str__(self) -> str:
        """As an operator writes it."""
        return f"{self.scheme}:{self.argument}"


@frozen(kw_only=True)
class HealthConfig:
    """
    How it is found out whether targets are up.

    @ivar rise: checks in a row that a target which is down has to pass.
    @ivar fall: checks in a row that a target which is up has to fail.
    @ivar path: that `http` asks for.
    @ivar host: that it asks for it at, as in `Host:`; empty: the target's own.
    @ivar send: bytes that `tcp` sends, as text with escapes; see `fwdrelay.config.grammar.parse_escapes`.
    @ivar expect: a regular expression that is searched for in what `tcp` is answered.
    @ivar passive_failures: dials in a row that failed; so many mark a target down.
    @ivar slow_start: how long a target that has come up takes to get its full share.
    @ivar when_all_down: `try` them all the same, or `refuse` at once.
    """

    check: Check = "off"
    interval: Seconds = 2.0
    timeout: Seconds = 1.0
    rise: int = 2
    fall: int = 3
    path: str = "/"
    host: str = ""
    send: str = ""
    expect: str = ""
    passive_failures: Count = 0
    slow_start: Seconds = 0.0
    when_all_down: WhenAllDown = "try"


@frozen(kw_only=True)
class PoolConfig:
    """
    A set of targets, and how one of them is elected for a session.

    @ivar discover: where more targets come from, besides `targets`.
    @ivar balance: one of `BALANCES`, or a plugin's `NAME` or `NAME:ARGUMENT`.
    @ivar retries: how many other targets are tried when a dial fails.
    @ivar max_sessions: over all targets.
    @ivar queue: how long a session waits for a place where all places are taken.
    @ivar max_queued: how many may wait.
    @ivar on_target_down: what becomes of the sessions of a target that goes down, or is removed.
    @ivar bind: source address of dials.
    """

    name: str
    targets: tuple[TargetConfig, ...] = ()
    discover: tuple[DiscoverConfig, ...] = ()
    balance: str = "round-robin"
    retries: Count = 2
    max_sessions: Count = 0
    queue: Seconds = 0.0
    max_queued: int = 1024
    on_target_down: OnTargetDown = "keep"
    send_proxy: SendProxy = "off"
    bind: str = ""
    health: HealthConfig = field(factory=HealthConfig)


@frozen(kw_only=True)
class Timeouts:
    """How long a session may wait for what."""

    connect: Seconds = 5.0
    idle: Seconds = 3600.0
    half_close: Seconds = 60.0
    lifetime: Seconds = 0.0


@frozen(kw_only=True)
class Admit:
    """
    Who may open a session, and how many. `deny` wins over `allow`; an empty `allow`: everybody.

    @ivar plugins: admissions besides, each `NAME` or `NAME:ARGUMENT`; all must let a client in.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    sessions_per_client: Count = 0
    plugins: tuple[str, ...] = ()


@frozen(kw_only=True)
class RouteConfig:
    """Who goes to another pool than the listener's. Every condition given must hold."""

    client: tuple[Network, ...] = ()
    pool: str


@frozen(kw_only=True)
class ListenerConfig:
    """
    Bound addresses (Twisted server endpoint descriptions) and the policy for who comes in there.

    @ivar pool: where what no route takes goes; empty: nowhere, it is refused.
    @ivar routes: the first that matches wins.
    """

    name: str
    listen: tuple[str, ...]
    pool: str = ""
    max_sessions: Count = 0
    backlog: int = 4096
    timeouts: Timeouts = field(factory=Timeouts)
    admit: Admit = field(factory=Admit)
    routes: tuple[RouteConfig, ...] = ()


@frozen(kw_only=True)
class KeepAlive:
    """
    When a peer that says nothing is taken for gone, on both sides of a session; see tcp(7).

    @ivar idle: silence before the first probe; 0: no probes.
    @ivar user_timeout: how long sent data may stay unacknowledged; 0: the system's choice.
    """

    idle: Seconds = 60.0
    user_timeout: Seconds = 0.0


@frozen(kw_only=True)
class RelayConfig:
    """
    What holds for the whole process.

    @ivar keepalive: silence before TCP probes whether a peer is still there.
    @ivar user_timeout: how long sent data may stay unacknowledged.
    @ivar access_log: `off`, `stdout` or the path of a file.
    @ivar nameservers: that discovery asks, as `ADDR:PORT`; empty: those of the system.
    """

    pump: PumpName = "auto"
    access_log: str = "stdout"
    access_log_format: AccessLogFormat = "json"
    drain_timeout: Seconds = 30.0
    keepalive: Seconds = 60.0
    user_timeout: Seconds = 0.0
    nameservers: tuple[str, ...] = ()

    @property
    def probing(self) -> KeepAlive:
        """When a peer is taken for gone."""
        return KeepAlive(idle=self.keepalive, user_timeout=self.user_timeout)


@frozen(kw_only=True)
class Config:
    """
    All of what one relay is asked to do.

    @ivar demo: the targets of all pools are one demonstration page of this process.
    """

    listeners: tuple[ListenerConfig, ...]
    pools: tuple[PoolConfig, ...]
    relay: RelayConfig = field(factory=RelayConfig)
    demo: bool = False

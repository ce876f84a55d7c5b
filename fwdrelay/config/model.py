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
LOGS = ("off", "stdout", "journald")
"""Where an access log can go, besides a file."""
ACCEPT_PROXY = ("off", "optional", "required")
SEND_PROXY = ("off", "v1", "v2")
PumpName: TypeAlias = Literal["auto", "splice", "buffered"]
AccessLogFormat: TypeAlias = Literal["json", "tcplog"]
Check: TypeAlias = Literal["off", "tcp", "tls", "http"]
OnTargetDown: TypeAlias = Literal["keep", "close"]
WhenAllDown: TypeAlias = Literal["try", "refuse"]
SendProxy: TypeAlias = Literal["off", "v1", "v2"]
AcceptProxy: TypeAlias = Literal["off", "optional", "required"]
TLSVersion: TypeAlias = Literal["1.2", "1.3"]
IdentityKind: TypeAlias = Literal["cn", "ou", "dns", "uri", "ip"]


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
class UpstreamTLSConfig:
    """
    TLS to a pool's targets.

    @ivar name: that a target's certificate must be for, and that is sent as SNI unless it is an IP address;
        empty: the target's host.
    @ivar ca: PEM file of those whose word is taken for it; empty: the system's.
    @ivar certificate: PEM file of our own, its chain behind it, for targets that ask; empty: none.
    @ivar key: PEM file; empty: in the certificate's.
    @ivar alpn: protocols offered, the dearest first.
    @ivar verify: whether a target has to prove who it is.
    """

    name: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    alpn: tuple[str, ...] = ()
    verify: bool = True


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
    @ivar tls: how TLS is spoken to the targets; None: it is not.
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
    tls: UpstreamTLSConfig | None = None
    health: HealthConfig = field(factory=HealthConfig)


@frozen(kw_only=True)
class Timeouts:
    """
    How long a session may wait for what.

    @ivar handshake: for the client's TLS handshake, and for a PROXY header that is required.
    @ivar peek: for a ClientHello to route by, and for a PROXY header that is optional.
    """

    connect: Seconds = 5.0
    idle: Seconds = 3600.0
    half_close: Seconds = 60.0
    lifetime: Seconds = 0.0
    handshake: Seconds = 10.0
    peek: Seconds = 5.0


@frozen
class Rate:
    """
    So many in so many seconds, and no more than so many at once; a count of 0 is off.

    @ivar count: a whole number.
    @ivar seconds: above 0.
    """

    count: int = 0
    seconds: float = 1.0

    def __bool__(self) -> bool:
        return self.count > 0


@frozen(kw_only=True)
class Admit:
    """
    Who may open a session, and how many. `deny` wins over `allow`; an empty `allow`: everybody.

    @ivar rate: new sessions of the whole listener.
    @ivar plugins: admissions besides, each `NAME` or `NAME:ARGUMENT`; all must let a client in.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    sessions_per_client: Count = 0
    rate: Rate = Rate()
    rate_per_client: Rate = Rate()
    plugins: tuple[str, ...] = ()


@frozen(kw_only=True)
class RouteConfig:
    """
    Who goes to another pool than the listener's. Every condition given must hold.

    @ivar sni: server names, in lower case; `*.` in front stands for one label.
    @ivar alpn: one of these was agreed on where TLS is terminated; offered, where it is passed on.
    """

    sni: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    client: tuple[Network, ...] = ()
    pool: str


@frozen(kw_only=True)
class ProxyProtocolConfig:
    """
    Whether connections begin with a PROXY header.

    @ivar trusted: whose header is believed; empty: everybody's.
    """

    accept: AcceptProxy = "off"
    trusted: tuple[Network, ...] = ()


@frozen
class IdentityPattern:
    """
    Whom a client's certificate may be for: `dns:*.example.com` and its like.

    @ivar value: a name; for `dns`, in lower case; for `ip`, an address as Python's `ipaddress` writes it. In
        that of `dns` and `uri`, `*` stands for characters of one label, or of one segment.
    """

    kind: IdentityKind
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


@frozen(kw_only=True)
class SNIConfig:
    """
    Other certificates for these server names.

    @ivar names: in lower case; `*.` in front stands for one label.
    @ivar certificate: as of `ListenerTLSConfig`, as `key`.
    """

    names: tuple[str, ...]
    certificate: tuple[str, ...]
    key: tuple[str, ...] = ()


@frozen(kw_only=True)
class ListenerTLSConfig:
    """
    How TLS is terminated.

    @ivar certificate: PEM files, each a certificate and its chain; of several, each has a key of
        another kind (ECDSA, RSA).
    @ivar key: PEM files, one for each certificate; empty: in the certificates'.
    @ivar client_ca: PEM file of those who vouch for clients; empty: clients aren't asked.
    @ivar require_client_certificate: whether a client must have one.
    @ivar allow_identities: those who may enter; empty: all that `client_ca` vouches for.
    @ivar alpn: protocols that may be agreed on, the dearest first.
    """

    certificate: tuple[str, ...]
    key: tuple[str, ...] = ()
    client_ca: str = ""
    require_client_certificate: bool = True
    allow_identities: tuple[IdentityPattern, ...] = ()
    alpn: tuple[str, ...] = ()
    minimum_version: TLSVersion = "1.2"
    sni: tuple[SNIConfig, ...] = ()


@frozen(kw_only=True)
class ListenerConfig:
    """
    Bound addresses (Twisted server endpoint descriptions) and the policy for who comes in there.

    @ivar pool: where what no route takes goes; empty: nowhere, it is refused.
    @ivar tls: how TLS is terminated; None: it is not.
    @ivar routes: the first that matches wins.
    """

    name: str
    listen: tuple[str, ...]
    pool: str = ""
    max_sessions: Count = 0
    backlog: int = 4096
    timeouts: Timeouts = field(factory=Timeouts)
    admit: Admit = field(factory=Admit)
    tls: ListenerTLSConfig | None = None
    proxy_protocol: ProxyProtocolConfig = field(factory=ProxyProtocolConfig)
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

    @ivar workers: processes that relay, besides one that supervises them; 0: this one relays.
    @ivar survive_crashes: whether the supervisor holds sessions, so that a worker's death does not end them.
    @ivar keepalive: silence before TCP probes whether a peer is still there.
    @ivar user_timeout: how long sent data may stay unacknowledged.
    @ivar admin: where metrics, API and dashboard are served: `off`, `unix:PATH`, `ADDR:PORT` or `[IPV6]:PORT`.
    @ivar admin_token_file: what that holds has to be shown by whoever asks there by TCP; empty: nothing has.
    @ivar access_log: `off`, `stdout`, `journald` or the path of a file.
    @ivar access_log_interval: how often a session that lasts is told of while it does.
    @ivar nameservers: that discovery asks, as `ADDR:PORT`; empty: those of the system.
    """

    workers: Count = 0
    survive_crashes: bool = False
    pump: PumpName = "auto"
    admin: str = "off"
    admin_token_file: str = ""
    access_log: str = "stdout"
    access_log_format: AccessLogFormat = "json"
    access_log_interval: Seconds = 0.0
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

"""
The front door: `twistd fwdrelay`. Options become a `Config`, a `Config` becomes a service.
"""

from __future__ import annotations

import atexit
import gc
import getopt
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from twisted.application.service import IService, MultiService
from twisted.internet.error import ReactorNotRunning
from twisted.python import usage

from .config import (
    ACCEPT_PROXY,
    ACCESS_LOG_FORMATS,
    BALANCES,
    PUMPS,
    SEND_PROXY,
    Admit,
    Config,
    DiscoverConfig,
    ListenerConfig,
    ListenerTLSConfig,
    PoolConfig,
    ProxyProtocolConfig,
    RelayConfig,
    TargetConfig,
    Timeouts,
    UpstreamTLSConfig,
)
from .config.check import did_you_mean, printable, problems
from .config.grammar import (
    LONGEST_KEEPALIVE,
    LONGEST_USER_TIMEOUT,
    TARGET_GRAMMAR,
    parse_admin,
    parse_balance,
    parse_count,
    parse_duration,
    parse_endpoint,
    parse_file,
    parse_log,
    parse_nameserver,
    parse_network,
    parse_port,
    parse_target_or_srv,
    parse_workers,
)
from .config.names import parse_identity, parse_upstream_name
from .errors import ConfigError, ConfigErrors
from .process.signals import Signals

if TYPE_CHECKING:
    from .relay import Relay
    from .workers.supervisor import Supervisor

# sysexits(3)
EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_CONFIG = 78
_NAME = "main"
T = TypeVar("T")

_HINT = " (see twistd fwdrelay --help)"
_ATTRIBUTES = {
    "workers": "workers",
    "survive-crashes": "survive_crashes",
    "pump": "pump",
    "access-log": "access_log",
    "access-log-format": "access_log_format",
    "access-log-interval": "access_log_interval",
    "admin": "admin",
    "admin-token-file": "admin_token_file",
    "drain-timeout": "drain_timeout",
    "keepalive": "keepalive",
    "user-timeout": "user_timeout",
    "nameserver": "nameservers",
}
"""Options that win over a file, and the keys of its [relay] table."""
_REPEATED = (
    *("listen", "target", "allow", "deny", "nameserver"),
    *("tls-cert", "tls-key", "tls-allow"),
)
"""Options that may be given more than once."""
_GOES_WITH = {
    "tls-key": "tls-cert",
    "tls-client-ca": "tls-cert",
    "tls-allow": "tls-client-ca",
    "upstream-ca": "upstream-tls",
    "upstream-name": "upstream-tls",
    "upstream-cert": "upstream-tls",
    "upstream-key": "upstream-cert",
}
"""Options that mean nothing without another."""
_PLACES = {
    "port": "listen of a [[listener]]",
    "interface": "listen of a [[listener]]",
    "listen": "listen of a [[listener]]",
    "target": "targets of a [pool.NAME]",
    "balance": "balance of a [pool.NAME]",
    "connect-timeout": "timeouts.connect of a [[listener]]",
    "idle-timeout": "timeouts.idle of a [[listener]]",
    "half-close-timeout": "timeouts.half_close of a [[listener]]",
    "lifetime": "timeouts.lifetime of a [[listener]]",
    "max-sessions": "max_sessions of a [[listener]]",
    "max-sessions-per-client": "admit.sessions_per_client of a [[listener]]",
    "allow": "admit.allow of a [[listener]]",
    "deny": "admit.deny of a [[listener]]",
    "tls-cert": "tls.certificate of a [[listener]]",
    "tls-key": "tls.key of a [[listener]]",
    "tls-client-ca": "tls.client_ca of a [[listener]]",
    "tls-allow": "tls.allow_identities of a [[listener]]",
    "accept-proxy": "proxy_protocol.accept of a [[listener]]",
    "upstream-tls": "a table [pool.NAME.tls]",
    "upstream-ca": "tls.ca of a [pool.NAME]",
    "upstream-name": "tls.name of a [pool.NAME]",
    "upstream-cert": "tls.certificate of a [pool.NAME]",
    "upstream-key": "tls.key of a [pool.NAME]",
    "send-proxy": "send_proxy of a [pool.NAME]",
}
"""Where in a file those belong that can't be told beside one."""
_OPTION_OF = {
    "relay.survive_crashes": "--survive-crashes",
    "relay.admin": "--admin",
    "relay.admin_token_file": "--admin-token-file",
    "listener[0].listen": "--listen",
    f"pool.{_NAME}": "--target",
    f"pool.{_NAME}.targets": "--target",
    f"pool.{_NAME}.discover": "--target",
    f"pool.{_NAME}.balance": "--balance",
    "listener[0].tls": "--tls-cert",
    "listener[0].tls.certificate": "--tls-cert",
    "listener[0].tls.key": "--tls-key",
    "listener[0].tls.client_ca": "--tls-client-ca",
    "listener[0].tls.allow_identities": "--tls-allow",
    f"pool.{_NAME}.tls": "--upstream-tls",
    f"pool.{_NAME}.tls.name": "--upstream-name",
    f"pool.{_NAME}.tls.ca": "--upstream-ca",
    f"pool.{_NAME}.tls.certificate": "--upstream-cert",
    f"pool.{_NAME}.tls.key": "--upstream-key",
}
"""The option that is told of instead of a place in a configuration that comes from options."""


def _path(text: str) -> str:
    """The path of a file from where twistd was started, as it may go to another folder."""
    return text and os.path.abspath(text)


class Options(usage.Options):
    """
    The command line of `twistd fwdrelay`.

    @ivar config: what was asked for, after `parseOptions`.
    @ivar reads_file: whether it, or a part of it, stands in a file.
    """

    synopsis = "[options]  (for example: --port 5678 --target localhost:80)"
    longdesc = "Relay TCP connections, losing nothing. Durations: 500ms, 30s, 5m, 1h; 0 is off."

    optParameters: ClassVar[list[list[Any]]] = [
        ["port", "p", None, "TCP port to listen on; 0: a free one, which is logged"],
        ["interface", None, None, "address for --port [default: all, IPv6 and IPv4]"],
        [
            "balance",
            None,
            "round-robin",
            f"how a target is elected: {', '.join(BALANCES)}, or a plugin's name",
        ],
        ["connect-timeout", None, "5s", "for opening the upstream connection, retries and all"],
        ["idle-timeout", None, "1h", "without a byte in either direction"],
        ["half-close-timeout", None, "60s", "without a byte after one side has ended"],
        ["lifetime", None, "0", "of a session, whatever it does"],
        ["drain-timeout", None, "30s", "for sessions to end when stopping, before they are cut"],
        ["keepalive", None, "60s", "of silence before TCP probes whether a peer is still there"],
        ["user-timeout", None, "0", "that sent bytes may stay unacknowledged (TCP_USER_TIMEOUT)"],
        ["max-sessions", None, "0", "open at a time; 0: no limit"],
        ["max-sessions-per-client", None, "0", "open at a time from one address; 0: no limit"],
        ["access-log", None, "stdout", "where each ended session is told: off, stdout or a file"],
        ["access-log-format", None, "json", f"{' or '.join(ACCESS_LOG_FORMATS)} (HAProxy's)"],
        [
            "access-log-interval",
            None,
            "0",
            "how often a session that lasts is told of before it ends",
        ],
        ["admin", None, "off", "metrics, API and dashboard: ADDR:PORT, unix:PATH or off"],
        [
            "admin-token-file",
            None,
            None,
            "what it holds has to be shown there; needed where other machines reach it",
            _path,
        ],
        [
            "tls-client-ca",
            None,
            None,
            "PEM file of who vouches for clients: ask them for certificates",
            _path,
        ],
        ["accept-proxy", None, "off", f"PROXY header from clients: {', '.join(ACCEPT_PROXY)}"],
        [
            "upstream-ca",
            None,
            None,
            "PEM file of who vouches for targets [default: the system's]",
            _path,
        ],
        ["upstream-name", None, None, "that targets have to prove [default: the target's host]"],
        [
            "upstream-cert",
            None,
            None,
            "PEM file: our certificate and its chain, for targets",
            _path,
        ],
        ["upstream-key", None, None, "PEM file: its key [default: in --upstream-cert]", _path],
        ["send-proxy", None, "off", f"PROXY header to targets: {', '.join(SEND_PROXY)}"],
        ["workers", None, "0", "processes that relay, each on a core; 0: this one does"],
        ["pump", None, "auto", f"how bytes are moved: {', '.join(PUMPS)}"],
        ["config", None, None, "TOML file that says all of it, and more; SIGHUP reads it again"],
    ]
    optFlags = [
        ["upstream-tls", None, "speak TLS to targets, who have to prove who they are"],
        ["survive-crashes", None, "keep plain sessions open when a worker dies; needs --workers"],
        ["demo", None, "relay to an embedded demonstration page"],
        ["check", None, "say what is wrong with options and file, or that nothing is, and exit"],
    ]
    compData = usage.Completions(
        optActions={
            "balance": usage.CompleteList(BALANCES),
            "workers": usage.Completer(descr="processes, 0 to 64"),
            "pump": usage.CompleteList(PUMPS),
            "access-log-format": usage.CompleteList(ACCESS_LOG_FORMATS),
            "access-log": usage.CompleteFiles(),
            "admin-token-file": usage.CompleteFiles(),
            "config": usage.CompleteFiles("*.toml"),
            "interface": usage.CompleteNetInterfaces(),
            "tls-cert": usage.CompleteFiles("*.(pem|crt)"),
            "tls-key": usage.CompleteFiles("*.(pem|key)"),
            "tls-client-ca": usage.CompleteFiles("*.(pem|crt)"),
            "upstream-ca": usage.CompleteFiles("*.(pem|crt)"),
            "upstream-cert": usage.CompleteFiles("*.(pem|crt)"),
            "upstream-key": usage.CompleteFiles("*.(pem|key)"),
            "accept-proxy": usage.CompleteList(ACCEPT_PROXY),
            "send-proxy": usage.CompleteList(SEND_PROXY),
        },
        multiUse=[*_REPEATED],
    )

    config: Config

    def __init__(self) -> None:
        super().__init__()
        self._repeated: dict[str, list[str]] = {name: [] for name in _REPEATED}
        self._file = ""
        self._overrides: dict[str, object] = {}

    def opt_listen(self, endpoint: str) -> None:
        """Twisted server endpoint to listen on, repeatable: tcp:…, tcp6:…, unix:…, systemd:…"""
        self._repeated["listen"].append(endpoint)

    def opt_target(self, spec: str) -> None:
        """Where to, repeatable: HOST:PORT, [IPV6]:PORT, unix:PATH, srv:…; ,weight=N ,backup ,max-sessions=N ,name=…"""
        self._repeated["target"].append(spec)

    opt_t = opt_target

    def opt_allow(self, network: str) -> None:
        """Who may connect, repeatable: a CIDR or an address [default: everybody]"""
        self._repeated["allow"].append(network)

    def opt_deny(self, network: str) -> None:
        """Who may not connect, repeatable; wins over --allow"""
        self._repeated["deny"].append(network)

    def opt_tls_cert(self, file: str) -> None:
        """PEM file to terminate TLS with, a certificate and its chain; repeatable: ECDSA and RSA"""
        self._repeated["tls-cert"].append(_path(file))

    def opt_tls_key(self, file: str) -> None:
        """PEM file: its key [default: in --tls-cert]; repeatable, as --tls-cert"""
        self._repeated["tls-key"].append(_path(file))

    def opt_tls_allow(self, identity: str) -> None:
        """Client certificates that may enter, repeatable: cn:…, ou:…, dns:…, uri:…, ip:… [default: all verified]"""
        self._repeated["tls-allow"].append(identity)

    def opt_nameserver(self, address: str) -> None:
        """Name server that discovery asks, repeatable: ADDR or ADDR:PORT [default: the system's]"""
        self._repeated["nameserver"].append(address)

    @property
    def reads_file(self) -> bool:
        """Whether there is a `--config`."""
        return self["config"] is not None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line, and the file that it names; an error ends the process: one of the command
        line with one line and status 64, those of the file with a line each and status 78.
        """
        given = list(sys.argv[1:] if options is None else options)
        status = EX_USAGE
        if any(len(word) > 3 and "--check".startswith(word) for word in given):
            status = EX_CONFIG
        try:
            super().parseOptions(given)
            if self.reads_file:
                self._prepare_to_read(given)
            else:
                self.config = self.read()
        except (usage.UsageError, ConfigError) as wrong:
            _exit(status, f"{self._suggest(str(wrong))}{_HINT}")
        except ConfigErrors as wrong:
            _exit(status, *(f"{error}{_HINT}" for error in wrong.errors))
        if self.reads_file:
            try:
                self.config = self.read()
            except ConfigErrors as wrong:
                _exit(EX_CONFIG, *map(str, wrong.errors))
        if self["check"]:
            from .workers import renewal

            wrong_besides = renewal.rehearsed(os.environ, self.config)
            if wrong_besides:
                _exit(EX_CONFIG, wrong_besides)
            what = self["config"] if self.reads_file else "these options"
            sys.stdout.write(f"fwdrelay: nothing is wrong with {what}.\n")
            raise SystemExit(0)

    def read(self) -> Config:
        """
        @return: what is asked for: what the file says now, and what the command line says besides; or the
            command line alone.
        @raise ConfigErrors: with all that is wrong.
        """
        # A reactor may be chosen by twistd's own options, so nothing imports it before.
        from twisted.internet import reactor

        from . import parts

        if self.reads_file:
            from .config.read import read_config  # with cattrs, which takes a moment to import

            return read_config(
                self._file,
                self._overrides,
                self["config"],
                lambda config: parts.problems(config, reactor),
            )
        try:
            config = self._make_config()
        except ConfigError as wrong:
            raise ConfigErrors([wrong]) from None
        found = problems(config, lambda config: parts.problems(config, reactor))
        if found:
            raise ConfigErrors([ConfigError(_option_of(e.where), e.problem) for e in found])
        return config

    def _prepare_to_read(self, arguments: Sequence[str]) -> None:
        if not self["config"]:
            raise ConfigError("--config", "it is empty: write the path of a file")
        given = self._given(arguments)
        if "demo" in given:
            raise ConfigError("--demo", "not beside --config: the targets stand in the file")
        for option, place in _PLACES.items():
            if option in given:
                raise ConfigError(
                    f"--{option}", f"not beside --config: it goes into the file, as {place}"
                )
        # twistd may go to another folder.
        self._file = os.path.abspath(self["config"])
        everything = self._relay_values()
        self._overrides = {
            attribute: everything[attribute]
            for option, attribute in _ATTRIBUTES.items()
            if option in given
        }

    def _given(self, arguments: Sequence[str]) -> set[str]:
        """The long names of the options that stand on a command line which was parsed before."""
        pairs, _ = getopt.getopt(list(arguments), self.shortOpt, self.longOpt)
        names = (name.lstrip("-") for name, _ in pairs)
        return {self.synonyms.get(name, name) for name in names}

    def parseArgs(self, *args: str) -> None:
        """
        There are options only.

        @raise UsageError: for anything else.
        """
        if args:
            raise usage.UsageError(f"unexpected argument {args[0]!r}")

    def _suggest(self, message: str) -> str:
        unknown, found, _ = message.removeprefix("option ").partition(" not recognized")
        if not found:
            return message
        names = [f"--{name}" for name in self.longOpt_names()]
        return f"unknown option {unknown}{did_you_mean(unknown, names)}"

    def longOpt_names(self) -> list[str]:
        """
        @return: the long names of all options.
        """
        return [name.rstrip("=") for name in self.longOpt]

    def _value(self, option: str, parse: Callable[[str], T]) -> T:
        return _parsed(f"--{option}", parse, self[option])

    def _value_or_empty(self, option: str, parse: Callable[[str], str]) -> str:
        """Of an option without a default; empty, if it is not given."""
        return "" if self[option] is None else self._value(option, parse)

    def _values(self, option: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        return tuple(_parsed(f"--{option}", parse, text) for text in self._repeated[option])

    def _choice(self, option: str, choices: Sequence[str]) -> Any:
        if self[option] not in choices:
            raise ConfigError(f"--{option}", f"{self[option]!r} is not one of {', '.join(choices)}")
        return self[option]

    def _is_given(self, option: str) -> bool:
        """Of an option without a default, or a flag."""
        if option in _REPEATED:
            return bool(self._repeated[option])
        return self[option] not in (None, 0)

    def _make_config(self) -> Config:
        for option, needed in _GOES_WITH.items():
            if self._is_given(option) and not self._is_given(needed):
                raise ConfigError(f"--{option}", f"it goes with --{needed}")
        return Config(
            listeners=(
                ListenerConfig(
                    name=_NAME,
                    listen=self._endpoints(),
                    pool=_NAME,
                    max_sessions=self._value("max-sessions", parse_count),
                    timeouts=Timeouts(
                        connect=self._value("connect-timeout", parse_duration),
                        idle=self._value("idle-timeout", parse_duration),
                        half_close=self._value("half-close-timeout", parse_duration),
                        lifetime=self._value("lifetime", parse_duration),
                    ),
                    admit=Admit(
                        allow=self._values("allow", parse_network),
                        deny=self._values("deny", parse_network),
                        sessions_per_client=self._value("max-sessions-per-client", parse_count),
                    ),
                    tls=self._listener_tls(),
                    proxy_protocol=ProxyProtocolConfig(
                        accept=self._choice("accept-proxy", ACCEPT_PROXY)
                    ),
                ),
            ),
            pools=(self._pool(),),
            demo=bool(self["demo"]),
            relay=RelayConfig(**self._relay_values()),
        )

    def _relay_values(self) -> dict[str, Any]:
        """The attributes of `RelayConfig`."""
        return {
            "workers": self._value("workers", parse_workers),
            "survive_crashes": bool(self["survive-crashes"]),
            "pump": self._choice("pump", PUMPS),
            "access_log": self._value("access-log", parse_log),
            "access_log_format": self._choice("access-log-format", ACCESS_LOG_FORMATS),
            "access_log_interval": self._value("access-log-interval", parse_duration),
            "admin": self._value("admin", parse_admin),
            "admin_token_file": self._value_or_empty("admin-token-file", parse_file),
            "drain_timeout": self._value("drain-timeout", parse_duration),
            "keepalive": self._value(
                "keepalive", lambda text: parse_duration(text, LONGEST_KEEPALIVE)
            ),
            "user_timeout": self._value(
                "user-timeout", lambda text: parse_duration(text, LONGEST_USER_TIMEOUT)
            ),
            "nameservers": self._values("nameserver", parse_nameserver),
        }

    def _pool(self) -> PoolConfig:
        balance = self._value("balance", parse_balance)
        targets = self._values("target", parse_target_or_srv)
        if bool(self["demo"]) == bool(targets):
            raise ConfigError(
                "--target",
                "not both --demo and a target"
                if targets
                else f"nothing to relay to: give --target {TARGET_GRAMMAR}; or --demo",
            )
        if self["demo"] and self["upstream-tls"]:
            raise ConfigError("--upstream-tls", "not beside --demo, whose page speaks no TLS")
        if self["demo"] and self["send-proxy"] != "off":
            raise ConfigError("--send-proxy", "not beside --demo, whose page expects no header")
        return PoolConfig(
            name=_NAME,
            targets=tuple(each for each in targets if isinstance(each, TargetConfig)),
            discover=tuple(each for each in targets if isinstance(each, DiscoverConfig)),
            balance=balance,
            send_proxy=self._choice("send-proxy", SEND_PROXY),
            tls=self._upstream_tls(),
        )

    def _listener_tls(self) -> ListenerTLSConfig | None:
        if not self._is_given("tls-cert"):
            return None
        return ListenerTLSConfig(
            certificate=self._values("tls-cert", parse_file),
            key=self._values("tls-key", parse_file),
            client_ca=self._value_or_empty("tls-client-ca", parse_file),
            allow_identities=self._values("tls-allow", parse_identity),
        )

    def _upstream_tls(self) -> UpstreamTLSConfig | None:
        if not self["upstream-tls"]:
            return None
        return UpstreamTLSConfig(
            name=self._value_or_empty("upstream-name", parse_upstream_name),
            ca=self._value_or_empty("upstream-ca", parse_file),
            certificate=self._value_or_empty("upstream-cert", parse_file),
            key=self._value_or_empty("upstream-key", parse_file),
        )

    def _endpoints(self) -> tuple[str, ...]:
        listen = self._values("listen", parse_endpoint)
        if self["port"] is None:
            if self["interface"] is not None:
                raise ConfigError("--interface", "it goes with --port")
            if not listen:
                raise ConfigError("--port", "nothing to listen on: give --port or --listen")
            return listen
        port = _parsed("--port", lambda text: parse_port(text, lowest=0), self["port"])
        interface = self["interface"] or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
        escaped = re.sub(r"([:\\])", r"\\\1", interface.strip("[]"))
        return (f"tcp:{port}:interface={escaped}", *listen)


def _parsed(where: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as wrong:
        raise ConfigError(where, str(wrong)) from None


def _option_of(where: str) -> str:
    """What an operator gave for what stands at a place."""
    return _OPTION_OF.get(re.sub(r"\[[0-9]+\]$", "", where)) or _OPTION_OF.get(where, where)


def _exit(status: int, *sentences: str) -> NoReturn:
    from .observe.journal import as_error

    # twistd has put its log in the place of sys.stderr.
    for sentence in sentences:
        print(as_error(f"fwdrelay: {printable(sentence)}"), file=sys.__stderr__, flush=True)
    raise SystemExit(status)


def makeService(options: Options) -> IService:
    """
    @return: the relay, and what handles the process's signals for it.
    """
    # A reactor may be chosen by twistd's own options, so nothing imports it before.
    from twisted.internet import reactor

    from .observe.output import PatientOutput, Unsaid, settle
    from .process.sdnotify import Notifier
    from .relay import Relay

    twistd: dict[str, Any] = options.parent or {}
    output: PatientOutput | None = None
    if twistd.get("nodaemon") and twistd.get("logfile") in (None, "-"):
        if sys.stdout is None:
            _give_up(options, "standard output is closed: direct it to a file, or to /dev/null")
        # Here twistd is about to begin its log, on whatever is the standard output then.
        sys.stdout.flush()
        sys.stdout = output = PatientOutput.of(reactor)
        atexit.register(settle)
    service = MultiService()
    notifier = Notifier.from_environment(os.environ)
    give_up = partial(_give_up, options)
    read = options.read if options.reads_file else None
    relay: Relay | Supervisor
    if options.config.relay.workers:
        from .workers import renewal
        from .workers.supervisor import Supervisor

        command = renewal.Command.of(options)
        command.keep_pid_file(twistd)
        before = renewal.read_from_environment(os.environ)
        if before is not None and output is not None:
            output.go_on_with(Unsaid(*before.get(renewal.UNSAID, ())))
        relay = Supervisor(
            options.config,
            reactor,
            notifier=notifier,
            give_up=give_up,
            read=read,
            stop=lambda now: signals.drain(now),
            fail=partial(_fail, reactor),
            command=command,
            before=before,
        )
    else:
        relay = Relay(
            options.config, reactor, notifier, give_up, read, lambda now: signals.drain(now)
        )
        reactor.callWhenRunning(_spare_the_collector)
    signals = Signals(reactor, relay)
    # In this order: who is told that the relay is ready may send it a signal at once.
    signals.setServiceParent(service)
    relay.setServiceParent(service)
    return service


def _fail(reactor: Any, sentence: str) -> None:
    """End the process in order, with that as the last word, and a status that tells of it."""
    # twistd removes its pid file before; it has no way to be told of a status.
    atexit.register(_leave_with, EX_UNAVAILABLE)
    print(f"fwdrelay: {printable(sentence)}", file=sys.__stderr__, flush=True)
    with suppress(ReactorNotRunning):
        reactor.stop()


def _leave_with(status: int) -> NoReturn:
    from .observe.output import settle

    try:
        settle()
    finally:
        # Nothing else that was to be done at the end will be.
        os._exit(status)


def _spare_the_collector() -> None:
    """
    Make Python's cycle collector rare: what was loaded by now stays for good and is not looked at
    again, and sessions make no cycles (a test counts them). It took a sixth of our part of a set-up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _give_up(options: Options, sentence: str) -> NoReturn:
    """
    End the process, before the reactor runs, with one line.

    twistd removes its pid file for an Exception only, and prints a traceback with it; a daemon's parent
    hears of an Exception only.
    """
    twistd: dict[str, Any] = options.parent or {}
    if not twistd.get("nodaemon", True):
        raise RuntimeError(sentence)
    pidfile = twistd.get("pidfile")
    if pidfile and os.path.exists(pidfile):
        os.unlink(pidfile)
    _exit(EX_UNAVAILABLE, sentence)

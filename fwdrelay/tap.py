"""
The front door: `twistd fwdrelay`. Options become a `Config`, a `Config` becomes a service.
"""

from __future__ import annotations

import difflib
import gc
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from twisted.application.service import IService, MultiService
from twisted.internet.endpoints import serverFromString
from twisted.python import usage

from .config import (
    ACCESS_LOG_FORMATS,
    BALANCES,
    PUMPS,
    Admit,
    Config,
    KeepAlive,
    ListenerConfig,
    PoolConfig,
    TargetConfig,
    Timeouts,
)
from .config.grammar import (
    TARGET_GRAMMAR,
    parse_count,
    parse_duration,
    parse_network,
    parse_port,
    parse_target,
)
from .errors import ConfigError
from .process.signals import Signals

# sysexits(3)
EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_CONFIG = 78
_NAME = "main"
_ENDPOINTS = ("tcp", "tcp6", "unix", "systemd")
T = TypeVar("T")


class Options(usage.Options):
    """
    The command line of `twistd fwdrelay`.

    @ivar config: what was asked for, after `parseOptions`.
    """

    synopsis = "[options]  (for example: --port 5678 --target localhost:80)"
    longdesc = "Relay TCP connections, losing nothing. Durations: 500ms, 30s, 5m, 1h; 0 is off."

    optParameters = [
        ["port", "p", None, "TCP port to listen on; 0: a free one, which is logged"],
        ["interface", None, None, "address for --port [default: all, IPv6 and IPv4]"],
        ["balance", None, "round-robin", f"how a target is elected: {', '.join(BALANCES)}"],
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
        ["pump", None, "auto", f"how bytes are moved: {', '.join(PUMPS)}"],
    ]
    optFlags = [
        ["demo", None, "relay to an embedded demonstration page"],
        ["check", None, "say what is wrong with these options, or that nothing is, and exit"],
    ]
    compData = usage.Completions(
        optActions={
            "balance": usage.CompleteList(BALANCES),
            "pump": usage.CompleteList(PUMPS),
            "access-log-format": usage.CompleteList(ACCESS_LOG_FORMATS),
            "access-log": usage.CompleteFiles(),
            "interface": usage.CompleteNetInterfaces(),
        },
        multiUse=["listen", "target", "allow", "deny"],
    )

    config: Config

    def __init__(self) -> None:
        super().__init__()
        self._repeated: dict[str, list[str]] = {
            "listen": [],
            "target": [],
            "allow": [],
            "deny": [],
        }

    def opt_listen(self, endpoint: str) -> None:
        """Twisted server endpoint to listen on, repeatable: tcp:…, tcp6:…, unix:…, systemd:…"""
        self._repeated["listen"].append(endpoint)

    def opt_target(self, spec: str) -> None:
        """Where to, repeatable: HOST:PORT, [IPV6]:PORT, unix:PATH; ,weight=N ,backup ,max-sessions=N ,name=LABEL"""
        self._repeated["target"].append(spec)

    opt_t = opt_target

    def opt_allow(self, network: str) -> None:
        """Who may connect, repeatable: a CIDR or an address [default: everybody]"""
        self._repeated["allow"].append(network)

    def opt_deny(self, network: str) -> None:
        """Who may not connect, repeatable; wins over --allow"""
        self._repeated["deny"].append(network)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """
        Read the command line; an error in it ends the process with one line and status 64.
        """
        given = list(sys.argv[1:] if options is None else options)
        try:
            super().parseOptions(given)
            self.config = self._make_config()
        except (usage.UsageError, ConfigError) as wrong:
            checking = any(len(word) > 3 and "--check".startswith(word) for word in given)
            status = EX_CONFIG if checking else EX_USAGE
            _exit(status, f"{self._suggest(str(wrong))} (see twistd fwdrelay --help)")
        if self["check"]:
            sys.stdout.write("fwdrelay: nothing is wrong with these options.\n")
            raise SystemExit(0)

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
        close = difflib.get_close_matches(unknown.lstrip("-"), self.longOpt_names(), 1)
        return f"unknown option {unknown}" + (f"; did you mean --{close[0]}?" if close else "")

    def longOpt_names(self) -> list[str]:
        """
        @return: the long names of all options.
        """
        return [name.rstrip("=") for name in self.longOpt]

    def _value(self, option: str, parse: Callable[[str], T]) -> T:
        return _parsed(f"--{option}", parse, self[option])

    def _values(self, option: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        return tuple(_parsed(f"--{option}", parse, text) for text in self._repeated[option])

    def _choice(self, option: str, choices: Sequence[str]) -> Any:
        if self[option] not in choices:
            raise ConfigError(f"--{option}", f"{self[option]!r} is not one of {', '.join(choices)}")
        return self[option]

    def _make_config(self) -> Config:
        return Config(
            listeners=(
                ListenerConfig(
                    name=_NAME,
                    listen=self._endpoints(),
                    pool=_NAME,
                    timeouts=Timeouts(
                        connect=self._value("connect-timeout", parse_duration),
                        idle=self._value("idle-timeout", parse_duration),
                        half_close=self._value("half-close-timeout", parse_duration),
                        lifetime=self._value("lifetime", parse_duration),
                    ),
                    admit=Admit(
                        allow=self._values("allow", parse_network),
                        deny=self._values("deny", parse_network),
                        max_sessions=self._value("max-sessions", parse_count),
                        sessions_per_client=self._value("max-sessions-per-client", parse_count),
                    ),
                ),
            ),
            pools=(
                PoolConfig(
                    name=_NAME,
                    targets=self._targets(),
                    balance=self._choice("balance", BALANCES),
                ),
            ),
            demo=bool(self["demo"]),
            pump=self._choice("pump", PUMPS),
            keepalive=KeepAlive(
                # What tcp(7) takes: seconds in 15 bits, milliseconds in 31.
                idle=self._value("keepalive", lambda text: parse_duration(text, 32767)),
                user_timeout=self._value(
                    "user-timeout", lambda text: parse_duration(text, 2147483)
                ),
            ),
            access_log=self._value("access-log", _not_empty),
            access_log_format=self._choice("access-log-format", ACCESS_LOG_FORMATS),
            drain_timeout=self._value("drain-timeout", parse_duration),
        )

    def _targets(self) -> tuple[TargetConfig, ...]:
        targets = self._values("target", parse_target)
        if bool(self["demo"]) == bool(targets):
            raise ConfigError(
                "--target",
                "not both --demo and a target"
                if targets
                else f"nothing to relay to: give --target {TARGET_GRAMMAR}; or --demo",
            )
        labels = [target.label for target in targets]
        for label in labels:
            if labels.count(label) > 1:
                raise ConfigError("--target", f"{label} is there twice: give one a ,name=LABEL")
        return targets

    def _endpoints(self) -> tuple[str, ...]:
        listen = self._values("listen", _checked_endpoint)
        if self["port"] is None:
            if self["interface"] is not None:
                raise ConfigError("--interface", "it goes with --port")
            if not listen:
                raise ConfigError("--port", "nothing to listen on: give --port or --listen")
            return listen
        port = _parsed("--port", lambda text: parse_port(text, lowest=0), self["port"])
        interface = self["interface"] or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
        escaped = interface.strip("[]").replace(":", r"\:")
        return (f"tcp:{port}:interface={escaped}", *listen)


def _parsed(where: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as wrong:
        raise ConfigError(where, str(wrong)) from None


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("it is empty: write off, stdout or the path of a file")
    return text


def _checked_endpoint(description: str) -> str:
    kind = description.partition(":")[0]
    if kind not in _ENDPOINTS or kind == description:
        kinds = ", ".join(f"{name}:" for name in _ENDPOINTS)
        raise ValueError(f"{description!r} is not an endpoint: it begins with one of {kinds}")
    if kind != "systemd":  # what that takes depends on the environment
        try:
            serverFromString(None, description)
        except (TypeError, ValueError) as wrong:
            raise ValueError(f"{description!r} is not a {kind}: endpoint ({wrong})") from None
    return description


def _exit(status: int, sentence: str) -> NoReturn:
    # twistd has put its log in the place of sys.stderr.
    print(f"fwdrelay: {sentence}", file=sys.__stderr__, flush=True)
    raise SystemExit(status)


def makeService(options: Options) -> IService:
    """
    @return: the relay, and what handles the process's signals for it.
    """
    # A reactor may be chosen by twistd's own options, so nothing imports it before.
    from twisted.internet import reactor

    from .observe.sink import PatientOutput
    from .process.sdnotify import Notifier
    from .relay import Relay

    twistd: dict[str, Any] = options.parent or {}
    if twistd.get("nodaemon") and twistd.get("logfile") in (None, "-"):
        # Here twistd is about to begin its log, on whatever is the standard output then.
        sys.stdout.flush()
        sys.stdout = PatientOutput()
    service = MultiService()
    relay = Relay(
        options.config,
        reactor,
        Notifier.from_environment(os.environ),
        lambda sentence: _give_up(options, sentence),
    )
    reactor.callWhenRunning(_spare_the_collector)
    # In this order: who is told that the relay is ready may send it a signal at once.
    Signals(reactor, relay).setServiceParent(service)
    relay.setServiceParent(service)
    return service


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

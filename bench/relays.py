"""
The relays: how to tell whether one is here, and how it is started between a port and an upstream.

Each is given one thread for its bytes and otherwise its defaults, logs off, and its limits out of the
way.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

import twisted
from fwdrelay._version import __version__

from .credentials import NAME, Credentials
from .lines import TLS, Line

TWISTD = (
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()",
    "--nodaemon",
    "--pidfile=",
)
HERE = Path(__file__).resolve().parent
EVERYTHING = (TLS.NONE, TLS.TERMINATED, TLS.ORIGINATED)
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


class Missing(Exception):
    """A relay cannot be measured here, and why."""


@attrs.frozen
class Place:
    """
    Where a relay is to stand.

    @ivar descriptors: how many it may have open.
    @ivar folder: an empty one, for its configuration.
    @ivar terminate: what clients are shown, over TLS.
    @ivar originate: what the upstream shows, over TLS, and is to be verified.
    """

    host: str
    port: int
    to_host: str
    to_port: int
    descriptors: int
    folder: Path
    terminate: Credentials | None = None
    originate: Credentials | None = None

    @property
    def target(self) -> str:
        """The upstream, as HOST:PORT."""
        return f"{self.to_host}:{self.to_port}"


@attrs.frozen
class Relay:
    """
    One relay.

    @ivar ours: not a peer.
    @ivar idle: how many idle sessions it is asked to hold at most; 0: as many as anybody.
    @ivar each: how many descriptors it has open for a session.
    @ivar tls: what it does of that.
    @ivar resumes: TLS sessions, with clients.
    @ivar scales: whether it takes part in the lines about workers; with `workers`, in no others.
    @ivar ready: what it prints once it relays; empty: it does as soon as it listens.
    """

    name: str
    title: str
    ours: bool = False
    idle: int = 0
    each: int = 2
    tls: tuple[TLS, ...] = (TLS.NONE,)
    resumes: bool = True
    scales: bool = False
    workers: int = 0
    ready: str = ""

    def takes_part(self, line: Line) -> bool:
        """Whether it does what a line measures."""
        if line.scale or self.workers:
            return line.scale and self.scales
        return line.tls in self.tls and (self.resumes or not line.resumed)

    def prepare(self, folder: Path) -> str:
        """
        Make ready what all starts have in common.

        @return: its version.
        @raise Missing: it cannot be measured here.
        """
        raise NotImplementedError

    def command(self, place: Place) -> list[str]:
        """What starts it, in the foreground."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """What it needs in its environment beyond ours."""
        return {}


def said_by(*command: str) -> str:
    """The first line with a digit that a program prints."""
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not installed")
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    return next((line for line in lines if any(map(str.isdigit, line))), "?")


@attrs.frozen
class Fwdrelay(Relay):
    """Ours, with one of its pumps."""

    pump: str = attrs.field(kw_only=True)
    survives: bool = False

    def prepare(self, folder: Path) -> str:
        python = sys.version.split()[0]
        return f"fwdrelay {__version__}, Twisted {twisted.__version__}, Python {python}"

    def command(self, place: Place) -> list[str]:
        command = [
            *TWISTD,
            "fwdrelay",
            *("--port", str(place.port), "--interface", place.host, "--target", place.target),
            *("--access-log", "off", "--pump", self.pump),
        ]
        if self.workers:
            command += ["--workers", str(self.workers)]
        if self.survives:
            command += ["--survive-crashes"]
        if shown := place.terminate:
            command += ["--tls-cert", str(shown.certificate), "--tls-key", str(shown.key)]
        if expected := place.originate:
            command += ["--upstream-tls", "--upstream-ca", str(expected.authority)]
            command += ["--upstream-name", NAME]
        return command


@attrs.frozen
class Portforward(Relay):
    """Twisted's own; `stock.py` where it is to originate TLS, which has no command line."""

    def prepare(self, folder: Path) -> str:
        return f"Twisted {twisted.__version__}, Python {sys.version.split()[0]}"

    def command(self, place: Place) -> list[str]:
        listen = f"{place.port}:interface={place.host}:backlog=4096"
        if expected := place.originate:
            at = (str(place.port), place.host, place.to_host, str(place.to_port))
            return [sys.executable, str(HERE / "stock.py"), *at, str(expected.authority), NAME]
        if shown := place.terminate:
            listen = f"ssl:{listen}:certKey={shown.certificate}:privateKey={shown.key}"
        else:
            listen = f"tcp:{listen}"
        return [
            *TWISTD,
            "portforward",
            *("--port", listen, "--host", place.to_host, "--dest_port", str(place.to_port)),
        ]


@attrs.frozen
class HAProxy(Relay):
    """One thread; with `splice`, also allowed to splice as it sees fit."""

    splice: bool = False

    def prepare(self, folder: Path) -> str:
        return said_by("haproxy", "-v")

    def command(self, place: Place) -> list[str]:
        config = place.folder / "haproxy.cfg"
        pipes = min(1000, place.descriptors // 8) if self.splice else 0
        shown, expected = place.terminate, place.originate
        client = f"ssl crt {shown.both}" if shown else ""
        upstream = f"ssl verify required ca-file {expected.authority}" if expected else ""
        named = f"sni str({NAME}) verifyhost {NAME}" if expected else ""
        config.write_text(
            f"""\
global
    nbthread 1
    maxconn {(place.descriptors - 100) // 2 - pipes}
    maxpipes {pipes}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {"option splice-auto" if self.splice else ""}
listen relay
    bind {place.host}:{place.port} {client}
    server target {place.target} {upstream} {named}
"""
        )
        return ["haproxy", "-db", "-f", str(config)]


@attrs.frozen
class Nginx(Relay):
    """One worker."""

    def prepare(self, folder: Path) -> str:
        version = said_by("nginx", "-v")
        built = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=False).stderr
        if "--with-stream " not in f"{built} " and not STREAM_MODULE.exists():
            raise Missing("nginx has no stream module (on Debian: libnginx-mod-stream)")
        return version

    def command(self, place: Place) -> list[str]:
        config = place.folder / "nginx.conf"
        load = f"load_module {STREAM_MODULE};" if STREAM_MODULE.exists() else ""
        tls = ""
        if shown := place.terminate:
            tls = f"""\
ssl_certificate {shown.certificate}; ssl_certificate_key {shown.key};
        ssl_protocols TLSv1.2 TLSv1.3;"""
        if expected := place.originate:
            tls = f"""\
proxy_ssl on; proxy_ssl_verify on; proxy_ssl_trusted_certificate {expected.authority};
        proxy_ssl_name {NAME}; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3;"""
        config.write_text(
            f"""\
{load}
daemon off;
pid {place.folder}/nginx.pid;
error_log stderr crit;
worker_processes 1;
worker_rlimit_nofile {place.descriptors};
events {{ worker_connections {place.descriptors - 100}; }}
stream {{
    server {{
        listen {place.host}:{place.port} backlog=4096 {"ssl" if place.terminate else ""};
        proxy_timeout 1h;
        proxy_pass {place.target};
        {tls}
    }}
}}
"""
        )
        return ["nginx", "-p", str(place.folder), "-e", "stderr", "-c", str(config)]


@attrs.frozen
class Go(Relay):
    """`relay.go`, compiled here."""

    program: list[str] = attrs.field(factory=list, init=False)

    def prepare(self, folder: Path) -> str:
        version = said_by("go", "version")
        program = folder / "relay-go"
        build = subprocess.run(
            ["go", "build", "-o", str(program), str(HERE / "relay.go")],
            capture_output=True,
            text=True,
            check=False,
            env={"HOME": str(folder), **os.environ, "GO111MODULE": "off"},
        )
        if build.returncode:
            raise Missing(f"relay.go does not compile: {build.stderr.strip()}")
        self.program[:] = [str(program)]
        return f"{version}, GOMAXPROCS=1"

    def command(self, place: Place) -> list[str]:
        return [*self.program, f"{place.host}:{place.port}", place.target]

    def environ(self) -> dict[str, str]:
        return {"GOMAXPROCS": "1"}


@attrs.frozen
class Socat(Relay):
    """A process per session, which is why it holds few of them."""

    def prepare(self, folder: Path) -> str:
        return said_by("socat", "-V")

    def command(self, place: Place) -> list[str]:
        listen = f"TCP-LISTEN:{place.port},bind={place.host},fork,reuseaddr,backlog=4096,nodelay"
        return ["socat", "-lf/dev/null", listen, f"TCP:{place.target},nodelay"]


@attrs.frozen
class Hitch(Relay):
    """One worker."""

    def prepare(self, folder: Path) -> str:
        return said_by("hitch", "--version")

    def command(self, place: Place) -> list[str]:
        assert place.terminate is not None
        config = place.folder / "hitch.conf"
        user = ""
        if os.geteuid() == 0:  # as whom its workers refuse to run
            user = 'user = "nobody"\ngroup = "nogroup"'
        config.write_text(
            f"""\
frontend = "[{place.host}]:{place.port}"
backend = "[{place.to_host}]:{place.to_port}"
pem-file = "{place.terminate.both}"
workers = 1
backlog = 4096
daemon = off
{user}
"""
        )
        return ["hitch", "--config", str(config)]


@attrs.frozen
class Stunnel(Relay):
    """A thread per session, which is why it holds few of them."""

    def prepare(self, folder: Path) -> str:
        return said_by("stunnel", "-version")

    def command(self, place: Place) -> list[str]:
        config = place.folder / "stunnel.conf"
        tls = ""
        if shown := place.terminate:
            tls = f"cert = {shown.certificate}\nkey = {shown.key}"
        if expected := place.originate:
            tls = f"client = yes\nCAfile = {expected.authority}\nverifyChain = yes\n"
            tls += f"checkHost = {NAME}\nsni = {NAME}"
        config.write_text(
            f"""\
foreground = yes
pid =
debug = crit
syslog = no
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[relay]
accept = {place.host}:{place.port}
connect = {place.target}
TIMEOUTidle = 3600
{tls}
"""
        )
        return ["stunnel", str(config)]


with_workers = functools.partial(Fwdrelay, ours=True, pump="splice", scales=True, ready="is ready")

RELAYS: tuple[Relay, ...] = (
    Fwdrelay(
        "fwdrelay-splice",
        "fwdrelay splice",
        ours=True,
        pump="splice",
        tls=EVERYTHING,
        scales=True,
    ),
    Fwdrelay("fwdrelay-buffered", "fwdrelay buffered", ours=True, pump="buffered", tls=EVERYTHING),
    with_workers("fwdrelay-workers-1", "fwdrelay 1 worker", workers=1),
    with_workers("fwdrelay-workers-2", "fwdrelay 2 workers", workers=2),
    with_workers("fwdrelay-survive-2", "fwdrelay 2 surviving", workers=2, survives=True, each=4),
    HAProxy("haproxy", "HAProxy", tls=EVERYTHING),
    HAProxy("haproxy-splice", "HAProxy splice-auto", splice=True),
    Nginx("nginx", "nginx stream", tls=EVERYTHING),
    Hitch("hitch", "hitch", tls=(TLS.TERMINATED,)),
    Stunnel("stunnel", "stunnel", idle=500, tls=(TLS.TERMINATED, TLS.ORIGINATED)),
    Go("go", "Go io.Copy", each=6),  # two of them pipes, four descriptors
    Portforward("portforward", "Twisted portforward", tls=EVERYTHING, resumes=False),
    Socat("socat", "socat", idle=200),
)
BY_NAME = {relay.name: relay for relay in RELAYS}

"""
The load: backends and clients, each a process of its own that ends when its standard input does.

    python -m bench.load echo-server 127.0.0.1:7000
    python -m bench.load echo 127.0.0.1:5678 --connections 32 --seconds 3 --pid 1234
    OPENSSL_CONF=openssl.cnf python -m bench.load setup 127.0.0.1:5678 --authority ca.pem --resume

A server prints the port it listens on. A client prints one JSON object when it is through; given the
relay's process (`--pid`), it also reads the CPU time of that at both ends of the very window in which it
counts. What is wrong is said on standard error, with exit status 1.

With `--authority`, a client speaks TLS, and with `--certificate` a server does; `bench.credentials`
makes these files, and that which OPENSSL_CONF is to name.

`plain` and `secure` have the loads themselves. The standard library only, to start fast.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import sys

from bench import plain
from bench.window import Address, LoadError, Sources

MEASURED = ("down", "up", "echo", "setup")
HELD = ("hold", "silent", "stalled")
SERVERS = ("echo-server", "source-server", "sink-server")


def address(text: str) -> Address:
    """HOST:PORT"""
    host, _, port = text.rpartition(":")
    return host, int(port)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("kind", choices=(*MEASURED, *HELD, *SERVERS))
    add("address", type=address, help="of the relay, or to listen on: HOST:PORT")
    add("--connections", type=int, default=1)
    add("--seconds", type=float, default=2.0, help="for down, up and echo")
    add("--warmup", type=float, default=0.3, help="seconds before it counts")
    add("--sessions", type=int, default=10000, help=f"for setup, {', '.join(HELD)}")
    add("--warmup-sessions", type=int, default=1000)
    add("--sources", default="", help="prefix of source addresses, as 127.1.2")
    add("--pid", type=int, default=0, help="the relay's process")
    add("--cpus", default="", help="to run on, as 0,1")
    add("--authority", default="", help="who vouches for the relay: a PEM file; speak TLS")
    add("--name", default="", help="the relay's, in its certificate")
    add("--resume", action="store_true", help="for setup: resume a session")
    add("--certificate", default="", help="of a server, a PEM file; speak TLS")
    add("--key", default="", help="of a server, a PEM file")
    return parser.parse_args()


def measure(given: argparse.Namespace) -> dict[str, int]:
    """Be a client that measures."""
    to, kind, pid, connections = given.address, given.kind, given.pid, given.connections
    moving = (connections, given.warmup, given.seconds, pid)
    counted = (connections, given.warmup_sessions, given.sessions, pid)
    if given.authority:
        from bench import secure

        openers = secure.Secure(given.sources, given.authority, given.name)
        match kind:
            case "down":
                return secure.down(to, openers, *moving)
            case "up":
                return secure.up(to, openers, *moving)
            case "echo":
                return secure.echo(to, openers, *moving)
        return secure.setup(to, openers, *counted, given.resume)
    sources = Sources(given.sources)
    match kind:
        case "down":
            return plain.down(to, sources, *moving)
        case "up":
            return plain.up(to, sources, *moving)
        case "echo":
            return plain.echo(to, sources, *moving)
    return plain.setup(to, sources, *counted)


def hold(given: argparse.Namespace) -> None:
    """Be a client that holds sessions, until standard input ends."""
    to, kind, count = given.address, given.kind, given.sessions
    if given.authority and kind != "silent":
        from bench import secure

        openers = secure.Secure(given.sources, given.authority, given.name)
        return (secure.hold if kind == "hold" else secure.stalled)(to, openers, count)
    if kind == "stalled":
        raise LoadError("speaks TLS only, and needs --authority")
    return (plain.hold if kind == "hold" else plain.silent)(to, Sources(given.sources), count)


def serve(given: argparse.Namespace) -> None:
    """Be a server, until standard input ends."""
    at, kind = given.address, given.kind
    if given.certificate:
        from bench import secure

        server = secure.Server(at, given.certificate, given.key)
        match kind:
            case "echo-server":
                server.run(secure.serve_echo)
            case "source-server":
                server.run(secure.serve_source, select.EPOLLOUT)
            case "sink-server":
                server.run(secure.serve_sink)
        return
    match kind:
        case "echo-server":
            plain.echo_server(at)
        case "source-server":
            plain.source_server(at)
        case "sink-server":
            plain.sink_server(at)


def main() -> None:
    """Do as the command line says."""
    given = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if given.cpus:
        os.sched_setaffinity(0, map(int, given.cpus.split(",")))
    if given.kind in SERVERS:
        serve(given)
    elif given.kind in HELD:
        hold(given)
    else:
        print(json.dumps(measure(given)))


if __name__ == "__main__":
    try:
        main()
    except (LoadError, OSError) as wrong:
        sys.exit(f"{sys.argv[1]}: {wrong}")
    except KeyboardInterrupt:
        sys.exit(130)

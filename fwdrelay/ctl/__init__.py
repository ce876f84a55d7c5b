"""
`fwdrelayctl`: sees and steers a running relay, from a terminal or a script.

It asks the admin API, over TCP or a Unix socket, as anybody else would: nothing here shares a process
with a relay. `api` asks, `answers` makes values of what comes, `commands` is the command line.
"""


def main() -> None:
    """The program; it exits with one of `fwdrelay.ctl.exits`."""
    import sys

    from .commands import run

    sys.exit(run(sys.argv[1:]))

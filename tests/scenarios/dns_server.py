"""
A real DNS server (unbound) on a port of its own, whose records change while it runs.

It answers for the zone `test` with what it was last told, and SERVFAIL for all names below
`broken.test`. Nothing is forwarded anywhere, and the machine's own resolver is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .programs import Program, folder, free_port, run, skip_unless_installed

_CONFIGURATION = """
server:
  interface: 127.0.0.1
  interface: ::1
  port: {port}
  access-control: 127.0.0.0/8 allow
  access-control: ::1 allow
  directory: "{folder}"
  chroot: ""
  username: ""
  pidfile: ""
  do-daemonize: no
  use-syslog: no
  module-config: "iterator"
  minimal-responses: no
  num-threads: 1
  outgoing-range: 16
  verbosity: 1
  local-zone: "test." nodefault
remote-control:
  control-enable: yes
  control-interface: {folder}/control
  control-use-cert: no
auth-zone:
  name: "test"
  zonefile: "{folder}/zone"
  for-downstream: yes
  for-upstream: no
auth-zone:
  name: "broken.test"
  # Never transferred, for nobody answers there; until then, there is nothing to say but SERVFAIL.
  primary: 127.0.0.1@{port}
  for-downstream: yes
  for-upstream: no
"""
_ZONE = """$ORIGIN test.
$TTL 1
@ SOA ns.test. root.test. {serial} 1 1 1 1
@ NS ns.test.
{records}
"""


class DnsServer:
    """
    @ivar address: `ADDR:PORT`.
    @ivar address6: the same by IPv6.
    """

    def __init__(self, path: Path) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.address6 = f"[::1]:{port}"
        self._path = path
        self._serial = 0
        self._program: Program | None = None
        self._configuration = str(path / "unbound.conf")
        text = _CONFIGURATION.format(port=port, folder=path)
        Path(self._configuration).write_text(text, encoding="utf-8")
        self._write("")

    def start(self) -> None:
        """Serve, on the same port as before."""
        self._program = Program(
            "unbound", "-d", "-p", "-c", self._configuration, ready="start of service"
        )

    def stop(self) -> None:
        """Answer no more."""
        program, self._program = self._program, None
        if program is not None:
            program.stop()

    def serve(self, records: str) -> None:
        """
        Answer with these from now on, and with no others.

        @param records: lines of a zone file, for names in `test.`, with their times to live:
            `web 1 A 192.0.2.1`.
        """
        self._write(records)
        run("unbound-control", "-c", self._configuration, "auth_zone_reload", "test")

    def _write(self, records: str) -> None:
        self._serial += 1
        lines = "\n".join(line.strip() for line in records.splitlines())
        text = _ZONE.format(serial=self._serial, records=lines)
        (self._path / "zone").write_text(text, encoding="utf-8")


@contextmanager
def dns_server(records: str = "") -> Iterator[DnsServer]:
    """A running `DnsServer` for a `with` block; skips the test where there is no unbound."""
    skip_unless_installed("unbound", "unbound-control")
    with folder() as path, contextlib.ExitStack() as stack:
        server = DnsServer(path)
        server.start()
        stack.callback(server.stop)
        server.serve(records)
        yield server

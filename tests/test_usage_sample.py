"""The sample in `fwdrelay`'s docstring, run as it stands there but for its addresses."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import textwrap

import fwdrelay
from tests.case import SynchronousTestCase
from tests.scenarios.relay_process import PATIENCE, Upstream, read_all

# Logs to standard output, where the test learns which port was free.
PROLOGUE = "import sys\nfrom twisted.python import log\nlog.startLogging(sys.stdout)\n"


def sample() -> str:
    """The code that is in the docstring."""
    assert fwdrelay.__doc__ is not None
    found = re.search(r"::\n\n((?: {4}.*\n|\n)+)", fwdrelay.__doc__)
    assert found is not None
    return textwrap.dedent(found[1])


class SampleTests(SynchronousTestCase):
    def test_it_relays_and_stops(self) -> None:
        with Upstream() as upstream:
            host, _, port = upstream.target.rpartition(":")
            code = sample()
            for old, new in (
                ("tcp:5678", "tcp:0:interface=127.0.0.1"),
                ('host="localhost", port=80', f'host="{host}", port={port}'),
            ):
                self.assertEqual(code.count(old), 1)
                code = code.replace(old, new)
            process = subprocess.Popen(
                [sys.executable, "-c", PROLOGUE + code], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            with process, process.stdout, self.killed_in_the_end(process):
                listens = None
                while listens is None:
                    line = process.stdout.readline()
                    self.assertTrue(line, "it ended")
                    listens = re.search(r"listens on 127\.0\.0\.1:(\d+)", line)
                with socket.create_connection(("127.0.0.1", int(listens[1])), PATIENCE) as client:
                    with upstream.accept() as server:
                        client.sendall(b"question")
                        client.shutdown(socket.SHUT_WR)
                        self.assertEqual(read_all(server), b"question")
                        server.sendall(b"answer")
                    self.assertEqual(read_all(client), b"answer")
                process.terminate()
                rest = process.stdout.read()
                process.wait(PATIENCE)
        self.assertIn('"reason":"done"', rest)
        self.assertNotIn("Traceback", rest)

    @contextlib.contextmanager
    def killed_in_the_end(self, process: subprocess.Popen[str]):  # type: ignore[no-untyped-def]
        try:
            yield
        finally:
            if process.poll() is None:
                process.kill()

    def test_importing_the_package_imports_nothing_heavy(self) -> None:
        code = "import sys, fwdrelay; print(fwdrelay.__version__, 'twisted' in sys.modules)"
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        self.assertEqual(told.stdout.split(), [fwdrelay.__version__, "False"])

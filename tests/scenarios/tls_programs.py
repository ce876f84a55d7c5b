"""Other people's programs that speak TLS: a web server and a browser around the relay, and `openssl` to talk with."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from attrs import frozen
from cryptography.hazmat.primitives import serialization

from tests.pki import Authority, Identity
from tests.scenarios.programs import PATIENCE, find, free_port, run, running

_NGINX = """
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate target.pem;
    ssl_certificate_key target.key;
    ssl_client_certificate ca.pem;
    server {{ listen 127.0.0.1:{plain}; include said.conf; }}
    server {{ listen 127.0.0.1:{plain_h2} http2; include said.conf; }}
    server {{ listen 127.0.0.1:{tls} ssl http2; include said.conf; }}
    server {{ listen 127.0.0.1:{mutual} ssl; ssl_verify_client on; include said.conf; }}
}}
"""
_SAID = """
root .;
location / {{
    default_type text/plain;
    add_header Access-Control-Allow-Origin *;
    return 200 "http={http} tls={tls} sni={sni} alpn={alpn} reused={reused} client={client};\\n";
}}
location /page {{ default_type text/html; try_files /page.html =404; }}
""".format(
    http="$server_protocol",
    tls="$ssl_protocol",
    sni="$ssl_server_name",
    alpn="$ssl_alpn_protocol",
    reused="$ssl_session_reused",
    client="$ssl_client_s_dn",
)


@frozen
class Ports:
    """
    Where an nginx listens on 127.0.0.1. To all requests it says how it was reached: `http=HTTP/1.1
    tls=TLSv1.3 sni=NAME alpn=h2 reused=. client=CN=NAME;`; `/page` is the file `page.html` in its folder.

    @ivar plain: HTTP/1.1 without TLS, and `plain_h2`: HTTP/2 without TLS.
    @ivar tls: both over TLS.
    @ivar mutual: HTTP/1.1 over TLS for clients with a certificate.
    """

    plain: int
    plain_h2: int
    tls: int
    mutual: int


@contextmanager
def nginx(place: Path, own: Identity, clients: Authority) -> Iterator[Ports]:
    """An nginx in that folder, with a certificate."""
    ports = Ports(free_port(), free_port(), free_port(), free_port())
    own.write(place, "target")
    clients.write(place)
    user = "user root;" if os.geteuid() == 0 else ""
    numbers = {
        "plain": ports.plain,
        "plain_h2": ports.plain_h2,
        "tls": ports.tls,
        "mutual": ports.mutual,
    }
    (place / "nginx.conf").write_text(_NGINX.format(user=user, **numbers))
    (place / "said.conf").write_text(_SAID)
    command = ("nginx", "-p", str(place), "-c", "nginx.conf", "-e", "stderr")
    with running(*command, ready="start worker process "):
        yield ports


def dump_page(url: str, *trusted: Identity) -> str:
    """
    What a browser makes of a page, once it is loaded.

    @param trusted: those whose certificates are taken for good.
    """
    with tempfile.TemporaryDirectory(prefix="fwdrelay-", ignore_cleanup_errors=True) as profile:
        return run(
            "chromium",
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--disable-extensions"),
            f"--user-data-dir={profile}",
            f"--ignore-certificate-errors-spki-list={','.join(map(_pin, trusted))}",
            "--dump-dom",
            url,
        )


def _pin(who: Identity) -> str:
    """@return: the key of its certificate, in brief (RFC 7469, section 2.4)."""
    public = who.certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(hashlib.sha256(public).digest()).decode()


class Conversation:
    """
    `openssl s_client` or `s_server`, spoken to line by line.

    @ivar output: all it has printed so far.
    """

    def __init__(self, *words: str, cwd: Path | None = None) -> None:
        # Some of what it says would stay in its buffers.
        unbuffered, openssl = find("stdbuf"), find("openssl")
        assert unbuffered and openssl, "ask skip_unless_installed first"
        self.output = ""
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            [unbuffered, "-o0", openssl, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd=cwd,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            while data := self.process.stdout.read(1 << 16):
                with self._grown:
                    self.output += data.decode(errors="replace")
                    self._grown.notify_all()
        with self._grown:
            self.output += "(its output ended)"
            self._grown.notify_all()

    def say(self, text: str) -> None:
        """Type this, at once."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    def wait_for(self, text: str, start: int = 0) -> str:
        """
        Wait until it has printed that.

        @return: all it has printed from `start` on.
        """
        deadline = time.monotonic() + PATIENCE
        with self._grown:
            while text not in self.output[start:]:
                left = deadline - time.monotonic()
                if left <= 0 or self.output.endswith("(its output ended)"):
                    raise AssertionError(f"never printed {text!r}, but:\n{self.output}")
                self._grown.wait(left)
            return self.output[start:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self._reader.join()

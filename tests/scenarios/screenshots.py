"""
Makes the pictures of the dashboard in `docs/`: `python -m tests.scenarios.screenshots [--seconds 300]`.

A relay of its own, clients and servers that are made up but speak real TCP and TLS, and Chromium, which looks on until
its charts are full. No test: it takes as long as the charts are long, and nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.pki import Authority
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.programs import find, folder, free_port

DOCS = Path(__file__).resolve().parents[2] / "docs"
ADMIN = "127.0.0.1:9678"
PICTURES: dict[str, dict[str, Any]] = {
    "dashboard": {"viewport": {"width": 1440, "height": 1200}, "color_scheme": "light"},
    "dashboard-dark": {"viewport": {"width": 1440, "height": 1200}, "color_scheme": "dark"},
    "dashboard-phone": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "light",
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}
_NAMES = ("shop.example.com", "api.example.com", "static.example.com")
_CONFIGURATION = """
[relay]
admin = "{admin}"
access_log = "off"

[[listener]]
name = "web"
listen = ["tcp:{web}:interface=127.0.0.1"]
pool = "web"
max_sessions = 200
admit = {{ deny = ["127.9.0.0/16"] }}
tls = {{ certificate = "{certificate}", key = "{key}", alpn = ["h2", "http/1.1"] }}

[[listener]]
name = "db"
listen = ["tcp:{db}:interface=127.0.0.1"]
pool = "db"

[pool.web]
targets = [
    "127.0.0.11:{server},name=app-1,weight=2",
    "127.0.0.12:{server},name=app-2",
    "127.0.0.13:{server},name=app-3",
    "127.0.0.14:{server},name=app-4,backup",
]
balance = "least-sessions"
health = {{ check = "tcp", interval = "1s" }}

[pool.db]
targets = ["127.0.0.21:{server},name=db-1,max-sessions=40", "127.0.0.22:{server},name=db-2"]
balance = "round-robin"
health = {{ check = "tcp", interval = "1s" }}
"""


class Town:
    """
    Servers, and clients that come, stay and go, in a thread of their own.

    @param server: the port that all servers listen on, on addresses of their own.
    @param web: the port of the listener that terminates TLS.
    @param db: that of the other.
    """

    def __init__(self, server: int, web: int, db: int) -> None:
        self._server, self._web, self._db = server, web, db
        self._chance = random.Random(20)
        self._loop = asyncio.new_event_loop()
        self._servers: dict[int, asyncio.Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._trusting = ssl.create_default_context()
        self._trusting.check_hostname = False
        self._trusting.verify_mode = ssl.CERT_NONE
        self._trusting.set_alpn_protocols(["h2", "http/1.1"])
        self._thread = threading.Thread(target=self._loop.run_forever)

    def open(self) -> None:
        """Let the servers listen."""
        self._thread.start()
        for last in (11, 12, 13, 14, 21, 22):
            self._do(self._serve(last))

    def live(self) -> None:
        """Let clients come."""
        self._do(self._begin())

    def close_server(self, last: int) -> None:
        """Let one be dead to new connections."""
        self._loop.call_soon_threadsafe(self._servers[last].close)

    def close(self) -> None:
        """Let everybody go."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _serve(self, last: int) -> None:
        address = f"127.0.0.{last}"
        self._servers[last] = await asyncio.start_server(self._answer, address, self._server)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send as many bytes a second, for as many seconds, as was asked for; read whatever comes."""
        rest: asyncio.Future[bytes] = self._loop.create_future()
        with contextlib.suppress(OSError, ValueError):
            rate, seconds = map(float, (await reader.readline()).split())
            rest = asyncio.ensure_future(reader.read())
            began = self._loop.time()
            while (passed := self._loop.time() - began) < seconds and not rest.done():
                writer.write(bytes(int(rate * 0.1 * (1 + 0.5 * math.sin(passed / 7)))))
                await writer.drain()
                await asyncio.sleep(0.1)
            writer.write_eof()
            await asyncio.wait([rest])
        rest.cancel()
        await asyncio.gather(rest, return_exceptions=True)
        writer.close()

    async def _begin(self) -> None:
        self._come(self._regulars())
        self._come(self._crowd())

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers.values():
            server.close()
        await asyncio.sleep(0.3)

    def _come(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _rate(self) -> float:
        return min(400_000.0, 3_000 * self._chance.paretovariate(0.7))

    async def _regulars(self) -> None:
        """Who comes in the first half minute, and stays."""
        for number in range(40):
            await asyncio.sleep(self._chance.uniform(0.3, 1.2))
            if number % 3:
                self._come(self._visit(self._web, self._rate(), 900))
            else:
                self._come(self._visit(self._db, self._chance.uniform(200, 4000), 900))

    async def _crowd(self) -> None:
        """Short visits, more of them at some times than at others."""
        while True:
            now = self._loop.time()
            busy = 1 + math.sin(now / 25) + 0.4 * math.sin(now / 6)
            await asyncio.sleep(self._chance.expovariate(1.5 + 3 * max(0.0, busy)))
            denied = self._chance.random() < 0.03
            seconds = self._chance.expovariate(1 / 2.5)
            self._come(self._visit(self._web, self._rate(), seconds, network=9 if denied else 1))

    async def _visit(self, port: int, rate: float, seconds: float, network: int = 1) -> None:
        source = f"127.{network}.{self._chance.randrange(8)}.{self._chance.randrange(1, 255)}"
        options: dict[str, Any] = {"local_addr": (source, 0)}
        if port == self._web:
            options |= {"ssl": self._trusting, "server_hostname": self._chance.choice(_NAMES)}
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
            try:
                writer.write(f"{rate} {seconds}\n".encode())
                impatient = self._chance.random() < 0.1 and seconds < 100
                while data := await reader.read(1 << 16):
                    writer.write(bytes(len(data) // self._chance.randrange(6, 40)))
                    if impatient:
                        writer.transport.abort()
                        return
                writer.close()
            finally:
                writer.transport.close()


@contextmanager
def demonstration() -> Iterator[Town]:
    """A relay and all around it, for a `with` block."""
    with folder() as place:
        certificate, key = Authority().vouch(dns=_NAMES).write(place, "web")
        server, web, db = free_port(), free_port(), free_port()
        town = Town(server, web, db)
        town.open()
        try:
            text = _CONFIGURATION.format(
                admin=ADMIN, server=server, web=web, db=db, certificate=certificate, key=key
            )
            relay = ConfiguredRelay(place / "relay.toml", text)
            try:
                yield town
            finally:
                relay.kill()
        finally:
            town.close()


def look(browser: Browser, options: dict[str, Any]) -> Page:
    """A page that looks on from now on."""
    page = browser.new_context(**options).new_page()
    page.goto(f"http://{ADMIN}/")
    return page


def drain(target: str) -> None:
    """Take it out of the pool of databases."""
    request = urllib.request.Request(
        f"http://{ADMIN}/v1/pools/db/targets/{target}",
        json.dumps({"state": "drain"}).encode(),
        {"Content-Type": "application/json"},
        method="PATCH",
    )
    urllib.request.urlopen(request).close()


def take(page: Page, path: Path, *, whole: bool) -> None:
    """@param whole: all of the page, not only what its window shows."""
    if whole:
        # Rows that are out of sight are not drawn: so the window is made as long as the page.
        height: int = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": page.viewport_size["width"], "height": height})  # type: ignore[index]
    page.wait_for_timeout(2500)
    page.screenshot(path=path)
    print(path)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Make the pictures of the dashboard in docs/.")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long it looks on (300)")
    parser.add_argument("--to", type=Path, default=DOCS, help="the folder for the pictures (docs)")
    arguments = parser.parse_args()
    chromium = find("chromium")
    if chromium is None:
        raise SystemExit("chromium is not installed")
    with demonstration() as town, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        pages = {name: look(browser, options) for name, options in PICTURES.items()}
        town.live()
        watcher = next(iter(pages.values()))
        watcher.wait_for_timeout(arguments.seconds * 0.7 * 1000)
        drain("db-2")
        watcher.wait_for_timeout(arguments.seconds * 0.1 * 1000)
        town.close_server(13)
        watcher.wait_for_timeout(arguments.seconds * 0.2 * 1000)
        for name, page in pages.items():
            take(page, arguments.to / f"{name}.png", whole=name == "dashboard")
        browser.close()


if __name__ == "__main__":
    main()

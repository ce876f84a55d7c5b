"""
Who means harm: slow ones, many, oversized things, and nonsense on every kind of port. They cost what is
bounded, others are served meanwhile, and nothing is left of them.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import signal
import socket
import ssl
import struct
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from tests.pki import Authority
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.relay_process import (
    PATIENCE,
    Upstream,
    connect,
    read_exactly,
    reset,
    wait_until,
)
from tests.scenarios.scenario import MB, Scenario
from tests.scenarios.tls_ends import TLSSocket

SEED = 20260
PROXY_V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 80\r\n"
PROXY_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_V2 = (
    PROXY_V2_SIGNATURE + b"\x21\x11\0\x0c" + bytes([192, 0, 2, 1, 192, 0, 2, 2, 4, 87, 0, 80])
)
HEADERS = {"required": PROXY_V1, "optional": PROXY_V2, "tls-behind-proxy": PROXY_V1}
"""The listeners that take headers, and one that they take."""
PLAIN = ("plain", "required", "optional")
SECURE = ("tls", "tls-behind-proxy")
PASSING = ("sni", "sni-or-nothing")
"""Those that route by what a ClientHello says, and pass it on."""
EVERYWHERE = (*PLAIN, *SECURE, *PASSING)
NAME = "relay.example.com"


class Echo(Upstream):
    """
    Sends back what it gets, to any number of clients.

    @param secure: what it speaks TLS with; None: it doesn't.
    """

    def __init__(self, secure: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._secure = secure
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self.socket.setblocking(False)
        self._selector.register(self.socket, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve)
        self._threads = ThreadPoolExecutor(8)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(0.2):
                if key.fileobj is self.socket:
                    self._accept()
                else:
                    self._answer(key.fileobj)

    def _accept(self) -> None:
        try:
            accepted, _ = self.socket.accept()
        except OSError:
            return
        if self._secure is not None:
            accepted.settimeout(PATIENCE)
            self._threads.submit(self._answer_securely, self._secure, accepted)
        else:
            accepted.setblocking(True)
            self._selector.register(accepted, selectors.EVENT_READ)

    def _answer(self, accepted: Any) -> None:
        try:
            data = accepted.recv(1 << 16)
            accepted.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(accepted)
            accepted.close()

    def _answer_securely(self, secure: ssl.SSLContext, accepted: socket.socket) -> None:
        try:
            # Not `ssl`'s own socket, which CPython forgets to close when it was reset before it is wrapped.
            with TLSSocket(accepted, secure, serving=True) as wrapped:
                while data := wrapped.recv(1 << 16):
                    wrapped.sendall(data)
        except OSError:
            accepted.close()

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        self._thread.join()
        self._threads.shutdown()
        for key in list(self._selector.get_map().values()):
            if key.fileobj is not self.socket:
                cast("socket.socket", key.fileobj).close()
        self._selector.close()
        super().__exit__(*exception)


class Ports:
    """
    A relay with a listener of every kind.

    @param folder: for its files.
    @param patience: of the relay with what comes before a session, in seconds.
    """

    def __init__(self, folder: Path, pump: str, patience: float, *, more: str = "") -> None:
        authority = Authority()
        certificate, key = authority.vouch(NAME, dns=[NAME]).write(folder, "relay")
        self.trust = ssl.create_default_context(cafile=authority.write(folder))
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(certificate, key)
        self._ends = ExitStack()
        self.plain = self._ends.enter_context(Echo())
        self.secure = self._ends.enter_context(Echo(secure))
        tls = f'tls = {{ certificate = "{certificate}", key = "{key}" }}'
        route = f'[[listener.route]]\nsni = ["{NAME}"]\npool = "secure"'
        header = 'proxy_protocol = { accept = "required" }'
        listeners = {
            "plain": "",
            "required": header,
            "optional": 'proxy_protocol = { accept = "optional" }',
            "tls": tls,
            "tls-behind-proxy": f"{tls}\n{header}",
            "sni": route,
            "sni-or-nothing": route,
        }
        text = f'[relay]\npump = "{pump}"\n'
        for name, lines in listeners.items():
            text += f"""
[[listener]]
name = "{name}"
listen = ["tcp:0:interface=127.0.0.1"]
timeouts = {{ handshake = "{patience}s", peek = "{patience}s" }}
{"" if name == "sni-or-nothing" else 'pool = "plain"'}
{more}
{lines}
"""
        text += f"""
[pool.plain]
targets = ["{self.plain.target}"]
[pool.secure]
targets = ["{self.secure.target}"]
"""
        try:
            self.relay = ConfiguredRelay(folder / "fwdrelay.toml", text)
        except BaseException:
            self._ends.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            self.relay.__exit__(kind, *exception)
        finally:
            self._ends.close()

    def connect(self, name: str, source: str = "") -> socket.socket:
        """A client of one of the listeners."""
        return connect(self.relay.listener(name), source=source)

    def is_served(self, name: str, source: str = "") -> bool:
        """Whether a client that means well gets its echo."""
        with warnings.catch_warnings():
            # CPython forgets to close a socket that was reset just before it is wrapped.
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                with self.connect(name, source) as raw:
                    raw.sendall(HEADERS.get(name, b""))
                    client = raw
                    if name not in PLAIN:
                        client = self.trust.wrap_socket(raw, server_hostname=NAME)
                    with client:
                        client.sendall(b"hello")
                        return client.recv(100) == b"hello"
            except (ConnectionError, ssl.SSLError):
                return False

    def wait_until_served(self, name: str) -> None:
        """Until somebody is."""
        wait_until(partial(self.is_served, name), lambda: f"{name} serves nobody")

    def wait_until_not_served(self, name: str) -> None:
        """Until somebody is not."""
        wait_until(lambda: not self.is_served(name), lambda: f"{name} serves everybody")

    def are_served(self, name: str, count: int) -> list[bool]:
        """Whether so many are, one after the other."""
        return [self.is_served(name) for _ in range(count)]

    def hello(self) -> bytes:
        """A ClientHello that is served."""
        out = ssl.MemoryBIO()
        client = self.trust.wrap_bio(ssl.MemoryBIO(), out, server_hostname=NAME)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        return out.read()


def trickle(sock: socket.socket, data: bytes, pause: float) -> bytes:
    """
    Send a byte at a time until it is cut.

    @return: what was answered.
    """
    told = b""
    sock.settimeout(pause)
    for at in range(len(data)):
        try:
            sock.sendall(data[at : at + 1])
            answer = sock.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionError:
            return told
        if not answer:
            return told
        told += answer
    raise AssertionError(f"all {len(data)} bytes were taken")


def to_the_end(sock: socket.socket) -> bytes:
    """What is told before the connection ends, in whatever way."""
    told = b""
    try:
        while data := sock.recv(1 << 16):
            told += data
    except ConnectionError:
        pass
    return told


class Attacks(Scenario):
    @contextmanager
    def ports(self, patience: float = 30.0, *, more: str = "") -> Iterator[Ports]:
        """
        @param more: lines of each listener.
        @return: (for a `with` block) a relay, of which at the end of the block nobody may be left, and whose
            listeners must all serve.
        """
        with Ports(Path(self.folder()), self.pump, patience, more=more) as ports:
            yield ports
            relay = ports.relay
            relay.wait_for_descriptors(relay.at_rest)
            for name in EVERYWHERE:
                ports.wait_until_served(name)
                wait_until(partial(self.is_empty, relay, name), lambda: "\n".join(relay.lines))

    def is_empty(self, relay: ConfiguredRelay, name: str) -> bool:
        """Whether the last to leave that listener had been alone there."""
        sessions = [each["sessions"] for each in relay.ended() if each["listener"] == name]
        return sessions[-1:] == [1]

    def reasons(self, ports: Ports, count: int) -> set[tuple[str, str]]:
        """Reasons and codes of the sessions so far, of which there are so many."""
        return {(each["reason"], each["code"]) for each in ports.relay.ended(count)}

    # Slow ones.

    def assert_cut(self, name: str, data: bytes, reason: str, first: bytes = b"") -> None:
        """
        One who sends `data` a byte at a time is cut, though never silent; others are served meanwhile.
        """
        # With a patience in which a slow machine serves them, too.
        with self.ports() as ports, ports.connect(name) as slow:
            slow.sendall(first + data[:20])
            self.assertTrue(ports.is_served(name))
        # In which `first` has to come, too.
        with self.ports(3.0 if first else 0.5) as ports, ports.connect(name) as slow:
            slow.sendall(first)
            trickle(slow, data, 0.01)
            self.assertEqual(self.reasons(ports, 1), {(reason, "cR")})

    def test_a_slow_hello(self) -> None:
        # Of a length that takes longer than the relay's patience.
        self.assert_cut(
            "tls", b"\x16\x03\x01\x3f\xf0\x01\0\x3f\xec\x03\x03" + bytes(2000), "tls-timeout"
        )

    def test_a_slow_handshake_after_a_quick_hello(self) -> None:
        # A patience in which a slow machine answers the hello.
        with self.ports(3.0) as ports, ports.connect("tls") as slow:
            slow.sendall(ports.hello())
            self.assertEqual(slow.recv(1), b"\x16")  # its own
            trickle(slow, b"\x17\x03\x03\x40\0" + bytes(2000), 0.01)
            self.assertEqual(self.reasons(ports, 1), {("tls-timeout", "cR")})

    def test_a_slow_header(self) -> None:
        for data in (
            PROXY_V2_SIGNATURE + b"\x21\x11\x3f\xf0" + bytes(2000),
            PROXY_V1[:-2] + b"8" * 500,
        ):
            with self.ports(0.5) as ports, ports.connect("required") as slow:
                trickle(slow, data, 0.02)
                (told,) = self.reasons(ports, 1)
                self.assertIn(told, {("proxy-timeout", "cR"), ("proxy-header", "PR")})

    def test_a_slow_header_before_tls(self) -> None:
        header = PROXY_V2_SIGNATURE + b"\x21\x11\x3f\xf0" + bytes(2000)
        self.assert_cut("tls-behind-proxy", header, "proxy-timeout")
        hello = b"\x16\x03\x01\x3f\xf0\x01\0\x3f\xec\x03\x03" + bytes(2000)
        self.assert_cut("tls-behind-proxy", hello, "tls-timeout", first=PROXY_V1)

    def test_a_slow_hello_that_is_only_looked_at(self) -> None:
        """It goes where no name goes, with all its bytes."""
        with self.ports(0.5) as ports:
            hello = ports.hello()
            with ports.connect("sni") as slow:
                slow.sendall(hello[:50])
                self.assertEqual(read_exactly(slow, 50), hello[:50])
                slow.sendall(hello[50:])
                self.assertEqual(read_exactly(slow, len(hello) - 50), hello[50:])
            with ports.connect("sni-or-nothing") as slow:
                with contextlib.suppress(
                    ConnectionError
                ):  # it may be cut before, by a slow machine
                    slow.sendall(hello[:50])
                self.assertEqual(to_the_end(slow), b"")
            self.assertIn(("no-route", "PR"), self.reasons(ports, 2))

    def test_who_says_nothing_is_cut_where_something_is_to_be_said(self) -> None:
        with self.ports(0.5) as ports, ExitStack() as clients:
            silent = {name: ports.connect(name) for name in ("tls", "required", "tls-behind-proxy")}
            for client in silent.values():
                clients.enter_context(client)
            for client in silent.values():
                self.assertEqual(to_the_end(client), b"")
            told = {(each["listener"], each["reason"]) for each in ports.relay.ended(3)}
            self.assertEqual(
                told,
                {
                    ("tls", "tls-timeout"),
                    ("required", "proxy-timeout"),
                    ("tls-behind-proxy", "proxy-timeout"),
                },
            )

    # Many.

    def test_half_hellos_cost_little_and_no_more_when_they_are_gone(self) -> None:
        count = 500
        with self.ports() as ports:
            relay, half = ports.relay, ports.hello()[:200]
            for name in EVERYWHERE:  # so that all that is made once is made
                self.assertTrue(ports.is_served(name))
            relay.wait_for_descriptors(relay.at_rest)
            before = relay.memory()
            with ExitStack() as clients:
                for name in ("tls", "sni"):
                    for _ in range(count):
                        clients.enter_context(ports.connect(name)).sendall(half)
                wait_until(lambda: relay.descriptors() >= relay.at_rest + 2 * count)
                for name in EVERYWHERE:
                    self.assertTrue(ports.is_served(name), name)
                self.assertLess(relay.memory() - before, 2 * count * 16384)
            relay.wait_for_descriptors(relay.at_rest)

    def test_handshakes_that_are_given_up_leave_nothing(self) -> None:
        """What OpenSSL has for one is 50 kB, so it may not wait for Python to tidy up."""
        count, rounds = 250, 4
        with self.ports() as ports:
            relay, hello = ports.relay, ports.hello()
            after: list[int] = []
            for _ in range(1 + rounds):
                with ExitStack() as clients:
                    for _ in range(count):
                        client = clients.enter_context(ports.connect("tls"))
                        client.sendall(hello)
                        self.assertEqual(client.recv(1), b"\x16")
                relay.wait_for_descriptors(relay.at_rest)
                after.append(relay.memory())
            self.assertLess(after[-1] - after[0], rounds * count * 8192)

    def test_all_that_has_a_limit_is_refused_beyond_it(self) -> None:
        """Before hello and header, too."""
        with self.ports(more="max_sessions = 20") as ports:
            for name in ("tls", "required", "sni"):
                with ExitStack() as clients:
                    for _ in range(20):
                        clients.enter_context(ports.connect(name))
                    ports.wait_until_not_served(name)
                ports.wait_until_served(name)

    def test_who_is_gone_before_being_looked_at(self) -> None:
        """There is nothing left to wait for then, however long the relay would."""
        with self.ports(3600) as ports:
            for name in EVERYWHERE:
                ports.relay.signal(signal.SIGSTOP)
                for data in (b"", PROXY_V1, PROXY_V1[:5], b"\x16\x03\x01"):
                    client = ports.connect(name)
                    client.sendall(data)
                    reset(client)
                ports.relay.signal(signal.SIGCONT)

    # Too large.

    def assert_turned_away(self, ports: Ports, name: str, data: bytes, reason: str) -> None:
        """One who sends `data` to that listener is, and it is said why, in a few words."""
        before = [line for line in ports.relay.lines if line.startswith("{")]
        with ports.connect(name) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
            to_the_end(client)
        entry = ports.relay.ended(len(before) + 1)[-1]
        self.assertEqual((entry["listener"], entry["reason"], entry["code"]), (name, reason, "PR"))
        self.assertTrue(entry["error"])
        self.assertLess(len(entry["error"]), 300)

    def test_oversized_hellos_and_records(self) -> None:
        # A message of 16 MB, in as many records as it takes.
        record = b"\x16\x03\x01\x40\0"
        hello = record + b"\x01\xff\xff\xff\x03\x03" + bytes(16378) + (record + bytes(16384)) * 20
        with self.ports() as ports:
            self.assert_turned_away(ports, "tls", hello, "tls-failed")
            self.assert_turned_away(
                ports, "tls", b"\x16\x03\x01\xff\xff\x01" + bytes(70_000), "tls-failed"
            )

    def test_oversized_headers(self) -> None:
        oversized = PROXY_V2_SIGNATURE + b"\x21\x11\xff\xff" + bytes(65535)
        with self.ports() as ports:
            for name in HEADERS:
                for data in (
                    b"PROXY TCP4 " + b"1" * 100_000,
                    b"PROXY UNKNOWN " + b"1" * 100_000,
                    oversized,
                ):
                    self.assert_turned_away(ports, name, data, "proxy-header")

    def test_an_oversized_hello_that_is_only_looked_at(self) -> None:
        record = b"\x16\x03\x01\x40\0"
        hello = record + b"\x01\xff\xff\xff\x03\x03" + bytes(16378) + record + bytes(16384)
        with self.ports() as ports:
            with ports.connect("sni") as client:
                sender = threading.Thread(target=client.sendall, args=(hello,))
                sender.start()
                echoed = read_exactly(client, len(hello))
                sender.join()
                self.assertEqual(echoed, hello)
            with ports.connect("sni-or-nothing") as client:
                with contextlib.suppress(ConnectionError):
                    client.sendall(hello)
                self.assertEqual(to_the_end(client), b"")

    def test_of_an_oversized_wish_little_is_told(self) -> None:
        """A log that a client could fill with its own words is one for its words alone."""
        names = b"".join(b"\x05\x7f\xff\0%02x" % (number % 256) for number in range(2000))
        alpn = struct.pack(">H", len(names)) + names
        extensions = struct.pack(">HH", 16, len(alpn)) + alpn
        body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
        body += struct.pack(">H", len(extensions)) + extensions
        message = b"\x01" + len(body).to_bytes(3, "big") + body
        with self.ports() as ports:
            for name in ("sni", "tls"):
                with ports.connect(name) as client:
                    client.sendall(b"\x16\x03\x01" + struct.pack(">H", len(message)) + message)
                    client.shutdown(socket.SHUT_WR)
                    to_the_end(client)
            ports.relay.ended(2)
            for line in ports.relay.lines:
                self.assertLess(len(line), 2000)

    # Nonsense.

    def nonsense(self, ports: Ports, dice: random.Random) -> bytes:
        """Bytes of which some look good at first."""
        good = [
            b"",
            PROXY_V1,
            PROXY_V2,
            ports.hello(),
            PROXY_V1 + ports.hello(),
            b"GET / HTTP/1.0\r\n\r\n",
        ]
        data = bytearray(dice.choice(good))
        kind = dice.choice(["flipped", "cut", "with more", "random"])
        if kind == "flipped" and data:
            for _ in range(dice.choice([1, 1, 2, 9])):
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        elif kind == "cut":
            del data[dice.randrange(len(data) + 1) :]
        else:
            data += dice.randbytes(dice.choice([1, 5, 100, 3000, 40_000]))
        return bytes(data)

    def one_of_nonsense(self, ports: Ports, name: str, dice: random.Random) -> None:
        data = self.nonsense(ports, dice)
        how = dice.choice(["end", "reset", "close", "wait"])
        parts = dice.choice([1, 1, 2, 5])
        try:
            with ports.connect(name) as client:
                client.settimeout(0.05)
                for part in range(parts):
                    size = len(data) // parts + 1
                    client.sendall(data[part * size : (part + 1) * size])
                if how == "reset":
                    reset(client)
                    return
                if how == "end":
                    client.shutdown(socket.SHUT_WR)
                if how != "close":
                    to_the_end(client)
        except OSError:  # it was cut, or had to wait
            pass

    def test_nonsense_on_every_port(self) -> None:
        with self.ports() as ports, ThreadPoolExecutor(4) as threads:
            relay = ports.relay
            for name in EVERYWHERE:
                self.assertTrue(ports.is_served(name), name)
            before = relay.memory()
            for name in EVERYWHERE:
                each = [random.Random(f"{SEED} {name} {number}") for number in range(60)]
                others = threads.submit(ports.are_served, name, 5)
                attacks = [threads.submit(self.one_of_nonsense, ports, name, dice) for dice in each]
                for attack in attacks:
                    attack.result()
                self.assertEqual(others.result(), [True] * 5, name)
            relay.wait_for_descriptors(relay.at_rest)
            self.assertLess(relay.memory() - before, 30 * MB)


class Floods(Scenario, every_pump=False):
    """Many thousands who may not enter."""

    COUNT: ClassVar[int] = 20_000

    def flood(
        self,
        address: tuple[str, int],
        data: bytes,
        source: str,
        count: int,
        enough: threading.Event,
    ) -> Counter[str]:
        """
        Connect so many times, and again until it is `enough`, each time as soon as the last one is done.

        @return: how often it ended how.
        """
        told: Counter[str] = Counter()
        while told.total() < count or not enough.is_set():
            with socket.socket() as client:
                client.settimeout(PATIENCE)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                try:
                    client.bind((source, 0))
                    client.connect(address)
                    if data:
                        client.sendall(data)
                    told["told" if client.recv(1) else "ended"] += 1
                except ConnectionError:
                    told["reset"] += 1
        return told

    def assert_others_are_served(
        self, ports: Ports, name: str, data: bytes, count: int, reason: str
    ) -> None:
        """While so many or more come from 127.0.0.2 and on, some others come from 127.0.0.1."""
        relay = ports.relay
        for _ in range(3):
            self.assertTrue(ports.is_served(name))
        relay.wait_for_descriptors(relay.at_rest)
        memory, most, most_memory = relay.memory(), 0, 0
        address = relay.listener(name)
        assert isinstance(address, tuple)
        begun = time.monotonic()
        served, enough = 0, threading.Event()
        with ThreadPoolExecutor(4) as threads:
            floods = [
                threads.submit(self.flood, address, data, f"127.0.0.{number}", count // 4, enough)
                for number in range(2, 6)
            ]
            try:
                while not all(flood.done() for flood in floods):
                    self.assertTrue(ports.is_served(name))
                    served += 1
                    if served > 5:
                        enough.set()
                    most = max(most, relay.descriptors())
                    most_memory = max(most_memory, relay.memory())
            finally:
                enough.set()
            count = sum(flood.result().total() for flood in floods)
        seconds = time.monotonic() - begun
        self.assertLess(most - relay.at_rest, 500)
        self.assertLess(most_memory - memory, 40 * MB)
        relay.wait_for_descriptors(relay.at_rest)
        # All are counted, and few are told.
        relay.stop()
        named = [
            each
            for each in relay.ended()
            if each["client"].startswith("127.0.0.") and not each["client"].startswith("127.0.0.1:")
        ]
        summed = [line for line in relay.lines if "within a second" in line]
        self.assertEqual({each["reason"] for each in named}, {reason})
        numbers = [int(line.partition("refused ")[2].split()[0]) for line in summed]
        self.assertEqual(len(named) + sum(numbers), count)
        self.assertLess(len(named) + len(summed), 12 * (seconds + 3))

    def ports(self, more: str = "") -> Ports:
        return Ports(Path(self.folder()), self.pump, 30.0, more=more)

    def test_who_is_denied(self) -> None:
        deny = ", ".join(f'"127.0.0.{number}"' for number in range(2, 6))
        with self.ports(f"admit = {{ deny = [{deny}] }}") as ports:
            self.assert_others_are_served(ports, "plain", b"", self.COUNT, "denied")

    def test_who_speaks_no_tls(self) -> None:
        with self.ports() as ports:
            data = b"GET / HTTP/1.0\r\n\r\n"
            self.assert_others_are_served(ports, "tls", data, self.COUNT // 10, "tls-failed")

    def test_who_has_no_header(self) -> None:
        with self.ports() as ports:
            data = b"GET / HTTP/1.0\r\n\r\n"
            self.assert_others_are_served(ports, "required", data, self.COUNT // 10, "proxy-header")

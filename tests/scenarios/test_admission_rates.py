"""Rates of new sessions: who comes too fast is turned away, and let in again in time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.relay_process import (
    Upstream,
    connect,
    read_exactly,
    wait_until,
)
from tests.scenarios.scenario import Scenario

RARE = "3/h"
"""Nobody is let in again while a scenario runs."""


def config(target: str, *, admit: str = "", more: str = "") -> str:
    """
    @param admit: lines of `[listener.admit]`.
    @param more: lines of the listener.
    """
    return f"""
[[listener]]
name = "web"
listen = ["tcp:0:interface=127.0.0.1"]
pool = "web"
{more}
[listener.admit]
{admit}
[pool.web]
targets = ["{target}"]
"""


class Echoing(Upstream):
    """Sends back what it gets, to one client at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._serving = threading.Thread(target=self._serve)
        self._serving.start()

    def _serve(self) -> None:
        while True:
            try:
                accepted = self.accept()
            except OSError:
                return
            with accepted:
                try:
                    while data := accepted.recv(100):
                        accepted.sendall(data)
                except OSError:
                    pass

    def __exit__(self, *exception: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        super().__exit__(*exception)
        self._serving.join()


class AdmissionRates(Scenario, every_pump=False):
    @contextmanager
    def configured(self, text: str) -> Iterator[ConfiguredRelay]:
        with ConfiguredRelay(self.path("fwdrelay.toml"), text) as relay:
            yield relay
            if relay.process.poll() is None:
                relay.wait_for_descriptors(relay.at_rest)

    def is_let_in(self, relay: ConfiguredRelay, source: str = "", header: bytes = b"") -> bool:
        """
        Come, have something echoed, and leave.

        @param source: the client's address.
        @param header: what goes first, for the relay only.
        """
        try:
            with connect(relay.listener("web"), source=source) as client:
                client.sendall(header + b"?")
                if client.recv(1) != b"?":
                    return False
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(client.recv(1), b"")
                return True
        except (ConnectionResetError, BrokenPipeError):
            return False

    def is_turned_away(self, relay: ConfiguredRelay) -> bool:
        """Come all the same."""
        return not self.is_let_in(relay)

    def assert_let_in(
        self, relay: ConfiguredRelay, count: int, source: str = "", header: bytes = b""
    ) -> None:
        """Exactly so many are, of some more."""
        told = [self.is_let_in(relay, source, header) for _ in range(count + 3)]
        self.assertEqual(told, [True] * count + [False] * 3, header)

    def reasons(self, relay: ConfiguredRelay) -> set[tuple[str, str]]:
        """Of the refused that are named, with their codes; once there is one."""
        wait_until(lambda: any('"code":"PR"' in line for line in relay.lines))
        return {
            (entry["reason"], entry["code"]) for entry in relay.ended() if entry["code"] == "PR"
        }

    def test_the_rate_of_a_listener_holds_for_all_together(self) -> None:
        with (
            Echoing() as upstream,
            self.configured(config(upstream.target, admit=f'rate = "{RARE}"')) as relay,
        ):
            self.assertTrue(self.is_let_in(relay, "127.0.0.2"))
            self.assert_let_in(relay, 2)
            self.assertFalse(self.is_let_in(relay, "127.0.0.3"))
            self.assertEqual(self.reasons(relay), {("rate", "PR")})

    def test_the_rate_of_one_client_does_not_reach_another(self) -> None:
        admit = f'rate_per_client = "{RARE}"\nrate = "9/h"'
        with (
            Echoing() as upstream,
            self.configured(config(upstream.target, admit=admit)) as relay,
        ):
            for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                self.assert_let_in(relay, 3, source)
            self.assertEqual(self.reasons(relay), {("rate-per-client", "PR")})
            # The nine who were let in are all that the listener had for the hour.
            self.assert_let_in(relay, 0, "127.0.0.4")
            # Of the others one is named in each second, however many of those there were.
            relay.wait_for(lambda line: '"reason":"rate"' in line)
            self.assertEqual(self.reasons(relay), {("rate-per-client", "PR"), ("rate", "PR")})

    def test_who_was_turned_away_is_let_in_again(self) -> None:
        for key in ("rate", "rate_per_client"):
            with (
                Echoing() as upstream,
                self.configured(config(upstream.target, admit=f'{key} = "4/s"')) as relay,
            ):
                wait_until(partial(self.is_turned_away, relay))
                wait_until(partial(self.is_let_in, relay))

    def test_who_is_turned_away_is_counted_and_few_are_named(self) -> None:
        count = 500
        with (
            Echoing() as upstream,
            self.configured(config(upstream.target, admit='rate_per_client = "1/h"')) as relay,
        ):
            self.assertTrue(self.is_let_in(relay))
            begun = time.monotonic()
            for _ in range(count):
                self.assertFalse(self.is_let_in(relay))
            seconds = time.monotonic() - begun
            relay.stop()
            summed = [
                int(line.partition("refused ")[2].split()[0])
                for line in relay.lines
                if "within a second" in line
            ]
            named = [each for each in relay.ended() if each["reason"] == "rate-per-client"]
            self.assertEqual(len(named) + sum(summed), count)
            # One is named and one sum told for each second that had any.
            self.assertLessEqual(len(named) + len(summed), 2 * (seconds + 1))

    def test_behind_a_proxy_each_client_has_a_rate_of_its_own(self) -> None:
        text = config(
            "TARGET",
            admit=f'rate_per_client = "{RARE}"\nsessions_per_client = 1\ndeny = ["192.0.2.66"]',
            more='proxy_protocol = { accept = "required" }',
        )
        with (
            Echoing() as upstream,
            self.configured(text.replace("TARGET", upstream.target)) as relay,
        ):
            ipv4 = "PROXY TCP4 {} 192.0.2.254 1111 80\r\n"
            ipv6 = "PROXY TCP6 {} 2001:db8::ff 1111 80\r\n"
            for line in (ipv4.format("192.0.2.1"), ipv4.format("192.0.2.2")):
                self.assert_let_in(relay, 3, header=line.encode())
            self.assert_let_in(relay, 0, header=ipv4.format("192.0.2.66").encode())
            # One network of 64 bits is one client, whatever address in it is used.
            self.assertTrue(self.is_let_in(relay, header=ipv6.format("2001:db8:0:1::1").encode()))
            self.assert_let_in(relay, 2, header=ipv6.format("2001:db8:0:1:2::").encode())
            self.assert_let_in(relay, 3, header=ipv6.format("2001:db8:0:2::1").encode())
            # Nor do they wear out their proxy.
            self.assert_let_in(relay, 3, header=b"PROXY UNKNOWN\r\n")
            told = {
                (entry["client"].rpartition(":")[0], entry["reason"])
                for entry in relay.ended(15)
                if entry["code"] == "PR"
            }
            self.assertIn(("192.0.2.1", "rate-per-client"), told)
            self.assertIn(("192.0.2.66", "denied"), told)

    def test_before_its_header_a_client_has_a_place(self) -> None:
        """Or any number could wait at the door, however few sessions may be."""
        text = config(
            "TARGET",
            more='max_sessions = 1\nproxy_protocol = { accept = "required" }',
        )
        header = b"PROXY TCP4 192.0.2.1 192.0.2.254 1111 80\r\n"
        with (
            Echoing() as upstream,
            self.configured(text.replace("TARGET", upstream.target)) as relay,
        ):
            with relay.connect() as silent:
                silent.sendall(header[:5])
                wait_until(lambda: not self.is_let_in(relay, header=header))
                self.assertEqual(self.reasons(relay), {("max-sessions", "PR")})
                silent.sendall(header[5:] + b"?")
                self.assertEqual(read_exactly(silent, 1), b"?")
            wait_until(lambda: self.is_let_in(relay, header=header))

    def test_a_reload_keeps_what_a_rate_remembers_unless_it_is_changed(self) -> None:
        with Echoing() as upstream:
            text = config(upstream.target, admit=f'rate_per_client = "{RARE}"')
            with self.configured(text) as relay:
                self.assert_let_in(relay, 3)
                relay.reload(text.replace("[pool.web]", '[pool.web]\nbalance = "first"'))
                self.assert_let_in(relay, 0)
                relay.reload(text.replace(RARE, "5/h"))
                self.assert_let_in(relay, 5)
                relay.reload(text.replace(RARE, "0"))
                for _ in range(10):
                    self.assertTrue(self.is_let_in(relay))

"""Sessions of many kinds at once, none of which misses a byte; and that the load which says so would notice."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from attrs import evolve

from tests.case import SynchronousTestCase
from tests.scenarios.mixed_load import RESET, WHOLE, Failure, MixedLoad
from tests.scenarios.mixed_traffic import HEADER
from tests.scenarios.relay_process import reset
from tests.scenarios.scenario import Scenario

Damage = Callable[[bytes], bytes | None]
"""What becomes of bytes that came by; None: the connection ends here."""


class MixedLoadTests(Scenario):
    def test_sessions_of_all_kinds_end_as_they_should(self) -> None:
        with (
            MixedLoad(sessions=30, largest=1 << 20) as load,
            self.relaying("--target", load.target, "--access-log", "off") as relay,
        ):
            load.start(relay.addresses[0])
            load.wait_until_ended(100)
            load.stop()
            self.assertEqual(list(map(str, load.failures)), [])
            self.assertEqual(set(load.counts), {*WHOLE, *RESET})

    def test_sessions_that_last(self) -> None:
        with (
            MixedLoad(sessions=40, kinds=WHOLE, lasting=True, rate=256 << 10) as load,
            self.relaying("--target", load.target, "--access-log", "off") as relay,
        ):
            load.start(relay.addresses[0])
            load.wait_until_open(40)
            for _ in range(3):
                load.wait_until_all_moved()
            self.assertEqual(load.counts.total(), 0)
            load.stop()
            self.assertEqual(list(map(str, load.failures)), [])
            self.assertEqual(load.counts.total(), 40)


class Damaging:
    """
    A relay of sorts, with a thread for each way of each session, that does not always relay what came.

    @ivar address: where it listens.
    """

    def __init__(
        self, target: str, damage: Callable[[], Damage], hides_resets: bool = False
    ) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._damage = damage
        self._hides_resets = hides_resets
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listening.getsockname()
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._sockets.append(client)  # before the upstream is found to be gone
                server = socket.create_connection(self._target)
                self._sockets.append(server)
                self._run(self._relay, client, server, self._damage())
                self._run(self._relay, server, client, lambda data: data)

    def _relay(self, source: socket.socket, sink: socket.socket, damage: Damage) -> None:
        try:
            while data := source.recv(1 << 16):
                damaged = damage(data)
                if damaged is None:
                    break
                sink.sendall(damaged)
        except OSError:
            if not self._hides_resets:
                with contextlib.suppress(OSError):
                    reset(sink.dup())
                    reset(sink)
                return
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End all of it."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads[:1]:
            thread.join()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads[1:]:
            thread.join()


def after(count: int, damage: Damage) -> Callable[[], Damage]:
    """Damages the first bytes that come after so many, and no others."""

    def make() -> Damage:
        seen = 0
        done = False

        def relayed(data: bytes) -> bytes | None:
            nonlocal seen, done
            seen += len(data)
            if seen <= count or done:
                return data
            done = True
            return damage(data)

        return relayed

    return make


class NoticingTests(SynchronousTestCase):
    """A relay that does wrong is found out."""

    @contextlib.contextmanager
    def through(
        self, damage: Callable[[], Damage], *kinds: str, hides_resets: bool = False
    ) -> Iterator[MixedLoad]:
        """A load through a relay that does that."""
        with MixedLoad(sessions=2, kinds=kinds, largest=1 << 20) as load:
            relay = Damaging(load.target, damage, hides_resets)
            try:
                load.start(relay.address)
                yield load
            finally:
                load.close()
                relay.close()

    def assert_found(self, damage: Damage, *words: str) -> None:
        """There is a failure which says one of these."""
        with self.through(after(100_000, damage), "bulk-up", "bulk-both", "messages") as load:
            load.wait_until_failed()
            told = list(map(str, load.failures))
            self.assertTrue(any(word in each for word in words for each in told), told)

    def test_one_that_is_right_is_not_blamed(self) -> None:
        with self.through(lambda: lambda data: data, *WHOLE) as load:
            load.wait_until_ended(10)
            load.stop()
            self.assertEqual(list(map(str, load.failures)), [])

    def test_a_byte_that_is_lost(self) -> None:
        self.assert_found(lambda data: data[1:], "another byte than was sent, at ")

    def test_a_byte_that_is_another(self) -> None:
        self.assert_found(
            lambda data: data[:-1] + bytes([data[-1] ^ 1]), "another byte than was sent, at "
        )

    def test_bytes_that_come_twice(self) -> None:
        self.assert_found(lambda data: data + data, "another byte than was sent, at ")

    def test_an_end_that_nobody_has_said(self) -> None:
        self.assert_found(lambda data: None, "an end after ")

    def test_a_reset_that_nobody_has_said(self) -> None:
        def fail(data: bytes) -> bytes:
            raise ConnectionResetError

        self.assert_found(fail, "Connection reset by peer", "Broken pipe")

    def test_a_reset_that_is_made_an_end(self) -> None:
        with self.through(lambda: lambda data: data, *RESET, hides_resets=True) as load:
            load.wait_until_failed()
            self.assertRegex(str(load.failures[0]), "that nobody has said|ended cleanly")

    def test_what_stands_still_is_told_at_the_end(self) -> None:
        with self.through(after(HEADER.size, lambda data: b""), "messages") as load:
            load.wait_until_open(2)
            load.stop(patience=0.1)
            self.assertIn("it did not end", str(load.failures[0]))

    def test_who_was_young(self) -> None:
        failure = Failure(
            kind="bulk-up",
            error="client: Connection reset by peer",
            client="127.0.0.1:1",
            begun=10.0,
            opened=10.5,
            at=20.0,
            up=1,
            down=0,
            sent_up=2,
            sent_down=0,
            number=1,
        )
        self.assertEqual(failure.age, 9.5)
        for moments, young in (((), False), ((9.9,), False), ((10.1,), True), ((5, 11.4), True)):
            self.assertEqual(failure.was_young(moments, age=1.0), young, moments)
        self.assertFalse(failure.was_young([11.6], age=1.0))
        self.assertTrue(evolve(failure, opened=None).was_young([19.0], age=1.0))

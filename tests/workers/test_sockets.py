"""`fwdrelay.workers.sockets`: what a supervisor listens on, and who gets it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import tempfile
from typing import Any
from unittest import mock

from twisted.internet import endpoints
from twisted.internet import reactor as the_reactor
from twisted.python.systemd import ListenFDs

from fwdrelay.config import Config, ListenerConfig, PoolConfig
from fwdrelay.errors import CannotListen
from fwdrelay.frontend import Key
from fwdrelay.workers.sockets import Sockets
from tests.case import SynchronousTestCase

reactor: Any = the_reactor
PATIENCE = 10.0


def listening_on(*descriptions: str, backlog: int = 100) -> Config:
    """A configuration of one listener, `main`."""
    listener = ListenerConfig(name="main", listen=descriptions, pool="main", backlog=backlog)
    return Config(listeners=(listener,), pools=(PoolConfig(name="main"),))


def port_of(sock: socket.socket) -> int:
    number: int = sock.getsockname()[1]
    return number


def connected(address: Any, family: int = socket.AF_INET) -> socket.socket:
    """A client."""
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(PATIENCE)
    try:
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def accepted_by(sockets: list[socket.socket], count: int = 1) -> list[int]:
    """
    Accept so many clients, and whoever waits besides. A client knows that it is connected a little earlier
    than who listens.

    @return: how many waited for each.
    """
    found = [0] * len(sockets)
    while sum(found) < count:
        ready, _, _ = select.select(sockets, [], [], PATIENCE)
        assert ready, f"only {found} of {count} have come"
        for number, each in enumerate(sockets):
            with contextlib.suppress(BlockingIOError):
                while True:
                    each.accept()[0].close()
                    found[number] += 1
    return found


FREE: Key = ("main", "tcp:0:interface=127.0.0.1")
ABSTRACT = f"unix:@fwdrelay-sockets-{os.getpid()}"
"""Of this process alone: such names have no folder, and tests run side by side."""


class SocketsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.sockets = Sockets(reactor)
        self.addCleanup(lambda: self.sockets.close_all())

    def tcp(self, workers: int, backlog: int = 100) -> list[socket.socket]:
        """Those of a free port."""
        self.sockets.bind(listening_on(FREE[1], backlog=backlog), workers)
        return self.sockets.bound[FREE].sockets

    def path(self) -> str:
        """Of nothing, yet."""
        folder = tempfile.TemporaryDirectory(prefix="fwdrelay-")
        self.addCleanup(folder.cleanup)
        return f"{folder.name}/socket"

    def refused(self, *descriptions: str, workers: int = 2) -> str:
        """What is said of addresses that can't be bound."""
        wrong = self.assertRaises(
            CannotListen, self.sockets.bind, listening_on(*descriptions), workers
        )
        return str(wrong)


class TCP(SocketsTestCase):
    def test_each_worker_has_a_socket_at_the_same_address(self) -> None:
        found = self.tcp(3)
        self.assertEqual(len(found), 3)
        self.assertEqual(len({each.getsockname() for each in found}), 1)
        self.assertEqual(self.sockets.address(FREE), f"127.0.0.1:{port_of(found[0])}")
        shares = [self.sockets.of(worker) for worker in (1, 2, 3)]
        self.assertEqual(shares, [[(FREE, True, [each])] for each in found])

    def test_clients_are_dealt_out_and_none_is_refused_before_anybody_accepts(self) -> None:
        found = self.tcp(2)
        clients = [connected(found[0].getsockname()) for _ in range(64)]
        for client in clients:
            client.close()
        waited = accepted_by(found, 64)
        self.assertEqual(sum(waited), 64)
        self.assertTrue(all(waited), waited)

    def test_as_many_may_wait_as_the_listener_says(self) -> None:
        (found,) = self.tcp(1, backlog=7)
        # tcp(7), TCP_INFO: of a listening socket, tcpi_sacked is how many may wait.
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        self.assertEqual(int.from_bytes(info[28:32], "little"), 7)

    def test_as_many_may_wait_as_the_address_says(self) -> None:
        self.sockets.bind(listening_on(f"{FREE[1]}:backlog=3"), 1)
        ((_, _, (found,)),) = self.sockets.of(1)
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        self.assertEqual(int.from_bytes(info[28:32], "little"), 3)

    def test_what_is_bound_stays(self) -> None:
        found = self.tcp(2)[:]
        self.assertEqual(
            self.sockets.bind(listening_on(FREE[1], ABSTRACT), 2),
            [("", ABSTRACT)],
        )
        self.assertEqual(self.sockets.bound[FREE].sockets, found)

    def test_all_ipv6_and_ipv4_addresses(self) -> None:
        key = ("main", "tcp6:0:interface=\\:\\:")
        self.sockets.bind(listening_on(key[1]), 2)
        first, second = self.sockets.bound[key].sockets
        self.assertEqual(port_of(first), port_of(second))
        connected(("127.0.0.1", port_of(first))).close()
        connected(("::1", port_of(first)), socket.AF_INET6).close()
        self.assertEqual(sum(accepted_by([first, second], 2)), 2)

    def test_an_address_that_another_program_shares_generously_is_taken_all_the_same(self) -> None:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", 0))
            other.listen()
            description = f"tcp:{port_of(other)}:interface=127.0.0.1"
            self.assertEqual(
                self.refused(ABSTRACT, description),
                f"cannot listen on {description}: Address already in use",
            )
        self.assertEqual(self.sockets.bound, {})
        self.sockets.bind(listening_on(ABSTRACT, description), 2)

    def test_so_is_one_of_another_fwdrelay(self) -> None:
        (found,) = self.tcp(1)
        other = Sockets(reactor)
        config = listening_on(f"tcp:{port_of(found)}:interface=127.0.0.1")
        self.assertRaises(CannotListen, other.bind, config, 1)

    def test_what_can_not_be_bound_is_said_as_without_workers(self) -> None:
        for description, why in (
            ("tcp:0:interface=192.0.2.1", "Cannot assign requested address"),
            ("tcp:0:interface=nowhere.invalid", ""),
            ("systemd:domain=INET:name=nothing", "systemd has handed over no such socket"),
            ("tcp:99999", ""),
        ):
            said = self.refused(description)
            self.assertTrue(said.startswith(f"cannot listen on {description}: {why}"), said)

    def test_when_one_of_several_fails_none_stays(self) -> None:
        before = os.listdir("/proc/self/fd")
        with mock.patch("fwdrelay.workers.sockets.Bound.grow", side_effect=OSError(24, "Too many")):
            self.assertIn("Too many", self.refused(FREE[1]))
        self.assertEqual(os.listdir("/proc/self/fd"), before)

    def test_more_workers_later(self) -> None:
        first = self.tcp(1)[0]
        self.sockets.grow(3)
        found = self.sockets.bound[FREE].sockets
        self.assertEqual(len(found), 3)
        self.assertIs(found[0], first)
        self.assertEqual({port_of(each) for each in found}, {port_of(first)})

    def test_more_workers_than_could_be_bound_for_share(self) -> None:
        found = self.tcp(2)
        self.sockets.bind(listening_on(FREE[1], ABSTRACT), 2)
        # As for a port below 1024, when privileges have been shed.
        with mock.patch(
            "fwdrelay.workers.sockets._listening",
            side_effect=PermissionError(13, "Permission denied"),
        ):
            wrong = self.assertRaises(CannotListen, self.sockets.grow, 5)
        self.assertEqual(str(wrong), f"cannot listen on {FREE[1]}: Permission denied")
        shares = [self.sockets.of(worker)[0][2] for worker in range(1, 6)]
        self.assertEqual([found.index(share[0]) for share in shares], [0, 1, 0, 1, 0])

    def test_fewer_workers_have_all_sockets_still(self) -> None:
        found = self.tcp(5)
        self.sockets.grow(2)
        shares = [self.sockets.of(worker)[0][2] for worker in (1, 2)]
        self.assertEqual(shares, [found[0::2], found[1::2]])

    def test_closed_nobody_is_let_in_although_a_worker_has_it_still(self) -> None:
        (found,) = self.tcp(1)
        at = found.getsockname()
        with found.dup():
            self.sockets.close([FREE])
            self.assertRaises(ConnectionRefusedError, connected, at)
        self.assertEqual(self.sockets.bound, {})


class Unix(SocketsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.file = self.path()
        self.key = ("", f"unix:{self.file}:mode=600")
        self.sockets.bind(listening_on(self.key[1]), 3)

    def test_one_for_all(self) -> None:
        (found,) = self.sockets.bound[self.key].sockets
        self.assertEqual(
            [self.sockets.of(worker) for worker in (1, 3)], [[(self.key, True, [found])]] * 2
        )
        self.assertEqual(self.sockets.address(self.key), f"unix:{self.file}")
        connected(self.file, socket.AF_UNIX).close()
        self.assertEqual(accepted_by([found]), [1])

    def test_its_mode_and_its_lock(self) -> None:
        self.assertEqual(stat.S_IMODE(os.stat(self.file).st_mode), 0o600)
        self.assertEqual(os.readlink(f"{self.file}.lock"), str(os.getpid()))
        self.assertIn("Cannot acquire lock", self.refused_by_another())

    def refused_by_another(self) -> str:
        other = Sockets(reactor)
        config = listening_on(self.key[1])
        return str(self.assertRaises(CannotListen, other.bind, config, 1))

    def test_nothing_is_left_of_it(self) -> None:
        self.sockets.close([self.key])
        self.assertFalse(os.path.lexists(self.file))
        self.assertFalse(os.path.lexists(f"{self.file}.lock"))
        self.sockets.bind(listening_on(self.key[1]), 3)

    def test_a_file_in_its_place_stays_and_no_lock_does(self) -> None:
        path = self.path()
        with open(path, "w"):
            pass
        said = self.refused(f"unix:{path}")
        self.assertEqual(said, f"cannot listen on unix:{path}: Address already in use")
        self.assertTrue(os.path.exists(path))
        self.assertFalse(os.path.lexists(f"{path}.lock"))


class OfSystemd(SocketsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.given = socket.create_server(("127.0.0.1", 0))
        self.at = self.given.getsockname()
        inherited = ListenFDs([self.given.detach()], ["web"])
        self.patch(endpoints._SystemdParser, "_sddaemon", inherited)
        self.key = ("", "systemd:domain=INET:name=web")
        self.sockets.bind(listening_on(self.key[1]), 2)

    def test_one_for_all_and_not_ours(self) -> None:
        (found,) = self.sockets.bound[self.key].sockets
        self.assertEqual([self.sockets.of(n) for n in (1, 2)], [[(self.key, False, [found])]] * 2)
        self.assertFalse(found.getblocking())

    def test_it_can_be_wanted_again(self) -> None:
        self.sockets.close([self.key])
        connected(self.at).close()
        self.sockets.bind(listening_on(self.key[1]), 2)
        self.assertEqual(accepted_by(self.sockets.bound[self.key].sockets), [1])


class Renewed(SocketsTestCase):
    def renewed(self) -> Sockets:
        """As after execv(2): the numbers, which are not closed, and JSON."""
        written = json.dumps(self.sockets.state())
        everything = [*self.sockets.bound.values(), *self.sockets._kept.values()]
        for bound in everything:
            for each in bound.sockets:
                os.set_inheritable(each.detach(), True)
        self.sockets = Sockets.restored(reactor, json.loads(written))
        return self.sockets

    def test_tcp(self) -> None:
        numbers = [each.fileno() for each in self.tcp(3)]
        at = self.sockets.address(FREE)
        self.assertEqual(self.sockets.descriptors(), numbers)
        renewed = self.renewed()
        self.assertEqual(renewed.descriptors(), numbers)
        self.assertEqual((renewed.address(FREE), renewed.workers), (at, 3))
        self.assertFalse(any(map(os.get_inheritable, numbers)))
        self.assertEqual(renewed.bind(listening_on(FREE[1]), 3), [])
        renewed.grow(4)
        self.assertEqual(len(renewed.bound[FREE].sockets), 4)

    def test_unix(self) -> None:
        path = self.path()
        key = ("", f"unix:{path}:mode=600")
        self.sockets.bind(listening_on(key[1]), 3)
        renewed = self.renewed()
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        connected(path, socket.AF_UNIX).close()
        self.assertEqual(accepted_by(renewed.bound[key].sockets), [1])
        renewed.close([key])
        self.assertFalse(os.path.lexists(path))
        self.assertFalse(os.path.lexists(f"{path}.lock"))

    def test_unix_without_a_lock(self) -> None:
        path = self.path()
        key = ("", f"unix:{path}:lockfile=0")
        self.sockets.bind(listening_on(key[1], f"{ABSTRACT}:lockfile=0"), 3)
        renewed = self.renewed()
        self.assertEqual(renewed.address(("", f"{ABSTRACT}:lockfile=0")), ABSTRACT)
        renewed.close_all()
        self.assertFalse(os.path.lexists(path))

    def test_of_systemd_wanted_or_not(self) -> None:
        for wanted in (True, False):
            given = socket.create_server(("127.0.0.1", 0))
            at = given.getsockname()
            self.patch(endpoints._SystemdParser, "_sddaemon", ListenFDs([given.detach()], ["web"]))
            key = ("", "systemd:domain=INET:name=web")
            self.sockets.bind(listening_on(key[1]), 2)
            if not wanted:
                self.sockets.close([key])
            renewed = self.renewed()
            self.assertEqual(len(renewed.descriptors()), 1)
            renewed.bind(listening_on(key[1]), 2)
            connected(at).close()
            self.assertEqual(accepted_by(renewed.bound[key].sockets), [1])
            self.assertFalse(renewed.bound[key].owned)
            renewed.close_all()

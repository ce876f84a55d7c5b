"""Where clients may connect: several addresses, both IP families, Unix sockets, inherited sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from tests.scenarios.programs import free_port
from tests.scenarios.relay_process import (
    RelayProcess,
    Upstream,
    connect,
    read_all,
    read_exactly,
)
from tests.scenarios.scenario import Scenario


def inherited(*sockets: socket.socket) -> dict[str, Any]:
    """
    Arguments for `relaying` with which the relay inherits `sockets` as systemd hands them over: from
    descriptor 3 on, LISTEN_FDS says how many, LISTEN_PID to whom (sd_listen_fds(3)).
    """
    given = [sock.fileno() for sock in sockets]

    def preexec() -> None:
        # By way of higher ones, since one that is to be moved may be in another's place.
        parked = [os.dup2(fd, 100 + number) for number, fd in enumerate(given)]
        for number, fd in enumerate(parked):
            os.dup2(fd, 3 + number)
            os.close(fd)

    return {
        "listen": False,
        "environ": {
            "LISTEN_FDS": str(len(given)),
            "LISTEN_FDNAMES": ":".join("fwdrelay.socket" for _ in given),
        },
        "preexec": preexec,
        "pass_fds": tuple(range(3, 3 + len(given))),
        "within": ("sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@"'),
    }


class Listening(Scenario):
    def serves(self, upstream: Upstream, client: socket.socket) -> None:
        with client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            with upstream.accept() as server:
                self.assertEqual(read_all(server), b"hello")
            self.assertEqual(read_all(client), b"")

    def test_a_listener_on_all_addresses_takes_ipv6_and_ipv4_and_logs_them_plainly(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--port", "0", "--target", upstream.target, listen=False) as relay,
        ):
            with connect(("127.0.0.1", relay.port)) as client:
                name = client.getsockname()
                self.serves(upstream, client)
            self.has_ended(
                relay,
                *("done", "--"),
                client=f"127.0.0.1:{name[1]}",
                local=f"127.0.0.1:{relay.port}",
            )
            with connect(("::1", relay.port)) as client:
                name = client.getsockname()
                self.serves(upstream, client)
            entry = relay.ended(2)[-1]
            self.assertEqual(entry["client"], f"[::1]:{name[1]}")
            self.assertEqual(entry["local"], f"[::1]:{relay.port}")

    def test_an_ipv6_interface_and_an_ipv6_target(self) -> None:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
            target = f"[::1]:{listening.getsockname()[1]}"
            with (
                self.relaying(
                    *("--port", "0", "--interface", "::1", "--target", target), listen=False
                ) as relay,
                connect(("::1", relay.port)) as client,
            ):
                client.sendall(b"hello")
                accepted, _ = listening.accept()
                with accepted:
                    self.assertEqual(read_exactly(accepted, 5), b"hello")
                client.shutdown(socket.SHUT_WR)
                self.has_ended(relay, "done", "--", target=target)

    def test_all_of_several_listeners_serve(self) -> None:
        path = self.path("relay")
        endpoints = (
            r"tcp:0:interface=127.0.0.1",
            r"tcp6:0:interface=\:\:1",
            f"unix:{path}",
        )
        options = [word for endpoint in endpoints for word in ("--listen", endpoint)]
        with (
            Upstream() as upstream,
            self.relaying(
                "--port", "0", *options, "--target", upstream.target, listen=False
            ) as relay,
        ):
            self.assertEqual(len(relay.addresses), 4)
            hosts = ["127.0.0.1", "127.0.0.1", "::1"]
            for host, address in zip(hosts, relay.addresses, strict=False):
                self.serves(upstream, connect((host, int(address[1]))))
            self.serves(upstream, connect(str(path)))
            self.assertEqual(len(relay.ended(4)), 4)

    def test_an_abstract_unix_name_is_listened_on(self) -> None:
        name = f"fwdrelay-test-{free_port()}"
        with (
            Upstream() as upstream,
            self.relaying(
                *("--listen", f"unix:@{name}", "--target", upstream.target), listen=False
            ) as relay,
        ):
            self.serves(upstream, connect(f"\0{name}"))
            self.has_ended(relay, "done", "--", client="unix:", local=f"unix:@{name}")
        self.assertFalse(Path(f"@{name}").exists())

    def test_a_unix_socket_that_a_killed_relay_left_behind_is_taken_over(self) -> None:
        path = self.path("relay")
        options = ("--pump", self.pump, "--listen", f"unix:{path}", "--target", "127.0.0.1:9")
        RelayProcess(*options, listen=False).kill()
        self.assertTrue(path.exists())
        with (
            Upstream() as upstream,
            self.relaying(*("--listen", f"unix:{path}", "--target", upstream.target), listen=False),
        ):
            self.serves(upstream, connect(str(path)))
        self.assertFalse(path.exists())

    def test_sockets_that_systemd_hands_over_are_listened_on_and_left_in_place(self) -> None:
        path = self.path("relay")
        with (
            Upstream() as upstream,
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.socket(socket.AF_UNIX) as unix,
        ):
            unix.bind(str(path))
            unix.listen()
            more = inherited(tcp, unix)
            for _ in range(2):
                with self.relaying(
                    *("--listen", "systemd:domain=INET:index=0"),
                    *("--listen", "systemd:domain=UNIX:index=1"),
                    *("--target", upstream.target),
                    **more,
                ):
                    self.serves(upstream, connect(tcp.getsockname()))
                    self.serves(upstream, connect(str(path)))
                self.assertTrue(path.exists())

    def test_unix_to_unix_leaves_no_trace(self) -> None:
        folder = Path(self.folder())
        with (
            Upstream(str(folder / "up")) as upstream,
            self.relaying(
                *("--listen", f"unix:{folder}/relay:mode=600", "--target", upstream.target),
                listen=False,
            ) as relay,
        ):
            self.assertEqual((folder / "relay").stat().st_mode & 0o777, 0o600)
            self.serves(upstream, connect(str(folder / "relay")))
            self.has_ended(relay, "done", "--", client="unix:", local=f"unix:{folder}/relay")
        self.assertEqual([entry.name for entry in folder.iterdir()], ["up"])

"""A peer that vanishes without a word: its machine or its network is gone, and no packet tells of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import unittest
from collections.abc import Iterator

from tests.scenarios.relay_process import Upstream, connect, read_exactly, read_until_reset
from tests.scenarios.scenario import Scenario, is_root

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(namespace: int) -> None:
    """setns(2), for this thread; `os.setns` is younger than the oldest Python supported."""
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Sockets made in the block, and processes started in it, are of that network namespace."""
    own = os.open(_OWN, os.O_RDONLY)
    try:
        _enter(namespace)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)


@contextlib.contextmanager
def new_namespace() -> Iterator[int]:
    """
    @return: the descriptor of a network namespace that is gone when nobody uses it any more.
    """
    own = os.open(_OWN, os.O_RDONLY)
    try:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        made = os.open(_OWN, os.O_RDONLY)
        _enter(own)
    finally:
        os.close(own)
    try:
        yield made
    finally:
        os.close(made)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


@unittest.skipUnless(
    is_root() and shutil.which("ip"), "needs root and ip(8), for network namespaces of its own"
)
class Vanishing(Scenario):
    def test_a_client_whose_network_is_gone_is_noticed_by_keepalive_and_user_time_out(self) -> None:
        """By keepalive where all is silent, by the user time-out where bytes are on their way."""
        with new_namespace() as here, new_namespace() as far, inside(here):
            ip("link set lo up")
            ip("link add near type veth peer name far")
            ip(f"link set far netns /proc/{os.getpid()}/fd/{far}")
            ip("addr add 10.9.8.1/24 dev near")
            ip("link set near up")
            with inside(far):
                ip("addr add 10.9.8.2/24 dev far")
                ip("link set far up")
            with (
                Upstream() as upstream,
                self.relaying(
                    *("--port", "0", "--interface", "10.9.8.1", "--target", upstream.target),
                    *("--keepalive", "1s", "--user-timeout", "1s"),
                    listen=False,
                ) as relay,
                contextlib.ExitStack() as sockets,
            ):
                pairs = []
                for _ in range(2):
                    with inside(far):
                        client = sockets.enter_context(connect(relay.addresses[0]))
                    server = sockets.enter_context(upstream.accept())
                    client.sendall(b"hello")
                    self.assertEqual(read_exactly(server, 5), b"hello")
                    pairs.append((client, server))
                with inside(far):
                    ip("link set far down")
                pairs[0][1].sendall(b"bytes that never arrive")
                for _, server in pairs:
                    self.assertEqual(read_until_reset(server), b"")
                for entry in relay.ended(2):
                    self.assertEqual((entry["reason"], entry["code"]), ("client-reset", "CD"))
                    self.assertIn(entry["error"], ("Connection timed out", "No route to host"))


@unittest.skipUnless(shutil.which("ss"), "needs ss(8)")
class KeepAlive(Scenario):
    def test_it_is_on_for_both_sides(self) -> None:
        """As the kernel tells by ss(8), for a socket's options are told to its own process only."""
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            client.sendall(b"hello")
            read_exactly(server, 5)
            for sock in (client, server):
                ours = "{}:{}".format(*sock.getpeername())
                told = subprocess.run(
                    ["ss", "-tnoiH", "src", ours, "dst", "{}:{}".format(*sock.getsockname())],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                self.assertIn("timer:(keepalive", told)

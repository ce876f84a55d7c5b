"""
Whatever two peers do to each other in whatever order, the relay between them neither invents, loses
nor swaps a byte, and lets go of everything in the end.

Hypothesis writes the scripts: chunks of all sizes, readers that stop and go on, half-closes, resets
and closes, on both sides, also while the upstream connection isn't there yet. One relay process lives
through all of them.
"""

from __future__ import annotations

import fcntl
import json
import random
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.scenarios.relay_process import PATIENCE, RelayProcess, Upstream, connect, reset
from tests.scenarios.scenario import Scenario

EXAMPLES = 120
# Long enough to fill the kernel's buffers on both sides of the relay, so that its own are used.
LONGEST_CHUNK = 6_000_000
SMALL_RECEIVE_BUFFER = 16_384
# Both directions have bytes of their own, and a length that no buffer's size divides.
PATTERNS = {
    "client": random.Random(1).randbytes(99_991),
    "upstream": random.Random(2).randbytes(99_991),
}
Action = tuple[str, str, int]


def scripts() -> st.SearchStrategy[list[Action]]:
    """Lists of actions: what is done, by which side, and how much of it."""
    side = st.sampled_from(("client", "upstream"))
    size = st.one_of(
        st.integers(1, 100),
        st.integers(100, 200_000),
        st.integers(1_000_000, LONGEST_CHUNK),
    )
    action = st.one_of(
        st.tuples(st.just("send"), side, size),
        st.tuples(st.just("wait"), st.just(""), st.just(0)),
        st.tuples(st.sampled_from(("stop", "go")), side, st.just(0)),
        st.tuples(st.sampled_from(("end", "end", "reset", "close")), side, st.just(0)),
    )
    return st.lists(action, max_size=14)


def stream(side: str, start: int, count: int) -> bytes:
    """What `side` sends at the positions from `start` on."""
    pattern = PATTERNS[side]
    start %= len(pattern)
    return (pattern[start:] + pattern * (count // len(pattern) + 1))[:count]


@dataclass
class Peer:
    """
    One end, which never blocks. What it is told to do before it is connected is done later.

    @ivar sent: bytes that the kernel has taken.
    @ivar arrived: of those, what the relay's kernel had when this end was cut off by its own doing;
        None as long as it behaves.
    @ivar outcome: how its reading ended: `end` or `reset`; None: not yet.
    """

    name: str
    sock: socket.socket | None = None
    to_send: int = 0
    sent: int = 0
    received: int = 0
    reading: bool = True
    ending: bool = False
    ended: bool = False
    cut: str = ""
    arrived: int | None = None
    write_failed: bool = False
    outcome: str | None = None
    wrong: list[str] = field(default_factory=list)

    @property
    def other(self) -> str:
        return "upstream" if self.name == "client" else "client"

    @property
    def over(self) -> bool:
        """Nothing more can happen here."""
        return self.arrived is not None or (self.outcome is not None and not self.writing)

    @property
    def writing(self) -> bool:
        """There is something left to write, or an end to tell."""
        return not self.ended and not self.write_failed and (self.to_send > 0 or self.ending)

    def do(self, what: str, count: int) -> None:
        if (self.ending and what == "send") or self.cut:
            return
        match what:
            case "send":
                self.to_send += count
            case "stop" | "go":
                self.reading = what == "go"
            case "end":
                self.ending = True
            case "reset" | "close":
                self.cut = what
        self.write()
        self.cut_off()

    def write(self) -> None:
        """Write what the kernel takes, and then the end."""
        if self.sock is None or self.arrived is not None or not self.writing:
            return
        try:
            while self.to_send:
                chunk = stream(self.name, self.sent, min(self.to_send, 1 << 18))
                count = self.sock.send(chunk)
                self.sent += count
                self.to_send -= count
            if self.ending:
                self.sock.shutdown(socket.SHUT_WR)
                self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.write_failed = True

    def read(self) -> None:
        """Read what is there, and compare it."""
        assert self.sock is not None
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            self.outcome = "reset"
            return
        if not data:
            # The write that failed has used up the error; see socket(7), SO_ERROR.
            self.outcome = "reset" if self.write_failed else "end"
        elif data != stream(self.other, self.received, len(data)):
            self.wrong.append(f"{self.name} got wrong bytes after {self.received}")
        self.received += len(data)

    def cut_off(self) -> None:
        """Reset or close, where that was asked for."""
        if self.sock is None or not self.cut or self.arrived is not None:
            return
        answer = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        self.arrived = max(0, self.sent - struct.unpack("i", answer)[0])
        if self.cut == "reset":
            reset(self.sock)
        else:
            self.sock.close()

    def connected(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.write()
        self.cut_off()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()


class Play:
    """One script, played against a relay."""

    def __init__(self, relay: RelayProcess, listening: Upstream) -> None:
        self.relay = relay
        self.first_line = len(relay.lines)
        self.listening = listening.socket
        self.client, self.upstream = Peer("client"), Peer("upstream")
        self.peers = (self.client, self.upstream)
        self.client.connected(connect(relay.addresses[0], receive_buffer=SMALL_RECEIVE_BUFFER))

    def turn(self, timeout: float) -> bool:
        """
        Do what can be done.

        @param timeout: how long to wait for it, in seconds.
        @return: whether there was something.
        """
        poll = select.poll()
        ready_for: dict[int, Peer] = {}
        for peer in self.peers:
            if peer.sock is None or peer.arrived is not None:
                continue
            events = select.POLLIN if peer.reading and peer.outcome is None else 0
            if events or peer.writing:
                poll.register(peer.sock, events | (select.POLLOUT if peer.writing else 0))
                ready_for[peer.sock.fileno()] = peer
        if self.upstream.sock is None:
            poll.register(self.listening, select.POLLIN)
        ready = poll.poll(timeout * 1000)
        for fd, happened in ready:
            if fd not in ready_for:
                self.upstream.connected(self.listening.accept()[0])
                continue
            peer = ready_for[fd]
            if peer.reading and peer.outcome is None and happened & ~select.POLLOUT:
                peer.read()
            if happened & ~select.POLLIN:
                peer.write()
        return bool(ready)

    def play(self, script: list[Action]) -> dict[str, Any]:
        """
        @return: the session's entry in the access log.
        """
        for what, name, count in script:
            if what == "wait":
                # A few turns, so that also the middle of a transfer is a place to go on from.
                for _ in range(16):
                    if not self.turn(0.003):
                        break
            else:
                (self.client if name == "client" else self.upstream).do(what, count)
        for peer in self.peers:
            peer.do("go", 0)
            peer.do("end", 0)
        deadline = time.monotonic() + PATIENCE
        while not (ended := self.ended()):
            if not self.turn(0.02) and time.monotonic() > deadline:
                raise AssertionError(f"the relay has left something undone: {self.peers}")
        return ended

    def ended(self) -> dict[str, Any]:
        """The session's entry in the access log, once neither peer has anything left to do."""
        told = self.relay.lines[self.first_line :]
        entries = [json.loads(line) for line in told if line.startswith("{")]
        if not entries or not self.client.over:
            return {}
        was_dialed = entries[0]["dial_ms"] is not None
        return entries[0] if self.upstream.over or not was_dialed else {}

    def close(self) -> None:
        """Close what is open, and who was dialed for nothing."""
        for peer in self.peers:
            peer.close()
        self.listening.settimeout(0)
        try:
            while True:
                self.listening.accept()[0].close()
        except BlockingIOError:
            self.listening.settimeout(PATIENCE)

    def findings(self, ended: dict[str, Any]) -> Iterator[str]:
        """What should not be, one sentence each."""
        clean = all(peer.arrived is None for peer in self.peers)
        for sender, receiver in (self.peers, self.peers[::-1]):
            yield from receiver.wrong
            got = f"{receiver.name} received {receiver.received} of {sender.sent}"
            if receiver.received > sender.sent:
                yield f"{got}: more than was sent"
            if receiver.arrived is not None:
                continue  # it is its own fault
            if clean and (receiver.outcome != "end" or receiver.received != sender.sent):
                yield f"{got}, then {receiver.outcome}; both ended cleanly"
            # What was sent before the relay had both ends may be dropped: rule 6.
            relayed = ended["dial_ms"] is not None
            if relayed and receiver.received < (sender.arrived or 0):
                yield f"{got}, {sender.arrived} had arrived before the sender's {sender.cut}"
            told_all = sender.ended or sender.cut == "close"
            if relayed and receiver.outcome == "end":
                if not told_all:
                    yield f"{receiver.name} was told of an end that {sender.name} never told of"
                if receiver.received != sender.sent:
                    yield f"{got}, and was told that this is all"
        if clean and ended["reason"] != "done":
            yield f"logged as {ended['reason']}; both ended cleanly"
        counted = ended["bytes_up"], ended["bytes_down"]
        if clean and counted != (self.client.sent, self.upstream.sent):
            yield f"counted {counted} bytes"
        if ended["bytes_up"] < self.upstream.received or ended["bytes_down"] < self.client.received:
            yield f"counted {counted} bytes, fewer than were received"
        event(f"ended as {ended['reason']}")
        event("both ended cleanly" if clean else "one was cut")


class PropertyTests(Scenario):
    def test_every_byte_arrives_whatever_the_peers_do(self) -> None:
        with Upstream() as listening:
            listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_RECEIVE_BUFFER)
            with self.relaying("--target", listening.target) as relay:
                self.check(relay, listening)

    def check(self, relay: RelayProcess, listening: Upstream) -> None:
        """Play scripts until one shows a fault, or there were enough."""

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(script=scripts())
        @example(script=[("send", "client", 10), ("end", "client", 0)])
        @example(script=[("stop", "client", 0), ("send", "upstream", LONGEST_CHUNK)])
        @example(script=[("reset", "client", 0)])
        def no_script_shows_a_fault(script: list[Action]) -> None:
            play = Play(relay, listening)
            try:
                ended = play.play(script)
            finally:
                play.close()
            self.assertEqual(
                list(play.findings(ended)), [], f"{play.client}\n{play.upstream}\n{ended}"
            )

        no_script_shows_a_fault()

"""
An end (close_notify) of one side ends that direction only; one that is not said is a cut, and is passed
on as one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.scenarios.relay_process import read_all, read_exactly, read_until_reset, reset
from tests.scenarios.scenario import (
    MB,
    digest_of,
    receive,
    send,
    send_and_end,
    wait_until_taken,
)
from tests.scenarios.test_reset import greet
from tests.scenarios.tls_ends import (
    VERSIONS,
    WAYS,
    EachWay,
    Talk,
    TLSSocket,
    client_context,
    serve,
    server_context,
    targets_own,
    where,
)

SIZE = 6 * MB


class TLSEnds(EachWay):
    variants = {"soon": 'half_close = "150ms"', "idle": 'idle = "3s"'}

    def test_a_client_that_has_ended_gets_its_answer(self) -> None:
        for way in WAYS:
            for version in VERSIONS:
                with (
                    self.on_the_way(way),
                    self.talk(way, version) as talk,
                    ThreadPoolExecutor() as threads,
                ):
                    talk.client.sendall(b"the request")
                    talk.client.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(talk.server), b"the request")
                    answering = threads.submit(send_and_end, talk.server, SIZE)
                    self.assertEqual(receive(talk.client), digest_of(SIZE))
                    answering.result()
                    self.has_ended_so(talk.where, "done", "--", bytes_up=11, bytes_down=SIZE)

    def test_an_upstream_that_has_ended_still_hears_the_client(self) -> None:
        for way in WAYS:
            for version in VERSIONS:
                with (
                    self.on_the_way(way),
                    self.talk(way, version) as talk,
                    ThreadPoolExecutor() as threads,
                ):
                    talk.server.sendall(b"go on")
                    talk.server.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(talk.client), b"go on")
                    telling = threads.submit(send_and_end, talk.client, SIZE)
                    self.assertEqual(receive(talk.server), digest_of(SIZE))
                    telling.result()
                    self.has_ended_so(talk.where, "done", "--", bytes_up=SIZE, bytes_down=5)

    def test_an_end_amid_bytes_of_both_directions_costs_neither_a_byte(self) -> None:
        for way in WAYS:
            for short, long in ((MB, 3 * MB), (3 * MB, MB)):
                with (
                    self.on_the_way(way),
                    self.talk(way) as talk,
                    ThreadPoolExecutor() as threads,
                ):
                    up = threads.submit(send_and_end, talk.client, short, 1)
                    down = threads.submit(send_and_end, talk.server, long, 2)
                    heard = threads.submit(receive, talk.server)
                    self.assertEqual(receive(talk.client), digest_of(long, 2))
                    self.assertEqual(heard.result(), digest_of(short, 1))
                    up.result()
                    down.result()
                    self.has_ended_so(talk.where, "done", "--", bytes_up=short, bytes_down=long)

    def test_who_says_close_notify_and_closes_for_writing_at_once_is_answered_too(self) -> None:
        for way in WAYS:
            with self.on_the_way(way), self.talk(way) as talk:
                for ending, other in (
                    (talk.client, talk.server),
                    (talk.server, talk.client),
                ):
                    ending.sendall(b"my last word")
                    ending.shutdown(socket.SHUT_WR)
                    if isinstance(ending, TLSSocket):
                        ending.cut()
                    self.assertEqual(read_all(other), b"my last word")
                self.has_ended_so(talk.where, "done", "--", bytes_up=12, bytes_down=12)

    def test_a_session_without_a_byte_ends_cleanly(self) -> None:
        for way in WAYS:
            with self.on_the_way(way), self.talk(way) as talk:
                talk.client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(talk.server), b"")
                talk.server.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(talk.client), b"")
                self.has_ended_so(talk.where, "done", "--", bytes_up=0, bytes_down=0)

    def test_a_client_that_ends_before_the_target_has_shaken_hands_is_heard_and_answered(
        self,
    ) -> None:
        for version in VERSIONS:
            for source, size in (("tls", 3), ("tls", 2 * MB), ("plain", 3), ("plain", 2 * MB)):
                context = client_context(version) if source == "tls" else None
                way = f"{source}-to-tls"
                with (
                    self.on_the_way(way),
                    self.dial(way, context) as client,
                    ThreadPoolExecutor() as threads,
                ):
                    told = where(client)
                    speaking = threads.submit(send_and_end, client, size)
                    if size == 3:
                        speaking.result()
                        wait_until_taken(client)
                    with serve(self.secure, server_context(targets_own(), version)) as server:
                        self.assertEqual(receive(server), digest_of(size))
                        send_and_end(server, MB)
                        self.assertEqual(receive(client), digest_of(MB))
                    speaking.result()
                    self.has_ended_so(told, "done", "--", bytes_up=size)

    def test_words_that_come_along_with_the_end_of_the_handshake_are_heard(self) -> None:
        for version in VERSIONS:
            with self.relay.connect_to("tls-to-plain") as sock:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = client_context(version).wrap_bio(
                    incoming, outgoing, server_hostname="localhost"
                )
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        sock.sendall(outgoing.read())
                        incoming.write(sock.recv(1 << 16))
                tls.write(b"hello")
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.unwrap()
                sock.sendall(outgoing.read())
                with self.plain.accept() as server:
                    self.assertEqual(read_all(server), b"hello")

    def test_a_client_that_closes_when_told_of_the_others_end_has_not_cut_anything(self) -> None:
        """Many do, instead of saying close_notify in their turn."""
        for way in WAYS:
            with self.on_the_way(way), self.talk(way) as talk:
                talk.client.sendall(b"a question")
                self.assertEqual(read_exactly(talk.server, 10), b"a question")
                talk.server.sendall(b"an answer")
                talk.server.shutdown(socket.SHUT_WR)
                self.assertEqual(read_all(talk.client), b"an answer")
                talk.client.close()
                self.assertEqual(read_all(talk.server), b"")
                self.has_ended_so(talk.where, "done", "--", bytes_up=10, bytes_down=9)

    # Cuts.

    def cut(self, talk: Talk, speaker: Any, listener: Any, size: int) -> None:
        """Speak, cut, and see what the listener makes of it."""
        with ThreadPoolExecutor() as threads:
            heard = threads.submit(read_until_reset, listener)
            send(speaker, size)
            speaker.cut()
            self.assertEqual(len(heard.result()), size)
        who, code = ("client", "CD") if speaker is talk.client else ("upstream", "SD")
        counted = {"bytes_up" if speaker is talk.client else "bytes_down": size}
        error = "without close_notify"
        self.has_ended_so(talk.where, f"{who}-truncated", code, error=error, **counted)

    def test_an_end_that_is_not_said_becomes_a_reset_after_all_bytes(self) -> None:
        for way in WAYS:
            for version in VERSIONS:
                source, _, sink = way.partition("-to-")
                if source == "tls":
                    with self.on_the_way(way), self.talk(way, version) as talk:
                        self.cut(talk, talk.client, talk.server, SIZE)
                if sink == "tls":
                    with self.on_the_way(way), self.talk(way, version) as talk:
                        self.cut(talk, talk.server, talk.client, SIZE)

    def test_an_answer_that_is_cut_after_the_clients_end_is_a_cut_all_the_same(self) -> None:
        for way in WAYS:
            if way.endswith("plain"):
                continue
            for version in VERSIONS:
                with self.on_the_way(way), self.talk(way, version) as talk:
                    talk.client.sendall(b"the request")
                    talk.client.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(talk.server), b"the request")
                    talk.server.sendall(b"half of the ans")
                    talk.server.cut()
                    self.assertEqual(read_until_reset(talk.client), b"half of the ans")
                    self.has_ended_so(talk.where, "upstream-truncated", "SD", bytes_down=15)

    def test_a_cut_of_an_idle_session_is_a_cut_too(self) -> None:
        with self.talk("tls-to-tls") as talk:
            greet(talk.client, talk.server)
            talk.client.cut()
            self.assertEqual(read_until_reset(talk.server), b"")
            self.has_ended_so(talk.where, "client-truncated", "CD")

    # Resets.

    def test_a_reset_of_one_side_reaches_the_other_after_the_bytes_before_it(self) -> None:
        for way in WAYS:
            for from_client in (True, False):
                with self.on_the_way(way), self.talk(way) as talk:
                    pair = talk.client, talk.server
                    speaker, listener = pair if from_client else pair[::-1]
                    greet(listener, speaker)
                    speaker.sendall(b"before")
                    wait_until_taken(speaker)
                    reset(speaker)
                    self.assertEqual(read_until_reset(listener), b"before")
                    who, code = ("client", "CD") if from_client else ("upstream", "SD")
                    self.has_ended_so(talk.where, f"{who}-reset", code, error="reset")

    def test_a_reset_after_a_clean_end_costs_the_other_side_nothing(self) -> None:
        for way in WAYS:
            for from_client in (True, False):
                with self.on_the_way(way), self.talk(way) as talk:
                    pair = talk.client, talk.server
                    speaker, listener = pair if from_client else pair[::-1]
                    greet(listener, speaker)
                    speaker.sendall(b"all of it")
                    speaker.shutdown(socket.SHUT_WR)
                    wait_until_taken(speaker)
                    reset(speaker)
                    self.assertEqual(read_all(listener), b"all of it")
                    # What the listener does next decides whether somebody notices the reset.
                    listener.close()
                    self.entry(talk.where)

    def test_bytes_that_are_no_records_end_the_session_by_reset(self) -> None:
        for way in WAYS:
            source, _, sink = way.partition("-to-")
            for mine, from_client in ((source, True), (sink, False)):
                if mine != "tls":
                    continue
                with self.on_the_way(way), self.talk(way) as talk:
                    pair = talk.client, talk.server
                    speaker, listener = pair if from_client else pair[::-1]
                    greet(speaker, listener)
                    speaker.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
                    self.assertEqual(read_until_reset(listener), b"")
                    who, code = ("client", "CD") if from_client else ("upstream", "SD")
                    self.has_ended_so(talk.where, f"{who}-reset", code, error="TLS: ")

    # Time-outs.

    def test_who_ignores_close_notify_is_cut_after_a_while(self) -> None:
        for way in WAYS:
            for from_client in (True, False):
                with self.on_the_way(way), self.talk(way, variant="soon") as talk:
                    pair = talk.client, talk.server
                    ending, deaf = pair if from_client else pair[::-1]
                    greet(*pair)
                    ending.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(deaf), b"")
                    read_until_reset(ending)
                    who, code = ("upstream", "sD") if from_client else ("client", "cD")
                    self.has_ended_so(talk.where, f"{who}-half-close-timeout", code)

    def test_an_idle_session_is_cut(self) -> None:
        # Long enough for all of them to greet in time, so they wait for it together.
        with contextlib.ExitStack() as opened:
            talks = {}
            for way in WAYS:
                with self.on_the_way(way):
                    talks[way] = opened.enter_context(self.talk(way, variant="idle"))
                    greet(talks[way].client, talks[way].server)
            for way, talk in talks.items():
                with self.on_the_way(way):
                    self.assertEqual(read_until_reset(talk.server), b"")
                    self.assertEqual(read_until_reset(talk.client), b"")
                    self.has_ended_so(talk.where, "upstream-idle-timeout", "sD", bytes_up=5)

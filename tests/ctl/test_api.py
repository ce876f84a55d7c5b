"""`fwdrelay.ctl.api`, asking a fake relay, and what is none."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import unittest
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fwdrelay.ctl.api import Answer, Api, Event, parse_events, segment
from fwdrelay.ctl.exits import (
    Failure,
    NoRelay,
    NoSuchThing,
    NotAuthorised,
    Refused,
    Strange,
    WrongConfiguration,
)
from tests.case import SynchronousTestCase
from tests.ctl.fake_relay import CtlTestCase, FakeRelay, Reply, refusal, stream
from tests.scenarios.programs import free_port


@contextlib.contextmanager
def saying(words: bytes | None) -> Iterator[str]:
    """
    A server that says the same to each who connects, and hangs up; None: it says nothing, and does not.

    @return: where it is.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if words is None:
                    connection.recv(1 << 16)
                    connection.recv(1)  # until they give up
                else:
                    while b"\r\n\r\n" not in connection.recv(1 << 16, socket.MSG_PEEK):
                        pass
                    connection.recv(1 << 16)
                    connection.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join()


class AskingTests(CtlTestCase):
    def test_by_tcp_and_by_a_unix_socket(self) -> None:
        unix = FakeRelay(str(self.folder() / "admin.sock"))
        self.addCleanup(unix.close)
        for relay in (self.relay, unix):
            relay.replies["POST /v1/x"] = Reply(202, {"fine": True})
            answer = Api(relay.admin).ask(
                "POST", "/v1/x", {"a": "b c", "n": 1, "z": None}, {"k": 2}
            )
            self.assertEqual(answer, Answer(202, {"fine": True}))
            self.assertIs(answer.failure(), None)
            (asked,) = relay.asked
            self.assertEqual(asked.line, "POST /v1/x?a=b+c&n=1")
            self.assertEqual(asked.body, {"k": 2})
            self.assertEqual(asked.headers["Content-Type"], "application/json")
            self.assertNotIn("Authorization", asked.headers)
        self.assertEqual(unix.asked[0].headers["Host"], "localhost")
        self.assertEqual(self.relay.asked[0].headers["Host"], self.relay.admin)

    def test_a_token_is_shown_by_tcp_only(self) -> None:
        unix = FakeRelay(str(self.folder() / "admin.sock"))
        self.addCleanup(unix.close)
        for relay, shown in ((self.relay, "Bearer abc"), (unix, None)):
            Api(relay.admin, "abc").ask("GET", "/v1/status")
            self.assertEqual(relay.asked[0].headers.get("Authorization"), shown)

    def test_names_are_segments(self) -> None:
        self.assertEqual(segment("unix:/run/x.sock"), "unix%3A%2Frun%2Fx.sock")

    def test_ipv6(self) -> None:
        with self.assertRaises(NoRelay) as raised:
            Api(f"[::1]:{free_port()}").ask("GET", "/")
        self.assertIn("no relay answers at [::1]:", str(raised.exception))


class RefusalTests(SynchronousTestCase):
    def test_each_status(self) -> None:
        for status, kind, exits in (
            (400, Refused, 1),
            (401, NotAuthorised, 5),
            (403, NotAuthorised, 5),
            (404, NoSuchThing, 4),
            (409, Refused, 1),
            (422, WrongConfiguration, 78),
            (500, Refused, 1),
            (503, Refused, 1),
        ):
            failure = Answer(status, {"error": "why"}, shown=True).failure()
            assert failure is not None
            self.assertIs(type(failure), kind)
            self.assertEqual((failure.sentences, failure.status), (("why",), exits))

    def test_who_has_shown_no_token_is_told_how(self) -> None:
        failure = Answer(401, {"error": "why"}).failure()
        self.assertEqual(
            str(failure), "the relay wants a token: show a token with --token-file FILE"
        )

    def test_all_that_is_wrong_with_a_configuration_is_told(self) -> None:
        failure = Answer(422, {"error": "two", "errors": ["one", "two"]}).failure()
        assert failure is not None
        self.assertEqual(failure.sentences, ("one", "two"))


class NobodyTests(CtlTestCase):
    def failure(self, admin: str, patience: float = 10.0) -> Failure:
        """What comes of asking there."""
        with self.assertRaises(Failure) as asked:
            Api(admin, patience=patience).ask("GET", "/v1/status")
        failure: Failure = asked.exception
        return failure

    def test_no_socket(self) -> None:
        failure = self.failure("unix:/nonexistent/admin.sock")
        self.assertIsInstance(failure, NoRelay)
        self.assertEqual(
            str(failure),
            "no relay answers at unix:/nonexistent/admin.sock: no such file; is it running with --admin?",
        )

    def test_a_socket_that_nobody_listens_on(self) -> None:
        path = str(self.folder() / "a.sock")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
        for admin in (f"unix:{path}", f"127.0.0.1:{free_port()}"):
            failure = self.failure(admin)
            self.assertIsInstance(failure, NoRelay)
            self.assertIn(f"{admin}: connection refused; is it running", str(failure))

    def test_a_path_that_is_too_long(self) -> None:
        failure = self.failure("unix:/" + "x" * 200)
        self.assertIsInstance(failure, NoRelay)
        self.assertIn("path too long", str(failure))

    def test_a_socket_that_one_may_not_use(self) -> None:
        if os.geteuid() == 0:
            raise unittest.SkipTest("root may use any")
        path = str(self.folder() / "a.sock")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen()
            os.chmod(path, 0)
            failure = self.failure(f"unix:{path}")
        self.assertIsInstance(failure, NotAuthorised)
        self.assertEqual(str(failure), f"you may not ask at unix:{path}: permission denied")

    def test_one_that_says_nothing(self) -> None:
        with saying(None) as admin:
            failure = self.failure(admin, patience=0.05)
        assert isinstance(failure, NoRelay)
        self.assertTrue(failure.slow)
        self.assertEqual(
            str(failure), f"no relay answers at {admin}: nothing came for 0.05 seconds"
        )

    def test_one_that_hangs_up(self) -> None:
        with saying(b"") as admin:
            failure = self.failure(admin)
        self.assertIsInstance(failure, NoRelay)
        self.assertIn("the connection ended", str(failure))

    def test_one_that_hangs_up_in_the_middle(self) -> None:
        with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{") as admin:
            failure = self.failure(admin)
        self.assertIsInstance(failure, NoRelay)
        self.assertEqual(str(failure), f"the answer from {admin} broke off")


class StrangersTests(CtlTestCase):
    def assert_strange(self, admin: str, words: str) -> None:
        for ask in (
            lambda api: api.ask("GET", "/v1/status"),
            lambda api: api.follow("/v1/status"),
        ):
            with self.assertRaises(Strange) as raised:
                ask(Api(admin))
            self.assertIn(f"what answers at {admin} is no relay", str(raised.exception))
            self.assertIn(words, str(raised.exception))
            if admin != self.relay.admin:
                return

    def test_no_http(self) -> None:
        with saying(b"SSH-2.0-OpenSSH_9.2\r\n") as admin:
            self.assert_strange(admin, "it speaks no HTTP")

    def test_no_json(self) -> None:
        for reply in (
            Reply(200, "<html>", "text/html"),
            Reply(404, "nothing here", "text/html"),
            Reply(200, "", "text/html"),
            Reply(302, "", "text/html", {"Location": "/login"}),
        ):
            self.relay.replies["GET /v1/status"] = reply
            self.assert_strange(self.relay.admin, f"GET /v1/status was {reply.status} ")

    def test_no_object(self) -> None:
        bodies: tuple[Any, ...] = ([], '"ok"', "[" * 100_000)
        for body in bodies:
            self.relay.replies["GET /v1/status"] = Reply(200, body)
            self.assert_strange(self.relay.admin, "200 OK, application/json")

    def test_an_error_of_another_kind(self) -> None:
        self.relay.replies["GET /v1/status"] = Reply(404, {"detail": "Not Found"})
        self.assert_strange(self.relay.admin, "404 Not Found, application/json")


class StreamTests(CtlTestCase):
    def test_events_and_then_the_end(self) -> None:
        self.relay.replies["GET /v1/x"] = stream(
            ": hello\n\nevent: a\nda", "ta: 1\n\n", "data: 2\n\n"
        )
        found: list[Event] = []
        with (
            Api(self.relay.admin).follow("/v1/x", {"q": "1"}) as events,
            self.assertRaises(NoRelay) as raised,
        ):
            for event in events:
                found.append(event)  # noqa: PERF402 (what was read before the end is kept)
        self.assertEqual(found, [Event(":", "hello"), Event("a", "1"), Event("message", "2")])
        self.assertEqual(str(raised.exception), f"the connection to {self.relay.admin} ended")
        self.assertEqual(self.relay.lines(), ["GET /v1/x?q=1"])

    def test_each_comes_at_once(self) -> None:
        more = threading.Event()
        self.addCleanup(more.set)

        def pieces() -> Iterator[str]:
            yield "event: a\ndata: 1\n\n"
            more.wait()
            yield "event: b\ndata: 2\n\n"

        self.relay.replies["GET /v1/x"] = Reply(200, pieces(), "text/event-stream")
        with Api(self.relay.admin).follow("/v1/x", quiet=True) as events:
            each = iter(events)
            self.assertEqual(next(each), Event("a", "1"))
            more.set()
            self.assertEqual(next(each), Event("b", "2"))

    def test_another_thread_can_stop_it(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def pieces() -> Iterator[str]:
            yield "data: 1\n\n"
            go_on.wait()
            yield "data: 2\n\n"

        self.relay.replies["GET /v1/x"] = Reply(200, pieces(), "text/event-stream")
        found: list[object] = []

        def read() -> None:
            try:
                for event in events:
                    found.append(event)
                    first.set()
            except NoRelay as ended:
                found.append(ended)

        first = threading.Event()
        with Api(self.relay.admin).follow("/v1/x") as events:
            thread = threading.Thread(target=read)
            thread.start()
            first.wait()
            events.stop()
            thread.join()
        self.assertEqual(found[0], Event("message", "1"))
        self.assertIsInstance(found[1], NoRelay)

    def test_silence_is_the_end_of_it(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def pieces() -> Iterator[str]:
            yield "data: 1\n\n"
            go_on.wait()

        self.relay.replies["GET /v1/x"] = Reply(200, pieces(), "text/event-stream")
        with Api(self.relay.admin, patience=30.0).follow("/v1/x") as events:
            each = iter(events)
            next(each)
            self.assertEqual(events._socket.gettimeout(), 30.0)
            events._socket.settimeout(0.05)  # from here on, as what came before may take its time
            with self.assertRaises(NoRelay) as raised:
                next(each)
        self.assertTrue(raised.exception.slow)

    def test_a_refusal(self) -> None:
        self.relay.replies["GET /v1/x"] = refusal(503, "too many listen")
        with self.assertRaises(Refused) as raised:
            Api(self.relay.admin).follow("/v1/x")
        self.assertEqual(str(raised.exception), "too many listen")

    def test_no_stream(self) -> None:
        with self.assertRaises(Strange):
            Api(self.relay.admin).follow("/v1/status")


class ParsingTests(SynchronousTestCase):
    def parse(self, text: str) -> list[Event]:
        return list(parse_events(text.splitlines(keepends=True)))

    def test_what_an_event_has(self) -> None:
        self.assertEqual(self.parse("event: a\ndata: 1\n\n"), [Event("a", "1")])
        self.assertEqual(self.parse("data:1\r\ndata:  2\r\n\r\n"), [Event("message", "1\n 2")])
        self.assertEqual(self.parse("id: 1\nretry: 5\nodd\ndata: x\n\n"), [Event("message", "x")])
        self.assertEqual(self.parse(": hello\n\n"), [Event(":", "hello")])

    def test_what_is_none(self) -> None:
        self.assertEqual(self.parse("event: a\n\n"), [])
        self.assertEqual(self.parse("event: a\ndata: 1\n"), [])

    @given(
        st.lists(
            st.tuples(
                st.from_regex(r"[a-z]+", fullmatch=True),
                st.lists(
                    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])),
                    min_size=1,
                ),
            )
        )
    )
    def test_all_that_is_written_is_read(self, told: list[tuple[str, list[str]]]) -> None:
        lines = []
        for name, data in told:
            lines += [f"event: {name}\n", *(f"data: {line}\n" for line in data), "\n"]
        self.assertEqual(
            list(parse_events(lines)), [Event(name, "\n".join(data)) for name, data in told]
        )

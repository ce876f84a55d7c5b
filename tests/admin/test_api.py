"""What is asked and answered; connections are `test_channel`'s business, events `test_streams`'s."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

import attrs
from twisted.internet.defer import Deferred

from fwdrelay.admin import Outcome, api
from fwdrelay.admin.answer import HEADERS
from fwdrelay.admin.guard import Guard
from fwdrelay.admin.request import AdminRequest
from fwdrelay.admin.token import Token
from fwdrelay.observe.snapshot import SessionsWanted
from tests.admin.relays import POOL, SESSION, STATUS, TARGET, Response, Served, request
from tests.case import SynchronousTestCase

THE_TARGET = "/v1/pools/web/targets/unix:%2Frun%2Fone.sock"


def plain(value: Any) -> Any:
    """A value of the snapshot, as JSON has it."""
    return json.loads(json.dumps(attrs.asdict(value)))


class ApiTestCase(SynchronousTestCase):
    guard: Guard | None = None

    def setUp(self) -> None:
        self.served = Served(self.guard)
        self.relay = self.served.relay
        self.addCleanup(self.served.stop)

    def assert_refused(self, response: Response, status: int, *words: str) -> None:
        self.assertEqual(response.status, status, response)
        self.assertEqual(response.headers["content-type"], "application/json")
        for word in words:
            self.assertIn(word, response.json["error"])


class LookingTests(ApiTestCase):
    def test_status(self) -> None:
        response = self.served.ask("GET", "/v1/status")
        self.assertEqual((response.status, response.json), (200, plain(STATUS)))

    def test_pools(self) -> None:
        response = self.served.ask("GET", "/v1/pools")
        self.assertEqual(response.json, {"pools": [plain(POOL)]})

    def test_sessions(self) -> None:
        response = self.served.ask("GET", "/v1/sessions")
        self.assertEqual(response.json, {"sessions": [plain(SESSION)], "count": 1})
        self.assertEqual(self.relay.asked, [SessionsWanted(limit=1000)])

    def test_some_sessions(self) -> None:
        self.served.ask("GET", "/v1/sessions?listener=a&target=b%3A80&client=10.0.0.0/8&limit=0")
        self.assertEqual(
            self.relay.asked,
            [SessionsWanted(listener="a", target="b:80", client="10.0.0.0/8", limit=0)],
        )

    def test_which_sessions_is_wrong(self) -> None:
        for query, words in (
            ("limit=x", "limit: 'x' is not a whole number"),
            ("limit=-1", "limit: '-1'"),
            ("limit=", "limit: ''"),
            ("client=nobody", "client: 'nobody' is not a network"),
            ("clients=1", "clients: unknown parameter; did you mean client?"),
            ("client=::1&client=::1", "client: it is there twice"),
        ):
            self.assert_refused(self.served.ask("GET", f"/v1/sessions?{query}"), 400, words)

    def test_many_sessions_come_in_pieces(self) -> None:
        self.relay.open = [attrs.evolve(SESSION, session=f"a-{number}") for number in range(1001)]
        client = self.served.connect()
        client.send(request("GET", "/v1/sessions"))
        for _ in range(20):
            self.served.clock.advance(0)
        (response,) = client.responses()
        self.assertEqual(response.headers["transfer-encoding"], "chunked")
        self.assertEqual(response.json["count"], 1001)
        self.assertEqual(
            [each["session"] for each in response.json["sessions"]],
            [f"a-{number}" for number in range(1001)],
        )
        self.assertEqual(client.ask("GET", "/healthz").status, 200)

    def test_who_does_not_read_gets_no_more_pieces(self) -> None:
        self.relay.open = [SESSION] * 10_000
        client = self.served.connect()
        client.wire.stuck = True
        client.send(request("GET", "/v1/sessions?limit=0"))
        for _ in range(100):
            self.served.clock.advance(0)
        self.assertLess(len(client.wire.value()), 1000)
        client.wire.unstick()
        for _ in range(100):
            self.served.clock.advance(0)
        (response,) = client.responses()
        self.assertEqual(len(response.json["sessions"]), 10_000)

    def test_who_leaves_gets_no_more_pieces(self) -> None:
        self.relay.open = [SESSION] * 10_000
        client = self.served.connect()
        client.send(request("GET", "/v1/sessions?limit=0"))
        self.assertEqual(len(self.soon()), 1)
        client.wire.go()
        self.assertEqual(self.soon(), [])

    def test_so_many_lists_wait_to_be_read_and_no_more(self) -> None:
        self.patch(api, "WAITING", 3000)
        self.relay.open = [SESSION] * 2000
        patient = [self.served.connect() for _ in range(3)]
        for client in patient:
            client.wire.stuck = True
            client.send(request("GET", "/v1/sessions"))
            client.received()
            self.assertEqual(client.channel.busy, client is not patient[2])
        response = self.served.ask("GET", "/v1/sessions")
        self.assert_refused(response, 503, "lists of 4000 sessions", "or for 250")
        self.assertEqual(response.headers["retry-after"], "1")
        self.assertEqual(len(self.relay.asked), 2)
        self.relay.open = [SESSION] * 250
        self.assertEqual(self.served.ask("GET", "/v1/sessions?limit=250").status, 200)
        self.relay.open = [SESSION] * 2000
        patient[0].wire.go()
        client = self.served.connect()
        client.send(request("GET", "/v1/sessions"))
        patient[1].wire.unstick()
        for _ in range(20):
            self.served.clock.advance(0)
        for each in (client, patient[1]):
            self.assertFalse(each.channel.busy)
        self.assertEqual(len(self.relay.asked), 4)

    def test_one_list_is_made_at_a_time(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.relay.slow = lambda: waiting
        clients = [self.served.connect() for _ in range(3)]
        for client in clients:
            client.send(request("GET", "/v1/sessions"))
        self.assertEqual(len(self.relay.asked), 1)
        clients[1].wire.go()
        waiting.callback(None)
        self.assertEqual(len(self.relay.asked), 2)
        for client in (clients[0], clients[2]):
            (response,) = client.responses()
            self.assertEqual(response.status, 200)

    def soon(self) -> list[object]:
        """What is to be done in the next turn."""
        return [each for each in self.served.clock.getDelayedCalls() if each.getTime() <= 0]

    def test_health(self) -> None:
        for state, status, told in (
            ("running", 200, "ready"),
            ("starting", 503, "starting"),
            ("draining", 503, "draining"),
        ):
            self.relay.state = state
            self.assertEqual(self.served.ask("GET", "/healthz").json, {"status": "ok"})
            response = self.served.ask("GET", "/readyz")
            self.assertEqual((response.status, response.json), (status, {"status": told}))

    def test_it_is_unwell(self) -> None:
        self.relay.unwell = "worker 2 has died 5 times"
        for state, told in (
            ("running", {"status": "unwell", "why": "worker 2 has died 5 times"}),
            ("starting", {"status": "unwell", "why": "worker 2 has died 5 times"}),
            ("draining", {"status": "draining"}),
        ):
            self.relay.state = state
            self.assertEqual(self.served.ask("GET", "/healthz").json, {"status": "ok"})
            response = self.served.ask("GET", "/readyz")
            self.assertEqual((response.status, response.json), (503, told))

    def test_the_page_and_what_is_beside_it(self) -> None:
        page = self.served.ask("GET", "/")
        self.assertEqual(page.headers["content-type"], "text/html; charset=utf-8")
        self.assertTrue(page.raw.startswith(b"<!doctype html>"))
        icon = self.served.ask("GET", "/favicon.ico")
        self.assertEqual((icon.status, icon.raw), (204, b""))
        metrics = self.served.ask("GET", "/metrics?name[]=fwdrelay")
        self.assertEqual((metrics.status, metrics.raw), (200, b"fwdrelay 1\n"))
        self.assertEqual(metrics.headers["content-type"], "text/plain")

    def test_head_is_as_get_without_its_body(self) -> None:
        for route in self.served.api.routes:
            if route.method != "GET":
                continue
            client = self.served.connect()
            head = client.ask("HEAD", route.path)
            self.assertEqual(head.raw, b"")
            self.assertIn(head.status, (200, 204), route.path)
            if route.path not in ("/v1/events", "/v1/trace"):
                get = client.ask("GET", route.path)
                get.headers.pop("date"), head.headers.pop("date")
                self.assertEqual(head.headers, get.headers, route.path)
        self.assertEqual(self.relay.told, [])
        self.assertEqual(self.relay.followed, [])

    def test_head_of_many_sessions(self) -> None:
        self.relay.open = [SESSION] * 1000
        client = self.served.connect()
        self.assertEqual(client.ask("HEAD", "/v1/sessions").status, 200)
        self.assertEqual(client.ask("GET", "/healthz").status, 200)


class ChangingTests(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[str] = []
        self.patch(self.served.api, "log", self)

    def info(self, sentence: str, **fields: Any) -> None:
        self.told.append(sentence.format(**fields))

    def assert_told(self, *sentences: str) -> None:
        """What the log has of it, and who it was."""
        self.assertEqual(
            self.told,
            [f"By 192.168.1.1:54321, over the admin API: {sentence}." for sentence in sentences],
        )

    def test_a_session_ends(self) -> None:
        response = self.served.ask("DELETE", "/v1/sessions/a-1")
        self.assertEqual((response.status, response.json), (200, plain(SESSION)))
        self.assertEqual(self.relay.asked, [("end", "a-1")])
        self.assert_told("end session a-1")

    def test_no_such_session(self) -> None:
        response = self.served.ask("DELETE", "/v1/sessions/a%20b%0a")
        self.assert_refused(response, 404, r"'a b\n'")
        self.assert_told()

    def test_names_that_are_to_break_the_log(self) -> None:
        name, told = "fe80::1%25%0aBy%20root%1b%5b31m", "fe80::1%\\u000aBy root\\u001b[31m"
        self.relay.also_there = (unquote(name), "a" * 10_000)
        client = self.served.connect()
        client.send(request("GET", f"/v1/trace?client={name}"))
        self.assertEqual(len(self.relay.followed), 1)
        self.served.ask("DELETE", f"/v1/sessions/{name}")
        self.served.ask("PATCH", f"/v1/pools/{name}/targets/{name}", b'{"weight": 2}')
        self.served.ask("DELETE", "/v1/sessions/" + "a" * 10_000)
        self.assert_told(
            f"follow sessions of {told}",
            f"end session {told}",
            f"target {told} of pool {told} gets weight 2",
            f"end session {'a' * 200}…",
        )

    def test_a_target_is_steered(self) -> None:
        for body, state, weight, told in (
            ({"state": "drain"}, "drain", None, "state drain"),
            ({"weight": 1_000_000}, None, 1_000_000, "weight 1000000"),
            ({"state": "ready", "weight": 2}, "ready", 2, "state ready and weight 2"),
        ):
            self.told.clear()
            self.relay.asked.clear()
            response = self.served.ask("PATCH", THE_TARGET, json.dumps(body).encode())
            self.assertEqual(response.status, 200)
            self.assertEqual(response.json["state"], state or "ready")
            self.assertEqual(response.json["weight"], weight or 1)
            self.assertEqual(self.relay.asked, [("steer", "web", TARGET.name, state, weight)])
            self.assert_told(f"target unix:/run/one.sock of pool web gets {told}")

    def test_a_target_is_steered_by_who_says_nothing_of_the_body_s_type(self) -> None:
        for kind in (None, "application/x-www-form-urlencoded"):
            response = self.served.ask("PATCH", THE_TARGET, b'{"weight": 2}', Content_Type=kind)
            self.assertEqual((response.status, response.json["weight"]), (200, 2))

    def test_no_such_target(self) -> None:
        body = b'{"weight": 2}'
        response = self.served.ask("PATCH", "/v1/pools/web/targets/two", body)
        self.assert_refused(response, 404, "'web' has no target 'two'")

    def test_how_it_is_to_be_steered_is_wrong(self) -> None:
        for body, words in (
            (b"", "body: nothing is asked for"),
            (b"{}", "body: nothing is asked for"),
            (b'{"state": "drian"}', "state: "),
            (b'{"weight": 0}', "weight: 0 is not a whole number from 1 to 1000000"),
            (b'{"weight": 1000001}', "weight: 1000001"),
            (b'{"state": "drain", "wait": 1}', "wait: unknown key"),
            (b"{", "body: it is not JSON"),
        ):
            self.assert_refused(self.served.ask("PATCH", THE_TARGET, body), 400, words)
        response = self.served.ask("PATCH", THE_TARGET, b"x=1", Content_Type="text/plain")
        self.assert_refused(response, 415, "application/json")
        self.assertEqual(self.relay.asked, [])
        self.assert_told()

    def test_a_reload(self) -> None:
        self.relay.outcome = Outcome(True, changed="pool web changed")
        response = self.served.ask("POST", "/v1/reload")
        self.assertEqual((response.status, response.json), (200, {"changed": "pool web changed"}))
        self.assert_told("reload")

    def test_a_reload_of_what_is_wrong(self) -> None:
        for errors in (("one thing", "another"), ()):
            self.relay.outcome = Outcome(False, errors=errors)
            response = self.served.ask("POST", "/v1/reload", b"{}")
            self.assert_refused(response, 422, *errors)
            self.assertEqual(response.json["errors"], list(errors) or ["the log has it"])

    def test_a_reload_while_it_stops(self) -> None:
        self.relay.state = "draining"
        self.assert_refused(self.served.ask("POST", "/v1/reload"), 409, "is stopping")

    def test_a_check(self) -> None:
        for outcome in (Outcome(True), Outcome(False, errors=("a", "b"))):
            self.relay.outcome = outcome
            response = self.served.ask("POST", "/v1/check")
            self.assertEqual(response.status, 200)
            self.assertEqual(
                response.json,
                {"okay": outcome.okay, "changed": outcome.changed, "errors": list(outcome.errors)},
            )
        self.assert_told()

    def test_drain(self) -> None:
        for body, asked, told in (
            (b"", "drain", "drain and stop"),
            (b'{"now": false}', "drain", "drain and stop"),
            (b'{"now": true}', "cut", "drain and stop, cutting all sessions"),
        ):
            self.told.clear()
            self.relay.asked.clear()
            response = self.served.ask("POST", "/v1/drain", body)
            self.assertEqual((response.status, response.json), (202, {"state": "draining"}))
            self.assertEqual(self.relay.asked, [asked])
            self.assert_told(told)

    def test_it_does_not_run_yet(self) -> None:
        self.relay.state = "starting"
        self.assert_refused(self.served.ask("POST", "/v1/drain"), 409, "still starting")

    def test_bodies_that_are_wrong(self) -> None:
        for path in ("/v1/drain", "/v1/reload", "/v1/check"):
            self.assert_refused(
                self.served.ask("POST", path, b'{"nwo": true}'), 400, "nwo: unknown"
            )
            self.assert_refused(self.served.ask("POST", path, b"[]"), 400, "body: [] is not")
            self.assert_refused(self.served.ask("POST", path, b"{}", Content_Type=None), 415)
        self.assert_refused(self.served.ask("POST", "/v1/drain", b'{"now": 1}'), 400, "now: 1")
        self.assertEqual(self.relay.asked, [])


class PathTests(ApiTestCase):
    def test_there_is_nothing(self) -> None:
        for path, words in (
            ("/nothing", "nothing at /nothing"),
            ("/v1/sesions", "did you mean /v1/sessions?"),
            ("/v1/sessions/", "nothing at /v1/sessions/"),
            ("/v1/status/", "did you mean /v1/status?"),
            ("//", "nothing at //"),
            ("/v1/../v1/status", "nothing at"),
            ("/v1/pools/web/targets//", "nothing at"),
            ("/v1/pools/web/targets/a/b", "nothing at"),
            ("/%ff", "nothing at /%ff"),
            ("*", "nothing at no path"),
        ):
            for method in ("GET", "DELETE", "OPTIONS"):
                self.assert_refused(self.served.ask(method, path), 404, words)

    def test_names_of_any_kind(self) -> None:
        for path, names in (
            ("/v1/sessions/%61", ("end", "a")),
            ("/v1/sessions/%C3%BC%2F%3F", ("end", "ü/?")),
        ):
            self.relay.asked.clear()
            self.served.ask("DELETE", path)
            self.assertEqual(self.relay.asked, [names])

    def test_what_can_be_done_there_is_told(self) -> None:
        for method, path, allowed in (
            ("POST", "/v1/status", "GET, HEAD"),
            ("OPTIONS", "/v1/status", "GET, HEAD"),
            ("GET", "/v1/drain", "POST"),
            ("HEAD", "/v1/drain", "POST"),
            ("GET", "/v1/sessions/a-1", "DELETE"),
            ("OPTIONS", "/v1/sessions/a-1", "DELETE"),
            ("PUT", THE_TARGET, "PATCH"),
            ("BREW", "/", "GET, HEAD"),
            ("get", "/", "GET, HEAD"),
        ):
            response = self.served.ask(method, path)
            self.assertEqual(response.status, 405, path)
            self.assertEqual(response.headers["allow"], allowed)
            if method != "HEAD":
                self.assertIn(allowed, response.json["error"])
        self.assertEqual(self.relay.asked, [])

    def test_nothing_takes_a_parameter_that_it_does_not_know(self) -> None:
        for route in self.served.api.routes:
            path = route.path.replace("{session}", "a-1")
            if route.query is not None:
                response = self.served.ask(route.method, f"{path}?nonsense=1")
                self.assert_refused(response, 400, "nonsense: unknown parameter")
        self.assertEqual(self.relay.asked, [])


class HeadersTests(ApiTestCase):
    def test_they_are_on_every_answer(self) -> None:
        for method, path, status in (
            ("GET", "/", 200),
            ("GET", "/v1/status", 200),
            ("GET", "/metrics", 200),
            ("GET", "/favicon.ico", 204),
            ("POST", "/v1/drain", 202),
            ("GET", "/nothing", 404),
            ("POST", "/v1/status", 405),
            ("GET", "/v1/status?x", 400),
        ):
            response = self.served.ask(method, path)
            self.assertEqual(response.status, status)
            for name, value in HEADERS.items():
                self.assertEqual(response.headers[name.lower()], value, path)
            self.assertEqual(response.headers["server"], "fwdrelay")
            self.assertNotIn("access-control-allow-origin", response.headers)

    def test_who_may_not_ask_is_told_so(self) -> None:
        response = self.served.ask("POST", "/v1/drain", Host="evil.example")
        self.assert_refused(response, 403, "evil.example")
        response = self.served.ask("POST", "/v1/drain", Origin="http://evil.example")
        self.assert_refused(response, 403, "Origin")
        response = self.served.ask("POST", "/v1/drain", Sec_Fetch_Site="cross-site")
        self.assert_refused(response, 403, "Sec-Fetch-Site")
        self.assertEqual(self.relay.asked, [])


class TokenTests(ApiTestCase):
    def setUp(self) -> None:
        self.guard = Guard(checks_host=True, token=Token.of("s3cret"))
        super().setUp()
        self.told: list[str] = []
        self.patch(self.served.site, "_log", self)

    def warn(self, sentence: str, **fields: Any) -> None:
        self.told.append(sentence.format(**fields))

    def test_everything_needs_it(self) -> None:
        for route in self.served.api.routes:
            response = self.served.ask(route.method, route.path)
            if route.path in ("/healthz", "/readyz"):
                self.assertEqual(response.status, 200)
            else:
                self.assert_refused(response, 401, "token")
                self.assertIn("Basic", response.headers["www-authenticate"])
        self.assert_refused(self.served.ask("GET", "/nothing"), 401)
        self.assertEqual(self.relay.asked, [])
        self.assertEqual(self.told, [])

    def test_it_is_shown(self) -> None:
        response = self.served.ask(
            "GET", "/v1/status", Authorization="Bearer s3cret", Host="relay.example"
        )
        self.assertEqual(response.status, 200)

    def test_guesses_are_told_of_once_in_a_while(self) -> None:
        for _ in range(10):
            response = self.served.ask("GET", "/v1/status", Authorization="Bearer guess")
            self.assert_refused(response, 401, "not the token")
        self.assertEqual(len(self.told), 1)
        self.assertIn("192.168.1.1:54321 has shown a wrong token", self.told[0])
        self.served.clock.advance(60)
        self.served.ask("GET", "/v1/status", Authorization="Bearer guess")
        self.assertEqual(len(self.told), 2)


class UnforeseenTests(ApiTestCase):
    def test_the_log_has_it_and_the_client_has_not(self) -> None:
        self.relay.failing = ZeroDivisionError("a secret")
        client = self.served.connect()
        response = client.ask("GET", "/v1/status")
        self.assert_refused(response, 500, "the log has it")
        self.assertNotIn(b"secret", response.raw)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(client.ask("GET", "/healthz").status, 200)

    def test_it_can_not_be_sent(self) -> None:
        def fail(*arguments: object) -> None:
            raise ZeroDivisionError

        self.patch(AdminRequest, "send", fail)
        client = self.served.connect()
        client.send(request("GET", "/healthz"))
        self.assertTrue(client.wire.lost)  # not: left waiting
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_it_fails_while_it_is_sent(self) -> None:
        self.relay.open = [SESSION] * 300 + [object()]  # type: ignore[list-item]
        client = self.served.connect()
        client.send(request("GET", "/v1/sessions"))
        for _ in range(5):
            self.served.clock.advance(0)
        self.assertTrue(client.wire.lost)  # not: ended as if it were all
        self.assertEqual(len(self.flushLoggedErrors(Exception)), 1)


class GoneTests(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.cancelled = 0
        self.waiting: Deferred[None] = Deferred(self.cancel)
        self.relay.slow = lambda: self.waiting

    def cancel(self, waiting: Deferred[None]) -> None:
        self.cancelled += 1

    def test_who_only_looked_is_forgotten(self) -> None:
        client = self.served.connect()
        client.send(request("GET", "/v1/status"))
        client.wire.go()
        self.assertEqual(self.cancelled, 1)
        self.assertEqual(client.received(), b"")

    def test_what_was_to_be_changed_is_changed(self) -> None:
        client = self.served.connect()
        client.send(request("DELETE", "/v1/sessions/a-1"))
        client.wire.go()
        self.assertEqual(self.cancelled, 0)
        self.waiting.callback(None)
        self.assertEqual(self.relay.asked, [("end", "a-1")])
        self.assertEqual(client.received(), b"")

"""The description, held against what is answered."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, Literal

import attrs
import jsonschema_rs
from attrs import frozen

from fwdrelay import __version__
from fwdrelay.admin import Outcome, channel, site, streams
from fwdrelay.admin.answer import BATCH
from fwdrelay.admin.api import WAITING
from fwdrelay.admin.openapi import Schemas, describe
from fwdrelay.admin.parameters import LARGEST_BODY
from fwdrelay.admin.port import RESERVE
from fwdrelay.admin.streams import session_event, trace_event
from tests.admin.relays import ENDED, OPENED, SESSION, STEP, Response, Served, request
from tests.admin.test_streams import Listener
from tests.case import SynchronousTestCase
from tests.test_docs import ROOT, read, rows, section

EXAMPLES = {
    "/v1/sessions/{session}": "/v1/sessions/a-1",
    "/v1/pools/{pool}/targets/{target}": "/v1/pools/web/targets/unix:%2Frun%2Fone.sock",
}
BODIES = {"/v1/pools/{pool}/targets/{target}": b'{"state": "drain", "weight": 2}'}


def closed(node: Any) -> Any:
    """The same schemas, but for objects that may have nothing besides what is described."""
    if isinstance(node, dict):
        made = {key: closed(value) for key, value in node.items()}
        if node.get("type") == "object" and "properties" in node:
            made["additionalProperties"] = False
        return made
    return [closed(each) for each in node] if isinstance(node, list) else node


class DescriptionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.served = Served()
        self.addCleanup(self.served.stop)
        response = self.served.ask("GET", "/v1/openapi.json")
        self.assertEqual(response.status, 200)
        self.document: dict[str, Any] = response.json

    def validate(self, schema: dict[str, Any], value: Any) -> None:
        """Fail where a value is not as described, or has more than is described."""
        whole = {**schema, "components": self.document["components"]}
        jsonschema_rs.Draft202012Validator(closed(copy.deepcopy(whole))).validate(value)

    def named(self, name: str) -> dict[str, Any]:
        return {"$ref": f"#/components/schemas/{name}"}

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                yield path, method.upper(), operation


class DescriptionTests(DescriptionTestCase):
    def assert_described(self, operation: dict[str, Any], response: Response) -> None:
        described = operation["responses"][str(response.status)]
        content = described.get("content")
        if content is None:
            self.assertEqual(response.raw, b"")
            return
        ((kind, body),) = content.items()
        self.assertEqual(response.headers["content-type"].partition(";")[0], kind)
        if kind == "application/json":
            self.validate(body["schema"], response.json)

    def test_what_it_is(self) -> None:
        self.assertEqual(self.document["openapi"], "3.1.0")
        self.assertEqual(self.document["info"]["version"], __version__)
        identifiers = [operation["operationId"] for _, _, operation in self.operations()]
        self.assertEqual(len(set(identifiers)), len(identifiers))

    def test_its_schemas_are_schemas(self) -> None:
        for name, schema in self.document["components"]["schemas"].items():
            self.assertTrue(jsonschema_rs.meta.is_valid(schema), name)

    def test_each_call_is_described(self) -> None:
        described = {(method, path) for path, method, _ in self.operations()}
        self.assertEqual(
            described, {(route.method, route.path) for route in self.served.api.routes}
        )

    def test_answers_are_as_described(self) -> None:
        for path, method, operation in self.operations():
            if path in ("/v1/events", "/v1/trace"):
                continue
            response = self.served.ask(method, EXAMPLES.get(path, path), BODIES.get(path, b""))
            self.assertLess(response.status, 300, path)
            self.assert_described(operation, response)

    def test_refusals_are_as_described(self) -> None:
        relay = self.served.relay
        for path, method, operation in self.operations():
            asked = EXAMPLES.get(path, path.replace("{", "").replace("}", ""))
            wrong = [
                self.served.ask(method, asked, Host="evil.example"),
                self.served.ask(method, asked, Host=None),
                self.served.ask("BREW", asked),
            ]
            if "requestBody" in operation:
                wrong.append(self.served.ask(method, asked, b"x", Content_Type="text/plain"))
                wrong.append(self.served.ask(method, asked, b"x"))
            for response in wrong:
                self.assertGreaterEqual(response.status, 400)
                self.assert_described(operation, response)
        relay.state = "draining"
        relay.outcome = Outcome(False, errors=("a",))
        for path, method in (("/readyz", "get"), ("/v1/reload", "post"), ("/v1/check", "post")):
            response = self.served.ask(method.upper(), path)
            self.assert_described(self.document["paths"][path][method], response)
        relay.state, relay.unwell = "running", "worker 2 has died"
        response = self.served.ask("GET", "/readyz")
        self.assert_described(self.document["paths"]["/readyz"]["get"], response)
        response = self.served.ask("POST", "/v1/reload")
        self.assertEqual(response.status, 422)
        self.assert_described(self.document["paths"]["/v1/reload"]["post"], response)

    def test_streams_are_streams(self) -> None:
        for path in ("/v1/events", "/v1/trace"):
            client = self.served.connect()
            client.send(request("GET", path))
            self.assertIn(b"Content-Type: text/event-stream\r\n", client.received())
            answer = self.document["paths"][path]["get"]["responses"]["200"]
            self.assertEqual(list(answer["content"]), ["text/event-stream"])

    def test_events_are_as_described(self) -> None:
        def data(text: bytes) -> Any:
            return json.loads(text.decode().partition("\ndata: ")[2])

        full = attrs.evolve(
            ENDED, queue_ms=1.0, sni="a", alpn="b", tls="c", identity="d", error="e"
        )
        for name, value in (
            ("SessionOpenedEvent", data(session_event(OPENED))),
            ("SessionEndedEvent", data(session_event(ENDED))),
            ("SessionEndedEvent", data(session_event(full))),
            ("TraceStep", data(trace_event(STEP))),
            ("DroppedEvent", {"events": 1}),
        ):
            self.validate(self.named(name), value)
        ((_, status),) = Listener(self.served).events()
        self.validate(self.named("StatusEvent"), status)

    def test_what_is_not_as_described_is_found(self) -> None:
        plain = attrs.asdict(SESSION)
        self.validate(self.named("SessionShown"), plain)
        for wrong in ({**plain, "more": 1}, {**plain, "bytes_up": "1"}, {"session": "a"}):
            with self.assertRaises(jsonschema_rs.ValidationError):
                self.validate(self.named("SessionShown"), wrong)

    def test_docstrings_describe(self) -> None:
        schemas = self.document["components"]["schemas"]
        target = schemas["TargetShown"]["properties"]
        self.assertEqual(target["max_sessions"]["description"], "0: any number.")
        self.assertIn("An open session;", schemas["SessionShown"]["description"])

    def test_a_token_is_wanted_where_there_is_one(self) -> None:
        self.assertNotIn("securitySchemes", self.document["components"])
        for _, _, operation in self.operations():
            self.assertNotIn("security", operation)
            self.assertNotIn("401", operation["responses"])
        self.document = describe(self.served.api.routes, token=True)
        self.assertEqual({*self.document["components"]["securitySchemes"]}, {"bearer", "basic"})
        free = {path for path, _, operation in self.operations() if "security" not in operation}
        self.assertEqual(free, {"/healthz", "/readyz"})
        told = {path for path, _, each in self.operations() if "401" not in each["responses"]}
        self.assertEqual(told, free)


@frozen
class Inner:
    """@ivar of: what is inside."""

    of: int


@frozen
class Outer:
    """
    Two lines
    of text.

    @ivar choice: one
        of two.
    """

    choice: Literal["a", "b"]
    inner: Inner
    maybe: Inner | None
    many: tuple[Inner, ...]
    text: str | None
    anything: object


class SchemasTests(SynchronousTestCase):
    def test_of_a_class(self) -> None:
        schemas = Schemas()
        inner = {"$ref": "#/components/schemas/Inner"}
        self.assertEqual(schemas.of(Outer), {"$ref": "#/components/schemas/Outer"})
        self.assertEqual(
            schemas.named["Outer"],
            {
                "type": "object",
                "description": "Two lines of text.",
                "required": ["anything", "choice", "inner", "many", "maybe", "text"],
                "properties": {
                    "choice": {"type": "string", "enum": ["a", "b"], "description": "one of two."},
                    "inner": inner,
                    "maybe": {"anyOf": [inner, {"type": "null"}]},
                    "many": {"type": "array", "items": inner},
                    "text": {"type": ["string", "null"]},
                    "anything": {},
                },
            },
        )
        self.assertEqual(
            schemas.named["Inner"]["properties"],
            {"of": {"type": "integer", "description": "what is inside."}},
        )

    def test_of_what_it_does_not_know(self) -> None:
        self.assertRaises(TypeError, Schemas().of, bytes)


class PageTests(SynchronousTestCase):
    page = read(ROOT / "docs" / "admin.md")

    def test_it_has_all_calls(self) -> None:
        served = Served()
        self.addCleanup(served.stop)
        told = [row[0].strip("`") for row in rows(section(self.page, "The calls"))]
        self.assertEqual(told, [f"{route.method} {route.path}" for route in served.api.routes])

    def test_it_has_all_statuses(self) -> None:
        served = Served()
        self.addCleanup(served.stop)
        described = {
            status
            for methods in describe(served.api.routes, token=True)["paths"].values()
            for operation in methods.values()
            for status in operation["responses"]
            if int(status) >= 400
        }
        told = {row[0] for row in rows(section(self.page, "Errors"))}
        self.assertEqual(told, described)

    def test_it_has_all_events(self) -> None:
        told = [row[0].strip("`") for row in rows(section(self.page, "Events"))]
        self.assertEqual(told, ["status", "session", "trace", "dropped"])

    def test_its_limits_are_those_there_are(self) -> None:
        limits = section(self.page, "Limits")
        for words in (
            f"{site.MOST}. For the next one",
            f"{streams.MOST}; the next one",
            f"{channel.REQUEST_WITHIN:g} seconds, 16 KiB of head, {LARGEST_BODY >> 10} KiB of body",
            f"{channel.IDLE:g} seconds",
            f"{channel.UNREAD:g} seconds; {channel.CLOSING:g} for the end of the last one",
            f"come to {WAITING:,} sessions, who wants more than {BATCH} gets",
        ):
            self.assertIn(words, limits)
        self.assertIn(f"silent for {streams.HEARTBEAT:g} seconds", self.page)
        self.assertIn("eight are put by", self.page)
        self.assertEqual(RESERVE, 8)
        self.assertEqual(channel.Channel.MAX_LENGTH, 16 << 10)
        self.assertEqual(channel.Channel.totalHeadersSize, 16 << 10)

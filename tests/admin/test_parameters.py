"""Queries and bodies: what is read of them, and what is said of those that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fwdrelay.admin import parameters
from fwdrelay.admin.answer import Refused
from fwdrelay.admin.parameters import chosen, flag, read_body, read_query, whole_number
from tests.case import SynchronousTestCase

JSON = ["application/json"]


class Key(str):
    """
    A key of a body.

    @ivar compared: how often any was to another.
    """

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Key.compared += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


class ParametersTestCase(SynchronousTestCase):
    def assert_refused(
        self, status: int, words: str, call: Callable[..., object], *arguments: Any
    ) -> None:
        refused = self.assertRaises(Refused, call, *arguments)
        self.assertEqual(refused.status, status, str(refused))
        self.assertIn(words, str(refused))


class QueryTests(ParametersTestCase):
    def test_values(self) -> None:
        query = "listener=a%20b&&client=10.0.0.0%2F8&target=a+b&limit="
        self.assertEqual(
            read_query(query, ("listener", "client", "target", "limit")),
            {"listener": "a b", "client": "10.0.0.0/8", "target": "a b", "limit": ""},
        )
        self.assertEqual(read_query("client", ("client",)), {"client": ""})
        self.assertEqual(read_query("client=a=b", ("client",)), {"client": "a=b"})
        self.assertEqual(read_query("", ()), {})

    def test_what_is_wrong_is_told_by_name(self) -> None:
        for query, words in (
            ("clinet=1", "clinet: unknown parameter; did you mean client?"),
            ("x=1", "x: unknown parameter: there is client, limit"),
            ("=1", ": unknown parameter"),
            ("client=1&client=1", "client: it is there twice"),
            ("client=1&%63lient=2", "client: it is there twice"),
            ("client=%ff", "%ff: it is not UTF-8"),
        ):
            self.assert_refused(400, words, read_query, query, ("client", "limit"))
        self.assert_refused(400, "x: unknown parameter: there is none here", read_query, "x", ())

    @settings(deadline=None)
    @given(st.text(alphabet="ab=&%+;é", max_size=50))
    def test_nothing_else_comes_of_any_text(self, text: str) -> None:
        try:
            read = read_query(text, ("a", "b"))
        except Refused as refused:
            assert refused.status == 400
        else:
            assert read.keys() <= {"a", "b"}


class BodyTests(ParametersTestCase):
    keys = ("state", "weight")

    def test_an_object(self) -> None:
        body = read_body(b'{"state": "ready"}', ["Application/JSON; charset=utf-8"], self.keys)
        self.assertEqual(body, {"state": "ready"})

    def test_none_is_empty_whatever_its_type(self) -> None:
        self.assertEqual(read_body(b"", ["text/plain"], self.keys), {})

    def test_another_type(self) -> None:
        for kinds in (
            ["text/plain"],
            [],
            ["application/json", "text/plain"],
            ["application/jsonp"],
        ):
            self.assert_refused(415, "application/json", read_body, b"{}", kinds, self.keys)

    def test_a_type_that_nobody_was_told_where_no_form_can_send_it(self) -> None:
        raw = b'{"state": "ready"}'
        for kinds in ([], ["application/x-www-form-urlencoded"], ["application/json"]):
            body = read_body(raw, kinds, self.keys, by_form=False)
            self.assertEqual(body, {"state": "ready"})
        for kinds in (["text/plain"], ["multipart/form-data; boundary=x"]):
            with self.assertRaises(Refused) as caught:
                read_body(raw, kinds, self.keys, by_form=False)
            self.assertEqual(caught.exception.status, 415)

    def test_what_is_wrong_is_told_with_its_place(self) -> None:
        for raw, words in (
            (b"{", "body: it is not JSON: Expecting"),
            (b"\xff", "body: it is not JSON: 'utf-8'"),
            (b"[1]", "body: [1] is not an object"),
            (b"null", "body: null is not an object"),
            (b'{"wieght": 1}', "wieght: unknown key; did you mean weight?"),
            (b'{"weight": 1, "weight": 2}', "weight: it is there twice"),
            (b'{"weight": NaN}', "body: it is not JSON: NaN"),
            (b"[" * 60000, "body: it is too deep"),
            (b'{"weight": ' + b"1" * 5000 + b"}", "body: it is not JSON: Exceeds"),
        ):
            self.assert_refused(400, words, read_body, raw, JSON, self.keys)
        self.assert_refused(
            400, "x: unknown key: there is none here", read_body, b'{"x":1}', JSON, ()
        )

    def test_of_many_keys_the_last_is_there_twice(self) -> None:
        keys = [Key(f"key{number}") for number in range(2000)]
        pairs: list[tuple[str, Any]] = [(key, 1) for key in (*keys, Key("key1999"))]
        self.assert_refused(400, "key1999: it is there twice", parameters._object, pairs)
        self.assertLess(Key.compared, 10 * len(pairs))

    def test_however_deep_it_is(self) -> None:
        for depth in range(700, 1000):
            for raw in (
                b'{"weight":' + b"[" * depth + b"]" * depth + b"}",
                b'{"weight":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}",
                b"[" * depth + b"]" * depth,
            ):
                self.assert_refused(400, ": ", self.weight_in, raw)

    def weight_in(self, raw: bytes) -> None:
        whole_number(read_body(raw, JSON, self.keys), "weight", 1, 5)

    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_nothing_else_comes_of_any_bytes(self, raw: bytes) -> None:
        try:
            read_body(raw, JSON, self.keys)
        except Refused as refused:
            assert refused.status == 400


class ValueTests(ParametersTestCase):
    def test_whole_numbers(self) -> None:
        self.assertEqual(whole_number({"weight": 3}, "weight", 1, 5), 3)
        self.assertEqual(whole_number({"weight": 3.0}, "weight", 1, 5), 3)
        self.assertEqual(whole_number({}, "weight", 1, 5), None)
        wrong: list[Any] = [0, 6, 1.5, True, "3", None, [], 1e999, -1e999, 10**400]
        for value in wrong:
            self.assert_refused(
                400,
                "is not a whole number from 1 to 5",
                whole_number,
                {"weight": value},
                "weight",
                1,
                5,
            )

    def test_choices(self) -> None:
        choices = ("ready", "drain")
        self.assertEqual(chosen({"state": "drain"}, "state", choices), "drain")
        self.assertEqual(chosen({}, "state", choices), None)
        for value, words in (
            ("drian", 'state: "drian" is not one of ready, drain; did you mean drain?'),
            (1, "state: 1 is not one of"),
            (None, "state: null is not one of"),
            ({}, "state: {} is not one of"),
        ):
            self.assert_refused(400, words, chosen, {"state": value}, "state", choices)

    def test_flags(self) -> None:
        self.assertEqual(flag({"now": True}, "now"), True)
        self.assertEqual(flag({}, "now"), False)
        for value in (1, "true", None):
            self.assert_refused(400, "is not true or false", flag, {"now": value}, "now")

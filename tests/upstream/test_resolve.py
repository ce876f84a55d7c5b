"""`fwdrelay.upstream.resolve`, with a name resolver and a clock that tests own."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from fwdrelay.errors import DialFailed
from fwdrelay.upstream.resolve import BELIEVED, FAILURE_BELIEVED, Addresses, Resolver, interleave
from tests.case import SynchronousTestCase


class Names:
    """
    Stands for `reactor.nameResolver`.

    @ivar asked: for each look-up its name and who waits for the answer.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def resolveHostName(self, receiver: Any, name: str) -> Any:
        if name == "refused":
            raise UnicodeError("label empty or too long")
        self.asked.append((name, receiver))
        receiver.resolutionBegan(None)

    def answer(self, *addresses: str) -> None:
        """Answer the last look-up."""
        _, receiver = self.asked[-1]
        for text in addresses:
            kind = IPv6Address if ":" in text else IPv4Address
            receiver.addressResolved(kind("TCP", text, 0))
        receiver.resolutionComplete()


class NamingClock(Clock):
    """A clock, and who knows names."""

    nameResolver: Any


class ResolverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = NamingClock()
        self.names = Names()
        self.reactor.nameResolver = self.names
        self.resolver = Resolver(self.reactor)
        self.logged: list[Any] = []
        observer: Any = self.logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def said(self) -> list[str]:
        """What was logged, by level."""
        events = [e for e in self.logged if e["log_namespace"].startswith("fwdrelay")]
        return [event["log_level"].name for event in events]

    def look_up(self, *addresses: str) -> Addresses:
        """Ask for `name`, and answer the look-up that this begins."""
        before = len(self.names.asked)
        answer = self.resolver.resolve("name")
        self.assertEqual(len(self.names.asked), before + 1)
        self.names.answer(*addresses)
        return self.successResultOf(answer)

    def test_what_has_no_form_for_the_dns_is_not_looked_up(self) -> None:
        for name in ("ü" * 60, "a..b"):
            self.failureResultOf(self.resolver.resolve(name), DialFailed)
        self.assertEqual(self.names.asked, [])

    def test_literals_are_not_looked_up(self) -> None:
        for literal in ("127.0.0.1", "::1"):
            self.assertEqual(self.successResultOf(self.resolver.resolve(literal)), (literal,))
        self.assertEqual(self.names.asked, [])

    def test_an_answer_is_believed_for_a_while(self) -> None:
        self.look_up("192.0.2.1")
        self.reactor.advance(BELIEVED - 1)
        self.assertEqual(self.successResultOf(self.resolver.resolve("name")), ("192.0.2.1",))
        self.reactor.advance(2)
        self.assertEqual(self.look_up("192.0.2.2"), ("192.0.2.2",))

    def test_each_name_is_looked_up_for_itself(self) -> None:
        self.look_up("192.0.2.1")
        self.assertNoResult(self.resolver.resolve("other"))
        self.assertEqual([name for name, _ in self.names.asked], ["name", "other"])

    def test_all_who_ask_meanwhile_wait_for_one_look_up(self) -> None:
        answers = [self.resolver.resolve("name") for _ in range(3)]
        self.assertEqual(len(self.names.asked), 1)
        self.names.answer("192.0.2.1")
        self.assertEqual([self.successResultOf(a) for a in answers], [("192.0.2.1",)] * 3)

    def test_one_who_gives_up_leaves_the_others_waiting(self) -> None:
        answers = [self.resolver.resolve("name") for _ in range(3)]
        answers[1].cancel()
        self.failureResultOf(answers[1], CancelledError)
        self.names.answer("192.0.2.1")
        self.successResultOf(answers[0])
        self.successResultOf(answers[2])

    def test_when_all_gave_up_the_answer_is_kept_for_the_next(self) -> None:
        answer = self.resolver.resolve("name")
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.names.answer("192.0.2.1")
        self.assertEqual(self.successResultOf(self.resolver.resolve("name")), ("192.0.2.1",))

    def test_the_first_to_hear_may_make_the_next_give_up(self) -> None:
        first, second = self.resolver.resolve("name"), self.resolver.resolve("name")

        def give_up(addresses: Addresses) -> Addresses:
            # The name is looked up anew meanwhile.
            self.resolver.doubt("name")
            self.reactor.advance(FAILURE_BELIEVED)
            others.append(self.resolver.resolve("name"))
            second.cancel()
            return addresses

        others: list[Deferred[Addresses]] = []
        first.addCallback(give_up)
        self.names.answer("192.0.2.1")
        self.successResultOf(first)
        self.failureResultOf(second, CancelledError)
        self.names.answer("192.0.2.2")
        self.assertEqual(self.successResultOf(others[0]), ("192.0.2.2",))

    def test_a_name_that_does_not_resolve(self) -> None:
        answer = self.resolver.resolve("name")
        self.names.answer()
        failed = self.failureResultOf(answer, DialFailed).value
        self.assertEqual((failed.cause, failed.detail), ("resolve", "name does not resolve"))

    def test_a_name_that_cannot_even_be_asked_for(self) -> None:
        answer = self.resolver.resolve("refused")
        self.assertEqual(self.failureResultOf(answer, DialFailed).value.cause, "resolve")

    def test_a_failure_is_believed_for_a_moment_only(self) -> None:
        answer = self.resolver.resolve("name")
        self.names.answer()
        self.failureResultOf(answer, DialFailed)
        self.failureResultOf(self.resolver.resolve("name"), DialFailed)
        self.reactor.advance(FAILURE_BELIEVED + 0.1)
        self.assertEqual(self.look_up("192.0.2.1"), ("192.0.2.1",))

    def test_a_failure_keeps_what_was_known_and_is_said_once(self) -> None:
        self.look_up("192.0.2.1")
        for _ in range(3):
            self.reactor.advance(BELIEVED + 1)
            self.assertEqual(self.look_up(), ("192.0.2.1",))
        self.assertEqual(self.said(), ["warn"])
        self.reactor.advance(BELIEVED + 1)
        self.assertEqual(self.look_up("192.0.2.2"), ("192.0.2.2",))
        self.assertEqual(self.said(), ["warn", "info"])

    def test_what_is_doubted_is_looked_up_anew_but_not_for_every_dial(self) -> None:
        self.resolver.doubt("name")
        self.look_up("192.0.2.1")
        self.resolver.doubt("name")
        self.assertEqual(self.successResultOf(self.resolver.resolve("name")), ("192.0.2.1",))
        self.reactor.advance(FAILURE_BELIEVED)
        self.assertEqual(self.look_up("192.0.2.2"), ("192.0.2.2",))

    def test_each_address_is_told_of_once(self) -> None:
        self.assertEqual(self.look_up("192.0.2.1", "192.0.2.1"), ("192.0.2.1",))


class InterleaveTests(SynchronousTestCase):
    """RFC 8305, section 4."""

    def test_families_take_turns_from_the_systems_first_on(self) -> None:
        self.assertEqual(
            interleave(["::1", "::2", "::3", "1.1.1.1"]), ("::1", "1.1.1.1", "::2", "::3")
        )
        self.assertEqual(interleave(["1.1.1.1", "1.1.1.2", "::1"]), ("1.1.1.1", "::1", "1.1.1.2"))
        self.assertEqual(interleave([]), ())

    @given(st.lists(st.ip_addresses().map(str), unique=True))
    def test_none_is_lost_and_each_family_keeps_its_order(self, addresses: list[str]) -> None:
        ordered = interleave(addresses)
        for six in (True, False):
            self.assertEqual(
                [a for a in ordered if (":" in a) == six],
                [a for a in addresses if (":" in a) == six],
            )
        self.assertEqual(ordered[:1], tuple(addresses[:1]))

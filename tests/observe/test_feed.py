"""`fwdrelay.observe.feed` and `fwdrelay.observe.audience`: who is told of sessions, and how many of them."""

from __future__ import annotations

from typing import Any, cast

import attrs
from twisted.internet.task import Clock

from fwdrelay.observe.audience import Audience
from fwdrelay.observe.events import SessionEnded
from fwdrelay.observe.feed import MOST, Feed, SessionEvent, SessionOpened
from fwdrelay.observe.trace import Tracer
from tests.case import SynchronousTestCase

OPENED = SessionOpened(time=1.0, session="a-1", listener="web", client="192.0.2.1:1", local="b")
ENDED = cast("SessionEnded", object())


class FeedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.feed = Feed(self.clock)
        self.told: list[SessionEvent] = []

    def test_nobody_wants_to_know_at_first(self) -> None:
        self.assertFalse(self.feed.wanted)
        self.feed.tell(OPENED)

    def test_whoever_has_subscribed_is_told(self) -> None:
        others: list[SessionEvent] = []
        self.feed.subscribe(self.told.append)
        self.feed.subscribe(others.append)
        self.feed.tell(OPENED)
        self.assertEqual((self.told, others), ([OPENED], [OPENED]))

    def test_whoever_has_left_is_not(self) -> None:
        leave = self.feed.subscribe(self.told.append)
        stays: list[SessionEvent] = []
        self.feed.subscribe(stays.append)
        leave()
        leave()
        self.feed.tell(OPENED)
        self.assertEqual((self.told, stays), ([], [OPENED]))

    def test_one_may_leave_while_it_is_told(self) -> None:
        def once(event: SessionEvent) -> None:
            self.told.append(event)
            leave()

        leave = self.feed.subscribe(once)
        self.feed.tell(OPENED)
        self.feed.tell(OPENED)
        self.assertEqual(self.told, [OPENED])
        self.assertFalse(self.feed.wanted)

    def test_whoever_fails_is_told_no_more_and_the_others_are(self) -> None:
        def fails(event: SessionEvent) -> None:
            raise ZeroDivisionError

        leave = self.feed.subscribe(fails)
        self.feed.subscribe(self.told.append)
        self.feed.tell(OPENED)
        self.feed.tell(OPENED)
        self.assertEqual(self.told, [OPENED, OPENED])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        leave()

    def test_it_is_wanted_until_the_last_has_left(self) -> None:
        first = self.feed.subscribe(self.told.append)
        second = self.feed.subscribe(self.told.append)
        first()
        self.assertTrue(self.feed.wanted)
        second()
        second()
        self.assertFalse(self.feed.wanted)

    def test_so_many_within_a_second_and_no_more(self) -> None:
        self.clock.advance(10.5)
        self.assertEqual(
            [self.feed.has_room() for _ in range(MOST + 2)], [True] * MOST + [False] * 2
        )
        self.assertEqual(self.feed.skipped, 2)
        self.clock.advance(0.5)
        self.assertTrue(self.feed.has_room())


class AudienceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.log: list[Any] = []
        self.told: list[SessionEvent] = []
        self.audience = Audience(Feed(self.clock), Tracer(self.clock), self.log.append)
        self.made = 0

    def make(self) -> SessionEnded:
        self.made += 1
        return ENDED

    def test_log_and_subscribers_get_one_event(self) -> None:
        self.audience.feed.subscribe(self.told.append)
        self.audience.ended(self.make)
        self.assertEqual((self.log, self.told, self.made), ([ENDED], [ENDED], 1))

    def test_without_anybody_none_is_made(self) -> None:
        self.audience.log = None
        self.audience.ended(self.make)
        self.audience.opened(lambda: self.fail("nobody asked"))
        self.audience.lasts(self.make)
        self.assertEqual(self.made, 0)

    def test_the_log_gets_what_is_too_much_for_subscribers(self) -> None:
        self.audience.feed.subscribe(self.told.append)
        for _ in range(MOST + 5):
            self.audience.ended(self.make)
        self.assertEqual((len(self.log), len(self.told)), (MOST + 5, MOST))

    def test_without_a_log_none_is_made_in_vain(self) -> None:
        self.audience.log = None
        self.audience.feed.subscribe(self.told.append)
        for _ in range(MOST + 5):
            self.audience.ended(self.make)
        self.assertEqual(self.made, MOST)

    def test_subscribers_hear_of_those_that_are_opened(self) -> None:
        self.audience.feed.subscribe(self.told.append)
        self.audience.opened(lambda: OPENED)
        self.assertEqual((self.told, self.log), ([OPENED], []))

    def test_only_the_log_hears_of_those_that_last(self) -> None:
        self.audience.feed.subscribe(self.told.append)
        self.audience.lasts(self.make)
        self.assertEqual((self.told, self.log), ([], [ENDED]))

    def test_events_are_values(self) -> None:
        self.assertEqual(attrs.evolve(OPENED), OPENED)

"""
`fwdrelay.frontend.opening`: what a client says before its session can begin, to the byte and to the second.

TLS itself is in the scenarios; here is what comes before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from unittest import mock

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from fwdrelay.config import ListenerConfig, ProxyProtocolConfig, RouteConfig, Timeouts
from fwdrelay.deadlines import Deadlines
from fwdrelay.frontend.listener import ClientProtocol, Listener
from fwdrelay.frontend.opening import Opening
from fwdrelay.frontend.totals import Totals
from fwdrelay.observe.audience import Audience
from fwdrelay.observe.feed import Feed
from fwdrelay.observe.trace import Tracer
from fwdrelay.session import Reason, Session
from fwdrelay.upstream import Pool
from fwdrelay.wire import clienthello, proxyprotocol
from fwdrelay.wire.proxyprotocol import SIGNATURE, ProxyHeader
from tests.case import SynchronousTestCase
from tests.scenarios.fronts import make_hello, with_extension
from tests.upstream.pools import make_pool

HEADER = ProxyHeader(IPv4Address("TCP", "192.0.2.1", 1111), IPv4Address("TCP", "192.0.2.2", 443))
V1, V2 = HEADER.encode("v1"), HEADER.encode("v2")
HELLO = make_hello("a.example", ["h2"])


class Transport:
    """
    A transport that can be peeked at; tests say what its peer does.

    @ivar data: that is there to be read.
    @ivar limit: how much of it is looked at; None: nothing is.
    @ivar broken: what peeking finds out.
    """

    def __init__(self, client: ClientProtocol) -> None:
        self.data = b""
        self.limit: int | None = None
        self.broken: OSError | None = None
        self._client = client
        self._ended = False
        self._seen: Callable[[bytes, bool], object] | None = None
        client.transport = self

    def start_peeking(self, limit: int, seen: Callable[[bytes, bool], object]) -> None:
        assert self.limit is None
        self.limit, self._seen = limit, seen
        if self.broken is not None:
            self._client.connectionReset(self.broken)
        elif self.data or self._ended:
            self._show()

    def stop_peeking(self) -> None:
        self.limit = self._seen = None

    def take(self, count: int) -> None:
        assert count <= len(self.data)
        self.data = self.data[count:]

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.9", 9)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 80)

    def _show(self) -> None:
        if self._seen is not None:
            self._seen(self.data[: self.limit], self._ended)

    # What the peer does.

    def sends(self, data: bytes) -> None:
        self.data += data
        self._show()

    def ends(self) -> None:
        self._ended = True
        self._show()


class OpeningTestCase(SynchronousTestCase):
    """
    @ivar told: what became of it: a pool's name, a reason, or nothing yet.
    """

    def open(
        self,
        accept: Any = "off",
        *,
        routed: bool = False,
        first: bytes = b"",
        broken: OSError | None = None,
        **timeouts: float,
    ) -> None:
        """
        @param first: what is there when it begins.
        """
        self.clock = Clock()
        routes = (RouteConfig(sni=("a.example",), pool="a"),) if routed else ()
        config = ListenerConfig(
            name="front",
            listen=(),
            pool="web",
            timeouts=Timeouts(**{"handshake": 10.0, "peek": 5.0, **timeouts}),
            proxy_protocol=ProxyProtocolConfig(accept=accept),
            routes=routes,
        )
        pools = {name: make_pool("h:1", name=name) for name in ("web", "a")}
        self.deadlines = Deadlines(self.clock)
        self.listener = Listener(
            config,
            pools,
            clock=self.clock,
            pump=cast("Any", None),
            dialer=cast("Any", None),
            deadlines=self.deadlines,
            audience=Audience(Feed(self.clock), Tracer(self.clock)),
            totals=Totals(),
            left=lambda: None,
            all_active=lambda: 0,
        )
        self.client = ClientProtocol()
        self.transport = Transport(self.client)
        self.transport.data, self.transport.broken = first, broken
        self.opening = Opening(self.listener, cast("Session", self), self.client)
        self.told: str | Reason | None = None
        self.detail: str | None = None
        self.late = False
        self.client.session = cast("Session", self)
        self.opening.begin()

    # What it tells its session.

    trace = None

    def tell(self, step: str, detail: str) -> None:
        """Nobody follows it."""

    def opened(self, pool: Pool | None) -> None:
        assert self.told is None
        self.told = None if pool is None else pool.name

    def not_opened(
        self, reason: Reason, detail: str, *, late: bool = False, answered: bool = False
    ) -> None:
        assert self.told is None
        self.told, self.detail, self.late = reason, detail, late
        self.opening.give_up()

    def side_reset(self, side: ClientProtocol) -> None:
        self.not_opened(Reason.CLIENT_LEFT, str(side.reset))

    def cut(self, reason: Reason) -> None:
        assert self.told is None
        self.told = reason
        self.opening.give_up()

    def advance(self, seconds: float) -> None:
        self.clock.pump([seconds / 10] * 10)

    def assert_at_rest(self) -> None:
        """Nothing is waited for any more, and nobody looks."""
        self.assertIsNone(self.transport.limit)
        self.assertIsNone(self.opening.bucket)
        self.advance(100)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def assert_opened(self, pool: str, left: bytes, presented: ProxyHeader | None = None) -> None:
        """
        @param left: what the target gets of what there is.
        """
        self.assertEqual((self.told, self.transport.data), (pool, left))
        self.assertEqual(self.client.presented, presented)
        self.assert_at_rest()

    def assert_refused(self, reason: Reason, why: str, *, late: bool = False) -> None:
        self.assertEqual((self.told, self.late), (reason, late))
        self.assertIn(why, self.detail or "")
        self.assertIsNone(self.client.presented)
        self.assert_at_rest()

    def assert_waiting(self) -> None:
        self.assertIsNone(self.told)
        self.assertIsNotNone(self.transport.limit)

    def in_bytes(self, data: bytes) -> None:
        """Each but the last of them leaves it waiting."""
        for at in range(len(data)):
            self.assert_waiting()
            self.transport.sends(data[at : at + 1])


class HeaderTests(OpeningTestCase):
    def test_a_header_is_taken_and_what_is_behind_it_left(self) -> None:
        for accept in ("required", "optional"):
            for header in (V1, V2):
                for behind in (b"", b"data"):
                    self.open(accept, first=header + behind)
                    self.assert_opened("web", behind, HEADER)
                    self.open(accept)
                    self.in_bytes(header)
                    self.assert_opened("web", b"", HEADER)

    def test_no_more_is_looked_at_than_the_longest_has(self) -> None:
        self.open("required")
        self.assertEqual(self.transport.limit, proxyprotocol.LONGEST)
        self.cancel()

    def test_something_else_is_refused_where_one_is_required(self) -> None:
        self.open("required")
        self.transport.sends(b"GET /")
        self.assert_refused(Reason.PROXY_HEADER, "is no PROXY header")

    def test_something_else_is_left_where_one_is_optional_with_the_byte_that_says_so(self) -> None:
        for data in (b"G", b"PROPFIND"[:4], SIGNATURE[:11] + b"!"):
            self.open("optional")
            self.in_bytes(data)
            self.assert_opened("web", data)

    def test_a_wrong_one_is_refused_in_either_case(self) -> None:
        for accept in ("required", "optional"):
            self.open(accept)
            self.transport.sends(b"PROXY TCP9 ")
            self.assert_refused(Reason.PROXY_HEADER, "TCP4, TCP6 or UNKNOWN")

    def test_the_deadline_of_a_required_one_is_counted_from_the_beginning(self) -> None:
        for header, part in ((V1, 9), (V2, 13)):
            self.open("required", handshake=part + 1, peek=1)
            for byte in header[:part]:
                self.advance(1)
                self.transport.sends(bytes([byte]))
            self.assert_waiting()
            self.advance(2)
            self.assert_refused(Reason.PROXY_TIMEOUT, "was not complete in time", late=True)
        for first in (b"", V1[:5], V2[:11]):
            self.open("required", first=first)
            self.advance(11)
            self.assert_refused(Reason.PROXY_TIMEOUT, "no PROXY header in time", late=True)

    def test_an_optional_one_that_is_not_begun_in_time_is_none(self) -> None:
        for first in (b"", V1[:5], V2[:11]):
            self.open("optional", peek=5, handshake=1, first=first)
            self.advance(4.9)
            self.assert_waiting()
            self.advance(1)
            self.assert_opened("web", first)
        for first in (V1[:6], V2[:12]):
            self.open("optional", peek=5, handshake=1, first=first)
            self.advance(4.9)
            self.assert_waiting()
            self.advance(1)
            self.assert_refused(Reason.PROXY_TIMEOUT, "was not complete in time", late=True)

    def test_without_a_deadline_it_is_waited_for_as_long_as_it_takes(self) -> None:
        for accept in ("required", "optional"):
            self.open(accept, handshake=0, peek=0)
            self.advance(1_000_000)
            self.assert_waiting()
            self.transport.sends(V2)
            self.assert_opened("web", b"", HEADER)

    def test_an_end_before_it_is_whole(self) -> None:
        for accept in ("required", "optional"):
            self.open(accept, first=V1[:10])
            self.transport.ends()
            self.assert_refused(Reason.PROXY_HEADER, "breaks off")
        self.open("required")
        self.transport.ends()
        self.assert_refused(Reason.CLIENT_LEFT, "without a word")
        for first in (b"", V1[:5], V2[:11]):
            self.open("optional", first=first)
            self.transport.ends()
            self.assert_opened("web", first)

    def test_where_none_are_read_nothing_is_looked_at(self) -> None:
        self.open("off", first=V1)
        self.assert_opened("web", V1)

    def test_a_client_that_is_found_to_be_gone_has_left(self) -> None:
        self.open("required", broken=ConnectionResetError(104, "Connection reset by peer"))
        self.assert_refused(Reason.CLIENT_LEFT, "Connection reset by peer")

    def test_a_session_that_ends_meanwhile_leaves_nothing(self) -> None:
        for first in (b"", V1[:5], V2, V2 + HELLO[:99]):
            self.open("required", routed=True, first=first)
            self.cancel()

    def cancel(self) -> None:
        """As the session does when it ends."""
        self.assert_waiting()
        self.opening.give_up()
        self.assertIsNone(self.told)
        self.assert_at_rest()

    def test_one_that_ends_after_a_header_was_waited_for_in_vain_leaves_nothing(self) -> None:
        self.open("optional", routed=True, peek=5)
        self.advance(6)
        self.cancel()
        self.transport.sends(HELLO)
        self.assertIsNone(self.told)

    def test_a_defect_of_ours_ends_the_session(self) -> None:
        with mock.patch.object(proxyprotocol, "read", side_effect=ZeroDivisionError("a defect")):
            self.open("required", first=V1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIs(self.told, Reason.INTERNAL_ERROR)
        self.assert_at_rest()


class HelloTests(OpeningTestCase):
    def test_a_hello_decides_and_is_left(self) -> None:
        self.open(routed=True, first=HELLO + b"more")
        self.assert_opened("a", HELLO + b"more")
        self.assertEqual((self.client.server_name, self.client.alpn), ("a.example", ("h2",)))
        self.open(routed=True)
        self.in_bytes(HELLO)
        self.assert_opened("a", HELLO)

    def test_what_is_none_goes_the_default_way_with_the_byte_that_says_so(self) -> None:
        for data in (b"G", b"\x16\x02", HELLO[:5] + b"\x02"):
            self.open(routed=True)
            self.in_bytes(data)
            self.assert_opened("web", data)
            self.assertEqual((self.client.server_name, self.client.alpn), (None, ()))

    def test_no_more_is_looked_at_than_the_longest_has(self) -> None:
        self.open(routed=True)
        self.assertEqual(self.transport.limit, clienthello.LONGEST)
        longer = with_extension(HELLO, 0x0A0A, bytes(clienthello.LONGEST))
        self.transport.sends(longer)
        self.assert_opened("web", longer)

    def test_half_a_hello_goes_the_default_way_at_its_end_and_at_the_deadline(self) -> None:
        for first in (b"", HELLO[:1], HELLO[:-1]):
            self.open(routed=True, first=first)
            self.transport.ends()
            self.assert_opened("web", first)
            self.open(routed=True, first=first, peek=5)
            self.advance(4.9)
            self.assert_waiting()
            self.advance(1)
            self.assert_opened("web", first)

    def test_where_no_route_asks_for_one_none_is_waited_for(self) -> None:
        self.open()
        self.assert_opened("web", b"")

    def test_it_has_a_deadline_of_its_own_behind_a_header(self) -> None:
        self.open("required", routed=True, handshake=10, peek=5)
        self.advance(9)
        self.transport.sends(V2)
        self.advance(4.9)
        self.assert_waiting()
        self.transport.sends(HELLO)
        self.assert_opened("a", HELLO, HEADER)

    def test_a_client_that_is_found_to_be_gone_behind_its_header_has_left(self) -> None:
        self.open("required", routed=True)
        self.transport.broken = ConnectionResetError(104, "Connection reset by peer")
        self.transport.sends(V2)
        self.assertIs(self.told, Reason.CLIENT_LEFT)
        self.assert_at_rest()

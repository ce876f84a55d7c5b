"""`fwdrelay.frontend.listener`: who is asked for what, let in, sent where and logged as whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, cast

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from fwdrelay.config import (
    Admit,
    ListenerConfig,
    ProxyProtocolConfig,
    RouteConfig,
    Timeouts,
)
from fwdrelay.deadlines import Deadlines
from fwdrelay.frontend.listener import ClientProtocol, Listener
from fwdrelay.frontend.totals import Totals
from fwdrelay.observe.audience import Audience
from fwdrelay.observe.events import SessionEnded
from fwdrelay.observe.feed import Feed
from fwdrelay.observe.trace import Tracer
from fwdrelay.session import Reason, Session, State
from fwdrelay.tls import Peer
from fwdrelay.wire.clienthello import ClientHello
from fwdrelay.wire.proxyprotocol import ProxyHeader, local_header, read
from tests.case import SynchronousTestCase
from tests.upstream.pools import make_pool

PROXY = IPv4Address("TCP", "10.0.0.2", 5000)
HERE = IPv4Address("TCP", "10.0.0.1", 443)
CLIENT = IPv4Address("TCP", "192.0.2.1", 1111)
HEADER = ProxyHeader(CLIENT, IPv4Address("TCP", "192.0.2.254", 443))


class Transport:
    """
    Notes what it is told.

    @ivar aborted: how often it was reset.
    """

    received = 0
    heard = 0.0
    secured = None

    def __init__(self, peer: Any, first: bytes) -> None:
        self.peer = peer
        self.data = first
        self.aborted = 0
        self.paused = False

    def pauseProducing(self) -> None:
        self.paused = True

    def getPeer(self) -> Any:
        return self.peer

    def getHost(self) -> Any:
        return HERE

    def start_peeking(self, limit: int, seen: Callable[[bytes, bool], object]) -> None:
        if self.data:
            seen(self.data[:limit], False)

    def stop_peeking(self) -> None:
        """It shows nothing by itself."""

    def take(self, count: int) -> None:
        self.data = self.data[count:]

    def unregisterProducer(self) -> None:
        """There is none."""

    def abortConnection(self) -> None:
        self.aborted += 1


class NeverDialing:
    """Its dials last until they are cancelled."""

    def dial(self, pool: Any, target: Any, *others: Any) -> Deferred[Any]:
        def cancelled(_: object) -> None:
            pool.release(target)

        return Deferred(cancelled)


class Untold:
    """A session that nobody follows."""

    def tell(self, step: str, detail: str) -> None:
        """To nobody."""


class ListenerTestCase(SynchronousTestCase):
    def make(self, **config: Any) -> None:
        """
        @param config: of `ListenerConfig`.
        """
        self.clock = Clock()
        self.ended: list[SessionEnded] = []
        self.left = 0
        self.refused: Counter[Reason] = Counter()
        self.audience = Audience(Feed(self.clock), Tracer(self.clock), self.ended.append)
        self.listener = Listener(
            self.config(**config),
            {name: make_pool("h:1", name=name) for name in ("web", "a", "b")},
            clock=self.clock,
            pump=cast("Any", None),
            dialer=cast("Any", NeverDialing()),
            deadlines=Deadlines(self.clock),
            audience=self.audience,
            totals=Totals(),
            left=self.leave,
            all_active=lambda: self.listener.active,
        )

    def config(self, **config: Any) -> ListenerConfig:
        return ListenerConfig(**{"name": "front", "listen": (), "pool": "web", **config})

    def leave(self) -> None:
        self.left += 1

    def come(self, peer: Any = PROXY, first: bytes = b"") -> ClientProtocol:
        """A client connects."""
        client = ClientProtocol()
        client.factory = self.listener
        transport: Any = Transport(peer, first)
        client.makeConnection(transport)
        self.assertTrue(transport.paused)
        return client

    def session(self, client: ClientProtocol) -> Session:
        assert client.session is not None
        return client.session

    def go(self, *clients: ClientProtocol) -> None:
        """Their sessions end."""
        for client in clients:
            self.session(client).cut(Reason.STOPPED)

    def assert_refused(self, client: ClientProtocol, reason: Reason) -> None:
        self.assertIsNone(client.session)
        transport: Any = client.transport
        self.assertEqual(transport.aborted, 1)
        self.refused[reason] += 1
        self.assertEqual(self.listener.refusals.total, self.refused)

    def assert_nobody_left(self) -> None:
        self.assertEqual(self.listener.active, 0)
        self.assertEqual(self.listener._admission.active, 0)
        self.listener.refusals.stop()


def headers(accept: str, *trusted: str) -> ProxyProtocolConfig:
    return ProxyProtocolConfig(accept=cast("Any", accept), trusted=tuple(map(ip_network, trusted)))


class HeaderTests(ListenerTestCase):
    def test_whose_header_is_read(self) -> None:
        unix = UNIXAddress(None)
        mapped = IPv6Address("TCP", "::ffff:10.0.0.2", 1)
        other = IPv4Address("TCP", "10.0.0.3", 1)
        for accept in ("required", "optional"):
            for trusted, wanted in (
                ((), (PROXY, other, unix, mapped)),
                (("10.0.0.2",), (PROXY, unix, mapped)),
                (("2001:db8::/32",), (unix,)),
            ):
                self.make(proxy_protocol=headers(accept, *trusted))
                for peer in (PROXY, other, unix, mapped):
                    client = ClientProtocol()
                    client.transport = Transport(peer, b"")
                    self.assertEqual(self.listener.wants_header(client), peer in wanted)
        self.make()
        client = ClientProtocol()
        client.transport = Transport(PROXY, b"")
        self.assertFalse(self.listener.wants_header(client))

    def test_who_has_not_said_who_it_is_has_a_place_all_the_same(self) -> None:
        self.make(max_sessions=2, proxy_protocol=headers("required"))
        silent, known = self.come(), self.come(first=HEADER.encode("v2"))
        self.assertIs(self.session(silent).state, State.OPENING)
        self.assertIs(self.session(known).state, State.DIALING)
        self.assert_refused(self.come(), Reason.MAX_SESSIONS)
        self.go(silent, known)
        self.go(self.come(), self.come())
        self.assert_nobody_left()

    def test_the_real_client_is_judged_and_counted(self) -> None:
        self.make(
            proxy_protocol=headers("required"),
            admit=Admit(
                deny=(ip_network("192.0.2.128/25"), ip_network("10.0.0.0/8")), sessions_per_client=1
            ),
        )
        denied = ProxyHeader(IPv4Address("TCP", "192.0.2.200", 1), HERE).encode("v1")
        self.assert_refused(self.come(first=denied), Reason.DENIED)
        self.assertEqual(self.ended[-1].client, "192.0.2.200:1")
        one = self.come(first=HEADER.encode("v1"))
        self.assert_refused(self.come(first=HEADER.encode("v2")), Reason.MAX_SESSIONS_PER_CLIENT)
        self.go(one)
        self.go(self.come(first=HEADER.encode("v2")))
        # Who speaks for itself alone is judged by the connection.
        self.assert_refused(self.come(first=local_header("v2")), Reason.DENIED)
        self.assert_nobody_left()

    def test_who_is_not_trusted_is_refused_at_once_and_without_a_place(self) -> None:
        self.make(max_sessions=1, proxy_protocol=headers("required", "10.0.0.3"))
        self.assert_refused(self.come(first=HEADER.encode("v2")), Reason.PROXY_HEADER)
        told = self.ended[-1]
        self.assertEqual((told.client, told.code), ("10.0.0.2:5000", "PR"))
        self.assertEqual(told.error, "it is not among proxy_protocol.trusted")
        self.assertEqual(self.left, 0)
        self.go(self.come(IPv4Address("TCP", "10.0.0.3", 1)))
        self.assert_nobody_left()

    def test_who_is_not_trusted_is_the_client_where_none_is_required(self) -> None:
        self.make(
            proxy_protocol=headers("optional", "10.0.0.3"),
            admit=Admit(sessions_per_client=1),
        )
        client = self.come(first=HEADER.encode("v2"))
        self.assertIs(self.session(client).state, State.DIALING)
        transport: Any = client.transport
        self.assertEqual(transport.data, HEADER.encode("v2"))
        self.assertEqual((client.address, client.counted), ("10.0.0.2:5000", "10.0.0.2"))
        self.assert_refused(self.come(), Reason.MAX_SESSIONS_PER_CLIENT)
        self.go(client)
        self.assert_nobody_left()

    def test_whoever_follows_hears_that_one_without_a_header_was_admitted(self) -> None:
        steps: list[str] = []
        for accept in ("off", "optional"):
            self.make(proxy_protocol=headers(accept, "10.0.0.3"))
            steps.clear()
            self.audience.tracer.watch(None, lambda step: steps.append(step.step))
            client = self.come()
            self.assertEqual(steps, ["accepted", "admitted", "elected"])
            self.go(client)
            self.assertEqual(steps[-1], "ended")

    def test_who_the_client_is(self) -> None:
        client = ClientProtocol()
        client.transport = Transport(PROXY, b"")
        ipv6 = IPv6Address("TCP", "2001:db8::1", 1)
        mapped = IPv6Address("TCP", "::ffff:192.0.2.1", 1)
        for presented, address, host in (
            (None, "10.0.0.2:5000", "10.0.0.2"),
            (HEADER, "192.0.2.1:1111", "192.0.2.1"),
            (ProxyHeader(ipv6, ipv6), "[2001:db8::1]:1", "2001:db8::1"),
            (ProxyHeader(mapped, mapped), "192.0.2.1:1", "192.0.2.1"),
            (ProxyHeader(UNIXAddress(b"/c"), UNIXAddress(b"/p")), "unix:/c", None),
            (ProxyHeader(), "10.0.0.2:5000", "10.0.0.2"),
            (ProxyHeader(CLIENT, HERE, local=True), "10.0.0.2:5000", "10.0.0.2"),
        ):
            client.presented = presented
            self.assertEqual((client.address, client.host), (address, host))

    def test_what_is_told_to_the_target(self) -> None:
        client = ClientProtocol()
        client.transport = Transport(PROXY, b"")
        self.assertEqual(client.proxy_header("v1"), b"PROXY TCP4 10.0.0.2 10.0.0.1 5000 443\r\n")
        client.presented = HEADER
        self.assertEqual(read(client.proxy_header("v2")), (HEADER, 28))
        for resumed, told_of_certificate in ((False, 7), (True, 5)):
            client.peer = Peer(
                version="TLSv1.3",
                server_name="a.example",
                alpn="h2",
                identity="cn:bob",
                cipher="TLS_AES_128_GCM_SHA256",
                cn="bob",
                has_certificate=True,
                resumed=resumed,
            )
            found = read(client.proxy_header("v2"))
            assert found is not None
            sent = found[0]
            self.assertEqual((sent.source, sent.authority, sent.alpn), (CLIENT, "a.example", "h2"))
            assert sent.ssl is not None
            self.assertEqual((sent.ssl.client, sent.ssl.cn), (told_of_certificate, "bob"))


class RouteTests(ListenerTestCase):
    def client(self, name: str | None = None, *alpn: str, peer: Any = PROXY) -> ClientProtocol:
        client = ClientProtocol()
        client.transport = Transport(peer, b"")
        client.hello = ClientHello(name, alpn, ("TLSv1.3",), False)
        return client

    def assert_goes(self, pool: str | None, client: ClientProtocol) -> None:
        found = self.listener.route(cast("Any", Untold()), client)
        self.assertEqual(None if found is None else found.name, pool)

    def test_names(self) -> None:
        self.make(routes=(RouteConfig(sni=("a.example", "*.b.example"), pool="a"),))
        for name in ("a.example", "x.b.example"):
            self.assert_goes("a", self.client(name))
        for other in (
            None,
            "b.example",
            "x.a.example",
            "x.y.b.example",
            "example",
            "b.example.org",
        ):
            self.assert_goes("web", self.client(other))

    def test_protocols(self) -> None:
        self.make(routes=(RouteConfig(alpn=("h2", "h3"), pool="a"),))
        self.assert_goes("a", self.client(None, "http/1.1", "h3"))
        self.assert_goes("web", self.client(None, "http/1.1"))
        self.assert_goes("web", self.client())
        # Where TLS ends here, it matters what was agreed on.
        client = self.client(None, "http/1.1", "h2")
        for agreed, pool in (("h2", "a"), ("http/1.1", "web"), (None, "web")):
            client.peer = Peer("TLSv1.3", None, agreed, None)
            self.assert_goes(pool, client)

    def test_all_conditions_of_one_and_the_first_of_all(self) -> None:
        self.make(
            routes=(
                RouteConfig(
                    sni=("a.example",), alpn=("h2",), client=(ip_network("192.0.2.0/24"),), pool="a"
                ),
                RouteConfig(sni=("*.example",), pool="b"),
            )
        )
        client = self.client("a.example", "h2")
        self.assert_goes("b", client)
        client.presented = HEADER
        self.assert_goes("a", client)
        for name, alpn, pool in (
            ("a.example", "http/1.1", "b"),
            ("b.example", "h2", "b"),
            ("b.test", "h2", "web"),
        ):
            other = self.client(name, alpn)
            other.presented = HEADER
            self.assert_goes(pool, other)
        self.assert_goes("b", self.client("a.example", "h2", peer=UNIXAddress(None)))

    def test_without_a_default_there_may_be_none(self) -> None:
        self.make(pool="", routes=(RouteConfig(client=(ip_network("192.0.2.0/24"),), pool="a"),))
        self.assert_refused(self.come(), Reason.NO_ROUTE)
        self.go(self.come(CLIENT))
        self.assertEqual(self.ended[-1].pool, "a")
        self.assert_nobody_left()

    def test_a_hello_is_waited_for_only_where_a_route_wants_one(self) -> None:
        self.make(routes=(RouteConfig(client=(ip_network("192.0.2.0/24"),), pool="a"),))
        client = self.come()
        self.assertIs(self.session(client).state, State.DIALING)
        for route in (
            RouteConfig(sni=("a.example",), pool="a"),
            RouteConfig(alpn=("h2",), pool="a"),
        ):
            self.listener.change(
                self.config(routes=(route,), timeouts=Timeouts(peek=5)),
                {name: make_pool("h:1", name=name) for name in ("web", "a")},
                (),
                None,
            )
            other = self.come()
            self.assertIs(self.session(other).state, State.OPENING)
            self.clock.pump([1] * 6)
            self.assertIs(self.session(other).state, State.DIALING)
            self.go(other)
        self.go(client)
        self.assert_nobody_left()


class ProgressTests(ListenerTestCase):
    def wait(self, seconds: int) -> list[int]:
        """
        @return: how long sessions had lasted that were told of meanwhile, in seconds.
        """
        self.ended.clear()
        for _ in range(seconds):
            self.clock.advance(1)
        self.assertLessEqual({event.reason for event in self.ended}, {"progress"})
        return [int(event.duration_ms / 1000) for event in self.ended]

    def wants(self, interval: float) -> None:
        self.audience.log_interval = interval
        self.listener.log_interval_changed()

    def test_one_that_lasts_is_told_of_until_it_ends(self) -> None:
        self.make()
        self.wants(16.0)
        client = self.come()
        self.assertEqual(self.wait(33), [16, 32])
        self.go(client)
        self.assertEqual([event.reason for event in self.ended][-1], "stopped")
        self.assertEqual(self.wait(40), [])
        self.assert_nobody_left()

    def test_open_ones_are_told_of_as_is_wanted_now(self) -> None:
        self.make()
        client = self.come()
        self.assertEqual(self.wait(40), [])
        self.wants(16.0)
        self.assertEqual(self.wait(30), [48, 64])
        self.wants(64.0)
        self.assertEqual(self.wait(70), [128])
        self.wants(0.0)
        self.assertIsNone(client.progress)
        self.assertEqual(self.wait(130), [])
        self.go(client)
        self.assert_nobody_left()


class RefusalTests(ListenerTestCase):
    def test_who_is_refused_later_is_told_of_as_rarely_as_who_is_at_once(self) -> None:
        self.make(pool="", routes=(RouteConfig(sni=("a.example",), pool="a"),))
        for _ in range(50):
            self.come(first=b"no hello")
        self.assertEqual([each.reason for each in self.ended], ["no-route"])
        self.assertEqual(self.left, 50)
        self.assertEqual(self.listener.refusals.total[Reason.NO_ROUTE], 50)
        self.clock.advance(1)
        self.come(first=b"no hello")
        self.assertEqual(len(self.ended), 2)
        self.assert_nobody_left()

    def test_what_is_told_of_a_session(self) -> None:
        self.make(proxy_protocol=headers("required"), routes=(RouteConfig(alpn=("h2",), pool="a"),))
        client = self.come(first=HEADER.encode("v1"))
        self.assertIs(self.session(client).state, State.OPENING)
        client.hello = ClientHello("a.example", ("h2", "http/1.1"), ("TLSv1.3",), False)
        self.clock.advance(0.25)
        self.go(client)
        (told,) = self.ended
        self.assertEqual(
            (told.client, told.pool, told.code, told.sni, told.alpn, told.tls, told.duration_ms),
            ("192.0.2.1:1111", None, "KR", "a.example", "h2,http/1.1", None, 250.0),
        )
        self.assert_nobody_left()

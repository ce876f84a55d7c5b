"""Connections and their limits; what is answered is `test_api`'s business."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from fwdrelay.admin import channel, site
from fwdrelay.admin.answer import HEADERS
from fwdrelay.admin.parameters import LARGEST_BODY
from tests.admin.relays import Connection, Served, request
from tests.case import SynchronousTestCase

HEALTH = request("GET", "/healthz")


class ChannelTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.served = Served()
        self.clock = self.served.clock
        self.addCleanup(self.leaves_nothing)
        self.addCleanup(self.served.stop)

    def leaves_nothing(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.served.relay.told, [])

    def assert_refused(self, client: Connection, status: int, *words: str) -> None:
        """It is told so as JSON, with all headers, and nothing more is expected of it."""
        (response,) = client.responses()
        self.assertEqual(response.status, status)
        for word in words:
            self.assertIn(word, response.json["error"])
        for name, value in HEADERS.items():
            self.assertEqual(response.headers[name.lower()], value)
        self.assertEqual(response.headers["connection"], "close")
        self.assertTrue(client.wire.half_closed)


class RequestTests(ChannelTestCase):
    def test_one_after_the_other(self) -> None:
        client = self.served.connect()
        for _ in range(3):
            self.assertEqual(client.ask("GET", "/healthz").status, 200)
            self.assertTrue(client.open)

    def test_several_at_once(self) -> None:
        client = self.served.connect()
        client.send(HEALTH * 3)
        statuses = [response.status for response in client.responses("GET", "GET", "GET")]
        self.assertEqual(statuses, [200, 200, 200])

    def test_byte_by_byte(self) -> None:
        client = self.served.connect()
        for byte in request("POST", "/v1/check", b"{}"):
            client.send(bytes([byte]))
        (response,) = client.responses("POST")
        self.assertEqual(response.status, 200)

    def test_what_comes_while_one_is_answered_waits(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.served.relay.slow = lambda: waiting
        client = self.served.connect()
        client.send(request("GET", "/v1/status") + HEALTH)
        self.assertEqual(client.received(), b"")
        waiting.callback(None)
        statuses = [response.status for response in client.responses("GET", "GET")]
        self.assertEqual(statuses, [200, 200])

    def test_it_is_closed_where_that_is_wanted(self) -> None:
        for version, connection in (("HTTP/1.1", "close"), ("HTTP/1.0", None)):
            client = self.served.connect()
            response = client.ask("GET", "/healthz", version=version, Connection=connection)
            self.assertEqual(response.status, 200)
            self.assertFalse(client.open)

    def test_who_ends_their_side_still_gets_an_answer(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.served.relay.slow = lambda: waiting
        client = self.served.connect()
        client.send(request("GET", "/v1/status"))
        client.channel.readConnectionLost()
        self.assertTrue(client.open)
        waiting.callback(None)
        (response,) = client.responses()
        self.assertEqual(response.status, 200)
        self.assertFalse(client.open)

    def test_who_ends_their_side_without_a_question_is_let_go(self) -> None:
        for sent in (b"", b"GET / HT"):
            client = self.served.connect()
            client.send(sent)
            client.channel.readConnectionLost()
            self.assertTrue(client.wire.disconnecting)


class NonsenseTests(ChannelTestCase):
    def test_what_is_not_http(self) -> None:
        for sent in (
            b"hello\r\n",
            b"GET / HTTP/1.1 x\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST /v1/check HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            b"GET / HTTP/1.1\r\n" + b"X-Head: 0123456789\r\n" * 1000 + b"\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: 1\r\n" * 600 + b"\r\n",
        ):
            client = self.served.connect()
            client.send(sent)
            self.assert_refused(client, 400, "not HTTP/1.1")
            client.send(HEALTH)
            self.assertEqual(client.received(), b"", sent)

    def test_a_line_without_an_end(self) -> None:
        client = self.served.connect()
        client.send(b"GET /" + b"a" * 20000)
        self.assert_refused(client, 431, "a line has")

    def test_it_says_no_host(self) -> None:
        client = self.served.connect()
        response = client.ask("GET", "/healthz", Host=None)
        self.assertEqual((response.status, client.open), (400, True))
        self.assertIn("Host", response.json["error"])


class TooLargeTests(ChannelTestCase):
    def test_the_largest_there_can_be(self) -> None:
        body = b'{"now": false}'.ljust(LARGEST_BODY)
        self.assertEqual(self.served.ask("POST", "/v1/drain", body).status, 202)

    def test_one_that_says_so(self) -> None:
        client = self.served.connect()
        client.send(request("POST", "/v1/drain", Content_Length=str(LARGEST_BODY + 1)))
        self.assert_refused(client, 413, f"{LARGEST_BODY} bytes")

    def test_one_whose_length_is_no_number_that_python_reads(self) -> None:
        for length in ("9" * 5000, "0" * 5000):
            client = self.served.connect()
            client.send(request("POST", "/v1/drain", Content_Length=length, X="y"))
            self.assert_refused(client, 413, f"{LARGEST_BODY} bytes")

    def test_one_that_asks_first_is_not_told_to_go_on(self) -> None:
        client = self.served.connect()
        length, expect = str(10**9), "100-continue"
        client.send(request("POST", "/v1/drain", Content_Length=length, Expect=expect))
        self.assert_refused(client, 413)
        client = self.served.connect()
        client.send(request("POST", "/v1/drain", Content_Length="2", Expect=expect))
        self.assertEqual(client.received(), b"HTTP/1.1 100 Continue\r\n\r\n")

    def test_one_without_an_end(self) -> None:
        client = self.served.connect()
        client.send(request("POST", "/v1/drain", Transfer_Encoding="chunked"))
        for _ in range(LARGEST_BODY // 4096):
            client.send(b"1000\r\n" + bytes(4096) + b"\r\n")
        self.assertEqual(client.received(), b"")
        client.send(b"1\r\n \r\n" * 2 + b"0\r\n\r\n")
        self.assert_refused(client, 413)
        self.assertEqual(self.served.relay.asked, [])
        kept = client.channel.requests[0].content.getbuffer().nbytes
        self.assertLessEqual(kept, LARGEST_BODY)

    def test_what_still_comes_is_dropped_and_then_not_even_read(self) -> None:
        client = self.served.connect()
        client.send(request("POST", "/v1/drain", Content_Length=str(10**9)))
        sent = 0
        while client.wire.taking and sent < 10**7:
            client.send(bytes(65536))
            sent += 65536
        self.assertFalse(client.wire.taking)
        self.assertLess(sent, 10**6)
        self.assertFalse(client.wire.lost)
        self.clock.advance(channel.LINGER)
        self.assertTrue(client.wire.lost)

    def test_who_reads_it_and_leaves_has_left(self) -> None:
        client = self.served.connect()
        client.send(request("POST", "/v1/drain", Content_Length=str(10**9)))
        client.channel.readConnectionLost()
        self.assertTrue(client.wire.disconnecting)


class TimeOutTests(ChannelTestCase):
    def test_a_request_that_comes_too_slowly(self) -> None:
        for sent in (b"GET", HEALTH[:-2], request("POST", "/v1/check", b"{}")[:-1], b"\r\n"):
            client = self.served.connect()
            for byte in sent:  # each is in time; all of them are not
                client.send(bytes([byte]))
                self.clock.advance(channel.REQUEST_WITHIN / len(sent))
            self.clock.advance(0.001)
            self.assert_refused(client, 408, "within 10 seconds")
            self.clock.advance(channel.LINGER)
            self.assertTrue(client.wire.lost)

    def test_one_that_asks_nothing(self) -> None:
        for first in (b"", HEALTH):
            client = self.served.connect()
            if first:
                client.send(first)
                client.received()
            self.clock.advance(channel.IDLE - 0.1)
            self.assertTrue(client.open)
            self.clock.advance(0.1)
            self.assertTrue(client.wire.disconnecting)
            self.assertEqual(client.received(), b"")

    def test_each_request_has_its_own_time(self) -> None:
        client = self.served.connect()
        for _ in range(5):
            self.clock.advance(channel.IDLE - 1)
            client.send(HEALTH[:9])
            self.clock.advance(channel.REQUEST_WITHIN - 1)
            client.send(HEALTH[9:])
            (response,) = client.responses()
            self.assertEqual(response.status, 200)

    def test_an_answer_may_take_its_time(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.served.relay.slow = lambda: waiting
        client = self.served.connect()
        client.send(request("GET", "/v1/status"))
        self.clock.advance(1000)
        waiting.callback(None)
        (response,) = client.responses()
        self.assertEqual(response.status, 200)

    def test_who_does_not_read_is_cut(self) -> None:
        client = self.served.connect()
        client.wire.stuck = True
        client.send(HEALTH)
        self.clock.advance(channel.UNREAD - 0.1)
        self.assertFalse(client.wire.lost)
        self.clock.advance(0.1)
        self.assertTrue(client.wire.lost)

    def test_more_that_is_not_read_gives_no_more_time(self) -> None:
        client = self.served.connect()
        client.channel.pauseProducing()
        self.clock.advance(channel.UNREAD - 1)
        client.channel.pauseProducing()  # as for each write
        self.clock.advance(1)
        self.assertTrue(client.wire.lost)

    def test_who_reads_in_time_is_not(self) -> None:
        client = self.served.connect()
        client.wire.stuck = True
        client.send(HEALTH)
        self.clock.advance(channel.UNREAD - 0.1)
        client.wire.unstick()
        self.clock.advance(channel.IDLE - 0.1)
        self.assertTrue(client.open)
        client.received()
        self.assertEqual(client.ask("GET", "/healthz").status, 200)

    def test_who_does_not_take_the_last_answer_is_cut(self) -> None:
        client = self.served.connect()
        client.send(request("GET", "/healthz", Connection="close"))
        self.assertTrue(client.wire.disconnecting)
        self.clock.advance(channel.CLOSING)
        self.assertTrue(client.wire.lost)


class ManyTests(ChannelTestCase):
    def test_the_longest_idle_one_makes_room(self) -> None:
        clients = []
        for _ in range(site.MOST):
            clients.append(self.served.connect())
            self.clock.advance(0.01)
        clients[0].ask(
            "GET", "/healthz"
        )  # so it is the second that has had nothing to do for longest
        self.clock.advance(0.01)
        newest = self.served.connect()
        leaving = [client for client in clients if not client.open]
        self.assertEqual(leaving, [clients[1]])
        self.assertEqual(newest.ask("GET", "/healthz").status, 200)

    def test_hundreds_are_never_more(self) -> None:
        for _ in range(600):
            self.served.connect()
            staying = [each for each in self.served.connections if each.open]
            self.assertLessEqual(len(staying), site.MOST)

    def test_half_a_request_is_worth_more_than_none(self) -> None:
        clients = [self.served.connect() for _ in range(site.MOST)]
        for client in clients[:-1]:
            client.send(b"GET")
        self.clock.advance(1)
        self.served.connect()
        self.assertEqual([each for each in clients if not each.open], [clients[-1]])
        self.served.connections[-1].send(b"GET")
        self.served.connect()
        self.assertEqual(len([each for each in clients if not each.open]), 2)

    def test_who_is_answered_is_never_sent_away_for_another(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.served.relay.slow = lambda: waiting
        clients = [self.served.connect() for _ in range(site.MOST)]
        for client in clients:
            client.send(request("GET", "/v1/status"))
        newest = self.served.connect()
        self.assertTrue(newest.wire.lost)
        self.assertTrue(all(client.open for client in clients))
        waiting.callback(None)


class StopTests(ChannelTestCase):
    def test_idle_ones_are_closed_at_once(self) -> None:
        client = self.served.connect()
        gone = self.served.site.stop()
        self.assertFalse(client.open)
        self.assertNoResult(gone)
        client.wire.go()
        self.successResultOf(gone)

    def test_who_waits_for_an_answer_gets_it(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.served.relay.slow = lambda: waiting
        client = self.served.connect()
        client.send(request("GET", "/v1/status"))
        gone = self.served.site.stop()
        self.assertTrue(client.open)
        waiting.callback(None)
        (response,) = client.responses()
        self.assertEqual(response.status, 200)
        self.assertFalse(client.open)
        client.wire.go()
        self.successResultOf(gone)

    def test_nobody_comes_then(self) -> None:
        self.successResultOf(self.served.site.stop())
        self.assertTrue(self.served.connect().wire.lost)

    def test_the_rest_is_cut(self) -> None:
        self.served.relay.slow = Deferred
        client = self.served.connect()
        client.send(request("GET", "/v1/status"))
        gone = self.served.site.stop()
        self.served.site.abort()
        self.assertTrue(client.wire.lost)
        self.successResultOf(gone)

"""
The PROXY protocol accepted: who the client is, what is refused, what is passed on, and that what comes
behind a header is never touched.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
from contextlib import ExitStack
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from fwdrelay.wire.proxyprotocol import (
    LONGEST_V1,
    SIGNATURE,
    TLV,
    Kind,
    ProxyHeader,
    local_header,
)
from tests.pki import Authority
from tests.scenarios.fronts import (
    NEVER,
    SOON,
    FrontScenario,
    SecureClient,
    at_once,
    in_bytes,
    listener,
    pools,
)
from tests.scenarios.relay_process import (
    Upstream,
    connect,
    read_all,
    read_exactly,
    read_until_reset,
    reset,
    wait_until,
)
from tests.scenarios.scenario import MB, chunks, digest_of, receive, send_and_end

IPV4 = IPv4Address("TCP", "192.0.2.1", 40000), IPv4Address("TCP", "198.51.100.2", 443)
IPV6 = IPv6Address("TCP", "2001:db8::1", 40000), IPv6Address("TCP", "2001:db8::2", 443)
UNIX = UNIXAddress(b"/run/client.sock"), UNIXAddress(b"/run/proxy.sock")
V1 = ProxyHeader(*IPV4).encode("v1")
V2 = ProxyHeader(*IPV4).encode("v2")
OWN = None
"""Stands for the connection's own address."""
HEADERS = (
    (V1, "192.0.2.1:40000"),
    (ProxyHeader(*IPV6).encode("v1"), "[2001:db8::1]:40000"),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", OWN),
    (V2, "192.0.2.1:40000"),
    (ProxyHeader(*IPV6).encode("v2"), "[2001:db8::1]:40000"),
    (ProxyHeader(*UNIX).encode("v2"), "unix:/run/client.sock"),
    (ProxyHeader().encode("v2"), OWN),
    (local_header("v2"), OWN),
    (
        ProxyHeader(*IPV4, tlvs=(TLV(Kind.CRC32C, bytes(4)), TLV(0xE0, b"own" * 500))).encode("v2"),
        "192.0.2.1:40000",
    ),
)
"""Headers, and who the client is by them."""


def damaged() -> bytes:
    """A header whose checksum is wrong."""
    header = bytearray(ProxyHeader(*IPV4, tlvs=(TLV(Kind.CRC32C, bytes(4)),)).encode("v2"))
    header[17] ^= 1
    return bytes(header)


NO_HEADERS = (
    (b"GET / HTTP/1.1\r\n\r\n", "is no PROXY header"),
    (b"\x16\x03\x01\x02\x00", "is no PROXY header"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", "65535 is the highest port"),
    (b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n", "TCP4, TCP6 or UNKNOWN"),
    (b"PROXY UNKNOWN " + b"x" * (LONGEST_V1 - 14), f"within {LONGEST_V1} bytes"),
    (SIGNATURE + b"\x21\x11\xff\xff", "16384 is the most"),
    (SIGNATURE + b"\x31\x11\0\x0c", "version 3"),
    (SIGNATURE + b"\x21\x11\0\x04" + bytes(4), "its addresses alone"),
    (damaged(), "was damaged"),
)
"""What no header begins with, or is one, and a part of what is said about it."""


def accepting(name: str, accept: str, *, handshake: str = NEVER, peek: str = NEVER) -> str:
    """A listener that takes headers; lines that follow are of its table of them."""
    return listener(
        name,
        f'timeouts = {{ handshake = "{handshake}", peek = "{peek}" }}\n'
        f'[listener.proxy_protocol]\naccept = "{accept}"',
    )


class Headers(FrontScenario):
    def test_who_the_client_is_is_told_by_its_header_however_that_comes(self) -> None:
        ways = at_once, in_bytes
        count = 0
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required"),
                accepting("optional", "optional"),
                pools({"web": upstream}),
            ) as relay,
        ):
            for accept in ("required", "optional"):
                for header, told in HEADERS:
                    for way in ways:
                        with relay.connect_to(accept) as client:
                            own = "{}:{}".format(*client.getsockname())
                            way(client, header + b"question")
                            with upstream.accept() as server:
                                self.assertEqual(read_exactly(server, 8), b"question", header)
                                self.answer(client, server)
                                client.shutdown(socket.SHUT_WR)
                                self.assertEqual(read_all(server), b"")
                        count += 1
                        self.assert_ended(
                            relay, count, "done", "--", client=told or own, bytes_up=8
                        )

    def test_what_stands_behind_a_header_is_relayed_whole(self) -> None:
        size = 6 * MB
        with (
            Upstream() as upstream,
            self.configured(accepting("web", "required"), pools({"web": upstream})) as relay,
            relay.connect_to("web") as client,
        ):

            def upload() -> None:
                """Header and bytes in one; then the rest."""
                first, *rest = chunks(size)
                client.sendall(V2 + first)
                for chunk in rest:
                    client.sendall(chunk)
                client.shutdown(socket.SHUT_WR)

            uploading = threading.Thread(target=upload)
            uploading.start()
            with upstream.accept() as server:
                self.assertEqual(receive(server), digest_of(size))
                uploading.join()
                sending = threading.Thread(target=send_and_end, args=(server, size, 1))
                sending.start()
                self.assertEqual(receive(client), digest_of(size, 1))
                sending.join()
            self.assert_ended(relay, 1, "done", "--", bytes_up=size, bytes_down=size)

    def test_a_client_that_has_ended_behind_its_header_or_without_one_gets_its_answer(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required"),
                accepting("optional", "optional"),
                pools({"web": upstream}),
            ) as relay,
        ):
            cases = (
                ("required", V1, b"question"),
                ("required", V2, b""),
                ("optional", V2, b"question"),
                ("optional", V1, b""),
                ("optional", b"", b"question"),
                ("optional", b"", b""),
                ("optional", b"", SIGNATURE[:5]),
            )
            for count, (accept, header, request) in enumerate(cases, 1):
                with relay.connect_to(accept) as client:
                    own = "{}:{}".format(*client.getsockname())
                    client.sendall(header + request)
                    client.shutdown(socket.SHUT_WR)
                    with upstream.accept() as server:
                        self.assertEqual(read_all(server), request)
                        server.sendall(b"answer")
                    self.assertEqual(read_all(client), b"answer")
                told = "192.0.2.1:40000" if header else own
                self.assert_ended(relay, count, "done", "--", client=told)

    def test_a_header_stands_before_the_hello_where_tls_is_terminated(self) -> None:
        authority = Authority()
        folder = self.folder()
        certificate, key = authority.vouch(dns=["web.example"]).write(folder, "web")
        trust = ssl.create_default_context(cafile=authority.write(folder))
        tls = f'\n[listener.tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required") + tls,
                accepting("optional", "optional") + tls,
                pools({"web": upstream}),
            ) as relay,
        ):
            ways = (
                ("required", V2, at_once),
                ("required", V1, in_bytes),
                ("optional", V1, at_once),
                ("optional", V2, in_bytes),
                ("optional", b"", at_once),
            )
            for count, (accept, header, way) in enumerate(ways, 1):
                with relay.connect_to(accept) as client:
                    own = "{}:{}".format(*client.getsockname())
                    secure = SecureClient(client, trust, "web.example", header, way)
                    with upstream.accept() as server:
                        secure.write(b"question")
                        self.assertEqual(read_exactly(server, 8), b"question")
                        server.sendall(b"answer")
                        self.assertEqual(secure.read(6), b"answer")
                    reset(client)
                told = relay.ended(count)[-1]
                self.assertEqual(
                    (told["client"], told["tls"], told["sni"]),
                    ("192.0.2.1:40000" if header else own, "TLSv1.3", "web.example"),
                )

    def test_who_leaves_before_the_header_is_there_is_no_session(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required"),
                accepting("optional", "optional"),
                pools({"web": upstream}),
            ) as relay,
        ):
            count = 0
            for accept in ("required", "optional"):
                for beginning in (b"", V1[:20], V2[:13]):
                    relay.wait_for_descriptors(relay.at_rest)
                    with relay.connect_to(accept) as client:
                        client.sendall(beginning)
                        wait_until(lambda: relay.descriptors() > relay.at_rest)  # accepted
                        reset(client)
                    count += 1
                    self.assert_ended(relay, count, "client-left", "CR", bytes_up=0, pool=None)
            self.assert_nobody_came(upstream)

    def test_who_was_gone_when_it_was_accepted_is_no_session(self) -> None:
        """Nobody is left to wait for, though nothing comes after that to tell so."""
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required"),
                accepting("optional", "optional", peek="0"),
                pools({"web": upstream}),
            ) as relay,
        ):
            os.kill(relay.pid, signal.SIGSTOP)
            try:
                for accept in ("required", "optional"):
                    for beginning in (b"", V1[:20]):
                        with relay.connect_to(accept) as client:
                            client.sendall(beginning)
                            reset(client)
            finally:
                os.kill(relay.pid, signal.SIGCONT)
            told = {(each["reason"], each["code"]) for each in relay.ended(4)}
            self.assertEqual(told, {("client-left", "CR")})
            self.assert_nobody_came(upstream)

    def test_where_a_header_is_optional_anything_else_is_passed_on_at_once(self) -> None:
        """Half a header too, as soon as it goes on as none does."""
        with (
            Upstream() as upstream,
            self.configured(accepting("web", "optional"), pools({"web": upstream})) as relay,
        ):
            for count, first in enumerate(
                (
                    b"GET / HTTP/1.1\r\n\r\n",
                    b"PROPFIND / HTTP/1.1\r\n\r\n",
                    SIGNATURE[:-1] + b"!",
                    b"\r\n\r\nhello",
                    b"\x16\x03\x01\x02\x00",
                ),
                1,
            ):
                with relay.connect_to("web") as client:
                    in_bytes(client, first)
                    with upstream.accept() as server:
                        self.assertEqual(read_exactly(server, len(first)), first)
                        self.answer(client, server)
                        client.shutdown(socket.SHUT_WR)
                        self.assertEqual(read_all(server), b"")
                self.assert_ended(relay, count, "done", "--", bytes_up=len(first))

    def test_where_a_header_is_optional_who_says_nothing_hears_the_server(self) -> None:
        """With what there is of one, which is no header then; and so is what comes later."""
        with (
            Upstream() as upstream,
            self.configured(
                accepting("web", "optional", peek=SOON), pools({"web": upstream})
            ) as relay,
        ):
            for count, beginning in enumerate((b"", SIGNATURE[:5], V1[:5]), 1):
                with relay.connect_to("web") as client:
                    own = "{}:{}".format(*client.getsockname())
                    client.sendall(beginning)
                    with upstream.accept() as server:
                        server.sendall(b"220 hello")
                        self.assertEqual(read_exactly(client, 9), b"220 hello")
                        client.sendall(V1[5:])
                        client.shutdown(socket.SHUT_WR)
                        self.assertEqual(read_all(server), beginning + V1[5:])
                self.assert_ended(relay, count, "done", "--", client=own)

    def test_by_a_unix_socket(self) -> None:
        front, hasty = (str(Path(self.folder(), name)) for name in ("front", "hasty"))
        with (
            Upstream() as upstream,
            self.configured(
                *(
                    listener(
                        name,
                        f'timeouts = {{ handshake = "{handshake}" }}\n'
                        '[listener.proxy_protocol]\naccept = "required"\ntrusted = ["192.0.2.7"]',
                        listen=f"unix:{path}",
                    )
                    for name, path, handshake in (("front", front, NEVER), ("hasty", hasty, SOON))
                ),
                pools({"web": upstream}),
            ) as relay,
        ):
            for count, (header, told) in enumerate(HEADERS, 1):
                with connect(front) as client:
                    client.sendall(header + b"question")
                    client.shutdown(socket.SHUT_WR)
                    with upstream.accept() as server:
                        self.assertEqual(read_all(server), b"question")
                        server.sendall(b"answer")
                    self.assertEqual(read_all(client), b"answer")
                self.assert_ended(relay, count, "done", "--", client=told or "unix:")
            with connect(hasty) as client:  # which is not reset: Unix sockets know no RST
                self.assertEqual(client.recv(1), b"")
            self.assert_ended(relay, len(HEADERS) + 1, "proxy-timeout", "cR")


class Refusals(FrontScenario, every_pump=False):
    def test_where_a_header_is_required_nothing_else_is_let_in(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(accepting("web", "required"), pools({"web": upstream})) as relay,
        ):
            for count, (data, why) in enumerate(NO_HEADERS, 1):
                self.refuse(relay, "web", data)
                told = self.assert_ended(relay, count, "proxy-header", "PR", bytes_up=0, pool=None)
                self.assertIn(why, told["error"])
            self.assert_nobody_came(upstream)

    def test_a_header_that_never_comes_or_is_never_whole_is_a_time_out(self) -> None:
        none, part = "no PROXY header in time", "the PROXY header was not complete in time"
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required", handshake=SOON),
                accepting("optional", "optional", peek=SOON),
                pools({"web": upstream}),
            ) as relay,
        ):
            cases = (
                ("required", b"", none),
                ("required", V2[:6], none),
                ("required", V1[:-1], part),
                ("required", V2[:-1], part),
                ("optional", V1[:-1], part),
                ("optional", V2[:12], part),
            )
            for count, (accept, beginning, error) in enumerate(cases, 1):
                with ExitStack() as opened:
                    with relay.standing_still():
                        client = opened.enter_context(relay.connect_to(accept))
                        client.sendall(beginning)
                    self.assertEqual(read_until_reset(client), b"")
                self.assert_ended(relay, count, "proxy-timeout", "cR", error=error)
            self.assert_nobody_came(upstream)

    def test_a_header_that_breaks_off_is_none(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required"),
                accepting("optional", "optional"),
                pools({"web": upstream}),
            ) as relay,
        ):
            count = 0
            for accept in ("required", "optional"):
                for beginning in (V1[:-1], V2[:-1]):
                    with relay.connect_to(accept) as client:
                        client.sendall(beginning)
                        client.shutdown(socket.SHUT_WR)
                        self.assertEqual(read_until_reset(client), b"")
                    count += 1
                    self.assert_ended(
                        relay, count, "proxy-header", "PR", error="the PROXY header breaks off"
                    )
            with relay.connect_to("required") as client:
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(read_until_reset(client), b"")
            self.assert_ended(
                relay, count + 1, "client-left", "CR", error="it has left without a word"
            )
            self.assert_nobody_came(upstream)

    def test_where_a_header_is_optional_a_broken_one_is_refused(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(accepting("web", "optional"), pools({"web": upstream})) as relay,
        ):
            for count, (data, why) in enumerate(NO_HEADERS[2:], 1):
                self.refuse(relay, "web", data)
                told = self.assert_ended(relay, count, "proxy-header", "PR")
                self.assertIn(why, told["error"])
            self.assert_nobody_came(upstream)


class Clients(FrontScenario, every_pump=False):
    """Who it is that is let in, counted and logged."""

    def is_relayed(self, client: socket.socket, upstream: Upstream, header: bytes) -> socket.socket:
        """
        Send that, and see what comes behind it arrive.

        @return: the upstream's end of it.
        """
        client.sendall(header + b"question")
        server = upstream.accept()
        self.assertEqual(read_exactly(server, 8), b"question")
        return server

    def test_only_those_who_are_trusted_say_who_the_client_is(self) -> None:
        trusted = '\ntrusted = ["127.0.0.2", "127.0.0.128/25"]\n'
        with (
            Upstream() as upstream,
            self.configured(
                accepting("required", "required") + trusted,
                accepting("optional", "optional") + trusted,
                pools({"web": upstream}),
            ) as relay,
        ):
            count = 0
            for accept in ("required", "optional"):
                for source in ("127.0.0.2", "127.0.0.200"):
                    with (
                        connect(relay.listener(accept), source=source) as client,
                        self.is_relayed(client, upstream, V2) as server,
                    ):
                        client.shutdown(socket.SHUT_WR)
                        self.assertEqual(read_all(server), b"")
                    count += 1
                    self.assert_ended(relay, count, "done", "--", client="192.0.2.1:40000")
            for header in (V2, b""):
                self.refuse(relay, "required", header, source="127.0.0.3")
                count += 1
                told = self.assert_ended(
                    relay,
                    count,
                    "proxy-header",
                    "PR",
                    error="it is not among proxy_protocol.trusted",
                )
                self.assertTrue(told["client"].startswith("127.0.0.3:"))
            # Whatever it says is for the target, which is at once there to hear it.
            for said in (V1, V2, b"hello", b""):
                with (
                    connect(relay.listener("optional"), source="127.0.0.3") as client,
                    upstream.accept() as server,
                ):
                    client.sendall(said)
                    client.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(server), said)
                count += 1
                told = self.assert_ended(relay, count, "done", "--")
                self.assertTrue(told["client"].startswith("127.0.0.3:"))

    def test_who_may_enter_is_decided_by_who_the_client_is(self) -> None:
        def admitting(name: str, line: str) -> str:
            return f"{accepting(name, 'required')}\n[listener.admit]\n{line}\n"

        with (
            Upstream() as upstream,
            self.configured(
                admitting("deny", 'deny = ["192.0.2.0/24"]'),
                admitting("allow", 'allow = ["192.0.2.0/24", "127.0.0.1"]'),
                admitting("few", "sessions_per_client = 1"),
                pools({"web": upstream}),
            ) as relay,
        ):

            def one_is_relayed(name: str, header: bytes) -> None:
                with (
                    relay.connect_to(name) as client,
                    self.is_relayed(client, upstream, header) as server,
                ):
                    client.shutdown(socket.SHUT_WR)
                    self.assertEqual(read_all(server), b"")

            other = ProxyHeader(*IPV6).encode("v2")
            one_is_relayed("deny", other)
            one_is_relayed("allow", V1)
            one_is_relayed("allow", local_header("v2"))  # the proxy's own, whose address it is
            relay.ended(3)
            for count, (name, header) in enumerate((("deny", V1), ("allow", other)), 4):
                self.refuse(relay, name, header + b"question")
                client = "192.0.2.1:40000" if header == V1 else "[2001:db8::1]:40000"
                self.assert_ended(relay, count, "denied", "PR", client=client)
            with relay.connect_to("few") as first, self.is_relayed(first, upstream, V1):
                self.refuse(relay, "few", V2)
                self.assert_ended(
                    relay, 6, "max-sessions-per-client", "PR", client="192.0.2.1:40000"
                )
                one_is_relayed("few", other)
            relay.ended(8)
            one_is_relayed("few", V2)
            self.assert_nobody_came(upstream)

    def test_who_is_waited_for_takes_a_place(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(
                listener("web", 'max_sessions = 2\n[listener.proxy_protocol]\naccept = "optional"'),
                pools({"web": upstream}),
            ) as relay,
        ):
            with relay.connect_to("web") as first, relay.connect_to("web") as second:
                wait_until(lambda: relay.descriptors() >= relay.at_rest + 2)
                self.refuse(relay, "web")
                self.assert_ended(relay, 1, "max-sessions", "PR", sessions=3)
                with self.is_relayed(first, upstream, V1):
                    self.refuse(relay, "web")
                first.close()
                # Of those who are refused one is named in a second: it may be the second line, or not.
                relay.wait_for_line('"reason":"done"')
                reset(second)
            wait_until(lambda: any('"reason":"client-left"' in line for line in relay.lines))
            with ExitStack() as sessions:
                for _ in range(2):
                    client = sessions.enter_context(relay.connect_to("web"))
                    sessions.enter_context(self.is_relayed(client, upstream, V2))

    def test_who_is_waited_for_goes_where_the_newest_configuration_says(self) -> None:
        def text(pool: str) -> str:
            return listener(
                "web", '[listener.proxy_protocol]\naccept = "required"', pool=pool
            ) + pools({"old": old, "new": new})

        with Upstream() as old, Upstream() as new, self.configured(text("old")) as relay:
            with relay.connect_to("web") as client:
                client.sendall(V1[:9])
                wait_until(lambda: relay.descriptors() > relay.at_rest)
                relay.reload(text("new"))
                with self.is_relayed(client, new, V1[9:]) as server:
                    self.answer(client, server)
            told = relay.ended()[0]
            self.assertEqual((told["pool"], told["client"]), ("new", "192.0.2.1:40000"))
            self.assert_nobody_came(old)

    def test_its_lifetime_and_a_drain_end_who_is_waited_for(self) -> None:
        with (
            Upstream() as upstream,
            self.configured(
                accepting("forever", "required", handshake="0"),
                listener(
                    "short",
                    f'timeouts = {{ handshake = "{NEVER}", lifetime = "{SOON}" }}\n'
                    '[listener.proxy_protocol]\naccept = "required"',
                ),
                pools({"web": upstream}),
                relay=f'drain_timeout = "{SOON}"',
            ) as relay,
            relay.connect_to("forever") as client,
        ):
            client.sendall(V1[:9])
            self.refuse(relay, "short", V2[:9])
            self.assert_ended(relay, 1, "lifetime", "PR")
            relay.signal(signal.SIGTERM)
            self.assertEqual(read_until_reset(client), b"")
            self.assert_ended(relay, 2, "drain-timeout", "KR")

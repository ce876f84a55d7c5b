"""Following single connections: what is told of each kind of decision, and of whom."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.pki import Authority
from tests.scenarios.admin import Admin, Events
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.fronts import FrontScenario, listener, make_hello, pools
from tests.scenarios.programs import free_port
from tests.scenarios.relay_process import (
    Upstream,
    read_until_reset,
    reset,
)

ADMIN = 'admin = "127.0.0.1:0"'
EVERYBODY = "/v1/trace"
REFUSED = 20
"""So many that they are not all named, however long they take."""


def steps_of(events: Events) -> list[tuple[str, str]]:
    """The steps of the session that is told of next, up to its end, with what each tells."""
    told: list[tuple[str, str]] = []
    while not told or told[-1][0] != "ended":
        step = events.next("trace")
        told.append((step["step"], step["detail"]))
    return told


class Trace(FrontScenario):
    @contextmanager
    def followed(self, relay: ConfiguredRelay, path: str = EVERYBODY) -> Iterator[Events]:
        with Admin.of(relay).listening(path) as events:
            self.assertEqual(events.block(), ": following")
            yield events

    def assert_told(self, told: list[tuple[str, str]], **expected: str) -> None:
        """@param expected: words that are told in a step of that name, with `_` for `-`."""
        details: dict[str, str] = {}
        for step, detail in told:
            details[step] = f"{details[step]} | {detail}" if step in details else detail
        for step, words in expected.items():
            self.assertIn(words, details[step.replace("_", "-")], told)

    def test_the_first_that_answers_after_one_that_does_not(self) -> None:
        with Upstream() as upstream:
            nobody = f"127.0.0.1:{free_port()}"
            pool = f'[pool.web]\ntargets = ["{nobody}", "{upstream.target}"]\nbalance = "first"\n'
            with (
                self.configured(listener("web"), pool, relay=ADMIN) as relay,
                self.followed(relay) as events,
            ):
                with relay.connect_to("web") as client, upstream.accept() as server:
                    client.sendall(b"question")
                    self.answer(client, server)
                told = steps_of(events)
                self.assertEqual(
                    [step for step, _ in told][:7],
                    [
                        "accepted",
                        "admitted",
                        "elected",
                        "dialing",
                        "dial-failed",
                        "elected",
                        "dialing",
                    ],
                )
                self.assert_told(
                    told,
                    accepted="at 127.0.0.1:",
                    admitted="1 session now",
                    elected=f"{nobody}: by first among 2",
                    dial_failed=f"{nobody}: Connection refused (refused)",
                    dialing=upstream.target,
                    connected=upstream.target,
                    first_byte_up="8 bytes so far",
                    first_byte_down="6 bytes so far",
                    ended="8 bytes up, 6 down",
                )
                self.assertIn(
                    f"{upstream.target}: the only one left; {nobody} was tried", told[5][1]
                )

    def test_who_is_matched_by_a_header_is_followed_from_its_beginning(self) -> None:
        accepts = '[listener.proxy_protocol]\naccept = "required"\n'
        with (
            Upstream() as upstream,
            self.configured(
                listener("web", accepts), pools({"web": upstream}), relay=ADMIN
            ) as relay,
            self.followed(relay, "/v1/trace?client=192.0.2.0/24") as events,
        ):
            for source in ("198.51.100.1", "192.0.2.7"):
                with relay.connect_to("web") as client:
                    client.sendall(f"PROXY TCP4 {source} 192.0.2.1 1000 80\r\n".encode())
                    with upstream.accept() as server:
                        self.answer(client, server)
            step = events.next("trace")
            self.assertEqual((step["step"], step["client"]), ("accepted", "192.0.2.7:1000"))
            self.assert_told(
                steps_of(events),
                header="the client is 192.0.2.7:1000",
                admitted="now",
                ended="6 down",
            )

    def test_a_hello_and_where_it_leads(self) -> None:
        lines = '[[listener.route]]\nsni = ["db.example"]\npool = "db"\n'
        with (
            Upstream() as web,
            Upstream() as db,
            self.configured(
                listener("web", lines), pools({"web": web, "db": db}), relay=ADMIN
            ) as relay,
            self.followed(relay) as events,
        ):
            for name, upstream, route in (
                ("db.example", db, "to pool db, by route[0]"),
                ("web.example", web, "to pool web, as no route takes it"),
            ):
                with relay.connect_to("web") as client:
                    client.sendall(make_hello(name))
                    with upstream.accept() as server:
                        self.answer(client, server)
                        reset(client)
                self.assert_told(
                    steps_of(events),
                    hello=f"asks for {name}",
                    routed=route,
                    client_reset="reset",
                )

    def test_a_handshake(self) -> None:
        certificate, key = Authority().vouch("a.example").write(self.folder(), "web")
        lines = f'[listener.tls]\ncertificate = "{certificate}"\nkey = "{key}"\n'
        with (
            Upstream() as upstream,
            self.configured(listener("web", lines), pools({"web": upstream}), relay=ADMIN) as relay,
            self.followed(relay) as events,
        ):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with (
                context.wrap_socket(relay.connect_to("web"), server_hostname="a.example") as client,
                upstream.accept() as server,
            ):
                self.answer(client, server)
            self.assert_told(steps_of(events), hello="asks for a.example", tls="TLSv1.3, TLS_")
            with relay.connect_to("web") as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                self.assert_told(
                    steps_of(events), hello="no ClientHello", refused="", ended="tls-failed"
                )

    def test_those_who_may_not_enter(self) -> None:
        lines = 'max_sessions = 1\n[listener.admit]\ndeny = ["127.0.0.2"]\n'
        with (
            Upstream() as upstream,
            self.configured(listener("web", lines), pools({"web": upstream}), relay=ADMIN) as relay,
        ):
            with self.followed(relay) as events:
                # Also those of which the log says only how many there were: it names one in a second.
                for _ in range(REFUSED):
                    self.refuse(relay, "web", source="127.0.0.2")
                    told = steps_of(events)
                    self.assertEqual([step for step, _ in told], ["accepted", "refused", "ended"])
                    self.assert_told(told, ended="denied (PR)")
            refused: list[Any] = [entry for entry in relay.ended(1) if entry["reason"] == "denied"]
            self.assertLess(len(refused), REFUSED)

    def test_one_that_waits_for_a_place(self) -> None:
        with Upstream() as upstream:
            pool = f'[pool.web]\ntargets = ["{upstream.target}"]\nmax_sessions = 1\nqueue = "1h"\n'
            with (
                self.configured(listener("web"), pool, relay=ADMIN) as relay,
                self.followed(relay) as events,
            ):
                admin = Admin.of(relay)
                first, server = relay.connect_to("web"), upstream.accept()
                with first, server:
                    self.answer(first, server)
                    with relay.connect_to("web") as second:
                        while (step := events.next("trace"))["step"] != "queued":
                            pass
                        self.assertIn("as many sessions as it may", step["detail"])
                        [_, mine] = admin.get("/v1/sessions")["sessions"]
                        self.assertEqual(
                            (mine["state"], mine["session"]), ("queued", step["session"])
                        )
                        admin.ask("DELETE", f"/v1/sessions/{step['session']}")
                        self.assertEqual(read_until_reset(second), b"")
                        while (step := events.next("trace"))["step"] != "ended":
                            pass
                        self.assertIn("killed (KQ)", step["detail"])

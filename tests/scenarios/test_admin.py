"""The admin API of a running relay: what it shows and steers, who may ask, and what it costs at most."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.scenarios.admin import Admin, head, read_answer
from tests.scenarios.configured import ConfiguredRelay
from tests.scenarios.fronts import listener
from tests.scenarios.relay_process import (
    PATIENCE,
    TROUBLE,
    TWISTD,
    RelayProcess,
    Upstream,
    read_all,
    read_exactly,
    read_until_reset,
    wait_until,
)
from tests.scenarios.scenario import Scenario
from tests.scenarios.tls_ends import authority, client_context, relays_own

ADMIN = ("--admin", "127.0.0.1:0")
EX_USAGE, EX_UNAVAILABLE = 64, 69


class SeeingAndSteering(Scenario, every_pump=False):
    def test_a_session_is_seen_and_ended(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, *ADMIN) as relay,
            self.session(relay, upstream) as (client, server),
        ):
            admin = Admin.of(relay)
            client.sendall(b"to there")
            read_exactly(server, 8)
            server.sendall(b"and back")
            read_exactly(client, 8)
            shown = admin.get("/v1/sessions?client=127.0.0.0/8&listener=main")
            self.assertEqual(shown["count"], 1)
            (session,) = shown["sessions"]
            own = client.getsockname()
            self.assertEqual(session["client"], f"{own[0]}:{own[1]}")
            self.assertEqual(session["target"], upstream.target)
            self.assertEqual((session["bytes_up"], session["bytes_down"]), (8, 8))
            self.assertEqual(admin.get("/v1/sessions?client=10.0.0.0/8")["count"], 0)
            self.assertEqual(admin.get("/v1/status")["totals"]["bytes_up"], 8)
            answer = admin.ask("DELETE", f"/v1/sessions/{session['session']}")
            self.assertEqual((answer.status, answer.json["session"]), (200, session["session"]))
            self.assertEqual(read_until_reset(client), b"")
            (entry,) = relay.ended()
            self.assertEqual((entry["session"], entry["code"]), (session["session"], "KD"))
            answer = admin.ask("DELETE", f"/v1/sessions/{session['session']}")
            self.assertEqual(answer.status, 404)
            self.assertIn(session["session"], answer.json["error"])
            relay.wait_for(
                lambda line: "By 127.0.0.1:" in line and f"end session {session['session']}" in line
            )

    def test_a_target_is_drained_and_comes_back(self) -> None:
        with (
            Upstream() as one,
            Upstream() as two,
            self.relaying("--target", one.target, "--target", two.target, *ADMIN) as relay,
            contextlib.ExitStack() as opened,
        ):
            admin = Admin.of(relay)
            path = f"/v1/pools/main/targets/{one.target}"
            answer = admin.ask("PATCH", path, {"state": "drain"})
            self.assertEqual((answer.status, answer.json["state"]), (200, "drain"))
            for _ in range(4):
                opened.enter_context(relay.connect())
                opened.enter_context(two.accept())
            answer = admin.ask("PATCH", path, {"state": "ready", "weight": 3})
            self.assertEqual((answer.json["state"], answer.json["weight"]), ("ready", 3))
            for _ in range(4):
                opened.enter_context(relay.connect())
            for upstream in (one, one, one, two):
                opened.enter_context(upstream.accept())
            (pool,) = admin.get("/v1/pools")["pools"]
            self.assertEqual([each["sessions"] for each in pool["targets"]], [3, 5])

    def test_the_configuration_is_checked_and_read_anew(self) -> None:
        with Upstream() as upstream:
            right = (
                f'[relay]\nadmin = "127.0.0.1:0"\n{listener("web")}\n[pool.web]\n'
                f'targets = ["{upstream.target}"]\n'
            )
            with ConfiguredRelay(self.path("relay.toml"), right) as relay:
                admin = Admin.of(relay)
                answer = admin.ask("POST", "/v1/reload")
                self.assertEqual(
                    (answer.status, answer.json), (200, {"changed": "nothing in it has changed"})
                )
                relay.write(right.replace("targets", "tragets"))
                for path, status in (("/v1/check", 200), ("/v1/reload", 422)):
                    answer = admin.ask("POST", path)
                    self.assertEqual(answer.status, status)
                    self.assertIn("tragets", " ".join(answer.json["errors"]))
                relay.write(right + "max_sessions = 9\n")
                self.assertTrue(admin.ask("POST", "/v1/check").json["okay"])
                answer = admin.ask("POST", "/v1/reload")
                self.assertEqual(answer.json, {"changed": "pool web changed"})
                reloads = admin.get("/v1/status")["reloads"]
                self.assertEqual((reloads["success"], reloads["failure"]), (2, 1))

    def test_events(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, *ADMIN) as relay,
        ):
            admin = Admin.of(relay)
            with admin.listening() as events:
                self.assertIn("text/event-stream", events.head)
                self.assertEqual(events.block(), "retry: 1000")
                self.assertEqual(events.next("status")["totals"]["sessions"], 0)
                with self.session(relay, upstream) as (client, server):
                    opened = events.next("session")
                    self.assertEqual(opened["event"], "opened")
                    client.sendall(b"hello")
                    read_exactly(server, 5)
                    while (status := events.next("status"))["totals"]["bytes_up"] < 5:
                        pass
                    self.assertEqual(status["pools"][0]["targets"][0]["sessions"], 1)
                ended = events.next("session")
                self.assertEqual((ended["event"], ended["bytes_up"]), ("ended", 5))
                self.assertEqual(ended["session"], opened["session"])
                (entry,) = relay.ended()
                self.assertEqual({**entry, "event": "ended"}, ended)

    def test_one_connection_is_followed(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, *ADMIN) as relay,
        ):
            admin = Admin.of(relay)
            with (
                admin.listening("/v1/trace?client=127.0.0.0/8") as ours,
                admin.listening("/v1/trace?client=10.0.0.0/8") as others,
            ):
                self.assertEqual((ours.block(), others.block()), (": following", ": following"))
                with self.session(relay, upstream) as (client, server):
                    client.sendall(b"hello")
                    read_exactly(server, 5)
                steps = []
                while "ended" not in steps:
                    steps.append(ours.next("trace")["step"])
                self.assertEqual(steps[0], "accepted")
                for step in ("elected", "connected", "first-byte-up"):
                    self.assertIn(step, steps)
                relay.stop()
                self.assertEqual(list(others), [])


class Stopping(Scenario, every_pump=False):
    def test_it_answers_while_the_relay_drains(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, *ADMIN) as relay,
            self.session(relay, upstream) as (client, _),
        ):
            admin = Admin.of(relay)
            self.assertEqual(admin.get("/readyz"), {"status": "ready"})
            with admin.listening() as events:
                events.next("status")
                relay.signal(signal.SIGTERM)
                relay.wait_for(lambda line: "Draining" in line)
                answer = admin.ask("GET", "/readyz")
                self.assertEqual((answer.status, answer.json), (503, {"status": "draining"}))
                self.assertEqual(admin.get("/healthz"), {"status": "ok"})
                self.assertEqual(admin.get("/v1/status")["state"], "draining")
                self.assertEqual(admin.ask("POST", "/v1/reload").status, 409)
                self.assertEqual(admin.ask("POST", "/v1/drain").status, 202)
                while events.next("status")["state"] != "draining":
                    pass
                (session,) = admin.get("/v1/sessions")["sessions"]
                self.assertEqual(
                    admin.ask("DELETE", f"/v1/sessions/{session['session']}").status, 200
                )
                self.assertEqual(read_until_reset(client), b"")
                list(events)
                self.assertTrue(events.ended)
            relay.stop()
            with self.assertRaises(ConnectionRefusedError):
                admin.connect()

    def test_it_is_told_to(self) -> None:
        for body in (None, {"now": True}):
            with (
                Upstream() as upstream,
                self.relaying("--target", upstream.target, *ADMIN) as relay,
                self.session(relay, upstream) as (client, server),
            ):
                admin = Admin.of(relay)
                idle = admin.connect()
                with idle:
                    answer = admin.ask("POST", "/v1/drain", body)
                    self.assertEqual((answer.status, answer.json), (202, {"state": "draining"}))
                    if body is None:
                        client.close()
                        self.assertEqual(read_all(server), b"")
                        server.close()
                    else:
                        self.assertEqual(read_until_reset(client), b"")
                    self.assertEqual(relay.process.wait(PATIENCE), 0)
                relay.stop()


class WhoMayAsk(Scenario, every_pump=False):
    def test_no_other_page_by_tcp(self) -> None:
        with self.relaying("--demo", *ADMIN) as relay:
            admin = Admin.of(relay)
            for headers, status in (
                ({"Host": "evil.example"}, 403),
                ({"Host": None}, 400),
                ({"Origin": "http://evil.example"}, 403),
                ({"Sec_Fetch_Site": "cross-site"}, 403),
                ({"Host": "127.0.0.1:9678", "Origin": "http://127.0.0.1:9678"}, 202),
            ):
                answer = admin.ask("POST", "/v1/drain", **headers)
                self.assertEqual(answer.status, status, headers)
                self.assertEqual(answer.headers["server"], "fwdrelay")
                self.assertEqual(answer.headers["x-frame-options"], "DENY")
            self.assertEqual(relay.process.wait(PATIENCE), 0)

    def test_only_with_the_token(self) -> None:
        token = self.path("token")
        token.write_text("s3cret\n")
        token.chmod(0o600)
        options = ("--admin", "0.0.0.0:0", "--admin-token-file", str(token))
        with self.relaying("--demo", *options) as relay:
            said = Admin.of(relay).address
            admin = Admin(("127.0.0.1", int(said[1])))
            self.assertEqual(admin.get("/healthz"), {"status": "ok"})
            answer = admin.ask("GET", "/v1/status", Host="relay.example")
            self.assertEqual(answer.status, 401)
            self.assertIn("Basic", answer.headers["www-authenticate"])
            right = admin.ask(
                "GET", "/v1/status", Host="relay.example", Authorization="Bearer s3cret"
            )
            self.assertEqual(right.status, 200)
            wrong = admin.ask("GET", "/v1/status", Authorization="Bearer guess")
            self.assertEqual(wrong.status, 401)
            relay.wait_for(lambda line: "has shown a wrong token" in line)
            token.write_text("another\n")
            relay.signal(signal.SIGHUP)
            wait_until(
                lambda: admin.ask("GET", "/v1/status", Authorization="Bearer another").status == 200
            )

    def test_by_a_unix_socket(self) -> None:
        path = self.path("admin.sock")
        with self.relaying("--demo", "--admin", f"unix:{path}") as relay:
            admin = Admin.of(relay)
            self.assertEqual(admin.address, str(path))
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o660)
            self.assertEqual(admin.ask("GET", "/v1/status", Host="whatever").status, 200)
            self.assertEqual(admin.ask("POST", "/v1/reload").status, 200)
            relay.wait_for(lambda line: f"By uid {os.getuid()} (pid {os.getpid()})" in line)
        self.assertFalse(path.exists())

    def test_behind_tls_of_the_relay_itself(self) -> None:
        folder = Path(self.folder())
        relays_own().write(folder, "relay")
        authority().write(folder)
        socket_path = folder / "admin.sock"
        tls = (
            '[listener.tls]\ncertificate = "relay.pem"\nkey = "relay.key"\nclient_ca = "ca.pem"\n'
            'allow_identities = ["cn:operator"]'
        )
        text = (
            f'[relay]\nadmin = "unix:{socket_path}"\n'
            + listener("operators", tls, pool="admin")
            + f'[pool.admin]\ntargets = ["unix:{socket_path}"]\n'
        )
        context = client_context(who=authority().vouch("operator"))
        with ConfiguredRelay(folder / "relay.toml", text) as relay:
            for origin, status in (
                (f"https://localhost:{relay.port}", 200),
                ("https://localhost", 403),
            ):
                with (
                    relay.connect() as plain,
                    context.wrap_socket(plain, server_hostname="localhost") as secure,
                ):
                    host = f"localhost:{relay.port}"
                    secure.sendall(head("GET", "/v1/status", Host=host, Origin=origin))
                    self.assertEqual(read_answer(secure).status, status)


class Limits(Scenario, every_pump=False):
    def test_requests_that_cost_too_much(self) -> None:
        with self.relaying("--demo", *ADMIN) as relay:
            admin = Admin.of(relay)
            before = relay.memory()
            with admin.connect() as endless:
                endless.sendall(head("POST", "/v1/drain", Transfer_Encoding="chunked"))
                chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
                sent, most = 0, 4000  # more than the kernel keeps for a relay that stands still
                with contextlib.suppress(OSError):
                    while sent < most:
                        endless.sendall(chunk)
                        sent += 1
                self.assertLess(sent, most)
            with admin.connect() as large:
                large.sendall(head("POST", "/v1/drain", Content_Length="65537"))
                answer = read_answer(large)
                self.assertEqual(answer.status, 413)
                self.assertIn("65536", answer.json["error"])
            with admin.connect() as chunked:
                chunked.sendall(head("POST", "/v1/drain", Transfer_Encoding="chunked"))
                chunked.sendall(chunk + b"1\r\nx")
                self.assertEqual(read_answer(chunked).status, 413)
            with admin.connect() as long:
                long.sendall(b"GET /" + b"a" * 20000)
                self.assertEqual(read_answer(long).status, 431)
            with admin.connect() as nonsense:
                nonsense.sendall(b"\x16\x03\x01\x00\n\r\n")
                self.assertEqual(read_answer(nonsense).status, 400)
            self.assertEqual(admin.get("/readyz"), {"status": "ready"})
            self.assertLess(relay.memory() - before, 20 << 20)

    def test_requests_that_take_too_long(self) -> None:
        with self.relaying("--demo", *ADMIN) as relay:
            admin = Admin.of(relay)
            with admin.connect() as slow, admin.connect() as silent:
                slow.sendall(b"GET /healthz HTTP/1.1\r\n")
                answer = read_answer(slow)
                self.assertEqual(answer.status, 408)
                self.assertEqual(slow.recv(1), b"")
                self.assertEqual(silent.recv(1), b"")

    def test_answers_come_to_who_has_ended_their_side(self) -> None:
        with self.relaying("--demo", *ADMIN) as relay, Admin.of(relay).connect() as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            self.assertTrue(read_all(client).endswith(b'{"status":"ok"}\n'))

    def test_a_thousand_who_do_nothing(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 2000:
            self.skipTest("too few descriptors may be had")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with self.relaying("--demo", *ADMIN) as relay, contextlib.ExitStack() as opened:
            admin = Admin.of(relay)
            listening = []
            for _ in range(1000):
                sock = opened.enter_context(admin.connect())
                sock.sendall(head("GET", "/v1/events"))
                listening.append(sock)
            told = [sock.recv(12) for sock in listening]
            self.assertEqual(told.count(b"HTTP/1.1 200"), 64)
            self.assertEqual(told.count(b"HTTP/1.1 503"), 936)
            self.assertEqual(admin.get("/healthz"), {"status": "ok"})
            for _ in range(1000):
                opened.enter_context(admin.connect())
            relay.wait_for_descriptors(relay.at_rest + 260)
            self.assertEqual(admin.get("/healthz"), {"status": "ok"})

    def test_one_who_listens_and_never_reads(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, *ADMIN, "--access-log", "off") as relay,
        ):
            admin = Admin.of(relay)
            with (
                admin.listening("/v1/trace", receive_buffer=4096) as deaf,
                admin.listening("/v1/trace") as other,
            ):
                deaf.block()

                def come_and_go(sessions: int) -> int:
                    """How many bytes of steps that makes."""
                    said = 0
                    for _ in range(sessions):
                        with self.session(relay, upstream) as (client, server):
                            client.close()
                            read_all(server)
                        step = ""
                        while step != "ended":
                            told = other.next("trace")
                            step = told["step"]
                            said += len(str(told))
                    return said

                said = come_and_go(100)
                before = relay.memory()
                while said < 2_000_000:
                    said += come_and_go(100)
                self.assertLess(relay.memory() - before, 4 << 20)
                dropped = deaf.next("dropped")["events"]
                self.assertGreater(dropped, 100)


class Saturated(Scenario):
    def test_it_answers_when_sessions_have_taken_all_descriptors(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, *ADMIN) as relay,
            contextlib.ExitStack() as opened,
        ):
            admin = Admin.of(relay)
            resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (relay.at_rest + 20, 4096))
            for _ in range(30):
                opened.enter_context(relay.connect())
            relay.wait_for(lambda line: "Can't accept" in line)
            for _ in range(20):  # one after the other: what the reserve gives it gets back
                self.assertEqual(admin.get("/healthz"), {"status": "ok"})
            with admin.listening() as events, contextlib.ExitStack() as idle:
                events.next("status")
                for _ in range(20):  # more than there are in the reserve: the idle ones make room
                    idle.enter_context(admin.connect())
                self.assertEqual(admin.get("/v1/status")["state"], "running")
                sessions = admin.get("/v1/sessions?limit=0")["sessions"]
                self.assertGreater(len(sessions), 5)
                answer = admin.ask("DELETE", f"/v1/sessions/{sessions[0]['session']}")
                self.assertEqual(answer.status, 200)
                self.assertEqual(admin.ask("GET", "/metrics").status, 200)
                while events.next("session")["event"] != "ended":
                    pass
            relay.wait_for(lambda line: sessions[0]["session"] in line and '"KD"' in line)
            upstream.socket.close()  # and with it all that it has not accepted


class StartUp(Scenario, every_pump=False):
    def fails(self, status: int, *options: str, saying: tuple[str, ...]) -> None:
        folder = self.folder()
        done = subprocess.run(
            [
                sys.executable,
                *TWISTD[-2:],
                "-n",
                f"--pidfile={folder}/pid",
                "fwdrelay",
                "--port",
                "0",
                "--demo",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        (line,) = done.stderr.splitlines()
        for part in saying:
            self.assertIn(part, line)
        self.assertIsNone(TROUBLE.search(done.stdout + done.stderr), done.stdout + done.stderr)
        self.assertEqual(done.returncode, status)

    def test_where_somebody_else_answers(self) -> None:
        path = f"unix:{self.path('admin.sock')}"
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            self.relaying("--demo", "--admin", path) as relay,
        ):
            port = f"127.0.0.1:{taken.getsockname()[1]}"
            for admin in (port, path):
                saying = (f"cannot listen on {admin} (admin): Address already in use",)
                self.fails(EX_UNAVAILABLE, "--admin", admin, saying=saying)
            self.assertEqual(Admin.of(relay).get("/healthz"), {"status": "ok"})

    def test_where_a_relay_has_died(self) -> None:
        path = self.path("admin.sock")
        killed = RelayProcess("--demo", "--admin", f"unix:{path}")
        killed.kill()
        self.assertTrue(path.exists())
        with self.relaying("--demo", "--admin", f"unix:{path}") as relay:
            self.assertEqual(Admin.of(relay).get("/healthz"), {"status": "ok"})

    def test_without_a_token(self) -> None:
        path = str(self.path("token"))
        options = ("--admin", "127.0.0.1:0", "--admin-token-file", path)
        self.fails(EX_USAGE, *options, saying=("--admin-token-file: cannot read", path))


class Described(Scenario, every_pump=False):
    def test_schemathesis_finds_nothing(self) -> None:
        """
        All that the description allows, and more, is asked of a relay that has sessions. Streams never end, so
        they are left out; a drain ends the relay, so of those only wrong ones are tried.
        """
        token = self.path("token")
        token.write_text("s3cret\n")
        token.chmod(0o600)
        with Upstream() as upstream, contextlib.ExitStack() as opened:
            text = (
                f'[relay]\nadmin = "127.0.0.1:0"\nadmin_token_file = "{token}"\ndrain_timeout = "300ms"\n'
                f'{listener("web")}\n[pool.web]\ntargets = ["{upstream.target}"]\n'
            )
            relay = opened.enter_context(ConfiguredRelay(self.path("relay.toml"), text))
            for _ in range(3):
                opened.enter_context(relay.connect_to("web"))
                opened.enter_context(upstream.accept())
            admin = Admin.of(relay)
            host, port = admin.address[0], admin.address[1]
            hooks = Path(self.folder(), "hooks.py")
            hooks.write_text(HOOKS.replace("TARGET", upstream.target))
            url = f"http://{host}:{port}/v1/openapi.json"
            left_out = [f"--exclude-path=/v1/{path}" for path in ("drain", "events", "trace")]
            self.schemathesis(hooks, url, *left_out, "--max-examples=30")
            self.schemathesis(
                hooks, url, "--include-path=/v1/drain", "--mode=negative", "--phases=coverage"
            )
            self.assertEqual(admin.get("/readyz"), {"status": "ready"})

    def schemathesis(self, hooks: Path, *options: str) -> None:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", "--no-color"),
                *("--header=Authorization: Bearer s3cret", "--request-timeout=30"),
                *("--phases=coverage,fuzzing", "--warnings=off", "--continue-on-failure"),
                # How long it takes to think of requests says nothing of the relay; and what one run tries, all do.
                *("--generation-database=none", "--suppress-health-check=all", "--seed=20"),
                *options,
            ],
            env={**os.environ, "SCHEMATHESIS_HOOKS": hooks.stem, "PYTHONPATH": str(hooks.parent)},
            cwd=hooks.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("passed", done.stdout)


HOOKS = textwrap.dedent('''\
    """What the description can't say: what networks look like, and which names there are."""

    import schemathesis
    from hypothesis import strategies

    addresses = strategies.ip_addresses()
    networks = addresses.map(str) | strategies.ip_addresses(v=4).map("{}/8".format)
    clients = networks | strategies.ip_addresses(v=4).map("{}:80".format)
    schemathesis.openapi.format("network", networks)
    schemathesis.openapi.format("client", clients)


    @schemathesis.hook
    def map_path_parameters(context, path_parameters):
        if path_parameters and "pool" in path_parameters and len(path_parameters["target"]) % 2:
            return {"pool": "web", "target": "TARGET"}
        return path_parameters
    ''')

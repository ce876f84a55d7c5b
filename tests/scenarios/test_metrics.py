"""What Prometheus sees of a running relay agrees with what happens, and with what the access log tells of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.pki import Authority
from tests.scenarios.configured import UNCHANGED, ConfiguredRelay
from tests.scenarios.programs import free_port, run, running, skip_unless_installed
from tests.scenarios.relay_process import (
    PATIENCE,
    RelayProcess,
    Upstream,
    connect_and_be_reset,
    read_all,
    read_exactly,
    reset,
    wait_until,
)
from tests.scenarios.scenario import Scenario
from tests.test_docs import ROOT

RULES = ROOT / "etc" / "prometheus" / "fwdrelay.rules.yml"
ADMIN = '[relay]\nadmin = "127.0.0.1:0"\n'
LISTEN = 'listen = ["tcp:0:interface=127.0.0.1"]'
_AT = re.compile(r"Metrics, API and dashboard: http://127\.0\.0\.1:(\d+)/")


def admin_port(relay: RelayProcess) -> int:
    """Where its metrics are, on 127.0.0.1."""
    found = _AT.search(relay.wait_for(lambda line: _AT.search(line) is not None))
    assert found is not None
    return int(found[1])


def get(port: int, path: str, **headers: str) -> bytes:
    """
    @return: what is answered there, with status 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={"Connection": "close", **headers})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (answer.status, body)
        return body
    finally:
        connection.close()


def scrape_text(relay: RelayProcess) -> str:
    """What Prometheus would get."""
    return get(admin_port(relay), "/metrics").decode()


class Scraped:
    """
    A relay's metrics at one moment.

    @ivar text: as they were told.
    """

    def __init__(self, relay: RelayProcess) -> None:
        self.text = scrape_text(relay)
        self._samples = [
            sample
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The values of that name, by these labels of theirs."""
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for sample in self._samples
            if sample.name == f"fwdrelay_{name}"
        }

    def one(self, name: str, **labels: str) -> float:
        """The value of the only one that has these labels."""
        (value,) = [
            sample.value
            for sample in self._samples
            if sample.name == f"fwdrelay_{name}" and labels.items() <= sample.labels.items()
        ]
        return value


def times(fields: Iterator[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    """How often each is there, as metrics would say it."""
    return dict(Counter(fields))


class MetricsScenario(Scenario, every_pump=False):
    @contextmanager
    def configured(self, text: str) -> Iterator[ConfiguredRelay]:
        """A relay with this configuration, whose sessions have all ended at the end of a `with` block."""
        with ConfiguredRelay(self.path("relay.toml"), text, "--pump", self.pump) as relay:
            yield relay
            if relay.process.poll() is None:
                relay.wait_for_descriptors(relay.at_rest)


class Counted(MetricsScenario):
    def test_bytes_while_a_session_runs(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--admin", "127.0.0.1:0") as relay,
            self.session(relay, upstream) as (client, server),
        ):
            total = 0
            for size in (10_000, 1_000_000):
                client.sendall(bytes(size))
                read_exactly(server, size)
                total += size
                self.assertEqual(Scraped(relay).one("bytes_total", direction="up"), total)
            server.sendall(b"answer")
            self.assertEqual(read_exactly(client, 6), b"answer")
            now = Scraped(relay)
            self.assertEqual(now.one("bytes_total", direction="down"), 6)
            self.assertEqual(now.one("sessions_active", listener="main"), 1)
            self.assertEqual(now.one("target_sessions", pool="main", target=upstream.target), 1)
            self.assertEqual(now.one("dial_seconds_count", target=upstream.target), 1)
            self.assertEqual(now.by("sessions_total"), {})
            client.close()
            server.close()
            (entry,) = relay.ended()
            after = Scraped(relay)
            self.assertEqual(
                after.by("bytes_total", "direction"),
                {("up",): entry["bytes_up"], ("down",): entry["bytes_down"]},
            )
            self.assertEqual(after.one("sessions_active"), 0)
            self.assertEqual(after.one("target_sessions"), 0)

    def test_numbers_agree_with_the_access_log(self) -> None:
        gone = f"127.0.0.1:{free_port()}"
        with (
            Upstream() as upstream,
            self.configured(
                f"""{ADMIN}
                [[listener]]
                name = "web"
                {LISTEN}
                pool = "web"
                max_sessions = 2
                admit = {{ deny = ["127.0.0.3/32"] }}
                [[listener]]
                name = "db"
                {LISTEN}
                pool = "db"
                [pool.web]
                targets = ["{gone},name=gone", "{upstream.target},name=there"]
                balance = "first"
                [pool.db]
                targets = ["{gone},name=gone"]
                """
            ) as relay,
        ):
            for size in range(5):
                with self.session(relay, upstream) as (client, server):
                    client.sendall(bytes(size))
                    client.shutdown(socket.SHUT_WR)
                    read_all(server)
                    server.sendall(bytes(10 * size))
                    server.close()
                    read_all(client)
            with self.session(relay, upstream) as (client, server):
                server.sendall(b"x")
                read_exactly(client, 1)
                reset(client)
                self.assertRaises(ConnectionResetError, server.recv, 1)
            relay.ended(6)
            with self.session(relay, upstream), self.session(relay, upstream):
                relay.turn_away()  # max-sessions
            relay.ended(9)
            with (
                contextlib.suppress(ConnectionResetError),
                relay.connect(source="127.0.0.3") as sock,
            ):
                sock.recv(1)  # denied
            connect_and_be_reset(relay.listener("db"))
            log = relay.ended(11)
            now = Scraped(relay)

        refused = {"max-sessions", "denied"}
        self.assertLess(refused, {entry["reason"] for entry in log})
        let_in = [entry for entry in log if entry["reason"] not in refused]
        self.assertEqual(
            now.by("sessions_total", "listener", "pool", "reason"),
            times((entry["listener"], entry["pool"] or "", entry["reason"]) for entry in log),
        )
        self.assertEqual(
            now.by("rejected_total", "listener", "cause"),
            times((each["listener"], each["reason"]) for each in log if each not in let_in),
        )
        self.assertEqual(
            now.by("session_seconds_count", "listener"),
            times((entry["listener"],) for entry in let_in),
        )
        self.assertEqual(
            now.by("dial_seconds_count", "pool", "target"),
            {
                ("web", "there"): sum(entry["dial_ms"] is not None for entry in log),
                ("web", "gone"): 0,
                ("db", "gone"): 0,
            },
        )
        self.assertEqual(
            now.by("dial_failures_total", "pool", "target", "cause"),
            {
                ("web", "gone", "refused"): sum(entry["retries"] for entry in log),
                ("db", "gone", "refused"): 1,
            },
        )
        self.assertEqual(
            now.by("bytes_total", "listener", "direction"),
            {
                (name, direction): sum(
                    entry[f"bytes_{direction}"] for entry in log if entry["listener"] == name
                )
                for name in ("web", "db")
                for direction in ("up", "down")
            },
        )


class Told(MetricsScenario, every_pump=False):
    def test_all_of_it_is_as_promtool_wants_it(self) -> None:
        skip_unless_installed("promtool")
        folder = Path(self.folder())
        who = Authority().vouch("localhost", dns=["localhost"])
        certificate, _ = who.write(folder, "relay")
        gone = f"127.0.0.1:{free_port()}"
        with Upstream() as upstream:
            text = f"""{ADMIN}
                [[listener]]
                name = "web"
                {LISTEN}
                pool = "web"
                [[listener]]
                name = "full"
                {LISTEN}
                pool = "gone"
                max_sessions = 1
                admit = {{ deny = ["127.0.0.1"] }}
                [[listener]]
                name = "tls"
                {LISTEN}
                pool = "web"
                tls = {{ certificate = "{certificate}", key = "{folder}/relay.key" }}
                [[listener]]
                name = "gone"
                {LISTEN}
                pool = "gone"
                [pool.web]
                targets = ["{upstream.target}"]
                max_sessions = 1
                queue = "30s"
                [pool.gone]
                targets = ["{gone},name=a\\"quoted\\"name\\\\with-more"]
            """
            with self.configured(text) as relay:
                with (
                    relay.connect_to("web") as client,
                    upstream.accept() as server,
                    relay.connect_to("web") as waiting,
                ):
                    connect_and_be_reset(relay.listener("full"))
                    connect_and_be_reset(relay.listener("gone"))
                    relay.ended(2)
                    relay.reload()
                    relay.reload("nonsense", UNCHANGED)
                    wait_until(lambda: Scraped(relay).one("queue_length", pool="web") == 1)
                    now = Scraped(relay)
                    reset(waiting)
                    server.close()
                    client.close()
                relay.ended(4)
        self.assertEqual(now.by("reloads_total", "result"), {("success",): 1.0, ("failure",): 1.0})
        self.assertEqual(now.one("rejected_total", listener="full", cause="denied"), 1)
        self.assertEqual(
            now.by("certificate_expiry_seconds", "file"),
            {(certificate,): who.certificate.not_valid_after_utc.timestamp()},
        )
        self.assertEqual(now.one("dial_failures_total", target='a"quoted"name\\with-more'), 1)
        page = folder / "page"
        page.write_text(now.text)
        self.assertEqual(run("promtool", "check", "metrics", stdin=page), "")

    def test_reloads(self) -> None:
        text = (
            f'{ADMIN}[[listener]]\nname = "web"\n{LISTEN}\npool = "web"\n[pool.web]\ntargets = [%s]'
        )
        with self.configured(text % '"127.0.0.1:1", "127.0.0.1:2"') as relay:
            self.assertEqual(Scraped(relay).one("last_reload_successful"), 1)
            relay.reload("nonsense", UNCHANGED)
            self.assertEqual(Scraped(relay).one("last_reload_successful"), 0)
            relay.reload(text % '"127.0.0.1:2", "127.0.0.1:3"')
            now = Scraped(relay)
            self.assertEqual(now.one("last_reload_successful"), 1)
            # What is gone is not told of any more.
            for name in ("target_up", "target_sessions", "dial_seconds_count"):
                self.assertEqual(
                    set(now.by(name, "target")), {("127.0.0.1:2",), ("127.0.0.1:3",)}, name
                )

    def test_a_drain(self) -> None:
        with (
            Upstream() as upstream,
            self.relaying("--target", upstream.target, "--admin", "127.0.0.1:0") as relay,
            self.session(relay, upstream),
        ):
            self.assertEqual(Scraped(relay).one("draining"), 0)
            relay.signal(signal.SIGTERM)
            wait_until(lambda: Scraped(relay).one("draining") == 1)
            self.assertEqual(Scraped(relay).one("sessions_active"), 1)

    def test_a_relay_stops_that_is_scraped_all_the_time(self) -> None:
        scraped = threading.Barrier(5)

        def scrape_on(port: int) -> None:
            get(port, "/metrics")
            scraped.wait(PATIENCE)
            with contextlib.suppress(OSError, http.client.HTTPException):
                while True:
                    get(port, "/metrics")

        with self.relaying("--target", "127.0.0.1:1", "--admin", "127.0.0.1:0") as relay:
            scrapers = [
                threading.Thread(target=scrape_on, args=(admin_port(relay),)) for _ in range(4)
            ]
            for scraper in scrapers:
                scraper.start()
            scraped.wait(PATIENCE)
            relay.stop()
            for scraper in scrapers:
                scraper.join()


class Prometheus:
    """A running one's API, on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port

    def data(self, path: str, **query: str) -> Any:
        """What it answers there."""
        said = json.loads(get(self._port, f"/api/v1/{path}?{urllib.parse.urlencode(query)}"))
        assert said["status"] == "success", said
        return said["data"]

    def ask(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """What that comes to now: labels and values."""
        result = self.data("query", query=query)["result"]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def wait_for(self, query: str, value: float) -> None:
        """Wait until there is one result, which is that."""
        wait_until(
            lambda: [each for _, each in self.ask(query)] == [value],
            lambda: f"{query} is {self.ask(query)}, and never became {value}",
        )

    def wait_for_alert(self, name: str, **labels: str) -> None:
        """Wait until it is pending, or more."""
        wait_until(
            lambda: any(labels.items() <= found.items() for found in self.alerts(name)),
            lambda: f"{name} {labels} is not among {self.alerts(name)}",
        )

    def alerts(self, name: str) -> list[dict[str, str]]:
        """The labels of those that are pending or firing."""
        return [
            each["labels"]
            for each in self.data("alerts")["alerts"]
            if each["labels"]["alertname"] == name
        ]


class Real(MetricsScenario, every_pump=False):
    """A Prometheus of Debian's."""

    @contextmanager
    def prometheus(self, relay: RelayProcess, token: Path) -> Iterator[Prometheus]:
        """One that scrapes this relay each second, and has our rules."""
        place, port = Path(self.folder()), free_port()
        shutil.copy(RULES, place)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES.name],
            "scrape_configs": [
                {
                    "job_name": "fwdrelay",
                    "authorization": {"credentials_file": str(token)},
                    "static_configs": [{"targets": [f"127.0.0.1:{admin_port(relay)}"]}],
                }
            ],
        }
        file = place / "prometheus.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        with running(
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={place / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            ready="Server is ready to receive web requests",
        ):
            yield Prometheus(port)

    def test_it_scrapes_and_its_alerts_see_what_happens(self) -> None:
        skip_unless_installed("prometheus")
        token = self.path("token")
        token.write_text("a-token-that-is-long-enough-to-be-one\n")
        token.chmod(0o600)
        with Upstream() as dying, Upstream() as living:
            text = f"""
                [relay]
                admin = "127.0.0.1:0"
                admin_token_file = "{token}"
                [[listener]]
                name = "main"
                {LISTEN}
                pool = "main"
                [pool.main]
                targets = ["{dying.target},name=dying", "{living.target},name=living"]
                [pool.main.health]
                check = "tcp"
                interval = "100ms"
            """
            with (
                self.configured(text) as relay,
                self.prometheus(relay, token) as prometheus,
            ):
                prometheus.wait_for('up{job="fwdrelay"}', 1)
                prometheus.wait_for("sum(fwdrelay_target_up)", 2)
                self.assert_rules_are_fine(prometheus)
                self.assertEqual(
                    prometheus.data("metadata", metric="fwdrelay_dial_seconds"),
                    {
                        "fwdrelay_dial_seconds": [
                            {
                                "type": "histogram",
                                "help": "How long it took to connect to the target for sessions,"
                                " where that went well.",
                                "unit": "",
                            }
                        ]
                    },
                )
                dying.socket.close()
                prometheus.wait_for('fwdrelay_target_up{target="dying"}', 0)
                prometheus.wait_for_alert("FwdrelayTargetDown", target="dying", severity="warning")
                self.assertEqual(prometheus.alerts("FwdrelayPoolDown"), [])
                living.socket.close()
                prometheus.wait_for_alert("FwdrelayPoolDown", pool="main", severity="critical")
                relay.stop()
                prometheus.wait_for('up{job="fwdrelay"}', 0)
                prometheus.wait_for_alert("FwdrelayDown", job="fwdrelay")

    def assert_rules_are_fine(self, prometheus: Prometheus) -> None:
        def rules() -> list[dict[str, Any]]:
            (group,) = prometheus.data("rules")["groups"]
            found: list[dict[str, Any]] = group["rules"]
            return found

        wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()))
        self.assertEqual({rule["health"] for rule in rules()}, {"ok"})
        self.assertEqual(len(rules()), RULES.read_text().count("- alert: "))

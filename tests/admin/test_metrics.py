"""The metrics: what is made of counters, how the page answers, and that the documentation tells all of it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import attrs
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import Site

from fwdrelay.admin.administered import Administered
from fwdrelay.admin.metrics import MetricsPage, families
from fwdrelay.dial import CAUSES
from fwdrelay.histogram import DIALS, SESSIONS, Histogram, HistogramCounts
from fwdrelay.observe.snapshot import Counters, ListenerCounters, TargetCounters, WorkerShown
from tests.case import SynchronousTestCase, TestCase
from tests.scenarios.programs import run, skip_unless_installed
from tests.test_docs import ROOT, read, rows, section, spans

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]


def histogram(bounds: tuple[float, ...], *values: float) -> HistogramCounts:
    """With these values counted."""
    counted = Histogram(bounds)
    for value in values:
        counted.add(value)
    return counted.counts()


WEB = ListenerCounters(
    listener="web",
    active=3,
    ended={("web", "done"): 40, ("web", "client-reset"): 2, ("", "rate"): 5},
    bytes_up=1000,
    bytes_down=2**60,
    seconds=histogram(SESSIONS, 0.2, 0.2, 7200.0, 1e6),
    rejected={"rate": 5},
)
FIRST = TargetCounters(
    pool="web",
    target="127.0.0.1:8080",
    up=True,
    sessions=2,
    dials=histogram(DIALS, 0.0004, 0.0005, 0.003),
    dial_failures={"refused": 7, "timeout": 1},
)
SECOND = TargetCounters(
    pool="web", target="b", up=False, sessions=1, dials=histogram(DIALS), dial_failures={}
)
WORKER = WorkerShown(
    worker=1,
    pid=os.getpid(),
    state="running",
    started="2026-01-02T03:04:05.678Z",
    restarts=2,
    sessions=3,
    kept=2,
)
COUNTERS = Counters(
    version="1.2.3",
    listeners=(WEB,),
    targets=(FIRST, SECOND),
    queues={"web": 4},
    certificate_expiries={"/etc/fwdrelay/web.pem": 1_800_000_000.0},
    reloads={"success": 2},
    access_log_dropped=9,
    draining=False,
    workers=(WORKER, attrs.evolve(WORKER, worker=2, pid=None, state="ended", sessions=0, kept=0)),
    worker_restarts=4,
    registrations_refused=6,
)
NOTHING = Counters(
    version="1.2.3",
    listeners=(),
    targets=(),
    queues={},
    certificate_expiries={},
    reloads={},
    access_log_dropped=0,
    draining=True,
    last_reload_failed=True,
)


class Collected:
    """A registry's only collector."""

    def __init__(self, counters: Counters) -> None:
        self.collected = list(families(counters))

    def collect(self) -> list[Metric]:
        return self.collected


def exposed(
    counters: Counters, encode: Callable[[CollectorRegistry], bytes] = generate_latest
) -> str:
    """The text that Prometheus gets."""
    registry = CollectorRegistry()
    registry.register(cast(Any, Collected(counters)))
    return encode(registry).decode()


def samples(
    text: str, parse: Callable[[str], Any] = parse_text, prefix: str = "fwdrelay_"
) -> Samples:
    """What a reader makes of it; fails when something is there twice."""
    found: Samples = {}
    for family in parse(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            if sample.name.startswith(prefix):
                found[key] = sample.value
    return found


def still(found: Samples) -> Samples:
    """Without what a process uses, which is another value at another moment."""
    return {key: value for key, value in found.items() if "worker" not in dict(key[1])}


def labels(**given: str) -> Labels:
    """As they are in `Samples`."""
    return tuple(sorted(given.items()))


class FamiliesTests(SynchronousTestCase):
    EXPECTED: Mapping[tuple[str, Labels], float] = {
        ("fwdrelay_build_info", labels(version="1.2.3")): 1,
        ("fwdrelay_draining", ()): 0,
        ("fwdrelay_sessions_active", labels(listener="web")): 3,
        ("fwdrelay_sessions_total", labels(listener="web", pool="web", reason="done")): 40,
        ("fwdrelay_sessions_total", labels(listener="web", pool="web", reason="client-reset")): 2,
        ("fwdrelay_sessions_total", labels(listener="web", pool="", reason="rate")): 5,
        ("fwdrelay_bytes_total", labels(listener="web", direction="up")): 1000,
        ("fwdrelay_bytes_total", labels(listener="web", direction="down")): 2.0**60,
        ("fwdrelay_session_seconds_sum", labels(listener="web")): 1_007_200.4,
        ("fwdrelay_session_seconds_count", labels(listener="web")): 4,
        ("fwdrelay_rejected_total", labels(listener="web", cause="rate")): 5,
        ("fwdrelay_target_up", labels(pool="web", target="127.0.0.1:8080")): 1,
        ("fwdrelay_target_up", labels(pool="web", target="b")): 0,
        ("fwdrelay_target_sessions", labels(pool="web", target="127.0.0.1:8080")): 2,
        ("fwdrelay_target_sessions", labels(pool="web", target="b")): 1,
        ("fwdrelay_dial_seconds_sum", labels(pool="web", target="127.0.0.1:8080")): 0.0039,
        ("fwdrelay_dial_seconds_count", labels(pool="web", target="127.0.0.1:8080")): 3,
        ("fwdrelay_dial_seconds_sum", labels(pool="web", target="b")): 0,
        ("fwdrelay_dial_seconds_count", labels(pool="web", target="b")): 0,
        (
            "fwdrelay_dial_failures_total",
            labels(pool="web", target="127.0.0.1:8080", cause="refused"),
        ): 7,
        (
            "fwdrelay_dial_failures_total",
            labels(pool="web", target="127.0.0.1:8080", cause="timeout"),
        ): 1,
        ("fwdrelay_queue_length", labels(pool="web")): 4,
        ("fwdrelay_certificate_expiry_seconds", labels(file="/etc/fwdrelay/web.pem")): 1.8e9,
        ("fwdrelay_reloads_total", labels(result="success")): 2,
        ("fwdrelay_reloads_total", labels(result="failure")): 0,
        ("fwdrelay_last_reload_successful", ()): 1,
        ("fwdrelay_access_log_dropped_total", ()): 9,
        ("fwdrelay_workers", labels(state="starting")): 0,
        ("fwdrelay_workers", labels(state="running")): 1,
        ("fwdrelay_workers", labels(state="draining")): 0,
        ("fwdrelay_workers", labels(state="ended")): 1,
        ("fwdrelay_worker_restarts_total", ()): 4,
        ("fwdrelay_sessions_kept", ()): 2,
        ("fwdrelay_registrations_refused_total", ()): 6,
    }

    def without_buckets(self, found: Samples) -> Samples:
        return {key: value for key, value in still(found).items() if not key[0].endswith("_bucket")}

    def test_every_number_is_there(self) -> None:
        self.assertEqual(self.without_buckets(samples(exposed(COUNTERS))), self.EXPECTED)

    def test_as_openmetrics_too(self) -> None:
        text = exposed(COUNTERS, openmetrics.generate_latest)
        self.assertEqual(self.without_buckets(samples(text, parse_openmetrics)), self.EXPECTED)
        self.assertEqual(still(samples(text, parse_openmetrics)), still(samples(exposed(COUNTERS))))

    def test_buckets_add_up(self) -> None:
        found = samples(exposed(COUNTERS))
        of_dials = {
            dict(key[1])["le"]: value
            for key, value in found.items()
            if key[0] == "fwdrelay_dial_seconds_bucket" and ("target", "b") not in key[1]
        }
        self.assertEqual(
            of_dials,
            {
                **{f"{bound}": 2 for bound in (0.0005, 0.001, 0.0025)},
                **{f"{bound}": 3 for bound in DIALS if bound > 0.0025},
                "+Inf": 3,
            },
        )
        of_sessions = {
            dict(key[1])["le"]: value
            for key, value in found.items()
            if key[0] == "fwdrelay_session_seconds_bucket"
        }
        self.assertEqual(
            [of_sessions[le] for le in ("0.1", "0.5", "3600.0", "21600.0", "86400.0", "+Inf")],
            [0, 2, 2, 3, 3, 4],
        )

    def test_a_relay_that_has_nothing_yet(self) -> None:
        for encode, parse in (
            (generate_latest, parse_text),
            (openmetrics.generate_latest, parse_openmetrics),
        ):
            self.assertEqual(
                samples(exposed(NOTHING, encode), parse),
                {
                    ("fwdrelay_build_info", labels(version="1.2.3")): 1,
                    ("fwdrelay_draining", ()): 1,
                    ("fwdrelay_reloads_total", labels(result="success")): 0,
                    ("fwdrelay_reloads_total", labels(result="failure")): 0,
                    ("fwdrelay_last_reload_successful", ()): 0,
                    ("fwdrelay_access_log_dropped_total", ()): 0,
                    ("fwdrelay_worker_restarts_total", ()): 0,
                    ("fwdrelay_sessions_kept", ()): 0,
                    ("fwdrelay_registrations_refused_total", ()): 0,
                },
            )

    def test_what_a_worker_uses(self) -> None:
        used = {
            name: value
            for (name, where), value in samples(exposed(COUNTERS)).items()
            if where == labels(worker="1")
        }
        self.assertEqual(
            set(used),
            {
                "fwdrelay_worker_cpu_seconds_total",
                "fwdrelay_worker_resident_memory_bytes",
                "fwdrelay_worker_open_fds",
            },
        )
        self.assertGreater(used["fwdrelay_worker_resident_memory_bytes"], 1 << 20)
        self.assertGreater(used["fwdrelay_worker_open_fds"], 2)

    def test_one_that_is_gone_meanwhile_uses_nothing(self) -> None:
        child = subprocess.Popen(["true"])
        child.wait()
        gone = attrs.evolve(COUNTERS, workers=(attrs.evolve(WORKER, pid=child.pid),))
        self.assertEqual([key for key in samples(exposed(gone)) if dict(key[1]).get("worker")], [])

    def test_of_two_that_share_a_number_the_new_one_is_told_of(self) -> None:
        child = subprocess.Popen(["sleep", "60"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        old = attrs.evolve(WORKER, pid=child.pid, state="draining")
        for workers in ((WORKER, old), (old, WORKER)):
            upgraded = attrs.evolve(COUNTERS, workers=workers)
            found = samples(exposed(upgraded))
            own = found["fwdrelay_worker_resident_memory_bytes", labels(worker="1")]
            self.assertGreater(own, 16 << 20)  # `sleep` is small
            self.assertEqual(found["fwdrelay_workers", labels(state="draining")], 1)

    def test_what_shares_its_name_is_one(self) -> None:
        old = attrs.evolve(WEB, active=1, ended={("web", "done"): 2}, rejected={}, bytes_up=5)
        expiries = {f"a{chr(0xDC80 + number)}": 2.0 - number for number in range(2)}
        twice = attrs.evolve(
            COUNTERS,
            listeners=(WEB, old),
            targets=(FIRST, attrs.evolve(FIRST, up=False)),
            certificate_expiries=expiries,
        )
        found = samples(exposed(twice))
        web = labels(listener="web")
        self.assertEqual(found["fwdrelay_sessions_active", web], 4)
        self.assertEqual(found["fwdrelay_session_seconds_count", web], 8)
        self.assertEqual(found["fwdrelay_session_seconds_sum", web], 2_014_400.8)
        for name, value, more in (
            ("sessions_total", 42, {"pool": "web", "reason": "done"}),
            ("sessions_total", 2, {"pool": "web", "reason": "client-reset"}),
            ("bytes_total", 1005, {"direction": "up"}),
            ("session_seconds_bucket", 4, {"le": "0.5"}),
        ):
            self.assertEqual(found[f"fwdrelay_{name}", labels(listener="web", **more)], value)
        first = labels(pool="web", target="127.0.0.1:8080")
        self.assertEqual(found["fwdrelay_target_up", first], 1)
        self.assertEqual(found["fwdrelay_target_sessions", first], 4)
        # A path that UTF-8 can't tell; of two, the one that is sooner over counts.
        self.assertEqual(
            found["fwdrelay_certificate_expiry_seconds", labels(file="a\N{REPLACEMENT CHARACTER}")],
            1,
        )

    # The last three: what is in `quotes`, behind a \, and what Prometheus' own parser splits at.
    @given(
        st.text(st.characters(codec="utf-8")), st.text(st.sampled_from('a"\\n\n{},= \t\r#\u2028'))
    )
    def test_names_come_out_as_they_are(self, pool: str, target: str) -> None:
        odd = attrs.evolve(NOTHING, targets=(attrs.evolve(SECOND, pool=pool, target=target),))
        text = exposed(odd)
        (line,) = [line for line in text.split("\n") if line.startswith("fwdrelay_target_up{")]
        self.assertEqual(
            unescaped(line), f'fwdrelay_target_up{{pool="{pool}",target="{target}"}} 0.0'
        )

    def test_names_with_quotes_as_readers_read_them(self) -> None:
        names = ('a"b', "a\\b", "a\\nb", "a\nb", 'a\\"b', "a,b", "a}b", "a=b", "ä€😀", " ", "\\")
        targets = tuple(attrs.evolve(SECOND, target=name) for name in names)
        odd = attrs.evolve(NOTHING, targets=targets)
        expected = {("fwdrelay_target_up", labels(pool="web", target=name)): 0.0 for name in names}
        for encode, parse in (
            (generate_latest, parse_text),
            (openmetrics.generate_latest, parse_openmetrics),
        ):
            found = samples(exposed(odd, encode), parse, "fwdrelay_target_up")
            self.assertEqual(found, expected)

    def test_told_in_sentences(self) -> None:
        for family in families(COUNTERS):
            self.assertRegex(family.documentation, r"\A[A-Z][^\n\\\"]+\.\Z")

    def test_promtool_has_nothing_to_say(self) -> None:
        skip_unless_installed("promtool")
        with tempfile.TemporaryDirectory(prefix="fwdrelay-") as folder:
            for number, counters in enumerate((COUNTERS, NOTHING)):
                page = Path(folder, f"{number}")
                page.write_text(exposed(counters))
                self.assertEqual(run("promtool", "check", "metrics", stdin=page), "")


def unescaped(line: str) -> str:
    """A sample's line without the escapes of the text format."""
    out, rest = "", line
    while rest:
        head, backslash, rest = rest.partition("\\")
        out += head
        if backslash:
            out += {"n": "\n", "\\": "\\", '"': '"'}[rest[0]]
            rest = rest[1:]
    return out


class Reactor:
    """What a page wants of one: to be called from its threads."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def callFromThread(self, call: Callable[..., object], *arguments: Any) -> None:
        self._calls.put(partial(call, *arguments))

    def turn(self) -> None:
        """Wait for one such call, and do it."""
        self._calls.get(timeout=60)()


class Relay:
    """One whose counters come when they are given."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Counters]] = []
        self.cancelled = 0

    async def counters(self) -> Counters:
        self.asked.append(Deferred(self._cancel))
        return await self.asked[-1]

    def _cancel(self, _: Deferred[Counters]) -> None:
        self.cancelled += 1


class Client(StringTransport):
    """
    A connection to a page.

    @ivar closed: fires when the page has closed it.
    """

    def __init__(self, page: MetricsPage, peer: Any = None) -> None:
        super().__init__(peerAddress=peer)
        self.closed: Deferred[None] = Deferred()
        site = Site(page, reactor=Clock())
        self.server = cast(Any, site.buildProtocol(cast(Any, peer)))
        self.server.makeConnection(self)

    def loseConnection(self) -> None:
        if not self.disconnecting:
            super().loseConnection()
            self.closed.callback(None)

    def ask(self, line: str, *fields: str) -> None:
        request = [f"{line} HTTP/1.1", "Host: localhost", "Connection: close", *fields, "", ""]
        self.server.dataReceived("\r\n".join(request).encode())

    def leave(self) -> None:
        self.server.connectionLost(Failure(ConnectionResetError()))

    @property
    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in small letters, body."""
        head, _, body = self.value().partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        pairs = (field.partition(": ") for field in fields)
        return int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, body


class PageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.relay = Relay()
        self.reactor = Reactor()
        self.page = MetricsPage(cast(Administered, self.relay), self.reactor)

    def fetch(
        self, line: str = "GET /metrics", *fields: str, peer: Any = None
    ) -> tuple[int, dict[str, str], bytes]:
        client = Client(self.page, peer)
        client.ask(line, *fields)
        self.relay.asked[-1].callback(COUNTERS)
        self.reactor.turn()
        self.successResultOf(client.closed)
        return client.answer

    def test_text(self) -> None:
        status, headers, body = self.fetch()
        self.assertEqual(status, 200)
        self.assertEqual(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertEqual(headers["content-length"], str(len(body)))
        self.assertEqual(still(samples(body.decode())), still(samples(exposed(COUNTERS))))

    def test_what_the_library_knows_of_the_process(self) -> None:
        body = self.fetch()[2].decode()
        found = {name for name, _ in samples(body, prefix="p")}
        self.assertLessEqual(
            {
                "process_start_time_seconds",
                "process_cpu_seconds_total",
                "process_resident_memory_bytes",
                "process_open_fds",
                "process_max_fds",
                "python_info",
                "python_gc_collections_total",
            },
            found,
        )

    def test_openmetrics(self) -> None:
        wanted = (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        )
        for fields in ([f"Accept: {wanted}"], [f"Accept: {part}" for part in wanted.split(",")]):
            status, headers, body = self.fetch("GET /metrics", *fields)
            self.assertEqual(status, 200)
            self.assertRegex(headers["content-type"], r"\Aapplication/openmetrics-text; version=1")
            self.assertTrue(body.endswith(b"# EOF\n"))
            self.assertEqual(
                still(samples(body.decode(), parse_openmetrics)), still(samples(exposed(COUNTERS)))
            )

    def test_a_version_that_is_none(self) -> None:
        for kind in ("application/openmetrics-text", "text/plain"):
            status, headers, _ = self.fetch("GET /metrics", f"Accept: {kind};version=1.x")
            self.assertEqual(status, 200)
            self.assertEqual(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")

    def test_gzip(self) -> None:
        status, headers, body = self.fetch("GET /metrics", "Accept-Encoding: gzip")
        self.assertEqual((status, headers["content-encoding"]), (200, "gzip"))
        self.assertEqual(headers["content-length"], str(len(body)))
        text = gzip.decompress(body).decode()
        self.assertEqual(still(samples(text)), still(samples(exposed(COUNTERS))))

    def test_head(self) -> None:
        status, headers, body = self.fetch("HEAD /metrics")
        self.assertEqual((status, body), (200, b""))
        self.assertGreater(int(headers["content-length"]), 1000)

    def test_some_metrics_by_name(self) -> None:
        query = "name%5B%5D=fwdrelay_queue_length&name%5B%5D=process_open_fds"
        body = self.fetch(f"GET /metrics?{query}")[2].decode()
        names = {name for name, _ in samples(body, prefix="")}
        self.assertEqual(names, {"fwdrelay_queue_length", "process_open_fds"})

    def test_clients_by_unix_socket(self) -> None:
        self.assertEqual(self.fetch(peer=UNIXAddress(None))[0], 200)

    def test_other_methods(self) -> None:
        client = Client(self.page)
        client.ask("POST /metrics", "Content-Length: 0")
        status, headers, _ = client.answer
        self.assertEqual(status, 405)
        self.assertEqual(set(headers["allow"].split(", ")), {"GET", "HEAD"})
        self.assertEqual(self.relay.asked, [])

    def test_each_request_is_answered_by_its_own_numbers_in_its_turn(self) -> None:
        clients = [Client(self.page) for _ in range(3)]
        for client in clients:
            client.ask("GET /metrics")
        for number, client in enumerate(clients):
            self.assertEqual(len(self.relay.asked), number + 1)
            self.relay.asked[-1].callback(attrs.evolve(COUNTERS, queues={"web": number}))
            self.reactor.turn()
            found = samples(client.answer[2].decode())
            self.assertEqual(found["fwdrelay_queue_length", labels(pool="web")], number)

    def test_a_client_leaves_before_it_is_its_turn(self) -> None:
        clients = [Client(self.page) for _ in range(3)]
        for client in clients:
            client.ask("GET /metrics")
        clients[1].leave()
        for _ in range(2):
            self.relay.asked[-1].callback(COUNTERS)
            self.reactor.turn()
        self.assertEqual(len(self.relay.asked), 2)
        self.assertEqual([len(client.value()) > 0 for client in clients], [True, False, True])

    def test_a_client_leaves_before_the_numbers_come(self) -> None:
        client = Client(self.page)
        client.ask("GET /metrics")
        client.leave()
        self.assertEqual(self.relay.cancelled, 1)
        self.assertEqual(client.value(), b"")
        self.assertEqual(self.fetch()[0], 200)

    def test_a_client_leaves_before_the_text_is_made(self) -> None:
        client = Client(self.page)
        client.ask("GET /metrics")
        self.relay.asked[0].callback(COUNTERS)
        client.leave()
        self.reactor.turn()
        self.assertEqual(client.value(), b"")
        self.assertEqual(self.fetch()[0], 200)

    def test_the_numbers_can_not_be_had(self) -> None:
        client = Client(self.page)
        client.ask("GET /metrics")
        self.relay.asked[0].errback(ZeroDivisionError())
        self.successResultOf(client.closed)
        status, headers, body = client.answer
        self.assertEqual((status, headers["content-type"]), (500, "application/json"))
        self.assertEqual(list(json.loads(body)), ["error"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.fetch()[0], 200)

    def test_the_text_can_not_be_made(self) -> None:
        client = Client(self.page)
        client.ask("GET /metrics")
        self.relay.asked[0].callback(attrs.evolve(COUNTERS, version=cast(Any, None)))
        self.reactor.turn()
        self.assertEqual(client.answer[0], 500)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)
        self.assertEqual(self.fetch()[0], 200)


class ThreadsTests(TestCase):
    """With a real reactor."""

    async def test_many_at_once(self) -> None:
        from twisted.internet import reactor

        relay = Relay()
        clients = [Client(MetricsPage(cast(Administered, relay), reactor)) for _ in range(5)]
        for client in clients:
            client.ask("GET /metrics")
        for number, client in enumerate(clients):
            relay.asked[number].callback(COUNTERS)
            await client.closed
            status, _, body = client.answer
            self.assertEqual(status, 200)
            self.assertEqual(still(samples(body.decode())), still(samples(exposed(COUNTERS))))


class DocumentedTests(SynchronousTestCase):
    """`docs/metrics.md`, held against the code."""

    page = read(ROOT / "docs" / "metrics.md")

    def test_every_metric_with_its_type_and_labels(self) -> None:
        documented = {
            spans(row[0])[0]: (row[1], set(spans(row[2])))
            for row in rows(section(self.page, "All of them"))
            if len(row) == 4
        }
        given = {}
        for family in families(COUNTERS):
            first = family.samples[0]
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            kind = "gauge" if family.type == "info" else family.type
            given[family.name + suffix] = kind, set(first.labels) - {"le"}
        self.assertEqual(documented, given)

    def test_every_cause_of_a_failed_dial(self) -> None:
        documented = [
            spans(row[0])[0] for row in rows(section(self.page, "All of them")) if len(row) == 2
        ]
        of_targets = set(CAUSES) - {"no-target"}  # where there was none, none has failed
        self.assertEqual(len(documented), len(of_targets))
        self.assertEqual(set(documented), of_targets)

"""
What Prometheus scrapes: a relay's counters as metric families, and the page that shows them.

The names are a contract with dashboards and alerts; `docs/metrics.md` tells them all. Nothing is counted
here, and nothing was added to the byte path for it: values are asked for when somebody scrapes.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar

from attrs import frozen
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    ProcessCollector,
    make_wsgi_app,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.utils import floatToGoString
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from ..histogram import HistogramCounts
from ..observe.snapshot import WORKER_STATES, Counters
from .administered import Administered
from .answer import Answer, Refused, head

T = TypeVar("T")
_Values: TypeAlias = Iterable[tuple[tuple[str, ...], T]]


def families(counters: Counters) -> Iterator[Metric]:
    """
    What its workers use is read here from `/proc`, so it is for a thread that may wait.

    @return: all metrics of the relay's own, with no series twice. None has a `_created` sample: when a
        listener or a target came is nobody's question, and each would cost a series.
    """
    yield InfoMetricFamily(
        "fwdrelay_build",
        "Which fwdrelay this is; its value is always 1.",
        value={"version": _clean(counters.version)},
    )
    yield GaugeMetricFamily(
        "fwdrelay_draining",
        "Whether the relay is stopping and only lets sessions end: 1 if so, else 0.",
        value=counters.draining,
    )
    yield from _of_listeners(counters)
    yield from _of_targets(counters)
    yield _gauge(
        "fwdrelay_queue_length",
        "Sessions that wait for a place in the pool now.",
        ["pool"],
        (((pool,), length) for pool, length in counters.queues.items()),
    )
    yield _gauge(
        "fwdrelay_certificate_expiry_seconds",
        "When the certificate in the file expires, as Unix time: seconds since the epoch.",
        ["file"],
        (((file,), expiry) for file, expiry in counters.certificate_expiries.items()),
        min,
    )
    yield _counter(
        "fwdrelay_reloads_total",
        "Reloads of the configuration since the start, by how they went.",
        ["result"],
        (((result,), counters.reloads.get(result, 0)) for result in ("success", "failure")),
    )
    yield GaugeMetricFamily(
        "fwdrelay_last_reload_successful",
        "Whether the last reload went well: 1 if so or if there was none, else 0.",
        value=not counters.last_reload_failed,
    )
    yield CounterMetricFamily(
        "fwdrelay_access_log_dropped_total",
        "Lines of the access log that were dropped because nobody took them in time.",
        value=counters.access_log_dropped,
    )
    yield from _of_workers(counters)


def _of_listeners(counters: Counters) -> Iterator[Metric]:
    listeners = counters.listeners
    yield _gauge(
        "fwdrelay_sessions_active",
        "Sessions that are open now.",
        ["listener"],
        (((each.listener,), each.active) for each in listeners),
    )
    yield _counter(
        "fwdrelay_sessions_total",
        "Sessions that have ended, refused clients among them; pool is empty where it came to none.",
        ["listener", "pool", "reason"],
        (
            ((each.listener, *pool_and_reason), count)
            for each in listeners
            for pool_and_reason, count in each.ended.items()
        ),
    )
    yield _counter(
        "fwdrelay_bytes_total",
        "Bytes received from clients (up) and from targets (down), those of open sessions among them.",
        ["listener", "direction"],
        (
            ((each.listener, direction), count)
            for each in listeners
            for direction, count in (("up", each.bytes_up), ("down", each.bytes_down))
        ),
    )
    yield _histogram(
        "fwdrelay_session_seconds",
        "How long sessions have lasted that were let in and have ended.",
        ["listener"],
        (((each.listener,), each.seconds) for each in listeners),
    )
    yield _counter(
        "fwdrelay_rejected_total",
        "Clients that were refused before they came to a pool, by cause.",
        ["listener", "cause"],
        (
            ((each.listener, cause), count)
            for each in listeners
            for cause, count in each.rejected.items()
        ),
    )


def _of_targets(counters: Counters) -> Iterator[Metric]:
    targets = counters.targets
    yield _gauge(
        "fwdrelay_target_up",
        "Whether the target is up: 0 while health checks or an operator have it down, else 1.",
        ["pool", "target"],
        (((each.pool, each.target), int(each.up)) for each in targets),
        max,
    )
    yield _gauge(
        "fwdrelay_target_sessions",
        "Sessions that are open on the target now.",
        ["pool", "target"],
        (((each.pool, each.target), each.sessions) for each in targets),
    )
    yield _histogram(
        "fwdrelay_dial_seconds",
        "How long it took to connect to the target for sessions, where that went well.",
        ["pool", "target"],
        (((each.pool, each.target), each.dials) for each in targets),
    )
    yield _counter(
        "fwdrelay_dial_failures_total",
        "Failed attempts to connect to the target for sessions, by cause.",
        ["pool", "target", "cause"],
        (
            ((each.pool, each.target, cause), count)
            for each in targets
            for cause, count in each.dial_failures.items()
        ),
    )


def _of_workers(counters: Counters) -> Iterator[Metric]:
    workers = counters.workers
    states = [each.state for each in workers]
    yield _gauge(
        "fwdrelay_workers",
        "Processes that relay for this one, by what they do.",
        ["state"],
        (((state,), states.count(state)) for state in (WORKER_STATES if workers else ())),
    )
    yield CounterMetricFamily(
        "fwdrelay_worker_restarts_total",
        "Workers that were replaced because they had died.",
        value=counters.worker_restarts,
    )
    yield GaugeMetricFamily(
        "fwdrelay_sessions_kept",
        "Sessions that are open now and outlive the death of their worker.",
        value=sum(each.kept for each in workers),
    )
    yield CounterMetricFamily(
        "fwdrelay_registrations_refused_total",
        "Sessions that should have been kept, for which the supervisor had no descriptors.",
        value=counters.registrations_refused,
    )
    # By number. For a while, an upgrade has two of each: then it is the one that gets new clients.
    pids = {str(each.worker): each.pid for each in workers if each.pid and each.state == "draining"}
    pids |= {
        str(each.worker): each.pid for each in workers if each.pid and each.state != "draining"
    }
    used = {worker: _used(pid) for worker, pid in pids.items()}
    for make, name, told, source in (
        (
            _counter,
            "fwdrelay_worker_cpu_seconds_total",
            "CPU time that the worker's process has used, in user and system mode.",
            "process_cpu_seconds_total",
        ),
        (
            _gauge,
            "fwdrelay_worker_resident_memory_bytes",
            "Memory of the worker's process that is in RAM.",
            "process_resident_memory_bytes",
        ),
        (
            _gauge,
            "fwdrelay_worker_open_fds",
            "Descriptors that the worker's process has open.",
            "process_open_fds",
        ),
    ):
        found = {(worker,): of[source] for worker, of in used.items() if source in of}
        yield make(name, told, ["worker"], found.items())


def _used(pid: int) -> dict[str, float]:
    """
    @return: what the client library knows of a process, by the names it has for it; nothing where the process is
        gone or is not ours to look at.
    """
    collector = ProcessCollector(pid=lambda: pid, registry=None)
    return {
        sample.name: sample.value for family in collector.collect() for sample in family.samples
    }


def _counter(name: str, told: str, labels: Sequence[str], values: _Values[float]) -> Metric:
    family = CounterMetricFamily(name, told, labels=labels)
    for of_labels, value in _each_once(values, operator.add):
        family.add_metric(of_labels, value)
    return family


def _gauge(
    name: str,
    told: str,
    labels: Sequence[str],
    values: _Values[float],
    join: Callable[[float, float], float] = operator.add,
) -> Metric:
    family = GaugeMetricFamily(name, told, labels=labels)
    for of_labels, value in _each_once(values, join):
        family.add_metric(of_labels, value)
    return family


def _histogram(
    name: str, told: str, labels: Sequence[str], values: _Values[HistogramCounts]
) -> Metric:
    family = HistogramMetricFamily(name, told, labels=labels)
    for of_labels, counted in _each_once(values, HistogramCounts.plus):
        bounds = [*map(floatToGoString, counted.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(counted.counts), strict=True))
        family.add_metric(of_labels, buckets, counted.total)
    return family


def _each_once(
    values: _Values[T], join: Callable[[T, T], T]
) -> Iterator[tuple[tuple[str, ...], T]]:
    """
    A listener that was removed and still has sessions may share its name with a new one. For whoever
    scrapes they are one: a series that is told twice makes Prometheus refuse the page.

    @param join: makes one value of two.
    """
    found: dict[tuple[str, ...], T] = {}
    for labels, value in values:
        key = tuple(map(_clean, labels))
        found[key] = join(found[key], value) if key in found else value
    yield from found.items()


def _clean(value: str) -> str:
    """A label's value that UTF-8 can tell: paths given by command line may hold bytes that are none."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@frozen(eq=False)
class _Taken:
    """A collector of what was counted until one moment."""

    counters: Counters

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client calls, in whatever thread."""
        return families(self.counters)


class MetricsPage(Resource):
    """
    `/metrics`, in the format and encoding that its reader asks for.

    Values are taken in the reactor's thread, and then nobody changes them any more; text is made of them in
    another, one page at a time, from a registry that is one request's own.
    `prometheus_client.twisted.MetricsResource` does that last part with the library's WSGI application in a
    WSGIResource of Twisted's. The application is what is called here, too. Not so the resource: it knows no
    Unix sockets (it asks each client for its host and port), lets the application refuse HEAD, and runs in the
    reactor's pool. Names are resolved there, so a DNS that hangs would be seen as a relay that is down; and
    its thread waits for the reactor to write, which never happens once a reactor that stops waits for its
    threads.

    @param relay: whose metrics.
    @param reactor: `twisted.internet.interfaces.IReactorFromThreads`.
    """

    isLeaf = True
    log = Logger()

    def __init__(self, relay: Administered, reactor: Any) -> None:
        super().__init__()
        self._relay = relay
        self._reactor = reactor
        self._one_at_a_time = DeferredLock()

    def render(self, request: Request) -> int:
        if request.method not in (b"GET", b"HEAD"):
            refused = Refused(
                HTTPStatus.METHOD_NOT_ALLOWED, "metrics are there to GET", {"Allow": "GET, HEAD"}
            )
            _send(request, refused.answer)
            return NOT_DONE_YET
        left = request.notifyFinish()
        answered = Deferred.fromCoroutine(self._answer(request))
        left.addErrback(lambda _: answered.cancel())
        answered.addErrback(self._failed, request, left)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        environ = _environ(request)
        async with self._one_at_a_time:
            taken = _Taken(await self._relay.counters())
            answer = await _in_thread(self._reactor, lambda: _page(taken, environ))
        _send(request, answer)

    def _failed(self, failure: Failure, request: Request, left: Deferred[None]) -> None:
        if left.called:  # nobody is there who could be told
            return
        self.log.failure("The metrics could not be told", failure)
        sentence = "the metrics could not be told; see the log of the relay"
        _send(request, Refused(HTTPStatus.INTERNAL_SERVER_ERROR, sentence).answer)


def _in_thread(reactor: Any, work: Callable[[], Answer]) -> Deferred[Answer]:
    """
    @return: fires with what `work` returns in a thread of its own, which ends then.
    """
    done: Deferred[Answer] = Deferred()

    def run() -> None:
        try:
            result: Any = work()
        except Exception:
            result = Failure()
        reactor.callFromThread(done.callback, result)

    threading.Thread(target=run, name="metrics").start()
    return done


def _send(request: Request, answer: Answer) -> None:
    assert isinstance(answer.body, bytes)
    request.setResponseCode(answer.status)
    request.setHeader("Date", datetimeToString())
    for name, value in head(answer):
        request.setHeader(name, value)
    request.setHeader("Content-Length", str(len(answer.body)))
    request.write(answer.body)
    request.finish()


def _environ(request: Request) -> dict[str, str]:
    """As much of a WSGI environment as the library's application looks at."""

    def header(name: str) -> str:
        return ",".join(request.requestHeaders.getRawHeaders(name, []))

    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/metrics",
        "QUERY_STRING": request.uri.partition(b"?")[2].decode("latin-1"),
        "HTTP_ACCEPT": _acceptable(header("Accept")),
        "HTTP_ACCEPT_ENCODING": header("Accept-Encoding"),
    }


def _acceptable(accept: str) -> str:
    """What the library makes sense of: it stumbles over `version=` with something that is no number."""
    try:
        choose_encoder(accept)
    except TypeError:
        return ""
    return accept


def _page(taken: _Taken, environ: dict[str, str]) -> Answer:
    # Those without names are asked when some metrics are asked for by name, too, and give those.
    registry = CollectorRegistry(support_collectors_without_names=True)
    for collector in (taken, PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    started: list[tuple[str, Sequence[tuple[str, str]]]] = []
    body = b"".join(
        make_wsgi_app(registry)(environ, lambda status, headers: started.append((status, headers)))
    )
    ((status, headers),) = started
    return Answer(int(status.split()[0]), body, content_type="", headers=dict(headers))

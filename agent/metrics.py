"""Metrics for Prometheus, read from the agent's own counters when they are scraped.

Nothing on the packet path knows of this module's families: counting is a dictionary increment, and the cost of a
scrape is paid by the scraper. Labels are bounded and enumerated; no pod name, address, port or label value among them.
docs/metrics.md lists every series.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.durations import Durations
from agent.failmode import FailureCause
from agent.flowlog import verdict_for, verdict_of
from agent.kubernetes.reading import REASONS, ClusterReading, WatchReading
from agent.logs import fields
from agent.serving import Application, HttpServer
from trireme_py.model import Direction, DropReason, FlowEvent, Reason

log = logging.getLogger(__name__)

QUEUE_ERRORS: Final = ("verdict", "send", "ticket", "forgotten")
"""Verdicts the kernel did not take, packets of our own it did not send, releases of packets that were not held, and
held packets that nobody released."""

LOOKUPS: Final = ("known", "verified", "refused")

FlowKey = tuple[Direction, str, Reason | DropReason]


class FlowCounts:
    """Judged flows by direction, verdict and reason, for the lifetime of the process."""

    def __init__(self) -> None:
        self._counts: Counter[FlowKey] = Counter()

    def publish(self, events: Iterable[FlowEvent]) -> None:
        """Count ``events``; called by the data path's thread alone."""
        for event in events:
            self._counts[event.direction, verdict_of(event), event.decision.reason] += 1

    def read(self, unrecorded: Mapping[tuple[Direction, Reason], int]) -> dict[FlowKey, int]:
        """Return all counts, with flows that were let through and became no event."""
        counts = self._counts.copy()
        for (direction, reason), count in unrecorded.items():
            counts[direction, verdict_for(reason), reason] += count
        return dict(counts)


@dataclass(frozen=True, slots=True)
class QueueReading:
    """The counters of the agent's queues, summed over the pods of this process's lifetime."""

    packets: int = 0
    """Packets the kernel handed to user space."""
    kernel_dropped: int = 0
    """Packets the kernel dropped because the queue was full."""
    user_dropped: int = 0
    """Packets the kernel dropped because they could not be sent to the socket."""
    backlog: int = 0
    """Packets waiting for a verdict now."""
    truncated: int = 0
    """Packets that were longer than the queue's copy of them."""
    failures: Mapping[FailureCause, int] = field(default_factory=dict)
    """Packets that the fail mode answered for."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """What went wrong between us and the kernel, by kind (``QUEUE_ERRORS``)."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything a scrape reports, read at one moment."""

    flows: Mapping[FlowKey, int] = field(default_factory=dict)
    drops: Mapping[DropReason, int] = field(default_factory=dict)
    queues: QueueReading = QueueReading()
    crashes: int = 0
    """Exceptions of the data path that nobody expected."""
    unproven_translations: int = 0
    lookups: Mapping[str, int] = field(default_factory=dict)
    """Assertions that peers presented, by what became of them (``LOOKUPS``)."""
    identities_cached: int = 0
    half_open: int = 0
    established: int = 0
    endpoints: int = 0
    policies: int = 0
    policy_revision: int = 0
    """Raised by one whenever a change of pods or policies is in force."""
    config_problems: int = 0
    """Things wrong now, in the configuration folder, API objects or namespaces; each is in the log."""
    rule_errors: int = 0
    assertion_not_after: float = 0.0
    """The earliest end of validity of the local identities, seconds since the Unix epoch; 0 without pods."""
    flow_log_dropped: int = 0
    observe_dropped: int = 0
    observe_slow: int = 0
    policy_apply: Durations = field(default_factory=Durations)
    """From the arrival of a change to its being in force."""
    not_enforced: int = 0
    certificate_not_after: float = 0.0
    """End of this node's certificate, seconds since the Unix epoch; 0 without one."""
    key_changes: int = 0
    installing: bool = False
    """Whether the installation of agents lasts: a pod without an identity counts as not yet identified."""
    cluster: ClusterReading | None = None
    """None in standalone mode."""


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What runs; the labels of ``trireme_agent_info``."""

    version: str
    backend: str
    """The rule back end in use."""
    datapath: str
    """``c`` or ``python``."""
    mode: str
    """``psk`` or ``pki``."""


class AgentCollector(Collector):
    """Turns one :class:`Reading` into metric families at each scrape."""

    def __init__(self, info: BuildInfo, read: Callable[[], Reading]) -> None:
        self._info = info
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry must not read the agent before it is complete."""
        return []

    def collect(self) -> Iterator[Metric]:
        reading = self._read()
        info = GaugeMetricFamily(
            "trireme_agent_info", "What runs; always 1.", labels=("version", "backend", "datapath", "mode")
        )
        info.add_metric((self._info.version, self._info.backend, self._info.datapath, self._info.mode), 1)
        yield info

        flows = CounterMetricFamily(
            "trireme_flows", "Judged connections and flows.", labels=("direction", "verdict", "reason")
        )
        for (direction, verdict, reason), count in reading.flows.items():
            flows.add_metric((direction.value, verdict, reason.value), count)
        yield flows

        drops = CounterMetricFamily("trireme_packets_dropped", "Packets dropped by the data path.", labels=("reason",))
        for drop_reason in DropReason:
            # Every reason is there from the start: a rate over a series that just appeared misses its first count.
            drops.add_metric((drop_reason.value,), reading.drops.get(drop_reason, 0))
        yield drops

        failures = CounterMetricFamily(
            "trireme_nfqueue_failures", "Packets answered for by the fail mode.", labels=("cause",)
        )
        for cause in FailureCause:
            failures.add_metric((cause.value,), reading.queues.failures.get(cause, 0))
        yield failures

        errors = CounterMetricFamily("trireme_nfqueue_errors", "Failed exchanges with the kernel.", labels=("kind",))
        for kind in QUEUE_ERRORS:
            errors.add_metric((kind,), reading.queues.errors.get(kind, 0))
        yield errors

        lookups = CounterMetricFamily(
            "trireme_assertion_lookups", "Assertions that peers presented, by what became of them.", labels=("result",)
        )
        for result in LOOKUPS:
            lookups.add_metric((result,), reading.lookups.get(result, 0))
        yield lookups

        yield from _plain(reading)
        yield HistogramMetricFamily(
            "trireme_policy_apply_duration_seconds",
            "From the arrival of a change to its being in force.",
            buckets=reading.policy_apply.buckets(),
            sum_value=reading.policy_apply.sum_s,
        )
        if reading.cluster is not None:
            yield from _watches(reading.cluster.watches)
            yield from _pods(reading.cluster)


_COUNTERS: Final[tuple[tuple[str, str, Callable[[Reading], float]], ...]] = (
    ("trireme_nfqueue_packets", "Packets queued to the agent.", lambda r: r.queues.packets),
    ("trireme_nfqueue_dropped", "Packets dropped by the kernel: queue full.", lambda r: r.queues.kernel_dropped),
    ("trireme_nfqueue_user_dropped", "Packets dropped by the kernel: socket full.", lambda r: r.queues.user_dropped),
    ("trireme_nfqueue_truncated", "Packets longer than the queue's copy of them.", lambda r: r.queues.truncated),
    ("trireme_datapath_crashes", "Unexpected exceptions of the data path.", lambda r: r.crashes),
    (
        "trireme_unproven_translations",
        "Servers accepted behind an outside address whose translation this node could not see.",
        lambda r: r.unproven_translations,
    ),
    ("trireme_key_changes", "Times that other keys came into use while the agent ran.", lambda r: r.key_changes),
    ("trireme_rule_sync_errors", "Rule changes that failed.", lambda r: r.rule_errors),
    ("trireme_flow_log_dropped", "Flow log lines lost to a slow or full disk.", lambda r: r.flow_log_dropped),
    (
        "trireme_observe_dropped",
        "Verdicts the observe socket could not keep up with.",
        lambda r: r.observe_dropped,
    ),
    ("trireme_observe_slow_subscribers", "Observers disconnected as too slow.", lambda r: r.observe_slow),
)
_GAUGES: Final[tuple[tuple[str, str, Callable[[Reading], float]], ...]] = (
    ("trireme_nfqueue_backlog_packets", "Packets waiting for a verdict.", lambda r: r.queues.backlog),
    ("trireme_identities_cached", "Verified identities of peers in memory.", lambda r: r.identities_cached),
    ("trireme_connections_half_open", "Exchanges under way.", lambda r: r.half_open),
    ("trireme_connections_established", "Judged connections the data path remembers.", lambda r: r.established),
    ("trireme_local_endpoints", "Pods enforced on this machine.", lambda r: r.endpoints),
    (
        "trireme_pods_not_enforced",
        "Pods the agent knows and does not enforce: of other machines, or not yet.",
        lambda r: r.not_enforced,
    ),
    (
        "trireme_installation_lasts",
        "1 while pods without an identity count as not yet identified.",
        lambda r: r.installing,
    ),
    ("trireme_policies", "Policies in force.", lambda r: r.policies),
    ("trireme_policy_revision", "Revision of pods and policies in force.", lambda r: r.policy_revision),
    (
        "trireme_config_problems",
        "Problems of the configuration folder, of API objects and of namespaces now.",
        lambda r: r.config_problems,
    ),
    (
        "trireme_assertion_not_after_timestamp_seconds",
        "Earliest end of validity of the local identities; 0 without pods.",
        lambda r: r.assertion_not_after,
    ),
    (
        "trireme_certificate_not_after_timestamp_seconds",
        "End of validity of this node's certificate; 0 without one.",
        lambda r: r.certificate_not_after,
    ),
)


def _plain(reading: Reading) -> Iterator[Metric]:
    for name, text, value in _COUNTERS:
        yield CounterMetricFamily(name, text, value=value(reading))
    for name, text, value in _GAUGES:
        yield GaugeMetricFamily(name, text, value=value(reading))


def _watches(readings: Mapping[str, WatchReading]) -> Iterator[Metric]:
    events = CounterMetricFamily("trireme_watch_events", "Changes told by the API server.", labels=("resource",))
    restarts = CounterMetricFamily(
        "trireme_watch_restarts", "Watches that broke off and were begun again.", labels=("resource", "reason")
    )
    last = GaugeMetricFamily(
        "trireme_watch_last_event_timestamp_seconds",
        "When the API server last told something; a sign of life counts, and comes each minute.",
        labels=("resource",),
    )
    for resource, reading in readings.items():
        events.add_metric((resource,), reading.events)
        for reason in REASONS:
            restarts.add_metric((resource, reason), reading.restarts.get(reason, 0))
        last.add_metric((resource,), reading.last_event)
    yield from (events, restarts, last)


def _pods(reading: ClusterReading) -> Iterator[Metric]:
    starts = CounterMetricFamily("trireme_pod_starts", "Pods that the CNI plugin asked about.", labels=("result",))
    starts.add_metric(("held",), reading.held)
    starts.add_metric(("refused",), reading.refused)
    yield starts
    text = "Pods of this node that rules cannot hold."
    yield GaugeMetricFamily("trireme_pods_unprotected", text, value=len(reading.unprotected))


def make_registry(info: BuildInfo, read: Callable[[], Reading]) -> CollectorRegistry:
    """Return a registry of our own with our families and the client's ones of process and interpreter."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(AgentCollector(info, read))
    return registry


class MetricsServer(HttpServer):
    """Serves ``/metrics``; without a registry it answers 503."""

    def __init__(self, address: str, port: int, registry: CollectorRegistry | None = None) -> None:
        """Listen; port 0 takes a free one. Raises ConfigError if the address cannot be had."""
        self._application: Application = _starting if registry is None else make_wsgi_app(registry)
        super().__init__("metrics", address, port, self._answer)
        log.info("metrics", extra=fields(url=f"{self.url}/metrics"))

    def show(self, registry: CollectorRegistry) -> None:
        """Serve what is in ``registry`` from now on."""
        self._application = make_wsgi_app(registry)

    def _answer(self, environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        return self._application(environment, start)


def _starting(_: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Say that there is nothing to count yet: the address is taken before the agent is complete."""
    start("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"the agent is starting\n"]

"""What others may read of the agent: metrics, the answers to probes, and its status.

All of it is read from counters that are kept anyway, at the moment when somebody asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version

from agent.config import AgentConfig
from agent.enforcement import PodEnforcement
from agent.health import Health, HealthServer
from agent.keys import Keys
from agent.kubernetes.reading import ClusterReading
from agent.metrics import BuildInfo, MetricsServer, Reading, make_registry
from agent.mode import Mode
from agent.outputs import Outputs
from agent.reconciler import Reconciler
from agent.rules import RuleBackend
from agent.runtime import RuntimeDirectory
from agent.status import PROBLEMS, Queues, Status, StatusServer, moment


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running agent."""

    config: AgentConfig
    runtime: RuntimeDirectory
    keys: Keys
    backend: RuleBackend
    outputs: Outputs
    enforcement: PodEnforcement
    reconciler: Reconciler
    mode: Mode
    installing: Callable[[], str | None] = lambda: None
    """Returns the nodes without an agent, for people, while the installation of agents lasts; None when it does not."""


class Reports:
    """Made before anything else: a probe is answered while the agent starts."""

    def __init__(self) -> None:
        self.health = Health()
        self._parts: Parts | None = None

    def answer_probes(self, config: AgentConfig, closing: ExitStack) -> None:
        """Answer them, if that is configured, on a port that one agent of a node can have. Raises ConfigError."""
        if config.health:
            closing.callback(HealthServer(*config.health, self.health).close)

    def start(self, parts: Parts, closing: ExitStack) -> None:
        """Serve metrics and status. Raises TriremeError."""
        self._parts = parts
        info = BuildInfo(version("trireme-py"), parts.backend.name, parts.config.datapath, parts.config.mode)
        if parts.config.metrics:
            metrics = MetricsServer(*parts.config.metrics, make_registry(info, lambda: reading_of(parts)))
            closing.callback(metrics.close)
        began_s = time.time()
        status = StatusServer(parts.runtime.status_socket, lambda: status_of(parts, info, self.health, began_s))
        closing.callback(status.close)

    def ready(self) -> None:
        """The agent is about to follow its source: from now on that has to be seen."""
        assert self._parts is not None, "ready() comes after start()"
        reconciler = self._parts.reconciler
        self.health.watch("reconciler", lambda: reconciler.ticks)
        self.health.started(lambda: ())


def reading_of(parts: Parts) -> Reading:
    """Read every counter; called from the threads of those who ask."""
    now, outputs, reconciler = parts.enforcement.read(), parts.outputs, parts.reconciler
    flow_log = outputs.flow_log
    return Reading(
        flows=outputs.counts.read(now.unrecorded),
        drops=now.drops,
        queues=now.queues,
        crashes=now.crashes,
        unproven_translations=now.unproven_translations,
        lookups=now.lookups,
        identities_cached=now.gauges.identities,
        half_open=now.gauges.opening + now.gauges.half_open,
        established=now.gauges.live,
        endpoints=len(reconciler.bound),
        policies=reconciler.policies,
        policy_revision=reconciler.revision,
        config_problems=len(reconciler.problems),
        rule_errors=reconciler.rule_errors,
        assertion_not_after=reconciler.assertion_not_after,
        flow_log_dropped=flow_log.dropped if flow_log else 0,
        observe_dropped=outputs.observe.dropped,
        observe_slow=outputs.observe.slow_subscribers,
        policy_apply=parts.mode.durations,
        not_enforced=reconciler.summary()["not_enforced"],
        certificate_not_after=parts.keys.not_after,
        key_changes=parts.keys.changes,
        installing=parts.installing() is not None,
        cluster=parts.mode.read(),
    )


def status_of(parts: Parts, info: BuildInfo, health: Health, began_s: float) -> Status:
    """Return what `trireme status` shows. ``began_s``: start of the agent, seconds since the Unix epoch."""
    reading, config, reconciler = reading_of(parts), parts.config, parts.reconciler
    flows: Counter[str] = Counter()
    for (_, verdict, _), count in reading.flows.items():
        flows[verdict] += count
    waited_for = parts.installing()
    queues, cluster = reading.queues, reading.cluster or ClusterReading()
    return Status(
        version=info.version,
        kind="kubernetes" if config.kubernetes else "standalone",
        mode=info.mode,
        trust_domain=config.trust_domain,
        backend=info.backend,
        datapath=info.datapath,
        started=moment(began_s),
        node=config.kubernetes.node if config.kubernetes else "",
        audit=config.audit,
        fail_mode=config.fail_mode.value,
        silent=tuple(health.silent()),
        missing=tuple(health.missing()),
        pods=reading.endpoints,
        not_enforced=reading.not_enforced,
        policies=reading.policies,
        revision=reading.policy_revision,
        flows=dict(flows),
        dropped=sum(reading.drops.values()),
        crashes=reading.crashes,
        rule_errors=reading.rule_errors,
        queues=Queues(
            queues.packets, queues.kernel_dropped + queues.user_dropped, queues.backlog, sum(queues.errors.values())
        ),
        identities_until=moment(reading.assertion_not_after) if reading.assertion_not_after else None,
        certificate_until=moment(parts.keys.not_after) if parts.keys.not_after else None,
        installation="" if config.kubernetes is None else "finished" if waited_for is None else "lasts",
        waited_for=waited_for or "",
        unprotected=tuple(f"{pod}: {why}" for pod, why in sorted(cluster.unprotected.items())[:PROBLEMS]),
        problems=(*cluster.problems, *map(str, reconciler.problems[:PROBLEMS])),
    )

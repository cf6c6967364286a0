"""What others may read of the agent: metrics, the answers to probes, and its status.

All of it is read from counters that are kept anyway, at the moment when somebody asks.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry

from agent.config import AgentConfig
from agent.enforcement import PodEnforcement
from agent.health import Health, HealthServer
from agent.keys import Keys
from agent.kubernetes.reading import ClusterReading
from agent.logs import fields
from agent.metrics import BuildInfo, MetricsServer, Reading, make_registry
from agent.mode import Mode
from agent.outputs import Outputs
from agent.reconciler import Reconciler
from agent.rules import RuleBackend
from agent.runtime import RuntimeDirectory
from agent.serving import try_address
from agent.status import PROBLEMS, Queues, Status, StatusServer, moment
from trireme_py.errors import ConfigError

log = logging.getLogger(__name__)

AGAIN_S: Final = 5.0
"""How often an address is tried that another program has."""


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
    """Made before anything else: a probe is answered while the agent starts.

    The addresses are those of the node, and one agent can have them. The first agent of a node takes them before it
    touches a pod. One that follows another cannot: there they come last, and an address that somebody else has by then
    is taken when it is free. Pods must not wait for that.
    """

    def __init__(self, config: AgentConfig, closing: ExitStack) -> None:
        """``closing`` closes what it opens."""
        self.health = Health()
        self.problems: tuple[str, ...] = ()
        """Addresses that could not be had yet, each with the reason. From any thread."""
        self._config = config
        self._version = version("trireme-py")  # reads files: not while pods wait
        self._registry: CollectorRegistry | None = None
        self._metrics: MetricsServer | None = None
        self._probes: HealthServer | None = None
        self._parts: Parts | None = None
        closing.callback(self._close)

    def listen(self) -> None:
        """Take the addresses, and answer probes from now on. Raises ConfigError if one cannot be had."""
        if refused := self._take():
            raise refused[0]

    def try_addresses(self) -> None:
        """Raise ConfigError if an address cannot be had at all, whoever has it now."""
        for field, address in (("health", self._config.health), ("metrics", self._config.metrics)):
            if address:
                try_address(field, *address)

    def start(self, parts: Parts, closing: ExitStack) -> None:
        """Serve status and, where the address is there, metrics. Raises KernelError."""
        self._parts = parts
        info = BuildInfo(self._version, parts.backend.name, parts.config.datapath, parts.config.mode)
        self._registry = make_registry(info, lambda: reading_of(parts, self._all_problems()))
        if self._metrics:
            self._metrics.show(self._registry)
        began_s = time.time()
        status = StatusServer(
            parts.runtime.status_socket, lambda: status_of(parts, info, self.health, began_s, self._all_problems())
        )
        closing.callback(status.close)

    def _all_problems(self) -> Sequence[str]:
        """Return what is wrong beside pods and policies."""
        assert self._parts is not None, "asked before start()"
        key = self._parts.keys.problem
        return (*self.problems, key) if key else self.problems

    def step(self) -> float | None:
        """Take the addresses that could not be had before; see :class:`agent.kubernetes.chores.Chore`."""
        before, self.problems = self.problems, tuple(map(str, self._take()))
        for text in self.problems:
            if text not in before:
                log.error("an address is not there yet; it is tried again and again", extra=fields(problem=text))
        for text in before:
            if text not in self.problems:
                log.info("the address is there now", extra=fields(problem=text))
        return AGAIN_S if self.problems else None

    def _take(self) -> list[ConfigError]:
        """Listen wherever it should and does not; return why that failed."""
        refused = []
        try:
            if self._config.health and not self._probes:
                self._probes = HealthServer(*self._config.health, self.health)
        except ConfigError as error:
            refused.append(error)
        try:
            if self._config.metrics and not self._metrics:
                self._metrics = MetricsServer(*self._config.metrics, self._registry)
        except ConfigError as error:
            refused.append(error)
        return refused

    def _close(self) -> None:
        for server in (self._metrics, self._probes):
            if server:
                server.close()

    def ready(self) -> None:
        """The agent is about to follow its source: from now on that has to be seen."""
        assert self._parts is not None, "ready() comes after start()"
        reconciler = self._parts.reconciler
        self.health.watch("reconciler", lambda: reconciler.ticks)
        self.health.started(lambda: ())


def reading_of(parts: Parts, problems: Sequence[str] = ()) -> Reading:
    """Read every counter; called from the threads of those who ask. ``problems``: those beside the configuration's."""
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
        config_problems=len(reconciler.problems) + len(problems),
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


def status_of(parts: Parts, info: BuildInfo, health: Health, began_s: float, problems: Sequence[str] = ()) -> Status:
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
        key_problem=parts.keys.problem,
        certificate_until=moment(parts.keys.not_after) if parts.keys.not_after else None,
        installation="" if config.kubernetes is None else "finished" if waited_for is None else "lasts",
        waited_for=waited_for or "",
        unprotected=tuple(f"{pod}: {why}" for pod, why in sorted(cluster.unprotected.items())[:PROBLEMS]),
        problems=(*problems, *cluster.problems, *map(str, reconciler.problems[:PROBLEMS])),
    )

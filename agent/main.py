"""The agent, put together: top to bottom, each part handed what it needs.

Logic lives in the parts. What matters here is the order: nothing answers before everything behind it stands, and what
stops, stops in the reverse order with the rules left in place.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from agent import config as configuration
from agent.backends import make_backend
from agent.config import AgentConfig
from agent.conntrack import NodeConntrack
from agent.enforcement import PodEnforcement
from agent.failmode import FailureCause, verdict_for_failure
from agent.fastqueue import FastQueue, FastThreads, worker_count
from agent.flowlog import open_target
from agent.health import Health, Rounds
from agent.issuing import Issuer
from agent.keys import Keys, load_keys
from agent.kubernetes.api import ApiServer
from agent.kubernetes.chores import Chores
from agent.kubernetes.mode import ClusterMode, access_of
from agent.kubernetes.rollout import Rollout
from agent.leaving import saying_what_stays
from agent.logs import fields
from agent.loop import Loop
from agent.marks import Marks
from agent.mode import Mode
from agent.netns import namespace_path
from agent.nfqueue import CrashGuard, PodQueue
from agent.notify import notify
from agent.outputs import Outputs
from agent.own_node import NodeRules
from agent.reconciler import Reconciler
from agent.reports import Parts, Reports
from agent.rules import RuleBackend
from agent.runtime import RuntimeDirectory
from agent.signals import on_stop
from agent.standalone import FolderMode
from agent.wanted import OWN_NAMESPACE
from policy.addresses import parse_network
from policy.engine import PolicyEngine
from policy.view import PRIVATE_NETWORKS, Settings
from trireme_py._fastpath import Workers
from trireme_py.auth import Authenticator
from trireme_py.datapath import Datapath
from trireme_py.endpoint import DatapathSettings
from trireme_py.errors import ConfigError, KernelError
from trireme_py.fast import FastDatapath
from trireme_py.identities import Identities
from trireme_py.model import Address, Verdict
from trireme_py.networks import NetworkSet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an agent has before it holds a pod."""

    config: AgentConfig
    runtime: RuntimeDirectory
    api: ApiServer | None
    keys: Keys
    backend: RuleBackend
    engine: PolicyEngine
    mode: Mode


def run(folder: Path) -> None:
    """Run the agent on ``folder`` until SIGTERM or SIGINT.

    In a cluster, where another agent has the node, it prepares everything and takes over when that one ends.
    Raises TriremeError if it cannot start: what is wrong with configuration, credentials or kernel.
    """
    stop, turn = threading.Event(), threading.Event()
    stopping: list[Callable[[], None]] = [stop.set]
    on_stop(stopping)
    config = load_configuration(folder)
    # What holds the pods is let go last, and at once then: the next agent may be waiting for it.
    with ExitStack() as holding, ExitStack() as closing:
        runtime = RuntimeDirectory(config.runtime_directory)
        holding.callback(runtime.release)
        holding.enter_context(saying_what_stays(runtime, folder, config.fail_mode))
        reports = Reports(config, closing)
        api = ApiServer(access_of(config.kubernetes)) if config.kubernetes else None
        engine = PolicyEngine(
            Settings((*PRIVATE_NETWORKS, *map(parse_network, map(str, config.pod_ranges))), config.audit)
        )
        mode: Mode
        if config.kubernetes and api:
            mode = ClusterMode(config.kubernetes, api, runtime, engine, stop, holding)
            first = runtime.lock_in_turn(lambda: call_each(turn.set, mode.wake), stop)
        else:
            mode = FolderMode(folder, runtime, stop)
            runtime.lock()
            first = True
        stopping.append(mode.wake)
        # Whatever is wrong with this agent shows before it touches a pod, or takes anything from another one.
        if first:
            turn.set()
            reports.listen()
        else:
            rehearse(config, reports)
        keys = load_keys(config, api, runtime.path, stop)
        backend = make_backend(config.rules)
        mode.prepare(turn, closing)
        if not turn.is_set():
            log.info("stopping; it was never this agent's turn")
            return
        if not first:
            log.info("taking over")
        prepared = Prepared(config, runtime, api, keys, backend, engine, mode)
        reconciler = hold_pods(prepared, reports, stop, holding, closing)
        if not stop.is_set():
            notify("READY=1")
            reports.ready()
            log.info("ready", extra=fields(**reconciler.summary(), rules=backend.name, observe=runtime.observe_socket))
        mode.follow(reconciler)
        notify("STOPPING=1")
        log.info("stopping; rules stay in place", extra=fields(remove_them_with=f"trireme cleanup --config {folder}"))


def rehearse(config: AgentConfig, reports: Reports) -> None:
    """Try what depends on the configuration and is done only when it is our turn. Raises TriremeError."""
    reports.try_addresses()
    node_conntrack(config, _node_namespace(config)).close()
    if config.flow_log:
        os.close(open_target(config.flow_log))


def hold_pods(
    prepared: Prepared, reports: Reports, stop: threading.Event, holding: ExitStack, closing: ExitStack
) -> Reconciler:
    """Bring this node's pods under enforcement, and what goes with it. Raises TriremeError."""
    config, runtime, mode, keys = prepared.config, prepared.runtime, prepared.mode, prepared.keys
    outputs = Outputs(config, runtime, holding)
    runtime.write_node(_node_namespace(config))
    enforcement = start_enforcement(config, keys.authenticator, prepared.backend, outputs, reports.health, holding)
    issuer = Issuer(keys.authenticator, config.assertion_lifetime_s, os.urandom, time.time)
    reconciler = Reconciler(mode.source, prepared.engine, issuer, enforcement, runtime)
    holding.callback(reconciler.stop)
    holding.callback(enforcement.wind_up)

    def replaced() -> None:
        issuer.renew_all()
        enforcement.forget_peers()

    keys.on_replaced = replaced
    parts = Parts(config, runtime, keys, prepared.backend, outputs, enforcement, reconciler, mode)
    rollout = Rollout(config.kubernetes, prepared.api, runtime.path) if config.kubernetes and prepared.api else None
    if rollout:
        parts = replace(parts, installing=lambda: rollout.missing)
        rollout.begin(reconciler.set_installing, stop)
    mode.start(closing)
    reports.start(parts, closing)
    # Here it begins to touch pods: what can fail for the configuration is above.
    reconciler.start()
    enforcement.lay_node()
    outputs.observe.start()
    reports.step()
    chores = Chores([reports, keys, *(rollout.chores if rollout else ())])
    chores.start()
    closing.callback(chores.stop)
    return reconciler


def call_each(*calls: Callable[[], None]) -> None:
    for call in calls:
        call()


def start_enforcement(
    config: AgentConfig,
    authenticator: Authenticator,
    backend: RuleBackend,
    outputs: Outputs,
    health: Health,
    closing: ExitStack,
) -> PodEnforcement:
    """Start the data path's thread, without pods. Raises KernelError, or ConfigError for a namespace that was named."""
    node_namespace = _node_namespace(config)
    conntrack = node_conntrack(config, node_namespace)
    closing.callback(conntrack.close)
    node = NodeRules(node_namespace, config.pod_ranges or config.identity_scope, backend)
    closing.callback(node.close)

    def translate(
        _endpoint: int, protocol: int, source: Address, sport: int, destination: Address, dport: int
    ) -> tuple[Address, int] | None:
        return conntrack.translate(protocol, source, sport, destination, dport)

    def on_failure(error: Exception) -> Verdict:
        guard.crashes += 1
        log.warning("a packet made the data path fail", exc_info=error)
        return verdict_for_failure(config.fail_mode, FailureCause.CRASH)

    guard = CrashGuard()
    settings = DatapathSettings(
        identity_scope=NetworkSet(map(str, config.identity_scope)),
        pod_ranges=NetworkSet(map(str, config.pod_ranges)),
        node_addresses=frozenset(node.own.addresses),
        require_translation_evidence=config.require_translation_evidence,
    )
    identities = Identities(authenticator)
    open_queue: Callable[..., PodQueue] = PodQueue
    if config.datapath == "python":
        datapath = Datapath(identities, settings, entropy=os.urandom, translate=translate, on_failure=on_failure)
    else:
        datapath = FastDatapath(
            identities,
            settings,
            seed=os.urandom(16),
            entropy=os.urandom,
            translate=translate,
            on_failure=on_failure,
        )
        open_queue = partial(FastQueue, threads=FastThreads(Workers(worker_count()), conntrack.table))
    loop = Loop(datapath, guard, outputs.publish)
    loop.start()
    closing.callback(loop.stop)
    health.watch("data path", Rounds(loop))
    closing.callback(health.stopping)
    return PodEnforcement(
        datapath,
        loop,
        guard,
        backend,
        marks=Marks(config.mark_mask),
        queue=config.queue,
        fail_mode=config.fail_mode,
        node=node,
        open_queue=open_queue,
    )


def load_configuration(folder: Path) -> AgentConfig:
    """Read the configuration, and warn of what weakens it. Raises ConfigError."""
    config = configuration.load(folder)
    for field, text in configuration.cautions(config):
        log.warning("caution", extra=fields(field=field, meaning=text))
    return config


def _node_namespace(config: AgentConfig) -> Path:
    return namespace_path(config.node_network_namespace or OWN_NAMESPACE)


def node_conntrack(config: AgentConfig, namespace: Path) -> NodeConntrack:
    """Open the conntrack table of the node. Raises KernelError, or ConfigError if a namespace was named."""
    try:
        return NodeConntrack(namespace)
    except KernelError as error:
        if config.node_network_namespace is None:
            raise
        raise ConfigError(f"spec.nodeNetworkNamespace: {error}") from error


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one.

    Each pod takes four descriptors: the usual soft limit of 1024 would be reached at some two hundred pods.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

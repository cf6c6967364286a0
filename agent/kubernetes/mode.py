"""The agent of a cluster, put together: watches and the CNI plugin's requests in, one thread that acts on them."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Final

from agent.durations import Durations
from agent.kubernetes import kubeconfig
from agent.kubernetes.api import Access, ApiServer, in_cluster
from agent.kubernetes.cni import SOCKET, CniServer
from agent.kubernetes.config import NODE_VARIABLE, KubernetesConfig
from agent.kubernetes.discovery import Discovery
from agent.kubernetes.holding import Holding
from agent.kubernetes.inbox import Inbox
from agent.kubernetes.lastknown import LastKnown
from agent.kubernetes.presence import Presence
from agent.kubernetes.readiness import READY_FILE, Readiness
from agent.kubernetes.reading import ClusterReading
from agent.kubernetes.reflector import Reflector
from agent.kubernetes.resources import watched
from agent.kubernetes.sandboxes import RECORD, Sandboxes
from agent.kubernetes.source import ClusterSource
from agent.reconciler import Reconciler
from agent.runtime import RuntimeDirectory
from policy.engine import PolicyEngine, Snapshot
from trireme_py.errors import ConfigError

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
PAUSE_S: Final = 0.01
"""The least time between two passes: what comes in a burst is brought into force together."""


def access_of(config: KubernetesConfig) -> Access:
    """Return where the API server is and who we are. Raises ConfigError."""
    if not config.node:
        raise ConfigError(f"spec.kubernetes.node: missing: write the name of this node, or set {NODE_VARIABLE}")
    return kubeconfig.read(config.kubeconfig) if config.kubeconfig else in_cluster()


def names_nodes(snapshot: Snapshot) -> bool:
    """Tell whether a rule of some policy is about nodes."""
    rules = (rule for policy in snapshot.cluster_policies.values() for side in policy.rules.values() for rule in side)
    return any(rule.nodes for rule in rules)


class Pass:
    """One turn of the thread that acts."""

    def __init__(
        self, inbox: Inbox, source: ClusterSource, holding: Holding, engine: PolicyEngine, durations: Durations
    ) -> None:
        self._inbox = inbox
        self._source = source
        self._holding = holding
        self._engine = engine
        self._durations = durations

    def run(self, reconciler: Reconciler, *, tick: bool = False) -> None:
        """Bring what has come into force, let those go on who wait for it, and write down what is known now."""
        self._holding.begin()
        # Starts that came together need not wait for the last of them.
        reconciler.on_bound = partial(self._holding.answer, reconciler)
        if tick:
            reconciler.tick()
        else:
            reconciler.changed()
        if self._source.since_s is not None:
            self._durations.observe(time.monotonic() - self._source.since_s)
            self._source.since_s = None
        self._holding.end(reconciler)
        reconciler.lay_epochs(self._inbox.waiting)
        self._source.write(self._engine)


class ClusterMode:
    """Implements :class:`agent.mode.Mode`."""

    def __init__(
        self,
        config: KubernetesConfig,
        api: ApiServer,
        runtime: RuntimeDirectory,
        engine: PolicyEngine,
        stop: threading.Event,
        closing: ExitStack,
    ) -> None:
        """``closing`` closes what it opens. ``stop``: ends :meth:`prepare` and :meth:`follow`, with :meth:`wake`."""
        self._stop = stop
        self._kubeconfig = config.kubeconfig
        self._inbox = Inbox()
        closing.callback(self._inbox.close)
        resources = watched(config.node)
        self._sandboxes = sandboxes = Sandboxes(runtime.path / RECORD)
        sandboxes.restore()
        self.source = ClusterSource(
            resources,
            self._inbox,
            sandboxes,
            Discovery(config.network_namespaces, sandboxes),
            LastKnown(runtime.last_good, config.node),
            stop,
        )
        self._engine = engine
        self._reflectors = [Reflector(api, one, self._inbox) for one in resources if not one.on_demand]
        self._nodes = next(Reflector(api, one, self._inbox) for one in resources if one.kind == "Node")
        pods = next(one for one in self._reflectors if one.resource.kind == "Pod")
        self._holding = Holding(self.source, lambda: pods.trouble, refuse=config.unprotected == "refuse")
        self._server = CniServer(runtime.path / SOCKET, self._holding, sandboxes, config.network_namespaces)
        self.durations = Durations()
        self._pass = Pass(self._inbox, self.source, self._holding, engine, self.durations)
        self._presence = Presence(config, api, runtime, engine)

    def prepare(self, turn: threading.Event, closing: ExitStack) -> None:
        """Begin to watch, and learn what there is. Where another agent has the node, keep up with it until ``turn`` is
        set: then pods wait for nothing but the change itself. Returns also when told to stop.
        """
        self._readiness = Readiness(closing, None if self._kubeconfig else READY_FILE)
        closing.callback(self._stop_watching)
        for reflector in self._reflectors:
            reflector.start()
        self._presence.start(closing)
        if turn.is_set():
            return
        self.source.first()
        log.info("ready to take over")
        while not (turn.is_set() or self._stop.is_set()):
            self.source.feed(self._engine)
            self._watch_nodes()
            self.source.stale()  # finds namespaces
            for one in self.source.candidates():
                self._engine.snapshot.view(one.pod.namespace, one.pod.name)  # compiles its policy
            self._readiness.mark()
            self._inbox.wait(TICK_S)

    def start(self, closing: ExitStack) -> None:
        """Take over what an agent before was told, and answer the CNI plugin. Raises ConfigError."""
        self._sandboxes.restore()
        self.source.look_again()
        self._server.start()
        closing.callback(self._server.close)

    def _stop_watching(self) -> None:
        for reflector in self._reflectors:
            reflector.stop()

    def _watch_nodes(self) -> None:
        """Watch the nodes as soon as some policy is about them: in a large cluster they never rest."""
        if self._nodes not in self._reflectors and names_nodes(self._engine.snapshot):
            self._nodes.start()
            self._reflectors = [*self._reflectors, self._nodes]

    def wake(self) -> None:
        """Make :meth:`prepare` and :meth:`follow` look whether something has changed for them. From any thread."""
        self._inbox.wake()

    def read(self) -> ClusterReading:
        return ClusterReading(
            watches={one.resource.name: one.reading for one in self._reflectors},
            held=self._server.held,
            refused=self._server.refused,
            unprotected=self.source.unholdable,
            problems=self._presence.problems,
        )

    def follow(self, reconciler: Reconciler) -> None:
        """Bring what the API server and the runtime say into force, and tick once a second, until told to stop."""
        self._readiness.mark()
        self._pass.run(reconciler)
        self._watch_nodes()
        due_s = time.monotonic() + TICK_S
        while not self._stop.is_set():
            if self._inbox.wait(due_s - time.monotonic()):
                self._pass.run(reconciler)
                self._watch_nodes()
                self._stop.wait(PAUSE_S)
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + TICK_S
                self._pass.run(reconciler, tick=True)
                self._presence.tick()
        self._presence.end()

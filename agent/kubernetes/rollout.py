"""This agent's part in the installation of agents, node by node (agent/kubernetes/leases.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from agent.kubernetes.access import own_namespace
from agent.kubernetes.calls import Api
from agent.kubernetes.chores import Chore
from agent.kubernetes.config import KubernetesConfig
from agent.kubernetes.leases import Announcer, Installation


class Rollout:
    """Announces this node, and follows whether the installation lasts."""

    def __init__(self, config: KubernetesConfig, api: Api, directory: Path) -> None:
        """``directory``: the runtime directory. Raises ConfigError if this is no pod, and no kubeconfig is given."""
        self._installation: Installation | None = None
        self.chores: tuple[Chore, ...] = ()
        """To be run when this node's pods have identities: others are told so."""
        # Who runs the agent with a kubeconfig runs it himself: there is no namespace of agents, and no installation.
        if config.kubeconfig is None:
            namespace = own_namespace("spec.kubernetes.kubeconfig")
            self._installation = Installation(api, config.node, namespace, directory)
            # In this order: the last agent to announce itself may be the one that compares.
            self.chores = (Announcer(api, config.node, namespace), self._installation)

    def begin(self, set_installing: Callable[[bool], None], stop: threading.Event) -> None:
        """Find out whether the installation lasts, and say so, now and when it ends. Call it before pods are held.

        Returns without knowing if ``stop`` is set.
        """
        if self._installation is not None:
            self._installation.on_finished = lambda: set_installing(False)
            self._installation.begin(stop)
            set_installing(self._installation.lasts)

    @property
    def missing(self) -> str | None:
        """The nodes whose pods have no identities yet, for people; None when the installation is over.

        Empty while nobody has looked. From any thread.
        """
        if self._installation is None or not self._installation.lasts:
            return None
        return self._installation.missing

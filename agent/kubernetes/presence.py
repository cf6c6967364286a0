"""What the agent has on its node beside rules: there as long as the installation is, and gone with it."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from agent.kubernetes.access import own_namespace
from agent.kubernetes.api import ApiServer
from agent.kubernetes.config import KubernetesConfig
from agent.kubernetes.departure import Departure
from agent.leaving import cni_installation, leave
from agent.logs import fields
from agent.runtime import RuntimeDirectory
from policy.engine import PolicyEngine
from policy.objects import Namespace
from trireme_py.errors import TriremeError

log = logging.getLogger(__name__)


class Presence:
    """Use it from one thread."""

    def __init__(
        self, config: KubernetesConfig, api: ApiServer, runtime: RuntimeDirectory, engine: PolicyEngine
    ) -> None:
        """Raises ConfigError if this is no pod, and no kubeconfig is given."""
        self.problems: tuple[str, ...] = ()
        """What keeps pods from being held from their start."""
        self._cni = config.cni
        self._runtime = runtime
        self._installation = cni_installation(runtime, config.cni) if config.cni else None
        self._departure = None
        # Who runs the agent with a kubeconfig runs it himself, and stops it when he likes.
        if config.kubeconfig is None:
            namespace = own_namespace("spec.kubernetes.kubeconfig")

            def terminating() -> bool:
                found = engine.objects.get(f"Namespace/{namespace}")
                return isinstance(found, Namespace) and found.terminating

            self._departure = Departure(api, namespace, terminating)

    def start(self, closing: ExitStack) -> None:
        """Follow the installation; ``closing`` ends it."""
        if self._departure is not None:
            self._departure.start()
            closing.callback(self._departure.stop)

    def tick(self) -> None:
        """Put into place what is not there, or not any more. To be called once a second by an agent that is ready:
        pods start to wait for it here.
        """
        problems = self._installation.repair() if self._installation else ()
        for text in set(problems) - set(self.problems):
            log.warning("pods are not held from their start", extra=fields(problem=text))
        self.problems = problems

    def end(self) -> None:
        """The agent stops: leave everything for the next one, or, if there will be none, nothing."""
        if self._departure is None or not self._departure.final():
            return
        log.info("the installation ends; removing every rule and file")
        try:
            failed = leave(self._runtime, self._cni, log.info)
        except TriremeError as error:
            failed = [str(error)]
        for text in failed:
            log.error("something of ours stays", extra=fields(problem=text, run="trireme cleanup"))

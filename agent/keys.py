"""This node's keys as the agent has them: loaded from files, or from the cluster, and replaced while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agent.config import AgentConfig
from agent.credentials import PresharedKey, load_pki
from agent.kubernetes.calls import Api
from agent.kubernetes.csr import load_from_cluster
from trireme_py.auth import Authenticator
from trireme_py.auth_pki import PkiAuthenticator
from trireme_py.errors import ConfigError


class Keys(Protocol):
    """What vouches for this node's pods; its ``step`` is a chore (agent/kubernetes/chores.py)."""

    on_replaced: Callable[[], None]
    """Called, on the thread of ``step``, when other keys are in use."""

    @property
    def authenticator(self) -> Authenticator:
        """The same one for as long as the agent runs."""

    @property
    def changes(self) -> int:
        """How often other keys have come into use. From any thread."""

    @property
    def problem(self) -> str:
        """Why a start would not find the keys that are in use, and what to do; empty if it would. From any thread."""

    @property
    def not_after(self) -> float:
        """End of the node's certificate, seconds since the Unix epoch; 0 without one. From any thread."""

    def step(self) -> float | None:
        """Look whether there are other keys; return the seconds until the next time, None for never."""


class FixedKeys:
    """Keys that stay as they are until the agent is restarted."""

    def __init__(self, authenticator: PkiAuthenticator) -> None:
        self.authenticator = authenticator
        self.changes = 0
        self.problem = ""
        self.not_after = float(authenticator.certificate.not_after)
        self.on_replaced: Callable[[], None] = lambda: None

    def step(self) -> None:
        return None


def load_keys(config: AgentConfig, api: Api | None, directory: Path, stop: threading.Event) -> Keys:
    """Return this node's keys.

    ``api``: the API server, in a cluster; there PKI mode waits for a certificate until ``stop`` is set.
    ``directory``: the runtime directory.

    :raises CredentialError: they cannot be used, or ``stop`` was set
    """
    paths = config.credentials
    if config.mode == "psk":
        if paths.preshared_key is None:
            raise ConfigError("spec.credentials.presharedKey: missing")
        return PresharedKey(paths.preshared_key, config.trust_domain)
    if config.kubernetes is not None and api is not None and paths.authority is not None:
        return load_from_cluster(api, config.kubernetes.node, config.trust_domain, paths.authority, directory, stop)
    if paths.key is None or paths.certificate is None or paths.authority is None:
        raise ConfigError("spec.credentials: key, certificate and authority are needed")
    return FixedKeys(load_pki(paths.key, paths.certificate, paths.authority, config.trust_domain, time.time()))

"""How a command reaches the API server: as the pod that it runs in, or by a kubeconfig."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.kubernetes.api import ApiServer, in_cluster
from agent.kubernetes.kubeconfig import read
from trireme_py.errors import ConfigError

NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def api_server(kubeconfig: Path | None, name: str) -> ApiServer:
    """Return the API server of a kubeconfig, or of the pod that this is. ``name``: what its log calls us.

    :raises ConfigError: there is none
    """
    if kubeconfig is not None:
        return ApiServer(read(kubeconfig), name)
    if not NAMESPACE_FILE.exists():
        raise ConfigError(f"{NAMESPACE_FILE}: is not there, so this is no pod; run it with: --kubeconfig FILE")
    return ApiServer(in_cluster(), name)


def own_namespace(option: str) -> str:
    """Return the namespace of the pod that this is. ``option``: what says it elsewhere. Raises ConfigError."""
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigError(f"{NAMESPACE_FILE}: is not there, so this is no pod; run it with: {option}") from None

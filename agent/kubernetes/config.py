"""The mapping ``spec.kubernetes`` of an AgentConfig. Its presence makes the agent take pods and policies from the API
server (docs/kubernetes.md); each part of the agent on a node has its fields here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from agent.kubernetes.cni_install import BINARIES, CONFIGURATION
from agent.netns import RUN_DIR

NODE_VARIABLE: Final = "NODE_NAME"
"""Environment variable that the manifests fill with ``spec.nodeName`` of the agent's own pod."""
_NODE_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # DNS subdomain (RFC 1123)

Report = Callable[[str, str], None]
"""Takes what is wrong: the field's path below ``spec.kubernetes``, and a text."""


@dataclass(frozen=True, slots=True)
class CniConfig:
    """The node's CNI chain, in which our plugin is to be."""

    configuration: Path = CONFIGURATION
    """The folder with the runtime's network configurations, as the agent sees it."""
    binaries: Path = BINARIES
    """The folder with the runtime's plugins, as the agent sees it."""
    timeout_s: int = 30
    """How long the start of a pod waits for the agent; then it fails, and the kubelet tries again."""


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """How the agent is part of a cluster."""

    node: str
    """The name of this machine's Node object: its pods are ours. Empty where nobody said, as on a desk."""
    kubeconfig: Path | None
    """Where the API server is and who we are; None: the service account of the agent's own pod."""
    network_namespaces: tuple[Path, ...] = (RUN_DIR,)
    """The folders in which the runtime pins the namespaces of pods, as the agent sees them."""
    cni: CniConfig | None = None
    """None: pods are found after they have started, and not held before."""
    unprotected: Literal["declare", "refuse"] = "declare"
    """What becomes of pods that rules cannot hold: they are listed, or do not start."""


class _CniDocument(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    configuration: str = str(CONFIGURATION)
    binaries: str = str(BINARIES)
    timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=600)] = 30


class KubernetesDocument(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The mapping as it is written."""

    node: str | None = None
    kubeconfig: str | None = None
    network_namespaces: list[str] = msgspec.field(default_factory=lambda: [str(RUN_DIR)])
    cni: _CniDocument | None = None
    unprotected: Literal["declare", "refuse"] = "declare"


def from_document(document: KubernetesDocument, folder: Path, report: Report) -> KubernetesConfig:
    """Return the configuration, which is of use only if nothing was reported. Paths are relative to ``folder``."""
    node = document.node if document.node is not None else os.environ.get(NODE_VARIABLE, "")
    if node and not _NODE_NAME.fullmatch(node):
        report("node", f"{node!r} is not the name of a Node object; see: kubectl get nodes")
    kubeconfig = None if document.kubeconfig is None else (folder / document.kubeconfig).absolute()
    folders = tuple(_absolute(value, "networkNamespaces", report) for value in document.network_namespaces)
    cni = None
    if document.cni is not None:
        cni = CniConfig(
            _absolute(document.cni.configuration, "cni", report),
            _absolute(document.cni.binaries, "cni", report),
            document.cni.timeout_seconds,
        )
    return KubernetesConfig(node, kubeconfig, folders, cni, document.unprotected)


def _absolute(value: str, field: str, report: Report) -> Path:
    if not value.startswith("/"):
        report(field, f"{value!r} is not an absolute path")
    return Path(value)

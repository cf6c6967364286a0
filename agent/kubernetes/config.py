"""The mapping ``spec.kubernetes`` of an AgentConfig. Its presence makes the agent take pods and policies from the API
server (docs/kubernetes.md); each part of the agent on a node has its fields here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

NODE_VARIABLE: Final = "NODE_NAME"
"""Environment variable that the manifests fill with ``spec.nodeName`` of the agent's own pod."""
_NODE_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # DNS subdomain (RFC 1123)

Report = Callable[[str, str], None]
"""Takes what is wrong: the field's path below ``spec.kubernetes``, and a text."""


@dataclass(frozen=True, slots=True)
class KubernetesConfig:
    """How the agent is part of a cluster."""

    node: str
    """The name of this machine's Node object: its pods are ours. Empty where nobody said, as on a desk."""
    kubeconfig: Path | None
    """Where the API server is and who we are; None: the service account of the agent's own pod."""


class KubernetesDocument(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The mapping as it is written."""

    node: str | None = None
    kubeconfig: str | None = None


def from_document(document: KubernetesDocument, folder: Path, report: Report) -> KubernetesConfig:
    """Return the configuration, which is of use only if nothing was reported. Paths are relative to ``folder``."""
    node = document.node if document.node is not None else os.environ.get(NODE_VARIABLE, "")
    if node and not _NODE_NAME.fullmatch(node):
        report("node", f"{node!r} is not the name of a Node object; see: kubectl get nodes")
    kubeconfig = None if document.kubeconfig is None else (folder / document.kubeconfig).absolute()
    return KubernetesConfig(node, kubeconfig)

"""A cluster that is larger than it is: pods of a node that nobody runs, as far as the API server knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster import images
from tests.cluster.cluster import Cluster

NODE = "trm-nowhere"
"""Without the label of its operating system: no DaemonSet wants to run there."""
NAMESPACES = tuple(f"elsewhere-{number}" for number in range(10))
_LONG_S = 300.0


def _create(cluster: Cluster, objects: Sequence[dict[str, Any]]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    cluster.kubectl("create", "-f", "-", input=json.dumps(listed), timeout=_LONG_S)


def _pod(number: int) -> dict[str, Any]:
    metadata = {
        "name": f"pod-{number}",
        "namespace": NAMESPACES[number % len(NAMESPACES)],
        "labels": {"app": f"app-{number % 50}", "tier": ("web", "work", "data")[number % 3], "trm-elsewhere": "true"},
    }
    spec = {
        "nodeName": NODE,
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],  # its node will be found not ready, and nobody shall evict it
        "containers": [{"name": "main", "image": images.AGNHOST}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@dataclass
class Elsewhere:
    """The made-up node, and how many pods it has."""

    cluster: Cluster
    pods: int = field(default=0, init=False)

    def grow(self, pods: int) -> None:
        """Make pods until there are so many."""
        _create(self.cluster, [_pod(number) for number in range(self.pods, pods)])
        self.pods = pods


@contextmanager
def elsewhere(cluster: Cluster) -> Iterator[Elsewhere]:
    """Make the node and its namespaces; everything of it goes at the end."""
    try:
        _create(cluster, [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}])
        _create(cluster, [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in NAMESPACES])
        yield Elsewhere(cluster)
    finally:
        cluster.kubectl("delete", "namespace", *NAMESPACES, "--ignore-not-found", "--timeout=300s", timeout=_LONG_S)
        cluster.kubectl("delete", "node", NODE, "--ignore-not-found")

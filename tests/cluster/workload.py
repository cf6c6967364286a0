"""What users have on a cluster: deployments, services and policies of one namespace; and who reaches whom."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from tests.cluster import images
from tests.cluster.cluster import Cluster

Manifest = dict[str, Any]
PORT = 8080
_CONNECT = """\
patience=$1; shift
for target; do
    (timeout $patience /agnhost connect --timeout=${patience}s "$target" >/dev/null 2>&1 && echo "$target") &
done
wait
"""
DNS = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }
    ],
    "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
}
"""The egress rule that lets pods look names up."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that runs."""

    name: str
    node: str
    addresses: tuple[str, ...]
    """The one of IPv4, then the one of IPv6."""

    @property
    def targets(self) -> list[str]:
        """Where its server listens, in both families."""
        return [at(address) for address in self.addresses]


def at(address: str, port: int = PORT) -> str:
    """Return address and port as one word."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def deployment(name: str, labels: Mapping[str, str] = {}, replicas: int = 2, **container: object) -> Manifest:
    """A Deployment of agnhost, spread over the nodes. Its own label ``app`` selects; ``labels`` come beside it."""
    own = {"app": name}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": own},
    }
    spec = {
        "terminationGracePeriodSeconds": 0,
        "enableServiceLinks": False,
        "topologySpreadConstraints": [spread],
        "containers": [{"name": "main", "image": images.AGNHOST, "imagePullPolicy": "Never", **container}],
    }
    template = {"metadata": {"labels": {**own, **labels}}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": own}, "template": template},
    }


def server(name: str, labels: Mapping[str, str] = {}, replicas: int = 2) -> Manifest:
    """A Deployment that answers on :data:`PORT`, and whose kubelets ask it all the time whether it does."""
    ask = {"httpGet": {"path": "/hostname", "port": PORT}, "timeoutSeconds": 30}  # a slow machine is not unwell
    return deployment(
        name,
        labels,
        replicas,
        args=["netexec", f"--http-port={PORT}", "--udp-port=-1"],
        readinessProbe={**ask, "periodSeconds": 1},
        livenessProbe={**ask, "periodSeconds": 2, "failureThreshold": 3},
    )


def service(name: str) -> Manifest:
    """A Service of both families, port 80, before the pods of the Deployment of the same name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": PORT}],
        },
    }


def policy(name: str, pods: Mapping[str, str], **directions: Sequence[Manifest]) -> Manifest:
    """A NetworkPolicy for the pods with the labels ``pods``; ``ingress=`` and ``egress=`` give the rules of each."""
    spec = {
        "podSelector": {"matchLabels": dict(pods)},
        "policyTypes": [direction.capitalize() for direction in directions],
        **{direction: list(rules) for direction, rules in directions.items()},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


@dataclass(frozen=True, slots=True)
class Place:
    """One namespace of ours."""

    cluster: Cluster
    name: str

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as Cluster.kubectl
        return self.cluster.kubectl("-n", self.name, *arguments, input=input)

    def apply(self, *objects: Manifest) -> None:
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def wait(self, *deployments: str) -> None:
        """Return when the Deployments have all their pods, and each is ready."""
        for name in deployments:
            self.kubectl("rollout", "status", f"deployment/{name}", "--timeout=280s")

    def pods(self, app: str) -> list[Pod]:
        """Return the pods of the Deployment ``app`` that are there to stay, by node."""
        found = json.loads(self.kubectl("get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
        pods = [
            Pod(
                one["metadata"]["name"],
                one["spec"]["nodeName"],
                tuple(each["ip"] for each in one["status"].get("podIPs", ())),
            )
            for one in found
            if "deletionTimestamp" not in one["metadata"] and "nodeName" in one["spec"]
        ]
        return sorted(pods, key=lambda pod: (pod.node, pod.name))

    def reached(self, pod: Pod, targets: Sequence[str], patience_s: int) -> set[str]:
        """Let a pod connect to all targets at once; return those that it reached within ``patience_s`` seconds."""
        command = ("exec", pod.name, "--", "sh", "-c", _CONNECT, "sh", str(patience_s))
        return set(self.kubectl(*command, *targets).split())

    def reached_by(self, pods: Sequence[Pod], targets: Sequence[str], patience_s: int) -> dict[str, set[str]]:
        """The same for several pods at once, by their names."""
        with ThreadPoolExecutor(len(pods)) as pool:
            found = pool.map(lambda pod: self.reached(pod, targets, patience_s), pods)
            return {pod.name: reached for pod, reached in zip(pods, found, strict=True)}


@contextmanager
def place(cluster: Cluster, name: str, **labels: str) -> Iterator[Place]:
    """Make a namespace whose name begins with ``name``; it goes at the end, with all that is in it."""
    name = f"{name}-{secrets.token_hex(3)}"
    metadata = {"name": name, "labels": labels}
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
    try:
        yield Place(cluster, name)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")

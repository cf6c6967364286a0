"""Small clusters for tests, written as YAML without the ceremony."""

from __future__ import annotations

from typing import Any

import yaml

from policy.addresses import parse_address
from policy.decode import decode
from policy.engine import PolicyEngine
from policy.evaluate import OFFLINE, Evaluator, identity_of
from policy.objects import Object, Pod
from policy.validate import PROTOCOLS
from policy.view import Settings
from trireme_py.model import Decision, Direction

VERSIONS = {
    "Namespace": "v1",
    "Pod": "v1",
    "Node": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2",
}
NUMBERS = {**PROTOCOLS, "ICMP": 1}


def obj(kind: str, name: str, text: str = "", **metadata: Any) -> Object:
    """Make an object: ``name`` may be ``namespace/name``; ``text`` is its spec, or with ``status:`` spec and status."""
    namespace, _, short = name.rpartition("/")
    body = yaml.safe_load(text) or {}
    if not ({"spec", "status"} & body.keys()):
        body = {"spec": body}
    meta = {"name": short, **({"namespace": namespace} if namespace else {}), **metadata}
    item, _ = decode({"apiVersion": VERSIONS[kind], "kind": kind, "metadata": meta, **body})
    assert item is not None, (kind, name)
    return item


def pod(name: str, *addresses: str, ports: str = "[]", **labels: str) -> Pod:
    """Make a running pod; ``ports`` is YAML such as ``[{containerPort: 80, name: http}]``."""
    status = {"phase": "Running", "podIPs": [{"ip": text} for text in addresses]}
    spec = {"containers": [{"name": "c", "ports": yaml.safe_load(ports)}]}
    item = obj("Pod", name, yaml.safe_dump({"spec": spec, "status": status}), labels=labels)
    assert isinstance(item, Pod)
    return item


def policy(name: str, text: str, **metadata: Any) -> Object:
    return obj("NetworkPolicy", name, text, **metadata)


def cluster_policy(name: str, text: str, **metadata: Any) -> Object:
    return obj("ClusterNetworkPolicy", name, text, **metadata)


def namespace(name: str, **labels: str) -> Object:
    return obj("Namespace", name, labels=labels)


class World:
    """A running engine and short questions to it."""

    def __init__(self, *objects: Object, settings: Settings = OFFLINE) -> None:
        self.engine = PolicyEngine(settings)
        self.engine.replace(objects)

    def add(self, *objects: Object) -> World:
        self.engine.apply(*objects)
        return self

    def ask(self, source: str, destination: str, port: int | None = 80, protocol: str = "TCP") -> str:
        """Return ``yes``, or which sides say no: ``ingress``, ``egress`` or ``both``."""
        outcome = Evaluator(self.engine.snapshot).verdict(source, destination, NUMBERS[protocol], port)
        if outcome.allowed:
            return "yes"
        if outcome.ingress.allowed:
            return "egress"
        return "ingress" if outcome.egress.allowed else "both"

    def decide(
        self,
        local: str,
        direction: Direction,
        peer: Pod | None,
        address: str = "192.0.2.1",
        port: int | None = 80,
        protocol: str = "TCP",
    ) -> Decision:
        """Ask as the data path does: one side, with the peer's identity or none."""
        view = self.engine.snapshot.view(*local.split("/"))
        identity = None if peer is None else identity_of(peer)
        return view.decide(direction, identity, parse_address(address), NUMBERS[protocol], port)

    def fingerprint(self, name: str) -> bytes:
        return self.engine.snapshot.view(*name.split("/")).fingerprint

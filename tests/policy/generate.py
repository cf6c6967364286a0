"""Random clusters, policies and questions from a vocabulary so small that everything collides with everything."""

from __future__ import annotations

from random import Random
from typing import Any

Doc = dict[str, Any]

NAMESPACES = ("n1", "n2", "n3")
KEYS = ("app", "tier")
VALUES = ("a", "b", "")
ADDRESSES = tuple(f"10.0.0.{n}" for n in range(6)) + tuple(f"fd00::{n}" for n in range(6))
OUTSIDE = ("10.0.1.1", "192.0.2.1", "fd00:1::1", "2001:db8::1", "::ffff:10.0.0.1")
BLOCKS = (
    ("10.0.0.0/24", ("10.0.0.0/31", "10.0.0.2/32", "10.0.0.3/30")),
    ("10.0.0.5/24", ("10.0.0.4/31",)),
    ("0.0.0.0/0", ("10.0.0.0/8", "192.0.2.0/25")),
    ("::/0", ("fd00::/16", "fd00::2/127")),
    ("fd00::/64", ("fd00::1/128", "fd00::4/126")),
    ("::ffff:10.0.0.0/120", ("::ffff:10.0.0.1/128",)),
    ("10.0.0.1/32", ()),
    ("10.0.0.2/31", ("10.0.0.3/32",)),
)
PROTOCOLS = ("TCP", "UDP", "SCTP")
PORT_NAMES = ("http", "dns")
PORTS = (80, 81, 82, 83)


def some(rng: Random, items: Any, least: int, most: int) -> list[Any]:
    return [rng.choice(items) for _ in range(rng.randint(least, most))]


def labels(rng: Random) -> dict[str, str]:
    return {key: rng.choice(VALUES) for key in KEYS if rng.random() < 0.7}


def selector(rng: Random) -> Doc:
    found: Doc = {}
    if rng.random() < 0.4:
        found["matchLabels"] = {key: rng.choice(VALUES) for key in KEYS if rng.random() < 0.5}
    if rng.random() < 0.5:
        found["matchExpressions"] = [expression(rng) for _ in range(rng.randint(0, 2))]
    return found


def expression(rng: Random) -> Doc:
    operator = rng.choice(("In", "NotIn", "Exists", "DoesNotExist"))
    found: Doc = {"key": rng.choice(KEYS), "operator": operator}
    if operator in ("In", "NotIn"):
        found["values"] = some(rng, VALUES, 1, 2)
    return found


def namespace_selector(rng: Random) -> Doc:
    if rng.random() < 0.3:
        return {"matchLabels": {"kubernetes.io/metadata.name": rng.choice(NAMESPACES)}}
    return selector(rng)


def mode(rng: Random, chance: float) -> Doc:
    return (
        {"annotations": {"trireme.io/mode": rng.choice(("audit", "audit", "enforce"))}} if rng.random() < chance else {}
    )


def namespace(rng: Random, name: str) -> Doc:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels(rng), **mode(rng, 0.05)},
    }


def container(rng: Random) -> Doc:
    ports = []
    for number in {*some(rng, PORTS, 0, 2)}:
        port: Doc = {"containerPort": number}
        if rng.random() < 0.8:
            port["name"] = rng.choice(PORT_NAMES)
        if rng.random() < 0.6:
            port["protocol"] = rng.choice(PROTOCOLS)
        ports.append(port)
    return {"name": "c", "ports": ports}


def pod(rng: Random, namespace_name: str, name: str) -> Doc:
    spec: Doc = {"containers": [container(rng) for _ in range(rng.randint(0, 2))]}
    if rng.random() < 0.5:
        spec["initContainers"] = [{**container(rng), **rng.choice(({"restartPolicy": "Always"}, {}))}]
    if rng.random() < 0.1:
        spec["hostNetwork"] = True
    metadata: Doc = {"namespace": namespace_name, "name": name, "labels": labels(rng)}
    if rng.random() < 0.1:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    phase = rng.choice(("Running", "Running", "Running", "Running", "Pending", "Succeeded", "Failed"))
    addresses = {*some(rng, ADDRESSES, 0, 2)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": phase, "podIPs": [{"ip": text} for text in sorted(addresses)]},
    }


def node(rng: Random, name: str) -> Doc:
    addresses = [{"type": "InternalIP", "address": text} for text in {*some(rng, ADDRESSES + OUTSIDE, 1, 2)}]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels(rng)},
        "status": {"addresses": [*addresses, {"type": "Hostname", "address": name}]},
    }


def network_policy(rng: Random, namespace_name: str, name: str) -> Doc:
    spec: Doc = {"podSelector": selector(rng)}
    if rng.random() < 0.6:
        spec["policyTypes"] = rng.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"], []))
    for side, peers in (("ingress", "from"), ("egress", "to")):
        if rng.random() < 0.7:
            spec[side] = [rule(rng, peers) for _ in range(rng.randint(0, 2))]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace_name, "name": name, **mode(rng, 0.1)},
        "spec": spec,
    }


def rule(rng: Random, peers: str) -> Doc:
    found: Doc = {}
    if rng.random() < 0.8:
        found[peers] = [peer(rng) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.6:
        found["ports"] = [port(rng) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.02:
        found["unknown"] = 1
    return found


def peer(rng: Random) -> Doc:
    kind = rng.random()
    if kind < 0.4:
        cidr, parts = rng.choice(BLOCKS)
        block: Doc = {"cidr": cidr}
        if parts and rng.random() < 0.6:
            block["except"] = [rng.choice(parts)]
        if rng.random() < 0.02:
            block["except"] = [rng.choice(("10.0.0.0/24", "fd00::/64"))]
        found: Doc = {"ipBlock": block}
        if rng.random() < 0.02:
            found["podSelector"] = {}
        return found
    found = {}
    if rng.random() < 0.6:
        found["podSelector"] = selector(rng)
    if rng.random() < 0.6 or (not found and rng.random() < 0.9):
        found["namespaceSelector"] = namespace_selector(rng)
    if rng.random() < 0.03:
        found["podSelector"] = {"matchExpressions": [{"key": "app", "operator": "In", "values": []}]}
    return found


def port(rng: Random) -> Doc:
    found: Doc = {}
    if rng.random() < 0.7:
        found["protocol"] = rng.choice((*PROTOCOLS, "TCP", "ICMP" if rng.random() < 0.1 else "UDP"))
    choice = rng.random()
    if choice < 0.4:
        found["port"] = rng.choice(PORTS)
        if rng.random() < 0.4:
            found["endPort"] = found["port"] + rng.randint(-1 if rng.random() < 0.1 else 0, 2)
    elif choice < 0.8:
        found["port"] = rng.choice(PORT_NAMES)
        if rng.random() < 0.02:
            found["endPort"] = 90
    return found


def cluster_policy(rng: Random, name: str) -> Doc:
    spec: Doc = {
        "tier": rng.choice(("Admin", "Baseline")),
        "priority": rng.randint(0, 3),
        "subject": pods_or_namespaces(rng),
    }
    for side in ("ingress", "egress"):
        if rng.random() < 0.7:
            spec[side] = [cluster_rule(rng, side) for _ in range(rng.randint(0, 3))]
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name, **mode(rng, 0.1)},
        "spec": spec,
    }


def pods_or_namespaces(rng: Random) -> Doc:
    if rng.random() < 0.5:
        return {"namespaces": namespace_selector(rng)}
    return {"pods": {"namespaceSelector": namespace_selector(rng), "podSelector": selector(rng)}}


def cluster_rule(rng: Random, side: str) -> Doc:
    found: Doc = {"action": rng.choice(("Accept", "Deny", "Pass"))}
    named = rng.random() < 0.3
    peers = [cluster_peer(rng, side == "egress" and not named, found["action"]) for _ in range(rng.randint(1, 2))]
    found["from" if side == "ingress" else "to"] = peers
    if rng.random() < 0.6:
        found["protocols"] = [cluster_protocol(rng, named) for _ in range(rng.randint(1, 2))]
    return found


def cluster_peer(rng: Random, addresses: bool, action: str) -> Doc:
    choice = rng.random()
    if choice < 0.03:
        return rng.choice(({}, {"workloads": {}}, {"namespaces": {}, "pods": {"podSelector": {}}}))
    if not addresses or choice < 0.5:
        return pods_or_namespaces(rng)
    if choice < 0.8:
        return {"networks": [rng.choice(BLOCKS)[0] for _ in range(rng.randint(1, 2))]}
    if choice < 0.95 or action != "Accept":
        return {"nodes": selector(rng)}
    return {"domainNames": ["*.example.org"]}


def cluster_protocol(rng: Random, named: bool) -> Doc:
    if named and rng.random() < 0.7:
        return {"destinationNamedPort": rng.choice(PORT_NAMES)}
    if rng.random() < 0.5:
        destination: Doc = {"number": rng.choice(PORTS)}
    else:
        destination = {"range": {"start": 80, "end": rng.choice((81, 82))}}
    return {rng.choice(PROTOCOLS).lower(): {"destinationPort": destination}}


def one(rng: Random, policies_only: bool = False) -> Doc:
    """Return one object; its name is one of few, so that it often replaces another."""
    choice = rng.random()
    number = rng.randint(1, 3)
    if choice < 0.5:
        return network_policy(rng, rng.choice(NAMESPACES), f"np{number}")
    if choice < 0.7 or policies_only:
        return cluster_policy(rng, f"cnp{number}")
    if choice < 0.85:
        return pod(rng, rng.choice(NAMESPACES), f"pod{rng.randint(1, 2)}")
    if choice < 0.95:
        return namespace(rng, rng.choice(NAMESPACES))
    return node(rng, f"node{number}")


def cluster(rng: Random) -> dict[tuple[str, str, str], Doc]:
    """Return a whole cluster, by kind, namespace and name."""
    documents = [namespace(rng, name) for name in NAMESPACES if rng.random() < 0.8]
    documents += [pod(rng, rng.choice(NAMESPACES), f"pod{n % 2 + 1}") for n in range(rng.randint(2, 5))]
    documents += [node(rng, "node1")] if rng.random() < 0.4 else []
    documents += [one(rng, policies_only=True) for _ in range(rng.randint(0, 5))]
    return {key_of(doc): doc for doc in documents}


def changed(rng: Random, document: Doc) -> Doc:
    """Return another version of an object: other labels, or for a policy another spec."""
    metadata, kind = document["metadata"], document["kind"]
    if kind == "Namespace":
        return namespace(rng, metadata["name"])
    if kind == "Pod":
        return pod(rng, metadata["namespace"], metadata["name"])
    if kind == "NetworkPolicy":
        return network_policy(rng, metadata["namespace"], metadata["name"])
    return cluster_policy(rng, metadata["name"]) if kind == "ClusterNetworkPolicy" else node(rng, metadata["name"])


def key_of(doc: Doc) -> tuple[str, str, str]:
    return doc["kind"], doc["metadata"].get("namespace", ""), doc["metadata"]["name"]


def question(rng: Random, documents: dict[tuple[str, str, str], Doc]) -> tuple[str, str, str, int | None]:
    """Return source, destination, protocol and port."""
    names = [f"{namespace_name}/{name}" for kind, namespace_name, name in documents if kind == "Pod"]
    ends = [rng.choice(names) if names and rng.random() < 0.75 else rng.choice(ADDRESSES + OUTSIDE) for _ in range(2)]
    protocol = rng.choice((*PROTOCOLS, "TCP", "ICMP"))
    return ends[0], ends[1], protocol, None if protocol == "ICMP" else rng.choice(PORTS)

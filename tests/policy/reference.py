"""A second evaluator, deliberately naive, written from the text of the API alone.

It works on plain documents, shares no code with ``policy/``, compiles nothing, remembers nothing and is as slow as it
looks. Where Kubernetes leaves a choice it follows ``policy/README.md``. Sources: the field comments of
networking.k8s.io/v1 NetworkPolicy and policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
"""

from __future__ import annotations

import ipaddress
from typing import Any

Doc = dict[str, Any]
PORTED = ("TCP", "UDP", "SCTP")


class Cluster:
    """Documents, as a cluster would hold them."""

    def __init__(self, documents: list[Doc]) -> None:
        self.pods = [doc for doc in documents if doc["kind"] == "Pod"]
        self.nodes = [doc for doc in documents if doc["kind"] == "Node"]
        self.namespaces = {doc["metadata"]["name"]: doc for doc in documents if doc["kind"] == "Namespace"}
        self.network_policies = [doc for doc in documents if doc["kind"] == "NetworkPolicy"]
        self.cluster_policies = [doc for doc in documents if doc["kind"] == "ClusterNetworkPolicy"]

    def namespace_labels(self, name: str) -> dict[str, str]:
        found = self.namespaces.get(name, {"metadata": {}})
        return {**found["metadata"].get("labels", {}), "kubernetes.io/metadata.name": name}

    def audited(self, policy: Doc) -> bool:
        if annotation(policy) == "audit":
            return True
        if policy["kind"] == "NetworkPolicy":
            return annotation(self.namespaces.get(policy["metadata"]["namespace"], {"metadata": {}})) == "audit"
        return False

    def without_audited(self) -> Cluster:
        rest = Cluster([])
        rest.pods, rest.nodes, rest.namespaces = self.pods, self.nodes, self.namespaces
        rest.network_policies = [policy for policy in self.network_policies if not self.audited(policy)]
        rest.cluster_policies = [policy for policy in self.cluster_policies if not self.audited(policy)]
        return rest


class Peer:
    """Somebody on the other side: a pod with its address, or an address alone."""

    def __init__(self, pod: Doc | None, address: str | None) -> None:
        self.pod = pod
        self.address = address


def annotation(doc: Doc) -> str | None:
    value = doc["metadata"].get("annotations", {}).get("trireme.io/mode")
    return value if value is None else str(value)


def judge(
    cluster: Cluster, side: str, local: Doc, peer: Peer, protocol: str, port: int | None, audit_too: bool = False
) -> bool:
    """Tell whether ``local`` (a pod) may take part in the connection; ``side`` is ingress or egress."""
    if not audit_too:
        cluster = cluster.without_audited()
    if local["spec"].get("hostNetwork"):
        return True
    destination = local if side == "ingress" else peer.pod
    tier_answer = cluster_tier(cluster, "Admin", side, local, peer, destination, protocol, port)
    if tier_answer in ("Accept", "Deny"):
        return tier_answer == "Accept"
    selecting = [policy for policy in cluster.network_policies if isolates(policy, side, local)]
    if selecting:
        return any(
            rule_allows(cluster, policy, rule, side, peer, destination, protocol, port)
            for policy in selecting
            for rule in policy["spec"].get(side) or []
        )
    return cluster_tier(cluster, "Baseline", side, local, peer, destination, protocol, port) != "Deny"


# NetworkPolicy


def isolates(policy: Doc, side: str, pod: Doc) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    if side.capitalize() not in types or policy["metadata"]["namespace"] != pod["metadata"]["namespace"]:
        return False
    return selects(spec.get("podSelector") or {}, pod["metadata"].get("labels") or {})


def rule_allows(
    cluster: Cluster,
    policy: Doc,
    rule: Doc,
    side: str,
    peer: Peer,
    destination: Doc | None,
    protocol: str,
    port: int | None,
) -> bool:
    if not is_valid(rule, side):
        return False
    peers = rule.get("from" if side == "ingress" else "to") or []
    ports = rule.get("ports") or []
    if peers and not any(peer_matches(cluster, policy["metadata"]["namespace"], item, peer) for item in peers):
        return False
    return not ports or any(port_matches(item, destination, protocol, port) for item in ports)


def is_valid(rule: Doc, side: str) -> bool:
    """A rule that the API server would refuse allows nothing."""
    if set(rule) - {"from" if side == "ingress" else "to", "ports"}:
        return False
    for item in rule.get("from" if side == "ingress" else "to") or []:
        if not item or set(item) - {"podSelector", "namespaceSelector", "ipBlock"}:
            return False
        if "ipBlock" in item and len(item) > 1:
            return False
        for name in ("podSelector", "namespaceSelector"):
            for expression in item.get(name, {}).get("matchExpressions", []):
                if (expression["operator"] in ("In", "NotIn")) != bool(expression.get("values")):
                    return False
        if "ipBlock" in item:
            whole = ipaddress.ip_network(item["ipBlock"]["cidr"], strict=False)
            for text in item["ipBlock"].get("except", []):
                part = ipaddress.ip_network(text, strict=False)
                if part.version != whole.version or part == whole or not part.subnet_of(whole):  # type: ignore[arg-type]
                    return False
    for item in rule.get("ports") or []:
        if item.get("protocol", "TCP") not in PORTED:
            return False
        if "endPort" in item and (not isinstance(item.get("port"), int) or item["endPort"] < item["port"]):
            return False
    return True


def peer_matches(cluster: Cluster, own_namespace: str, item: Doc, peer: Peer) -> bool:
    if "ipBlock" in item:
        block = item["ipBlock"]
        return contains(block["cidr"], peer.address) and not any(
            contains(text, peer.address) for text in block.get("except", [])
        )
    if peer.pod is None or peer.pod["spec"].get("hostNetwork"):
        return False
    namespace = peer.pod["metadata"]["namespace"]
    if "namespaceSelector" in item:
        if not selects(item["namespaceSelector"], cluster.namespace_labels(namespace)):
            return False
    elif namespace != own_namespace:
        return False
    return "podSelector" not in item or selects(item["podSelector"], peer.pod["metadata"].get("labels") or {})


def port_matches(item: Doc, destination: Doc | None, protocol: str, port: int | None) -> bool:
    if item.get("protocol", "TCP") != protocol:
        return False
    wanted = item.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return (wanted, protocol, port) in named_ports(destination)
    last: int = item.get("endPort") or int(wanted)
    return port is not None and wanted <= port <= last


def named_ports(pod: Doc | None) -> list[tuple[str, str, int]]:
    if pod is None or pod["spec"].get("hostNetwork"):
        return []
    sidecars = [item for item in pod["spec"].get("initContainers", []) if item.get("restartPolicy") == "Always"]
    return [
        (port["name"], port.get("protocol", "TCP"), port["containerPort"])
        for container in pod["spec"].get("containers", []) + sidecars
        for port in container.get("ports", [])
        if "name" in port
    ]


# ClusterNetworkPolicy


def cluster_tier(
    cluster: Cluster,
    tier: str,
    side: str,
    local: Doc,
    peer: Peer,
    destination: Doc | None,
    protocol: str,
    port: int | None,
) -> str:
    """Return Accept, Deny or Pass; Pass also when no rule matched."""
    policies = [policy for policy in cluster.cluster_policies if policy["spec"]["tier"] == tier]
    for policy in sorted(policies, key=lambda item: (item["spec"]["priority"], item["metadata"]["name"])):
        if not is_pod_among(cluster, policy["spec"]["subject"], local):
            continue
        for rule in policy["spec"].get(side, []):
            peers = rule["from" if side == "ingress" else "to"]
            if not all(one_known_field(item, side) for item in peers):
                if rule["action"] == "Accept":
                    continue
                return "Deny"
            if not any(cluster_peer_matches(cluster, item, peer) for item in peers):
                continue
            protocols = rule.get("protocols")
            if protocols and not any(protocol_matches(item, destination, protocol, port) for item in protocols):
                continue
            return str(rule["action"])
    return "Pass"


def one_known_field(item: Doc, side: str) -> bool:
    known = {"namespaces", "pods"} | ({"networks", "nodes", "domainNames"} if side == "egress" else set())
    return len(item) == 1 and set(item) <= known


def cluster_peer_matches(cluster: Cluster, item: Doc, peer: Peer) -> bool:
    if "networks" in item:
        return any(contains(text, peer.address) for text in item["networks"])
    if "nodes" in item:
        return any(
            address["address"] == peer.address
            for node in cluster.nodes
            if selects(item["nodes"], node["metadata"].get("labels") or {})
            for address in node["status"]["addresses"]
        )
    if "domainNames" in item:
        return False
    return peer.pod is not None and is_pod_among(cluster, item, peer.pod)


def is_pod_among(cluster: Cluster, item: Doc, pod: Doc) -> bool:
    """``item`` has namespaces or pods; hostNetwork pods are never meant."""
    if pod["spec"].get("hostNetwork"):
        return False
    labels = cluster.namespace_labels(pod["metadata"]["namespace"])
    if "namespaces" in item:
        return selects(item["namespaces"], labels)
    return selects(item["pods"].get("namespaceSelector", {}), labels) and selects(
        item["pods"]["podSelector"], pod["metadata"].get("labels") or {}
    )


def protocol_matches(item: Doc, destination: Doc | None, protocol: str, port: int | None) -> bool:
    if "destinationNamedPort" in item:
        return any(
            name == item["destinationNamedPort"] and (own, number) == (protocol, port)
            for name, own, number in named_ports(destination)
        )
    ports = item.get(protocol.lower())
    if ports is None or port is None:
        return False
    if "number" in ports["destinationPort"]:
        return bool(ports["destinationPort"]["number"] == port)
    span = ports["destinationPort"]["range"]
    return bool(span["start"] <= port <= span["end"])


# shared by both


def selects(selector: Doc, labels: dict[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if key not in labels or labels[key] != value:
            return False
    for item in selector.get("matchExpressions") or []:
        key, values = item["key"], item.get("values") or []
        if item["operator"] == "In" and (key not in labels or labels[key] not in values):
            return False
        if item["operator"] == "NotIn" and key in labels and labels[key] in values:
            return False
        if item["operator"] == "Exists" and key not in labels:
            return False
        if item["operator"] == "DoesNotExist" and key in labels:
            return False
    return True


def contains(cidr: str, address: str | None) -> bool:
    if address is None:
        return False
    network, host = ipaddress.ip_network(cidr, strict=False), ipaddress.ip_address(address)
    return network.version == host.version and host in network


# both directions, between ends by name or by address


def verdict(cluster: Cluster, source: str, destination: str, protocol: str, port: int | None) -> dict[str, str]:
    """Return what each side says: allowed, denied, or audit (allowed only because of audit mode)."""
    here, there = find(cluster, source), find(cluster, destination)
    if here.pod is not None and here.pod is there.pod:
        return {"ingress": "allowed", "egress": "allowed"}
    sources, destinations = addresses(here), addresses(there)
    pairs = [(a, b) for b in destinations for a in sources if (":" in a) == (":" in b)]
    pair = pairs[0] if pairs else (sources[0] if sources else None, destinations[0] if destinations else None)
    return {
        "egress": one_side(cluster, "egress", here.pod, Peer(there.pod, pair[1]), protocol, port),
        "ingress": one_side(cluster, "ingress", there.pod, Peer(here.pod, pair[0]), protocol, port),
    }


def one_side(cluster: Cluster, side: str, local: Doc | None, peer: Peer, protocol: str, port: int | None) -> str:
    if local is None:
        return "allowed"
    if not judge(cluster, side, local, peer, protocol, port):
        return "denied"
    return "allowed" if judge(cluster, side, local, peer, protocol, port, audit_too=True) else "audit"


def is_live(pod: Doc) -> bool:
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def pod_addresses(pod: Doc) -> list[str]:
    return [item["ip"] for item in pod["status"].get("podIPs", [])]


def find(cluster: Cluster, text: str) -> Peer:
    owners = [pod for pod in cluster.pods if is_live(pod) and not pod["spec"].get("hostNetwork")]
    if "/" in text:
        pod = next(pod for pod in cluster.pods if f"{pod['metadata']['namespace']}/{pod['metadata']['name']}" == text)
        if is_live(pod):
            return Peer(pod, None)
        # It has no network any more; its addresses may be another pod's.
        taken = {address for owner in owners for address in pod_addresses(owner)}
        free = [address for address in pod_addresses(pod) if address not in taken]
        return Peer(None, ",".join(free) or None)
    return Peer(next((pod for pod in owners if text in pod_addresses(pod)), None), text)


def addresses(peer: Peer) -> list[str]:
    if peer.address is not None:
        return peer.address.split(",")
    return pod_addresses(peer.pod) if peer.pod is not None else []

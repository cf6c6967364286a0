"""Advice about a set of policies: what is invalid, and what is valid but surely not meant.

Errors are what the API server would refuse, or what would be ignored in silence. Warnings are rules that do not do
what they seem to. Notes are choices worth a second look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from policy.addresses import parse_address, parse_network
from policy.compiler import CompiledPolicy, CompiledRule, Order, PodPeer, compile_policy
from policy.expectations import read_expectations
from policy.files import Loaded
from policy.namespaces import NamespaceTable
from policy.objects import Action, ClusterNetworkPolicy, Namespace, NetworkPolicy, Node, Pod
from policy.ports import Ports
from trireme_py.model import Direction, PlainLabels, Protocol


class Severity(Enum):
    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of advice."""

    severity: Severity
    code: str
    """A short name that does not change: ``selects-nothing``."""
    file: str
    line: int
    object: str
    field: str
    message: str
    hint: str

    def __str__(self) -> str:
        field = f" {self.field}" if self.field else ""
        hint = f"; {self.hint}" if self.hint else ""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.severity.value}:{field} {self.message}{hint} [{self.code}]"


def check(loaded: Loaded) -> list[Finding]:
    """Return everything there is to say about ``loaded``, in the order of files and lines."""
    findings = [
        Finding(Severity.ERROR, "invalid", each.file, each.line, "", each.field, each.message, each.hint)
        for each in (*loaded.problems, *read_expectations(loaded)[1])
    ]
    linter = _Linter(loaded)
    findings.extend(linter.run())
    return sorted(findings, key=lambda each: (each.file, each.line, each.field, each.code))


class _Linter:
    """Knows the whole set, so that a selector can be held against what there is to select."""

    __slots__ = ("compiled", "loaded", "namespaces", "nodes", "pods")

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.pods = tuple(pod for pod in loaded.pods if not pod.completed and not pod.host_network)
        known = {item.name: item for item in loaded.objects if isinstance(item, Namespace)}
        for pod in self.pods:
            known.setdefault(pod.namespace, Namespace(name=pod.namespace))
        self.namespaces = NamespaceTable().changed(known, frozenset())
        self.nodes = tuple(item for item in loaded.objects if isinstance(item, Node))
        self.compiled = tuple(compile_policy(item) for item in loaded.policies)

    def run(self) -> Iterator[Finding]:
        for policy in self.compiled:
            yield from self._subject(policy)
            yield from self._rules(policy)
            if isinstance(policy.source, NetworkPolicy):
                yield from self._network_policy(policy, policy.source)
            else:
                yield from self._cluster_policy(policy, policy.source)
        yield from self._priorities()

    def _finding(
        self, severity: Severity, code: str, policy: CompiledPolicy, field: str, message: str, hint: str
    ) -> Finding:
        source = self.loaded.sources[policy.key]
        return Finding(severity, code, source.file, source.line_of(field), policy.key, field, message, hint)

    def _selected(self, policy: CompiledPolicy) -> list[Pod]:
        return [
            pod
            for pod in self.pods
            if policy.selects(pod.namespace, self.namespaces.labels(pod.namespace), PlainLabels(pod.labels))
        ]

    def _subject(self, policy: CompiledPolicy) -> Iterator[Finding]:
        """Nothing selected: only sayable where pods, or workloads, are among the files."""
        in_scope = [pod for pod in self.pods if policy.namespace in (None, pod.namespace)]
        if in_scope and not self._selected(policy):
            field = "spec.podSelector" if policy.namespace is not None else "spec.subject"
            yield self._finding(
                Severity.WARNING, "selects-nothing", policy, field, f"selects none of the {len(in_scope)} known pods",
                f"compare it with the pods' labels; it asks for {policy.pods}",
            )  # fmt: skip
        if policy.namespace is not None and self.pods and not in_scope:
            yield self._finding(
                Severity.WARNING, "empty-namespace", policy, "metadata.namespace",
                f"no known pod is in namespace {policy.namespace}", "a policy acts in its own namespace only",
            )  # fmt: skip

    def _rules(self, policy: CompiledPolicy) -> Iterator[Finding]:
        for direction in Direction:
            side = "from" if direction is Direction.INGRESS else "to"
            for rule in policy.rules[direction]:
                path = f"spec.{direction.value}[{rule.index}]"
                for peer in rule.pods:
                    yield from self._pod_peer(policy, rule, peer, f"{path}.{side}[{peer.index}]", direction)
                yield from self._either_or_both(policy, rule, path, side)
                yield from self._port_names(policy, rule, direction, path)
                yield from self._without_identity(policy, rule, path, side)

    def _pod_peer(
        self, policy: CompiledPolicy, rule: CompiledRule, peer: PodPeer, path: str, direction: Direction
    ) -> Iterator[Finding]:
        del rule, direction
        names = [
            name
            for name in self.namespaces.known
            if (
                peer.namespace == name
                if peer.namespace is not None
                else self.namespaces.resolve(peer.namespaces).matches(name)
            )
        ]
        if peer.namespace is None and self.loaded.namespaces and not names:
            hint = "label the namespaces, or select by kubernetes.io/metadata.name, which each has"
            text = f"no known namespace has {peer.namespaces}"
            yield self._finding(Severity.WARNING, "no-such-namespace", policy, path, text, hint)
            return
        if self.pods and not any(
            pod.namespace in names and peer.pods.matches(PlainLabels(pod.labels)) for pod in self.pods
        ):
            where = (
                f"namespace {peer.namespace}" if peer.namespace is not None else f"namespaces with {peer.namespaces}"
            )
            text = f"no known pod has {peer.pods} in {where}"
            yield self._finding(
                Severity.WARNING, "no-such-peer", policy, path, text, "compare it with the pods' labels and namespaces"
            )

    def _either_or_both(self, policy: CompiledPolicy, rule: CompiledRule, path: str, side: str) -> Iterator[Finding]:
        """``- namespaceSelector`` and ``- podSelector`` as two items mean either; together they were meant as both."""
        if policy.order is not Order.NETWORK:
            return
        for first, second in zip(rule.pods, rule.pods[1:], strict=False):
            lone_namespace = first.namespace is None and not first.pods.requirements
            lone_pod = second.namespace is not None and bool(second.pods.requirements)
            if lone_namespace and lone_pod and second.index == first.index + 1:
                text = f"allows every pod of those namespaces, and also {second.pods} of namespace {second.namespace}"
                hint = "remove the '- ' before podSelector if both were meant together"
                yield self._finding(
                    Severity.NOTE, "either-or-both", policy, f"{path}.{side}[{second.index}]", text, hint
                )

    def _port_names(
        self, policy: CompiledPolicy, rule: CompiledRule, direction: Direction, path: str
    ) -> Iterator[Finding]:
        """A name that no possible destination has."""
        if not rule.ports.names or not self.pods:
            return
        places = self._selected(policy) if direction is Direction.INGRESS else list(self.pods)
        field = "ports" if policy.order is Order.NETWORK else "protocols"
        for protocol, name in rule.ports.names:
            if places and not any(
                port.name == name and protocol in (None, port.protocol) for pod in places for port in pod.named_ports
            ):
                text = f"no destination has a container port named {name!r} for {Ports(names=((protocol, name),))}"
                hint = "name the port in the pods, or write its number"
                yield self._finding(Severity.WARNING, "no-such-port", policy, f"{path}.{field}", text, hint)

    def _without_identity(self, policy: CompiledPolicy, rule: CompiledRule, path: str, side: str) -> Iterator[Finding]:
        """Pods by their labels, on SCTP."""
        if not rule.pods or Protocol.SCTP not in {protocol for protocol, *_ in (*rule.ports.ranges, *rule.ports.names)}:
            return
        peers = ", ".join(f"{side}[{peer.index}]" for peer in rule.pods)
        meaning = (
            "matches nothing" if rule.action is Action.ACCEPT else "denies it to every address that may be a pod's"
        )
        text = f"SCTP carries no identity: {peers} {meaning}"
        hint = "use ipBlock"
        if policy.order is not Order.NETWORK:  # it names addresses on egress only
            hint = "use networks" if side == "to" else "use ipBlock in a NetworkPolicy"
        yield self._finding(Severity.WARNING, "no-identity", policy, path, text, hint)

    def _network_policy(self, policy: CompiledPolicy, source: NetworkPolicy) -> Iterator[Finding]:
        for direction, rules in ((Direction.INGRESS, source.ingress), (Direction.EGRESS, source.egress)):
            if rules and direction not in source.directions:
                word = direction.value.capitalize()
                yield self._finding(
                    Severity.WARNING, "ignored-rules", policy, f"spec.{direction.value}",
                    f"these rules have no effect: policyTypes does not name {word}", f"add {word} to policyTypes",
                )  # fmt: skip
        for direction in Direction:
            yield from self._shadowed(policy, direction)
        yield from self._dns(policy)
        yield from self._blocks(policy, source)

    def _shadowed(self, policy: CompiledPolicy, direction: Direction) -> Iterator[Finding]:
        rules = policy.rules[direction]
        for rule in rules:
            for other in rules:
                duplicate = other.index < rule.index and _same(rule, other)
                covered = other.everyone and other.ports.everything and not _same(rule, other)
                if other is not rule and (duplicate or covered):
                    why = "is the same" if duplicate else "allows everything"
                    text = f"adds nothing: {direction.value}[{other.index}] {why}"
                    path = f"spec.{direction.value}[{rule.index}]"
                    yield self._finding(Severity.WARNING, "unreachable", policy, path, text, "remove one of them")
                    break

    def _dns(self, policy: CompiledPolicy) -> Iterator[Finding]:
        """Egress that allows something, but no name to be looked up."""
        rules = policy.rules[Direction.EGRESS]
        if not rules or all(rule.broken for rule in rules):
            return
        for other in self.compiled:
            same_pods = other.namespace == policy.namespace and other.pods in (policy.pods, type(policy.pods)())
            if same_pods and any(_may_be_dns(rule) for rule in other.rules[Direction.EGRESS]):
                return
        yield self._finding(
            Severity.WARNING, "forgets-dns", policy, "spec.egress",
            "allows egress but no DNS, so names cannot be looked up",
            "add - {to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], "
            "ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}",
        )  # fmt: skip

    def _blocks(self, policy: CompiledPolicy, source: NetworkPolicy) -> Iterator[Finding]:
        for direction, rules in ((Direction.INGRESS, source.ingress), (Direction.EGRESS, source.egress)):
            side = "from" if direction is Direction.INGRESS else "to"
            for rule in policy.rules[direction]:
                whole = {block.network.size: block for block in rule.blocks if block.network.prefix == 0}
                if len(whole) == 1:
                    ((size, block),) = whole.items()
                    missing, family = ("::/0", "IPv6") if size == 4 else ("0.0.0.0/0", "IPv4")
                    path = f"spec.{direction.value}[{rule.index}].{side}[{block.index}].ipBlock.cidr"
                    text = f"means every address of one family, and no {family} address"
                    hint = f"add an ipBlock for {missing}, or remove the list to mean everyone"
                    yield self._finding(Severity.NOTE, "one-family", policy, path, text, hint)
                written = rules[rule.index]
                for block in rule.blocks:
                    peer = getattr(written, "peers", ())[block.index]
                    text = peer.ip_block.cidr
                    if parse_address(text.partition("/")[0]) != parse_network(text).bits.to_bytes(
                        block.network.size, "big"
                    ):
                        path = f"spec.{direction.value}[{rule.index}].{side}[{block.index}].ipBlock.cidr"
                        yield self._finding(
                            Severity.WARNING, "host-bits", policy, path, f"{text} means {block.network}",
                            f"write {block.network}; newer API servers refuse the other form",
                        )  # fmt: skip

    def _cluster_policy(self, policy: CompiledPolicy, source: ClusterNetworkPolicy) -> Iterator[Finding]:
        for direction in Direction:
            closed: CompiledRule | None = None
            for rule in policy.rules[direction]:
                path = f"spec.{direction.value}[{rule.index}]"
                if closed is not None and rule.pods and not rule.blocks and not rule.nodes:
                    text = f"is never reached: {direction.value}[{closed.index}] decides for every pod before it"
                    hint = "put the narrower rule first; rules go in the order they are written"
                    yield self._finding(Severity.WARNING, "unreachable", policy, path, text, hint)
                if rule.ports.everything and any(_every_pod(peer) for peer in rule.pods):
                    closed = closed or rule
                if rule.nodes and not self.nodes:
                    text = "names nodes, and no Node is known here, so it matches nothing"
                    yield self._finding(
                        Severity.NOTE, "no-nodes", policy, path, text, "add the Node objects to the files"
                    )
        for index, rule_source in enumerate(source.egress):
            if any(peer.domain_names is not None for peer in getattr(rule_source, "peers", ())):
                text = "domainNames are not resolved, so this peer matches nothing"
                hint = "write the networks, or allow the names at a proxy"
                path = f"spec.egress[{index}].to"
                yield self._finding(Severity.WARNING, "domain-names", policy, path, text, hint)

    def _priorities(self) -> Iterator[Finding]:
        seen: dict[tuple[Order, int], CompiledPolicy] = {}
        for policy in self.compiled:
            if policy.order is Order.NETWORK:
                continue
            first = seen.setdefault((policy.order, policy.priority), policy)
            if first is not policy:
                text = f"has the same tier and priority as {first.key}; the API leaves their order open"
                hint = "give each its own priority; here they go by name"
                yield self._finding(Severity.WARNING, "same-priority", policy, "spec.priority", text, hint)


def _may_be_dns(rule: CompiledRule) -> bool:
    """Tell whether a rule could be for a DNS server: UDP 53, and not only to pods of its own namespace."""
    elsewhere = rule.everyone or bool(rule.blocks) or any(peer.namespace in (None, "kube-system") for peer in rule.pods)
    return elsewhere and rule.ports.match(Protocol.UDP, 53, ())


def _same(one: CompiledRule, two: CompiledRule) -> bool:
    return not one.broken and not two.broken and _content(one) == _content(two)


def _content(rule: CompiledRule) -> tuple[object, ...]:
    return rule.action, rule.everyone, rule.pods, rule.blocks, rule.nodes, rule.ports


def _every_pod(peer: PodPeer) -> bool:
    return peer.namespace is None and not peer.namespaces.requirements and not peer.pods.requirements

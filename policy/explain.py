"""Why a connection is allowed or denied: every policy and rule that was asked, and what each lacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from policy.addresses import format_address
from policy.compiler import CompiledPolicy, CompiledRule, Order
from policy.evaluate import Endpoint, Evaluator, Outcome
from policy.namespaces import NamespaceTable
from policy.nearest import describe_peer
from policy.objects import Action, Pod
from policy.ports import describe_flow
from trireme_py.model import Address, Decision, Direction, Identity, PlainLabels, Reason


@dataclass(frozen=True, slots=True)
class RuleReport:
    """What one rule says to the flow."""

    rule: str
    """``ingress[0]``."""
    action: str
    peer_matches: bool
    peer: str
    """Which peer matched, or what the nearest one lacks."""
    port_matches: bool
    ports: str


@dataclass(frozen=True, slots=True)
class PolicyReport:
    policy: str
    tier: str
    audit: bool
    rules: tuple[RuleReport, ...]


@dataclass(frozen=True, slots=True)
class SideReport:
    direction: str
    pod: str
    decision: Decision
    policies: tuple[PolicyReport, ...]
    """Those that select the pod in this direction, in the order in which they are asked."""


@dataclass(frozen=True, slots=True)
class Explanation:
    source: str
    destination: str
    flow: str
    allowed: bool
    sides: tuple[SideReport, ...]
    """Egress first, then ingress; an end outside the cluster has no side."""
    advice: str
    """What to write to allow a denied connection; empty if there is nothing simple."""
    note: str = ""
    """What to know about the protocol; empty if there is nothing."""

    def as_json(self) -> dict[str, Any]:
        """Return plain data with a stable form."""
        plain = asdict(self)
        for side in plain["sides"]:
            side["decision"]["reason"] = side["decision"]["reason"].value
        return plain


def explain(evaluator: Evaluator, source: str, destination: str, protocol: int, port: int | None) -> Explanation:
    """Judge a connection and report everything that was asked. Raises ``UnknownEndpoint``."""
    outcome = evaluator.verdict(source, destination, protocol, port)
    sides = tuple(_sides(evaluator, outcome))
    return Explanation(
        outcome.source.text,
        outcome.destination.text,
        describe_flow(protocol, port),
        outcome.allowed,
        sides,
        _advice(evaluator, outcome),
        _note(evaluator, outcome) if any(side.policies for side in sides) else "",
    )


def selecting(evaluator: Evaluator, pod: Pod, direction: Direction) -> list[CompiledPolicy]:
    """Return the policies that act on ``pod``, in the order in which they are asked."""
    if pod.host_network or pod.completed:
        return []
    snapshot = evaluator.snapshot
    labels, namespace_labels = PlainLabels(pod.labels), snapshot.namespaces.labels(pod.namespace)
    found = [
        policy
        for policy in snapshot.all_policies()
        if policy.acts(direction) and policy.selects(pod.namespace, namespace_labels, labels)
    ]
    return sorted(found, key=lambda policy: policy.sort_key)


def _sides(evaluator: Evaluator, outcome: Outcome) -> Iterator[SideReport]:
    ends = (
        (Direction.EGRESS, outcome.source, outcome.destination),
        (Direction.INGRESS, outcome.destination, outcome.source),
    )
    for direction, local, peer in ends:
        if local.pod is not None:
            reports = tuple(
                _policy_report(evaluator, policy, direction, local.pod, peer, outcome)
                for policy in selecting(evaluator, local.pod, direction)
            )
            yield SideReport(direction.value, local.text, outcome.decision(direction), reports)


def _policy_report(
    evaluator: Evaluator, policy: CompiledPolicy, direction: Direction, local: Pod, peer: Endpoint, outcome: Outcome
) -> PolicyReport:
    table = evaluator.snapshot.namespaces
    identity = evaluator.identity(peer.pod, outcome.protocol)
    hides = evaluator.hides(peer.pod, outcome.protocol)
    address = outcome.source_address if direction is Direction.INGRESS else outcome.destination_address
    owner = local if direction is Direction.INGRESS else peer.pod if identity is not None else None
    named = owner.named_ports if owner is not None else ()
    rules: list[RuleReport] = []
    for rule in policy.rules[direction]:
        matches, text = _peer(evaluator, table, rule, direction, identity, address)
        ports = rule.ports.match(outcome.protocol, outcome.port, named)
        if hides and not matches and rule.pods and rule.action is not Action.ACCEPT:
            # Who brings no identity must not evade what may mean it, nor by the name of a port that nobody knows.
            matches, text = True, f"{text}, and may be one"
            ports = ports or (direction is Direction.EGRESS and bool(rule.ports.names))
        name = f"{direction.value}[{rule.index}]" + (f" {rule.name}" if rule.name else "")
        shown = rule.broken or text
        rules.append(RuleReport(name, rule.action.value, matches, shown, ports, str(rule.ports)))
    audit = policy.audit or (policy.order is Order.NETWORK and table.in_audit(local.namespace))
    tier = {Order.ADMIN: "Admin", Order.NETWORK: "NetworkPolicy", Order.BASELINE: "Baseline"}[policy.order]
    return PolicyReport(policy.key, tier, audit, tuple(rules))


def _peer(
    evaluator: Evaluator,
    table: NamespaceTable,
    rule: CompiledRule,
    direction: Direction,
    identity: Identity | None,
    address: Address,
) -> tuple[bool, str]:
    side = "from" if direction is Direction.INGRESS else "to"
    if rule.everyone:
        return True, "everyone"
    for block in rule.blocks:
        if block.network.contains(address) and not any(part.contains(address) for part in block.exceptions):
            return True, f"{side}[{block.index}] {block.network}"
    for node_peer in rule.nodes:
        for node in evaluator.snapshot.nodes.values():
            if node_peer.nodes.matches(PlainLabels(node.labels)) and address in node.addresses:
                return True, f"{side}[{node_peer.index}] node {node.name}"
    pods = tuple((peer, None if peer.namespace is not None else table.resolve(peer.namespaces)) for peer in rule.pods)
    missing, text = describe_peer(side, pods, rule, identity)
    return missing == 0, text


def _note(evaluator: Evaluator, outcome: Outcome) -> str:
    if not any(evaluator.hides(end.pod, outcome.protocol) for end in (outcome.source, outcome.destination)):
        return ""
    name = describe_flow(outcome.protocol, None)
    return f"{name} carries no identity: pods are judged by address, and no selector of pods or namespaces matches"


def _advice(evaluator: Evaluator, outcome: Outcome) -> str:
    """Write the rule that would allow what was denied for want of one."""
    decision = outcome.deciding
    if outcome.allowed or decision.reason not in (Reason.NO_MATCH, Reason.UNIDENTIFIED):
        return ""
    if not decision.policy.startswith("NetworkPolicy/"):
        return ""
    ingress = decision is outcome.ingress
    peer = outcome.source if ingress else outcome.destination
    local = outcome.destination if ingress else outcome.source
    address = outcome.source_address if ingress else outcome.destination_address
    if peer.pod is None or local.pod is None:
        return ""
    identified = evaluator.identity(peer.pod, outcome.protocol) is not None
    wanted = _selectors(peer.pod, local.pod) if identified else _block(address)
    if not wanted:
        return ""
    side, direction = ("from", "ingress") if ingress else ("to", "egress")
    protocol, _, port = describe_flow(outcome.protocol, outcome.port).partition(" ")
    ports = f", ports: [{{protocol: {protocol}, port: {port}}}]" if port else ""
    policy = decision.policy.removeprefix("NetworkPolicy/")
    # Rule 48 of policy/README.md: no `ports` can mean it.
    remark = "" if port else f"  # {protocol} has no ports, so this opens every port, too"
    return f"add to spec.{direction} of {policy}: - {{{side}: [{{{wanted}}}]{ports}}}{remark}"


def _selectors(peer: Pod, local: Pod) -> str:
    if not peer.labels:
        return ""
    labels = ", ".join(f"{key}: {_text(value)}" for key, value in sorted(peer.labels.items()))
    selector = f"podSelector: {{matchLabels: {{{labels}}}}}"
    if peer.namespace == local.namespace:
        return selector
    return f"namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {peer.namespace}}}}}, {selector}"


def _text(value: str) -> str:
    """Quote a label's value that YAML would read as something else than text: true, 1, nothing."""
    return value if yaml.safe_load(value) == value else f'"{value}"'


def _block(address: Address) -> str:
    return f'ipBlock: {{cidr: "{format_address(address)}/{len(address) * 8}"}}' if address else ""

"""Objects to compiled policies: each is compiled once, by itself, and knows nothing of pods or other policies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from policy.addresses import Network, parse_network
from policy.objects import (
    EVERYTHING,
    MODE_ANNOTATION,
    Action,
    BrokenClusterRule,
    BrokenRule,
    ClusterNetworkPolicy,
    ClusterPeer,
    ClusterRule,
    NamespacedPods,
    NetworkPolicy,
    PolicyPeer,
    Rule,
    Tier,
)
from policy.ports import ALL_PORTS, Ports, compile_ports, compile_protocols
from policy.selector import Selector, compile_selector
from trireme_py.model import Direction, Labels, PlainLabels

_NOTHING: Final = Ports()
_ALL: Final = Selector()


class Order(IntEnum):
    """The tiers in the order in which they are asked."""

    ADMIN = 0
    NETWORK = 1
    BASELINE = 2


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods, by namespace and labels. Only an identity can match."""

    index: int
    namespace: str | None
    """The one namespace meant; None: those that ``namespaces`` selects."""
    namespaces: Selector
    pods: Selector


@dataclass(frozen=True, slots=True)
class BlockPeer:
    """Addresses, whoever is behind them."""

    index: int
    network: Network
    exceptions: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class NodePeer:
    """The addresses of nodes, by the nodes' labels."""

    index: int
    nodes: Selector


@dataclass(frozen=True, slots=True)
class CompiledRule:
    index: int
    name: str
    action: Action
    """A NetworkPolicy rule accepts."""
    everyone: bool
    """Any peer at all, identified or not."""
    pods: tuple[PodPeer, ...]
    blocks: tuple[BlockPeer, ...]
    nodes: tuple[NodePeer, ...]
    ports: Ports
    broken: str = ""
    """Why the rule could not be read and fails closed."""


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    key: str
    order: Order
    priority: int
    namespace: str | None
    """The only namespace it acts in; None: those that ``namespaces`` selects."""
    namespaces: Selector
    pods: Selector
    audit: bool
    """Its own annotation asks for audit."""
    isolates: frozenset[Direction]
    """NetworkPolicy only: selected pods are isolated in these directions."""
    rules: Mapping[Direction, tuple[CompiledRule, ...]]
    digests: Mapping[Direction, bytes]
    """Of everything above that counts in a direction: equal digests decide alike."""
    source: NetworkPolicy | ClusterNetworkPolicy = field(repr=False, compare=False)

    def acts(self, direction: Direction) -> bool:
        """Tell whether it has any effect on selected pods in ``direction``."""
        return direction in self.isolates or bool(self.rules[direction])

    def selects(self, namespace: str, namespace_labels: PlainLabels, labels: Labels) -> bool:
        """Tell whether it applies to a pod (which must not be a hostNetwork pod)."""
        if self.namespace is not None:
            return namespace == self.namespace and self.pods.matches(labels)
        return self.namespaces.matches(namespace_labels) and self.pods.matches(labels)

    @property
    def sort_key(self) -> tuple[int, int, str]:
        """Tier, priority, name: equal priorities go by name, so that the order is at least the same everywhere."""
        return self.order, self.priority, self.key


def compile_policy(source: NetworkPolicy | ClusterNetworkPolicy) -> CompiledPolicy:
    """Compile one object. Never raises for an object that ``policy.decode`` made."""
    if isinstance(source, NetworkPolicy):
        order, priority, namespace = Order.NETWORK, 0, source.namespace
        namespaces, pods, isolates = _ALL, compile_selector(source.pod_selector), source.directions
        # Rules of a direction that policyTypes leaves out have no effect.
        rules = {
            Direction.INGRESS: _rules(source.ingress, source.namespace) if Direction.INGRESS in isolates else (),
            Direction.EGRESS: _rules(source.egress, source.namespace) if Direction.EGRESS in isolates else (),
        }
        scope: str | None = namespace
    else:
        order = Order.ADMIN if source.tier is Tier.ADMIN else Order.BASELINE
        priority, scope, isolates = source.priority, None, frozenset()
        subject = source.subject.pods or NamespacedPods(EVERYTHING, source.subject.namespaces or EVERYTHING)
        namespaces, pods = compile_selector(subject.namespace_selector), compile_selector(subject.pod_selector)
        rules = {
            Direction.INGRESS: tuple(_cluster_rule(index, rule) for index, rule in enumerate(source.ingress)),
            Direction.EGRESS: tuple(_cluster_rule(index, rule) for index, rule in enumerate(source.egress)),
        }
    audit = source.annotations.get(MODE_ANNOTATION) == "audit"
    digests = {
        direction: _digest((source.key, int(order), priority, audit, direction in isolates, rules[direction]))
        for direction in Direction
    }
    return CompiledPolicy(
        source.key, order, priority, scope, namespaces, pods, audit, isolates, rules, digests, source
    )  # fmt: skip


def _rules(rules: tuple[Any, ...], namespace: str) -> tuple[CompiledRule, ...]:
    return tuple(_rule(index, rule, namespace) for index, rule in enumerate(rules))


def _rule(index: int, rule: Rule | BrokenRule, namespace: str) -> CompiledRule:
    if isinstance(rule, BrokenRule):
        return CompiledRule(index, "", Action.ACCEPT, False, (), (), (), _NOTHING, rule.problem)
    pods: list[PodPeer] = []
    blocks: list[BlockPeer] = []
    for number, peer in enumerate(rule.peers):
        if peer.ip_block is not None:
            exceptions = tuple(parse_network(text) for text in peer.ip_block.exceptions)
            blocks.append(BlockPeer(number, parse_network(peer.ip_block.cidr), exceptions))
        else:
            pods.append(_pod_peer(number, peer, namespace))
    ports = compile_ports(rule.ports)
    return CompiledRule(index, "", Action.ACCEPT, not rule.peers, tuple(pods), tuple(blocks), (), ports)


def _pod_peer(index: int, peer: PolicyPeer, namespace: str) -> PodPeer:
    """An absent namespaceSelector means the policy's own namespace; an absent podSelector means every pod."""
    pods = _ALL if peer.pod_selector is None else compile_selector(peer.pod_selector)
    if peer.namespace_selector is None:
        return PodPeer(index, namespace, _ALL, pods)
    return PodPeer(index, None, compile_selector(peer.namespace_selector), pods)


def _cluster_rule(index: int, rule: ClusterRule | BrokenClusterRule) -> CompiledRule:
    if isinstance(rule, BrokenClusterRule):
        if rule.action is Action.ACCEPT:
            return CompiledRule(index, "", Action.ACCEPT, False, (), (), (), _NOTHING, rule.problem)
        return CompiledRule(index, "", Action.DENY, True, (), (), (), ALL_PORTS, rule.problem)
    pods: list[PodPeer] = []
    blocks: list[BlockPeer] = []
    nodes: list[NodePeer] = []
    for number, peer in enumerate(rule.peers):
        _cluster_peer(number, peer, pods, blocks, nodes)
    ports = compile_protocols(rule.protocols)
    return CompiledRule(index, rule.name, rule.action, False, tuple(pods), tuple(blocks), tuple(nodes), ports)


def _cluster_peer(
    index: int, peer: ClusterPeer, pods: list[PodPeer], blocks: list[BlockPeer], nodes: list[NodePeer]
) -> None:
    """Sort one peer by what can match it. Domain names are not resolved: such an Accept matches nothing."""
    if peer.namespaces is not None:
        pods.append(PodPeer(index, None, compile_selector(peer.namespaces), _ALL))
    elif peer.pods is not None:
        selectors = compile_selector(peer.pods.namespace_selector), compile_selector(peer.pods.pod_selector)
        pods.append(PodPeer(index, None, *selectors))
    elif peer.networks is not None:
        blocks.extend(BlockPeer(index, parse_network(text), ()) for text in peer.networks)
    elif peer.nodes is not None:
        nodes.append(NodePeer(index, compile_selector(peer.nodes)))


def _digest(value: tuple[Any, ...]) -> bytes:
    """Hash plain values and frozen dataclasses of them: their repr is complete, and ordered as there is no set."""
    return hashlib.blake2b(repr(value).encode(), digest_size=16).digest()

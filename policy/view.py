"""The compiled policy of one local pod: what the data path holds and asks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from policy.addresses import Network, parse_network
from policy.bound import BoundPolicy
from policy.compiler import CompiledPolicy
from policy.namespaces import NamespaceTable
from policy.objects import Node, Pod
from policy.side import Side
from trireme_py.model import Address, Decision, Direction, Identity, PlainLabels, Reason

PRIVATE_NETWORKS: Final = tuple(
    parse_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Where pods may be unless the configuration says otherwise (RFC 1918, 6598, 3927, 4193, 4291)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the installation decides, not the objects."""

    cluster: tuple[Network, ...] = PRIVATE_NETWORKS
    """Addresses that may be pods'. Anything else is known to lie outside the cluster."""
    audit: bool = False
    """Report every denial, enforce none."""
    installing: bool = False
    """Agents are being installed, node by node: a pod without an identity may be on a node that has none yet."""


class PodPolicy:
    """Satisfies ``trireme_py.model.PolicyView``. Immutable but for what its sides remember.

    Two of them are equal if, and only if, they were compiled from the same policies and cluster state as far as this
    pod is concerned: then no live connection needs to be judged again.
    """

    __slots__ = ("_egress", "_ingress", "fingerprint", "installing")

    def __init__(self, ingress: Side, egress: Side, fingerprint: bytes, *, installing: bool = False) -> None:
        self._ingress = ingress
        self._egress = egress
        self.fingerprint = fingerprint
        """16 bytes that stand for everything the decisions depend on."""
        self.installing = installing

    def isolated(self, direction: Direction) -> bool:
        """Tell whether any policy acts on the pod in ``direction``, enforced or audited."""
        return not self._side(direction).empty

    def may_open(self, protocol: int) -> bool:
        """Tell whether egress to some destination could be allowed, before the destination is known."""
        return self._egress.may_open(protocol)

    def decide(
        self, direction: Direction, identity: Identity | None, address: Address, protocol: int, port: int | None
    ) -> Decision:
        """Judge one flow; see ``PolicyView.decide``."""
        return self._side(direction).decide(identity, address, protocol, port)

    def could_allow(self, direction: Direction, address: Address, protocol: int, port: int | None) -> bool:
        """Tell whether an identity could change a denial; see ``PolicyView.could_allow``."""
        return self._side(direction).could_allow(address, protocol, port)

    def _side(self, direction: Direction) -> Side:
        return self._ingress if direction is Direction.INGRESS else self._egress

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PodPolicy) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


class ClosedPolicy:
    """Denies everything: the view of a pod that the engine does not know (yet)."""

    __slots__ = ()

    fingerprint = b"unknown pod"
    installing = False

    def isolated(self, direction: Direction) -> bool:  # noqa: ARG002 - either
        return True

    def may_open(self, protocol: int) -> bool:  # noqa: ARG002 - none
        return False

    def decide(
        self, direction: Direction, identity: Identity | None, address: Address, protocol: int, port: int | None
    ) -> Decision:  # fmt: skip
        del address, protocol, port
        reason = Reason.UNIDENTIFIED if identity is None else Reason.NO_MATCH
        return Decision(False, reason, nearest=f"the local pod is not known yet, so its {direction.value} is closed")

    def could_allow(self, direction: Direction, address: Address, protocol: int, port: int | None) -> bool:
        del direction, address, protocol, port
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClosedPolicy)

    def __hash__(self) -> int:
        return hash(self.fingerprint)


View = PodPolicy | ClosedPolicy
CLOSED: Final = ClosedPolicy()


def bind_policies(
    pod: Pod,
    policies: Sequence[CompiledPolicy],
    namespaces: NamespaceTable,
    nodes: Sequence[Node],
    settings: Settings,
    earlier: PodPolicy | None = None,
) -> PodPolicy:
    """Make the view of ``pod`` from the policies that may apply to it (others are passed over).

    Returns ``earlier`` itself where nothing changed, with all that it remembers.
    """
    selected = _select(pod, policies, namespaces)
    acting = {
        direction: [bound for bound in selected if bound.policy.acts(direction)] for direction in Direction
    }  # fmt: skip
    digest = hashlib.blake2b(
        repr((settings.audit, settings.installing, settings.cluster)).encode(), digest_size=16
    )  # fmt: skip
    for direction, bounds in acting.items():
        digest.update(direction.value.encode())
        for bound in bounds:
            _add_to_digest(digest, bound, direction, pod, namespaces, nodes)
    fingerprint = digest.digest()
    if earlier is not None and earlier.fingerprint == fingerprint:
        return earlier
    ingress, egress = (
        Side(direction, acting[direction], namespaces, nodes, pod.named_ports, settings.cluster, settings.audit)
        for direction in (Direction.INGRESS, Direction.EGRESS)
    )
    return PodPolicy(ingress, egress, fingerprint, installing=settings.installing)


def _select(pod: Pod, policies: Sequence[CompiledPolicy], namespaces: NamespaceTable) -> list[BoundPolicy]:
    """Return the policies that apply to ``pod``, in order. None apply to hostNetwork and completed pods."""
    if pod.host_network or pod.completed:
        return []
    labels, namespace_labels = PlainLabels(pod.labels), namespaces.labels(pod.namespace)
    selected: list[BoundPolicy] = []
    for policy in policies:
        if policy.selects(pod.namespace, namespace_labels, labels):
            # A namespace's annotation covers its own policies only: whoever may annotate a namespace must not be
            # able to switch the administrator's off.
            audit = policy.audit or (policy.namespace is not None and namespaces.in_audit(pod.namespace))
            selected.append(BoundPolicy(policy, audit))
    selected.sort(key=lambda bound: bound.policy.sort_key)
    return selected


def _add_to_digest(
    digest: hashlib.blake2b,
    bound: BoundPolicy,
    direction: Direction,
    pod: Pod,
    namespaces: NamespaceTable,
    nodes: Sequence[Node],
) -> None:
    digest.update(bound.policy.digests[direction])
    digest.update(b"audit" if bound.audit else b"enforce")
    for rule in bound.policy.rules[direction]:
        for peer in rule.pods:
            if peer.namespace is None:
                digest.update(namespaces.resolve(peer.namespaces).digest)
        if direction is Direction.INGRESS and rule.ports.names:
            digest.update(repr(sorted((port.name, port.protocol, port.number) for port in pod.named_ports)).encode())
        for node_peer in rule.nodes:
            chosen = sorted(
                address
                for node in nodes
                if node_peer.nodes.matches(PlainLabels(node.labels))
                for address in node.addresses
            )
            digest.update(repr(chosen).encode())

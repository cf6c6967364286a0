"""The API objects that policy depends on, as frozen values.

These mirror the API (https://kubernetes.io/docs/reference/kubernetes-api/, group networking.k8s.io/v1, core/v1, and
policy.networking.k8s.io/v1alpha2) with two differences: defaults are filled in as the API server does, and a rule
that cannot be read is kept as a :class:`BrokenRule`, so that the isolation it belongs to is never lost with it.
``policy.decode`` makes them from plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final

import msgspec

from trireme_py.model import Address, Direction, NamedPort

NAMESPACE_NAME_LABEL: Final = "kubernetes.io/metadata.name"
"""The API server puts it on every namespace; objects from files get it here."""
MODE_ANNOTATION: Final = "trireme.io/mode"
"""On a policy, or on a namespace for all NetworkPolicies in it: ``audit`` or ``enforce``."""
NETWORK_NAMESPACE_ANNOTATION: Final = "trireme.io/network-namespace"
"""On a Pod: the network namespace it runs in, a name of ``ip netns`` or a path. The agent reads it."""

_EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """A part of an object's spec: an unknown field is an error, because ignoring one could allow more."""


class Operator(Enum):
    """Of a label selector's matchExpressions."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(_Spec, frozen=True):
    key: str
    operator: Operator
    values: tuple[str, ...] = ()


class LabelSelector(_Spec, frozen=True):
    match_labels: dict[str, str] = {}
    match_expressions: tuple[LabelRequirement, ...] = ()


EVERYTHING: Final = LabelSelector()
"""The empty selector."""


class IPBlock(_Spec, frozen=True):
    cidr: str
    exceptions: tuple[str, ...] = msgspec.field(name="except", default=())


class PolicyPeer(_Spec, frozen=True):
    """A source or destination. ``None`` is an absent selector; an empty one matches everything."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class PolicyPort(_Spec, frozen=True):
    protocol: str = "TCP"
    port: int | str | None = None
    """A number, or the name of a port of the destination's containers; None: every port."""
    end_port: int | None = None


class IngressRule(_Spec, frozen=True):
    peers: tuple[PolicyPeer, ...] = msgspec.field(name="from", default=())
    ports: tuple[PolicyPort, ...] = ()


class EgressRule(_Spec, frozen=True):
    peers: tuple[PolicyPeer, ...] = msgspec.field(name="to", default=())
    ports: tuple[PolicyPort, ...] = ()


Rule = IngressRule | EgressRule


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A NetworkPolicy rule that cannot be read. It allows nothing; the policy still isolates."""

    problem: str


class Tier(Enum):
    """Where a ClusterNetworkPolicy stands: before NetworkPolicy, or after it."""

    ADMIN = "Admin"
    BASELINE = "Baseline"


class Action(Enum):
    """What a ClusterNetworkPolicy rule does with what it matches."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"  # noqa: S105 - an action, not a secret


class NamespacedPods(_Spec, frozen=True):
    pod_selector: LabelSelector
    namespace_selector: LabelSelector = EVERYTHING


class ClusterSubject(_Spec, frozen=True):
    """Exactly one field is set."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None


class ClusterPeer(_Spec, frozen=True):
    """Exactly one field is set; the last three on egress only."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    networks: tuple[str, ...] | None = None
    nodes: LabelSelector | None = None
    domain_names: tuple[str, ...] | None = None


class PortRange(_Spec, frozen=True):
    start: int
    end: int
    """Inclusive."""


class ClusterPort(_Spec, frozen=True):
    """Exactly one field is set."""

    number: int | None = None
    range: PortRange | None = None


class ClusterProtocolPorts(_Spec, frozen=True):
    destination_port: ClusterPort


class ClusterProtocol(_Spec, frozen=True):
    """Exactly one field is set."""

    tcp: ClusterProtocolPorts | None = None
    udp: ClusterProtocolPorts | None = None
    sctp: ClusterProtocolPorts | None = None
    destination_named_port: str | None = None


class ClusterIngressRule(_Spec, frozen=True):
    action: Action
    peers: tuple[ClusterPeer, ...] = msgspec.field(name="from")
    protocols: tuple[ClusterProtocol, ...] = ()
    """Empty: whatever the protocol."""
    name: str = ""


class ClusterEgressRule(_Spec, frozen=True):
    action: Action
    peers: tuple[ClusterPeer, ...] = msgspec.field(name="to")
    protocols: tuple[ClusterProtocol, ...] = ()
    name: str = ""


ClusterRule = ClusterIngressRule | ClusterEgressRule


@dataclass(frozen=True, slots=True)
class BrokenClusterRule:
    """A ClusterNetworkPolicy rule that cannot be read, so it fails closed.

    An Accept rule matches nothing; a Deny or Pass rule (or one whose action cannot be read) denies everything.
    """

    action: Action
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    """Always with ``kubernetes.io/metadata.name``."""
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    uid: str = ""
    terminating: bool = False
    """Being deleted; its pods may still run, and its policies may be gone already (CVE-2024-7598)."""

    @property
    def key(self) -> str:
        return f"Namespace/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster; only ``nodes`` peers of ClusterNetworkPolicy look at it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    addresses: tuple[Address, ...] = ()
    """Every IP address in ``status.addresses``."""

    @property
    def key(self) -> str:
        return f"Node/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    deletion_timestamp: str | None = None
    """Set while the pod terminates; it counts on both sides until its containers have stopped."""
    service_account: str = "default"
    host_network: bool = False
    named_ports: tuple[NamedPort, ...] = ()
    """Of containers and of native sidecars (init containers with ``restartPolicy: Always``)."""
    addresses: tuple[Address, ...] = ()
    """``status.podIPs``, packed, in the API's order."""
    phase: str = ""

    @property
    def key(self) -> str:
        return f"Pod/{self.namespace}/{self.name}"

    @property
    def completed(self) -> bool:
        """Whether its containers are gone for good: its addresses may already be another pod's."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    namespace: str
    name: str
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    pod_selector: LabelSelector = EVERYTHING
    directions: frozenset[Direction] = frozenset({Direction.INGRESS})
    """``policyTypes`` with its default filled in: the directions in which selected pods are isolated."""
    ingress: tuple[IngressRule | BrokenRule, ...] = ()
    egress: tuple[EgressRule | BrokenRule, ...] = ()

    @property
    def key(self) -> str:
        return f"NetworkPolicy/{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNetworkPolicy:
    name: str
    uid: str = ""
    annotations: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    tier: Tier
    priority: int
    """0 to 1000; lower goes first."""
    subject: ClusterSubject
    ingress: tuple[ClusterIngressRule | BrokenClusterRule, ...] = ()
    egress: tuple[ClusterEgressRule | BrokenClusterRule, ...] = ()

    @property
    def key(self) -> str:
        return f"ClusterNetworkPolicy/{self.name}"


Object = Namespace | Node | Pod | NetworkPolicy | ClusterNetworkPolicy

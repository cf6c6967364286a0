"""Judge connections offline, between pods known by name or any address: what tests and the command line ask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from policy.addresses import Network, format_address, parse_address
from policy.engine import PolicyEngine, Snapshot
from policy.objects import Object, Pod
from policy.view import Settings
from trireme_py.model import Address, Decision, Direction, Identity, PlainLabels, Protocol, Reason

OFFLINE: Final = Settings(cluster=())
"""Every pod is known by name here, so an address that is not one of theirs is known to lie outside the cluster."""
CARRIERS: Final = frozenset({int(Protocol.TCP), int(Protocol.UDP)})
"""The protocols that identities travel on (docs/udp.md)."""
_NAMELESS: Final = Settings(cluster=tuple(Network(size, 0, 0) for size in (4, 16, 0)))
"""For pods as peers on other protocols: whatever their address (a stand-in has none), it may be a pod's."""
_NO_SIDE: Final = Decision(True, Reason.NO_ISOLATION)


class UnknownEndpoint(LookupError):
    """A name or address that cannot be asked about; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a connection."""

    text: str
    """As people write it: ``namespace/pod`` or an address."""
    pod: Pod | None
    """None: outside the cluster (or a completed pod, which no longer has a network)."""
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What both sides say to one connection."""

    source: Endpoint
    destination: Endpoint
    protocol: int
    port: int | None
    egress: Decision
    ingress: Decision
    source_address: Address = b""
    """The one each side was judged by; empty if there is none."""
    destination_address: Address = b""

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed

    @property
    def deciding(self) -> Decision:
        """The decision to look at first: a denial if there is one, else the more specific allowance."""
        if not self.egress.allowed:
            return self.egress
        if not self.ingress.allowed:
            return self.ingress
        return self.ingress if self.ingress.policy or not self.egress.policy else self.egress

    def decision(self, direction: Direction) -> Decision:
        return self.ingress if direction is Direction.INGRESS else self.egress


def identity_of(pod: Pod, trust_domain: str = "cluster.local") -> Identity:
    """Return the identity a pod would be given; equal pods get equal ids."""
    claims = (pod.namespace, pod.name, pod.service_account, sorted(pod.labels.items()), pod.named_ports)
    number = hashlib.blake2s(repr(claims).encode(), digest_size=16).digest()
    labels = PlainLabels(dict(pod.labels))
    return Identity(number, trust_domain, pod.namespace, pod.service_account, pod.name, labels, pod.named_ports)


class Evaluator:
    """Answers for one snapshot."""

    __slots__ = ("_by_address", "_identities", "_nameless", "snapshot")

    def __init__(self, snapshot: Snapshot, nameless: Snapshot | None = None) -> None:
        """``nameless`` is asked about pods on a protocol that carries no identity; None: every protocol carries one."""
        self.snapshot = snapshot
        self._nameless = nameless
        self._identities: dict[str, Identity] = {}
        self._by_address: dict[Address, Pod] = {}
        for pod in snapshot.pods.values():
            # A completed pod keeps its addresses in its status although another pod may have them by now; those of a
            # hostNetwork pod are its node's.
            if not pod.completed and not pod.host_network:
                for address in pod.addresses:
                    self._by_address.setdefault(address, pod)

    @classmethod
    def of(cls, objects: Iterable[Object], settings: Settings = OFFLINE) -> Evaluator:
        """Evaluate a set of objects by itself, as if each protocol told who the peer is: what the API means."""
        return cls(PolicyEngine(settings).replace(objects))

    @classmethod
    def as_enforced(cls, objects: Iterable[Object]) -> Evaluator:
        """Evaluate as the agents do: nobody is identified on SCTP, ICMP and the like, so pods count by address."""
        engine = PolicyEngine(OFFLINE)
        return cls(engine.replace(objects), engine.set_settings(_NAMELESS))

    def endpoint(self, text: str) -> Endpoint:
        """Find ``namespace/pod`` or an address. Raises :class:`UnknownEndpoint`."""
        if "/" in text:
            namespace, _, name = text.partition("/")
            pod = self.snapshot.pods.get((namespace, name))
            if pod is None:
                raise UnknownEndpoint(f"no pod {text} is known")
            if pod.completed:
                free = tuple(address for address in pod.addresses if address not in self._by_address)
                return Endpoint(text, None, free)
            return Endpoint(text, pod, pod.addresses)
        try:
            address = parse_address(text)
        except ValueError as error:
            raise UnknownEndpoint(f"{text!r} is neither namespace/pod nor an IP address") from error
        found = self._by_address.get(address)
        name = f"{found.namespace}/{found.name}" if found is not None else format_address(address)
        return Endpoint(name, found, (address,))

    def verdict(self, source: str, destination: str, protocol: int, port: int | None) -> Outcome:
        """Judge a connection in both directions. Raises :class:`UnknownEndpoint`."""
        return self.judge(self.endpoint(source), self.endpoint(destination), protocol, port)

    def judge(self, source: Endpoint, destination: Endpoint, protocol: int, port: int | None) -> Outcome:
        """Judge between endpoints found before."""
        if source.pod is not None and source.pod is destination.pod:
            # A pod cannot be kept from itself: such packets never leave it.
            return Outcome(source, destination, protocol, port, _NO_SIDE, _NO_SIDE)
        here, there = _same_family(source.addresses, destination.addresses)
        egress = self._decide(Direction.EGRESS, source, destination, there, protocol, port)
        ingress = self._decide(Direction.INGRESS, destination, source, here, protocol, port)
        return Outcome(source, destination, protocol, port, egress, ingress, here, there)

    def _decide(
        self, direction: Direction, local: Endpoint, peer: Endpoint, address: Address, protocol: int, port: int | None
    ) -> Decision:
        if local.pod is None:
            return _NO_SIDE
        asked = self._nameless if self._nameless is not None and self.hides(peer.pod, protocol) else self.snapshot
        view = asked.view(local.pod.namespace, local.pod.name)
        return view.decide(direction, self.identity(peer.pod, protocol), address, protocol, port)

    def hides(self, pod: Pod | None, protocol: int) -> bool:
        """Tell whether ``pod`` has an identity that ``protocol`` does not carry."""
        return self._nameless is not None and pod is not None and not pod.host_network and protocol not in CARRIERS

    def identity(self, pod: Pod | None, protocol: int) -> Identity | None:
        """Return what a peer proves on ``protocol``. A hostNetwork pod has nothing: its traffic is its node's."""
        if pod is None or pod.host_network or self.hides(pod, protocol):
            return None
        found = self._identities.get(pod.key)
        if found is None:
            found = self._identities[pod.key] = identity_of(pod)
        return found


def _same_family(source: tuple[Address, ...], destination: tuple[Address, ...]) -> tuple[Address, Address]:
    """Choose the addresses a connection would have: the destination's first that the source can reach from.

    A side without any address gets an empty one, which no block contains.
    """
    for there in destination:
        for here in source:
            if len(here) == len(there):
                return here, there
    return (source[0] if source else b""), (destination[0] if destination else b"")

"""What each act applies, and what must be true afterwards. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import yaml

from agent.demo.ledger import Ledger, Mark, Seat
from agent.demo.resolver import NAME
from agent.demo.resolver import PORT as DNS_PORT
from agent.demo.tap import PORT
from agent.flowlog import FlowRecord
from agent.lab import LabPod
from policy.objects import NETWORK_NAMESPACE_ANNOTATION

NAMESPACE: Final = "beer"
TAP: Final = "tap"
APPROVED: Final = "approved"
OTHER: Final = "other"
RESOLVER: Final = "resolver"
IMPOSTOR: Final = "impostor"
GUESTS: Final = (APPROVED, OTHER)
POLICY: Final = f"NetworkPolicy/{NAMESPACE}/approved-guests"
EGRESS_POLICY: Final = f"NetworkPolicy/{NAMESPACE}/guests-may-go"

LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    TAP: {"app": "tap"},
    APPROVED: {"app": "guest", "role": "approved"},
    OTHER: {"app": "guest", "role": "regular"},
    RESOLVER: {"app": "resolver"},
    IMPOSTOR: {"app": "impostor"},
}

POLICIES: Final = f"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: {NAMESPACE}, name: default-deny}}
spec:
  podSelector: {{}}
  policyTypes: [Ingress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: {NAMESPACE}, name: approved-guests}}
spec:
  podSelector: {{matchLabels: {{app: tap}}}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {{matchLabels: {{role: approved}}}}
    ports:
    - {{protocol: TCP, port: {PORT}}}
"""

EGRESS_POLICIES: Final = f"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: {NAMESPACE}, name: guests-may-go}}
spec:
  podSelector: {{matchLabels: {{app: guest}}}}
  policyTypes: [Egress]
  egress:
  - to:
    - podSelector: {{matchLabels: {{app: resolver}}}}
    ports:
    - {{protocol: UDP, port: {DNS_PORT}}}
  - to:
    - podSelector: {{matchLabels: {{app: tap}}}}
    ports:
    - {{protocol: TCP, port: {PORT}}}
"""
"""Guests may send nothing to anybody, but for what the two rules name."""

DRINKS: Final = 3
"""Visits in a row with an answer that count as drinking, and as finding."""
DRY: Final = 2
"""Visits in a row without one that count as dry."""


def namespace_yaml() -> str:
    """Return the Namespace object that everything of the demo lives in."""
    metadata = f"{{name: {NAMESPACE}, labels: {{kubernetes.io/metadata.name: {NAMESPACE}}}}}"
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {metadata}\n"


def pod_yaml(name: str, labels: Mapping[str, str], pod: LabPod) -> str:
    """Return the Pod object that binds ``name`` to the network namespace of ``pod``."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": NAMESPACE,
                "name": name,
                "labels": dict(labels),
                "annotations": {NETWORK_NAMESPACE_ANNOTATION: str(pod.path)},
            },
            "spec": {"serviceAccountName": name, "containers": [{"name": name, "image": "demo"}]},
            "status": {"podIPs": [{"ip": str(pod.ipv4)}, {"ip": str(pod.ipv6)}]},
        },
        sort_keys=False,
    )


def labels_excerpt(name: str, labels: Mapping[str, str]) -> str:
    """Return the part of a Pod object that an act changes, for people."""
    shown = ", ".join(f"{key}: {value}" for key, value in labels.items())
    return f"kind: Pod\nmetadata:\n  namespace: {NAMESPACE}\n  name: {name}\n  labels: {{{shown}}}\n"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One thing that must become true within an act."""

    text: str
    holds: Callable[[], bool]


def family_of(address: str) -> int:
    return ip_address(address).version


class Expectations:
    """Makes expectations about what happens in ``ledger`` after ``since``."""

    def __init__(self, ledger: Ledger, since: Mark) -> None:
        self._ledger = ledger
        self._since = since

    def drink(self, seats: Sequence[Seat]) -> Expectation:
        """The last visits of each seat all ended in a beer."""

        return Expectation(
            f"{guests(seats)} over {families(seats)}: {DRINKS} beers in a row", _all(self._answered, seats)
        )

    def find(self, seats: Sequence[Seat]) -> Expectation:
        """The last queries of each seat were all answered."""
        return Expectation(
            f"{guests(seats)} over {families(seats)}: {NAME} found {DRINKS} times in a row", _all(self._answered, seats)
        )

    def _answered(self, seat: Seat) -> bool:
        last = self._ledger.asks(self._since, seat)[-DRINKS:]
        return len(last) == DRINKS and all(ask.answer for ask in last)

    def go_dry(self, seats: Sequence[Seat]) -> Expectation:
        """The last visits of each seat all ended in nothing."""
        return Expectation(
            f"{guests(seats)} over {families(seats)}: {DRY} visits in a row without a beer", _all(self._empty, seats)
        )

    def find_nothing(self, seats: Sequence[Seat]) -> Expectation:
        """The last queries of each seat all stayed unanswered."""
        return Expectation(
            f"{guests(seats)} over {families(seats)}: {DRY} queries in a row without an answer",
            _all(self._empty, seats),
        )

    def _empty(self, seat: Seat) -> bool:
        last = self._ledger.asks(self._since, seat)[-DRY:]
        return len(last) == DRY and not any(ask.answer for ask in last)

    def never_reach_the_tap(self, seats: Sequence[Seat]) -> Expectation:
        """Each seat goes on asking, and not one request arrives at the tap's application."""

        def holds(seat: Seat) -> bool:
            asks = self._ledger.asks(self._since, seat)
            return len(asks) >= DRY and self._ledger.servings(self._since)[seat] == 0

        return Expectation(f"not one request of {guests(seats)} reaches the tap's application", _all(holds, seats))

    def never_reach(self, server: str, seats: Sequence[Seat]) -> Expectation:
        """Each seat goes on asking, and not one query arrives at the application of ``server``."""

        def holds(seat: Seat) -> bool:
            asks = self._ledger.asks(self._since, seat)
            return len(asks) >= DRY and self._ledger.resolutions(self._since)[server] == 0

        return Expectation(f"not one query of {guests(seats)} reaches the {server}'s application", _all(holds, seats))

    def judged(self, seats: Sequence[Seat], text: str, right: Judge) -> Expectation:
        """The agent concerned judged a connection or query of each seat as ``right`` says."""

        def holds(seat: Seat) -> bool:
            return any(right(record) for record in verdicts_about(self._ledger.verdicts(self._since), seat))

        whose = "guests'" if seats[0].resolves else "tap's"
        return Expectation(f"the {whose} agent about {guests(seats)}: {text}", _all(holds, seats))

    def leave_for_beer(self, names: Sequence[str]) -> Expectation:
        """Each guest's own agent has let it go to the tap by the egress policy, which is in force then."""

        def holds() -> bool:
            judged = {record.pod for record in self._ledger.verdicts(self._since) if allowed_to_the_tap(record)}
            return judged >= {f"{NAMESPACE}/{name}" for name in names}

        return Expectation(f"the guests' agent lets {' and '.join(names)} go to the tap, by guests-may-go", holds)

    def one_address(self, seats: Sequence[Seat]) -> Expectation:
        """The tap's node saw all guests of a family come from the same address."""

        def sources(family: int) -> set[str]:
            records = self._ledger.verdicts(self._since)
            of_family = [seat for seat in seats if seat.family == family]
            seen = [{record.source.address for record in verdicts_about(records, seat)} for seat in of_family]
            return set.union(*seen) if all(seen) else set()

        wanted = sorted({seat.family for seat in seats})
        text = f"the tap's node sees {guests(seats)} come from one and the same address"
        return Expectation(text, lambda: all(len(sources(family)) == 1 for family in wanted))

    def example(self, seat: Seat, right: Judge) -> FlowRecord | None:
        """Return the latest verdict that fulfils :meth:`judged`, to be shown.

        The first may be about a connection that was open already when the policy changed.
        """
        records = reversed(verdicts_about(self._ledger.verdicts(self._since), seat))
        return next((record for record in records if right(record)), None)


def guests(seats: Sequence[Seat]) -> str:
    return " and ".join(dict.fromkeys(seat.guest for seat in seats))


def families(seats: Sequence[Seat]) -> str:
    return " and ".join(dict.fromkeys(f"IPv{seat.family}" for seat in seats))


def _all(holds: Callable[[Seat], bool], seats: Sequence[Seat]) -> Callable[[], bool]:
    return lambda: all(holds(seat) for seat in seats)


def verdicts_about(records: list[FlowRecord], seat: Seat) -> list[FlowRecord]:
    """Return the verdicts that say whether ``seat`` gets what it came for.

    On a beer that is the tap's agent's, on who drinks; on a name the guest's own, on whom it may ask.
    """
    if seat.resolves:
        return [
            record
            for record in records
            if record.pod == f"{NAMESPACE}/{seat.guest}"
            and (record.direction, record.protocol) == ("egress", "UDP")
            and family_of(record.destination.address) == seat.family
        ]
    return [
        record
        for record in records
        if record.pod == f"{NAMESPACE}/{TAP}"
        and record.direction == "ingress"
        and record.peer is not None
        and (record.peer.namespace, record.peer.pod) == (NAMESPACE, seat.guest)
        and family_of(record.source.address) == seat.family
    ]


Judge = Callable[[FlowRecord], bool]


def allowed_without_policy(record: FlowRecord) -> bool:
    return record.verdict == "allow" and record.reason == "no_isolation" and _proven(record)


def allowed_by_rule(record: FlowRecord) -> bool:
    right = record.policy == POLICY and record.rule == 0
    return record.verdict == "allow" and record.reason == "policy" and right and _proven(record)


def denied_for_its_label(record: FlowRecord) -> bool:
    """Denied, and the verdict names the rule that came closest and the label it asks for."""
    nearest = record.nearest
    named = "approved-guests" in nearest and "role=approved" in nearest
    return record.verdict == "deny" and record.reason == "no_match" and named


def allowed_to_the_tap(record: FlowRecord) -> bool:
    """Allowed to leave by the rule for beer, because the other end has proven to be the tap."""
    right = record.direction == "egress" and record.policy == EGRESS_POLICY and record.rule == 1
    return record.verdict == "allow" and right and _proven_to_be(TAP, record)


def allowed_as_resolver(record: FlowRecord) -> bool:
    """Allowed by the rule for DNS, because the other end has proven to be the resolver."""
    right = record.policy == EGRESS_POLICY and record.rule == 0
    return record.verdict == "allow" and record.reason == "policy" and right and _proven_to_be(RESOLVER, record)


def denied_as_impostor(record: FlowRecord) -> bool:
    """Denied: the other end has proven who it is, and it is not whom the rule for DNS names."""
    named = "guests-may-go" in record.nearest and "app=resolver" in record.nearest
    return record.verdict == "deny" and record.reason == "no_match" and named and _proven_to_be(IMPOSTOR, record)


def as_role(role: str, judge: Judge) -> Judge:
    """Return ``judge`` for a peer that showed the label ``role`` with this value."""
    return lambda record: record.peer is not None and record.peer.labels.get("role") == role and judge(record)


def _proven(record: FlowRecord) -> bool:
    return record.peer is not None and record.peer.proven


def _proven_to_be(pod: str, record: FlowRecord) -> bool:
    return record.peer is not None and record.peer.pod == pod and record.peer.proven

"""What each act applies, and what must be true afterwards. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import yaml

from agent.demo.ledger import Ledger, Mark, Seat
from agent.demo.tap import PORT
from agent.flowlog import FlowRecord
from agent.lab import LabPod
from agent.standalone import NETWORK_NAMESPACE_ANNOTATION

NAMESPACE: Final = "beer"
TAP: Final = "tap"
APPROVED: Final = "approved"
OTHER: Final = "other"
GUESTS: Final = (APPROVED, OTHER)
POLICY: Final = f"NetworkPolicy/{NAMESPACE}/approved-guests"

LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    TAP: {"app": "tap"},
    APPROVED: {"app": "guest", "role": "approved"},
    OTHER: {"app": "guest", "role": "regular"},
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

DRINKS: Final = 3
"""Beers in a row that count as drinking."""
DRY: Final = 2
"""Visits in a row without a beer that count as dry."""


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

        def holds(seat: Seat) -> bool:
            last = self._ledger.asks(self._since, seat)[-DRINKS:]
            return len(last) == DRINKS and all(ask.beer for ask in last)

        return Expectation(f"{guests(seats)} over {families(seats)}: {DRINKS} beers in a row", _all(holds, seats))

    def go_dry(self, seats: Sequence[Seat]) -> Expectation:
        """The last visits of each seat all ended in nothing."""

        def holds(seat: Seat) -> bool:
            last = self._ledger.asks(self._since, seat)[-DRY:]
            return len(last) == DRY and not any(ask.beer for ask in last)

        return Expectation(
            f"{guests(seats)} over {families(seats)}: {DRY} visits in a row without a beer", _all(holds, seats)
        )

    def never_reach_the_tap(self, seats: Sequence[Seat]) -> Expectation:
        """Each seat goes on asking, and not one request arrives at the tap's application."""

        def holds(seat: Seat) -> bool:
            asks = self._ledger.asks(self._since, seat)
            return len(asks) >= DRY and self._ledger.servings(self._since)[seat] == 0

        return Expectation(f"not one request of {guests(seats)} reaches the tap's application", _all(holds, seats))

    def judged(self, seats: Sequence[Seat], text: str, right: Judge) -> Expectation:
        """The tap's agent judged a connection of each seat as ``right`` says."""

        def holds(seat: Seat) -> bool:
            return any(right(record) for record in verdicts_about(self._ledger.verdicts(self._since), seat))

        return Expectation(f"the tap's agent about {guests(seats)}: {text}", _all(holds, seats))

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
    """Return the verdicts of the tap's agent on connections that ``seat`` opened."""
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


def as_role(role: str, judge: Judge) -> Judge:
    """Return ``judge`` for a peer that showed the label ``role`` with this value."""
    return lambda record: record.peer is not None and record.peer.labels.get("role") == role and judge(record)


def _proven(record: FlowRecord) -> bool:
    return record.peer is not None and record.peer.proven

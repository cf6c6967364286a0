"""What would change between two sets of objects: which policies, and which connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policy.evaluate import Evaluator
from policy.files import Loaded
from policy.matrix import MAX_WORKLOADS, Workload, flows, group
from policy.objects import Object
from policy.ports import describe_flow
from policy.verdicts import by


@dataclass(frozen=True, slots=True)
class Change:
    """One connection whose answer differs."""

    source: str
    destination: str
    flow: str
    """``TCP 80``, or ``other ports`` for those that nothing mentions."""
    allowed: bool
    """In the new set."""
    by: str
    """The policy and rule that decides in the new set."""


@dataclass(frozen=True, slots=True)
class Diff:
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    """Keys of objects."""
    connections: tuple[Change, ...]

    @property
    def empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.connections)

    def as_json(self) -> dict[str, Any]:
        return {
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "connections": [
                {
                    "from": each.source,
                    "to": each.destination,
                    "flow": each.flow,
                    "now": "allowed" if each.allowed else "denied",
                    "by": each.by,
                }
                for each in self.connections
            ],
        }


def compare(old: Loaded, new: Loaded) -> Diff:
    """Compare two sets. A set without pods is asked about the pods (and namespaces) of the other."""
    before, after = _complete(old, new), _complete(new, old)
    keys = [key for key in after if key in before and after[key] != before[key]]
    return Diff(
        tuple(sorted(after.keys() - before.keys())),
        tuple(sorted(before.keys() - after.keys())),
        tuple(sorted(keys)),
        _connections(Evaluator.as_enforced(before.values()), Evaluator.as_enforced(after.values())),
    )


def _complete(loaded: Loaded, other: Loaded) -> dict[str, Object]:
    """Folders of policies often leave pods and namespaces to another place."""
    found: dict[str, Object] = {item.key: item for item in loaded.objects}
    if not loaded.pods:
        found |= {item.key: item for item in other.pods}
    if not loaded.namespaces:
        found |= {item.key: item for item in other.namespaces}
    return found


def _connections(before: Evaluator, after: Evaluator) -> tuple[Change, ...]:
    """Ask both about each pair of pods that both know, one pod of each group of replicas."""
    changes: list[Change] = []
    common = [pod for key, pod in after.snapshot.pods.items() if key in before.snapshot.pods]
    workloads = group(common)[:MAX_WORKLOADS]
    for target in workloads:
        name = _name(target)
        earlier, later = flows(before, target.pods[0]), flows(after, target.pods[0])
        asked = dict.fromkeys((*earlier, *later))
        unmentioned = {earlier[-1], later[-1]} - {*earlier[:-1], *later[:-1]}
        for source in workloads:
            for protocol, port in asked:
                if source is target:
                    continue
                old = before.verdict(_name(source), name, protocol, port)
                now = after.verdict(_name(source), name, protocol, port)
                if old.allowed != now.allowed:
                    flow = "other ports" if (protocol, port) in unmentioned else describe_flow(protocol, port)
                    changes.append(Change(_name(source), name, flow, now.allowed, by(now)))
    return tuple(dict.fromkeys(changes))


def _name(workload: Workload) -> str:
    return f"{workload.pods[0].namespace}/{workload.pods[0].name}"

"""For a denial: the rule that came closest, and what it lacked, as one sentence for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from policy.bound import BoundRule
from policy.compiler import CompiledRule, PodPeer
from policy.namespaces import NamespaceSet
from policy.ports import describe_flow
from policy.selector import Requirement
from trireme_py.model import Direction, Identity, NamedPort

_LOOKED_AT: Final = 64
"""Rules considered: enough to be helpful, few enough that denials stay cheap for who sends thousands of them."""


def nearest(
    direction: Direction,
    candidates: Iterable[tuple[BoundRule, bool]],
    isolating: Sequence[str],
    identity: Identity | None,
    protocol: int,
    port: int | None,
    named: Iterable[NamedPort],
) -> tuple[str, str]:
    """Return (policy, sentence). ``candidates`` are the rules, each with whether the peer matches it."""
    best: tuple[int, str, str] | None = None
    for count, (bound, peer_matches) in enumerate(candidates):
        if count == _LOOKED_AT:
            break
        missing, text = _distance(direction, bound, peer_matches, identity, protocol, port, named)
        if best is None or missing < best[0]:
            best = missing, bound.policy.key, text
    if best is None:
        return isolating[0], f"{isolating[0]} isolates the pod and has no {direction.value} rule"
    return best[1], best[2]


def _distance(
    direction: Direction,
    bound: BoundRule,
    peer_matches: bool,
    identity: Identity | None,
    protocol: int,
    port: int | None,
    named: Iterable[NamedPort],
) -> tuple[int, str]:
    """Count what is missing, and say it."""
    rule = bound.rule
    where = f"{bound.policy.key} {direction.value}[{rule.index}]"
    if rule.broken:
        return 1000, f"{where} cannot be read ({rule.broken})"
    texts: list[str] = []
    missing = 0
    if not peer_matches:
        side = "from" if direction is Direction.INGRESS else "to"
        count, text = describe_peer(side, bound.pods, rule, identity)
        missing += count
        texts.append(text)
    if not rule.ports.match(protocol, port, named):
        missing += 1
        texts.append(f"needs {rule.ports}, the flow is {describe_flow(protocol, port)}")
    return missing, f"{where} {' and '.join(texts)}"


def describe_peer(
    side: str, pods: Sequence[tuple[PodPeer, NamespaceSet | None]], rule: CompiledRule, identity: Identity | None
) -> tuple[int, str]:
    """Return how many conditions the nearest peer of a rule lacks, and which; none lacking means that it matches."""
    best: tuple[int, str] | None = None
    if identity is not None:
        for peer, namespaces in pods:
            count, text = _pod_distance(peer, namespaces, identity)
            if best is None or count < best[0]:
                best = count, f"{side}[{peer.index}] {text}"
    if best is not None:
        return best
    if pods:
        peer, namespaces = pods[0]
        return 2, f"{side}[{peer.index}] needs {_wanted(peer, namespaces)}, the peer brought no identity"
    return 2, f"needs an address in {_blocks(rule)}"


def _pod_distance(peer: PodPeer, namespaces: NamespaceSet | None, identity: Identity) -> tuple[int, str]:
    lacking = peer.pods.lacking(identity.labels)
    texts = [f"needs {', '.join(map(str, lacking))}"] if lacking else []
    count = len(lacking)
    if peer.namespace is not None and peer.namespace != identity.namespace:
        count += 1
        texts.append(f"needs namespace {peer.namespace}")
    elif namespaces is not None and not namespaces.matches(identity.namespace):
        count += 1
        texts.append(f"needs a namespace with {peer.namespaces}")
    if not count:
        return 0, _wanted(peer, namespaces)
    return count, f"{' and '.join(texts)}, the peer is {identity.name}{_shown(lacking, identity)}"


def _shown(lacking: Sequence[Requirement], identity: Identity) -> str:
    labels = identity.labels.describe()
    shown = [f"{item.key}={labels[item.key]}" for item in lacking if item.key in labels]
    absent = [item.key for item in lacking if not identity.labels.has_key(item.key)]
    parts = shown + [f"no label {key}" for key in absent]
    return f" with {', '.join(dict.fromkeys(parts))}" if parts else ""


def _wanted(peer: PodPeer, namespaces: NamespaceSet | None) -> str:
    where = f"namespace {peer.namespace}" if namespaces is None else f"a namespace with {peer.namespaces}"
    return f"a pod with {peer.pods} in {where}"


def _blocks(rule: CompiledRule) -> str:
    shown = [str(block.network) for block in rule.blocks[:4]]
    return " or ".join(shown) + (" …" if len(rule.blocks) > 4 else "") if shown else "no block at all"

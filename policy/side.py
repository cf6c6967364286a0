"""One direction of one pod: the rules that apply to it, bound to the state of the cluster, and the judgement itself.

The order is that of the ClusterNetworkPolicy API: Admin tier, NetworkPolicy, Baseline tier, and what nobody decided is
allowed. Each judgement depends on the peer only through (identity, blocks its address falls into, whether it might be
a pod that hides its identity), so answers are remembered by those and by protocol and port.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from policy.addresses import Network
from policy.blocks import BlockTable, Hit
from policy.bound import BoundPolicy, BoundRule
from policy.compiler import CompiledRule, Order, PodPeer
from policy.namespaces import NamespaceSet, NamespaceTable
from policy.nearest import nearest
from policy.objects import Action, Node
from trireme_py.model import Address, Decision, Direction, Identity, NamedPort, PlainLabels, Reason

_CACHED_IDENTITIES: Final = 8_192
_CACHED_DECISIONS: Final = 65_536
"""Per pod and direction, about 300 bytes each. A full table is emptied: what is in use comes back at once."""
_ALLOWED: Final = Decision(True, Reason.NO_ISOLATION)


class _Pass(Enum):
    """A tier's answer "ask the next one"."""

    NEXT = "next"


@dataclass(frozen=True, slots=True)
class _Flow:
    """The question, with everything about the peer looked up."""

    identity: Identity | None
    matched: Mapping[int, int]
    blocks: Mapping[int, int]
    hidden: bool
    protocol: int
    port: int | None
    named: Iterable[NamedPort]

    def peer(self, ordinal: int) -> int | None:
        """Return the first peer of a rule that matches."""
        by_identity, by_block = self.matched.get(ordinal), self.blocks.get(ordinal)
        if by_identity is None or by_block is None:
            return by_block if by_identity is None else by_identity
        return min(by_identity, by_block)


class Side:
    """What applies to a pod in one direction."""

    __slots__ = (
        "_audit_all",
        "_audited",
        "_blocks",
        "_cluster",
        "_decisions",
        "_direction",
        "_everyone",
        "_identities",
        "_isolating",
        "_own_ports",
        "_rules",
        "_suspicious",
        "_tiers",
        "empty",
    )

    def __init__(
        self,
        direction: Direction,
        policies: Sequence[BoundPolicy],
        namespaces: NamespaceTable,
        nodes: Sequence[Node],
        own_ports: tuple[NamedPort, ...],
        cluster: Sequence[Network],
        audit_all: bool,
    ) -> None:
        """``policies`` are those that act on the pod in this direction, in the order of their ``sort_key``."""
        self._direction = direction
        self._own_ports = own_ports if direction is Direction.INGRESS else None
        self._cluster = tuple(cluster)
        self._audit_all = audit_all
        self._audited = audit_all or any(bound.audit for bound in policies)
        self._rules = tuple(
            _bind(bound, rule, namespaces) for bound in policies for rule in bound.policy.rules[direction]
        )
        tiers: list[range] = []
        start = 0
        for order in Order:
            stop = start + sum(1 for bound in self._rules if bound.policy.order is order)
            tiers.append(range(start, stop))
            start = stop
        self._tiers = tuple(tiers)
        self._isolating = tuple(bound for bound in policies if direction in bound.policy.isolates)
        self._everyone = tuple(index for index in self._tiers[Order.NETWORK] if self._rules[index].rule.everyone)
        self._suspicious = any(bound.pods and bound.rule.action is not Action.ACCEPT for bound in self._rules)
        self._blocks = BlockTable(_block_entries(self._rules, nodes))
        self._identities: dict[bytes, Mapping[int, int]] = {}
        self._decisions: dict[tuple[bytes | None, tuple[Hit, ...], bool, int, int | None], Decision] = {}
        self.empty = not policies
        """No policy acts on the pod in this direction."""

    def decide(self, identity: Identity | None, address: Address, protocol: int, port: int | None) -> Decision:
        """Judge one flow; see ``trireme_py.model.PolicyView.decide``."""
        if self.empty:
            return _ALLOWED
        blocks = self._blocks.lookup(address)
        hidden = identity is None and self._suspicious and any(part.contains(address) for part in self._cluster)
        key = (identity.id if identity is not None else None, blocks, hidden, protocol, port)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(identity, blocks, hidden, protocol, port)
            if len(self._decisions) >= _CACHED_DECISIONS:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision

    def could_allow(self, address: Address, protocol: int, port: int | None) -> bool:
        """Tell whether some identity at ``address`` might be allowed: each rule that names pods may mean it, or not."""
        flow = _Flow(None, {}, dict(self._blocks.lookup(address)), False, protocol, port, self._own_ports or ())
        return self._audit_all or self._could(flow, Order.ADMIN)

    def _could(self, flow: _Flow, order: Order) -> bool:
        closed = order is Order.NETWORK and any(not bound.audit for bound in self._isolating)
        if order is not Order.NETWORK or closed:
            for index in self._tiers[order]:
                bound = self._rules[index]
                surely, maybe = self._may_mean(index, flow)
                if bound.audit or not maybe:
                    continue
                action = bound.rule.action
                if action is Action.ACCEPT or (action is Action.PASS and self._could_later(flow, order)):
                    return True
                if surely:
                    return False
        return not closed and self._could_later(flow, order)

    def _could_later(self, flow: _Flow, order: Order) -> bool:
        return order is Order.BASELINE or self._could(flow, Order(order + 1))

    def _may_mean(self, index: int, flow: _Flow) -> tuple[bool, bool]:
        """Tell whether a rule means the flow whoever the peer is, and whether it does for some peer."""
        bound = self._rules[index]
        rule, ports_match = bound.rule, bound.rule.ports.match(flow.protocol, flow.port, flow.named)
        anybody = rule.everyone or flow.peer(index) is not None
        # On egress a name is one of the destination's ports, which only an identity tells.
        by_name = self._own_ports is None and bool(rule.ports.names) and rule.ports.may_match(flow.protocol)
        return ports_match and anybody, (ports_match or by_name) and (anybody or bool(bound.pods))

    def may_open(self, protocol: int) -> bool:
        """Tell whether some peer could be allowed; only what is enforced counts."""
        if self._audit_all or not any(not bound.audit for bound in self._isolating):
            return True
        accepting = (
            bound
            for order in (Order.ADMIN, Order.NETWORK)
            for bound in self._tier(order, audited=False)
            if bound.rule.action is Action.ACCEPT
        )
        return any(bound.rule.ports.may_match(protocol) for bound in accepting)

    def _tier(self, order: Order, audited: bool) -> Iterator[BoundRule]:
        for index in self._tiers[order]:
            bound = self._rules[index]
            if audited or not bound.audit:
                yield bound

    def _decide(
        self, identity: Identity | None, blocks: tuple[Hit, ...], hidden: bool, protocol: int, port: int | None
    ) -> Decision:
        matched: Mapping[int, int] = {}
        named: Iterable[NamedPort] = self._own_ports or ()
        if identity is not None:
            matched = self._match_identity(identity)
            named = identity.named_ports if self._own_ports is None else self._own_ports
        flow = _Flow(identity, matched, dict(blocks), hidden, protocol, port, named)
        actual = _ALLOWED if self._audit_all else self._judge(flow, audited=False)
        if not self._audited or not actual.allowed:
            return actual
        would = self._judge(flow, audited=True)
        if would.allowed:
            return would if self._audit_all else actual
        return replace(would, allowed=True, reason=Reason.AUDIT)

    def _match_identity(self, identity: Identity) -> Mapping[int, int]:
        """Return rule ordinal -> first peer that means this identity; selectors are asked once per identity."""
        found = self._identities.get(identity.id)
        if found is None:
            found = {}
            for ordinal, bound in enumerate(self._rules):
                for peer, namespaces in bound.pods:
                    if _means(peer, namespaces, identity):
                        found[ordinal] = peer.index
                        break
            if len(self._identities) >= _CACHED_IDENTITIES:
                self._identities.clear()
            self._identities[identity.id] = found
        return found

    def _judge(self, flow: _Flow, *, audited: bool) -> Decision:
        """Ask the tiers in turn. ``audited``: as if everything were enforced."""
        decision = self._ask_cluster_tier(Order.ADMIN, flow, audited)
        if decision is _Pass.NEXT and any(audited or not bound.audit for bound in self._isolating):
            return self._ask_network_policies(flow, audited)
        if decision is _Pass.NEXT:
            decision = self._ask_cluster_tier(Order.BASELINE, flow, audited)
        return _ALLOWED if decision is _Pass.NEXT else decision

    def _ask_cluster_tier(self, order: Order, flow: _Flow, audited: bool) -> Decision | _Pass:
        for index in self._tiers[order]:
            bound = self._rules[index]
            rule = bound.rule
            if bound.audit and not audited:
                continue
            peer = flow.peer(index)
            ports_match = rule.ports.match(flow.protocol, flow.port, flow.named)
            if peer is None and not rule.everyone:
                # Leaving the token out must not evade what was meant for a pod (nor, on egress, for its named port).
                unsure = ports_match or (self._own_ports is None and bool(rule.ports.names))
                if flow.hidden and bound.pods and rule.action is not Action.ACCEPT and unsure:
                    return self._hiding(bound)
                continue
            if not ports_match:
                continue
            if rule.action is Action.PASS:
                return _Pass.NEXT
            if rule.action is Action.DENY:
                text = f"{self._where(bound)} denies it" + (
                    f": it cannot be read ({rule.broken})" if rule.broken else ""
                )
                return Decision(False, Reason.DENY_RULE, bound.policy.key, rule.index, peer, text)
            reason = Reason.IPBLOCK if peer is not None and flow.matched.get(index) != peer else Reason.POLICY
            return Decision(True, reason, bound.policy.key, rule.index, peer)
        return _Pass.NEXT

    def _hiding(self, bound: BoundRule) -> Decision:
        text = f"{self._where(bound)} names pods, and the peer brought no identity although its address may be a pod's"
        return Decision(False, Reason.UNIDENTIFIED, bound.policy.key, bound.rule.index, None, text)

    def _where(self, bound: BoundRule) -> str:
        name = f" ({bound.rule.name})" if bound.rule.name else ""
        return f"{bound.policy.key} {self._direction.value}[{bound.rule.index}]{name}"

    def _ask_network_policies(self, flow: _Flow, audited: bool) -> Decision:
        """The pod is isolated: allowed if any rule of any policy says so, and this answer is final."""
        tier = self._tiers[Order.NETWORK]
        for index in sorted({*flow.matched, *flow.blocks, *self._everyone}):
            bound = self._rules[index]
            if index not in tier or (bound.audit and not audited):
                continue
            if bound.rule.ports.match(flow.protocol, flow.port, flow.named):
                peer = flow.peer(index)
                reason = Reason.IPBLOCK if peer is not None and flow.matched.get(index) != peer else Reason.POLICY
                return Decision(True, reason, bound.policy.key, bound.rule.index, peer)
        isolating = [bound.policy.key for bound in self._isolating if audited or not bound.audit]
        candidates = (
            (self._rules[index], self._rules[index].rule.everyone or flow.peer(index) is not None)
            for index in tier
            if audited or not self._rules[index].audit
        )
        policy, text = nearest(
            self._direction, candidates, isolating, flow.identity, flow.protocol, flow.port, flow.named
        )  # fmt: skip
        reason = Reason.UNIDENTIFIED if flow.identity is None else Reason.NO_MATCH
        return Decision(False, reason, policy, nearest=text)


def _bind(bound: BoundPolicy, rule: CompiledRule, namespaces: NamespaceTable) -> BoundRule:
    pods = tuple(
        (peer, None if peer.namespace is not None else namespaces.resolve(peer.namespaces)) for peer in rule.pods
    )
    return BoundRule(bound.policy, rule, bound.audit, pods)


def _means(peer: PodPeer, namespaces: NamespaceSet | None, identity: Identity) -> bool:
    if namespaces is None:
        if peer.namespace != identity.namespace:
            return False
    elif not namespaces.matches(identity.namespace):
        return False
    return peer.pods.matches(identity.labels)


def _block_entries(
    rules: Sequence[BoundRule], nodes: Sequence[Node]
) -> Iterator[tuple[Network, tuple[Network, ...], Hit]]:
    for ordinal, bound in enumerate(rules):
        for block in bound.rule.blocks:
            yield block.network, block.exceptions, (ordinal, block.index)
        for peer in bound.rule.nodes:
            for node in nodes:
                if peer.nodes.matches(PlainLabels(node.labels)):
                    for address in node.addresses:
                        host = Network(len(address), len(address) * 8, int.from_bytes(address, "big"))
                        yield host, (), (ordinal, peer.index)

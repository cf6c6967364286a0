"""A stand-in for the policy engine: says yes to pods by name and to addresses one by one."""

from __future__ import annotations

from dataclasses import dataclass

from trireme_py.model import Address, Decision, Direction, Identity, Reason

Names = frozenset[str]


@dataclass(frozen=True, eq=False)
class StandInPolicy:
    """Implements :class:`trireme_py.model.PolicyView`. None for a direction: nothing isolates the pod there.

    Equality is identity, as with the engine's snapshots: a new object is a changed policy.
    """

    ingress: Names | None = None
    """``namespace/name`` of the pods that may connect."""
    egress: Names | None = None
    addresses: frozenset[Address] = frozenset()
    """Peers that are let in or out whoever they are, as ipBlock does."""
    ports: frozenset[int] | None = None
    """Destination ports that are allowed; None for all."""
    installing: bool = False

    def isolated(self, direction: Direction) -> bool:
        return self._names(direction) is not None

    def may_open(self, protocol: int) -> bool:
        return self.egress is None or bool(self.egress or self.addresses)

    def decide(
        self, direction: Direction, identity: Identity | None, address: Address, protocol: int, port: int | None
    ) -> Decision:
        names = self._names(direction)
        if names is None:
            return Decision(True, Reason.NO_ISOLATION)
        if self.ports is not None and port is not None and port not in self.ports:
            return Decision(False, Reason.NO_MATCH, nearest=f"port {port} is not listed")
        if address in self.addresses:
            return Decision(True, Reason.IPBLOCK, "StandIn", 0, 0)
        if identity is None:
            return Decision(False, Reason.UNIDENTIFIED)
        if identity.name in names:
            return Decision(True, Reason.POLICY, "StandIn", 0, 0)
        return Decision(False, Reason.NO_MATCH, nearest=f"{identity.name} is not one of {sorted(names)}")

    def could_allow(self, direction: Direction, address: Address, protocol: int, port: int | None) -> bool:
        names = self._names(direction)
        return names is None or (bool(names) and (self.ports is None or port is None or port in self.ports))

    def _names(self, direction: Direction) -> Names | None:
        return self.ingress if direction is Direction.INGRESS else self.egress


OPEN = StandInPolicy()


def only_from(*names: str, addresses: frozenset[Address] = frozenset()) -> StandInPolicy:
    return StandInPolicy(ingress=frozenset(names), addresses=addresses)


def only_to(*names: str, addresses: frozenset[Address] = frozenset()) -> StandInPolicy:
    return StandInPolicy(egress=frozenset(names), addresses=addresses)

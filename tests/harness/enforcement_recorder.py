"""In the kernel's place under the reconciler: remembers each step. The real thing: tests/kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trireme_py.errors import KernelError
from trireme_py.identities import LocalIdentity
from trireme_py.model import Address, PolicyView

ADDRESS = b"\x0a\x4d\x01\x02"


@dataclass
class Recorder:
    """Satisfies ``Enforcement``: remembers each step, and fails where it is told to."""

    steps: list[tuple[object, ...]] = field(default_factory=list)
    in_force: dict[str, int] = field(default_factory=dict)
    in_use: set[int] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)
    policies: dict[int, PolicyView] = field(default_factory=dict)
    identities: dict[int, LocalIdentity] = field(default_factory=dict)
    attached: dict[str, tuple[Address, ...]] = field(default_factory=dict)
    """By pod: the addresses under which it was attached last."""
    laid: list[int] = field(default_factory=list)
    """Endpoints whose rules name the epoch of their policy."""
    sweeps: int = 0
    verified: list[int] = field(default_factory=list)
    """Endpoints whose rules were looked at, oldest first."""
    own: tuple[Address, ...] = (ADDRESS,)
    places: dict[int, str] = field(default_factory=dict)
    """The namespaces' names, by endpoint."""
    epochs: dict[int, int] = field(default_factory=dict)

    def _step(self, what: str, *rest: object) -> None:
        if what in self.failing:
            raise KernelError(f"{what} refused")
        self.steps.append((what, *rest))

    def take(self) -> list[tuple[object, ...]]:
        steps, self.steps = self.steps, []
        return steps

    def addresses(self, namespace: Path) -> tuple[Address, ...]:
        return self.own

    def epoch_in_force(self, namespace: Path) -> int | None:
        return self.in_force.get(namespace.name)

    def epochs_in_use(self, namespace: Path) -> set[int]:
        self.sweeps += 1
        return set(self.in_use)

    def serving(self, endpoint: int) -> bool:
        return endpoint not in self.closed

    def attach(
        self,
        endpoint: int,
        pod: str,
        namespace: Path,
        *,
        addresses: tuple[Address, ...],
        identity: LocalIdentity | None,
        policy: PolicyView,
        epoch: int,
        lay: bool = True,
    ) -> None:
        self._step("attach" if lay else "adopt", pod, namespace.name, epoch)
        self.places[endpoint], self.epochs[endpoint] = namespace.name, epoch
        self.attached[pod] = addresses
        self.policies[endpoint] = policy
        if identity is not None:
            self.identities[endpoint] = identity
        if lay:
            self.in_force[namespace.name] = epoch

    def lay(self, endpoint: int) -> None:
        self._step("lay", endpoint)
        self.in_force[self.places[endpoint]] = self.epochs[endpoint]

    def set_identity(self, endpoint: int, identity: LocalIdentity) -> None:
        self._step("identity", endpoint)
        self.identities[endpoint] = identity

    def set_policy(self, endpoint: int, policy: PolicyView, epoch: int) -> None:
        self._step("policy", endpoint, epoch)
        self.epochs[endpoint] = epoch
        self.policies[endpoint] = policy

    def lay_epoch(self, endpoint: int) -> None:
        if "epoch" in self.failing:
            raise KernelError("epoch refused")
        self.laid.append(endpoint)
        self.in_force[self.places[endpoint]] = self.epochs[endpoint]

    def follow_node(self) -> None:
        pass

    def verify(self, part: int = 0, parts: int = 1) -> None:
        self.verified += [endpoint for endpoint in self.policies if endpoint % parts == part]
        if part == 0:
            self._step("verify")

    def detach(self, endpoint: int) -> None:
        self._step("detach", endpoint)

    def remove_rules(self, namespace: Path) -> None:
        self._step("remove", namespace.name)
        self.in_force.pop(namespace.name, None)

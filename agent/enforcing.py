"""What :mod:`agent.reconciler` asks of whatever holds the pods; :mod:`agent.enforcement` does it on a real kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from trireme_py.identities import LocalIdentity
from trireme_py.model import Address, PolicyView


class Enforcement(Protocol):
    """What holds the pods to their policy. Every method raises KernelError."""

    def addresses(self, namespace: Path) -> tuple[Address, ...]:
        """Return the addresses that the namespace's own interfaces carry."""

    def serving(self, endpoint: int) -> bool:
        """Tell whether the pod's queue is open and its packets are judged."""

    def epoch_in_force(self, namespace: Path) -> int | None:
        """Return the epoch that the rules there name, None without rules of ours."""

    def epochs_in_use(self, namespace: Path) -> set[int]:
        """Return every epoch that some connection there carries."""

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
        """Begin to enforce: queue first, then rules. Nothing of ours is open after a failure.

        Not ``lay``: the rules should be there already, and :meth:`lay` is to follow.
        """

    def lay(self, endpoint: int) -> None:
        """Lay all rules of a pod, where they are not in place."""

    def set_identity(self, endpoint: int, identity: LocalIdentity) -> None:
        """Present ``identity`` from now on."""

    def set_policy(self, endpoint: int, policy: PolicyView, epoch: int) -> None:
        """Judge by ``policy`` what is new from now on; takes no time. :meth:`lay_epoch` is to follow."""

    def lay_epoch(self, endpoint: int) -> None:
        """Write the epoch that was set last into the rules: every live connection is judged anew under it."""

    def follow_node(self) -> None:
        """Notice that the node's own addresses have changed."""

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Lay rules again that somebody else changed; of ``parts`` parts only ``part``, counted from 0."""

    def detach(self, endpoint: int) -> None:
        """Stop judging. The rules stay: without a listener they hold what is new, and what is accepted goes on."""

    def remove_rules(self, namespace: Path) -> None:
        """Remove every rule of ours; the namespace is open then."""

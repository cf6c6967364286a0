"""What every rule back end does: keep our rules in one network namespace, a pod's or the node's."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from agent.marks import Marks
from agent.ruleset import Family, PodRules, RuleSet


class RuleBackend(Protocol):
    """Writes the rules of :mod:`agent.ruleset`. Every method raises :class:`~trireme_py.errors.KernelError`."""

    @property
    def name(self) -> str:
        """What people call it, as in logs and ``trireme_agent_info``."""

    def apply(self, namespace: Path, rules: RuleSet) -> bool:
        """Bring the namespace's rules to ``rules``; tell whether anything had to change.

        Nothing is touched, counters included, when all is in place already. Foreign rules are never changed, and ours
        come before them.
        """

    def set_epoch(self, namespace: Path, rules: PodRules) -> None:
        """Change the epoch alone, in rules laid by :meth:`apply`; no packet is lost and no other rule is touched."""

    def read_state(self, namespace: Path, marks: Marks) -> int | None:
        """Return the epoch in force, or None if our rules are not there (or carry another mask)."""

    def remove(self, namespace: Path) -> None:
        """Remove every rule and chain of ours, whatever mask or queue they were laid with."""


def families() -> tuple[Family, ...]:
    """Return the address families this kernel speaks: IPv6 can be compiled out or disabled at boot."""
    if Path("/proc/sys/net/ipv6").exists():
        return (Family.IPV4, Family.IPV6)
    return (Family.IPV4,)

"""Which rule back end an installation uses."""

from __future__ import annotations

from agent.config import RuleBackendName
from agent.rules import RuleBackend
from agent.rules_iptc import IptcBackend
from agent.rules_restore import RestoreBackend, Variant, probe


def make_backend(name: RuleBackendName) -> RuleBackend:
    """Return the back end called ``name``; ``auto`` finds one that works here.

    Raises KernelError, with what each variant answered, if none does.
    """
    if name == "auto":
        return probe()
    if name == "python-iptables":
        return IptcBackend()
    return RestoreBackend(Variant(name))


def removers() -> tuple[RuleBackend, ...]:
    """Return back ends that together find rules laid by any of them: both kernel interfaces, whoever wrote there."""
    return tuple(RestoreBackend(variant) for variant in Variant)

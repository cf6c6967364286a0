"""Which rule back end an installation uses."""

from __future__ import annotations

from agent.config import RuleBackendName
from agent.rules import RuleBackend
from agent.rules_iptc import IptcBackend
from agent.rules_restore import RestoreBackend, Variant, probe
from trireme_py.errors import KernelError


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
    """Return back ends that together find rules laid by any of them: both kernel interfaces, whoever wrote there.

    A variant whose programs this machine does not have has laid nothing. Raises KernelError if it has neither.
    """
    found = tuple(backend for variant in Variant if (backend := RestoreBackend(variant)).installed())
    if not found:
        raise KernelError("iptables is not installed: run 'apt-get install iptables'")
    return found

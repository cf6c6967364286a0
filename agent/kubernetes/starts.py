"""What the two halves of the agent on a node ask of each other.

The one half (the CNI server and the runtime's records) knows which network namespace a pod has; the other (the watch
and the reconciler) knows which policy. Each is written against these protocols alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from policy.objects import Pod
from trireme_py.errors import TriremeError
from trireme_py.model import Address


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The network namespace that the container runtime made for one run of a pod."""

    pod: str
    """``namespace/name``."""
    uid: str
    """Of the Pod object; empty where the runtime did not tell."""
    container: str
    """The runtime's id of the sandbox: the same pod gets another one when its sandbox is made anew."""
    network_namespace: Path
    """A file that pins the namespace, as seen by the agent."""
    addresses: tuple[Address, ...] = ()
    """Those that the other plugins of the chain gave it, packed; empty if they did not say."""
    starting: bool = False
    """Nothing has run in it yet, and nothing will before this is answered."""


class NotStarted(TriremeError):
    """A pod is not under enforcement, and so must not start yet. The text is for an event of the kubelet."""


class Locator(Protocol):
    """Finds the namespaces of pods. May be called from any thread."""

    def locate(self, pod: Pod) -> Path | None:
        """Return the file that pins the namespace of ``pod``, None while it is not known.

        It must be the namespace of this very Pod object (``pod.uid``), not of an earlier one of the same name.
        """

    def addresses_at(self, path: Path) -> tuple[Address, ...]:
        """Return the pod's addresses in the namespace that ``path`` pins; empty if the runtime did not tell."""

    def is_starting(self, path: Path) -> bool:
        """Tell whether nothing has run yet in the namespace that ``path`` pins."""


class PodStarts(Protocol):
    """Brings pods under enforcement before their first process runs. May be called from any thread."""

    def hold(self, sandbox: Sandbox, timeout_s: float) -> None:
        """Return once the pod is under enforcement: rules laid, identity issued, policy in force.

        The policy is that of the Pod object of ``sandbox.uid``; a watch that is behind the kubelet is waited for.
        Raises NotStarted if that is not so in ``timeout_s`` seconds.
        The sandbox is then forgotten, as after :meth:`gone`.
        """

    def gone(self, container: str) -> None:
        """Let go of a sandbox that is being removed: an open socket would keep its namespace alive.

        Returns when nothing of ours is open there. A sandbox that is not known is passed over.
        """

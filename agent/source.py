"""What :mod:`agent.reconciler` asks of whatever says which objects are in force and which pods are here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from policy.engine import PolicyEngine
from policy.files import Problem
from policy.objects import Pod
from trireme_py.model import Address


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod that should be under enforcement here."""

    pod: Pod
    path: Path | None
    """The file that pins its network namespace; None while there is none."""
    problem: Problem | None = None
    """Why there is none, if somebody should know."""
    addresses: tuple[Address, ...] = ()
    """The pod's own; empty: those that its interfaces carry."""

    @property
    def name(self) -> str:
        return f"{self.pod.namespace}/{self.pod.name}"


class Source(Protocol):
    """What says which objects are in force, and which pods are here."""

    opens: bool
    """Whether a pod that is no longer asked for is opened: its rules are removed although its namespace is there."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with the objects, as of the last :meth:`feed`."""

    @property
    def pods(self) -> int:
        """How many pods it knows of, here or elsewhere."""

    def first(self) -> None:
        """Get ready for the first :meth:`feed`. Raises ConfigError if there is nothing to begin with."""

    def stale(self) -> bool:
        """Tell whether there is news that nobody told of. Asked once a second."""

    def feed(self, engine: PolicyEngine) -> bool:
        """Hand ``engine`` what has changed; tell whether that is more than policy: pods, or their namespaces."""

    def candidates(self) -> Iterable[Candidate]:
        """Return the pods that should be under enforcement here, those without a namespace included."""

    def problem(self, pod: Pod, message: str, hint: str = "") -> Problem:
        """Return a problem with the namespace of ``pod``, at its place in the source."""


def inode_of(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file that may pin a namespace, None if it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # an octet of zero in the name is a ValueError
        return None
    return found.st_dev, found.st_ino

"""Which pods are to be held, and in which namespaces: what a source says, held against what is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.runtime import Recorded
from agent.source import Candidate, Source, inode_of
from policy.files import Problem
from policy.objects import Pod
from policy.view import View
from trireme_py.model import Address

OWN_NAMESPACE: Final = Path("/proc/self/ns/net")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pod to hold, in a namespace that is there."""

    pod: Pod
    path: Path
    inode: tuple[int, int]
    addresses: tuple[Address, ...]
    starting: bool

    @property
    def name(self) -> str:
        return f"{self.pod.namespace}/{self.pod.name}"

    def is_under(self, view: View, recorded: Recorded | None) -> bool:
        """Tell whether it was held here under this very policy when ``recorded`` was written."""
        return recorded is not None and (recorded.pod, recorded.inode, recorded.fingerprint) == (
            self.name,
            self.inode,
            view.fingerprint.hex(),
        )


def find_wanted(source: Source, recorded: Mapping[str, Recorded], problems: list[Problem]) -> dict[str, Wanted]:
    """Return the pods to enforce, by name, each with its namespace; add what is wrong to ``problems``.

    ``recorded``: by path, what this agent or the one before has held.
    """
    wanted: dict[str, Wanted] = {}
    taken: dict[tuple[int, int], str] = {}
    own = inode_of(OWN_NAMESPACE)

    def has_its_namespace(candidate: Candidate) -> bool:
        before = recorded.get(str(candidate.path))
        return before is not None and before.pod == candidate.name

    # Who has a namespace keeps it: a slip that names it for another pod must not take it away.
    for candidate in sorted(source.candidates(), key=lambda one: not has_its_namespace(one)):
        if candidate.problem is not None:
            problems.append(candidate.problem)
        path = candidate.path
        inode = inode_of(path) if path is not None else None
        if path is None or inode is None:
            continue
        if inode == own:
            text = f"network namespace {path} is this machine's own, not a pod's, and is not enforced"
            problems.append(source.problem(candidate.pod, text, "name the pod's"))
            continue
        if inode in taken:
            text = f"network namespace {path} is already that of pod {taken[inode]}"
            problems.append(source.problem(candidate.pod, text, "give each pod its own"))
            continue
        taken[inode] = candidate.name
        wanted[candidate.name] = Wanted(candidate.pod, path, inode, candidate.addresses, candidate.starting)
    return wanted

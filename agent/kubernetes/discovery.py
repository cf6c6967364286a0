"""Finds the namespaces of pods that were there before the agent, or that started past its CNI plugin.

Container runtimes pin each pod's namespace by a file in one folder (``/run/netns``), under names that say nothing. Its
interfaces carry the pod's addresses, and the API has those in ``status.podIPs``: that is the match. Where it is not
the only one, nothing is chosen and the ambiguity is reported.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.interfaces import addresses_of
from agent.kubernetes.sandboxes import Inode, Sandboxes, network_namespace
from agent.source import inode_of
from policy.addresses import format_address
from policy.objects import Pod
from trireme_py.errors import KernelError
from trireme_py.model import Address

LONGEST_WAIT_TICKS: Final = 64
"""How often a namespace that is nobody's is looked into: after 1, 2, 4 ticks and so on, up to this."""


@dataclass(slots=True)
class _Seen:
    inode: Inode
    addresses: frozenset[Address]
    looks: int
    due: int
    """The tick at which its addresses are read again, if it is nobody's then: interfaces come after the namespace."""


class Discovery:
    """Use it from one thread."""

    def __init__(self, folders: Sequence[Path], sandboxes: Sandboxes) -> None:
        self._folders = folders
        self._sandboxes = sandboxes
        self._seen: dict[Path, _Seen] = {}
        self._matched: frozenset[Inode] = frozenset()
        self._ticks = 0

    def look(self, pods: Iterable[Pod]) -> list[str]:
        """Match ``pods``, those of this node, with namespaces; return what could not be decided, a text each.

        Afterwards ``Sandboxes.locate`` knows them. Costs a stat per namespace when nothing has changed.
        """
        self._ticks += 1
        told = self._sandboxes.told()
        self._refresh(told.keys())
        by_address: dict[Address, dict[Inode, Path]] = defaultdict(dict)
        for path, seen in self._seen.items():
            if seen.inode not in told:
                for address in seen.addresses:
                    by_address[address].setdefault(seen.inode, path)

        problems: list[str] = []
        found: dict[tuple[str, str], tuple[Path, Inode]] = {}
        for pod in pods:
            if pod.host_network or pod.completed or not pod.addresses:
                continue
            name = f"{pod.namespace}/{pod.name}"
            candidates = _common([by_address.get(address, {}) for address in pod.addresses])
            if len(candidates) == 1:
                ((inode, path),) = candidates.items()
                found[name, pod.uid] = path, inode
            elif candidates:
                places = ", ".join(sorted(map(str, candidates.values())))
                problems.append(
                    f"pod {name}: its addresses {_text(pod.addresses)} are in more than one network namespace "
                    f"({places}); it is not enforced until one of them is gone"
                )
        claims = Counter(inode for _, inode in found.values())
        for (name, uid), (path, inode) in list(found.items()):
            if claims[inode] > 1:
                del found[name, uid]
                problems.append(
                    f"pod {name}: its addresses are also another pod's of this node, in the one network namespace "
                    f"{path}; neither is enforced until the API says whose they are"
                )
        self._matched = frozenset(inode for _, inode in found.values())
        self._sandboxes.replace_found(found)
        return problems

    def _refresh(self, told: Iterable[Inode]) -> None:
        settled = self._matched.union(told)
        now: dict[Path, _Seen] = {}
        for path, inode in namespaces_in(self._folders, {path: seen.inode for path, seen in self._seen.items()}):
            seen = self._seen.get(path)
            if seen is None or seen.inode != inode:
                seen = _Seen(inode, frozenset(), 0, self._ticks)
            if seen.due <= self._ticks and inode not in settled:
                wait = min(1 << seen.looks, LONGEST_WAIT_TICKS)
                try:
                    seen = _Seen(inode, addresses_of(path), seen.looks + 1, self._ticks + wait)
                except KernelError:
                    continue  # it goes away in this moment
            now[path] = seen
        self._seen = now


def namespaces_in(folders: Iterable[Path], known: Mapping[Path, Inode] | None = None) -> Iterator[tuple[Path, Inode]]:
    """Yield every network namespace that is pinned by a file of ``folders``, but not the agent's own.

    Those that are ``known``, and still what they were, cost a stat.
    """
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue  # made with the first pod
        for path in (folder / name for name in names):
            inode = known.get(path) if known else None
            if inode is None or inode_of(path) != inode:
                inode = network_namespace(path)
            if inode is not None:
                yield path, inode


def find(folders: Sequence[Path], name: str, addresses: Iterable[Address]) -> Path | None:
    """Return the file for the namespace that the runtime calls ``name``, a path of the host, as the agent sees it.

    The runtime's folder may be mounted elsewhere here, or be one of ``/proc`` that another process namespace has. So
    what is believed is a file of the same last name in ``folders``, else any there, that has all of ``addresses``
    inside. None if there is not exactly one.
    """
    wanted = frozenset(addresses)
    named = [folder / Path(name).name for folder in folders]
    for path in named:
        if network_namespace(path) is not None and _has(path, wanted):
            return path
    if not wanted:
        return None
    found = {inode: path for path, inode in namespaces_in(folders) if _has(path, wanted)}
    return next(iter(found.values())) if len(found) == 1 else None


def _has(path: Path, wanted: frozenset[Address]) -> bool:
    try:
        return wanted <= addresses_of(path)
    except KernelError:
        return False


def _common(candidates: Sequence[dict[Inode, Path]]) -> dict[Inode, Path]:
    """Return what is in all of ``candidates``."""
    first, *others = candidates
    return {inode: path for inode, path in first.items() if all(inode in other for other in others)}


def _text(addresses: Iterable[Address]) -> str:
    return ", ".join(map(format_address, addresses))

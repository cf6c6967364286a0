"""Standalone mode: the configuration folder says which objects are in force and which pods are here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from agent import netns
from agent.durations import Durations
from agent.folder import Folder, FolderReader
from agent.reconciler import Reconciler
from agent.runtime import RuntimeDirectory
from agent.source import Candidate, inode_of
from agent.watching import follow
from policy.engine import PolicyEngine
from policy.files import Problem
from policy.objects import NETWORK_NAMESPACE_ANNOTATION, Pod

_ANNOTATION_FIELD: Final = f'metadata.annotations["{NETWORK_NAMESPACE_ANNOTATION}"]'


class FolderSource:
    """Implements :class:`agent.source.Source`: a pod is bound to its network namespace by an annotation."""

    opens = True

    def __init__(self, reader: FolderReader) -> None:
        self._reader = reader
        self._folder = Folder()
        self._fresh = False

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._folder.problems

    @property
    def pods(self) -> int:
        return len(self._folder.pods)

    def first(self) -> None:
        self._folder, self._fresh = self._reader.first(), True

    def stale(self) -> bool:
        # inotify starts after the first reading, can overflow, and is silent on network file systems.
        return self._reader.stale()

    def feed(self, engine: PolicyEngine) -> bool:
        if not self._fresh:
            self._folder = self._reader.read()
        self._fresh = False
        engine.replace(self._folder.objects)
        return True

    def candidates(self) -> Iterator[Candidate]:
        for pod in self._folder.pods:
            annotation = pod.annotations.get(NETWORK_NAMESPACE_ANNOTATION)
            if annotation is None or pod.completed:
                continue
            if pod.host_network:
                text = "a pod of the host network has no namespace of its own, and is not enforced"
                problem = self._folder.problem(pod, "spec.hostNetwork", text, "remove the annotation")
                yield Candidate(pod, None, problem)
                continue
            path = netns.namespace_path(annotation)
            if inode_of(path) is None:
                text = f"network namespace {path} is not there; the pod is enforced as soon as it is"
                yield Candidate(pod, None, self.problem(pod, text, "see: ip netns list"))
            else:
                yield Candidate(pod, path, addresses=pod.addresses)

    def problem(self, pod: Pod, message: str, hint: str = "") -> Problem:
        return self._folder.problem(pod, _ANNOTATION_FIELD, message, hint)


class FolderMode:
    """Implements :class:`agent.mode.Mode`."""

    def __init__(self, folder: Path, runtime: RuntimeDirectory, stop: threading.Event) -> None:
        self.source = FolderSource(FolderReader(folder, runtime.last_good))
        self.durations = Durations()
        self._folder = folder
        self._stop = stop

    def prepare(self, turn: threading.Event, closing: ExitStack) -> None:
        """Nobody has to be waited for: two agents of one folder are a mistake, and the second one has ended."""

    def start(self, closing: ExitStack) -> None:
        """Nothing has to be running before the folder is read."""

    def wake(self) -> None:
        """Nothing to do: what waits, waits for ``stop``."""

    def read(self) -> None:
        """There is nothing that is not in standalone mode."""

    def follow(self, reconciler: Reconciler) -> None:
        follow(self._folder, _Steps(reconciler, self.durations), self._stop)


class _Steps:
    """Implements :class:`agent.watching.Follower`, and measures how long each change takes to be in force."""

    def __init__(self, reconciler: Reconciler, durations: Durations) -> None:
        self._reconciler = reconciler
        self._durations = durations

    def changed(self) -> None:
        began_s = time.monotonic()
        self._reconciler.changed()
        self._durations.observe(time.monotonic() - began_s)
        self._reconciler.lay_epochs()

    def tick(self) -> None:
        self._reconciler.tick()
        self._reconciler.lay_epochs()

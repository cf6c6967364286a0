"""The API server says which objects are in force, and which pods are here; where a pod is, the runtime says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final, Protocol

from agent.kubernetes.inbox import Inbox
from agent.kubernetes.lastknown import LastKnown
from agent.kubernetes.resources import Known, Resource
from agent.kubernetes.starts import Locator
from agent.logs import fields
from agent.source import Candidate, inode_of
from policy.engine import PolicyEngine
from policy.files import Problem
from policy.objects import Object, Pod

log = logging.getLogger(__name__)

PATIENCE_S: Final = 3.0
"""How long a starting agent waits for an API server that is silent before it goes on with the last known state."""
REMINDER_S: Final = 30.0


class Finder(Protocol):
    """Looks for the namespaces of pods that nobody announced (:class:`agent.kubernetes.discovery.Discovery`)."""

    def look(self, pods: Iterable[Pod]) -> list[str]:
        """Match ``pods`` with namespaces; return what could not be decided."""


class ClusterSource:
    """Implements :class:`agent.source.Source`. Use it from one thread, but for what says otherwise."""

    opens = False
    """A pod that the API no longer knows may run on for a while: its rules stay for as long as its namespace does."""

    def __init__(
        self,
        resources: tuple[Resource, ...],
        inbox: Inbox,
        locator: Locator,
        finder: Finder,
        last_known: LastKnown,
        stop: threading.Event,
    ) -> None:
        self._resources = resources
        self._inbox = inbox
        self._locator = locator
        self._finder = finder
        self._last_known = last_known
        self._stop = stop
        self._always = {resource.name for resource in resources if not resource.on_demand}
        self._primed: Mapping[str, Mapping[str, Known]] | None = None
        self._begun = False
        self._files_are_ours = False
        self._keys: dict[str, set[str]] = {resource.name: set() for resource in resources}
        """By resource: the keys of the objects that are there, readable or not."""
        self._listed: set[str] = set()
        self._pods: dict[str, Pod] = {}
        """By ``namespace/name``: the pods of this node."""
        self._problems: dict[str, tuple[Problem, ...]] = {}
        self._undecided: tuple[str, ...] = ()
        self._unholdable: dict[str, str] = {}
        self._unwritten: dict[str, Known | None] = {}
        """What has changed and is not in the files yet; None: deleted."""
        self._left: dict[Path, tuple[int, int]] = {}
        """Namespaces that the runtime is taking away, by their files: no pod is held there any more."""
        self._located: dict[str, str] = {}
        """By ``namespace/name``: the uid of each pod whose namespace has been seen."""
        self._look = False
        self.since_s: float | None = None
        """When the first of what was fed last came, by the monotonic clock; None: nothing new was."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        undecided = (Problem("network namespaces", 0, "", text) for text in self._undecided)
        return (*chain.from_iterable(self._problems.values()), *undecided)

    @property
    def pods(self) -> int:
        return sum(not pod.host_network and not pod.completed for pod in self._pods.values())

    def pod(self, name: str) -> Pod | None:
        """Return a pod of this node by ``namespace/name``. May be asked from any thread."""
        return self._pods.get(name)

    @property
    def unholdable(self) -> Mapping[str, str]:
        """The pods of this node that rules cannot hold, by ``namespace/name``, each with the reason."""
        return dict(self._unholdable)

    def look_again(self) -> None:
        """A namespace has come or gone: the next :meth:`feed` says so. May be called from any thread."""
        self._look = True
        self._inbox.wake()

    def leave(self, namespace: Path, inode: tuple[int, int]) -> None:
        """A namespace is being taken away: no pod is to be held in it any more. May be called from any thread."""
        self._left[namespace] = inode

    def first(self) -> None:
        """Wait for the first lists; go on with the last known state if they do not come, and wait on without one.

        Called again, it has nothing to do.
        """
        if self._begun:
            return
        self._begun = True
        wanted = self._always
        self._primed = self._last_known.read(self._resources)
        self._files_are_ours = self._primed is not None
        began_s = reminded_s = time.monotonic()
        while not self._stop.is_set() and not wanted <= self._inbox.listed():
            now_s = time.monotonic()
            away = wanted <= self._inbox.listed() | self._inbox.away
            if self._primed is not None and (away or now_s - began_s >= PATIENCE_S):
                log.warning("the API server does not answer; going on with its last known state")
                return
            if now_s - reminded_s >= REMINDER_S:
                reminded_s = now_s
                missing = ", ".join(sorted(wanted - self._inbox.listed()))
                log.warning("no pod is enforced before the API server has answered", extra=fields(missing=missing))
            self._inbox.wait(PATIENCE_S)

    def stale(self) -> bool:
        return self._match()

    def feed(self, engine: PolicyEngine) -> bool:
        look, self._look = self._look, False
        if self._primed is not None:
            # Before what is there now: a policy that was deleted with its namespace must not be forgotten too early.
            primed, self._primed = self._primed, None
            look |= self._apply(engine, primed, {})
            self._unwritten.clear()
        batch = self._inbox.take()
        self.since_s = batch.since_s
        self._listed |= batch.lists.keys()
        look |= self._apply(engine, batch.lists, batch.changes)
        if look:
            self._match()
        return look

    def candidates(self) -> Iterator[Candidate]:
        self._left = {path: inode for path, inode in tuple(self._left.items()) if inode_of(path) == inode}
        left = frozenset(self._left.values())
        self._located = {name: uid for name, uid in self._located.items() if name in self._pods}
        for pod in self._pods.values():
            if pod.host_network or pod.completed:
                continue
            path = self._locator.locate(pod)
            addresses = pod.addresses
            if path is not None:
                self._located[f"{pod.namespace}/{pod.name}"] = pod.uid
                # The API tells of a sandbox that is made anew later, and not at all while it is away.
                addresses = self._locator.addresses_at(path) or addresses
                if left and inode_of(path) in left:
                    continue
            problem = None
            running = (pod.phase == "Running" or bool(pod.addresses)) and pod.deletion_timestamp is None
            # The runtime takes the namespace of a pod that has ended away before the API says that it has.
            if path is None and running and self._located.get(f"{pod.namespace}/{pod.name}") != pod.uid:
                text = "its network namespace is not found, so it is not enforced"
                problem = self.problem(pod, text, "on the node, see: ip netns list; ip netns exec NAME ip address")
            starting = path is not None and self._locator.is_starting(path)
            yield Candidate(pod, path, problem, addresses, starting)

    def problem(self, pod: Pod, message: str, hint: str = "") -> Problem:
        return Problem(pod.key, 0, "", message, hint)

    def write(self, engine: PolicyEngine) -> None:
        """Bring the files up to what is in force. Not part of :meth:`feed`, because nobody waits for it.

        Only for the one agent that holds the runtime directory.
        """
        if not self._files_are_ours:
            self._last_known.clear()
            self._files_are_ours = True
        for key, known in tuple(self._unwritten.items()):
            if known is not None:
                self._last_known.keep(known)
            elif key in engine.objects:
                continue  # deleted, and kept in force for a while because its namespace goes, too
            else:
                self._last_known.forget(key)
            del self._unwritten[key]
        if self._always <= self._listed:
            self._last_known.finish()

    def _match(self) -> bool:
        """Look for the namespaces of pods; tell whether what could not be decided is something else than before."""
        undecided, before = tuple(self._finder.look(self._pods.values())), self._undecided
        self._undecided = undecided
        return undecided != before

    def _apply(
        self,
        engine: PolicyEngine,
        lists: Mapping[str, Mapping[str, Known]],
        changes: Mapping[str, Mapping[str, Known | None]],
    ) -> bool:
        """Hand over what has changed, in one step; tell whether pods have."""
        upserts: list[Object] = []
        deletes: list[str] = []
        pods = False
        for resource in self._resources:
            there = self._keys[resource.name]
            news: dict[str, Known | None] = {}
            if (objects := lists.get(resource.name)) is not None:
                news.update(dict.fromkeys(there - objects.keys()))
                news.update(objects)
            news.update(changes.get(resource.name, {}))
            for key, known in news.items():
                if known is None:
                    there.discard(key)
                    self._problems.pop(key, None)
                    self._unwritten[key] = None
                    deletes.append(key)
                    name = key.removeprefix("Pod/")
                    pods |= self._pods.pop(name, None) is not None
                    self._unholdable.pop(name, None)
                    continue
                there.add(key)
                self._problems.pop(key, None)
                if known.problems:
                    self._problems[key] = known.problems
                if known.item is None:
                    continue  # what was known of it stays in force
                if isinstance(known.item, Pod):
                    self._note_unholdable(key.removeprefix("Pod/"), known.unholdable)
                deleted = self._unwritten.get(key, known) is None  # and perhaps in force still: the engine must know
                if engine.objects.get(key) == known.item and not deleted:
                    continue
                self._unwritten[key] = known
                upserts.append(known.item)
                if isinstance(known.item, Pod):
                    self._pods[key.removeprefix("Pod/")] = known.item
                    pods = True
        engine.update(upserts, deletes)
        return pods

    def _note_unholdable(self, name: str, reason: str) -> None:
        if reason and self._unholdable.get(name) != reason:
            log.warning("rules cannot hold this pod", extra=fields(pod=name, reason=reason))
        self._unholdable.pop(name, None)
        if reason:
            self._unholdable[name] = reason

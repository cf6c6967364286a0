"""Keeps the compiled state of the cluster up to date, one immutable :class:`Snapshot` per change.

Call the engine from one thread; snapshots and the views they give may be used from any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from policy.compiler import CompiledPolicy, compile_policy
from policy.namespaces import NamespaceTable
from policy.objects import ClusterNetworkPolicy, Namespace, NetworkPolicy, Node, Object, Pod
from policy.view import CLOSED, PodPolicy, Settings, View, bind_policies
from trireme_py.model import PlainLabels

_NO_POLICIES: Final[Mapping[str, CompiledPolicy]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The whole policy at one moment. Views are made when they are asked for, and kept."""

    revision: int
    """Counts the changes."""
    namespaces: NamespaceTable
    pods: Mapping[tuple[str, str], Pod]
    nodes: Mapping[str, Node]
    cluster_policies: Mapping[str, CompiledPolicy]
    policies: Mapping[str, Mapping[str, CompiledPolicy]]
    """Namespace -> key -> compiled NetworkPolicy."""
    settings: Settings
    _views: dict[tuple[str, str], PodPolicy] = field(default_factory=dict, repr=False)
    _earlier: dict[tuple[str, str], PodPolicy] = field(default_factory=dict, repr=False)
    """Views of earlier snapshots that may have changed; one that did not is taken over with what it remembers."""

    def view(self, namespace: str, pod: str) -> View:
        """Return the compiled policy of a pod. A pod that is not known gets one that denies everything."""
        key = (namespace, pod)
        found = self._views.get(key)
        if found is not None:
            return found
        known = self.pods.get(key)
        if known is None:
            return CLOSED
        found = self.view_of(known, self._earlier.get(key))
        self._views[key] = found
        return found

    def view_of(self, pod: Pod, earlier: PodPolicy | None = None) -> PodPolicy:
        """Return the compiled policy of a pod that need not be among ``pods``."""
        candidates = [*self.cluster_policies.values(), *self.policies.get(pod.namespace, _NO_POLICIES).values()]
        return bind_policies(pod, candidates, self.namespaces, tuple(self.nodes.values()), self.settings, earlier)

    def all_policies(self) -> Iterable[CompiledPolicy]:
        yield from self.cluster_policies.values()
        for group in self.policies.values():
            yield from group.values()


@dataclass(slots=True)
class _Touched:
    """Which views a change may have altered."""

    everything: bool = False
    pods: set[tuple[str, str]] = field(default_factory=set)
    policies: list[CompiledPolicy] = field(default_factory=list)


class PolicyEngine:
    """Takes objects as they are added, changed and deleted."""

    __slots__ = ("_objects", "_retained", "snapshot")

    def __init__(self, settings: Settings | None = None) -> None:
        self._objects: dict[str, Object] = {}
        self._retained: set[str] = set()
        """NetworkPolicies deleted while their namespace terminates: kept while pods may still run in it."""
        self.snapshot = Snapshot(0, NamespaceTable(), {}, {}, {}, {}, settings or Settings())
        """The latest; swapped as a whole."""

    @property
    def objects(self) -> Mapping[str, Object]:
        """Every object in force, by key."""
        return self._objects

    def apply(self, *objects: Object) -> Snapshot:
        """Add or change objects, in one step."""
        return self.update(objects, ())

    def delete(self, *keys: str) -> Snapshot:
        """Delete objects by key (``object.key``); unknown keys are passed over."""
        return self.update((), keys)

    def replace(self, objects: Iterable[Object]) -> Snapshot:
        """Make ``objects`` all there is; what did not change is not compiled again."""
        wanted = {item.key: item for item in objects}
        return self.update(wanted.values(), [key for key in self._objects if key not in wanted])

    def set_settings(self, settings: Settings) -> Snapshot:
        """Change what the installation decides."""
        old = self.snapshot
        if settings != old.settings:
            self.snapshot = self._next(old, _Touched(everything=True), settings=settings)
        return self.snapshot

    def update(self, upserts: Iterable[Object], deletes: Iterable[str]) -> Snapshot:
        """Apply changes together; what is both added and deleted stays.

        Nothing is swapped, and no revision counted, if nothing changed.
        """
        wanted = {item.key: item for item in upserts}
        changed = {key: item for key, item in wanted.items() if self._objects.get(key) != item}
        self._retained.difference_update(wanted)
        gone = {key for key in deletes if key in self._objects and key not in wanted}
        gone |= self._release(changed, gone)
        gone -= self._retain(changed, gone)
        if not changed and not gone:
            return self.snapshot
        old = self.snapshot
        touched = _Touched()
        namespaces = self._change_namespaces(old, changed, gone, touched)
        policies, cluster = self._change_policies(old, changed, gone, touched)
        pods, nodes = dict(old.pods), old.nodes
        for key in gone:
            item = self._objects.pop(key)
            if isinstance(item, Pod):
                del pods[item.namespace, item.name]
                touched.pods.add((item.namespace, item.name))
        for item in changed.values():
            self._objects[item.key] = item
            if isinstance(item, Pod):
                pods[item.namespace, item.name] = item
                touched.pods.add((item.namespace, item.name))
        if any(key.startswith("Node/") for key in (*changed, *gone)):
            touched.everything = True
            nodes = {item.name: item for item in self._objects.values() if isinstance(item, Node)}
        self.snapshot = self._next(
            old, touched, namespaces=namespaces, pods=pods, nodes=nodes, cluster=cluster, policies=policies
        )
        return self.snapshot

    def _retain(self, changed: Mapping[str, Object], gone: set[str]) -> set[str]:
        """Pick the policies that must outlive their deletion because their namespace is being deleted.

        The API server may delete a namespace's policies before its pods are gone (CVE-2024-7598).
        """
        kept: set[str] = set()
        for key in gone:
            item = self._objects[key]
            if not isinstance(item, NetworkPolicy):
                continue
            name = f"Namespace/{item.namespace}"
            namespace = changed.get(name, self._objects.get(name))
            if name not in gone and isinstance(namespace, Namespace) and namespace.terminating:
                kept.add(key)
        self._retained |= kept
        return kept

    def _release(self, changed: Mapping[str, Object], gone: set[str]) -> set[str]:
        """Pick the policies whose namespace has gone, or has been made anew."""
        if not self._retained:
            return set()
        ended = {key for key in gone if key.startswith("Namespace/")}
        ended |= {key for key, item in changed.items() if isinstance(item, Namespace) and not item.terminating}
        released: set[str] = set()
        for key in self._retained:
            item = self._objects[key]
            if isinstance(item, NetworkPolicy) and f"Namespace/{item.namespace}" in ended:
                released.add(key)
        self._retained -= released
        return released

    def _change_namespaces(
        self, old: Snapshot, changed: Mapping[str, Object], gone: set[str], touched: _Touched
    ) -> NamespaceTable:
        upserts = {item.name: item for item in changed.values() if isinstance(item, Namespace)}
        deletes = frozenset(key.removeprefix("Namespace/") for key in gone if key.startswith("Namespace/"))
        if not upserts and not deletes:
            return old.namespaces
        touched.everything = True
        return old.namespaces.changed(upserts, deletes)

    def _change_policies(
        self, old: Snapshot, changed: Mapping[str, Object], gone: set[str], touched: _Touched
    ) -> tuple[Mapping[str, Mapping[str, CompiledPolicy]], Mapping[str, CompiledPolicy]]:
        """Compile what changed, and copy only the maps that hold it."""
        policies: dict[str, Mapping[str, CompiledPolicy]] | None = None
        cluster: dict[str, CompiledPolicy] | None = None
        copied: dict[str, dict[str, CompiledPolicy]] = {}
        for key in (*changed, *gone):
            new, before = changed.get(key), self._objects.get(key)
            item = new or before
            if isinstance(item, NetworkPolicy):
                if policies is None:
                    policies = dict(old.policies)
                if item.namespace not in copied:
                    copied[item.namespace] = dict(policies.get(item.namespace, _NO_POLICIES))
                    policies[item.namespace] = copied[item.namespace]
                group = copied[item.namespace]
            elif isinstance(item, ClusterNetworkPolicy):
                if cluster is None:
                    cluster = dict(old.cluster_policies)
                group = cluster
            else:
                continue
            previous = group.pop(key, None)
            if previous is not None:
                touched.policies.append(previous)
            if isinstance(new, NetworkPolicy | ClusterNetworkPolicy):
                group[key] = compile_policy(new)
                touched.policies.append(group[key])
        for name, group in copied.items():
            if not group and policies is not None:
                del policies[name]
        return old.policies if policies is None else policies, old.cluster_policies if cluster is None else cluster

    def _next(
        self,
        old: Snapshot,
        touched: _Touched,
        *,
        namespaces: NamespaceTable | None = None,
        pods: Mapping[tuple[str, str], Pod] | None = None,
        nodes: Mapping[str, Node] | None = None,
        cluster: Mapping[str, CompiledPolicy] | None = None,
        policies: Mapping[str, Mapping[str, CompiledPolicy]] | None = None,
        settings: Settings | None = None,
    ) -> Snapshot:
        """Make the next snapshot, handing on the views that the change cannot have altered."""
        pods = old.pods if pods is None else pods
        known = namespaces or old.namespaces
        views: dict[tuple[str, str], PodPolicy] = {}
        earlier = {key: view for key, view in old._earlier.items() if key in pods}
        is_touched = _touching(touched, known)
        for key, view in old._views.items():
            pod = pods.get(key)
            if pod is None:
                continue
            if is_touched(key, pod):
                earlier[key] = view
            else:
                views[key] = view
        return Snapshot(
            old.revision + 1,
            known,
            pods,
            old.nodes if nodes is None else nodes,
            old.cluster_policies if cluster is None else cluster,
            old.policies if policies is None else policies,
            settings or old.settings,
            views,
            earlier,
        )


def _touching(touched: _Touched, namespaces: NamespaceTable) -> Callable[[tuple[str, str], Pod], bool]:
    by_namespace: dict[str | None, list[CompiledPolicy]] = {}
    for policy in touched.policies:
        by_namespace.setdefault(policy.namespace, []).append(policy)

    def is_touched(key: tuple[str, str], pod: Pod) -> bool:
        if touched.everything or key in touched.pods:
            return True
        candidates: Sequence[CompiledPolicy] = (
            *by_namespace.get(None, ()),
            *by_namespace.get(pod.namespace, ()),
        )
        labels = namespaces.labels(pod.namespace)
        return any(policy.selects(pod.namespace, labels, PlainLabels(pod.labels)) for policy in candidates)

    return is_touched

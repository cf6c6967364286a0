"""The kinds of objects the agent watches, and how the API server's JSON becomes objects of :mod:`policy.objects`.

Only the fields that policy reads are taken out of the JSON: a Pod's environment, a policy's
``last-applied-configuration`` and everybody's ``managedFields`` are never made into Python objects, kept, or written to
a file. What cannot be read is a problem of that one object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from agent.kubernetes.calls import JSON
from agent.kubernetes.sandboxes import MIRROR_ANNOTATION
from agent.kubernetes.unholdable import unholdable
from policy.decode import decode
from policy.files import Problem
from policy.objects import Object

_METADATA_ONLY: Final = "application/json;as={};g=meta.k8s.io;v=v1,application/json"
"""https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches"""
_OUR_ANNOTATIONS: Final = "trireme.io/"


@dataclass(frozen=True, slots=True)
class Known:
    """One object as the API server gave it."""

    key: str
    """Such as ``Pod/shop/web``; that of its object if it has one."""
    item: Object | None
    """None if it cannot be used at all."""
    problems: tuple[Problem, ...]
    document: bytes
    """The object again, as JSON with the fields that count."""
    unholdable: str = ""
    """Why rules cannot hold this pod; empty if they can."""


class _Metadata(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    # Whether these are what they should be is for policy.decode to say.
    labels: Any = None
    annotations: Any = None
    deletion_timestamp: Any = None


class _Container(msgspec.Struct, rename="camel", omit_defaults=True):
    ports: Any = None
    restart_policy: Any = None


class _PodSpec(msgspec.Struct, rename="camel", omit_defaults=True):
    service_account_name: Any = None
    host_network: Any = None
    containers: list[_Container] = []
    init_containers: list[_Container] = []


class _PodStatus(msgspec.Struct, rename="camel", omit_defaults=True):
    phase: Any = None
    pod_ips: Any = msgspec.field(name="podIPs", default=None)
    pod_ip: Any = msgspec.field(name="podIP", default=None)


class _Pod(msgspec.Struct, omit_defaults=True):
    metadata: _Metadata
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _NodeStatus(msgspec.Struct, omit_defaults=True):
    addresses: Any = None


class _Node(msgspec.Struct, omit_defaults=True):
    metadata: _Metadata
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


class _Labelled(msgspec.Struct, omit_defaults=True):
    metadata: _Metadata


class _Policy(msgspec.Struct, omit_defaults=True):
    metadata: _Metadata
    spec: Any = None


@dataclass(frozen=True, slots=True)
class Resource:
    """One collection of the API."""

    name: str
    """Plural, as in its path; the label of its metrics."""
    kind: str
    api_version: str
    shape: type[_Pod | _Node | _Labelled | _Policy]
    query: Mapping[str, str] = field(default_factory=dict)
    labels_only: bool = False
    """Ask for the metadata of its objects and nothing else."""
    optional: bool = False
    """Whether the API server may not serve it: it is of a CustomResourceDefinition."""
    on_demand: bool = False
    """Whether it is watched only once some policy asks for it."""

    @property
    def accept_list(self) -> str:
        return _METADATA_ONLY.format("PartialObjectMetadataList") if self.labels_only else JSON

    @property
    def accept_watch(self) -> str:
        return _METADATA_ONLY.format("PartialObjectMetadata") if self.labels_only else JSON

    def path(self, **query: str) -> str:
        """Return the path of the collection, with its own query and ``query``."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        text = urlencode({**self.query, **query})
        return f"{root}{self.api_version}/{self.name}?{text}"

    def read(self, data: msgspec.Raw | bytes) -> Known:
        """Read one object. Raises MsgspecError if ``data`` is not JSON; nothing else does."""
        try:
            found = msgspec.json.decode(data, type=self.shape)
        except msgspec.ValidationError as error:
            key = self._key(data)
            return Known(key, None, (Problem(key, 0, "", str(error), f"look at it: {self._look(key)}"),), b"")
        metadata = found.metadata
        if isinstance(metadata.annotations, dict):
            metadata.annotations = {
                name: value
                for name, value in metadata.annotations.items()
                if name.startswith(_OUR_ANNOTATIONS) or name == MIRROR_ANNOTATION
            }
        document = {"apiVersion": self.api_version, "kind": self.kind, **msgspec.to_builtins(found)}
        item, problems = decode(document)
        key = item.key if item is not None else self._key_of(metadata.namespace, metadata.name)
        return Known(
            key,
            item,
            tuple(Problem(key, 0, each.field, each.message, each.hint) for each in problems),
            msgspec.json.encode(document),
            (unholdable(data) or "") if self.kind == "Pod" else "",
        )

    def _key(self, data: msgspec.Raw | bytes) -> str:
        """Return the key of an object that is not as it should be, as far as it has one."""
        try:
            generic = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.ValidationError:
            generic = {}
        metadata = generic.get("metadata")
        names = metadata if isinstance(metadata, dict) else {}
        return self._key_of(str(names.get("namespace", "")), str(names.get("name", "")))

    def _key_of(self, namespace: str, name: str) -> str:
        return "/".join(part for part in (self.kind, namespace, name or "(without a name)") if part)

    def _look(self, key: str) -> str:
        kind, *names = key.split("/")
        place = f" -n {names[0]}" if len(names) == 2 else ""
        return f"kubectl get {kind.lower()} {names[-1]}{place} -o yaml"


def watched(node: str) -> tuple[Resource, ...]:
    """Return what the agent of ``node`` watches: pods of that node alone, and what policy is made of.

    In this order they are brought into force: a policy is never without the namespaces it is about.
    """
    return (
        Resource("nodes", "Node", "v1", _Node, on_demand=True),
        Resource("namespaces", "Namespace", "v1", _Labelled, labels_only=True),
        Resource(
            "clusternetworkpolicies",
            "ClusterNetworkPolicy",
            "policy.networking.k8s.io/v1alpha2",
            _Policy,
            optional=True,
        ),
        Resource("networkpolicies", "NetworkPolicy", "networking.k8s.io/v1", _Policy),
        Resource("pods", "Pod", "v1", _Pod, {"fieldSelector": f"spec.nodeName={node}"}),
    )

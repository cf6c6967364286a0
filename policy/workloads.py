"""Pods that are not there yet: stand-ins made from the pod templates of Deployments and the like.

Policies are mostly kept beside Deployments, not beside pods; the offline commands take one pod of each template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from policy.decode import decode
from policy.files import Document, Loaded, Problem
from policy.objects import Object, Pod

_TEMPLATES: Final = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


def with_workloads(loaded: Loaded) -> Loaded:
    """Return ``loaded`` with one running pod for each workload, named as the workload is."""
    objects: dict[str, Object] = {item.key: item for item in loaded.objects}
    problems = list(loaded.problems)
    sources = dict(loaded.sources)
    for document, pod, found in _pods(loaded.others):
        problems.extend(found)
        if pod is not None and pod.key not in objects:
            objects[pod.key] = pod
            sources[pod.key] = document
    return Loaded(tuple(objects.values()), tuple(problems), loaded.others, sources)


def _pods(documents: Iterable[Document]) -> Iterator[tuple[Document, Pod | None, list[Problem]]]:
    for document in documents:
        path = _TEMPLATES.get(document.kind)
        template: Any = document.data
        for step in path or ():
            template = template.get(step) if isinstance(template, dict) else None
        if path is None or not isinstance(template, dict):
            continue
        owner = document.data.get("metadata")
        meta = template.get("metadata")
        metadata = {**(meta if isinstance(meta, dict) else {})}
        for field in ("name", "namespace"):
            metadata[field] = owner.get(field) if isinstance(owner, dict) else None
        status = {"phase": "Running"}
        data = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec"), "status": status}
        item, problems = decode(data)
        prefix = ".".join(path)
        found = [
            Problem(
                document.file,
                document.line_of(f"{prefix}.{each.field}"),
                f"{prefix}.{each.field}",
                each.message,
                each.hint,
            )
            for each in problems
        ]
        yield document, item if isinstance(item, Pod) else None, found

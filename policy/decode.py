"""Plain data (from YAML, or from the API) to the objects of ``policy.objects``, with every problem named.

A wrong part of a policy never widens it: a rule that cannot be read allows nothing, a spec with a field that is not
known allows nothing at all, a podSelector that cannot be read isolates every pod of the namespace, and in each case a
:class:`FieldProblem` says what to write instead. An
object is refused as a whole (None) only when there is nothing to fail closed for: no name, or a ClusterNetworkPolicy
whose tier, priority or subject cannot be read.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Final

from policy.document import join
from policy.fields import FieldProblem, Fields, convert, did_you_mean, without_nulls
from policy.objects import (
    EVERYTHING,
    MODE_ANNOTATION,
    NAMESPACE_NAME_LABEL,
    NETWORK_NAMESPACE_ANNOTATION,
    Action,
    BrokenClusterRule,
    BrokenRule,
    ClusterEgressRule,
    ClusterIngressRule,
    ClusterNetworkPolicy,
    ClusterSubject,
    EgressRule,
    IngressRule,
    LabelSelector,
    Namespace,
    NetworkPolicy,
    Node,
    Object,
    Pod,
    Tier,
)
from policy.validate import (
    MAX_ITEMS,
    check_cluster_rule,
    check_rule,
    check_selector,
    check_subject,
    decode_addresses,
    decode_ports,
    node_addresses,
)
from trireme_py.model import Direction

__all__ = ["FieldProblem", "decode", "intended_kind", "is_ours"]

_ANNOTATION_PREFIX: Final = "trireme.io/"
_ANNOTATIONS: Final = (MODE_ANNOTATION, NETWORK_NAMESPACE_ANNOTATION)


def is_ours(kind: object) -> bool:
    """Tell whether :func:`decode` reads this kind, or knows why it must not be ignored."""
    return kind in _KINDS or kind in _REPLACED


def intended_kind(kind: str, api_version: str) -> str | None:
    """Return the kind that ``kind`` is a slip of the pen for; None if it is another tool's business."""
    group = api_version.rpartition("/")[0]
    names = {name.lower(): name for name, (version, _) in _KINDS.items() if version.rpartition("/")[0] == group}
    near = difflib.get_close_matches(kind.lower(), names, n=1, cutoff=0.8)
    return names[near[0]] if near else None


def decode(data: Mapping[str, Any]) -> tuple[Object | None, tuple[FieldProblem, ...]]:
    """Read one object, whatever ``data`` holds."""
    fields = Fields(without_nulls(data), "", [])
    kind, version = str(data.get("kind")), data.get("apiVersion")
    if kind in _REPLACED:
        fields.problem("kind", f"{kind} is not supported and would be ignored", _REPLACED[kind])
        return None, tuple(fields.problems)
    if kind not in _KINDS:
        fields.problem("kind", f"{kind!r} is not a kind that policy reads", f"write one of {', '.join(_KINDS)}")
        return None, tuple(fields.problems)
    expected, read = _KINDS[kind]
    if version != expected:
        fields.problem("apiVersion", f"{kind} of {version!r} is not supported", f"write apiVersion: {expected}")
        return None, tuple(fields.problems)
    return read(fields), tuple(fields.problems)


def _namespace(fields: Fields) -> Namespace | None:
    meta = _metadata(fields, namespaced=False)
    if meta is None:
        return None
    labels = meta.labels()
    status = fields.section("status").data.get("phase")
    return Namespace(
        name=meta.name,
        labels={**labels, NAMESPACE_NAME_LABEL: meta.name},
        annotations=meta.annotations(),
        uid=meta.uid,
        terminating="deletionTimestamp" in meta.fields.data or status == "Terminating",
    )


def _node(fields: Fields) -> Node | None:
    meta = _metadata(fields, namespaced=False)
    if meta is None:
        return None
    return Node(name=meta.name, labels=meta.labels(), addresses=node_addresses(fields.section("status")))


def _pod(fields: Fields) -> Pod | None:
    meta = _metadata(fields, namespaced=True)
    if meta is None:
        return None
    before = len(fields.problems)
    labels = meta.labels()
    if len(fields.problems) > before:
        return None  # a pod with labels other than those meant could be given an identity it must not have
    spec, status = fields.section("spec"), fields.section("status")
    deletion = meta.fields.data.get("deletionTimestamp")
    return Pod(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        labels=labels,
        annotations=meta.annotations(),
        deletion_timestamp=None if deletion is None else str(deletion),
        service_account=spec.text("serviceAccountName", "default") or "default",
        host_network=spec.boolean("hostNetwork"),
        named_ports=decode_ports(spec),
        addresses=decode_addresses(status),
        phase=status.text("phase", ""),
    )


def _network_policy(fields: Fields) -> NetworkPolicy | None:
    meta = _metadata(fields, namespaced=True)
    if meta is None:
        return None
    spec = fields.section("spec", required=True)
    before = len(fields.problems)
    selector = convert(spec, "podSelector", LabelSelector, EVERYTHING)
    check_selector(selector, fields, "spec.podSelector")
    selector = selector if len(fields.problems) == before else EVERYTHING
    spec.known("podSelector", "policyTypes", "ingress", "egress")
    understood = len(fields.problems) == before
    ingress = _rules(spec, "ingress", IngressRule)
    egress = _rules(spec, "egress", EgressRule)
    return NetworkPolicy(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        annotations=meta.annotations(),
        pod_selector=selector,
        directions=_directions(spec, bool(egress)),
        # Rules of a policy that is not understood might open more, or other pods, than was meant.
        ingress=ingress if understood else (),
        egress=egress if understood else (),
    )


def _rules(spec: Fields, name: str, kind: type[Any]) -> tuple[Any, ...]:
    rules: list[Any] = []
    for index in range(len(spec.list_of(name))):
        before = len(spec.problems)
        path = f"{name}[{index}]"
        rule = convert(spec, path, kind, None)
        if rule is not None:
            check_rule(rule, spec, path)
        if len(spec.problems) > before:
            first = spec.problems[before]
            rule = BrokenRule(f"{first.field}: {first.message}")
        rules.append(rule)
    return tuple(rules)


def _directions(spec: Fields, has_egress: bool) -> frozenset[Direction]:
    """``policyTypes``; empty means Ingress, and Egress if there is an egress rule, as the API server fills it in."""
    default = {Direction.INGRESS} | ({Direction.EGRESS} if has_egress else set())
    types = spec.list_of("policyTypes")
    names = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
    found: set[Direction] = set()
    wrong = False
    for index, value in enumerate(types):
        if isinstance(value, str) and value in names:
            found.add(names[value])
        else:
            wrong = True
            spec.problem(f"policyTypes[{index}]", f"{value!r} is not a policy type", "write Ingress or Egress")
    if len(types) > len(names):
        spec.problem("policyTypes", f"holds {len(types)} types", "name Ingress and Egress once each")
    return frozenset(found | default if wrong or not types else found)


def _cluster_network_policy(fields: Fields) -> ClusterNetworkPolicy | None:
    meta = _metadata(fields, namespaced=False)
    spec = fields.section("spec", required=True)
    spec.known("tier", "priority", "subject", "ingress", "egress")
    before = len(fields.problems)
    tier, priority = spec.data.get("tier"), spec.data.get("priority")
    if tier not in ("Admin", "Baseline"):
        spec.problem("tier", f"{tier!r} is not a tier" if tier is not None else "is missing", "write Admin or Baseline")
    if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority <= 1000:
        text = f"{priority!r} is not a priority" if priority is not None else "is missing"
        spec.problem("priority", text, "write a number from 0 (first) to 1000 (last)")
    if "subject" not in spec.data:
        spec.problem("subject", "is missing", "write namespaces: {} to mean every pod")
    subject = convert(spec, "subject", ClusterSubject, ClusterSubject())
    if len(fields.problems) == before:
        check_subject(subject, spec)
    failed = len(fields.problems) > before
    ingress = _cluster_rules(spec, "ingress", ClusterIngressRule)
    egress = _cluster_rules(spec, "egress", ClusterEgressRule)
    if meta is None or failed or not isinstance(priority, int):
        return None
    return ClusterNetworkPolicy(
        name=meta.name,
        uid=meta.uid,
        annotations=meta.annotations(),
        tier=Tier(tier),
        priority=priority,
        subject=subject,
        ingress=ingress,
        egress=egress,
    )


def _cluster_rules(spec: Fields, name: str, kind: type[Any]) -> tuple[Any, ...]:
    items = spec.list_of(name)
    if len(items) > MAX_ITEMS:
        spec.problem(name, f"holds {len(items)} rules", f"split the policy: at most {MAX_ITEMS} rules a direction")
    rules: list[Any] = []
    for index, item in enumerate(items):
        before = len(spec.problems)
        path = f"{name}[{index}]"
        rule = convert(spec, path, kind, None)
        if rule is not None:
            check_cluster_rule(rule, spec, path)
        if len(spec.problems) > before:
            first = spec.problems[before]
            action = item.get("action") if isinstance(item, dict) else None
            known = Action(action) if action in ("Accept", "Deny", "Pass") else Action.DENY
            rule = BrokenClusterRule(known, f"{first.field}: {first.message}")
        rules.append(rule)
    return tuple(rules)


class _Metadata:
    """``metadata`` of an object; labels and annotations are read on request."""

    __slots__ = ("fields", "name", "namespace", "uid")

    def __init__(self, fields: Fields, name: str, namespace: str) -> None:
        self.fields = fields
        self.name = name
        self.namespace = namespace
        self.uid = fields.text("uid", "")

    def labels(self) -> dict[str, str]:
        return self.fields.labels("labels")

    def annotations(self) -> dict[str, str]:
        found = self.fields.strings("annotations")
        mode = found.get(MODE_ANNOTATION)
        if mode not in (None, "audit", "enforce"):
            field = f'annotations["{MODE_ANNOTATION}"]'
            self.fields.problem(field, f"{mode!r} is not a mode; the object is enforced", "write audit or enforce")
        for key in found:
            if key.startswith(_ANNOTATION_PREFIX) and key not in _ANNOTATIONS:
                # Passed over in silence, a pod would not be enforced.
                hint = did_you_mean(key, _ANNOTATIONS)
                self.fields.problem(join("annotations", key), "unknown annotation", hint)
        return found


def _metadata(fields: Fields, *, namespaced: bool) -> _Metadata | None:
    fields.known("apiVersion", "kind", "metadata", "spec", "status")
    meta = fields.section("metadata", required=True)
    name = meta.object_name("name")
    namespace = ""
    if namespaced:
        namespace = meta.object_name("namespace", "default") or ""
    elif "namespace" in meta.data:
        meta.problem("namespace", "this kind has no namespace", "remove it")
    return _Metadata(meta, name, namespace) if name and (namespace or not namespaced) else None


_KINDS: Final[dict[str, tuple[str, Callable[[Fields], Object | None]]]] = {
    "Namespace": ("v1", _namespace),
    "Node": ("v1", _node),
    "Pod": ("v1", _pod),
    "NetworkPolicy": ("networking.k8s.io/v1", _network_policy),
    "ClusterNetworkPolicy": ("policy.networking.k8s.io/v1alpha2", _cluster_network_policy),
}
_REPLACED: Final = {
    "AdminNetworkPolicy": "write it as a ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2 with tier: Admin",
    "BaselineAdminNetworkPolicy": "write it as a ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2 with "
    "tier: Baseline",
}
"""Kinds that deny traffic where they are understood: passing over them in silence would be failing open."""

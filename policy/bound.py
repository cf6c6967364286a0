"""Policies and rules as they apply to one pod."""

from __future__ import annotations

from dataclasses import dataclass

from policy.compiler import CompiledPolicy, CompiledRule, PodPeer
from policy.namespaces import NamespaceSet


@dataclass(frozen=True, slots=True)
class BoundPolicy:
    """A policy that selects the pod; ``audit`` is its own mode or its namespace's."""

    policy: CompiledPolicy
    audit: bool


@dataclass(frozen=True, slots=True)
class BoundRule:
    """A rule with its namespace selectors resolved."""

    policy: CompiledPolicy
    rule: CompiledRule
    audit: bool
    pods: tuple[tuple[PodPeer, NamespaceSet | None], ...]

"""What is known of namespaces, and which of them a selector means.

Labels of a namespace always come from the node's own watch. A namespace that is not known there has one label, its
name, because the API server gives that label to every namespace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from policy.objects import MODE_ANNOTATION, NAMESPACE_NAME_LABEL, Namespace
from policy.selector import Selector
from trireme_py.model import PlainLabels

_CACHED_SELECTORS: Final = 16_384
"""Distinct namespace selectors kept resolved; a cluster of 10,000 policies writes a few hundred different ones."""


@dataclass(frozen=True, slots=True)
class NamespaceSet:
    """The namespaces that one selector selects, known or not."""

    selector: Selector
    surprises: frozenset[str]
    """Known namespaces whose other labels turn the answer that their name alone would give."""

    def matches(self, name: str) -> bool:
        return self.selector.matches(_name_only(name)) != (name in self.surprises)

    @property
    def digest(self) -> bytes:
        """Equal for two states of the cluster in which the selector selects the same namespaces."""
        text = "\0".join(sorted(self.surprises))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class NamespaceTable:
    """Every known namespace. Immutable but for its cache of resolved selectors."""

    known: Mapping[str, Namespace] = field(default_factory=dict)
    _labels: dict[str, PlainLabels] = field(default_factory=dict, repr=False, compare=False)
    _resolved: dict[Selector, NamespaceSet] = field(default_factory=dict, repr=False, compare=False)

    def labels(self, name: str) -> PlainLabels:
        return self._labels.get(name) or _name_only(name)

    def in_audit(self, name: str) -> bool:
        """Tell whether the namespace asks for audit of its NetworkPolicies."""
        found = self.known.get(name)
        return found is not None and found.annotations.get(MODE_ANNOTATION) == "audit"

    def resolve(self, selector: Selector) -> NamespaceSet:
        found = self._resolved.get(selector)
        if found is None:
            surprises = frozenset(name for name in self.known if _surprises(selector, name, self._labels[name]))
            found = NamespaceSet(selector, surprises)
            if len(self._resolved) < _CACHED_SELECTORS:
                self._resolved[selector] = found
        return found

    def changed(self, upserts: Mapping[str, Namespace], deletes: frozenset[str]) -> NamespaceTable:
        """Return the table after a change; resolved selectors are asked again about the changed names only."""
        known = {name: item for name, item in self.known.items() if name not in deletes} | dict(upserts)
        labels = {name: plain for name, plain in self._labels.items() if name not in deletes}
        labels |= {name: PlainLabels(dict(item.labels)) for name, item in upserts.items()}
        names = deletes | upserts.keys()
        resolved: dict[Selector, NamespaceSet] = {}
        for selector, before in self._resolved.items():
            now = {name for name in names if name in labels and _surprises(selector, name, labels[name])}
            same = before.surprises & names == now
            resolved[selector] = before if same else NamespaceSet(selector, before.surprises - names | now)
        return NamespaceTable(known, labels, resolved)


def _surprises(selector: Selector, name: str, labels: PlainLabels) -> bool:
    return selector.matches(labels) != selector.matches(_name_only(name))


def _name_only(name: str) -> PlainLabels:
    return PlainLabels({NAMESPACE_NAME_LABEL: name})

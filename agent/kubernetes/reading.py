"""What can be read of the agent of a cluster at any moment, for metrics and status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

REASONS: Final = ("eof", "gone", "timeout", "refused", "garbage", "network")
"""Why a watch began again: it was ended or cut, its version is forgotten, nothing came, another status, no JSON, no
connection."""


@dataclass(slots=True)
class WatchReading:
    """Counters of one watch; written by its thread, read by any."""

    events: int = 0
    restarts: Counter[str] = field(default_factory=Counter)
    last_event: float = 0.0
    """When the server last told something, a bookmark included: seconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class ClusterReading:
    """What there is in a cluster and not in standalone mode."""

    watches: Mapping[str, WatchReading] = field(default_factory=dict)
    """By resource."""
    held: int = 0
    """Pods that started under enforcement."""
    refused: int = 0
    """Starts of pods that failed because they could not be brought under enforcement; the kubelet tries again."""
    unprotected: Mapping[str, str] = field(default_factory=dict)
    """Pods of this node that rules cannot hold, by ``namespace/name``, each with the reason."""
    problems: tuple[str, ...] = ()
    """What keeps pods from being held from their start."""

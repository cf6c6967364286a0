"""What can be read of a watch at any moment, for metrics."""

from __future__ import annotations

from collections import Counter
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

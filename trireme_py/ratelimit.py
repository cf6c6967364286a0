"""A token bucket on injected time."""

from __future__ import annotations

from typing import Final

_NS: Final = 1_000_000_000


class TokenBucket:
    """Allows ``burst`` at once and ``per_second`` in the long run. Integer arithmetic; time never goes back."""

    __slots__ = ("_burst", "_level", "_per_second", "_seen_ns")

    def __init__(self, per_second: int, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst * _NS
        self._level = burst * _NS
        self._seen_ns: int | None = None

    def take(self, mono_ns: int) -> bool:
        """Spend one token if there is one; ``mono_ns`` is monotonic nanoseconds."""
        if self._seen_ns is not None:
            gained = max(0, mono_ns - self._seen_ns) * self._per_second
            self._level = min(self._burst, self._level + gained)
        self._seen_ns = mono_ns if self._seen_ns is None else max(self._seen_ns, mono_ns)
        if self._level < _NS:
            return False
        self._level -= _NS
        return True

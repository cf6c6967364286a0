"""A sliding window of counters that were seen (RFC 6479's idea, on Python's integers)."""

from __future__ import annotations

from typing import Final

WINDOW: Final = 1024
"""Counters this far behind the highest can still be told apart; datagrams are not reordered by more."""


class ReplayWindow:
    """Accepts each counter once. ``check`` asks, ``commit`` remembers: in between stands the MAC."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0
        """Bit n: the counter ``_highest - n`` was seen. Counters begin at 1."""

    def is_fresh(self, counter: int) -> bool:
        """Tell whether ``counter`` was not seen and is not too old to tell."""
        if counter > self._highest:
            return True
        behind = self._highest - counter
        return counter > 0 and behind < WINDOW and not self._seen >> behind & 1

    def commit(self, counter: int) -> None:
        """Remember ``counter``, which must be fresh."""
        if counter > self._highest:
            # A jump beyond the window forgets everything; to shift by the jump would let a sender choose the cost.
            ahead = min(counter - self._highest, WINDOW)
            self._seen = (self._seen << ahead | 1) & (1 << WINDOW) - 1
            self._highest = counter
        else:
            self._seen |= 1 << self._highest - counter

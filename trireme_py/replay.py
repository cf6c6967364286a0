"""Counters that are given away once, and a sliding window of those that were seen (RFC 6479's idea)."""

from __future__ import annotations

from typing import Final, Protocol

WINDOW: Final = 1024
"""Counters this far behind the highest can still be told apart; datagrams are not reordered by more."""


class Counting(Protocol):
    """Gives each number away once."""

    def take(self) -> int:
        """Return the next number; the first is 1."""


class Window(Protocol):
    """Accepts each counter once. ``is_fresh`` asks, ``commit`` remembers: in between stands the MAC."""

    def is_fresh(self, counter: int, /) -> bool:
        """Tell whether ``counter`` was not seen and is not too old to tell."""

    def commit(self, counter: int, /) -> bool:
        """Remember ``counter`` and tell whether it was fresh until now."""


class PlainCounter:
    """A :class:`Counting` for one thread."""

    __slots__ = ("_taken",)

    def __init__(self) -> None:
        self._taken = 0

    def take(self) -> int:
        self._taken += 1
        return self._taken


class ReplayWindow:
    """A :class:`Window` for one thread."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0
        """Bit n: the counter ``_highest - n`` was seen. Counters begin at 1."""

    def is_fresh(self, counter: int, /) -> bool:
        if counter > self._highest:
            return True
        behind = self._highest - counter
        return counter > 0 and behind < WINDOW and not self._seen >> behind & 1

    def commit(self, counter: int, /) -> bool:
        if not self.is_fresh(counter):
            return False
        if counter > self._highest:
            # A jump beyond the window forgets everything; to shift by the jump would let a sender choose the cost.
            ahead = min(counter - self._highest, WINDOW)
            self._seen = (self._seen << ahead | 1) & (1 << WINDOW) - 1
            self._highest = counter
        else:
            self._seen |= 1 << self._highest - counter
        return True

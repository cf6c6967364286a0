"""Numbers in sentences for people."""

from __future__ import annotations


def count(number: int, one: str, many: str = "") -> str:
    """Write ``1 policy``, ``2 policies``; without ``many`` it is ``one`` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"

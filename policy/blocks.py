"""Which ipBlock and network peers an address falls into, at a cost that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from policy.addresses import Network
from trireme_py.model import Address

Hit = tuple[int, int]
"""(ordinal of the rule, index of the peer within it)."""
_CACHED_ADDRESSES: Final = 16_384
"""Addresses whose answer is remembered; a stranger who varies his address only costs the look-up below."""


class BlockTable:
    """One dictionary for each prefix length in use: at most 33 look-ups for IPv4 and 129 for IPv6."""

    __slots__ = ("_cache", "_tables")

    def __init__(self, entries: Iterable[tuple[Network, tuple[Network, ...], Hit]]) -> None:
        """``entries`` are (network, exceptions within it, what it belongs to)."""
        tables: dict[tuple[int, int], dict[int, list[tuple[tuple[Network, ...], Hit]]]] = {}
        for network, exceptions, hit in entries:
            shift = network.size * 8 - network.prefix
            tables.setdefault((network.size, shift), {}).setdefault(network.bits >> shift, []).append((exceptions, hit))
        self._tables = {
            size: tuple((shift, table) for (width, shift), table in sorted(tables.items()) if width == size)
            for size in (4, 16)
        }
        self._cache: dict[Address, tuple[Hit, ...]] = {}

    def __bool__(self) -> bool:
        return any(self._tables.values())

    def lookup(self, address: Address) -> tuple[Hit, ...]:
        """Return the rules that mean ``address``, in order, each with its first peer that does."""
        found = self._cache.get(address)
        if found is None:
            found = self._find(address)
            if len(self._cache) >= _CACHED_ADDRESSES:
                self._cache.clear()
            self._cache[address] = found
        return found

    def _find(self, address: Address) -> tuple[Hit, ...]:
        bits = int.from_bytes(address, "big")
        first: dict[int, int] = {}
        for shift, table in self._tables.get(len(address), ()):
            for exceptions, (ordinal, peer) in table.get(bits >> shift, ()):
                if peer <= first.get(ordinal, peer) and not any(part.contains(address) for part in exceptions):
                    first[ordinal] = peer
        return tuple(sorted(first.items()))

"""Tables of the Python data path that tell the engine in C what enters them and what leaves (docs/fastpath.md)."""

from __future__ import annotations

from typing import Final, TypeVar

from trireme_py import _fastpath
from trireme_py.flows import BoundedTable, Tuple5
from trireme_py.model import Address, Decision, Direction, Identity

V = TypeVar("V")


class OwnedTable(BoundedTable[Tuple5, V]):
    """Connections that Python remembers: the engine leaves them alone."""

    __slots__ = ("_engine",)

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[Tuple5, V]) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._engine = engine

    def entered(self, key: Tuple5) -> None:
        self._engine.own(key[1], key[2] or 0, key[3], key[4] or 0)

    def left(self, key: Tuple5) -> None:
        self._engine.disown(key[1], key[2] or 0, key[3], key[4] or 0)


class OwnedSyns(BoundedTable[tuple[Address, int, int], V]):
    """Half-open connections that Python remembers, by who asks: the pod may answer from another port than was asked."""

    __slots__ = ("_engine",)

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[tuple[Address, int, int], V]) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._engine = engine

    def entered(self, key: tuple[Address, int, int]) -> None:
        self._engine.own(b"", 0, *key)

    def left(self, key: tuple[Address, int, int]) -> None:
        self._engine.disown(b"", 0, *key)


class BareTargets(BoundedTable[tuple[Address, int | None], bool]):
    """Destinations that get no token for a while: the engine forgets that they took one."""

    __slots__ = ("_engine",)

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[tuple[Address, int | None], bool]) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._engine = engine

    def entered(self, key: tuple[Address, int | None]) -> None:
        self._engine.forget_target(key[0], key[1] or 0)


class _Superseded:
    """Stands for a policy that is long gone: whatever it has allowed is judged again."""

    def isolated(self, _: Direction) -> bool:
        return True

    @property
    def installing(self) -> bool:
        return False

    def may_open(self, _: int) -> bool:
        return False

    def could_allow(self, direction: Direction, address: Address, protocol: int, port: int | None) -> bool:
        raise AssertionError(f"asked about {direction}, {address!r}, {protocol}, {port}")

    def decide(
        self, direction: Direction, identity: Identity | None, address: Address, protocol: int, port: int | None
    ) -> Decision:
        raise AssertionError(f"asked about {direction}, {identity}, {address!r}, {protocol}, {port}")


SUPERSEDED: Final = _Superseded()

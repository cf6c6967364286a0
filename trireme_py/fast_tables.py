"""Tables of the Python data path that tell the engine in C what enters them and what leaves (docs/fastpath.md)."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, TypeVar

from trireme_py import _fastpath
from trireme_py.flows import BoundedTable, Live, ServerFlow, Tuple5
from trireme_py.model import Address, Decision, Direction, Identity, Protocol

K = TypeVar("K")
V = TypeVar("V")

SETTLED_NS: Final = 1_000_000_000
"""What was late or repeated has come by then, and Python's verdicts have long been given."""


def _engine_tuple(tuple5: Tuple5) -> tuple[int, Address, int, Address, int]:
    """Return a connection's name as the engine takes it."""
    protocol, own, own_port, other, other_port = tuple5
    return protocol, own, own_port or 0, other, other_port or 0


class OwnedTable(BoundedTable[Tuple5, V]):
    """Connections that Python remembers: the engine leaves them alone.

    ``foreign``: somebody outside can fill the table, so that the engine thinks no better of their packets.
    """

    __slots__ = ("_engine", "_foreign")

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[Tuple5, V], *, foreign: bool = False) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._engine = engine
        self._foreign = foreign

    def entered(self, key: Tuple5) -> None:
        if key[0] in _CONNECTED:
            self._engine.own(*_engine_tuple(key), 0, self._foreign)

    def left(self, key: Tuple5) -> None:
        if key[0] in _CONNECTED:
            self._engine.disown(*_engine_tuple(key), 0, self._foreign)


class AcceptedTable(OwnedTable[Live]):
    """Accepted TCP connections. A while after one has come in here the engine may have it back."""

    __slots__ = ("settling",)

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[Tuple5, Live]) -> None:
        super().__init__(engine, like)
        self.settling: BoundedTable[Tuple5, Tuple5] = BoundedTable(like.limit, SETTLED_NS)

    def put(self, key: Tuple5, value: Live, mono_ns: int) -> Live | None:
        self.settling.put(key, key, mono_ns)
        return super().put(key, value, mono_ns)


class OwnedSyns(BoundedTable[tuple[Address, int, int], ServerFlow]):
    """Half-open connections that Python remembers, by who asks: the pod may answer from another port than was asked."""

    __slots__ = ("_engine",)

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[tuple[Address, int, int], ServerFlow]) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._engine = engine

    def put(self, key: tuple[Address, int, int], value: ServerFlow, mono_ns: int) -> ServerFlow | None:
        before = self.get(key)
        if before is None:
            # By the identity the engine knows what the proof is worth that will come.
            if value.peer is None:
                self._engine.own(Protocol.TCP, b"", 0, *key)
            else:
                self._engine.own_syn(*key, value.peer.identity.id)
        # And its ports: what the engine accepted there would still be this exchange's to Python. Anybody can begin one.
        self._engine.own(*_engine_tuple(value.tuple5), 0, True)
        if before is not None:
            self._engine.disown(*_engine_tuple(before.tuple5), 0, True)
        return super().put(key, value, mono_ns)

    def pop(self, key: tuple[Address, int, int]) -> ServerFlow | None:
        value = super().pop(key)
        if value is not None:
            self._engine.disown(Protocol.TCP, b"", 0, *key)
            self._engine.disown(*_engine_tuple(value.tuple5), 0, True)
        return value


class BareTargets(BoundedTable[tuple[Address, int | None], bool]):
    """Destinations that get no token for a while: the engine forgets that they took one."""

    __slots__ = ("_engine",)

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[tuple[Address, int | None], bool]) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._engine = engine

    def entered(self, key: tuple[Address, int | None]) -> None:
        self._engine.forget_target(key[0], key[1] or 0)


class SilentTargets(BoundedTable[tuple[Address, int], bool]):
    """Destinations that are not asked for a while: the engine forgets that one has answered."""

    __slots__ = ("_engine",)

    def __init__(self, engine: _fastpath.Endpoint, like: BoundedTable[tuple[Address, int], bool]) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._engine = engine

    def entered(self, key: tuple[Address, int]) -> None:
        self._engine.forget_warm(*key)


class LentTable(BoundedTable[K, V]):
    """Exchanges that flows go on from, on either side: what the engine has used lives on.

    :param session: what the engine counts by, of a value
    :param forget: has the engine forget the value under a key
    """

    __slots__ = ("_due", "_forget", "_order", "_session")

    def __init__(
        self, like: BoundedTable[K, V], session: Callable[[V], _fastpath.Session], forget: Callable[[K], None]
    ) -> None:
        super().__init__(like.limit, like.ttl_ns)
        self._session = session
        self._forget = forget
        self._due: list[tuple[int, int, K]] = []
        """A heap: when to look at a key again, and an order among those. At least one for each key that is there."""
        self._order = 0

    def put(self, key: K, value: V, mono_ns: int) -> V | None:
        before = self.get(key)
        if before is not None and before is not value:
            self._forget(key)
        self._session(value).touch(mono_ns)
        evicted = super().put(key, value, mono_ns)
        if before is None:
            self._look_again(key, mono_ns + self.ttl_ns)
        return evicted

    def left(self, key: K) -> None:
        self._forget(key)

    def next_deadline(self) -> int | None:
        return self._due[0][0] if self._due else None

    def expire(self, mono_ns: int) -> list[V]:
        expired = []
        while self._due and self._due[0][0] <= mono_ns:
            _, _, key = heappop(self._due)
            value = self.get(key)
            if value is None:
                continue
            deadline = self._session(value).used() + self.ttl_ns
            if deadline > mono_ns:
                self._look_again(key, deadline)
            else:
                self.pop(key)
                expired.append(value)
        return expired

    def _look_again(self, key: K, deadline: int) -> None:
        self._order += 1
        heappush(self._due, (deadline, self._order, key))


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


_CONNECTED: Final = (Protocol.TCP, Protocol.UDP)
"""What the engine has connections of."""

SUPERSEDED: Final = _Superseded()

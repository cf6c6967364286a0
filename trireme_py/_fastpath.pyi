"""The fast path in C (docs/fastpath.md). Sources: trireme_py/fastpath/; module.c and module_io.c."""

from collections.abc import Callable
from typing import Any, final

@final
class Engine:
    def __new__(cls, seed: bytes, /) -> Engine: ...

@final
class Token:
    number: int
    def __new__(cls, number: int, identity: bytes, assertion: bytes, not_after: float, /) -> Token: ...
    def in_use(self) -> bool: ...

@final
class Session:
    number: int
    def __new__(cls, number: int, /) -> Session: ...
    def take(self) -> int: ...
    def is_fresh(self, counter: int, /) -> bool: ...
    def commit(self, counter: int, /) -> bool: ...
    def touch(self, mono_ns: int, /) -> None: ...
    def used(self) -> int: ...
    def in_use(self) -> bool: ...

Exchange = tuple[Token, Token, bytes, bytes, bytes, int, bytes, float, float]
"""(local, peer, ticket, key, server, its port, client, not before, not after): struct tr_exchange."""

@final
class Endpoint:
    def __new__(
        cls, engine: Engine, half_open: int, live: int, peers: int, verdicts: int, owned: int, datagrams: int,
        live_datagrams: int, /
    ) -> Endpoint: ...  # fmt: skip
    def receive(
        self, mono_ns: int, wall_s: float, hook: int, data: bytes, more: bool, /
    ) -> tuple[int, int, bytes | None]: ...
    def hand_over(self, hook: int, data: bytes, /) -> bytes: ...
    def returned(self, hook: int, data: bytes, /) -> None: ...
    def add_entropy(self, octets: bytes, /) -> None: ...
    def next_deadline(self) -> int | None: ...
    def expire(self, mono_ns: int, /) -> None: ...
    def counters(self) -> tuple[Any, ...]: ...
    def teach_policy(self) -> int: ...
    def teach_identity(self, token: Token | None, /) -> None: ...
    def teach(
        self, peer: Token, local: Token, direction: int, reason: int, protocol: int, port: int, policy: int,
        decision: int, address: bytes, key: bytes, anybody: bool, /
    ) -> bool: ...  # fmt: skip
    def teach_target(self, address: bytes, port: int, /) -> None: ...
    def forget_target(self, address: bytes, port: int, /) -> None: ...
    def teach_warm(
        self, address: bytes, port: int, session: Session, exchange: Exchange, policy: int, waits: bool, /
    ) -> bool: ...
    def forget_warm(self, address: bytes, port: int, /) -> None: ...
    def teach_ticket(self, session: Session, exchange: Exchange, /) -> None: ...
    def forget_ticket(self, ticket: bytes, /) -> None: ...
    def own(
        self, protocol: int, own: bytes, own_port: int, other: bytes, other_port: int, isn: int = 0,
        foreign: bool = False, /
    ) -> None: ...  # fmt: skip
    def own_syn(self, other: bytes, other_port: int, isn: int, peer: bytes, /) -> None: ...
    def disown(
        self, protocol: int, own: bytes, own_port: int, other: bytes, other_port: int, isn: int = 0,
        foreign: bool = False, /
    ) -> None: ...  # fmt: skip
    def take_back(self, octets: bytes, local: Token | None, peer: Token, mono_ns: int, /) -> bool: ...
    def remembered(self) -> list[tuple[int, bytes, int, bytes, int]]: ...
    def forget(self, protocol: int, own: bytes, own_port: int, other: bytes, other_port: int, /) -> bool: ...
    def listen(self, flag: bool, /) -> None: ...
    def take_event(
        self,
    ) -> tuple[tuple[int, bytes, int, bytes, int], int, float, int, int, bytes, int] | None: ...
    def export(self, forget: bool, /) -> list[bytes]: ...
    def set_translate(
        self, ask: Callable[[int, bytes, int, bytes, int], tuple[bytes, int] | None] | None, /
    ) -> None: ...

@final
class Workers:
    """Threads that serve pods' queues. They end when the last queue and this are gone."""

    def __new__(cls, count: int) -> Workers: ...

@final
class Conntrack:
    """The connection tracking of the network namespace that netfilter netlink socket ``fd`` was made in.

    The descriptor is this object's.
    """

    def __new__(cls, fd: int) -> Conntrack: ...
    def get(
        self, protocol: int, source: bytes, source_port: int, destination: bytes, destination_port: int, /
    ) -> tuple[bytes, int] | None:
        """Return (address, port) that answers in the connection begun so, or None if there is none. Any thread.

        Raises OSError: the kernel did not tell.
        """

    def close(self) -> None:
        """Close the descriptor; :meth:`get` raises OSError from then on."""

@final
class Queue:
    """One pod's queue, read by a thread in C. All methods belong to one thread."""

    def __new__(cls, fd: int, number: int, marks: tuple[int, int, int, int], foreign_passes: bool) -> Queue:
        """Take over queue ``number`` of the namespace that netfilter netlink socket ``fd`` was made in.

        The descriptor is the queue's, even if this raises OSError (EBUSY: somebody else holds the queue). ``marks``:
        mask, pass, pass and clear, accept. ``foreign_passes``: what becomes of packets from a hook that is not ours.
        """

    def start(self, workers: Workers, endpoint: object, conntrack: Conntrack | None, /) -> None:
        """Have an ``Endpoint`` judge what comes. Once, before all below but :meth:`close`. Raises OSError."""

    def close(self) -> None:
        """Let go of the queue; the kernel drops what waits in it."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while :meth:`take` has something."""

    def set_accept(self, mark: int, /) -> None:
        """Mark accepted connections so from the next packet on."""

    def poll(self) -> None:
        """Read and judge what waits in the queue right now."""

    def take(self, most: int, /) -> list[tuple[int, int, int, bytes, bytes]]:
        """Return up to ``most`` parked packets as (id, packet mark, hook, packet, handover).

        Raises OSError when the queue is of no use any more.
        """

    def answer(self, id: int, passes: bool, mark: int, packet: bytes | None, /) -> None:  # noqa: A002
        """Give a packet that was taken its verdict, with other octets unless None. Raises OSError."""

    def counters(self) -> tuple[int, int, int, int, int, int]:
        """Return what was counted.

        Packets that arrived and that left, truncated ones, ones of a foreign rule, verdicts that failed, and packets
        dropped in place of being parked.
        """

def mac(key: bytes, role: int, data: bytes, /) -> bytes: ...
def siphash(key: bytes, data: bytes, /) -> int: ...
def parse(packet: bytes, /) -> int | tuple[Any, ...]: ...
def complete_sum(packet: bytes, /) -> bytes: ...

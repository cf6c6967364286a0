"""What is remembered of connections, and for how long. Every table here is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trireme_py.handshake import State
from trireme_py.identities import LocalIdentity, Peer
from trireme_py.model import Address, Direction, Identity, PolicyView
from trireme_py.packet import Packet

K = TypeVar("K")
V = TypeVar("V")

Tuple5 = tuple[int, Address, int | None, Address, int | None]
"""Protocol, the pod's own address and port, the other end's address and port: as the pod's namespace sees them."""


class BoundedTable(Generic[K, V]):
    """A map with a largest size and one lifetime: the oldest entry makes room, and what is not touched expires."""

    __slots__ = ("_entries", "limit", "ttl_ns")

    def __init__(self, limit: int, ttl_ns: int) -> None:
        self.limit = limit
        self.ttl_ns = ttl_ns
        self._entries: OrderedDict[K, tuple[int, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return entry[1] if entry else None

    def put(self, key: K, value: V, mono_ns: int) -> V | None:
        """Store and touch; return the value that had to make room, if any."""
        if key not in self._entries:
            self.entered(key)
        self._entries[key] = (mono_ns + self.ttl_ns, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self.limit:
            return self.pop(next(iter(self._entries)))
        return None

    def pop(self, key: K) -> V | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self.left(key)
        return entry[1]

    def entered(self, key: K) -> None:
        """Note that ``key`` was not there and is: for a table that somebody keeps an eye on (fast.py)."""

    def left(self, key: K) -> None:
        """Note that ``key`` is gone."""

    def oldest(self) -> V | None:
        """Return what would make room next."""
        for _, value in self._entries.values():
            return value
        return None

    def next_deadline(self) -> int | None:
        """Monotonic nanoseconds at which the oldest entry expires."""
        for deadline, _ in self._entries.values():
            return deadline
        return None

    def expire(self, mono_ns: int) -> list[V]:
        """Remove and return what has expired. Entries are in order of their deadlines, as all live equally long."""
        expired = []
        while self._entries:
            key, (deadline, value) = next(iter(self._entries.items()))
            if deadline > mono_ns:
                break
            self.pop(key)
            expired.append(value)
        return expired

    def clear(self) -> list[V]:
        values = [value for _, value in self._entries.values()]
        for key in list(self._entries):
            self.pop(key)
        return values


@dataclass(slots=True)
class Held:
    """Packets of one flow that wait in the queue, in order of arrival."""

    packets: list[tuple[int, Packet]] = field(default_factory=list)
    """(ticket, packet)"""
    octets: int = 0

    def add(self, ticket: int, packet: Packet) -> None:
        self.packets.append((ticket, packet))
        self.octets += packet.length

    def take(self) -> list[tuple[int, Packet]]:
        packets, self.packets, self.octets = self.packets, [], 0
        return packets


@dataclass(slots=True, eq=False)
class ClientFlow:
    """A connection that the local pod opens, from its SYN until the server can no longer ask for the proof again."""

    key: Tuple5
    isn: int
    """The client's initial sequence number."""
    local: LocalIdentity | None
    syn: Packet
    """The pod's own SYN, kept to be sent bare where the path has lost its place."""
    state: State = State.CLOSED
    message: bytes | None = None
    """The SYN's payload; None when every SYN of this connection went bare."""
    taken_back: int = 0
    """Octets of the message of a SYN that was reset, for the connection to start over bare."""
    sent: int = 0
    last_was_bare: bool = False
    met: bool = False
    """Whether a server has proved who it is, whatever policy says of it."""
    server_isn: int = 0
    syn_ack_fixed: bytes = b""
    peer: Peer | None = None
    actual: tuple[Address, int] | None = None
    """The server's own address and port, as it authenticated them."""
    policy: PolicyView | None = None
    """The policy that let the server's answer in."""
    proof: bytes = b""
    ack: Packet | None = None
    """The pod's first ACK, whose headers a repeated proof borrows."""
    held: Held = field(default_factory=Held)
    repeats: int = 0
    """SYN-ACKs that asked for the proof again, those that came right after another left out."""
    asked_ns: int = 0
    """When the last of them came, or when the proof was sent first; monotonic."""
    resynchronising: bool = False
    """The next SYN of this connection is our own bare one."""


@dataclass(slots=True, eq=False)
class ServerFlow:
    """A connection that somebody opens to the local pod, from the SYN until the proof."""

    key: tuple[Address, int, int]
    """Peer address, peer port, peer ISN. A spoofed SYN of another ISN cannot touch it."""
    tuple5: Tuple5
    state: State = State.CLOSED
    syn_fixed: bytes = b""
    peer: Peer | None = None
    """None for a peer without identity."""
    local: LocalIdentity | None = None
    nonce: bytes = b""
    message: bytes = b""
    pair_key: bytes = b""
    server_isn: int | None = None
    """None until the pod's kernel has answered."""
    syn_ack: Packet | None = None
    """The kernel's SYN-ACK as it left the pod, to be repeated when data arrives before the proof."""
    held: Held = field(default_factory=Held)
    repeats: int = 0
    repeated_ns: int = 0


@dataclass(slots=True, eq=False)
class Live:
    """An accepted connection or flow: what is needed to judge it again when policy changes."""

    direction: Direction
    identity: Identity | None
    address: Address
    """The peer's address that policy judges: on egress the authenticated one."""
    port: int | None
    """The destination's own port."""
    policy: PolicyView
    """The policy it was last allowed under."""
    isn: int | None = None
    server_isn: int | None = None
    """On ingress: the number of the pod's SYN-ACK, by which a repeated one is known."""
    tolerated: bool = False
    """Let in without an identity while agents were being installed; nobody can ask for one afterwards."""
    cut: bool = False
    peer: Peer | None = None
    """Of TCP: who has the identity."""

"""The network between the pods of the virtual-time world: what loses packets, and what translates addresses."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from dataclasses import replace as changed

from tests.harness.segments import TCP, UDP, Segment, read
from tests.harness.surplus import Read, is_udp, read_udp, translated


@dataclass(frozen=True)
class Faults:
    """How bad a link is: probabilities per packet, and by how much a reordered one is late."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    late_ns: int = 50_000_000

    @property
    def any(self) -> bool:
        return bool(self.drop or self.duplicate or self.reorder or self.corrupt)

    def apply(self, rng: random.Random, data: bytes) -> list[tuple[int, bytes]]:
        """Return the copies that arrive, each with its extra delay in nanoseconds."""
        if not self.any:
            return [(0, data)]
        copies = 0 if rng.random() < self.drop else 2 if rng.random() < self.duplicate else 1
        arriving = []
        for _ in range(copies):
            delay = rng.randrange(self.late_ns) if rng.random() < self.reorder else 0
            arriving.append((delay, self._damage(rng, data) if rng.random() < self.corrupt else data))
        return arriving

    @staticmethod
    def _damage(rng: random.Random, data: bytes) -> bytes:
        """Flip one bit, or cut the tail off, behind the addresses (which say where the packet goes)."""
        start = 20 if data[0] >> 4 == 4 else 40
        if rng.random() < 0.2:
            return data[: rng.randrange(start, len(data) + 1)]
        damaged = bytearray(data)
        damaged[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        return bytes(damaged)


Flow = tuple[int, bytes, int, bytes, int]


@dataclass
class Router:
    """Destination translation (a Service) and source translation (masquerade), connection by connection."""

    services: dict[tuple[bytes, int], list[tuple[bytes, int]]] = field(default_factory=dict)
    """Virtual address and port to the backends, taken in turn."""
    masquerade: dict[bytes, bytes] = field(default_factory=dict)
    """Source address to the router's own that stands in for it."""
    evident: bool = True
    """Whether the client's node can see the translation."""
    _forward: dict[Flow, Flow] = field(default_factory=dict)
    _back: dict[Flow, Flow] = field(default_factory=dict)
    _turn: int = 0
    _port: int = 61_000

    def shown(
        self, protocol: int, source: bytes, sport: int, destination: bytes, dport: int
    ) -> tuple[bytes, int] | None:
        """What the node's conntrack says of a dialled address: where its connection went, or nothing."""
        translated = self._forward.get((protocol, source, sport, destination, dport))
        if translated is None or not self.evident or translated[3:] == (destination, dport):
            return None
        return translated[3:]

    def translate(self, data: bytes) -> bytes:
        if not self.services and not self.masquerade:
            return data
        segment: Segment | Read | None = read_udp(data) if is_udp(data) else read(data)
        if segment is None:
            return data
        protocol = UDP if isinstance(segment, Read) else TCP
        flow = (protocol, segment.source, segment.sport, segment.destination, segment.dport)
        to = self._back.get(flow) or self._forward.get(flow) or self._open(flow)
        if to is None:
            return data
        if isinstance(segment, Read):
            return translated(data, to[1:3], to[3:])
        return _readdress(segment, to)

    def _open(self, flow: Flow) -> Flow | None:
        protocol, source, sport, destination, dport = flow
        backends = self.services.get((destination, dport))
        stand_in = self.masquerade.get(source)
        if backends is None and stand_in is None:
            return None
        new_source, new_destination = (source, sport), (destination, dport)
        if backends is not None:
            new_destination = backends[self._turn % len(backends)]
            self._turn += 1
        if stand_in is not None:
            self._port += 1
            new_source = (stand_in, self._port)
        to = (protocol, *new_source, *new_destination)
        self._forward[flow] = to
        self._back[protocol, *new_destination, *new_source] = (protocol, destination, dport, source, sport)
        return to


def _readdress(segment: Segment, flow: Flow) -> bytes:
    _, source, sport, destination, dport = flow
    return changed(segment, source=source, sport=sport, destination=destination, dport=dport).build()

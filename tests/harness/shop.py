"""The scene of most tests in memory: a client, a server that lets only it in, and a third pod that neither knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tests.harness.segments import Segment, read
from tests.harness.standin_policy import OPEN, only_from, only_to
from tests.harness.tcp import Connection
from tests.harness.world import Pod, World, kind_of
from trireme_py.model import DropReason, PolicyView

CLIENT, SERVER, MALLORY = "shop/client", "shop/server", "shop/mallory"


class Shop:
    """``client`` may talk to ``server`` and ``server`` lets ``client`` in, both ways by identity alone."""

    def __init__(
        self,
        *,
        mode: str = "psk",
        seed: int = 1,
        client_policy: PolicyView | None = None,
        server_policy: PolicyView | None = None,
        client_agent: bool = True,
        server_agent: bool = True,
    ) -> None:
        self.world = World(seed, mode=mode)
        self.world.audit = True
        self.client = self.world.pod(
            CLIENT, "10.1.0.2", "fd00:1::2", policy=client_policy or only_to(SERVER), agent=client_agent
        )
        self.server = self.world.pod(
            SERVER, "10.1.0.3", "fd00:1::3", policy=server_policy or only_from(CLIENT), agent=server_agent
        )
        self.listener = self.server.listen(80, on_data=echo)

    def mallory(self, policy: PolicyView = OPEN, *, agent: bool = True) -> Pod:
        """The third pod: genuine, but nobody's friend. Without an agent her packets are raw and her kernel is mute."""
        pod = self.world.pod(MALLORY, "10.1.0.66", "fd00:1::66", policy=policy, agent=agent)
        if not agent:
            pod.deliver = lambda data: None  # type: ignore[method-assign]
        return pod

    def connect(self, data: bytes = b"one beer", *, family: int = 4, close: bool = False) -> Connection:
        return self.client.connect(self.server, data=data, family=family, close=close)

    @contextmanager
    def counts(
        self, client: dict[DropReason, int] | None = None, server: dict[DropReason, int] | None = None
    ) -> Iterator[None]:
        """Hold what happens inside to exactly these drops at the two agents."""
        before = (self.client.drops, self.server.drops)
        yield
        after = (self.client.drops - before[0], self.server.drops - before[1])
        assert after == (client or {}, server or {}), after

    def accepted(self) -> list[Connection]:
        """The server's connections whose handshake its kernel has completed."""
        return [one for one in (*self.server.host.connections.values(), *self.server.host.over) if one.opened]

    def delivered(self) -> bytes:
        """Every octet that reached the server's application."""
        return b"".join(bytes(one.received) for one in (*self.server.host.connections.values(), *self.server.host.over))

    def assert_works(self, data: bytes = b"next, please", family: int = 4) -> Connection:
        """An honest connection made now is accepted at both ends, within a round trip or two, and echoes."""
        connection = self.connect(data, family=family)
        began = self.world.ms
        self.world.run(30, until=lambda: bytes(connection.received) == data)
        assert bytes(connection.received) == data, (connection.outcome, self.client.drops, self.server.drops)
        assert self.world.ms - began <= 100
        self.world.run(0.02)  # what is still under way
        return connection


def echo(connection: Connection) -> None:
    """Answer every octet with itself."""
    connection.write(bytes(connection.received[len(connection.sent) :]))


def lose(world: World, kind: str, count: int = 1, sender: bytes | None = None) -> None:
    """Lose the next ``count`` packets of a kind (see :func:`tests.harness.world.kind_of`) on the wire."""
    _meddle(world, kind, count, lambda data: ())


def repeat(world: World, kind: str) -> None:
    """Deliver the next packet of a kind twice."""
    _meddle(world, kind, 1, lambda data: (data, data))


def alter(world: World, kind: str, change: Callable[[Segment], Segment], count: int = 1) -> None:
    """Change the next packets of a kind; the checksum is made right again, as an attacker would."""

    def altered(data: bytes) -> Iterator[bytes]:
        segment = read(data)
        assert segment is not None
        yield change(segment).build()

    _meddle(world, kind, count, altered)


def delay(world: World, kind: str, nanoseconds: int) -> None:
    """Deliver the next packet of a kind late."""

    def later(data: bytes) -> Iterable[bytes]:
        world.after(nanoseconds, lambda: world.inject(data))
        return ()

    _meddle(world, kind, 1, later)


def _meddle(world: World, kind: str, count: int, change: Callable[[bytes], Iterable[bytes]]) -> None:
    before = world.on_wire
    left = count

    def on_wire(data: bytes) -> Iterable[bytes]:
        nonlocal left
        segment = read(data)
        if left and segment is not None and kind_of(segment) == kind:
            left -= 1
            return change(data)
        return before(data)

    world.on_wire = on_wire

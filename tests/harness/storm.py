"""A terrible network, with honest peers, strangers and an attacker on the path, all out of one seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.harness.network import Faults
from tests.harness.segments import MAGIC, read
from tests.harness.shop import echo
from tests.harness.standin_policy import StandInPolicy, only_from, only_to
from tests.harness.tcp import Connection
from tests.harness.world import Pod, World

TERRIBLE = Faults(drop=0.08, duplicate=0.1, reorder=0.2, corrupt=0.05)
ECHO, WELCOME = 80, 81
GREETING = b"welcome, friend"


@dataclass
class Opened:
    """One connection that somebody opened, and what should come back on it."""

    pod: Pod
    to: Pod
    connection: Connection
    data: bytes
    expected: bytes

    @property
    def friendly(self) -> bool:
        """Whether policy allows it; to the café everybody may go."""
        return self.pod.name == "shop/friend" or self.to.name != "shop/server"


class Storm:
    """A server that lets ``friend`` in and nobody else, a café that knows no agents, and everybody who wants a beer."""

    def __init__(self, seed: int, mode: str) -> None:
        world = self.world = World(seed, mode=mode, faults=TERRIBLE)
        self.server = world.pod("shop/server", "10.1.0.3", "fd00:1::3", policy=only_from("shop/friend"))
        self.cafe = world.pod("shop/cafe", "10.1.0.6", "fd00:1::6", agent=False)
        self.friend = world.pod("shop/friend", "10.1.0.2", "fd00:1::2", policy=self.friend_policy())
        self.stranger = world.pod("shop/stranger", "10.1.0.4", "fd00:1::4")
        self.plain = world.pod("shop/plain", "10.1.0.5", "fd00:1::5", agent=False)
        self.guarded = (self.server, self.friend, self.stranger)
        for pod in (self.server, self.cafe):
            pod.listen(ECHO, on_data=echo)
            pod.listen(WELCOME, on_accept=lambda connection: connection.write(GREETING))
        self.opened: list[Opened] = []

    def friend_policy(self) -> StandInPolicy:
        return only_to("shop/server", addresses=frozenset(self.cafe.addresses))

    def change(self) -> None:
        """New policies that say the same: every live connection is judged again. And time to forget the dead."""
        self.server.set_policy(only_from("shop/friend"))
        self.friend.set_policy(self.friend_policy())
        for pod in self.guarded:
            pod.sweep()

    def open_one(self) -> None:
        rng = self.world.random
        pod = rng.choices((self.friend, self.stranger, self.plain), (8, 1, 1))[0]
        to = rng.choices((self.server, self.cafe), (8, 1))[0]
        if rng.random() < 0.2:
            data, expected, port = b"", GREETING, WELCOME
        else:
            data = expected = rng.randbytes(rng.choice((1, 200, 900, 2500)))
            port = ECHO
        connection = pod.connect(to, port, data, family=rng.choice((4, 6)))

        def hear(connection: Connection) -> None:
            if len(connection.received) == len(expected):
                connection.close()

        connection.on_data = hear
        self.opened.append(Opened(pod, to, connection, data, expected))

    def attack(self) -> None:
        """Say again what was heard: as it was, from the stranger's address, or with an octet of our message changed."""
        rng = self.world.random
        segment = read(rng.choice(self.world.captured))
        if segment is None:
            return
        match rng.randrange(3):
            case 0:
                segment = replace(segment, source=self.stranger.address(4 if len(segment.source) == 4 else 6))
            case _ if segment.payload.startswith(MAGIC):
                at = rng.randrange(4, min(28, len(segment.payload)))
                payload = segment.payload[:at] + rng.randbytes(1) + segment.payload[at + 1 :]
                segment = replace(segment, payload=payload)
        self.world.inject(segment.build())

    def rain(self, connections: int, gap_ns: int) -> None:
        for index in range(connections):
            self.world.after(index * gap_ns, self.open_one)
            if index % 5 == 4:
                self.world.after(index * gap_ns, self.attack)
            if index % 50 == 49:
                self.world.after(index * gap_ns, self.change)
        self.world.run(connections * gap_ns / 1e9 + 120)

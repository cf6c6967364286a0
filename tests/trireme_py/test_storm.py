"""The exchange over a terrible network, with an attacker on the path. Seeded; no real time passes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.harness.network import Faults
from tests.harness.segments import MAGIC, read
from tests.harness.shop import echo
from tests.harness.standin_policy import StandInPolicy, only_from, only_to
from tests.harness.tcp import Connection
from tests.harness.world import Pod, World
from trireme_py.model import DropReason

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


def assert_only_friends_were_let_in(storm: Storm) -> None:
    """By what really happened: the friend dialled each connection that the server's kernel completed."""
    dialled = {(one.connection.key, one.connection.iss): one for one in storm.opened if one.pod is storm.friend}
    accepted = 0
    for connection in (*storm.server.host.connections.values(), *storm.server.host.over):
        own, port, other, other_port = connection.key
        if not connection.opened:
            continue
        one = dialled.get(((other, other_port, own, port), connection.irs))
        assert one is not None, f"a connection that nobody dialled: {connection.key}"
        assert one.data.startswith(bytes(connection.received))
        accepted += 1
    assert accepted


def assert_events_are_true(storm: Storm) -> None:
    names = {storm.friend: "shop/server", storm.server: "shop/friend"}
    for pod, peer in names.items():
        identified = [event for event in pod.events if event.decision.allowed and event.peer is not None]
        assert identified
        for event in identified:
            assert event.peer is not None
            assert (event.peer.name, event.peer_proven) == (peer, True)
    assert all(event.peer for event in storm.server.events if event.decision.allowed)


def assert_nothing_is_left(pod: Pod) -> None:
    assert not pod.held
    pod.sweep()
    for name in ("clients", "servers", "answered", "live", "denials", "unanswered", "minds_payload", "holds"):
        assert not len(getattr(pod.endpoint, name)), f"{name} of {pod.name}"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "connections", "seed"), [("psk", 8_000, 1), ("pki", 2_000, 2)])
def test_handshakes_over_a_terrible_network(mode: str, connections: int, seed: int) -> None:
    """Slow for the number of packets: 10,000 handshakes, each with its loss, its copies and its data."""
    storm = Storm(seed, mode)
    storm.rain(connections, gap_ns=5_000_000)
    assert_only_friends_were_let_in(storm)
    assert_events_are_true(storm)
    assert not any(pod.drops[DropReason.INTERNAL_ERROR] for pod in storm.guarded)
    friendly = [one for one in storm.opened if one.friendly]
    for one in storm.opened:
        assert one.expected.startswith(bytes(one.connection.received))
        assert one.friendly or not one.connection.received
    complete = sum(bytes(one.connection.received) == one.expected for one in friendly)
    assert complete >= 0.99 * len(friendly)
    storm.world.run(5_000)
    for pod in storm.guarded:
        assert_nothing_is_left(pod)

"""The scene of the UDP tests in memory: a client that asks, and a server that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.harness.shop import CLIENT, MALLORY, SERVER
from tests.harness.standin_policy import OPEN, StandInPolicy, only_from, only_to
from tests.harness.surplus import Read, is_udp, kind_of_datagram
from tests.harness.world import Pod, World
from trireme_py.model import PolicyView

PORT = 53
POLICIES: dict[str, tuple[StandInPolicy, StandInPolicy]] = {
    "none": (OPEN, OPEN),
    "client": (only_to(SERVER), OPEN),
    "server": (OPEN, only_from(CLIENT)),
    "both": (only_to(SERVER), only_from(CLIENT)),
}
"""Which of the two is isolated: the client's policy and the server's."""


class Resolver:
    """``client`` asks ``server``, which answers each datagram with ``re:`` and the same octets."""

    def __init__(
        self,
        isolated: str = "both",
        *,
        seed: int = 1,
        mode: str = "psk",
        client_agent: bool = True,
        server_agent: bool = True,
        answers: Callable[[bytes], bytes] = lambda payload: b"re:" + payload,
    ) -> None:
        self.world = World(seed, mode=mode)
        policies = POLICIES[isolated]
        self.client = self.world.pod(CLIENT, "10.1.0.2", "fd00:1::2", policy=policies[0], agent=client_agent)
        self.server = self.world.pod(SERVER, "10.1.0.3", "fd00:1::3", policy=policies[1], agent=server_agent)
        self._answers = answers
        serve(self.server, answers)

    def mallory(self, policy: PolicyView = OPEN, *, agent: bool = True) -> Pod:
        """Genuine, but nobody's friend."""
        return self.world.pod(MALLORY, "10.1.0.66", "fd00:1::66", policy=policy, agent=agent)

    def ask(self, payload: bytes = b"question", *, sport: int = 40_000, family: int = 4, seconds: float = 2.0) -> int:
        """Ask the server and wait for the answer; returns its milliseconds, or -1 without one."""
        began, before = self.world.ms, len(self.client.heard)
        answer = self._answers(payload)
        self.client.say(self.server, payload, sport=sport, family=family)
        self.world.run(seconds, until=lambda: len(self.client.heard) > before)
        if len(self.client.heard) == before:
            return -1
        assert self.client.heard[-1].payload == answer
        assert self.client.heard[-1].dport == sport
        took = self.world.ms - began
        self.world.run(0.03)  # what is still under way
        return took

    def asked(self) -> list[bytes]:
        """What the server's application has read."""
        return [one.payload for one in self.server.heard]

    def answered(self) -> list[bytes]:
        return [one.payload for one in self.client.heard]

    def kinds(self) -> list[str]:
        """The messages on the wire, in order; ``-`` for a datagram without one."""
        return [kind_of_datagram(data) or "-" for data in self.world.captured]

    def captured(self, kind: str) -> bytes:
        """The last datagram on the wire with such a message."""
        return next(data for data in reversed(self.world.captured) if kind_of_datagram(data) == kind)


def serve(pod: Pod, answers: Callable[[bytes], bytes] = lambda payload: b"re:" + payload) -> None:
    """Have a pod answer every datagram from the address it came to."""

    def reply(one: Read) -> None:
        pod.say(one.source, answers(one.payload), sport=one.dport, port=one.sport)

    pod.on_datagram = reply


def meddle(world: World, kind: str, change: Callable[[bytes], Iterable[bytes]], count: int = 1) -> None:
    """Do something to the next datagrams of a kind on the wire."""
    before = world.on_wire
    left = count

    def on_wire(data: bytes) -> Iterable[bytes]:
        nonlocal left
        if left and is_udp(data) and (kind_of_datagram(data) or "-") == kind:
            left -= 1
            return change(data)
        return before(data)

    world.on_wire = on_wire


def late(world: World, nanoseconds: int) -> Callable[[bytes], Iterable[bytes]]:
    def later(data: bytes) -> Iterable[bytes]:
        world.after(nanoseconds, lambda: world.inject(data))
        return ()

    return later

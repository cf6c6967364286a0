"""UDP in a terrible network, with honest peers, strangers and an attacker on the path, all out of one seed."""

from __future__ import annotations

import random
from struct import pack

from tests.harness.mutations import mutations
from tests.harness.network import Faults
from tests.harness.segments import icmp, packed, udp
from tests.harness.standin_policy import StandInPolicy, only_from, only_to
from tests.harness.surplus import Read, is_udp, with_surplus
from tests.harness.world import Pod, World
from trireme_py.errors import BadPacket
from trireme_py.packet import parse_packet_untrusted
from trireme_py.surplus import read_datagram_untrusted, with_message

TERRIBLE = Faults(drop=0.05, duplicate=0.1, reorder=0.2, corrupt=0.02)
SERVICE, PORT = packed("10.96.0.10"), 53
ANSWER = b"re:"
SIZES = (0, 1, 8, 33, 200, 700, 1200, 3000)
DEAD_S = 12
"""By then every flow of the storm so far is forgotten: whatever changed hands has begun a new lifetime."""


def rebuilt(data: bytes, rng: random.Random) -> bytes:
    """The same datagram with its message or its data changed and its sums right; or as it is, if it has none."""
    try:
        packet = parse_packet_untrusted(data)
        one = read_datagram_untrusted(packet)
    except BadPacket:
        return data
    if one.message is None:
        return data
    message = next(mutations(one.message, 1, rng.getrandbits(32))) if rng.random() < 0.7 else one.message
    payload = one.payload + b"!" if rng.random() < 0.2 else one.payload
    return with_message(packet, payload, message, sealed=one.sealed if rng.random() < 0.8 else not one.sealed)


class DatagramStorm:
    """A server and its friend, who both have policies or not; a stranger with an agent, and somebody without one."""

    def __init__(self, seed: int, mode: str) -> None:
        world = self.world = World(seed, mode=mode, faults=TERRIBLE)
        self.server = world.pod("shop/server", "10.1.0.3", "fd00:1::3", policy=only_from("shop/friend"))
        self.friend = world.pod("shop/friend", "10.1.0.2", "fd00:1::2", policy=only_to("shop/server"))
        self.stranger = world.pod("shop/stranger", "10.1.0.4", "fd00:1::4")
        self.plain = world.pod("shop/plain", "10.1.0.5", "fd00:1::5", agent=False)
        self.guarded = (self.server, self.friend, self.stranger)
        for pod in (self.server, self.plain):
            pod.on_datagram = lambda one, pod=pod: self._reply(pod, one)  # type: ignore[misc]
        world.router.services[SERVICE, PORT] = [(self.server.address(), PORT)]
        self._port = 20_000

    @staticmethod
    def _reply(pod: Pod, one: Read) -> None:
        """Answer, but never an answer: two of those would go on for ever."""
        if not one.payload.startswith(ANSWER):
            pod.say(one.source, ANSWER + one.payload, sport=one.dport, port=one.sport)

    def _new_port(self) -> int:
        self._port += 1
        return self._port

    def policy_of(self, pod: Pod, *, strict: bool) -> StandInPolicy:
        if not strict or pod is self.stranger:
            return StandInPolicy()
        if pod is self.server:
            return only_from("shop/friend")
        return only_to("shop/server", addresses=frozenset(self.plain.addresses))

    def ask(self) -> None:
        """A flow: one datagram or several, at once or one after the other, from a fresh port as a rule."""
        rng = self.world.random
        pod = rng.choices((self.friend, self.stranger, self.plain), (12, 1, 1))[0]
        to: Pod | bytes = rng.choices((self.server, SERVICE, self.plain), (8, 3, 1))[0]
        family = 4 if isinstance(to, bytes) else rng.choice((4, 6))
        sport = self._new_port() if rng.random() < 0.9 else rng.randrange(19_990, self._port + 1)
        for number in range(rng.choice((1, 1, 1, 1, 2, 3, 3, 7))):
            payload = self.world.random.randbytes(rng.choice(SIZES))
            pause = number * rng.choice((0, 1_000_000, 40_000_000, 90_000_000))

            def say(payload: bytes = payload) -> None:
                pod.say(to, payload, sport=sport, port=PORT, family=family)

            self.world.after(pause, say)

    def odd(self) -> None:
        """What kernels send more rarely: no checksum, options of one's own, an IP option, an ICMP error."""
        rng = self.world.random
        source, to = (self.friend.address(), self._new_port()), (self.server.address(), PORT)
        plain = udp(source, to, b"odd")
        match rng.randrange(4):
            case 0:
                self.friend.leave(plain[:26] + bytes(2) + plain[28:])
            case 1:
                self.friend.leave(with_surplus(plain, b"\x01\x01\x01\x00"))
            case 2:
                header = bytearray(b"\x46" + plain[1:20] + b"\x01\x01\x01\x00")
                header[2:4] = pack("!H", len(plain) + 4)
                self.friend.leave(bytes(header) + plain[20:])
            case _:
                if self.world.captured:
                    quoted = rng.choice(self.world.captured)
                    if quoted[0] >> 4 == 4:
                        there = self.world.by_address.get(quoted[12:16])
                        if there is not None:
                            there.arrive(icmp(quoted[16:20], quoted[12:16], 3, 3, body=quoted[:64]))

    def attack(self) -> None:
        """Say again what was heard, as it was or changed, to whoever it was for or somebody else, at either hook."""
        rng = self.world.random
        if not self.world.captured:
            return
        data = list(self.world.captured)[-1 - rng.randrange(min(40, len(self.world.captured)))]
        if not is_udp(data):
            return
        there = self.world.by_address.get(data[16:20] if data[0] >> 4 == 4 else data[24:40])
        pod = there if there is not None and rng.random() < 0.8 else rng.choice(self.guarded)
        match rng.randrange(5):
            case 0:
                pass
            case 1:
                data = next(mutations(data, 1, rng.getrandbits(32)))
            case _:
                data = rebuilt(data, rng)
        if pod.datapath is not None and data:
            (pod.leave if rng.random() < 0.15 else pod.arrive)(data)

    def change(self) -> None:
        """Other policies, some of which say the same."""
        for pod in self.guarded:
            if self.world.random.random() < 0.7:
                pod.set_policy(self.policy_of(pod, strict=self.world.random.random() < 0.8))

    def forget(self) -> None:
        """Conntrack has forgotten all that was accepted."""
        for pod in self.guarded:
            pod.sweep()

    def renew(self) -> None:
        """Everybody gets a new assertion."""
        for pod in self.guarded:
            assert pod.datapath is not None
            assert pod.authenticator is not None
            pod.identity = self.world.local_identity(pod.name, pod.authenticator)
            pod.datapath.set_identity(0, pod.identity)

    def rain(self, flows: int) -> None:
        """So many flows, in showers of 100 with a dry spell between them."""
        at = 0
        for index in range(flows):
            at += 2_000_000 if index % 100 else DEAD_S * 1_000_000_000
            self.world.after(at, self.ask)
            if index % 2:
                self.world.after(at + 700_000, self.attack)
            if index % 9 == 4:
                self.world.after(at + 1, self.odd)
            if index % 40 == 39:
                self.world.after(at + 2, self.change)
            if index % 50 == 29:
                self.world.after(at + 3, self.forget)
            if index % 170 == 169:
                self.world.after(at + 4, self.renew)
        self.world.run(at / 1e9 + 60)

"""Bad links and odd packets on a real kernel: whatever the path does, no octet is lost, changed or read twice.

::

    alice ──┐
            ├ router, in which a Shim loses, repeats, delays and alters what is forwarded
    bob   ──┘

Alice (client) and Bob (server) are held by two nodes, and each is isolated to the other's identity: a connection that
works has proved both ends. Where time matters it is the link's own: the Shim delays every packet by a known time and
notes when it saw each, and what is asserted is which packets crossed the link, in units of that time.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
from scapy.layers.inet import IP as ScapyIP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet import IPOption
from scapy.layers.inet6 import HBHOptUnknown, IPv6ExtHdrDestOpt
from scapy.layers.inet6 import IPv6 as ScapyIPv6
from scapy.packet import Raw

from agent.lab import Lab, LabPod
from tests.harness.hostile import DROP, Capture, Pass, Shim, inject, segment, silenced_kernel
from tests.harness.node import Node, Rules
from tests.harness.traffic import IP, Server, ask, family_of, open_socket
from trireme_py import messages, wire
from trireme_py.model import Direction, DropReason, Reason
from trireme_py.packet import ACK, FIN, RST, SYN, Packet, with_tcp

pytestmark = pytest.mark.kernel

PORT = 80
PATIENCE_S = 60.0
"""A connection that loses several packets waits for the kernel's timers of one and more seconds, and doubles them."""
DATA = bytes(index * 7 % 251 for index in range(20_000))
PROOF = wire.ACK.size
_TCP_REPAIR = 19  # include/uapi/linux/tcp.h
_IPPROTO_MPTCP = 262  # include/uapi/linux/in.h
_SOL_MPTCP, _MPTCP_INFO = 284, 1  # include/linux/socket.h, include/uapi/linux/mptcp.h


class Kind(Enum):
    """What a packet is to the exchange, as the link sees it."""

    SYN = "SYN"
    SYN_ACK = "SYN-ACK"
    PROOF = "proof"
    """With or without data behind it."""
    DATA = "data"
    """The client's first octet."""
    OTHER = "other"


@dataclass(slots=True)
class Link:
    """A path that hurts chosen packets, and remembers what crossed it. To be a Shim's ``decide``."""

    hurt: dict[Kind, tuple[Pass, ...]] = field(default_factory=dict)
    """What becomes of the first, the second, … packet of a kind; the rest pass."""
    delay_s: float = 0.0
    """Of every packet that is not hurt, in each direction."""
    crossed: list[tuple[float, Kind, Packet]] = field(default_factory=list)
    """(monotonic seconds, kind, packet), in the order of arrival at the router."""
    _isn: dict[tuple[bytes, int | None], int] = field(default_factory=dict)

    def __call__(self, packet: Packet) -> Pass:
        kind = self._kind_of(packet)
        nth = sum(1 for _, seen, _ in self.crossed if seen is kind)
        self.crossed.append((time.monotonic(), kind, packet))
        fate = self.hurt.get(kind, ())
        return fate[nth] if nth < len(fate) else Pass(delay_s=self.delay_s)

    def _kind_of(self, packet: Packet) -> Kind:
        if packet.flags & SYN:
            if packet.flags & ACK:
                return Kind.SYN_ACK
            self._isn[packet.source, packet.source_port] = packet.sequence
            return Kind.SYN
        if messages.is_message(packet.payload):
            return Kind.PROOF
        first = self._isn.get((packet.source, packet.source_port), -1) + 1
        return Kind.DATA if packet.payload_length and packet.sequence == first else Kind.OTHER

    def all(self, kind: Kind) -> list[tuple[float, Packet]]:
        return [(when, packet) for when, seen, packet in self.crossed if seen is kind]

    @property
    def order(self) -> list[Kind]:
        """What crossed, without what says nothing about the exchange."""
        return [kind for _, kind, _ in self.crossed if kind is not Kind.OTHER]


@dataclass(slots=True)
class Scene:
    """Alice may ask Bob and nobody else; Bob answers Alice and nobody else."""

    lab: Lab
    alice: LabPod
    bob: LabPod
    mallory: LabPod
    """Nobody's agent watches her."""
    family: int
    here: Node
    there: Node
    application: Server
    """Bob's; it sends back what it reads."""

    def at(self, pod: LabPod) -> IP:
        return pod.ipv4 if self.family == 4 else pod.ipv6

    def ask(self, data: bytes = DATA) -> bytes:
        return ask(self.alice, self.at(self.bob), PORT, data, timeout=PATIENCE_S)

    def expect_one_connection(self, data: bytes = DATA) -> None:
        """Exactly one connection was accepted, both ends proven, and Bob read ``data`` once."""
        assert [digest(one) for one in self.application.received] == [digest(data)]
        for node, direction in ((self.here, Direction.EGRESS), (self.there, Direction.INGRESS)):
            (event,) = [event for event in node.events if event.direction is direction]
            assert (event.decision.reason, event.peer_proven) == (Reason.POLICY, True)
            assert not node.guard.crashes


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def pods() -> Iterator[tuple[Lab, LabPod, LabPod, LabPod]]:
    """New for each test: a connection of an earlier one that is not quite over would be counted, and seen."""
    with Lab("lossy") as lab:
        alice, bob, mallory = (lab.add_pod(name) for name in ("alice", "bob", "mallory"))
        yield lab, alice, bob, mallory


@pytest.fixture
def scene(pods: tuple[Lab, LabPod, LabPod, LabPod], family: int) -> Iterator[Scene]:
    lab, alice, bob, mallory = pods
    with Node(lab.router) as here, Node(lab.router) as there, Server(bob, PORT) as application:
        here.hold(alice, "alice", Rules(ingress=("bob",), egress=("bob",)))
        there.hold(bob, "bob", Rules(ingress=("alice",)))
        yield Scene(lab, alice, bob, mallory, family, here, there, application)


# Longer than the kernel's first timer (1 s) for what it repeats by timer, so that the repetition overtakes the first
# copy; longer than any data that follows for the rest.
LATE_S = {Kind.SYN: 1.2, Kind.SYN_ACK: 1.2, Kind.PROOF: 0.1, Kind.DATA: 0.1}
IMPAIRMENTS: dict[str, Callable[[Kind], Pass]] = {
    "lost": lambda _: DROP,
    "doubled": lambda _: Pass(copies=2),
    "overtaken": lambda kind: Pass(delay_s=LATE_S[kind]),
}


@pytest.mark.parametrize("impairment", IMPAIRMENTS)
@pytest.mark.parametrize("kind", [Kind.SYN, Kind.SYN_ACK, Kind.PROOF, Kind.DATA], ids=lambda kind: kind.value)
def test_one_packet(scene: Scene, kind: Kind, impairment: str) -> None:
    link = Link({kind: (IMPAIRMENTS[impairment](kind),)})
    with Shim(scene.lab.router, link):
        assert digest(scene.ask()) == digest(DATA)
    assert link.all(kind)
    scene.expect_one_connection()


def test_late_copies_of_a_syn_ack(scene: Scene) -> None:
    """They get the proof again and nothing else. A bare SYN, which is for stale conntrack entries, would make the
    router forget what is in flight and drop it from then on."""
    link = Link()

    def decide(packet: Packet) -> Pass:
        fate = link(packet)
        if link.crossed[-1][1] is Kind.DATA and len(link.all(Kind.DATA)) == 1:
            for _ in range(3):
                inject(scene.lab.router, link.all(Kind.SYN_ACK)[0][1].data)
        return fate

    with Shim(scene.lab.router, decide):
        assert digest(scene.ask()) == digest(DATA)
    assert len(link.all(Kind.SYN)) == 1
    assert scene.here.drops == {DropReason.REPEATED: 3}
    scene.expect_one_connection()


def test_a_repeated_syn_is_the_kernel_s_own(scene: Scene) -> None:
    """With the first one's timestamp again, the kernel would take a second for the round trip and wait as long for
    whatever is lost later."""
    link = Link({Kind.SYN: (DROP,)})
    with Shim(scene.lab.router, link):
        scene.ask(b"data")
    first, second = (timestamp(packet) for _, packet in link.all(Kind.SYN))
    assert second - first >= 900  # milliseconds, as Linux counts them


def timestamp(packet: Packet) -> int:
    """TSval of RFC 7323, from a Linux SYN."""
    option = packet.data.index(b"\x08\x0a", packet.transport + 20, packet.body)
    return int.from_bytes(packet.data[option + 2 : option + 6], "big")


def test_two_packets_of_each_kind_lost_in_a_row(scene: Scene) -> None:
    """Two SYNs and two SYN-ACKs without an answer look like a middlebox that minds tokens, so a SYN goes bare. Bob
    wants an identity and does not answer that one; the next goes with its token again."""
    link = Link(dict.fromkeys((Kind.SYN, Kind.PROOF, Kind.DATA), (DROP, DROP)))
    with Shim(scene.lab.router, link):
        assert digest(scene.ask()) == digest(DATA)
    received = [bool(packet.payload_length) for _, packet in link.all(Kind.SYN)]
    assert received[:4] == [True, True, False, True]
    assert [digest(one) for one in scene.application.received] == [digest(DATA)]


def test_everything_at_once(scene: Scene) -> None:
    """Thirty connections over a link that loses 5 %, repeats 5 % and delays 20 % of all packets, seeded."""
    rng = random.Random(20_240_607 + scene.family)

    def decide(_: Packet) -> Pass:
        fate = rng.random()
        if fate < 0.05:
            return DROP
        if fate < 0.10:
            return Pass(copies=2)
        return Pass(delay_s=rng.uniform(0.001, 0.03) if fate < 0.30 else 0.0)

    sent = [rng.randbytes(20_000) for _ in range(30)]
    with Shim(scene.lab.router, decide), ThreadPoolExecutor(len(sent)) as clients:
        answers = list(clients.map(scene.ask, sent))
    assert [digest(answer) for answer in answers] == [digest(data) for data in sent]
    assert sorted(map(digest, scene.application.received)) == sorted(map(digest, sent))
    assert not scene.here.guard.crashes
    assert not scene.there.guard.crashes


def begin(scene: Scene, data: bytes, *, with_first_ack: bool) -> socket.socket:
    """Open a connection and send; ``with_first_ack``: as a write that waits for the connection, which Linux sends
    together with its very first ACK."""
    client = open_socket(scene.alice, scene.at(scene.bob))
    if with_first_ack:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect((str(scene.at(scene.bob)), PORT))
        client.setblocking(True)  # with a timeout, Python would wait for the connection itself
    else:
        client.settimeout(PATIENCE_S)
        client.connect((str(scene.at(scene.bob)), PORT))
    client.sendall(data)
    client.settimeout(PATIENCE_S)
    return client


def read_all(client: socket.socket) -> bytes:
    answer = b""
    while chunk := client.recv(65536):
        answer += chunk
    return answer


ONE_WAY_S = 0.1
"""Half a round trip: long against what a busy machine adds, and the server kernel's own timer is five round trips."""


def test_a_lost_ack_is_recovered_within_two_round_trips(scene: Scene) -> None:
    """Data provokes a repeated SYN-ACK, which provokes the proof: data, SYN-ACK and proof cross the link once each, so
    Bob has the proof one and a half round trips after Alice wrote, where half of one would have been usual.

    The link's own timeline says so twice: nothing but those three crossed between loss and proof, and the proof came
    back to the router (one round trip after the data, as the router stands at Alice's end) within one and a half. The
    kernel's timer for a SYN-ACK would have taken five.
    """
    link = Link({Kind.PROOF: (DROP,)}, delay_s=ONE_WAY_S)
    with Shim(scene.lab.router, link), begin(scene, b"data", with_first_ack=False) as client:
        assert client.recv(100) == b"data"
    assert link.order[:6] == [Kind.SYN, Kind.SYN_ACK, Kind.PROOF, Kind.DATA, Kind.SYN_ACK, Kind.PROOF]
    (_, (proven, _)) = link.all(Kind.PROOF)[:2]
    written, _ = link.all(Kind.DATA)[0]
    assert proven - written <= 1.5 * 2 * ONE_WAY_S
    scene.expect_one_connection(b"data")


def test_a_lost_first_ack_that_carries_data(scene: Scene) -> None:
    """Alice's kernel sends the data again after its own timer, without the proof; from there as with any lost ACK."""
    link = Link({Kind.PROOF: (DROP,)}, delay_s=ONE_WAY_S)
    with Shim(scene.lab.router, link), begin(scene, b"data", with_first_ack=True) as client:
        assert client.recv(100) == b"data"
    _, lost = link.all(Kind.PROOF)[0]
    assert lost.payload[PROOF:] == b"data"
    assert link.order[:6] == [Kind.SYN, Kind.SYN_ACK, Kind.PROOF, Kind.DATA, Kind.SYN_ACK, Kind.PROOF]
    scene.expect_one_connection(b"data")


def stripped(packet: Packet) -> Pass:
    return Pass(with_tcp(packet, packet.payload[PROOF:], sequence=packet.sequence + PROOF))


def test_a_middlebox_that_strips_the_proof_once(scene: Scene) -> None:
    link = Link()

    def decide(packet: Packet) -> Pass:
        fate = link(packet)
        return stripped(packet) if link.crossed[-1][1] is Kind.PROOF and len(link.all(Kind.PROOF)) == 1 else fate

    with Shim(scene.lab.router, decide), begin(scene, b"data", with_first_ack=False) as client:
        assert client.recv(100) == b"data"
    assert len(link.all(Kind.PROOF)) == 2
    scene.expect_one_connection(b"data")


def test_a_middlebox_that_strips_every_proof(scene: Scene) -> None:
    """Nothing is delivered, as nobody has proved anything, and the agent does not ask for ever."""
    link = Link()

    def decide(packet: Packet) -> Pass:
        fate = link(packet)
        return stripped(packet) if link.crossed[-1][1] is Kind.PROOF else fate

    with Shim(scene.lab.router, decide), open_socket(scene.alice, scene.at(scene.bob)) as client:
        client.settimeout(2)
        client.connect((str(scene.at(scene.bob)), PORT))
        client.sendall(b"data")
        with pytest.raises(TimeoutError):
            client.recv(100)
        # Before the middlebox goes away: Alice's kernel tries again, and would then succeed.
        assert not scene.application.peers
        assert scene.there.drops[DropReason.HOLD_TIMEOUT] >= 1
        assert not scene.there.events


def test_a_stale_conntrack_entry_in_the_router(scene: Scene) -> None:
    """Both ends of a connection died without a word, and Alice uses its port again, with other numbers.

    The router's conntrack still holds the old connection as established. It counts the token into the SYN's end, so
    that Bob's SYN-ACK does not seem to answer it, and drops Alice's ACK as INVALID. The second time Bob's kernel
    repeats its SYN-ACK (after three seconds), the SYN is sent once more, bare, and sets the entry right.
    """
    served = threading.Event()

    def die(connection: socket.socket) -> None:
        assert connection.recv(100) == b"old"
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        connection.close()
        served.set()

    def connect() -> socket.socket:
        client = open_socket(scene.alice, scene.at(scene.bob))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", 43_000))
        client.settimeout(PATIENCE_S)
        client.connect((str(scene.at(scene.bob)), port))
        return client

    port = 81
    with Server(scene.bob, port, die), connect() as client:
        client.sendall(b"old")
        assert served.wait(5)
        client.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    link = Link()
    with Server(scene.bob, port) as again, Shim(scene.lab.router, link), connect() as client:
        client.sendall(b"new")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"new"
        assert again.received == [b"new"]
    syns = [bool(packet.payload_length) for _, packet in link.all(Kind.SYN)]
    assert syns == [True, False]
    assert len(link.all(Kind.SYN_ACK)) >= 3


@dataclass(slots=True)
class HandMade:
    """A client whose every packet is made by hand, in a pod whose kernel keeps quiet; its agent does not know."""

    scene: Scene
    capture: Capture
    network: Callable[[], Any]
    """Makes the layers below TCP, from ``src`` and ``dst`` on."""
    port: int = 44_000
    isn: int = 1000

    def send(self, flags: str, sequence: int, acknowledgement: int = 0, payload: bytes = b"", **tcp: Any) -> None:
        layers = self.network() / ScapyTCP(
            sport=self.port, dport=PORT, seq=sequence, ack=acknowledgement, flags=flags, window=65535, **tcp
        )
        inject(self.scene.alice, bytes(layers / Raw(payload) if payload else layers))

    def converse(self, options: list[Any] | None = None) -> Packet:
        """Say "by hand" to Bob, read it back, and end it; returns Bob's SYN-ACK as it arrived at the pod."""
        self.send("S", self.isn, options=options or [])
        answer = self.capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN | ACK)
        expected = answer.sequence + 1
        self.send("A", self.isn + 1, expected)
        self.send("PA", self.isn + 1, expected, b"by hand")
        echo = self.capture.wait_for(
            lambda packet: packet.source == self.scene.at(self.scene.bob).packed and packet.payload == b"by hand"
        )
        self.send("RA", self.isn + 8, echo.sequence + len(b"by hand"))
        return answer


def plain(scene: Scene) -> Any:
    network = ScapyIP if scene.family == 4 else ScapyIPv6
    return network(src=str(scene.at(scene.alice)), dst=str(scene.at(scene.bob)))


def with_ip_options(scene: Scene) -> Any:
    """Forty octets of IPv4 options, or a destination options header of IPv6."""
    if scene.family == 4:
        nothing = [IPOption(b"\x01") for _ in range(40)]
        return ScapyIP(src=str(scene.at(scene.alice)), dst=str(scene.at(scene.bob)), options=nothing)
    return plain(scene) / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=bytes(28))])


FULL_OPTIONS = [("MSS", 1400), ("SAckOK", b""), ("WScale", 7), ("NOP", None), (253, bytes(28))]
"""Forty octets: the usual ones, and an experiment's (RFC 4727) that nobody knows."""


@pytest.mark.parametrize(
    ("network", "options"),
    [(plain, FULL_OPTIONS), (with_ip_options, []), (with_ip_options, FULL_OPTIONS)],
    ids=["tcp options", "ip options", "both"],
)
def test_headers_with_no_room_left(scene: Scene, network: Callable[[Scene], Any], options: list[Any]) -> None:
    """The token rides behind headers of any length, and leaves their options as they are."""
    with silenced_kernel(scene.alice), Capture(scene.alice) as capture, Capture(scene.bob) as at_bob:
        HandMade(scene, capture, lambda: network(scene)).converse(options)
        syn = at_bob.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN)
        proof = at_bob.wait_for(lambda packet: not packet.flags & SYN and messages.is_message(packet.payload))
    assert messages.is_message(syn.payload)
    assert syn.length <= wire.PATH_MTU
    assert proof.payload_length == PROOF
    headers = syn.body - {4: 40, 6: 60}[scene.family]
    assert headers == (40 if options else 0) + (0 if network is plain else {4: 40, 6: 32}[scene.family])
    scene.expect_one_connection(b"by hand")
    assert not scene.here.drops
    assert not scene.there.drops


def test_multipath_tcp(scene: Scene) -> None:
    """Its keys are in the options of all three packets, and it has not fallen back to plain TCP at the end."""

    def mptcp_socket(pod: LabPod) -> socket.socket:
        kind = family_of(scene.at(scene.bob))
        try:
            return pod.run(lambda: socket.socket(kind, socket.SOCK_STREAM, _IPPROTO_MPTCP))
        except OSError as error:
            pytest.skip(f"this kernel has no MPTCP: {error}")

    def is_multipath(one: socket.socket) -> bool:
        # struct mptcp_info: seven octets of counts and limits, a hole, then flags; bit 0: fell back, bit 1: keys known
        (flags,) = struct.unpack_from("I", one.getsockopt(_SOL_MPTCP, _MPTCP_INFO, 64), 8)
        return bool(flags & 0b10 and not flags & 0b01)

    def send() -> None:
        client.sendall(DATA)
        client.shutdown(socket.SHUT_WR)

    with mptcp_socket(scene.bob) as listener, mptcp_socket(scene.alice) as client:
        listener.settimeout(PATIENCE_S)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 82))
        listener.listen()
        client.settimeout(PATIENCE_S)
        client.connect((str(scene.at(scene.bob)), 82))
        with listener.accept()[0] as server:
            server.settimeout(PATIENCE_S)
            sender = threading.Thread(target=send)
            sender.start()
            assert digest(read_all(server)) == digest(DATA)
            sender.join()
            assert is_multipath(client)
            assert is_multipath(server)
    assert scene.there.events[0].peer_proven


@contextlib.contextmanager
def untracked(lab: Lab, *ports: int) -> Iterator[None]:
    """Keep the router's conntrack out of it, which takes two SYNs that cross for one connection and drops one."""
    rule = f"tcp sport {{ {', '.join(map(str, ports))} }} notrack"
    chain = f"chain early {{\ntype filter hook prerouting priority raw\n{rule}\n}}"
    lab.router.command("nft", "-f", "-", stdin=f"table inet trm_untracked {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        lab.router.command("nft", "delete", "table", "inet", "trm_untracked")


def test_simultaneous_open_opens_no_door(scene: Scene) -> None:
    """Two SYNs cross and would make a connection in which nobody was the server: both are dropped, and it ends in the
    applications' patience."""
    link = Link({Kind.SYN: (Pass(delay_s=0.3), Pass(delay_s=0.3))})
    ports = {scene.alice: 4001, scene.bob: 4002}

    def connect(pod: LabPod, other: LabPod) -> type[BaseException] | None:
        with open_socket(pod, scene.at(pod)) as one:
            one.bind(("", ports[pod]))
            one.settimeout(0.8)  # before the SYN is repeated
            with contextlib.suppress(TimeoutError):
                one.connect((str(scene.at(other)), ports[other]))
                return None
            return TimeoutError

    scene.there.set_policy("bob", Rules(ingress=("alice",), egress=("alice",)))
    with untracked(scene.lab, 4001, 4002), Shim(scene.lab.router, link), ThreadPoolExecutor(2) as both:
        ends = both.map(connect, (scene.alice, scene.bob), (scene.bob, scene.alice))
        assert list(ends) == [TimeoutError, TimeoutError]
    assert link.order == [Kind.SYN, Kind.SYN]
    for node in (scene.here, scene.there):
        assert node.drops[DropReason.SIMULTANEOUS_OPEN] == 1
    assert not scene.here.events
    assert not scene.there.events
    assert digest(scene.ask()) == digest(DATA)


def test_a_syn_in_answer_to_a_syn(scene: Scene) -> None:
    """Mallory is somebody whom Alice may call and who may not call Alice. To Alice's SYN she answers with one of her
    own, which Alice's kernel would take."""
    mallory = scene.at(scene.mallory)
    scene.here.set_policy("alice", Rules(ingress=("bob",), egress=("bob", mallory.packed)))
    with (
        silenced_kernel(scene.mallory), Capture(scene.mallory) as capture,
        open_socket(scene.alice, mallory) as client,
    ):  # fmt: skip
        client.setblocking(False)
        client.connect_ex((str(mallory), PORT))
        syn = capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN)
        inject(scene.mallory, segment(mallory, PORT, scene.at(scene.alice), syn.source_port or 0, sequence=7))
        with pytest.raises(TimeoutError):
            capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN | ACK, timeout=0.5)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    assert scene.here.drops == {DropReason.SIMULTANEOUS_OPEN: 1}
    assert digest(scene.ask()) == digest(DATA)


def test_the_end_of_a_connection_is_no_special_case(scene: Scene) -> None:
    """A client that writes and closes at once, its proof lost: the FIN waits with the data and arrives after it."""
    link = Link({Kind.PROOF: (DROP,)})
    with Shim(scene.lab.router, link), begin(scene, b"last words", with_first_ack=False) as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"last words"
    assert not any(packet.flags & RST for _, _, packet in link.crossed)
    assert any(packet.flags & FIN for _, _, packet in link.crossed)
    scene.expect_one_connection(b"last words")

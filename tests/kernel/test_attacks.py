"""The guarantees of the exchange, each by an attack on a real kernel.

Each attack leaves exactly one count under its own reason, no byte reaches an application that should not, and the next
honest connection works.

::

    alice ──┐
    bob   ──┤ router
    mallory ┘

Alice (client) and Bob (server) are held by two nodes. Mallory has root in her own pod, sees what the test captured for
her, spoofs any source address, and nobody's agent watches her.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from agent.lab import Lab, LabPod, LabService
from tests.harness.hostile import Capture, Pass, Shim, altered, inject, segment, silenced_kernel
from tests.harness.node import PSK, TRUST_DOMAIN, Node, Rules, make_identity, pki
from tests.harness.traffic import IP, Server, ask, open_socket, refused
from trireme_py import messages, wire
from trireme_py.auth import Authenticator
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.model import Address, DropReason
from trireme_py.packet import ACK, SYN, Packet, with_tcp

pytestmark = pytest.mark.kernel

PORT = 80


@dataclass(frozen=True, slots=True)
class World:
    lab: Lab
    alice: LabPod
    bob: LabPod
    mallory: LabPod
    service: LabService
    """Leads to Mallory."""


@pytest.fixture
def world() -> Iterator[World]:
    """New for each test: a connection of an earlier one that is not quite over would be counted, and seen."""
    with Lab("attack") as lab:
        alice, bob, mallory = (lab.add_pod(name) for name in ("alice", "bob", "mallory"))
        yield World(lab, alice, bob, mallory, lab.add_service(mallory, port=PORT, target_port=PORT))


@dataclass(slots=True)
class Scene:
    """Alice may ask Bob, and Bob answers only Alice."""

    world: World
    family: int
    here: Node
    there: Node
    application: Server
    """Bob's."""

    def at(self, where: LabPod | LabService) -> IP:
        return where.ipv4 if self.family == 4 else where.ipv6

    def honest_connection(self, message: bytes = b"honest") -> None:
        assert ask(self.world.alice, self.at(self.world.bob), PORT, message) == message

    def captured_handshake(self) -> tuple[Packet, Packet, Packet]:
        """An honest connection's SYN, SYN-ACK and proof as they are on the wire."""
        with Capture(self.world.bob) as capture:
            self.honest_connection(b"captured")
            syn = capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN)
            syn_ack = capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN | ACK)
            proof = capture.wait_for(lambda packet: messages.is_message(packet.payload) and not packet.flags & SYN)
        return syn, syn_ack, proof

    def expect(
        self, *, at_bob: dict[DropReason, int] | None = None, at_alice: dict[DropReason, int] | None = None
    ) -> None:
        """The attack left these counts and nothing else, Bob's application read nothing of it, and honesty works."""
        deadline = time.monotonic() + 15
        wanted = (Counter(at_alice or {}), Counter(at_bob or {}))
        while (self.here.drops, self.there.drops) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (self.here.drops, self.there.drops) == wanted
        assert set(self.application.received) <= {b"captured", b"honest"}
        self.honest_connection()
        assert not self.here.guard.crashes
        assert not self.there.guard.crashes


@pytest.fixture
def scene(world: World, family: int) -> Iterator[Scene]:
    with Node(world.lab.router) as here, Node(world.lab.router) as there, Server(world.bob, PORT) as application:
        here.hold(world.alice, "alice", Rules(egress=("bob", "mallory")))
        there.hold(world.bob, "bob", Rules(ingress=("alice",)))
        yield Scene(world, family, here, there, application)


def test_a_captured_syn_replayed_from_a_third_pod(scene: Scene) -> None:
    """Mallory gets a SYN-ACK, as anybody with Alice's SYN does, and cannot go on from there."""
    world, mallory = scene.world, scene.at(scene.world.mallory)
    syn, _, _ = scene.captured_handshake()
    with silenced_kernel(world.mallory), Capture(world.mallory) as capture:
        inject(world.mallory, altered(syn, source=mallory.packed))
        answer = capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN | ACK)
        forged = segment(
            mallory, syn.source_port or 0, scene.at(world.bob), PORT, sequence=syn.sequence + 1,
            acknowledgement=answer.sequence + 1, flags="A",
        )  # fmt: skip
        inject(world.mallory, forged)
        scene.expect(at_bob={DropReason.UNPROVEN: 1})


def test_data_without_a_proof(scene: Scene) -> None:
    world, mallory = scene.world, scene.at(scene.world.mallory)
    syn, _, _ = scene.captured_handshake()
    with silenced_kernel(world.mallory), Capture(world.mallory) as capture:
        inject(world.mallory, altered(syn, source=mallory.packed))
        answer = capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN | ACK)
        data = segment(
            mallory, syn.source_port or 0, scene.at(world.bob), PORT, sequence=syn.sequence + 1,
            acknowledgement=answer.sequence + 1, flags="PA", payload=b"let me in",
        )  # fmt: skip
        inject(world.mallory, data)
        scene.expect(at_bob={DropReason.HOLD_TIMEOUT: 1})


def test_a_captured_syn_replayed_as_it_was(scene: Scene) -> None:
    """From Alice's own address and port, long after: Bob's kernel may answer, to Alice, who knows of nothing."""
    syn, _, _ = scene.captured_handshake()
    inject(scene.world.mallory, altered(syn, source_port=50_001))
    scene.expect(at_alice={DropReason.NO_STATE: 1})


def test_a_captured_syn_replayed_to_its_own_sender(scene: Scene) -> None:
    """The ancestor took a pod's own SYN for proof of being that pod."""
    world = scene.world
    syn, _, _ = scene.captured_handshake()
    mallory, alice = scene.at(world.mallory), scene.at(world.alice)
    scene.here.set_policy("alice", Rules(ingress=("alice",), egress=("bob",)))
    with Server(world.alice, PORT) as application, silenced_kernel(world.mallory), Capture(world.mallory) as capture:
        inject(world.mallory, altered(syn, source=mallory.packed, destination=alice.packed))
        answer = capture.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN | ACK)
        reflected = segment(
            mallory, syn.source_port or 0, alice, PORT, sequence=syn.sequence + 1 - wire.ACK.size,
            acknowledgement=answer.sequence + 1, flags="A",
            payload=wire.HEADER.pack(wire.MAGIC, 1, 3, 1, 0, wire.ACK.size, 0) + answer.payload[80:96],
        )  # fmt: skip
        inject(world.mallory, reflected)
        scene.expect(at_alice={DropReason.BAD_MAC: 1})
        assert not application.peers


FLIPS = {
    "magic": (0, DropReason.POLICY, None),
    "version": (4, DropReason.VERSION, None),
    "type": (5, DropReason.MALFORMED_MESSAGE, None),
    "length": (9, DropReason.MALFORMED_MESSAGE, None),
    "identity": (12, DropReason.MALFORMED_ASSERTION, None),
    "nonce": (28, None, DropReason.BAD_MAC),
    "assertion": (60, DropReason.MALFORMED_ASSERTION, None),
}
"""Field of the SYN -> offset of the octet altered, and the reason that counts at Bob's or at Alice's side."""


@pytest.mark.parametrize("field", FLIPS)
def test_a_syn_altered_on_its_way(scene: Scene, field: str) -> None:
    offset, at_bob, at_alice = FLIPS[field]
    altered_once: list[int] = []

    def decide(packet: Packet) -> Pass:
        if packet.flags & (SYN | ACK) == SYN and packet.payload_length and not altered_once:
            altered_once.append(1)
            payload = bytearray(packet.payload)
            payload[offset] ^= 0x02
            return Pass(with_tcp(packet, bytes(payload)))
        return Pass()

    with Shim(scene.world.lab.router, decide):
        with open_socket(scene.world.alice, scene.at(scene.world.bob)) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.connect((str(scene.at(scene.world.bob)), PORT))
        assert altered_once
        scene.expect(at_bob={at_bob: 1} if at_bob else {}, at_alice={at_alice: 1} if at_alice else {})


SYN_ACK_FLIPS = {"identity": 12, "nonce": 28, "server address": 59, "client address": 75, "port": 77, "mac": 80}


@pytest.mark.parametrize("field", SYN_ACK_FLIPS)
def test_a_syn_ack_altered_on_its_way(scene: Scene, field: str) -> None:
    altered_once: list[int] = []
    reason = DropReason.MALFORMED_ASSERTION if field == "identity" else DropReason.BAD_MAC

    def decide(packet: Packet) -> Pass:
        if packet.flags & (SYN | ACK) == SYN | ACK and not altered_once:
            altered_once.append(1)
            payload = bytearray(packet.payload)
            payload[SYN_ACK_FLIPS[field]] ^= 0x01
            return Pass(with_tcp(packet, bytes(payload)))
        return Pass()

    with Shim(scene.world.lab.router, decide):
        with open_socket(scene.world.alice, scene.at(scene.world.bob)) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.connect((str(scene.at(scene.world.bob)), PORT))
        scene.expect(at_alice={reason: 1})


def test_a_forged_syn_ack(scene: Scene) -> None:
    """Somebody on the path answers in Bob's name, with Bob's own assertion, but without his key."""
    syn_fixed: list[bytes] = []
    forged: list[int] = []

    def decide(packet: Packet) -> Pass:
        if packet.flags & (SYN | ACK) == SYN:
            syn_fixed.append(packet.payload[: wire.SYN.size])
        if packet.flags & (SYN | ACK) == SYN | ACK and not forged:
            forged.append(1)
            real = messages.decode_syn_ack_untrusted(packet.payload)
            payload = messages.encode_syn_ack(
                syn_fixed[0], real.id, bytes(16), real.server, real.client, real.assertion, key=bytes(32)
            )
            return Pass(with_tcp(packet, payload))
        return Pass()

    with Shim(scene.world.lab.router, decide):
        with open_socket(scene.world.alice, scene.at(scene.world.bob)) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.connect((str(scene.at(scene.world.bob)), PORT))
        assert forged
        scene.expect(at_alice={DropReason.BAD_MAC: 1})


def test_a_forged_ack(scene: Scene) -> None:
    altered_once: list[int] = []

    def decide(packet: Packet) -> Pass:
        if not packet.flags & SYN and messages.is_message(packet.payload) and not altered_once:
            altered_once.append(1)
            payload = bytearray(packet.payload)
            payload[-1] ^= 0x01
            return Pass(with_tcp(packet, bytes(payload)))
        return Pass()

    with Shim(scene.world.lab.router, decide), open_socket(scene.world.alice, scene.at(scene.world.bob)) as client:
        client.settimeout(5)
        client.connect((str(scene.at(scene.world.bob)), PORT))
        # Alice's data asks for the proof again: what was forged cost a round trip, and nothing else.
        client.sendall(b"honest")
        assert client.recv(100) == b"honest"
    assert scene.there.drops[DropReason.BAD_MAC] == 1


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("another trust domain", DropReason.TRUST_DOMAIN),
        ("a stranger's key", DropReason.UNKNOWN_SIGNER),
        ("expired", DropReason.EXPIRED),
        ("not yet valid", DropReason.NOT_YET_VALID),
        ("a node of another authority", DropReason.UNKNOWN_SIGNER),
        ("a node, where a pre-shared key is used", DropReason.MALFORMED_ASSERTION),
    ],
)
def test_a_token_that_nobody_should_believe(world: World, family: int, who: str, reason: DropReason) -> None:
    strangers: dict[str, Authenticator] = {
        "another trust domain": PskAuthenticator(PSK, "elsewhere.example"),
        "a stranger's key": PskAuthenticator(b"quite another key, of 32 octets or more", TRUST_DOMAIN),
        "a node of another authority": pki("mallory", "another authority"),
        "a node, where a pre-shared key is used": pki("one"),
    }
    stranger = strangers.get(who, PskAuthenticator(PSK, TRUST_DOMAIN))
    believer = pki("two") if who == "a node of another authority" else None
    lifetime = {"expired": (-7200, -3600), "not yet valid": (3600, 7200)}.get(who, (0, 3600))
    address: IP = world.bob.ipv4 if family == 4 else world.bob.ipv6
    with (
        Node(world.lab.router, authenticator=stranger) as here,
        Node(world.lab.router, authenticator=believer) as there,
    ):
        here.hold(world.alice, "alice", identity=make_identity(stranger, "alice", lifetime=lifetime))
        there.hold(world.bob, "bob", Rules(ingress=("alice",)))
        with Server(world.bob, PORT) as application:
            assert refused(world.alice, address, PORT, timeout=0.5)
            assert there.drops == {reason: 1}
            assert not application.peers


@pytest.mark.parametrize("masquerade", [False, True])
@pytest.mark.parametrize("through_service", [False, True])
def test_a_relay_through_an_approved_pod(family: int, through_service: bool, masquerade: bool) -> None:
    """Alice may talk to Mallory. Mallory hands Alice's messages on to Bob, to hold a connection that Bob takes for
    Alice's; every MAC is right, only the addresses tell."""
    with Lab("relay") as lab:
        alice, bob, mallory = (lab.add_pod(name) for name in ("alice", "bob", "mallory"))
        service = lab.add_service(mallory, port=PORT, target_port=PORT)
        if masquerade:
            lab.masquerade(mallory, bob)

        def at(where: LabPod | LabService) -> IP:
            return where.ipv4 if family == 4 else where.ipv6

        dialled = at(service) if through_service else at(mallory)
        with (
            Node(lab.router) as here, Node(lab.router) as there, Server(bob, PORT) as application,
            silenced_kernel(mallory), Capture(mallory) as capture, open_socket(alice, dialled) as client,
        ):  # fmt: skip
            here.hold(alice, "alice")
            there.hold(bob, "bob", Rules(ingress=("alice",)))
            client.setblocking(False)
            client.connect_ex((str(dialled), PORT))
            syn = capture.wait_for(_is_syn_to(at(mallory).packed))
            inject(mallory, altered(syn, source=at(mallory).packed, destination=at(bob).packed, source_port=45_000))
            answer = capture.wait_for(
                lambda packet: packet.flags & (SYN | ACK) == SYN | ACK and packet.source == at(bob).packed
            )
            inject(mallory, altered(
                answer, source=at(mallory).packed, destination=syn.source, source_port=PORT,
                destination_port=syn.source_port,
            ))  # fmt: skip
            deadline = time.monotonic() + 0.8
            while not here.drops and time.monotonic() < deadline:
                time.sleep(0.02)
            assert here.drops == {DropReason.RELAYED: 1}
            assert not application.peers
            client.close()
            assert ask(alice, at(bob), PORT) == b"hello"


def _is_syn_to(address: Address) -> Callable[[Packet], bool]:
    return lambda packet: packet.flags & (SYN | ACK) == SYN and packet.destination == address


def test_a_late_copy_of_the_proof(scene: Scene) -> None:
    """To a server that speaks first, from a client that says nothing: a copy must be old data, never read."""
    world = scene.world
    heard: list[bytes] = []

    def banner(connection: socket.socket) -> None:
        connection.sendall(b"220 ready")
        connection.settimeout(1)
        try:
            heard.append(connection.recv(100))
        except TimeoutError:
            heard.append(b"nothing")
            connection.sendall(b"still here")

    with (
        Server(world.bob, 25, banner), Capture(world.bob) as capture,
        open_socket(world.alice, scene.at(world.bob)) as client,
    ):  # fmt: skip
        client.settimeout(5)
        client.connect((str(scene.at(world.bob)), 25))
        assert client.recv(9) == b"220 ready"
        proof = capture.wait_for(lambda packet: messages.is_message(packet.payload) and not packet.flags & SYN)
        for _ in range(3):
            inject(world.mallory, proof.data)
        assert client.recv(100) == b"still here"
    assert heard == [b"nothing"]
    scene.expect()


def test_a_second_syn_cannot_disturb_the_first(scene: Scene) -> None:
    """Mallory spoofs SYNs of Alice's address and port with other numbers while Alice's handshake is under way."""
    world = scene.world
    syn, _, _ = scene.captured_handshake()
    spoofed: list[int] = []

    def decide(packet: Packet) -> Pass:
        if packet.flags & (SYN | ACK) == SYN | ACK and not spoofed:
            spoofed.append(1)
            again = replace(syn, source_port=packet.destination_port)
            inject(world.mallory, altered(syn, source_port=again.source_port))
            return Pass(delay_s=0.05)
        return Pass()

    with Shim(world.lab.router, decide):
        scene.honest_connection()
    assert spoofed

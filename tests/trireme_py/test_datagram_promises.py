"""What an attacker, a resolver or a policy change could do to UDP flows and must not.

Two or three pods, each with a data path of its own, and a wire that delivers at once. Marks work as the rules do
(docs/datapath.md): a marked flow passes by the data path unless the datagram has a surplus.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from struct import pack
from typing import Final

import pytest

from tests.harness import assertions
from tests.harness.standin_policy import OPEN, only_from, only_to
from trireme_py.assertion import identity_id
from trireme_py.datagram_server import again_towards_sender
from trireme_py.datapath import Caught, Datapath
from trireme_py.endpoint import DatapathSettings, tuple_of
from trireme_py.flows import Tuple5
from trireme_py.identities import Identities, LocalIdentity
from trireme_py.model import DropReason, Hook, Instant, PlainLabels, PolicyView, Protocol, Verdict
from trireme_py.networks import NetworkSet
from trireme_py.packet import internet_checksum, parse_packet_untrusted, pseudo_header
from trireme_py.pairing import AgreementKey
from trireme_py.surplus import read_datagram_untrusted
from trireme_py.wire import MessageType

PODS: Final = "10.1.0.0/16"
SERVICE: Final = bytes((10, 1, 9, 9))
MS: Final = 1_000_000
DNS: Final = 53


def datagram(source: bytes, sport: int, destination: bytes, dport: int, payload: bytes) -> bytes:
    """A whole IPv4 packet, checksums right."""
    length = 8 + len(payload)
    pseudo = pseudo_header(source, destination, Protocol.UDP, length)
    checksum = internet_checksum(pseudo + pack("!HHHH", sport, dport, length, 0) + payload) or 0xFFFF
    header = bytearray(b"\x45\0" + pack("!H", 20 + length) + b"\0\0\x40\0\x40\x11\0\0" + source + destination)
    header[10:12] = internet_checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + pack("!HHHH", sport, dport, length, checksum) + payload


@dataclass(eq=False)
class Pod:
    network: Network
    name: str
    address: bytes
    datapath: Datapath
    marks: dict[Tuple5, int] = field(default_factory=dict)
    epoch: int = 1
    held: dict[int, tuple[Hook, bytes]] = field(default_factory=dict)
    read: list[bytes] = field(default_factory=list)
    """What the application has read."""

    def send(self, payload: bytes, to: Pod | bytes, sport: int = 40_000, dport: int = DNS) -> None:
        destination = to if isinstance(to, bytes) else to.address
        self.meet(Hook.APPLICATION, datagram(self.address, sport, destination, dport, payload))
        self.network.run()

    def set_policy(self, policy: PolicyView) -> None:
        self.datapath.set_policy(0, policy)
        self.epoch += 1

    @property
    def drops(self) -> Counter[DropReason]:
        return self.datapath.drops

    def meet(self, hook: Hook, data: bytes) -> None:
        packet = parse_packet_untrusted(data)
        tuple5 = tuple_of(packet, leaving=hook is Hook.APPLICATION)
        if self.marks.get(tuple5) == self.epoch and not read_datagram_untrusted(packet).surplus:
            self.go_on(hook, data)
            return
        self.network.tickets += 1
        ticket = self.network.tickets
        [result] = self.datapath.receive(self.network.now, 0, hook, [Caught(ticket, data)])
        if result.verdict is Verdict.HOLD:
            self.held[ticket] = (hook, data)
        else:
            self.answer(hook, data, result.verdict, result.packet)
        for own in (*result.send, *(own for _, own in self.datapath.take_sends())):
            self.meet(Hook.APPLICATION, own)
        for release in result.release:
            self.answer(*self.held.pop(release.ticket), release.verdict, release.packet)

    def answer(self, hook: Hook, original: bytes, verdict: Verdict, packet: bytes | None) -> None:
        if verdict is Verdict.DROP:
            return
        tuple5 = tuple_of(parse_packet_untrusted(original), leaving=hook is Hook.APPLICATION)
        if verdict is Verdict.ACCEPT:
            self.marks[tuple5] = self.epoch
        elif verdict is Verdict.PASS_CLEAR:
            self.marks.pop(tuple5, None)
        self.go_on(hook, packet or original)

    def go_on(self, hook: Hook, data: bytes) -> None:
        if hook is Hook.APPLICATION:
            self.network.wire.append(data)
            self.network.seen.append(data)
            return
        packet = parse_packet_untrusted(data)
        got = read_datagram_untrusted(packet)
        if not got.sealed:
            self.read.append(got.payload)


class Network:
    """Delivers at once; ``backend`` is where the Service's address leads."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        self.mono_ns = 10**12
        self.tickets = 0
        self.wire: list[bytes] = []
        self.seen: list[bytes] = []
        self.pods: dict[bytes, Pod] = {}
        self.backend: Pod | None = None

    @property
    def now(self) -> Instant:
        return Instant(self.mono_ns, assertions.NOW + self.mono_ns / 10**9 - 1000)

    def pod(self, name: str, last: int, policy: PolicyView) -> Pod:
        authenticator = assertions.psk_authenticator()
        key = AgreementKey.generate(self.random.randbytes)
        claims = assertions.claims(
            agreement_key=key.public, namespace="n", pod=name, labels=PlainLabels({"app": name}), named_ports=()
        )
        assertion = authenticator.issue(claims, self.random.randbytes(8))
        datapath = Datapath(
            Identities(authenticator),
            DatapathSettings(NetworkSet([PODS]), NetworkSet([PODS])),
            entropy=self.random.randbytes,
            translate=lambda *_: (self.backend.address, DNS) if self.backend else None,
        )
        address = bytes((10, 1, 0, last))
        identity = LocalIdentity(identity_id(assertion), assertion, key, assertions.NOW + 3000)
        datapath.add_endpoint(0, f"n/{name}", (address,), identity, policy)
        pod = self.pods[address] = Pod(self, name, address, datapath)
        return pod

    def run(self) -> None:
        while self.wire:
            self.deliver(self.wire.pop(0))

    def deliver(self, data: bytes) -> None:
        """Carry a packet, through the Service's translation if it goes there."""
        packet = parse_packet_untrusted(data)
        pod = self.backend if packet.destination == SERVICE else self.pods.get(packet.destination)
        if pod is None:
            return
        if packet.destination == SERVICE:
            data = retarget(data, 16, pod.address)
        elif self.backend is not None and packet.source == self.backend.address:
            data = retarget(data, 12, SERVICE)
        pod.meet(Hook.NETWORK, data)

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass in steps that are short beside every deadline."""
        for _ in range(milliseconds // 10):
            self.mono_ns += 10 * MS
            for pod in self.pods.values():
                for _, release in pod.datapath.expire(self.now):
                    pod.answer(*pod.held.pop(release.ticket), release.verdict, release.packet)
                for _, own in pod.datapath.take_sends():
                    pod.meet(Hook.APPLICATION, own)
            self.run()

    def messages(self) -> list[str]:
        """What was on the wire, by type; a datagram without a message is ``-``."""
        read = [read_datagram_untrusted(parse_packet_untrusted(data)) for data in self.seen]
        return [MessageType(one.message[5]).name if one.message else "-" for one in read]


def retarget(data: bytes, offset: int, address: bytes) -> bytes:
    """Translate one address as a router does: the UDP checksum is corrected by the difference, not made anew."""
    changed = bytearray(data)
    old = int.from_bytes(changed[offset : offset + 4], "big")
    changed[offset : offset + 4] = address
    changed[10:12] = b"\0\0"
    changed[10:12] = internet_checksum(bytes(changed[:20])).to_bytes(2, "big")
    checksum = int.from_bytes(changed[26:28], "big")
    checksum = (checksum + old - int.from_bytes(address, "big")) % 0xFFFF or 0xFFFF
    changed[26:28] = checksum.to_bytes(2, "big")
    return bytes(changed)


@pytest.fixture
def network() -> Network:
    return Network()


def proven_pair(network: Network) -> tuple[Pod, Pod]:
    """A client and a server, isolated both, with one proven flow behind them."""
    client, server = network.pod("client", 1, only_to("n/server")), network.pod("server", 2, only_from("n/client"))
    client.send(b"first", server)
    server.send(b"answer", client, DNS, 40_000)
    assert (server.read, client.read) == ([b"first"], [b"answer"])
    server.read.clear()
    client.read.clear()
    network.seen.clear()
    return client, server


def moved_service(network: Network) -> tuple[Pod, Pod, Pod]:
    """A client, the server that a flow of its was accepted with, and the pod that the Service leads to since."""
    client = network.pod("client", 1, only_to("n/server"))
    server, other = network.pod("server", 2, only_from("n/client")), network.pod("other", 3, OPEN)
    network.backend = server
    client.send(b"to server", SERVICE)
    network.backend = other
    network.pass_time(60_000)
    return client, server, other


def test_first_flow_is_hello_answer_proof_and_the_second_proves_itself(network: Network) -> None:
    client, server = proven_pair(network)
    client.send(b"again", server, 40_001)
    server.send(b"answer", client, DNS, 40_001)
    assert (server.read, client.read) == ([b"again"], [b"answer"])
    assert network.messages() == ["RESUME", "CONFIRM"]


def test_a_policy_change_cuts_a_young_flow_at_the_server_for_good(network: Network) -> None:
    client, server = proven_pair(network)
    server.set_policy(only_from("n/somebody"))
    for number in range(5):
        client.send(b"%d" % number, server)
    assert server.read == []


def test_a_policy_change_cuts_a_young_flow_at_the_client_for_good(network: Network) -> None:
    client, server = proven_pair(network)
    client.set_policy(only_to("n/somebody"))
    for number in range(3):
        client.send(b"%d" % number, server)
        server.send(b"%d" % number, client, DNS, 40_000)
    assert (server.read, client.read) == ([], [])


def test_a_policy_change_between_confirmation_and_proof_is_heeded(network: Network) -> None:
    client, server = proven_pair(network)
    client.send(b"again", server, 40_001)
    server.send(b"answer", client, DNS, 40_001)
    client.set_policy(only_to("n/somebody"))
    server.read.clear()
    client.send(b"and again", server, 40_001)
    assert server.read == []


def test_two_queries_of_one_socket_are_both_answered(network: Network) -> None:
    """As glibc asks for A and AAAA: the second query is on its way when the first answer comes."""
    client, server = proven_pair(network)
    one, two = (datagram(client.address, 40_001, server.address, DNS, query) for query in (b"A", b"AAAA"))
    client.meet(Hook.APPLICATION, one)
    network.deliver(network.wire.pop())
    client.meet(Hook.APPLICATION, two)
    late = network.wire.pop()
    server.send(b"a", client, DNS, 40_001)
    network.deliver(late)
    server.send(b"aaaa", client, DNS, 40_001)
    assert server.read == [b"A", b"AAAA"]
    assert client.read == [b"a", b"aaaa"]


def test_a_flow_that_nobody_confirms_stops_proving_itself(network: Network) -> None:
    """The Service leads elsewhere now: what that backend gets to see must have an end."""
    client, server = network.pod("client", 1, only_to("n/server")), network.pod("server", 2, only_from("n/client"))
    impostor = network.pod("impostor", 3, OPEN)
    network.backend = server
    client.send(b"first", SERVICE)
    assert server.read == [b"first"]
    network.pods.pop(impostor.address)  # it has no agent, and reads what arrives
    network.backend = impostor
    network.seen.clear()
    impostor.meet = lambda hook, data: None  # type: ignore[method-assign]
    for number in range(40):
        client.send(b"%d" % number, SERVICE, 40_001)
        network.pass_time(500)
    seen = [read_datagram_untrusted(parse_packet_untrusted(data)) for data in network.seen]
    assert len([one for one in seen if one.payload]) <= 4


def test_a_policy_change_ends_what_proves_itself_datagram_by_datagram(network: Network) -> None:
    client, server = proven_pair(network)
    client.send(b"one", server, 40_001)
    client.set_policy(only_to("n/somebody"))
    client.send(b"two", server, 40_001)
    assert server.read == [b"one"]


def test_a_large_first_datagram_reaches_a_server_that_asks(network: Network) -> None:
    """As QUIC begins: 1,200 octets. Nothing holds at the client, whose egress is open."""
    client, server = network.pod("client", 1, OPEN), network.pod("server", 2, only_from("n/client"))
    client.send(bytes(1200), server)
    assert server.read == [bytes(1200)]


def test_a_lost_hello_of_an_open_client_is_repeated(network: Network) -> None:
    client, server = network.pod("client", 1, OPEN), network.pod("server", 2, only_from("n/client"))
    client.meet(Hook.APPLICATION, datagram(client.address, 40_000, server.address, 514, b"lost"))
    network.wire.clear()
    for number in range(10):
        client.send(b"%d" % number, server, dport=514)
        network.pass_time(100)
    assert b"9" in server.read


def test_one_refused_backend_does_not_shut_the_service_for_the_other(network: Network) -> None:
    client = network.pod("client", 1, only_to("n/server"))
    server, other = network.pod("server", 2, only_from("n/client")), network.pod("other", 3, OPEN)
    network.backend = other
    client.send(b"to other", SERVICE)
    network.backend = server
    client.send(b"to server", SERVICE, 40_001)
    assert (other.read, server.read) == ([], [b"to server"])


def test_an_old_flow_does_not_follow_a_service_to_another_backend(network: Network) -> None:
    """The flow is marked in the pod's namespace, and the node's translation changes underneath it. The other backend's
    agent says that it does not know the flow: what was sent until then is all that it gets."""
    client, server, other = moved_service(network)
    client.send(b"all of one round trip", SERVICE)
    client.send(b"to server", SERVICE)
    network.pass_time(2_000)
    client.send(b"to server", SERVICE)
    assert other.read == [b"all of one round trip"]
    network.backend = server
    network.pass_time(2_000)
    client.send(b"back again", SERVICE)
    assert server.read == [b"to server", b"back again"]


def test_an_answer_of_the_other_backend_does_not_revive_the_flow(network: Network) -> None:
    """It comes right behind its agent's AGAIN, or later. Nobody reads it, and the client's next datagram waits."""
    client, _, other = moved_service(network)
    client.meet(Hook.APPLICATION, datagram(client.address, 40_000, SERVICE, DNS, b"all of one round trip"))
    network.deliver(network.wire.pop())
    other.meet(Hook.APPLICATION, datagram(other.address, DNS, client.address, 40_000, b"a forged answer"))
    network.run()
    for _ in range(3):
        client.send(b"to server", SERVICE)
        other.send(b"another", client, DNS, 40_000)
        network.pass_time(20_000)
    assert (client.read, other.read) == ([], [b"all of one round trip"])


def test_an_answer_that_meets_a_forged_again_is_read_when_the_server_is_known(network: Network) -> None:
    client, server = proven_pair(network)
    again = again_towards_sender(
        parse_packet_untrusted(datagram(client.address, 40_000, server.address, DNS, b"whatever"))
    )
    client.meet(Hook.NETWORK, again)
    server.meet(Hook.APPLICATION, datagram(server.address, DNS, client.address, 40_000, b"late"))
    assert client.read == []
    network.run()
    assert client.read == [b"late"]
    client.send(b"more", server)
    assert server.read == [b"more"]


def test_a_new_pod_at_an_old_flow_s_address_and_port_does_not_inherit_it(network: Network) -> None:
    client, server = proven_pair(network)
    stranger = network.pod("stranger", 1, OPEN)
    assert stranger.address == client.address
    for number in range(3):
        stranger.send(b"%d" % number, server)
    assert server.read == []


def test_a_server_that_was_refused_is_sent_nothing_more(network: Network) -> None:
    """The Service changes hands: the first flow finds out, and the next must not send its data before asking."""
    client = network.pod("client", 1, only_to("n/server"))
    server, other = network.pod("server", 2, only_from("n/client")), network.pod("other", 3, OPEN)
    network.backend = server
    client.send(b"to server", SERVICE)
    network.backend = other
    client.send(b"finds out", SERVICE, 40_001)
    assert client.drops[DropReason.POLICY]
    network.seen.clear()
    client.send(b"must wait", SERVICE, 40_002)
    assert not [data for data in network.seen if b"must wait" in data]

"""Odd UDP on a real kernel: the cases of docs/udp.md, client and server isolated both, through a strict router."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, UDP

from agent.lab import Lab, LabPod, LabService
from tests.harness.node import Node, Rules
from tests.harness.traffic import open_socket
from trireme_py.model import DropReason, Reason

pytestmark = pytest.mark.kernel

PORT = 5300
SO_NO_CHECK = 11
UDP_SEGMENT = 103
IPPROTO_UDPLITE = 136


@dataclass(frozen=True, slots=True)
class World:
    client: LabPod
    server: LabPod
    bare: LabPod
    """A pod without an agent."""
    service: LabService
    here: Node
    there: Node
    family: int

    def at(self, where: LabPod | LabService) -> str:
        return str(where.ipv4 if self.family == 4 else where.ipv6)

    def open(self, pod: LabPod, port: int = 0) -> socket.socket:
        opened = open_socket(pod, pod.ipv4 if self.family == 4 else pod.ipv6, socket.SOCK_DGRAM)
        opened.settimeout(15)
        opened.bind(("", port))
        return opened


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Lab, LabPod, LabPod, LabPod, LabService]]:
    with Lab("cases") as lab:
        client, server, bare = (lab.add_pod(name) for name in ("client", "server", "bare"))
        yield lab, client, server, bare, lab.add_service(server, port=53, target_port=PORT)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest, lab: tuple[Lab, LabPod, LabPod, LabPod, LabService]) -> Iterator[World]:
    network, client, server, bare, service = lab
    with Node(network.router) as here, Node(network.router) as there:
        here.hold(client, "client", Rules(egress=("server",)))
        there.hold(server, "server", Rules(ingress=("client",)))
        yield World(client, server, bare, service, here, there, request.param)


def receive(opened: socket.socket, count: int) -> list[bytes]:
    return [opened.recvfrom(70_000)[0] for _ in range(count)]


def wait_for(holds: Callable[[], bool]) -> None:
    """A packet that is dropped tells nobody: look until its verdict is there."""
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline, "no verdict"
        time.sleep(0.01)


def silence(opened: socket.socket) -> None:
    opened.settimeout(0.5)
    with pytest.raises(TimeoutError):
        opened.recv(100)
    opened.settimeout(15)


def test_segmentation_offload_keeps_every_datagram_and_their_order(world: World) -> None:
    pieces = [bytes([number]) * 1000 for number in range(10)]
    with world.open(world.server, PORT) as server, world.open(world.client) as client:
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        client.sendto(b"".join(pieces), (world.at(world.server), PORT))
        assert receive(server, 10) == pieces
        client.sendto(b"".join(pieces), (world.at(world.server), PORT))  # marked: they stay in the kernel
        assert receive(server, 10) == pieces


def test_a_datagram_of_many_fragments_is_one_datagram(world: World) -> None:
    large = os.urandom(20_000)
    with world.open(world.server, PORT) as server, world.open(world.client) as client:
        client.sendto(large, (world.at(world.service), 53))
        data, peer = server.recvfrom(70_000)
        server.sendto(large[::-1], peer)
        assert (data, client.recv(70_000)) == (large, large[::-1])
        server.sendto(b"small", peer)
        assert client.recv(100) == b"small"


def test_an_answer_too_large_to_be_confirmed_within_it_arrives(world: World) -> None:
    """The second flow begins with RESUME; its answer has no room for the CONFIRM, and then is made of fragments."""
    with world.open(world.server, PORT) as server:
        for size in (10, 1272, 4000):
            with world.open(world.client) as client:
                client.sendto(b"question", (world.at(world.service), 53))
                _, peer = server.recvfrom(100)
                server.sendto(bytes(size), peer)
                assert client.recv(70_000) == bytes(size)


def test_datagrams_without_a_checksum_pass(world: World) -> None:
    if world.family == 6:
        pytest.skip("IPv6 has no datagrams without a checksum (RFC 8200, section 8.1)")
    with world.open(world.server, PORT) as server:
        for number in range(3):
            with world.open(world.client) as client:
                client.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
                for text in (b"one", b"two"):
                    client.sendto(text, (world.at(world.server), PORT))
                assert receive(server, 2) == [b"one", b"two"], number


def test_one_socket_talks_to_many_and_connecting_it_changes_nothing(world: World) -> None:
    one, two, client = world.open(world.server, PORT), world.open(world.server, PORT + 1), world.open(world.client)
    with one, two, client:
        for port in (PORT, PORT + 1, PORT):
            client.sendto(b"%d" % port, (world.at(world.server), port))
        assert (receive(one, 2), receive(two, 1)) == ([b"5300", b"5300"], [b"5301"])
        client.connect((world.at(world.service), 53))
        client.send(b"connected")
        _, peer = one.recvfrom(100)
        one.sendto(b"answer", peer)
        assert client.recv(100) == b"answer"


def test_a_client_that_changes_its_port_goes_on(world: World) -> None:
    """As QUIC migrates: datagrams of 1,200 octets, which have no room for a proof of their own."""
    with world.open(world.server, PORT) as server:
        for number in range(3):
            with world.open(world.client) as client:
                for piece in range(3):
                    client.sendto(bytes([number, piece]) * 600, (world.at(world.server), PORT))
                assert receive(server, 3) == [bytes([number, piece]) * 600 for piece in range(3)]


def test_an_answer_from_another_port_is_another_flow(world: World) -> None:
    with world.open(world.server, PORT) as server, world.open(world.server, PORT + 1) as other:
        with world.open(world.client) as client:
            client.sendto(b"question", (world.at(world.server), PORT))
            _, peer = server.recvfrom(100)
            other.sendto(b"from elsewhere", peer)
            assert client.recv(100) == b"from elsewhere"  # the client's ingress is open
        world.here.set_policy("client", Rules(ingress=(), egress=("server",)))
        with world.open(world.client) as client:
            client.sendto(b"question", (world.at(world.server), PORT))
            _, peer = server.recvfrom(100)
            other.sendto(b"from elsewhere", peer)
            silence(client)
            server.sendto(b"answer", peer)
            assert client.recv(100) == b"answer"


def test_a_peer_without_an_agent_reads_nothing_sealed(world: World) -> None:
    with world.open(world.bare, PORT) as bare, world.open(world.client) as client:
        client.sendto(b"secret", (world.at(world.bare), PORT))
        silence(bare)
    with world.open(world.server, PORT) as server, world.open(world.bare) as client:
        client.sendto(b"unidentified", (world.at(world.server), PORT))
        silence(server)
    assert world.here.drops[DropReason.POLICY] == 1


def test_somebody_else_s_options_arrive_as_they_were_sent(world: World) -> None:
    if world.family == 6:
        pytest.skip("sent by hand, in IPv4")
    options = b"\0\0\x02\x06\x01\x02\x03\x04"
    with world.open(world.server, PORT) as server, world.open(world.client, 40_000) as client:
        client.sendto(b"plain", (world.at(world.server), PORT))
        assert receive(server, 1) == [b"plain"]
        udp = UDP(sport=40_000, dport=PORT, len=8 + 6, chksum=0)
        packet = bytes(IP(src=world.at(world.client), dst=world.at(world.server)) / udp / (b"optiON" + options))
        raw = world.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        watch = world.server.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP))
        with raw, watch:
            watch.settimeout(15)
            raw.sendto(packet, (world.at(world.server), 0))
            assert receive(server, 1) == [b"optiON"]
            arrived = watch.recv(2000)
        assert arrived[28:] == b"optiON" + options


def test_udp_lite_is_judged_by_address(world: World) -> None:
    """By its verdicts: connection tracking of the router calls UDP-Lite invalid, with or without us."""
    family = socket.AF_INET if world.family == 4 else socket.AF_INET6
    address = world.server.addresses[world.family == 6]
    try:
        client = world.client.run(lambda: socket.socket(family, socket.SOCK_DGRAM, IPPROTO_UDPLITE))
    except OSError:
        pytest.skip("this kernel has no UDP-Lite")
    with client:
        client.sendto(b"refused", (world.at(world.server), PORT))
        wait_for(lambda: len(world.here.events) == 1)
        world.here.set_policy("client", Rules(egress=(address,)))
        client.sendto(b"allowed", (world.at(world.server), PORT))
        wait_for(lambda: len(world.here.events) == 2)
    assert [(event.protocol, event.decision.reason) for event in world.here.events] == [
        (IPPROTO_UDPLITE, Reason.UNIDENTIFIED),
        (IPPROTO_UDPLITE, Reason.IPBLOCK),
    ]

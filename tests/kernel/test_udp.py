"""Identity on UDP on a real kernel: real sockets, rules, queues, conntrack, translation, and real programs.

::

    client ──┐
    server ──┤ router: Service addresses, INVALID dropped
    other  ──┘

``client`` and ``server`` are held by two nodes, each with its own data path; ``other`` has no agent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.lab import Lab, LabPod, LabService
from tests.harness.hostile import Capture, inject
from tests.harness.node import OPEN, HeldPod, Node, Rules
from tests.harness.segments import udp
from tests.harness.surplus import is_udp, kind_of_datagram, with_surplus
from tests.harness.traffic import IP, open_socket
from tests.harness.udp_traffic import Echo, query, unanswered
from trireme_py.model import Direction, DropReason, Reason

pytestmark = pytest.mark.kernel

PORT = 53
SERVICE_PORT = 5353
SO_NO_CHECK = 11  # include/uapi/asm-generic/socket.h
UDP_SEGMENT = 103  # include/uapi/linux/udp.h
IP_PMTUDISC_DONT = 0
ETH_P_ALL = 3


@dataclass(frozen=True, slots=True)
class Network:
    lab: Lab
    client: LabPod
    server: LabPod
    other: LabPod
    service: LabService


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Lab("udp") as lab:
        client, server, other = (lab.add_pod(name) for name in ("client", "server", "other"))
        service = lab.add_service(server, port=SERVICE_PORT, target_port=PORT)
        yield Network(lab, client, server, other, service)


@pytest.fixture
def nodes(network: Network) -> Iterator[tuple[Node, Node]]:
    with Node(network.lab.router) as here, Node(network.lab.router) as there:
        yield here, there


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> int:
    version: int = request.param
    return version


def at(where: LabPod | LabService, family: int) -> IP:
    return where.ipv4 if family == 4 else where.ipv6


POLICIES = {
    "none": (OPEN, OPEN),
    "client": (Rules(egress=("server",), port=PORT), OPEN),
    "server": (OPEN, Rules(ingress=("client",), port=PORT)),
    "both": (Rules(egress=("server",), port=PORT), Rules(ingress=("client",), port=PORT)),
}


def hold_both(network: Network, nodes: tuple[Node, Node], isolated: str = "both") -> tuple[HeldPod, HeldPod]:
    mine, theirs = POLICIES[isolated]
    return nodes[0].hold(network.client, "client", mine), nodes[1].hold(network.server, "server", theirs)


def healthy(*nodes: Node) -> None:
    """Nothing crashed, nothing was lost between shell and kernel, and only the exchange's own datagrams were dropped."""
    for node in nodes:
        assert node.guard.crashes == 0
        assert set(node.drops) <= {DropReason.CONSUMED}, node.drops
        for held in node.pods.values():
            counters = held.queue.counters
            assert (counters.verdict_failures, counters.send_failures, counters.lost_tickets) == (0, 0, 0)


@pytest.mark.parametrize("isolated", POLICIES)
@pytest.mark.parametrize("via", ["direct", "service"])
def test_identity_decides(network: Network, nodes: tuple[Node, Node], family: int, isolated: str, via: str) -> None:
    here, there = nodes
    hold_both(network, nodes, isolated)
    target, port = (network.server, PORT) if via == "direct" else (network.service, SERVICE_PORT)
    with Echo(network.server, PORT) as server:
        messages = [b"question %d" % number for number in range(6)]
        for message in messages:
            assert query(network.client, at(target, family), port, message) == b"re:" + message
        assert server.received == messages
        healthy(here, there)
        here.set_policy("client", Rules(egress=("somebody else",)))
        assert unanswered(network.client, at(target, family), port)
        here.set_policy("client", OPEN)
        there.set_policy("server", Rules(ingress=("somebody else",)))
        assert unanswered(network.client, at(target, family), port)
        assert server.received == messages
    denied = [event for event in (*here.events, *there.events) if not event.decision.allowed]
    assert {event.decision.reason for event in denied} <= {Reason.NO_MATCH, Reason.UNIDENTIFIED}
    if isolated in ("server", "both"):
        allowed = [event for event in there.events if event.decision.allowed and event.direction is Direction.INGRESS]
        assert all(event.peer is not None and event.peer.name == "test/client" for event in allowed[:6])
        assert all(event.peer_proven for event in allowed[:6])


@pytest.mark.parametrize("isolated", ["client", "server", "both"])
def test_identity_survives_masquerade(family: int, isolated: str) -> None:
    with Lab("udpnat") as lab:
        client, server = lab.add_pod("client"), lab.add_pod("server")
        service = lab.add_service(server, port=SERVICE_PORT, target_port=PORT)
        lab.masquerade(client, server)
        mine, theirs = POLICIES[isolated]
        with Node(lab.router) as here, Node(lab.router) as there, Echo(server, PORT) as listening:
            here.hold(client, "client", mine)
            there.hold(server, "server", theirs)
            for target, port in ((server, PORT), (service, SERVICE_PORT)):
                for number in range(4):
                    message = b"%d %d" % (port, number)
                    assert query(client, at(target, family), port, message) == b"re:" + message
            gateway = server.gateway4 if family == 4 else server.gateway6
            assert {peer for peer, _ in listening.peers} == {str(gateway)}
            healthy(here, there)


class Wire:
    """Every UDP packet on a pod's ``eth0``, as it is on the wire."""

    def __init__(self, pod: LabPod) -> None:
        def listen() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
            sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
            sniffer.bind(("eth0", ETH_P_ALL))
            return sniffer

        self._socket = pod.run(listen)
        self._socket.setblocking(False)

    def packets(self) -> list[bytes]:
        """What has passed since the last call."""
        read = []
        with contextlib.suppress(BlockingIOError):
            while True:
                read.append(self._socket.recv(1 << 16))
        return [data for data in read if is_udp(data)]

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_a_peer_without_an_agent_reads_what_was_sent(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, _ = nodes
    here.hold(network.client, "client", OPEN)
    payloads = [bytes(range(256)) * 4, b"", b"x", bytes(1472 if family == 4 else 1452), b"odd"]
    with Echo(network.other, PORT, answers=lambda data: data) as other:
        for payload in payloads:
            assert query(network.client, at(network.other, family), PORT, payload) == payload
        assert other.received == payloads
    healthy(here)


def test_a_peer_s_own_options_are_left_as_they_are(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    """Datagrams with a surplus of the application's own, octet by octet on both wires, in both directions."""
    here, there = nodes
    hold_both(network, nodes)
    source, target = at(network.client, family), at(network.server, family)
    options = b"\x05\x06\x05\xdc\x00\x00"
    with Echo(network.server, PORT) as server, Wire(network.server) as wire:
        assert query(network.client, target, PORT, source_port=40_123) == b"re:question"
        for sport, payload in ((40_123, b"on an accepted flow"), (40_124, b"warm"), (40_125, b"warm, odd")):
            data = with_surplus(udp((source.packed, sport), (target.packed, PORT), payload), options)
            inject(network.client, data)
            deadline = time.monotonic() + 3
            while payload not in server.received and time.monotonic() < deadline:
                time.sleep(0.01)
            assert payload in server.received
            start = 20 if family == 4 else 40
            assert any(packet[start:] == data[start:] for packet in wire.packets())
    assert here.guard.crashes == there.guard.crashes == 0


@pytest.mark.parametrize("peer", ["silent", "denied"])
def test_nothing_leaks_from_ten_thousand_fresh_ports(
    network: Network, nodes: tuple[Node, Node], family: int, peer: str
) -> None:
    """With egress denied to it, the peer's socket reads nothing, and no datagram with data reaches its wire."""
    here, there = nodes
    here.hold(network.client, "client", Rules(egress=("somebody else",)))
    there.hold(network.server, "server", OPEN)
    pod = network.other if peer == "silent" else network.server
    target = at(pod, family)
    with Echo(pod, PORT) as listening, Wire(pod) as wire:
        data: list[bytes] = []
        sent = network.client.run(lambda: _send_from_fresh_ports(target, range(20_000, 30_000)))
        assert sent == 10_000
        deadline = time.monotonic() + 10
        while here.pods["client"].queue.held and time.monotonic() < deadline:
            data += wire.packets()
            time.sleep(0.05)
        data += wire.packets()
        assert listening.received == []
        assert not [one for one in data if b"secret" in one]
    assert here.guard.crashes == 0
    assert here.pods["client"].queue.held == 0


def _send_from_fresh_ports(target: IP, ports: range) -> int:
    """One datagram from each port, a hundred in a row and then a breath for the queue."""
    kind = socket.AF_INET if target.version == 4 else socket.AF_INET6
    sent = 0
    for port in ports:
        with socket.socket(kind, socket.SOCK_DGRAM) as one:
            one.bind(("", port))
            one.sendto(b"secret %d" % port, (str(target), PORT))
            sent += 1
        if port % 100 == 99:
            time.sleep(0.01)
    return sent

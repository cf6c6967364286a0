"""What a pod may send to its own node: TCP that the node itself answers, whatever policy says, and nothing else."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.lab import Lab, LabNamespace, LabPod
from tests.harness.node import Rules
from tests.harness.own_node import OwnNode
from tests.harness.traffic import IP, REFUSAL_S, Server, ask, open_socket, refused
from tests.harness.udp_traffic import Echo

pytestmark = pytest.mark.kernel

PORT, NODE_PORT = 10250, 30080
NOBODY = Rules(egress=())


@dataclass(frozen=True, slots=True)
class Network:
    client: LabPod
    server: LabPod
    node: LabNamespace


@pytest.fixture
def network() -> Iterator[Network]:
    with Lab("nodeegr") as lab:
        yield Network(lab.add_pod("client"), lab.add_pod("server"), lab.router)


@pytest.fixture
def own_node(network: Network) -> Iterator[OwnNode]:
    with OwnNode(network.node) as own_node:
        yield own_node


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def gateway(request: pytest.FixtureRequest, network: Network) -> IP:
    return network.client.gateway4 if request.param == 4 else network.client.gateway6


def test_the_node_is_reached_and_its_connection_stays(network: Network, own_node: OwnNode, gateway: IP) -> None:
    endpoint = own_node.hold(network.client, "client", network.client.addresses, NOBODY)
    with Server(network.node, PORT), open_socket(network.client, gateway) as client:
        assert refused(network.client, network.server.ipv4, PORT)
        client.settimeout(5)
        client.connect((str(gateway), PORT))
        own_node.enforcement.set_policy(endpoint, Rules(ingress=(), egress=()), 2)
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_what_answers_behind_a_node_port_is_not_the_node(network: Network, own_node: OwnNode, gateway: IP) -> None:
    server = network.server.ipv4 if gateway.version == 4 else network.server.ipv6
    family, target = ("ip", f"{server}") if gateway.version == 4 else ("ip6", f"[{server}]")
    rules = (
        f"table {family} ports {{ chain pre {{ type nat hook prerouting priority dstnat;"
        f" {family} daddr {gateway} tcp dport {NODE_PORT} dnat to {target}:{PORT}; }}; }}"
    )
    network.node.command("nft", "-f", "-", stdin=f"{rules}\n")
    with Server(network.server, PORT) as application:
        assert ask(network.client, gateway, NODE_PORT) == b"hello"
        endpoint = own_node.hold(network.client, "client", network.client.addresses, NOBODY)
        assert refused(network.client, gateway, NODE_PORT)
        assert len(application.peers) == 1
        own_node.enforcement.set_policy(endpoint, Rules(egress=(gateway.packed, server.packed)), 2)
        assert ask(network.client, gateway, NODE_PORT) == b"hello", "what policy allows behind it is reached"


def test_datagrams_are_judged_by_the_node_s_address(network: Network, own_node: OwnNode, gateway: IP) -> None:
    endpoint = own_node.hold(network.client, "client", network.client.addresses, NOBODY)
    with Echo(network.node, PORT) as echo, open_socket(network.client, gateway, socket.SOCK_DGRAM) as client:
        client.settimeout(REFUSAL_S)
        with contextlib.suppress(PermissionError):  # the kernel's way of saying that it was dropped
            client.sendto(b"hello", (str(gateway), PORT))
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert echo.received == []
        own_node.enforcement.set_policy(endpoint, Rules(egress=(gateway.packed,)), 2)
        client.settimeout(5)
        client.sendto(b"hello", (str(gateway), PORT))
        assert client.recv(100) == b"re:hello"

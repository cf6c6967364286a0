"""Everybody who would like to pass as the node of a pod, on a node that routes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from agent.lab import Lab, LabPod
from tests.harness.hostile import inject
from tests.harness.node import Rules
from tests.harness.own_node import NodeOfTwo, OwnNode, never_forwarded
from tests.harness.segments import udp
from tests.harness.traffic import IP, REFUSAL_S, Server, ask, open_socket
from tests.harness.udp_traffic import Echo

pytestmark = pytest.mark.kernel

PORT, NODE_PORT = 80, 30080
NODE_S = "0xc00000"
"""The mark of a connection that the node has opened."""


@pytest.fixture
def network() -> Iterator[NodeOfTwo]:
    with Lab("nodeatk") as lab:
        yield NodeOfTwo(lab, lab.add_pod("client"), lab.add_pod("server"))


@pytest.fixture
def own_node(network: NodeOfTwo) -> Iterator[OwnNode]:
    with OwnNode(network.node) as own_node:
        yield own_node


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def address_of(pod: LabPod, version: int) -> IP:
    return pod.ipv4 if version == 4 else pod.ipv6


def gateway_of(pod: LabPod, version: int) -> IP:
    return pod.gateway4 if version == 4 else pod.gateway6


def marks(pod: LabPod, protocol: str, version: int, *match: str) -> list[str]:
    """The marks of a pod's connections, in hexadecimal."""
    listed = pod.command("conntrack", "-L", "-p", protocol, "-f", f"ipv{version}", *match)
    words = [word for line in listed.splitlines() for word in line.split() if word.startswith("mark=")]
    return [hex(int(word.removeprefix("mark="))) for word in words]


def remember(pod: LabPod, protocol: str, source: IP, sport: int, destination: IP) -> None:
    """Have a pod's conntrack remember a connection that the node once opened, and that neither end knows any more."""
    ends = ("-s", str(source), "-d", str(destination), "--sport", str(sport), "--dport", str(PORT))
    state = ("--state", "ESTABLISHED") if protocol == "tcp" else ()
    pod.command("conntrack", "-I", "-p", protocol, *ends, *state, "-t", "300", "-u", "SEEN_REPLY,ASSURED")
    pod.command("conntrack", "-U", "-p", protocol, *ends, "-m", str(int(NODE_S, 16)))
    assert marks(pod, protocol, source.version, "--sport", str(sport)) == [NODE_S]


def test_a_pod_that_forges_its_node_s_address(network: NodeOfTwo, own_node: OwnNode, version: int) -> None:
    address, gateway = address_of(network.server, version), gateway_of(network.server, version)
    own_node.hold(network.server, "server", network.server.addresses, Rules(ingress=()))
    with Echo(network.server, PORT) as echo:
        datagram = udp((gateway.packed, 4000), (address.packed, PORT), b"forged")
        inject(network.client, never_forwarded(datagram))
        with open_socket(network.node, address, socket.SOCK_DGRAM) as node:
            node.settimeout(REFUSAL_S)
            node.sendto(b"true", (str(address), PORT))
            assert node.recv(100) == b"re:true"
        assert echo.received == [b"true"]


def test_a_stranger_on_ports_that_the_node_has_used(network: NodeOfTwo, own_node: OwnNode, version: int) -> None:
    """Masqueraded to the node's address and the very port of a connection of the node's."""
    lab, server = network.lab, network.server
    address, gateway = address_of(server, version), gateway_of(server, version)
    lab.masquerade(network.client, server)
    endpoint = own_node.hold(server, "server", server.addresses, Rules(ingress=()))
    with Server(server, PORT) as application:
        assert ask(network.node, address, PORT) == b"hello"
        remember(server, "tcp", gateway, 4000, address)
        with pytest.raises(TimeoutError):
            ask(network.client, address, PORT, source_port=4000, timeout=REFUSAL_S)
        assert marks(server, "tcp", version, "--sport", "4000") == [NODE_S]
        own_node.enforcement.set_policy(endpoint, Rules(ingress=(gateway.packed,)), 2)
        own_node.enforcement.lay_epoch(endpoint)
        with open_socket(network.client, address) as client:
            client.settimeout(5)
            client.bind(("", 4001))
            remember(server, "tcp", gateway, 4001, address)
            client.connect((str(address), PORT))
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
            assert application.peers[-1] == (str(gateway), 4001)
            assert marks(server, "tcp", version, "--sport", "4001") == ["0x820000"], "what policy gave him, and no more"


def test_datagrams_of_a_stranger_on_ports_that_the_node_has_used(
    network: NodeOfTwo, own_node: OwnNode, version: int
) -> None:
    server = network.server
    address, gateway = address_of(server, version), gateway_of(server, version)
    network.lab.masquerade(network.client, server)
    own_node.hold(server, "server", server.addresses, Rules(ingress=()))
    with Echo(server, PORT) as echo, open_socket(network.client, address, socket.SOCK_DGRAM) as client:
        remember(server, "udp", gateway, 4000, address)
        client.settimeout(REFUSAL_S)
        client.bind(("", 4000))
        client.sendto(b"hello", (str(address), PORT))
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert echo.received == []


def test_an_error_that_the_node_reports_makes_no_connection_its_own(
    network: NodeOfTwo, own_node: OwnNode, version: int
) -> None:
    """An ICMP error belongs to the connection it tells of: a pod that provokes one must not win that connection."""
    client, nowhere = network.client, "10.77.250.1" if version == 4 else "fd77:250::1"
    network.node.command("ip", f"-{version}", "route", "add", "unreachable", nowhere)
    own_node.hold(client, "client", client.addresses, Rules(egress=(ip_address(nowhere).packed,)))
    counted = ("ip6tables" if version == 6 else "iptables", "-t", "mangle")
    match = ("-m", "hl", "--hl-eq") if version == 6 else ("-m", "ttl", "--ttl-eq")
    client.command(*counted, "-A", "PREROUTING", "-m", "conntrack", "--ctstate", "RELATED", *match, "255")
    with client.run(lambda: socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6)) as one:
        one.settimeout(REFUSAL_S)
        with pytest.raises(OSError, match=r"timed out|(?i:unreachable|no route|permission)"):
            one.connect((nowhere, 9))
    assert " 1 " in client.command(*counted, "-nvxL", "PREROUTING").splitlines()[-1], (
        "it came, and from the node itself"
    )
    assert NODE_S not in marks(client, "udp", version)

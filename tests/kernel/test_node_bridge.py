"""Neighbours on one bridge who want to pass as their node.

::

    neighbour ──┐
    server    ──┴── cni0, 10.77.200.1, in the node's namespace

What a bridge switches is not routed, so nothing makes its hop limit smaller. ``server`` is isolated: it lets
nobody in.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from agent import netns
from agent.lab import LabNamespace
from tests.harness.hostile import inject
from tests.harness.node import Rules
from tests.harness.own_node import OwnNode, never_forwarded
from tests.harness.segments import udp
from tests.harness.traffic import IP, REFUSAL_S, Server, ask, family_of, open_socket
from tests.harness.udp_traffic import Echo

pytestmark = pytest.mark.kernel

PORT, NODE_PORT = 80, 30080
GATEWAY = (IPv4Address("10.77.200.1"), IPv6Address("fd77:200::1"))
NODE_PORTS = f"""
table inet node {{
  chain pre {{
    type nat hook prerouting priority dstnat;
    ip daddr {GATEWAY[0]} tcp dport {NODE_PORT} dnat ip to 10.77.200.3:{PORT}
    ip6 daddr {GATEWAY[1]} tcp dport {NODE_PORT} dnat ip6 to [fd77:200::3]:{PORT}
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    ct status dnat masquerade
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Bridged(LabNamespace):
    """A pod on the bridge."""

    addresses: tuple[IP, IP]


@dataclass(frozen=True, slots=True)
class Network:
    node: LabNamespace
    neighbour: Bridged
    server: Bridged


def _namespace(name: str) -> tuple[str, Path]:
    name = f"trm-nodebr-{os.getpid()}-{name}"
    return name, netns.create(name)


@pytest.fixture
def network() -> Iterator[Network]:
    node = LabNamespace(*_namespace("node"))
    pods = [
        Bridged(*_namespace(name), (IPv4Address(f"10.77.200.{number}"), IPv6Address(f"fd77:200::{number}")))
        for number, name in ((2, "neighbour"), (3, "server"))
    ]
    try:
        for setting in ("ipv4.conf.all.forwarding=1", "ipv6.conf.all.forwarding=1"):
            node.command("sysctl", "-qw", f"net.{setting}")
        node.command("ip", "link", "add", "cni0", "type", "bridge")
        for address, bits in zip(GATEWAY, (24, 64), strict=True):
            node.command("ip", "address", "add", f"{address}/{bits}", "dev", "cni0", "nodad")
        node.command("ip", "link", "set", "cni0", "up")
        for index, pod in enumerate(pods):
            port = f"veth{index}"
            node.command("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pod.name)
            node.command("ip", "link", "set", port, "master", "cni0", "up")
            for address, bits in zip(pod.addresses, (24, 64), strict=True):
                pod.command("ip", "address", "add", f"{address}/{bits}", "dev", "eth0", "nodad")
            pod.command("ip", "link", "set", "eth0", "up")
            for gateway in GATEWAY:
                pod.command("ip", "route", "add", "default", "via", str(gateway))
        yield Network(node, pods[0], pods[1])
    finally:
        for one in (*pods, node):
            netns.remove(one.path)


def through_iptables(network: Network, *, switched_on: bool) -> None:
    """What br_netfilter does, which kube-proxy asks for."""
    for family in ("iptables", "ip6tables"):
        network.node.command("sysctl", "-qw", f"net.bridge.bridge-nf-call-{family}={int(switched_on)}")


@pytest.fixture
def own_node(network: Network) -> Iterator[OwnNode]:
    """``server`` under enforcement, and its node's rules."""
    with OwnNode(network.node) as own_node, Server(network.server, PORT):
        own_node.hold(
            network.server,
            "server",
            tuple(address.packed for address in network.server.addresses),
            Rules(ingress=()),
        )
        yield own_node


def reaches(namespace: LabNamespace, address: IP, port: int) -> bool:
    """Tell whether somebody who sends with 255 connects."""
    with open_socket(namespace, address) as client:
        client.settimeout(REFUSAL_S)
        if family_of(address) == socket.AF_INET:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        else:
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        try:
            client.connect((str(address), port))
        except TimeoutError:
            return False
        return True


@pytest.mark.parametrize("address", GATEWAY, ids=("IPv4", "IPv6"))
def test_a_node_port_on_a_bridge_that_translates_what_it_switches(
    network: Network, own_node: OwnNode, address: IP
) -> None:
    """With br_netfilter the translated packet is switched to its new destination: with 255, and the node's address."""
    through_iptables(network, switched_on=True)
    network.node.command("nft", "-f", "-", stdin=NODE_PORTS)
    server = network.server.addresses[GATEWAY.index(address)]
    assert ask(network.node, server, PORT) == b"hello"
    assert not reaches(network.neighbour, address, NODE_PORT)
    iptables = "iptables" if address.version == 4 else "ip6tables"
    network.node.command(iptables, "-t", "mangle", "-F", "TRM-HOST-POD")
    assert reaches(network.neighbour, address, NODE_PORT), "that is what the node's rules are for"
    own_node.enforcement.verify()
    assert not reaches(network.neighbour, address, NODE_PORT)
    assert ask(network.node, server, PORT) == b"hello"


@pytest.mark.parametrize("address", GATEWAY, ids=("IPv4", "IPv6"))
def test_a_forged_frame(network: Network, own_node: OwnNode, address: IP) -> None:
    """Without br_netfilter no rule sees what goes from one port of the bridge to another: docs/datapath.md says so."""
    server = network.server.addresses[GATEWAY.index(address)]
    hardware = json.loads(network.server.command("ip", "-j", "link", "show", "eth0"))[0]["address"]
    neighbour = ("neighbour", "replace", str(server), "lladdr", hardware, "dev", "eth0", "nud", "permanent")
    network.neighbour.command("ip", *neighbour)
    with Echo(network.server, PORT) as echo:
        for switched_on in (True, False):
            through_iptables(network, switched_on=switched_on)
            datagram = udp((address.packed, 4000), (server.packed, PORT), b"forged")
            inject(network.neighbour, never_forwarded(datagram))
            with open_socket(network.node, server, socket.SOCK_DGRAM) as node:
                node.settimeout(REFUSAL_S)
                node.sendto(b"true", (str(server), PORT))
                assert node.recv(100) == b"re:true"
            assert echo.received == ([b"true"] if switched_on else [b"true", b"forged", b"true"])


def test_a_bridge_that_iptables_does_not_see_is_warned_of(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    network.node.command("ip", "link", "add", "elsewhere", "type", "bridge")
    network.node.command("ip", "address", "add", "192.0.2.1/24", "dev", "elsewhere")
    for switched_on in (True, False):
        through_iptables(network, switched_on=switched_on)
        with OwnNode(network.node):
            warned = [record.__dict__["fields"]["bridge"] for record in caplog.records]
        assert warned == ([] if switched_on else ["cni0"])

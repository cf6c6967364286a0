"""What pods know of their node follows the node, and what the node does for them stays in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from agent.lab import Lab, LabNamespace, LabPod
from tests.harness.node import Rules
from tests.harness.own_node import OwnNode
from tests.harness.traffic import REFUSAL_S, Server, ask, open_socket, refused

pytestmark = pytest.mark.kernel

PORT = 80


@dataclass(frozen=True, slots=True)
class Network:
    lab: Lab
    server: LabPod

    @property
    def node(self) -> LabNamespace:
        return self.lab.router


@pytest.fixture
def network() -> Iterator[Network]:
    with Lab("nodechg") as lab:
        yield Network(lab, lab.add_pod("server"))


@pytest.fixture
def own_node(network: Network) -> Iterator[OwnNode]:
    with OwnNode(network.node) as own_node, Server(network.server, PORT):
        own_node.hold(network.server, "server", network.server.addresses, Rules(ingress=()))
        yield own_node


@pytest.mark.parametrize("text", ["10.99.0.1", "fd99::1"])
def test_an_address_that_the_node_gets_later(network: Network, own_node: OwnNode, text: str) -> None:
    address = network.server.ipv4 if "." in text else network.server.ipv6

    def from_there() -> bool:
        with open_socket(network.node, address) as client:
            client.settimeout(REFUSAL_S)
            client.bind((text, 0))
            try:
                client.connect((str(address), PORT))
            except TimeoutError:
                return False
            return True

    # Without a look for duplicates: an IPv6 address can be bound to at once.
    network.node.command("ip", "address", "add", text, "dev", "lo", *(["nodad"] if ":" in text else []))
    assert not from_there()
    own_node.enforcement.follow_node()
    assert from_there()
    assert ask(network.node, address, PORT) == b"hello"
    network.node.command("ip", "address", "del", text, "dev", "lo")
    own_node.enforcement.follow_node()
    rules = network.server.command("iptables" if "." in text else "ip6tables", "-t", "mangle", "-S", "TRM-NODE")
    assert text not in rules
    assert "-s " in rules


def test_an_interface_that_is_down_has_no_address_to_send_from(network: Network, own_node: OwnNode) -> None:
    """kube-proxy's IPVS mode keeps every Service address on one."""
    node = network.node
    node.command("ip", "link", "add", "services", "type", "bridge")
    node.command("ip", "address", "add", "10.98.0.1/32", "dev", "services")
    own_node.enforcement.follow_node()
    assert ip_address("10.98.0.1").packed not in own_node.rules.own.addresses
    node.command("ip", "link", "set", "services", "up")
    own_node.enforcement.follow_node()
    assert ip_address("10.98.0.1").packed in own_node.rules.own.addresses


def test_the_node_s_rules_are_laid_again(network: Network, own_node: OwnNode, caplog: pytest.LogCaptureFixture) -> None:
    own_node.enforcement.verify()
    assert not caplog.records
    network.node.command("iptables", "-t", "mangle", "-F")
    assert refused(network.node, network.server.ipv4, PORT)
    assert ask(network.node, network.server.ipv6, PORT) == b"hello"
    own_node.enforcement.verify()
    assert ask(network.node, network.server.ipv4, PORT) == b"hello"
    assert [record.message for record in caplog.records] == [
        "the node's rules had been changed by somebody else and were laid again"
    ]

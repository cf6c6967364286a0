"""The node as an endpoint: it reaches its pods whatever policy says, with or without an agent, and nobody else does.

::

      client ──┐
      server ──┴── router: the node of both, with every Service and every masquerade of the lab

``server`` is isolated, and lets nobody in.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.lab import Lab, LabNamespace, LabPod
from agent.rules_restore import Variant
from tests.harness.agent_process import AgentProcess, Configuration, trireme
from tests.harness.own_node import NodeOfTwo
from tests.harness.traffic import IP, REFUSAL_S, Server, ask, family_of, open_socket, refused
from tests.harness.udp_traffic import Echo

pytestmark = pytest.mark.kernel

PORT = 80
NODE_PORT = 30080
NOBODY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: shop}
spec: {podSelector: {matchLabels: {app: server}}, ingress: [%s]}
"""


@pytest.fixture
def network() -> Iterator[NodeOfTwo]:
    with Lab("node") as lab:
        yield NodeOfTwo(lab, lab.add_pod("client"), lab.add_pod("server"))


@pytest.fixture(params=["nft", "legacy", "python-iptables"])
def rules(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def configuration(network: NodeOfTwo, tmp_path: Path, rules: str) -> Iterator[Configuration]:
    configuration = Configuration(tmp_path, str(network.node.path), rules=rules)
    configuration.pod("client", network.client)
    configuration.pod("server", network.server)
    configuration.write("policy.yaml", NOBODY % "")
    with Server(network.server, PORT):
        yield configuration
    done = trireme("cleanup", "--runtime-directory", str(configuration.runtime))
    assert done.returncode == 0, done.stderr
    for namespace in (network.node, network.client, network.server):
        assert ours(namespace) == []


def ours(namespace: LabNamespace) -> list[str]:
    """Every rule and chain of ours in a namespace, both families and both variants."""
    saved = "".join(namespace.command(f"{ip}-{v.value}-save") for ip in ("iptables", "ip6tables") for v in Variant)
    return [line for line in saved.splitlines() if "TRM" in line]


def addresses(pod: LabPod) -> tuple[IP, IP]:
    return pod.ipv4, pod.ipv6


def pings(namespace: LabNamespace, address: IP, *options: str) -> bool:
    command = ["ping", "-c", "1", "-W", str(REFUSAL_S), *options, str(address)]
    return namespace.run(lambda: subprocess.run(command, capture_output=True, check=False)).returncode == 0


def told(namespace: LabNamespace, address: IP, port: int) -> bool:
    """Tell whether a datagram is answered."""
    with open_socket(namespace, address, socket.SOCK_DGRAM) as client:
        client.settimeout(REFUSAL_S)
        client.sendto(b"hello", (str(address), port))
        try:
            return client.recv(100) == b"re:hello"
        except TimeoutError:
            return False


def converses(connection: socket.socket) -> bool:
    connection.sendall(b"still there")
    return connection.recv(100) == b"still there"


def test_the_node_reaches_its_pods_with_the_agent_and_without(network: NodeOfTwo, configuration: Configuration) -> None:
    server, node = network.server, network.node
    held = []
    with Echo(server, PORT), AgentProcess(configuration) as agent:
        for address in addresses(server):
            assert refused(network.client, address, PORT)
            assert ask(node, address, PORT) == b"hello"
            assert told(node, address, PORT)
            assert pings(node, address)
            assert not pings(network.client, address)
            held.append(open_socket(node, address))
            held[-1].settimeout(5)
            held[-1].connect((str(address), PORT))
        with agent.after("policy in force", "shop/server"):
            configuration.write("policy.yaml", NOBODY % "{from: [{podSelector: {matchLabels: {app: else}}}]}")
        assert all(map(converses, held)), "another policy cuts no connection of the node"
        agent.end(signal.SIGKILL)
        assert all(map(converses, held))
        for address in addresses(server):
            assert ask(node, address, PORT) == b"hello", "the node needs no agent"
            assert told(node, address, PORT)
            assert pings(node, address)
            assert refused(network.client, address, PORT)
    for one in held:
        one.close()


def test_what_is_masqueraded_to_the_node_s_address_is_not_the_node(
    network: NodeOfTwo, configuration: Configuration
) -> None:
    """As through a NodePort: translated, and with the node's address for a source. The client sends 255 itself."""
    service = network.lab.add_service(network.server, port=NODE_PORT, target_port=PORT)
    network.lab.masquerade(network.client, network.server)

    def reach(address: IP) -> bytes:
        with open_socket(network.client, address) as client:
            client.settimeout(REFUSAL_S)
            if family_of(address) == socket.AF_INET:
                client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
            else:
                client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
            client.connect((str(address), NODE_PORT))
            client.sendall(b"hello")
            return client.recv(100)

    for address in (service.ipv4, service.ipv6):
        assert reach(address) == b"hello", "without an agent it gets there"
    with AgentProcess(configuration):
        for address in (service.ipv4, service.ipv6):
            with pytest.raises(TimeoutError):
                reach(address)
        for address in addresses(network.server):
            assert not pings(network.client, address, "-t", "255")
            assert ask(network.node, address, PORT) == b"hello"

"""The exchange on a real kernel: who gets through, who does not, and that nobody else notices.

::

    client ──┐
    server ──┤ router: Service addresses, masquerade, INVALID dropped
    other  ──┘

``client`` and ``server`` are held by two nodes, each with its own data path; ``other`` has no agent.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import pytest

from agent.lab import Lab, LabPod, LabService
from tests.harness.node import OPEN, Node, Rules, pki
from tests.harness.traffic import IP, Server, ask, open_socket, refused
from trireme_py.model import Direction, DropReason, FlowEvent, Reason

pytestmark = pytest.mark.kernel

PORT = 80
SERVICE_PORT = 8080


@dataclass(frozen=True, slots=True)
class Network:
    lab: Lab
    client: LabPod
    server: LabPod
    other: LabPod
    service: LabService


@pytest.fixture
def network() -> Iterator[Network]:
    """New for each test: a connection of an earlier one that is not quite over would be counted, and seen."""
    with Lab("exchange") as lab:
        client, server, other = (lab.add_pod(name) for name in ("client", "server", "other"))
        service = lab.add_service(server, port=SERVICE_PORT, target_port=PORT)
        yield Network(lab, client, server, other, service)


@pytest.fixture
def nodes(network: Network) -> Iterator[tuple[Node, Node]]:
    with Node(network.lab.router) as here, Node(network.lab.router) as there:
        yield here, there


def at(where: LabPod | LabService, family: int) -> IP:
    return where.ipv4 if family == 4 else where.ipv6


def announced(node: Node, direction: Direction) -> list[FlowEvent]:
    return [event for event in node.events if event.direction is direction]


def test_identity_decides_at_the_server(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, there = nodes
    here.hold(network.client, "client")
    there.hold(network.server, "server", Rules(ingress=("client",)))
    with Server(network.server, PORT) as server:
        assert ask(network.client, at(network.server, family), PORT) == b"hello"
        server.wait_until_over()
        there.set_policy("server", Rules(ingress=("somebody else",)))
        assert refused(network.client, at(network.server, family), PORT)
        assert server.received == [b"hello"]
    allowed, denied = announced(there, Direction.INGRESS)
    assert (allowed.decision.reason, allowed.peer_proven) == (Reason.POLICY, True)
    assert allowed.peer is not None
    assert allowed.peer.name == "test/client"
    assert (denied.decision.reason, denied.peer_proven) == (Reason.NO_MATCH, False)
    assert set(there.drops) == {DropReason.POLICY}


def test_identity_decides_at_the_client(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, there = nodes
    here.hold(network.client, "client", Rules(egress=("server",)))
    there.hold(network.server, "server")
    with Server(network.server, PORT) as server:
        assert ask(network.client, at(network.server, family), PORT) == b"hello"
        server.wait_until_over()
        here.set_policy("client", Rules(egress=("somebody else",)))
        assert refused(network.client, at(network.server, family), PORT)
        assert server.received == [b"hello"]
    assert [event.decision.allowed for event in announced(here, Direction.EGRESS)] == [True, False]
    assert all(event.peer_proven for event in announced(here, Direction.EGRESS))


@pytest.mark.parametrize("masquerade", [False, True])
def test_identity_survives_translation(family: int, masquerade: bool) -> None:
    with Lab("nat") as lab:
        client, server = lab.add_pod("client"), lab.add_pod("server")
        service = lab.add_service(server, port=SERVICE_PORT, target_port=PORT)
        if masquerade:
            lab.masquerade(client, server)
        with Node(lab.router) as here, Node(lab.router) as there, Server(server, PORT) as listening:
            here.hold(client, "client", Rules(egress=("server",), port=PORT))
            there.hold(server, "server", Rules(ingress=("client",), port=PORT))
            assert ask(client, at(service, family), SERVICE_PORT) == b"hello"
            seen_from = listening.peers[0][0]
            assert (seen_from == str(at(client, family))) is not masquerade
            (event,) = announced(here, Direction.EGRESS)
            assert event.destination == at(service, family).packed
            assert event.destination_actual == (at(server, family).packed, PORT)
            assert not here.drops
            assert not there.drops


def test_a_pod_reaches_itself_through_its_service_only_by_its_identity(family: int) -> None:
    with Lab("hairpin") as lab:
        pod = lab.add_pod("pod")
        service = lab.add_service(pod, port=SERVICE_PORT, target_port=PORT)
        lab.masquerade(pod, pod)
        with Node(lab.router) as node, Server(pod, PORT):
            node.hold(pod, "pod", Rules(ingress=("pod",), egress=("pod",)))
            assert ask(pod, at(service, family), SERVICE_PORT) == b"hello"
            node.set_policy("pod", Rules(ingress=("other",), egress=("pod",)))
            assert refused(pod, at(service, family), SERVICE_PORT)


def test_a_client_without_an_agent(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    _, there = nodes
    there.hold(network.server, "server", Rules(ingress=(at(network.other, family).packed,)))
    with Server(network.server, PORT) as server:
        assert ask(network.other, at(network.server, family), PORT) == b"hello"
        server.wait_until_over()
        there.set_policy("server", Rules(ingress=("other",)))
        assert refused(network.other, at(network.server, family), PORT)
        assert server.received == [b"hello"]
    assert [event.decision.reason for event in there.events] == [Reason.IPBLOCK, Reason.UNIDENTIFIED]


def test_a_server_without_an_agent(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, _ = nodes
    here.hold(network.client, "client", Rules(egress=(at(network.other, family).packed,)))
    with Server(network.other, PORT) as server:
        assert ask(network.client, at(network.other, family), PORT) == b"hello"
        server.wait_until_over()
        here.set_policy("client", Rules(egress=("other",)))
        assert refused(network.client, at(network.other, family), PORT)
        assert server.received == [b"hello"]
    assert [event.decision.reason for event in here.events] == [Reason.IPBLOCK, Reason.UNIDENTIFIED]


@pytest.mark.parametrize("with_agent", [True, False])
def test_a_closed_port_is_refused_at_once(
    network: Network, nodes: tuple[Node, Node], family: int, with_agent: bool
) -> None:
    here, there = nodes
    here.hold(network.client, "client")
    if with_agent:
        there.hold(network.server, "server")
    with pytest.raises(ConnectionRefusedError):
        ask(network.client, at(network.server, family), 9, timeout=0.9)  # before the SYN would be repeated


def test_a_fast_open_server_without_cookies(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    """It gives the token to its application; that connection is reset, and the next SYN goes bare."""
    here, _ = nodes
    here.hold(network.client, "client")
    network.other.command("sysctl", "-qw", "net.ipv4.tcp_fastopen=0x203")

    def prepare(listener: socket.socket) -> None:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)

    with Server(network.other, PORT, prepare=prepare) as server:
        assert ask(network.client, at(network.other, family), PORT) == b"hello"
        assert server.received[-1] == b"hello"
        assert here.drops[DropReason.PAYLOAD_ACKNOWLEDGED] == 1
        connections = len(server.received)
        assert ask(network.client, at(network.other, family), PORT) == b"hello"
        assert len(server.received) == connections + 1  # it is remembered, and spared
    network.other.command("sysctl", "-qw", "net.ipv4.tcp_fastopen=1")


def test_a_middlebox_that_drops_syns_with_data(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, there = nodes
    here.hold(network.client, "client")
    there.hold(network.server, "server")
    rule = "tcp flags & (syn|ack) == syn meta length > 120 drop"
    table = "table inet trm_middlebox {\nchain forward {\ntype filter hook forward priority -10\n" + rule + "\n}\n}\n"
    network.lab.router.command("nft", "-f", "-", stdin=table)
    try:
        with Server(network.server, PORT):
            assert ask(network.client, at(network.server, family), PORT) == b"hello"
    finally:
        network.lab.router.command("nft", "delete", "table", "inet", "trm_middlebox")


def test_a_sidecar_inside_the_pod(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    """The pod's namespace redirects what arrives, and what leaves, to a proxy; policy sees the pod's real ports."""
    here, there = nodes
    iptables = "iptables" if family == 4 else "ip6tables"
    inbound = (
        "-t",
        "nat",
        "-A",
        "PREROUTING",
        "-p",
        "tcp",
        "--dport",
        str(PORT),
        "-j",
        "REDIRECT",
        "--to-ports",
        "15006",
    )
    outbound = ("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", str(PORT), "-m", "mark", "!", "--mark", "0x1000",
                "-j", "REDIRECT", "--to-ports", "15001")  # fmt: skip
    loopback = IPv4Address("127.0.0.1") if family == 4 else IPv6Address("::1")
    target = at(network.server, family)

    def to_upstream(downstream: socket.socket) -> None:
        with open_socket(network.client, target) as upstream:
            upstream.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x1000)
            upstream.settimeout(1.2)
            upstream.connect((str(target), PORT))
            upstream.sendall(downstream.recv(65536))
            downstream.sendall(upstream.recv(65536))

    assert loopback.is_loopback
    network.server.command(iptables, *inbound)
    network.client.command(iptables, *outbound)
    try:
        here.hold(network.client, "client", Rules(egress=("server",), port=PORT))
        there.hold(network.server, "server", Rules(ingress=("client",), port=PORT))
        with Server(network.server, 15006) as server, Server(network.client, 15001, to_upstream):
            assert ask(network.client, target, PORT) == b"hello"
            there.set_policy("server", Rules(ingress=("client",), port=15006))
            with pytest.raises(ConnectionResetError):  # the proxy gets nowhere: its port is not the pod's
                ask(network.client, target, PORT)
            assert server.received == [b"hello"]
    finally:
        network.server.command(iptables, *[word if word != "-A" else "-D" for word in inbound])
        network.client.command(iptables, *[word if word != "-A" else "-D" for word in outbound])


@pytest.mark.parametrize("mtu", [1280, 9000])
@pytest.mark.parametrize(("mode", "count"), [("psk", 60), ("pki", 30)])
def test_link_sizes(mtu: int, family: int, mode: str, count: int) -> None:
    """So many labels fit the smallest link, and a first segment of any size gets its proof through."""
    labels = {f"example.com/label-{index:02}": f"a-value-of-twenty-{index:02}" for index in range(count - 1)}
    node_of_client, node_of_server = (pki("one"), pki("two")) if mode == "pki" else (None, None)
    with Lab("mtu") as lab:
        client, server = lab.add_pod("client", mtu=mtu), lab.add_pod("server", mtu=mtu)
        with (
            Node(lab.router, authenticator=node_of_client) as here,
            Node(lab.router, authenticator=node_of_server) as there,
            Server(server, PORT) as listening,
        ):
            here.hold(client, "client", Rules(egress=("server",)), labels={**labels, "app": "client"})
            there.hold(server, "server", Rules(ingress=("client",)), labels={**labels, "app": "server"})
            data = bytes(range(256)) * 400
            assert ask(client, at(server, family), PORT, data) == data
            assert listening.received == [data]
            assert not here.drops
            assert not there.drops


@pytest.mark.parametrize("size", [10, 1000, 1400, 30_000])
def test_a_first_ack_that_carries_data(network: Network, nodes: tuple[Node, Node], family: int, size: int) -> None:
    """A write that waits for the connection makes Linux send its data with the very first ACK."""
    here, there = nodes
    here.hold(network.client, "client")
    there.hold(network.server, "server", Rules(ingress=("client",)))
    data = bytes(index % 251 for index in range(size))
    with Server(network.server, PORT) as server, open_socket(network.client, at(network.server, family)) as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            # The connect must still be under way when the write begins, so it goes through the queue of this process
            # while this thread holds on to nothing.
            client.connect((str(at(network.server, family)), PORT))
        client.settimeout(None)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
        assert answer == data
        assert server.received == [data]
    assert DropReason.HOLD_TIMEOUT not in here.drops + there.drops


def test_an_application_that_uses_fast_open(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, there = nodes
    here.hold(network.client, "client")
    there.hold(network.server, "server", Rules(ingress=("client",)))
    network.server.command("sysctl", "-qw", "net.ipv4.tcp_fastopen=3")

    def prepare(listener: socket.socket) -> None:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)

    with Server(network.server, PORT, prepare=prepare) as server:
        for _ in range(3):  # a first contact asks for a cookie, the later ones would use it
            with open_socket(network.client, at(network.server, family)) as client:
                client.sendto(b"early data", socket.MSG_FASTOPEN, (str(at(network.server, family)), PORT))
                client.settimeout(5)
                assert client.recv(100) == b"early data"
        assert server.received == [b"early data"] * 3


def test_a_reused_five_tuple_inherits_nothing(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, there = nodes
    here.hold(network.client, "client")
    there.hold(network.server, "server", Rules(ingress=("client",)))
    target = at(network.server, family)

    def once(timeout: float) -> bytes:
        with open_socket(network.client, target) as client:
            client.settimeout(timeout)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.bind(("", 41_000))
            client.connect((str(target), PORT))
            client.sendall(b"hello")
            return client.recv(100)

    with Server(network.server, PORT) as server:
        for _ in range(5):
            assert once(5) == b"hello"
        there.set_policy("server", Rules(ingress=()))
        with pytest.raises(TimeoutError):
            once(1.2)
        assert server.received == [b"hello"] * 5


def test_a_pod_cannot_mark_its_own_connection(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    """SO_MARK needs CAP_NET_RAW only, which runtimes grant by default."""
    here, there = nodes
    marks = here.marks
    here.hold(network.client, "client", Rules(egress=()))
    there.hold(network.server, "server")
    with Server(network.server, PORT) as server:
        for mark in (marks.accepted(1), marks.accepted(1) | 0x40 << 16, marks.pass_clear, 0xFFFFFFFF):
            with open_socket(network.client, at(network.server, family)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", mark))
                client.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    client.connect((str(at(network.server, family)), PORT))
        assert not server.peers


def test_a_policy_change_ends_a_live_connection_at_both_ends(
    network: Network, nodes: tuple[Node, Node], family: int
) -> None:
    here, there = nodes
    here.hold(network.client, "client")
    there.hold(network.server, "server", Rules(ingress=("client",)))
    ended = threading.Event()

    def talk(connection: socket.socket) -> None:
        try:
            while data := connection.recv(100):
                connection.sendall(data)
        except ConnectionResetError:
            ended.set()

    with Server(network.server, PORT, talk), open_socket(network.client, at(network.server, family)) as client:
        client.settimeout(5)
        client.connect((str(at(network.server, family)), PORT))
        client.sendall(b"before")
        assert client.recv(100) == b"before"
        there.set_policy("server", Rules(ingress=("client", "others")))
        client.sendall(b"still allowed")
        assert client.recv(100) == b"still allowed"
        there.set_policy("server", Rules(ingress=("others",)))
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - the reset may come with either call
            client.sendall(b"not any more")
            client.recv(100)
        assert ended.wait(5)
    assert there.drops[DropReason.CUT] >= 1


def test_udp_and_icmp_are_judged_by_address(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    _, there = nodes
    there.hold(network.server, "server", Rules(ingress=(at(network.other, family).packed,)))
    with open_socket(network.server, at(network.server, family), socket.SOCK_DGRAM) as server:
        server.settimeout(2)
        server.bind(("", 5353))
        for pod, arrives in ((network.other, True), (network.client, False)):
            with open_socket(pod, at(network.server, family), socket.SOCK_DGRAM) as client:
                client.settimeout(2 if arrives else 0.3)
                client.sendto(b"question", (str(at(network.server, family)), 5353))
                if arrives:
                    data, peer = server.recvfrom(100)
                    server.sendto(b"answer", peer)
                    assert (data, client.recv(100)) == (b"question", b"answer")
                else:
                    server.settimeout(0.3)
                    with pytest.raises(TimeoutError):
                        server.recv(100)
    ping = ("ping", f"-{family}", "-c1", "-W1", "-q", str(at(network.server, family)))
    network.other.command(*ping)
    with pytest.raises(Exception, match="failed"):
        network.client.command(*ping)


def test_nothing_is_isolated_by_default(network: Network, nodes: tuple[Node, Node], family: int) -> None:
    here, there = nodes
    here.hold(network.client, "client", OPEN)
    there.hold(network.server, "server", OPEN)
    with Server(network.server, PORT), Server(network.other, PORT):
        assert ask(network.client, at(network.server, family), PORT) == b"hello"
        assert ask(network.client, at(network.other, family), PORT) == b"hello"
        assert ask(network.other, at(network.server, family), PORT) == b"hello"
    assert not here.drops
    assert not there.drops

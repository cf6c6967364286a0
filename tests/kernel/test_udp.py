"""Identity on UDP on a real kernel: real sockets, rules, queues, conntrack, translation, and real programs.

::

    client ──┐
    server ──┤ router: Service addresses, INVALID dropped
    other  ──┘

``client`` and ``server`` are held by two nodes, each with its own data path; ``other`` has no agent.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.lab import Lab, LabPod, LabService
from tests.harness import dnsmasq
from tests.harness.dnsmasq import resolver
from tests.harness.hostile import inject
from tests.harness.node import OPEN, HeldPod, Node, Rules
from tests.harness.segments import udp
from tests.harness.surplus import is_udp, with_surplus
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
    """Nothing crashed or was lost between shell and kernel, and only the exchange's own datagrams were dropped."""
    for node in nodes:
        assert node.guard.crashes == 0
        assert set(node.drops) <= {DropReason.CONSUMED}, node.drops
        for held in node.pods.values():
            counters = held.queue.counters
            assert (counters.verdict_failures, counters.send_failures, counters.lost_tickets) == (0, 0, 0)


def receive(asking: socket.socket, count: int, *nodes: Node) -> list[bytes]:
    """Return so many answers; a failure says what the nodes have dropped."""
    answers: list[bytes] = []
    while len(answers) < count:
        try:
            answers.append(asking.recv(4096))
        except TimeoutError:
            missing = f"{len(answers)} of {count} answers"
            pytest.fail(f"{missing}; {[(node.drops, node.guard.crashes) for node in nodes]}")
    return answers


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
            deadline = time.monotonic() + 15
            while payload not in server.received and time.monotonic() < deadline:
                time.sleep(0.01)
            assert payload in server.received
            start = 20 if family == 4 else 40
            assert data[start:] in [packet[start:] for packet in wire.packets()]
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


@pytest.mark.parametrize("isolated", POLICIES)
@pytest.mark.parametrize("size", [20, 1200])
def test_order_and_completeness_of_a_burst(
    network: Network, nodes: tuple[Node, Node], family: int, isolated: str, size: int
) -> None:
    """Cold and warm, 1,200 octets as QUIC sends: everything arrives, in order but for the moment of the mark, when a
    datagram may overtake those that were in the queue just then (agent/nfqueue.py, PATIENCE)."""
    here, there = nodes
    hold_both(network, nodes, isolated)
    target = at(network.server, family)
    with Echo(network.server, PORT) as server:
        for _ in range(3):
            server.received.clear()
            burst = [(b"%05d" % number).ljust(size, b".") for number in range(50)]
            with open_socket(network.client, target, socket.SOCK_DGRAM) as asking:
                asking.settimeout(15)
                for payload in burst:
                    asking.sendto(payload, (str(target), PORT))
                answers = receive(asking, len(burst), here, there)
            assert sorted(server.received) == burst
            assert sorted(answers) == [b"re:" + payload for payload in burst]
            overtaken = sum(ahead > behind for ahead, behind in itertools.pairwise(server.received))
            assert overtaken <= 2  # once for each end's mark
    healthy(here, there)


@pytest.mark.parametrize("isolated", POLICIES)
def test_an_accepted_flow_stays_in_the_kernel(
    network: Network, nodes: tuple[Node, Node], family: int, isolated: str
) -> None:
    here, there = nodes
    held = hold_both(network, nodes, isolated)
    target = at(network.server, family)
    with Echo(network.server, PORT), open_socket(network.client, target, socket.SOCK_DGRAM) as asking:
        asking.settimeout(15)
        asking.connect((str(target), PORT))

        def ask() -> None:
            asking.send(b"again")
            assert asking.recv(100) == b"re:again"

        for _ in range(4):
            ask()
        before = [pod.queue.kernel_counters().total for pod in held]
        for _ in range(500):
            ask()
        assert [pod.queue.kernel_counters().total for pod in held] == before
    healthy(here, there)


def test_connected_and_unconnected_sockets_and_many_peers_of_one(
    network: Network, nodes: tuple[Node, Node], family: int
) -> None:
    hold_both(network, nodes)
    target, silent = at(network.server, family), at(network.other, family)
    with Echo(network.server, PORT) as server, Echo(network.other, PORT) as other:
        for connected in (True, False):
            with open_socket(network.client, target, socket.SOCK_DGRAM) as asking:
                asking.settimeout(15)
                for number in range(5):
                    message = b"%d" % number
                    asking.sendto(message, (str(silent), PORT)) if not connected else None
                    if connected:
                        asking.connect((str(target), PORT))
                        asking.send(message)
                    else:
                        asking.sendto(message, (str(target), PORT))
                    assert asking.recv(100) == b"re:" + message
        assert len(server.received) == 10
        assert other.received == []


@pytest.mark.parametrize("isolated", POLICIES)
def test_a_socket_that_does_not_sum(network: Network, nodes: tuple[Node, Node], isolated: str) -> None:
    hold_both(network, nodes, isolated)
    with Echo(network.server, PORT) as server:
        for _ in range(3):
            answer = query(
                network.client, network.server.ipv4, PORT, b"unsummed",
                prepare=lambda one: one.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1),
            )  # fmt: skip
            assert answer == b"re:unsummed"
        assert server.received == [b"unsummed"] * 3
    healthy(*nodes)


@pytest.mark.parametrize("isolated", POLICIES)
def test_segmentation_offload(network: Network, nodes: tuple[Node, Node], family: int, isolated: str) -> None:
    """One write that the kernel cuts into datagrams of 1,000 octets, cold, warm and accepted."""
    hold_both(network, nodes, isolated)
    target = at(network.server, family)
    datagrams = [bytes((number,)) * 1000 for number in range(1, 21)]
    with Echo(network.server, PORT) as server:
        for _ in range(2):
            with open_socket(network.client, target, socket.SOCK_DGRAM) as asking:
                asking.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
                asking.settimeout(15)
                for _ in range(2):
                    server.received.clear()
                    asking.sendto(b"".join(datagrams), (str(target), PORT))
                    assert sorted(receive(asking, len(datagrams), *nodes)) == [b"re:" + one for one in datagrams]
                    assert sorted(server.received) == datagrams
    healthy(*nodes)


@pytest.mark.parametrize("isolated", POLICIES)
@pytest.mark.parametrize("size", [1473, 4000, 9000, 60_000])
def test_datagrams_larger_than_the_link(
    network: Network, nodes: tuple[Node, Node], family: int, isolated: str, size: int
) -> None:
    hold_both(network, nodes, isolated)
    payload = os.urandom(size)
    with Echo(network.server, PORT, answers=lambda data: data) as server:
        for _ in range(3):
            assert query(network.client, at(network.server, family), PORT, payload) == payload
        assert server.received == [payload] * 3
    healthy(*nodes)


# -- programs ----------------------------------------------------------------------------------------------------------

NAMES = 30
needs_resolver = pytest.mark.skipif(
    dnsmasq.find() is None, reason="dnsmasq is not installed: scripts/setup installs it"
)


@needs_resolver
@pytest.mark.parametrize("via", ["direct", "service"])
def test_a_real_resolver_under_default_deny(
    network: Network,
    nodes: tuple[Node, Node],
    family: int,
    via: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Egress denied but for the resolver, its ingress denied but for the client: every query is answered."""
    if shutil.which("dig") is None:
        pytest.skip("dig is not installed: scripts/setup installs it")
    here, there = nodes
    hold_both(network, nodes)
    target, port = (network.server, PORT) if via == "direct" else (network.service, SERVICE_PORT)
    with resolver(network.server, PORT, tmp_path):
        for number in range(NAMES):
            kind, expected = (("A", "192.0.2.80"), ("AAAA", "2001:db8::80"))[number % 2]
            dig = ("dig", "+short", "+tries=1", "+time=2", "-p", str(port), f"@{at(target, family)}")
            assert network.client.command(*dig, f"name-{number}.test", kind).split() == [expected]
        later = [_ask_resolver(network.client, at(target, family), port, number) for number in range(100)]
    healthy(here, there)
    with capsys.disabled():
        print(f"\nUDP, IPv{family}, {via}: a query to a known resolver: p50 {statistics.median(later):.2f} ms")


def _ask_resolver(pod: LabPod, address: IP, port: int, number: int) -> float:
    """One query from a fresh port; returns its milliseconds."""
    name = b"".join(bytes((len(label),)) + label for label in (b"fresh-%d" % number, b"test")) + b"\0"
    question = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1)
    began = time.monotonic()
    with open_socket(pod, address, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        began = time.monotonic()
        asking.sendto(question, (str(address), port))
        answer = asking.recv(1500)
        took = (time.monotonic() - began) * 1000
    assert answer[:2] == question[:2]
    assert answer.endswith(bytes((192, 0, 2, 80)))
    return took


@needs_resolver
def test_the_first_query_to_an_unknown_resolver(
    network: Network, family: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Printed and not asserted: how long the exchange takes when neither end knows the other."""
    first: list[float] = []
    plain: list[float] = []
    with resolver(network.server, PORT, tmp_path):
        plain += (_ask_resolver(network.client, at(network.server, family), PORT, number) for number in range(30))
        for number in range(10):
            with Node(network.lab.router) as here, Node(network.lab.router) as there:
                hold_both(network, (here, there))
                first.append(_ask_resolver(network.client, at(network.server, family), PORT, number))
                healthy(here, there)
    with capsys.disabled():
        print(
            f"\nUDP, IPv{family}: first query p50 {statistics.median(first):.2f} ms, "
            f"without us {statistics.median(plain):.2f} ms"
        )


@needs_resolver
def test_glibc_asks_for_both_families_at_once(network: Network, nodes: tuple[Node, Node], tmp_path: Path) -> None:
    """getaddrinfo sends A and AAAA from one socket, one right behind the other."""
    here, there = nodes
    hold_both(network, nodes)
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {network.server.ipv4}\noptions timeout:1 attempts:1\n", encoding="ascii")
    look_up = (
        "import socket; print(sorted({a[4][0] for a in socket.getaddrinfo('%s.test', 80, type=socket.SOCK_STREAM)}))"
    )
    with resolver(network.server, PORT, tmp_path):
        for number in range(8):
            script = f'mount --bind {resolv} /etc/resolv.conf && exec python3 -c "{look_up % f"host-{number}"}"'
            printed = network.client.command("unshare", "-m", "sh", "-c", script)
            assert printed.strip() == "['192.0.2.80', '2001:db8::80']"
    healthy(here, there)


QUIC_SERVER = """
import asyncio, sys
from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration

async def main():
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["test"])
    configuration.load_cert_chain(sys.argv[3], sys.argv[4])

    async def echo(reader, writer):
        writer.write(await reader.read())
        writer.write_eof()

    await serve(sys.argv[1], int(sys.argv[2]), configuration=configuration,
                stream_handler=lambda reader, writer: asyncio.ensure_future(echo(reader, writer)))
    print("ready", flush=True)
    await asyncio.Future()

asyncio.run(main())
"""
QUIC_CLIENT = """
import asyncio, ssl, sys
from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration

async def main():
    configuration = QuicConfiguration(alpn_protocols=["test"], verify_mode=ssl.CERT_NONE)
    async with connect(sys.argv[1], int(sys.argv[2]), configuration=configuration) as client:
        for size in (10, 100_000):
            reader, writer = await client.create_stream()
            writer.write(b"q" * size)
            writer.write_eof()
            assert await reader.read() == b"q" * size
    print("done")

asyncio.run(asyncio.wait_for(main(), 10))
"""


@pytest.mark.parametrize("isolated", POLICIES)
def test_quic(network: Network, nodes: tuple[Node, Node], family: int, isolated: str, tmp_path: Path) -> None:
    """A QUIC implementation nobody here wrote: its handshake, then 100,000 octets each way, cold and warm."""
    pytest.importorskip("aioquic")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=quic", "-days", "2")
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    here, there = nodes
    hold_both(network, nodes, isolated)
    target = str(at(network.server, family))
    serving = [sys.executable, "-c", QUIC_SERVER, target, str(PORT), str(certificate), str(key)]
    running = network.server.run(lambda: subprocess.Popen(serving, stdout=subprocess.PIPE, text=True))
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        for _ in range(2):
            assert network.client.command(sys.executable, "-c", QUIC_CLIENT, target, str(PORT)) == "done\n"
    finally:
        running.terminate()
        running.wait(5)
    healthy(here, there)

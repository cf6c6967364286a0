"""What the rules do to real packets: who is asked about which, and what a connection's mark lets through."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6

from agent.conntrack import sweep
from agent.lab import Lab, LabPod
from agent.rules import RuleBackend
from agent.rules_iptc import IptcBackend
from agent.rules_restore import RestoreBackend, Variant
from tests.harness.stand_in import (
    ACCEPT,
    DROP,
    PASS,
    Judge,
    Seen,
    Served,
    address,
    connect,
    datagram_socket,
    listen,
    served,
    transfer,
)
from trireme_py.datapath import Caught
from trireme_py.model import Hook, Protocol, Result, Verdict

pytestmark = pytest.mark.kernel

BACKENDS: dict[str, RuleBackend] = {
    "nft": RestoreBackend(Variant.NFT),
    "legacy": RestoreBackend(Variant.LEGACY),
    "python-iptables": IptcBackend(),
}
SO_MARK = 36
ICMP: dict[int, Protocol] = {socket.AF_INET: Protocol.ICMP, socket.AF_INET6: Protocol.ICMPV6}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> RuleBackend:
    return BACKENDS[request.param]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pods() -> Iterator[tuple[LabPod, LabPod]]:
    with Lab("traffic") as lab:
        yield lab.add_pod("a"), lab.add_pod("b")


def is_syn(data: bytes) -> bool:
    seen = Seen(0, Hook.NETWORK, data)
    return seen.protocol == Protocol.TCP and bool(seen.payload[13] & 0x02)


def accept_tcp_after_syn(hook: Hook, caught: Caught) -> Result:
    """Marks a connection at its first packet that is no SYN, as the data path does."""
    return PASS if is_syn(caught.data) else ACCEPT


def only(protocol: int, judge: Judge) -> Judge:
    """Judge one protocol; nothing else passes."""
    return lambda hook, caught: judge(hook, caught) if Seen(0, hook, caught.data).protocol == protocol else DROP


def test_an_accepted_connection_is_the_kernel_s(pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int) -> None:
    a, b = pods
    with (
        served(backend, accept_tcp_after_syn, b) as pod,
        listen(b, family) as server,
        connect(a, address(b, family)) as client,
        server.accept()[0] as connection,
    ):
        client.sendall(b"!")
        assert connection.recv(1) == b"!"
        asked = pod.queues[0].kernel_counters().total
        transfer(client, connection, 10_000_000)
        transfer(connection, client, 10_000_000)
        assert pod.queues[0].kernel_counters().total == asked
        (live,) = sweep(b.path, pod.rules.marks)
        assert live.mark == pod.rules.marks.accepted(pod.rules.epoch)


def test_foreign_mark_bits_stay(pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int) -> None:
    a, b = pods
    with served(backend, accept_tcp_after_syn, b) as pod, listen(b, family) as server:
        variant = "nft" if backend.name == "iptables-nft" else "legacy"
        tool = f"{'iptables' if family == socket.AF_INET else 'ip6tables'}-{variant}"
        # Somebody else's marks: one on every connection, one on every packet that leaves, checked where it leaves last.
        for rule in (
            "PREROUTING -j CONNMARK --set-xmark 0x5/0xff",
            "OUTPUT -j MARK --set-xmark 0x6/0xff",
            "POSTROUTING -m mark ! --mark 0x6/0xffffffff -j DROP",
        ):
            b.command(tool, "-t", "mangle", "-A", *rule.split())
        with connect(a, address(b, family)) as client:
            connection, _ = server.accept()
            transfer(client, connection, 100_000)
            (live,) = sweep(b.path, pod.rules.marks)
            assert live.mark == pod.rules.marks.accepted(pod.rules.epoch) | 0x5
            connection.close()
        listing = b.command(tool, "-t", "mangle", "-nvxL", "POSTROUTING").splitlines()
        dropped = next(line for line in listing if "DROP" in line)
        assert dropped.split()[0] == "0"


@pytest.mark.parametrize("mark", [0x810000, 0x400000, 0x410000, 0x7FFFFFFF])
def test_a_pod_that_marks_its_packets_gains_nothing(
    pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int, mark: int
) -> None:
    a, b = pods
    with served(backend, lambda hook, caught: DROP, a) as pod:
        with datagram_socket(a, family) as udp, datagram_socket(b, family) as receiver:
            udp.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            udp.sendto(b"marked", receiver.getsockname())
            pod.stand_in.wait_for(lambda seen: any(b"marked" in one.data for one in seen))
            receiver.settimeout(0.2)
            with pytest.raises(TimeoutError):
                receiver.recv(16)
        with listen(b, family) as server:

            def marked_connect() -> int:
                tcp = socket.socket(family, socket.SOCK_STREAM)
                tcp.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
                tcp.setblocking(False)
                with tcp:
                    tcp.connect_ex((address(b, family), 8080))
                    pod.stand_in.wait_for(lambda seen: any(is_syn(one.data) for one in seen))
                return 0

            a.run(marked_connect)
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.accept()
        assert sweep(a.path, pod.rules.marks) == frozenset()


def raise_epoch(pod: Served, lab_pod: LabPod) -> int:
    """As the agent does it: the queue's epoch together with the policy, then the rules."""
    queue = pod.queues[0]
    epoch = queue.epoch + 1

    def tell_queue() -> None:
        queue.epoch = epoch

    pod.loop.call(tell_queue).result()
    pod.backend.set_epoch(lab_pod.path, replace(pod.rules, epoch=epoch))
    return epoch


def test_a_raised_epoch_asks_again_about_live_connections_and_loses_nothing(
    pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int
) -> None:
    a, b = pods
    count = 20
    with served(backend, accept_tcp_after_syn, b) as pod, listen(b, family) as server:
        pairs = []
        for _ in range(count):
            client = connect(a, address(b, family))
            pairs.append((client, server.accept()[0]))
        stop = threading.Event()
        rounds = [0] * count
        errors: list[BaseException] = []

        def talk(index: int) -> None:
            client, connection = pairs[index]
            try:
                while not stop.is_set():
                    transfer(client, connection, 50_000)
                    rounds[index] += 1
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=talk, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                before = len(pod.stand_in.seen)
                epoch = raise_epoch(pod, b)
                done = list(rounds)
                pod.stand_in.wait_for(lambda seen, before=before: len(seen) >= before + count)  # type: ignore[misc]
                # The round under way may have sent its last packet; the one after it was begun under the new epoch.
                while not errors and any(now < then + 2 for now, then in zip(rounds, done, strict=True)):
                    threading.Event().wait(0.01)
                wanted = pod.rules.marks.accepted(epoch)
                assert {live.mark for live in sweep(b.path, pod.rules.marks)} == {wanted}
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors
        assert pod.queues[0].kernel_counters().queue_dropped == pod.queues[0].kernel_counters().user_dropped == 0
        for client, connection in pairs:
            client.close()
            connection.close()


def test_a_new_connection_on_old_ports_is_asked_about(pods: tuple[LabPod, LabPod], family: int) -> None:
    a, b = pods
    with served(BACKENDS["nft"], accept_tcp_after_syn, b) as pod, listen(b, family) as server:
        for _ in range(2):
            before = len(pod.stand_in.seen)

            def connect_from_the_same_port() -> socket.socket:
                client = socket.socket(family, socket.SOCK_STREAM)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # no TIME_WAIT: reset
                client.bind((address(a, family), 4444))
                client.connect((address(b, family), 8080))
                return client

            with a.run(connect_from_the_same_port) as client:
                server.accept()[0].close()
                client.recv(1)
            asked = pod.stand_in.seen[before:]
            assert [one.hook for one in asked if is_syn(one.data)] == [Hook.NETWORK, Hook.APPLICATION]


def test_clearing_takes_the_mark_off_a_connection(pods: tuple[LabPod, LabPod], backend: RuleBackend) -> None:
    a, b = pods
    answers = iter([ACCEPT, Result(Verdict.PASS_CLEAR), PASS, DROP])
    with (
        served(backend, lambda hook, caught: next(answers), a) as pod,
        datagram_socket(a, socket.AF_INET) as sender,
        datagram_socket(b, socket.AF_INET) as receiver,
    ):
        sender.sendto(b"1", receiver.getsockname())
        assert receiver.recv(1) == b"1"
        assert len(sweep(a.path, pod.rules.marks)) == 1
        raise_epoch(pod, a)
        for number in (b"2", b"3"):
            sender.sendto(number, receiver.getsockname())
            assert receiver.recv(1) == number
            assert sweep(a.path, pod.rules.marks) == frozenset()


@pytest.mark.parametrize("hook", [Hook.APPLICATION, Hook.NETWORK])
def test_icmp_errors_of_an_accepted_flow_pass(
    pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int, hook: Hook
) -> None:
    a, b = pods
    judged = a if hook is Hook.APPLICATION else b
    with served(backend, only(Protocol.UDP, lambda hook, caught: ACCEPT), judged) as pod:
        with datagram_socket(a, family) as sender:
            sender.connect((address(b, family), 9))
            sender.send(b"nobody listens there")
            with pytest.raises(ConnectionRefusedError):
                sender.recv(1)
        assert {one.protocol for one in pod.stand_in.seen} == {Protocol.UDP}


def test_icmp_errors_of_other_flows_are_judged(pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int) -> None:
    a, b = pods
    with served(backend, only(Protocol.UDP, lambda hook, caught: PASS), a) as pod, datagram_socket(a, family) as sender:
        sender.connect((address(b, family), 9))
        sender.send(b"nobody listens there")
        pod.stand_in.wait_for(lambda seen: any(one.protocol == ICMP[family] for one in seen))
        sender.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sender.recv(1)


def test_neighbour_discovery_works_while_all_other_icmp_is_dropped(
    pods: tuple[LabPod, LabPod], backend: RuleBackend
) -> None:
    a, b = pods
    with (
        served(backend, only(Protocol.UDP, lambda hook, caught: PASS), a, b) as pod,
        datagram_socket(a, socket.AF_INET6) as sender,
        datagram_socket(b, socket.AF_INET6) as receiver,
    ):
        sender.sendto(b"who is there", receiver.getsockname())
        assert receiver.recv(64) == b"who is there"  # addresses were resolved in both directions on both links
        assert {one.protocol for one in pod.stand_in.seen} == {Protocol.UDP}


def test_neighbour_discovery_that_could_cross_a_router_is_judged(pods: tuple[LabPod, LabPod]) -> None:
    a, b = pods
    forged = bytes(IPv6(src=str(a.ipv6), dst=str(b.ipv6), hlim=64) / ICMPv6ND_NS(tgt=str(b.ipv6)) / b"smuggled")

    def send() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(forged, (str(b.ipv6), 0))

    with served(BACKENDS["nft"], lambda hook, caught: DROP, a) as pod:
        a.run(send)
        pod.stand_in.wait_for(lambda seen: any(b"smuggled" in one.data for one in seen))


def test_every_protocol_is_asked_about(pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int) -> None:
    a, b = pods
    protocols = [Protocol.SCTP, 47, 253]  # 47 is GRE, 253 is for experiments (RFC 3692)

    def send() -> None:
        for protocol in protocols:
            with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
                raw.sendto(b"\0" * 32, (address(b, family), 0))

    with served(backend, lambda hook, caught: DROP, a) as pod:
        a.run(send)
        pod.stand_in.wait_for(lambda seen: {one.protocol for one in seen} >= set(protocols))


def test_what_stays_on_loopback_is_nobody_s_business(
    pods: tuple[LabPod, LabPod], backend: RuleBackend, family: int
) -> None:
    a, _ = pods
    with served(backend, lambda hook, caught: DROP, a) as pod, listen(a, family) as server:
        with connect(a, address(a, family)) as client:
            connection, _ = server.accept()
            transfer(client, connection, 100_000)
            connection.close()
        assert pod.stand_in.seen == []

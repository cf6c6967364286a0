"""The shell around the data path, with a stand-in for the data path and everything else real."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from agent.failmode import FailMode, FailureCause
from agent.lab import Lab
from agent.marks import FIRST_EPOCH, Marks
from agent.nfqueue import HOLD_LIMIT_NS, QUEUE_LENGTH, CrashGuard
from agent.rules_restore import probe
from agent.ruleset import PodRules
from tests.harness.implementation import open_queue
from tests.harness.stand_in import (
    ACCEPT,
    DROP,
    HOLD,
    PASS,
    Seen,
    StandIn,
    address,
    connect,
    datagram_socket,
    listen,
    served,
    transfer,
)
from trireme_py.datapath import Caught
from trireme_py.errors import KernelError
from trireme_py.model import Hook, Instant, Protocol, Release, Result, Verdict

pytestmark = pytest.mark.kernel

NETLINK_NETFILTER = 12  # include/uapi/linux/netlink.h


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("queue") as made:
        yield made


def payloads(seen: list[Seen], *, hook: Hook | None = None) -> list[bytes]:
    """What the UDP datagrams among ``seen`` carried."""
    wanted = [one for one in seen if one.protocol == Protocol.UDP and hook in (None, one.hook)]
    return [one.payload[8:] for one in wanted]


def datagram(source: Any, destination: Any, payload: bytes) -> bytes:
    """A whole UDP packet between two bound sockets, checksums and all."""
    (from_, sport), (to, dport) = source[:2], destination[:2]
    header = IPv6(src=from_, dst=to) if ":" in to else IP(src=from_, dst=to, id=1)
    return bytes(header / UDP(sport=sport, dport=dport) / payload)


def test_both_families_and_both_hooks_come_by_one_queue_in_their_order(lab: Lab) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with served(probe(), lambda hook, caught: PASS, a) as pod:
        for family in (socket.AF_INET, socket.AF_INET6):
            with datagram_socket(a, family) as here, datagram_socket(b, family) as there:
                for number in range(100):
                    here.sendto(b"out %d" % number, there.getsockname())
                    there.sendto(b"in %d" % number, here.getsockname())
                assert [there.recv(16) for _ in range(100)] == [b"out %d" % number for number in range(100)]
                assert [here.recv(16) for _ in range(100)] == [b"in %d" % number for number in range(100)]
        for hook, word in ((Hook.APPLICATION, b"out"), (Hook.NETWORK, b"in")):
            assert payloads(pod.stand_in.seen, hook=hook) == [b"%s %d" % (word, number) for number in range(100)] * 2
            assert pod.queues[0].counters.packets[hook] == 200
        assert {one.endpoint for one in pod.stand_in.seen} == {0}


def test_the_socket_says_which_pod_a_packet_is_of(lab: Lab, family: int) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with served(probe(), lambda hook, caught: PASS, a, b) as pods:
        with datagram_socket(a, family) as here, datagram_socket(b, family) as there:
            here.sendto(b"hello", there.getsockname())
            assert there.recv(16) == b"hello"
        assert [(one.endpoint, one.hook) for one in pods.stand_in.seen] == [(0, Hook.APPLICATION), (1, Hook.NETWORK)]


def test_a_dropped_packet_does_not_arrive_and_the_next_one_does(lab: Lab, family: int) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with (
        served(probe(), lambda hook, caught: DROP if b"bad" in caught.data else PASS, b),
        datagram_socket(a, family) as here,
        datagram_socket(b, family) as there,
    ):
        here.sendto(b"bad", there.getsockname())
        here.sendto(b"good", there.getsockname())
        assert there.recv(16) == b"good"


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_bulk_through_the_queue_is_whole(lab: Lab, family: int, mtu: int) -> None:
    """Every packet of both directions takes the long way, so segmentation and checksums are the queue's to keep."""
    a, b = lab.add_pod("a", mtu=mtu), lab.add_pod("b", mtu=mtu)
    with served(probe(), lambda hook, caught: PASS, a, b) as pods:
        with listen(b, family) as server, connect(a, address(b, family)) as client, server.accept()[0] as connection:
            transfer(client, connection, 3_000_000)
            transfer(connection, client, 3_000_000)
        assert max(len(one.data) for one in pods.stand_in.seen) <= min(mtu, 4096)
        truncated = [queue.counters.truncated for queue in pods.queues]
        assert all(truncated) if mtu == 9000 else not any(truncated)
        assert not any(queue.counters.failures for queue in pods.queues)


def test_held_packets_wait_and_leave_in_the_order_given(lab: Lab, family: int) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    tickets: list[int] = []

    def judge(hook: Hook, caught: Caught) -> Result:
        if not caught.data.endswith(b"go"):
            tickets.append(caught.ticket)
            return HOLD
        order = [*reversed(tickets)]
        releases = (Release(order[0], Verdict.DROP), *(Release(ticket, Verdict.PASS) for ticket in order[1:]))
        return Result(Verdict.PASS, release=releases)

    with served(probe(), judge, a) as pod:
        with datagram_socket(a, family) as here, datagram_socket(b, family) as there:
            for number in range(5):
                here.sendto(b"%d" % number, there.getsockname())
            pod.stand_in.wait_for(lambda seen: len(seen) == 5)
            pod.loop.call(lambda: None).result()
            assert pod.queues[0].held == pod.queues[0].kernel_counters().waiting == 5
            here.sendto(b"go", there.getsockname())
            assert [there.recv(16) for _ in range(5)] == [b"go", b"3", b"2", b"1", b"0"]
        assert pod.queues[0].held == pod.queues[0].kernel_counters().waiting == 0
        assert pod.queues[0].counters.lost_tickets == 0


def test_a_replaced_packet_arrives_as_it_was_made(lab: Lab, family: int) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with datagram_socket(a, family) as here, datagram_socket(b, family) as there:
        longer = datagram(here.getsockname(), there.getsockname(), b"something longer")
        shorter = datagram(here.getsockname(), there.getsockname(), b"less")
        answers = iter([Result(Verdict.PASS, packet=longer), HOLD, Result(Verdict.PASS)])
        tickets: list[int] = []

        def judge(hook: Hook, caught: Caught) -> Result:
            tickets.append(caught.ticket)
            return next(answers)

        with served(probe(), judge, a) as pod:
            here.sendto(b"original", there.getsockname())
            assert there.recv(64) == b"something longer"
            here.sendto(b"original", there.getsockname())
            pod.stand_in.wait_for(lambda seen: len(seen) == 2)
            release = Release(tickets[1], Verdict.PASS, packet=shorter)
            pod.loop.call(lambda: pod.queues[0].release([release])).result()
            assert there.recv(64) == b"less"


def test_packets_of_our_own_leave_and_are_asked_about_like_any_other(lab: Lab, family: int) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with datagram_socket(a, family) as here, datagram_socket(b, family) as there, datagram_socket(a, family) as local:
        out = datagram(here.getsockname(), there.getsockname(), b"ours")
        home = datagram(there.getsockname(), local.getsockname(), b"for the application")

        def judge(hook: Hook, caught: Caught) -> Result:
            return PASS if b"ours" in caught.data else Result(Verdict.DROP, DROP.reason, send=(out, out, home))

        with served(probe(), judge, a) as pod:
            here.sendto(b"asked", there.getsockname())
            assert [there.recv(64), there.recv(64)] == [b"ours", b"ours"]
            # What goes to the pod's own application stays on loopback, whoever it says it comes from.
            assert local.recvfrom(64)[1][:2] == there.getsockname()[:2]
            pod.loop.call(lambda: None).result()
            assert payloads(pod.stand_in.seen) == [b"asked", b"ours", b"ours"]
            assert pod.queues[0].counters.send_failures == 0


def test_what_is_sent_meets_its_own_verdict_after_what_is_released(lab: Lab) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with datagram_socket(a, socket.AF_INET) as here, datagram_socket(b, socket.AF_INET) as there:
        ours = datagram(here.getsockname(), there.getsockname(), b"ours")
        answers = iter([HOLD, Result(Verdict.PASS, send=(ours,), release=(Release(1, Verdict.PASS),)), PASS])
        with served(probe(), lambda hook, caught: next(answers), a):
            here.sendto(b"held", there.getsockname())
            here.sendto(b"asked", there.getsockname())
            # Ours went into the queue between the two, and meets its own verdict after them.
            assert [there.recv(64) for _ in range(3)] == [b"asked", b"held", b"ours"]


def test_a_packet_that_cannot_be_sent_is_counted(lab: Lab) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    too_long = bytes(IP(src="10.77.1.2", dst="10.77.2.2") / UDP(sport=1, dport=1) / bytes(2000))
    with served(probe(), lambda hook, caught: Result(Verdict.PASS, send=(too_long,)), a) as pod:
        with datagram_socket(a, socket.AF_INET) as here, datagram_socket(b, socket.AF_INET) as there:
            here.sendto(b"asked", there.getsockname())
            assert there.recv(64) == b"asked"
        pod.loop.call(lambda: None).result()
        assert pod.queues[0].counters.send_failures == 1
        assert pod.guard.crashes == 0


@pytest.mark.parametrize("mode", FailMode)
def test_a_data_path_that_raises_costs_the_packet_and_nothing_else(lab: Lab, family: int, mode: FailMode) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")

    def judge(hook: Hook, caught: Caught) -> Result:
        if b"bomb" in caught.data:
            raise ZeroDivisionError
        return PASS

    with served(probe(), judge, b, mode=mode) as pod:
        with datagram_socket(a, family) as here, datagram_socket(b, family) as there:
            here.sendto(b"bomb", there.getsockname())
            pod.stand_in.wait_for(lambda seen: len(seen) == 1)
            here.sendto(b"fine", there.getsockname())
            assert there.recv(16) == b"fine"
        assert pod.guard.crashes == 1
        assert pod.queues[0].counters.failures == {FailureCause.CRASH: 1}


def test_a_foreign_rule_that_uses_our_queue_is_not_believed(lab: Lab) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with served(probe(), lambda hook, caught: PASS, b) as pod:
        b.command("iptables-nft", "-t", "filter", "-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "7")
        with datagram_socket(a, socket.AF_INET) as here, datagram_socket(b, socket.AF_INET) as there:
            here.sendto(b"hello", there.getsockname())
            there.settimeout(0.2)
            with pytest.raises(TimeoutError):
                there.recv(16)
        assert pod.queues[0].counters.failures == {FailureCause.RULE_ERROR: 1}


def test_a_queue_somebody_holds_is_an_error_that_says_so(lab: Lab) -> None:
    a = lab.add_pod("a")
    with (
        served(probe(), lambda hook, caught: PASS, a),
        pytest.raises(KernelError, match=f"queue 7 of network namespace {a.path}.*another agent"),
    ):
        open_queue(a.path, 1, StandIn(lambda hook, caught: PASS), CrashGuard(), marks=Marks(), epoch=FIRST_EPOCH)


def test_the_kernel_s_own_drops_are_seen(lab: Lab) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    each, too_many = 100, 100
    with served(probe(), lambda hook, caught: HOLD, a) as pod, datagram_socket(b, socket.AF_INET) as there:
        for _ in range((QUEUE_LENGTH + too_many) // each + 1):  # a held packet still fills its sender's buffer
            with datagram_socket(a, socket.AF_INET) as here:
                for _ in range(each):
                    here.sendto(b"held", there.getsockname())
        counters = pod.loop.call(pod.queues[0].kernel_counters).result()
        dropped = counters.queue_dropped + counters.user_dropped
        assert counters.waiting + dropped == ((QUEUE_LENGTH + too_many) // each + 1) * each
        assert counters.waiting <= QUEUE_LENGTH
        assert dropped >= too_many


def test_what_the_data_path_forgot_is_dropped(lab: Lab) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with served(probe(), lambda hook, caught: HOLD, a) as pod:
        with datagram_socket(a, socket.AF_INET) as here, datagram_socket(b, socket.AF_INET) as there:
            here.sendto(b"held", there.getsockname())
            pod.stand_in.wait_for(lambda seen: len(seen) == 1)
        (queue,) = pod.queues

        def later(after_ns: int) -> Instant:
            return Instant(time.monotonic_ns() + after_ns, time.time())

        pod.loop.call(lambda: queue.drop_forgotten(later(HOLD_LIMIT_NS // 2))).result()
        assert queue.held == 1
        pod.loop.call(lambda: queue.drop_forgotten(later(HOLD_LIMIT_NS))).result()
        assert (queue.held, queue.counters.forgotten, queue.kernel_counters().waiting) == (0, 1, 0)


def test_letting_go_of_a_pod_frees_its_namespace(lab: Lab) -> None:
    """Its end of the veth pair goes with the namespace, and with that the router's end."""
    a = lab.add_pod("a")
    with served(probe(), lambda hook, caught: PASS, a) as pod:
        a.command("umount", str(a.path))
        assert a.router_interface in lab.router.command("ip", "-br", "link")
        with lab.router.run(watch_links) as links:
            pod.loop.call(lambda: pod.loop.remove(0)).result()
            links.settimeout(10)
            while a.router_interface in lab.router.command("ip", "-br", "link"):
                links.recv(65536)
        assert pod.loop.queues == ()


def test_letting_go_of_a_pod_with_packets_waiting_frees_its_namespace(lab: Lab) -> None:
    """Packets that were read and not answered, and packets that are held, keep nothing alive."""
    a, b = lab.add_pod("a"), lab.add_pod("b")
    with datagram_socket(a, socket.AF_INET) as here, datagram_socket(b, socket.AF_INET) as there:

        def judge(hook: Hook, caught: Caught) -> Result:
            here.sendto(b"meanwhile", there.getsockname())
            return ACCEPT if caught.data.endswith(b"first") else HOLD

        stand_in = StandIn(judge)
        queue = open_queue(a.path, 0, stand_in, CrashGuard(), marks=Marks(), epoch=FIRST_EPOCH)
        queue.start()
        probe().apply(a.path, PodRules(Marks(), FIRST_EPOCH))
        for word in (b"second", b"first"):
            here.sendto(word, there.getsockname())
        while not (queue.held and queue.pending):
            assert select.select([queue], [], [], 10)[0]
            queue.service(Instant(time.monotonic_ns(), time.time()))
        queue.close()
    a.command("umount", str(a.path))
    with lab.router.run(watch_links) as links:
        links.settimeout(10)
        while a.router_interface in lab.router.command("ip", "-br", "link"):
            links.recv(65536)


def test_a_pod_that_takes_our_port_id_locks_nobody_out(lab: Lab) -> None:
    """Anybody may bind a netlink socket to any free port id of his own namespace; a process's own is its number."""
    a = lab.add_pod("a")

    def take() -> socket.socket:
        squatter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        squatter.bind((os.getpid(), 0))
        return squatter

    with a.run(take), served(probe(), lambda hook, caught: PASS, a) as pod:
        assert len(pod.loop.queues) == 1


def watch_links() -> socket.socket:
    """A socket that becomes readable when a link changes (RTMGRP_LINK)."""
    links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    links.bind((0, 1))
    return links


def test_another_thread_s_errors_come_back_to_it(lab: Lab) -> None:
    with served(probe(), lambda hook, caught: PASS) as pod:

        def fail() -> None:
            raise ZeroDivisionError(threading.current_thread().name)

        with pytest.raises(ZeroDivisionError, match="datapath"):
            pod.loop.call(fail).result()
        assert pod.loop.call(lambda: pod.loop.call(lambda: 5).result() + 1).result() == 6


def test_a_namespace_full_of_connections_keeps_its_promises(lab: Lab) -> None:
    """200 connections at once, marked when their last waiting packet is: all data arrives."""
    a, b = lab.add_pod("a"), lab.add_pod("b")

    def judge(hook: Hook, caught: Caught) -> Result:
        syn = caught.data[9] == Protocol.TCP and caught.data[20 + 13] & 0x02
        return PASS if syn else ACCEPT

    with served(probe(), judge, a, b) as pods, listen(b, socket.AF_INET) as server:
        server.listen(200)
        pairs: list[tuple[socket.socket, socket.socket]] = []
        for _ in range(200):
            client = connect(a, address(b, socket.AF_INET))
            pairs.append((client, server.accept()[0]))
        for client, connection in pairs:
            with client, connection:
                transfer(client, connection, 20_000)
        assert all(queue.kernel_counters().queue_dropped == 0 for queue in pods.queues)

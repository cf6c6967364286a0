"""The lab: what tests and the demo stand on is what it says it is."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys

import pytest

from agent import netns
from agent.lab import Lab, LabPod, remove_stale
from tests.harness.stand_in import address, connect, listen
from trireme_py.errors import KernelError

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])


@FAMILIES
def test_pods_reach_each_other_directly_and_by_service(family: int) -> None:
    with Lab("lab") as lab:
        a, b = lab.add_pod("a"), lab.add_pod("b")
        service = lab.add_service(b, port=80, target_port=8080)
        with listen(b, family) as server:
            for to, port in (
                (address(b, family), 8080),
                (service.ipv4 if family == socket.AF_INET else service.ipv6, 80),
            ):
                with connect(a, to, port):
                    connection, peer = server.accept()
                    connection.close()
                    assert peer[0] == address(a, family)


def test_a_new_pod_is_ready_for_ipv6() -> None:
    """Its address can be bound, and nothing of the first connection is lost for want of a neighbour."""
    for _ in range(10):
        with Lab("lab") as lab:
            a, b = lab.add_pod("a"), lab.add_pod("b")
            with listen(b, socket.AF_INET6), connect(a, address(b, socket.AF_INET6)) as client:
                assert repeated_segments(client) == 0


def repeated_segments(client: socket.socket) -> int:
    """tcpi_total_retrans of struct tcp_info (include/uapi/linux/tcp.h): eight octets and 23 words before it."""
    (count,) = struct.unpack_from("I", client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)
    return int(count)


@FAMILIES
def test_a_service_that_moves_leads_elsewhere(family: int) -> None:
    with Lab("lab") as lab:
        a, b, c = (lab.add_pod(name) for name in "abc")
        service = lab.add_service(b, port=80, target_port=8080)
        moved = lab.retarget(service, c)
        assert (moved.ipv4, moved.ipv6, moved.target) == (service.ipv4, service.ipv6, c)
        with listen(c, family) as server, connect(a, moved.ipv4 if family == socket.AF_INET else moved.ipv6, 80):
            server.accept()[0].close()


@FAMILIES
def test_masquerade_is_per_pair(family: int) -> None:
    with Lab("lab") as lab:
        a, b, c = (lab.add_pod(name) for name in "abc")
        lab.masquerade(a, b)
        seen = {}
        with listen(b, family) as server:
            for pod in (a, c):
                with connect(pod, address(b, family)):
                    connection, peer = server.accept()
                    connection.close()
                    seen[pod.name] = peer[0]
        gateway = b.gateway4 if family == socket.AF_INET else b.gateway6
        assert seen == {a.name: str(gateway), c.name: address(c, family)}


@FAMILIES
def test_a_pod_reaches_itself_through_its_own_service(family: int) -> None:
    with Lab("lab") as lab:
        a = lab.add_pod("a")
        service = lab.add_service(a)
        lab.masquerade(a, a)
        virtual = service.ipv4 if family == socket.AF_INET else service.ipv6
        with listen(a, family) as server, connect(a, virtual):
            server.accept()[0].close()


def invalid_packets(lab: Lab) -> int:
    listing = lab.router.command("nft", "list", "chain", "inet", "trm_lab", "forward")
    return int(listing.partition("counter packets ")[2].split()[0])


def test_the_router_drops_invalid_packets() -> None:
    with Lab("lab") as lab:
        a, b = lab.add_pod("a"), lab.add_pod("b")

        def send_wrong_checksum() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
                raw.sendto(b"\x12\x34\x12\x34\x00\x09\xde\xad!", (str(b.ipv4), 0))

        assert invalid_packets(lab) == 0
        a.run(send_wrong_checksum)
        assert invalid_packets(lab) == 1


def test_mtu_is_that_of_the_link() -> None:
    with Lab("lab") as lab:
        jumbo, small = lab.add_pod("jumbo", mtu=9000), lab.add_pod("small", mtu=1280)
        assert "mtu 9000" in jumbo.command("ip", "link", "show", "eth0")
        assert "mtu 1280" in small.command("ip", "link", "show", "eth0")
        assert "mtu 1280" in lab.router.command("ip", "link", "show", small.router_interface)


def test_nothing_stays_even_while_a_socket_holds_on() -> None:
    with Lab("lab") as lab:
        a = lab.add_pod("a")
        names = [lab.router.name, a.name]
        held = a.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        assert all(netns.exists(name) for name in names)
    with held:
        assert not any(netns.exists(name) for name in names)


def test_a_failure_half_way_removes_what_was_made() -> None:
    def fail(pod: LabPod) -> None:
        raise ZeroDivisionError(pod.name)

    with pytest.raises(ZeroDivisionError) as raised, Lab("lab") as lab:
        fail(lab.add_pod("a"))
    assert not netns.exists(str(raised.value))


def test_what_a_dead_process_left_is_removed_and_nothing_else() -> None:
    left = "from agent.lab import Lab; import os; lab = Lab('labdead').__enter__(); lab.add_pod('a'); os._exit(0)"
    subprocess.run([sys.executable, "-c", left], check=True)
    with Lab("labdead") as living:
        removed = remove_stale("labdead")
        assert [name.rpartition("-")[2] for name in removed] == ["a", "router"]
        assert netns.exists(living.router.name)
    assert not any(netns.exists(name) for name in removed)


def test_a_failed_command_names_itself_and_what_it_said() -> None:
    with Lab("lab") as lab:
        a = lab.add_pod("a")
        with pytest.raises(KernelError, match=r"ip link show nothing \(in trm-lab-.*does not exist"):
            a.command("ip", "link", "show", "nothing")

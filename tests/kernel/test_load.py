"""Under load on a real kernel: nothing is lost, and what was accepted stays in the kernel.

::

    alice ──┐
    carol ──┤ router
    bob   ──┘

Alice and Carol (clients) are held by one node, Bob (server) by another. The applications are processes of their own;
the two data paths share this one.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.lab import Lab, LabPod
from agent.nfqueue import PATIENCE
from tests.harness.hostile import Capture, altered, segment, silenced_kernel
from tests.harness.injector import RawInjector
from tests.harness.load import Worker
from tests.harness.node import HeldPod, Node, Rules
from tests.harness.stand_in import ACCEPT, address, datagram_socket, served
from tests.harness.traffic import IP, Server, ask
from trireme_py.datapath import Caught
from trireme_py.endpoint import MAX_HELD_PACKETS, MAX_HELD_PER_POD
from trireme_py.model import DropReason, Hook, Result
from trireme_py.packet import ACK, SYN, Packet, parse_packet_untrusted, with_tcp

pytestmark = pytest.mark.kernel

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 80
PATIENCE_S = 120.0

A_HANDFUL = 50
"""Segments of some 70,000 that come before an earlier one. Mostly there are none; veth delivers in the wrong order when
a sender changes processors. The fault that this is to find, marks set while packets wait, overtakes 350 of 14,000."""
ATTEMPTS = 3
"""The best of three counts."""


@dataclass(slots=True)
class Scene:
    lab: Lab
    alice: LabPod
    carol: LabPod
    bob: LabPod
    family: int
    here: Node
    there: Node

    def at(self, pod: LabPod) -> IP:
        return pod.ipv4 if self.family == 4 else pod.ipv6

    def server(self) -> Worker:
        return Worker(self.bob, "serve", str(PORT))

    def client(self, pod: LabPod, count: int) -> Worker:
        return Worker(pod, "connect", str(self.at(self.bob)), str(PORT), str(count))

    @property
    def held(self) -> tuple[HeldPod, ...]:
        return (*self.here.pods.values(), *self.there.pods.values())

    def expect_nothing_amiss(self) -> None:
        """No packet was dropped but repetitions, and each that was queued was judged."""
        for node in (self.here, self.there):
            assert set(node.drops) <= {DropReason.REPEATED}
            assert not node.guard.crashes
        for held in self.held:
            kernel, own = held.queue.kernel_counters(), held.queue.counters
            assert (kernel.waiting, kernel.user_dropped) == (0, 0)
            assert kernel.total == sum(own.packets.values())
            assert (own.failures.total(), own.verdict_failures, own.lost_tickets, own.forgotten) == (0, 0, 0, 0)


@pytest.fixture
def scene(family: int) -> Iterator[Scene]:
    with Lab("load") as lab:
        alice, carol, bob = (lab.add_pod(name) for name in ("alice", "carol", "bob"))
        with Node(lab.router) as here, Node(lab.router) as there:
            here.hold(alice, "alice", Rules(egress=("bob",)))
            here.hold(carol, "carol", Rules(egress=("bob",)))
            there.hold(bob, "bob", Rules(ingress=("alice", "carol")))
            yield Scene(lab, alice, carol, bob, family, here, there)


def tcp_counters(pod: LabPod) -> dict[str, int]:
    """Read a pod's own TCP counters (/proc/net/snmp and netstat)."""

    def read() -> dict[str, int]:
        lines = [
            line.split()
            for name in ("snmp", "netstat")
            for line in Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii").splitlines()
            if line.startswith(("Tcp:", "TcpExt:"))
        ]
        pairs = zip(lines[::2], lines[1::2], strict=True)
        return {name: int(value) for names, values in pairs for name, value in zip(names[1:], values[1:], strict=True)}

    return pod.run(read)


def overtaken(pod: LabPod) -> int:
    """Segments that reached a pod's kernel before an earlier one of their connection, which was late or lost.

    Segments that are sent again do not count: a busy machine makes many, as the sender is not told in time.
    """
    return tcp_counters(pod)["TCPOFOQueue"]


def expect_few_overtaken(scene: Scene, run: Callable[[], None]) -> None:
    """Do it again, if need be, until no more than A_HANDFUL of segments were lost or came too early."""
    seen = []
    for _ in range(ATTEMPTS):
        before = overtaken(scene.alice), overtaken(scene.bob)
        run()
        seen.append((overtaken(scene.alice) - before[0], overtaken(scene.bob) - before[1]))
        if max(seen[-1]) <= A_HANDFUL:
            return
    raise AssertionError(seen)


def queued(held: HeldPod) -> int:
    """Packets of a pod that ever went to user space, as the kernel counts them."""
    return held.queue.kernel_counters().total


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_thousand_connections(scene: Scene) -> None:
    """1,000 connects at once, then 100 kB on each: every octet arrives, no more than a handful of segments are lost,
    and once both ends have spoken not one packet goes to user space."""
    pods = scene.here.pods["alice"], scene.there.pods["bob"]

    def run() -> None:
        start = [queued(held) for held in pods]
        with scene.server() as server, scene.client(scene.alice, 1000) as client:
            assert client.ask("connect") == {"connected": 1000}
            # Where we are starved, packets were sent again and wait behind the ones that were answered.
            wait_until(lambda: not any(held.queue.kernel_counters().waiting for held in pods), "packets wait for ever")
            connected = [queued(held) for held in pods]
            # Three packets of the handshake; "!" and its answer may come before the mark. Where we are starved,
            # packets are repeated and the mark is put off: never for longer than PATIENCE.
            each = [(now - then) / 1000 for now, then in zip(connected, start, strict=True)]
            assert all(3 <= packets <= 8 + PATIENCE for packets in each), each
            assert client.ask("send 100000") == {"intact": 1000}
            assert [queued(held) for held in pods] == connected
            assert server.ask("report") == {"served": 1000}

    expect_few_overtaken(scene, run)
    scene.expect_nothing_amiss()
    assert all(held.queue.kernel_counters().queue_dropped == 0 for held in scene.held)


def test_data_right_behind_the_handshake(scene: Scene) -> None:
    """500 clients that write 20 kB without waiting for anything. Their data reaches the queue before the mark is there,
    and keeps its order. The queue takes all that they may send at once, should we be slow: ten segments each."""

    def run() -> None:
        with scene.server() as server, scene.client(scene.alice, 500) as client:
            assert client.ask("rush 20000") == {"intact": 500}
            assert server.ask("report") == {"served": 500}

    expect_few_overtaken(scene, run)
    scene.expect_nothing_amiss()
    assert all(held.queue.kernel_counters().queue_dropped == 0 for held in scene.held)


def test_nothing_overtakes_what_waits(scene: Scene) -> None:
    """Packets that come while an earlier one of their connection is judged keep their places behind it."""
    pod, other = scene.lab.add_pod("pod"), scene.lab.add_pod("other")
    family = scene.family
    with datagram_socket(pod, FAMILIES[family], 5353) as receiver, datagram_socket(other, FAMILIES[family]) as sender:
        numbers = iter(range(100))

        def send() -> None:
            sender.sendto(b"%d" % next(numbers), (address(pod, FAMILIES[family]), 5353))

        def judge(hook: Hook, caught: Caught) -> Result:
            # While the first is judged four more arrive, and one more during each of those.
            match caught.data[-1:]:
                case b"0":
                    for _ in range(4):
                        send()
                case b"1" | b"2" | b"3" | b"4":
                    send()
            return ACCEPT

        with served(scene.here.backend, judge, pod) as all_of_it:
            send()
            arrived = [int(receiver.recv(100)) for _ in range(9)]
            assert arrived == list(range(9))
            seen = len(all_of_it.stand_in.seen)
            send()
            assert receiver.recv(100) == b"9"
            assert len(all_of_it.stand_in.seen) == seen  # it is marked in the end
            all_of_it.backend.remove(pod.path)


def stays_in_the_kernel(scene: Scene, *pods: HeldPod) -> bool:
    """Let 2,000 packets reach Bob, and tell whether none of them was queued."""
    before, arrived = [queued(held) for held in pods], tcp_counters(scene.bob)["InSegs"]
    wait_until(lambda: tcp_counters(scene.bob)["InSegs"] > arrived + 2000, "the streams stand still")
    return [queued(held) for held in pods] == before


def test_raising_the_epoch_under_load(scene: Scene) -> None:
    """200 streams, and five changes of policy at both ends that leave them allowed: nothing is lost, and after each
    change every stream returns to the kernel after PATIENCE packets at the latest."""
    alice, bob = scene.here.pods["alice"], scene.there.pods["bob"]

    def run() -> None:
        start = queued(alice), queued(bob)
        with scene.server() as server, scene.client(scene.alice, 200) as client:
            assert client.ask("connect") == {"connected": 200}
            assert client.ask("stream") == {"streaming": 200}
            for change in range(5):
                before = queued(alice), queued(bob)
                scene.here.set_policy("alice", Rules(egress=("bob", f"nobody {change}")))
                scene.there.set_policy("bob", Rules(ingress=("alice", f"nobody {change}")))
                wait_until(
                    lambda before=before: queued(alice) >= before[0] + 200 and queued(bob) >= before[1] + 200,  # type: ignore[misc]
                    "not every connection was judged again",
                )
            assert client.ask("ended") == {"ended": 0}
            # What waits in the queue when the mark is set has to be judged as well, so twice.
            most = 200 * (8 + 5 * 2 * PATIENCE)
            assert queued(alice) - start[0] <= most
            assert queued(bob) - start[1] <= most
            wait_until(lambda: stays_in_the_kernel(scene, alice, bob), "packets go on reaching user space")
            assert client.ask("stop") == {"intact": 200}
            assert server.ask("report") == {"served": 200}

    expect_few_overtaken(scene, run)
    scene.expect_nothing_amiss()
    assert all(held.queue.kernel_counters().queue_dropped == 0 for held in scene.held)


def test_a_cut_ends_exactly_what_policy_no_longer_allows(scene: Scene) -> None:
    """A hundred streams of Alice's and 400 of Carol's; then Bob may be asked by Alice only. Each of Carol's is reset at
    both ends, by more packets at once than a socket's usual buffer holds."""
    with scene.server() as server, scene.client(scene.alice, 100) as alice, scene.client(scene.carol, 400) as carol:
        assert alice.ask("connect") == {"connected": 100}
        assert carol.ask("connect") == {"connected": 400}
        assert alice.ask("stream") == {"streaming": 100}
        assert carol.ask("stream") == {"streaming": 400}
        scene.there.set_policy("bob", Rules(ingress=("alice",)))
        wait_until(lambda: carol.ask("ended") == {"ended": 400}, "Carol's streams go on")
        assert alice.ask("ended") == {"ended": 0}
        assert carol.ask("stop") == {"ConnectionResetError": 400}
        assert alice.ask("stop") == {"intact": 100}
        assert server.ask("report") == {"served": 100, "ConnectionResetError": 400}
    assert set(scene.there.drops) == {DropReason.CUT}
    assert not scene.here.drops
    assert all(held.queue.counters.send_failures == 0 for held in scene.held)


def test_a_flood_of_held_packets(scene: Scene) -> None:
    """Mallory has Alice's SYN, so Bob's agent holds what follows it for the proof. She sends 64 full segments on each
    of 200 connections, half as much again as the queue takes. What is held stays in bounds, Alice is served all the
    while, and in the end each of Mallory's packets is one counted drop."""
    mallory = scene.lab.add_pod("mallory")
    own, target = scene.at(mallory), scene.at(scene.bob)
    bob = scene.there.pods["bob"]
    most = 0
    with Server(scene.bob, PORT) as application, Capture(scene.bob) as at_bob:
        assert ask(scene.alice, target, PORT) == b"hello"
        syn = at_bob.wait_for(lambda packet: packet.flags & (SYN | ACK) == SYN)
        with silenced_kernel(mallory), Capture(mallory) as capture, RawInjector(mallory) as raw:
            for port in range(FIRST_PORT, FIRST_PORT + 200):
                raw.send(altered(syn, source=own.packed, source_port=port), str(target), scene.family)
                answer = capture.wait_for(is_syn_ack_to(port))
                data = parse_packet_untrusted(segment(
                    own, port, target, PORT, acknowledgement=answer.sequence + 1, flags="PA", payload=bytes(1400)
                ))  # fmt: skip
                for number in range(MAX_HELD_PACKETS):
                    sequence = syn.sequence + 1 + number * 1400
                    raw.send(with_tcp(data, data.payload, sequence=sequence), str(target), scene.family)
                most = max(most, bob.queue.held)
                if port % 50 == 0:
                    assert ask(scene.alice, target, PORT) == b"hello"
        assert set(application.received) == {b"hello"}
    wait_until(lambda: bob.queue.kernel_counters().waiting == 0, "packets are held for ever")
    # The loop reads what waits before it carries out what has to make room.
    assert most <= MAX_HELD_PER_POD + MAX_HELD_PACKETS * 4
    drops = scene.there.drops
    # The fast path lets nobody keep Python busy: what comes too fast is not held at all.
    expected = (DropReason.HOLD_LIMIT, DropReason.HOLD_TIMEOUT, DropReason.RATE_LIMITED)
    assert drops.total() == sum(drops[reason] for reason in expected) == 200 * MAX_HELD_PACKETS
    kernel = bob.queue.kernel_counters()
    assert (kernel.queue_dropped, kernel.user_dropped) == (0, 0)
    assert not scene.there.guard.crashes


FIRST_PORT = 20_000


def is_syn_ack_to(port: int) -> Callable[[Packet], bool]:
    return lambda packet: packet.flags & (SYN | ACK) == SYN | ACK and packet.destination_port == port

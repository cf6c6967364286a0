"""A hundred thousand malformed packets at a pod's hooks: each is one answer, nothing grows, and honest people get in.

::

    alice ──┐ router: from its end of bob's link, frames that no IP stack looks at before bob's does
    bob   ──┘ and from inside bob's pod, through a raw socket

Alice and Bob are held by a node each. The packets are mutations of those of real connections between the two, in both
directions, and of datagrams and ICMP. Many do not reach the hooks: the kernel drops what is no IP packet. What did is
counted by the kernel's queue, and every count after that must agree with it.
"""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet import IP as ScapyIP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest
from scapy.layers.inet6 import IPv6 as ScapyIPv6
from scapy.packet import Raw

from agent.fastqueue import FastQueue
from agent.lab import Lab, LabPod
from tests.harness import implementation
from tests.harness.hostile import Capture
from tests.harness.injector import FrameInjector, RawInjector
from tests.harness.mutations import mutations
from tests.harness.node import HeldPod, Node, Rules
from tests.harness.traffic import IP, Server, ask
from trireme_py import messages
from trireme_py.datapath import Caught, Datapath
from trireme_py.errors import BadPacket
from trireme_py.fast import FastDatapath, Parked
from trireme_py.model import DropReason, Hook, Instant, Release, Result, Verdict
from trireme_py.packet import ACK, SYN, Packet, internet_checksum, parse_packet_untrusted, with_tcp

pytestmark = pytest.mark.kernel

PORT = 80
PER_HOOK = 25_000
"""For each of two hooks and two address families."""
BATCH = 500
"""Half of what a veth takes before it drops (net.core.netdev_max_backlog)."""
MEMORY_BOUND = 24 << 20
"""Octets that 50,000 packets may add to this process. 1 to 7 MB were measured, for some 2,000 half-open connections,
which go when their time is over. The packets themselves, were they kept, would be 50 MB."""
PATIENCE_S = 30.0


@dataclass(slots=True)
class Answers:
    """What a data path answered in Python."""

    given: Counter[Verdict] = field(default_factory=Counter)
    released: Counter[Verdict] = field(default_factory=Counter)

    def count(self, results: list[Result], packets: int) -> list[Result]:
        assert len(results) == packets
        for result in results:
            assert (result.verdict is Verdict.DROP) == (result.reason is not None)
            self.given[result.verdict] += 1
            self.released.update(release.verdict for release in result.release)
        return results

    def count_releases(self, releases: list[tuple[int, Release]]) -> list[tuple[int, Release]]:
        self.released.update(release.verdict for _, release in releases)
        return releases


class CountingDatapath(Datapath):
    """The data path, keeping count of its answers."""

    __slots__ = ("answers",)

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.answers = Answers()

    def receive(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Caught]) -> list[Result]:
        return self.answers.count(super().receive(now, endpoint, hook, batch), len(batch))

    def expire(self, now: Instant) -> list[tuple[int, Release]]:
        return self.answers.count_releases(super().expire(now))

    def take_releases(self) -> list[tuple[int, Release]]:
        return self.answers.count_releases(super().take_releases())


class CountingFastDatapath(FastDatapath):
    """The same of what the fast path parks."""

    __slots__ = ("answers",)

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.answers = Answers()

    def receive_parked(self, now: Instant, endpoint: int, hook: Hook, batch: Sequence[Parked]) -> list[Result]:
        return self.answers.count(super().receive_parked(now, endpoint, hook, batch), len(batch))

    def expire(self, now: Instant) -> list[tuple[int, Release]]:
        return self.answers.count_releases(super().expire(now))

    def take_releases(self) -> list[tuple[int, Release]]:
        return self.answers.count_releases(super().take_releases())


@dataclass(slots=True)
class Scene:
    lab: Lab
    alice: LabPod
    bob: LabPod
    family: int
    here: Node
    there: Node
    held: HeldPod
    """Bob, as his node holds him."""

    def at(self, pod: LabPod) -> IP:
        return pod.ipv4 if self.family == 4 else pod.ipv6

    def judged(self) -> tuple[Answers, int, int]:
        """What Bob's data path answered in Python, how many packets were for it to answer, and how many the fast path
        dropped."""
        datapath = self.there.datapath
        if isinstance(datapath, CountingDatapath):
            return datapath.answers, self.held.queue.counters.packets.total(), 0
        assert isinstance(datapath, CountingFastDatapath)
        assert isinstance(self.held.queue, FastQueue)
        counters = datapath.counters(self.held.endpoint)
        *parked, _ = counters.parked  # the last were offered to the fast path again
        return datapath.answers, sum(parked) - self.held.queue.turned_away, sum(counters.drops)


@pytest.fixture(params=[4, 6])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setitem(implementation.classes, "python", CountingDatapath)
    monkeypatch.setitem(implementation.classes, "c", CountingFastDatapath)
    with Lab("garbage") as lab:
        alice, bob = lab.add_pod("alice"), lab.add_pod("bob")
        with Node(lab.router) as here, Node(lab.router) as there:
            here.hold(alice, "alice")
            held = there.hold(bob, "bob", Rules(ingress=("alice",), egress=("alice",)))
            yield Scene(lab, alice, bob, request.param, here, there, held)


def captured(scene: Scene) -> list[Packet]:
    """The packets of a connection from Alice to Bob and of one from Bob to Alice, as they pass Bob's interface."""
    with Server(scene.alice, PORT), Server(scene.bob, PORT), Capture(scene.bob) as capture:
        assert ask(scene.alice, scene.at(scene.bob), PORT, b"to bob") == b"to bob"
        assert ask(scene.bob, scene.at(scene.alice), PORT, b"to alice") == b"to alice"
        capture.wait_for(lambda packet: packet.source == scene.at(scene.alice).packed and packet.payload == b"to alice")
    kinds = {
        (packet.source, packet.flags & (SYN | ACK), messages.is_message(packet.payload), packet.payload_length > 0)
        for packet in capture.packets
    }
    assert len(kinds) >= 10  # both directions: SYN, SYN-ACK and ACK with a token, data, and bare ACKs
    return capture.packets


def seeds(scene: Scene, hook: Hook) -> list[bytes]:
    """Valid packets that pass one hook."""
    own, other = scene.at(scene.bob), scene.at(scene.alice)
    if hook is Hook.NETWORK:
        own, other = other, own
    tcp = [packet for packet in captured(scene) if packet.source == own.packed]
    if hook is Hook.APPLICATION:
        tcp += [  # as they are before the token is put on
            parse_packet_untrusted(with_tcp(packet, b"")) for packet in tcp if packet.flags & SYN
        ]
    layers: tuple[Any, Any, Any] = (ScapyIP, ICMP(type=3, code=3), ICMP())
    if scene.family == 6:
        layers = (ScapyIPv6, ICMPv6DestUnreach(code=4), ICMPv6EchoRequest())
    network, unreachable, echo = layers
    there = network(src=str(own), dst=str(other))
    back = network(src=str(other), dst=str(own))
    subjects = (back / UDP(sport=53, dport=5353), back / TCP(sport=PORT, dport=tcp[0].source_port))
    icmp = [echo, *(unreachable / subject for subject in subjects)]
    udp = UDP(sport=5353, dport=53) / Raw(b"a datagram of some length")
    return [packet.data for packet in tcp] + [bytes(there / layer) for layer in (udp, *icmp)]


def garbage(valid: list[bytes], version: int, seed: int) -> Iterator[bytes]:
    """Mutations of each packet in turn, without end.

    A mutated packet rarely gets far: lengths and checksums see to that. So some are left as they are, some get an IP
    header that is right, which the kernel reads first, and some a TCP checksum too, which the agent reads. Of those,
    some are damaged in our own message only, and all come from ports of their own: those of the real connections are
    known, and judged before anything is read.
    """
    rng = random.Random(seed)
    header = 20 if version == 4 else 40
    bodies = [parse_packet_untrusted(data).body or header for data in valid]
    wholes, segments, payloads = (
        [mutations(data[cut:] or bytes(8), 1 << 30, seed + cut) for data, cut in zip(valid, cuts, strict=True)]
        for cuts in ([0] * len(valid), [header] * len(valid), bodies)
    )
    while True:
        for index, data in enumerate(valid):
            fate = rng.random()
            if fate < 0.25:
                yield next(wholes[index])
            elif fate < 0.5:
                yield with_ip_lengths(data[:header] + next(segments[index]), version)
            else:
                cut, source = (header, segments) if fate < 0.75 else (bodies[index], payloads)
                mutated = bytearray(data[:cut] + next(source[index]))
                mutated[header : header + 2] = rng.randbytes(2)
                yield with_checksums(with_ip_lengths(bytes(mutated), version))


def with_ip_lengths(data: bytes, version: int) -> bytes:
    """Return a packet with a true length, and a true header checksum, in an IP header without options."""
    mended = bytearray(data)
    if version == 4:
        mended[2:4] = len(data).to_bytes(2, "big")
        mended[10:12] = bytes(2)
        mended[10:12] = internet_checksum(bytes(mended[:20])).to_bytes(2, "big")
    else:
        mended[4:6] = (len(data) - 40).to_bytes(2, "big")
    return bytes(mended)


def with_checksums(data: bytes) -> bytes:
    try:
        packet = parse_packet_untrusted(data)
        return with_tcp(packet, packet.payload) if packet.protocol == socket.IPPROTO_TCP else data
    except BadPacket:
        return data


def hardware_address(pod: LabPod) -> bytes:
    return bytes.fromhex(pod.run(lambda: _interface_address("eth0")).replace(":", ""))


def _interface_address(name: str) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as one:
        one.bind((name, 0))
        address: bytes = one.getsockname()[4]
        return address.hex()


def resident() -> int:
    """Octets of memory this process has now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def pour(scene: Scene, packets: Iterator[bytes], count: int, send: Callable[[bytes], None]) -> None:
    """Send that many, a batch at a time, each after the one before was answered."""
    queue = scene.held.queue
    for _ in range(0, count, BATCH):
        for data in islice(packets, BATCH):
            send(data)
        wait_until(lambda: queue.kernel_counters().waiting <= queue.held, "packets wait without being judged")
        scene.there.loop.call(scene.there.seen.events.clear).result()  # the test's own memory, not the agent's
        scene.here.loop.call(scene.here.seen.events.clear).result()


def test_garbage(scene: Scene) -> None:
    packets = {hook: garbage(seeds(scene, hook), scene.family, 7 + scene.family) for hook in Hook}
    to_alice = str(scene.at(scene.alice))
    with (
        FrameInjector(scene.lab.router, scene.bob.router_interface, hardware_address(scene.bob)) as link,
        RawInjector(scene.bob) as raw, Server(scene.bob, PORT) as application,
    ):  # fmt: skip

        def at_network(data: bytes) -> None:
            link.send(data, scene.family)

        def at_application(data: bytes) -> None:
            raw.send(data, to_alice, scene.family)

        pour(scene, packets[Hook.NETWORK], BATCH, at_network)  # so that what is made once is made
        pour(scene, packets[Hook.APPLICATION], BATCH, at_application)
        before = resident()
        pour(scene, packets[Hook.NETWORK], PER_HOOK, at_network)
        pour(scene, packets[Hook.APPLICATION], PER_HOOK, at_application)
        grown = resident() - before
        queue = scene.held.queue
        wait_until(lambda: queue.kernel_counters().waiting == 0, "packets are held for ever")
        kernel, own = queue.kernel_counters(), queue.counters
        for hook in Hook:
            assert own.packets[hook] > PER_HOOK * 0.5, "too much of it never came to the hook"
        # Every packet that the kernel queued was read, and judged exactly once.
        assert (kernel.queue_dropped, kernel.user_dropped) == (0, 0)
        answers, for_python, dropped_in_c = scene.judged()
        assert kernel.total == own.packets.total()
        assert answers.given.total() == for_python
        assert answers.given[Verdict.HOLD] == answers.released.total()
        # Every one that was dropped is counted under its reason.
        drops = scene.there.drops
        assert drops.total() == answers.given[Verdict.DROP] + answers.released[Verdict.DROP] + dropped_in_c
        assert len(drops) >= 8, drops
        assert not drops[DropReason.INTERNAL_ERROR]
        # Nobody stumbled, and nothing was forgotten.
        assert not scene.there.guard.crashes
        assert not scene.here.guard.crashes
        assert not scene.here.drops[DropReason.INTERNAL_ERROR]
        assert (own.failures.total(), own.verdict_failures, own.lost_tickets, own.forgotten) == (0, 0, 0, 0)
        assert grown < MEMORY_BOUND, f"{grown >> 20} MB"
        # Bob's application heard nobody, and hears an honest client, as does Alice's.
        assert not application.peers
        assert ask(scene.alice, scene.at(scene.bob), PORT) == b"hello"
    with Server(scene.alice, PORT):
        assert ask(scene.bob, scene.at(scene.alice), PORT) == b"hello"

"""Attacks on the exchange of UDP, on a real kernel: replay, reflection, forgery, amplification, floods, changed places.

::

    alice ──┐
    bob   ──┤ router
    mallory ┘

Alice (client) and Bob (server) are held by two nodes. Mallory has root in her own pod, sees what passes at Bob's
interface, spoofs any source address, and nobody's agent watches her.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from socket import SOCK_DGRAM

import pytest

from agent.lab import Lab, LabPod
from tests.harness.hostile import Capture, inject
from tests.harness.node import Node, Rules
from tests.harness.segments import udp
from tests.harness.surplus import kind_of_datagram, read_udp, translated
from tests.harness.traffic import IP, open_socket
from tests.harness.udp_traffic import Echo, query, unanswered
from trireme_py.datagram_server import again_towards_sender
from trireme_py.model import DropReason, Protocol
from trireme_py.packet import parse_packet_untrusted

pytestmark = pytest.mark.kernel

PORT = 53
SPORT = 40_000


@dataclass(frozen=True, slots=True)
class Scene:
    """Alice may ask Bob, and Bob answers only Alice."""

    lab: Lab
    alice: LabPod
    bob: LabPod
    mallory: LabPod
    family: int
    here: Node
    there: Node
    application: Echo
    """Bob's."""

    def at(self, pod: LabPod) -> IP:
        return pod.ipv4 if self.family == 4 else pod.ipv6

    def end(self, pod: LabPod, port: int) -> tuple[bytes, int]:
        return self.at(pod).packed, port

    def ask(self, message: bytes = b"honest", source_port: int = 0) -> None:
        answer = query(self.alice, self.at(self.bob), PORT, message, source_port=source_port)
        assert answer == b"re:" + message

    def overheard(self, *messages: bytes) -> dict[str, bytes]:
        """Alice asks each from a port of her own; returns the datagrams with messages, the last of each kind."""
        with Capture(self.bob, protocol=Protocol.UDP) as capture:
            for number, message in enumerate(messages):
                with open_socket(self.alice, self.at(self.bob), SOCK_DGRAM) as asking:
                    asking.settimeout(15)
                    asking.bind(("", SPORT + number))
                    for part in (message, message + b" again"):
                        asking.sendto(part, (str(self.at(self.bob)), PORT))
                        assert asking.recv(100) == b"re:" + part
            capture.collect()
        return {kind: one.data for one in capture.packets if (kind := kind_of_datagram(one.data))}

    def settles(self, drops: Callable[[], Counter[DropReason]], reason: DropReason, count: int) -> None:
        deadline = time.monotonic() + 20
        while drops()[reason] < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert drops()[reason] == count, drops()


@pytest.fixture(params=[4, 6])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("udpatt"))
        alice, bob, mallory = (lab.add_pod(name) for name in ("alice", "bob", "mallory"))
        here, there = stack.enter_context(Node(lab.router)), stack.enter_context(Node(lab.router))
        here.hold(alice, "alice", Rules(egress=("bob",)))
        there.hold(bob, "bob", Rules(ingress=("alice",)))
        application = stack.enter_context(Echo(bob, PORT))
        yield Scene(lab, alice, bob, mallory, request.param, here, there, application)
        assert not here.guard.crashes
        assert not there.guard.crashes


def test_what_is_played_again_is_not_delivered_again(scene: Scene) -> None:
    heard = scene.overheard(b"one", b"two")
    assert {"HELLO", "ANSWER", "PROOF", "RESUME", "CONFIRM"} <= heard.keys()
    before = list(scene.application.received)
    for kind in ("RESUME", "HELLO"):
        for _ in range(3):
            inject(scene.mallory, heard[kind])
    scene.settles(lambda: scene.there.drops, DropReason.REPLAYED, 3)
    scene.ask()
    assert scene.application.received == [*before, b"honest"]


def test_what_is_sent_back_to_its_sender_is_not_believed(scene: Scene) -> None:
    heard = scene.overheard(b"one", b"two")
    before = list(scene.application.received)
    for kind in ("HELLO", "RESUME", "PROOF"):
        one = read_udp(heard[kind])
        inject(scene.mallory, translated(heard[kind], (one.destination, one.dport), (one.source, one.sport)))
    for kind in ("ANSWER", "CONFIRM"):
        one = read_udp(heard[kind])
        inject(scene.mallory, translated(heard[kind], (one.destination, one.dport), (one.source, one.sport)))
    scene.ask()
    assert scene.application.received == [*before, b"honest"]


def test_a_forged_answer(scene: Scene) -> None:
    """Mallory answers for Bob, in Bob's name or in nobody's, while Alice waits."""
    heard = scene.overheard(b"one")
    scene.there.call(lambda datapath: datapath.remove_endpoint(1))  # Bob is away: nobody else answers
    answer = heard["ANSWER"]
    with open_socket(scene.alice, scene.at(scene.bob), SOCK_DGRAM) as asking:
        asking.settimeout(0.8)
        asking.bind(("", SPORT + 7))
        asking.sendto(b"a secret", (str(scene.at(scene.bob)), PORT))
        for _ in range(5):
            inject(scene.mallory, translated(answer, destination=scene.end(scene.alice, SPORT + 7)))
            inject(scene.mallory, udp(scene.end(scene.bob, PORT), scene.end(scene.alice, SPORT + 7), b"re:a secret"))
        with pytest.raises(TimeoutError):
            asking.recv(100)
    assert b"a secret" not in scene.application.received
    assert scene.here.drops[DropReason.BAD_MAC] == 5


def test_no_more_octets_go_out_than_came_in(scene: Scene) -> None:
    """Mallory spoofs an address with what she has overheard, as it was and cut to size, and hears what comes of it."""
    hello = scene.overheard(b"one")["HELLO"]
    victim = scene.end(scene.mallory, SPORT)
    with Capture(scene.mallory, protocol=Protocol.UDP) as capture:
        sent = 0
        for _ in range(20):
            data = translated(hello, source=victim)
            inject(scene.mallory, data)
            sent += len(data)
        for size in (0, 1, 20, 500):
            data = udp(victim, scene.end(scene.bob, PORT), bytes(size))
            inject(scene.mallory, data)
            sent += len(data)
        time.sleep(0.5)  # nothing says that no more will come
        capture.collect()
    assert 0 < sum(one.length for one in capture.packets if one.source == scene.at(scene.bob).packed) <= sent


def test_a_flood_of_fresh_flows_leaves_a_known_pair_alone(scene: Scene) -> None:
    """A pod sends to thousands of places where nobody is; what it asks Bob goes through meanwhile."""
    scene.ask()
    nowhere = scene.lab.add_pod("silent")
    with open_socket(scene.alice, scene.at(scene.bob), SOCK_DGRAM) as flooding:
        for number in range(6_000):
            flooding.sendto(b"x" * 100, (str(scene.at(nowhere)), 1 + number % 60_000))
            if number % 300 == 0:
                scene.ask(b"%d" % number)
    scene.ask()
    deadline = time.monotonic() + 10
    while sum(scene.here.drops.values()) < 6_000 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sum(scene.here.drops.values()) >= 6_000


def test_a_flow_does_not_follow_the_service_to_another_backend(scene: Scene) -> None:
    """Bob's place behind the Service is taken by a pod that anybody may send to, but to whom Alice may not."""
    other = scene.lab.add_pod("other")
    scene.there.hold(other, "other")
    service = scene.lab.add_service(scene.bob, port=5353, target_port=PORT)
    address = service.ipv4 if scene.family == 4 else service.ipv6
    with Echo(other, PORT) as wrong, open_socket(scene.alice, address, SOCK_DGRAM) as asking:
        asking.settimeout(10)
        for message in (b"one", b"two"):
            asking.sendto(message, (str(address), 5353))
            assert asking.recv(100) == b"re:" + message
        scene.lab.retarget(service, other)
        # As kube-proxy does when a backend of UDP goes away.
        scene.lab.router.command("conntrack", "-D", "-f", f"ipv{scene.family}", "-p", "udp", "--orig-dst", str(address))
        # The other pod reads what was sent until its agent's answer came: one, on a machine that is not busy.
        for number in range(100):
            asking.sendto(b"until refused, number %d" % number, (str(address), 5353))
            time.sleep(0.1)
            if scene.here.drops[DropReason.POLICY]:
                break
        for number in range(5):
            asking.sendto(b"for Bob only, number %d" % number, (str(address), 5353))
        queue = scene.here.pods["alice"].queue
        deadline = time.monotonic() + 20
        while (queue.held or queue.kernel_counters().waiting) and time.monotonic() < deadline:
            time.sleep(0.02)
        # Each was judged; what had reached the other pod is read before what comes now.
        assert query(scene.mallory, scene.at(other), PORT, b"last") == b"re:last"
        assert wrong.received[-1] == b"last"
        assert not [data for data in wrong.received if data.startswith(b"for Bob only")]


def test_a_new_pod_at_an_old_flow_s_address_does_not_inherit_it(scene: Scene) -> None:
    """Alice's agent lets her go, and somebody else is held at her address: ports and conntrack entries are the same."""
    scene.ask(b"one", SPORT)
    scene.ask(b"two", SPORT)
    with Node(scene.lab.router) as elsewhere:
        scene.here.call(lambda datapath: datapath.remove_endpoint(1))
        scene.here.loop.call(lambda: scene.here.loop.remove(1)).result()
        elsewhere.hold(scene.alice, "somebody")
        assert unanswered(scene.alice, scene.at(scene.bob), PORT, b"not for her")
        for number in range(3):
            query_fails(scene, b"%d" % number)
    assert scene.application.received == [b"one", b"two"]


def query_fails(scene: Scene, message: bytes) -> None:
    with pytest.raises(TimeoutError):
        query(scene.alice, scene.at(scene.bob), PORT, message, source_port=SPORT, timeout=0.6)


def test_forged_agains_cost_exchanges_and_no_datagram(scene: Scene) -> None:
    heard = scene.overheard(b"one")
    again = again_towards_sender(parse_packet_untrusted(heard["HELLO"]))
    with open_socket(scene.alice, scene.at(scene.bob), SOCK_DGRAM) as asking:
        asking.settimeout(15)
        asking.bind(("", SPORT))
        for number in range(50):
            inject(scene.mallory, again)
            asking.sendto(b"%d" % number, (str(scene.at(scene.bob)), PORT))
            assert asking.recv(100) == b"re:%d" % number
    assert scene.here.drops[DropReason.UNEXPECTED] > 0

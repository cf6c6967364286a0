"""What holds a pod to its policy, in this process: order of steps, rules laid again, memory of what has ended."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent import conntrack
from agent.enforcement import PodEnforcement
from agent.failmode import FailMode
from agent.lab import Lab, LabPod
from agent.rules import RuleBackend
from agent.rules_iptc import IptcBackend
from agent.rules_restore import RestoreBackend, Variant
from agent.ruleset import DEFAULT_QUEUE, RuleSet
from tests.harness.implementation import open_queue
from tests.harness.node import OPEN, Node, Rules, make_identity
from tests.harness.traffic import Server, ask, open_socket, refused
from trireme_py.errors import KernelError
from trireme_py.model import PolicyView

pytestmark = pytest.mark.kernel

PORT = 80
CLOSED = Rules(ingress=())


@dataclass(frozen=True, slots=True)
class Network:
    client: LabPod
    server: LabPod


@pytest.fixture
def network() -> Iterator[Network]:
    """New for each test: a connection of an earlier one that is not quite over would be counted, and seen."""
    with Lab("enforce") as lab:
        yield Network(lab.add_pod("client"), lab.add_pod("server"))


class Held:
    """``server`` under enforcement."""

    def __init__(self, node: Node, pod: LabPod, policy: PolicyView, backend: RuleBackend | None = None) -> None:
        self.pod = pod
        self.backend = backend or node.backend
        self.enforcement = PodEnforcement(
            node.datapath,
            node.loop,
            node.guard,
            self.backend,
            marks=node.marks,
            queue=DEFAULT_QUEUE,
            fail_mode=FailMode.CLOSED,
        )
        self.attach(node, policy)

    def attach(self, node: Node, policy: PolicyView) -> None:
        identity = make_identity(node.authenticator, "server")
        addresses = self.enforcement.addresses(self.pod.path)
        assert set(addresses) == set(self.pod.addresses)
        self.enforcement.attach(
            1, "test/server", self.pod.path, addresses=addresses, identity=identity, policy=policy, epoch=1
        )


@pytest.fixture
def node(network: Network) -> Iterator[Node]:
    with Node() as node, Server(network.server, PORT):
        yield node
        for variant in Variant:
            RestoreBackend(variant).remove(network.server.path)


@pytest.mark.parametrize(
    "backend", [RestoreBackend(Variant.NFT), RestoreBackend(Variant.LEGACY), IptcBackend()], ids=lambda one: one.name
)
def test_a_policy_is_swapped_with_its_epoch(network: Network, node: Node, backend: RuleBackend) -> None:
    held = Held(node, network.server, OPEN, backend)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"
    held.enforcement.set_policy(1, CLOSED, 2)
    assert held.enforcement.epoch_in_force(network.server.path) == 1
    assert refused(network.client, network.server.ipv4, PORT), "what is new is judged by it already"
    held.enforcement.lay_epoch(1)
    assert held.enforcement.epoch_in_force(network.server.path) == 2
    assert refused(network.client, network.server.ipv6, PORT)
    held.enforcement.set_policy(1, OPEN, 3)
    held.enforcement.lay_epoch(1)
    assert ask(network.client, network.server.ipv6, PORT) == b"hello"
    assert 3 in held.enforcement.epochs_in_use(network.server.path)
    held.enforcement.detach(1)
    assert refused(network.client, network.server.ipv4, PORT), "rules without a listener hold what is new"
    held.enforcement.remove_rules(network.server.path)
    assert held.enforcement.epoch_in_force(network.server.path) is None
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"


def test_rules_that_somebody_flushed_are_laid_again(
    network: Network, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held(node, network.server, CLOSED)
    held.enforcement.verify()
    assert not caplog.records
    network.server.command("iptables", "-t", "mangle", "-F")
    assert ask(network.client, network.server.ipv4, PORT) == b"hello", "without rules a pod is open"
    held.enforcement.verify()
    assert refused(network.client, network.server.ipv4, PORT)
    assert [record.message for record in caplog.records] == [
        "rules had been changed by somebody else and were laid again"
    ]


def test_connections_that_ended_are_forgotten_after_a_second_look(network: Network, node: Node) -> None:
    held = Held(node, network.server, OPEN)
    with open_socket(network.client, network.server.ipv4) as lives:
        lives.connect((str(network.server.ipv4), PORT))
        lives.sendall(b"x")
        assert lives.recv(1) == b"x"
        assert ask(network.client, network.server.ipv6, PORT) == b"hello"
        assert held.enforcement.read().gauges.live == 2
        network.server.command("conntrack", "-D", "-f", "ipv6")
        held.enforcement.verify()
        assert held.enforcement.read().gauges.live == 2
        held.enforcement.verify()
        assert held.enforcement.read().gauges.live == 1
        lives.sendall(b"y")
        assert lives.recv(1) == b"y"


@pytest.mark.parametrize("iptables", ["iptables", "ip6tables"])
def test_a_connection_behind_a_sidecar_is_not_forgotten_while_it_lives(
    network: Network, node: Node, iptables: str
) -> None:
    """Its packets leave from the proxy's port, as far as the rules can see: conntrack's reply direction says so."""
    address = network.server.ipv4 if iptables == "iptables" else network.server.ipv6
    redirect = ("PREROUTING", "-p", "tcp", "--dport", str(PORT), "-j", "REDIRECT", "--to-ports", "15006")
    network.server.command(iptables, "-t", "nat", "-A", *redirect)
    try:
        held = Held(node, network.server, OPEN)
        with Server(network.server, 15006), open_socket(network.client, address) as lives:
            lives.connect((str(address), PORT))
            lives.sendall(b"x")
            assert lives.recv(1) == b"x"
            assert held.enforcement.read().gauges.live == 2
            held.enforcement.verify()
            held.enforcement.verify()
            assert held.enforcement.read().gauges.live == 2
    finally:
        network.server.command(iptables, "-t", "nat", "-D", *redirect)


def test_a_namespace_that_refuses_leaves_no_other_unverified(network: Network, node: Node) -> None:
    class Refusing(RestoreBackend):
        def apply(self, namespace: Path, rules: RuleSet) -> bool:
            if namespace == network.client.path and refuse:
                raise KernelError("no")
            return super().apply(namespace, rules)

    refuse = False
    held = Held(node, network.client, CLOSED, Refusing(Variant.NFT))
    held.enforcement.attach(
        2, "test/server", network.server.path, addresses=(), identity=None, policy=CLOSED, epoch=1
    )  # fmt: skip
    try:
        refuse = True
        network.server.command("iptables", "-t", "mangle", "-F")
        with pytest.raises(KernelError, match="no"):
            held.enforcement.verify()
        assert refused(network.client, network.server.ipv4, PORT)
    finally:
        held.enforcement.detach(1)
        RestoreBackend(Variant.NFT).remove(network.client.path)


def test_counters_never_fall_when_a_pod_goes(network: Network, node: Node) -> None:
    held = Held(node, network.server, OPEN)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"
    before = held.enforcement.read().queues
    assert before.packets > 0
    held.enforcement.detach(1)
    after = held.enforcement.read().queues
    assert (after.packets, after.backlog) == (before.packets, 0)
    assert not held.enforcement.serving(1)
    held.attach(node, OPEN)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"
    assert held.enforcement.read().queues.packets > before.packets


def test_a_failed_attach_leaves_no_listener(network: Network, node: Node) -> None:
    class Refusing(RestoreBackend):
        def apply(self, namespace: Path, rules: RuleSet) -> bool:
            raise KernelError("no")

    with pytest.raises(KernelError, match="no"):
        Held(node, network.server, OPEN, Refusing(Variant.NFT))
    assert not node.loop.queues
    Held(node, network.server, OPEN)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"


def test_a_queue_without_a_descriptor_left_is_an_error_that_leaves_nothing_open(network: Network, node: Node) -> None:
    open_files = Path("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # what earlier tests left open
    before = len(list(open_files.iterdir()))
    highest = max(int(path.name) for path in open_files.iterdir())
    gaps = [os.open("/dev/null", os.O_RDONLY)]  # below the highest: the limit is one of numbers, not of files
    while gaps[-1] < highest:
        gaps.append(os.open("/dev/null", os.O_RDONLY))
    refusals = 0
    for more in range(32):
        resource.setrlimit(resource.RLIMIT_NOFILE, (gaps[-1] + 1 + more, hard))
        try:
            open_queue(
                network.server.path, 1, node.datapath, node.guard, threads=node.threads, marks=node.marks, epoch=1
            ).close()
        except KernelError:
            refusals += 1
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            gc.collect()  # a refusal's traceback
    for descriptor in gaps:
        os.close(descriptor)
    assert 2 < refusals < 32
    assert len(list(open_files.iterdir())) <= before


def test_a_second_agent_in_the_same_namespace_is_refused(network: Network, node: Node) -> None:
    Held(node, network.server, OPEN)
    with Node() as other, pytest.raises(KernelError, match="is another agent running there"):
        Held(other, network.server, OPEN)
    assert ask(network.client, network.server.ipv4, PORT) == b"hello"


def test_a_sweep_finds_the_epochs_of_live_connections_only(network: Network, node: Node) -> None:
    held = Held(node, network.server, OPEN)
    network.server.command("conntrack", "-F")
    assert held.enforcement.epochs_in_use(network.server.path) == set()
    with open_socket(network.client, network.server.ipv4) as lives:
        lives.connect((str(network.server.ipv4), PORT))
        lives.sendall(b"x")
        assert lives.recv(1) == b"x"
        assert held.enforcement.epochs_in_use(network.server.path) == {1}
        assert len(conntrack.sweep(network.server.path, node.marks)) == 1

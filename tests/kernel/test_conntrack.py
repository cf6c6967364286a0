"""Evidence from conntrack: where a node translated an address to, and whose connections carry which epoch."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.conntrack import NodeConntrack, epochs_in_use, sweep
from agent.lab import Lab
from agent.marks import Marks
from agent.rules_restore import probe
from tests.harness.stand_in import ACCEPT, address, connect, listen, served
from trireme_py.errors import KernelError
from trireme_py.model import Protocol

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("ct") as made:
        yield made


@FAMILIES
@pytest.mark.parametrize("masqueraded", [False, True])
def test_a_service_address_is_translated_to_the_pod_behind_it(lab: Lab, family: int, masqueraded: bool) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    service = lab.add_service(b, port=80, target_port=8080)
    if masqueraded:
        lab.masquerade(a, b)
    virtual = service.ipv4 if family == socket.AF_INET else service.ipv6
    node = NodeConntrack(lab.router.path)
    try:
        with listen(b, family), connect(a, virtual, 80) as client:
            source, source_port = ip_address(client.getsockname()[0]).packed, client.getsockname()[1]
            target = ip_address(address(b, family)).packed
            found = node.translate(Protocol.TCP, source, source_port, virtual.packed, 80)
            assert found == (target, 8080)
            # No evidence: another port, another protocol, and the connection asked for by its other direction.
            assert node.translate(Protocol.TCP, source, source_port, virtual.packed, 81) is None
            assert node.translate(Protocol.UDP, source, source_port, virtual.packed, 80) is None
            back = ip_address(str(b.gateway4 if family == socket.AF_INET else b.gateway6)).packed
            back = back if masqueraded else source
            assert node.translate(Protocol.TCP, target, 8080, back, source_port) is None
        with listen(b, family, 9090), connect(a, address(b, family), 9090) as client:
            port = client.getsockname()[1]
            assert node.translate(Protocol.TCP, source, port, target, 9090) == (target, 9090)
    finally:
        node.close()


def test_a_node_namespace_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KernelError, match="trm-ct-nowhere"):
        NodeConntrack(Path("/run/netns/trm-ct-nowhere"))


@FAMILIES
def test_a_sweep_finds_the_accepted_connections_and_their_epochs(lab: Lab, family: int) -> None:
    a, b = lab.add_pod("a"), lab.add_pod("b")
    marks = Marks()
    with served(probe(), lambda hook, caught: ACCEPT, b) as pods, listen(b, family) as server:
        assert sweep(b.path, marks) == frozenset()
        with connect(a, address(b, family)) as client:
            server.accept()[0].close()
            client.recv(1)
            (found,) = sweep(b.path, marks)
            own, other = ip_address(address(a, family)).packed, ip_address(address(b, family)).packed
            assert (found.protocol, found.original) == (6, (own, client.getsockname()[1], other, 8080))
            assert found.reply == (other, 8080, own, client.getsockname()[1])
            assert epochs_in_use(b.path, marks) == {pods.rules.epoch}
    assert sweep(a.path, marks) == frozenset()

"""Agents are installed node by node: the node of ``client`` has none yet, that of ``server`` and ``other`` has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from agent.lab import Lab, LabPod
from tests.harness.node import Node, Rules
from tests.harness.traffic import Server, ask, open_socket, refused
from tests.harness.udp_traffic import Echo
from trireme_py.model import Reason

pytestmark = pytest.mark.kernel

PORT = 80
STRICT = Rules(ingress=("client",), port=PORT)
INSTALLING = replace(STRICT, installing=True)
LONG_ENOUGH_S = 4.0
"""For the SYN that an agent sends without a token, after two with one: one second and two more."""


@dataclass(frozen=True, slots=True)
class Network:
    client: LabPod
    server: LabPod
    other: LabPod


@pytest.fixture
def network() -> Iterator[Network]:
    with Lab("install") as lab:
        yield Network(lab.add_pod("client"), lab.add_pod("server"), lab.add_pod("other"))


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_a_rolling_installation(network: Network, family: int) -> None:
    address = network.server.ipv4 if family == 4 else network.server.ipv6
    with Server(network.server, PORT), Echo(network.server, PORT), open_socket(network.client, address) as old:
        old.settimeout(5)
        old.connect((str(address), PORT))

        def goes_on() -> bool:
            old.sendall(b"still there")
            return old.recv(100) == b"still there"

        assert goes_on()
        with Node() as node:
            node.hold(network.server, "server", INSTALLING)
            node.hold(network.other, "other")
            assert goes_on(), "older than the agent"
            assert ask(network.client, address, PORT) == b"hello"
            assert refused(network.other, address, PORT, timeout=LONG_ENOUGH_S), "its identity is known"
            reasons = {event.decision.reason for event in node.events if event.pod == "test/server"}
            assert reasons == {Reason.NOT_YET_IDENTIFIED, Reason.NO_MATCH}
            node.set_policy("server", STRICT)
            assert goes_on(), "nobody can ask it for an identity"
            assert refused(network.client, address, PORT)
            node.hold(network.client, "client")
            assert ask(network.client, address, PORT) == b"hello"
            node.set_policy("server", Rules(ingress=()))
            with pytest.raises(OSError, match=r"(?i)reset|timed out"):
                goes_on()

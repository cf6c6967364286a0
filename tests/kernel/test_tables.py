"""The TCP and UDP rows of the conformance tables on a real kernel: a case for every tag, a node for each namespace.

Each step of a case is an update to what runs. A row is allowed exactly if its connection, or its datagram, is answered.
Slow (two minutes) because a refusal can only be waited for. SCTP's rows are the engine's alone: this kernel has no SCTP
sockets, and no identity travels on it (docs/udp.md).
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import pytest
from pyroute2 import IPRoute

from agent.lab import Lab, LabPod
from policy.engine import PolicyEngine
from policy.objects import Pod
from policy.view import Settings
from tests.harness.node import Node
from tests.harness.traffic import PATIENCE_S, Server
from tests.harness.udp_traffic import Echo
from tests.policy.test_conformance_tables import objects_of
from tests.policy.test_tables_on_the_data_path import PODS, cover
from trireme_py.assertion import Claims, identity_id
from trireme_py.identities import LocalIdentity
from trireme_py.labels import SALT_SIZE
from trireme_py.model import PlainLabels
from trireme_py.pairing import AgreementKey

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

GRACE_S = 0.3
"""How long to go on looking for what must not come, once all that must come has come."""


@dataclass(slots=True)
class Cluster:
    """The tables' pods, with their addresses; each namespace is a node."""

    lab: Lab
    servers: ExitStack
    pods: dict[str, LabPod] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def place(self, name: str, address: str) -> LabPod:
        """Have a pod there, with its servers, that answers at the address the tables give it beside its own."""
        if name not in self.pods:
            self.pods[name] = self.lab.add_pod(name.replace("/", "-"))
            for port in (80, 81):
                self.servers.enter_context(Server(self.pods[name], port))
        pod, old = self.pods[name], self.addresses.setdefault(name, "")
        if old == address:
            return pod
        assert not old, "the tables' pods keep their addresses"
        self.addresses[name] = address

        def in_pod() -> None:
            with IPRoute() as route:
                route.addr("add", index=route.link_lookup(ifname="eth0")[0], address=address, prefixlen=32)

        def in_router() -> None:
            with IPRoute() as route:
                route.route("add", dst=f"{address}/32", oif=route.link_lookup(ifname=pod.router_interface)[0])

        pod.run(in_pod)
        self.lab.router.run(in_router)
        for port in (80, 81):
            self.servers.enter_context(Echo(pod, port, answers=lambda data: data, ipv4=address))
        return pod


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab("tables") as lab, ExitStack() as servers:
        yield Cluster(lab, servers)


def identity_of(node: Node, pod: Pod) -> LocalIdentity:
    now = time.time()
    key = AgreementKey.generate(os.urandom)
    claims = Claims(
        node.authenticator.trust_domain, pod.namespace, pod.service_account, pod.name, PlainLabels(dict(pod.labels)),
        pod.named_ports, int(now), int(now) + 3600, key.public,
    )  # fmt: skip
    assertion = node.authenticator.issue(claims, os.urandom(SALT_SIZE))
    return LocalIdentity(identity_id(assertion), assertion, key, now + 3600)


def rows_of(step: dict[str, Any], protocol: str) -> list[dict[str, Any]]:
    return [row for row in step["Expected"] if row["Protocol"] == protocol and row["From"] != row["To"]]


ROWS = [(case, protocol) for case in cover() for protocol in ("TCP", "UDP") if rows_of(case["Steps"][0], protocol)]


@pytest.mark.parametrize(
    ("case", "protocol"),
    ROWS,
    ids=lambda one: one if isinstance(one, str) else f"{one['Index']} {one['Description']}"[:60],
)
def test_rows(case: dict[str, Any], protocol: str, cluster: Cluster) -> None:
    engine = PolicyEngine(Settings())
    with ExitStack() as running:
        nodes: dict[str, Node] = {}
        for step in case["Steps"]:
            snapshot = engine.replace(objects_of(step).values())
            for item in snapshot.pods.values():
                if item.namespace not in nodes:
                    node = Node(cluster.lab.router, pod_ranges=("10.77.0.0/16", PODS))
                    nodes[item.namespace] = running.enter_context(node)
                name, node = f"{item.namespace}/{item.name}", nodes[item.namespace]
                view = snapshot.view(item.namespace, item.name)
                pod = cluster.place(name, str(IPv4Address(item.addresses[0])))
                if name in node.pods:
                    node.set_identity(name, identity_of(node, item))
                    node.set_policy(name, view)
                else:
                    node.hold(pod, name, view, identity=identity_of(node, item))
            rows = rows_of(step, protocol)
            allowed = {key_of(row) for row in rows if row["Combined"] == "allowed"}
            assert connect_all(cluster, rows, allowed) == allowed


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["From"], row["To"], row["Port"]


def connect_all(
    cluster: Cluster, rows: list[dict[str, Any]], expected: set[tuple[str, str, int]]
) -> set[tuple[str, str, int]]:
    """Open every row's connection, or socket, at once and say hello; returns those that were answered."""
    answered: set[tuple[str, str, int]] = set()
    deadline: float | None = None
    patience = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as selector, ExitStack() as closing:
        for row in rows:
            source, target = cluster.pods[row["From"]], cluster.addresses[row["To"]]
            kind = socket.SOCK_STREAM if row["Protocol"] == "TCP" else socket.SOCK_DGRAM
            client: socket.socket = source.run(
                lambda kind=kind: socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)  # type: ignore[misc]
            )
            closing.callback(client.close)
            client.bind((cluster.addresses[row["From"]], 0))
            client.connect_ex((target, row["Port"]))
            selector.register(client, selectors.EVENT_WRITE, key_of(row))
        while deadline is None or time.monotonic() < deadline:
            if deadline is None and (answered >= expected or time.monotonic() > patience):
                deadline = time.monotonic() + GRACE_S
            for ready, events in selector.select(0.05):
                assert isinstance(ready.fileobj, socket.socket)
                client = ready.fileobj
                if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    selector.unregister(client)
                elif events & selectors.EVENT_WRITE:
                    client.send(b"hello")
                    selector.modify(client, selectors.EVENT_READ, ready.data)
                elif client.recv(100) == b"hello":
                    answered.add(ready.data)
                    selector.unregister(client)
    return answered

"""The TCP rows of at least one case per tag of the conformance tables, as connections through the real data path.

Every pod has its own data path with its own compiled policy; identities travel in the handshakes, in packets, in
virtual time. A row is allowed exactly if its connection opens and carries data both ways.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from policy.engine import PolicyEngine, Snapshot
from policy.objects import Pod
from policy.view import Settings
from tests.harness import world as harness
from tests.harness.shop import echo
from tests.harness.tcp import Connection
from tests.policy.test_conformance_tables import cases, objects_of
from trireme_py.model import PlainLabels, Protocol

PODS = "192.168.0.0/16"
"""Where the tables' pods live."""


def cover() -> list[dict[str, Any]]:
    """Choose cases, most new tags first, until every tag is among theirs."""
    left = {tag for case in cases() for tag in case["Tags"]}
    chosen: list[dict[str, Any]] = []
    while left:
        best = max(cases(), key=lambda case: len(left & set(case["Tags"])))
        left -= set(best["Tags"])
        chosen.append(best)
    return chosen


def build(snapshot: Snapshot, pods: Iterable[Pod]) -> harness.World:
    world = harness.World()
    for item in pods:
        name = f"{item.namespace}/{item.name}"
        claims = {
            "namespace": item.namespace,
            "pod": item.name,
            "labels": PlainLabels(dict(item.labels)),
            "named_ports": item.named_ports,
        }
        authenticator = world.authenticator(name.replace("/", "-"))
        identity = world.local_identity(name, authenticator, **claims)
        text = ".".join(map(str, item.addresses[0]))
        pod = world.pod(name, text, policy=snapshot.view(item.namespace, item.name), identity=identity)
        for port in {port.number for port in item.named_ports if port.protocol == Protocol.TCP}:
            pod.listen(port, on_data=echo)
    return world


@pytest.mark.parametrize("case", cover(), ids=lambda case: f"{case['Index']} {case['Description']}"[:60])
def test_tcp_rows(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "POD_RANGES", (*harness.POD_RANGES, PODS))
    monkeypatch.setattr(harness, "SCOPE", (*harness.SCOPE, PODS))
    engine = PolicyEngine(Settings())
    asked = 0
    for step in case["Steps"]:
        snapshot = engine.replace(objects_of(step).values())
        world = build(snapshot, snapshot.pods.values())
        connections: list[tuple[dict[str, Any], Connection]] = []
        for row in step["Expected"]:
            if row["Protocol"] == "TCP" and row["From"] != row["To"]:
                source, target = world.pods[row["From"]], world.pods[row["To"]]
                connections.append((row, source.connect(target, row["Port"], data=b"hello")))
        world.run(3)
        wrong = [
            (row, connection.outcome)
            for row, connection in connections
            if (bytes(connection.received) == b"hello") != (row["Combined"] == "allowed")
        ]
        assert not wrong
        asked += len(connections)
    assert asked

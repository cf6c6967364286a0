"""What could be allowed to somebody whose identity is not known yet."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.addresses import parse_address
from policy.decode import decode
from policy.engine import PolicyEngine
from policy.evaluate import OFFLINE, identity_of
from policy.view import CLOSED, Settings
from tests.policy import generate
from tests.policy.world import World, cluster_policy, pod, policy
from trireme_py.model import Direction, Protocol

A = pod("n/a", "10.0.0.1", app="a")
ELSEWHERE = parse_address("10.0.0.9")
CLOSING = policy("n/closing", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
CLUSTER = "{tier: %s, priority: 1, subject: {namespaces: {}}, egress: [%s]}"
FROM_B = "{namespaces: {matchLabels: {team: b}}}"


def could(world: World, port: int | None = 80, direction: Direction = Direction.INGRESS, protocol: int = 6) -> bool:
    return world.engine.snapshot.view("n", "a").could_allow(direction, ELSEWHERE, protocol, port)


@settings(max_examples=1_500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64 - 1))
def test_whoever_is_allowed_could_be(seed: int) -> None:
    """Nobody whom policy permits is refused for not being identified yet."""
    rng = Random(seed)
    documents = generate.cluster(rng)
    snapshot = PolicyEngine(Settings()).replace(item for item, _ in map(decode, documents.values()) if item is not None)
    for namespace, name in snapshot.pods:
        view = snapshot.view(namespace, name)
        for other in snapshot.pods.values():
            address, port = parse_address(rng.choice(generate.ADDRESSES)), rng.choice(generate.PORTS)
            protocol = rng.choice([Protocol.TCP, Protocol.UDP])
            for direction in Direction:
                for identity in (identity_of(other), None):
                    decision = view.decide(direction, identity, address, protocol, port)
                    could = view.could_allow(direction, address, protocol, port)
                    assert could or not decision.allowed, (documents, namespace, name, other, direction, port)


@pytest.mark.parametrize("direction", Direction)
def test_a_closed_pod_is_closed_to_whoever_it_may_be(direction: Direction) -> None:
    assert could(World(A), direction=direction)
    assert not could(World(A, CLOSING), direction=direction)
    assert not CLOSED.could_allow(direction, ELSEWHERE, 6, 80)


def test_only_a_rule_that_names_pods_may_mean_somebody() -> None:
    blocks = policy("n/p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}")
    assert not could(World(A, CLOSING, blocks))
    pods = policy(
        "n/p", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {x: y}}}], ports: [{port: 81}]}]}"
    )
    assert could(World(A, CLOSING, pods), 81)
    assert not could(World(A, CLOSING, pods), 80)
    assert not could(World(A, CLOSING, pods), 81, protocol=17)


def test_a_port_that_only_an_identity_can_name() -> None:
    text = "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: web}]}]}"
    assert could(World(A, policy("n/p", text)), 8080, Direction.EGRESS)
    assert not could(World(A, policy("n/p", text)), 8080, Direction.EGRESS, 17)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (f"{{action: Deny, to: [{FROM_B}]}}", True),
        ("{action: Deny, to: [{networks: [0.0.0.0/0]}]}", False),
        ("{action: Deny, to: [{networks: [10.1.0.0/16]}]}", True),
        (f"{{action: Accept, to: [{FROM_B}]}}, {{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}", True),
        (f"{{action: Pass, to: [{FROM_B}]}}, {{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}", True),
        (f"{{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}, {{action: Accept, to: [{FROM_B}]}}", False),
    ],
)
@pytest.mark.parametrize("tier", ["Admin", "Baseline"])
def test_cluster_rules(tier: str, rules: str, expected: bool) -> None:
    world = World(A, cluster_policy("c", CLUSTER % (tier, rules)))
    assert could(world, direction=Direction.EGRESS) is expected


def test_a_pass_leads_to_what_comes_next() -> None:
    rules = f"{{action: Pass, to: [{FROM_B}]}}, {{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}"
    world = World(A, cluster_policy("c", CLUSTER % ("Admin", rules)), CLOSING)
    assert not could(world, direction=Direction.EGRESS)


def test_live_connections_are_judged_anew_when_it_begins_and_ends() -> None:
    world = World(A, CLOSING)
    before = world.fingerprint("n/a")
    world.engine.set_settings(Settings(cluster=(), installing=True))
    assert world.fingerprint("n/a") != before
    assert world.engine.snapshot.view("n", "a").installing
    world.engine.set_settings(OFFLINE)
    assert world.fingerprint("n/a") == before
    assert not world.engine.snapshot.view("n", "a").installing

"""Audit mode: the effect is computed and reported, not enforced, while all else is enforced."""

from __future__ import annotations

from typing import Any

from policy.addresses import parse_address
from policy.evaluate import OFFLINE
from policy.objects import MODE_ANNOTATION
from policy.view import Settings
from tests.policy.world import World, cluster_policy, obj, pod, policy
from trireme_py.model import Direction, Reason

A, B = pod("n/a", "10.0.0.1", app="a"), pod("n/b", "10.0.0.2", app="b")
AUDIT: dict[str, Any] = {"annotations": {MODE_ANNOTATION: "audit"}}
DENY_ALL = "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}"


def test_a_policy_in_audit_reports_what_it_would_deny() -> None:
    world = World(A, B, policy("n/new", "{podSelector: {}, ingress: [{ports: [{port: 81}]}]}", **AUDIT))
    found = world.decide("n/b", Direction.INGRESS, A)
    assert (found.allowed, found.reason, found.policy) == (True, Reason.AUDIT, "NetworkPolicy/n/new")
    assert found.nearest == "NetworkPolicy/n/new ingress[0] needs TCP 81, the flow is TCP 80"
    assert world.decide("n/b", Direction.INGRESS, A, port=81).reason is Reason.NO_ISOLATION
    assert world.engine.snapshot.view("n", "b").isolated(Direction.INGRESS), "it must be judged to be reported"


def test_what_is_enforced_beside_it_stays_enforced() -> None:
    enforced = policy("n/old", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}")
    staged = policy("n/new", "{podSelector: {}, ingress: [{ports: [{port: 81}]}]}", **AUDIT)
    world = World(A, B, enforced, staged)
    assert world.decide("n/b", Direction.INGRESS, A, port=80).reason is Reason.POLICY
    found = world.decide("n/b", Direction.INGRESS, A, port=81)
    assert (found.allowed, found.policy) == (False, "NetworkPolicy/n/old"), "a rule in audit opens nothing either"


def test_an_annotated_namespace_puts_its_own_policies_in_audit_and_no_other() -> None:
    world = World(obj("Namespace", "n", **AUDIT), A, B, policy("n/new", "podSelector: {}"))
    assert world.decide("n/b", Direction.INGRESS, A).reason is Reason.AUDIT
    before = world.fingerprint("n/b")
    world.add(obj("Namespace", "n"))
    assert world.decide("n/b", Direction.INGRESS, A).reason is Reason.NO_MATCH
    assert world.fingerprint("n/b") != before
    world.add(obj("Namespace", "n", **AUDIT), cluster_policy("deny", DENY_ALL))
    assert world.decide("n/b", Direction.INGRESS, A).reason is Reason.DENY_RULE


def test_a_cluster_policy_in_audit() -> None:
    world = World(A, B, cluster_policy("deny", DENY_ALL, **AUDIT))
    found = world.decide("n/b", Direction.INGRESS, A)
    assert (found.allowed, found.reason, found.policy, found.rule) == (
        True,
        Reason.AUDIT,
        "ClusterNetworkPolicy/deny",
        0,
    )
    assert found.nearest == "ClusterNetworkPolicy/deny ingress[0] denies it"


def test_the_whole_engine_in_audit_denies_nothing_and_reports_everything() -> None:
    text = "{podSelector: {}, ingress: [{ports: [{port: 80}]}], policyTypes: [Ingress, Egress]}"
    world = World(A, B, policy("n/p", text))
    world.engine.set_settings(Settings(cluster=(), audit=True))
    assert world.decide("n/b", Direction.INGRESS, A, port=81).reason is Reason.AUDIT
    assert world.decide("n/b", Direction.INGRESS, A, port=80).reason is Reason.POLICY
    assert world.decide("n/a", Direction.EGRESS, B).reason is Reason.AUDIT
    assert world.engine.snapshot.view("n", "a").may_open(6)
    world.engine.set_settings(OFFLINE)
    assert not world.decide("n/b", Direction.INGRESS, A, port=81).allowed


def test_may_open_asks_only_what_is_enforced() -> None:
    world = World(A, policy("n/p", "{podSelector: {}, policyTypes: [Egress]}", **AUDIT))
    assert world.engine.snapshot.view("n", "a").may_open(6)
    world.add(policy("n/q", "{podSelector: {}, policyTypes: [Egress]}"))
    assert not world.engine.snapshot.view("n", "a").may_open(6)


def test_a_mode_that_is_not_known_is_enforced() -> None:
    world = World(A, B, policy("n/p", "podSelector: {}", annotations={MODE_ANNOTATION: "Audit"}))
    view = world.engine.snapshot.view("n", "b")
    assert not view.decide(Direction.INGRESS, None, parse_address("192.0.2.1"), 6, 80).allowed

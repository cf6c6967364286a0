"""The engine's book-keeping: what a change touches, what it leaves alone, and when two views are the same."""

from __future__ import annotations

import pytest

from policy import compiler
from policy import engine as engine_module
from policy.engine import PolicyEngine
from policy.evaluate import identity_of
from policy.objects import Object
from policy.view import CLOSED
from tests.policy.world import World, cluster_policy, namespace, obj, pod, policy
from trireme_py.model import Direction, PolicyView

A, B = pod("n/a", "10.0.0.1", app="a"), pod("n/b", "10.0.0.2", app="b")
FOR_B = "{podSelector: {matchLabels: {app: b}}, ingress: [%s]}"
TEAM = "{from: [{namespaceSelector: {matchLabels: {team: x}}}]}"


def view_of(world: World, name: str) -> PolicyView:
    return world.engine.snapshot.view(*name.split("/"))


@pytest.mark.parametrize(
    "change",
    [
        policy("n/p", FOR_B % "{ports: [{port: 81}]}"),
        policy("n/q", FOR_B % "{}"),
        policy("n/p", FOR_B % TEAM, annotations={"trireme.io/mode": "audit"}),
        namespace("m", team="x"),
        obj("Namespace", "n", annotations={"trireme.io/mode": "audit"}),
        pod("n/b", "10.0.0.2", app="c"),
        cluster_policy(
            "x",
            "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}]}]}",
        ),
    ],
    ids=lambda item: item.key,
)
def test_a_change_that_counts_changes_the_fingerprint(change: Object) -> None:
    world = World(namespace("n"), namespace("m"), A, B, policy("n/p", FOR_B % TEAM))
    before = world.fingerprint("n/b")
    world.add(change)
    assert world.fingerprint("n/b") != before


@pytest.mark.parametrize(
    "change",
    [
        policy("m/p", FOR_B % "{}"),
        policy("n/q", "{podSelector: {matchLabels: {app: c}}}"),
        policy("n/p", FOR_B % TEAM, labels={"any": "label"}),
        namespace("other"),
        namespace("m", unrelated="label"),
        pod("n/b", "10.0.0.9", app="b", tier="new"),
        pod("n/b", "10.0.0.2", app="b", ports="[{containerPort: 81, name: http}]"),
        pod("m/c", "10.0.0.5", app="b"),
        obj("Node", "one", "status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}"),
    ],
    ids=lambda item: item.key,
)
def test_a_change_that_does_not_count_keeps_the_view_itself(change: Object) -> None:
    """The same object, with what it remembers; live connections of the pod are left alone."""
    world = World(namespace("n"), namespace("m"), A, B, policy("n/p", FOR_B % TEAM))
    before = view_of(world, "n/b")
    world.add(change)
    assert view_of(world, "n/b") is before


def test_own_port_names_count_only_where_a_rule_names_a_port() -> None:
    world = World(A, B, policy("n/p", FOR_B % "{ports: [{port: http}]}"))
    before = world.fingerprint("n/b")
    world.add(pod("n/b", "10.0.0.2", app="b", ports="[{containerPort: 81, name: http}]"))
    assert world.fingerprint("n/b") != before


def test_two_ways_of_writing_the_same_policy_have_one_fingerprint() -> None:
    one = (
        "{podSelector: {matchLabels: {app: b, x: y}}, ingress: [{from: [{podSelector: {matchLabels: {a: b, c: d}}}]}]}"
    )
    two = """
    podSelector: {matchExpressions: [{key: x, operator: In, values: [y]}], matchLabels: {app: b}}
    policyTypes: [Ingress]
    ingress:
    - from: [{podSelector: {matchLabels: {c: d}, matchExpressions: [{key: a, operator: In, values: [b, b]}]}}]
    """
    target = pod("n/b", "10.0.0.2", app="b", x="y")
    worlds = [World(target, policy("n/p", text)) for text in (one, two)]
    assert worlds[0].fingerprint("n/b") == worlds[1].fingerprint("n/b")
    assert view_of(worlds[0], "n/b") == view_of(worlds[1], "n/b")
    assert hash(view_of(worlds[0], "n/b")) == hash(view_of(worlds[1], "n/b"))
    worlds[1].add(policy("n/p", two.replace("c: d", "c: e")))
    assert view_of(worlds[0], "n/b") != view_of(worlds[1], "n/b")
    assert view_of(worlds[0], "n/b") != view_of(worlds[0], "n/unknown")


def test_a_changed_namespace_reaches_views_that_remember_the_old_answer() -> None:
    world = World(namespace("m"), A, B, pod("m/c", "10.0.1.1"), policy("n/p", FOR_B % TEAM))
    for team, expected in (("x", "yes"), ("y", "ingress"), ("x", "yes")):
        world.add(namespace("m", team=team))
        assert world.ask("m/c", "n/b") == expected
    world.engine.delete("Namespace/m")
    assert world.ask("m/c", "n/b") == "ingress"


def test_a_policy_that_stops_selecting_a_pod_is_taken_back() -> None:
    world = World(A, B, policy("n/p", "podSelector: {}"))
    assert world.ask("n/a", "n/b") == "ingress"
    world.add(policy("n/p", "podSelector: {matchLabels: {app: a}}"))
    assert (world.ask("n/a", "n/b"), world.ask("n/b", "n/a")) == ("yes", "ingress")


def test_one_changed_policy_compiles_one_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    original = compiler.compile_policy

    def counting(source: object) -> object:
        compiled.append(source.key)  # type: ignore[attr-defined]
        return original(source)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_module, "compile_policy", counting)
    objects = [policy(f"n{number % 7}/p{number}", FOR_B % "{}") for number in range(200)]
    engine = PolicyEngine()
    engine.replace(objects)
    assert len(compiled) == 200
    compiled.clear()
    engine.replace([*objects[:-1], policy("n3/p199", FOR_B % TEAM)])
    assert compiled == ["NetworkPolicy/n3/p199"]


def test_a_snapshot_does_not_change_when_the_engine_does() -> None:
    world = World(A, B, policy("n/p", FOR_B % "{}"))
    old = world.engine.snapshot
    view = old.view("n", "b")
    world.engine.replace([policy("n/p", FOR_B % "")])
    assert view.decide(Direction.INGRESS, identity_of(A), b"\n\0\0\1", 6, 80).allowed
    assert old.view("n", "b") is view
    assert old.view("n", "a") is not CLOSED
    assert world.engine.snapshot.view("n", "b") is CLOSED


def test_what_is_added_and_deleted_at_once_stays() -> None:
    target = policy("n/p", FOR_B % "{}")
    world = World(A, B, target)
    before = world.engine.snapshot
    assert world.engine.update([target], [target.key]) is before
    world.engine.update([policy("n/p", FOR_B % "")], [target.key])
    assert world.ask("n/a", "n/b") == "ingress"


def test_nothing_changed_means_no_new_snapshot() -> None:
    world = World(A, B, policy("n/p", FOR_B % "{}"))
    before = world.engine.snapshot
    assert world.engine.apply(A, policy("n/p", FOR_B % "{}")) is before
    assert world.engine.delete("Pod/n/nobody") is before
    assert world.engine.replace([A, B, policy("n/p", FOR_B % "{}")]) is before
    assert world.engine.apply(pod("n/c", "10.0.0.3")).revision == before.revision + 1


def test_a_pod_with_thousands_of_peers_remembers_a_bounded_number() -> None:
    """More identities, addresses and ports than any table holds: answers stay right, memory stays bounded."""
    world = World(
        A, B, policy("n/p", FOR_B % "{from: [{podSelector: {matchLabels: {app: a}}}, {ipBlock: {cidr: 11.0.0.0/8}}]}")
    )
    view = world.engine.snapshot.view("n", "b")
    friend = identity_of(A)
    for number in range(70_000):
        port, address = number % 65_536, (11 << 24 | number).to_bytes(4, "big")
        assert view.decide(Direction.INGRESS, friend, b"\n\0\0\1", 6, port).allowed
        assert view.decide(Direction.INGRESS, None, address, 6, number % 3).allowed
    for number in range(9_000):
        stranger = identity_of(pod(f"n/x{number}", app="x" if number % 2 else "a"))
        assert view.decide(Direction.INGRESS, stranger, b"\n\0\0\1", 6, 80).allowed is (number % 2 == 0)
    side = view._ingress  # type: ignore[union-attr]
    assert len(side._decisions) <= 65_536
    assert len(side._identities) <= 8_192
    assert len(side._blocks._cache) <= 16_384

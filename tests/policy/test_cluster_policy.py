"""ClusterNetworkPolicy v1alpha2: tiers, priorities, actions, peers, and failing closed."""

from __future__ import annotations

import pytest

from policy.addresses import parse_network
from policy.objects import Object
from policy.view import Settings
from tests.policy.world import World, cluster_policy, namespace, obj, pod, policy
from trireme_py.model import Direction, Reason

A, B = pod("n/a", "10.0.0.1", app="a"), pod("n/b", "10.0.0.2", app="b", ports="[{containerPort: 80, name: http}]")
OTHER = pod("m/c", "10.0.1.1", app="c")
EVERYONE = "[{namespaces: {}}]"


def admin(name: str, priority: int, rules: str, tier: str = "Admin", direction: str = "ingress") -> Object:
    text = f"{{tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}, {direction}: {rules}}}"
    return cluster_policy(name, text)


def rule(action: str, peers: str = EVERYONE, side: str = "from", protocols: str = "") -> str:
    return f"{{action: {action}, {side}: {peers}{f', protocols: {protocols}' if protocols else ''}}}"


def test_admin_deny_wins_over_what_network_policy_allows() -> None:
    world = World(A, B, policy("n/allow", "{podSelector: {}, ingress: [{}]}"), admin("x", 1, f"[{rule('Deny')}]"))
    found = world.decide("n/b", Direction.INGRESS, A)
    assert (found.allowed, found.reason, found.policy, found.rule, found.peer) == (
        False, Reason.DENY_RULE, "ClusterNetworkPolicy/x", 0, 0,
    )  # fmt: skip
    assert found.nearest == "ClusterNetworkPolicy/x ingress[0] denies it"


def test_admin_accept_wins_over_isolation_but_only_in_its_direction() -> None:
    closed = policy("n/closed", "{podSelector: {}, policyTypes: [Ingress, Egress]}")
    world = World(A, B, closed, admin("x", 1, f"[{rule('Accept')}]"))
    assert world.ask("n/a", "n/b") == "egress"
    found = world.decide("n/b", Direction.INGRESS, A)
    assert (found.allowed, found.reason, found.policy) == (True, Reason.POLICY, "ClusterNetworkPolicy/x")


def test_baseline_speaks_only_where_no_network_policy_isolates() -> None:
    baseline = admin("base", 1, f"[{rule('Deny')}]", "Baseline")
    world = World(A, B, baseline)
    assert world.ask("n/a", "n/b") == "ingress"
    assert world.add(policy("n/allow", "{podSelector: {}, ingress: [{}]}")).ask("n/a", "n/b") == "yes"
    world = World(A, B, admin("base", 1, f"[{rule('Accept')}]", "Baseline"), policy("n/closed", "podSelector: {}"))
    assert world.ask("n/a", "n/b") == "ingress"


def test_lower_numbers_go_first_and_equal_ones_by_name() -> None:
    deny, accept = f"[{rule('Deny')}]", f"[{rule('Accept')}]"
    assert World(A, B, admin("x", 2, deny), admin("y", 1, accept)).ask("n/a", "n/b") == "yes"
    assert World(A, B, admin("x", 1, deny), admin("y", 2, accept)).ask("n/a", "n/b") == "ingress"
    assert World(A, B, admin("x", 1, deny), admin("y", 1, accept)).ask("n/a", "n/b") == "ingress"
    assert World(A, B, admin("y", 1, deny), admin("x", 1, accept)).ask("n/a", "n/b") == "yes"
    assert World(A, B, admin("x", 1000, deny), admin("y", 9, accept)).ask("n/a", "n/b") == "yes"


def test_rules_go_in_the_order_they_are_written() -> None:
    only_a = "[{pods: {podSelector: {matchLabels: {app: a}}}}]"
    world = World(A, B, OTHER, admin("x", 1, f"[{rule('Accept', only_a)}, {rule('Deny')}]"))
    assert (world.ask("n/a", "n/b"), world.ask("m/c", "n/b")) == ("yes", "ingress")
    world = World(A, B, admin("x", 1, f"[{rule('Deny')}, {rule('Accept', only_a)}]"))
    assert world.ask("n/a", "n/b") == "ingress"


def test_pass_leaves_the_whole_tier() -> None:
    policies = [admin("x", 1, f"[{rule('Pass')}, {rule('Deny')}]"), admin("y", 2, f"[{rule('Deny')}]")]
    assert World(A, B, *policies).ask("n/a", "n/b") == "yes"
    world = World(A, B, *policies, policy("n/closed", "podSelector: {}"))
    assert world.decide("n/b", Direction.INGRESS, A).policy == "NetworkPolicy/n/closed"
    world = World(A, B, *policies, admin("base", 1, f"[{rule('Pass')}, {rule('Deny')}]", "Baseline"))
    assert world.ask("n/a", "n/b") == "yes"


def test_no_isolation_is_implied() -> None:
    only_a = "[{pods: {podSelector: {matchLabels: {app: a}}}}]"
    world = World(A, B, OTHER, admin("x", 1, f"[{rule('Accept', only_a)}]"))
    assert world.ask("m/c", "n/b") == "yes"
    view = world.engine.snapshot.view("n", "b")
    assert view.isolated(Direction.INGRESS), "its packets must be judged all the same"
    assert not view.isolated(Direction.EGRESS)


def test_subjects_by_namespace_and_by_pod() -> None:
    for subject, chosen in (
        ("{namespaces: {matchLabels: {team: x}}}", {"n/a", "n/b"}),
        ("{pods: {namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {app: b}}}}", {"n/b"}),
        ("{pods: {podSelector: {matchLabels: {app: c}}}}", {"m/c"}),
    ):
        text = f"{{tier: Admin, priority: 1, subject: {subject}, ingress: [{rule('Deny')}]}}"
        world = World(namespace("n", team="x"), A, B, OTHER, pod("o/peer", "10.0.2.1"), cluster_policy("x", text))
        denied = {name for name in ("n/a", "n/b", "m/c") if world.ask("o/peer", name) == "ingress"}
        assert denied == chosen, subject


def test_host_network_pods_are_neither_subjects_nor_peers() -> None:
    host = obj("Pod", "n/host", "{spec: {hostNetwork: true}, status: {podIPs: [{ip: 10.9.0.1}]}}")
    both = "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [%s], egress: [%s]}"
    world = World(A, host, cluster_policy("x", both % (rule("Deny"), rule("Deny", side="to"))))
    assert world.ask("192.0.2.1", "n/host") == "yes"
    assert world.ask("n/host", "n/a") == "yes"
    assert world.ask("n/a", "n/host") == "yes"


def test_networks_mean_addresses_whoever_is_behind_them() -> None:
    peers = '[{networks: [10.0.0.0/24, "2001:db8::/32"]}]'
    world = World(A, B, OTHER, admin("x", 1, f"[{rule('Deny', peers, 'to')}]", direction="egress"))
    assert (world.ask("n/a", "n/b"), world.ask("n/a", "m/c"), world.ask("n/a", "192.0.2.1")) == ("egress", "yes", "yes")
    assert world.ask("n/a", "2001:db8::1") == "egress"
    accept = admin("x", 1, f"[{rule('Accept', peers, 'to')}]", direction="egress")
    assert World(A, B, accept).decide("n/a", Direction.EGRESS, B, "10.0.0.2").reason is Reason.IPBLOCK


def test_nodes_are_the_addresses_in_their_status() -> None:
    status = "status: {addresses: [{type: InternalIP, address: 192.0.2.10}, {type: Hostname, address: one}]}"
    peers = "[{nodes: {matchLabels: {role: db}}}]"
    world = World(A, admin("x", 1, f"[{rule('Deny', peers, 'to')}]", direction="egress"))
    assert world.ask("n/a", "192.0.2.10") == "yes"
    before = world.fingerprint("n/a")
    world.add(obj("Node", "one", status, labels={"role": "db"}))
    assert (world.ask("n/a", "192.0.2.10"), world.ask("n/a", "192.0.2.11")) == ("egress", "yes")
    assert world.fingerprint("n/a") != before
    world.add(obj("Node", "one", status, labels={"role": "web"}))
    assert world.ask("n/a", "192.0.2.10") == "yes"
    assert world.fingerprint("n/a") == before


def test_domain_names_are_not_resolved_so_they_accept_nothing() -> None:
    rules = f"[{rule('Accept', '[{domainNames: [example.org]}]', 'to')}]"
    closed = policy("n/closed", "{podSelector: {}, policyTypes: [Egress]}")
    assert World(A, closed, admin("x", 1, rules, direction="egress")).ask("n/a", "192.0.2.1") == "egress"


@pytest.mark.parametrize(
    ("protocols", "denied"),
    [
        ("[{tcp: {destinationPort: {number: 80}}}]", {("TCP", 80)}),
        ("[{udp: {destinationPort: {range: {start: 80, end: 81}}}}]", {("UDP", 80), ("UDP", 81)}),
        (
            "[{sctp: {destinationPort: {number: 81}}}, {tcp: {destinationPort: {number: 82}}}]",
            {("SCTP", 81), ("TCP", 82)},
        ),
        ("[{destinationNamedPort: http}]", {("TCP", 80)}),
        ("", {(p, n) for p in ("TCP", "UDP", "SCTP") for n in (80, 81, 82)} | {("ICMP", None)}),
    ],
)
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_protocols(protocols: str, denied: set[tuple[str, int | None]], direction: str) -> None:
    side = "from" if direction == "ingress" else "to"
    world = World(A, B, admin("x", 1, f"[{rule('Deny', side=side, protocols=protocols)}]", direction=direction))
    asked = {(p, n) for p in ("TCP", "UDP", "SCTP") for n in (80, 81, 82)} | {("ICMP", None)}
    assert {(p, n) for p, n in asked if world.ask("n/a", "n/b", n, p) == direction} == denied


@pytest.mark.parametrize(
    "broken",
    [
        "from: [{}]",
        "from: [{workloads: {}}]",
        "from: [{namespaces: {}, pods: {podSelector: {}}}]",
        "from: [{networks: [10.0.0.0/8]}]",
        "from: [{namespaces: {}, unknown: 1}]",
        "from: []",
        "{from: [{namespaces: {}}], protocols: [{}]}",
        "{from: [{namespaces: {}}], protocols: [{http: {path: /}}]}",
        "{from: [{namespaces: {}}], protocols: [{tcp: {}}]}",
        "{from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]}",
        "{from: [{namespaces: {}}], unless: {}}",
    ],
)
def test_what_is_not_understood_fails_closed(broken: str) -> None:
    """An Accept rule matches nothing; a Deny or Pass rule denies everything, strangers included."""
    fields = broken[1:-1] if broken.startswith("{") else broken
    closed = policy("n/closed", "podSelector: {matchLabels: {app: b}}")
    accept = World(A, B, closed, admin("x", 1, f"[{{action: Accept, {fields}}}]"))
    assert accept.decide("n/b", Direction.INGRESS, A).policy == "NetworkPolicy/n/closed"
    for action in ("Deny", "Pass"):
        world = World(A, B, admin("x", 1, f"[{{action: {action}, {fields}}}]"))
        assert (world.ask("n/a", "n/b", 9), world.ask("192.0.2.1", "n/b", None, "ICMP")) == ("ingress", "ingress")
        assert "cannot be read" in world.decide("n/b", Direction.INGRESS, A).nearest


def test_an_action_that_is_not_understood_denies() -> None:
    assert World(A, B, admin("x", 1, f"[{rule('Allow')}]")).ask("n/a", "n/b") == "ingress"


# leaving the token out (docs: policy/README.md, "Peers without an identity")

LIVE = Settings()


@pytest.mark.parametrize("action", ["Deny", "Pass"])
def test_hiding_the_identity_does_not_evade_a_rule_for_pods(action: str) -> None:
    peers = "[{pods: {podSelector: {matchLabels: {app: evil}}}}]"
    world = World(A, B, admin("x", 1, f"[{rule(action, peers)}]"), settings=LIVE)
    found = world.decide("n/b", Direction.INGRESS, None, "10.1.2.3")
    assert (found.allowed, found.reason, found.policy, found.rule) == (
        False, Reason.UNIDENTIFIED, "ClusterNetworkPolicy/x", 0,
    )  # fmt: skip
    assert "brought no identity" in found.nearest
    assert world.decide("n/b", Direction.INGRESS, A, "10.1.2.3").allowed
    assert world.decide("n/b", Direction.INGRESS, None, "192.0.2.1").allowed, "known to lie outside"


def test_hiding_matters_only_for_the_ports_of_the_rule() -> None:
    protocols = "[{tcp: {destinationPort: {number: 80}}}]"
    world = World(B, admin("x", 1, f"[{rule('Deny', protocols=protocols)}]"), settings=LIVE)
    assert not world.decide("n/b", Direction.INGRESS, None, "10.1.2.3", 80).allowed
    assert world.decide("n/b", Direction.INGRESS, None, "10.1.2.3", 81).allowed


def test_a_destination_cannot_hide_its_port_names_either() -> None:
    rules = f"[{rule('Deny', side='to', protocols='[{destinationNamedPort: http}]')}]"
    world = World(A, B, admin("x", 1, rules, direction="egress"), settings=LIVE)
    assert not world.decide("n/a", Direction.EGRESS, None, "10.0.0.2", 9999).allowed
    assert world.decide("n/a", Direction.EGRESS, B, "10.0.0.2", 81).allowed


def test_an_earlier_rule_for_addresses_still_decides_for_strangers() -> None:
    rules = f"[{rule('Accept', '[{networks: [10.1.0.0/16]}]', 'to')}, {rule('Deny', side='to')}]"
    world = World(A, admin("x", 1, rules, direction="egress"), settings=LIVE)
    assert world.decide("n/a", Direction.EGRESS, None, "10.1.2.3").allowed
    assert not world.decide("n/a", Direction.EGRESS, None, "10.2.2.3").allowed


def test_the_ranges_of_the_cluster_are_a_setting() -> None:
    settings = Settings(cluster=(parse_network("203.0.113.0/24"),))
    world = World(B, admin("x", 1, f"[{rule('Deny')}]"), settings=settings)
    assert not world.decide("n/b", Direction.INGRESS, None, "203.0.113.7").allowed
    assert world.decide("n/b", Direction.INGRESS, None, "10.1.2.3").allowed

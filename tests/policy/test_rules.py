"""Rules of NetworkPolicy v1 that the conformance tables do not reach; numbers are those of policy/README.md."""

from __future__ import annotations

import pytest

from tests.policy.world import World, namespace, obj, pod, policy
from trireme_py.model import Direction, Reason

A, B = pod("n/a", "10.0.0.1", "fd00::1", app="a"), pod("n/b", "10.0.0.2", "fd00::2", app="b")
DENY = policy("n/deny", "podSelector: {matchLabels: {app: b}}")
DENY_EGRESS = policy("n/deny-egress", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress]}")


def ingress(rules: str, name: str = "n/p") -> World:
    """Pod b accepts what ``rules`` say."""
    return World(A, B, policy(name, f"{{podSelector: {{matchLabels: {{app: b}}}}, ingress: {rules}}}"))


def egress(rules: str) -> World:
    """Pod a may open what ``rules`` say."""
    return World(
        A, B, policy("n/p", f"{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Egress], egress: {rules}}}")
    )


# 11 to 13: from object to normal form


@pytest.mark.parametrize(
    "rule",
    [
        "{from: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}",
        "{from: [{}]}",
        "{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: []}]}}]}",
        "{from: [{podSelectr: {}}]}",
        "{ports: [{port: 90, endPort: 80}]}",
        "{ports: [{port: http, endPort: 80}]}",
        "{ports: [{protocol: ICMP}]}",
        "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}",
        "null",
    ],
)
def test_11_an_invalid_rule_allows_nothing_and_leaves_the_isolation_and_the_other_rules(rule: str) -> None:
    assert ingress(f"[{rule}]").ask("n/a", "n/b") == "ingress"
    assert ingress(f"[{rule}, {{ports: [{{port: 81}}]}}]").ask("n/a", "n/b", 81) == "yes"
    assert ingress(f"[{rule}, {{ports: [{{port: 81}}]}}]").ask("n/a", "n/b", 80) == "ingress"


def test_11_an_unreadable_pod_selector_isolates_the_whole_namespace() -> None:
    world = World(A, B, policy("n/p", "{podSelector: {matchLabels: {app: 1}}, ingress: [{}]}"))
    assert world.ask("n/a", "n/b") == "ingress"
    assert world.ask("n/b", "n/a") == "ingress"


def test_11_an_unknown_field_takes_the_rules_and_leaves_the_selection() -> None:
    world = World(A, B, policy("n/p", "{podSelector: {matchLabels: {app: b}}, ingress: [{}], unless: {}}"))
    assert (world.ask("n/a", "n/b"), world.ask("n/b", "n/a")) == ("ingress", "yes")
    world = World(A, B, policy("n/p", "{podSelectr: {matchLabels: {app: b}}, ingress: [{}]}"))
    assert (world.ask("n/a", "n/b"), world.ask("n/b", "n/a")) == ("ingress", "ingress")


@pytest.mark.parametrize("cidr", ["10.0.0.1/31", "10.0.0.200/24", "010.000.000.001/32", "10.0.0.1/032"])
def test_13_blocks_may_be_written_oddly(cidr: str) -> None:
    assert ingress(f'[{{from: [{{ipBlock: {{cidr: "{cidr}"}}}}]}}]').ask("n/a", "n/b") == "yes"


def test_13_a_mapped_block_is_an_ipv6_block() -> None:
    world = ingress('[{from: [{ipBlock: {cidr: "::ffff:10.0.0.0/104"}}]}]')
    assert world.ask("10.0.0.9", "10.0.0.2") == "ingress"
    assert world.ask("::ffff:10.0.0.9", "fd00::2") == "yes"


# 19 to 26: selectors


@pytest.mark.parametrize(
    ("expression", "labels", "matches"),
    [
        ("{key: env, operator: NotIn, values: [dev]}", {}, True),
        ("{key: env, operator: NotIn, values: [dev]}", {"env": "dev"}, False),
        ("{key: env, operator: NotIn, values: [dev]}", {"env": ""}, True),
        ('{key: env, operator: NotIn, values: [""]}', {"env": ""}, False),
        ('{key: env, operator: NotIn, values: [""]}', {}, True),
        ("{key: env, operator: DoesNotExist}", {}, True),
        ("{key: env, operator: DoesNotExist}", {"env": ""}, False),
        ("{key: env, operator: Exists}", {"env": ""}, True),
        ("{key: env, operator: Exists}", {}, False),
        ('{key: env, operator: In, values: [""]}', {"env": ""}, True),
        ('{key: env, operator: In, values: [""]}', {}, False),
        ('{key: env, operator: In, values: ["", dev]}', {"env": "dev"}, True),
    ],
)
def test_19_20_missing_keys_and_empty_values(expression: str, labels: dict[str, str], matches: bool) -> None:
    expected = "yes" if matches else "ingress"
    by_pod = ingress(f"[{{from: [{{podSelector: {{matchExpressions: [{expression}]}}}}]}}]")
    assert by_pod.add(pod("n/c", "10.0.0.3", **labels)).ask("n/c", "n/b") == expected
    by_namespace = ingress(f"[{{from: [{{namespaceSelector: {{matchExpressions: [{expression}]}}}}]}}]")
    assert by_namespace.add(namespace("m", **labels), pod("m/c", "10.0.0.3")).ask("m/c", "n/b") == expected


def test_21_every_namespace_has_its_name_as_a_label_even_one_that_is_not_known() -> None:
    world = ingress("[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: m}}}]}]")
    world.add(pod("m/c", "10.0.0.3"), pod("o/c", "10.0.0.4"))
    assert (world.ask("m/c", "n/b"), world.ask("o/c", "n/b")) == ("yes", "ingress")
    world.add(namespace("m", team="x"), namespace("o", team="x"))
    assert (world.ask("m/c", "n/b"), world.ask("o/c", "n/b")) == ("yes", "ingress")


HOST = obj("Pod", "n/host", "{spec: {hostNetwork: true}, status: {podIPs: [{ip: 10.9.0.1}]}}", labels={"app": "a"})


def test_22_a_host_network_pod_matches_blocks_and_never_selectors() -> None:
    assert ingress("[{from: [{podSelector: {}}, {namespaceSelector: {}}]}]").add(HOST).ask("n/host", "n/b") == "ingress"
    assert ingress("[{from: [{ipBlock: {cidr: 10.9.0.1/32}}]}]").add(HOST).ask("n/host", "n/b") == "yes"


def test_23_labels_are_those_of_now() -> None:
    world = ingress("[{from: [{namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {app: c}}}]}]")
    world.add(namespace("m"), pod("m/c", "10.0.0.3", app="c"))
    assert world.ask("m/c", "n/b") == "ingress"
    assert world.add(namespace("m", team="x")).ask("m/c", "n/b") == "yes"
    assert world.add(pod("m/c", "10.0.0.3", app="d")).ask("m/c", "n/b") == "ingress"
    assert world.add(pod("m/c", "10.0.0.3", app="c")).ask("m/c", "n/b") == "yes"
    world.engine.delete("Namespace/m")
    assert world.ask("m/c", "n/b") == "ingress"


def test_24_pods_count_before_they_are_ready() -> None:
    starting = obj("Pod", "n/new", "status: {phase: Pending, podIPs: [{ip: 10.0.0.7}]}", labels={"app": "a"})
    assert ingress("[{from: [{podSelector: {matchLabels: {app: a}}}]}]").add(starting).ask("n/new", "n/b") == "yes"
    assert (
        World(A, DENY, obj("Pod", "n/c", "status: {phase: Pending}", labels={"app": "b"})).ask("n/a", "n/c")
        == "ingress"
    )


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_25_a_completed_pod_lends_its_address_no_name(phase: str) -> None:
    world = ingress("[{from: [{podSelector: {matchLabels: {job: x}}}]}]")
    done = obj("Pod", "n/done", f"status: {{phase: {phase}, podIPs: [{{ip: 10.0.0.5}}]}}", labels={"job": "x"})
    world.add(done)
    assert world.ask("10.0.0.5", "n/b") == "ingress"
    world.add(pod("n/heir", "10.0.0.5", app="heir"))
    assert world.ask("10.0.0.5", "n/b") == "ingress"
    world.add(policy("n/heir", "{podSelector: {matchLabels: {app: heir}}}"))
    assert world.ask("n/a", "10.0.0.5") == "ingress"
    assert not world.engine.snapshot.view("n", "done").isolated(Direction.INGRESS)


def test_26_a_terminating_pod_counts_on_both_sides() -> None:
    leaving = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    source = obj("Pod", "n/a", "status: {podIPs: [{ip: 10.0.0.1}]}", labels={"app": "a"}, **leaving)
    target = obj("Pod", "n/b", "status: {podIPs: [{ip: 10.0.0.2}]}", labels={"app": "b"}, **leaving)
    world = ingress("[{from: [{podSelector: {matchLabels: {app: a}}}]}]").add(source, target, pod("n/c", "10.0.0.3"))
    assert (world.ask("n/a", "n/b"), world.ask("n/c", "n/b")) == ("yes", "ingress")


# 29 to 31: addresses


def test_29_egress_is_judged_by_the_address_behind_the_service() -> None:
    """The data path passes the destination's own address; the Service's is never asked about."""
    world = egress("[{to: [{ipBlock: {cidr: 10.0.0.2/32}}]}]")
    assert world.decide("n/a", Direction.EGRESS, B, "10.0.0.2").allowed
    assert not world.decide("n/a", Direction.EGRESS, B, "10.96.0.1").allowed


def test_30_a_block_of_one_family_says_nothing_of_the_other() -> None:
    world = ingress("[{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]")
    assert (world.ask("192.0.2.1", "10.0.0.2"), world.ask("2001:db8::1", "fd00::2")) == ("yes", "ingress")
    world = ingress('[{from: [{ipBlock: {cidr: "::/0"}}]}]')
    assert (world.ask("192.0.2.1", "10.0.0.2"), world.ask("2001:db8::1", "fd00::2")) == ("ingress", "yes")


def test_27_an_exception_belongs_to_its_own_block() -> None:
    world = ingress(
        "[{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/30]}}, {ipBlock: {cidr: 10.0.0.2/31}}]}]"
    )  # fmt: skip
    assert [world.ask(f"10.0.0.{n}", "n/b") for n in (0, 1, 2, 3, 4)] == ["ingress", "ingress", "yes", "yes", "yes"]


def test_31_the_smallest_and_largest_blocks() -> None:
    for cidr, inside, outside in (
        ("10.0.0.4/32", "10.0.0.4", "10.0.0.5"),
        ("10.0.0.4/31", "10.0.0.5", "10.0.0.6"),
        ("fd00::4/128", "fd00::4", "fd00::5"),
        ("fd00::4/127", "fd00::5", "fd00::6"),
        ("::/0", "fd00::9", "10.0.0.9"),
    ):
        world = ingress(f'[{{from: [{{ipBlock: {{cidr: "{cidr}"}}}}]}}]')
        assert (world.ask(inside, "n/b"), world.ask(outside, "n/b")) == ("yes", "ingress"), cidr


# 32 to 38: ports


def test_32_a_name_means_what_each_destination_calls_it() -> None:
    world = World(
        A,
        pod("n/x", "10.0.0.7", ports="[{containerPort: 81, name: http}]"),
        pod(
            "n/y", "10.0.0.8", ports="[{containerPort: 82, name: http}, {containerPort: 82, name: http, protocol: UDP}]"
        ),
        pod("n/z", "10.0.0.9", ports="[{containerPort: 83, name: http, protocol: UDP}]"),
        policy(
            "n/p", "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}"
        ),
    )
    allowed = {(name, port) for name in "xyz" for port in (81, 82, 83) if world.ask("n/a", f"n/{name}", port) == "yes"}
    assert allowed == {("x", 81), ("y", 82)}
    assert world.ask("n/a", "n/y", 82, "UDP") == "egress"


def test_32_overlapping_names_of_one_pod_all_count() -> None:
    ports = "[{containerPort: 80, name: http}, {containerPort: 81, name: http}]"
    world = ingress("[{ports: [{port: http}]}]").add(pod("n/b", "10.0.0.2", ports=ports, app="b"))
    assert [world.ask("n/a", "n/b", port) for port in (80, 81, 82)] == ["yes", "yes", "ingress"]


def test_33_a_name_means_nothing_at_a_destination_that_is_not_a_pod() -> None:
    world = egress("[{ports: [{port: http}]}]").add(HOST)
    assert world.ask("n/a", "192.0.2.1") == "egress"
    assert world.ask("n/a", "n/host") == "egress"


def test_38_native_sidecars_have_ports_and_other_init_containers_do_not() -> None:
    spec = """
    spec:
      initContainers:
      - {name: proxy, restartPolicy: Always, ports: [{containerPort: 81, name: http}]}
      - {name: setup, ports: [{containerPort: 82, name: http}]}
    status: {podIPs: [{ip: 10.0.0.2}]}
    """
    world = ingress("[{ports: [{port: http}]}]").add(obj("Pod", "n/b", spec, labels={"app": "b"}))
    assert [world.ask("n/a", "n/b", port) for port in (80, 81, 82)] == ["ingress", "yes", "ingress"]


# 44 to 49: decisions


def test_44_a_pod_reaches_itself() -> None:
    world = World(A, policy("n/deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
    assert world.ask("n/a", "n/a") == "yes"
    assert world.ask("n/a", "fd00::1") == "yes"


def test_44_a_pod_reached_through_a_service_is_a_peer_like_any_other() -> None:
    world = World(A, policy("n/deny", "podSelector: {}"))
    assert not world.decide("n/a", Direction.INGRESS, A, "10.0.0.1").allowed


def test_47_a_host_network_pod_is_never_isolated() -> None:
    world = World(A, HOST, policy("n/deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
    assert world.ask("192.0.2.1", "n/host") == "yes"
    assert not world.engine.snapshot.view("n", "host").isolated(Direction.INGRESS)


def test_48_icmp_passes_only_a_rule_without_ports() -> None:
    assert ingress("[{from: [{podSelector: {}}]}]").ask("n/a", "n/b", None, "ICMP") == "yes"
    for ports in ("[{protocol: TCP}]", "[{port: 80}]", "[{port: 1, endPort: 65535}, {protocol: UDP}]"):
        assert ingress(f"[{{ports: {ports}}}]").ask("n/a", "n/b", None, "ICMP") == "ingress"
    assert World(A, B).ask("n/a", "n/b", None, "ICMP") == "yes"


def test_48_a_protocol_without_a_port_means_the_protocol_whether_ports_are_seen_or_not() -> None:
    assert ingress("[{ports: [{protocol: SCTP}]}]").ask("n/a", "n/b", None, "SCTP") == "yes"
    assert ingress("[{ports: [{protocol: SCTP, port: 80}]}]").ask("n/a", "n/b", None, "SCTP") == "ingress"


def test_6_rules_without_peers_mean_strangers_too() -> None:
    world = ingress("[{ports: [{port: 80}]}]")
    assert world.ask("192.0.2.1", "n/b") == "yes"
    decision = world.decide("n/b", Direction.INGRESS, None)
    assert (decision.allowed, decision.reason, decision.rule, decision.peer) == (True, Reason.POLICY, 0, None)


# 52 to 59: life cycle


def test_52_53_a_pod_that_is_not_known_yet_is_closed() -> None:
    world = World(A, B)
    view = world.engine.snapshot.view("n", "new")
    assert view.isolated(Direction.INGRESS)
    assert not view.may_open(6)
    for direction in Direction:
        decision = world.decide("n/new", direction, A)
        assert not decision.allowed
        assert "not known" in decision.nearest
        assert decision.reason is Reason.NO_MATCH
        assert world.decide("n/new", direction, None).reason is Reason.UNIDENTIFIED
    assert world.add(pod("n/new", "10.0.0.9")).ask("n/a", "n/new") == "yes"


@pytest.mark.parametrize("together", [True, False])
def test_56_a_terminating_namespace_keeps_the_policies_that_isolate_its_pods(together: bool) -> None:
    world = World(namespace("n"), A, B, DENY)
    leaving = obj("Namespace", "n", deletionTimestamp="2026-01-01T00:00:00Z")
    if together:
        world.engine.update([leaving], [DENY.key])
    else:
        world.add(leaving)
        world.engine.delete(DENY.key)
    assert world.ask("n/a", "n/b") == "ingress"
    world.engine.replace([leaving, A, B])
    assert world.ask("n/a", "n/b") == "ingress"
    world.engine.delete("Namespace/n")
    assert world.ask("n/a", "n/b") == "yes"


def test_56_a_namespace_made_anew_does_not_inherit() -> None:
    world = World(obj("Namespace", "n", "status: {phase: Terminating}"), A, B, DENY)
    world.engine.delete(DENY.key)
    assert world.ask("n/a", "n/b") == "ingress"
    assert world.add(namespace("n")).ask("n/a", "n/b") == "yes"


def test_56_a_policy_that_comes_back_is_an_ordinary_one_again() -> None:
    world = World(obj("Namespace", "n", "status: {phase: Terminating}"), A, B, DENY)
    world.engine.delete(DENY.key)
    world.add(policy("n/deny", "{podSelector: {matchLabels: {app: b}}, ingress: [{}]}"))
    assert world.ask("n/a", "n/b") == "yes"


def test_56_a_policy_that_comes_back_unchanged_outlives_the_old_namespace() -> None:
    world = World(obj("Namespace", "n", "status: {phase: Terminating}"), A, B, DENY)
    world.engine.delete(DENY.key)
    world.add(namespace("n"), DENY)
    assert world.ask("n/a", "n/b") == "ingress"


def test_55_a_deleted_policy_is_lifted() -> None:
    world = World(namespace("n"), A, B, DENY, DENY_EGRESS)
    assert world.ask("n/a", "n/b") == "both"
    world.engine.delete(DENY.key)
    assert world.ask("n/a", "n/b") == "egress"
    world.engine.delete(DENY_EGRESS.key)
    assert world.ask("n/a", "n/b") == "yes"


def test_58_every_address_of_a_pod_is_the_pod() -> None:
    world = ingress("[{from: [{podSelector: {matchLabels: {app: a}}}]}]")
    for source, target in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
        assert world.ask(source, target) == "yes"
    blocks = ingress('[{from: [{ipBlock: {cidr: "fd00::1/128"}}]}]')
    assert (blocks.ask("fd00::1", "fd00::2"), blocks.ask("10.0.0.1", "10.0.0.2")) == ("yes", "ingress")


def test_59_the_successor_of_a_pod_on_its_address_is_judged_by_its_own_name() -> None:
    world = ingress("[{from: [{podSelector: {matchLabels: {app: a}}}]}]")
    assert world.ask("10.0.0.1", "n/b") == "yes"
    world.engine.delete(A.key)
    world.add(pod("n/other", "10.0.0.1", app="other"))
    assert world.ask("10.0.0.1", "n/b") == "ingress"


def test_50_dns_is_not_special() -> None:
    assert World(A, B, DENY_EGRESS).ask("n/a", "n/b", 53, "UDP") == "egress"


# what is reported


def test_a_decision_names_policy_rule_and_peer() -> None:
    rules = "[{ports: [{port: 90}]}, {from: [{ipBlock: {cidr: 192.0.2.0/24}}, {podSelector: {matchLabels: {app: a}}}]}]"
    world = ingress(rules)
    found = world.decide("n/b", Direction.INGRESS, A, "10.0.0.1")
    assert (found.reason, found.policy, found.rule, found.peer) == (Reason.POLICY, "NetworkPolicy/n/p", 1, 1)
    found = world.decide("n/b", Direction.INGRESS, A, "192.0.2.9")
    assert (found.reason, found.policy, found.rule, found.peer) == (Reason.IPBLOCK, "NetworkPolicy/n/p", 1, 0)
    assert world.decide("n/a", Direction.INGRESS, B).reason is Reason.NO_ISOLATION


@pytest.mark.parametrize(
    ("rules", "port", "nearest"),
    [
        ("[]", 80, "NetworkPolicy/n/p isolates the pod and has no ingress rule"),
        (
            "[{ports: [{port: 90}]}]",
            80,
            "NetworkPolicy/n/p ingress[0] needs TCP 90, the flow is TCP 80",
        ),
        (
            "[{from: [{podSelector: {matchLabels: {app: x, tier: y}}}, {podSelector: {matchLabels: {app: x}}}]}]",
            80,
            "NetworkPolicy/n/p ingress[0] from[1] needs app=x, the peer is n/a with app=a",
        ),
        (
            "[{from: [{namespaceSelector: {matchLabels: {team: t}}}], ports: [{port: 80}]}]",
            80,
            "NetworkPolicy/n/p ingress[0] from[0] needs a namespace with team=t, the peer is n/a",
        ),
        (
            "[{from: [{podSelector: {matchLabels: {tier: y}}}]}]",
            80,
            "NetworkPolicy/n/p ingress[0] from[0] needs tier=y, the peer is n/a with no label tier",
        ),
        (
            "[{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]",
            80,
            "NetworkPolicy/n/p ingress[0] needs an address in 192.0.2.0/24",
        ),
    ],
)
def test_a_denial_names_the_nearest_rule_and_what_it_lacked(rules: str, port: int, nearest: str) -> None:
    found = ingress(rules).decide("n/b", Direction.INGRESS, A, "10.0.0.1", port)
    assert (found.allowed, found.reason, found.policy, found.nearest) == (
        False, Reason.NO_MATCH, "NetworkPolicy/n/p", nearest,
    )  # fmt: skip


def test_a_peer_without_identity_is_told_so() -> None:
    found = ingress("[{from: [{podSelector: {matchLabels: {app: a}}}]}]").decide("n/b", Direction.INGRESS, None)
    assert found.reason is Reason.UNIDENTIFIED
    assert found.nearest == (
        "NetworkPolicy/n/p ingress[0] from[0] needs a pod with app=a in namespace n, the peer brought no identity"
    )


def test_may_open_is_false_only_where_nothing_could_be_allowed() -> None:
    def opens(*rules: str) -> list[bool]:
        view = egress(f"[{', '.join(rules)}]").engine.snapshot.view("n", "a")
        return [view.may_open(number) for number in (6, 17, 1)]

    assert opens() == [False, False, False]
    assert opens("{}") == [True, True, True]
    assert opens("{ports: [{port: 80}]}") == [True, False, False]
    assert opens("{ports: [{port: dns, protocol: UDP}]}") == [False, True, False]
    assert opens("{to: [{}]}") == [False, False, False]
    assert World(A).engine.snapshot.view("n", "a").may_open(6)

"""The library behind the commands: advice, explanations, expectations, verdict lines, matrix and diff."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from policy.diff import compare
from policy.document import MAX_BYTES
from policy.evaluate import Evaluator, UnknownEndpoint
from policy.expectations import read_expectations, run, split_target
from policy.explain import explain
from policy.files import Loaded, load_folder, load_text
from policy.lint import Severity, check
from policy.matrix import Cell, group, make_matrix, render_lines, render_svg
from policy.verdicts import InputError, answer_lines
from policy.workloads import with_workloads
from tests.policy.world import World, pod, policy

SHOP = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, ports: [{containerPort: 80, name: http}]}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: cart, namespace: shop}
spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: cart}}, spec: {containers: [{name: c}]}}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec: {template: {metadata: {labels: {app: db}}, spec: {containers: [{ports: [{containerPort: 5432, name: pg}]}]}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: pg}]
"""
NP = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: "
CNP = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: %s}\nspec: "
ALL = NP + "{podSelector: {}, "
ADMIN = CNP % "a" + "{tier: Admin, priority: 1, subject: {namespaces: {}}, "
DNS = "{to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}]}"


def load(extra: str = "") -> Loaded:
    return with_workloads(load_text(SHOP + extra, "shop.yaml"))


# advice


@pytest.mark.parametrize(
    ("extra", "code", "field"),
    [
        (NP + "{podSelector: {matchLabels: {app: wbe}}}", "selects-nothing", "spec.podSelector"),
        (NP.replace("shop", "shp") + "{podSelector: {}}", "empty-namespace", "metadata.namespace"),
        (ALL + "policyTypes: [Egress], ingress: [{}]}", "ignored-rules", "spec.ingress"),
        (ALL + "ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}",
         "no-such-peer", "spec.ingress[0].from[0]"),
        (ALL + "ingress: [{from: [{namespaceSelector: {matchLabels: {team: z}}}]}]}",
         "no-such-namespace", "spec.ingress[0].from[0]"),
        (ALL + "ingress: [{ports: [{port: nope}]}]}", "no-such-port", "spec.ingress[0].ports"),
        (ALL + "ingress: [{ports: [{port: 1}]}, {ports: [{port: 1}]}]}", "unreachable", "spec.ingress[1]"),
        (ALL + "ingress: [{}, {ports: [{port: 1}]}]}", "unreachable", "spec.ingress[1]"),
        (ALL + "policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}", "forgets-dns", "spec.egress"),
        (ALL + "ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/8}}]}]}",
         "host-bits", "spec.ingress[0].from[0].ipBlock.cidr"),
        (ALL + "ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}",
         "one-family", "spec.ingress[0].from[0].ipBlock.cidr"),
        (ALL + "ingress: [{from: [{namespaceSelector: {}}, {podSelector: {matchLabels: {app: web}}}]}]}",
         "either-or-both", "spec.ingress[0].from[1]"),
        (NP + "{podSelectr: {}}", "invalid", "spec.podSelectr"),
        (CNP % "a" + "{tier: Admin, priority: 1, subject: {namespaces: {}}}\n"
         + CNP % "b" + "{tier: Admin, priority: 1, subject: {namespaces: {}}}", "same-priority", "spec.priority"),
        (ADMIN + "ingress: [{action: Deny, from: [{namespaces: {}}]}, "
         "{action: Accept, from: [{pods: {podSelector: {matchLabels: {app: web}}}}]}]}",
         "unreachable", "spec.ingress[1]"),
        (ADMIN + "egress: [{action: Accept, to: [{domainNames: "
         "[a.org]}]}]}", "domain-names", "spec.egress[0].to"),
        (ADMIN + "egress: [{action: Deny, to: [{nodes: {}}]}]}",
         "no-nodes", "spec.egress[0]"),
        ("---\ntests: [{from: a/b, to: c/d, expect: alow}]\n", "invalid", "tests[0].expect"),
        (ALL + "ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5, protocol: SCTP}]}]}",
         "no-identity", "spec.ingress[0]"),
        (ADMIN + "egress: [{action: Deny, to: [{namespaces: {}}], "
         "protocols: [{sctp: {destinationPort: {number: 5}}}]}]}",
         "no-identity", "spec.egress[0]"),
    ],
)  # fmt: skip
def test_advice(extra: str, code: str, field: str) -> None:
    found = [each for each in check(load(extra)) if each.code == code]
    assert [each.field for each in found] == [field]
    assert found[0].file == "shop.yaml"
    assert found[0].line > 25
    assert found[0].hint
    assert (found[0].severity is Severity.ERROR) == (code == "invalid")


def test_a_sound_set_gets_no_advice() -> None:
    egress = NP + f"{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{}}}}]}}, {DNS}]}}"
    assert not check(load(egress))


def test_a_file_that_cannot_be_read_has_no_line(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    (found,) = check(load_folder(tmp_path))
    assert str(found).startswith(f"{tmp_path}/large.yaml: error: is larger than")


def test_sctp_by_address_or_for_everyone_gets_no_advice() -> None:
    ports = "ports: [{port: 5, protocol: SCTP}]"
    rules = f"{{from: [{{ipBlock: {{cidr: 10.0.0.0/8}}}}], {ports}}}, {{{ports}}}"
    assert not check(load(ALL + f"ingress: [{rules}]}}"))
    (found,) = check(load(ALL + f"ingress: [{{from: [{{podSelector: {{}}}}], {ports}}}]}}"))
    assert str(found).endswith(
        "warning: spec.ingress[0] SCTP carries no identity: from[0] matches nothing; use ipBlock [no-identity]"
    )


def test_dns_may_be_allowed_by_another_policy_for_the_same_pods() -> None:
    dns = NP.replace("name: p", "name: dns") + f"{{podSelector: {{}}, policyTypes: [Egress], egress: [{DNS}]}}\n"
    egress = NP + "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}"
    assert not check(load(dns + egress))


# explanations


def test_an_explanation_names_each_policy_rule_and_what_it_lacked() -> None:
    found = explain(Evaluator.as_enforced(load().objects), "shop/cart", "shop/db", 6, 5432)
    assert not found.allowed
    egress, ingress = found.sides
    assert (egress.pod, egress.policies) == ("shop/cart", ())
    (report,) = ingress.policies
    (rule,) = report.rules
    assert (report.policy, report.tier, rule.rule, rule.peer_matches, rule.port_matches) == (
        "NetworkPolicy/shop/db", "NetworkPolicy", "ingress[0]", False, True,
    )  # fmt: skip
    assert rule.peer == "from[0] needs app=web, the peer is shop/cart with app=cart"
    json.dumps(found.as_json())


def test_following_the_advice_allows_the_connection() -> None:
    found = explain(Evaluator.as_enforced(load().objects), "shop/cart", "shop/db", 6, 5432)
    assert found.advice.startswith("add to spec.ingress of shop/db: ")
    rule = found.advice.partition(": ")[2]
    changed = with_workloads(load_text(SHOP + f"  {rule}\n"))
    assert not changed.problems
    assert explain(Evaluator.as_enforced(changed.objects), "shop/cart", "shop/db", 6, 5432).allowed


def test_an_explanation_agrees_with_the_decision() -> None:
    """For each pair: allowed by a NetworkPolicy exactly if some rule matches peer and port."""
    evaluator = Evaluator.as_enforced(load().objects)
    for source in ("shop/web", "shop/cart", "192.0.2.1"):
        for port in (80, 5432):
            (side,) = explain(evaluator, source, "shop/db", 6, port).sides[-1:]
            matching = [
                rule for each in side.policies for rule in each.rules if rule.peer_matches and rule.port_matches
            ]
            assert side.decision.allowed == bool(matching)


# protocols that carry no identity

PINGS = """\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, ports: [{containerPort: 80, protocol: SCTP, name: s}]}]}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
"""
WITHOUT_IDENTITY = [(1, None), (58, None), (132, 80)]


@pytest.mark.parametrize(("protocol", "port"), WITHOUT_IDENTITY)
def test_labels_allow_nothing_on_a_protocol_without_identities(protocol: int, port: int | None) -> None:
    evaluator = Evaluator.as_enforced(load_text(PINGS).objects)
    found = explain(evaluator, "shop/web", "shop/db", protocol, port)
    assert not found.allowed
    (side,) = found.sides[1:]
    assert side.decision.reason.value == "unidentified"
    assert not side.policies[0].rules[0].peer_matches
    assert "carries no identity" in found.note
    for identified in (6, 17):
        found = explain(evaluator, "shop/web", "shop/db", identified, 80)
        assert (found.allowed, found.note) == (True, "")


@pytest.mark.parametrize(("protocol", "port"), WITHOUT_IDENTITY)
def test_the_advice_there_names_the_address_and_allows_it(protocol: int, port: int | None) -> None:
    found = explain(Evaluator.as_enforced(load_text(PINGS).objects), "shop/web", "shop/db", protocol, port)
    rule = found.advice.partition(": ")[2]
    assert "ipBlock" in rule
    assert "Selector" not in rule
    assert ("opens every port" in rule) == (port is None)
    changed = load_text(f"{PINGS}  {rule}\n")
    assert not changed.problems
    assert explain(Evaluator.as_enforced(changed.objects), "shop/web", "shop/db", protocol, port).allowed


def test_without_an_address_there_is_no_advice_for_it() -> None:
    found = explain(Evaluator.as_enforced(load().objects), "shop/web", "shop/db", 1, None)
    assert (found.allowed, found.advice) == (False, "")


def test_a_denial_of_pods_is_not_evaded_by_a_protocol_without_identities() -> None:
    """Neither with an address nor without one, as of the pod that stands for a Deployment."""
    deny = ADMIN + "ingress: [{action: Deny, from: [{pods: {podSelector: {matchLabels: {app: other}}}}]}]}"
    for loaded in (load_text(PINGS + deny), load(deny)):
        found = explain(Evaluator.as_enforced(loaded.objects), "shop/web", "shop/db", 132, 80)
        (rule,) = found.sides[1].policies[0].rules
        assert (found.allowed, rule.peer_matches) == (False, True)
        assert rule.peer.endswith("and may be one")


def test_matrix_and_diff_and_expectations_say_the_same() -> None:
    loaded = load_text(PINGS)
    made = make_matrix(Evaluator.as_enforced(loaded.objects))
    assert made.rows[1][0].denied == ("SCTP 80",)
    opened = load_text(PINGS.replace("app: web}}}]\n", "app: web}}}, {ipBlock: {cidr: 10.0.0.1/32}}]\n"))
    assert [(each.flow, each.allowed) for each in compare(loaded, opened).connections] == [("SCTP 80", True)]
    tests = "---\ntests: [{from: shop/web, to: shop/db, protocol: ICMP, expect: deny}]\n"
    (result,) = run(Evaluator.as_enforced(loaded.objects), read_expectations(load_text(tests))[0])
    assert result.passed


def test_a_label_that_yaml_would_read_as_something_else_is_quoted_in_the_advice() -> None:
    text = SHOP.replace("app: cart", 'app: "true"')
    found = explain(Evaluator.as_enforced(with_workloads(load_text(text)).objects), "shop/cart", "shop/db", 6, 5432)
    changed = with_workloads(load_text(f"{text}  {found.advice.partition(': ')[2]}\n"))
    assert not changed.problems
    assert explain(Evaluator.as_enforced(changed.objects), "shop/cart", "shop/db", 6, 5432).allowed


# expectations

TESTS = """---
tests:
- {from: shop/web, to: "shop/db:5432", expect: allow, by: NetworkPolicy/shop/db}
- {from: shop/cart, to: "shop/db:pg", expect: deny}
- {from: shop/web, to: "shop/db:5433", expect: allow}
- {from: shop/web, to: "shop/db:5432", expect: allow, by: NetworkPolicy/shop/other}
- {from: shop/nobody, to: "shop/db:5432", expect: deny}
- {from: 192.0.2.1, to: "shop/web", port: 80, protocol: udp, expect: allow}
- {from: shop/web, to: "[2001:db8::1]:443", expect: allow}
- {from: shop/web, to: "shop/db:dns", expect: deny}
- {from: shop/web, to: shop/cart, protocol: ICMP, expect: allow}
"""


def test_expectations() -> None:
    loaded = load(TESTS)
    expectations, problems = read_expectations(loaded)
    assert not problems
    results = list(run(Evaluator.as_enforced(loaded.objects), expectations))
    assert [each.passed for each in results] == [True, True, False, False, False, True, True, False, True]
    assert results[2].actual == "deny"
    assert results[3].actual == "allow by NetworkPolicy/shop/db"
    assert "no pod shop/nobody" in results[4].actual
    assert "no container port named 'dns'" in results[7].actual
    assert results[0].expectation.line == SHOP.count("\n") + 3


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("tests: {}", "tests"),
        ("tests: [x]", "tests[0]"),
        ("tests: [{from: a/b, to: c/d, expect: allow, expct: x}]", "tests[0].expct"),
        ("tests: [{to: c/d, expect: allow}]", "tests[0].from"),
        ("tests: [{from: a/b, to: c/d, expect: allow}]", "tests[0].port"),
        ("tests: [{from: a/b, to: 'c/d:80', protocol: IGMP, expect: allow}]", "tests[0].protocol"),
        ("tests: [{from: a/b, to: c/d, port: 99999, expect: allow}]", "tests[0].port"),
    ],
)
def test_expectations_that_cannot_be_read(text: str, field: str) -> None:
    expectations, (problem,) = read_expectations(load_text(text))
    assert not expectations
    assert problem.field == field
    assert problem.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop/db:5432", ("shop/db", 5432)),
        ("shop/db:http", ("shop/db", "http")),
        ("shop/db", ("shop/db", None)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("192.0.2.1", ("192.0.2.1", None)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
    ],
)
def test_targets(text: str, expected: tuple[str, int | str | None]) -> None:
    assert split_target(text) == expected


def test_a_target_that_is_nothing() -> None:
    with pytest.raises(InputError, match="is not namespace/pod:port"):
        split_target("shop/db:")


# verdict lines


def line(**changes: Any) -> str:
    document = {
        "policies": [{"metadata": {"name": "p", "namespace": "n"}, "spec": {"podSelector": {}, "ingress": [{"from": [
            {"podSelector": {"matchLabels": {"app": "a"}}}]}]}}],
        "namespaces": [{"metadata": {"name": "n"}}],
        "pods": [
            {"metadata": {"name": "a", "namespace": "n", "labels": {"app": "a"}}, "status": {"podIP": "10.0.0.1"}},
            {"metadata": {"name": "b", "namespace": "n"}, "status": {"podIP": "10.0.0.2"}},
        ],
        "queries": [
            {"from": "n/a", "to": "n/b", "protocol": "TCP", "port": 80},
            {"from": "n/b", "to": "n/a", "protocol": "TCP", "port": 80},
            {"from": "192.0.2.1", "to": "10.0.0.2", "protocol": "UDP", "port": 53},
            {"from": "n/b", "to": "192.0.2.1", "port": 443},
        ],
    }  # fmt: skip
    return json.dumps(document | changes)


def test_verdict_lines() -> None:
    ((text, good),) = answer_lines([line()])
    assert good
    answers = json.loads(text)["verdicts"]
    assert [(each["ingress"], each["egress"], each["verdict"]) for each in answers] == [
        ("allowed", "allowed", "allowed"),
        ("denied", "allowed", "denied"),
        ("denied", "allowed", "denied"),
        ("allowed", "allowed", "allowed"),
    ]
    assert answers[0]["by"] == "NetworkPolicy/n/p ingress[0]"
    assert answers[1]["by"].startswith("NetworkPolicy/n/p ingress[0] from[0] needs app=a")
    assert answers[3]["by"] == "no_isolation"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ("[" * 100_000, "not JSON"),
        (line(policy=[]), "unknown field 'policy'"),
        (line(pods={}), "pods: must be a list"),
        (line(pods=[7]), "pods[0]: must be an object"),
        (line(policies=[{"metadata": {}}]), "policies[0].metadata.name: is missing"),
        (line(queries=[7]), "queries[0]: must be an object"),
        (line(queries=[{"from": "n/a", "to": "n/c", "port": 1}]), "queries[0]: no pod n/c"),
        (line(queries=[{"from": "n/a", "to": "here", "port": 1}]), "neither namespace/pod nor an IP address"),
        (line(queries=[{"from": "n/a", "port": 1}]), "from and to must be text"),
        (line(queries=[{"from": "n/a", "to": "n/b", "port": "80"}]), "queries[0].port"),
        (line(queries=[{"from": "n/a", "to": "n/b", "port": 80, "protocol": "IGMP"}]), "queries[0].protocol"),
    ],
)
def test_a_wrong_line_is_an_error_and_the_others_are_answered(text: str, message: str) -> None:
    answers = list(answer_lines([line(), text, "", line()]))
    assert [good for _, good in answers] == [True, False, True]
    assert message in json.loads(answers[1][0])["error"]


# matrix and diff


def test_the_matrix() -> None:
    made = make_matrix(Evaluator.as_enforced(load().objects))
    assert made.workloads == ("shop/cart", "shop/db", "shop/web")
    cart, db, web = made.rows
    assert (cart[0].cell, cart[1].cell, web[1].cell, db[2].cell) == (Cell.SELF, Cell.NONE, Cell.SOME, Cell.ALL)
    assert (web[1].allowed, web[1].denied) == (("TCP 5432",), ("other",))
    assert "shop/web -> shop/db: TCP 5432" in render_lines(made)
    json.dumps(made.as_json())


def test_replicas_are_one_workload() -> None:
    one, two = pod("n/a-1", "10.0.0.1", **{"app": "a", "pod-template-hash": "1"}), pod("n/a-2", app="a")
    assert [each.name for each in group([one, two, pod("n/x"), pod("n/y")])] == ["n/a-1 (2)", "n/x", "n/y"]
    world = World(one, two, policy("n/p", "podSelector: {}"))
    ((pair,),) = make_matrix(Evaluator(world.engine.snapshot)).rows
    assert pair.cell is Cell.NONE, "replicas are asked about each other"


def test_the_picture_is_svg_with_thirty_workloads_in_reading_size() -> None:
    pods = [pod(f"n/workload-{number:02}", app=f"a{number}") for number in range(30)]
    made = make_matrix(
        Evaluator.as_enforced([*pods, policy("n/p<&>".replace("<&>", ""), "podSelector: {matchLabels: {app: a3}}")])
    )
    root = ElementTree.fromstring(render_svg(made))
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    for each in pods:
        assert texts.count(f"n/{each.name}") == 2, "once at the left, once on top"
    cells = list(root.iter("{http://www.w3.org/2000/svg}g"))
    assert len(cells) == 900
    tips = {"".join(cell[0].itertext()) for cell in cells}
    assert "n/workload-00 → n/workload-03\ndenied: other" in tips
    assert float(root.attrib["width"]) < 1200
    assert float(root.attrib["height"]) < 1200


def test_diff_names_objects_and_connections() -> None:
    old = load()
    new = with_workloads(
        load_text(SHOP.replace("app: web}}}]\n", "app: cart}}}]\n") + NP + "{podSelector: {matchLabels: {app: web}}}")
    )
    found = compare(old, new)
    assert (found.added, found.removed, found.changed) == (("NetworkPolicy/shop/p",), (), ("NetworkPolicy/shop/db",))
    changes = {(each.source, each.destination, each.flow, each.allowed) for each in found.connections}
    assert changes == {
        ("shop/cart", "shop/db", "TCP 5432", True),
        ("shop/web", "shop/db", "TCP 5432", False),
        *(
            (source, "shop/web", flow, False)
            for source in ("shop/cart", "shop/db")
            for flow in ("TCP 80", "other ports")
        ),
    }
    json.dumps(found.as_json())
    assert compare(old, load()).empty


def test_diff_of_policies_alone_asks_about_the_pods_of_the_other_side() -> None:
    found = compare(load(), load_text(NP + "{podSelector: {}}"))
    assert {key for key in found.removed if key.startswith("NetworkPolicy")} == {"NetworkPolicy/shop/db"}
    assert ("shop/cart", "shop/web", "TCP 80") in {
        (each.source, each.destination, each.flow) for each in found.connections
    }


def test_endpoints_that_cannot_be_asked_about() -> None:
    evaluator = Evaluator.as_enforced(load().objects)
    for text in ("shop/nobody", "web", "10.0.0.300", ""):
        with pytest.raises(UnknownEndpoint):
            evaluator.endpoint(text)


def test_every_policy_shown_in_the_documentation_is_sound() -> None:
    """YAML blocks and files of the repository pass ``trireme policy check`` without errors."""
    root = Path(__file__).parent.parent.parent
    texts = {
        path: path.read_text() for folder in ("manifests", "docs", "agent") for path in (root / folder).rglob("*.yaml")
    }
    for page in [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("policy/*.md")]:
        for number, block in enumerate(re.findall(r"```ya?ml\n(.*?)```", page.read_text(), re.DOTALL)):
            texts[page.with_name(f"{page.name}#{number}")] = block
    assert texts
    for path, text in texts.items():
        errors = [each for each in check(load_text(text, str(path))) if each.severity is Severity.ERROR]
        errors = [each for each in errors if each.field not in ("kind", "apiVersion")]  # fragments
        assert not errors, "\n".join(map(str, errors))


def test_the_example_is_without_advice_and_its_expectations_hold() -> None:
    loaded = with_workloads(load_folder(Path(__file__).parent.parent.parent / "docs" / "examples" / "shop"))
    assert check(loaded) == []
    expectations, _ = read_expectations(loaded)
    results = list(run(Evaluator.as_enforced(loaded.objects), expectations))
    assert len(results) == 6
    assert all(each.passed for each in results)
    picture = (Path(__file__).parent.parent.parent / "docs" / "examples" / "shop" / "matrix.svg").read_text()
    assert render_svg(make_matrix(Evaluator.as_enforced(loaded.objects))) == picture, (
        "draw it again: trireme policy matrix --svg"
    )

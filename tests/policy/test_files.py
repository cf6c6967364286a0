"""Reading folders: what is wrong is named with file, line, field and fix, and nothing raises."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.decode import decode
from policy.document import MAX_BYTES, DocumentError, join, read_documents_untrusted
from policy.engine import PolicyEngine
from policy.files import load_file, load_folder, load_text
from policy.objects import BrokenRule, NetworkPolicy, Pod
from tests.policy.world import VERSIONS
from trireme_py.model import Direction, NamedPort

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: n}
spec:
  podSelector: {}
"""
CLUSTER = """\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: c}
spec:
"""
INGRESS = POLICY + "  ingress:\n  - "
RULE = CLUSTER + "  tier: Admin\n  priority: 1\n  subject: {namespaces: {}}\n  egress:\n  - "

MALFORMED = [
    # text, line, field, part of the message, part of the hint
    (POLICY.replace("podSelector", "podSelectr"), 5, "spec.podSelectr", "unknown", "did you mean podSelector?"),
    (POLICY + "  ingres: []\n", 6, "spec.ingres", "unknown", "did you mean ingress?"),
    (POLICY + "  policyTypes: [ingress]\n", 6, "spec.policyTypes[0]", "'ingress'", "Ingress or Egress"),
    (POLICY + "  policyTypes: Ingress\n", 6, "spec.policyTypes", "must be a list", "begin each item"),
    (POLICY.replace("networking.k8s.io/v1", "extensions/v1beta1"), 1, "apiVersion",
     "not supported", "networking.k8s.io/v1"),
    (POLICY.replace("metadata: {name: p, namespace: n}", "metadata: {}"), 3, "metadata.name",
     "is missing", "add name:"),
    (POLICY.replace("name: p", "name: 7"), 3, "metadata.name", "the number 7", '"7"'),
    (POLICY.replace("name: p", "name: My_Policy"), 3, "metadata.name", "not a valid name", "lower-case"),
    (POLICY[: POLICY.index("spec")], 1, "spec", "is missing", "add spec:"),
    (POLICY.replace("{}", "{matchLabels: {app: 1}}"), 5,
     "spec.podSelector.matchLabels.app", "the number 1", 'quote it: "1"'),
    (POLICY.replace("{}", "{matchLabels: {on: yes}}"), 5, "spec.podSelector.matchLabels.on", "boolean true", '"true"'),
    (POLICY.replace("{}", "{app: web}"), 5, "spec.podSelector.app", "unknown", ""),
    (POLICY.replace("{}", "{matchLabels: {-x: y}}"), 5, "spec.podSelector.matchLabels.-x",
     "not a label key", "prefix/"),
    (POLICY.replace("{}", "{matchLabels: {x: a b}}"), 5, "spec.podSelector.matchLabels.x", "not a label value", "63"),
    (INGRESS + "from: [{podSelector: {matchExpressions: [{key: a, operator: Is}]}}]", 7,
     "spec.ingress[0].from[0].podSelector.matchExpressions[0].operator", "'Is'", "NotIn"),
    (INGRESS + "from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]", 7,
     "spec.ingress[0].from[0].podSelector.matchExpressions[0].values", "at least one", "add values"),
    (INGRESS + "from: [{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]", 7,
     "spec.ingress[0].from[0].podSelector.matchExpressions[0].values", "no values", "remove"),
    (INGRESS + "from:\n    - {}", 8, "spec.ingress[0].from[0]", "names no peer", "podSelector"),
    (INGRESS + "from:\n    - ipBlock: {cidr: 10.0.0.0/8}\n      podSelector: {}", 8,
     "spec.ingress[0].from[0]", "beside a selector", "item of its own"),
    (INGRESS + "from:\n    - ipBlock: {cidr: 10.0.0.1}", 8,
     "spec.ingress[0].from[0].ipBlock.cidr", "not a CIDR", "10.0.0.1/32"),
    (INGRESS + "from:\n    - ipBlock: {}", 8, "spec.ingress[0].from[0].ipBlock.cidr", "is missing", "add cidr"),
    (INGRESS + "from:\n    - ipBlock: {cidr: 10.0.0.0/33}", 8,
     "spec.ingress[0].from[0].ipBlock.cidr", "not a CIDR", "/8"),
    (INGRESS + "from:\n    - ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}", 8,
     "spec.ingress[0].from[0].ipBlock.except[0]", "strictly inside", "narrow"),
    (INGRESS + "ports:\n    - {port: '80'}", 8, "spec.ingress[0].ports[0].port", "not a port name", "without quotes"),
    (INGRESS + "ports:\n    - {port: 70000}", 8, "spec.ingress[0].ports[0].port", "70000", "65535"),
    (INGRESS + "ports:\n    - {port: 80, endPort: 79}", 8, "spec.ingress[0].ports[0].endPort", "below", "swap"),
    (INGRESS + "ports:\n    - {port: http, endPort: 79}", 8, "spec.ingress[0].ports[0].endPort",
     "number", "as a number"),
    (INGRESS + "ports:\n    - {protocol: tcp}", 8, "spec.ingress[0].ports[0].protocol", "'tcp'", "write TCP"),
    (INGRESS + "ports: [80]", 7, "spec.ingress[0].ports[0]", "got int", "mapping"),
    (INGRESS, 7, "spec.ingress[0]", "is empty", "write {}"),
    (INGRESS + "to: []", 7, "spec.ingress[0].to", "unknown", ""),
    (CLUSTER + "  tier: Top\n  priority: 1\n  subject: {namespaces: {}}", 5, "spec.tier", "'Top'", "Admin or Baseline"),
    (CLUSTER + "  tier: Admin\n  priority: 1001\n  subject: {namespaces: {}}", 6, "spec.priority", "1001", "0 (first)"),
    (CLUSTER + "  tier: Admin\n  priority: 1", 4, "spec.subject", "is missing", "namespaces: {}"),
    (CLUSTER + "  tier: Admin\n  priority: 1\n  subject: {}", 7, "spec.subject", "exactly one", "namespaces: {}"),
    (RULE + "{action: Allow, to: [{namespaces: {}}]}", 9, "spec.egress[0].action", "'Allow'", "Accept, Deny or Pass"),
    (RULE + "{action: Deny, to: [{}]}", 9, "spec.egress[0].to[0]", "exactly one", "of its own"),
    (RULE + "{action: Deny, to: [{domainNames: [a.org]}]}", 9, "spec.egress[0].to[0].domainNames",
     "Deny", "Accept only"),
    (RULE + "{action: Accept, to: [{domainNames: [org]}]}", 9, "spec.egress[0].to[0].domainNames[0]", "'org'", "*."),
    (RULE + "{action: Deny, to: [{networks: [x]}]}", 9, "spec.egress[0].to[0].networks[0]", "'x'", "10.0.0.0/8"),
    (RULE + "{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]}", 9,
     "spec.egress[0].protocols", "not pods", "number"),
    (RULE + "{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]}", 9,
     "spec.egress[0].protocols[0].tcp.destinationPort.range", "not below", "swap"),
    (RULE + "{action: Deny, to: [{nodes: {}}], protocols: [{icmp: {}}]}", 9,
     "spec.egress[0].protocols[0].icmp", "unknown", ""),
    ("kind: AdminNetworkPolicy\napiVersion: policy.networking.k8s.io/v1alpha1", 1, "kind",
     "ignored", "ClusterNetworkPolicy"),
    ("apiVersion: v1", 1, "kind", "missing", "kind:"),
    ("- a\n- b", 1, "", "not a mapping", "apiVersion"),
    ("a: [", 2, "", "not YAML", "nothing after this line"),
    ("a: 1\nb: 2\na: 3", 3, "", "written twice", ""),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {x: 1}}", 3, "metadata.labels.x", "the number 1", '"1"'),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: 1.2.3}]}", 4,
     "status.podIPs[0].ip", "1.2.3", "IPv4"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "field", "message", "hint"), MALFORMED, ids=lambda value: str(value)[-40:])
def test_a_malformed_object_is_named_with_line_field_and_fix(
    text: str, line: int, field: str, message: str, hint: str
) -> None:
    loaded = load_text(text, "bad.yaml")
    assert len(loaded.problems) >= 1
    found = loaded.problems[0]
    assert (found.file, found.line, found.field) == ("bad.yaml", line, field)
    assert message in found.message
    assert hint in found.hint
    assert found.hint, "every problem says what to do"
    assert str(found).startswith(f"bad.yaml:{line}: ")


@pytest.mark.parametrize(
    ("count", "problems"), [(25, []), (26, ["spec.egress", "spec.egress[0].to", "spec.egress[0].protocols"])]
)
def test_the_limits_of_a_cluster_policy_are_reported_and_its_rules_kept(count: int, problems: list[str]) -> None:
    rule = (
        f"{{action: Deny, to: [{', '.join(['{namespaces: {}}'] * count)}], "
        f"protocols: [{', '.join(['{tcp: {destinationPort: {number: 80}}}'] * count)}]}}"
    )
    simple = "  - {action: Deny, to: [{namespaces: {}}]}\n" * (count - 1)
    loaded = load_text(RULE + rule + "\n" + simple)
    assert sorted(each.field for each in loaded.problems) == sorted(problems)
    (found,) = loaded.policies
    assert len(found.egress) == count


def test_at_least_thirty_malformed_objects_are_tried() -> None:
    assert len(MALFORMED) >= 30


def test_a_broken_document_leaves_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{POLICY}---\nkind: 7\n---\n{POLICY.replace('name: p', 'name: q')}---\nx: [\n")
    (tmp_path / "b.yml").write_text(POLICY.replace("name: p", "name: r"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}')
    (tmp_path / "notes.txt").write_text("kind: nothing to us")
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "a.yaml").write_text(POLICY)
    loaded = load_folder(tmp_path)
    assert [item.key for item in loaded.objects] == [
        "NetworkPolicy/n/p", "NetworkPolicy/n/q", "NetworkPolicy/n/r", "Namespace/n",
    ]  # fmt: skip
    assert [(Path(item.file).name, item.line) for item in loaded.problems] == [("a.yaml", 7), ("a.yaml", 16)]
    assert loaded.sources["NetworkPolicy/n/q"].line == 9


def test_lists_and_other_kinds() -> None:
    loaded = load_text(f"""\
apiVersion: v1
kind: List
items:
- apiVersion: trireme.io/v1
  kind: AgentConfig
  spec:
    rules:
    - name: x
- {{apiVersion: v1, kind: Namespace, metadata: {{name: m, labels: {{team: x}}}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicyList
items:
- metadata: {{name: listed, namespace: m}}
  spec: {{podSelector: {{}}}}
---
tests: []
---
{POLICY}""")
    assert not loaded.problems
    assert [item.key for item in loaded.objects] == ["Namespace/m", "NetworkPolicy/m/listed", "NetworkPolicy/n/p"]
    assert loaded.namespaces[0].labels == {"team": "x", "kubernetes.io/metadata.name": "m"}
    config, tests = loaded.others
    assert (config.kind, config.line, config.line_of("spec.rules[0].name"), config.line_of("spec.nothing")) == (
        "AgentConfig", 4, 8, 6,
    )  # fmt: skip
    assert tests.kind == ""


def test_one_object_twice_is_a_problem_and_the_first_stays() -> None:
    loaded = load_text(f"{POLICY}---\n{POLICY}  ingress: [{{}}]\n")
    assert len(loaded.policies) == 1
    assert "is there already (<text>:1)" in loaded.problems[0].message
    assert loaded.problems[0].line == 9


@pytest.mark.parametrize(
    ("kind", "version", "meant"),
    [
        ("pod", "v1", "Pod"),
        ("Nampespace", "v1", "Namespace"),
        ("NetworkPolcy", "networking.k8s.io/v1beta1", "NetworkPolicy"),
        ("ClusterNetworkPolicies", "policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
        ("CiliumNetworkPolicy", "cilium.io/v2", None),
        ("Ingress", "networking.k8s.io/v1", None),
        ("PodTemplate", "v1", None),
        ("ServiceAccount", "v1", None),
    ],
)
def test_a_misspelled_kind_is_told_from_one_of_another_tool(kind: str, version: str, meant: str | None) -> None:
    loaded = load_text(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n")
    assert [(problem.line, problem.field, problem.hint) for problem in loaded.problems] == (
        [(2, "kind", f"did you mean {meant}?")] if meant else []
    )
    assert [document.kind for document in loaded.others] == ([] if meant else [kind])


def test_an_unknown_annotation_of_ours_is_a_problem_and_others_are_not() -> None:
    text = """\
apiVersion: v1
kind: Pod
metadata:
  name: p
  annotations: {example.org/x: y, trireme.io/network-namespace: p, trireme.io/network-namepsace: p}
"""
    loaded = load_text(text)
    assert [(problem.field, problem.hint) for problem in loaded.problems] == [
        ('metadata.annotations["trireme.io/network-namepsace"]', "did you mean trireme.io/network-namespace?")
    ]
    assert len(loaded.pods) == 1


def test_a_pod_keeps_what_the_agent_needs() -> None:
    loaded = load_text("""\
apiVersion: v1
kind: Pod
metadata: {name: p, uid: abc, labels: {app: web}, annotations: {x: y}, deletionTimestamp: 2026-01-01T00:00:00Z}
spec:
  serviceAccountName: web
  containers:
  - ports: [{containerPort: 80, name: http}, {containerPort: 53, protocol: UDP, name: dns}, {containerPort: 9}]
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
""")
    assert not loaded.problems
    (found,) = loaded.pods
    assert found == Pod(
        namespace="default",
        name="p",
        uid="abc",
        labels={"app": "web"},
        annotations={"x": "y"},
        deletion_timestamp="2026-01-01T00:00:00Z",
        service_account="web",
        named_ports=(NamedPort("http", 6, 80), NamedPort("dns", 17, 53)),
        addresses=(b"\n\0\0\1", b"\xfd" + bytes(14) + b"\1"),
        phase="Running",
    )


def test_a_broken_rule_keeps_its_place_and_the_isolation() -> None:
    (found,) = load_text(INGRESS + "from: [{}]\n  - {}\n").policies
    assert isinstance(found, NetworkPolicy)
    assert found.directions == {Direction.INGRESS}
    assert isinstance(found.ingress[0], BrokenRule)
    assert not isinstance(found.ingress[1], BrokenRule)


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 1000, "nested more than"),
        ("a: &a [*a]", "refers to itself"),
        (BOMB, "values"),
        ("a: !!python/object/apply:os.system [x]", "tag"),
        ("a: !!int x", "not a valid int"),
        ("? [a]\n: b", "a key must be plain text"),
        ("<<: 1", "can only merge"),
        ("a: \x01", "not YAML"),
        ("a: *b", "alias *b"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_hostile_yaml_is_one_problem(text: str, message: str) -> None:
    (found,) = load_text(text).problems
    assert message in found.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    (tmp_path / "folder.yaml").mkdir()
    loaded = load_folder(tmp_path)
    assert [(Path(item.file).name, item.line, item.message) for item in loaded.problems] == [
        ("big.yaml", 0, "is larger than 4 MiB"),
        ("latin.yaml", 2, "is not UTF-8 text"),
    ]
    assert "cannot be read" in load_file(tmp_path / "folder.yaml").problems[0].message
    assert "is not a folder" in load_folder(tmp_path / "none").problems[0].message


def test_values_are_read_as_the_api_reads_them() -> None:
    text = "t: 2026-01-01\nyes: on\n7: seven\nbase: &b {x: 1, y: 2}\nmerged: {<<: *b, y: 3}\nempty:\n"
    ((data, lines),) = read_documents_untrusted(text)
    assert data == {
        "t": "2026-01-01",
        "yes": True,
        "7": "seven",
        "base": {"x": 1, "y": 2},
        "merged": {"x": 1, "y": 3},
        "empty": None,
    }
    assert lines.of("merged.y") == 5


def test_paths_name_keys_with_dots_in_quotes() -> None:
    path = join(join("metadata.labels", "a.b/c"), 0)
    assert path == 'metadata.labels["a.b/c"][0]'
    ((_, lines),) = read_documents_untrusted("metadata:\n  labels:\n    x: 1\n    a.b/c:\n    - y\n")
    assert (lines.of(path), lines.of('metadata.labels["a.b/c"]'), lines.of("metadata.labels.x")) == (5, 4, 3)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:- \n[]{}&*!<>?|'\"#,%0", max_size=60))
def test_any_text_is_data_or_a_document_error(text: str) -> None:
    with contextlib.suppress(DocumentError):
        for data, lines in read_documents_untrusted(text):
            assert data is not None
            assert 1 <= lines.line <= text.count("\n") + 1


KEYS = [
    *("podSelector", "ingress", "egress", "from", "to", "ports", "port", "matchLabels", "matchExpressions", "key"),
    *("operator", "values", "ipBlock", "cidr", "except", "tier", "priority", "subject", "namespaces", "action"),
    *("protocols", "tcp", "policyTypes", "name", "labels", "annotations"),
]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 70000)
    | st.sampled_from(["", "In", "TCP", "10.0.0.0/8", "x y", "Admin"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["NetworkPolicy", "ClusterNetworkPolicy", "Pod", "Namespace", "Node"]), JUNK, JUNK, JUNK)
def test_any_object_compiles_or_is_reported(kind: str, metadata: object, spec: object, status: object) -> None:
    """Nothing that ``decode`` lets through can make the compiler raise."""
    for meta in (metadata, {"name": "x"}):
        document = {"apiVersion": VERSIONS[kind], "kind": kind, "metadata": meta, "spec": spec, "status": status}
        item, problems = decode(document)
        assert item is not None or problems
        if item is not None:
            PolicyEngine().apply(item)

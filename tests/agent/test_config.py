from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest
import yaml

from agent.config import CredentialPaths, _SpecDocument, cautions, load
from agent.failmode import FailMode
from agent.kubernetes.config import KubernetesConfig
from trireme_py.errors import ConfigError

HEAD = "apiVersion: trireme.io/v1alpha1\nkind: AgentConfig\nspec:\n"
GOOD = HEAD + "  trustDomain: example.org\n  mode: psk\n  credentials: {presharedKey: keys/psk.key}\n"


def refused(folder: Path, text: str) -> list[str]:
    (folder / "agent.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    return str(caught.value).replace(str(folder), "DIR").splitlines()


def test_three_fields_are_enough(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(GOOD)
    config = load(tmp_path)
    assert config.trust_domain == "example.org"
    assert config.credentials.preshared_key == tmp_path / "keys" / "psk.key"
    assert config.fail_mode is FailMode.CLOSED
    assert config.metrics == ("127.0.0.1", 9643)
    assert config.flow_log is None
    assert config.mark_mask == 0xFF0000
    assert config.assertion_lifetime_s == 3600
    assert ip_network("100.64.0.0/10") in config.identity_scope
    assert not config.audit


def test_every_field_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(
        HEAD
        + """\
  trustDomain: example.org
  mode: pki
  credentials: {key: node.key, certificate: node.cert, authority: /etc/ca.cert}
  podRanges: [10.77.0.0/16, "fd77::/32"]
  identityScope: [10.0.0.0/8]
  requireTranslationEvidence: true
  nodeNetworkNamespace: router
  markMask: 0xff00
  queue: 9
  rules: python-iptables
  failMode: open
  metrics: off
  health: "[::1]:9644"
  flowLog: "-"
  runtimeDirectory: /run/other
  assertionLifetime: 15m
  audit: true
"""
    )
    config = load(tmp_path)
    assert config.credentials.authority == Path("/etc/ca.cert")
    assert config.credentials.key == tmp_path / "node.key"
    assert config.pod_ranges == (ip_network("10.77.0.0/16"), ip_network("fd77::/32"))
    assert config.identity_scope == (ip_network("10.0.0.0/8"),)
    assert config.require_translation_evidence
    assert config.node_network_namespace == "router"
    assert (config.mark_mask, config.queue, config.rules) == (0xFF00, 9, "python-iptables")
    assert config.fail_mode is FailMode.OPEN
    assert (config.metrics, config.health, config.flow_log) == (None, ("::1", 9644), "-")
    assert config.runtime_directory == Path("/run/other")
    assert (config.assertion_lifetime_s, config.audit) == (900, True)


def test_what_weakens_enforcement_is_said(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(GOOD)
    assert cautions(load(tmp_path)) == []
    (tmp_path / "agent.yaml").write_text(
        GOOD + "  audit: true\n  failMode: open\n  requireTranslationEvidence: false\n"
    )
    found = dict(cautions(load(tmp_path)))
    assert list(found) == ["spec.audit", "spec.failMode", "spec.requireTranslationEvidence"]
    assert "every address" in found["spec.requireTranslationEvidence"]
    (tmp_path / "agent.yaml").write_text(GOOD + "  requireTranslationEvidence: false\n  podRanges: [10.0.0.0/8]\n")
    assert "every address" not in dict(cautions(load(tmp_path)))["spec.requireTranslationEvidence"]


def test_every_field_is_documented_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "standalone.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", text, re.MULTILINE))
    defaults = {
        field.encode_name: "required" if field.required else field.default
        for field in msgspec.structs.fields(_SpecDocument)
    }
    assert documented.keys() == defaults.keys()
    in_words = {"podRanges", "identityScope", "nodeNetworkNamespace", "flowLog", "kubernetes"}
    for name in defaults.keys() - in_words:
        shown = yaml.safe_load(documented[name])
        assert shown == defaults[name], name


def test_in_a_cluster_the_node_s_name_comes_from_the_field_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "node-1")
    (tmp_path / "agent.yaml").write_text(GOOD + "  kubernetes: {}\n")
    assert load(tmp_path).kubernetes == KubernetesConfig("node-1", None)
    (tmp_path / "agent.yaml").write_text(GOOD + "  kubernetes: {node: node-2, kubeconfig: kube.yaml}\n")
    assert load(tmp_path).kubernetes == KubernetesConfig("node-2", tmp_path / "kube.yaml")
    assert refused(tmp_path, GOOD + "  kubernetes: {nod: x, node: Node_3}\n") == [
        "DIR/agent.yaml:7: spec.kubernetes.nod: unknown field; did you mean node?",
        "DIR/agent.yaml:7: spec.kubernetes.node: 'Node_3' is not the name of a Node object; see: kubectl get nodes",
    ]


def test_in_a_cluster_a_node_needs_the_authority_and_nothing_else(tmp_path: Path) -> None:
    text = HEAD + "  trustDomain: example.org\n  mode: pki\n  kubernetes: {}\n"
    (tmp_path / "agent.yaml").write_text(text + "  credentials: {authority: ca.crt}\n")
    assert load(tmp_path).credentials == CredentialPaths(authority=tmp_path / "ca.crt")
    (problem,) = refused(tmp_path, text + "  credentials: {authority: ca.crt, key: node.key}\n")
    assert "spec.credentials.key: mode pki does not use it in a cluster; remove it" in problem


def test_everything_wrong_is_said_at_once_with_file_line_and_field(tmp_path: Path) -> None:
    text = (
        HEAD
        + """\
  trustDomain: Example
  mode: pks
  podRange: [10.0.0.0/8]
  podRanges: [10.0.0.1/8, 3]
  metrics: localhost
  queue: 70000
"""
    )
    assert refused(tmp_path, text) == [
        "DIR/agent.yaml:3: spec.credentials: missing; write credentials: {presharedKey: psk.key}",
        "DIR/agent.yaml:4: spec.trustDomain: lower-case letters, digits, '.', '-' and '_' only, 1 to 255 of them",
        "DIR/agent.yaml:5: spec.mode: 'pks' is not one of psk, pki",
        "DIR/agent.yaml:6: spec.podRange: unknown field; did you mean podRanges?",
        "DIR/agent.yaml:7: spec.podRanges[1]: must be text, in quotes",
        "DIR/agent.yaml:8: spec.metrics: 'localhost' is not ADDRESS:PORT, such as 127.0.0.1:9643 or [::1]:9643, or off",
        "DIR/agent.yaml:9: spec.queue: must be a number of at most 65535",
    ]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("markMask: 0xf0f0", "eight adjacent bits"),
        ("markMask: 0x7f0000", "eight adjacent bits"),
        ("podRanges: [10.0.0.1/8]", "host bits"),
        ("flowLog: flows.json", "absolute path"),
        ("flowLog: true", "absolute path"),
        ("metrics: 127.0.0.1:70000", "ADDRESS:PORT"),
        ("metrics: true", "ADDRESS:PORT"),
        ("health: 127.0.0.1", "ADDRESS:PORT"),
        ("assertionLifetime: 30s", "from 1m to 24h"),
        ("assertionLifetime: 3600", "must be text, in quotes"),
        ("runtimeDirectory: run", "absolute path"),
        ("failMode: ajar", "not one of closed, open"),
        ("rules: nftables", "not one of auto, nft, legacy, python-iptables"),
        ("podRanges: 10.0.0.0/8", "must be a list, such as [10.244.0.0/16]"),
        ("markMask: '0xff0000'", "must be a number, without quotes"),
        ("markMask: 0", "must be a number of at least 1"),
        ("metrics: 9643", "must be text, in quotes"),
        ("audit: 1", "must be true or false, without quotes"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, field: str, words: str) -> None:
    name = field.partition(":")[0]
    (problem,) = refused(tmp_path, GOOD + f"  {field}\n")
    assert problem.startswith(f"DIR/agent.yaml:7: spec.{name}")
    assert words in problem


def test_credentials_of_the_other_mode_are_refused(tmp_path: Path) -> None:
    problems = refused(tmp_path, GOOD.replace("psk\n", "pki\n"))
    assert [problem.split(": ")[1] for problem in problems] == [
        "spec.credentials.authority",
        "spec.credentials.certificate",
        "spec.credentials.key",
        "spec.credentials.presharedKey",
    ]


def test_missing_credentials_come_with_the_command_that_makes_them(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, GOOD.replace("presharedKey: keys/psk.key", ""))
    assert problem.endswith("mode psk needs it; write psk.key, and make it with: trireme key new DIR/psk.key")
    problems = refused(tmp_path, GOOD.replace("presharedKey: keys/psk.key", "").replace("psk\n", "pki\n"))
    assert (
        "spec.credentials.key: mode pki needs it; write node.key, and make it with: trireme node request DIR"
        in (problems[2])
    )
    assert "write node.crt" in problems[0]


@pytest.mark.parametrize("slip", ["Agentconfig", "AgentConfiguration"])
def test_a_misspelled_kind_is_named(tmp_path: Path, slip: str) -> None:
    assert refused(tmp_path, GOOD.replace("AgentConfig", slip)) == [
        f"DIR/agent.yaml:2: kind: {slip} is not a known kind; did you mean AgentConfig?"
    ]


def test_a_file_instead_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=f"is a file; name the folder it is in: --config {tmp_path}$"):
        load(tmp_path / "agent.yaml")


def test_no_document_and_two_documents_are_refused(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, "apiVersion: v1\nkind: ConfigMap\n")
    assert "no AgentConfig document" in problem
    (problem,) = refused(tmp_path, GOOD + "---\n" + GOOD)
    assert "more than one AgentConfig document (DIR/agent.yaml:1, DIR/agent.yaml:8)" in problem


def test_a_file_that_is_not_yaml_is_named_when_no_document_was_found(tmp_path: Path) -> None:
    problems = refused(tmp_path, "kind: [\n")
    assert problems[0].startswith("DIR/agent.yaml:")
    assert "not YAML" in problems[0]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: is not a folder"):
        load(tmp_path / "absent")

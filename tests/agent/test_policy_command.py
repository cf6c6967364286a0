"""``trireme policy``: what each command prints and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli import main
from agent.folder import FolderReader
from agent.runtime import RuntimeDirectory

POLICIES = """\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80, name: http}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
"""
TESTS = """\
---
tests:
- {from: shop/web, to: 'shop/db:5432', expect: allow}
- {from: shop/cart, to: 'shop/db:5432', expect: %s}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.yaml").write_text(POLICIES)
    return tmp_path


def trireme(*args: object, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["policy", *map(str, args)], input=stdin)


def test_check(folder: Path) -> None:
    good = trireme("check", folder)
    assert (good.exit_code, good.output) == (0, "1 policy checked: 0 errors, 0 warnings, 0 notes\n")
    (folder / "bad.yaml").write_text(POLICIES.split("---")[3].replace("name: db", "name: p").replace("port:", "prt:"))
    bad = trireme("check", folder)
    assert bad.exit_code == 1
    assert f"{folder}/bad.yaml:9: error: spec.ingress[0].ports[0].prt unknown field; did you mean port?" in bad.output
    found = json.loads(trireme("check", folder, "-o", "json").output)
    assert [(each["severity"], each["field"]) for each in found] == [("error", "spec.ingress[0].ports[0].prt")]


def test_what_is_empty_is_said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A wrong folder or namespace must not look like one without a fault."""
    empty = tmp_path_factory.mktemp("empty")
    checked = trireme("check", empty)
    assert checked.exit_code == 0
    assert checked.stderr.startswith(f"trireme policy: nothing found in {empty}; name files or folders with .yaml")
    assert json.loads(trireme("check", empty, "-o", "json").stdout) == []
    shown = trireme("show", folder, "-n", "nope")
    assert (shown.exit_code, shown.stderr) == (0, f"trireme policy: nothing found in namespace nope of {folder}\n")
    assert trireme("show", empty).stderr == f"trireme policy: nothing found in {empty}\n"
    assert trireme("show", folder).stderr == trireme("check", folder).stderr == ""


def test_a_command_that_is_misspelt_is_suggested() -> None:
    wrong = CliRunner().invoke(main, ["polcy"])
    assert wrong.exit_code == 2
    assert "No such command 'polcy'. Did you mean 'policy'?" in wrong.stderr
    assert CliRunner().invoke(main, ["xyzzy"]).stderr.endswith("No such command 'xyzzy'.\n")
    assert "No such option" in CliRunner().invoke(main, ["--nope"]).stderr


def test_explain(folder: Path) -> None:
    allowed = trireme("explain", "shop/web", "shop/db:5432", "-f", folder)
    assert allowed.exit_code == 0
    assert allowed.output.startswith("ALLOW  TCP 5432  shop/web -> shop/db\n")
    denied = trireme("explain", "shop/cart", "shop/db:5432", "-f", folder)
    assert denied.exit_code == 1
    assert "needs app=web, the peer is shop/cart with app=cart" in denied.output
    assert "To allow it, add to spec.ingress of shop/db" in denied.output
    found = json.loads(trireme("explain", "192.0.2.1", "shop/db:5432", "-f", folder, "-o", "json").output)
    assert [side["decision"]["reason"] for side in found["sides"]] == ["unidentified"]


def test_explain_judges_a_ping_as_the_agent_does(folder: Path) -> None:
    """By address: labels travel on TCP and UDP only (docs/udp.md)."""
    text = (folder / "shop.yaml").read_text().replace("    ports: [{port: 5432}]\n", "")
    (folder / "shop.yaml").write_text(text)
    denied = trireme("explain", "shop/web", "shop/db", "--protocol", "ICMP", "-f", folder)
    assert (denied.exit_code, denied.output.splitlines()[0]) == (1, "DENY  ICMP  shop/web -> shop/db")
    assert "ICMP carries no identity: pods are judged by address" in denied.output
    assert "To allow it" not in denied.output, "these pods have no addresses"
    assert trireme("explain", "shop/web", "shop/db:80", "--protocol", "SCTP", "-f", folder).exit_code == 1
    assert trireme("explain", "shop/web", "shop/db:80", "--protocol", "UDP", "-f", folder).exit_code == 0
    port = trireme("explain", "shop/web", "shop/db:80", "--protocol", "ICMP", "-f", folder)
    assert (port.exit_code, port.stderr) == (
        2,
        "trireme policy: TO: shop/db:80 names a port, and ICMP has none; write shop/db\n",
    )


def test_show(folder: Path) -> None:
    shown = trireme("show", folder)
    assert shown.exit_code == 0
    assert "shop/db  NetworkPolicy  enforce  1     1              -" in shown.output
    assert "shop/db    shop/db  open" in shown.output
    assert "\x1b" not in shown.output
    found = json.loads(trireme("show", folder, "-n", "shop", "-o", "json").output)
    assert found["pods"][2]["ingress"] == ["NetworkPolicy/shop/db"]
    assert json.loads(trireme("show", folder, "-n", "other", "-o", "json").stdout) == {"policies": [], "pods": []}


def test_test(folder: Path) -> None:
    assert trireme("test", folder).exit_code == 2
    (folder / "tests.yaml").write_text(TESTS % "deny")
    passed = trireme("test", folder)
    assert (passed.exit_code, passed.output.splitlines()[-1]) == (0, "2 tests, 0 failed")
    (folder / "tests.yaml").write_text(TESTS % "allow")
    failed = trireme("test", folder)
    assert failed.exit_code == 1
    assert f"FAIL  shop/cart -> shop/db:5432  expected allow, got deny  ({folder}/tests.yaml:4; " in failed.output
    assert [each["passed"] for each in json.loads(trireme("test", folder, "-o", "json").output)] == [True, False]


def test_test_says_which_policy_was_to_decide(folder: Path) -> None:
    by = "NetworkPolicy/shop/other"
    (folder / "tests.yaml").write_text(
        f"---\ntests: [{{from: shop/web, to: 'shop/db:5432', expect: allow, by: {by}}}]\n"
    )
    failed = trireme("test", folder)
    assert f"expected allow by {by}, got allow by NetworkPolicy/shop/db  (" in failed.output
    assert json.loads(trireme("test", folder, "-o", "json").output)[0]["by"] == by


def test_diff(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("new")
    (other / "shop.yaml").write_text(POLICIES.replace("app: web}}}]", "app: cart}}}]"))
    assert (trireme("diff", folder, folder).exit_code, trireme("diff", folder, other).exit_code) == (0, 1)
    text = trireme("diff", folder, other).output
    assert "~ NetworkPolicy/shop/db" in text
    assert "newly ALLOWED  shop/cart -> shop/db  TCP 5432" in text
    assert "newly DENIED   shop/web -> shop/db  TCP 5432" in text
    found = json.loads(trireme("diff", folder, other, "-o", "json").output)
    assert len(found["connections"]) == 2


def test_matrix(folder: Path, tmp_path: Path) -> None:
    made = trireme("matrix", folder, "--svg", tmp_path / "who.svg")
    assert made.exit_code == 0
    assert "shop/web -> shop/db: TCP 5432" in made.output
    assert (tmp_path / "who.svg").read_text().startswith("<svg ")
    assert trireme("matrix", folder, "--svg", "-").output.startswith("<svg ")
    assert json.loads(trireme("matrix", folder, "-o", "json").output)["workloads"] == [
        "shop/cart",
        "shop/db",
        "shop/web",
    ]


def test_verdicts() -> None:
    line = json.dumps({"queries": [{"from": "192.0.2.1", "to": "192.0.2.2", "protocol": "TCP", "port": 80}]})
    good = trireme("verdicts", stdin=line + "\n")
    assert good.exit_code == 0
    assert json.loads(good.output)["verdicts"][0]["verdict"] == "allowed"
    mixed = trireme("verdicts", stdin=f"{line}\nnonsense\n{line}\n")
    assert mixed.exit_code == 2
    assert [next(iter(json.loads(text))) for text in mixed.output.splitlines()] == ["verdicts", "error", "verdicts"]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("nonsense",), 3, "No such command"),
        (("check",), 3, "Missing argument"),
        (("check", "--nonsense", "."), 3, "No such option"),
        (("explain", "a/b", "shop/db:5432"), 2, "no pod a/b"),
        (("explain", "shop/web", "shop/db"), 2, "port"),
        (("explain", "shop/web", "shop/db:nope"), 2, "no container port named 'nope'"),
        (("show", "/does/not/exist"), 2, "/does/not/exist: does not exist; name files or folders\n"),
        (("check", "/does/not/exist"), 2, "/does/not/exist: does not exist; name files or folders\n"),
        (("chek", "."), 3, "Did you mean 'check'?"),
    ],
)
def test_mistakes(folder: Path, args: tuple[str, ...], code: int, text: str) -> None:
    extra = ("-f", str(folder)) if args[0] == "explain" else ()
    result = trireme(*args, *extra)
    assert result.exit_code == code
    assert text in result.output + result.stderr


def test_broken_files_end_in_one_message(folder: Path) -> None:
    (folder / "bad.yaml").write_text("a: [")
    for args in (("show", folder), ("matrix", folder), ("test", folder), ("diff", folder, folder)):
        result = trireme(*args)
        assert result.exit_code == 2
        assert f"run this first: trireme policy check {folder}\n" in result.stderr


def test_explain_without_a_port_says_how_to_write_it(folder: Path) -> None:
    result = trireme("explain", "shop/web", "shop/db", "-f", folder)
    assert (result.exit_code, result.output) == (
        2,
        "trireme policy: TO: shop/db names no port, and TCP needs one; write shop/db:80\n",
    )


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (
            ("web", "shop/db:80"),
            "FROM: 'web' is neither namespace/pod nor an IP address; write namespace/pod or an addr",
        ),
        (("shop/web:80", "shop/db:80"), "FROM takes neither; write shop/web\n"),
        (("[2001:db8::1]:80", "shop/db:80"), "FROM takes neither; write 2001:db8::1\n"),
        (("[2001:db8::1]", "shop/db:80"), "FROM takes neither; write 2001:db8::1\n"),
        (
            ("shop/web", "db:80"),
            "TO: 'db' is neither namespace/pod nor an IP address; write namespace/pod:80 or address",
        ),
        (
            ("shop/web", "shop/web:nope"),
            "TO: shop/web has no container port named 'nope' for TCP; its ports are http (TCP 80)",
        ),
        (("shop/web", "shop/db:nope"), "it names no port; write the number"),
        (("shop/web", "2001:db8::1:80"), "IPv6 wants '[2001:db8::1]:80'"),
        (("shop/web", "shop/db:0"), "TO: shop/db:0: 0 is not a port; write one from 1 to 65535"),
        (("shop/web", "shop/db:65536"), "65536 is not a port"),
        (
            ("shop/web", "shop/db:80", "--protocol", "IGMP"),
            "--protocol IGMP: is not one of TCP, UDP, SCTP, ICMP, ICMPV6",
        ),
    ],
)
def test_explain_says_of_each_argument_what_is_wrong(folder: Path, args: tuple[str, ...], advice: str) -> None:
    result = trireme("explain", *args, "-f", folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert advice in result.stderr


def test_explain_names_the_command_that_lists_the_pods(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same files, or the same agent, so that the line can be pasted."""
    runtime = tmp_path_factory.mktemp("run")
    FolderReader(folder, RuntimeDirectory(runtime).last_good).read()
    of_files = trireme("explain", "a/b", "shop/db:80", "-f", folder).stderr
    assert of_files.endswith(
        f"FROM: no pod a/b is known; write namespace/pod or an address; see the pods there are: "
        f"trireme policy show {folder}\n"
    )
    of_agent = trireme("explain", "a/b", "shop/db:80", "--agent", runtime).stderr
    assert of_agent.endswith(f"see the pods there are: trireme policy show --agent {runtime}\n")
    assert "files" not in of_agent


def test_check_reads_the_agent_s_configuration(folder: Path) -> None:
    text = "apiVersion: trireme.io/v1alpha1\nkind: AgentConfig\nspec: {trustDomain: example.org, mode: psk}\n"
    (folder / "agent.yaml").write_text(text)
    found = trireme("check", folder)
    assert found.exit_code == 1
    assert f"{folder}/agent.yaml:3: error: spec.credentials missing; write credentials: " in found.output
    (folder / "agent.yaml").write_text(text.replace("psk}", "psk, credentials: {presharedKey: psk.key}}"))
    assert trireme("check", folder).exit_code == 0
    (folder / "agent.yaml").write_text(text.replace("AgentConfig", "Agentconfig"))
    assert "did you mean AgentConfig?" in trireme("check", folder).output


def test_what_the_agent_has_in_force(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The agent's copies of good files are read, not the folder that may have been broken since."""
    runtime = tmp_path_factory.mktemp("run")
    reader = FolderReader(folder, RuntimeDirectory(runtime).last_good)
    reader.read()
    (folder / "shop.yaml").write_text("a: [")
    explained = trireme("explain", "shop/web", "shop/db:5432", "--agent", runtime)
    assert (explained.exit_code, explained.output.splitlines()[0]) == (0, "ALLOW  TCP 5432  shop/web -> shop/db")
    assert "shop/db" in trireme("show", "--agent", runtime).output
    assert "shop/web -> shop/db: TCP 5432" in trireme("matrix", "--agent", runtime).output
    assert trireme("show").exit_code == 3
    nobody = trireme("show", "--agent", runtime / "nobody")
    assert nobody.exit_code == 2
    assert "does not exist: no agent keeps its files here; name its spec.runtimeDirectory" in nobody.stderr

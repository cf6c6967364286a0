"""The component for Prometheus: alerts that fire and alerts that do not, and expressions that a real server answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.lab import Lab
from tests.harness.agent_process import AgentProcess, Configuration, trireme
from tests.harness.kustomize import MANIFESTS, of_kind, rendered
from tests.harness.promtool import prometheus, run_promtool
from tests.harness.traffic import Server, ask, refused

COMPONENT = MANIFESTS / "components" / "prometheus"
GROUPS = yaml.safe_load((COMPONENT / "rules.yaml").read_text(encoding="utf-8"))["spec"]["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
DASHBOARD = json.loads((COMPONENT / "trireme.json").read_text(encoding="utf-8"))
CLUSTER_ONLY = {
    "trireme_watch_events_total",
    "trireme_watch_last_event_timestamp_seconds",
    "trireme_watch_restarts_total",
    "trireme_pod_starts_total",
    "trireme_pods_unprotected",
}
"""Not there in standalone mode, which is what the agent of this test runs in."""

LABELS = 'job="trireme-agent",node="n1"'

# For each alert: a series and how it goes when all is well, and when not, at one value a minute for an hour.
CASES = {
    "TriremeAgentDown": (f"up{{{LABELS}}}", "1x60", "0x60"),
    "TriremeAgentAbsent": (f"up{{{LABELS}}}", "1x60", "_x60"),
    "TriremeQueueDrops": ("trireme_nfqueue_dropped_total", "7x60", "0+60x60"),
    "TriremeFailOpenTraffic": ('trireme_flows_total{reason="fail_open"}', "7x60", "0+60x60"),
    "TriremeBadTokens": ('trireme_packets_dropped_total{reason="bad_mac"}', "0+1x60", "0+60x60"),
    "TriremeIdentitiesExpire": ("trireme_assertion_not_after_timestamp_seconds", "7200x60", "3700x60"),
    "TriremeCertificateExpires": ("trireme_certificate_not_after_timestamp_seconds", "604800x60", "90000x60"),
    "TriremeRulesNotInForce": ("trireme_rule_sync_errors_total", "7x60", "0+1x60"),
    "TriremeConfigProblems": ("trireme_config_problems", "0x60", "2x60"),
    "TriremeDatapathCrashes": ("trireme_datapath_crashes_total", "7x60", "0+1x60"),
    "TriremeWatchStale": ('trireme_watch_last_event_timestamp_seconds{resource="pods"}', "3500x60", "60x60"),
    "TriremeInstallationLasts": ("trireme_installation_lasts", "0x60", "1x60"),
    "TriremePodStartsRefused": ('trireme_pod_starts_total{result="refused"}', "7x60", "0+1x60"),
}
SLOW = ("TriremeInstallationLasts",)
"""Alerts that wait for a day: a value is half an hour."""
COMPANIONS = {"TriremeQueueDrops": ("trireme_nfqueue_user_dropped_total", "0x60")}
"""Another series that an expression needs."""


def _evaluate(folder: Path, series: dict[str, str], alert: str, firing: bool) -> str:
    """Return what promtool says of a test in which ``alert`` fires at the 55th value, or does not."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": GROUPS}))
    expected = [{"labels": "{}", "value": 1}] if firing else []
    expression = f'count by () (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    minutes = 30 if alert in SLOW else 1
    test = {
        "interval": f"{minutes}m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": f"{55 * minutes}m", "exp_samples": expected}],
    }
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{minutes}m", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(document))
    said = run_promtool("test", "rules", "test.yaml", cwd=folder)
    return "" if "SUCCESS" in said else said


def test_every_alert_has_a_case() -> None:
    assert ALERTS.keys() == CASES.keys()


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    series, well, ill = CASES[alert]
    companions = dict([COMPANIONS[alert]]) if alert in COMPANIONS else {}
    assert _evaluate(tmp_path, {series: well, **companions}, alert, firing=False) == ""
    assert _evaluate(tmp_path, {series: ill, **companions}, alert, firing=True) == ""


def test_rules_are_as_promtool_wants_them(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": GROUPS}))
    assert "SUCCESS: 14 rules found" in run_promtool("check", "rules", "rules.yaml", cwd=tmp_path)


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["for"]
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (MANIFESTS.parent / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_an_overlay_takes_the_component(tmp_path: Path) -> None:
    folder = MANIFESTS / "overlays" / "psk"
    relative = Path("../" * len(tmp_path.parts[1:])) / str(folder).lstrip("/")
    component = Path("../" * len(tmp_path.parts[1:])) / str(COMPONENT).lstrip("/")
    text = f"resources: [{relative}]\ncomponents: [{component}]\nnamespace: trireme-system\n"
    (tmp_path / "kustomization.yaml").write_text(text)
    found = [item for item in yaml.safe_load_all(rendered(str(tmp_path))) if item]
    (monitor,) = of_kind(found, "ServiceMonitor")
    (service,) = of_kind(found, "Service")
    (daemon_set,) = of_kind(found, "DaemonSet")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    template = daemon_set["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (map_,) = [item for item in of_kind(found, "ConfigMap") if "agent.yaml" in item["data"]]
    metrics = yaml.safe_load(map_["data"]["agent.yaml"])["spec"]["metrics"]
    assert [str(port["targetPort"]) for port in service["spec"]["ports"]] == [metrics.rpartition(":")[2]]
    assert {item["metadata"]["namespace"] for item in (monitor, service)} == {"trireme-system"}
    dashboards = [item for item in of_kind(found, "ConfigMap") if "grafana_dashboard" in item["metadata"]["labels"]]
    assert [json.loads(item["data"]["trireme.json"])["uid"] for item in dashboards] == ["trireme"]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression of dashboard and rules, each with its place."""
    for group in GROUPS:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$node", ".*").replace("$__rate_interval", "1m")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """One that has let a connection in, and refused one."""
    with Lab("prom") as lab:
        client, server = lab.add_pod("client"), lab.add_pod("server")
        configuration = Configuration(tmp_path, str(lab.router.path))
        configuration.pod("client", client)
        configuration.pod("server", server)
        with Server(server, 80), AgentProcess(configuration) as agent:
            assert ask(client, server.ipv4, 80)
            with agent.after('msg="policy in force"', "pod=shop/server"):
                configuration.policy("nobody")
            assert refused(client, server.ipv4, 80)
            yield agent
        trireme("cleanup", "--config", str(configuration.folder))


@pytest.mark.kernel
def test_a_real_prometheus_answers_every_expression(agent: AgentProcess, tmp_path: Path) -> None:
    url = agent.wait_for("msg=metrics").partition("url=")[2].split()[0]
    target = url.removeprefix("http://").removesuffix("/metrics")
    with prometheus(tmp_path / "prometheus", target, {"node": "n1"}) as server:
        flows = server.wait_for('trireme_flows_total{direction="ingress",verdict="allow"}')
        assert [float(one["value"][1]) for one in flows] == [1.0]
        assert server.wait_for("rate(trireme_nfqueue_packets_total[1m])")
        exported = {one["metric"]["__name__"] for one in server.query('{job="trireme-agent"}')}
        for place, expression in expressions():
            result: list[dict[str, Any]] = server.query(expression)
            names = set(re.findall(r"\b(?:trireme_\w+|process_\w+|up)\b", expression)) - {"trireme_flows:rate5m"}
            assert names
            if names & CLUSTER_ONLY:
                continue
            assert names <= exported, place
            # An alert's expression has no result while all is well; without its comparison it has.
            assert result or place in ALERTS or "> 0" in expression, (place, expression)
            assert not (result and place in ALERTS), (place, result)

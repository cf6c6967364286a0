from __future__ import annotations

import re
import socket
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.durations import Durations
from agent.kubernetes.reading import REASONS, ClusterReading, WatchReading
from agent.kubernetes.resources import watched
from agent.metrics import BuildInfo, FlowCounts, MetricsServer, QueueReading, Reading, make_registry
from agent.serving import CONNECTIONS
from tests.harness.flow_events import event
from tests.harness.promtool import complaints
from trireme_py.endpoint import EXPLAINED
from trireme_py.errors import ConfigError
from trireme_py.model import Direction, DropReason, Reason

ROOT = Path(__file__).parents[2]
INFO = BuildInfo(version="1.2.3", backend="iptables-nft", datapath="python", mode="psk")


def scrape(reading: Reading) -> tuple[str, dict[str, float]]:
    server = MetricsServer("127.0.0.1", 0, make_registry(INFO, lambda: reading))
    try:
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
            text = response.read().decode()
    finally:
        server.close()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return text, samples


def test_flows_that_became_no_event_are_counted_as_they_were_let_through() -> None:
    unrecorded = {(Direction.EGRESS, Reason.POLICY): 3, (Direction.INGRESS, Reason.AUDIT): 2}
    _, samples = scrape(Reading(flows=FlowCounts().read(unrecorded)))
    flows = {name: value for name, value in samples.items() if name.startswith("trireme_flows")}
    assert flows == {
        "trireme_flows_total{direction=egress,reason=policy,verdict=allow}": 3,
        "trireme_flows_total{direction=ingress,reason=audit,verdict=audit}": 2,
    }


def test_flows_are_counted_by_direction_verdict_and_reason() -> None:
    counts = FlowCounts()
    counts.publish([event(), event(), event(allowed=True, reason=Reason.AUDIT)])
    counts.publish([event(allowed=True, reason=Reason.POLICY, direction=Direction.EGRESS)])
    _, samples = scrape(Reading(flows=counts.read({})))
    flows = {name: value for name, value in samples.items() if name.startswith("trireme_flows")}
    assert flows == {
        "trireme_flows_total{direction=ingress,reason=no_match,verdict=deny}": 2,
        "trireme_flows_total{direction=ingress,reason=audit,verdict=audit}": 1,
        "trireme_flows_total{direction=egress,reason=policy,verdict=allow}": 1,
    }


def test_a_scrape_reports_the_reading() -> None:
    reading = Reading(
        drops={DropReason.BAD_MAC: 3},
        queues=QueueReading(packets=10, kernel_dropped=1, user_dropped=2, backlog=4),
        identities_cached=5,
        half_open=6,
        established=7,
        endpoints=2,
        not_enforced=3,
        certificate_not_after=1_795_600_000.0,
        policies=8,
        policy_revision=9,
        config_problems=1,
        rule_errors=2,
        assertion_not_after=1_795_000_000.0,
        flow_log_dropped=11,
        observe_dropped=12,
        observe_slow=13,
    )
    _, samples = scrape(reading)
    expected = {
        "trireme_agent_info{backend=iptables-nft,datapath=python,mode=psk,version=1.2.3}": 1,
        "trireme_packets_dropped_total{reason=bad_mac}": 3,
        "trireme_packets_dropped_total{reason=relayed}": 0,
        "trireme_nfqueue_packets_total": 10,
        "trireme_nfqueue_dropped_total": 1,
        "trireme_nfqueue_user_dropped_total": 2,
        "trireme_nfqueue_backlog_packets": 4,
        "trireme_identities_cached": 5,
        "trireme_connections_half_open": 6,
        "trireme_connections_established": 7,
        "trireme_local_endpoints": 2,
        "trireme_pods_not_enforced": 3,
        "trireme_certificate_not_after_timestamp_seconds": 1_795_600_000.0,
        "trireme_policies": 8,
        "trireme_policy_revision": 9,
        "trireme_config_problems": 1,
        "trireme_rule_sync_errors_total": 2,
        "trireme_assertion_not_after_timestamp_seconds": 1_795_000_000.0,
        "trireme_flow_log_dropped_total": 11,
        "trireme_observe_dropped_total": 12,
        "trireme_observe_slow_subscribers_total": 13,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert {f"trireme_packets_dropped_total{{reason={reason.value}}}" for reason in DropReason} <= samples.keys()
    assert "process_resident_memory_bytes" in samples


def test_every_metric_is_documented_and_nothing_else() -> None:
    documented = set(re.findall(r"^\| `(trireme_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    counts = FlowCounts()
    counts.publish([event()])
    _, samples = scrape(Reading(flows=counts.read({}), cluster=ClusterReading({"pods": WatchReading()})))
    assert documented == {name.partition("{")[0] for name in samples if name.startswith("trireme_")}


def test_a_change_is_counted_in_every_bucket_that_it_fits_and_each_reason_is_there_from_the_start() -> None:
    durations = Durations()
    for seconds in (0.004, 0.005, 30.0):
        durations.observe(seconds)
    watch = WatchReading(events=7, last_event=1_795_000_000.0)
    watch.restarts["gone"] += 1
    cluster = ClusterReading({"pods": watch}, held=4, refused=1, unprotected={"shop/vpn": "why"})
    _, samples = scrape(Reading(policy_apply=durations, cluster=cluster))
    name = "trireme_policy_apply_duration_seconds"
    assert [samples[f"{name}_bucket{{le={bound}}}"] for bound in ("0.0025", "0.005", "10.0", "+Inf")] == [0, 2, 2, 3]
    assert samples[f"{name}_count"] == 3
    assert samples["trireme_watch_events_total{resource=pods}"] == 7
    assert samples["trireme_watch_restarts_total{reason=gone,resource=pods}"] == 1
    assert {f"trireme_watch_restarts_total{{reason={reason},resource=pods}}" for reason in REASONS} <= samples.keys()
    assert samples["trireme_watch_last_event_timestamp_seconds{resource=pods}"] == 1_795_000_000.0
    assert samples["trireme_pod_starts_total{result=held}"] == 4
    assert samples["trireme_pod_starts_total{result=refused}"] == 1
    assert samples["trireme_pods_unprotected"] == 1


def test_series_are_as_few_as_documented_and_none_ends_in_created() -> None:
    flows = 2 * (len(Reason) + len(EXPLAINED))
    always = [one.name for one in watched("node") if not one.on_demand]
    resources = [one.name for one in watched("node")]
    clusters = (None, *(ClusterReading({name: WatchReading() for name in names}) for names in (always, resources)))
    found = []
    for cluster in clusters:
        _, samples = scrape(Reading(cluster=cluster))
        found.append(len([name for name in samples if name.startswith("trireme_")]))
        assert not [name for name in samples if "_created" in name]
    page = (ROOT / "docs" / "metrics.md").read_text()
    said = re.search(r"agent has (\d+) series,\n.* cluster (\d+), or (\d+) while[^.]*, (\d+) at most", page)
    assert said is not None
    assert list(map(int, said.groups())) == [*found, flows]


def test_promtool_finds_nothing() -> None:
    counts = FlowCounts()
    counts.publish([event()])
    text, _ = scrape(Reading(flows=counts.read({}), cluster=ClusterReading({"pods": WatchReading()})))
    assert complaints(text) == ""


def test_nobody_is_asked_for_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node whose DNS does not answer, that is five seconds of an agent's start."""
    monkeypatch.setattr(socket, "getfqdn", lambda name="": pytest.fail(f"asked for the name of {name!r}"))
    MetricsServer("0.0.0.0", 0, make_registry(INFO, Reading)).close()


def test_an_address_in_use_is_named() -> None:
    first = MetricsServer("127.0.0.1", 0, make_registry(INFO, Reading))
    try:
        port = int(first.url.split(":")[2])
        with pytest.raises(ConfigError, match=r"spec\.metrics .*in use.*ss -ltnp"):
            MetricsServer("127.0.0.1", port, make_registry(INFO, Reading))
    finally:
        first.close()


def test_connections_that_say_nothing_are_few_and_end() -> None:
    server = MetricsServer("127.0.0.1", 0, make_registry(INFO, Reading))
    address = ("127.0.0.1", int(server.url.split(":")[2]))
    try:
        with ExitStack() as closing:
            silent = [closing.enter_context(socket.create_connection(address, 30)) for _ in range(CONNECTIONS)]
            with socket.create_connection(address, 30) as late:
                assert late.recv(1) == b"", "there is an end to how many"
            for connection in silent:
                assert connection.recv(1) == b"", "and to how long"
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
            assert response.status == 200
    finally:
        server.close()


def test_ipv6_works() -> None:
    server = MetricsServer("::1", 0, make_registry(INFO, Reading))
    try:
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
            assert response.status == 200
    finally:
        server.close()

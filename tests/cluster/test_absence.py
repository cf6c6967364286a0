"""Every agent is killed and kept away: rules stay, probes and established connections go on, and nothing else does."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from tests.cluster.cluster import Cluster, Node
from tests.cluster.installation import AGENTS, NAMESPACE, Installed, wait_until
from tests.cluster.load import CALLER, INTRUDER, STRAYER, Load, Window, load
from tests.cluster.runtime import AGENT, PodOnNode
from tests.cluster.tiers import TAKES_MINUTES
from tests.cluster.workload import PORT, Manifest, Place, deployment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
    TAKES_MINUTES,
]

ABSENCE_S = 300
PERIOD_S = 2
"""Kubelets ask so often, and restart a container that was not well twice in a row."""
PROBED = ("by-http", "by-tcp")
NEWCOMER = "newcomer"
COUNTED = re.compile(r"prober_probe_total\{(.*)\} (\d+)")
COMPLAINT = "no answer from the trireme agent of this node"

Probes = Counter[tuple[str, str, str]]
"""How many there were: by pod, probe and result."""


@dataclass(frozen=True)
class Absence:
    """What happened between the agents' death and the moment before they came back; and then."""

    windows: Mapping[str, Window]
    """By who calls."""
    lines: Mapping[str, tuple[int, int]]
    """How many each lasting connection had carried at the beginning and at the end, by caller and target."""
    probes: Probes
    restarts: Mapping[str, int]
    """Since the pods' start, by pod."""
    newcomers: Mapping[str, str]
    """How far each pod had come that was made meanwhile: its phase."""
    complaints: Mapping[str, str]
    """The events of those."""
    afterwards: Mapping[str, Window] = field(default_factory=dict)


def probed(name: str) -> Manifest:
    """A server under default-deny that its kubelet restarts as soon as it does not reach it twice."""
    ask: Manifest = (
        {"httpGet": {"path": "/hostname", "port": PORT}} if name == "by-http" else {"tcpSocket": {"port": PORT}}
    )
    # Two that fail are one too many. The patience is that of a busy machine: what is dropped fails all the same.
    ask |= {"periodSeconds": PERIOD_S, "failureThreshold": 2, "timeoutSeconds": 30}
    arguments = ["netexec", f"--http-port={PORT}", "--udp-port=-1"]
    return deployment(
        name, args=arguments, readinessProbe=ask, livenessProbe=ask, startupProbe={**ask, "failureThreshold": 20}
    )


def probes(node: Node, where: Place) -> Probes:
    """Return how often the node's kubelet has asked the pods of a namespace, and what they answered."""
    found: Probes = Counter()
    metrics = where.cluster.kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/metrics/probes")
    for text, count in COUNTED.findall(metrics):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
        if labels["namespace"] == where.name:
            found[labels["pod"], labels["probe_type"], labels["result"]] = int(count)
    return found


def restarts(where: Place) -> dict[str, int]:
    found = json.loads(where.kubectl("get", "pods", "-o", "json"))["items"]
    return {
        pod["metadata"]["name"]: sum(one["restartCount"] for one in pod["status"].get("containerStatuses", ()))
        for pod in found
    }


def lines(everybody: Load) -> dict[str, int]:
    reports = everybody.mark(CALLER).reports
    return {f"{name} {target}": calls.lines for name, each in reports.items() for target, calls in each.calls.items()}


@contextmanager
def kept_away(installed: Installed) -> Iterator[None]:
    """Kill every agent, none of which can do anything about it before, and let none come until the end.

    They are stopped first: else they would end in peace when they are told to, as for an update.
    """
    agents = [PodOnNode(node, NAMESPACE, installed.agents()[node.name]) for node in installed.cluster.nodes]
    for agent in agents:
        agent.signal("SIGSTOP", AGENT)
    nowhere = [{"op": "add", "path": "/spec/template/spec/nodeSelector/no", "value": "such-node"}]
    installed.kubectl("patch", "daemonset/trireme-agent", "--type=json", "-p", json.dumps(nowhere))
    wait_until(
        lambda: all("deletionTimestamp" in text for text in _metadata(installed)), "no kubelet restarts an agent"
    )
    for agent in agents:
        agent.signal("SIGKILL", AGENT)
    wait_until(lambda: not installed.agents(), "no agent is there")
    try:
        yield
    finally:
        back = [{"op": "remove", "path": "/spec/template/spec/nodeSelector/no"}]
        installed.kubectl("patch", "daemonset/trireme-agent", "--type=json", "-p", json.dumps(back))
        wait_until(lambda: len(installed.agents()) == len(installed.cluster.nodes), "each node gets an agent")
        installed.wait()


def _metadata(installed: Installed) -> list[str]:
    return installed.kubectl(
        "get", "pods", "-l", AGENTS, "-o", "jsonpath={range .items[*]}{.metadata}{'\\n'}{end}"
    ).splitlines()


def _complaints(where: Place) -> dict[str, str]:
    """Return the last event about a newcomer's failed start, by pod."""
    found = json.loads(where.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "json"))
    events = {one["involvedObject"]["name"]: one["message"] for one in found["items"]}
    return {name: message for name, message in events.items() if name.startswith(NEWCOMER)}


def _phases(where: Place) -> dict[str, str]:
    found = json.loads(where.kubectl("get", "pods", "-l", f"app={NEWCOMER}", "-o", "json"))["items"]
    return {pod["metadata"]["name"]: pod["status"]["phase"] for pod in found}


@pytest.fixture(scope="module")
def absence(cluster: Cluster, installed: Installed) -> Iterator[Absence]:
    for node in cluster.nodes:
        wait_until(lambda node=node: installed.status(node).installation == "finished", "all nodes have an agent")  # type: ignore[misc]
    with load(cluster) as everybody:
        where = everybody.place
        where.apply(*(probed(name) for name in PROBED))
        where.wait(*PROBED)
        with kept_away(installed):
            marks = {who: everybody.mark(who) for who in (CALLER, INTRUDER, STRAYER)}
            carried = lines(everybody)
            asked = [probes(node, where) for node in cluster.nodes]
            where.apply(deployment(NEWCOMER))

            def since() -> Probes:
                return sum(
                    (probes(node, where) - before for node, before in zip(cluster.nodes, asked, strict=True)), Probes()
                )

            def asked_long_enough() -> bool:
                names = [pod.name for app in PROBED for pod in where.pods(app)]
                now = since()
                return all(
                    sum(now[name, kind, result] for result in ("successful", "failed")) >= ABSENCE_S / PERIOD_S
                    for name in names
                    for kind in ("Liveness", "Readiness")
                )

            wait_until(asked_long_enough, f"kubelets have asked for {ABSENCE_S} s", ABSENCE_S * 2 + 60)
            wait_until(lambda: len(_complaints(where)) == 2, "each newcomer's kubelet says why it waits")
            seen = Absence(
                probes=since(),
                lines={name: (carried[name], count) for name, count in lines(everybody).items()},
                restarts=restarts(where),
                newcomers=_phases(where),
                complaints=_complaints(where),
                windows={who: everybody.since(mark) for who, mark in marks.items()},
            )
        where.wait(NEWCOMER)
        everybody.settle(everybody.mark(CALLER))  # some of those that began before have waited in vain
        marks = {who: everybody.mark(who) for who in marks}
        yield replace(seen, afterwards={who: everybody.since(mark) for who, mark in marks.items()})


def test_no_probe_fails_and_no_container_is_restarted(absence: Absence) -> None:
    print(f"\n{sum(absence.probes.values())} probes while no agent was there")
    assert {key: count for key, count in absence.probes.items() if key[2] != "successful" and count} == {}
    assert {name: count for name, count in absence.restarts.items() if count} == {}


def test_no_forbidden_connection_is_made(absence: Absence) -> None:
    for who in (INTRUDER, STRAYER):
        window = absence.windows[who]
        print(f"\n{who}s: {window}")
        assert min(window.failed.values()) > 0
        assert {target: count for target, count in window.connected.items() if count} == {}


def test_established_connections_go_on(absence: Absence) -> None:
    window = absence.windows[CALLER]
    print(f"\ncallers: {window}")
    assert set(window.lasting.values()) == {2}
    for name, (before, after) in absence.lines.items():
        assert after > before, name


def test_new_pods_wait_and_their_kubelet_says_for_whom(absence: Absence) -> None:
    assert set(absence.newcomers.values()) == {"Pending"}
    assert set(absence.complaints) == set(absence.newcomers)
    for message in absence.complaints.values():
        assert COMPLAINT in message


def test_all_is_well_when_agents_are_back(absence: Absence) -> None:
    """That new pods started then is what the fixture has waited for."""
    callers = absence.afterwards[CALLER]
    print(f"\nafterwards: {callers}")
    assert {target: count for target, count in callers.failed.items() if count} == {}, callers.failures
    assert min(callers.made.values()) > 0
    assert set(callers.lasting.values()) == {2}
    for who in (INTRUDER, STRAYER):
        assert {target: count for target, count in absence.afterwards[who].connected.items() if count} == {}

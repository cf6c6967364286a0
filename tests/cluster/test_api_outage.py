"""The API server goes away: agents and pods go on under what was known last. It comes back, and is obeyed at once.

Pods start meanwhile as they can: no kubelet is told of a new one, but those whose sandbox has died are made anew, with
another network namespace and other addresses; the CNI plugin asks for them as for any pod.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import pytest

from tests.cluster.cluster import Cluster, Node
from tests.cluster.installation import NAMESPACE, Installed, wait_until
from tests.cluster.load import CALLER, INTRUDER, PATIENCE_S, SERVER, STRAYER, Load, Window, load, pod
from tests.cluster.runtime import SANDBOX, PodOnNode
from tests.cluster.tiers import TAKES_MINUTES
from tests.cluster.traffic import Plan, Report
from tests.cluster.workload import PORT, policy

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
    TAKES_MINUTES,
]

CALLS = 60
"""So many calls to each target while the API server is away, four in a second."""
LATE = "late"
"""Pods that are made anew while the API server is away have names that begin so, and this server is called so."""
REFUSED_S = 4
"""How long a connection is tried that must not come about: three SYNs."""
CONVERGED_S = 5.0
QUIET_S = 30.0
"""Requests are counted for so long after the return."""
REQUESTS = 40
"""Of one agent in that time, for all of its collections; each is listed and watched again, once if all goes well."""
PORTS = [{"protocol": "TCP", "port": PORT}]
LATE_POLICIES = (
    policy("late-callers", {"app": CALLER}, egress=[{"to": [{"podSelector": {"matchLabels": {"app": LATE}}}]}]),
    policy(
        "late-servers",
        {"app": LATE},
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": CALLER}}}], "ports": PORTS}],
    ),
)
NOBODY_ANY_MORE = policy("late-servers", {"app": LATE}, ingress=[])

CALL_ON = """\
import socket, sys, time
while True:
    began = time.monotonic()
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.25).close()
        print("made", began, flush=True)
    except OSError as error:
        print("not", began, flush=True)
    time.sleep(0.02)
"""
"""One connection after the other, each with the moment at which it was begun."""
IN_VAIN = 20
"""Refused calls in a row after which a policy is taken to be in force."""


@dataclass(frozen=True)
class Outage:
    """What was seen while the API server was away, and when it came back."""

    windows: Mapping[str, Window]
    """Of those who call all the time, from before its end until after its return; by who they are."""
    moved: Mapping[str, tuple[list[str], list[str]]]
    """Addresses of the late pods before and after, by pod."""
    remade: Mapping[str, Report]
    """What the callers and intruders among them did after they were made anew, by pod."""
    reached: Mapping[str, bool]
    """Whether one who calls reached a late server after that: ``caller-trm-node1 late-trm-node2 10.244.12.7``."""
    applied_s: float
    """From the API server's being ready to its having taken a policy, the first thing that it was asked."""
    converged_s: float
    """From the API server's being ready to the last connection that this policy forbids."""
    requests: Mapping[str, Counter[str]]
    """What each agent asked for since the return, by node."""


def on(node: Node, everybody: Load, name: str) -> PodOnNode:
    return PodOnNode(node, everybody.place.name, name)


def report(one: PodOnNode, run: int = 0) -> Report | None:
    """Return what a caller said last in its ``run``-th run; None if it has not said anything."""
    said = one.log(run)
    return msgspec.json.decode(said[-1], type=Report) if said else None


def wait_for_calls(one: PodOnNode, more: int, run: int = 0) -> Report:
    """Return what a caller said when ``more`` calls to each target have ended that are begun after this moment."""
    wait_until(lambda: report(one, run), f"{one.name} reports")
    before = report(one, run)
    assert before is not None

    def ended() -> bool:
        now = report(one, run)
        assert now is not None
        return all(now.calls[to].settled >= calls.started + more for to, calls in before.calls.items())

    wait_until(ended, f"{more} more calls of {one.name} have ended")
    after = report(one, run)
    assert after is not None
    return after


def requests_since(cluster: Cluster, offset: int) -> dict[str, Counter[str]]:
    """Count what agents asked the API server for, by node and ``verb resource``, from an offset of the audit log."""
    found: dict[str, Counter[str]] = {node.name: Counter() for node in cluster.nodes}
    addresses = {str(address): node.name for node in cluster.nodes for address in node.addresses}
    seen = set()
    with cluster.audit_log.open(encoding="utf-8") as log:
        log.seek(offset)
        for line in log:
            event = json.loads(line)
            if not event["user"].get("username", "").startswith(f"system:serviceaccount:{NAMESPACE}:"):
                continue
            if event["auditID"] not in seen:  # a watch is there twice: when it begins, and when it ends
                seen.add(event["auditID"])
                what = event.get("objectRef", {}).get("resource", event["requestURI"])
                found[addresses[event["sourceIPs"][0]]][f"{event['verb']} {what}"] += 1
    return found


@contextmanager
def calling_on(caller: PodOnNode, address: str) -> Iterator[Iterator[tuple[bool, float]]]:
    """Call an address again and again from inside a pod; give whether each call was made, and when it was begun."""
    command = caller.node.command(*caller.inside("python3", "-c", CALL_ON, address, str(PORT)))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield ((line.split()[0] == "made", float(line.split()[1])) for line in process.stdout)
        finally:
            process.kill()


def last_made(calls: Iterator[tuple[bool, float]], deadline: float) -> float:
    """Return when the last call was begun that was made, once :data:`IN_VAIN` calls in a row were not."""
    last, in_vain = 0.0, 0
    for made, began in calls:
        last, in_vain = (began, 0) if made else (last, in_vain + 1)
        if in_vain == IN_VAIN:
            return last
        assert began < deadline, "the policy is not in force"
    raise AssertionError("the caller has ended")


def start_late_pods(everybody: Load) -> list[PodOnNode]:
    """Start a caller, an intruder and a server on each node, to be killed; return them when all are at work."""
    where = everybody.place
    servers = {f"{one.name}-{address}": (address, PORT) for one in where.pods(SERVER) for address in one.addresses}
    plans = {CALLER: Plan(servers, 0.25, PATIENCE_S), INTRUDER: Plan(servers, 1.0, 5.0)}
    where.apply(*LATE_POLICIES)
    late = []
    for node in everybody.nodes:
        manifests = [pod(f"{LATE}-{node.name}", LATE, node, ["serve", str(PORT)])]
        manifests += [pod(f"{LATE}-{who}-{node.name}", who, node, ["call"], plan) for who, plan in plans.items()]
        where.apply(*manifests)
        late += [PodOnNode(node, where.name, manifest["metadata"]["name"]) for manifest in manifests]
    where.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=280s")
    for one in late:
        if not is_server(one):
            wait_for_calls(one, 2)
    only_callers_reach(who_reaches_late(everybody, late))
    return late


def is_server(one: PodOnNode) -> bool:
    return one.name == f"{LATE}-{one.node.name}"


def who_reaches_late(everybody: Load, late: list[PodOnNode]) -> dict[str, bool]:
    """Let a caller and an intruder of each node go to each late server, at all addresses that it has now."""
    ways = [
        (PodOnNode(node, everybody.place.name, f"{who}-{node.name}"), server, address)
        for server in late
        if is_server(server)
        for address in server.addresses()
        for node in everybody.nodes
        for who in (CALLER, INTRUDER)
    ]
    with ThreadPoolExecutor(len(ways)) as pool:
        reached = list(pool.map(lambda way: way[0].reaches(way[2], PORT, REFUSED_S), ways))
    return {f"{one.name} {to.name} {address}": made for (one, to, address), made in zip(ways, reached, strict=True)}


def only_callers_reach(reached: Mapping[str, bool]) -> None:
    assert len(reached) == 16  # two servers with two addresses each, two who call on two nodes
    assert reached == {way: way.startswith(CALLER) for way in reached}


@pytest.fixture(scope="module")
def outage(cluster: Cluster, installed: Installed) -> Iterator[Outage]:
    first, second = cluster.nodes
    for node in cluster.nodes:
        wait_until(lambda node=node: installed.status(node).installation == "finished", "all nodes have an agent")  # type: ignore[misc]
    with load(cluster) as everybody:
        late = start_late_pods(everybody)
        before = {one.name: one.addresses() for one in late}
        marks = {who: everybody.mark(who) for who in (CALLER, INTRUDER, STRAYER)}
        cluster.stop_apiserver()
        try:
            for one in late:
                one.signal("SIGKILL", SANDBOX)
            for one in late:
                wait_until(lambda one=one: is_remade(one, before[one.name]), f"{one.name} is made anew")  # type: ignore[misc]
            moved = {one.name: (before[one.name], one.addresses()) for one in late}
            remade = {one.name: wait_for_calls(one, 5, run=1) for one in late if not is_server(one)}
            reached = who_reaches_late(everybody, late)
            wait_for_calls(PodOnNode(first, everybody.place.name, f"{CALLER}-{first.name}"), CALLS)
        finally:
            offset = cluster.audit_log.stat().st_size
            cluster.start_apiserver()
            answered = time.monotonic()
        caller = PodOnNode(first, everybody.place.name, f"{CALLER}-{first.name}")
        server = PodOnNode(second, everybody.place.name, f"{LATE}-{second.name}")
        with calling_on(caller, server.addresses()[0]) as calls:
            everybody.place.apply(NOBODY_ANY_MORE)
            applied = time.monotonic()
            converged = last_made(calls, applied + 60)
        cluster.wait_ready(120)
        wait_until(lambda: time.monotonic() > answered + QUIET_S, "time to count requests", QUIET_S + 1)
        requests = requests_since(cluster, offset)
        windows = {who: everybody.since(mark) for who, mark in marks.items()}
        yield Outage(windows, moved, remade, reached, applied - answered, converged - answered, requests)


def is_remade(one: PodOnNode, before: list[str]) -> bool:
    return one.task() is not None and one.task(SANDBOX) is not None and one.addresses() != before


def test_enforcement_goes_on(outage: Outage) -> None:
    callers = outage.windows[CALLER]
    print(f"\ncallers: {callers}")
    assert {target: count for target, count in callers.failed.items() if count} == {}, callers.failures
    assert min(callers.made.values()) >= CALLS
    assert set(callers.lasting.values()) == {2}
    for who in (INTRUDER, STRAYER):
        assert min(outage.windows[who].failed.values()) > 0
        assert {target: count for target, count in outage.windows[who].connected.items() if count} == {}


def test_pods_start_under_the_last_known_policies(outage: Outage) -> None:
    for name, (before, after) in outage.moved.items():
        assert set(before).isdisjoint(after), name
    for name, report in outage.remade.items():
        if name.startswith(f"{LATE}-{CALLER}"):
            assert report.failures == []
            assert min(calls.made for calls in report.calls.values()) > 0
        else:
            assert min(calls.failed for calls in report.calls.values()) > 0
            assert max(calls.connected for calls in report.calls.values()) == 0
    only_callers_reach(outage.reached)


def test_a_policy_is_in_force_as_soon_as_the_api_server_is_back(outage: Outage) -> None:
    print(
        f"\napplied {outage.applied_s:.2f} s after the API server was ready, in force after {outage.converged_s:.2f} s"
    )
    assert 0 < outage.converged_s < CONVERGED_S


def test_agents_do_not_fall_over_the_api_server_when_it_is_back(outage: Outage) -> None:
    for node, requests in outage.requests.items():
        print(f"\n{node}: {requests.total()} requests in {QUIET_S:g} s: {dict(requests)}")
        assert requests["watch pods"]
        assert requests["watch networkpolicies"]
        # What is not installed is looked for now and then, and believed to be missing when two answers in a row say so.
        lists = {what: count for what, count in requests.items() if what.startswith("list ")}
        assert lists.pop("list clusternetworkpolicies", 0) <= 4
        assert max(lists.values()) <= 2
        assert requests.total() <= REQUESTS

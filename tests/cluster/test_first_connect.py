"""What the agent costs a pod that starts and connects at once, where it may: the same pods without and with it.

Two things are added: the hold of the CNI plugin, and the exchange of identities in the first connection. Pods start one
after the other: what many at once wait for is the processor.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.cluster import Cluster, Node
from tests.cluster.installation import Installed, wait_until
from tests.cluster.load import agent_image
from tests.cluster.runtime import PodOnNode
from tests.cluster.tiers import TAKES_MINUTES
from tests.cluster.workload import PORT, Place, deployment, place, policy

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
    TAKES_MINUTES,
]

STARTS = 15
"""On each node."""
DELAY_S = 0.25
SERVER = "server"

CONNECT = """\
import socket, sys, time
began = time.monotonic()
socket.create_connection((sys.argv[1], int(sys.argv[2])), 30).close()
print(time.monotonic() - began)
"""
SANDBOXES = re.compile(r"^kubelet_run_podsandbox_duration_seconds_(sum|count)\{.*\} (\S+)$", re.MULTILINE)
HELD = r'msg="pod held from its start" pod={place}/with-\S+ container=\S+ ms=([\d.]+)'
"""How an agent says how long it has held a pod."""


def run(where: Place, name: str, node: Node, address: str) -> list[float]:
    """Start pods on a node, whose first act is a connect; return how many seconds each took."""
    container = {
        "name": "main",
        "image": agent_image(),
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", CONNECT, address, str(PORT)],
    }
    spec = {
        "nodeName": node.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [container],
    }
    work = {"completions": STARTS, "parallelism": 1, "backoffLimit": 0, "template": {"spec": spec}}
    where.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": work})

    def ended() -> bool:
        status = json.loads(where.kubectl("get", f"job/{name}", "-o", "json"))["status"]
        return any(each["type"] in ("Complete", "Failed") for each in status.get("conditions", ()))

    wait_until(ended, f"job {name} has ended", 300)
    where.kubectl("wait", "--for=condition=complete", f"job/{name}", "--timeout=1s")
    said = where.kubectl("logs", "-l", f"batch.kubernetes.io/job-name={name}", "--tail=-1", "--max-log-requests=50")
    return [float(line) for line in said.split()]


def servers(where: Place) -> dict[str, PodOnNode]:
    """The servers, by node."""
    nodes = {node.name: node for node in where.cluster.nodes}
    return {pod.node: PodOnNode(nodes[pod.node], where.name, pod.name) for pod in where.pods(SERVER)}


@dataclass(frozen=True)
class Costs:
    """Of pods that started one after the other; in seconds."""

    sandbox_s: float
    """The mean time in which the runtime made a sandbox, all CNI plugins included, as kubelets measure it."""
    connect_s: list[float]
    """How long each pod's first connection took, which goes to the other node."""

    def __str__(self) -> str:
        connect_ms = sorted(1000 * each for each in self.connect_s)
        return (
            f"{len(connect_ms)} starts: sandbox {1000 * self.sandbox_s:.0f} ms (mean), "
            f"first connect {statistics.median(connect_ms):.2f} ms (median), {connect_ms[-1]:.2f} ms (slowest)"
        )


def sandboxes(node: Node, cluster: Cluster) -> tuple[float, float]:
    """Return how long a node's kubelet has waited for sandboxes, in seconds, and for how many."""
    metrics = cluster.kubectl("get", "--raw", f"/api/v1/nodes/{node.name}/proxy/metrics")
    found = {what: float(number) for what, number in SANDBOXES.findall(metrics)}
    return found["sum"], found["count"]


def costs(where: Place, name: str) -> Costs:
    cluster, waited_s, made, connect_s = where.cluster, 0.0, 0.0, list[float]()
    for node, other in zip(cluster.nodes, reversed(cluster.nodes), strict=True):
        before = sandboxes(node, cluster)
        connect_s += run(where, f"{name}-{node.name}", node, servers(where)[other.name].addresses()[0])
        after = sandboxes(node, cluster)
        waited_s, made = waited_s + after[0] - before[0], made + after[1] - before[1]
    return Costs(waited_s / made, connect_s)


@pytest.fixture(scope="module")
def where(cluster: Cluster, image: object) -> Iterator[Place]:
    with place(cluster, "first") as where:
        entry = {"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}]}
        where.apply(policy("servers", {"app": SERVER}, ingress=[entry]))
        where.apply(deployment(SERVER, args=["netexec", f"--http-port={PORT}", "--udp-port=-1"]))
        where.wait(SERVER)
        here, there = servers(where).values()
        for one, other in ((here, there), (there, here)):
            wait_until(lambda one=one, other=other: one.reaches(other.addresses()[0], PORT, 1), "each server listens")  # type: ignore[misc]
        yield where


@pytest.fixture(scope="module")
def without(where: Place) -> Costs:
    """What starts cost before there is an agent."""
    return costs(where, "without")


def test_a_permitted_first_connect_is_hardly_delayed(where: Place, without: Costs, installed: Installed) -> None:
    for node in where.cluster.nodes:
        wait_until(lambda node=node: installed.status(node).installation == "finished", "all nodes have an agent")  # type: ignore[misc]
    with_agent = costs(where, "with")
    said = "".join(installed.kubectl("logs", agent) for agent in installed.agents().values())
    held_s = sorted(float(number) / 1000 for number in re.findall(HELD.format(place=where.name), said))
    added_s = statistics.median(with_agent.connect_s) - statistics.median(without.connect_s)
    print(f"\nwithout: {without}\nwith:    {with_agent}")
    print(f"held for {1000 * statistics.median(held_s):.0f} ms (median), {1000 * held_s[-1]:.0f} ms (longest)")
    assert len(held_s) == len(with_agent.connect_s) == len(without.connect_s) == 2 * STARTS
    assert statistics.median(held_s) + added_s < DELAY_S

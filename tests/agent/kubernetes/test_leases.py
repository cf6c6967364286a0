"""Announcements and the end of the installation, told by several agents with one API server and one clock."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from agent.kubernetes.calls import ApiRefused, micro_time, shortened
from agent.kubernetes.leases import INSTALLATION_LEASE, Announcer, Installation, finish, leases_of
from tests.harness.api_objects import Objects
from trireme_py.errors import ConfigError

NAMESPACE = "trireme-system"
LEASES = leases_of(NAMESPACE)
MARKER = f"{LEASES}/{INSTALLATION_LEASE}"


class Cluster:
    """Nodes, and the agents on some of them."""

    def __init__(self, folder: Path, *nodes: str) -> None:
        self.folder = folder
        self.now_s = 1_800_000_000.0
        self.api = Objects()
        self.finished: list[str] = []
        for node in nodes:
            self.add(node)

    def clock(self) -> float:
        return self.now_s

    def add(self, node: str, *, ready: str = "True", system: str = "linux") -> None:
        metadata = {"name": node, "uid": f"uid-{node}", "labels": {"kubernetes.io/os": system}}
        status = {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]}
        self.api.objects[f"/api/v1/nodes/{node}"] = {"metadata": metadata, "status": status}

    def announce(self, *nodes: str) -> None:
        for node in nodes:
            Announcer(self.api, node, NAMESPACE, self.clock, lambda: 0.5).step()

    def agent(self, node: str) -> Installation:
        directory = self.folder / node
        directory.mkdir(exist_ok=True)
        installation = Installation(self.api, node, NAMESPACE, directory, clock=self.clock, draw=lambda: 0.5)
        installation.on_finished = lambda: self.finished.append(node)
        return installation

    def begun(self, node: str) -> Installation:
        installation = self.agent(node)
        installation.begin(threading.Event())
        return installation

    def lease(self, node: str) -> Any:
        return self.api.objects[f"{LEASES}/trireme-agent-{node}"]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, "worker-1", "worker-2", "worker-3")


# -- Announcing -------------------------------------------------------------------------------------------------------


def test_an_announcement_is_a_lease_that_goes_with_its_node(cluster: Cluster) -> None:
    cluster.announce("worker-1")
    lease = cluster.lease("worker-1")
    assert lease["spec"]["holderIdentity"] == "worker-1"
    assert lease["spec"]["renewTime"] == micro_time(cluster.now_s)
    assert [(owner["kind"], owner["uid"]) for owner in lease["metadata"]["ownerReferences"]] == [
        ("Node", "uid-worker-1")
    ]


def test_an_announcement_is_renewed_with_one_call(cluster: Cluster) -> None:
    announcer = Announcer(cluster.api, "worker-1", NAMESPACE, cluster.clock, lambda: 0.5)
    assert announcer.step() == pytest.approx(60)
    cluster.now_s += 60
    before = len(cluster.api.calls)
    announcer.step()
    assert cluster.api.calls[before:] == [("PATCH", f"{LEASES}/trireme-agent-worker-1")]
    assert cluster.lease("worker-1")["spec"]["renewTime"] == micro_time(cluster.now_s)
    assert cluster.lease("worker-1")["spec"]["acquireTime"] == micro_time(cluster.now_s - 60)


@pytest.mark.parametrize("draw", [0.0, 0.999])
def test_announcements_are_spread(cluster: Cluster, draw: float) -> None:
    assert 54 <= Announcer(cluster.api, "worker-1", NAMESPACE, cluster.clock, lambda: draw).step() <= 66


def test_an_api_server_that_is_away_is_asked_more_and_more_seldom(cluster: Cluster) -> None:
    announcer = Announcer(cluster.api, "worker-1", NAMESPACE, cluster.clock, lambda: 0.5)
    cluster.api.down = True
    waits = [announcer.step() for _ in range(6)]
    assert waits == sorted(waits)
    assert 30 <= waits[-1] <= 60
    cluster.api.down = False
    announcer.step()
    assert cluster.lease("worker-1")


def test_a_lease_that_somebody_deleted_is_made_again(cluster: Cluster) -> None:
    cluster.announce("worker-1")
    del cluster.api.objects[f"{LEASES}/trireme-agent-worker-1"]
    cluster.announce("worker-1")
    assert cluster.lease("worker-1")


def test_the_longest_name_of_a_node_gives_a_lease_s(cluster: Cluster) -> None:
    node = "n" * 253
    cluster.add(node)
    cluster.announce(node)
    (name,) = (path.rpartition("/")[2] for path in cluster.api.objects if path.startswith(LEASES))
    assert len(name) <= 253
    assert shortened(node, 100) != shortened(node[:-1] + "m", 100)


# -- The installation -------------------------------------------------------------------------------------------------


def test_the_installation_ends_with_the_last_node_s_announcement(cluster: Cluster) -> None:
    one = cluster.begun("worker-1")
    assert one.lasts
    cluster.announce("worker-1", "worker-2")
    assert one.step() is not None
    assert one.lasts
    assert one.missing == "1: worker-3"
    cluster.announce("worker-3")
    assert one.step() is None
    assert not one.lasts
    assert one.missing == ""
    assert cluster.finished == ["worker-1"]


def test_all_agents_hear_of_the_end_and_only_one_compares(cluster: Cluster) -> None:
    agents = [cluster.begun(node) for node in ("worker-1", "worker-2", "worker-3")]
    cluster.announce("worker-1", "worker-2", "worker-3")
    before = len(cluster.api.calls)
    for agent in agents:
        agent.step()
    assert [agent.lasts for agent in agents] == [False, False, False]
    assert sorted(cluster.finished) == ["worker-1", "worker-2", "worker-3"]
    listed = [path for _, path in cluster.api.calls[before:] if path in ("/api/v1/nodes", LEASES)]
    assert listed == [LEASES, LEASES, "/api/v1/nodes", "/api/v1/nodes"]  # two pages of three each, once


def test_the_others_know_who_is_missing(cluster: Cluster) -> None:
    one, two = cluster.begun("worker-1"), cluster.begun("worker-2")
    cluster.announce("worker-1")
    one.step()
    two.step()
    assert two.missing == one.missing == "2: worker-2, worker-3"


@pytest.mark.parametrize(
    ("ready", "system", "lasts"),
    [("True", "linux", True), ("False", "linux", False), ("Unknown", "linux", False), ("True", "windows", False)],
)
def test_which_nodes_are_waited_for(cluster: Cluster, ready: str, system: str, lasts: bool) -> None:
    cluster.add("worker-4", ready=ready, system=system)
    one = cluster.begun("worker-1")
    cluster.announce("worker-1", "worker-2", "worker-3")
    one.step()
    assert one.lasts is lasts


def test_many_nodes_without_an_agent_are_not_asked_one_by_one(cluster: Cluster) -> None:
    for number in range(100):
        cluster.add(f"more-{number:03}")
    one = cluster.begun("worker-1")
    cluster.announce("worker-1")
    before = len(cluster.api.calls)
    one.step()
    assert one.missing.startswith("102: more-000, more-001, ")
    assert one.missing.endswith(" and 92 more")
    assert not [path for _, path in cluster.api.calls[before:] if path.startswith("/api/v1/nodes/")]


def test_an_announcement_that_ran_out_counts_no_more(cluster: Cluster) -> None:
    one = cluster.begun("worker-1")
    cluster.announce("worker-2", "worker-3")
    cluster.now_s += 181
    cluster.announce("worker-1")
    one.step()
    assert one.missing == "2: worker-2, worker-3"


def test_somebody_else_takes_over_from_a_holder_that_is_gone(cluster: Cluster) -> None:
    cluster.begun("worker-1")
    two = cluster.begun("worker-2")
    cluster.announce("worker-1", "worker-2", "worker-3")
    cluster.now_s += 30
    two.step()
    assert two.lasts
    cluster.now_s += 31
    two.step()
    assert not two.lasts


def test_two_that_take_over_at_once_do_not_undo_each_other(cluster: Cluster) -> None:
    """The slower one read the Lease before the faster one ended it."""
    cluster.begun("worker-1")
    slow, fast = cluster.begun("worker-2"), cluster.begun("worker-3")
    cluster.announce("worker-1", "worker-2")
    cluster.now_s += 61
    cluster.announce("worker-1", "worker-2")
    asked = cluster.api.request
    meanwhile = [fast]

    def interleaved(method: str, *arguments: Any, **more: Any) -> tuple[int, bytes]:
        if method == "PATCH" and arguments[0] == MARKER and meanwhile:
            agent = meanwhile.pop()
            cluster.announce("worker-3")
            agent.step()
        return asked(method, *arguments, **more)

    cluster.api.request = interleaved  # type: ignore[method-assign]
    slow.step()
    assert not fast.lasts
    assert slow.lasts
    slow.step()
    assert not slow.lasts


# -- Once over, over --------------------------------------------------------------------------------------------------


def over(cluster: Cluster) -> None:
    one = cluster.begun("worker-1")
    cluster.announce("worker-1", "worker-2", "worker-3")
    one.step()
    assert not one.lasts


def test_it_does_not_begin_again_for_new_nodes_or_silent_ones(cluster: Cluster) -> None:
    over(cluster)
    cluster.add("worker-4")
    cluster.now_s += 1000
    assert not cluster.begun("worker-4").lasts
    assert not cluster.begun("worker-1").lasts


def test_an_agent_that_knows_asks_nobody(cluster: Cluster) -> None:
    over(cluster)
    cluster.api.down = True
    again = cluster.begun("worker-1")
    assert not again.lasts
    assert again.step() is None


def test_a_restart_without_an_api_server_goes_on_as_before(cluster: Cluster) -> None:
    assert cluster.begun("worker-1").lasts
    cluster.api.down = True
    assert cluster.begun("worker-1").lasts


def test_where_nobody_knows_it_does_not_last(cluster: Cluster) -> None:
    cluster.api.down = True
    stop = threading.Event()
    stop.set()
    installation = cluster.agent("worker-1")
    installation.begin(stop)
    assert not installation.lasts
    cluster.api.down = False
    installation.begin(stop)
    assert installation.lasts


def test_it_is_ended_by_a_command(cluster: Cluster) -> None:
    one = cluster.begun("worker-1")
    assert finish(cluster.api, NAMESPACE)
    assert one.step() is None
    assert not one.lasts
    assert cluster.finished == ["worker-1"]
    assert not finish(cluster.api, NAMESPACE)


def test_the_command_where_no_agent_runs(cluster: Cluster) -> None:
    with pytest.raises(
        ConfigError, match=r"no lease trireme-installation in namespace other.*kubectl get daemonsets -A"
    ):
        finish(cluster.api, "other")


def test_the_command_without_the_right_to(cluster: Cluster) -> None:
    cluster.begun("worker-1")
    cluster.api.denied = frozenset({"PATCH"})
    with pytest.raises(ApiRefused, match="403"):
        finish(cluster.api, NAMESPACE)

"""The reconciler fed by the API server: watches, files and engine are real, the kernel is a recorder."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.files import load_folder
from tests.harness.api_stand_in import ApiStandIn, status
from tests.harness.cluster_rig import ClusterRig
from trireme_py.model import Direction

RESOURCES = ("namespaces", "networkpolicies", "pods", "clusternetworkpolicies")


@pytest.fixture
def server() -> Iterator[ApiStandIn]:
    with ApiStandIn(*RESOURCES) as server:
        server.put("namespaces", "shop", metadata={"labels": {"team": "a"}})
        yield server


@pytest.fixture
def rig(tmp_path: Path, server: ApiStandIn) -> Iterator[ClusterRig]:
    rig = ClusterRig(tmp_path, server)
    yield rig
    rig.end()
    rig.runtime.release()


def isolated(rig: ClusterRig, endpoint: int) -> bool:
    return rig.kernel.policies[endpoint].isolated(Direction.INGRESS)


def test_pods_are_held_where_the_runtime_has_them_under_the_policies_of_the_api(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.policy("deny", "a")
    rig.start()
    assert rig.kernel.take() == [("attach", "shop/a", "cni-uid-a", 1)]
    assert isolated(rig, 1)
    assert rig.reconciler.summary() == {"pods": 1, "not_enforced": 0, "problems": 0}
    assert rig.reconciler.policies == 1


def test_a_policy_that_comes_changes_and_goes_touches_the_pods_it_selects(rig: ClusterRig) -> None:
    for name in ("a", "b"):
        rig.places.make(f"uid-{name}")
        rig.pod(name)
    rig.start()
    assert len(rig.kernel.take()) == 2
    endpoint = rig.reconciler.bound["shop/b"]
    rig.policy("deny", "b")
    rig.until_steps(("policy", endpoint, 2))
    assert isolated(rig, endpoint)
    rig.policy("deny", "b", ingress=[{}])
    rig.until_steps(("policy", endpoint, 3))
    rig.server.delete("networkpolicies", "deny", namespace="shop")
    rig.until_steps(("policy", endpoint, 4))
    assert not isolated(rig, endpoint)


def test_labels_of_a_pod_make_another_identity_and_labels_of_a_namespace_another_policy(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    peer = {"namespaceSelector": {"matchLabels": {"team": "b"}}}
    rig.policy("from-b", "a", ingress=[{"from": [peer]}])
    rig.start()
    rig.kernel.take()
    before = rig.kernel.identities[1].id
    rig.pod("a", {"app": "a", "tier": "front"})
    rig.until_steps(("identity", 1))
    assert rig.kernel.identities[1].id != before
    rig.server.put("namespaces", "other", metadata={"labels": {"team": "b"}})
    rig.until_steps(("policy", 1, 2))
    rig.server.put("namespaces", "other", metadata={"labels": {"team": "c"}})
    rig.until_steps(("policy", 1, 3))


def test_a_change_that_is_none_of_ours_changes_nothing(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    rig.kernel.take()
    revision = rig.reconciler.revision
    condition = {"type": "Ready", "status": "True"}
    other = {"labels": {"app": "a"}, "annotations": {"other.io/x": "y"}, "managedFields": [{"manager": "kubelet"}]}
    rig.server.put(
        "pods", "a", namespace="shop", metadata=other, status={"phase": "Running", "conditions": [condition]}
    )
    rig.policy("deny", "nobody")
    rig.until(lambda: rig.reconciler.policies)
    assert rig.kernel.take() == []
    assert rig.reconciler.revision == revision + 1


def test_a_pod_that_waits_for_its_sandbox_is_no_problem_and_a_running_one_without_a_namespace_is(
    rig: ClusterRig,
) -> None:
    rig.pod("a", phase="Pending")
    rig.start()
    assert rig.problems() == []
    rig.pod("a")
    rig.until(rig.problems)
    (problem,) = rig.problems()
    assert problem.startswith("Pod/shop/a: its network namespace is not found, so it is not enforced; on the node, see")
    rig.places.make("uid-a")
    rig.tick()
    assert rig.kernel.take() == [("attach", "shop/a", "cni-uid-a", 1)]
    assert rig.problems() == []


def test_a_pod_that_ends_loses_its_namespace_before_the_api_says_so_and_the_next_of_its_name_must_be_found(
    rig: ClusterRig,
) -> None:
    path = rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    path.unlink()
    rig.tick()
    assert rig.problems() == []
    rig.pod("a", uid="another")
    rig.until(rig.problems)


def test_what_discovery_cannot_decide_is_a_problem_while_it_lasts(rig: ClusterRig) -> None:
    rig.start()
    rig.places.undecided.append("pod shop/a: two namespaces have its addresses")
    rig.tick()
    assert rig.problems() == ["network namespaces: pod shop/a: two namespaces have its addresses"]
    rig.places.undecided.clear()
    rig.tick()
    assert rig.problems() == []


@pytest.mark.parametrize("end", ["deleted", "Succeeded", "Failed"])
def test_a_pod_that_is_over_is_let_go_and_its_rules_stay_while_its_namespace_does(rig: ClusterRig, end: str) -> None:
    path = rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    rig.kernel.take()
    if end == "deleted":
        rig.server.delete("pods", "a", namespace="shop")
    else:
        rig.pod("a", phase=end)
    # A forced deletion takes the object away while its containers run: they must not be open then.
    rig.until_steps(("detach", 1))
    assert [recorded.pod for recorded in rig.runtime.read()] == ["shop/a"]
    path.unlink()
    rig.tick()
    assert rig.kernel.take() == []
    assert rig.runtime.read() == []


def test_a_terminating_pod_counts_until_it_is_gone(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    rig.kernel.take()
    rig.pod("a", metadata={"deletionTimestamp": "2026-11-23T00:00:00Z"})
    rig.policy("deny", "a")
    rig.until_steps(("policy", 1, 2))


def test_the_next_pod_of_a_name_is_another_pod(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    rig.kernel.take()
    rig.server.delete("pods", "a", namespace="shop")
    rig.places.make("second")
    rig.pod("a", uid="second")
    rig.until_steps(("detach", 1), ("attach", "shop/a", "cni-second", 1))
    assert {record.network_namespace.rpartition("/")[2] for record in rig.runtime.read()} == {"cni-uid-a", "cni-second"}


def test_host_network_pods_are_the_node(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a", spec={"hostNetwork": True})
    rig.start()
    assert rig.kernel.take() == []
    assert rig.problems() == []


def test_policies_outlive_their_namespace_s_deletion_until_it_is_gone(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.policy("deny")
    rig.start()
    rig.kernel.take()
    rig.server.put("namespaces", "shop", metadata={"deletionTimestamp": "2026-11-23T00:00:00Z"})
    rig.until(lambda: rig.engine.snapshot.namespaces.known["shop"].terminating)
    rig.server.delete("networkpolicies", "deny", namespace="shop")
    rig.server.put("namespaces", "told", metadata={})
    rig.until(lambda: "told" in rig.engine.snapshot.namespaces.known)
    assert rig.kernel.take() == []
    # Also past a restart of the agent, which finds the policy deleted.
    rig.end()
    rig.start()
    (adopt,) = [step for step in rig.kernel.take() if step[0] == "adopt"]
    assert isolated(rig, max(rig.kernel.policies))
    assert adopt[3] == 1, "the epoch in force goes on: the policy is the same"
    rig.server.delete("namespaces", "shop")
    rig.until(lambda: rig.kernel.steps)
    assert [step[0] for step in rig.kernel.take()] == ["policy"]


def test_a_policy_that_is_deleted_with_its_namespace_and_made_again_as_it_was_stays(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.policy("deny")
    rig.start()
    rig.kernel.take()

    def terminating() -> bool:
        return rig.engine.snapshot.namespaces.known["shop"].terminating

    rig.server.put("namespaces", "shop", metadata={"deletionTimestamp": "2026-11-23T00:00:00Z"})
    rig.until(terminating)
    uid = {"uid": "the-same"}
    rig.server.put("networkpolicies", "deny", namespace="shop", metadata=uid, spec={"podSelector": {}})
    rig.until(lambda: getattr(rig.engine.objects["NetworkPolicy/shop/deny"], "uid", "") == "the-same")
    # What the engine retains, it shows nobody; the source waits for it to go before it removes the file.
    key = "NetworkPolicy/shop/deny"
    rig.server.delete("networkpolicies", "deny", namespace="shop")
    rig.until(lambda: key in rig.source._unwritten)
    rig.server.put("networkpolicies", "deny", namespace="shop", metadata=uid, spec={"podSelector": {}})
    rig.until(lambda: key not in rig.source._unwritten)
    rig.server.put("namespaces", "shop")
    rig.until(lambda: not terminating())
    assert rig.reconciler.policies == 1
    assert rig.kernel.take() == []


def test_what_cannot_be_read_is_one_problem_and_what_was_known_stays(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.policy("deny", "a")
    rig.start()
    rig.kernel.take()
    rig.server.put("networkpolicies", "deny", namespace="shop", metadata={"annotations": 7, "uid": 8})
    rig.policy("other", "nobody")
    rig.until(lambda: rig.reconciler.policies == 2)
    assert rig.kernel.take() == []
    assert isolated(rig, 1)
    (problem,) = rig.problems()
    assert problem.startswith(
        "NetworkPolicy/shop/deny: Expected `str`, got `int` - at `$.metadata.uid`; look at it: kubectl"
    )
    rig.policy("deny", "a")
    rig.until(lambda: not rig.problems())


def test_a_cluster_policy_counts_as_soon_as_its_kind_is_served(rig: ClusterRig) -> None:
    served = rig.server.collections.pop("clusternetworkpolicies")
    rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    rig.kernel.take()
    rig.server.collections["clusternetworkpolicies"] = served
    deny = {"action": "Deny", "from": [{"namespaces": {}}]}
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [deny]}
    rig.server.put("clusternetworkpolicies", "all", spec=spec)
    rig.until_steps(("policy", 1, 2))
    assert isolated(rig, 1)


def test_a_burst_is_few_passes(rig: ClusterRig) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    rig.kernel.take()
    for number in range(1000):
        rig.policy(f"p{number}", "a")
    rig.until(lambda: rig.reconciler.policies == 1000)
    # One for each event would be a thousand; how few there are is the machine's mood.
    assert rig.passes < 500
    assert len(rig.kernel.take()) <= rig.passes


def test_with_the_api_server_away_a_restarted_agent_goes_on_with_what_was_known(
    rig: ClusterRig, server: ApiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.kubernetes.source.PATIENCE_S", 1e6)  # who is refused need not wait
    for name in ("a", "b"):
        rig.places.make(f"uid-{name}")
        rig.pod(name)
    rig.policy("deny", "a")
    rig.policy("deny-b", "b")
    rig.start()
    rig.server.delete("networkpolicies", "deny-b", namespace="shop")
    rig.pod("secret", phase="Pending", spec={"containers": [{"name": "c", "env": [{"name": "A", "value": "hush"}]}]})
    rig.until(lambda: rig.reconciler.policies == 1 and rig.source.pods == 3)
    rig.end()
    server.__exit__(None, None, None)
    rig.kernel.take()
    rig.start()
    left = [("adopt", "shop/a", "cni-uid-a", 1), ("adopt", "shop/b", "cni-uid-b", 2), ("lay", 1), ("lay", 2)]
    assert rig.kernel.take() == left
    assert isolated(rig, rig.reconciler.bound["shop/a"])
    assert not isolated(rig, rig.reconciler.bound["shop/b"])
    # `trireme policy --agent` reads the same files.
    loaded = load_folder(rig.runtime.last_good)
    assert not loaded.problems
    assert {item.key: item for item in loaded.objects} == rig.engine.objects
    kept = "".join(path.read_text() for path in rig.runtime.last_good.iterdir())
    assert "secret" in kept
    assert "hush" not in kept
    # A pod that was only known to exist starts now, under the policy that was known.
    rig.places.make("uid-secret")
    rig.tick()
    assert rig.kernel.take() == [("attach", "shop/secret", "cni-uid-secret", 1)]
    # The server is back, and something has changed meanwhile.
    with ApiStandIn(*RESOURCES, port=rig.port) as again:
        again.version = server.version
        for name, collection in server.collections.items():
            again.collections[name].objects = collection.objects
        again.delete("networkpolicies", "deny", namespace="shop")
        rig.server = again
        rig.until(lambda: rig.reconciler.policies == 0 and rig.kernel.steps)
        assert [step[0] for step in rig.kernel.take()] == ["policy"]


def test_an_api_server_that_is_silent_is_waited_for_and_not_for_ever(
    rig: ClusterRig, server: ApiStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.places.make("uid-a")
    rig.pod("a")
    rig.start()
    rig.end()
    server.__exit__(None, None, None)
    rig.kernel.take()
    monkeypatch.setattr("agent.kubernetes.source.PATIENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", rig.port)):
        rig.start()
        assert rig.kernel.take() == [("adopt", "shop/a", "cni-uid-a", 1), ("lay", 1)]


def test_a_pod_has_the_addresses_that_the_runtime_told(rig: ClusterRig) -> None:
    """Those in the API are of an earlier sandbox until the kubelet has told of the next."""
    path = rig.places.make("uid-a")
    rig.pod("a", status={"phase": "Running", "podIPs": [{"ip": "10.77.1.9"}]})
    rig.places.make("uid-b")
    rig.pod("b", status={"phase": "Running", "podIPs": [{"ip": "10.77.1.8"}]})
    rig.places.addresses[path] = (bytes((10, 77, 1, 3)),)
    rig.start()
    assert rig.kernel.attached == {"shop/a": (bytes((10, 77, 1, 3)),), "shop/b": (bytes((10, 77, 1, 8)),)}


def test_half_of_a_first_state_is_not_gone_on_with(rig: ClusterRig, server: ApiStandIn) -> None:
    rig.pod("a")
    rig.start()
    rig.end()
    assert (rig.runtime.last_good / "complete").exists()
    (rig.runtime.last_good / "complete").unlink()
    stale = rig.runtime.last_good / "NetworkPolicy.shop.stale.json"
    stale.write_text("{}")
    server.fault("networkpolicies", *[status(500)] * 5)
    rig.places.make("uid-a")
    rig.kernel.take()
    rig.start()
    assert server.count("networkpolicies", watch=False) == 7, "it waited until the server answered"
    assert not stale.exists()
    assert rig.kernel.take() == [("attach", "shop/a", "cni-uid-a", 1)]


def test_files_of_another_node_are_not_gone_on_with(rig: ClusterRig, tmp_path: Path, server: ApiStandIn) -> None:
    rig.pod("a")
    rig.start()
    rig.end()
    mark = rig.runtime.last_good / "complete"
    mark.write_text(mark.read_text().replace("node-1", "node-2"))
    server.fault("pods", *[status(500)] * 3)
    rig.start()
    assert server.count("pods", watch=False) == 5
    assert "node-1" in mark.read_text()

"""Pods that wait at their start: the CNI plugin's request on one thread, the agent's passes on another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.kubernetes.starts import NotStarted, Sandbox
from tests.harness.api_stand_in import PATIENCE_S, ApiStandIn, wait_until
from tests.harness.cluster_rig import ClusterRig
from trireme_py.model import Direction


@pytest.fixture
def server() -> Iterator[ApiStandIn]:
    with ApiStandIn("namespaces", "networkpolicies", "pods") as server:
        yield server


@pytest.fixture
def rig(tmp_path: Path, server: ApiStandIn) -> Iterator[ClusterRig]:
    rig = ClusterRig(tmp_path, server)
    yield rig
    rig.end()
    rig.runtime.release()


def sandbox(rig: ClusterRig, name: str = "a", uid: str | None = None) -> Sandbox:
    uid = uid or f"uid-{name}"
    return Sandbox(f"shop/{name}", uid, f"container-{uid}", rig.places.make(uid))


def test_a_pod_goes_on_once_it_is_under_its_policy(rig: ClusterRig) -> None:
    rig.pod("a", phase="Pending")
    rig.policy("deny", "a")
    rig.start()
    with rig.running():
        rig.holding.hold(sandbox(rig), PATIENCE_S)
    assert rig.kernel.take() == [("attach", "shop/a", "cni-uid-a", 1)]
    assert rig.kernel.policies[1].isolated(Direction.INGRESS)


def test_a_watch_that_is_behind_the_kubelet_is_waited_for(rig: ClusterRig) -> None:
    rig.pod("a", uid="an-earlier-one", phase="Failed")
    rig.start()
    with rig.running(), ThreadPoolExecutor() as pool:
        waiting = pool.submit(rig.holding.hold, sandbox(rig), PATIENCE_S)
        rig.server.put("namespaces", "told", metadata={})
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        rig.server.delete("pods", "a", namespace="shop")
        rig.pod("a", phase="Pending")
        waiting.result(PATIENCE_S)
    assert rig.kernel.take() == [("attach", "shop/a", "cni-uid-a", 1)]


def test_a_static_pod_is_known_by_the_uid_that_the_kubelet_gave_it(rig: ClusterRig) -> None:
    rig.pod("a", uid="mirror", phase="Pending", metadata={"annotations": {"kubernetes.io/config.mirror": "uid-a"}})
    rig.start()
    held = sandbox(rig)
    rig.places.put("mirror", held.network_namespace)
    with rig.running():
        rig.holding.hold(held, PATIENCE_S)


@pytest.mark.parametrize(
    ("uid", "told"),
    [
        (None, "pod shop/a: not known from the API server yet"),
        ("an-earlier-one", "pod shop/a: the API server has told only of an earlier pod of that name"),
    ],
)
def test_a_pod_that_stays_unknown_does_not_start(rig: ClusterRig, uid: str | None, told: str) -> None:
    if uid is not None:
        rig.pod("a", uid=uid)
    rig.start()
    with rig.running(), pytest.raises(NotStarted) as caught:
        rig.holding.hold(sandbox(rig), 0.05)
    assert str(caught.value) == told
    assert rig.kernel.take() == []


def test_with_the_api_server_away_the_reason_is_said(rig: ClusterRig, server: ApiStandIn) -> None:
    rig.start()
    server.__exit__(None, None, None)
    assert wait_until(lambda: rig.trouble() == "Connection refused")
    with rig.running(), pytest.raises(NotStarted, match=r"not known .* yet \(the watch of pods: Connection refused\)"):
        rig.holding.hold(sandbox(rig), 0.05)


def test_rules_that_cannot_be_laid_keep_a_pod_from_starting_and_the_next_try_is_new(rig: ClusterRig) -> None:
    rig.pod("a", phase="Pending")
    rig.kernel.failing = {"attach"}
    rig.start()
    with rig.running():
        with pytest.raises(NotStarted, match=r"^pod shop/a: attach refused$"):
            rig.holding.hold(sandbox(rig), PATIENCE_S)
        rig.kernel.failing = set()
        rig.holding.hold(sandbox(rig), PATIENCE_S)


def test_a_pod_that_cannot_have_an_identity_starts_unidentified(rig: ClusterRig) -> None:
    ports = [{"name": f"port-number-{n}", "containerPort": n + 1} for n in range(60)]
    rig.pod("a", phase="Pending", spec={"containers": [{"name": "c", "ports": ports}]})
    rig.start()
    with rig.running():
        rig.holding.hold(sandbox(rig), PATIENCE_S)
    assert rig.kernel.identities == {}


def test_a_pod_that_rules_cannot_hold_starts_or_not_as_configured(rig: ClusterRig) -> None:
    container = {"name": "c", "securityContext": {"privileged": True}}
    rig.pod("a", phase="Pending", spec={"containers": [container]})
    rig.start()
    with rig.running():
        rig.holding.hold(sandbox(rig), PATIENCE_S)
        assert list(rig.source.unholdable) == ["shop/a"]
    rig.end()
    rig.refuse = True
    rig.start()
    with rig.running(), pytest.raises(NotStarted, match=r"container c is privileged.*unprotected: refuse"):
        rig.holding.hold(sandbox(rig), PATIENCE_S)


def test_a_sandbox_that_goes_is_let_go_at_once_although_its_namespace_is_still_there(rig: ClusterRig) -> None:
    rig.pod("a", phase="Pending")
    rig.start()
    held = sandbox(rig)
    with rig.running():
        rig.holding.hold(held, PATIENCE_S)
        # Nothing but our answer says that it goes: the API and the namespace are as before.
        rig.holding.gone(held.container)
        assert rig.kernel.steps[-1] == ("detach", 1)
    rig.tick()
    assert rig.kernel.steps[-1] == ("detach", 1), "and stays so"


def test_a_sandbox_made_anew_for_the_same_pod_is_held_in_its_new_namespace(rig: ClusterRig) -> None:
    rig.pod("a", phase="Running")
    rig.start()
    first = sandbox(rig)
    with rig.running():
        rig.holding.hold(first, PATIENCE_S)
        rig.holding.gone(first.container)
        path = rig.places.root / "cni-second"
        path.write_text("")
        rig.places.put("uid-a", path)
        rig.holding.hold(Sandbox("shop/a", "uid-a", "another", path), PATIENCE_S)
    assert rig.kernel.take() == [
        ("attach", "shop/a", "cni-uid-a", 1),
        ("detach", 1),
        ("attach", "shop/a", "cni-second", 1),
    ]


def test_a_pod_that_is_held_in_another_namespace_does_not_start(rig: ClusterRig) -> None:
    rig.pod("a")
    rig.start()
    path = rig.places.root / "cni-second"
    path.write_text("")
    with rig.running():
        rig.holding.hold(sandbox(rig), PATIENCE_S)
        with pytest.raises(NotStarted, match="its rules could not be laid in time"):
            rig.holding.hold(Sandbox("shop/a", "uid-a", "another", path), 0.05)


def test_a_container_that_nobody_knows_is_passed_over(rig: ClusterRig) -> None:
    rig.start()
    with rig.running():
        rig.holding.gone("never-heard-of")
    assert rig.kernel.take() == []


def test_host_network_pods_are_not_held_and_ended_ones_do_not_start(rig: ClusterRig) -> None:
    rig.pod("a", spec={"hostNetwork": True})
    rig.pod("b", phase="Failed")
    rig.start()
    with rig.running():
        rig.holding.hold(sandbox(rig), PATIENCE_S)
        with pytest.raises(NotStarted, match="has run to its end"):
            rig.holding.hold(sandbox(rig, "b"), PATIENCE_S)
    assert rig.kernel.take() == []


def test_many_start_together(rig: ClusterRig) -> None:
    names = [f"p{number}" for number in range(30)]
    for name in names:
        rig.pod(name, phase="Pending")
    rig.start()
    sandboxes = [sandbox(rig, name) for name in names]
    barrier = threading.Barrier(len(names))

    def hold(one: Sandbox) -> None:
        barrier.wait(PATIENCE_S)
        rig.holding.hold(one, PATIENCE_S)

    with rig.running(), ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(hold, sandboxes))
    assert len(rig.kernel.take()) == len(names)

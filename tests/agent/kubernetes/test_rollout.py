"""A node's part in the installation, as the agent has it: announced, followed, and ended."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agent.kubernetes import access
from agent.kubernetes.config import KubernetesConfig
from agent.kubernetes.leases import finish
from agent.kubernetes.rollout import Rollout
from tests.agent.kubernetes.test_leases import NAMESPACE, Cluster
from trireme_py.errors import ConfigError


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    (tmp_path / "namespace").write_text(f"{NAMESPACE}\n")
    monkeypatch.setattr(access, "NAMESPACE_FILE", tmp_path / "namespace")
    return Cluster(tmp_path, "worker-1", "worker-2")


def rollout(cluster: Cluster, kubeconfig: Path | None = None) -> Rollout:
    return Rollout(KubernetesConfig("worker-1", kubeconfig), cluster.api, cluster.folder)


def test_the_data_path_is_told_when_it_begins_and_when_it_ends(cluster: Cluster) -> None:
    told: list[bool] = []
    one = rollout(cluster)
    assert one.missing is None
    one.begin(told.append, threading.Event())
    assert told == [True]
    assert one.missing == "2: worker-1, worker-2"
    for chore in one.chores:
        chore.step()
    assert one.missing == "1: worker-2"
    assert told == [True]
    finish(cluster.api, NAMESPACE)
    for chore in one.chores:
        chore.step()
    assert told == [True, False]
    assert one.missing is None

    again: list[bool] = []
    rollout(cluster).begin(again.append, threading.Event())
    assert again == [False]


def test_who_runs_the_agent_by_hand_takes_no_part(cluster: Cluster) -> None:
    told: list[bool] = []
    one = rollout(cluster, Path("kubeconfig"))
    one.begin(told.append, threading.Event())
    assert (told, one.chores, one.missing) == ([], (), None)
    assert not cluster.api.calls


def test_an_agent_without_a_namespace_says_what_it_needs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "NAMESPACE_FILE", cluster.folder / "none")
    with pytest.raises(ConfigError, match=r"this is no pod; run it with: spec\.kubernetes\.kubeconfig"):
        rollout(cluster)

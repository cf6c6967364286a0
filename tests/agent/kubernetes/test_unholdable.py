from __future__ import annotations

import json
from typing import Any

import pytest

from agent.kubernetes.unholdable import unholdable


def pod(security: object = None, *, where: str = "containers", **spec: Any) -> bytes:
    plain = {"name": "app", "image": "x", "ports": [{"containerPort": 80}]}
    both = {"containers": [plain], where: [plain, {"name": "odd", "securityContext": security}]}
    return json.dumps({"metadata": {"name": "web"}, "spec": {**both, **spec}}).encode()


@pytest.mark.parametrize("where", ["containers", "initContainers", "ephemeralContainers"])
@pytest.mark.parametrize(
    "security",
    [
        {"privileged": True},
        {"capabilities": {"add": ["SYS_TIME", "NET_ADMIN"]}},
        {"capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]}},
        {"capabilities": {"add": ["ALL"]}},
    ],
)
def test_a_container_that_can_change_the_rules_is_named(security: object, where: str) -> None:
    reason = unholdable(pod(security, where=where))
    assert reason is not None
    assert "container odd" in reason


@pytest.mark.parametrize(
    "security",
    [
        None,
        {},
        {"privileged": False, "capabilities": None},
        {"capabilities": {"add": None}},
        {"capabilities": {"add": ["NET_RAW", "NET_BIND_SERVICE"], "drop": ["NET_ADMIN"]}},
        {"runAsUser": 0},
    ],
)
def test_what_runtimes_grant_by_default_is_held(security: object) -> None:
    assert unholdable(pod(security)) is None


@pytest.mark.parametrize("name", ["kata", "kata-qemu", "gvisor", "runsc", "small-vm", "firecracker"])
def test_runtimes_with_a_network_stack_of_their_own_are_named(name: str) -> None:
    assert name in (unholdable(pod(runtimeClassName=name)) or "")


@pytest.mark.parametrize("name", [None, "runc", "nvidia", "crun", "vmware-tools"])
def test_other_runtime_classes_are_held(name: str | None) -> None:
    assert unholdable(pod(runtimeClassName=name)) is None


def test_a_pod_of_the_host_s_network_is_the_node() -> None:
    assert unholdable(pod({"privileged": True}, hostNetwork=True)) is None


def test_a_pod_that_cannot_be_read_is_not_taken_for_one_that_can_be_held() -> None:
    assert unholdable(b'{"spec": {"containers": 1}}') is not None

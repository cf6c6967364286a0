"""The manifests and the image on a real cluster: what is granted, what is used, and what the agents say."""

from __future__ import annotations

import json
import time

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.installation import NAMESPACE, OVERLAYS, PATIENCE_S, ROOT, Installed
from tests.harness.kustomize import objects, of_kind

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour; so is the image"),
    pytest.mark.timeout(2400),
]

CAPABILITIES = 1 << 12 | 1 << 13 | 1 << 21  # NET_ADMIN, NET_RAW, SYS_ADMIN: include/uapi/linux/capability.h
Granted = set[tuple[str, str, str]]

both = pytest.mark.parametrize("installed", ["psk", "pki"], indirect=True)


@pytest.fixture(scope="module", autouse=True)
def log_begins(cluster: Cluster) -> int:
    """Length of the audit log before anything was installed."""
    return cluster.audit_log.stat().st_size


@pytest.mark.parametrize("overlay", ["psk", "pki", "audit"])
def test_the_api_server_takes_every_object(cluster: Cluster, overlay: str) -> None:
    cluster.kubectl("apply", "-f", str(ROOT / "manifests" / "base" / "namespace.yaml"))
    try:
        cluster.kubectl("apply", "-k", str(OVERLAYS / overlay), "--dry-run=server", "--validate=strict")
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, f"--timeout={PATIENCE_S:g}s")


@both
def test_every_agent_is_well_and_has_no_more_power_than_it_should(installed: Installed) -> None:
    found = installed.agents()
    assert found.keys() == {node.name for node in installed.cluster.nodes}
    for node in installed.cluster.nodes:
        process = installed.kubectl("exec", found[node.name], "--", "cat", "/proc/1/status")
        effective = next(line.split()[1] for line in process.splitlines() if line.startswith("CapEff:"))
        assert int(effective, 16) == CAPABILITIES
        assert "Seccomp:\t2\n" in process
        checked = json.loads(installed.trireme(node, "check", "-o", "json"))["checks"]
        failed = [one for one in checked if one["state"] != "passed"]
        assert {one["check"] for one in failed} <= {"a-installation"}, failed
        status = installed.status(node)
        assert (status.kind, status.mode, status.node, status.missing) == ("kubernetes", installed.mode, node.name, ())
        assert (status.certificate_until is not None) == (installed.mode == "pki")


@both
def test_what_is_granted_is_used_and_nothing_else_is_asked_for(installed: Installed, log_begins: int) -> None:
    granted: Granted = {
        (verb, group, resource)
        for role in of_kind(objects(f"overlays/{installed.mode}"), "Role", "ClusterRole")
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    # The API server asks itself whether somebody may sign. What is not installed here cannot be watched, and nodes are
    # watched only where a ClusterNetworkPolicy is about them. An agent asks for its DaemonSet when it is stopped.
    unseen = {
        ("approve", "certificates.k8s.io", "signers"),
        ("sign", "certificates.k8s.io", "signers"),
        ("watch", "", "nodes"),
        ("get", "apps", "daemonsets"),
        ("watch", "policy.networking.k8s.io", "clusternetworkpolicies"),
    }
    deadline = time.monotonic() + PATIENCE_S
    while unused := granted - unseen - asked_for(installed.cluster, log_begins):
        assert time.monotonic() < deadline, unused
        time.sleep(0.5)  # the log can only be read again
    assert asked_for(installed.cluster, log_begins) - granted == set()


def asked_for(cluster: Cluster, since: int) -> Granted:
    """Return what agents and signer asked of the API server, as its audit log has it from an offset on."""
    found: Granted = set()
    with cluster.audit_log.open("rb") as log:
        log.seek(since)
        for event in (json.loads(line) for line in log if line.endswith(b"\n")):
            reference = event.get("objectRef")
            if reference and event["user"].get("username", "").startswith(f"system:serviceaccount:{NAMESPACE}:"):
                subresource = f"/{reference['subresource']}" if "subresource" in reference else ""
                found.add((event["verb"], reference.get("apiGroup", ""), reference["resource"] + subresource))
    return found

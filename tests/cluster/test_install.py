"""The manifests and the image on a real cluster: what the API server takes, and what the agents say."""

from __future__ import annotations

import json

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.installation import NAMESPACE, OVERLAYS, PATIENCE_S, ROOT, Installed

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour; so is the image"),
    pytest.mark.timeout(2400),
]

CAPABILITIES = 1 << 12 | 1 << 13 | 1 << 21  # NET_ADMIN, NET_RAW, SYS_ADMIN: include/uapi/linux/capability.h

both = pytest.mark.parametrize("installed", ["psk", "pki"], indirect=True)


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

"""Pods from their first moment, with the real kubelet and container runtime; and the chain of plugins given back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster import images
from tests.cluster.cluster import Cluster, Node
from tests.cluster.installation import Installed

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

PERMITTED, STARTS = 10, 200
TOGETHER = 8
"""Pods that start at the same time: what two nodes on two processors can be asked for."""
CHAIN = "/etc/cni/net.d/10-trireme-test.conflist"
NAMESPACE = "starts"
FIRST_ACT = "/agnhost connect --timeout=1s $SERVER:8080"


def pod_spec(command: list[str], **more: object) -> dict[str, Any]:
    container = {"name": "main", "image": images.AGNHOST, "imagePullPolicy": "Never", **more, "command": command}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [container],
    }


def pod(name: str, node: Node, command: list[str], **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**pod_spec(command), "nodeName": node.name},
    }


class Site:
    """A server that may be reached by whoever is not labelled ``goes: nowhere``."""

    def __init__(self, cluster: Cluster, namespace: str = NAMESPACE) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 120.0) -> str:  # noqa: A002 - as Cluster.kubectl
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=input, timeout=timeout)

    def apply(self, *objects: object) -> None:
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def wait(self, what: str, condition: str, timeout_s: float = 60) -> None:
        self.kubectl("wait", f"--for={condition}", what, f"--timeout={timeout_s:g}s", timeout=timeout_s + 5)

    def address(self) -> str:
        return self.kubectl("get", "pod", "server", "-o", "jsonpath={.status.podIP}")

    def came(self, what: str) -> int:
        """Return a counter of TCP in the server's own network namespace, as ``/proc/net/snmp`` calls it."""
        snmp = self.kubectl("exec", "server", "--", "cat", "/proc/net/snmp")
        names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
        return int(values[names.index(what)])

    def starts(self, name: str, count: int, expected: str, **labels: str) -> None:
        """Start ``count`` pods that end well if their first connect is as ``expected``, and return when all have."""
        script = f"{FIRST_ACT}; [ $? {'=' if expected == 'made' else '!='} 0 ]"
        spec = pod_spec(["sh", "-c", script], env=[{"name": "SERVER", "value": self.address()}])
        template = {"metadata": {"labels": labels}, "spec": spec}
        job = {"completions": count, "parallelism": TOGETHER, "backoffLimit": 0, "template": template}
        self.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": job})
        self.wait(f"job/{name}", "condition=complete", 600)


@pytest.fixture(scope="module", autouse=True)
def chains(cluster: Cluster) -> Iterator[list[str]]:
    """Each node's CNI chain before the installation. After it they are the same again, and pods start."""
    before = [node.run("cat", CHAIN) for node in cluster.nodes]
    yield before
    assert [node.run("cat", CHAIN) for node in cluster.nodes] == before
    after = Site(cluster, "default")
    after.apply(*(pod(f"after-{node.name}", node, ["/agnhost", "pause"]) for node in cluster.nodes))
    for node in cluster.nodes:
        after.wait(f"pod/after-{node.name}", "condition=Ready")
        after.kubectl("delete", "pod", f"after-{node.name}")


@pytest.fixture(scope="module")
def site(cluster: Cluster, chains: list[str], installed: Installed) -> Iterator[Site]:
    site = Site(cluster)
    cluster.kubectl("create", "namespace", NAMESPACE)
    policy = {"podSelector": {"matchLabels": {"goes": "nowhere"}}, "policyTypes": ["Egress"], "egress": []}
    site.apply(
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "no"}, "spec": policy},
        pod("server", cluster.nodes[0], ["/agnhost", "netexec", "--http-port=8080"]),
    )
    site.wait("pod/server", "condition=Ready")
    yield site
    cluster.kubectl("delete", "namespace", NAMESPACE)


def without_ours(chain: str) -> Any:
    configuration = json.loads(chain)
    ours = [plugin for plugin in configuration["plugins"] if plugin["type"] == "trireme-cni"]
    assert len(ours) == 1
    configuration["plugins"].remove(ours[0])
    return configuration


def test_the_chain_ends_with_our_plugin_and_is_kept_as_it_was(cluster: Cluster, site: Site, chains: list[str]) -> None:
    for node, before in zip(cluster.nodes, chains, strict=True):
        assert without_ours(node.run("cat", CHAIN)) == json.loads(before)
        assert node.run("cat", f"{CHAIN}.before-trireme") == before


def test_a_permitted_first_connect_is_made(site: Site) -> None:
    before = site.came("PassiveOpens")
    site.starts("permitted", PERMITTED, "made")
    assert site.came("PassiveOpens") == before + PERMITTED


def test_a_forbidden_first_connect_is_never_made(site: Site) -> None:
    before = site.came("InSegs")
    site.starts("forbidden", STARTS, "refused", goes="nowhere")
    assert site.came("InSegs") == before, "something of TCP came to the server"

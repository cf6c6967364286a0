"""Every right that is granted is used, and no other is asked for: the manifests against the API server's audit log.

The log is that of a whole run: installed, without and with the CustomResourceDefinition of ClusterNetworkPolicies,
with a policy about nodes, a restart of an agent, and uninstalled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.installation import NAMESPACE, Installed, wait_until
from tests.harness.kustomize import objects, of_kind

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour; so is the image"),
    pytest.mark.timeout(2400),
]

GROUP = "policy.networking.k8s.io"
PLURAL = "clusternetworkpolicies"
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"{PLURAL}.{GROUP}",
        "annotations": {"api-approved.kubernetes.io": "unapproved, as far as a test needs it"},
    },
    "spec": {
        "group": GROUP,
        "scope": "Cluster",
        "names": {"plural": PLURAL, "singular": "clusternetworkpolicy", "kind": "ClusterNetworkPolicy"},
        "versions": [
            {
                "name": "v1alpha2",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
ABOUT_NODES = {
    "apiVersion": f"{GROUP}/v1alpha2",
    "kind": "ClusterNetworkPolicy",
    "metadata": {"name": "rbac-test"},
    "spec": {
        "tier": "Admin",
        "priority": 1,
        "subject": {"namespaces": {"matchLabels": {"no": "such-namespace"}}},
        "egress": [{"action": "Deny", "to": [{"nodes": {"matchLabels": {"no": "such-node"}}}]}],
    },
}
UNSEEN = {("trireme-signer", verb, "certificates.k8s.io", "signers") for verb in ("approve", "sign")}
"""What the API server asks itself when a request is approved and signed."""

Right = tuple[str, str, str, str]
"""Service account, verb, group and resource, a subresource after a slash."""


def granted(overlay: str) -> set[Right]:
    """Return what the manifests of an overlay grant."""
    found = objects(f"overlays/{overlay}")
    roles = {(role["kind"], role["metadata"]["name"]): role for role in of_kind(found, "Role", "ClusterRole")}
    return {
        (subject["name"], verb, group, resource)
        for binding in of_kind(found, "RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
        for rule in roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


@dataclass(frozen=True, slots=True)
class Log:
    """The audit log from an offset on."""

    cluster: Cluster
    since: int

    def requests(self) -> list[dict[str, Any]]:
        """Return every request of our service accounts so far in this installation."""
        with self.cluster.audit_log.open("rb") as log:
            log.seek(self.since)
            events = [json.loads(line) for line in log if line.endswith(b"\n")]
        begun = max(number for number, each in enumerate(events) if each["verb"] == "create" and _namespace(each))
        ours = f"system:serviceaccount:{NAMESPACE}:"
        return [each for each in events[begun:] if each["user"]["username"].startswith(ours)]

    def rights(self) -> set[Right]:
        """Return what they asked for."""
        return {right(each) for each in self.requests()}


def _namespace(request: dict[str, Any]) -> bool:
    """Tell whether a request is about our Namespace itself."""
    reference = request.get("objectRef", {})
    return (reference.get("resource"), reference.get("name")) == ("namespaces", NAMESPACE)


def right(request: dict[str, Any]) -> Right:
    account = request["user"]["username"].rpartition(":")[2]
    reference = request.get("objectRef")
    if reference is None:
        return account, request["verb"], "", request["requestURI"]
    resource = "/".join(reference[part] for part in ("resource", "subresource") if part in reference)
    return account, request["verb"], reference.get("apiGroup", ""), resource


@pytest.fixture(scope="module")
def log(cluster: Cluster) -> Log:
    """The log from before the installation."""
    return Log(cluster, cluster.audit_log.stat().st_size)


@pytest.fixture
def nodes_matter(log: Log, installed: Installed) -> Iterator[None]:
    """A policy about nodes, of a kind that was not there when the agents began."""
    cluster = installed.cluster
    wait_until(lambda: ("trireme-agent", "list", GROUP, PLURAL) in log.rights(), "the agents look for the kind")
    try:
        cluster.apply(yaml.safe_dump(CRD))
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=60s")
        cluster.apply(yaml.safe_dump(ABOUT_NODES))
        yield
    finally:
        cluster.kubectl("delete", "crd", f"{PLURAL}.{GROUP}", "--ignore-not-found", "--timeout=60s")


@pytest.mark.parametrize("installed", ["psk", "pki"], indirect=True)
def test_what_is_granted_is_used_and_nothing_else_is_asked_for(
    log: Log, installed: Installed, nodes_matter: None
) -> None:
    rights = granted(installed.mode)
    agent = installed.agents()[installed.cluster.nodes[0].name]
    installed.kubectl("delete", "pod", agent)  # its successor knows the Leases that are there
    installed.wait()
    wait_until(lambda: rights - UNSEEN <= log.rights(), f"all of {rights - UNSEEN - log.rights()} are used")
    assert log.rights() - rights == set()
    decisions = "authorization.k8s.io/decision"
    assert [each for each in log.requests() if each["annotations"][decisions] != "allow"] == []


def test_auditing_needs_no_other_rights() -> None:
    assert granted("audit") == granted("psk")

"""What the agent's watch makes of the API's objects, beside what Kubernetes' official client makes of them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from kubernetes import client, config

from agent.kubernetes.api import ApiServer
from agent.kubernetes.kubeconfig import read
from agent.kubernetes.reflector import Reflector
from agent.kubernetes.resources import watched
from policy.objects import Namespace, NetworkPolicy, Pod
from tests.cluster.cluster import Cluster
from tests.harness.watch_state import State

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: read-by-two, namespace: default}
spec: {podSelector: {matchLabels: {app: nobody}}, policyTypes: [Ingress, Egress]}
"""


def official(cluster: Cluster) -> Any:
    connect: Any = config.new_client_from_config
    return connect(str(cluster.kubeconfig))


def seen_by_the_agent(cluster: Cluster, kind: str, node: str, count: int) -> list[Any]:
    resource = next(one for one in watched(node) if one.kind == kind)
    state = State()
    reflector = Reflector(ApiServer(read(cluster.kubeconfig)), resource, state.inbox)
    reflector.start()
    try:
        state.wait_until(lambda: len(state.objects) == count)
    finally:
        reflector.stop()
        state.inbox.close()
    return [known.item for known in state.objects.values()]


def test_pods(cluster: Cluster) -> None:
    core: Any = client.CoreV1Api(official(cluster))
    compared = 0
    for node in cluster.nodes:
        listed = core.list_pod_for_all_namespaces(field_selector=f"spec.nodeName={node.name}").items
        expected = {
            (one.metadata.namespace, one.metadata.name): (
                one.metadata.uid, one.metadata.labels, one.spec.service_account_name, bool(one.spec.host_network),
                one.status.phase, tuple(ip_address(ip.ip).packed for ip in one.status.pod_ips or ()),
            )
            for one in listed
        }  # fmt: skip
        pods = seen_by_the_agent(cluster, "Pod", node.name, len(expected))
        assert all(isinstance(pod, Pod) for pod in pods)
        actual = {
            (pod.namespace, pod.name): (
                pod.uid, dict(pod.labels), pod.service_account, pod.host_network, pod.phase, pod.addresses
            )
            for pod in pods
        }  # fmt: skip
        assert actual == expected
        compared += len(expected)
    assert compared


def test_namespaces_and_policies(cluster: Cluster) -> None:
    cluster.apply(POLICY)
    try:
        access = official(cluster)
        core: Any = client.CoreV1Api(access)
        networking: Any = client.NetworkingV1Api(access)
        namespaces = {one.metadata.name: one.metadata.labels for one in core.list_namespace().items}
        listed = networking.list_network_policy_for_all_namespaces().items
        policies = {(one.metadata.namespace, one.metadata.name): one.metadata.uid for one in listed}
        assert ("default", "read-by-two") in policies
        seen = seen_by_the_agent(cluster, "Namespace", cluster.nodes[0].name, len(namespaces))
        assert all(isinstance(one, Namespace) for one in seen)
        assert {one.name: dict(one.labels) for one in seen} == namespaces
        seen = seen_by_the_agent(cluster, "NetworkPolicy", cluster.nodes[0].name, len(policies))
        assert all(isinstance(one, NetworkPolicy) for one in seen)
        assert {(one.namespace, one.name): one.uid for one in seen} == policies
    finally:
        cluster.kubectl("delete", "-n", "default", "networkpolicy", "read-by-two")

"""The watches, and an agent that lives by them, against a real API server.

The node is one that the test makes up, with pods whose namespaces are a lab's: nothing here touches the cluster's own
nodes. The API server goes away by way of a relay in front of it, for this test alone.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from agent.kubernetes.api import ApiServer
from agent.kubernetes.reflector import Reflector
from agent.kubernetes.resources import watched
from agent.lab import Lab, LabPod
from policy.objects import Namespace, Pod
from tests.cluster.cluster import Cluster
from tests.cluster.made_up import Site
from tests.harness.agent_process import AgentProcess, Configuration, trireme
from tests.harness.api_stand_in import wait_until
from tests.harness.tcp_relay import Relay
from tests.harness.traffic import Server, ask, refused
from tests.harness.watch_state import State

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

PORT = 80


@pytest.fixture
def site(cluster: Cluster) -> Iterator[Site]:
    site = Site(cluster.kubeconfig)
    site.open()
    yield site
    site.close()


@pytest.fixture
def relay(site: Site) -> Iterator[Relay]:
    with Relay(site.access.port) as relay:
        yield relay


def relayed(site: Site, relay: Relay) -> ApiServer:
    return ApiServer(replace(site.access, port=relay.port))


@contextmanager
def watching(
    site: Site, relay: Relay, kind: str, prepare: Callable[[Reflector], None] = lambda _: None
) -> Iterator[tuple[State, Reflector]]:
    resource = next(one for one in watched(site.node) if one.kind == kind)
    state = State()
    reflector = Reflector(relayed(site, relay), resource, state.inbox)
    prepare(reflector)
    reflector.start()
    try:
        yield state, reflector
    finally:
        reflector.stop()
        state.inbox.close()


def test_pods_of_the_own_node_are_followed_and_no_others(site: Site, relay: Relay) -> None:
    site.pod("first", "10.244.99.1", "fd00::99:1")
    key = f"Pod/{site.name}/first"
    with watching(site, relay, "Pod") as (state, _):
        state.wait_until(lambda: key in state.objects)
        pod = state.objects[key].item
        assert isinstance(pod, Pod)
        assert (len(pod.addresses), pod.phase, pod.service_account) == (2, "Running", "default")
        site.label(f"{site.pods}/first", app="other")
        state.wait_until(lambda: state.objects[key].item != pod)
        assert set(state.objects) == {key}, "pods of the cluster's nodes"
        site.call("DELETE", f"{site.pods}/first?gracePeriodSeconds=0")
        state.wait_for()


def test_namespaces_come_as_metadata_alone_and_their_labels_are_followed(site: Site, relay: Relay) -> None:
    key = f"Namespace/{site.name}"
    with watching(site, relay, "Namespace") as (state, reflector):
        state.wait_until(lambda: key in state.objects)
        assert "Namespace/kube-system" in state.objects
        path = f"/api/v1/namespaces/{site.name}"
        site.label(path, team="a")
        labels = {"team": "a", "kubernetes.io/metadata.name": site.name}

        def labelled() -> bool:
            namespace = state.objects[key].item
            return isinstance(namespace, Namespace) and namespace.labels == labels

        state.wait_until(labelled)
        connection = relayed(site, relay).connect()
        answer = connection.send("GET", reflector.resource.path(), accept=reflector.resource.accept_list)
        assert json.loads(answer.read())["kind"] == "PartialObjectMetadataList"
        connection.close()


def test_a_version_that_the_server_has_forgotten_is_listed_anew(site: Site, relay: Relay) -> None:
    site.policy("only", "nobody")

    def begin_long_ago(reflector: Reflector) -> None:
        reflector._version = "1"

    with watching(site, relay, "NetworkPolicy", begin_long_ago) as (state, reflector):
        state.wait_until(lambda: f"NetworkPolicy/{site.name}/only" in state.objects)
        assert reflector.reading.restarts == {"gone": 1}


def test_what_happened_while_the_server_was_away_is_told_without_a_list(site: Site, relay: Relay) -> None:
    with watching(site, relay, "NetworkPolicy") as (state, reflector):
        state.wait_until(lambda: True)
        assert wait_until(lambda: reflector.trouble == "")
        relay.go_away()
        assert wait_until(lambda: reflector.reading.restarts.total() >= 2)
        site.policy("meanwhile", "nobody")
        relay.come_back()
        state.wait_until(lambda: f"NetworkPolicy/{site.name}/meanwhile" in state.objects)
        assert state.lists == 1
        assert wait_until(lambda: reflector.trouble == "")


def test_a_kind_that_is_not_installed_is_no_trouble(site: Site, relay: Relay) -> None:
    with watching(site, relay, "ClusterNetworkPolicy") as (state, reflector):
        state.wait_for()
        assert (reflector.trouble, reflector.reading.restarts.total()) == ("", 0)


@dataclass
class Node:
    """Two pods of the made-up node, in a lab, and the agent's configuration."""

    client: LabPod
    server: LabPod
    configuration: Configuration


@pytest.fixture
def node(site: Site, cluster: Cluster, relay: Relay, tmp_path: Path) -> Iterator[Node]:
    with Lab("watch") as lab, tempfile.TemporaryDirectory(prefix="trm-watch-", dir="/tmp") as namespaces:
        kubeconfig = yaml.safe_load(cluster.kubeconfig.read_text())
        kubeconfig["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{relay.port}"
        (tmp_path / "kube.yaml").write_text(yaml.safe_dump(kubeconfig))
        spec = f"{{node: {site.node}, kubeconfig: ../kube.yaml, networkNamespaces: [{namespaces}]}}"
        configuration = Configuration(tmp_path, str(lab.router.path), kubernetes=spec)
        configuration.remove("namespace.yaml")
        client, server = lab.add_pod("client"), lab.add_pod("server")
        for name, pod in (("client", client), ("server", server)):
            (Path(namespaces) / pod.path.name).symlink_to(pod.path)
            site.pod(name, pod.ipv4, pod.ipv6)
        yield Node(client, server, configuration)
        done = trireme("cleanup", "--runtime-directory", str(configuration.runtime))
        assert done.returncode == 0, done.stderr


def test_an_agent_by_the_real_api_and_through_its_absence(site: Site, relay: Relay, node: Node) -> None:
    client, server = node.client, node.server
    site.policy("only", "client")
    pod = f"pod={site.name}/server"
    with Server(server, PORT):
        with AgentProcess(node.configuration) as agent:
            assert ask(client, server.ipv4, PORT) == b"hello"
            with agent.after("policy in force", pod):
                site.call("DELETE", f"{site.policies}/only")
            with agent.after("policy in force", pod):
                site.policy("only", "guest")
            assert refused(client, server.ipv4, PORT)
            with agent.after("identity issued", f"pod={site.name}/client"):
                site.label(f"{site.pods}/client", app="guest")
            assert ask(client, server.ipv6, PORT) == b"hello"
            relay.go_away()
            agent.wait_for("watch interrupted", "resource=networkpolicies")
            assert ask(client, server.ipv4, PORT) == b"hello"
            agent.end(signal.SIGKILL)
        with AgentProcess(node.configuration) as agent:
            agent.wait_for("going on with its last known state")
            assert ask(client, server.ipv4, PORT) == b"hello"
            site.call("DELETE", f"{site.policies}/only")
            with agent.after("policy in force", pod):
                relay.come_back()
            with agent.after("policy in force", pod):
                site.policy("only", "nobody")
            assert refused(client, server.ipv4, PORT)

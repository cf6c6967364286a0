"""The whole agent as on a Kubernetes node: a stand-in for the API server, a real kernel, and real traffic.

::

    shop/client (app=client) ── router ── shop/server (app=server, TCP 80)

The runtime's folder of namespaces is the test's own. With a real API server: tests/cluster.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.kubernetes.cni import SOCKET
from agent.lab import Lab, LabPod
from tests.harness.agent_process import AgentProcess, Configuration, trireme
from tests.harness.api_stand_in import ApiStandIn, Collection
from tests.harness.cni import build, finish, run, stanza, start
from tests.harness.traffic import Server, ask, refused

pytestmark = pytest.mark.kernel

PORT = 80
RESOURCES = ("namespaces", "networkpolicies", "pods")
KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
clusters: [{{name: test, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: test, user: {{}}}}]
"""


@dataclass
class Site:
    lab: Lab
    api: ApiStandIn
    configuration: Configuration
    client: LabPod
    server: LabPod
    namespaces: Path
    plugin: Path

    def pin(self, pod: LabPod) -> Path:
        """Do what a runtime does that pins a pod's namespace: from now on it can be found."""
        path = self.namespaces / pod.path.name
        path.symlink_to(pod.path)
        return path

    def pod(self, name: str, pod: LabPod, *, phase: str = "Running", app: str | None = None) -> None:
        addresses = [{"ip": str(pod.ipv4)}, {"ip": str(pod.ipv6)}] if phase == "Running" else []
        labels = {"labels": {"app": app or name}}
        self.api.put("pods", name, namespace="shop", metadata=labels, status={"phase": phase, "podIPs": addresses})

    def policy(self, allowed: str) -> None:
        """Let only pods with ``app=<allowed>`` reach the server."""
        peer = {"podSelector": {"matchLabels": {"app": allowed}}}
        spec = {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": [peer]}]}
        self.api.put("networkpolicies", "only", namespace="shop", spec=spec)

    def chained(self, command: str, name: str, pod: LabPod) -> tuple[int, dict[str, str]]:
        """Run the CNI plugin as the runtime does for ``shop/<name>``, after the other plugins."""
        return finish(self.begin(command, name, pod))

    def begin(self, command: str, name: str, pod: LabPod) -> subprocess.Popen[bytes]:
        """Start it, and do not wait."""
        result = {"cniVersion": "1.0.0", "ips": [{"address": f"{pod.ipv4}/24"}, {"address": f"{pod.ipv6}/64"}]}
        environment = {
            "CNI_NETNS": f"/var/run/netns/{pod.path.name}",
            "CNI_CONTAINERID": f"container-{name}",
            "CNI_ARGS": f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}",
        }
        said = stanza(self.configuration.runtime / SOCKET, prevResult=result)
        return start(self.plugin, command, said, environment)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    namespaces = tmp_path / "netns"
    namespaces.mkdir()
    with Lab("cluster") as lab, ApiStandIn(*RESOURCES) as api:
        (tmp_path / "kube.yaml").write_text(KUBECONFIG.format(port=api.port))
        kubernetes = f"{{node: node-1, kubeconfig: ../kube.yaml, networkNamespaces: [{namespaces}]}}"
        configuration = Configuration(tmp_path, str(lab.router.path), kubernetes=kubernetes)
        configuration.remove("namespace.yaml")
        api.put("namespaces", "shop")
        yield Site(
            lab,
            api,
            configuration,
            lab.add_pod("client"),
            lab.add_pod("server"),
            namespaces,
            build(tmp_path / "plugin"),
        )
        done = trireme("cleanup", "--runtime-directory", str(configuration.runtime))
        assert done.returncode == 0, done.stderr


@pytest.fixture
def application(site: Site) -> Iterator[Server]:
    with Server(site.server, PORT) as server:
        yield server


@pytest.fixture
def running(site: Site, application: Server) -> Site:
    """Both pods run, as they would where an agent is installed last."""
    for name, pod in (("client", site.client), ("server", site.server)):
        site.pin(pod)
        site.pod(name, pod)
    return site


def test_pods_that_were_there_are_found_and_policy_comes_and_changes_by_the_api(running: Site) -> None:
    site = running
    site.policy("client")
    with AgentProcess(site.configuration) as agent:
        assert "pods=2" in agent.wait_for("msg=ready")
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        assert ask(site.client, site.server.ipv6, PORT) == b"hello"
        with agent.after("policy in force", "pod=shop/server"):
            site.policy("nobody")
        assert refused(site.client, site.server.ipv4, PORT)
        with agent.after("identity issued", "pod=shop/client"):
            site.pod("client", site.client, app="guest")
        with agent.after("policy in force", "pod=shop/server"):
            site.policy("guest")
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        samples = agent.scrape()
        assert samples["trireme_watch_events_total{resource=networkpolicies}"] == 2
        assert samples["trireme_policy_apply_duration_seconds_count"] >= 3
        assert samples["trireme_local_endpoints"] == 2
        assert agent.end(signal.SIGTERM) == 0


def test_nodes_are_watched_once_a_policy_is_about_them(running: Site) -> None:
    site = running
    site.api.collections |= {"clusternetworkpolicies": Collection(), "nodes": Collection()}
    addresses = [{"type": "InternalIP", "address": str(site.server.ipv4)}]
    site.api.put("nodes", "node-2", metadata={"labels": {"zone": "b"}}, status={"addresses": addresses})
    with AgentProcess(site.configuration) as agent:
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        assert site.api.count("nodes", watch=False) == 0
        deny = {"action": "Deny", "to": [{"nodes": {"matchLabels": {"zone": "b"}}}]}
        spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [deny]}
        site.api.put("clusternetworkpolicies", "not-to-nodes", spec=spec)
        site.api.wait_for(lambda api: api.watchers("nodes"))
        agent.wait_for("policy in force", "pod=shop/client", "epoch=3")
        assert refused(site.client, site.server.ipv4, PORT)
        assert ask(site.client, site.server.ipv6, PORT) == b"hello"


def test_the_api_server_s_absence_changes_nothing_also_not_over_a_restart(running: Site) -> None:
    site = running
    site.policy("client")
    with AgentProcess(site.configuration) as agent:
        site.api.__exit__(None, None, None)
        agent.wait_for("watch interrupted", "resource=networkpolicies", "Connection refused")
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        agent.end(signal.SIGKILL)
    with AgentProcess(site.configuration) as agent:
        agent.wait_for("the API server does not answer; going on with its last known state")
        assert "pods=2" in agent.wait_for("msg=ready")
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        with ApiStandIn(*RESOURCES, port=site.api.port) as again:
            again.version = site.api.version
            for name, collection in site.api.collections.items():
                again.collections[name].objects = collection.objects
            site.api = again
            with agent.after("policy in force", "pod=shop/server"):
                site.policy("nobody")
            assert refused(site.client, site.server.ipv4, PORT)


def test_a_pod_is_under_its_policy_before_it_starts_and_let_go_when_it_ends(site: Site, application: Server) -> None:
    site.pin(site.server)
    site.pod("server", site.server)
    site.policy("nobody")
    with AgentProcess(site.configuration) as agent:
        site.pin(site.client)
        # The kubelet is ahead of the watch: the plugin waits until the API has told of the pod.
        plugin = site.begin("ADD", "client", site.client)
        with agent.after("pod enforced", "pod=shop/client"):
            site.pod("client", site.client, phase="Pending")
        code, result = finish(plugin)
        assert (code, result["cniVersion"]) == (0, "1.0.0")
        assert refused(site.client, site.server.ipv4, PORT)
        with agent.after("policy in force", "pod=shop/server"):
            site.policy("client")
        assert ask(site.client, site.server.ipv4, PORT) == b"hello"
        with agent.after("pod let go", "pod=shop/client"):
            assert site.chained("DEL", "client", site.client)[0] == 0


def test_a_pod_that_the_api_does_not_know_does_not_start(site: Site) -> None:
    with AgentProcess(site.configuration):
        site.pin(site.client)
        said = stanza(site.configuration.runtime / SOCKET, timeout_s=1, prevResult={"cniVersion": "1.0.0", "ips": []})
        environment = {
            "CNI_NETNS": f"/var/run/netns/{site.client.path.name}",
            "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=stranger;K8S_POD_UID=u",
        }
        code, error = run(site.plugin, "ADD", said, environment)
        assert code == 1
        assert error["msg"] == "trireme: pod shop/stranger: not known from the API server yet"

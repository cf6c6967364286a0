"""Certificates and announcements against a real API server, with the rights that the manifests give and no others."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.enroll import create_authority, generate_key, request_pem, utc
from agent.issuing import Issuer
from agent.kubernetes.api import Access, ApiServer
from agent.kubernetes.calls import ApiRefused, call
from agent.kubernetes.csr import LIFETIME_S, REQUESTS, NodeKeys, load_from_cluster, signing_request
from agent.kubernetes.leases import Announcer, Installation, finish
from agent.lab import Lab
from policy.objects import Pod
from tests.cluster import images, pki
from tests.cluster.cluster import Cluster
from tests.cluster.layout import API_PORT
from tests.harness.agent_process import AgentProcess, Configuration, trireme
from trireme_py.identities import Identities
from trireme_py.model import Instant

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

ROOT = Path(__file__).parents[2]
TRUST_DOMAIN = "cluster.local"
AGENT, SIGNER = "trireme-agent", "trireme-signer"
CERTIFICATES = "certificates.k8s.io"
RIGHTS: dict[str, list[dict[str, list[str]]]] = {
    AGENT: [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]},
        {
            "apiGroups": ["networking.k8s.io", "policy.networking.k8s.io"],
            "resources": ["networkpolicies", "clusternetworkpolicies"],
            "verbs": ["list", "watch"],
        },
        {"apiGroups": [CERTIFICATES], "resources": ["certificatesigningrequests"], "verbs": ["create", "get"]},
    ],
    SIGNER: [
        {"apiGroups": [CERTIFICATES], "resources": ["certificatesigningrequests"], "verbs": ["list", "watch"]},
        {
            "apiGroups": [CERTIFICATES],
            "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"],
            "verbs": ["update"],
        },
        {
            "apiGroups": [CERTIFICATES],
            "resources": ["signers"],
            "resourceNames": ["trireme.io/node"],
            "verbs": ["approve", "sign"],
        },
    ],
}


@dataclass
class Site:
    """A namespace with the two service accounts, a pod of the agents' on each node, and an authority."""

    cluster: Cluster
    namespace: str
    folder: Path
    nodes: tuple[str, ...]

    def token(self, account: str, *bound: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, "create", "token", account, *bound).strip()

    def api(self, token: str) -> ApiServer:
        return ApiServer(Access("127.0.0.1", API_PORT, authority=pki.certificate_file("ca"), token=token))

    def token_on(self, node: str) -> str:
        """The token that the kubelet gives to the agent's pod on ``node``."""
        pod = json.loads(self.cluster.kubectl("-n", self.namespace, "get", "pod", f"agent-{node}", "-o", "json"))
        bound = ("--bound-object-kind=Pod", f"--bound-object-name=agent-{node}")
        return self.token(AGENT, *bound, f"--bound-object-uid={pod['metadata']['uid']}")

    def on(self, node: str) -> ApiServer:
        """The API server as the agent on ``node`` reaches it."""
        return self.api(self.token_on(node))

    def kubeconfig(self, name: str, token: str, port: int = API_PORT) -> Path:
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(pki.certificate_file("ca"))}
        config = {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def directory(self, node: str) -> Path:
        directory = self.folder / node
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def keys(self, node: str) -> NodeKeys:
        """What the agent on ``node`` has at its start."""
        stop = threading.Event()
        return load_from_cluster(
            self.on(node), node, TRUST_DOMAIN, self.folder / "ca/ca.crt", self.directory(node), stop
        )

    def ask(self, api: ApiServer, node: str) -> str:
        """Ask for a certificate by hand; return the request's name."""
        body = signing_request(node, request_pem(generate_key(), node))
        name = call(api, "POST", REQUESTS, dict[str, Any], body)["metadata"]["name"]
        assert isinstance(name, str)
        return name

    def answer(self, name: str) -> dict[str, Any]:
        """Wait for the signer's answer; return the request's status."""
        wait = ("wait", f"csr/{name}", "--timeout=60s")
        self.cluster.kubectl(*wait, "--for=jsonpath={.status.conditions}")
        if "Approved" in self.cluster.kubectl("get", "csr", name, "-o", "jsonpath={.status.conditions[*].type}"):
            self.cluster.kubectl(*wait, "--for=jsonpath={.status.certificate}")
        status = json.loads(self.cluster.kubectl("get", "csr", name, "-o", "json"))["status"]
        assert isinstance(status, dict)
        return status


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {one["type"]: one["reason"] for one in status.get("conditions", ())}


@pytest.fixture(scope="module")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    name = f"test-keys-{secrets.token_hex(4)}"
    nodes = tuple(node.name for node in cluster.nodes)
    folder = tmp_path_factory.mktemp("keys")
    create_authority(folder / "ca", TRUST_DOMAIN, utc(int(time.time()) - 60), days=10)
    leases = {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["create", "get", "list", "patch"],
    }
    objects: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}]
    for account, rules in RIGHTS.items():
        bound = {"kind": "ServiceAccount", "name": account, "namespace": name}
        for kind, scope, granted in (("ClusterRole", {}, rules), ("Role", {"namespace": name}, [leases])):
            metadata = {"name": f"{name}-{account}", **scope}
            reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": metadata["name"]}
            group = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": metadata}
            if kind == "ClusterRole" or account == AGENT:
                objects += [
                    {**group, "kind": kind, "rules": granted},
                    {**group, "kind": f"{kind}Binding", "roleRef": reference, "subjects": [bound]},
                ]
        objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": name}})
    for node in nodes:
        container = {"name": "main", "image": images.AGNHOST, "imagePullPolicy": "Never", "args": ["pause"]}
        spec = {"nodeName": node, "serviceAccountName": AGENT, "containers": [container]}
        metadata = {"name": f"agent-{node}", "namespace": name}
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    cluster.apply(yaml.safe_dump_all(objects))
    try:
        cluster.kubectl("-n", name, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")
        yield Site(cluster, name, folder, nodes)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false")
        for kind in ("clusterrole", "clusterrolebinding"):
            cluster.kubectl("delete", kind, *(f"{name}-{account}" for account in RIGHTS))


@pytest.fixture(scope="module")
def signer(site: Site) -> Iterator[Site]:
    """The site with two signers at work, as their own service account."""
    kubeconfig = site.kubeconfig("signer", site.token(SIGNER))
    command = [sys.executable, "-m", "agent.cli", "signer", "--ca", str(site.folder / "ca")]
    command += ["--agent", f"{site.namespace}/{AGENT}", "--kubeconfig", str(kubeconfig)]
    with (site.folder / "signer.log").open("wb") as log:
        signers = [subprocess.Popen(command, cwd=ROOT, stderr=log) for _ in range(2)]
        yield site
        for one in signers:
            one.terminate()
        assert [one.wait(30) for one in signers] == [0, 0], (site.folder / "signer.log").read_text()
    assert "Traceback" not in (site.folder / "signer.log").read_text()


# -- Certificates -----------------------------------------------------------------------------------------------------


def test_each_node_gets_its_certificate_and_they_believe_each_other(signer: Site) -> None:
    keys = [signer.keys(node) for node in signer.nodes]
    for one, other in (keys, keys[::-1]):
        assert abs(one.not_after - time.time() - LIFETIME_S) < 600
        issuer = Issuer(one.authenticator, 3600, os.urandom, time.time)
        identity = issuer.issue(Pod(namespace="shop", name="web-1")).identity
        Identities(other.authenticator).resolve_untrusted(Instant(0, time.time()), 1, identity.id, identity.assertion)


def test_the_certificate_is_one_for_every_tool(signer: Site) -> None:
    name = signer.ask(signer.on(signer.nodes[0]), signer.nodes[0])
    status = signer.answer(name)
    assert conditions(status) == {"Approved": "NodeAgent"}
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-subject", "-ext", "subjectAltName"],
        input=base64.b64decode(status["certificate"]),
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert f"CN = {signer.nodes[0]}" in shown
    assert f"URI:spiffe://{TRUST_DOMAIN}/node/{signer.nodes[0]}" in shown


def test_a_node_cannot_ask_for_another(signer: Site) -> None:
    name = signer.ask(signer.on(signer.nodes[0]), signer.nodes[1])
    status = signer.answer(name)
    assert conditions(status) == {"Denied": "OtherNode"}
    assert "certificate" not in status


def test_a_token_that_is_bound_to_no_pod(signer: Site) -> None:
    name = signer.ask(signer.api(signer.token(AGENT)), signer.nodes[0])
    assert conditions(signer.answer(name)) == {"Denied": "NoNode"}


def test_a_token_that_is_bound_to_the_node_alone(signer: Site) -> None:
    node = json.loads(signer.cluster.kubectl("get", "node", signer.nodes[0], "-o", "json"))
    bound = ("--bound-object-kind=Node", f"--bound-object-name={signer.nodes[0]}")
    token = signer.token(AGENT, *bound, f"--bound-object-uid={node['metadata']['uid']}")
    assert conditions(signer.answer(signer.ask(signer.api(token), signer.nodes[0]))) == {"Denied": "NoNode"}


def test_an_administrator_gets_none(signer: Site) -> None:
    pem = base64.b64encode(request_pem(generate_key(), signer.nodes[0])).decode()
    body = signing_request(signer.nodes[0], b"")
    body["spec"] = {**body["spec"], "request": pem, "usages": ["digital signature"]}  # type: ignore[dict-item]
    name = signer.cluster.kubectl("create", "-f", "-", "-o", "name", input=json.dumps(body)).strip().partition("/")[2]
    assert conditions(signer.answer(name)) == {"Denied": "NotTheAgent"}


def test_the_agent_may_neither_approve_nor_sign(signer: Site) -> None:
    api = signer.on(signer.nodes[0])
    name = signer.ask(api, signer.nodes[1])
    raw = call(api, "GET", f"{REQUESTS}/{name}", dict[str, Any])
    for subresource in ("approval", "status"):
        with pytest.raises(ApiRefused, match="403"):
            call(api, "PUT", f"{REQUESTS}/{name}/{subresource}", dict[str, Any], raw)


def test_an_agent_gets_its_certificate_and_needs_nobody_when_it_is_started_again(signer: Site, tmp_path: Path) -> None:
    """The agent itself, beside the cluster's nodes: it sees the pods of one, and none of their namespaces."""
    node = signer.nodes[0]
    token = signer.token_on(node)

    def agent(lab: Lab, port: int) -> AgentProcess:
        kubeconfig = signer.kubeconfig("agent", token, port)
        kubernetes = f"{{node: {node}, kubeconfig: {kubeconfig}, networkNamespaces: [{tmp_path}]}}"
        authority = f"{{authority: {signer.folder / 'ca/ca.crt'}}}"
        fields = {"trustDomain": TRUST_DOMAIN, "mode": "pki", "credentials": authority, "kubernetes": kubernetes}
        root = tmp_path / str(port)
        root.mkdir()
        configuration = Configuration(
            root, str(lab.router.path), **fields, runtimeDirectory=str(tmp_path / "run"), metrics="'off'"
        )
        configuration.remove("namespace.yaml")
        return AgentProcess(configuration)

    with Lab("keys") as lab:
        with agent(lab, API_PORT) as first:
            first.wait_for("asked for a certificate", f"node={node}")
            key = first.wait_for("certificate in use").partition("key=")[2].split()[0]
            shown = trireme("status", "--runtime-directory", str(tmp_path / "run")).stdout
            assert "pki of cluster.local" in shown
            assert "certificate valid for 7 d" in shown
        with agent(lab, 9) as second:  # discard: nobody listens
            assert f"key={key}" in second.wait_for("certificate in use")
            assert not any("asked for a certificate" in line for line in second.lines)


# -- Announcements ----------------------------------------------------------------------------------------------------


def test_the_installation_ends_when_every_node_has_announced(site: Site) -> None:
    one, other = site.nodes
    installations = {}
    for node in site.nodes:
        installations[node] = Installation(site.on(node), node, site.namespace, site.directory(node))
        installations[node].begin(threading.Event())
        assert installations[node].lasts
    Announcer(site.on(one), one, site.namespace).step()
    installations[one].step()
    assert installations[one].missing == f"1: {other}"
    Announcer(site.on(other), other, site.namespace).step()
    for node in site.nodes:
        assert installations[node].step() is None
        assert not installations[node].lasts

    kubectl: Callable[..., str] = site.cluster.kubectl
    leases = json.loads(kubectl("-n", site.namespace, "get", "leases", "-o", "json"))["items"]
    named = {lease["metadata"]["name"]: lease for lease in leases}
    assert set(named) == {"trireme-installation", *(f"trireme-agent-{node}" for node in site.nodes)}
    uids = {node: json.loads(kubectl("get", "node", node, "-o", "json"))["metadata"]["uid"] for node in site.nodes}
    for node in site.nodes:
        (owner,) = named[f"trireme-agent-{node}"]["metadata"]["ownerReferences"]
        assert owner["uid"] == uids[node]
    before = named[f"trireme-agent-{one}"]["spec"]["renewTime"]
    Announcer(site.on(one), one, site.namespace).step()
    after = json.loads(kubectl("-n", site.namespace, "get", "lease", f"trireme-agent-{one}", "-o", "json"))
    assert after["spec"]["renewTime"] > before
    assert not finish(site.on(one), site.namespace)

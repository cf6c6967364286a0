"""The test cluster is a real one: what end-to-end tests build on works before they are blamed."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster import images
from tests.cluster.cluster import Cluster, Node
from tests.cluster.installation import wait_until
from tests.cluster.layout import BIN
from tests.cluster.machine import ClusterError

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

WAIT = "--timeout=280s"
"""How long kubectl waits for what comes at last: a slow machine is not a broken one."""
HOST_FOLDERS = {"netns": "/run/netns", "cni": "/etc/cni/net.d"}


def pod(name: str, node: Node, command: list[str], **more: object) -> dict[str, object]:
    """A pod of one agnhost container, on a node of our choice."""
    container = {"name": "main", "image": images.AGNHOST, "imagePullPolicy": "Never", "args": command}
    spec = {"nodeName": node.name, "terminationGracePeriodSeconds": 0, "containers": [container | more]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for this run: a server on each node, ``pod0`` and ``pod1``, and a Service for the second."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "pod1"},
        "spec": {"selector": {"app": "pod1"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    servers = [pod(f"pod{i}", node, ["netexec", "--http-port=8080"]) for i, node in enumerate(cluster.nodes)]
    cluster.kubectl("-n", name, "apply", "-f", "-", input=yaml.safe_dump_all([*servers, service]))
    cluster.kubectl("-n", name, "wait", "--for=condition=Ready", "pod", "--all", WAIT)
    yield name
    cluster.kubectl("delete", "namespace", name)


def connect(cluster: Cluster, namespace: str, target: str) -> None:
    """Connect from the pod on the first node, or raise what agnhost said."""
    cluster.kubectl("-n", namespace, "exec", "pod0", "--", "/agnhost", "connect", "--timeout=60s", target)


def test_both_nodes_are_ready_and_have_both_families(cluster: Cluster) -> None:
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    assert {each["metadata"]["name"] for each in nodes} == {node.name for node in cluster.nodes}
    for node, each in zip(cluster.nodes, sorted(nodes, key=lambda each: each["metadata"]["name"]), strict=True):
        conditions = {one["type"]: one["status"] for one in each["status"]["conditions"]}
        assert conditions["Ready"] == "True"
        addresses = [one["address"] for one in each["status"]["addresses"] if one["type"] == "InternalIP"]
        assert addresses == [str(address) for address in node.addresses]


def test_a_pod_reaches_a_pod_of_the_other_node(cluster: Cluster, namespace: str) -> None:
    found = json.loads(cluster.kubectl("-n", namespace, "get", "pod", "pod1", "-o", "json"))
    four, six = (one["ip"] for one in found["status"]["podIPs"])
    connect(cluster, namespace, f"{four}:8080")
    connect(cluster, namespace, f"[{six}]:8080")


def test_a_service_is_found_by_name(cluster: Cluster, namespace: str) -> None:

    def found() -> bool:
        connect(cluster, namespace, f"pod1.{namespace}.svc.cluster.local:80")
        return True

    wait_until(found, "kube-proxy knows of the pod behind the Service")
    with pytest.raises(ClusterError, match="DNS"):
        connect(cluster, namespace, f"nobody.{namespace}.svc.cluster.local:80")


def ask_from_node(cluster: Cluster, address: str) -> str:
    """Ask a server pod for its name from the first node itself, as the kubelet's probes do."""
    script = f"exec 3<>/dev/tcp/{address}/8080; printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    return cluster.nodes[0].run("bash", "-c", script)


def address_of(cluster: Cluster, namespace: str, name: str) -> str:
    return cluster.kubectl("-n", namespace, "get", "pod", name, "-o", "jsonpath={.status.podIP}")


def test_a_node_reaches_its_own_pods(cluster: Cluster, namespace: str) -> None:
    assert ask_from_node(cluster, address_of(cluster, namespace, "pod0")).endswith("pod0")


def test_exec_and_logs(cluster: Cluster, namespace: str) -> None:
    assert cluster.kubectl("-n", namespace, "exec", "pod1", "--", "cat", "/etc/hostname") == "pod1\n"
    assert cluster.kubectl("-n", namespace, "exec", "-i", "pod0", "--", "cat", input="a line\n") == "a line\n"
    assert "Started HTTP server on port 8080" in cluster.kubectl("-n", namespace, "logs", "pod0")


def test_a_pod_sees_namespaces_that_come_later_and_the_cni_folder_of_its_node(cluster: Cluster, namespace: str) -> None:
    """What a node agent needs: /run/netns as it becomes, and a CNI folder of the node's own."""
    volumes = [{"name": name, "hostPath": {"path": path}} for name, path in HOST_FOLDERS.items()]
    mounts: list[dict[str, object]] = [{"name": name, "mountPath": path} for name, path in HOST_FOLDERS.items()]
    mounts[0]["mountPropagation"] = "HostToContainer"
    watcher = pod("watcher", cluster.nodes[0], ["pause"], volumeMounts=mounts)
    watcher["spec"] |= {"volumes": volumes}  # type: ignore[operator]
    run = ("-n", namespace, "exec", "watcher", "--", "sh", "-c")
    cluster.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(watcher))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/watcher", WAIT)
    before = set(cluster.kubectl(*run, "ls /run/netns").split())
    later = pod("later", cluster.nodes[0], ["pause"])
    cluster.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(later))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/later", WAIT)
    (new,) = set(cluster.kubectl(*run, "ls /run/netns").split()) - before
    assert "eth0" in cluster.nodes[0].run("nsenter", f"--net=/run/netns/{new}", "ip", "-brief", "link")
    assert "tmpfs" not in cluster.kubectl(*run, f"grep /run/netns/{new} /proc/mounts")
    cluster.kubectl(*run, ">/etc/cni/net.d/note")
    try:
        assert "note" in cluster.nodes[0].run("ls", "/etc/cni/net.d")
        assert "note" not in cluster.nodes[1].run("ls", "/etc/cni/net.d")
        assert not Path("/etc/cni/net.d/note").exists()
    finally:
        cluster.kubectl(*run, "rm /etc/cni/net.d/note")


def test_an_image_that_was_loaded_runs(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    name = f"trireme.test/loaded:{secrets.token_hex(4)}"
    archive = tmp_path / "image.tar"
    images.write(images.Image(name, {"pause": (BIN / "kubelet").resolve().parent / "pause"}, ["/pause"]), archive)
    cluster.load_image(archive)
    pods = []
    for i, node in enumerate(cluster.nodes):
        one = pod(f"loaded{i}", node, [], image=name, imagePullPolicy=("Never", "IfNotPresent")[i])
        pods.append(one)
    cluster.kubectl("-n", namespace, "apply", "-f", "-", input=yaml.safe_dump_all(pods))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/loaded0", "pod/loaded1", WAIT)


def test_no_process_is_left_behind(cluster: Cluster, namespace: str) -> None:
    """Each container's shim is orphaned when it starts; a node must not fill with the dead."""
    assert namespace

    def dead(node: Node) -> set[str]:
        """Process numbers of those that have ended and nobody has asked for yet."""
        states = [line.split() for line in node.run("ps", "--no-headers", "-eo", "pid,ppid,stat,comm").splitlines()]
        assert any(command.startswith("containerd-shim") for _, _, _, command, *_ in states)
        return {state[0] for state in states if state[1] == "1" and state[2].startswith("Z")}

    for node in cluster.nodes:
        found = dead(node)
        wait_until(lambda node=node, found=found: not found & dead(node), f"{node.name} asks for its dead")  # type: ignore[misc]


def test_an_approved_request_is_signed(cluster: Cluster) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    name = f"test-{secrets.token_hex(4)}"
    content = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"],
        },
    }
    cluster.apply(json.dumps(content))
    cluster.kubectl("certificate", "approve", name)
    signed = ("wait", "--for=jsonpath={.status.certificate}", f"csr/{name}", WAIT)
    cluster.kubectl(*signed)
    text = cluster.kubectl("get", "csr", name, "-o", "jsonpath={.status.certificate}")
    assert x509.load_pem_x509_certificate(base64.b64decode(text)).subject == subject
    cluster.kubectl("delete", "csr", name)


def test_requests_are_in_the_audit_log(cluster: Cluster) -> None:
    name = f"test-{secrets.token_hex(4)}"
    with pytest.raises(ClusterError, match="NotFound"):
        cluster.kubectl(
            "get", "configmap", name, "--as=system:serviceaccount:default:default", "--as-group=system:masters"
        )

    def answered() -> list[dict[str, Any]]:
        text = cluster.audit_log.read_text(encoding="utf-8")
        lines = (json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if name in line)
        return [line for line in lines if line["stage"] == "ResponseComplete"]

    wait_until(answered, "the answer is in the log, which comes after it")
    (found,) = answered()
    assert (found["verb"], found["objectRef"]["resource"], found["level"]) == ("get", "configmaps", "Metadata")
    assert found["impersonatedUser"]["username"] == "system:serviceaccount:default:default"


def test_the_api_server_stops_and_comes_back(cluster: Cluster, namespace: str) -> None:
    address = address_of(cluster, namespace, "pod1")
    cluster.stop_apiserver()
    try:
        with pytest.raises(ClusterError):
            cluster.kubectl("get", "nodes")
        assert ask_from_node(cluster, address).endswith("pod1")
    finally:
        cluster.start_apiserver()
    connect(cluster, namespace, f"{address}:8080")

"""``make cluster``: build what is missing, start the cluster, say how to use it. A cluster that runs is kept."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import build, control, machine, node, pki
from tests.cluster.cluster import Cluster, Node
from tests.cluster.layout import ADMIN_KUBECONFIG, BIN, CACHE, LOGS, MACHINES, NODES, STATE, Machine
from tests.cluster.machine import ClusterError

_DNS = Path(__file__).parent / "manifests" / "coredns.yaml"
_READY_S = 300
_POLL_S = 0.05
_HIDDEN = ("/etc", "/opt", "/run", "/var/lib", "/var/log")
"""Folders that a machine has for itself: a cache there would not be seen from inside."""


def up() -> Cluster:
    """Start a cluster, or take the one that runs; it is ready when this returns.

    Raises:
        ClusterError: with what is missing, or with the log to read.
    """
    machine.need_root()
    if any(CACHE.is_relative_to(folder) for folder in _HIDDEN):
        raise ClusterError(f"TRIREME_CLUSTER_CACHE={CACHE} lies in a folder that the nodes have for themselves")
    with build.locked():
        cluster = Cluster()
        if machine.running():
            if not ADMIN_KUBECONFIG.exists():
                raise ClusterError(f"a cluster runs here that is not of {CACHE}; make cluster-down ends it")
            try:
                cluster.wait_ready(_READY_S)
            except ClusterError as error:
                raise ClusterError(
                    f"the cluster that is here does not work: {error}\nmake cluster-down ends it"
                ) from error
            return cluster
        parts = build.build()
        shutil.rmtree(STATE, ignore_errors=True)
        try:
            _start(parts, cluster)
        except BaseException:
            print(f"cluster: it did not start; its logs are in {LOGS}", file=sys.stderr)
            machine.remove()
            raise
        return cluster


def _start(parts: build.Built, cluster: Cluster) -> None:
    for folder in (BIN, LOGS):
        folder.mkdir(parents=True)
    for program in parts.links():
        (BIN / program.name).symlink_to(program)
    pki.make()
    for each in NODES:
        node.prepare(each, parts.cni_plugins)
    for each in MACHINES:
        machine.make(each)
    machine.connect()
    control.start_etcd()
    control.start_api_server()
    control.start_relay()
    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(_start_runtime, each, parts.images) for each in NODES]
        cluster.wait_for_api(_READY_S)
        control.start_controllers()
        nodes = [node.node_object(each) for each in NODES]
        cluster.kubectl("create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": nodes}))
        binding = ("create", "clusterrolebinding", "kube-proxy", "--clusterrole=system:node-proxier")
        cluster.kubectl(*binding, "--user=system:kube-proxy")
        for load in loads:
            load.result()
    for each in NODES:
        node.start_kubelet(each)
        node.start_proxy(each)
    cluster.kubectl("create", "-f", str(_DNS))
    cluster.wait_ready(_READY_S)


def _start_runtime(each: Machine, images: Path) -> None:
    """Start a node's containerd and give it the images; its socket is there as soon as it can be asked."""
    node.start_containerd(each)
    runtime = Node(each)
    deadline = time.monotonic() + _READY_S
    while not Path(f"/proc/{runtime.pid}/root{node.CONTAINERD_SOCKET}").exists():
        if time.monotonic() > deadline or not machine.alive(each, "containerd"):
            raise ClusterError(f"containerd of {each.name} did not start; see {LOGS}")
        time.sleep(_POLL_S)
    for archive in sorted(images.iterdir()):
        runtime.load_image(archive)


def main() -> None:
    began = time.monotonic()
    try:
        up()
    except ClusterError as error:
        sys.exit(f"cluster: {error}")
    build.say(f"ready after {time.monotonic() - began:.0f} s; two nodes, {NODES[0].name} and {NODES[1].name}")
    print(f"""
    export KUBECONFIG={ADMIN_KUBECONFIG} PATH={BIN}:$PATH
    kubectl get pods -A -o wide

logs:           {LOGS}
inside a node:  {sys.executable} -m tests.cluster.enter {NODES[0].name} bash
the end:        make cluster-down""")


if __name__ == "__main__":
    main()

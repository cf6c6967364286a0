"""From the API server's answer to the first refused connect. As root, with a cluster: python bench/bench_cluster.py

The API server, the kernel and the agent are real; the node is made up, with two pods in a lab. 200 policies are there,
and 1,000 pods elsewhere. Each try changes the policy that lets the client in, and connects without a pause from the
moment of the API server's answer until a SYN is not answered; what is counted is when that SYN was sent.
"""

from __future__ import annotations

import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent.lab import Lab, LabPod
from tests.cluster.cluster import Cluster
from tests.cluster.made_up import Site
from tests.harness.agent_process import AgentProcess, Configuration, trireme
from tests.harness.traffic import Server, ask

POLICIES, PODS_ELSEWHERE, TRIES = 200, 1000, 100
PORT = 80
SILENCE_S = 0.9
"""A connect takes a few milliseconds; the kernel sends the SYN again after a second."""


def connects(client: LabPod, server: LabPod) -> bool:
    connection = client.run(socket.socket)
    with connection:
        connection.settimeout(SILENCE_S)
        try:
            connection.connect((str(server.ipv4), PORT))
        except TimeoutError:
            return False
    return True


def prepare(site: Site, client: LabPod, server: LabPod) -> None:
    for name, pod in (("client", client), ("server", server)):
        site.pod(name, pod.ipv4, pod.ipv6)
    for number in range(POLICIES):
        site.policy(f"p{number}", "client", app=f"other-{number}" if number else "server")
    for number in range(PODS_ELSEWHERE):
        # Bound to no node, and no scheduler looks for one: no agent is told of them.
        spec = {"containers": [{"name": "c", "image": "none"}], "schedulerName": "none"}
        site.create(site.pods, f"elsewhere-{number}", metadata={"labels": {"app": "client"}}, spec=spec)


def measure(site: Site, client: LabPod, server: LabPod) -> list[float]:
    """Return milliseconds, one for each try."""
    found = []
    for _ in range(TRIES):
        site.change_policy("p0", "nobody")
        answered_s = time.perf_counter()
        while True:
            sent_s = time.perf_counter()
            if not connects(client, server):
                break
        found.append((sent_s - answered_s) * 1000)
        site.change_policy("p0", "client")
        while not connects(client, server):
            pass
    return sorted(found)


def main() -> None:
    cluster = Cluster()
    site = Site(cluster.kubeconfig)
    site.open()
    try:
        with (
            Lab("bench") as lab,
            tempfile.TemporaryDirectory(prefix="trm-bench-") as folder,
            Server(lab.add_pod("server"), PORT),
        ):
            (server,) = lab.pods
            client = lab.add_pod("client")
            namespaces = Path(folder) / "netns"
            namespaces.mkdir()
            for pod in lab.pods:
                (namespaces / pod.path.name).symlink_to(pod.path)
            spec = f"{{node: {site.node}, kubeconfig: {cluster.kubeconfig}, networkNamespaces: [{namespaces}]}}"
            configuration = Configuration(Path(folder), str(lab.router.path), kubernetes=spec)
            configuration.remove("namespace.yaml")
            prepare(site, client, server)
            with AgentProcess(configuration):
                assert ask(client, server.ipv4, PORT) == b"hello"
                found = measure(site, client, server)
            trireme("cleanup", "--runtime-directory", str(configuration.runtime))
    finally:
        site.close()
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {TRIES} tries")
    print(f"p50 {statistics.median(found):.1f} ms, p99 {found[int(TRIES * 0.99) - 1]:.1f} ms, max {found[-1]:.1f} ms")


if __name__ == "__main__":
    main()

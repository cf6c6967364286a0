"""How long pods wait for the agent when they start. As root: python bench/bench_starts.py [ROUNDS]

The agent, the CNI plugin and the kernel are real, the API server is a stand-in that knows the pods already. What is
counted is how long the plugin runs, from outside, and what a start and its end cost the agent and what it runs.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent import netns
from agent.kubernetes.cni import SOCKET
from agent.lab import Lab
from tests.harness.agent_process import AgentProcess, Configuration, trireme
from tests.harness.api_stand_in import ApiStandIn
from tests.harness.cni import build, run, stanza
from tests.kernel.test_cluster_mode import KUBECONFIG, RESOURCES

TOGETHER = (1, 8)
POLICIES = 20
ROUNDS = 10


class Node:
    """A node on which nothing runs yet."""

    def __init__(self, folder: Path, api: ApiStandIn, router: str) -> None:
        self.api = api
        self.namespaces = folder / "netns"
        self.namespaces.mkdir()
        (folder / "kube.yaml").write_text(KUBECONFIG.format(port=api.port))
        spec = f"{{node: node-1, kubeconfig: ../kube.yaml, networkNamespaces: [{self.namespaces}]}}"
        self.configuration = Configuration(folder, router, kubernetes=spec)
        self.configuration.remove("namespace.yaml")
        self.plugin = build(folder / "plugin")
        api.put("namespaces", "shop")
        for number in range(POLICIES):
            rules = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 80 + number}]}]}
            api.put("networkpolicies", f"p{number}", namespace="shop", spec=rules)

    def _ask(self, command: str, name: str) -> float:
        """Run the plugin; return how long it took, in milliseconds."""
        said = stanza(self.configuration.runtime / SOCKET, prevResult={"cniVersion": "1.0.0", "ips": []})
        environment = {
            "CNI_NETNS": f"/var/run/netns/{name}",
            "CNI_CONTAINERID": name,
            "CNI_ARGS": f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}",
        }
        began_s = time.perf_counter()
        code, answer = run(self.plugin, command, said, environment)
        assert code == 0, answer
        return (time.perf_counter() - began_s) * 1000

    def start(self, count: int, series: str) -> list[float]:
        """Start ``count`` pods at once, and end them. Returns how long each waited, in milliseconds."""
        names = [f"{series}-{number}" for number in range(count)]
        for name in names:
            netns.create(self.namespaces / name)
            self.api.put("pods", name, namespace="shop", metadata={"labels": {"app": "web"}}, status={})
        with ThreadPoolExecutor(count) as pool:
            held = list(pool.map(lambda name: self._ask("ADD", name), names))
            list(pool.map(lambda name: self._ask("DEL", name), names))
        for name in names:
            self.api.delete("pods", name, namespace="shop")
            netns.remove(self.namespaces / name)
        return held


def processor_ms(pid: int) -> float:
    """Return what a process and the programs that it ran have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") * 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    found: dict[int, list[float]] = {count: [] for count in TOGETHER}
    with Lab("bench") as lab, tempfile.TemporaryDirectory(prefix="trm-bench-") as folder, ApiStandIn(*RESOURCES) as api:
        node = Node(Path(folder), api, str(lab.router.path))
        with AgentProcess(node.configuration) as agent:
            before_ms = processor_ms(agent.process.pid)
            for turn in range(rounds):
                for count in TOGETHER:
                    found[count] += node.start(count, f"p{turn}-{count}")
            used_ms = (processor_ms(agent.process.pid) - before_ms) / sum(map(len, found.values()))
        trireme("cleanup", "--runtime-directory", str(node.configuration.runtime))
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    print(f"{used_ms:.0f} ms of a processor for each start")
    for count, held in found.items():
        print(f"{count} at once: median {statistics.median(held):.0f} ms, longest {max(held):.0f} ms")


if __name__ == "__main__":
    main()

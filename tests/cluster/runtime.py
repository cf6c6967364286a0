"""A node's container runtime, asked past Kubernetes: what nobody tells while the API server is away; and kills."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from tests.cluster.cluster import Node
from tests.cluster.machine import ClusterError

MAIN: Final = "main"
"""The container of every pod of the tests."""
SANDBOX: Final = "sandbox"
"""The process that holds a pod's namespaces. Without it the kubelet makes the pod anew: another network namespace,
another address, the same Pod object."""
AGENT: Final = "agent"

_CONNECT = """\
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()
except OSError as error:
    print("not made:", error)
else:
    print("made")
"""


def _ctr(node: Node, *arguments: str) -> str:
    return node.run("ctr", "-n", "k8s.io", *arguments)


@dataclass(frozen=True, slots=True)
class Task:
    """A process that the runtime started."""

    container: str
    pid: int
    """As the node numbers it."""


@dataclass(frozen=True, slots=True)
class PodOnNode:
    """A pod as its node's runtime sees it. The names stay; what runs under them may be another thing each time."""

    node: Node
    namespace: str
    name: str

    def task(self, what: str = MAIN) -> Task | None:
        """Return what runs now as the container ``what``, or as :data:`SANDBOX`; None if nothing does."""
        kind = '"io.cri-containerd.kind"==sandbox' if what == SANDBOX else f'"io.kubernetes.container.name"=={what}'
        labels = ('"io.kubernetes.pod.namespace"==' + self.namespace, '"io.kubernetes.pod.name"==' + self.name, kind)
        wanted = _ctr(self.node, "containers", "ls", "-q", ",".join(f"labels.{label}" for label in labels)).split()
        running = [line.split() for line in _ctr(self.node, "tasks", "ls").splitlines()]
        for line in running:
            if line[0] in wanted and line[2] == "RUNNING":
                return Task(line[0], int(line[1]))
        return None

    def signal(self, name: str, what: str = MAIN) -> None:
        """Send a signal, as ``SIGKILL``, to the first process of what runs.

        Raises:
            ClusterError: if nothing does.
        """
        if (task := self.task(what)) is None:
            raise ClusterError(f"{self.node.name}: pod {self.namespace}/{self.name} has no {what} that runs")
        _ctr(self.node, "tasks", "kill", "--signal", name, task.container)

    def inside(self, *command: str) -> list[str]:
        """The command line, for :meth:`Node.run`, that runs a program of the node in the pod's network namespace.

        Raises:
            ClusterError: if the pod has none now.
        """
        if (task := self.task(SANDBOX)) is None:
            raise ClusterError(f"{self.node.name}: pod {self.namespace}/{self.name} has no sandbox that runs")
        return ["nsenter", f"--target={task.pid}", "--net", *command]

    def addresses(self) -> list[str]:
        """Return the addresses that the pod has now, IPv4 first; the API server may know others."""
        found = json.loads(self.node.run(*self.inside("ip", "-json", "address", "show", "scope", "global")))
        addresses = [one["local"] for link in found for one in link.get("addr_info", ()) if "local" in one]
        return sorted(addresses, key=lambda address: ":" in address)

    def reaches(self, address: str, port: int, patience_s: float) -> bool:
        """Let the pod connect once; whether it was connected within ``patience_s`` seconds."""
        command = self.inside("python3", "-c", _CONNECT, address, str(port), str(patience_s))
        return self.node.run(*command).startswith("made")

    def log(self, run: int) -> list[str]:
        """Return what the main container has printed in its ``run``-th run since the pod's start, from 0; as lines."""
        folder = f"/var/log/pods/{self.namespace}_{self.name}_*/{MAIN}/{run}.log"
        text = self.node.run("sh", "-c", f"cat {folder} 2>/dev/null || true")
        # Each line begins with time, stream, and F if it is a whole one; the last may just be being written.
        lines = [line.split(" ", 3) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [parts[3] for parts in lines if parts[2] == "F"]

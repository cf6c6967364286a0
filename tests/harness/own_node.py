"""Pods that know their own node: the data path and the rules of both, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from types import TracebackType

from agent.enforcement import PodEnforcement
from agent.failmode import FailMode
from agent.lab import Lab, LabNamespace, LabPod
from agent.own_node import NodeRules
from agent.ruleset import DEFAULT_QUEUE
from tests.harness.node import POD_RANGES, Node, make_identity
from trireme_py.model import Address, PolicyView

PODS = tuple(map(ip_network, POD_RANGES))


@dataclass(frozen=True, slots=True)
class NodeOfTwo:
    """A lab whose router is the node of two pods."""

    lab: Lab
    client: LabPod
    server: LabPod

    @property
    def node(self) -> LabNamespace:
        return self.lab.router


class OwnNode:
    """A node with its rules, and pods that it holds; a context manager that leaves none of them behind."""

    def __init__(self, namespace: LabNamespace) -> None:
        self.namespace = namespace
        self.node = Node(namespace)
        self._held: list[LabNamespace] = []

    def __enter__(self) -> OwnNode:
        self.node.__enter__()
        self.rules = NodeRules(self.namespace.path, PODS, self.node.backend)
        self.rules.lay()
        self.enforcement = PodEnforcement(
            self.node.datapath,
            self.node.loop,
            self.node.guard,
            self.node.backend,
            marks=self.node.marks,
            queue=DEFAULT_QUEUE,
            fail_mode=FailMode.CLOSED,
            node=self.rules,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.rules.close()
        for endpoint in range(1, len(self._held) + 1):
            self.enforcement.detach(endpoint)
        for namespace in (*self._held, self.namespace):
            self.node.backend.remove(namespace.path)
        self.node.__exit__(kind, error, traceback)

    def hold(self, pod: LabNamespace, name: str, addresses: tuple[Address, ...], policy: PolicyView) -> int:
        """Enforce on ``pod``, which is ``test/<name>``, under epoch 1; returns its number."""
        self._held.append(pod)
        self.enforcement.attach(
            len(self._held),
            f"test/{name}",
            pod.path,
            addresses=addresses,
            identity=make_identity(self.node.authenticator, name),
            policy=policy,
            epoch=1,
        )
        return len(self._held)


def never_forwarded(data: bytes) -> bytes:
    """Return an IP packet with the hop limit that forwarding takes away; the kernel sums a raw IPv4 header anew."""
    at = 8 if data[0] >> 4 == 4 else 7
    return data[:at] + b"\xff" + data[at + 1 :]

"""Pods made by real CNI plugins, ours last: what a pod's first process can do."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import netns
from agent.enforcement import PodEnforcement
from agent.failmode import FailMode
from agent.kubernetes.cni import CniServer
from agent.kubernetes.sandboxes import Sandboxes
from agent.kubernetes.starts import Sandbox
from agent.lab import LabNamespace, make_run_writable
from agent.ruleset import DEFAULT_QUEUE
from tests.harness.cni import build, run, stanza
from tests.harness.node import Node, Rules, make_identity
from tests.harness.traffic import Server
from trireme_py.model import DropReason, PolicyView

PLUGINS = Path("/usr/lib/cni")
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not (PLUGINS / "ptp").exists(), reason="needs the Debian package containernetworking-plugins"),
]

PORT = 80
GATEWAY = "10.92.0.1"
NOWHERE = Rules(egress=())


class Holder:
    """A PodStarts that does what the agent does, under a policy that the test gives."""

    def __init__(self, node: Node, policy: PolicyView) -> None:
        self._node = node
        self._policy = policy
        self._endpoints: dict[str, int] = {}
        self._enforcement = PodEnforcement(
            node.datapath,
            node.loop,
            node.guard,
            node.backend,
            marks=node.marks,
            queue=DEFAULT_QUEUE,
            fail_mode=FailMode.CLOSED,
        )

    def hold(self, sandbox: Sandbox, timeout_s: float) -> None:
        endpoint = self._endpoints[sandbox.container] = len(self._endpoints) + 1
        self._enforcement.attach(
            endpoint,
            sandbox.pod,
            sandbox.network_namespace,
            addresses=sandbox.addresses,
            identity=make_identity(self._node.authenticator, sandbox.container),
            policy=self._policy,
            epoch=1,
        )

    def gone(self, container: str) -> None:
        self._enforcement.detach(self._endpoints[container])


class Chain:
    """The CNI chain of a node that is a namespace: ptp and host-local, then ours."""

    def __init__(self, folder: Path, starts: Holder) -> None:
        make_run_writable()
        name = f"trm-cni-{os.getpid()}-node"
        self.node = LabNamespace(name, netns.create(name))
        self._folder = folder
        self._plugin = build(folder)
        self._conf = {
            "cniVersion": "1.0.0",
            "name": "trm-net",
            "type": "ptp",
            "ipam": {"type": "host-local", "subnet": "10.92.0.0/16", "dataDir": str(folder / "leases")},
        }
        self.server = CniServer(folder / "cni.sock", starts, Sandboxes(folder / "sandboxes.json"), [folder / "netns"])
        self.server.start()

    def close(self) -> None:
        self.server.close()
        for path in (*(self._folder / "netns").iterdir(), self.node.path):
            netns.remove(path)

    def add(self, name: str, *, ours: bool = True) -> Path:
        """Make a pod as a runtime does; return its namespace, in which its first process may start."""
        path = netns.create(self._folder / "netns" / name)
        result = self._first("ADD", name)
        if ours:
            said = stanza(self.server.path, prevResult=result)
            code, answer = run(self._plugin, "ADD", said, self._environment("ADD", name))
            assert (code, answer) == (0, result), answer
        return path

    def delete(self, name: str) -> None:
        code, answer = run(self._plugin, "DEL", stanza(self.server.path), self._environment("DEL", name))
        assert code == 0, answer
        self._first("DEL", name)
        netns.remove(self._folder / "netns" / name)

    def _first(self, command: str, name: str) -> Any:
        environment = {**self._environment(command, name), "CNI_PATH": str(PLUGINS), "PATH": os.environ["PATH"]}
        code, answer = self.node.run(lambda: run(PLUGINS / "ptp", command, self._conf, environment))
        assert code == 0, answer
        return answer

    def _environment(self, command: str, name: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": str(self._folder / "netns" / name),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID={name}",
        }


def connects(namespace: Path, patience_s: float) -> bool:
    """What a pod's first process does: connect to its node, at once."""

    def first() -> bool:
        with socket.socket() as one:
            one.setblocking(False)
            one.connect_ex((GATEWAY, PORT))
            _, writable, _ = select.select([], [one], [], patience_s)
            return bool(writable) and one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    return netns.run_inside(namespace, first)


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as node:
        yield node


@pytest.fixture
def chain(tmp_path: Path, node: Node) -> Iterator[Chain]:
    chain = Chain(tmp_path, Holder(node, NOWHERE))
    yield chain
    chain.close()


@pytest.mark.slow  # 200 pods, each made by three programs, take half a minute
def test_a_forbidden_first_connect_is_never_made(chain: Chain, node: Node) -> None:
    # One pod without our plugin shows that nothing else is in the way; the gateway's address comes with it, too.
    free = chain.add("free", ours=False)
    with Server(chain.node, PORT) as server:
        assert connects(free, 5.0)
        for number in range(200):
            name = f"pod-{number}"
            assert not connects(chain.add(name), 0.02)
            chain.delete(name)
        assert len(server.peers) == 1
    assert node.drops[DropReason.POLICY] >= 200

"""The agent on the test cluster as users install it: image, key, one ``kubectl apply -k``; and what stays after it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from agent.enroll import create_authority, utc
from agent.status import Status
from tests.cluster.cluster import Cluster, Node
from tests.cluster.layout import BIN
from tests.cluster.machine import ClusterError

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / "manifests" / "overlays"
NAMESPACE = "trireme-system"
AGENTS = "app.kubernetes.io/component=agent"
TRUST_DOMAIN = "cluster.local"
PATIENCE_S = 300.0
"""How long a condition may take that somebody waits for. Far more than it needs: the machine has other work."""
_POLL_S = 0.2

_LOOK_FOR_REMAINS = r"""
find /run/trireme -type f -o -type s 2>/dev/null
ls -d /etc/cni/net.d/*trireme.conflist /etc/cni/net.d/*.before-trireme /opt/cni/bin/trireme-cni 2>/dev/null
grep -l '"trireme-cni"' /etc/cni/net.d/* 2>/dev/null
look() {
    for program in iptables-save ip6tables-save iptables-legacy-save ip6tables-legacy-save; do
        "$@" $program 2>/dev/null | grep TRM- | sed "s|^|$* $program: |"
    done
}
look env
for namespace in /run/netns/*; do look nsenter --net=$namespace; done
true
"""


def build_image() -> Path:
    """Build the image of this checkout and return its archive; what was built before is kept by ``scripts/image``."""
    done = subprocess.run([ROOT / "scripts" / "image"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"scripts/image ended with status {done.returncode}: {done.stderr[-2000:]}")
    return Path(done.stdout.splitlines()[-1])


def wait_until(holds: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return when ``holds`` says so; an error of kubectl counts as no.

    Raises:
        ClusterError: if it does not within ``patience_s`` seconds, naming ``what``.
    """
    deadline, last = time.monotonic() + patience_s, ""
    while True:
        try:
            if holds():
                return
            last = ""
        except ClusterError as error:
            last = f": {error}"
        if time.monotonic() > deadline:
            raise ClusterError(f"after {patience_s:g} s still not: {what}{last}")
        time.sleep(_POLL_S)  # it can only be asked


def remains(node: Node) -> list[str]:
    """Return every rule, file and CNI entry of ours that is on a node, a line each."""
    return node.run("bash", "-c", _LOOK_FOR_REMAINS).splitlines()


def _shown_remains(node: Node) -> str:
    return "\n".join(remains(node))[-2000:]


@dataclass(frozen=True, slots=True)
class Installed:
    """An installation of the agent, or one that is coming or going."""

    cluster: Cluster
    overlay: Path
    """What ``kubectl apply -k`` is given."""
    mode: str

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = PATIENCE_S) -> str:  # noqa: A002 - as Cluster.kubectl
        return self.cluster.kubectl("-n", NAMESPACE, *arguments, input=input, timeout=timeout)

    def prepare(self, folder: Path) -> None:
        """Make namespace and fresh keys, as manifests/README.md says. ``folder``: an empty one, for the authority."""
        if self.cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "-o", "name"):
            raise ClusterError(f"namespace {NAMESPACE} is there already; kubectl delete -k the overlay it came from")
        self.cluster.kubectl("apply", "-f", str(ROOT / "manifests/base/namespace.yaml"))
        if self.mode == "pki":
            create_authority(folder / "ca", TRUST_DOMAIN, utc(int(time.time()) - 60), days=10)
            files = [f"--from-file={folder / 'ca' / name}" for name in ("ca.key", "ca.crt")]
            self.kubectl("create", "secret", "generic", "trireme-authority", *files)
            self.kubectl("create", "configmap", "trireme-authorities", files[1])
        else:
            key = base64.b64encode(os.urandom(32)).decode()
            self.kubectl("create", "secret", "generic", "trireme-psk", "--from-file=psk.key=/dev/stdin", input=key)

    def apply(self) -> None:
        self.cluster.kubectl("apply", "-k", str(self.overlay))

    def wait(self) -> None:
        """Return when every agent of the DaemonSet is the newest and ready, and those before are gone."""
        self.kubectl("rollout", "status", "daemonset/trireme-agent", f"--timeout={PATIENCE_S:g}s")
        wait_until(self._one_on_each, "there is one agent on each node")

    def _one_on_each(self) -> bool:
        found = self.kubectl("get", "pods", "-l", AGENTS, "-o", "jsonpath={.items[*].spec.nodeName}").split()
        return len(found) == len(set(found))

    def remove(self) -> str:
        """Delete everything, and return when it is gone from the API server. Returns the agents' last words."""
        follow = (str(BIN / "kubectl"), f"--kubeconfig={self.cluster.kubeconfig}", "-n", NAMESPACE, "logs", "--follow")
        followed = [
            subprocess.Popen(
                [*follow, "--tail=5", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
            )
            for name in self.agents().values()
        ]
        options = ("--ignore-not-found", f"--timeout={PATIENCE_S:g}s")
        self.cluster.kubectl("delete", "-k", str(self.overlay), *options, timeout=PATIENCE_S + 5)
        return "".join(each.communicate(timeout=PATIENCE_S)[0] for each in followed)

    def gone(self, said: str = "") -> None:
        """Return when nothing is left on any node. ``said``: what :meth:`remove` returned."""
        try:
            wait_until(lambda: not any(map(remains, self.cluster.nodes)), "nothing of the agent is left")
        except ClusterError as error:
            left = {node.name: remains(node) for node in self.cluster.nodes}
            raise ClusterError(f"{error}: {left}\n{said}") from error

    # -- Looking ------------------------------------------------------------------------------------------------------

    def agents(self) -> dict[str, str]:
        """Return the names of the agents' pods by the names of their nodes; of two on a node the newer one."""
        found = json.loads(self.kubectl("get", "pods", "-l", AGENTS, "-o", "json"))["items"]
        placed = [pod["metadata"] | {"node": pod["spec"]["nodeName"]} for pod in found if "nodeName" in pod["spec"]]
        return {pod["node"]: pod["name"] for pod in sorted(placed, key=lambda pod: str(pod["creationTimestamp"]))}

    def trireme(self, node: Node, *arguments: str) -> str:
        """Run ``trireme`` inside the agent of a node, and return what it printed whatever it exits with."""
        command = ("exec", self.agents()[node.name], "--", "sh", "-c", 'trireme "$@" || [ $? = 1 ]', "sh")
        return self.kubectl(*command, *arguments)

    def status(self, node: Node) -> Status:
        return msgspec.json.decode(self.trireme(node, "status", "-o", "json"), type=Status)

    def _log(self, node: Node) -> str:
        return self.kubectl("logs", self.agents()[node.name], "--tail=60")

    def diagnosis(self) -> str:
        """Return what a person would look at first when a test fails."""
        asked: list[tuple[str, Callable[[], str]]] = [
            ("kubectl get pods -A", lambda: self.cluster.kubectl("get", "pods", "-A", "-o", "wide")),
            ("events", lambda: self.cluster.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp")[-6000:]),
            ("describe daemonset", lambda: self.kubectl("describe", "daemonset")[-3000:]),
        ]
        for node in self.cluster.nodes:
            refusals = ("observe", "--last", "30", "--verdict", "deny")
            asked += [
                (f"{node.name}: trireme status", partial(self.trireme, node, "status")),
                (f"{node.name}: last refusals", partial(self.trireme, node, *refusals)),
                (f"{node.name}: log", partial(self._log, node)),
                (f"{node.name}: rules and files", partial(_shown_remains, node)),
            ]
        texts = []
        for title, ask in asked:
            try:
                text = ask()
            except (ClusterError, KeyError) as error:
                text = f"not to be had: {error}"
            texts.append(f"---- {title}\n{text}")
        return "\n".join(texts)

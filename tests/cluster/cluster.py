"""The running cluster as end-to-end tests use it: kubectl, commands inside a node, images, an API server that stops.

cluster = Cluster()                       # the one that `make cluster` started
cluster.kubectl("get", "pods", "-A")      # what kubectl printed
cluster.apply(text)                       # kubectl apply -f -
cluster.nodes[0].run("nft", "list", "ruleset")
"""

from __future__ import annotations

import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from tests.cluster import control, machine, pki
from tests.cluster.layout import ADMIN_KUBECONFIG, API_PORT, AUDIT_LOG, BIN, CONTROL, LOGS, NODES, Machine
from tests.cluster.machine import ClusterError

_COMMAND_S = 300.0
_POLL_S = 0.1
_SAID = 2000
"""How much of what a failed command printed goes into the error."""


def _run(command: Sequence[str], called: str, given: str | bytes | None, timeout: float, path: str) -> str:
    data = given.encode() if isinstance(given, str) else given
    try:
        done = subprocess.run(
            command,
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            env={"PATH": path, "KUBECONFIG": str(ADMIN_KUBECONFIG), "HOME": "/nonexistent"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{called} has not ended after {timeout:g} s") from error
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        said = done.stderr.decode(errors="replace") + output
        raise ClusterError(f"{called} ended with status {done.returncode}: {said.strip()[-_SAID:]}")
    return output


@dataclass(frozen=True, slots=True)
class Node:
    """One node. Its name is that of its Node object, network namespace (``/run/netns``) and cgroups."""

    machine: Machine

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def addresses(self) -> tuple[IPv4Address, IPv6Address]:
        return self.machine.addresses

    @property
    def pid(self) -> int:
        """The process that holds the node's namespaces, as this computer numbers it."""
        return machine.first_process(self.machine)

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command inside the node, for a caller that starts it himself."""
        return machine.enter(self.machine, *command)

    def run(self, *command: str, input: str | bytes | None = None, timeout: float = _COMMAND_S) -> str:  # noqa: A002 - as subprocess
        """Run a command inside the node's namespaces and return what it printed.

        Raises:
            ClusterError: if it fails, with what it said; or is not done after ``timeout`` seconds.
        """
        called = f"{self.name}: {' '.join(command)}"
        return _run(self.command(*command), called, input, timeout, machine.PATH)

    def load_image(self, archive: Path) -> None:
        """Import an image, a tar file as ``docker save`` or ``buildah push docker-archive:`` writes it."""
        line = self.command("ctr", "-n", "k8s.io", "images", "import", "-")
        with archive.open("rb") as file:
            done = subprocess.run(
                line, stdin=file, capture_output=True, text=True, env={"PATH": machine.PATH}, check=False
            )
        if done.returncode:
            raise ClusterError(f"{self.name} does not take the image {archive}: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster of this computer, whether it runs or not."""

    kubeconfig: Path = ADMIN_KUBECONFIG
    audit_log: Path = AUDIT_LOG
    """One JSON object per line: every request, without its content."""
    nodes: tuple[Node, ...] = tuple(Node(each) for each in NODES)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = _COMMAND_S) -> str:  # noqa: A002 - as subprocess
        """Run kubectl as the cluster's administrator and return what it printed.

        Raises:
            ClusterError: if it fails, with what it said; or is not done after ``timeout`` seconds.
        """
        command = [str(BIN / "kubectl"), *arguments]
        return _run(command, f"kubectl {' '.join(arguments)}", input, timeout, machine.PATH)

    def apply(self, manifest: str) -> str:
        """Apply objects given as YAML or JSON text."""
        return self.kubectl("apply", "-f", "-", input=manifest)

    def load_image(self, archive: Path) -> None:
        """Import an image on every node; a pod can use it with ``imagePullPolicy: Never`` or ``IfNotPresent``."""
        for node in self.nodes:
            node.load_image(archive)

    def stop_apiserver(self) -> None:
        """Kill the API server and return when it has ended; everything else goes on."""
        machine.stop(CONTROL, control.API_SERVER)

    def start_apiserver(self, timeout: float = _COMMAND_S) -> None:
        """Start the API server again and return when it is ready."""
        control.start_api_server()
        self.wait_for_api(timeout)

    def wait_for_api(self, timeout: float) -> None:
        """Return when the API server says it is ready.

        Raises:
            ClusterError: if it is not after ``timeout`` seconds, or has ended.
        """
        context = ssl.create_default_context(cafile=str(pki.certificate_file("ca")))
        deadline, said = time.monotonic() + timeout, "nothing"
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"https://127.0.0.1:{API_PORT}/readyz", timeout=timeout, context=context):
                    return
            except (OSError, urllib.error.HTTPError) as error:
                said = str(error)
            if not machine.alive(CONTROL, control.API_SERVER):
                raise ClusterError(f"the API server has ended; see {LOGS}/{CONTROL.name}-{control.API_SERVER}.log")
            time.sleep(_POLL_S)  # it can only be asked
        raise ClusterError(f"the API server is not ready after {timeout:g} s: {said}; see {LOGS}")

    def wait_ready(self, timeout: float) -> None:
        """Return when every node is ready and DNS answers.

        Raises:
            ClusterError: if that takes more than ``timeout`` seconds.
        """
        self.wait_for_api(timeout)
        limit = f"--timeout={timeout:g}s"
        nodes = [f"node/{node.name}" for node in self.nodes]  # tests make up others, which never are
        self.kubectl("wait", "--for=condition=Ready", *nodes, limit, timeout=timeout + 1)
        status = ("-n", "kube-system", "rollout", "status", "deployment/coredns")
        self.kubectl(*status, limit, timeout=timeout + 1)

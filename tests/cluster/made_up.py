"""A node that is not there, for an agent outside of every node: pods by the real API, network namespaces from a lab."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from agent.kubernetes.api import ApiServer
from agent.kubernetes.calls import MERGE_PATCH
from agent.kubernetes.kubeconfig import read
from tests.harness.api_stand_in import wait_until


class Site:
    """A namespace and a node of one's own in a real cluster. Pods that are bound to it nobody starts."""

    def __init__(self, kubeconfig: Path) -> None:
        self.name = self.node = f"trm-made-up-{secrets.token_hex(4)}"
        self.access = read(kubeconfig)
        self._api = ApiServer(self.access)

    def call(self, method: str, path: str, body: Any = None, *, content_type: str = "application/json") -> Any:
        data = None if body is None else json.dumps(body).encode()
        status, answer = self._api.request(method, path, data, content_type=content_type)
        assert status < 300, answer
        return json.loads(answer)

    def create(self, collection: str, name: str, **parts: Any) -> None:
        self.call("POST", collection, {**parts, "metadata": {"name": name, **parts.get("metadata", {})}})

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.name}/pods"

    @property
    def policies(self) -> str:
        return f"/apis/networking.k8s.io/v1/namespaces/{self.name}/networkpolicies"

    def pod(self, name: str, *addresses: object) -> None:
        """Make a pod that runs, on the node that is not there."""
        spec = {
            "nodeName": self.node,
            "containers": [{"name": "c", "image": "none"}],
            "tolerations": [{"operator": "Exists"}],
        }
        self.create(self.pods, name, metadata={"labels": {"app": name}}, spec=spec)
        status = {"phase": "Running", "podIP": str(addresses[0]), "podIPs": [{"ip": str(one)} for one in addresses]}
        self.call("PATCH", f"{self.pods}/{name}/status", {"status": status}, content_type=MERGE_PATCH)

    def policy(self, name: str, allowed: str, *, app: str = "server") -> None:
        """Let only pods with ``app=<allowed>`` reach those with ``app=<app>``."""
        spec = {"podSelector": {"matchLabels": {"app": app}}, "ingress": [_from(allowed)]}
        self.create(self.policies, name, spec=spec)

    def change_policy(self, name: str, allowed: str) -> None:
        body = {"spec": {"ingress": [_from(allowed)]}}
        self.call("PATCH", f"{self.policies}/{name}", body, content_type=MERGE_PATCH)

    def label(self, path: str, **labels: str) -> None:
        self.call("PATCH", path, {"metadata": {"labels": labels}}, content_type=MERGE_PATCH)

    def open(self) -> None:
        self.create("/api/v1/namespaces", self.name)
        self.create("/api/v1/nodes", self.node, spec={"unschedulable": True})
        account = f"/api/v1/namespaces/{self.name}/serviceaccounts/default"
        assert wait_until(lambda: self._api.request("GET", account)[0] == 200), "pods need it"

    def close(self) -> None:
        self.call("DELETE", f"{self.pods}?gracePeriodSeconds=0")
        self.call("DELETE", f"/api/v1/nodes/{self.node}")
        self.call("DELETE", f"/api/v1/namespaces/{self.name}")


def _from(allowed: str) -> dict[str, Any]:
    return {"from": [{"podSelector": {"matchLabels": {"app": allowed}}}]}

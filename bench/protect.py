"""One agent's data path on two pods, in a process of its own: what the benchmarks protect connections with.

    python -m bench.protect '{"impl": "c", "mode": "psk", …}'   (bench/lanes.py, Protection)

Prints a line when the pods are protected. Each line of its input gives them new identities; with its input it ends.
All but configuration files is the agent's own.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from agent.lab import LabNamespace, LabPod
from bench.bench_policy import policy as unrelated_policy
from bench.peers import teach_peers
from policy.decode import decode
from policy.engine import PolicyEngine
from policy.objects import Namespace, Object, Pod
from tests.harness import implementation
from tests.harness.node import PSK, TRUST_DOMAIN, Node, make_identity, pki
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.model import PolicyView

NAMESPACE = "test"
"""Where tests.harness.node.Node puts its pods."""


def lab_pod(name: str, facts: dict[str, Any]) -> LabPod:
    """A pod of a lab of the process that started this one."""
    ipv4, ipv6 = IPv4Address(facts["ipv4"]), IPv6Address(facts["ipv6"])
    return LabPod(name, Path(facts["path"]), ipv4, ipv6, ipv4, ipv6, "")


def policies(count: int) -> dict[str, PolicyView]:
    """Compile `count` policies: one that lets pod ``a`` reach pod ``b`` and nothing else, and others of other pods."""
    decisive, problems = decode(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "a-to-b", "namespace": NAMESPACE},
            "spec": {
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}],
                "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}],
            },
        }
    )
    assert decisive is not None, problems
    engine = PolicyEngine()
    pods: list[Object] = [Pod(namespace=NAMESPACE, name=name, labels={"app": name}, addresses=()) for name in "ab"]
    others = [unrelated_policy(number) for number in range(count - 1)]
    labels = {"kubernetes.io/metadata.name": NAMESPACE}
    engine.replace([Namespace(name=NAMESPACE, labels=labels), *pods, decisive, *others])
    return {name: engine.snapshot.view(NAMESPACE, name) for name in "ab"}


def main() -> None:
    wanted = json.loads(sys.argv[1])
    implementation.name = wanted["impl"]
    authenticator = pki("node") if wanted["mode"] == "pki" else PskAuthenticator(PSK, TRUST_DOMAIN)
    views = policies(wanted["policies"])
    router = LabNamespace("router", Path(wanted["router"]))
    with ExitStack() as closing:
        node = closing.enter_context(Node(router, authenticator=authenticator, workers=wanted["workers"]))
        for name, facts in wanted["pods"].items():
            held = node.hold(lab_pod(name, facts), name, views[name])
            if wanted["peers"]:
                teach_peers(node, held, wanted["peers"])
        gc.collect()
        gc.freeze()
        print(json.dumps({"ready": 1}), flush=True)
        for _ in sys.stdin:  # each line asks for new identities
            for name in wanted["pods"]:
                node.set_identity(name, make_identity(authenticator, name))
            print(json.dumps({"ready": 1}), flush=True)


if __name__ == "__main__":
    main()

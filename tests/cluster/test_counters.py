"""The counters agree with what was sent: a Prometheus in the cluster scrapes the agents while pods make connections.

Everything goes from the first node to the second, so each node's counters tell one side of it. Pods without policies
(DNS among them, which nobody here controls) count under ``no_isolation``, and are left out.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from tests.cluster import images
from tests.cluster.cluster import Node
from tests.cluster.installation import Installed, wait_until
from tests.cluster.layout import API_PORT, CONTROL
from tests.cluster.load import agent_image
from tests.cluster.machine import ClusterError
from tests.cluster.workload import PORT, Manifest, Place, at, place, policy
from tests.harness.promtool import program

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

METRICS_PORT = 9643
UDP_PORT = 8081
_PATIENCE_S = 5.0
"""How long a connect is tried. A refused one repeats its SYN meanwhile, and is one flow all the same."""
_TWO_SYNS_S = 1.8
"""Where the caller's own side refuses what it has heard of the other. The third SYN goes without an identity, in case
the path minds it, and would be one more flow for the other side: refused, as it is ``unidentified``."""
_CONNECT = """\
count=$1; shift
for i in $(seq $count); do (/agnhost connect "$@" >/dev/null 2>&1 && echo made) & done
wait
"""
_CONNECT_FROM_NODE = (
    'for i in $(seq $0); do (timeout 5 bash -c "true >/dev/tcp/$1/$2" 2>/dev/null && echo made) & done; wait'
)
FROM_FRIENDS = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}
TO_SERVERS = {"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}
TO_THE_API = {"to": [{"ipBlock": {"cidr": f"{CONTROL.addresses[0]}/32"}}]}
POLICIES = (
    policy("servers", {"app": "server"}, ingress=[FROM_FRIENDS]),
    policy("vaults", {"app": "vault"}, ingress=[{"from": [{"podSelector": {}}]}]),
    policy("friends", {"app": "friend"}, egress=[TO_SERVERS, TO_THE_API]),
)

Series = tuple[str, str, str, str]
"""Node, direction, verdict and reason."""


def pod(name: str, node: Node, **container: object) -> Manifest:
    main = {"name": "main", "image": images.AGNHOST, "imagePullPolicy": "Never", "args": ["pause"], **container}
    spec = {
        "nodeName": node.name,
        "terminationGracePeriodSeconds": 0,
        "enableServiceLinks": False,
        "containers": [main],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def prometheus(nodes: tuple[Node, ...]) -> tuple[Manifest, Manifest]:
    """A pod that scrapes the agents of all nodes each second, with the program that scripts/setup has fetched."""
    targets = [{"targets": [at(str(node.addresses[0]), METRICS_PORT)], "labels": {"node": node.name}} for node in nodes]
    job = {"job_name": "trireme-agent", "scrape_interval": "1s", "static_configs": targets}
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "prometheus"},
        "data": {"prometheus.yml": yaml.safe_dump({"scrape_configs": [job]})},
    }
    where = {"config": "/etc/prometheus", "program": "/prometheus", "data": "/data"}
    command = ["/prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data"]
    scraper = pod(
        "prometheus",
        nodes[0],
        image=agent_image(),
        args=[],
        command=command,
        volumeMounts=[{"name": name, "mountPath": path} for name, path in where.items()],
        readinessProbe={"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
    )
    scraper["spec"]["volumes"] = [
        {"name": "config", "configMap": {"name": "prometheus"}},
        {"name": "program", "hostPath": {"path": program("prometheus"), "type": "File"}},
        {"name": "data", "emptyDir": {}},
    ]
    return settings, scraper


@dataclass(frozen=True, slots=True)
class Scene:
    """Pods that may and may not, and the Prometheus that looks on."""

    place: Place
    nodes: tuple[Node, ...]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return what Prometheus answers: numbers by node, direction, verdict and reason, as far as there are."""
        arguments = urllib.parse.urlencode({"query": expression})
        path = f"/api/v1/namespaces/{self.place.name}/pods/prometheus:9090/proxy/api/v1/query?{arguments}"
        result = json.loads(self.place.cluster.kubectl("get", "--raw", path))["data"]["result"]
        names = ("node", "direction", "verdict", "reason")
        return {
            tuple(each["metric"][name] for name in names if name in each["metric"]): float(each["value"][1])
            for each in result
        }

    def flows(self) -> Counter[tuple[str, ...]]:
        """Return the counters of a scrape of every node that begins after this call."""
        now = time.time()

        def scraped() -> bool:
            times = self.query("timestamp(trireme_agent_info)")
            return len(times) == len(self.nodes) and min(times.values()) > now

        wait_until(scraped, "Prometheus has scraped every node")
        return Counter(
            {key: int(value) for key, value in self.query('trireme_flows_total{reason!="no_isolation"}').items()}
        )

    def address(self, name: str) -> str:
        return self.place.kubectl("get", "pod", name, "-o", "jsonpath={.status.podIP}")

    def connect(self, who: str, count: int, target: str, *options: str, patience_s: float = _PATIENCE_S) -> int:
        """Let a pod connect ``count`` times, all at once, and return how many connections were made."""
        command = ("exec", who, "--", "sh", "-c", _CONNECT, "sh", str(count), f"--timeout={patience_s}s", *options)
        return self.place.kubectl(*command, target).split().count("made")


@pytest.fixture(scope="module")
def scene(installed: Installed) -> Iterator[Scene]:
    nodes = installed.cluster.nodes
    for node in nodes:
        wait_until(lambda node=node: installed.status(node).installation == "finished", "it is over")  # type: ignore[misc]
    serve = ["netexec", f"--http-port={PORT}", f"--udp-port={UDP_PORT}"]
    with place(installed.cluster, "counted") as where:
        where.apply(
            *POLICIES,
            *(pod(name, nodes[0]) for name in ("friend", "stranger")),
            *(pod(name, nodes[1], args=serve) for name in ("server", "vault")),
            *prometheus(nodes),
        )
        where.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=280s")
        scene = Scene(where, nodes)
        for name in ("server", "vault"):  # they listen when their probe would say so; no probe may count here
            target = at(scene.address(name))

            def listens(target: str = target) -> bool:
                try:
                    nodes[1].run("timeout", "1", "bash", "-c", f"true >/dev/tcp/{target.replace(':', '/')}")
                except ClusterError:
                    return False
                return True

            wait_until(listens, f"{name} listens")
        yield scene


def test_the_counters_agree_with_what_was_sent(scene: Scene) -> None:
    first, second = (node.name for node in scene.nodes)
    server, vault = scene.address("server"), scene.address("vault")
    before = scene.flows()
    assert scene.connect("friend", 25, at(server)) == 25
    assert scene.connect("friend", 12, at(server, UDP_PORT), "--protocol=udp") == 12
    assert scene.connect("friend", 5, at(str(CONTROL.addresses[0]), API_PORT)) == 5
    assert scene.connect("friend", 15, at(vault), patience_s=_TWO_SYNS_S) == 0
    assert scene.connect("stranger", 20, at(server)) == 0
    assert scene.connect("stranger", 8, at(server, UDP_PORT), "--protocol=udp") == 0
    assert scene.nodes[0].run("bash", "-c", _CONNECT_FROM_NODE, "10", server, str(PORT)) == ""
    sent: Counter[tuple[str, ...]] = Counter(
        {
            (first, "egress", "allow", "policy"): 25 + 12,
            (first, "egress", "allow", "ipblock"): 5,
            (first, "egress", "deny", "no_match"): 15,
            (second, "ingress", "allow", "policy"): 25 + 12,
            (second, "ingress", "deny", "no_match"): 20 + 8,
            (second, "ingress", "deny", "unidentified"): 10,
        }
    )
    assert scene.flows() - before == sent
    assert scene.flows() - before == sent, "and nothing comes after"

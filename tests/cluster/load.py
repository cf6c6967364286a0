"""A namespace full of permitted connections, and of some who try what is not permitted, for as long as a test lasts.

On each node a server, a vault, a caller and two who should get nothing; ``tests/cluster/traffic.py`` runs in all of
them. The callers' policy lets them go to servers only, and the servers' lets nobody in but callers.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.cluster import Cluster, Node
from tests.cluster.installation import ROOT, wait_until
from tests.cluster.traffic import Calls, Plan, Report
from tests.cluster.workload import DNS, PORT, Manifest, Place, place, policy, service

CALLER, INTRUDER, STRAYER = "caller", "intruder", "strayer"
"""Who calls: as permitted; servers that do not let him in; vaults, to which he may not go."""
SERVER, VAULT = "server", "vault"
PATIENCE_S = 70.0
"""A SYN is sent again after 1, 3, 7, 15, 31 and 63 s; half as long as applications wait that leave it to the kernel."""
_PORTS = [{"protocol": "TCP", "port": PORT}]

POLICIES = (
    policy("default-deny", {}, ingress=[], egress=[]),
    policy(
        "callers",
        {"app": CALLER},
        egress=[DNS, {"to": [{"podSelector": {"matchLabels": {"app": SERVER}}}], "ports": _PORTS}],
    ),
    policy("intruders", {"app": INTRUDER}, egress=[{}]),
    policy(
        "servers",
        {"app": SERVER},
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": CALLER}}}], "ports": _PORTS}],
    ),
    policy("vaults", {"app": VAULT}, ingress=[{}]),
)


def agent_image() -> str:
    """Return the name of the image that ``scripts/image`` builds: it has a Python."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return f"localhost/trireme-py:{version}"


def pod(name: str, app: str, node: Node, arguments: list[str], plan: Plan | None = None) -> Manifest:
    """A pod that runs traffic.py; with the label ``app``."""
    container: Manifest = {
        "name": "main",
        "image": agent_image(),
        "imagePullPolicy": "Never",
        "command": ["python3", "/traffic/traffic.py", *arguments],
        "env": [{"name": "TRAFFIC", "value": json.dumps(asdict(plan))}] if plan else [],
        "volumeMounts": [{"name": "traffic", "mountPath": "/traffic"}],
    }
    if plan is None:
        container["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5}
    spec = {
        "nodeName": node.name,
        "terminationGracePeriodSeconds": 0,
        "enableServiceLinks": False,
        "containers": [container],
        "volumes": [{"name": "traffic", "configMap": {"name": "traffic"}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}}, "spec": spec}


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: what each caller had done by then."""

    reports: Mapping[str, Report]


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between a mark and now, by the caller's pod and target: ``caller-trm-node1 server-0-ipv4``."""

    made: dict[str, int]
    connected: dict[str, int]
    failed: dict[str, int]
    failures: list[str]
    """The first ones of each caller since its start, in words."""
    lasting: dict[str, int]
    """Connections that live now."""
    slowest_s: dict[str, float]
    """The connection that took longest to make."""
    took_s: list[float]
    """How long each took that was made, shortest first."""
    silence_s: float

    def __str__(self) -> str:
        made = sum(self.made.values())
        lasting = sum(self.lasting.values())
        failed = sum(self.failed.values())
        slowest = max(self.slowest_s, key=lambda target: self.slowest_s[target])
        return (
            f"{made} connections made, {failed} failed, the slowest, {slowest}, after {self.slowest_s[slowest]:.2f} s "
            f"(half of all in {self._within(0.5)}, 99 % in {self._within(0.99)}, {self._slow()} in more than 1 s); "
            f"{lasting} lasting ones live, none silent for more than {self.silence_s:.2f} s"
        )

    def _within(self, share: float) -> str:
        return f"{self.took_s[int(share * (len(self.took_s) - 1))]:.3f} s" if self.took_s else "no time"

    def _slow(self) -> int:
        return sum(took_s > 1 for took_s in self.took_s)


@dataclass(frozen=True, slots=True)
class Load:
    """The namespace, with everybody at work."""

    place: Place
    nodes: tuple[Node, ...]

    def report(self, name: str) -> Report:
        return _read(self.place.kubectl("logs", name, "--tail=1"))

    def mark(self, who: str) -> Mark:
        """Remember what the callers of this kind, one on each node, have done by now."""
        return self._mark(f"{who}-{node.name}" for node in self.nodes)

    def _mark(self, names: Iterable[str]) -> Mark:
        return Mark({name: self.report(name) for name in names})

    def settle(self, mark: Mark, more: int = 3) -> None:
        """Return when every call begun by the mark has ended, and ``more`` that began after it."""
        for name, before in mark.reports.items():

            def settled(name: str = name, before: Report = before) -> bool:
                now = self.report(name).calls
                return all(now[target].settled >= calls.started + more for target, calls in before.calls.items())

            wait_until(settled, f"{more} more calls of {name} have ended")

    def since(self, mark: Mark) -> Window:
        """Return what happened since the mark. Every call begun by now has ended when this returns."""
        self.settle(self._mark(mark.reports))
        made, connected, failed, lasting, slowest_s = {}, {}, {}, {}, {}
        failures: list[str] = []
        took_s: list[float] = []
        silence_s = 0.0
        for name, before in mark.reports.items():
            lines = self.place.kubectl("logs", name).splitlines()
            reports = [_read(line) for line in lines[before.number + 1 :]]
            last = reports[-1]
            took_s += [each_s for each in reports for each_s in each.took_s]
            failures += [f"{name} {text}" for text in last.failures[len(before.failures) :]]
            for target, calls in last.calls.items():
                key = f"{name} {target}"
                made[key] = calls.made - before.calls[target].made
                connected[key] = calls.connected - before.calls[target].connected
                failed[key] = calls.failed - before.calls[target].failed
                lasting[key] = calls.lasting
                slowest_s[key] = max(each.calls[target].slowest_s for each in reports)
            silence_s = max(silence_s, *(one.silence_s for each in reports for one in each.calls.values()))
        return Window(made, connected, failed, failures, lasting, slowest_s, sorted(took_s), silence_s)


def _read(line: str) -> Report:
    report = json.loads(line)
    calls = {name: Calls(**each) for name, each in report.pop("calls").items()}
    return Report(calls=calls, **report)


@contextmanager
def load(cluster: Cluster) -> Iterator[Load]:
    """Put everybody to work; return when each has made, or tried, some calls. The image must be on the nodes."""
    with place(cluster, "live") as where:
        program = (Path(__file__).parent / "traffic.py").read_text(encoding="utf-8")
        where.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "traffic"}, "data": {"traffic.py": program}},
            service(SERVER),
            *POLICIES,
            *(
                pod(f"{app}-{node.name}", app, node, ["serve", str(PORT)])
                for node in cluster.nodes
                for app in (SERVER, VAULT)
            ),
        )
        where.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=280s")
        addresses = where.kubectl("get", "service", SERVER, "-o", "jsonpath={.spec.clusterIPs[*]}").split()
        services = {f"service-{number}": (address, 80) for number, address in enumerate(addresses)}
        services["service-name"] = (f"{SERVER}.{where.name}.svc.cluster.local", 80)
        plans: dict[str, Callable[[], Plan]] = {
            CALLER: lambda: Plan({**_targets(where, SERVER), **services}, 0.25, PATIENCE_S, lasting=2),
            INTRUDER: lambda: Plan({**_targets(where, SERVER), "service-0": services["service-0"]}, 1.0, 5.0),
            STRAYER: lambda: Plan(_targets(where, VAULT), 1.0, 5.0),
        }
        where.apply(
            *(
                pod(f"{who}-{node.name}", CALLER if who == STRAYER else who, node, ["call"], plan())
                for node in cluster.nodes
                for who, plan in plans.items()
            )
        )
        where.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=280s")
        everybody = Load(where, cluster.nodes)
        for who in plans:
            wait_until(lambda who=who: everybody.mark(who), f"every {who} reports")  # type: ignore[misc]
            everybody.settle(everybody.mark(who), 2)
        yield everybody


def _targets(where: Place, app: str) -> dict[str, tuple[str, int]]:
    return {
        f"{app}-{number}-{family}": (address, PORT)
        for number, each in enumerate(where.pods(app))
        for family, address in zip(("ipv4", "ipv6"), each.addresses, strict=True)
    }

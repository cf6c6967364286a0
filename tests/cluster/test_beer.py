"""Beer of the day on a real cluster: who gets to the tap is what kubectl-applied policies say, and nothing else.

The tap serves guests of its own namespace whose role is ``approved``, and every pod of namespaces that are ``invited``.
Each Deployment has a pod on both nodes, and each guest goes to both pods of the tap, so every answer is asked for
within a node and across, in IPv4 and in IPv6. Policies are there before the pods: there is nothing to wait for, the
first connection of each pod must be judged right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from agent.flowlog import FlowRecord
from tests.cluster.cluster import Cluster
from tests.cluster.installation import Installed, wait_until
from tests.cluster.workload import DNS, PORT, Place, Pod, deployment, place, policy, server, service

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
    pytest.mark.parametrize("installed", ["psk", "pki"], indirect=True),
]

PERMITTED_S = 30
"""How long a connection may take that must come about: the kernel sends its SYN five times."""
REFUSED_S = 4
"""How long one is tried that must not: three SYNs."""

TAP_PORTS = [{"protocol": "TCP", "port": PORT}]
DENY_ALL = policy("default-deny", {}, ingress=[])
APPROVED = policy(
    "approved-guests",
    {"app": "tap"},
    ingress=[{"from": [{"podSelector": {"matchLabels": {"role": "approved"}}}], "ports": TAP_PORTS}],
)
INVITED = policy(
    "invited-namespaces",
    {"app": "tap"},
    ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"beer": "invited"}}}], "ports": TAP_PORTS}],
)
WATER_FOR_ALL = policy("water-for-all", {"app": "water"}, ingress=[{}])
TO_THE_TAP = {"to": [{"podSelector": {"matchLabels": {"app": "tap"}}}], "ports": TAP_PORTS}


@dataclass(frozen=True)
class Bar:
    """The namespaces of the play, and the agents."""

    installed: Installed
    beer: Place
    pub: Place
    """Invited."""
    street: Place
    """Not invited."""

    @property
    def cluster(self) -> Cluster:
        return self.installed.cluster

    def tap(self) -> list[str]:
        """Where the tap is: both of its pods, in both families."""
        return [target for pod in self.beer.pods("tap") for target in pod.targets]

    def guests(self, name: str) -> list[Pod]:
        """Both pods of a Deployment of guests, one on each node."""
        pods = self.beer.pods(name)
        assert [pod.node for pod in pods] == [node.name for node in self.cluster.nodes]
        return pods


def gets(where: Place, pod: Pod, targets: list[str]) -> None:
    """Assert that the pod reaches all targets."""
    assert where.reached(pod, targets, PERMITTED_S) == set(targets), f"{where.name}/{pod.name} on {pod.node}"


def gets_nothing(where: Place, pod: Pod, targets: list[str]) -> None:
    """Assert that the pod reaches no target."""
    assert where.reached(pod, targets, REFUSED_S) == set(), f"{where.name}/{pod.name} on {pod.node}"


def soon_gets(where: Place, pod: Pod, targets: list[str]) -> None:
    """Return when the pod reaches all targets."""
    wait_until(lambda: where.reached(pod, targets, REFUSED_S) == set(targets), f"{pod.name} reaches {targets}")


def soon_gets_nothing(where: Place, pod: Pod, targets: list[str]) -> None:
    """Return when the pod reaches no target any more."""
    wait_until(lambda: not where.reached(pod, targets, REFUSED_S), f"{pod.name} is refused at {targets}")


@pytest.fixture(scope="module")
def bar(installed: Installed) -> Iterator[Bar]:
    cluster = installed.cluster
    with (
        place(cluster, "beer") as beer,
        place(cluster, "pub", beer="invited") as pub,
        place(cluster, "street") as street,
    ):
        beer.apply(DENY_ALL, APPROVED, INVITED, WATER_FOR_ALL)
        beer.apply(
            server("tap"),
            service("tap"),
            server("water"),
            deployment("approved", {"role": "approved"}),
            deployment("regular", {"role": "regular"}),
        )
        for each in (pub, street):
            each.apply(deployment("visitor", {"role": "approved"}))
        beer.wait("tap", "water", "approved", "regular")
        for each in (pub, street):
            each.wait("visitor")
        yield Bar(installed, beer, pub, street)


def test_who_gets_a_beer_and_who_does_not(bar: Bar) -> None:
    tap = bar.tap()
    assert len(tap) == 4
    for pod in bar.guests("approved"):
        gets(bar.beer, pod, tap)
    for pod in bar.pub.pods("visitor"):
        gets(bar.pub, pod, tap)
    for pod in bar.guests("regular"):
        gets_nothing(bar.beer, pod, tap)
    for pod in bar.street.pods("visitor"):  # the right label, in the wrong namespace
        gets_nothing(bar.street, pod, tap)


def test_the_tap_is_found_by_its_service(bar: Bar) -> None:
    addresses = bar.beer.kubectl("get", "service", "tap", "-o", "jsonpath={.spec.clusterIPs[*]}").split()
    assert len(addresses) == 2
    service_ = [f"[{one}]:80" if ":" in one else f"{one}:80" for one in addresses] + [f"tap.{bar.beer.name}:80"]
    for pod in bar.guests("approved"):
        gets(bar.beer, pod, service_)
    for pod in bar.guests("regular"):
        gets_nothing(bar.beer, pod, service_)


def test_an_agent_says_by_which_rule(bar: Bar) -> None:
    taps, namespace = bar.beer.pods("tap"), bar.beer.name
    for node, tap in zip(bar.cluster.nodes, taps, strict=True):
        gets(bar.beer, bar.guests("approved")[0], tap.targets)
        gets_nothing(bar.beer, bar.guests("regular")[0], tap.targets)
        lines = bar.installed.trireme(node, "observe", "--last", "300", "-n", namespace, "-o", "json").splitlines()
        records = [msgspec.json.decode(line, type=FlowRecord) for line in lines]
        at_tap = [one for one in records if one.pod == f"{namespace}/{tap.name}" and one.direction == "ingress"]
        allowed = [
            one
            for one in at_tap
            if one.peer is not None and one.peer.labels.get("role") == "approved" and one.peer.namespace == namespace
        ]
        assert allowed
        assert {(one.verdict, one.policy, one.rule) for one in allowed} == {
            ("allow", f"NetworkPolicy/{namespace}/approved-guests", 0)
        }
        refused = [one for one in at_tap if one.peer is not None and one.peer.labels.get("role") == "regular"]
        assert {(one.verdict, one.reason) for one in refused} == {("deny", "no_match")}
        assert all("approved-guests" in one.nearest and "role" in one.nearest for one in refused)
        shown = bar.installed.trireme(node, "observe", "--last", "300", "-n", namespace)
        assert f"by NetworkPolicy/{namespace}/approved-guests ingress[0] from[0]   identity: proven" in shown


def test_another_label_is_another_identity(bar: Bar) -> None:
    for pod in bar.guests("approved"):
        bar.beer.kubectl("label", "pod", pod.name, "role=regular", "--overwrite")
        soon_gets_nothing(bar.beer, pod, bar.tap())
        bar.beer.kubectl("label", "pod", pod.name, "role=approved", "--overwrite")
        soon_gets(bar.beer, pod, bar.tap())
    bar.cluster.kubectl("label", "namespace", bar.pub.name, "beer-")
    for pod in bar.pub.pods("visitor"):
        soon_gets_nothing(bar.pub, pod, bar.tap())
    bar.cluster.kubectl("label", "namespace", bar.pub.name, "beer=invited")
    for pod in bar.pub.pods("visitor"):
        soon_gets(bar.pub, pod, bar.tap())


def test_guests_may_go_only_where_egress_lets_them(bar: Bar) -> None:
    name = f"tap.{bar.beer.name}.svc.cluster.local:80"
    water = [target for pod in bar.beer.pods("water") for target in pod.targets]
    guests = bar.guests("approved")
    for pod in guests:
        gets(bar.beer, pod, [*bar.tap(), *water, name])
    bar.beer.apply(policy("guests-may-go", {"role": "approved"}, egress=[TO_THE_TAP]))
    for pod in guests:
        soon_gets_nothing(bar.beer, pod, [*water, name])  # nobody tells it where the name is
        gets(bar.beer, pod, bar.tap())
    bar.beer.apply(policy("guests-may-go", {"role": "approved"}, egress=[DNS, TO_THE_TAP]))
    for pod in guests:
        soon_gets(bar.beer, pod, [name])
        gets(bar.beer, pod, bar.tap())
        gets_nothing(bar.beer, pod, water)
    bar.beer.kubectl("delete", "networkpolicy", "guests-may-go")
    for pod in guests:
        soon_gets(bar.beer, pod, water)


def test_more_pods_and_fewer(bar: Bar) -> None:
    approved, regular = bar.guests("approved"), bar.guests("regular")
    before = {node.name: bar.installed.status(node).pods for node in bar.cluster.nodes}
    bar.beer.kubectl("scale", "deployment/tap", "deployment/approved", "--replicas=4")
    bar.beer.wait("tap", "approved")
    tap = bar.tap()
    assert len(tap) == 8
    for pod in bar.beer.pods("approved"):
        gets(bar.beer, pod, tap)
    for pod in regular:
        gets_nothing(bar.beer, pod, tap)
    bar.beer.kubectl("scale", "deployment/tap", "deployment/approved", "--replicas=2")
    wait_until(lambda: len(bar.beer.pods("tap")) == len(bar.beer.pods("approved")) == 2, "two pods are left")
    wait_until(
        lambda: {node.name: bar.installed.status(node).pods for node in bar.cluster.nodes} == before,
        f"each agent enforces as many pods as before: {before}",
    )
    for pod in bar.beer.pods("approved"):
        gets(bar.beer, pod, bar.tap())
    assert approved


def test_a_pod_that_is_replaced(bar: Bar) -> None:
    for app in ("tap", "approved", "regular"):
        bar.beer.kubectl("delete", "pod", bar.beer.pods(app)[0].name)
        bar.beer.wait(app)
        wait_until(lambda app=app: len(bar.beer.pods(app)) == 2, f"{app} has two pods again")  # type: ignore[misc]
    for pod in bar.beer.pods("approved"):
        gets(bar.beer, pod, bar.tap())
    for pod in bar.beer.pods("regular"):
        gets_nothing(bar.beer, pod, bar.tap())


def test_a_policy_that_is_deleted(bar: Bar) -> None:
    approved, regular = bar.beer.pods("approved"), bar.beer.pods("regular")
    bar.beer.kubectl("delete", "networkpolicy", "approved-guests")
    for pod in approved:
        soon_gets_nothing(bar.beer, pod, bar.tap())
    bar.beer.kubectl("delete", "networkpolicy", "default-deny", "invited-namespaces")
    for pod in [*approved, *regular]:
        soon_gets(bar.beer, pod, bar.tap())
    bar.beer.apply(DENY_ALL, APPROVED, INVITED)
    for pod in regular:
        soon_gets_nothing(bar.beer, pod, bar.tap())
    for pod in approved:
        gets(bar.beer, pod, bar.tap())


def test_no_probe_failed_all_the_time(bar: Bar) -> None:
    """The last one: under default-deny, kubelets asked each server once a second, and none was found unwell."""
    found = json.loads(bar.beer.kubectl("get", "pods", "-o", "json"))["items"]
    assert {one["status"]["containerStatuses"][0]["restartCount"] for one in found} == {0}
    unwell = bar.beer.kubectl("get", "events", "--field-selector=reason=Unhealthy", "-o", "json")
    # Until a server listens its kubelet is refused, with the agent or without.
    assert [one["message"] for one in json.loads(unwell)["items"] if "refused" not in one["message"]] == []

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
from tests.cluster.workload import DNS, PORT, Place, Pod, at, deployment, place, policy, server, service

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
    pytest.mark.parametrize("installed", ["psk", "pki"], indirect=True),
]

PERMITTED_S = 70
"""How long a connection may take that must come about: the kernel sends its SYN seven times. Slow machines need it."""
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


def get(where: Place, pods: list[Pod], targets: list[str]) -> None:
    """Assert that each pod reaches all targets."""
    assert where.reached_by(pods, targets, PERMITTED_S) == {pod.name: set(targets) for pod in pods}


def get_nothing(where: Place, pods: list[Pod], targets: list[str]) -> None:
    """Assert that no pod reaches any target."""
    assert where.reached_by(pods, targets, REFUSED_S) == {pod.name: set() for pod in pods}


def soon_get(where: Place, pods: list[Pod], targets: list[str]) -> None:
    """Return when each pod reaches all targets."""
    wanted = {pod.name: set(targets) for pod in pods}
    wait_until(lambda: where.reached_by(pods, targets, PERMITTED_S) == wanted, f"these reach {targets}: {pods}")


def soon_get_nothing(where: Place, pods: list[Pod], targets: list[str]) -> None:
    """Return when no pod reaches any target any more."""
    wait_until(
        lambda: not any(where.reached_by(pods, targets, REFUSED_S).values()), f"these are refused at {targets}: {pods}"
    )


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
    get(bar.beer, bar.guests("approved"), tap)
    get(bar.pub, bar.pub.pods("visitor"), tap)
    get_nothing(bar.beer, bar.guests("regular"), tap)
    get_nothing(bar.street, bar.street.pods("visitor"), tap)  # the right label, in the wrong namespace


def test_the_tap_is_found_by_its_service(bar: Bar) -> None:
    addresses = bar.beer.kubectl("get", "service", "tap", "-o", "jsonpath={.spec.clusterIPs[*]}").split()
    assert len(addresses) == 2
    targets = [*(at(address, 80) for address in addresses), f"tap.{bar.beer.name}:80"]
    get(bar.beer, bar.guests("approved"), targets)
    get_nothing(bar.beer, bar.guests("regular"), targets)


def test_an_agent_says_by_which_rule(bar: Bar) -> None:
    namespace = bar.beer.name
    policy_name = f"NetworkPolicy/{namespace}/approved-guests"
    for node, tap in zip(bar.cluster.nodes, bar.beer.pods("tap"), strict=True):
        get(bar.beer, bar.guests("approved"), tap.targets)
        get_nothing(bar.beer, bar.guests("regular"), tap.targets)
        lines = bar.installed.trireme(node, "observe", "--last", "300", "-n", namespace, "-o", "json").splitlines()
        records = [msgspec.json.decode(line, type=FlowRecord) for line in lines]
        by_name: dict[str, list[FlowRecord]] = {}
        for record in records:
            if (record.pod, record.direction) == (f"{namespace}/{tap.name}", "ingress") and record.peer:
                by_name.setdefault(record.peer.pod, []).append(record)
        for guest in bar.guests("approved"):
            allowed = {(one.verdict, one.policy, one.rule) for one in by_name[guest.name]}
            assert allowed == {("allow", policy_name, 0)}
        for guest in bar.guests("regular"):
            assert {(one.verdict, one.reason) for one in by_name[guest.name]} == {("deny", "no_match")}
            assert all("approved-guests" in one.nearest and "role" in one.nearest for one in by_name[guest.name])
        shown = bar.installed.trireme(node, "observe", "--last", "300", "-n", namespace)
        assert f"by {policy_name} ingress[0] from[0]   identity: proven" in shown


def test_another_label_is_another_identity(bar: Bar) -> None:
    guests, visitors, tap = bar.guests("approved"), bar.pub.pods("visitor"), bar.tap()
    bar.beer.kubectl("label", "pod", *(pod.name for pod in guests), "role=regular", "--overwrite")
    soon_get_nothing(bar.beer, guests, tap)
    bar.beer.kubectl("label", "pod", *(pod.name for pod in guests), "role=approved", "--overwrite")
    soon_get(bar.beer, guests, tap)
    bar.cluster.kubectl("label", "namespace", bar.pub.name, "beer-")
    soon_get_nothing(bar.pub, visitors, tap)
    bar.cluster.kubectl("label", "namespace", bar.pub.name, "beer=invited")
    soon_get(bar.pub, visitors, tap)


def test_guests_may_go_only_where_egress_lets_them(bar: Bar) -> None:
    name = f"tap.{bar.beer.name}.svc.cluster.local:80"
    water = [target for pod in bar.beer.pods("water") for target in pod.targets]
    guests, tap = bar.guests("approved"), bar.tap()
    get(bar.beer, guests, [*tap, *water, name])
    bar.beer.apply(policy("guests-may-go", {"role": "approved"}, egress=[TO_THE_TAP]))
    soon_get_nothing(bar.beer, guests, [*water, name])  # nobody tells them where the name is
    get(bar.beer, guests, tap)
    bar.beer.apply(policy("guests-may-go", {"role": "approved"}, egress=[DNS, TO_THE_TAP]))
    soon_get(bar.beer, guests, [*tap, name])
    get_nothing(bar.beer, guests, water)
    bar.beer.kubectl("delete", "networkpolicy", "guests-may-go")
    soon_get(bar.beer, guests, water)


def test_more_pods_and_fewer(bar: Bar) -> None:
    deployments = ("deployment/tap", "deployment/approved")
    bar.beer.kubectl("scale", *deployments, "--replicas=4")
    bar.beer.wait("tap", "approved")
    tap = bar.tap()
    assert len(tap) == 8
    get(bar.beer, bar.beer.pods("approved"), tap)
    get_nothing(bar.beer, bar.guests("regular"), tap)
    bar.beer.kubectl("scale", *deployments, "--replicas=2")
    wait_until(lambda: len(bar.beer.pods("tap")) == len(bar.beer.pods("approved")) == 2, "two pods are left")
    get(bar.beer, bar.beer.pods("approved"), bar.tap())
    get_nothing(bar.beer, bar.guests("regular"), bar.tap())


def test_a_pod_that_is_replaced(bar: Bar) -> None:
    for app in ("tap", "approved", "regular"):
        bar.beer.kubectl("delete", "pod", bar.beer.pods(app)[0].name)
        # The Deployment's status may be that of before for a while.
        wait_until(lambda app=app: len(bar.beer.pods(app)) == 2, "another pod comes in its place")  # type: ignore[misc]
        bar.beer.kubectl("wait", "--for=condition=Ready", "pod", f"--selector=app={app}", "--timeout=280s")
    get(bar.beer, bar.beer.pods("approved"), bar.tap())
    get_nothing(bar.beer, bar.beer.pods("regular"), bar.tap())


def test_a_policy_that_is_deleted(bar: Bar) -> None:
    approved, regular, tap = bar.beer.pods("approved"), bar.beer.pods("regular"), bar.tap()
    bar.beer.kubectl("delete", "networkpolicy", "approved-guests")
    soon_get_nothing(bar.beer, approved, tap)
    bar.beer.kubectl("delete", "networkpolicy", "default-deny", "invited-namespaces")
    soon_get(bar.beer, [*approved, *regular], tap)
    bar.beer.apply(DENY_ALL, APPROVED, INVITED)
    soon_get_nothing(bar.beer, regular, tap)
    get(bar.beer, approved, tap)


def test_no_probe_failed_all_the_time(bar: Bar) -> None:
    """The last one: under default-deny, kubelets asked each server once a second, and none was found unwell."""
    found = {one["metadata"]["name"]: one for one in json.loads(bar.beer.kubectl("get", "pods", "-o", "json"))["items"]}
    assert {one["status"]["containerStatuses"][0]["restartCount"] for one in found.values()} == {0}
    events = json.loads(bar.beer.kubectl("get", "events", "--field-selector=reason=Unhealthy", "-o", "json"))["items"]
    # Those that were deleted may have been asked in that moment. Until a server listens its kubelet is refused, with
    # the agent or without.
    unwell = [one["message"] for one in events if one["involvedObject"]["name"] in found]
    assert [message for message in unwell if "refused" not in message] == []

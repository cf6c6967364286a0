"""Whether an agent that is stopped knows that it was uninstalled, also when its permissions went first."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from agent.kubernetes.api import Access, ApiServer
from agent.kubernetes.departure import DAEMON_SET, Departure
from tests.cluster import pki
from tests.cluster.cluster import Cluster
from tests.cluster.layout import API_PORT

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

PATIENCE_S = 20.0
NAME = {"metadata": {"name": DAEMON_SET}}
SELECTED = {"app": DAEMON_SET}
DAEMON = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    **NAME,
    "spec": {
        "selector": {"matchLabels": SELECTED},
        "template": {
            "metadata": {"labels": SELECTED},
            "spec": {"nodeSelector": {"no": "such-node"}, "containers": [{"name": "a", "image": "none"}]},
        },
    },
}
RULE = {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [DAEMON_SET]}
PERMISSIONS = [
    {"apiVersion": "v1", "kind": "ServiceAccount", **NAME},
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        **NAME,
        "rules": [{**RULE, "verbs": ["get", "list", "watch"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        **NAME,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": DAEMON_SET},
        "subjects": [{"kind": "ServiceAccount", "name": DAEMON_SET}],
    },
]


class Site:
    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as Cluster.kubectl
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=input)

    def apply(self, *objects: object) -> None:
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    @contextmanager
    def departure(self, port: int = API_PORT, terminating: bool = False) -> Iterator[Departure]:
        """As the agent has it, with no more than the manifests' permissions."""
        token = self.kubectl("create", "token", DAEMON_SET).strip()
        access = Access("127.0.0.1", port, authority=pki.certificate_file("ca"), token=token)
        departure = Departure(ApiServer(access), self.namespace, lambda: terminating)
        departure.start()
        yield departure
        departure.stop()


@pytest.fixture
def site(cluster: Cluster) -> Iterator[Site]:
    namespace = f"departure-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", namespace)
    site = Site(cluster, namespace)
    site.apply(*PERMISSIONS)
    yield site
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def await_followed(departure: Departure) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not departure.follows():
        assert time.monotonic() < deadline, "the DaemonSet is not seen"
        time.sleep(0.02)


def await_final(departure: Departure, wanted: bool) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while departure.final() is not wanted:
        assert time.monotonic() < deadline, f"final() does not become {wanted}"
        time.sleep(0.02)


def test_a_restart_is_not_the_end(site: Site) -> None:
    site.apply(DAEMON)
    with site.departure() as departure:
        await_followed(departure)
        assert not departure.final()


def test_the_end_is_known_although_the_permissions_went_first(site: Site) -> None:
    site.apply(DAEMON)
    with site.departure() as departure:
        await_followed(departure)
        for kind in ("rolebinding", "role", "serviceaccount", "daemonset"):
            site.kubectl("delete", kind, DAEMON_SET)
        await_final(departure, True)


def test_one_that_is_on_its_way_counts_as_gone(site: Site) -> None:
    site.apply({**DAEMON, "metadata": {"name": DAEMON_SET, "finalizers": ["example.org/kept"]}})
    with site.departure() as departure:
        await_followed(departure)
        site.kubectl("delete", "daemonset", DAEMON_SET, "--wait=false")
        await_final(departure, True)
    site.kubectl("patch", "daemonset", DAEMON_SET, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


def test_one_that_is_made_anew_is_there(site: Site) -> None:
    site.apply(DAEMON)
    with site.departure() as departure:
        await_followed(departure)
        site.kubectl("delete", "daemonset", DAEMON_SET, "--cascade=orphan")
        await_final(departure, True)
        site.apply(DAEMON)
        await_final(departure, False)


def test_a_namespace_that_goes_is_the_end(site: Site) -> None:
    site.apply(DAEMON)
    with site.departure(terminating=True) as departure:
        await_followed(departure)
        assert departure.final()


def test_what_cannot_be_known_is_not_the_end(site: Site) -> None:
    with site.departure() as departure:
        assert not departure.final(), "never seen: it may have another name"
    site.apply(DAEMON)
    with site.departure(port=1) as departure:
        assert not departure.final(), "no API server"

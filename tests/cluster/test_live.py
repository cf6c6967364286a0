"""The agent comes to a busy cluster, is replaced there and leaves it, and no permitted connection notices.

Policies are there before the agent: nobody enforced them, and what the callers do conforms to them. So no connection of
theirs may ever be refused or cut; and what conforms to none is refused from the moment the installation is over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, Node
from tests.cluster.installation import OVERLAYS, Installed, wait_until
from tests.cluster.load import CALLER, INTRUDER, SERVER, STRAYER, Load, Window, load
from tests.cluster.workload import PORT, deployment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="a cluster starts in 20 s, and is compiled in a quarter of an hour"),
    pytest.mark.timeout(2400),
]

LABEL = "trireme.io/test-turn"
"""A node gets its agent when it has this label."""
COUNTERS = re.compile(r"counter packets \d+ bytes \d+")


def rules(node: Node) -> dict[str, str]:
    """Return the rules in the namespaces of a node's pods, and those of the node that are not kube-proxy's."""
    names = node.run("ls", "/run/netns").split()
    found = {name: node.run("nsenter", f"--net=/run/netns/{name}", "nft", "list", "ruleset") for name in names}
    own = node.run("nft", "list", "ruleset").splitlines()
    found["node"] = "\n".join(line for line in own if "KUBE" not in line and "CNI-" not in line)
    return {name: COUNTERS.sub("counter", text) for name, text in found.items()}


def files(node: Node) -> str:
    """Return what is in the folders of a node where the agent puts files, with a checksum of each."""
    folders = "/etc/cni/net.d /opt/cni/bin /run/trireme"
    return node.run("bash", "-c", f"find {folders} ! -type d -exec sha256sum {{}} + 2>/dev/null | sort; true")


@dataclass(frozen=True)
class Busy:
    """The agent on a cluster that is at work, and what became of that while it was installed."""

    load: Load
    installed: Installed
    during: Window
    """The callers, from before the first agent until the installation was over."""
    before: dict[str, tuple[dict[str, str], str]]
    """Rules and files of each node before there was an agent."""


@pytest.fixture(scope="module")
def busy(cluster: Cluster, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    """Install the agent on one node after the other, while callers call."""
    overlay = tmp_path_factory.mktemp("overlay")
    patch = [{"op": "add", "path": "/spec/template/spec/nodeSelector/trireme.io~1test-turn", "value": "come"}]
    root = "../" * (len(overlay.parts) - 1)  # kustomize wants a relative path
    kustomization = {
        "resources": [f"{root}{(OVERLAYS / 'psk').relative_to('/')}"],
        "patches": [{"target": {"kind": "DaemonSet"}, "patch": json.dumps(patch)}],
    }
    (overlay / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
    installed = Installed(cluster, overlay, "psk")
    first, second = cluster.nodes
    with load(cluster) as everybody:
        mark = everybody.mark(CALLER)
        before = {node.name: (rules(node), files(node)) for node in cluster.nodes}
        installed.prepare(tmp_path_factory.mktemp("keys"))
        try:
            installed.apply()
            for number, node in enumerate(cluster.nodes):
                cluster.kubectl("label", "node", node.name, f"{LABEL}=come", "--overwrite")
                wait_until(lambda node=node: node.name in installed.agents(), f"{node.name} gets an agent")  # type: ignore[misc]
                installed.kubectl(
                    "wait", "--for=condition=Ready", "pod", installed.agents()[node.name], "--timeout=100s"
                )
                everybody.settle(everybody.mark(CALLER))
                if number == 0:
                    wait_until(lambda: installed.status(first).waited_for == f"1: {second.name}", "it says who lacks")
            for node in cluster.nodes:
                wait_until(lambda node=node: installed.status(node).installation == "finished", "it is over")  # type: ignore[misc]
            during = everybody.since(mark)
            print(f"\ninstalling: {during}")
            yield Busy(everybody, installed, during, before)
        except BaseException:
            print(installed.diagnosis())
            raise
        finally:
            installed.remove()
            for node in cluster.nodes:
                cluster.kubectl("label", "node", node.name, f"{LABEL}-")


def nobody_noticed(window: Window) -> None:
    """Assert that callers made connections to every target, and none was refused, reset or cut."""
    assert sum(window.failed.values()) == 0, "\n".join(window.failures)
    assert min(window.made.values()) > 0
    assert set(window.lasting.values()) == {2}


def nobody_came_through(window: Window) -> None:
    """Assert that those who are not permitted tried, and connected to nobody."""
    assert min(window.failed.values()) > 0
    assert {target: count for target, count in window.connected.items() if count} == {}


def test_an_installation_under_load_refuses_nobody(busy: Busy) -> None:
    nobody_noticed(busy.during)


def test_who_is_not_permitted_is_refused_when_it_is_over(busy: Busy) -> None:
    for who in (INTRUDER, STRAYER):
        mark = busy.load.mark(who)
        busy.load.settle(mark)  # those begun before it was over have ended
        mark = busy.load.mark(who)
        nobody_came_through(busy.load.since(mark))
    mark = busy.load.mark(CALLER)
    nobody_noticed(busy.load.since(mark))


def test_a_rolling_update_under_load_loses_nothing_and_lets_nobody_in(busy: Busy) -> None:
    marks = {who: busy.load.mark(who) for who in (CALLER, INTRUDER, STRAYER)}
    agents = set(busy.installed.agents().values())
    busy.installed.kubectl("rollout", "restart", "daemonset/trireme-agent")
    busy.installed.wait()
    assert agents.isdisjoint(busy.installed.agents().values())
    windows = {who: busy.load.since(mark) for who, mark in marks.items()}
    for who, window in windows.items():
        print(f"\nrolling update, {who}s: {window}")
    nobody_noticed(windows[CALLER])
    for who in (INTRUDER, STRAYER):
        nobody_came_through(windows[who])


def test_an_uninstallation_under_load_refuses_nobody_and_leaves_nothing(busy: Busy, cluster: Cluster) -> None:
    """The last one: afterwards there is no agent."""
    mark = busy.load.mark(CALLER)
    said = busy.installed.remove()
    window = busy.load.since(mark)
    print(f"\nuninstalling: {window}")
    nobody_noticed(window)
    busy.installed.gone(said)
    for node in cluster.nodes:
        rules_before, files_before = busy.before[node.name]
        assert files(node) == files_before
        now = rules(node)
        assert {name: now[name] for name in rules_before if name in now} == rules_before

    busy.load.place.apply(deployment("newcomer", {"app": "newcomer"}))
    busy.load.place.wait("newcomer")
    servers = [f"{address}:{PORT}" for pod in busy.load.place.pods(SERVER) for address in pod.addresses[:1]]
    for newcomer in busy.load.place.pods("newcomer"):
        assert busy.load.place.reached(newcomer, servers, 30) == set(servers), "nobody enforces policies any more"
    events = busy.load.place.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "name")
    assert events == ""

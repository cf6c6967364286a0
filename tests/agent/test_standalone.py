"""The reconciler against real files and a real policy engine; the kernel side is a recorder (see tests/kernel)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.folder import FolderReader
from agent.issuing import Issuer
from agent.marks import LAST_EPOCH
from agent.reconciler import VERIFY_TICKS, Reconciler
from agent.runtime import RuntimeDirectory
from agent.standalone import FolderSource
from policy.engine import PolicyEngine
from policy.objects import NETWORK_NAMESPACE_ANNOTATION
from tests.harness.enforcement_recorder import ADDRESS, Recorder
from trireme_py.auth_psk import PskAuthenticator
from trireme_py.model import Direction

DENY_ALL = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {}}
"""


class Rig:
    """A folder, namespaces that are plain files, and an agent that can be restarted."""

    def __init__(self, root: Path) -> None:
        self.folder, self.namespaces = root / "config", root / "netns"
        self.folder.mkdir()
        self.namespaces.mkdir()
        self.kernel = Recorder()
        self.runtime = RuntimeDirectory(root / "run")
        self.runtime.lock()
        self.now = 1_795_000_000.0
        self.restart()

    def restart(self) -> None:
        self.engine = PolicyEngine()
        authenticator = PskAuthenticator(bytes(range(32)), "example.org")
        self.reconciler = Reconciler(
            FolderSource(FolderReader(self.folder, self.runtime.last_good)),
            self.engine,
            Issuer(authenticator, 3600, os.urandom, lambda: self.now),
            self.kernel,
            self.runtime,
        )

    def changed(self) -> None:
        """The folder has changed."""
        self.reconciler.changed()
        self.reconciler.lay_epochs()

    def tick(self) -> None:
        self.reconciler.tick()
        self.reconciler.lay_epochs()

    def namespace(self, name: str) -> Path:
        path = self.namespaces / name
        path.write_text("")
        return path

    def pod(self, name: str, namespace: str | None = None, labels: str = "app: x", more: str = "") -> None:
        annotation = f"annotations: {{{NETWORK_NAMESPACE_ANNOTATION}: {self.namespaces / (namespace or name)}}}"
        (self.folder / f"pod-{name}.yaml").write_text(
            "apiVersion: v1\nkind: Pod\n"
            f"metadata:\n  name: {name}\n  namespace: shop\n  labels: {{{labels}}}\n  {annotation}\n{more}"
        )

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def problems(self) -> list[str]:
        return [str(problem).replace(str(self.folder), "DIR") for problem in self.reconciler.problems]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.runtime.release()


def test_a_pod_is_bound_by_its_annotation(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.write("other.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: elsewhere, namespace: shop}\n")
    rig.reconciler.start()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    assert dict(rig.reconciler.bound) == {"shop/a": 1}
    assert rig.reconciler.summary() == {"pods": 1, "not_enforced": 1, "problems": 0}
    assert not rig.problems()
    rig.tick()
    assert rig.kernel.take() == []


@pytest.mark.parametrize(
    ("namespace", "told"),
    [
        ('"a\\0b"', "is not there; the pod is enforced as soon as it is"),
        ("/proc/self/ns/net", "is this machine's own, not a pod's, and is not enforced"),
    ],
    ids=["no name", "the machine's own"],
)
def test_a_namespace_that_cannot_be_a_pod_s_is_a_problem_and_others_are_bound(
    rig: Rig, namespace: str, told: str
) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.pod("b")
    path = rig.folder / "pod-b.yaml"
    path.write_text(path.read_text().replace(str(rig.namespaces / "b"), namespace))
    rig.reconciler.start()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    (problem,) = rig.problems()
    assert told in problem


def test_a_namespace_that_comes_later_and_goes_again(rig: Rig) -> None:
    rig.pod("a")
    rig.reconciler.start()
    assert rig.kernel.take() == []
    (problem,) = rig.problems()
    assert problem.startswith('DIR/pod-a.yaml:7: metadata.annotations["trireme.io/network-namespace"]: network names')
    path = rig.namespace("a")
    rig.tick()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    assert not rig.problems()
    path.unlink()
    rig.tick()
    # The rules went with the namespace: nothing is removed, and nothing stays recorded.
    assert rig.kernel.take() == [("detach", 1)]
    assert rig.runtime.read() == []


def test_another_namespace_of_the_same_name_is_bound_anew(rig: Rig) -> None:
    path = rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    fresh = rig.namespace("fresh")
    fresh.rename(path)
    rig.kernel.in_force.clear()
    rig.tick()
    assert rig.kernel.take() == [("detach", 1), ("attach", "shop/a", "a", 1)]


def test_a_pod_that_is_no_longer_asked_for_is_let_go_and_its_rules_removed(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    (rig.folder / "pod-a.yaml").unlink()
    rig.changed()
    assert rig.kernel.take() == [("detach", 1), ("remove", "a")]
    assert rig.runtime.read() == []


def test_rules_that_cannot_be_removed_are_tried_again(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    (rig.folder / "pod-a.yaml").unlink()
    rig.kernel.failing = {"remove"}
    rig.changed()
    assert "shop/a: remove refused; run: trireme cleanup" in rig.problems()[0]
    assert rig.reconciler.rule_errors == 1
    rig.kernel.failing = set()
    rig.tick()
    assert rig.kernel.take() == [("detach", 1), ("remove", "a")]
    assert not rig.problems()


def test_a_pod_that_is_renamed_keeps_its_namespace_closed(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    (rig.folder / "pod-a.yaml").unlink()
    rig.pod("b", namespace="a")
    rig.changed()
    assert rig.kernel.take() == [("detach", 1), ("attach", "shop/b", "a", 2)]


def test_only_pods_whose_policy_changed_get_a_new_epoch(rig: Rig) -> None:
    for name in ("a", "b"):
        rig.namespace(name)
        rig.pod(name, labels=f"app: {name}")
    rig.reconciler.start()
    rig.kernel.take()
    revision = rig.reconciler.revision
    rig.write("policy.yaml", DENY_ALL.replace("podSelector: {}", "podSelector: {matchLabels: {app: b}}"))
    rig.changed()
    assert rig.kernel.take() == [("policy", 2, 2)]
    assert rig.kernel.policies[2].isolated(Direction.INGRESS)
    assert not rig.kernel.policies[1].isolated(Direction.INGRESS)
    assert rig.reconciler.revision == revision + 1
    assert rig.reconciler.policies == 1
    (rig.folder / "policy.yaml").unlink()
    rig.changed()
    assert rig.kernel.take() == [("policy", 2, 3)]
    assert not rig.kernel.policies[2].isolated(Direction.INGRESS)


def test_an_installation_begins_and_ends_for_live_connections_too(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.write("policy.yaml", DENY_ALL)
    rig.reconciler.set_installing(True)
    rig.reconciler.start()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    assert rig.engine.snapshot.view("shop", "a").installing
    rig.reconciler.set_installing(False)
    assert rig.kernel.take() == [], "another thread says so; this one does it"
    rig.tick()
    assert rig.kernel.take() == [("policy", 1, 2)]
    assert not rig.engine.snapshot.view("shop", "a").installing
    rig.tick()
    assert rig.kernel.take() == []


def test_a_broken_policy_leaves_the_one_in_force_and_other_files_apply(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.write("policy.yaml", DENY_ALL)
    rig.reconciler.start()
    rig.kernel.take()
    rig.write("policy.yaml", DENY_ALL.replace("podSelector", "podSelectr"))
    rig.namespace("b")
    rig.pod("b")
    rig.changed()
    assert rig.kernel.take() == [("attach", "shop/b", "b", 1)]
    assert rig.problems()[0].startswith("DIR/policy.yaml:4: spec.podSelectr: ")
    assert rig.kernel.policies[2].isolated(Direction.INGRESS)


def test_changed_labels_make_a_new_identity_and_a_new_policy_if_selected(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a", labels="app: a")
    rig.write("policy.yaml", DENY_ALL.replace("podSelector: {}", "podSelector: {matchLabels: {app: b}}"))
    rig.reconciler.start()
    rig.kernel.take()
    before = rig.kernel.identities[1].id
    rig.pod("a", labels="app: b")
    rig.changed()
    assert rig.kernel.take() == [("policy", 1, 2), ("identity", 1)]
    assert rig.kernel.identities[1].id != before


def test_identities_are_renewed_at_half_their_life(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    assert rig.reconciler.assertion_not_after == rig.now + 3600
    rig.now += 1799
    rig.tick()
    assert rig.kernel.take() == []
    rig.now += 1
    rig.tick()
    assert rig.kernel.take() == [("identity", 1)]
    assert rig.reconciler.assertion_not_after == rig.now + 3600


def test_a_pod_without_a_possible_identity_is_a_problem_and_its_policy_still_changes(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    ports = "".join(f"{{name: port-number-{n}, containerPort: {n + 1}}}, " for n in range(60))
    rig.pod("a", labels="app: b", more=f"spec: {{containers: [{{name: c, ports: [{ports}]}}]}}\n")
    rig.write("policy.yaml", DENY_ALL)
    rig.changed()
    assert rig.kernel.take() == [("policy", 1, 2)]
    assert "shop/a" in rig.problems()[0]
    assert rig.reconciler.rule_errors == 0


def test_two_pods_cannot_share_a_namespace(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.pod("b", namespace="a")
    rig.reconciler.start()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    assert "is already that of pod shop/a" in rig.problems()[0]


def test_a_pod_keeps_its_namespace_when_one_of_an_earlier_name_asks_for_it(rig: Rig) -> None:
    rig.namespace("ns")
    rig.pod("b", namespace="ns")
    rig.reconciler.start()
    rig.pod("a", namespace="ns")
    rig.changed()
    assert rig.kernel.take() == [("attach", "shop/b", "ns", 1)]
    assert "is already that of pod shop/b" in rig.problems()[0]
    rig.reconciler.stop()
    rig.restart()
    rig.reconciler.start()
    assert list(rig.reconciler.bound) == ["shop/b"]


@pytest.mark.parametrize(
    ("more", "problems"), [("status: {phase: Succeeded}\n", 0), ("spec: {hostNetwork: true}\n", 1)]
)
def test_completed_and_host_network_pods_are_not_bound(rig: Rig, more: str, problems: int) -> None:
    rig.namespace("a")
    rig.pod("a", more=more)
    rig.reconciler.start()
    assert rig.kernel.take() == []
    assert len(rig.problems()) == problems


def test_rules_that_cannot_be_written_are_tried_again(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.kernel.failing = {"attach"}
    rig.reconciler.start()
    assert "attach refused" in rig.problems()[0]
    assert rig.runtime.read(), "what may hold rules is recorded before they go in"
    rig.kernel.failing = set()
    rig.tick()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    rig.write("policy.yaml", DENY_ALL)
    rig.kernel.failing = {"policy"}
    rig.changed()
    assert "policy refused" in rig.problems()[0]
    rig.kernel.failing = set()
    rig.tick()
    # The epoch of the failed attempt may be on a connection already: it is not used again.
    assert rig.kernel.take() == [("policy", 2, 3)]


def test_live_connections_are_judged_anew_after_every_pod_has_its_policy_and_what_is_urgent_comes_between(
    rig: Rig,
) -> None:
    for name in ("a", "b", "c"):
        rig.namespace(name)
        rig.pod(name)
    rig.reconciler.start()
    rig.kernel.take()
    rig.write("policy.yaml", DENY_ALL)
    rig.reconciler.changed()
    assert sorted(rig.kernel.take()) == [("policy", 1, 2), ("policy", 2, 2), ("policy", 3, 2)]
    assert rig.kernel.laid == []
    rig.reconciler.lay_epochs(lambda: True)
    assert len(rig.kernel.laid) == 1
    rig.reconciler.lay_epochs()
    assert sorted(rig.kernel.laid) == [1, 2, 3]


def test_an_epoch_that_cannot_be_laid_is_one_problem_and_is_laid_later(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.write("policy.yaml", DENY_ALL)
    rig.kernel.failing = {"epoch"}
    rig.changed()
    rig.tick()
    rig.tick()
    assert ["epoch refused" in problem for problem in rig.problems()] == [True]
    assert [record.message for record in caplog.records].count("config problem") == 1
    assert rig.reconciler.rule_errors == 3
    rig.kernel.failing = set()
    rig.tick()
    assert rig.kernel.laid == [1]
    assert not rig.problems()


def test_a_queue_that_closed_is_opened_again(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    rig.kernel.closed.add(1)
    rig.tick()
    # Same policy, same rules: the epoch in force goes on.
    assert rig.kernel.take() == [("detach", 1), ("attach", "shop/a", "a", 1)]


def test_a_namespace_whose_interfaces_come_later_is_bound_anew_with_their_addresses(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.kernel.own = ()
    rig.reconciler.start()
    rig.tick()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    rig.kernel.own = (ADDRESS,)
    rig.tick()
    assert rig.kernel.take() == [("detach", 1), ("attach", "shop/a", "a", 1)]
    rig.kernel.own = (ADDRESS, bytes(16))
    rig.tick()
    assert rig.kernel.take() == [], "once there are addresses, they are looked at now and then"
    for _ in range(VERIFY_TICKS):
        rig.tick()
    assert rig.kernel.take() == [("verify",), ("detach", 2), ("attach", "shop/a", "a", 1)]


def test_a_record_that_cannot_be_written_is_a_problem_not_the_end(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    state = rig.runtime.path / "state.new"
    state.mkdir()
    rig.reconciler.start()
    assert rig.kernel.take() == [], "no rules without a record of where they are"
    assert any("state.json" in problem for problem in rig.problems())
    state.rmdir()
    rig.tick()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]
    assert not rig.problems()


def test_a_restarted_agent_judges_every_pod_first_and_then_looks_at_rules(rig: Rig) -> None:
    for name in ("a", "b"):
        rig.namespace(name)
        rig.pod(name)
    rig.write("policy.yaml", DENY_ALL)
    rig.reconciler.start()
    rig.kernel.take()
    rig.pod("c")
    rig.namespace("c")
    rig.restart()
    rig.reconciler.start()
    assert rig.kernel.take() == [
        ("adopt", "shop/a", "a", 1),
        ("adopt", "shop/b", "b", 1),
        ("attach", "shop/c", "c", 1),
        ("lay", 1),
        ("lay", 2),
    ]
    rig.tick()
    assert rig.kernel.take() == []
    (rig.folder / "policy.yaml").unlink()
    rig.restart()
    rig.reconciler.start()
    changed = [("attach", f"shop/{name}", name, 2) for name in ("a", "b", "c")]
    assert rig.kernel.take() == changed, "the policy changed while nobody watched"


@pytest.mark.parametrize(("in_force", "epoch"), [(None, 2), (3, 4)], ids=["no rules", "other rules"])
def test_an_adopted_pod_gets_a_new_epoch_where_its_rules_are_not_what_was_written_down(
    rig: Rig, in_force: int | None, epoch: int
) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    del rig.kernel.in_force["a"]
    if in_force is not None:
        rig.kernel.in_force["a"] = in_force
    rig.kernel.in_use = {LAST_EPOCH}
    rig.restart()
    rig.reconciler.start()
    assert rig.kernel.take() == [("adopt", "shop/a", "a", 1), ("policy", 1, epoch), ("lay", 1)]
    assert [recorded.epoch for recorded in rig.runtime.read()] == [epoch]


def test_rules_of_an_adopted_pod_are_looked_at_again_until_they_can_be(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.restart()
    rig.kernel.take()
    rig.kernel.failing = {"lay"}
    rig.reconciler.start()
    assert "lay refused" in rig.problems()[0]
    rig.kernel.in_use = {1, 2}
    rig.write("policy.yaml", DENY_ALL)
    rig.changed()
    assert rig.kernel.take() == [("adopt", "shop/a", "a", 1), ("policy", 1, 3)], "no epoch that connections carry"
    rig.kernel.failing = set()
    rig.kernel.in_force["a"] = 3
    rig.tick()
    assert ("lay", 1) in rig.kernel.take()
    assert not rig.problems()


def test_a_restarted_agent_removes_the_rules_of_pods_that_went_meanwhile(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.reconciler.stop()
    rig.kernel.take()
    (rig.folder / "pod-a.yaml").unlink()
    rig.restart()
    rig.reconciler.start()
    assert rig.kernel.take() == [("remove", "a")]
    assert rig.runtime.read() == []


def test_an_epoch_comes_round_again_only_after_a_sweep(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    assert rig.kernel.sweeps == 1
    for number in range(LAST_EPOCH - 1):
        rig.write("policy.yaml", DENY_ALL.replace("deny-all", f"p{number}"))
        rig.changed()
    epochs = [step[2] for step in rig.kernel.take() if step[0] == "policy"]
    assert epochs == list(range(2, LAST_EPOCH + 1))
    assert rig.kernel.sweeps == 1
    rig.kernel.in_use = {1, 2, LAST_EPOCH}
    rig.write("policy.yaml", DENY_ALL)
    rig.changed()
    assert rig.kernel.sweeps == 2
    assert rig.kernel.take() == [("policy", 1, 3)]


def test_stopping_leaves_the_rules(rig: Rig) -> None:
    rig.namespace("a")
    rig.pod("a")
    rig.reconciler.start()
    rig.kernel.take()
    rig.reconciler.stop()
    assert rig.kernel.take() == [("detach", 1)]
    assert [record.pod for record in rig.runtime.read()] == ["shop/a"]


def test_a_change_that_no_event_told_of_is_found_by_the_tick(rig: Rig) -> None:
    rig.reconciler.start()
    rig.namespace("a")
    rig.pod("a")
    rig.tick()
    assert rig.kernel.take() == [("attach", "shop/a", "a", 1)]


def test_rules_are_verified_now_and_then(rig: Rig) -> None:
    rig.reconciler.start()
    for _ in range(VERIFY_TICKS):
        rig.tick()
    assert rig.kernel.take() == [("verify",)]
    rig.kernel.failing = {"verify"}
    for _ in range(VERIFY_TICKS):
        rig.tick()
    assert rig.reconciler.rule_errors == 1


def test_no_tick_verifies_the_rules_of_all_pods(rig: Rig) -> None:
    for name in "abcde":
        rig.namespace(name)
        rig.pod(name)
    rig.reconciler.start()
    most = 0
    for _ in range(VERIFY_TICKS):
        before = len(rig.kernel.verified)
        rig.tick()
        most = max(most, len(rig.kernel.verified) - before)
    assert (most, sorted(rig.kernel.verified)) == (1, [1, 2, 3, 4, 5])


def test_each_problem_is_logged_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.pod("a")
    caplog.set_level("INFO")
    rig.reconciler.start()
    rig.tick()
    rig.tick()
    assert [record.message for record in caplog.records].count("config problem") == 1
    rig.namespace("a")
    rig.tick()
    assert [record.message for record in caplog.records].count("config problem solved") == 1

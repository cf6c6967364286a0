"""What an explanation shows adds up to the decision: the reports alone are enough to decide again."""

from __future__ import annotations

from random import Random
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.decode import decode
from policy.diff import compare
from policy.engine import PolicyEngine
from policy.evaluate import Evaluator
from policy.explain import PolicyReport, SideReport, explain
from policy.files import load_text
from policy.lint import check
from policy.matrix import make_matrix, render_lines, render_svg
from policy.view import PRIVATE_NETWORKS, Settings
from tests.policy import generate
from tests.policy.world import NUMBERS
from trireme_py.model import Direction


def decide_again(side: SideReport) -> bool:
    """Decide from what the explanation says of each rule."""
    enforced = [report for report in side.policies if not report.audit]
    answer = ask_tier(enforced, "Admin")
    if answer is not None:
        return answer
    isolating = [report for report in enforced if report.tier == "NetworkPolicy"]
    if isolating:
        return any(rule.peer_matches and rule.port_matches for report in isolating for rule in report.rules)
    answer = ask_tier(enforced, "Baseline")
    return True if answer is None else answer


def ask_tier(reports: list[PolicyReport], tier: str) -> bool | None:
    for report in reports:
        for rule in report.rules:
            if report.tier == tier and rule.peer_matches and rule.port_matches:
                if "may be one" in rule.peer:
                    return False  # without an identity nobody evades what may mean it
                return None if rule.action == "Pass" else rule.action == "Accept"
    return None


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64 - 1))
def test_the_reports_add_up_to_the_decision(seed: int) -> None:
    rng = Random(seed)
    documents = generate.cluster(rng)
    objects = [item for item, _ in map(decode, documents.values()) if item is not None]
    for evaluator in (Evaluator.of(objects), Evaluator.as_enforced(objects)):
        check_reports(evaluator, rng, documents, seed)


def check_reports(evaluator: Evaluator, rng: Random, documents: dict[tuple[str, str, str], Any], seed: int) -> None:
    for _ in range(4):
        source, destination, protocol, port = generate.question(rng, documents)
        found = explain(evaluator, source, destination, NUMBERS[protocol], port)
        if found.source == found.destination:
            continue  # a pod always reaches itself, whatever the reports say
        for side in found.sides:
            assert decide_again(side) == side.decision.allowed, (seed, side)
            if side.decision.rule is not None and side.decision.allowed and side.decision.reason.value != "audit":
                (report,) = [each for each in side.policies if each.policy == side.decision.policy]
                assert report.rules[side.decision.rule].peer_matches
                assert report.rules[side.decision.rule].port_matches


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64 - 1))
def test_protocols_without_identities_are_judged_as_the_data_path_asks(seed: int) -> None:
    """`established.py` asks about the address alone; TCP and UDP are judged as the API means it."""
    rng = Random(seed)
    documents = generate.cluster(rng)
    objects = [item for item, _ in map(decode, documents.values()) if item is not None]
    enforced, meant = Evaluator.as_enforced(objects), Evaluator.of(objects)
    agent = PolicyEngine(Settings()).replace(objects)
    for _ in range(4):
        source, destination, protocol, port = generate.question(rng, documents)
        outcome = enforced.verdict(source, destination, NUMBERS[protocol], port)
        if protocol in ("TCP", "UDP"):
            assert outcome == meant.verdict(source, destination, NUMBERS[protocol], port)
            continue
        sides = (
            (Direction.EGRESS, outcome.source.pod, outcome.destination.pod, outcome.destination_address),
            (Direction.INGRESS, outcome.destination.pod, outcome.source.pod, outcome.source_address),
        )
        for direction, local, peer, address in sides:
            if local is None or peer is None or local is peer or peer.host_network:
                continue
            if not any(network.contains(address) for network in PRIVATE_NETWORKS):
                continue
            view = agent.view(local.namespace, local.name)
            assert outcome.decision(direction) == view.decide(direction, None, address, NUMBERS[protocol], port)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64 - 1))
def test_advice_and_pictures_take_any_cluster(seed: int) -> None:
    """Whatever is random here, each is as it should be, and what the reader reports is among the advice."""
    documents = generate.cluster(Random(seed))
    loaded = load_text("---\n".join(yaml.safe_dump(document) for document in documents.values()))
    assert len(loaded.objects) == len(documents)
    findings = check(loaded)
    assert len([each for each in findings if each.code == "invalid"]) == len(loaded.problems)
    made = make_matrix(Evaluator.as_enforced(loaded.objects))
    assert render_svg(made).endswith("</svg>\n")
    assert len(render_lines(made)) <= len(made.workloads) ** 2
    assert compare(loaded, loaded).empty

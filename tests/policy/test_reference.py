"""The engine and a naive second evaluator (reference.py) agree on random clusters, policies and questions."""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.addresses import parse_address
from policy.decode import decode
from policy.engine import PolicyEngine
from policy.evaluate import OFFLINE, Evaluator, identity_of
from policy.view import Settings
from tests.policy import generate, reference
from trireme_py.labels import hash_labels, read_hashed_labels_untrusted
from trireme_py.model import Decision, Direction, Protocol, Reason

NUMBERS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP, "ICMP": Protocol.ICMP}
EXAMPLES = int(os.environ.get("TRIREME_POLICY_EXAMPLES", "200000"))
"""Of the slow run; setting it starts that run."""
QUESTIONS = 4


def answer(decision: Decision) -> str:
    if decision.reason is Reason.AUDIT:
        assert decision.allowed
        return "audit"
    return "allowed" if decision.allowed else "denied"


def load(engine: PolicyEngine, document: dict[str, Any]) -> None:
    item, _ = decode(document)
    assert item is not None
    engine.apply(item)


def compare(rng: Random, engine: PolicyEngine, documents: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    naive = reference.Cluster(list(documents.values()))
    evaluator = Evaluator(engine.snapshot)
    for _ in range(QUESTIONS):
        source, destination, protocol, port = generate.question(rng, documents)
        outcome = evaluator.verdict(source, destination, NUMBERS[protocol], port)
        mine = {"ingress": answer(outcome.ingress), "egress": answer(outcome.egress)}
        theirs = reference.verdict(naive, source, destination, protocol, port)
        assert mine == theirs, (source, destination, protocol, port, outcome, documents)
        for decision in (outcome.ingress, outcome.egress):
            if not decision.allowed or decision.reason is Reason.AUDIT:
                assert decision.policy
                assert decision.nearest


def check(rng: Random) -> None:
    """Build a cluster, ask; change one object after another, ask again each time; ask a fresh engine at the end."""
    documents = generate.cluster(rng)
    engine = PolicyEngine(OFFLINE)
    engine.replace(item for item, _ in map(decode, documents.values()) if item is not None)
    compare(rng, engine, documents)
    for _ in range(rng.randint(0, 3)):
        if documents and rng.random() < 0.3:
            gone = rng.choice(sorted(documents))
            del documents[gone]
            engine.delete("/".join(part for part in gone if part))
        else:
            known = sorted(documents)
            change = known and rng.random() < 0.5
            document = generate.changed(rng, documents[rng.choice(known)]) if change else generate.one(rng)
            documents[generate.key_of(document)] = document
            load(engine, document)
        compare(rng, engine, documents)
    fresh = PolicyEngine(OFFLINE)
    fresh.replace(engine.objects.values())
    for namespace, pod in engine.snapshot.pods:
        assert fresh.snapshot.view(namespace, pod) == engine.snapshot.view(namespace, pod)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_agrees_on_random_clusters(rng: Random) -> None:
    """Each choice is drawn by hypothesis, so that a failure shrinks."""
    check(rng)


@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64 - 1))
def test_agrees_on_many_random_clusters(seed: int) -> None:
    """Only the seed is drawn, which is many times faster."""
    check(Random(seed))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    "TRIREME_POLICY_EXAMPLES" not in os.environ, reason="set TRIREME_POLICY_EXAMPLES=200000 (7 minutes)"
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.integers(0, 2**64 - 1))
def test_agrees_on_very_many_random_clusters(seed: int) -> None:
    check(Random(seed))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64 - 1))
def test_hashed_labels_decide_as_clear_ones_do(seed: int) -> None:
    """Pods with more labels than fit send hashes; selectors must not tell the difference."""
    rng = Random(seed)
    documents = generate.cluster(rng)
    snapshot = PolicyEngine(OFFLINE).replace(item for item, _ in map(decode, documents.values()) if item is not None)
    for namespace, name in snapshot.pods:
        view = snapshot.view(namespace, name)
        for other in snapshot.pods.values():
            clear = identity_of(other)
            labels = read_hashed_labels_untrusted(hash_labels(other.labels, rng.randbytes(8)))
            hashed = replace(clear, id=rng.randbytes(16), labels=labels)
            for direction in Direction:
                answers = [view.decide(direction, each, b"\n\0\0\1", Protocol.TCP, 80) for each in (clear, hashed)]
                assert len({(each.allowed, each.reason, each.policy, each.rule, each.peer) for each in answers}) == 1


@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**64 - 1))
def test_leaving_the_token_out_never_opens_anything(seed: int) -> None:
    """Whoever is allowed without an identity, from an address that may be a pod's, is allowed with any identity."""
    rng = Random(seed)
    documents = generate.cluster(rng)
    engine = PolicyEngine(Settings())
    snapshot = engine.replace(item for item, _ in map(decode, documents.values()) if item is not None)
    for namespace, name in snapshot.pods:
        view = snapshot.view(namespace, name)
        for other in snapshot.pods.values():
            address, port = parse_address(rng.choice(generate.ADDRESSES)), rng.choice(generate.PORTS)
            for direction in Direction:
                bare = view.decide(direction, None, address, Protocol.TCP, port)
                named = view.decide(direction, identity_of(other), address, Protocol.TCP, port)
                assert named.allowed or not bare.allowed, (documents, namespace, name, other, direction, port)
                if not bare.allowed:
                    assert bare.reason in (Reason.UNIDENTIFIED, Reason.DENY_RULE)

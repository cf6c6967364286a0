"""The engine against the truth tables of an independent generator (data/README.md), every row, each direction apart."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from policy.decode import decode
from policy.engine import PolicyEngine
from policy.evaluate import OFFLINE, Evaluator
from policy.objects import Object
from policy.validate import PROTOCOLS

TABLES = Path(__file__).parent / "data" / "conformance-tables.jsonl.gz"


@cache
def cases() -> tuple[dict[str, Any], ...]:
    with gzip.open(TABLES, "rt") as lines:
        return tuple(json.loads(line) for line in lines)


def objects_of(step: dict[str, Any]) -> dict[str, Object]:
    """Turn the listing of a step into API objects and read them as any other object is read."""
    documents: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in step["Namespaces"].items()
    ]
    documents += [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": pod["Namespace"], "name": pod["Name"], "labels": pod["Labels"]},
            "spec": {
                "containers": [
                    {"ports": [{"containerPort": c["Port"], "protocol": c["Protocol"], "name": c["PortName"]}]}
                    for c in pod["Containers"]
                ]
            },
            "status": {"phase": "Running", "podIPs": [{"ip": pod["IP"]}]},
        }
        for pod in step["Pods"]
    ]
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}  # the listing leaves them out at times
    documents += [kind | policy for policy in step["Policies"] or []]
    found: dict[str, Object] = {}
    for document in documents:
        item, _ = decode(document)
        assert item is not None, document
        found[item.key] = item
    return found


def mismatches(evaluator: Evaluator, step: dict[str, Any], rows: Counter[str]) -> Iterator[str]:
    for row in step["Expected"]:
        outcome = evaluator.verdict(row["From"], row["To"], PROTOCOLS[row["Protocol"]], row["Port"])
        itself = row["From"] == row["To"]
        rows["all"] += 1
        rows["itself"] += itself and row["Combined"] == "blocked"
        for side, decision in (("Ingress", outcome.ingress), ("Egress", outcome.egress)):
            expected = itself or row[side] == "allowed"
            rows["denied"] += not expected
            if decision.allowed != expected:
                yield f"{row['From']} -> {row['To']} {row['Protocol']} {row['Port']} {side}: {decision}"
            elif not expected and not (decision.policy and decision.nearest):
                yield f"{row['From']} -> {row['To']}: denied without an explanation: {decision}"


def check_every_row(one_at_a_time: bool) -> None:
    rows: Counter[str] = Counter()
    wrong: list[str] = []
    for case in cases():
        engine = PolicyEngine(OFFLINE)
        for number, step in enumerate(case["Steps"]):
            wanted = objects_of(step)
            if one_at_a_time:
                for key in [key for key in engine.objects if key not in wanted]:
                    engine.delete(key)
                for item in wanted.values():
                    engine.apply(item)
            else:
                engine = PolicyEngine(OFFLINE)
                engine.replace(wanted.values())
            for text in mismatches(Evaluator(engine.snapshot), step, rows):
                wrong.append(f"case {case['Index']} ({case['Description']}) step {number}: {text}")
    assert not wrong, "\n".join(wrong[:10])
    assert rows["all"] == 123_669
    assert rows["itself"] == 1_554
    assert rows["denied"] == 20_923


@pytest.mark.parametrize(
    "one_at_a_time", [True, False], ids=["updates to one running engine", "a fresh engine for each step"]
)
def test_every_row_of_the_tables(one_at_a_time: bool) -> None:
    check_every_row(one_at_a_time)


def test_views_that_a_step_did_not_change_keep_their_fingerprint() -> None:
    """Across all steps: equal decisions for equal fingerprints, and a changed table means a changed fingerprint."""
    compared = 0
    for case in cases():
        engine = PolicyEngine(OFFLINE)
        earlier: dict[str, tuple[bytes, dict[Any, str]]] = {}
        for step in case["Steps"]:
            snapshot = engine.replace(objects_of(step).values())
            tables: dict[str, dict[Any, str]] = {}
            labels = {f"{pod['Namespace']}/{pod['Name']}": tuple(sorted(pod["Labels"].items())) for pod in step["Pods"]}
            for row in step["Expected"]:
                # Rows are compared for the same peer with the same labels: a peer's change is not the view's.
                peer = (row["From"], labels[row["From"]])
                tables.setdefault(row["To"], {})[(peer, row["Protocol"], row["Port"])] = row["Ingress"]
            for pod, table in tables.items():
                fingerprint = snapshot.view(*pod.split("/")).fingerprint
                if pod in earlier and earlier[pod][0] == fingerprint:
                    before = earlier[pod][1]
                    same = {key: value for key, value in table.items() if key in before}
                    compared += 1
                    assert same == {key: before[key] for key in same}, (case["Index"], pod)
                earlier[pod] = (fingerprint, table)
    assert compared > 50

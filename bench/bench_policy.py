"""Decide and compile against 1 to 10,000 policies, over 1,000 namespaces and 10,000 identities.

Run it: ``python bench/bench_policy.py [--quick]``. It prints a Markdown table. What it is to show: a decision costs the
same however many policies do not select the pod, and one changed policy is in force without compiling the others.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

from policy.decode import decode
from policy.engine import PolicyEngine
from policy.evaluate import identity_of
from policy.objects import Namespace, Object, Pod
from policy.view import View
from trireme_py.model import Direction, Identity, Protocol

NAMESPACES = 1_000
IDENTITIES = 10_000
LOCAL_PODS = 30
SIZES = (1, 100, 1_000, 10_000)
TEAMS = 20
APPS = 50


def namespaces() -> list[Namespace]:
    return [
        Namespace(name=f"ns-{n}", labels={"kubernetes.io/metadata.name": f"ns-{n}", "team": f"team-{n % TEAMS}"})
        for n in range(NAMESPACES)
    ]


def pods() -> list[Pod]:
    """Return the pods of one node: each in a namespace of its own, the first of them in ns-0."""
    return [
        Pod(namespace=f"ns-{n}", name=f"pod-{n}", labels={"app": f"app-{n % APPS}"}, addresses=(bytes([10, 0, 0, n]),))
        for n in range(LOCAL_PODS)
    ]


def identities() -> list[Identity]:
    return [
        identity_of(
            Pod(namespace=f"ns-{n % NAMESPACES}", name=f"peer-{n}", labels={"app": f"app-{n % APPS}", "n": str(n)})
        )
        for n in range(IDENTITIES)
    ]


def policy(number: int, revision: int = 0) -> Object:
    """Return one of the policies of an ordinary cluster: a workload accepts another workload, a team, and an office.

    Those of one namespace are for different workloads, so each local pod is selected by one policy at most.
    """
    rule: dict[str, Any] = {
        "from": [
            {"podSelector": {"matchLabels": {"app": f"app-{(number + 1) % APPS}"}}},
            {"namespaceSelector": {"matchLabels": {"team": f"team-{number % TEAMS}"}}, "podSelector": {}},
            {"ipBlock": {"cidr": f"172.{16 + number % 16}.0.0/16", "except": [f"172.{16 + number % 16}.9.0/24"]}},
        ],
        "ports": [{"protocol": "TCP", "port": 8000 + revision}, {"protocol": "TCP", "port": "metrics"}],
    }
    item, problems = decode(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"policy-{number}", "namespace": f"ns-{number % NAMESPACES}"},
            "spec": {
                "podSelector": {"matchLabels": {"app": f"app-{(number % NAMESPACES + number // NAMESPACES) % APPS}"}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [rule],
                "egress": [{"to": rule["from"], "ports": [{"protocol": "TCP", "port": 8000 + revision}]}],
            },
        }
    )
    assert item is not None
    assert not problems
    return item


def microseconds(action: Callable[[], object], repeat: int) -> float:
    """Return the median time of one call, in microseconds."""
    times: list[int] = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def decide_all(view: View, peers: Sequence[Identity], address: bytes) -> None:
    for peer in peers:
        view.decide(Direction.INGRESS, peer, address, Protocol.TCP, 8000)


def measure(size: int, quick: bool) -> list[str]:
    world: list[Object] = [*namespaces(), *pods()]
    engine = PolicyEngine()
    engine.replace(world)
    gc.collect()
    tracemalloc.start()
    policies = [policy(number) for number in range(size)]
    engine.replace([*world, *policies])
    memory = tracemalloc.get_traced_memory()[0] / size
    tracemalloc.stop()

    engine = PolicyEngine()
    engine.replace(world)
    start = time.perf_counter_ns()
    engine.replace([*world, *policies])
    compile_all = (time.perf_counter_ns() - start) / 1e6
    start = time.perf_counter_ns()
    for each in pods():
        engine.snapshot.view(each.namespace, each.name)
    views = (time.perf_counter_ns() - start) / 1e6

    everyone = identities()
    peers = everyone[:: 10 if quick else 1]
    shuffled = random.Random(1).sample(peers, len(peers))
    view = engine.snapshot.view("ns-0", "pod-0")
    address = bytes([10, 1, 2, 3])
    start = time.perf_counter_ns()
    decide_all(view, shuffled, address)
    first = (time.perf_counter_ns() - start) / 1000 / len(peers)
    known = shuffled[:1_000]
    again = microseconds(lambda: decide_all(view, known, address), 5) / len(known)

    versions = [policy(0, revision) for revision in (1, 2)]

    def change() -> None:
        engine.apply(versions[0])
        engine.snapshot.view("ns-0", "pod-0")
        versions.reverse()

    changed = microseconds(change, 20)

    relabelled = [
        Namespace(name="ns-5", labels={"kubernetes.io/metadata.name": "ns-5", "team": f"team-{n}"}) for n in (7, 8)
    ]

    def relabel() -> None:
        engine.apply(relabelled[0])
        for each in pods():
            engine.snapshot.view(each.namespace, each.name)
        relabelled.reverse()

    namespace = microseconds(relabel, 10) / 1000
    return [
        f"{size:,}", f"{compile_all:,.0f}", f"{views:,.1f}", f"{changed / 1000:,.2f}", f"{namespace:,.2f}",
        f"{first:,.1f}", f"{again:,.2f}", f"{memory / 1024:,.1f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer policies and identities")
    quick = parser.parse_args().quick
    print(f"{NAMESPACES:,} namespaces, {IDENTITIES:,} identities, {LOCAL_PODS} local pods; ", end="")
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs\n")
    header = (
        "policies", "compile all, ms", "all local views, ms", "one policy changed, ms", "one namespace relabelled, ms",
        "decide, new identity, µs", "decide, known identity, µs", "memory per policy, KiB",
    )  # fmt: skip
    print("| " + " | ".join(header) + " |")
    print("|" + "---:|" * len(header))
    for size in SIZES[:3] if quick else SIZES:
        print("| " + " | ".join(measure(size, quick)) + " |", flush=True)


if __name__ == "__main__":
    main()

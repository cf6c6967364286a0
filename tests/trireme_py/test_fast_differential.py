"""Python alone and the fast path in front of it are fed the same packets, honest and hostile, and must say the same."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.harness import storm, world
from tests.harness.mutations import mutations
from tests.harness.segments import packed, repaired
from tests.harness.world import Pod
from trireme_py.fast import FastDatapath
from trireme_py.model import DropReason, FlowEvent, Hook, Release, Result

SERVICE = packed("10.96.0.10")


@dataclass
class Heard:
    """All that two data paths can be compared by."""

    answers: list[tuple[int, str, Hook, bytes, Result]] = field(default_factory=list)
    """When, to whom, where, which packet, what became of it."""
    releases: list[tuple[int, str, Release]] = field(default_factory=list)
    drops: dict[str, Counter[DropReason]] = field(default_factory=dict)
    events: dict[str, list[FlowEvent]] = field(default_factory=dict)
    tables: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parked: int = 0
    answered_in_c: int = 0


def listen_in(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write down what every data path says from now on."""
    carry_out, release = Pod._carry_out, Pod.release

    def heard_result(pod: Pod, hook: Hook, ticket: int, data: bytes, result: Result) -> None:
        heard.answers.append((pod.world.mono_ns, pod.name, hook, data, result))
        carry_out(pod, hook, ticket, data, result)

    def heard_release(pod: Pod, one: Release) -> None:
        heard.releases.append((pod.world.mono_ns, pod.name, one))
        release(pod, one)

    monkeypatch.setattr(Pod, "_carry_out", heard_result)
    monkeypatch.setattr(Pod, "release", heard_release)
    monkeypatch.setattr(world.World, "acquaint", lambda *_: None)  # they learn what they learn


def hail(scene: storm.Storm, seed: int) -> None:
    """Throw what was heard at whoever is there, damaged, with and without a right checksum, at either hook."""
    rng = random.Random(seed)
    for data in list(scene.world.captured)[-2:]:
        for mutated in mutations(data, 3, rng.getrandbits(32)):
            pod: Pod = rng.choice(scene.guarded)
            meet = rng.choice((pod.arrive, pod.leave))
            meet(repaired(mutated) if rng.random() < 0.7 else mutated)


def call_the_service(scene: storm.Storm) -> None:
    """The friend dials an address that the node translates to the server's."""
    connection = scene.friend.connect(SERVICE, storm.WELCOME)
    connection.on_data = lambda connection: connection.close()


def renew(scene: storm.Storm) -> None:
    """Everybody gets a new assertion."""
    for pod in scene.guarded:
        assert pod.datapath is not None
        assert pod.authenticator is not None
        pod.identity = scene.world.local_identity(pod.name, pod.authenticator)
        pod.datapath.set_identity(0, pod.identity)


def weather(implementation: str, mode: str, seed: int, connections: int) -> Heard:
    """What one storm sounds like."""
    heard = Heard()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(world, "IMPLEMENTATION", implementation)
        listen_in(heard, monkeypatch)
        scene = storm.Storm(seed, mode)
        scene.world.router.services[SERVICE, storm.WELCOME] = [(scene.server.address(), storm.WELCOME)]
        for index in range(connections):
            scene.world.after(index * 5_000_000 + 1, lambda index=index: hail(scene, index))  # type: ignore[misc]
            if index % 7 == 3:
                scene.world.after(index * 5_000_000 + 2, lambda: call_the_service(scene))
            if index % 60 == 59:
                scene.world.after(index * 5_000_000 + 3, lambda: renew(scene))
        scene.rain(connections, gap_ns=5_000_000)
        scene.world.run(100)  # what was handed over has begun a new lifetime
        for pod in scene.guarded:
            heard.drops[pod.name] = pod.drops
            heard.events[pod.name] = pod.events
            assert pod.datapath is not None
            heard.tables[pod.name] = pod.datapath.gauges()
            if isinstance(pod.datapath, FastDatapath):
                counters = pod.datapath.counters(0)
                heard.parked += sum(counters.parked)
                heard.answered_in_c += sum(counters.ingress) + sum(counters.egress)
    return heard


def first_difference(one: list[Any], other: list[Any]) -> object:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index, left, right
    return None if len(one) == len(other) else ("lengths", len(one), len(other))


@pytest.mark.parametrize(("mode", "seed"), [("psk", 1), ("psk", 2), ("pki", 3)])
def test_both_say_the_same_in_a_storm(mode: str, seed: int) -> None:
    python, c = (weather(implementation, mode, seed, 300) for implementation in ("python", "c"))
    assert first_difference(python.answers, c.answers) is None
    assert first_difference(python.releases, c.releases) is None
    assert python.drops == c.drops
    assert python.events == c.events
    assert python.tables == c.tables
    # It was worth comparing: C has accepted connections of its own, and handed others over.
    assert c.answered_in_c > 100, c.answered_in_c
    assert c.parked > 1000

"""What data paths say, written down so that two of them can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.harness import world
from tests.harness.world import Pod
from trireme_py.fast import FastDatapath
from trireme_py.flows import Tuple5
from trireme_py.model import DropReason, FlowEvent, Hook, Release, Result


@dataclass
class Heard:
    """All that two data paths can be compared by."""

    answers: list[tuple[int, str, Hook, bytes, Result]] = field(default_factory=list)
    """When, to whom, where, which packet, what became of it."""
    releases: list[tuple[int, str, Release]] = field(default_factory=list)
    drops: dict[str, Counter[DropReason]] = field(default_factory=dict)
    events: dict[str, list[FlowEvent]] = field(default_factory=dict)
    tables: dict[str, tuple[int, ...]] = field(default_factory=dict)
    remembered: dict[str, set[Tuple5]] = field(default_factory=dict)
    parked: int = 0
    answered_in_c: int = 0
    """Accepted connections."""

    def collect(self, pods: Iterable[Pod]) -> None:
        """Write down what is left in the end."""
        for pod in pods:
            assert pod.datapath is not None
            self.drops[pod.name] = pod.drops
            self.events[pod.name] = pod.events
            self.tables[pod.name] = pod.datapath.gauges()
            self.remembered[pod.name] = set(pod.datapath.remembered(0))
            if isinstance(pod.datapath, FastDatapath):
                counters = pod.datapath.counters(0)
                self.parked += sum(counters.parked)
                self.answered_in_c += sum(counters.ingress) + sum(counters.egress)


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


def first_difference(one: list[Any], other: list[Any]) -> object:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index, left, right
    return None if len(one) == len(other) else ("lengths", len(one), len(other))


def assert_same(python: Heard, c: Heard) -> None:
    """Both have said the same, to the last octet, and remember the same."""
    assert first_difference(python.answers, c.answers) is None
    assert first_difference(python.releases, c.releases) is None
    assert python.drops == c.drops
    assert python.events == c.events
    assert python.tables == c.tables
    assert python.remembered == c.remembered

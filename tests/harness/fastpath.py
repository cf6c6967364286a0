"""The C half of a pod's data path, for tests that are about it."""

from __future__ import annotations

from tests.harness.world import Pod
from trireme_py.fast import Counters, FastDatapath


def fast(pod: Pod) -> FastDatapath:
    assert isinstance(pod.datapath, FastDatapath)
    return pod.datapath


def counters(pod: Pod) -> Counters:
    return fast(pod).counters(0)

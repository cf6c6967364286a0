"""What a large cluster costs an agent: memory and processor time. docs/cluster.md has the numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster.elsewhere import Elsewhere, elsewhere
from tests.cluster.installation import Installed, wait_until
from tests.cluster.tiers import TAKES_MINUTES

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow(reason="minutes of looking at idle agents, and 5,000 pods to make"),
    pytest.mark.timeout(2400),
    TAKES_MINUTES,
]

SIZES = (10, 1000, 5000)
"""Pods elsewhere, while memory and processor time are looked at."""
SETTLE_S = 15.0
MINUTE_S = 60.0
FLAT = 1.05


@pytest.fixture
def large(installed: Installed) -> Iterator[Elsewhere]:
    """A made-up node. It has no agent, so it comes when the installation is over."""
    for node in installed.cluster.nodes:
        wait_until(lambda node=node: installed.status(node).installation == "finished", "it is over")  # type: ignore[misc]
    with elsewhere(installed.cluster) as large:
        yield large


@dataclass(frozen=True, slots=True)
class Usage:
    """What an agent uses: memory in MiB, processor time in seconds of a minute."""

    rss: float
    pss: float
    cpu: float

    def __str__(self) -> str:
        return f"RSS {self.rss:.1f} MiB, PSS {self.pss:.1f} MiB, {self.cpu:.2f} s of a processor a minute"


def memory(installed: Installed, pod: str) -> tuple[float, float]:
    """Return resident and proportional memory of the agent in a pod, in MiB."""
    lines = installed.kubectl("exec", pod, "--", "cat", "/proc/1/smaps_rollup").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith("kB")}
    return found["Rss"], found["Pss"]


def processor_time(installed: Installed, pod: str) -> float:
    """Return what the agent and programs that it ran have used so far, in seconds."""
    fields = installed.kubectl("exec", pod, "--", "cat", "/proc/1/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def usage(installed: Installed) -> dict[str, Usage]:
    """Start the agents anew, and return what each uses in a minute, by node."""
    installed.kubectl("rollout", "restart", "daemonset/trireme-agent")
    installed.wait()
    agents = installed.agents()
    time.sleep(SETTLE_S)  # what a start costs is over by far; there is no event that says so
    before = {node: (time.monotonic(), processor_time(installed, pod)) for node, pod in agents.items()}
    time.sleep(MINUTE_S)
    found = {}
    for node, pod in agents.items():
        began, used = before[node]
        cpu = (processor_time(installed, pod) - used) / (time.monotonic() - began) * 60
        found[node] = Usage(*memory(installed, pod), cpu)
    return found


def test_memory_and_processor_time_do_not_grow_with_pods_elsewhere(installed: Installed, large: Elsewhere) -> None:
    found: dict[int, dict[str, Usage]] = {}
    for pods in SIZES:
        large.grow(pods)
        found[pods] = usage(installed)
        for node, used in found[pods].items():
            print(f"\n{pods} pods elsewhere, {node}: {used}")
    for node, least in found[SIZES[0]].items():
        assert max(found[pods][node].rss for pods in SIZES) < least.rss * FLAT

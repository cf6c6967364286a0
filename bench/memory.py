"""What the agent's memory grows by with its pods: the agent itself, on a configuration folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from agent.lab import Lab, LabPod
from bench.lanes import private_kb
from tests.harness import agent_process, implementation
from tests.harness.agent_process import AgentProcess, Configuration

PODS = (1, 10, 100)


def report() -> str:
    """Returns Markdown."""
    agent_process.PATIENCE_S = 300.0  # rules of a hundred namespaces, on a machine that does other things, too
    with Lab("benchmem") as lab:
        pods = [lab.add_pod(f"p{number}") for number in range(max(PODS))]
        sizes = {impl: [_agent_kb(impl, lab, pods[:count]) for count in PODS] for impl in ("python", "c")}
    rows = [
        f"| {impl} | " + " | ".join(f"{size / 1024:,.0f}" for size in found) + f" | {_per_pod(found):,.0f} |"
        for impl, found in sizes.items()
    ]
    head = " | ".join(f"{count} pods" if count > 1 else "1 pod" for count in PODS)
    return f"""## Memory

Of the agent alone, in MB, when its pods are enforced and nothing has connected yet; and what a pod adds, in kB.

| data path | {head} | kB a pod |
|---|---:|---:|---:|---:|
{chr(10).join(rows)}
"""


def _per_pod(found: list[int]) -> float:
    return (found[-1] - found[0]) / (PODS[-1] - PODS[0])


def _agent_kb(impl: str, lab: Lab, pods: list[LabPod]) -> int:
    implementation.name = impl
    with tempfile.TemporaryDirectory() as folder:
        configuration = Configuration(Path(folder), str(lab.router.path))
        for number, pod in enumerate(pods):
            configuration.pod(f"p{number}", pod)
        with AgentProcess(configuration) as agent:
            return private_kb(agent.process.pid)

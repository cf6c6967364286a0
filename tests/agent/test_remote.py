"""`kubectl trireme`, with a kubectl that writes down what it is asked and knows three agents on two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PODS = {
    "items": [
        {"metadata": {"name": "agent-b"}, "spec": {"nodeName": "worker-2"}, "status": {"phase": "Running"}},
        {
            "metadata": {"name": "agent-d", "creationTimestamp": "2026-11-23T06:00:01Z"},  # about to follow agent-a
            "spec": {"nodeName": "worker-1"},
            "status": {"phase": "Running"},
        },
        {
            "metadata": {"name": "agent-a", "creationTimestamp": "2026-11-22T06:00:00Z"},
            "spec": {"nodeName": "worker-1"},
            "status": {"phase": "Running"},
        },
        {"metadata": {"name": "agent-c"}, "spec": {}, "status": {"phase": "Pending"}},
    ]
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pods.json").write_text(json.dumps(PODS))
    (tmp_path / "kubectl").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in\n'
        f"*forbidden*) echo 'Error from server (Forbidden)' >&2; exit 1;;\n"
        f"*' get pods '*) cat {tmp_path}/pods.json;;\n*agent-b*) echo said by b; exit 1;;\n*) echo said by a;;\nesac\n"
    )
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "kubectl-trireme").symlink_to(Path(sys.executable).with_name("trireme"))
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(folder / "kubectl-trireme"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_it_runs_in_every_agent_and_the_worst_exit_status_counts(folder: Path) -> None:
    done = run(folder, "status")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == ["node worker-1", "said by a", "node worker-2", "said by b"]
    assert asked(folder) == [
        "--namespace trireme-system get pods --selector "
        "app.kubernetes.io/name=trireme,app.kubernetes.io/component=agent --output json",
        "--namespace trireme-system exec agent-a --container agent -- trireme status",
        "--namespace trireme-system exec agent-b --container agent -- trireme status",
    ]


def test_the_command_s_own_options_are_handed_on(folder: Path) -> None:
    done = run(
        folder,
        "check",
        "--node",
        "worker-1",
        "--agents-namespace",
        "other",
        "--context",
        "lab",
        "-o",
        "json",
        "--kernel",
    )
    assert (done.returncode, done.stdout) == (0, "said by a\n")
    exec_line = "--context lab --namespace other exec agent-a --container agent -- trireme check -o json --kernel"
    assert asked(folder)[1] == exec_line


def test_a_namespace_is_the_command_s_own_as_without_kubectl(folder: Path) -> None:
    run(folder, "observe", "-n", "beer", "--namespace", "beer", "--node", "worker-1", "--last", "3")
    exec_line = "--namespace trireme-system exec agent-a --container agent -- "
    assert asked(folder)[1] == exec_line + "trireme observe -n beer --namespace beer --last 3"


def test_policy_does_not_take_the_desk_for_a_node(folder: Path) -> None:
    done = run(folder, "policy", "show", "-n", "beer", "--agent")
    line = "kubectl --namespace trireme-system exec daemonset/trireme-agent --container agent -- trireme policy show"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"run: {line} -n beer --agent\n")


def test_what_may_go_on_for_ever_wants_a_node(folder: Path) -> None:
    done = run(folder, "observe", "-f")
    assert done.returncode == 2
    assert "name a node: --node NAME, of worker-1, worker-2" in done.stderr
    assert run(folder, "observe", "-f", "--node", "worker-1").stdout == "said by a\n"


def test_what_is_wrong_is_said(folder: Path) -> None:
    done = run(folder, "status", "--node", "worker-9")
    assert done.returncode == 2
    assert "no agent runs on node worker-9; see: kubectl --namespace trireme-system get pods" in done.stderr
    done = run(folder, "status", "--agents-namespace", "forbidden")
    assert (done.returncode, done.stderr) == (2, "kubectl trireme status: Error from server (Forbidden)\n")


def test_help_shows_both_names(folder: Path) -> None:
    shown = run(folder, "status", "--help").stdout
    assert shown.startswith("Usage: kubectl trireme status")
    assert "in the agents' pods" in shown
    assert "[default: all]" in shown
    assert "[default: all]" not in run(folder, "observe", "--help").stdout
    assert run(folder, "policy", "check", "--help").stdout.startswith("Usage: kubectl trireme policy check")

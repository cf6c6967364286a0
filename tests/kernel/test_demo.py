"""The demo as users run it: a process of its own, judged by its exit code, what it says and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agent import netns
from agent.demo.stage import WORD

pytestmark = pytest.mark.kernel


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # A shell starts what runs in its background with interrupts ignored, and a child inherits that.
        ["env", "--default-signal=INT", sys.executable, "-m", "agent.cli", "demo", "--plain", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def left_behind(pid: int, folder: Path) -> list[str]:
    """What should be gone: namespaces of the demo's process, its folders, and agents that run in them."""
    namespaces = [path.name for path in netns.RUN_DIR.glob(f"trm-{WORD}-{pid}-*")]
    return namespaces + [f"process {pid}" for pid in agents(folder)] + [path.name for path in folder.iterdir()]


def agents(folder: Path, node: str = "") -> list[int]:
    """The agents whose configuration lies in ``folder``, by process id."""
    found = {int(path.parent.name): _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [pid for pid, words in found.items() if str(folder).encode() in words and node.encode() in words]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def play(*arguments: str) -> str:
    with tempfile.TemporaryDirectory(prefix="trm-demo-test-") as name:
        folder = Path(name)
        demo = start_demo(folder, *arguments)
        output, _ = demo.communicate(timeout=280)
        assert demo.returncode == 0, output
        assert left_behind(demo.pid, folder) == []
    assert "FAILED" not in output
    return output


def test_identity_decides_and_the_verdict_says_why() -> None:
    output = play("--mode", "psk", "--family", "4")
    assert re.search(r"beer/other \[app=guest,role=regular\] → beer/tap:8080  DENY  ingress  no_match", output)
    assert re.search(r"beer/approved \[app=guest,role=approved\] → beer/tap:8080  ALLOW  ingress  policy", output)
    assert re.search(r"beer/other \[app=guest,role=approved\] → beer/tap:8080  ALLOW  ingress  policy", output)
    assert re.search(r"→ beer/resolver \[app=resolver\]:53  ALLOW  egress  policy  UDP", output)
    assert re.search(r"→ beer/impostor \[app=impostor\]:53  DENY  egress  no_match  UDP", output)
    assert "not one query of approved and other reaches the impostor's application" in output
    assert len(re.findall(r"PSK +[1-6] .* ok ", output)) == 6


@pytest.mark.slow  # a minute: both modes over both families, as `make demo` plays it
def test_the_whole_demo_passes_and_is_what_the_readme_shows() -> None:
    output = play()
    assert len(re.findall(r"(?:PSK|PKI) +[1-6] .* ok ", output)) == 12
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    transcript = readme.split("```\nBeer of the day", 1)[1].split("```", 1)[0].splitlines()
    # Beers, times and who came first differ from run to run; everything else does not.
    lasting = [line for line in transcript if re.match(r"Act |  ok |    \| | +closest: | +by |  \w+ +pod on ", line)]
    assert len(lasting) > 60
    assert [line for line in lasting if line not in output.splitlines()] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals, code: int) -> None:
    with tempfile.TemporaryDirectory(prefix="trm-demo-test-") as name:
        folder = Path(name)
        demo = start_demo(folder, "--mode", "psk", "--family", "6")
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Act 2" in line:
                break
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=60)
        assert demo.returncode == code, rest
        assert left_behind(demo.pid, folder) == []


def test_an_agent_that_dies_fails_the_demo_and_its_log_is_kept() -> None:
    with tempfile.TemporaryDirectory(prefix="trm-demo-test-") as name:
        folder = Path(name)
        demo = start_demo(folder, "--mode", "psk", "--family", "4")
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Act 2" in line:
                break
        (agent,) = agents(folder, "node-server")
        os.kill(agent, signal.SIGKILL)
        rest, _ = demo.communicate(timeout=60)
        assert demo.returncode == 1, rest
        assert "the agent of node server ended" in rest
        (kept,) = folder.iterdir()
        assert f"kept in {kept}" in rest
        assert (kept / "node-server" / "agent.log").stat().st_size > 0
        assert not agents(folder)
        assert not list(netns.RUN_DIR.glob(f"trm-{WORD}-{demo.pid}-*"))

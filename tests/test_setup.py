"""scripts/setup where it has nothing to do, and where it cannot do it: what is missing is named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parent.parent / "scripts" / "setup"


def run_setup(cwd: Path, *arguments: str, fakes: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it from ``cwd`` with some programs replaced by shell scripts."""
    for name, script in (fakes or {}).items():
        path = cwd / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{cwd}:{os.environ['PATH']}", "TRIREME_REQUIRE_KERNEL": "0"}
    return subprocess.run([SETUP, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_packages_that_cannot_be_installed_are_named(tmp_path: Path) -> None:
    fakes = {
        "dpkg-query": 'case "$*" in *spin*|*conntrack*) exit 1;; esac; printf installed',
        "apt-get": "exit 1",
        "id": "echo 1000",
        "sudo": "exit 1",
    }
    done = run_setup(tmp_path, fakes=fakes)
    assert done.returncode == 1
    assert "ask for: apt-get install --no-install-recommends conntrack spin" in done.stderr


def test_an_apt_that_fails_ends_the_set_up(tmp_path: Path) -> None:
    fakes = {
        "dpkg-query": 'case "$*" in *spin*) exit 1;; esac; printf installed',
        "apt-get": "echo 'E: no network' >&2; exit 100",
        "id": "echo 0",
    }
    done = run_setup(tmp_path, fakes=fakes)
    assert done.returncode == 100
    assert "installing Debian packages: spin" in done.stdout
    assert "E: no network" in done.stderr


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    assert run_setup(tmp_path, "--kernal").returncode == 2


@pytest.mark.kernel
def test_a_second_run_installs_nothing_from_any_folder(tmp_path: Path) -> None:
    assert run_setup(tmp_path).returncode == 0
    done = run_setup(tmp_path, "--kernel")
    assert (done.returncode, done.stdout, done.stderr) == (0, "setup: ready\n", "")


@pytest.mark.kernel
def test_a_kernel_that_cannot_queue_is_told_and_stops_only_who_needs_it(tmp_path: Path) -> None:
    refusal = "echo 'No chain/target/match by that name.' >&2; exit 1"
    fakes = {"iptables-nft": refusal, "iptables-legacy": refusal}
    tolerant = run_setup(tmp_path, fakes=fakes)
    assert tolerant.returncode == 0
    assert "tests that need it will be skipped" in tolerant.stdout
    strict = run_setup(tmp_path, "--kernel", fakes=fakes)
    assert strict.returncode == 1
    assert "xt_NFQUEUE" in strict.stderr
    assert "iptables-legacy: No chain/target/match by that name." in strict.stderr
    probes = [path.name for path in Path("/run/netns").glob("trm-probe-*")]
    assert [name for name in probes if not Path("/proc", name.rpartition("-")[2]).exists()] == []

"""Runs Spin on one variant of a model."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MEMORY_LIMIT_MIB: Final = 1800
DEPTH_LIMIT: Final = 10_000
"""The longest path is under 100 steps; pan says so when a path is cut at the limit, and the tests look for that."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one search said."""

    report: str
    violated: str | None
    """The expression of the assertion that was found false, or None."""
    complete: bool
    """Every reachable state was visited: nothing was cut for depth or memory, or by a violation."""
    states: int


def search(model: Path, directory: Path, *defines: str, optimise: str = "-O1") -> Outcome:
    """Build in ``directory`` and run the verifier of one variant of a model. A tool that fails is a failed test."""
    for tool in ("spin", "gcc"):
        assert shutil.which(tool), f"{tool} is not installed: apt-get install spin gcc"
    flags = [f"-D{define}" for define in defines]
    run(directory, "spin", "-a", *flags, str(model))
    run(directory, "gcc", optimise, "-DSAFETY", f"-DMEMLIM={MEMORY_LIMIT_MIB}", "-o", "pan", "pan.c")
    # -E: a server that waits for ever for a proof that nobody sends is no error here.
    report = run(directory, "./pan", "-E", f"-m{DEPTH_LIMIT}", "-w22")
    violated = re.search(r"assertion violated +(.+) \(at depth", report)
    states = re.search(r"(\d+) states, stored", report)
    assert states, report
    cut = re.search("not completed|too small|out of memory|truncated", report, re.IGNORECASE)
    complete = cut is None and "Full statespace search" in report and re.search(r"errors: 0\n", report) is not None
    return Outcome(report, violated.group(1) if violated else None, complete, int(states.group(1)))


def run(directory: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=240)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{output}"
    return output

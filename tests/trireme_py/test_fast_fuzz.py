"""The fuzz targets of the fast path on their corpus, under sanitizers; and for a few seconds on what libFuzzer makes of
it, where there is clang."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness.fuzzing import TARGETS, build_replay, fuzz, has_libfuzzer, unpack

SECONDS = 5
"""Enough to notice that a change broke something near the corpus. `make fuzz` looks for longer."""


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_harms_nothing(target: str, tmp_path: Path) -> None:
    files = unpack(target, tmp_path / "corpus")
    said = subprocess.run([build_replay(target, tmp_path), *files], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, f"{len(files)} files\n"), said.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_little_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    """Slow because it runs for a fixed time."""
    if not has_libfuzzer():
        pytest.skip("no clang with libFuzzer: apt-get install clang libclang-rt-14-dev")
    fuzz(target, tmp_path, SECONDS, tmp_path)

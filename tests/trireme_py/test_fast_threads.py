"""What the fast path's threads do with a queue, in cases that no kernel can be made to show at will."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from bench.bench_handshake import FASTPATH
from tests.harness.fuzzing import FLAGS, ROOT, THREAD

Case = Callable[[str], str]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Run one case of tests/harness/queue_cases.c, under sanitizers, and return what it prints."""
    program = tmp_path_factory.mktemp("threads") / "queue_cases"
    own = ROOT / "tests" / "harness" / "queue_cases.c"
    sources = [str(one) for one in (own, *(FASTPATH / f"{name}.c" for name in THREAD))]
    command = ["gcc", *FLAGS, "-fsanitize=address,undefined", f"-I{FASTPATH}", *sources, "-pthread", "-o", str(program)]
    subprocess.run(command, check=True)
    options = {"ASAN_OPTIONS": "detect_leaks=0"}  # what a case has set up ends with it
    return lambda name: subprocess.run([program, name], check=True, capture_output=True, text=True, env=options).stdout


def test_a_queue_that_breaks_between_two_questions_wakes_python_again(case: Case) -> None:
    """Python asks for an error, the queue breaks, Python takes what is parked: it must come back to learn of it."""
    before, readable, broken = case("broken").split()
    assert (before, readable, broken) == ("0", "1", "1")


def test_nobody_can_choose_a_flow_that_waits_for_somebody_else_s(case: Case) -> None:
    """Two flows that had one number whatever the hash began with: an address and a port that differ in these bits."""
    assert case("alike") == "1\n"


def test_a_mark_is_put_off_so_often_and_no_more_behind_packets_that_never_set_it(case: Case) -> None:
    """Forged ones in the connection's name, say, of which there is one at the end of every batch."""
    assert case("same") == "21\n", "PATIENCE, and then the one that sets it"
